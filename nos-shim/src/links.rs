//! Doubly linked lists of numbered entries. An entry is in one list at most of those that share
//! [`Links`].

/// No entry.
const END: u32 = u32::MAX;

/// First and last entry of a list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    first: u32,
    last: u32,
}

impl List {
    pub(crate) const EMPTY: Self = Self {
        first: END,
        last: END,
    };

    /// The entry that has been in the list longest.
    pub(crate) fn first(&self) -> Option<u32> {
        (self.first != END).then_some(self.first)
    }
}

#[derive(Clone, Copy, Debug)]
struct Adjacent {
    before: u32,
    after: u32,
}

/// The neighbours of every entry.
#[derive(Debug)]
pub(crate) struct Links(Vec<Adjacent>);

impl Links {
    /// Links of entries numbered below `capacity`.
    pub(crate) fn new(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// The entries of a list, the one that has been in it longest first.
    pub(crate) fn iter(&self, list: &List) -> impl Iterator<Item = u32> + '_ {
        let first = (list.first != END).then_some(list.first);
        core::iter::successors(first, |&entry| {
            let after = self.0.get(entry as usize)?.after;
            (after != END).then_some(after)
        })
    }

    /// Appends an entry that is in no list.
    pub(crate) fn push_back(&mut self, list: &mut List, entry: u32) {
        let link = Adjacent {
            before: list.last,
            after: END,
        };
        let at = entry as usize;
        if at >= self.0.len() {
            self.0.resize(at + 1, link);
        }
        self.0[at] = link;
        match self.0.get_mut(list.last as usize) {
            Some(last) => last.after = entry,
            None => list.first = entry,
        }
        list.last = entry;
    }

    /// Takes an entry out of the list that it is in.
    pub(crate) fn remove(&mut self, list: &mut List, entry: u32) {
        let Some(&Adjacent { before, after }) = self.0.get(entry as usize) else {
            return;
        };
        match self.0.get_mut(before as usize) {
            Some(link) => link.after = after,
            None => list.first = after,
        }
        match self.0.get_mut(after as usize) {
            Some(link) => link.before = before,
            None => list.last = before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(links: &mut Links, list: &mut List) -> Vec<u32> {
        core::iter::from_fn(|| {
            let first = list.first()?;
            links.remove(list, first);
            Some(first)
        })
        .collect()
    }

    #[test]
    fn entries_leave_from_anywhere_and_keep_their_order() {
        let mut links = Links::new(8);
        let (mut a, mut b) = (List::EMPTY, List::EMPTY);
        for entry in 0..6 {
            links.push_back(if entry % 2 == 0 { &mut a } else { &mut b }, entry);
        }
        links.remove(&mut a, 2);
        links.push_back(&mut b, 2);
        links.remove(&mut b, 1);
        assert_eq!(drain(&mut links, &mut a), [0, 4]);
        assert_eq!(drain(&mut links, &mut b), [3, 5, 2]);
        links.push_back(&mut a, 7);
        assert_eq!(drain(&mut links, &mut a), [7]);
    }
}
