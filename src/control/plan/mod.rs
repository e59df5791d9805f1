//! What has to be done to get from what is in place to what is wanted.
//!
//! # Theory of operation
//!
//! Start, reload, healing, requests at run time and stop are one thing: the [`State`] that the
//! kernel and the NOS have accepted differs from the one that is wanted. [`plan`] is a pure
//! function of the two. It returns [`Group`]s of [`Step`]s; [`carry_out`] has an [`Executor`]
//! carry them out.
//!
//! - A **facet** is a part of the state that is accepted or refused as a whole: what a container
//!   has registered ([`Claim`]), its interface ([`ContainerLink`]), an uplink's addresses ([`Network`]), its
//!   device ([`OpenDevice`]), a capture. A step changes facets of one kind from one value to another,
//!   so its undo is the same step with the values exchanged.
//! - An entity **needs** another one that gives up a port, an address, a namespace, an interface or
//!   a file that it takes. Entities that need one another, as containers that swap ports, are one
//!   **group**. If a step fails, the steps of its group are undone, last one first, with those of
//!   the groups that need it; all others go on. So each group ends as it was, or as it is wanted.
//! - Steps of one [`Phase`] are carried out together, of all groups, so that waits of the kernel
//!   overlap. Phases are ordered so that everything is released before it is taken, and the NOS
//!   knows a container's ports before its interface exists.
//! - What does not differ has no step: it is not touched.
//!
//! Routes come last and stand alone: those whose uplinks the NOS has are installed, whatever became
//! of others.

mod carry_out;
mod needs;
mod steps;
#[cfg(test)]
mod tests;
mod want;

use core::net::{IpAddr, Ipv6Addr};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use nos_shim::ident::MacAddr;
use nos_shim::ports::{AddressMode, Policy, PortRange, Transport};
use nos_shim::vlan::VlanId;

use crate::control::attach::Company;
use crate::control::config::{
    ContainerDevice, Mtu, Name, NetnsRef, Route, ServiceConfig, UplinkDevice, VrfName,
};
use crate::control::kernel::NamespaceId;
use crate::interface_name::InterfaceName;

pub use carry_out::{Cause, Executor, Failure, Outcome, carry_out};
pub use steps::plan;
pub use want::{
    InterfacePresence, LinkPresence, NamespacePresence, Observed, Station, Want, claim, routes_of,
};

/// What is in place, or shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// What containers have registered with the NOS.
    pub claims: BTreeMap<Name, Claim>,
    /// Interfaces of containers.
    pub links: BTreeMap<Name, ContainerLink>,
    /// What the NOS knows of its uplinks.
    pub networks: BTreeMap<Name, Network>,
    /// Devices of uplinks that are open.
    pub devices: BTreeMap<Name, OpenDevice>,
    /// Captures in progress.
    pub captures: BTreeMap<Entity, PathBuf>,
    /// What the NOS itself offers, by VRF. One that is not here has no services, and answers pings.
    pub services: BTreeMap<VrfName, ServiceConfig>,
    /// Static routes that are installed.
    pub routes: Vec<Route>,
}

/// Whoever can be refused something.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entity {
    /// An uplink: what the NOS knows of it, and its device while that is open.
    Uplink(Name),
    /// The device of an uplink that has none open. It can be refused without the NOS losing the
    /// uplink's addresses.
    Device(Name),
    /// A container.
    Container(Name),
    /// The NOS's own services in a VRF.
    Services(VrfName),
    /// The static routes.
    Routes,
}

impl Entity {
    /// The name of an uplink or a container.
    #[must_use]
    pub fn name(&self) -> Option<&Name> {
        match self {
            Self::Uplink(name) | Self::Device(name) | Self::Container(name) => Some(name),
            Self::Services(_) | Self::Routes => None,
        }
    }
}

impl core::fmt::Display for Entity {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Uplink(name) | Self::Device(name) => write!(f, "uplink '{name}'"),
            Self::Container(name) => write!(f, "container '{name}'"),
            Self::Services(VrfName::Default) => f.write_str("services"),
            Self::Services(vrf) => write!(f, "services of VRF '{vrf}'"),
            Self::Routes => f.write_str("routes"),
        }
    }
}

/// What a container has registered with the NOS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Where its packets are looked up.
    pub vrf: VrfName,
    /// The network that it is in.
    pub network: Option<Name>,
    /// Whose its addresses are.
    pub mode: AddressMode,
    /// Its addresses: of the NOS, or its own.
    pub addresses: Vec<IpAddr>,
    /// The link-local address of an uplink that it uses besides.
    pub link_local: Option<LinkLocal>,
    /// TCP ports that it listens on.
    pub tcp: Vec<PortRange>,
    /// UDP ports that it receives on.
    pub udp: Vec<PortRange>,
    /// TCP and UDP ports from which it opens flows.
    pub ephemeral: Vec<PortRange>,
    /// With whom it may talk.
    pub policy: Policy,
    /// Longest IP packet on its link.
    pub mtu: Mtu,
    /// MAC address of its interface.
    pub mac: MacAddr,
    /// Networks of other stations on its link, where there may be some.
    pub segment: Option<Arc<[IpNet]>>,
}

/// The NOS's link-local address on the link of an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkLocal {
    /// The uplink.
    pub uplink: Name,
    /// The address, which follows from the uplink's MAC address.
    pub address: Ipv6Addr,
}

/// A container's interface, and what its namespace got with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerLink {
    /// By what the namespace is found.
    pub netns: NetnsRef,
    /// Which namespace that was.
    pub namespace: NamespaceId,
    /// The kind of device.
    pub device: ContainerDevice,
    /// The interface's name inside.
    pub interface: InterfaceName,
    /// MAC address of the interface.
    pub mac: MacAddr,
    /// Whether checksum and segmentation offload may be used.
    pub offload: bool,
    /// Whose its addresses are.
    pub mode: AddressMode,
    /// Addresses on `lo`.
    pub addresses: Vec<IpAddr>,
    /// Addresses on the interface.
    pub link_addresses: Vec<IpNet>,
    /// The interface's link-local address, if it is an uplink's.
    pub link_local: Option<Ipv6Addr>,
    /// Networks of the uplinks, to which it gets routes.
    pub networks: Arc<[IpNet]>,
    /// Those that the namespace gives to sockets; none for its own setting.
    pub ephemeral: Vec<PortRange>,
    /// Whether sockets that ask for no port get one of its own.
    pub opens_flows: bool,
    /// Its place among the attachments of the namespace.
    pub company: Company,
    /// Longest IP packet.
    pub mtu: Mtu,
}

impl ContainerLink {
    /// Whether the interface can stay when this becomes `other`.
    #[must_use]
    pub fn keeps_interface(&self, other: &Self) -> bool {
        let identity = |link: &Self| {
            let Self {
                namespace,
                device,
                interface,
                mac,
                offload,
                ..
            } = link;
            (
                *namespace,
                device.clone(),
                interface.clone(),
                *mac,
                *offload,
            )
        };
        identity(self) == identity(other)
    }
}

/// What the NOS knows of an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Where packets that come in are looked up.
    pub vrf: VrfName,
    /// Addresses of the NOS, with their network's prefix length.
    pub addresses: Vec<IpNet>,
    /// MAC address of the NOS on this link.
    pub mac: MacAddr,
    /// Octets of the longest IP packet.
    pub mtu: u16,
    /// Whether hosts on this link are told of better first hops there.
    pub redirects: bool,
    /// Multicast groups that the NOS is in on this link, besides those of its addresses.
    pub groups: Vec<IpAddr>,
    /// Addresses of VRFs that it has left: the NOS's there until containers have followed.
    pub behind: Vec<(VrfName, IpNet)>,
}

/// The open device of an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenDevice {
    /// As it is configured.
    pub device: UplinkDevice,
    /// The VLAN of it that is used; `None` for the frames without a tag.
    pub vlan: Option<VlanId>,
    /// The kernel's number of the interface; zero for a TAP, which is made under its name.
    pub index: u32,
    /// MAC address of the NOS on this link.
    pub mac: MacAddr,
    /// Whether checksum and segmentation offload may be used.
    pub offload: bool,
    /// MTU that a TAP gets. Of an interface that exists, what it has.
    pub mtu: u32,
}

impl OpenDevice {
    /// Whether the device can stay open when this becomes `other`.
    #[must_use]
    pub fn keeps_device(&self, other: &Self) -> bool {
        let identity = |open: &Self| {
            let Self {
                device,
                vlan,
                index,
                mac,
                offload,
                ..
            } = open;
            (device.clone(), *vlan, *index, *mac, *offload)
        };
        identity(self) == identity(other)
    }
}

/// A facet's value before and after; `None` where there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<T> {
    /// Before.
    pub old: Option<T>,
    /// After.
    pub new: Option<T>,
}

impl<T> Change<T> {
    fn between(old: Option<T>, new: Option<T>) -> Self {
        Self { old, new }
    }

    fn undo(self) -> Self {
        Self {
            old: self.new,
            new: self.old,
        }
    }
}

/// One thing to do. Steps name the entities that they are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes, changes or takes away a container's interface. From a value to the same: repair.
    Link(Name, Box<Change<ContainerLink>>),
    /// Opens, changes or closes an uplink's device.
    Device(Name, Change<OpenDevice>),
    /// Begins or ends a capture.
    Capture(Entity, Change<PathBuf>),
    /// Changes what the NOS knows of uplinks: all of these at once.
    Networks(Vec<(Name, Change<Network>)>),
    /// Changes what containers have registered: all of these at once, or none.
    Claims(Vec<(Name, Change<Claim>)>),
    /// Changes what the NOS itself offers in a VRF.
    Services {
        /// Where.
        vrf: VrfName,
        /// Before.
        old: ServiceConfig,
        /// After.
        new: ServiceConfig,
    },
}

/// When a step is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Captures that end.
    EndCaptures,
    /// Interfaces of containers that go.
    Detach,
    /// Devices of uplinks that go.
    Close,
    /// Services that end.
    EndServices,
    /// Containers' own addresses that uplinks get.
    Disown,
    /// Addresses that come. Those that go stay for now.
    Widen,
    /// Ports and addresses of containers.
    Claim,
    /// Addresses that go.
    Narrow,
    /// Containers' own addresses that uplinks had.
    Own,
    /// Devices of uplinks that come or change.
    Open,
    /// Interfaces of containers that come or change.
    Attach,
    /// Services that begin.
    BeginServices,
    /// Captures that begin.
    BeginCaptures,
}

impl Step {
    /// The step that takes this one back.
    #[must_use]
    pub fn undo(self) -> Self {
        fn all<T>(changes: Vec<(Name, Change<T>)>) -> Vec<(Name, Change<T>)> {
            let undo = |(name, change): (Name, Change<T>)| (name, change.undo());
            changes.into_iter().map(undo).collect()
        }
        match self {
            Self::Link(name, change) => Self::Link(name, Box::new(change.undo())),
            Self::Device(name, change) => Self::Device(name, change.undo()),
            Self::Capture(of, change) => Self::Capture(of, change.undo()),
            Self::Networks(changes) => Self::Networks(all(changes)),
            Self::Claims(changes) => Self::Claims(all(changes)),
            Self::Services { vrf, old, new } => Self::Services {
                vrf,
                old: new,
                new: old,
            },
        }
    }

    /// The entity that a failure is told of: the step's own, or the first of several.
    #[must_use]
    pub fn entity(&self) -> Entity {
        let first = |name: Option<&Name>, entity: fn(Name) -> Entity| {
            name.cloned().map_or(Entity::Routes, entity)
        };
        match self {
            Self::Link(name, _) => Entity::Container(name.clone()),
            Self::Device(name, _) => Entity::Uplink(name.clone()),
            Self::Capture(of, _) => of.clone(),
            Self::Networks(changes) => first(changes.first().map(|(name, _)| name), Entity::Uplink),
            Self::Claims(changes) => {
                first(changes.first().map(|(name, _)| name), Entity::Container)
            }
            Self::Services { vrf, .. } => Entity::Services(vrf.clone()),
        }
    }
}

impl State {
    /// What the NOS itself offers in a VRF.
    #[must_use]
    pub fn services_of(&self, vrf: &VrfName) -> ServiceConfig {
        self.services.get(vrf).cloned().unwrap_or_default()
    }

    fn set_services(&mut self, vrf: &VrfName, config: &ServiceConfig) {
        if *config == ServiceConfig::default() {
            self.services.remove(vrf);
        } else {
            self.services.insert(vrf.clone(), config.clone());
        }
    }

    /// Notes that a step was carried out.
    pub fn record(&mut self, step: &Step) {
        fn set<K: Clone + Ord, T: Clone>(map: &mut BTreeMap<K, T>, key: &K, value: &Change<T>) {
            match &value.new {
                Some(new) => drop(map.insert(key.clone(), new.clone())),
                None => drop(map.remove(key)),
            }
        }
        match step {
            Step::Link(name, change) => set(&mut self.links, name, change),
            Step::Device(name, change) => set(&mut self.devices, name, change),
            Step::Capture(of, change) => set(&mut self.captures, of, change),
            Step::Networks(changes) => {
                for (name, change) in changes {
                    set(&mut self.networks, name, change);
                }
            }
            Step::Claims(changes) => {
                for (name, change) in changes {
                    set(&mut self.claims, name, change);
                }
            }
            Step::Services { vrf, new, .. } => self.set_services(vrf, new),
        }
    }

    /// Who has a port on one of the addresses of this container; itself, if it has.
    #[must_use]
    pub fn owner_of(&self, container: &Name, transport: Transport, port: u16) -> Option<Entity> {
        let own = self.claims.get(container)?;
        let services = self.services_of(&own.vrf);
        if services
            .services
            .iter()
            .filter(|service| service.uses(transport))
            .any(|service| service.port().get() == port)
        {
            return Some(Entity::Services(own.vrf.clone()));
        }
        let shares = |claim: &Claim| {
            let mut addresses = claim.addresses.iter();
            claim.vrf == own.vrf && addresses.any(|address| own.addresses.contains(address))
        };
        let has = |claim: &Claim| {
            needs::transports_and_ranges(claim)
                .any(|(of, range)| of == transport && range.contains(port))
        };
        let mut claims = self.claims.iter();
        let (owner, _) = claims.find(|(_, claim)| shares(claim) && has(claim))?;
        Some(Entity::Container(owner.clone()))
    }

    /// Makes `entity` in this state what it is in `other`.
    pub fn copy_entity(&mut self, entity: &Entity, other: &Self) {
        fn copy<K: Clone + Ord, T: Clone>(to: &mut BTreeMap<K, T>, from: &BTreeMap<K, T>, key: &K) {
            match from.get(key) {
                Some(value) => drop(to.insert(key.clone(), value.clone())),
                None => drop(to.remove(key)),
            }
        }
        copy(&mut self.captures, &other.captures, entity);
        match entity {
            Entity::Device(name) => copy(&mut self.devices, &other.devices, name),
            Entity::Uplink(name) => {
                copy(&mut self.networks, &other.networks, name);
                copy(&mut self.devices, &other.devices, name);
            }
            Entity::Container(name) => {
                copy(&mut self.claims, &other.claims, name);
                copy(&mut self.links, &other.links, name);
            }
            Entity::Services(vrf) => self.set_services(vrf, &other.services_of(vrf)),
            Entity::Routes => self.routes.clone_from(&other.routes),
        }
    }
}

/// Entities that change together, and what to do for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Who is concerned.
    pub entities: Vec<Entity>,
    /// Places of the groups, all before this one, that have to be done for it.
    pub needs: BTreeSet<usize>,
    /// What to do, in this order.
    pub steps: Vec<(Phase, Step)>,
}
