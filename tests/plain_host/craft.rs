//! Crafted packets.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::{IpHeaders, PacketBuilderStep};

use crate::support::wire::{self, ICMP, ICMPV6, TCP, UDP};

/// A packet up to its IP header.
pub(crate) type Step = PacketBuilderStep<IpHeaders>;

/// Closed everywhere: neither the NOS nor a container has it.
pub(crate) const CLOSED: u16 = 81;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const URG: u8 = 0x20;

pub(crate) fn segment(step: Step, flags: u8, payload: &[u8]) -> Vec<u8> {
    segment_to(step, CLOSED, flags, payload)
}

pub(crate) fn segment_to(step: Step, port: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    segment_of(step, (50_000, port), flags, payload)
}

pub(crate) fn segment_of(
    step: Step,
    (source, destination): (u16, u16),
    flags: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut tcp = step.tcp(source, destination, 0x0102_0304, 1000);
    if flags & FIN != 0 {
        tcp = tcp.fin();
    }
    if flags & SYN != 0 {
        tcp = tcp.syn();
    }
    if flags & RST != 0 {
        tcp = tcp.rst();
    }
    if flags & PSH != 0 {
        tcp = tcp.psh();
    }
    if flags & ACK != 0 {
        tcp = tcp.ack(0x0a0b_0c0d);
    }
    if flags & URG != 0 {
        tcp = tcp.urg(1);
    }
    let mut frame = Vec::new();
    tcp.write(&mut frame, payload).unwrap();
    frame
}

pub(crate) fn datagram(step: Step, payload: &[u8]) -> Vec<u8> {
    wire::udp(step, (50_000, CLOSED), payload)
}

/// An echo request as a host sends it.
pub(crate) fn echo(step: Step) -> Vec<u8> {
    icmp(step, 8, 128, b"\x12\x34\x00\x01abc")
}

pub(crate) fn is_v6(frame: &[u8]) -> bool {
    frame[12..14] == [0x86, 0xdd]
}

/// Where the transport header begins, without extension headers or options.
pub(crate) fn transport_at(frame: &[u8]) -> usize {
    if is_v6(frame) { 54 } else { 34 }
}

pub(crate) fn with_octet(
    mut frame: Vec<u8>,
    of_transport: usize,
    change: impl Fn(u8) -> u8,
) -> Vec<u8> {
    let at = transport_at(&frame) + of_transport;
    frame[at] = change(frame[at]);
    frame
}

/// The same with TTL or hop limit `ttl`.
pub(crate) fn with_ttl(mut frame: Vec<u8>, ttl: u8) -> Vec<u8> {
    if is_v6(&frame) {
        frame[21] = ttl;
    } else {
        frame[22] = ttl;
        wire::fix_ipv4_checksum(&mut frame);
    }
    frame
}

/// The same to another host's MAC address.
pub(crate) fn for_other_host(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&[2, 0, 0, 0xaa, 0xbb, 0xcc]);
    frame
}

/// The same with `by` added to the length in the IP header, modulo 2^16.
pub(crate) fn with_ip_length(mut frame: Vec<u8>, by: i16) -> Vec<u8> {
    let at = if is_v6(&frame) { 18 } else { 16 };
    let length = u16::from_be_bytes([frame[at], frame[at + 1]]).wrapping_add_signed(by);
    frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
    if !is_v6(&frame) {
        wire::fix_ipv4_checksum(&mut frame);
    }
    frame
}

/// A packet of any protocol, extension headers included, which the builder would judge.
pub(crate) fn other(step: Step, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = wire::other(step, 253, payload);
    if is_v6(&frame) {
        frame[20] = protocol;
    } else {
        frame[23] = protocol;
        wire::fix_ipv4_checksum(&mut frame);
    }
    frame
}

/// An ICMP message of any type, with its checksum.
pub(crate) fn icmp(step: Step, v4_kind: u8, v6_kind: u8, body: &[u8]) -> Vec<u8> {
    // The protocol is told by the family that the frame turns out to have.
    let mut frame = wire::other(step, ICMPV6, &[&[0; 4], body].concat());
    let at = transport_at(&frame);
    let v6 = at == 54;
    frame[at] = if v6 { v6_kind } else { v4_kind };
    let mut summed = Vec::new();
    if v6 {
        let length = u32::try_from(frame.len() - at).unwrap();
        summed.extend(&frame[22..54]);
        summed.extend(length.to_be_bytes());
        summed.extend([0, 0, 0, ICMPV6]);
    } else {
        frame[23] = ICMP;
        wire::fix_ipv4_checksum(&mut frame);
    }
    summed.extend(&frame[at..]);
    let sum = !wire::sum(&summed);
    frame[at + 2..at + 4].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The frame to a group or as broadcast.
pub(crate) fn addressed(frame: Vec<u8>, v4: [u8; 4], v6: &str) -> Vec<u8> {
    let v6: Ipv6Addr = v6.parse().unwrap();
    if is_v6(&frame) {
        let mut frame = replaced(frame, 38, &v6.octets());
        frame[..2].copy_from_slice(&[0x33, 0x33]);
        frame[2..6].copy_from_slice(&v6.octets()[12..]);
        return frame;
    }
    let mut frame = replaced(frame, 30, &v4);
    let mac = match v4 {
        [224..=239, b, c, d] => [1, 0, 0x5e, b & 0x7f, c, d],
        _ => [0xff; 6],
    };
    frame[..6].copy_from_slice(&mac);
    frame
}

/// The frame from another source address.
pub(crate) fn from(frame: Vec<u8>, v4: [u8; 4], v6: &str) -> Vec<u8> {
    let v6: IpAddr = v6.parse().unwrap();
    match v6 {
        IpAddr::V6(v6) if is_v6(&frame) => replaced(frame, 22, &v6.octets()),
        _ => replaced(frame, 26, &v4),
    }
}

/// Puts an address at `place`, and makes the checksums fit.
fn replaced(mut frame: Vec<u8>, place: usize, new: &[u8]) -> Vec<u8> {
    let at = transport_at(&frame);
    let old = frame[place..place + new.len()].to_vec();
    frame[place..place + new.len()].copy_from_slice(new);
    let v6 = is_v6(&frame);
    if !v6 {
        wire::fix_ipv4_checksum(&mut frame);
    }
    // ICMP for IPv4 has no pseudo-header.
    let checksum = match frame[if v6 { 20 } else { 23 }] {
        TCP => 16,
        UDP => 6,
        ICMPV6 => 2,
        _ => return frame,
    };
    let field = at + checksum..at + checksum + 2;
    let before = u16::from_be_bytes(frame[field.clone()].try_into().unwrap());
    // RFC 1624 equation 3.
    let not = |octets: &[u8]| octets.iter().map(|octet| !octet).collect::<Vec<_>>();
    let terms = [&(!before).to_be_bytes()[..], &not(&old), new].concat();
    frame[field].copy_from_slice(&(!wire::sum(&terms)).to_be_bytes());
    frame
}

/// The frame with IPv4 options, in multiples of four octets.
pub(crate) fn with_options(mut frame: Vec<u8>, options: &[u8]) -> Vec<u8> {
    if !is_v6(&frame) {
        frame[14] += u8::try_from(options.len() / 4).unwrap();
        frame.splice(34..34, options.iter().copied());
        frame = with_ip_length(frame, i16::try_from(options.len()).unwrap());
    }
    frame
}

pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;

/// The frame with an IPv6 extension header in front of all others; `body` is what follows its next
/// header and length, six octets or eight more.
pub(crate) fn extended(mut frame: Vec<u8>, kind: u8, body: &[u8]) -> Vec<u8> {
    let length = body.len() + 2;
    let header = [frame[20], u8::try_from(length / 8 - 1).unwrap()];
    frame[20] = kind;
    frame.splice(54..54, header.into_iter().chain(body.iter().copied()));
    with_ip_length(frame, i16::try_from(length).unwrap())
}
