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

use std::net::{IpAddr, SocketAddr};

use nos_relay::lab::testbed::ping::{Echo, ping};
use nos_relay::lab::testbed::{LabNamespace, tcp, udp};
use support::daemon::{Daemon, LIMIT};

/// A program in `from` reaches a server in `to` by TCP and UDP. Returns from where.
#[track_caller]
fn reaches(from: &LabNamespace, to: &LabNamespace, server: (IpAddr, u16)) -> SocketAddr {
    let server = server.into();
    let echo = tcp::EchoServer::start(to, server).unwrap();
    tcp::exchange(from, None, server, &vec![7; 100_000], LIMIT).unwrap();
    let datagrams = udp::EchoServer::start(to, server).unwrap();
    udp::exchange(from, None, server, b"x", LIMIT).unwrap();
    assert_eq!(datagrams.peers().len(), 1);
    echo.peers()[0]
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
