use proptest::prelude::*;

use super::*;
use crate::frame::MAX_FRAME;
use crate::offload::{Capabilities, adapt};
use crate::packet::craft::{Craft, Ip, Tcp, Transport, naive_sum, super_crafts};

/// Octets of buffers that hold any ordinary frame.
const ROOM: usize = MAX_FRAME;

/// A TCP super-frame of any length, as Linux passes it on: the IP length is zero where it does not
/// fit. Before 6.19 there is a jumbo payload option in IPv6 (`jumbo`).
fn long(craft: &Craft, size: u16, jumbo: bool) -> (Vec<u8>, Offload) {
    let (mut octets, mut offload) = craft.super_frame(size, false);
    match craft.ip {
        Ip::V4(_) if octets.len() - 14 > 65_535 => {
            let end = 14 + usize::from(octets[14] & 0xf) * 4;
            octets[16..18].fill(0);
            octets[24..26].fill(0);
            let sum = !naive_sum(&octets[14..end]);
            octets[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        Ip::V6(_) if octets.len() - 54 > 65_535 => {
            octets[18..20].fill(0);
            if jumbo {
                insert_jumbo_header(&mut octets, &mut offload);
            }
        }
        _ => {}
    }
    (octets, offload)
}

fn insert_jumbo_header(octets: &mut Vec<u8>, offload: &mut Offload) {
    let payload = (octets.len() - 54 + 8) as u32;
    let mut header = vec![octets[20], 0, 0xc2, 4];
    header.extend(payload.to_be_bytes());
    octets[20] = 0;
    octets.splice(54..54, header);
    if let Checksum::Partial { start, .. } = &mut offload.checksum {
        *start += 8;
    }
}

/// What becomes of a frame of which a buffer of `room` octets takes the start.
fn cut(
    octets: &[u8],
    offload: Offload,
    room: usize,
    pool: &mut FramePool,
) -> Result<(Vec<Frame>, Option<Dropped>), DropReason> {
    let (start, rest) = octets.split_at(room.min(octets.len()));
    let mut head = pool.copy_from(start).unwrap();
    head.set_offload(offload);
    let mut out = VecDeque::new();
    let dropped = cut_long(head, rest, pool, &mut out)?;
    Ok((out.into(), dropped))
}

/// The segments of all pieces, which must be valid.
fn segments(pieces: Vec<Frame>, pool: &mut FramePool) -> Vec<Vec<u8>> {
    let mut segments = Vec::new();
    for piece in pieces {
        let packet = Packet::parse(piece).unwrap();
        let mut keep = |packet: Packet| segments.push(packet.frame().bytes().to_vec());
        let _ = adapt(packet, Capabilities::empty(), pool, &mut keep);
    }
    segments
}

fn is_tcp(craft: &Craft) -> bool {
    matches!(craft.transport, Transport::Tcp(_))
}

/// `craft` with `len` octets of payload, each its place's.
fn with_payload(mut craft: Craft, len: usize) -> Craft {
    craft.payload = (0..len).map(|n| (n * 7 + n / 251) as u8).collect();
    craft
}

fn tcp4() -> Craft {
    Craft::v4(Transport::Tcp(Tcp::default()), b"")
}

fn tcp6() -> Craft {
    Craft::v6(vec![], Transport::Tcp(Tcp::default()), b"")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn its_segments_are_those_of_the_whole(
        craft in super_crafts(), len in 66_000..400_000_usize, size in 500..9_000_u16, jumbo: bool,
    ) {
        prop_assume!(is_tcp(&craft));
        let craft = with_payload(craft, len);
        let mut pool = FramePool::new(1_000, ROOM);
        let (octets, offload) = long(&craft, size, jumbo);
        let (pieces, dropped) = cut(&octets, offload, ROOM, &mut pool).unwrap();
        prop_assert_eq!(dropped, None);
        prop_assert!(pieces.len() <= len.div_ceil(ROOM - usize::from(size) - 500) + 1);
        let expected: Vec<_> = craft.segments(usize::from(size)).iter().map(Craft::frame).collect();
        prop_assert_eq!(segments(pieces, &mut pool), expected);
    }

    /// Where buffers are small, ordinary super-frames are long.
    #[test]
    fn so_it_is_with_small_buffers(craft in super_crafts(), size in 1..1_000_u16, room in 1_200..3_000_usize) {
        prop_assume!(is_tcp(&craft));
        let mut pool = FramePool::new(4_100, 4_200);
        let (octets, offload) = long(&craft, size, false);
        prop_assume!(octets.len() > room);
        let headers = octets.len() - craft.payload.len();
        prop_assume!(headers + usize::from(size) <= room);
        let (pieces, dropped) = cut(&octets, offload, room, &mut pool).unwrap();
        prop_assert_eq!(dropped, None);
        prop_assert!(pieces.iter().all(|piece| piece.len() <= room));
        let expected: Vec<_> = craft.segments(usize::from(size)).iter().map(Craft::frame).collect();
        prop_assert_eq!(segments(pieces, &mut pool), expected);
    }

    #[test]
    fn any_octets_are_cut_or_refused(
        craft in super_crafts(),
        writes in prop::collection::vec((12..120_usize, any::<u8>()), 0..5),
        size in 1..u16::MAX, jumbo: bool, kind in 0..3_u8, checksum in 0..3_u8, room in 60..5_000_usize,
    ) {
        let craft = if jumbo { with_payload(craft, 70_000) } else { craft };
        let mut pool = FramePool::new(5_000, 5_000);
        let (mut octets, mut offload) = long(&craft, size, jumbo);
        for (at, octet) in writes {
            let last = octets.len() - 1;
            octets[at.min(last)] = octet;
        }
        let kind = [GsoKind::TcpV4, GsoKind::TcpV6, GsoKind::Udp][usize::from(kind)];
        offload.segmentation = offload.segmentation.map(|it| Segmentation { kind, ..it });
        offload.checksum = [offload.checksum, Checksum::Verified, Checksum::Complete][usize::from(checksum)];
        if let Ok((pieces, _)) = cut(&octets, offload, room, &mut pool) {
            for piece in pieces {
                prop_assert!(Packet::parse(piece).is_ok());
            }
        }
    }
}

#[test]
fn a_verified_checksum_needs_not_be_right() {
    let mut pool = FramePool::new(1_000, ROOM);
    let craft = with_payload(tcp6(), 150_000);
    let (mut octets, mut offload) = long(&craft, 1_428, true);
    octets[62 + 16..][..2].copy_from_slice(&[0xab, 0xcd]);
    offload.checksum = Checksum::Verified;
    let (pieces, _) = cut(&octets, offload, ROOM, &mut pool).unwrap();
    let expected: Vec<_> = craft.segments(1_428).iter().map(Craft::frame).collect();
    assert_eq!(segments(pieces, &mut pool), expected);
}

#[test]
fn a_wrong_partial_checksum_is_not_made_right() {
    let mut pool = FramePool::new(1_000, ROOM);
    let craft = with_payload(tcp4(), 150_000);
    let (mut octets, offload) = long(&craft, 1_448, false);
    octets[34 + 16] ^= 0x40;
    let (pieces, _) = cut(&octets, offload, ROOM, &mut pool).unwrap();
    for segment in segments(pieces, &mut pool) {
        let packet = Packet::parse(pool.copy_from(&segment).unwrap()).unwrap();
        assert!(!packet.transport_checksum_ok());
    }
}

#[test]
fn the_ecn_mark_and_the_flags_stay_where_they_belong() {
    let mut pool = FramePool::new(16, ROOM);
    let mut craft = with_payload(tcp4(), 150_000);
    if let Transport::Tcp(tcp) = &mut craft.transport {
        tcp.flags = 0x99;
    }
    let (octets, mut offload) = long(&craft, 1_448, false);
    let classic = [
        (0x90, Ecn::Classic),
        (0x10, Ecn::Unmarked),
        (0x19, Ecn::Unmarked),
    ];
    let accurate = [0x90, 0x90, 0x99].map(|flags| (flags, Ecn::Accurate));
    for expected in [classic, accurate] {
        let ecn = expected[0].1;
        offload.segmentation = offload.segmentation.map(|it| Segmentation { ecn, ..it });
        let (pieces, _) = cut(&octets, offload, ROOM, &mut pool).unwrap();
        let seen: Vec<_> = pieces
            .iter()
            .map(|piece| {
                (
                    piece.bytes()[34 + 13],
                    piece.offload().segmentation.unwrap().ecn,
                )
            })
            .collect();
        assert_eq!(seen, expected);
    }
}

#[test]
fn an_empty_pool_costs_pieces_and_is_told() {
    let mut pool = FramePool::new(2, ROOM);
    let craft = with_payload(tcp4(), 250_000);
    let (octets, offload) = long(&craft, 1_000, false);
    let (pieces, dropped) = cut(&octets, offload, ROOM, &mut pool).unwrap();
    let dropped = dropped.unwrap();
    assert_eq!((pieces.len(), dropped.packets), (2, 2));
    assert_eq!(dropped.reason, DropReason::NoBuffer);
}

#[test]
fn what_cannot_be_cut_is_refused_and_its_buffer_comes_back() {
    let mut pool = FramePool::new(1, ROOM);
    let craft = with_payload(tcp4(), 150_000);
    let v6 = with_payload(tcp6(), 150_000);
    let (octets, offload) = long(&craft, 1_000, false);
    let refused = |octets: &[u8], offload, pool: &mut FramePool| {
        let result = cut(octets, offload, ROOM, pool).map(|_| ());
        assert!(pool.alloc().is_some());
        result.unwrap_err()
    };
    let plain = Offload {
        segmentation: None,
        ..offload
    };
    assert_eq!(refused(&octets, plain, &mut pool), DropReason::FrameLength);
    let complete = Offload {
        checksum: Checksum::Complete,
        ..offload
    };
    let reason = refused(&octets, complete, &mut pool);
    assert_eq!(reason, DropReason::OffloadHeader);
    let mut lied = octets.clone();
    lied[17] = 100;
    assert_eq!(refused(&lied, offload, &mut pool), DropReason::IpLength);
    let mut wrong = octets.clone();
    wrong[24] ^= 1;
    let reason = refused(&wrong, offload, &mut pool);
    assert_eq!(reason, DropReason::Ipv4Checksum);
    let (mut jumbo, offload) = long(&v6, 1_000, true);
    jumbo[61] ^= 1;
    assert_eq!(refused(&jumbo, offload, &mut pool), DropReason::Ipv6Header);
    let arp = [&octets[..12], &[8, 6], &octets[14..]].concat();
    assert_eq!(refused(&arp, offload, &mut pool), DropReason::EtherType);
}
