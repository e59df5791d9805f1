//! ARP and Neighbor Discovery: what is read can be written, and reads the same again.
//!
//! Input: whether ICMPv6 checksums are made right first (1 octet, lowest bit), frame.

use nos_shim::arp::Arp;
use nos_shim::frame::FramePool;
use nos_shim::ident::MacAddr;
use nos_shim::ndp::{Envelope, Ndp};
use nos_shim::packet::{Addresses, Packet, protocol};

use super::pools::with_pool;

pub fn run(data: &[u8]) {
    let Some((flags, octets)) = data.split_first() else {
        return;
    };
    with_pool(1, |pool| {
        arp(octets, pool);
        ndp(octets, flags & 1 != 0, pool);
    });
}

fn arp(octets: &[u8], pool: &mut FramePool) {
    let Ok(message) = Arp::parse(octets) else {
        return;
    };
    let mut frame = pool.alloc().expect("a free buffer");
    message
        .write(&mut frame, MacAddr::BROADCAST)
        .expect("room for ARP");
    assert_eq!(Arp::parse(frame.bytes()), Ok(message));
    let reply = message.reply(MacAddr([2; 6]));
    assert!(!message.is_probe() || !message.is_announcement());
    reply
        .write(&mut frame, message.sender_mac)
        .expect("room for ARP");
    assert_eq!(Arp::parse(frame.bytes()), Ok(reply));
    pool.free(frame);
}

fn ndp(octets: &[u8], seal: bool, pool: &mut FramePool) {
    let Some(packet) = parse(octets, pool) else {
        return;
    };
    let packet = if seal {
        let octets = sealed(&packet);
        pool.free(packet.into_frame());
        parse(&octets, pool).expect("a checksum changes nothing else")
    } else {
        packet
    };
    let Addresses::V6 {
        source,
        destination,
    } = packet.addresses()
    else {
        assert!(Ndp::parse(&packet).is_err());
        return pool.free(packet.into_frame());
    };
    let Ok(message) = Ndp::parse(&packet) else {
        return pool.free(packet.into_frame());
    };
    let envelope = Envelope {
        source_mac: packet.source_mac(),
        destination_mac: packet.destination_mac(),
        source,
        destination,
    };
    let mut frame = packet.into_frame();
    message.write(&mut frame, &envelope).expect("room for NDP");
    let again = Packet::parse(frame).expect("a message is a packet");
    assert_eq!(Ndp::parse(&again), Ok(message));
    pool.free(again.into_frame());
}

fn parse(octets: &[u8], pool: &mut FramePool) -> Option<Packet> {
    match Packet::parse(pool.copy_from(octets).ok()?) {
        Ok(packet) => Some(packet),
        Err(rejected) => {
            pool.free(rejected.frame);
            None
        }
    }
}

/// The packet with a right checksum, lest every mutation end there.
fn sealed(packet: &Packet) -> Vec<u8> {
    let mut octets = packet.frame().bytes().to_vec();
    if packet.protocol() == protocol::ICMPV6 && packet.icmp().is_some() {
        let transport = &mut octets[packet.transport_offset()..];
        transport[2..4].fill(0);
        let sum = packet.pseudo_sum(transport.len()).plus(transport);

        transport[2..4].copy_from_slice(&sum.checksum().to_be_bytes());
    }
    octets
}
