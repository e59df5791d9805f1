//! The network driver.

use std::path::{Path, PathBuf};

use ipnet::IpNet;
use nos_relay::control::api::snapshot::{Attachment, Network, PortKind, Protocol};
use serde_json::{Value, json};

use super::{Answer, Call, CallError, ENGINE, ipam, options, shown};
use crate::daemon::{Daemon, DaemonError};
use crate::endpoint::{self, Endpoint, is_bridged, is_gone, is_routed, prepare};
use crate::name::is_of;

/// Where endpoints are that are in no sandbox: nowhere.
const NOWHERE: &str = "/run/nos-relay/docker/not-joined";

/// Characters of an identifier of Docker's that are in a name: as many as Docker shows.
const SHORT: usize = 12;

pub(super) fn create(daemon: &Daemon, call: &Call) -> Answer {
    let mut network = options::network(&call.object("Options")?)?;
    network.insert("name".to_owned(), network_name(call)?.into());
    // Another mode says itself how its containers are joined.
    if network.get("mode").is_none_or(|mode| mode != "bridge") {
        network.entry("device").or_insert("veth".into());
    }
    daemon.change(json!({"type": "network-create", "network": network}), None)?;
    Ok(json!({}))
}

pub(super) fn delete(daemon: &Daemon, call: &Call) -> Answer {
    let name = network_name(call)?;
    daemon.change(json!({"type": "network-remove", "name": name}), None)?;
    Ok(json!({}))
}

pub(super) fn create_endpoint(daemon: &Daemon, call: &Call) -> Answer {
    let network = network_name(call)?;
    let interface = call.object("Interface")?;
    let text = |key: &str| {
        interface
            .get(key)
            .and_then(Value::as_str)
            .filter(|it| !it.is_empty())
    };
    let known = daemon.networks()?.into_iter().find(|it| it.name == network);
    let known = known.ok_or_else(|| {
        CallError::asked(format_args!(
            "nos-relay has no network {network}; make it anew"
        ))
    })?;
    let ports = options::ports(&call.object("Options")?)?;
    let assigned = assigned(&known, [text("Address"), text("AddressIPv6")])?;
    let name = endpoint_name(call)?;
    let endpoint = Endpoint {
        engine: ENGINE,
        netns: nowhere(&name),
        interface: "eth0".to_owned(),
        // As its network says.
        device: None,
        ports,
        addresses: Vec::new(),
        pool: None,
        workload: None,
        link_addresses: Vec::new(),
        assigned,
        mac: text("MacAddress").map(str::to_owned),
        mtu: None,
        vrf: None,
        network: Some(network),
        to: None,
        from: None,
        routed: false,
        outside: None,
        name,
    };
    let endpoint = endpoint.in_network(Some(&known));
    let attachment = prepare(daemon, &endpoint).map_err(CallError::asked)?;
    let mac = match text("MacAddress") {
        // What Docker has said must not be said again.
        Some(_) => json!({}),
        None => json!({"MacAddress": attachment.container_mac.to_string()}),
    };
    Ok(json!({"Interface": mac}))
}

/// The addresses that Docker has for an endpoint, if its network has a use for them; else those of the NOS
/// among them: those of another IPAM driver mean nothing there.
fn assigned(network: &Network, given: [Option<&str>; 2]) -> Result<Vec<IpNet>, CallError> {
    let mut assigned: Vec<IpNet> = Vec::new();
    for text in given.into_iter().flatten() {
        let address = text.parse();
        assigned.push(
            address.map_err(|_| CallError::asked(format_args!("{} is no address", shown(text))))?,
        );
    }
    if !(is_routed(network) || is_bridged(network)) {
        assigned.retain(|net| network.addresses.contains(&net.addr()));
    }
    Ok(assigned)
}

pub(super) fn delete_endpoint(daemon: &Daemon, call: &Call) -> Answer {
    endpoint::leave(daemon, &endpoint_name(call)?)?;
    Ok(json!({}))
}

pub(super) fn describe(daemon: &Daemon, call: &Call) -> Answer {
    let row = found(daemon, &endpoint_name(call)?)?;
    let addresses: Vec<_> = row.addresses.iter().map(ToString::to_string).collect();
    let value = json!({
        "nos-relay.io/name": row.name,
        "nos-relay.io/addresses": addresses.join(","),
        "com.docker.network.endpoint.macaddress": row.container_mac.to_string(),
    });
    Ok(json!({"Value": value}))
}

pub(super) fn join(daemon: &Daemon, call: &Call) -> Answer {
    let name = endpoint_name(call)?;
    let sandbox = call.text("SandboxKey")?;
    if !Path::new(sandbox).is_absolute() {
        return Err(CallError::asked(format_args!(
            "SandboxKey {} is no path",
            shown(sandbox)
        )));
    }
    let mut others = daemon.attachments()?;
    others.retain(|row| row.netns == sandbox && row.name != name);
    let interface = free_interface(&others);
    if let Some(other) = others.first() {
        share_ephemeral(daemon, &name, &other.name)?;
    }
    let request = json!({"type": "move", "name": name, "netns": sandbox, "interface": interface});
    daemon.change(request, None)?;
    // There is no gateway that Docker would have to make.
    Ok(json!({"DisableGatewayService": true}))
}

/// Has an endpoint open flows also from the ports from which another one of its sandbox does: a namespace gives
/// sockets their ports before it is known where they go. On addresses of their own both may have them.
fn share_ephemeral(daemon: &Daemon, name: &str, other: &str) -> Result<(), CallError> {
    let rows = daemon.ports()?.into_iter();
    // They are of both protocols.
    let rows = rows.filter(|row| row.protocol == Protocol::Tcp && row.kind == PortKind::Ephemeral);
    let shared = rows.filter(|row| row.owner == other);
    let shared: Vec<Value> = shared.map(|row| row.range.to_string().into()).collect();
    if !shared.is_empty() {
        let request = json!({"type": "ports-add", "container": name, "ephemeral": shared});
        daemon.change(request, None)?;
    }
    Ok(())
}

/// The first `ethN` that none of these endpoints has.
fn free_interface(others: &[Attachment]) -> String {
    let others = others.iter().map(|row| row.link.interface.as_str());
    let taken: Vec<_> = others.collect();
    let mut names = (0..).map(|number: u32| format!("eth{number}"));
    let free = names.find(|name| !taken.contains(&name.as_str()));
    free.unwrap_or_default()
}

pub(super) fn leave(daemon: &Daemon, call: &Call) -> Answer {
    let name = endpoint_name(call)?;
    if daemon.attachments()?.iter().any(|row| row.name == name) {
        let request = json!({"type": "move", "name": name, "netns": nowhere(&name)});
        daemon.change(request, None)?;
    }
    Ok(json!({}))
}

/// Not those that are to be joined in a moment: their sandboxes are nowhere yet.
pub(super) fn collect(daemon: &Daemon) -> Result<Vec<String>, DaemonError> {
    let mut gone = Vec::new();
    for row in daemon.attachments()? {
        let netns = Path::new(&row.netns);
        let joined = netns.is_absolute() && !netns.starts_with(NOWHERE);
        if is_of(ENGINE, &row.name) && joined && is_gone(netns) {
            endpoint::leave(daemon, &row.name)?;
            gone.push(row.name);
        }
    }
    ipam::release_leaked(daemon)?;
    Ok(gone)
}

fn found(daemon: &Daemon, name: &str) -> Result<Attachment, CallError> {
    let rows = daemon.attachments()?.into_iter();
    let mut found = rows.filter(|row| row.name == name);
    found
        .next()
        .ok_or_else(|| CallError::asked(format_args!("nos-relay has no endpoint {name}")))
}

fn nowhere(name: &str) -> PathBuf {
    Path::new(NOWHERE).join(name)
}

fn network_name(call: &Call) -> Result<String, CallError> {
    let id = short(call.text("NetworkID")?, "NetworkID")?;
    Ok(format!("{ENGINE}.{id}"))
}

fn endpoint_name(call: &Call) -> Result<String, CallError> {
    let network = network_name(call)?;
    let id = short(call.text("EndpointID")?, "EndpointID")?;
    Ok(format!("{network}.{id}"))
}

/// The beginning of an identifier, which is hexadecimal.
fn short<'a>(id: &'a str, what: &str) -> Result<&'a str, CallError> {
    let good = id.len() >= SHORT && id.bytes().all(|octet| octet.is_ascii_hexdigit());
    match id.get(..SHORT) {
        Some(short) if good => Ok(short),
        _ => Err(CallError::asked(format_args!(
            "{what} {} is no identifier",
            shown(id)
        ))),
    }
}
