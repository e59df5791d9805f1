//! What an exchange of registrations changes in the map of ports.
//!
//! A registration covers the map in stripes: one range of ports of one transport on one address.
//! An exchange replaces old stripes by new ones. Only the difference is written: ports that are in
//! both keep their owner all the time.

use std::collections::BTreeSet;

use super::map::{PackedOwner, PortMap};
use super::{PortRange, Transport};
use crate::ident::LocalAddressId;

/// Ports in the hands of one owner. The order brings those together that may overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stripe {
    pub(super) address: LocalAddressId,
    pub(super) transport: Transport,
    pub(super) range: PortRange,
    pub(super) owner: PackedOwner,
}

impl Stripe {
    fn overlaps(&self, other: &Self) -> bool {
        (self.address, self.transport) == (other.address, other.transport)
            && self.range.overlaps(other.range)
    }
}

/// Of stripes with the number of the registration that wants them: numbers of which each overlaps
/// an earlier one. If any two registrations overlap, there is at least one.
pub(super) fn late_comers(mut stripes: Vec<(Stripe, usize)>) -> BTreeSet<usize> {
    stripes.sort_unstable();
    let mut late = BTreeSet::new();
    let mut reaching: Option<(Stripe, usize)> = None;
    for (stripe, number) in stripes {
        let Some((longest, other)) = reaching else {
            reaching = Some((stripe, number));
            continue;
        };
        if longest.overlaps(&stripe) && number != other {
            late.insert(number.max(other));
        }
        let same_ports = (longest.address, longest.transport) == (stripe.address, stripe.transport);
        if !same_ports || stripe.range.last() > longest.range.last() {
            reaching = Some((stripe, number));
        }
    }
    late
}

/// Writes `new` over `old` into the map. Stripes of one side do not overlap each other.
pub(super) fn repaint(map: &mut PortMap, mut old: Vec<Stripe>, mut new: Vec<Stripe>) {
    old.sort_unstable();
    old.dedup();
    new.sort_unstable();
    new.dedup();
    for stripe in &old {
        for range in uncovered(stripe, &new) {
            map.fill(stripe.address, stripe.transport, range, PackedOwner::NOBODY);
        }
    }
    let fresh = new
        .iter()
        .filter(|stripe| old.binary_search(stripe).is_err());
    for stripe in fresh {
        map.fill(stripe.address, stripe.transport, stripe.range, stripe.owner);
    }
}

/// The ports of `stripe` that are in none of `covers`, which are sorted and do not overlap.
fn uncovered(stripe: &Stripe, covers: &[Stripe]) -> Vec<PortRange> {
    let place = (stripe.address, stripe.transport);
    // They are sorted by their first ports, and by their last ones as well.
    let behind = covers.partition_point(|cover| {
        let before = cover.range.last() < stripe.range.first();
        (cover.address, cover.transport) < place
            || (cover.address, cover.transport) == place && before
    });
    let covers = covers.iter().skip(behind);
    let covers = covers.take_while(|cover| cover.overlaps(stripe));
    stripe.range.without(covers.map(|cover| cover.range))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADDRESS: LocalAddressId = LocalAddressId(1);

    fn stripe(address: u32, first: u16, last: u16) -> Stripe {
        Stripe {
            address: LocalAddressId(address),
            transport: Transport::Udp,
            range: PortRange::new(first, last).unwrap(),
            owner: PackedOwner::NOS,
        }
    }

    /// Ranges one behind the other: gap and length of each.
    fn in_order(address: u32, steps: &[(u16, u16)]) -> Vec<Stripe> {
        let mut first = 1;
        let mut stripes = Vec::new();
        for (gap, len) in steps {
            first += gap;
            stripes.push(stripe(address, first, first + len));
            first += len + 1;
        }
        stripes
    }

    proptest! {
        #[test]
        fn what_is_uncovered_is_what_no_cover_has(
            steps in proptest::collection::vec((0..20_u16, 0..20_u16), 0..12),
            others in proptest::collection::vec((0..20_u16, 0..20_u16), 0..4),
            first in 1..300_u16,
            len in 0..300_u16,
        ) {
            let wanted = stripe(ADDRESS.0, first, first + len);
            let mut covers = in_order(ADDRESS.0, &steps);
            covers.extend(in_order(0, &others));
            covers.extend(in_order(2, &others));
            covers.sort_unstable();
            let left = uncovered(&wanted, &covers);
            let here = |cover: &&Stripe| cover.address == ADDRESS;
            for port in 1..=700 {
                let covered = covers.iter().filter(here).any(|cover| cover.range.contains(port));
                let expected = wanted.range.contains(port) && !covered;
                prop_assert_eq!(left.iter().any(|range| range.contains(port)), expected, "{}", port);
            }
        }

        #[test]
        fn overlaps_between_registrations_are_found(
            ranges in proptest::collection::vec((0..2_u32, 1..200_u16, 0..30_u16, 0..4_usize), 0..10),
        ) {
            let stripes: Vec<_> = ranges
                .iter()
                .map(|&(address, first, len, number)| (stripe(address, first, first + len), number))
                .collect();
            let clash = |number: usize| {
                let mine = stripes.iter().filter(|(_, of)| *of == number);
                let mut pairs = mine.flat_map(|(mine, _)| stripes.iter().map(move |it| (mine, it)));
                pairs.any(|(mine, (other, of))| *of < number && mine.overlaps(other))
            };
            let own = |number: usize| {
                let mine: Vec<_> = stripes.iter().filter(|(_, of)| *of == number).collect();
                (0..mine.len()).any(|n| mine[..n].iter().any(|(other, _)| mine[n].0.overlaps(other)))
            };
            // Those that overlap themselves are refused before.
            prop_assume!(!(0..4).any(own));
            let late = late_comers(stripes.clone());
            prop_assert!(late.iter().all(|&number| clash(number)));
            prop_assert_eq!(late.is_empty(), !(0..4).any(clash));
        }
    }
}
