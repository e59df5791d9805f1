//! Traffic of which nothing may be lost, and what somebody in a container can see.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where its network cannot be built"
)]

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use nos_relay::lab::testbed::ping::ping;
use nos_relay::lab::testbed::{LabNamespace, tcp, udp};

use super::daemon::{LIMIT, await_that};
use super::scenario::{FAMILIES, Scenario};

/// Datagrams of one flood that are under way: no queue on the way overflows by them, neither that of
/// a kernel that asks for a neighbor nor that of a socket whose program gets no processor.
pub(crate) const WINDOW: u64 = 64;

/// Octets that the kernel is asked to keep for each socket.
const RECEIVE_BUFFER: usize = 1 << 20;

/// What a flood is told, and tells.
#[derive(Debug, Default)]
struct Control {
    stop: AtomicBool,
    pause: AtomicBool,
    under_way: AtomicU64,
}

/// Numbered datagrams, of which each has to come back: so many are under way at any time, until it is
/// told to stop.
#[derive(Debug)]
pub(crate) struct Flood {
    control: &'static Control,
    thread: JoinHandle<u64>,
}

impl Flood {
    /// From `client`, whose socket is bound to `from`, to a socket in `server` at `to`.
    pub(crate) fn start(
        (client, from): (&LabNamespace, SocketAddr),
        (server, bind, to): (&LabNamespace, SocketAddr, SocketAddr),
    ) -> Self {
        let echo = server.run(|| UdpSocket::bind(bind).unwrap()).unwrap();
        let near = client.run(|| UdpSocket::bind(from).unwrap()).unwrap();
        near.connect(to).unwrap();
        for socket in [&echo, &near] {
            setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER).unwrap();
        }
        std::thread::spawn(move || reflect(&echo));
        let control: &'static Control = Box::leak(Box::default());
        let thread = std::thread::spawn(move || flood(&near, control));
        Self { control, thread }
    }

    /// Sends no more, and waits for those that are under way.
    pub(crate) fn pause(&self) {
        self.control.pause.store(true, Ordering::SeqCst);
        await_that("none is under way", || self.is_under_way(0));
    }

    /// Sends again.
    pub(crate) fn resume(&self) {
        self.control.pause.store(false, Ordering::SeqCst);
    }

    /// Waits until as many are under way as may be.
    pub(crate) fn await_window(&self) {
        await_that("all are under way", || self.is_under_way(WINDOW));
    }

    fn is_under_way(&self, wanted: u64) -> Result<(), String> {
        let under_way = self.control.under_way.load(Ordering::SeqCst);
        (under_way == wanted)
            .then_some(())
            .ok_or_else(|| under_way.to_string())
    }

    /// Waits for those that are under way. Returns how many there were altogether.
    pub(crate) fn finish(self) -> u64 {
        self.control.stop.store(true, Ordering::SeqCst);
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

fn flood(socket: &UdpSocket, control: &Control) -> u64 {
    /// How long an answer is waited for before the orders are looked at.
    const LOOK: Duration = Duration::from_millis(20);
    let (mut sent, mut under_way) = (0_u64, BTreeSet::new());
    let mut buffer = [0; 2048];
    let mut heard = Instant::now();
    socket.set_read_timeout(Some(LOOK)).unwrap();
    loop {
        let stopped = control.stop.load(Ordering::SeqCst);
        let sends = !stopped && !control.pause.load(Ordering::SeqCst);
        while sends && (under_way.len() as u64) < WINDOW {
            let mut datagram = [0; 200];
            datagram[..8].copy_from_slice(&sent.to_be_bytes());
            socket.send(&datagram).unwrap();
            under_way.insert(sent);
            sent += 1;
        }
        control
            .under_way
            .store(under_way.len() as u64, Ordering::SeqCst);
        if stopped && under_way.is_empty() {
            return sent;
        }
        match socket.recv(&mut buffer) {
            Ok(length) => {
                assert_eq!(length, 200);
                let number = u64::from_be_bytes(buffer[..8].try_into().unwrap());
                assert!(under_way.remove(&number), "{number} came twice");
                heard = Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let late = !under_way.is_empty() && heard.elapsed() > LIMIT;
                assert!(!late, "{under_way:?} are lost");
                if under_way.is_empty() {
                    heard = Instant::now();
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// A TCP connection that sends octets in a pattern without pause, and one that sends them back.
#[derive(Debug)]
pub(crate) struct Transfer {
    stop: &'static AtomicBool,
    thread: JoinHandle<u64>,
}

impl Transfer {
    pub(crate) fn start(
        client: &LabNamespace,
        server: &LabNamespace,
        bind: SocketAddr,
        to: SocketAddr,
    ) -> Self {
        let listener = server.run(|| TcpListener::bind(bind).unwrap()).unwrap();
        let connect = || TcpStream::connect_timeout(&to, LIMIT).unwrap();
        let near = client.run(connect).unwrap();
        let (far, _) = listener.accept().unwrap();
        let stop: &'static AtomicBool = Box::leak(Box::default());
        std::thread::spawn(move || reflect_stream(far));
        let thread = std::thread::spawn(move || transfer(near, stop));
        Self { stop, thread }
    }

    /// Ends it. Returns how many times octets went both ways.
    pub(crate) fn finish(self) -> u64 {
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
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        exchange(&mut stream, sent);
        sent += 1;
    }
    // What has arrived twice is told with what follows.
    let mut rounds = 0;
    while lost(&stream) > 0 {
        assert!(rounds < 100, "{} segments were lost", lost(&stream));
        exchange(&mut stream, sent + rounds);
        rounds += 1;
    }
    sent
}

/// Sends octets that tell where they belong, and gets them back.
fn exchange(stream: &mut TcpStream, round: u64) {
    let octets: Vec<u8> = (round..round + (32 << 10))
        .flat_map(|number| u8::try_from(number % 251))
        .collect();
    stream.write_all(&octets).unwrap();
    let mut back = vec![0; octets.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, octets);
}

/// Segments that were sent again and had not arrived before: what arrives twice is told by the other
/// end (RFC 2883). A pause alone has segments sent again, but loses none.
fn lost(stream: &TcpStream) -> i64 {
    let [retransmitted, twice] = sent_again(stream);
    i64::from(retransmitted) - i64::from(twice)
}

/// How many segments were sent again, the first one of a connection too.
pub(crate) fn retransmitted(socket: &impl AsRawFd) -> u32 {
    sent_again(socket)[0]
}

/// Segments that were sent again, and those of which the other end said that they came twice.
fn sent_again(socket: &impl AsRawFd) -> [u32; 2] {
    /// Where `tcp_info` of `tcp(7)` has `tcpi_total_retrans` and `tcpi_dsack_dups` (Linux 5.5).
    const RETRANSMITTED: usize = 100;
    const TWICE: usize = 216;
    let mut info = [0_u8; 256];
    let mut size = libc::socklen_t::try_from(info.len()).unwrap();
    // SAFETY: the pointers are those of `info` and its size, which outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    assert_eq!(result, 0);
    assert!(usize::try_from(size).unwrap() >= TWICE + 4);
    [RETRANSMITTED, TWICE].map(|at| u32::from_ne_bytes(info[at..at + 4].try_into().unwrap()))
}

/// What somebody inside can see of the parts that attaching touches.
pub(crate) fn inside(namespace: &LabNamespace) -> String {
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
        namespace
            .read_sysctl("net/ipv4/ip_local_port_range")
            .unwrap(),
        namespace.run(routes).unwrap(),
    )
}

/// A TCP exchange of somebody outside with a server of a container, which he knows by this address.
pub(crate) fn assert_reached(external: &LabNamespace, container: &LabNamespace, to: SocketAddr) {
    let _server = tcp::EchoServer::start(container, to).unwrap();
    tcp::exchange(external, None, to, b"in", LIMIT).unwrap();
}

pub(crate) fn assert_alive(scenario: &Scenario) {
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

/// A program in `from` reaches a server in `to` by TCP and UDP. Returns from where.
#[track_caller]
pub(crate) fn reaches(
    from: &LabNamespace,
    to: &LabNamespace,
    server: impl Into<SocketAddr>,
) -> SocketAddr {
    let server = server.into();
    let echo = tcp::EchoServer::start(to, server).unwrap();
    tcp::exchange(from, None, server, &vec![7; 100_000], LIMIT).unwrap();
    let datagrams = udp::EchoServer::start(to, server).unwrap();
    udp::exchange(from, None, server, b"x", LIMIT).unwrap();
    assert_eq!(datagrams.peers().len(), 1);
    echo.peers()[0]
}
