//! What is asked for at run time in one of several VRFs, and what of that is told.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use nix::sys::signal::Signal;
use nos_relay::control::api::snapshot::{Origin, PortKind, Protocol, Registration};
use nos_relay::control::api::{
    Applied, ControlError, Event, Refusal, RefusalCode, Request, Response, SubjectKind, Table,
    Watch, Watched, ask, query, watch,
};
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp, udp};
use nos_shim::ident::MacAddr;
use serde_json::{Value, json};

use super::assert_refused;
use super::network::{Side, Twins, Uplinks};
use crate::support::daemon::{Daemon, LIMIT, program};
use crate::support::lab_test;
use crate::support::scenario::{FAMILIES, V4, Variant};
use crate::support::traffic::assert_reached;
use crate::support::wire::Wire;

/// Twins of which nobody has ports 21000 to 39999, and a namespace for a container more in each VRF.
fn twins() -> Twins {
    let edit = |config: String| {
        config.replace("\"1-39999\"", "\"1-19999\"") + "[ports]\npool = \"24000-24999\"\n"
    };
    let more = ["more", "red-more"];
    Twins::edited(Variant::PLAIN, Uplinks::PacketSockets, &more, edit)
}

/// The namespaces of the containers more.
fn more(twins: &Twins) -> [&LabNamespace; 2] {
    [&twins.topology.containers[4], &twins.topology.containers[5]]
}

fn asked(daemon: &Daemon, id: Option<&str>, request: &Value) -> Result<Applied, Refusal> {
    if request["type"] == "detach" {
        daemon.forget_counters();
    }
    let typed: Request = serde_json::from_value(request.clone()).unwrap();
    match ask(&daemon.files().control(), id, &typed, LIMIT) {
        Ok(Response::Changed(applied)) => Ok(applied),
        Err(ControlError::Refused(refusal)) => Err(refusal),
        other => panic!("{other:?} to {request}"),
    }
}

#[track_caller]
fn change(daemon: &Daemon, request: &Value) {
    let applied = asked(daemon, None, request).unwrap();
    assert!(applied.changed, "{request}");
    assert_eq!(applied.waiting, None, "{request}");
}

fn attach(name: &str, netns: &LabNamespace, vrf: &str, tcp: &str) -> Value {
    let addresses = ["203.0.113.1", "2001:db8:1::1"];
    json!({"type": "attach", "container": {
        "name": name, "netns": netns.path(), "device": "veth", "vrf": vrf, "addresses": addresses,
        "tcp": tcp, "udp": tcp, "ephemeral": "46000-46999",
    }})
}

fn ports(action: &str, container: &str, tcp: &str) -> Value {
    json!({"type": format!("ports-{action}"), "container": container, "tcp": tcp})
}

fn allocate(container: &str, size: u16) -> Value {
    json!({"type": "ports-allocate", "container": container, "size": size, "protocol": "tcp"})
}

/// Who has ports of TCP that were given at run time, by VRF.
fn given(daemon: &Daemon) -> Vec<(String, String, String)> {
    let rows = daemon.ports().into_iter();
    let rows = rows.filter(|row| row.origin == Origin::Runtime && row.protocol == Protocol::Tcp);
    let mut given: Vec<_> = rows
        .filter(|row| row.kind == PortKind::Listen)
        .map(|row| (row.vrf_name, row.owner, row.range.to_string()))
        .collect();
    given.sort();
    given
}

fn registrations(daemon: &Daemon) -> Vec<Registration> {
    let table = Table::Registrations;
    match query(&daemon.files().control(), &Request::Show { table }, LIMIT).unwrap() {
        Response::Registrations(mut rows) => {
            rows.sort();
            rows
        }
        other => panic!("{other:?}"),
    }
}

/// A server of `here` answers there, and nobody on that port answers in the other VRF.
fn assert_only_here(here: (Side<'_>, &LabNamespace), there: Side<'_>, port: u16) {
    for family in FAMILIES {
        let to = family.nos_port(port);
        assert_reached(here.0.external, here.1, to);
        let what = format!("{to} in {}", there.vrf);
        assert_refused(tcp::connect(there.external, None, to, LIMIT), &what);
    }
}

lab_test! {
    fn a_container_is_attached_in_its_vrf_where_its_ports_are_free() {
        let twins = twins();
        let [default, red] = twins.sides();
        let [_, red_more] = more(&twins);
        // Its twin of the default VRF has the ports of web there.
        let refusal = asked(&twins.daemon, None, &attach("x", red_more, "default", "22000")).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Conflict);
        assert!(!refusal.message.contains("VRF"), "{refusal}");
        change(&twins.daemon, &attach("red-more", red_more, "red", "22000"));
        let attachment = twins.daemon.attachment("red-more");
        assert_eq!((attachment.link.vrf_name.as_str(), attachment.origin), ("red", Origin::Runtime));
        for family in FAMILIES {
            let to = family.nos_port(22000);
            assert_reached(red.external, red_more, to);
            assert_reached(default.external, default.web, to);
            let server = udp::EchoServer::start(red.external, family.external_port(8053)).unwrap();
            udp::exchange(red_more, None, server.address(), b"x", LIMIT).unwrap();
            assert_eq!(server.peers().len(), 1);
            // What it opens comes to nobody outside of its VRF.
            assert_refused(
                tcp::connect(red_more, None, family.external_port(8053), LIMIT),
                "a port where red has none",
            );
        }
        // In red the port is taken now, and it is said of which VRF that is.
        let refusal = asked(&twins.daemon, None, &ports("add", "red-web", "22000")).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Conflict);
        assert!(refusal.message.contains("container \"red-more\" (added at run time) in VRF \"red\""), "{refusal}");
        for vrf in ["rde", ""] {
            let refusal = asked(&twins.daemon, None, &attach("y", red_more, vrf, "22001")).unwrap_err();
            assert_eq!(refusal.field.as_deref(), Some("container.vrf"), "{refusal}");
        }
        change(&twins.daemon, &json!({"type": "detach", "name": "red-more"}));
        for family in FAMILIES {
            assert_refused(tcp::connect(red.external, None, family.nos_port(22000), LIMIT), "nobody's");
            assert_reached(default.external, default.web, family.nos_port(22000));
        }
    }
}

lab_test! {
    fn ports_are_added_replaced_removed_and_allocated_by_vrf() {
        let twins = twins();
        let daemon = &twins.daemon;
        let [default, red] = twins.sides();
        let one = |vrf: &str, owner: &str, range: &str| (vrf.to_owned(), owner.to_owned(), range.to_owned());
        // Each may have what its twin has only in the other VRF.
        change(daemon, &ports("add", "red-web", "22000-22009"));
        assert_reached(red.external, red.web, V4.nos_port(22000));
        assert_reached(default.external, default.web, V4.nos_port(22000));
        change(daemon, &ports("add", "web", "22100-22109"));
        assert_only_here((default, default.web), red, 22100);
        assert_eq!(given(daemon), [one("default", "web", "22100-22109"), one("red", "red-web", "22000-22009")]);
        // The nearest free range of each is another one: in red, 22000 to 22009 are taken.
        change(daemon, &attach("more", more(&twins)[0], "default", "25000"));
        change(daemon, &attach("red-more", more(&twins)[1], "red", "25000"));
        let free = |container: &str| {
            let refusal = asked(daemon, None, &ports("add", container, "20995-21004")).unwrap_err();
            let clash = refusal.clash.unwrap();
            (clash.owner, clash.free.unwrap().to_string())
        };
        assert_eq!(free("more"), ("container \"web\"".to_owned(), "21000-21009".to_owned()));
        change(daemon, &ports("add", "red-web", "21000-21499"));
        assert_eq!(free("red-more"), ("container \"red-web\"".to_owned(), "21500-21509".to_owned()));
        assert_eq!(free("more"), ("container \"web\"".to_owned(), "21000-21009".to_owned()));
        change(daemon, &ports("replace", "red-web", "22200-22209"));
        assert_only_here((red, red.web), default, 22200);
        for family in FAMILIES {
            assert_refused(tcp::connect(red.external, None, family.nos_port(22000), LIMIT), "replaced");
        }
        assert_reached(default.external, default.web, V4.nos_port(22000));
        // The pool is each VRF's own.
        let range = |container: &str| asked(daemon, None, &allocate(container, 600)).unwrap().range;
        assert_eq!(range("web").as_deref(), Some("24000-24599"));
        assert_eq!(range("red-web").as_deref(), Some("24000-24599"));
        let refusal = asked(daemon, None, &allocate("red-more", 600)).unwrap_err();
        assert!(refusal.message.contains("no 600 ports in a row are free in 24000-24999"), "{refusal}");
        change(daemon, &ports("remove", "red-web", "24000-24599"));
        assert_eq!(range("red-more").as_deref(), Some("24000-24599"));
        assert_only_here((red, more(&twins)[1]), default, 24599);
        let _web = tcp::EchoServer::start(default.web, V4.nos_port(24000)).unwrap();
        let _red = tcp::EchoServer::start(more(&twins)[1], V4.nos_port(24000)).unwrap();
        for side in [default, red] {
            tcp::exchange(side.external, None, V4.nos_port(24000), b"x", LIMIT).unwrap();
        }
        change(daemon, &ports("remove", "web", "22100-22109"));
        assert_refused(tcp::connect(default.external, None, V4.nos_port(22100), LIMIT), "removed");
    }
}

fn route(action: &str, prefix: &str, vrf: &str, more: &Value) -> Value {
    let mut route = json!({"prefix": prefix, "vrf": vrf});
    let object = route.as_object_mut().unwrap();
    object.extend(more.as_object().unwrap().clone());
    match action {
        "add" => json!({"type": "route-add", "route": route}),
        _ => {
            route["type"] = "route-remove".into();
            route
        }
    }
}

lab_test! {
    fn routes_come_and_go_by_vrf() {
        let twins = twins();
        let daemon = &twins.daemon;
        let [default, red] = twins.sides();
        // Both networks have this address, somewhere beyond.
        let servers = [default, red].map(|side| {
            side.external.add_address("lo", "192.0.2.7/32".parse().unwrap()).unwrap();
            let address = SocketAddr::new("192.0.2.7".parse::<IpAddr>().unwrap(), 7000);
            tcp::EchoServer::start(side.external, address).unwrap()
        });
        let reaches = |side: Side<'_>| tcp::exchange(side.web, None, servers[0].address(), b"x", LIMIT).is_ok();
        let (prefix, none) = ("192.0.2.0/24", json!({}));
        change(daemon, &route("add", prefix, "red", &json!({"type": "unreachable"})));
        assert!(reaches(default) && !reaches(red));
        // The same one is another one in another VRF.
        change(daemon, &route("add", prefix, "default", &json!({"via": ["203.0.113.2"]})));
        assert!(reaches(default));
        let refusal = asked(daemon, None, &route("add", prefix, "red", &json!({"via": ["203.0.113.2"]}))).unwrap_err();
        assert!(refusal.message.contains("192.0.2.0/24 in VRF \"red\" with metric 0 is already"), "{refusal}");
        let origins: Vec<_> = daemon.routes().into_iter()
            .filter(|row| row.prefix.to_string() == prefix)
            .map(|row| (row.vrf_name, row.origin))
            .collect();
        assert_eq!(origins, [("default".to_owned(), Origin::Runtime), ("red".to_owned(), Origin::Runtime)]);
        let names: Vec<_> = registrations(daemon).into_iter().map(|row| row.name).collect();
        assert_eq!(names, ["192.0.2.0/24 metric 0", "192.0.2.0/24 metric 0 in VRF \"red\""]);
        change(daemon, &route("remove", prefix, "red", &none));
        change(daemon, &route("add", prefix, "red", &json!({"via": ["203.0.113.2"]})));
        assert!(reaches(red));
        let peers = servers.each_ref().map(|server| server.peers().len());
        assert_eq!(peers, [2, 1]);
        // A next hop that only the other VRF's uplink has.
        let refusal = asked(daemon, None, &route("add", "198.18.0.0/15", "red", &json!({"via": ["203.0.113.2"], "dev": "up0"}))).unwrap_err();
        assert!(refusal.message.contains("uplink \"up0\" is in VRF \"default\", and the route is in VRF \"red\""), "{refusal}");
        // One that is not there is not taken for the other VRF's.
        change(daemon, &route("remove", prefix, "default", &none));
        let again = asked(daemon, None, &route("remove", prefix, "default", &none)).unwrap();
        assert!(!again.changed);
        assert!(reaches(red));
        assert_eq!(registrations(daemon).len(), 1);
    }
}

lab_test! {
    fn addresses_come_and_go_by_vrf() {
        let twins = twins();
        let daemon = &twins.daemon;
        let [default, red] = twins.sides();
        for name in ["more", "red-more"] {
            let vrf = if name == "more" { "default" } else { "red" };
            let netns = more(&twins)[usize::from(vrf == "red")];
            let keys = json!({"name": name, "netns": netns.path(), "device": "veth", "vrf": vrf, "tcp": 26000});
            change(daemon, &json!({"type": "attach", "container": keys}));
        }
        for address in ["203.0.113.77/24", "2001:db8:1::77/64"] {
            let ip: IpAddr = address.split('/').next().unwrap().parse().unwrap();
            let to = SocketAddr::new(ip, 26000);
            let request = |what: &str, uplink: &str| {
                json!({"type": format!("address-{what}"), "uplink": uplink, "address": address})
            };
            change(daemon, &request("add", "up1"));
            assert_reached(red.external, more(&twins)[1], to);
            // Who has all addresses of its VRF has no other's.
            assert!(!daemon.attachment("more").addresses.contains(&ip));
            assert!(daemon.attachment("red-more").addresses.contains(&ip));
            let silent = udp::exchange(default.external, None, to, b"x", std::time::Duration::from_millis(100));
            assert!(silent.is_err());
            // The same one in the other VRF is another one.
            change(daemon, &request("add", "up0"));
            for (side, netns) in [default, red].into_iter().zip(more(&twins)) {
                assert_reached(side.external, netns, to);
            }
            change(daemon, &request("remove", "up1"));
            assert!(!daemon.attachment("red-more").addresses.contains(&ip));
            assert_reached(default.external, more(&twins)[0], to);
        }
    }
}

lab_test! {
    fn what_was_registered_in_a_vrf_outlives_the_daemon() {
        let twins = twins();
        let more = more(&twins).map(Clone::clone);
        let daemon = &twins.daemon;
        change(daemon, &attach("red-more", &more[1], "red", "22000"));
        change(daemon, &ports("add", "red-web", "22010-22019"));
        let range = asked(daemon, Some("once"), &allocate("red-more", 100)).unwrap().range;
        assert_eq!(range.as_deref(), Some("24000-24099"));
        change(daemon, &route("add", "192.0.2.0/24", "red", &json!({"type": "blackhole", "metric": 3})));
        change(daemon, &json!({"type": "address-add", "uplink": "up1", "address": "203.0.113.77/24"}));
        let before = registrations(daemon);
        assert_eq!(before.len(), 5, "{before:#?}");
        let Twins { mut daemon, topology, red, config, .. } = twins;
        for kill in [true, false, true] {
            daemon.forget_counters();
            let files = match kill {
                true => daemon.kill(),
                false => daemon.stop_by(Signal::SIGTERM),
            };
            daemon = Daemon::start_on(&topology.device, files);
            daemon.forget_counters();
            assert_eq!(registrations(&daemon), before);
            assert_eq!(daemon.attachment("red-more").link.vrf_name, "red");
            let routes = daemon.routes().into_iter();
            let added: Vec<_> = routes.filter(|row| row.origin == Origin::Runtime).collect();
            assert_eq!(added.len(), 1);
            assert_eq!((added[0].vrf_name.as_str(), added[0].metric), ("red", 3));
            assert_eq!(asked(&daemon, Some("once"), &allocate("red-more", 100)).unwrap().range, range);
            for family in FAMILIES {
                for port in [22000, 24099] {
                    assert_reached(&red, &more[1], family.nos_port(port));
                }
                assert_reached(&red, &topology.containers[2], family.nos_port(22010));
                // In the default VRF these are web's, and nobody's.
                assert_reached(&topology.external, &topology.containers[0], family.nos_port(22000));
                for port in [22010, 24099] {
                    let refused = tcp::connect(&topology.external, None, family.nos_port(port), LIMIT);
                    assert_refused(refused, "a port of red");
                }
            }
        }
        // A file in which that VRF is not any more: what is in it waits for it.
        let without = config.replace("vrf = \"red\"", "vrf = \"blue\"");
        let files = daemon.kill();
        files.write(&without);
        let daemon = Daemon::start_on(&topology.device, files);
        daemon.forget_counters();
        let reason = |daemon: &Daemon, name: &str| {
            let mut rows = registrations(daemon).into_iter();
            rows.find(|row| row.name == name).unwrap().reason
        };
        for name in ["red-more", "192.0.2.0/24 metric 3 in VRF \"red\""] {
            let why = reason(&daemon, name).unwrap();
            assert!(why.contains("no uplink is in VRF \"red\""), "{why}");
        }
        daemon.reload(&config);
        assert_eq!(registrations(&daemon), before);
        assert_reached(&red, &more[1], V4.nos_port(22000));
    }
}

/// The next event but drops.
fn next(events: &mut Watch) -> Event {
    loop {
        match events.next_line().unwrap().unwrap().1 {
            Watched::Event {
                event: Event::Drops { .. },
                ..
            } => {}
            Watched::Event { event, .. } => return event,
            Watched::Lost(lost) => panic!("{lost} lost"),
        }
    }
}

lab_test! {
    fn events_say_of_which_vrf_they_are_where_names_do_not() {
        let twins = twins();
        let daemon = &twins.daemon;
        let [_, red] = twins.sides();
        let mut events = watch(&daemon.files().control(), LIMIT).unwrap();
        change(daemon, &attach("red-more", more(&twins)[1], "red", "22000"));
        match next(&mut events) {
            Event::Attached { subject } => assert_eq!(
                (subject.kind, subject.name.as_deref()),
                (SubjectKind::Container, Some("red-more"))
            ),
            other => panic!("{other:?}"),
        }
        // A port of the services of red, which is nobody's in the default VRF.
        let page = V4.nos_port(8080);
        let server = udp::EchoServer::start(red.external, V4.external_port(8053)).unwrap();
        let foreign = tcp::connect(red.web, Some(page), server.address(), LIMIT);
        assert!(foreign.is_err());
        match next(&mut events) {
            Event::ForeignPort { subject, port, owner, .. } => {
                assert_eq!((subject.name.as_deref(), port), (Some("red-web"), 8080));
                assert_eq!(owner.as_deref(), Some("services of VRF 'red'"));
            }
            other => panic!("{other:?}"),
        }
        // Somebody on the network of red uses an address that the NOS has in both.
        let wire = Wire::open(red.external, red.interface);
        wire.send(&announcement(red.mac, Topology::DEVICE_V4));
        match next(&mut events) {
            Event::Conflict { subject, address, mac } => {
                assert_eq!((subject.kind, subject.name.as_deref()), (SubjectKind::Uplink, Some("up1")));
                assert_eq!((address, mac), (V4.nos, red.mac));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// By which a host says that it has an address (RFC 5227 §2.3).
fn announcement(mac: MacAddr, address: Ipv4Addr) -> Vec<u8> {
    let of_ethernet_and_ipv4 = [0, 1, 8, 0, 6, 4, 0, 1];
    let mut frame = [&[0xff; 6], &mac.0[..], &[8, 6], &of_ethernet_and_ipv4].concat();
    frame.extend([&mac.0[..], &address.octets(), &[0; 6], &address.octets()].concat());
    frame
}

lab_test! {
    fn flows_are_shown_with_their_vrf() {
        let learn = |config: String| config.replace("ephemeral = \"40000-44999\"", "outside = \"learn\"");
        let twins = Twins::edited(Variant::PLAIN, Uplinks::PacketSockets, &[], learn);
        for side in twins.sides() {
            let server = udp::EchoServer::start(side.external, V4.external_port(8053)).unwrap();
            // The same flow, to the port, in both.
            let from = Some(V4.nos_port(55_000));
            udp::exchange(side.web, from, server.address(), b"x", LIMIT).unwrap();
        }
        let mut flows: Vec<_> = twins.daemon.flows().into_iter()
            .map(|flow| (flow.vrf.0 == 0, flow.vrf_name, flow.owner, flow.local.port()))
            .collect();
        flows.sort();
        let flow = |vrf: &str, owner: &str| (vrf == "default", vrf.to_owned(), owner.to_owned(), 55_000);
        assert_eq!(flows, [flow("red", "red-web"), flow("default", "web")]);
        let text = Command::new(program()).args(["show", "flows", "--control"]).arg(twins.daemon.files().control()).output().unwrap();
        let text = String::from_utf8(text.stdout).unwrap();
        for (vrf, owner) in [("default", "web"), ("red", "red-web")] {
            assert!(text.lines().any(|line| line.split_whitespace().take(2).eq([vrf, owner])), "{text}");
        }
    }
}

lab_test! {
    fn the_commands_take_a_vrf() {
        let twins = twins();
        let daemon = &twins.daemon;
        let command = |arguments: &[&str]| {
            let mut command = Command::new(program());
            command.args(arguments).arg("--control").arg(daemon.files().control());
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            (output.status.success(), said)
        };
        let netns = more(&twins)[1].path();
        let netns = netns.to_str().unwrap();
        let attached = command(&[
            "attach", "red-more", "--netns", netns, "--device", "veth", "--vrf", "red", "--tcp", "22000",
            "--address", "203.0.113.1",
        ]);
        assert!(attached.0, "{attached:?}");
        let [_, red] = twins.sides();
        assert_reached(red.external, more(&twins)[1], V4.nos_port(22000));
        let add = ["route", "add", "192.0.2.0/24", "--type", "blackhole", "--vrf"];
        for vrf in ["red", "default"] {
            let added = command(&[&add[..], &[vrf]].concat());
            assert!(added.0, "{added:?}");
        }
        let removed = command(&["route", "remove", "192.0.2.0/24", "--vrf", "red"]);
        assert!(removed.0, "{removed:?}");
        let names: Vec<_> = registrations(daemon).into_iter().map(|row| row.name).collect();
        assert_eq!(names, ["red-more", "192.0.2.0/24 metric 0"]);
    }
}
