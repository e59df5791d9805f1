//! Interfaces that an engine makes: what they had goes on as before, and the NOS's address comes beside it.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use nos_relay::control::api::snapshot::LinkState;
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp, veth};
use nos_shim::ident::MacAddr;

use crate::support::daemon::{Daemon, LIMIT, await_that};
use crate::support::lab_test;
use crate::support::requests::ip;
use crate::support::scenario::{FAMILIES, Family};
use crate::support::traffic::reaches;
use crate::{heard, pings, uplink};

/// The engine's bridge, and on the host the interface towards N.
const BRIDGE: &str = "eng0";
const TOWARDS_N: &str = "hn";

/// What the engine gives: the bridge's own addresses, and those of its containers.
const GATEWAY: [&str; 2] = ["172.31.8.1", "fd08::1"];
const WEB: [&str; 2] = ["172.31.8.2", "fd08::2"];
const DB: [&str; 2] = ["172.31.8.3", "fd08::3"];
/// A host that the engine's containers reach through the kernel of the device, and its neighbor there.
const N: [&str; 2] = ["198.51.100.2", "fd51::2"];
const BEFORE_N: [&str; 2] = ["198.51.100.1", "fd51::1"];
const LENGTHS: [u8; 2] = [24, 64];

struct Lab {
    topology: Topology,
    beyond: LabNamespace,
}

impl Lab {
    /// With two containers as an engine makes them.
    fn new() -> Self {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let beyond = LabNamespace::new("N").unwrap();
        let lab = Self { topology, beyond };
        let host = &lab.topology.device;
        host.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
        host.add_bridge(BRIDGE).unwrap();
        address(host, BRIDGE, GATEWAY);
        veth((host, TOWARDS_N), (&lab.beyond, "eth0")).unwrap();
        address(host, TOWARDS_N, BEFORE_N);
        address(&lab.beyond, "eth0", N);
        default_routes(&lab.beyond, BEFORE_N);
        lab.make_interface("web");
        lab.make_interface("db");
        lab
    }

    fn container(&self, name: &str) -> (&LabNamespace, [&'static str; 2]) {
        match name {
            "web" => (&self.topology.containers[0], WEB),
            _ => (&self.topology.containers[1], DB),
        }
    }

    /// As an engine does it.
    fn make_interface(&self, name: &str) {
        let (container, addresses) = self.container(name);
        let port = format!("v-{name}");
        veth((&self.topology.device, &port), (container, "eth0")).unwrap();
        // Made of the address by Docker as well: neighbors know it again.
        container.set_mac("eth0", MacAddr::stable(name)).unwrap();
        self.topology.device.join_bridge(BRIDGE, &port).unwrap();
        address(container, "eth0", addresses);
        default_routes(container, GATEWAY);
    }

    fn config(&self) -> String {
        let container = |name: &str, ports: &str, ephemeral: &str| {
            format!(
                r#"
[[container]]
name = "{name}"
netns = "{}"
device = "existing"
tcp = ["{ports}"]
udp = ["{ports}"]
ephemeral = ["{ephemeral}"]
"#,
                self.container(name).0.path().display(),
            )
        };
        [
            uplink(),
            container("web", "20000-20999", "40000-40999"),
            container("db", "21000-21999", "41000-41999"),
        ]
        .concat()
    }

    fn start(&self) -> Daemon {
        Daemon::start(&self.topology.device, &self.config())
    }

    /// What the engine's containers have without us.
    #[track_caller]
    fn assert_engine_works(&self) {
        let (web, db) = (self.container("web").0, self.container("db").0);
        for family in 0..2 {
            // By an address of the engine's, as answers to published ports are sent.
            reaches(&self.beyond, web, (ip(WEB[family]), 8080));
            let own = Some((ip(WEB[family]), 0).into());
            let server = (ip(N[family]), 8080).into();
            let echo = tcp::EchoServer::start(&self.beyond, server).unwrap();
            tcp::exchange(web, own, server, b"x", LIMIT).unwrap();
            assert_eq!(echo.peers()[0].ip(), ip(WEB[family]));
            // The others on the bridge, whom a program reaches without saying from where.
            let seen = reaches(web, db, (ip(DB[family]), 8080));
            assert_eq!(seen.ip(), ip(WEB[family]));
            pings(web, ip(GATEWAY[family]));
        }
    }

    #[track_caller]
    fn assert_nos_works(&self) {
        let (web, db) = (self.container("web").0, self.container("db").0);
        let external = &self.topology.external;
        for Family {
            nos,
            external: host,
            ..
        } in FAMILIES
        {
            reaches(external, web, (nos, 20080));
            reaches(external, db, (nos, 21080));
            let seen: SocketAddr = reaches(web, external, (host, 8080));
            assert_eq!(seen.ip(), nos);
            reaches(web, db, (nos, 21080));
            reaches(db, web, (nos, 20080));
            tcp::exchange(web, None, (nos, 7).into(), b"x", LIMIT).unwrap();
            pings(web, host);
        }
    }

    /// All that a namespace has, as iproute2 tells it.
    fn inside(&self, name: &str) -> String {
        let all: [&[&str]; 5] = [
            &["addr"],
            &["-4", "route", "show", "table", "all"],
            &["-6", "route", "show", "table", "all"],
            &["-4", "rule"],
            &["-6", "rule"],
        ];
        let said = all.map(|arguments| self.asked(name, arguments));
        said.concat()
    }

    fn asked(&self, name: &str, arguments: &[&str]) -> String {
        let mut ip = Command::new("ip");
        ip.args(arguments);
        let output = self.container(name).0.hold(&mut ip).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn address(namespace: &LabNamespace, interface: &str, addresses: [&str; 2]) {
    for (address, length) in addresses.into_iter().zip(LENGTHS) {
        let net = format!("{address}/{length}").parse().unwrap();
        namespace.add_address(interface, net).unwrap();
    }
}

fn default_routes(namespace: &LabNamespace, gateways: [&str; 2]) {
    for (all, gateway) in ["0.0.0.0/0", "::/0"].into_iter().zip(gateways) {
        let gateway: IpAddr = ip(gateway);
        namespace.add_route(all.parse().unwrap(), gateway).unwrap();
    }
}

lab_test! {
    fn the_nos_comes_beside_what_an_engine_has_made_and_goes_without_a_trace() {
        let lab = Lab::new();
        lab.assert_engine_works();
        let before = ["web", "db"].map(|name| lab.inside(name));
        let daemon = lab.start();
        lab.assert_nos_works();
        lab.assert_engine_works();
        for name in ["web", "db"] {
            let row = daemon.attachment(name);
            assert_eq!(row.link.device, "existing");
            assert!(row.link.drops.is_empty(), "{:?}", row.link.drops);
        }
        daemon.settle();
        daemon.stop_by(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(["web", "db"].map(|name| lab.inside(name)), before);
        lab.assert_engine_works();
    }
}

lab_test! {
    fn what_is_the_engines_is_no_affair_of_the_relay() {
        let lab = Lab::new();
        let daemon = lab.start();
        lab.assert_nos_works();
        let frames = || heard(&daemon);
        let before = frames();
        lab.assert_engine_works();
        // But for questions that everybody hears.
        let heard = frames() - before;
        assert!(heard < 40, "{heard}");
    }
}

lab_test! {
    fn an_interface_is_waited_for_and_followed() {
        let lab = Lab::new();
        let (web, _) = lab.container("web");
        web.delete_link("eth0").unwrap();
        let daemon = lab.start();
        let reason = || daemon.attachment("web").link.reason;
        let waits = reason().unwrap();
        assert!(waits.contains("there is no interface eth0 in "), "{waits}");
        // Twice: as for a container that an engine starts again.
        for _ in 0..2 {
            lab.make_interface("web");
            await_that("it is attached", || reason().map_or(Ok(()), Err));
            lab.assert_nos_works();
            lab.assert_engine_works();
            daemon.forget_counters();
            web.delete_link("eth0").unwrap();
            await_that("it waits", || match reason() {
                Some(reason) if reason.contains("there is no interface eth0") => Ok(()),
                other => Err(format!("{other:?}")),
            });
        }
    }
}

lab_test! {
    fn an_interface_that_changes_is_followed() {
        let lab = Lab::new();
        let daemon = lab.start();
        let (web, _) = lab.container("web");
        daemon.forget_counters();
        let mac = MacAddr([2, 0x42, 1, 2, 3, 4]);
        web.set_mac("eth0", mac).unwrap();
        web.set_mtu("eth0", 1400).unwrap();
        await_that("it has what the interface has", || {
            let row = daemon.attachment("web");
            let is = (row.container_mac, row.link.mtu, row.link.reason.clone());
            (is == (mac, 1400, None)).then_some(()).ok_or_else(|| format!("{is:?}"))
        });
        lab.assert_nos_works();
        // A network that comes is the link's own from then on.
        let (db, _) = lab.container("db");
        for (container, net) in [(web, "192.0.2.2/24"), (db, "192.0.2.3/24")] {
            container.add_address("eth0", net.parse().unwrap()).unwrap();
        }
        let seen = reaches(web, db, (ip("192.0.2.3"), 8080));
        assert_eq!(seen.ip(), ip("192.0.2.2"));
        lab.assert_engine_works();
    }
}

lab_test! {
    fn routes_and_rules_that_are_taken_away_come_back() {
        let lab = Lab::new();
        let daemon = lab.start();
        lab.assert_nos_works();
        let before = lab.inside("web");
        let rules = lab.asked("web", &["-4", "rule"]);
        let table = rules.lines().find_map(|rule| rule.strip_suffix(" proto 206"));
        let table = table.unwrap().rsplit(' ').next().unwrap().to_owned();
        lab.asked("web", &["route", "flush", "table", &table]);
        lab.asked("web", &["rule", "del", "pref", "0"]);
        await_that("it is as before", || {
            let now = lab.inside("web");
            (now == before).then_some(()).ok_or(now)
        });
        lab.assert_nos_works();
        // An interface that is down takes all routes along; ours come back with it.
        lab.asked("web", &["link", "set", "eth0", "down"]);
        await_that("it is down", || {
            let state = daemon.attachment("web").link.state;
            (state == LinkState::Down).then_some(()).ok_or_else(|| state.to_string())
        });
        lab.asked("web", &["link", "set", "eth0", "up"]);
        let (web, _) = lab.container("web");
        web.add_address("eth0", format!("{}/64", WEB[1]).parse().unwrap()).unwrap();
        default_routes(web, GATEWAY);
        await_that("it is as before", || {
            let now = lab.asked("web", &["route", "show", "table", &table]);
            now.contains("default via 192.0.0.8 dev eth0").then_some(()).ok_or(now)
        });
        lab.assert_nos_works();
        lab.assert_engine_works();
    }
}

lab_test! {
    fn one_with_an_address_of_its_own_has_it_beside_the_engines() {
        let lab = Lab::new();
        let own = ["203.0.113.77", "2001:db8:1::77"];
        let config = lab.config();
        let (before, _) = config.split_once("\n[[container]]").unwrap();
        let (web, _) = lab.container("web");
        let config = format!(
            "{before}\n[[network]]\nname = \"lan\"\nmode = \"routed\"\ndevice = \"existing\"\n\
             [[container]]\nname = \"web\"\nnetns = \"{}\"\nnetwork = \"lan\"\naddresses = {own:?}\n",
            web.path().display(),
        );
        let before = lab.inside("web");
        let daemon = Daemon::start(&lab.topology.device, &config);
        let external = &lab.topology.external;
        for (own, Family { nos, external: host, .. }) in own.into_iter().zip(FAMILIES) {
            reaches(external, web, (ip(own), 443));
            let seen = reaches(web, external, (host, 8080));
            assert_eq!(seen.ip(), ip(own));
            tcp::exchange(web, None, (nos, 7).into(), b"x", LIMIT).unwrap();
            // Its own, by way of the NOS or not.
            reaches(web, web, (ip(own), 443));
            pings(external, ip(own));
        }
        lab.assert_engine_works();
        daemon.stop_by(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(lab.inside("web"), before);
    }
}

lab_test! {
    fn it_stays_through_takeover_kill_and_start() {
        let lab = Lab::new();
        let host = &lab.topology.device;
        let daemon = lab.start().replaced(host);
        lab.assert_nos_works();
        lab.assert_engine_works();
        let files = daemon.kill();
        let daemon = Daemon::start_on(host, files);
        lab.assert_nos_works();
        lab.assert_engine_works();
        // Killed, and wanted no more by the next.
        let files = daemon.kill();
        let config = lab.config();
        files.write(config.split("\n[[container]]").next().unwrap());
        let _daemon = Daemon::start_on(host, files);
        for name in ["web", "db"] {
            assert!(!lab.inside(name).contains("203.0.113.1"));
        }
        lab.assert_engine_works();
    }
}

lab_test! {
    fn what_cannot_be_used_is_refused_and_named() {
        let lab = Lab::new();
        let (web, _) = lab.container("web");
        // A network that is the uplink's as well.
        web.add_address("eth0", "203.0.113.77/25".parse().unwrap()).unwrap();
        let (db, _) = lab.container("db");
        // An interface of another kind, and a veth whose other end is elsewhere.
        db.set_down("eth0").unwrap();
        db.rename("eth0", "eng").unwrap();
        veth((db, "eth0"), (&lab.beyond, "x")).unwrap();
        let daemon = Daemon::start(&lab.topology.device, &lab.config());
        let reason = |name: &str| daemon.attachment(name).link.reason.unwrap();
        let said = reason("web");
        assert!(said.contains("203.0.113.0/25 of eth0 overlaps 203.0.113.0/24"), "{said}");
        let said = reason("db");
        assert!(said.contains("is no veth whose other end is there"), "{said}");
        let before = lab.inside("db");
        // Nothing half-made is left, and what is mended is tried again.
        assert!(!before.contains("203.0.113.1") && !before.contains("proto 206"), "{before}");
        web.delete_address("eth0", "203.0.113.77/25".parse().unwrap()).unwrap();
        db.delete_link("eth0").unwrap();
        db.set_down("eng").unwrap();
        db.rename("eng", "eth0").unwrap();
        db.set_up("eth0").unwrap();
        // Which was away while it was down.
        db.add_address("eth0", format!("{}/64", DB[1]).parse().unwrap()).unwrap();
        default_routes(db, GATEWAY);
        await_that("both are attached", || {
            let rows = daemon.attachments();
            let up = rows.iter().all(|row| row.link.reason.is_none());
            up.then_some(()).ok_or_else(|| format!("{rows:?}"))
        });
        lab.assert_nos_works();
        lab.assert_engine_works();
    }
}
