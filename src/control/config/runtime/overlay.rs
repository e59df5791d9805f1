//! What is registered: entries, in the order in which they came, and who holds them.

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use nos_shim::ports::{ClaimKind, PortRange, Transport};

use super::super::{Name, VrfName};
use super::ports::{Ports, common};
use super::{Holder, Keys, RouteName, Touched};

/// What was registered at run time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overlay {
    /// With the keys by which they were made.
    pub(super) networks: Vec<(Name, Entry<Keys>)>,
    /// With the keys by which they were attached.
    pub(super) containers: Vec<(Name, Entry<Keys>)>,
    /// What each holder holds of a container's ports. What is held by nobody goes with the
    /// container: of one of the file it is what it has besides; of another one all that it has,
    /// unless that is still what its keys say.
    pub(super) ports: BTreeMap<PortsName, Ports>,
    pub(super) routes: Vec<(RouteName, Entry<Keys>)>,
    pub(super) addresses: Vec<(Name, Entry<IpNet>)>,
    pub(super) groups: Vec<(Name, Entry<IpAddr>)>,
}

/// Whose ports, and who holds them.
pub(super) type PortsName = (Name, Option<Holder>);

/// Something registered.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry<T> {
    pub(super) value: T,
    /// With whose end it ends, if with anybody's.
    pub(super) holder: Option<Holder>,
    /// Grows with each entry: what came earlier has less.
    pub(super) order: u64,
}

/// What a request takes away, wherever it is registered.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Withdrawal {
    Network(Name),
    Container(Name),
    Ports(Name, Ports),
    Route(RouteName),
    Address(Name, IpNet),
    Group(Name, IpAddr),
}

impl Overlay {
    /// Whether a container was attached at run time.
    #[must_use]
    pub fn has_container(&self, name: &Name) -> bool {
        self.container(name).is_some()
    }

    pub(super) fn container(&self, name: &Name) -> Option<&Entry<Keys>> {
        let mut containers = self.containers.iter();
        containers
            .find(|(known, _)| known == name)
            .map(|(_, it)| it)
    }

    /// Containers that were attached `before`, and are no more.
    pub fn containers_gone_since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a Name> {
        let names = before.containers.iter().map(|(name, _)| name);
        names.filter(|name| !self.has_container(name))
    }

    /// Whether a network was made at run time.
    #[must_use]
    pub fn has_network(&self, name: &Name) -> bool {
        self.network(name).is_some()
    }

    pub(super) fn network(&self, name: &Name) -> Option<&Entry<Keys>> {
        let mut networks = self.networks.iter();
        networks.find(|(known, _)| known == name).map(|(_, it)| it)
    }

    /// Whether a container has this range from a request at run time.
    #[must_use]
    pub fn has_ports(
        &self,
        name: &Name,
        transport: Transport,
        range: PortRange,
        kind: ClaimKind,
    ) -> bool {
        let added = |ports: &Ports| match kind {
            ClaimKind::Listen => ports.listens(transport, range),
            ClaimKind::Ephemeral => common(&ports.ephemeral, range).is_some(),
        };
        self.has_container(name) || self.ports_of(name).any(|(_, ports)| added(ports))
    }

    /// Ports of a container, by who holds them.
    pub(super) fn ports_of(&self, name: &Name) -> impl Iterator<Item = (Option<Holder>, &Ports)> {
        // Held by nobody is the least of them.
        let from = (name.clone(), None);
        let all = self.ports.range(from..);
        let name = name.clone();
        all.take_while(move |((whose, _), _)| *whose == name)
            .map(|((_, holder), ports)| (*holder, ports))
    }

    /// Whether a static route was added at run time.
    #[must_use]
    pub fn has_route(&self, vrf: &VrfName, prefix: IpNet, metric: u16) -> bool {
        self.route(&(vrf.clone(), prefix, metric)).is_some()
    }

    pub(super) fn route(&self, name: &RouteName) -> Option<&Entry<Keys>> {
        let mut routes = self.routes.iter();
        routes.find(|(known, _)| known == name).map(|(_, it)| it)
    }

    /// Addresses that were added to an uplink at run time.
    pub fn addresses_of(&self, uplink: &str) -> impl Iterator<Item = IpNet> {
        let of = self
            .addresses
            .iter()
            .filter(move |(name, _)| name.as_str() == uplink);
        of.map(|(_, address)| address.value)
    }

    pub(super) fn address(&self, uplink: &Name, address: IpNet) -> Option<&Entry<IpNet>> {
        let mut addresses = self.addresses.iter();
        let found = addresses.find(|(name, it)| name == uplink && it.value == address);
        found.map(|(_, it)| it)
    }

    pub(super) fn group(&self, uplink: &Name, group: IpAddr) -> Option<&Entry<IpAddr>> {
        let mut groups = self.groups.iter();
        let found = groups.find(|(name, it)| name == uplink && it.value == group);
        found.map(|(_, it)| it)
    }

    /// Whether nothing is registered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            networks,
            containers,
            ports,
            routes,
            addresses,
            groups,
        } = self;
        let uplinks = addresses.is_empty() && groups.is_empty();
        let containers = networks.is_empty() && containers.is_empty();
        containers && ports.is_empty() && routes.is_empty() && uplinks
    }

    /// `value` as the latest entry.
    pub(super) fn entry<T>(&self, value: T, holder: Option<Holder>) -> Entry<T> {
        let networks = self.networks.iter().map(|(_, it)| it.order);
        let containers = self.containers.iter().map(|(_, it)| it.order);
        let routes = self.routes.iter().map(|(_, it)| it.order);
        let addresses = self.addresses.iter().map(|(_, it)| it.order);
        let groups = self.groups.iter().map(|(_, it)| it.order);
        let last = networks
            .chain(containers)
            .chain(routes)
            .chain(addresses)
            .chain(groups)
            .max();
        Entry {
            value,
            holder,
            order: last.map_or(0, |last| last.saturating_add(1)),
        }
    }

    /// Gives a holder exactly these ports of a container.
    pub(super) fn set_ports(&mut self, name: PortsName, ports: Ports) {
        // What a container of run time has is recorded even if that is nothing any more.
        let recorded = name.1.is_none() && self.has_container(&name.0);
        match ports.is_empty() && !recorded {
            true => self.ports.remove(&name),
            false => self.ports.insert(name, ports),
        };
    }

    /// Takes something away.
    pub(super) fn withdraw(&mut self, what: &Withdrawal) {
        match what {
            Withdrawal::Network(name) => self.networks.retain(|(known, _)| known != name),
            Withdrawal::Container(name) => {
                self.containers.retain(|(known, _)| known != name);
                self.ports.retain(|(whose, _), _| whose != name);
            }
            Withdrawal::Ports(name, ports) => {
                let of = self.ports_of(name);
                let left: Vec<_> = of
                    .map(|(holder, held)| (holder, held.without(ports)))
                    .collect();
                for (holder, left) in left {
                    self.set_ports((name.clone(), holder), left);
                }
            }
            Withdrawal::Route(name) => self.routes.retain(|(known, _)| known != name),
            Withdrawal::Address(uplink, address) => self
                .addresses
                .retain(|(name, it)| (name, it.value) != (uplink, *address)),
            Withdrawal::Group(uplink, group) => self
                .groups
                .retain(|(name, it)| (name, it.value) != (uplink, *group)),
        }
    }

    /// Everybody who holds something.
    pub fn holders(&self) -> impl Iterator<Item = Holder> {
        let networks = self.networks.iter().filter_map(|(_, it)| it.holder);
        let containers = self.containers.iter().filter_map(|(_, it)| it.holder);
        let containers = networks.chain(containers);
        let ports = self.ports.keys().filter_map(|(_, holder)| *holder);
        let routes = self.routes.iter().filter_map(|(_, it)| it.holder);
        let addresses = self.addresses.iter().filter_map(|(_, it)| it.holder);
        let groups = self.groups.iter().filter_map(|(_, it)| it.holder);
        let uplinks = addresses.chain(groups);
        containers.chain(ports).chain(routes).chain(uplinks)
    }

    /// What is left when these holders have ended.
    #[must_use]
    pub fn without_holders(&self, ended: impl Fn(Holder) -> bool) -> Self {
        let held = |holder: Option<Holder>| holder.is_some_and(&ended);
        let mut left = self.clone();
        left.networks.retain(|(_, it)| !held(it.holder));
        for (name, _) in self.containers.iter().filter(|(_, it)| held(it.holder)) {
            left.withdraw(&Withdrawal::Container(name.clone()));
        }
        left.ports.retain(|(_, holder), _| !held(*holder));
        left.routes.retain(|(_, it)| !held(it.holder));
        left.addresses.retain(|(_, it)| !held(it.holder));
        left.groups.retain(|(_, it)| !held(it.holder));
        left
    }

    /// What differs from what was registered `before`.
    #[must_use]
    pub fn touched_since(&self, before: &Self) -> Vec<Touched> {
        let mut touched = Vec::new();
        for (name, _) in self.networks.iter().chain(&before.networks) {
            let network = Touched::Network(name.clone());
            if self.network(name) != before.network(name) && !touched.contains(&network) {
                touched.push(network);
            }
        }
        let names = |it: &Self| -> BTreeSet<Name> {
            let containers = it.containers.iter().map(|(name, _)| name);
            let all = containers.chain(it.ports.keys().map(|(name, _)| name));
            all.cloned().collect()
        };
        for name in names(self).union(&names(before)) {
            let same = self.container(name) == before.container(name)
                && self.ports_of(name).eq(before.ports_of(name));
            if !same {
                touched.push(Touched::Container(name.clone()));
            }
        }
        let uplinks = |it: &Self| -> BTreeSet<Name> {
            let uplinks = it.addresses.iter().map(|(uplink, _)| uplink);
            let groups = it.groups.iter().map(|(uplink, _)| uplink);
            uplinks.chain(groups).cloned().collect()
        };
        for name in uplinks(self).union(&uplinks(before)) {
            let addresses = |it: &Self| it.addresses_of(name.as_str()).collect::<Vec<_>>();
            let groups = |it: &Self| it.groups_of(name.as_str()).collect::<Vec<_>>();
            if addresses(self) != addresses(before) || groups(self) != groups(before) {
                touched.push(Touched::Uplink(name.clone()));
            }
        }
        if self.routes != before.routes {
            touched.push(Touched::Routes);
        }
        touched
    }

    /// These and those of `other` that are not named here. Of ports, those of both.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let mut all = self.clone();
        for (name, it) in &other.networks {
            if !self.has_network(name) {
                all.networks.push((name.clone(), it.clone()));
            }
        }
        for (name, it) in &other.containers {
            if !self.has_container(name) {
                all.containers.push((name.clone(), it.clone()));
            }
        }
        for (name, ports) in &other.ports {
            let held = all.ports.entry(name.clone()).or_default();
            *held = held.with(ports);
        }
        for (name, it) in &other.routes {
            if self.route(name).is_none() {
                all.routes.push((name.clone(), it.clone()));
            }
        }
        for (uplink, it) in &other.addresses {
            if self.address(uplink, it.value).is_none() {
                all.addresses.push((uplink.clone(), it.clone()));
            }
        }
        for (uplink, it) in &other.groups {
            if self.group(uplink, it.value).is_none() {
                all.groups.push((uplink.clone(), it.clone()));
            }
        }
        all.networks.sort_by_key(|(_, it)| it.order);
        all.containers.sort_by_key(|(_, it)| it.order);
        all.routes.sort_by_key(|(_, it)| it.order);
        all.addresses.sort_by_key(|(_, it)| it.order);
        all.groups.sort_by_key(|(_, it)| it.order);
        all
    }

    /// Each entry alone, those first on which others may depend: addresses, networks, containers with
    /// the ports that go with them, other ports, routes, groups.
    pub(super) fn parts(&self) -> Vec<Self> {
        let none = Self::default;
        let addresses = self.addresses.iter().map(|it| Self {
            addresses: vec![it.clone()],
            ..none()
        });
        let networks = self.networks.iter().map(|it| Self {
            networks: vec![it.clone()],
            ..none()
        });
        let own = |name: &Name| {
            let name = (name.clone(), None);
            let ports = self.ports.get(&name).cloned();
            ports
                .map(|ports| (name, ports))
                .into_iter()
                .collect::<BTreeMap<_, _>>()
        };
        let containers = self.containers.iter().map(|it| Self {
            ports: own(&it.0),
            containers: vec![it.clone()],
            ..none()
        });
        let others = self
            .ports
            .iter()
            .filter(|((name, holder), _)| holder.is_some() || !self.has_container(name));
        let ports = others.map(|(name, ports)| Self {
            ports: BTreeMap::from([(name.clone(), ports.clone())]),
            ..none()
        });
        let routes = self.routes.iter().map(|it| Self {
            routes: vec![it.clone()],
            ..none()
        });
        let groups = self.groups.iter().map(|it| Self {
            groups: vec![it.clone()],
            ..none()
        });
        let all = addresses.chain(networks).chain(containers).chain(ports);
        all.chain(routes).chain(groups).collect()
    }
}
