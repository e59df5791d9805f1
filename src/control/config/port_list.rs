//! Lists of ports: ranges, single ports, and what is taken out of them again.
//!
//! `["20000-20999", "!20500", 443]` are the ports from 20000 to 20999 but 20500, and 443. The order
//! does not matter: what is excluded is in none of the ranges of its list. An exclusion that takes
//! nothing out, and a range of which nothing is left, are mistakes.
//!
//! An entry may be a table with a list of its own and a rule for its ports:
//! `{ ports = ["20000-20999", "!20500"], from = "198.51.100.0/24" }`. What is excluded anywhere in a
//! list is in none of its entries.

use std::sync::Arc;

use nos_shim::ports::{PortRange, Restriction, Transport};
use nos_shim::prefix_set::PrefixSet;

use super::document::{Entry, Section};
use super::place::{At, Place};
use super::values;

/// The three lists of a container.
pub(super) struct PortLists {
    pub(super) tcp: PortList,
    pub(super) udp: PortList,
    pub(super) ephemeral: PortList,
}

/// A list with the rules of its ranges.
#[derive(Debug, Default)]
pub(super) struct PortList {
    pub(super) ranges: Vec<At<PortRange>>,
    /// Who may open flows to which of them, if not everybody.
    from: Vec<(PortRange, Arc<PrefixSet>)>,
    /// Those that get only packets of flows that are there.
    pub(super) established: Vec<PortRange>,
}

/// What is said of the ports of a table.
#[derive(Clone, Debug, Default, PartialEq)]
struct Rule {
    from: Option<Arc<PrefixSet>>,
    established: bool,
}

impl PortLists {
    /// Reads `tcp`, `udp` and `ephemeral`.
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let [tcp, udp, ephemeral] = match section.name() {
            "container" => ["container.tcp", "container.udp", "container.ephemeral"],
            _ => ["ports.tcp", "ports.udp", "ports.ephemeral"],
        };
        Self {
            tcp: read_with_rules(section, "tcp", tcp),
            udp: read_with_rules(section, "udp", udp),
            ephemeral: read_with_rules(section, "ephemeral", ephemeral),
        }
    }

    /// Who may open flows to which ports.
    pub(super) fn restrictions(&self) -> Vec<Restriction> {
        let of = |transport, list: &PortList| -> Vec<Restriction> {
            let each = list.from.iter().map(|(range, from)| Restriction {
                transport,
                range: *range,
                from: Arc::clone(from),
            });
            each.collect()
        };
        let mut all = of(Transport::Tcp, &self.tcp);
        all.extend(of(Transport::Udp, &self.udp));
        all
    }
}

/// The list `key`, whose tables are called `name`.
fn read_with_rules(section: &mut Section<'_>, key: &'static str, name: &'static str) -> PortList {
    let (mut entries, mut rules) = (Vec::new(), Vec::new());
    for entry in section.mixed(key, name, values::port_entry) {
        match entry {
            Entry::Value(entry) => {
                entries.push(entry);
                rules.push(Rule::default());
            }
            Entry::Table(mut table) => {
                table.require("ports", "\"20000-20999\"");
                let ports = table.nonempty("ports", "give a range", values::port_entry);
                let rule = rule(&mut table, key);
                section.close(table);
                for entry in ports.unwrap_or_default() {
                    entries.push(entry);
                    rules.push(rule.clone());
                }
            }
        }
    }
    let resolved = checked_with_sources(section, &entries);
    let mut list = PortList::default();
    for (at, source) in resolved {
        list.ranges.push(at);
        let Some(rule) = rules.get(source) else {
            continue;
        };
        if let Some(from) = &rule.from {
            list.from.push((at.value, Arc::clone(from)));
        }
        if rule.established {
            list.established.push(at.value);
        }
    }
    list
}

fn rule(table: &mut Section<'_>, key: &'static str) -> Rule {
    let advice = "leave it out for everybody";
    let from = table.nonempty("from", advice, values::peers);
    let state = table.optional("state", values::flow_state);
    match key {
        "ephemeral" => {
            if from.is_some() {
                let place = table.header("from");
                let reason = "is for tcp and udp; nobody opens flows to ephemeral ports";
                table.error(place, reason);
            }
        }
        _ => {
            if let Some(at) = &state {
                table.error(at.place, "is for ephemeral; tcp and udp have from");
            }
        }
    }
    Rule {
        from: from.map(|list| Arc::new(list.into_iter().map(|at| at.value).collect())),
        established: state.is_some(),
    }
}

/// One entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PortEntry {
    /// These ports.
    Ports(PortRange),
    /// Not these, written with `!`.
    Except(PortRange),
}

/// Ranges, each with the number of the entry that names it.
fn checked_with_sources(
    section: &mut Section<'_>,
    entries: &[At<PortEntry>],
) -> Vec<(At<PortRange>, usize)> {
    let resolved = resolve(entries);
    for At { value, place } in resolved.mistakes {
        section.error(place, value);
    }
    resolved.ranges
}

/// The ports of `key`, in ranges where the entries stand that name them. A list without an entry is a mistake; `advice` says what to do instead.
pub(super) fn read_nonempty(
    section: &mut Section<'_>,
    key: &'static str,
    advice: &str,
) -> Vec<At<PortRange>> {
    let entries = section.nonempty(key, advice, values::port_entry);
    let ranges = checked_with_sources(section, &entries.unwrap_or_default()).into_iter();
    ranges.map(|(at, _)| at).collect()
}

/// What a list comes to.
struct Resolved {
    /// With the number of the entry that names each.
    ranges: Vec<(At<PortRange>, usize)>,
    mistakes: Vec<At<String>>,
}

fn resolve(entries: &[At<PortEntry>]) -> Resolved {
    let part = |wanted: fn(PortEntry) -> Option<PortRange>| -> Vec<(At<PortRange>, usize)> {
        let each = entries.iter().enumerate();
        each.filter_map(|(number, &At { value, place })| {
            wanted(value).map(|value| (At { value, place }, number))
        })
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
    let merged = |list: &[(At<PortRange>, usize)]| {
        PortRange::merged(list.iter().map(|(at, _)| at.value).collect())
    };
    let (all, out) = (merged(&included), merged(&excluded));
    let mut resolved = Resolved {
        ranges: Vec::with_capacity(included.len()),
        mistakes: Vec::new(),
    };
    for (
        At {
            value: range,
            place,
        },
        number,
    ) in included
    {
        let left = left_of(range, &out);
        if left.is_empty() {
            resolved.mistake(
                place,
                format!("nothing is left of {range}: all of it is excluded"),
            );
        }
        let left = left.into_iter().map(|value| (At { value, place }, number));
        resolved.ranges.extend(left);
    }
    for (
        At {
            value: range,
            place,
        },
        _,
    ) in excluded
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
            let has: BTreeSet<u16> = resolved.ranges.iter().flat_map(|(at, _)| ports(at.value)).collect();
            prop_assert_eq!(has, named.difference(&out).copied().collect());
            // Each range stands where its ports were named.
            for &(at, number) in &resolved.ranges {
                let source = &entries[number];
                prop_assert_eq!(source.place, at.place);
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
