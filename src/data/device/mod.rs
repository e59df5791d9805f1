//! Devices: where frames enter and leave.
//!
//! A [`FrameDevice`] moves bursts of frames between a kernel (or a peer in memory) and pooled
//! buffers. It knows nothing of what is in the frames except their offload state.
//!
//! | device | kernel side | takes super-frames |
//! |---|---|---|
//! | [`Tap`] | a container's interface, with virtio-net headers | yes |
//! | [`PlainTap`] | the same without, where the kernel can give no more or on request | no |
//! | [`PacketSocket`] | any Ethernet interface: host end of a veth, bridge, physical NIC | yes, those of tunnels by an [`Injection`] |
//! | [`MemoryDevice`] | another device in this process | as configured |
//! | [`memif::Memif`] | another process, by shared memory | no |
//! | [`Tagged`] | one VLAN of any of them; a packet socket does it by itself | as the one inside, but tunnels' |
//! | [`Captured`] | any of them, whose frames are recorded in a pcapng file or not | as the one inside |
//!
//! # Events
//!
//! Descriptors are meant for edge-triggered polling. At every event of [`FrameDevice::fd`],
//! whichever its kind (readable, error, hang-up), and once after opening, call
//! [`FrameDevice::recv_burst`], and again until it does not return [`Next::More`]. Other devices
//! may have their turn between two calls. A device never waits, and never answers a call without
//! progress for ever: frames that it cannot hand up it drops with a named reason, and an interface
//! that has gone is reported as such in every later call.
//!
//! A device in use makes no system call but to move frames. Opening and closing it takes
//! milliseconds, and asking the kernel about it may: that is for the control side, which keeps its
//! [`Inspector`].
//!
//! # Counts
//!
//! [`FrameDevice::counters`] accounts for every frame. A frame that the kernel had for us is either
//! handed up or in `received.drops`; one handed down is either taken by the kernel or in
//! `sent.drops`. What a full kernel queue lost before we saw it is in
//! [`Inspector::kernel_drops`].

mod capture;
mod character;
mod coalesce;
mod injection;
mod inspector;
pub mod memif;
mod memory;
mod packet;
mod plain_tap;
mod received;
#[cfg(test)]
mod refusing;
mod tagged;
mod tap;
mod uring;
mod vnet;
mod window;

use std::fmt;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nos_shim::drop::{DropCounters, DropReason};
use nos_shim::frame::{BATCH, Burst, Frame, FramePool};
use nos_shim::offload::Capabilities;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::interface_name::InterfaceName;

pub use capture::{
    CaptureError, CaptureOptions, CaptureSink, CaptureStatus, CaptureUnfinished, CaptureWriter,
    Captured,
};
pub use injection::Injection;
pub use inspector::{Inspector, LinkState};
pub use memory::{MemoryDevice, memory_pair, pollable_memory_pair};
pub use packet::{PacketOptions, PacketSocket, Shown};
pub use plain_tap::PlainTap;
pub use received::{DeviceFacts, has_gone, received_device};
pub use tagged::Tagged;
pub use tap::Tap;
pub use uring::{Batch, Slot, Unavailable, Uring, UringReport};
pub use vnet::Refusals;

/// A burst ends with the frame that makes it this long, in octets: what was read must still be in
/// the second-level cache when it is written.
pub const BURST_OCTETS: usize = 64 * 1024;

/// Where frames enter and leave.
pub trait FrameDevice: fmt::Debug + Send {
    /// Receives frames and appends them to `burst`: at most `limit`, as many as fit, and not many
    /// more than [`BURST_OCTETS`]. Offload state is set; interface and VRF are the caller's.
    fn recv_burst(&mut self, pool: &mut FramePool, burst: &mut Burst, limit: usize) -> Received;

    /// Sends frames from the front of `burst` and returns their buffers to `pool`. The burst is
    /// empty afterwards: what the device does not take is dropped and counted. The one exception
    /// is [`Egress::Adapt`].
    ///
    /// Frames need offload state that the capabilities cover, and
    /// [`nos_shim::frame::VNET_HEADER`] octets of headroom.
    ///
    /// With a `batch`, which is of this device, by as few system calls as can be.
    fn send(
        &mut self,
        burst: &mut Burst,
        pool: &mut FramePool,
        batch: Option<&mut Batch<'_>>,
    ) -> Sent;

    /// [Sends](Self::send) by plain calls.
    fn send_burst(&mut self, burst: &mut Burst, pool: &mut FramePool) -> Sent {
        self.send(burst, pool, None)
    }

    /// What [`Self::send`] takes. It can shrink while the device is in use: see
    /// [`Egress::Adapt`].
    fn capabilities(&self) -> Capabilities;

    /// The descriptor to poll, edge-triggered. `None` for a device that must be asked by itself.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// A view of the kernel side, for the control side to keep.
    fn inspector(&self) -> Inspector;

    /// The name of the interface when the device was opened.
    fn name(&self) -> &str;

    /// What kind of device this is.
    fn kind(&self) -> DeviceKind;

    /// What became of all frames so far.
    fn counters(&self) -> &DeviceCounters;

    /// Whether runs of datagrams are handed to the kernel as one super-frame, where it takes such.
    /// At first they are.
    fn set_coalescing(&mut self, _on: bool) {}

    /// Says whether the interface outlives a process that is killed. A device that is dropped takes
    /// it away all the same, unless it is told to [leave](Self::leave) it. Means nothing where the
    /// interface is not made by the device.
    ///
    /// # Errors
    ///
    /// The kernel refuses, as it does once the interface was deleted.
    fn set_persistent(&mut self, _on: bool) -> Result<(), Errno> {
        Ok(())
    }

    /// Has a persistent interface stay when the device is dropped.
    fn leave(&mut self) {}

    /// Whether the super-frames of tunnels could be sent whole with an [`Injection`], and one has come.
    /// True once; [`Self::send`] has returned [`Egress::Adapt`] then.
    fn asks_for_injection(&mut self) -> bool {
        false
    }

    /// Sends the super-frames of tunnels by `injection` from now on.
    ///
    /// # Errors
    ///
    /// The injection, where it was not asked for.
    fn inject(&mut self, injection: Injection) -> Result<(), Injection> {
        Err(injection)
    }
}

impl<D: FrameDevice + ?Sized> FrameDevice for Box<D> {
    fn recv_burst(&mut self, pool: &mut FramePool, burst: &mut Burst, limit: usize) -> Received {
        (**self).recv_burst(pool, burst, limit)
    }

    fn send(
        &mut self,
        burst: &mut Burst,
        pool: &mut FramePool,
        batch: Option<&mut Batch<'_>>,
    ) -> Sent {
        (**self).send(burst, pool, batch)
    }

    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        (**self).fd()
    }

    fn inspector(&self) -> Inspector {
        (**self).inspector()
    }

    fn name(&self) -> &str {
        (**self).name()
    }

    fn kind(&self) -> DeviceKind {
        (**self).kind()
    }

    fn counters(&self) -> &DeviceCounters {
        (**self).counters()
    }

    fn set_coalescing(&mut self, on: bool) {
        (**self).set_coalescing(on);
    }

    fn set_persistent(&mut self, on: bool) -> Result<(), Errno> {
        (**self).set_persistent(on)
    }

    fn leave(&mut self) {
        (**self).leave();
    }

    fn asks_for_injection(&mut self) -> bool {
        (**self).asks_for_injection()
    }

    fn inject(&mut self, injection: Injection) -> Result<(), Injection> {
        (**self).inject(injection)
    }
}

/// What a call of [`FrameDevice::recv_burst`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "says whether an event will follow"]
pub struct Received {
    /// Frames appended to the burst.
    pub frames: usize,
    /// Octets of those frames.
    pub octets: usize,
    /// What to do next.
    pub next: Next,
}

/// What to do after a call of [`FrameDevice::recv_burst`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Call again, without waiting for an event: there may be more.
    More,
    /// Wait for an event: nothing is left.
    Drained,
    /// Call again once buffers have come back to the pool; no event says so. Frames wait in the
    /// device meanwhile.
    NoBuffer,
    /// As [`Self::Drained`], but the interface was down when last heard of. Frames raise an event
    /// when it is up again. A packet socket is not told when the interface is deleted while down:
    /// the control side hears of that, and takes the device away.
    Down,
    /// Stop polling and close the device: the interface has gone, or answers with nothing but
    /// this error.
    Gone(Errno),
}

/// What a call of [`FrameDevice::send`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "says whether frames are left in the burst"]
pub struct Sent {
    /// Frames that the device took.
    pub frames: usize,
    /// Octets of those frames.
    pub octets: usize,
    /// Frames dropped; [`FrameDevice::counters`] has the reasons.
    pub dropped: usize,
    /// How the device is now.
    pub egress: Egress,
}

/// How a device is after a call of [`FrameDevice::send`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// As before; the burst is empty.
    Ready,
    /// The capabilities have shrunk: the kernel turned out not to take a kind of super-frame. The
    /// frames not yet sent are still in the burst, the refused one first; adapt them and call
    /// again. This happens at most once for each kind.
    Adapt,
    /// The interface is down; frames are dropped until it is up again.
    Down,
    /// Close the device: the interface has gone.
    Gone(Errno),
}

/// The kinds of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// [`Tap`].
    Tap,
    /// [`PlainTap`].
    PlainTap,
    /// [`PacketSocket`].
    Packet,
    /// [`MemoryDevice`].
    Memory,
    /// [`memif::Memif`].
    Memif,
}

impl DeviceKind {
    /// Frames to ask for at first after a quiet time. Of a packet socket one call then takes a lone
    /// frame and learns that there is no other.
    #[must_use]
    pub fn first_turn(self) -> usize {
        match self {
            Self::Packet => 2,
            Self::Tap | Self::PlainTap | Self::Memory | Self::Memif => 1,
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tap => "TAP",
            Self::PlainTap => "plain TAP",
            Self::Packet => "packet socket",
            Self::Memory => "memory device",
            Self::Memif => "memif",
        })
    }
}

/// Frames that went one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames, without those dropped. A super-frame counts as one.
    pub frames: u64,
    /// Octets of those frames, Ethernet headers included.
    pub octets: u64,
    /// Frames dropped by the device, by reason.
    pub drops: DropCounters,
}

/// What became of all frames of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// From the device to us.
    pub received: Traffic,
    /// From us to the device.
    pub sent: Traffic,
    /// Super-frames that were longer than a buffer, and were received as several (Linux: BIG TCP).
    /// Their pieces are counted in `received`.
    pub long: u64,
    /// Frames that the kernel refused for the work that they leave to it.
    pub refused: Refusals,
}

/// Why a device cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// No interface can have this name.
    #[error("'{0}' is no interface name: 1 to 15 octets, no '/', no white space")]
    Name(String),
    /// The kernel refused a step.
    #[error("{kind} {name}: cannot {action}: {}", source.desc())]
    Refused {
        /// The kind of device wanted.
        kind: DeviceKind,
        /// The interface wanted.
        name: String,
        /// What was tried.
        action: &'static str,
        /// The kernel's reason.
        source: Errno,
    },
    /// The kernel's TAP has no virtio-net headers; a [`PlainTap`] is possible.
    #[error("TAP {0}: this kernel knows no IFF_VNET_HDR")]
    NoVnetHeader(String),
    /// The kernel's TAP takes no super-frames of tunnels.
    #[error("TAP {0}: this kernel takes no super-frames of tunnels (Linux 6.17)")]
    NoTunnels(String),
    /// The interface carries no Ethernet frames.
    #[error("packet socket {name}: hardware type {hardware} is not Ethernet")]
    NotEthernet {
        /// The interface wanted.
        name: String,
        /// Its ARP hardware type (RFC 826).
        hardware: u16,
    },
}

/// Opens or creates the TAP `name` in the namespace of the calling thread, with offload where it
/// is wanted and the kernel can.
///
/// # Errors
///
/// As for [`Tap::open`] and [`PlainTap::open`].
pub fn open_tap(name: &str, offload: Capabilities) -> Result<Box<dyn FrameDevice>, OpenError> {
    if offload.is_empty() {
        return Ok(Box::new(PlainTap::open(name)?));
    }
    match Tap::open(name, offload) {
        Ok(tap) => Ok(Box::new(tap)),
        Err(error @ OpenError::NoVnetHeader(_)) => {
            tracing::warn!("{error}; going on without offload");
            Ok(Box::new(PlainTap::open(name)?))
        }
        Err(error) => Err(error),
    }
}

/// An interface name that the kernel can accept.
fn valid_name(name: &str) -> Result<&str, OpenError> {
    match name.parse::<InterfaceName>() {
        Ok(_) => Ok(name),
        Err(_) => Err(OpenError::Name(name.to_owned())),
    }
}

impl Traffic {
    fn count(&mut self, octets: usize) {
        self.frames += 1;
        self.octets += octets as u64;
    }
}

/// The frames of a burst on their way out, and what became of them.
struct Sending<'a> {
    burst: &'a mut Burst,
    pool: &'a mut FramePool,
    traffic: &'a mut Traffic,
    /// Frames at the front of the burst that are done with.
    done: usize,
    /// Where those end that are to be sent now.
    end: usize,
    /// Which of them the kernel may read for ever, by bit.
    abandoned: u64,
    sent: Sent,
}

impl<'a> Sending<'a> {
    fn new(burst: &'a mut Burst, pool: &'a mut FramePool, traffic: &'a mut Traffic) -> Self {
        let sent = Sent {
            frames: 0,
            octets: 0,
            dropped: 0,
            egress: Egress::Ready,
        };
        let end = burst.len();
        Self {
            burst,
            pool,
            traffic,
            done: 0,
            end,
            abandoned: 0,
            sent,
        }
    }

    /// The first frame that is not done with.
    #[inline]
    fn front(&mut self) -> Option<&mut Frame> {
        self.waiting().first_mut()
    }

    /// All frames that are not done with.
    #[inline]
    fn waiting(&mut self) -> &mut [Frame] {
        self.burst.get_mut(self.done..self.end).unwrap_or_default()
    }

    /// Lets so many of the waiting frames be sent, and those behind them wait.
    fn limit(&mut self, frames: usize) {
        self.end = (self.done + frames).min(self.burst.len());
    }

    /// Lets all be sent again.
    fn unlimit(&mut self) {
        self.end = self.burst.len();
    }

    /// The front frame was taken.
    fn taken(&mut self) {
        if let Some(frame) = self.burst.get(self.done) {
            self.traffic.count(frame.len());
            self.sent.frames += 1;
            self.sent.octets += frame.len();
            self.done += 1;
        }
    }

    /// The front frame is dropped.
    fn dropped(&mut self, reason: DropReason) {
        self.traffic.drops.add(reason, 1);
        self.sent.dropped += 1;
        self.done += 1;
    }

    /// The front frame is dropped, and its buffer never used again.
    #[cold]
    fn abandoned(&mut self) {
        const { assert!(BATCH <= u64::BITS as usize) };
        self.abandoned |= 1 << self.done;
        self.dropped(DropReason::DeviceError);
    }

    /// All frames that are not done with are dropped.
    fn drop_rest(&mut self, reason: DropReason) {
        let rest = self.burst.len() - self.done;
        self.traffic.drops.add(reason, rest as u64);
        self.sent.dropped += rest;
        self.done += rest;
    }

    /// The interface is down or has gone: says so, and drops the rest.
    fn lost(&mut self, egress: Egress) {
        self.sent.egress = egress;
        self.drop_rest(DropReason::DeviceGone);
    }

    /// The front frame needs other treatment first: it and all behind it stay in the burst.
    fn adapt(&mut self) {
        self.sent.egress = Egress::Adapt;
    }

    /// Returns the buffers of all frames that are done with.
    fn finish(mut self) -> Sent {
        if self.abandoned != 0 {
            self.give_up_abandoned();
        }
        for frame in self.burst.drain(..self.done) {
            self.pool.free(frame);
        }
        self.sent
    }

    /// Takes the frames out of the burst that the kernel may read for ever, and leaves them to it.
    #[cold]
    fn give_up_abandoned(&mut self) {
        for place in (0..self.done).rev() {
            if self.abandoned & (1 << place) != 0 {
                let _ = self.burst.remove(place).into_raw();
                self.done -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sending_accounts_for_every_frame() {
        let mut pool = FramePool::new(256, 64);
        let mut burst = Burst::new();
        for len in 1..=5 {
            burst.push(pool.copy_from(&[0; 64][..len]).unwrap());
        }
        let mut traffic = Traffic::default();
        let mut sending = Sending::new(&mut burst, &mut pool, &mut traffic);
        sending.taken();
        sending.dropped(DropReason::DeviceError);
        sending.taken();
        let sent = sending.finish();
        assert_eq!((sent.frames, sent.octets, sent.dropped), (2, 1 + 3, 1));
        assert_eq!(burst.iter().map(Frame::len).collect::<Vec<_>>(), [4, 5]);

        let mut sending = Sending::new(&mut burst, &mut pool, &mut traffic);
        sending.lost(Egress::Down);
        let sent = sending.finish();
        assert_eq!((sent.dropped, sent.egress), (2, Egress::Down));
        assert!(burst.is_empty());
        assert_eq!((traffic.frames, traffic.octets), (2, 4));
        assert_eq!(traffic.drops.total(), 3);
    }

    #[test]
    fn a_buffer_that_the_kernel_may_read_is_never_used_again() {
        let mut pool = FramePool::new(4, 64);
        let mut burst: Burst = (1..=4)
            .map(|len| pool.copy_from(&[0; 64][..len]).unwrap())
            .collect();
        let mut traffic = Traffic::default();
        let mut sending = Sending::new(&mut burst, &mut pool, &mut traffic);
        sending.taken();
        sending.abandoned();
        sending.taken();
        let sent = sending.finish();
        assert_eq!((sent.frames, sent.dropped), (2, 1));
        assert_eq!(burst.iter().map(Frame::len).collect::<Vec<_>>(), [4]);
        burst.clear();
        let left: Vec<_> = core::iter::from_fn(|| pool.alloc()).collect();
        assert_eq!(left.len(), 3);
    }
}
