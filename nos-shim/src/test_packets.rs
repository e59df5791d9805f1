//! Packets for tests, made octet by octet as their senders would.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::Sum;
use crate::frame::FramePool;
use crate::originate::addresses;
use crate::packet::{Packet, protocol};

/// Outsider and NOS of the lab in which Linux was observed.
pub(crate) const X4: &str = "203.0.113.2";
pub(crate) const N4: &str = "203.0.113.1";
pub(crate) const X6: &str = "2001:db8:1::2";
pub(crate) const N6: &str = "2001:db8:1::1";

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn pool() -> FramePool {
    FramePool::new(64, crate::frame::MAX_FRAME)
}

pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|c| c.to_digit(16))
        .map(|digit| digit as u8)
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

/// An IP packet to be: what a header says besides lengths and checksums.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// TOS or traffic class.
    pub(crate) class: u8,
    pub(crate) identification: u16,
    /// Flags and fragment offset of IPv4.
    pub(crate) fragment: u16,
    pub(crate) ttl: u8,
    pub(crate) options: Vec<u8>,
    pub(crate) label: u32,
    pub(crate) mac: [u8; 6],
}

impl Draft {
    /// As the lab's outsider sends, from `source` to `destination`.
    pub(crate) fn new(source: &str, destination: &str) -> Self {
        Self {
            source: ip(source),
            destination: ip(destination),
            class: 0,
            identification: 0x1234,
            fragment: 0,
            ttl: 55,
            options: Vec::new(),
            label: 0,
            mac: [2, 0, 0, 0, 0, 0xb],
        }
    }

    pub(crate) fn v4() -> Self {
        Self::new(X4, N4)
    }

    pub(crate) fn v6() -> Self {
        Self::new(X6, N6)
    }

    /// The packet around `payload`.
    pub(crate) fn packet(&self, pool: &mut FramePool, protocol: u8, payload: &[u8]) -> Packet {
        Packet::parse(pool.copy_from(&self.frame(protocol, payload)).unwrap()).unwrap()
    }

    pub(crate) fn frame(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = self.mac.to_vec();
        frame.extend([2, 0, 0, 0, 0, 0xa]);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([8, 0]);
                frame.extend(self.header_v4(source, destination, protocol, payload.len()));
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd]);
                frame.extend(self.header_v6(source, destination, protocol, payload.len()));
            }
            _ => panic!("two families"),
        }
        frame.extend(payload);
        frame
    }

    fn header_v4(
        &self,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        protocol: u8,
        len: usize,
    ) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let mut header = vec![0x40 | (header_len / 4) as u8, self.class];
        header.extend(((header_len + len) as u16).to_be_bytes());
        header.extend(self.identification.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, protocol, 0, 0]);
        header.extend(source.octets());
        header.extend(destination.octets());
        header.extend(&self.options);
        let sum = Sum::ZERO.plus(&header).checksum();
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }

    fn header_v6(
        &self,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        protocol: u8,
        len: usize,
    ) -> Vec<u8> {
        let first = 6 << 28 | u32::from(self.class) << 20 | self.label;
        let mut header = first.to_be_bytes().to_vec();
        header.extend((len as u16).to_be_bytes());
        header.extend([protocol, self.ttl]);
        header.extend(source.octets());
        header.extend(destination.octets());
        header
    }

    fn sum(&self, protocol: u8, transport: &[u8]) -> u16 {
        let addresses = addresses(self.source, self.destination).unwrap();
        let sum = addresses.pseudo_sum(protocol, transport.len());
        sum.plus(transport).checksum()
    }

    pub(crate) fn udp(&self, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let mut udp = [ports.0, ports.1, 8 + payload.len() as u16, 0]
            .map(u16::to_be_bytes)
            .concat();
        udp.extend(payload);
        let sum = self.sum(protocol::UDP, &udp);
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        udp
    }

    pub(crate) fn tcp(&self, segment: &Segment<'_>) -> Vec<u8> {
        let mut tcp = [segment.ports.0, segment.ports.1]
            .map(u16::to_be_bytes)
            .concat();
        tcp.extend(segment.sequence.to_be_bytes());
        tcp.extend(segment.acknowledgment.to_be_bytes());
        tcp.extend([((5 + segment.options.len() / 4) << 4) as u8, segment.flags]);
        tcp.extend(segment.window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(segment.options);
        tcp.extend(segment.payload);
        let sum = self.sum(protocol::TCP, &tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        tcp
    }

    /// An ICMP or ICMPv6 message with `rest` behind its checksum.
    pub(crate) fn icmp(&self, kind: u8, code: u8, rest: u32, payload: &[u8]) -> Vec<u8> {
        let mut icmp = vec![kind, code, 0, 0];
        icmp.extend(rest.to_be_bytes());
        icmp.extend(payload);
        let sum = if self.source.is_ipv6() {
            self.sum(protocol::ICMPV6, &icmp)
        } else {
            Sum::ZERO.plus(&icmp).checksum()
        };
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        icmp
    }

    pub(crate) fn icmp_packet(
        &self,
        pool: &mut FramePool,
        (kind, code): (u8, u8),
        rest: u32,
        payload: &[u8],
    ) -> Packet {
        let protocol = if self.source.is_ipv6() {
            protocol::ICMPV6
        } else {
            protocol::ICMP
        };
        self.packet(pool, protocol, &self.icmp(kind, code, rest, payload))
    }

    pub(crate) fn udp_packet(
        &self,
        pool: &mut FramePool,
        ports: (u16, u16),
        payload: &[u8],
    ) -> Packet {
        self.packet(pool, protocol::UDP, &self.udp(ports, payload))
    }

    pub(crate) fn tcp_packet(&self, pool: &mut FramePool, segment: &Segment<'_>) -> Packet {
        self.packet(pool, protocol::TCP, &self.tcp(segment))
    }
}

/// A TCP segment to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) ports: (u16, u16),
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    /// A multiple of four octets.
    pub(crate) options: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl Default for Segment<'_> {
    fn default() -> Self {
        Self {
            ports: (1000, 2000),
            sequence: 100,
            acknowledgment: 77,
            flags: 2,
            window: 1000,
            options: &[],
            payload: &[],
        }
    }
}
