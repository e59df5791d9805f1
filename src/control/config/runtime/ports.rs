//! Ports that a container was given at run time: lists of ranges, more and fewer of them, and the rules
//! that came with them.

use nos_shim::ports::{PortRange, Restriction, Transport};

use super::super::entries::ContainerEntry;
use super::super::place::At;
use super::super::port_list::left_of;

/// Ports of one container. Ranges of one protocol are disjoint and in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) tcp: Vec<PortRange>,
    pub(super) udp: Vec<PortRange>,
    pub(super) ephemeral: Vec<PortRange>,
    /// Who may open flows to which of them, by protocol and range.
    pub(super) from: Vec<Restriction>,
    /// Those of `ephemeral` that get only packets of flows that are there.
    pub(super) established: Vec<PortRange>,
}

impl Ports {
    /// Those of an entry.
    pub(super) fn of(entry: &ContainerEntry) -> Self {
        let values = |ranges: &[At<PortRange>]| normal(ranges.iter().map(|at| at.value).collect());
        Self {
            tcp: values(&entry.tcp),
            udp: values(&entry.udp),
            ephemeral: values(&entry.ephemeral),
            from: joined(entry.policy.from.clone()),
            established: PortRange::merged(entry.policy.established.clone()),
        }
    }

    /// Every port there is.
    pub(super) fn all() -> Self {
        let all = PortRange::new(1, u16::MAX).map_or_else(|_| Vec::new(), |all| vec![all]);
        Self {
            tcp: all.clone(),
            udp: all.clone(),
            ephemeral: all,
            ..Self::default()
        }
    }

    /// Those of TCP or UDP on which a container is reached.
    fn of_transport(&self, transport: Transport) -> &[PortRange] {
        match transport {
            Transport::Tcp => &self.tcp,
            Transport::Udp => &self.udp,
        }
    }

    /// Who may open flows to which of these that `other` has not.
    fn rules_without(&self, other: &Self) -> Vec<Restriction> {
        let left = self.from.iter().flat_map(|rule| {
            let left = left_of(rule.range, other.of_transport(rule.transport));
            left.into_iter().map(|range| Restriction {
                range,
                ..rule.clone()
            })
        });
        joined(left.collect())
    }

    /// Whether the ports that these and `other` have follow the same rules.
    pub(super) fn agrees_with(&self, other: &Self) -> bool {
        let common = |of: &Self, with: &Self| {
            // What is left when those are taken out that the other has not.
            let foreign = of.without(with);
            let from = of.rules_without(&foreign);
            (from, subtract(&of.established, &foreign.ephemeral))
        };
        common(self, other) == common(other, self)
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
            from: self.rules_without(other),
            established: subtract(&self.established, &other.ephemeral),
        }
    }

    /// These and those of `other` that are not among them. Where both have a port, the rule of `other`
    /// holds.
    pub(super) fn with(&self, other: &Self) -> Self {
        let more = other.without(self);
        let both = |own: &[PortRange], more: Vec<PortRange>| {
            let mut all = own.to_vec();
            all.extend(more);
            all.sort_unstable();
            all
        };
        Self {
            tcp: both(&self.tcp, more.tcp),
            udp: both(&self.udp, more.udp),
            ephemeral: both(&self.ephemeral, more.ephemeral),
            from: joined([self.rules_without(other), other.from.clone()].concat()),
            established: PortRange::merged(
                [
                    subtract(&self.established, &other.ephemeral),
                    other.established.clone(),
                ]
                .concat(),
            ),
        }
    }

    /// The ranges, each with what it is for: `tcp 20000-20999`.
    pub(super) fn listed(&self) -> Vec<String> {
        let Self {
            tcp,
            udp,
            ephemeral,
            ..
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
        common(self.of_transport(transport), range).is_some()
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

/// The same rules in their order, as few as can be. They do not overlap.
pub(super) fn joined(mut rules: Vec<Restriction>) -> Vec<Restriction> {
    rules.sort_unstable_by_key(|rule| (rule.transport, rule.range));
    let mut few: Vec<Restriction> = Vec::with_capacity(rules.len());
    for rule in rules {
        match few.last_mut() {
            Some(last)
                if (last.transport, &last.from) == (rule.transport, &rule.from)
                    && u32::from(last.range.last()) + 1 == u32::from(rule.range.first()) =>
            {
                let whole = PortRange::new(last.range.first(), rule.range.last());
                last.range = whole.unwrap_or(rule.range);
            }
            _ => few.push(rule),
        }
    }
    few
}

/// The ports of `ranges` that are not in `others`; both are disjoint and in their order.
fn subtract(ranges: &[PortRange], others: &[PortRange]) -> Vec<PortRange> {
    let left = ranges.iter().flat_map(|&range| left_of(range, others));
    left.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    use ipnet::IpNet;
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

    /// Ports, each with who may open flows to it.
    fn rules(ports: &Ports) -> BTreeMap<u16, Option<String>> {
        let mut of = BTreeMap::new();
        for port in ports
            .tcp
            .iter()
            .flat_map(|range| range.first()..=range.last())
        {
            let mut rules = ports.from.iter();
            let rule = rules.find(|rule| rule.range.contains(port));
            of.insert(port, rule.map(|rule| rule.from.to_string()));
        }
        of
    }

    fn ruled() -> impl Strategy<Value = Ports> {
        let ranges = prop::collection::vec((1..60_u16, 0..12_u16, 0..3_u8), 0..8);
        ranges.prop_map(|ranges| {
            let mut ports = Ports::default();
            for (first, more, rule) in ranges {
                let range = PortRange::new(first, first + more).unwrap();
                if common(&ports.tcp, range).is_some() {
                    continue;
                }
                ports.tcp.push(range);
                ports.tcp.sort_unstable();
                if rule > 0 {
                    let prefix: IpNet = format!("10.0.0.{rule}/32").parse().unwrap();
                    ports.from.push(Restriction {
                        transport: Transport::Tcp,
                        range,
                        from: Arc::new([prefix].into_iter().collect()),
                    });
                }
            }
            ports.from = joined(ports.from);
            ports
        })
    }

    proptest! {
        /// Against maps from ports to rules.
        #[test]
        fn the_rule_of_a_port_is_the_last_that_was_asked_for(one in ruled(), two in ruled()) {
            let (a, b) = (rules(&one), rules(&two));
            let mut both = a.clone();
            both.extend(b.clone());
            prop_assert_eq!(rules(&one.with(&two)), both);
            let mut fewer = a.clone();
            fewer.retain(|port, _| !b.contains_key(port));
            let left = one.without(&two);
            prop_assert_eq!(rules(&left), fewer);
            // No rule is about a port that is not there.
            let ruled: BTreeSet<u16> = left.from.iter().flat_map(|it| it.range.first()..=it.range.last()).collect();
            prop_assert!(ruled.is_subset(&set(&left.tcp)));
            let same = a.iter().all(|(port, rule)| b.get(port).is_none_or(|other| other == rule));
            prop_assert_eq!(one.agrees_with(&two), same);
        }

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
