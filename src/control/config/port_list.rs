//! Lists of ports: ranges, single ports, and what is taken out of them again.
//!
//! `["20000-20999", "!20500", 443]` are the ports from 20000 to 20999 but 20500, and 443. The order
//! does not matter: what is excluded is in none of the ranges of its list. An exclusion that takes
//! nothing out, and a range of which nothing is left, are mistakes.

use nos_shim::ports::PortRange;

use super::document::Section;
use super::place::{At, Place};
use super::values;

/// One entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PortEntry {
    /// These ports.
    Ports(PortRange),
    /// Not these, written with `!`.
    Except(PortRange),
}

/// The ports of `key`, in ranges where the entries stand that name them.
pub(super) fn read(section: &mut Section<'_>, key: &'static str) -> Vec<At<PortRange>> {
    let entries = section.list(key, values::port_entry);
    checked(section, &entries.unwrap_or_default())
}

fn checked(section: &mut Section<'_>, entries: &[At<PortEntry>]) -> Vec<At<PortRange>> {
    let resolved = resolve(entries);
    for At { value, place } in resolved.mistakes {
        section.error(place, value);
    }
    resolved.ranges
}

/// The same, where a list without an entry is a mistake; `advice` says what to do instead.
pub(super) fn read_nonempty(
    section: &mut Section<'_>,
    key: &'static str,
    advice: &str,
) -> Vec<At<PortRange>> {
    let entries = section.nonempty(key, advice, values::port_entry);
    checked(section, &entries.unwrap_or_default())
}

/// What a list comes to.
struct Resolved {
    ranges: Vec<At<PortRange>>,
    mistakes: Vec<At<String>>,
}

fn resolve(entries: &[At<PortEntry>]) -> Resolved {
    let part = |wanted: fn(PortEntry) -> Option<PortRange>| -> Vec<At<PortRange>> {
        let each = entries.iter();
        each.filter_map(|&At { value, place }| wanted(value).map(|value| At { value, place }))
            .collect()
    };
    let included = part(|entry| match entry {
        PortEntry::Ports(range) => Some(range),
        PortEntry::Except(_) => None,
    });
    let excluded = part(|entry| match entry {
        PortEntry::Ports(_) => None,
        PortEntry::Except(range) => Some(range),
    });
    let merged =
        |list: &[At<PortRange>]| PortRange::merged(list.iter().map(|at| at.value).collect());
    let (all, out) = (merged(&included), merged(&excluded));
    let mut resolved = Resolved {
        ranges: Vec::with_capacity(included.len()),
        mistakes: Vec::new(),
    };
    for At {
        value: range,
        place,
    } in included
    {
        let left = left_of(range, &out);
        if left.is_empty() {
            resolved.mistake(
                place,
                format!("nothing is left of {range}: all of it is excluded"),
            );
        }
        let left = left.into_iter().map(|value| At { value, place });
        resolved.ranges.extend(left);
    }
    for At {
        value: range,
        place,
    } in excluded
    {
        if left_of(range, &all) == [range] {
            resolved.mistake(
                place,
                format!("\"!{range}\" excludes nothing: no range of this list has it"),
            );
        }
    }
    resolved
}

impl Resolved {
    fn mistake(&mut self, place: Place, reason: String) {
        self.mistakes.push(At {
            value: reason,
            place,
        });
    }
}

/// What is left of `range` without the ports of `taken`, which are disjoint and in their order.
pub(super) fn left_of(range: PortRange, taken: &[PortRange]) -> Vec<PortRange> {
    let behind = taken.partition_point(|taken| taken.last() < range.first());
    range.without(taken.iter().skip(behind).copied())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use proptest::prelude::*;

    use super::*;

    fn entries() -> impl Strategy<Value = Vec<At<PortEntry>>> {
        let range = (1..40_u16, 0..10_u16)
            .prop_map(|(first, more)| PortRange::new(first, first + more).unwrap());
        let entry = (range, prop::bool::weighted(0.3)).prop_map(|(range, except)| match except {
            true => PortEntry::Except(range),
            false => PortEntry::Ports(range),
        });
        prop::collection::vec(entry, 0..12).prop_map(|entries| {
            let placed = entries.into_iter().enumerate();
            placed
                .map(|(offset, value)| At {
                    value,
                    place: Place::new(offset, "container", "tcp"),
                })
                .collect()
        })
    }

    fn ports(range: PortRange) -> BTreeSet<u16> {
        (range.first()..=range.last()).collect()
    }

    proptest! {
        /// Against sets of ports.
        #[test]
        fn a_list_has_what_is_named_and_not_excluded(entries in entries()) {
            let (mut named, mut out) = (BTreeSet::new(), BTreeSet::new());
            for at in &entries {
                match at.value {
                    PortEntry::Ports(range) => named.extend(ports(range)),
                    PortEntry::Except(range) => out.extend(ports(range)),
                }
            }
            let resolved = resolve(&entries);
            let has: BTreeSet<u16> = resolved.ranges.iter().flat_map(|at| ports(at.value)).collect();
            prop_assert_eq!(has, named.difference(&out).copied().collect());
            // Each range stands where its ports were named.
            for at in &resolved.ranges {
                let source = entries.iter().find(|entry| entry.place == at.place).unwrap();
                let PortEntry::Ports(source) = source.value else { panic!("{source:?}") };
                prop_assert!(ports(source).is_superset(&ports(at.value)));
            }
            let wrong: HashSet<_> = resolved.mistakes.iter().map(|at| at.place).collect();
            for entry in &entries {
                let mistaken = match entry.value {
                    PortEntry::Ports(range) => ports(range).is_subset(&out),
                    PortEntry::Except(range) => ports(range).is_disjoint(&named),
                };
                prop_assert_eq!(wrong.contains(&entry.place), mistaken, "{:?}", entry);
            }
        }
    }
}
