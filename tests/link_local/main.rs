//! Containers talk with the link-local neighbors of an uplink as if they stood on the NOS's interface.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "../support/mod.rs"]
mod support;

mod run_time;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ipnet::IpNet;
use nos_relay::lab::testbed::ping::{Echo, Ping};
use nos_relay::lab::testbed::tcp::{Direction, Transfer};
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp, udp, veth};
use nos_shim::ident::MacAddr;
use support::daemon::{Daemon, LIMIT, await_that};
use support::scenario::{Variant, each_variant, edited, variant_tests};
use support::wire::{self, Wire};
use support::{lab_test, skip};

/// The neighbor on either link.
const NEIGHBOR: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// Nobody's on any link.
const ABSENT: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99);
/// Of the NOS on both uplinks, so that it has the same link-local address on both.
const NOS_MAC: MacAddr = MacAddr([2, 0, 0x5e, 0x10, 0, 1]);
/// Long enough for an answer that would come at once.
const SILENCE: Duration = Duration::from_millis(100);
/// More than the buffers of a connection hold.
const OCTETS: u64 = 4 << 20;

/// X on the uplink `up0`, Y on `up1`, both by the same link-local address, and two containers.
struct Lab {
    daemon: Daemon,
    topology: Topology,
    y: LabNamespace,
    config: String,
}

/// What a lab is like, beside its variant.
struct Plan<'a> {
    /// More keys of `web`, and of `db`.
    containers: [&'a str; 2],
    /// Of the second uplink.
    mtu: u32,
}

impl Default for Plan<'_> {
    fn default() -> Self {
        Self {
            containers: [ON_FIRST, OF_SECOND],
            mtu: 1500,
        }
    }
}

const ON_FIRST: &str = r#"
link_local = "up0"
tcp = ["20000-20999", "179"]
udp = ["20000-20999"]
ephemeral = "40000-44999"
"#;

/// Not on any link, on the same addresses.
const OF_SECOND: &str = r#"
tcp = ["21000-21999"]
udp = ["21000-21999"]
ephemeral = "45000-49999"
"#;

impl Lab {
    fn new(variant: Variant, plan: &Plan<'_>) -> Self {
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
        y.add_address("yh", "2001:db8:2::2/64".parse().unwrap())
            .unwrap();
        for (neighbor, interface) in [(&topology.external, "xh"), (&y, "yh")] {
            let address = IpNet::new_assert(NEIGHBOR.into(), 64);
            neighbor.add_address(interface, address).unwrap();
        }
        let config = config(&topology, variant, plan);
        let daemon = Daemon::start(&topology.device, &config);
        Self {
            daemon,
            topology,
            y,
            config,
        }
    }

    fn web(&self) -> &LabNamespace {
        &self.topology.containers[0]
    }

    fn db(&self) -> &LabNamespace {
        &self.topology.containers[1]
    }

    fn x(&self) -> Host<'_> {
        Host::new(&self.topology.external, "xh")
    }

    fn y(&self) -> Host<'_> {
        Host::new(&self.y, "yh")
    }
}

fn config(topology: &Topology, variant: Variant, plan: &Plan<'_>) -> String {
    let Variant {
        device,
        threads,
        offload: [container_offload, uplink_offload],
    } = variant;
    let [web, db] = [0, 1].map(|at| topology.containers[at].path().display().to_string());
    let Plan {
        containers: [of_web, of_db],
        mtu,
    } = plan;
    format!(
        r#"
[relay]
threads = "{threads}"

[[uplink]]
name = "up0"
device = "packet:hx"
mac = "{NOS_MAC}"
addresses = ["203.0.113.1/24", "2001:db8:1::1/64"]
offload = {uplink_offload}

[[uplink]]
name = "up1"
device = "packet:hy"
mac = "{NOS_MAC}"
addresses = ["198.51.100.1/24", "2001:db8:2::1/64"]
offload = {uplink_offload}
mtu = {mtu}

[[container]]
name = "web"
netns = "{web}"
device = "{device}"
offload = {container_offload}
{of_web}

[[container]]
name = "db"
netns = "{db}"
device = "veth"
offload = {container_offload}
{of_db}
"#
    )
}

/// A namespace, and the interface in it that is on a link.
#[derive(Clone, Copy)]
struct Host<'a> {
    namespace: &'a LabNamespace,
    interface: &'a str,
}

impl<'a> Host<'a> {
    fn new(namespace: &'a LabNamespace, interface: &'a str) -> Self {
        Self {
            namespace,
            interface,
        }
    }

    fn scope(&self) -> u32 {
        let link = self.namespace.link(self.interface).unwrap();
        link.expect("it has the interface").index
    }

    /// A link-local address as this host names it.
    fn at(&self, address: Ipv6Addr, port: u16) -> SocketAddr {
        SocketAddrV6::new(address, port, 0, self.scope()).into()
    }

    fn ping(&self, address: Ipv6Addr, how: Ping) -> Echo {
        let how = Ping {
            scope: self.scope(),
            ..how
        };
        how.run(self.namespace, address.into()).unwrap()[0]
    }
}

fn inside(container: &LabNamespace) -> Host<'_> {
    Host::new(container, "eth0")
}

/// The NOS's link-local address.
fn nos() -> Ipv6Addr {
    NOS_MAC.link_local()
}

/// Any address, and a port.
fn any(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

fn patient() -> Ping {
    Ping {
        timeout: LIMIT,
        ..Ping::default()
    }
}

/// The link-local addresses of a container's interface.
fn link_locals(container: &LabNamespace) -> Vec<IpAddr> {
    let all = container.addresses("eth0").unwrap().into_iter();
    let link_local =
        |net: &IpNet| matches!(net.addr(), IpAddr::V6(it) if it.is_unicast_link_local());
    all.filter(link_local).map(|net| net.addr()).collect()
}

fn await_link_locals(container: &LabNamespace, wanted: Ipv6Addr) {
    await_that("the container has the link-local address", || {
        let found = link_locals(container);
        if found == [IpAddr::V6(wanted)] {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    });
}

/// TCP and UDP both ways between a container and its neighbor, each by the other's link-local address.
fn talks_both_ways(
    container: Host<'_>,
    neighbor: Host<'_>,
    listen: u16,
    ephemeral: std::ops::RangeInclusive<u16>,
) {
    let server = tcp::EchoServer::start(neighbor.namespace, any(8080)).unwrap();
    let to = container.at(NEIGHBOR, 8080);
    let local = tcp::exchange(container.namespace, None, to, &[7; 50_000], LIMIT).unwrap();
    assert_eq!(local.ip(), IpAddr::V6(nos()));
    assert!(ephemeral.contains(&local.port()), "{local}");
    assert_eq!(server.peers(), [neighbor.at(nos(), local.port())]);
    let server = udp::EchoServer::start(neighbor.namespace, any(8053)).unwrap();
    let to = container.at(NEIGHBOR, 8053);
    let local = udp::exchange(container.namespace, None, to, b"out", LIMIT).unwrap();
    assert_eq!(server.peers(), [neighbor.at(nos(), local.port())]);
    drop(server);
    let server = tcp::EchoServer::start(container.namespace, any(listen)).unwrap();
    let to = neighbor.at(nos(), listen);
    let local = tcp::exchange(neighbor.namespace, None, to, &[9; 50_000], LIMIT).unwrap();
    assert_eq!(local.ip(), IpAddr::V6(NEIGHBOR));
    assert_eq!(server.peers(), [container.at(NEIGHBOR, local.port())]);
    let server = udp::EchoServer::start(container.namespace, any(listen)).unwrap();
    let local = udp::exchange(neighbor.namespace, None, to, b"in", LIMIT).unwrap();
    assert_eq!(server.peers(), [container.at(NEIGHBOR, local.port())]);
}

fn transfer(client: Host<'_>, server: Host<'_>, to: Ipv6Addr, port: u16, direction: Direction) {
    let transfer = Transfer {
        client: client.namespace,
        server: server.namespace,
        listen: any(port),
        connect: client.at(to, port),
        source: None,
        direction,
        octets: OCTETS,
        limit: LIMIT,
    };
    let moved = transfer.run(&AtomicU64::new(0)).unwrap();
    assert_eq!(moved.octets, OCTETS);
}

each_variant! {
    fn neighbors_on_the_link_are_reached(variant) {
        let lab = Lab::new(variant, &Plan::default());
        let (web, x) = (inside(lab.web()), lab.x());
        assert_eq!(link_locals(lab.web()), [IpAddr::V6(nos())]);
        let shown = lab.daemon.attachment("web").link_local.unwrap();
        assert_eq!((shown.uplink.as_str(), shown.address), ("up0", nos()));
        assert_eq!(lab.daemon.attachment("db").link_local, None);
        // No hop is counted: what may go one hop arrives, and comes back whole.
        for ttl in [1, 255] {
            let echo = web.ping(NEIGHBOR, Ping { ttl, ..patient() });
            assert!(matches!(echo, Echo::Reply { from, ttl: 64, .. } if from == NEIGHBOR), "{echo:?}");
        }
        assert!(web.ping(NEIGHBOR, Ping { size: 4000, ..patient() }).is_reply());
        // From an address of the uplink's network as well.
        let global = Some((Topology::EXTERNAL_V6, 0).into());
        let server = tcp::EchoServer::start(lab.web(), any(20082)).unwrap();
        let local = tcp::exchange(x.namespace, global, x.at(nos(), 20082), b"x", LIMIT).unwrap();
        assert_eq!(server.peers(), [local]);
        // The NOS answers those who ask it.
        assert!(x.ping(nos(), patient()).is_reply());
        talks_both_ways(web, x, 20080, 40000..=44999);
        for direction in [Direction::Upload, Direction::Download] {
            transfer(web, x, NEIGHBOR, 8081, direction);
            transfer(x, web, nos(), 20081, direction);
        }
    }
}

mod ports_decide_on_the_link {
    use super::*;

    fn scenario(variant: Variant) {
        let lab = Lab::new(variant, &Plan::default());
        let (web, x) = (inside(lab.web()), lab.x());
        let refused = |result: Result<SocketAddr, nos_relay::lab::testbed::LabError>| {
            result.unwrap_err().kind().unwrap()
        };
        // Ports of nobody, and of a container that is not on the link, are nobody's there.
        let _db = tcp::EchoServer::start(lab.db(), any(21080)).unwrap();
        for port in [9, 21080] {
            let to = x.at(nos(), port);
            let tcp = tcp::exchange(x.namespace, None, to, b"x", LIMIT);
            assert_eq!(refused(tcp), ErrorKind::ConnectionRefused, "{port}");
            let udp = udp::exchange(x.namespace, None, to, b"x", LIMIT);
            assert_eq!(refused(udp), ErrorKind::ConnectionRefused, "{port}");
        }
        // The neighbor's true answers.
        let to = web.at(NEIGHBOR, 9);
        let tcp = tcp::exchange(web.namespace, None, to, b"x", LIMIT);
        assert_eq!(refused(tcp), ErrorKind::ConnectionRefused);
        let udp = udp::exchange(web.namespace, None, to, b"x", LIMIT);
        assert_eq!(refused(udp), ErrorKind::ConnectionRefused);
        // Foreign ports are told so.
        let _server = tcp::EchoServer::start(x.namespace, any(8080)).unwrap();
        let to = web.at(NEIGHBOR, 8080);
        let tcp = tcp::exchange(web.namespace, Some(any(30_000)), to, b"x", LIMIT);
        assert_eq!(refused(tcp), ErrorKind::PermissionDenied);
        let udp = udp::exchange(web.namespace, Some(any(30_000)), to, b"x", LIMIT);
        assert_eq!(refused(udp), ErrorKind::PermissionDenied);
        assert_eq!(lab.daemon.dropped("relay", "source-port"), 2);
        // Who is not there.
        let tcp = tcp::exchange(web.namespace, None, web.at(ABSENT, 80), b"x", LIMIT);
        assert_eq!(refused(tcp), ErrorKind::HostUnreachable);
        let echo = web.ping(ABSENT, patient());
        assert!(
            matches!(
                echo,
                Echo::Error {
                    kind: 1,
                    code: 3,
                    ..
                }
            ),
            "{echo:?}"
        );
        // Who is elsewhere.
        let _elsewhere = tcp::EchoServer::start(&lab.y, any(8080)).unwrap();
        let elsewhere = "[2001:db8:2::2]:8080".parse().unwrap();
        let from = Some(web.at(nos(), 0));
        let tcp = tcp::exchange(web.namespace, from, elsewhere, b"x", LIMIT);
        assert_eq!(refused(tcp), ErrorKind::NetworkUnreachable);
        // A container that has not asked for a link reaches nobody there.
        let db = inside(lab.db());
        let before = lab.daemon.dropped("relay", "source-address");
        assert_eq!(
            db.ping(
                NEIGHBOR,
                Ping {
                    timeout: SILENCE,
                    ..Ping::default()
                }
            ),
            Echo::Timeout
        );
        assert_eq!(lab.daemon.dropped("relay", "source-address"), before + 1);
    }

    variant_tests! {
        tap_split: ("tap", "split", [true, true]),
        veth_single_plain: ("veth", "single", [false, false]),
    }
}

/// A container on one uplink's addresses and link, with ports that those of other uplinks may have too.
fn alone_on(uplink: &str, addresses: [&str; 2]) -> String {
    let [v4, v6] = addresses;
    format!(
        "
        addresses = [\"{v4}\", \"{v6}\"]
        link_local = \"{uplink}\"
        tcp = [\"20000-20999\", \"179\"]
        udp = [\"20000-20999\"]
        ephemeral = \"40000-44999\"
        "
    )
}

mod links_are_kept_apart {
    use super::*;

    fn scenario(variant: Variant) {
        let web = alone_on("up0", ["203.0.113.1", "2001:db8:1::1"]);
        let db = alone_on("up1", ["198.51.100.1", "2001:db8:2::1"]);
        let plan = Plan {
            containers: [&web, &db],
            ..Plan::default()
        };
        let lab = Lab::new(variant, &plan);
        let pairs = [(inside(lab.web()), lab.x()), (inside(lab.db()), lab.y())];
        for (container, neighbor) in pairs {
            assert!(container.ping(NEIGHBOR, patient()).is_reply());
            assert!(
                container
                    .ping(
                        NEIGHBOR,
                        Ping {
                            size: 4000,
                            ..patient()
                        }
                    )
                    .is_reply()
            );
            talks_both_ways(container, neighbor, 20080, 40000..=44999);
        }
        // The same addresses and ports on both links at the same time are two connections.
        let streams = pairs.map(|(container, neighbor)| {
            let server = tcp::EchoServer::start(neighbor.namespace, any(8080)).unwrap();
            let local = Some(any(41_000));
            let to = container.at(NEIGHBOR, 8080);
            let stream = tcp::connect(container.namespace, local, to, LIMIT).unwrap();
            (server, stream)
        });
        for (number, (server, mut stream)) in (0_u8..).zip(streams) {
            stream.write_all(&[number; 100]).unwrap();
            let mut answer = [0; 100];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer, [number; 100]);
            assert_eq!(server.peers().len(), 1);
        }
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        veth_split_plain: ("veth", "split", [false, false]),
    }
}

lab_test! {
    fn containers_that_share_a_link_have_ports_of_their_own() {
        let second = format!("link_local = \"up0\"\n{OF_SECOND}");
        let plan = Plan { containers: [ON_FIRST, &second], ..Plan::default() };
        let lab = Lab::new(Variant::PLAIN, &plan);
        for (container, listen, ephemeral) in [
            (lab.web(), 20080, 40000..=44999),
            (lab.db(), 21080, 45000..=49999),
        ] {
            assert_eq!(link_locals(container), [IpAddr::V6(nos())]);
            assert!(inside(container).ping(NEIGHBOR, patient()).is_reply());
            talks_both_ways(inside(container), lab.x(), listen, ephemeral);
        }
        // To itself the address is its own: the sibling is not there.
        let _sibling = tcp::EchoServer::start(lab.db(), any(21081)).unwrap();
        let web = inside(lab.web());
        let error = tcp::connect(lab.web(), None, web.at(nos(), 21081), LIMIT).unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused));
    }
}

lab_test! {
    fn the_path_mtu_of_a_link_is_told() {
        let web = alone_on("up1", ["203.0.113.1", "2001:db8:1::1"]);
        let db = alone_on("up0", ["198.51.100.1", "2001:db8:2::1"]);
        let plan = Plan { containers: [&web, &db], mtu: 1300 };
        let lab = Lab::new(Variant::PLAIN, &plan);
        lab.y.set_mtu("yh", 1300).unwrap();
        let (web, y) = (inside(lab.web()), lab.y());
        let full = Ping { size: 1452, dont_fragment: true, ..patient() };
        let echo = web.ping(NEIGHBOR, full);
        assert!(matches!(echo, Echo::Error { kind: 2, code: 0, .. }), "{echo:?}");
        assert!(web.ping(NEIGHBOR, Ping { size: 1252, ..full }).is_reply());
        assert_eq!(lab.daemon.dropped("nos", "too-big"), 1);
        transfer(web, y, NEIGHBOR, 8081, Direction::Upload);
        transfer(y, web, nos(), 20081, Direction::Download);
        // Fragments, both ways.
        let _server = udp::EchoServer::start(y.namespace, any(8053)).unwrap();
        udp::exchange(web.namespace, None, web.at(NEIGHBOR, 8053), &[5; 6000], LIMIT).unwrap();
        let _server = udp::EchoServer::start(web.namespace, any(20053)).unwrap();
        udp::exchange(y.namespace, None, y.at(nos(), 20053), &[6; 6000], LIMIT).unwrap();
    }
}

lab_test! {
    fn errors_on_the_link_reach_the_container_that_they_are_about() {
        let lab = Lab::new(Variant::PLAIN, &Plan::default());
        let (web, x) = (inside(lab.web()), lab.x());
        let to = web.at(NEIGHBOR, 8054);
        let error = udp::exchange(web.namespace, Some(any(40_100)), to, b"x", LIMIT).unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused));
        // One that quotes a packet of nobody is dropped.
        let before = lab.daemon.dropped("nos", "icmp-unmatched");
        let wire = Wire::open(x.namespace, "xh");
        let macs = (wire.mac(), NOS_MAC);
        let quoted = wire::udp(wire::ip(macs, nos().into(), NEIGHBOR.into()), (30_000, 8054), b"x");
        let mut error = Vec::new();
        let step = wire::ip(macs, NEIGHBOR.into(), nos().into()).icmpv6_raw(1, 4, [0; 4]);
        step.write(&mut error, &quoted[14..]).unwrap();
        wire.send(&error);
        await_that("it is dropped", || {
            let dropped = lab.daemon.dropped("nos", "icmp-unmatched") - before;
            if dropped == 1 { Ok(()) } else { Err(dropped.to_string()) }
        });
    }
}

lab_test! {
    fn the_address_is_what_the_uplink_says() {
        let lab = Lab::new(Variant::PLAIN, &Plan::default());
        let (web, x) = (inside(lab.web()), lab.x());
        // Another MAC address of the uplink.
        let mac = MacAddr([2, 0, 0x5e, 0x10, 0, 9]);
        let from = format!("name = \"up0\"\ndevice = \"packet:hx\"\nmac = \"{NOS_MAC}\"");
        let moved = edited(&lab.config, &from, &from.replace(&NOS_MAC.to_string(), &mac.to_string()));
        lab.daemon.reload(&moved);
        assert_eq!(link_locals(lab.web()), [IpAddr::V6(mac.link_local())]);
        assert_eq!(lab.daemon.attachment("web").link_local.unwrap().address, mac.link_local());
        assert!(web.ping(NEIGHBOR, patient()).is_reply());
        let _server = tcp::EchoServer::start(lab.web(), any(20080)).unwrap();
        tcp::exchange(x.namespace, None, x.at(mac.link_local(), 20080), b"x", LIMIT).unwrap();
        // Another uplink, and none.
        let on_second = edited(&lab.config, "link_local = \"up0\"", "link_local = \"up1\"");
        lab.daemon.reload(&on_second);
        assert_eq!(link_locals(lab.web()), [IpAddr::V6(nos())]);
        assert!(web.ping(NEIGHBOR, patient()).is_reply());
        let y = lab.y();
        tcp::exchange(y.namespace, None, y.at(nos(), 20080), b"x", LIMIT).unwrap();
        let refused = tcp::exchange(x.namespace, None, x.at(nos(), 20080), b"x", LIMIT).unwrap_err();
        assert_eq!(refused.kind(), Some(ErrorKind::ConnectionRefused));
        let own = lab.daemon.attachment("web").container_mac.link_local();
        lab.daemon.reload(&edited(&lab.config, "link_local = \"up0\"\n", ""));
        assert_eq!(link_locals(lab.web()), [IpAddr::V6(own)]);
        assert_eq!(lab.daemon.attachment("web").link_local, None);
        // And back, while it runs.
        lab.daemon.reload(&lab.config);
        assert_eq!(link_locals(lab.web()), [IpAddr::V6(nos())]);
        assert!(web.ping(NEIGHBOR, patient()).is_reply());
    }
}

mod who_takes_the_address_away_inside_loses_it_for_a_moment {
    use super::*;

    fn scenario(variant: Variant) {
        let lab = Lab::new(variant, &Plan::default());
        let web = inside(lab.web());
        let shared = IpNet::new_assert(nos().into(), 64);
        lab.web().delete_address("eth0", shared).unwrap();
        await_link_locals(lab.web(), nos());
        assert!(web.ping(NEIGHBOR, patient()).is_reply());
        // The kernel makes one of its own when the interface comes up.
        lab.web().set_down("eth0").unwrap();
        lab.web().set_up("eth0").unwrap();
        await_link_locals(lab.web(), nos());
        await_that("the neighbor answers", || {
            let echo = web.ping(
                NEIGHBOR,
                Ping {
                    timeout: SILENCE,
                    ..Ping::default()
                },
            );
            if echo.is_reply() {
                Ok(())
            } else {
                Err(format!("{echo:?}"))
            }
        });
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "split", [true, true]),
    }
}

mod whom_it_may_talk_with_counts_on_the_link_too {
    use super::*;

    fn scenario(variant: Variant) {
        let keys = r#"
            link_local = "up0"
            tcp = [20080, { ports = 20081, from = ["fe80::2/128"] }, { ports = 20082, from = ["fe80::3/128"] }]
            ephemeral = { ports = "40000-44999", state = "established" }
            to = ["fe80::2/128"]
            outside = "learn"
        "#;
        let plan = Plan {
            containers: [keys, OF_SECOND],
            ..Plan::default()
        };
        let lab = Lab::new(variant, &plan);
        let (web, x) = (inside(lab.web()), lab.x());
        let third: IpNet = "fe80::3/64".parse().unwrap();
        lab.topology.external.add_address("xh", third).unwrap();
        let IpAddr::V6(third) = third.addr() else {
            unreachable!()
        };
        let _servers =
            [20080, 20081, 20082].map(|port| tcp::EchoServer::start(lab.web(), any(port)).unwrap());
        let server = tcp::EchoServer::start(x.namespace, any(8080)).unwrap();
        let from = |source, port| {
            let to = x.at(nos(), port);
            let local = Some(x.at(source, 0));
            tcp::exchange(x.namespace, local, to, b"x", LIMIT)
                .map_err(|error| error.kind().unwrap())
        };
        for (source, port, passes) in [
            (NEIGHBOR, 20080, true),
            (third, 20080, true),
            (NEIGHBOR, 20081, true),
            (third, 20081, false),
            (NEIGHBOR, 20082, false),
            (third, 20082, true),
        ] {
            match from(source, port) {
                Ok(_) => assert!(passes, "{source} {port}"),
                Err(kind) => assert_eq!((passes, kind), (false, ErrorKind::ConnectionRefused)),
            }
        }
        // From its own ports and from those that it learns.
        for local in [None, Some(any(30_000))] {
            tcp::exchange(web.namespace, local, web.at(NEIGHBOR, 8080), b"x", LIMIT).unwrap();
        }
        let refused =
            tcp::exchange(web.namespace, None, web.at(third, 8080), b"x", LIMIT).unwrap_err();
        assert_eq!(refused.kind(), Some(ErrorKind::PermissionDenied));
        assert_eq!(server.peers().len(), 2);
        let flows = lab.daemon.flows();
        assert!(
            flows
                .iter()
                .any(|flow| flow.local == (nos(), 30_000).into()),
            "{flows:?}"
        );
        assert!(
            flows.iter().all(|flow| flow.vrf_name == "default"),
            "{flows:?}"
        );
        assert_eq!(lab.daemon.dropped("nos", "policy-from"), 2);
        assert_eq!(lab.daemon.dropped("nos", "policy-to"), 1);
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        veth_split: ("veth", "split", [true, true]),
    }
}

/// Where Debian has BIRD.
const BIRD: &str = "/usr/sbin/bird";

/// A BGP speaker with one session on a link, guarded by MD5 (RFC 2385), that announces a prefix and
/// installs what it hears. Ended with the value.
struct Bird(Child);

impl Bird {
    fn start(
        host: Host<'_>,
        directory: &Path,
        own: u32,
        to: Ipv6Addr,
        gtsm: bool,
        prefix: &str,
    ) -> Self {
        let (peer, gtsm) = (130_003 - own, if gtsm { "on" } else { "off" });
        let interface = host.interface;
        let config = format!(
            "log stderr all;
            router id 192.0.2.{id};
            protocol device {{ }}
            protocol static {{ ipv6; route {prefix} unreachable; }}
            protocol kernel {{ ipv6 {{ export where source = RTS_BGP; }}; }}
            protocol bgp peer {{
                local as {own};
                neighbor {to}%{interface} as {peer};
                password \"secret\";
                ttl security {gtsm};
                connect delay time 1;
                connect retry time 1;
                error wait time 1, 1;
                ipv6 {{ import all; export where source = RTS_STATIC; }};
            }}",
            id = own - 65_000,
        );
        let [conf, control] = ["conf", "ctl"].map(|kind| directory.join(format!("{own}.{kind}")));
        std::fs::write(&conf, config).unwrap();
        let mut command = Command::new(BIRD);
        command.arg("-f").arg("-c").arg(conf).arg("-s").arg(control);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        Self(host.namespace.spawn(command).unwrap())
    }
}

impl Drop for Bird {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The routes that BIRD has installed in a namespace's kernel.
fn bird_routes(host: Host<'_>) -> String {
    let mut command = Command::new("ip");
    command.args(["-6", "route", "show", "proto", "bird"]);
    let output = host.namespace.hold(&mut command).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A session between link-local addresses comes up, and routes arrive whose next hops are those.
mod bgp_between_link_local_addresses_comes_up {
    use super::*;

    fn scenario(variant: Variant) {
        if !Path::new(BIRD).exists() {
            return skip(&format!(
                "BGP between link-local addresses: {BIRD} is not there"
            ));
        }
        // Packets are sent with TTL 1, or with 255 and taken with nothing less (RFC 5082).
        let gtsm = variant.device == "veth";
        let lab = Lab::new(variant, &Plan::default());
        let (web, x) = (inside(lab.web()), lab.x());
        let directory = tempfile::tempdir().unwrap();
        let (outside, announced) = ("2001:db8:a::/48", "2001:db8:b::/48");
        let _birds = [
            Bird::start(x, directory.path(), 65_002, nos(), gtsm, outside),
            Bird::start(web, directory.path(), 65_001, NEIGHBOR, gtsm, announced),
        ];
        for (host, prefix, via) in [(web, outside, NEIGHBOR), (x, announced, nos())] {
            await_that("the route arrives", || {
                let routes = bird_routes(host);
                let wanted = format!("{prefix} via {via} dev {}", host.interface);
                let there = routes.lines().any(|route| route.starts_with(&wanted));
                there.then_some(()).ok_or(routes)
            });
        }
        assert_eq!(lab.daemon.dropped("relay", "source-port"), 0);
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        veth_split: ("veth", "split", [true, true]),
    }
}

lab_test! {
    fn a_daemon_that_takes_over_keeps_the_link() {
        let Lab { daemon, topology, y: _y, .. } = Lab::new(Variant::PLAIN, &Plan::default());
        let (x, web) = (Host::new(&topology.external, "xh"), &topology.containers[0]);
        let server = tcp::EchoServer::start(x.namespace, any(8080)).unwrap();
        let to = inside(web).at(NEIGHBOR, 8080);
        let mut stream = tcp::connect(web, None, to, LIMIT).unwrap();
        let daemon = daemon.replaced(&topology.device);
        stream.write_all(b"still here").unwrap();
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"still here");
        assert_eq!(link_locals(web), [IpAddr::V6(nos())]);
        let shown = daemon.attachment("web").link_local.unwrap();
        assert_eq!((shown.uplink.as_str(), shown.address), ("up0", nos()));
        assert_eq!(server.peers().len(), 1);
        // After a kill the container keeps it, and the next daemon takes it up.
        let files = daemon.kill();
        assert_eq!(link_locals(web), [IpAddr::V6(nos())]);
        let _daemon = Daemon::start_on(&topology.device, files);
        assert_eq!(link_locals(web), [IpAddr::V6(nos())]);
        stream.write_all(b"once again").unwrap();
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"once again");
    }
}
