//! Traffic at full speed between two kernels, every octet checked.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use nix::sys::socket::{setsockopt, sockopt};
use nos_relay::data::device::{Egress, FrameDevice, Next, PacketOptions};
use nos_relay::lab::testbed::LabNamespace;
use nos_shim::frame::{Burst, FramePool, GsoKind, MAX_FRAME, Segmentation};
use nos_shim::offload::Capabilities;

use crate::harness::{LIMIT, Opened, packet, tap, taps};
use crate::support::lab_test;

/// A bare forwarder between two devices, on a thread of its own.
struct Forwarder {
    thread: thread::JoinHandle<Forwarded>,
    stop: Arc<AtomicBool>,
    waker: Waker,
}

/// What a forwarder leaves behind.
pub(crate) struct Forwarded {
    pub(crate) devices: [Box<dyn FrameDevice>; 2],
    /// Super-frames seen from either device: of TCP, and of UDP.
    pub(crate) super_frames: [[u64; 2]; 2],
}

impl Forwarder {
    fn start(devices: [Box<dyn FrameDevice>; 2]) -> Self {
        let poll = Poll::new().unwrap();
        for (n, device) in devices.iter().enumerate() {
            let fd = device.fd().unwrap().as_raw_fd();
            poll.registry()
                .register(&mut SourceFd(&fd), Token(n), Interest::READABLE)
                .unwrap();
        }
        let waker = Waker::new(poll.registry(), Token(2)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || forward(devices, poll, &stopped));
        Self {
            thread,
            stop,
            waker,
        }
    }

    /// Ends it, and checks that every frame is accounted for.
    fn finish(self) -> Forwarded {
        self.stop.store(true, Ordering::Release);
        self.waker.wake().unwrap();
        let forwarded = self.thread.join().unwrap();
        let counters = forwarded
            .devices
            .each_ref()
            .map(|device| *device.counters());
        for (from, to) in [(0, 1), (1, 0)] {
            let (received, sent) = (counters[from].received, counters[to].sent);
            assert_eq!(received.frames, sent.frames + sent.drops.total());
            assert_eq!(received.drops.total() + sent.drops.total(), 0);
            assert_eq!(received.octets, sent.octets);
        }
        forwarded
    }
}

fn forward(mut devices: [Box<dyn FrameDevice>; 2], mut poll: Poll, stop: &AtomicBool) -> Forwarded {
    let mut pool = FramePool::new(256, MAX_FRAME);
    let mut burst = Burst::new();
    let mut super_frames = [[0; 2]; 2];
    let mut events = Events::with_capacity(8);
    while !stop.load(Ordering::Acquire) {
        poll.poll(&mut events, None).unwrap();
        let mut ready = [true; 2];
        while ready.contains(&true) {
            for from in 0..2 {
                let received = devices[from].recv_burst(&mut pool, &mut burst, 64);
                ready[from] = received.next == Next::More;
                for frame in &burst {
                    if let Some(Segmentation { kind, .. }) = frame.offload().segmentation {
                        super_frames[from][usize::from(kind == GsoKind::Udp)] += 1;
                    }
                }
                let sent = devices[1 - from].send_burst(&mut burst, &mut pool);
                assert_eq!(sent.egress, Egress::Ready);
            }
        }
    }
    Forwarded {
        devices,
        super_frames,
    }
}

const ADDRESSES: [[&str; 2]; 2] = [
    ["10.9.0.1/24", "fd00:9::1/64"],
    ["10.9.0.2/24", "fd00:9::2/64"],
];

fn addressed(opened: Opened, addresses: [&str; 2]) -> Opened {
    for address in addresses {
        opened
            .0
            .add_address("eth0", address.parse().unwrap())
            .unwrap();
    }
    opened
}

fn address(host: usize, family: usize) -> IpAddr {
    let net: ipnet::IpNet = ADDRESSES[host][family].parse().unwrap();
    net.addr()
}

/// Octets that repeat only after 2^64 of them, from a place in the stream on.
struct Stream(u64);

impl Stream {
    fn fill(&mut self, buffer: &mut [u8]) {
        for octets in buffer.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            octets.copy_from_slice(&mixed.to_be_bytes()[..octets.len()]);
        }
    }
}

/// Sends `octets` octets by TCP, and checks every one of them on arrival.
fn transfer(from: &LabNamespace, to: &LabNamespace, address: IpAddr, octets: usize) {
    let listener = to
        .try_run("listen", || TcpListener::bind((address, 5001)))
        .unwrap();
    let place = listener.local_addr().unwrap();
    let mut client = from
        .try_run("connect", || TcpStream::connect_timeout(&place, LIMIT))
        .unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(LIMIT)).unwrap();
    client.set_write_timeout(Some(LIMIT)).unwrap();
    let sender = thread::spawn(move || {
        let (mut stream, mut buffer) = (Stream(7), vec![0; 64 * 1024]);
        for _ in 0..octets / buffer.len() {
            stream.fill(&mut buffer);
            client.write_all(&buffer).unwrap();
        }
    });
    let (mut stream, mut buffer, mut wanted) = (Stream(7), vec![0; 64 * 1024], vec![0; 64 * 1024]);
    for _ in 0..octets / buffer.len() {
        server.read_exact(&mut buffer).unwrap();
        stream.fill(&mut wanted);
        assert!(buffer == wanted, "octets changed on the way");
    }
    assert_eq!(server.read(&mut buffer).unwrap(), 0);
    sender.join().unwrap();
}

/// Sends datagrams in batches that the kernel may leave to us to cut (UDP_SEGMENT).
fn batches(from: &LabNamespace, to: &LabNamespace, source: IpAddr, address: IpAddr) {
    const SIZE: usize = 1200;
    let receiver = to
        .try_run("bind", || UdpSocket::bind((address, 5002)))
        .unwrap();
    receiver.set_read_timeout(Some(LIMIT)).unwrap();
    let sender = from
        .try_run("bind", || UdpSocket::bind((source, 0)))
        .unwrap();
    let size = i32::try_from(SIZE).unwrap();
    setsockopt(&sender, sockopt::UdpGsoSegment, &size).unwrap();
    let mut stream = Stream(3);
    for batch in 1..20 {
        let mut wanted = vec![0; batch * SIZE + 10];
        stream.fill(&mut wanted);
        sender.send_to(&wanted, (address, 5002)).unwrap();
        for segment in wanted.chunks(SIZE) {
            let mut buffer = vec![0; 65_536];
            let len = receiver.recv(&mut buffer).unwrap();
            assert!(buffer[..len] == *segment, "batch of {batch}");
        }
    }
}

/// Joins two hosts by a bare forwarder; checks TCP and UDP both ways over both families.
pub(crate) fn check_bulk(hosts: [Opened; 2], octets: usize) -> Forwarded {
    let [one, two] = hosts;
    let (one, first, _others) = addressed(one, ADDRESSES[0]);
    let (two, second, _more) = addressed(two, ADDRESSES[1]);
    let forwarder = Forwarder::start([first, second]);
    for family in 0..2 {
        transfer(&one, &two, address(1, family), octets);
        transfer(&two, &one, address(0, family), octets);
        batches(&one, &two, address(0, family), address(1, family));
        batches(&two, &one, address(1, family), address(0, family));
    }
    forwarder.finish()
}

pub(crate) fn host(label: &str) -> LabNamespace {
    LabNamespace::new(label).unwrap()
}

const BULK: usize = 32 << 20;

lab_test! {
    fn super_frames_cross_a_pair_of_taps_intact() {
        if !taps() {
            return;
        }
        let hosts = ["one", "two"].map(|label| tap(host(label), Capabilities::all()));
        let seen = check_bulk(hosts, BULK).super_frames;
        assert!(seen.as_flattened().iter().all(|&count| count > 10), "{seen:?}");
    }
}

lab_test! {
    fn super_frames_cross_a_pair_of_packet_sockets_intact() {
        let hosts = ["one", "two"].map(|label| packet(host(label), PacketOptions::default()));
        let seen = check_bulk(hosts, BULK).super_frames;
        assert!(seen.as_flattened().iter().all(|&count| count > 10), "{seen:?}");
    }
}

lab_test! {
    fn super_frames_cross_from_tap_to_packet_socket_intact() {
        if !taps() {
            return;
        }
        let second = packet(host("packet"), PacketOptions::default());
        let hosts = [tap(host("tap"), Capabilities::all()), second];
        let seen = check_bulk(hosts, BULK).super_frames;
        assert!(seen.as_flattened().iter().all(|&count| count > 10), "{seen:?}");
    }
}

lab_test! {
    fn plain_taps_carry_no_super_frames() {
        if !taps() {
            return;
        }
        let hosts = ["one", "two"].map(|label| tap(host(label), Capabilities::empty()));
        assert_eq!(check_bulk(hosts, BULK / 4).super_frames, [[0; 2]; 2]);
    }
}
