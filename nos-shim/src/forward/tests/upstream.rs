//! In front of a NOS in another process, which the tests are.

use core::net::IpAddr;

use proptest::prelude::*;

use super::oversize::NOW;
use super::registration;
use crate::arp::{Arp, Operation};
use crate::channel::{Exchange, RelayEnd, pair};
use crate::drop::DropReason;
use crate::frame::{Burst, Frame, FramePool};
use crate::ident::{AttachmentId, Interface, MacAddr, UplinkId, VrfId};
use crate::ndp::{Envelope, Ndp, solicited_node};
use crate::packet::{ETHERTYPE_ARP, Packet, ether_type, protocol};
use crate::ports::{AddressMode, Outside, Policy, PortRange, Restriction, Transport};
use crate::shim::{LinkState, Shim, ShimConfig, UplinkConfig, Upstream};
use crate::test_packets::{Draft, N4, N6, Segment, X4, X6, ip, pool};
use crate::time::Instant;

const UPLINK: UplinkId = UplinkId(3);
const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);
const NOS: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
const CONTAINERS: [AttachmentId; 2] = [AttachmentId(0), AttachmentId(1)];
const LISTEN: [u16; 2] = [5000, 6000];
const EPHEMERAL: [u16; 2] = [40_000, 41_000];
const NOBODYS: u16 = 22;
const MTU: u16 = 1500;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// A next hop of the NOS's that nobody has.
const HOP4: &str = "169.254.0.1";
const HOP6: &str = "fe80::1";

struct Steered {
    shim: Shim,
    relay: RelayEnd,
    pool: FramePool,
}

impl Steered {
    /// In front of a NOS whose MAC address is known.
    fn new() -> Self {
        Self::with(Some(NOS), &[N4, N6])
    }

    fn with(neighbor: Option<MacAddr>, addresses: &[&str]) -> Self {
        let (relay, end) = pair(8);
        let pool = pool();
        let config = ShimConfig {
            seed: 1,
            upstream: Some(Upstream { neighbor }),
            ..ShimConfig::default()
        };
        let mut shim = Shim::new(end, pool.clone(), config);
        let uplink = UplinkConfig {
            id: UPLINK,
            name: "nos".into(),
            vrf: VrfId::DEFAULT,
            mac: OURS,
            addresses: addresses.iter().map(|text| ip(text).into()).collect(),
            mtu: MTU.into(),
            redirects: false,
        };
        shim.set_uplink(uplink, NOW).unwrap();
        shim.set_link(UPLINK, LinkState::Up, NOW).unwrap();
        let mut this = Self { shim, relay, pool };
        this.register(0, Policy::default());
        this.register(1, Policy::default());
        this.frames();
        this
    }

    fn register(&mut self, at: usize, policy: Policy) {
        let mut registration = registration(CONTAINERS[at], LISTEN[at], EPHEMERAL[at]);
        registration.policy = policy;
        let uplinks = self.shim.uplinks(None).rows;
        let own = uplinks[0].config.addresses.iter().map(ipnet::IpNet::addr);
        registration.addresses = own.collect();
        let register = vec![registration];
        let exchange = Exchange {
            register,
            ..Exchange::default()
        };
        self.shim.exchange(&exchange, Instant::ZERO).unwrap();
    }

    /// The NOS sends a packet.
    fn steer(&mut self, mut packet: Packet) {
        packet.set_link(OURS, NOS);
        self.receive(packet.into_frame());
    }

    fn receive(&mut self, frame: Frame) {
        let mut burst: Burst = [frame].into_iter().collect();
        self.shim.handle_burst(UPLINK, &mut burst, NOW);
    }

    /// The first container sends a packet.
    fn send(&mut self, mut packet: Packet) {
        packet.set_interface(Interface::Attachment(CONTAINERS[0]));
        let mut burst = [packet].into_iter().collect();
        assert!(self.relay.send_burst(&mut burst));
        self.shim.poll_channel(NOW, 1);
    }

    /// What containers get: which of them, and what.
    fn delivered(&mut self) -> Vec<(usize, Packet)> {
        let all = core::iter::from_fn(|| self.relay.recv_burst()).flatten();
        let numbered = all.map(|packet| {
            let interface = packet.frame().interface();
            let to = CONTAINERS.map(|id| Some(Interface::Attachment(id)) == interface);
            (to.iter().position(|it| *it).unwrap(), packet)
        });
        numbered.collect()
    }

    /// What the NOS gets.
    fn frames(&mut self) -> Vec<Vec<u8>> {
        let mut sent = Vec::new();
        while let Some((id, burst)) = self.shim.poll_transmit() {
            assert_eq!(id, UPLINK);
            sent.extend(burst.drain(..).map(|frame| frame.bytes().to_vec()));
        }
        sent
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.shim.ledger().drops.of(reason)
    }

    /// Everything is somewhere, and nobody is said anything.
    #[track_caller]
    fn assert_quiet(&mut self) {
        assert_eq!(self.frames(), Vec::<Vec<u8>>::new());
        let delivered = self.delivered();
        assert!(delivered.is_empty(), "{delivered:?}");
        self.assert_balanced();
    }

    #[track_caller]
    fn assert_balanced(&self) {
        let held = self.shim.held() as i128;
        assert_eq!(self.shim.ledger().unaccounted(), held);
    }

    fn tcp(&mut self, (from, to): (&str, &str), ports: (u16, u16), flags: u8) -> Packet {
        let segment = Segment {
            ports,
            flags,
            ..Segment::default()
        };
        Draft::new(from, to).tcp_packet(&mut self.pool, &segment)
    }
}

/// The frame with the MAC addresses that it leaves with.
fn on_wire(packet: &Packet) -> Vec<u8> {
    let macs = [NOS.0, OURS.0].concat();
    [&macs[..], &packet.frame().bytes()[12..]].concat()
}

/// The NOS routes to it here, and counts the hop.
#[test]
fn what_is_for_a_containers_own_address_goes_there_as_it_is() {
    for (from, own, own6) in [(X4, "203.0.113.77", false), (X6, "2001:db8:1::77", true)] {
        let mut lab = Steered::new();
        let mut registration = registration(CONTAINERS[0], LISTEN[0], EPHEMERAL[0]);
        registration.claims.clear();
        registration.mode = AddressMode::Routed;
        registration.addresses = vec![ip(own)];
        let exchange = Exchange {
            register: vec![registration],
            ..Exchange::default()
        };
        lab.shim.exchange(&exchange, NOW).unwrap();
        assert!(lab.frames().is_empty(), "its link is the NOS's to tell");
        let draft = Draft {
            ttl: 1,
            ..Draft::new(from, own)
        };
        let request = if own6 { 128 } else { 8 };
        for packet in [
            draft.udp_packet(&mut lab.pool, (53, NOBODYS), b"x"),
            draft.icmp_packet(&mut lab.pool, (request, 0), 7 << 16, b"x"),
            draft.packet(&mut lab.pool, 47, b"GRE"),
        ] {
            let before = packet.ip().to_vec();
            lab.steer(packet);
            let delivered = lab.delivered();
            let [(0, got)] = &delivered[..] else {
                panic!("{delivered:?}");
            };
            assert_eq!(got.ip(), before);
        }
        // Two requests with one identifier are two: nobody else has the address.
        let back = Draft {
            ttl: 1,
            ..Draft::new(own, from)
        };
        for _ in 0..2 {
            let ping = back.icmp_packet(&mut lab.pool, (request, 0), 7 << 16, b"x");
            let expected = on_wire(&ping);
            lab.send(ping);
            assert_eq!(lab.frames(), [expected]);
        }
        lab.assert_quiet();
    }
}

#[test]
fn what_a_container_sends_leaves_as_it_is() {
    for (own, other) in [(N4, X4), (N6, X6)] {
        let mut lab = Steered::new();
        for to in [other, own] {
            for (ports, flags) in [
                ((EPHEMERAL[0], NOBODYS), SYN),
                ((LISTEN[0], 443), SYN | ACK),
            ] {
                let packet = lab.tcp((own, to), ports, flags);
                let expected = on_wire(&packet);
                lab.send(packet);
                assert_eq!(lab.frames(), [expected], "{to} {ports:?}");
            }
            // A hop limit of one is the NOS's to judge.
            let draft = Draft {
                ttl: 1,
                ..Draft::new(own, to)
            };
            let packet = draft.udp_packet(&mut lab.pool, (EPHEMERAL[0], 53), b"x");
            let expected = on_wire(&packet);
            lab.send(packet);
            assert_eq!(lab.frames(), [expected]);
            // Nobody answers pings and other protocols in its place.
            let request = if own == N4 { 8 } else { 128 };
            let ping = draft.icmp_packet(&mut lab.pool, (request, 0), 7 << 16, b"x");
            let other = draft.packet(&mut lab.pool, 253, b"x");
            let expected = [on_wire(&ping), on_wire(&other)];
            lab.send(ping);
            lab.send(other);
            assert_eq!(lab.frames(), expected);
        }
        lab.assert_quiet();
    }
}

#[test]
fn a_siblings_port_is_reached_without_the_nos() {
    for own in [N4, N6] {
        let mut lab = Steered::new();
        for (port, flags, owner) in [
            (LISTEN[1], SYN, 1),
            (LISTEN[0], SYN, 0),
            (EPHEMERAL[1], ACK, 1),
        ] {
            let packet = lab.tcp((own, own), (EPHEMERAL[0], port), flags);
            lab.send(packet);
            let [(to, packet)] = &lab.delivered()[..] else {
                panic!("{port} is delivered");
            };
            assert_eq!(*to, owner, "{port}");
            assert_eq!(packet.ports().unwrap().destination, port);
        }
        // A listener on a port that a kernel gave is for its own programs alone; the NOS would steer
        // it back, so it is not the one who says so.
        let packet = lab.tcp((own, own), (EPHEMERAL[0], EPHEMERAL[1]), SYN);
        lab.send(packet);
        assert_eq!(lab.dropped(DropReason::NoListener), 1);
        let [(0, answer)] = &lab.delivered()[..] else {
            panic!("the sender is told");
        };
        assert_reset(answer, (EPHEMERAL[1], EPHEMERAL[0]), (own, own));
        lab.assert_quiet();
    }
}

#[test]
fn what_is_steered_here_goes_to_the_owner_of_its_port() {
    for (own, other) in [(N4, X4), (N6, X6)] {
        let mut lab = Steered::new();
        // The NOS itself may be who speaks.
        for from in [other, own] {
            for at in 0..2 {
                for (port, flags) in [(LISTEN[at], SYN), (EPHEMERAL[at], ACK)] {
                    let packet = lab.tcp((from, own), (443, port), flags);
                    lab.steer(packet);
                    let [(to, packet)] = &lab.delivered()[..] else {
                        panic!("{port} is delivered");
                    };
                    assert_eq!((*to, packet.ttl()), (at, Draft::v4().ttl));
                }
            }
        }
        lab.assert_quiet();
    }
}

/// A reset between these ports and these addresses.
#[track_caller]
fn assert_reset(packet: &Packet, ports: (u16, u16), (from, to): (&str, &str)) {
    let found = packet.ports().unwrap();
    assert_eq!((found.source, found.destination), ports);
    assert_eq!((packet.source(), packet.destination()), (ip(from), ip(to)));
    assert_eq!(packet.transport()[13], RST | ACK);
    assert!(packet.transport_checksum_ok());
}

#[test]
fn what_is_nobodys_is_neither_answered_nor_sent_back() {
    for (own, other) in [(N4, X4), (N6, X6)] {
        let mut lab = Steered::new();
        let draft = Draft::new(other, own);
        let request = if own == N4 { 8 } else { 128 };
        let packets = [
            lab.tcp((other, own), (443, NOBODYS), SYN),
            draft.udp_packet(&mut lab.pool, (53, NOBODYS), b"x"),
            draft.icmp_packet(&mut lab.pool, (request, 0), 7 << 16, b"x"),
            draft.packet(&mut lab.pool, 253, b"x"),
            // Not to any address that is shared.
            lab.tcp((own, other), (443, LISTEN[0]), SYN),
            Draft {
                ttl: 1,
                ..Draft::new(own, other)
            }
            .udp_packet(&mut lab.pool, (53, LISTEN[0]), b"x"),
        ];
        let count = packets.len() as u64;
        packets.into_iter().for_each(|packet| lab.steer(packet));
        assert_eq!(lab.dropped(DropReason::Unregistered), count);
        // The port is a container's, the flow is not.
        let packet = lab.tcp((other, own), (443, EPHEMERAL[0]), SYN);
        lab.steer(packet);
        assert_eq!(lab.dropped(DropReason::NoListener), 1);
        let [answer] = &lab.frames()[..] else {
            panic!("the sender is told");
        };
        assert_eq!(answer[..12], [NOS.0, OURS.0].concat());
        let answer = Packet::parse(lab.pool.copy_from(answer).unwrap()).unwrap();
        assert_reset(&answer, (EPHEMERAL[0], 443), (own, other));
        drop(answer);
        // It is the reply to nobody.
        let reply = if own == N4 { 0 } else { 129 };
        let packet = draft.icmp_packet(&mut lab.pool, (reply, 0), 7 << 16, b"x");
        lab.steer(packet);
        assert_eq!(lab.dropped(DropReason::IcmpUnmatched), 1);
        lab.assert_quiet();
    }
}

#[test]
fn replies_and_errors_find_who_has_sent_what_they_are_about() {
    for (own, other) in [(N4, X4), (N6, X6)] {
        let mut lab = Steered::new();
        let (request, reply, unreachable) = match own == N4 {
            true => (8, 0, (3, 1)),
            false => (128, 129, (1, 3)),
        };
        let out = Draft::new(own, other);
        let ping = out.icmp_packet(&mut lab.pool, (request, 0), 7 << 16 | 1, b"x");
        lab.send(ping);
        let datagram = out.udp_packet(&mut lab.pool, (EPHEMERAL[0], 53), b"x");
        let quoted = datagram.frame().bytes()[14..].to_vec();
        lab.send(datagram);
        assert_eq!(lab.frames().len(), 2);

        let back = Draft::new(other, own);
        let answer = back.icmp_packet(&mut lab.pool, (reply, 0), 7 << 16 | 1, b"x");
        lab.steer(answer);
        let error = back.icmp_packet(&mut lab.pool, unreachable, 0, &quoted);
        lab.steer(error);
        let delivered = lab.delivered();
        let to: Vec<_> = delivered.iter().map(|(to, _)| *to).collect();
        assert_eq!(to, [0, 0]);
        lab.assert_quiet();
    }
}

/// Two fragments of a datagram, the second one first if so asked.
fn fragments(lab: &mut Steered, from: &str, to: &str, ports: (u16, u16), id: u16) -> [Packet; 2] {
    let datagram = Draft::new(from, to).udp(ports, &[7; 24]);
    let mut piece = |fragment, part: &[u8]| {
        let draft = Draft {
            fragment,
            identification: id,
            ..Draft::new(from, to)
        };
        draft.packet(&mut lab.pool, protocol::UDP, part)
    };
    [piece(0x2000, &datagram[..16]), piece(2, &datagram[16..])]
}

#[test]
fn fragments_go_where_the_first_goes() {
    let mut lab = Steered::new();
    for (id, reversed) in [(1, false), (2, true)] {
        let mut both = [
            // From outside, to a container and to nobody.
            (false, fragments(&mut lab, X4, N4, (53, LISTEN[1]), id)),
            (false, fragments(&mut lab, X4, N4, (53, NOBODYS), id + 10)),
            // From a container, to a sibling, to the NOS, and elsewhere.
            (
                true,
                fragments(&mut lab, N4, N4, (EPHEMERAL[0], LISTEN[1]), id + 20),
            ),
            (
                true,
                fragments(&mut lab, N4, N4, (EPHEMERAL[0], NOBODYS), id + 30),
            ),
            (
                true,
                fragments(&mut lab, N4, X4, (EPHEMERAL[0], NOBODYS), id + 40),
            ),
        ];
        for (outbound, pieces) in &mut both {
            if reversed {
                pieces.reverse();
            }
            let expected: Vec<_> = pieces.iter().map(on_wire).collect();
            for piece in core::mem::replace(pieces, fragments(&mut lab, X4, N4, (1, 1), 99)) {
                match *outbound {
                    true => lab.send(piece),
                    false => lab.steer(piece),
                }
            }
            let (frames, delivered) = (lab.frames(), lab.delivered());
            match frames.is_empty() {
                true => assert!(delivered.iter().all(|(to, _)| *to == 1)),
                false => {
                    assert!(delivered.is_empty());
                    let mut sorted = (frames, expected);
                    sorted.0.sort();
                    sorted.1.sort();
                    assert_eq!(sorted.0, sorted.1);
                }
            }
        }
        lab.assert_quiet();
    }
    assert_eq!(lab.dropped(DropReason::Unregistered), 4);
}

#[test]
fn a_container_is_told_of_its_own_policy_and_of_what_is_too_long_alone() {
    let mut lab = Steered::new();
    let nowhere = Policy {
        to: Some(std::sync::Arc::default()),
        ..Policy::default()
    };
    lab.register(0, nowhere);
    let packet = lab.tcp((N4, X4), (EPHEMERAL[0], 443), SYN);
    lab.send(packet);
    let [(0, told)] = &lab.delivered()[..] else {
        panic!("it is told");
    };
    assert_eq!(told.icmp(), Some((3, 13)));

    lab.register(0, Policy::default());
    let draft = Draft {
        fragment: 0x4000,
        ..Draft::new(N4, X4)
    };
    let long = draft.udp_packet(&mut lab.pool, (EPHEMERAL[0], 53), &[0; 1500]);
    lab.send(long);
    let [(0, told)] = &lab.delivered()[..] else {
        panic!("it is told");
    };
    assert_eq!(told.icmp(), Some((3, 4)));

    // What the policy keeps out, the NOS is not told.
    let from = Policy {
        from: vec![Restriction {
            transport: Transport::Tcp,
            range: PortRange::new(LISTEN[0], LISTEN[0]).unwrap(),
            from: std::sync::Arc::default(),
        }],
        established: Vec::new(),
        to: None,
        outside: Outside::Drop,
    };
    lab.register(0, from);
    let packet = lab.tcp((X4, N4), (443, LISTEN[0]), SYN);
    lab.steer(packet);
    assert_eq!(lab.dropped(DropReason::PolicyFrom), 1);
    lab.assert_quiet();
}

#[test]
fn while_the_link_is_down_packets_are_dropped() {
    let mut lab = Steered::new();
    lab.shim.set_link(UPLINK, LinkState::Down, NOW).unwrap();
    let packet = lab.tcp((N4, X4), (EPHEMERAL[0], 443), SYN);
    lab.send(packet);
    assert_eq!(lab.dropped(DropReason::DeviceGone), 1);
    // Siblings need no link.
    let packet = lab.tcp((N4, N4), (EPHEMERAL[0], LISTEN[1]), SYN);
    lab.send(packet);
    assert_eq!(lab.delivered().len(), 1);
    lab.shim.set_link(UPLINK, LinkState::Up, NOW).unwrap();
    lab.frames();
    let packet = lab.tcp((N4, X4), (EPHEMERAL[0], 443), SYN);
    lab.send(packet);
    assert_eq!(lab.frames().len(), 1);
    lab.assert_quiet();
}

fn arps(frames: &[Vec<u8>]) -> Vec<Arp> {
    let all = frames
        .iter()
        .filter(|frame| ether_type(frame) == Some(ETHERTYPE_ARP));
    all.map(|frame| Arp::parse(frame).unwrap()).collect()
}

fn arp(lab: &mut Steered, arp: &Arp, to: MacAddr) -> Vec<Vec<u8>> {
    let mut frame = lab.pool.alloc().unwrap();
    arp.write(&mut frame, to).unwrap();
    lab.receive(frame);
    lab.frames()
}

fn v4(text: &str) -> core::net::Ipv4Addr {
    match ip(text) {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => panic!("{text}"),
    }
}

fn v6(text: &str) -> core::net::Ipv6Addr {
    match ip(text) {
        IpAddr::V6(address) => address,
        IpAddr::V4(_) => panic!("{text}"),
    }
}

/// Packets of both families wait for one answer.
#[test]
fn the_nos_is_asked_for_by_an_address_that_it_has() {
    let mut lab = Steered::with(None, &[N4, N6]);
    let four = lab.tcp((N4, X4), (EPHEMERAL[0], 443), SYN);
    let six = lab.tcp((N6, X6), (EPHEMERAL[0], 443), SYN);
    let expected = [on_wire(&four), on_wire(&six)];
    lab.send(four);
    lab.send(six);
    let asked = lab.frames();
    // Without an address of its own: the address is the NOS's, not ours.
    let probe = Arp::request(OURS, [0; 4].into(), v4(N4));
    assert_eq!((arps(&asked), asked.len()), (vec![probe], 1));
    let answered = arp(&mut lab, &probe.reply(NOS), OURS);
    assert_eq!(answered, expected);
    lab.assert_quiet();
}

#[test]
fn a_nos_without_ipv4_is_asked_for_by_neighbor_discovery() {
    let mut lab = Steered::with(None, &[N6]);
    let six = lab.tcp((N6, X6), (EPHEMERAL[0], 443), SYN);
    let expected = on_wire(&six);
    lab.send(six);
    let asked = lab.frames();
    let [question] = &asked[..] else {
        panic!("one question: {asked:?}");
    };
    let question = Packet::parse(lab.pool.copy_from(question).unwrap()).unwrap();
    assert_eq!(question.source(), IpAddr::V6(OURS.link_local()));
    assert_eq!(
        Ndp::parse(&question).unwrap(),
        Ndp::NeighborSolicit {
            target: v6(N6),
            source_link_layer: Some(OURS),
        }
    );
    let advert = Ndp::NeighborAdvert {
        router: true,
        solicited: true,
        overrides: true,
        target: v6(N6),
        target_link_layer: Some(NOS),
    };
    let envelope = Envelope {
        source_mac: NOS,
        destination_mac: OURS,
        source: v6(N6),
        destination: OURS.link_local(),
    };
    let mut frame = lab.pool.alloc().unwrap();
    advert.write(&mut frame, &envelope).unwrap();
    lab.receive(frame);
    assert_eq!(lab.frames(), [expected]);
    lab.assert_quiet();
}

#[test]
fn packets_for_a_nos_that_does_not_answer_are_dropped() {
    let mut lab = Steered::with(None, &[N4]);
    let packet = lab.tcp((N4, X4), (EPHEMERAL[0], 443), SYN);
    lab.send(packet);
    while lab.dropped(DropReason::NeighborFailed) == 0 {
        let at = lab.shim.poll_at().expect("something is due");
        lab.shim.handle_timeout(at);
        let asked = arps(&lab.frames());
        let probe = Arp::request(OURS, [0; 4].into(), v4(N4));
        assert!(asked.iter().all(|arp| *arp == probe), "{asked:?}");
    }
    lab.assert_quiet();
}

#[test]
fn every_next_hop_of_the_nos_is_here() {
    let mut lab = Steered::new();
    for target in [HOP4, X4] {
        let question = Arp::request(NOS, v4(N4), v4(target));
        let answer = arps(&arp(&mut lab, &question, MacAddr::BROADCAST));
        assert_eq!(answer, [question.reply(OURS)], "{target}");
    }
    for (sender, operation) in [
        // An announcement, a probe, and no question.
        (N4, Operation::Request),
        ("0.0.0.0", Operation::Request),
        (X4, Operation::Reply),
    ] {
        let message = Arp {
            operation,
            ..Arp::request(NOS, v4(sender), v4(N4))
        };
        let answer = arp(&mut lab, &message, MacAddr::BROADCAST);
        assert!(answer.is_empty(), "{sender}");
    }
    for (source, target, answers) in [
        ("fe80::a", HOP6, true),
        (N6, HOP6, true),
        ("fe80::a", X6, true),
        (N6, N6, false),
        ("::", HOP6, false),
    ] {
        let question = Ndp::NeighborSolicit {
            target: v6(target),
            source_link_layer: (source != "::").then_some(NOS),
        };
        let envelope = Envelope::to_group(NOS, v6(source), solicited_node(v6(target)));
        let mut frame = lab.pool.alloc().unwrap();
        question.write(&mut frame, &envelope).unwrap();
        lab.receive(frame);
        let frames = lab.frames();
        assert_eq!(!frames.is_empty(), answers, "{source} {target}");
        for frame in frames {
            let answer = Packet::parse(lab.pool.copy_from(&frame).unwrap()).unwrap();
            let expected = Ndp::NeighborAdvert {
                router: true,
                solicited: true,
                overrides: false,
                target: v6(target),
                target_link_layer: Some(OURS),
            };
            assert_eq!(Ndp::parse(&answer), Ok(expected));
        }
    }
    lab.assert_quiet();
}

/// A link that comes up says nothing of addresses that are the NOS's, and their use is no conflict.
#[test]
fn the_addresses_are_the_nos_s_own() {
    let mut lab = Steered::new();
    lab.shim.set_link(UPLINK, LinkState::Down, NOW).unwrap();
    lab.shim.set_link(UPLINK, LinkState::Up, NOW).unwrap();
    let said = lab.frames();
    assert_eq!(arps(&said), []);
    for frame in said {
        let packet = Packet::parse(lab.pool.copy_from(&frame).unwrap()).unwrap();
        assert_ne!(packet.source(), ip(N6));
        if let Ok(Ndp::NeighborAdvert { target, .. }) = Ndp::parse(&packet) {
            assert_eq!(target, OURS.link_local());
        }
    }
    let announcement = Arp::request(NOS, v4(N4), v4(N4));
    assert_eq!(
        arp(&mut lab, &announcement, MacAddr::BROADCAST),
        [[0; 0]; 0]
    );
    let uplinks = lab.shim.uplinks(None).rows;
    assert_eq!(uplinks[0].counters.address_conflicts, 0);
    lab.assert_balanced();
}

#[derive(Clone, Debug)]
struct Sent {
    from_nos: bool,
    /// By index in the addresses.
    addresses: (usize, usize),
    ports: (u16, u16),
    kind: usize,
    fragment: u16,
    id: u16,
    ttl: u8,
    octets: usize,
}

fn sent() -> impl Strategy<Value = Sent> {
    let port = prop::sample::select(vec![
        LISTEN[0],
        LISTEN[1],
        EPHEMERAL[0],
        EPHEMERAL[1],
        NOBODYS,
    ]);
    let fragment = prop::sample::select(vec![0, 0, 0x4000, 0x2000, 2, 0x2002]);
    let parts = (
        0..3_usize,
        0..3_usize,
        0..5_usize,
        0..3_u16,
        0..3_u8,
        0..2_usize,
    );
    (any::<bool>(), parts, (port.clone(), port), fragment).prop_map(
        |(from_nos, (from, to, kind, id, ttl, long), ports, fragment)| Sent {
            from_nos,
            addresses: (from, to),
            ports,
            kind,
            fragment,
            id,
            ttl,
            octets: [24, 1600][long],
        },
    )
}

impl Sent {
    fn packet(&self, lab: &mut Steered) -> Option<Packet> {
        const ADDRESSES: [&str; 3] = [N4, X4, "192.0.2.9"];
        let draft = Draft {
            fragment: self.fragment,
            identification: self.id,
            ttl: self.ttl,
            ..Draft::new(ADDRESSES[self.addresses.0], ADDRESSES[self.addresses.1])
        };
        let body = vec![0; self.octets];
        let (protocol, payload) = match self.kind {
            0 => {
                let segment = Segment {
                    ports: self.ports,
                    flags: [SYN, ACK][usize::from(self.id) % 2],
                    payload: &body,
                    ..Segment::default()
                };
                (protocol::TCP, draft.tcp(&segment))
            }
            1 => (protocol::UDP, draft.udp(self.ports, &body)),
            2 => (
                protocol::ICMP,
                draft.icmp(8, 0, u32::from(self.id) << 16, &body),
            ),
            3 => (
                protocol::ICMP,
                draft.icmp(0, 0, u32::from(self.id) << 16, &body),
            ),
            _ => (253, body),
        };
        let frame = lab.pool.copy_from(&draft.frame(protocol, &payload)).ok()?;
        Packet::parse(frame).ok()
    }
}

/// Resets are never answered.
fn is_reset(pool: &mut FramePool, frame: &[u8]) -> bool {
    let packet = pool
        .copy_from(frame)
        .ok()
        .and_then(|frame| Packet::parse(frame).ok());
    packet.is_some_and(|packet| {
        packet.protocol() == protocol::TCP && packet.transport()[13] & RST != 0
    })
}

proptest! {
    /// Whatever comes from either side is sent, dropped for a reason, or held; nothing that the NOS
    /// sends makes anything go back to it but a reset, which ends there.
    #[test]
    fn nothing_is_lost_and_nothing_goes_round(
        all in prop::collection::vec(sent(), 1..40),
        known in any::<bool>(),
    ) {
        let mut lab = Steered::with(known.then_some(NOS), &[N4, N6]);
        for sent in &all {
            let Some(packet) = sent.packet(&mut lab) else { continue };
            match sent.from_nos {
                true => {
                    lab.steer(packet);
                    for frame in lab.frames() {
                        // Where the NOS is not known, it is asked for first.
                        let asks = !known && ether_type(&frame) == Some(ETHERTYPE_ARP);
                        prop_assert!(asks || is_reset(&mut lab.pool, &frame));
                    }
                }
                false => {
                    lab.send(packet);
                    lab.frames();
                }
            }
            lab.delivered();
            lab.assert_balanced();
        }
        // After all that was held for has come or not.
        for _ in 0..100 {
            let Some(at) = lab.shim.poll_at() else { break };
            lab.shim.handle_timeout(at);
            lab.frames();
            lab.assert_balanced();
        }
        prop_assert_eq!(lab.shim.held(), 0);
    }
}
