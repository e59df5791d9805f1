use core::num::NonZeroU16;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::frame::{Ecn, FramePool, GsoKind, MAX_FRAME, Offload, Segmentation};
use crate::packet::craft::{crafts, super_crafts};

/// `frame` with a tag in front of all others.
fn tagged(frame: &[u8], tpid: u16, control: u16) -> Vec<u8> {
    let (addresses, behind) = frame.split_at(MAC_ADDRESSES);
    [
        addresses,
        &tpid.to_be_bytes(),
        &control.to_be_bytes(),
        behind,
    ]
    .concat()
}

/// Tags of any kind and priority that name no VLAN.
fn priority_tags() -> impl Strategy<Value = Vec<(u16, u16)>> {
    let tpid = prop_oneof![Just(TPID_CUSTOMER), Just(TPID_SERVICE)];
    vec((tpid, (0_u16..16).prop_map(|high| high << 12)), 1..6)
}

fn with_tags(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let add = |frame: Vec<u8>, &(tpid, control): &(u16, u16)| tagged(&frame, tpid, control);
    tags.iter().fold(frame.to_vec(), add)
}

fn parse(octets: &[u8], offload: Offload) -> Result<Packet, Rejected> {
    let mut pool = FramePool::new(1, MAX_FRAME);
    let mut frame = pool.copy_from(octets).unwrap();
    frame.set_offload(offload);
    Packet::parse(frame).or_else(parse_tagged)
}

/// The offload of a frame that has become `octets` longer in front.
fn moved(offload: Offload, octets: u16) -> Offload {
    let mut offload = offload;
    if let Checksum::Partial { start, .. } = &mut offload.checksum {
        *start += octets;
    }
    offload
}

/// Any VLAN.
fn vlans() -> impl Strategy<Value = VlanId> {
    (VlanId::MIN..=VlanId::MAX).prop_map(|id| VlanId::new(id).unwrap())
}

proptest! {
    #[test]
    fn a_tag_is_put_in_and_taken_out(craft in super_crafts(), size in 1_u16..1500, vlan in vlans(), priority in 0_u16..16) {
        let (octets, offload) = craft.super_frame(craft.segment_size(size), false);
        let mut pool = FramePool::new(1, MAX_FRAME);
        let mut frame = pool.copy_from(&octets).unwrap();
        frame.set_offload(offload);
        insert_tag(&mut frame, vlan).unwrap();
        prop_assert_eq!(frame.bytes(), tagged(&octets, TPID_CUSTOMER, vlan.get()));
        prop_assert_eq!(frame.offload(), moved(offload, 4));
        // Whatever its priority, it is a frame of the VLAN's.
        frame.bytes_mut()[14] |= u8::try_from(priority << 4).unwrap();
        remove_tag(&mut frame, vlan).unwrap();
        prop_assert_eq!(frame.bytes(), octets);
        prop_assert_eq!(frame.offload(), offload);
    }

    #[test]
    fn a_frame_of_another_vlan_is_refused_as_it_is(craft in crafts(), vlan in vlans(), other in vlans(), tags in priority_tags()) {
        let frame = craft.frame();
        let mut foreign = vec![frame.clone(), tagged(&frame, TPID_SERVICE, vlan.get()), with_tags(&frame, &tags)];
        // Behind a priority tag, too.
        foreign.push(with_tags(&tagged(&frame, TPID_CUSTOMER, vlan.get()), &tags));
        if other != vlan {
            foreign.push(tagged(&frame, TPID_CUSTOMER, other.get()));
        }
        let mut pool = FramePool::new(1, MAX_FRAME);
        for octets in foreign {
            let mut frame = pool.copy_from(&octets).unwrap();
            prop_assert_eq!(remove_tag(&mut frame, vlan), Err(DropReason::Vlan));
            prop_assert_eq!(frame.bytes(), octets);
            pool.free(frame);
        }
    }

    #[test]
    fn a_tag_may_stand_before_any_octets(behind in vec(any::<u8>(), 0..40), start: u16, vlan in vlans()) {
        let mut pool = FramePool::new(1, MAX_FRAME);
        let mut frame = pool.copy_from(&behind).unwrap();
        frame.set_offload(Offload {
            checksum: Checksum::Partial { start, offset: 6 },
            segmentation: None,
        });
        let _ = remove_tag(&mut frame, vlan);
        insert_tag(&mut frame, vlan).unwrap();
        let _ = remove_tag(&mut frame, vlan);
    }

    #[test]
    fn priority_tags_make_no_difference(craft in crafts(), tags in priority_tags()) {
        let frame = craft.frame();
        let plain = parse(&frame, Offload::NONE).unwrap();
        let untagged = parse(&with_tags(&frame, &tags), Offload::NONE).unwrap();
        prop_assert_eq!(plain.frame().bytes(), untagged.frame().bytes());
        prop_assert_eq!(plain.frame().parsed(), untagged.frame().parsed());
    }

    #[test]
    fn super_frames_keep_their_offload(craft in super_crafts(), size in 1_u16..1500, tags in priority_tags()) {
        let (frame, offload) = craft.super_frame(craft.segment_size(size), false);
        let plain = parse(&frame, offload).unwrap();
        let of_sender = moved(offload, u16::try_from(TAG * tags.len()).unwrap());
        let untagged = parse(&with_tags(&frame, &tags), of_sender).unwrap();
        prop_assert_eq!(plain.frame().bytes(), untagged.frame().bytes());
        prop_assert_eq!(plain.frame().offload(), untagged.frame().offload());
        prop_assert_eq!(plain.frame().parsed(), untagged.frame().parsed());
    }

    #[test]
    fn one_vlan_among_the_tags_hides_the_frame(craft in crafts(), tags in priority_tags(), at: prop::sample::Index, vlan in 1_u16..4096) {
        let mut tags = tags;
        let at = at.index(tags.len());
        tags[at].1 |= vlan;
        let rejected = parse(&with_tags(&craft.frame(), &tags), Offload::NONE).unwrap_err();
        prop_assert_eq!(rejected.reason, DropReason::Vlan);
    }

    #[test]
    fn any_octets_behind_tags_are_judged(tags in priority_tags(), behind in vec(any::<u8>(), 0..40), start: u16) {
        let offload = Offload {
            checksum: Checksum::Partial { start, offset: 6 },
            segmentation: Some(Segmentation {
                kind: GsoKind::Udp,
                ecn: Ecn::Unmarked,
                size: NonZeroU16::new(100).unwrap(),
                tunnel: None,
            }),
        };
        let frame = with_tags(&[&[2; MAC_ADDRESSES][..], &behind].concat(), &tags);
        let _ = parse(&frame, offload);
    }
}

#[test]
fn what_is_too_short_for_its_tag_is_dropped_as_on_linux() {
    let whole = tagged(&[&[2; 12][..], &[8, 6, 0, 1]].concat(), TPID_CUSTOMER, 0);
    for len in 0..=whole.len() {
        let reason = parse(&whole[..len], Offload::NONE).unwrap_err().reason;
        let expected = if len < whole.len() {
            DropReason::FrameLength
        } else {
            DropReason::EtherType
        };
        assert_eq!(reason, expected, "{len} octets");
    }
}

#[test]
fn numbers_of_vlans_are_1_to_4094() {
    assert_eq!(VlanId::new(0), None);
    assert_eq!(VlanId::new(4095), None);
    for id in [1, 910, 4094] {
        let vlan = VlanId::new(id).unwrap();
        assert_eq!((vlan.get(), vlan.to_string()), (id, id.to_string()));
        assert!(vlan.is_in(0xf000 | id) && !vlan.is_in(id - 1));
    }
}

#[test]
fn what_is_too_short_for_the_tag_of_its_vlan_is_refused() {
    let vlan = VlanId::new(5).unwrap();
    let whole = tagged(&[&[2; 12][..], &[8, 6, 0, 1]].concat(), TPID_CUSTOMER, 5);
    let mut pool = FramePool::new(1, MAX_FRAME);
    for len in 0..whole.len() {
        let mut frame = pool.copy_from(&whole[..len]).unwrap();
        assert_eq!(
            remove_tag(&mut frame, vlan),
            Err(DropReason::FrameLength),
            "{len}"
        );
        pool.free(frame);
    }
}

#[test]
fn a_tag_needs_headroom() {
    let vlan = VlanId::new(5).unwrap();
    let mut pool = FramePool::new(1, MAX_FRAME);
    let mut frame = pool.copy_from(&[7; 60]).unwrap();
    frame.push_front(frame.headroom() - 3).unwrap();
    let before = frame.bytes().to_vec();
    assert!(insert_tag(&mut frame, vlan).is_err());
    assert_eq!(frame.bytes(), before);
    frame.trim_front(1);
    insert_tag(&mut frame, vlan).unwrap();
}

#[test]
fn other_ether_types_are_found_behind_tags() {
    let arp = [&[0xff; 6][..], &[2; 6], &[8, 6], &[1; 28]].concat();
    let tags = with_tags(&arp, &[(TPID_CUSTOMER, 0xe000), (TPID_SERVICE, 0x1000)]);
    let rejected = parse(&tags, Offload::NONE).unwrap_err();
    assert_eq!(rejected.reason, DropReason::EtherType);
    assert_eq!(rejected.frame.bytes(), arp);
}

#[test]
fn a_checksum_that_starts_in_the_tags_is_refused() {
    let arp = [&[0xff; 6][..], &[2; 6], &[8, 6], &[1; 28]].concat();
    let offload = Offload {
        checksum: Checksum::Partial {
            start: 3,
            offset: 0,
        },
        segmentation: None,
    };
    let rejected = parse(&tagged(&arp, TPID_CUSTOMER, 0), offload).unwrap_err();
    assert_eq!(rejected.reason, DropReason::OffloadHeader);
}

#[test]
fn the_longest_row_of_tags_ends() {
    let tags = TPID_CUSTOMER.to_be_bytes();
    let mut frame = vec![2; MAC_ADDRESSES];
    while frame.len() + TAG <= MAX_FRAME {
        frame.extend([tags[0], tags[1], 0, 0]);
    }
    let rejected = parse(&frame, Offload::NONE).unwrap_err();
    assert_eq!(rejected.reason, DropReason::FrameLength);
}
