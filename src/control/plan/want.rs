//! What is wanted, of a configuration, as far as it is there.

use core::net::Ipv6Addr;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use nos_shim::ident::MacAddr;
use nos_shim::ports::{Outside, PortRange};

use super::{Claim, ContainerLink, Entity, LinkLocal, Network, OpenDevice, State};
use crate::control::config::{
    Config, Container, Name, NextHop, Route, RouteAction, Uplink, UplinkDevice,
};
use crate::control::kernel::NamespaceId;

/// What was found of what a configuration names.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The daemon's own namespace.
    pub host: NamespaceId,
    /// By container.
    pub namespaces: HashMap<Name, NamespacePresence>,
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
        let mut taken = HashMap::new();
        for container in &config.containers {
            want.container(container, observed, &mut taken);
        }
        want
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
        taken: &mut HashMap<NamespaceId, &'a Name>,
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
        if let Some(reason) = conflict(container, namespace, observed.host, taken) {
            self.refused.insert(entity, reason);
            return;
        }
        taken.insert(namespace, &container.name);
        let name = container.name.clone();
        // Uplinks come before containers.
        let claim = claim(container, &self.state.networks);
        let link_local = claim.link_local.as_ref().map(|shared| shared.address);
        let link = link(container, namespace, link_local);
        self.state.claims.insert(name.clone(), claim);
        self.state.links.insert(name, link);
        if let Some(file) = &container.capture {
            self.state.captures.insert(entity, file.clone());
        }
    }
}

/// Routes, addresses and port range of a namespace are one container's.
fn conflict(
    container: &Container,
    namespace: NamespaceId,
    host: NamespaceId,
    taken: &HashMap<NamespaceId, &Name>,
) -> Option<String> {
    if namespace == host {
        return Some(format!(
            "{} is the namespace of nos-relay itself",
            container.netns
        ));
    }
    let other = taken.get(&namespace)?;
    Some(format!(
        "{} is the namespace of container '{other}'",
        container.netns
    ))
}

/// The device that an uplink shall have open; none where the NOS has it.
fn wanted_device(uplink: &Uplink, observed: &Observed) -> Result<Option<OpenDevice>, String> {
    let open = |index, mac, mtu| OpenDevice {
        device: uplink.device.clone(),
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

/// What a container shall have registered, where the NOS has these uplinks.
#[must_use]
pub fn claim(container: &Container, networks: &BTreeMap<Name, Network>) -> Claim {
    let link_local = container.link_local.as_ref().and_then(|uplink| {
        let network = networks.get(uplink)?;
        Some(LinkLocal {
            uplink: uplink.clone(),
            address: network.mac.link_local(),
        })
    });
    Claim {
        vrf: container.vrf.clone(),
        addresses: container.addresses.clone(),
        link_local,
        tcp: container.tcp.clone(),
        udp: container.udp.clone(),
        ephemeral: container.ephemeral.clone(),
        policy: container.policy.clone(),
        mtu: container.mtu,
        mac: container_mac(container),
    }
}

fn link(
    container: &Container,
    namespace: NamespaceId,
    link_local: Option<Ipv6Addr>,
) -> ContainerLink {
    ContainerLink {
        netns: container.netns.clone(),
        namespace,
        device: container.device,
        interface: container.interface.clone(),
        mac: container_mac(container),
        offload: container.offload,
        addresses: container.addresses.clone(),
        link_local,
        networks: Arc::clone(&container.networks),
        ephemeral: container.ephemeral.clone(),
        opens_flows: opens_flows(container),
        mtu: container.mtu,
    }
}

/// Whether sockets of a container that ask for no port get one from which it may send: from its ephemeral
/// ranges, because it has all that a kernel gives by itself, or because it may learn ports.
fn opens_flows(container: &Container) -> bool {
    let given = PortRange::new(32_768, 60_999).map(|given| {
        let rest = given.without(container.tcp.iter().copied());
        rest.is_empty()
    });
    let learns = container.policy.outside == Outside::Learn;
    learns || !container.ephemeral.is_empty() || given.unwrap_or(false)
}

/// The MAC address of a container's interface.
fn container_mac(container: &Container) -> MacAddr {
    let stable = || MacAddr::stable(&format!("container {}", container.name));
    container.mac.unwrap_or_else(stable)
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
