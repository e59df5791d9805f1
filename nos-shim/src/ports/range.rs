//! Port ranges.

use core::fmt;
use core::num::NonZeroU16;
use core::str::FromStr;

use thiserror::Error;

/// An inclusive interval of TCP or UDP ports, 1 to 65,535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    first: NonZeroU16,
    last: NonZeroU16,
}

/// Why text or numbers are no port range.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PortRangeError {
    /// Port 0 cannot be used on the wire.
    #[error("port 0 is reserved; ports are 1 to 65535")]
    Zero,
    /// The bounds are in the wrong order.
    #[error("{first}-{last} ends before it begins; write {last}-{first}")]
    Reversed {
        /// The bound given first.
        first: u16,
        /// The bound given last.
        last: u16,
    },
    /// Not a port, nor two joined by a hyphen.
    #[error("'{0}' is not a port or a range of ports; write 179 or 20000-20999, within 1 to 65535")]
    Syntax(String),
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self {
        first: NonZeroU16::MIN,
        last: NonZeroU16::MAX,
    };

    /// The ports from `first` to `last`, both included.
    ///
    /// # Errors
    ///
    /// [`PortRangeError::Zero`] or [`PortRangeError::Reversed`].
    pub fn new(first: u16, last: u16) -> Result<Self, PortRangeError> {
        if first > last {
            return Err(PortRangeError::Reversed { first, last });
        }
        match (NonZeroU16::new(first), NonZeroU16::new(last)) {
            (Some(first), Some(last)) => Ok(Self { first, last }),
            _ => Err(PortRangeError::Zero),
        }
    }

    /// The lowest port.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first.get()
    }

    /// The highest port.
    #[must_use]
    pub fn last(self) -> u16 {
        self.last.get()
    }

    /// How many ports there are, at least one.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(self) -> u32 {
        u32::from(self.last()) - u32::from(self.first()) + 1
    }

    /// Whether `port` is one of them.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first()..=self.last()).contains(&port)
    }

    /// Whether any port is in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The fewest ranges that hold the same ports, in order. `ranges` may overlap, and come in any
    /// order.
    #[must_use]
    pub fn merged(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort_unstable();
        let mut merged: Vec<Self> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(reaching) if range.first() <= reaching.last().saturating_add(1) => {
                    reaching.last = range.last.max(reaching.last);
                }
                _ => merged.push(range),
            }
        }
        merged
    }

    /// What is left of it without the ports of `taken`, which come in order and do not overlap each
    /// other.
    #[must_use]
    pub fn without(self, taken: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut left = Vec::new();
        let mut next = u32::from(self.first());
        let overlapping = taken
            .into_iter()
            .skip_while(|taken| taken.last < self.first)
            .take_while(|taken| taken.first <= self.last);
        for taken in overlapping {
            left.extend(between(next, taken.first().into()));
            next = u32::from(taken.last()) + 1;
        }
        left.extend(between(next, u32::from(self.last()) + 1));
        left
    }
}

/// The ports from `first` on that are less than `end`, if there are any.
fn between(first: u32, end: u32) -> Option<PortRange> {
    let last = u16::try_from(end.checked_sub(1)?).ok()?;
    PortRange::new(u16::try_from(first).ok()?, last).ok()
}

impl From<NonZeroU16> for PortRange {
    /// The range of one port.
    fn from(port: NonZeroU16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<Self, PortRangeError> {
        let port = |part: &str| {
            let digits = part.bytes().all(|digit| digit.is_ascii_digit());
            let parsed = part.parse().ok().filter(|_| digits);
            parsed.ok_or_else(|| PortRangeError::Syntax(text.to_owned()))
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Self::new(port(first.trim())?, port(last.trim())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn range_text_round_trips() {
        for text in ["1", "179", "20000-20999", "1-65535"] {
            assert_eq!(text.parse::<PortRange>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_range_text_is_explained() {
        let message = |text: &str| text.parse::<PortRange>().unwrap_err().to_string();
        assert_eq!(message("0"), "port 0 is reserved; ports are 1 to 65535");
        assert_eq!(message("9-5"), "9-5 ends before it begins; write 5-9");
        for text in ["", "-", "1-", "+1", "1-2-3", "65536", "http", "1 2"] {
            assert!(
                message(text).starts_with(&format!("'{text}' is not a port")),
                "{text}"
            );
        }
    }

    fn ranges() -> impl Strategy<Value = Vec<PortRange>> {
        // Few ports, and those at both ends, so that ranges meet.
        let first = prop_oneof![1..60_u16, 65_480..=65_535_u16];
        let range = (first, 0..8_u16)
            .prop_map(|(first, more)| PortRange::new(first, first.saturating_add(more)).unwrap());
        proptest::collection::vec(range, 0..12)
    }

    fn ports(ranges: &[PortRange]) -> BTreeSet<u16> {
        let each = ranges.iter();
        each.flat_map(|range| range.first()..=range.last())
            .collect()
    }

    proptest! {
        #[test]
        fn merged_ranges_are_apart_and_hold_the_same_ports(some in ranges()) {
            let merged = PortRange::merged(some.clone());
            prop_assert_eq!(ports(&merged), ports(&some));
            let gap = |pair: &[PortRange]| u32::from(pair[1].first()) > u32::from(pair[0].last()) + 1;
            prop_assert!(merged.windows(2).all(gap));
        }

        #[test]
        fn what_is_left_is_what_was_not_taken(some in ranges(), taken in ranges()) {
            let taken = PortRange::merged(taken);
            for range in some {
                let left = range.without(taken.iter().copied());
                let expected = ports(&[range]).difference(&ports(&taken)).copied().collect();
                prop_assert_eq!(ports(&left), expected);
                prop_assert!(left.windows(2).all(|pair| pair[0].last() < pair[1].first()));
            }
        }
    }

    /// Ports at either end of what there is, by number from zero, as bits.
    fn small(low: bool) -> impl Fn(u16) -> u16 {
        move |number| {
            if low {
                1 + number
            } else {
                u16::MAX - 8 + number
            }
        }
    }

    fn bits(ranges: &[PortRange], place: &impl Fn(u16) -> u16) -> u16 {
        let in_any = |number: &u16| ranges.iter().any(|range| range.contains(place(*number)));
        (0..9)
            .filter(in_any)
            .fold(0, |all, number| all | 1 << number)
    }

    /// All ranges of nine ports, alone, in pairs and in threes, at the lowest ports and at the highest.
    #[test]
    fn every_range_among_nine_ports() {
        for low in [true, false] {
            let place = small(low);
            let pairs = (0..9).flat_map(|first| (first..9).map(move |last| (first, last)));
            let all: Vec<_> = pairs
                .map(|(first, last)| PortRange::new(place(first), place(last)).unwrap())
                .collect();
            assert_eq!(all.len(), 45);
            for &one in &all {
                assert_eq!(one.len(), bits(&[one], &place).count_ones());
                for &two in &all {
                    let (of_one, of_two) = (bits(&[one], &place), bits(&[two], &place));
                    assert_eq!(one.overlaps(two), of_one & of_two != 0);
                    assert_eq!(bits(&one.without([two]), &place), of_one & !of_two);
                    for &three in &all {
                        let some = [one, two, three];
                        let merged = PortRange::merged(some.to_vec());
                        assert_eq!(bits(&merged, &place), bits(&some, &place));
                        let gap = |pair: &[PortRange]| pair[1].first() - pair[0].last() > 1;
                        assert!(merged.windows(2).all(gap), "{some:?}: {merged:?}");
                        if two < three && !two.overlaps(three) {
                            let left = one.without([two, three]);
                            let taken = of_two | bits(&[three], &place);
                            assert_eq!(bits(&left, &place), of_one & !taken);
                            assert!(left.windows(2).all(|pair| pair[0] < pair[1]));
                        }
                    }
                }
            }
        }
    }

    /// What is accepted of all pairs of ports near either end.
    #[test]
    fn a_range_begins_at_a_port_and_does_not_end_before() {
        let near = || (0..16).chain(u16::MAX - 15..=u16::MAX);
        for first in near() {
            for last in near() {
                let range = PortRange::new(first, last);
                assert_eq!(range.is_ok(), 0 < first && first <= last, "{first}-{last}");
                if let Ok(range) = range {
                    assert_eq!(range.to_string().parse(), Ok(range));
                }
            }
        }
    }

    #[test]
    fn overlap_is_symmetric_and_inclusive() {
        let range = |text: &str| text.parse::<PortRange>().unwrap();
        assert!(range("10-20").overlaps(range("20-30")));
        assert!(range("20-30").overlaps(range("10-20")));
        assert!(!range("10-19").overlaps(range("20-30")));
        assert_eq!(range("10-19").len(), 10);
        assert!(range("10-19").contains(19) && !range("10-19").contains(20));
    }
}
