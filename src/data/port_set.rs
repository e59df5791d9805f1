//! The ports of one attachment, asked for every packet that it sends.

use nos_shim::ports::PortRange;

/// Ranges that are compared one by one. Nearly every attachment has one or two, and then the whole
/// set is in the cache line that holds this.
const FEW: usize = 4;

/// Words of a set of all ports.
const WORDS: usize = 1 << 10;

/// A set of ports, asked in constant time whatever it holds.
#[derive(Clone, Debug)]
pub struct PortSet(Form);

#[derive(Clone, Debug)]
enum Form {
    /// Spans that hold all ports of the set; those not needed are empty.
    Few([Span; FEW]),
    /// A bit a port, 8 KiB in all.
    Many(Box<[u64; WORDS]>),
}

#[derive(Clone, Copy, Debug, Default)]
struct Span {
    first: u16,
    len: u16,
}

impl Default for PortSet {
    /// The empty set.
    fn default() -> Self {
        Self(Form::Few([Span::default(); FEW]))
    }
}

impl FromIterator<PortRange> for PortSet {
    /// Ranges may overlap and come in any order.
    fn from_iter<I: IntoIterator<Item = PortRange>>(ranges: I) -> Self {
        let merged = PortRange::merged(ranges.into_iter().collect());
        let mut spans = [Span::default(); FEW];
        if merged.len() > FEW {
            return Self(Form::Many(bits(&merged)));
        }
        for (span, range) in spans.iter_mut().zip(merged) {
            *span = Span {
                first: range.first(),
                // At most 65,535, as port 0 is in no range.
                len: range.last() - range.first() + 1,
            };
        }
        Self(Form::Few(spans))
    }
}

impl PortSet {
    /// Whether `port` is in the set; port 0 never is.
    #[must_use]
    #[inline]
    pub fn contains(&self, port: u16) -> bool {
        match &self.0 {
            Form::Few(spans) => spans
                .iter()
                .any(|span| port.wrapping_sub(span.first) < span.len),
            Form::Many(bits) => bits[usize::from(port >> 6)] >> (port & 63) & 1 != 0,
        }
    }
}

fn bits(ranges: &[PortRange]) -> Box<[u64; WORDS]> {
    let mut bits = Box::new([0; WORDS]);
    for port in ranges.iter().flat_map(|range| range.first()..=range.last()) {
        bits[usize::from(port >> 6)] |= 1 << (port & 63);
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range() -> impl Strategy<Value = PortRange> {
        let any_pair = (1..=u16::MAX, 1..=u16::MAX);
        let near = (1..200_u16, 0..5_u16).prop_map(|(first, more)| (first, first + more));
        prop_oneof![any_pair, near].prop_map(|(a, b)| PortRange::new(a.min(b), a.max(b)).unwrap())
    }

    proptest! {
        #[test]
        fn membership_agrees_with_the_ranges(ranges in proptest::collection::vec(range(), 0..12), port: u16) {
            let set: PortSet = ranges.iter().copied().collect();
            let edges = ranges.iter().flat_map(|range| [range.first() - 1, range.first(), range.last(), range.last().wrapping_add(1)]);
            for port in edges.chain([port, 0, 1, u16::MAX]) {
                let expected = ranges.iter().any(|range| range.contains(port));
                prop_assert_eq!(set.contains(port), expected, "port {}", port);
            }
        }
    }

    #[test]
    fn adjacent_ranges_stay_few() {
        let set: PortSet = (1..=100).map(|n| PortRange::new(n, n).unwrap()).collect();
        assert!(matches!(set.0, Form::Few(_)));
        let odd: PortSet = (1..=100)
            .map(|n| PortRange::new(2 * n, 2 * n).unwrap())
            .collect();
        assert!(matches!(odd.0, Form::Many(_)));
    }

    #[test]
    fn all_ports_fit() {
        let set: PortSet = [PortRange::new(1, u16::MAX).unwrap()].into_iter().collect();
        assert!(!set.contains(0) && set.contains(1) && set.contains(u16::MAX));
        assert!(!PortSet::default().contains(0));
    }
}
