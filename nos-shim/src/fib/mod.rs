//! Where packets go: routes of every VRF, IPv4 and IPv6.
//!
//! # Theory of operation
//!
//! ```text
//! offers ──► RIB: prefix → offers, best first ──best──► forwarding table: address → AdjacencyId
//!                                                                                   │
//!                          adjacencies: each different action once, by number  ◄────┘
//! ```
//!
//! Sources offer routes ([`Fib::insert`]); of several for one prefix the best [`Source`] wins, and
//! the next takes over when it goes. A lookup finds the longest matching prefix and returns a
//! number, the [`AdjacencyId`], which stands for an [`Action`]. Whoever forwards packets keeps what
//! it needs for an action (rewritten headers, MTU, neighbor) in a table of its own, indexed by that
//! number, until routes change: a number may stand for another action then.
//!
//! A packet with several next hops to choose from takes the one that its flow's hash picks: see
//! [`FlowHasher`] and [`Adjacency::next_hop`].
//!
//! Link-local destinations mean something on their own link only, and are not looked up here; nor
//! are multicast ones.
//!
//! # Alone
//!
//! ```
//! use core::net::IpAddr;
//! use nos_shim::fib::{Action, Fib, NextHop, Source};
//! use nos_shim::ident::{UplinkId, VrfId};
//!
//! let mut fib = Fib::new();
//! let router = NextHop { uplink: UplinkId::new(0, 0), gateway: "192.0.2.1".parse()? };
//! let default = Action::Via(router.into());
//! fib.insert(VrfId::DEFAULT, "0.0.0.0/0".parse()?, Source::Static { metric: 1 }, &default)?;
//! let own = "198.51.100.0/24".parse()?;
//! fib.insert(VrfId::DEFAULT, own, Source::Connected, &Action::Connected(UplinkId::new(1, 0)))?;
//!
//! let action = |address: &str| {
//!     let address: IpAddr = address.parse().ok()?;
//!     Some(fib.adjacency(fib.lookup(VrfId::DEFAULT, address)).action().clone())
//! };
//! assert_eq!(action("198.51.100.7"), Some(Action::Connected(UplinkId::new(1, 0))));
//! assert_eq!(action("203.0.113.7"), Some(default));
//! assert_eq!(action("2001:db8::7"), Some(Action::NoRoute));
//! # Ok::<(), Box<dyn core::error::Error>>(())
//! ```

mod adjacency;
mod arena;
mod ecmp;
mod revision;
mod rib;
mod route;
mod routing;
mod table;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;

pub use adjacency::{Adjacency, AdjacencyId};
pub use ecmp::{BUCKETS, FlowHasher};
pub use rib::MAX_PREFIXES;
pub use route::{Action, MAX_NEXT_HOPS, NextHop, NextHops, NextHopsError, Protocol, Route, Source};

pub use routing::{InactiveReason, InactiveRoute, RouteChange, RouteKey, Routing};

use crate::ident::VrfId;
use crate::page::Page;
use adjacency::Adjacencies;
use rib::{Best, Change, Offer, Place, Prefix, Rib};
use table::{Key, Table};

/// Why a route was not inserted.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FibFull {
    /// The VRF has [`MAX_PREFIXES`] of this family.
    #[error("the VRF already holds {MAX_PREFIXES} prefixes of this family")]
    Prefixes,
    /// There are too many different actions.
    #[error("the routes already have as many different actions as there can be")]
    Actions,
}

/// One route, as `show routes` lists it.
#[derive(Clone, Copy, Debug)]
pub struct RouteEntry<'a> {
    /// For which destinations.
    pub prefix: IpNet,
    /// Who offers it.
    pub source: Source,
    /// What happens to packets for them.
    pub action: &'a Action,
    /// Whether it is the best of its prefix, and so in use.
    pub active: bool,
}

/// Where a page of routes begins: see [`Fib::page`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteCursor {
    vrf: VrfId,
    ipv6: bool,
    place: Place,
}

/// Octets of heap memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// What was offered.
    pub rib: usize,
    /// What lookups read.
    pub table: usize,
    /// Actions.
    pub adjacencies: usize,
}

/// Routes of one VRF and family.
#[derive(Clone)]
struct Family<K: Key> {
    rib: Rib<K>,
    table: Table<K>,
}

impl<K: Key> Family<K> {
    fn new() -> Self {
        Self {
            rib: Rib::new(),
            table: Table::new(),
        }
    }

    fn offer(&mut self, prefix: Prefix<K>, offer: AdjacencyId, all: &Adjacencies) -> Change {
        self.table.prepare(prefix.key);
        let change = self.rib.offer(prefix, offer, all);
        self.forward(prefix, change.best);
        change
    }

    fn withdraw(&mut self, prefix: Prefix<K>, source: Source, all: &Adjacencies) -> Option<Change> {
        self.table.prepare(prefix.key);
        let change = self.rib.withdraw(prefix, source, all)?;
        self.forward(prefix, change.best);
        Some(change)
    }

    fn forward(&mut self, prefix: Prefix<K>, best: Best) {
        let (key, len) = (prefix.key, u32::from(prefix.len));
        match best {
            Best::Same => {}
            Best::Now(adjacency) => self.table.insert(key, len, adjacency),
            Best::Gone => {
                let cover = self.rib.cover(prefix);
                let cover = cover.map(|(len, id)| (u32::from(len), id));
                self.table.remove(key, len, cover);
            }
        }
    }
}

fn prefix_v4(net: Ipv4Net) -> Prefix<u32> {
    Prefix {
        key: net.network().into(),
        len: net.prefix_len(),
    }
}

fn prefix_v6(net: Ipv6Net) -> Prefix<u128> {
    Prefix {
        key: net.network().into(),
        len: net.prefix_len(),
    }
}

fn net_v4(prefix: Prefix<u32>) -> IpNet {
    // A prefix is made from a net, whose length is one that the family has.
    IpNet::V4(Ipv4Net::new(prefix.key.into(), prefix.len).unwrap_or_default())
}

fn net_v6(prefix: Prefix<u128>) -> IpNet {
    IpNet::V6(Ipv6Net::new(prefix.key.into(), prefix.len).unwrap_or_default())
}

/// Routes of one VRF.
#[derive(Clone)]
struct Vrf {
    v4: Family<u32>,
    v6: Family<u128>,
}

impl Vrf {
    fn new() -> Self {
        Self {
            v4: Family::new(),
            v6: Family::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.v4.rib.len() == 0 && self.v6.rib.len() == 0
    }

    /// Whether there is no room for one more prefix, and this would be one.
    fn is_full_for(&self, prefix: IpNet) -> bool {
        match prefix {
            IpNet::V4(prefix) => self.v4.rib.is_full_for(prefix_v4(prefix)),
            IpNet::V6(prefix) => self.v6.rib.is_full_for(prefix_v6(prefix)),
        }
    }

    /// All offers, in any order.
    fn iter(&self) -> impl Iterator<Item = Offer<IpNet>> + '_ {
        named(self.v4.rib.iter(), self.v6.rib.iter())
    }

    /// All offers in the order of prefixes.
    fn sorted(&self) -> impl Iterator<Item = Offer<IpNet>> + '_ {
        named(self.v4.rib.sorted(), self.v6.rib.sorted())
    }
}

/// Offers of both families as one list.
fn named(
    v4: impl Iterator<Item = Offer<Prefix<u32>>>,
    v6: impl Iterator<Item = Offer<Prefix<u128>>>,
) -> impl Iterator<Item = Offer<IpNet>> {
    v4.map(|(prefix, offer, active)| (net_v4(prefix), offer, active))
        .chain(v6.map(|(prefix, offer, active)| (net_v6(prefix), offer, active)))
}

/// The forwarding information of all VRFs.
#[derive(Clone)]
pub struct Fib {
    /// Indexed by [`VrfId`].
    vrfs: Vec<Option<Box<Vrf>>>,
    adjacencies: Adjacencies,
}

impl Default for Fib {
    fn default() -> Self {
        Self::new()
    }
}

impl Fib {
    /// No routes at all.
    #[must_use]
    pub fn new() -> Self {
        Self {
            vrfs: Vec::new(),
            adjacencies: Adjacencies::new(),
        }
    }

    /// What happens to packets for `destination`.
    #[must_use]
    #[inline]
    pub fn lookup_v4(&self, vrf: VrfId, destination: Ipv4Addr) -> AdjacencyId {
        let vrf = self.vrf(vrf);
        vrf.map_or(AdjacencyId::NO_ROUTE, |vrf| {
            vrf.v4.table.lookup(u32::from(destination))
        })
    }

    /// What happens to packets for `destination`.
    #[must_use]
    #[inline]
    pub fn lookup_v6(&self, vrf: VrfId, destination: Ipv6Addr) -> AdjacencyId {
        let vrf = self.vrf(vrf);
        vrf.map_or(AdjacencyId::NO_ROUTE, |vrf| {
            vrf.v6.table.lookup(u128::from(destination))
        })
    }

    /// What happens to packets for `destination`, of either family.
    #[must_use]
    #[inline]
    pub fn lookup(&self, vrf: VrfId, destination: IpAddr) -> AdjacencyId {
        match destination {
            IpAddr::V4(destination) => self.lookup_v4(vrf, destination),
            IpAddr::V6(destination) => self.lookup_v6(vrf, destination),
        }
    }

    /// Looks up many destinations, which takes less time than one after the other when the table is
    /// larger than the processor's caches. The shorter of the two decides how many.
    pub fn lookup_burst_v4(
        &self,
        vrf: VrfId,
        destinations: impl IntoIterator<Item = Ipv4Addr>,
        found: &mut [AdjacencyId],
    ) {
        match self.vrf(vrf) {
            Some(vrf) => {
                let keys = destinations.into_iter().map(u32::from);
                vrf.v4.table.lookup_burst(keys, found);
            }
            None => found.fill(AdjacencyId::NO_ROUTE),
        }
    }

    /// As [`Self::lookup_burst_v4`], for IPv6.
    pub fn lookup_burst_v6(
        &self,
        vrf: VrfId,
        destinations: impl IntoIterator<Item = Ipv6Addr>,
        found: &mut [AdjacencyId],
    ) {
        match self.vrf(vrf) {
            Some(vrf) => {
                let keys = destinations.into_iter().map(u128::from);
                vrf.v6.table.lookup_burst(keys, found);
            }
            None => found.fill(AdjacencyId::NO_ROUTE),
        }
    }

    /// What a lookup's result stands for.
    #[must_use]
    #[inline]
    pub fn adjacency(&self, id: AdjacencyId) -> &Adjacency {
        self.adjacencies.entry(id)
    }

    /// Offers a route, in place of the same source's earlier one for the prefix. Host bits of
    /// `prefix` do not count. A VRF exists as long as it has a route.
    ///
    /// # Errors
    ///
    /// [`FibFull`]; then nothing has changed.
    pub fn insert(
        &mut self,
        vrf: VrfId,
        prefix: IpNet,
        source: Source,
        action: &Action,
    ) -> Result<(), FibFull> {
        let entry = slot(&mut self.vrfs, vrf).get_or_insert_with(|| Box::new(Vrf::new()));
        if entry.is_full_for(prefix) {
            return Err(FibFull::Prefixes);
        }
        let offer = self.adjacencies.acquire(source, action);
        let offer = offer.ok_or(FibFull::Actions)?;
        let all = &self.adjacencies;
        let change = match prefix {
            IpNet::V4(prefix) => entry.v4.offer(prefix_v4(prefix), offer, all),
            IpNet::V6(prefix) => entry.v6.offer(prefix_v6(prefix), offer, all),
        };
        self.release(change);
        Ok(())
    }

    /// Takes back the route that `source` offered for `prefix`. Returns whether there was one.
    pub fn remove(&mut self, vrf: VrfId, prefix: &IpNet, source: Source) -> bool {
        let Some(entry) = slot(&mut self.vrfs, vrf) else {
            return false;
        };
        let all = &self.adjacencies;
        let change = match prefix {
            IpNet::V4(prefix) => entry.v4.withdraw(prefix_v4(*prefix), source, all),
            IpNet::V6(prefix) => entry.v6.withdraw(prefix_v6(*prefix), source, all),
        };
        let removed = change.map(|change| self.release(change)).is_some();
        if self.vrf(vrf).is_some_and(Vrf::is_empty) {
            // An empty one has tables all the same.
            slot(&mut self.vrfs, vrf).take();
        }
        removed
    }

    fn release(&mut self, change: Change) {
        if let Some(adjacency) = change.released {
            self.adjacencies.release(adjacency);
        }
    }

    /// Removes all routes of a VRF.
    pub fn remove_vrf(&mut self, vrf: VrfId) {
        let gone = slot(&mut self.vrfs, vrf).take();
        for (_, offer, _) in gone.iter().flat_map(|vrf| vrf.iter()) {
            self.adjacencies.release(offer);
        }
    }

    /// The VRFs that have a route, in ascending order.
    pub fn vrfs(&self) -> impl Iterator<Item = VrfId> + '_ {
        self.vrfs_from(VrfId(0))
    }

    fn vrfs_from(&self, first: VrfId) -> impl Iterator<Item = VrfId> + '_ {
        let vrfs = self.vrfs.get(usize::from(first.0)..).unwrap_or_default();
        let ids = (first.0..=u16::MAX).map(VrfId).zip(vrfs);
        ids.filter_map(|(id, vrf)| vrf.as_ref().map(|_| id))
    }

    /// All routes of a VRF, IPv4 before IPv6, in the order of prefixes; of several for one prefix
    /// the best first.
    pub fn routes(&self, vrf: VrfId) -> impl Iterator<Item = RouteEntry<'_>> {
        let offers = self.vrf(vrf).into_iter().flat_map(Vrf::sorted);
        offers.map(|offer| self.route_entry(offer))
    }

    /// Some of the active routes of all VRFs, in no certain order. A route may come again when the
    /// table has grown between two pages; the later one is the newer.
    #[must_use]
    pub fn page(&self, cursor: Option<RouteCursor>) -> Page<Route, RouteCursor> {
        let mut rows = Vec::new();
        let next = self.visit(cursor, |vrf, (prefix, offer, active)| {
            if active {
                rows.push(self.active_route(vrf, prefix, offer));
            }
        });
        Page { rows, next }
    }

    /// Tells `row` the offers for a [page](crate::page::PAGE) of prefixes, as [`Self::page`] reads
    /// them; returns where the next page begins.
    fn visit(
        &self,
        cursor: Option<RouteCursor>,
        mut row: impl FnMut(VrfId, Offer<IpNet>),
    ) -> Option<RouteCursor> {
        let RouteCursor { vrf, ipv6, place } = cursor.unwrap_or_default();
        let present = self.vrfs_from(vrf).next()?;
        let (ipv6, place) = match present == vrf {
            true => (ipv6, place),
            false => Default::default(),
        };
        let vrf = present;
        let left = self.vrf(vrf).and_then(|routes| match ipv6 {
            false => routes.v4.rib.page(place, |(prefix, offer, active)| {
                row(vrf, (net_v4(prefix), offer, active));
            }),
            true => routes.v6.rib.page(place, |(prefix, offer, active)| {
                row(vrf, (net_v6(prefix), offer, active));
            }),
        });
        let following = || match ipv6 {
            false => Some((vrf, true)),
            true => Some((VrfId(vrf.0.checked_add(1)?), false)),
        };
        match left {
            Some(place) => Some(RouteCursor { vrf, ipv6, place }),
            None => following().map(|(vrf, ipv6)| RouteCursor {
                vrf,
                ipv6,
                place: Place::default(),
            }),
        }
    }

    /// The best of the routes for `destination` whose action is `fit`, found in the RIB: a search
    /// through all lengths of prefixes, where a lookup takes a few steps.
    fn best_fit(
        &self,
        vrf: VrfId,
        destination: IpAddr,
        fit: impl Fn(&Action) -> bool,
    ) -> AdjacencyId {
        let fit = |offer: &AdjacencyId| fit(self.adjacency(*offer).action());
        let found = self.vrf(vrf).and_then(|routes| match destination {
            IpAddr::V4(host) => routes.v4.rib.offers_for(prefix_v4(host.into())).find(fit),
            IpAddr::V6(host) => routes.v6.rib.offers_for(prefix_v6(host.into())).find(fit),
        });
        found.unwrap_or(AdjacencyId::NO_ROUTE)
    }

    fn active_route(&self, vrf: VrfId, prefix: IpNet, best: AdjacencyId) -> Route {
        let adjacency = self.adjacency(best);
        Route {
            vrf,
            prefix,
            source: adjacency.source(),
            action: adjacency.action().clone(),
        }
    }

    fn route_entry(&self, (prefix, offer, active): Offer<IpNet>) -> RouteEntry<'_> {
        let adjacency = self.adjacency(offer);
        RouteEntry {
            prefix,
            source: adjacency.source(),
            action: adjacency.action(),
            active,
        }
    }

    /// Octets of heap memory in use.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let mut memory = Memory {
            adjacencies: self.adjacencies.mem_size(),
            ..Memory::default()
        };
        for vrf in self.vrfs.iter().flatten() {
            memory.rib += vrf.v4.rib.mem_size() + vrf.v6.rib.mem_size();
            memory.table += vrf.v4.table.mem_size() + vrf.v6.table.mem_size();
        }
        memory
    }

    #[inline]
    fn vrf(&self, vrf: VrfId) -> Option<&Vrf> {
        self.vrfs.get(usize::from(vrf.0))?.as_deref()
    }
}

fn slot(vrfs: &mut Vec<Option<Box<Vrf>>>, vrf: VrfId) -> &mut Option<Box<Vrf>> {
    let index = usize::from(vrf.0);
    if vrfs.len() <= index {
        vrfs.resize_with(index + 1, || None);
    }
    &mut vrfs[index]
}

impl core::fmt::Debug for Fib {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let prefixes = |vrf: VrfId| {
            self.vrf(vrf)
                .map(|vrf| (vrf.v4.rib.len(), vrf.v6.rib.len()))
        };
        let vrfs = self.vrfs().map(|vrf| (vrf, prefixes(vrf)));
        f.debug_map().entries(vrfs).finish()
    }
}

#[cfg(test)]
mod tests;
