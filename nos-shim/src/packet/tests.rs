use core::num::NonZeroU16;

use proptest::collection::vec;
use proptest::prelude::*;

use super::craft::{Craft, Extension, Ip, Tcp, Transport, V4, V6, crafts, packet, super_crafts};
use super::*;
use crate::frame::FramePool;

/// A frame, and what must become of it: start, protocol and payload of the transport layer.
struct Case {
    why: &'static str,
    frame: Vec<u8>,
    expected: Result<(usize, u8, usize), DropReason>,
}

fn case(
    why: &'static str,
    frame: Vec<u8>,
    expected: Result<(usize, u8, usize), DropReason>,
) -> Case {
    Case {
        why,
        frame,
        expected,
    }
}

fn tcp() -> Transport {
    Transport::Tcp(Tcp::default())
}

fn v4() -> Vec<u8> {
    Craft::v4(tcp(), b"payload").frame()
}

fn v6(extensions: Vec<Extension>) -> Vec<u8> {
    Craft::v6(extensions, tcp(), b"payload").frame()
}

/// `frame` with `octets` at `at`; the IPv4 header checksum is made right again.
fn with(mut frame: Vec<u8>, at: usize, octets: &[u8]) -> Vec<u8> {
    frame[at..at + octets.len()].copy_from_slice(octets);
    if frame[12..14] == [8, 0] && at != 24 {
        let end = (14 + usize::from(frame[14] & 0xf) * 4).min(frame.len());
        frame[24..26].fill(0);
        let checksum = Sum::ZERO.plus(&frame[14..end]).checksum();
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    }
    frame
}

fn cut(mut frame: Vec<u8>, len: usize) -> Vec<u8> {
    frame.truncate(len);
    frame
}

fn fragment(units: u16, more: bool) -> Extension {
    Extension::Fragment {
        units,
        more,
        identification: 9,
    }
}

fn routing(left: u8) -> Extension {
    Extension::Routing {
        left,
        last: "2001:db8::9".parse().unwrap(),
    }
}

/// An IPv4 fragment of `octets`, of a datagram of `protocol`.
fn v4_fragment(protocol: u8, field: u16, octets: &[u8]) -> Vec<u8> {
    V4::default().packet(protocol, field, octets)
}

fn v6_fragment(protocol: u8, units: u16, more: bool, octets: &[u8]) -> Vec<u8> {
    let v6 = V6 {
        extensions: vec![fragment(units, more)],
        ..V6::default()
    };
    v6.packet(protocol, octets)
}

fn link_cases() -> Vec<Case> {
    use DropReason::{EtherType, FrameLength};
    vec![
        case(
            "shorter than an Ethernet header",
            vec![0; 13],
            Err(FrameLength),
        ),
        case("nothing", Vec::new(), Err(FrameLength)),
        case(
            "ARP is for others to parse",
            with(v6(vec![]), 12, &[8, 6]),
            Err(EtherType),
        ),
        case(
            "802.1Q tag",
            with(v6(vec![]), 12, &[0x81, 0]),
            Err(EtherType),
        ),
        case(
            "802.3 length",
            with(v6(vec![]), 12, &[0, 64]),
            Err(EtherType),
        ),
    ]
}

fn ipv4_cases() -> Vec<Case> {
    use DropReason::{IpLength, Ipv4Checksum, Ipv4Header, TransportHeader};
    let options = |len| {
        let mut craft = Craft::v4(tcp(), b"payload");
        if let Ip::V4(v4) = &mut craft.ip {
            v4.options = vec![1; len];
        }
        craft.frame()
    };
    let other = Craft::v4(Transport::Other(89), b"").frame();
    vec![
        case("plain", v4(), Ok((34, 6, 54))),
        case("RFC 791 §3.1: no header", cut(v4(), 33), Err(IpLength)),
        case(
            "RFC 1812 §5.2.2 (4): version",
            with(v4(), 14, &[0x65]),
            Err(Ipv4Header),
        ),
        case(
            "RFC 1812 §5.2.2 (3): IHL of 16 octets",
            with(v4(), 14, &[0x44]),
            Err(Ipv4Header),
        ),
        case(
            "RFC 1812 §5.2.2 (2): checksum",
            with(v4(), 24, &[0, 0]),
            Err(Ipv4Checksum),
        ),
        case(
            "RFC 1812 §5.2.2 (5): longer than the frame",
            with(v4(), 16, &[0, 48]),
            Err(IpLength),
        ),
        case(
            "RFC 1812 §5.2.2 (5): shorter than its header",
            with(v4(), 16, &[0, 19]),
            Err(IpLength),
        ),
        case(
            "header longer than the packet",
            with(v4(), 14, &[0x4f]),
            Err(IpLength),
        ),
        case(
            "length zero of segmentation in devices",
            with(v4(), 16, &[0, 0]),
            Err(IpLength),
        ),
        case("a header alone", other, Ok((34, 89, 34))),
        case("options", options(4), Ok((38, 6, 58))),
        case("as many options as fit", options(40), Ok((74, 6, 94))),
        case(
            "Ethernet padding is cut off",
            [v4(), vec![0; 6]].concat(),
            Ok((34, 6, 54)),
        ),
        case(
            "reserved flag, which Linux ignores",
            with(v4(), 20, &[0x80, 0]),
            Ok((34, 6, 54)),
        ),
        case(
            "TTL zero is for the router to judge",
            with(v4(), 22, &[0]),
            Ok((34, 6, 54)),
        ),
        case(
            "total length ends in the TCP header",
            with(v4(), 16, &[0, 39]),
            Err(TransportHeader),
        ),
        case(
            "ICMPv6 in IPv4 is any protocol",
            v4_fragment(58, 0, &[]),
            Ok((34, 58, 34)),
        ),
        case(
            "no authentication header is followed",
            v4_fragment(51, 0, &[6; 24]),
            Ok((34, 51, 34)),
        ),
    ]
}

fn ipv4_fragment_cases() -> Vec<Case> {
    use DropReason::{IpLength, TinyFragment, TransportHeader};
    let tcp = &Craft::v4(tcp(), b"abcd").transport_octets(false)[..];
    let udp = &Craft::v4(Craft::udp(), &[0; 100]).transport_octets(false)[..];
    let mut tcp_options = tcp.to_vec();
    tcp_options[12] = 0x80;
    vec![
        case("first", v4_fragment(6, 0x2000, tcp), Ok((34, 6, 54))),
        case(
            "first of UDP, whose length counts all",
            v4_fragment(17, 0x2000, &udp[..64]),
            Ok((34, 17, 42)),
        ),
        case(
            "RFC 1858 §3: tiny",
            v4_fragment(6, 0x2000, &tcp[..16]),
            Err(TinyFragment),
        ),
        case(
            "RFC 1858 §3: options in the next",
            v4_fragment(6, 0x2000, &tcp_options),
            Err(TinyFragment),
        ),
        case("tiny, UDP", v4_fragment(17, 0x2000, &[]), Err(TinyFragment)),
        case(
            "UDP shorter than its header",
            v4_fragment(17, 0x2000, &[0; 16]),
            Err(TransportHeader),
        ),
        case(
            "later, no header in it",
            v4_fragment(6, 0x2001, &[0; 8]),
            Ok((34, 6, 34)),
        ),
        case("last", v4_fragment(6, 0x0001, &[0; 3]), Ok((34, 6, 34))),
        case(
            "later with DF",
            v4_fragment(6, 0x4001, &[0; 3]),
            Ok((34, 6, 34)),
        ),
        case(
            "later of odd length, cut down by Linux",
            v4_fragment(6, 0x2001, &[0; 13]),
            Ok((34, 6, 34)),
        ),
        case(
            "later, odd, nothing left",
            v4_fragment(6, 0x2001, &[0; 7]),
            Ok((34, 6, 34)),
        ),
        case(
            "later of nothing",
            v4_fragment(6, 0x0001, &[]),
            Ok((34, 6, 34)),
        ),
        case(
            "RFC 791 §3.1: the last possible octet",
            v4_fragment(6, 0x1fff, &[0; 7]),
            Ok((34, 6, 34)),
        ),
        case(
            "ping of death",
            v4_fragment(1, 0x1fff, &[0; 8]),
            Err(IpLength),
        ),
    ]
}

fn ipv6_cases() -> Vec<Case> {
    use DropReason::{IpLength, Ipv6Header};
    use Extension::{Authentication, Destination, HopByHop};
    let many = |n| v6((0..n).map(|_| Destination(0)).collect());
    vec![
        case("plain", v6(vec![]), Ok((54, 6, 74))),
        case("RFC 8200 §3: no header", cut(v6(vec![]), 53), Err(IpLength)),
        case(
            "RFC 8200 §3: version",
            with(v6(vec![]), 14, &[0x40]),
            Err(Ipv6Header),
        ),
        case(
            "RFC 8200 §3: longer than the frame",
            with(v6(vec![]), 18, &[0, 28]),
            Err(IpLength),
        ),
        case(
            "Ethernet padding",
            [v6(vec![]), vec![0; 6]].concat(),
            Ok((54, 6, 74)),
        ),
        case(
            "RFC 8200 §4.3: hop-by-hop",
            v6(vec![HopByHop(0)]),
            Ok((62, 6, 82)),
        ),
        case(
            "a long one",
            v6(vec![HopByHop(200)]),
            Ok((54 + 201 * 8, 6, 74 + 201 * 8)),
        ),
        case(
            "RFC 8200 §4.1: hop-by-hop not first",
            v6(vec![Destination(0), HopByHop(0)]),
            Ok((62, 0, 62)),
        ),
        case(
            "RFC 8200 §4.1: two of them",
            v6(vec![HopByHop(0), HopByHop(0)]),
            Ok((62, 0, 62)),
        ),
        case(
            "all in the order of RFC 8200 §4.1",
            v6(vec![
                HopByHop(0),
                Destination(1),
                routing(0),
                fragment(0, false),
                Authentication,
                Destination(0),
            ]),
            Ok((142, 6, 162)),
        ),
        case(
            "RFC 8200 §4.4: routing",
            v6(vec![routing(1)]),
            Ok((78, 6, 98)),
        ),
        case("eight extension headers", many(8), Ok((118, 6, 138))),
        case("nine", many(9), Err(Ipv6Header)),
        case(
            "longer than the packet",
            with(v6(vec![Destination(0)]), 55, &[4]),
            Err(Ipv6Header),
        ),
        case(
            "up to the packet's end",
            with(v6(vec![Destination(0)]), 54, &[59, 27 / 8]),
            Ok((86, 59, 86)),
        ),
        case(
            "cut after four octets",
            with(v6(vec![Destination(0)]), 18, &[0, 4]),
            Err(Ipv6Header),
        ),
        case(
            "RFC 8200 §4.7: no next header",
            Craft::v6(vec![], Transport::Other(59), b"x").frame(),
            Ok((54, 59, 54)),
        ),
        case(
            "RFC 4303: ESP ends the walk",
            Craft::v6(vec![], Transport::Other(50), &[0; 20]).frame(),
            Ok((54, 50, 54)),
        ),
        case(
            "ICMP in IPv6 is any protocol",
            Craft::v6(vec![], Transport::Other(1), &[]).frame(),
            Ok((54, 1, 54)),
        ),
        case(
            "RFC 2675: no jumbograms",
            with(v6(vec![HopByHop(0)]), 18, &[0, 0]),
            Err(Ipv6Header),
        ),
    ]
}

fn ipv6_fragment_cases() -> Vec<Case> {
    use DropReason::{IpLength, Ipv6Header, TinyFragment};
    let tcp = &Craft::v6(vec![], tcp(), b"abcd").transport_octets(false)[..];
    vec![
        case(
            "RFC 8200 §4.5: first",
            v6_fragment(6, 0, true, tcp),
            Ok((62, 6, 82)),
        ),
        case("later", v6_fragment(6, 3, true, &[0; 8]), Ok((62, 6, 62))),
        case("last", v6_fragment(6, 3, false, &[0; 1]), Ok((62, 6, 62))),
        case(
            "RFC 6946: atomic",
            v6_fragment(6, 0, false, tcp),
            Ok((62, 6, 82)),
        ),
        case(
            "RFC 8200 §4.5: odd length",
            v6_fragment(6, 0, true, &tcp[..23]),
            Err(IpLength),
        ),
        case(
            "RFC 8200 §4.5: beyond 65,535",
            v6_fragment(6, 0x1fff, false, &[0; 8]),
            Err(IpLength),
        ),
        case(
            "up to 65,535",
            v6_fragment(6, 0x1fff, false, &[0; 7]),
            Ok((62, 6, 62)),
        ),
        case(
            "RFC 7112 §5: tiny",
            v6_fragment(6, 0, true, &tcp[..16]),
            Err(TinyFragment),
        ),
        case(
            "RFC 7112 §5: the header chain goes on",
            v6_fragment(60, 0, true, &[6, 1, 0, 0, 0, 0, 0, 0]),
            Err(TinyFragment),
        ),
        case("of nothing", v6_fragment(6, 3, false, &[]), Ok((62, 6, 62))),
        case(
            "extension headers behind a later one are payload",
            v6_fragment(60, 3, false, &[0xff; 8]),
            Ok((62, 60, 62)),
        ),
        case(
            "two fragment headers",
            v6(vec![fragment(0, false), fragment(1, false)]),
            Err(Ipv6Header),
        ),
        case(
            "two atomic ones, which Linux refuses",
            v6(vec![fragment(0, false), fragment(0, false)]),
            Err(Ipv6Header),
        ),
    ]
}

fn transport_cases() -> Vec<Case> {
    use DropReason::TransportHeader;
    let udp4 = || Craft::v4(Craft::udp(), b"payload").frame();
    let udp6 = || Craft::v6(vec![], Craft::udp(), b"payload").frame();
    let none = Craft::v4(
        Transport::Udp {
            ports: (0, 0),
            checksum: false,
        },
        b"",
    )
    .frame();
    let v4 = |protocol, octets: &[u8]| v4_fragment(protocol, 0, octets);
    let v6 = |protocol, octets: &[u8]| V6::default().packet(protocol, octets);
    vec![
        case(
            "RFC 9293 §3.1: data offset of 16 octets",
            with(self::v4(), 46, &[0x40]),
            Err(TransportHeader),
        ),
        case(
            "RFC 9293 §3.1: data offset beyond the end",
            with(self::v4(), 46, &[0x70]),
            Err(TransportHeader),
        ),
        case(
            "options up to the end",
            with(self::v4(), 46, &[0x60]),
            Ok((34, 6, 58)),
        ),
        case("TCP of 19 octets", v4(6, &[0; 19]), Err(TransportHeader)),
        case("UDP", udp4(), Ok((34, 17, 42))),
        case("UDP without payload and ports", none, Ok((34, 17, 42))),
        case(
            "RFC 768: longer than the packet",
            with(udp4(), 38, &[0, 16]),
            Err(TransportHeader),
        ),
        case(
            "RFC 768: shorter than its header",
            with(udp4(), 38, &[0, 7]),
            Err(TransportHeader),
        ),
        case(
            "RFC 768: shorter than the packet",
            with(udp4(), 38, &[0, 8]),
            Ok((34, 17, 42)),
        ),
        case("UDP of 7 octets", v4(17, &[0; 7]), Err(TransportHeader)),
        case(
            "length zero is IPv6's",
            with(udp4(), 38, &[0, 0]),
            Err(TransportHeader),
        ),
        case(
            "RFC 2675 §4: length zero",
            with(udp6(), 58, &[0, 0]),
            Ok((54, 17, 62)),
        ),
        case(
            "IPv6: shorter than its header",
            with(udp6(), 58, &[0, 7]),
            Err(TransportHeader),
        ),
        case(
            "IPv6: longer than the packet",
            with(udp6(), 58, &[0, 16]),
            Err(TransportHeader),
        ),
        case("RFC 792", v4(1, &[0; 8]), Ok((34, 1, 34))),
        case("ICMP of 7 octets", v4(1, &[0; 7]), Err(TransportHeader)),
        case("RFC 4443 §2.1", v6(58, &[0; 8]), Ok((54, 58, 54))),
        case("ICMPv6 of 7 octets", v6(58, &[0; 7]), Err(TransportHeader)),
    ]
}

fn check(cases: Vec<Case>) {
    let mut pool = FramePool::new(1, 4_000);
    for Case {
        why,
        frame,
        expected,
    } in cases
    {
        let seen = match Packet::parse(pool.copy_from(&frame).unwrap()) {
            Ok(packet) => Ok((
                packet.transport_offset(),
                packet.protocol(),
                packet.payload_offset(),
            )),
            Err(Rejected { reason, .. }) => Err(reason),
        };
        assert_eq!(seen, expected, "{why}");
    }
}

#[test]
fn frames_without_ip_are_refused() {
    check(link_cases());
}

#[test]
fn ipv4_headers_are_checked() {
    check(ipv4_cases());
}

#[test]
fn ipv4_fragments_are_told_apart() {
    check(ipv4_fragment_cases());
}

#[test]
fn ipv6_extension_headers_are_followed() {
    check(ipv6_cases());
}

#[test]
fn ipv6_fragments_are_told_apart() {
    check(ipv6_fragment_cases());
}

#[test]
fn transport_headers_are_checked() {
    check(transport_cases());
}

#[test]
fn every_length_but_the_right_one_is_refused() {
    let mut pool = FramePool::new(1, 4_000);
    let all = vec![HopByHop(1), routing(1), fragment(0, false)];
    use Extension::HopByHop;
    for frame in [v4(), v6(all)] {
        for len in 0..frame.len() {
            let frame = pool.copy_from(&frame[..len]).unwrap();
            assert!(Packet::parse(frame).is_err(), "{len} octets");
        }
    }
}

#[test]
fn flags_of_the_network_layer() {
    let mut pool = FramePool::new(1, 4_000);
    let mut look = |frame: Vec<u8>| {
        let packet = packet(&mut pool, &frame, Offload::NONE);
        let routed = packet.has_segments_left();
        (packet.has_options(), routed, packet.dont_fragment())
    };
    let mut craft = Craft::v4(tcp(), b"");
    assert_eq!(look(craft.frame()), (false, false, false));
    if let Ip::V4(v4) = &mut craft.ip {
        v4.dont_fragment = true;
        v4.options = vec![0x94, 4, 0, 0];
    }
    assert_eq!(look(craft.frame()), (true, false, true));
    assert_eq!(look(v6(vec![])), (false, false, true));
    assert_eq!(look(v6(vec![Extension::HopByHop(0)])), (true, false, true));
    assert_eq!(look(v6(vec![routing(0)])), (false, false, true));
    assert_eq!(look(v6(vec![routing(1)])), (false, true, true));
}

#[test]
fn fragments_know_their_place() {
    let mut pool = FramePool::new(1, 4_000);
    let mut place = |frame: Vec<u8>| {
        let packet = packet(&mut pool, &frame, Offload::NONE);
        let place = packet.fragment_place();
        place.map(|(id, span)| {
            let id = (id.identification, id.protocol);
            (packet.fragment(), id, (span.start, span.end, span.last))
        })
    };
    let tcp = Craft::v4(tcp(), b"abcd").transport_octets(false);
    assert_eq!(place(v4()), None);
    assert_eq!(
        place(v4_fragment(6, 0x2000, &tcp)),
        Some((Fragment::First, (0x1234, 6), (0, 24, false)))
    );
    assert_eq!(
        place(v4_fragment(6, 0x2003, &[0; 13])),
        Some((Fragment::Later, (0x1234, 6), (24, 32, false)))
    );
    assert_eq!(
        place(v4_fragment(6, 0x0003, &[0; 13])),
        Some((Fragment::Later, (0x1234, 6), (24, 37, true)))
    );
    assert_eq!(place(v6_fragment(6, 0, false, &tcp)), None);
    assert_eq!(
        place(v6_fragment(6, 0, true, &tcp)),
        Some((Fragment::First, (9, 0), (0, 24, false)))
    );
    assert_eq!(
        place(v6_fragment(6, 0x1ffe, false, &[0; 9])),
        Some((Fragment::Later, (9, 0), (65_520, 65_529, true)))
    );
}

/// A device writes the sum wherever it is told. In a message of ICMP that is the checksum or nothing: the
/// type that was judged, the identifier and the quote stay what they are.
#[test]
fn a_partial_checksum_of_icmp_is_where_its_checksum_is() {
    let mut pool = FramePool::new(1, 4_000);
    for (craft, start) in [
        (Craft::v4(Transport::Icmp(8, 0, [0, 7, 0, 1]), &[7; 60]), 34),
        (
            Craft::v6(vec![], Transport::Icmp(128, 0, [0, 7, 0, 1]), &[7; 60]),
            54,
        ),
    ] {
        let octets = craft.frame();
        let mut takes = |at: u16, offset: u16| {
            let mut frame = pool.copy_from(&octets).unwrap();
            frame.set_offload(Offload {
                checksum: Checksum::Partial { start: at, offset },
                segmentation: None,
            });
            Packet::parse(frame).map_err(|rejected| rejected.reason)
        };
        for at in start..start + 60 {
            for offset in 0..8 {
                let taken = takes(at, offset).map(drop);
                let expected = match (at == start, offset) {
                    (true, 2) => Ok(()),
                    _ => Err(DropReason::OffloadHeader),
                };
                assert_eq!(taken, expected, "{at}, {offset}");
            }
        }
    }
}

#[test]
fn offload_state_must_fit_the_packet() {
    let mut pool = FramePool::new(1, 4_000);
    let mut parses = |octets: &[u8], offload: Offload| {
        let mut frame = pool.copy_from(octets).unwrap();
        frame.set_offload(offload);
        match Packet::parse(frame) {
            Ok(packet) => {
                assert_eq!(packet.frame().offload(), offload);
                true
            }
            Err(Rejected { reason, .. }) => {
                assert_eq!(reason, DropReason::OffloadHeader);
                false
            }
        }
    };
    let partial = |start, offset| Offload {
        checksum: Checksum::Partial { start, offset },
        segmentation: None,
    };
    let udp = Craft::v4(Craft::udp(), &[0; 60]).frame();
    assert!(parses(&udp, partial(34, 6)));
    // Inner packets of tunnels.
    assert!(parses(&udp, partial(60, 16)));
    for (start, offset) in [
        (34, 16),
        (34, 7),
        (33, 7),
        (35, 5),
        (14, 10),
        (0, 0),
        (60, 41),
        (101, 0),
        (102, 0),
        (65_535, 65_535),
    ] {
        assert!(!parses(&udp, partial(start, offset)), "{start}, {offset}");
    }
    assert!(parses(&udp, partial(60, 40)));
    assert!(!parses(
        &v4_fragment(17, 0x2000, &udp[34..98]),
        partial(34, 6)
    ));
    assert!(!parses(
        &v4_fragment(17, 0x0001, &udp[34..98]),
        partial(34, 6)
    ));
    let tcp = v4();
    let super_frame = |kind, checksum| Offload {
        checksum,
        segmentation: Some(Segmentation {
            kind,
            ecn: Ecn::Unmarked,
            size: NonZeroU16::new(5).unwrap(),
            tunnel: None,
        }),
    };
    let sum = |start, offset| Checksum::Partial { start, offset };
    assert!(parses(&tcp, super_frame(GsoKind::TcpV4, sum(34, 16))));
    assert!(parses(
        &v6(vec![]),
        super_frame(GsoKind::TcpV6, sum(54, 16))
    ));
    assert!(parses(&udp, super_frame(GsoKind::Udp, sum(34, 6))));
    assert!(!parses(&tcp, super_frame(GsoKind::TcpV6, sum(34, 16))));
    assert!(!parses(&tcp, super_frame(GsoKind::Udp, sum(34, 16))));
    assert!(!parses(
        &v6(vec![]),
        super_frame(GsoKind::TcpV4, sum(54, 16))
    ));
    assert!(!parses(&udp, super_frame(GsoKind::TcpV4, sum(34, 6))));
    for checksum in [Checksum::Complete, Checksum::Verified] {
        assert!(!parses(&tcp, super_frame(GsoKind::TcpV6, checksum)));
        assert!(!parses(&udp, super_frame(GsoKind::TcpV4, checksum)));
    }
    // A tunnel's packet: cutting the outer datagram would tear the inner.
    assert!(!parses(&udp, super_frame(GsoKind::Udp, sum(60, 16))));
    // The datagrams' lengths would not add up.
    assert!(!parses(
        &with(udp, 38, &[0, 60]),
        super_frame(GsoKind::Udp, sum(34, 6))
    ));
    // More datagrams than Linux takes.
    for (size, taken) in [(2, true), (1, false)] {
        let craft = Craft::v4(Craft::udp(), &[0; 129]);
        let (octets, offload) = craft.super_frame(size, false);
        assert_eq!(parses(&octets, offload), taken);
    }
    let empty = Craft::v4(Transport::Tcp(Tcp::default()), b"").frame();
    assert!(!parses(&empty, super_frame(GsoKind::TcpV4, sum(34, 16))));
}

#[test]
fn a_super_frame_of_one_segment_is_none() {
    let mut pool = FramePool::new(1, 4_000);
    let craft = Craft::v4(tcp(), &[0; 100]);
    for (size, segments) in [(99, true), (100, false), (65_535, false)] {
        let size = craft.segment_size(size);
        let (octets, offload) = craft.super_frame(size, false);
        let packet = packet(&mut pool, &octets, offload);
        assert_eq!(packet.frame().offload().segmentation.is_some(), segments);
        assert_eq!(packet.frame().offload().checksum, offload.checksum);
        assert_eq!(packet.wire_len(), 40 + usize::from(size).min(100));
    }
}

#[test]
fn hop_limits_count_down_to_one() {
    let mut pool = FramePool::new(1, 4_000);
    for mut craft in [Craft::v4(tcp(), b""), Craft::v6(vec![], tcp(), b"")] {
        let mut at = |value: u8| {
            match &mut craft.ip {
                Ip::V4(v4) => v4.ttl = value,
                Ip::V6(v6) => v6.hop_limit = value,
            }
            craft.frame()
        };
        for ttl in 0..=255 {
            let mut packet = packet(&mut pool, &at(ttl), Offload::NONE);
            assert_eq!(packet.decrement_ttl(), ttl > 1);
            let expected = if ttl > 1 { ttl - 1 } else { ttl };
            assert_eq!(packet.ttl(), expected);
            assert_eq!(packet.frame().bytes(), at(expected));
        }
    }
}

#[test]
fn zero_checksums_of_udp() {
    let mut pool = FramePool::new(1, 4_000);
    let none = Transport::Udp {
        ports: (1, 2),
        checksum: false,
    };
    let v4 = Craft::v4(none.clone(), b"data").parse(&mut pool);
    assert!(v4.transport_checksum_ok(), "RFC 768: none was made");
    drop(v4);
    let v6 = Craft::v6(vec![], none, b"data").parse(&mut pool);
    assert!(
        !v6.transport_checksum_ok(),
        "RFC 8200 §8.1: there must be one"
    );
    drop(v6);
    // Length zero: the whole rest is the datagram.
    let jumbo = Craft::v6(vec![], Craft::udp(), b"data");
    let frame = with(jumbo.frame(), 58, &[0, 0]);
    let sum = updated(u16::from_be_bytes([frame[60], frame[61]]), 12, 0);
    let frame = with(frame, 60, &sum.to_be_bytes());
    let jumbo = packet(&mut pool, &frame, Offload::NONE);
    assert!(jumbo.transport_checksum_ok());
}

#[test]
fn only_echo_messages_have_an_identifier() {
    let mut pool = FramePool::new(1, 4_000);
    for kind in 0..=255 {
        let icmp = Transport::Icmp(kind, 0, [0xab, 0xcd, 0, 1]);
        let v4 = Craft::v4(icmp.clone(), b"").parse(&mut pool);
        assert_eq!(v4.echo_id().is_some(), kind == 8 || kind == 0);
        drop(v4);
        let v6 = Craft::v6(vec![], icmp, b"").parse(&mut pool);
        assert_eq!(v6.echo_id().is_some(), kind == 128 || kind == 129);
    }
}

/// Calls everything that reads a packet; what it returns must lie in the packet.
fn touch(packet: &Packet) -> Result<(), TestCaseError> {
    let len = packet.frame().len();
    prop_assert!(packet.transport_offset() <= packet.payload_offset());
    prop_assert!(packet.payload_offset() <= len);
    prop_assert_eq!(packet.ip().len(), len - 14);
    prop_assert_eq!(packet.transport().len(), len - packet.transport_offset());
    prop_assert!(packet.wire_len() <= len - 14);
    let ported = matches!(packet.protocol(), protocol::TCP | protocol::UDP);
    let headed = packet.fragment() != Fragment::Later;
    prop_assert_eq!(packet.ports().is_some(), ported && headed);
    prop_assert_eq!(
        packet.tcp_flags().is_some(),
        packet.protocol() == protocol::TCP && headed
    );
    prop_assert!(packet.echo_id().is_none() || packet.icmp().is_some());
    prop_assert_eq!(
        packet.fragment_place().is_some(),
        packet.fragment() != Fragment::Whole
    );
    if let Some((_, span)) = packet.fragment_place() {
        prop_assert!(span.start <= span.end && span.end <= 65_535);
        prop_assert_eq!(span.start == 0, packet.fragment() == Fragment::First);
    }
    let _ = (
        packet.transport_checksum_ok(),
        packet.ttl(),
        packet.addresses(),
    );
    let _ = format!("{packet:?}");
    Ok(())
}

fn offloads() -> impl Strategy<Value = Offload> {
    let checksum = prop_oneof![
        Just(Checksum::Complete),
        Just(Checksum::Verified),
        (
            14..120_u16,
            prop_oneof![Just(16_u16), Just(6), Just(2), any::<u16>()]
        )
            .prop_map(|(start, offset)| Checksum::Partial { start, offset }),
    ];
    let kind = prop_oneof![
        Just(GsoKind::TcpV4),
        Just(GsoKind::TcpV6),
        Just(GsoKind::Udp)
    ];
    let ecn = prop_oneof![Just(Ecn::Unmarked), Just(Ecn::Classic), Just(Ecn::Accurate)];
    let segmentation = proptest::option::of((kind, ecn, any::<NonZeroU16>()).prop_map(
        |(kind, ecn, size)| Segmentation {
            kind,
            ecn,
            size,
            tunnel: None,
        },
    ));
    (checksum, segmentation).prop_map(|(checksum, segmentation)| Offload {
        checksum,
        segmentation,
    })
}

proptest! {
    #[test]
    fn what_is_crafted_is_found(craft in crafts()) {
        let mut pool = FramePool::new(1, 4_000);
        let packet = craft.parse(&mut pool);
        touch(&packet)?;
        let headed = packet.fragment() != Fragment::Later;
        if headed {
            prop_assert_eq!(packet.protocol(), craft.protocol());
            prop_assert_eq!(packet.transport(), craft.transport_octets(false));
        }
        let judged = packet.fragment() == Fragment::Whole && !packet.has_segments_left();
        let wrong = judged && packet.is_ipv6() && no_udp_sum(&craft);
        prop_assert_eq!(packet.transport_checksum_ok(), !wrong);
        match (&craft.ip, packet.addresses()) {
            (Ip::V4(v4), Addresses::V4 { source, destination }) => {
                prop_assert_eq!((v4.source, v4.destination), (source, destination));
                prop_assert_eq!(v4.dont_fragment, packet.dont_fragment());
                prop_assert_eq!(!v4.options.is_empty(), packet.has_options());
            }
            (Ip::V6(v6), Addresses::V6 { source, destination }) => {
                prop_assert_eq!((v6.source, v6.destination), (source, destination));
                prop_assert_eq!(matches!(v6.extensions.first(), Some(Extension::HopByHop(_))), packet.has_options());
            }
            _ => prop_assert!(false, "wrong version"),
        }
        let expected = match &craft.transport {
            _ if !headed => None,
            Transport::Tcp(tcp) => Some(tcp.ports),
            Transport::Udp { ports, .. } => Some(*ports),
            _ => None,
        };
        prop_assert_eq!(packet.ports().map(|ports| (ports.source, ports.destination)), expected);
    }

    #[test]
    fn any_octets_are_parsed_or_refused(octets in vec(any::<u8>(), 0..200), ipv6: bool, offload in offloads()) {
        let mut pool = FramePool::new(1, 4_000);
        let mut frame = vec![0; 12];
        frame.extend(if ipv6 { [0x86, 0xdd, 0x60] } else { [8, 0, 0x45] });
        frame.extend(octets);
        let mut frame = pool.copy_from(&frame).unwrap();
        frame.set_offload(offload);
        if let Ok(packet) = Packet::parse(frame) {
            touch(&packet)?;
        }
    }

    #[test]
    fn mutated_packets_are_parsed_or_refused(
        craft in crafts(),
        writes in vec((12..120_usize, any::<u8>()), 0..4),
        offload in offloads(),
    ) {
        let mut pool = FramePool::new(1, 4_000);
        let mut octets = craft.frame();
        let len = octets.len();
        for (at, value) in writes {
            octets = with(octets, at.min(len - 1), &[value]);
        }
        let mut frame = pool.copy_from(&octets).unwrap();
        frame.set_offload(offload);
        match Packet::parse(frame) {
            Ok(packet) => touch(&packet)?,
            Err(rejected) => prop_assert_eq!(rejected.frame.bytes(), octets),
        }
    }

    #[test]
    fn super_frames_are_measured_by_their_segments(craft in super_crafts(), size in 1..4_000_u16) {
        let mut pool = FramePool::new(1, 6_000);
        let size = craft.segment_size(size);
        let (octets, offload) = craft.super_frame(size, false);
        let packet = packet(&mut pool, &octets, offload);
        touch(&packet)?;
        let segments = craft.segments(usize::from(size));
        let longest = segments.iter().map(|it| it.frame().len() - 14).max();
        prop_assert_eq!(Some(packet.wire_len()), longest);
    }

    #[test]
    fn a_new_echo_identifier_keeps_the_checksum_right(
        v4: bool, reply: bool, old: [u8; 2], new: u16, payload in vec(any::<u8>(), 0..50), partial: bool,
    ) {
        let mut pool = FramePool::new(1, 4_000);
        let kind = if v4 { 8 } else { 128 };
        let kind = if reply { u8::from(!v4) * 129 } else { kind };
        let craft = |id: [u8; 2]| {
            let icmp = Transport::Icmp(kind, 0, [id[0], id[1], 0, 7]);
            if v4 { Craft::v4(icmp, &payload) } else { Craft::v6(vec![], icmp, &payload) }
        };
        let make = |craft: Craft| {
            if partial && !v4 { craft.partial() } else { (craft.frame(), Offload::NONE) }
        };
        let (octets, offload) = make(craft(old));
        let mut packet = packet(&mut pool, &octets, offload);
        prop_assert_eq!(packet.echo_id(), Some(u16::from_be_bytes(old)));
        packet.set_echo_id(new);
        prop_assert_eq!(packet.echo_id(), Some(new));
        prop_assert!(packet.transport_checksum_ok());
        prop_assert_eq!(packet.frame().bytes(), make(craft(new.to_be_bytes())).0);
    }
}

fn no_udp_sum(craft: &Craft) -> bool {
    matches!(
        craft.transport,
        Transport::Udp {
            checksum: false,
            ..
        }
    )
}
