//! The socket's file: private from its first moment, one daemon at a time, removed at the end.
//!
//! A lock file beside the socket says who is at it. The kernel drops the lock with the daemon,
//! however that ends, so that the socket of a killed daemon is known to be stale; and between two
//! that start at once, one wins.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{self, Gid};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

use crate::control::socket_file::{SocketFile, Taken, identity, remove_stale};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Octets of the longest path that fits a socket address (unix(7)).
const MAX_PATH: usize = 107;

/// Who may connect to the control socket, besides root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Mode of the socket's file, of which writing is what counts (unix(7)).
    pub mode: u32,
    /// Its group; that of the process when not given.
    pub group: Option<Group>,
}

/// A group of users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Group {
    /// By name.
    Name(String),
    /// By number.
    Id(u32),
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Id(id) => id.fmt(f),
        }
    }
}

impl Default for Access {
    /// For the owner alone.
    fn default() -> Self {
        Self {
            mode: 0o600,
            group: None,
        }
    }
}

impl Access {
    fn group_id(&self) -> Result<Option<Gid>, BindError> {
        let name = match &self.group {
            None => return Ok(None),
            Some(Group::Id(id)) => return Ok(Some(Gid::from_raw(*id))),
            Some(Group::Name(name)) => name,
        };
        match unistd::Group::from_name(name) {
            Ok(Some(group)) => Ok(Some(group.gid)),
            Ok(None) => Err(BindError::Group(name.clone())),
            Err(error) => Err(BindError::GroupUnknown {
                name: name.clone(),
                error: error.into(),
            }),
        }
    }
}

/// Why the control socket cannot be had.
#[derive(Debug, Error)]
pub enum BindError {
    /// Another process listens there.
    #[error(
        "{}: a nos-relay is already running there; stop it, or choose another path with --control",
        .0.display()
    )]
    Running(PathBuf),
    /// There is something that is not a socket.
    #[error("{}: exists and is not a socket, so it is left alone", .0.display())]
    NotASocket(PathBuf),
    /// There is no such group.
    #[error("control.group: there is no group \"{0}\" on this machine")]
    Group(String),
    /// Whether there is such a group cannot be found out.
    #[error("control.group: the group \"{name}\" cannot be looked up: {error}")]
    GroupUnknown {
        /// Its name.
        name: String,
        /// What the system says.
        #[source]
        error: io::Error,
    },
    /// The path is empty or too long.
    #[error("{}: has {} octets; the path of a socket has 1 to {MAX_PATH}", .0.display(), .0.as_os_str().len())]
    Path(PathBuf),
    /// The system refuses.
    #[error("{}: cannot be used as control socket: {error}", path.display())]
    Io {
        /// The path of the socket or of its lock.
        path: PathBuf,
        /// What the system says.
        #[source]
        error: io::Error,
    },
}

impl BindError {
    fn of(path: &Path, taken: Taken) -> Self {
        match taken {
            Taken::InUse => Self::Running(path.to_owned()),
            Taken::NoSocket => Self::NotASocket(path.to_owned()),
            Taken::Io(error) => io_error(path, error),
        }
    }
}

/// A listening socket and its files, which go when it is dropped.
#[derive(Debug)]
pub(super) struct ControlSocket {
    file: SocketFile,
    lock: Lock,
    /// Another process has the files now.
    left: bool,
}

impl ControlSocket {
    /// Listens at `path`. The listener does not block.
    pub(super) fn bind(path: &Path, access: &Access) -> Result<(Self, OwnedFd), BindError> {
        let group = access.group_id()?;
        if !(1..=MAX_PATH).contains(&path.as_os_str().len()) {
            return Err(BindError::Path(path.to_owned()));
        }
        let lock = Lock::acquire(path)?;
        remove_stale(path, probe).map_err(|taken| BindError::of(path, taken))?;
        let io = |error| io_error(path, error);
        let socket = private_socket(path).map_err(io)?;
        let files = Self {
            file: SocketFile::at(path).map_err(io)?,
            lock,
            left: false,
        };
        give(&files.file, group, access.mode).map_err(io)?;
        socket.listen(BACKLOG).map_err(io)?;
        Ok((files, socket.into()))
    }
}

impl ControlSocket {
    /// The files of another process, which leaves them.
    pub(super) fn received(path: &Path, lock: OwnedFd) -> Result<Self, BindError> {
        Ok(Self {
            file: SocketFile::at(path).map_err(|error| io_error(path, error))?,
            lock: Lock {
                path: lock_path(path),
                file: File::from(lock),
            },
            left: false,
        })
    }

    pub(super) fn duplicate_lock(&self) -> io::Result<OwnedFd> {
        Ok(self.lock.file.try_clone()?.into())
    }

    /// Has the files stay.
    pub(super) fn leave(&mut self) {
        self.left = true;
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        self.file.remove();
        self.lock.remove();
    }
}

/// A bound socket whose file has mode 0600 from the start.
fn private_socket(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // Linux gives the file the mode of the unbound socket (less the umask): unlike a chmod
    // afterwards, that leaves no moment in which others could open it.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    Ok(socket)
}

/// Gives the socket's file to its group, and only then opens it to it: nobody else can open it at any
/// moment.
fn give(socket: &SocketFile, group: Option<Gid>, mode: u32) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let options = options
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW);
    let file = options.open(socket.path())?;
    if identity(&file.metadata()?) != socket.identity() {
        return Err(io::Error::other("somebody has put something else there"));
    }
    if group.is_some() {
        unistd::fchownat(&file, c"", None, group, AtFlags::AT_EMPTY_PATH)?;
    }
    // A descriptor of this kind has no fchmod(2).
    let file = format!("/proc/self/fd/{}", file.as_raw_fd());
    fs::set_permissions(file, fs::Permissions::from_mode(mode))
}

/// Connects and hangs up, without blocking.
fn probe(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

#[derive(Debug)]
struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Locks the file beside `socket`.
    fn acquire(socket: &Path) -> Result<Self, BindError> {
        let path = lock_path(socket);
        loop {
            let file = open_private(&path).map_err(|error| io_error(&path, error))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(BindError::Running(socket.to_owned()));
                }
                Err(TryLockError::Error(error)) => return Err(io_error(&path, error)),
            }
            // The last holder may have removed the file between our open and our lock.
            if is_at(&file, &path) {
                return Ok(Self { path, file });
            }
        }
    }

    /// Removes the file while it is still locked.
    fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("{}: cannot be removed: {error}", self.path.display());
        }
    }
}

/// The lock file beside a socket.
fn lock_path(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    PathBuf::from(path)
}

fn open_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Whether `file` is what is found at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    let found = fs::symlink_metadata(path);
    match (file.metadata(), found) {
        (Ok(file), Ok(found)) => identity(&file) == identity(&found),
        _ => false,
    }
}

fn io_error(path: &Path, error: io::Error) -> BindError {
    let path = path.to_owned();
    BindError::Io { path, error }
}
