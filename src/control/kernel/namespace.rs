//! Network namespaces: how one is named, and how work is done inside.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// An open network namespace.
///
/// The value keeps the namespace alive even when its name and its last process are gone. Clones
/// share one descriptor.
#[derive(Clone)]
pub struct Namespace {
    fd: Arc<OwnedFd>,
    id: NamespaceId,
    origin: Origin,
}

/// By what a namespace can be opened again. It does not keep the namespace alive: the kernel
/// deletes it with its last process and its last name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceName {
    id: NamespaceId,
    origin: Origin,
}

/// What makes two handles the same namespace: device and inode of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamespaceId {
    device: u64,
    inode: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Path(PathBuf),
    Process(u32),
    Current,
    Anonymous(String),
}

/// Why a namespace could not be opened or entered.
#[derive(Debug, Error)]
pub enum NamespaceError {
    /// The file that names the namespace cannot be opened.
    #[error("cannot open {origin} ({path}): {source}")]
    Open {
        /// How the caller named it.
        origin: String,
        /// The file that was opened.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// There is a file, but it is no network namespace.
    #[error("{origin} ({path}) is not a network namespace: {found}")]
    NotNetwork {
        /// How the caller named it.
        origin: String,
        /// The file that was opened.
        path: PathBuf,
        /// What it is instead.
        found: &'static str,
    },
    /// The name leads to another namespace by now: the container was started anew.
    #[error("{origin} is another one by now")]
    Replaced {
        /// How the caller named it.
        origin: String,
    },
    /// The kernel refused entry; it wants CAP_SYS_ADMIN over the namespace and over oneself.
    #[error("cannot enter {origin}: {source}")]
    Enter {
        /// Which namespace.
        origin: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// No thread could be started to do the work.
    #[error("cannot start a thread for {origin}: {source}")]
    Thread {
        /// Which namespace.
        origin: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl NamespaceId {
    /// The namespace whose file has this device and inode.
    #[must_use]
    pub const fn new(device: u64, inode: u64) -> Self {
        Self { device, inode }
    }
}

impl Namespace {
    /// Opens the namespace that `path` names, such as `/run/netns/C` or `/proc/1234/fd/5`.
    ///
    /// # Errors
    /// The path cannot be opened, or is not a network namespace.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, NamespaceError> {
        let path = path.into();
        Self::open_file(&path, Origin::Path(path.clone()))
    }

    /// Opens the namespace in which the main thread of process `pid` lives.
    ///
    /// # Errors
    /// No such process, or no permission to look at it.
    pub fn of_process(pid: u32) -> Result<Self, NamespaceError> {
        Self::open_file(
            Path::new(&format!("/proc/{pid}/ns/net")),
            Origin::Process(pid),
        )
    }

    /// Opens the namespace of the calling thread.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> Result<Self, NamespaceError> {
        Self::open_file(Path::new("/proc/thread-self/ns/net"), Origin::Current)
    }

    /// Makes a namespace without a name, which vanishes with its last user.
    ///
    /// `label` appears in errors and logs only.
    ///
    /// # Errors
    /// The kernel refuses; it wants CAP_SYS_ADMIN in the caller's user namespace.
    pub fn anonymous(label: &str) -> Result<Self, NamespaceError> {
        let origin = Origin::Anonymous(label.to_owned());
        // A thread of its own, because unshare moves the calling thread.
        on_fresh_thread(&origin, || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).map_err(|error| {
                NamespaceError::Enter {
                    origin: format!("a new {origin}"),
                    source: error.into(),
                }
            })?;
            Self::open_file(Path::new("/proc/thread-self/ns/net"), origin.clone())
        })?
    }

    /// Tells this namespace from others.
    #[must_use]
    pub fn id(&self) -> NamespaceId {
        self.id
    }

    /// By what it can be opened again, without keeping it alive.
    #[must_use]
    pub fn name(&self) -> NamespaceName {
        NamespaceName {
            id: self.id,
            origin: self.origin.clone(),
        }
    }

    /// Runs `task` inside this namespace and waits for it: on the calling thread if that is inside
    /// already, otherwise on a fresh one.
    ///
    /// A fresh thread ends with the task, so nothing else ever runs in the wrong namespace, and
    /// the task of a process that may not enter its own namespace again works all the same.
    /// Sockets and devices that the task opens stay in this namespace wherever they are used
    /// later. A panic of the task goes on in the caller.
    ///
    /// # Errors
    /// The namespace cannot be entered; the task has not run then.
    pub fn run<R: Send>(&self, task: impl FnOnce() -> R + Send) -> Result<R, NamespaceError> {
        if self.is_here() {
            return Ok(task());
        }
        on_fresh_thread(&self.origin, || {
            setns(&self.fd, CloneFlags::CLONE_NEWNET).map_err(|error| NamespaceError::Enter {
                origin: self.to_string(),
                source: error.into(),
            })?;
            Ok(task())
        })?
    }

    /// Whether the calling thread is inside.
    fn is_here(&self) -> bool {
        let here = nix::sys::stat::stat("/proc/thread-self/ns/net");
        here.is_ok_and(|stat| NamespaceId::of(&stat) == self.id)
    }

    fn open_file(path: &Path, origin: Origin) -> Result<Self, NamespaceError> {
        let open_error = |source| NamespaceError::Open {
            origin: origin.to_string(),
            path: path.to_owned(),
            source,
        };
        let not_network = |found| NamespaceError::NotNetwork {
            origin: origin.to_string(),
            path: path.to_owned(),
            found,
        };
        // Without O_NONBLOCK a FIFO by that name would hang the caller.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(open_error)?;
        match namespace_type(&file) {
            Some(libc::CLONE_NEWNET) => {}
            Some(_) => return Err(not_network("a namespace of another kind")),
            None => return Err(not_network("an ordinary file")),
        }
        let stat = nix::sys::stat::fstat(&file).map_err(|error| open_error(error.into()))?;
        Ok(Self {
            fd: Arc::new(file.into()),
            id: NamespaceId::of(&stat),
            origin,
        })
    }
}

impl NamespaceId {
    fn of(stat: &nix::sys::stat::FileStat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }
}

impl NamespaceName {
    /// Which namespace it named.
    #[must_use]
    pub fn id(&self) -> NamespaceId {
        self.id
    }

    /// Opens the namespace.
    ///
    /// # Errors
    /// It has no such name any more: it was deleted, or its process has ended; or the name is
    /// another's by now.
    pub fn open(&self) -> Result<Namespace, NamespaceError> {
        let namespace = match &self.origin {
            Origin::Path(path) => Namespace::open(path.clone())?,
            Origin::Process(pid) => Namespace::of_process(*pid)?,
            Origin::Current | Origin::Anonymous(_) => Namespace::current()?,
        };
        if namespace.id == self.id {
            return Ok(namespace);
        }
        Err(NamespaceError::Replaced {
            origin: self.origin.to_string(),
        })
    }
}

/// The CLONE_NEW* kind of a namespace file; `None` for every other file.
fn namespace_type(file: &File) -> Option<libc::c_int> {
    /// `_IO(0xb7, 3)`, see ioctl_nsfs(2).
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the descriptor is open, and this request reads and writes no memory of ours.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    (kind >= 0).then_some(kind)
}

fn on_fresh_thread<R: Send>(
    origin: &Origin,
    task: impl FnOnce() -> R + Send,
) -> Result<R, NamespaceError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("namespace".to_owned())
            .spawn_scoped(scope, task)
            .map_err(|source| NamespaceError::Thread {
                origin: origin.to_string(),
                source,
            })?;
        thread
            .join()
            .or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl PartialEq for Namespace {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Namespace {}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "namespace {}", path.display()),
            Self::Process(pid) => write!(f, "namespace of process {pid}"),
            Self::Current => f.write_str("own namespace"),
            Self::Anonymous(label) => write!(f, "namespace '{label}'"),
        }
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.origin.fmt(f)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Namespace({}, inode {})", self.origin, self.id.inode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_namespace_is_that_of_the_own_process() {
        let own = Namespace::current().unwrap();
        assert_eq!(own, Namespace::of_process(std::process::id()).unwrap());
        assert_eq!(own, Namespace::open("/proc/self/ns/net").unwrap());
        assert_eq!(own.name().open().unwrap(), own);
    }

    #[test]
    fn a_task_for_the_own_namespace_needs_no_thread() {
        let own = Namespace::current().unwrap();
        let thread = own.run(|| std::thread::current().id()).unwrap();
        assert_eq!(thread, std::thread::current().id());
    }

    #[test]
    fn missing_path_is_named() {
        let error = Namespace::open("/run/netns/no such").unwrap_err();
        assert!(matches!(error, NamespaceError::Open { .. }));
        assert!(error.to_string().contains("/run/netns/no such"), "{error}");
    }

    #[test]
    fn missing_process_is_named() {
        // Above the largest pid_max that the kernel allows (2^22).
        let error = Namespace::of_process(5_000_000).unwrap_err();
        assert!(error.to_string().contains("process 5000000"), "{error}");
    }

    #[test]
    fn other_files_are_told_from_namespaces() {
        let file = Namespace::open("/proc/self/stat").unwrap_err().to_string();
        assert!(file.contains("an ordinary file"), "{file}");
        let other = Namespace::open("/proc/self/ns/uts")
            .unwrap_err()
            .to_string();
        assert!(other.contains("of another kind"), "{other}");
    }
}
