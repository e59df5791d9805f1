//! The process: start, signals, reload, what happens to it when networks go away, and its end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::sys::signal::Signal;
use nos_relay::control::api::Table;
use nos_relay::control::api::snapshot::{LinkState, RouteAction};
use nos_relay::lab::testbed::ping::{Echo, ping};
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp, udp, veth};
use support::daemon::{Daemon, Files, LIMIT, await_that, program};
use support::lab_test;
use support::scenario::{
    FAMILIES, Scenario, V4, V6, Variant, config, each_variant, edited, variant_tests,
};
use support::wire::Wire;

/// What somebody inside can see of the parts that attaching touches.
fn state_of(namespace: &LabNamespace) -> Vec<String> {
    let mut lines = vec![
        namespace
            .read_sysctl("net/ipv4/ip_local_port_range")
            .unwrap(),
        format!(
            "eth0: {:?}",
            namespace.link("eth0").unwrap().map(|link| link.mac)
        ),
    ];
    let addresses: BTreeSet<_> = namespace.addresses("lo").unwrap().into_iter().collect();
    lines.extend(addresses.iter().map(ToString::to_string));
    let routes = || std::fs::read_to_string("/proc/thread-self/net/route").unwrap();
    lines.push(namespace.run(routes).unwrap());
    lines
}

/// A reply to ping from the NOS, by both families.
fn assert_alive(scenario: &Scenario) {
    for family in FAMILIES {
        let echo = ping(scenario.external(), family.nos, 1, LIMIT).unwrap()[0];
        assert!(echo.is_reply(), "{echo:?}");
        let echo = ping(scenario.web(), family.external, 1, LIMIT).unwrap()[0];
        assert!(echo.is_reply(), "{echo:?}");
    }
}

each_variant! {
    fn everything_is_undone_at_the_end(variant) {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let topology = Topology::new(&["web", "db"]).unwrap();
            let before = topology.containers.each_state();
            let host_before = links_of(&topology.device);
            let daemon = Daemon::start(&topology.device, &config(&topology, variant));
            let during = topology.containers.each_state();
            assert!(before.iter().zip(&during).all(|(before, during)| before != during));
            let scenario = Scenario { daemon, topology, config: String::new() };
            assert_alive(&scenario);
            let Scenario { daemon, topology, .. } = scenario;
            daemon.stop_by(signal);
            assert_eq!(topology.containers.each_state(), before);
            assert_eq!(links_of(&topology.device), host_before);
        }
    }
}

trait EachState {
    fn each_state(&self) -> Vec<Vec<String>>;
}

impl EachState for Vec<LabNamespace> {
    fn each_state(&self) -> Vec<Vec<String>> {
        self.iter().map(state_of).collect()
    }
}

/// Names of all interfaces.
fn links_of(namespace: &LabNamespace) -> BTreeSet<String> {
    let read = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let text = namespace.run(read).unwrap();
    let names = text.lines().skip(2).filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim().to_owned()).collect()
}

lab_test! {
    fn service_manager_hears_of_start_and_end() {
        let scenario = Scenario::new(Variant::PLAIN);
        // Ready was awaited at the start.
        scenario.daemon.settle();
        scenario.daemon.signal(Signal::SIGTERM);
        scenario.daemon.await_notification("STOPPING=1");
        assert!(scenario.daemon.wait().success());
    }
}

lab_test! {
    fn control_socket_is_the_owners_alone() {
        let scenario = Scenario::new(Variant::PLAIN);
        let mode = std::fs::metadata(scenario.daemon.files().control()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        for table in ["attachments", "ports", "routes", "neighbors", "flows", "counters"] {
            serde_json::from_str::<serde_json::Value>(&scenario.daemon.show_json(table)).unwrap();
        }
    }
}

lab_test! {
    fn second_daemon_on_the_same_control_path_is_refused() {
        let scenario = Scenario::new(Variant::PLAIN);
        let before = scenario.topology.containers.each_state();
        let output = Daemon::start_failing_on(&scenario.topology.device, scenario.daemon.files());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("control.sock"), "{said}");
        assert_eq!(scenario.topology.containers.each_state(), before);
        assert_alive(&scenario);
    }
}

lab_test! {
    fn second_daemon_on_the_same_uplink_is_refused() {
        let scenario = Scenario::new(Variant::PLAIN);
        let before = scenario.topology.containers.each_state();
        let output = Daemon::start_failing(&scenario.topology.device, &scenario.config);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("hx"), "{said}");
        assert_eq!(scenario.topology.containers.each_state(), before);
        assert_alive(&scenario);
    }
}

lab_test! {
    fn start_that_fails_undoes_what_it_did() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let before = topology.containers.each_state();
        let good = config(&topology, Variant::PLAIN);
        for (from, to, named) in [
            ("packet:hx", "packet:missing", "missing"),
            (&*topology.containers[1].path().display().to_string(), "/run/netns/not-there", "not-there"),
        ] {
            let output = Daemon::start_failing(&topology.device, &edited(&good, from, to));
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains(named), "{said}");
            assert!(output.stdout.is_empty());
            assert_eq!(topology.containers.each_state(), before);
        }
        // And it starts all the same after that.
        Daemon::start(&topology.device, &good);
    }
}

fn check(files: &Files) -> (Option<i32>, String) {
    let mut command = Command::new(program());
    let output = command.arg("check").arg(files.config()).output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (output.status.code(), said.concat())
}

#[test]
fn check_tells_good_from_bad_by_its_exit_code() {
    let files = Files::new();
    let good =
        "[[uplink]]\nname = \"up0\"\ndevice = \"packet:hx\"\naddresses = [\"203.0.113.1/24\"]\n";
    files.write(good);
    let (code, said) = check(&files);
    assert_eq!(code, Some(0), "{said}");
    files.write(&edited(good, "203.0.113.1/24", "203.0.113.0/24"));
    let (code, said) = check(&files);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("nos.toml:4: uplink.addresses"), "{said}");
    files.write(&format!("{good}colour = \"blue\"\n"));
    let (code, said) = check(&files);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("nos.toml:5") && said.contains("colour"),
        "{said}"
    );
    let output = Command::new(program()).arg("check").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn show_without_a_daemon_says_so() {
    let files = Files::new();
    let mut command = Command::new(program());
    let output = command
        .args(["show", "ports", "--control"])
        .arg(files.control())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no nos-relay is running"), "{said}");
}

/// What a killed daemon leaves is taken over by the next one.
mod next_daemon_takes_over_from_a_killed_one {
    use super::*;

    fn scenario(variant: Variant) {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let before = topology.containers.each_state();
        let host_before = links_of(&topology.device);
        let text = config(&topology, variant);
        let mut files = Daemon::start(&topology.device, &text).kill();
        for _ in 0..2 {
            let daemon = Daemon::start_on(&topology.device, files);
            let scenario = Scenario {
                daemon,
                topology: topology.clone(),
                config: text.clone(),
            };
            assert_alive(&scenario);
            for family in FAMILIES {
                let server =
                    tcp::EchoServer::start(scenario.web(), family.nos_port(20080)).unwrap();
                tcp::exchange(scenario.external(), None, server.address(), b"x", LIMIT).unwrap();
            }
            files = scenario.daemon.kill();
        }
        // Also by one that is to ask for less, and by another name.
        files.write(&edited(
            &edited(&text, "\"web\"", "\"shop\""),
            "40000-44999",
            "40000-40999",
        ));
        let daemon = Daemon::start_on(&topology.device, files);
        assert_eq!(
            topology.containers[0]
                .read_sysctl("net/ipv4/ip_local_port_range")
                .unwrap(),
            "40000\t40999"
        );
        daemon.stop_by(Signal::SIGTERM);
        assert_eq!(topology.containers.each_state(), before);
        assert_eq!(links_of(&topology.device), host_before);
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        tap_plain: ("tap", "split", [false, false]),
        veth: ("veth", "split", [true, true]),
    }
}

/// A TCP connection of `web` that echoes without pause, until it is told to stop.
struct Flow {
    stop: &'static AtomicBool,
    thread: JoinHandle<u64>,
}

impl Flow {
    fn start(scenario: &Scenario) -> Self {
        let listener = scenario
            .external()
            .run(|| TcpListener::bind(V4.external_port(8080)).unwrap())
            .unwrap();
        let connect = || TcpStream::connect_timeout(&V4.external_port(8080), LIMIT).unwrap();
        let near = scenario.web().run(connect).unwrap();
        let (far, _) = listener.accept().unwrap();
        let stop: &'static AtomicBool = Box::leak(Box::default());
        std::thread::spawn(move || reflect(far));
        let thread = std::thread::spawn(move || converse(near, stop));
        Self { stop, thread }
    }

    /// Ends it; nothing was lost, so nothing had to be sent twice.
    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let retransmitted = self.thread.join().unwrap();
        assert_eq!(retransmitted, 0, "segments were lost");
    }
}

fn reflect(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        stream.write_all(&buffer[..length]).unwrap();
    }
}

/// Returns how many segments were retransmitted.
fn converse(mut stream: TcpStream, stop: &AtomicBool) -> u64 {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let mut message = [0; 1000];
        message[..8].copy_from_slice(&number.to_be_bytes());
        stream.write_all(&message).unwrap();
        let mut answer = [0; 1000];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, message);
        number += 1;
        // A flood would keep two processors busy, and the kernel from deleting interfaces.
        std::thread::sleep(Duration::from_micros(200));
    }
    retransmissions(&stream)
}

/// `tcpi_total_retrans` of `tcp(7)`.
fn retransmissions(stream: &TcpStream) -> u64 {
    // SAFETY: all zeros is a valid tcp_info.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size = libc::socklen_t::try_from(size_of_val(&info)).unwrap();
    // SAFETY: the pointers are those of `info` and its size, which outlive the call.
    let result = unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(stream),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut size,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    info.tcpi_total_retrans.into()
}

each_variant! {
    fn reload_changes_what_differs_and_nothing_else(variant) {
        let scenario = Scenario::new(variant);
        let daemon = &scenario.daemon;
        let cache = LabNamespace::new("cache").unwrap();
        let flow = Flow::start(&scenario);

        // Another container, a route, a service, and more ports for one that stays.
        let more = format!(
            "
            [[container]]
            name = \"cache\"
            netns = \"{}\"
            device = \"veth\"
            tcp = [22000]
            ephemeral = \"50000-50999\"
            [[route]]
            prefix = \"192.0.2.0/24\"
            via = \"203.0.113.2\"
            [nos]
            services = [\"echo\"]
            ",
            cache.path().display()
        );
        let with_cache = scenario.config.clone() + &more;
        let with_cache = edited(&with_cache, "tcp = [\"21000-21999\"]", "tcp = [\"21000-21999\", \"443\"]");
        daemon.reload(&with_cache);
        scenario.external().add_address("lo", "192.0.2.1/32".parse().unwrap()).unwrap();
        assert!(ping(&cache, "192.0.2.1".parse().unwrap(), 1, LIMIT).unwrap()[0].is_reply());
        for (container, port) in [(&cache, 22000), (scenario.db(), 443), (scenario.db(), 21080)] {
            let server = tcp::EchoServer::start(container, V4.nos_port(port)).unwrap();
            tcp::exchange(scenario.external(), None, server.address(), b"x", LIMIT).unwrap();
        }
        tcp::exchange(scenario.external(), None, V6.nos_port(7), b"x", LIMIT).unwrap();

        // Ports move from one container to another that stays; the ephemeral range changes.
        let moved = edited(&with_cache, "tcp = [\"21000-21999\", \"443\"]", "tcp = [\"21000-21999\"]");
        let moved = edited(&moved, "tcp = [22000]", "tcp = [22000, 443]");
        let moved = edited(&moved, "50000-50999", "51000-51099");
        daemon.reload(&moved);
        let server = tcp::EchoServer::start(&cache, V4.nos_port(443)).unwrap();
        tcp::exchange(scenario.external(), None, server.address(), b"x", LIMIT).unwrap();
        assert_eq!(server.peers().len(), 1);
        assert_eq!(cache.read_sysctl("net/ipv4/ip_local_port_range").unwrap(), "51000\t51099");
        let server = tcp::EchoServer::start(scenario.external(), V4.external_port(9090)).unwrap();
        let local = tcp::exchange(&cache, None, server.address(), b"x", LIMIT).unwrap();
        assert!((51000..=51099).contains(&local.port()), "{local}");

        // Everything that was added goes.
        let untouched = state_of(&LabNamespace::new("untouched").unwrap());
        daemon.reload(&scenario.config);
        assert_eq!(state_of(&cache), untouched);
        assert_eq!(daemon.attachments().len(), 2);
        for port in [7, 443, 22000] {
            let error = tcp::connect(scenario.external(), None, V4.nos_port(port), LIMIT).unwrap_err();
            assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{port}: {error}");
        }
        let prefix: IpNet = "192.0.2.0/24".parse().unwrap();
        assert!(daemon.routes().iter().all(|route| route.prefix != prefix));
        flow.finish();
    }
}

lab_test! {
    fn reload_changes_addresses_and_containers_follow() {
        let scenario = Scenario::new(Variant::PLAIN);
        let daemon = &scenario.daemon;
        let flow = Flow::start(&scenario);
        let more = scenario.edited("\"2001:db8:1::1/64\"]", "\"2001:db8:1::1/64\", \"203.0.113.9/24\", \"2001:db8:7::1/64\"]");
        daemon.reload(&more);
        for address in ["203.0.113.9/32", "2001:db8:7::1/128"] {
            let address: IpNet = address.parse().unwrap();
            for container in &scenario.topology.containers {
                let lo = container.addresses("lo").unwrap();
                assert!(lo.contains(&address), "{address} is not in {lo:?}");
            }
        }
        assert_eq!(daemon.attachment("web").addresses.len(), 4);
        scenario.external().add_address("xh", "2001:db8:7::2/64".parse().unwrap()).unwrap();
        for address in ["203.0.113.9", "2001:db8:7::1"] {
            let address = address.parse().unwrap();
            assert!(ping(scenario.external(), address, 1, LIMIT).unwrap()[0].is_reply());
            let server = tcp::EchoServer::start(scenario.db(), (address, 21080).into()).unwrap();
            tcp::exchange(scenario.external(), None, server.address(), b"x", LIMIT).unwrap();
        }
        // And away again.
        daemon.reload(&scenario.config);
        assert_eq!(daemon.attachment("web").addresses.len(), 2);
        for container in &scenario.topology.containers {
            let lo = container.addresses("lo").unwrap();
            assert!(!lo.contains(&"203.0.113.9/32".parse().unwrap()), "{lo:?}");
        }
        let gone = ping(scenario.external(), "2001:db8:7::1".parse().unwrap(), 1, Duration::from_millis(50));
        assert!(!gone.unwrap()[0].is_reply());
        flow.finish();
    }
}

lab_test! {
    fn reload_replaces_a_container_whose_device_changes() {
        let scenario = Scenario::new(Variant::PLAIN);
        let flow = Flow::start(&scenario);
        let changed = edited(&scenario.config, "name = \"db\"\n", "name = \"db\"\nmac = \"02:00:5e:00:00:07\"\n");
        scenario.daemon.reload(&changed);
        let eth0 = scenario.db().link("eth0").unwrap().unwrap();
        assert_eq!(eth0.mac.unwrap().to_string(), "02:00:5e:00:00:07");
        let server = tcp::EchoServer::start(scenario.db(), V4.nos_port(21080)).unwrap();
        tcp::exchange(scenario.external(), None, server.address(), b"x", LIMIT).unwrap();
        // Another name for the interface, and another uplink MTU, which containers follow.
        let changed = edited(&changed, "name = \"db\"\n", "name = \"db\"\ninterface = \"net0\"\n");
        scenario.daemon.reload(&changed);
        assert!(scenario.db().link("eth0").unwrap().is_none());
        assert!(scenario.db().link("net0").unwrap().is_some());
        tcp::exchange(scenario.external(), None, server.address(), b"x", LIMIT).unwrap();
        scenario.daemon.reload(&edited(&changed, "offload = true\n", "offload = true\nmtu = 1400\n"));
        assert_eq!(scenario.db().link("net0").unwrap().unwrap().mtu, 1400);
        assert_eq!(scenario.web().link("eth0").unwrap().unwrap().mtu, 1400);
        assert_alive(&scenario);
        flow.finish();
    }
}

lab_test! {
    fn reload_adds_and_removes_an_uplink() {
        let scenario = Scenario::new(Variant::PLAIN);
        let y = LabNamespace::new("Y").unwrap();
        let device = &scenario.topology.device;
        veth((device, "hy"), (&y, "yh")).unwrap();
        y.add_address("yh", "198.51.100.2/24".parse().unwrap()).unwrap();
        y.add_route("203.0.113.0/24".parse().unwrap(), "198.51.100.1".parse().unwrap()).unwrap();
        let flow = Flow::start(&scenario);
        let more = "
            [[uplink]]
            name = \"up1\"
            device = \"packet:hy\"
            addresses = [\"198.51.100.1/24\"]
        ";
        for _ in 0..3 {
            scenario.daemon.reload(&(scenario.config.clone() + more));
            let address = "198.51.100.2".parse().unwrap();
            assert!(ping(scenario.web(), address, 1, LIMIT).unwrap()[0].is_reply());
            assert!(ping(&y, "198.51.100.1".parse().unwrap(), 1, LIMIT).unwrap()[0].is_reply());
            scenario.daemon.reload(&scenario.config);
            let Echo::Error { .. } = ping(scenario.web(), address, 1, LIMIT).unwrap()[0] else {
                panic!("there is still a way to {address}")
            };
        }
        flow.finish();
        // The kernel has it again.
        device.add_address("hy", "198.51.100.1/24".parse().unwrap()).unwrap();
        assert!(ping(&y, "198.51.100.1".parse().unwrap(), 1, LIMIT).unwrap()[0].is_reply());
    }
}

lab_test! {
    fn reload_moves_ports_between_containers_and_services() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let plain = config(&topology, Variant::PLAIN);
        let [container, service] = [
            edited(&plain, "[\"21000-21999\"]", "[\"21000-21999\", \"8080\"]"),
            plain + "[nos]\nservices = [\"http:8080\"]\n",
        ];
        let daemon = Daemon::start(&topology.device, &container);
        let scenario = Scenario { daemon, topology, config: container.clone() };
        let server = tcp::EchoServer::start(scenario.db(), V4.nos_port(8080)).unwrap();
        let owner = || {
            let ports = scenario.daemon.ports();
            let port = ports.iter().find(|port| port.range.to_string() == "8080");
            port.map(|port| port.owner.clone())
        };
        for _ in 0..2 {
            tcp::exchange(scenario.external(), None, V4.nos_port(8080), b"x", LIMIT).unwrap();
            scenario.daemon.reload(&service);
            assert!(owner().is_some_and(|owner| owner != "db"));
            scenario.daemon.reload(&container);
            assert_eq!(owner().as_deref(), Some("db"));
        }
        assert_eq!(server.peers().len(), 2);
    }
}

lab_test! {
    fn bad_configuration_changes_nothing_on_reload() {
        let scenario = Scenario::with(Variant::PLAIN, "[nos]\nservices = [\"echo\"]\n");
        let daemon = &scenario.daemon;
        let flow = Flow::start(&scenario);
        let state = || (daemon.ports(), daemon.routes(), daemon.attachments().len(), scenario.topology.containers.each_state());
        let before = state();
        for (bad, said) in [
            (scenario.edited("device = \"veth\"", "device = \"pigeon\""), "pigeon"),
            (scenario.edited("[relay]", "[relay"), "nos.toml:"),
            (String::new(), "uplink"),
            (scenario.edited("[\"20000-20999\", \"179\"]", "[\"20000-20999\", \"7\"]"), "echo"),
        ] {
            daemon.reload(&bad);
            assert!(state() == before, "{bad}");
            let log = daemon.log();
            assert!(log.contains(said), "{said} is not in {log}");
        }
        std::fs::remove_file(daemon.files().config()).unwrap();
        daemon.signal(Signal::SIGHUP);
        daemon.await_notification("RELOADING=1");
        daemon.await_notification("READY=1");
        assert!(state() == before);
        flow.finish();
    }
}

lab_test! {
    fn reload_of_the_same_configuration_changes_nothing() {
        let scenario = Scenario::with(Variant::PLAIN, "[nos]\nservices = [\"echo\"]\n");
        let flow = Flow::start(&scenario);
        let index = || scenario.topology.containers.iter().map(|one| one.link("eth0").unwrap().unwrap().index).collect::<Vec<_>>();
        let before = (index(), scenario.topology.containers.each_state());
        for _ in 0..5 {
            scenario.daemon.reload(&scenario.config);
        }
        assert_eq!((index(), scenario.topology.containers.each_state()), before);
        flow.finish();
    }
}

lab_test! {
    fn settings_of_the_process_wait_for_the_next_start() {
        let scenario = Scenario::new(Variant::PLAIN);
        scenario.daemon.reload(&scenario.edited("threads = \"single\"", "threads = \"split\""));
        let log = scenario.daemon.log();
        assert!(log.contains("threads") && log.contains("next start"), "{log}");
        assert_alive(&scenario);
    }
}

/// Processor time of the daemon so far.
fn processor_time(daemon: &Daemon) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    let (_, fields) = text.rsplit_once(')').unwrap();
    let fields: Vec<_> = fields.split_whitespace().collect();
    // utime and stime are fields 14 and 15 of proc_pid_stat(5), in hundredths of a second.
    let ticks: u64 = fields[11..13]
        .iter()
        .map(|field| field.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10)
}

/// While nothing is to be done, the daemon does nothing: a loop that spins takes all the time that
/// passes. Machines that are busy make this lenient, never strict.
fn assert_idle(daemon: &Daemon) {
    daemon.settle();
    let (begin, used) = (Instant::now(), processor_time(daemon));
    let pause = LabNamespace::new("pause").unwrap();
    pause.add_bridge("br0").unwrap();
    pause
        .add_address("br0", "10.0.0.1/24".parse().unwrap())
        .unwrap();
    pause
        .add_neighbor("br0", "10.0.0.2".parse().unwrap(), Topology::external_mac())
        .unwrap();
    // Passes by a wait for somebody who does not exist.
    assert_eq!(
        ping(
            &pause,
            "10.0.0.2".parse().unwrap(),
            1,
            Duration::from_millis(500)
        )
        .unwrap(),
        [Echo::Timeout]
    );
    let used = processor_time(daemon) - used;
    assert!(
        used < begin.elapsed() / 4,
        "{used:?} of processor time in {:?}",
        begin.elapsed()
    );
}

each_variant! {
    fn idle_daemon_takes_no_time(variant) {
        let scenario = Scenario::new(variant);
        assert_alive(&scenario);
        assert_idle(&scenario.daemon);
    }
}

/// A container whose namespace goes away loses its ports; the others notice nothing.
mod container_that_vanishes_frees_its_ports {
    use super::*;

    fn scenario(variant: Variant) {
        let mut scenario = Scenario::new(Variant {
            device: "veth",
            ..variant
        });
        let cache = LabNamespace::new("cache").unwrap();
        let more = |netns: &LabNamespace| {
            format!(
                "
            [[container]]
            name = \"cache\"
            netns = \"{}\"
            device = \"{}\"
            tcp = [22000]
            ephemeral = \"50000-50999\"
            ",
                netns.path().display(),
                variant.device,
            )
        };
        scenario
            .daemon
            .reload(&(scenario.config.clone() + &more(&cache)));
        let server = tcp::EchoServer::start(&cache, V4.nos_port(22000)).unwrap();
        tcp::exchange(scenario.external(), None, server.address(), b"x", LIMIT).unwrap();
        drop(server);
        let flow = Flow::start(&scenario);
        // Somebody inside deletes the interface: it is made anew.
        scenario.daemon.forget_counters();
        cache.delete_link("eth0").unwrap();
        await_that("the interface is back", || {
            match cache.link("eth0").unwrap() {
                Some(link) if link.up => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        let server = tcp::EchoServer::start(&cache, V4.nos_port(22000)).unwrap();
        tcp::exchange(scenario.external(), None, server.address(), b"x", LIMIT).unwrap();
        drop(server);
        // The kernel deletes what is inside once nobody refers to the namespace; the daemon must
        // not either.
        drop(cache);
        await_that("the daemon notices", || {
            let cache = scenario.daemon.attachment("cache");
            if cache.link.state == LinkState::Waiting {
                Ok(())
            } else {
                Err(format!("{cache:?}"))
            }
        });
        await_that("its ports are free", || {
            let ports = scenario.daemon.ports();
            if ports.iter().all(|port| port.owner != "cache") {
                Ok(())
            } else {
                Err(format!("{ports:?}"))
            }
        });
        let error = tcp::connect(scenario.external(), None, V4.nos_port(22000), LIMIT).unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{error}");
        flow.finish();
        assert_idle(&scenario.daemon);
        // A reload names another namespace.
        let again = LabNamespace::new("cache").unwrap();
        scenario.config += &more(&again);
        scenario.daemon.reload(&scenario.config);
        let server = tcp::EchoServer::start(&again, V4.nos_port(22000)).unwrap();
        tcp::exchange(scenario.external(), None, server.address(), b"x", LIMIT).unwrap();
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        tap_plain: ("tap", "split", [false, false]),
        veth: ("veth", "single", [true, true]),
        veth_split: ("veth", "split", [true, true]),
    }
}

/// The whole namespace goes, with a process inside that was its last.
mod namespace_that_is_deleted_is_let_go {
    use super::*;

    fn scenario(variant: Variant) {
        let scenario = Scenario::new(Variant {
            device: "veth",
            ..variant
        });
        let mut cat = Command::new("cat");
        cat.stdin(std::process::Stdio::piped());
        let mut process = {
            let cache = LabNamespace::new("cache").unwrap();
            cache.spawn(cat).unwrap()
        };
        let more = format!(
            "
            [[container]]
            name = \"cache\"
            pid = {}
            device = \"{}\"
            tcp = [22000]
            ",
            process.id(),
            variant.device,
        );
        scenario.daemon.reload(&(scenario.config.clone() + &more));
        assert_eq!(scenario.daemon.attachments().len(), 3);
        process.kill().unwrap();
        process.wait().unwrap();
        await_that("the daemon lets go of the namespace", || {
            let cache = scenario.daemon.attachment("cache");
            if cache.link.state == LinkState::Waiting {
                Ok(())
            } else {
                Err(format!("{cache:?}"))
            }
        });
        await_that("its ports are free", || {
            let ports = scenario.daemon.ports();
            let free = ports.iter().all(|port| port.owner != "cache");
            free.then_some(()).ok_or_else(|| format!("{ports:?}"))
        });
        assert_idle(&scenario.daemon);
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "single", [true, true]),
    }
}

lab_test! {
    fn uplink_that_goes_down_and_up_carries_on() {
        let scenario = Scenario::new(Variant::PLAIN);
        assert_alive(&scenario);
        scenario.topology.device.set_down("hx").unwrap();
        let up0 = || scenario.daemon.uplink("up0").link.state;
        await_that("the uplink is seen down", || {
            if up0() == LinkState::Down { Ok(()) } else { Err(format!("{:?}", up0())) }
        });
        assert!(!ping(scenario.web(), V4.external, 1, Duration::from_millis(50)).unwrap()[0].is_reply());
        assert_idle(&scenario.daemon);
        scenario.topology.device.set_up("hx").unwrap();
        scenario.topology.device.wait_operational("hx", LIMIT).unwrap();
        await_that("packets pass again", || {
            let echo = ping(scenario.web(), V4.external, 1, Duration::from_secs(1)).unwrap()[0];
            if echo.is_reply() { Ok(()) } else { Err(format!("{echo:?}")) }
        });
        assert_eq!(up0(), LinkState::Up);
        assert_alive(&scenario);
    }
}

lab_test! {
    fn uplink_that_vanishes_is_opened_again_when_it_is_back() {
        let scenario = Scenario::new(Variant::PLAIN);
        assert_alive(&scenario);
        let Topology { device, external, .. } = &scenario.topology;
        device.delete_link("hx").unwrap();
        await_that("the daemon notices", || {
            let state = scenario.daemon.uplink("up0").link.state;
            if state == LinkState::Waiting { Ok(()) } else { Err(format!("{state:?}")) }
        });
        let routes = scenario.daemon.routes();
        assert!(routes.iter().all(|route| route.action != RouteAction::Via), "{routes:?}");
        assert!(!ping(scenario.web(), V4.external, 1, Duration::from_millis(50)).unwrap()[0].is_reply());
        assert_idle(&scenario.daemon);
        veth((device, "hx"), (external, "xh")).unwrap();
        for address in Topology::external_addresses() {
            external.add_address("xh", address).unwrap();
        }
        await_that("the uplink is back", || {
            let state = scenario.daemon.uplink("up0").link.state;
            if state == LinkState::Up { Ok(()) } else { Err(format!("{state:?}")) }
        });
        assert_alive(&scenario);
    }
}

mod container_interface_that_is_set_down_comes_back {
    use super::*;

    fn scenario(variant: Variant) {
        let scenario = Scenario::new(variant);
        assert_alive(&scenario);
        scenario.web().set_down("eth0").unwrap();
        // Its packets have nowhere to go.
        let limit = Duration::from_millis(50);
        udp::exchange(scenario.external(), None, V4.nos_port(20053), b"x", limit).unwrap_err();
        assert_idle(&scenario.daemon);
        // The kernel has removed the routes; the daemon puts them back.
        scenario.web().set_up("eth0").unwrap();
        await_that("packets pass again", || {
            match ping(scenario.web(), V4.external, 1, Duration::from_secs(1)) {
                Ok(echoes) if echoes[0].is_reply() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        for family in FAMILIES {
            let server = tcp::EchoServer::start(scenario.web(), family.nos_port(20080)).unwrap();
            tcp::exchange(scenario.external(), None, server.address(), b"x", LIMIT).unwrap();
            let server = tcp::EchoServer::start(scenario.external(), family.external_port(8080));
            tcp::exchange(scenario.web(), None, server.unwrap().address(), b"x", LIMIT).unwrap();
        }
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        tap_plain: ("tap", "split", [false, false]),
        veth: ("veth", "single", [true, true]),
        veth_split: ("veth", "split", [true, true]),
    }
}

lab_test! {
    fn capture_files_are_written() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let files = Files::new();
        let text = config(&topology, Variant::PLAIN);
        let text = edited(&text, "device = \"packet:hx\"\n", &format!("device = \"packet:hx\"\ncapture = \"{}\"\n", files.path("up0.pcapng").display()));
        let text = edited(&text, "name = \"web\"\n", &format!("name = \"web\"\ncapture = \"{}\"\n", files.path("web.pcapng").display()));
        let daemon = Daemon::start(&topology.device, &text);
        assert!(ping(&topology.containers[0], V4.external, 3, LIMIT).unwrap().iter().all(Echo::is_reply));
        daemon.stop_by(Signal::SIGTERM);
        for name in ["up0.pcapng", "web.pcapng"] {
            let octets = std::fs::read(files.path(name)).unwrap();
            assert!(octets.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]), "{name} is no pcapng file");
            let mut reader = pcap_file::pcapng::PcapNgReader::new(&octets[..]).unwrap();
            let mut packets = 0;
            while let Some(block) = reader.next_block() {
                packets += usize::from(matches!(block.unwrap(), pcap_file::pcapng::Block::EnhancedPacket(_)));
            }
            assert!(packets >= 6, "{packets} packets in {name}");
        }
    }
}

lab_test! {
    fn routes_to_the_nos_stay_when_an_uplink_changes_its_addresses() {
        let scenario = Scenario::new(Variant::PLAIN);
        scenario.daemon.reload(&scenario.edited("\"203.0.113.1/24\", ", "\"203.0.113.1/24\", \"203.0.113.8/24\", "));
        let local = scenario.daemon.routes().iter().filter(|route| route.action == RouteAction::Local).count();
        assert_eq!(local, 3);
        assert!(scenario.daemon.try_show(Table::Routes).is_ok());
        let wire = Wire::open(scenario.external(), Topology::EXTERNAL_INTERFACE);
        assert_alive(&scenario);
        assert!(wire.seen().iter().any(|seen| seen.source == V4.nos));
    }
}
