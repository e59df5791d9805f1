//! What the scenario tests of engines share.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where its network cannot be built"
)]
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod plugin;

use std::collections::BTreeSet;
use std::path::Path;

use nos_relay::control::api::snapshot::Registration;
use nos_relay::control::api::{Request, Response, Table, query};
use nos_relay::lab::testbed::{LabNamespace, Topology};

use crate::base::daemon::{Daemon, LIMIT};

/// The daemon's configuration: an uplink, and ports that may be allocated.
pub(crate) const CONFIG: &str = r#"
[[uplink]]
name = "up0"
device = "packet:hx"
addresses = ["203.0.113.1/24", "2001:db8:1::1/64", "203.0.113.3/24"]

[[route]]
prefix = "0.0.0.0/0"
via = "203.0.113.2"

[ports]
pool = "30000-59999"
"#;

/// A daemon in the usual network, without containers.
#[derive(Debug)]
pub(crate) struct Network {
    // First, so that it is stopped while the network is there.
    pub(crate) daemon: Daemon,
    pub(crate) topology: Topology,
}

impl Network {
    /// With so many empty namespaces.
    pub(crate) fn new(containers: usize) -> Self {
        Self::with(containers, CONFIG)
    }

    pub(crate) fn with(containers: usize, config: &str) -> Self {
        let labels: Vec<_> = (0..containers).map(|index| format!("C{index}")).collect();
        let labels: Vec<_> = labels.iter().map(String::as_str).collect();
        let topology = Topology::new(&labels).unwrap();
        let daemon = Daemon::start(&topology.device, config);
        // Packets of containers that have gone are not counted any more.
        daemon.forget_counters();
        Self { daemon, topology }
    }

    pub(crate) fn container(&self, index: usize) -> &LabNamespace {
        &self.topology.containers[index]
    }

    pub(crate) fn control(&self) -> std::path::PathBuf {
        self.daemon.files().control()
    }

    pub(crate) fn registrations(&self) -> Vec<Registration> {
        let table = Table::Registrations;
        match query(&self.control(), &Request::Show { table }, LIMIT).unwrap() {
            Response::Registrations(rows) => rows,
            other => panic!("{other:?}"),
        }
    }

    /// All that containers leave somewhere: what is registered and stored, ports, attachments, and
    /// what the device and these namespaces have of links, addresses, routes and rules.
    pub(crate) fn traces(&self) -> Traces {
        let mut traces = Traces::default();
        traces.add(
            "registered",
            self.registrations().iter().map(|it| format!("{it:?}")),
        );
        traces.add(
            "port",
            self.daemon.ports().iter().map(|it| format!("{it:?}")),
        );
        traces.add(
            "attached",
            self.daemon.attachments().iter().map(|it| it.name.clone()),
        );
        traces.add("device", inside(&self.topology.device));
        for (index, container) in self.topology.containers.iter().enumerate() {
            traces.add(&format!("container {index}"), inside(container));
        }
        traces
    }

    /// Fails where there is something now that was not there then, or the other way round.
    pub(crate) fn assert_as_before(&self, before: &Traces, what: &str) {
        let now = self.traces();
        let more: Vec<_> = now.0.difference(&before.0).collect();
        let less: Vec<_> = before.0.difference(&now.0).collect();
        assert!(
            more.is_empty() && less.is_empty(),
            "{what}: left {more:#?}, missing {less:#?}"
        );
    }
}

/// What is there, a line for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traces(BTreeSet<String>);

impl Traces {
    fn add(&mut self, whose: &str, lines: impl IntoIterator<Item = String>) {
        let lines = lines.into_iter().map(|line| format!("{whose}: {line}"));
        self.0.extend(lines);
    }
}

/// Links, addresses, routes and rules of a namespace.
fn inside(namespace: &LabNamespace) -> Vec<String> {
    let mut lines: Vec<String> = namespace.run(links_here).unwrap();
    lines.extend(namespace.rules().unwrap());
    for key in ["ip_local_port_range", "ip_local_reserved_ports"] {
        let value = namespace.read_sysctl(&format!("net/ipv4/{key}")).unwrap();
        lines.push(format!("{key} {value}"));
    }
    lines
}

fn links_here() -> Vec<String> {
    let addresses = nix::ifaddrs::getifaddrs().unwrap();
    let address = |entry: &nix::ifaddrs::InterfaceAddress| {
        entry
            .address
            .map_or_else(String::new, |address| address.to_string())
    };
    let mut lines: Vec<_> = addresses
        .map(|entry| format!("{} {}", entry.interface_name, address(&entry)))
        .collect();
    for table in ["route", "ipv6_route"] {
        let text = std::fs::read_to_string(Path::new("/proc/thread-self/net").join(table));
        // What is counted of a route is no trace.
        let line = |line: &str| {
            let fields: Vec<_> = line.split_ascii_whitespace().collect();
            let wanted = match table {
                "route" => [fields[0], fields[1], fields[7]],
                _ => [fields[0], fields[1], fields[fields.len() - 1]],
            };
            format!("route {}", wanted.join(" "))
        };
        lines.extend(text.unwrap().lines().map(line));
    }
    lines
}
