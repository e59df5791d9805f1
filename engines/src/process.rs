//! Processes by descriptors, for which no later process of the same number can be taken.

use core::time::Duration;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A descriptor of the process that has this number now; `None` if there is none.
///
/// # Errors
///
/// The kernel gives no descriptor.
pub(crate) fn open(pid: libc::pid_t) -> io::Result<Option<OwnedFd>> {
    // SAFETY: pidfd_open takes a number and flags, and no memory of ours.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if descriptor < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ESRCH) => Ok(None),
            _ => Err(error),
        };
    }
    let descriptor = RawFd::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the call above has just returned this descriptor, and nobody else knows it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

/// Waits until it has ended, or so long.
pub(crate) fn await_end(process: &OwnedFd, limit: Duration) {
    let mut descriptors = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    // Whether it has is seen by looking again.
    let _ = poll(&mut descriptors, limit);
}
