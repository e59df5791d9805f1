//! Containers whose links have other stations: what they say of these, and of their interfaces.

use std::collections::HashMap;

use ipnet::IpNet;

use super::ContainerDevice;
use super::entries::{ContainerEntry, UplinkEntry};
use super::place::At;
use super::report::{Report, unique};

/// What is on a bridge is not to be looked for behind the NOS; and an interface of somebody else has what it has.
pub(super) fn check(report: &Report<'_>, container: &ContainerEntry, uplinks: &[UplinkEntry]) {
    let device = container.device.as_ref();
    if device.is_some_and(ContainerDevice::is_on_segment)
        && let Some(link) = &container.link_local
    {
        let reason = "cannot be shared on a bridge, which is a link of its own";
        report.error(link.place, reason);
    }
    let existing = device == Some(&ContainerDevice::Existing);
    if existing && let Some(mac) = &container.mac {
        let reason = "is the interface's own, with a device \"existing\"; leave it out";
        report.error(mac.place, reason);
    }
    if let Some(first) = container.link_addresses.first() {
        match device {
            Some(ContainerDevice::Bridge(_)) => link_addresses(report, container, uplinks),
            Some(ContainerDevice::Existing) => report.error(
                first.place,
                "are the interface's own, with a device \"existing\"; leave them out",
            ),
            _ => report.error(
                first.place,
                "are for a device \"bridge:INTERFACE\": no other station is on the link",
            ),
        }
    }
}

fn link_addresses(report: &Report<'_>, container: &ContainerEntry, uplinks: &[UplinkEntry]) {
    let vrf = &container.vrf.value;
    for &At { value, place } in &container.link_addresses {
        let overlaps =
            |net: &IpNet| net.contains(&value.network()) || value.contains(&net.network());
        let mut nets = uplinks.iter().filter(|uplink| uplink.vrf == *vrf);
        let found = nets.find_map(|uplink| {
            let mut own = uplink.addresses.iter().map(|at| at.value);
            Some((uplink, own.find(overlaps)?))
        });
        if let Some((uplink, net)) = found {
            let reason = format!(
                "{value} overlaps {}, the network of uplink \"{}\"",
                net.trunc(),
                uplink.name.value
            );
            report.error(place, reason);
        }
    }
    let addresses = container.link_addresses.iter().map(|at| At {
        value: at.value.addr(),
        place: at.place,
    });
    unique(report, "address", addresses);
}

/// No two containers on a bridge have an address of their interfaces.
pub(super) fn check_once(report: &Report<'_>, containers: &[ContainerEntry]) {
    let mut owners = HashMap::new();
    for container in containers {
        let Some(ContainerDevice::Bridge(bridge)) = &container.device else {
            continue;
        };
        for at in &container.link_addresses {
            let Some(other) = owners.insert((bridge, at.value.addr()), container) else {
                continue;
            };
            // Twice in one container is a mistake of its own.
            if !core::ptr::eq(other, container) {
                let owner = &other.name.value;
                let address = at.value.addr();
                let reason = format!("{address} is that of container \"{owner}\" on {bridge}");
                report.error(at.place, reason);
            }
        }
    }
}
