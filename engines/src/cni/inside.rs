//! What is inside of a container, as somebody inside sees it.

use core::fmt::Display;
use core::net::IpAddr;
use std::collections::BTreeSet;
use std::path::Path;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nos_relay::control::kernel::Namespace;

use super::error::{CniError, Code};

/// What is inside of the container.
#[derive(Debug, Default)]
pub(super) struct Inside {
    /// Whether the interface is there and up.
    pub(super) up: Option<bool>,
    pub(super) mac: Option<String>,
    /// Addresses of all its interfaces.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Whether a default route leads to the interface, of IPv4 and IPv6.
    pub(super) routes: [bool; 2],
}

/// Looks into the container's namespace.
pub(super) fn look(netns: &Path, interface: &str) -> Result<Inside, CniError> {
    let gone = |error: &dyn Display| {
        CniError::new(
            Code::UnknownContainer,
            "the container does not exist",
            error,
        )
    };
    let namespace = Namespace::open(netns).map_err(|error| gone(&error))?;
    let looked = namespace.run(|| look_here(interface));
    looked
        .map_err(|error| CniError::new(Code::Io, "the container cannot be entered", error))?
        .map_err(|error| CniError::new(Code::Io, "the container cannot be looked at", error))
}

fn look_here(interface: &str) -> std::io::Result<Inside> {
    let mut inside = Inside::default();
    for entry in getifaddrs()? {
        let Some(address) = entry.address else {
            continue;
        };
        if let Some(v4) = address.as_sockaddr_in() {
            inside.addresses.insert(v4.ip().into());
        } else if let Some(v6) = address.as_sockaddr_in6() {
            inside.addresses.insert(v6.ip().into());
        } else if let Some(link) = address
            .as_link_addr()
            .filter(|_| entry.interface_name == interface)
        {
            inside.up = Some(entry.flags.contains(InterfaceFlags::IFF_UP));
            let octets = link
                .addr()
                .map(|octets| octets.map(|it| format!("{it:02x}")).join(":"));
            inside.mac = octets;
        }
    }
    let table = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
    inside.routes[0] = table("route")?
        .lines()
        .any(|line| is_default_v4(line, interface));
    // A kernel without IPv6 has no such file.
    let v6 = table("ipv6_route").unwrap_or_default();
    inside.routes[1] = v6.lines().any(|line| is_default_v6(line, interface));
    Ok(inside)
}

/// A line of `/proc/net/route`: interface, destination, gateway, four numbers, mask, ...
fn is_default_v4(line: &str, interface: &str) -> bool {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    fields.first() == Some(&interface)
        && fields.get(1) == Some(&"00000000")
        && fields.get(7) == Some(&"00000000")
}

/// A line of `/proc/net/ipv6_route`: destination, its length, ..., interface.
fn is_default_v6(line: &str, interface: &str) -> bool {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    fields.last() == Some(&interface)
        && fields
            .first()
            .is_some_and(|it| it.bytes().all(|octet| octet == b'0'))
        && fields.get(1) == Some(&"00")
}
