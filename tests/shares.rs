//! What one owner makes wait costs others nothing, with a pool that is small.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where its network cannot be built"
)]

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nos_relay::control::api::snapshot::Counters;
use nos_relay::lab::testbed::ping::ping;
use nos_relay::lab::testbed::{LabNamespace, Topology, udp};
use nos_shim::ident::MacAddr;
use support::daemon::{Daemon, LIMIT, await_that};
use support::lab_test;
use support::scenario::{DB, Scenario, V4, Variant, config, edited};
use support::wire::{Wire, fix_ipv4_checksum, ip, udp as datagram};

/// Rounds of a flood that the victim talks beside, at least.
const ROUNDS: u64 = 20;
const PINGS: u16 = 100;
const DATAGRAMS: usize = 100;

/// The usual network with 1,024 buffers and the NOS's services.
fn scenario(threads: &'static str) -> Scenario {
    let topology = Topology::new(&["web", "db"]).unwrap();
    let variant = Variant {
        threads,
        ..Variant::PLAIN
    };
    let config = edited(
        &config(&topology, variant),
        "[relay]\n",
        "[nos]\nservices = [\"echo\"]\n\n[relay]\nbuffers = 1024\n",
    );
    let daemon = Daemon::start(&topology.device, &config);
    Scenario {
        daemon,
        topology,
        config,
    }
}

/// Says that it is over when it goes, also by a panic.
struct Until<'a>(&'a AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Runs `round` again and again beside `victim`, which begins once the first rounds are through.
fn beside(round: impl Fn(u64) + Sync, victim: impl FnOnce()) {
    let (rounds, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Acquire) || rounds.load(Ordering::Acquire) < ROUNDS {
                round(rounds.load(Ordering::Acquire));
                rounds.fetch_add(1, Ordering::AcqRel);
                std::thread::yield_now();
            }
        });
        let _until = Until(&ended);
        await_that("the flood has begun", || {
            let begun = rounds.load(Ordering::Acquire) >= 2;
            begun.then_some(()).ok_or_else(|| "not yet".to_owned())
        });
        victim();
    });
}

/// The victim talks to X, and X to the victim: nothing may be lost.
fn talk(scenario: &Scenario) {
    let echoes = ping(scenario.db(), V4.external, PINGS, LIMIT).unwrap();
    assert!(echoes.iter().all(|echo| echo.is_reply()), "{echoes:?}");
    let server = udp::EchoServer::start(scenario.external(), (V4.external, 0).into()).unwrap();
    exchange(scenario.db(), server.address());
    let own = SocketAddr::new(V4.any, *DB.start());
    let server = udp::EchoServer::start(scenario.db(), own).unwrap();
    exchange(scenario.external(), V4.nos_port(server.address().port()));
}

/// Datagrams there and back, one after the other.
fn exchange(from: &LabNamespace, server: SocketAddr) {
    let socket = from.run(|| UdpSocket::bind((V4.any, 0))).unwrap().unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    for number in 0..DATAGRAMS {
        let sent = number.to_be_bytes();
        socket.send(&sent).unwrap();
        let mut answer = [0; 16];
        let length = socket.recv(&mut answer).expect("no datagram is lost");
        assert_eq!(answer[..length], sent);
    }
}

fn dropped(counters: &Counters, reason: &str) -> u64 {
    let stages = counters.stages.iter();
    let drops = stages.map(|stage| stage.drops.get(reason).copied().unwrap_or_default());
    drops.sum()
}

/// What must hold after a flood: the victim has lost nothing, and nobody found the pool empty.
fn check(scenario: &Scenario) -> Counters {
    let counters = scenario.daemon.settle();
    let victim = scenario.daemon.attachment("db");
    for reason in [
        "over-share",
        "neighbor-queue-full",
        "no-buffer",
        "ring-full",
    ] {
        assert_eq!(
            victim.link.drops.get(reason),
            None,
            "of the victim: {victim:?}"
        );
    }
    assert_eq!(dropped(&counters, "no-buffer"), 0, "{counters:?}");
    counters
}

/// 64 datagrams to each of 16 unused addresses of the uplink's network.
fn flood_unused(socket: &UdpSocket) {
    for n in 100..116 {
        for _ in 0..64 {
            // The container's own queue may be full, and old errors are reported here.
            let _ = socket.send_to(&[0; 32], (Ipv4Addr::new(203, 0, 113, n), 53));
        }
    }
}

fn unused_addresses(threads: &'static str) {
    let scenario = scenario(threads);
    let socket = scenario
        .web()
        .run(|| UdpSocket::bind((V4.any, 0)))
        .unwrap()
        .unwrap();
    beside(|_| flood_unused(&socket), || talk(&scenario));
    let counters = check(&scenario);
    let own = dropped(&counters, "over-share") + dropped(&counters, "neighbor-queue-full");
    assert!(own > 0, "the flood was one: {counters:?}");
}

/// A fragment without which its datagram is never complete: the first, or one in the middle. The
/// first ones are for the echo service, which has them put together.
fn stray(nos: &Wire, to: MacAddr, source: IpAddr, id: u16, first: bool) -> Vec<u8> {
    let headers = ip((nos.mac(), to), source, V4.nos);
    let mut frame = datagram(headers, (5000, 7), &[7; 56]);
    let place: u16 = if first { 0x2000 } else { 0x2008 };
    frame[18..20].copy_from_slice(&id.to_be_bytes());
    frame[20..22].copy_from_slice(&place.to_be_bytes());
    fix_ipv4_checksum(&mut frame);
    frame
}

fn fragments(threads: &'static str) {
    let scenario = scenario(threads);
    let wire = Wire::open(scenario.external(), Topology::EXTERNAL_INTERFACE);
    let neighbor = ping(scenario.external(), V4.nos, 1, LIMIT).unwrap();
    assert!(neighbor[0].is_reply());
    let nos_mac = scenario.daemon.uplink("up0").link.mac;
    let socket = scenario
        .web()
        .run(|| UdpSocket::bind((V4.any, 0)))
        .unwrap()
        .unwrap();
    let round = |round: u64| {
        flood_unused(&socket);
        for n in 0..255_u8 {
            let source = IpAddr::from([198, 51, 100, n]);
            let id = u16::try_from(round % 60_000).unwrap();
            wire.send(&stray(&wire, nos_mac, source, id, n % 2 == 0));
        }
    };
    beside(round, || talk(&scenario));
    check(&scenario);
}

lab_test! {
    fn packets_for_unused_addresses_starve_nobody_single() {
        unused_addresses("single");
    }
}

lab_test! {
    fn packets_for_unused_addresses_starve_nobody_split() {
        unused_addresses("split");
    }
}

lab_test! {
    fn fragments_without_the_rest_starve_nobody_single() {
        fragments("single");
    }
}

lab_test! {
    fn fragments_without_the_rest_starve_nobody_split() {
        fragments("split");
    }
}
