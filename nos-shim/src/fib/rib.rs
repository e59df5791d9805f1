//! Every route that was offered, of one VRF and address family: the source of truth.

use core::cmp::Ordering;
use core::hash::Hash;

use hashbrown::HashMap;
use prefix_trie::{Prefix, PrefixMap, map::Entry};

use super::adjacency::{Adjacencies, AdjacencyId};
use super::route::Source;

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

/// Prefixes and offers. Nearly every prefix has one offer, so only the best stands in the trie.
#[derive(Clone)]
pub(super) struct Rib<P: Prefix> {
    best: PrefixMap<P, Held>,
    /// The other offers of prefixes with more than one, best first.
    others: HashMap<P, Vec<AdjacencyId>, foldhash::fast::RandomState>,
}

/// The best offer, in as few octets as possible: its adjacency, which knows the source, and in the
/// lowest bit whether there are others.
#[derive(Clone, Copy)]
struct Held(u32);

impl Held {
    fn new(best: AdjacencyId, others: bool) -> Self {
        Self(best.0 << 1 | u32::from(others))
    }

    fn best(self) -> AdjacencyId {
        AdjacencyId(self.0 >> 1)
    }

    fn has_others(self) -> bool {
        self.0 & 1 == 1
    }
}

impl<P: Prefix + Copy + Eq + Hash> Rib<P> {
    pub(super) fn new() -> Self {
        Self {
            best: PrefixMap::new(),
            others: HashMap::default(),
        }
    }

    /// How many prefixes have a route.
    pub(super) fn len(&self) -> usize {
        self.best.len()
    }

    /// Takes an offer, in place of the same source's earlier one. `prefix` must have no host bits.
    pub(super) fn offer(&mut self, prefix: P, offer: AdjacencyId, all: &Adjacencies) -> Change {
        let held = match self.best.entry(prefix) {
            Entry::Vacant(vacant) => {
                vacant.insert(Held::new(offer, false));
                return Change {
                    released: None,
                    best: Best::Now(offer),
                };
            }
            Entry::Occupied(occupied) => occupied,
        };
        let (old, others) = (held.get().best(), held.get().has_others());
        let (first, second) = match all.source(offer).cmp(&all.source(old)) {
            Ordering::Less => (offer, old),
            Ordering::Greater => (old, offer),
            Ordering::Equal => {
                held.insert(Held::new(offer, others));
                return Change {
                    released: Some(old),
                    best: changed(old, offer),
                };
            }
        };
        held.insert(Held::new(first, true));
        Change {
            released: put(self.others.entry(prefix).or_default(), second, all),
            best: changed(old, first),
        }
    }

    /// Takes back what `source` offered; `None` if it offered nothing.
    pub(super) fn withdraw(
        &mut self,
        prefix: P,
        source: Source,
        all: &Adjacencies,
    ) -> Option<Change> {
        let held = self.best.get_mut(&prefix)?;
        let old = held.best();
        let is_old = all.source(old) == source;
        if !held.has_others() {
            is_old.then(|| self.best.remove(&prefix))?;
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
        *held = Held::new(first, more);
        if !more {
            self.others.remove(&prefix);
        }
        Some(Change {
            released: Some(gone),
            best: changed(old, first),
        })
    }

    /// The longest prefix with a route that covers `prefix`, which may be that itself.
    pub(super) fn covering(&self, prefix: P) -> Option<(P, AdjacencyId)> {
        let (cover, held) = self.best.get_lpm(&prefix)?;
        Some((cover, held.best()))
    }

    /// All offers in the order of prefixes, the best of each prefix first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (P, AdjacencyId, bool)> + '_ {
        self.best.iter().flat_map(|(prefix, held)| {
            let others = held.has_others().then(|| self.others.get(&prefix));
            let others = others.flatten().into_iter().flatten();
            let best = core::iter::once((prefix, held.best(), true));
            best.chain(others.map(move |&other| (prefix, other, false)))
        })
    }

    /// Octets of heap memory.
    pub(super) fn mem_size(&self) -> usize {
        let others = self.others.values();
        self.best.mem_size()
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
