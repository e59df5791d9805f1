//! What relay and NOS tell each other beside packets.
//!
//! Every request of the relay has a number, and is answered once, in the order of the requests:
//!
//! | request | answer | who has to know it |
//! |---|---|---|
//! | [`ToNos::Exchange`] | [`ToRelay::Accepted`], [`ToRelay::Refused`] | every NOS |
//! | [`ToNos::Configure`] | [`ToRelay::Configured`] | a NOS that the relay's control plane configures |
//! | [`ToNos::Query`] | [`ToRelay::Answer`] | every NOS, as far as it has such a table |
//!
//! A NOS that has a configuration of its own, or a table that nobody can read, says so:
//! [`ConfigurationRefused::Unsupported`], [`Answer::Unsupported`]. Nothing else depends on it.
//!
//! Such a NOS tells by itself which [interfaces](ToRelay::Interfaces) it has, whenever they change.

use core::fmt;
use core::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::drop::{DropReason, Ledger};
use crate::fib::{FibFull, Route, RouteChange, RouteCursor};
use crate::flows::{EchoFlow, FlowStatus, NewFlow};
use crate::ident::{AttachmentId, MacAddr, UplinkId, VrfId};
use crate::neighbor::{NeighborCursor, NeighborStatus};
use crate::page::Page;
use crate::ports::{ExchangeRefused, Grant, Registration, RegistrationRefused};
use crate::services::ServiceConfig;
use crate::uplink::{JoinRefused, LinkState, UplinkConfig, UplinkSnapshot};

/// Numbers a request of the relay, which chooses it; the answer bears it. No two requests that wait
/// for their answers have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

impl RequestId {
    /// The number of the next request.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}", self.0)
    }
}

/// A change of who owns which addresses and ports. The NOS grants all of it at once, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// Attachments that go, with their ports and flows. Those that are unknown do no harm.
    pub withdraw: Vec<AttachmentId>,
    /// Addresses, ports and MTU of attachments, in place of what each had before. None may be
    /// there twice.
    pub register: Vec<Registration>,
    /// All that the NOS itself offers in a VRF from then on; `None` changes nothing of it.
    pub services: Option<(VrfId, ServiceConfig)>,
}

/// What the relay's control plane would have a NOS be. Each holds as a whole or not at all, but for
/// [routes](Self::Routes).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Configuration {
    /// All uplinks there are from then on, and of some the multicast groups that they are in. See
    /// [`Shim::set_uplinks`](crate::shim::Shim::set_uplinks).
    Uplinks {
        /// All of them.
        uplinks: Vec<UplinkConfig>,
        /// All groups of each of these uplinks.
        groups: Vec<(UplinkId, Vec<IpAddr>)>,
    },
    /// Whether an uplink's link carries packets.
    Link(UplinkId, LinkState),
    /// An uplink's device is about to be closed: whoever has to be told on its link is told now.
    LeaveLink(UplinkId),
    /// Changes of static routes. If one finds no room, those before it hold.
    Routes(Vec<RouteChange>),
    /// All that the NOS itself offers in a VRF.
    Services(VrfId, ServiceConfig),
    /// Where neighbors of an uplink were when they were last heard of.
    Neighbors(UplinkId, Vec<(IpAddr, MacAddr)>),
    /// Flows that are under way.
    Flows(Vec<NewFlow>),
    /// Echo requests to which replies are under way.
    EchoFlows(Vec<EchoFlow<AttachmentId>>),
}

/// Why a NOS is not as it was to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigurationRefused {
    /// The routes find no room.
    #[error(transparent)]
    FibFull(#[from] FibFull),
    /// Somebody else owns what a service would have.
    #[error(transparent)]
    Services(#[from] RegistrationRefused),
    /// An uplink cannot be in a group; the uplinks hold, and the groups before it.
    #[error(transparent)]
    Groups(#[from] JoinRefused),
    /// It is not for the relay to say.
    #[error("this NOS has a configuration of its own")]
    Unsupported,
}

/// What there is to know of a NOS. Tables are read page by page, as [`crate::page`] says: a query has
/// the cursor of the page before, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// What it did with all packets.
    Counters,
    /// Who owns which ports.
    Ports(Option<Grant>),
    /// Routes that forward.
    Routes(Option<RouteCursor>),
    /// Uplinks.
    Uplinks(Option<usize>),
    /// Neighbors of uplinks.
    Neighbors(Option<NeighborCursor>),
    /// Flows that policies have remembered.
    Flows(Option<u32>),
    /// Echo requests of attachments that wait for replies.
    EchoFlows(Option<u32>),
}

/// What a NOS did with all packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NosCounters {
    /// What became of them.
    pub ledger: Ledger,
    /// Packets that it keeps for later.
    pub held: usize,
    /// Bursts of the relay that wait in the ring.
    pub depth: usize,
    /// Bursts that each ring holds.
    pub capacity: usize,
}

/// The answer to a [`Query`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Query::Counters`].
    Counters(Box<NosCounters>),
    /// To [`Query::Ports`].
    Ports(Page<Grant, Grant>),
    /// To [`Query::Routes`].
    Routes(Page<Route, RouteCursor>),
    /// To [`Query::Uplinks`].
    Uplinks(Page<UplinkSnapshot, usize>),
    /// To [`Query::Neighbors`].
    Neighbors(Page<(UplinkId, NeighborStatus), NeighborCursor>),
    /// To [`Query::Flows`]: each with what operators call its owner.
    Flows(Page<(Arc<str>, FlowStatus), u32>),
    /// To [`Query::EchoFlows`]: each with what operators call its owner.
    EchoFlows(Page<EchoFlow<Arc<str>>, u32>),
    /// This NOS has no such table, or nobody can read it.
    Unsupported,
}

/// Control messages from the relay to the NOS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToNos {
    /// Change who owns what. Answered by [`ToRelay::Accepted`] or [`ToRelay::Refused`].
    Exchange(RequestId, Exchange),
    /// Be something else. Answered by [`ToRelay::Configured`].
    Configure(RequestId, Configuration),
    /// Tell something. Answered by [`ToRelay::Answer`].
    Query(RequestId, Query),
}

/// Control messages from the NOS to the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToRelay {
    /// The exchange holds from the next packet on.
    Accepted(RequestId),
    /// Nothing of the exchange was granted; what was before still holds.
    Refused(RequestId, ExchangeRefused),
    /// The configuration holds from the next packet on, or was refused.
    Configured(RequestId, Result<(), ConfigurationRefused>),
    /// What was asked.
    Answer(RequestId, Answer),
    /// Something happened that nobody asked for.
    Event(NosEvent),
    /// All interfaces of the NOS from now on, at least one. Containers follow: their addresses, routes
    /// and MTU, by exchanges that the relay asks for. The NOS has a new address before it says so, and
    /// an old one until the relay has asked for its withdrawal. What the relay cannot follow changes
    /// nothing; its log and `watch` say why. Not for a NOS that the relay [configures](Configuration).
    Interfaces(Vec<NosInterface>),
}

/// An interface of the NOS towards the network, as far as containers are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NosInterface {
    /// What operators call it, unique.
    pub name: Arc<str>,
    /// Its addresses, each with its network's prefix length; no two interfaces of a VRF share one.
    /// Where it has none, containers get nothing of it.
    pub addresses: Vec<IpNet>,
    /// Octets of the longest IP packet that it sends, 576 to 65535, at least 1280 where it has IPv6.
    pub mtu: u16,
    /// The name of its VRF; none is the default one.
    pub vrf: Option<Arc<str>>,
}

/// News of a NOS for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NosEvent {
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
    /// A policy refuses packets. Of one owner of ports, one reason and one side, three times at once,
    /// then once in ten seconds.
    Refused(PolicyRefusal),
}

/// What a policy refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyRefusal {
    /// Whose policy it is. But for [`DropReason::SourcePort`], the port is its own.
    pub refuser: Refuser,
    /// Who has sent the packet.
    pub sender: RefusedSide,
    /// For what it was dropped.
    pub reason: DropReason,
    /// Its IP protocol.
    pub protocol: u8,
    /// The port on the refuser's side, if it is known.
    pub port: Option<u16>,
    /// The address on the other side.
    pub remote: IpAddr,
    /// The port there.
    pub remote_port: Option<u16>,
    /// Of [`DropReason::SourcePort`]: the container that has learnt the port.
    pub holder: Option<AttachmentId>,
    /// Packets that were dropped since the last event of this kind, this one included.
    pub dropped: u64,
}

/// Whose policy refuses something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refuser {
    /// A container's.
    Attachment(AttachmentId),
    /// That of the NOS's services in a VRF.
    Services(VrfId),
}

/// Who has sent what is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedSide {
    /// The owner of the port.
    Owner,
    /// Who would talk to it.
    Peer,
}
