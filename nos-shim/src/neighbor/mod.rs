//! Whose MAC address: the neighbors on one uplink, by ARP (RFC 826) and Neighbor Discovery
//! (RFC 4861).

use core::net::IpAddr;

use ipnet::IpNet;

use crate::arp::Arp;
use crate::drop::DropReason;
use crate::frame::{Frame, FrameFull};
use crate::ident::MacAddr;
use crate::ndp::{Envelope, Ndp};
use crate::packet::Packet;
use crate::time::{Duration, Instant};

/// How much a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Neighbors.
    pub neighbors: usize,
    /// Neighbors that have not answered yet, pinned ones aside.
    pub unresolved: usize,
    /// Packets that wait for one neighbor.
    pub held_per_neighbor: usize,
    /// Packets that wait for any.
    pub held: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            neighbors: 4096,
            unresolved: 512,
            held_per_neighbor: 64,
            held: 1024,
        }
    }
}

/// A neighbor in the cache, as long as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NeighborId {
    slot: u32,
    generation: u32,
}

/// Where to send a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// To this MAC address, now.
    Known(MacAddr),
    /// It is being asked for: [`NeighborCache::hold`] the packet.
    Unknown(NeighborId),
    /// Nowhere: drop the packet for this reason. [`DropReason::NeighborFailed`] for an address that
    /// no neighbor can have, [`DropReason::NeighborQueueFull`] when too many are being asked for.
    Refused(DropReason),
}

/// A frame for the cache's uplink, yet to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// ARP.
    Arp {
        /// The message.
        arp: Arp,
        /// The MAC address that it goes to.
        destination: MacAddr,
    },
    /// Neighbor Discovery.
    Ndp {
        /// The message.
        ndp: Ndp,
        /// The addresses around it.
        envelope: Envelope,
    },
}

impl Message {
    /// Makes `frame` this message, in place of what it held.
    ///
    /// # Errors
    ///
    /// [`FrameFull`] when the frame's buffer is too short.
    pub fn write(&self, frame: &mut Frame) -> Result<(), FrameFull> {
        match self {
            Self::Arp { arp, destination } => arp.write(frame, *destination),
            Self::Ndp { ndp, envelope } => ndp.write(frame, envelope),
        }
    }
}

/// What to do about a message that was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Send this.
    Reply(Message),
    /// Somebody else uses an address of ours (RFC 5227 §2.4, RFC 4862 §5.4.4). There is nothing to
    /// send; the operator should know.
    Conflict {
        /// The address.
        address: IpAddr,
        /// Who uses it.
        mac: MacAddr,
    },
    /// Nothing.
    Nothing,
}

/// What the cache wants done.
#[derive(Debug)]
pub enum Output<T> {
    /// Send a message of the cache's own: a solicitation or an announcement.
    Send(Message),
    /// The neighbor is known: send this packet to it now.
    Release {
        /// Where to.
        mac: MacAddr,
        /// The packet.
        packet: Packet,
        /// What was held with it.
        tag: T,
    },
    /// The neighbor does not answer: drop the packet for [`DropReason::NeighborFailed`], and tell
    /// its sender that the host or address is unreachable (RFC 1812 §3.3.2, RFC 4861 §7.2.2).
    Failed {
        /// The packet.
        packet: Packet,
        /// What was held with it.
        tag: T,
    },
    /// Drop the packet, and tell nobody.
    Dropped {
        /// The packet.
        packet: Packet,
        /// What was held with it.
        tag: T,
        /// Why.
        reason: DropReason,
    },
}

/// What is known of a neighbor (RFC 4861 §7.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NeighborState {
    /// It is being asked for; it has not answered yet.
    Incomplete,
    /// It has answered within the last half a minute or so.
    Reachable,
    /// It has not; nobody has sent anything to it since.
    Stale,
    /// Something has been sent to it; it is about to be probed.
    Delay,
    /// It is being probed. Packets still go to the MAC address that was known last.
    Probe,
    /// It does not answer. The next packet to it has it asked for again.
    Failed,
}

/// A neighbor, to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighborStatus {
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: Option<MacAddr>,
    /// What is known of it.
    pub state: NeighborState,
    /// Since it was last heard of; if never, since it was first asked for; if failed, since then.
    pub age: Duration,
    /// Packets that wait for it.
    pub queued: usize,
}

/// The neighbors on one uplink. With each packet that waits, a `T` is kept.
#[derive(Debug)]
pub struct NeighborCache<T> {
    mac: MacAddr,
    limits: Limits,
    tag: core::marker::PhantomData<T>,
}

impl<T: Copy> NeighborCache<T> {
    /// A cache for the uplink with this MAC address and these addresses. The link-local address of
    /// `mac` is ours as well. `seed` varies the time for which neighbors count as reachable.
    #[must_use]
    pub fn new(mac: MacAddr, addresses: &[IpNet], seed: u64) -> Self {
        Self::with_limits(mac, addresses, seed, Limits::default())
    }

    /// The same with limits of one's own.
    #[must_use]
    pub fn with_limits(mac: MacAddr, _addresses: &[IpNet], _seed: u64, limits: Limits) -> Self {
        Self {
            mac,
            limits,
            tag: core::marker::PhantomData,
        }
    }

    /// Changes which addresses are ours. Nothing is announced; see [`Self::announce`].
    pub fn set_addresses(&mut self, _addresses: &[IpNet]) {}

    /// Says whether advertisements call us a router. At first they do not.
    pub fn set_router(&mut self, _router: bool) {}

    /// Where to send a packet whose next hop is `next_hop`. Asks for it if need be, so
    /// [`Self::poll_output`] should be called afterwards.
    pub fn resolve(&mut self, _next_hop: IpAddr, _now: Instant) -> Resolution {
        Resolution::Refused(DropReason::NeighborFailed)
    }

    /// The same for a neighbor whose id is known, without a search.
    pub fn resolve_id(&mut self, _id: NeighborId, _now: Instant) -> Resolution {
        Resolution::Refused(DropReason::NeighborFailed)
    }

    /// Keeps a place for `next_hop`, a gateway, so that its id stays valid until it has been
    /// unpinned as often as pinned. `None` for an address that no neighbor can have, and when all
    /// places are taken.
    pub fn pin(&mut self, _next_hop: IpAddr, _now: Instant) -> Option<NeighborId> {
        None
    }

    /// Takes back one [`Self::pin`].
    pub fn unpin(&mut self, _id: NeighborId) {}

    /// Keeps a packet until its next hop is known or has failed. Returns a packet that was dropped
    /// for it, or itself, and why.
    pub fn hold(
        &mut self,
        _id: NeighborId,
        packet: Packet,
        tag: T,
        _now: Instant,
    ) -> Option<(Packet, T, DropReason)> {
        Some((packet, tag, DropReason::NeighborFailed))
    }

    /// An ARP message has come in.
    pub fn handle_arp(&mut self, _arp: &Arp, _now: Instant) -> Answer {
        Answer::Nothing
    }

    /// A Neighbor Discovery message has come in, from IPv6 address `source` and Ethernet address
    /// `source_mac`. Those of and to routers are ignored.
    pub fn handle_ndp(
        &mut self,
        _ndp: &Ndp,
        _source: core::net::Ipv6Addr,
        _source_mac: MacAddr,
        _now: Instant,
    ) -> Answer {
        Answer::Nothing
    }

    /// The next thing to do. To be called until there is none, after every other call that takes
    /// the cache mutably.
    pub fn poll_output(&mut self) -> Option<Output<T>> {
        None
    }

    /// Tells all neighbors our addresses: gratuitous ARP (RFC 5227 §2.3) and unsolicited
    /// advertisements (RFC 4861 §7.2.6).
    pub fn announce(&mut self) {}

    /// When [`Self::handle_timeout`] has something to do; `None` while no neighbor is in use.
    #[must_use]
    pub fn poll_at(&self) -> Option<Instant> {
        None
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, _now: Instant) {}

    /// Packets inside, those that [`Self::poll_output`] will hand out included.
    #[must_use]
    pub fn held(&self) -> usize {
        0
    }

    /// Forgets every neighbor and returns all packets. Pinned neighbors keep their ids.
    pub fn clear(&mut self) -> Vec<(Packet, T)> {
        Vec::new()
    }

    /// All neighbors.
    pub fn entries(&self, _now: Instant) -> impl Iterator<Item = NeighborStatus> + '_ {
        core::iter::empty()
    }
}
