//! UDP services, which need no memory of their flows.

use crate::originate::{Network, Originator, addresses, flow_of};
use crate::packet::{Addresses, Packet, Ports, protocol};

/// Ports of small services that answer whatever they get. An echo to them could go on for ever
/// (CERT CA-1996-01), and one to port 0 leads nowhere.
pub(super) fn would_loop(source: u16) -> bool {
    matches!(source, 0 | 7 | 9 | 11 | 13 | 17 | 19 | 37)
}

/// Turns a datagram round, in place. Its checksum stays right, as the same words are summed.
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
    let transport = packet.transport_offset();
    if let Some(udp) = packet
        .frame_mut()
        .bytes_mut()
        .get_mut(transport..transport + 4)
    {
        udp[..2].copy_from_slice(&ports.source.to_be_bytes());
        udp[2..].copy_from_slice(&ports.destination.to_be_bytes());
    }
    // A header without options is never longer than what was there.
    match originator.replace_header(packet, &network) {
        Ok(packet) | Err(packet) => packet,
    }
}
