//! The parser against smoltcp and etherparse.
//!
//! Wherever both accept a frame and see the same in it, this parser accepts it and sees that, too.
//! And whatever it accepts, neither of them contradicts. The differences, all deliberate:
//!
//! | | here | etherparse | smoltcp |
//! |---|---|---|---|
//! | IPv4 header checksum | checked | ignored | checked |
//! | IPv4 authentication header | not followed | followed | not followed |
//! | hop-by-hop options not in front | an unknown protocol | refused | - |
//! | more than 8 extension headers, two fragment headers | refused | accepted | - |
//! | extension headers behind a later fragment's | are payload | are followed | - |
//! | fragments of odd length (IPv6), or ending beyond 65,535 octets | refused | accepted | - |
//! | first fragments in IPv6 of which nothing follows the headers (RFC 7112 §3) | refused | accepted | accepted |
//! | IPv6 payload length zero | nothing follows | up to the frame's end | nothing follows |
//! | UDP length zero | IPv6 only | accepted | refused |
//! | ICMP timestamps of odd length, short IGMP, AH below 12 octets | accepted | refused | accepted |
//! | unknown types of ICMPv6 | accepted | accepted | refused |

use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nos_shim::drop::DropReason;
use nos_shim::frame::{ETHERNET_HEADER, FramePool};
use nos_shim::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Fragment, Packet, ether_type, protocol};
use smoltcp::wire;

/// Extension headers of IPv6 that a packet may have.
const MAX_EXTENSION_HEADERS: usize = 8;

/// What a parser sees in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct View {
    /// Octets of the frame up to the end of the IP packet.
    len: usize,
    addresses: (IpAddr, IpAddr),
    l4: usize,
    protocol: u8,
    ports: Option<(u16, u16)>,
    /// Start of the payload of TCP or UDP; otherwise `l4`.
    payload: usize,
}

impl View {
    fn of(packet: &Packet) -> Self {
        Self {
            len: packet.frame().len(),
            addresses: (packet.source(), packet.destination()),
            l4: packet.transport_offset(),
            protocol: packet.protocol(),
            ports: packet.ports().map(|it| (it.source, it.destination)),
            payload: packet.payload_offset(),
        }
    }

    fn without_transport(self) -> Self {
        Self {
            ports: None,
            payload: self.l4,
            ..self
        }
    }
}

/// As etherparse sees it; it looks into no fragment's transport header.
fn by_etherparse(frame: &[u8]) -> Option<View> {
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    if !sliced.link_exts.is_empty() {
        return None;
    }
    let (addresses, payload) = match sliced.net.as_ref()? {
        NetSlice::Ipv4(ip) if ip.extensions().auth.is_some() => return None,
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let addresses = (
                header.source_addr().into(),
                header.destination_addr().into(),
            );
            (addresses, ip.payload())
        }
        NetSlice::Ipv6(ip) if ip.header().payload_length() == 0 => return None,
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let addresses = (
                header.source_addr().into(),
                header.destination_addr().into(),
            );
            (addresses, ip.payload())
        }
        NetSlice::Arp(_) => return None,
    };
    let l4 = payload.payload.as_ptr() as usize - frame.as_ptr() as usize;
    let (ports, header) = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => (
            Some((tcp.source_port(), tcp.destination_port())),
            tcp.header_slice().len(),
        ),
        Some(TransportSlice::Udp(udp)) => (Some((udp.source_port(), udp.destination_port())), 8),
        _ => (None, 0),
    };
    Some(View {
        len: l4 + payload.payload.len(),
        addresses,
        l4,
        protocol: payload.ip_number.0,
        ports,
        payload: l4 + header,
    })
}

/// What smoltcp makes of a frame.
#[derive(Debug, PartialEq)]
enum Smoltcp {
    Refuses,
    /// It was built without authentication headers.
    CannotTell,
    /// With the number of extension headers, and of fragment headers among them.
    Sees(View, (usize, usize)),
}

fn by_smoltcp(frame: &[u8]) -> Smoltcp {
    let seen = match ether_type(frame) {
        Some(ETHERTYPE_IPV4) => ipv4_by_smoltcp(&frame[14..]),
        Some(ETHERTYPE_IPV6) => match ipv6_by_smoltcp(&frame[14..]) {
            Some(seen) if seen.protocol == protocol::AUTHENTICATION && !seen.later => {
                return Smoltcp::CannotTell;
            }
            seen => seen,
        },
        _ => None,
    };
    let view = seen.as_ref().and_then(|seen| seen.view(&frame[14..]));
    match (view, seen) {
        (Some(view), Some(seen)) => Smoltcp::Sees(view, seen.counts),
        _ => Smoltcp::Refuses,
    }
}

/// What smoltcp sees in the network layer; offsets count from the IP header.
struct Network {
    addresses: (IpAddr, IpAddr),
    header: usize,
    end: usize,
    protocol: u8,
    later: bool,
    counts: (usize, usize),
}

fn ipv4_by_smoltcp(octets: &[u8]) -> Option<Network> {
    let ip = wire::Ipv4Packet::new_checked(octets).ok()?;
    let right = adds_up(&[], octets.get(..usize::from(ip.header_len()))?);
    assert!(cfg!(fuzzing) || right == ip.verify_checksum());
    (ip.version() == 4 && right).then(|| Network {
        addresses: (ip.src_addr().into(), ip.dst_addr().into()),
        header: usize::from(ip.header_len()),
        end: usize::from(ip.total_len()),
        protocol: u8::from(ip.next_header()),
        later: ip.frag_offset() != 0,
        counts: (0, 0),
    })
}

/// Follows the extension headers that smoltcp's interface would follow.
fn ipv6_by_smoltcp(octets: &[u8]) -> Option<Network> {
    let ip = wire::Ipv6Packet::new_checked(octets).ok()?;
    let mut network = Network {
        addresses: (ip.src_addr().into(), ip.dst_addr().into()),
        header: 40,
        end: ip.total_len(),
        protocol: u8::from(ip.next_header()),
        later: false,
        counts: (0, 0),
    };
    while !network.later {
        let rest = octets.get(network.header..network.end)?;
        let len = match network.protocol {
            protocol::HOP_BY_HOP if network.header == 40 => ext_len(rest)?,
            protocol::ROUTING | protocol::DESTINATION_OPTIONS => ext_len(rest)?,
            protocol::FRAGMENT => {
                let header = wire::Ipv6FragmentHeader::new_checked(rest.get(2..8)?).ok()?;
                network.later = header.frag_offset() != 0;
                network.counts.1 += 1;
                8
            }
            _ => break,
        };
        network.protocol = rest[0];
        network.header += len;
        network.counts.0 += 1;
    }
    (ip.version() == 6 && network.header <= network.end).then_some(network)
}

impl Network {
    fn view(&self, ip: &[u8]) -> Option<View> {
        let l4 = ETHERNET_HEADER + self.header;
        let (ports, header) = if self.later {
            (None, 0)
        } else {
            transport_by_smoltcp(ip, self.protocol, &ip[self.header..self.end])?
        };
        Some(View {
            len: ETHERNET_HEADER + self.end,
            addresses: self.addresses,
            l4,
            protocol: self.protocol,
            ports,
            payload: l4 + header,
        })
    }
}

fn ext_len(rest: &[u8]) -> Option<usize> {
    let header = wire::Ipv6ExtHeader::new_checked(rest).ok()?;
    Some(8 * (usize::from(header.header_len()) + 1))
}

type TransportView = (Option<(u16, u16)>, usize);

fn transport_by_smoltcp(ip: &[u8], protocol: u8, transport: &[u8]) -> Option<TransportView> {
    let ipv6 = ip[0] >> 4 == 6;
    Some(match protocol {
        protocol::TCP => {
            let tcp = wire::TcpPacket::new_checked(transport).ok()?;
            let ports = (tcp.src_port(), tcp.dst_port());
            (Some(ports), usize::from(tcp.header_len()))
        }
        protocol::UDP => {
            let udp = wire::UdpPacket::new_checked(transport).ok()?;
            (Some((udp.src_port(), udp.dst_port())), 8)
        }
        protocol::ICMP if !ipv6 => {
            wire::Icmpv4Packet::new_checked(transport).ok()?;
            (None, 0)
        }
        protocol::ICMPV6 if ipv6 => {
            wire::Icmpv6Packet::new_checked(transport).ok()?;
            (None, 0)
        }
        _ => (None, 0),
    })
}

/// Whether this parser may refuse what both others accept.
fn stricter(
    octets: &[u8],
    seen: View,
    reason: DropReason,
    (extensions, fragments): (usize, usize),
) -> bool {
    match reason {
        DropReason::TinyFragment => fragments > 0 && seen.l4 == seen.len,
        DropReason::Ipv6Header => extensions > MAX_EXTENSION_HEADERS || fragments > 1,
        // Of odd length, or ending beyond 65,535 octets: the unit tests of the parser have a table.
        DropReason::IpLength => fragments > 0 || is_ipv4_fragment(octets),
        _ => false,
    }
}

fn is_ipv4_fragment(octets: &[u8]) -> bool {
    let field = octets
        .get(20..22)
        .filter(|_| ether_type(octets) == Some(ETHERTYPE_IPV4));
    field.is_some_and(|field| field[0] & 0x3f != 0 || field[1] != 0)
}

/// Compares what the three see in a frame.
pub fn check(octets: &[u8], pool: &mut FramePool) {
    let etherparse = by_etherparse(octets);
    let smoltcp = by_smoltcp(octets);
    let frame = pool.copy_from(octets).expect("room for the frame");
    match Packet::parse(frame) {
        Err(rejected) => {
            assert_eq!(rejected.frame.bytes(), octets);
            if let (Some(one), Smoltcp::Sees(other, counts)) = (etherparse, smoltcp) {
                let agree = one == other;
                assert!(
                    !agree || stricter(octets, one, rejected.reason, counts),
                    "{:?}: {one:?}",
                    rejected.reason
                );
            }
            pool.free(rejected.frame);
        }
        Ok(packet) => {
            accepted(&packet, etherparse, &smoltcp);
            pool.free(packet.into_frame());
        }
    }
}

/// Neither of the others contradicts what is seen here.
fn accepted(packet: &Packet, etherparse: Option<View>, smoltcp: &Smoltcp) {
    let ours = View::of(packet);
    let fragment = packet.fragment();
    match smoltcp {
        Smoltcp::Sees(theirs, _) => assert_eq!(ours, *theirs),
        Smoltcp::CannotTell => {}
        Smoltcp::Refuses => {
            // It wants whole datagrams, lengths in them, and known types of ICMPv6.
            let udp =
                ours.protocol == protocol::UDP && (packet.is_ipv6() || fragment == Fragment::First);
            assert!(udp || packet.icmp().is_some(), "{ours:?}");
        }
    }
    if let Some(theirs) = etherparse
        && fragment != Fragment::Later
    {
        let ours = if fragment == Fragment::Whole {
            ours
        } else {
            ours.without_transport()
        };
        assert_eq!(ours, theirs);
    }
    checksum_agrees(packet);
}

/// [`Packet::transport_checksum_ok`] against the sum of one word after the other, and against smoltcp's,
/// which takes every sum for right where `cfg(fuzzing)` is set.
fn checksum_agrees(packet: &Packet) {
    if packet.fragment() != Fragment::Whole || packet.has_segments_left() {
        assert!(packet.transport_checksum_ok());
        return;
    }
    let transport = packet.transport();
    let (naive, theirs) = match (packet.protocol(), packet.is_ipv6()) {
        (protocol::TCP, _) => {
            let tcp = wire::TcpPacket::new_unchecked(transport);
            let (source, destination) = addresses(packet);
            let theirs = tcp.verify_checksum(&source, &destination);
            (adds_up(&pseudo(packet, transport), transport), theirs)
        }
        (protocol::UDP, ipv6) => {
            let udp = wire::UdpPacket::new_unchecked(transport);
            match (udp.checksum(), udp.len()) {
                // smoltcp tolerates none in IPv6, RFC 8200 §8.1 does not.
                (0, _) => (!ipv6, !ipv6),
                (_, 0) => return,
                (_, len) => {
                    let datagram = &transport[..usize::from(len)];
                    let (source, destination) = addresses(packet);
                    let theirs = udp.verify_checksum(&source, &destination);
                    (adds_up(&pseudo(packet, datagram), datagram), theirs)
                }
            }
        }
        (protocol::ICMP, false) => {
            let icmp = wire::Icmpv4Packet::new_unchecked(transport);
            (adds_up(&[], transport), icmp.verify_checksum())
        }
        (protocol::ICMPV6, true) => {
            let (IpAddr::V6(source), IpAddr::V6(destination)) =
                (packet.source(), packet.destination())
            else {
                unreachable!("both are of the packet's version");
            };
            let icmp = wire::Icmpv6Packet::new_unchecked(transport);
            let theirs = icmp.verify_checksum(&source, &destination);
            (adds_up(&pseudo(packet, transport), transport), theirs)
        }
        _ => (true, true),
    };
    assert_eq!(packet.transport_checksum_ok(), naive);
    assert!(cfg!(fuzzing) || theirs == naive);
}

fn addresses(packet: &Packet) -> (wire::IpAddress, wire::IpAddress) {
    (packet.source().into(), packet.destination().into())
}

/// The pseudo-header of RFC 9293 §3.1 and RFC 8200 §8.1.
fn pseudo(packet: &Packet, transport: &[u8]) -> Vec<u8> {
    let mut octets = Vec::with_capacity(40);
    for address in [packet.source(), packet.destination()] {
        match address {
            IpAddr::V4(address) => octets.extend(address.octets()),
            IpAddr::V6(address) => octets.extend(address.octets()),
        }
    }
    octets.extend((transport.len() as u32).to_be_bytes());
    octets.extend([0, packet.protocol()]);
    octets
}

/// Whether what includes its checksum adds up (RFC 1071 §1), one word after the other.
fn adds_up(front: &[u8], octets: &[u8]) -> bool {
    let words = front.chunks(2).chain(octets.chunks(2));
    let sum = words.fold(0_u32, |sum, word| {
        let word = [word[0], word.get(1).copied().unwrap_or(0)];
        let sum = sum + u32::from(u16::from_be_bytes(word));
        (sum & 0xffff) + (sum >> 16)
    });
    sum == 0xffff
}

/// What both others see in a frame, if they agree; for tests of this module.
pub fn agreed(octets: &[u8]) -> Option<Option<(u16, u16)>> {
    let view = by_etherparse(octets)?;
    (by_smoltcp(octets) == Smoltcp::Sees(view, (0, 0))).then_some(view.ports)
}
