//! Streams in VXLAN tunnels between real kernels, through the relay and over a Linux bridge beside it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nos_relay::lab::testbed::{LabNamespace, Vxlan};

use crate::plain::Plain;
use crate::streams::{Observer, SIZE, content, sender, transfer};
use crate::support::daemon::LIMIT;
use crate::support::lab_test;
use crate::support::scenario::{FAMILIES, Family, Scenario, Variant};

/// A port of the container's, for both ends of the first tunnel.
const PORT: u16 = 20_789;
/// Fits the MTU of the underlay, with IPv6 and VXLAN around.
const MTU: u32 = 1430;
const INSIDE: u16 = 7;
const OCTETS: usize = 2 << 20;

/// A kind of tunnel.
#[derive(Clone, Copy, Debug)]
struct Row {
    outer: Family,
    /// Whether the outer datagram has a checksum.
    checksum: bool,
    /// Whether checksums are left to the interface below, and cutting with them.
    partial: bool,
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for outer in FAMILIES {
        for bits in 0..4_u8 {
            rows.push(Row {
                outer,
                checksum: bits & 1 != 0,
                partial: bits & 2 != 0,
            });
        }
    }
    rows
}

/// An end of a tunnel: where, and the interface below.
type End<'a> = (&'a LabNamespace, &'static str);

/// Makes tunnel number `n` between ends that have the addresses of `row`'s family, moves streams
/// and datagrams through it each way, and checks every octet.
fn carry(ends: [End<'_>; 2], n: u16, row: Row) {
    let outer = [row.outer.nos, row.outer.external];
    for (side, (namespace, below)) in ends.into_iter().enumerate() {
        namespace
            .set_feature(below, "tx-checksum-ip-generic", row.partial)
            .unwrap();
        let name = format!("v{n}");
        let vxlan = Vxlan {
            local: outer[side],
            remote: outer[1 - side],
            port: PORT + n,
            checksum: row.checksum,
            mtu: MTU,
        };
        namespace.add_vxlan(&name, vxlan).unwrap();
        for address in inside(n, side) {
            let length = if address.is_ipv6() { 64 } else { 24 };
            let network = ipnet::IpNet::new(address, length).unwrap();
            namespace.add_address(&name, network).unwrap();
        }
    }
    let content = content(OCTETS, n.into());
    for (from, to) in [(0, 1), (1, 0)] {
        for address in inside(n, to) {
            let address = SocketAddr::new(address, INSIDE);
            transfer(ends[from].0, ends[to].0, address, &content);
            datagrams(ends[from].0, ends[to].0, address, &content);
        }
    }
}

/// Sends datagrams that one call hands to the kernel, and checks that each comes as it was. Linux
/// itself lets some overtake others inside of a tunnel, and drops some where its queues are full: of
/// these the batch is sent again.
fn datagrams(from: &LabNamespace, to: &LabNamespace, address: SocketAddr, content: &[u8]) {
    let receiver = to.run(|| UdpSocket::bind(address).unwrap()).unwrap();
    let patience = Some(Duration::from_millis(300));
    receiver.set_read_timeout(patience).unwrap();
    let sender = sender(from, address);
    let batches = || content.chunks(30 * SIZE - 5).take(10);
    let known: BTreeSet<&[u8]> = batches().flat_map(|batch| batch.chunks(SIZE)).collect();
    for batch in batches() {
        let deadline = Instant::now() + LIMIT;
        let mut left: BTreeSet<&[u8]> = batch.chunks(SIZE).collect();
        while !left.is_empty() {
            assert!(Instant::now() < deadline, "datagrams are lost for ever");
            sender.send_to(batch, address).unwrap();
            let mut buffer = [0; 2 * SIZE];
            while !left.is_empty()
                && let Ok(length) = receiver.recv(&mut buffer)
            {
                let datagram = &buffer[..length];
                assert!(known.contains(datagram), "a datagram changed");
                left.remove(datagram);
            }
        }
    }
}

/// Addresses in tunnel number `n`.
fn inside(n: u16, side: usize) -> [IpAddr; 2] {
    [
        format!("10.9.{n}.{}", side + 1).parse().unwrap(),
        format!("fd09:{n}::{}", side + 1).parse().unwrap(),
    ]
}

/// A bridge between two hosts with the addresses of the NOS and of the external host.
fn plain() -> Plain {
    let plain = Plain::bridge();
    for (n, host) in plain.hosts().iter().enumerate() {
        for which in ["default", "e0"] {
            let key = format!("net/ipv6/conf/{which}/disable_ipv6");
            host.sysctl(&key, "0").unwrap();
        }
        for family in FAMILIES {
            let length = if family.is_v6() { 64 } else { 24 };
            let address = [family.nos, family.external][n];
            let network = ipnet::IpNet::new(address, length).unwrap();
            host.add_address("e0", network).unwrap();
        }
    }
    plain
}

fn check(variant: Variant) {
    if !variant.is_possible() {
        return;
    }
    let scenario = Scenario::new(variant);
    let plain = plain();
    let observer = Observer::open(&scenario.topology);
    for (n, row) in (0..).zip(rows()) {
        let [first, second] = plain.hosts();
        carry([(first, "e0"), (second, "e0")], n, row);
        carry(
            [(scenario.web(), "eth0"), (scenario.external(), "xh")],
            n,
            row,
        );
        let seen = observer.tunnels_seen();
        let wanted: &[&str] = match row.partial {
            true => &[
                "TCP over IPv4",
                "TCP over IPv6",
                "UDP over IPv4",
                "UDP over IPv6",
            ],
            false => &[],
        };
        assert_eq!(
            seen,
            wanted.iter().copied().collect::<BTreeSet<_>>(),
            "{row:?}: tried"
        );
    }
    scenario.daemon.settle();
    for stage in ["relay", "nos"] {
        for reason in ["offload-header", "transport-checksum", "device-error"] {
            assert_eq!(
                scenario.daemon.dropped(stage, reason),
                0,
                "{reason} in {stage}"
            );
        }
    }
}

macro_rules! paths {
    ($($test:ident: $device:literal, $threads:literal, $offload:expr;)+) => {
        $(lab_test! {
            fn $test() {
                check(Variant {
                    device: $device,
                    threads: $threads,
                    offload: $offload,
                });
            }
        })+
    };
}

paths! {
    tap: "tap", "single", [true, true];
    plain_tap: "tap", "split", [false, false];
    veth: "veth", "split", [true, true];
    plain_veth: "veth", "single", [false, false];
}
