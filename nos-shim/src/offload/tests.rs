use core::num::NonZeroU16;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::frame::{ETHERNET_HEADER, Ecn, Segmentation};
use crate::ident::{AttachmentId, Interface, VrfId};
use crate::packet::craft::{
    Craft, Extension, Ip, Tcp, Transport, V4, naive_sum, packet, super_crafts, v4s,
};
use crate::packet::{Fragment, parse};

mod tunnel;

const ALL: Capabilities = Capabilities::all();

fn tcp() -> Transport {
    Transport::Tcp(Tcp::default())
}

/// What `work` hands out, and what it says of it.
fn collect(work: impl FnOnce(&mut Vec<Packet>) -> Adapted) -> (Vec<Packet>, Adapted) {
    let mut out = Vec::new();
    let adapted = work(&mut out);
    (out, adapted)
}

/// Every packet must be what its own octets say, and what its origin was otherwise.
fn check_proof(packet: &Packet) -> Result<(), TestCaseError> {
    let frame = packet.frame();
    let parsed = parse(frame.bytes(), frame.offload());
    prop_assert_eq!(parsed, Ok((*frame.parsed(), frame.len())));
    prop_assert_eq!(frame.interface(), Some(ORIGIN));
    prop_assert_eq!(frame.vrf(), VrfId(3));
    Ok(())
}

const ORIGIN: Interface = Interface::Attachment(AttachmentId(7));

fn marked(mut packet: Packet) -> Packet {
    packet.set_interface(ORIGIN);
    packet.set_vrf(VrfId(3));
    packet
}

/// Lengths and checksums by etherparse's reckoning.
fn check_with_etherparse(octets: &[u8]) -> Result<(), TestCaseError> {
    let sliced = SlicedPacket::from_ethernet(octets)
        .map_err(|error| TestCaseError::fail(error.to_string()))?;
    let (Some(net), Some(transport)) = (&sliced.net, &sliced.transport) else {
        return Err(TestCaseError::fail("no transport header"));
    };
    match net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            prop_assert_eq!(usize::from(header.total_len()), octets.len() - 14);
            prop_assert_eq!(naive_sum(header.slice()), 0xffff);
        }
        NetSlice::Ipv6(ip) => {
            let len = usize::from(ip.header().payload_length());
            prop_assert_eq!(len, octets.len() - 54);
        }
        NetSlice::Arp(_) => return Err(TestCaseError::fail("ARP")),
    }
    let (wrong, right) = match (net, transport) {
        (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
            let (source, destination) = (ip.header().source(), ip.header().destination());
            let sum = tcp.calc_checksum_ipv4(source, destination);
            (tcp.checksum(), sum.unwrap())
        }
        (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
            let (source, destination) = (ip.header().source(), ip.header().destination());
            let sum = tcp.calc_checksum_ipv6(source, destination);
            (tcp.checksum(), sum.unwrap())
        }
        (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
            let header = udp.to_header();
            let sum = header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload());
            (udp.checksum(), sum.unwrap())
        }
        (NetSlice::Ipv6(ip), TransportSlice::Udp(udp)) => {
            let header = udp.to_header();
            let sum = header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload());
            (udp.checksum(), sum.unwrap())
        }
        _ => return Err(TestCaseError::fail("wrong transport")),
    };
    prop_assert_eq!(wrong, right);
    Ok(())
}

fn has_segments_left(craft: &Craft) -> bool {
    let left = |extension: &Extension| matches!(extension, Extension::Routing { left: 1.., .. });
    matches!(&craft.ip, Ip::V6(v6) if v6.extensions.iter().any(left))
}

#[test]
fn what_became_of_the_pieces_adds_up() {
    let gone = |reason, packets| Adapted {
        originated: packets - 1,
        dropped: Some(Dropped { reason, packets }),
    };
    let sent = Adapted {
        originated: 2,
        dropped: None,
    };
    let mut all = Adapted::default();
    for (other, originated, dropped) in [
        (sent, 2, None),
        (
            gone(DropReason::NoBuffer, 3),
            4,
            Some((DropReason::NoBuffer, 3)),
        ),
        // Why the first was dropped is what is counted.
        (
            gone(DropReason::TooBig, 2),
            5,
            Some((DropReason::NoBuffer, 5)),
        ),
        (sent, 7, Some((DropReason::NoBuffer, 5))),
    ] {
        all.merge(other);
        let dropped = dropped.map(|(reason, packets)| Dropped { reason, packets });
        assert_eq!(
            all,
            Adapted {
                originated,
                dropped
            }
        );
    }
}

proptest! {
    #[test]
    fn segments_are_what_their_sender_would_have_made(craft in super_crafts(), size in 1..4_000_u16, ecn: bool) {
        let mut pool = FramePool::new(4_100, 5_000);
        let size = craft.segment_size(size);
        let (octets, offload) = craft.super_frame(size, ecn);
        let whole = marked(packet(&mut pool, &octets, offload));
        let (made, adapted) = collect(|out| adapt(whole, Capabilities::empty(), &mut pool, &mut |it| out.push(it)));
        let expected = craft.marked_segments(usize::from(size), ecn);
        prop_assert_eq!(made.len(), expected.len());
        prop_assert_eq!(adapted, Adapted { originated: made.len() as u64 - 1, dropped: None });
        let mut payload = Vec::new();
        for (packet, expected) in made.iter().zip(&expected) {
            check_proof(packet)?;
            prop_assert_eq!(packet.frame().bytes(), expected.frame());
            prop_assert_eq!(packet.frame().offload(), Offload { checksum: Checksum::Verified, segmentation: None });
            // etherparse knows no final destination.
            if !has_segments_left(&craft) {
                check_with_etherparse(packet.frame().bytes())?;
            }
            let part = &packet.frame().bytes()[packet.payload_offset()..];
            prop_assert!(part.len() <= usize::from(size));
            payload.extend_from_slice(part);
        }
        prop_assert_eq!(payload, craft.payload);
    }

    #[test]
    fn segments_leave_checksums_to_a_device_that_can(craft in super_crafts(), size in 1..4_000_u16) {
        let mut pool = FramePool::new(4_100, 5_000);
        let size = craft.segment_size(size);
        let (octets, offload) = craft.super_frame(size, false);
        let whole = marked(packet(&mut pool, &octets, offload));
        let (made, _) = collect(|out| adapt(whole, Capabilities::CHECKSUM, &mut pool, &mut |it| out.push(it)));
        for (mut packet, expected) in made.into_iter().zip(craft.segments(usize::from(size))) {
            check_proof(&packet)?;
            let (octets, offload) = expected.partial();
            prop_assert_eq!(packet.frame().offload(), offload);
            prop_assert_eq!(packet.frame().bytes(), octets);
            complete_checksum(&mut packet);
            prop_assert_eq!(packet.frame().offload().checksum, Checksum::Verified);
            prop_assert!(same_but_for_zero(packet.frame().bytes(), &expected));
        }
    }

    #[test]
    fn a_capable_device_gets_the_frame_untouched(craft in super_crafts(), size in 1..4_000_u16, ecn: bool) {
        let mut pool = FramePool::new(1, 5_000);
        let size = craft.segment_size(size);
        let (octets, offload) = craft.super_frame(size, ecn);
        let whole = marked(packet(&mut pool, &octets, offload));
        let offload = whole.frame().offload();
        let capabilities = Capabilities::required(offload);
        let (made, adapted) = collect(|out| adapt(whole, capabilities, &mut pool, &mut |it| out.push(it)));
        prop_assert_eq!(adapted, Adapted::default());
        prop_assert_eq!(made.len(), 1);
        prop_assert_eq!(made[0].frame().bytes(), octets);
        prop_assert_eq!(made[0].frame().offload(), offload);
    }

    #[test]
    fn a_dry_pool_costs_the_middle_and_is_counted(craft in super_crafts(), size in 1..200_u16, buffers in 1..20_usize) {
        let mut pool = FramePool::new(buffers, 5_000);
        let size = craft.segment_size(size);
        let (octets, offload) = craft.super_frame(size, false);
        let whole = marked(packet(&mut pool, &octets, offload));
        let (made, adapted) = collect(|out| segment(whole, Capabilities::empty(), &mut pool, &mut |it| out.push(it)));
        let expected = craft.segments(usize::from(size));
        let missing = expected.len().saturating_sub(buffers);
        prop_assert_eq!(made.len() + missing, expected.len());
        prop_assert_eq!(adapted.originated, expected.len() as u64 - 1);
        prop_assert_eq!(adapted.dropped.map_or(0, |dropped| dropped.packets), missing as u64);
        prop_assert!(adapted.dropped.is_none_or(|dropped| dropped.reason == DropReason::NoBuffer));
        let survivors = expected[..made.len() - 1].iter().chain(expected.last());
        for (packet, expected) in made.iter().zip(survivors) {
            prop_assert_eq!(packet.frame().bytes(), expected.frame());
        }
        drop(made);
        prop_assert_eq!(core::iter::from_fn(|| pool.alloc()).collect::<Vec<_>>().len(), buffers);
    }

    #[test]
    fn completed_checksums_are_right(craft in super_crafts()) {
        let mut pool = FramePool::new(1, 5_000);
        let (octets, offload) = craft.partial();
        let mut packet = packet(&mut pool, &octets, offload);
        complete_checksum(&mut packet);
        prop_assert_eq!(packet.frame().offload(), Offload { checksum: Checksum::Verified, segmentation: None });
        prop_assert!(same_but_for_zero(packet.frame().bytes(), &craft));
    }

    #[test]
    fn fragments_are_what_a_router_would_have_made(
        mut v4 in v4s(), payload in vec(any::<u8>(), 1..3_000), mtu in 68..3_100_usize, place in 0..0x0f00_u16, more: bool,
    ) {
        v4.dont_fragment = false;
        let mut payload = payload;
        if more {
            payload.resize(payload.len().next_multiple_of(8), 0);
        }
        let mut pool = FramePool::new(400, 5_000);
        let field = place | u16::from(more) << 13;
        let whole = marked(packet(&mut pool, &v4.packet(89, field, &payload), Offload::NONE));
        let (made, adapted) = collect(|out| fragment_ipv4(whole, mtu, &mut pool, &mut |it| out.push(it)));
        prop_assert_eq!(adapted, Adapted { originated: made.len() as u64 - 1, dropped: None });
        let expected = naive_fragments(&v4, field, &payload, mtu);
        prop_assert_eq!(made.len(), expected.len());
        for (packet, expected) in made.iter().zip(&expected) {
            prop_assert_eq!(packet.frame().bytes(), expected);
            prop_assert!(packet.wire_len() <= mtu);
            check_proof(packet)?;
        }
    }

    #[test]
    fn super_frames_are_segmented_then_fragmented(craft in super_crafts(), size in 1..2_000_u16, mtu in 120..2_100_usize) {
        let Craft { ip: Ip::V4(v4), .. } = &craft else { return Ok(()) };
        let mut pool = FramePool::new(5_000, 5_000);
        let size = craft.segment_size(size);
        let (octets, offload) = craft.super_frame(size, false);
        let whole = marked(packet(&mut pool, &octets, offload));
        let fits = whole.wire_len() <= mtu;
        let (made, adapted) = collect(|out| fragment_ipv4(whole, mtu, &mut pool, &mut |it| out.push(it)));
        if fits {
            prop_assert_eq!(made[0].frame().bytes(), octets);
            prop_assert_eq!(adapted, Adapted::default());
        } else if v4.dont_fragment {
            prop_assert!(made.is_empty());
            let dropped = Dropped { reason: DropReason::TooBig, packets: 1 };
            prop_assert_eq!(adapted, Adapted { originated: 0, dropped: Some(dropped) });
        } else {
            let mut expected = Vec::new();
            for segment in craft.segments(usize::from(size)) {
                let Ip::V4(v4) = &segment.ip else { unreachable!() };
                let fragments = naive_fragments(v4, 0, &segment.transport_octets(false), mtu);
                expected.extend(fragments.into_iter().map(|octets| (segment.protocol(), octets)));
            }
            prop_assert_eq!(made.len(), expected.len());
            prop_assert_eq!(adapted, Adapted { originated: made.len() as u64 - 1, dropped: None });
            for (packet, (protocol, mut expected)) in made.iter().zip(expected) {
                expected[23] = protocol;
                prop_assert_eq!(packet.frame().bytes(), sealed(expected));
                check_proof(packet)?;
            }
        }
    }
}

/// Whether `octets` are `craft`'s but for a checksum of zero: Linux and [`complete_checksum`] write
/// 0xffff then.
fn same_but_for_zero(octets: &[u8], craft: &Craft) -> bool {
    let mut expected = craft.frame();
    let at = expected.len() - craft.transport_octets(false).len() + craft.checksum_at().unwrap();
    if expected[at..at + 2] == [0, 0] {
        expected[at..at + 2].fill(0xff);
    }
    octets == expected
}

fn sealed(mut frame: Vec<u8>) -> Vec<u8> {
    let end = 14 + usize::from(frame[14] & 0xf) * 4;
    frame[24..26].fill(0);
    let checksum = !naive_sum(&frame[14..end]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// RFC 791 §3.2's procedure, with what Linux does to options.
fn naive_fragments(v4: &V4, field: u16, octets: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let room = mtu - 20 - v4.options.len();
    let (mut done, mut fragments) = (0, Vec::new());
    while done < octets.len() {
        let left = octets.len() - done;
        let last = left <= room;
        let len = if last { left } else { room / 8 * 8 };
        let mut header = v4.clone();
        if done > 0 {
            header.options = copied_options(&v4.options);
        }
        let more = if last { field & 0x2000 } else { 0x2000 };
        let offset = (field & 0x1fff) + (done / 8) as u16;
        fragments.push(header.packet(89, more | offset, &octets[done..done + len]));
        done += len;
    }
    fragments
}

/// The options, those that must not be copied overwritten by NOP.
fn copied_options(options: &[u8]) -> Vec<u8> {
    let mut copied = options.to_vec();
    let mut at = 0;
    while at < options.len() && options[at] != 0 {
        let len = match options.get(at + 1) {
            _ if options[at] == 1 => 1,
            Some(&len) if len >= 2 && at + usize::from(len) <= options.len() => usize::from(len),
            _ => break,
        };
        if options[at] < 0x80 {
            copied[at..at + len].fill(1);
        }
        at += len;
    }
    copied
}

#[test]
fn options_are_copied_by_their_flag() {
    // Record route (not copied), NOP, router alert (copied), end, and garbage behind it.
    let options = vec![7, 7, 4, 0, 0, 0, 0, 1, 148, 4, 0, 0, 0, 7, 3, 0];
    let v4 = V4 {
        options,
        ..V4::default()
    };
    let mut pool = FramePool::new(10, 5_000);
    let whole = packet(&mut pool, &v4.packet(89, 0, &[0x5a; 100]), Offload::NONE);
    let (made, _) = collect(|out| fragment_ipv4(whole, 100, &mut pool, &mut |it| out.push(it)));
    let options: Vec<_> = made.iter().map(|it| it.ip()[20..36].to_vec()).collect();
    assert_eq!(options[0], v4.options);
    let later = [1, 1, 1, 1, 1, 1, 1, 1, 148, 4, 0, 0, 0, 7, 3, 0];
    assert_eq!(options[1], later);
    assert_eq!(made[1].fragment(), Fragment::Later);
}

#[test]
fn what_must_not_be_fragmented_is_dropped() {
    let mut pool = FramePool::new(10, 5_000);
    let mut dont = Craft::v4(Craft::udp(), &[0; 100]);
    if let Ip::V4(v4) = &mut dont.ip {
        v4.dont_fragment = true;
    }
    let mut full = Craft::v4(Craft::udp(), &[0; 100]);
    if let Ip::V4(v4) = &mut full.ip {
        v4.options = vec![1; 40];
    }
    let too_big = Adapted::dropped(DropReason::TooBig);
    for (craft, mtu) in [
        (dont, 127),
        (Craft::v6(vec![], Craft::udp(), &[0; 100]), 147),
        // No room for eight octets.
        (full, 67),
    ] {
        let packet = craft.parse(&mut pool);
        let (made, adapted) =
            collect(|out| fragment_ipv4(packet, mtu, &mut pool, &mut |it| out.push(it)));
        assert!(made.is_empty());
        assert_eq!(adapted, too_big);
        let packet = craft.parse(&mut pool);
        let (made, _) =
            collect(|out| fragment_ipv4(packet, 168, &mut pool, &mut |it| out.push(it)));
        assert_eq!(made[0].frame().bytes(), craft.frame());
    }
}

#[test]
fn the_least_mtu_may_leave_no_whole_transport_header_in_the_first_fragment() {
    let mut pool = FramePool::new(100, 5_000);
    let mut craft = Craft::v4(tcp(), &[0; 100]);
    if let Ip::V4(v4) = &mut craft.ip {
        v4.options = vec![1; 40];
    }
    let whole = craft.parse(&mut pool);
    let (made, _) = collect(|out| fragment_ipv4(whole, 68, &mut pool, &mut |it| out.push(it)));
    assert_eq!(made.len(), 15);
    assert_eq!(made[0].fragment(), Fragment::First);
    assert_eq!(made[0].ports(), None);
    assert_eq!(made[0].payload_offset(), 74);
    assert_eq!(made[0].transport().len(), 8);
}

#[test]
fn fragments_of_fragments_keep_their_place() {
    let mut pool = FramePool::new(100, 5_000);
    let craft = Craft::v4(Craft::udp(), &(0..200).collect::<Vec<_>>());
    let whole = craft.parse(&mut pool);
    let (made, _) = collect(|out| fragment_ipv4(whole, 124, &mut pool, &mut |it| out.push(it)));
    let mut spans = Vec::new();
    let mut octets = Vec::new();
    for packet in made {
        let (again, _) =
            collect(|out| fragment_ipv4(packet, 68, &mut pool, &mut |it| out.push(it)));
        for packet in again {
            let (_, span) = packet.fragment_place().unwrap();
            spans.push((span.start, span.end, span.last));
            octets.extend_from_slice(&packet.ip()[20..]);
        }
    }
    let expected = [
        (0, 48, false),
        (48, 96, false),
        (96, 104, false),
        (104, 152, false),
        (152, 200, false),
        (200, 208, true),
    ];
    assert_eq!(spans, expected);
    assert_eq!(octets, craft.transport_octets(false));
}

#[test]
fn fin_and_psh_come_last_and_cwr_where_it_belongs() {
    let mut pool = FramePool::new(10, 5_000);
    let flags = 0xff;
    let craft = Craft::v4(
        Transport::Tcp(Tcp {
            flags,
            ..Tcp::default()
        }),
        &[0; 250],
    );
    for (ecn, expected) in [
        (Ecn::Classic, [0xf6, 0x76, 0x7f]),
        (Ecn::Accurate, [0xf6, 0xf6, 0xff]),
        (Ecn::Unmarked, [0xf6, 0xf6, 0xff]),
    ] {
        let (octets, mut offload) = craft.super_frame(100, false);
        offload.segmentation = offload.segmentation.map(|it| Segmentation { ecn, ..it });
        let whole = packet(&mut pool, &octets, offload);
        let (made, _) = collect(|out| {
            segment(whole, Capabilities::empty(), &mut pool, &mut |it| {
                out.push(it);
            })
        });
        let flags: Vec<_> = made.iter().map(|it| it.tcp_flags().unwrap()).collect();
        assert_eq!(flags, expected, "{ecn:?}");
    }
}

/// To the kernel behind a device, all are alike but those of classic ECN.
#[test]
fn a_device_that_may_cut_gets_no_super_frame_whose_segments_all_have_cwr() {
    let mut pool = FramePool::new(10, 5_000);
    let flags = |flags| {
        Craft::v4(
            Transport::Tcp(Tcp {
                flags,
                ..Tcp::default()
            }),
            &[0; 250],
        )
    };
    let may_cut = Capabilities::all() - Capabilities::ACCURATE_ECN;
    for (tcp, ecn, pieces) in [
        (0x90, Ecn::Unmarked, 3),
        (0x90, Ecn::Accurate, 3),
        (0x90, Ecn::Classic, 1),
        // Two of the counter's three bits, and not the third.
        (0x50, Ecn::Accurate, 1),
        (0x50, Ecn::Unmarked, 1),
    ] {
        for (capabilities, pieces) in [(may_cut, pieces), (Capabilities::all(), 1)] {
            let (octets, mut offload) = flags(tcp).super_frame(100, false);
            offload.segmentation = offload.segmentation.map(|it| Segmentation { ecn, ..it });
            let whole = packet(&mut pool, &octets, offload);
            let (made, _) =
                collect(|out| adapt(whole, capabilities, &mut pool, &mut |it| out.push(it)));
            assert_eq!(made.len(), pieces, "{tcp:x}, {ecn:?}");
            assert!(made.iter().all(|it| it.tcp_flags() == Some(tcp & !0x09)));
            made.into_iter().for_each(|it| pool.free(it.into_frame()));
        }
    }
}

#[test]
fn numbers_wrap() {
    let mut pool = FramePool::new(10, 5_000);
    let mut craft = Craft::v4(
        Transport::Tcp(Tcp {
            sequence: u32::MAX - 50,
            ..Tcp::default()
        }),
        &[1; 250],
    );
    if let Ip::V4(v4) = &mut craft.ip {
        v4.identification = u16::MAX;
    }
    let (octets, offload) = craft.super_frame(100, false);
    let whole = packet(&mut pool, &octets, offload);
    let (made, _) = collect(|out| {
        segment(whole, Capabilities::empty(), &mut pool, &mut |it| {
            out.push(it);
        })
    });
    let seen: Vec<_> = made
        .iter()
        .map(|it| (it.ip()[4..6].to_vec(), it.transport()[4..8].to_vec()))
        .collect();
    assert_eq!(
        seen,
        [
            (vec![0xff, 0xff], vec![0xff, 0xff, 0xff, 0xcd]),
            (vec![0, 0], vec![0, 0, 0, 49]),
            (vec![0, 1], vec![0, 0, 0, 149]),
        ]
    );
}

#[test]
fn the_longest_super_frames_are_segmented() {
    let mut pool = FramePool::new(64, crate::frame::MAX_FRAME);
    let payload: Vec<_> = (0..65_495_u32).map(|n| (n % 251) as u8).collect();
    for (transport, size) in [(tcp(), 1448), (Craft::udp(), 1472)] {
        let craft = Craft::v4(transport, &payload);
        let size = craft.segment_size(size);
        let (octets, offload) = craft.super_frame(size, false);
        let whole = packet(&mut pool, &octets, offload);
        let (made, adapted) = collect(|out| {
            segment(whole, Capabilities::empty(), &mut pool, &mut |it| {
                out.push(it);
            })
        });
        let expected = craft.segments(usize::from(size));
        assert_eq!(adapted.dropped, None);
        assert!(
            made.iter()
                .map(|it| it.frame().bytes().to_vec())
                .eq(expected.iter().map(Craft::frame))
        );
    }
}

#[test]
fn a_udp_checksum_of_zero_is_written_as_ones() {
    let mut pool = FramePool::new(4, 5_000);
    // A payload that makes the sum of everything else all ones.
    let craft = |tail: u16| Craft::v4(Craft::udp(), &[&[0; 8][..], &tail.to_be_bytes()].concat());
    let sum = u16::from_be_bytes(craft(0).frame()[40..42].try_into().unwrap());
    let craft = craft(sum);
    let (octets, offload) = craft.partial();
    let mut whole = packet(&mut pool, &octets, offload);
    complete_checksum(&mut whole);
    assert_eq!(whole.transport()[6..8], [0xff, 0xff]);
    assert_eq!(whole.frame().bytes(), craft.frame());
}

#[test]
fn what_devices_must_be_able_to_do() {
    let partial = Checksum::Partial {
        start: 34,
        offset: 16,
    };
    let offload = |checksum, kind: Option<GsoKind>| Offload {
        checksum,
        segmentation: kind.map(|kind| Segmentation {
            kind,
            ecn: Ecn::Classic,
            size: NonZeroU16::MIN,
            tunnel: None,
        }),
    };
    let table = [
        (offload(Checksum::Complete, None), Capabilities::empty()),
        (offload(Checksum::Verified, None), Capabilities::empty()),
        (offload(partial, None), Capabilities::CHECKSUM),
        (
            offload(partial, Some(GsoKind::TcpV4)),
            Capabilities::CHECKSUM | Capabilities::TSO4,
        ),
        (
            offload(partial, Some(GsoKind::TcpV6)),
            Capabilities::CHECKSUM | Capabilities::TSO6,
        ),
        (
            offload(partial, Some(GsoKind::Udp)),
            Capabilities::CHECKSUM | Capabilities::USO,
        ),
    ];
    for (offload, required) in table {
        assert_eq!(Capabilities::required(offload), required);
        for bits in 0..=ALL.bits() {
            let capabilities = Capabilities::from_bits_truncate(bits);
            assert_eq!(capabilities.take(offload), capabilities.contains(required));
        }
    }
    // The checksum of the whole is no start for those of the segments.
    assert!(!ALL.take(offload(Checksum::Verified, Some(GsoKind::TcpV4))));
}

#[test]
fn a_completed_super_frame_can_still_be_segmented() {
    let mut pool = FramePool::new(10, 5_000);
    for craft in [
        Craft::v4(tcp(), &[7; 250]),
        Craft::v6(vec![], Craft::udp(), &[7; 250]),
    ] {
        let (octets, offload) = craft.super_frame(100, false);
        let mut whole = packet(&mut pool, &octets, offload);
        complete_checksum(&mut whole);
        assert_eq!(whole.frame().bytes(), craft.frame());
        let (made, _) = collect(|out| adapt(whole, ALL, &mut pool, &mut |it| out.push(it)));
        let octets: Vec<_> = made
            .into_iter()
            .map(|mut it| {
                complete_checksum(&mut it);
                it.frame().bytes().to_vec()
            })
            .collect();
        let expected: Vec<_> = craft.segments(100).iter().map(Craft::frame).collect();
        assert_eq!(octets, expected);
    }
}

#[test]
fn the_ledger_stays_balanced() {
    let mut pool = FramePool::new(4, 5_000);
    let craft = Craft::v4(tcp(), &[7; 900]);
    let (octets, offload) = craft.super_frame(100, false);
    let mut ledger = Ledger {
        received: 1,
        ..Ledger::default()
    };
    let whole = packet(&mut pool, &octets, offload);
    let (made, adapted) = collect(|out| {
        adapt(whole, Capabilities::empty(), &mut pool, &mut |it| {
            out.push(it);
        })
    });
    adapted.record(&mut ledger);
    ledger.sent += made.len() as u64;
    assert_eq!(made.len(), 4);
    assert_eq!(ledger.drops.of(DropReason::NoBuffer), 5);
    assert_eq!(ledger.originated, 8);
    assert_eq!(ledger.unaccounted(), 0);
    assert_eq!(made[0].frame().len(), ETHERNET_HEADER + 140);
}
