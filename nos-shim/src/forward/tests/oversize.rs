//! Packets that are longer than a container's link takes.

use core::net::IpAddr;
use core::num::NonZeroU16;

use crate::arp::Arp;
use crate::channel::{Exchange, NosEvent, RelayEnd, ToRelay, pair};
use crate::drop::DropReason;
use crate::frame::{Burst, Checksum, Ecn, Frame, FramePool, GsoKind, Offload, Segmentation};
use crate::ident::{AttachmentId, Interface, MacAddr, UplinkId, VrfId};
use crate::ndp::{Envelope, Ndp, solicited_node};
use crate::packet::{Fragment, Packet, protocol};
use crate::ports::{AddressMode, Claim, ClaimKind, Policy, PortRange, Registration, Transport};
use crate::services::{Service, ServiceConfig};
use crate::shim::{LinkState, Shim, ShimConfig, UplinkConfig};
use crate::test_packets::{Draft, N4, N6, Segment, X4, X6, ip, pool};
use crate::time::Instant;

pub(super) const NOW: Instant = Instant::from_millis(1000);
pub(super) const UPLINK: UplinkId = UplinkId(0);
/// Another address of the NOS, which no container has.
pub(super) const OTHER4: &str = "203.0.113.5";
pub(super) const OTHER6: &str = "2001:db8:1::5";
pub(super) const NOS: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);
pub(super) const STATION: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
/// Two containers with links of different MTU, on ports of their own.
pub(super) const NARROW: AttachmentId = AttachmentId(0);
pub(super) const WIDE: AttachmentId = AttachmentId(1);
const NARROW_PORT: u16 = 5000;
const WIDE_PORT: u16 = 6000;
const NARROW_MTU: u16 = 1500;
const MTU: usize = 9000;
/// Where fragments may be made.
const DF: u16 = 0x4000;

pub(super) struct Nos {
    pub(super) shim: Shim,
    relay: RelayEnd,
    pub(super) pool: FramePool,
}

impl Nos {
    /// With an outsider that is known.
    pub(super) fn new() -> Self {
        Self::with(ShimConfig::default().flows)
    }

    /// The same with a table of so many flows.
    pub(super) fn with(flows: usize) -> Self {
        let (relay, end) = pair(8);
        let pool = pool();
        let mut shim = Shim::new(
            end,
            pool.clone(),
            ShimConfig {
                seed: 1,
                flows,
                ..ShimConfig::default()
            },
        );
        let addresses = [(N4, 24), (OTHER4, 24), (N6, 64), (OTHER6, 64)];
        let uplink = UplinkConfig {
            id: UPLINK,
            name: "up0".into(),
            vrf: VrfId::DEFAULT,
            mac: NOS,
            addresses: addresses
                .map(|(address, len)| format!("{address}/{len}").parse().unwrap())
                .into(),
            mtu: MTU,
            redirects: true,
        };
        shim.set_uplink(uplink, NOW).unwrap();
        shim.set_link(UPLINK, LinkState::Up, NOW).unwrap();
        let services = ServiceConfig {
            ping: true,
            services: vec![Service::Echo],
            ..ServiceConfig::default()
        };
        let exchange = Exchange {
            withdraw: Vec::new(),
            register: vec![
                registration(NARROW, NARROW_PORT, NARROW_MTU),
                registration(WIDE, WIDE_PORT, 9000),
            ],
            services: Some((VrfId::DEFAULT, services)),
        };
        shim.exchange(&exchange, Instant::ZERO).unwrap();
        let mut nos = Self { shim, relay, pool };
        nos.sent();
        nos.introduce();
        nos.sent();
        nos
    }

    /// The outsider asks for the NOS, and so is known to it.
    fn introduce(&mut self) {
        self.know(X4);
        self.know(X6);
    }

    /// A host on the link, at the station, asks for the NOS, and so is known to it.
    pub(super) fn know(&mut self, host: &str) {
        let mut frame = self.pool.alloc().unwrap();
        match (ip(host), ip(N4), ip(N6)) {
            (IpAddr::V4(host), IpAddr::V4(target), _) => {
                let question = Arp::request(STATION, host, target);
                question.write(&mut frame, MacAddr::BROADCAST).unwrap();
            }
            (IpAddr::V6(host), _, IpAddr::V6(target)) => {
                let question = Ndp::NeighborSolicit {
                    target,
                    source_link_layer: Some(STATION),
                };
                let envelope = Envelope::to_group(STATION, host, solicited_node(target));
                question.write(&mut frame, &envelope).unwrap();
            }
            _ => panic!("{host}"),
        }
        self.receive_frame(frame);
        self.sent();
    }

    /// A packet from the network.
    pub(super) fn receive(&mut self, mut packet: Packet) {
        packet.set_link(NOS, STATION);
        self.receive_frame(packet.into_frame());
    }

    /// A frame from the network.
    pub(super) fn receive_frame(&mut self, frame: Frame) {
        let mut burst: Burst = [frame].into_iter().collect();
        self.shim.handle_burst(UPLINK, &mut burst, NOW);
    }

    /// A packet from a container.
    pub(super) fn outbound(&mut self, id: AttachmentId, mut packet: Packet) {
        packet.set_interface(Interface::Attachment(id));
        let mut burst = [packet].into_iter().collect();
        assert!(self.relay.send_burst(&mut burst));
        self.shim.poll_channel(NOW, 1);
    }

    /// What containers get.
    pub(super) fn delivered(&mut self) -> Vec<Packet> {
        core::iter::from_fn(|| self.relay.recv_burst())
            .flatten()
            .collect()
    }

    /// What the operator is to know.
    pub(super) fn events(&mut self) -> Vec<NosEvent> {
        let messages = core::iter::from_fn(|| self.relay.recv_control());
        let events = messages.filter_map(|message| match message {
            ToRelay::Event(event) => Some(event),
            _ => None,
        });
        events.collect()
    }

    /// What leaves by the uplink.
    pub(super) fn sent(&mut self) -> Vec<Packet> {
        let mut sent = Vec::new();
        while let Some((_, burst)) = self.shim.poll_transmit() {
            let packets = burst.drain(..).map(Packet::parse);
            sent.extend(packets.filter_map(Result::ok));
        }
        sent
    }

    #[track_caller]
    pub(super) fn assert_balanced(&self) {
        let held = self.shim.held() as i128;
        assert_eq!(self.shim.ledger().unaccounted(), held);
    }
}

fn registration(id: AttachmentId, port: u16, mtu: u16) -> Registration {
    let claim = |transport| Claim {
        transport,
        range: PortRange::new(port, port).unwrap(),
        kind: ClaimKind::Listen,
    };
    Registration {
        attachment: id,
        name: format!("c{}", id.0).into(),
        vrf: VrfId::DEFAULT,
        network: crate::ident::NetworkId::DEFAULT,
        mode: AddressMode::Shared,
        addresses: vec![ip(N4), ip(N6)],
        policy: Policy::default(),
        claims: [Transport::Tcp, Transport::Udp].map(claim).into(),
        link_local: None,
        router: MacAddr([2; 6]).link_local(),
        mtu,
    }
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| n as u8).collect()
}

/// Whether these are all fragments of one datagram, in order, each short enough and for `to`; and
/// the datagram's payload, transport header included.
#[track_caller]
fn joined(fragments: &[Packet], to: AttachmentId, mtu: u16) -> Vec<u8> {
    let mut whole = Vec::new();
    for (n, fragment) in fragments.iter().enumerate() {
        let interface = Some(Interface::Attachment(to));
        assert_eq!(fragment.frame().interface(), interface);
        assert!(fragment.wire_len() <= usize::from(mtu), "fragment {n}");
        let kind = if n == 0 {
            Fragment::First
        } else {
            Fragment::Later
        };
        assert_eq!(fragment.fragment(), kind);
        whole.extend(fragment.transport());
    }
    whole
}

#[test]
fn what_may_be_fragmented_reaches_a_container_in_fragments() {
    let mut nos = Nos::new();
    let draft = Draft::v4();
    let udp = draft.udp((53, NARROW_PORT), &payload(3000));
    let packet = draft.packet(&mut nos.pool, protocol::UDP, &udp);
    nos.receive(packet);
    let delivered = nos.delivered();
    assert_eq!(delivered.len(), 3);
    assert_eq!(joined(&delivered, NARROW, NARROW_MTU), udp);
    nos.assert_balanced();
}

#[test]
fn what_must_not_be_fragmented_is_answered_with_the_containers_mtu() {
    let mut nos = Nos::new();
    for (draft, kind, code) in [
        (
            Draft {
                fragment: DF,
                ..Draft::v4()
            },
            3,
            4,
        ),
        (Draft::v6(), 2, 0),
    ] {
        let packet = draft.udp_packet(&mut nos.pool, (53, NARROW_PORT), &payload(3000));
        nos.receive(packet);
        assert_eq!(nos.delivered().len(), 0);
        let sent = nos.sent();
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].icmp(), Some((kind, code)));
        assert_eq!(sent[0].source(), draft.destination);
        assert_eq!(sent[0].destination(), draft.source);
        let [high, low] = NARROW_MTU.to_be_bytes();
        assert_eq!(sent[0].transport()[6..8], [high, low]);
        // The other container takes it.
        let packet = draft.udp_packet(&mut nos.pool, (53, WIDE_PORT), &payload(3000));
        nos.receive(packet);
        let delivered = nos.delivered();
        assert_eq!(delivered.len(), 1);
        let interface = Some(Interface::Attachment(WIDE));
        assert_eq!(delivered[0].frame().interface(), interface);
    }
    assert_eq!(nos.shim.ledger().drops.of(DropReason::TooBig), 2);
    nos.assert_balanced();
}

#[test]
fn siblings_are_told_of_each_others_mtu() {
    let mut nos = Nos::new();
    let draft = Draft {
        fragment: DF,
        ..Draft::new(N4, N4)
    };
    let packet = draft.udp_packet(&mut nos.pool, (WIDE_PORT, NARROW_PORT), &payload(3000));
    nos.outbound(WIDE, packet);
    let delivered = nos.delivered();
    assert_eq!(delivered.len(), 1);
    let error = &delivered[0];
    let interface = Some(Interface::Attachment(WIDE));
    assert_eq!(error.frame().interface(), interface);
    assert_eq!(error.icmp(), Some((3, 4)));
    assert_eq!(error.source(), ip("192.0.0.8"));
    nos.assert_balanced();
}

/// `ping -s 3000` from a container to an address of the NOS.
#[test]
fn a_long_echo_reply_to_a_container_is_fragmented() {
    let mut nos = Nos::new();
    for (draft, request, reply) in [
        (Draft::new(N4, OTHER4), 8, 0),
        (Draft::new(N6, OTHER6), 128, 129),
    ] {
        let packet = draft.icmp_packet(&mut nos.pool, (request, 0), 7 << 16 | 1, &payload(3000));
        nos.outbound(NARROW, packet);
        let delivered = nos.delivered();
        assert_eq!(delivered.len(), 3);
        let whole = joined(&delivered, NARROW, NARROW_MTU);
        assert_eq!((whole[0], whole.len()), (reply, 3008));
        assert_eq!(whole[8..], payload(3000));
    }
    nos.assert_balanced();
}

/// The uplink takes longer packets than the container that asks.
#[test]
#[cfg(feature = "stack")]
fn a_services_long_answer_to_a_container_is_fragmented() {
    let mut nos = Nos::new();
    for draft in [Draft::new(N4, OTHER4), Draft::new(N6, OTHER6)] {
        let packet = draft.udp_packet(&mut nos.pool, (NARROW_PORT, 7), &payload(3000));
        nos.outbound(NARROW, packet);
        let delivered = nos.delivered();
        assert_eq!(delivered.len(), 3);
        let whole = joined(&delivered, NARROW, NARROW_MTU);
        assert_eq!(whole[8..], payload(3000));
    }
    nos.assert_balanced();
}

#[test]
fn super_frames_count_by_segment() {
    let mut nos = Nos::new();
    let draft = Draft {
        fragment: DF,
        ..Draft::v4()
    };
    let super_frame = |nos: &mut Nos, size: u16| {
        let segment = Segment {
            ports: (53, NARROW_PORT),
            payload: &payload(6000),
            ..Segment::default()
        };
        let packet = draft.tcp_packet(&mut nos.pool, &segment);
        let offset = packet.transport_offset() as u16;
        let mut frame = packet.into_frame();
        frame.set_offload(Offload {
            checksum: Checksum::Partial {
                start: offset,
                offset: 16,
            },
            segmentation: Some(Segmentation {
                kind: GsoKind::TcpV4,
                size: NonZeroU16::new(size).unwrap(),
                ecn: Ecn::Unmarked,
                tunnel: None,
            }),
        });
        Packet::parse(frame).unwrap()
    };
    let packet = super_frame(&mut nos, 1460);
    let len = packet.frame().len();
    nos.receive(packet);
    let delivered = nos.delivered();
    assert_eq!(delivered.len(), 1);
    assert_eq!(delivered[0].frame().len(), len, "untouched");
    let packet = super_frame(&mut nos, 1461);
    nos.receive(packet);
    assert_eq!(nos.delivered().len(), 0);
    assert_eq!(nos.sent()[0].icmp(), Some((3, 4)));
    nos.assert_balanced();
}
