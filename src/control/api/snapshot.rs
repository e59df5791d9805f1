//! The state that `show` shows, as plain data.
//!
//! Field names are those of the JSON and part of the interface: they may be added to, not changed.
//! Directions are seen from the NOS's side: what a container sends is received.

use core::net::{IpAddr, Ipv6Addr, SocketAddr};
use core::time::Duration;
use std::collections::BTreeMap;
use std::path::Path;

use ipnet::IpNet;
use nos_shim::drop::{DropCounters, Ledger};
use nos_shim::ident::{MacAddr, VrfId};
use nos_shim::ports::{AddressMode, ClaimKind, Holding, Owner, PortRange, PortRule, Transport};
use serde::{Deserialize, Serialize};

use crate::control::config::{self, VrfName};
use crate::data::device::LinkState as DeviceState;

/// How an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    /// It carries packets.
    Up,
    /// It exists, but is down.
    Down,
    /// It has vanished, and is being put right.
    Gone,
    /// It is not there yet, or not any more: [`Link::reason`] says what it waits for.
    Waiting,
    /// It cannot be: [`Link::reason`] says why.
    Refused,
}

impl From<DeviceState> for LinkState {
    fn from(state: DeviceState) -> Self {
        match state {
            DeviceState::Up => Self::Up,
            DeviceState::Down => Self::Down,
            DeviceState::Gone => Self::Gone,
        }
    }
}

impl core::fmt::Display for LinkState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Gone => "gone",
            Self::Waiting => "waiting",
            Self::Refused => "refused",
        })
    }
}

use crate::data::device::{CaptureStatus, UringReport};
use crate::data::event_loop::{Durations, SLOW, Stage as LoopStage, TurnTimes};

/// Dropped packets by [`DropReason::label`](nos_shim::drop::DropReason::label); only reasons that
/// occurred.
pub type Drops = BTreeMap<String, u64>;

/// Where something comes from.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The configuration file, or what follows from it.
    #[default]
    Config,
    /// A request at run time.
    Runtime,
}

impl Origin {
    /// That of what was, or was not, asked for at run time.
    #[must_use]
    pub fn of(runtime: bool) -> Self {
        match runtime {
            true => Self::Runtime,
            false => Self::Config,
        }
    }
}

impl core::fmt::Display for Origin {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Config => "config",
            Self::Runtime => "runtime",
        })
    }
}

/// A network of containers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// How its containers are reached: `shared`.
    pub mode: String,
    /// Where it comes from.
    pub origin: Origin,
    /// The VRF that its containers are in.
    pub vrf: String,
    /// The uplinks whose addresses they share.
    pub uplinks: Vec<String>,
    /// Those addresses.
    pub addresses: Vec<IpAddr>,
    /// The containers that are in it, attached or not.
    pub containers: Vec<String>,
    /// The pool of those that have addresses of their own and name no other.
    pub pool: Option<String>,
}

/// A pool of addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub kind: PoolKind,
    /// The VRF in which its addresses are.
    pub vrf: String,
    /// The pool that it lies in; `None` of the total one.
    pub inside: Option<String>,
    /// Its addresses, those of pools inside included: the first and the last of each row, of IPv4 where there is both.
    pub ranges: Vec<String>,
    /// How many that are. An IPv4 address and the IPv6 one beside it count as one, here and below.
    pub size: u64,
    /// Those that somebody holds.
    pub in_use: u64,
    /// Those that wait for a workload of their own.
    pub kept: u64,
    /// Those that pools inside have.
    pub in_pools: u64,
    /// Those that anybody may get.
    pub available: u64,
    /// Those that are in no network of an uplink any more.
    pub stray: u64,
    /// By how many it grows and shrinks; `None` of one that keeps its size.
    pub step: Option<u32>,
    /// It grows when fewer are available.
    pub low: Option<u32>,
    /// It shrinks when more are available.
    pub high: Option<u32>,
    /// It has so many at most.
    pub max: Option<u32>,
}

/// What a [`Pool`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolKind {
    /// All networks of a VRF's uplinks, out of which the others are made.
    Total,
    /// One application.
    Application,
    /// A tenant.
    Netspace,
    /// Who names none.
    Default,
}

impl From<config::PoolKind> for PoolKind {
    fn from(kind: config::PoolKind) -> Self {
        match kind {
            config::PoolKind::Application => Self::Application,
            config::PoolKind::Netspace => Self::Netspace,
            config::PoolKind::Default => Self::Default,
        }
    }
}

impl core::fmt::Display for PoolKind {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Total => "total",
            Self::Application => "application",
            Self::Netspace => "netspace",
            Self::Default => "default",
        })
    }
}

/// An address of a pool of which something is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PoolAddress {
    /// The pool.
    pub pool: String,
    /// The address, or that of each family.
    pub addresses: Vec<IpAddr>,
    /// How it is.
    pub state: AddressState,
    /// Whether it is for its workload alone.
    pub reserved: bool,
    /// For what it is, or was.
    pub workload: Option<String>,
    /// Who holds it: a container, or who keeps it for an engine.
    pub holder: Option<String>,
}

/// How a [`PoolAddress`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressState {
    /// Somebody holds it.
    InUse,
    /// It waits for the workload that it is reserved for.
    Reserved,
    /// Nobody holds it any more.
    Released,
}

impl core::fmt::Display for AddressState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::InUse => "in use",
            Self::Reserved => "reserved",
            Self::Released => "released",
        })
    }
}

/// Something that was registered at run time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Registration {
    /// What it is.
    pub kind: RegistrationKind,
    /// The network; the container; the route's prefix and metric; the uplink.
    pub name: String,
    /// The ports, the address or the group; empty of a network, of a container and of a route.
    pub what: Vec<String>,
    /// With whose end it ends.
    pub lease: Option<Lease>,
    /// The process that holds it, or that made the connection which does.
    pub holder: Option<u32>,
    /// Why it is set aside; `None` of what counts.
    pub reason: Option<String>,
}

/// The kinds of [`Registration`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegistrationKind {
    /// A network of containers.
    Network,
    /// A container, with the ports that its keys give it.
    Container,
    /// Ports that a container was given besides.
    Ports,
    /// A static route.
    Route,
    /// An address of an uplink.
    Address,
    /// A multicast group that the NOS is in on an uplink.
    Group,
}

/// With whose end something ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lease {
    /// The container's attachment.
    Attachment,
    /// The connection that asked.
    Connection,
    /// A process.
    Pidfd,
}

/// A container interface that is joined to the relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Index, and above its 16 bits the generation; not used again for 8,192 generations. `None`
    /// while the NOS does not know it.
    pub id: Option<u32>,
    /// The container's name.
    pub name: String,
    /// Its network namespace, as configured.
    pub netns: String,
    /// Where it comes from.
    #[serde(default)]
    pub origin: Origin,
    /// The network that it is in, if any by name.
    #[serde(default)]
    pub network: Option<String>,
    /// MAC address of the container's interface.
    #[serde(with = "text")]
    pub container_mac: MacAddr,
    /// Whose its addresses are: `shared`, the NOS's, or `routed`, its own.
    #[serde(default = "shared")]
    pub mode: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Addresses of its interface itself, with the lengths of their networks, as the daemon has given it.
    #[serde(default)]
    pub link_addresses: Vec<IpNet>,
    /// Where it may open flows to; everywhere if `None`.
    #[serde(default)]
    pub to: Option<Vec<IpNet>>,
    /// Who may open flows to it, if it has addresses of its own; everybody if `None`.
    #[serde(default)]
    pub from: Option<Vec<IpNet>>,
    /// What becomes of what it sends from ports that are not its own.
    #[serde(default)]
    pub outside: Outside,
    /// The link-local address of an uplink that it uses besides.
    #[serde(default)]
    pub link_local: Option<LinkLocal>,
    /// Its device.
    #[serde(flatten)]
    pub link: Link,
}

/// The NOS's link-local address on the link of an uplink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkLocal {
    /// The uplink's name.
    pub uplink: String,
    /// The address.
    pub address: Ipv6Addr,
}

/// An interface of the NOS towards the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    /// The uplink's name.
    pub name: String,
    /// Addresses of the NOS on it.
    pub addresses: Vec<IpNet>,
    /// Those of them that were added at run time.
    #[serde(default)]
    pub runtime_addresses: Vec<IpNet>,
    /// Multicast groups of which others on its link are told that the NOS is in them.
    #[serde(default)]
    pub groups: Vec<IpAddr>,
    /// Those of them that were added at run time.
    #[serde(default)]
    pub runtime_groups: Vec<IpAddr>,
    /// Messages of ARP or Neighbor Discovery by which somebody else used one of its addresses.
    pub address_conflicts: u64,
    /// The VLAN of its interface that it is; `None` for the frames without a tag.
    #[serde(default)]
    pub vlan: Option<u16>,
    /// Its device.
    #[serde(flatten)]
    pub link: Link,
}

/// What attachments and uplinks have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The kind of device: `tap`, `veth`, `bridge:NAME`, `existing`, `packet`, `memory`.
    pub device: String,
    /// The interface's name: inside the container, or on the host for an uplink.
    pub interface: String,
    /// Whether it works.
    pub state: LinkState,
    /// What it waits for, why it was refused, or what is left out of it.
    #[serde(default)]
    pub reason: Option<String>,
    /// Since when it has waited or been refused, in seconds of Unix time.
    #[serde(default)]
    pub since: Option<u64>,
    /// MAC address of the NOS on it.
    #[serde(with = "text")]
    pub mac: MacAddr,
    /// The number of its VRF.
    #[serde(with = "VrfNumber")]
    pub vrf: VrfId,
    /// The VRF's name.
    #[serde(default = "default_vrf")]
    pub vrf_name: String,
    /// Octets of the longest IP packet.
    pub mtu: u16,
    /// Offloads in use: `checksum`, `tso4`, `tso6`, `uso`, `tunnel`; none is empty.
    pub offload: Vec<String>,
    /// Received from it.
    pub rx: Traffic,
    /// Sent to it.
    pub tx: Traffic,
    /// Dropped of what came from it or was for it.
    pub drops: Drops,
    /// Packets that the kernel dropped because the device's queue was full, where it says.
    pub device_tx_dropped: Option<u64>,
    /// Super-frames of more than 64 KiB that came from it, and were cut.
    #[serde(default)]
    pub long_super_frames: u64,
    /// Frames that the device refused because of what they leave to it: by `checksum`, `tso4`,
    /// `tso6`, `uso`, `tunnel`, or `runs` of datagrams. Only kinds that occurred.
    #[serde(default)]
    pub refused: BTreeMap<String, u64>,
}

/// Packets and their octets, link-layer headers included. A super-frame counts as one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Octets.
    pub octets: u64,
}

/// A range of ports and its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The number of the VRF in which it counts.
    #[serde(with = "VrfNumber")]
    pub vrf: VrfId,
    /// The VRF's name.
    #[serde(default = "default_vrf")]
    pub vrf_name: String,
    /// The addresses of the NOS on which it counts; `None` is every address of the VRF.
    pub addresses: Option<Vec<IpAddr>>,
    /// The protocol.
    pub protocol: Protocol,
    /// The ports.
    #[serde(with = "text")]
    pub range: PortRange,
    /// What the owner does with them.
    pub kind: PortKind,
    /// The container's name, or the service's for [`PortKind::Service`].
    pub owner: String,
    /// Where it comes from.
    #[serde(default)]
    pub origin: Origin,
    /// Who may open flows to them; everybody if `None`.
    #[serde(default)]
    pub from: Option<Vec<IpNet>>,
    /// Of which packets they get some alone; all if `None`.
    #[serde(default)]
    pub state: Option<PortState>,
}

/// Packets that ports get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortState {
    /// Those of flows that the owner has opened.
    Established,
}

/// What becomes of what a container sends from ports that are not its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outside {
    /// It is refused.
    #[default]
    Drop,
    /// It opens flows, as long as nobody else has the port.
    Learn,
}

impl From<nos_shim::ports::Outside> for Outside {
    fn from(outside: nos_shim::ports::Outside) -> Self {
        match outside {
            nos_shim::ports::Outside::Drop => Self::Drop,
            nos_shim::ports::Outside::Learn => Self::Learn,
        }
    }
}

impl Port {
    /// Ports of one holding for which one rule holds.
    #[must_use]
    pub fn under(self, range: PortRange, rule: &PortRule) -> Self {
        Self {
            range,
            from: rule.from.as_ref().map(|from| from.prefixes().to_vec()),
            state: rule.established.then_some(PortState::Established),
            ..self
        }
    }
}

impl From<&Holding<'_>> for Port {
    fn from(holding: &Holding<'_>) -> Self {
        let kind = match (holding.owner, holding.claim.kind) {
            (Owner::Nos, _) => PortKind::Service,
            (Owner::Attachment(_), ClaimKind::Listen) => PortKind::Listen,
            (Owner::Attachment(_), ClaimKind::Ephemeral) => PortKind::Ephemeral,
        };
        Self {
            vrf: holding.vrf,
            vrf_name: default_vrf(),
            addresses: holding.addresses.map(<[_]>::to_vec),
            protocol: holding.claim.transport.into(),
            range: holding.claim.range,
            kind,
            owner: holding.name.to_string(),
            origin: Origin::Config,
            from: None,
            state: None,
        }
    }
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl From<Transport> for Protocol {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Udp => Self::Udp,
        }
    }
}

/// What the owner of ports does with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortKind {
    /// A container is reached on them.
    Listen,
    /// A container opens flows of its own from them.
    Ephemeral,
    /// A service of the NOS's own.
    Service,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The number of the VRF that it is in.
    #[serde(with = "VrfNumber")]
    pub vrf: VrfId,
    /// The VRF's name.
    #[serde(default = "default_vrf")]
    pub vrf_name: String,
    /// Destinations.
    pub prefix: IpNet,
    /// Where it comes from.
    pub source: RouteSource,
    /// Preference among routes to the same prefix: the lowest wins.
    pub metric: u32,
    /// What happens to packets.
    pub action: RouteAction,
    /// Where they go, for [`RouteAction::Via`] and [`RouteAction::Connected`].
    pub next_hops: Vec<NextHop>,
    /// The container that gets them, for [`RouteAction::Attached`].
    #[serde(default)]
    pub container: Option<String>,
    /// Who asked for it.
    #[serde(default)]
    pub origin: Origin,
}

/// Where a route comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteSource {
    /// An uplink's address.
    Connected,
    /// A container's own address.
    Attached,
    /// The configuration.
    Static,
}

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteAction {
    /// Forward to a router.
    Via,
    /// Deliver on the link.
    Connected,
    /// Deliver to the NOS itself and its containers.
    Local,
    /// Deliver to the container that has the address for its own.
    Attached,
    /// Discard silently.
    Blackhole,
    /// Refuse with an ICMP error.
    Unreachable,
}

/// Where packets of a route go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// The router; none on a connected network.
    pub address: Option<IpAddr>,
    /// The uplink's name.
    pub uplink: String,
}

/// A host or router on an uplink's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbor {
    /// The uplink's name.
    pub uplink: String,
    /// The name of the uplink's VRF.
    #[serde(default = "default_vrf")]
    pub vrf_name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address, once known.
    #[serde(with = "optional_text")]
    pub mac: Option<MacAddr>,
    /// How well it is known.
    pub state: NeighborState,
    /// Milliseconds since it was last heard of, or first asked for.
    pub age_ms: u64,
    /// Packets that wait for its MAC address.
    pub queued: u64,
}

/// The states of RFC 4861 §7.3.2, for ARP as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NeighborState {
    /// Asked, no answer yet.
    Incomplete,
    /// Confirmed of late.
    Reachable,
    /// Not confirmed of late, and not needed since.
    Stale,
    /// Needed; waiting for a confirmation from above.
    Delay,
    /// Being asked again.
    Probe,
    /// Did not answer.
    Failed,
}

/// A flow that a policy has the NOS remember.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// The number of the VRF that it is in.
    #[serde(with = "VrfNumber")]
    pub vrf: VrfId,
    /// The VRF's name.
    #[serde(default = "default_vrf")]
    pub vrf_name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The container's name.
    pub owner: String,
    /// The container's end.
    pub local: SocketAddr,
    /// The other end; its port is 0 of a flow that may come from any.
    pub remote: SocketAddr,
    /// How far it has come.
    pub state: FlowState,
    /// Who has opened it, or is expected to.
    pub opener: FlowOpener,
    /// Whether nobody owns the container's port, so that it is the container's as long as the flow
    /// lives.
    pub learnt: bool,
    /// Milliseconds since it was last used.
    pub idle_ms: u64,
    /// Milliseconds until it is forgotten, if it is not used.
    pub left_ms: u64,
}

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowState {
    /// It has been announced, and may come.
    Expected,
    /// UDP that only one side has sent.
    Unreplied,
    /// UDP that both sides have sent.
    Replied,
    /// TCP that is being opened.
    Opening,
    /// TCP on which data may flow.
    Established,
    /// TCP on which one side has said all.
    Closing,
    /// TCP that has ended.
    Closed,
}

impl FlowState {
    /// As it is written.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Expected => "expected",
            Self::Unreplied => "unreplied",
            Self::Replied => "replied",
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Closed => "closed",
        }
    }
}

/// Who opens a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowOpener {
    /// The container.
    Owner,
    /// The other end.
    Peer,
}

/// All counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// What became of the packets in each stage: `relay`, `nos`.
    pub stages: Vec<Stage>,
    /// The rings of the channel.
    pub rings: Vec<Ring>,
    /// The interfaces towards the network.
    pub uplinks: Vec<Uplink>,
    /// How long the turns of each data thread took.
    #[serde(default)]
    pub turns: Vec<Turns>,
    /// The captures in use.
    #[serde(default)]
    pub captures: Vec<Capture>,
}

/// What became of the packets that one stage has seen, see [`Ledger`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// `relay` or `nos`.
    pub name: String,
    /// Packets taken in.
    pub received: u64,
    /// Packets made here.
    pub originated: u64,
    /// Packets handed on.
    pub sent: u64,
    /// Packets whose way ends here by design.
    pub consumed: u64,
    /// Packets kept for later.
    pub held: u64,
    /// Packets dropped.
    pub drops: Drops,
}

/// A ring of the channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// `relay-to-nos` or `nos-to-relay`.
    pub name: String,
    /// Bursts that it holds at most.
    pub capacity: u64,
    /// Bursts that it holds now.
    pub depth: u64,
    /// Packets dropped because it was full.
    pub full_drops: u64,
}

/// How long the turns of one data thread took, as its watchdog saw them. What makes a turn long makes
/// all other interfaces wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turns {
    /// `data`; or `relay` and `nos`.
    pub thread: String,
    /// Microseconds that something must take to count as slow.
    pub slow_us: u64,
    /// Whole turns, and the stages of turns: `turn`, `commands`, `receive`, `engine`, `transmit`.
    pub stages: Vec<TurnStage>,
    /// How the thread hands bursts to the kernel.
    pub io_uring: IoUring,
}

/// What a data thread does by io_uring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoUring {
    /// `used`; `off` by configuration; `unavailable`; or `failed` while in use.
    pub state: String,
    /// Why it is unavailable, or has failed.
    pub reason: Option<String>,
    /// Whether TAPs are written to by it, not packet sockets alone.
    pub taps: bool,
    /// Batches submitted.
    pub batches: u64,
    /// Frames in those batches that the kernel took.
    pub frames: u64,
}

impl IoUring {
    /// Of a thread that has a ring.
    #[must_use]
    pub fn used(report: &UringReport) -> Self {
        let reason = report.failed.map(|errno| errno.desc().to_owned());
        let state = if reason.is_some() { "failed" } else { "used" };
        Self {
            state: state.to_owned(),
            reason,
            taps: report.taps,
            batches: report.batches,
            frames: report.frames,
        }
    }

    /// Of a thread that has none.
    #[must_use]
    pub fn unused(state: &str, reason: Option<String>) -> Self {
        Self {
            state: state.to_owned(),
            reason,
            taps: false,
            batches: 0,
            frames: 0,
        }
    }
}

/// How long one stage of turns took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnStage {
    /// Its name.
    pub name: String,
    /// How often it was slow.
    pub slow: u64,
    /// The longest that it ever took, in microseconds.
    pub longest_us: u64,
}

impl Turns {
    /// What a data thread's watchdog has counted.
    #[must_use]
    pub fn new(thread: &str, times: &TurnTimes, io_uring: IoUring) -> Self {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let row = |name: &str, durations: Durations| TurnStage {
            name: name.to_owned(),
            slow: durations.slow,
            longest_us: micros(durations.longest),
        };
        let stages = LoopStage::ALL.map(|stage| row(stage.label(), times.stage(stage)));
        Self {
            thread: thread.to_owned(),
            slow_us: micros(SLOW),
            stages: core::iter::once(row("turn", times.turns))
                .chain(stages)
                .collect(),
            io_uring,
        }
    }
}

/// The capture of a container or an uplink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// The container's or the uplink's name.
    pub name: String,
    /// The file.
    pub path: String,
    /// Frames recorded.
    pub recorded: u64,
    /// Frames left out, as the file could not be written fast enough.
    pub missed: u64,
    /// Whether writing has failed, and the capture has ended.
    pub failed: bool,
}

impl Capture {
    /// A capture of this name, and how it fares.
    #[must_use]
    pub fn new(name: &str, path: &Path, status: CaptureStatus) -> Self {
        Self {
            name: name.to_owned(),
            path: path.display().to_string(),
            recorded: status.recorded,
            missed: status.missed,
            failed: status.failed,
        }
    }
}

impl Stage {
    /// A stage's ledger, and the packets that it holds.
    #[must_use]
    pub fn new(name: &str, ledger: &Ledger, held: u64) -> Self {
        Self {
            name: name.to_owned(),
            received: ledger.received,
            originated: ledger.originated,
            sent: ledger.sent,
            consumed: ledger.consumed,
            held,
            drops: drops(&ledger.drops),
        }
    }

    /// Packets that went in but are nowhere; negative if some were counted twice. Not zero means a
    /// bug.
    #[must_use]
    pub fn unaccounted(&self) -> i128 {
        let dropped: u128 = self
            .drops
            .values()
            .map(|&packets| u128::from(packets))
            .sum();
        let sum = |numbers: &[u64]| {
            numbers
                .iter()
                .map(|&number| i128::from(number))
                .sum::<i128>()
        };
        sum(&[self.received, self.originated])
            - sum(&[self.sent, self.consumed, self.held])
            - i128::try_from(dropped).unwrap_or(i128::MAX)
    }
}

/// The reasons that occurred, by label.
#[must_use]
pub fn drops(counters: &DropCounters) -> Drops {
    let label = |(reason, packets): (nos_shim::drop::DropReason, _)| (reason.to_string(), packets);
    counters.nonzero().map(label).collect()
}

/// What a daemon that names no mode knows.
fn shared() -> String {
    AddressMode::Shared.to_string()
}

/// What a daemon that names no VRF knows.
fn default_vrf() -> String {
    VrfName::Default.to_string()
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "VrfId")]
struct VrfNumber(u16);

/// Values that are text in JSON, in the form of their `Display` and `FromStr`.
pub(super) mod text {
    use core::fmt::Display;
    use core::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(in crate::control::api) fn serialize<T: Display, S: Serializer>(
        value: &T,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(in crate::control::api) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// The same for values that may be absent.
mod optional_text {
    use core::fmt::Display;
    use core::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<T: Display, S: Serializer>(
        value: &Option<T>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => to.collect_str(value),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, T, D>(from: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| text.parse().map_err(D::Error::custom))
            .transpose()
    }
}
