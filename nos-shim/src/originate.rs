//! IP headers of packets that the NOS itself sends.
//!
//! They look like those of a Linux host (observed on 6.18): TTL and hop limit 64; IPv4 packets
//! that may be fragmented carry an identification of their own, the others have 0 (RFC 6864 §4.1);
//! IPv6 packets carry a flow label that is the same for all packets of a flow and says nothing
//! about it (RFC 6437 §3).

use core::hash::{BuildHasher, Hash};
use core::net::IpAddr;

use foldhash::quality::FixedState;

use crate::checksum::Sum;
use crate::frame::{Checksum, ETHERNET_HEADER, Frame, FramePool};
use crate::packet::{
    Addresses, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_HEADER, IPV6_HEADER, Packet, Ports,
};

/// TTL and hop limit of what the NOS sends (RFC 1700).
pub const TTL: u8 = 64;

/// Counters of IPv4 identifications. Flows that share one merely use it up faster. Fuzzing makes them for
/// each run.
const IDENTIFICATIONS: usize = if cfg!(fuzzing) { 8 } else { 1024 };

/// Bits of an IPv6 flow label (RFC 6437 §2).
const FLOW_LABEL: u32 = 0xf_ffff;

/// What the headers of packets that the NOS sends have in common.
#[derive(Clone, Debug)]
pub struct Originator {
    hasher: FixedState,
    identifications: Box<[u16; IDENTIFICATIONS]>,
    fragments: u32,
}

/// The network layer of a packet to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Network<'a> {
    pub(crate) addresses: Addresses,
    pub(crate) protocol: u8,
    /// TOS, or traffic class.
    pub(crate) traffic_class: u8,
    /// IPv4 only; IPv6 packets are never fragmented on the way.
    pub(crate) dont_fragment: bool,
    /// IPv4 options, padded to a multiple of four octets and not longer than 40. Empty in IPv6.
    pub(crate) options: &'a [u8],
    /// Tells flows of the same addresses and protocol apart, for the IPv6 flow label.
    pub(crate) flow: u32,
}

impl Network<'_> {
    fn header_len(&self) -> usize {
        match self.addresses {
            Addresses::V4 { .. } => IPV4_HEADER + self.options.len(),
            Addresses::V6 { .. } => IPV6_HEADER,
        }
    }
}

impl Originator {
    /// One whose identifications and flow labels depend on `seed`, which outsiders should not be
    /// able to guess.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let hasher = FixedState::with_seed(seed);
        let mut identifications = Box::new([0; IDENTIFICATIONS]);
        for (n, identification) in identifications.iter_mut().enumerate() {
            *identification = low_16(hasher.hash_one(n));
        }
        let fragments = low_32(hasher.hash_one("fragments"));
        Self {
            hasher,
            identifications,
            fragments,
        }
    }

    /// The next IPv4 identification towards the destination, never 0 (RFC 6864 §4.2, RFC 7739 in
    /// spirit: other destinations learn nothing from it).
    pub fn identification(&mut self, addresses: Addresses, protocol: u8) -> u16 {
        let hash = self.hash((addresses, protocol));
        let slot = usize::from(low_16(hash)) % IDENTIFICATIONS;
        let identification = &mut self.identifications[slot];
        *identification = identification.wrapping_add(1).max(1);
        *identification
    }

    /// The next identification for the fragments of an IPv6 packet (RFC 8200 §4.5).
    pub fn fragment_identification(&mut self) -> u32 {
        self.fragments = self.fragments.wrapping_add(1);
        self.fragments
    }

    /// The IPv6 flow label of a flow. `flow` tells flows of the same addresses and protocol apart.
    #[must_use]
    pub fn flow_label(&self, addresses: Addresses, protocol: u8, flow: u32) -> u32 {
        (low_32(self.hash((addresses, protocol, flow))) & FLOW_LABEL).max(1)
    }

    fn hash(&self, what: impl Hash) -> u64 {
        self.hasher.hash_one(what)
    }

    /// A packet with `payload_len` octets of payload, which `fill` must write; `fill` gets zeros.
    /// The Ethernet addresses are zero. `None` when the pool has no buffer, or too small ones.
    pub(crate) fn packet(
        &mut self,
        network: &Network<'_>,
        payload_len: usize,
        pool: &mut FramePool,
        fill: impl FnOnce(&mut [u8]),
    ) -> Option<Packet> {
        let header_len = network.header_len();
        let mut frame = pool.alloc()?;
        let fits = frame
            .set_len(ETHERNET_HEADER + header_len + payload_len)
            .is_ok();
        frame.bytes_mut().fill(0);
        let written = fits && self.write(network, &mut frame, header_len, payload_len);
        if !written {
            pool.free(frame);
            return None;
        }
        fill(&mut frame.bytes_mut()[ETHERNET_HEADER + header_len..]);
        match Packet::parse(frame) {
            Ok(packet) => Some(packet),
            Err(rejected) => {
                debug_assert!(false, "the NOS made a packet that is {}", rejected.reason);
                pool.free(rejected.frame);
                None
            }
        }
    }

    /// Replaces everything in front of the transport header by a fresh header, which must not be
    /// longer than what was there. The Ethernet addresses become zero. Offload remains.
    ///
    /// # Errors
    ///
    /// The packet, when there is no room.
    pub(crate) fn replace_header(
        &mut self,
        mut packet: Packet,
        network: &Network<'_>,
    ) -> Result<Packet, Packet> {
        let header_len = ETHERNET_HEADER + network.header_len();
        let Some(surplus) = packet.transport_offset().checked_sub(header_len) else {
            return Err(packet);
        };
        let frame = packet.frame_mut();
        frame.trim_front(surplus);
        move_partial(frame, surplus);
        let payload_len = frame.len() - header_len;
        frame.bytes_mut()[..header_len].fill(0);
        // Shorter than the packet that was there, so its length can be expressed.
        self.write(network, frame, network.header_len(), payload_len);
        packet.reparse();
        Ok(packet)
    }

    /// Writes headers over zeros. Returns whether the packet's length can be expressed.
    fn write(
        &mut self,
        network: &Network<'_>,
        frame: &mut Frame,
        header_len: usize,
        payload_len: usize,
    ) -> bool {
        let (link, ip) = frame.bytes_mut().split_at_mut(ETHERNET_HEADER);
        let (ether_type, header) = match network.addresses {
            Addresses::V4 { .. } => (ETHERTYPE_IPV4, &mut ip[..header_len]),
            Addresses::V6 { .. } => (ETHERTYPE_IPV6, &mut ip[..header_len]),
        };
        link[12..].copy_from_slice(&ether_type.to_be_bytes());
        match network.addresses {
            Addresses::V4 { .. } => self.write_v4(network, header, payload_len),
            Addresses::V6 { .. } => self.write_v6(network, header, payload_len),
        }
    }

    /// Returns whether the packet's length can be expressed.
    fn write_v4(&mut self, network: &Network<'_>, header: &mut [u8], payload_len: usize) -> bool {
        let Addresses::V4 {
            source,
            destination,
        } = network.addresses
        else {
            return false;
        };
        let Ok(total) = u16::try_from(header.len() + payload_len) else {
            return false;
        };
        let identification = if network.dont_fragment {
            0
        } else {
            self.identification(network.addresses, network.protocol)
        };
        header[0] = 0x40 | u8::try_from(header.len() / 4).unwrap_or(5);
        header[1] = network.traffic_class;
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[4..6].copy_from_slice(&identification.to_be_bytes());
        header[6] = if network.dont_fragment { 0x40 } else { 0 };
        header[8] = TTL;
        header[9] = network.protocol;
        header[12..16].copy_from_slice(&source.octets());
        header[16..20].copy_from_slice(&destination.octets());
        header[IPV4_HEADER..].copy_from_slice(network.options);
        let checksum = Sum::ZERO.plus(header).checksum();
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        true
    }

    /// Returns whether the packet's length can be expressed.
    fn write_v6(&mut self, network: &Network<'_>, header: &mut [u8], payload_len: usize) -> bool {
        let Addresses::V6 {
            source,
            destination,
        } = network.addresses
        else {
            return false;
        };
        let Ok(payload_len) = u16::try_from(payload_len) else {
            return false;
        };
        let label = self.flow_label(network.addresses, network.protocol, network.flow);
        let first = 6 << 28 | u32::from(network.traffic_class) << 20 | label;
        header[..4].copy_from_slice(&first.to_be_bytes());
        header[4..6].copy_from_slice(&payload_len.to_be_bytes());
        header[6] = network.protocol;
        header[7] = TTL;
        header[8..24].copy_from_slice(&source.octets());
        header[24..40].copy_from_slice(&destination.octets());
        true
    }
}

/// A partial checksum has come `surplus` octets nearer to the frame's start.
fn move_partial(frame: &mut Frame, surplus: usize) {
    let mut offload = frame.offload();
    if let Checksum::Partial { start, .. } = &mut offload.checksum {
        *start -= u16::try_from(surplus).unwrap_or(0);
        frame.set_offload(offload);
    }
}

/// The addresses of a packet from `source` to `destination`, if they are of one family.
pub(crate) fn addresses(source: IpAddr, destination: IpAddr) -> Option<Addresses> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Some(Addresses::V4 {
            source,
            destination,
        }),
        (IpAddr::V6(source), IpAddr::V6(destination)) => Some(Addresses::V6 {
            source,
            destination,
        }),
        _ => None,
    }
}

/// Distinguishes flows by their ports.
pub(crate) fn flow_of(ports: Ports) -> u32 {
    u32::from(ports.source) << 16 | u32::from(ports.destination)
}

/// TOS or traffic class of a packet.
pub(crate) fn traffic_class(packet: &Packet) -> u8 {
    let ip = packet.ip();
    if packet.is_ipv6() {
        ip[0] << 4 | ip[1] >> 4
    } else {
        ip[1]
    }
}

/// Whether an answer to `address` could reach exactly one host (RFC 1812 §4.3.2.7, RFC 4443
/// §2.4e.6): not zero, loopback, multicast, broadcast or class E.
pub(crate) fn names_one_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !matches!(v4.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_loopback() && !v6.is_multicast(),
    }
}

/// Whether `packet` was sent to one host, and not to a group on the link or on the network.
/// Broadcast addresses of subnets look like any other here: who knows the prefixes must check.
pub(crate) fn is_unicast(packet: &Packet) -> bool {
    let group = match packet.addresses() {
        Addresses::V4 { destination, .. } => {
            destination.is_multicast() || destination.is_broadcast()
        }
        Addresses::V6 { destination, .. } => destination.is_multicast(),
    };
    !group && !packet.destination_mac().is_multicast()
}

#[expect(clippy::cast_possible_truncation, reason = "the low bits of a hash")]
fn low_16(hash: u64) -> u16 {
    hash as u16
}

#[expect(clippy::cast_possible_truncation, reason = "the low bits of a hash")]
fn low_32(hash: u64) -> u32 {
    hash as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::protocol;
    use crate::test_packets::{Draft, N4, N6, X4, X6, ip};

    fn network(from: &str, to: &str) -> Network<'static> {
        let addresses = match (ip(from), ip(to)) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Addresses::V4 {
                source,
                destination,
            },
            (IpAddr::V6(source), IpAddr::V6(destination)) => Addresses::V6 {
                source,
                destination,
            },
            _ => panic!("{from} and {to} are of one family"),
        };
        Network {
            addresses,
            protocol: protocol::UDP,
            traffic_class: 0,
            dont_fragment: true,
            options: &[],
            flow: 0,
        }
    }

    /// The length of IPv4 counts the header, that of IPv6 does not.
    #[test]
    fn a_packet_is_as_long_as_its_header_can_say() {
        let mut pool = FramePool::new(1, 70_000);
        let mut originator = Originator::new(1);
        for (network, longest) in [
            (network(N4, X4), 0xffff - IPV4_HEADER),
            (network(N6, X6), 0xffff),
        ] {
            let write = |payload: &mut [u8]| {
                // A UDP length of zero stands for all that follows in IPv6 alone.
                let len = u16::try_from(payload.len()).unwrap_or_default();
                payload[4..6].copy_from_slice(&len.to_be_bytes());
            };
            let packet = originator.packet(&network, longest, &mut pool, write);
            let packet = packet.expect("the longest");
            assert_eq!(packet.transport().len(), longest);
            pool.free(packet.into_frame());
            let longer = originator.packet(&network, longest + 1, &mut pool, |_| ());
            assert!(longer.is_none());
            assert!(pool.alloc().is_some(), "the buffer is back");
        }
    }

    #[test]
    fn a_packet_that_no_buffer_holds_is_not_made() {
        let mut pool = FramePool::new(1, 100);
        let mut originator = Originator::new(1);
        let payload = pool.room();
        let packet = originator.packet(&network(N4, X4), payload, &mut pool, |_| ());
        assert!(packet.is_none());
        let only = pool.alloc().expect("the buffer is back");
        let packet = originator.packet(&network(N4, X4), 8, &mut pool, |_| ());
        assert!(packet.is_none());
        drop(only);
    }

    #[test]
    fn a_header_is_replaced_by_none_that_is_longer() {
        let mut pool = FramePool::new(1, 2048);
        let mut originator = Originator::new(1);
        let packet = Draft::v4().udp_packet(&mut pool, (1, 2), b"x");
        let before = packet.frame().bytes().to_vec();
        let refused = originator.replace_header(packet, &network(N6, X6));
        let packet = refused.expect_err("40 octets where 20 were");
        assert_eq!(packet.frame().bytes(), before);
        let replaced = originator.replace_header(packet, &network(X4, N4));
        let packet = replaced.expect("20 octets where 20 were");
        assert_eq!((packet.source(), packet.destination()), (ip(X4), ip(N4)));
        assert_eq!(packet.transport(), &before[ETHERNET_HEADER + IPV4_HEADER..]);
    }
}
