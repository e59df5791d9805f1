//! How a peer is woken: by its eventfd, which is as hostile as all else of it.
//!
//! An eventfd whose counter is full makes a writer wait, unless the descriptor says otherwise; and both
//! the counter and that word are the peer's to change at any moment. So we do not write: io_uring adds to
//! the counter for a completion, which never waits. Where there is no io_uring, whether there is room is
//! asked before a write; then a peer that is malicious and quick can make the data thread wait.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;

/// What an eventfd is called in `/proc`.
const EVENTFD: &str = "anon_inode:[eventfd]";

/// What wakes the peer.
#[derive(Debug)]
pub struct Bell(Way);

enum Way {
    /// The ring's completions are added to the eventfd.
    Ring(Box<IoUring>),
    Write(Arc<OwnedFd>),
}

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ring(_) => "io_uring",
            Self::Write(_) => "write",
        })
    }
}

impl Bell {
    /// Rings by `eventfd`, which [is one](is_eventfd).
    #[must_use]
    pub fn new(eventfd: &Arc<OwnedFd>) -> Self {
        Self(match ring_of(eventfd) {
            Ok(ring) => Way::Ring(Box::new(ring)),
            Err(error) => {
                tracing::debug!(%error, "no io_uring to wake a memif peer by");
                Way::Write(Arc::clone(eventfd))
            }
        })
    }

    /// Rings.
    pub fn ring(&mut self) {
        match &mut self.0 {
            Way::Ring(ring) => {
                // SAFETY: an operation that does nothing, and refers to nothing.
                let pushed = unsafe { ring.submission().push(&opcode::Nop::new().build()) };
                if pushed.is_ok() {
                    // It fails for want of memory: the next ring is heard then.
                    let _ = ring.submit();
                }
                ring.completion().for_each(drop);
            }
            Way::Write(eventfd) => {
                let mut room = [PollFd::new(eventfd.as_fd(), PollFlags::POLLOUT)];
                // One that has overflown is "writable" and an error.
                if poll(&mut room, PollTimeout::ZERO) == Ok(1)
                    && room
                        .iter()
                        .all(|it| it.revents() == Some(PollFlags::POLLOUT))
                {
                    let _ = write(eventfd, &1_u64.to_ne_bytes());
                }
            }
        }
    }
}

fn ring_of(eventfd: &OwnedFd) -> io::Result<IoUring> {
    let ring = IoUring::new(2)?;
    ring.submitter().register_eventfd(eventfd.as_raw_fd())?;
    Ok(ring)
}

/// Whether a descriptor is an eventfd. Who writes to anything else may wait, or do what the peer likes.
#[must_use]
pub fn is_eventfd(descriptor: &OwnedFd) -> bool {
    let link = fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
    link.is_ok_and(|target| target.as_os_str() == EVENTFD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::eventfd::{EfdFlags, EventFd};

    fn eventfd() -> Arc<OwnedFd> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Arc::new(EventFd::from_flags(flags).unwrap().into())
    }

    fn count(eventfd: &OwnedFd) -> u64 {
        let mut octets = [0; 8];
        match nix::unistd::read(eventfd, &mut octets) {
            Ok(_) => u64::from_ne_bytes(octets),
            Err(_) => 0,
        }
    }

    #[test]
    fn each_ring_is_heard_either_way() {
        let eventfd = eventfd();
        for mut bell in [Bell::new(&eventfd), Bell(Way::Write(Arc::clone(&eventfd)))] {
            for _ in 0..5 {
                bell.ring();
                assert_eq!(count(&eventfd), 1, "{bell:?}");
            }
        }
    }

    #[test]
    fn a_full_counter_makes_nobody_wait() {
        let eventfd = eventfd();
        fcntl(&*eventfd, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        let mut bells = [Bell::new(&eventfd), Bell(Way::Write(Arc::clone(&eventfd)))];
        write(&*eventfd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        for bell in &mut bells {
            for _ in 0..5 {
                bell.ring();
            }
        }
    }

    #[test]
    fn only_eventfds_are_taken_for_such() {
        assert!(is_eventfd(&eventfd()));
        let (pipe, _write) = nix::unistd::pipe().unwrap();
        assert!(!is_eventfd(&pipe));
        assert!(!is_eventfd(
            &std::fs::File::open("/dev/null").unwrap().into()
        ));
    }
}
