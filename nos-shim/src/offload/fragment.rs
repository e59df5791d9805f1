//! Fragmentation of IPv4 on output (RFC 791 §3.2, RFC 1812 §4.2.2.7).

use super::cut::{Cut, Finish, Piece, Sizes};
use super::segment::{Left, Segments};
use super::{Adapted, complete_checksum};
use crate::checksum::Sum;
use crate::drop::DropReason;
use crate::frame::{ETHERNET_HEADER, Frame, FramePool};
use crate::packet::{Fragment, IPV4_HEADER, Packet};
use crate::parsed::Flags;

/// More fragments follow.
const MF: u16 = 0x2000;
/// Fragment offset, in units of 8 octets.
const OFFSET: u16 = 0x1fff;

/// Cuts a packet whose [`Packet::wire_len`] exceeds `mtu` (octets of IP packet) into fragments and
/// hands them to `out`, in order; a shorter packet is handed on untouched. A super-frame is first
/// cut into its segments. Fragments of fragments keep their place in the datagram.
///
/// What must not be fragmented (IPv4 with DF, IPv6) is dropped with [`DropReason::TooBig`]: whoever
/// wants to answer with an ICMP error asks [`Packet::dont_fragment`] before. The same happens to
/// packets for which `mtu` is too short for any payload, which RFC 791's least MTU of 68 excludes.
/// Fragments for which `pool` has no buffer are dropped with [`DropReason::NoBuffer`].
pub fn fragment_ipv4(
    packet: Packet,
    mtu: usize,
    pool: &mut FramePool,
    out: &mut impl FnMut(Packet),
) -> Adapted {
    if packet.wire_len() <= mtu {
        out(packet);
        return Adapted::default();
    }
    let Some(room) = room(&packet, mtu) else {
        pool.free(packet.into_frame());
        return Adapted::dropped(DropReason::TooBig);
    };
    let Some(segmentation) = packet.frame().offload().segmentation else {
        return fragment(packet, room, pool, out);
    };
    let mut segments = Segments::new(packet, segmentation, Left::Nothing);
    let mut fragments = Adapted::default();
    while let Some(segment) = segments.next(pool) {
        fragments.merge(fragment(segment, room, pool, out));
    }
    let mut adapted = segments.adapted();
    adapted.merge(fragments);
    adapted
}

/// Octets of payload that fit a fragment of `packet`, or `None` if it can't be fragmented.
fn room(packet: &Packet, mtu: usize) -> Option<usize> {
    if packet.dont_fragment() {
        return None;
    }
    let header = usize::from(packet.ip()[0] & 0xf) * 4;
    mtu.checked_sub(header).filter(|&room| room >= 8)
}

fn fragment(
    mut packet: Packet,
    room: usize,
    pool: &mut FramePool,
    out: &mut impl FnMut(Packet),
) -> Adapted {
    complete_checksum(&mut packet);
    let headers = ETHERNET_HEADER + usize::from(packet.ip()[0] & 0xf) * 4;
    // Only the end of the datagram need not be a multiple of 8 octets.
    let sizes = Sizes {
        headers,
        piece: room & !7,
        last: room,
    };
    let template = Template::new(&packet, headers);
    let mut fragments = Cut::new(packet, sizes, template);
    while let Some(fragment) = fragments.next(pool) {
        out(fragment);
    }
    fragments.adapted()
}

/// The place of the packet that is cut in its datagram.
struct Template {
    headers: usize,
    /// The field of flags and offset.
    field: u16,
    kind: Fragment,
}

impl Template {
    fn new(packet: &Packet, headers: usize) -> Self {
        let ip = packet.ip();
        Self {
            headers,
            field: u16::from_be_bytes([ip[6], ip[7]]),
            kind: packet.fragment(),
        }
    }

    /// The field of flags and offset of one piece.
    fn piece_field(&self, piece: Piece) -> u16 {
        // The parser has checked that the datagram ends before 65,536 octets.
        let units = u16::try_from(piece.offset / 8).unwrap_or(OFFSET);
        let offset = (self.field & OFFSET) + units;
        let more = if piece.last { self.field & MF } else { MF };
        self.field & !(OFFSET | MF) | offset | more
    }

    /// The parse results of one piece.
    fn piece_parsed(&self, frame: &mut Frame, piece: Piece) {
        let mut parsed = *frame.parsed();
        let first = self.kind != Fragment::Later && piece.offset == 0;
        parsed
            .flags
            .remove(Flags::FIRST_FRAGMENT | Flags::LATER_FRAGMENT);
        parsed.flags.insert(match (first, piece.last) {
            (false, _) => Flags::LATER_FRAGMENT,
            (true, false) => Flags::FIRST_FRAGMENT,
            // The packet is its own only piece.
            (true, true) => return,
        });
        // The transport header is in the first piece, if it is there as a whole.
        if !first || usize::from(parsed.payload) > frame.len() {
            parsed.flags.remove(Flags::PORTS);
            parsed.payload = parsed.l4;
            (parsed.source_port, parsed.destination_port) = (0, 0);
        }
        frame.set_parsed(parsed);
    }
}

impl Finish for Template {
    fn finish(&self, frame: &mut Frame, piece: Piece) {
        let header = &mut frame.bytes_mut()[ETHERNET_HEADER..self.headers];
        if piece.offset > 0 {
            blank_options(&mut header[IPV4_HEADER..]);
        }
        let total = u16::try_from(header.len() + piece.len).unwrap_or(u16::MAX);
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[6..8].copy_from_slice(&self.piece_field(piece).to_be_bytes());
        header[10..12].copy_from_slice(&[0, 0]);
        let checksum = Sum::ZERO.plus(header).checksum();
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        self.piece_parsed(frame, piece);
    }
}

/// Writes NOP over the options that only the first fragment carries (RFC 791 §3.1: those without
/// the copied flag). Like Linux, and unlike RFC 791's example, this keeps the header's length.
fn blank_options(mut options: &mut [u8]) {
    const END: u8 = 0;
    const NOP: u8 = 1;
    const COPIED: u8 = 0x80;
    while let [kind, rest @ ..] = &*options {
        let len = match (*kind, rest) {
            (END, _) => return,
            (NOP, _) => 1,
            (_, [len, ..]) => usize::from(*len),
            (_, []) => return,
        };
        let copied = kind & COPIED != 0;
        if len == 0 || *kind != NOP && len < 2 {
            return;
        }
        let Some((option, rest)) = options.split_at_mut_checked(len) else {
            return;
        };
        if !copied {
            option.fill(NOP);
        }
        options = rest;
    }
}
