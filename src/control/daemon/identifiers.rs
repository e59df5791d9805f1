//! Identifiers that are free: small indices first, as the data path's tables are indexed by them,
//! and a new generation for each user.

use std::collections::BTreeMap;

use nos_shim::ident::{AttachmentId, UplinkId};

/// What has an index and a generation.
pub(super) trait Generations: Copy {
    fn first(index: u16) -> Self;
    fn index(self) -> u16;
    fn successor(self) -> Self;
}

macro_rules! generations {
    ($id:ident) => {
        impl Generations for $id {
            fn first(index: u16) -> Self {
                Self::new(index, 0)
            }

            fn index(self) -> u16 {
                u16::try_from(Self::index(self)).unwrap_or(u16::MAX)
            }

            fn successor(self) -> Self {
                Self::successor(self)
            }
        }
    };
}

generations!(AttachmentId);
generations!(UplinkId);

/// The identifiers of one kind.
#[derive(Debug)]
pub(super) struct Identifiers<I> {
    /// By index: the identifier of the next user.
    free: BTreeMap<u16, I>,
    /// Indices that were never used begin here; `None` when all were.
    fresh: Option<u16>,
}

impl<I> Default for Identifiers<I> {
    fn default() -> Self {
        Self {
            free: BTreeMap::new(),
            fresh: Some(0),
        }
    }
}

impl<I: Generations> Identifiers<I> {
    /// An identifier that nobody has; `None` when all 65,536 indices are in use.
    pub(super) fn take(&mut self) -> Option<I> {
        if let Some((_, id)) = self.free.pop_first() {
            return Some(id);
        }
        let index = self.fresh?;
        self.fresh = index.checked_add(1);
        Some(I::first(index))
    }

    /// Returns an identifier whose user has gone.
    pub(super) fn give_back(&mut self, id: I) {
        self.free.insert(id.index(), id.successor());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_used_again_with_the_next_generation() {
        let mut ids = Identifiers::<AttachmentId>::default();
        let (a, b) = (ids.take().unwrap(), ids.take().unwrap());
        assert_eq!((a, b), (AttachmentId::new(0, 0), AttachmentId::new(1, 0)));
        ids.give_back(a);
        assert_eq!(ids.take(), Some(AttachmentId::new(0, 1)));
        assert_eq!(ids.take(), Some(AttachmentId::new(2, 0)));
    }

    #[test]
    fn all_indices_can_be_in_use() {
        let mut ids = Identifiers::<AttachmentId>::default();
        for index in 0..=u16::MAX {
            assert_eq!(ids.take(), Some(AttachmentId::new(index, 0)));
        }
        assert_eq!(ids.take(), None);
        ids.give_back(AttachmentId::new(7, 0));
        assert_eq!(ids.take(), Some(AttachmentId::new(7, 1)));
    }
}
