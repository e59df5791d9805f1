//! Blocks of 32-bit words in one vector.

/// Words of each class of blocks. A block grows in place until it needs the next class.
const SIZES: [u8; 14] = [4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 56, 64, 72];

/// The most words that a block may have.
pub(super) const MAX_BLOCK: usize = 72;

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
#[derive(Clone, Debug)]
pub(super) struct Arena {
    words: Vec<u32>,
    /// For each class the first free block; the first word of each names the next.
    free: [u32; SIZES.len()],
    /// Words in blocks that are not free.
    live: usize,
}

impl Arena {
    pub(super) fn new() -> Self {
        Self {
            words: Vec::new(),
            free: [END; SIZES.len()],
            live: 0,
        }
    }

    #[inline]
    pub(super) fn words(&self) -> &[u32] {
        &self.words
    }

    pub(super) fn words_mut(&mut self) -> &mut [u32] {
        &mut self.words
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
        self.free[class] = self.words[at];
        at
    }

    fn grow(&mut self, size: usize) -> usize {
        let at = self.words.len();
        if self.words.capacity() - at < size {
            // Doubling would leave up to half of a large table unused.
            self.words.reserve_exact(size.max(at / 8).max(1024));
        }
        self.words.resize(at + size, 0);
        at
    }

    /// Takes back the block of `len` words at `at`.
    pub(super) fn release(&mut self, at: usize, len: usize) {
        let class = usize::from(CLASS[len]);
        self.live -= usize::from(SIZES[class]);
        self.words[at] = self.free[class];
        self.free[class] = index(at);
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
}
