//! Devices against real kernels.

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use nix::errno::Errno;
use nos_relay::device::{
    Egress, FrameDevice, Link, Next, OpenError, PacketOptions, PacketSocket, PlainTap, Sent, Tap,
    open_tap, pollable_memory_pair,
};
use nos_relay::lab::{LabNamespace, veth};
use nos_shim::checksum::Sum;
use nos_shim::drop::DropReason;
use nos_shim::frame::{
    Burst, Checksum, Frame, FramePool, GsoKind, MAX_FRAME, Offload, Segmentation,
};
use nos_shim::ident::MacAddr;
use nos_shim::offload::Capabilities;
use support::lab_test;

const LIMIT: Duration = Duration::from_secs(20);
const US: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const KERNEL: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const KERNEL_V4: [u8; 4] = [10, 9, 0, 1];
const US_V4: [u8; 4] = [10, 9, 0, 2];
const UDP_PORT: u16 = 9000;

/// A namespace in which nothing is sent but what a test asks for.
fn quiet(label: &str) -> LabNamespace {
    let lab = LabNamespace::new(label).unwrap();
    lab.sysctl("net/ipv6/conf/default/disable_ipv6", "1")
        .unwrap();
    lab
}

/// A device that is the far end of `eth0` in `lab`.
type Opened = (LabNamespace, Box<dyn FrameDevice>, Vec<LabNamespace>);

fn tap(lab: LabNamespace, offload: Capabilities) -> Opened {
    let device = lab.run(|| open_tap("eth0", offload).unwrap()).unwrap();
    lab.set_up("eth0").unwrap();
    (lab, device, vec![])
}

fn packet(lab: LabNamespace, options: PacketOptions) -> Opened {
    let host = quiet("host");
    veth((&lab, "eth0"), (&host, "peer")).unwrap();
    let open = || PacketSocket::open("peer", options).unwrap();
    let device = host.run(open).unwrap();
    (lab, Box::new(device), vec![host])
}

fn configured(opened: Opened) -> Opened {
    let (lab, ..) = &opened;
    lab.set_mac("eth0", KERNEL).unwrap();
    lab.add_address("eth0", "10.9.0.1/24".parse().unwrap())
        .unwrap();
    lab.add_neighbor("eth0", IpAddr::from(US_V4), US).unwrap();
    opened
}

/// Every kind of device, each the far end of `eth0` in a quiet namespace.
fn every_kind() -> [Opened; 3] {
    [
        tap(quiet("tap"), Capabilities::all()),
        tap(quiet("plain"), Capabilities::empty()),
        packet(quiet("packet"), PacketOptions::default()),
    ]
    .map(configured)
}

/// A device under an edge-triggered poll.
struct Polled {
    device: Box<dyn FrameDevice>,
    pool: FramePool,
    poll: Poll,
    /// Whether the device may have frames without a further event.
    ready: bool,
    calls: usize,
}

impl Polled {
    fn new(device: Box<dyn FrameDevice>) -> Self {
        Self::with_pool(device, FramePool::new(512, MAX_FRAME))
    }

    fn with_pool(device: Box<dyn FrameDevice>, pool: FramePool) -> Self {
        let poll = Poll::new().unwrap();
        let fd = device.fd().unwrap().as_raw_fd();
        let interest = Interest::READABLE;
        poll.registry()
            .register(&mut SourceFd(&fd), Token(0), interest)
            .unwrap();
        Self {
            device,
            pool,
            poll,
            ready: true,
            calls: 0,
        }
    }

    fn event(&mut self, limit: Duration) -> bool {
        let mut events = Events::with_capacity(4);
        self.poll.poll(&mut events, Some(limit)).unwrap();
        !events.is_empty()
    }

    /// Receives once, after an event if the device said that it needs one.
    fn receive(&mut self) -> (Burst, Next) {
        if !self.ready {
            assert!(self.event(LIMIT), "{}: no event", self.device.name());
        }
        let mut burst = Burst::new();
        let received = self.device.recv_burst(&mut self.pool, &mut burst, 64);
        assert_eq!(received.frames, burst.len());
        assert_eq!(received.octets, burst.iter().map(Frame::len).sum::<usize>());
        self.calls += 1;
        self.ready = received.next == Next::More;
        (burst, received.next)
    }

    fn receive_until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let (burst, _) = self.receive();
            if let Some(frame) = burst.into_iter().find(&wanted) {
                return frame;
            }
        }
    }

    fn receive_state(&mut self, wanted: impl Fn(Next) -> bool) -> Next {
        loop {
            let (_, next) = self.receive();
            if wanted(next) {
                return next;
            }
        }
    }

    fn drain(&mut self) -> Vec<Frame> {
        let mut all = vec![];
        self.ready = true;
        while self.ready {
            all.extend(self.receive().0);
        }
        all
    }

    fn send(&mut self, frames: impl IntoIterator<Item = Frame>) -> Sent {
        let mut burst: Burst = frames.into_iter().collect();
        let sent = self.device.send_burst(&mut burst, &mut self.pool);
        assert!(burst.is_empty() || sent.egress == Egress::Adapt);
        sent
    }

    fn frame(&mut self, octets: &[u8]) -> Frame {
        self.pool.copy_from(octets).unwrap()
    }

    /// Frames made of these octets, each with its offload state.
    fn send_one(&mut self, octets: &[u8], offload: Offload) -> Sent {
        let mut frame = self.frame(octets);
        frame.set_offload(offload);
        self.send([frame])
    }
}

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&KERNEL.0[..], &US.0, &ethertype.to_be_bytes(), payload].concat()
}

/// An ARP request for the kernel's address (RFC 826).
fn arp_request() -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    ethernet(
        0x0806,
        &[&head[..], &US.0, &US_V4, &[0; 6], &KERNEL_V4].concat(),
    )
}

fn is_arp_reply(frame: &Frame) -> bool {
    let bytes = frame.bytes();
    bytes[12..14] == [8, 6] && bytes[20..22] == [0, 2] && bytes[22..28] == KERNEL.0
}

fn is_udp(frame: &Frame) -> bool {
    let bytes = frame.bytes();
    bytes[12..14] == [8, 0] && bytes[23] == 17
}

/// A UDP datagram from us to the kernel, checksum included.
fn udp_datagram(payload: &[u8]) -> Vec<u8> {
    let udp_len = 8 + u16::try_from(payload.len()).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_len).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend(US_V4);
    ip.extend(KERNEL_V4);
    let sum = Sum::ZERO.plus(&ip).checksum().to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    let mut udp = [UDP_PORT, UDP_PORT, udp_len, 0]
        .map(u16::to_be_bytes)
        .concat();
    udp.extend(payload);
    let sum = Sum::ZERO
        .pseudo_v4(US_V4.into(), KERNEL_V4.into(), 17, udp_len)
        .plus(&udp)
        .checksum()
        .to_be_bytes();
    udp[6..8].copy_from_slice(&sum);
    ip.extend(udp);
    ethernet(0x0800, &ip)
}

fn udp_socket(lab: &LabNamespace) -> UdpSocket {
    let bind = || UdpSocket::bind((IpAddr::from(KERNEL_V4), UDP_PORT));
    let socket = lab.try_run("bind", bind).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

fn to_us() -> SocketAddr {
    SocketAddr::new(US_V4.into(), UDP_PORT)
}

lab_test! {
    fn every_kind_talks_with_the_kernel() {
        for (lab, device, _others) in every_kind() {
            let name = device.kind().to_string();
            let mut polled = Polled::new(device);
            let request = polled.frame(&arp_request());
            let sent = polled.send([request]);
            assert_eq!((sent.frames, sent.egress), (1, Egress::Ready), "{name}");
            let reply = polled.receive_until(is_arp_reply);
            assert_eq!(reply.bytes()[..6], US.0, "{name}");

            let socket = udp_socket(&lab);
            let datagrams: Vec<_> = (0..40_u8)
                .map(|n| polled.frame(&udp_datagram(&[n; 100])))
                .collect();
            assert_eq!(polled.send(datagrams).frames, 40, "{name}");
            for n in 0..40 {
                let mut buffer = [0; 200];
                let len = socket.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..len], [n; 100], "{name}");
                socket.send_to(&buffer[..len], to_us()).unwrap();
            }
            let mut seen = vec![];
            while seen.len() < 40 {
                seen.extend(polled.receive().0.into_iter().filter(is_udp));
            }
            for (n, frame) in (0_u8..).zip(&seen) {
                assert_eq!(frame.bytes()[42..], [n; 100], "{name}");
            }
            let counters = polled.device.counters();
            assert_eq!((counters.sent.frames, counters.sent.drops.total()), (41, 0), "{name}");
            assert_eq!((counters.received.frames, counters.received.drops.total()), (41, 0), "{name}");
            assert_eq!(polled.device.kernel_drops(), 0);
        }
    }
}

lab_test! {
    fn nothing_is_reported_when_nothing_happens() {
        for (lab, device, _others) in every_kind() {
            let mut polled = Polled::new(device);
            polled.drain();
            // What registration itself reported.
            polled.event(Duration::ZERO);
            assert!(!polled.event(Duration::ZERO));
            // One datagram, one event, and silence again.
            udp_socket(&lab).send_to(&[7], to_us()).unwrap();
            assert!(polled.event(LIMIT));
            assert_eq!(polled.drain().len(), 1);
            assert!(!polled.event(Duration::ZERO));
        }
    }
}

lab_test! {
    fn a_deleted_interface_is_gone_and_stays_so() {
        for (lab, device, _others) in every_kind() {
            let name = device.kind().to_string();
            let mut polled = Polled::new(device);
            polled.drain();
            assert_eq!(polled.device.link(), Link::Up);
            lab.delete_link("eth0").unwrap();
            let before = polled.calls;
            // A packet socket may hear that the interface is down before it has gone, and of the
            // rest only when it asks.
            match polled.receive_state(|next| matches!(next, Next::Gone(_) | Next::Down)) {
                Next::Down => while polled.device.link() != Link::Gone { thread::yield_now(); },
                _ => assert_eq!(polled.device.link(), Link::Gone, "{name}"),
            }
            assert!(polled.calls - before < 10, "{name}: {} calls", polled.calls - before);
            for _ in 0..3 {
                polled.ready = true;
                assert!(matches!(polled.receive().1, Next::Gone(_)), "{name}");
                let frames = [polled.frame(&arp_request()), polled.frame(&arp_request())];
                let sent = polled.send(frames);
                assert!(matches!(sent.egress, Egress::Gone(_)), "{name}: {sent:?}");
                assert_eq!((sent.frames, sent.dropped), (0, 2), "{name}");
            }
            let drops = polled.device.counters().sent.drops;
            assert_eq!(drops.of(DropReason::DeviceGone), 6, "{name}");
            assert_eq!(drops.total(), 6, "{name}");
        }
    }
}

lab_test! {
    fn an_interface_may_go_down_and_come_back() {
        for (lab, device, others) in every_kind() {
            let name = device.kind().to_string();
            let mut polled = Polled::new(device);
            polled.drain();
            let (place, interface) = others.first().map_or((&lab, "eth0"), |host| (host, "peer"));
            let is_tap = others.is_empty();
            for _ in 0..3 {
                place.set_down(interface).unwrap();
                if !is_tap {
                    assert_eq!(polled.receive_state(|next| next == Next::Down), Next::Down);
                    assert_eq!(polled.device.link(), Link::Down);
                }
                let request = polled.frame(&arp_request());
                let sent = polled.send([request]);
                assert_eq!((sent.egress, sent.dropped), (Egress::Down, 1), "{name}");
                assert!(!polled.event(Duration::ZERO), "{name}: an event while down");
                place.set_up(interface).unwrap();
                place.wait_operational(interface, LIMIT).unwrap();
                lab.wait_operational("eth0", LIMIT).unwrap();
                assert_eq!(polled.device.link(), Link::Up, "{name}");
                // Frames raise events again, and the first one sent is taken.
                polled.drain();
                polled.event(Duration::ZERO);
                let request = polled.frame(&arp_request());
                assert_eq!(polled.send([request]).frames, 1, "{name}");
                polled.receive_until(is_arp_reply);
            }
            let counters = polled.device.counters();
            assert_eq!(counters.sent.drops.of(DropReason::DeviceGone), 3, "{name}");
        }
    }
}

lab_test! {
    fn an_outage_between_two_bursts_costs_nothing() {
        let (lab, device, others) = configured(packet(quiet("flap"), PacketOptions::default()));
        let mut polled = Polled::new(device);
        let host = &others[0];
        host.set_down("peer").unwrap();
        host.set_up("peer").unwrap();
        host.wait_operational("peer", LIMIT).unwrap();
        lab.wait_operational("eth0", LIMIT).unwrap();
        // ENETDOWN is still stored in the socket, and is the first answer to sending.
        let frames: Vec<_> = (0..3).map(|_| polled.frame(&arp_request())).collect();
        let sent = polled.send(frames);
        assert_eq!((sent.frames, sent.dropped, sent.egress), (3, 0, Egress::Ready));
    }
}

lab_test! {
    fn frames_behind_a_stored_error_are_received() {
        let (lab, device, others) = configured(packet(quiet("stored"), PacketOptions::default()));
        let mut polled = Polled::new(device);
        udp_socket(&lab).send_to(&[1], to_us()).unwrap();
        others[0].set_down("peer").unwrap();
        polled.ready = true;
        let (burst, next) = polled.receive();
        assert_eq!((burst.len(), next), (1, Next::Down));
    }
}

lab_test! {
    fn a_full_queue_loses_frames_but_no_count() {
        let options = PacketOptions { buffer: 20_000, ..PacketOptions::default() };
        let (lab, device, _others) = configured(packet(quiet("full"), options));
        let mut polled = Polled::new(device);
        let socket = udp_socket(&lab);
        for round in 1..=3_u64 {
            for _ in 0..500 {
                socket.send_to(&[0; 500], to_us()).unwrap();
            }
            assert!(!polled.drain().is_empty());
            let received = polled.device.counters().received.frames;
            let lost = polled.device.kernel_drops();
            assert!(lost > 0);
            assert_eq!(received + lost, 500 * round);
        }
    }
}

lab_test! {
    fn an_empty_pool_leaves_frames_in_the_kernel() {
        for (lab, device, _others) in every_kind() {
            let name = device.kind().to_string();
            let mut polled = Polled::with_pool(device, FramePool::new(8, MAX_FRAME));
            polled.drain();
            let socket = udp_socket(&lab);
            for n in 0..20 {
                socket.send_to(&[n], to_us()).unwrap();
            }
            let mut order = vec![];
            let mut held = vec![];
            polled.ready = true;
            while order.len() < 20 {
                let (burst, next) = polled.receive();
                order.extend(burst.iter().map(|frame| frame.bytes()[42]));
                held.extend(burst);
                match next {
                    Next::NoBuffer => held.clear(),
                    next => assert_ne!((next, order.len() < 20), (Next::Drained, true), "{name}"),
                }
                polled.ready = true;
            }
            assert_eq!(order, (0..20).collect::<Vec<u8>>(), "{name}");
        }
    }
}

lab_test! {
    fn frames_longer_than_the_buffer_are_dropped_alone() {
        for (lab, device, _others) in every_kind() {
            let name = device.kind().to_string();
            let mut polled = Polled::with_pool(device, FramePool::new(256, 300));
            polled.drain();
            let socket = udp_socket(&lab);
            for len in [100, 1000, 101, 1400, 102] {
                socket.send_to(&vec![0; len], to_us()).unwrap();
            }
            let lens: Vec<_> = polled.drain().iter().map(Frame::len).collect();
            assert_eq!(lens, [142, 143, 144], "{name}");
            let drops = polled.device.counters().received.drops;
            assert_eq!((drops.of(DropReason::FrameLength), drops.total()), (2, 2), "{name}");
        }
    }
}

lab_test! {
    fn one_frame_that_is_refused_does_not_lose_the_others() {
        for (lab, device, _others) in every_kind() {
            let name = device.kind().to_string();
            let mut polled = Polled::new(device);
            let socket = udp_socket(&lab);
            let frames = [
                polled.frame(&udp_datagram(b"before")),
                polled.frame(&[1, 2, 3]),
                polled.frame(&udp_datagram(b"after")),
            ];
            let sent = polled.send(frames);
            assert_eq!((sent.frames, sent.dropped, sent.egress), (2, 1, Egress::Ready), "{name}");
            assert_eq!(polled.device.counters().sent.drops.of(DropReason::DeviceError), 1);
            let mut buffer = [0; 10];
            assert_eq!(socket.recv(&mut buffer).unwrap(), 6, "{name}");
            assert_eq!(socket.recv(&mut buffer).unwrap(), 5, "{name}");
        }
    }
}

/// A super-frame of this kind around a frame that cannot be one.
fn impossible(kind: GsoKind) -> Offload {
    Offload {
        // Behind the end of the frame.
        checksum: Checksum::Partial {
            start: 5000,
            offset: 16,
        },
        segmentation: Some(Segmentation {
            kind,
            ecn: false,
            size: 100.try_into().unwrap(),
        }),
    }
}

lab_test! {
    fn a_kind_that_the_kernel_refuses_is_given_up_without_loss() {
        let kinds = [
            tap(quiet("tap"), Capabilities::all()),
            packet(quiet("packet"), PacketOptions::default()),
        ];
        for (_lab, device, _others) in kinds.map(configured) {
            let name = device.kind().to_string();
            let mut polled = Polled::new(device);
            assert_eq!(polled.device.capabilities(), Capabilities::all(), "{name}");
            let mut burst = Burst::new();
            burst.push(polled.frame(&arp_request()));
            let mut refused = polled.frame(&udp_datagram(&[5; 1000]));
            refused.set_offload(impossible(GsoKind::Udp));
            burst.push(refused);
            burst.push(polled.frame(&arp_request()));
            let sent = polled.device.send_burst(&mut burst, &mut polled.pool);
            assert_eq!((sent.frames, sent.dropped, sent.egress), (1, 0, Egress::Adapt), "{name}");
            assert_eq!(burst.len(), 2, "{name}");
            let left = Capabilities::all() - Capabilities::USO;
            assert_eq!(polled.device.capabilities(), left, "{name}");
            // As the core would: without the offload.
            burst[0].set_offload(Offload::NONE);
            let sent = polled.device.send_burst(&mut burst, &mut polled.pool);
            assert_eq!((sent.frames, sent.dropped, sent.egress), (2, 0, Egress::Ready), "{name}");
            // It is given up only once; what is refused now is the frame's fault.
            let sent = polled.send_one(&udp_datagram(&[5; 1000]), impossible(GsoKind::Udp));
            assert_eq!((sent.dropped, sent.egress), (1, Egress::Ready), "{name}");
        }
    }
}

lab_test! {
    fn unfinished_frames_are_not_for_a_plain_tap() {
        let (_lab, device, _others) = tap(quiet("plain"), Capabilities::empty());
        let mut polled = Polled::new(device);
        assert!(polled.device.capabilities().is_empty());
        let offload = Offload {
            checksum: Checksum::Partial { start: 34, offset: 6 },
            segmentation: None,
        };
        let sent = polled.send_one(&udp_datagram(b"x"), offload);
        assert_eq!((sent.frames, sent.dropped), (0, 1));
        assert_eq!(polled.device.counters().sent.drops.of(DropReason::DeviceError), 1);
    }
}

lab_test! {
    fn tagged_frames_are_not_taken_for_untagged_ones() {
        let (lab, device, _others) = configured(packet(quiet("tagged"), PacketOptions::default()));
        let mut polled = Polled::new(device);
        let open = || PacketSocket::open("eth0", PacketOptions::default()).unwrap();
        let mut far = Polled::new(Box::new(lab.run(open).unwrap()));
        let untagged = [&US.0[..], &KERNEL.0, &[0x88, 0xb5], &[9; 46]].concat();
        let tagged = [&US.0[..], &KERNEL.0, &[0x81, 0, 0, 5, 0x88, 0xb5], &[9; 46]].concat();
        let frames = [far.frame(&tagged), far.frame(&untagged), far.frame(&tagged)];
        assert_eq!(far.send(frames).frames, 3);
        let seen = polled.drain();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].bytes(), untagged);
        let drops = polled.device.counters().received.drops;
        assert_eq!((drops.of(DropReason::EtherType), drops.total()), (2, 2));
    }
}

lab_test! {
    fn what_the_kernel_sends_on_the_interface_is_not_heard() {
        let (_lab, device, others) = configured(packet(quiet("deaf"), PacketOptions::default()));
        let mut polled = Polled::new(device);
        let open = || PacketSocket::open("peer", PacketOptions::default()).unwrap();
        let mut other = Polled::new(Box::new(others[0].run(open).unwrap()));
        let request = other.frame(&arp_request());
        assert_eq!(other.send([request]).frames, 1);
        // The kernel answers; both sockets hear that, and neither the question.
        let reply = polled.receive_until(|_| true);
        assert!(is_arp_reply(&reply));
        assert!(is_arp_reply(&other.receive_until(|_| true)));
    }
}

lab_test! {
    fn an_open_descriptor_can_be_adopted() {
        let lab = quiet("adopt");
        let tap = lab.run(|| Tap::open("eth0", Capabilities::CHECKSUM).unwrap()).unwrap();
        let fd = tap.fd().unwrap().try_clone_to_owned().unwrap();
        drop(tap);
        let adopted = Tap::from_fd(fd, Capabilities::all()).unwrap();
        assert_eq!(adopted.name(), "eth0");
        lab.set_up("eth0").unwrap();
        let (_lab, device, _) = configured((lab, Box::new(adopted), vec![]));
        let mut polled = Polled::new(device);
        let request = polled.frame(&arp_request());
        assert_eq!(polled.send([request]).frames, 1);
        polled.receive_until(is_arp_reply);

        let plain = quiet("plain").run(|| PlainTap::open("eth0").unwrap()).unwrap();
        let fd = plain.fd().unwrap().try_clone_to_owned().unwrap();
        let error = Tap::from_fd(fd, Capabilities::all()).unwrap_err();
        assert!(matches!(error, OpenError::NoVnetHeader(name) if name == "eth0"));
    }
}

lab_test! {
    fn errors_name_device_action_and_reason() {
        let lab = quiet("errors");
        lab.run(|| {
            let _first = Tap::open("eth0", Capabilities::all()).unwrap();
            let errors = [
                Tap::open("eth0", Capabilities::all()).unwrap_err(),
                PlainTap::open("eth0").unwrap_err(),
                PacketSocket::open("eth1", PacketOptions::default()).unwrap_err(),
                Tap::open("a/b", Capabilities::all()).unwrap_err(),
            ];
            let texts = errors.map(|error| error.to_string());
            assert_eq!(texts[0], "TAP eth0: cannot create it: Device or resource busy");
            assert_eq!(texts[1], "plain TAP eth0: cannot create it: Device or resource busy");
            assert_eq!(
                texts[2],
                "packet socket eth1: cannot find the interface: No such device"
            );
            assert!(texts[3].starts_with("'a/b' is no interface name"));
            let _tun = tun_tap::Iface::without_packet_info("tun0", tun_tap::Mode::Tun).unwrap();
            let error = PacketSocket::open("tun0", PacketOptions::default()).unwrap_err();
            assert!(matches!(error, OpenError::NotEthernet { hardware: 65534, .. }), "{error}");
        }).unwrap();
    }
}

/// A bare forwarder between two devices, on a thread of its own.
struct Forwarder {
    thread: thread::JoinHandle<Forwarded>,
    stop: Arc<AtomicBool>,
    waker: Waker,
}

/// What a forwarder leaves behind.
struct Forwarded {
    devices: [Box<dyn FrameDevice>; 2],
    /// Super-frames seen from either device: of TCP, and of UDP.
    super_frames: [[u64; 2]; 2],
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
    nix::sys::socket::setsockopt(&sender, nix::sys::socket::sockopt::UdpGsoSegment, &size).unwrap();
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
fn check_bulk(hosts: [Opened; 2], octets: usize) -> [[u64; 2]; 2] {
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
    forwarder.finish().super_frames
}

fn host(label: &str) -> LabNamespace {
    LabNamespace::new(label).unwrap()
}

const BULK: usize = 32 << 20;

lab_test! {
    fn super_frames_cross_a_pair_of_taps_intact() {
        let hosts = ["one", "two"].map(|label| tap(host(label), Capabilities::all()));
        let seen = check_bulk(hosts, BULK);
        assert!(seen.as_flattened().iter().all(|&count| count > 10), "{seen:?}");
    }
}

lab_test! {
    fn super_frames_cross_a_pair_of_packet_sockets_intact() {
        let hosts = ["one", "two"].map(|label| packet(host(label), PacketOptions::default()));
        let seen = check_bulk(hosts, BULK);
        assert!(seen.as_flattened().iter().all(|&count| count > 10), "{seen:?}");
    }
}

lab_test! {
    fn super_frames_cross_from_tap_to_packet_socket_intact() {
        let bypass = PacketOptions { bypass_qdisc: true, ..PacketOptions::default() };
        let hosts = [tap(host("tap"), Capabilities::all()), packet(host("packet"), bypass)];
        let seen = check_bulk(hosts, BULK);
        assert!(seen.as_flattened().iter().all(|&count| count > 10), "{seen:?}");
    }
}

lab_test! {
    fn plain_taps_carry_no_super_frames() {
        let hosts = ["one", "two"].map(|label| tap(host(label), Capabilities::empty()));
        assert_eq!(check_bulk(hosts, BULK / 4), [[0; 2]; 2]);
    }
}

lab_test! {
    fn devices_in_memory_can_be_polled() {
        let [near, far] = pollable_memory_pair(["near", "far"], 32).unwrap();
        let far = thread::spawn(move || {
            let mut far = Polled::new(Box::new(far));
            let mut seen = 0;
            loop {
                let (burst, next) = far.receive();
                for frame in burst {
                    assert_eq!(frame.bytes(), u64::to_be_bytes(seen));
                    seen += 1;
                }
                if let Next::Gone(errno) = next {
                    assert_eq!(errno, Errno::EPIPE);
                    return seen;
                }
            }
        });
        let mut near = Polled::new(Box::new(near));
        let mut next = 0_u64;
        let deadline = Instant::now() + LIMIT;
        while next < 100_000 {
            assert!(Instant::now() < deadline);
            let batch: Vec<_> = (next..next + 8).map(|n| near.frame(&n.to_be_bytes())).collect();
            // What did not fit is sent again, so that the reader sees all in order.
            next += near.send(batch).frames as u64;
        }
        drop(near);
        assert_eq!(far.join().unwrap(), next);
    }
}
