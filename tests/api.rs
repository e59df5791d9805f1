//! What is asked for at run time over the control socket, on real kernels.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(
    clippy::needless_pass_by_value,
    reason = "requests are written where they are asked"
)]

mod support;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use jsonschema::Validator;
use nos_relay::control::api::snapshot::{
    Counters, LinkState, Origin, Port, PortKind, Protocol, Stage,
};
use nos_relay::control::api::{
    Applied, Event, MAX_REQUEST, Refusal, RefusalCode, Response, SubjectKind, Watched, watch,
    watch_registrations,
};
use nos_relay::lab::testbed::tcp::{Direction, Transfer};
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp, udp};
use serde_json::{Value, json};
use support::daemon::{Daemon, LIMIT, await_that, program};
use support::lab_test;
use support::scenario::{FAMILIES, Family, Scenario, V4, Variant, edited, variant_tests};
use support::traffic;

/// What every line is to be like.
fn schema() -> &'static Validator {
    static SCHEMA: OnceLock<Validator> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let text = include_str!("../docs/control.schema.json");
        jsonschema::validator_for(&serde_json::from_str(text).unwrap()).unwrap()
    })
}

fn assert_as_documented(line: &Value) {
    if let Err(error) = schema().validate(line) {
        panic!("{line} is not of the schema: {error}");
    }
}

/// Connects, says a line, and reads what comes until the daemon closes.
fn said_to(daemon: &Daemon, line: &str) -> Value {
    let mut stream = UnixStream::connect(daemon.files().control()).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    // One that is too long is answered before it is read to its end.
    let _ = stream.write_all(format!("{line}\n").as_bytes());
    let mut answer = String::new();
    // And reset, as the rest of it was not read.
    let _ = stream.read_to_string(&mut answer);
    let answer = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{answer:?} to {line}"));
    assert_as_documented(&answer);
    answer
}

/// What the daemon answers to a request. Both are as documented.
fn asked(daemon: &Daemon, id: Option<&str>, request: Value) -> Result<Applied, Refusal> {
    if request["type"] == "detach" {
        daemon.forget_counters();
    }
    let mut line = json!({"version": 1, "request": request});
    if let Some(id) = id {
        line["id"] = id.into();
    }
    let response = said_to(daemon, &line.to_string())["response"].take();
    let answer = match serde_json::from_value(response).unwrap() {
        Response::Changed(applied) => Ok(applied),
        Response::Refused(refusal) => Err(refusal),
        other => panic!("{other:?}"),
    };
    let bad = |refusal: &Refusal| refusal.code == RefusalCode::BadRequest;
    if !answer.as_ref().is_err_and(bad) {
        assert_as_documented(&line);
    }
    answer
}

/// A change that is made.
fn change(daemon: &Daemon, request: Value) {
    let applied = asked(daemon, None, request.clone()).unwrap();
    assert!(applied.changed, "{request}");
    assert_eq!(applied.waiting, None, "{request}");
}

/// A change that was made before.
fn no_change(daemon: &Daemon, request: Value) {
    let applied = asked(daemon, None, request.clone()).unwrap();
    assert!(!applied.changed, "{request}");
}

fn refused(daemon: &Daemon, request: Value) -> Refusal {
    asked(daemon, None, request).unwrap_err()
}

fn ports(action: &str, container: &str, ports: Value) -> Value {
    let mut request = json!({"type": format!("ports-{action}"), "container": container});
    let object = request.as_object_mut().unwrap();
    object.extend(ports.as_object().unwrap().clone());
    request
}

fn attach(name: &str, netns: &LabNamespace, more: Value) -> Value {
    let mut container = json!({"name": name, "netns": netns.path(), "device": "veth"});
    let object = container.as_object_mut().unwrap();
    object.extend(more.as_object().unwrap().clone());
    json!({"type": "attach", "container": container})
}

fn detach(name: &str) -> Value {
    json!({"type": "detach", "name": name})
}

/// The ranges of an owner, by protocol and use.
fn ranges(daemon: &Daemon, owner: &str) -> Vec<(Protocol, String, PortKind, Origin)> {
    let mut rows = daemon.ports();
    rows.retain(|row| row.owner == owner);
    let row = |row: Port| (row.protocol, row.range.to_string(), row.kind, row.origin);
    let mut rows: Vec<_> = rows.into_iter().map(row).collect();
    rows.sort();
    rows
}

fn assert_reached(scenario: &Scenario, container: &LabNamespace, family: Family, port: u16) {
    traffic::assert_reached(scenario.external(), container, family.nos_port(port));
    let _server = udp::EchoServer::start(container, family.nos_port(port)).unwrap();
    udp::exchange(
        scenario.external(),
        None,
        family.nos_port(port),
        b"x",
        LIMIT,
    )
    .unwrap();
}

fn assert_refused(scenario: &Scenario, family: Family, port: u16) {
    let error = tcp::connect(scenario.external(), None, family.nos_port(port), LIMIT).unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{error}");
    let error = udp::exchange(
        scenario.external(),
        None,
        family.nos_port(port),
        b"x",
        LIMIT,
    );
    let error = error.unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{error}");
}

fn registered_ports_are_reached_until_they_are_removed(variant: Variant) {
    let scenario = Scenario::new(variant);
    let daemon = &scenario.daemon;
    for family in FAMILIES {
        assert_refused(&scenario, family, 23000);
    }
    let both = json!({"tcp": ["23000-23099"], "udp": "23000-23099"});
    change(daemon, ports("add", "web", both.clone()));
    for family in FAMILIES {
        assert_reached(&scenario, scenario.web(), family, 23000);
    }
    no_change(daemon, ports("add", "web", both.clone()));
    // A part goes: the rest stays.
    change(
        daemon,
        ports("remove", "web", json!({"tcp": 23000, "udp": 23000})),
    );
    for family in FAMILIES {
        assert_refused(&scenario, family, 23000);
        assert_reached(&scenario, scenario.web(), family, 23001);
    }
    change(daemon, ports("remove", "web", both.clone()));
    no_change(daemon, ports("remove", "web", both));
    for family in FAMILIES {
        assert_refused(&scenario, family, 23001);
        assert_reached(&scenario, scenario.web(), family, 20000);
    }
}

mod registered_ports {
    use super::*;

    fn scenario(variant: Variant) {
        registered_ports_are_reached_until_they_are_removed(variant);
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        veth_split: ("veth", "split", [true, true]),
    }
}

lab_test! {
    fn a_clash_names_owner_range_and_the_nearest_free_range_and_changes_nothing() {
        let scenario = Scenario::new(Variant::PLAIN);
        let daemon = &scenario.daemon;
        let before = daemon.ports();
        let lists = json!({"udp": ["24000"], "tcp": ["23000-23099", "21500-21599"]});
        let refusal = refused(daemon, ports("add", "web", lists));
        assert_eq!(refusal.code, RefusalCode::Conflict);
        assert_eq!(refusal.field.as_deref(), Some("ports.tcp"));
        let clash = refusal.clash.unwrap();
        assert_eq!(clash.owner, "container \"db\"");
        assert_eq!(clash.range, "21000-21999");
        assert_eq!(clash.free.as_deref(), Some("22000-22099"));
        assert!(refusal.message.contains("21000-21999 of container \"db\" (line "));
        assert!(refusal.message.ends_with("; 22000-22099 is free"), "{}", refusal.message);
        assert_eq!(daemon.ports(), before);
        // What is free can be had, and is somebody's then.
        change(daemon, ports("add", "web", json!({"tcp": clash.free.unwrap()})));
        let refusal = refused(daemon, ports("add", "db", json!({"tcp": "22050"})));
        let clash = refusal.clash.unwrap();
        assert_eq!((clash.owner.as_str(), clash.range.as_str()), ("container \"web\"", "22000-22099"));
        assert!(refusal.message.contains("(added at run time)"), "{}", refusal.message);
    }
}

lab_test! {
    fn what_a_container_has_besides_is_replaced_as_a_whole_and_the_files_stays() {
        let scenario = Scenario::new(Variant::PLAIN);
        let daemon = &scenario.daemon;
        let file = ranges(daemon, "web");
        assert!(file.iter().all(|(.., origin)| *origin == Origin::Config));
        change(daemon, ports("add", "web", json!({"tcp": ["23000-23009", "23020"], "udp": 23000})));
        change(daemon, ports("replace", "web", json!({"tcp": ["23005-23024", "20000-20099"]})));
        let mut expected = file.clone();
        let range = "23005-23024".to_owned();
        expected.push((Protocol::Tcp, range, PortKind::Listen, Origin::Runtime));
        expected.sort();
        assert_eq!(ranges(daemon, "web"), expected);
        no_change(daemon, ports("replace", "web", json!({"tcp": "23005-23024"})));
        change(daemon, ports("replace", "web", json!({})));
        assert_eq!(ranges(daemon, "web"), file);
        // What is of the file is not taken away from here.
        let refusal = refused(daemon, ports("remove", "web", json!({"tcp": "179"})));
        assert_eq!(refusal.field.as_deref(), Some("ports.tcp"));
        assert!(refusal.message.contains("take it out of the file and reload"));
        assert_eq!(ranges(daemon, "web"), file);
    }
}

lab_test! {
    fn a_transfer_loses_nothing_while_other_ports_change() {
        let scenario = Scenario::new(Variant::PLAIN);
        let daemon = &scenario.daemon;
        let progress = AtomicU64::new(0);
        let transfer = Transfer {
            client: scenario.external(),
            server: scenario.web(),
            listen: V4.nos_port(20000),
            connect: V4.nos_port(20000),
            source: None,
            direction: Direction::Upload,
            octets: 200 << 20,
            limit: 2 * LIMIT,
        };
        let before = drops(&daemon.counters());
        let mut changes = 0;
        std::thread::scope(|scope| {
            let transfer = scope.spawn(|| transfer.run(&progress).unwrap());
            while !transfer.is_finished() {
                change(daemon, ports("add", "web", json!({"tcp": "23000-23099"})));
                change(daemon, ports("remove", "web", json!({"tcp": "23000-23099"})));
                changes += 1;
            }
        });
        assert!(changes > 0);
        assert_eq!(drops(&daemon.counters()), before);
    }
}

/// What was dropped of anything but what the kernels of containers say by themselves.
fn drops(counters: &Counters) -> Vec<(String, String, u64)> {
    let of_stage = |stage: &Stage| {
        let name = stage.name.clone();
        let drops = stage.drops.clone().into_iter();
        drops.map(move |(reason, count)| (name.clone(), reason, count))
    };
    let all = counters.stages.iter().flat_map(of_stage);
    all.filter(|(_, reason, _)| reason != "multicast").collect()
}

/// What somebody in a namespace can see of what attaching touches.
fn interior(namespace: &LabNamespace) -> Vec<String> {
    let range = "net/ipv4/ip_local_port_range";
    let mut lines = vec![namespace.read_sysctl(range).unwrap()];
    for interface in ["lo", "eth0", "other"] {
        if let Some(link) = namespace.link(interface).unwrap() {
            lines.push(format!(
                "{interface} {:?} {} {}",
                link.mac, link.mtu, link.up
            ));
            let mut addresses = namespace.addresses(interface).unwrap();
            addresses.sort();
            lines.extend(addresses.iter().map(ToString::to_string));
        }
    }
    for file in ["route", "ipv6_route"] {
        let read = || std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
        let text = namespace.run(read).unwrap();
        // Link-local and multicast routes come and go with the carrier, at the kernel's pace. Of
        // each table that there ever was the kernel shows the end.
        let lasting = text.lines().filter(|line| {
            !line.starts_with("fe80") && !line.starts_with("ff00") && !line.contains(" ffffffff ")
        });
        // Columns of counters change by themselves.
        lines.extend(lasting.map(|line| match file {
            "ipv6_route" => [&line[..118], &line[136..]].concat(),
            _ => line.to_owned(),
        }));
    }
    lines
}

fn a_container_is_attached_and_detached(variant: Variant) {
    let topology = Topology::new(&["web", "db"]).unwrap();
    let config = support::scenario::config(&topology, variant);
    let db = config.find("[[container]]\nname = \"db\"").unwrap();
    let daemon = Daemon::start(&topology.device, &config[..db]);
    let config = config[..db].to_owned();
    let scenario = Scenario {
        daemon,
        topology,
        config,
    };
    let daemon = &scenario.daemon;
    let before = interior(scenario.db());
    let keys = json!({
        "device": variant.device,
        "tcp": ["21000-21999"],
        "udp": ["21000-21999"],
        "ephemeral": "45000-49999",
    });
    let request = attach("db", scenario.db(), keys);
    change(daemon, request.clone());
    no_change(daemon, request.clone());
    let shown = daemon.attachment("db");
    assert_eq!(
        (shown.origin, shown.link.state),
        (Origin::Runtime, LinkState::Up)
    );
    assert_eq!(daemon.attachment("web").origin, Origin::Config);
    for family in FAMILIES {
        assert_reached(&scenario, scenario.db(), family, 21000);
        let server =
            tcp::EchoServer::start(scenario.external(), family.external_port(7000)).unwrap();
        let from = tcp::exchange(scenario.db(), None, server.address(), b"x", LIMIT).unwrap();
        assert!((45000..=49999).contains(&from.port()));
    }
    // It survives a reload, with what changed since.
    change(
        daemon,
        ports("add", "db", json!({"tcp": 24000, "udp": 24000})),
    );
    change(daemon, ports("remove", "db", json!({"tcp": "21500-21999"})));
    no_change(daemon, request.clone());
    daemon.reload(&scenario.config);
    for family in FAMILIES {
        assert_reached(&scenario, scenario.db(), family, 24000);
        let error = tcp::connect(scenario.external(), None, family.nos_port(21500), LIMIT);
        assert_eq!(
            error.unwrap_err().kind(),
            Some(ErrorKind::ConnectionRefused)
        );
    }
    // Other keys for the same name are no request to change it.
    let other = attach("db", scenario.db(), json!({"tcp": 24001}));
    let refusal = refused(daemon, other);
    assert_eq!(refusal.field.as_deref(), Some("container.name"));
    assert!(
        refusal.message.contains("already added at run time"),
        "{}",
        refusal.message
    );

    change(daemon, detach("db"));
    no_change(daemon, detach("db"));
    assert_eq!(interior(scenario.db()), before);
    assert_eq!(ranges(daemon, "db"), []);
    for family in FAMILIES {
        assert_refused(&scenario, family, 21000);
        assert_reached(&scenario, scenario.web(), family, 20000);
    }
    let refusal = refused(daemon, detach("web"));
    assert_eq!(refusal.field.as_deref(), Some("detach.name"));
    assert!(
        refusal
            .message
            .contains("container \"web\" is in the configuration (line ")
    );
}

mod attached_at_run_time {
    use super::*;

    fn scenario(variant: Variant) {
        a_container_is_attached_and_detached(variant);
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        veth_single: ("veth", "single", [true, true]),
        veth_split: ("veth", "split", [true, true]),
    }
}

lab_test! {
    fn a_container_is_found_by_a_process_and_one_that_is_away_is_waited_for() {
        let topology = Topology::new(&["web", "db", "third"]).unwrap();
        let config = support::scenario::config(&topology, Variant::PLAIN);
        let daemon = Daemon::start(&topology.device, &config);
        let scenario = Scenario { daemon, topology, config };
        let third = scenario.topology.containers[2].clone();
        let mut sleeper = Command::new("sleep");
        sleeper.arg("600");
        let mut process = third.spawn(sleeper).unwrap();
        let keys = json!({"name": "third", "pid": process.id(), "device": "veth", "tcp": 24000, "udp": 24000});
        change(&scenario.daemon, json!({"type": "attach", "container": keys}));
        assert_reached(&scenario, &third, V4, 24000);
        process.kill().unwrap();
        process.wait().unwrap();
        change_or_wait(&scenario.daemon, detach("third"));

        let away = scenario.daemon.files().path("not-yet");
        let keys = json!({"name": "away", "netns": away, "device": "veth", "tcp": 24001});
        let applied = asked(&scenario.daemon, None, json!({"type": "attach", "container": keys})).unwrap();
        assert!(applied.changed && applied.waiting.is_some(), "{applied:?}");
        assert_eq!(scenario.daemon.attachment("away").link.state, LinkState::Waiting);
        // Its ports are promised to it.
        let refusal = refused(&scenario.daemon, ports("add", "web", json!({"tcp": 24001})));
        assert_eq!(refusal.clash.unwrap().owner, "container \"away\"");
        change(&scenario.daemon, detach("away"));
        change(&scenario.daemon, ports("add", "web", json!({"tcp": 24001})));
    }
}

fn change_or_wait(daemon: &Daemon, request: Value) {
    assert!(asked(daemon, None, request).unwrap().changed);
}

lab_test! {
    fn what_the_kernel_refuses_leaves_all_as_it_was() {
        let topology = Topology::new(&["web", "db", "third"]).unwrap();
        let config = support::scenario::config(&topology, Variant::PLAIN);
        let daemon = Daemon::start(&topology.device, &config);
        let scenario = Scenario { daemon, topology, config };
        let daemon = &scenario.daemon;
        let third = scenario.topology.containers[2].clone();
        // Somebody else has an interface of that name there.
        nos_relay::lab::testbed::veth((&third, "eth0"), (&third, "other")).unwrap();
        let before = interior(&third);
        let shown = (daemon.ports(), daemon.attachments().len());
        let request = attach("third", &third, json!({"tcp": 24000}));
        let refusal = refused(daemon, request.clone());
        assert_eq!(refusal.code, RefusalCode::Refused);
        assert!(refusal.message.contains("eth0"), "{}", refusal.message);
        assert_eq!((daemon.ports(), daemon.attachments().len()), shown);
        assert_eq!(interior(&third), before);
        // The namespace of another container.
        let refusal = refused(daemon, attach("fourth", scenario.web(), json!({"interface": "eth1"})));
        assert_eq!(refusal.code, RefusalCode::Refused);
        assert!(refusal.message.contains("container 'web'"), "{}", refusal.message);
        assert_eq!((daemon.ports(), daemon.attachments().len()), shown);
        third.delete_link("eth0").unwrap();
        change(daemon, request);
        traffic::assert_reached(scenario.external(), &third, V4.nos_port(24000));
        change(daemon, detach("third"));
    }
}

lab_test! {
    fn a_request_with_an_id_is_done_once() {
        let scenario = Scenario::with(Variant::PLAIN, "[ports]\npool = [\"24000-24009\", \"25000-25999\"]\n");
        let daemon = &scenario.daemon;
        let allocate = |size: u32| json!({
            "type": "ports-allocate", "container": "web", "size": size, "protocol": "tcp",
        });
        let first = asked(daemon, Some("a-1"), allocate(100)).unwrap();
        assert_eq!((first.changed, first.range.as_deref()), (true, Some("25000-25099")));
        assert_eq!(asked(daemon, Some("a-1"), allocate(100)).unwrap(), first);
        let refusal = asked(daemon, Some("a-1"), allocate(99)).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::IdReused);
        // Another id is another request.
        let second = asked(daemon, Some("a-2"), allocate(100)).unwrap();
        assert_eq!(second.range.as_deref(), Some("25100-25199"));
        assert_eq!(asked(daemon, None, allocate(10)).unwrap().range.as_deref(), Some("24000-24009"));
        traffic::assert_reached(scenario.external(), scenario.web(), V4.nos_port(25199));
        let refusal = refused(daemon, allocate(801));
        assert_eq!(refusal.field.as_deref(), Some("allocate.size"));
        assert!(refusal.message.contains("no 801 ports in a row are free"));
        // A refusal is an answer as well.
        let bad = ports("add", "web", json!({"tcp": 21000}));
        let refusal = asked(daemon, Some("b"), bad.clone()).unwrap_err();
        assert_eq!(asked(daemon, Some("b"), bad).unwrap_err(), refusal);
        for id in ["", "a b", &"x".repeat(65)] {
            let refusal = asked(daemon, Some(id), allocate(1)).unwrap_err();
            assert_eq!(refusal.field.as_deref(), Some("id"), "{id:?}");
        }
    }
}

lab_test! {
    fn allocated_ports_are_of_the_kind_that_was_asked_for() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let config = support::scenario::config(&topology, Variant::PLAIN);
        let config = edited(&config, "ephemeral = \"40000-44999\"", "")
            + "[ports]\npool = \"39990-40999\"\n";
        let daemon = Daemon::start(&topology.device, &config);
        let allocate = json!({
            "type": "ports-allocate", "container": "web", "size": 500, "kind": "ephemeral",
        });
        let applied = asked(&daemon, None, allocate.clone()).unwrap();
        assert_eq!(applied.range.as_deref(), Some("39990-40489"));
        let range = topology.containers[0].read_sysctl("net/ipv4/ip_local_port_range").unwrap();
        assert_eq!(range.split_whitespace().collect::<Vec<_>>(), ["39990", "40489"]);
        let _server = tcp::EchoServer::start(&topology.external, V4.external_port(7000)).unwrap();
        let from = tcp::exchange(&topology.containers[0], None, V4.external_port(7000), b"x", LIMIT);
        assert!((39990..=40489).contains(&from.unwrap().port()));
        let more = asked(&daemon, None, allocate).unwrap();
        assert_eq!(more.range.as_deref(), Some("40490-40989"));
        let range = topology.containers[0].read_sysctl("net/ipv4/ip_local_port_range").unwrap();
        assert_eq!(range.split_whitespace().collect::<Vec<_>>(), ["39990", "40989"]);
        let both = json!({"type": "ports-allocate", "container": "db", "size": 10});
        assert_eq!(asked(&daemon, None, both).unwrap().range.as_deref(), Some("40990-40999"));
        let listens = |row: &&(Protocol, String, PortKind, Origin)| row.1 == "40990-40999";
        assert_eq!(ranges(&daemon, "db").iter().filter(listens).count(), 2);
    }
}

lab_test! {
    fn routes_come_and_go() {
        let scenario = Scenario::with(Variant::PLAIN, "\n[[route]]\nprefix = \"198.51.100.0/24\"\ntype = \"blackhole\"\n");
        let daemon = &scenario.daemon;
        let loopback: IpAddr = "192.0.2.7".parse().unwrap();
        scenario.external().add_address("lo", "192.0.2.7/32".parse().unwrap()).unwrap();
        let server = tcp::EchoServer::start(scenario.external(), SocketAddr::new(loopback, 7000)).unwrap();
        assert!(tcp::exchange(scenario.web(), None, server.address(), b"x", LIMIT).is_err());
        let route = json!({"prefix": "192.0.2.0/24", "via": [V4.external]});
        let add = json!({"type": "route-add", "route": route});
        change(daemon, add.clone());
        no_change(daemon, add);
        tcp::exchange(scenario.web(), None, server.address(), b"x", LIMIT).unwrap();
        let origin = |prefix: &str| {
            let mut routes = daemon.routes().into_iter();
            routes.find(|route| route.prefix == prefix.parse().unwrap()).unwrap().origin
        };
        assert_eq!(origin("192.0.2.0/24"), Origin::Runtime);
        assert_eq!(origin("198.51.100.0/24"), Origin::Config);
        daemon.reload(&scenario.config);
        tcp::exchange(scenario.web(), None, server.address(), b"x", LIMIT).unwrap();
        let other = json!({"type": "route-add", "route": {"prefix": "192.0.2.0/24", "type": "blackhole"}});
        let refusal = refused(daemon, other);
        assert_eq!(refusal.field.as_deref(), Some("route.prefix"));
        assert!(refusal.message.contains("with metric 0 is already added at run time"), "{}", refusal.message);
        let remove = json!({"type": "route-remove", "prefix": "192.0.2.0/24"});
        change(daemon, remove.clone());
        no_change(daemon, remove);
        assert!(tcp::exchange(scenario.web(), None, server.address(), b"x", LIMIT).is_err());
        let refusal = refused(daemon, json!({"type": "route-remove", "prefix": "198.51.100.0/24"}));
        assert_eq!(refusal.field.as_deref(), Some("route-remove.prefix"));
    }
}

lab_test! {
    fn addresses_come_and_go_and_containers_follow() {
        let scenario = Scenario::new(Variant::PLAIN);
        let daemon = &scenario.daemon;
        let second: IpAddr = "203.0.113.77".parse().unwrap();
        let request = |what: &str| json!({
            "type": format!("address-{what}"), "uplink": "up0", "address": "203.0.113.77/24",
        });
        change(daemon, request("add"));
        no_change(daemon, request("add"));
        let to = SocketAddr::new(second, 20000);
        let _server = tcp::EchoServer::start(scenario.web(), to).unwrap();
        tcp::exchange(scenario.external(), None, to, b"x", LIMIT).unwrap();
        assert_eq!(daemon.uplink("up0").runtime_addresses, ["203.0.113.77/24".parse().unwrap()]);
        daemon.reload(&scenario.config);
        tcp::exchange(scenario.external(), None, to, b"x", LIMIT).unwrap();
        drop(_server);
        change(daemon, request("remove"));
        no_change(daemon, request("remove"));
        assert!(!daemon.attachment("web").addresses.contains(&second));
        let refusal = refused(daemon, json!({
            "type": "address-remove", "uplink": "up0", "address": "203.0.113.1/24",
        }));
        assert_eq!(refusal.field.as_deref(), Some("address.address"));
        let refusal = refused(daemon, json!({
            "type": "address-add", "uplink": "up1", "address": "203.0.113.77/24",
        }));
        assert_eq!(refusal.field.as_deref(), Some("address.uplink"));
    }
}

lab_test! {
    fn a_file_that_clashes_with_what_was_registered_is_refused_and_what_it_says_itself_is_its() {
        let scenario = Scenario::new(Variant::PLAIN);
        let daemon = &scenario.daemon;
        change(daemon, ports("add", "web", json!({"tcp": "23000-23099"})));
        let before = daemon.ports();
        let clashing = scenario.edited("tcp = [\"21000-21999\"]", "tcp = [\"21000-21999\", \"23050\"]");
        daemon.reload(&clashing);
        assert_eq!(daemon.ports(), before);
        assert!(daemon.log().contains("tcp 23000-23099 overlaps 23050 of container"));
        // The file lists half of them: the other half is still of run time.
        let listed = scenario.edited("\"179\"", "\"179\", \"23000-23049\"");
        daemon.reload(&listed);
        let web = ranges(daemon, "web");
        let has = |range: &str, origin| web.contains(&(Protocol::Tcp, range.to_owned(), PortKind::Listen, origin));
        assert!(has("23000-23049", Origin::Config) && has("23050-23099", Origin::Runtime), "{web:?}");
    }
}

/// Runs the program with a daemon's socket.
fn command(daemon: &Daemon, arguments: &[&str]) -> Output {
    let mut command = Command::new(program());
    command
        .args(arguments)
        .arg("--control")
        .arg(daemon.files().control());
    command.output().unwrap()
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |octets: &[u8]| String::from_utf8(octets.to_vec()).unwrap();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

lab_test! {
    fn the_commands_do_what_the_requests_do() {
        let topology = Topology::new(&["web", "db", "third"]).unwrap();
        let config = support::scenario::config(&topology, Variant::PLAIN) + "[ports]\npool = \"24000-24099\"\n";
        let daemon = Daemon::start(&topology.device, &config);
        let third = topology.containers[2].path();
        let third = third.to_str().unwrap();
        let run = |line: &str| {
            let arguments: Vec<_> = line.split(' ').map(|word| if word == "THIRD" { third } else { word }).collect();
            said(&command(&daemon, &arguments))
        };
        let done = (Some(0), "Done.\n".to_owned(), String::new());
        let same = (Some(0), "It is so already: nothing has changed.\n".to_owned(), String::new());
        for (line, answer) in [
            ("attach third --netns THIRD --device veth --tcp 25000,25002 --udp 25000 --set interface=\"eth7\"", &done),
            ("attach third --netns THIRD --device veth --tcp 25000,25002 --udp 25000 --set interface=\"eth7\"", &same),
            ("ports add third --tcp 25010-25019 --ephemeral 55000-55999", &done),
            ("ports remove third --tcp 25000", &done),
            ("route add 192.0.2.0/24 --via 203.0.113.2", &done),
            ("route add 2001:db8:9::/48 --type unreachable --metric 7", &done),
            ("route remove 2001:db8:9::/48", &same),
            ("route remove 2001:db8:9::/48 --metric 7", &done),
            ("address add up0 203.0.113.9/24", &done),
            ("address remove up0 203.0.113.9/24", &done),
        ] {
            assert_eq!(&run(line), answer, "{line}");
        }
        assert_eq!(daemon.attachment("third").link.interface, "eth7");
        let allocated = run("ports allocate third --size 10 --protocol tcp --id x");
        assert_eq!(allocated, (Some(0), "24000-24009\n".to_owned(), String::new()));
        assert_eq!(run("ports allocate third --size 10 --protocol tcp --id x"), allocated);
        let (code, list, _) = run("ports list third");
        assert_eq!(code, Some(0));
        for range in ["25002", "25010-25019", "24000-24009", "55000-55999"] {
            assert!(list.contains(range), "{list}");
        }
        assert!(!list.contains("20000-20999"), "{list}");
        let (code, out, err) = run("ports add third --tcp 20000");
        assert_eq!((code, out.as_str()), (Some(1), ""));
        assert!(err.starts_with("nos-relay: the daemon refuses: ports.tcp: tcp 20000 overlaps 20000-20999 of container \"web\""), "{err}");
        let (code, out, err) = run("ports add third --tcp 20000 --json");
        assert_eq!((code, err.as_str()), (Some(1), ""));
        let refusal: Refusal = serde_json::from_str(&out).unwrap();
        assert_eq!(refusal.code, RefusalCode::Conflict);
        assert_eq!(run("ports replace third"), done);
        daemon.forget_counters();
        assert_eq!(run("detach third --json").1, "{\n  \"changed\": true\n}\n");
    }
}

/// A child that is killed at the end.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

lab_test! {
    fn who_watches_is_told_what_happens() {
        let topology = Topology::new(&["web", "db", "third"]).unwrap();
        let config = support::scenario::config(&topology, Variant::PLAIN);
        let daemon = Daemon::start(&topology.device, &config);
        let mut events = watch(&daemon.files().control(), LIMIT).unwrap();
        let mut next = || {
            let (line, watched) = events.next_line().unwrap().unwrap();
            assert_as_documented(&serde_json::from_str(&line).unwrap());
            watched
        };
        let mut next = || match next() {
            Watched::Event { event, .. } => event,
            Watched::Lost(lost) => panic!("{lost} lost"),
        };
        // Drops may come at any time.
        let mut next = move || loop {
            match next() {
                Event::Drops { .. } => {}
                event => return event,
            }
        };
        let of = |event: &Event, name: &str| match event {
            Event::Attached { subject } | Event::Gone { subject } | Event::Healed { subject } | Event::Refused { subject, .. } => {
                subject.kind == SubjectKind::Container && subject.name.as_deref() == Some(name)
            }
            _ => false,
        };
        let third = &topology.containers[2];
        change(&daemon, attach("third", third, json!({"tcp": 24000})));
        let event = next();
        assert!(matches!(event, Event::Attached { .. }) && of(&event, "third"), "{event:?}");
        // Somebody takes its address away inside.
        third.delete_address("lo", "203.0.113.1/32".parse().unwrap()).unwrap();
        let event = next();
        assert!(matches!(event, Event::Healed { .. }) && of(&event, "third"), "{event:?}");
        change(&daemon, detach("third"));
        let event = next();
        assert!(matches!(event, Event::Gone { .. }) && of(&event, "third"), "{event:?}");
        nos_relay::lab::testbed::veth((third, "eth0"), (third, "other")).unwrap();
        refused(&daemon, attach("third", third, json!({"tcp": 24000})));
        let event = next();
        assert!(matches!(event, Event::Refused { .. }) && of(&event, "third"), "{event:?}");
    }
}

lab_test! {
    fn who_asks_for_registrations_is_told_all_of_them_and_each_change() {
        let topology = Topology::new(&["web", "db", "third"]).unwrap();
        let config = support::scenario::config(&topology, Variant::PLAIN);
        let daemon = Daemon::start(&topology.device, &config);
        let path = daemon.files().control();
        let request = json!({"version": 1, "request": {"type": "watch", "registrations": true}});
        assert_as_documented(&request);
        let mut stream = UnixStream::connect(&path).unwrap();
        writeln!(stream, "{request}").unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_as_documented(&answer);
        assert_eq!(answer["response"]["data"], json!({"registrations": 2}));
        // Who has not asked for it is told nothing of it.
        let (mut all, mut plain) = (
            watch_registrations(&path, LIMIT).unwrap(),
            watch(&path, LIMIT).unwrap(),
        );
        let mut next = || {
            let (line, _) = all.next_line().unwrap().unwrap();
            let line: Value = serde_json::from_str(&line).unwrap();
            assert_as_documented(&line);
            line["event"].clone()
        };
        let mut next = move || loop {
            let event = next();
            if event["type"] == "registration" {
                let ranges = event["ports"].as_array().unwrap().iter().map(|ports| {
                    let [protocol, kind, range] =
                        ["protocol", "kind", "range"].map(|key| ports[key].as_str().unwrap());
                    format!("{protocol} {kind} {range}")
                });
                let ranges: Vec<_> = ranges.collect();
                return (event["name"].as_str().unwrap().to_owned(), ranges, event["addresses"].clone());
            }
        };
        let mut first = [next(), next()];
        first.sort_by(|a, b| a.0.cmp(&b.0));
        let [(db, ..), (web, ranges, addresses)] = first;
        assert_eq!((db.as_str(), web.as_str()), ("db", "web"));
        for range in ["tcp listen 20000-20999", "udp listen 20000-20999", "tcp ephemeral 40000-44999", "udp ephemeral 40000-44999"] {
            assert!(ranges.iter().any(|it| it == range), "{ranges:?}");
        }
        assert_eq!(addresses, json!(["203.0.113.1", "2001:db8:1::1"]));

        let third = &topology.containers[2];
        change(&daemon, attach("third", third, json!({"tcp": 24000, "addresses": ["203.0.113.1"]})));
        let told = next();
        assert_eq!(told, ("third".to_owned(), vec!["tcp listen 24000".to_owned()], json!(["203.0.113.1"])));
        change(&daemon, ports("add", "third", json!({"udp": "24010-24019"})));
        let (_, ranges, _) = next();
        assert_eq!(ranges, ["tcp listen 24000", "udp listen 24010-24019"]);
        // What is refused is not told.
        refused(&daemon, ports("add", "third", json!({"tcp": 20000})));
        change(&daemon, ports("remove", "third", json!({"udp": "24010-24019"})));
        assert_eq!(next().1, ["tcp listen 24000"]);
        daemon.forget_counters();
        change(&daemon, detach("third"));
        assert_eq!(next(), ("third".to_owned(), Vec::new(), json!([])));
        loop {
            match plain.next_line().unwrap().unwrap().1 {
                Watched::Event { event: Event::Gone { .. }, .. } => break,
                Watched::Event { event: Event::Registration { .. }, .. } => panic!("nobody asked"),
                _ => {}
            }
        }
    }
}

lab_test! {
    fn drops_are_told_to_who_watches_by_the_command() {
        let scenario = Scenario::new(Variant::PLAIN);
        let mut watching = Command::new(program());
        watching.args(["watch", "--json", "--control"]).arg(scenario.daemon.files().control());
        watching.stdout(Stdio::piped());
        let mut child = Killed(watching.spawn().unwrap());
        let mut lines: BufReader<ChildStdout> = BufReader::new(child.0.stdout.take().unwrap());
        // Until the command is there, what is dropped is not told to it.
        let line = std::thread::scope(|scope| {
            let line = scope.spawn(move || {
                let mut line = String::new();
                lines.read_line(&mut line).unwrap();
                line
            });
            await_that("an event", || {
                let to = V4.nos_port(23000);
                assert!(tcp::connect(scenario.external(), None, to, LIMIT).is_err());
                line.is_finished().then_some(()).ok_or_else(String::new)
            });
            line.join().unwrap()
        });
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_as_documented(&line);
        assert_eq!(line["event"]["type"], "drops");
        assert!(line["event"]["nos"]["no-listener"].as_u64().unwrap() > 0, "{line}");
    }
}

lab_test! {
    fn ten_thousand_ranges_come_in_one_request() {
        let scenario = Scenario::new(Variant::PLAIN);
        let daemon = &scenario.daemon;
        // Every second port, but those that others have, and some are taken out again.
        let free = |port: &u32| !(20000..=22000).contains(port) && !(39000..=50001).contains(port);
        let all: Vec<u32> = (2000..=65534).step_by(2).filter(free).take(10_000).collect();
        let mut list: Vec<Value> = all.iter().map(|port| json!(format!("{port}"))).collect();
        list.extend(all[..100].iter().map(|port| json!(format!("{}-{}", port, port + 1))));
        list.extend(all[..100].iter().map(|port| json!(format!("!{}", port + 1))));
        assert_eq!(all.len(), 10_000);
        change(daemon, ports("add", "web", json!({"tcp": list, "udp": list})));
        let rows = ranges(daemon, "web");
        let added = rows.iter().filter(|(.., origin)| *origin == Origin::Runtime);
        assert_eq!(added.count(), 20_000);
        assert_reached(&scenario, scenario.web(), V4, u16::try_from(all[9_999]).unwrap());
        assert_refused(&scenario, V4, u16::try_from(all[9_999] + 1).unwrap());
        change(daemon, ports("replace", "web", json!({})));
        assert_refused(&scenario, V4, u16::try_from(all[9_999]).unwrap());
    }
}

lab_test! {
    fn tables_are_as_the_schema_says() {
        let scenario = Scenario::with(
            Variant::PLAIN,
            "[nos]\nservices = [\"echo\"]\n[[route]]\nprefix = \"0.0.0.0/0\"\nvia = \"203.0.113.2\"\n",
        );
        let daemon = &scenario.daemon;
        assert_reached(&scenario, scenario.web(), V4, 20000);
        change(daemon, ports("add", "web", json!({"tcp": "23000", "lease": "attachment"})));
        for table in ["attachments", "ports", "routes", "neighbors", "flows", "counters", "registrations"] {
            let request = json!({"version": 1, "request": {"type": "show", "table": table}});
            assert_as_documented(&request);
            let answer = said_to(daemon, &request.to_string());
            assert_eq!(answer["response"]["type"], table);
            let data = &answer["response"]["data"];
            // Without a policy no flow is remembered.
            let may_be_empty = data.is_object() || table == "flows";
            assert!(may_be_empty || !data.as_array().unwrap().is_empty(), "{table} is empty");
        }
        // Nothing else passes.
        for line in [
            json!({"version": 1, "request": {"type": "detach"}}),
            json!({"version": 1, "request": {"type": "detach", "name": "a", "more": 1}}),
            json!({"version": 1, "request": {"type": "ports-add", "container": "a"}}),
            json!({"version": 2, "lost": 1}),
            json!({"version": 1, "response": {"type": "changed", "data": {}}}),
        ] {
            assert!(!schema().is_valid(&line), "{line}");
        }
    }
}

/// Requests that are wrong, missing something, twice, oversized or hostile: the key that the refusal
/// names, and a part of its reason.
fn bad_requests() -> Vec<(String, Option<&'static str>, &'static str)> {
    let container = |more: &str| {
        format!(
            r#"{{"type":"attach","container":{{"name":"new","pid":4194304,"device":"veth"{more}}}}}"#
        )
    };
    let ports = |more: &str| format!(r#"{{"type":"ports-add","container":"web"{more}}}"#);
    let allocate = |more: &str| format!(r#"{{"type":"ports-allocate","container":"web"{more}}}"#);
    let route = |keys: &str| format!(r#"{{"type":"route-add","route":{{{keys}}}}}"#);
    let address = |keys: &str| format!(r#"{{"type":"address-add"{keys}}}"#);
    let group = |keys: &str| format!(r#"{{"type":"group-add"{keys}}}"#);
    let text = |text: &str| text.to_owned();
    let long = "x".repeat(60_000);
    vec![
        (
            ports(r#","tcp":1,"lease":"daemon""#),
            Some("ports.lease"),
            "\"daemon\" is not",
        ),
        (
            ports(r#","tcp":1,"lease":["pidfd"]"#),
            Some("ports.lease"),
            "an array is not",
        ),
        (
            allocate(r#","size":1,"lease":7"#),
            Some("allocate.lease"),
            "7 is not a string",
        ),
        (
            route(r#""prefix":"192.0.2.0/24","type":"blackhole","lease":"connection""#),
            Some("route.lease"),
            "unknown key",
        ),
        (
            address(r#","uplink":"up0","address":"203.0.113.9/24","lease":"attachment""#),
            Some("address.lease"),
            "is for ports alone",
        ),
        (text("5"), None, "invalid type"),
        (text("[]"), None, "missing field `type`"),
        (text("{}"), None, "missing field `type`"),
        (text(r#"{"type":"dance"}"#), None, "unknown variant `dance`"),
        (text(r#"{"type":["attach"]}"#), None, "variant"),
        (
            text(r#"{"type":"detach","type":"attach"}"#),
            None,
            "duplicate field `type`",
        ),
        (text(r#"{"type":"watch","x":1}"#), None, "unknown field `x`"),
        (
            text(r#"{"type":"attach"}"#),
            Some("attach.container"),
            "is missing",
        ),
        (
            text(r#"{"type":"attach","container":5}"#),
            Some("attach.container"),
            "5 is not a table",
        ),
        (
            text(r#"{"type":"attach","container":[{}]}"#),
            Some("attach.container"),
            "only once",
        ),
        (
            text(r#"{"type":"attach","container":{}}"#),
            Some("container.name"),
            "is missing",
        ),
        (
            text(r#"{"type":"attach","container":{"name":"a","device":"tap"}}"#),
            Some("container.netns"),
            "is missing",
        ),
        (
            text(r#"{"type":"attach","container":{"name":"a","pid":1}}"#),
            Some("container.device"),
            "is missing",
        ),
        (
            text(r#"{"type":"attach","container":{"name":"web","pid":4194304,"device":"veth"}}"#),
            Some("container.name"),
            "already on line",
        ),
        (
            text(r#"{"type":"attach","container":{"name":null}}"#),
            None,
            "\"name\": null is no value",
        ),
        (
            text(r#"{"type":"attach","container":{"name":"a","name":"b"}}"#),
            None,
            "\"name\" stands twice",
        ),
        (
            text(r#"{"type":"attach","container":{"pid":4194304,"device":"tap","name":""}}"#),
            Some("container.name"),
            "has 0 characters",
        ),
        (
            text(r#"{"type":"attach","container":{"pid":4194304,"device":"tap","name":"a/../b"}}"#),
            Some("container.name"),
            "contains '/'",
        ),
        (
            text(
                r#"{"type":"attach","container":{"pid":4194304,"device":"tap","name":"a\u0000"}}"#,
            ),
            Some("container.name"),
            "contains '\\0'",
        ),
        (
            text(r#"{"type":"attach","container":{"pid":4194304,"device":"tap","name":7}}"#),
            Some("container.name"),
            "7 is not a string",
        ),
        (
            format!(
                r#"{{"type":"attach","container":{{"pid":4194304,"device":"tap","name":"{long}"}}}}"#
            ),
            Some("container.name"),
            "has 60000 characters",
        ),
        (
            container(r#","netns":"/x""#),
            Some("container.pid"),
            "cannot stand beside netns",
        ),
        (
            text(r#"{"type":"attach","container":{"name":"a","device":"tap","netns":"web"}}"#),
            Some("container.netns"),
            "not an absolute path",
        ),
        (
            text(
                r#"{"type":"attach","container":{"name":"a","device":"tap","netns":"/a\u0000b"}}"#,
            ),
            Some("container.netns"),
            "contains a NUL",
        ),
        (
            text(r#"{"type":"attach","container":{"name":"a","device":"tap","pid":0}}"#),
            Some("container.pid"),
            "0 is not in the range",
        ),
        (
            text(r#"{"type":"attach","container":{"name":"a","device":"tap","pid":-1}}"#),
            Some("container.pid"),
            "-1 is not in the range",
        ),
        (
            text(r#"{"type":"attach","container":{"name":"a","device":"tap","pid":1e99}}"#),
            Some("container.pid"),
            "is not an integer",
        ),
        (
            text(
                r#"{"type":"attach","container":{"name":"a","device":"tap","pid":18446744073709551615}}"#,
            ),
            None,
            "\"pid\": 18446744073709551615 is above",
        ),
        (
            text(r#"{"type":"attach","container":{"name":"a","device":"tun","pid":1}}"#),
            Some("container.device"),
            "\"tun\" is not",
        ),
        (
            container(r#","interface":"sixteen-letters-""#),
            Some("container.interface"),
            "sixteen-letters-",
        ),
        (
            container(r#","addresses":[]"#),
            Some("container.addresses"),
            "is empty",
        ),
        (
            container(r#","addresses":["203.0.113.9"]"#),
            Some("container.addresses"),
            "no address of the NOS",
        ),
        (
            container(r#","tcp":["0"]"#),
            Some("container.tcp"),
            "port 0 is reserved",
        ),
        (
            container(r#","tcp":"9-5""#),
            Some("container.tcp"),
            "ends before it begins",
        ),
        (
            container(r#","tcp":[65536]"#),
            Some("container.tcp"),
            "65536 is not in the range",
        ),
        (
            container(r#","udp":[[1]]"#),
            Some("container.udp"),
            "an array is not",
        ),
        (
            container(r#","udp":{"a":1}"#),
            Some("container.udp.ports"),
            "unknown key",
        ),
        (
            container(r#","tcp":[5,"5"]"#),
            Some("container.tcp"),
            "overlaps 5 of container \"new\"",
        ),
        (
            container(r#","tcp":21000"#),
            Some("container.tcp"),
            "overlaps 21000-21999 of container \"db\"",
        ),
        (
            container(r#","ephemeral":{"first":1}"#),
            Some("container.ephemeral.ports"),
            "unknown key",
        ),
        (
            container(r#","mac":"01:00:5e:00:00:01""#),
            Some("container.mac"),
            "is a group address",
        ),
        (
            container(r#","offload":"yes""#),
            Some("container.offload"),
            "is not true or false",
        ),
        (
            container(r#","capture":"""#),
            Some("container.capture"),
            "is an empty path",
        ),
        (
            container(r#","prots":1"#),
            Some("container.prots"),
            "unknown key",
        ),
        (
            container(r#","$__toml_private_datetime":"1979-05-27""#),
            Some("container.\"$__toml_private_datetime\""),
            "unknown key",
        ),
        (
            text(
                r#"{"type":"attach","container":{"name":"a","pid":4194304,"device":"tap"},"more":1}"#,
            ),
            Some("attach.more"),
            "unknown key",
        ),
        (
            text(r#"{"type":"detach"}"#),
            Some("detach.name"),
            "is missing",
        ),
        (
            text(r#"{"type":"detach","name":["a"]}"#),
            Some("detach.name"),
            "an array is not a string",
        ),
        (
            text(r#"{"type":"detach","name":"a","name":"b"}"#),
            None,
            "\"name\" stands twice",
        ),
        (
            text(r#"{"type":"detach","name":"web"}"#),
            Some("detach.name"),
            "is in the configuration",
        ),
        (
            text(r#"{"type":"ports-add","tcp":1}"#),
            Some("ports.container"),
            "is missing",
        ),
        (
            text(r#"{"type":"ports-add","container":"wbe","tcp":1}"#),
            Some("ports.container"),
            "\"wbe\" is no container; did you mean \"web\"?",
        ),
        (ports(""), Some("ports.tcp"), "give one of the three"),
        (
            ports(r#","tcp":"http""#),
            Some("ports.tcp"),
            "is not a port",
        ),
        (
            ports(r#","tcp":-5"#),
            Some("ports.tcp"),
            "-5 is not in the range",
        ),
        (
            ports(r#","tcp":1.5"#),
            Some("ports.tcp"),
            "1.5 is not a port",
        ),
        (
            ports(r#","tcp":5,"sctp":5"#),
            Some("ports.sctp"),
            "unknown key; known are container, tcp, udp, ephemeral",
        ),
        (
            ports(r#","ephemeral":["50000-50999",45007]"#),
            Some("ports.ephemeral"),
            "overlaps 45000-49999 of container \"db\"",
        ),
        (
            ports(r#","tcp":40000"#),
            Some("ports.tcp"),
            "overlaps 40000-44999 of container \"web\"",
        ),
        (
            format!(r#"{{"type":"ports-add","container":"web","tcp":"{long}"}}"#),
            Some("ports.tcp"),
            "…\" is not a port",
        ),
        (allocate(""), Some("allocate.size"), "is missing"),
        (
            allocate(r#","size":0"#),
            Some("allocate.size"),
            "0 is not in the range 1 to 65535",
        ),
        (
            allocate(r#","size":"100""#),
            Some("allocate.size"),
            "is not an integer",
        ),
        (
            allocate(r#","size":65536"#),
            Some("allocate.size"),
            "65536 is not in the range",
        ),
        (
            allocate(r#","size":1,"protocol":"sctp""#),
            Some("allocate.protocol"),
            "\"sctp\" is not",
        ),
        (
            allocate(r#","size":1,"kind":"both""#),
            Some("allocate.kind"),
            "\"both\" is not",
        ),
        (
            allocate(r#","size":1,"kind":"ephemeral","protocol":"tcp""#),
            Some("allocate.protocol"),
            "leave it out",
        ),
        (
            allocate(r#","size":1"#),
            Some("allocate.size"),
            "there is no pool",
        ),
        (
            text(r#"{"type":"route-add"}"#),
            Some("route-add.route"),
            "is missing",
        ),
        (route(""), Some("route.prefix"), "is missing"),
        (
            route(r#""prefix":"192.0.2.1/24","type":"blackhole""#),
            Some("route.prefix"),
            "has bits set beyond its length",
        ),
        (
            route(r#""prefix":"192.0.2.0/24""#),
            Some("route.via"),
            "is missing",
        ),
        (
            route(r#""prefix":"192.0.2.0/24","via":"192.0.2.1""#),
            Some("route.via"),
            "is on no network of uplink",
        ),
        (
            route(r#""prefix":"192.0.2.0/24","via":"203.0.113.1""#),
            Some("route.via"),
            "is the NOS's own address",
        ),
        (
            route(r#""prefix":"192.0.2.0/24","via":"203.0.113.2","dev":"up9""#),
            Some("route.dev"),
            "is not an uplink",
        ),
        (
            route(r#""prefix":"192.0.2.0/24","type":"blackhole","metric":65536"#),
            Some("route.metric"),
            "65536 is not in the range",
        ),
        (
            route(r#""prefix":"203.0.113.0/24","type":"blackhole""#),
            Some("route.prefix"),
            "is the network of uplink",
        ),
        (
            text(r#"{"type":"route-remove"}"#),
            Some("route-remove.prefix"),
            "is missing",
        ),
        (address(""), Some("address.uplink"), "is missing"),
        (group(""), Some("group.uplink"), "is missing"),
        (
            group(r#","uplink":"up0""#),
            Some("group.group"),
            "is missing",
        ),
        (
            group(r#","uplink":"up9","group":"239.1.2.3""#),
            Some("group.uplink"),
            "is not an uplink",
        ),
        (
            group(r#","uplink":"up0","group":"203.0.113.9""#),
            Some("group.group"),
            "is not the address of a multicast group",
        ),
        (
            group(r#","uplink":"up0","group":"ff02::1""#),
            Some("group.group"),
            "nobody is told",
        ),
        (
            address(r#","uplink":"up0","address":"203.0.113.9""#),
            Some("address.address"),
            "lacks a prefix length",
        ),
        (
            address(r#","uplink":"up0","address":"203.0.113.255/24""#),
            Some("address.address"),
            "is the broadcast address",
        ),
        (
            address(r#","uplink":"up9","address":"203.0.113.9/24""#),
            Some("address.uplink"),
            "is not an uplink",
        ),
        (
            address(r#","uplink":"up0","address":"203.0.113.1/25""#),
            Some("address.address"),
            "has 203.0.113.1/24 already",
        ),
        (
            format!(
                r#"{{"type":"detach","name":{}1{}}}"#,
                "[".repeat(200),
                "]".repeat(200)
            ),
            None,
            "recursion limit",
        ),
    ]
}

lab_test! {
    fn bad_requests_are_refused_by_key_and_reason_and_change_nothing() {
        let scenario = Scenario::new(Variant::PLAIN);
        let daemon = &scenario.daemon;
        let state = || (daemon.ports(), daemon.routes(), daemon.attachments().len());
        let before = state();
        let mut wrong = Vec::new();
        for (request, field, reason) in bad_requests() {
            let answer = said_to(daemon, &format!(r#"{{"version":1,"request":{request}}}"#));
            let answer = &answer["response"];
            assert_eq!(answer["type"], "refused", "{request}");
            let refusal: Refusal = serde_json::from_value(answer["data"].clone()).unwrap();
            let Refusal { field: of, message, .. } = refusal;
            if of.as_deref() != field || !message.contains(reason) || message.len() > 2000 {
                let shown: String = request.chars().take(200).collect();
                wrong.push(format!("{shown}: {of:?}: {message:.500}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        for (line, code) in [
            (format!(r#"{{"version":1,"request":"{}"}}"#, "x".repeat(MAX_REQUEST)), "too-long"),
            (r#"{"version":7,"request":{"type":"attach"}}"#.to_owned(), "version"),
            (r#"{"version":1,"id":5,"request":{"type":"detach","name":"a"}}"#.to_owned(), "bad-request"),
            (r#"{"version":1,"request":{"type":"detach","name":"a"},"more":1}"#.to_owned(), "bad-request"),
            (r#"{"version":1,"version":1,"request":{"type":"detach","name":"a"}}"#.to_owned(), "bad-request"),
        ] {
            assert_eq!(said_to(daemon, &line)["response"]["data"]["code"], code);
        }
        assert_eq!(state(), before);
        assert_reached(&scenario, scenario.web(), V4, 20000);
    }
}
