//! Networks of containers: what those in one have in common.
//!
//! A network says of its containers what none of them says of itself: their VRF, and whose addresses they
//! share. For the rest it has defaults. All of it is written into the entries of its containers before these
//! are compared with anything, so that nothing else has to know where an entry has it from.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use nos_shim::ports::{AddressMode, PortRange, Restriction, Transport};
use nos_shim::prefix_set::PrefixSet;

use super::entries::{ContainerEntry, Entries, NetworkEntry, UplinkEntry};
use super::place::At;
use super::report::Report;
use super::values::suggestion;
use super::{ContainerNetwork, Name};

/// Names that engines have for what is no network of ours.
const OF_ENGINES: [&str; 3] = ["default", "host", "none"];

/// Gives the containers of each network what it says. One whose network there is not is reported, and left
/// out.
pub(super) fn apply(report: &Report<'_>, entries: &mut Entries) {
    let Entries {
        networks,
        all_networks,
        uplinks,
        containers,
        ..
    } = entries;
    for At { value, place } in networks.iter().map(|network| network.name.as_ref()) {
        if OF_ENGINES.contains(&value.as_str()) {
            report.error(
                place,
                format!("\"{value}\" is a name that engines have for others"),
            );
        }
    }
    containers.retain_mut(|container| {
        let Some(At { value, place }) = container.network.clone() else {
            refuse_pool(report, container);
            return true;
        };
        let found = networks.iter().find(|network| network.name.value == value);
        match found {
            Some(network) => join(report, container, network, uplinks),
            None if *all_networks => report.error(place, missing(&value, networks)),
            None => {}
        }
        found.is_some()
    });
}

fn missing(name: &Name, networks: &[NetworkEntry]) -> String {
    let known: Vec<_> = networks.iter().map(|it| it.name.value.as_str()).collect();
    let hint = suggestion(name.as_str(), &known);
    format!("there is no network \"{name}\"{hint}")
}

fn join(
    report: &Report<'_>,
    container: &mut ContainerEntry,
    network: &NetworkEntry,
    uplinks: &[UplinkEntry],
) {
    let place = container.network.as_ref().map(|at| at.place);
    let place = place.unwrap_or(container.name.place);
    if container.names_vrf {
        let reason = format!(
            "is what network \"{}\" says ({}); leave it out",
            network.name.value,
            report.spot(network.vrf.place)
        );
        report.error(container.vrf.place, reason);
    }
    container.vrf = At {
        value: network.vrf.value.clone(),
        place,
    };
    if container.device.is_none() {
        container.device.clone_from(&network.device);
    }
    container.mode = network.mode.addresses();
    if container.policy.to.is_none() {
        container.policy.to.clone_from(&network.to);
    }
    if container.mode == AddressMode::Routed {
        let own = container.from.take().map(|(_, from)| from);
        if let Some(from) = own.or_else(|| network.from.clone()) {
            container.policy.from = to_all_ports(&from);
        }
        return without_shared(report, container, network);
    }
    refuse_pool(report, container);
    if let Some(names) = &network.uplinks {
        let own = addresses_of(names, uplinks);
        match &container.addresses {
            None => {
                let at = own.into_iter().map(|value| At { value, place });
                container.addresses = Some(at.collect());
            }
            Some(wanted) => {
                for at in wanted.iter().filter(|at| !own.contains(&at.value)) {
                    let reason = format!(
                        "{} is no address of an uplink of network \"{}\"",
                        at.value, network.name.value
                    );
                    report.error(at.place, reason);
                }
            }
        }
        if let Some(link) = &container.link_local
            && !names.iter().any(|at| at.value == link.value)
        {
            let reason = format!(
                "\"{}\" is no uplink of network \"{}\"",
                link.value, network.name.value
            );
            report.error(link.place, reason);
        }
    }
    container.outside = container.outside.or(network.outside);
}

/// Who shares the NOS's addresses is given none.
fn refuse_pool(report: &Report<'_>, container: &ContainerEntry) {
    if let Some(place) = container.pooled {
        let reason = "is for containers of a network with mode = \"routed\": others share the NOS's addresses";
        report.error(place, reason);
    }
}

/// Who may open flows to any port.
fn to_all_ports(from: &Arc<PrefixSet>) -> Vec<Restriction> {
    let all = PortRange::new(1, u16::MAX).into_iter();
    let rules = all.flat_map(|range| {
        [Transport::Tcp, Transport::Udp].map(|transport| Restriction {
            transport,
            range,
            from: Arc::clone(from),
        })
    });
    rules.collect()
}

/// A container with addresses of its own says which, and nothing about those that it would share.
fn without_shared(report: &Report<'_>, container: &mut ContainerEntry, network: &NetworkEntry) {
    let at = container.network.as_ref().map(|at| at.place);
    let at = at.unwrap_or(container.name.place);
    let name = &network.name.value;
    if container.addresses.is_none() {
        let reason = format!(
            "containers of \"{name}\" have addresses of their own; give `addresses`, as pools are for \
             those that are attached at run time"
        );
        report.error(at, reason);
        // None of the NOS's in their place.
        container.addresses = Some(Vec::new());
    }
    let first = |list: &[At<PortRange>]| list.first().map(|at| at.place);
    let policed = container.outside.is_some();
    let meant_for_shared = [
        first(&container.tcp),
        first(&container.udp),
        first(&container.ephemeral),
        container.link_local.as_ref().map(|at| at.place),
        policed.then_some(at),
    ];
    for place in meant_for_shared.into_iter().flatten() {
        let reason = format!(
            "containers of \"{name}\" have addresses of their own, with all ports; ports, link_local \
             and outside are for those that share the NOS's"
        );
        report.error(place, reason);
    }
}

/// The addresses that the NOS has by these uplinks, each once.
fn addresses_of(names: &[At<Name>], uplinks: &[UplinkEntry]) -> Vec<IpAddr> {
    let named = |uplink: &&UplinkEntry| names.iter().any(|at| at.value == uplink.name.value);
    let uplinks = uplinks.iter().filter(named);
    let addresses = uplinks.flat_map(|uplink| &uplink.addresses);
    let mut seen = BTreeSet::new();
    addresses
        .map(|at| at.value.addr())
        .filter(|address| seen.insert(*address))
        .collect()
}

/// Reports uplinks that there are not, or that are in another VRF than their network.
pub(super) fn check(report: &Report<'_>, entries: &Entries) {
    if !entries.all_uplinks {
        return;
    }
    for network in &entries.networks {
        for At { value, place } in network.uplinks.iter().flatten() {
            let mut uplinks = entries.uplinks.iter();
            let Some(uplink) = uplinks.find(|uplink| uplink.name.value == *value) else {
                let known: Vec<_> = entries
                    .uplinks
                    .iter()
                    .map(|it| it.name.value.as_str())
                    .collect();
                let hint = suggestion(value.as_str(), &known);
                report.error(*place, format!("there is no uplink \"{value}\"{hint}"));
                continue;
            };
            if uplink.vrf != network.vrf.value {
                let reason = format!(
                    "network \"{}\" is in VRF \"{}\", and uplink \"{value}\" in VRF \"{}\"",
                    network.name.value, network.vrf.value, uplink.vrf
                );
                report.error(*place, reason);
            }
        }
    }
}

/// An entry as it is in the finished configuration.
pub(super) fn finished(entry: NetworkEntry) -> ContainerNetwork {
    let NetworkEntry {
        name,
        mode,
        vrf,
        uplinks,
        pool,
        device,
        to,
        from,
        outside,
    } = entry;
    let uplinks = uplinks.unwrap_or_default().into_iter();
    ContainerNetwork {
        name: name.value,
        mode,
        vrf: vrf.value,
        uplinks: uplinks.map(|at| at.value).collect(),
        pool,
        device,
        to,
        from,
        outside,
    }
}
