//! What is registered, one by one, for those who ask.

use core::fmt;

use super::super::vrf::in_vrf;
use super::{Holder, Overlay};

/// What something that was registered is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// Something that was registered at run time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Registration {
    /// What it is.
    pub kind: RegistrationKind,
    /// The network, the container, the route's prefix, metric and VRF (unless it is the default one), or the uplink.
    pub name: String,
    /// The ports, the address or the group; empty of a network, of a container and of a route.
    pub what: Vec<String>,
    /// With whose end it ends, if with anybody's.
    pub holder: Option<Holder>,
}

impl fmt::Display for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, what, .. } = self;
        match self.kind {
            RegistrationKind::Network => write!(f, "network '{name}'"),
            RegistrationKind::Container => write!(f, "container '{name}'"),
            RegistrationKind::Ports => write!(f, "ports of '{name}' ({})", what.join(", ")),
            RegistrationKind::Route => write!(f, "route {name}"),
            RegistrationKind::Address => {
                write!(f, "address {} of uplink '{name}'", what.join(", "))
            }
            RegistrationKind::Group => write!(f, "group {} of uplink '{name}'", what.join(", ")),
        }
    }
}

impl Overlay {
    /// Everything that is registered.
    #[must_use]
    pub fn registrations(&self) -> Vec<Registration> {
        let one = |kind, name: String, what, holder| Registration {
            kind,
            name,
            what,
            holder,
        };
        let networks = self.networks.iter().map(|(name, it)| {
            let kind = RegistrationKind::Network;
            one(kind, name.to_string(), Vec::new(), it.holder)
        });
        let containers = self.containers.iter().map(|(name, it)| {
            let kind = RegistrationKind::Container;
            one(kind, name.to_string(), Vec::new(), it.holder)
        });
        let ports = self.ports.iter().map(|((name, holder), ports)| {
            let kind = RegistrationKind::Ports;
            one(kind, name.to_string(), ports.listed(), *holder)
        });
        let routes = self.routes.iter().map(|(name, it)| {
            let (vrf, prefix, metric) = name;
            let named = format!("{prefix} metric {metric}{}", in_vrf(vrf));
            one(RegistrationKind::Route, named, Vec::new(), it.holder)
        });
        let addresses = self.addresses.iter().map(|(uplink, it)| {
            let address = vec![it.value.to_string()];
            let kind = RegistrationKind::Address;
            one(kind, uplink.to_string(), address, it.holder)
        });
        let groups = self.groups.iter().map(|(uplink, it)| {
            let group = vec![it.value.to_string()];
            one(
                RegistrationKind::Group,
                uplink.to_string(),
                group,
                it.holder,
            )
        });
        let all = networks.chain(containers).chain(ports).chain(routes);
        all.chain(addresses).chain(groups).collect()
    }
}
