//! Packets for tests, built field by field with a checksum of their own.

use core::net::{Ipv4Addr, Ipv6Addr};
use core::num::NonZeroU16;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{Packet, protocol};
use crate::frame::{Checksum, Ecn, FramePool, GsoKind, Offload, Segmentation};

/// A packet as its sender sees it. Lengths and checksums follow from it.
#[derive(Clone, Debug)]
pub(crate) struct Craft {
    pub(crate) ip: Ip,
    pub(crate) transport: Transport,
    pub(crate) payload: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(crate) enum Ip {
    V4(V4),
    V6(V6),
}

#[derive(Clone, Debug)]
pub(crate) struct V4 {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) identification: u16,
    pub(crate) ttl: u8,
    pub(crate) dont_fragment: bool,
    /// A multiple of four octets, at most 40.
    pub(crate) options: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(crate) struct V6 {
    pub(crate) source: Ipv6Addr,
    pub(crate) destination: Ipv6Addr,
    pub(crate) hop_limit: u8,
    pub(crate) extensions: Vec<Extension>,
}

/// An IPv6 extension header.
#[derive(Clone, Debug)]
pub(crate) enum Extension {
    /// Padding of `8 * units + 6` octets.
    HopByHop(u8),
    Destination(u8),
    /// Type 4 with one segment; the destination while segments are left is on the way.
    Routing {
        left: u8,
        last: Ipv6Addr,
    },
    Fragment {
        units: u16,
        more: bool,
        identification: u32,
    },
    Authentication,
}

#[derive(Clone, Debug)]
pub(crate) enum Transport {
    Tcp(Tcp),
    Udp {
        ports: (u16, u16),
        /// False leaves the checksum zero.
        checksum: bool,
    },
    /// ICMP or ICMPv6: type, code, and the four octets after the checksum.
    Icmp(u8, u8, [u8; 4]),
    /// Any other protocol, without a header.
    Other(u8),
}

#[derive(Clone, Debug)]
pub(crate) struct Tcp {
    pub(crate) ports: (u16, u16),
    pub(crate) sequence: u32,
    pub(crate) flags: u8,
    /// A multiple of four octets, at most 40.
    pub(crate) options: Vec<u8>,
}

pub(crate) const ETHERNET: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

/// RFC 1071 as written: the folded sum, not complemented.
pub(crate) fn naive_sum(octets: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in octets.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

impl Default for V4 {
    fn default() -> Self {
        Self {
            source: Ipv4Addr::new(203, 0, 113, 1),
            destination: Ipv4Addr::new(198, 51, 100, 7),
            identification: 0x1234,
            ttl: 64,
            dont_fragment: false,
            options: Vec::new(),
        }
    }
}

impl Default for V6 {
    fn default() -> Self {
        Self {
            source: "2001:db8:1::1".parse().unwrap(),
            destination: "2001:db8:2::7".parse().unwrap(),
            hop_limit: 64,
            extensions: Vec::new(),
        }
    }
}

impl Default for Tcp {
    fn default() -> Self {
        Self {
            ports: (40_000, 80),
            sequence: 0x0102_0304,
            flags: 0x10,
            options: Vec::new(),
        }
    }
}

impl Craft {
    pub(crate) fn v4(transport: Transport, payload: &[u8]) -> Self {
        Self {
            ip: Ip::V4(V4::default()),
            transport,
            payload: payload.to_vec(),
        }
    }

    pub(crate) fn v6(extensions: Vec<Extension>, transport: Transport, payload: &[u8]) -> Self {
        Self {
            ip: Ip::V6(V6 {
                extensions,
                ..V6::default()
            }),
            transport,
            payload: payload.to_vec(),
        }
    }

    pub(crate) fn udp() -> Transport {
        Transport::Udp {
            ports: (40_000, 53),
            checksum: true,
        }
    }

    pub(crate) fn protocol(&self) -> u8 {
        match (&self.transport, &self.ip) {
            (Transport::Tcp(_), _) => protocol::TCP,
            (Transport::Udp { .. }, _) => protocol::UDP,
            (Transport::Icmp(..), Ip::V4(_)) => protocol::ICMP,
            (Transport::Icmp(..), Ip::V6(_)) => protocol::ICMPV6,
            (Transport::Other(protocol), _) => *protocol,
        }
    }

    /// Octets from the transport header to the checksum field.
    pub(crate) fn checksum_at(&self) -> Option<usize> {
        match self.transport {
            Transport::Tcp(_) => Some(16),
            Transport::Udp { checksum, .. } => checksum.then_some(6),
            Transport::Icmp(..) => Some(2),
            Transport::Other(_) => None,
        }
    }

    /// The pseudo-header's folded sum; zero for ICMP.
    pub(crate) fn pseudo_sum(&self, len: usize) -> u16 {
        let mut pseudo = Vec::new();
        match &self.ip {
            Ip::V4(_) if matches!(self.transport, Transport::Icmp(..)) => return 0,
            Ip::V4(v4) => {
                pseudo.extend(v4.source.octets());
                pseudo.extend(v4.destination.octets());
            }
            Ip::V6(v6) => {
                pseudo.extend(v6.source.octets());
                pseudo.extend(v6.final_destination().octets());
            }
        }
        pseudo.extend((len as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, self.protocol()]);
        naive_sum(&pseudo)
    }

    fn transport_header(&self) -> Vec<u8> {
        let mut header = Vec::new();
        match &self.transport {
            Transport::Tcp(tcp) => {
                header.extend(tcp.ports.0.to_be_bytes());
                header.extend(tcp.ports.1.to_be_bytes());
                header.extend(tcp.sequence.to_be_bytes());
                header.extend([0xa, 0xb, 0xc, 0xd]);
                header.extend([((20 + tcp.options.len()) << 2) as u8, tcp.flags]);
                header.extend([0x7f, 0xff, 0, 0, 0, 0]);
                header.extend(&tcp.options);
            }
            Transport::Udp { ports, .. } => {
                header.extend(ports.0.to_be_bytes());
                header.extend(ports.1.to_be_bytes());
                header.extend(((8 + self.payload.len()) as u16).to_be_bytes());
                header.extend([0, 0]);
            }
            Transport::Icmp(kind, code, rest) => {
                header.extend([*kind, *code, 0, 0]);
                header.extend(rest);
            }
            Transport::Other(_) => {}
        }
        header
    }

    /// Transport header and payload, with the checksum or only the pseudo-header's sum in it.
    pub(crate) fn transport_octets(&self, partial: bool) -> Vec<u8> {
        let mut octets = self.transport_header();
        octets.extend(&self.payload);
        let Some(at) = self.checksum_at() else {
            return octets;
        };
        let pseudo = self.pseudo_sum(octets.len());
        octets[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        if !partial {
            let sum = match !naive_sum(&octets) {
                0 if at == 6 => 0xffff,
                sum => sum,
            };
            octets[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        octets
    }

    fn headed(&self, octets: &[u8]) -> Vec<u8> {
        match &self.ip {
            Ip::V4(v4) => v4.packet(self.protocol(), u16::from(v4.dont_fragment) << 14, octets),
            Ip::V6(v6) => v6.packet(self.protocol(), octets),
        }
    }

    /// The frame with its checksum.
    pub(crate) fn frame(&self) -> Vec<u8> {
        self.headed(&self.transport_octets(false))
    }

    /// The frame with a partial checksum, and the offload state that says so.
    pub(crate) fn partial(&self) -> (Vec<u8>, Offload) {
        let transport = self.transport_octets(true);
        let frame = self.headed(&transport);
        let checksum = Checksum::Partial {
            start: (frame.len() - transport.len()) as u16,
            offset: self.checksum_at().unwrap() as u16,
        };
        let offload = Offload {
            checksum,
            segmentation: None,
        };
        (frame, offload)
    }

    /// `size`, or the least segment size above that is allowed: Linux cuts at most 128 datagrams.
    pub(crate) fn segment_size(&self, size: u16) -> u16 {
        match self.transport {
            Transport::Udp { .. } => size.max(self.payload.len().div_ceil(128) as u16),
            _ => size,
        }
    }

    /// The frame as a super-frame, as the parser leaves it. With `ecn`, it is marked as of classic ECN.
    pub(crate) fn super_frame(&self, size: u16, ecn: bool) -> (Vec<u8>, Offload) {
        let (frame, offload) = self.partial();
        let kind = match (&self.ip, &self.transport) {
            (Ip::V4(_), Transport::Tcp(_)) => GsoKind::TcpV4,
            (Ip::V6(_), Transport::Tcp(_)) => GsoKind::TcpV6,
            _ => GsoKind::Udp,
        };
        let size = NonZeroU16::new(size).unwrap();
        let segmentation = Some(Segmentation {
            kind,
            ecn: match &self.transport {
                _ if ecn => Ecn::Classic,
                Transport::Tcp(Tcp { flags: 0x80.., .. }) => Ecn::Accurate,
                _ => Ecn::Unmarked,
            },
            size,
            tunnel: None,
        });
        (
            frame,
            Offload {
                segmentation,
                ..offload
            },
        )
    }

    /// The segments that a super-frame of `size` without a mark stands for, each crafted anew.
    pub(crate) fn segments(&self, size: usize) -> Vec<Self> {
        self.marked_segments(size, false)
    }

    /// The same of one that is marked as of classic ECN, or not.
    pub(crate) fn marked_segments(&self, size: usize, ecn: bool) -> Vec<Self> {
        let count = self.payload.len().div_ceil(size);
        (0..count)
            .map(|n| {
                let mut segment = self.clone();
                segment.payload =
                    self.payload[n * size..self.payload.len().min((n + 1) * size)].to_vec();
                if let Ip::V4(v4) = &mut segment.ip {
                    v4.identification = v4.identification.wrapping_add(n as u16);
                }
                if let Transport::Tcp(tcp) = &mut segment.transport {
                    tcp.sequence = tcp.sequence.wrapping_add((n * size) as u32);
                    tcp.flags &= if n + 1 < count { !0x09 } else { 0xff };
                    tcp.flags &= if n > 0 && ecn { !0x80 } else { 0xff };
                }
                segment
            })
            .collect()
    }

    pub(crate) fn parse(&self, pool: &mut FramePool) -> Packet {
        packet(pool, &self.frame(), Offload::NONE)
    }
}

/// What must be a valid packet.
pub(crate) fn packet(pool: &mut FramePool, octets: &[u8], offload: Offload) -> Packet {
    let mut frame = pool.copy_from(octets).unwrap();
    frame.set_offload(offload);
    Packet::parse(frame).unwrap()
}

impl V4 {
    /// A frame of this header and `octets`; `field` holds the flags and the fragment offset.
    pub(crate) fn packet(&self, protocol: u8, field: u16, octets: &[u8]) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let mut frame = ETHERNET.to_vec();
        frame.extend([8, 0, 0x40 | (header_len / 4) as u8, 0]);
        frame.extend(((header_len + octets.len()) as u16).to_be_bytes());
        frame.extend(self.identification.to_be_bytes());
        frame.extend(field.to_be_bytes());
        frame.extend([self.ttl, protocol, 0, 0]);
        frame.extend(self.source.octets());
        frame.extend(self.destination.octets());
        frame.extend(&self.options);
        let checksum = !naive_sum(&frame[14..]);
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        frame.extend(octets);
        frame
    }
}

impl V6 {
    fn final_destination(&self) -> Ipv6Addr {
        let on_the_way = |extension: &Extension| match extension {
            Extension::Routing { left: 1.., last } => Some(*last),
            _ => None,
        };
        let last = self.extensions.iter().find_map(on_the_way);
        last.unwrap_or(self.destination)
    }

    /// A frame of this header, its extension headers and `octets`.
    pub(crate) fn packet(&self, protocol: u8, octets: &[u8]) -> Vec<u8> {
        let mut chain = Vec::new();
        for (n, extension) in self.extensions.iter().enumerate() {
            let next = self
                .extensions
                .get(n + 1)
                .map_or(protocol, Extension::number);
            chain.extend(extension.octets(next));
        }
        let first = self.extensions.first().map_or(protocol, Extension::number);
        let mut frame = ETHERNET.to_vec();
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(((chain.len() + octets.len()) as u16).to_be_bytes());
        frame.extend([first, self.hop_limit]);
        frame.extend(self.source.octets());
        frame.extend(self.destination.octets());
        frame.extend(chain);
        frame.extend(octets);
        frame
    }
}

impl Extension {
    fn number(&self) -> u8 {
        match self {
            Self::HopByHop(_) => protocol::HOP_BY_HOP,
            Self::Destination(_) => protocol::DESTINATION_OPTIONS,
            Self::Routing { .. } => protocol::ROUTING,
            Self::Fragment { .. } => protocol::FRAGMENT,
            Self::Authentication => protocol::AUTHENTICATION,
        }
    }

    fn octets(&self, next: u8) -> Vec<u8> {
        match self {
            Self::HopByHop(units) | Self::Destination(units) => {
                let len = 8 * usize::from(*units) + 6;
                let mut octets = vec![next, *units];
                // PadN.
                octets.extend([1, (len - 2) as u8]);
                octets.resize(2 + len, 0);
                octets
            }
            Self::Routing { left, last } => {
                let mut octets = vec![next, 2, 4, *left, 0, 0, 0, 0];
                octets.extend(last.octets());
                octets
            }
            Self::Fragment {
                units,
                more,
                identification,
            } => {
                let mut octets = vec![next, 0];
                octets.extend((units << 3 | u16::from(*more)).to_be_bytes());
                octets.extend(identification.to_be_bytes());
                octets
            }
            Self::Authentication => {
                let mut octets = vec![next, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1];
                octets.resize(24, 0x5a);
                octets
            }
        }
    }
}

/// Structurally valid packets of every kind, whole or fragments.
pub(crate) fn crafts() -> impl Strategy<Value = Craft> {
    (ips(), transports(), vec(any::<u8>(), 0..200)).prop_map(|(ip, transport, payload)| {
        let mut craft = Craft {
            ip,
            transport,
            payload,
        };
        // All but the last fragment carry multiples of eight octets.
        if craft.has_more() {
            let len = craft.transport_octets(false).len();
            let padded = craft.payload.len() + len.next_multiple_of(8).max(8) - len;
            craft.payload.resize(padded, 0);
        }
        craft
    })
}

impl Craft {
    fn has_more(&self) -> bool {
        let more =
            |extension: &Extension| matches!(extension, Extension::Fragment { more: true, .. });
        matches!(&self.ip, Ip::V6(v6) if v6.extensions.iter().any(more))
    }
}

/// TCP and UDP over either IP, whole, with a payload of 2 to 4,000 octets.
pub(crate) fn super_crafts() -> impl Strategy<Value = Craft> {
    let v6 = (any::<[u8; 16]>(), vec(unfragmented(), 0..3)).prop_map(|(address, extensions)| {
        Ip::V6(V6 {
            source: address.into(),
            extensions: hop_by_hop_first(extensions),
            ..V6::default()
        })
    });
    let ip = prop_oneof![v4s().prop_map(Ip::V4), v6];
    let udp = any::<(u16, u16)>().prop_map(|ports| Transport::Udp {
        ports,
        checksum: true,
    });
    let transport = prop_oneof![tcps().prop_map(Transport::Tcp), udp];
    (ip, transport, vec(any::<u8>(), 2..4_000)).prop_map(|(ip, transport, payload)| Craft {
        ip,
        transport,
        payload,
    })
}

fn ips() -> impl Strategy<Value = Ip> {
    let extension = prop_oneof![
        4 => unfragmented(),
        1 => (0_u16..0x1f00, any::<(bool, u32)>()).prop_map(|(units, (more, identification))| {
            Extension::Fragment { units, more, identification }
        }),
    ];
    let v6 = (any::<([u8; 16], [u8; 16], u8)>(), vec(extension, 0..5)).prop_map(
        |((source, destination, hop_limit), extensions)| {
            Ip::V6(V6 {
                source: source.into(),
                destination: destination.into(),
                hop_limit,
                extensions: hop_by_hop_first(extensions),
            })
        },
    );
    prop_oneof![v4s().prop_map(Ip::V4), v6]
}

pub(crate) fn v4s() -> impl Strategy<Value = V4> {
    let options = vec(any::<u32>(), 0..=10);
    (any::<([u8; 4], [u8; 4], u16, u8, bool)>(), options).prop_map(
        |((source, destination, identification, ttl, dont_fragment), options)| V4 {
            source: source.into(),
            destination: destination.into(),
            identification,
            ttl,
            dont_fragment,
            options: options.into_iter().flat_map(u32::to_be_bytes).collect(),
        },
    )
}

/// At most one of them, in front; at most one fragment header, too.
fn hop_by_hop_first(mut extensions: Vec<Extension>) -> Vec<Extension> {
    let is = |number: u8| move |extension: &Extension| extension.number() == number;
    let mut keep_one = |number: u8| {
        let first = extensions.iter().position(is(number));
        let mut n = 0..;
        extensions.retain(|extension| {
            let n = n.next();
            extension.number() != number || n == first
        });
        first
    };
    keep_one(protocol::FRAGMENT);
    if let Some(first) = keep_one(protocol::HOP_BY_HOP) {
        extensions.swap(0, first);
    }
    extensions
}

fn unfragmented() -> impl Strategy<Value = Extension> {
    prop_oneof![
        (0..4_u8).prop_map(Extension::HopByHop),
        (0..4_u8).prop_map(Extension::Destination),
        (0..2_u8, any::<[u8; 16]>()).prop_map(|(left, last)| Extension::Routing {
            left,
            last: last.into()
        }),
        Just(Extension::Authentication),
    ]
}

fn tcps() -> impl Strategy<Value = Tcp> {
    let options = vec(any::<u32>(), 0..=10);
    (any::<((u16, u16), u32, u8)>(), options).prop_map(|((ports, sequence, flags), options)| Tcp {
        ports,
        sequence,
        flags,
        options: options.into_iter().flat_map(u32::to_be_bytes).collect(),
    })
}

fn transports() -> impl Strategy<Value = Transport> {
    prop_oneof![
        tcps().prop_map(Transport::Tcp),
        any::<((u16, u16), bool)>()
            .prop_map(|(ports, checksum)| Transport::Udp { ports, checksum }),
        any::<(u8, u8, [u8; 4])>().prop_map(|(kind, code, rest)| Transport::Icmp(kind, code, rest)),
        prop_oneof![
            Just(89_u8),
            Just(112),
            Just(47),
            Just(50),
            Just(59),
            Just(132)
        ]
        .prop_map(Transport::Other),
    ]
}
