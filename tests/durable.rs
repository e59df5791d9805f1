//! What was registered at run time outlives the daemon, however that ends and whatever is wrong with
//! the state directory.
//!
//! `NOS_RELAY_KILL_ROUNDS` is how often the daemon is killed while it is asked for changes,
//! `NOS_RELAY_KILL_SEED` the order of these; a failure shows both.

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

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use nos_relay::control::api::snapshot::{LinkState, Origin, Registration, RegistrationKind};
use nos_relay::control::api::{
    Applied, ControlError, Refusal, RefusalCode, Request, Response, Table, ask, query,
};
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp};
use serde_json::{Value, json};
use support::daemon::{Daemon, Files, LIMIT, await_that};
use support::lab_test;
use support::names::{Mounted, unmount};
use support::scenario::{FAMILIES, Variant, config, edited};
use support::traffic;

/// What the daemon answers; `None` if it does not.
fn answer(control: &Path, id: Option<&str>, request: &Value) -> Option<Result<Applied, Refusal>> {
    let request: Request = serde_json::from_value(request.clone()).unwrap();
    match ask(control, id, &request, LIMIT) {
        Ok(Response::Changed(applied)) => Some(Ok(applied)),
        Err(ControlError::Refused(refusal)) => Some(Err(refusal)),
        Ok(other) => panic!("{other:?}"),
        Err(_) => None,
    }
}

fn asked(daemon: &Daemon, request: Value) -> Result<Applied, Refusal> {
    if request["type"] == "detach" {
        daemon.forget_counters();
    }
    let answer = answer(&daemon.files().control(), None, &request);
    answer.unwrap_or_else(|| panic!("no answer to {request}"))
}

fn change(daemon: &Daemon, request: Value) {
    let applied = asked(daemon, request.clone()).unwrap();
    assert!(applied.changed, "{request}");
}

fn ports(action: &str, container: &str, tcp: &str) -> Value {
    json!({"type": format!("ports-{action}"), "container": container, "tcp": tcp})
}

fn registrations(daemon: &Daemon) -> Vec<Registration> {
    let request = Request::Show {
        table: Table::Registrations,
    };
    match query(&daemon.files().control(), &request, LIMIT).unwrap() {
        Response::Registrations(mut rows) => {
            rows.sort();
            rows
        }
        other => panic!("{other:?}"),
    }
}

/// The reason for which something is set aside.
fn reason(daemon: &Daemon, kind: RegistrationKind, name: &str) -> Option<String> {
    let mut rows = registrations(daemon).into_iter();
    let found = rows.find(|row| row.kind == kind && row.name == name);
    found.unwrap_or_else(|| panic!("no {kind:?} {name}")).reason
}

/// TCP ports that a container got at run time.
fn added(daemon: &Daemon, container: &str) -> Vec<String> {
    let rows = daemon.ports().into_iter();
    let rows = rows.filter(|row| row.owner == container && row.origin == Origin::Runtime);
    let mut ranges: Vec<_> = rows.map(|row| row.range.to_string()).collect();
    ranges.sort();
    ranges
}

fn assert_reached(external: &LabNamespace, container: &LabNamespace, port: u16) {
    for family in FAMILIES {
        traffic::assert_reached(external, container, family.nos_port(port));
    }
}

fn assert_refused(external: &LabNamespace, port: u16) {
    for family in FAMILIES {
        let error = tcp::connect(external, None, family.nos_port(port), LIMIT).unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{error}");
    }
}

lab_test! {
    fn what_was_registered_is_there_after_the_end_and_after_a_kill() {
        let topology = Topology::new(&["web", "db", "third"]).unwrap();
        let text = config(&topology, Variant::PLAIN) + "[ports]\npool = \"24000-24999\"\n";
        let mut daemon = Daemon::start(&topology.device, &text);
        let third = topology.containers[2].clone();
        let keys = json!({"name": "third", "netns": third.path(), "device": "veth", "tcp": "25000"});
        change(&daemon, json!({"type": "attach", "container": keys}));
        change(&daemon, ports("add", "third", "25010-25019"));
        change(&daemon, ports("remove", "third", "25000"));
        change(&daemon, ports("add", "web", "23000-23099"));
        change(&daemon, ports("remove", "web", "23050"));
        change(&daemon, json!({"type": "route-add", "route": {"prefix": "192.0.2.0/24", "via": ["203.0.113.2"], "metric": 7}}));
        change(&daemon, json!({"type": "address-add", "uplink": "up0", "address": "203.0.113.77/24"}));
        change(&daemon, json!({"type": "group-add", "uplink": "up0", "group": "239.1.2.3"}));
        let allocate = json!({"type": "ports-allocate", "container": "db", "size": 100, "protocol": "tcp"});
        let control = daemon.files().control();
        let allocated = answer(&control, Some("once"), &allocate).unwrap().unwrap();
        let clash = ports("add", "db", "23000");
        let refusal = answer(&control, Some("clash"), &clash).unwrap().unwrap_err();
        let before = registrations(&daemon);
        assert_eq!(before.len(), 7, "{before:#?}");
        let mode = fs::metadata(daemon.files().state()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        for kill in [false, true, true, false] {
            daemon.forget_counters();
            let files = match kill {
                true => daemon.kill(),
                false => daemon.stop_by(Signal::SIGTERM),
            };
            daemon = Daemon::start_on(&topology.device, files);
            daemon.forget_counters();
            assert_eq!(registrations(&daemon), before);
            assert!(before.iter().all(|row| row.reason.is_none()));
            assert_eq!(added(&daemon, "web"), ["23000-23049", "23051-23099"]);
            assert_eq!(added(&daemon, "third"), ["25010-25019"]);
            assert_eq!(daemon.attachment("third").origin, Origin::Runtime);
            assert_reached(&topology.external, &third, 25010);
            assert_reached(&topology.external, &topology.containers[0], 23000);
            assert_refused(&topology.external, 23050);
            let uplink = daemon.uplink("up0");
            assert_eq!(uplink.runtime_addresses, ["203.0.113.77/24".parse().unwrap()]);
            assert_eq!(uplink.runtime_groups, ["239.1.2.3".parse::<std::net::IpAddr>().unwrap()]);
            let routes = daemon.routes();
            assert!(routes.iter().any(|route| route.metric == 7 && route.origin == Origin::Runtime));
            // What was answered is answered again, and not done again.
            let control = daemon.files().control();
            assert_eq!(answer(&control, Some("once"), &allocate).unwrap().unwrap(), allocated);
            assert_eq!(answer(&control, Some("clash"), &clash).unwrap().unwrap_err(), refusal);
        }
        change(&daemon, json!({"type": "detach", "name": "third"}));
        let files = daemon.kill();
        let daemon = Daemon::start_on(&topology.device, files);
        daemon.forget_counters();
        assert!(daemon.attachments().iter().all(|row| row.name != "third"));
    }
}

lab_test! {
    fn what_clashes_with_a_file_that_was_edited_is_set_aside_and_comes_back() {
        let topology = Topology::new(&["web", "db", "third"]).unwrap();
        let text = config(&topology, Variant::PLAIN);
        let daemon = Daemon::start(&topology.device, &text);
        let third = topology.containers[2].path();
        let keys = json!({"name": "third", "netns": third, "device": "veth", "tcp": "25000"});
        change(&daemon, json!({"type": "attach", "container": keys}));
        change(&daemon, ports("add", "web", "23000-23099"));
        change(&daemon, ports("add", "db", "22000"));
        let address = json!({"type": "address-add", "uplink": "up0", "address": "203.0.113.77/24"});
        change(&daemon, address);
        let before = registrations(&daemon);
        let files = daemon.stop_by(Signal::SIGTERM);
        // Somebody gives these ports to db, and another address to the uplink meanwhile.
        let edited = edited(&text, "\"21000-21999\"", "\"21000-21999\", \"23050\", \"25000\"");
        files.write(&edited);
        let mut daemon = Daemon::start_on(&topology.device, files);
        for _ in 0..2 {
            assert_eq!(added(&daemon, "web"), [""; 0]);
            assert_eq!(added(&daemon, "db"), ["22000"]);
            let why = reason(&daemon, RegistrationKind::Ports, "web").unwrap();
            assert!(why.contains("23050 of container \"db\""), "{why}");
            let why = reason(&daemon, RegistrationKind::Container, "third").unwrap();
            assert!(why.contains("25000"), "{why}");
            assert_eq!(reason(&daemon, RegistrationKind::Address, "up0"), None);
            await_that("the log says so", || {
                let log = daemon.log();
                log.contains("is set aside").then_some(()).ok_or(log)
            });
            assert_refused(&topology.external, 23000);
            // It is not forgotten by another restart either.
            daemon = Daemon::start_on(&topology.device, daemon.kill());
        }
        // The clash goes, and all is as it was.
        daemon.reload(&text);
        assert_eq!(registrations(&daemon), before);
        assert_eq!(added(&daemon, "web"), ["23000-23099"]);
        assert_reached(&topology.external, &topology.containers[0], 23000);
        await_that("third is attached", || {
            let state = daemon.attachment("third").link.state;
            (state == LinkState::Up).then_some(()).ok_or_else(|| format!("{state:?}"))
        });
        // What is set aside can be taken away as well.
        let files = daemon.kill();
        files.write(&edited);
        let daemon = Daemon::start_on(&topology.device, files);
        change(&daemon, ports("remove", "web", "23000-23049"));
        change(&daemon, json!({"type": "detach", "name": "third"}));
        daemon.reload(&text);
        assert_eq!(added(&daemon, "web"), ["23050-23099"]);
        assert!(registrations(&daemon).iter().all(|row| row.name != "third"));
    }
}

lab_test! {
    fn a_request_that_makes_way_brings_back_what_was_set_aside() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let text = config(&topology, Variant::PLAIN);
        let daemon = Daemon::start(&topology.device, &text);
        let away = |name: &str, port: u16| {
            let netns = format!("/nowhere/{name}");
            let keys = json!({"name": name, "netns": netns, "device": "veth", "tcp": port});
            json!({"type": "attach", "container": keys})
        };
        let owner = |daemon: &Daemon, port: &str| {
            let refusal = asked(daemon, ports("add", "web", port)).unwrap_err();
            refusal.clash.unwrap().owner
        };
        change(&daemon, away("first", 25000));
        let files = daemon.kill();
        // `second` of the file has the port of `first` now.
        let more = "[[container]]\nname = \"second\"\nnetns = \"/nowhere/second\"\ndevice = \"veth\"\ntcp = 25000\n";
        files.write(&(text.clone() + more));
        let daemon = Daemon::start_on(&topology.device, files);
        assert!(reason(&daemon, RegistrationKind::Container, "first").is_some());
        assert_eq!(owner(&daemon, "25000"), "container \"second\"");
        // What is set aside reserves nothing, and gives way to a request of its name.
        change(&daemon, away("first", 25001));
        assert_eq!(reason(&daemon, RegistrationKind::Container, "first"), None);
        assert_eq!(owner(&daemon, "25001"), "container \"first\"");
        daemon.reload(&text);
        assert_eq!(registrations(&daemon).len(), 1);
        change(&daemon, away("third", 25002));
        let daemon = Daemon::start_on(&topology.device, daemon.kill());
        assert_eq!(owner(&daemon, "25001"), "container \"first\"");
        change(&daemon, ports("add", "web", "25000"));
        // It is brought back by the request that makes way for it.
        let files = daemon.stop_by(Signal::SIGTERM);
        files.write(&edited(&text, "\"21000-21999\"", "\"21000-21999\", \"25001\""));
        let daemon = Daemon::start_on(&topology.device, files);
        assert!(reason(&daemon, RegistrationKind::Container, "first").is_some());
        assert_eq!(reason(&daemon, RegistrationKind::Container, "third"), None);
    }
}

/// A file system of so many octets over a directory, while this lives.
struct Disk(PathBuf);

impl Disk {
    fn new(path: PathBuf, options: &str) -> Self {
        fs::create_dir_all(&path).unwrap();
        let tmpfs = Some("tmpfs");
        mount(tmpfs, &path, tmpfs, MsFlags::empty(), Some(options)).unwrap();
        Self(path)
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("filler")).unwrap();
        for size in [65536, 4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(&self.0);
    }
}

lab_test! {
    fn a_full_disk_refuses_changes_and_nothing_else() {
        let _mounts = Mounted::new();
        let topology = Topology::new(&["web", "db", "third"]).unwrap();
        let text = config(&topology, Variant::PLAIN) + "[ports]\npool = \"24000-24999\"\n";
        let files = Files::new();
        files.write(&text);
        let disk = Disk::new(files.state(), "size=2m,mode=0700");
        let daemon = Daemon::start_on(&topology.device, files);
        let third = topology.containers[2].clone();
        let keys = json!({"name": "third", "netns": third.path(), "device": "veth", "tcp": "25000"});
        change(&daemon, json!({"type": "attach", "container": keys}));
        disk.fill();
        // Small changes may still find room in the file; large ones do not.
        let list: Vec<_> = (0..4900_u32).map(|n| 30000 + 2 * n).collect();
        let many = json!({"type": "ports-add", "container": "web", "tcp": list});
        let refusal = asked(&daemon, many.clone()).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Storage);
        assert!(refusal.message.contains(&daemon.files().state().display().to_string()), "{refusal}");
        assert!(refusal.message.contains("No space left on device"), "{refusal}");
        assert!(refusal.message.ends_with("; nothing was changed"), "{refusal}");
        assert_eq!(added(&daemon, "web"), [""; 0]);
        // Others go on, and what would interrupt somebody does not begin.
        let index = third.link("eth0").unwrap().unwrap().index;
        let mut refused = 0;
        for number in 0..200_u32 {
            let action = if number % 2 == 0 { "add" } else { "remove" };
            let before = added(&daemon, "third");
            if let Err(refusal) = asked(&daemon, ports(action, "third", "25001-25009")) {
                assert_eq!(refusal.code, RefusalCode::Storage, "{refusal}");
                assert_eq!(added(&daemon, "third"), before);
                refused += 1;
            }
        }
        println!("{refused} of 200 small changes were refused");
        assert_eq!(third.link("eth0").unwrap().unwrap().index, index);
        assert_reached(&topology.external, &third, 25000);
        let kept = registrations(&daemon);
        // What was refused is not there after a kill, and all that was not is.
        let daemon = Daemon::start_on(&topology.device, daemon.kill());
        daemon.forget_counters();
        assert_eq!(registrations(&daemon), kept);
        // It goes on by itself once there is room.
        disk.empty();
        change(&daemon, many);
        assert_eq!(added(&daemon, "web").len(), 4900);
        let kept = registrations(&daemon);
        let daemon = Daemon::start_on(&topology.device, daemon.kill());
        daemon.forget_counters();
        assert_eq!(registrations(&daemon), kept);
        drop(daemon);
    }
}

/// Starts where it is to fail; what it says.
fn failing(device: &LabNamespace, files: &Files) -> String {
    let output = Daemon::start_failing_on(device, files);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let last = said.lines().last().unwrap_or_default().to_owned();
    assert!(
        last.contains(&files.state().display().to_string()),
        "{said}"
    );
    last
}

lab_test! {
    fn a_state_directory_that_cannot_be_used_is_said_at_the_start() {
        let _mounts = Mounted::new();
        let topology = Topology::new(&["web", "db"]).unwrap();
        let text = config(&topology, Variant::PLAIN);
        let device = &topology.device;
        let files = || {
            let files = Files::new();
            files.write(&text);
            files
        };
        // A file is there.
        let here = files();
        fs::write(here.state(), "").unwrap();
        assert!(failing(device, &here).contains("cannot"));
        // Nothing can be written.
        let here = files();
        let read_only = Disk::new(here.state(), "size=1m,ro");
        let said = failing(device, &here);
        assert!(said.contains("Read-only file system"), "{said}");
        drop(read_only);
        // There is no room.
        let here = files();
        let full = Disk::new(here.state(), "size=64k");
        full.fill();
        let said = failing(device, &here);
        assert!(said.contains("No space left on device"), "{said}");
        full.empty();
        drop(full);
        // Another daemon has it.
        let daemon = Daemon::start(device, &text);
        change(&daemon, ports("add", "web", "23000"));
        let other = files();
        std::os::unix::fs::symlink(daemon.files().state(), other.state()).unwrap();
        let said = failing(device, &other);
        assert!(said.contains("another nos-relay uses it"), "{said}");
        // It is damaged: cut, or a bit has flipped where something is stored.
        let here = daemon.stop_by(Signal::SIGTERM);
        let file = here.state().join("state.redb");
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        let said = failing(device, &here);
        assert!(said.contains("state.redb: is damaged: "), "{said}");
        let mut flipped = whole.clone();
        let at = flipped.windows(5).position(|octets| octets == b"23000").or_else(|| {
            flipped.windows(6).position(|octets| octets == b"\"ports")
        });
        flipped[at.unwrap()] ^= 1;
        fs::write(&file, &flipped).unwrap();
        let said = failing(device, &here);
        assert!(said.contains("state.redb: is damaged: "), "{said}");
        assert_eq!(fs::read(&file).unwrap().len(), whole.len());
        // Restored, it is as it was.
        fs::write(&file, &whole).unwrap();
        let daemon = Daemon::start_on(device, here);
        assert_eq!(added(&daemon, "web"), ["23000"]);
    }
}

/// What the killed daemon is to know again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    /// TCP ports of web.
    ports: BTreeSet<u16>,
    containers: BTreeSet<String>,
    routes: BTreeSet<String>,
}

impl Model {
    fn apply(&mut self, request: &Value) {
        let text = |key: &str| request[key].as_str().unwrap().to_owned();
        match request["type"].as_str().unwrap() {
            "ports-add" => self.ports.extend(range(request)),
            "ports-remove" => range(request).for_each(|port| {
                self.ports.remove(&port);
            }),
            "attach" => {
                let container = &request["container"];
                let name = container["name"].as_str().unwrap();
                self.containers.insert(name.to_owned());
            }
            "detach" => {
                self.containers.remove(&text("name"));
            }
            "route-add" => {
                let prefix = request["route"]["prefix"].as_str().unwrap();
                self.routes.insert(prefix.to_owned());
            }
            "route-remove" => {
                self.routes.remove(&text("prefix"));
            }
            other => panic!("{other}"),
        }
    }

    fn of(daemon: &Daemon) -> Self {
        let mut model = Self::default();
        for row in daemon.ports() {
            if row.origin == Origin::Runtime {
                assert_eq!(row.owner, "web");
                model.ports.extend(row.range.first()..=row.range.last());
            }
        }
        let registered = registrations(daemon).into_iter();
        let containers = registered.filter(|row| row.kind == RegistrationKind::Container);
        model.containers = containers.map(|row| row.name).collect();
        let routes = daemon.routes().into_iter();
        let routes = routes.filter(|route| route.origin == Origin::Runtime);
        model.routes = routes.map(|route| route.prefix.to_string()).collect();
        model
    }
}

fn range(request: &Value) -> impl Iterator<Item = u16> {
    let (first, last) = request["tcp"].as_str().unwrap().split_once('-').unwrap();
    let (first, last): (u16, u16) = (first.parse().unwrap(), last.parse().unwrap());
    first..=last
}

/// A change of one kind, of which some are refused.
fn random_request(kind: usize, random: &mut fastrand::Rng) -> Value {
    match (kind, random.u8(..8)) {
        // Somebody else's port, among others that are free.
        (0, 0) => json!({"type": "ports-add", "container": "web", "tcp": "20990-21010"}),
        (0, choice) => {
            let first = random.u16(23000..23060);
            let action = if choice < 5 { "add" } else { "remove" };
            ports(
                action,
                "web",
                &format!("{first}-{}", first + random.u16(0..8)),
            )
        }
        (1, 0) => {
            let keys =
                json!({"name": "c9", "netns": "/nowhere/c9", "device": "veth", "tcp": 20000});
            json!({"type": "attach", "container": keys})
        }
        (1, choice) => {
            let number = random.u16(0..8);
            let name = format!("c{number}");
            if choice >= 5 {
                return json!({"type": "detach", "name": name});
            }
            let keys = json!({"name": name, "netns": format!("/nowhere/{name}"), "device": "veth", "tcp": 24000 + number});
            json!({"type": "attach", "container": keys})
        }
        (_, 0) => {
            json!({"type": "route-add", "route": {"prefix": "10.99.0.0/16", "via": ["192.0.2.1"]}})
        }
        (_, choice) => {
            let prefix = format!("10.{}.0.0/16", random.u8(0..8));
            if choice >= 5 {
                return json!({"type": "route-remove", "prefix": prefix});
            }
            json!({"type": "route-add", "route": {"prefix": prefix, "type": "blackhole"}})
        }
    }
}

/// What a client asked for: with the answer, if there was one.
type Asked = (String, Value, Option<Result<Applied, Refusal>>);

fn ask_until(
    control: &Path,
    (round, kind): (u64, usize),
    over: &AtomicBool,
    mut random: fastrand::Rng,
) -> Vec<Asked> {
    let mut all = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let id = format!("{round}-{kind}-{}", all.len());
        let request = random_request(kind, &mut random);
        let answer = answer(control, Some(&id), &request);
        let lost = answer.is_none();
        all.push((id, request, answer));
        if lost {
            break;
        }
    }
    all
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap())
}

/// Enough to kill at some moments; a run by hand has a thousand.
const ROUNDS: u64 = 12;

lab_test! {
    fn a_kill_at_any_moment_loses_nothing_acknowledged_and_leaves_nothing_refused() {
        let rounds = number("NOS_RELAY_KILL_ROUNDS").unwrap_or(ROUNDS);
        let seed = number("NOS_RELAY_KILL_SEED").unwrap_or_else(|| fastrand::u64(..));
        println!("NOS_RELAY_KILL_ROUNDS={rounds} NOS_RELAY_KILL_SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let topology = Topology::new(&["web", "db"]).unwrap();
        let mut files = Files::new();
        files.write(&config(&topology, Variant::PLAIN));
        let mut model = Model::default();
        let [mut acknowledged, mut refused, mut lost, mut done] = [0_u32; 4];
        for round in 0..rounds {
            let daemon = Daemon::start_on(&topology.device, files);
            assert_eq!(Model::of(&daemon), model, "round {round}");
            let control = daemon.files().control();
            let over = AtomicBool::new(false);
            let moment = Duration::from_micros(random.u64(0..60_000));
            let (asked, left): (Vec<Vec<Asked>>, Files) = std::thread::scope(|scope| {
                let clients: Vec<_> = (0..3)
                    .map(|kind| {
                        let (control, over, random) = (&control, &over, random.fork());
                        scope.spawn(move || ask_until(control, (round, kind), over, random))
                    })
                    .collect();
                std::thread::sleep(moment);
                let left = daemon.kill();
                over.store(true, Ordering::Relaxed);
                let asked = clients.into_iter().map(|client| client.join().unwrap());
                (asked.collect(), left)
            });
            // What was answered is so; the one that was not may be so or not.
            let mut open = Vec::new();
            for (id, request, answer) in asked.into_iter().flatten() {
                match answer {
                    Some(Ok(_)) => {
                        acknowledged += 1;
                        model.apply(&request);
                    }
                    Some(Err(refusal)) => {
                        assert!(
                            matches!(refusal.code, RefusalCode::Conflict | RefusalCode::BadRequest),
                            "{refusal:?} to {request}"
                        );
                        refused += 1;
                    }
                    None => open.push((id, request)),
                }
            }
            let daemon = Daemon::start_on(&topology.device, left);
            // Clients do not touch what is another's: each kind is as before the request, or behind it.
            let found = Model::of(&daemon);
            let mut with = model.clone();
            open.iter().for_each(|(_, request)| with.apply(request));
            let kinds = |model: &Model| {
                let Model { ports, containers, routes } = model.clone();
                [(Some(ports), None, None), (None, Some(containers), None), (None, None, Some(routes))]
            };
            for ((found, before), with) in kinds(&found).into_iter().zip(kinds(&model)).zip(kinds(&with)) {
                assert!(found == before || found == with, "round {round}: {found:?}, {before:?}");
                done += u32::from(found != before);
            }
            // Asked again, it has one answer, and that is what is so.
            let mut after = model.clone();
            for (id, request) in open {
                lost += 1;
                let control = daemon.files().control();
                let answer = self::answer(&control, Some(&id), &request).unwrap();
                assert_eq!(self::answer(&control, Some(&id), &request).unwrap(), answer);
                if answer.is_ok() {
                    after.apply(&request);
                }
            }
            assert_eq!(Model::of(&daemon), after, "round {round}, after {moment:?}");
            model = after;
            files = daemon.kill();
        }
        println!(
            "{rounds} kills: {acknowledged} acknowledged, {refused} refused, {lost} unanswered, of \
             which {done} were done"
        );
        let daemon = Daemon::start_on(&topology.device, files);
        assert_eq!(Model::of(&daemon), model);
    }
}
