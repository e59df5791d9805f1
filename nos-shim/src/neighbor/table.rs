//! Neighbors, found by address, bounded in number, each in the list that says what is due.
//!
//! All waits of one kind take equally long, so each list is in order of time, and what is due first
//! is at the front of one of three.

use core::hash::BuildHasher;

use foldhash::quality::RandomState;

use super::entry::{Entry, Key, RETRANSMIT};
use super::{NeighborId, NeighborState};
use crate::index::Index;
use crate::links::{Links, List};
use crate::share::{Account, Shares, Standing};
use crate::time::{Duration, Instant};

/// For how long failed neighbors are shown.
pub(super) const KEEP_FAILED: Duration = Duration::from_secs(60);

/// Which list an entry is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    /// Asked for; in order of the last question.
    Unresolved,
    /// Probed; in order of the last question.
    Probed,
    /// In order of use.
    Delayed,
    /// In order of confirmation.
    Reachable,
    /// In order of becoming so.
    Stale,
    /// In order of becoming so.
    Failed,
}

const LISTS: usize = 6;

/// The lists with deadlines.
const TIMED: [Which; 3] = [Which::Unresolved, Which::Probed, Which::Delayed];

impl Which {
    fn of(entry: &Entry) -> Option<Self> {
        Some(match entry.state? {
            NeighborState::Incomplete => Self::Unresolved,
            NeighborState::Probe => Self::Probed,
            NeighborState::Delay => Self::Delayed,
            NeighborState::Reachable => Self::Reachable,
            NeighborState::Stale => Self::Stale,
            NeighborState::Failed => Self::Failed,
        })
    }
}

#[derive(Debug)]
pub(super) struct Table {
    capacity: usize,
    hasher: RandomState,
    index: Index,
    entries: Vec<Entry>,
    free: Vec<u32>,
    links: Links,
    lists: [List; LISTS],
    /// Of those lists' entries that are in [`Which::Unresolved`], once more by account.
    unresolved_links: Links,
    unresolved_of: Vec<List>,
    unresolved: Shares,
    /// Counts changes of entries.
    version: u64,
}

impl Table {
    /// A table of up to `capacity` neighbors, with a book of those that do not answer yet in which
    /// one owner has up to `unresolved`.
    pub(super) fn new(capacity: usize, unresolved: usize) -> Self {
        Self {
            capacity,
            hasher: RandomState::default(),
            index: Index::new(capacity),
            entries: Vec::with_capacity(capacity),
            free: Vec::new(),
            links: Links::new(capacity),
            lists: [List::EMPTY; LISTS],
            unresolved_links: Links::new(capacity),
            unresolved_of: Vec::new(),
            unresolved: Shares::for_one(unresolved),
            version: 0,
        }
    }

    #[inline]
    pub(super) fn find(&self, key: Key) -> Option<u32> {
        let hash = self.hasher.hash_one(key.bits());
        let found = |slot| self.entries.get(slot as usize).map(|entry| entry.key);
        self.index.find(hash, |slot| found(slot) == Some(key))
    }

    /// The slot of a neighbor that is still there.
    #[inline]
    pub(super) fn slot(&self, id: NeighborId) -> Option<u32> {
        let entry = self.entries.get(id.slot as usize)?;
        (entry.generation == id.generation).then_some(id.slot)
    }

    #[inline]
    pub(super) fn entry(&self, slot: u32) -> &Entry {
        &self.entries[slot as usize]
    }

    pub(super) fn id(&self, slot: u32) -> NeighborId {
        let generation = self.entry(slot).generation;
        NeighborId { slot, generation }
    }

    /// Changes whenever what is known of a neighbor may have changed.
    #[inline]
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// An entry, for changes that concern its queue alone.
    pub(super) fn entry_mut(&mut self, slot: u32) -> &mut Entry {
        &mut self.entries[slot as usize]
    }

    /// Changes an entry, and puts it at the end of the list where it belongs then; if nothing was
    /// changed that lists go by, it stays where it is.
    pub(super) fn change<R>(&mut self, slot: u32, change: impl FnOnce(&mut Entry) -> R) -> R {
        let order = |entry: &Entry| (Which::of(entry), entry.deadline, entry.since);
        let entry = &mut self.entries[slot as usize];
        let before = order(entry);
        let result = change(entry);
        let after = order(entry);
        self.version += 1;
        if after != before {
            self.unlink(slot, before.0);
            self.link(slot, after.0);
        }
        result
    }

    fn link(&mut self, slot: u32, to: Option<Which>) {
        let Some(to) = to else { return };
        self.links.push_back(&mut self.lists[to as usize], slot);
        if to == Which::Unresolved {
            let account = self.entry(slot).account;
            if self.unresolved_of.len() <= account.index() {
                self.unresolved_of.resize(account.index() + 1, List::EMPTY);
            }
            let of_account = &mut self.unresolved_of[account.index()];
            self.unresolved_links.push_back(of_account, slot);
            self.unresolved.charge(account);
        }
    }

    fn unlink(&mut self, slot: u32, from: Option<Which>) {
        let Some(from) = from else { return };
        self.links.remove(&mut self.lists[from as usize], slot);
        if from == Which::Unresolved {
            let account = self.entry(slot).account;
            let of_account = &mut self.unresolved_of[account.index()];
            self.unresolved_links.remove(of_account, slot);
            self.unresolved.release(account);
        }
    }

    /// A new entry; `None` when the table is full.
    pub(super) fn insert(&mut self, key: Key) -> Option<u32> {
        let slot = self.vacancy()?;
        self.entry_mut(slot).key = key;
        self.index.insert(self.hasher.hash_one(key.bits()), slot);
        Some(slot)
    }

    fn vacancy(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        let slot = u32::try_from(self.entries.len()).ok();
        let slot = slot.filter(|_| self.entries.len() < self.capacity)?;
        self.entries.push(Entry::new(Key::NONE, 0));
        Some(slot)
    }

    /// Removes an entry, whose queue is empty.
    pub(super) fn remove(&mut self, slot: u32) {
        self.version += 1;
        self.unlink(slot, Which::of(self.entry(slot)));
        let Entry {
            key, generation, ..
        } = *self.entry(slot);
        self.index.remove(self.hasher.hash_one(key.bits()), slot);
        *self.entry_mut(slot) = Entry::new(Key::NONE, generation.wrapping_add(1));
        self.free.push(slot);
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty() && self.entries.len() >= self.capacity
    }

    /// Neighbors that have not answered yet.
    #[cfg(test)]
    pub(super) fn unresolved(&self) -> usize {
        self.unresolved.held()
    }

    /// Whether an owner may make us ask for one more.
    pub(super) fn standing(&self, account: Account) -> Standing {
        self.unresolved.standing(account)
    }

    fn first(&self, which: Which) -> Option<u32> {
        self.lists[which as usize].first()
    }

    /// The neighbor that is missed least: never one that is reachable or in use, nor one
    /// that has not had `patience` to answer.
    pub(super) fn dispensable(&self, patience: Duration, now: Instant) -> Option<u32> {
        let idle = |&slot: &u32| now >= self.entry(slot).good_until;
        self.first(Which::Failed)
            .or_else(|| self.first(Which::Stale))
            .or_else(|| self.first(Which::Reachable).filter(idle))
            .or_else(|| self.unanswering(patience, now))
    }

    /// The neighbor that was asked for longest ago, if it has had `patience` to answer.
    fn unanswering(&self, patience: Duration, now: Instant) -> Option<u32> {
        self.has_had(self.first(Which::Unresolved)?, patience, now)
    }

    /// The same among those for which a packet of `account` made us ask.
    pub(super) fn unanswering_of(
        &self,
        account: Account,
        patience: Duration,
        now: Instant,
    ) -> Option<u32> {
        let of_account = self.unresolved_of.get(account.index())?;
        self.has_had(of_account.first()?, patience, now)
    }

    fn has_had(&self, slot: u32, patience: Duration, now: Instant) -> Option<u32> {
        let left = RETRANSMIT.saturating_sub(patience);
        (now + left >= self.entry(slot).deadline).then_some(slot)
    }

    /// A neighbor that failed so long ago that it is to be forgotten.
    pub(super) fn failed_long_ago(&self, now: Instant) -> Option<u32> {
        let slot = self.first(Which::Failed)?;
        (now.since(self.entry(slot).since) >= KEEP_FAILED).then_some(slot)
    }

    /// When something is due.
    pub(super) fn poll_at(&self) -> Option<Instant> {
        let firsts = TIMED.iter().filter_map(|&which| self.first(which));
        firsts.map(|slot| self.entry(slot).deadline).min()
    }

    /// An entry whose deadline has passed.
    pub(super) fn due(&self, now: Instant) -> Option<u32> {
        let mut firsts = TIMED.iter().filter_map(|&which| self.first(which));
        firsts.find(|&slot| now >= self.entry(slot).deadline)
    }

    /// The slots of all entries.
    pub(super) fn slots(&self) -> impl Iterator<Item = u32> + use<> {
        0..u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    /// All entries, and empty slots.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }
}
