//! Answers to ICMP queries that are addressed to the NOS.

use core::net::IpAddr;

use super::error::seal;
use super::{v4, v6};
use crate::drop::DropReason;
use crate::frame::Offload;
use crate::ipv4_options::{self, millis};
use crate::originate::{Network, Originator, addresses, names_one_host, traffic_class};
use crate::packet::{Addresses, Fragment, Packet};
use crate::time::Instant;

/// Octets of an ICMP timestamp message (RFC 792).
const TIMESTAMP_MESSAGE: usize = 20;

/// An ICMP message to the NOS that has no answer.
#[derive(Debug)]
pub struct Unanswered {
    /// The message, unchanged.
    pub packet: Packet,
    /// Why it is to be dropped.
    pub reason: DropReason,
}

/// Answers an ICMP message that is addressed to the NOS and is no fragment: echo requests, and
/// timestamp requests of IPv4. `source` is where the answer comes from if the query was sent to a
/// group; otherwise it comes from the query's destination.
///
/// As Linux does: TOS or traffic class and code are those of the request, IPv4 options are echoed,
/// extension headers are not. Echo requests to IPv4 groups are ignored; those to IPv6 groups are
/// answered (RFC 4443 §4.2).
///
/// The message is turned into its answer. Ethernet addresses are zero; interface and VRF are still
/// those of the query. It may be longer than the MTU, like the query was.
///
/// # Errors
///
/// [`Unanswered`], with [`DropReason::TransportChecksum`]; [`DropReason::MartianSource`] when an
/// answer would not reach one host; [`DropReason::Ignored`] for everything that asks for nothing,
/// ICMP errors included.
pub fn answer(
    packet: Packet,
    source: IpAddr,
    now: Instant,
    originator: &mut Originator,
) -> Result<Packet, Unanswered> {
    let reason = match wanted(&packet) {
        Err(reason) => reason,
        Ok(query) => {
            let to_group = is_group(packet.destination());
            let own = if to_group {
                source
            } else {
                packet.destination()
            };
            match addresses(own, packet.source()) {
                Some(addresses) => return reply(packet, query, addresses, now, originator),
                None => DropReason::Ignored,
            }
        }
    };
    Err(Unanswered { packet, reason })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Query {
    Echo,
    Timestamp,
}

fn wanted(packet: &Packet) -> Result<Query, DropReason> {
    if packet.fragment() != Fragment::Whole {
        return Err(DropReason::Ignored);
    }
    if !packet.transport_checksum_ok() {
        return Err(DropReason::TransportChecksum);
    }
    let query = match packet.icmp() {
        Some((v6::ECHO, _)) if packet.is_ipv6() => Query::Echo,
        Some((v4::ECHO, _)) if !packet.is_ipv6() => Query::Echo,
        Some((v4::TIMESTAMP, _))
            if !packet.is_ipv6() && packet.transport().len() >= TIMESTAMP_MESSAGE =>
        {
            Query::Timestamp
        }
        _ => return Err(DropReason::Ignored),
    };
    if !packet.is_ipv6() && is_group(packet.destination()) {
        return Err(DropReason::Ignored);
    }
    if !names_one_host(packet.source()) {
        return Err(DropReason::MartianSource);
    }
    Ok(query)
}

fn is_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_multicast(),
    }
}

/// Turns the query into its answer, in place.
fn reply(
    mut packet: Packet,
    query: Query,
    addresses: Addresses,
    now: Instant,
    originator: &mut Originator,
) -> Result<Packet, Unanswered> {
    let options = ipv4_options::echoed(&packet, addresses.source());
    let network = Network {
        addresses,
        protocol: packet.protocol(),
        traffic_class: traffic_class(&packet),
        dont_fragment: false,
        options: &options,
        flow: 0,
    };
    let transport = packet.transport_offset();
    let frame = packet.frame_mut();
    frame.set_offload(Offload::NONE);
    if query == Query::Timestamp {
        frame.truncate(transport + TIMESTAMP_MESSAGE);
    }
    write_message(&mut frame.bytes_mut()[transport..], query, addresses, now);
    let reason = DropReason::IpLength;
    let replaced = originator.replace_header(packet, &network);
    replaced.map_err(|packet| Unanswered { packet, reason })
}

fn write_message(icmp: &mut [u8], query: Query, addresses: Addresses, now: Instant) {
    icmp[0] = match (query, addresses) {
        (Query::Echo, Addresses::V4 { .. }) => v4::ECHO_REPLY,
        (Query::Echo, Addresses::V6 { .. }) => v6::ECHO_REPLY,
        (Query::Timestamp, _) => v4::TIMESTAMP_REPLY,
    };
    if query == Query::Timestamp {
        icmp[1] = 0;
        let time = millis(now).to_be_bytes();
        icmp[12..16].copy_from_slice(&time);
        icmp[16..20].copy_from_slice(&time);
    }
    icmp[2..4].fill(0);
    seal(addresses, icmp);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipv4_options::receive;
    use crate::test_packets::{Draft, N4, N6, X4, X6, hex, ip, pool};

    fn ask(packet: Packet) -> Result<Packet, Unanswered> {
        let source = if packet.is_ipv6() { N6 } else { N4 };
        answer(
            packet,
            ip(source),
            Instant::from_millis(7),
            &mut Originator::new(1),
        )
    }

    fn replied(packet: Packet) -> Packet {
        match ask(packet) {
            Ok(reply) => {
                assert!(reply.transport_checksum_ok());
                reply
            }
            Err(Unanswered { reason, .. }) => panic!("dropped: {reason}"),
        }
    }

    fn refused(packet: Packet) -> DropReason {
        match ask(packet) {
            Ok(reply) => panic!("answered: {reply:?}"),
            Err(Unanswered { reason, .. }) => reason,
        }
    }

    /// Linux 6.18: code and TOS kept, DF never set, an identification of its own.
    #[test]
    fn echo_replies_are_linux_s() {
        let mut pool = pool();
        for (class, fragment, code, linux) in [
            (0, 0, 0, "0000a9f81234000168656c6c6f"),
            (0xff, 0x4000, 0, "0000a9f81234000168656c6c6f"),
            (0xb8, 0, 5, "0005a9f31234000168656c6c6f"),
        ] {
            let mut draft = Draft::v4();
            draft.class = class;
            draft.fragment = fragment;
            let request = draft.icmp_packet(&mut pool, (8, code), 0x1234_0001, b"hello");
            let reply = replied(request);
            assert_eq!(reply.transport(), hex(linux));
            assert_eq!((reply.source(), reply.destination()), (ip(N4), ip(X4)));
            assert_eq!((reply.ip()[1], reply.ttl()), (class, 64));
            assert!(!reply.dont_fragment());
            assert_ne!(reply.ip()[4..6], [0, 0]);
        }
    }

    /// Linux 6.18: code and traffic class kept; the flow label is its own.
    #[test]
    fn ipv6_echo_replies_are_linux_s() {
        let mut pool = pool();
        for (class, code, linux) in [
            (0, 0, "8100cd391234000168656c6c6f"),
            (0xff, 0, "8100cd391234000168656c6c6f"),
            (0, 3, "8103cd361234000168656c6c6f"),
        ] {
            let mut draft = Draft::v6();
            draft.class = class;
            draft.label = 0xabcde;
            let request = draft.icmp_packet(&mut pool, (128, code), 0x1234_0001, b"hello");
            let reply = replied(request);
            assert_eq!(reply.transport(), hex(linux));
            assert_eq!((reply.source(), reply.destination()), (ip(N6), ip(X6)));
            assert_eq!((traffic_class(&reply), reply.ttl()), (class, 64));
            let label = u32::from_be_bytes(reply.ip()[..4].try_into().unwrap()) & 0xf_ffff;
            assert!(label != 0 && label != 0xabcde);
        }
    }

    #[test]
    fn extension_headers_are_not_sent_back() {
        let mut pool = pool();
        let draft = Draft::v6();
        let echo = draft.icmp(128, 0, 1, b"hello");
        let payload = [hex("3a00010400000000"), echo].concat();
        let reply = replied(draft.packet(&mut pool, 60, &payload));
        assert_eq!(reply.ip().len(), 40 + 13);
        assert_eq!(reply.echo_id(), Some(0));
    }

    /// Each pair is what went out to Linux 6.18, and what came back.
    #[test]
    fn ipv4_options_are_echoed_as_linux_does() {
        let mut pool = pool();
        for (request, linux) in [
            ("01010100", ""),
            ("94040000", ""),
            ("9e040102", ""),
            ("00112233", ""),
            ("820b000000000000000000 00", ""),
            ("070b04 0000000000000000 00", "070b0ccb007101cb00710100"),
            ("070708 01020304 00", "0707080102030400"),
            ("44080900 01020304", "4408091001020304"),
            ("440c0503 cb00710200000000", "440c0503cb00710200000000"),
            ("440c0509 0000000000000000", "440c05090000000000000000"),
        ] {
            let mut draft = Draft::v4();
            draft.options = hex(request);
            let mut request = draft.icmp_packet(&mut pool, (8, 0), 0x1234_0001, b"hello");
            receive(&mut request, Instant::from_millis(7)).unwrap();
            let reply = replied(request);
            assert_eq!(reply.ip()[20..reply.transport_offset() - 14], hex(linux));
            assert_eq!(reply.transport(), hex("0000a9f81234000168656c6c6f"));
        }
    }

    /// Linux fills in the same places; the time itself is not from midnight here.
    #[test]
    fn timestamps_are_filled_in_where_linux_does() {
        let mut pool = pool();
        let time = "80000007";
        for (request, filled) in [
            ("440c0500 0000000000000000", "440c0d00 TT TT"),
            ("440c0501 0000000000000000", "440c0d01 cb007101 TT"),
            (
                "44140501 00000000000000000000000000000000",
                "44141501 cb007101 TT cb007101 TT",
            ),
            ("440c0503 cb00710100000000", "440c0d03 cb007101 TT"),
            (
                "01070b04 0000000000000000 4408050000000000",
                "070b0ccb007101cb007101 44080900 TT 00",
            ),
        ] {
            let mut draft = Draft::v4();
            draft.options = hex(request);
            let mut request = draft.icmp_packet(&mut pool, (8, 0), 1, b"hello");
            receive(&mut request, Instant::from_millis(7)).unwrap();
            let reply = replied(request);
            let expected = hex(&filled.replace("TT", time));
            assert_eq!(reply.ip()[20..reply.transport_offset() - 14], expected);
        }
    }

    #[test]
    fn what_is_not_answered() {
        let mut pool = pool();
        for draft in [Draft::v4(), Draft::v6()] {
            let (kind, protocol) = if draft.source.is_ipv6() {
                (128, 58)
            } else {
                (8, 1)
            };
            let mut damaged = draft.icmp(kind, 0, 1, b"x");
            damaged[3] ^= 0x55;
            let damaged = draft.packet(&mut pool, protocol, &damaged);
            assert_eq!(refused(damaged), DropReason::TransportChecksum);
        }
        for kind in [0, 3, 5, 9, 10, 14, 15, 17, 42] {
            let message = Draft::v4().icmp_packet(&mut pool, (kind, 0), 0, &[0; 40]);
            assert_eq!(refused(message), DropReason::Ignored, "type {kind}");
        }
        for kind in [1, 4, 5, 129, 139, 200] {
            let message = Draft::v6().icmp_packet(&mut pool, (kind, 0), 0, &[0; 40]);
            assert_eq!(refused(message), DropReason::Ignored, "type {kind}");
        }
        for group in ["224.0.0.1", "255.255.255.255"] {
            let echo = Draft::new(X4, group).icmp_packet(&mut pool, (8, 0), 0, b"");
            assert_eq!(refused(echo), DropReason::Ignored);
        }
        for source in ["0.0.0.0", "127.0.0.1", "224.0.0.5", "255.255.255.255"] {
            let echo = Draft::new(source, N4).icmp_packet(&mut pool, (8, 0), 0, b"");
            assert_eq!(refused(echo), DropReason::MartianSource);
        }
        let short = Draft::v4().icmp_packet(&mut pool, (13, 0), 1, b"");
        assert_eq!(refused(short), DropReason::Ignored);
    }

    #[test]
    fn ipv6_groups_are_answered_from_one_address() {
        let mut pool = pool();
        let echo =
            Draft::new(X6, "ff02::1").icmp_packet(&mut pool, (128, 0), 0x1234_0001, b"hello");
        let reply = replied(echo);
        assert_eq!(reply.source(), ip(N6));
        assert_eq!(reply.transport(), hex("8100cd391234000168656c6c6f"));
    }

    /// Linux 6.18 keeps the originate timestamp and fills in the other two.
    #[test]
    fn timestamp_requests_are_answered() {
        let mut pool = pool();
        let mut draft = Draft::v4();
        draft.class = 0xff;
        let payload = hex("00000001 00000000 00000000 ffff");
        let request = draft.icmp_packet(&mut pool, (13, 9), 0x1234_0001, &payload);
        let reply = replied(request);
        let (head, rest) = reply.transport().split_at(4);
        assert_eq!(head[..2], [14, 0]);
        assert_eq!(rest, hex("12340001 00000001 80000007 80000007"));
        assert_eq!(reply.ip()[1], 0xff);
    }
}
