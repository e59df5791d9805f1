//! The Internet checksum (RFC 1071), whole and incremental (RFC 1624).

use core::net::{Ipv4Addr, Ipv6Addr};

/// A ones' complement sum in progress.
///
/// Pieces may be added in any order, each of an even number of octets except the last of the
/// data, and none may be longer than 2^32 octets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// Adds `octets`; an odd one at the end counts as if a zero octet followed.
    #[must_use]
    #[inline]
    pub fn plus(self, octets: &[u8]) -> Self {
        let (words, rest) = octets.as_chunks::<4>();
        // Native order: swapping the octets of every addend swaps those of the sum (RFC 1071 §2B).
        let sum: u64 = words
            .iter()
            .map(|word| u64::from(u32::from_ne_bytes(*word)))
            .sum();
        let mut tail = [0; 4];
        tail[..rest.len()].copy_from_slice(rest);
        Self(self.0 + fold_to_32(sum) + u64::from(u32::from_ne_bytes(tail)))
    }

    /// Adds what `other` sums.
    #[must_use]
    pub fn plus_sum(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Adds one 16-bit number.
    #[must_use]
    pub fn add_u16(self, value: u16) -> Self {
        Self(self.0 + u64::from(value.to_be()))
    }

    /// Adds the IPv4 pseudo-header (RFC 793 §3.1). `len` is that of transport header and payload,
    /// in octets.
    #[must_use]
    pub fn pseudo_v4(
        self,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        protocol: u8,
        len: u16,
    ) -> Self {
        self.plus(&source.octets())
            .plus(&destination.octets())
            .add_u16(u16::from(protocol))
            .add_u16(len)
    }

    /// Adds the IPv6 pseudo-header (RFC 8200 §8.1). `len` is that of transport header and payload,
    /// in octets.
    #[must_use]
    pub fn pseudo_v6(
        self,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        protocol: u8,
        len: u32,
    ) -> Self {
        self.plus(&source.octets())
            .plus(&destination.octets())
            .plus(&len.to_be_bytes())
            .add_u16(u16::from(protocol))
    }

    /// The sum itself, not complemented: what a partial checksum field holds.
    #[must_use]
    pub fn folded(self) -> u16 {
        let sum = fold_to_32(fold_to_32(self.0));
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        u16::from_be((sum & 0xffff) as u16)
    }

    /// The checksum: the complement of the sum.
    #[must_use]
    pub fn checksum(self) -> u16 {
        !self.folded()
    }

    /// Whether data that included its checksum is intact.
    #[must_use]
    #[inline]
    pub fn is_valid(self) -> bool {
        let sum = fold_to_32(fold_to_32(self.0));
        // At most 0x1fffe. In ones' complement, both are minus zero.
        let sum = (sum & 0xffff) + (sum >> 16);
        sum == 0xffff || sum == 0x1fffe
    }
}

fn fold_to_32(sum: u64) -> u64 {
    (sum & 0xffff_ffff) + (sum >> 32)
}

/// The checksum of data in which a 16-bit word changed from `old` to `new` (RFC 1624 eqn. 3).
#[must_use]
pub fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 §4.1, word for word.
    fn naive(octets: &[u8]) -> u16 {
        let mut sum = 0_u64;
        for pair in octets.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn sums_agree_with_the_naive_sum(octets in proptest::collection::vec(any::<u8>(), 0..300), cut in 0..150_usize) {
            let cut = (2 * cut).min(octets.len() & !1);
            let sum = Sum::ZERO.plus(&octets[..cut]).plus(&octets[cut..]);
            prop_assert_eq!(sum.checksum(), naive(&octets));
        }

        #[test]
        fn updating_agrees_with_summing_anew(mut words in proptest::collection::vec(any::<u16>(), 1..40), at: prop::sample::Index, new: u16) {
            let octets = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
            let at = at.index(words.len());
            // All-zero data has two representations of zero; no real header is all zero.
            prop_assume!(words.iter().enumerate().any(|(n, &word)| n != at && word != 0));
            let before = naive(&octets(&words));
            let old = std::mem::replace(&mut words[at], new);
            prop_assert_eq!(updated(before, old, new), naive(&octets(&words)));
        }
    }

    /// Words about which carries and both zeros turn.
    const EDGES: [u16; 12] = [
        0, 1, 2, 0x00ff, 0x0100, 0x7fff, 0x8000, 0x8001, 0xff00, 0xfffd, 0xfffe, 0xffff,
    ];

    /// Every word in the place of an edge, and every edge in the place of a word, beside each edge.
    #[test]
    fn every_word_is_updated_as_if_summed_anew() {
        let sum = |one: u16, other: u16| {
            let [a, b] = one.to_be_bytes();
            let [c, d] = other.to_be_bytes();
            naive(&[a, b, c, d])
        };
        // All-zero data has two representations of zero; no real header is all zero.
        for beside in EDGES.into_iter().filter(|&beside| beside != 0) {
            for edge in EDGES {
                let of_edge = sum(edge, beside);
                for word in 0..=u16::MAX {
                    let of_word = sum(word, beside);
                    assert_eq!(updated(of_edge, edge, word), of_word);
                    assert_eq!(updated(of_word, word, edge), of_edge);
                }
            }
        }
    }

    /// Whatever the checksum is: a change and its opposite are none, but for the kind of zero.
    #[test]
    fn every_checksum_survives_a_change_and_its_opposite() {
        let zero = |checksum: u16| if checksum == 0xffff { 0 } else { checksum };
        for checksum in 0..=u16::MAX {
            for old in EDGES {
                for new in EDGES {
                    let there = updated(checksum, old, new);
                    assert_eq!(zero(updated(there, new, old)), zero(checksum));
                    let sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
                    assert_eq!(u32::from(!there) % 0xffff, sum % 0xffff);
                }
            }
        }
    }

    #[test]
    fn long_data_does_not_overflow() {
        let octets = vec![0xff; 65_535];
        assert_eq!(Sum::ZERO.plus(&octets).checksum(), naive(&octets));
    }
}
