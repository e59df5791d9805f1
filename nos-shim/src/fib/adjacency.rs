//! Actions, each stored once for each source that offers it, and named by a small number.

use core::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::ecmp::{self, BUCKETS};
use super::route::{Action, NextHop, Source};

/// Names an action: an index into tables that whoever forwards packets keeps beside the FIB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdjacencyId(pub u32);

impl AdjacencyId {
    /// [`Action::NoRoute`], always.
    pub const NO_ROUTE: Self = Self(0);

    /// How many there can be: the forwarding table has 23 bits for them.
    pub(super) const LIMIT: u32 = 1 << 23;

    fn index(self) -> usize {
        self.0 as usize
    }
}

/// An action that some route has, or has had.
#[derive(Clone, Debug)]
pub struct Adjacency {
    source: Source,
    action: Action,
    routes: u32,
    /// Only where there is a choice.
    buckets: Option<Box<[u8; BUCKETS]>>,
}

impl Adjacency {
    fn new(source: Source, action: Action) -> Self {
        let buckets = match &action {
            Action::Via(hops) if hops.as_slice().len() > 1 => Some(ecmp::buckets(hops.as_slice())),
            _ => None,
        };
        Self {
            source,
            action,
            routes: 0,
            buckets,
        }
    }

    fn hash(&self, hasher: &RandomState) -> u64 {
        hasher.hash_one((self.source, &self.action))
    }

    /// Who offers the routes with this action.
    #[must_use]
    pub fn source(&self) -> Source {
        self.source
    }

    /// What to do.
    #[must_use]
    #[inline]
    pub fn action(&self) -> &Action {
        &self.action
    }

    /// Which of the next hops, in the order of [`super::NextHops::as_slice`], a flow takes. Zero
    /// where there is no choice.
    #[must_use]
    #[inline]
    pub fn choose(&self, flow_hash: u32) -> usize {
        match &self.buckets {
            Some(buckets) => usize::from(buckets[flow_hash as usize % BUCKETS]),
            None => 0,
        }
    }

    /// The next hop that a flow takes, if the action is [`Action::Via`].
    #[must_use]
    #[inline]
    pub fn next_hop(&self, flow_hash: u32) -> Option<NextHop> {
        match &self.action {
            Action::Via(hops) => hops.as_slice().get(self.choose(flow_hash)).copied(),
            _ => None,
        }
    }
}

/// All actions in use.
#[derive(Clone, Debug)]
pub(super) struct Adjacencies {
    entries: Vec<Adjacency>,
    /// Those with a route, by source and action.
    ids: HashTable<AdjacencyId>,
    hasher: RandomState,
    free: Vec<AdjacencyId>,
}

impl Adjacencies {
    pub(super) fn new() -> Self {
        let none = Adjacency::new(Source::Local, Action::NoRoute);
        Self {
            entries: vec![none],
            ids: HashTable::new(),
            hasher: RandomState::default(),
            free: Vec::new(),
        }
    }

    /// The adjacency named `id`; that of no route, if the id is unknown.
    #[inline]
    pub(super) fn entry(&self, id: AdjacencyId) -> &Adjacency {
        let known = self.entries.get(id.index());
        // The first entry is made by `new` and is never released.
        known.unwrap_or_else(|| &self.entries[0])
    }

    pub(super) fn source(&self, id: AdjacencyId) -> Source {
        self.entry(id).source
    }

    /// Counts one more route of this source with this action. `None` when there are too many
    /// different ones.
    pub(super) fn acquire(&mut self, source: Source, action: &Action) -> Option<AdjacencyId> {
        let hash = self.hasher.hash_one((source, action));
        let same = |id: &AdjacencyId| {
            let entry = &self.entries[id.index()];
            entry.source == source && entry.action == *action
        };
        let id = match self.ids.find(hash, same) {
            Some(&id) => id,
            None => self.add(hash, source, action)?,
        };
        self.entries[id.index()].routes += 1;
        Some(id)
    }

    fn add(&mut self, hash: u64, source: Source, action: &Action) -> Option<AdjacencyId> {
        let id = if let Some(id) = self.free.pop() {
            self.entries[id.index()] = Adjacency::new(source, action.clone());
            id
        } else {
            let next = u32::try_from(self.entries.len()).ok();
            let id = AdjacencyId(next.filter(|&next| next < AdjacencyId::LIMIT)?);
            self.entries.push(Adjacency::new(source, action.clone()));
            id
        };
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.ids
            .insert_unique(hash, id, |id| entries[id.index()].hash(hasher));
        Some(id)
    }

    /// Counts one route less. The last one frees the id for another action.
    pub(super) fn release(&mut self, id: AdjacencyId) {
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return;
        };
        entry.routes -= 1;
        if entry.routes == 0 {
            let hash = entry.hash(&self.hasher);
            if let Ok(entry) = self.ids.find_entry(hash, |&other| other == id) {
                entry.remove();
            }
            self.free.push(id);
        }
    }

    /// Octets of heap memory.
    pub(super) fn mem_size(&self) -> usize {
        let buckets = self.entries.iter().filter(|entry| entry.buckets.is_some());
        self.entries.capacity() * size_of::<Adjacency>()
            + self.ids.allocation_size()
            + self.free.capacity() * size_of::<AdjacencyId>()
            + buckets.count() * BUCKETS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ident::{LocalAddressId, UplinkId};

    #[test]
    fn equal_actions_share_an_id_until_the_last_route_goes() {
        let mut all = Adjacencies::new();
        let action = Action::Connected(UplinkId(3));
        let id = all.acquire(Source::Connected, &action).unwrap();
        assert_eq!(all.acquire(Source::Connected, &action), Some(id));
        let by_hand = Source::Static { metric: 0 };
        assert_ne!(all.acquire(by_hand, &action), Some(id));
        all.release(id);
        assert_eq!(all.acquire(Source::Connected, &action), Some(id));
        all.release(id);
        all.release(id);
        let other = Action::Local(LocalAddressId(1));
        assert_eq!(
            all.acquire(Source::Connected, &other),
            Some(id),
            "the id is free again"
        );
        assert_eq!(all.entry(id).action(), &other);
    }

    #[test]
    fn an_unknown_id_has_no_route() {
        let all = Adjacencies::new();
        assert_eq!(all.entry(AdjacencyId(77)).action(), &Action::NoRoute);
        assert_eq!(all.entry(AdjacencyId::NO_ROUTE).action(), &Action::NoRoute);
    }
}
