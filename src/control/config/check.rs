//! What concerns several entries at once, and the finished configuration.

use core::net::IpAddr;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ipnet::IpNet;
use nos_shim::martian;
use nos_shim::ports::{AddressMode, Policy, PortRange};

use super::entries::{ContainerEntry, Entries, FOR_ROUTED, NosEntry, UplinkEntry};
use super::place::{At, Place};
use super::report::{Report, unique};
use super::values::suggestion;
use super::vrf::{Vrf, Vrfs, in_vrf};
use super::{
    Config, Container, ContainerDevice, Mtu, Name, NosPlace, ServiceConfig, Uplink, UplinkDevice,
    VrfName, bridges, channel, claims, networks, routing, sharing,
};

/// Checks the entries against one another, and makes a configuration of them. It counts only if
/// nothing was reported.
pub(super) fn config(report: &Report<'_>, mut entries: Entries) -> Config {
    networks::apply(report, &mut entries);
    let vrfs = Vrfs::of(&entries.uplinks);
    uplinks(report, &entries, &vrfs);
    if entries.all_uplinks && !entries.uplinks.is_empty() {
        vrfs.check(report, &entries);
    }
    let vrf_of_nos = |entry: &NosEntry| entry.vrf.clone();
    unique(report, "VRF", entries.nos.iter().map(vrf_of_nos));
    let names = entries.networks.iter().map(|network| network.name.as_ref());
    unique(report, "name", names);
    networks::check(report, &entries);
    containers(report, &entries, &vrfs);
    captures(report, &entries);
    claims::check(report, &entries, &vrfs);
    if let Some(channel) = &entries.channel {
        channel::check(report, &entries, channel.place);
    }
    let routes = routing::resolve(report, &entries, &vrfs);
    let finish = |entry: &ContainerEntry| container(entry.clone(), vrfs.get(&entry.vrf.value));
    Config {
        containers: entries.containers.iter().map(finish).collect(),
        relay: entries.relay,
        control: entries.control,
        upstream: entries.channel.map(|at| at.value),
        routes,
        networks: entries
            .networks
            .into_iter()
            .map(networks::finished)
            .collect(),
        uplinks: entries.uplinks.into_iter().map(uplink).collect(),
        services: services(entries.nos),
        pool: entries.pool,
    }
}

/// A VRF of which nothing else is said than of one that is not spoken of is left out.
fn services(entries: Vec<NosEntry>) -> BTreeMap<VrfName, ServiceConfig> {
    let config = |entry: NosEntry| {
        let services = entry.services.into_iter().map(|at| at.value).collect();
        let config = ServiceConfig {
            ping: entry.ping.value,
            services,
            from: entry.from,
        };
        (entry.vrf.value, config)
    };
    let all = entries.into_iter().map(config);
    all.filter(|(_, config)| *config != ServiceConfig::default())
        .collect()
}

fn uplinks(report: &Report<'_>, entries: &Entries, vrfs: &Vrfs<'_>) {
    let uplinks = &entries.uplinks;
    if uplinks.is_empty() && entries.all_uplinks {
        let reason =
            "there is none; the NOS needs an [[uplink]] with a name, a device and addresses";
        report.error(Place::top("uplink"), reason);
    }
    let names = uplinks.iter().map(|uplink| uplink.name.as_ref());
    unique(report, "name", names);
    sharing::check(report, uplinks);
    for Vrf { uplinks, .. } in vrfs.iter() {
        let networks = uplinks.iter().flat_map(|uplink| &uplink.addresses);
        unique(
            report,
            "address",
            networks.map(|at| at.map(|network| network.addr())),
        );
        overlaps(report, uplinks);
        mtus(report, uplinks);
    }
    uplinks.iter().for_each(|uplink| groups(report, uplink));
    tap_mtus(report, uplinks);
    match entries.place {
        NosPlace::Here => no_foreign_uplinks(report, uplinks),
        NosPlace::Elsewhere => foreign_nos(report, entries),
    }
}

fn no_foreign_uplinks(report: &Report<'_>, uplinks: &[UplinkEntry]) {
    for At { value, place } in uplinks.iter().map(|uplink| uplink.device.as_ref()) {
        if *value == UplinkDevice::Nos {
            let reason = "\"nos\" is an interface of a NOS that embeds nos-relay; here it is \
                          \"packet:INTERFACE\", \"tap:INTERFACE\" or \"memif:SOCKET:ID\"";
            report.error(place, reason);
        }
    }
}

/// What a NOS that is not ours has is not for us to say.
fn foreign_nos(report: &Report<'_>, entries: &Entries) {
    for uplink in &entries.uplinks {
        let At { value, place } = uplink.device.as_ref();
        if *value != UplinkDevice::Nos {
            let reason = format!("the NOS has interfaces of its own: \"nos\", not \"{value}\"");
            report.error(place, reason);
        }
        if let Some(capture) = &uplink.capture {
            let reason = "the frames of the NOS's own interfaces do not come here";
            report.error(capture.place, reason);
        }
        if let Some(group) = uplink.groups.first() {
            report.error(group.place, "the NOS has groups of its own");
        }
        if let Some(vlan) = &uplink.vlan {
            report.error(vlan.place, "the NOS has VLANs of its own");
        }
    }
    if let Some(route) = entries.routes.first() {
        report.error(route.prefix.place, "the NOS has routes of its own");
    }
    if let Some(services) = entries.nos.first() {
        report.error(services.vrf.place, "the NOS has services of its own");
    }
}

fn groups(report: &Report<'_>, uplink: &UplinkEntry) {
    unique(report, "group", uplink.groups.iter().map(At::as_ref));
    if let Some(one_too_many) = uplink.groups.get(Uplink::MAX_GROUPS) {
        let (count, most) = (uplink.groups.len(), Uplink::MAX_GROUPS);
        let reason = format!("{count} groups are more than {most}, the most of an uplink");
        report.error(one_too_many.place, reason);
    }
}

/// The kernel would refuse more when the TAP is made.
fn tap_mtus(report: &Report<'_>, uplinks: &[UplinkEntry]) {
    let taps = uplinks
        .iter()
        .filter(|uplink| matches!(uplink.device.value, UplinkDevice::Tap(_)));
    for At { value: mtu, place } in taps.map(|uplink| uplink.mtu) {
        if mtu > Mtu::MAX_TAP {
            let most = Mtu::MAX_TAP;
            report.error(place, format!("{mtu} is above {most}, the most of a TAP"));
        }
    }
}

/// One uplink's address, to be compared with others'.
struct Connected<'a> {
    uplink: &'a UplinkEntry,
    address: At<IpNet>,
}

impl Connected<'_> {
    fn network(&self) -> IpNet {
        self.address.value.trunc()
    }
}

/// A destination on the networks of two uplinks of a VRF would be on either link. Networks of one
/// uplink may overlap.
fn overlaps(report: &Report<'_>, uplinks: &[&UplinkEntry]) {
    let connected = |&uplink| {
        let uplink: &UplinkEntry = uplink;
        uplink
            .addresses
            .iter()
            .map(move |&address| Connected { uplink, address })
    };
    let mut all: Vec<_> = uplinks.iter().flat_map(connected).collect();
    // So every network comes after those that contain it.
    all.sort_by_key(Connected::network);
    let mut around: Vec<&Connected<'_>> = Vec::new();
    for this in &all {
        while around
            .pop_if(|other| !other.network().contains(&this.network()))
            .is_some()
        {}
        let other = around
            .iter()
            .rev()
            .find(|other| !core::ptr::eq(other.uplink, this.uplink));
        if let Some(other) = other {
            overlap(report, this, other);
        }
        let again = around.last().is_some_and(|last| {
            core::ptr::eq(last.uplink, this.uplink) && last.network() == this.network()
        });
        if !again {
            around.push(this);
        }
    }
}

fn overlap(report: &Report<'_>, one: &Connected<'_>, two: &Connected<'_>) {
    let offset = |connected: &Connected<'_>| connected.address.place.offset;
    let (earlier, later) = if offset(one) < offset(two) {
        (one, two)
    } else {
        (two, one)
    };
    // The same address twice is a mistake of its own.
    if earlier.address.value.addr() != later.address.value.addr() {
        let reason = format!(
            "{} overlaps {} of uplink \"{}\" ({})",
            later.network(),
            earlier.network(),
            earlier.uplink.name.value,
            report.spot(earlier.address.place)
        );
        report.error(later.address.place, reason);
    }
}

/// All uplinks of a VRF carry IPv6 if one does: packets to a container may come from any of them.
fn mtus(report: &Report<'_>, uplinks: &[&UplinkEntry]) {
    let mut addresses = uplinks.iter().flat_map(|uplink| &uplink.addresses);
    let Some(ipv6) = addresses.find(|at| at.value.addr().is_ipv6()) else {
        return;
    };
    for At { value: mtu, place } in uplinks.iter().map(|uplink| uplink.mtu) {
        if mtu < Mtu::MIN_IPV6 {
            let (least, on) = (Mtu::MIN_IPV6, report.on(ipv6.place));
            let reason = format!("{mtu} is below {least}, which IPv6 {on} needs");
            report.error(place, reason);
        }
    }
}

fn containers(report: &Report<'_>, entries: &Entries, vrfs: &Vrfs<'_>) {
    let containers = &entries.containers;
    let names = containers.iter().map(|container| container.name.as_ref());
    unique(report, "name", names);
    interfaces(report, containers);
    own_once(report, containers);
    bridges::check_once(report, containers);
    for container in containers {
        let addresses = || container.addresses.iter().flatten();
        unique(report, "address", addresses().map(At::as_ref));
        let vrf = &container.vrf.value;
        let nos = &vrfs.get(vrf).addresses;
        if container.mode == AddressMode::Routed {
            addresses().for_each(|at| own_address(report, container, *at, entries, vrfs.get(vrf)));
        } else if entries.all_uplinks && !nos.is_empty() {
            addresses().for_each(|address| of_the_nos(report, *address, vrf, nos));
        }
        if entries.all_uplinks
            && let Some(uplink) = &container.link_local
        {
            link_local(report, container, uplink, &entries.uplinks, nos);
        }
        bridges::check(report, container, &entries.uplinks);
        // Of a routed one its network has taken it.
        if let Some((place, _)) = &container.from {
            report.error(*place, FOR_ROUTED);
        }
        if let Some(mtu) = container.mtu {
            container_mtu(report, mtu, &container.addresses_among(nos));
        }
    }
}

/// No two containers of a VRF have an address for their own.
fn own_once(report: &Report<'_>, containers: &[ContainerEntry]) {
    let mut owners = HashMap::new();
    let routed = containers
        .iter()
        .filter(|it| it.mode == AddressMode::Routed);
    for container in routed {
        for at in container.addresses.iter().flatten() {
            let key = (&container.vrf.value, at.value);
            let Some(other) = owners.insert(key, container) else {
                continue;
            };
            // Twice in one container is a mistake of its own.
            if !core::ptr::eq(other, container) {
                let owner = &other.name.value;
                let reason = format!("{} is the address of container \"{owner}\"", at.value);
                report.error(at.place, reason);
            }
        }
    }
}

/// An address that a container has for its own is a host's, and nobody else's.
fn own_address(
    report: &Report<'_>,
    container: &ContainerEntry,
    At { value, place }: At<IpAddr>,
    entries: &Entries,
    vrf: &Vrf<'_>,
) {
    if !martian::is_routable(value) {
        let reason = format!("{value} is no address that a host can have to itself");
        return report.error(place, reason);
    }
    if !entries.all_uplinks {
        return;
    }
    for uplink in &vrf.uplinks {
        for net in uplink.addresses.iter().map(|at| at.value) {
            let of = format!("uplink \"{}\"", uplink.name.value);
            if net.addr() == value {
                report.error(place, format!("{value} is the address of {of}"));
            } else if martian::is_subnet_itself(&net, value) {
                let reason = format!(
                    "{value} stands for all of {}, the network of {of}",
                    net.trunc()
                );
                report.error(place, reason);
            } else if net.contains(&value) && !may_use(container, uplink, entries) {
                let reason = format!(
                    "{value} is in {}, of {of}, which is none of the uplinks of its network",
                    net.trunc()
                );
                report.error(place, reason);
            }
        }
    }
}

/// Whether a container's network is on an uplink's link.
fn may_use(container: &ContainerEntry, uplink: &UplinkEntry, entries: &Entries) -> bool {
    let Some(At { value: name, .. }) = &container.network else {
        return true;
    };
    let network = entries.networks.iter().find(|it| it.name.value == *name);
    let uplinks = network.and_then(|network| network.uplinks.as_ref());
    uplinks.is_none_or(|names| names.iter().any(|at| at.value == uplink.name.value))
}

/// A container that uses an IPv6 address has to get what every link of IPv6 carries.
fn container_mtu(report: &Report<'_>, mtu: At<Mtu>, addresses: &[IpAddr]) {
    let ipv6 = addresses.iter().find(|address| address.is_ipv6());
    if let Some(address) = ipv6.filter(|_| mtu.value < Mtu::MIN_IPV6) {
        let (mtu, least, place) = (mtu.value, Mtu::MIN_IPV6, mtu.place);
        report.error(
            place,
            format!("{mtu} is below {least}, which {address} needs"),
        );
    }
}

/// A container talks with the neighbors of one uplink of its VRF, by IPv6.
fn link_local(
    report: &Report<'_>,
    container: &ContainerEntry,
    At { value: name, place }: &At<Name>,
    uplinks: &[UplinkEntry],
    nos: &[IpAddr],
) {
    let of = &container.name.value;
    let vrf = &container.vrf.value;
    let Some(uplink) = uplinks.iter().find(|uplink| uplink.name.value == *name) else {
        let names: Vec<_> = uplinks.iter().map(|it| it.name.value.as_str()).collect();
        let hint = suggestion(name.as_str(), &names);
        let reason =
            format!("container \"{of}\" asks for uplink \"{name}\", which does not exist{hint}");
        return report.error(*place, reason);
    };
    if uplink.vrf != *vrf {
        let reason = format!(
            "container \"{of}\" is in VRF \"{vrf}\", and uplink \"{name}\" in VRF \"{}\"",
            uplink.vrf
        );
        report.error(*place, reason);
    } else if !container.addresses_among(nos).iter().any(IpAddr::is_ipv6) {
        let reason = format!(
            "container \"{of}\" has no IPv6 address, without which it has no link-local address of \
             uplink \"{name}\" either"
        );
        report.error(*place, reason);
    }
}

fn interfaces(report: &Report<'_>, containers: &[ContainerEntry]) {
    let mut seen = HashMap::new();
    for container in containers {
        let interface = (container.netns.value.path(), &container.interface);
        let Some(earlier) = seen.insert(interface, container) else {
            continue;
        };
        let reason = format!(
            "{} in {} is the interface of container \"{}\" ({})",
            container.interface,
            container.netns.value,
            earlier.name.value,
            report.spot(earlier.netns.place)
        );
        report.error(container.netns.place, reason);
    }
}

fn of_the_nos(report: &Report<'_>, address: At<IpAddr>, vrf: &VrfName, nos: &[IpAddr]) {
    if nos.contains(&address.value) {
        return;
    }
    let nos: Vec<_> = nos.iter().map(IpAddr::to_string).collect();
    let reason = format!(
        "{} is no address of the NOS{}; it has {}",
        address.value,
        in_vrf(vrf),
        nos.join(", ")
    );
    report.error(address.place, reason);
}

fn captures(report: &Report<'_>, entries: &Entries) {
    let uplinks = entries.uplinks.iter().map(|uplink| &uplink.capture);
    let containers = entries
        .containers
        .iter()
        .map(|container| &container.capture);
    let files = uplinks.chain(containers).flatten();
    unique(
        report,
        "file",
        files.map(|at| at.as_ref().map(|path| path.display().to_string())),
    );
}

fn uplink(entry: UplinkEntry) -> Uplink {
    Uplink {
        name: entry.name.value,
        device: entry.device.value,
        addresses: entry.addresses.into_iter().map(|at| at.value).collect(),
        mtu: entry.mtu.value,
        vlan: entry.vlan.map(|at| at.value),
        mac: entry.mac,
        offload: entry.offload,
        redirects: entry.redirects,
        groups: entry.groups.into_iter().map(|at| at.value).collect(),
        vrf: entry.vrf,
        capture: entry.capture.map(|at| at.value),
    }
}

fn container(entry: ContainerEntry, vrf: &Vrf<'_>) -> Container {
    let addresses = entry.addresses_among(&vrf.addresses);
    let held = match entry.mode {
        AddressMode::Shared => &addresses,
        // What goes to it may come from any of them.
        AddressMode::Routed => &vrf.addresses,
    };
    let values = values_of::<PortRange>;
    // Its entry has one, or its network, or else it is a TAP.
    let device = entry.device.unwrap_or(ContainerDevice::Tap);
    Container {
        mtu: least_mtu(held, &vrf.uplinks)
            .min(most_of(&device))
            .min(entry.mtu.map_or(Mtu::MAX, |at| at.value)),
        name: entry.name.value,
        netns: entry.netns.value,
        network: entry.network.map(|at| at.value),
        device,
        interface: entry.interface,
        link_addresses: values_of(entry.link_addresses),
        mode: entry.mode,
        addresses,
        link_local: entry.link_local.map(|at| at.value),
        networks: Arc::clone(&vrf.networks),
        tcp: values(entry.tcp),
        udp: values(entry.udp),
        ephemeral: values(entry.ephemeral),
        policy: Policy {
            outside: entry.outside.unwrap_or_default(),
            ..entry.policy
        },
        mac: entry.mac.map(|at| at.value),
        offload: entry.offload,
        vrf: entry.vrf.value,
        capture: entry.capture.map(|at| at.value),
    }
}

fn values_of<T>(list: Vec<At<T>>) -> Vec<T> {
    list.into_iter().map(|at| at.value).collect()
}

/// The greatest MTU that a device can have.
fn most_of(device: &ContainerDevice) -> Mtu {
    match device {
        ContainerDevice::Tap => Mtu::MAX_TAP,
        ContainerDevice::Veth | ContainerDevice::Bridge(_) | ContainerDevice::Existing => Mtu::MAX,
    }
}

fn least_mtu(addresses: &[IpAddr], uplinks: &[&UplinkEntry]) -> Mtu {
    let holds = |uplink: &&&UplinkEntry| {
        let mut own = uplink.addresses.iter().map(|at| at.value.addr());
        own.any(|address| addresses.contains(&address))
    };
    let mtus = uplinks.iter().filter(holds).map(|uplink| uplink.mtu.value);
    mtus.min().unwrap_or(Mtu::DEFAULT)
}
