//! `CHECK`: whether a container still has what `ADD` has said.

use core::fmt::Display;
use core::net::IpAddr;
use std::collections::BTreeSet;
use std::path::Path;

use nos_relay::control::api::snapshot::{Attachment, LinkState};
use nos_relay::control::config::ContainerDevice;
use serde_json::Value;

use super::configuration::address;
use super::environment::Command;
use super::error::{CniError, Code};
use super::inside::{Inside, look};
use super::reply::DEFAULT_ROUTES;
use super::{Invocation, ipam};
use crate::daemon::Daemon;

/// What `ADD` has said of our interface.
#[derive(Debug)]
struct Said {
    mac: Option<String>,
    addresses: BTreeSet<IpAddr>,
    /// Whether it has said that default routes lead there, of IPv4 and IPv6.
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
        routes: DEFAULT_ROUTES.map(|default| list("routes").iter().any(|it| it["dst"] == default)),
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
    let on_link = |address| row.link_addresses.iter().any(|net| net.addr() == address);
    let known = |address| row.addresses.contains(&address) || on_link(address);
    // What plugins before have given an interface that they made is for them to check.
    let existing = row.link.device == ContainerDevice::Existing.to_string();
    if !existing && !said.addresses.iter().copied().all(known) {
        let has: Vec<_> = row.addresses.iter().map(ToString::to_string).collect();
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
    }
    for (family, default) in DEFAULT_ROUTES.iter().enumerate() {
        if said.routes[family] && !inside.routes[family] {
            return Err(differs(format!(
                "no route to {default} leads to {interface}"
            )));
        }
    }
    Ok(())
}

fn differs(details: impl Display) -> CniError {
    CniError::new(
        Code::Differs,
        "the container is not as it was added",
        details,
    )
}
