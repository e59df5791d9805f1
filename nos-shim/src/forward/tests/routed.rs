//! Containers with addresses of their own.

use core::net::IpAddr;

use super::oversize::{NARROW, NOS, NOW, Nos, STATION, UPLINK};
use super::registration;
use crate::arp::{Arp, Operation};
use crate::channel::Exchange;
use crate::drop::DropReason;
use crate::frame::Frame;
use crate::ident::{AttachmentId, Interface, MacAddr, NetworkId};
use crate::ndp::{Envelope, Ndp, solicited_node};
use crate::packet::{Fragment, Packet, protocol};
use crate::ports::{AddressMode, Registration, RegistrationRefused};
use crate::shim::LinkState;
use crate::test_packets::{Draft, N4, N6, Segment, X4, X6, ip};

const OWN: AttachmentId = AttachmentId(2);
/// On the link of the uplink.
const R4: &str = "203.0.113.77";
const R6: &str = "2001:db8:1::77";
/// On no link.
const FAR4: &str = "198.51.100.77";
const FAR6: &str = "2001:db8:77::77";
const MTU: u16 = 1500;
/// A protocol that the NOS does not divide.
const GRE: u8 = 47;
const DF: u16 = 0x4000;

fn routed(id: AttachmentId, addresses: &[&str]) -> Registration {
    Registration {
        mode: AddressMode::Routed,
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        claims: Vec::new(),
        mtu: MTU,
        ..registration(id, 1, 2)
    }
}

impl Nos {
    fn register(&mut self, wanted: Vec<Registration>) -> Result<(), RegistrationRefused> {
        let exchange = Exchange {
            register: wanted,
            ..Exchange::default()
        };
        let done = self.shim.exchange(&exchange, NOW);
        done.map_err(|refused| refused.reason)
    }

    fn withdraw(&mut self, id: AttachmentId) {
        let exchange = Exchange {
            withdraw: vec![id],
            ..Exchange::default()
        };
        self.shim.exchange(&exchange, NOW).unwrap();
    }

    /// Everything that leaves by the uplink, as it is.
    fn frames(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some((_, burst)) = self.shim.poll_transmit() {
            frames.extend(burst.drain(..));
        }
        frames
    }

    /// The one packet that a container gets.
    #[track_caller]
    fn one_for(&mut self, id: AttachmentId) -> Packet {
        let mut delivered = self.delivered();
        assert_eq!(delivered.len(), 1, "{delivered:?}");
        let packet = delivered.remove(0);
        assert_eq!(packet.frame().interface(), Some(Interface::Attachment(id)));
        self.assert_balanced();
        packet
    }

    #[track_caller]
    fn one_sent(&mut self) -> Packet {
        let mut sent = self.sent();
        assert_eq!(sent.len(), 1, "{sent:?}");
        self.assert_balanced();
        sent.remove(0)
    }
}

/// With a container that has all these addresses.
fn nos() -> Nos {
    let mut nos = Nos::new();
    nos.register(vec![routed(OWN, &[R4, R6, FAR4, FAR6])])
        .unwrap();
    nos.frames();
    nos
}

fn pairs() -> [(&'static str, &'static str); 4] {
    [(X4, R4), (X4, FAR4), (X6, R6), (X6, FAR6)]
}

fn is_arp_for(frame: &Frame, address: &str) -> bool {
    let arp = Arp::parse(frame.bytes());
    arp.is_ok_and(|arp| IpAddr::V4(arp.sender_ip) == ip(address) && arp.sender_mac == NOS)
}

/// Whether this says that the NOS has an IPv6 address.
fn is_advert_of(frame: Frame, address: &str) -> bool {
    let Ok(packet) = Packet::parse(frame) else {
        return false;
    };
    let ndp = Ndp::parse(&packet);
    matches!(ndp, Ok(Ndp::NeighborAdvert { target, target_link_layer, .. })
        if IpAddr::V6(target) == ip(address) && target_link_layer == Some(NOS))
}

#[test]
fn whatever_comes_to_such_an_address_goes_there_with_one_hop_less() {
    for (from, to) in pairs() {
        let mut nos = nos();
        let draft = Draft::new(from, to);
        let icmp = if draft.source.is_ipv6() { 128 } else { 8 };
        let packets = [
            draft.udp_packet(&mut nos.pool, (1, 2), b"x"),
            draft.tcp_packet(&mut nos.pool, &Segment::default()),
            draft.icmp_packet(&mut nos.pool, (icmp, 0), 0x0077_0001, b"ping"),
            draft.packet(&mut nos.pool, GRE, &[0; 8]),
        ];
        for packet in packets {
            let before = (packet.protocol(), packet.transport().to_vec());
            nos.receive(packet);
            let got = nos.one_for(OWN);
            assert_eq!((got.protocol(), got.transport().to_vec()), before);
            assert_eq!(got.ttl(), draft.ttl - 1);
            assert!(nos.sent().is_empty(), "the NOS says nothing to it");
        }
    }
}

#[test]
fn fragments_pass_as_they_come() {
    let mut nos = nos();
    // A later one without the first.
    let later = Draft {
        fragment: 185,
        ..Draft::new(X4, R4)
    };
    let packet = later.packet(&mut nos.pool, protocol::UDP, &[7; 64]);
    nos.receive(packet);
    assert_eq!(nos.one_for(OWN).fragment(), Fragment::Later);
}

#[test]
fn what_has_no_hop_left_is_told_so() {
    for (from, to) in pairs() {
        let mut nos = nos();
        let draft = Draft {
            ttl: 1,
            ..Draft::new(from, to)
        };
        let packet = draft.udp_packet(&mut nos.pool, (1, 2), b"x");
        nos.receive(packet);
        let error = nos.one_sent();
        assert!(nos.delivered().is_empty());
        let own = if error.is_ipv6() { N6 } else { N4 };
        assert_eq!((error.source(), error.destination()), (ip(own), ip(from)));
        let expected = if error.is_ipv6() { (3, 0) } else { (11, 0) };
        assert_eq!(error.icmp(), Some(expected));
        // And the container, of what it sends: by the address by which it knows its router.
        let draft = Draft {
            ttl: 1,
            ..Draft::new(to, from)
        };
        let packet = draft.udp_packet(&mut nos.pool, (1, 2), b"x");
        nos.outbound(OWN, packet);
        let error = nos.one_for(OWN);
        assert_eq!((error.source(), error.destination()), (ip(own), ip(to)));
        assert_eq!(error.icmp(), Some(expected));
        assert_eq!(nos.shim.ledger().drops.of(DropReason::TtlExceeded), 2);
    }
}

#[test]
fn what_it_sends_leaves_as_by_a_router() {
    for (to, from) in pairs() {
        let mut nos = nos();
        let draft = Draft::new(from, to);
        let icmp = if draft.source.is_ipv6() { 128 } else { 8 };
        // Again when the way is known.
        for _ in 0..2 {
            let packet = draft.icmp_packet(&mut nos.pool, (icmp, 0), 0x0077_0001, b"ping");
            let before = packet.transport().to_vec();
            nos.outbound(OWN, packet);
            let sent = nos.one_sent();
            assert_eq!(sent.ttl(), draft.ttl - 1);
            assert_eq!(sent.transport(), before, "with its own identifier");
            assert_eq!((sent.source_mac(), sent.destination_mac()), (NOS, STATION));
        }
    }
}

#[test]
fn a_sibling_that_shares_the_address_of_the_nos_is_no_router_away() {
    for (own, shared) in [(R4, N4), (R6, N6)] {
        let mut nos = nos();
        let there = Draft::new(shared, own);
        let packet = there.udp_packet(&mut nos.pool, (5000, 7), b"x");
        nos.outbound(NARROW, packet);
        assert_eq!(nos.one_for(OWN).ttl(), there.ttl);
        let back = Draft::new(own, shared);
        let packet = back.udp_packet(&mut nos.pool, (7, 5000), b"x");
        nos.outbound(OWN, packet);
        assert_eq!(nos.one_for(NARROW).ttl(), back.ttl);
    }
}

#[test]
fn two_of_them_are_two_hosts_and_apart_in_different_networks() {
    const OTHER: AttachmentId = AttachmentId(3);
    for (own, other) in [(R4, "203.0.113.78"), (R6, "2001:db8:1::78")] {
        let mut nos = nos();
        nos.register(vec![routed(OTHER, &[other])]).unwrap();
        nos.frames();
        let draft = Draft::new(own, other);
        let packet = draft.udp_packet(&mut nos.pool, (1, 2), b"x");
        nos.outbound(OWN, packet);
        assert_eq!(nos.one_for(OTHER).ttl(), draft.ttl - 1);
        let elsewhere = Registration {
            network: NetworkId(7),
            ..routed(OTHER, &[other])
        };
        nos.register(vec![elsewhere]).unwrap();
        let packet = draft.udp_packet(&mut nos.pool, (1, 2), b"x");
        nos.outbound(OWN, packet);
        let refused = nos.one_for(OWN);
        let prohibited = if refused.is_ipv6() { (1, 1) } else { (3, 13) };
        assert_eq!(refused.icmp(), Some(prohibited));
        let dropped = nos.shim.ledger().drops.of(DropReason::OtherNetwork);
        assert_eq!(dropped, 1);
    }
}

#[test]
fn what_is_too_long_for_its_link_is_told_or_cut() {
    let mut nos = nos();
    let payload = vec![7; 3000];
    for (from, to) in [(X4, R4), (X6, R6)] {
        let draft = Draft {
            fragment: DF,
            ..Draft::new(from, to)
        };
        let packet = draft.udp_packet(&mut nos.pool, (1, 2), &payload);
        nos.receive(packet);
        let error = nos.one_sent();
        let too_big = if error.is_ipv6() { (2, 0) } else { (3, 4) };
        assert_eq!(error.icmp(), Some(too_big));
        assert_eq!(error.transport()[6..8], MTU.to_be_bytes());
        assert!(nos.delivered().is_empty());
    }
    let draft = Draft::new(X4, R4);
    let packet = draft.udp_packet(&mut nos.pool, (1, 2), &payload);
    nos.receive(packet);
    let fragments = nos.delivered();
    assert_eq!(fragments.len(), 3);
    for fragment in &fragments {
        assert!(fragment.wire_len() <= usize::from(MTU));
        assert_eq!(fragment.ttl(), draft.ttl - 1);
    }
    nos.assert_balanced();
}

#[test]
fn the_nos_stands_for_it_on_the_link_where_its_address_is() {
    let mut nos = Nos::new();
    nos.register(vec![routed(OWN, &[R4, R6, FAR4, FAR6])])
        .unwrap();
    let told = nos.frames();
    assert!(told.iter().any(|frame| is_arp_for(frame, R4)), "announced");
    assert!(!told.iter().any(|frame| is_arp_for(frame, FAR4)));
    let adverts = |told: Vec<Frame>, of: &str| told.into_iter().any(|it| is_advert_of(it, of));
    assert!(adverts(told, R6), "announced");
    let IpAddr::V6(own) = ip(R6) else { panic!() };
    assert!(
        nos.shim
            .groups(UPLINK)
            .contains(&solicited_node(own).into())
    );
    assert!(asked(&mut nos, R4, R6));
    assert!(
        !asked(&mut nos, FAR4, FAR6),
        "who is on no link is not asked for"
    );
    // When the link is back, all is told again.
    nos.shim.set_link(UPLINK, LinkState::Down, NOW).unwrap();
    nos.shim.set_link(UPLINK, LinkState::Up, NOW).unwrap();
    let told = nos.frames();
    assert!(told.iter().any(|frame| is_arp_for(frame, R4)));
    assert!(adverts(told, R6));
    nos.withdraw(OWN);
    nos.frames();
    assert!(!asked(&mut nos, R4, R6));
    assert!(
        !nos.shim
            .groups(UPLINK)
            .contains(&solicited_node(own).into())
    );
}

/// Whether the NOS says that both addresses are its own: to who asks everybody, and to who asks it alone.
fn asked(nos: &mut Nos, v4: &str, v6: &str) -> bool {
    let (IpAddr::V4(asker4), IpAddr::V4(v4)) = (ip(X4), ip(v4)) else {
        panic!();
    };
    let (IpAddr::V6(asker6), IpAddr::V6(v6)) = (ip(X6), ip(v6)) else {
        panic!();
    };
    let mut answers = Vec::new();
    let question = Arp::request(STATION, asker4, v4);
    for to in [MacAddr::BROADCAST, NOS] {
        let mut frame = nos.pool.alloc().unwrap();
        question.write(&mut frame, to).unwrap();
        nos.receive_frame(frame);
        let reply = nos.frames().pop();
        let reply = reply.and_then(|reply| Arp::parse(reply.bytes()).ok());
        answers.push(reply.is_some_and(|it| {
            it.operation == Operation::Reply && it.sender_ip == v4 && it.sender_mac == NOS
        }));
    }
    let question = Ndp::NeighborSolicit {
        target: v6,
        source_link_layer: Some(STATION),
    };
    let to_group = Envelope::to_group(STATION, asker6, solicited_node(v6));
    let to_it = Envelope {
        destination_mac: NOS,
        destination: v6,
        ..to_group
    };
    for envelope in [to_group, to_it] {
        let mut frame = nos.pool.alloc().unwrap();
        question.write(&mut frame, &envelope).unwrap();
        nos.receive_frame(frame);
        let answer = nos.frames().pop();
        answers.push(answer.is_some_and(|it| is_advert_of(it, &v6.to_string())));
        nos.delivered();
    }
    assert!(
        answers.windows(2).all(|two| two[0] == two[1]),
        "{answers:?}"
    );
    answers[0]
}

#[test]
fn an_address_is_one_containers_or_the_noss() {
    const OTHER: AttachmentId = AttachmentId(3);
    let mut nos = nos();
    for (wanted, refused) in [
        (
            routed(OTHER, &[N4]),
            "203.0.113.1 is refused: it belongs to 'NOS'",
        ),
        (
            routed(OTHER, &[R6]),
            "2001:db8:1::77 is refused: it belongs to 'c2'",
        ),
        (
            routed(OTHER, &["224.0.0.1"]),
            "224.0.0.1 is no address that a host can have",
        ),
        (
            routed(OTHER, &["fe80::1"]),
            "fe80::1 is no address that a host can have",
        ),
        (
            Registration {
                claims: registration(OTHER, 1, 2).claims,
                ..routed(OTHER, &["203.0.113.79"])
            },
            "an attachment with addresses of its own has no port ranges",
        ),
    ] {
        let reason = nos.register(vec![wanted]).unwrap_err();
        assert_eq!(reason.to_string(), refused);
    }
    // It may change hands at once, and is nobody's when its owner goes.
    let [to, from] = [routed(OTHER, &[R4]), routed(OWN, &[R6])];
    nos.register(vec![to, from]).unwrap();
    nos.frames();
    let packet = Draft::new(X4, R4).udp_packet(&mut nos.pool, (1, 2), b"x");
    nos.receive(packet);
    nos.one_for(OTHER);
    nos.withdraw(OTHER);
    nos.frames();
    let packet = Draft::new(X4, R4).udp_packet(&mut nos.pool, (1, 2), b"x");
    nos.receive(packet);
    assert!(nos.delivered().is_empty());
    let shared = registration(OWN, 9, 10);
    nos.register(vec![shared]).unwrap();
    let packet = Draft::new(X6, R6).udp_packet(&mut nos.pool, (1, 2), b"x");
    nos.receive(packet);
    assert!(nos.delivered().is_empty(), "it has given it up");
}
