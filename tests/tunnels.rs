//! Tunnels pass: bulk TCP inside, whose super-frames have their offload state inside as well.
//!
//! Of the tunnels that Linux knows, VXLAN is in nearly every kernel, and segment routing (IP in IPv6)
//! in many. What GRE and IP in IPv4 make is in `nos-shim/src/offload/tests/tunnel.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use nix::sys::signal::Signal;
use nos_relay::control::api::snapshot::Link;
use nos_relay::lab::testbed::{LabNamespace, Topology, Vxlan, veth};
use support::bulk::transfer;
use support::daemon::{Daemon, LIMIT, await_that};
use support::scenario::{Family, Scenario, V4, V6, Variant, config, edited, variant_tests};
use support::{lab_test, skip};

const MIB: u64 = 1 << 20;
/// A port of the container's, for both ends of tunnels.
const PORT: u16 = 20789;
/// Fits the MTU of the underlay, with IPv6 and VXLAN around.
const MTU: u32 = 1430;
/// Where a listener inside of a tunnel is.
const INSIDE: u16 = 7;

/// How the outer headers look.
#[derive(Clone, Copy, Debug)]
struct Outer {
    family: Family,
    checksum: bool,
}

const OUTERS: [Outer; 4] = [
    Outer {
        family: V4,
        checksum: true,
    },
    Outer {
        family: V4,
        checksum: false,
    },
    Outer {
        family: V6,
        checksum: true,
    },
    Outer {
        family: V6,
        checksum: false,
    },
];

/// The ends of a tunnel: namespace, and address in the underlay.
type End<'a> = (&'a LabNamespace, IpAddr);

/// Makes a tunnel between the ends, number `n` of the test.
fn tunnel(ends: [End<'_>; 2], n: u16, checksum: bool) {
    for (side, octet) in [(0, 1), (1, 2)] {
        let ((namespace, local), (_, remote)) = (ends[side], ends[1 - side]);
        let name = format!("v{n}");
        let vxlan = Vxlan {
            local,
            remote,
            port: PORT + n,
            checksum,
            mtu: MTU,
        };
        namespace.add_vxlan(&name, vxlan).unwrap();
        for address in inside(n, octet) {
            let length = if address.is_ipv6() { 64 } else { 24 };
            let network = ipnet::IpNet::new(address, length).unwrap();
            namespace.add_address(&name, network).unwrap();
        }
    }
}

/// Addresses inside of a tunnel.
fn inside(n: u16, octet: u16) -> [IpAddr; 2] {
    [
        format!("10.9.{n}.{octet}").parse().unwrap(),
        format!("fd09:{n}::{octet}").parse().unwrap(),
    ]
}

/// A connection through a tunnel, each way; IPv4 and IPv6 take turns.
fn connections(ends: [End<'_>; 2], n: u16) -> [[TcpStream; 2]; 2] {
    let [to_second, to_first] = [(n + 1, 2), (n, 1)].map(|(which, octet)| {
        let address = inside(n, octet)[usize::from(which % 2)];
        SocketAddr::new(address, INSIDE)
    });
    let [(first, _), (second, _)] = ends;
    [
        connect(first, second, to_second),
        connect(second, first, to_first),
    ]
}

fn connect(client: &LabNamespace, server: &LabNamespace, to: SocketAddr) -> [TcpStream; 2] {
    let listener = server.run(|| TcpListener::bind(to).unwrap()).unwrap();
    let near = client.run(|| TcpStream::connect_timeout(&to, LIMIT).unwrap());
    let (far, _) = listener.accept().unwrap();
    [near.unwrap(), far]
}

/// Moves octets through each tunnel both ways.
fn bulk(ends_of: impl Fn(Family) -> [(LabNamespace, IpAddr); 2], octets: u64) {
    for (n, outer) in (0..).zip(OUTERS) {
        let owned = ends_of(outer.family);
        let ends = [(&owned[0].0, owned[0].1), (&owned[1].0, owned[1].1)];
        tunnel(ends, n, outer.checksum);
        for (connection, seed) in connections(ends, n).into_iter().zip(1..) {
            transfer(connection, octets, seed);
        }
    }
}

/// No frame was dropped, but for those that the kernel sends by itself to groups and routers.
fn assert_no_drops(daemon: &Daemon) {
    let counters = daemon.settle();
    for stage in ["relay", "nos"] {
        for reason in ["offload-header", "device-error", "too-big", "no-buffer"] {
            assert_eq!(
                daemon.dropped(stage, reason),
                0,
                "{stage} {reason}: {counters:?}"
            );
        }
    }
}

fn octets_a_packet(link: &Link) -> [u64; 2] {
    [link.rx, link.tx].map(|traffic| traffic.octets / traffic.packets)
}

/// Between a container and a host.
mod tcp_in_a_container_arrives_whole {
    use super::*;

    fn scenario(variant: Variant) {
        let scenario = Scenario::new(variant);
        let ends = |family: Family| {
            [
                (scenario.web().clone(), family.nos),
                (scenario.external().clone(), family.external),
            ]
        };
        bulk(ends, 8 * MIB);
        assert_no_drops(&scenario.daemon);
        let link = scenario.daemon.attachment("web").link;
        let [from, _] = octets_a_packet(&link);
        let takes_tunnels = link.offload.iter().any(|one| one == "tunnel");
        assert_eq!(
            from > 1514,
            takes_tunnels || variant.device == "veth",
            "{link:?}"
        );
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        tap_single_plain: ("tap", "single", [false, false]),
        tap_split: ("tap", "split", [true, true]),
        tap_to_plain: ("tap", "single", [true, false]),
        veth_single: ("veth", "single", [true, true]),
        veth_split: ("veth", "split", [true, true]),
        veth_to_plain: ("veth", "single", [true, false]),
        plain_tap_to_uplink: ("tap", "single", [false, true]),
    }
}

/// Packet sockets send the super-frames of UDP tunnels by a TAP beside them, once they have met one.
mod super_frames_leave_packet_sockets_whole {
    use super::*;

    /// Waits until the daemon has said of so many interfaces what it does for tunnels. `None` where the
    /// kernel can do nothing.
    fn await_injections(daemon: &Daemon, interfaces: usize) -> Option<()> {
        await_that("what becomes of tunnels", || {
            let log = daemon.log();
            if log.contains("super-frames of tunnels are cut before they leave") {
                skip("the kernel takes no super-frames of tunnels");
                return Ok(None);
            }
            let whole = log.matches("super-frames of tunnels leave whole").count();
            let missing = interfaces - whole.min(interfaces);
            (missing == 0)
                .then_some(Some(()))
                .ok_or_else(|| format!("{missing} are missing"))
        })
    }

    fn takes_tunnels(link: &Link) -> bool {
        link.offload.iter().any(|one| one == "tunnel")
    }

    /// Octets a packet of what a link has sent since `before`.
    fn average(before: &Link, after: &Link) -> u64 {
        let octets = after.tx.octets - before.tx.octets;
        octets / (after.tx.packets - before.tx.packets)
    }

    fn injections(device: &LabNamespace) -> Vec<String> {
        let list = || {
            let all = nix::net::if_::if_nameindex().unwrap();
            let names = all
                .iter()
                .map(|one| one.name().to_string_lossy().into_owned());
            names.collect::<Vec<_>>()
        };
        let mut names = device.run(list).unwrap();
        names.retain(|name| name.starts_with("nt"));
        names
    }

    fn scenario(variant: Variant) {
        let scenario = Scenario::new(variant);
        let daemon = &scenario.daemon;
        let ends: [End<'_>; 2] = [(scenario.web(), V4.nos), (scenario.external(), V4.external)];
        tunnel(ends, 0, true);
        let device = &scenario.topology.device;
        assert!(injections(device).is_empty(), "none is met yet");
        for (connection, seed) in connections(ends, 0).into_iter().zip(1..) {
            transfer(connection, MIB, seed);
        }
        let links = 1 + usize::from(variant.device == "veth");
        if await_injections(daemon, links).is_none() {
            return;
        }
        let taps = injections(device);
        assert_eq!(taps.len(), links, "{taps:?}");
        let state = || [daemon.uplink("up0").link, daemon.attachment("web").link];
        let before = state();
        assert!(before.iter().all(takes_tunnels), "{before:?}");
        for (connection, seed) in connections(ends, 0).into_iter().zip(3..) {
            transfer(connection, 16 * MIB, seed);
        }
        let after = state();
        for (before, after) in before.iter().zip(&after) {
            assert!(average(before, after) > 3000, "{after:?}");
            assert!(after.refused.is_empty(), "{after:?}");
        }
        assert_no_drops(daemon);
        // Somebody takes the TAPs away: what leaves is cut, and arrives.
        for tap in taps {
            device.delete_link(&tap).unwrap();
        }
        for (connection, seed) in connections(ends, 0).into_iter().zip(5..) {
            transfer(connection, MIB, seed);
        }
        assert!(!takes_tunnels(&daemon.uplink("up0").link));
        assert_no_drops(daemon);
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        veth_single: ("veth", "single", [true, true]),
        veth_split: ("veth", "split", [true, true]),
    }

    lab_test! {
        fn what_carries_them_goes_with_the_daemon() {
            let scenario = Scenario::new(Variant::PLAIN);
            let ends: [End<'_>; 2] = [
                (scenario.web(), V6.nos),
                (scenario.external(), V6.external),
            ];
            tunnel(ends, 0, true);
            for (connection, seed) in connections(ends, 0).into_iter().zip(1..) {
                transfer(connection, MIB, seed);
            }
            if await_injections(&scenario.daemon, 2).is_none() {
                return;
            }
            let Scenario { daemon, topology, .. } = scenario;
            assert_eq!(injections(&topology.device).len(), 2);
            daemon.stop_by(Signal::SIGTERM);
            assert!(injections(&topology.device).is_empty());
        }
    }
}

/// Two hosts, X and Y, with a NOS between.
struct Transit {
    daemon: Daemon,
    topology: Topology,
    y: LabNamespace,
}

impl Transit {
    fn new(variant: Variant, routes: &str) -> Self {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let y = LabNamespace::new("Y").unwrap();
        let (device, x) = (&topology.device, &topology.external);
        device
            .sysctl("net/ipv6/conf/default/disable_ipv6", "1")
            .unwrap();
        veth((device, "hy"), (&y, "yh")).unwrap();
        for (of_y, network_y, nos, network_x) in [
            ("198.51.100.2/24", "198.51.100.0/24", V4, "203.0.113.0/24"),
            ("2001:db8:2::2/64", "2001:db8:2::/64", V6, "2001:db8:1::/64"),
        ] {
            let nos_y = if nos.is_v6() {
                "2001:db8:2::1"
            } else {
                "198.51.100.1"
            };
            y.add_address("yh", of_y.parse().unwrap()).unwrap();
            x.add_route(network_y.parse().unwrap(), nos.nos).unwrap();
            y.add_route(network_x.parse().unwrap(), nos_y.parse().unwrap())
                .unwrap();
        }
        let more = format!(
            "
            [[uplink]]
            name = \"up1\"
            device = \"packet:hy\"
            addresses = [\"198.51.100.1/24\", \"2001:db8:2::1/64\"]
            offload = {}
            {routes}
            ",
            variant.offload[1]
        );
        let mut text = config(&topology, variant);
        for name in ["web", "db"] {
            let from = format!("name = \"{name}\"\n");
            let to = format!("{from}addresses = [\"203.0.113.1\", \"2001:db8:1::1\"]\n");
            text = edited(&text, &from, &to);
        }
        let daemon = Daemon::start(device, &(text + &more));
        Self {
            daemon,
            topology,
            y,
        }
    }

    fn x(&self) -> &LabNamespace {
        &self.topology.external
    }
}

/// From one uplink to another.
mod tcp_in_transit_arrives_whole {
    use super::*;

    fn scenario(variant: Variant) {
        let transit = Transit::new(variant, "");
        let [y4, y6]: [IpAddr; 2] =
            ["198.51.100.2", "2001:db8:2::2"].map(|text| text.parse().unwrap());
        let ends = |family: Family| {
            let of_y = if family.is_v6() { y6 } else { y4 };
            [
                (transit.x().clone(), family.external),
                (transit.y.clone(), of_y),
            ]
        };
        bulk(ends, 8 * MIB);
        assert_no_drops(&transit.daemon);
    }

    variant_tests! {
        single: ("veth", "single", [true, true]),
        split: ("veth", "split", [true, true]),
        plain: ("veth", "single", [true, false]),
    }
}

/// IP in IPv6, as segment routing makes it (RFC 8754), of which this kernel is a source and an end:
/// super-frames of IP in IP, behind a routing header.
mod ip_in_ip_in_transit_arrives_whole {
    use super::*;

    /// What the ends do, and the addresses at which they talk.
    struct Segments {
        action: [&'static str; 2],
        ends: [&'static str; 2],
    }

    const SEGMENTS: [Segments; 2] = [
        Segments {
            action: ["End.DT6 table 255"; 2],
            ends: ["fd00:a::1", "fd00:b::1"],
        },
        Segments {
            action: ["End.DX4 nh4 10.9.0.1", "End.DX4 nh4 10.9.0.2"],
            ends: ["10.9.0.1", "10.9.0.2"],
        },
    ];

    fn prepare(lab: &LabNamespace, interface: &str) {
        for key in ["all", interface, "lo"] {
            for setting in ["forwarding", "seg6_enabled"] {
                let key = format!("net/ipv6/conf/{key}/{setting}");
                lab.sysctl(&key, "1").unwrap();
            }
        }
        lab.sysctl("net/ipv4/ip_forward", "1").unwrap();
    }

    /// Has one end send to the other in segments, and take out what comes for `own`.
    fn segments(transit: &Transit, how: &Segments) -> bool {
        let sides = [
            (transit.x(), "xh", "fc00:1::d", "fc00:2::d"),
            (&transit.y, "yh", "fc00:2::d", "fc00:1::d"),
        ];
        (0..2).all(|side| {
            let (lab, interface, own, others) = sides[side];
            prepare(lab, interface);
            let (near, far) = (how.ends[side], how.ends[1 - side]);
            let near_host = ipnet::IpNet::from(near.parse::<IpAddr>().unwrap());
            lab.add_address("lo", near_host).unwrap();
            let via = ["2001:db8:1::1", "2001:db8:2::1"][side];
            lab.add_route("fc00::/16".parse().unwrap(), via.parse().unwrap())
                .unwrap();
            let action = how.action[side];
            ip(
                lab,
                &format!("-6 route add {own}/128 encap seg6local action {action} dev {interface}"),
            ) && ip(
                lab,
                &format!(
                    "route add {far} encap seg6 mode encap segs {others} dev {interface} src {near}"
                ),
            )
        })
    }

    fn ip(lab: &LabNamespace, command: &str) -> bool {
        let mut ip = Command::new("ip");
        ip.args(command.split_whitespace());
        lab.spawn(ip).unwrap().wait().unwrap().success()
    }

    fn scenario(variant: Variant) {
        const ROUTES: &str = "
            [[route]]
            prefix = \"fc00:1::/64\"
            via = \"2001:db8:1::2\"
            [[route]]
            prefix = \"fc00:2::/64\"
            via = \"2001:db8:2::2\"
            ";
        for how in &SEGMENTS {
            let transit = Transit::new(variant, ROUTES);
            if !segments(&transit, how) {
                println!("skipped: the kernel or iproute2 has no segment routing");
                return;
            }
            let [near, far] = how
                .ends
                .map(|end| SocketAddr::new(end.parse().unwrap(), INSIDE));
            transfer(connect(transit.x(), &transit.y, far), 8 * MIB, 1);
            transfer(connect(&transit.y, transit.x(), near), 8 * MIB, 2);
            assert_no_drops(&transit.daemon);
        }
    }

    variant_tests! {
        single: ("veth", "single", [true, true]),
        split: ("veth", "split", [true, true]),
        plain: ("veth", "single", [true, false]),
    }
}
