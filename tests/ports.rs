//! Ports and echo identifiers decide whose a packet is, and nothing else does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};

use nos_relay::control::api::snapshot::{Port, PortKind, Protocol};
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp, udp};
use nos_shim::ident::MacAddr;
use support::daemon::{Daemon, LIMIT};
use support::lab_test;
use support::scenario::{self, FAMILIES, Family, Scenario, Variant, edited, variant_tests};
use support::wire::{self, Seen, UDP, Wire};

fn refused_tcp(scenario: &Scenario, family: Family, port: u16) {
    let error = tcp::connect(scenario.external(), None, family.nos_port(port), LIMIT).unwrap_err();
    assert_eq!(
        error.kind(),
        Some(ErrorKind::ConnectionRefused),
        "{port}: {error}"
    );
}

fn refused_udp(scenario: &Scenario, family: Family, port: u16) {
    let error = udp::exchange(
        scenario.external(),
        None,
        family.nos_port(port),
        b"x",
        LIMIT,
    )
    .unwrap_err();
    assert_eq!(
        error.kind(),
        Some(ErrorKind::ConnectionRefused),
        "{port}: {error}"
    );
}

lab_test! {
    fn ports_of_nobody_are_refused() {
        let scenario = Scenario::new(Variant::PLAIN);
        for family in FAMILIES {
            // Although somebody listens there in a container.
            let _tcp = tcp::EchoServer::start(scenario.web(), family.nos_port(22)).unwrap();
            let _udp = udp::EchoServer::start(scenario.web(), family.nos_port(53)).unwrap();
            for port in [1, 22, 178, 180, 19999, 22000, 39999, 65535] {
                refused_tcp(&scenario, family, port);
            }
            // One peer gets six ICMP errors at once, as from a Linux host.
            for port in [53, 179, 19999, 22000] {
                refused_udp(&scenario, family, port);
            }
            assert!(_tcp.peers().is_empty() && _udp.peers().is_empty());
        }
        let dropped = scenario.daemon.dropped("nos", "no-listener");
        assert_eq!(dropped, 2 * (8 + 4));
    }
}

lab_test! {
    fn ports_of_another_container_are_its_alone() {
        let scenario = Scenario::new(Variant::PLAIN);
        for family in FAMILIES {
            let web = tcp::EchoServer::start(scenario.web(), family.nos_port(21080)).unwrap();
            // db listens nowhere: its own kernel refuses.
            refused_tcp(&scenario, family, 21080);
            let db = tcp::EchoServer::start(scenario.db(), family.nos_port(21080)).unwrap();
            tcp::exchange(scenario.external(), None, family.nos_port(21080), b"x", LIMIT).unwrap();
            assert_eq!((web.peers().len(), db.peers().len()), (0, 1));

            let web = udp::EchoServer::start(scenario.web(), family.nos_port(21053)).unwrap();
            refused_udp(&scenario, family, 21053);
            let db = udp::EchoServer::start(scenario.db(), family.nos_port(21053)).unwrap();
            udp::exchange(scenario.external(), None, family.nos_port(21053), b"x", LIMIT).unwrap();
            assert_eq!((web.peers().len(), db.peers().len()), (0, 1));
        }
    }
}

lab_test! {
    fn outsiders_open_no_flows_to_ephemeral_ports() {
        let scenario = Scenario::new(Variant::PLAIN);
        for family in FAMILIES {
            for (container, port) in [(scenario.web(), 40080), (scenario.db(), 49999)] {
                let server = tcp::EchoServer::start(container, family.nos_port(port)).unwrap();
                refused_tcp(&scenario, family, port);
                assert!(server.peers().is_empty());
            }
        }
    }
}

lab_test! {
    fn containers_are_kept_inside_their_ranges() {
        let scenario = Scenario::new(Variant::PLAIN);
        for (container, range) in [(scenario.web(), "40000\t44999"), (scenario.db(), "45000\t49999")] {
            assert_eq!(container.read_sysctl("net/ipv4/ip_local_port_range").unwrap(), range);
        }
    }
}

lab_test! {
    fn ports_are_shown_with_their_owners() {
        let scenario = Scenario::with(Variant::PLAIN, "[nos]\nservices = [\"echo\", \"http:8080\"]\n");
        let shown: Vec<Port> = serde_json::from_str(&scenario.daemon.show_json("ports")).unwrap();
        assert_eq!(shown.len(), scenario.daemon.ports().len());
        let row = |port: &Port| (port.protocol, port.range.to_string(), port.kind, port.owner.clone());
        let rows: BTreeSet<_> = shown.iter().map(row).collect();
        use {PortKind::{Ephemeral, Listen, Service}, Protocol::{Tcp, Udp}};
        let expected = [
            (Tcp, "20000-20999", Listen, "web"),
            (Tcp, "179", Listen, "web"),
            (Udp, "20000-20999", Listen, "web"),
            (Tcp, "40000-44999", Ephemeral, "web"),
            (Udp, "40000-44999", Ephemeral, "web"),
            (Tcp, "21000-21999", Listen, "db"),
            (Udp, "21000-21999", Listen, "db"),
            (Tcp, "45000-49999", Ephemeral, "db"),
            (Udp, "45000-49999", Ephemeral, "db"),
        ];
        let expected = expected.map(|(protocol, range, kind, owner)| (protocol, range.to_owned(), kind, owner.to_owned()));
        assert!(expected.iter().all(|row| rows.contains(row)), "{rows:#?}");
        let services: BTreeSet<_> = rows.iter().filter(|row| row.2 == Service).map(|row| (row.0, row.1.as_str())).collect();
        assert_eq!(services, BTreeSet::from([(Tcp, "7"), (Udp, "7"), (Tcp, "8080")]));
        assert_eq!(rows.len(), expected.len() + services.len());
    }
}

/// Datagrams that do not fit into one packet: only their first fragments have ports.
mod fragmented_datagrams_arrive_whole {
    use super::*;

    fn scenario(variant: Variant) {
        let scenario = Scenario::new(variant);
        for family in FAMILIES {
            for size in [8 << 10, 60 << 10] {
                let payload: Vec<u8> = (0..size)
                    .map(|at: usize| at.to_le_bytes()[0] ^ at.to_le_bytes()[1])
                    .collect();
                for (container, port) in [(scenario.web(), 20053), (scenario.db(), 21053)] {
                    let server = udp::EchoServer::start(container, family.nos_port(port)).unwrap();
                    udp::exchange(scenario.external(), None, server.address(), &payload, LIMIT)
                        .unwrap();
                    let server =
                        udp::EchoServer::start(scenario.external(), family.external_port(8053))
                            .unwrap();
                    udp::exchange(container, None, server.address(), &payload, LIMIT).unwrap();
                }
            }
        }
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        tap_split_plain: ("tap", "split", [false, false]),
        veth_single_plain: ("veth", "single", [false, false]),
        veth_split: ("veth", "split", [true, true]),
    }
}

fn connected(namespace: &LabNamespace, family: Family, port: u16) -> UdpSocket {
    let open = || {
        let socket = UdpSocket::bind((family.any, 0)).unwrap();
        socket.connect(family.external_port(port)).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    };
    namespace.run(open).unwrap()
}

lab_test! {
    fn icmp_errors_reach_the_container_that_caused_them() {
        let scenario = Scenario::new(Variant::PLAIN);
        for family in FAMILIES {
            let (web, db) = (connected(scenario.web(), family, 9), connected(scenario.db(), family, 9));
            web.send(b"to a closed port").unwrap();
            let error = web.recv(&mut [0; 100]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
            // What comes to db comes before this echo.
            let server = udp::EchoServer::start(scenario.external(), family.external_port(8053)).unwrap();
            udp::exchange(scenario.db(), None, server.address(), b"x", LIMIT).unwrap();
            assert!(db.take_error().unwrap().is_none());
            db.send(b"to a closed port").unwrap();
            assert_eq!(db.recv(&mut [0; 100]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
            assert!(web.take_error().unwrap().is_none());
        }
    }
}

lab_test! {
    fn refused_connections_are_refused_in_the_container() {
        let scenario = Scenario::new(Variant::PLAIN);
        for family in FAMILIES {
            for container in &scenario.topology.containers {
                let error = tcp::connect(container, None, family.external_port(9), LIMIT).unwrap_err();
                assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{error}");
            }
        }
    }
}

/// A container's link, with the addresses of both ends.
struct Inside {
    wire: Wire,
    macs: (MacAddr, MacAddr),
}

impl Inside {
    fn of(scenario: &Scenario, name: &str, namespace: &LabNamespace) -> Self {
        let wire = Wire::open(namespace, "eth0");
        let attachment = scenario.daemon.attachment(name);
        assert_eq!(attachment.container_mac, wire.mac());
        Self {
            macs: (wire.mac(), attachment.link.mac),
            wire,
        }
    }

    fn ping(&self, from: IpAddr, to: IpAddr, id: u16, payload: &[u8]) {
        let mut frame = Vec::new();
        let step = wire::ip(self.macs, from, to);
        let written = if to.is_ipv6() {
            step.icmpv6_echo_request(id, 1).write(&mut frame, payload)
        } else {
            step.icmpv4_echo_request(id, 1).write(&mut frame, payload)
        };
        written.unwrap();
        self.wire.send(&frame);
    }
}

impl Inside {
    /// Identifier and payload of the echo request that the next ICMP error quotes.
    fn quoted_echo(&self, family: Family) -> (u16, Vec<u8>) {
        let (unreachable, header) = if family.is_v6() { (1, 40) } else { (3, 20) };
        self.wire.await_frame(LIMIT, |seen| {
            seen.icmp().filter(|(kind, _)| *kind == unreachable)?;
            // As the container's kernel checks it.
            assert!(
                family.is_v6() || wire::sum(seen.transport()) == 0xffff,
                "{seen:?}"
            );
            let quoted = &seen.transport()[8 + header..];
            Some((
                u16::from_be_bytes([quoted[4], quoted[5]]),
                quoted[8..].to_vec(),
            ))
        })
    }
}

const ID: u16 = 0x1234;

/// Type, identifier and payload of an echo message.
fn echo(seen: &Seen) -> Option<(u8, u16, Vec<u8>)> {
    let (kind, _) = seen.icmp()?;
    let message = seen.transport();
    let id = u16::from_be_bytes([message[4], message[5]]);
    matches!(kind, 0 | 8 | 128 | 129).then(|| (kind, id, message[8..].to_vec()))
}

lab_test! {
    fn containers_ping_at_once_with_the_same_identifier() {
        let scenario = Scenario::new(Variant::PLAIN);
        let outside = Wire::open(scenario.external(), Topology::EXTERNAL_INTERFACE);
        let web = Inside::of(&scenario, "web", scenario.web());
        let db = Inside::of(&scenario, "db", scenario.db());
        for family in FAMILIES {
            let (request, reply) = if family.is_v6() { (128, 129) } else { (8, 0) };
            let payloads: [&[u8]; 2] = [b"from web", b"from db"];
            for (inside, payload) in [&web, &db].into_iter().zip(payloads) {
                inside.ping(family.nos, family.external, ID, payload);
            }
            for (inside, payload) in [&web, &db].into_iter().zip(payloads) {
                let got = inside.wire.await_frame(LIMIT, |seen| echo(seen).filter(|(kind, ..)| *kind == reply));
                assert_eq!(got, (reply, ID, payload.to_vec()));
            }
            let ids: BTreeSet<u16> = outside.seen().iter().filter_map(echo)
                .filter(|(kind, ..)| *kind == request).map(|(_, id, _)| id).collect();
            assert_eq!(ids.len(), 2, "two containers look like one to X: {ids:?}");
            assert!(ids.contains(&ID), "the first identifier needs no change: {ids:?}");
            // None got the other's.
            for inside in [&web, &db] {
                assert!(inside.wire.seen().iter().filter_map(echo).next().is_none());
            }
        }
    }
}

lab_test! {
    fn errors_about_pings_have_the_identifier_of_the_container() {
        let more = "
            [[route]]
            prefix = \"198.51.100.0/24\"
            via = \"203.0.113.2\"
            [[route]]
            prefix = \"2001:db8:2::/48\"
            via = \"2001:db8:1::2\"
        ";
        let scenario = Scenario::with(Variant::PLAIN, more);
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            scenario.external().sysctl(key, "1").unwrap();
        }
        let web = Inside::of(&scenario, "web", scenario.web());
        let db = Inside::of(&scenario, "db", scenario.db());
        for (family, far) in FAMILIES.into_iter().zip(["198.51.100.9", "2001:db8:2::9"]) {
            for inside in [&web, &db] {
                inside.ping(family.nos, far.parse().unwrap(), ID, b"to nowhere");
            }
            for inside in [&web, &db] {
                assert_eq!(inside.quoted_echo(family), (ID, b"to nowhere".to_vec()));
            }
        }
    }
}

lab_test! {
    fn what_the_nos_says_of_pings_has_the_identifier_of_the_container() {
        let more = "
            [[route]]
            prefix = \"198.51.100.0/24\"
            type = \"unreachable\"
            [[route]]
            prefix = \"2001:db8:2::/48\"
            type = \"unreachable\"
        ";
        let topology = Topology::new(&["web", "db"]).unwrap();
        // One address of the NOS that is no container's.
        let text = scenario::config(&topology, Variant::PLAIN) + more;
        let text = edited(&text, "\"2001:db8:1::1/64\"]", "\"2001:db8:1::1/64\", \"203.0.113.9/24\", \"2001:db8:1::9/64\"]");
        let text = ["web", "db"].iter().fold(text, |text, name| {
            let from = format!("name = \"{name}\"\n");
            edited(&text, &from, &format!("{from}addresses = [\"203.0.113.1\", \"2001:db8:1::1\"]\n"))
        });
        let daemon = Daemon::start(&topology.device, &text);
        let scenario = Scenario { daemon, topology, config: text };
        let web = Inside::of(&scenario, "web", scenario.web());
        let db = Inside::of(&scenario, "db", scenario.db());
        let both = [&web, &db];
        for (family, [own, refused, nobody]) in FAMILIES.into_iter().zip([
            ["203.0.113.9", "198.51.100.9", "203.0.113.99"],
            ["2001:db8:1::9", "2001:db8:2::9", "2001:db8:1::99"],
        ]) {
            let reply = if family.is_v6() { 129 } else { 0 };
            for inside in both {
                inside.ping(family.nos, own.parse().unwrap(), ID, b"to the NOS");
            }
            for inside in both {
                let got = inside.wire.await_frame(LIMIT, |seen| echo(seen).filter(|(kind, ..)| *kind == reply));
                assert_eq!(got, (reply, ID, b"to the NOS".to_vec()));
            }
            // Without a route, and without a neighbor.
            for far in [refused, nobody] {
                for inside in both {
                    inside.ping(family.nos, far.parse().unwrap(), ID, b"to nowhere");
                }
                for inside in both {
                    assert_eq!(inside.quoted_echo(family), (ID, b"to nowhere".to_vec()), "{far}");
                }
            }
        }
    }
}

lab_test! {
    fn clashes_are_refused_at_start_by_the_owner_s_name() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let good = scenario::config(&topology, Variant::PLAIN);
        for (from, to, owner) in [
            ("tcp = [\"21000-21999\"]", "tcp = [\"20500-21499\"]", "web"),
            ("ephemeral = \"45000-49999\"", "ephemeral = \"44999-49999\"", "web"),
            ("udp = [\"21000-21999\"]", "udp = [\"40000\"]", "web"),
        ] {
            let output = Daemon::start_failing(&topology.device, &edited(&good, from, to));
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains(&format!("\"{owner}\"")), "{said}");
            assert!(said.contains("is free"), "{said}");
            assert!(output.stdout.is_empty());
            for container in &topology.containers {
                assert!(container.link("eth0").unwrap().is_none());
            }
        }
        let output = Daemon::start_failing(&topology.device, &(good + "[nos]\nservices = [\"http:20080\"]\n"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("\"http:20080\"") && said.contains("20000-20999"), "{said}");
    }
}

lab_test! {
    fn clashes_are_refused_on_reload_and_nothing_changes() {
        let scenario = Scenario::new(Variant::PLAIN);
        let before = (scenario.daemon.ports(), scenario.daemon.attachments().len());
        scenario.daemon.reload(&scenario.edited("tcp = [\"21000-21999\"]", "tcp = [\"20999-21999\"]"));
        assert_eq!((scenario.daemon.ports(), scenario.daemon.attachments().len()), before);
        let log = scenario.daemon.log();
        assert!(log.contains("overlaps 20000-20999 of container \"web\""), "{log}");
    }
}

lab_test! {
    fn datagrams_to_ephemeral_ports_come_to_their_owner_alone() {
        let scenario = Scenario::new(Variant::PLAIN);
        let (web, db) = (Wire::open(scenario.web(), "eth0"), Wire::open(scenario.db(), "eth0"));
        for family in FAMILIES {
            // Who owns a port decides, not who happens to be bound to it.
            let server = udp::EchoServer::start(scenario.db(), family.nos_port(45678)).unwrap();
            udp::exchange(scenario.external(), None, server.address(), b"x", LIMIT).unwrap();
        }
        let datagrams = |wire: &Wire| wire.seen().iter().filter(|seen| seen.protocol == UDP).count();
        assert_eq!((datagrams(&web), datagrams(&db)), (0, 2));
    }
}

lab_test! {
    fn ten_thousand_ranges_come_and_go_with_a_reload() {
        let scenario = Scenario::new(Variant::PLAIN);
        let before = scenario.daemon.ports();
        // Every other port, but those of the other container.
        let odd = (1025..=20_999).chain(22_001..=39_999).step_by(2);
        let ports: Vec<u16> = odd.take(10_000).collect();
        let list: Vec<String> = ports.iter().map(|port| format!("\"{port}\"")).collect();
        let many = scenario.edited("tcp = [\"20000-20999\", \"179\"]", &format!("tcp = [{}]", list.join(",")));
        scenario.daemon.reload(&many);
        let shown: BTreeSet<String> = scenario.daemon.ports().iter()
            .filter(|port| (port.owner.as_str(), port.protocol, port.kind) == ("web", Protocol::Tcp, PortKind::Listen))
            .map(|port| port.range.to_string()).collect();
        assert_eq!(shown, ports.iter().map(u16::to_string).collect());
        for family in FAMILIES {
            for port in [ports[0], ports[5_000], ports[9_999]] {
                let server = tcp::EchoServer::start(scenario.web(), family.nos_port(port)).unwrap();
                tcp::exchange(scenario.external(), None, server.address(), b"x", LIMIT).unwrap();
                let _neighbor = tcp::EchoServer::start(scenario.web(), family.nos_port(port + 1)).unwrap();
                refused_tcp(&scenario, family, port + 1);
            }
        }
        scenario.daemon.reload(&scenario.config);
        assert_eq!(scenario.daemon.ports(), before);
        refused_tcp(&scenario, FAMILIES[0], ports[0]);
    }
}

lab_test! {
    fn ports_that_a_list_excludes_are_another_owners() {
        let scenario = Scenario::new(Variant::PLAIN);
        let text = scenario.edited("tcp = [\"20000-20999\", \"179\"]", "tcp = [\"20000-20999\", \"!20500\", \"!20600-20609\", \"179\"]");
        let text = edited(&text, "tcp = [\"21000-21999\"]", "tcp = [\"21000-21999\", 20500]");
        let text = edited(&text, "ephemeral = \"40000-44999\"", "ephemeral = [\"40000-44999\", \"!41000-41999\"]");
        let text = edited(&text, "udp = [\"21000-21999\"]", "udp = [\"21000-21999\", \"41500\"]");
        scenario.daemon.reload(&(text + "[nos]\nservices = [\"http:20600\"]\n"));
        let range = ["port_range", "reserved_ports"].map(|key| {
            scenario.web().read_sysctl(&format!("net/ipv4/ip_local_{key}")).unwrap()
        });
        assert_eq!(range, ["40000\t44999", "41000-41999"]);
        for family in FAMILIES {
            let web = tcp::EchoServer::start(scenario.web(), family.nos_port(20500)).unwrap();
            let db = tcp::EchoServer::start(scenario.db(), family.nos_port(20500)).unwrap();
            tcp::exchange(scenario.external(), None, db.address(), b"x", LIMIT).unwrap();
            assert_eq!((web.peers().len(), db.peers().len()), (0, 1));
            let db = udp::EchoServer::start(scenario.db(), family.nos_port(41_500)).unwrap();
            udp::exchange(scenario.external(), None, db.address(), b"x", LIMIT).unwrap();
            // The NOS answers on its own, and nobody beside it.
            tcp::connect(scenario.external(), None, family.nos_port(20_600), LIMIT).unwrap();
            refused_tcp(&scenario, family, 20_601);
            // What the container's kernel gives its sockets is its own, and gets through.
            let far = tcp::EchoServer::start(scenario.external(), family.external_port(8080)).unwrap();
            let from = tcp::exchange(scenario.web(), None, far.address(), b"x", LIMIT).unwrap().port();
            assert!((40_000..=44_999).contains(&from) && !(41_000..=41_999).contains(&from), "{from}");
        }
    }
}
