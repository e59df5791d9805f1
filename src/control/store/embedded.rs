//! A store in a file of its own, by redb.
//!
//! Commits have two phases: the second is begun when the first is on the disk. So a file that was
//! not closed (`kill -9`, loss of power) has its last commit whole, and one that has not is damaged,
//! which is said: it is never taken for the commit before. All checksums are verified when a file is
//! opened.
//!
//! A file is made under another name and renamed when it is whole. The directory is locked
//! (`flock(2)`) as long as the store is open; the kernel lets go of that lock with the process.
//!
//! redb gives a database up after an error of the system. It is opened again by the next call then,
//! which is how a disk that was full is recovered from.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{
    Builder, CommitError as RedbCommitError, Database, DatabaseError, ReadableDatabase,
    ReadableTable, StorageBackend, StorageError, TableDefinition, TableError, TransactionError,
    WriteTransaction,
};

use super::{CommitError, Contents, Section, Store, StoreError, VERSION, Write};

/// The file in the state directory.
const FILE: &str = "state.redb";
/// The same while it is made.
const NEW_FILE: &str = "state.redb.new";
/// The mode of a state directory that is made.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// Octets of the file that are kept in memory.
const CACHE: usize = 4 << 20;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const VERSION_KEY: &str = "version";
const REVISION_KEY: &str = "revision";

type Entries = TableDefinition<'static, &'static str, &'static [u8]>;

/// A store in a state directory.
#[derive(Debug)]
pub struct Embedded {
    path: PathBuf,
    medium: Medium,
    /// None after an error, until it is opened again.
    database: Option<Database>,
    /// Locked while this is open.
    _directory: Option<File>,
}

/// What a database is on.
#[derive(Debug)]
enum Medium {
    /// The file at the path.
    File,
    /// A disk that fails when a test wants it to.
    #[cfg(test)]
    Faulty(super::faulty::Disk),
}

impl Medium {
    /// Opens a database that is there, and checks it.
    fn open(&self, path: &Path) -> Result<Database, StoreError> {
        match self {
            Self::File => open(path),
            #[cfg(test)]
            Self::Faulty(disk) => built(path, disk.clone()),
        }
    }
}

impl Embedded {
    /// Opens the store in `directory`, which is made if it is not there (mode 0700).
    ///
    /// # Errors
    ///
    /// [`StoreError`]; what was there is as it was.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let system = |what| {
            move |error: io::Error| StoreError::System {
                path: directory.to_owned(),
                what,
                reason: error.to_string(),
            }
        };
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(DIRECTORY_MODE);
        made.create(directory).map_err(system("make it"))?;
        let opened = File::open(directory).map_err(system("open it"))?;
        match opened.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(directory.to_owned())),
            Err(TryLockError::Error(error)) => return Err(system("lock it")(error)),
        }
        let path = directory.join(FILE);
        if let Err(error) = fs::symlink_metadata(&path) {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(system("look into it")(error));
            }
            let new = directory.join(NEW_FILE);
            make(&new)?;
            fs::rename(&new, &path).map_err(system("rename a file in it"))?;
            opened.sync_all().map_err(system("write it to the disk"))?;
        }
        let database = Some(open(&path)?);
        Ok(Self {
            path,
            medium: Medium::File,
            database,
            _directory: Some(opened),
        })
    }

    /// A store on a disk that fails; one that is empty is made.
    #[cfg(test)]
    pub(crate) fn on(disk: &super::faulty::Disk) -> Result<Self, StoreError> {
        let path = PathBuf::from("a disk");
        if disk.is_empty() {
            let database = built(&path, disk.clone())?;
            write(&path, &database, &[]).unwrap();
        }
        let medium = Medium::Faulty(disk.clone());
        let database = Some(medium.open(&path)?);
        Ok(Self {
            path,
            medium,
            database,
            _directory: None,
        })
    }

    /// The database; opened again if it was given up.
    fn database(&mut self) -> Result<&Database, StoreError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => self.medium.open(&self.path)?,
        };
        Ok(self.database.insert(database))
    }

    /// What was done with the database, which is given up if that failed.
    fn given_up_if_failed<T, E>(&mut self, done: Result<T, E>) -> Result<T, E> {
        if done.is_err() {
            self.database = None;
        }
        done
    }
}

impl Store for Embedded {
    fn load(&mut self) -> Result<Contents, StoreError> {
        let path = self.path.clone();
        let done = read(&path, self.database()?);
        self.given_up_if_failed(done)
    }

    fn commit(&mut self, writes: &[Write]) -> Result<u64, CommitError> {
        let path = self.path.clone();
        let database = self.database().map_err(CommitError::NotMade)?;
        let done = write(&path, database, writes);
        self.given_up_if_failed(done)
    }

    fn damaged(&self, why: &str) -> StoreError {
        corrupt(&self.path, why)
    }
}

fn table(section: Section) -> Entries {
    TableDefinition::new(match section {
        Section::Registrations => "registrations",
        Section::Answers => "answers",
        Section::Pools => "pools",
    })
}

/// Makes a database with nothing in it. One that was left half made is made anew.
fn make(path: &Path) -> Result<(), StoreError> {
    let failed = |error: io::Error| said(path, "make it", &error);
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create_new(true);
    let file = options.mode(FILE_MODE).open(path).map_err(failed)?;
    let database = opened(path, file)?;
    let made = write(path, &database, &[]);
    drop(database);
    if made.is_err() {
        let _ = fs::remove_file(path);
    }
    match made {
        Ok(_) => Ok(()),
        Err(CommitError::NotMade(error) | CommitError::Unknown(error)) => Err(error),
    }
}

/// Opens a database that is there, and checks it.
fn open(path: &Path) -> Result<Database, StoreError> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true);
    let file = options.custom_flags(libc::O_NOFOLLOW).open(path);
    let file = file.map_err(|error| said(path, "open it", &error))?;
    let length = file.metadata().map(|data| data.len());
    if length.map_err(|error| said(path, "look at it", &error))? == 0 {
        // It would be taken for one that is to be made.
        return Err(corrupt(path, "it is empty"));
    }
    let database = opened(path, file)?;
    let found = version(path, &database)?;
    if found > VERSION {
        return Err(StoreError::Later {
            path: path.to_owned(),
            found,
        });
    }
    Ok(database)
}

fn opened(path: &Path, file: File) -> Result<Database, StoreError> {
    let backend = FileBackend::new(file).map_err(|error| of_database(path, error))?;
    built(path, backend)
}

fn built(path: &Path, backend: impl StorageBackend) -> Result<Database, StoreError> {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE);
    builder.set_check_integrity_on_open(true);
    let database = builder.create_with_backend(backend);
    database.map_err(|error| of_database(path, error))
}

fn version(path: &Path, database: &Database) -> Result<u64, StoreError> {
    let transaction = database.begin_read();
    let transaction = transaction.map_err(|error| of_transaction(path, error))?;
    let meta = transaction.open_table(META);
    let meta = meta.map_err(|error| of_table(path, error))?;
    let version = meta.get(VERSION_KEY);
    let version = version.map_err(|error| of_storage(path, &error))?;
    let version = version.map(|guard| guard.value());
    version.ok_or_else(|| corrupt(path, "it does not say of what version it is"))
}

fn read(path: &Path, database: &Database) -> Result<Contents, StoreError> {
    let transaction = database.begin_read();
    let transaction = transaction.map_err(|error| of_transaction(path, error))?;
    let entries = |section| -> Result<_, StoreError> {
        let table = match transaction.open_table(table(section)) {
            // Of a store that was made before there was such a thing.
            Err(TableError::TableDoesNotExist(_)) => return Ok(BTreeMap::new()),
            table => table.map_err(|error| of_table(path, error))?,
        };
        let rows = table.iter().map_err(|error| of_storage(path, &error))?;
        let entry =
            |row: Result<(redb::AccessGuard<'_, &str>, redb::AccessGuard<'_, &[u8]>), _>| {
                let (name, value) = row.map_err(|error| of_storage(path, &error))?;
                Ok((name.value().to_owned(), value.value().to_vec()))
            };
        rows.map(entry).collect()
    };
    let meta = transaction.open_table(META);
    let meta = meta.map_err(|error| of_table(path, error))?;
    let revision = meta.get(REVISION_KEY);
    let revision = revision.map_err(|error| of_storage(path, &error))?;
    Ok(Contents {
        revision: revision.map_or(0, |guard| guard.value()),
        registrations: entries(Section::Registrations)?,
        answers: entries(Section::Answers)?,
        pools: entries(Section::Pools)?,
    })
}

fn write(path: &Path, database: &Database, writes: &[Write]) -> Result<u64, CommitError> {
    let (transaction, revision) = filled(path, database, writes).map_err(CommitError::NotMade)?;
    let committed = transaction.commit();
    committed.map_err(|error| CommitError::Unknown(of_commit(path, error)))?;
    Ok(revision)
}

/// A transaction in which all is done, and which is forgotten unless it is committed.
fn filled(
    path: &Path,
    database: &Database,
    writes: &[Write],
) -> Result<(WriteTransaction, u64), StoreError> {
    let transaction = database.begin_write();
    let mut transaction = transaction.map_err(|error| of_transaction(path, error))?;
    transaction.set_two_phase_commit(true);
    let revision = fill(path, &transaction, writes)?;
    Ok((transaction, revision))
}

fn fill(path: &Path, transaction: &WriteTransaction, writes: &[Write]) -> Result<u64, StoreError> {
    for section in Section::ALL {
        let table = transaction.open_table(table(section));
        let mut table = table.map_err(|error| of_table(path, error))?;
        for write in writes.iter().filter(|write| write.section == section) {
            let name = write.name.as_str();
            let done = match &write.value {
                Some(value) => table.insert(name, value.as_slice()).map(|_| ()),
                None => table.remove(name).map(|_| ()),
            };
            done.map_err(|error| of_storage(path, &error))?;
        }
    }
    let meta = transaction.open_table(META);
    let mut meta = meta.map_err(|error| of_table(path, error))?;
    let failed = |error| of_storage(path, &error);
    meta.insert(VERSION_KEY, VERSION).map_err(failed)?;
    let last = meta.get(REVISION_KEY).map_err(failed)?;
    let revision = last.map_or(0, |guard| guard.value()).saturating_add(1);
    meta.insert(REVISION_KEY, revision).map_err(failed)?;
    Ok(revision)
}

fn said(path: &Path, what: &'static str, reason: &dyn std::fmt::Display) -> StoreError {
    StoreError::System {
        path: path.to_owned(),
        what,
        reason: reason.to_string(),
    }
}

fn corrupt(path: &Path, why: impl Into<String>) -> StoreError {
    StoreError::Corrupt {
        path: path.to_owned(),
        why: why.into(),
    }
}

fn of_database(path: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::Storage(error) => of_storage(path, &error),
        DatabaseError::DatabaseAlreadyOpen => StoreError::Locked(path.to_owned()),
        other => said(path, "open it", &other),
    }
}

fn of_storage(path: &Path, error: &StorageError) -> StoreError {
    match error {
        StorageError::Corrupted(why) => corrupt(path, why),
        StorageError::Io(io) if io.kind() == io::ErrorKind::InvalidData => {
            corrupt(path, io.to_string())
        }
        StorageError::Io(io) if io.kind() == io::ErrorKind::UnexpectedEof => {
            corrupt(path, "it ends too early")
        }
        StorageError::Io(io) => said(path, "use it", io),
        other => said(path, "use it", other),
    }
}

fn of_transaction(path: &Path, error: TransactionError) -> StoreError {
    match error {
        TransactionError::Storage(error) => of_storage(path, &error),
        other => said(path, "use it", &other),
    }
}

fn of_table(path: &Path, error: TableError) -> StoreError {
    match error {
        TableError::Storage(error) => of_storage(path, &error),
        other => corrupt(path, other.to_string()),
    }
}

fn of_commit(path: &Path, error: RedbCommitError) -> StoreError {
    match error {
        RedbCommitError::Storage(error) => of_storage(path, &error),
        other => said(path, "write it", &other),
    }
}

/// Makes a store be of another version, as one of the future would.
#[cfg(test)]
pub(super) fn set_version(directory: &Path, version: u64) {
    let database = Database::open(directory.join(FILE)).unwrap();
    let transaction = database.begin_write().unwrap();
    let mut meta = transaction.open_table(META).unwrap();
    meta.insert(VERSION_KEY, version).unwrap();
    drop(meta);
    transaction.commit().unwrap();
}
