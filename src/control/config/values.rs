//! Single values: from TOML to types, or a reason that quotes what was found.

use core::fmt::Display;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::num::{NonZeroU16, NonZeroU32};
use core::ops::RangeInclusive;
use core::str::FromStr;
use std::path::PathBuf;

use ipnet::IpNet;
use nos_shim::ident::MacAddr;
use nos_shim::multicast::Group as _;
use nos_shim::ports::{Outside, PortRange, PortRangeError};
use nos_shim::vlan::VlanId;
use toml::de::DeValue;

use crate::control::api::Group;
use crate::interface_name::InterfaceName;

use super::pools::{AddressRange, MAX_WORKLOAD};
use super::port_list::PortEntry;
use super::runtime::Lease;
use super::{
    ContainerDevice, IoUring, Mtu, Name, NetnsRef, NetworkMode, RouteAction, Service, Threads,
    UplinkDevice, VrfName,
};
use crate::control::memif::{self, Address, MAX_RINGS, Secret, Side};

/// Characters of a value that errors quote.
const MAX_QUOTED: usize = 60;

/// What ports look like.
const PORTS: &str = "a port or a range within 1 to 65535, as in 179, \"20000-20999\" or \"!20500\"";

/// A ring of 1024 descriptors.
const DEFAULT_LOG2_RING_SIZE: u8 = 10;

/// The highest process id that Linux can be set to give (`PID_MAX_LIMIT`).
const MAX_PID: u32 = 1 << 22;

/// A next hop as written: `ADDRESS` or `ADDRESS%UPLINK`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HopText {
    pub(super) address: IpAddr,
    pub(super) uplink: Option<Name>,
}

pub(super) fn name(value: &DeValue<'_>) -> Result<Name, String> {
    parsed(text(value, "a name")?)
}

/// The name of a workload, or of who holds an address.
pub(super) fn workload(value: &DeValue<'_>) -> Result<String, String> {
    let written = text(value, "a name, as in \"shop/db-0\"")?;
    let visible = written.chars().all(|c| c.is_ascii_graphic());
    match visible && (1..=MAX_WORKLOAD).contains(&written.len()) {
        true => Ok(written.to_owned()),
        false => Err(format!(
            "{} is not 1 to {MAX_WORKLOAD} visible ASCII characters",
            quoted(written)
        )),
    }
}

/// Addresses in a row.
pub(super) fn address_range(value: &DeValue<'_>) -> Result<AddressRange, String> {
    text(value, "addresses, as in \"203.0.113.64/28\"")?.parse()
}

pub(super) fn vrf(value: &DeValue<'_>) -> Result<VrfName, String> {
    parsed(text(value, "the name of a VRF")?)
}

pub(super) fn interface(value: &DeValue<'_>) -> Result<InterfaceName, String> {
    parsed(text(value, "an interface name")?)
}

pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    value
        .as_bool()
        .ok_or_else(|| mistyped(value, "true or false"))
}

pub(super) fn threads(value: &DeValue<'_>) -> Result<Threads, String> {
    let options = [("single", Threads::Single), ("split", Threads::Split)];
    choice(value, &options)
}

pub(super) fn io_uring(value: &DeValue<'_>) -> Result<IoUring, String> {
    let options = [
        ("auto", IoUring::Auto),
        ("off", IoUring::Off),
        ("on", IoUring::On),
    ];
    choice(value, &options)
}

/// What a container's device may be.
const DEVICES: &str = "\"tap\", \"veth\", \"bridge:INTERFACE\" or \"existing\"";

pub(super) fn container_device(value: &DeValue<'_>) -> Result<ContainerDevice, String> {
    text(value, DEVICES)?.parse()
}

impl FromStr for ContainerDevice {
    /// What is wrong with it.
    type Err = String;

    fn from_str(device: &str) -> Result<Self, String> {
        let (kind, rest) = match device.split_once(':') {
            Some((kind, rest)) => (kind, Some(rest)),
            None => (device, None),
        };
        match (kind, rest) {
            ("tap", None) => Ok(Self::Tap),
            ("veth", None) => Ok(Self::Veth),
            ("existing", None) => Ok(Self::Existing),
            ("bridge", Some(bridge)) => parsed(bridge).map(Self::Bridge),
            _ => {
                let known = ["tap", "veth", "bridge", "existing"];
                let hint = did_you_mean(kind, &known).unwrap_or_default();
                Err(format!("{} is not {DEVICES}{hint}", quoted(device)))
            }
        }
    }
}

/// The type of a route that has no next hop.
pub(super) fn network_mode(value: &DeValue<'_>) -> Result<NetworkMode, String> {
    let modes = [
        NetworkMode::Shared,
        NetworkMode::Routed,
        NetworkMode::Bridge,
    ];
    let names = modes.map(|mode| (mode.to_string(), mode));
    let names = names.each_ref().map(|(name, mode)| (name.as_str(), *mode));
    choice(value, &names)
}

pub(super) fn route_type(value: &DeValue<'_>) -> Result<RouteAction, String> {
    let options = [
        ("blackhole", RouteAction::Blackhole),
        ("unreachable", RouteAction::Unreachable),
    ];
    choice(value, &options)
}

pub(super) fn buffers(value: &DeValue<'_>) -> Result<NonZeroU32, String> {
    count(value, 256..=65_536)
}

pub(super) fn ring(value: &DeValue<'_>) -> Result<NonZeroU32, String> {
    count(value, 8..=4096)
}

pub(super) fn flows(value: &DeValue<'_>) -> Result<NonZeroU32, String> {
    count(value, 1024..=1_048_576)
}

pub(super) fn outside(value: &DeValue<'_>) -> Result<Outside, String> {
    let options = [("drop", Outside::Drop), ("learn", Outside::Learn)];
    choice(value, &options)
}

/// The state that a packet's flow must be in. There is one that can be asked for.
pub(super) fn flow_state(value: &DeValue<'_>) -> Result<(), String> {
    choice(value, &[("established", ())])
}

pub(super) fn metric(value: &DeValue<'_>) -> Result<u16, String> {
    let metric = integer(value, 0..=u32::from(u16::MAX))?;
    u16::try_from(metric).map_err(|_| format!("{metric} is no metric"))
}

pub(super) fn vlan(value: &DeValue<'_>) -> Result<VlanId, String> {
    let id = integer(value, u32::from(VlanId::MIN)..=u32::from(VlanId::MAX))?;
    let vlan = u16::try_from(id).ok().and_then(VlanId::new);
    vlan.ok_or_else(|| format!("{id} names no VLAN"))
}

pub(super) fn mtu(value: &DeValue<'_>) -> Result<Mtu, String> {
    let bounds = u32::from(Mtu::MIN_IPV4.octets())..=u32::from(Mtu::MAX.octets());
    let octets = integer(value, bounds)?;
    let mtu = u16::try_from(octets).ok().and_then(Mtu::new);
    mtu.ok_or_else(|| format!("{octets} is no MTU"))
}

pub(super) fn pid(value: &DeValue<'_>) -> Result<NetnsRef, String> {
    count(value, 1..=MAX_PID).map(NetnsRef::Pid)
}

pub(super) fn netns(value: &DeValue<'_>) -> Result<NetnsRef, String> {
    let path = file(value)?;
    if path.is_absolute() {
        return Ok(NetnsRef::Path(path));
    }
    let text = path.display().to_string();
    let hint = match text.contains('/') {
        false => format!("; a namespace of that name is \"/run/netns/{text}\""),
        true => String::new(),
    };
    Err(format!("{} is not an absolute path{hint}", quoted(&text)))
}

pub(super) fn file(value: &DeValue<'_>) -> Result<PathBuf, String> {
    let path = text(value, "a path")?;
    match path {
        "" => Err("\"\" is an empty path".to_owned()),
        _ if path.contains('\0') => Err(format!("{} contains a NUL", quoted(path))),
        _ => Ok(PathBuf::from(path)),
    }
}

pub(super) fn mac(value: &DeValue<'_>) -> Result<MacAddr, String> {
    let octets = text(value, "a MAC address")?;
    let mac: MacAddr = octets.parse().map_err(|_| {
        format!(
            "{} is not a MAC address, as in \"02:00:5e:10:00:01\"",
            quoted(octets)
        )
    })?;
    match mac {
        MacAddr::ZERO => Err(format!("{mac} is all zero, which no interface may use")),
        _ if mac.is_unicast() => Ok(mac),
        _ => Err(format!(
            "{mac} is a group address; an interface needs a unicast one"
        )),
    }
}

pub(super) fn uplink_device(value: &DeValue<'_>) -> Result<UplinkDevice, String> {
    const EXPECTED: &str = "\"packet:INTERFACE\", \"tap:INTERFACE\" or \"memif:SOCKET:ID\"";
    let device = text(value, EXPECTED)?;
    if device == "nos" {
        return Ok(UplinkDevice::Nos);
    }
    let wrong = |hint| format!("{} is not {EXPECTED}{hint}", quoted(device));
    let (kind, interface) = device.split_once(':').ok_or_else(|| wrong(String::new()))?;
    let make = match kind {
        "packet" => UplinkDevice::Packet,
        "tap" => UplinkDevice::Tap,
        "memif" => return memif_address(interface).map(memif_of),
        _ => {
            return Err(wrong(
                did_you_mean(kind, &["packet", "tap", "memif"]).unwrap_or_default(),
            ));
        }
    };
    parsed(interface).map(make)
}

/// The way to a NOS in another process.
pub(super) fn nos_channel(value: &DeValue<'_>) -> Result<UplinkDevice, String> {
    const EXPECTED: &str = "\"memif:SOCKET:ID\"";
    let channel = text(value, EXPECTED)?;
    match channel.split_once(':') {
        Some(("memif", interface)) => memif_address(interface).map(memif_of),
        _ => Err(format!("{} is not {EXPECTED}", quoted(channel))),
    }
}

/// An interface behind a socket, as in `/run/x.sock:0`.
fn memif_address(written: &str) -> Result<Address, String> {
    let wrong = |why: &str| format!("{} is not \"memif:SOCKET:ID\": {why}", quoted(written));
    let (path, id) = written
        .rsplit_once(':')
        .ok_or_else(|| wrong("the number of the interface is missing"))?;
    let id = id
        .parse()
        .map_err(|_| wrong("the interface is no number of 0 to 4294967295"))?;
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        return Err(wrong("the socket is not an absolute path"));
    }
    let octets = path.as_os_str().len();
    let too_long = format!(
        "the path has {octets} octets, a socket's at most {}",
        Address::MAX_PATH
    );
    Address::new(path, id).ok_or_else(|| wrong(&too_long))
}

/// With what is so unless the key `memif` says otherwise.
fn memif_of(address: Address) -> UplinkDevice {
    UplinkDevice::Memif(memif::Options {
        address,
        side: Side::Server,
        secret: None,
        queues: MAX_RINGS,
        log2_ring_size: DEFAULT_LOG2_RING_SIZE,
    })
}

pub(super) fn memif_side(value: &DeValue<'_>) -> Result<Side, String> {
    choice(value, &[("server", Side::Server), ("client", Side::Client)])
}

pub(super) fn memif_secret(value: &DeValue<'_>) -> Result<Secret, String> {
    const EXPECTED: &str = "a secret of 1 to 24 octets";
    let written = text(value, EXPECTED)?;
    // What is wrong is not shown: it may be right elsewhere.
    Secret::new(written.as_bytes()).ok_or_else(|| {
        format!(
            "has {} octets, or a zero among them; it is {EXPECTED}",
            written.len()
        )
    })
}

/// Rings of each direction.
pub(super) fn memif_queues(value: &DeValue<'_>) -> Result<u16, String> {
    let queues = integer(value, 1..=u32::from(MAX_RINGS))?;
    u16::try_from(queues).map_err(|_| format!("{queues} is no number of queues"))
}

/// Descriptors of a ring, as their logarithm.
pub(super) fn memif_ring(value: &DeValue<'_>) -> Result<u8, String> {
    let descriptors = integer(value, 64..=4096)?;
    match descriptors.is_power_of_two() {
        true => u8::try_from(descriptors.ilog2()).map_err(|error| error.to_string()),
        false => Err(format!("{descriptors} is not a power of two, as 1024 is")),
    }
}

/// An address of the NOS with its network's prefix length.
pub(super) fn host_network(value: &DeValue<'_>) -> Result<IpNet, String> {
    const EXPECTED: &str = "an address with a prefix length, as in \"203.0.113.1/24\"";
    let written = text(value, EXPECTED)?;
    let network = network(written, EXPECTED, (24, 64))?;
    usable_address(network.addr())
        .and_then(|()| host_of_network(network))
        .map_err(|why| format!("{} {why}", quoted(written)))?;
    Ok(network)
}

/// An address of a NOS in another process.
pub(super) fn nos_address(value: &DeValue<'_>) -> Result<IpNet, String> {
    let address = address(value)?;
    usable_address(address).map_err(|why| format!("{} {why}", quoted(&address.to_string())))?;
    Ok(address.into())
}

/// Who may write to the control socket: owner, group, others.
pub(super) fn socket_mode(value: &DeValue<'_>) -> Result<u32, String> {
    const EXPECTED: &str = "a mode of a file, as in \"0660\"";
    const ALL: u32 = 0o666;
    const OWNER: u32 = 0o600;
    let written = text(value, EXPECTED)?;
    let digits = written.len() <= 4 && written.bytes().all(|digit| digit.is_ascii_digit());
    let mode = digits
        .then(|| u32::from_str_radix(written, 8).ok())
        .flatten();
    let Some(mode) = mode else {
        return Err(format!("{} is not {EXPECTED}", quoted(written)));
    };
    if mode & !ALL != 0 {
        return Err(format!(
            "{mode:04o} is more than reading and writing, {ALL:04o}"
        ));
    }
    if mode & OWNER != OWNER {
        return Err(format!(
            "{mode:04o} leaves out the owner; it has {OWNER:04o} at least"
        ));
    }
    Ok(mode)
}

/// A group of users, by name or number.
pub(super) fn group_of_users(value: &DeValue<'_>) -> Result<Group, String> {
    const EXPECTED: &str = "a group of users, by name or number";
    const MAX_NAME: usize = 32;
    if let DeValue::Integer(_) = value {
        // The highest number stands for none.
        return integer(value, 0..=u32::MAX - 1).map(Group::Id);
    }
    let name = text(value, EXPECTED)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-$".contains(c);
    match (1..=MAX_NAME).contains(&name.len()) && name.chars().all(allowed) {
        true => Ok(Group::Name(name.to_owned())),
        false => Err(format!("{} is not {EXPECTED}", quoted(name))),
    }
}

/// With whose end a registration ends.
pub(super) fn lease(value: &DeValue<'_>) -> Result<Lease, String> {
    let options = [
        ("attachment", Lease::Attachment),
        ("connection", Lease::Connection),
        ("pidfd", Lease::Pidfd),
    ];
    choice(value, &options)
}

/// A route's destinations.
pub(super) fn prefix(value: &DeValue<'_>) -> Result<IpNet, String> {
    prefix_but_for(value, |kind| kind)
}

/// Hosts with whom a container may talk: neighbors on a link too.
pub(super) fn peers(value: &DeValue<'_>) -> Result<IpNet, String> {
    prefix_but_for(value, |kind| kind.filter(|&kind| kind != LINK_LOCAL))
}

/// A prefix, unless it is of a kind that is refused.
fn prefix_but_for(
    value: &DeValue<'_>,
    refused: fn(Option<&'static str>) -> Option<&'static str>,
) -> Result<IpNet, String> {
    const EXPECTED: &str = "a prefix, as in \"198.51.100.0/24\"";
    let written = text(value, EXPECTED)?;
    let prefix = network(written, EXPECTED, (32, 128))?;
    if prefix.trunc() != prefix {
        let reason = "has bits set beyond its length; the network is";
        return Err(format!(
            "{} {reason} \"{}\"",
            quoted(written),
            prefix.trunc()
        ));
    }
    match refused(unroutable(prefix)) {
        Some(kind) => Err(format!(
            "{} is {kind}, which is not routed",
            quoted(written)
        )),
        None => Ok(prefix),
    }
}

/// One of the NOS's addresses, for a container.
pub(super) fn address(value: &DeValue<'_>) -> Result<IpAddr, String> {
    let written = text(value, "an address, as in \"203.0.113.1\"")?;
    if let Ok(network) = written.parse::<IpNet>() {
        let reason = "has a prefix length; a container's address goes without: write";
        return Err(format!(
            "{} {reason} \"{}\"",
            quoted(written),
            network.addr()
        ));
    }
    written.parse().map_err(|_| {
        format!(
            "{} is not an address, as in \"203.0.113.1\"",
            quoted(written)
        )
    })
}

/// A multicast group of which others on a link are told.
pub(super) fn group(value: &DeValue<'_>) -> Result<IpAddr, String> {
    const EXPECTED: &str = "the address of a multicast group, as in \"239.1.2.3\"";
    let written = text(value, EXPECTED)?;
    let group: IpAddr = written
        .parse()
        .map_err(|_| format!("{} is not {EXPECTED}", quoted(written)))?;
    let reported = match group {
        IpAddr::V4(group) => group.is_reported(),
        IpAddr::V6(group) => group.is_reported(),
    };
    match (group.is_multicast(), reported) {
        (false, _) => Err(format!("{} is not {EXPECTED}", quoted(written))),
        (true, false) => Err(format!(
            "{} is a group of which nobody is told: everybody is in it, or it stays inside a host",
            quoted(written)
        )),
        (true, true) => Ok(group),
    }
}

pub(super) fn next_hop(value: &DeValue<'_>) -> Result<HopText, String> {
    let written = text(value, "a next hop, as in \"203.0.113.2\"")?;
    let (host, zone) = match written.split_once('%') {
        Some((host, zone)) => (host, Some(zone)),
        None => (written, None),
    };
    let address: IpAddr = host.parse().map_err(|_| {
        let examples = "as in \"203.0.113.2\" or \"fe80::1%up0\"";
        format!("{} is not a next hop, {examples}", quoted(written))
    })?;
    if !is_link_local(address) {
        usable_address(address).map_err(|why| format!("{} {why}", quoted(written)))?;
    }
    let uplink = zone.map(parsed).transpose()?;
    Ok(HopText { address, uplink })
}

pub(super) fn port_entry(value: &DeValue<'_>) -> Result<PortEntry, String> {
    match value {
        DeValue::Integer(_) => {
            let port = count(value, 1..=65_535).and_then(single_port);
            port.map(PortEntry::Ports)
        }
        DeValue::String(written) => match written.strip_prefix('!') {
            Some(excluded) => ports(written, excluded.trim_start()).map(PortEntry::Except),
            None => ports(written, written).map(PortEntry::Ports),
        },
        _ => Err(mistyped(value, PORTS)),
    }
}

/// Reads `ports`, which is `written` without what stands before it.
fn ports(written: &str, ports: &str) -> Result<PortRange, String> {
    ports.parse().map_err(|why| match why {
        PortRangeError::Syntax(_) => format!("{} is not {PORTS}", quoted(written)),
        _ => format!("{}: {why}", quoted(written)),
    })
}

pub(super) fn service(value: &DeValue<'_>) -> Result<Service, String> {
    const EXPECTED: &str = "\"echo\", \"discard\" or \"http:PORT\"";
    let written = text(value, EXPECTED)?;
    match (written, written.split_once(':')) {
        ("echo", _) => Ok(Service::Echo),
        ("discard", _) => Ok(Service::Discard),
        ("http", _) => http(written, ""),
        (_, Some(("http", port))) => http(written, port),
        _ => {
            let hint = did_you_mean(written, &["echo", "discard"]).unwrap_or_default();
            Err(format!("{} is not {EXPECTED}{hint}", quoted(written)))
        }
    }
}

/// A service of which a table says more; `None` for that which listens on the ports that are given.
pub(super) fn service_name(value: &DeValue<'_>) -> Result<Option<Service>, String> {
    let options = [
        ("echo", Some(Service::Echo)),
        ("discard", Some(Service::Discard)),
        ("http", None),
    ];
    choice(value, &options)
}

fn http(written: &str, port: &str) -> Result<Service, String> {
    match port.parse::<PortRange>() {
        Ok(range) => match NonZeroU16::new(range.first()) {
            Some(port) if range.len() == 1 => Ok(Service::Http(port)),
            _ => Err(format!(
                "{}: a service has one port, not a range",
                quoted(written)
            )),
        },
        Err(PortRangeError::Syntax(_)) => Err(format!(
            "{} lacks a port from 1 to 65535, as in \"http:8080\"",
            quoted(written)
        )),
        Err(why) => Err(format!("{}: {why}", quoted(written))),
    }
}

fn single_port(port: NonZeroU32) -> Result<PortRange, String> {
    NonZeroU16::try_from(port)
        .map(PortRange::from)
        .map_err(|_| format!("{port} is no port"))
}

/// IPv6 `fe80::/10`.
pub(super) fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn mistyped(value: &DeValue<'_>, expected: &str) -> String {
    format!("{} is not {expected}", shown(value))
}

fn text<'a>(value: &'a DeValue<'_>, expected: &str) -> Result<&'a str, String> {
    let string = || format!("{} is not a string; expected {expected}", shown(value));
    value.as_str().ok_or_else(string)
}

fn parsed<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|why| format!("{} {why}", quoted(text)))
}

pub(super) fn choice<T: Clone>(value: &DeValue<'_>, options: &[(&str, T)]) -> Result<T, String> {
    let names: Vec<_> = options.iter().map(|&(name, _)| name).collect();
    let expected = format!("\"{}\"", names.join("\" or \""));
    let written = text(value, &expected)?;
    let chosen = options.iter().find(|&&(name, _)| name == written);
    chosen.map(|(_, option)| option.clone()).ok_or_else(|| {
        let hint = did_you_mean(written, &names).unwrap_or_default();
        format!("{} is not {expected}{hint}", quoted(written))
    })
}

pub(super) fn integer(value: &DeValue<'_>, bounds: RangeInclusive<u32>) -> Result<u32, String> {
    let (least, most) = (bounds.start(), bounds.end());
    let DeValue::Integer(number) = value else {
        return Err(mistyped(
            value,
            &format!("an integer from {least} to {most}"),
        ));
    };
    u32::from_str_radix(number.as_str(), number.radix())
        .ok()
        .filter(|number| bounds.contains(number))
        .ok_or_else(|| format!("{} is not in the range {least} to {most}", shown(value)))
}

fn count(value: &DeValue<'_>, bounds: RangeInclusive<u32>) -> Result<NonZeroU32, String> {
    let number = integer(value, bounds)?;
    NonZeroU32::new(number).ok_or_else(|| "0 is too few".to_owned())
}

/// Reads a prefix. `lengths` are those that an IPv4 and an IPv6 address without one may mean.
fn network(written: &str, expected: &str, lengths: (u8, u8)) -> Result<IpNet, String> {
    written
        .parse()
        .map_err(|_| match written.parse::<IpAddr>() {
            Ok(bare) => {
                let length = if bare.is_ipv4() { lengths.0 } else { lengths.1 };
                format!(
                    "{} lacks a prefix length, as in \"{bare}/{length}\"",
                    quoted(written)
                )
            }
            Err(_) => format!("{} is not {expected}", quoted(written)),
        })
}

/// Why no interface or router may have this address, if so.
fn usable_address(address: IpAddr) -> Result<(), String> {
    let why = match address {
        _ if address.is_unspecified() => "is the unspecified address",
        _ if address.is_loopback() => "is a loopback address",
        _ if address.is_multicast() => "is a multicast address",
        IpAddr::V4(address) => return usable_ipv4(address),
        IpAddr::V6(address) => return usable_ipv6(address),
    };
    Err(why.to_owned())
}

fn usable_ipv4(address: Ipv4Addr) -> Result<(), String> {
    match address.octets()[0] {
        _ if address.is_broadcast() => Err("is the broadcast address".to_owned()),
        0 => Err("is in 0.0.0.0/8, which means \"this network\"".to_owned()),
        240.. => Err("is in 240.0.0.0/4, which is reserved".to_owned()),
        _ => Ok(()),
    }
}

fn usable_ipv6(address: Ipv6Addr) -> Result<(), String> {
    if let Some(ipv4) = address.to_ipv4_mapped() {
        return Err(format!("is an IPv4-mapped address; write {ipv4}"));
    }
    if address.is_unicast_link_local() {
        return Err("is link-local; an uplink makes its own from its MAC address".to_owned());
    }
    Ok(())
}

/// Why this cannot be a host with the network around it, if so.
fn host_of_network(network: IpNet) -> Result<(), String> {
    let least = if network.addr().is_ipv4() { 8 } else { 16 };
    if network.prefix_len() < least {
        return Err(format!("has a prefix length below {least}"));
    }
    match not_a_host(network, network.addr()) {
        Some(what) => Err(format!("is the {what} address of {}", network.trunc())),
        None => Ok(()),
    }
}

/// What `address` is in `network` when it is no host's.
pub(super) fn not_a_host(network: IpNet, address: IpAddr) -> Option<&'static str> {
    // Networks of two addresses or one have none such (RFC 3021, RFC 6164).
    let two_or_fewer = network.max_prefix_len() - network.prefix_len() < 2;
    match network {
        _ if two_or_fewer => None,
        IpNet::V4(_) if address == network.network() => Some("network"),
        IpNet::V4(_) if address == network.broadcast() => Some("broadcast"),
        IpNet::V6(_) if address == network.network() => Some("subnet-router anycast"),
        _ => None,
    }
}

const LINK_LOCAL: &str = "link-local";

fn unroutable(prefix: IpNet) -> Option<&'static str> {
    let within = |text: &str| text.parse::<IpNet>().is_ok_and(|net| net.contains(&prefix));
    [
        ("127.0.0.0/8", "loopback"),
        ("::1/128", "loopback"),
        ("224.0.0.0/4", "multicast"),
        ("ff00::/8", "multicast"),
        ("fe80::/10", LINK_LOCAL),
    ]
    .into_iter()
    .find(|(net, _)| within(net))
    .map(|(_, kind)| kind)
}

/// `written` in quotation marks, on one line and not too long.
pub(super) fn quoted(written: &str) -> String {
    format!("{:?}", shortened(written))
}

/// `written` without quotation marks, on one line and not too long.
pub(super) fn one_line(written: &str) -> String {
    let visible = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    shortened(written).chars().map(visible).collect()
}

/// A value as errors quote it.
pub(super) fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(string) => quoted(string),
        DeValue::Integer(number) => shortened(&number.to_string()),
        DeValue::Float(number) => shortened(number.as_str()),
        DeValue::Boolean(boolean) => boolean.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn shortened(written: &str) -> String {
    match written.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{}…", &written[..end]),
        None => written.to_owned(),
    }
}

/// What may have been meant by `unknown`, or all there is to choose from.
pub(super) fn suggestion(unknown: &str, known: &[&str]) -> String {
    did_you_mean(unknown, known).unwrap_or_else(|| format!("; known are {}", known.join(", ")))
}

/// The closest of `known`, if it is close.
pub(super) fn did_you_mean(unknown: &str, known: &[&str]) -> Option<String> {
    // A long text is no misspelling, and measuring it would take long.
    let unknown = unknown.get(..unknown.len().min(64))?.to_lowercase();
    let distance = |&&known: &&&str| strsim::damerau_levenshtein(&unknown, known);
    let closest = known.iter().min_by_key(distance)?;
    let close = distance(&closest) <= closest.len().div_ceil(3);
    close.then(|| format!("; did you mean \"{closest}\"?"))
}
