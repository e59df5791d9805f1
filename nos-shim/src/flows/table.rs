//! Flows, found by key, bounded in number, forgotten when idle.
//!
//! # Theory of operation
//!
//! All memory is reserved when the table is made, and becomes resident as flows come. A flow sits
//! in a slot; an [`Index`] leads from its key there. From the slot hang two lists:
//!
//! ```text
//! Index: hash(key) ──► slot ◄── owner's list: oldest ... newest
//!                       ▲
//!                       └────── timer wheel: the tick at which to look whether it is idle
//! ```
//!
//! Using a flow writes the time into its slot and nothing else. Both lists find out later: the
//! wheel puts a flow that has been used back for later, and an owner at its bound that must give up
//! its oldest flow lets one that has been used pass once, to the end of the list. Each such detour
//! was paid for by a use, so on average every operation takes constant time.
//!
//! A flow that has been idle for long enough is not found any more, at once. Its slot is free up to
//! a sixteenth of that time later, when [`FlowTable::pop_expired`] takes it.
//!
//! # Alone
//!
//! Owners, keys and values are whatever its user has.
//!
//! ```
//! use nos_shim::flows::{FlowTable, Limits, NotInserted};
//! use nos_shim::time::{Duration, Instant};
//!
//! let idle = Duration::from_millis(30_000);
//! let limits = Limits { flows: 1000, per_owner: 1, idle };
//! let mut flows: FlowTable<&str, (u32, u16), u8> = FlowTable::new(limits);
//! let start = Instant::ZERO;
//! let flow = flows.insert("web", (0xc633_6407, 53), 7, start)?;
//! assert_eq!(flows.lookup(&(0xc633_6407, 53), start), Some((flow, &7)));
//! assert_eq!(flows.insert("web", (0xc633_6407, 54), 8, start), Err(NotInserted::OwnerFull));
//! assert_eq!(flows.lookup(&(0xc633_6407, 53), start + idle), None);
//! # Ok::<(), NotInserted>(())
//! ```

use core::hash::{BuildHasher, Hash};

use foldhash::quality::RandomState;

use super::wheel::{Bucket, Wheel};
use crate::index::Index;
use crate::links::{Links, List};
use crate::time::{Duration, Instant};

/// How many flows a table holds, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Flows in total; at most 2^31 are.
    pub flows: usize,
    /// Flows of one owner.
    pub per_owner: usize,
    /// A flow that is not used for so long is forgotten.
    pub idle: Duration,
}

/// A flow in a table, as long as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowId(pub(crate) u32);

/// An owner in a table, as long as it has flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnerSlot(u32);

/// What a table knows of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<O, K, V> {
    /// Whose it is.
    pub owner: O,
    /// By what it is found.
    pub key: K,
    /// What is found.
    pub value: V,
}

impl FlowId {
    /// Its index in tables beside the flow table. Below the number of flows that it can hold.
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Why a flow was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotInserted {
    /// There is one with this key, perhaps idle.
    Exists(FlowId),
    /// The owner has as many as it may have.
    OwnerFull,
    /// The table is full.
    TableFull,
}

#[derive(Debug)]
struct Slot<K, V> {
    key: K,
    value: V,
    used_at: Instant,
    owner: OwnerSlot,
    bucket: Bucket,
    /// Used since it was put at the end of its owner's list.
    used: bool,
}

#[derive(Debug)]
struct OwnerEntry<O> {
    owner: O,
    flows: List,
    count: usize,
}

/// Flows of owners `O`, found by `K`, with a value `V` each.
#[derive(Debug)]
pub struct FlowTable<O, K, V> {
    limits: Limits,
    hasher: RandomState,
    slots: Slab<Slot<K, V>>,
    index: Index,
    wheel: Wheel,
    owners: Slab<OwnerEntry<O>>,
    owner_index: Index,
    /// Of the owners' lists.
    links: Links,
}

impl<O: Copy + Eq + Hash, K: Copy + Eq + Hash, V> FlowTable<O, K, V> {
    /// A table within `limits`.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let flows = limits.flows.min(1 << 31);
        Self {
            limits: Limits { flows, ..limits },
            hasher: RandomState::default(),
            slots: Slab::new(flows),
            index: Index::new(flows),
            wheel: Wheel::new(limits.idle, flows),
            owners: Slab::new(flows),
            owner_index: Index::new(flows),
            links: Links::new(flows),
        }
    }

    /// How many flows there are, idle ones that have not been taken included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are no flows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is room for no more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len() >= self.limits.flows
    }

    /// How many flows `owner` has, idle ones that have not been taken included.
    #[must_use]
    pub fn count(&self, owner: O) -> usize {
        let entry = self
            .owner_slot(owner)
            .and_then(|slot| self.owners.get(slot.0));
        entry.map_or(0, |entry| entry.count)
    }

    /// The flow with this key that is not idle.
    #[must_use]
    #[inline]
    pub fn lookup(&self, key: &K, now: Instant) -> Option<(FlowId, &V)> {
        let id = self.find(key)?;
        let slot = self.slots.get(id.0)?;
        (now.since(slot.used_at) < self.limits.idle).then_some((id, &slot.value))
    }

    /// A flow, idle or not.
    #[must_use]
    pub fn get(&self, id: FlowId) -> Option<Flow<O, K, &V>> {
        let slot = self.slots.get(id.0)?;
        Some(Flow {
            owner: self.owners.get(slot.owner.0)?.owner,
            key: slot.key,
            value: &slot.value,
        })
    }

    /// Numbers of flows are below this.
    pub(super) fn places(&self) -> u32 {
        self.slots.places()
    }

    /// Whether a flow has not been used for so long that it is to be forgotten.
    #[must_use]
    pub fn is_idle(&self, id: FlowId, now: Instant) -> bool {
        let slot = self.slots.get(id.0);
        slot.is_none_or(|slot| now.since(slot.used_at) >= self.limits.idle)
    }

    /// Notes that a flow is used.
    #[inline]
    pub fn touch(&mut self, id: FlowId, now: Instant) {
        if let Some(slot) = self.slots.get_mut(id.0) {
            slot.used_at = now;
            slot.used = true;
        }
    }

    /// Inserts a flow, used `now`.
    ///
    /// # Errors
    ///
    /// [`NotInserted`]; nothing has changed.
    pub fn insert(
        &mut self,
        owner: O,
        key: K,
        value: V,
        now: Instant,
    ) -> Result<FlowId, NotInserted> {
        let hash = self.hasher.hash_one(key);
        if let Some(id) = self.find_hashed(hash, &key) {
            return Err(NotInserted::Exists(id));
        }
        let known = self.owner_slot(owner);
        let entry = known.and_then(|slot| self.owners.get(slot.0));
        if entry.map_or(0, |entry| entry.count) >= self.limits.per_owner {
            return Err(NotInserted::OwnerFull);
        }
        if self.is_full() {
            return Err(NotInserted::TableFull);
        }
        let owner = known.unwrap_or_else(|| self.add_owner(owner));
        let number = self.slots.next();
        let slot = Slot {
            key,
            value,
            used_at: now,
            owner,
            bucket: self.wheel.schedule(number, now + self.limits.idle, now),
            used: false,
        };
        self.slots.insert(slot);
        self.index.insert(hash, number);
        if let Some(entry) = self.owners.get_mut(owner.0) {
            self.links.push_back(&mut entry.flows, number);
            entry.count += 1;
        }
        Ok(FlowId(number))
    }

    /// Removes a flow.
    pub fn remove(&mut self, id: FlowId) -> Option<Flow<O, K, V>> {
        let bucket = self.slots.get(id.0)?.bucket;
        self.wheel.cancel(id.0, bucket);
        self.forget(id)
    }

    /// Any flow of `owner`, as long as it has some.
    #[must_use]
    pub fn any_of(&self, owner: O) -> Option<FlowId> {
        let entry = self.owners.get(self.owner_slot(owner)?.0)?;
        entry.flows.first().map(FlowId)
    }

    /// The flow of `owner` to give up first: the oldest, but each that has been used is let pass
    /// once.
    pub fn oldest_of(&mut self, owner: O) -> Option<FlowId> {
        let owner = self.owner_slot(owner)?;
        let entry = self.owners.get_mut(owner.0)?;
        loop {
            let first = entry.flows.first()?;
            let slot = self.slots.get_mut(first)?;
            if !core::mem::take(&mut slot.used) {
                return Some(FlowId(first));
            }
            self.links.remove(&mut entry.flows, first);
            self.links.push_back(&mut entry.flows, first);
        }
    }

    /// The oldest flow of all, if flows are never used again after they were inserted; else one
    /// that was inserted or looked at long ago.
    #[must_use]
    pub fn oldest(&self) -> Option<FlowId> {
        self.wheel.first().map(FlowId)
    }

    /// Removes a flow that is idle, and returns it with the identifier that it had. Call it until
    /// there is none, at [`Self::poll_at`] or later.
    pub fn pop_expired(&mut self, now: Instant) -> Option<(FlowId, Flow<O, K, V>)> {
        while let Some(number) = self.wheel.pop_due(now) {
            let id = FlowId(number);
            if self.is_idle(id, now) {
                return self.forget(id).map(|flow| (id, flow));
            }
            if let Some(slot) = self.slots.get_mut(number) {
                let deadline = slot.used_at + self.limits.idle;
                slot.bucket = self.wheel.schedule(number, deadline, now);
            }
        }
        None
    }

    /// When to call [`Self::pop_expired`] next.
    #[must_use]
    pub fn poll_at(&self) -> Option<Instant> {
        self.wheel.poll_at()
    }

    /// The number of a flow's owner.
    pub(crate) fn owner_of(&self, id: FlowId) -> Option<OwnerSlot> {
        self.slots.get(id.0).map(|slot| slot.owner)
    }

    /// Removes a flow that the wheel does not have any more.
    fn forget(&mut self, id: FlowId) -> Option<Flow<O, K, V>> {
        let Slot {
            key, value, owner, ..
        } = self.slots.remove(id.0)?;
        self.index.remove(self.hasher.hash_one(key), id.0);
        let entry = self.owners.get_mut(owner.0)?;
        self.links.remove(&mut entry.flows, id.0);
        entry.count -= 1;
        let name = entry.owner;
        if entry.count == 0 {
            self.owners.remove(owner.0);
            self.owner_index.remove(self.hasher.hash_one(name), owner.0);
        }
        Some(Flow {
            owner: name,
            key,
            value,
        })
    }

    /// The flow with this key, idle or not.
    pub(crate) fn find(&self, key: &K) -> Option<FlowId> {
        self.find_hashed(self.hasher.hash_one(key), key)
    }

    #[inline]
    fn find_hashed(&self, hash: u64, key: &K) -> Option<FlowId> {
        let is_it = |number| self.slots.get(number).is_some_and(|slot| slot.key == *key);
        self.index.find(hash, is_it).map(FlowId)
    }

    fn owner_slot(&self, owner: O) -> Option<OwnerSlot> {
        let is_it = |number| {
            let entry = self.owners.get(number);
            entry.is_some_and(|entry| entry.owner == owner)
        };
        let hash = self.hasher.hash_one(owner);
        self.owner_index.find(hash, is_it).map(OwnerSlot)
    }

    fn add_owner(&mut self, owner: O) -> OwnerSlot {
        let number = self.owners.insert(OwnerEntry {
            owner,
            flows: List::EMPTY,
            count: 0,
        });
        let hash = self.hasher.hash_one(owner);
        self.owner_index.insert(hash, number);
        OwnerSlot(number)
    }
}

impl OwnerSlot {
    /// Its index in tables beside the flow table. Below the number of flows that it can hold.
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }

    pub(super) fn new(number: u32) -> Self {
        Self(number)
    }

    pub(super) fn number(self) -> u32 {
        self.0
    }
}

/// Numbered places for a fixed number of values.
#[derive(Debug)]
pub(super) struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            places: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
        }
    }

    /// Places, free ones included.
    pub(super) fn places(&self) -> u32 {
        u32::try_from(self.places.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    #[inline]
    pub(super) fn get(&self, number: u32) -> Option<&T> {
        self.places.get(number as usize)?.as_ref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.places.get_mut(number as usize)?.as_mut()
    }

    /// The number that the next value will have.
    pub(super) fn next(&self) -> u32 {
        let new = || u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        self.free.last().copied().unwrap_or_else(new)
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        let number = self.next();
        match self.free.pop() {
            Some(number) => self.places[number as usize] = Some(value),
            None => self.places.push(Some(value)),
        }
        number
    }

    pub(super) fn remove(&mut self, number: u32) -> Option<T> {
        let value = self.places.get_mut(number as usize)?.take();
        if value.is_some() {
            self.free.push(number);
        }
        value
    }
}

#[cfg(test)]
mod tests;
