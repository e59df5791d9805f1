//! `ADD`: a container gets its interface.

use core::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde_json::Value;

use super::configuration::{Place, Runtime, Wanted, address, mac};
use super::environment::{Environment, POD_NAME, POD_NAMESPACE};
use super::error::CniError;
use super::{ENGINE, Invocation, inside, ipam, loopback, reply};
use crate::daemon::Daemon;
use crate::endpoint::{Endpoint, join, leave};
use crate::ports::{Ports, Protocol, Use};

/// What an engine and the configuration ask for, read before anything is done.
struct Asked<'a> {
    invocation: &'a Invocation,
    netns: &'a Path,
    wanted: Wanted,
    runtime: Runtime,
    /// What is asked for this container alone.
    fixed: Option<Vec<IpAddr>>,
    mac: Option<String>,
}

/// Attaches the container, and says what it has.
pub(super) fn add(invocation: &Invocation) -> Result<Value, CniError> {
    let asked = Asked::read(invocation)?;
    let base = reply::Base::read(invocation, asked.netns, asked.wanted.device.as_ref())?;
    let plain = asked.endpoint(None)?;
    let Some(kind) = &invocation.configuration.ipam else {
        return attached(invocation, &plain, &base, &ipam::Assigned::default());
    };
    if asked.runtime.chosen.addresses.is_some() {
        return Err(CniError::configuration(format!(
            "annotation nos-relay.io/address: addresses are the choice of ipam {kind:?}"
        )));
    }
    let assigned = ipam::add(invocation, kind)?;
    let outcome = asked
        .endpoint(Some(&assigned.addresses))
        .and_then(|endpoint| attached(invocation, &endpoint, &base, &assigned));
    if outcome.is_err() {
        // What it fails for is what the engine has to know.
        let _ = ipam::delegate(invocation, kind, super::Command::Del);
    }
    outcome
}

fn attached(
    invocation: &Invocation,
    endpoint: &Endpoint,
    base: &reply::Base,
    assigned: &ipam::Assigned,
) -> Result<Value, CniError> {
    let daemon = Daemon::at(&invocation.configuration.control);
    loopback::await_it(&endpoint.netns, &invocation.environment.container);
    let mut attachment = join(&daemon, endpoint)?;
    // Without IPv6 inside, the daemon leaves it out.
    let inside = inside::look(&endpoint.netns, &endpoint.interface).inspect_err(|_| {
        // That the container has gone is what the engine has to know.
        let _ = leave(&daemon, &endpoint.name);
    })?;
    attachment
        .addresses
        .retain(|address| inside.addresses.contains(address));
    attachment
        .link_addresses
        .retain(|net| inside.addresses.contains(&net.addr()));
    Ok(base.with(
        invocation.configuration.version,
        endpoint,
        &attachment,
        &inside,
        &assigned.dns,
    ))
}

/// The pod that a container is of, by which it gets the address that the pod has had before: of each further
/// interface another one.
fn workload(environment: &Environment) -> Option<String> {
    let argument = |key| environment.arguments.get(key).filter(|it| !it.is_empty());
    let (namespace, name) = (argument(POD_NAMESPACE)?, argument(POD_NAME)?);
    Some(match environment.interface.as_str() {
        "eth0" => format!("{namespace}/{name}"),
        other => format!("{namespace}/{name}/{other}"),
    })
}

impl<'a> Asked<'a> {
    fn read(invocation: &'a Invocation) -> Result<Self, CniError> {
        let configuration = &invocation.configuration;
        let environment = &invocation.environment;
        let runtime = configuration.runtime()?;
        let of_arguments = environment.arguments.get("IP");
        let of_arguments = of_arguments.map(|text| {
            address(text)
                .map(|address| vec![address])
                .ok_or_else(|| CniError::configuration("CNI_ARGS: IP is no address"))
        });
        let fixed = match (&runtime.addresses, of_arguments.transpose()?) {
            (Some(addresses), _) => Some(addresses.clone()),
            (None, Some(addresses)) => Some(addresses),
            (None, None) => configuration.arguments()?,
        };
        let of_arguments = environment.arguments.get("MAC");
        let of_arguments = of_arguments.map(|text| mac(text)).transpose()?;
        Ok(Self {
            invocation,
            netns: environment.netns.as_deref().unwrap_or(Path::new("/")),
            wanted: configuration.wanted()?,
            mac: runtime.mac.clone().or(of_arguments),
            runtime,
            fixed,
        })
    }

    /// The endpoint, with addresses that an IPAM plugin has chosen, if one is there to choose.
    fn endpoint(&self, assigned: Option<&[IpNet]>) -> Result<Endpoint, CniError> {
        let environment = &self.invocation.environment;
        let names = &self.invocation.configuration.names;
        let name = names.container(&environment.container, &environment.interface);
        let place = self.place();
        let chosen = &self.runtime.chosen;
        let addresses = match assigned {
            Some(_) => Vec::new(),
            None => self
                .fixed
                .clone()
                .or_else(|| chosen.addresses.clone())
                .or(place.addresses)
                .unwrap_or_default(),
        };
        Ok(Endpoint {
            engine: ENGINE,
            name: name.map_err(CniError::configuration)?,
            netns: self.netns.to_owned(),
            interface: environment.interface.clone(),
            device: self.wanted.device.clone(),
            ports: self.ports(&match assigned {
                Some(assigned) => assigned.iter().map(IpNet::addr).collect(),
                None => addresses.clone(),
            })?,
            addresses,
            pool: place.pool,
            workload: workload(environment),
            link_addresses: Vec::new(),
            assigned: assigned.unwrap_or_default().to_vec(),
            mac: self.mac.clone(),
            mtu: self.wanted.mtu,
            vrf: place.vrf,
            network: place.network,
            to: self.wanted.to.clone(),
            from: self.wanted.from.clone(),
            routed: false,
            outside: self.wanted.outside.clone(),
        })
    }

    /// The network's own place, over it that of the pool that is chosen, and over it an annotation.
    fn place(&self) -> Place {
        let chosen = &self.runtime.chosen;
        let mut place = self.wanted.place.clone();
        let of_configuration = chosen.pool.as_ref().and_then(|chosen| {
            let mut pools = self.wanted.pools.iter();
            pools.find(|(name, _)| name == chosen)
        });
        if let Some((_, pool)) = of_configuration {
            place = pool.clone().over(place);
        }
        let annotated = Place {
            network: chosen.network.clone(),
            ..Place::default()
        };
        place = annotated.over(place);
        if of_configuration.is_none()
            && let Some(pool) = &chosen.pool
        {
            // The daemon's, which knows whether there is one.
            place.pool = Some(pool.clone());
            place.addresses = None;
        }
        place
    }

    fn ports(&self, addresses: &[IpAddr]) -> Result<Ports, CniError> {
        let mut ports = Ports::default();
        let (wanted, chosen) = (&self.wanted, &self.runtime.chosen);
        for (used, given) in [
            (
                Use::Listen(Protocol::Tcp),
                chosen.tcp.as_ref().or(wanted.tcp.as_ref()),
            ),
            (
                Use::Listen(Protocol::Udp),
                chosen.udp.as_ref().or(wanted.udp.as_ref()),
            ),
            (
                Use::Ephemeral,
                chosen.ephemeral.as_ref().or(wanted.ephemeral.as_ref()),
            ),
        ] {
            if let Some(given) = given {
                ports.give(used, given);
            }
        }
        let only = match addresses {
            [only] => Some(*only),
            _ => None,
        };
        for mapping in &self.runtime.mappings {
            let published = ports.publish(*mapping, only);
            published.map_err(|error| {
                CniError::configuration(format!("runtimeConfig.portMappings: {error}"))
            })?;
        }
        Ok(ports)
    }
}
