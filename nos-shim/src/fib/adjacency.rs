//! Actions, each stored once and named by a small number.

use hashbrown::HashMap;

use super::ecmp::{self, BUCKETS};
use super::route::{Action, NextHop};

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
    action: Action,
    stamp: u32,
    routes: u32,
    /// Only where there is a choice.
    buckets: Option<Box<[u8; BUCKETS]>>,
}

impl Adjacency {
    fn new(action: Action, stamp: u32) -> Self {
        let buckets = match &action {
            Action::Via(hops) if hops.as_slice().len() > 1 => Some(ecmp::buckets(hops.as_slice())),
            _ => None,
        };
        Self {
            action,
            stamp,
            routes: 0,
            buckets,
        }
    }

    /// What to do.
    #[must_use]
    #[inline]
    pub fn action(&self) -> &Action {
        &self.action
    }

    /// Changes whenever the id comes to mean another action: what was cached under the id together
    /// with another stamp no longer holds.
    #[must_use]
    #[inline]
    pub fn stamp(&self) -> u32 {
        self.stamp
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
    ids: HashMap<Action, AdjacencyId, foldhash::fast::RandomState>,
    free: Vec<AdjacencyId>,
}

impl Adjacencies {
    pub(super) fn new() -> Self {
        let mut none = Self {
            entries: Vec::new(),
            ids: HashMap::default(),
            free: Vec::new(),
        };
        none.acquire(&Action::NoRoute);
        none
    }

    /// The adjacency named `id`; that of no route, if the id is unknown.
    #[inline]
    pub(super) fn entry(&self, id: AdjacencyId) -> &Adjacency {
        let known = self.entries.get(id.index());
        // The first entry is made by `new` and is never released.
        known.unwrap_or_else(|| &self.entries[0])
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Counts one more route with this action. `None` when there are too many different ones.
    pub(super) fn acquire(&mut self, action: &Action) -> Option<AdjacencyId> {
        let id = match self.ids.get(action) {
            Some(&id) => id,
            None => self.add(action)?,
        };
        self.entries[id.index()].routes += 1;
        Some(id)
    }

    fn add(&mut self, action: &Action) -> Option<AdjacencyId> {
        let id = if let Some(id) = self.free.pop() {
            let entry = &mut self.entries[id.index()];
            *entry = Adjacency::new(action.clone(), entry.stamp.wrapping_add(1));
            id
        } else {
            let next = u32::try_from(self.entries.len()).ok();
            let id = AdjacencyId(next.filter(|&next| next < AdjacencyId::LIMIT)?);
            self.entries.push(Adjacency::new(action.clone(), 0));
            id
        };
        self.ids.insert(action.clone(), id);
        Some(id)
    }

    /// Counts one route less. The last one frees the id for another action.
    pub(super) fn release(&mut self, id: AdjacencyId) {
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return;
        };
        entry.routes -= 1;
        if entry.routes == 0 {
            self.ids.remove(&entry.action);
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
        let id = all.acquire(&action).unwrap();
        assert_eq!(all.acquire(&action), Some(id));
        let stamp = all.entry(id).stamp();
        all.release(id);
        assert_eq!(all.acquire(&action), Some(id));
        all.release(id);
        all.release(id);
        let other = Action::Local(LocalAddressId(1));
        assert_eq!(all.acquire(&other), Some(id), "the id is free again");
        assert_eq!(all.entry(id).action(), &other);
        assert_ne!(all.entry(id).stamp(), stamp, "and says so");
    }

    #[test]
    fn an_unknown_id_has_no_route() {
        let all = Adjacencies::new();
        assert_eq!(all.entry(AdjacencyId(77)).action(), &Action::NoRoute);
        assert_eq!(all.entry(AdjacencyId::NO_ROUTE).action(), &Action::NoRoute);
    }
}
