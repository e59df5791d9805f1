//! What the demo must not leave behind, and the thread that sees to it on a signal.
//!
//! The daemon and the directory are under a lock. The thread takes it and never gives it back, so
//! that nothing new is started or made while the process ends.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, mkdtemp};
use parking_lot::Mutex;

use super::error::DemoError;
use crate::lab::process::leave_on_signal;
use crate::lab::progress::Progress;

/// A temporary directory and a child; both are gone when this value is, or after a signal.
pub(super) struct Belongings {
    owned: Arc<Mutex<Owned>>,
    directory: PathBuf,
}

#[derive(Default)]
struct Owned {
    directory: Option<PathBuf>,
    daemon: Option<Child>,
    /// The one before, until it is known to have ended.
    replaced: Option<Child>,
}

impl Belongings {
    /// Makes the directory, for this user alone, and starts the thread.
    pub(super) fn new(progress: Progress) -> Result<Self, DemoError> {
        let owned = Arc::<Mutex<Owned>>::default();
        // Before there is anything to leave behind.
        leave_on_signal("demo", Arc::clone(&owned), Owned::leave, progress)
            .map_err(DemoError::io("catch signals"))?;
        let directory = make_directory(&mut owned.lock())?;
        Ok(Self { owned, directory })
    }

    /// The directory.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts the daemon by `start`, which is not interrupted.
    pub(super) fn start<T, E>(
        &self,
        start: impl FnOnce() -> Result<(Child, T), E>,
    ) -> Result<T, E> {
        let mut owned = self.owned.lock();
        let (daemon, result) = start()?;
        owned.daemon = Some(daemon);
        Ok(result)
    }

    /// Starts a process by `start` that is to take the daemon's place.
    pub(super) fn succeed<T, E>(
        &self,
        start: impl FnOnce() -> Result<(Child, T), E>,
    ) -> Result<T, E> {
        let mut owned = self.owned.lock();
        let (daemon, result) = start()?;
        owned.replaced = owned.daemon.replace(daemon);
        Ok(result)
    }

    /// Waits for the end of the one that was replaced, which must be near.
    pub(super) fn wait_for_replaced(&self) -> io::Result<Option<ExitStatus>> {
        let replaced = self.owned.lock().replaced.take();
        replaced.map(|mut replaced| replaced.wait()).transpose()
    }

    /// Asks the daemon to end.
    pub(super) fn terminate(&self) -> io::Result<()> {
        let owned = self.owned.lock();
        let Some(daemon) = &owned.daemon else {
            return Ok(());
        };
        let pid = i32::try_from(daemon.id()).map_err(io::Error::other)?;
        Ok(kill(Pid::from_raw(pid), Signal::SIGTERM)?)
    }

    /// How the daemon ended; `None` while it runs.
    pub(super) fn ended(&self) -> io::Result<Option<ExitStatus>> {
        match &mut self.owned.lock().daemon {
            Some(daemon) => daemon.try_wait(),
            None => Ok(Some(ExitStatus::from_raw(0))),
        }
    }

    /// Waits for the daemon's end, which must be near.
    pub(super) fn wait(&self) -> io::Result<Option<ExitStatus>> {
        let mut owned = self.owned.lock();
        owned.daemon.as_mut().map(Child::wait).transpose()
    }

    /// Ends the daemon, if it has not, by force.
    pub(super) fn kill(&self) -> io::Result<Option<ExitStatus>> {
        self.owned.lock().kill()
    }

    /// Clears everything away.
    pub(super) fn leave(&self) {
        self.owned.lock().leave();
    }
}

impl Drop for Belongings {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Owned {
    fn kill(&mut self) -> io::Result<Option<ExitStatus>> {
        if let Some(mut replaced) = self.replaced.take() {
            let _ = replaced.kill();
            let _ = replaced.wait();
        }
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(None);
        };
        // An error means that it has ended; its interfaces and rules go with the namespaces.
        let _ = daemon.kill();
        daemon.wait().map(Some)
    }

    fn leave(&mut self) {
        let _ = self.kill();
        if let Some(directory) = self.directory.take()
            && let Err(error) = std::fs::remove_dir_all(&directory)
        {
            eprintln!("nos-relay: cannot remove {}: {error}", directory.display());
        }
    }
}

fn make_directory(owned: &mut Owned) -> Result<PathBuf, DemoError> {
    let template = std::env::temp_dir().join("nos-relay-demo.XXXXXX");
    let directory = mkdtemp(&template).map_err(|error| {
        DemoError::io(format!("make the directory {}", template.display()))(error.into())
    })?;
    owned.directory = Some(directory.clone());
    Ok(directory)
}
