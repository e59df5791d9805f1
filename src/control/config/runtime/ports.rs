//! Ports that a container was given at run time: lists of ranges, more and fewer of them.

use nos_shim::ports::{PortRange, Transport};

use super::super::entries::ContainerEntry;
use super::super::place::At;
use super::super::port_list::left_of;

/// Ports of one container. Ranges of one protocol are disjoint and in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) tcp: Vec<PortRange>,
    pub(super) udp: Vec<PortRange>,
    pub(super) ephemeral: Vec<PortRange>,
}

impl Ports {
    /// Those of an entry.
    pub(super) fn of(entry: &ContainerEntry) -> Self {
        let values = |ranges: &[At<PortRange>]| normal(ranges.iter().map(|at| at.value).collect());
        Self {
            tcp: values(&entry.tcp),
            udp: values(&entry.udp),
            ephemeral: values(&entry.ephemeral),
        }
    }

    /// Every port there is.
    pub(super) fn all() -> Self {
        let all = PortRange::new(1, u16::MAX).map_or_else(|_| Vec::new(), |all| vec![all]);
        Self {
            tcp: all.clone(),
            udp: all.clone(),
            ephemeral: all,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.udp.is_empty() && self.ephemeral.is_empty()
    }

    /// What is in these and not in `other`.
    pub(super) fn without(&self, other: &Self) -> Self {
        Self {
            tcp: subtract(&self.tcp, &other.tcp),
            udp: subtract(&self.udp, &other.udp),
            ephemeral: subtract(&self.ephemeral, &other.ephemeral),
        }
    }

    /// These and those of `other` that are not among them.
    pub(super) fn with(&self, other: &Self) -> Self {
        let more = other.without(self);
        let joined = |own: &[PortRange], more: Vec<PortRange>| {
            let mut all = own.to_vec();
            all.extend(more);
            all.sort_unstable();
            all
        };
        Self {
            tcp: joined(&self.tcp, more.tcp),
            udp: joined(&self.udp, more.udp),
            ephemeral: joined(&self.ephemeral, more.ephemeral),
        }
    }

    /// The ranges, each with what it is for: `tcp 20000-20999`.
    pub(super) fn listed(&self) -> Vec<String> {
        let Self {
            tcp,
            udp,
            ephemeral,
        } = self;
        let all = [("tcp", tcp), ("udp", udp), ("ephemeral", ephemeral)];
        let all = all.into_iter();
        all.flat_map(|(what, ranges)| ranges.iter().map(move |range| format!("{what} {range}")))
            .collect()
    }

    /// What is in these and in `other`.
    pub(super) fn common_with(&self, other: &Self) -> Self {
        self.without(&self.without(other))
    }

    /// Whether ports of `range` are among those on which a container is reached.
    pub(super) fn listens(&self, transport: Transport, range: PortRange) -> bool {
        let ranges = match transport {
            Transport::Tcp => &self.tcp,
            Transport::Udp => &self.udp,
        };
        common(ranges, range).is_some()
    }
}

/// The first port of `range` in one of `ranges`, which are disjoint and in their order.
pub(super) fn common(ranges: &[PortRange], range: PortRange) -> Option<PortRange> {
    let from = ranges.partition_point(|other| other.last() < range.first());
    ranges
        .get(from)
        .copied()
        .filter(|other| other.overlaps(range))
}

/// The same ports as disjoint ranges in their order. Those that only touch stay apart.
pub(super) fn normal(mut ranges: Vec<PortRange>) -> Vec<PortRange> {
    ranges.sort_unstable();
    let mut disjoint: Vec<PortRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match disjoint.last_mut() {
            Some(last) if last.overlaps(range) => {
                let whole = PortRange::new(last.first(), last.last().max(range.last()));
                *last = whole.unwrap_or(range);
            }
            _ => disjoint.push(range),
        }
    }
    disjoint
}

/// The ports of `ranges` that are not in `others`; both are disjoint and in their order.
fn subtract(ranges: &[PortRange], others: &[PortRange]) -> Vec<PortRange> {
    let left = ranges.iter().flat_map(|&range| left_of(range, others));
    left.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = Vec<PortRange>> {
        let range = (65_400..=65_535_u16, 0..30_u16)
            .prop_map(|(first, more)| PortRange::new(first, first.saturating_add(more)).unwrap());
        prop::collection::vec(range, 0..8).prop_map(normal)
    }

    fn set(ranges: &[PortRange]) -> BTreeSet<u16> {
        let ports = ranges.iter().flat_map(|range| range.first()..=range.last());
        ports.collect()
    }

    fn is_normal(ranges: &[PortRange]) -> bool {
        ranges
            .windows(2)
            .all(|pair| pair[0].last() < pair[1].first())
    }

    proptest! {
        #[test]
        fn ranges_are_sets_of_ports(one in ranges(), two in ranges()) {
            let ports = |tcp: &[PortRange]| Ports { tcp: tcp.to_vec(), ..Ports::default() };
            let fewer = ports(&one).without(&ports(&two)).tcp;
            prop_assert!(is_normal(&fewer));
            prop_assert_eq!(set(&fewer), &set(&one) - &set(&two));
            let more = ports(&one).with(&ports(&two)).tcp;
            prop_assert!(is_normal(&more));
            prop_assert_eq!(set(&more), &set(&one) | &set(&two));
            for range in &two {
                let both = !set(&one).is_disjoint(&set(&[*range]));
                prop_assert_eq!(ports(&one).listens(Transport::Tcp, *range), both);
            }
        }
    }
}
