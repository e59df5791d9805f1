//! Containers reach the world, and are reached, on the NOS's own address.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;

use nix::sys::socket::{setsockopt, sockopt};
use nos_relay::control::api::snapshot::LinkState;
use nos_relay::lab::testbed::ping::{Echo, ping};
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp, udp};
use nos_shim::ident::MacAddr;
use support::daemon::{Daemon, LIMIT};
use support::lab_test;
use support::scenario::{
    DB_EPHEMERAL, FAMILIES, Family, Scenario, Variant, WEB_EPHEMERAL, config, each_variant, edited,
};
use support::wire::{ICMP, ICMPV6, Seen, TCP, UDP, Wire};

/// Everything that X gets from the NOS's address.
fn from_nos(wire: &Wire, family: Family) -> Vec<Seen> {
    let mut seen = wire.seen();
    seen.retain(|seen| seen.source == family.nos && !seen.is_chatter());
    seen
}

fn assert_ping(from: &LabNamespace, to: IpAddr) {
    for echo in ping(from, to, 3, LIMIT).unwrap() {
        let Echo::Reply { from, ttl, .. } = echo else {
            panic!("{to}: {echo:?}");
        };
        assert_eq!((from, ttl), (to, 64));
    }
}

each_variant! {
    fn ping_works_both_ways(variant) {
        let scenario = Scenario::new(variant);
        let wire = Wire::open(scenario.external(), Topology::EXTERNAL_INTERFACE);
        let nos_mac = scenario.daemon.uplink("up0").link.mac;
        for family in FAMILIES {
            // The NOS answers; the containers' own requests pass.
            assert_ping(scenario.external(), family.nos);
            for container in &scenario.topology.containers {
                assert_ping(container, family.external);
            }
            let seen = from_nos(&wire, family);
            assert_eq!(seen.len(), 9, "{seen:#?}");
            for packet in seen {
                assert!(matches!(packet.protocol, ICMP | ICMPV6));
                assert_eq!((packet.ttl, packet.source_mac), (64, nos_mac));
            }
        }
    }
}

each_variant! {
    fn outsiders_reach_registered_ports(variant) {
        let scenario = Scenario::new(variant);
        let wire = Wire::open(scenario.external(), Topology::EXTERNAL_INTERFACE);
        for family in FAMILIES {
            for (container, port) in [(scenario.web(), 20080), (scenario.web(), 179), (scenario.db(), 21080)] {
                let server = tcp::EchoServer::start(container, family.nos_port(port)).unwrap();
                let peer = tcp::exchange(scenario.external(), None, server.address(), &[7; 5000], LIMIT);
                // The container sees X's own address and port.
                assert_eq!(server.peers(), [peer.unwrap()]);
            }
            for (container, port) in [(scenario.web(), 20053), (scenario.db(), 21053)] {
                let server = udp::EchoServer::start(container, family.nos_port(port)).unwrap();
                let peer = udp::exchange(scenario.external(), None, server.address(), &[7; 1000], LIMIT);
                assert_eq!(server.peers(), [peer.unwrap()]);
            }
            assert_seen(&from_nos(&wire, family), |port| matches!(port, 20080 | 179 | 21080 | 20053 | 21053));
        }
    }
}

each_variant! {
    fn containers_reach_outsiders(variant) {
        let scenario = Scenario::new(variant);
        let wire = Wire::open(scenario.external(), Topology::EXTERNAL_INTERFACE);
        for family in FAMILIES {
            let mut ports = Vec::new();
            for (container, range) in [(scenario.web(), WEB_EPHEMERAL), (scenario.db(), DB_EPHEMERAL)] {
                let server = tcp::EchoServer::start(scenario.external(), family.external_port(8080)).unwrap();
                let tcp = tcp::exchange(container, None, server.address(), &[7; 5000], LIMIT).unwrap();
                // X sees the NOS's address and the container's real port.
                assert_eq!(server.peers(), [tcp]);
                let server = udp::EchoServer::start(scenario.external(), family.external_port(8053)).unwrap();
                let udp = udp::exchange(container, None, server.address(), &[7; 1000], LIMIT).unwrap();
                assert_eq!(server.peers(), [udp]);
                for local in [tcp, udp] {
                    assert_eq!(local.ip(), family.nos);
                    assert!(range.contains(&local.port()), "{local}");
                    ports.push(local.port());
                }
            }
            // From a port on which it also listens.
            let server = udp::EchoServer::start(scenario.external(), family.external_port(8053)).unwrap();
            let chosen = family.nos_port(20001);
            let local = udp::exchange(scenario.web(), Some(chosen), server.address(), b"x", LIMIT);
            assert_eq!(local.unwrap(), chosen);
            assert_eq!(server.peers(), [chosen]);
            ports.push(20001);
            let seen = from_nos(&wire, family);
            assert_seen(&seen, |port| ports.contains(&port));
            assert!(ports.iter().all(|port| seen.iter().any(|seen| seen.ports().unwrap().0 == *port)));
        }
    }
}

/// Something of TCP or UDP was seen, with a TTL of 64 and from the right ports only.
fn assert_seen(seen: &[Seen], right_port: impl Fn(u16) -> bool) {
    assert!(!seen.is_empty());
    for packet in seen {
        assert!(matches!(packet.protocol, TCP | UDP), "{packet:?}");
        assert_eq!(packet.ttl, 64, "{packet:?}");
        assert!(
            packet.ports().is_some_and(|(port, _)| right_port(port)),
            "{packet:?}"
        );
    }
}

each_variant! {
    fn ttl_1_and_255_arrive_as_they_are(variant) {
        let scenario = Scenario::new(variant);
        let outside = Wire::open(scenario.external(), Topology::EXTERNAL_INTERFACE);
        let inside = Wire::open(scenario.web(), "eth0");
        for family in FAMILIES {
            for ttl in [1, 255] {
                // As eBGP does (RFC 4271), and GTSM (RFC 5082): both ends use it throughout.
                let listener = listen(scenario.web(), family.nos_port(179), ttl);
                let clients = [
                    converse(scenario.external(), &listener, ttl),
                    converse(scenario.web(), &listen(scenario.external(), family.external_port(179), ttl), ttl),
                ];
                for (wire, peer) in [(&outside, family.nos), (&inside, family.external)] {
                    let seen = wire.seen();
                    for client in clients {
                        let segments: Vec<_> = seen.iter().filter(|seen| seen.protocol == TCP && seen.source == peer)
                            .filter(|seen| seen.ports().is_some_and(|(from, to)| from == client || to == client))
                            .collect();
                        // Its part of the handshake, and an octet.
                        assert!(segments.len() >= 2, "{segments:#?}");
                        for segment in segments {
                            assert_eq!(segment.ttl, ttl, "{segment:#?}");
                        }
                    }
                }
            }
        }
    }
}

fn set_ttl(socket: &impl AsFd, family: Family, ttl: u8) {
    if family.is_v6() {
        setsockopt(socket, sockopt::Ipv6Ttl, &i32::from(ttl)).unwrap();
    } else {
        setsockopt(socket, sockopt::Ipv4Ttl, &i32::from(ttl)).unwrap();
    }
}

fn family_of(address: IpAddr) -> Family {
    FAMILIES[usize::from(address.is_ipv6())]
}

/// Listens on `address`. A process that another test is just starting has, until it has started, a
/// copy of each of our descriptors, also of a listener there that was closed.
fn bind(address: std::net::SocketAddr) -> TcpListener {
    let until = std::time::Instant::now() + LIMIT;
    loop {
        match TcpListener::bind(address) {
            Err(error)
                if error.kind() == std::io::ErrorKind::AddrInUse
                    && std::time::Instant::now() < until =>
            {
                std::thread::yield_now();
            }
            listener => return listener.unwrap(),
        }
    }
}

fn listen(namespace: &LabNamespace, address: std::net::SocketAddr, ttl: u8) -> TcpListener {
    let listener = namespace.run(|| bind(address)).unwrap();
    set_ttl(&listener, family_of(address.ip()), ttl);
    listener
}

/// Connects to `listener`, and sends an octet each way. Returns the port of the client.
fn converse(client: &LabNamespace, listener: &TcpListener, ttl: u8) -> u16 {
    let address = listener.local_addr().unwrap();
    let family = family_of(address.ip());
    let connect = || {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
        set_ttl(&socket, family, ttl);
        socket.connect_timeout(&address.into(), LIMIT).unwrap();
        TcpStream::from(socket)
    };
    let mut near = client.run(connect).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    set_ttl(&far, family, ttl);
    for (from, to) in [(&mut near, 0), (&mut far, 1)] {
        from.write_all(&[to]).unwrap();
    }
    for (at, octet) in [(&mut near, 1), (&mut far, 0)] {
        at.set_read_timeout(Some(LIMIT)).unwrap();
        let mut got = [9];
        at.read_exact(&mut got).unwrap();
        assert_eq!(got, [octet]);
    }
    near.local_addr().unwrap().port()
}

each_variant! {
    fn offload_is_used_as_configured(variant) {
        let scenario = Scenario::new(variant);
        let [containers, uplink] = variant.offload;
        let daemon = &scenario.daemon;
        let web = daemon.attachment("web");
        assert_eq!(web.link.offload.is_empty(), !containers, "{web:?}");
        let up0 = daemon.uplink("up0");
        assert_eq!(up0.link.offload.is_empty(), !uplink, "{up0:?}");
        assert_eq!((web.link.device.as_str(), up0.link.device.as_str()), (variant.device, "packet"));
        assert_eq!((web.link.state, up0.link.state), (LinkState::Up, LinkState::Up));
    }
}

lab_test! {
    fn tap_uplink_has_the_network_at_its_other_end() {
        let variant = Variant { device: "tap", ..Variant::PLAIN };
        if !variant.is_possible() {
            return;
        }
        for offload in [true, false] {
            let topology = Topology::new(&["web", "db"]).unwrap();
            let config = config(&topology, Variant { offload: [offload; 2], ..variant });
            let config = edited(&config, "packet:hx", "tap:up0");
            let daemon = Daemon::start(&topology.device, &config);
            // The kernel of the device is a host on that network.
            let host = &topology.device;
            for address in ["203.0.113.7/24", "2001:db8:1::7/64"] {
                host.add_address("up0", address.parse().unwrap()).unwrap();
            }
            host.wait_operational("up0", LIMIT).unwrap();
            for (family, other) in FAMILIES.into_iter().zip(["203.0.113.7", "2001:db8:1::7"]) {
                let other: IpAddr = other.parse().unwrap();
                assert_ping(host, family.nos);
                assert_ping(&topology.containers[0], other);
                let server = tcp::EchoServer::start(host, (other, 8080).into()).unwrap();
                let local = tcp::exchange(&topology.containers[0], None, server.address(), &[7; 50_000], LIMIT);
                assert_eq!(server.peers(), [local.unwrap()]);
                let server = tcp::EchoServer::start(&topology.containers[0], family.nos_port(20080)).unwrap();
                let local = tcp::exchange(host, None, server.address(), &[7; 50_000], LIMIT);
                assert_eq!(server.peers(), [local.unwrap()]);
            }
            drop(daemon);
            assert!(host.link("up0").unwrap().is_none());
        }
    }
}

/// Containers on different addresses of the NOS: the first one's are web's, the others db's.
fn apart(variant: Variant) -> Scenario {
    let topology = Topology::new(&["web", "db"]).unwrap();
    let text = config(&topology, variant);
    let text = edited(
        &text,
        "\"2001:db8:1::1/64\"]",
        "\"2001:db8:1::1/64\", \"203.0.113.9/24\", \"2001:db8:1::9/64\"]",
    );
    let text = edited(
        &text,
        "\"web\"\n",
        "\"web\"\naddresses = [\"203.0.113.1\", \"2001:db8:1::1\"]\n",
    );
    let text = edited(
        &text,
        "\"db\"\n",
        "\"db\"\naddresses = [\"203.0.113.9\", \"2001:db8:1::9\"]\n",
    );
    let daemon = Daemon::start(&topology.device, &text);
    Scenario {
        daemon,
        topology,
        config: text,
    }
}

each_variant! {
    fn containers_on_different_addresses_reach_each_other(variant) {
        let scenario = apart(variant);
        for (family, others) in FAMILIES.into_iter().zip(["203.0.113.9", "2001:db8:1::9"]) {
            let others: IpAddr = others.parse().unwrap();
            for (client, own, server, address) in [
                (scenario.web(), family.nos, scenario.db(), (others, 21080)),
                (scenario.db(), others, scenario.web(), (family.nos, 20080)),
            ] {
                let echo = tcp::EchoServer::start(server, address.into()).unwrap();
                let local = tcp::exchange(client, None, echo.address(), &[7; 50_000], LIMIT).unwrap();
                assert_eq!((echo.peers(), local.ip()), (vec![local], own));
                let echo = udp::EchoServer::start(server, address.into()).unwrap();
                let local = udp::exchange(client, None, echo.address(), &[7; 5000], LIMIT).unwrap();
                assert_eq!((echo.peers(), local.ip()), (vec![local], own));
                // From the container's own address to one that it has not: the NOS answers.
                assert_ping(client, address.0);
                // A port that is nobody's on that address.
                let error = tcp::connect(client, None, (address.0, 22).into(), LIMIT).unwrap_err();
                assert_eq!(error.kind(), Some(std::io::ErrorKind::ConnectionRefused), "{error}");
                let error = udp::exchange(client, None, (address.0, 22).into(), b"x", LIMIT).unwrap_err();
                assert_eq!(error.kind(), Some(std::io::ErrorKind::ConnectionRefused), "{error}");
            }
        }
    }
}

lab_test! {
    fn the_same_ports_on_different_addresses_have_different_owners() {
        let scenario = apart(Variant::PLAIN);
        let config = edited(&scenario.config, "[\"21000-21999\"]", "[\"20000-21999\"]");
        let config = edited(&config, "\"45000-49999\"", "\"40000-44999\"");
        scenario.daemon.reload(&config);
        for (family, others) in FAMILIES.into_iter().zip(["203.0.113.9", "2001:db8:1::9"]) {
            let servers = [(scenario.web(), family.nos), (scenario.db(), others.parse().unwrap())]
                .map(|(container, address)| tcp::EchoServer::start(container, (address, 20080).into()).unwrap());
            for (server, other) in [(0, 1), (1, 0)] {
                let before = servers[other].peers().len();
                let local = tcp::exchange(scenario.external(), None, servers[server].address(), b"x", LIMIT);
                assert_eq!(servers[server].peers(), [local.unwrap()]);
                assert_eq!(servers[other].peers().len(), before);
            }
            for container in &scenario.topology.containers {
                let server = udp::EchoServer::start(scenario.external(), family.external_port(8053)).unwrap();
                let local = Some((family.any, 40_000).into());
                udp::exchange(container, local, server.address(), b"x", LIMIT).unwrap();
            }
        }
    }
}

lab_test! {
    fn container_with_one_family_has_no_other() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let text = config(&topology, Variant::PLAIN);
        let text = edited(&text, "\"web\"\n", "\"web\"\naddresses = [\"203.0.113.1\"]\n");
        let text = edited(&text, "\"db\"\n", "\"db\"\naddresses = [\"2001:db8:1::1\"]\n");
        let daemon = Daemon::start(&topology.device, &text);
        let scenario = Scenario { daemon, topology, config: text };
        let [v4, v6] = FAMILIES;
        for (container, has, lacks) in [(scenario.web(), v4, v6), (scenario.db(), v6, v4)] {
            assert_ping(container, has.external);
            let error = tcp::connect(container, None, lacks.external_port(80), LIMIT).unwrap_err();
            assert_eq!(error.kind(), Some(std::io::ErrorKind::NetworkUnreachable), "{error}");
        }
        // db's ports are its own on the IPv6 address only.
        for (family, port) in [(v4, 21080), (v6, 20080)] {
            let error = tcp::connect(scenario.external(), None, family.nos_port(port), LIMIT).unwrap_err();
            assert_eq!(error.kind(), Some(std::io::ErrorKind::ConnectionRefused), "{error}");
        }
    }
}

lab_test! {
    fn uplink_can_have_a_mac_address_of_its_own() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let text = config(&topology, Variant::PLAIN);
        let text = edited(&text, "packet:hx\"\n", "packet:hx\"\nmac = \"02:00:5e:10:00:01\"\n");
        let daemon = Daemon::start(&topology.device, &text);
        let scenario = Scenario { daemon, topology, config: text };
        assert_ne!(scenario.topology.device.link("hx").unwrap().unwrap().mac, Some(OWN_MAC));
        let wire = Wire::open(scenario.external(), Topology::EXTERNAL_INTERFACE);
        for family in FAMILIES {
            assert_ping(scenario.external(), family.nos);
            assert_ping(scenario.web(), family.external);
            let server = tcp::EchoServer::start(scenario.web(), family.nos_port(20080)).unwrap();
            tcp::exchange(scenario.external(), None, server.address(), b"x", LIMIT).unwrap();
        }
        for packet in wire.seen() {
            assert_eq!(packet.source_mac, OWN_MAC, "{packet:?}");
        }
    }
}

const OWN_MAC: MacAddr = MacAddr([0x02, 0x00, 0x5e, 0x10, 0x00, 0x01]);

lab_test! {
    fn fifty_flows_at_once_come_to_their_own_ends() {
        let scenario = Scenario::new(Variant::PLAIN);
        for family in FAMILIES {
            let server = udp::EchoServer::start(scenario.external(), family.external_port(8053)).unwrap();
            let open = || {
                let socket = UdpSocket::bind((family.any, 0)).unwrap();
                socket.connect(server.address()).unwrap();
                socket.set_read_timeout(Some(LIMIT)).unwrap();
                socket
            };
            let containers = &scenario.topology.containers;
            let sockets: Vec<_> = (0..50).map(|at| containers[at % 2].run(open).unwrap()).collect();
            for (number, socket) in sockets.iter().enumerate() {
                socket.send(format!("flow {number}").as_bytes()).unwrap();
            }
            for (number, socket) in sockets.iter().enumerate() {
                let mut buffer = [0; 100];
                let length = socket.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..length], *format!("flow {number}").as_bytes());
            }
        }
    }
}
