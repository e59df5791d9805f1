//! Blocks of 32-bit words in one vector.
//!
//! A lookup waits for each cache line that it reads, so no block reaches into more lines than it needs:
//! where the next one would, it begins with the next line, and what is left of this one is free for
//! smaller blocks.

/// Words of each class of blocks. A block grows in place until it needs the next class.
const SIZES: [u8; 14] = [4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 56, 64, 72];

/// The most words that a block may have.
pub(super) const MAX_BLOCK: usize = 72;

/// Words of a cache line.
const LINE: usize = 16;

/// Ends a list of free blocks.
const END: u32 = u32::MAX;

/// The class of a block of so many words.
const CLASS: [u8; MAX_BLOCK + 1] = {
    let mut classes = [0; MAX_BLOCK + 1];
    let mut len = 0;
    let mut class = 0;
    while len <= MAX_BLOCK {
        if len > SIZES[class as usize] as usize {
            class += 1;
        }
        classes[len] = class;
        len += 1;
    }
    classes
};

/// An allocator of blocks that are named by the index of their first word.
#[derive(Debug)]
pub(super) struct Arena {
    words: Vec<u32>,
    /// Words before the first one that begins a cache line.
    skip: usize,
    /// For each class the first free block; the first word of each names the next.
    free: [u32; SIZES.len()],
    /// Words in blocks that are not free.
    live: usize,
}

impl Arena {
    pub(super) fn new() -> Self {
        Self {
            words: Vec::new(),
            skip: 0,
            free: [END; SIZES.len()],
            live: 0,
        }
    }

    #[inline]
    pub(super) fn words(&self) -> &[u32] {
        self.words.get(self.skip..).unwrap_or_default()
    }

    pub(super) fn words_mut(&mut self) -> &mut [u32] {
        self.words.get_mut(self.skip..).unwrap_or_default()
    }

    /// A block of `len` words, at most [`MAX_BLOCK`], whose content is arbitrary.
    pub(super) fn allocate(&mut self, len: usize) -> usize {
        let class = usize::from(CLASS[len]);
        self.live += usize::from(SIZES[class]);
        let first = self.free[class];
        if first == END {
            return self.grow(usize::from(SIZES[class]));
        }
        let at = first as usize;
        self.free[class] = self.words()[at];
        at
    }

    /// A new block at the end.
    fn grow(&mut self, size: usize) -> usize {
        let end = self.words().len();
        let used = end % LINE;
        let gap = if used + size > size.next_multiple_of(LINE) {
            LINE - used
        } else {
            0
        };
        self.extend(gap + size);
        self.leave(end, gap);
        end + gap
    }

    /// Makes so many words of a line's end free blocks.
    fn leave(&mut self, mut at: usize, mut words: usize) {
        while let Some(class) = SIZES.iter().rposition(|&size| usize::from(size) <= words) {
            self.free_block(at, class);
            at += usize::from(SIZES[class]);
            words -= usize::from(SIZES[class]);
        }
    }

    fn extend(&mut self, more: usize) {
        let len = self.words.len();
        if self.words.capacity() - len < more {
            // Doubling would leave up to half of a large table unused.
            *self = self.moved(more.max(len / 8).max(1024));
        }
        let len = self.words.len() + more;
        self.words.resize(len, 0);
    }

    /// The same in other memory, with room for so many more words.
    fn moved(&self, room: usize) -> Self {
        let old = self.words();
        let mut words: Vec<u32> = Vec::with_capacity(old.len() + room + LINE);
        // An allocator need not say how far it is to the next line; then it costs time, no more.
        let skip = words.as_ptr().align_offset(LINE * size_of::<u32>());
        let skip = if skip < LINE { skip } else { 0 };
        words.resize(skip, 0);
        words.extend_from_slice(old);
        Self {
            words,
            skip,
            ..*self
        }
    }

    /// Takes back the block of `len` words at `at`.
    pub(super) fn release(&mut self, at: usize, len: usize) {
        let class = usize::from(CLASS[len]);
        self.live -= usize::from(SIZES[class]);
        self.free_block(at, class);
    }

    fn free_block(&mut self, at: usize, class: usize) {
        let next = core::mem::replace(&mut self.free[class], index(at));
        self.words_mut()[at] = next;
    }

    /// Octets of heap memory.
    pub(super) fn mem_size(&self) -> usize {
        self.words.capacity() * size_of::<u32>()
    }

    /// Words in blocks that are not free, by the allocator's account.
    #[cfg(test)]
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Words that a block of `len` words occupies.
    #[cfg(test)]
    pub(super) fn occupied(len: usize) -> usize {
        usize::from(SIZES[usize::from(CLASS[len])])
    }
}

impl Clone for Arena {
    fn clone(&self) -> Self {
        self.moved(0)
    }
}

/// An index into the arena as a word.
pub(super) fn index(at: usize) -> u32 {
    debug_assert!(at < 1 << 30, "MAX_PREFIXES keeps tables smaller");
    u32::try_from(at).unwrap_or(END)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_fit_their_blocks() {
        for (len, &class) in CLASS.iter().enumerate() {
            let class = usize::from(class);
            assert!(usize::from(SIZES[class]) >= len);
            assert!(class == 0 || usize::from(SIZES[class - 1]) < len);
        }
    }

    #[test]
    fn freed_blocks_are_used_again() {
        let mut arena = Arena::new();
        let a = arena.allocate(5);
        let b = arena.allocate(6);
        assert_ne!(a, b);
        arena.release(a, 6);
        arena.release(b, 5);
        assert_eq!(arena.live(), 0);
        let size = arena.words().len();
        let mut again = [arena.allocate(6), arena.allocate(6)];
        again.sort_unstable();
        assert_eq!(again, [a, b]);
        assert_eq!(arena.words().len(), size);
    }

    /// As many cache lines as the block needs, wherever the memory lies, also in a copy.
    fn assert_in_few_lines(arena: &Arena, at: usize, len: usize) {
        let first = (&raw const arena.words()[at]).addr() / 64;
        let last = (&raw const arena.words()[at + len - 1]).addr() / 64;
        assert!(last - first < len.div_ceil(LINE), "{len} words at {at}");
    }

    #[test]
    fn no_block_reaches_into_more_lines_than_it_needs() {
        let mut arena = Arena::new();
        let mut blocks = Vec::new();
        for round in 0..20_000 {
            let len = 4 + round * 7 % (MAX_BLOCK - 3);
            blocks.push((arena.allocate(len), len));
            if round % 3 == 0 {
                let (at, len) = blocks.swap_remove(round * 11 % blocks.len());
                arena.release(at, len);
            }
        }
        let copy = arena.clone();
        assert_eq!(copy.words(), arena.words());
        let mut taken = vec![false; arena.words().len()];
        for (at, len) in blocks {
            assert_in_few_lines(&arena, at, len);
            assert_in_few_lines(&copy, at, len);
            assert!(taken[at..at + len].iter().all(|taken| !taken), "used twice");
            taken[at..at + len].fill(true);
        }
    }
}
