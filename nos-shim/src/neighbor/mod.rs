//! The stations on an uplink's link, and their MAC addresses.
//!
//! # Theory of operation
//!
//! A [`NeighborCache`] serves one uplink, for ARP and for Neighbor Discovery alike: both run the
//! state machine of RFC 4861 §7.3.2, as in Linux, with RFC 1122 §2.3.2 in mind.
//!
//! ```text
//!              first packet             answer              30 s        next packet
//!   (none) ─────────────────► Incomplete ───► Reachable ─────────► Stale ─────────► Delay
//!                              │    ▲             ▲                  ▲                │ 5 s
//!             3 questions, 3 s │    │ next packet │ answer           │ heard of it    ▼
//!                              ▼    │             └──────────────────┴───────────── Probe
//!                              Failed ◄───────────────────────────────────────────────┘
//!                                                                   3 questions, 3 s
//! ```
//!
//! The data path asks with [`NeighborCache::neighbor`] once for an address and keeps the
//! [`NeighborId`]; then [`NeighborCache::resolve`] is one array access for a neighbor that may be
//! used. Packets for one that is not yet known are handed over with [`NeighborCache::enqueue`] and
//! come back, with the MAC address or as failed, from [`NeighborCache::poll_output`], among the
//! messages that are to be sent.
//!
//! # No wake-ups without work
//!
//! Only a neighbor that is in use has a timer: while it is looked for, or probed because packets go
//! to it. That reachability has lapsed is noticed by the next packet; old entries are removed when
//! new ones need room.
//!
//! # What outsiders can do
//!
//! A scan of a large prefix makes the NOS ask for addresses that nobody has (RFC 6583). At most
//! [`NeighborConfig::incomplete`] such questions are open at a time, and the packets that wait for
//! answers are bounded for each neighbor and in total. When the cache is full, failed entries go
//! first, then those unused for longest; one that is in use never does, so a scan takes nothing away
//! from known neighbors. Stations on the link enter the cache only by asking for an address of the
//! NOS from an address of the link; all other messages update what is there (RFC 826, RFC 4861
//! §7.2.3 and §7.2.5).

mod cache;
mod link;
mod table;

use core::net::IpAddr;

use arrayvec::ArrayVec;

pub use cache::NeighborCache;
pub use link::{LinkAddresses, LinkMessage};

use crate::ident::MacAddr;
use crate::packet::Packet;
use crate::time::Duration;

/// The most packets that can wait for one neighbor.
pub const MAX_QUEUE: usize = 64;

/// Packets that waited for a neighbor, oldest first.
pub type Waiting = Box<ArrayVec<Packet, MAX_QUEUE>>;

/// Timers and bounds of a [`NeighborCache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighborConfig {
    /// Between two questions (`RETRANS_TIMER`, RFC 4861 §10).
    pub retransmit: Duration,
    /// Questions before giving up (`MAX_MULTICAST_SOLICIT` and `MAX_UNICAST_SOLICIT`).
    pub tries: u8,
    /// How long an answer holds, before it is multiplied with a random factor from 0.5 to 1.5
    /// (`REACHABLE_TIME`).
    pub reachable: Duration,
    /// Between a packet for a stale neighbor and the first probe (`DELAY_FIRST_PROBE_TIME`).
    pub delay: Duration,
    /// A failed or stale entry may be removed when unused for so long, though there is room
    /// (`gc_stale_time` in Linux).
    pub lifetime: Duration,
    /// The most neighbors.
    pub entries: usize,
    /// The most neighbors that may be looked for at a time.
    pub incomplete: usize,
    /// The most packets that wait for one neighbor, up to [`MAX_QUEUE`].
    pub queue: usize,
    /// The most packets that wait for any.
    pub total_queue: usize,
}

impl Default for NeighborConfig {
    /// The times of RFC 4861 §10, which are those of Linux.
    fn default() -> Self {
        Self {
            retransmit: Duration::from_secs(1),
            tries: 3,
            reachable: Duration::from_secs(30),
            delay: Duration::from_secs(5),
            lifetime: Duration::from_secs(60),
            entries: 4096,
            incomplete: 512,
            queue: MAX_QUEUE,
            total_queue: 512,
        }
    }
}

/// Names a neighbor of one cache, until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NeighborId {
    index: u32,
    generation: u32,
}

/// Whether a neighbor may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// It has this MAC address.
    Known(MacAddr),
    /// Its MAC address is being looked for, or will be for the next packet: enqueue packets.
    Pending,
    /// The id names nothing any more: ask with the address again.
    Gone,
}

/// What is known of a neighbor (RFC 4861 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighborState {
    /// Its MAC address is being looked for.
    Incomplete,
    /// It has answered lately.
    Reachable,
    /// It has not answered lately, and nobody has asked.
    Stale,
    /// As before, but packets go to it: it will be asked soon.
    Delay,
    /// It is being asked whether it is still there.
    Probe,
    /// It did not answer.
    Failed,
}

impl NeighborState {
    /// Whether packets can be sent.
    #[must_use]
    pub fn is_valid(self) -> bool {
        !matches!(self, Self::Incomplete | Self::Failed)
    }
}

impl core::fmt::Display for NeighborState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Incomplete => "incomplete",
            Self::Reachable => "reachable",
            Self::Stale => "stale",
            Self::Delay => "delay",
            Self::Probe => "probe",
            Self::Failed => "failed",
        })
    }
}

/// What a cache wants done.
#[derive(Debug)]
pub enum NeighborOutput {
    /// Send this on the uplink.
    Send(LinkMessage),
    /// Send these packets to this MAC address.
    Resolved {
        /// Where they go.
        mac: MacAddr,
        /// At least one.
        packets: Waiting,
    },
    /// Drop these packets with [`DropReason::NeighborFailed`](crate::drop::DropReason), and tell
    /// their senders that the host is unreachable.
    Failed {
        /// Which neighbor did not answer.
        address: IpAddr,
        /// At least one.
        packets: Waiting,
    },
}

/// A neighbor, as `show neighbors` lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address, if known.
    pub mac: Option<MacAddr>,
    /// What is known of it.
    pub state: NeighborState,
    /// It says that it is a router (RFC 4861 §5.1).
    pub router: bool,
    /// Since it last answered; `None` if it never did.
    pub confirmed: Option<Duration>,
    /// Packets that wait for it.
    pub queued: usize,
}

#[cfg(test)]
mod tests;
