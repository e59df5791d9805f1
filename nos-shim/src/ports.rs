//! Ranges of TCP and UDP ports.

use core::fmt;
use core::num::NonZeroU16;
use core::str::FromStr;

use thiserror::Error;

/// An inclusive range of TCP or UDP ports, never empty and never with port 0.
///
/// Ranges order by their first port, then by their last.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    first: NonZeroU16,
    last: NonZeroU16,
}

/// Numbers or text that make no [`PortRange`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PortRangeError {
    /// The first port is greater than the last.
    #[error("range {first}-{last} runs backwards; write {last}-{first}")]
    Backwards {
        /// The port given as first.
        first: u16,
        /// The port given as last.
        last: u16,
    },
    /// Port 0 is reserved (RFC 6335 §6).
    #[error("port 0 cannot be used; ports are 1 to 65535")]
    Zero,
    /// A number above 65535, or above what any integer holds.
    #[error("port {0} is above 65535, the highest port")]
    TooHigh(String),
    /// Not a number, nor two with a hyphen between them.
    #[error("'{0}' is not a port range; write a port as in 179 or a range as in 20000-20999")]
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
    /// [`PortRangeError::Zero`] when either is 0, [`PortRangeError::Backwards`] when `first` is
    /// greater than `last`.
    pub fn new(first: u16, last: u16) -> Result<Self, PortRangeError> {
        let nonzero = |port| NonZeroU16::new(port).ok_or(PortRangeError::Zero);
        let range = Self {
            first: nonzero(first)?,
            last: nonzero(last)?,
        };
        if first > last {
            return Err(PortRangeError::Backwards { first, last });
        }
        Ok(range)
    }

    /// The range of `port` alone.
    #[must_use]
    pub const fn single(port: NonZeroU16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }

    /// The lowest port of the range.
    #[must_use]
    pub const fn first(self) -> NonZeroU16 {
        self.first
    }

    /// The highest port of the range.
    #[must_use]
    pub const fn last(self) -> NonZeroU16 {
        self.last
    }

    /// How many ports the range has: 1 to 65535.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub const fn len(self) -> u16 {
        self.last.get() - self.first.get() + 1
    }

    /// Whether `port` is in the range; port 0 is in none.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first.get() <= port && port <= self.last.get()
    }

    /// Whether some port is in both ranges.
    #[must_use]
    pub const fn overlaps(self, other: &Self) -> bool {
        self.first.get() <= other.last.get() && other.first.get() <= self.last.get()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return write!(f, "{}", self.first);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl fmt::Debug for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<NonZeroU16> for PortRange {
    fn from(port: NonZeroU16) -> Self {
        Self::single(port)
    }
}

impl FromStr for PortRange {
    type Err = PortRangeError;

    /// Reads `179` or `20000-20999`; spaces around the numbers are ignored.
    fn from_str(text: &str) -> Result<Self, PortRangeError> {
        let port = |digits: &str| parse_port(digits.trim(), text);
        match text.split_once('-') {
            Some((first, last)) => Self::new(port(first)?, port(last)?),
            None => port(text).and_then(|port| Self::new(port, port)),
        }
    }
}

fn parse_port(digits: &str, whole: &str) -> Result<u16, PortRangeError> {
    // `u16::from_str` alone would take a sign.
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(PortRangeError::Syntax(whole.to_owned()));
    }
    digits
        .parse()
        .map_err(|_| PortRangeError::TooHigh(digits.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_reads_as_a_port_or_a_range() {
        for (text, first, last) in [
            ("179", 179, 179),
            ("20000-20999", 20000, 20999),
            (" 1 - 65535 ", 1, 65535),
            ("00080", 80, 80),
            ("7-7", 7, 7),
        ] {
            assert_eq!(text.parse(), PortRange::new(first, last), "{text}");
        }
    }

    #[test]
    fn bad_text_is_refused_with_the_reason() {
        for (text, reason) in [
            (
                "",
                "'' is not a port range; write a port as in 179 or a range as in 20000-20999",
            ),
            (
                "ssh",
                "'ssh' is not a port range; write a port as in 179 or a range as in 20000-20999",
            ),
            (
                "1-2-3",
                "'1-2-3' is not a port range; write a port as in 179 or a range as in 20000-20999",
            ),
            (
                "+5",
                "'+5' is not a port range; write a port as in 179 or a range as in 20000-20999",
            ),
            (
                "5-",
                "'5-' is not a port range; write a port as in 179 or a range as in 20000-20999",
            ),
            ("0", "port 0 cannot be used; ports are 1 to 65535"),
            ("0-10", "port 0 cannot be used; ports are 1 to 65535"),
            ("65536", "port 65536 is above 65535, the highest port"),
            (
                "1-99999999999999999999",
                "port 99999999999999999999 is above 65535, the highest port",
            ),
            ("20-10", "range 20-10 runs backwards; write 10-20"),
        ] {
            let error = text.parse::<PortRange>().unwrap_err();
            assert_eq!(error.to_string(), reason, "{text}");
        }
    }

    #[test]
    fn the_widest_range_has_a_length() {
        assert_eq!(PortRange::ALL.len(), 65535);
        assert_eq!(PortRange::new(1, 65535), Ok(PortRange::ALL));
    }

    fn ranges() -> impl Strategy<Value = PortRange> {
        (1..=65535_u16, 1..=65535_u16)
            .prop_map(|(a, b)| PortRange::new(a.min(b), a.max(b)).unwrap())
    }

    proptest! {
        #[test]
        fn text_round_trips(range in ranges()) {
            prop_assert_eq!(range.to_string().parse(), Ok(range));
        }

        #[test]
        fn membership_and_length_follow_the_ends(range in ranges(), port in any::<u16>()) {
            let ports = range.first().get()..=range.last().get();
            prop_assert_eq!(range.contains(port), ports.contains(&port));
            prop_assert_eq!(usize::from(range.len()), ports.count());
        }

        #[test]
        fn overlap_is_having_a_port_in_common(a in ranges(), b in ranges()) {
            let common = (a.first().get()..=a.last().get()).any(|port| b.contains(port));
            prop_assert_eq!(a.overlaps(&b), common);
            prop_assert_eq!(b.overlaps(&a), common);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,16}") {
            let _ = text.parse::<PortRange>();
        }
    }
}
