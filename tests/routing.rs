//! Packets go where the routes say, and their senders hear why when they do not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use nos_relay::control::api::snapshot::{NeighborState, NextHop, RouteAction, RouteSource};
use nos_relay::lab::testbed::ping::{Echo, Ping, ping};
use nos_relay::lab::testbed::tcp::{Direction, Transfer};
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp, udp, veth};
use support::daemon::{Daemon, LIMIT, await_that};
use support::lab_test;
use support::scenario::{
    FAMILIES, Family, Scenario, V4, V6, Variant, config, edited, variant_tests,
};
use support::wire::{UDP, Wire};

/// Long enough for an answer that would come at once.
const SILENCE: Duration = Duration::from_millis(100);

/// Addresses of the second external host, Y.
const Y4: &str = "198.51.100.2";
const Y6: &str = "2001:db8:2::2";
/// The NOS's addresses on Y's network.
const NOS_Y4: &str = "198.51.100.1";
const NOS_Y6: &str = "2001:db8:2::1";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `v4` or `v6`, by family.
fn of<T>(family: Family, v4: T, v6: T) -> T {
    if family.is_v6() { v6 } else { v4 }
}

/// X on one uplink, Y on another with its own MTU, and a container on the first one's addresses.
struct TwoUplinks {
    daemon: Daemon,
    topology: Topology,
    y: LabNamespace,
}

impl TwoUplinks {
    fn new(variant: Variant, mtu: u32, more: &str) -> Self {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let y = LabNamespace::new("Y").unwrap();
        let device = &topology.device;
        device
            .sysctl("net/ipv6/conf/default/disable_ipv6", "1")
            .unwrap();
        veth((device, "hy"), (&y, "yh")).unwrap();
        device
            .sysctl("net/ipv6/conf/default/disable_ipv6", "0")
            .unwrap();
        let external = &topology.external;
        for (network, of_y, nos_y, nos_x, network_x) in [
            (
                "198.51.100.0/24",
                "198.51.100.2/24",
                NOS_Y4,
                "203.0.113.1",
                "203.0.113.0/24",
            ),
            (
                "2001:db8:2::/64",
                "2001:db8:2::2/64",
                NOS_Y6,
                "2001:db8:1::1",
                "2001:db8:1::/64",
            ),
        ] {
            y.add_address("yh", of_y.parse().unwrap()).unwrap();
            external
                .add_route(network.parse().unwrap(), address(nos_x))
                .unwrap();
            y.add_route(network_x.parse().unwrap(), address(nos_y))
                .unwrap();
        }
        let second = format!(
            "
            [[uplink]]
            name = \"up1\"
            device = \"packet:hy\"
            addresses = [\"{NOS_Y4}/24\", \"{NOS_Y6}/64\"]
            mtu = {mtu}
            offload = {}
            {more}",
            variant.offload[1],
        );
        let mut text = config(&topology, variant);
        for name in ["web", "db"] {
            let from = format!("name = \"{name}\"\n");
            let to = format!("{from}addresses = [\"203.0.113.1\", \"2001:db8:1::1\"]\n");
            text = edited(&text, &from, &to);
        }
        let daemon = Daemon::start(&topology.device, &(text + &second));
        Self {
            daemon,
            topology,
            y,
        }
    }

    fn x(&self) -> &LabNamespace {
        &self.topology.external
    }

    fn web(&self) -> &LabNamespace {
        &self.topology.containers[0]
    }
}

fn echo_once(from: &LabNamespace, to: IpAddr, how: Ping) -> Echo {
    let how = Ping {
        timeout: LIMIT,
        ..how
    };
    how.run(from, to).unwrap()[0]
}

lab_test! {
    fn transit_takes_one_hop_each_way() {
        let lab = TwoUplinks::new(Variant::PLAIN, 1500, "");
        let seen_by_y = Wire::open(&lab.y, "yh");
        for family in FAMILIES {
            let y = address(of(family, Y4, Y6));
            let echo = echo_once(lab.x(), y, Ping::default());
            assert!(matches!(echo, Echo::Reply { from, ttl: 63, .. } if from == y), "{echo:?}");
            let ttl = seen_by_y.await_frame(LIMIT, |seen| (seen.source == family.external).then_some(seen.ttl));
            assert_eq!(ttl, 63);
            let server = tcp::EchoServer::start(&lab.y, (y, 8080).into()).unwrap();
            let local = tcp::exchange(lab.x(), None, server.address(), &[7; 50_000], LIMIT).unwrap();
            assert_eq!(server.peers(), [local]);
            assert_eq!(local.ip(), family.external);
        }
    }
}

lab_test! {
    fn transit_that_has_no_hop_left_is_told_so() {
        let lab = TwoUplinks::new(Variant::PLAIN, 1500, "");
        for family in FAMILIES {
            let y = address(of(family, Y4, Y6));
            let echo = echo_once(lab.x(), y, Ping { ttl: 1, ..Ping::default() });
            let kind = of(family, 11, 3);
            assert_eq!(echo, Echo::Error { from: family.nos, kind, code: 0 });
            assert!(echo_once(lab.x(), y, Ping { ttl: 2, ..Ping::default() }).is_reply());
        }
        assert_eq!(lab.daemon.dropped("nos", "ttl-exceeded"), 2);
    }
}

/// The path MTU that the kernel of `namespace` knows to a host.
fn path_mtu(namespace: &LabNamespace, to: IpAddr) -> i32 {
    let ask = || {
        let any: IpAddr = if to.is_ipv6() {
            [0; 16].into()
        } else {
            [0; 4].into()
        };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.connect((to, 9)).unwrap();
        let (level, option) = if to.is_ipv6() {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU)
        } else {
            (libc::IPPROTO_IP, libc::IP_MTU)
        };
        let mut mtu: libc::c_int = 0;
        let mut size = libc::socklen_t::try_from(size_of_val(&mtu)).unwrap();
        // SAFETY: the pointers are those of `mtu` and its size, which outlive the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                level,
                option,
                (&raw mut mtu).cast(),
                &raw mut size,
            )
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        mtu
    };
    namespace.run(ask).unwrap()
}

lab_test! {
    fn transit_that_is_too_big_is_told_the_true_mtu() {
        let lab = TwoUplinks::new(Variant::PLAIN, 1400, "");
        for family in FAMILIES {
            let y = address(of(family, Y4, Y6));
            let full = Ping { size: of(family, 1472, 1452), dont_fragment: true, ..Ping::default() };
            let (kind, code) = of(family, (3, 4), (2, 0));
            assert_eq!(echo_once(lab.x(), y, full), Echo::Error { from: family.nos, kind, code });
            assert_eq!(path_mtu(lab.x(), y), 1400);
            let fits = Ping { size: full.size - 100, ..full };
            assert!(echo_once(lab.x(), y, fits).is_reply());
        }
        assert_eq!(lab.daemon.dropped("nos", "too-big"), 2);
    }
}

lab_test! {
    fn transit_without_df_is_fragmented() {
        let lab = TwoUplinks::new(Variant::PLAIN, 1400, "");
        let seen_by_y = Wire::open(&lab.y, "yh");
        for size in [1472, 4000, 20_000] {
            // X's own fragments of 1500 octets are cut once more.
            assert!(echo_once(lab.x(), address(Y4), Ping { size, ..Ping::default() }).is_reply(), "{size}");
        }
        let seen = seen_by_y.seen();
        let from_x: Vec<_> = seen.iter().filter(|seen| seen.source == V4.external).collect();
        assert!(from_x.len() > 3, "{from_x:?}");
        assert!(from_x.iter().all(|packet| packet.ip.len() <= 1400), "{from_x:?}");
        // IPv6 is fragmented by its source only, once told (RFC 8200 §5).
        let large = Ping { size: 4000, ..Ping::default() };
        await_that("X knows the path MTU", || {
            let echo = Ping { timeout: SILENCE, ..large }.run(lab.x(), address(Y6)).unwrap()[0];
            if echo.is_reply() { Ok(()) } else { Err(format!("{echo:?}")) }
        });
        assert_eq!(path_mtu(lab.x(), address(Y6)), 1400);
    }
}

fn transfer(
    client: &LabNamespace,
    server: &LabNamespace,
    listen: SocketAddr,
    direction: Direction,
) {
    let transfer = Transfer {
        client,
        server,
        listen,
        connect: listen,
        source: None,
        direction,
        octets: 2 << 20,
        limit: LIMIT,
    };
    transfer.run(&AtomicU64::new(0)).unwrap();
}

/// Bulk between external hosts, from the larger MTU to the smaller and back.
mod transit_of_bulk {
    use super::*;

    fn scenario(variant: Variant) {
        let lab = TwoUplinks::new(variant, 1400, "");
        for family in FAMILIES {
            let y = address(of(family, Y4, Y6));
            transfer(lab.x(), &lab.y, (y, 8080).into(), Direction::Upload);
            assert_eq!(path_mtu(lab.x(), y), 1400);
            transfer(lab.x(), &lab.y, (y, 8081).into(), Direction::Download);
        }
    }

    variant_tests! {
        offload: ("veth", "single", [true, true]),
        plain: ("veth", "split", [false, false]),
    }
}

/// A container learns of a smaller MTU on the way, from the NOS and from routers beyond.
mod path_mtu_reaches_containers {
    use super::*;

    fn scenario(variant: Variant) {
        let lab = TwoUplinks::new(variant, 1400, "");
        assert_eq!(lab.web().link("eth0").unwrap().unwrap().mtu, 1500);
        for family in FAMILIES {
            let y = address(of(family, Y4, Y6));
            transfer(lab.web(), &lab.y, (y, 8080).into(), Direction::Upload);
            assert_eq!(path_mtu(lab.web(), y), 1400);
            transfer(lab.web(), &lab.y, (y, 8081).into(), Direction::Download);
            transfer(
                &lab.y,
                lab.web(),
                family.nos_port(20080),
                Direction::Download,
            );
        }
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        tap_single_plain: ("tap", "single", [false, false]),
        veth_split: ("veth", "split", [true, true]),
        veth_single_plain: ("veth", "single", [false, false]),
    }
}

const BEYOND_X: &str = "
[[route]]
prefix = \"192.0.2.0/24\"
via = \"203.0.113.2\"
[[route]]
prefix = \"2001:db8:9::/64\"
via = \"2001:db8:1::2\"
";

lab_test! {
    fn path_mtu_beyond_the_uplink_reaches_containers() {
        let scenario = Scenario::with(Variant::PLAIN, BEYOND_X);
        let x = scenario.external();
        let z = LabNamespace::new("Z").unwrap();
        veth((x, "xz"), (&z, "zx")).unwrap();
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            x.sysctl(key, "1").unwrap();
        }
        // Z announces more than the way allows.
        x.set_mtu("xz", 1300).unwrap();
        for (of_x, of_z, default, gateway) in [
            ("192.0.2.1/24", "192.0.2.2/24", "0.0.0.0/0", "192.0.2.1"),
            ("2001:db8:9::1/64", "2001:db8:9::2/64", "::/0", "2001:db8:9::1"),
        ] {
            x.add_address("xz", of_x.parse().unwrap()).unwrap();
            z.add_address("zx", of_z.parse().unwrap()).unwrap();
            z.add_route(default.parse().unwrap(), address(gateway)).unwrap();
        }
        for family in FAMILIES {
            let far = address(of(family, "192.0.2.2", "2001:db8:9::2"));
            let other_before = path_mtu(scenario.db(), far);
            transfer(scenario.web(), &z, (far, 8080).into(), Direction::Upload);
            assert_eq!(path_mtu(scenario.web(), far), 1300);
            transfer(&z, scenario.web(), family.nos_port(20080), Direction::Download);
            assert_eq!(path_mtu(scenario.db(), far), other_before);
        }
    }
}

lab_test! {
    fn static_routes_lead_beyond_the_link() {
        let scenario = Scenario::with(Variant::PLAIN, BEYOND_X);
        for (family, far, net) in [(V4, "192.0.2.1", "192.0.2.1/32"), (V6, "2001:db8:9::1", "2001:db8:9::1/128")] {
            scenario.external().add_address("lo", net.parse().unwrap()).unwrap();
            let far = address(far);
            assert!(echo_once(scenario.web(), far, Ping::default()).is_reply());
            let server = tcp::EchoServer::start(scenario.external(), (far, 8080).into()).unwrap();
            let local = tcp::exchange(scenario.web(), None, server.address(), b"x", LIMIT).unwrap();
            assert_eq!(server.peers(), [local]);
            assert_eq!(local.ip(), family.nos);
        }
    }
}

lab_test! {
    fn next_hop_can_be_link_local() {
        let more = "
            [[route]]
            prefix = \"2001:db8:9::/64\"
            via = \"fe80::2%up0\"
        ";
        let scenario = Scenario::with(Variant::PLAIN, more);
        let x = scenario.external();
        x.add_address("xh", "fe80::2/64".parse().unwrap()).unwrap();
        x.add_address("lo", "2001:db8:9::1/128".parse().unwrap()).unwrap();
        assert!(echo_once(scenario.web(), address("2001:db8:9::1"), Ping::default()).is_reply());
        let neighbors = scenario.daemon.neighbors();
        let router = neighbors.iter().find(|neighbor| neighbor.address == address("fe80::2"));
        assert_eq!(router.and_then(|router| router.mac), Some(Topology::external_mac()), "{neighbors:?}");
    }
}

lab_test! {
    fn blackholes_are_silent_and_the_unreachable_is_refused() {
        let more = "
            [[route]]
            prefix = \"192.0.2.0/25\"
            type = \"blackhole\"
            [[route]]
            prefix = \"2001:db8:9::/64\"
            type = \"blackhole\"
            [[route]]
            prefix = \"192.0.2.128/25\"
            type = \"unreachable\"
            [[route]]
            prefix = \"2001:db8:a::/64\"
            type = \"unreachable\"
        ";
        let lab = TwoUplinks::new(Variant::PLAIN, 1500, more);
        // For containers and for transit.
        for (net, gateway) in [("192.0.2.0/24", V4.nos), ("2001:db8:8::/45", V6.nos)] {
            lab.x().add_route(net.parse().unwrap(), gateway).unwrap();
        }
        for family in FAMILIES {
            let [hole, wall, nowhere] = of(
                family,
                ["192.0.2.1", "192.0.2.129", "192.0.3.1"],
                ["2001:db8:9::1", "2001:db8:a::1", "2001:db8:b::1"],
            ).map(address);
            for sender in [lab.web(), lab.x()] {
                assert_eq!(ping(sender, hole, 1, SILENCE).unwrap(), [Echo::Timeout]);
            }
            for sender in [lab.web(), lab.x()] {
                let Echo::Error { from, kind, .. } = echo_once(sender, wall, Ping::default()) else {
                    panic!("{wall}")
                };
                assert_eq!(kind, of(family, 3, 1));
                assert_ne!(from, wall);
                let error = tcp::connect(sender, None, (wall, 80).into(), LIMIT).unwrap_err();
                let unreachable = [ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable, ErrorKind::ConnectionRefused];
                assert!(error.kind().is_some_and(|kind| unreachable.contains(&kind)), "{error}");
            }
            let Echo::Error { kind, code, .. } = echo_once(lab.web(), nowhere, Ping::default()) else {
                panic!("{nowhere}")
            };
            // No route to destination: RFC 1812 §5.2.7.1, RFC 4443 §3.1.
            assert_eq!((kind, code), of(family, (3, 0), (1, 0)));
        }
        assert_eq!(lab.daemon.dropped("nos", "blackhole"), 4);
        assert_eq!(lab.daemon.dropped("nos", "unreachable-route"), 8);
        assert_eq!(lab.daemon.dropped("nos", "no-route"), 2);
    }
}

lab_test! {
    fn routes_are_shown() {
        let more = "
            [[route]]
            prefix = \"0.0.0.0/0\"
            via = [\"203.0.113.2\", \"198.51.100.2\"]
            [[route]]
            prefix = \"2001:db8:9::/64\"
            type = \"blackhole\"
            metric = 7
        ";
        let lab = TwoUplinks::new(Variant::PLAIN, 1500, more);
        let routes = lab.daemon.routes();
        let find = |prefix: &str| {
            let prefix: ipnet::IpNet = prefix.parse().unwrap();
            let found = routes.iter().find(|route| route.prefix == prefix);
            found.unwrap_or_else(|| panic!("{prefix} is not in {routes:#?}"))
        };
        let default = find("0.0.0.0/0");
        assert_eq!((default.source, default.action), (RouteSource::Static, RouteAction::Via));
        let hop = |address: &str, uplink: &str| NextHop { address: Some(self::address(address)), uplink: uplink.to_owned() };
        // In no particular order.
        assert_eq!(default.next_hops.len(), 2);
        for hop in [hop("203.0.113.2", "up0"), hop("198.51.100.2", "up1")] {
            assert!(default.next_hops.contains(&hop), "{default:?}");
        }
        let hole = find("2001:db8:9::/64");
        assert_eq!((hole.source, hole.action, hole.metric), (RouteSource::Static, RouteAction::Blackhole, 7));
        for (prefix, uplink) in [("203.0.113.0/24", "up0"), ("2001:db8:2::/64", "up1")] {
            let connected = find(prefix);
            assert_eq!((connected.source, connected.action), (RouteSource::Connected, RouteAction::Connected));
            assert_eq!(connected.next_hops, [NextHop { address: None, uplink: uplink.to_owned() }]);
        }
        for own in ["203.0.113.1/32", "2001:db8:2::1/128"] {
            assert_eq!(find(own).action, RouteAction::Local);
        }
    }
}

lab_test! {
    fn ecmp_uses_all_next_hops_and_keeps_a_flow_on_one() {
        let more = "
            [[route]]
            prefix = \"192.0.2.0/24\"
            via = [\"203.0.113.2\", \"198.51.100.2\"]
            [[route]]
            prefix = \"2001:db8:9::/64\"
            via = [\"2001:db8:1::2\", \"2001:db8:2::2\"]
        ";
        let lab = TwoUplinks::new(Variant::PLAIN, 1500, more);
        for (family, far, net) in [(V4, "192.0.2.1", "192.0.2.1/32"), (V6, "2001:db8:9::1", "2001:db8:9::1/128")] {
            let far = address(far);
            let hosts = [lab.x(), &lab.y];
            let servers = hosts.map(|host| {
                // The same address in two places, as anycast has it.
                host.add_address("lo", net.parse().unwrap()).unwrap();
                udp::EchoServer::start(host, (far, 7000).into()).unwrap()
            });
            for port in 20_000..20_064 {
                for _ in 0..3 {
                    let local = family.nos_port(port);
                    udp::exchange(lab.web(), Some(local), (far, 7000).into(), b"flow", LIMIT).unwrap();
                }
            }
            let peers = servers.each_ref().map(udp::EchoServer::peers);
            assert_eq!(peers[0].len() + peers[1].len(), 3 * 64);
            for peers in &peers {
                assert!(!peers.is_empty(), "a next hop is not used");
                for peer in peers {
                    let times = peers.iter().filter(|other| *other == peer).count();
                    assert_eq!(times, 3, "flow {peer} does not stay where it is");
                }
            }
        }
    }
}

lab_test! {
    fn host_that_does_not_answer_is_unreachable() {
        let scenario = Scenario::new(Variant::PLAIN);
        for family in FAMILIES {
            let nobody = address(of(family, "203.0.113.99", "2001:db8:1::99"));
            let error = tcp::connect(scenario.web(), None, (nobody, 80).into(), LIMIT).unwrap_err();
            assert_eq!(error.kind(), Some(ErrorKind::HostUnreachable), "{error}");
            let Echo::Error { kind, code, .. } = echo_once(scenario.db(), nobody, Ping::default()) else {
                panic!("{nobody}")
            };
            assert_eq!((kind, code), of(family, (3, 1), (1, 3)));
        }
        let daemon = &scenario.daemon;
        assert!(daemon.dropped("nos", "neighbor-failed") >= 4);
        // Others are reached all the while, and the missing one once it is there.
        assert!(echo_once(scenario.web(), V4.external, Ping::default()).is_reply());
        scenario.external().add_address("xh", "203.0.113.99/24".parse().unwrap()).unwrap();
        await_that("the host is reached that came late", || {
            let echo = echo_once(scenario.web(), address("203.0.113.99"), Ping::default());
            if echo.is_reply() { Ok(()) } else { Err(format!("{echo:?}")) }
        });
    }
}

lab_test! {
    fn neighbors_are_shown() {
        let scenario = Scenario::new(Variant::PLAIN);
        for family in FAMILIES {
            assert!(echo_once(scenario.web(), family.external, Ping::default()).is_reply());
        }
        let neighbors = scenario.daemon.neighbors();
        for family in FAMILIES {
            let x = neighbors.iter().find(|neighbor| neighbor.address == family.external);
            let x = x.unwrap_or_else(|| panic!("X is not in {neighbors:#?}"));
            assert_eq!((x.uplink.as_str(), x.mac), ("up0", Some(Topology::external_mac())));
            let known = [NeighborState::Reachable, NeighborState::Stale, NeighborState::Delay, NeighborState::Probe];
            assert!(known.contains(&x.state), "{x:?}");
            assert_eq!(x.queued, 0);
        }
    }
}

lab_test! {
    fn first_packets_to_a_new_neighbor_wait_and_arrive() {
        let scenario = Scenario::new(Variant::PLAIN);
        for family in FAMILIES {
            // Nobody has spoken to X yet: a burst meets an empty neighbor cache.
            let outside = Wire::open(scenario.external(), Topology::EXTERNAL_INTERFACE);
            let send = || {
                let socket = UdpSocket::bind((family.any, 0)).unwrap();
                for number in 0..3 {
                    socket.send_to(&[number], family.external_port(9)).unwrap();
                }
            };
            scenario.web().run(send).unwrap();
            for number in 0..3 {
                let payload = outside.await_frame(LIMIT, |seen| {
                    (seen.protocol == UDP).then(|| seen.transport()[8..].to_vec())
                });
                assert_eq!(payload, [number]);
            }
        }
    }
}

lab_test! {
    fn large_datagrams_of_containers_are_fragmented_on_a_smaller_uplink() {
        let lab = TwoUplinks::new(Variant::PLAIN, 1400, "");
        let server = udp::EchoServer::start(&lab.y, (address(Y4), 7000).into()).unwrap();
        // Once with DF, which Linux sets for UDP that fits, until it has learnt the path MTU.
        let send = || {
            let socket = UdpSocket::bind((V4.any, 0)).unwrap();
            socket.connect(server.address()).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            let dont: libc::c_int = libc::IP_PMTUDISC_DONT;
            let size = libc::socklen_t::try_from(size_of_val(&dont)).unwrap();
            // SAFETY: the pointer and the size are those of `dont`, which outlives the call.
            let result = unsafe {
                libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, (&raw const dont).cast(), size)
            };
            assert_eq!(result, 0);
            let mut buffer = vec![0; 65_536];
            for size in [1472, 8000, 60_000] {
                socket.send(&vec![7; size]).unwrap();
                assert_eq!(socket.recv(&mut buffer).unwrap(), size);
            }
        };
        let seen_by_y = Wire::open(&lab.y, "yh");
        lab.web().run(send).unwrap();
        let seen = seen_by_y.seen();
        let fragments = seen.iter().filter(|seen| seen.source == V4.nos);
        assert!(fragments.clone().count() > 40);
        assert!(fragments.clone().all(|packet| packet.ip.len() <= 1400));
    }
}

lab_test! {
    // An uplink as providers rent it out: an address alone, and a gateway that is in no network of it.
    fn a_gateway_off_the_prefix_is_reached_where_the_route_says_onlink() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let text = config(&topology, Variant::PLAIN);
        let text = edited(&text, "\"203.0.113.1/24\", \"2001:db8:1::1/64\"", "\"203.0.113.1/32\", \"2001:db8:1::1/128\"");
        let text = text + r#"
[[route]]
prefix = "0.0.0.0/0"
via = "203.0.113.2"
dev = "up0"
onlink = true

[[route]]
prefix = "::/0"
via = "2001:db8:1::2"
dev = "up0"
onlink = true
"#;
        let daemon = Daemon::start(&topology.device, &text);
        let (x, web) = (&topology.external, &topology.containers[0]);
        for far in [Y4, Y6] {
            let far = address(far);
            let length = if far.is_ipv6() { 128 } else { 32 };
            x.add_address("lo", ipnet::IpNet::new(far, length).unwrap()).unwrap();
        }
        for family in FAMILIES {
            let far = SocketAddr::new(address(of(family, Y4, Y6)), 8080);
            let server = tcp::EchoServer::start(x, far).unwrap();
            tcp::exchange(web, None, far, b"through the gateway", LIMIT).unwrap();
            assert_eq!(server.peers()[0].ip(), family.nos);
            // The gateway itself, and from there.
            ping(web, family.external, 1, LIMIT).unwrap();
            let server = tcp::EchoServer::start(web, family.nos_port(20_080)).unwrap();
            tcp::exchange(x, None, server.address(), b"x", LIMIT).unwrap();
        }
        drop(daemon);
    }
}

/// Runs `ip` in a namespace.
fn ip(namespace: &LabNamespace, arguments: &str) {
    let mut command = std::process::Command::new("ip");
    command.args(arguments.split(' '));
    let output = namespace.hold(&mut command).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

lab_test! {
    // Towards Y the NOS has no address of its own but the link-local one (RFC 1812 §2.2.7).
    fn an_uplink_without_addresses_carries_both_families() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let y = LabNamespace::new("Y").unwrap();
        let device = &topology.device;
        device.sysctl("net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        veth((device, "hy"), (&y, "yh")).unwrap();
        device.sysctl("net/ipv6/conf/default/disable_ipv6", "0").unwrap();
        for of_y in ["198.51.100.2/24", "2001:db8:2::2/64", "fe80::22/64"] {
            y.add_address("yh", of_y.parse().unwrap()).unwrap();
        }
        // 02:00:5e:10:00:01
        let nos = "fe80::5eff:fe10:1";
        ip(&y, "route add 203.0.113.0/24 dev yh");
        ip(&y, "route add 192.0.2.0/24 via 203.0.113.1");
        ip(&y, &format!("-6 route add 2001:db8:1::/64 via {nos} dev yh"));
        ip(&y, &format!("-6 route add 2001:db8:77::/64 via {nos} dev yh"));
        let text = config(&topology, Variant::PLAIN) + r#"
[[uplink]]
name = "up1"
device = "packet:hy"
mac = "02:00:5e:10:00:01"
addresses = []

[[route]]
prefix = "198.51.100.0/24"
via = "198.51.100.2%up1"
onlink = true

[[route]]
prefix = "2001:db8:2::/64"
via = "fe80::22%up1"
"#;
        let daemon = Daemon::start(&topology.device, &text);
        let web = &topology.containers[0];
        for family in FAMILIES {
            let far = address(of(family, Y4, Y6));
            // Who asks first is Y, for the address that the NOS has elsewhere; and then the NOS.
            let server = tcp::EchoServer::start(web, family.nos_port(20_080)).unwrap();
            tcp::exchange(&y, None, server.address(), b"x", LIMIT).unwrap();
            assert_eq!(server.peers()[0].ip(), far);
            let server = tcp::EchoServer::start(&y, (far, 8080).into()).unwrap();
            tcp::exchange(web, None, server.address(), b"x", LIMIT).unwrap();
            assert_eq!(server.peers()[0].ip(), family.nos);
            for echo in ping(&y, family.nos, 1, LIMIT).unwrap() {
                assert!(matches!(echo, Echo::Reply { from, .. } if from == family.nos), "{echo:?}");
            }
            // An error comes from the address that the uplink borrows.
            let nowhere = address(of(family, "192.0.2.9", "2001:db8:77::9"));
            let echo = echo_once(&y, nowhere, Ping::default());
            assert!(matches!(echo, Echo::Error { from, .. } if from == family.nos), "{echo:?}");
        }
        // It follows the addresses of the uplink that it borrows from.
        let moved = text.replace("203.0.113.1/24", "203.0.113.3/24");
        daemon.reload(&moved);
        let server = tcp::EchoServer::start(&y, (address(Y4), 8080).into()).unwrap();
        tcp::exchange(web, None, server.address(), b"x", LIMIT).unwrap();
        assert_eq!(server.peers()[0].ip(), address("203.0.113.3"));
    }
}
