//! Containers with addresses of their own, as hosts behind the NOS.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};

use nix::sys::signal::Signal;
use nos_relay::control::api::snapshot::{LinkState, RouteAction, RouteSource};
use nos_relay::control::api::{ControlError, Refusal, RefusalCode, Request, Response, ask};
use nos_relay::lab::testbed::ping::{Echo, Ping};
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp, tun_access, udp};
use serde_json::{Value, json};
use support::daemon::{Daemon, LIMIT, await_that};
use support::lab_test;
use support::requests::{at, attach, ip};

const NOS: [&str; 2] = ["203.0.113.1", "2001:db8:1::1"];
const X: [&str; 2] = ["203.0.113.2", "2001:db8:1::2"];
/// In the uplink's networks.
const OWN: [&str; 2] = ["203.0.113.77", "2001:db8:1::77"];
/// In none. X has a route to them.
const FAR: [&str; 2] = ["198.51.100.77", "2001:db8:77::77"];
/// No packet of Linux starts with more hops than this by itself.
const HOPS: u8 = 64;

struct Lab {
    // First, so that it is stopped while the networks are there.
    daemon: Daemon,
    topology: Topology,
}

fn config(threads: &str) -> String {
    format!(
        r#"
[relay]
threads = "{threads}"

[[uplink]]
name = "up0"
device = "packet:{}"
addresses = ["203.0.113.1/24", "2001:db8:1::1/64"]

[[network]]
name = "lan"
mode = "routed"

[[network]]
name = "other"
mode = "routed"

[nos]
services = ["echo"]
"#,
        Topology::UPLINK
    )
}

impl Lab {
    fn new(containers: &[&str], threads: &str) -> Self {
        let topology = Topology::new(containers).unwrap();
        let daemon = Daemon::start(&topology.device, &config(threads));
        Self { daemon, topology }
    }

    fn x(&self) -> &LabNamespace {
        &self.topology.external
    }

    fn ask(&self, request: &Value) -> Result<bool, Refusal> {
        let typed: Request = serde_json::from_value(request.clone()).unwrap();
        match ask(&self.daemon.files().control(), None, &typed, LIMIT) {
            Ok(Response::Changed(applied)) => Ok(applied.changed && applied.waiting.is_none()),
            Err(ControlError::Refused(refusal)) => Err(refusal),
            other => panic!("{other:?} to {request}"),
        }
    }

    #[track_caller]
    fn change(&self, request: &Value) {
        assert!(self.ask(request).unwrap(), "{request}");
    }

    /// The same with another daemon, that of before being ended so.
    fn after(self, end: impl FnOnce(Daemon, &LabNamespace) -> Daemon) -> Self {
        let Self { daemon, topology } = self;
        let daemon = end(daemon, &topology.device);
        Self { daemon, topology }
    }

    fn await_up(&self, name: &str) {
        await_that("it is attached", || {
            match self.daemon.attachment(name).link {
                link if link.state == LinkState::Up && link.reason.is_none() => Ok(()),
                link => Err(format!("{link:?}")),
            }
        });
    }
}

fn routed(name: &str, netns: &LabNamespace, device: &str, addresses: &[&str]) -> Value {
    let keys = json!({"network": "lan", "device": device, "addresses": addresses});
    attach(name, netns, &keys)
}

/// By TCP and UDP; returns from where.
#[track_caller]
fn reaches(from: &LabNamespace, to: &LabNamespace, server: SocketAddr) -> IpAddr {
    let echo = tcp::EchoServer::start(to, server).unwrap();
    tcp::exchange(from, None, server, &vec![7; 200_000], LIMIT).unwrap();
    let datagrams = udp::EchoServer::start(to, server).unwrap();
    // In fragments.
    udp::exchange(from, None, server, &[7; 4000], LIMIT).unwrap();
    assert_eq!(datagrams.peers().len(), 1);
    echo.peers()[0].ip()
}

/// What one echo request gets.
fn echo(from: &LabNamespace, to: &str, how: Ping) -> Echo {
    how.run(from, ip(to)).unwrap().remove(0)
}

#[track_caller]
fn answers(from: &LabNamespace, to: &str, hops: u8) {
    // In fragments as well.
    for size in [56, 4000] {
        let how = Ping {
            size,
            ..Ping::default()
        };
        match echo(from, to, how) {
            Echo::Reply { from, ttl, .. } => assert_eq!((from, ttl), (ip(to), HOPS - hops)),
            other => panic!("{to}: {other:?}"),
        }
    }
}

/// What has one hop to live ends at the NOS, which says so by this address of its own.
#[track_caller]
fn expires(from: &LabNamespace, to: &str, nos: &str) {
    let how = Ping {
        ttl: 1,
        ..Ping::default()
    };
    match echo(from, to, how) {
        Echo::Error {
            from,
            kind: 11 | 3,
            code: 0,
        } => assert_eq!(from, ip(nos)),
        other => panic!("{other:?}"),
    }
}

/// Of who asks for somebody in another network.
#[track_caller]
fn is_prohibited(from: &LabNamespace, to: &LabNamespace, server: SocketAddr) {
    let echo = tcp::EchoServer::start(to, server).unwrap();
    let error = tcp::connect(from, None, server, LIMIT).unwrap_err();
    let told = [ErrorKind::HostUnreachable, ErrorKind::PermissionDenied];
    assert!(told.contains(&error.kind().unwrap()), "{error}");
    assert!(echo.peers().is_empty());
}

fn is_a_host_behind_a_router(device: &str, threads: &str) {
    let lab = Lab::new(&["app", "web"], threads);
    let [app, web] = &lab.topology.containers[..] else {
        panic!()
    };
    for (far, length) in [(FAR[0], 24), (FAR[1], 64)] {
        let prefix = format!("{far}/{length}").parse().unwrap();
        let gateway = if ip(far).is_ipv4() { NOS[0] } else { NOS[1] };
        lab.x().add_route(prefix, ip(gateway)).unwrap();
    }
    let own = [OWN, FAR].concat();
    lab.change(&routed("app", app, device, &own));
    let keys = json!({"device": device, "tcp": "20000-20999", "udp": "20000-20999",
        "ephemeral": "40000-44999"});
    lab.change(&attach("web", web, &keys));
    for (n, own) in own.iter().enumerate() {
        let (nos, x) = (NOS[n % 2], X[n % 2]);
        // Whatever port, whatever protocol.
        reaches(lab.x(), app, at(own, 22));
        answers(lab.x(), own, 1);
        let error = tcp::connect(lab.x(), None, at(own, 23), LIMIT).unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused));
        // The router says who it is.
        expires(lab.x(), own, nos);
        // To itself, inside.
        reaches(app, app, at(own, 4242));
        let source = Some(ip(own));
        match echo(
            app,
            x,
            Ping {
                source,
                ..Ping::default()
            },
        ) {
            Echo::Reply { ttl, .. } => assert_eq!(ttl, HOPS - 1),
            other => panic!("{other:?}"),
        }
    }
    for family in 0..2 {
        let (own, nos, x) = (OWN[family], NOS[family], X[family]);
        assert_eq!(
            reaches(app, lab.x(), at(x, 8080)),
            ip(own),
            "the first is the source"
        );
        // One that shares the NOS's address is in another network.
        is_prohibited(web, app, at(own, 80));
        let _ = tcp::EchoServer::start(web, at(nos, 20080)).unwrap();
        let error = tcp::connect(app, None, at(nos, 20080), LIMIT).unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused));
        tcp::exchange(app, None, at(nos, 7), b"x", LIMIT).unwrap();
        answers(app, nos, 0);
        expires(app, x, nos);
    }
    let shown = lab.daemon.attachment("app");
    assert_eq!(
        (shown.mode.as_str(), shown.network.as_deref()),
        ("routed", Some("lan"))
    );
    let routes = lab.daemon.routes();
    let ours = routes
        .iter()
        .filter(|route| route.action == RouteAction::Attached);
    let ours: Vec<_> = ours
        .map(|route| {
            (
                route.prefix.addr(),
                route.source,
                route.container.as_deref(),
            )
        })
        .collect();
    assert_eq!(ours.len(), 4);
    assert!(
        own.iter()
            .all(|own| ours.contains(&(ip(own), RouteSource::Attached, Some("app"))))
    );
    // Once it is gone, the link and the routes know nothing of it.
    lab.daemon.forget_counters();
    lab.change(&json!({"type": "detach", "name": "app"}));
    for own in own {
        let how = Ping {
            timeout: std::time::Duration::from_millis(300),
            ..Ping::default()
        };
        assert!(!echo(lab.x(), own, how).is_reply(), "{own}");
    }
}

lab_test! {
    fn one_with_a_veth_is_a_host_behind_a_router() {
        is_a_host_behind_a_router("veth", "single");
    }
}

lab_test! {
    fn one_with_a_tap_is_a_host_behind_a_router() {
        match tun_access() {
            Ok(()) => is_a_host_behind_a_router("tap", "split"),
            Err(_) => support::skip("there are no TAPs here"),
        }
    }
}

lab_test! {
    fn policies_say_who_may_come_and_where_it_may_go() {
        let lab = Lab::new(&["app"], "single");
        let [app] = &lab.topology.containers[..] else { panic!() };
        let with = |keys: Value| {
            let mut wanted = routed("app", app, "veth", &OWN);
            let container = wanted["container"].as_object_mut().unwrap();
            container.extend(keys.as_object().unwrap().clone());
            lab.change(&wanted);
        };
        let all = [format!("{}/32", X[0]), format!("{}/128", X[1])];
        for (keys, may_come, may_go) in [
            (json!({"from": all, "to": all}), true, true),
            (json!({"from": [], "to": all}), false, true),
            (json!({"from": all, "to": []}), true, false),
            (json!({}), true, true),
        ] {
            with(keys.clone());
            let row = lab.daemon.attachment("app");
            let shown = |key: &str| keys.get(key).map(|list| list.as_array().unwrap().len());
            assert_eq!(row.to.map(|it| it.len()), shown("to"));
            assert_eq!(row.from.map(|it| it.len()), shown("from"));
            for (own, host) in OWN.into_iter().zip(X) {
                match may_come {
                    true => {
                        assert_eq!(reaches(lab.x(), app, at(own, 80)), ip(host));
                        answers(lab.x(), own, 1);
                    }
                    false => is_prohibited(lab.x(), app, at(own, 80)),
                }
                match may_go {
                    true => {
                        assert_eq!(reaches(app, lab.x(), at(host, 8080)), ip(own));
                        answers(app, host, 1);
                    }
                    false => is_prohibited(app, lab.x(), at(host, 8080)),
                }
            }
            lab.daemon.settle();
            lab.daemon.forget_counters();
            lab.change(&json!({"type": "detach", "name": "app"}));
        }
    }
}

lab_test! {
    fn networks_of_such_containers_are_kept_apart() {
        let lab = Lab::new(&["app", "db"], "single");
        let [app, db] = &lab.topology.containers[..] else { panic!() };
        lab.change(&routed("app", app, "veth", &OWN));
        let db_own = ["203.0.113.78", "2001:db8:1::78"];
        for network in ["lan", "other"] {
            let keys = json!({"network": network, "device": "veth", "addresses": db_own});
            lab.change(&attach("db", db, &keys));
            for (own, other) in OWN.into_iter().zip(db_own) {
                if network == "lan" {
                    assert_eq!(reaches(app, db, at(other, 80)), ip(own));
                    answers(db, own, 1);
                } else {
                    is_prohibited(app, db, at(other, 80));
                    match echo(db, own, Ping::default()) {
                        Echo::Error { kind: 3, code: 13, .. } | Echo::Error { kind: 1, code: 1, .. } => {}
                        other => panic!("{other:?}"),
                    }
                }
                reaches(lab.x(), db, at(other, 80));
            }
            lab.daemon.forget_counters();
            lab.change(&json!({"type": "detach", "name": "db"}));
        }
    }
}

lab_test! {
    fn a_connection_outlives_the_daemon_and_one_that_takes_over() {
        let lab = Lab::new(&["app"], "single");
        lab.change(&routed("app", &lab.topology.containers[0], "veth", &OWN));
        let servers = OWN.map(|own| at(own, 4000));
        let app = &lab.topology.containers[0];
        let listening: Vec<_> = servers.iter().map(|server| tcp::EchoServer::start(app, *server).unwrap()).collect();
        let mut held = servers.map(|server| tcp::connect(lab.x(), None, server, LIMIT).unwrap());
        let mut talk = |lab: &Lab| {
            lab.await_up("app");
            for stream in &mut held {
                let mut answer = [0; 5];
                stream.write_all(b"still").unwrap();
                stream.read_exact(&mut answer).unwrap();
                assert_eq!(&answer, b"still");
            }
        };
        talk(&lab);
        let lab = lab.after(|daemon, device| Daemon::start_on(device, daemon.kill()));
        talk(&lab);
        let lab = lab.after(|daemon, device| daemon.replaced(device));
        talk(&lab);
        let lab = lab.after(|daemon, device| Daemon::start_on(device, daemon.stop_by(Signal::SIGTERM)));
        talk(&lab);
        assert_eq!(listening.len(), 2);
    }
}

lab_test! {
    fn what_cannot_be_is_refused_by_name() {
        let lab = Lab::new(&["app", "db"], "single");
        let [app, db] = &lab.topology.containers[..] else { panic!() };
        lab.change(&routed("app", app, "veth", &OWN));
        let with = |keys: Value| attach("db", db, &keys);
        let own = |address: &str| with(json!({"network": "lan", "device": "veth", "addresses": [address]}));
        for (request, reason) in [
            (own(OWN[0]), "203.0.113.77 is the address of container \"app\""),
            (own(NOS[1]), "2001:db8:1::1 is the address of uplink \"up0\""),
            (own("203.0.113.255"), "203.0.113.255 stands for all of 203.0.113.0/24, the network of uplink \"up0\""),
            (own("224.0.0.1"), "224.0.0.1"),
            (own("169.254.1.1"), "169.254.1.1 is no address that a host can have to itself"),
            (with(json!({"network": "lan", "device": "veth", "addresses": ["203.0.113.78"], "tcp": "80"})), "with all ports"),
            (with(json!({"network": "lan", "device": "veth", "addresses": ["203.0.113.78"], "outside": "learn"})), "with all ports"),
            (json!({"type": "network-create", "network": {"name": "x", "mode": "routed", "outside": "learn"}}), "leave it out"),
            (json!({"type": "address-add", "uplink": "up0", "address": "203.0.113.77/24"}), "203.0.113.77 is the address of uplink \"up0\""),
        ] {
            let refusal = lab.ask(&request).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::BadRequest, "{request}: {refusal}");
            assert!(refusal.message.contains(reason), "{request}: {refusal}");
        }
        assert_eq!(lab.daemon.attachments().len(), 1);
        reaches(lab.x(), app, at(OWN[0], 80));
    }
}
