//! Tables as entries: typed values, not yet compared with one another.

use core::net::IpAddr;
use core::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use nos_shim::ident::MacAddr;
use nos_shim::ports::{AddressMode, Outside, Policy, PortRange, Restriction};
use nos_shim::prefix_set::PrefixSet;
use nos_shim::shim::Upstream;
use nos_shim::vlan::VlanId;
use toml::Spanned;
use toml::de::DeTable;

use crate::control::api::Access;
use crate::control::memif::Side;
use crate::interface_name::InterfaceName;

use super::document::{Entry, Section};
use super::place::{At, Place};
use super::port_list::{self, PortLists};
use super::report::Report;
use super::values::{self, HopText};
use super::{
    ContainerDevice, IoUring, Mtu, Name, NetnsRef, NetworkMode, NosPlace, RelayConfig, RouteAction,
    Service, Threads, UplinkDevice, VrfName,
};

/// The entries that are sound.
#[derive(Clone, Debug)]
pub(super) struct Entries {
    pub(super) relay: RelayConfig,
    pub(super) control: Access,
    pub(super) uplinks: Vec<UplinkEntry>,
    /// Whether `uplinks` are all there are: no entry was spoilt.
    pub(super) all_uplinks: bool,
    pub(super) routes: Vec<RouteEntry>,
    pub(super) networks: Vec<NetworkEntry>,
    /// Whether `networks` are all there are: no entry was spoilt.
    pub(super) all_networks: bool,
    pub(super) containers: Vec<ContainerEntry>,
    pub(super) nos: Vec<NosEntry>,
    /// Where the NOS is in another process; its link is the first of `uplinks`.
    pub(super) channel: Option<At<Upstream>>,
    pub(super) pool: Vec<PortRange>,
    /// The container that a request is about: of two that want a port it is this one's request that
    /// is refused.
    pub(super) newest: Option<Name>,
    pub(super) place: NosPlace,
}

#[derive(Clone, Debug)]
pub(super) struct UplinkEntry {
    pub(super) name: At<Name>,
    pub(super) device: At<UplinkDevice>,
    pub(super) addresses: Vec<At<IpNet>>,
    pub(super) vlan: Option<At<VlanId>>,
    pub(super) mtu: At<Mtu>,
    pub(super) mac: Option<MacAddr>,
    pub(super) offload: bool,
    pub(super) redirects: bool,
    pub(super) groups: Vec<At<IpAddr>>,
    pub(super) vrf: VrfName,
    pub(super) capture: Option<At<PathBuf>>,
}

#[derive(Clone, Debug)]
pub(super) struct RouteEntry {
    pub(super) prefix: At<IpNet>,
    pub(super) action: ActionEntry,
    pub(super) metric: u16,
    pub(super) vrf: At<VrfName>,
}

#[derive(Clone, Debug)]
pub(super) enum ActionEntry {
    Via {
        hops: Vec<At<HopText>>,
        /// For the hops that name no uplink themselves.
        dev: Option<At<Name>>,
        /// The hops are on their uplinks' links, whatever networks these have.
        onlink: bool,
    },
    Other(RouteAction),
}

/// What containers have in common: see [`super::networks`].
#[derive(Clone, Debug)]
pub(super) struct NetworkEntry {
    pub(super) name: At<Name>,
    pub(super) mode: NetworkMode,
    pub(super) vrf: At<VrfName>,
    /// Those whose addresses its containers share; all of the VRF when `None`.
    pub(super) uplinks: Option<Vec<At<Name>>>,
    /// Where those of its containers have their addresses from that are given some.
    pub(super) pool: Option<Name>,
    pub(super) device: Option<ContainerDevice>,
    pub(super) to: Option<Arc<PrefixSet>>,
    pub(super) from: Option<Arc<PrefixSet>>,
    pub(super) outside: Option<Outside>,
}

#[derive(Clone, Debug)]
pub(super) struct ContainerEntry {
    pub(super) name: At<Name>,
    pub(super) netns: At<NetnsRef>,
    pub(super) network: Option<At<Name>>,
    /// Where it names a pool or a workload, as it is to be given addresses.
    pub(super) pooled: Option<Place>,
    /// Without a network it has one.
    pub(super) device: Option<ContainerDevice>,
    pub(super) interface: InterfaceName,
    /// The interface's own, where it is a port of a bridge.
    pub(super) link_addresses: Vec<At<IpNet>>,
    /// Whose its addresses are, as its network says.
    pub(super) mode: AddressMode,
    /// Every NOS address of its VRF when `None`.
    pub(super) addresses: Option<Vec<At<IpAddr>>>,
    /// The uplink whose link-local address it uses.
    pub(super) link_local: Option<At<Name>>,
    pub(super) tcp: Vec<At<PortRange>>,
    pub(super) udp: Vec<At<PortRange>>,
    pub(super) ephemeral: Vec<At<PortRange>>,
    /// All of it but `outside`.
    pub(super) policy: Policy,
    /// Who may come to it, if it has addresses of its own, and where that is said.
    pub(super) from: Option<(Place, Arc<PrefixSet>)>,
    pub(super) outside: Option<Outside>,
    /// At most so long are its packets; as its uplinks have them when `None`.
    pub(super) mtu: Option<At<Mtu>>,
    pub(super) mac: Option<At<MacAddr>>,
    pub(super) offload: bool,
    pub(super) vrf: At<VrfName>,
    /// Whether the VRF is its own word.
    pub(super) names_vrf: bool,
    pub(super) capture: Option<At<PathBuf>>,
}

/// What the NOS offers in one VRF.
#[derive(Clone, Debug)]
pub(super) struct NosEntry {
    pub(super) vrf: At<VrfName>,
    pub(super) services: Vec<At<Service>>,
    /// Who may open flows to which of their ports, if not everybody.
    pub(super) from: Vec<Restriction>,
    pub(super) ping: At<bool>,
    /// The NOS is in another process.
    channel: Option<Channel>,
}

/// The way to a NOS in another process.
#[derive(Clone, Debug)]
struct Channel {
    upstream: At<Upstream>,
    link: UplinkEntry,
}

impl ContainerEntry {
    /// Its addresses, when the NOS has the addresses `nos` in its VRF.
    pub(super) fn addresses_among(&self, nos: &[IpAddr]) -> Vec<IpAddr> {
        match &self.addresses {
            Some(addresses) => addresses.iter().map(|at| at.value).collect(),
            None => nos.to_vec(),
        }
    }
}

/// Reads all entries; what is wrong with them is reported.
pub(super) fn read<'a>(report: &'a Report<'a>, document: &'a Spanned<DeTable<'a>>) -> Entries {
    let mut root = Section::root(report, document);
    let relay = root.table("relay").map(relay).unwrap_or_default();
    let control = root.table("control").map(control).unwrap_or_default();
    let (mut uplinks, mut all_uplinks) = all(&mut root, "uplink", uplink);
    let (routes, _) = all(&mut root, "route", route);
    let (networks, mut all_networks) = all(&mut root, "network", network);
    let (containers, _) = all(&mut root, "container", container);
    let (nos, all_nos) = all_or_one(&mut root, "nos", nos);
    let channel = nos.iter().find_map(|entry| entry.channel.clone());
    if let Some(channel) = &channel {
        uplinks.insert(0, channel.link.clone());
    }
    // What is spoilt may be the channel, without which uplinks would be missing.
    all_uplinks &= all_nos;
    let pool = root.table("ports").map(pool).unwrap_or_default();
    // A misspelt [[uplink]] is an uplink that cannot be seen.
    let all_known = root.finish();
    all_uplinks &= all_known;
    all_networks &= all_known;
    Entries {
        relay,
        control,
        uplinks,
        all_uplinks,
        routes,
        networks,
        all_networks,
        containers,
        nos,
        channel: channel.map(|channel| channel.upstream),
        pool,
        newest: None,
        place: NosPlace::Here,
    }
}

/// Adds what was registered at run time to the entries of the file.
pub(super) fn read_added(mut root: Section<'_>, entries: &mut Entries) {
    let (networks, all_networks) = all(&mut root, "network", network);
    entries.networks.extend(networks);
    entries.all_networks &= all_networks;
    entries
        .containers
        .extend(all(&mut root, "container", container).0);
    entries.routes.extend(all(&mut root, "route", route).0);
    root.finish();
}

/// The networks of a text, and nothing else of it.
pub(super) fn read_networks(mut root: Section<'_>) -> Vec<NetworkEntry> {
    all(&mut root, "network", network).0
}

/// The sound entries of `[[key]]`, and whether they are all.
fn all<'a, T>(
    root: &mut Section<'a>,
    key: &'static str,
    read: fn(Section<'a>) -> Option<T>,
) -> (Vec<T>, bool) {
    let (sections, whole) = root.tables(key);
    let expected = sections.len();
    let entries: Vec<_> = sections.into_iter().filter_map(read).collect();
    let whole = whole && entries.len() == expected;
    (entries, whole)
}

/// The same, where a single one may stand in `[key]`.
fn all_or_one<'a, T>(
    root: &mut Section<'a>,
    key: &'static str,
    read: fn(Section<'a>) -> Option<T>,
) -> (Vec<T>, bool) {
    if root.is_tables(key) {
        return all(root, key, read);
    }
    let absent = !root.has(key);
    let entry = root.table(key).and_then(read);
    let whole = absent || entry.is_some();
    (entry.into_iter().collect(), whole)
}

/// In which VRF the entry is: the default one where it does not say.
fn vrf(section: &mut Section<'_>) -> At<VrfName> {
    let place = section.header("vrf");
    let value = VrfName::Default;
    section
        .optional("vrf", values::vrf)
        .unwrap_or(At { value, place })
}

fn relay(mut section: Section<'_>) -> RelayConfig {
    let defaults = RelayConfig::default();
    let value = |at: Option<At<NonZeroU32>>, or| at.map_or(or, |at| at.value);
    let threads = section.optional("threads", values::threads);
    let buffers = section.optional("buffers", values::buffers);
    let ring = section.optional("ring", values::ring);
    let io_uring = section.optional("io_uring", values::io_uring);
    let flows = section.optional("flows", values::flows);
    section.finish();
    RelayConfig {
        threads: threads.map_or(Threads::default(), |at| at.value),
        buffers: value(buffers, defaults.buffers),
        ring: value(ring, defaults.ring),
        io_uring: io_uring.map_or(IoUring::default(), |at| at.value),
        flows: value(flows, defaults.flows),
    }
}

/// Who may ask at run time. With a group, it may unless the mode says otherwise.
fn control(mut section: Section<'_>) -> Access {
    const OF_GROUP: u32 = 0o020;
    let mode = section.optional("mode", values::socket_mode);
    let group = section.optional("group", values::group_of_users);
    if let (Some(mode), Some(group)) = (&mode, &group)
        && mode.value & OF_GROUP == 0
    {
        let reason = format!("gives the group nothing with mode {:04o}", mode.value);
        section.error(group.place, reason);
    }
    let default = match group {
        Some(_) => 0o660,
        None => Access::default().mode,
    };
    section.finish();
    Access {
        mode: mode.map_or(default, |at| at.value),
        group: group.map(|at| at.value),
    }
}

fn uplink(mut section: Section<'_>) -> Option<UplinkEntry> {
    let name = section.required("name", "\"up0\"", values::name);
    let device = section.required("device", "\"packet:eth0\"", values::uplink_device);
    section.require("addresses", "[\"203.0.113.1/24\"]");
    let addresses = section.list("addresses", values::host_network);
    let device = with_memif(&mut section, device);
    let vlan = section.optional("vlan", values::vlan);
    let mtu = section.optional("mtu", values::mtu);
    let mac = section.optional("mac", values::mac);
    let offload = section.optional("offload", values::boolean);
    let redirects = section.optional("redirects", values::boolean);
    let groups = section.list("groups", values::group);
    let vrf = vrf(&mut section);
    let capture = section.optional("capture", values::file);
    let header = section.header("mtu");
    if !section.finish() {
        return None;
    }
    Some(UplinkEntry {
        name: name?,
        device: device?,
        addresses: addresses?,
        vlan,
        mtu: mtu.unwrap_or(At {
            value: Mtu::DEFAULT,
            place: header,
        }),
        mac: mac.map(|at| at.value),
        offload: offload.is_none_or(|at| at.value),
        redirects: redirects.is_none_or(|at| at.value),
        groups: groups.unwrap_or_default(),
        vrf: vrf.value,
        capture,
    })
}

/// The device with what its key `memif` says.
fn with_memif(
    section: &mut Section<'_>,
    device: Option<At<UplinkDevice>>,
) -> Option<At<UplinkDevice>> {
    let Some(mut memif) = section.table("memif") else {
        // One that is no table spoils the entry.
        return device;
    };
    let side = memif.optional("role", values::memif_side);
    let secret = memif.optional("secret", values::memif_secret);
    let queues = memif.optional("queues", values::memif_queues);
    let ring = memif.optional("ring", values::memif_ring);
    let place = memif.header("");
    let mut device = device;
    match &mut device {
        Some(At {
            value: UplinkDevice::Memif(options),
            ..
        }) => {
            options.side = side.map_or(Side::Server, |at| at.value);
            options.secret = secret.map(|at| at.value);
            let (most, one) = (options.queues, 1);
            options.queues = match (queues, options.side) {
                (Some(at), _) => at.value,
                (None, Side::Server) => most,
                (None, Side::Client) => one,
            };
            match (ring, options.side) {
                (Some(at), Side::Server) => {
                    memif.error(at.place, "is for the client to say; role is \"server\"");
                }
                (Some(at), Side::Client) => options.log2_ring_size = at.value,
                (None, _) => {}
            }
        }
        Some(_) => memif.error(place, "is for a device \"memif:SOCKET:ID\""),
        None => {}
    }
    section.close(memif);
    device
}

pub(super) fn route(mut section: Section<'_>) -> Option<RouteEntry> {
    let prefix = section.required("prefix", "\"0.0.0.0/0\"", values::prefix);
    let advice = "for no next hop write type = \"blackhole\" or \"unreachable\"";
    let hops = section.nonempty("via", advice, values::next_hop);
    let dev = section.optional("dev", values::name);
    let onlink = section.optional("onlink", values::boolean);
    let other = section.optional("type", values::route_type);
    let metric = section.optional("metric", values::metric);
    let vrf = vrf(&mut section);
    let action = action(&mut section, hops, (dev, onlink), other);
    if !section.finish() {
        return None;
    }
    Some(RouteEntry {
        prefix: prefix?,
        action: action?,
        metric: metric.map_or(0, |at| at.value),
        vrf,
    })
}

fn action(
    section: &mut Section<'_>,
    hops: Option<Vec<At<HopText>>>,
    (dev, onlink): (Option<At<Name>>, Option<At<bool>>),
    other: Option<At<RouteAction>>,
) -> Option<ActionEntry> {
    match (hops, other) {
        (Some(_), Some(At { place, .. })) => {
            section.error(place, "cannot stand beside via; give one of the two");
            None
        }
        (None, Some(At { value, .. })) => {
            let dev = dev.map(|at| at.place);
            for place in dev.into_iter().chain(onlink.map(|at| at.place)) {
                section.error(place, "means nothing without via");
            }
            Some(ActionEntry::Other(value))
        }
        (Some(hops), None) => Some(ActionEntry::Via {
            hops,
            dev,
            onlink: onlink.is_some_and(|at| at.value),
        }),
        (None, None) => {
            if !section.has("type") {
                section.require("via", "\"203.0.113.2\", or type = \"blackhole\"");
            }
            None
        }
    }
}

pub(super) fn network(mut section: Section<'_>) -> Option<NetworkEntry> {
    let name = section.required("name", "\"tenants\"", values::name);
    let mode = section.optional("mode", values::network_mode);
    let mode = mode.map_or(NetworkMode::default(), |at| at.value);
    let vrf = vrf(&mut section);
    let advice = "leave it out for all uplinks of the VRF";
    let uplinks = section.nonempty("uplinks", advice, values::name);
    let pool = section.optional("pool", values::name);
    let device = section.optional("device", values::container_device);
    let to = section.list("to", values::peers);
    let from = section.list("from", values::peers);
    let outside = section.optional("outside", values::outside);
    let routed = mode == NetworkMode::Routed;
    if routed && let Some(outside) = &outside {
        let reason = "is for containers that share the NOS's addresses: leave it out";
        section.error(outside.place, reason);
    }
    if !routed && let Some(pool) = &pool {
        section.error(
            pool.place,
            "is for mode = \"routed\": others share the NOS's addresses",
        );
    }
    if !routed && let Some(from) = &from {
        section.error(place_of(&section, "from", from), FOR_ROUTED);
    }
    let bridged = mode == NetworkMode::Bridge;
    if bridged
        && let Some(At { value, place }) = &device
        && !matches!(value, ContainerDevice::Bridge(_))
    {
        let reason = "must be \"bridge:INTERFACE\" with mode = \"bridge\", or left out";
        section.error(*place, reason);
    }
    if !section.finish() {
        return None;
    }
    let name = name?;
    let device = device.map(|at| at.value);
    let bridge = || bridged.then(|| ContainerDevice::Bridge(bridge_of(&name.value)));
    Some(NetworkEntry {
        device: device.or_else(bridge),
        name,
        mode,
        vrf,
        uplinks,
        pool: pool.map(|at| at.value),
        to: to.map(prefixes),
        from: from.map(prefixes),
        outside: outside.map(|at| at.value),
    })
}

/// Where it is not about whole containers who may come.
pub(super) const FOR_ROUTED: &str = "is for containers with addresses of their own; \
    others say it of their ports: tcp = { ports = \"80\", from = [...] }";

/// The bridge of a network that names none.
fn bridge_of(network: &Name) -> InterfaceName {
    let plain = format!("nb-{network}").parse();
    plain.unwrap_or_else(|_| InterfaceName::stable("nb-", network.as_str()))
}

pub(super) fn container(mut section: Section<'_>) -> Option<ContainerEntry> {
    let name = section.required("name", "\"web\"", values::name);
    let path = section.optional("netns", values::netns);
    let pid = section.optional("pid", values::pid);
    let network = section.optional("network", values::name);
    let device = section.optional("device", values::container_device);
    if !section.has("network") {
        section.require("device", "\"tap\"");
    }
    let pool = section.optional("pool", values::name).map(|at| at.place);
    let workload = section.optional("workload", values::workload);
    let interface = section.optional("interface", values::interface);
    let names_vrf = section.has("vrf");
    let vrf = vrf(&mut section);
    let advice = "leave it out for every address of the NOS";
    let addresses = section.nonempty("addresses", advice, values::address);
    let link_local = section.optional("link_local", values::name);
    let advice = "leave it out for none";
    let link_addresses = section.nonempty("link_addresses", advice, values::host_network);
    let ports = PortLists::read(&mut section);
    let to = section.list("to", values::peers);
    let from = section.list("from", values::peers);
    let from = from.map(|list| (place_of(&section, "from", &list), prefixes(list)));
    let outside = section.optional("outside", values::outside);
    let mtu = section.optional("mtu", values::mtu);
    let mac = section.optional("mac", values::mac);
    let offload = section.optional("offload", values::boolean);
    let capture = section.optional("capture", values::file);
    let netns = namespace(&mut section, path, pid);
    if !section.finish() {
        return None;
    }
    Some(ContainerEntry {
        name: name?,
        netns: netns?,
        network,
        pooled: pool.or(workload.map(|at| at.place)),
        device: device.map(|at| at.value),
        interface: interface.map_or_else(default_interface, |at| at.value),
        link_addresses: link_addresses.unwrap_or_default(),
        mode: AddressMode::Shared,
        addresses,
        link_local,
        policy: Policy {
            from: ports.restrictions(),
            established: ports.ephemeral.established,
            to: to.map(prefixes),
            outside: Outside::default(),
        },
        from,
        outside: outside.map(|at| at.value),
        tcp: ports.tcp.ranges,
        udp: ports.udp.ranges,
        ephemeral: ports.ephemeral.ranges,
        mtu,
        mac,
        offload: offload.is_none_or(|at| at.value),
        vrf,
        names_vrf,
        capture,
    })
}

/// Where a list is; an empty one is in its section.
fn place_of(section: &Section<'_>, key: &'static str, list: &[At<IpNet>]) -> Place {
    list.first()
        .map_or_else(|| section.header(key), |first| first.place)
}

fn prefixes(list: Vec<At<IpNet>>) -> Arc<PrefixSet> {
    Arc::new(list.into_iter().map(|at| at.value).collect())
}

fn default_interface() -> InterfaceName {
    InterfaceName::eth0()
}

pub(super) fn namespace(
    section: &mut Section<'_>,
    path: Option<At<NetnsRef>>,
    pid: Option<At<NetnsRef>>,
) -> Option<At<NetnsRef>> {
    match (path, pid) {
        (Some(_), Some(At { place, .. })) => {
            section.error(place, "cannot stand beside netns; give one of the two");
            None
        }
        (None, None) if !section.has("netns") && !section.has("pid") => {
            let place = section.header("netns");
            section.error(
                place,
                "is missing; for example netns = \"/run/netns/web\" or pid = 1234",
            );
            None
        }
        (path, pid) => path.or(pid),
    }
}

/// Where ports are allocated.
fn pool(mut section: Section<'_>) -> Vec<PortRange> {
    let advice = "leave it out where no ports are allocated";
    let pool = port_list::read_nonempty(&mut section, "pool", advice);
    section.finish();
    pool.into_iter().map(|at| at.value).collect()
}

fn nos(mut section: Section<'_>) -> Option<NosEntry> {
    let Services { services, from } = services(&mut section);
    let ping = section.optional("ping", values::boolean);
    let vrf = vrf(&mut section);
    let place = section.header("ping");
    let with_channel = section.has("channel");
    let channel = channel(&mut section);
    let sound = section.finish();
    if with_channel && !(sound && channel.is_some()) {
        return None;
    }
    Some(NosEntry {
        vrf,
        services,
        from,
        ping: ping.unwrap_or(At { value: true, place }),
        channel,
    })
}

/// The way to a NOS in another process: an uplink, whose addresses are that NOS's.
fn channel(section: &mut Section<'_>) -> Option<Channel> {
    let channel = section.optional("channel", values::nos_channel);
    let neighbor = section.optional("neighbor", values::mac);
    let addresses = section.nonempty("addresses", "give one at least", values::nos_address);
    let mtu = section.optional("mtu", values::mtu);
    let mac = section.optional("mac", values::mac);
    if !section.has("channel") {
        for key in ["memif", "neighbor", "addresses", "mtu", "mac"] {
            if section.has(key) {
                let place = section.header(key);
                section.error(place, "is for a NOS in another process: give nos.channel");
            }
        }
        return with_memif(section, None).and(None);
    }
    section.require("addresses", "[\"203.0.113.1\"]");
    let device = with_memif(section, channel)?;
    let place = device.place;
    let link = UplinkEntry {
        name: At {
            value: Name::nos(),
            place,
        },
        device,
        addresses: addresses?,
        vlan: None,
        mtu: mtu.unwrap_or(At {
            value: Mtu::DEFAULT,
            place: section.header("mtu"),
        }),
        mac: mac.map(|at| at.value),
        offload: true,
        redirects: false,
        groups: Vec::new(),
        vrf: VrfName::Default,
        capture: None,
    };
    let value = Upstream {
        neighbor: neighbor.map(|at| at.value),
    };
    Some(Channel {
        upstream: At { value, place },
        link,
    })
}

/// Ports of one entry at most: services are searched one after the other.
const MAX_SERVICE_PORTS: u32 = 256;

/// What the NOS offers in a VRF, and to whom.
#[derive(Default)]
struct Services {
    services: Vec<At<Service>>,
    from: Vec<Restriction>,
}

impl Services {
    /// Adds services that are for `from` alone, if that is given.
    fn add(&mut self, services: Vec<At<Service>>, from: Option<&Arc<PrefixSet>>) {
        let claims = services.iter().flat_map(|at| at.value.claims());
        if let Some(from) = from {
            self.from.extend(claims.map(|claim| Restriction {
                transport: claim.transport,
                range: claim.range,
                from: Arc::clone(from),
            }));
        }
        self.services.extend(services);
    }
}

/// Services by name, and tables that say more of one.
fn services(section: &mut Section<'_>) -> Services {
    let mut all = Services::default();
    for entry in section.mixed("services", "nos.services", values::service) {
        match entry {
            Entry::Value(service) => all.services.push(service),
            Entry::Table(mut table) => {
                let services = of_table(&mut table);
                let from = table.nonempty("from", "leave it out for everybody", values::prefix);
                all.add(services, from.map(prefixes).as_ref());
                section.close(table);
            }
        }
    }
    all
}

/// The services of a table: those with ports of their own on the ports that it lists.
fn of_table(table: &mut Section<'_>) -> Vec<At<Service>> {
    let service = table.required("service", "\"http\"", values::service_name);
    let wants_ports = service.as_ref().is_some_and(|at| at.value.is_none());
    if wants_ports {
        table.require("ports", "\"8080-8089\"");
    }
    let ports = port_list::read_nonempty(table, "ports", "give a port");
    if let Some(At {
        value: Some(service),
        place,
    }) = service
    {
        if let Some(at) = ports.first() {
            let port = service.port();
            let reason = format!("is for \"http\"; \"{service}\" listens on port {port}");
            table.error(at.place, reason);
            return Vec::new();
        }
        let value = service;
        return vec![At { value, place }];
    }
    let count: u32 = ports.iter().map(|at| at.value.len()).sum();
    if count > MAX_SERVICE_PORTS {
        let reason = format!("names {count} ports; {MAX_SERVICE_PORTS} are the most");
        let place = table.header("ports");
        table.error(place, reason);
        return Vec::new();
    }
    ports.iter().flat_map(listening).collect()
}

/// A status page on each port of a range.
fn listening(ports: &At<PortRange>) -> impl Iterator<Item = At<Service>> {
    let At { value, place } = *ports;
    let each = (value.first()..=value.last()).filter_map(NonZeroU16::new);
    each.map(move |port| At {
        value: Service::Http(port),
        place,
    })
}
