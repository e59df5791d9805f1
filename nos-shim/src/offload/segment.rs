//! Cutting super-frames into segments.

use super::cut::{Cut, Finish, Piece, Sizes, copy_first};
use super::tunnel::Tunneled;
use super::{Adapted, Capabilities, complete_checksum, never_zero};
use crate::checksum::Sum;
use crate::frame::{
    Checksum, ETHERNET_HEADER, Ecn, Frame, FramePool, GsoKind, Offload, Segmentation, Tunnel,
};
use crate::packet::{IPV4_HEADER, IPV6_HEADER, Packet, TCP_CHECKSUM, UDP_CHECKSUM, protocol};
use crate::tunnel::payload_offset;

const FIN: u16 = 0x01;
const PSH: u16 = 0x08;
const CWR: u16 = 0x80;

/// Cuts a super-frame into segments and hands them to `out`, in order. Their checksums are
/// complete, or partial if `capabilities` has [`Capabilities::CHECKSUM`].
///
/// Segments get consecutive IPv4 identifications. FIN and PSH stay on the last segment, CWR on the
/// first or on all ([`Ecn`]). IPv4 options and IPv6 extension headers stay on all. Segments for which
/// `pool` has no buffer are dropped.
///
/// What a tunnel carries is cut likewise, with the tunnel's headers in front of each segment. Of two
/// checksums a device can make one: that of the tunnel's UDP header if there is one, else the inner. A
/// tunnel without checksums gets them for a device that takes [`Capabilities::USO`]: datagrams without
/// cannot be joined, and each would cost as much as a super-frame. Receivers have to take either.
///
/// A packet that is no super-frame is handed on as it is, but for its checksum.
pub fn segment(
    mut packet: Packet,
    capabilities: Capabilities,
    pool: &mut FramePool,
    out: &mut impl FnMut(Packet),
) -> Adapted {
    let left = Left::to(capabilities);
    let Some(segmentation) = packet.frame().offload().segmentation else {
        if left == Left::Nothing {
            complete_checksum(&mut packet);
        }
        out(packet);
        return Adapted::default();
    };
    let mut segments = Segments::new(packet, segmentation, left);
    while let Some(segment) = segments.next(pool) {
        out(segment);
    }
    segments.adapted()
}

/// What of the segments is left to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing.
    Nothing,
    /// A checksum of each.
    Checksum,
    /// A checksum, and to join datagrams to super-frames of its own. Only datagrams with a checksum can
    /// be joined.
    Joining,
}

impl Left {
    fn to(capabilities: Capabilities) -> Self {
        if capabilities.contains(Capabilities::CHECKSUM | Capabilities::USO) {
            Self::Joining
        } else if capabilities.contains(Capabilities::CHECKSUM) {
            Self::Checksum
        } else {
            Self::Nothing
        }
    }
}

/// A copy of a super-frame's first segment, complete.
pub(crate) fn first_segment(whole: &Packet, pool: &mut FramePool) -> Option<Packet> {
    let segmentation = whole.frame().offload().segmentation?;
    let sizes = sizes(whole, segmentation);
    match segmentation.tunnel {
        None => copy_first(whole, sizes, &Template::new(whole, false), pool),
        Some(tunnel) => copy_first(
            whole,
            sizes,
            &Tunneled::new(whole, tunnel, segmentation, Left::Nothing),
            pool,
        ),
    }
}

/// The segments of a super-frame.
pub(super) enum Segments {
    Plain(Cut<Template>),
    Tunneled(Cut<Tunneled>),
}

fn sizes(packet: &Packet, segmentation: Segmentation) -> Sizes {
    let size = usize::from(segmentation.size.get());
    Sizes {
        headers: packet.segment_offset(segmentation),
        piece: size,
        last: size,
    }
}

impl Segments {
    pub(super) fn new(packet: Packet, segmentation: Segmentation, left: Left) -> Self {
        let sizes = sizes(&packet, segmentation);
        match segmentation.tunnel {
            None => {
                let template = Template::new(&packet, left != Left::Nothing);
                Self::Plain(Cut::new(packet, sizes, template))
            }
            Some(tunnel) => {
                let template = Tunneled::new(&packet, tunnel, segmentation, left);
                Self::Tunneled(Cut::new(packet, sizes, template))
            }
        }
    }

    #[inline]
    pub(super) fn next(&mut self, pool: &mut FramePool) -> Option<Packet> {
        match self {
            Self::Plain(cut) => cut.next(pool),
            Self::Tunneled(cut) => cut.next(pool),
        }
    }

    pub(super) fn adapted(&self) -> Adapted {
        match self {
            Self::Plain(cut) => cut.adapted(),
            Self::Tunneled(cut) => cut.adapted(),
        }
    }
}

/// What is the same in all segments, summed once.
pub(super) struct Template {
    /// Octets from the frame's start to the IP header.
    l3: usize,
    /// Octets from the frame's start to the transport header.
    l4: usize,
    network: Network,
    transport: Transport,
    /// The pseudo-header but for the length.
    pseudo: Sum,
    partial: bool,
}

pub(super) enum Network {
    V4 {
        /// The header but for length, identification and checksum.
        sum: Sum,
        identification: u16,
    },
    V6,
}

pub(super) enum Transport {
    Tcp {
        /// The header but for sequence number, flags and checksum.
        sum: Sum,
        sequence: u32,
        /// Data offset and flags.
        flags: u16,
        /// The flags that stay on the first segment alone.
        first_only: u16,
    },
    Udp {
        /// The ports.
        sum: Sum,
    },
}

impl Template {
    pub(super) fn new(packet: &Packet, partial: bool) -> Self {
        let l4 = packet.transport_offset();
        let transport = &packet.frame().bytes()[l4..packet.payload_offset()];
        Self {
            l3: ETHERNET_HEADER,
            l4,
            network: Network::new(&packet.frame().bytes()[ETHERNET_HEADER..l4]),
            transport: Transport::new(packet.protocol(), transport, ecn_of(packet.frame())),
            pseudo: pseudo_sum(packet),
            partial,
        }
    }

    /// Of the packet in a tunnel, whose payload begins at `payload`.
    pub(super) fn inner(octets: &[u8], tunnel: Tunnel, whole: Segmentation) -> Self {
        let Segmentation { kind, ecn, .. } = whole;
        let payload = payload_offset(octets, kind, tunnel);
        let (l3, l4) = (usize::from(tunnel.network), usize::from(tunnel.transport));
        let protocol = match kind {
            GsoKind::TcpV4 | GsoKind::TcpV6 => protocol::TCP,
            GsoKind::Udp => protocol::UDP,
        };
        let header = &octets[l3..l4];
        Self {
            l3,
            l4,
            network: Network::new(header),
            transport: Transport::new(protocol, &octets[l4..payload], ecn),
            pseudo: addresses_sum(header).add_u16(u16::from(protocol)),
            partial: false,
        }
    }

    /// Leaves the checksum to the device, or not.
    pub(super) fn partial(self, partial: bool) -> Self {
        Self { partial, ..self }
    }
}

fn ecn_of(frame: &Frame) -> Ecn {
    let segmentation = frame.offload().segmentation;
    segmentation.map_or(Ecn::Unmarked, |segmentation| segmentation.ecn)
}

/// The sum of the addresses in an IP header without segments left.
pub(super) fn addresses_sum(header: &[u8]) -> Sum {
    let addresses = match header.first() {
        Some(0x60..=0x6f) => 8..IPV6_HEADER,
        _ => 12..IPV4_HEADER,
    };
    Sum::ZERO.plus(header.get(addresses).unwrap_or_default())
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
    /// Of an IP header with all options or extension headers.
    pub(super) fn new(header: &[u8]) -> Self {
        if header[0] >> 4 == 6 {
            return Self::V6;
        }
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
    pub(super) fn finish(&self, header: &mut [u8], len: usize, index: u16) {
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
    fn new(protocol: u8, header: &[u8], ecn: Ecn) -> Self {
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
            first_only: match ecn {
                Ecn::Classic => CWR,
                Ecn::Unmarked | Ecn::Accurate => 0,
            },
        }
    }

    /// Octets from the header's start to the checksum field.
    fn checksum_at(&self) -> usize {
        match self {
            Self::Tcp { .. } => TCP_CHECKSUM.into(),
            Self::Udp { .. } => UDP_CHECKSUM.into(),
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
                first_only,
            } => {
                let offset = u32::try_from(piece.offset).unwrap_or(u32::MAX);
                let sequence = sequence.wrapping_add(offset).to_be_bytes();
                let flags = piece_flags(flags, first_only, piece);
                segment[4..8].copy_from_slice(&sequence);
                segment[12..14].copy_from_slice(&flags.to_be_bytes());
                sum.plus(&sequence).add_u16(flags)
            }
        }
    }
}

fn piece_flags(flags: u16, first_only: u16, piece: Piece) -> u16 {
    let not_first = if piece.offset > 0 { first_only } else { 0 };
    let not_last = if piece.last { 0 } else { FIN | PSH };
    flags & !(not_first | not_last)
}

impl Finish for Template {
    #[inline]
    fn finish(&self, frame: &mut Frame, piece: Piece) {
        let (network, segment) = frame.bytes_mut().split_at_mut(self.l4);
        let len = segment.len();
        self.network
            .finish(&mut network[self.l3..], len, piece.index);
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

pub(super) fn u16_at(octets: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([octets[at], octets[at + 1]])
}

/// A length inside a packet, which is never longer than 65,535 octets.
pub(super) fn length(octets: usize) -> u16 {
    u16::try_from(octets).unwrap_or(u16::MAX)
}
