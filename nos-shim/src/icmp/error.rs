//! ICMP errors that the NOS sends.

use core::net::IpAddr;

use super::{v4, v6};
use crate::checksum::Sum;
use crate::frame::{Checksum, ETHERNET_HEADER, FramePool};
use crate::ipv4_options;
use crate::offload::first_segment;
use crate::originate::{Network, Originator, addresses, is_unicast, names_one_host, traffic_class};
use crate::packet::{Addresses, Fragment, IPV4_HEADER, IPV6_HEADER, Packet, protocol};

/// Octets of the longest ICMP error for IPv4, IP header included (RFC 1812 §4.3.2.3).
pub const QUOTE_LIMIT_V4: usize = 576;
/// Octets of the longest ICMPv6 error, IP header included (RFC 4443 §2.4c).
pub const QUOTE_LIMIT_V6: usize = 1280;

/// Octets of an ICMP error in front of the quote.
const ICMP_HEADER: usize = 8;

/// What went wrong with a packet, whichever its IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IcmpError {
    /// There is no route: v4 net unreachable, v6 no route to destination.
    NoRoute,
    /// The route says that the destination cannot be reached: v4 host unreachable, v6 no route.
    UnreachableRoute,
    /// The next hop does not answer ARP or ND: v4 host unreachable, v6 address unreachable.
    HostUnreachable,
    /// Policy forbids it: v4 and v6 communication administratively prohibited.
    Prohibited,
    /// Nobody handles the protocol: v4 protocol unreachable, v6 parameter problem with
    /// unrecognised next header.
    ProtocolUnreachable,
    /// Nobody listens on the port.
    PortUnreachable,
    /// Longer than the next hop's MTU, in octets: v4 fragmentation needed, v6 packet too big.
    PacketTooBig {
        /// Octets of the longest IP packet that would pass.
        mtu: u32,
    },
    /// TTL or hop limit reached zero in transit.
    TtlExceeded,
    /// Fragments of the datagram did not arrive in time. The offending packet is the first one.
    ReassemblyTimeout,
    /// A header field makes no sense; `pointer` is its place in octets from the IP header's start.
    HeaderProblem {
        /// At most 255 in IPv4.
        pointer: u32,
    },
    /// An IPv6 option that says it must be understood is not (RFC 8200 §4.2); in IPv4 the same as
    /// [`Self::HeaderProblem`].
    UnknownOption {
        /// Octets from the IP header's start to the option's type.
        pointer: u32,
    },
    /// An IPv6 extension header that is not supported; in IPv4 the same as
    /// [`Self::HeaderProblem`].
    UnknownHeader {
        /// Octets from the IP header's start to the next-header field that names it.
        pointer: u32,
    },
    /// The first fragment of an IPv6 packet lacks a part of the chain of headers (RFC 7112 §5); in
    /// IPv4 the same as [`Self::HeaderProblem`].
    IncompleteHeaderChain,
}

impl IcmpError {
    /// Whether this error may be sent about `offending`: RFC 1122 §3.2.2, RFC 1812 §4.3.2.7, RFC
    /// 4443 §2.4e. A port is not unreachable for a datagram with a wrong checksum.
    ///
    /// Subnet broadcast addresses are not recognised; who knows the prefixes must check.
    #[must_use]
    pub fn may_answer(self, offending: &Packet) -> bool {
        let to_one = is_unicast(offending) || self.answers_groups(offending);
        let intact = self != Self::PortUnreachable || offending.transport_checksum_ok();
        to_one && intact && names_one_host(offending.source()) && !is_unanswerable(offending)
    }

    /// RFC 4443 §2.4e.3: path MTU discovery for multicast, and options that ask for it.
    fn answers_groups(self, offending: &Packet) -> bool {
        let excepted = matches!(self, Self::PacketTooBig { .. } | Self::UnknownOption { .. });
        offending.is_ipv6() && excepted
    }

    /// The error about `offending`, from `source`, to whoever sent it. Ethernet addresses are
    /// zero, and no interface is set. Ask [`Self::may_answer`] first.
    ///
    /// Quotes as much as fits [`QUOTE_LIMIT_V4`] or [`QUOTE_LIMIT_V6`], with the transport
    /// checksum that the packet has on the wire; of a super-frame, its first segment.
    ///
    /// `None` when `source` is of the other IP version, or the pool has no buffer.
    #[must_use]
    pub fn build(
        self,
        offending: &Packet,
        source: IpAddr,
        originator: &mut Originator,
        pool: &mut FramePool,
    ) -> Option<Packet> {
        if offending.tunnel().is_some() {
            return self.build_of_tunnel(offending, source, originator, pool);
        }
        let options = match self {
            Self::HeaderProblem { pointer } | Self::UnknownOption { pointer } => {
                ipv4_options::echoed_before(offending, pointer, source)
            }
            _ => ipv4_options::echoed(offending, source),
        };
        let header = self.header(offending);
        let whole = self.quotable(offending);
        message(
            (offending, whole),
            source,
            header,
            &options,
            originator,
            pool,
        )
    }

    /// Octets of the IP packet that may be quoted. What follows a datagram inside its packet is gone
    /// when its port is looked for, as on Linux.
    fn quotable(self, offending: &Packet) -> usize {
        let whole = offending.wire_len();
        let datagram = self == Self::PortUnreachable && offending.protocol() == protocol::UDP;
        let plain = offending.frame().offload().segmentation.is_none();
        match offending.transport().get(4..6) {
            Some(&[high, low]) if datagram && plain => {
                let before = offending.transport_offset() - ETHERNET_HEADER;
                match usize::from(u16::from_be_bytes([high, low])) {
                    // RFC 2675 §4: up to the packet's end.
                    0 => whole,
                    len => whole.min(before + len),
                }
            }
            _ => whole,
        }
    }

    /// About the first segment of a tunnel's super-frame, which is made for that.
    #[cold]
    fn build_of_tunnel(
        self,
        offending: &Packet,
        source: IpAddr,
        originator: &mut Originator,
        pool: &mut FramePool,
    ) -> Option<Packet> {
        let segment = first_segment(offending, pool)?;
        let error = self.build(&segment, source, originator, pool);
        pool.free(segment.into_frame());
        error
    }

    /// Type, code, and the four octets that follow the checksum.
    fn header(self, offending: &Packet) -> (u8, u8, u32) {
        if offending.is_ipv6() {
            self.header_v6(offending)
        } else {
            self.header_v4()
        }
    }

    fn header_v4(self) -> (u8, u8, u32) {
        match self {
            Self::NoRoute => (v4::UNREACHABLE, 0, 0),
            Self::UnreachableRoute | Self::HostUnreachable => (v4::UNREACHABLE, 1, 0),
            Self::ProtocolUnreachable => (v4::UNREACHABLE, 2, 0),
            Self::PortUnreachable => (v4::UNREACHABLE, 3, 0),
            Self::PacketTooBig { mtu } => {
                (v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED, mtu.min(0xffff))
            }
            Self::Prohibited => (v4::UNREACHABLE, 13, 0),
            Self::TtlExceeded => (v4::TIME_EXCEEDED, 0, 0),
            Self::ReassemblyTimeout => (v4::TIME_EXCEEDED, 1, 0),
            Self::HeaderProblem { pointer }
            | Self::UnknownOption { pointer }
            | Self::UnknownHeader { pointer } => (v4::PARAMETER_PROBLEM, 0, pointer << 24),
            Self::IncompleteHeaderChain => (v4::PARAMETER_PROBLEM, 0, 0),
        }
    }

    fn header_v6(self, offending: &Packet) -> (u8, u8, u32) {
        match self {
            Self::NoRoute | Self::UnreachableRoute => (v6::UNREACHABLE, 0, 0),
            Self::Prohibited => (v6::UNREACHABLE, 1, 0),
            Self::HostUnreachable => (v6::UNREACHABLE, 3, 0),
            Self::PortUnreachable => (v6::UNREACHABLE, 4, 0),
            Self::PacketTooBig { mtu } => (v6::PACKET_TOO_BIG, 0, mtu),
            Self::TtlExceeded => (v6::TIME_EXCEEDED, 0, 0),
            Self::ReassemblyTimeout => (v6::TIME_EXCEEDED, 1, 0),
            Self::HeaderProblem { pointer } => (v6::PARAMETER_PROBLEM, 0, pointer),
            Self::ProtocolUnreachable => (v6::PARAMETER_PROBLEM, 1, next_header_place(offending)),
            Self::UnknownHeader { pointer } => (v6::PARAMETER_PROBLEM, 1, pointer),
            Self::UnknownOption { pointer } => (v6::PARAMETER_PROBLEM, 2, pointer),
            Self::IncompleteHeaderChain => (v6::PARAMETER_PROBLEM, 3, 0),
        }
    }
}

/// An ICMP message that quotes `offending`, of which so many octets may be, with this type, this code,
/// and these four octets behind the checksum. `None` when `source` is of the other IP version, or the pool has no buffer.
pub(super) fn message(
    (offending, whole): (&Packet, usize),
    source: IpAddr,
    (kind, code, rest): (u8, u8, u32),
    options: &[u8],
    originator: &mut Originator,
    pool: &mut FramePool,
) -> Option<Packet> {
    let addresses = addresses(source, offending.source())?;
    let (protocol, limit) = match addresses {
        Addresses::V4 { .. } => {
            let limit = QUOTE_LIMIT_V4 - IPV4_HEADER - options.len();
            (protocol::ICMP, limit - ICMP_HEADER)
        }
        Addresses::V6 { .. } => {
            let limit = QUOTE_LIMIT_V6 - IPV6_HEADER;
            (protocol::ICMPV6, limit - ICMP_HEADER)
        }
    };
    let network = Network {
        addresses,
        protocol,
        traffic_class: error_traffic_class(offending),
        dont_fragment: false,
        options,
        flow: u32::from(kind) << 8 | u32::from(code),
    };
    let quoted = whole.min(limit);
    let mut packet = originator.packet(&network, ICMP_HEADER + quoted, pool, |icmp| {
        icmp[0] = kind;
        icmp[1] = code;
        icmp[4..8].copy_from_slice(&rest.to_be_bytes());
        quote(offending, &mut icmp[ICMP_HEADER..]);
        seal(addresses, icmp);
    })?;
    packet.set_vrf(offending.frame().vrf());
    Some(packet)
}

/// RFC 1812 §4.3.2.5 as Linux reads it: the TOS bits of the packet with the precedence of
/// internetwork control. ICMPv6 errors have traffic class 0.
fn error_traffic_class(offending: &Packet) -> u8 {
    if offending.is_ipv6() {
        0
    } else {
        traffic_class(offending) & 0x1e | 0xc0
    }
}

/// Packets about which no error at all may be sent.
pub(super) fn is_unanswerable(offending: &Packet) -> bool {
    if offending.is_ipv6() {
        // Later fragments may be answered (RFC 4443 §2.4e does not exempt them).
        offending
            .icmp()
            .is_some_and(|(kind, _)| kind < v6::FIRST_INFORMATIONAL || kind == v6::REDIRECT)
    } else {
        offending.fragment() == Fragment::Later
            || offending.icmp().is_some_and(|(kind, _)| {
                // Linux takes all for errors that are no queries of old.
                let query = matches!(
                    kind,
                    v4::ECHO_REPLY | v4::ECHO | v4::TIMESTAMP..=v4::LAST_KNOWN
                );
                !query
            })
    }
}

/// Octets from the IPv6 header's start to the next-header field that names the packet's
/// transport protocol.
fn next_header_place(offending: &Packet) -> u32 {
    let ip = offending.ip();
    let end = offending.transport_offset() - ETHERNET_HEADER;
    let (mut place, mut next, mut at) = (6, ip[6], IPV6_HEADER);
    while let Some([following, len, ..]) = ip.get(at..end) {
        let octets = match next {
            protocol::FRAGMENT => 8,
            protocol::AUTHENTICATION => (usize::from(*len) + 2) * 4,
            _ => (usize::from(*len) + 1) * 8,
        };
        (place, next) = (at, *following);
        at += octets;
    }
    u32::try_from(place).unwrap_or(0)
}

/// Fills `out` with the start of the packet as it is on the wire.
pub(super) fn quote(offending: &Packet, out: &mut [u8]) {
    let ip = offending.ip();
    out.copy_from_slice(&ip[..out.len()]);
    let offload = offending.frame().offload();
    let Checksum::Partial { start, offset } = offload.checksum else {
        return;
    };
    let start = usize::from(start) - ETHERNET_HEADER;
    let checksum = if offload.segmentation.is_some() {
        quote_first_segment(offending, out)
    } else {
        Sum::ZERO.plus(&ip[start..]).checksum()
    };
    // Where zero would mean that there is none, its other representation is sent.
    let checksum = if checksum == 0 { 0xffff } else { checksum };
    patch(out, start + usize::from(offset), checksum);
}

/// Turns the start of a super-frame into the start of its first segment, except for the transport
/// checksum, which it returns.
fn quote_first_segment(offending: &Packet, out: &mut [u8]) -> u16 {
    let l4 = offending.transport_offset() - ETHERNET_HEADER;
    let header_len = offending.payload_offset() - offending.transport_offset();
    let segment = &offending.ip()[l4..offending.wire_len()];
    let mut header = [0; 60];
    let (own, payload) = segment.split_at(header_len);
    let header = &mut header[..header_len];
    header.copy_from_slice(own);
    if offending.protocol() == protocol::UDP {
        let len = u16::try_from(segment.len()).unwrap_or(u16::MAX);
        header[4..6].copy_from_slice(&len.to_be_bytes());
        header[6..8].fill(0);
    } else {
        // FIN and PSH belong to the last segment.
        header[13] &= !0x09;
        header[16..18].fill(0);
    }
    if let Some(quoted) = out.get_mut(l4..) {
        let len = quoted.len().min(header_len);
        quoted[..len].copy_from_slice(&header[..len]);
    }
    set_ip_length(offending, out);
    let sum = offending.pseudo_sum(segment.len());
    sum.plus(header).plus(payload).checksum()
}

/// Writes the length of a super-frame's first segment into its IP header, of which `out` holds at
/// least the fixed part and the options.
fn set_ip_length(offending: &Packet, out: &mut [u8]) {
    let len = u16::try_from(offending.wire_len()).unwrap_or(u16::MAX);
    if offending.is_ipv6() {
        patch(out, 4, len - 40);
        return;
    }
    let header_len = usize::from(out[0] & 0xf) * 4;
    patch(out, 2, len);
    patch(out, 10, 0);
    let checksum = Sum::ZERO.plus(&out[..header_len]).checksum();
    patch(out, 10, checksum);
}

/// Writes as much of a 16-bit number as lies within `out`.
fn patch(out: &mut [u8], at: usize, value: u16) {
    for (n, octet) in value.to_be_bytes().into_iter().enumerate() {
        if let Some(place) = out.get_mut(at + n) {
            *place = octet;
        }
    }
}

/// Writes the checksum of a complete ICMP message whose checksum field is zero.
pub(super) fn seal(addresses: Addresses, icmp: &mut [u8]) {
    let sum = match addresses {
        Addresses::V4 { .. } => Sum::ZERO,
        Addresses::V6 { .. } => addresses.pseudo_sum(protocol::ICMPV6, icmp.len()),
    };
    let checksum = sum.plus(icmp).checksum();
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Ecn, GsoKind, Offload, Segmentation};
    use crate::ipv4_options::receive;
    use crate::test_packets::{Draft, N4, N6, Segment, hex, ip, pool};
    use crate::test_tunnels::any_flow;
    use crate::time::Instant;
    use core::num::NonZeroU16;
    use proptest::prelude::*;

    fn build(error: IcmpError, offending: &Packet, pool: &mut FramePool) -> Packet {
        let source = if offending.is_ipv6() { N6 } else { N4 };
        let mut originator = Originator::new(1);
        error
            .build(offending, ip(source), &mut originator, pool)
            .unwrap()
    }

    /// What Linux 6.18 put behind the IP header of its answer.
    fn assert_icmp(error: &Packet, linux: &str) {
        let icmp: String = error
            .transport()
            .iter()
            .map(|octet| format!("{octet:02x}"))
            .collect();
        assert_eq!(icmp, linux);
        assert!(error.transport_checksum_ok());
    }

    proptest! {
        /// Nobody is told of a packet that was never on a wire.
        #[test]
        fn of_a_tunnel_s_super_frame_the_first_segment_is_quoted(flow in any_flow()) {
            let mut pool = FramePool::new(8, 8000);
            let (octets, offload) = flow.super_frame();
            let mut frame = pool.copy_from(&octets).unwrap();
            frame.set_offload(offload);
            let whole = Packet::parse(frame).unwrap();
            prop_assert!(whole.tunnel().is_some());
            let first = pool.copy_from(&flow.segments()[0]).unwrap();
            let first = Packet::parse(first).unwrap();
            for error in [IcmpError::HostUnreachable, IcmpError::TtlExceeded] {
                let expected = build(error, &first, &mut pool);
                let told = build(error, &whole, &mut pool);
                prop_assert_eq!(told.ip(), expected.ip());
                pool.free(expected.into_frame());
                pool.free(told.into_frame());
            }
            // What the segment was made in is back.
            let free = core::iter::from_fn(|| pool.alloc()).collect::<Vec<_>>();
            prop_assert_eq!(free.len(), 6);
        }
    }

    /// All that can be told, as RFC 792, RFC 1122 §3.2.2.1, RFC 1812 §5.2.7.1 and RFC 4443 number it.
    #[test]
    fn each_error_has_its_type_and_code() {
        let mut pool = pool();
        let four = Draft::v4().udp_packet(&mut pool, (1, 2), b"x");
        let six = Draft::v6().udp_packet(&mut pool, (1, 2), b"x");
        for (error, v4, v6) in [
            (IcmpError::NoRoute, (3, 0), (1, 0)),
            (IcmpError::UnreachableRoute, (3, 1), (1, 0)),
            (IcmpError::HostUnreachable, (3, 1), (1, 3)),
            (IcmpError::ProtocolUnreachable, (3, 2), (4, 1)),
            (IcmpError::PortUnreachable, (3, 3), (1, 4)),
            (IcmpError::PacketTooBig { mtu: 1280 }, (3, 4), (2, 0)),
            (IcmpError::Prohibited, (3, 13), (1, 1)),
            (IcmpError::TtlExceeded, (11, 0), (3, 0)),
            (IcmpError::ReassemblyTimeout, (11, 1), (3, 1)),
            (IcmpError::HeaderProblem { pointer: 4 }, (12, 0), (4, 0)),
            (IcmpError::UnknownHeader { pointer: 6 }, (12, 0), (4, 1)),
            (IcmpError::UnknownOption { pointer: 42 }, (12, 0), (4, 2)),
            (IcmpError::IncompleteHeaderChain, (12, 0), (4, 3)),
        ] {
            for (offending, numbers) in [(&four, v4), (&six, v6)] {
                let told = build(error, offending, &mut pool);
                assert_eq!(told.icmp(), Some(numbers), "{error:?}");
                assert!(told.transport_checksum_ok());
            }
        }
    }

    #[test]
    fn port_unreachable_is_linux_s_to_the_octet() {
        let mut pool = pool();
        let mut draft = Draft::v4();
        let offending = draft.udp_packet(&mut pool, (1000, 2000), b"abcd");
        let error = build(IcmpError::PortUnreachable, &offending, &mut pool);
        assert_icmp(
            &error,
            "0303751f0000000045000020123400003711f994cb007102cb00710103e807d0000cb75261626364",
        );
        assert_eq!(
            (error.source(), error.destination()),
            (ip(N4), ip(crate::test_packets::X4))
        );
        assert_eq!(error.ttl(), 64);
        assert!(!error.dont_fragment());
        assert_ne!(
            error.ip()[4..6],
            [0, 0],
            "may be fragmented, so it has an identification"
        );

        draft.class = 0xff;
        draft.fragment = 0x4000;
        draft.options = vec![1, 1, 1, 0];
        let offending = draft.udp_packet(&mut pool, (1000, 2000), b"abcd");
        let error = build(IcmpError::PortUnreachable, &offending, &mut pool);
        assert_icmp(
            &error,
            "0303751f0000000046ff0024123440003711b590cb007102cb0071010101010003e807d0000cb75261626364",
        );
        assert!(!error.has_options());
    }

    /// Linux 6.18 cuts the packet to the datagram before it looks for its port.
    #[test]
    fn what_follows_a_datagram_in_its_packet_is_not_quoted() {
        let mut pool = pool();
        for draft in [Draft::v4(), Draft::v6()] {
            let mut udp = draft.udp((1000, 2000), b"abcd");
            let alone = draft.packet(&mut pool, protocol::UDP, &udp);
            let alone = build(IcmpError::PortUnreachable, &alone, &mut pool);
            udp.extend([0xee; 20]);
            let followed = draft.packet(&mut pool, protocol::UDP, &udp);
            let short = build(IcmpError::PortUnreachable, &followed, &mut pool);
            assert_eq!(short.transport().len(), alone.transport().len());
            assert!(short.transport_checksum_ok());
            // Nobody has looked at the datagram for the others.
            let whole = build(IcmpError::HostUnreachable, &followed, &mut pool);
            assert_eq!(whole.transport().len(), alone.transport().len() + 20);
        }
    }

    /// Seen on Linux 6.18: 0xff gives 0xde, 0x02 gives 0xc2, 0x1c gives 0xdc, 0xe0 gives 0xc0.
    #[test]
    fn precedence_is_internetwork_control() {
        let mut pool = pool();
        for (class, expected) in [
            (0, 0xc0),
            (0xff, 0xde),
            (2, 0xc2),
            (0x1c, 0xdc),
            (0xe0, 0xc0),
        ] {
            let mut draft = Draft::v4();
            draft.class = class;
            let offending = draft.udp_packet(&mut pool, (1, 2), b"");
            let error = build(IcmpError::PortUnreachable, &offending, &mut pool);
            assert_eq!(error.ip()[1], expected);
        }
    }

    #[test]
    fn record_route_is_filled_in_on_the_way_in_and_out() {
        let mut pool = pool();
        let mut draft = Draft::v4();
        draft.options = hex("070b04 0000000000000000 00");
        let mut offending = draft.udp_packet(&mut pool, (1000, 2000), b"abcd");
        receive(&mut offending, Instant::ZERO).unwrap();
        let error = build(IcmpError::PortUnreachable, &offending, &mut pool);
        assert_eq!(error.ip()[20..32], hex("070b0ccb007101cb00710100"));
        // The quoted header checksum is the one from before the option was filled in.
        assert_icmp(
            &error,
            "03036ee3000000004800002c123400003711eb7dcb007102cb007101070b08cb007101000000000003e807d0000cb75261626364",
        );
    }

    #[test]
    fn a_malformed_option_is_not_echoed_but_those_before_it_are() {
        let mut pool = pool();
        let mut draft = Draft::v4();
        draft.options = hex("070304 070304 0000");
        let offending = draft.icmp_packet(&mut pool, (8, 0), 0x1234_0001, b"hello");
        let error = build(
            IcmpError::HeaderProblem { pointer: 23 },
            &offending,
            &mut pool,
        );
        assert_eq!(error.ip()[20..24], hex("07030400"));
        assert_icmp(
            &error,
            "0c00dcff1700000047000029123400003701e98dcb007102cb00710107030407030400000800a1f81234000168656c6c6f",
        );
    }

    #[test]
    fn other_ipv4_errors_are_linux_s_to_the_octet() {
        let mut pool = pool();
        let mut draft = Draft::v4();
        let offending = draft.packet(&mut pool, 253, b"hello");
        let error = build(IcmpError::ProtocolUnreachable, &offending, &mut pool);
        assert_icmp(
            &error,
            "0302b92b00000000450000191234000037fdf8afcb007102cb00710168656c6c6f",
        );

        draft.destination = ip("198.51.100.9");
        draft.ttl = 1;
        draft.class = 0x15;
        let offending = draft.udp_packet(&mut pool, (1, 2), b"x");
        let error = build(IcmpError::TtlExceeded, &offending, &mut pool);
        assert_icmp(
            &error,
            "0b005b5a000000004515001d1234000001114148cb007102c6336409000100020009219978",
        );
        assert_eq!(error.ip()[1], 0xd4);

        draft = Draft::v4();
        draft.class = 0xff;
        for (destination, error, linux) in [
            (
                "192.0.2.1",
                IcmpError::UnreachableRoute,
                "0301fb1d0000000045ff001d1234000037117299cb007102c000020100010002000989d478",
            ),
            (
                "192.0.2.17",
                IcmpError::Prohibited,
                "030dfb210000000045ff001d1234000037117289cb007102c000021100010002000989c478",
            ),
            (
                "8.8.8.8",
                IcmpError::NoRoute,
                "0300492d0000000045ff001d123400003711248bcb007102080808080001000200093bc678",
            ),
        ] {
            draft.destination = ip(destination);
            let offending = draft.udp_packet(&mut pool, (1, 2), b"x");
            assert_icmp(&build(error, &offending, &mut pool), linux);
        }
    }

    #[test]
    fn fragmentation_needed_tells_the_mtu_and_quotes_548_octets() {
        let mut pool = pool();
        let mut draft = Draft::v4();
        draft.destination = ip("198.51.100.9");
        draft.fragment = 0x4000;
        let offending = draft.udp_packet(&mut pool, (1, 2), &[b'x'; 1372]);
        let error = build(IcmpError::PacketTooBig { mtu: 1280 }, &offending, &mut pool);
        assert_eq!(error.ip().len(), QUOTE_LIMIT_V4);
        assert_eq!(
            error.transport()[..36],
            hex("0304dc290000050045000578123440003711c601cb007102c6336409000100020564bc10")
        );
    }

    #[test]
    fn ipv6_errors_are_linux_s_to_the_octet() {
        let mut pool = pool();
        let mut draft = Draft::v6();
        draft.class = 0xff;
        draft.label = 0xabcde;
        let offending = draft.udp_packet(&mut pool, (1000, 2000), b"abcd");
        let error = build(IcmpError::PortUnreachable, &offending, &mut pool);
        assert_icmp(
            &error,
            "0104650f000000006ffabcde000c113720010db800010000000000000000000220010db800010000000000000000000103e807d0000cd3e061626364",
        );
        assert_eq!(traffic_class(&error), 0);
        assert_ne!(error.ip()[1..4], [0, 0, 0], "a flow label");
        assert_eq!(error.ttl(), 64);

        draft = Draft::v6();
        draft.destination = ip("2001:db8:2::9");
        draft.ttl = 1;
        let offending = draft.udp_packet(&mut pool, (1, 2), b"x");
        assert_icmp(
            &build(IcmpError::TtlExceeded, &offending, &mut pool),
            "0300302500000000600000000009110120010db800010000000000000000000220010db80002000000000000000000090001000200092c5978",
        );
        draft.ttl = 55;
        let offending = draft.udp_packet(&mut pool, (1, 2), &[b'x'; 1352]);
        let error = build(IcmpError::PacketTooBig { mtu: 1280 }, &offending, &mut pool);
        assert_eq!(error.ip().len(), QUOTE_LIMIT_V6);
        assert_eq!(error.transport()[..8], hex("0200aed700000500"));
        for (destination, error, linux) in [
            ("2001:db8:3::1", IcmpError::NoRoute, "010031ef00000000"),
            (
                "2001:db8:3::1",
                IcmpError::UnreachableRoute,
                "010031ef00000000",
            ),
            ("2001:db8:4::1", IcmpError::Prohibited, "010131ee00000000"),
        ] {
            draft.destination = ip(destination);
            let offending = draft.udp_packet(&mut pool, (1, 2), b"x");
            let built = build(error, &offending, &mut pool);
            assert_eq!(built.transport()[..8], hex(linux));
        }
        // Linux quotes the hop limit as decremented there: the forwarder does the same.
        draft.destination = ip("2001:db8:2::77");
        draft.ttl = 54;
        let offending = draft.udp_packet(&mut pool, (1, 2), b"x");
        let error = build(IcmpError::HostUnreachable, &offending, &mut pool);
        assert_eq!(error.transport()[..8], hex("010331ed00000000"));
    }

    #[test]
    fn an_unknown_next_header_is_pointed_at() {
        let mut pool = pool();
        let draft = Draft::v6();
        let offending = draft.packet(&mut pool, 253, b"hello");
        assert_icmp(
            &build(IcmpError::ProtocolUnreachable, &offending, &mut pool),
            "0401a38b00000006600000000005fd3720010db800010000000000000000000220010db800010000000000000000000168656c6c6f",
        );
        let offending = draft.packet(&mut pool, 60, &hex("fd00010400000000 68656c6c6f"));
        assert_icmp(
            &build(IcmpError::ProtocolUnreachable, &offending, &mut pool),
            "0401665500000028600000 00000d3c3720010db800010000000000000000000220010db8000100000000000000000001fd0001040000000068656c6c6f"
                .replace(' ', "")
                .as_str(),
        );
    }

    #[test]
    fn quotes_have_the_checksum_that_the_wire_would_have() {
        let mut pool = pool();
        for draft in [Draft::v4(), Draft::v6()] {
            for len in [4, 1400] {
                let mut transport = draft.udp((1000, 2000), &vec![b'a'; len]);
                let complete = draft.packet(&mut pool, 17, &transport);
                let expected = build(IcmpError::PortUnreachable, &complete, &mut pool);

                let pseudo = complete
                    .addresses()
                    .pseudo_sum(17, transport.len())
                    .folded();
                transport[6..8].copy_from_slice(&pseudo.to_be_bytes());
                let mut frame = pool.copy_from(&draft.frame(17, &transport)).unwrap();
                frame.set_offload(Offload {
                    checksum: Checksum::Partial {
                        start: complete.transport_offset() as u16,
                        offset: 6,
                    },
                    segmentation: None,
                });
                let partial = Packet::parse(frame).unwrap();
                let error = build(IcmpError::PortUnreachable, &partial, &mut pool);
                assert_eq!(error.transport(), expected.transport());
            }
        }
    }

    #[test]
    fn a_super_frame_is_quoted_as_its_first_segment() {
        let mut pool = pool();
        for (draft, kind) in [(Draft::v4(), GsoKind::TcpV4), (Draft::v6(), GsoKind::TcpV6)] {
            let payload: Vec<u8> = (0..5000_u32).map(|n| n as u8).collect();
            let first = Segment {
                flags: 0x10,
                options: &[1; 12],
                payload: &payload[..700],
                ..Segment::default()
            };
            let all = Segment {
                flags: 0x19,
                payload: &payload,
                ..first
            };
            let expected = draft.tcp_packet(&mut pool, &first);
            let expected = build(IcmpError::NoRoute, &expected, &mut pool);

            let mut transport = draft.tcp(&all);
            let addresses = addresses(draft.source, draft.destination).unwrap();
            let pseudo = addresses.pseudo_sum(6, transport.len()).folded();
            transport[16..18].copy_from_slice(&pseudo.to_be_bytes());
            let frame = draft.frame(6, &transport);
            let start = (frame.len() - transport.len()) as u16;
            let mut frame = pool.copy_from(&frame).unwrap();
            frame.set_offload(Offload {
                checksum: Checksum::Partial { start, offset: 16 },
                segmentation: Some(Segmentation {
                    kind,
                    ecn: Ecn::Unmarked,
                    size: NonZeroU16::new(700).unwrap(),
                    tunnel: None,
                }),
            });
            let super_frame = Packet::parse(frame).unwrap();
            let error = build(IcmpError::NoRoute, &super_frame, &mut pool);
            assert_eq!(error.transport(), expected.transport());
        }
    }

    #[test]
    fn a_datagram_super_frame_is_quoted_as_its_first_datagram() {
        let mut pool = pool();
        let draft = Draft::v4();
        let payload = vec![7; 3000];
        let expected = draft.udp_packet(&mut pool, (1, 2), &payload[..1200]);
        let expected = build(IcmpError::PortUnreachable, &expected, &mut pool);
        let mut transport = draft.udp((1, 2), &payload);
        let addresses = addresses(draft.source, draft.destination).unwrap();
        let pseudo = addresses.pseudo_sum(17, transport.len()).folded();
        transport[6..8].copy_from_slice(&pseudo.to_be_bytes());
        let mut frame = pool.copy_from(&draft.frame(17, &transport)).unwrap();
        frame.set_offload(Offload {
            checksum: Checksum::Partial {
                start: 34,
                offset: 6,
            },
            segmentation: Some(Segmentation {
                kind: GsoKind::Udp,
                ecn: Ecn::Unmarked,
                size: NonZeroU16::new(1200).unwrap(),
                tunnel: None,
            }),
        });
        let super_frame = Packet::parse(frame).unwrap();
        let error = build(IcmpError::PortUnreachable, &super_frame, &mut pool);
        assert_eq!(error.transport(), expected.transport());
    }

    #[test]
    fn no_buffer_and_mixed_families_give_none() {
        let mut pool = FramePool::new(2, 2000);
        let offending = Draft::v4().udp_packet(&mut pool, (1, 2), b"x");
        let mut originator = Originator::new(1);
        let error = IcmpError::NoRoute;
        assert!(
            error
                .build(&offending, ip(N6), &mut originator, &mut pool)
                .is_none()
        );
        let last = pool.alloc().unwrap();
        assert!(
            error
                .build(&offending, ip(N4), &mut originator, &mut pool)
                .is_none()
        );
        pool.free(last);
        assert!(
            error
                .build(&offending, ip(N4), &mut originator, &mut pool)
                .is_some()
        );
    }

    /// Destination, source, MAC, protocol, payload, IPv4 fragment field.
    type Case = (&'static str, &'static str, u8, &'static str, u16);

    fn offending(pool: &mut FramePool, case: Case, mac: [u8; 6]) -> Packet {
        let (source, destination, protocol, payload, fragment) = case;
        let mut draft = Draft::new(source, destination);
        draft.fragment = fragment;
        draft.mac = mac;
        draft.packet(pool, protocol, &hex(payload))
    }

    const UNICAST: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
    /// A UDP datagram without a checksum, or with a TCP-like blank.
    const UDP: &str = "0001 0002 0008 0000";

    #[test]
    fn what_may_be_answered() {
        let mut pool = pool();
        let (x4, n4, x6, n6) = ("203.0.113.2", N4, "2001:db8:1::2", N6);
        let yes: &[Case] = &[
            (x4, n4, 17, UDP, 0),
            (x4, n4, 17, UDP, 0x2000),
            (x4, n4, 1, "0800 0000 00000000", 0),
            // Linux answers about echo replies and timestamps.
            (x4, n4, 1, "0000 0000 00000000", 0),
            (x4, n4, 1, "0d00 0000 00000000", 0),
            (x4, n4, 253, "", 0),
            (x6, n6, 253, "", 0),
            (x6, n6, 58, "8000 0000 00000000", 0),
            // Linux answers about unknown informational messages (RFC 4443 §2.4b).
            (x6, n6, 58, "c800 0000 00000000", 0),
            // And about later fragments, which RFC 4443 §2.4e does not exempt.
            (x6, n6, 44, "1100 0040 00000008 0000000000000000", 0),
        ];
        let no: &[Case] = &[
            (x4, n4, 17, "0000000000000000", 8),
            (x4, n4, 1, "0303 0000 00000000", 0),
            (x4, n4, 1, "0400 0000 00000000", 0),
            (x4, n4, 1, "0500 0000 00000000", 0),
            (x4, n4, 1, "0b00 0000 00000000", 0),
            (x4, n4, 1, "0c00 0000 00000000", 0),
            // Linux is silent about types that it does not know, and about those that were never more
            // than reserved or are routers'.
            (x4, n4, 1, "2a00 0000 00000000", 0),
            (x4, n4, 1, "0100 0000 00000000", 0),
            (x4, n4, 1, "0600 0000 00000000", 0),
            (x4, n4, 1, "0900 0000 00000000", 0),
            (x4, n4, 1, "0a00 0000 00000000", 0),
            (x4, "224.0.0.5", 17, UDP, 0),
            (x4, "255.255.255.255", 17, UDP, 0),
            ("0.0.0.0", n4, 17, UDP, 0),
            ("127.0.0.1", n4, 17, UDP, 0),
            ("224.0.0.5", n4, 17, UDP, 0),
            ("255.255.255.255", n4, 17, UDP, 0),
            // Linux answers these two; RFC 1812 §4.3.2.7 says MUST NOT.
            ("0.1.2.3", n4, 17, UDP, 0),
            ("240.1.2.3", n4, 17, UDP, 0),
            (x6, n6, 58, "0104 0000 00000000", 0),
            (x6, n6, 58, "7f00 0000 00000000", 0),
            // Linux answers about redirects; RFC 4443 §2.4e.2 says MUST NOT.
            (x6, n6, 58, "8900 0000 00000000", 0),
            (x6, "ff02::1", 253, "", 0),
            ("::", n6, 253, "", 0),
            ("::1", n6, 253, "", 0),
            ("ff02::5", n6, 253, "", 0),
        ];
        for &case in yes {
            let packet = offending(&mut pool, case, UNICAST);
            assert!(IcmpError::NoRoute.may_answer(&packet), "{case:?}");
        }
        for &case in no {
            let packet = offending(&mut pool, case, UNICAST);
            assert!(!IcmpError::NoRoute.may_answer(&packet), "{case:?}");
        }
        for &case in yes {
            let packet = offending(&mut pool, case, [1, 0, 0x5e, 0, 0, 1]);
            assert!(
                !IcmpError::NoRoute.may_answer(&packet),
                "to a group: {case:?}"
            );
        }
    }

    #[test]
    fn groups_hear_of_packets_too_big_and_unknown_options_in_ipv6_only() {
        let mut pool = pool();
        for error in [
            IcmpError::PacketTooBig { mtu: 1280 },
            IcmpError::UnknownOption { pointer: 42 },
        ] {
            let group = offending(&mut pool, ("2001:db8::1", "ff02::1", 253, "", 0), UNICAST);
            assert!(error.may_answer(&group));
            let group = offending(&mut pool, ("203.0.113.2", "224.0.0.5", 253, "", 0), UNICAST);
            assert!(!error.may_answer(&group));
        }
    }

    /// Linux verifies the checksum before it looks for a listener.
    #[test]
    fn damaged_datagrams_have_no_unreachable_port() {
        let mut pool = pool();
        for draft in [Draft::v4(), Draft::v6()] {
            let mut udp = draft.udp((1, 2), b"abcd");
            let good = draft.packet(&mut pool, 17, &udp);
            assert!(IcmpError::PortUnreachable.may_answer(&good));
            udp[7] ^= 0x55;
            let bad = draft.packet(&mut pool, 17, &udp);
            assert!(!IcmpError::PortUnreachable.may_answer(&bad));
            assert!(IcmpError::TtlExceeded.may_answer(&bad));
        }
    }
}
