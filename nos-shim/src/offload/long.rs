//! Super-frames that are longer than an IP packet can be (Linux: BIG TCP), cut into ordinary ones.
//!
//! With `gso_max_size` or `gro_max_size` above 65,536 Linux passes TCP super-frames of up to 512 KiB
//! between interfaces. None ever is on a wire, so their IP length says nothing: it is zero, and in
//! IPv6 the kernel may put a hop-by-hop header with a jumbo payload option (RFC 2675) in front that
//! no sender meant to be there. Such a frame does not fit a buffer. Whoever reads it gives its
//! start in a frame and the rest beside it.

use std::collections::VecDeque;

use super::Dropped;
use super::cut::{Finish, Piece};
use super::segment::Template;
use super::segment::length;
use crate::checksum::{Sum, updated};
use crate::drop::DropReason;
use crate::frame::{
    Checksum, ETHERNET_HEADER, Ecn, Frame, FramePool, GsoKind, Offload, Segmentation,
};
use crate::packet::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_HEADER, IPV6_HEADER, Packet, TCP_CHECKSUM, parse, protocol,
};

/// The longest frame that Linux makes, in octets: `GSO_MAX_SIZE`, and an Ethernet header.
pub const MAX_LONG_FRAME: usize = ETHERNET_HEADER + 8 * 65_535;

/// Octets of a hop-by-hop header with nothing but a jumbo payload option (RFC 2675 §2).
const JUMBO_HEADER: usize = 8;
/// The jumbo payload option's type and length (RFC 2675 §2).
const JUMBO_OPTION: [u8; 2] = [0xc2, 4];
/// Octets from the frame's start to the IPv6 payload length.
const PAYLOAD_LENGTH: usize = ETHERNET_HEADER + 4;
/// Octets from the frame's start to the IPv6 next header.
const NEXT_HEADER: usize = ETHERNET_HEADER + 6;
/// Octets from the frame's start to the end of the IPv6 header.
const IPV6_END: usize = ETHERNET_HEADER + IPV6_HEADER;

/// Cuts a TCP super-frame that does not fit a buffer into super-frames that do, each of whole
/// segments but the last, and appends them to `out`, in order. Their segments are those of the
/// whole.
///
/// `head` holds the first octets, at most [`crate::frame::MAX_FRAME`], and the whole's offload state;
/// `rest` holds those that follow. Pieces
/// for which `pool` has no buffer are dropped with [`DropReason::NoBuffer`].
///
/// # Errors
///
/// Why the whole is dropped: [`DropReason::FrameLength`] if it is no TCP super-frame or not even one
/// segment fits `head`, [`DropReason::IpLength`] if the IP header says another length,
/// [`DropReason::OffloadHeader`] if its checksum is neither partial nor verified, and whatever
/// [`Packet::parse`] has against its headers.
pub fn cut_long(
    head: Frame,
    rest: &[u8],
    pool: &mut FramePool,
    out: &mut VecDeque<Frame>,
) -> Result<Option<Dropped>, DropReason> {
    let (long, head) = match Long::new(head, rest) {
        Ok(long) => long,
        Err((head, reason)) => {
            pool.free(head);
            return Err(reason);
        }
    };
    // The first piece keeps the head's buffer, so the others take their octets before.
    let first = out.len();
    let mut missing = 0;
    let mut offset = long.piece;
    while offset < long.payload {
        match long.copy(&head, offset, pool) {
            Some(frame) => out.push_back(frame),
            None => missing += 1,
        }
        offset += long.piece;
    }
    out.insert(first, long.first(head));
    Ok((missing > 0).then_some(Dropped {
        reason: DropReason::NoBuffer,
        packets: missing,
    }))
}

/// A super-frame that is being cut.
struct Long<'a> {
    rest: &'a [u8],
    segmentation: Segmentation,
    template: Template,
    /// Octets of all headers.
    headers: usize,
    /// Octets of payload in all.
    payload: usize,
    /// Octets of payload in each piece but the last.
    piece: usize,
}

impl<'a> Long<'a> {
    /// Looks at the headers of `head`, and makes them those of a packet as long as `head` is.
    fn new(mut head: Frame, rest: &'a [u8]) -> Result<(Self, Frame), (Frame, DropReason)> {
        let segmentation = match mend_headers(&mut head, rest.len()) {
            Ok(segmentation) => segmentation,
            Err(reason) => return Err((head, reason)),
        };
        let mut packet = Packet::assume(head);
        if let Err(reason) = mend_checksum(&mut packet, rest.len()) {
            return Err((packet.into_frame(), reason));
        }
        let template = Template::new(&packet, true);
        let headers = packet.payload_offset();
        let head = packet.into_frame();
        let size = usize::from(segmentation.size.get());
        let piece = (head.len() - headers) / size * size;
        if piece == 0 {
            return Err((head, DropReason::FrameLength));
        }
        let long = Self {
            rest,
            segmentation,
            template,
            headers,
            payload: head.len() - headers + rest.len(),
            piece,
        };
        Ok((long, head))
    }

    /// The piece whose payload starts at `offset`, in a buffer of its own.
    fn copy(&self, head: &Frame, offset: usize, pool: &mut FramePool) -> Option<Frame> {
        let len = self.piece.min(self.payload - offset);
        let mut frame = pool.alloc()?;
        if frame.set_len(self.headers + len).is_err() {
            pool.free(frame);
            return None;
        }
        let (headers, start) = head.bytes().split_at(self.headers);
        let (to_headers, to) = frame.bytes_mut().split_at_mut(self.headers);
        to_headers.copy_from_slice(headers);
        let from_head = start.get(offset..).unwrap_or_default();
        let from_head = from_head.get(..len).unwrap_or(from_head);
        let (to_first, to_last) = to.split_at_mut(from_head.len());
        to_first.copy_from_slice(from_head);
        let skipped = offset.saturating_sub(start.len());
        to_last.copy_from_slice(self.rest.get(skipped..)?.get(..len - from_head.len())?);
        frame.inherit(head);
        self.finish(&mut frame, offset, len);
        Some(frame)
    }

    /// The first piece, in the head's buffer.
    fn first(&self, mut head: Frame) -> Frame {
        let len = self.piece.min(self.payload);
        head.truncate(self.headers + len);
        self.finish(&mut head, 0, len);
        head
    }

    fn finish(&self, frame: &mut Frame, offset: usize, len: usize) {
        let segments_before = offset / usize::from(self.segmentation.size.get());
        let piece = Piece {
            // Modulo 2^16, as identifications are.
            index: u16::try_from(segments_before & 0xffff).unwrap_or(0),
            offset,
            len,
            last: offset + len == self.payload,
        };
        self.template.finish(frame, piece);
        frame.set_offload(Offload {
            checksum: frame.offload().checksum,
            segmentation: Some(Segmentation {
                ecn: match self.segmentation.ecn {
                    // The first segment of all has CWR.
                    Ecn::Classic if offset > 0 => Ecn::Unmarked,
                    ecn => ecn,
                },
                ..self.segmentation
            }),
        });
    }
}

/// Makes the headers of `head`, of a frame that has `more` octets, those of a packet as long as `head`,
/// and sets its parse results.
fn mend_headers(head: &mut Frame, more: usize) -> Result<Segmentation, DropReason> {
    let segmentation = match head.offload().segmentation {
        Some(segmentation) if segmentation.kind != GsoKind::Udp => segmentation,
        _ => return Err(DropReason::FrameLength),
    };
    let whole = head.len() + more - ETHERNET_HEADER;
    match u16_at(head.bytes(), 12) {
        Some(ETHERTYPE_IPV4) => mend_ipv4(head.bytes_mut(), whole),
        Some(ETHERTYPE_IPV6) => {
            let jumbo = drop_jumbo_header(head, whole)?;
            mend_ipv6(head.bytes_mut(), whole - jumbo)
        }
        _ => Err(DropReason::EtherType),
    }?;
    let (parsed, len) = parse(head.bytes(), head.offload())?;
    if len != head.len() {
        return Err(DropReason::IpLength);
    }
    head.set_parsed(parsed);
    Ok(segmentation)
}

/// Writes the length of a header whose packet has `whole` octets, and mends the header checksum: if
/// it was wrong, it stays so.
fn mend_ipv4(head: &mut [u8], whole: usize) -> Result<(), DropReason> {
    let len = ip_length(head.len() - ETHERNET_HEADER)?;
    let header = head
        .get_mut(ETHERNET_HEADER..)
        .and_then(|ip| ip.first_chunk_mut::<IPV4_HEADER>())
        .ok_or(DropReason::IpLength)?;
    let said = u16::from_be_bytes([header[2], header[3]]);
    check_length(said, whole)?;
    let sum = updated(u16::from_be_bytes([header[10], header[11]]), said, len);
    header[2..4].copy_from_slice(&len.to_be_bytes());
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

/// Writes the length of a header whose packet has `whole` octets.
fn mend_ipv6(head: &mut [u8], whole: usize) -> Result<(), DropReason> {
    let len = head.len().checked_sub(IPV6_END);
    let len = ip_length(len.ok_or(DropReason::IpLength)?)?;
    check_length(
        u16_at(head, PAYLOAD_LENGTH).unwrap_or(0),
        whole - IPV6_HEADER,
    )?;
    if let Some(field) = head.get_mut(PAYLOAD_LENGTH..NEXT_HEADER) {
        field.copy_from_slice(&len.to_be_bytes());
    }
    Ok(())
}

/// The length field of what does not fit in it is zero.
fn check_length(said: u16, octets: usize) -> Result<(), DropReason> {
    if usize::from(said) == octets || said == 0 && octets > usize::from(u16::MAX) {
        Ok(())
    } else {
        Err(DropReason::IpLength)
    }
}

fn ip_length(octets: usize) -> Result<u16, DropReason> {
    u16::try_from(octets).map_err(|_| DropReason::IpLength)
}

/// Takes the hop-by-hop header out that Linux before 6.19 puts in front of the others, of a packet
/// of `whole` octets. Returns how many octets that were.
fn drop_jumbo_header(head: &mut Frame, whole: usize) -> Result<usize, DropReason> {
    let bytes = head.bytes();
    let first = bytes.get(IPV6_END..).and_then(|rest| rest.first_chunk());
    let Some(&[next, 0, kind, len, ref jumbo @ ..]): Option<&[u8; JUMBO_HEADER]> = first else {
        return Ok(0);
    };
    let is_jumbo = bytes.get(NEXT_HEADER) == Some(&protocol::HOP_BY_HOP)
        && u16_at(bytes, PAYLOAD_LENGTH) == Some(0)
        && [kind, len] == JUMBO_OPTION;
    if !is_jumbo {
        return Ok(0);
    }
    let said = usize::try_from(u32::from_be_bytes(*jumbo));
    if said != Ok(whole - IPV6_HEADER) {
        return Err(DropReason::Ipv6Header);
    }
    let mut offload = head.offload();
    if let Checksum::Partial { start, .. } = &mut offload.checksum {
        *start = start.saturating_sub(length(JUMBO_HEADER));
    }
    let bytes = head.bytes_mut();
    bytes[NEXT_HEADER] = next;
    bytes.copy_within(..IPV6_END, JUMBO_HEADER);
    head.trim_front(JUMBO_HEADER);
    head.set_offload(offload);
    Ok(JUMBO_HEADER)
}

/// Makes the checksum partial, with the pseudo-header's sum for the packet as long as it is, which
/// lacks `more` octets of the whole.
fn mend_checksum(packet: &mut Packet, more: usize) -> Result<(), DropReason> {
    let len = ip_length(packet.transport().len())?;
    let place = packet.transport_offset() + usize::from(TCP_CHECKSUM);
    let offload = packet.frame().offload();
    let sum = match offload.checksum {
        // The whole's length is taken out, as it is not sure that the rest is in the header: a
        // packet with a routing header goes elsewhere at last.
        Checksum::Partial { .. } => {
            let field = u16_at(packet.frame().bytes(), place).ok_or(DropReason::TransportHeader)?;
            let whole = u32::try_from(usize::from(len) + more).unwrap_or(u32::MAX);
            let [h0, h1, l0, l1] = (!whole).to_be_bytes();
            let less = Sum::ZERO.plus(&[h0, h1, l0, l1]);
            less.add_u16(field).add_u16(len)
        }
        Checksum::Verified if !packet.has_segments_left() => packet.pseudo_sum(usize::from(len)),
        Checksum::Verified | Checksum::Complete => return Err(DropReason::OffloadHeader),
    };
    let start = length(packet.transport_offset());
    let frame = packet.frame_mut();
    if let Some(field) = frame.bytes_mut().get_mut(place..place + 2) {
        field.copy_from_slice(&sum.folded().to_be_bytes());
    }
    frame.set_offload(Offload {
        checksum: Checksum::Partial {
            start,
            offset: TCP_CHECKSUM,
        },
        ..offload
    });
    Ok(())
}

fn u16_at(octets: &[u8], at: usize) -> Option<u16> {
    let octets = octets.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*octets))
}

#[cfg(test)]
mod tests;
