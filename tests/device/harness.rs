//! A device under an edge-triggered poll, with a kernel at its far end.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nos_relay::data::device::{
    Egress, FrameDevice, Inspector, Next, PacketOptions, PacketSocket, Sent, open_tap,
};
use nos_relay::lab::testbed::{LabNamespace, tun_access, veth};
use nos_shim::checksum::Sum;
use nos_shim::frame::{Burst, Frame, FramePool, MAX_FRAME, Offload};
use nos_shim::ident::MacAddr;
use nos_shim::offload::Capabilities;

pub(crate) const LIMIT: Duration = Duration::from_secs(20);
pub(crate) const US: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
pub(crate) const KERNEL: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
pub(crate) const KERNEL_V4: [u8; 4] = [10, 9, 0, 1];
pub(crate) const US_V4: [u8; 4] = [10, 9, 0, 2];
pub(crate) const UDP_PORT: u16 = 9000;

/// A namespace in which nothing is sent but what a test asks for.
pub(crate) fn quiet(label: &str) -> LabNamespace {
    let lab = LabNamespace::new(label).unwrap();
    lab.sysctl("net/ipv6/conf/default/disable_ipv6", "1")
        .unwrap();
    lab
}

/// A device that is the far end of `eth0` in `lab`.
pub(crate) type Opened = (LabNamespace, Box<dyn FrameDevice>, Vec<LabNamespace>);

pub(crate) fn tap(lab: LabNamespace, offload: Capabilities) -> Opened {
    let device = lab.run(|| open_tap("eth0", offload).unwrap()).unwrap();
    lab.set_up("eth0").unwrap();
    (lab, device, vec![])
}

pub(crate) fn packet(lab: LabNamespace, options: PacketOptions) -> Opened {
    let host = quiet("host");
    veth((&lab, "eth0"), (&host, "peer")).unwrap();
    let open = || PacketSocket::open("peer", options).unwrap();
    let device = host.run(open).unwrap();
    (lab, Box::new(device), vec![host])
}

pub(crate) fn configured(opened: Opened) -> Opened {
    let (lab, ..) = &opened;
    lab.set_mac("eth0", KERNEL).unwrap();
    lab.add_address("eth0", "10.9.0.1/24".parse().unwrap())
        .unwrap();
    lab.add_neighbor("eth0", IpAddr::from(US_V4), US).unwrap();
    opened
}

/// Whether there can be TAPs; says so if not.
pub(crate) fn taps() -> bool {
    let access = tun_access();
    if let Err(error) = &access {
        println!("skipped: what needs TAPs: /dev/net/tun: {error}");
    }
    access.is_ok()
}

/// Every kind of device that can be had, each the far end of `eth0` in a quiet namespace.
pub(crate) fn every_kind() -> Vec<Opened> {
    let mut kinds = vec![packet(quiet("packet"), PacketOptions::default())];
    if taps() {
        kinds.push(tap(quiet("tap"), Capabilities::all()));
        kinds.push(tap(quiet("plain"), Capabilities::empty()));
    }
    kinds.into_iter().map(configured).collect()
}

/// A device under an edge-triggered poll.
pub(crate) struct Polled {
    pub(crate) device: Box<dyn FrameDevice>,
    pub(crate) inspector: Inspector,
    pub(crate) pool: FramePool,
    pub(crate) poll: Poll,
    /// Whether the device may have frames without a further event.
    pub(crate) ready: bool,
    pub(crate) calls: usize,
}

impl Polled {
    pub(crate) fn new(device: Box<dyn FrameDevice>) -> Self {
        Self::with_pool(device, FramePool::new(512, MAX_FRAME))
    }

    pub(crate) fn with_pool(device: Box<dyn FrameDevice>, pool: FramePool) -> Self {
        let poll = Poll::new().unwrap();
        let fd = device.fd().unwrap().as_raw_fd();
        let interest = Interest::READABLE;
        poll.registry()
            .register(&mut SourceFd(&fd), Token(0), interest)
            .unwrap();
        Self {
            inspector: device.inspector(),
            device,
            pool,
            poll,
            ready: true,
            calls: 0,
        }
    }

    pub(crate) fn event(&mut self, limit: Duration) -> bool {
        let mut events = Events::with_capacity(4);
        self.poll.poll(&mut events, Some(limit)).unwrap();
        !events.is_empty()
    }

    /// Receives once, after an event if the device said that it needs one.
    pub(crate) fn receive(&mut self) -> (Burst, Next) {
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

    pub(crate) fn receive_until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let (burst, _) = self.receive();
            if let Some(frame) = burst.into_iter().find(&wanted) {
                return frame;
            }
        }
    }

    pub(crate) fn receive_state(&mut self, wanted: impl Fn(Next) -> bool) -> Next {
        loop {
            let (_, next) = self.receive();
            if wanted(next) {
                return next;
            }
        }
    }

    pub(crate) fn drain(&mut self) -> Vec<Frame> {
        let mut all = vec![];
        self.ready = true;
        while self.ready {
            all.extend(self.receive().0);
        }
        all
    }

    /// Receives until the device has accounted for `count` more frames than before, whether handed
    /// up, dropped, or lost in the kernel. The kernel may deliver later than the sender's call.
    pub(crate) fn account(&mut self, before: u64, count: u64) -> Vec<Frame> {
        let deadline = Instant::now() + LIMIT;
        let mut all = self.drain();
        while self.accounted() < before + count {
            assert!(Instant::now() < deadline, "{} frames", self.accounted());
            thread::yield_now();
            all.extend(self.drain());
        }
        assert_eq!(self.accounted(), before + count);
        all
    }

    /// Frames handed up, dropped, or lost in the kernel so far.
    pub(crate) fn accounted(&mut self) -> u64 {
        let received = self.device.counters().received;
        received.frames + received.drops.total() + self.inspector.kernel_drops()
    }

    pub(crate) fn send(&mut self, frames: impl IntoIterator<Item = Frame>) -> Sent {
        let mut burst: Burst = frames.into_iter().collect();
        let sent = self.device.send_burst(&mut burst, &mut self.pool);
        assert!(burst.is_empty() || sent.egress == Egress::Adapt);
        sent
    }

    pub(crate) fn frame(&mut self, octets: &[u8]) -> Frame {
        self.pool.copy_from(octets).unwrap()
    }

    /// Frames made of these octets, each with its offload state.
    pub(crate) fn send_one(&mut self, octets: &[u8], offload: Offload) -> Sent {
        let mut frame = self.frame(octets);
        frame.set_offload(offload);
        self.send([frame])
    }
}

pub(crate) fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&KERNEL.0[..], &US.0, &ethertype.to_be_bytes(), payload].concat()
}

/// An ARP request for the kernel's address (RFC 826).
pub(crate) fn arp_request() -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    ethernet(
        0x0806,
        &[&head[..], &US.0, &US_V4, &[0; 6], &KERNEL_V4].concat(),
    )
}

pub(crate) fn is_arp_reply(frame: &Frame) -> bool {
    let bytes = frame.bytes();
    bytes[12..14] == [8, 6] && bytes[20..22] == [0, 2] && bytes[22..28] == KERNEL.0
}

pub(crate) fn is_udp(frame: &Frame) -> bool {
    let bytes = frame.bytes();
    bytes[12..14] == [8, 0] && bytes[23] == 17
}

/// A UDP datagram from us to the kernel, checksum included.
pub(crate) fn udp_datagram(payload: &[u8]) -> Vec<u8> {
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

pub(crate) fn udp_socket(lab: &LabNamespace) -> UdpSocket {
    let bind = || UdpSocket::bind((IpAddr::from(KERNEL_V4), UDP_PORT));
    let socket = lab.try_run("bind", bind).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

pub(crate) fn to_us() -> SocketAddr {
    SocketAddr::new(US_V4.into(), UDP_PORT)
}
