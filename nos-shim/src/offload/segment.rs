//! Cutting super-frames into segments.

use super::cut::{Cut, Finish, Piece, Sizes};
use super::{Adapted, Capabilities, complete_checksum, never_zero};
use crate::checksum::Sum;
use crate::frame::{Checksum, ETHERNET_HEADER, Frame, FramePool, Offload, Segmentation};
use crate::packet::{IPV4_HEADER, IPV6_HEADER, Packet, protocol};

const FIN: u16 = 0x01;
const PSH: u16 = 0x08;
const CWR: u16 = 0x80;

/// Cuts a super-frame into segments and hands them to `out`, in order. Their checksums are
/// complete, or partial if `capabilities` has [`Capabilities::CHECKSUM`].
///
/// Segments get consecutive IPv4 identifications. FIN and PSH stay on the last segment, CWR on the
/// first (also without the ECN mark, as Linux has it). IPv4 options and IPv6 extension headers
/// stay on all. Segments for which `pool` has no buffer are dropped.
///
/// A packet that is no super-frame is handed on as it is, but for its checksum.
pub fn segment(
    mut packet: Packet,
    capabilities: Capabilities,
    pool: &mut FramePool,
    out: &mut impl FnMut(Packet),
) -> Adapted {
    let partial = capabilities.contains(Capabilities::CHECKSUM);
    let Some(segmentation) = packet.frame().offload().segmentation else {
        if !partial {
            complete_checksum(&mut packet);
        }
        out(packet);
        return Adapted::default();
    };
    let mut segments = Segments::new(packet, segmentation, partial);
    while let Some(segment) = segments.next(pool) {
        out(segment);
    }
    segments.adapted()
}

/// The segments of a super-frame.
pub(super) struct Segments(Cut<Template>);

impl Segments {
    /// `partial`: leave the checksums to the device.
    pub(super) fn new(packet: Packet, segmentation: Segmentation, partial: bool) -> Self {
        let size = usize::from(segmentation.size.get());
        let sizes = Sizes {
            headers: packet.payload_offset(),
            piece: size,
            last: size,
        };
        let template = Template::new(&packet, partial);
        Self(Cut::new(packet, sizes, template))
    }

    #[inline]
    pub(super) fn next(&mut self, pool: &mut FramePool) -> Option<Packet> {
        self.0.next(pool)
    }

    pub(super) fn adapted(&self) -> Adapted {
        self.0.adapted()
    }
}

/// What is the same in all segments, summed once.
pub(super) struct Template {
    /// Octets from the frame's start to the transport header.
    l4: usize,
    network: Network,
    transport: Transport,
    /// The pseudo-header but for the length.
    pseudo: Sum,
    partial: bool,
}

enum Network {
    V4 {
        /// The header but for length, identification and checksum.
        sum: Sum,
        identification: u16,
    },
    V6,
}

enum Transport {
    Tcp {
        /// The header but for sequence number, flags and checksum.
        sum: Sum,
        sequence: u32,
        /// Data offset and flags.
        flags: u16,
    },
    Udp {
        /// The ports.
        sum: Sum,
    },
}

impl Template {
    pub(super) fn new(packet: &Packet, partial: bool) -> Self {
        let transport = packet.transport();
        let header = packet.payload_offset() - packet.transport_offset();
        let header = &transport[..header];
        Self {
            l4: packet.transport_offset(),
            network: Network::new(packet),
            transport: Transport::new(packet.protocol(), header),
            pseudo: pseudo_sum(packet),
            partial,
        }
    }
}

/// The pseudo-header's sum but for the length. Taken from the checksum field where it stands
/// there: the final destination of a packet with a routing header is not in the IPv6 header.
fn pseudo_sum(packet: &Packet) -> Sum {
    let transport = packet.transport();
    match packet.frame().offload().checksum {
        Checksum::Partial { offset, .. } => {
            let field = u16_at(transport, usize::from(offset));
            Sum::ZERO.add_u16(field).add_u16(!length(transport.len()))
        }
        Checksum::Complete | Checksum::Verified => packet.pseudo_sum(0),
    }
}

impl Network {
    fn new(packet: &Packet) -> Self {
        if packet.is_ipv6() {
            return Self::V6;
        }
        let header = &packet.ip()[..packet.transport_offset() - ETHERNET_HEADER];
        let sum = Sum::ZERO
            .plus(&header[..2])
            .plus(&header[6..10])
            .plus(&header[12..]);
        Self::V4 {
            sum,
            identification: u16_at(header, 4),
        }
    }

    /// `len`: octets of transport header and payload.
    #[inline]
    fn finish(&self, header: &mut [u8], len: usize, index: u16) {
        match *self {
            Self::V4 {
                sum,
                identification,
            } => {
                let total = length(header.len() + len);
                let id = identification.wrapping_add(index);
                let checksum = sum.add_u16(total).add_u16(id).checksum();
                if let Some(header) = header.first_chunk_mut::<IPV4_HEADER>() {
                    header[2..4].copy_from_slice(&total.to_be_bytes());
                    header[4..6].copy_from_slice(&id.to_be_bytes());
                    header[10..12].copy_from_slice(&checksum.to_be_bytes());
                }
            }
            Self::V6 => {
                let payload = length(header.len() - IPV6_HEADER + len);
                header[4..6].copy_from_slice(&payload.to_be_bytes());
            }
        }
    }
}

impl Transport {
    fn new(protocol: u8, header: &[u8]) -> Self {
        if protocol == protocol::UDP {
            let sum = Sum::ZERO.plus(&header[..4]);
            return Self::Udp { sum };
        }
        let sum = Sum::ZERO
            .plus(&header[..4])
            .plus(&header[8..12])
            .plus(&header[14..16])
            .plus(&header[18..]);
        Self::Tcp {
            sum,
            sequence: u32::from(u16_at(header, 4)) << 16 | u32::from(u16_at(header, 6)),
            flags: u16_at(header, 12),
        }
    }

    /// Octets from the header's start to the checksum field.
    fn checksum_at(&self) -> usize {
        match self {
            Self::Tcp { .. } => 16,
            Self::Udp { .. } => 6,
        }
    }

    /// Writes what differs, and returns the header's sum but for the checksum.
    #[inline]
    fn finish(&self, segment: &mut [u8], piece: Piece) -> Sum {
        match *self {
            Self::Udp { sum } => {
                let len = length(segment.len());
                segment[4..6].copy_from_slice(&len.to_be_bytes());
                sum.add_u16(len)
            }
            Self::Tcp {
                sum,
                sequence,
                flags,
            } => {
                let offset = u32::try_from(piece.offset).unwrap_or(u32::MAX);
                let sequence = sequence.wrapping_add(offset).to_be_bytes();
                let flags = piece_flags(flags, piece);
                segment[4..8].copy_from_slice(&sequence);
                segment[12..14].copy_from_slice(&flags.to_be_bytes());
                sum.plus(&sequence).add_u16(flags)
            }
        }
    }
}

fn piece_flags(flags: u16, piece: Piece) -> u16 {
    let not_first = if piece.offset > 0 { CWR } else { 0 };
    let not_last = if piece.last { 0 } else { FIN | PSH };
    flags & !(not_first | not_last)
}

impl Finish for Template {
    #[inline]
    fn finish(&self, frame: &mut Frame, piece: Piece) {
        let (network, segment) = frame.bytes_mut().split_at_mut(self.l4);
        let len = segment.len();
        self.network
            .finish(&mut network[ETHERNET_HEADER..], len, piece.index);
        let header = self.transport.finish(segment, piece);
        let pseudo = self.pseudo.add_u16(length(len));
        let at = self.transport.checksum_at();
        let checksum = if self.partial {
            pseudo.folded()
        } else {
            let payload = &segment[len - piece.len..];
            let sum = pseudo.plus_sum(header).plus(payload);
            match self.transport {
                Transport::Tcp { .. } => sum.checksum(),
                Transport::Udp { .. } => never_zero(sum.checksum()),
            }
        };
        segment[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        frame.set_offload(Offload {
            checksum: self.offload(at),
            segmentation: None,
        });
    }
}

impl Template {
    fn offload(&self, checksum_at: usize) -> Checksum {
        if self.partial {
            Checksum::Partial {
                start: length(self.l4),
                offset: length(checksum_at),
            }
        } else {
            Checksum::Verified
        }
    }
}

fn u16_at(octets: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([octets[at], octets[at + 1]])
}

/// A length inside a packet, which is never longer than 65,535 octets.
pub(super) fn length(octets: usize) -> u16 {
    u16::try_from(octets).unwrap_or(u16::MAX)
}
