//! Every route that was offered, of one VRF and address family: the source of truth.
//!
//! Forwarding never looks here, so it need not be searched by address: a hash table of prefixes
//! takes half the memory of a trie, and a change reaches its entry at once instead of walking from
//! node to node. What a trie would know, it has to find out: which prefix covers another, by asking
//! for one length after the other when a prefix goes, and the order of prefixes, by sorting when
//! somebody wants to see it.
//!
//! The table is read in pages by the place of its entries. They keep their places until the table
//! grows or is cleaned up for more; then reading begins anew ([`Rib::page`]).

use core::cmp::Ordering;
use core::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::hash_table::Entry;
use hashbrown::{HashMap, HashTable};

use super::adjacency::{Adjacencies, AdjacencyId};
use super::route::Source;
use super::table::Key;
use crate::page::{PAGE, PLACES};

/// The most prefixes of one family that a VRF holds.
pub const MAX_PREFIXES: usize = 1 << 22;

/// Lengths that a prefix of either family may have.
const LENGTHS: usize = 129;

/// The first `len` bits of an address. The other bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Prefix<K> {
    pub(super) key: K,
    pub(super) len: u8,
}

impl<K: Key> Prefix<K> {
    fn truncated(self, len: u8) -> Self {
        Self {
            key: self.key.truncated(u32::from(len)),
            len,
        }
    }
}

/// For which destinations, what happens to them, and whether it is the best of its prefix.
pub(super) type Offer<P> = (P, AdjacencyId, bool);

/// What a change of offers means for forwarding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// The adjacency of the offer that was replaced or withdrawn.
    pub(super) released: Option<AdjacencyId>,
    /// What now is best for the prefix, if another than before.
    pub(super) best: Best,
}

/// See [`Change::best`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Best {
    /// As before.
    Same,
    /// Another.
    Now(AdjacencyId),
    /// Nothing is offered for the prefix any more.
    Gone,
}

/// Prefixes and offers. Nearly every prefix has one offer, so only the best stands in the table.
#[derive(Clone)]
pub(super) struct Rib<K: Key> {
    best: HashTable<Held<K>>,
    /// The other offers of prefixes with more than one, best first.
    others: HashMap<Prefix<K>, Vec<AdjacencyId>, RandomState>,
    hasher: RandomState,
    /// How many prefixes of each length there are.
    lengths: [u32; LENGTHS],
    /// How often all entries have got other places.
    moves: u64,
}

/// Where a page of prefixes begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    bucket: usize,
    moves: u64,
}

/// A prefix and its best offer, in as few octets as possible.
///
/// ```text
/// adjacency, which knows the source (23 bits) · whether there are others (1 bit) · length (8 bits)
/// ```
#[derive(Clone, Copy)]
struct Held<K: Key> {
    key: K::Packed,
    word: u32,
}

impl<K: Key> Held<K> {
    fn new(prefix: Prefix<K>, best: AdjacencyId, others: bool) -> Self {
        debug_assert!(best.0 < AdjacencyId::LIMIT);
        Self {
            key: prefix.key.pack(),
            word: best.0 << 9 | u32::from(others) << 8 | u32::from(prefix.len),
        }
    }

    fn prefix(&self) -> Prefix<K> {
        let [len, ..] = self.word.to_le_bytes();
        let key = K::unpack(self.key);
        Prefix { key, len }
    }

    fn best(&self) -> AdjacencyId {
        AdjacencyId(self.word >> 9)
    }

    fn has_others(&self) -> bool {
        self.word & 1 << 8 != 0
    }
}

impl<K: Key> Rib<K> {
    pub(super) fn new() -> Self {
        Self {
            best: HashTable::new(),
            others: HashMap::default(),
            hasher: RandomState::default(),
            lengths: [0; LENGTHS],
            moves: 0,
        }
    }

    /// How many prefixes have a route.
    pub(super) fn len(&self) -> usize {
        self.best.len()
    }

    /// Whether there is no room for one more prefix, and this would be one.
    pub(super) fn is_full_for(&self, prefix: Prefix<K>) -> bool {
        self.len() >= MAX_PREFIXES && self.get(prefix).is_none()
    }

    /// Takes an offer, in place of the same source's earlier one.
    pub(super) fn offer(
        &mut self,
        prefix: Prefix<K>,
        offer: AdjacencyId,
        all: &Adjacencies,
    ) -> Change {
        // Full: it will make room for the entry first.
        self.moves += u64::from(self.best.len() == self.best.capacity());
        let hasher = &self.hasher;
        let hash = hasher.hash_one(prefix);
        let same = |held: &Held<K>| held.prefix() == prefix;
        let rehash = |held: &Held<K>| hasher.hash_one(held.prefix());
        let mut entry = match self.best.entry(hash, same, rehash) {
            Entry::Vacant(vacant) => {
                vacant.insert(Held::new(prefix, offer, false));
                self.lengths[usize::from(prefix.len)] += 1;
                return Change {
                    released: None,
                    best: Best::Now(offer),
                };
            }
            Entry::Occupied(occupied) => occupied,
        };
        let held = entry.get_mut();
        let (old, others) = (held.best(), held.has_others());
        let (first, second) = match all.source(offer).cmp(&all.source(old)) {
            Ordering::Less => (offer, old),
            Ordering::Greater => (old, offer),
            Ordering::Equal => {
                *held = Held::new(prefix, offer, others);
                return Change {
                    released: Some(old),
                    best: changed(old, offer),
                };
            }
        };
        *held = Held::new(prefix, first, true);
        Change {
            released: put(self.others.entry(prefix).or_default(), second, all),
            best: changed(old, first),
        }
    }

    /// Takes back what `source` offered; `None` if it offered nothing.
    pub(super) fn withdraw(
        &mut self,
        prefix: Prefix<K>,
        source: Source,
        all: &Adjacencies,
    ) -> Option<Change> {
        let hash = self.hasher.hash_one(prefix);
        let same = |held: &Held<K>| held.prefix() == prefix;
        let mut entry = self.best.find_entry(hash, same).ok()?;
        let held = entry.get_mut();
        let old = held.best();
        let is_old = all.source(old) == source;
        if !held.has_others() {
            is_old.then(|| entry.remove())?;
            self.lengths[usize::from(prefix.len)] -= 1;
            return Some(Change {
                released: Some(old),
                best: Best::Gone,
            });
        }
        let others = self.others.get_mut(&prefix)?;
        let (gone, first) = if is_old {
            (old, others.remove(0))
        } else {
            let at = others
                .iter()
                .position(|&other| all.source(other) == source)?;
            (others.remove(at), old)
        };
        let more = !others.is_empty();
        *held = Held::new(prefix, first, more);
        if !more {
            self.others.remove(&prefix);
        }
        Some(Change {
            released: Some(gone),
            best: changed(old, first),
        })
    }

    /// The longest shorter prefix with a route that covers `prefix`.
    pub(super) fn cover(&self, prefix: Prefix<K>) -> Option<(u8, AdjacencyId)> {
        let shorter = (0..prefix.len).rev();
        let used = shorter.filter(|&len| self.lengths[usize::from(len)] > 0);
        used.map(|len| prefix.truncated(len))
            .find_map(|cover| Some((cover.len, self.get(cover)?.best())))
    }

    /// The offers for a host's prefixes, those of the longest first, the best of each first.
    pub(super) fn offers_for(&self, host: Prefix<K>) -> impl Iterator<Item = AdjacencyId> + '_ {
        let lengths = (0..=host.len).rev();
        let used = lengths.filter(|&len| self.lengths[usize::from(len)] > 0);
        let held = used.filter_map(move |len| self.get(host.truncated(len)));
        held.flat_map(|held| self.offers(held))
            .map(|(_, offer, _)| offer)
    }

    fn get(&self, prefix: Prefix<K>) -> Option<&Held<K>> {
        let hash = self.hasher.hash_one(prefix);
        self.best.find(hash, |held| held.prefix() == prefix)
    }

    /// All offers in any order, the best of each prefix first.
    pub(super) fn iter(&self) -> impl Iterator<Item = Offer<Prefix<K>>> + '_ {
        self.best.iter().flat_map(|held| self.offers(held))
    }

    /// All offers in the order of prefixes, the best of each prefix first.
    pub(super) fn sorted(&self) -> impl Iterator<Item = Offer<Prefix<K>>> + '_ {
        let mut order: Vec<_> = self.best.iter().collect();
        order.sort_unstable_by_key(|held| held.prefix());
        order.into_iter().flat_map(|held| self.offers(held))
    }

    /// Tells `row` the offers for at most [`PAGE`] prefixes, in any order, from `from` on; returns
    /// where the next page begins. When entries have moved since the last page that is at the start:
    /// then prefixes come again, but none that stayed is left out.
    pub(super) fn page(&self, from: Place, mut row: impl FnMut(Offer<Prefix<K>>)) -> Option<Place> {
        let first = if from.moves == self.moves {
            from.bucket
        } else {
            0
        };
        let end = self.best.num_buckets().min(first + PLACES);
        let (mut bucket, mut rows) = (first, 0);
        while bucket < end && rows < PAGE {
            if let Some(held) = self.best.get_bucket(bucket) {
                self.offers(held).for_each(&mut row);
                rows += 1;
            }
            bucket += 1;
        }
        let moves = self.moves;
        (bucket < self.best.num_buckets()).then_some(Place { bucket, moves })
    }

    fn offers(&self, held: &Held<K>) -> impl Iterator<Item = Offer<Prefix<K>>> + '_ {
        let prefix = held.prefix();
        let others = held.has_others().then(|| self.others.get(&prefix));
        let others = others.flatten().into_iter().flatten();
        let best = core::iter::once((prefix, held.best(), true));
        best.chain(others.map(move |&other| (prefix, other, false)))
    }

    /// Octets of heap memory.
    pub(super) fn mem_size(&self) -> usize {
        let others = self.others.values();
        self.best.allocation_size()
            + self.others.allocation_size()
            + others
                .map(|other| other.capacity() * size_of::<AdjacencyId>())
                .sum::<usize>()
    }
}

fn changed(old: AdjacencyId, new: AdjacencyId) -> Best {
    if old == new {
        Best::Same
    } else {
        Best::Now(new)
    }
}

/// Puts `offer` where it belongs among `others`. Returns the adjacency of the same source's
/// earlier one.
fn put(
    others: &mut Vec<AdjacencyId>,
    offer: AdjacencyId,
    all: &Adjacencies,
) -> Option<AdjacencyId> {
    let source = all.source(offer);
    match others.binary_search_by_key(&source, |&other| all.source(other)) {
        Ok(at) => Some(core::mem::replace(&mut others[at], offer)),
        Err(at) => {
            others.insert(at, offer);
            None
        }
    }
}
