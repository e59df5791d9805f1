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
//! - **What the ring may do** is fixed before the first frame: four operations, on registered files
//!   alone. The control thread opens the ring ([`Uring::open`]) and learns why not; the data thread
//!   enables it, and is the only one that may submit from then on.
//! - **Registered files**: the ring knows a device by its place in a table. Changing it is a system
//!   call that only the submitter may make, so the data thread makes it when a device comes or goes:
//!   half a microsecond, between two turns. The device is open all the while, so that this never
//!   closes it. The ring gives its file up before the device is handed back.
//! - **TAPs** need `RWF_NOWAIT`, which TUN takes since Linux 6.4. A ring on an older kernel is for
//!   packet sockets alone. (Those kernels may also close a file that left the table only later,
//!   which would keep a TAP's interface.)
//! - **A ring that fails** is not used again; frames go by plain calls from then on.

mod batch;
mod ring;
mod unavailable;

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nos_shim::frame::BATCH;

use super::DeviceKind;
use batch::Messages;
use ring::{Broken, Carrier, Operation, Outcome, Ring};

pub use batch::Batch;
pub(super) use batch::{Area, How};
pub use unavailable::Unavailable;

/// Files that a ring can know, at most. A device that finds no place is served by plain calls.
const MOST_FILES: u32 = 1 << 15;

/// A place in the ring's table of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u32);

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
    /// Places given back.
    free: Vec<u32>,
    /// The first place never used.
    next: u32,
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
        let ring = Ring::open(entries, unavailable::descriptor_limit().min(MOST_FILES))?;
        Ok(Self {
            ring,
            messages: Messages::new(),
            free: Vec::new(),
            next: 0,
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

    /// Lets the ring send to a device: by the descriptor `fd`, which must stay open until
    /// [`Self::withdraw`]. `None` for devices that are not for rings.
    pub fn admit(&mut self, kind: DeviceKind, fd: Option<BorrowedFd<'_>>) -> Option<Slot> {
        let fd = fd.filter(|_| self.serves(kind))?;
        let place = self.free.pop().or_else(|| {
            let place = (self.next < self.ring.files()).then_some(self.next)?;
            self.next += 1;
            Some(place)
        })?;
        match self.ring.set_file(place, fd.as_raw_fd()) {
            Ok(()) => Some(Slot(place)),
            Err(errno) => {
                self.free.push(place);
                tracing::debug!(%errno, "io_uring does not take the device's file");
                None
            }
        }
    }

    /// Makes the ring give a device's file up.
    pub fn withdraw(&mut self, slot: Slot) {
        match self.ring.set_file(slot.0, ring::NO_FILE) {
            Ok(()) => self.free.push(slot.0),
            // The place stays taken: the ring may have the file still.
            Err(errno) => self.fail(errno),
        }
    }

    /// What sends to the device at `slot`.
    pub fn batch(&mut self, slot: Slot) -> Batch<'_> {
        Batch::new(self, slot)
    }

    fn serves(&self, kind: DeviceKind) -> bool {
        self.report.failed.is_none()
            && match kind {
                DeviceKind::Tap | DeviceKind::PlainTap => self.report.taps,
                DeviceKind::Packet => true,
                DeviceKind::Memory => false,
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

impl Drop for Uring {
    /// The kernel takes an instance apart later, and would keep devices open until then.
    fn drop(&mut self) {
        self.ring.release_files();
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
    fn places_are_used_again_and_files_given_up() {
        let Some(mut uring) = enabled() else { return };
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let fd = || Some(ours.as_fd());
        assert_eq!(uring.admit(DeviceKind::Memory, fd()), None);
        assert_eq!(uring.admit(DeviceKind::Packet, None), None);
        let slots = [(); 3].map(|()| uring.admit(DeviceKind::Packet, fd()).unwrap());
        assert_eq!(slots, [0, 1, 2].map(Slot));
        uring.withdraw(slots[1]);
        assert_eq!(uring.admit(DeviceKind::Packet, fd()), Some(Slot(1)));
        // The other end sees the end of a socket that nobody has any more.
        slots.into_iter().for_each(|slot| uring.withdraw(slot));
        drop(ours);
        let error = theirs.send(b"x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
        assert_eq!(uring.report().failed, None);
    }

    #[test]
    fn an_instance_that_ends_keeps_no_device_open() {
        let Some(mut uring) = enabled() else { return };
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        uring.admit(DeviceKind::Packet, Some(ours.as_fd())).unwrap();
        drop(uring);
        drop(ours);
        let error = theirs.send(b"x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    }
}
