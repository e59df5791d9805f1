//! Uplinks that are VLANs of one interface.
//!
//! That nothing of one is seen in another is in `tests/vrf`, whose networks can be VLANs; what devices do
//! with tags is in `tests/device`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "vrf/network.rs"]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod network;
mod support;

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::atomic::AtomicU64;

use network::{Side, Twins, Uplinks, VLANS};
use nos_relay::control::api::snapshot::LinkState;
use nos_relay::lab::testbed::ping::ping;
use nos_relay::lab::testbed::tcp::{Direction, Transfer};
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp, tun_access, udp, veth};
use nos_shim::arp::{Arp, Operation};
use nos_shim::ident::MacAddr;
use pcap_file::pcapng::{Block, PcapNgParser};
use support::daemon::{Daemon, LIMIT, await_that, program};
use support::lab_test;
use support::scenario::{FAMILIES, Family, V4, Variant, edited};
use support::switch::{Access, Switch};
use support::traffic::{Flood, WINDOW};
use support::wire::{self, Wire};

const SPLIT: Variant = Variant {
    threads: "split",
    ..Variant::PLAIN
};

fn twins(variant: Variant) -> Option<Twins> {
    edited_twins(variant, |config| config)
}

fn edited_twins(variant: Variant, edit: impl FnOnce(String) -> String) -> Option<Twins> {
    Twins::try_edited(variant, Uplinks::Vlans, &[], edit)
}

/// Datagrams both ways between each network and its container, of which none may be lost.
fn floods(twins: &Twins) -> Vec<Flood> {
    let flood = |(side, family): (Side<'_>, Family)| {
        let any = |port| SocketAddr::from((family.any, port));
        let to = family.nos_port(20_100);
        Flood::start((side.external, any(0)), (side.web, any(to.port()), to))
    };
    twins.sides().into_iter().zip(FAMILIES).map(flood).collect()
}

fn assert_nothing_lost(floods: Vec<Flood>) {
    for flood in floods {
        assert!(flood.finish() > WINDOW);
    }
}

fn assert_reachable(twins: &Twins) {
    for side in twins.sides() {
        for family in FAMILIES {
            let echoes = ping(side.external, family.nos, 1, LIMIT).unwrap();
            assert!(echoes[0].is_reply(), "{} of {}", family.nos, side.vrf);
        }
    }
}

/// Frames that an uplink has dropped as none of its VLAN's. There may be some from the start, until all
/// uplinks were open.
fn foreign(daemon: &Daemon, uplink: &str) -> u64 {
    let drops = daemon.uplink(uplink).link.drops;
    drops.get("vlan").copied().unwrap_or_default()
}

fn await_foreign(daemon: &Daemon, uplink: &str, wanted: u64) {
    await_that("frames of no uplink are counted", || {
        let count = foreign(daemon, uplink);
        (count == wanted)
            .then_some(())
            .ok_or_else(|| format!("{uplink}: {count}"))
    });
}

fn await_states(twins: &Twins, wanted: LinkState) {
    for side in twins.sides() {
        await_that("both uplinks are alike", || {
            let link = twins.daemon.uplink(side.uplink).link;
            (link.state == wanted)
                .then_some(())
                .ok_or_else(|| format!("{link:?}"))
        });
    }
}

/// How often the kernel is kept from an interface; `None` where nobody can tell.
fn takeovers(host: &LabNamespace, interface: &str) -> Option<usize> {
    let index = host.link(interface).unwrap().unwrap().index;
    let list = || Command::new("nft").args(["list", "ruleset"]).output();
    let Ok(output) = host.run(list).unwrap() else {
        support::skip("nft is not installed");
        return None;
    };
    let rules = String::from_utf8_lossy(&output.stdout).into_owned();
    let table = format!("table netdev nos-relay-{index} ");
    Some(rules.matches(&table).count())
}

/// The configuration with a TAP in place of a VLAN.
fn elsewhere(config: &str, vlan: u16, tap: &str) -> String {
    let place = format!("packet:hx\"\nvlan = {vlan}\n");
    edited(config, &place, &format!("tap:{tap}\"\n"))
}

/// Another uplink of the interface: a VLAN of it, or what has no tag.
fn another(name: &str, vlan: Option<u16>) -> String {
    let vlan = vlan.map_or_else(String::new, |vlan| format!("vlan = {vlan}\n"));
    format!(
        "\n[[uplink]]\nname = \"{name}\"\ndevice = \"packet:hx\"\n{vlan}vrf = \"{name}\"\n\
         addresses = [\"203.0.113.1/24\"]\n"
    )
}

lab_test! {
    fn uplinks_come_and_go_beside_the_traffic_of_others() {
        for variant in [Variant::PLAIN, SPLIT] {
            let Some(twins) = twins(variant) else { return };
            assert_reachable(&twins);
            let before = ["up0", "up1"].map(|uplink| foreign(&twins.daemon, uplink));
            let floods = floods(&twins);
            for more in [
                another("lower", Some(5)),
                another("lower", Some(5)) + &another("higher", Some(4094)),
                another("plain", None) + &another("higher", Some(4094)),
                another("plain", None),
                another("higher", Some(911)),
                String::new(),
            ] {
                twins.daemon.reload(&format!("{}{more}", twins.config));
                assert_reachable(&twins);
            }
            assert_nothing_lost(floods);
            let after = ["up0", "up1"].map(|uplink| foreign(&twins.daemon, uplink));
            assert_eq!(after, before);
            twins.daemon.forget_counters();
            twins.daemon.settle();
        }
    }
}

fn tagged(frame: &[u8], tags: &[[u8; 4]]) -> Vec<u8> {
    [&frame[..12], tags.as_flattened(), &frame[12..]].concat()
}

lab_test! {
    fn frames_of_no_uplink_are_dropped_and_counted_once() {
        let Some(twins) = twins(Variant::PLAIN) else { return };
        assert_reachable(&twins);
        let trunk = Wire::open(&twins.switch.as_ref().unwrap().namespace, "trunk");
        let mac = twins.topology.device.link("hx").unwrap().unwrap().mac.unwrap();
        let of_x = (Topology::external_mac(), mac);
        let frame = wire::udp(wire::ip(of_x, V4.external, V4.nos), (9000, 20_100), b"foreign");
        let foreigners: [&[[u8; 4]]; 5] = [
            &[],
            &[[0x81, 0, 0, 0]],
            &[[0x81, 0, 0, 5]],
            &[[0x88, 0xa8, 0x03, 0x8e]],
            &[[0x88, 0xa8, 0, 7], [0x81, 0, 0x03, 0x8e]],
        ];
        let send_all = || foreigners.iter().for_each(|tags| trunk.send(&tagged(&frame, tags)));
        let [up0, up1] = ["up0", "up1"].map(|uplink| foreign(&twins.daemon, uplink));
        send_all();
        await_foreign(&twins.daemon, "up0", up0 + 5);
        // A second tag hides a frame of the uplink's.
        let hidden = twins.daemon.dropped("nos", "vlan");
        trunk.send(&tagged(&frame, &[[0x81, 0, 0x03, 0x8e], [0x81, 0, 0, 7]]));
        await_that("the frame is dropped", || {
            let dropped = twins.daemon.dropped("nos", "vlan");
            (dropped == hidden + 1).then_some(()).ok_or_else(|| dropped.to_string())
        });
        // An uplink without a VLAN gets what has no tag, and counts the rest.
        twins.daemon.reload(&format!("{}{}", twins.config, another("plain", None)));
        send_all();
        await_foreign(&twins.daemon, "plain", 3);
        twins.daemon.reload(&format!("{}{}", twins.config, another("lower", Some(5))));
        send_all();
        await_foreign(&twins.daemon, "lower", 4);
        let after = ["up0", "up1"].map(|uplink| foreign(&twins.daemon, uplink));
        assert_eq!(after, [up0 + 5, up1]);
        twins.daemon.forget_counters();
        twins.daemon.settle();
    }
}

lab_test! {
    fn an_interface_that_is_down_or_goes_takes_all_its_uplinks_along() {
        let Some(twins) = twins(Variant::PLAIN) else { return };
        let (device, switch) = (&twins.topology.device, twins.switch.as_ref().unwrap());
        await_states(&twins, LinkState::Up);
        device.set_down("hx").unwrap();
        await_states(&twins, LinkState::Down);
        device.set_up("hx").unwrap();
        await_states(&twins, LinkState::Up);
        switch.namespace.wait_operational("trunk", LIMIT).unwrap();
        assert_reachable(&twins);
        device.delete_link("hx").unwrap();
        await_states(&twins, LinkState::Waiting);
        veth((device, "hx"), (&switch.namespace, "other")).unwrap();
        await_states(&twins, LinkState::Up);
        assert!(takeovers(device, "hx").is_none_or(|count| count == 1));
    }
}

lab_test! {
    fn the_interface_is_the_kernels_again_once_its_last_uplink_has_gone() {
        if let Err(error) = tun_access() {
            support::skip(&format!("/dev/net/tun cannot be opened: {error}"));
            return;
        }
        let Some(twins) = twins(Variant::PLAIN) else { return };
        let device = &twins.topology.device;
        let Some(one) = takeovers(device, "hx") else {
            return;
        };
        assert_eq!(one, 1);
        // Each of them goes once, and the other one keeps the kernel off.
        for vlan in VLANS {
            twins.daemon.reload(&elsewhere(&twins.config, vlan, "t0"));
            assert_eq!(takeovers(device, "hx"), Some(1), "without {vlan}");
            twins.daemon.reload(&twins.config);
            assert_eq!(takeovers(device, "hx"), Some(1), "with {vlan} again");
        }
        let one = elsewhere(&twins.config, VLANS[0], "t0");
        twins.daemon.reload(&elsewhere(&one, VLANS[1], "t1"));
        assert_eq!(takeovers(device, "hx"), Some(0));
        twins.daemon.reload(&twins.config);
        assert_eq!(takeovers(device, "hx"), Some(1));
        assert_reachable(&twins);
    }
}

lab_test! {
    fn a_process_that_takes_over_goes_on_with_all_vlans() {
        let Some(mut twins) = twins(SPLIT) else { return };
        assert_reachable(&twins);
        let floods = floods(&twins);
        for _ in 0..2 {
            let next = twins.daemon.replaced(&twins.topology.device);
            twins.daemon = next;
            assert_reachable(&twins);
        }
        assert_nothing_lost(floods);
        // Each gets its own frames still, and one of them the rest.
        let trunk = Wire::open(&twins.switch.as_ref().unwrap().namespace, "trunk");
        let before = foreign(&twins.daemon, "up0");
        let frame = [&[0xff; 12][..], &[0x88, 0xb5], &[0; 46]].concat();
        trunk.send(&tagged(&frame, &[[0x81, 0, 0, 5]]));
        await_foreign(&twins.daemon, "up0", before + 1);
        assert_eq!(foreign(&twins.daemon, "up1"), 0);
        // Also once the other one is another VLAN.
        let vlan = format!("vlan = {}\n", VLANS[0]);
        twins.daemon.reload(&edited(&twins.config, &vlan, "vlan = 4000\n"));
        trunk.send(&tagged(&frame, &[[0x81, 0, 0, 5]]));
        // So are those of the VLAN that it was.
        await_that("frames of no uplink are counted", || {
            let count = foreign(&twins.daemon, "up1");
            (count > 0).then_some(()).ok_or_else(|| count.to_string())
        });
        let red = twins.sides()[1];
        assert!(ping(red.external, V4.nos, 1, LIMIT).unwrap()[0].is_reply());
    }
}

/// What has left or come by an uplink: frames and octets.
fn counted(daemon: &Daemon, uplink: &str, outbound: bool) -> (u64, u64) {
    let link = daemon.uplink(uplink).link;
    let traffic = if outbound { link.tx } else { link.rx };
    (traffic.packets, traffic.octets)
}

lab_test! {
    fn super_frames_keep_their_offload() {
        const OCTETS: u64 = 32 << 20;
        for variant in [Variant::PLAIN, SPLIT] {
            let Some(twins) = twins(variant) else { return };
            for (side, family) in twins.sides().into_iter().zip(FAMILIES) {
                for direction in [Direction::Upload, Direction::Download] {
                    let outbound = direction == Direction::Download;
                    let before = counted(&twins.daemon, side.uplink, outbound);
                    let transfer = Transfer {
                        client: side.external,
                        server: side.web,
                        listen: family.nos_port(20_200),
                        connect: family.nos_port(20_200),
                        source: None,
                        direction,
                        octets: OCTETS,
                        limit: LIMIT * 3,
                    };
                    assert_eq!(transfer.run(&AtomicU64::new(0)).unwrap().octets, OCTETS);
                    let after = counted(&twins.daemon, side.uplink, outbound);
                    let (packets, octets) = (after.0 - before.0, after.1 - before.1);
                    assert!(octets > OCTETS && octets / packets > 4000, "{direction:?}: {octets} in {packets}");
                }
                let link = twins.daemon.uplink(side.uplink).link;
                assert!(link.refused.is_empty(), "{link:?}");
                assert!(link.offload.iter().any(|kind| kind == "tso4"), "{link:?}");
                assert!(!link.offload.iter().any(|kind| kind == "tunnel"), "{link:?}");
            }
            twins.daemon.settle();
        }
    }
}

lab_test! {
    fn packets_as_long_as_the_interfaces_mtu_pass_whole() {
        let Some(twins) = twins(Variant::PLAIN) else { return };
        for side in twins.sides() {
            for family in FAMILIES {
                let headers = if family.is_v6() { 48 } else { 28 };
                let wires = [Wire::open(side.external, side.interface), Wire::open(side.web, "eth0")];
                let server = udp::EchoServer::start(side.web, family.nos_port(20_300)).unwrap();
                udp::exchange(side.external, None, server.address(), &vec![7; 1500 - headers], LIMIT).unwrap();
                for wire in &wires {
                    wire.await_frame(LIMIT, |seen| (seen.ip.len() == 1500 && seen.protocol == wire::UDP).then_some(()));
                }
            }
        }
    }
}

lab_test! {
    fn an_uplink_may_have_a_mac_address_of_its_own() {
        let mac = MacAddr([2, 0, 0x5e, 0x10, 0, 7]);
        let red = format!("vlan = {}\n", VLANS[1]);
        let with_mac = |config: String| edited(&config, &red, &format!("{red}mac = \"{mac}\"\n"));
        let Some(twins) = edited_twins(Variant::PLAIN, with_mac) else { return };
        assert_reachable(&twins);
        let own = twins.topology.device.link("hx").unwrap().unwrap().mac.unwrap();
        for (side, wanted) in twins.sides().into_iter().zip([own, mac]) {
            assert_eq!(twins.daemon.uplink(side.uplink).link.mac, wanted);
            let wire = Wire::open(side.external, side.interface);
            udp::exchange(side.external, None, V4.nos_port(7), b"x", LIMIT).unwrap();
            wire.await_frame(LIMIT, |seen| (seen.source_mac == wanted && seen.protocol == wire::UDP).then_some(()));
        }
    }
}

lab_test! {
    fn arp_and_groups_are_each_uplinks_own() {
        let Some(twins) = twins(Variant::PLAIN) else { return };
        for (number, (here, there)) in (3_u8..).zip(twins.pairs()) {
            // One that is left is told of for a while.
            let group = [239, 1, 2, number];
            let listen = |side: Side<'_>| Wire::open(side.external, side.interface);
            let (near, far) = (listen(here), listen(there));
            let question = [
                &[0xff; 6][..],
                &near.mac().0,
                &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
                &near.mac().0,
                &[203, 0, 113, 77],
                &[0; 6],
                &[203, 0, 113, 1],
            ]
            .concat();
            near.send(&question);
            near.await_octets(LIMIT, |frame| {
                Arp::parse(frame).ok().filter(|arp| arp.operation == Operation::Reply)
            });
            let vlan = VLANS[usize::from(here.vrf == "red")];
            let joined = format!("vlan = {vlan}\ngroups = [\"{}\"]\n", IpAddr::from(group));
            twins.daemon.reload(&edited(&twins.config, &format!("vlan = {vlan}\n"), &joined));
            let is_about = |frame: &[u8], octets: [u8; 4]| frame.windows(4).any(|part| part == octets);
            near.await_octets(LIMIT, |frame| is_about(frame, group).then_some(()));
            twins.daemon.reload(&twins.config);
            // What would have come is here before an answer to what is sent now.
            udp::exchange(there.external, None, V4.nos_port(7), b"x", LIMIT).unwrap();
            let frames = far.frames();
            let strange = |frame: &&Vec<u8>| is_about(frame, group) || is_about(frame, [203, 0, 113, 77]);
            assert_eq!(frames.iter().find(strange), None, "of {}", here.vrf);
        }
    }
}

/// What is in a capture.
fn recorded(path: &std::path::Path) -> Vec<Vec<u8>> {
    let octets = std::fs::read(path).unwrap();
    let (mut rest, mut parser) = PcapNgParser::new(&octets).unwrap();
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let (next, block) = parser.next_block(rest).unwrap();
        rest = next;
        if let Block::EnhancedPacket(block) = block {
            frames.push(block.data.to_vec());
        }
    }
    frames
}

lab_test! {
    fn show_and_captures_tell_the_vlan() {
        let directory = tempfile::tempdir().unwrap();
        let files = VLANS.map(|vlan| directory.path().join(vlan.to_string()));
        let capture = |config: String| {
            let capture = |config: String, (vlan, file): (u16, &std::path::PathBuf)| {
                let key = format!("vlan = {vlan}\n");
                edited(&config, &key, &format!("{key}capture = \"{}\"\n", file.display()))
            };
            VLANS.into_iter().zip(&files).fold(config, capture)
        };
        let Some(twins) = edited_twins(Variant::PLAIN, capture) else { return };
        assert_reachable(&twins);
        for (side, vlan) in twins.sides().into_iter().zip(VLANS) {
            let uplink = twins.daemon.uplink(side.uplink);
            assert_eq!((uplink.vlan, uplink.link.interface.as_str()), (Some(vlan), "hx"));
            assert!(uplink.link.rx.packets > 0 && uplink.link.tx.packets > 0);
        }
        let mut command = Command::new(program());
        command.args(["show", "counters", "--control"]).arg(twins.daemon.files().control());
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        for vlan in VLANS {
            assert!(text.contains(&format!("vlan {vlan}")), "{text}");
        }
        twins.daemon.reload(&twins.config.replace("capture = ", "# "));
        for (file, vlan) in files.iter().zip(VLANS) {
            let frames = recorded(file);
            let [high, low] = vlan.to_be_bytes();
            assert!(frames.len() > 4);
            assert!(frames.iter().all(|frame| frame[12..16] == [0x81, 0, high, low]));
        }
    }
}

/// A NOS with two VLANs, each with a container.
fn site(number: u8, interface: &str, containers: [&LabNamespace; 2]) -> String {
    let one = |(vlan, container): (u16, &LabNamespace)| {
        format!(
            r#"
[[uplink]]
name = "up{vlan}"
device = "packet:{interface}"
vlan = {vlan}
vrf = "v{vlan}"
addresses = ["203.0.113.{number}/24", "2001:db8:1::{number}/64"]

[[container]]
name = "c{vlan}"
netns = "{netns}"
device = "veth"
vrf = "v{vlan}"
tcp = "20000-20999"
udp = "20000-20999"
ephemeral = "40000-44999"
"#,
            netns = container.path().display()
        )
    };
    VLANS.into_iter().zip(containers).map(one).collect()
}

lab_test! {
    fn two_of_us_talk_by_the_same_vlans() {
        let topology = Topology::new(&["a", "b", "c", "d"]).unwrap();
        let [a, b, c, d] = &topology.containers[..] else { unreachable!() };
        let near = Daemon::start(&topology.device, &site(1, "hx", [a, b]));
        let far = Daemon::start(&topology.external, &site(2, "xh", [c, d]));
        for family in FAMILIES {
            let servers = [c, d].map(|at| tcp::EchoServer::start(at, family.external_port(20_080)).unwrap());
            for (number, from) in [a, b].into_iter().enumerate() {
                let before = servers.each_ref().map(|server| server.peers().len());
                let address = servers[number].address();
                tcp::exchange(from, None, address, &vec![7; 200_000], LIMIT).unwrap();
                let mut expected = before;
                expected[number] += 1;
                assert_eq!(servers.each_ref().map(|server| server.peers().len()), expected);
            }
        }
        let transfer = Transfer {
            client: a,
            server: c,
            listen: V4.external_port(20_200),
            connect: V4.external_port(20_200),
            source: None,
            direction: Direction::Upload,
            octets: 32 << 20,
            limit: LIMIT * 3,
        };
        transfer.run(&AtomicU64::new(0)).unwrap();
        let (packets, octets) = counted(&far, "up910", false);
        assert!(octets / packets > 4000, "{octets} in {packets}");
        for daemon in [near, far] {
            daemon.settle();
        }
    }
}

lab_test! {
    fn a_tap_may_be_one_vlan() {
        if let Err(error) = tun_access() {
            support::skip(&format!("/dev/net/tun cannot be opened: {error}"));
            return;
        }
        let topology = Topology::new(&["web"]).unwrap();
        let (device, outsider) = (&topology.device, LabNamespace::new("Y").unwrap());
        let config = format!(
            "[[uplink]]\nname = \"up0\"\ndevice = \"tap:tx\"\nvlan = 910\naddresses = [\"198.51.100.1/24\"]\n\
             [[container]]\nname = \"web\"\nnetns = \"{}\"\ndevice = \"tap\"\ntcp = \"20000-20999\"\n",
            topology.containers[0].path().display()
        );
        device.sysctl("net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let daemon = Daemon::start(device, &config);
        let port = Access { vlan: 910, priority: 3, host: (&outsider, "yh") };
        let Some(_switch) = Switch::behind((device.clone(), "tx"), &[port]) else { return };
        outsider.add_address("yh", "198.51.100.2/24".parse().unwrap()).unwrap();
        device.wait_operational("tx", LIMIT).unwrap();
        let server = SocketAddr::from(([198, 51, 100, 1], 20_080));
        let transfer = Transfer {
            client: &outsider,
            server: &topology.containers[0],
            listen: server,
            connect: server,
            source: None,
            direction: Direction::Download,
            octets: 8 << 20,
            limit: LIMIT * 3,
        };
        transfer.run(&AtomicU64::new(0)).unwrap();
        assert_eq!(daemon.uplink("up0").vlan, Some(910));
        // What has no tag is none of its frames.
        let before = foreign(&daemon, "up0");
        Wire::open(device, "tx").send(&[&[0xff; 12][..], &[0x88, 0xb5], &[0; 46]].concat());
        await_that("the frame is counted", || {
            let count = foreign(&daemon, "up0");
            (count > before).then_some(()).ok_or_else(|| count.to_string())
        });
        daemon.settle();
    }
}

lab_test! {
    fn a_memif_may_be_one_vlan() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("memif.sock");
        let hosts = ["H1", "H2"].map(|label| LabNamespace::new(label).unwrap());
        let config = |number: u8, role: &str, vlan: u16| {
            format!(
                "[[uplink]]\nname = \"up0\"\ndevice = \"memif:{}:0\"\nmemif = {{ role = \"{role}\" }}\n\
                 vlan = {vlan}\naddresses = [\"203.0.113.{number}/24\"]\n[nos]\nservices = \"echo\"\n",
                socket.display()
            )
        };
        let one = Daemon::start(&hosts[0], &config(1, "server", 910));
        let two = Daemon::start(&hosts[1], &config(2, "client", 910));
        let known = |daemon: &Daemon| daemon.neighbors().iter().filter(|row| row.mac.is_some()).count();
        // Each announces its address as it comes; who hears it may answer, and asks in turn.
        let asked = |daemon: &Daemon| daemon.uplink("up0").link.rx.packets > 0;
        await_that("frames pass", || {
            (asked(&one) && asked(&two)).then_some(()).ok_or_else(|| format!("{} {}", known(&one), known(&two)))
        });
        assert_eq!([&one, &two].map(|daemon| foreign(daemon, "up0")), [0, 0]);
        two.reload(&config(2, "client", 911));
        await_that("frames of another VLAN are dropped", || {
            let counts = [&one, &two].map(|daemon| foreign(daemon, "up0"));
            (counts[0] > 0).then_some(()).ok_or_else(|| format!("{counts:?}"))
        });
    }
}
