//! Networks of containers: what they keep apart, namespaces that are in two of them, and what remains of
//! either.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Output};

use nix::sys::signal::Signal;
use nos_relay::control::api::snapshot::{LinkState, Network, Origin};
use nos_relay::control::api::{
    Applied, ControlError, Refusal, RefusalCode, Request, Response, Table, ask,
};
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp, udp, veth};
use serde_json::{Value, json};
use socket2::SockRef;
use support::daemon::{Daemon, LIMIT, await_that, program};
use support::lab_test;
use support::requests::{at, attach, ip};
use support::traffic::reaches;

const BLUE_UPLINK: &str = "hb";

/// Addresses of the NOS in the VRF of network blue, and of the outsider there.
const BLUE: [[&str; 2]; 2] = [
    ["198.51.100.1", "198.51.100.2"],
    ["2001:db8:2::1", "2001:db8:2::2"],
];
const RED: [[&str; 2]; 2] = [
    ["203.0.113.1", "203.0.113.2"],
    ["2001:db8:1::1", "2001:db8:1::2"],
];

/// Two VRFs with an outsider in each: X in the default one, B in that of the network `blue`.
struct Lab {
    // First, so that it is stopped while the networks are there.
    daemon: Daemon,
    topology: Topology,
    blue: LabNamespace,
}

fn config(more: &str) -> String {
    format!(
        r#"
[[uplink]]
name = "up0"
device = "packet:{}"
addresses = ["203.0.113.1/24", "2001:db8:1::1/64"]

[[uplink]]
name = "up1"
device = "packet:{BLUE_UPLINK}"
addresses = ["198.51.100.1/24", "2001:db8:2::1/64"]
vrf = "blue"

[[network]]
name = "red"

[[network]]
name = "other"
uplinks = ["up0"]
device = "veth"

[[network]]
name = "blue"
vrf = "blue"
device = "tap"

[nos]
services = ["echo"]
{more}"#,
        Topology::UPLINK
    )
}

impl Lab {
    fn new(containers: &[&str]) -> Self {
        let topology = Topology::new(containers).unwrap();
        let blue = LabNamespace::new("B").unwrap();
        veth((&topology.device, BLUE_UPLINK), (&blue, "bh")).unwrap();
        for (address, length) in [(BLUE[0][1], 24), (BLUE[1][1], 64)] {
            let address = format!("{address}/{length}").parse().unwrap();
            blue.add_address("bh", address).unwrap();
        }
        let daemon = Daemon::start(&topology.device, &config(""));
        Self {
            daemon,
            topology,
            blue,
        }
    }

    fn external(&self) -> &LabNamespace {
        &self.topology.external
    }

    fn ask(&self, request: &Value) -> Result<Applied, Refusal> {
        let takes = ["detach", "network-disconnect", "network-remove"];
        if takes.contains(&request["type"].as_str().unwrap()) {
            self.daemon.forget_counters();
        }
        let typed: Request = serde_json::from_value(request.clone()).unwrap();
        match ask(&self.daemon.files().control(), None, &typed, LIMIT) {
            Ok(Response::Changed(applied)) => Ok(applied),
            Err(ControlError::Refused(refusal)) => Err(refusal),
            other => panic!("{other:?} to {request}"),
        }
    }

    #[track_caller]
    fn change(&self, request: &Value) {
        let applied = self.ask(request).unwrap();
        assert!(
            applied.changed && applied.waiting.is_none(),
            "{request}: {applied:?}"
        );
    }

    #[track_caller]
    fn refused(&self, request: &Value, code: RefusalCode, reason: &str) {
        let before = self.registered();
        let refusal = self.ask(request).unwrap_err();
        assert_eq!(refusal.code, code, "{request}: {refusal}");
        assert!(refusal.message.contains(reason), "{request}: {refusal}");
        assert_eq!(self.registered(), before, "{request}");
    }

    fn registered(&self) -> String {
        self.daemon.show_json("registrations")
    }

    fn networks(&self) -> Vec<Network> {
        match self.daemon.try_show(Table::Networks).unwrap() {
            Response::Networks(networks) => networks,
            other => panic!("{other:?}"),
        }
    }

    /// Runs a command of the program.
    fn command(&self, arguments: &[&str]) -> Output {
        let control = self.daemon.files().control();
        let mut command = Command::new(program());
        command.args(arguments).arg("--control").arg(control);
        command.output().unwrap()
    }
}

#[track_caller]
fn is_refused(from: &LabNamespace, to: &LabNamespace, server: SocketAddr) {
    let echo = tcp::EchoServer::start(to, server).unwrap();
    let datagrams = udp::EchoServer::start(to, server).unwrap();
    let error = tcp::connect(from, None, server, LIMIT).unwrap_err();
    assert_eq!(
        error.kind(),
        Some(ErrorKind::ConnectionRefused),
        "{server}: {error}"
    );
    let error = udp::exchange(from, None, server, b"x", LIMIT).unwrap_err();
    assert_eq!(
        error.kind(),
        Some(ErrorKind::ConnectionRefused),
        "{server}: {error}"
    );
    assert!(
        echo.peers().is_empty() && datagrams.peers().is_empty(),
        "{server}"
    );
}

lab_test! {
    fn containers_of_different_networks_are_strangers_on_one_address() {
        let lab = Lab::new(&["web", "db"]);
        let [web, db] = &lab.topology.containers[..] else { panic!() };
        let web_keys = json!({"network": "red", "device": "veth", "tcp": "20000-20999",
            "udp": "20000-20999", "ephemeral": "40000-44999"});
        let db_keys = |network| json!({"network": network, "device": "veth", "tcp": "21000-21999",
            "udp": "21000-21999", "ephemeral": "45000-49999"});
        lab.change(&attach("web", web, &web_keys));
        for (network, together) in [("other", false), ("red", true)] {
            lab.change(&attach("db", db, &db_keys(network)));
            for [nos, _] in RED {
                for (from, to, port) in [(web, db, 21080), (db, web, 20080)] {
                    match together {
                        true => drop(reaches(from, to, at(nos, port))),
                        false => is_refused(from, to, at(nos, port)),
                    }
                }
                // Outsiders, the NOS's services, and each itself, are as ever.
                reaches(lab.external(), db, at(nos, 21080));
                reaches(lab.external(), web, at(nos, 20080));
                reaches(db, db, at(nos, 21080));
                tcp::exchange(db, None, at(nos, 7), b"x", LIMIT).unwrap();
            }
            lab.change(&json!({"type": "detach", "name": "db"}));
        }
    }
}

lab_test! {
    fn a_namespace_in_two_networks_talks_in_both_and_joins_neither() {
        for [first, second] in [["veth", "veth"], ["tap", "tap"]] {
            if first == "tap" && nos_relay::lab::testbed::tun_access().is_err() {
                support::skip("there are no TAPs here");
                continue;
            }
            in_two_networks(first, second);
        }
    }
}

fn in_two_networks(first: &str, second: &str) {
    let lab = Lab::new(&["app"]);
    let app = &lab.topology.containers[0];
    let range = app.read_sysctl("net/ipv4/ip_local_port_range").unwrap();
    let before = facts(app);
    let ports = json!({"network": "red", "device": first, "tcp": "20000-20999",
        "udp": "20000-20999", "ephemeral": "40000-44999"});
    lab.change(&attach("app", app, &ports));
    // It lives through all that comes and goes beside it.
    let server = at(RED[0][0], 20001);
    let echo = tcp::EchoServer::start(app, server).unwrap();
    let mut held = tcp::connect(lab.external(), None, server, LIMIT).unwrap();
    let connect = json!({"type": "network-connect", "network": "blue", "container": "app",
        "endpoint": {"device": second, "tcp": "20000-20999", "udp": "20000-20999",
            "ephemeral": "43000-45999"}});
    lab.change(&connect);
    assert!(!lab.ask(&connect).unwrap().changed, "it is there already");
    let endpoint = lab.daemon.attachment("app.blue");
    assert_eq!(endpoint.link.interface, "eth1");
    assert_eq!(endpoint.network.as_deref(), Some("blue"));
    let common = app.read_sysctl("net/ipv4/ip_local_port_range").unwrap();
    assert_eq!(
        common.split_whitespace().collect::<Vec<_>>(),
        ["43000", "44999"]
    );
    talks_in_both(&lab, app);
    // What comes from an address of one network does not get out into the other.
    let x = at(RED[0][1], 8053);
    let listener = udp::EchoServer::start(lab.external(), x).unwrap();
    let foreign = || {
        lab.daemon
            .attachment("app")
            .link
            .drops
            .get("source-address")
            .copied()
    };
    assert_eq!(foreign(), None);
    app.try_run("send", || {
        let socket = UdpSocket::bind((ip(BLUE[0][0]), 20_500))?;
        SockRef::from(&socket).bind_device(Some(b"eth0"))?;
        socket.send_to(b"x", x)
    })
    .unwrap();
    await_that("it is dropped", || match foreign() {
        Some(1) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(listener.peers(), []);
    held.write_all(b"still here").unwrap();
    let mut answer = [0; 10];
    held.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"still here");
    // The first goes, and the second is what is left.
    drop((held, echo));
    lab.change(&json!({"type": "network-disconnect", "network": "red", "container": "app"}));
    for [nos, outsider] in BLUE {
        reaches(&lab.blue, app, at(nos, 20080));
        assert_eq!(reaches(app, &lab.blue, at(outsider, 8080)).ip(), ip(nos));
    }
    let mut default = Command::new("ip");
    default.args(["route", "show", "default"]);
    let default = app.hold(&mut default).output().unwrap();
    let default = String::from_utf8(default.stdout).unwrap();
    assert!(
        default.contains("dev eth1") && default.contains(BLUE[0][0]),
        "{default}"
    );
    let own = app.read_sysctl("net/ipv4/ip_local_port_range").unwrap();
    assert_eq!(
        own.split_whitespace().collect::<Vec<_>>(),
        ["43000", "45999"]
    );
    // And comes back as what it is now: one more.
    lab.change(
        &json!({"type": "network-connect", "network": "red", "container": "app.blue",
        "endpoint": {"name": "app", "device": first, "tcp": "20000-20999", "udp": "20000-20999",
            "ephemeral": "40000-44999"}}),
    );
    talks_in_both(&lab, app);
    lab.change(&json!({"type": "network-disconnect", "network": "red", "container": "app"}));
    lab.change(&json!({"type": "detach", "name": "app.blue"}));
    await_that("nothing is left", || {
        match (facts(app), app.read_sysctl("net/ipv4/ip_local_port_range")) {
            (now, Ok(ports)) if now == before && ports == range => Ok(()),
            (now, ports) => Err(format!("{now:?} {ports:?} instead of {before:?} {range}")),
        }
    });
}

fn talks_in_both(lab: &Lab, app: &LabNamespace) {
    for (outsider, network) in [(lab.external(), RED), (&lab.blue, BLUE)] {
        for [nos, external] in network {
            reaches(outsider, app, at(nos, 20080));
            // It is known by the address of that network.
            assert_eq!(reaches(app, outsider, at(external, 8080)).ip(), ip(nos));
        }
    }
}

/// What attaching leaves traces in.
fn facts(namespace: &LabNamespace) -> (Vec<String>, Vec<ipnet::IpNet>, String) {
    let links = Command::new("ip");
    let mut links = links;
    links.args(["-br", "link"]);
    let links = namespace.hold(&mut links).output().unwrap();
    let mut routes = Command::new("ip");
    routes.args(["route", "show", "table", "all", "proto", "206"]);
    let routes = namespace.hold(&mut routes).output().unwrap();
    let links = String::from_utf8(links.stdout).unwrap();
    let names = links
        .lines()
        .map(|line| line.split(['@', ' ']).next().unwrap_or_default().to_owned());
    let mut facts: Vec<String> = names.collect();
    facts.extend(namespace.rules().unwrap());
    let routes = String::from_utf8(routes.stdout).unwrap();
    (facts, namespace.addresses("lo").unwrap(), routes)
}

lab_test! {
    fn networks_come_and_go_at_run_time_and_outlive_the_daemon() {
        let lab = Lab::new(&["web"]);
        let web = &lab.topology.containers[0];
        let create = json!({"type": "network-create",
            "network": {"name": "green", "vrf": "blue", "uplinks": ["up1"], "device": "veth",
                "to": ["198.51.100.0/24"]}});
        lab.change(&create);
        assert!(!lab.ask(&create).unwrap().changed);
        let mut other = create.clone();
        other["network"]["device"] = "tap".into();
        lab.refused(&other, RefusalCode::BadRequest, "name \"green\" is already");
        let joined = json!({"network": "green", "tcp": "20000-20999", "ephemeral": "40000-44999"});
        lab.change(&attach("web", web, &joined));
        let attachment = lab.daemon.attachment("web");
        assert_eq!(attachment.addresses, [ip(BLUE[0][0]), ip(BLUE[1][0])]);
        assert_eq!(attachment.link.vrf_name, "blue");
        assert_eq!(attachment.link.device, "veth");
        assert_eq!(attachment.to.unwrap().len(), 1);
        let green = |lab: &Lab| lab.networks().into_iter().find(|it| it.name == "green");
        let shown = green(&lab).unwrap();
        assert_eq!((shown.mode.as_str(), shown.origin), ("shared", Origin::Runtime));
        assert_eq!((shown.uplinks.len(), &shown.containers[..]), (1, &["web".to_owned()][..]));
        let remove = |name: &str| json!({"type": "network-remove", "name": name});
        lab.refused(&remove("green"), RefusalCode::BadRequest, "has container \"web\"; detach them first");
        lab.refused(&remove("red"), RefusalCode::BadRequest, "is in the configuration (line ");
        assert!(!lab.ask(&remove("nobody")).unwrap().changed);
        let Lab { daemon, topology, blue } = lab;
        let daemon = Daemon::start_on(&topology.device, daemon.stop_by(Signal::SIGTERM));
        let lab = Lab { daemon, topology, blue };
        assert_eq!(green(&lab).unwrap().containers, ["web"]);
        await_that("it is attached again", || match lab.daemon.attachment("web").link.state {
            LinkState::Up => Ok(()),
            other => Err(other.to_string()),
        });
        lab.change(&json!({"type": "detach", "name": "web"}));
        lab.change(&remove("green"));
        assert_eq!(green(&lab), None);
    }
}

lab_test! {
    fn both_attachments_of_a_namespace_are_taken_up_by_the_next_daemon() {
        let lab = Lab::new(&["app"]);
        let app = &lab.topology.containers[0];
        let range = app.read_sysctl("net/ipv4/ip_local_port_range").unwrap();
        let before = facts(app);
        let ports = json!({"network": "red", "device": "veth", "tcp": "20000-20999",
            "udp": "20000-20999", "ephemeral": "40000-44999"});
        lab.change(&attach("app", app, &ports));
        lab.change(&json!({"type": "network-connect", "network": "blue", "container": "app",
            "endpoint": {"device": "veth", "tcp": "20000-20999", "udp": "20000-20999",
                "ephemeral": "43000-45999"}}));
        talks_in_both(&lab, app);
        let attached = facts(app);
        let Lab { daemon, topology, blue } = lab;
        let daemon = Daemon::start_on(&topology.device, daemon.kill());
        let mut lab = Lab { daemon, topology, blue };
        for _ in 0..2 {
            for name in ["app", "app.blue"] {
                await_that("it is attached again", || match lab.daemon.attachment(name).link.state {
                    LinkState::Up => Ok(()),
                    other => Err(other.to_string()),
                });
            }
            assert_eq!(facts(&lab.topology.containers[0]), attached);
            talks_in_both(&lab, &lab.topology.containers[0]);
            // And then by one that takes over.
            let Lab { daemon, topology, blue } = lab;
            let daemon = daemon.replaced(&topology.device);
            lab = Lab { daemon, topology, blue };
        }
        let app = &lab.topology.containers[0];
        for name in ["app", "app.blue"] {
            lab.change(&json!({"type": "detach", "name": name}));
        }
        await_that("nothing is left", || match (facts(app), app.read_sysctl("net/ipv4/ip_local_port_range")) {
            (now, Ok(ports)) if now == before && ports == range => Ok(()),
            (now, ports) => Err(format!("{now:?} {ports:?} instead of {before:?} {range}")),
        });
    }
}

lab_test! {
    fn a_container_that_moves_keeps_its_ports() {
        let lab = Lab::new(&["old", "new", "thief"]);
        let [old, new, thief] = &lab.topology.containers[..] else { panic!() };
        let keys = json!({"network": "red", "device": "veth", "tcp": "20000-20999",
            "udp": "20000-20999", "ephemeral": "40000-44999"});
        lab.change(&attach("web", old, &keys));
        let server = at(RED[0][0], 20080);
        reaches(lab.external(), old, server);
        let before = facts(new);
        let away = json!({"type": "move", "name": "web", "netns": "/run/netns/not-there-yet"});
        lab.daemon.forget_counters();
        assert!(lab.ask(&away).unwrap().waiting.is_some(), "it waits for its namespace");
        assert_eq!(facts(old), before, "nothing is left");
        let clash = attach("thief", thief, &json!({"device": "veth", "tcp": "20500"}));
        assert_eq!(lab.ask(&clash).unwrap_err().code, RefusalCode::Conflict);
        let back = json!({"type": "move", "name": "web", "netns": new.path()});
        lab.change(&back);
        assert!(!lab.ask(&back).unwrap().changed);
        reaches(lab.external(), new, server);
        assert_eq!(lab.daemon.attachment("web").netns, new.path().display().to_string());
        for (request, reason) in [
            (json!({"type": "move", "name": "nobody", "netns": "/x"}), "there is no container \"nobody\""),
            (json!({"type": "move", "name": "web"}), "is missing"),
            (json!({"type": "move", "name": "web", "netns": "x"}), "absolute"),
        ] {
            lab.refused(&request, RefusalCode::BadRequest, reason);
        }
    }
}

lab_test! {
    fn what_makes_no_sense_is_refused_by_name() {
        let lab = Lab::new(&["app", "web"]);
        let [app, web] = &lab.topology.containers[..] else { panic!() };
        let keys = json!({"network": "red", "device": "veth", "tcp": "20000-20999", "ephemeral": "40000-44999"});
        lab.change(&attach("app", app, &keys));
        let bad = RefusalCode::BadRequest;
        let create = |network: Value| json!({"type": "network-create", "network": network});
        for (request, reason) in [
            (create(json!({"name": "host"})), "\"host\" is a name that engines have for others"),
            (create(json!({"name": "x", "uplinks": ["up9"]})), "there is no uplink \"up9\""),
            (create(json!({"name": "x", "uplinks": ["up1"]})), "is in VRF \"default\", and uplink \"up1\" in VRF \"blue\""),
            (create(json!({"name": "x", "vrf": "grey"})), "no uplink is in VRF \"grey\""),
            (create(json!({"name": "x", "mode": "nat"})), "nat"),
            (create(json!({"name": "x", "uplinks": []})), "is empty"),
            (create(json!({"name": "../x"})), "contains '/'"),
            (create(json!({"name": "x", "colour": "red"})), "unknown key"),
            (attach("web", web, &json!({"network": "redd", "device": "veth"})), "there is no network \"redd\""),
            (attach("web", web, &json!({"network": "red", "device": "veth", "vrf": "blue"})), "is what network \"red\" says"),
            (attach("web", web, &json!({"network": "other", "addresses": ["198.51.100.1"]})), "198.51.100.1 is no address"),
            (attach("web", web, &json!({"tcp": "1"})), "device = \"tap\""),
            (json!({"type": "network-connect", "network": "blue", "container": "nobody"}), "there is no container \"nobody\""),
            (json!({"type": "network-connect", "network": "grey", "container": "app"}), "there is no network \"grey\""),
            (json!({"type": "network-connect", "network": "blue", "container": "app", "endpoint": {"netns": "/x"}}), "says netns"),
        ] {
            lab.refused(&request, bad, reason);
        }
        let endpoint = |network: &str, endpoint: Value| json!({"type": "network-connect",
            "network": network, "container": "app", "endpoint": endpoint});
        for (request, reason) in [
            (endpoint("other", json!({"device": "veth"})), "203.0.113.1 is its address there"),
            (endpoint("blue", json!({"device": "veth", "ephemeral": "50000-50999"})), "have none in common"),
        ] {
            lab.refused(&request, RefusalCode::Refused, reason);
        }
        let interface = endpoint("blue", json!({"device": "veth", "interface": "eth0"}));
        lab.refused(&interface, bad, "is the interface of container \"app\"");
        // Of a process that has ended nobody comes back, unlike of a namespace by its name.
        let dead = json!({"type": "attach", "container": {"name": "dead", "pid": 4_194_304, "device": "veth"}});
        lab.refused(&dead, RefusalCode::Refused, "4194304");
        assert_eq!(lab.daemon.attachments().len(), 1);
    }
}

lab_test! {
    fn commands_do_what_requests_do() {
        let lab = Lab::new(&["app"]);
        let app = lab.topology.containers[0].path();
        let app = app.to_str().unwrap();
        let run = |arguments: &[&str]| {
            let output = lab.command(arguments);
            let out = String::from_utf8(output.stdout).unwrap();
            (output.status.code(), out, String::from_utf8(output.stderr).unwrap())
        };
        for (arguments, answer) in [
            (&["network", "create", "green", "--vrf", "blue", "--uplink", "up1", "--device", "veth"][..], "Done."),
            (&["attach", "app", "--netns", app, "--network", "red", "--device", "veth", "--tcp", "20000-20999"], "Done."),
            (&["network", "connect", "green", "app", "--tcp", "20000-20999"], "Done."),
        ] {
            let (code, out, err) = run(arguments);
            assert_eq!(code, Some(0), "{arguments:?}: {out}{err}");
            assert!(!answer.is_empty());
        }
        let (_, table, _) = run(&["network", "ls"]);
        assert!(table.lines().any(|line| line.starts_with("green") && line.contains("app.green")), "{table}");
        let (code, json, _) = run(&["network", "inspect", "green"]);
        assert_eq!(code, Some(0));
        let shown: Vec<Network> = serde_json::from_str(&json).unwrap();
        assert_eq!(shown[0].containers, ["app.green"]);
        let (code, _, err) = run(&["network", "inspect", "grey"]);
        assert_eq!((code, err.trim()), (Some(1), "nos-relay: there is no network \"grey\""));
        let (code, _, err) = run(&["network", "rm", "green"]);
        assert_eq!(code, Some(1));
        assert!(err.contains("detach them first"), "{err}");
        lab.daemon.forget_counters();
        for arguments in [&["network", "disconnect", "green", "app"][..], &["network", "rm", "green"]] {
            assert_eq!(run(arguments).0, Some(0), "{arguments:?}");
        }
        assert_eq!(lab.networks().len(), 3);
    }
}
