//! Fragmentation of IPv6 packets that the NOS itself sends (RFC 8200 §4.5): nobody else may do it.

use crate::drop::DropReason;
use crate::frame::{ETHERNET_HEADER, FramePool};
use crate::offload::{Adapted, Dropped, complete_checksum};
use crate::packet::{Fragment, IPV6_HEADER, Packet, protocol};

/// Octets of a fragment header.
const FRAGMENT_HEADER: usize = 8;

/// Cuts a packet of the NOS's own that is longer than `mtu` (octets of IP packet) into fragments,
/// and hands them to `out`, in order; a shorter packet is handed on untouched. `identification`
/// comes from [`Originator::fragment_identification`](crate::originate::Originator).
///
/// Fragments are as long as Linux makes them: all but the last carry as many times eight octets as
/// fit. Only packets without extension headers that are no super-frames are cut, as the NOS makes
/// no others; the rest is dropped with [`DropReason::TooBig`]. When `pool` runs out of buffers, the
/// remaining fragments are dropped with [`DropReason::NoBuffer`].
pub fn fragment_ipv6(
    mut packet: Packet,
    mtu: usize,
    identification: u32,
    pool: &mut FramePool,
    out: &mut impl FnMut(Packet),
) -> Adapted {
    if packet.wire_len() <= mtu {
        out(packet);
        return Adapted::default();
    }
    let piece = mtu.saturating_sub(IPV6_HEADER + FRAGMENT_HEADER) & !7;
    let plain = packet.is_ipv6()
        && packet.fragment() == Fragment::Whole
        && packet.transport_offset() == ETHERNET_HEADER + IPV6_HEADER
        && packet.frame().offload().segmentation.is_none();
    if !plain || piece == 0 {
        pool.free(packet.into_frame());
        return dropped(DropReason::TooBig, 1, 0);
    }
    complete_checksum(&mut packet);
    let transport = packet.transport();
    let count = transport.len().div_ceil(piece);
    let mut made = 0;
    for (n, octets) in transport.chunks(piece).enumerate() {
        let place = Place {
            start: n * piece,
            last: n + 1 == count,
            identification,
        };
        let Some(fragment) = fragment(&packet, octets, place, pool) else {
            break;
        };
        out(fragment);
        made += 1;
    }
    pool.free(packet.into_frame());
    let missing = u64::try_from(count - made).unwrap_or(0);
    let originated = u64::try_from(count).unwrap_or(1) - 1;
    dropped(DropReason::NoBuffer, missing, originated)
}

fn dropped(reason: DropReason, packets: u64, originated: u64) -> Adapted {
    let dropped = (packets > 0).then_some(Dropped { reason, packets });
    Adapted {
        originated,
        dropped,
    }
}

#[derive(Clone, Copy)]
struct Place {
    start: usize,
    last: bool,
    identification: u32,
}

fn fragment(packet: &Packet, octets: &[u8], place: Place, pool: &mut FramePool) -> Option<Packet> {
    const HEADERS: usize = ETHERNET_HEADER + IPV6_HEADER;
    let mut frame = pool.alloc()?;
    if frame
        .set_len(HEADERS + FRAGMENT_HEADER + octets.len())
        .is_err()
    {
        pool.free(frame);
        return None;
    }
    frame.set_vrf(packet.frame().vrf());
    if let Some(interface) = packet.frame().interface() {
        frame.set_interface(interface);
    }
    let (headers, rest) = frame.bytes_mut().split_at_mut(HEADERS);
    headers.copy_from_slice(packet.frame().bytes().get(..HEADERS)?);
    let payload_len = u16::try_from(rest.len()).unwrap_or(u16::MAX);
    let next = core::mem::replace(&mut headers[ETHERNET_HEADER + 6], protocol::FRAGMENT);
    headers[ETHERNET_HEADER + 4..][..2].copy_from_slice(&payload_len.to_be_bytes());
    let (header, payload) = rest.split_at_mut(FRAGMENT_HEADER);
    // Offsets are multiples of eight: the lower three bits are for flags.
    let more = u16::from(!place.last);
    let field = u16::try_from(place.start).unwrap_or(u16::MAX) & !7 | more;
    header[0] = next;
    header[1] = 0;
    header[2..4].copy_from_slice(&field.to_be_bytes());
    header[4..].copy_from_slice(&place.identification.to_be_bytes());
    payload.copy_from_slice(octets);
    Packet::parse(frame).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Checksum, Offload};
    use crate::test_packets::{Draft, pool};

    fn cut(packet: Packet, mtu: usize, pool: &mut FramePool) -> (Adapted, Vec<Packet>) {
        let mut fragments = Vec::new();
        let adapted = fragment_ipv6(packet, mtu, 0x0102_0304, pool, &mut |piece| {
            fragments.push(piece);
        });
        (adapted, fragments)
    }

    /// Linux 6.18 at an MTU of 1,500 cuts an echo reply of 2,508 octets into payloads of 1,456 and
    /// 1,068, and repeats traffic class, flow label and hop limit.
    #[test]
    fn fragments_are_as_long_as_linux_makes_them() {
        let mut pool = pool();
        let mut draft = Draft::v6();
        draft.class = 0xfc;
        draft.label = 0x8d6d6;
        let packet = draft.icmp_packet(&mut pool, (129, 0), 1, &[b'y'; 2500]);
        let (adapted, fragments) = cut(packet, 1500, &mut pool);
        assert_eq!(
            adapted,
            Adapted {
                originated: 1,
                dropped: None
            }
        );
        let lengths: Vec<_> = fragments
            .iter()
            .map(|piece| piece.ip().len() - 40)
            .collect();
        assert_eq!(lengths, [1456, 1068]);
        assert_eq!(
            fragments[0].ip()[..8],
            [0x6f, 0xc8, 0xd6, 0xd6, 0x05, 0xb0, 44, 55]
        );
        assert_eq!(fragments[0].ip()[40..48], [58, 0, 0, 1, 1, 2, 3, 4]);
        assert_eq!(fragments[1].ip()[40..48], [58, 0, 0x05, 0xa8, 1, 2, 3, 4]);
    }

    #[test]
    fn checksums_are_completed_before() {
        let mut pool = pool();
        let draft = Draft::v6();
        let mut udp = draft.udp((1, 2), &[9; 3000]);
        let complete = udp.clone();
        let packet = draft.packet(&mut pool, 17, &udp);
        let pseudo = packet.addresses().pseudo_sum(17, udp.len()).folded();
        udp[6..8].copy_from_slice(&pseudo.to_be_bytes());
        let mut frame = pool.copy_from(&draft.frame(17, &udp)).unwrap();
        frame.set_offload(Offload {
            checksum: Checksum::Partial {
                start: 54,
                offset: 6,
            },
            segmentation: None,
        });
        let (_, fragments) = cut(Packet::parse(frame).unwrap(), 1280, &mut pool);
        let octets: Vec<u8> = fragments
            .iter()
            .flat_map(|piece| piece.ip()[48..].to_vec())
            .collect();
        assert_eq!(octets, complete);
    }

    #[test]
    fn short_packets_pass_and_others_are_dropped() {
        let mut pool = FramePool::new(4, crate::frame::MAX_FRAME);
        let packet = Draft::v6().udp_packet(&mut pool, (1, 2), &[0; 1452]);
        let (adapted, fragments) = cut(packet, 1500, &mut pool);
        assert_eq!((adapted, fragments.len()), (Adapted::default(), 1));
        drop(fragments);
        let v4 = Draft::v4().udp_packet(&mut pool, (1, 2), &[0; 2000]);
        let (adapted, _) = cut(v4, 1500, &mut pool);
        assert_eq!(adapted, dropped(DropReason::TooBig, 1, 0));
        // Three buffers are left for five fragments.
        let packet = Draft::v6().udp_packet(&mut pool, (1, 2), &[0; 6000]);
        let (adapted, fragments) = cut(packet, 1280, &mut pool);
        assert_eq!(
            (adapted, fragments.len()),
            (dropped(DropReason::NoBuffer, 2, 4), 3)
        );
    }
}
