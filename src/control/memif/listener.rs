//! A socket at which clients connect, and its file.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{Backlog, SockFlag, UnixAddr, accept4, bind, listen};
use nix::sys::stat::{Mode, fchmod};
use thiserror::Error;

use super::socket::{connect_to, packet_socket};
use crate::control::socket_file::{SocketFile, Taken, remove_stale};

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 16;

/// Why nobody can connect.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Somebody else does.
    #[error("{}: somebody listens there", .0.display())]
    InUse(PathBuf),
    /// There is something else, which is left alone.
    #[error("{}: is there and no socket", .0.display())]
    NoSocket(PathBuf),
    /// The system refuses.
    #[error("{}: cannot listen there: {error}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system says.
        #[source]
        error: io::Error,
    },
}

impl ListenError {
    fn of(path: &Path, taken: Taken) -> Self {
        let path = path.to_owned();
        match taken {
            Taken::InUse => Self::InUse(path),
            Taken::NoSocket => Self::NoSocket(path),
            Taken::Io(error) => Self::Io { path, error },
        }
    }
}

/// A listening socket, whose file goes with it.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    file: SocketFile,
}

impl Listener {
    /// Listens at `path`. Its file is for our own user alone; one that a killed process has left is
    /// taken away.
    pub(super) fn bind(path: &Path) -> Result<Self, ListenError> {
        remove_stale(path, probe).map_err(|taken| ListenError::of(path, taken))?;
        let io = |error: io::Error| ListenError::Io {
            path: path.to_owned(),
            error,
        };
        let socket = packet_socket().map_err(io)?;
        let bound = || -> io::Result<SocketFile> {
            // Linux gives the file the mode of the unbound socket: so nobody else can open it at any
            // moment.
            fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
            bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
            let file = SocketFile::at(path)?;
            listen(&socket, Backlog::new(BACKLOG)?)?;
            Ok(file)
        };
        let file = bound().map_err(io)?;
        Ok(Self { socket, file })
    }

    /// The next client that waits; `None` if there is none.
    pub(super) fn accept(&self) -> io::Result<Option<OwnedFd>> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        match accept4(self.socket.as_raw_fd(), flags) {
            // SAFETY: the kernel has made this descriptor a moment ago, and nobody else knows it.
            Ok(accepted) => Ok(Some(unsafe { OwnedFd::from_raw_fd(accepted) })),
            Err(Errno::EAGAIN) => Ok(None),
            // It has hung up again, or a signal came: there may be more.
            Err(Errno::ECONNABORTED | Errno::EINTR) => self.accept(),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(super) fn descriptor(&self) -> i32 {
        self.socket.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.file.remove();
    }
}

/// Connects and hangs up.
fn probe(path: &Path) -> io::Result<()> {
    match connect_to(path) {
        // A socket of another type is somebody's, too.
        Err(error) if error.raw_os_error() == Some(Errno::EPROTOTYPE as i32) => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_socket_that_is_left_is_taken_over_and_one_in_use_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        let listener = Listener::bind(&path).unwrap();
        let mode = fs::symlink_metadata(&path).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let second = Listener::bind(&path).unwrap_err();
        assert!(matches!(second, ListenError::InUse(_)), "{second}");
        // Accepts whoever connects: the one that looked whether somebody listens has gone.
        assert!(listener.accept().unwrap().is_some());
        assert!(listener.accept().unwrap().is_none());
        drop(listener);
        assert!(!path.exists());
        // As a killed process leaves it.
        let left = Listener::bind(&path).unwrap();
        let _ = nix::sys::socket::shutdown(left.descriptor(), nix::sys::socket::Shutdown::Both);
        let copy = directory.path().join("y.sock");
        fs::rename(&path, &copy).unwrap();
        drop(left);
        fs::rename(&copy, &path).unwrap();
        let again = Listener::bind(&path).unwrap();
        drop(again);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "kept").unwrap();
        let refused = Listener::bind(&path).unwrap_err();
        assert!(matches!(refused, ListenError::NoSocket(_)), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
        let nowhere = Listener::bind(&directory.path().join("no/x.sock")).unwrap_err();
        assert!(matches!(nowhere, ListenError::Io { .. }), "{nowhere}");
    }
}
