//! Super-frames of tunnels leave a packet socket whole, and in their place among others.

use core::num::NonZeroU16;

use etherparse::PacketBuilder;
use nos_relay::control::attach::Host;
use nos_relay::data::device::{Egress, Injection, OpenError, PacketOptions, PacketSocket};
use nos_relay::lab::testbed::LabNamespace;
use nos_shim::checksum::Sum;
use nos_shim::frame::{Checksum, Ecn, Frame, GsoKind, Offload, Segmentation};
use nos_shim::offload::Capabilities;
use nos_shim::packet::Packet;

use crate::harness::{
    KERNEL, KERNEL_V4, Polled, US, US_V4, configured, packet, quiet, taps, udp_datagram,
};
use crate::support::{lab_test, skip};

const SIZE: u16 = 1000;
/// Ethernet, IPv4, UDP, VXLAN, Ethernet.
const INNER: u16 = 14 + 20 + 8 + 8 + 14;

/// A TCP super-frame in VXLAN (RFC 7348 §5) without an outer checksum, whose payload is all `n`.
fn tunnel(polled: &mut Polled, n: u8) -> Frame {
    let (from, to) = ([10, 8, 0, 2], [10, 8, 0, 1]);
    let mut inner = Vec::new();
    let step = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(from, to, 64);
    let step = step.tcp(40_000, 443, 7, 1000).ack(1);
    step.write(&mut inner, &[n; 5 * SIZE as usize]).unwrap();
    let tcp = inner.len() - 34;
    let pseudo = Sum::ZERO.pseudo_v4(from.into(), to.into(), 6, u16::try_from(tcp).unwrap());
    inner[50..52].copy_from_slice(&pseudo.folded().to_be_bytes());
    let mut outer = Vec::new();
    let step = PacketBuilder::ethernet2(US.0, KERNEL.0).ipv4(US_V4, KERNEL_V4, 64);
    let payload = [&[8, 0, 0, 0, 0, 0, 1, 0], &inner[..]].concat();
    step.udp(40_001, 4789).write(&mut outer, &payload).unwrap();
    outer[40..42].fill(0);
    let mut frame = polled.frame(&outer);
    frame.set_offload(Offload {
        checksum: Checksum::Partial {
            start: INNER + 20,
            offset: 16,
        },
        segmentation: Some(Segmentation {
            kind: GsoKind::TcpV4,
            ecn: Ecn::Unmarked,
            size: NonZeroU16::new(SIZE).unwrap(),
            tunnel: None,
        }),
    });
    // The parser finds what is cut.
    let frame = Packet::parse(frame).unwrap().into_frame();
    let found = frame.offload().segmentation.unwrap().tunnel;
    assert_eq!(found.map(|tunnel| tunnel.network), Some(INNER));
    frame
}

/// Frames of both kinds, in this order.
fn mixed(polled: &mut Polled, kinds: &[bool]) -> Vec<Frame> {
    let frames = kinds.iter().zip(1..).map(|(&of_tunnel, n)| {
        if of_tunnel {
            return tunnel(polled, n);
        }
        polled.frame(&udp_datagram(&[n; 100]))
    });
    frames.collect()
}

/// Whether a frame is one of [`mixed`], and which; and whether it is a super-frame.
fn place(frame: &Frame) -> Option<(bool, u8)> {
    let bytes = frame.bytes();
    let whole = frame.offload().segmentation.is_some();
    (bytes[6..12] == US.0).then(|| (whole, bytes[bytes.len() - 1]))
}

/// An injection for the interface of a packet socket, if this kernel can.
fn injection(host: &LabNamespace) -> Option<Injection> {
    let index = host.link("peer").unwrap().unwrap().index;
    let host = Host::open(host.namespace().clone()).unwrap();
    let opened = host.open_injection("peer", index);
    opened
        .inspect_err(|error| skip(&format!("no injection: {error}")))
        .ok()
}

lab_test! {
    fn tunnels_leave_whole_among_others_and_are_cut_where_that_cannot_be() {
        if !taps() {
            return;
        }
        let options = PacketOptions { injection: true, ..PacketOptions::default() };
        let (lab, device, others) = configured(packet(quiet("tunnels"), options));
        let mut polled = Polled::new(device);
        let open = || PacketSocket::open("eth0", PacketOptions::default()).unwrap();
        let mut far = Polled::new(Box::new(lab.run(open).unwrap()));
        let takes = |polled: &Polled| polled.device.capabilities().contains(Capabilities::TUNNEL);
        let Some(injection) = injection(&others[0]) else { return };
        let name = injection.name().to_owned();
        // None has come yet.
        assert!(takes(&polled) && !polled.device.asks_for_injection());
        let injection = polled.device.inject(injection).unwrap_err();

        let frames = mixed(&mut polled, &[false, true, false]);
        let sent = polled.send(frames);
        assert_eq!((sent.frames, sent.dropped, sent.egress), (1, 0, Egress::Adapt));
        assert!(!takes(&polled));
        assert!(polled.device.asks_for_injection() && !polled.device.asks_for_injection());
        polled.device.inject(injection).unwrap();
        assert!(takes(&polled));

        const ORDER: [bool; 9] = [true, false, false, true, true, false, true, false, false];
        let frames = mixed(&mut polled, &ORDER);
        let sent = polled.send(frames);
        assert_eq!((sent.frames, sent.dropped, sent.egress), (9, 0, Egress::Ready));
        let mut seen = Vec::new();
        while seen.len() < 1 + ORDER.len() {
            seen.extend(far.receive().0.iter().filter_map(place));
        }
        let expected: Vec<_> = ORDER.into_iter().zip(1..).collect();
        assert_eq!(seen[0], (false, 1));
        assert_eq!(seen[1..], expected);
        assert_eq!(polled.device.counters().sent.frames, 10);

        // Somebody takes the TAP away: what leaves by it is cut, and nothing else suffers.
        others[0].delete_link(&name).unwrap();
        let frames = mixed(&mut polled, &[false, true, false]);
        let sent = polled.send(frames);
        assert_eq!((sent.frames, sent.dropped, sent.egress), (1, 0, Egress::Adapt));
        assert!(!takes(&polled) && !polled.device.asks_for_injection());
        let frame = polled.frame(&udp_datagram(&[77; 100]));
        assert_eq!(polled.send([frame]).egress, Egress::Ready);
        far.receive_until(|frame| place(frame) == Some((false, 77)));
    }
}

lab_test! {
    fn an_injection_that_is_not_wanted_is_returned() {
        if !taps() {
            return;
        }
        let (_lab, device, others) = packet(quiet("unasked"), PacketOptions::default());
        let mut polled = Polled::new(device);
        assert!(!polled.device.capabilities().contains(Capabilities::TUNNEL));
        let Some(injection) = injection(&others[0]) else { return };
        let name = injection.name().to_owned();
        assert!(others[0].link(&name).unwrap().is_some());
        let injection = polled.device.inject(injection).unwrap_err();
        drop(injection);
        assert!(others[0].link(&name).unwrap().is_none(), "it is gone when it is closed");
        let taken = Injection::open("not a name").unwrap_err();
        assert!(matches!(taken, OpenError::Name(_)), "{taken}");
    }
}
