//! Octets that say where in a stream they belong.
//!
//! The stream repeats itself after [`PERIOD`] octets, a prime larger than any packet: whatever is
//! lost, repeated or moved by less than that many segments shows. Checking is one comparison with
//! a block that is there already, as fast as memory.

use std::sync::OnceLock;

/// Octets after which the pattern repeats.
pub(crate) const PERIOD: usize = 65_521;

/// The longest piece that can be had at once.
pub(crate) const LONGEST: usize = 128 * 1024;

/// The octets of the stream from `offset` on.
///
/// # Panics
///
/// If `length` is more than [`LONGEST`].
pub(crate) fn at(offset: u64, length: usize) -> &'static [u8] {
    let start = usize::try_from(offset % PERIOD as u64).unwrap_or(0);
    &block()[start..start + length]
}

/// The position in the stream of the first octet of `octets`, which begin at `offset`, that is not
/// as it should be.
pub(crate) fn first_difference(offset: u64, octets: &[u8]) -> Option<u64> {
    let mut offset = offset;
    for piece in octets.chunks(LONGEST) {
        let wanted = at(offset, piece.len());
        if piece != wanted {
            let mut pairs = piece.iter().zip(wanted);
            let position = pairs.position(|(is, should)| is != should).unwrap_or(0);
            return Some(offset + position as u64);
        }
        offset += piece.len() as u64;
    }
    None
}

fn block() -> &'static [u8] {
    static BLOCK: OnceLock<Box<[u8]>> = OnceLock::new();
    BLOCK.get_or_init(|| {
        let octet = |position: usize| mixed(position as u64).to_be_bytes()[0];
        (0..PERIOD + LONGEST)
            .map(|position| octet(position % PERIOD))
            .collect()
    })
}

/// Numbers that follow each other without a rule (the mixing of SplitMix64): multiples of one number
/// alone would nearly repeat themselves now and then.
fn mixed(number: u64) -> u64 {
    let mut word = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_part_is_like_another() {
        let all = at(0, PERIOD + 64);
        let parts: std::collections::HashSet<_> = all.windows(16).take(PERIOD).collect();
        assert_eq!(parts.len(), PERIOD);
    }

    proptest! {
        #[test]
        fn any_part_is_recognised(offset in any::<u32>(), length in 0..LONGEST) {
            let part = at(offset.into(), length);
            prop_assert_eq!(first_difference(offset.into(), part), None);
        }

        #[test]
        fn a_changed_octet_is_found(
            offset in any::<u32>(), length in 1..9000_usize, at_ in any::<prop::sample::Index>(),
        ) {
            let mut part = at(offset.into(), length).to_vec();
            let position = at_.index(length);
            part[position] ^= 1;
            let found = first_difference(offset.into(), &part);
            prop_assert_eq!(found, Some(u64::from(offset) + position as u64));
        }

        #[test]
        fn moved_segments_are_found(segment in 64..1460_u64, moved in 1..65_000_u64) {
            prop_assume!(!(segment * moved).is_multiple_of(PERIOD as u64));
            let part = at(segment * moved, 64);
            prop_assert!(first_difference(0, part).is_some());
        }
    }
}
