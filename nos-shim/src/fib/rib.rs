//! Every route that was offered, of one VRF and address family: the source of truth.

use core::hash::Hash;

use hashbrown::HashMap;
use prefix_trie::{Prefix, PrefixMap, map::Entry};

use super::adjacency::AdjacencyId;
use super::route::Source;

/// One source's route for a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) source: Source,
    pub(super) adjacency: AdjacencyId,
}

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
    others: HashMap<P, Vec<Offer>, foldhash::fast::RandomState>,
}

#[derive(Clone, Copy)]
struct Held {
    source: Source,
    /// The adjacency, and in the lowest bit whether there are others.
    tagged: u32,
}

impl Held {
    fn new(offer: Offer, others: bool) -> Self {
        Self {
            source: offer.source,
            tagged: offer.adjacency.0 << 1 | u32::from(others),
        }
    }

    fn offer(self) -> Offer {
        Offer {
            source: self.source,
            adjacency: AdjacencyId(self.tagged >> 1),
        }
    }

    fn has_others(self) -> bool {
        self.tagged & 1 == 1
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
    pub(super) fn offer(&mut self, prefix: P, offer: Offer) -> Change {
        let held = match self.best.entry(prefix) {
            Entry::Vacant(vacant) => {
                vacant.insert(Held::new(offer, false));
                return Change {
                    released: None,
                    best: Best::Now(offer.adjacency),
                };
            }
            Entry::Occupied(occupied) => occupied,
        };
        let old = held.get().offer();
        if old.source == offer.source {
            let others = held.get().has_others();
            held.insert(Held::new(offer, others));
            return Change {
                released: Some(old.adjacency),
                best: changed(old, offer),
            };
        }
        let (first, second) = if offer.source < old.source {
            (offer, old)
        } else {
            (old, offer)
        };
        held.insert(Held::new(first, true));
        Change {
            released: put(self.others.entry(prefix).or_default(), second),
            best: changed(old, first),
        }
    }

    /// Takes back what `source` offered; `None` if it offered nothing.
    pub(super) fn withdraw(&mut self, prefix: P, source: Source) -> Option<Change> {
        let held = self.best.get_mut(&prefix)?;
        let old = held.offer();
        if !held.has_others() {
            if old.source != source {
                return None;
            }
            self.best.remove(&prefix);
            return Some(Change {
                released: Some(old.adjacency),
                best: Best::Gone,
            });
        }
        let others = self.others.get_mut(&prefix)?;
        let (gone, first) = if old.source == source {
            (old, others.remove(0))
        } else {
            let at = others.iter().position(|other| other.source == source)?;
            (others.remove(at), old)
        };
        let more = !others.is_empty();
        *held = Held::new(first, more);
        if !more {
            self.others.remove(&prefix);
        }
        Some(Change {
            released: Some(gone.adjacency),
            best: changed(old, first),
        })
    }

    /// The longest prefix with a route that covers `prefix`, which may be that itself.
    pub(super) fn covering(&self, prefix: P) -> Option<(P, AdjacencyId)> {
        let (cover, held) = self.best.get_lpm(&prefix)?;
        Some((cover, held.offer().adjacency))
    }

    /// All offers in the order of prefixes, the best of each prefix first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (P, Offer, bool)> + '_ {
        self.best.iter().flat_map(|(prefix, held)| {
            let others = held.has_others().then(|| self.others.get(&prefix));
            let others = others.flatten().into_iter().flatten();
            let best = core::iter::once((prefix, held.offer(), true));
            best.chain(others.map(move |&other| (prefix, other, false)))
        })
    }

    /// Octets of heap memory.
    pub(super) fn mem_size(&self) -> usize {
        let others = self.others.values();
        self.best.mem_size()
            + self.others.allocation_size()
            + others
                .map(|other| other.capacity() * size_of::<Offer>())
                .sum::<usize>()
    }
}

fn changed(old: Offer, new: Offer) -> Best {
    if old.adjacency == new.adjacency {
        Best::Same
    } else {
        Best::Now(new.adjacency)
    }
}

/// Puts `offer` where it belongs among `others`. Returns the adjacency of the same source's
/// earlier one.
fn put(others: &mut Vec<Offer>, offer: Offer) -> Option<AdjacencyId> {
    match others.binary_search_by_key(&offer.source, |other| other.source) {
        Ok(at) => Some(core::mem::replace(&mut others[at], offer).adjacency),
        Err(at) => {
            others.insert(at, offer);
            None
        }
    }
}
