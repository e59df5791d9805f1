//! Programs that use ports which are not their container's fail at once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use nos_relay::lab::testbed::{LabNamespace, tcp, udp, veth};
use nos_shim::ident::MacAddr;
use support::daemon::{LIMIT, await_that};
use support::lab_test;
use support::scenario::{FAMILIES, Family, Scenario, Variant, variant_tests};
use support::wire::{self, Wire};

/// What Linux makes of type 3 code 13: `EHOSTUNREACH`; and of ICMPv6 type 1 code 1: `EACCES`.
fn prohibited(family: Family) -> ErrorKind {
    if family.is_v6() {
        ErrorKind::PermissionDenied
    } else {
        ErrorKind::HostUnreachable
    }
}

/// Ports of nobody, of the other container for listening and for its own flows, and below 1024.
const FOREIGN: [u16; 4] = [30_000, 21_500, 45_678, 800];

fn from(family: Family, port: u16) -> Option<SocketAddr> {
    Some((family.any, port).into())
}

mod programs_on_foreign_ports_fail_at_once {
    use super::*;

    fn scenario(variant: Variant) {
        let scenario = Scenario::new(variant);
        for family in FAMILIES {
            let tcp_server =
                tcp::EchoServer::start(scenario.external(), family.external_port(8080)).unwrap();
            let udp_server =
                udp::EchoServer::start(scenario.external(), family.external_port(8053)).unwrap();
            for port in FOREIGN {
                let local = from(family, port);
                let connected = tcp::connect(scenario.web(), local, tcp_server.address(), LIMIT);
                let error = connected.unwrap_err();
                assert_eq!(
                    error.kind(),
                    Some(prohibited(family)),
                    "tcp {port}: {error}"
                );
                let sent = udp::exchange(scenario.web(), local, udp_server.address(), b"x", LIMIT);
                let error = sent.unwrap_err();
                assert_eq!(
                    error.kind(),
                    Some(prohibited(family)),
                    "udp {port}: {error}"
                );
            }
            assert!(tcp_server.peers().is_empty() && udp_server.peers().is_empty());
            // From its own ports all is as before, those that it listens on included.
            for port in [20_500, 41_000] {
                let local = from(family, port);
                tcp::exchange(scenario.web(), local, tcp_server.address(), b"x", LIMIT).unwrap();
                udp::exchange(scenario.web(), local, udp_server.address(), b"x", LIMIT).unwrap();
            }
        }
        let attempts = 2 * 2 * FOREIGN.len() as u64;
        let dropped = scenario.daemon.dropped("relay", "source-port");
        // A kernel that has to wait for its processor sends a SYN again before it has seen the answer.
        assert!(dropped >= attempts, "{dropped} of {attempts}");
        let drops = scenario.daemon.attachment("web").link.drops;
        assert_eq!(drops.get("source-port"), Some(&dropped));
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        tap_split_plain: ("tap", "split", [false, false]),
        veth_single_plain: ("veth", "single", [false, false]),
        veth_split: ("veth", "split", [true, true]),
    }
}

lab_test! {
    fn the_log_names_the_port_and_its_owner() {
        let services = "[nos]\nservices = [\"echo\"]\n";
        let scenario = Scenario::with(Variant::PLAIN, services);
        let family = FAMILIES[0];
        let server = tcp::EchoServer::start(scenario.external(), family.external_port(8080)).unwrap();
        for port in [21_500, 30_000, 7] {
            let local = from(family, port);
            tcp::connect(scenario.web(), local, server.address(), LIMIT).unwrap_err();
        }
        for (port, owner) in [("tcp 21500", "container 'db'"), ("tcp 30000", "nobody"), ("tcp 7", "services")] {
            await_that("the log tells", || {
                let log = scenario.daemon.log();
                let all = ["not its own", "web", port, owner];
                let told = log.lines().any(|line| all.iter().all(|part| line.contains(part)));
                told.then_some(()).ok_or(log)
            });
        }
    }
}

lab_test! {
    // The other container's flow is its affair: who meddles is dropped, and nobody hears of it.
    fn segments_of_anothers_flow_are_answered_to_nobody() {
        let scenario = Scenario::new(Variant::PLAIN);
        let inside = Wire::open(scenario.web(), "eth0");
        let other = Wire::open(scenario.db(), "eth0");
        let macs = (inside.mac(), scenario.daemon.attachment("web").link.mac);
        for family in FAMILIES {
            let server = tcp::EchoServer::start(scenario.external(), family.external_port(8080)).unwrap();
            let mine = tcp::connect(scenario.db(), from(family, 45_000), server.address(), LIMIT).unwrap();
            for flags in ["a", "ra", "fa", "sa"] {
                inside.send(&segment(macs, family, flags));
            }
            // This one opens a flow, and is the first that is answered.
            inside.send(&segment(macs, family, "s"));
            let prohibited = if family.is_v6() { (1, 1) } else { (3, 13) };
            let before = inside.seen_until(LIMIT, |seen| seen.icmp() == Some(prohibited));
            assert!(before.iter().all(|seen| seen.is_chatter() || seen.icmp().is_none()), "{before:#?}");
            drop(mine);
            tcp::exchange(scenario.db(), from(family, 45_001), server.address(), b"x", LIMIT).unwrap();
            assert!(other.seen().iter().all(|seen| seen.icmp() != Some(prohibited)));
        }
        assert_eq!(scenario.daemon.dropped("relay", "source-port"), 2 * 5);
    }
}

/// A segment of the other container's flow, with these flags.
fn segment(macs: (MacAddr, MacAddr), family: Family, flags: &str) -> Vec<u8> {
    let mut step = wire::ip(macs, family.nos, family.external).tcp(45_000, 8080, 1, 1000);
    for flag in flags.chars() {
        step = match flag {
            's' => step.syn(),
            'a' => step.ack(7),
            'r' => step.rst(),
            _ => step.fin(),
        };
    }
    let mut frame = Vec::new();
    step.write(&mut frame, b"").unwrap();
    frame
}

/// A network behind `container`, whose flows leave by the container's kernel.
fn behind(container: &LabNamespace) -> LabNamespace {
    let inner = LabNamespace::new("inner").unwrap();
    veth((container, "in0"), (&inner, "eth0")).unwrap();
    container
        .add_address("in0", "10.9.0.1/24".parse().unwrap())
        .unwrap();
    inner
        .add_address("eth0", "10.9.0.2/24".parse().unwrap())
        .unwrap();
    let everywhere = "0.0.0.0/0".parse().unwrap();
    inner.add_route(everywhere, [10, 9, 0, 1].into()).unwrap();
    container.sysctl("net/ipv4/ip_forward", "1").unwrap();
    inner
}

/// Has the container's kernel translate what leaves by `eth0`, in place of what it did before.
fn masquerade(container: &LabNamespace, how: &str) {
    let rules = format!(
        "table ip nat {{\n}}\ndelete table ip nat\ntable ip nat {{\n chain out {{\n type nat hook \
         postrouting priority srcnat;\n oif eth0 meta l4proto {{ tcp, udp }} {how}\n }}\n}}\n"
    );
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped());
    let mut nft = container.spawn(command).unwrap();
    nft.stdin
        .take()
        .unwrap()
        .write_all(rules.as_bytes())
        .unwrap();
    assert!(nft.wait().unwrap().success(), "{rules}");
}

lab_test! {
    // As a container engine inside a container does. IPv4 only: a kernel forwards no ICMPv6 error
    // that comes from a link-local address.
    fn behind_masquerade_a_foreign_port_fails_at_once_and_a_range_of_ones_own_works() {
        let scenario = Scenario::new(Variant::PLAIN);
        let family = FAMILIES[0];
        let server = tcp::EchoServer::start(scenario.external(), family.external_port(8080)).unwrap();
        let inner = behind(scenario.web());
        let exchange = |port| tcp::exchange(&inner, from(family, port), server.address(), b"x", LIMIT);
        // The kernel keeps the port of the inner program.
        masquerade(scenario.web(), "masquerade");
        let error = exchange(30_000).unwrap_err();
        assert_eq!(error.kind(), Some(prohibited(family)), "{error}");
        exchange(40_000).unwrap();
        masquerade(scenario.web(), "masquerade to :44000-44999");
        exchange(30_001).unwrap();
        let ports: Vec<_> = server.peers().iter().map(SocketAddr::port).collect();
        assert_eq!(ports[0], 40_000);
        assert!((44_000..=44_999).contains(&ports[1]), "{ports:?}");
    }
}
