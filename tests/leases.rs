//! What is registered with a lease goes with its holder, at once, whoever is killed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs::{File, Permissions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use nos_relay::control::api::snapshot::{Lease, Origin, Registration, RegistrationKind};
use nos_relay::control::api::{
    Applied, ControlError, Event, Held, Refusal, RefusalCode, Request, Response, Table, Watched,
    ask, ask_for, hold, query, watch,
};
use nos_relay::lab::testbed::{LabNamespace, Privileges, Topology, privileges, tcp};
use serde_json::{Value, json};
use support::daemon::{Daemon, LIMIT, await_that, program};
use support::lab_test;
use support::scenario::{FAMILIES, Scenario, V4, Variant, config};
use support::traffic;

fn request(request: Value) -> Request {
    serde_json::from_value(request).unwrap()
}

/// Asks for something that this connection holds.
fn held(daemon: &Daemon, asked: Value) -> Result<(Applied, Held), Refusal> {
    match hold(&daemon.files().control(), None, &request(asked), LIMIT) {
        Ok((Response::Changed(applied), held)) => Ok((applied, held)),
        Err(ControlError::Refused(refusal)) => Err(refusal),
        other => panic!("{other:?}"),
    }
}

fn asked(daemon: &Daemon, asked: Value) -> Result<Applied, Refusal> {
    answer(ask(&daemon.files().control(), None, &request(asked), LIMIT))
}

fn answer(answer: Result<Response, ControlError>) -> Result<Applied, Refusal> {
    match answer {
        Ok(Response::Changed(applied)) => Ok(applied),
        Err(ControlError::Refused(refusal)) => Err(refusal),
        other => panic!("{other:?}"),
    }
}

fn registrations(daemon: &Daemon) -> Vec<Registration> {
    let table = Table::Registrations;
    match query(&daemon.files().control(), &Request::Show { table }, LIMIT).unwrap() {
        Response::Registrations(rows) => rows,
        other => panic!("{other:?}"),
    }
}

fn await_nothing_registered(daemon: &Daemon) {
    await_that("nothing is registered", || {
        let rows = registrations(daemon);
        rows.is_empty()
            .then_some(())
            .ok_or_else(|| format!("{rows:?}"))
    });
    let left: Vec<_> = daemon
        .ports()
        .into_iter()
        .filter(|row| row.origin == Origin::Runtime)
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn add(tcp: &str, lease: &str) -> Value {
    json!({"type": "ports-add", "container": "web", "tcp": tcp, "lease": lease})
}

fn assert_reached(scenario: &Scenario, container: &LabNamespace, port: u16) {
    for family in FAMILIES {
        traffic::assert_reached(scenario.external(), container, family.nos_port(port));
    }
}

fn assert_refused(scenario: &Scenario, port: u16) {
    for family in FAMILIES {
        let error =
            tcp::connect(scenario.external(), None, family.nos_port(port), LIMIT).unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{error}");
    }
}

/// A process that does nothing. It is killed at the end.
struct Process(Child);

impl Process {
    fn start() -> Self {
        Self(Command::new("sleep").arg("600").spawn().unwrap())
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the program with a daemon's socket.
fn command(daemon: &Daemon, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command
        .args(arguments)
        .arg("--control")
        .arg(daemon.files().control());
    command
}

lab_test! {
    fn what_a_connection_holds_goes_with_it() {
        let topology = Topology::new(&["web", "db", "third"]).unwrap();
        let text = config(&topology, Variant::PLAIN) + "[ports]\npool = \"24000-24999\"\n";
        let daemon = Daemon::start(&topology.device, &text);
        let scenario = Scenario { daemon, topology, config: text };
        let daemon = &scenario.daemon;
        let third = scenario.topology.containers[2].clone();
        let keys = json!({"name": "third", "netns": third.path(), "device": "veth", "tcp": "25000"});
        let before = (daemon.routes().len(), daemon.ports());
        let all = [
            add("23000-23099", "connection"),
            json!({"type": "attach", "container": keys, "lease": "connection"}),
            json!({"type": "ports-allocate", "container": "db", "size": 10, "lease": "connection"}),
            json!({"type": "route-add", "route": {"prefix": "192.0.2.0/24", "type": "blackhole"}, "lease": "connection"}),
            json!({"type": "address-add", "uplink": "up0", "address": "203.0.113.77/24", "lease": "connection"}),
            json!({"type": "group-add", "uplink": "up0", "group": "239.1.2.3", "lease": "connection"}),
        ];
        let mut connections = Vec::new();
        for asked in all {
            let (applied, held) = held(daemon, asked.clone()).unwrap();
            assert!(applied.changed, "{asked}");
            connections.push(held);
        }
        assert_reached(&scenario, scenario.web(), 23000);
        assert_reached(&scenario, &third, 25000);
        let rows = registrations(daemon);
        assert_eq!(rows.len(), 6);
        for row in &rows {
            assert_eq!((row.lease, row.holder), (Some(Lease::Connection), Some(std::process::id())));
        }
        // Nothing of it is stored.
        daemon.forget_counters();
        drop(connections);
        await_nothing_registered(daemon);
        assert_refused(&scenario, 23000);
        assert_refused(&scenario, 25000);
        assert!(third.link("eth0").unwrap().is_none());
        assert_eq!((daemon.routes().len(), daemon.ports()), before);
        assert_eq!(daemon.uplink("up0").runtime_addresses, []);
    }
}

lab_test! {
    fn a_port_stays_as_long_as_anybody_holds_it() {
        let scenario = Scenario::new(Variant::PLAIN);
        let daemon = &scenario.daemon;
        let (_, one) = held(daemon, add("23000-23009", "connection")).unwrap();
        let (_, two) = held(daemon, add("23005-23014", "connection")).unwrap();
        assert_reached(&scenario, scenario.web(), 23014);
        drop(one);
        await_that("the first has gone", || {
            (registrations(daemon).len() == 1).then_some(()).ok_or_else(String::new)
        });
        assert_refused(&scenario, 23004);
        assert_reached(&scenario, scenario.web(), 23005);
        // Held by nobody, it goes with the attachment alone.
        assert!(asked(daemon, add("23005", "attachment")).unwrap().changed);
        drop(two);
        await_that("the second has gone", || {
            (registrations(daemon).len() == 1).then_some(()).ok_or_else(String::new)
        });
        assert_eq!(registrations(daemon)[0].lease, Some(Lease::Attachment));
        assert_refused(&scenario, 23006);
        assert_reached(&scenario, scenario.web(), 23005);
        // Who takes ports away takes them from every holder.
        let (_, _three) = held(daemon, add("23000-23009", "connection")).unwrap();
        asked(daemon, json!({"type": "ports-remove", "container": "web", "tcp": "23005"})).unwrap();
        assert_refused(&scenario, 23005);
        assert_reached(&scenario, scenario.web(), 23004);
        asked(daemon, json!({"type": "ports-replace", "container": "web", "tcp": "23001"})).unwrap();
        assert_refused(&scenario, 23004);
        assert_reached(&scenario, scenario.web(), 23001);
    }
}

lab_test! {
    fn a_connection_that_holds_something_may_ask_again() {
        let scenario = Scenario::new(Variant::PLAIN);
        let daemon = &scenario.daemon;
        let mut stream = UnixStream::connect(daemon.files().control()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let mut ask = |request: Value| -> Value {
            let line = json!({"version": 1, "request": request});
            stream.write_all(format!("{line}\n").as_bytes()).unwrap();
            let mut answer = String::new();
            lines.read_line(&mut answer).unwrap();
            serde_json::from_str(&answer).unwrap()
        };
        for number in 0..5 {
            let answer = ask(add(&format!("{}", 23000 + number), "connection"));
            assert_eq!(answer["response"]["data"]["changed"], true, "{answer}");
        }
        let answer = ask(add("21000", "connection"));
        assert_eq!(answer["response"]["data"]["code"], "conflict");
        let answer = ask(json!({"type": "show", "table": "registrations"}));
        assert_eq!(answer["response"]["data"].as_array().unwrap().len(), 1, "{answer}");
        drop((stream, lines));
        await_nothing_registered(daemon);
    }
}

lab_test! {
    fn what_a_process_holds_goes_with_it_even_while_no_daemon_runs() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let text = config(&topology, Variant::PLAIN);
        let daemon = Daemon::start(&topology.device, &text);
        let (mut one, mut two, mut three) = (Process::start(), Process::start(), Process::start());
        let add = |process: &Process, port: u16| {
            let (pid, port) = (process.0.id().to_string(), port.to_string());
            let arguments = ["ports", "add", "web", "--tcp", &port, "--holder-pid", &pid];
            let output = command(&daemon, &arguments).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        };
        add(&one, 23001);
        add(&two, 23002);
        add(&three, 23003);
        let rows = registrations(&daemon);
        let holders: Vec<_> = rows.iter().map(|row| (row.lease, row.holder)).collect();
        for process in [&one, &two, &three] {
            assert!(holders.contains(&(Some(Lease::Pidfd), Some(process.0.id()))), "{holders:?}");
        }
        one.kill();
        await_that("the first has gone", || {
            (registrations(&daemon).len() == 2).then_some(()).ok_or_else(String::new)
        });
        // One ends while nobody looks, the other is taken up again.
        let files = daemon.kill();
        two.kill();
        let daemon = Daemon::start_on(&topology.device, files);
        let rows = registrations(&daemon);
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_eq!(rows[0].holder, Some(three.0.id()));
        assert_eq!(rows[0].what, ["tcp 23003"]);
        three.kill();
        await_nothing_registered(&daemon);
        let daemon = Daemon::start_on(&topology.device, daemon.kill());
        assert_eq!(registrations(&daemon), []);
    }
}

lab_test! {
    fn what_a_process_holds_stays_across_a_takeover_and_what_a_connection_holds_is_asked_for_again() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let text = config(&topology, Variant::PLAIN);
        let daemon = Daemon::start(&topology.device, &text);
        let mut process = Process::start();
        let pid = process.0.id().to_string();
        let arguments = ["ports", "add", "web", "--tcp", "23001", "--holder-pid", &pid];
        let output = command(&daemon, &arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let (_, held_by_us) = held(&daemon, add("23002", "connection")).unwrap();
        let daemon = daemon.replaced(&topology.device);
        let rows = registrations(&daemon);
        let listed: Vec<_> = rows.iter().map(|row| (row.lease, row.what.join(" "))).collect();
        assert_eq!(listed, [(Some(Lease::Pidfd), "tcp 23001".to_owned())]);
        // Who held something by a connection hears that it has ended, and asks again.
        held_by_us.wait().unwrap();
        let (applied, _held) = held(&daemon, add("23002", "connection")).unwrap();
        assert!(applied.changed);
        process.kill();
        await_that("what the process held has gone", || {
            let rows = registrations(&daemon);
            let left: Vec<_> = rows.iter().map(|row| row.what.join(" ")).collect();
            (left == ["tcp 23002"]).then_some(()).ok_or_else(|| left.join(", "))
        });
    }
}

lab_test! {
    fn a_command_that_is_killed_leaves_nothing() {
        let scenario = Scenario::new(Variant::PLAIN);
        let daemon = &scenario.daemon;
        let mut holding = command(daemon, &["ports", "add", "web", "--tcp", "23000", "--lease", "connection"]);
        let mut child = Process(holding.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "Done.\n");
        assert_reached(&scenario, scenario.web(), 23000);
        child.kill();
        await_nothing_registered(daemon);
        assert_refused(&scenario, 23000);
        let mut said = String::new();
        child.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "It is held until this command is ended.\n");
    }
}

lab_test! {
    fn one_that_hangs_up_before_it_is_answered_leaves_nothing() {
        let scenario = Scenario::new(Variant::PLAIN);
        let daemon = &scenario.daemon;
        for number in 1..=20 {
            let mut stream = UnixStream::connect(daemon.files().control()).unwrap();
            let line = json!({"version": 1, "request": add("23000", "connection")});
            stream.write_all(format!("{line}\n").as_bytes()).unwrap();
            drop(stream);
            // Nobody asks meanwhile, which would have the daemon look.
            await_that("it has ended", || {
                let log = daemon.log();
                let ended = log.matches("what a connection held goes with it").count();
                (ended == number).then_some(()).ok_or(log)
            });
        }
        await_nothing_registered(daemon);
    }
}

lab_test! {
    fn what_a_connection_holds_ends_with_the_daemon_too() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let daemon = Daemon::start(&topology.device, &config(&topology, Variant::PLAIN));
        let mut holding = command(&daemon, &["ports", "add", "web", "--tcp", "23000", "--lease", "connection"]);
        let mut child = Process(holding.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let path = daemon.files().control();
        let once = request(add("23001", "connection"));
        let (_, held) = hold(&path, Some("once"), &once, LIMIT).unwrap();
        // The same id on another connection is another request.
        let error = ask(&path, Some("once"), &once, LIMIT).unwrap_err();
        assert!(matches!(&error, ControlError::Refused(refusal) if refusal.code == RefusalCode::IdReused), "{error}");
        let files = daemon.kill();
        held.wait().unwrap();
        assert_eq!(child.0.wait().unwrap().code(), Some(1));
        let daemon = Daemon::start_on(&topology.device, files);
        assert_eq!(registrations(&daemon), []);
        // The answer is forgotten with what it was about.
        let path = daemon.files().control();
        let (answer, held) = hold(&path, Some("once"), &once, LIMIT).unwrap();
        assert!(matches!(answer, Response::Changed(Applied { changed: true, .. })), "{answer:?}");
        drop(held);
        await_nothing_registered(&daemon);
    }
}

lab_test! {
    fn a_holder_of_what_others_need_takes_theirs_along() {
        let scenario = Scenario::new(Variant::PLAIN);
        let daemon = &scenario.daemon;
        let address = json!({"type": "address-add", "uplink": "up0", "address": "203.0.113.77/24", "lease": "connection"});
        let (_, held) = held(daemon, address.clone()).unwrap();
        let keys = json!({"name": "needs", "netns": "/nowhere", "device": "veth", "addresses": "203.0.113.77"});
        asked(daemon, json!({"type": "attach", "container": keys})).unwrap();
        drop(held);
        await_that("it is set aside", || {
            let rows = registrations(daemon);
            let found = rows.iter().find(|row| row.kind == RegistrationKind::Container);
            let reason = found.and_then(|row| row.reason.clone());
            (rows.len() == 1 && reason.is_some()).then_some(()).ok_or_else(|| format!("{rows:?}"))
        });
        // It fits again once somebody has the address.
        let (_, _held) = self::held(daemon, address).unwrap();
        asked(daemon, json!({"type": "detach", "name": "nobody"})).unwrap();
        daemon.reload(&scenario.config);
        assert!(registrations(daemon).iter().all(|row| row.reason.is_none()));
    }
}

lab_test! {
    fn leases_that_make_no_sense_are_refused() {
        let scenario = Scenario::new(Variant::PLAIN);
        let daemon = &scenario.daemon;
        let path = daemon.files().control();
        for (asked, field, reason) in [
            (add("23000", "for ever"), "ports.lease", "\"for ever\" is not"),
            (json!({"type": "ports-add", "container": "web", "tcp": 1, "lease": 5}), "ports.lease", "5 is not a string"),
            (json!({"type": "route-add", "route": {"prefix": "192.0.2.0/24", "type": "blackhole"}, "lease": "attachment"}), "route-add.lease", "is for ports alone"),
            (json!({"type": "ports-remove", "container": "web", "tcp": 1, "lease": "connection"}), "ports.lease", "unknown key"),
            (json!({"type": "detach", "name": "a", "lease": "connection"}), "detach.lease", "unknown key"),
        ] {
            let refusal = answer(ask(&path, None, &request(asked.clone()), LIMIT)).unwrap_err();
            assert_eq!(refusal.field.as_deref(), Some(field), "{asked}: {refusal}");
            assert!(refusal.message.contains(reason), "{asked}: {refusal}");
        }
        // What came along is no process, or one that has ended.
        let file = File::open("/dev/null").unwrap();
        let pidfd = request(add("23000", "pidfd"));
        let refusal = answer(ask_for(&path, None, &pidfd, Some(file.as_fd()), LIMIT)).unwrap_err();
        assert_eq!(refusal.field.as_deref(), Some("ports.lease"));
        assert!(refusal.message.contains("no pidfd"), "{refusal}");
        let output = command(daemon, &["ports", "add", "web", "--tcp", "23000", "--holder-pid", "4194303"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("process 4194303: No such process"));
        assert_eq!(registrations(daemon), []);
        // Without one, it is who asks.
        assert!(asked(daemon, add("23000", "pidfd")).unwrap().changed);
        assert_eq!(registrations(daemon)[0].holder, Some(std::process::id()));
        // Who holds a container, a route or an address is not changed by asking again.
        let away = |lease: Option<&str>| {
            let keys = json!({"name": "away", "netns": "/nowhere", "device": "veth"});
            let mut request = json!({"type": "attach", "container": keys});
            if let Some(lease) = lease {
                request["lease"] = lease.into();
            }
            request
        };
        assert!(asked(daemon, away(None)).unwrap().changed);
        let refusal = answer(ask(&path, None, &request(away(Some("connection"))), LIMIT)).unwrap_err();
        assert!(refusal.message.contains("already added at run time"), "{refusal}");
        asked(daemon, json!({"type": "detach", "name": "away"})).unwrap();
    }
}

lab_test! {
    fn who_watches_is_told_of_foreign_ports() {
        let scenario = Scenario::new(Variant::PLAIN);
        let daemon = &scenario.daemon;
        let mut events = watch(&daemon.files().control(), LIMIT).unwrap();
        for (port, owner) in [(21000, Some("container 'db'")), (30000, None)] {
            let source = std::net::SocketAddr::new(V4.nos, port);
            let to = V4.external_port(7000);
            tcp::connect(scenario.web(), Some(source), to, Duration::from_secs(5)).unwrap_err();
            let told = loop {
                let told = events.next_line().unwrap().unwrap().1;
                if let Watched::Event { event: Event::ForeignPort { subject, port, owner, .. }, .. } = told {
                    break (subject, port, owner);
                }
            };
            assert_eq!(told.0.name.as_deref(), Some("web"));
            assert_eq!((told.1, told.2.as_deref()), (port, owner));
        }
    }
}

/// Runs the program as another user, who is in one group alone; what it says.
fn as_user(daemon: &Daemon, gid: u32) -> String {
    let directory = tempfile::tempdir().unwrap();
    // Others must be able to come to it.
    for path in [directory.path(), daemon.files().control().parent().unwrap()] {
        std::fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    let copy = directory.path().join("nos-relay");
    std::fs::copy(program(), &copy).unwrap();
    let mut command = Command::new(copy);
    command
        .args(["show", "ports", "--json", "--control"])
        .arg(daemon.files().control());
    let output = command.uid(65_534).gid(gid).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8(said).unwrap()
}

lab_test! {
    fn a_group_may_ask_and_others_may_not() {
        const GROUP: u32 = 4711;
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
        if privileges() != Privileges::Root || !map.split_whitespace().eq(["0", "0", "4294967295"]) {
            return support::skip("a group may ask: there are no other groups in a user namespace");
        }
        let topology = Topology::new(&["web", "db"]).unwrap();
        let text = config(&topology, Variant::PLAIN) + &format!("[control]\ngroup = {GROUP}\n");
        let daemon = Daemon::start(&topology.device, &text);
        let metadata = std::fs::metadata(daemon.files().control()).unwrap();
        assert_eq!((metadata.gid(), metadata.permissions().mode() & 0o777), (GROUP, 0o660));
        assert!(as_user(&daemon, GROUP).contains("20000-20999"));
        assert!(as_user(&daemon, GROUP + 1).contains("permission denied"));
        // A change of it is for the next start.
        daemon.reload(&config(&topology, Variant::PLAIN));
        await_that("the log says so", || {
            let log = daemon.log();
            log.contains("control.mode").then_some(()).ok_or(log)
        });
        let files = daemon.stop_by(Signal::SIGTERM);
        files.write(&(config(&topology, Variant::PLAIN) + "[control]\ngroup = \"no-such-group\"\n"));
        let output = Daemon::start_failing_on(&topology.device, &files);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("control.group: there is no group \"no-such-group\""), "{said}");
    }
}
