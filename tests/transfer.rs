//! Bulk TCP arrives whole, each way and in every variant.
//!
//! `NOS_RELAY_TRANSFER_GIB=10 cargo test --release --test transfer` moves as many GiB in each
//! transfer; by default some MiB do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use nix::sys::socket::{setsockopt, sockopt};
use nos_relay::control::api::snapshot::Link;
use nos_relay::lab::testbed::{LabNamespace, Topology};
use support::bulk::transfer;
use support::daemon::{Daemon, LIMIT};
use support::scenario::{
    FAMILIES, Family, Scenario, V4, Variant, config, each_variant, edited, variant_tests,
};

const MIB: u64 = 1 << 20;

/// Whether each transfer is to take long; then there are fewer.
fn is_long() -> bool {
    std::env::var_os("NOS_RELAY_TRANSFER_GIB").is_some()
}

/// Octets of a transfer.
fn size(by_default: u64) -> u64 {
    match std::env::var("NOS_RELAY_TRANSFER_GIB") {
        Ok(gib) => gib.parse::<u64>().unwrap() << 30,
        Err(_) => by_default,
    }
}

/// A connection from `client` to `address` in `server`: its ends there.
fn connect(client: &LabNamespace, server: &LabNamespace, address: SocketAddr) -> [TcpStream; 2] {
    let listener = server.run(|| TcpListener::bind(address).unwrap()).unwrap();
    let near = client.run(|| TcpStream::connect_timeout(&address, LIMIT).unwrap());
    let (far, _) = listener.accept().unwrap();
    [near.unwrap(), far]
}

fn outbound(scenario: &Scenario, family: Family, port: u16) -> [TcpStream; 2] {
    connect(
        scenario.web(),
        scenario.external(),
        family.external_port(port),
    )
}

fn inbound(scenario: &Scenario, family: Family, port: u16) -> [TcpStream; 2] {
    connect(scenario.external(), scenario.web(), family.nos_port(port))
}

/// The same connection, the octets going the other way.
fn reversed([near, far]: [TcpStream; 2]) -> [TcpStream; 2] {
    [far, near]
}

fn transfer_each_way(scenario: &Scenario, octets: u64) {
    if is_long() {
        transfer(outbound(scenario, V4, 8080), octets, 1);
        transfer(inbound(scenario, V4, 20080), octets, 2);
        return;
    }
    for family in FAMILIES {
        let connections = [
            outbound(scenario, family, 8080),
            reversed(outbound(scenario, family, 8081)),
            inbound(scenario, family, 20080),
            reversed(inbound(scenario, family, 20081)),
        ];
        for (connection, seed) in connections.into_iter().zip(1..) {
            transfer(connection, octets, seed);
        }
    }
}

fn octets_a_packet(link: &Link) -> [u64; 2] {
    [link.rx, link.tx].map(|traffic| traffic.octets / traffic.packets)
}

each_variant! {
    fn bulk_arrives_whole(variant) {
        let scenario = Scenario::new(variant);
        let offload = variant.offload[0];
        transfer_each_way(&scenario, size(if offload { 32 * MIB } else { 8 * MIB }));
        // Offload carries super-frames through; without it none longer than the MTU is sent. A veth
        // hands them to a packet socket all the same, a TAP does not.
        let links = [
            scenario.daemon.attachment("web").link,
            scenario.daemon.uplink("up0").link,
        ];
        for link in links {
            let [from, to] = octets_a_packet(&link).map(|octets| octets > 1514);
            assert_eq!(to, offload, "{link:?}");
            assert_eq!(from, offload || link.device != "tap", "{link:?}");
        }
    }
}

/// Where one side has offload and the other none, super-frames are cut on the way out.
mod bulk_is_cut_in_software {
    use super::*;

    fn scenario(variant: Variant) {
        let scenario = Scenario::new(variant);
        transfer_each_way(&scenario, size(8 * MIB));
        let [containers, _] = variant.offload;
        let links = [
            scenario.daemon.attachment("web").link,
            scenario.daemon.uplink("up0").link,
        ];
        let [with, without] = if containers { [0, 1] } else { [1, 0] };
        assert!(octets_a_packet(&links[with])[0] > 1514, "{links:?}");
        assert!(octets_a_packet(&links[without])[1] <= 1514, "{links:?}");
    }

    variant_tests! {
        tap_to_plain_uplink: ("tap", "single", [true, false]),
        plain_tap_to_uplink: ("tap", "split", [false, true]),
        veth_to_plain_uplink: ("veth", "split", [true, false]),
        plain_veth_to_uplink: ("veth", "single", [false, true]),
    }
}

/// Packets that fill what the link takes, and more than the buffers of some.
mod jumbo_frames_arrive_whole {
    use super::*;

    fn scenario(variant: Variant) {
        for mtu in [9000, 65_000] {
            let topology = Topology::new(&["web", "db"]).unwrap();
            topology.device.set_mtu("hx", mtu).unwrap();
            topology.external.set_mtu("xh", mtu).unwrap();
            let config = config(&topology, variant);
            let config = edited(
                &config,
                "packet:hx\"\n",
                &format!("packet:hx\"\nmtu = {mtu}\n"),
            );
            let daemon = Daemon::start(&topology.device, &config);
            let scenario = Scenario {
                daemon,
                topology,
                config,
            };
            assert_eq!(scenario.web().link("eth0").unwrap().unwrap().mtu, mtu);
            transfer_each_way(&scenario, size(8 * MIB));
        }
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        tap_plain: ("tap", "split", [false, false]),
        veth: ("veth", "split", [true, true]),
        veth_to_plain: ("veth", "single", [true, false]),
    }
}

/// Datagrams that a socket hands over by the dozen (`UDP_SEGMENT`), to be cut by whoever can.
mod udp_segments_arrive_whole {
    use super::*;

    const SEGMENT: usize = 1200;
    const COUNT: usize = 40;

    fn scenario(variant: Variant) {
        let scenario = Scenario::new(variant);
        for family in FAMILIES {
            let far = family.external_port(7000);
            send_segments(scenario.web(), scenario.external(), far);
            send_segments(scenario.external(), scenario.web(), family.nos_port(20053));
        }
    }

    fn send_segments(from: &LabNamespace, to: &LabNamespace, address: SocketAddr) {
        let receiver = to.run(|| UdpSocket::bind(address).unwrap()).unwrap();
        receiver.set_read_timeout(Some(LIMIT)).unwrap();
        let any: IpAddr = if address.is_ipv6() {
            [0; 16].into()
        } else {
            [0; 4].into()
        };
        let sender = from.run(|| UdpSocket::bind((any, 0)).unwrap()).unwrap();
        let size = i32::try_from(SEGMENT).unwrap();
        setsockopt(&sender, sockopt::UdpGsoSegment, &size).unwrap();
        for round in 0..20 {
            // The last one is shorter.
            let mut payload = vec![0; SEGMENT * COUNT - 7];
            fastrand::Rng::with_seed(round).fill(&mut payload);
            sender.send_to(&payload, address).unwrap();
            for segment in payload.chunks(SEGMENT) {
                let mut buffer = [0; 2 * SEGMENT];
                let length = receiver.recv(&mut buffer).unwrap();
                assert!(
                    buffer[..length] == *segment,
                    "a datagram of {length} octets differs"
                );
            }
        }
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        tap_split_plain: ("tap", "split", [false, false]),
        tap_to_plain: ("tap", "single", [true, false]),
        veth_split: ("veth", "split", [true, true]),
        veth_single_plain: ("veth", "single", [false, false]),
        veth_to_plain: ("veth", "single", [true, false]),
        plain_tap_to_uplink: ("tap", "single", [false, true]),
    }
}

/// Four connections at once each way.
mod parallel_streams_arrive_whole {
    use super::*;

    fn scenario(variant: Variant) {
        let scenario = Scenario::new(variant);
        let each_way = [
            [8080, 8081, 8082, 8083].map(|port| outbound(&scenario, V4, port)),
            [20080, 20081, 20082, 20083].map(|port| inbound(&scenario, V4, port)),
        ];
        for connections in each_way {
            std::thread::scope(|scope| {
                for (connection, seed) in connections.into_iter().zip(1..) {
                    scope.spawn(move || transfer(connection, size(8 * MIB), seed));
                }
            });
        }
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        tap_split: ("tap", "split", [true, true]),
        veth_single: ("veth", "single", [true, true]),
        veth_split: ("veth", "split", [true, true]),
    }
}

/// Both ways on one connection, which mixes data with acknowledgements of data.
mod both_ways_at_once {
    use super::*;

    fn scenario(variant: Variant) {
        let scenario = Scenario::new(variant);
        for family in FAMILIES {
            let [near, far] = inbound(&scenario, family, 20080);
            let back = [far.try_clone().unwrap(), near.try_clone().unwrap()];
            std::thread::scope(|scope| {
                scope.spawn(|| transfer([near, far], size(8 * MIB), 1));
                transfer(back, size(8 * MIB), 2);
            });
        }
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        veth_split: ("veth", "split", [true, true]),
    }
}
