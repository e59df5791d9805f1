//! What `show` shows, gathered from the data threads, the kernel and the control thread.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, UNIX_EPOCH};

use ipnet::IpNet;
use nos_shim::drop::{DropCounters, DropReason};
use nos_shim::fib::{Action, Route as FibRoute, Source};
use nos_shim::flows::{FlowState as ShimFlowState, FlowStatus, Opener, Phase};
use nos_shim::ident::{AttachmentId, Interface, UplinkId, VrfId};
use nos_shim::neighbor::{NeighborState as ShimNeighborState, NeighborStatus};
use nos_shim::offload::Capabilities;
use nos_shim::ports::{AddressMode, Grant, Holding, Owner};
use nos_shim::shim::UplinkSnapshot;
use nos_shim::vlan::VlanId;

use crate::control::api::snapshot::{
    self, Attachment, Capture, Counters, Flow, FlowOpener, FlowState, IoUring, Lease, Link,
    LinkLocal, LinkState, Neighbor, NeighborState, NextHop, Origin, Port, Ring, Route, RouteAction,
    RouteSource, Stage, Traffic, Turns, Uplink,
};
use crate::control::api::{Refusal, RefusalCode, Response, Table};
use crate::control::attach::link_by_index;
use crate::control::config::{
    self, Config, ContainerNetwork, Holder, Name, Registration, RegistrationKind, UplinkDevice,
    VrfName,
};
use crate::control::kernel::LinkFacts;
use crate::control::plan::{Claim, Entity, claim};
use crate::data::device::{CaptureWriter, DeviceKind, Refusals};
use crate::data::event_loop::{DeviceReport, Stopped};
use crate::data::relay::{AttachmentCounters, AttachmentStatus};

use super::Daemon;
use super::containers::relay_mac;
use super::data_plane::NoUring;
use super::live::{LiveDevice, LiveLink, LiveUplink};
use super::standing::Condition;

impl Daemon {
    /// Answers a question about the present state.
    pub(super) fn show(&self, table: Table) -> Response {
        let answer = match table {
            Table::Networks => Ok(Response::Networks(self.networks())),
            Table::Attachments => self.attachments().map(Response::Attachments),
            Table::Ports => self.ports().map(Response::Ports),
            Table::Routes => self.routes().map(Response::Routes),
            Table::Neighbors => self.neighbors().map(Response::Neighbors),
            Table::Flows => self.flows().map(Response::Flows),
            Table::Counters => self.counters().map(Response::Counters),
            Table::Registrations => Ok(Response::Registrations(self.registrations())),
            Table::Pools => Ok(Response::Pools(self.pools())),
            Table::PoolAddresses => Ok(Response::PoolAddresses(self.pool_addresses())),
        };
        answer.unwrap_or_else(|Stopped| {
            let refusal = Refusal::new(RefusalCode::Unavailable, "a data thread has stopped");
            Response::Refused(refusal)
        })
    }

    /// What was registered at run time, and what of it is set aside.
    fn registrations(&self) -> Vec<snapshot::Registration> {
        let registry = &self.registry;
        let accepted = registry.overlay.registrations().into_iter();
        let accepted = accepted.map(|one| self.registration(one, None));
        let aside = registry.aside.registrations();
        let aside = aside.map(|(one, reason)| self.registration(one, Some(reason.to_owned())));
        accepted.chain(aside).collect()
    }

    fn registration(&self, one: Registration, reason: Option<String>) -> snapshot::Registration {
        let (kind, of_ports) = match one.kind {
            RegistrationKind::Network => (snapshot::RegistrationKind::Network, false),
            RegistrationKind::Container => (snapshot::RegistrationKind::Container, false),
            RegistrationKind::Ports => (snapshot::RegistrationKind::Ports, true),
            RegistrationKind::Route => (snapshot::RegistrationKind::Route, false),
            RegistrationKind::Address => (snapshot::RegistrationKind::Address, false),
            RegistrationKind::Group => (snapshot::RegistrationKind::Group, false),
        };
        let (lease, holder) = match one.holder {
            None => (of_ports.then_some(Lease::Attachment), None),
            Some(Holder::Connection(number)) => {
                let peer = self.connections.get(&number);
                let pid = peer.and_then(|peer| u32::try_from(peer.pid).ok());
                (Some(Lease::Connection), pid)
            }
            Some(Holder::Process(process)) => (Some(Lease::Pidfd), Some(process.pid)),
        };
        snapshot::Registration {
            kind,
            name: one.name,
            what: one.what,
            lease,
            holder,
            reason,
        }
    }

    /// Networks in the order of the configuration.
    fn networks(&self) -> Vec<snapshot::Network> {
        let Some(config) = self.reconciler.wanted() else {
            return Vec::new();
        };
        let networks = config.networks.iter();
        networks
            .map(|network| self.network(config, network))
            .collect()
    }

    fn network(&self, config: &Config, network: &ContainerNetwork) -> snapshot::Network {
        let shares = |uplink: &&config::Uplink| match &network.uplinks[..] {
            [] => uplink.vrf == network.vrf,
            names => names.contains(&uplink.name),
        };
        let uplinks: Vec<_> = config.uplinks.iter().filter(shares).collect();
        let inside =
            |container: &&config::Container| container.network.as_ref() == Some(&network.name);
        let containers = config.containers.iter().filter(inside);
        let addresses: Vec<IpAddr> = match network.mode.addresses() {
            AddressMode::Shared => {
                let nets = uplinks.iter().flat_map(|uplink| &uplink.addresses);
                nets.map(IpNet::addr).collect()
            }
            AddressMode::Routed => {
                let own = containers.clone().flat_map(|it| &it.addresses);
                own.copied().collect()
            }
        };
        snapshot::Network {
            name: network.name.to_string(),
            mode: network.mode.to_string(),
            origin: Origin::of(self.registry.overlay.has_network(&network.name)),
            vrf: network.vrf.to_string(),
            uplinks: uplinks
                .iter()
                .map(|uplink| uplink.name.to_string())
                .collect(),
            addresses,
            containers: containers
                .map(|container| container.name.to_string())
                .collect(),
            pool: network.pool.as_ref().map(ToString::to_string),
        }
    }

    fn attachments(&self) -> Result<Vec<Attachment>, Stopped> {
        let statuses = self
            .live
            .plane
            .relay_pages(|relay, first| relay.attachments(first))?;
        let statuses: HashMap<_, _> = statuses.iter().map(|status| (status.id, status)).collect();
        let devices = self.devices()?;
        let shown = self.container_names().into_iter().filter_map(|name| {
            let id = self
                .live
                .containers
                .get(&name)
                .map(|container| container.id);
            let status = id.and_then(|id| statuses.get(&id).copied());
            let device = id.and_then(|id| devices.get(&Interface::Attachment(id)));
            self.attachment(&name, status, device)
        });
        Ok(shown.collect())
    }

    /// Containers in the order of the configuration, and those that cannot be taken away.
    fn container_names(&self) -> Vec<Name> {
        let wanted = self.reconciler.wanted();
        let wanted = wanted.map_or(&[][..], |wanted| &wanted.containers);
        let mut names: Vec<_> = wanted.iter().map(|one| one.name.clone()).collect();
        let others = self.live.containers.keys();
        let others: Vec<_> = others
            .filter(|name| !names.contains(name))
            .cloned()
            .collect();
        names.extend(others);
        names
    }

    fn attachment(
        &self,
        name: &Name,
        status: Option<&AttachmentStatus>,
        device: Option<&DeviceReport>,
    ) -> Option<Attachment> {
        let state = &self.reconciler.state;
        let wanted = self.reconciler.wanted();
        let wanted = wanted.and_then(|wanted| wanted.container(name));
        let wanted = wanted.map(|wanted| (claim(wanted, &state.networks), wanted));
        // What is in place, or else what is wanted.
        let claim = state
            .claims
            .get(name)
            .or(wanted.as_ref().map(|(claim, _)| claim))?;
        let link = state.links.get(name);
        let wanted = wanted.as_ref().map(|(_, wanted)| *wanted);
        let (netns, kind, interface, on_link) = match (link, wanted) {
            (Some(it), _) => (&it.netns, &it.device, &it.interface, &it.link_addresses),
            (None, Some(it)) => (&it.netns, &it.device, &it.interface, &it.link_addresses),
            (None, None) => return None,
        };
        let container = self.live.containers.get(name);
        let live = container.and_then(|container| container.link.as_ref());
        let counters = status.map_or_else(AttachmentCounters::default, |status| status.counters);
        let drops = with_drops_of(device, counters.drops);
        let inside = live.and_then(inside);
        let entity = Entity::Container(name.clone());
        Some(Attachment {
            id: container.map(|container| container.id.0),
            name: name.to_string(),
            netns: netns.to_string(),
            origin: Origin::of(self.registry.overlay.has_container(name)),
            network: claim.network.as_ref().map(ToString::to_string),
            container_mac: claim.mac,
            mode: claim.mode.to_string(),
            addresses: claim.addresses.clone(),
            link_addresses: on_link.clone(),
            to: claim.policy.to.as_ref().map(|to| to.prefixes().to_vec()),
            from: from_of(claim),
            outside: claim.policy.outside.into(),
            link_local: claim.link_local.as_ref().map(|shared| LinkLocal {
                uplink: shared.uplink.to_string(),
                address: shared.address,
            }),
            link: Link {
                device: kind.to_string(),
                interface: inside
                    .as_ref()
                    .map_or_else(|| interface.to_string(), |facts| facts.name.clone()),
                state: self.state_of(
                    &[&entity],
                    live.map(|live| container_state(live, inside.as_ref())),
                ),
                reason: self.reason_of(&[&entity]).or_else(|| {
                    let warning = live?.report.warnings.first()?;
                    Some(warning.to_string())
                }),
                since: self.since_of(&[&entity]),
                mac: relay_mac(name),
                vrf: self.live.vrfs.number(&claim.vrf).unwrap_or_default(),
                vrf_name: claim.vrf.to_string(),
                mtu: claim.mtu.octets(),
                offload: device.map(offload).unwrap_or_default(),
                rx: Traffic {
                    packets: counters.rx_packets,
                    octets: counters.rx_octets,
                },
                tx: Traffic {
                    packets: counters.tx_packets,
                    octets: counters.tx_octets,
                },
                drops: snapshot::drops(&drops),
                device_tx_dropped: kernel_drops(live, inside.as_ref(), device),
                long_super_frames: device.map_or(0, |device| device.counters.long),
                refused: device.map(refused).unwrap_or_default(),
            },
        })
    }

    /// How an entity is: as its device says, unless it is not in place.
    fn state_of(&self, entities: &[&Entity], device: Option<LinkState>) -> LinkState {
        let mut entries = entities
            .iter()
            .filter_map(|entity| self.reconciler.standing.of(entity));
        match (entries.next().map(|entry| &entry.condition), device) {
            (_, Some(state)) => state,
            (Some(Condition::Unfit(_) | Condition::Refused(_)), None) => LinkState::Refused,
            (Some(Condition::Waiting(_)), None) => LinkState::Waiting,
            (None, None) => LinkState::Gone,
        }
    }

    fn reason_of(&self, entities: &[&Entity]) -> Option<String> {
        let standing = &self.reconciler.standing;
        let entry = entities.iter().find_map(|entity| standing.of(entity))?;
        Some(entry.condition.reason().to_owned())
    }

    fn since_of(&self, entities: &[&Entity]) -> Option<u64> {
        let standing = &self.reconciler.standing;
        let entry = entities.iter().find_map(|entity| standing.of(entity))?;
        let since = entry.since.duration_since(UNIX_EPOCH).ok()?;
        Some(since.as_secs())
    }

    fn ports(&self) -> Result<Vec<Port>, Stopped> {
        let grants = self.live.plane.ports()?;
        let vrfs = self.live.vrfs.names();
        let holdings = grants.iter().flat_map(Grant::holdings_with_rules);
        let ports = |(holding, parts): (Holding<'_>, Vec<_>)| {
            let port = Port {
                vrf_name: vrf_name(&vrfs, holding.vrf),
                origin: Origin::of(self.is_added(&holding)),
                ..Port::from(&holding)
            };
            let parts = parts.into_iter();
            parts.map(move |(range, rule)| port.clone().under(range, &rule))
        };
        Ok(holdings.flat_map(ports).collect())
    }

    /// Whether ports were given to a container at run time.
    fn is_added(&self, holding: &Holding<'_>) -> bool {
        let Holding { owner, claim, .. } = holding;
        let name: Option<Name> = match owner {
            Owner::Nos => None,
            Owner::Attachment(_) => holding.name.parse().ok(),
        };
        name.is_some_and(|name| {
            let overlay = &self.registry.overlay;
            overlay.has_ports(&name, claim.transport, claim.range, claim.kind)
        })
    }

    fn routes(&self) -> Result<Vec<Route>, Stopped> {
        let names = self.uplink_names();
        let vrfs = self.live.vrfs.names();
        let read = self.live.plane.routes()?;
        // A route may have been read twice; the later one is the newer.
        let routes: BTreeMap<_, _> = read
            .into_iter()
            .map(|route| ((route.vrf, route.prefix), route))
            .collect();
        let containers = self.live.containers.iter();
        let containers = containers.map(|(name, container)| (container.id, name));
        let containers = containers.collect();
        let shown = routes.values().filter_map(|entry| {
            let vrf = vrf_name(&vrfs, entry.vrf);
            route(entry, vrf, &names, &containers)
        });
        let mut shown: Vec<_> = shown.collect();
        for row in &mut shown {
            let metric = u16::try_from(row.metric).unwrap_or(u16::MAX);
            let vrf = vrfs.get(&row.vrf).unwrap_or(&VrfName::Default);
            let added = self.registry.overlay.has_route(vrf, row.prefix, metric);
            row.origin = Origin::of(added && row.source == RouteSource::Static);
        }
        Ok(shown)
    }

    fn flows(&self) -> Result<Vec<Flow>, Stopped> {
        let flows = self.live.plane.flows()?;
        let vrfs = self.live.vrfs.names();
        let shown = flows.iter().map(|(owner, status)| {
            let vrf = self.vrf_of_flow(owner, status.key.vrf);
            flow(owner, (vrf, vrf_name(&vrfs, vrf)), status)
        });
        Ok(shown.collect())
    }

    /// The VRF of a flow: its owner's, where it is on the link of an uplink.
    fn vrf_of_flow(&self, owner: &str, vrf: VrfId) -> VrfId {
        let claim = || {
            let name: Name = owner.parse().ok()?;
            self.reconciler.state.claims.get(&name)
        };
        match vrf.link_index() {
            None => vrf,
            Some(_) => claim()
                .and_then(|claim| self.live.vrfs.number(&claim.vrf))
                .unwrap_or_default(),
        }
    }

    pub(super) fn neighbors(&self) -> Result<Vec<Neighbor>, Stopped> {
        let names = self.uplink_names();
        let neighbors = self.live.plane.neighbors()?;
        let shown = neighbors.iter().map(|(uplink, status)| {
            let named = names.iter().find(|(id, _)| id == uplink);
            let name = named.map_or("", |(_, name)| name);
            let uplink = self
                .live
                .uplinks
                .iter()
                .find(|(_, live)| live.id == *uplink);
            let vrf = uplink.map(|(_, live)| live.network.vrf.clone());
            neighbor(name, &vrf.unwrap_or_default(), status)
        });
        Ok(shown.collect())
    }

    fn devices(&self) -> Result<HashMap<Interface, DeviceReport>, Stopped> {
        let devices = self.live.plane.devices()?.into_iter();
        Ok(devices.map(|device| (device.interface, device)).collect())
    }

    fn counters(&self) -> Result<Counters, Stopped> {
        let relay = self.live.plane.on_relay(|relay| {
            (
                *relay.ledger(),
                relay.held(),
                relay.depth(),
                relay.capacity(),
            )
        })?;
        let nos = self.live.plane.nos_counters()?;
        let devices = self.devices()?;
        let snapshots = self.live.plane.uplinks()?;
        let uplinks = self.live.uplinks.iter().filter_map(|(name, uplink)| {
            let mut all = snapshots.iter();
            let snapshot = all.find(|snapshot| snapshot.config.id == uplink.id)?;
            let device = devices.get(&Interface::Uplink(uplink.id));
            Some(self.uplink(name, uplink, snapshot, device))
        });
        let ring = |name: &str, depth: usize, capacity: usize, full_drops| Ring {
            name: name.to_owned(),
            capacity: capacity as u64,
            depth: depth as u64,
            full_drops,
        };
        Ok(Counters {
            stages: vec![
                Stage::new("relay", &relay.0, relay.1 as u64),
                Stage::new("nos", &nos.ledger, nos.held as u64),
            ],
            rings: vec![
                ring(
                    "relay-to-nos",
                    nos.depth,
                    nos.capacity,
                    relay.0.drops.of(DropReason::RingFull),
                ),
                ring(
                    "nos-to-relay",
                    relay.2,
                    relay.3,
                    nos.ledger.drops.of(DropReason::RingFull),
                ),
            ],
            uplinks: uplinks.collect(),
            turns: self.turns()?,
            captures: self.captures(),
        })
    }

    fn turns(&self) -> Result<Vec<Turns>, Stopped> {
        let threads = self.live.plane.threads()?;
        let shown = threads.iter().map(|thread| {
            let io_uring = match &thread.uring {
                Ok(report) => IoUring::used(report),
                Err(NoUring::Off) => IoUring::unused("off", None),
                Err(NoUring::Unavailable(reason)) => {
                    IoUring::unused("unavailable", Some(reason.to_string()))
                }
            };
            Turns::new(thread.name, &thread.times, io_uring)
        });
        Ok(shown.collect())
    }

    fn captures(&self) -> Vec<Capture> {
        let shown = |(of, writer): (&Entity, &CaptureWriter)| {
            let name = of.name().map_or("", Name::as_str);
            Capture::new(name, writer.path(), writer.status())
        };
        self.live.captures.iter().map(shown).collect()
    }

    fn uplink_names(&self) -> Vec<(UplinkId, String)> {
        let uplinks = self.live.uplinks.iter();
        uplinks
            .map(|(name, uplink)| (uplink.id, name.to_string()))
            .collect()
    }

    fn uplink(
        &self,
        name: &Name,
        uplink: &LiveUplink,
        snapshot: &UplinkSnapshot,
        device: Option<&DeviceReport>,
    ) -> Uplink {
        let drops = with_drops_of(device, DropCounters::default());
        let counters = snapshot.counters;
        let (kind, configured) = self.uplink_device(name);
        let live = uplink.device.as_ref();
        let entities = [&Entity::Uplink(name.clone()), &Entity::Device(name.clone())];
        Uplink {
            name: name.to_string(),
            addresses: uplink.network.addresses.clone(),
            runtime_addresses: self.registry.overlay.addresses_of(name.as_str()).collect(),
            groups: snapshot.groups.clone(),
            runtime_groups: self.registry.overlay.groups_of(name.as_str()).collect(),
            address_conflicts: counters.address_conflicts,
            vlan: self.uplink_vlan(name),
            link: Link {
                device: kind.to_owned(),
                interface: live.map_or(configured, |live| live.facts.name.clone()),
                state: self.state_of(&entities, live.map(uplink_state)),
                reason: self
                    .reason_of(&entities)
                    .or_else(|| live.and_then(|live| live.down.clone())),
                since: self.since_of(&entities),
                mac: uplink.network.mac,
                vrf: snapshot.config.vrf,
                vrf_name: uplink.network.vrf.to_string(),
                mtu: uplink.network.mtu,
                offload: device.map(offload).unwrap_or_default(),
                rx: Traffic {
                    packets: counters.rx_packets,
                    octets: counters.rx_octets,
                },
                tx: Traffic {
                    packets: counters.tx_packets,
                    octets: counters.tx_octets,
                },
                drops: snapshot::drops(&drops),
                device_tx_dropped: live.map(|live| live.inspector.kernel_drops()),
                long_super_frames: device.map_or(0, |device| device.counters.long),
                refused: device.map(refused).unwrap_or_default(),
            },
        }
    }

    /// The VLAN of its interface that an uplink is.
    fn uplink_vlan(&self, name: &Name) -> Option<u16> {
        let open = self.reconciler.state.devices.get(name);
        let wanted = self.reconciler.wanted();
        let wanted = || wanted.and_then(|wanted| wanted.uplink(name)?.vlan);
        let vlan = open.map_or_else(wanted, |open| open.vlan);
        vlan.map(VlanId::get)
    }

    /// The kind of an uplink's device, and the interface as it is configured.
    fn uplink_device(&self, name: &Name) -> (&'static str, String) {
        let open = self.reconciler.state.devices.get(name);
        let wanted = self.reconciler.wanted();
        let wanted = wanted.and_then(|wanted| wanted.uplink(name));
        let device = open.map(|open| &open.device);
        match device.or(wanted.map(|wanted| &wanted.device)) {
            Some(UplinkDevice::Packet(interface)) => ("packet", interface.to_string()),
            Some(UplinkDevice::Tap(interface)) => ("tap", interface.to_string()),
            Some(UplinkDevice::Memif(options)) => ("memif", options.address.to_string()),
            Some(UplinkDevice::Nos) => ("nos", String::new()),
            None => ("", String::new()),
        }
    }
}

/// The name of a VRF by its number.
fn vrf_name(names: &BTreeMap<VrfId, VrfName>, vrf: VrfId) -> String {
    let name = names.get(&vrf);
    name.map_or_else(|| vrf.0.to_string(), ToString::to_string)
}

/// `drops`, and those of a device.
fn with_drops_of(device: Option<&DeviceReport>, mut drops: DropCounters) -> DropCounters {
    if let Some(device) = device {
        drops.merge(&device.counters.received.drops);
        drops.merge(&device.counters.sent.drops);
    }
    drops
}

/// Frames that a device refused, by kind; only kinds that occurred.
fn refused(device: &DeviceReport) -> BTreeMap<String, u64> {
    let Refusals {
        checksum,
        tso4,
        tso6,
        uso,
        tunnel,
        runs,
    } = device.counters.refused;
    [
        ("checksum", checksum),
        ("tso4", tso4),
        ("tso6", tso6),
        ("uso", uso),
        ("tunnel", tunnel),
        ("runs", runs),
    ]
    .into_iter()
    .filter(|&(_, count)| count > 0)
    .map(|(kind, count)| (kind.to_owned(), count))
    .collect()
}

/// Who may come to a container that has addresses of its own; of others, ports say it.
fn from_of(claim: &Claim) -> Option<Vec<IpNet>> {
    let routed = claim.mode == AddressMode::Routed;
    let mut rules = claim.policy.from.iter().filter(|_| routed);
    rules.next().map(|rule| rule.from.prefixes().to_vec())
}

/// What the kernel lost of the container's packets because the relay did not read them in time.
fn kernel_drops(
    live: Option<&LiveLink>,
    inside: Option<&LinkFacts>,
    device: Option<&DeviceReport>,
) -> Option<u64> {
    match device?.kind {
        DeviceKind::Tap | DeviceKind::PlainTap => Some(inside?.statistics.tx_dropped),
        DeviceKind::Packet | DeviceKind::Memory | DeviceKind::Memif => {
            Some(live?.inspector.kernel_drops())
        }
    }
}

/// The interface inside of a container, under whatever name it has by now.
fn inside(live: &LiveLink) -> Option<LinkFacts> {
    let namespace = live.namespace().ok()?;
    link_by_index(&namespace, live.report.index).ok()?
}

/// The container may set its interface down, which its device does not tell.
fn container_state(live: &LiveLink, inside: Option<&LinkFacts>) -> LinkState {
    match (LinkState::from(live.inspector.link()), inside) {
        (LinkState::Up, Some(facts)) if !facts.up => LinkState::Down,
        (state, _) => state,
    }
}

fn uplink_state(live: &LiveDevice) -> LinkState {
    match LinkState::from(live.inspector.link()) {
        LinkState::Up if !(live.facts.up && live.facts.operational) => LinkState::Down,
        state => state,
    }
}

fn offload(device: &DeviceReport) -> Vec<String> {
    let names = [
        (Capabilities::CHECKSUM, "checksum"),
        (Capabilities::TSO4, "tso4"),
        (Capabilities::TSO6, "tso6"),
        (Capabilities::USO, "uso"),
        (Capabilities::TUNNEL, "tunnel"),
    ];
    let used = names
        .iter()
        .filter(|(one, _)| device.capabilities.contains(*one));
    used.map(|(_, name)| (*name).to_owned()).collect()
}

fn route(
    entry: &FibRoute,
    vrf: String,
    names: &[(UplinkId, String)],
    containers: &HashMap<AttachmentId, &Name>,
) -> Option<Route> {
    let name = |id: UplinkId| {
        let named = names.iter().find(|(known, _)| *known == id);
        named.map_or_else(|| id.to_string(), |(_, name)| name.clone())
    };
    let hop = |address: Option<IpAddr>, id| NextHop {
        address,
        uplink: name(id),
    };
    let (action, next_hops) = match &entry.action {
        // Broadcast addresses follow from the connected prefix.
        Action::NoRoute | Action::Broadcast(_) => return None,
        Action::Local(_) => (RouteAction::Local, Vec::new()),
        Action::Attached(_) => (RouteAction::Attached, Vec::new()),
        Action::Connected(uplink) => (RouteAction::Connected, vec![hop(None, *uplink)]),
        Action::Blackhole => (RouteAction::Blackhole, Vec::new()),
        Action::Unreachable => (RouteAction::Unreachable, Vec::new()),
        Action::Via(hops) => {
            let hops = hops
                .as_slice()
                .iter()
                .map(|next| hop(Some(next.gateway), next.uplink));
            (RouteAction::Via, hops.collect())
        }
    };
    let source = match entry.source {
        Source::Local | Source::Connected => RouteSource::Connected,
        Source::Attached => RouteSource::Attached,
        Source::Static { .. } => RouteSource::Static,
    };
    let metric = u32::from(entry.source.metric());
    Some(Route {
        vrf: entry.vrf,
        vrf_name: vrf,
        prefix: entry.prefix,
        source,
        metric,
        action,
        next_hops,
        container: match entry.action {
            Action::Attached(id) => containers.get(&id).map(ToString::to_string),
            _ => None,
        },
        origin: Origin::Config,
    })
}

fn flow(owner: &str, (vrf, vrf_name): (VrfId, String), status: &FlowStatus) -> Flow {
    let FlowStatus { key, opener, .. } = status;
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Flow {
        vrf,
        vrf_name,
        protocol: key.transport.into(),
        owner: owner.to_owned(),
        local: SocketAddr::new(key.local, key.local_port),
        remote: SocketAddr::new(key.remote, key.remote_port),
        state: match status.state {
            ShimFlowState::Expected => FlowState::Expected,
            ShimFlowState::Unreplied => FlowState::Unreplied,
            ShimFlowState::Replied => FlowState::Replied,
            ShimFlowState::Tcp(Phase::Opening) => FlowState::Opening,
            ShimFlowState::Tcp(Phase::Established) => FlowState::Established,
            ShimFlowState::Tcp(Phase::Closing) => FlowState::Closing,
            ShimFlowState::Tcp(Phase::Closed) => FlowState::Closed,
        },
        opener: match opener {
            Opener::Owner => FlowOpener::Owner,
            Opener::Peer => FlowOpener::Peer,
        },
        learnt: status.learnt,
        idle_ms: millis(status.idle),
        left_ms: millis(status.left),
    }
}

fn neighbor(uplink: &str, vrf: &VrfName, status: &NeighborStatus) -> Neighbor {
    Neighbor {
        uplink: uplink.to_owned(),
        vrf_name: vrf.to_string(),
        address: status.address,
        mac: status.mac,
        state: match status.state {
            ShimNeighborState::Incomplete => NeighborState::Incomplete,
            ShimNeighborState::Reachable => NeighborState::Reachable,
            ShimNeighborState::Stale => NeighborState::Stale,
            ShimNeighborState::Delay => NeighborState::Delay,
            ShimNeighborState::Probe => NeighborState::Probe,
            ShimNeighborState::Failed => NeighborState::Failed,
        },
        age_ms: u64::try_from(status.age.as_millis()).unwrap_or(u64::MAX),
        queued: status.queued as u64,
    }
}
