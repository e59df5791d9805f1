//! What a device can be left to do, and doing it in software where it cannot.

use bitflags::bitflags;

use crate::checksum::Sum;
use crate::drop::{DropReason, Ledger};
use crate::frame::{Checksum, FramePool, GsoKind, Offload};
use crate::packet::{Packet, protocol};

bitflags! {
    /// What a device takes on egress, and finishes itself.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Capabilities: u8 {
        /// Frames whose transport checksum is [`Checksum::Partial`].
        const CHECKSUM = 1;
        /// TCP super-frames over IPv4, with or without the ECN mark. Means nothing without
        /// [`Self::CHECKSUM`], as every super-frame has a partial checksum.
        const TSO4 = 1 << 1;
        /// The same over IPv6.
        const TSO6 = 1 << 2;
        /// UDP super-frames over either.
        const USO = 1 << 3;
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
        let segmentation = match offload.segmentation.map(|segmentation| segmentation.kind) {
            None => Self::empty(),
            Some(GsoKind::TcpV4) => Self::TSO4,
            Some(GsoKind::TcpV6) => Self::TSO6,
            Some(GsoKind::Udp) => Self::USO,
        };
        checksum | segmentation
    }

    /// Whether a device with these capabilities takes a frame with this offload state untouched.
    #[must_use]
    #[inline]
    pub fn take(self, offload: Offload) -> bool {
        offload == Offload::NONE || self.contains(Self::required(offload))
    }
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
fn adapt_in_software(
    mut packet: Packet,
    _capabilities: Capabilities,
    pool: &mut FramePool,
    out: &mut impl FnMut(Packet),
) -> Adapted {
    if packet.frame().offload().segmentation.is_some() {
        pool.free(packet.into_frame());
        return Adapted::dropped(DropReason::DeviceError);
    }
    complete_checksum(&mut packet);
    out(packet);
    Adapted::default()
}

/// Puts the transport checksum into a frame that has a partial one. The frame then counts as
/// [`Checksum::Verified`]: nobody need check what was computed in this host, and devices may say so
/// to their receivers. Other frames are left alone.
pub fn complete_checksum(packet: &mut Packet) {
    let udp = packet.protocol() == protocol::UDP;
    let frame = packet.frame_mut();
    let mut offload = frame.offload();
    let Checksum::Partial { start, offset } = offload.checksum else {
        return;
    };
    let Some(transport) = frame.bytes_mut().get_mut(usize::from(start)..) else {
        return;
    };
    // The field holds the pseudo-header's sum, so it takes part.
    let checksum = match Sum::ZERO.plus(transport).checksum() {
        // RFC 768: zero would say that there is none.
        0 if udp => 0xffff,
        checksum => checksum,
    };
    if let Some(field) = transport
        .get_mut(usize::from(offset)..)
        .and_then(|rest| rest.first_chunk_mut())
    {
        *field = checksum.to_be_bytes();
    }
    offload.checksum = Checksum::Verified;
    frame.set_offload(offload);
}
