//! A process that takes over from another: no packet is lost, and nobody in a container notices.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nos_relay::lab::testbed::ping::ping;
use nos_relay::lab::testbed::LabNamespace;
use support::daemon::{Daemon, LIMIT};
use support::lab_test;
use support::scenario::{FAMILIES, Family, Scenario, Variant, variant_tests};

/// How often the daemon is replaced while traffic flows.
const TIMES: usize = 3;

/// Datagrams of one flood that are under way: no queue on the way overflows by them.
const WINDOW: u64 = 128;

/// Numbered datagrams, of which each has to come back: so many are under way at any time, until it is
/// told to stop.
struct Flood {
    stop: &'static AtomicBool,
    thread: JoinHandle<u64>,
}

impl Flood {
    /// From `client`, whose socket is bound to `from`, to a socket in `server` at `to`.
    fn start(
        (client, from): (&LabNamespace, SocketAddr),
        (server, bind, to): (&LabNamespace, SocketAddr, SocketAddr),
    ) -> Self {
        let echo = server.run(|| UdpSocket::bind(bind).unwrap()).unwrap();
        let near = client.run(|| UdpSocket::bind(from).unwrap()).unwrap();
        near.connect(to).unwrap();
        near.set_read_timeout(Some(LIMIT)).unwrap();
        std::thread::spawn(move || reflect(&echo));
        let stop: &'static AtomicBool = Box::leak(Box::default());
        let thread = std::thread::spawn(move || flood(&near, stop));
        Self { stop, thread }
    }

    /// Waits for those that are under way. Returns how many there were altogether.
    fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Sends each datagram back, until there are none for a long time.
fn reflect(socket: &UdpSocket) {
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let mut buffer = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        socket.send_to(&buffer[..length], from).unwrap();
    }
}

fn flood(socket: &UdpSocket, stop: &AtomicBool) -> u64 {
    let (mut sent, mut under_way) = (0_u64, BTreeSet::new());
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) || !under_way.is_empty() {
        while (under_way.len() as u64) < WINDOW && !stop.load(Ordering::Relaxed) {
            let mut datagram = [0; 200];
            datagram[..8].copy_from_slice(&sent.to_be_bytes());
            socket.send(&datagram).unwrap();
            under_way.insert(sent);
            sent += 1;
        }
        if under_way.is_empty() {
            break;
        }
        let received = socket.recv(&mut buffer);
        let length = received.unwrap_or_else(|error| panic!("{under_way:?} are lost: {error}"));
        assert_eq!(length, 200);
        let number = u64::from_be_bytes(buffer[..8].try_into().unwrap());
        assert!(under_way.remove(&number), "{number} came twice");
    }
    sent
}

/// A TCP connection that sends octets in a pattern without pause, and one that sends them back.
struct Transfer {
    stop: &'static AtomicBool,
    thread: JoinHandle<u64>,
}

impl Transfer {
    fn start(client: &LabNamespace, server: &LabNamespace, bind: SocketAddr, to: SocketAddr) -> Self {
        let listener = server.run(|| TcpListener::bind(bind).unwrap()).unwrap();
        let connect = || TcpStream::connect_timeout(&to, LIMIT).unwrap();
        let near = client.run(connect).unwrap();
        let (far, _) = listener.accept().unwrap();
        let stop: &'static AtomicBool = Box::leak(Box::default());
        std::thread::spawn(move || reflect_stream(far));
        let thread = std::thread::spawn(move || transfer(near, stop));
        Self { stop, thread }
    }

    /// Ends it. Returns how many octets there were each way.
    fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn reflect_stream(mut stream: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
}

fn transfer(mut stream: TcpStream, stop: &AtomicBool) -> u64 {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let octet = |position: u64| (position % 251) as u8;
    let (mut sent, mut octets) = (0_u64, vec![0; 32 << 10]);
    while !stop.load(Ordering::Relaxed) {
        for (position, at) in (sent..).zip(octets.iter_mut()) {
            *at = octet(position);
        }
        stream.write_all(&octets).unwrap();
        let mut back = vec![0; octets.len()];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, octets);
        sent += octets.len() as u64;
    }
    assert_eq!(timeouts(&stream), 0, "a segment had to wait for a time-out");
    sent
}

/// `tcpi_total_retrans` of `tcp(7)`: with one segment under way after a pause, a loss can only be
/// noticed by a time-out, or by the probe that comes before it.
fn timeouts(stream: &TcpStream) -> u64 {
    // SAFETY: all zeros is a valid tcp_info.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size = libc::socklen_t::try_from(size_of_val(&info)).unwrap();
    // SAFETY: the pointers are those of `info` and its size, which outlive the call.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut size,
        )
    };
    assert_eq!(result, 0);
    u64::from(info.tcpi_total_retrans)
}

/// What somebody inside can see of the parts that attaching touches.
fn inside(namespace: &LabNamespace) -> String {
    let link = namespace.link("eth0").unwrap().unwrap();
    let addresses = [namespace.addresses("lo"), namespace.addresses("eth0")];
    let routes = || {
        ["route", "ipv6_route"].map(|table| {
            let path = format!("/proc/thread-self/net/{table}");
            let text = std::fs::read_to_string(path).unwrap();
            // Without what is counted: how often it is used.
            let lines: BTreeSet<String> = text
                .lines()
                .filter(|line| !line.contains("ff00000000"))
                .map(|line| {
                    let fields = line.split_whitespace().enumerate();
                    let kept = fields.filter(|(at, _)| ![5, 6, 7].contains(at));
                    kept.map(|(_, field)| format!("{field} ")).collect()
                })
                .collect();
            lines
        })
    };
    format!(
        "{} {:?} {} {addresses:?} {} {:?}",
        link.index,
        link.mac,
        link.mtu,
        namespace.read_sysctl("net/ipv4/ip_local_port_range").unwrap(),
        namespace.run(routes).unwrap(),
    )
}

fn assert_alive(scenario: &Scenario) {
    for family in FAMILIES {
        for (from, to) in [
            (scenario.external(), family.nos),
            (scenario.web(), family.external),
            (scenario.db(), family.external),
        ] {
            let echo = ping(from, to, 1, LIMIT).unwrap()[0];
            assert!(echo.is_reply(), "{echo:?}");
        }
    }
}

fn flood_of(scenario: &Scenario, family: Family, port: u16, inside: &LabNamespace, outbound: bool) -> Flood {
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
        let mut scenario = Scenario::new(variant);
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
            let Scenario { daemon, topology, config } = scenario;
            let daemon = daemon.replaced(&topology.device);
            scenario = Scenario { daemon, topology, config };
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
