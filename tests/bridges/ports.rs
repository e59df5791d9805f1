//! Interfaces that the daemon makes, and bridges that it makes or finds.

use nos_relay::control::attach::host_end_name;
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp, veth};
use nos_shim::ident::MacAddr;

use crate::support::daemon::{Daemon, Files, LIMIT, await_that};
use crate::support::lab_test;
use crate::support::requests::{at, ip};
use crate::support::scenario::{FAMILIES, Family};
use crate::support::traffic::reaches;
use crate::support::wire::Wire;
use crate::{heard, pings, uplink};

/// The bridge of a lab, and the port of it behind which there is a station that is no container.
const BRIDGE: &str = "brn";
const STATION_PORT: &str = "sp";

/// What is on the bridge: addresses of the containers, and of the station.
const WEB: [&str; 2] = ["172.31.7.2", "fd07::2"];
const DB: [&str; 2] = ["172.31.7.3", "fd07::3"];
const STATION: [&str; 2] = ["172.31.7.9", "fd07::9"];

struct Lab {
    // First, so that it is stopped while the networks are there.
    daemon: Daemon,
    topology: Topology,
    station: LabNamespace,
}

fn config(topology: &Topology) -> String {
    let container = |name: &str, at: usize, link: [&str; 2], ports: &str| {
        format!(
            r#"
[[container]]
name = "{name}"
netns = "{}"
network = "lan"
link_addresses = ["{}/24", "{}/64"]
tcp = ["{ports}"]
udp = ["{ports}"]
ephemeral = ["4{at}000-4{at}999"]
"#,
            topology.containers[at].path().display(),
            link[0],
            link[1],
        )
    };
    format!(
        r#"{}
[[network]]
name = "lan"
device = "bridge:{BRIDGE}"
{}{}"#,
        uplink(),
        container("web", 0, WEB, "20000-20999"),
        container("db", 1, DB, "21000-21999"),
    )
}

impl Lab {
    /// With a bridge that is there before, or with one that the daemon makes.
    fn new(there: bool) -> Self {
        let topology = Topology::new(&["web", "db"]).unwrap();
        if there {
            topology.device.add_bridge(BRIDGE).unwrap();
        }
        let daemon = Daemon::start(&topology.device, &config(&topology));
        let station = LabNamespace::new("S").unwrap();
        veth((&topology.device, STATION_PORT), (&station, "eth0")).unwrap();
        topology.device.join_bridge(BRIDGE, STATION_PORT).unwrap();
        for (address, length) in [(STATION[0], 24), (STATION[1], 64)] {
            let address = format!("{address}/{length}").parse().unwrap();
            station.add_address("eth0", address).unwrap();
        }
        Self {
            daemon,
            topology,
            station,
        }
    }

    fn containers(&self) -> [&LabNamespace; 2] {
        [&self.topology.containers[0], &self.topology.containers[1]]
    }

    fn external(&self) -> &LabNamespace {
        &self.topology.external
    }

    /// All that there is to talk to is reached, by the NOS and on the bridge.
    #[track_caller]
    fn assert_works(&self) {
        let [web, db] = self.containers();
        for Family { nos, external, .. } in FAMILIES {
            reaches(self.external(), web, (nos, 20080));
            reaches(self.external(), db, (nos, 21080));
            let seen = reaches(web, self.external(), (external, 8080));
            assert_eq!(seen.ip(), nos);
            // Each other, and the NOS, on the NOS's address.
            reaches(web, db, (nos, 21080));
            reaches(db, web, (nos, 20080));
            tcp::exchange(web, None, (nos, 7).into(), b"x", LIMIT).unwrap();
            pings(web, external);
        }
        for family in 0..2 {
            for (from, to, address) in [
                (web, db, DB),
                (web, &self.station, STATION),
                (&self.station, db, DB),
            ] {
                reaches(from, to, (ip(address[family]), 8080));
                pings(from, ip(address[family]));
            }
        }
    }
}

lab_test! {
    fn containers_on_a_bridge_talk_through_the_nos_and_with_one_another() {
        let lab = Lab::new(false);
        lab.assert_works();
        for (name, link) in [("web", WEB), ("db", DB)] {
            let row = lab.daemon.attachment(name);
            assert_eq!(row.link.device, format!("bridge:{BRIDGE}"), "{link:?}");
            assert!(row.link.drops.is_empty(), "{:?}", row.link.drops);
        }
        // The host has no part in it.
        let device = &lab.topology.device;
        assert_eq!(device.addresses(BRIDGE).unwrap(), []);
    }
}

lab_test! {
    fn what_is_on_the_bridge_is_no_affair_of_the_relay() {
        let lab = Lab::new(true);
        lab.assert_works();
        let frames = || heard(&lab.daemon);
        let before = frames();
        let [web, db] = lab.containers();
        reaches(web, db, (ip(DB[0]), 8080));
        reaches(&lab.station, web, (ip(WEB[1]), 8080));
        // But for questions that everybody hears.
        let heard = frames() - before;
        assert!(heard < 20, "{heard}");
        lab.daemon.settle();
    }
}

lab_test! {
    fn who_has_a_containers_mac_address_gets_nothing_by_it() {
        let lab = Lab::new(true);
        lab.assert_works();
        let row = lab.daemon.attachment("web");
        let wire = Wire::open(&lab.station, "eth0");
        let outside = Wire::open(lab.external(), Topology::EXTERNAL_INTERFACE);
        let before = lab.daemon.attachment("web").link.rx.packets;
        let mut pretended = Vec::new();
        pretended.extend(row.link.mac.0);
        pretended.extend(row.container_mac.0);
        pretended.extend(datagram());
        wire.send(&pretended);
        // The bridge learns where that is, and forgets it by the container's next frame.
        lab.assert_works();
        let seen = outside.seen();
        assert!(!seen.iter().any(|seen| seen.ports() == Some((20_666, 8666))));
        assert!(lab.daemon.attachment("web").link.rx.packets > before);
        // Nor does the kernel of the host get it.
        assert_ne!(row.link.mac, MacAddr::BROADCAST);
    }
}

lab_test! {
    fn another_router_on_the_bridge_is_not_taken_for_the_way_out() {
        let lab = Lab::new(true);
        lab.assert_works();
        let wire = Wire::open(&lab.station, "eth0");
        let mac = wire.mac();
        let from = mac.link_local().octets();
        let all = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        // A router advertisement with a hop limit of 64 and a lifetime of 1,800 s.
        let advertisement = etherparse::Icmpv6Type::Unknown {
            type_u8: 134,
            code_u8: 0,
            bytes5to8: [64, 0, 7, 8],
        };
        let builder = etherparse::PacketBuilder::ethernet2(mac.0, [0x33, 0x33, 0, 0, 0, 1])
            .ipv6(from, all, 255)
            .icmpv6(advertisement);
        let mut frame = Vec::new();
        builder.write(&mut frame, &[0; 8]).unwrap();
        wire.send(&frame);
        lab.assert_works();
        let web = lab.containers()[0];
        let mut ip = std::process::Command::new("ip");
        ip.args(["-6", "route", "show", "default"]);
        let routes = web.hold(&mut ip).output().unwrap();
        let routes = String::from_utf8(routes.stdout).unwrap();
        assert_eq!(routes.lines().count(), 1, "{routes}");
        assert!(routes.contains("proto 206"), "{routes}");
        let row = lab.daemon.attachment("web");
        assert!(row.link.reason.is_none() && row.link.drops.is_empty(), "{row:?}");
    }
}

/// From the NOS's address and a port of `web` to X.
fn datagram() -> Vec<u8> {
    let builder =
        etherparse::PacketBuilder::ipv4([203, 0, 113, 1], [203, 0, 113, 2], 64).udp(20_666, 8666);
    let mut packet = vec![8, 0];
    builder.write(&mut packet, b"pretended").unwrap();
    packet
}

lab_test! {
    fn a_bridge_of_ours_goes_with_its_last_container_and_others_stay() {
        for there in [false, true] {
            let lab = Lab::new(there);
            lab.topology.device.delete_link(STATION_PORT).unwrap();
            let control = lab.daemon.files().control();
            for name in ["web", "db"] {
                assert!(lab.topology.device.link(BRIDGE).unwrap().is_some(), "{name}");
                let container = format!("\nname = \"{name}\"");
                let text = std::fs::read_to_string(lab.daemon.files().config()).unwrap();
                let (before, after) = text.split_at(text.find(&container).unwrap());
                let before = before.strip_suffix("[[container]]").unwrap();
                let after = after.find("[[container]]").map_or("", |at| &after[at..]);
                lab.daemon.forget_counters();
                lab.daemon.reload(&format!("{before}{after}"));
            }
            assert!(control.exists());
            assert_eq!(lab.topology.device.link(BRIDGE).unwrap().is_some(), there);
        }
    }
}

lab_test! {
    fn a_bridge_that_is_deleted_and_a_port_that_is_taken_off_it_are_put_back() {
        for there in [false, true] {
            let lab = Lab::new(there);
            lab.assert_works();
            let device = &lab.topology.device;
            let host_end = host_end_name("web");
            device.add_bridge("other").unwrap();
            device.join_bridge("other", &host_end).unwrap();
            let joined = || {
                let bridge = device.link(BRIDGE).unwrap().map(|link| link.index);
                let ends = ["web", "db"].map(|name| device.link(&host_end_name(name)).unwrap().unwrap());
                let all = bridge.is_some() && ends.iter().all(|end| end.controller == bridge);
                all.then_some(()).ok_or_else(|| format!("{bridge:?} {ends:?}"))
            };
            await_that("the port is back", joined);
            lab.assert_works();
            device.delete_link(BRIDGE).unwrap();
            await_that("the bridge is back", joined);
            device.join_bridge(BRIDGE, STATION_PORT).unwrap();
            lab.assert_works();
        }
    }
}

lab_test! {
    fn it_stays_through_takeover_kill_and_start() {
        let lab = Lab::new(false);
        lab.assert_works();
        let Lab {
            daemon,
            topology,
            station,
        } = lab;
        let daemon = daemon.replaced(&topology.device);
        let lab = Lab {
            daemon,
            topology,
            station,
        };
        lab.assert_works();
        let Lab {
            daemon,
            topology,
            station,
        } = lab;
        let files = daemon.kill();
        let lab = Lab {
            daemon: Daemon::start_on(&topology.device, files),
            topology,
            station,
        };
        lab.assert_works();
    }
}

lab_test! {
    fn what_is_no_bridge_is_refused_and_waited_for() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        veth((&topology.device, BRIDGE), (&topology.external, "x")).unwrap();
        let output = Daemon::start_failing(&topology.device, &config(&topology));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("brn") && said.contains("is no bridge (a veth)"), "{said}");
        let files = Files::new();
        files.write(&config(&topology));
        let daemon = Daemon::start_on(&topology.device, files);
        topology.device.delete_link(BRIDGE).unwrap();
        await_that("both are attached", || {
            let rows = daemon.attachments();
            let up = rows.iter().all(|row| row.link.reason.is_none());
            up.then_some(()).ok_or_else(|| format!("{rows:?}"))
        });
        reaches(&topology.external, &topology.containers[0], (at("203.0.113.1", 0).ip(), 20080));
    }
}
