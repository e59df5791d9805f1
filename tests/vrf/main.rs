//! VRFs: two networks with the same of everything behind one NOS, and nothing of one in the other.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "../support/mod.rs"]
mod support;

mod network;
mod run_time;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use network::{Side, Twins, Uplinks, other_address};
use nos_relay::control::api::snapshot::LinkState;
use nos_relay::lab::testbed::ping::ping;
use nos_relay::lab::testbed::{LabNamespace, tcp, udp};
use nos_shim::ident::MacAddr;
use support::daemon::{LIMIT, await_that, program};
use support::lab_test;
use support::scenario::{FAMILIES, Family, V4, Variant, edited, variant_tests};
use support::wire::{self, Wire};

/// What arrives at everybody in a VRF.
struct Listeners([Wire; 3]);

impl Listeners {
    fn of(side: Side<'_>) -> Self {
        let wires = Self([
            Wire::open(side.external, side.interface),
            Wire::open(side.web, "eth0"),
            Wire::open(side.db, "eth0"),
        ]);
        for wire in &wires.0 {
            wire.drain();
        }
        wires
    }

    #[track_caller]
    fn assert_silence(&self, what: &str) {
        for wire in &self.0 {
            let seen = wire.seen().into_iter().find(|seen| !seen.is_chatter());
            assert_eq!(seen, None, "{what} is seen in the other VRF");
        }
    }
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(
    result: Result<T, nos_relay::lab::testbed::LabError>,
    what: &str,
) {
    let error = result.unwrap_err();
    assert_eq!(
        error.kind(),
        Some(ErrorKind::ConnectionRefused),
        "{what}: {error}"
    );
}

/// To a server that has a twin in the other VRF, which hears nothing.
fn talk(
    from: &LabNamespace,
    to: (&LabNamespace, &LabNamespace),
    server: SocketAddr,
    port: Option<SocketAddr>,
) {
    let here = tcp::EchoServer::start(to.0, server).unwrap();
    let there = tcp::EchoServer::start(to.1, server).unwrap();
    tcp::exchange(from, port, server, &vec![7; 200_000], LIMIT).unwrap();
    assert_eq!(
        (here.peers().len(), there.peers().len()),
        (1, 0),
        "{server}"
    );
    drop((here, there));
    let here = udp::EchoServer::start(to.0, server).unwrap();
    let there = udp::EchoServer::start(to.1, server).unwrap();
    // As a whole, and in fragments.
    for size in [10, 5000] {
        udp::exchange(from, port, server, &vec![7; size], LIMIT).unwrap();
    }
    assert_eq!(
        (here.peers().len(), there.peers().len()),
        (2, 0),
        "{server}"
    );
}

mod nothing_of_one_vrf_is_seen_in_another {
    use super::*;

    fn scenario(variant: Variant) {
        if !variant.is_possible() {
            return;
        }
        let twins = Twins::new(variant);
        nothing_is_seen(&twins);
        for stage in twins.daemon.settle().stages {
            assert_eq!(stage.drops.get("martian-source"), None, "{stage:?}");
        }
    }

    fn nothing_is_seen(twins: &Twins) {
        for (here, there) in twins.pairs() {
            for family in FAMILIES {
                let listeners = Listeners::of(there);
                let what = |what: &str| format!("{what} of {} to {}", here.vrf, family.nos);
                let webs = (here.web, there.web);
                talk(here.external, webs, family.nos_port(20080), None);
                listeners.assert_silence(&what("traffic of outsiders"));
                let externals = (here.external, there.external);
                talk(here.web, externals, family.external_port(8053), None);
                // The same flow, to the port, is in both VRFs.
                let own = Some(family.nos_port(20500));
                talk(here.web, externals, family.external_port(8054), own);
                listeners.assert_silence(&what("traffic of containers"));
                let dbs = (here.db, there.db);
                talk(here.web, dbs, (other_address(family), 20080).into(), None);
                listeners.assert_silence(&what("traffic between containers"));
                for (from, to) in [(here.external, family.nos), (here.web, family.external)] {
                    assert!(
                        ping(from, to, 2, LIMIT)
                            .unwrap()
                            .iter()
                            .all(|echo| echo.is_reply())
                    );
                }
                listeners.assert_silence(&what("pings"));
                udp::exchange(here.external, None, family.nos_port(7), b"x", LIMIT).unwrap();
                tcp::exchange(here.external, None, family.nos_port(7), b"x", LIMIT).unwrap();
                listeners.assert_silence(&what("echo of the NOS"));
                // ICMP errors of the outsider, about the same flow in both.
                let closed = udp::exchange(here.web, own, family.external_port(9), b"x", LIMIT);
                assert_refused(closed, &what("a closed port outside"));
                listeners.assert_silence(&what("errors of outsiders"));
            }
        }
    }

    fn over_taps(variant: Variant) {
        if variant.is_possible() {
            nothing_is_seen(&Twins::with(variant, Uplinks::Taps));
        }
    }

    fn over_vlans(variant: Variant) {
        if !variant.is_possible() {
            return;
        }
        if let Some(twins) = Twins::try_edited(variant, Uplinks::Vlans, &[], |config| config) {
            // Until both were open, frames of one were nobody's.
            let foreign = || {
                twins.sides().map(|side| {
                    let drops = twins.daemon.uplink(side.uplink).link.drops;
                    drops.get("vlan").copied()
                })
            };
            let before = foreign();
            nothing_is_seen(&twins);
            assert_eq!(foreign(), before);
        }
    }

    lab_test! {
        fn vlans_of_one_uplink_single() {
            over_vlans(Variant::PLAIN);
        }
    }

    lab_test! {
        fn vlans_of_one_uplink_split() {
            over_vlans(Variant { device: "tap", threads: "split", offload: [true, true] });
        }
    }

    lab_test! {
        fn vlans_of_one_uplink_split_plain() {
            over_vlans(Variant { device: "tap", threads: "split", offload: [false, false] });
        }
    }

    lab_test! {
        fn tap_uplinks_single() {
            over_taps(Variant { device: "tap", ..Variant::PLAIN });
        }
    }

    lab_test! {
        fn tap_uplinks_split_plain() {
            over_taps(Variant { device: "tap", threads: "split", offload: [false, false] });
        }
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        tap_split_plain: ("tap", "split", [false, false]),
        veth_single_plain: ("veth", "single", [false, false]),
        veth_split: ("veth", "split", [true, true]),
    }
}

lab_test! {
    fn ports_and_services_are_each_vrfs_own() {
        let twins = Twins::new(Variant::PLAIN);
        for (here, there) in twins.pairs() {
            for family in FAMILIES {
                let listeners = [here.web, there.web].map(|web| {
                    let server = family.nos_port(there.only);
                    (tcp::EchoServer::start(web, server).unwrap(), udp::EchoServer::start(web, server).unwrap())
                });
                let port = family.nos_port(there.only);
                tcp::exchange(there.external, None, port, b"x", LIMIT).unwrap();
                udp::exchange(there.external, None, port, b"x", LIMIT).unwrap();
                let what = format!("{port} in {}", here.vrf);
                assert_refused(tcp::connect(here.external, None, port, LIMIT), &what);
                assert_refused(udp::exchange(here.external, None, port, b"x", LIMIT), &what);
                drop(listeners);
                // And its twin here may not send from it.
                let server = udp::EchoServer::start(here.external, family.external_port(8053)).unwrap();
                let foreign = udp::exchange(here.web, Some(port), server.address(), b"x", LIMIT);
                assert!(foreign.is_err(), "{what}");
                assert_eq!(server.peers(), []);
            }
        }
        let [default, red] = twins.sides();
        for family in FAMILIES {
            let page = family.nos_port(8080);
            assert_refused(tcp::connect(default.external, None, page, LIMIT), "a page of the other VRF");
            let mut stream = tcp::connect(red.external, None, page, LIMIT).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: nos\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            // Nothing of what others do.
            assert!(answer.contains("\"received\":") && !answer.contains("drops"), "{answer}");
        }
        let silent = edited(&twins.config, "vrf = \"red\"\nservices", "vrf = \"red\"\nping = false\nservices");
        twins.daemon.reload(&silent);
        for family in FAMILIES {
            let reply = |from| ping(from, family.nos, 1, std::time::Duration::from_millis(200)).unwrap();
            assert!(!reply(red.external)[0].is_reply());
            assert!(reply(default.external)[0].is_reply());
        }
    }
}

lab_test! {
    fn show_names_vrfs() {
        let twins = Twins::new(Variant::PLAIN);
        for side in twins.sides() {
            for family in FAMILIES {
                assert!(ping(side.external, family.nos, 1, LIMIT).unwrap()[0].is_reply());
            }
        }
        let (ports, routes, neighbors) = (twins.daemon.ports(), twins.daemon.routes(), twins.daemon.neighbors());
        let mut numbers = Vec::new();
        for side in twins.sides() {
            let link = twins.daemon.uplink(side.uplink).link;
            assert_eq!(link.vrf_name, side.vrf);
            numbers.push(link.vrf);
            for name in side.containers {
                let attachment = twins.daemon.attachment(name);
                assert_eq!((attachment.link.vrf, attachment.link.vrf_name.as_str()), (link.vrf, side.vrf));
            }
            let mut owners: Vec<_> = ports.iter().filter(|row| row.vrf_name == side.vrf).map(|row| row.owner.as_str()).collect();
            owners.sort_unstable();
            owners.dedup();
            let mut expected = vec!["NOS", side.containers[0], side.containers[1]];
            expected.sort_unstable();
            assert_eq!(owners, expected);
            let of_vrf: Vec<_> = routes.iter().filter(|row| row.vrf_name == side.vrf).collect();
            assert!(of_vrf.iter().all(|row| row.next_hops.iter().all(|hop| hop.uplink == side.uplink)));
            assert!(of_vrf.iter().any(|row| row.prefix.prefix_len() == 0 && row.vrf == link.vrf));
            for family in FAMILIES {
                let known: Vec<_> = neighbors
                    .iter()
                    .filter(|row| row.address == family.external && row.vrf_name == side.vrf)
                    .map(|row| (row.uplink.as_str(), row.mac))
                    .collect();
                assert_eq!(known, [(side.uplink, Some(side.mac))]);
            }
        }
        assert_eq!(numbers[0].0, 0);
        assert_ne!(numbers[1].0, 0);
        let mut command = Command::new(program());
        command.args(["show", "routes", "--control"]).arg(twins.daemon.files().control());
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let of = |vrf: &str| text.lines().filter(|line| line.starts_with(vrf)).count();
        assert!(of("default") > 0 && of("default") == of("red"), "{text}");
    }
}

/// What crosses the wire of an outsider.
struct Outside {
    wire: Wire,
    macs: (MacAddr, MacAddr),
}

impl Outside {
    fn of(twins: &Twins, side: Side<'_>) -> Self {
        let nos = twins.daemon.uplink(side.uplink).link.mac;
        Self {
            wire: Wire::open(side.external, side.interface),
            macs: (side.mac, nos),
        }
    }

    fn udp(&self, family: Family, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        wire::udp(
            wire::ip(self.macs, family.external, family.nos),
            ports,
            payload,
        )
    }
}

/// A datagram as two fragments, with the same identification always.
fn halves(frame: &[u8], family: Family) -> [Vec<u8>; 2] {
    const FIRST: usize = 16;
    let header = 14 + if family.is_v6() { 40 } else { 20 };
    let (start, rest) = frame.split_at(header);
    let (first, later) = rest.split_at(FIRST);
    [(first, 0, true), (later, FIRST, false)].map(|(part, offset, more)| {
        let mut half = start.to_vec();
        let offset = u16::try_from(offset).unwrap();
        if family.is_v6() {
            let length = u16::try_from(8 + part.len()).unwrap();
            half[18..20].copy_from_slice(&length.to_be_bytes());
            let next = std::mem::replace(&mut half[20], 44);
            half.extend([next, 0]);
            half.extend((offset | u16::from(more)).to_be_bytes());
            half.extend([0, 0, 0, 7]);
        } else {
            let length = u16::try_from(20 + part.len()).unwrap();
            half[16..18].copy_from_slice(&length.to_be_bytes());
            half[18..20].copy_from_slice(&[0, 7]);
            let flags = (offset / 8) | if more { 0x2000 } else { 0 };
            half[20..22].copy_from_slice(&flags.to_be_bytes());
            wire::fix_ipv4_checksum(&mut half);
        }
        half.extend(part);
        half
    })
}

mod fragments_of_the_same_name_are_never_mixed {
    use super::*;

    fn scenario(variant: Variant) {
        keep_apart(&Twins::new(variant));
    }

    lab_test! {
        fn tap_uplinks() {
            let variant = Variant { device: "tap", ..Variant::PLAIN };
            if variant.is_possible() {
                keep_apart(&Twins::with(variant, Uplinks::Taps));
            }
        }
    }

    fn keep_apart(twins: &Twins) {
        for family in FAMILIES {
            let sides = twins.sides();
            let sockets = sides.map(|side| {
                let open = || {
                    let socket = UdpSocket::bind(family.nos_port(20053)).unwrap();
                    socket.set_read_timeout(Some(LIMIT)).unwrap();
                    socket
                };
                side.web.run(open).unwrap()
            });
            let outside = sides.map(|side| Outside::of(twins, side));
            let payloads = [[0xa0; 40], [0xb0; 40]];
            let datagrams = [0, 1].map(|place: usize| {
                let frame = outside[place].udp(family, (5353, 20053), &payloads[place]);
                halves(&frame, family)
            });
            // The later one of red comes before any first; then the firsts, then the other later one.
            for (place, half) in [(1, 1), (0, 0), (1, 0), (0, 1)] {
                outside[place].wire.send(&datagrams[place][half]);
                if (place, half) == (1, 1) {
                    await_that("the fragment is held", || {
                        let counters = twins.daemon.counters();
                        let held = counters.stages.iter().any(|stage| stage.held > 0);
                        held.then_some(()).ok_or_else(|| "it is not".to_owned())
                    });
                }
            }
            for (socket, expected) in sockets.iter().zip(payloads) {
                let mut buffer = [0; 100];
                let length = socket.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..length], expected);
            }
        }
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        veth_split: ("veth", "split", [true, true]),
    }
}

lab_test! {
    fn a_flood_in_one_vrf_leaves_errors_to_another() {
        let twins = Twins::new(Variant::PLAIN);
        let [here, there] = twins.sides();
        for family in FAMILIES {
            let outside = Outside::of(&twins, here);
            for _ in 0..100 {
                outside.wire.send(&outside.udp(family, (5000, 30_000), b"?"));
            }
            // All that the peer gets at once.
            let mut refused = 0;
            outside.wire.await_frame(LIMIT, |seen| {
                refused += usize::from(matches!(seen.icmp(), Some((3, 3) | (1, 4))));
                (refused == 6).then_some(())
            });
            // The host of the same address in the other VRF has all of its own still.
            let closed = udp::exchange(there.external, None, family.nos_port(30_001), b"x", LIMIT);
            assert_refused(closed, &format!("a closed port in {}", there.vrf));
        }
    }
}

lab_test! {
    fn a_links_mtu_is_told_in_its_vrf_alone() {
        let twins = Twins::new(Variant::PLAIN);
        twins.daemon.reload(&edited(&twins.config, "mtu = 1500", "mtu = 1400"));
        let [default, red] = twins.sides();
        for family in FAMILIES {
            let wire = Wire::open(red.external, red.interface);
            let there = Wire::open(default.external, default.interface);
            let sent = |side: Side<'_>| {
                let server = udp::EchoServer::start(side.web, family.nos_port(20053)).unwrap();
                let once = std::time::Duration::from_millis(300);
                // The first is too long where the link is narrow; the kernel is told, and cuts the next.
                let tries = (0..20).position(|_| {
                    udp::exchange(side.external, None, server.address(), &[7; 1430], once).is_ok()
                });
                tries.expect("datagrams arrive")
            };
            assert_eq!(sent(default), 0);
            assert!(sent(red) > 0);
            let too_big = |seen: &wire::Seen| matches!(seen.icmp(), Some((3, 4) | (2, 0)));
            wire.await_frame(LIMIT, |seen| too_big(seen).then_some(()));
            assert!(!there.seen().iter().any(too_big));
        }
    }
}

/// A connection from outside to a server in a container, that is asked now and then.
struct Kept {
    stream: std::net::TcpStream,
    _server: tcp::EchoServer,
}

impl Kept {
    fn open(side: Side<'_>, family: Family, port: u16) -> Self {
        let server = tcp::EchoServer::start(side.web, family.nos_port(port)).unwrap();
        let stream = tcp::connect(side.external, None, family.nos_port(port), LIMIT).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Self {
            stream,
            _server: server,
        }
    }

    fn ask(&mut self) {
        self.stream.write_all(&[7; 1000]).unwrap();
        self.stream.read_exact(&mut [0; 1000]).unwrap();
    }
}

/// What the configuration says of a VRF: all that is in `default` moves to it.
fn moved(config: &str, to: &str) -> String {
    let mut out = String::new();
    for (place, text) in config.split("[[").enumerate() {
        if place > 0 {
            out.push_str("[[");
        }
        out.push_str(text.trim_end());
        out.push('\n');
        if place > 0 && !text.contains("vrf = ") {
            out.push_str(&format!("vrf = \"{to}\"\n"));
        }
    }
    out
}

lab_test! {
    fn a_reload_moves_a_network_to_another_vrf_while_traffic_flows() {
        let twins = Twins::new(Variant::PLAIN);
        let [default, red] = twins.sides();
        let number = |uplink: &str| twins.daemon.uplink(uplink).link.vrf;
        let before = number("up1");
        let mut kept: Vec<_> = FAMILIES
            .iter()
            .flat_map(|&family| [Kept::open(default, family, 20100), Kept::open(red, family, 20100)])
            .collect();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // In the other VRF nothing is lost meanwhile.
            let pings = scope.spawn(|| {
                let mut lost = 0;
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) || sent < 50 {
                    for family in FAMILIES {
                        let limit = std::time::Duration::from_secs(5);
                        lost += usize::from(!ping(red.external, family.nos, 1, limit).unwrap()[0].is_reply());
                        sent += 1;
                    }
                }
                (lost, sent)
            });
            for to in ["blue", "default", "green"] {
                let text = match to {
                    "default" => twins.config.clone(),
                    to => moved(&twins.config, to),
                };
                twins.daemon.reload(&text);
                kept.iter_mut().for_each(Kept::ask);
                assert_eq!(twins.daemon.uplink("up0").link.vrf_name, to);
                assert_eq!(twins.daemon.attachment("web").link.vrf_name, to);
                assert_eq!(number("up1"), before, "ids are stable");
                for family in FAMILIES {
                    udp::exchange(default.external, None, family.nos_port(7), b"x", LIMIT).unwrap();
                    let server = udp::EchoServer::start(default.external, family.external_port(8053)).unwrap();
                    udp::exchange(default.web, None, server.address(), b"x", LIMIT).unwrap();
                    assert_eq!(server.peers().len(), 1);
                }
            }
            stop.store(true, Ordering::Relaxed);
            let (lost, sent) = pings.join().unwrap();
            assert_eq!(lost, 0, "of {sent}");
        });
    }
}

lab_test! {
    fn two_uplinks_swap_vrfs_and_their_containers_stay() {
        let twins = Twins::new(Variant::PLAIN);
        let [default, red] = twins.sides();
        let swapped = edited(&twins.config, "device = \"packet:hx\"\n", "device = \"packet:hx\"\nvrf = \"red\"\n");
        let swapped = edited(&swapped, "vrf = \"red\"\nmtu = 1500\n", "mtu = 1500\n");
        twins.daemon.reload(&swapped);
        for family in FAMILIES {
            for (outside, inside) in [(default, red), (red, default)] {
                let server = tcp::EchoServer::start(inside.web, family.nos_port(20080)).unwrap();
                tcp::exchange(outside.external, None, server.address(), &[7; 50_000], LIMIT).unwrap();
                assert_eq!(server.peers().len(), 1);
                drop(server);
                let server = tcp::EchoServer::start(outside.external, family.external_port(8053)).unwrap();
                tcp::exchange(inside.web, None, server.address(), &[7; 50_000], LIMIT).unwrap();
            }
        }
    }
}

lab_test! {
    fn a_move_that_cannot_be_made_is_undone() {
        let twins = Twins::new(Variant::PLAIN);
        let [default, red] = twins.sides();
        // Somebody else's interface is where web shall have its own after the move.
        default.web.add_bridge("eth7").unwrap();
        let text = moved(&twins.config, "blue");
        let text = edited(&text, "name = \"web\"\n", "name = \"web\"\ninterface = \"eth7\"\n");
        twins.daemon.reload(&text);
        let attachment = twins.daemon.attachment("web");
        assert_eq!(attachment.link.vrf_name, "default");
        assert_eq!(attachment.link.state, LinkState::Up);
        assert!(attachment.link.reason.is_some());
        assert_eq!(twins.daemon.uplink("up0").link.vrf_name, "default");
        for side in [default, red] {
            for family in FAMILIES {
                let server = tcp::EchoServer::start(side.web, family.nos_port(20080)).unwrap();
                tcp::exchange(side.external, None, server.address(), b"x", LIMIT).unwrap();
            }
        }
        // Once it is out of the way, all of it is done.
        default.web.delete_link("eth7").unwrap();
        await_that("web is in blue", || {
            let vrf = twins.daemon.attachment("web").link.vrf_name;
            (vrf == "blue").then_some(()).ok_or(vrf)
        });
        let server = tcp::EchoServer::start(default.web, V4.nos_port(20080)).unwrap();
        tcp::exchange(default.external, None, server.address(), b"x", LIMIT).unwrap();
    }
}

lab_test! {
    fn a_vrf_that_is_not_there_is_refused_by_reload_and_nothing_changes() {
        let twins = Twins::new(Variant::PLAIN);
        twins.daemon.reload(&edited(&twins.config, "vrf = \"red\"\nmtu = 1500\n", "vrf = \"rde\"\nmtu = 1500\n"));
        let log = twins.daemon.log();
        assert!(log.contains("no uplink is in VRF \"red\"; did you mean \"rde\"?"), "{log}");
        assert_eq!(twins.daemon.uplink("up1").link.vrf_name, "red");
        for side in twins.sides() {
            assert!(ping(side.external, V4.nos, 1, LIMIT).unwrap()[0].is_reply());
        }
    }
}
