//! What a device can be left to do, and doing it in software where it cannot.
//!
//! Containers send super-frames and leave checksums to the device, as any Linux host does. Most of
//! that passes through to another kernel untouched. What the egress does not take is done here,
//! with the same result, octet for octet, as Linux would have put on the wire:
//!
//! - [`complete_checksum`] finishes a partial transport checksum;
//! - [`segment`] cuts a TCP or UDP super-frame into packets of its segment size, also where it is in a
//!   tunnel;
//! - [`cut_long`] cuts a super-frame that is longer than an IP packet into ordinary ones;
//! - [`fragment_ipv4`] cuts a packet that is longer than the next hop's MTU into fragments.
//!
//! A payload is copied once. The last piece keeps the original buffer, so cutting into `n` takes
//! `n - 1` buffers, and a pool that runs dry costs pieces in the middle, which TCP repairs soonest.

mod cut;
mod fragment;
mod long;
mod segment;
mod tunnel;

use bitflags::bitflags;

use crate::checksum::Sum;
use crate::drop::{DropReason, Ledger};
use crate::frame::{Checksum, Ecn, Encapsulation, FramePool, GsoKind, Offload};
use crate::packet::Packet;

pub use fragment::fragment_ipv4;
pub use long::{MAX_LONG_FRAME, cut_long};
pub(crate) use segment::first_segment;
pub use segment::segment;
pub use tunnel::complete_octets;
pub(crate) use tunnel::join_segments;

bitflags! {
    /// What a device takes on egress, and finishes itself.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Capabilities: u8 {
        /// Frames whose transport checksum is [`Checksum::Partial`].
        const CHECKSUM = 1;
        /// TCP super-frames over IPv4, with or without the mark of classic ECN. Means nothing without
        /// [`Self::CHECKSUM`], as every super-frame has a partial checksum.
        const TSO4 = 1 << 1;
        /// The same over IPv6.
        const TSO6 = 1 << 2;
        /// UDP super-frames over either.
        const USO = 1 << 3;
        /// Super-frames of UDP tunnels, of each kind above that is in one.
        const TUNNEL = 1 << 4;
        /// Super-frames of GRE and IP in IP. A virtio-net header has no words for them, so no kernel takes
        /// them from us.
        const IP_TUNNEL = 1 << 5;
        /// TCP super-frames all of whose segments have the flag CWR ([`Ecn::Accurate`]). No header says so to
        /// the kernel behind a device, and should that cut one, it would leave CWR on the first segment
        /// alone. So it is for devices whose far end takes super-frames whole.
        const ACCURATE_ECN = 1 << 6;
    }
}

impl Capabilities {
    /// What a device must be able to do to take a frame with this offload state untouched.
    #[must_use]
    #[inline]
    pub fn required(offload: Offload) -> Self {
        let checksum = match offload.checksum {
            Checksum::Partial { .. } => Self::CHECKSUM,
            Checksum::Complete | Checksum::Verified => Self::empty(),
        };
        let Some(segmentation) = offload.segmentation else {
            return checksum;
        };
        let kind = match segmentation.kind {
            GsoKind::TcpV4 => Self::TSO4,
            GsoKind::TcpV6 => Self::TSO6,
            GsoKind::Udp => Self::USO,
        };
        let tunnel = match segmentation.tunnel {
            None => Self::empty(),
            Some(tunnel) if tunnel.encapsulation == Encapsulation::Udp => Self::TUNNEL,
            Some(_) => Self::IP_TUNNEL,
        };
        let ecn = match segmentation.ecn {
            Ecn::Accurate => Self::ACCURATE_ECN,
            Ecn::Unmarked | Ecn::Classic => Self::empty(),
        };
        checksum | kind | tunnel | ecn
    }

    /// Whether a device with these capabilities takes a frame with this offload state untouched.
    #[must_use]
    #[inline]
    pub fn take(self, offload: Offload) -> bool {
        offload == Offload::NONE
            || self.contains(Self::required(offload)) && !is_completed_super_frame(offload)
    }
}

/// No device finds its way from the checksum of the whole to those of the segments.
fn is_completed_super_frame(offload: Offload) -> bool {
    let partial = matches!(offload.checksum, Checksum::Partial { .. });
    offload.segmentation.is_some() && !partial
}

/// What became of a packet, for the [`Ledger`]. One packet came in, so
/// `1 + originated` were handed on or dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "what was originated or dropped must be counted"]
pub struct Adapted {
    /// Packets made beyond the first, those that were dropped for want of a buffer included.
    pub originated: u64,
    /// Packets that were not handed on.
    pub dropped: Option<Dropped>,
}

/// Packets that were not handed on, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Why.
    pub reason: DropReason,
    /// How many; not zero.
    pub packets: u64,
}

impl Adapted {
    /// Counts what was originated and dropped. What was handed on is the caller's to count.
    #[inline]
    pub fn record(self, ledger: &mut Ledger) {
        ledger.originated += self.originated;
        if let Some(Dropped { reason, packets }) = self.dropped {
            ledger.drops.add(reason, packets);
        }
    }

    fn dropped(reason: DropReason) -> Self {
        Self {
            originated: 0,
            dropped: Some(Dropped { reason, packets: 1 }),
        }
    }

    /// Adds what became of one of the packets that were made.
    fn merge(&mut self, other: Self) {
        self.originated += other.originated;
        self.dropped = match (self.dropped, other.dropped) {
            (Some(mine), Some(theirs)) => Some(Dropped {
                packets: mine.packets + theirs.packets,
                ..mine
            }),
            (mine, theirs) => mine.or(theirs),
        };
    }
}

/// Makes of `packet` what a device with `capabilities` can send, and hands it to `out`: the packet
/// untouched if possible, else with its checksum completed, else in segments, in order.
///
/// Segments are taken from `pool`; those for which it has no buffer are dropped with
/// [`DropReason::NoBuffer`].
#[inline]
pub fn adapt(
    packet: Packet,
    capabilities: Capabilities,
    pool: &mut FramePool,
    out: &mut impl FnMut(Packet),
) -> Adapted {
    if capabilities.take(packet.frame().offload()) {
        out(packet);
        return Adapted::default();
    }
    adapt_in_software(packet, capabilities, pool, out)
}

#[cold]
#[inline(never)]
fn adapt_in_software(
    mut packet: Packet,
    capabilities: Capabilities,
    pool: &mut FramePool,
    out: &mut impl FnMut(Packet),
) -> Adapted {
    if packet.frame().offload().segmentation.is_some() {
        return segment(packet, capabilities, pool, out);
    }
    complete_checksum(&mut packet);
    out(packet);
    Adapted::default()
}

/// Puts the transport checksum into a frame that has a partial one. The frame then counts as
/// [`Checksum::Verified`]: nobody need check what was computed in this host, and devices may say so
/// to their receivers. Other frames are left alone.
///
/// A super-frame gets the checksum that it would have as one packet, which is right for a capture.
/// It can still be segmented in software, but not by a device.
pub fn complete_checksum(packet: &mut Packet) {
    let frame = packet.frame_mut();
    let mut offload = frame.offload();
    let Checksum::Partial { start, offset } = offload.checksum else {
        return;
    };
    complete_at(frame.bytes_mut(), start, offset);
    offload.checksum = Checksum::Verified;
    frame.set_offload(offload);
    if packet.tunnel().is_some() {
        tunnel::complete_outer(packet);
    }
}

/// Completes a partial checksum: see [`Checksum::Partial`].
fn complete_at(octets: &mut [u8], start: u16, offset: u16) {
    let Some(transport) = octets.get_mut(usize::from(start)..) else {
        return;
    };
    // The field holds the pseudo-header's sum, so it takes part.
    // Linux, too, avoids zero in every protocol here.
    let checksum = never_zero(Sum::ZERO.plus(transport).checksum());
    if let Some(field) = transport
        .get_mut(usize::from(offset)..)
        .and_then(|rest| rest.first_chunk_mut())
    {
        *field = checksum.to_be_bytes();
    }
}

/// The checksum of UDP, where zero would say that there is none (RFC 768).
fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

#[cfg(test)]
mod tests;
