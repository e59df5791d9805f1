//! A table by [identifier](Identifier): one slot an index, which answers to one generation only.
//!
//! Lookups are one load and one comparison, whatever the number of entries.

use crate::ident::Identifier;
use crate::page::{PAGE, Page};

/// Values by identifier.
#[derive(Clone, Debug)]
pub struct IdTable<I, T> {
    slots: Vec<Option<(I, T)>>,
}

impl<I, T> Default for IdTable<I, T> {
    fn default() -> Self {
        Self { slots: Vec::new() }
    }
}

impl<I: Identifier, T> IdTable<I, T> {
    /// A table without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of `id`, if it is in the table with this generation.
    #[must_use]
    #[inline]
    pub fn get(&self, id: I) -> Option<&T> {
        let (held, value) = self.slots.get(id.index())?.as_ref()?;
        (*held == id).then_some(value)
    }

    /// The same, to change it.
    #[must_use]
    #[inline]
    pub fn get_mut(&mut self, id: I) -> Option<&mut T> {
        let (held, value) = self.slots.get_mut(id.index())?.as_mut()?;
        (*held == id).then_some(value)
    }

    /// Who has the index of `id` now, of whatever generation.
    #[must_use]
    pub fn holder(&self, id: I) -> Option<I> {
        let (held, _) = self.slots.get(id.index())?.as_ref()?;
        Some(*held)
    }

    /// Puts `value` in, and returns whoever had the index before.
    pub fn insert(&mut self, id: I, value: T) -> Option<(I, T)> {
        let index = id.index();
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index].replace((id, value))
    }

    /// Takes the value of `id` out, if it is in the table with this generation.
    pub fn remove(&mut self, id: I) -> Option<T> {
        let slot = self.slots.get_mut(id.index())?;
        let (_, value) = slot.take_if(|(held, _)| *held == id)?;
        Some(value)
    }

    /// All entries, by index.
    pub fn iter(&self) -> impl Iterator<Item = (I, &T)> {
        self.slots.iter().flatten().map(|(id, value)| (*id, value))
    }

    /// All entries, by index, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (I, &mut T)> {
        let entries = self.slots.iter_mut().flatten();
        entries.map(|(id, value)| (*id, value))
    }

    /// All values, by index.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.iter().map(|(_, value)| value)
    }

    /// The entries whose index is at least `first`, by index.
    pub fn iter_from(&self, first: usize) -> impl Iterator<Item = (I, &T)> {
        let slots = self.slots.get(first..).unwrap_or_default();
        slots.iter().flatten().map(|(id, value)| (*id, value))
    }

    /// The page of rows that begins at index `first`. The cursor of the next is an index too.
    pub fn page<R>(&self, first: usize, mut row: impl FnMut(I, &T) -> R) -> Page<R, usize> {
        let places = self.slots.get(first..).unwrap_or_default();
        let looked_at = places.len().min(PAGE);
        let entries = places.iter().take(looked_at).flatten();
        Page {
            rows: entries.map(|(id, value)| row(*id, value)).collect(),
            next: (places.len() > looked_at).then_some(first + looked_at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ident::AttachmentId;

    #[test]
    fn an_index_answers_to_one_generation() {
        let mut table = IdTable::new();
        let old = AttachmentId::new(3, 0);
        let new = old.successor();
        assert_eq!((new.index(), new.generation()), (3, 1));
        assert_eq!(table.insert(old, 'a'), None);
        assert_eq!((table.get(old), table.get(new)), (Some(&'a'), None));
        assert_eq!(table.remove(new), None);
        assert_eq!(table.insert(new, 'b'), Some((old, 'a')));
        assert_eq!(table.get_mut(old), None);
        assert_eq!(table.holder(old), Some(new));
        assert_eq!(table.iter_from(4).count(), 0);
        assert_eq!(table.page(4, |_, _| ()), Page::end());
        assert_eq!(table.iter().collect::<Vec<_>>(), [(new, &'b')]);
        assert_eq!(table.remove(new), Some('b'));
        assert_eq!(table.values().count(), 0);
    }

    #[test]
    fn pages_are_short_and_together_everything() {
        let mut table = IdTable::new();
        let ids = (0..1000)
            .step_by(3)
            .map(|index| AttachmentId::new(index, 7));
        let ids: Vec<_> = ids.collect();
        for &id in &ids {
            table.insert(id, ());
        }
        let read = crate::page::all(|first: Option<usize>| {
            let page = table.page(first.unwrap_or(0), |id, ()| id);
            assert!(page.rows.len() <= PAGE);
            page
        });
        assert_eq!(read, ids);
    }

    #[test]
    fn generations_begin_anew() {
        let mut id = AttachmentId::new(u16::MAX, 0);
        for _ in 0..AttachmentId::GENERATIONS {
            id = id.successor();
            assert_eq!(id.index(), usize::from(u16::MAX));
        }
        assert_eq!(id, AttachmentId::new(u16::MAX, 0));
    }
}
