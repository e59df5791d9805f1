//! The parser against smoltcp and etherparse, by packets that are made and spoilt on purpose. What is
//! compared is in the fuzz target `packet`, which finds its frames otherwise.

use proptest::collection::vec;
use proptest::prelude::*;

use super::craft::{Craft, crafts, naive_sum};
use crate::frame::FramePool;

#[allow(unreachable_pub, missing_docs, reason = "a part of the fuzz target")]
#[path = "../../../fuzz/bodies/differential.rs"]
mod differential;

fn check(octets: &[u8]) {
    differential::check(octets, &mut FramePool::new(1, 4_000));
}

/// What noise does to a frame on its way.
#[derive(Clone, Debug)]
struct Noise {
    /// Octets to overwrite; most of them in headers.
    writes: Vec<(usize, u8)>,
    /// Octets to cut off, or to add.
    length: isize,
    /// Write a right IPv4 header checksum in the end.
    seal: bool,
}

fn noise() -> impl Strategy<Value = Noise> {
    let at = prop_oneof![4 => 12..60_usize, 1 => 12..300_usize];
    let value = prop_oneof![
        any::<u8>(),
        prop_oneof![
            Just(0_u8),
            Just(1),
            Just(6),
            Just(17),
            Just(43),
            Just(44),
            Just(51),
            Just(58),
            Just(60)
        ],
    ];
    let length = prop_oneof![4 => Just(0), 1 => -60..60_isize];
    (vec((at, value), 0..4), length, any::<bool>()).prop_map(|(writes, length, seal)| Noise {
        writes,
        length,
        seal,
    })
}

impl Noise {
    fn apply(&self, frame: &mut Vec<u8>) {
        for &(at, value) in &self.writes {
            if let Some(octet) = frame.get_mut(at) {
                *octet = value;
            }
        }
        let len = frame.len().saturating_add_signed(self.length);
        frame.resize(len, 0);
        let end = 14 + usize::from(frame.get(14).copied().unwrap_or(0) & 0xf) * 4;
        if self.seal && frame.get(12..14) == Some(&[8, 0]) && (34..=frame.len()).contains(&end) {
            frame[24..26].fill(0);
            let checksum = !naive_sum(&frame[14..end]);
            frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn crafted_packets_are_seen_alike(craft in crafts()) {
        check(&craft.frame());
    }

    #[test]
    fn packets_with_noise_are_seen_alike(craft in crafts(), noise in noise()) {
        let mut frame = craft.frame();
        noise.apply(&mut frame);
        check(&frame);
    }

    #[test]
    fn any_octets_are_seen_alike(octets in vec(any::<u8>(), 0..200), ipv6: bool) {
        let mut frame = vec![0; 12];
        frame.extend(if ipv6 { [0x86, 0xdd, 0x60] } else { [8, 0, 0x45] });
        frame.extend(octets);
        check(&frame);
    }
}

#[test]
fn both_oracles_accept_plain_packets() {
    for craft in [
        Craft::v4(Craft::udp(), b"payload"),
        Craft::v6(Vec::new(), Craft::udp(), b"payload"),
    ] {
        let agreed = differential::agreed(&craft.frame());
        assert_eq!(agreed, Some(Some((40_000, 53))));
    }
}
