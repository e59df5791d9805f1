//! Tests of the relay with a NOS that does what they say.

mod generation;
mod refusal;

use super::*;
use etherparse::{IpNumber, PacketBuilder, TcpOptionElement};
use nos_shim::arp::Arp;
use nos_shim::channel::{Exchange, NosEnd, NotSent, ToNos, ToRelay, pair};
use nos_shim::frame::{BATCH, Checksum, Ecn, GsoKind, Offload, Segmentation};
use nos_shim::ident::{MacAddr, VrfId};
use nos_shim::ndp::{Envelope, Ndp, solicited_node};
use nos_shim::ports::{
    AddressMode, Claim, ClaimKind, ClaimRefused, Owner, Policy, PortRange, Registration,
    RegistrationRefused, Transport,
};
use proptest::prelude::*;
use std::net::Ipv6Addr;
use std::num::NonZeroU16;

const NOW: Instant = Instant::ZERO;
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0c]);
const RELAY: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xff]);
const OWN: [u8; 4] = [203, 0, 113, 1];
const FAR: [u8; 4] = [192, 0, 2, 7];
const OWN6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const FAR6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
const A: AttachmentId = AttachmentId(0);
const B: AttachmentId = AttachmentId(3);

fn claim(first: u16, last: u16) -> Claim {
    Claim {
        transport: Transport::Udp,
        range: PortRange::new(first, last).unwrap(),
        kind: ClaimKind::Ephemeral,
    }
}

fn config(id: AttachmentId) -> AttachmentConfig {
    AttachmentConfig {
        id,
        name: format!("c{}", id.0).into(),
        vrf: VrfId(7),
        network: nos_shim::ident::NetworkId::DEFAULT,
        mac: MAC,
        link_local: None,
        relay_mac: RELAY,
        mode: AddressMode::Shared,
        addresses: vec![OWN.into(), OWN6.into()],
        policy: Policy::default(),
        claims: vec![claim(40000, 40999)],
        mtu: 1500,
        segment: None,
    }
}

/// A relay with a NOS that does what the test says.
struct Setup {
    relay: Relay,
    nos: NosEnd,
    pool: FramePool,
}

impl Setup {
    /// With a channel of `bursts` bursts, and `ids` attached and accepted.
    fn new(bursts: usize, ids: &[AttachmentId]) -> Self {
        let (end, nos) = pair(bursts);
        let pool = FramePool::new(8192, 2000);
        let relay = Relay::new(end, pool.clone());
        let mut setup = Self { relay, nos, pool };
        for &id in ids {
            let request = setup.relay.attach(config(id)).unwrap();
            setup
                .relay
                .set_capabilities(id, Capabilities::all())
                .unwrap();
            setup.accept(request);
        }
        while setup.nos.recv_control().is_some() {}
        setup
    }

    fn answer(&mut self, answer: ToRelay) {
        self.nos.send_control(answer).unwrap();
        self.relay.poll_channel(NOW, 0);
    }

    /// The NOS accepts a request.
    #[track_caller]
    fn accept(&mut self, request: RequestId) {
        self.answer(ToRelay::Accepted(request));
        let event = Some(RelayEvent::Accepted(request));
        assert_eq!(self.relay.poll_event(), event);
    }

    /// What the relay asks of the NOS.
    fn asked(&mut self) -> Option<(RequestId, Exchange)> {
        match self.nos.recv_control()? {
            ToNos::Exchange(request, exchange) => Some((request, exchange)),
            other => panic!("{other:?}"),
        }
    }

    fn frame(&mut self, octets: &[u8]) -> Frame {
        self.pool.copy_from(octets).unwrap()
    }

    /// Frames from a container.
    fn handle(&mut self, id: AttachmentId, frames: &[Vec<u8>]) {
        for chunk in frames.chunks(BATCH) {
            let mut burst = chunk.iter().map(|octets| self.frame(octets)).collect();
            self.relay.handle_burst(id, &mut burst, NOW);
            assert!(burst.is_empty());
        }
    }

    /// A packet from the NOS, for `id`.
    fn packet(&mut self, id: AttachmentId, octets: &[u8]) -> Packet {
        let mut packet = Packet::parse(self.frame(octets)).unwrap();
        packet.set_interface(Interface::Attachment(id));
        packet
    }

    fn deliver(&mut self, id: AttachmentId, packets: &[Vec<u8>]) {
        for chunk in packets.chunks(BATCH) {
            let mut burst = chunk.iter().map(|octets| self.packet(id, octets)).collect();
            assert!(self.nos.send_burst(&mut burst));
            assert!(!self.relay.poll_channel(NOW, 1));
        }
    }

    /// What has reached the NOS.
    fn received(&mut self) -> Vec<Packet> {
        std::iter::from_fn(|| self.nos.recv_burst())
            .flatten()
            .collect()
    }

    /// What is written to the containers.
    fn written(&mut self) -> Vec<(AttachmentId, Vec<u8>)> {
        let mut written = Vec::new();
        while let Some((id, burst)) = self.relay.poll_transmit() {
            written.extend(burst.drain(..).map(|frame| (id, frame.bytes().to_vec())));
        }
        written
    }

    fn status(&self, id: AttachmentId) -> AttachmentStatus {
        let attachments = self.relay.attachments(None).rows;
        let found = attachments.into_iter().find(|status| status.id == id);
        found.unwrap()
    }

    fn drops(&self) -> Vec<(DropReason, u64)> {
        self.relay.ledger().drops.nonzero().collect()
    }

    #[track_caller]
    fn assert_balanced(&self) {
        let held = self.relay.held() as i128;
        assert_eq!(self.relay.ledger().unaccounted(), held);
    }
}

fn datagram(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut octets = Vec::new();
    PacketBuilder::ethernet2(MAC.0, RELAY.0)
        .ipv4(OWN, FAR, 64)
        .udp(port, 53)
        .write(&mut octets, payload)
        .unwrap();
    octets
}

fn datagram6(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut octets = Vec::new();
    PacketBuilder::ethernet2(MAC.0, RELAY.0)
        .ipv6(OWN6, FAR6, 64)
        .udp(port, 53)
        .write(&mut octets, payload)
        .unwrap();
    octets
}

fn inbound(payload: &[u8]) -> Vec<u8> {
    let mut octets = Vec::new();
    PacketBuilder::ethernet2([9; 6], [8; 6])
        .ipv4(FAR, OWN, 60)
        .udp(53, 40000)
        .write(&mut octets, payload)
        .unwrap();
    octets
}

fn arp_request(target: [u8; 4]) -> Vec<u8> {
    let mut frame = FramePool::new(1, 64).alloc().unwrap();
    Arp::request(MAC, OWN.into(), target.into())
        .write(&mut frame, MacAddr::BROADCAST)
        .unwrap();
    frame.bytes().to_vec()
}

fn solicitation(target: [u8; 16]) -> Vec<u8> {
    let mut frame = FramePool::new(1, 200).alloc().unwrap();
    let target = Ipv6Addr::from(target);
    let envelope = Envelope::to_group(MAC, MAC.link_local(), solicited_node(target));
    Ndp::NeighborSolicit {
        target,
        source_link_layer: Some(MAC),
    }
    .write(&mut frame, &envelope)
    .unwrap();
    frame.bytes().to_vec()
}

fn refused(request: RequestId) -> (ToRelay, RelayEvent) {
    let reason = RegistrationRefused::Claim(ClaimRefused {
        claim: claim(1, 2),
        taken: PortRange::new(1, 1).unwrap(),
        owner: "other".into(),
        suggestion: None,
    });
    let owner = Owner::Attachment(A);
    let refused = ExchangeRefused { owner, reason };
    (
        ToRelay::Refused(request, refused.clone()),
        RelayEvent::Refused(request, refused),
    )
}

#[test]
fn an_attachment_forwards_once_the_nos_has_accepted_it() {
    let mut setup = Setup::new(8, &[]);
    let request = setup.relay.attach(config(B)).unwrap();
    let (asked, exchange) = setup.asked().unwrap();
    assert_eq!(asked, request);
    let expected = Registration {
        attachment: B,
        name: "c3".into(),
        vrf: VrfId(7),
        network: nos_shim::ident::NetworkId::DEFAULT,
        mode: AddressMode::Shared,
        addresses: vec![OWN.into(), OWN6.into()],
        policy: Policy::default(),
        claims: vec![claim(40000, 40999)],
        link_local: None,
        router: config(A).relay_mac.link_local(),
        mtu: 1500,
    };
    let expected = Exchange {
        register: vec![expected],
        ..Exchange::default()
    };
    assert_eq!(exchange, expected);
    let frames = [datagram(40000, b"x"), arp_request(FAR)];
    setup.handle(B, &frames);
    assert_eq!(setup.drops(), [(DropReason::UnknownAttachment, 1)]);
    assert_eq!(setup.written().len(), 1, "ARP is answered meanwhile");
    assert!(!setup.status(B).active);

    setup.accept(request);
    assert!(setup.status(B).active);
    setup.handle(B, &frames[..1]);
    let received = setup.received();
    let frame = received[0].frame();
    assert_eq!(frame.interface(), Some(Interface::Attachment(B)));
    assert_eq!(frame.vrf(), VrfId(7));
    assert_eq!(frame.bytes(), frames[0]);

    let request = setup.relay.detach(B).unwrap();
    let withdrawal = Exchange {
        withdraw: vec![B],
        ..Exchange::default()
    };
    assert_eq!(setup.asked(), Some((request, withdrawal)));
    setup.handle(B, &frames);
    assert_eq!(setup.drops(), [(DropReason::UnknownAttachment, 3)]);
    setup.accept(request);
    setup.assert_balanced();
}

#[test]
fn errors_name_the_attachment() {
    let mut setup = Setup::new(8, &[A]);
    assert_eq!(setup.relay.attach(config(A)), Err(RelayError::Exists(A)));
    assert_eq!(setup.relay.detach(B), Err(RelayError::Unknown(B)));
    assert_eq!(setup.relay.update(config(B)), Err(RelayError::Unknown(B)));
    let next = A.successor();
    let error = setup.relay.attach(config(next)).unwrap_err();
    assert_eq!(error, RelayError::Exists(A), "the index is in use");
    assert_eq!(error.to_string(), "attachment 0 exists already");
    assert_eq!(setup.relay.detach(next), Err(RelayError::Unknown(next)));
    drop(setup.nos);
    let gone = Err(RelayError::NotSent(NotSent::Deserted));
    assert_eq!(setup.relay.attach(config(B)), gone);
    assert_eq!(setup.relay.update(config(A)), gone);
    assert_eq!(setup.relay.detach(A), gone);
    assert_eq!(setup.relay.attach(config(A)), gone, "it was removed");
}

#[test]
fn a_change_holds_once_it_is_accepted() {
    let mut setup = Setup::new(8, &[A]);
    let changed = AttachmentConfig {
        claims: vec![claim(50000, 50999)],
        vrf: VrfId(8),
        ..config(A)
    };
    let frames = [datagram(40000, b"old"), datagram(50000, b"new")];
    let ports = |setup: &mut Setup| {
        setup.handle(A, &frames);
        let received = setup.received();
        assert_eq!(received.len(), 1);
        let packet = &received[0];
        (packet.ports().unwrap().source, packet.frame().vrf())
    };
    let request = setup.relay.update(changed.clone()).unwrap();
    assert_eq!(ports(&mut setup), (40000, VrfId(7)));
    let (answer, event) = refused(request);
    setup.answer(answer);
    assert_eq!(setup.relay.poll_event(), Some(event));
    assert_eq!(ports(&mut setup), (40000, VrfId(7)));
    let request = setup.relay.update(changed).unwrap();
    setup.answer(ToRelay::Accepted(request));
    assert_eq!(ports(&mut setup), (50000, VrfId(8)));
}

#[test]
fn a_refused_attachment_stays_until_it_is_detached() {
    let mut setup = Setup::new(8, &[]);
    let request = setup.relay.attach(config(A)).unwrap();
    let (answer, event) = refused(request);
    setup.answer(answer);
    assert_eq!(setup.relay.poll_event(), Some(event));
    assert!(!setup.status(A).active);
    setup.relay.detach(A).unwrap();
    assert_eq!(setup.relay.attachments(None).rows, []);
}

#[test]
fn what_was_meant_for_the_predecessor_does_not_reach_the_successor() {
    let mut setup = Setup::new(8, &[]);
    let next = A.successor();
    let first = setup.relay.attach(config(A)).unwrap();
    let second = setup.relay.update(config(A)).unwrap();
    setup.relay.detach(A).unwrap();
    let request = setup.relay.attach(config(next)).unwrap();
    setup.answer(ToRelay::Accepted(first));
    setup.answer(ToRelay::Accepted(second));
    assert_eq!(setup.relay.poll_event(), None);
    assert!(!setup.status(next).active);
    setup.deliver(A, &[inbound(b"late")]);
    setup.handle(A, &[datagram(40000, b"late")]);
    assert_eq!(setup.drops(), [(DropReason::UnknownAttachment, 2)]);
    let (answer, event) = refused(request);
    setup.answer(answer);
    assert_eq!(setup.relay.poll_event(), Some(event));
    // Answers about nothing do no harm.
    setup.answer(ToRelay::Accepted(RequestId(99)));
    setup.answer(ToRelay::Accepted(request));
    assert!(!setup.status(next).active);
}

/// A change of ports must not take the live device's offload away.
#[test]
fn a_change_of_an_attachment_leaves_its_device_alone() {
    let mut setup = Setup::new(8, &[A]);
    let changed = AttachmentConfig {
        claims: vec![claim(40000, 40499)],
        ..config(A)
    };
    let request = setup.relay.update(changed).unwrap();
    let through = |setup: &mut Setup| {
        let packet = super_frame(setup, A, 201);
        let octets = packet.frame().len();
        setup.nos.send_burst(&mut [packet].into_iter().collect());
        setup.relay.poll_channel(NOW, 1);
        let written = setup.written();
        (written.len(), written[0].1.len() == octets)
    };
    assert_eq!(through(&mut setup), (1, true), "asked for");
    setup.accept(request);
    assert_eq!(through(&mut setup), (1, true), "accepted");
    setup.assert_balanced();
}

#[test]
fn an_exchange_holds_as_a_whole_or_not_at_all() {
    let mut setup = Setup::new(8, &[A, B]);
    let swap = AttachmentExchange {
        detach: vec![B],
        attach: vec![
            AttachmentConfig {
                claims: vec![claim(50000, 50999)],
                ..config(A)
            },
            config(AttachmentId(5)),
        ],
        services: None,
    };
    let frames = [datagram(40000, b"old"), datagram(50000, b"new")];
    let sent = |setup: &mut Setup, id| {
        setup.handle(id, &frames);
        let received = setup.received();
        let ports = received.iter().map(|packet| packet.ports().unwrap().source);
        ports.collect::<Vec<u16>>()
    };
    let none: [u16; 0] = [];
    let request = setup.relay.exchange(swap.clone()).unwrap();
    let (_, asked) = setup.asked().unwrap();
    assert_eq!(asked.withdraw, [B]);
    let registered: Vec<_> = asked.register.iter().map(|it| it.attachment).collect();
    assert_eq!(registered, [A, AttachmentId(5)]);
    let (answer, event) = refused(request);
    setup.answer(answer);
    assert_eq!(setup.relay.poll_event(), Some(event));
    assert_eq!(sent(&mut setup, A), [40000]);
    assert_eq!(sent(&mut setup, B), [40000]);
    assert_eq!(sent(&mut setup, AttachmentId(5)), none);
    let request = setup.relay.exchange(swap).unwrap();
    setup.accept(request);
    assert_eq!(sent(&mut setup, A), [50000]);
    assert_eq!(sent(&mut setup, B), none);
    assert_eq!(sent(&mut setup, AttachmentId(5)), [40000]);
    setup.assert_balanced();
}

#[test]
fn an_exchange_must_make_sense() {
    let mut setup = Setup::new(8, &[A]);
    let exchange = |detach: &[AttachmentId], attach: &[AttachmentId]| AttachmentExchange {
        detach: detach.to_vec(),
        attach: attach.iter().map(|&id| config(id)).collect(),
        services: None,
    };
    for (wanted, error) in [
        (exchange(&[B], &[]), RelayError::Unknown(B)),
        (exchange(&[A, A], &[]), RelayError::Twice(A)),
        (exchange(&[A], &[A]), RelayError::Twice(A)),
        (exchange(&[], &[B, B]), RelayError::Twice(B)),
        (exchange(&[A], &[A.successor()]), RelayError::Exists(A)),
    ] {
        assert_eq!(setup.relay.exchange(wanted), Err(error));
    }
    assert_eq!(setup.asked(), None);
}

#[test]
fn questions_are_answered_to_who_asked() {
    let mut setup = Setup::new(8, &[A, B]);
    setup.handle(B, &[arp_request(FAR), solicitation(FAR6), arp_request(OWN)]);
    let written = setup.written();
    assert_eq!(written.len(), 2);
    assert!(written.iter().all(|(id, _)| *id == B));
    let reply = Arp::parse(&written[0].1).unwrap();
    assert_eq!((reply.sender_mac, reply.sender_ip), (RELAY, FAR.into()));
    let ledger = setup.relay.ledger();
    assert_eq!((ledger.received, ledger.consumed), (3, 3));
    assert_eq!((ledger.originated, ledger.sent), (2, 2));
    assert_eq!(setup.received().len(), 0);
    setup.assert_balanced();
}

#[test]
fn a_full_ring_drops_and_counts() {
    let mut setup = Setup::new(1, &[A]);
    let frames = vec![datagram(40000, b"x"); 3];
    setup.handle(A, &frames);
    setup.handle(A, &frames);
    assert_eq!(setup.received().len(), 3);
    assert_eq!(setup.drops(), [(DropReason::RingFull, 3)]);
    let drops = setup.status(A).counters.drops;
    assert_eq!(drops.of(DropReason::RingFull), 3);
    setup.handle(A, &frames);
    assert_eq!(setup.received().len(), 3);
    setup.assert_balanced();
}

#[test]
fn both_ways_keep_order_and_count() {
    let mut setup = Setup::new(8, &[A, B]);
    let out: Vec<_> = (0..200_u8).map(|n| datagram6(40000, &[n])).collect();
    setup.handle(A, &out);
    let received = setup.received();
    assert!(received.iter().map(|p| p.frame().bytes()).eq(&out));

    let packets: Vec<_> = (0..200_u8).map(|n| inbound(&[n])).collect();
    for (n, packet) in packets.iter().enumerate() {
        setup.deliver(if n % 3 == 0 { B } else { A }, std::slice::from_ref(packet));
    }
    assert_eq!(setup.relay.held(), 200);
    let mut expected = packets.clone();
    for octets in &mut expected {
        octets[..12].copy_from_slice(&[MAC.0, RELAY.0].concat());
    }
    let written = setup.written();
    for id in [A, B] {
        let to = written.iter().filter(|(to, _)| *to == id).map(|(_, o)| o);
        let numbered = expected.iter().enumerate();
        let meant = numbered
            .filter(|(n, _)| (n % 3 == 0) == (id == B))
            .map(|(_, o)| o);
        assert!(to.eq(meant));
    }
    let octets = |frames: &[Vec<u8>]| frames.iter().map(|frame| frame.len() as u64).sum();
    let a = setup.status(A).counters;
    assert_eq!((a.rx_packets, a.rx_octets), (200, octets(&out)));
    let to_a = 133;
    assert_eq!(
        (a.tx_packets, a.tx_octets),
        (to_a, to_a * expected[0].len() as u64)
    );
    assert_eq!(setup.status(B).counters.tx_packets, 200 - to_a);
    setup.assert_balanced();
}

#[test]
fn packets_for_nobody_are_dropped() {
    let mut setup = Setup::new(8, &[A]);
    setup.relay.attach(config(B)).unwrap();
    setup.deliver(B, &[inbound(b"registered only")]);
    setup.deliver(AttachmentId(2), &[inbound(b"no such")]);
    setup.deliver(AttachmentId(u32::MAX), &[inbound(b"no such")]);
    let mut burst = PacketBurst::new();
    let frame = setup.frame(&inbound(b"no interface"));
    burst.push(Packet::parse(frame).unwrap());
    setup.nos.send_burst(&mut burst);
    setup.relay.poll_channel(NOW, 1);
    assert_eq!(setup.drops(), [(DropReason::UnknownAttachment, 4)]);
    assert_eq!(setup.written(), []);
    setup.assert_balanced();
}

#[test]
fn the_channel_waits_while_much_is_to_be_written() {
    let mut setup = Setup::new(16, &[A]);
    for _ in 0..10 {
        let mut burst = (0..BATCH)
            .map(|_| setup.packet(A, &inbound(b"x")))
            .collect();
        assert!(setup.nos.send_burst(&mut burst));
    }
    assert!(setup.relay.poll_channel(NOW, 100));
    assert_eq!(setup.relay.held(), 4 * BATCH);
    assert!(!setup.relay.try_sleep());
    let mut written = setup.written().len();
    while setup.relay.poll_channel(NOW, 1) {
        written += setup.written().len();
    }
    written += setup.written().len();
    assert_eq!(written, 10 * BATCH);
    assert!(setup.relay.try_sleep());
    setup.assert_balanced();
}

#[test]
fn a_queue_that_nobody_empties_drops() {
    let mut setup = Setup::new(8, &[A]);
    setup.handle(A, &vec![arp_request(FAR); 4100]);
    assert_eq!(setup.drops(), [(DropReason::DeviceFull, 4)]);
    assert_eq!(setup.relay.held(), 4096);
    setup.assert_balanced();
    assert_eq!(setup.written().len(), 4096);
    setup.assert_balanced();
}

#[test]
fn what_the_device_leaves_is_offered_again_or_discarded() {
    let mut setup = Setup::new(8, &[A, B]);
    let packets: Vec<_> = (0..5_u8).map(|n| inbound(&[n])).collect();
    setup.deliver(A, &packets);
    setup.deliver(B, &packets[..1]);
    let (id, burst) = setup.relay.poll_transmit().unwrap();
    assert_eq!((id, burst.len()), (A, 5));
    drop(burst.drain(..2));
    setup.assert_balanced();
    let (id, burst) = setup.relay.poll_transmit().unwrap();
    assert_eq!((id, burst.len(), burst[0].bytes()[42]), (A, 3, 2));
    drop(burst.drain(..1));
    setup.relay.discard(DropReason::DeviceGone);
    setup.assert_balanced();
    let (id, burst) = setup.relay.poll_transmit().unwrap();
    assert_eq!((id, burst.len()), (B, 1));
    setup.relay.discard(DropReason::DeviceGone);
    assert!(setup.relay.poll_transmit().is_none());
    setup.relay.discard(DropReason::DeviceGone);
    assert_eq!(setup.drops(), [(DropReason::DeviceGone, 3)]);
    let a = setup.status(A).counters;
    assert_eq!((a.tx_packets, a.drops.total()), (3, 2));
    assert_eq!(a.tx_octets, 3 * packets[0].len() as u64);
    assert_eq!(setup.relay.ledger().sent, 3);
    setup.assert_balanced();
}

#[test]
fn detaching_drops_what_waits_for_that_attachment() {
    let mut setup = Setup::new(8, &[A, B]);
    setup.deliver(A, &vec![inbound(b"a"); 100]);
    setup.deliver(B, &[inbound(b"b")]);
    let (id, burst) = setup.relay.poll_transmit().unwrap();
    assert_eq!((id, burst.len()), (A, BATCH));
    drop(burst.drain(..10));
    setup.relay.detach(A).unwrap();
    assert_eq!(setup.drops(), [(DropReason::UnknownAttachment, 90)]);
    let written = setup.written();
    assert_eq!((written.len(), written[0].0), (1, B));
    setup.assert_balanced();
}

/// A packet for `id` with its checksum left to the device.
fn partial(setup: &mut Setup, id: AttachmentId) -> Packet {
    let mut octets = inbound(b"payload");
    octets[40..42].fill(0);
    let packet = Packet::parse(setup.frame(&octets)).unwrap();
    let sum = packet.pseudo_sum(octets.len() - 34).folded();
    let mut frame = packet.into_frame();
    frame.bytes_mut()[40..42].copy_from_slice(&sum.to_be_bytes());
    frame.set_offload(Offload {
        checksum: Checksum::Partial {
            start: 34,
            offset: 6,
        },
        segmentation: None,
    });
    frame.set_interface(Interface::Attachment(id));
    Packet::parse(frame).unwrap()
}

/// A TCP super-frame for `id` with the octets 0, 1, 2 ... in segments of 100.
fn super_frame(setup: &mut Setup, id: AttachmentId, len: u8) -> Packet {
    let mut octets = Vec::new();
    PacketBuilder::ethernet2([9; 6], [8; 6])
        .ipv4(FAR, OWN, 60)
        .tcp(80, 40000, 1, 1000)
        .write(&mut octets, &(0..len).collect::<Vec<_>>())
        .unwrap();
    let packet = Packet::parse(setup.frame(&octets)).unwrap();
    let sum = packet.pseudo_sum(octets.len() - 34).folded();
    let mut frame = packet.into_frame();
    frame.bytes_mut()[50..52].copy_from_slice(&sum.to_be_bytes());
    frame.set_offload(Offload {
        checksum: Checksum::Partial {
            start: 34,
            offset: 16,
        },
        segmentation: Some(Segmentation {
            kind: GsoKind::TcpV4,
            ecn: Ecn::Unmarked,
            size: NonZeroU16::new(100).unwrap(),
            tunnel: None,
        }),
    });
    frame.set_interface(Interface::Attachment(id));
    Packet::parse(frame).unwrap()
}

#[test]
fn super_frames_are_cut_for_a_device_that_takes_none() {
    let mut setup = Setup::new(8, &[A, B]);
    setup
        .relay
        .set_capabilities(B, Capabilities::CHECKSUM)
        .unwrap();
    let mut burst: PacketBurst = [A, B]
        .map(|id| super_frame(&mut setup, id, 250))
        .into_iter()
        .collect();
    setup.nos.send_burst(&mut burst);
    setup.relay.poll_channel(NOW, 1);
    setup.assert_balanced();
    let written = setup.written();
    let lens = |id| {
        let to = written.iter().filter(move |(to, _)| *to == id);
        to.map(|(_, octets)| octets.len() - 54).collect::<Vec<_>>()
    };
    assert_eq!((lens(A), lens(B)), (vec![250], vec![100, 100, 50]));
    let ledger = setup.relay.ledger();
    assert_eq!((ledger.received, ledger.originated, ledger.sent), (2, 2, 4));
    setup.assert_balanced();
}

#[test]
fn frames_are_made_fit_for_the_device() {
    let mut setup = Setup::new(8, &[A, B]);
    setup
        .relay
        .set_capabilities(B, Capabilities::empty())
        .unwrap();
    let mut burst: PacketBurst = [A, B]
        .map(|id| partial(&mut setup, id))
        .into_iter()
        .collect();
    setup.nos.send_burst(&mut burst);
    setup.relay.poll_channel(NOW, 1);
    let (id, burst) = setup.relay.poll_transmit().unwrap();
    assert_eq!(id, A);
    let checksum = burst[0].offload().checksum;
    assert!(matches!(checksum, Checksum::Partial { .. }), "untouched");
    // The device turns out not to take it after all.
    setup
        .relay
        .set_capabilities(A, Capabilities::empty())
        .unwrap();
    for _ in 0..2 {
        let (_, burst) = setup.relay.poll_transmit().unwrap();
        let mut frame = burst.pop().unwrap();
        frame.set_offload(Offload::NONE);
        let complete = Packet::parse(frame).unwrap();
        assert!(complete.transport_checksum_ok());
    }
    assert!(setup.relay.poll_transmit().is_none());
    setup.assert_balanced();
}

/// Odd packets that have brought down stacks.
#[test]
fn odd_packets_do_no_harm() {
    let mut setup = Setup::new(8, &[A]);
    let tcp = |source: [u8; 4], options: &[TcpOptionElement]| {
        let mut octets = Vec::new();
        PacketBuilder::ethernet2(MAC.0, RELAY.0)
            .ipv4(source, FAR, 64)
            .tcp(40000, 80, 1, 1000)
            .syn()
            .options(options)
            .unwrap()
            .write(&mut octets, b"")
            .unwrap();
        octets
    };
    let mut config = config(A);
    config.claims.push(Claim {
        transport: Transport::Tcp,
        ..config.claims[0]
    });
    let request = setup.relay.update(config).unwrap();
    setup.accept(request);
    let from_nobody = tcp([0; 4], &[]);
    let no_mss = tcp(OWN, &[TcpOptionElement::MaximumSegmentSize(0)]);
    let mut short_header = tcp(OWN, &[]);
    short_header[14] = 0x44;
    let mut no_payload = Vec::new();
    PacketBuilder::ethernet2(MAC.0, RELAY.0)
        .ipv4(OWN, FAR, 64)
        .write(&mut no_payload, IpNumber::UDP, b"")
        .unwrap();
    let empty = Vec::new();
    setup.handle(A, &[from_nobody, no_mss, short_header, no_payload, empty]);
    let received = setup.received();
    assert_eq!(
        received.len(),
        1,
        "a SYN with MSS 0 is the receiver's affair"
    );
    let mut drops = setup.drops();
    drops.sort();
    let expected = [
        (DropReason::FrameLength, 1),
        (DropReason::Ipv4Header, 1),
        (DropReason::TransportHeader, 1),
        (DropReason::MartianSource, 1),
    ];
    assert_eq!(drops, expected);
    setup.assert_balanced();
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Whole,
    /// With a checksum to be completed.
    Partial,
    Super,
}

#[derive(Clone, Debug)]
enum Step {
    Attach(AttachmentId),
    Detach(AttachmentId),
    Exchange(Vec<AttachmentId>, Vec<AttachmentId>),
    /// The NOS answers all registrations, or sends nonsense.
    Answer(bool),
    /// Frames from a container.
    Handle(AttachmentId, Vec<Vec<u8>>),
    /// Packets from the NOS.
    Deliver(Vec<(AttachmentId, Kind)>),
    Receive,
    Poll(usize),
    /// The device takes so many frames; the rest is discarded or left.
    Transmit(usize, bool),
    /// Another NOS takes the place of the one that is there, which has ended or not, and of which that
    /// is noticed before or not.
    Restart(bool, bool),
    Capabilities(AttachmentId, bool),
}

fn id() -> impl Strategy<Value = AttachmentId> {
    prop_oneof![Just(A), Just(B), Just(AttachmentId(5))]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Whole), Just(Kind::Partial), Just(Kind::Super)]
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    let valid = prop_oneof![
        (39990..40010_u16).prop_map(|port| datagram(port, b"abc")),
        (39990..40010_u16).prop_map(|port| datagram6(port, b"abc")),
        Just(arp_request(FAR)),
        Just(arp_request(OWN)),
        Just(solicitation(FAR6)),
        Just(solicitation(OWN6)),
    ];
    let mutated = (
        valid.clone(),
        any::<prop::sample::Index>(),
        any::<u8>(),
        any::<bool>(),
    );
    let mutated = mutated.prop_map(|(mut octets, at, value, cut)| {
        let at = at.index(octets.len());
        octets[at] = value;
        octets.truncate(if cut { at } else { usize::MAX });
        octets
    });
    let noise = proptest::collection::vec(any::<u8>(), 0..100);
    prop_oneof![4 => valid, 4 => mutated, 1 => noise]
}

fn step() -> impl Strategy<Value = Step> {
    use proptest::collection::vec;
    prop_oneof![
        2 => id().prop_map(Step::Attach),
        1 => id().prop_map(Step::Detach),
        1 => (vec(id(), 0..2), vec(id(), 0..2)).prop_map(|(gone, come)| Step::Exchange(gone, come)),
        3 => any::<bool>().prop_map(Step::Answer),
        6 => (id(), vec(frame(), 0..BATCH)).prop_map(|(id, frames)| Step::Handle(id, frames)),
        6 => vec((id(), kind()), 0..BATCH).prop_map(Step::Deliver),
        2 => Just(Step::Receive),
        4 => (0..4_usize).prop_map(Step::Poll),
        6 => (0..BATCH, any::<bool>()).prop_map(|(take, discard)| Step::Transmit(take, discard)),
        1 => (id(), any::<bool>()).prop_map(|(id, all)| Step::Capabilities(id, all)),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(ends, told)| Step::Restart(ends, told)),
    ]
}

proptest! {
    /// Whatever happens, in whatever order, every packet is accounted for.
    #[test]
    fn packets_are_conserved(steps in proptest::collection::vec(step(), 1..60)) {
        let mut setup = Setup::new(2, &[A]);
        let mut given = 0;
        let mut taken = 0;
        for step in steps {
            match step {
                Step::Attach(id) => {
                    let _ = setup.relay.attach(config(id));
                }
                Step::Detach(id) => {
                    let _ = setup.relay.detach(id);
                }
                Step::Exchange(detach, attach) => {
                    let attach = attach.into_iter().map(config).collect();
                    let services = None;
                    let _ = setup.relay.exchange(AttachmentExchange { detach, attach, services });
                }
                Step::Answer(sense) => {
                    while let Some((request, _)) = setup.asked() {
                        setup.answer(ToRelay::Accepted(request));
                    }
                    if !sense {
                        setup.answer(ToRelay::Accepted(RequestId(1 << 40)));
                    }
                }
                Step::Handle(id, frames) => {
                    given += frames.len() as u64;
                    setup.handle(id, &frames);
                }
                Step::Deliver(to) => {
                    let mut burst: PacketBurst = to
                        .iter()
                        .map(|&(id, kind)| match kind {
                            Kind::Whole => setup.packet(id, &inbound(b"abc")),
                            Kind::Partial => partial(&mut setup, id),
                            Kind::Super => super_frame(&mut setup, id, 201),
                        })
                        .collect();
                    setup.nos.send_burst(&mut burst);
                }
                Step::Receive => taken += setup.received().len() as u64,
                Step::Poll(budget) => {
                    let before = setup.relay.channel.depth();
                    setup.relay.poll_channel(NOW, budget);
                    prop_assert!(before - setup.relay.channel.depth() <= budget);
                }
                Step::Transmit(count, discard) => {
                    if let Some((_, burst)) = setup.relay.poll_transmit() {
                        prop_assert!(!burst.is_empty());
                        let count = count.min(burst.len());
                        drop(burst.drain(..count));
                    }
                    if discard {
                        setup.relay.discard(DropReason::DeviceGone);
                    }
                }
                Step::Restart(ends, told) => setup.restart(ends, told),
                Step::Capabilities(id, all) => {
                    let capabilities = if all { Capabilities::all() } else { Capabilities::empty() };
                    let _ = setup.relay.set_capabilities(id, capabilities);
                }
            }
            setup.assert_balanced();
        }
        taken += setup.received().len() as u64;
        let written_before = setup.relay.ledger().sent;
        let held = setup.relay.held() as u64;
        let written = setup.written().len() as u64;
        prop_assert!(written <= held);
        setup.assert_balanced();
        prop_assert_eq!(setup.relay.held(), 0);
        let ledger = *setup.relay.ledger();
        prop_assert!(ledger.received >= given);
        prop_assert!(ledger.sent >= taken && ledger.sent >= written_before);
        drop(setup.relay);
        drop(setup.nos);
        let mut all = Vec::new();
        while let Some(frame) = setup.pool.alloc() {
            all.push(frame);
        }
        prop_assert_eq!(all.len(), setup.pool.capacity(), "buffers came back");
    }
}

/// What a container sends to its own address: this protocol and payload.
fn to_itself(v6: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut octets = Vec::new();
    let ethernet = PacketBuilder::ethernet2(MAC.0, RELAY.0);
    let ip = match v6 {
        true => ethernet.ipv6(OWN6, OWN6, 64),
        false => ethernet.ipv4(OWN, OWN, 64),
    };
    ip.write(&mut octets, IpNumber(protocol), payload).unwrap();
    octets
}

#[test]
fn what_nobody_divides_comes_back_to_the_container_that_sends_it_to_itself() {
    let mut setup = Setup::new(8, &[A, B]);
    for v6 in [false, true] {
        // Of the same, an error, and a query that is the NOS's affair elsewhere.
        let (unreachable, query, icmp) = match v6 {
            false => (3, 13, 1),
            true => (1, 139, 58),
        };
        let quoted = &to_itself(v6, 253, b"12345678")[14..];
        let error = [&[unreachable, 2, 0, 0, 0, 0, 0, 0], quoted].concat();
        for (protocol, payload) in [
            (253, &b"abcdefgh"[..]),
            (132, b"abcdefgh"),
            (icmp, &error),
            (icmp, &[query, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            let sent = to_itself(v6, protocol, payload);
            setup.handle(A, std::slice::from_ref(&sent));
            let written = setup.written();
            let [(id, octets)] = &written[..] else {
                panic!("{protocol}: {written:?}");
            };
            let expected = [&MAC.0[..], &RELAY.0, &sent[12..]].concat();
            assert_eq!((*id, octets), (A, &expected), "{protocol}");
            assert!(setup.received().is_empty(), "{protocol}");
        }
        // To others, and about ports, which are divided.
        let mut elsewhere = to_itself(v6, 253, b"abcdefgh");
        let last = match v6 {
            true => 14 + 39,
            false => 14 + 19,
        };
        elsewhere[last] = 9;
        let quoted = &to_itself(v6, 17, &[1, 2, 3, 4, 0, 8, 0, 0])[14..];
        let error = [&[unreachable, 3, 0, 0, 0, 0, 0, 0], quoted].concat();
        for dropped in [elsewhere, to_itself(v6, icmp, &error)] {
            setup.handle(A, &[dropped]);
            assert!(setup.written().is_empty());
            assert!(setup.received().is_empty());
        }
    }
    setup.assert_balanced();
}
