//! What `show` shows, gathered from the data threads, the kernel and the control thread.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use nos_shim::drop::DropReason;
use nos_shim::fib::{Action, Route as FibRoute, Source};
use nos_shim::ident::{Interface, UplinkId};
use nos_shim::neighbor::{NeighborState as ShimNeighborState, NeighborStatus};
use nos_shim::offload::Capabilities;
use nos_shim::ports::Grant;
use nos_shim::shim::UplinkSnapshot;

use crate::control::api::snapshot::{
    self, Attachment, Capture, Counters, Link, LinkState, Neighbor, NeighborState, NextHop, Port,
    Ring, Route, RouteAction, RouteSource, Stage, Traffic, Turns, Uplink,
};
use crate::control::api::{Refusal, RefusalCode, Response, Table};
use crate::control::attach::{link, link_statistics};
use crate::data::device::{CaptureWriter, DeviceKind, Inspector};
use crate::data::event_loop::{DeviceReport, Stopped};
use crate::data::relay::{AttachmentCounters, AttachmentStatus};

use super::Daemon;
use super::container::{AttachedContainer, container_mac, relay_mac};
use super::uplink::OpenUplink;

impl Daemon {
    /// Answers a question about the present state.
    pub(super) fn show(&self, table: Table) -> Response {
        let answer = match table {
            Table::Attachments => self.attachments().map(Response::Attachments),
            Table::Ports => self.ports().map(Response::Ports),
            Table::Routes => self.routes().map(Response::Routes),
            Table::Neighbors => self.neighbors().map(Response::Neighbors),
            Table::Counters => self.counters().map(Response::Counters),
        };
        answer.unwrap_or_else(|Stopped| {
            let refusal = Refusal::new(RefusalCode::Unavailable, "a data thread has stopped");
            Response::Refused(refusal)
        })
    }

    fn attachments(&self) -> Result<Vec<Attachment>, Stopped> {
        let statuses = self
            .plane
            .relay_pages(|relay, first| relay.attachments(first))?;
        let statuses: HashMap<_, _> = statuses.iter().map(|status| (status.id, status)).collect();
        let devices = self.devices()?;
        let shown = self.containers.iter().map(|container| {
            let device = devices.get(&Interface::Attachment(container.id));
            attachment(container, statuses.get(&container.id).copied(), device)
        });
        Ok(shown.collect())
    }

    fn ports(&self) -> Result<Vec<Port>, Stopped> {
        let grants = self
            .plane
            .nos_pages(|nos, after: Option<Grant>| nos.ports().page(after.as_ref()))?;
        let holdings = grants.iter().flat_map(Grant::holdings);
        Ok(holdings.map(|holding| Port::from(&holding)).collect())
    }

    fn routes(&self) -> Result<Vec<Route>, Stopped> {
        let names = self.uplink_names();
        let read = self.plane.nos_pages(|nos, cursor| nos.fib().page(cursor))?;
        // A route may have been read twice; the later one is the newer.
        let routes: BTreeMap<_, _> = read
            .into_iter()
            .map(|route| ((route.vrf, route.prefix), route))
            .collect();
        let shown = routes.values();
        Ok(shown.filter_map(|entry| route(entry, &names)).collect())
    }

    fn neighbors(&self) -> Result<Vec<Neighbor>, Stopped> {
        let names = self.uplink_names();
        let now = self.plane.now();
        let neighbors = self
            .plane
            .nos_pages(move |nos, cursor| nos.neighbors(cursor, now))?;
        let shown = neighbors.iter().map(|(uplink, status)| {
            let named = names.iter().find(|(id, _)| id == uplink);
            neighbor(named.map_or("", |(_, name)| name), status)
        });
        Ok(shown.collect())
    }

    fn devices(&self) -> Result<HashMap<Interface, DeviceReport>, Stopped> {
        let devices = self.plane.devices()?.into_iter();
        Ok(devices.map(|device| (device.interface, device)).collect())
    }

    fn counters(&self) -> Result<Counters, Stopped> {
        let relay = self.plane.on_relay(|relay| {
            (
                *relay.ledger(),
                relay.held(),
                relay.depth(),
                relay.capacity(),
            )
        })?;
        let nos = self.plane.on_nos(|nos| {
            (
                *nos.ledger(),
                nos.held(),
                nos.channel().depth(),
                nos.channel().capacity(),
            )
        })?;
        let devices = self.devices()?;
        let snapshots = self.plane.nos_pages(|nos, first| nos.uplinks(first))?;
        let uplinks = self.uplinks.iter().filter_map(|uplink| {
            let snapshot = snapshots
                .iter()
                .find(|snapshot| snapshot.config.id == uplink.id)?;
            let device = devices.get(&Interface::Uplink(uplink.id));
            Some(shown_uplink(uplink, snapshot, device))
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
                Stage::new("nos", &nos.0, nos.1 as u64),
            ],
            rings: vec![
                ring(
                    "relay-to-nos",
                    nos.2,
                    nos.3,
                    relay.0.drops.of(DropReason::RingFull),
                ),
                ring(
                    "nos-to-relay",
                    relay.2,
                    relay.3,
                    nos.0.drops.of(DropReason::RingFull),
                ),
            ],
            uplinks: uplinks.collect(),
            turns: self.turns()?,
            captures: self.captures(),
        })
    }

    fn turns(&self) -> Result<Vec<Turns>, Stopped> {
        let threads = self.plane.turn_times()?;
        let shown = threads.iter().map(|(name, times)| Turns::new(name, times));
        Ok(shown.collect())
    }

    fn captures(&self) -> Vec<Capture> {
        let containers = self.containers.iter();
        let containers =
            containers.map(|container| (container.config.name.as_str(), &container.capture));
        let uplinks = self.uplinks.iter();
        let uplinks = uplinks.map(|uplink| (uplink.config.name.as_str(), &uplink.capture));
        let shown = |(name, writer): (&str, &Option<CaptureWriter>)| {
            let writer = writer.as_ref()?;
            Some(Capture::new(name, writer.path(), writer.status()))
        };
        uplinks.chain(containers).filter_map(shown).collect()
    }

    fn uplink_names(&self) -> Vec<(UplinkId, String)> {
        let named = |uplink: &OpenUplink| (uplink.id, uplink.config.name.to_string());
        self.uplinks.iter().map(named).collect()
    }
}

fn attachment(
    container: &AttachedContainer,
    status: Option<&AttachmentStatus>,
    device: Option<&DeviceReport>,
) -> Attachment {
    let config = &container.config;
    let counters = status.map_or_else(AttachmentCounters::default, |status| status.counters);
    let mut drops = counters.drops;
    if let Some(device) = device {
        drops.merge(&device.counters.received.drops);
        drops.merge(&device.counters.sent.drops);
    }
    Attachment {
        id: container.id,
        name: config.name.to_string(),
        netns: config.netns.to_string(),
        container_mac: container_mac(config),
        addresses: config.addresses.clone(),
        link: Link {
            device: config.device.to_string(),
            interface: config.interface.to_string(),
            state: container_state(container),
            mac: relay_mac(config),
            vrf: config.vrf,
            mtu: config.mtu.octets(),
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
            device_tx_dropped: kernel_drops(container, device),
        },
    }
}

/// What the kernel lost of the container's packets because the relay did not read them in time.
fn kernel_drops(container: &AttachedContainer, device: Option<&DeviceReport>) -> Option<u64> {
    let device = device?;
    match device.kind {
        DeviceKind::Tap | DeviceKind::PlainTap => {
            let interface = container.config.interface.as_str();
            let statistics = link_statistics(&container.namespace().ok()?, interface).ok()?;
            Some(statistics.tx_dropped)
        }
        DeviceKind::Packet | DeviceKind::Memory => Some(container.inspector.kernel_drops()),
    }
}

fn shown_uplink(
    uplink: &OpenUplink,
    snapshot: &UplinkSnapshot,
    device: Option<&DeviceReport>,
) -> Uplink {
    let config = &uplink.config;
    let mut drops = nos_shim::drop::DropCounters::default();
    if let Some(device) = device {
        drops.merge(&device.counters.received.drops);
        drops.merge(&device.counters.sent.drops);
    }
    let counters = snapshot.counters;
    Uplink {
        name: config.name.to_string(),
        addresses: config.addresses.clone(),
        address_conflicts: counters.address_conflicts,
        link: Link {
            device: match config.device {
                crate::control::config::UplinkDevice::Packet(_) => "packet".to_owned(),
                crate::control::config::UplinkDevice::Tap(_) => "tap".to_owned(),
            },
            interface: config.device.interface().to_string(),
            state: state(&uplink.inspector, uplink.gone),
            mac: uplink.mac,
            vrf: config.vrf,
            mtu: config.mtu.octets(),
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
            device_tx_dropped: device.map(|_| uplink.inspector.kernel_drops()),
        },
    }
}

/// The container may set its interface down, which its device does not tell.
fn container_state(container: &AttachedContainer) -> LinkState {
    let interface = container.config.interface.as_str();
    let namespace = container.namespace().ok();
    let inside = namespace.and_then(|namespace| link(&namespace, interface).ok());
    match (state(&container.inspector, container.gone), inside) {
        (LinkState::Up, Some(None)) => LinkState::Gone,
        (LinkState::Up, Some(Some(facts))) if !facts.up => LinkState::Down,
        (state, _) => state,
    }
}

fn state(inspector: &Inspector, gone: bool) -> LinkState {
    match gone {
        true => LinkState::Gone,
        false => inspector.link(),
    }
}

fn offload(device: &DeviceReport) -> Vec<String> {
    let names = [
        (Capabilities::CHECKSUM, "checksum"),
        (Capabilities::TSO4, "tso4"),
        (Capabilities::TSO6, "tso6"),
        (Capabilities::USO, "uso"),
    ];
    let used = names
        .iter()
        .filter(|(one, _)| device.capabilities.contains(*one));
    used.map(|(_, name)| (*name).to_owned()).collect()
}

fn route(entry: &FibRoute, names: &[(UplinkId, String)]) -> Option<Route> {
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
        Source::Static { .. } => RouteSource::Static,
    };
    let metric = u32::from(entry.source.metric());
    Some(Route {
        vrf: entry.vrf,
        prefix: entry.prefix,
        source,
        metric,
        action,
        next_hops,
    })
}

fn neighbor(uplink: &str, status: &NeighborStatus) -> Neighbor {
    Neighbor {
        uplink: uplink.to_owned(),
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
