//! The daemon's state as tables for people and as JSON for programs.
//!
//! Tables have no borders and no colour; they fit 100 columns unless a name or an address is
//! long. Nothing is cut off or wrapped, so that what is shown can be copied.

use core::fmt::Display;
use std::time::{SystemTime, UNIX_EPOCH};

use comfy_table::{CellAlignment, Table, presets};

use nos_shim::ident::AttachmentId;

use crate::control::api::snapshot::{
    Attachment, Capture, Counters, Drops, Flow, FlowOpener, Lease, Link, Neighbor, NeighborState,
    Network, NextHop, Origin, Outside, Pool, PoolAddress, Port, PortKind, PortState, Protocol,
    Registration, RegistrationKind, Ring, Route, RouteAction, RouteSource, Stage, Traffic, Turns,
    Uplink,
};
use crate::control::api::{Applied, Carrier, Event, Response, Subject, SubjectKind, Watched};

/// Characters of a line that tells a reason.
const REASON_WIDTH: usize = 36;

/// The response as a table, with a newline at the end. What is empty says so in words.
#[must_use]
pub fn table(response: &Response) -> String {
    let text = match response {
        Response::Networks(rows) => networks(rows),
        Response::Attachments(rows) => attachments(rows),
        Response::Ports(rows) => ports(rows),
        Response::Routes(rows) => routes(rows),
        Response::Neighbors(rows) => neighbors(rows),
        Response::Flows(rows) => flows(rows),
        Response::Counters(counters) => self::counters(counters),
        Response::Registrations(rows) => registrations(rows),
        Response::Pools(rows) => pools(rows),
        Response::PoolAddresses(rows) => pool_addresses(rows),
        Response::Changed(applied) => self::applied(applied),
        Response::Watching { .. } => "Watching.".to_owned(),
        Response::HandingOver(offer) => format!("Handing over {} devices.", offer.descriptors),
        Response::Refused(refusal) => refusal.to_string(),
    };
    format!("{text}\n")
}

/// What the response holds as JSON, with a newline at the end: an array of the table's rows, or an
/// object of counters. The fields are those of [`crate::control::api::snapshot`].
#[must_use]
pub fn json(response: &Response) -> String {
    let json = match response {
        Response::Networks(rows) => serde_json::to_string_pretty(rows),
        Response::Attachments(rows) => serde_json::to_string_pretty(rows),
        Response::Ports(rows) => serde_json::to_string_pretty(rows),
        Response::Routes(rows) => serde_json::to_string_pretty(rows),
        Response::Neighbors(rows) => serde_json::to_string_pretty(rows),
        Response::Flows(rows) => serde_json::to_string_pretty(rows),
        Response::Counters(counters) => serde_json::to_string_pretty(counters),
        Response::Registrations(rows) => serde_json::to_string_pretty(rows),
        Response::Pools(rows) => serde_json::to_string_pretty(rows),
        Response::PoolAddresses(rows) => serde_json::to_string_pretty(rows),
        Response::Changed(applied) => serde_json::to_string_pretty(applied),
        Response::Watching { .. } => Ok("{}".to_owned()),
        Response::HandingOver(offer) => serde_json::to_string_pretty(offer),
        Response::Refused(refusal) => serde_json::to_string_pretty(refusal),
    };
    // Plain structs with text keys always serialise.
    format!("{}\n", json.unwrap_or_default())
}

/// Puts the rows in the order in which people look for them.
pub fn sort(response: &mut Response) {
    match response {
        Response::Networks(rows) => rows.sort(),
        Response::Attachments(rows) => rows.sort_by_key(|row| row.id),
        Response::Ports(rows) => rows.sort_by_key(|row| (row.vrf, row.protocol, row.range)),
        Response::Routes(rows) => {
            rows.sort_by_key(|row| (row.vrf, row.prefix.addr().is_ipv6(), row.prefix, row.metric));
        }
        Response::Neighbors(rows) => {
            rows.sort_by(|a, b| (&a.uplink, a.address).cmp(&(&b.uplink, b.address)));
        }
        Response::Flows(rows) => {
            rows.sort_by(|a, b| {
                let key = |row: &Flow| (row.vrf, row.protocol, row.local, row.remote);
                (&a.owner, key(a)).cmp(&(&b.owner, key(b)))
            });
        }
        Response::Registrations(rows) => rows.sort(),
        // The total ones come first.
        Response::Pools(_) => {}
        Response::PoolAddresses(rows) => rows.sort(),
        Response::Counters(_)
        | Response::Changed(_)
        | Response::Watching { .. }
        | Response::HandingOver(_)
        | Response::Refused(_) => {}
    }
}

fn networks(rows: &[Network]) -> String {
    if rows.is_empty() {
        return "There are no networks.".to_owned();
    }
    let cells = rows.iter().map(|row| {
        let addresses: Vec<_> = row.addresses.iter().map(ToString::to_string).collect();
        [
            row.name.clone(),
            row.mode.clone(),
            row.vrf.clone(),
            lines(&row.uplinks),
            lines(&addresses),
            lines(&row.containers),
            row.origin.to_string(),
        ]
    });
    let header = [
        "NAME",
        "MODE",
        "VRF",
        "UPLINKS",
        "ADDRESSES",
        "CONTAINERS",
        "FROM",
    ];
    plain(&header, &[], cells)
}

fn pools(rows: &[Pool]) -> String {
    if rows.is_empty() {
        return "There are no pools, as there are no networks of uplinks.".to_owned();
    }
    let cells = rows.iter().map(|row| {
        [
            row.name.clone(),
            row.kind.to_string(),
            row.vrf.clone(),
            row.inside.clone().unwrap_or_else(|| "-".to_owned()),
            row.size.to_string(),
            row.in_use.to_string(),
            row.kept.to_string(),
            row.in_pools.to_string(),
            row.available.to_string(),
            lines(&row.ranges),
        ]
    });
    let header = [
        "NAME",
        "KIND",
        "VRF",
        "INSIDE",
        "SIZE",
        "IN USE",
        "KEPT",
        "IN POOLS",
        "AVAILABLE",
        "ADDRESSES",
    ];
    plain(&header, &[4, 5, 6, 7, 8], cells)
}

fn pool_addresses(rows: &[PoolAddress]) -> String {
    if rows.is_empty() {
        return "No address of a pool was given to anybody.".to_owned();
    }
    let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let cells = rows.iter().map(|row| {
        let addresses: Vec<_> = row.addresses.iter().map(ToString::to_string).collect();
        [
            row.pool.clone(),
            lines(&addresses),
            row.state.to_string(),
            dash(&row.workload),
            dash(&row.holder),
        ]
    });
    plain(
        &["POOL", "ADDRESS", "STATE", "WORKLOAD", "HOLDER"],
        &[],
        cells,
    )
}

fn registrations(rows: &[Registration]) -> String {
    if rows.is_empty() {
        return "Nothing was registered at run time.".to_owned();
    }
    let cells = rows.iter().map(|row| {
        let kind = match row.kind {
            RegistrationKind::Network => "network",
            RegistrationKind::Container => "container",
            RegistrationKind::Ports => "ports",
            RegistrationKind::Route => "route",
            RegistrationKind::Address => "address",
            RegistrationKind::Group => "group",
        };
        let lease = match row.lease {
            None => "-",
            Some(Lease::Attachment) => "attachment",
            Some(Lease::Connection) => "connection",
            Some(Lease::Pidfd) => "pidfd",
        };
        let lease = match row.holder {
            Some(pid) => format!("{lease} of {pid}"),
            None => lease.to_owned(),
        };
        let state = match &row.reason {
            None => "accepted".to_owned(),
            Some(reason) => format!("set aside\n{}", wrap(reason, REASON_WIDTH)),
        };
        [
            kind.to_owned(),
            row.name.clone(),
            lines(&row.what),
            lease,
            state,
        ]
    });
    plain(&["KIND", "NAME", "WHAT", "LEASE", "STATE"], &[], cells)
}

fn applied(applied: &Applied) -> String {
    // Each on a line, for scripts.
    if !applied.addresses.is_empty() {
        let addresses: Vec<_> = applied.addresses.iter().map(ToString::to_string).collect();
        return addresses.join("\n");
    }
    match (applied.changed, &applied.range) {
        (true, Some(range)) => range.clone(),
        (true, None) => "Done.".to_owned(),
        (false, _) => "It is so already: nothing has changed.".to_owned(),
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// A line for something that happened: seconds of Unix time, and what.
#[must_use]
pub fn watched(watched: &Watched) -> String {
    let (time_ms, event) = match watched {
        Watched::Lost(lost) => return format!("{lost} events were not read in time"),
        Watched::Event { time_ms, event } => (time_ms, event),
    };
    let of = |subject: &Subject| {
        let kind = match subject.kind {
            SubjectKind::Container => "container",
            SubjectKind::Uplink => "uplink",
            SubjectKind::Services => "services",
            SubjectKind::Routes => "routes",
            SubjectKind::Interfaces => "interfaces of the NOS",
        };
        match &subject.name {
            Some(name) => format!("{kind} {name}"),
            None => kind.to_owned(),
        }
    };
    let counts = |stage: &str, drops: &Drops| {
        let counts = drops.iter();
        let counts = counts.map(|(reason, count)| format!(" {stage} {count} {reason}"));
        counts.collect::<String>()
    };
    let what = match event {
        Event::Attached { subject } => format!("attached {}", of(subject)),
        Event::Gone { subject } => format!("gone {}", of(subject)),
        Event::Healed { subject } => format!("healed {}", of(subject)),
        Event::Refused { subject, reason } => format!("refused {}: {reason}", of(subject)),
        Event::Conflict {
            subject,
            address,
            mac,
        } => format!("conflict {}: {mac} uses {address}", of(subject)),
        Event::Carrier {
            subject,
            state,
            peer,
            reason,
        } => {
            let state = match state {
                Carrier::Up => "up",
                Carrier::Stalled => "stalled",
                Carrier::Down => "down",
            };
            let why = peer.as_ref().or(reason.as_ref());
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            format!("carrier {state} {}{why}", of(subject))
        }
        Event::ForeignPort {
            subject,
            protocol,
            port,
            owner,
            dropped,
        } => {
            let owner = owner.as_deref().unwrap_or("nobody");
            let what = format!("{} {port} of {owner}", self::protocol(*protocol));
            format!("foreign-port {}: {what}, {dropped} dropped", of(subject))
        }
        Event::Policy {
            subject,
            reason,
            sender,
            protocol,
            port,
            remote,
            remote_port,
            dropped,
        } => {
            let end = |port: &Option<u16>| port.map(|port| format!(" {port}")).unwrap_or_default();
            let side = match sender {
                FlowOpener::Owner => "to",
                FlowOpener::Peer => "from",
            };
            format!(
                "policy {}: {reason}, {protocol}{} {side} {remote}{}, {dropped} dropped",
                of(subject),
                end(port),
                end(remote_port),
            )
        }
        Event::Registration {
            subject,
            vrf,
            mode,
            addresses,
            ports,
        } => {
            let addresses = addresses.iter().map(|address| format!(" {address}"));
            let ports = ports.iter().map(|it| {
                let kind = match it.kind {
                    PortKind::Listen => "",
                    PortKind::Ephemeral => " ephemeral",
                    PortKind::Service => " service",
                };
                format!(", {} {}{kind}", protocol(it.protocol), it.range)
            });
            format!(
                "registration {}: vrf {vrf} {mode}{}{}",
                of(subject),
                addresses.collect::<String>(),
                ports.collect::<String>()
            )
        }
        Event::Drops { relay, nos } => {
            format!("drops{}{}", counts("relay", relay), counts("nos", nos))
        }
    };
    format!("{}.{:03} {what}", time_ms / 1000, time_ms % 1000)
}

fn attachments(rows: &[Attachment]) -> String {
    if rows.is_empty() {
        return "No container is attached.".to_owned();
    }
    let cells = rows.iter().map(|row| {
        let mut interface = vec![
            format!(
                "{} ({}) in {}",
                row.link.interface, row.link.device, row.netns
            ),
            format!("mac {}", row.container_mac),
            format!("mac {} of the NOS", row.link.mac),
        ];
        interface.extend(row.addresses.iter().map(ToString::to_string));
        let shared = row.link_local.iter();
        interface.extend(shared.map(|it| format!("{} of {}", it.address, it.uplink)));
        interface.extend(properties(&row.link));
        interface.extend(policy(row));
        [
            row.id
                .map(|id| AttachmentId(id).index().to_string())
                .unwrap_or_default(),
            match row.origin {
                Origin::Config => row.name.clone(),
                Origin::Runtime => format!("{}\n(runtime)", row.name),
            },
            state(&row.link),
            interface.join("\n"),
            traffic(&row.link),
        ]
    });
    spaced(
        &["ID", "CONTAINER", "STATE", "INTERFACE", "TRAFFIC"],
        &[0],
        cells,
    )
}

/// Where a container may open flows to, and from which ports, if not as others may.
fn policy(row: &Attachment) -> Vec<String> {
    let mut lines = match row.to.as_deref() {
        None => Vec::new(),
        Some([]) => vec!["to nowhere".to_owned()],
        Some(prefixes) => prefixes.iter().map(|it| format!("to {it}")).collect(),
    };
    if row.outside == Outside::Learn {
        lines.push("outside learn".to_owned());
    }
    lines
}

fn uplinks(rows: &[Uplink]) -> String {
    let cells =
        rows.iter().map(|row| {
            let mut interface = vec![format!("{} ({})", row.link.interface, row.link.device)];
            interface.extend(row.vlan.map(|vlan| format!("vlan {vlan}")));
            interface.push(format!("mac {}", row.link.mac));
            interface.extend(row.addresses.iter().map(|address| {
                match row.runtime_addresses.contains(address) {
                    true => format!("{address} (runtime)"),
                    false => address.to_string(),
                }
            }));
            interface.extend(row.groups.iter().map(
                |group| match row.runtime_groups.contains(group) {
                    true => format!("group {group} (runtime)"),
                    false => format!("group {group}"),
                },
            ));
            interface.extend(properties(&row.link));
            let mut traffic = vec![traffic(&row.link)];
            if row.address_conflicts > 0 {
                traffic.push(format!("address conflicts {}", row.address_conflicts));
            }
            [
                row.name.clone(),
                state(&row.link),
                interface.join("\n"),
                traffic.join("\n"),
            ]
        });
    spaced(&["UPLINK", "STATE", "INTERFACE", "TRAFFIC"], &[], cells)
}

fn properties(link: &Link) -> [String; 2] {
    let offload = match link.offload.is_empty() {
        true => "none".to_owned(),
        false => link.offload.join(" "),
    };
    [
        format!("mtu {}, vrf {}", link.mtu, link.vrf_name),
        format!("offload {offload}"),
    ]
}

fn traffic(link: &Link) -> String {
    let direction = |name: &str, traffic: Traffic| {
        format!(
            "{name} {} packets, {}",
            traffic.packets,
            octets(traffic.octets)
        )
    };
    let mut lines = vec![direction("received", link.rx), direction("sent", link.tx)];
    lines.extend(
        link.drops
            .iter()
            .map(|(reason, packets)| format!("dropped {packets} {reason}")),
    );
    if let Some(dropped) = link.device_tx_dropped.filter(|&dropped| dropped > 0) {
        lines.push(format!("dropped {dropped} in the device's queue"));
    }
    if link.long_super_frames > 0 {
        lines.push(format!(
            "cut {} super-frames over 64 KiB",
            link.long_super_frames
        ));
    }
    lines.extend(
        link.refused
            .iter()
            .map(|(kind, frames)| format!("device refused {frames} {kind}")),
    );
    lines.join("\n")
}

fn ports(rows: &[Port]) -> String {
    if rows.is_empty() {
        return "No ports are registered.".to_owned();
    }
    let cells = rows.iter().map(|row| {
        let kind = match row.kind {
            PortKind::Listen => "listen",
            PortKind::Ephemeral => "ephemeral",
            PortKind::Service => "service of the NOS",
        };
        let protocol = match row.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        [
            row.vrf_name.clone(),
            protocol.to_owned(),
            row.range.to_string(),
            [vec![kind.to_owned()], rules(row)].concat().join("\n"),
            row.owner.clone(),
            row.origin.to_string(),
            row.addresses
                .as_deref()
                .map_or_else(|| "all".to_owned(), lines),
        ]
    });
    plain(
        &[
            "VRF",
            "PROTOCOL",
            "PORTS",
            "KIND",
            "OWNER",
            "FROM",
            "ADDRESSES",
        ],
        &[],
        cells,
    )
}

/// Who may open flows to ports, or what comes to them, if not as it does to others.
fn rules(row: &Port) -> Vec<String> {
    let from = row.from.iter().flatten();
    let from = from.map(|prefix| format!("from {prefix}"));
    let state = row
        .state
        .map(|PortState::Established| "established".to_owned());
    from.chain(state).collect()
}

fn routes(rows: &[Route]) -> String {
    if rows.is_empty() {
        return "There are no routes.".to_owned();
    }
    let cells = rows.iter().map(|row| {
        let source = match row.source {
            RouteSource::Connected => "connected",
            RouteSource::Attached => "attached",
            RouteSource::Static => "static",
        };
        [
            row.vrf_name.clone(),
            row.prefix.to_string(),
            match (row.source, row.origin) {
                (RouteSource::Static, Origin::Runtime) => "runtime".to_owned(),
                _ => source.to_owned(),
            },
            row.metric.to_string(),
            route_action(row),
        ]
    });
    plain(
        &["VRF", "PREFIX", "SOURCE", "METRIC", "ACTION"],
        &[3],
        cells,
    )
}

fn route_action(row: &Route) -> String {
    let word = match row.action {
        RouteAction::Via => "via",
        RouteAction::Connected => "connected",
        RouteAction::Local => "local",
        RouteAction::Attached => "container",
        RouteAction::Blackhole => "blackhole",
        RouteAction::Unreachable => "unreachable",
    };
    let hop = |hop: &NextHop| match hop.address {
        Some(address) => format!("{word} {address} on {}", hop.uplink),
        None => format!("{word} on {}", hop.uplink),
    };
    match (&row.next_hops[..], &row.container) {
        ([], Some(container)) => format!("{word} {container}"),
        ([], None) => word.to_owned(),
        (hops, _) => hops.iter().map(hop).collect::<Vec<_>>().join("\n"),
    }
}

fn flows(rows: &[Flow]) -> String {
    if rows.is_empty() {
        return "No flows are remembered.".to_owned();
    }
    let cells = rows.iter().map(|row| {
        let protocol = match row.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        let remote = match row.remote.port() {
            0 => format!("{} any port", row.remote.ip()),
            _ => row.remote.to_string(),
        };
        let mut state = row.state.label().to_owned();
        if row.learnt {
            state.push_str(", learnt");
        }
        [
            row.vrf_name.clone(),
            row.owner.clone(),
            protocol.to_owned(),
            row.local.to_string(),
            remote,
            state,
            age(row.idle_ms),
            age(row.left_ms),
        ]
    });
    plain(
        &[
            "VRF", "OWNER", "PROTO", "LOCAL", "REMOTE", "STATE", "IDLE", "LEFT",
        ],
        &[6, 7],
        cells,
    )
}

fn neighbors(rows: &[Neighbor]) -> String {
    if rows.is_empty() {
        return "No neighbors are known.".to_owned();
    }
    let cells = rows.iter().map(|row| {
        let state = match row.state {
            NeighborState::Incomplete => "incomplete",
            NeighborState::Reachable => "reachable",
            NeighborState::Stale => "stale",
            NeighborState::Delay => "delay",
            NeighborState::Probe => "probe",
            NeighborState::Failed => "failed",
        };
        let mac = row
            .mac
            .map_or_else(|| "-".to_owned(), |mac| mac.to_string());
        [
            row.uplink.clone(),
            row.address.to_string(),
            mac,
            state.to_owned(),
            age(row.age_ms),
            row.queued.to_string(),
        ]
    });
    plain(
        &["UPLINK", "ADDRESS", "MAC", "STATE", "AGE", "QUEUED"],
        &[4, 5],
        cells,
    )
}

fn counters(counters: &Counters) -> String {
    let Counters {
        stages: of_stages,
        rings: of_rings,
        uplinks: of_uplinks,
        turns: of_turns,
        captures: of_captures,
    } = counters;
    let mut parts = Vec::new();
    if !of_stages.is_empty() {
        parts.push(stages(of_stages));
    }
    if !of_rings.is_empty() {
        parts.push(rings(of_rings));
    }
    if !of_uplinks.is_empty() {
        parts.push(uplinks(of_uplinks));
    }
    if !of_turns.is_empty() {
        parts.push(turns(of_turns));
        parts.push(io_uring(of_turns));
    }
    if !of_captures.is_empty() {
        parts.push(captures(of_captures));
    }
    match parts.is_empty() {
        true => "There is nothing to count.".to_owned(),
        false => parts.join("\n\n"),
    }
}

fn stages(stages: &[Stage]) -> String {
    let mut header = vec!["PACKETS".to_owned()];
    header.extend(stages.iter().map(|stage| stage.name.to_uppercase()));
    let row = |name: &str, number: &dyn Fn(&Stage) -> String| {
        let numbers = stages.iter().map(number);
        core::iter::once(name.to_owned())
            .chain(numbers)
            .collect::<Vec<_>>()
    };
    let mut rows = vec![
        row("received", &|stage| stage.received.to_string()),
        row("originated", &|stage| stage.originated.to_string()),
        row("sent", &|stage| stage.sent.to_string()),
        row("consumed", &|stage| stage.consumed.to_string()),
        row("held", &|stage| stage.held.to_string()),
        row("dropped", &|stage| {
            stage.drops.values().sum::<u64>().to_string()
        }),
    ];
    for reason in reasons(stages) {
        let of = |drops: &Drops| drops.get(reason).copied().unwrap_or_default().to_string();
        rows.push(row(&format!("  {reason}"), &|stage| of(&stage.drops)));
    }
    rows.push(row("unaccounted", &|stage| stage.unaccounted().to_string()));
    let numbers: Vec<_> = (1..header.len()).collect();
    plain(&header, &numbers, rows)
}

/// The reasons for which any stage dropped.
fn reasons(stages: &[Stage]) -> Vec<&str> {
    let mut reasons: Vec<&str> = stages
        .iter()
        .flat_map(|stage| stage.drops.keys())
        .map(String::as_str)
        .collect();
    reasons.sort_unstable();
    reasons.dedup();
    reasons
}

fn rings(rings: &[Ring]) -> String {
    let cells = rings.iter().map(|ring| {
        [
            ring.name.clone(),
            ring.capacity.to_string(),
            ring.depth.to_string(),
            ring.full_drops.to_string(),
        ]
    });
    let header = ["RING", "BURSTS AT MOST", "BURSTS NOW", "PACKETS DROPPED"];
    plain(&header, &[1, 2, 3], cells)
}

/// The state, and why it is not better.
fn state(link: &Link) -> String {
    let mut lines = vec![link.state.to_string()];
    if let Some(since) = link.since {
        lines.push(format!("for {}", ago(since)));
    }
    lines.extend(
        link.reason
            .as_deref()
            .map(|reason| wrap(reason, REASON_WIDTH)),
    );
    lines.join("\n")
}

/// How long ago a moment of Unix time was, in the greatest unit that fits.
fn ago(since: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = now.map_or(0, |now| now.as_secs().saturating_sub(since));
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Breaks text between words, so that a line has at most `width` characters.
fn wrap(text: &str, width: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.chars().count() < width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

fn turns(threads: &[Turns]) -> String {
    let rows = threads.iter().flat_map(|thread| {
        thread.stages.iter().map(|stage| {
            [
                thread.thread.clone(),
                stage.name.clone(),
                stage.slow.to_string(),
                format!("{} us", stage.longest_us),
            ]
        })
    });
    let limits = threads.iter().map(|thread| thread.slow_us);
    let slow = format!("OVER {} us", limits.max().unwrap_or_default());
    plain(&["THREAD", "STAGE", &slow, "LONGEST"], &[2, 3], rows)
}

/// Characters of a line of a reason.
const REASON: usize = 50;

fn io_uring(threads: &[Turns]) -> String {
    let rows = threads.iter().map(|thread| {
        let of_thread = &thread.io_uring;
        let state = match (&of_thread.reason, of_thread.state.as_str()) {
            (Some(reason), state) => wrap(&format!("{state}: {reason}"), REASON),
            (None, "used") if !of_thread.taps => "used, but not for TAPs".to_owned(),
            (None, state) => state.to_owned(),
        };
        [
            thread.thread.clone(),
            state,
            of_thread.batches.to_string(),
            of_thread.frames.to_string(),
        ]
    });
    let header = ["THREAD", "IO_URING", "BATCHES", "FRAMES IN THEM"];
    plain(&header, &[2, 3], rows)
}

fn captures(captures: &[Capture]) -> String {
    let rows = captures.iter().map(|capture| {
        [
            capture.name.clone(),
            capture.recorded.to_string(),
            capture.missed.to_string(),
            if capture.failed { "failed" } else { "writing" }.to_owned(),
            capture.path.clone(),
        ]
    });
    plain(
        &[
            "CAPTURE",
            "FRAMES RECORDED",
            "FRAMES MISSED",
            "STATE",
            "FILE",
        ],
        &[1, 2],
        rows,
    )
}

/// Each value on a line of its own.
fn lines<T: Display>(values: &[T]) -> String {
    values
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

/// A table whose rows take several lines: with an empty line between them.
fn spaced<const N: usize>(
    header: &[&str],
    numbers: &[usize],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let mut rows: Vec<_> = rows.collect();
    let all_but_last = rows.len().saturating_sub(1);
    for row in &mut rows[..all_but_last] {
        let lines = row
            .iter()
            .map(|cell| cell.lines().count())
            .max()
            .unwrap_or_default();
        if let Some(cell) = row.last_mut() {
            let missing = lines + 1 - cell.lines().count();
            cell.push_str(&"\n".repeat(missing));
        }
    }
    plain(header, numbers, rows)
}

/// Columns side by side, those in `numbers` aligned to the right.
fn plain<H, R>(header: &[H], numbers: &[usize], rows: impl IntoIterator<Item = R>) -> String
where
    H: Display,
    R: IntoIterator<Item = String>,
{
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().map(ToString::to_string));
    for row in rows {
        table.add_row(row);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// `532 B`, `1.5 kB`, `12.0 GB`: powers of 1000.
fn octets(octets: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if octets < 1000 {
        return format!("{octets} B");
    }
    let mut tenths = octets / 100;
    let mut unit = 0;
    while tenths >= 10_000 {
        tenths /= 1000;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// `0.5 s`, `12 s`, `3 min`, `2 h`, `4 d`.
fn age(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0..10 => format!("{seconds}.{} s", millis % 1000 / 100),
        10..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_have_a_readable_unit() {
        for (number, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1_550, "1.5 kB"),
            (999_999, "999.9 kB"),
            (1_000_000, "1.0 MB"),
            (10_737_418_240, "10.7 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(octets(number), text);
        }
    }

    #[test]
    fn ages_have_a_readable_unit() {
        for (millis, text) in [
            (0, "0.0 s"),
            (9_999, "9.9 s"),
            (10_000, "10 s"),
            (119_999, "119 s"),
            (120_000, "2 min"),
            (7_200_000, "2 h"),
            (172_800_000, "2 d"),
        ] {
            assert_eq!(age(millis), text);
        }
    }
}
