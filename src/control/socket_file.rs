//! The file of a Unix socket at which we listen.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Why a socket cannot be put at a path.
#[derive(Debug)]
pub(crate) enum Taken {
    /// Somebody listens there.
    InUse,
    /// There is something that is not a socket, which is left alone.
    NoSocket,
    /// The system refuses.
    Io(io::Error),
}

/// Which file it is: device and inode.
pub(crate) type Identity = (u64, u64);

pub(crate) fn identity(metadata: &fs::Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// Removes a socket at which nobody listens, as `probe` finds, which connects without blocking.
pub(crate) fn remove_stale(
    path: &Path,
    probe: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), Taken> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Taken::Io(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(Taken::NoSocket),
        Ok(_) => {}
    }
    match probe(path) {
        Ok(()) => Err(Taken::InUse),
        // A full backlog is somebody's, too.
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(Taken::InUse),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(Taken::Io)
        }
        Err(error) => Err(Taken::Io(error)),
    }
}

/// The file of a socket that was bound.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: Identity,
}

impl SocketFile {
    /// What is at `path` now.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            identity: identity(&fs::symlink_metadata(path)?),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// Removes it, unless somebody has put something else there.
    pub(crate) fn remove(&self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|it| identity(&it) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("{}: cannot be removed: {error}", self.path.display());
        }
    }
}
