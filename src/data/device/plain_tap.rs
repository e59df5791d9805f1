//! TAP without virtio-net headers, which every kernel can give: no offload in either direction.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::unistd::{read, write};
use nos_shim::frame::{Burst, Frame, FramePool, Offload};
use nos_shim::offload::Capabilities;
use tun_tap::{Iface, Mode};

use super::tap::IntoErrno;
use super::uring::{Batch, How};
use super::vnet::Offloads;
use super::{
    DeviceCounters, DeviceKind, FrameDevice, Inspector, OpenError, Received, Sending, Sent,
    character, tap, valid_name,
};

/// A TAP interface without virtio-net headers.
///
/// The kernel completes checksums and cuts super-frames before we see them.
#[derive(Debug)]
pub struct PlainTap {
    interface: Arc<PlainInterface>,
    counters: DeviceCounters,
    /// Made persistent by us.
    persistent: bool,
}

/// The descriptor of a plain TAP, and its name.
#[derive(Debug)]
pub(super) enum PlainInterface {
    Made(Iface),
    /// Opened by another process.
    Received(OwnedFd, String),
}

impl PlainInterface {
    fn name(&self) -> &str {
        match self {
            Self::Made(interface) => interface.name(),
            Self::Received(_, name) => name,
        }
    }

    fn recv(&self, area: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Made(interface) => interface.recv(area).map_err(IntoErrno::into_errno),
            Self::Received(fd, _) => read(fd, area),
        }
    }

    fn send(&self, area: &[u8]) -> Result<usize, Errno> {
        match self {
            Self::Made(interface) => interface.send(area).map_err(IntoErrno::into_errno),
            Self::Received(fd, _) => write(fd, area),
        }
    }
}

impl AsFd for PlainInterface {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            // SAFETY: the interface keeps its descriptor open for as long as it is borrowed.
            Self::Made(interface) => unsafe { BorrowedFd::borrow_raw(interface.as_raw_fd()) },
            Self::Received(fd, _) => fd.as_fd(),
        }
    }
}

impl PlainTap {
    /// Goes on with a descriptor that another process has opened.
    pub(super) fn received(fd: OwnedFd, name: String) -> Self {
        Self {
            interface: Arc::new(PlainInterface::Received(fd, name)),
            counters: DeviceCounters::default(),
            persistent: false,
        }
    }

    /// Creates the TAP `name` in the namespace of the calling thread, or takes over a persistent
    /// one that nobody has open.
    ///
    /// # Errors
    ///
    /// The name is impossible or taken, `/dev/net/tun` cannot be opened, or the kernel refuses for
    /// want of rights.
    pub fn open(name: &str) -> Result<Self, OpenError> {
        let name = valid_name(name)?;
        let refused = |action| {
            move |error: io::Error| OpenError::Refused {
                kind: DeviceKind::PlainTap,
                name: name.to_owned(),
                action,
                source: error.into_errno(),
            }
        };
        let interface =
            Iface::without_packet_info(name, Mode::Tap).map_err(refused("create it"))?;
        interface
            .set_non_blocking()
            .map_err(refused("make it non-blocking"))?;
        Ok(Self {
            interface: Arc::new(PlainInterface::Made(interface)),
            counters: DeviceCounters::default(),
            persistent: false,
        })
    }
}

impl Drop for PlainTap {
    fn drop(&mut self) {
        if self.persistent {
            tap::end_persistence(&*self.interface, self.interface.name());
        }
    }
}

impl FrameDevice for PlainTap {
    fn recv_burst(&mut self, pool: &mut FramePool, burst: &mut Burst, limit: usize) -> Received {
        let interface = &self.interface;
        let traffic = &mut self.counters.received;
        character::recv_burst(pool, burst, limit, traffic, |frame| {
            character::read_frame(frame, 0, |area| interface.recv(area))
        })
    }

    fn send(
        &mut self,
        burst: &mut Burst,
        pool: &mut FramePool,
        mut batch: Option<&mut Batch<'_>>,
    ) -> Sent {
        let mut offloads = Offloads::new(Capabilities::empty());
        let mut sending = Sending::new(burst, pool, &mut self.counters.sent);
        loop {
            if let Some(batch) = &mut batch
                && batch.send(How::Write, area, &mut offloads, &mut sending) > 0
            {
                continue;
            }
            let Some(frame) = sending.front() else { break };
            let result = if is_finished(frame.offload()) {
                character::write_frame(frame.bytes(), |area| self.interface.send(area))
            } else {
                Err(Errno::EINVAL)
            };
            match result {
                Ok(()) => sending.taken(),
                Err(errno) => character::handle_refusal(&mut sending, errno),
            }
        }
        sending.finish()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::empty()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.interface.as_fd())
    }

    fn inspector(&self) -> Inspector {
        Inspector::of_plain_tap(&self.interface)
    }

    fn name(&self) -> &str {
        self.interface.name()
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::PlainTap
    }

    fn counters(&self) -> &DeviceCounters {
        &self.counters
    }

    fn set_persistent(&mut self, on: bool) -> Result<(), Errno> {
        tap::set_persistent(&*self.interface, on)?;
        self.persistent = on;
        Ok(())
    }

    fn leave(&mut self) {
        self.persistent = false;
    }
}

/// What a batch writes of a frame; an unfinished one is refused without asking the kernel.
fn area(frame: &mut Frame) -> Option<&mut [u8]> {
    is_finished(frame.offload()).then(|| frame.bytes_mut())
}

/// Whether the octets of a frame are all that a receiver needs to know.
pub(super) fn is_finished(offload: Offload) -> bool {
    Capabilities::empty().take(offload)
}
