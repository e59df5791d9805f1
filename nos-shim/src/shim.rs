//! The NOS, without devices and without a clock.
//!
//! # Theory of operation
//!
//! A [`Shim`] is driven from outside, and returns everything that it wants done:
//!
//! ```text
//! handle_burst(uplink, frames, now) ─┐                 ┌─ poll_transmit() → uplink, frames
//! poll_channel(now) ← ring ──────────┼─ FIB, demux ────┤
//! handle_timeout(now) at poll_at() ──┘   neighbors     └─ ring → relay
//! ```
//!
//! What happens to a packet is in [`crate::forward`]. This module holds the state: uplinks,
//! addresses, routes, ports, attachments; and changes it as the operator or the relay asks.
//!
//! Configuration changes touch only what differs, so that traffic of the rest does not notice.

mod registration;
mod transmit;
mod uplinks;

use core::fmt;
use core::net::IpAddr;
use std::collections::VecDeque;
use std::sync::Arc;

use ipnet::IpNet;

use crate::channel::{NosEnd, Registration};
use crate::drop::Ledger;
use crate::fib::{Fib, FibFull, FlowHasher, Protocol, Route};
use crate::flows::EchoFlows;
use crate::forward::{Holder, Rewrites};
use crate::fragments::{FragmentLimits, FragmentTable};
use crate::frame::FramePool;
use crate::id_table::IdTable;
use crate::ident::{AttachmentId, MacAddr, UplinkId, VrfId};
use crate::neighbor::NeighborStatus;
use crate::originate::Originator;
use crate::packet::{Packet, PacketBurst};
use crate::ports::PortTable;
#[cfg(feature = "stack")]
use crate::ports::{ClaimRefused, Service};
use crate::rate_limit::{IcmpLimiter, IcmpLimits};
use crate::reassembly::{self, Reassembler};
use crate::share::{Budget, Shares};
use crate::time::Instant;
use crate::transmit::TransmitQueues;

pub(crate) use uplinks::{OwnAddresses, Uplink};

/// An interface of the NOS towards the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkConfig {
    /// Names it in tables; small numbers, as they index arrays.
    pub id: UplinkId,
    /// What operators call it.
    pub name: Arc<str>,
    /// Where packets that come in are looked up.
    pub vrf: VrfId,
    /// The NOS's MAC address on this link.
    pub mac: MacAddr,
    /// Addresses of the NOS, each with its network's prefix length.
    pub addresses: Vec<IpNet>,
    /// Octets of the longest IP packet.
    pub mtu: usize,
}

/// Counters of one uplink. Octets include Ethernet headers, and count super-frames as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UplinkCounters {
    /// Frames received.
    pub rx_packets: u64,
    /// Octets received.
    pub rx_octets: u64,
    /// Frames handed to the device.
    pub tx_packets: u64,
    /// Octets handed to the device.
    pub tx_octets: u64,
    /// Messages of ARP or Neighbor Discovery by which somebody else used an address of the NOS.
    pub address_conflicts: u64,
}

/// News for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShimEvent {
    /// Somebody else uses an address of the NOS. Told once for an address in
    /// [`DEFEND_INTERVAL`](crate::neighbor::DEFEND_INTERVAL).
    AddressConflict {
        /// On whose link.
        uplink: UplinkId,
        /// The address.
        address: IpAddr,
        /// Who uses it.
        mac: MacAddr,
    },
}

/// Events that wait to be polled at most; others are not told.
pub(crate) const EVENTS: usize = 64;

/// The model of a user-mode NOS.
pub struct Shim {
    pub(crate) channel: NosEnd,
    pub(crate) pool: FramePool,
    pub(crate) fib: Fib,
    pub(crate) flow_hasher: FlowHasher,
    pub(crate) ports: PortTable,
    pub(crate) echo: EchoFlows,
    pub(crate) fragments: FragmentTable<Holder>,
    pub(crate) reassembler: Reassembler,
    pub(crate) uplinks: IdTable<UplinkId, Uplink>,
    pub(crate) attachments: IdTable<AttachmentId, Registration>,
    pub(crate) limiter: IcmpLimiter,
    pub(crate) originator: Originator,
    pub(crate) transmit: TransmitQueues,
    pub(crate) budget: Budget,
    /// Of the buffers whose packets wait.
    pub(crate) shares: Shares,
    pub(crate) to_relay: PacketBurst,
    /// Segments and fragments on their way; empty between calls.
    pub(crate) pieces: VecDeque<Packet>,
    /// All addresses of the NOS.
    addresses: Vec<(VrfId, IpAddr)>,
    /// The same, by VRF.
    pub(crate) own_addresses: Vec<OwnAddresses>,
    pub(crate) rewrites: Rewrites,
    /// Counts changes of routes and uplinks, and those of neighbors of uplinks that are no more.
    pub(crate) changes: u64,
    pub(crate) ledger: Ledger,
    pub(crate) events: VecDeque<ShimEvent>,
    pub(crate) ping: bool,
    #[cfg(feature = "stack")]
    pub(crate) local: crate::local::LocalStack,
    seed: u64,
}

impl fmt::Debug for Shim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shim")
            .field("ledger", &self.ledger)
            .finish_non_exhaustive()
    }
}

/// What a shim is started with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShimConfig {
    /// Makes hashes, identifiers and timers that outsiders cannot guess; any number will do that
    /// they do not know.
    pub seed: u64,
}

/// What the NOS itself offers on its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Whether echo requests are answered.
    pub ping: bool,
    /// What listens, each at most once.
    #[cfg(feature = "stack")]
    pub services: Vec<crate::local::Service>,
}

/// One uplink.
#[derive(Clone, Debug)]
pub struct UplinkSnapshot {
    /// What it is configured to be.
    pub config: UplinkConfig,
    /// What went through it.
    pub counters: UplinkCounters,
    /// What is known of its neighbors.
    pub neighbors: Vec<NeighborStatus>,
}

impl Shim {
    /// A NOS without uplinks, which meets the relay at the other end of `channel`.
    #[must_use]
    pub fn new(channel: NosEnd, pool: FramePool, config: ShimConfig) -> Self {
        let ShimConfig { seed } = config;
        let budget = Budget::of(pool.capacity());
        let shares = Shares::new(budget.waiting());
        let fragments = FragmentLimits {
            held: shares.limit(),
            ..FragmentLimits::default()
        };
        let reassembly = reassembly::Limits {
            fragments: shares.limit(),
            ..reassembly::Limits::default()
        };
        Self {
            channel,
            pool,
            fib: Fib::new(),
            flow_hasher: FlowHasher::new(seed),
            ports: PortTable::new(),
            echo: EchoFlows::default(),
            fragments: FragmentTable::new(fragments),
            reassembler: Reassembler::new(reassembly, seed),
            uplinks: IdTable::new(),
            attachments: IdTable::new(),
            limiter: IcmpLimiter::new(IcmpLimits::default(), seed),
            originator: Originator::new(seed),
            transmit: TransmitQueues::new(budget.transmit_queue()),
            budget,
            shares,
            to_relay: PacketBurst::new(),
            pieces: VecDeque::new(),
            addresses: Vec::new(),
            own_addresses: Vec::new(),
            rewrites: Rewrites::default(),
            changes: 0,
            ledger: Ledger::default(),
            events: VecDeque::new(),
            ping: true,
            #[cfg(feature = "stack")]
            local: crate::local::LocalStack::new(seed),
            seed,
        }
    }

    /// The NOS's end of the channel, for its doorbell.
    pub fn channel(&mut self) -> &mut NosEnd {
        &mut self.channel
    }

    /// Makes `routes` all static routes.
    ///
    /// # Errors
    ///
    /// [`FibFull`]; then no route was removed, and some were inserted.
    pub fn set_routes(&mut self, routes: Vec<Route>) -> Result<(), FibFull> {
        self.changes += 1;
        self.fib.replace(Protocol::Static, routes).map(|_| ())
    }

    /// Makes `config` all that the NOS itself offers, in the default VRF.
    ///
    /// # Errors
    ///
    /// [`ClaimRefused`] when a container owns one of the ports; nothing has changed then.
    #[cfg(feature = "stack")]
    pub fn set_services(&mut self, config: &ServiceConfig) -> Result<(), ClaimRefused> {
        let claims = config.services.iter().flat_map(|service| service.claims());
        let service = Service {
            name: "NOS".into(),
            vrf: VrfId::DEFAULT,
            claims: claims.collect(),
        };
        self.ports.register_service(&service)?;
        self.local.set_services(&config.services);
        self.ping = config.ping;
        Ok(())
    }

    /// The oldest news that was not yet polled.
    pub fn poll_event(&mut self) -> Option<ShimEvent> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] has something to do next.
    #[must_use]
    pub fn poll_at(&self) -> Option<Instant> {
        let mut first = sooner(self.echo.poll_at(), self.fragments.poll_at());
        first = sooner(first, self.reassembler.poll_at());
        first = sooner(first, self.local_poll_at());
        for uplink in self.uplinks.values() {
            first = sooner(first, uplink.neighbors.poll_at());
        }
        first
    }

    /// What became of all packets. Frames that [`Self::poll_transmit`] lent out are still held.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Packets kept for later.
    #[must_use]
    pub fn held(&self) -> usize {
        let neighbors: usize = self
            .uplinks
            .values()
            .map(|uplink| uplink.neighbors.held())
            .sum();
        let fragments = self.fragments.held() + self.reassembler.held();
        neighbors + fragments + self.transmit.held() + self.to_relay.len()
    }

    /// Who owns which ports.
    #[must_use]
    pub fn ports(&self) -> &PortTable {
        &self.ports
    }

    /// All routes.
    #[must_use]
    pub fn fib(&self) -> &Fib {
        &self.fib
    }

    /// All uplinks at this moment.
    #[must_use]
    pub fn uplinks(&self, now: Instant) -> Vec<UplinkSnapshot> {
        let uplinks = self.uplinks.values();
        uplinks.map(|uplink| uplink.snapshot(now)).collect()
    }
}

/// The earlier of two moments that may never come.
#[inline]
fn sooner(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
