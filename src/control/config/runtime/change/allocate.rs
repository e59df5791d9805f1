//! Ports out of the pool.

use nos_shim::ports::{PortRange, Transport};
use toml::de::DeValue;

use crate::control::config::claims::first_gap;
use crate::control::config::document::Section;
use crate::control::config::place::At;
use crate::control::config::runtime::ports::Ports;
use crate::control::config::values;
use crate::control::config::vrf::in_vrf;
use crate::control::config::{Config, ConfigErrors, Holder, Name, VrfName};

use super::{Changed, ConfigFile, Holders, Keys, Overlay, holder, read};

impl ConfigFile {
    pub(super) fn allocate(
        &self,
        overlay: &Overlay,
        keys: &Keys,
        holders: &Holders,
    ) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let request = read(&report, keys, "allocate", |root| allocation(root, holders));
        let request = request.filter(|request| self.is_container(&report, overlay, &request.name));
        let Some(request) = request else {
            return report.finish(None);
        };
        let current = self.config(overlay)?;
        let range = free_in_pool(&current, &request);
        if let Err(reason) = &range {
            report.error(request.size.place, reason.as_str());
        }
        let name = &request.name.value;
        let own = self.held_ports(overlay, name, request.holder);
        let range = report.finish(range.ok())?;
        let list = |transport| match request.transports.contains(&transport) {
            true => vec![range],
            false => Vec::new(),
        };
        let more = match request.kind {
            Kind::Ephemeral => Ports {
                ephemeral: vec![range],
                ..Ports::default()
            },
            Kind::Listen => Ports {
                tcp: list(Transport::Tcp),
                udp: list(Transport::Udp),
                ..Ports::default()
            },
        };
        let changed = self.with_ports(overlay, name, request.holder, own.with(&more))?;
        Ok(Changed {
            range: Some(range),
            ..changed
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Listen,
    Ephemeral,
}

struct Allocation {
    name: At<Name>,
    holder: Option<Holder>,
    size: At<u32>,
    transports: &'static [Transport],
    kind: Kind,
}

const BOTH: &[Transport] = &[Transport::Tcp, Transport::Udp];

fn allocation(root: &mut Section<'_>, holders: &Holders) -> Option<Allocation> {
    let name = root.required("container", "\"web\"", values::name);
    let size = root.required("size", "100", size);
    let protocol = root.optional("protocol", protocol);
    let kind = root
        .optional("kind", kind)
        .map_or(Kind::Listen, |at| at.value);
    let holder = holder::read(root, holders, true);
    if let (Kind::Ephemeral, Some(at)) = (kind, &protocol)
        && at.value.len() == 1
    {
        root.error(at.place, "an ephemeral range counts for both; leave it out");
    }
    Some(Allocation {
        name: name?,
        holder: holder?,
        size: size?,
        transports: protocol.map_or(BOTH, |at| at.value),
        kind,
    })
}

fn size(value: &DeValue<'_>) -> Result<u32, String> {
    values::integer(value, 1..=u32::from(u16::MAX))
}

fn protocol(value: &DeValue<'_>) -> Result<&'static [Transport], String> {
    let options: [(&str, &'static [Transport]); 3] = [
        ("tcp", &[Transport::Tcp]),
        ("udp", &[Transport::Udp]),
        ("both", BOTH),
    ];
    values::choice(value, &options)
}

fn kind(value: &DeValue<'_>) -> Result<Kind, String> {
    let options = [("listen", Kind::Listen), ("ephemeral", Kind::Ephemeral)];
    values::choice(value, &options)
}

/// The first range of the pool that nobody has, on any address of the container's VRF.
fn free_in_pool(config: &Config, request: &Allocation) -> Result<PortRange, String> {
    if config.pool.is_empty() {
        return Err("there is no pool; set ports.pool in the configuration".to_owned());
    }
    let container = config.container(&request.name.value);
    let vrf = container.map_or(&VrfName::Default, |container| &container.vrf);
    let taken = taken(config, vrf, request.transports);
    let size = request.size.value;
    let in_range = |pool: &PortRange| {
        let free = first_gap(taken.iter().copied(), pool.first().into(), size)?;
        (free.last() <= pool.last()).then_some(free)
    };
    config.pool.iter().find_map(in_range).ok_or_else(|| {
        let pool: Vec<_> = config.pool.iter().map(ToString::to_string).collect();
        let (pool, vrf) = (pool.join(", "), in_vrf(vrf));
        format!("no {size} ports in a row are free in {pool}{vrf}")
    })
}

/// All ranges that anybody in a VRF has for these protocols, in their order.
fn taken(config: &Config, vrf: &VrfName, transports: &[Transport]) -> Vec<PortRange> {
    let has = |transport| transports.contains(&transport);
    let mut taken = Vec::new();
    let containers = config.containers.iter();
    for container in containers.filter(|container| container.vrf == *vrf) {
        if has(Transport::Tcp) {
            taken.extend(&container.tcp);
        }
        if has(Transport::Udp) {
            taken.extend(&container.udp);
        }
        taken.extend(&container.ephemeral);
    }
    let services = config.services.get(vrf);
    let services = services.into_iter().flat_map(|of_vrf| &of_vrf.services);
    let services = services.filter(|service| transports.iter().any(|it| service.uses(*it)));
    taken.extend(services.map(|service| PortRange::from(service.port())));
    taken.sort_unstable();
    taken
}
