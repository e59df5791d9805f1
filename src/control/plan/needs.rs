//! Who needs whom: one takes what another one gives up.
//!
//! An entity **needs** another one if what it shall have meets what the other has now: a port, an
//! address, a namespace's interface, a file. It can only be changed after the other one was, and
//! has to be undone before. Entities that need one another in a circle, as two containers that swap
//! ports, change together: they are one group.
//!
//! What both have now cannot meet, and neither can what both shall have: the state was accepted,
//! and the configuration was checked. So these needs are all there are.

use core::hash::Hash;
use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use ipnet::IpNet;
use nos_shim::ports::{AddressMode, PortRange, Transport};
use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};

use super::{Claim, ContainerLink, Entity, Network, OpenDevice, State};
use crate::control::config::{Name, VrfName};

/// Entities that change together, and the groups before this one that they need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Circle {
    pub(super) entities: Vec<Entity>,
    /// Indices of earlier groups.
    pub(super) needs: BTreeSet<usize>,
}

/// The entities that differ, in groups; each behind those that it needs.
pub(super) fn circles(state: &State, wanted: &State, differing: &BTreeSet<Entity>) -> Vec<Circle> {
    let mut needs = Needs::new(differing);
    needs.by_key(state, wanted, interfaces);
    needs.by_key(state, wanted, uplink_interfaces);
    needs.by_key(state, wanted, capture_files);
    needs.by_key(state, wanted, own_addresses);
    needs.by_ports(state, wanted);
    needs.by_services(state, wanted);
    needs.by_networks(state, wanted);
    needs.by_addresses(state, wanted);
    needs.by_links(state, wanted);
    needs.by_devices(wanted);
    needs.into_circles()
}

struct Needs<'a> {
    graph: DiGraph<&'a Entity, ()>,
    nodes: HashMap<&'a Entity, NodeIndex>,
}

impl<'a> Needs<'a> {
    fn new(differing: &'a BTreeSet<Entity>) -> Self {
        let mut graph = DiGraph::new();
        let node = |entity| (entity, graph.add_node(entity));
        Self {
            nodes: differing.iter().map(node).collect(),
            graph,
        }
    }

    fn differs(&self, entity: &Entity) -> bool {
        self.nodes.contains_key(entity)
    }

    /// Entities that do not differ need nobody, and are needed as they are.
    fn add(&mut self, taker: &Entity, giver: &Entity) {
        if taker == giver {
            return;
        }
        if let (Some(&taker), Some(&giver)) = (self.nodes.get(taker), self.nodes.get(giver)) {
            self.graph.update_edge(taker, giver, ());
        }
    }

    fn into_circles(self) -> Vec<Circle> {
        let components = kosaraju_scc(&self.graph);
        let mut circle_of = HashMap::new();
        for (index, nodes) in components.iter().enumerate() {
            circle_of.extend(nodes.iter().map(|&node| (node, index)));
        }
        let circle = |(index, nodes): (usize, &Vec<NodeIndex>)| {
            let mut entities: Vec<Entity> =
                nodes.iter().map(|&node| self.graph[node].clone()).collect();
            entities.sort_unstable();
            let givers = nodes.iter().flat_map(|&node| self.graph.neighbors(node));
            let needs = givers.filter_map(|giver| circle_of.get(&giver).copied());
            Circle {
                entities,
                needs: needs.filter(|&need| need != index).collect(),
            }
        };
        components.iter().enumerate().map(circle).collect()
    }

    /// Who shall have a key needs who has it now.
    fn by_key<K: Hash + Eq>(
        &mut self,
        state: &State,
        wanted: &State,
        keys: impl Fn(&State) -> Vec<(K, Entity)>,
    ) {
        let held: HashMap<K, Entity> = keys(state).into_iter().collect();
        for (key, taker) in keys(wanted) {
            if let Some(giver) = held.get(&key) {
                self.add(&taker, giver);
            }
        }
    }

    fn by_ports(&mut self, state: &State, wanted: &State) {
        let held = self.holdings(state);
        for (name, claim) in &wanted.claims {
            let taker = Entity::Container(name.clone());
            if !self.differs(&taker) {
                continue;
            }
            for (key, range) in ranges(claim) {
                for giver in overlapping(&held, key, range) {
                    self.add(&taker, giver);
                }
            }
        }
    }

    /// What containers that differ hold now, by port.
    fn holdings<'b>(&self, state: &'b State) -> Holdings<'b> {
        let mut held = Holdings::new();
        for (name, claim) in &state.claims {
            let entity = Entity::Container(name.clone());
            if !self.differs(&entity) {
                continue;
            }
            for (key, range) in ranges(claim) {
                let holding = (range, entity.clone());
                held.entry(key).or_default().insert(range.first(), holding);
            }
        }
        held
    }

    /// A service has its port on all addresses of its VRF.
    fn by_services(&mut self, state: &State, wanted: &State) {
        for (name, claim) in &wanted.claims {
            if meets_service(claim, state) {
                let services = Entity::Services(claim.vrf.clone());
                self.add(&Entity::Container(name.clone()), &services);
            }
        }
        for (name, claim) in &state.claims {
            if meets_service(claim, wanted) {
                let services = Entity::Services(claim.vrf.clone());
                self.add(&services, &Entity::Container(name.clone()));
            }
        }
    }

    /// Networks of two uplinks of a VRF may not overlap. Both change at once, so that an address that moves
    /// from one to the other is the NOS's all the time.
    fn by_networks(&mut self, state: &State, wanted: &State) {
        let held = networks(state);
        for (vrf, network, taker) in networks(wanted) {
            let overlaps = |other: &&(&VrfName, IpNet, Entity)| {
                other.0 == vrf && (other.1.contains(&network) || network.contains(&other.1))
            };
            for (_, _, giver) in held.iter().filter(overlaps) {
                self.add(&taker, giver);
                self.add(giver, &taker);
            }
        }
    }

    /// A container's address has to be the NOS's as long as the container shares it, and must not be as long
    /// as the container has it for its own.
    fn by_addresses(&mut self, state: &State, wanted: &State) {
        let (before, after) = (addresses(state), addresses(wanted));
        for ((vrf, address), container) in own_addresses(wanted) {
            if let Some(uplink) = before.get(&(&vrf, address)) {
                self.add(&container, uplink);
            }
        }
        for ((vrf, address), container) in own_addresses(state) {
            if let Some(uplink) = after.get(&(&vrf, address)) {
                self.add(uplink, &container);
            }
        }
        for (name, claim) in &wanted.claims {
            for address in addresses_of(claim).filter(|address| !before.contains_key(address)) {
                if let Some(uplink) = after.get(&address) {
                    self.add(&Entity::Container(name.clone()), uplink);
                }
            }
        }
        for (name, claim) in &state.claims {
            for address in addresses_of(claim).filter(|address| !after.contains_key(address)) {
                if let Some(uplink) = before.get(&address) {
                    self.add(uplink, &Entity::Container(name.clone()));
                }
            }
        }
    }

    /// An uplink has to be there, in the container's VRF, as long as a container shares its link-local
    /// address; and the container follows that.
    fn by_links(&mut self, state: &State, wanted: &State) {
        for (name, claim) in &wanted.claims {
            if let Some(shared) = &claim.link_local {
                let uplink = Entity::Uplink(shared.uplink.clone());
                self.add(&Entity::Container(name.clone()), &uplink);
            }
        }
        for (name, claim) in &state.claims {
            if let Some(shared) = &claim.link_local
                && !is_in(wanted, &shared.uplink, &claim.vrf)
            {
                let uplink = Entity::Uplink(shared.uplink.clone());
                self.add(&uplink, &Entity::Container(name.clone()));
            }
        }
    }

    /// A device needs what the NOS shall know of its uplink.
    fn by_devices(&mut self, wanted: &State) {
        for name in wanted.devices.keys() {
            let device = Entity::Device(name.clone());
            self.add(&device, &Entity::Uplink(name.clone()));
        }
    }
}

/// Whether the NOS has an uplink in a VRF.
fn is_in(state: &State, uplink: &Name, vrf: &VrfName) -> bool {
    let network = state.networks.get(uplink);
    network.is_some_and(|network| network.vrf == *vrf)
}

/// Interfaces of namespaces.
fn interfaces(state: &State) -> Vec<(impl Hash + Eq + use<>, Entity)> {
    let key = |(name, link): (&Name, &ContainerLink)| {
        let key = (link.namespace, link.interface.clone());
        (key, Entity::Container(name.clone()))
    };
    state.links.iter().map(key).collect()
}

/// VLANs of interfaces behind uplinks. A device that is not open yet is an entity of its own.
fn uplink_interfaces(state: &State) -> Vec<(impl Hash + Eq + use<>, Entity)> {
    let keys = |(name, open): (&Name, &OpenDevice)| {
        let key = (open.device.interface()?.clone(), open.vlan);
        Some([
            (key.clone(), Entity::Device(name.clone())),
            (key, Entity::Uplink(name.clone())),
        ])
    };
    state.devices.iter().filter_map(keys).flatten().collect()
}

/// Files of captures. That of an uplink begins with its device.
fn capture_files(state: &State) -> Vec<(impl Hash + Eq + use<>, Entity)> {
    let keys = |(of, path): (&Entity, &PathBuf)| {
        let device = match of {
            Entity::Uplink(name) => Entity::Device(name.clone()),
            other => other.clone(),
        };
        [(path.clone(), device), (path.clone(), of.clone())]
    };
    state.captures.iter().flat_map(keys).collect()
}

/// Ranges by their first port, for each address and transport.
type Holdings<'a> = HashMap<(Place<'a>, Transport), BTreeMap<u16, (PortRange, Entity)>>;

/// Where a port is owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place<'a> {
    Address(&'a VrfName, IpAddr),
    /// The link-local address of an uplink.
    Link(&'a Name),
}

fn ranges(claim: &Claim) -> impl Iterator<Item = ((Place<'_>, Transport), PortRange)> {
    let all = transports_and_ranges(claim);
    all.flat_map(move |(transport, range)| {
        let addresses = claim.addresses.iter();
        let addresses = addresses.map(|&address| Place::Address(&claim.vrf, address));
        let link = claim.link_local.iter();
        let link = link.map(|shared| Place::Link(&shared.uplink));
        let places = addresses.chain(link);
        places.map(move |place| ((place, transport), range))
    })
}

pub(super) fn transports_and_ranges(claim: &Claim) -> impl Iterator<Item = (Transport, PortRange)> {
    let tcp = claim.tcp.iter().map(|&range| (Transport::Tcp, range));
    let udp = claim.udp.iter().map(|&range| (Transport::Udp, range));
    let both = |&range| [(Transport::Tcp, range), (Transport::Udp, range)];
    let ephemeral = claim.ephemeral.iter().flat_map(both);
    tcp.chain(udp).chain(ephemeral)
}

/// Who holds ports of `range`. Ranges that are held do not overlap.
fn overlapping<'a>(
    held: &'a Holdings<'a>,
    key: (Place<'a>, Transport),
    range: PortRange,
) -> impl Iterator<Item = &'a Entity> {
    let held = held.get(&key).into_iter();
    held.flat_map(move |held| {
        let below = held
            .range(..=range.last())
            .rev()
            .map(|(_, holding)| holding);
        below
            .take_while(move |(held, _)| held.last() >= range.first())
            .map(|(_, entity)| entity)
    })
}

/// Whether a container claims a port of a service in its VRF.
fn meets_service(claim: &Claim, state: &State) -> bool {
    let services = state.services.get(&claim.vrf);
    let services = services.map_or(&[][..], |of_vrf| &of_vrf.services);
    transports_and_ranges(claim).any(|(transport, range)| {
        services
            .iter()
            .any(|service| service.uses(transport) && range.contains(service.port().get()))
    })
}

/// Those that it shares.
fn addresses_of(claim: &Claim) -> impl Iterator<Item = (&VrfName, IpAddr)> {
    all_addresses_of(claim, AddressMode::Shared)
}

/// Its addresses, if they are such.
fn all_addresses_of(claim: &Claim, mode: AddressMode) -> impl Iterator<Item = (&VrfName, IpAddr)> {
    let such = claim.addresses.iter().filter(move |_| claim.mode == mode);
    such.map(|&address| (&claim.vrf, address))
}

/// Addresses that containers have for their own.
fn own_addresses(state: &State) -> Vec<((VrfName, IpAddr), Entity)> {
    let claims = state.claims.iter();
    let own = claims.flat_map(|(name, claim)| {
        let keys = all_addresses_of(claim, AddressMode::Routed);
        keys.map(|(vrf, address)| ((vrf.clone(), address), Entity::Container(name.clone())))
    });
    own.collect()
}

fn networks(state: &State) -> Vec<(&VrfName, IpNet, Entity)> {
    of_networks(state, |network| network.trunc())
        .map(|((vrf, network), entity)| (vrf, network, entity))
        .collect()
}

/// Which uplink has an address, or has left it behind.
pub(super) fn addresses(state: &State) -> HashMap<(&VrfName, IpAddr), Entity> {
    let behind = state.networks.iter().flat_map(|(name, network)| {
        let left = network.behind.iter();
        left.map(|(vrf, net)| ((vrf, net.addr()), Entity::Uplink(name.clone())))
    });
    // What an uplink has counts for more than what another one has left there.
    behind.chain(of_networks(state, IpNet::addr)).collect()
}

fn of_networks<'a, T: 'a>(
    state: &'a State,
    of: impl Fn(&IpNet) -> T + Copy + 'a,
) -> impl Iterator<Item = ((&'a VrfName, T), Entity)> {
    let networks = state.networks.iter();
    networks.flat_map(move |(name, network): (&'a Name, &'a Network)| {
        let addresses = network.addresses.iter();
        addresses.map(move |address| {
            let entity = Entity::Uplink(name.clone());
            ((&network.vrf, of(address)), entity)
        })
    })
}
