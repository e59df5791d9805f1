//! Containers whose interfaces are ports of a Linux bridge: what is for the NOS goes to it, all else stays the
//! bridge's.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "../support/mod.rs"]
mod support;

mod existing;
mod ports;

use std::net::IpAddr;

use nos_relay::lab::testbed::ping::{Echo, ping};
use nos_relay::lab::testbed::{LabNamespace, Topology};
use support::daemon::{Daemon, LIMIT};

/// The uplink of a configuration, and the NOS's services.
fn uplink() -> String {
    format!(
        r#"
[[uplink]]
name = "up0"
device = "packet:{}"
addresses = ["203.0.113.1/24", "2001:db8:1::1/64"]

[nos]
services = ["echo"]
"#,
        Topology::UPLINK
    )
}

#[track_caller]
fn pings(from: &LabNamespace, address: IpAddr) {
    let echoes = ping(from, address, 1, LIMIT).unwrap();
    assert!(echoes.iter().all(Echo::is_reply), "{echoes:?}");
}

/// How many frames the relay has heard of containers.
fn heard(daemon: &Daemon) -> u64 {
    daemon.settle();
    let rows = daemon.attachments();
    rows.iter().map(|row| row.link.rx.packets).sum()
}
