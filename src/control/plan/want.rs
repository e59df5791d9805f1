//! What is wanted, of a configuration, as far as it is there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use ipnet::IpNet;
use nos_shim::ident::MacAddr;
use nos_shim::ports::{AddressMode, Outside, PortRange};

use super::{Claim, ContainerLink, Entity, LinkLocal, Network, OpenDevice, State};
use crate::control::attach::{Company, OtherAttachment};
use crate::control::config::{
    Config, Container, ContainerDevice, Mtu, Name, NextHop, Route, RouteAction, Uplink,
    UplinkDevice,
};
use crate::control::kernel::NamespaceId;

/// What was found of what a configuration names.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The daemon's own namespace.
    pub host: NamespaceId,
    /// By container.
    pub namespaces: HashMap<Name, NamespacePresence>,
    /// By container: the interface of one that somebody else has made.
    pub interfaces: HashMap<Name, InterfacePresence>,
    /// By uplink: the interface of one that uses a packet socket.
    pub links: HashMap<Name, LinkPresence>,
}

/// Whether a container's namespace is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamespacePresence {
    /// It is.
    Here(NamespaceId),
    /// It is not, and why.
    Missing(String),
}

/// Whether the interface of a container is there, which somebody else makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InterfacePresence {
    /// It is.
    Here(Station),
    /// It is not, and why.
    Missing(String),
}

/// A container as a station of its link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Station {
    /// MAC address of its interface.
    pub mac: MacAddr,
    /// Octets of the longest IP packet of its interface.
    pub mtu: u32,
    /// Networks of other stations, where there may be some.
    pub segment: Option<Arc<[IpNet]>>,
}

/// Whether an uplink's interface is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkPresence {
    /// It is.
    Here {
        /// The kernel's number of it.
        index: u32,
        /// Its MAC address.
        mac: Option<MacAddr>,
        /// Octets of the longest IP packet.
        mtu: u32,
    },
    /// It is not, and why.
    Missing(String),
}

/// What is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// The state that all that is there shall have, without routes: see [`routes_of`].
    pub state: State,
    /// What is wanted and not there, and what it waits for.
    pub waiting: BTreeMap<Entity, String>,
    /// What cannot be, and why.
    pub refused: BTreeMap<Entity, String>,
}

impl Want {
    /// What `config` wants of what is there.
    #[must_use]
    pub fn of(config: &Config, observed: &Observed) -> Self {
        let mut want = Self::default();
        want.state.services.clone_from(&config.services);
        for uplink in &config.uplinks {
            want.uplink(uplink, observed);
        }
        let mut sandboxes = HashMap::new();
        for container in &config.containers {
            want.container(container, observed, &mut sandboxes);
        }
        let shared = |sandbox: &&Sandbox<'_>| {
            let first = sandbox.containers.first();
            sandbox.containers.len() > 1 || first.is_some_and(|first| in_front(0, first))
        };
        for sandbox in sandboxes.values().filter(shared) {
            want.share(sandbox);
        }
        want
    }

    /// Tells the containers of one namespace of one another.
    fn share(&mut self, sandbox: &Sandbox<'_>) {
        let tables = tables(&sandbox.containers);
        let members = sandbox.containers.iter().zip(tables).enumerate();
        let members: Vec<_> = members
            .map(|(at, (container, table))| OtherAttachment {
                table,
                in_front: in_front(at, container),
                addresses: container.addresses.clone(),
                opens_flows: opens_flows(container),
            })
            .collect();
        let mut networks = BTreeSet::new();
        for (at, container) in sandbox.containers.iter().enumerate() {
            let Some(link) = self.state.links.get_mut(&container.name) else {
                continue;
            };
            let others = members.iter().enumerate().filter(|(other, _)| *other != at);
            link.company = Company {
                table: members.get(at).and_then(|own| own.table),
                in_front: members.get(at).is_some_and(|own| own.in_front),
                others: others.map(|(_, other)| other.clone()).collect(),
            };
            // Also of one that has none itself: it must not take away what others need.
            link.ephemeral.clone_from(&sandbox.ephemeral);
            // A network of two of them is reached by the one that comes first.
            let own = link.networks.iter().copied();
            link.networks = own.filter(|network| networks.insert(*network)).collect();
        }
    }

    /// The NOS has the addresses of an uplink that is away: they are its own, as a host's are whose
    /// cable is unplugged.
    fn uplink(&mut self, uplink: &Uplink, observed: &Observed) {
        let entity = Entity::Uplink(uplink.name.clone());
        let device = match wanted_device(uplink, observed) {
            Ok(device) => device,
            Err(missing) => {
                self.waiting.insert(entity.clone(), missing);
                None
            }
        };
        let configured = uplink.mtu.octets();
        let most = device.as_ref().map_or(u32::MAX, |device| device.mtu);
        let network = Network {
            vrf: uplink.vrf.clone(),
            addresses: uplink.addresses.clone(),
            mac: device
                .as_ref()
                .map_or_else(|| own_mac(uplink), |device| device.mac),
            mtu: u16::try_from(most).map_or(configured, |most| configured.min(most)),
            redirects: uplink.redirects,
            groups: uplink.groups.clone(),
            behind: Vec::new(),
        };
        self.state.networks.insert(uplink.name.clone(), network);
        let Some(device) = device else { return };
        self.state.devices.insert(uplink.name.clone(), device);
        if let Some(file) = &uplink.capture {
            self.state.captures.insert(entity, file.clone());
        }
    }

    fn container<'a>(
        &mut self,
        container: &'a Container,
        observed: &Observed,
        sandboxes: &mut HashMap<NamespaceId, Sandbox<'a>>,
    ) {
        let entity = Entity::Container(container.name.clone());
        let namespace = match observed.namespaces.get(&container.name) {
            Some(NamespacePresence::Here(namespace)) => *namespace,
            Some(NamespacePresence::Missing(reason)) => {
                self.waiting.insert(entity, reason.clone());
                return;
            }
            None => {
                self.waiting.insert(entity, "its namespace".to_owned());
                return;
            }
        };
        if namespace == observed.host {
            let reason = format!("{} is the namespace of nos-relay itself", container.netns);
            self.refused.insert(entity, reason);
            return;
        }
        if let Err(reason) = sandboxes.entry(namespace).or_default().take(container) {
            self.refused.insert(entity, reason);
            return;
        }
        let station = match Station::found(container, observed) {
            Ok(station) => station,
            Err(missing) => {
                self.waiting.insert(entity, missing);
                return;
            }
        };
        if let Err(reason) = station.check(container) {
            self.refused.insert(entity, reason);
            return;
        }
        let name = container.name.clone();
        // Uplinks come before containers.
        let claim = claim_as(container, &self.state.networks, station);
        let link = link(container, namespace, &claim);
        self.state.claims.insert(name.clone(), claim);
        self.state.links.insert(name, link);
        if let Some(file) = &container.capture {
            self.state.captures.insert(entity, file.clone());
        }
    }
}

/// A namespace, and the containers whose it is.
#[derive(Debug, Default)]
struct Sandbox<'a> {
    /// In the order of the configuration; the first has the namespace's default route.
    containers: Vec<&'a Container>,
    /// The ports that its sockets get: those that all have that open flows from ports of their own.
    ephemeral: Vec<PortRange>,
}

impl<'a> Sandbox<'a> {
    /// Takes one more in, or says what it has in common with one that is there and must not.
    fn take(&mut self, container: &'a Container) -> Result<(), String> {
        for other in &self.containers {
            let of = |what: &str| {
                format!(
                    "{} is the namespace of container '{}' as well, and {what}",
                    container.netns, other.name
                )
            };
            if other.interface == container.interface {
                return Err(of(&format!("{} is its interface there", other.interface)));
            }
            let mut shared = other.addresses.iter();
            if let Some(address) = shared.find(|own| container.addresses.contains(own)) {
                return Err(of(&format!("{address} is its address there")));
            }
        }
        let ephemeral = PortRange::merged(container.ephemeral.clone());
        let left = match (self.ephemeral.is_empty(), ephemeral.is_empty()) {
            (true, _) => ephemeral,
            (_, true) => self.ephemeral.clone(),
            (false, false) => common(&self.ephemeral, &ephemeral),
        };
        if left.is_empty() && !self.ephemeral.is_empty() {
            return Err(format!(
                "its ephemeral ports and those of the others in {} have none in common; a namespace \
                 gives sockets their ports before it is known where they go",
                container.netns
            ));
        }
        self.ephemeral = left;
        self.containers.push(container);
        Ok(())
    }
}

/// The ports that are in both. Neither list overlaps itself.
fn common(one: &[PortRange], other: &[PortRange]) -> Vec<PortRange> {
    let both = one.iter().flat_map(|one| {
        other.iter().filter_map(|other| {
            let (first, last) = (one.first().max(other.first()), one.last().min(other.last()));
            PortRange::new(first, last).ok()
        })
    });
    PortRange::merged(both.collect())
}

/// The tables of routes of the containers of a namespace: none of the first, unless its interface is somebody else's,
/// and of each other one its own, which it keeps whoever comes and goes.
fn tables(containers: &[&Container]) -> Vec<Option<u32>> {
    /// Beyond what `/etc/iproute2/rt_tables` and the kernel have names for.
    const BASE: u32 = 1 << 24;
    let mut taken = BTreeSet::new();
    let number = |container: &&Container| {
        let MacAddr([.., a, b, c]) = MacAddr::stable(container.name.as_str());
        let wished = BASE + u32::from_be_bytes([0, a, b, c]);
        let mut free = (wished..).filter(|number| !taken.contains(number));
        let number = free.next().unwrap_or(wished);
        taken.insert(number);
        number
    };
    let numbers: Vec<_> = containers.iter().map(number).collect();
    let numbered = numbers.into_iter().zip(containers).enumerate();
    numbered
        .map(|(at, (number, container))| (at > 0 || in_front(at, container)).then_some(number))
        .collect()
}

/// Whether a container has the way out of its namespace beside a default route of somebody else.
fn in_front(at: usize, container: &Container) -> bool {
    at == 0 && container.device == ContainerDevice::Existing
}

/// The device that an uplink shall have open; none where the NOS has it.
fn wanted_device(uplink: &Uplink, observed: &Observed) -> Result<Option<OpenDevice>, String> {
    let open = |index, mac, mtu| OpenDevice {
        device: uplink.device.clone(),
        vlan: uplink.vlan,
        index,
        mac,
        offload: uplink.offload,
        mtu,
    };
    let name = match &uplink.device {
        UplinkDevice::Tap(_) | UplinkDevice::Memif(_) => {
            let open = open(0, own_mac(uplink), uplink.mtu.octets().into());
            return Ok(Some(open));
        }
        UplinkDevice::Nos => return Ok(None),
        UplinkDevice::Packet(name) => name,
    };
    match observed.links.get(&uplink.name) {
        Some(&LinkPresence::Here { index, mac, mtu }) => {
            let mac = uplink.mac.or(mac).filter(|mac| mac.is_unicast());
            let mac = mac.ok_or_else(|| format!("a MAC address of {name}; set `mac`"))?;
            Ok(Some(open(index, mac, mtu)))
        }
        Some(LinkPresence::Missing(reason)) => Err(reason.clone()),
        None => Err(format!("interface {name}")),
    }
}

/// The MAC address of an uplink whose interface does not say one.
fn own_mac(uplink: &Uplink) -> MacAddr {
    let stable = || match &uplink.device {
        // Its peer may well have an uplink of the same name.
        UplinkDevice::Memif(options) => {
            MacAddr::stable(&format!("uplink {} {:?}", uplink.name, options.side))
        }
        _ => MacAddr::stable(&format!("uplink {}", uplink.name)),
    };
    uplink.mac.unwrap_or_else(stable)
}

impl Station {
    /// As the configuration has it.
    fn configured(container: &Container) -> Self {
        let stable = || MacAddr::stable(&format!("container {}", container.name));
        let networks = container.link_addresses.iter().map(IpNet::trunc);
        Self {
            mac: container.mac.unwrap_or_else(stable),
            mtu: container.mtu.octets().into(),
            segment: container.device.is_on_segment().then(|| networks.collect()),
        }
    }

    /// As it is, where somebody else has made the interface; or why that is not there.
    fn found(container: &Container, observed: &Observed) -> Result<Self, String> {
        if container.device != ContainerDevice::Existing {
            return Ok(Self::configured(container));
        }
        match observed.interfaces.get(&container.name) {
            Some(InterfacePresence::Here(station)) => Ok(station.clone()),
            Some(InterfacePresence::Missing(reason)) => Err(reason.clone()),
            None => Err(format!("interface {}", container.interface)),
        }
    }

    /// Whether a container can reach the NOS, and through it the networks of its uplinks.
    fn check(&self, container: &Container) -> Result<(), String> {
        let interface = &container.interface;
        if self.octets().is_none() {
            let least = Mtu::MIN_IPV4;
            return Err(format!(
                "{interface} has an MTU of {}; it must be {least} or more",
                self.mtu
            ));
        }
        for network in self.segment.iter().flat_map(|networks| networks.iter()) {
            let mut uplinks = container.networks.iter();
            let overlaps = |uplink: &&IpNet| {
                uplink.contains(&network.addr()) || network.contains(&uplink.addr())
            };
            if let Some(uplink) = uplinks.find(overlaps) {
                return Err(format!(
                    "{network} of {interface} overlaps {uplink} of an uplink; who is where could not be told"
                ));
            }
        }
        Ok(())
    }

    fn octets(&self) -> Option<Mtu> {
        Mtu::new(u16::try_from(self.mtu).unwrap_or(u16::MAX))
    }
}

/// What a container shall have registered, where the NOS has these uplinks, as far as the configuration
/// says it.
#[must_use]
pub fn claim(container: &Container, networks: &BTreeMap<Name, Network>) -> Claim {
    claim_as(container, networks, Station::configured(container))
}

fn claim_as(container: &Container, networks: &BTreeMap<Name, Network>, station: Station) -> Claim {
    let link_local = container.link_local.as_ref().and_then(|uplink| {
        let network = networks.get(uplink)?;
        Some(LinkLocal {
            uplink: uplink.clone(),
            address: network.mac.link_local(),
        })
    });
    Claim {
        vrf: container.vrf.clone(),
        network: container.network.clone(),
        mode: container.mode,
        addresses: container.addresses.clone(),
        link_local,
        tcp: container.tcp.clone(),
        udp: container.udp.clone(),
        ephemeral: container.ephemeral.clone(),
        policy: container.policy.clone(),
        mtu: station
            .octets()
            .map_or(container.mtu, |mtu| mtu.min(container.mtu)),
        mac: station.mac,
        segment: station.segment,
    }
}

fn link(container: &Container, namespace: NamespaceId, claim: &Claim) -> ContainerLink {
    let existing = container.device == ContainerDevice::Existing;
    ContainerLink {
        netns: container.netns.clone(),
        namespace,
        device: container.device.clone(),
        interface: container.interface.clone(),
        mac: claim.mac,
        offload: container.offload,
        mode: container.mode,
        addresses: container.addresses.clone(),
        link_addresses: container.link_addresses.clone(),
        link_local: claim.link_local.as_ref().map(|shared| shared.address),
        networks: match existing {
            true => Arc::from([]),
            false => Arc::clone(&container.networks),
        },
        ephemeral: container.ephemeral.clone(),
        opens_flows: opens_flows(container),
        company: Company::default(),
        mtu: claim.mtu,
    }
}

/// Whether sockets of a container that ask for no port get one from which it may send: from its ephemeral
/// ranges, because it has all that a kernel gives by itself, or because it may learn ports; and always if it
/// has its addresses for its own.
fn opens_flows(container: &Container) -> bool {
    if container.mode == AddressMode::Routed {
        return true;
    }
    let given = PortRange::new(32_768, 60_999).map(|given| {
        let rest = given.without(container.tcp.iter().copied());
        rest.is_empty()
    });
    let learns = container.policy.outside == Outside::Learn;
    learns || !container.ephemeral.is_empty() || given.unwrap_or(false)
}

/// The routes that can be installed: with those next hops whose uplink the NOS has in their VRF. The
/// others' prefixes are returned as well.
#[must_use]
pub fn routes_of(routes: &[Route], state: &State) -> (Vec<Route>, Vec<String>) {
    let (mut installed, mut left) = (Vec::with_capacity(routes.len()), Vec::new());
    for route in routes {
        let RouteAction::Via(hops) = &route.action else {
            installed.push(route.clone());
            continue;
        };
        let known = |hop: &&NextHop| {
            let network = state.networks.get(&hop.uplink);
            network.is_some_and(|network| network.vrf == route.vrf)
        };
        let known: Vec<NextHop> = hops.iter().filter(known).cloned().collect();
        if known.len() < hops.len() {
            left.push(route.prefix.to_string());
        }
        if !known.is_empty() {
            installed.push(Route {
                action: RouteAction::Via(known),
                ..route.clone()
            });
        }
    }
    (installed, left)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
[[uplink]]
name = "up0"
device = "packet:hx"
addresses = ["203.0.113.1/24", "2001:db8:1::1/64"]
[[uplink]]
name = "up1"
device = "packet:hy"
vrf = "blue"
addresses = ["198.51.100.1/24"]
[[uplink]]
name = "up2"
device = "packet:hz"
vrf = "green"
addresses = ["198.51.100.1/24", "192.0.2.1/24"]
"#;

    /// What is wanted of containers in one namespace: name, VRF, further keys.
    fn wanted(containers: &[(&str, &str, &str)]) -> Want {
        wanted_beside(containers, HashMap::new())
    }

    /// The same, where interfaces are there that somebody else has made.
    fn wanted_beside(
        containers: &[(&str, &str, &str)],
        interfaces: HashMap<Name, InterfacePresence>,
    ) -> Want {
        let container = |(name, vrf, more): &(&str, &str, &str)| {
            let device = match more.contains("device") {
                true => "",
                false => "device = \"veth\"\n",
            };
            format!(
                "[[container]]\nname = \"{name}\"\nnetns = \"/n\"\nvrf = \"{vrf}\"\n{device}{more}\n"
            )
        };
        let containers_text: String = containers.iter().map(container).collect();
        let config = Config::parse("test", &format!("{TEXT}{containers_text}")).unwrap();
        let here = NamespacePresence::Here(NamespaceId::new(1, 1));
        let names = config.containers.iter().map(|it| it.name.clone());
        let observed = Observed {
            interfaces,
            host: NamespaceId::new(1, 0),
            namespaces: names.map(|name| (name, here.clone())).collect(),
            links: HashMap::new(),
        };
        Want::of(&config, &observed)
    }

    fn link<'a>(want: &'a Want, name: &str) -> &'a ContainerLink {
        &want.state.links[&name.parse().unwrap()]
    }

    #[test]
    fn one_that_is_alone_knows_of_nobody() {
        let want = wanted(&[("a", "default", "")]);
        assert_eq!(link(&want, "a").company, Company::default());
    }

    #[test]
    fn those_of_one_namespace_know_each_other_and_the_first_has_the_default_route() {
        let a = ("a", "default", "ephemeral = \"40000-44999\"");
        let b = (
            "b",
            "blue",
            "interface = \"eth1\"\nephemeral = [\"43000-43009\", \"44990-46000\"]",
        );
        let want = wanted(&[a, b]);
        assert_eq!(want.refused, BTreeMap::new());
        let [first, second] = ["a", "b"].map(|name| link(&want, name));
        assert_eq!(first.company.table, None);
        let table = second.company.table;
        assert!(table.is_some_and(|table| table >= 1 << 24));
        assert_eq!(first.company.others[0].table, table);
        assert_eq!(first.company.others[0].addresses, second.addresses);
        assert_eq!(second.company.others[0].addresses, first.addresses);
        let ports = [(43_000, 43_009), (44_990, 44_999)];
        let ports = ports.map(|(first, last)| PortRange::new(first, last).unwrap());
        assert_eq!(
            (&first.ephemeral[..], &second.ephemeral[..]),
            (&ports[..], &ports[..])
        );
        // One that has none leaves the others theirs.
        let none = ("b", "blue", "interface = \"eth1\"");
        let beside = wanted(&[a, none]);
        let [first, second] = ["a", "b"].map(|name| link(&beside, name));
        assert_eq!(first.ephemeral, second.ephemeral);
        assert!(first.opens_flows && !second.opens_flows);
        // What each may send from is another matter.
        let claim = &want.state.claims[&"a".parse().unwrap()];
        assert_eq!(claim.ephemeral, [PortRange::new(40_000, 44_999).unwrap()]);
        // It keeps its table when the first goes and another comes.
        let others = wanted(&[
            ("c", "default", ""),
            (
                "d",
                "green",
                "interface = \"eth2\"\naddresses = [\"192.0.2.1\"]",
            ),
            b,
        ]);
        assert_eq!(link(&others, "b").company.table, table);
        assert_eq!(link(&others, "b").company.others.len(), 2);
    }

    #[test]
    fn a_network_of_two_is_reached_by_the_first() {
        let want = wanted(&[
            ("a", "blue", ""),
            (
                "b",
                "green",
                "interface = \"eth1\"\naddresses = [\"192.0.2.1\"]",
            ),
        ]);
        let networks = |name| {
            link(&want, name)
                .networks
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(networks("a"), ["198.51.100.0/24"]);
        assert_eq!(networks("b"), ["192.0.2.0/24"]);
    }

    fn existing(name: &str, mtu: u32, networks: &[&str]) -> HashMap<Name, InterfacePresence> {
        let networks = networks.iter().map(|net| net.parse().unwrap());
        let station = Station {
            mac: MacAddr([2, 0x42, 0, 0, 0, 7]),
            mtu,
            segment: Some(networks.collect()),
        };
        HashMap::from([(name.parse().unwrap(), InterfacePresence::Here(station))])
    }

    #[test]
    fn an_interface_of_somebody_else_is_taken_as_it_is() {
        let container = ("a", "default", "device = \"existing\"");
        let want = wanted_beside(&[container], existing("a", 1400, &["172.17.0.0/16"]));
        let claim = &want.state.claims[&"a".parse().unwrap()];
        assert_eq!(claim.mac, MacAddr([2, 0x42, 0, 0, 0, 7]));
        assert_eq!(claim.mtu.octets(), 1400);
        let segment: [IpNet; 1] = ["172.17.0.0/16".parse().unwrap()];
        assert_eq!(claim.segment.as_deref(), Some(&segment[..]));
        let alone = link(&want, "a");
        assert_eq!((alone.mac, alone.mtu), (claim.mac, claim.mtu));
        // Its main table is somebody else's, with all routes in it.
        assert!(alone.company.in_front && alone.company.table.is_some());
        assert!(alone.networks.is_empty());
        // Where another attachment is the first, that one has the default route.
        let first = ("b", "blue", "interface = \"eth1\"");
        let want = wanted_beside(&[first, container], existing("a", 1400, &[]));
        let [b, a] = ["b", "a"].map(|name| link(&want, name));
        assert_eq!(b.company.table, None);
        assert_eq!(a.company.table, alone.company.table);
        assert!(!a.company.in_front && !b.company.others[0].in_front);
    }

    #[test]
    fn an_interface_of_somebody_else_is_waited_for_and_has_to_fit() {
        let container = ("a", "default", "device = \"existing\"");
        let entity = Entity::Container("a".parse().unwrap());
        let want = wanted(&[container]);
        assert_eq!(want.waiting[&entity], "interface eth0");
        assert!(want.state.links.is_empty());
        for (mtu, networks, reason) in [
            (
                500,
                &[][..],
                "eth0 has an MTU of 500; it must be 576 or more",
            ),
            (
                1500,
                &["172.17.0.0/16", "203.0.0.0/16"],
                "203.0.0.0/16 of eth0 overlaps 203.0.113.0/24 of an uplink; who is where could not be told",
            ),
        ] {
            let want = wanted_beside(&[container], existing("a", mtu, networks));
            assert_eq!(want.refused[&entity], reason);
            assert!(want.state.links.is_empty());
        }
        // One that is more than an MTU can be has the most.
        let want = wanted_beside(&[container], existing("a", 100_000, &[]));
        assert_eq!(link(&want, "a").mtu, Mtu::DEFAULT);
    }

    #[test]
    fn what_cannot_be_in_one_namespace_is_refused_by_name() {
        let eth1 = "interface = \"eth1\"";
        for (first, second, reason) in [
            (
                "",
                ("green", format!("{eth1}\naddresses = [\"198.51.100.1\"]")),
                "as well, and 198.51.100.1 is its address there",
            ),
            (
                "ephemeral = \"40000-40009\"",
                ("default", format!("{eth1}\nephemeral = \"40010-40019\"")),
                "have none in common",
            ),
        ] {
            let want = wanted(&[("a", "blue", first), ("b", second.0, &second.1)]);
            let refused = &want.refused[&Entity::Container("b".parse().unwrap())];
            assert!(refused.contains(reason), "{refused}");
            assert_eq!(link(&want, "a").company, Company::default());
        }
    }
}
