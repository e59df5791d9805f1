//! A process that takes over from another: no packet is lost, and nobody in a container notices.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use nos_relay::control::api::snapshot::{LinkState, Origin};
use nos_relay::control::api::{ControlError, Refusal, RefusalCode, Request, Response, query};
use nos_relay::control::config::Keys;
use nos_relay::control::handover::{FORMAT, HandoverError, READY_LIMIT, Taking};
use nos_relay::lab::testbed::ping::ping;
use nos_relay::lab::testbed::{LabNamespace, Topology, veth};
use support::between::Between;
use support::daemon::{Daemon, Files, LIMIT, await_that, program, run_command_with};
use support::lab_test;
use support::named::Named;
use support::scenario::{FAMILIES, Family, Scenario, Variant, edited, variant_tests};
use support::supervisor::Supervisor;
use support::traffic::{Flood, Transfer, WINDOW, assert_alive, assert_reached, inside};
use support::wire::{self, Seen, Wire};

/// How often the daemon is replaced while traffic flows.
const TIMES: usize = 3;

fn flood_of(
    scenario: &Scenario,
    family: Family,
    port: u16,
    inside: &LabNamespace,
    outbound: bool,
) -> Flood {
    let any = |port| SocketAddr::from((family.any, port));
    match outbound {
        true => Flood::start(
            (inside, any(port + 20_000)),
            (scenario.external(), any(port), family.external_port(port)),
        ),
        false => Flood::start(
            (scenario.external(), any(0)),
            (inside, any(port), family.nos_port(port)),
        ),
    }
}

mod a_flood_and_a_transfer_lose_nothing {
    use super::*;

    fn scenario(variant: Variant) {
        let topology = Topology::new(&["web", "db"]).unwrap();
        // All that is under way finds room in the ring, however rarely its threads get a processor.
        let config = edited(
            &support::scenario::config(&topology, variant),
            "[relay]\n",
            "[relay]\nring = 1024\nbuffers = 16384\n",
        );
        let daemon = Daemon::start(&topology.device, &config);
        let mut scenario = Scenario {
            daemon,
            topology,
            config,
        };
        assert_alive(&scenario);
        let before = [scenario.web(), scenario.db()].map(inside);
        let mut floods = Vec::new();
        let mut transfers = Vec::new();
        for (number, family) in (0..).zip(FAMILIES) {
            let (web, db) = (scenario.web(), scenario.db());
            floods.push(flood_of(&scenario, family, 20_100 + number, web, false));
            floods.push(flood_of(&scenario, family, 20_200 + number, web, true));
            floods.push(flood_of(&scenario, family, 21_100 + number, db, false));
            floods.push(flood_of(&scenario, family, 25_200 + number, db, true));
            let port = 20_300 + number;
            let bind = SocketAddr::from((family.any, port));
            let external = scenario.external();
            let inbound = Transfer::start(external, web, bind, family.nos_port(port));
            let outbound = Transfer::start(db, external, bind, family.external_port(port));
            transfers.extend([inbound, outbound]);
        }
        for _ in 0..TIMES {
            scenario = scenario.replaced();
            assert_alive(&scenario);
        }
        for flood in floods {
            assert!(flood.finish() > WINDOW);
        }
        for transfer in transfers {
            assert!(transfer.finish() > 0);
        }
        assert_eq!([scenario.web(), scenario.db()].map(inside), before);
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        tap_split: ("tap", "split", [true, true]),
        tap_plain: ("tap", "single", [false, false]),
        veth: ("veth", "split", [true, true]),
    }
}

impl Scenario {
    /// The same with another process in the place of the daemon.
    fn replaced(self) -> Self {
        let Self {
            daemon,
            topology,
            config,
        } = self;
        let daemon = daemon.replaced(&topology.device);
        Self {
            daemon,
            topology,
            config,
        }
    }

    /// Starts a process that is to take over and cannot: returns what it said. The daemon goes on.
    fn not_replaced(&mut self) -> String {
        let next = self.daemon.next(&self.topology.device);
        let (status, said, files) = next.wait_for_end();
        self.daemon.goes_on_with(files);
        assert!(!status.success(), "it took over: {said}");
        said
    }
}

fn refusal_of(error: HandoverError) -> Refusal {
    match error {
        HandoverError::Refused(ControlError::Refused(refusal)) => refusal,
        other => panic!("{other}"),
    }
}

lab_test! {
    fn a_bad_configuration_leaves_the_running_one() {
        let mut scenario = Scenario::new(Variant::PLAIN);
        let flood = flood_of(&scenario, FAMILIES[0], 20_100, scenario.web(), false);
        for (bad, why) in [
            ("[[uplink]]\nname = \"x\"", "device"),
            ("no toml", "nos.toml"),
        ] {
            scenario.daemon.files().write(bad);
            let said = scenario.not_replaced();
            assert!(said.contains(why), "{said}");
        }
        scenario.daemon.files().write(&scenario.config);
        assert_alive(&scenario);
        assert!(flood.finish() > WINDOW);
    }
}

lab_test! {
    fn without_a_running_one_nothing_starts() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let files = Files::new();
        files.write(&support::scenario::config(&topology, Variant::PLAIN));
        let next = Daemon::spawn_with(&topology.device, files, &["--takeover"]);
        let (status, said, _) = next.wait_for_end();
        assert!(!status.success());
        assert!(said.contains("no nos-relay is running there"), "{said}");
        assert!(topology.containers[0].link("eth0").unwrap().is_none());
    }
}

lab_test! {
    fn one_that_dies_at_any_step_leaves_the_running_one() {
        let scenario = Scenario::new(Variant { threads: "split", ..Variant::PLAIN });
        let control = scenario.daemon.files().control();
        let floods = [false, true].map(|outbound| {
            flood_of(&scenario, FAMILIES[1], 20_100, scenario.web(), outbound)
        });
        // The one before may not have been missed yet.
        let ask = || {
            await_that("the next may ask", || {
                Taking::ask(&control).map_err(|error| error.to_string())
            })
        };
        let goes_on = || {
            assert_alive(&scenario);
            drop(ask());
        };
        // With the offer in hand.
        let (taking, inheritance) = ask();
        assert_eq!(inheritance.manifest.containers.len(), 2);
        drop((taking, inheritance));
        goes_on();
        // When the running one has stopped.
        let (mut taking, _) = ask();
        let memory = taking.prepared().unwrap();
        assert!(!memory.neighbors.is_empty());
        drop(taking);
        goes_on();
        // It lives and says nothing more: the running one waits for so long, and not longer.
        let (mut taking, inheritance) = ask();
        taking.prepared().unwrap();
        assert_alive(&scenario);
        // It is too late, and hears so.
        let error = taking.ready().unwrap_err();
        assert!(matches!(error, HandoverError::Broken { .. }), "{error}");
        drop(inheritance);
        goes_on();
        for flood in floods {
            assert!(flood.finish() > WINDOW);
        }
        assert!(READY_LIMIT < LIMIT);
        scenario.replaced();
    }
}

/// What the new process says when it could forward.
const READY: &[u8] = b"R";
/// The last message: from then on the new process forwards, and the old one ends.
const GO: &[u8] = b"G";

/// Starts a process that is to take over, by way of somebody who can stop it.
fn next_by_way_of(between: &Path, files: &Files, host: &LabNamespace) -> Child {
    let mut command = Command::new(program());
    command
        .args(["run", "--takeover"])
        .arg(files.config())
        .arg("--control")
        .arg(between)
        .arg("--state")
        .arg(files.state())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    host.spawn(command).unwrap()
}

mod a_new_process_that_is_killed_at_any_step_leaves_the_running_one {
    use super::*;

    fn scenario(variant: Variant) {
        let named = Named::new(variant);
        let scenario = named.start();
        let before = named.each_inside();
        let control = scenario.daemon.files().control();
        let path = scenario.daemon.files().path("between");
        let between = Between::at(&path);
        let flood = |outbound| flood_of(&scenario, FAMILIES[1], 20_100, scenario.web(), outbound);
        let mut floods = vec![flood(false), flood(true)];
        let mut said = Vec::new();
        for step in 0.. {
            if step > 0 {
                // The one before may not have been missed yet.
                await_that("the running one has given it up", || {
                    let refused =
                        query(&control, &Request::Detach(Keys::default()), LIMIT).unwrap_err();
                    match refused {
                        ControlError::Refused(refusal)
                            if refusal.code == RefusalCode::BadRequest =>
                        {
                            Ok(())
                        }
                        other => Err(other.to_string()),
                    }
                });
            }
            if said == READY {
                // The next message is the one behind which the old one is not there any more.
                floods
                    .drain(..)
                    .for_each(|flood| assert!(flood.finish() > WINDOW));
            }
            let files = scenario.daemon.files();
            let mut next = next_by_way_of(&path, files, &scenario.topology.device);
            let kill = || {
                next.kill().unwrap();
                next.wait().unwrap();
            };
            said = between.pass(&control, step, kill);
            if said == GO {
                assert!(step > 5, "{step}");
                break;
            }
            assert_alive(&scenario);
            assert_eq!(named.each_inside(), before, "{said:?}");
        }
        // It was not told to go on: the old one has ended, and everything is in place for the next.
        let (status, log, files) = scenario.daemon.wait_for_end();
        assert!(status.success(), "{log}");
        assert_eq!(named.each_inside(), before);
        let scenario = named.start_on(files);
        assert_alive(&scenario);
        assert_eq!(named.each_inside(), before);
    }

    variant_tests! {
        tap: ("tap", "split", [true, true]),
        veth: ("veth", "single", [true, true]),
    }
}

mod an_old_process_that_is_killed_at_any_step_leaves_everything_to_the_next {
    use super::*;

    fn scenario(variant: Variant) {
        let named = Named::new(variant);
        let mut daemon = named.start().daemon;
        let before = named.each_inside();
        for step in 0.. {
            let control = daemon.files().control();
            let path = daemon.files().path("between");
            let between = Between::at(&path);
            let next = next_by_way_of(&path, daemon.files(), &named.topology.device);
            let message = between.pass(&control, step, || daemon.kill_now());
            let ended = next.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&ended.stderr);
            assert!(!ended.status.success(), "{message:?}: {said}");
            assert_eq!(named.each_inside(), before, "{message:?}: {said}");
            let scenario = named.start_on(daemon.kill());
            assert_alive(&scenario);
            assert_eq!(named.each_inside(), before, "{message:?}: {said}");
            daemon = scenario.daemon;
            if message == GO {
                break;
            }
        }
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "split", [true, true]),
    }
}

/// What an outsider would answer to the next echo request.
fn reply_to(wire: &Wire, family: Family) -> Vec<u8> {
    let request = if family.is_v6() { 128 } else { 8 };
    wire.await_octets(LIMIT, |frame| {
        let seen = Seen::parse(frame)?;
        if seen.icmp() != Some((request, 0)) || seen.destination != family.external {
            return None;
        }
        let ip = wire::ip(
            (Topology::external_mac(), seen.source_mac),
            seen.destination,
            seen.source,
        );
        let transport = seen.transport();
        let word = |at: usize| u16::from_be_bytes(transport[at..at + 2].try_into().unwrap());
        let (identifier, number) = (word(4), word(6));
        let mut reply = Vec::new();
        let written = match family.is_v6() {
            false => ip
                .icmpv4_echo_reply(identifier, number)
                .write(&mut reply, &transport[8..]),
            true => ip
                .icmpv6_echo_reply(identifier, number)
                .write(&mut reply, &transport[8..]),
        };
        written.unwrap();
        Some(reply)
    })
}

mod a_ping_that_is_under_way_is_answered {
    use super::*;

    fn scenario(variant: Variant) {
        let mut scenario = Scenario::new(variant);
        let external = scenario.external().clone();
        for key in [
            "net/ipv4/icmp_echo_ignore_all",
            "net/ipv6/icmp/echo_ignore_all",
        ] {
            external.sysctl(key, "1").unwrap();
        }
        let wire = Wire::open(&external, Topology::EXTERNAL_INTERFACE);
        for family in FAMILIES {
            let [web, db] = [scenario.web().clone(), scenario.db().clone()];
            let pings = [web, db].map(|container| {
                let ping = std::thread::spawn(move || {
                    ping(&container, family.external, 1, LIMIT).unwrap()[0]
                });
                (ping, reply_to(&wire, family))
            });
            scenario = scenario.replaced();
            for (ping, reply) in pings {
                wire.send(&reply);
                let echo = ping.join().unwrap();
                assert!(echo.is_reply(), "{echo:?}");
            }
        }
    }

    variant_tests! {
        tap: ("tap", "split", [true, true]),
        veth: ("veth", "single", [true, true]),
    }
}

lab_test! {
    fn what_was_registered_stays_where_the_state_directory_cannot_be_opened() {
        let mut scenario = Scenario::new(Variant::PLAIN);
        let ports = |action: &str, tcp: &str| {
            let request = serde_json::json!({"type": format!("ports-{action}"), "container": "web", "tcp": tcp});
            serde_json::from_value::<Request>(request).unwrap()
        };
        let ask = |daemon: &Daemon, request: &Request| match query(&daemon.files().control(), request, LIMIT) {
            Ok(Response::Changed(applied)) => Ok(applied.changed),
            Err(ControlError::Refused(refusal)) => Err(refusal),
            other => panic!("{other:?}"),
        };
        let reaches = |scenario: &Scenario, port: u16| {
            for family in FAMILIES {
                assert_reached(scenario.external(), scenario.web(), family.nos_port(port));
            }
        };
        ask(&scenario.daemon, &ports("add", "30000-30009")).unwrap();
        let state = scenario.daemon.files().state();
        let file = state.join("state.redb");
        // It is there, and cannot be used: somebody else has it, or it is damaged.
        for damage in [false, true] {
            let whole = std::fs::read(&file).unwrap();
            let elsewhere = scenario.daemon.files().path("elsewhere");
            // What the running one has open stays open.
            std::fs::rename(&state, &elsewhere).unwrap();
            std::fs::create_dir(&state).unwrap();
            let mut taken = None;
            if damage {
                std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
            } else {
                taken = Some(std::fs::File::open(&state).unwrap());
                taken.as_ref().unwrap().lock().unwrap();
            }
            scenario = scenario.replaced();
            let log = scenario.daemon.log();
            let why = if damage { "is damaged" } else { "another nos-relay uses it" };
            assert!(log.contains(why) && log.contains("what is registered at run time stays, and changes are refused"), "{log}");
            reaches(&scenario, 30_000);
            let refusal = ask(&scenario.daemon, &ports("add", "31000")).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::Storage);
            assert!(refusal.message.contains(why) && refusal.message.ends_with("; nothing was changed"), "{refusal}");
            let refusal = ask(&scenario.daemon, &ports("remove", "30000")).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::Storage);
            reaches(&scenario, 30_000);
            // Another process takes that over as well.
            scenario = scenario.replaced();
            reaches(&scenario, 30_000);
            // Whole again, it is taken up, and what is registered with it.
            drop(taken);
            std::fs::remove_dir_all(&state).unwrap();
            std::fs::rename(&elsewhere, &state).unwrap();
            await_that("it is stored again", || {
                let port = if damage { "32001" } else { "32000" };
                ask(&scenario.daemon, &ports("add", port)).map(drop).map_err(|refusal| refusal.to_string())
            });
            let Scenario { daemon, topology, config } = scenario;
            let daemon = Daemon::start_on(&topology.device, daemon.kill());
            scenario = Scenario { daemon, topology, config };
            reaches(&scenario, 30_009);
            reaches(&scenario, if damage { 32_001 } else { 32_000 });
        }
        // It is gone, and made anew.
        std::fs::rename(&state, scenario.daemon.files().path("gone")).unwrap();
        scenario = scenario.replaced();
        reaches(&scenario, 30_000);
        let Scenario { daemon, topology, config } = scenario;
        let daemon = Daemon::start_on(&topology.device, daemon.kill());
        let scenario = Scenario { daemon, topology, config };
        reaches(&scenario, 30_000);
    }
}

lab_test! {
    fn one_of_another_format_or_while_another_asks_is_refused() {
        let scenario = Scenario::new(Variant::PLAIN);
        let control = scenario.daemon.files().control();
        let request = Request::TakeOver { format: FORMAT + 1 };
        let Err(ControlError::Refused(refusal)) = query(&control, &request, LIMIT) else {
            panic!("another format is taken");
        };
        assert_eq!(refusal.code, RefusalCode::Version);
        let (taking, _) = Taking::ask(&control).unwrap();
        let refusal = refusal_of(Taking::ask(&control).unwrap_err());
        assert_eq!(refusal.code, RefusalCode::Busy);
        // Nothing is changed meanwhile.
        let change = Request::Detach(Keys::default().with("name", "db"));
        let Err(ControlError::Refused(refusal)) = query(&control, &change, LIMIT) else {
            panic!("it is changed while another process takes over");
        };
        assert_eq!(refusal.code, RefusalCode::Unavailable);
        drop(taking);
        assert_alive(&scenario);
    }
}

lab_test! {
    fn another_user_is_refused() {
        const NOBODY: u32 = 65_534;
        let scenario = Scenario::new(Variant::PLAIN);
        let files = scenario.daemon.files();
        let open = |path: &std::path::Path, mode| {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        };
        open(files.control().parent().unwrap(), 0o755);
        open(&files.control(), 0o666);
        let mut command = run_command_with(files, &["--takeover"]);
        let output = command.uid(NOBODY).gid(NOBODY).output();
        match output {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(!output.status.success(), "{said}");
                assert!(said.contains("only user"), "{said}");
            }
            // In a user namespace there is no other user.
            Err(error) => support::skip(&format!("no other user: {error}")),
        }
        assert_alive(&scenario);
    }
}

lab_test! {
    fn what_was_registered_stays_and_the_new_file_is_followed() {
        let scenario = Scenario::new(Variant::PLAIN);
        let control = scenario.daemon.files().control();
        let keys = Keys::default().with("container", "web").with("tcp", vec!["30000-30009"]);
        let request = Request::PortsAdd(keys);
        let added = query(&control, &request, LIMIT).unwrap();
        assert!(matches!(added, Response::Changed(_)), "{added:?}");
        let before = inside(scenario.web());
        // The next one has another idea of db, and of the threads.
        let mut edited = scenario.edited("21000-21999", "22000-22999");
        edited = edited.replace("\"single\"", "\"split\"");
        scenario.daemon.files().write(&edited);
        let scenario = scenario.replaced();
        assert_alive(&scenario);
        let ports = scenario.daemon.ports();
        let has = |range: &str| ports.iter().find(|port| port.range.to_string() == range);
        assert_eq!(has("30000-30009").unwrap().origin, Origin::Runtime);
        assert!(has("22000-22999").is_some() && has("21000-21999").is_some(), "{ports:?}");
        assert_eq!(inside(scenario.web()), before);
        // One that is not wanted any more goes, with all that was there before.
        let without = edited[..edited.find("[[container]]\nname = \"db\"").unwrap()].to_owned();
        scenario.daemon.files().write(&without);
        let scenario = scenario.replaced();
        scenario.daemon.forget_counters();
        let db = scenario.db();
        assert!(db.link("eth0").unwrap().is_none());
        assert_eq!(db.read_sysctl("net/ipv4/ip_local_port_range").unwrap(), "32768\t60999");
        assert_eq!(scenario.daemon.attachments().len(), 1);
        assert_eq!(scenario.daemon.attachment("web").link.state, LinkState::Up);
    }
}

/// What systemd does with a service that has a store.
mod a_service_manager_keeps_the_devices {
    use super::*;

    fn scenario(variant: Variant) {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let config = support::scenario::config(&topology, variant);
        let files = Files::new();
        files.write(&config);
        let mut supervisor = Supervisor::new(&files);
        let daemon = supervisor.start(&topology.device, files);
        let mut scenario = Scenario {
            daemon,
            topology,
            config,
        };
        assert_alive(&scenario);
        let before = [scenario.web(), scenario.db()].map(inside);
        let flood = flood_of(&scenario, FAMILIES[0], 20_100, scenario.web(), false);
        let transfer = Transfer::start(
            scenario.external(),
            scenario.web(),
            (FAMILIES[1].any, 20_300).into(),
            FAMILIES[1].nos_port(20_300),
        );
        // An orderly restart, by `RestartKillSignal=`.
        for _ in 0..2 {
            let Scenario {
                daemon,
                topology,
                config,
            } = scenario;
            daemon.signal(Signal::SIGUSR1);
            let (status, said, files) = daemon.wait_for_end();
            assert!(status.success(), "{said}");
            let daemon = supervisor.start(&topology.device, files);
            scenario = Scenario {
                daemon,
                topology,
                config,
            };
            assert_alive(&scenario);
        }
        assert!(flood.finish() > WINDOW);
        assert!(transfer.finish() > 0);
        assert_eq!([scenario.web(), scenario.db()].map(inside), before);
        // A crash: what the queues hold is delivered by the next one.
        let waiting = flood_of(&scenario, FAMILIES[1], 20_101, scenario.web(), true);
        waiting.pause();
        scenario.daemon.reload(&scenario.config);
        scenario.daemon.settle();
        scenario.daemon.signal(Signal::SIGSTOP);
        waiting.resume();
        waiting.await_window();
        let Scenario {
            daemon,
            topology,
            config,
        } = scenario;
        let files = daemon.kill();
        assert!(supervisor.names().len() > 3, "{:?}", supervisor.names());
        let daemon = supervisor.start(&topology.device, files);
        let scenario = Scenario {
            daemon,
            topology,
            config,
        };
        assert!(waiting.finish() >= WINDOW);
        assert_eq!([scenario.web(), scenario.db()].map(inside), before);
        // Another interface in the place of one that is kept.
        let [is, shall] = [variant.offload[0], !variant.offload[0]]
            .map(|offload| format!("device = \"{}\"\noffload = {offload}", variant.device));
        scenario.daemon.reload(&scenario.edited(&is, &shall));
        assert_alive(&scenario);
        let log = scenario.daemon.log();
        assert!(!log.contains("belongs to attachment"), "{log}");
        // The end: nothing is left, neither there nor with the manager.
        let Scenario {
            daemon, topology, ..
        } = scenario;
        daemon.stop_by(Signal::SIGTERM);
        assert_eq!(supervisor.names(), [""; 0]);
        assert!(topology.containers[0].link("eth0").unwrap().is_none());
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        tap_plain: ("tap", "split", [false, false]),
        veth: ("veth", "split", [true, true]),
    }
}

lab_test! {
    /// Whether the one that has it notices first, or the next one.
    fn an_uplink_that_vanishes_just_then_is_waited_for() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let y = LabNamespace::new("Y").unwrap();
        veth((&topology.device, "hy"), (&y, "yh")).unwrap();
        let more = "[[uplink]]\nname = \"up1\"\ndevice = \"packet:hy\"\naddresses = [\"192.0.2.1/24\"]\n";
        let config = support::scenario::config(&topology, Variant::PLAIN) + more;
        let mut old = Daemon::start(&topology.device, &config);
        old.signal(Signal::SIGSTOP);
        topology.device.delete_link("hy").unwrap();
        let next = old.next(&topology.device);
        old.signal(Signal::SIGCONT);
        next.await_ready();
        assert!(old.wait().success());
        let scenario = Scenario { daemon: next, topology, config };
        assert_alive(&scenario);
        assert_ne!(scenario.daemon.uplink("up1").link.state, LinkState::Up);
        veth((&scenario.topology.device, "hy"), (&y, "yh")).unwrap();
        await_that("up1", || match scenario.daemon.uplink("up1").link.state {
            LinkState::Up => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
}

lab_test! {
    fn what_the_service_manager_passes_and_makes_no_sense_is_left_aside() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let config = support::scenario::config(&topology, Variant::PLAIN);
        let files = Files::new();
        files.write(&config);
        let mut supervisor = Supervisor::new(&files);
        supervisor.add("nos-relay-manifest-1", b"{\"format\":99}");
        supervisor.add("nos-relay-device-17", b"no device");
        supervisor.add("somebody-elses", b"");
        let daemon = supervisor.start(&topology.device, files);
        assert!(daemon.log().contains("format 99"), "{}", daemon.log());
        let scenario = Scenario { daemon, topology, config };
        assert_alive(&scenario);
        // One that was stored by a process in another namespace.
        let Scenario { daemon, topology, config } = scenario;
        let files = daemon.kill();
        let elsewhere = Topology::new(&["web", "db"]).unwrap();
        files.write(&support::scenario::config(&elsewhere, Variant::PLAIN));
        let daemon = supervisor.start(&elsewhere.device, files);
        assert!(daemon.log().contains("starting anew"), "{}", daemon.log());
        drop((topology, config));
        let scenario = Scenario { daemon, topology: elsewhere, config: String::new() };
        assert_alive(&scenario);
    }
}
