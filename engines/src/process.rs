//! Processes by descriptors, for which no later process of the same number can be taken.

use core::time::Duration;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nos_relay::control::kernel::pidfd;

/// A descriptor of the process that has this number now; `None` if there is none.
///
/// # Errors
///
/// The kernel gives no descriptor.
pub(crate) fn open(pid: u32) -> io::Result<Option<OwnedFd>> {
    match pidfd::open(pid) {
        Ok(process) => Ok(Some(process)),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits until it has ended, or so long.
pub(crate) fn await_end(process: &OwnedFd, limit: Duration) {
    let mut descriptors = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    // Whether it has is seen by looking again.
    let _ = poll(&mut descriptors, limit);
}
