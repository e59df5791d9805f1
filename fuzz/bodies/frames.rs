//! Frames for [`super::world`]: crafted, completed, turned round and quoted.

use std::cell::RefCell;

use nos_shim::checksum::Sum;
use nos_shim::frame::{ETHERNET_HEADER, Frame, FramePool};
use nos_shim::ident::MacAddr;
use nos_shim::packet::{Fragment, Packet, protocol};

pub use super::pools::ROOM;

/// What a crafted packet is made of.
#[derive(Clone, Copy, Debug)]
pub struct Draft {
    pub macs: (MacAddr, MacAddr),
    /// Source and destination, of IPv4.
    pub v4: ([u8; 4], [u8; 4]),
    /// Source and destination, of IPv6.
    pub v6: ([u8; 16], [u8; 16]),
    pub is_v6: bool,
    pub ttl: u8,
    pub ports: (u16, u16),
    pub protocol: u8,
    /// TCP flags, or ICMP type.
    pub kind: u8,
    pub payload: usize,
    /// IPv4: flags and offset; IPv6: a fragment header with that offset, unless it is zero.
    pub fragment: u16,
}

impl Draft {
    /// The frame, with right lengths and checksums.
    pub fn frame(&self) -> Vec<u8> {
        let transport = self.transport();
        let mut frame = [self.macs.1.0, self.macs.0.0].concat();
        let length = transport.len() as u16;
        if self.is_v6 {
            let split = self.fragment != 0;
            let next = if split { 44 } else { self.protocol };
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((length + if split { 8 } else { 0 }).to_be_bytes());
            frame.extend([next, self.ttl]);
            frame.extend(self.v6.0);
            frame.extend(self.v6.1);
            if split {
                let offset = (self.fragment & 0x1fff) << 3 | self.fragment >> 13 & 1;
                frame.extend([self.protocol, 0]);
                frame.extend(offset.to_be_bytes());
                frame.extend([0, 0, 0, 9]);
            }
        } else {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend((length + 20).to_be_bytes());
            frame.extend([0, 9]);
            frame.extend(self.fragment.to_be_bytes());
            frame.extend([self.ttl, self.protocol, 0, 0]);
            frame.extend(self.v4.0);
            frame.extend(self.v4.1);
        }
        frame.extend(transport);
        seal(frame)
    }

    fn transport(&self) -> Vec<u8> {
        let mut octets = match self.protocol {
            protocol::TCP | protocol::UDP => {
                let (from, to) = self.ports;
                [from.to_be_bytes(), to.to_be_bytes()].concat()
            }
            _ => vec![self.kind, 0, 0, 0],
        };
        match self.protocol {
            protocol::TCP => {
                octets.extend([0, 0, 1, 0, 0, 0, 2, 0, 0x50, self.kind, 0x20, 0, 0, 0, 0, 0]);
            }
            protocol::UDP => {
                octets.extend((8 + self.payload as u16).to_be_bytes());
                octets.extend([0, 0]);
            }
            _ => octets.extend([self.ports.0.to_be_bytes(), [0, 1]].concat()),
        }
        octets.resize(octets.len() + self.payload, 0x5a);
        octets
    }
}

thread_local! {
    /// For one packet at a time, which is soon gone. To make a pool takes longer than to read it.
    static SPARE: RefCell<FramePool> = RefCell::new(FramePool::new(4, ROOM));
}

/// A buffer for a frame that is looked at, if it fits.
pub fn spare(octets: &[u8]) -> Option<Frame> {
    SPARE.with_borrow_mut(|pool| pool.copy_from(octets).ok())
}

/// Reads a frame as the NOS will; `None` if that is impossible.
pub fn parse(octets: &[u8]) -> Option<Packet> {
    Packet::parse(spare(octets)?).ok()
}

/// The frame with right checksums, lest every mutation end there.
pub fn seal(mut frame: Vec<u8>) -> Vec<u8> {
    if frame.get(12..14) == Some(&[8, 0]) {
        let header = usize::from(frame.get(14).copied().unwrap_or(0) & 0xf) * 4;
        if let Some(header) = frame.get_mut(14..14 + header).filter(|it| it.len() >= 20) {
            header[10..12].fill(0);
            let sum = Sum::ZERO.plus(header).checksum();
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        }
    }
    let Some(packet) = parse(&frame).filter(|packet| packet.fragment() == Fragment::Whole) else {
        return frame;
    };
    let (at, end) = (
        packet.transport_offset(),
        ETHERNET_HEADER + packet.ip().len(),
    );
    let (field, pseudo) = match (packet.protocol(), packet.is_ipv6()) {
        (protocol::TCP, _) => (16, true),
        (protocol::UDP, _) => (6, true),
        (protocol::ICMP, false) => (2, false),
        (protocol::ICMPV6, true) => (2, true),
        _ => return frame,
    };
    let Some(transport) = frame.get_mut(at..end).filter(|it| it.len() >= field + 2) else {
        return frame;
    };
    transport[field..field + 2].fill(0);
    let start = if pseudo {
        packet.pseudo_sum(transport.len())
    } else {
        Sum::ZERO
    };
    let sum = start.plus(transport).checksum();
    let sum = if sum == 0 { 0xffff } else { sum };
    transport[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// What the receiver of a frame might answer: addresses and ports exchanged, a request turned into
/// a reply.
pub fn reflected(octets: &[u8], to: MacAddr, from: MacAddr) -> Option<Vec<u8>> {
    let packet = parse(octets)?;
    let mut frame = octets.to_vec();
    exchange_macs(&mut frame, to, from);
    let half = if packet.is_ipv6() { 16 } else { 4 };
    let start = if packet.is_ipv6() { 22 } else { 26 };
    let (source, destination) = frame[start..start + 2 * half].split_at_mut(half);
    source.swap_with_slice(destination);
    let at = packet.transport_offset();
    match packet.protocol() {
        protocol::TCP | protocol::UDP if packet.ports().is_some() => {
            let (source, destination) = frame[at..at + 4].split_at_mut(2);
            source.swap_with_slice(destination);
            if packet.protocol() == protocol::TCP {
                acknowledge(&mut frame[at..]);
            }
        }
        _ => match (packet.icmp(), packet.is_ipv6()) {
            (Some((8, _)), false) => frame[at] = 0,
            (Some((128, _)), true) => frame[at] = 129,
            _ => {}
        },
    }
    Some(seal(frame))
}

/// Exchanges sequence and acknowledgment number, and acknowledges a SYN or FIN.
fn acknowledge(tcp: &mut [u8]) {
    let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let (seq, ack) = (number(4), number(8));
    let opens_or_ends = tcp[13] & 0x03 != 0;
    tcp[4..8].copy_from_slice(&ack.to_be_bytes());
    tcp[8..12].copy_from_slice(&(seq.wrapping_add(u32::from(opens_or_ends))).to_be_bytes());
    tcp[13] |= 0x10;
}

fn exchange_macs(frame: &mut [u8], to: MacAddr, from: MacAddr) {
    frame[..6].copy_from_slice(&to.0);
    frame[6..12].copy_from_slice(&from.0);
}

/// An ICMP error about a frame.
pub fn error_about(octets: &[u8], mut draft: Draft) -> Option<Vec<u8>> {
    let packet = parse(octets)?;
    let quote = &packet.ip()[..packet.ip().len().min(200)];
    draft.is_v6 = packet.is_ipv6();
    draft.protocol = if draft.is_v6 {
        protocol::ICMPV6
    } else {
        protocol::ICMP
    };
    // Back to whoever sent what is quoted.
    if draft.is_v6 {
        draft.v6.1.copy_from_slice(&quote[8..24]);
    } else {
        draft.v4.1.copy_from_slice(&quote[12..16]);
    }
    (draft.payload, draft.fragment) = (quote.len(), 0);
    let mut frame = draft.frame();
    let at = frame.len() - quote.len();
    frame[at..].copy_from_slice(quote);
    Some(seal(frame))
}
