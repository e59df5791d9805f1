//! A hash index from keys to numbers, of fixed size.
//!
//! It keeps no keys: whoever owns the entries compares them. All memory is reserved at once, but
//! becomes resident only where entries fall; nothing ever moves for growth, and removing leaves no
//! traces that would have to be cleaned up later. So the slowest operation is not much slower than
//! the usual one, which a growing table cannot say.
//!
//! Linear probing, at most half full, with deletion by shifting back. The hashes must come from a
//! hasher with a random seed, or whoever chooses the keys can make one long run of them.

/// Numbers, found by the hash of a key.
#[derive(Debug)]
pub(crate) struct Index {
    /// Zero if empty; else 32 bits of the hash, and the number plus one.
    cells: Box<[u64]>,
    mask: usize,
}

impl Index {
    /// An index for up to `capacity` numbers.
    pub(crate) fn new(capacity: usize) -> Self {
        let len = capacity.saturating_mul(2).max(2).next_power_of_two();
        Self {
            cells: vec![0; len].into_boxed_slice(),
            mask: len - 1,
        }
    }

    /// The number inserted with `hash` that `is_it` recognises.
    #[inline]
    pub(crate) fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let tag = tag_of(hash);
        let mut at = self.home(tag);
        loop {
            let cell = self.cells[at];
            if cell == 0 {
                return None;
            }
            let number = number(cell);
            if tag_of(cell) == tag && is_it(number) {
                return Some(number);
            }
            at = (at + 1) & self.mask;
        }
    }

    /// Inserts a number, which must not be there yet. There must be room.
    #[inline]
    pub(crate) fn insert(&mut self, hash: u64, number: u32) {
        let tag = tag_of(hash);
        let mut at = self.home(tag);
        while self.cells[at] != 0 {
            at = (at + 1) & self.mask;
        }
        self.cells[at] = u64::from(tag) << 32 | (u64::from(number) + 1);
    }

    /// Removes a number that was inserted with `hash`; does nothing if it is not there.
    #[inline]
    pub(crate) fn remove(&mut self, hash: u64, number: u32) {
        let tag = tag_of(hash);
        let wanted = u64::from(tag) << 32 | (u64::from(number) + 1);
        let mut at = self.home(tag);
        while self.cells[at] != wanted {
            if self.cells[at] == 0 {
                return;
            }
            at = (at + 1) & self.mask;
        }
        self.close(at);
    }

    /// Empties a cell, and moves back what would not be found any more for the gap.
    fn close(&mut self, mut gap: usize) {
        let mut at = gap;
        loop {
            at = (at + 1) & self.mask;
            let cell = self.cells[at];
            if cell == 0 {
                break;
            }
            let from_home = at.wrapping_sub(self.home(tag_of(cell))) & self.mask;
            let from_gap = at.wrapping_sub(gap) & self.mask;
            if from_home >= from_gap {
                self.cells[gap] = cell;
                gap = at;
            }
        }
        self.cells[gap] = 0;
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.cells.iter().all(|&cell| cell == 0)
    }

    #[inline]
    fn home(&self, tag: u32) -> usize {
        tag as usize & self.mask
    }
}

/// The upper half: of a hash, the part that is kept.
#[inline]
fn tag_of(hash_or_cell: u64) -> u32 {
    (hash_or_cell >> 32) as u32
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the lower half is wanted")]
fn number(cell: u64) -> u32 {
    (cell as u32).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Hashes from a few values only, so that runs are long and wrap around the end.
        #[test]
        fn it_agrees_with_a_map(steps in proptest::collection::vec((0..16_u32, any::<bool>()), 1..200)) {
            let hash = |number: u32| u64::from(number / 2 % 3 + 14) << 32;
            let mut index = Index::new(8);
            let mut map = BTreeMap::new();
            for (number, insert) in steps {
                if insert && map.len() < 8 && !map.contains_key(&number) {
                    index.insert(hash(number), number);
                    map.insert(number, ());
                } else if !insert {
                    index.remove(hash(number), number);
                    map.remove(&number);
                }
                for number in 0..16 {
                    let found = index.find(hash(number), |other| other == number);
                    prop_assert_eq!(found.is_some(), map.contains_key(&number));
                }
            }
        }
    }
}
