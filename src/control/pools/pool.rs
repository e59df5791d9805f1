//! One pool: its addresses, and what is known of each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::control::config::{PoolDefinition, PoolKind};

use super::blocks::{Block, Blocks, Pair, Place};

/// What is known of a pair that was given to somebody, or is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// For whom it is, or was.
    pub workload: Option<Arc<str>>,
    /// It is for that workload alone.
    pub reserved: bool,
    /// Who holds it now.
    pub holder: Option<Arc<str>>,
    /// What was released earlier has less; 0 of what never was.
    pub order: u64,
}

/// A pool of addresses.
#[derive(Clone, Debug)]
pub struct Pool {
    /// By which it is known as long as it is there.
    pub(super) number: u32,
    pub(super) definition: PoolDefinition,
    /// Everything, with what was given to pools inside.
    pub(super) blocks: Blocks,
    /// What nothing is known of, and no pool inside has.
    pub(super) free: Blocks,
    pub(super) records: BTreeMap<Place, Record>,
    /// What somebody else may get: by when it was released, and its place as that may be the same.
    released: BTreeSet<(u64, Place)>,
    of_workloads: BTreeSet<(Arc<str>, Place)>,
    pub(super) held: u64,
}

impl Pool {
    pub(super) fn new(number: u32, definition: PoolDefinition, blocks: Blocks) -> Self {
        Self {
            number,
            definition,
            free: blocks.clone(),
            blocks,
            records: BTreeMap::new(),
            released: BTreeSet::new(),
            of_workloads: BTreeSet::new(),
            held: 0,
        }
    }

    /// What it is.
    #[must_use]
    pub fn definition(&self) -> &PoolDefinition {
        &self.definition
    }

    /// Its addresses, those of pools inside included.
    #[must_use]
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// What is known of pairs, by their places.
    pub fn records(&self) -> impl Iterator<Item = (Place, &Record)> {
        self.records.iter().map(|(place, record)| (*place, record))
    }

    /// What is known of a pair.
    #[must_use]
    pub fn record(&self, place: Place) -> Option<&Record> {
        self.records.get(&place)
    }

    /// Pairs that somebody holds.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Pairs that any new workload may get.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.free.count() + self.released.len() as u64
    }

    /// Pairs that wait for a workload of their own.
    #[must_use]
    pub fn kept(&self) -> u64 {
        let known = self.records.len() as u64;
        known - self.held - self.released.len() as u64
    }

    /// Pairs that may be given to anybody, in the order in which that is done.
    pub(super) fn for_anybody(&self) -> impl Iterator<Item = Pair> {
        let released = self.released.iter();
        let released = released.filter_map(|(_, place)| self.blocks.at(*place));
        self.free.pairs().chain(released)
    }

    /// Pairs that nobody holds and a workload has had, or is to have: what is reserved for it, then what it released
    /// last.
    pub(super) fn for_workload(&self, workload: &str) -> Vec<Pair> {
        let places = self.places_of(workload).into_iter();
        let known = places.filter_map(|place| Some((place, self.records.get(&place)?)));
        let mut idle: Vec<_> = known.filter(|(_, it)| it.holder.is_none()).collect();
        idle.sort_by_key(|(place, it)| (!it.reserved, core::cmp::Reverse(it.order), *place));
        let pairs = idle.into_iter();
        pairs
            .filter_map(|(place, _)| self.blocks.at(place))
            .collect()
    }

    /// What a workload has now.
    pub(super) fn held_for(&self, workload: &str) -> Option<Pair> {
        let mut places = self.places_of(workload).into_iter();
        let held = |place: &Place| {
            self.records
                .get(place)
                .is_some_and(|it| it.holder.is_some())
        };
        self.blocks.at(places.find(held)?)
    }

    /// All that a workload has, or would get.
    pub(super) fn places_of(&self, workload: &str) -> Vec<Place> {
        let workload: Arc<str> = workload.into();
        let first = (Arc::clone(&workload), Place::FIRST);
        let all = self.of_workloads.range(first..);
        let own = all.take_while(|(of, _)| *of == workload);
        own.map(|(_, place)| *place).collect()
    }

    /// Whether anybody may get it who holds nothing yet.
    fn is_released(&self, record: &Record) -> bool {
        let bound = self.definition.kind == PoolKind::Application && record.workload.is_some();
        record.holder.is_none() && !record.reserved && !bound
    }

    /// What is known of a pair from now on. Returns what was.
    pub(super) fn set(&mut self, place: Place, record: Option<Record>) -> Option<Record> {
        let before = self.records.remove(&place);
        if let Some(before) = &before {
            self.released.remove(&(before.order, place));
            self.held -= u64::from(before.holder.is_some());
            if let Some(workload) = &before.workload {
                self.of_workloads.remove(&(Arc::clone(workload), place));
            }
        }
        let Some(record) = record else {
            if let Some(pair) = self.blocks.at(place) {
                self.free.insert_pair(pair);
            }
            return before;
        };
        if before.is_none() {
            self.free.remove_at(place);
        }
        if self.is_released(&record) {
            self.released.insert((record.order, place));
        }
        self.held += u64::from(record.holder.is_some());
        if let Some(workload) = &record.workload {
            self.of_workloads.insert((Arc::clone(workload), place));
        }
        self.records.insert(place, record);
        before
    }

    /// Pairs of pools that lie in it.
    #[must_use]
    pub fn inside_count(&self) -> u64 {
        self.blocks.count() - self.free.count() - self.records.len() as u64
    }

    /// Has these blocks from now on: some more, and some less.
    pub(super) fn resize(&mut self, blocks: Blocks, more: &Blocks, less: &Blocks) {
        self.blocks = blocks;
        for block in more.iter() {
            self.free.insert(block);
            let known = self
                .records
                .range(block.first().place()..=block.last().place());
            known.for_each(|(place, _)| self.free.remove_at(*place));
        }
        less.iter().for_each(|block| self.free.remove(block));
    }

    /// Finds what is free, as pools inside have `taken`.
    pub(super) fn find_free(&mut self, taken: impl Iterator<Item = Block>) {
        self.free = self.blocks.clone();
        taken.for_each(|block| self.free.remove(block));
        for place in self.records.keys() {
            self.free.remove_at(*place);
        }
    }

    /// At most `count` pairs that can be given back: first those that nobody has ever had, from the highest on, then
    /// those released longest ago.
    pub(super) fn idle(&self, count: u64) -> Vec<Pair> {
        let released = self.released.iter();
        let released = released.filter_map(|(_, place)| self.blocks.at(*place));
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        self.free
            .pairs()
            .rev()
            .chain(released)
            .take(count)
            .collect()
    }

    /// Whether a pair can be given back.
    pub(super) fn is_idle(&self, place: Place) -> bool {
        match self.records.get(&place) {
            Some(record) => self.is_released(record),
            None => self.free.at(place).is_some(),
        }
    }
}
