//! `CHECK`: whether a container still has what `ADD` has said.

use core::fmt::Display;
use core::net::IpAddr;
use std::collections::BTreeSet;
use std::path::Path;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nos_relay::control::api::snapshot::{Attachment, LinkState};
use nos_relay::control::kernel::Namespace;
use serde_json::Value;

use super::configuration::address;
use super::environment::Command;
use super::error::{CniError, Code};
use super::{Invocation, ipam};
use crate::daemon::Daemon;

/// What `ADD` has said of our interface.
#[derive(Debug)]
struct Said {
    mac: Option<String>,
    addresses: BTreeSet<IpAddr>,
}

/// What is inside of the container.
#[derive(Debug, Default)]
struct Inside {
    /// Whether the interface is there and up.
    up: Option<bool>,
    mac: Option<String>,
    /// Addresses of all its interfaces.
    addresses: BTreeSet<IpAddr>,
    /// Whether a default route leads to the interface, of IPv4 and IPv6.
    routes: [bool; 2],
}

pub(super) fn check(invocation: &Invocation) -> Result<(), CniError> {
    let environment = &invocation.environment;
    let configuration = &invocation.configuration;
    let netns = environment.netns.as_deref().unwrap_or(Path::new("/"));
    let said = said(invocation, netns)?;
    let name = configuration
        .names
        .container(&environment.container, &environment.interface)
        .map_err(CniError::configuration)?;
    let rows = Daemon::at(&configuration.control).attachments()?;
    let Some(row) = rows.iter().find(|row| row.name == name) else {
        return Err(differs(format!("the daemon has no container {name}")));
    };
    compare_row(row, &said, netns)?;
    let inside = look(netns, &environment.interface)?;
    compare_inside(&environment.interface, &inside, &said)?;
    match &configuration.ipam {
        Some(kind) => ipam::delegate(invocation, kind, Command::Check).map(drop),
        None => Ok(()),
    }
}

fn said(invocation: &Invocation, netns: &Path) -> Result<Said, CniError> {
    let Some(previous) = invocation.configuration.previous()? else {
        return Err(CniError::configuration("prevResult: is missing"));
    };
    let list = |key: &str| {
        previous[key]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default()
    };
    let ours = invocation.environment.interface.as_str();
    let sandbox = netns.display().to_string();
    let index = list("interfaces").iter().position(|interface| {
        interface["name"] == ours && interface["sandbox"] == sandbox.as_str()
    });
    let Some(index) = index else {
        return Err(CniError::configuration(format!(
            "prevResult: has no interface {ours} in {sandbox}"
        )));
    };
    let on_it = |ip: &&Value| {
        ip["interface"]
            .as_u64()
            .and_then(|it| usize::try_from(it).ok())
            == Some(index)
    };
    let addresses = list("ips").iter().filter(on_it).map(|ip| {
        let text = ip["address"].as_str().and_then(address);
        text.ok_or_else(|| CniError::configuration("prevResult.ips: an address is none"))
    });
    let mac = list("interfaces")
        .get(index)
        .and_then(|it| it["mac"].as_str());
    Ok(Said {
        mac: mac.map(str::to_ascii_lowercase),
        addresses: addresses.collect::<Result<_, _>>()?,
    })
}

fn compare_row(row: &Attachment, said: &Said, netns: &Path) -> Result<(), CniError> {
    let name = &row.name;
    if row.link.state != LinkState::Up {
        let why = row.link.reason.as_deref().unwrap_or("it does not say why");
        return Err(differs(format!(
            "container {name} is {}: {why}",
            row.link.state
        )));
    }
    if Path::new(&row.netns) != netns {
        return Err(differs(format!("container {name} is in {}", row.netns)));
    }
    let mac = row.container_mac.to_string();
    if said.mac.as_ref().is_some_and(|said| *said != mac) {
        return Err(differs(format!(
            "container {name} has the MAC address {mac}"
        )));
    }
    let has: BTreeSet<_> = row.addresses.iter().copied().collect();
    if has != said.addresses {
        let has: Vec<_> = has.iter().map(ToString::to_string).collect();
        return Err(differs(format!(
            "container {name} has the addresses {}",
            has.join(", ")
        )));
    }
    Ok(())
}

fn compare_inside(interface: &str, inside: &Inside, said: &Said) -> Result<(), CniError> {
    match inside.up {
        None => return Err(differs(format!("there is no {interface} inside"))),
        Some(false) => return Err(differs(format!("{interface} is down inside"))),
        Some(true) => {}
    }
    if said.mac.is_some() && inside.mac != said.mac {
        let mac = inside.mac.as_deref().unwrap_or("none");
        return Err(differs(format!(
            "{interface} has the MAC address {mac} inside"
        )));
    }
    for address in &said.addresses {
        if !inside.addresses.contains(address) {
            return Err(differs(format!("{address} is not there inside")));
        }
        let family = usize::from(address.is_ipv6());
        if !inside.routes[family] {
            return Err(differs(format!(
                "no default route leads {address} to {interface}"
            )));
        }
    }
    Ok(())
}

/// Looks into the container's namespace.
fn look(netns: &Path, interface: &str) -> Result<Inside, CniError> {
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

fn differs(details: impl Display) -> CniError {
    CniError::new(
        Code::Differs,
        "the container is not as it was added",
        details,
    )
}
