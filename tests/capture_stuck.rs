//! Captures of a running daemon: one whose reader is stuck stops nobody, neither the traffic nor a
//! reload nor the end; and one changes in place.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nos_relay::control::api::snapshot::Capture;
use nos_relay::lab::testbed::ping::{Echo, ping};
use nos_relay::lab::testbed::tcp::{Direction, Transfer};
use nos_relay::lab::testbed::{LabNamespace, Topology};
use pcap_file::pcapng::{Block, PcapNgReader};
use support::daemon::{Daemon, Files, LIMIT};
use support::lab_test;
use support::scenario::{Scenario, V4, Variant, config, edited, variant_tests};

/// Octets that are sent: more than a FIFO and the capture's backlog hold.
const OCTETS: u64 = 48 << 20;

/// The configuration with a capture of `web`.
fn captured(config: &str, path: &Path) -> String {
    let capture = format!("name = \"web\"\ncapture = \"{}\"\n", path.display());
    edited(config, "name = \"web\"\n", &capture)
}

/// A FIFO, and a reader of it that never reads.
fn fifo(path: &Path) -> File {
    nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap();
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    options.open(path).unwrap()
}

/// A daemon whose capture of `web` goes into a FIFO that is full.
struct Stuck {
    scenario: Scenario,
    _reader: File,
}

impl Stuck {
    fn new(variant: Variant) -> Self {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let files = Files::new();
        let reader = fifo(&files.path("fifo"));
        let config = config(&topology, variant);
        files.write(&captured(&config, &files.path("fifo")));
        let daemon = Daemon::start_on(&topology.device, files);
        let scenario = Scenario {
            daemon,
            topology,
            config,
        };
        let stuck = Self {
            scenario,
            _reader: reader,
        };
        stuck.send_much();
        let capture = stuck.capture();
        assert!(capture.missed > 0 && !capture.failed, "{capture:?}");
        assert!(capture.recorded > 0, "{capture:?}");
        stuck
    }

    /// Sends more than the capture takes, from X to `web`, and checks that it arrives.
    fn send_much(&self) {
        let Scenario { topology, .. } = &self.scenario;
        let transfer = Transfer {
            client: &topology.external,
            server: &topology.containers[0],
            listen: V4.nos_port(20080),
            connect: V4.nos_port(20080),
            source: None,
            direction: Direction::Upload,
            octets: OCTETS,
            limit: LIMIT,
        };
        // It checks every octet.
        transfer.run(&AtomicU64::new(0)).unwrap();
    }

    fn capture(&self) -> Capture {
        let captures = self.scenario.daemon.counters().captures;
        let [capture] = <[_; 1]>::try_from(captures).unwrap();
        assert_eq!(capture.name, "web");
        capture
    }

    fn assert_alive(&self) {
        let echoes = ping(self.scenario.external(), V4.nos, 3, LIMIT).unwrap();
        assert!(echoes.iter().all(Echo::is_reply), "{echoes:?}");
        let echoes = ping(self.scenario.web(), V4.external, 3, LIMIT).unwrap();
        assert!(echoes.iter().all(Echo::is_reply), "{echoes:?}");
    }
}

/// The index of a container's interface, and its routes.
fn eth0(container: &LabNamespace) -> (String, String) {
    let read = |path: &'static str| container.run(move || std::fs::read_to_string(path).unwrap());
    let index = container.run(|| nix::net::if_::if_nametoindex("eth0").unwrap());
    (
        index.unwrap().to_string(),
        read("/proc/thread-self/net/route").unwrap(),
    )
}

/// A reload takes the capture away, and gives another, without touching the interface.
fn a_stuck_capture_is_taken_away(variant: Variant) {
    let stuck = Stuck::new(variant);
    let Scenario {
        daemon,
        topology,
        config,
    } = &stuck.scenario;
    stuck.assert_alive();
    let web = &topology.containers[0];
    // What the operator puts there stays there.
    let route = "198.51.100.0/24".parse().unwrap();
    web.add_route(route, V4.external).unwrap();
    let before = eth0(web);
    daemon.reload(config);
    assert!(daemon.log().contains("is left behind"), "{}", daemon.log());
    assert_eq!(daemon.counters().captures, []);
    stuck.assert_alive();
    let file = daemon.files().path("web.pcapng");
    daemon.reload(&captured(config, &file));
    stuck.assert_alive();
    assert!(stuck.capture().recorded >= 6);
    daemon.reload(config);
    // Six echo messages.
    assert!(frames_in(&file) >= 6);
    assert_eq!(eth0(web), before);
}

/// Frames in a capture file, which must be whole.
fn frames_in(file: &Path) -> usize {
    let octets = std::fs::read(file).unwrap();
    let mut reader = PcapNgReader::new(&octets[..]).unwrap();
    let mut frames = 0;
    while let Some(block) = reader.next_block() {
        frames += usize::from(matches!(block.unwrap(), Block::EnhancedPacket(_)));
    }
    frames
}

mod a_reload_takes_a_stuck_capture_away {
    use super::*;

    fn scenario(variant: Variant) {
        a_stuck_capture_is_taken_away(variant);
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        veth_split: ("veth", "split", [true, true]),
    }
}

lab_test! {
    fn an_uplink_is_captured_without_being_opened_anew() {
        let scenario = Scenario::new(Variant::PLAIN);
        let ping_ten = || {
            let echoes = ping(scenario.web(), V4.external, 10, LIMIT).unwrap();
            assert!(echoes.iter().all(Echo::is_reply), "{echoes:?}");
        };
        ping_ten();
        let file = scenario.daemon.files().path("up0.pcapng");
        let device = "device = \"packet:hx\"\n";
        let captured = format!("{device}capture = \"{}\"\n", file.display());
        let captured = scenario.edited(device, &captured);
        scenario.daemon.reload(&captured);
        ping_ten();
        scenario.daemon.reload(&scenario.config);
        ping_ten();
        assert!(frames_in(&file) >= 20);
        // An uplink that is opened counts from zero.
        let received = scenario.daemon.uplink("up0").link.rx.packets;
        assert!(received >= 30, "{received}");
    }
}

lab_test! {
    fn a_stuck_capture_does_not_delay_the_end() {
        let stuck = Stuck::new(Variant::PLAIN);
        stuck.assert_alive();
        let Stuck { scenario, _reader } = stuck;
        scenario.daemon.stop_by(Signal::SIGTERM);
    }
}

lab_test! {
    fn a_container_with_a_stuck_capture_can_go() {
        let stuck = Stuck::new(Variant::PLAIN);
        let Scenario { daemon, topology, config } = &stuck.scenario;
        let at = config.find("[[container]]\nname = \"web\"").unwrap();
        let end = config.find("[[container]]\nname = \"db\"").unwrap();
        daemon.reload(&[&config[..at], &config[end..]].concat());
        let echoes = ping(&topology.containers[1], V4.external, 3, LIMIT).unwrap();
        assert!(echoes.iter().all(Echo::is_reply), "{echoes:?}");
        assert_eq!(topology.containers[0].link("eth0").unwrap(), None);
    }
}

lab_test! {
    fn a_fifo_that_nobody_reads_is_an_error() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let files = Files::new();
        let path = files.path("fifo");
        drop(fifo(&path));
        files.write(&captured(&config(&topology, Variant::PLAIN), &path));
        let output = Daemon::start_failing_on(&topology.device, &files);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("is a FIFO that nobody reads"), "{said}");
        assert!(!output.status.success());
    }
}
