//! UDP services, which need no memory of their flows.

use crate::frame::Checksum;
use crate::originate::{Network, Originator, addresses, flow_of};
use crate::packet::{Addresses, Packet, Ports, protocol};

/// Ports of small services that answer whatever they get. An echo to them could go on for ever
/// (CERT CA-1996-01), and one to port 0 leads nowhere.
pub(super) fn would_loop(source: u16) -> bool {
    matches!(source, 0 | 7 | 9 | 11 | 13 | 17 | 19 | 37)
}

/// Octets of a UDP header.
const HEADER: usize = 8;
/// Octets from the start of a UDP header to the checksum.
const CHECKSUM: usize = 6;

/// Turns a datagram round, in place. Its checksum stays right, as the same words are summed; one
/// that had none gets one (RFC 1122 §4.1.3.4).
/// Sent as Linux sends from a UDP socket: DF set unless it has to be fragmented here, TOS 0.
pub(super) fn echo(packet: Packet, mtu: usize, originator: &mut Originator) -> Packet {
    let (own, peer) = (packet.destination(), packet.source());
    let (Some(addresses), Some(ports)) = (addresses(own, peer), packet.ports()) else {
        return packet;
    };
    let ports = Ports {
        source: ports.destination,
        destination: ports.source,
    };
    let network = Network {
        addresses,
        protocol: protocol::UDP,
        traffic_class: 0,
        dont_fragment: matches!(addresses, Addresses::V6 { .. }) || packet.wire_len() <= mtu,
        options: &[],
        flow: flow_of(ports),
    };
    let mut packet = packet;
    cut_behind(&mut packet);
    let checksum = missing_checksum(&packet);
    let transport = packet.transport_offset();
    if let Some(udp) = packet
        .frame_mut()
        .bytes_mut()
        .get_mut(transport..transport + CHECKSUM + 2)
    {
        udp[..2].copy_from_slice(&ports.source.to_be_bytes());
        udp[2..4].copy_from_slice(&ports.destination.to_be_bytes());
        if let Some(checksum) = checksum {
            udp[CHECKSUM..].copy_from_slice(&checksum.to_be_bytes());
        }
    }
    // A header without options is never longer than what was there.
    match originator.replace_header(packet, &network) {
        Ok(packet) | Err(packet) => packet,
    }
}

/// Takes away what follows the datagram in its packet.
fn cut_behind(packet: &mut Packet) {
    let length = packet
        .transport()
        .get(4..6)
        .map(|field| [field[0], field[1]]);
    let length = length.map_or(0, |field| usize::from(u16::from_be_bytes(field)));
    // Zero is that of a jumbogram or a super-frame.
    if length >= HEADER && !is_partial(packet) {
        let end = packet.transport_offset() + length;
        packet.frame_mut().truncate(end);
    }
}

fn is_partial(packet: &Packet) -> bool {
    matches!(packet.frame().offload().checksum, Checksum::Partial { .. })
}

/// The checksum of a datagram that its sender left without.
fn missing_checksum(packet: &Packet) -> Option<u16> {
    let datagram = packet.transport();
    if is_partial(packet) || datagram.get(CHECKSUM..CHECKSUM + 2) != Some(&[0, 0]) {
        return None;
    }
    let checksum = packet.pseudo_sum(datagram.len()).plus(datagram).checksum();
    // Zero would say that there is none (RFC 768).
    Some(if checksum == 0 { 0xffff } else { checksum })
}
