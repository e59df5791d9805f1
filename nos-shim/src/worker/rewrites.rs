//! What packets need to leave by an adjacency, kept ready.
//!
//! A route with one next hop sends every packet to the same station: with the same MAC addresses,
//! the same MTU, the same device. [`Rewrites`] keeps that, by adjacency, so that most packets need
//! neither the route's action nor the neighbor cache.
//!
//! An entry is made from the FIB, an uplink and a neighbor, and holds until any of them changes or
//! the neighbor has to be asked again. All changes count up one number, the version; it is compared
//! for each packet, and changes are rare. Whatever is not plain goes the long way
//! ([`crate::forward`]), which also knows what to do without an entry.

use crate::fib::AdjacencyId;
use crate::frame::ETHERNET_HEADER;
use crate::ident::{MacAddr, UplinkId};
use crate::offload::Capabilities;
use crate::packet::{Packet, protocol};
use crate::tables::Uplink;
use crate::time::Instant;

/// Adjacencies with higher numbers take the long way: each entry has its memory.
const MAX_REWRITES: usize = 1 << 16;

/// By adjacency.
#[derive(Debug, Default)]
pub(crate) struct Rewrites {
    entries: Vec<Rewrite>,
    /// Entries of other epochs hold no more. Zero is nobody's.
    epoch: u64,
}

/// How a packet leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rewrite {
    epoch: u64,
    good_until: Instant,
    pub(crate) uplink: UplinkId,
    /// Octets of the longest frame.
    longest: u32,
    /// Ethernet destination and source.
    pub(crate) link: [u8; 12],
    capabilities: Capabilities,
}

impl Rewrite {
    const NONE: Self = Self {
        epoch: 0,
        good_until: Instant::ZERO,
        uplink: UplinkId(0),
        longest: 0,
        link: [0; 12],
        capabilities: Capabilities::empty(),
    };

    /// To the station with this MAC address, which is known `good_until` then.
    pub(crate) fn new(uplink: &Uplink, mac: MacAddr, good_until: Instant) -> Self {
        let mut link = [0; 12];
        link[..6].copy_from_slice(&mac.0);
        link[6..].copy_from_slice(&uplink.config.mac.0);
        let longest = uplink.config.mtu + ETHERNET_HEADER;
        Self {
            epoch: 0,
            good_until,
            uplink: uplink.config.id,
            longest: u32::try_from(longest).unwrap_or(u32::MAX),
            link,
            capabilities: uplink.capabilities,
        }
    }

    /// Whether the packet can leave as it is.
    #[inline]
    fn suits(&self, packet: &Packet) -> bool {
        let frame = packet.frame();
        let fits = frame.len() <= self.longest as usize
            || packet.wire_len() + ETHERNET_HEADER <= self.longest as usize;
        // The NOS notes the flows of echo requests, and sends nothing whose headers are at fault.
        let special = matches!(
            packet.protocol(),
            protocol::ICMP | protocol::ICMPV6 | protocol::FRAGMENT
        );
        fits && !special && self.capabilities.take(frame.offload())
    }
}

impl Rewrites {
    /// Lets only those hold that are made from now on, if the version has changed.
    #[inline]
    pub(super) fn set_version(&mut self, version: u64) {
        self.epoch = version + 1;
    }

    /// How a packet leaves by an adjacency, if it can leave as it is.
    #[inline]
    pub(crate) fn find(
        &self,
        adjacency: AdjacencyId,
        packet: &Packet,
        now: Instant,
    ) -> Option<&Rewrite> {
        let rewrite = self.entries.get(adjacency.0 as usize)?;
        let holds = rewrite.epoch == self.epoch && now < rewrite.good_until;
        (holds && rewrite.suits(packet)).then_some(rewrite)
    }

    /// Whether one for this adjacency may be added.
    pub(crate) fn lacks(&self, adjacency: AdjacencyId) -> bool {
        let index = adjacency.0 as usize;
        let known = self.entries.get(index);
        index < MAX_REWRITES && known.is_none_or(|entry| entry.epoch != self.epoch)
    }

    /// Keeps `rewrite` for the packets of an adjacency that [is lacking](Self::lacks).
    pub(crate) fn insert(&mut self, adjacency: AdjacencyId, rewrite: Rewrite) {
        let index = adjacency.0 as usize;
        if self.entries.len() <= index {
            self.entries.resize(index + 1, Rewrite::NONE);
        }
        self.entries[index] = Rewrite {
            epoch: self.epoch,
            ..rewrite
        };
    }

    /// Whether there is one that holds.
    #[cfg(test)]
    pub(crate) fn any(&self) -> bool {
        self.entries.iter().any(|entry| entry.epoch == self.epoch)
    }
}
