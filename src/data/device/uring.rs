//! Frames handed to the kernel as one batch, by io_uring.
//!
//! # Theory of operation
//!
//! Each `write` to a TAP runs the receiver's stack and wakes the receiver, which preempts us as soon
//! as we return to user space. Inside one `io_uring_enter` nothing returns before the last frame. So
//! a data thread that has a [`Uring`] hands bursts over by it; reading and waiting stay as they are.
//!
//! - **Nothing is left behind**: all operations of a batch complete inside the call that submits
//!   them. They are writes with `RWF_NOWAIT` and sends with `MSG_DONTWAIT`, which answer at once.
//!   Buffers stay the frames' until each completion was seen ([`ring`]).
//! - **A few frames** cost less by plain calls: a batch has [`LEAST`](batch) messages at least.
//! - **Order and errors** are those of plain calls: see [`batch`].
//! - **What the ring may do** is fixed before the first frame: four operations, and nothing that goes on
//!   by itself. The control thread opens the ring ([`Uring::open`]) and learns why not; the data thread
//!   enables it, and is the only one that may submit from then on.
//! - **Files are not registered**: the kernel takes a ring of a process that was killed apart later, and
//!   would keep the TAPs in its table until then, interfaces and all. A descriptor costs a look into the
//!   process's table for each frame: some 50 ns, 2 % of what a send takes.
//! - **TAPs** need `RWF_NOWAIT`, which TUN takes since Linux 6.4. A ring on an older kernel is for
//!   packet sockets alone.
//! - **A ring that fails** is not used again; frames go by plain calls from then on.

mod batch;
mod ring;
mod unavailable;

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nos_shim::frame::BATCH;

use super::DeviceKind;
use batch::Messages;
use ring::{Broken, Carrier, Operation, Outcome, Ring};

pub use batch::Batch;
pub(super) use batch::{Area, How};
pub use unavailable::Unavailable;

/// A device that a ring sends to, by the descriptor that it keeps open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(RawFd);

/// What a ring does, and did so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UringReport {
    /// Whether TAPs are written to by it: the kernel's TUN takes `RWF_NOWAIT`.
    pub taps: bool,
    /// Why it is not used any more, if so.
    pub failed: Option<Errno>,
    /// Batches submitted.
    pub batches: u64,
    /// Frames in those batches that the kernel took.
    pub frames: u64,
}

/// An io_uring instance of one data thread.
#[derive(Debug)]
pub struct Uring {
    ring: Ring,
    /// The batch that is being made. Apart, so that it can be left to a kernel that still reads it.
    messages: Box<Messages>,
    report: UringReport,
}

impl Uring {
    /// Sets up an instance that is disabled: [`Self::enable`] is for the thread that uses it.
    ///
    /// # Errors
    ///
    /// Why this process cannot have it: see [`Unavailable`].
    pub fn open() -> Result<Self, Unavailable> {
        // A submission for each frame of a burst.
        let entries = u32::try_from(BATCH).unwrap_or(u32::MAX);
        let ring = Ring::open(entries)?;
        Ok(Self {
            ring,
            messages: Messages::new(),
            report: UringReport {
                taps: unavailable::tun_takes_nowait(),
                failed: None,
                batches: 0,
                frames: 0,
            },
        })
    }

    /// Makes the calling thread the one that submits.
    pub fn enable(&mut self) {
        if let Err(errno) = self.ring.enable() {
            self.fail(errno);
        }
    }

    /// What it does, and did so far.
    #[must_use]
    pub fn report(&self) -> UringReport {
        self.report
    }

    /// How the ring sends to a device: by the descriptor `fd`, for as long as that stays open. `None` for
    /// devices that are not for rings.
    #[must_use]
    pub fn slot(&self, kind: DeviceKind, fd: Option<BorrowedFd<'_>>) -> Option<Slot> {
        fd.filter(|_| self.serves(kind))
            .map(|fd| Slot(fd.as_raw_fd()))
    }

    /// What sends to the device of `slot`.
    pub fn batch(&mut self, slot: Slot) -> Batch<'_> {
        Batch::new(self, slot)
    }

    fn serves(&self, kind: DeviceKind) -> bool {
        self.report.failed.is_none()
            && match kind {
                DeviceKind::Tap | DeviceKind::PlainTap => self.report.taps,
                DeviceKind::Packet => true,
                DeviceKind::Memory | DeviceKind::Memif => false,
            }
    }

    #[cold]
    fn fail(&mut self, errno: Errno) {
        if self.report.failed.is_none() {
            self.report.failed = Some(errno);
            tracing::warn!(
                "io_uring has failed, frames go by plain calls: {}",
                errno.desc()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// A ring of this thread, where the kernel has one.
    pub(super) fn enabled() -> Option<Uring> {
        let opened = Uring::open();
        let mut uring = opened
            .inspect_err(|error| println!("skipped: {error}"))
            .ok()?;
        uring.enable();
        assert_eq!(uring.report().failed, None);
        Some(uring)
    }

    #[test]
    fn a_ring_serves_what_has_a_descriptor() {
        let Some(uring) = enabled() else { return };
        let (ours, _theirs) = UnixDatagram::pair().unwrap();
        assert_eq!(uring.slot(DeviceKind::Memory, Some(ours.as_fd())), None);
        assert_eq!(uring.slot(DeviceKind::Packet, None), None);
        assert!(uring.slot(DeviceKind::Packet, Some(ours.as_fd())).is_some());
    }

    /// A device is closed when it is closed, and not when the ring goes: its interface would stay.
    #[test]
    fn a_ring_keeps_no_device_open() {
        let Some(mut uring) = enabled() else { return };
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let slot = uring.slot(DeviceKind::Packet, Some(ours.as_fd())).unwrap();
        let octet = *b"x";
        let operations = [Operation::Send {
            octets: octet.as_ptr(),
            len: 1,
        }; 4];
        let mut outcomes = [Outcome::Untried; BATCH];
        // SAFETY: the octet outlives the call.
        let sent = unsafe {
            let ring = &mut uring.ring;
            ring.carry_out(slot, &operations, false, &mut outcomes)
        };
        assert_eq!((sent, outcomes[3]), (Ok(()), Outcome::Taken));
        drop(ours);
        let error = theirs.send(b"x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    }
}
