//! What packets need to leave by an adjacency, kept ready.
//!
//! A route with one next hop sends every packet to the same station: with the same MAC addresses,
//! the same MTU, the same device. [`Rewrites`] keeps that, by adjacency, so that most packets need
//! neither the route's action nor the neighbor cache.
//!
//! An entry is made from the FIB, an uplink and a neighbor, and holds until any of them changes or
//! the neighbor has to be asked again. All changes count up one number, the epoch; it is compared
//! for each packet, and changes are rare. Whatever is not plain goes the long way
//! ([`super::egress`]), which also knows what to do without an entry.

use crate::fib::{Action, AdjacencyId};
use crate::frame::ETHERNET_HEADER;
use crate::ident::{Interface, UplinkId};
use crate::offload::Capabilities;
use crate::packet::{Packet, protocol};
use crate::shim::Shim;
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

#[derive(Clone, Copy, Debug)]
struct Rewrite {
    epoch: u64,
    good_until: Instant,
    uplink: UplinkId,
    /// Octets of the longest frame.
    longest: u32,
    /// Ethernet destination and source.
    link: [u8; 12],
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

    /// Whether the packet can leave as it is.
    #[inline]
    fn suits(&self, packet: &Packet) -> bool {
        let frame = packet.frame();
        let fits = frame.len() <= self.longest as usize
            || packet.wire_len() + ETHERNET_HEADER <= self.longest as usize;
        // The NOS notes the flows of echo requests.
        let icmp = matches!(packet.protocol(), protocol::ICMP | protocol::ICMPV6);
        fits && !icmp && self.capabilities.take(frame.offload())
    }
}

impl Shim {
    /// Notices what has changed since the last burst. The sum only grows: what is removed is added
    /// to [`Shim::changes`].
    #[inline]
    pub(super) fn refresh_rewrites(&mut self) {
        let uplinks = self.uplinks.iter().flatten();
        let neighbors: u64 = uplinks.map(|uplink| uplink.neighbors.version()).sum();
        self.rewrites.epoch = self.changes + neighbors + 1;
    }

    /// Sends a packet of a container that can leave as it is; gives back any other.
    #[inline]
    pub(super) fn send_ready(
        &mut self,
        mut packet: Packet,
        adjacency: AdjacencyId,
        now: Instant,
    ) -> Result<(), Packet> {
        let Some(rewrite) = self.rewrites.entries.get(adjacency.0 as usize) else {
            return Err(packet);
        };
        let holds = rewrite.epoch == self.rewrites.epoch && now < rewrite.good_until;
        if !holds || !rewrite.suits(&packet) {
            return Err(packet);
        }
        packet.set_link_pair(&rewrite.link);
        let uplink = rewrite.uplink;
        packet.set_interface(Interface::Uplink(uplink));
        self.queue(packet.into_frame(), uplink);
        Ok(())
    }

    /// Keeps ready what the next packet of an adjacency needs, if all need the same.
    #[cold]
    pub(super) fn prepare_rewrite(&mut self, adjacency: AdjacencyId) {
        self.refresh_rewrites();
        let index = adjacency.0 as usize;
        let known = self.rewrites.entries.get(index);
        if known.is_some_and(|entry| entry.epoch == self.rewrites.epoch) || index >= MAX_REWRITES {
            return;
        }
        let Some(rewrite) = self.rewrite(adjacency) else {
            return;
        };
        if self.rewrites.entries.len() <= index {
            self.rewrites.entries.resize(index + 1, Rewrite::NONE);
        }
        self.rewrites.entries[index] = rewrite;
    }

    fn rewrite(&self, adjacency: AdjacencyId) -> Option<Rewrite> {
        let Action::Via(hops) = self.fib.adjacency(adjacency).action() else {
            return None;
        };
        let [hop] = hops.as_slice() else {
            return None;
        };
        let uplink = self.uplink(hop.uplink)?;
        let (mac, good_until) = uplink.neighbors.known(hop.gateway)?;
        let mut link = [0; 12];
        link[..6].copy_from_slice(&mac.0);
        link[6..].copy_from_slice(&uplink.config.mac.0);
        let longest = uplink.config.mtu + ETHERNET_HEADER;
        Some(Rewrite {
            epoch: self.rewrites.epoch,
            good_until,
            uplink: hop.uplink,
            longest: u32::try_from(longest).unwrap_or(u32::MAX),
            link,
            capabilities: uplink.capabilities,
        })
    }
}
