//! What was changed: noted, undone, and stored.

use std::sync::Arc;

use crate::control::config::{Name, PoolDefinition};

use super::blocks::{Blocks, Place};
use super::{Mark, Pool, Pools, Record};

/// What undoes a change.
#[derive(Clone, Debug)]
pub(super) enum Undo {
    Record(Name, Place, Option<Record>),
    Pool(Name, Option<(PoolDefinition, Blocks)>),
}

impl Pools {
    /// What is known of a pair from now on.
    pub(super) fn set(&mut self, name: &Name, place: Place, record: Option<Record>) {
        let before = self.set_unnoted(name, place, record);
        self.undo.push(Undo::Record(name.clone(), place, before));
    }

    pub(super) fn set_unnoted(
        &mut self,
        name: &Name,
        place: Place,
        record: Option<Record>,
    ) -> Option<Record> {
        self.revision += 1;
        let holder = record.as_ref().and_then(|it| it.holder.clone());
        let before = self.pools.get_mut(name)?.set(place, record);
        let number = self.pools.get(name)?.number;
        if let Some(holder) = before.as_ref().and_then(|it| it.holder.as_ref()) {
            self.holders.remove(&(Arc::clone(holder), number, place));
        }
        if let Some(holder) = holder {
            self.holders.insert((holder, number, place));
        }
        before
    }

    /// What a pool is and has from now on; nothing of one that is no more. What is known of its pairs stays.
    pub(super) fn put(&mut self, name: Name, pool: Option<(PoolDefinition, Blocks)>) {
        let before = self.put_unnoted(&name, pool);
        self.undo.push(Undo::Pool(name, before));
    }

    fn put_unnoted(
        &mut self,
        name: &Name,
        pool: Option<(PoolDefinition, Blocks)>,
    ) -> Option<(PoolDefinition, Blocks)> {
        self.revision += 1;
        let before = self.pools.get(name);
        let before = before.map(|it| (it.definition.clone(), it.blocks.clone()));
        let none = Blocks::default();
        let had = before.as_ref().map_or(&none, |(_, blocks)| blocks);
        let has = pool.as_ref().map_or(&none, |(_, blocks)| blocks);
        let (more, less) = (has.without(had), had.without(has));
        let either = before.as_ref().or(pool.as_ref());
        if let Some(parent) = either.and_then(|(it, _)| it.inside.as_ref())
            && let Some(parent) = self.pools.get_mut(parent)
        {
            more.iter().for_each(|block| parent.free.remove(block));
            less.iter().for_each(|block| parent.free.insert(block));
        }
        match pool {
            None => {
                let gone = self.pools.remove(name);
                let number = gone.and_then(|gone| self.names.remove(&gone.number));
                debug_assert_eq!(number.as_ref(), Some(name));
            }
            Some((definition, blocks)) => match self.pools.get_mut(name) {
                Some(known) => known.resize(blocks, &more, &less),
                None => self.add(definition, blocks),
            },
        }
        before
    }

    /// Finds what is free in a pool.
    pub(super) fn find_free(&mut self, name: &Name) {
        let inside: Vec<_> = self.inside(name).flat_map(|it| it.blocks.iter()).collect();
        if let Some(pool) = self.pools.get_mut(name) {
            pool.find_free(inside.into_iter());
        }
    }

    /// How far changes have come.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(self.undo.len())
    }

    /// That of what is stored.
    #[must_use]
    pub fn stored_mark(&self) -> Mark {
        Mark(0)
    }

    /// Undoes everything since a mark.
    pub fn roll_back(&mut self, mark: Mark) {
        while self.undo.len() > mark.0 {
            match self.undo.pop() {
                Some(Undo::Record(name, place, record)) => {
                    self.set_unnoted(&name, place, record);
                }
                Some(Undo::Pool(name, pool)) => {
                    self.put_unnoted(&name, pool);
                }
                None => return,
            }
        }
    }

    /// Does something, or nothing of it.
    pub(super) fn or_nothing<T, E>(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let mark = self.mark();
        let done = change(self);
        if done.is_err() {
            self.roll_back(mark);
        }
        done
    }

    /// Takes what there is as stored.
    pub fn committed(&mut self) {
        self.undo.clear();
    }

    /// A pool that was not there.
    pub(super) fn add(&mut self, definition: PoolDefinition, blocks: Blocks) {
        let last = self.names.last_key_value();
        let number = last.map_or(0, |(last, _)| last.wrapping_add(1));
        let name = definition.name.clone();
        self.names.insert(number, name.clone());
        self.pools
            .insert(name, Pool::new(number, definition, blocks));
    }
}
