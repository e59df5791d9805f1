//! What an ICMP error says about the packet that it quotes.

use core::net::{Ipv4Addr, Ipv6Addr};

use super::{v4, v6};
use crate::checksum::updated;
use crate::packet::{
    Addresses, IPV4_HEADER, IPV6_HEADER, MAX_EXTENSION_HEADERS, Packet, Ports, protocol,
};

/// IPv6 extension headers that are followed in a quote: those that a packet may have, and a fragment header
/// that came on its way.
const FOLLOWED: usize = MAX_EXTENSION_HEADERS + 1;

/// The packet quoted in an ICMP error, as far as the quote goes, and what the error says.
///
/// The quoted packet was sent by whoever the error is for: its source is theirs, and so is its
/// source port or echo identifier. That it really was is for the receiver to check (RFC 5927).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// The ICMP type of the error.
    pub kind: u8,
    /// The ICMP code of the error.
    pub code: u8,
    /// The next hop's MTU, in octets: of fragmentation needed (0 from routers older than RFC 1191)
    /// and of packet too big.
    pub mtu: Option<u32>,
    /// Source and destination of the quoted packet.
    pub addresses: Addresses,
    /// Its transport protocol.
    pub protocol: u8,
    /// Its ports, if it is TCP or UDP and they are in the quote.
    pub ports: Option<Ports>,
    /// Its identifier, if it is an ICMP echo request or reply.
    pub echo_id: Option<u16>,
    /// Whether it is a later fragment, which has neither.
    pub later_fragment: bool,
    /// Its TCP sequence number (RFC 5927 §4.1), if that is in the quote.
    pub sequence: Option<u32>,
}

impl Quote {
    /// What `packet` quotes. `None` if it is no ICMP error, or quotes less than an IP header and
    /// its extensions. Redirects count as errors; the ICMP checksum is not looked at.
    #[must_use]
    pub fn parse(packet: &Packet) -> Option<Self> {
        let (kind, code) = packet.icmp()?;
        let (header, quoted) = packet.transport().split_first_chunk::<8>()?;
        let rest = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        if packet.is_ipv6() {
            // A redirect carries two addresses before its options (RFC 4861 §4.5), not a quote.
            let error = matches!(kind, v6::UNREACHABLE..=v6::PARAMETER_PROBLEM);
            let mtu = (kind == v6::PACKET_TOO_BIG).then_some(rest);
            let quote = error.then(|| inner_v6(quoted)).flatten()?;
            Some(Self {
                kind,
                code,
                mtu,
                ..quote
            })
        } else {
            let error = matches!(
                kind,
                v4::UNREACHABLE
                    | v4::SOURCE_QUENCH
                    | v4::REDIRECT
                    | v4::TIME_EXCEEDED
                    | v4::PARAMETER_PROBLEM
            );
            let needed = kind == v4::UNREACHABLE && code == v4::FRAGMENTATION_NEEDED;
            let mtu = needed.then_some(rest & 0xffff);
            let quote = error.then(|| inner_v4(quoted)).flatten()?;
            Some(Self {
                kind,
                code,
                mtu,
                ..quote
            })
        }
    }
}

/// Writes the identifier of the echo message that `packet`, an ICMP error, quotes, and mends the
/// quoted checksum (RFC 5508 §4.2). The error's own checksum stays right: it covers both, and they
/// change by the same amount in opposite directions. Errors about anything else are left alone.
pub fn set_quoted_echo_id(packet: &mut Packet, id: u16) {
    let Some(old) = Quote::parse(packet).and_then(|quote| quote.echo_id) else {
        return;
    };
    let Some(at) = quoted_transport_at(packet) else {
        return;
    };
    let octets = packet.frame_mut().bytes_mut();
    // An identifier was there, so the eight octets of the header's start are as well.
    if let Some([_, _, c0, c1, i0, i1]) = octets.get_mut(at..at + 6) {
        [*c0, *c1] = updated(u16::from_be_bytes([*c0, *c1]), old, id).to_be_bytes();
        [*i0, *i1] = id.to_be_bytes();
    }
}

/// Where the transport header of the quoted packet starts in the frame.
fn quoted_transport_at(packet: &Packet) -> Option<usize> {
    let quote_at = packet.transport_offset() + 8;
    let ip = packet.frame().bytes().get(quote_at..)?;
    let header_len = if packet.is_ipv6() {
        skip_extensions(ip, *ip.get(6)?)?.2
    } else {
        usize::from(ip.first()? & 0xf) * 4
    };
    Some(quote_at + header_len)
}

/// The header checksum and the total length are not checked: routers quote packets that they have
/// changed, and cut.
fn inner_v4(ip: &[u8]) -> Option<Quote> {
    let fixed = ip.first_chunk::<IPV4_HEADER>()?;
    let header_len = usize::from(fixed[0] & 0xf) * 4;
    if fixed[0] >> 4 != 4 || header_len < IPV4_HEADER {
        return None;
    }
    let addresses = Addresses::V4 {
        source: Ipv4Addr::from([fixed[12], fixed[13], fixed[14], fixed[15]]),
        destination: Ipv4Addr::from([fixed[16], fixed[17], fixed[18], fixed[19]]),
    };
    let later = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x1fff != 0;
    let transport = ip.get(header_len..).unwrap_or_default();
    Some(with_transport(addresses, fixed[9], later, transport))
}

fn inner_v6(ip: &[u8]) -> Option<Quote> {
    let fixed = ip.first_chunk::<IPV6_HEADER>()?;
    if fixed[0] >> 4 != 6 {
        return None;
    }
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&fixed[at..at + 16]);
        Ipv6Addr::from(octets)
    };
    let addresses = Addresses::V6 {
        source: address(8),
        destination: address(24),
    };
    let (protocol, later, at) = skip_extensions(ip, fixed[6])?;
    let transport = ip.get(at..).unwrap_or_default();
    Some(with_transport(addresses, protocol, later, transport))
}

/// The transport protocol, whether it belongs to an earlier fragment, and where it starts. What is an extension
/// header is what it is in a packet: hop-by-hop options in front alone (RFC 8200 §4.1).
fn skip_extensions(ip: &[u8], mut next: u8) -> Option<(u8, bool, usize)> {
    let mut at = IPV6_HEADER;
    for count in 0.. {
        let known = match next {
            protocol::HOP_BY_HOP => at == IPV6_HEADER,
            protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION_OPTIONS => true,
            _ => false,
        };
        if !known {
            return Some((next, false, at));
        }
        if count == FOLLOWED {
            return None;
        }
        let header = ip.get(at..)?.first_chunk::<4>()?;
        at += match next {
            protocol::FRAGMENT => 8,
            protocol::AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        let offset = u16::from_be_bytes([header[2], header[3]]) & !7;
        if next == protocol::FRAGMENT && offset != 0 {
            return Some((header[0], true, at));
        }
        next = header[0];
    }
    None
}

fn with_transport(addresses: Addresses, protocol: u8, later: bool, transport: &[u8]) -> Quote {
    let transport = if later { &[] } else { transport };
    let word = |at: usize| match transport.get(at..at + 2) {
        Some(&[high, low]) => Some(u16::from_be_bytes([high, low])),
        _ => None,
    };
    let has_ports = matches!(protocol, protocol::TCP | protocol::UDP);
    let ports = word(0).zip(word(2)).filter(|_| has_ports);
    let sequence = word(4)
        .zip(word(6))
        .filter(|_| protocol == protocol::TCP)
        .map(|(high, low)| u32::from(high) << 16 | u32::from(low));
    let is_echo = match (protocol, addresses, transport.first()) {
        (protocol::ICMP, Addresses::V4 { .. }, Some(&kind)) => {
            matches!(kind, v4::ECHO | v4::ECHO_REPLY)
        }
        (protocol::ICMPV6, Addresses::V6 { .. }, Some(&kind)) => {
            matches!(kind, v6::ECHO | v6::ECHO_REPLY)
        }
        _ => false,
    };
    Quote {
        kind: 0,
        code: 0,
        mtu: None,
        addresses,
        protocol,
        ports: ports.map(|(source, destination)| Ports {
            source,
            destination,
        }),
        echo_id: word(4).filter(|_| is_echo),
        later_fragment: later,
        sequence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::icmp::IcmpError;
    use crate::originate::Originator;
    use crate::test_packets::{Draft, N4, N6, Segment, X4, X6, hex, ip, pool};
    use proptest::prelude::*;

    /// An error from a router about what the NOS sent.
    fn error(draft: &Draft, kind: u8, code: u8, rest: u32, quoted: &[u8]) -> Option<Quote> {
        Quote::parse(&draft.icmp_packet(&mut pool(), (kind, code), rest, quoted))
    }

    #[test]
    fn ports_mtu_and_sequence_are_found() {
        let sent = Draft::new(N4, X4);
        let segment = Segment {
            ports: (20_000, 443),
            sequence: 0xdead_beef,
            ..Segment::default()
        };
        let frame = sent.frame(6, &sent.tcp(&segment));
        for cut in [8, 20] {
            let quote = error(&Draft::v4(), 3, 4, 1400, &frame[14..34 + cut]).unwrap();
            assert_eq!((quote.kind, quote.code, quote.mtu), (3, 4, Some(1400)));
            assert_eq!(
                (quote.addresses.source(), quote.addresses.destination()),
                (ip(N4), ip(X4))
            );
            let ports = Ports {
                source: 20_000,
                destination: 443,
            };
            assert_eq!((quote.protocol, quote.ports), (6, Some(ports)));
            assert_eq!(quote.sequence, Some(0xdead_beef));
            assert_eq!(quote.echo_id, None);
        }
        // RFC 792 quotes eight octets; less may still name the ports.
        let quote = error(&Draft::v4(), 11, 0, 0, &frame[14..38]).unwrap();
        assert!(quote.ports.is_some() && quote.sequence.is_none() && quote.mtu.is_none());
        let quote = error(&Draft::v4(), 11, 0, 0, &frame[14..36]).unwrap();
        assert_eq!(quote.ports, None);
    }

    #[test]
    fn options_and_extension_headers_are_passed_over() {
        let mut sent = Draft::new(N4, X4);
        sent.options = vec![1, 1, 1, 0];
        let frame = sent.frame(17, &sent.udp((5, 6), b"x"));
        let quote = error(&Draft::v4(), 3, 3, 0, &frame[14..]).unwrap();
        assert_eq!(quote.ports.map(|ports| ports.source), Some(5));

        let sent = Draft::new(N6, X6);
        let udp = sent.udp((5, 6), b"x");
        let chain = [
            hex("3c00010400000000"),
            hex("2c00010400000000"),
            hex("3304000000000000 00000000 000000000000000000000000"),
        ];
        let fragment = hex("3300000100000007");
        let payload = [&chain[0][..], &chain[1], &fragment, &chain[2][..]].concat();
        let mut payload = payload;
        payload[24] = 17;
        payload.extend(&udp);
        let frame = sent.frame(0, &payload);
        let quote = error(&Draft::v6(), 2, 0, 1280, &frame[14..]).unwrap();
        assert_eq!((quote.protocol, quote.mtu), (17, Some(1280)));
        assert_eq!(quote.ports.map(|ports| ports.source), Some(5));
    }

    /// Hop-by-hop options are an extension header in front, and an unknown protocol behind others, as in a packet.
    #[test]
    fn hop_by_hop_options_are_known_in_front_alone() {
        let sent = Draft::new(N6, X6);
        let udp = sent.udp((5, 6), b"x");
        let options = |next| hex(&format!("{next:02x}00010400000000"));
        let quoted = |first, chain: [Vec<u8>; 2]| {
            let frame = sent.frame(first, &[&chain[0][..], &chain[1], &udp].concat());
            error(&Draft::v6(), 1, 4, 0, &frame[14..]).unwrap()
        };
        let in_front = quoted(protocol::HOP_BY_HOP, [options(60), options(17)]);
        assert_eq!(in_front.ports.map(|ports| ports.source), Some(5));
        let behind = quoted(protocol::DESTINATION_OPTIONS, [options(0), options(17)]);
        assert_eq!(
            (behind.protocol, behind.ports),
            (protocol::HOP_BY_HOP, None)
        );
    }

    /// A packet of a container may have eight; fragmented by the NOS it has nine.
    #[test]
    fn as_many_extension_headers_are_followed_as_a_packet_may_get() {
        let sent = Draft::new(N6, X6);
        let udp = sent.udp((5, 6), b"x");
        let chain_of = |count: usize, last: &str| {
            let options = hex("3c00010400000000").repeat(count - 1);
            let last = hex(&format!("{last}00010400000000"));
            let frame = sent.frame(
                protocol::DESTINATION_OPTIONS,
                &[options, last, udp.clone()].concat(),
            );
            error(&Draft::v6(), 1, 4, 0, &frame[14..])
        };
        for count in 1..=9 {
            let quote = chain_of(count, "11").unwrap();
            assert_eq!(quote.ports.map(|ports| ports.source), Some(5), "{count}");
            // Another protocol, of which nothing is read.
            assert_eq!(chain_of(count, "3b").unwrap().protocol, 59, "{count}");
        }
        assert_eq!(chain_of(10, "11"), None);
    }

    #[test]
    fn later_fragments_have_no_ports() {
        let mut sent = Draft::new(N4, X4);
        sent.fragment = 0x2001;
        let frame = sent.frame(17, &[0; 16]);
        let quote = error(&Draft::v4(), 11, 1, 0, &frame[14..]).unwrap();
        assert!(quote.later_fragment && quote.ports.is_none());
        let sent = Draft::new(N6, X6);
        let frame = sent.frame(44, &hex("1100 0040 00000008 0000000000000000"));
        let quote = error(&Draft::v6(), 1, 0, 0, &frame[14..]).unwrap();
        assert!(quote.later_fragment && quote.ports.is_none());
        assert_eq!(quote.protocol, 17);
    }

    #[test]
    fn echo_identifiers_are_found_both_ways() {
        for (draft, sent, kinds, protocol) in [
            (Draft::v4(), Draft::new(N4, X4), [8, 0], 1),
            (Draft::v6(), Draft::new(N6, X6), [128, 129], 58),
        ] {
            for kind in kinds {
                let frame = sent.frame(protocol, &sent.icmp(kind, 0, 0xabcd_0001, b""));
                let quote = error(
                    &draft,
                    1.max(3 * u8::from(protocol == 1)),
                    1,
                    0,
                    &frame[14..],
                );
                assert_eq!(quote.unwrap().echo_id, Some(0xabcd));
            }
            let frame = sent.frame(protocol, &sent.icmp(13, 0, 0xabcd_0001, &[0; 12]));
            let quote = error(&draft, 3, 1, 0, &frame[14..]).unwrap();
            assert_eq!(quote.echo_id, None);
        }
    }

    #[test]
    fn quoted_identifier_changes_without_harm_to_checksums() {
        for (draft, mut sent, protocol) in [
            (Draft::v4(), Draft::new(N4, X4), 1),
            (Draft::v6(), Draft::new(N6, X6), 58),
        ] {
            for options in [vec![], vec![1, 1, 1, 0]] {
                sent.options = if protocol == 1 { options } else { vec![] };
                let quoted = |id: u32| {
                    let request = 8 + 120 * u8::from(protocol == 58);
                    sent.frame(protocol, &sent.icmp(request, 0, id << 16 | 1, b"odd"))
                };
                let kind = if protocol == 1 { 3 } else { 1 };
                let about =
                    |id: u32| draft.icmp_packet(&mut pool(), (kind, 1), 0, &quoted(id)[14..]);
                let mut changed = about(0xabcd);
                set_quoted_echo_id(&mut changed, 0x1234);
                assert_eq!(Quote::parse(&changed).unwrap().echo_id, Some(0x1234));
                assert!(changed.transport_checksum_ok());
                assert_eq!(changed.ip(), about(0x1234).ip());
            }
        }
    }

    #[test]
    fn errors_about_other_things_keep_their_quote() {
        let sent = Draft::new(N4, X4);
        let frame = sent.frame(17, &sent.udp((5, 6), b"x"));
        let mut error = Draft::v4().icmp_packet(&mut pool(), (3, 3), 0, &frame[14..]);
        let before = error.ip().to_vec();
        set_quoted_echo_id(&mut error, 0x1234);
        assert_eq!(error.ip(), before);
    }

    #[test]
    fn what_is_no_error_quotes_nothing() {
        let sent = Draft::new(N4, X4);
        let frame = sent.frame(17, &sent.udp((5, 6), b"x"));
        for kind in [0, 8, 9, 13, 42] {
            assert_eq!(error(&Draft::v4(), kind, 0, 0, &frame[14..]), None);
        }
        for kind in [0, 5, 128, 137, 200] {
            assert_eq!(error(&Draft::v6(), kind, 0, 0, &frame[14..]), None);
        }
        assert_eq!(error(&Draft::v4(), 3, 3, 0, &frame[14..33]), None);
        assert_eq!(
            error(&Draft::v6(), 1, 3, 0, &frame[14..]),
            None,
            "IPv4 within ICMPv6"
        );
        let udp = Draft::v4().udp_packet(&mut pool(), (1, 2), &frame[14..]);
        assert_eq!(Quote::parse(&udp), None);
    }

    #[test]
    fn our_own_errors_can_be_read() {
        let mut pool = pool();
        for draft in [Draft::v4(), Draft::v6()] {
            let offending = draft.udp_packet(&mut pool, (5, 6), &[1; 1400]);
            let mut originator = Originator::new(1);
            let error = IcmpError::PacketTooBig { mtu: 1300 }
                .build(&offending, draft.destination, &mut originator, &mut pool)
                .unwrap();
            let quote = Quote::parse(&error).unwrap();
            assert_eq!(quote.addresses, offending.addresses());
            assert_eq!(quote.ports, offending.ports());
            assert_eq!(quote.mtu, Some(1300));
        }
    }

    proptest! {
        #[test]
        fn any_quote_is_read_or_refused(
            v6: bool, kind in 0..14_u8, mut quoted in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            if let Some(first) = quoted.first_mut() {
                *first = if v6 { 0x60 } else { 0x40 | *first & 0xf };
            }
            let draft = if v6 { Draft::v6() } else { Draft::v4() };
            let _ = error(&draft, kind, 4, 0, &quoted);
        }
    }
}
