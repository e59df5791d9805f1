//! Who may have which port: ranges of containers and services of the NOS.
//!
//! Each claim is entered for each address that it covers. Ranges entered for one address and
//! protocol are disjoint, so that a new one is compared with a single neighbor.

use core::fmt;
use core::net::IpAddr;
use std::collections::{BTreeMap, HashMap};

use nos_shim::ports::{PortRange, Transport};

use super::entries::{ContainerEntry, Entries};
use super::place::{At, Place};
use super::report::{PortClash, Report};
use super::vrf::{Vrfs, in_vrf};
use super::{Name, Service, VrfName};

/// Ranges below the one asked for are suggested from here on: lower ports are privileged in
/// containers.
const FIRST_UNPRIVILEGED: u32 = 1024;

/// Where a claim counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Scope<'a> {
    Address(&'a VrfName, IpAddr),
    /// The link-local address of an uplink.
    Link(&'a Name),
    /// A container of which it is not known what addresses it shares.
    Container(Place),
    /// The NOS's services in a VRF, which count for all there.
    Nos(&'a VrfName),
}

#[derive(Clone, Copy, Debug)]
enum Owner<'a> {
    Service(Service),
    Container(&'a Name),
}

/// What somebody wants.
#[derive(Clone, Copy, Debug)]
struct Claim<'a> {
    vrf: &'a VrfName,
    range: PortRange,
    place: Place,
    owner: Owner<'a>,
    transports: &'static [Transport],
}

/// Reports every claim that overlaps an earlier one.
pub(super) fn check(report: &Report<'_>, entries: &Entries, vrfs: &Vrfs<'_>) {
    let mut table = Table {
        report,
        held: HashMap::new(),
        all: all_claims(entries),
    };
    for claim in service_claims(entries) {
        table.enter(&claim, &[Scope::Nos(claim.vrf)]);
    }
    // What was added at run time comes behind the file, and what is asked for now behind all, so
    // that it is what is refused.
    let age = |container: &ContainerEntry, claim: &Claim<'_>| {
        let newest = entries.newest.as_ref() == Some(&container.name.value);
        match (report.is_added(claim.place), newest) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => 2,
        }
    };
    let containers = entries.containers.iter();
    let scoped = containers.map(|it| (it, scopes(it, entries.all_uplinks, vrfs)));
    let scoped: Vec<_> = scoped.collect();
    for turn in 0..=2 {
        for (container, scopes) in &scoped {
            let claims = container_claims(container);
            for claim in claims.filter(|claim| age(container, claim) == turn) {
                table.enter(&claim, scopes);
            }
        }
    }
}

fn scopes<'a>(container: &'a ContainerEntry, all_uplinks: bool, vrfs: &Vrfs<'_>) -> Vec<Scope<'a>> {
    let vrf = &container.vrf.value;
    let addresses = container.addresses_among(&vrfs.get(vrf).addresses);
    if !all_uplinks || addresses.is_empty() {
        return vec![Scope::Container(container.name.place)];
    }
    let scope = |address| Scope::Address(vrf, address);
    let link = container.link_local.iter().map(|at| Scope::Link(&at.value));
    addresses.into_iter().map(scope).chain(link).collect()
}

/// Of all VRFs.
fn service_claims(entries: &Entries) -> impl Iterator<Item = Claim<'_>> {
    entries.nos.iter().flat_map(|nos| {
        let services = nos.services.iter();
        services.map(|service| service_claim(&nos.vrf.value, service))
    })
}

fn service_claim<'a>(vrf: &'a VrfName, at: &At<Service>) -> Claim<'a> {
    let transports: &[_] = match at.value.uses(Transport::Udp) {
        true => &[Transport::Tcp, Transport::Udp],
        false => &[Transport::Tcp],
    };
    Claim {
        vrf,
        range: at.value.port().into(),
        place: at.place,
        owner: Owner::Service(at.value),
        transports,
    }
}

fn container_claims(container: &ContainerEntry) -> impl Iterator<Item = Claim<'_>> {
    let claim = |at: &At<PortRange>, transports| Claim {
        vrf: &container.vrf.value,
        range: at.value,
        place: at.place,
        owner: Owner::Container(&container.name.value),
        transports,
    };
    let tcp = container
        .tcp
        .iter()
        .map(move |at| claim(at, &[Transport::Tcp][..]));
    let udp = container
        .udp
        .iter()
        .map(move |at| claim(at, &[Transport::Udp]));
    let both = &[Transport::Tcp, Transport::Udp];
    let ephemeral = container.ephemeral.iter().map(move |at| claim(at, both));
    tcp.chain(udp).chain(ephemeral)
}

/// All claims of all owners in the order of their ranges, for suggestions.
fn all_claims(entries: &Entries) -> Vec<Claim<'_>> {
    let containers = entries.containers.iter().flat_map(container_claims);
    let mut all: Vec<_> = service_claims(entries).chain(containers).collect();
    all.sort_by_key(|claim| claim.range);
    all
}

struct Table<'a> {
    report: &'a Report<'a>,
    held: HashMap<(Transport, Scope<'a>), BTreeMap<u16, Claim<'a>>>,
    all: Vec<Claim<'a>>,
}

impl<'a> Table<'a> {
    /// Enters the claim, or reports the first that it overlaps.
    fn enter(&mut self, claim: &Claim<'a>, scopes: &[Scope<'a>]) {
        let keys = || {
            let pairs = |&transport| scopes.iter().map(move |&scope| (transport, scope));
            claim.transports.iter().flat_map(pairs)
        };
        let services = claim
            .transports
            .iter()
            .map(|&transport| (transport, Scope::Nos(claim.vrf)));
        let mut clashes = services.chain(keys()).filter_map(|key| {
            let holder = self.holder(key, claim.range)?;
            Some((key.0, *holder))
        });
        if let Some((transport, holder)) = clashes.next() {
            self.clash(claim, transport, &holder);
            return;
        }
        for key in keys() {
            self.held
                .entry(key)
                .or_default()
                .insert(claim.range.first(), *claim);
        }
    }

    fn holder(&self, key: (Transport, Scope<'a>), range: PortRange) -> Option<&Claim<'a>> {
        let held = self.held.get(&key)?;
        let (_, below) = held.range(..=range.last()).next_back()?;
        below.range.overlaps(range).then_some(below)
    }

    fn clash(&self, claim: &Claim<'_>, transport: Transport, holder: &Claim<'_>) {
        let (owner, spot) = (holder.owner, self.report.spot(holder.place));
        if let Owner::Service(service) = claim.owner {
            let port = claim.range;
            let reason = format!(
                "\"{service}\" listens on {transport} {port}{}, as does {owner} ({spot})",
                in_vrf(claim.vrf)
            );
            self.report.error(claim.place, reason);
            return;
        }
        let free = self.free_range(claim);
        let suggested = free.map(|range| format!("; {range} is free"));
        let reason = format!(
            "{transport} {} overlaps {} of {owner} ({spot}){}{}",
            claim.range,
            holder.range,
            in_vrf(claim.vrf),
            suggested.unwrap_or_default()
        );
        let clash = PortClash {
            owner: owner.to_string(),
            range: holder.range,
            free,
        };
        self.report.clash(claim.place, reason, clash);
    }

    /// The nearest range as long as the claim's that nobody claims in its VRF.
    fn free_range(&self, claim: &Claim<'_>) -> Option<PortRange> {
        let others = || {
            let other = |taken: &&Claim<'_>| {
                taken.vrf == claim.vrf
                    && (taken.place, taken.range) != (claim.place, claim.range)
                    && taken
                        .transports
                        .iter()
                        .any(|transport| claim.transports.contains(transport))
            };
            self.all.iter().filter(other).map(|taken| taken.range)
        };
        let (asked, length) = (u32::from(claim.range.first()), claim.range.len());
        let above = first_gap(others(), asked, length);
        let below = last_gap(others(), asked, length);
        let distance = |gap: &PortRange| u32::from(gap.first()).abs_diff(asked);
        [above, below]
            .into_iter()
            .flatten()
            .min_by_key(distance)
            .or_else(|| first_gap(others(), 1, length))
    }
}

/// The last `length` unprivileged ports before `end` that none of `taken` has, which come in order.
fn last_gap(taken: impl Iterator<Item = PortRange>, end: u32, length: u32) -> Option<PortRange> {
    let mut start = FIRST_UNPRIVILEGED;
    let mut last = None;
    let ranges = taken.map(|range| (u32::from(range.first()), u32::from(range.last())));
    for (first, until) in ranges.chain([(end, end)]) {
        let gap = first.min(end);
        if start + length <= gap {
            last = u16::try_from(gap - length)
                .ok()
                .zip(u16::try_from(gap - 1).ok());
        }
        start = start.max(until + 1);
        if start >= end {
            break;
        }
    }
    let (first, last) = last?;
    PortRange::new(first, last).ok()
}

/// The first `length` ports from `start` on that none of `taken` has, which come in order.
pub(super) fn first_gap(
    taken: impl Iterator<Item = PortRange>,
    mut start: u32,
    length: u32,
) -> Option<PortRange> {
    for range in taken {
        if u32::from(range.first()) >= start + length {
            break;
        }
        start = start.max(u32::from(range.last()) + 1);
    }
    let first = u16::try_from(start).ok()?;
    let last = u16::try_from(start + length - 1).ok()?;
    PortRange::new(first, last).ok()
}

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(service) => write!(f, "the NOS's service \"{service}\""),
            Self::Container(name) => write!(f, "container \"{name}\""),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = PortRange> {
        // Few ports, so that full tables and narrow gaps are common.
        (65_000..=65_535_u16, 0..60_u16)
            .prop_map(|(first, more)| PortRange::new(first, first.saturating_add(more)).unwrap())
    }

    proptest! {
        #[test]
        fn a_gap_is_the_first_that_is_free(
            mut taken in prop::collection::vec(ranges(), 0..20),
            start in 64_900..65_535_u16,
            length in 1..100_u16,
        ) {
            taken.sort();
            let free = |port: u32| !taken.iter().any(|range| u32::from(range.last()) >= port
                && u32::from(range.first()) <= port);
            let (start, length) = (u32::from(start), u32::from(length));
            let naive = (start..=65_536 - length)
                .find(|&first| (first..first + length).all(free));
            let found = first_gap(taken.iter().copied(), start, length);
            prop_assert_eq!(found.map(|range| u32::from(range.first())), naive);
            prop_assert!(found.is_none_or(|range| range.len() == length));
        }

        #[test]
        fn a_gap_below_is_the_last_that_is_free(
            mut taken in prop::collection::vec(ranges(), 0..20),
            end in 64_900..65_535_u16,
            length in 1..100_u16,
        ) {
            taken.sort();
            let free = |port: u32| !taken.iter().any(|range| u32::from(range.last()) >= port
                && u32::from(range.first()) <= port);
            let (end, length) = (u32::from(end), u32::from(length));
            let naive = (FIRST_UNPRIVILEGED..=end - length)
                .rev()
                .find(|&first| (first..first + length).all(free));
            let found = last_gap(taken.iter().copied(), end, length);
            prop_assert_eq!(found.map(|range| u32::from(range.first())), naive);
            prop_assert!(found.is_none_or(|range| range.len() == length));
        }
    }
}
