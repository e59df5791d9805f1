//! The forwarding table: longest prefix matching for the data path.
//!
//! # Theory of operation
//!
//! A multibit trie with compressed nodes, after the idea of Asai and Ohara, "Poptrie: A Compressed
//! Trie with Population Count for Fast and Scalable Software IP Routing Table Lookup" (SIGCOMM
//! 2015). The first 18 bits of an address index an array; each further node looks at 6 bits.
//!
//! A branch, of the array or of a node, is one word: a leaf, or a pointer to a node. Leaves are pushed
//! down: a leaf is the answer for every address that leads to it. A node's 64 branches are stored as
//! runs of equal branches, with a bitmap of where runs begin, so a lookup counts bits to find its run.
//! Bitmap and runs stand together in one block of an [`Arena`], most in one cache line:
//!
//! ```text
//! node        bitmap (2 words) · run · run ...
//! skip node   miss · depth · key (1 or 4 words) · bitmap (2 words) · run · run ...
//! ```
//!
//! IPv6 has long stretches where only one branch of each node would lead on. A skip node stands for
//! such a path and the node at its end: addresses that agree with `key` in the first `depth` bits
//! go on there, all others get the leaf `miss`.
//!
//! # Updates
//!
//! A leaf knows the length of the prefix that it comes from. So inserting a prefix overwrites, in
//! its part of the trie, the leaves of prefixes that are not longer; removing it overwrites those of
//! its own length with the leaf of the next shorter prefix that covers it. Nothing else need be
//! known of other routes. A node is decoded to 64 branches, changed, and encoded again; a node whose
//! branches have become equal turns into a leaf.
//!
//! The cost is that of the nodes touched: for a prefix of 19 bits and more there are few, for a
//! default route it is the whole table.

use arrayvec::ArrayVec;

use super::adjacency::AdjacencyId;
use super::arena::{Arena, MAX_BLOCK, index};
use crate::frame::BATCH;
use crate::prefetch::prefetch;

/// Address bits that the first array resolves. A fuzzer makes many tables, and each short prefix fills
/// a part of the array: there it is short, and there are more levels of nodes.
const ROOT_BITS: u32 = if cfg!(fuzzing) { 6 } else { 18 };
/// Address bits that a node resolves.
const STRIDE: u32 = 6;
const BRANCHES: usize = 1 << STRIDE;

type Branches = [Branch; BRANCHES];

/// A leaf, or a pointer to a node.
///
/// ```text
/// leaf      0 · length of the prefix + 1, or 0 for none (8 bits) · adjacency (23 bits)
/// pointer   1 · whether to a skip node (1 bit) · index of the block (30 bits)
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
struct Branch(u32);

impl Branch {
    /// The leaf of addresses that no prefix covers.
    const NONE: Self = Self(0);
    const POINTER: u32 = 1 << 31;
    const SKIP: u32 = 1 << 30;

    fn leaf(len: u32, adjacency: AdjacencyId) -> Self {
        debug_assert!(adjacency.0 < AdjacencyId::LIMIT);
        Self((len + 1) << 23 | adjacency.0)
    }

    fn pointer(at: usize, skip: bool) -> Self {
        let skip = if skip { Self::SKIP } else { 0 };
        Self(Self::POINTER | skip | index(at))
    }

    #[inline]
    fn is_pointer(self) -> bool {
        self.0 & Self::POINTER != 0
    }

    #[inline]
    fn is_skip(self) -> bool {
        self.0 & Self::SKIP != 0
    }

    #[inline]
    fn block(self) -> usize {
        (self.0 & (Self::SKIP - 1)) as usize
    }

    /// Of a leaf.
    #[inline]
    fn adjacency(self) -> AdjacencyId {
        AdjacencyId(self.0 & (AdjacencyId::LIMIT - 1))
    }

    /// Of a leaf: grows with the length of the prefix.
    fn rank(self) -> u32 {
        self.0 >> 23
    }
}

/// An address as the table sees it.
pub(super) trait Key: Copy + Ord + core::hash::Hash + core::fmt::Debug {
    /// Bits of an address.
    const WIDTH: u32;
    /// Whether nodes with one way on are skipped.
    const SKIP: bool;
    /// Words of an address.
    const WORDS: usize;
    /// An address in memory without gaps before or after.
    type Packed: Copy;

    /// The first [`ROOT_BITS`].
    fn root(self) -> usize;
    /// The address with these first bits, and zeros.
    fn from_root(root: usize) -> Self;
    /// The [`STRIDE`] bits after the first `depth`; zeros follow after the last.
    fn chunk(self, depth: u32) -> usize;
    /// `self` with these bits there, where it has zeros.
    fn with_chunk(self, depth: u32, chunk: usize) -> Self;
    /// The first `depth` bits, and zeros.
    fn truncated(self, depth: u32) -> Self;
    /// Whether the first `bits` are those of `other`. `bits` is neither zero nor all.
    fn agrees(self, other: Self, bits: u32) -> bool;
    /// Reads what [`Self::store`] has written.
    fn load(words: &[u32]) -> Self;
    /// Writes [`Self::WORDS`] words.
    fn store(self, words: &mut [u32]);
    fn pack(self) -> Self::Packed;
    fn unpack(packed: Self::Packed) -> Self;
}

macro_rules! key {
    ($type:ty, skip: $skip:literal) => {
        #[expect(
            clippy::allow_attributes,
            reason = "the lints below apply to one of the types only"
        )]
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_lossless,
            trivial_numeric_casts,
            reason = "few bits remain after each shift, and none are lost in widening"
        )]
        impl Key for $type {
            const WIDTH: u32 = <$type>::BITS;
            const SKIP: bool = $skip;
            const WORDS: usize = size_of::<$type>() / 4;
            type Packed = [u32; size_of::<$type>() / 4];

            #[inline]
            fn root(self) -> usize {
                (self >> (Self::WIDTH - ROOT_BITS)) as usize
            }

            fn from_root(root: usize) -> Self {
                (root as $type) << (Self::WIDTH - ROOT_BITS)
            }

            #[inline]
            fn chunk(self, depth: u32) -> usize {
                ((self << depth) >> (Self::WIDTH - STRIDE)) as usize
            }

            fn with_chunk(self, depth: u32, chunk: usize) -> Self {
                self | ((chunk as $type) << (Self::WIDTH - STRIDE)) >> depth
            }

            fn truncated(self, depth: u32) -> Self {
                self & !<$type>::MAX.unbounded_shr(depth)
            }

            #[inline]
            fn agrees(self, other: Self, bits: u32) -> bool {
                (self ^ other) >> (Self::WIDTH - bits) == 0
            }

            #[inline]
            fn load(words: &[u32]) -> Self {
                let words = words[..Self::WORDS].iter().rev();
                words.fold(0, |key: $type, &word| key.unbounded_shl(32) | word as $type)
            }

            fn store(self, words: &mut [u32]) {
                for (n, word) in (0..).zip(&mut words[..Self::WORDS]) {
                    *word = (self >> (32 * n)) as u32;
                }
            }

            #[inline]
            fn pack(self) -> Self::Packed {
                let mut words = [0; Self::WORDS];
                self.store(&mut words);
                words
            }

            #[inline]
            fn unpack(packed: Self::Packed) -> Self {
                Self::load(&packed)
            }
        }
    };
}

key!(u32, skip: false);
key!(u128, skip: true);

/// One prefix's insertion or removal.
struct Update<K> {
    key: K,
    len: u32,
    /// Leaves of these ranks are overwritten.
    from: u32,
    to: u32,
    /// With this leaf.
    leaf: Branch,
}

impl<K> Update<K> {
    fn concerns(&self, leaf: Branch) -> bool {
        (self.from..=self.to).contains(&leaf.rank())
    }

    fn apply(&self, leaf: Branch) -> Branch {
        if self.concerns(leaf) { self.leaf } else { leaf }
    }
}

/// A node, found through a pointer.
struct Node<K> {
    /// The first word of its block.
    start: usize,
    /// The first word of its bitmap.
    at: usize,
    bitmap: u64,
    /// Address bits before its own.
    depth: u32,
    /// Of a skip node: the leaf off the path, and the path.
    skip: Option<(Branch, K)>,
}

impl<K: Key> Node<K> {
    /// Whether what changes below it, even behind the same pointer, may turn it into a skip node.
    fn may_lead_one_way(&self) -> bool {
        K::SKIP && self.runs() <= 3
    }

    fn runs(&self) -> usize {
        self.bitmap.count_ones() as usize
    }

    fn end(&self) -> usize {
        self.at + 2 + self.runs()
    }

    /// How many branches the run has that begins there; `None` if none does.
    fn run_at(&self, chunk: usize) -> Option<usize> {
        let from = self.bitmap >> chunk;
        let next = (from & !1).trailing_zeros() as usize;
        (from & 1 == 1).then_some(next.min(BRANCHES - chunk))
    }

    /// The word that holds a branch.
    fn position(&self, chunk: usize) -> usize {
        self.at + 1 + rank(self.bitmap, chunk)
    }
}

/// How many runs begin at or before `chunk`: at least one, as one begins at zero.
#[inline]
fn rank(bitmap: u64, chunk: usize) -> usize {
    (bitmap << (BRANCHES - 1 - chunk)).count_ones() as usize
}

#[inline]
fn bitmap(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// Prefixes of one address family.
#[derive(Clone)]
pub(super) struct Table<K> {
    /// Empty until the first prefix is inserted.
    root: Vec<Branch>,
    arena: Arena,
    key: core::marker::PhantomData<K>,
}

impl<K: Key> Table<K> {
    /// Words of a skip node before its bitmap.
    const HEADER: usize = 2 + K::WORDS;

    pub(super) fn new() -> Self {
        const { assert!(Self::HEADER + 2 + BRANCHES <= MAX_BLOCK) };
        Self {
            root: Vec::new(),
            arena: Arena::new(),
            key: core::marker::PhantomData,
        }
    }

    /// The adjacency of the longest prefix that covers the address.
    #[inline]
    pub(super) fn lookup(&self, key: K) -> AdjacencyId {
        let mut branch = self.root.get(key.root()).copied().unwrap_or(Branch::NONE);
        let mut depth = ROOT_BITS;
        while branch.is_pointer() {
            branch = self.step(branch, key, &mut depth);
        }
        branch.adjacency()
    }

    /// Looks up many addresses, one level of the trie at a time, so that the processor waits for
    /// the memory of all of them at once. The shorter of the two decides how many.
    #[inline]
    pub(super) fn lookup_burst(
        &self,
        mut keys: impl Iterator<Item = K>,
        found: &mut [AdjacencyId],
    ) {
        for found in found.chunks_mut(BATCH) {
            let keys: ArrayVec<K, BATCH> = keys.by_ref().take(found.len()).collect();
            self.lookup_batch(&keys, found);
        }
    }

    fn lookup_batch(&self, keys: &[K], found: &mut [AdjacencyId]) {
        let mut branches = [Branch::NONE; BATCH];
        let mut more = 0;
        for (branch, key) in branches.iter_mut().zip(keys) {
            *branch = self.root.get(key.root()).copied().unwrap_or(Branch::NONE);
            self.fetch(*branch);
            more |= branch.0;
        }
        let mut depths = [ROOT_BITS; BATCH];
        while more & Branch::POINTER != 0 {
            more = 0;
            for ((branch, depth), &key) in branches.iter_mut().zip(&mut depths).zip(keys) {
                if branch.is_pointer() {
                    *branch = self.step(*branch, key, depth);
                    self.fetch(*branch);
                    more |= branch.0;
                }
            }
        }
        for (found, branch) in found.iter_mut().zip(&branches[..keys.len()]) {
            *found = branch.adjacency();
        }
    }

    /// Has the processor load where a pointer leads. Without that it waits for each lookup whose way
    /// it has guessed wrongly. Most nodes are no longer than a cache line, but begin anywhere in one.
    #[inline]
    fn fetch(&self, branch: Branch) {
        const USUAL: usize = 12;
        if !branch.is_pointer() {
            return;
        }
        let words = self.arena.words();
        if let Some([first, .., last]) = words.get(branch.block()..branch.block() + USUAL) {
            prefetch(first);
            prefetch(last);
        }
    }

    /// From a pointer to the next branch.
    #[inline]
    fn step(&self, branch: Branch, key: K, depth: &mut u32) -> Branch {
        let mut block = &self.arena.words()[branch.block()..];
        if K::SKIP && branch.is_skip() {
            let (header, node) = block.split_at(Self::HEADER);
            *depth = header[1];
            if !key.agrees(K::load(&header[2..]), *depth) {
                return Branch(header[0]);
            }
            block = node;
        }
        let chunk = key.chunk(*depth);
        *depth += STRIDE;
        Branch(block[1 + rank(bitmap(block[0], block[1]), chunk)])
    }

    /// Has the processor load what an update of this address, soon to come, will look at first.
    #[inline]
    pub(super) fn prepare(&self, key: K) {
        if let Some(&branch) = self.root.get(key.root()) {
            self.fetch(branch);
        }
    }

    /// Makes `adjacency` the answer for the addresses that the first `len` bits of `key` cover and
    /// no longer prefix does. The other bits must be zero.
    pub(super) fn insert(&mut self, key: K, len: u32, adjacency: AdjacencyId) {
        let leaf = Branch::leaf(len, adjacency);
        self.update(&Update {
            key,
            len,
            from: 0,
            to: leaf.rank(),
            leaf,
        });
    }

    /// Undoes an insertion. `cover` is the longest prefix that covers this one: its length and
    /// adjacency.
    pub(super) fn remove(&mut self, key: K, len: u32, cover: Option<(u32, AdjacencyId)>) {
        let own = Branch::leaf(len, AdjacencyId::NO_ROUTE).rank();
        self.update(&Update {
            key,
            len,
            from: own,
            to: own,
            leaf: cover.map_or(Branch::NONE, |(len, adjacency)| {
                Branch::leaf(len, adjacency)
            }),
        });
    }

    /// Octets of heap memory.
    pub(super) fn mem_size(&self) -> usize {
        self.root.capacity() * size_of::<Branch>() + self.arena.mem_size()
    }

    fn update(&mut self, update: &Update<K>) {
        if self.root.is_empty() {
            self.root = vec![Branch::NONE; 1 << ROOT_BITS];
        }
        let first = update.key.root();
        if update.len > ROOT_BITS {
            if let Some(branch) = self.descend(self.root[first], ROOT_BITS, update) {
                self.root[first] = branch;
            }
            return;
        }
        for root in first..first + (1 << (ROOT_BITS - update.len)) {
            self.root[root] = self.paint(self.root[root], ROOT_BITS, K::from_root(root), update);
        }
    }

    /// Updates what is below a branch at `depth` of which the prefix covers a part. Returns the branch
    /// in its place; `None` if what leads to it may stay as it is.
    fn descend(&mut self, branch: Branch, depth: u32, update: &Update<K>) -> Option<Branch> {
        let Some(node) = self.open(branch, depth) else {
            return update
                .concerns(branch)
                .then(|| self.split(branch, depth, update));
        };
        if let Some((miss, path)) = node.skip
            && (update.len <= node.depth || !update.key.agrees(path, node.depth))
        {
            let mut branches = [miss; BRANCHES];
            let next = depth + STRIDE;
            branches[path.chunk(depth)] = self.shorten(branch, &node, next);
            return Some(self.rewrite(branches, depth, update));
        }
        let next = node.depth + STRIDE;
        if update.len <= next {
            return self.update_node(&node, depth, update);
        }
        let chunk = update.key.chunk(node.depth);
        let position = node.position(chunk);
        let child = Branch(self.arena.words()[position]);
        if !child.is_pointer() {
            return self.update_node(&node, depth, update);
        }
        let new = self.descend(child, next, update)?;
        if new.is_pointer() && !node.may_lead_one_way() {
            self.arena.words_mut()[position] = new.0;
            return None;
        }
        let mut branches = self.decode(&node);
        branches[chunk] = new;
        Some(self.replace(&node, &branches, depth, update.key))
    }

    /// What becomes of a leaf at `depth` of which the prefix covers a part: the node in which the prefix
    /// ends, and the way there.
    fn split(&mut self, leaf: Branch, depth: u32, update: &Update<K>) -> Branch {
        let path = update.key;
        let last = depth + (update.len - 1 - depth) / STRIDE * STRIDE;
        let first = path.chunk(last);
        let covered = first..first + (1 << (last + STRIDE - update.len));
        let mut branches = [leaf; BRANCHES];
        branches[covered].fill(update.leaf);
        let mut inner = self.close(&branches, last, path);
        if K::SKIP {
            return self.extend(inner, last, depth, leaf, path);
        }
        let mut at = last;
        while at > depth && inner != leaf {
            at -= STRIDE;
            inner = self.fork(inner, path.chunk(at), leaf);
        }
        inner
    }

    /// Updates a node, found behind a branch at `depth`, that has no node below it of which the prefix
    /// covers a part. Returns as [`Self::descend`] does.
    fn update_node(&mut self, node: &Node<K>, depth: u32, update: &Update<K>) -> Option<Branch> {
        if self.update_run(node, update) {
            return None;
        }
        let mut branches = self.decode(node);
        let changed = self.update_slots(&mut branches, node.depth, update);
        (changed || node.may_lead_one_way())
            .then(|| self.replace(node, &branches, depth, update.key))
    }

    /// Updates a leaf of a node in place. Returns whether that was possible: the prefix must be a run
    /// of its own, and stay one. That is what most changes of a next hop find.
    fn update_run(&mut self, node: &Node<K>, update: &Update<K>) -> bool {
        let Some(len) = (node.depth + STRIDE).checked_sub(update.len) else {
            return false;
        };
        let first = update.key.chunk(node.depth);
        if node.run_at(first) != Some(1 << len) {
            return false;
        }
        let run = node.position(first) - (node.at + 2);
        let runs = &mut self.arena.words_mut()[node.at + 2..node.end()];
        let old = Branch(runs[run]);
        let before = run.checked_sub(1).map(|before| runs[before]);
        let after = runs.get(run + 1).copied();
        let new = update.apply(old).0;
        if old.is_pointer() || before == Some(new) || after == Some(new) {
            return false;
        }
        runs[run] = new;
        // With one more there are too many for one way.
        let few: ArrayVec<Branch, 4> = runs.iter().take(4).map(|&run| Branch(run)).collect();
        let one_way = K::SKIP && only_way(&few).is_some();
        if one_way {
            runs[run] = old.0;
        }
        !one_way
    }

    fn rewrite(&mut self, mut branches: Branches, depth: u32, update: &Update<K>) -> Branch {
        self.update_slots(&mut branches, depth, update);
        self.close(&branches, depth, update.key)
    }

    /// Updates the branches of a node at `depth`. Returns whether any has changed.
    fn update_slots(&mut self, branches: &mut Branches, depth: u32, update: &Update<K>) -> bool {
        let first = update.key.chunk(depth);
        let next = depth + STRIDE;
        if update.len > next {
            let new = self.descend(branches[first], next, update);
            branches[first] = new.unwrap_or(branches[first]);
            return new.is_some();
        }
        let covered = first..first + (1 << (next - update.len));
        let path = update.key;
        self.paint_slots(branches, covered, depth, path, update)
    }

    /// Updates a branch at `depth`, of which the prefix covers all.
    fn paint(&mut self, branch: Branch, depth: u32, path: K, update: &Update<K>) -> Branch {
        let Some(node) = self.open(branch, depth) else {
            return update.apply(branch);
        };
        let path = node.skip.map_or(path, |(_, path)| path);
        let mut branches = self.decode(&node);
        let slots_changed = self.paint_slots(&mut branches, 0..BRANCHES, node.depth, path, update);
        let miss_changed = node.skip.is_some_and(|(miss, _)| update.concerns(miss));
        if !slots_changed && !miss_changed && !node.may_lead_one_way() {
            return branch;
        }
        let node = Node {
            skip: node.skip.map(|(miss, path)| (update.apply(miss), path)),
            ..node
        };
        self.replace(&node, &branches, depth, path)
    }

    fn paint_slots(
        &mut self,
        branches: &mut Branches,
        covered: core::ops::Range<usize>,
        depth: u32,
        path: K,
        update: &Update<K>,
    ) -> bool {
        let mut changed = false;
        for &branch in &branches[covered.clone()] {
            self.fetch(branch);
        }
        // The leaf before, and what has become of it: most come again.
        let mut before = (Branch::NONE, update.apply(Branch::NONE));
        for chunk in covered {
            let old = branches[chunk];
            if old == before.0 {
                branches[chunk] = before.1;
                changed |= old != before.1;
                continue;
            }
            branches[chunk] = if old.is_pointer() {
                // The prefix ends here or before, so the path has zeros in this place.
                let path = path.with_chunk(depth, chunk);
                self.paint(old, depth + STRIDE, path, update)
            } else {
                before = (old, update.apply(old));
                before.1
            };
            changed |= branches[chunk] != old;
        }
        changed
    }

    /// The node behind a branch at `depth`; `None` of a leaf.
    fn open(&self, branch: Branch, depth: u32) -> Option<Node<K>> {
        if !branch.is_pointer() {
            return None;
        }
        let start = branch.block();
        let block = &self.arena.words()[start..];
        let (at, depth, skip) = if branch.is_skip() {
            let skip = (Branch(block[0]), K::load(&block[2..]));
            (start + Self::HEADER, block[1], Some(skip))
        } else {
            (start, depth, None)
        };
        let node = &self.arena.words()[at..];
        let bitmap = bitmap(node[0], node[1]);
        Some(Node {
            start,
            at,
            bitmap,
            depth,
            skip,
        })
    }

    fn decode(&self, node: &Node<K>) -> Branches {
        let runs = &self.arena.words()[node.at + 2..node.end()];
        let mut branches = [Branch::NONE; BRANCHES];
        let mut begins = node.bitmap;
        for &run in runs {
            let from = begins.trailing_zeros() as usize;
            begins &= begins - 1;
            let to = if begins == 0 {
                BRANCHES
            } else {
                begins.trailing_zeros() as usize
            };
            branches[from..to].fill(Branch(run));
        }
        branches
    }

    /// Puts `branches` in the place of a node that a branch at `depth` pointed to. Returns what that branch
    /// becomes.
    fn replace(&mut self, node: &Node<K>, branches: &Branches, depth: u32, path: K) -> Branch {
        self.release(node);
        let inner = self.close(branches, node.depth, path);
        match node.skip {
            None => inner,
            Some((miss, path)) => self.extend(inner, node.depth, depth, miss, path),
        }
    }

    /// The branch for a node at `depth` with these branches: a leaf if they are equal, and a skip node
    /// if there is one way on.
    fn close(&mut self, branches: &Branches, depth: u32, path: K) -> Branch {
        let (begins, runs, count) = encode(branches);
        let runs = &runs[..count];
        if let &[all] = runs {
            return all;
        }
        if K::SKIP
            && let Some((run, miss)) = only_way(runs)
        {
            let chunk = nth_one(begins, run);
            let path = path.truncated(depth).with_chunk(depth, chunk);
            return self.extend(runs[run], depth + STRIDE, depth, miss, path);
        }
        self.write(None, begins, runs)
    }

    /// What a branch at depth `to` becomes if at depth `from` of `path` there is `inner`, and `miss`
    /// everywhere else.
    fn extend(&mut self, inner: Branch, from: u32, to: u32, miss: Branch, path: K) -> Branch {
        if from == to || inner == miss {
            return inner;
        }
        match self.open(inner, from) {
            Some(Node { skip: None, .. }) => {
                return self.with_header(inner, from, Some((miss, path.truncated(from))));
            }
            Some(Node {
                skip: Some((same, _)),
                ..
            }) if same == miss => return inner,
            _ => {}
        }
        let before = from - STRIDE;
        let node = self.fork(inner, path.chunk(before), miss);
        self.extend(node, before, to, miss, path)
    }

    /// A node with one `way` on, and the same leaf everywhere else.
    fn fork(&mut self, way: Branch, chunk: usize, miss: Branch) -> Branch {
        let begins = 1 | 1_u64 << chunk | 1_u64 << chunk << 1;
        let runs = [miss, way, miss];
        let first = usize::from(chunk == 0);
        let count = begins.count_ones() as usize;
        self.write(None, begins, &runs[first..first + count])
    }

    /// The branch, at depth `to`, for a skip node that a branch further up points to.
    fn shorten(&mut self, branch: Branch, node: &Node<K>, to: u32) -> Branch {
        if node.depth == to {
            self.with_header(branch, to, None)
        } else {
            branch
        }
    }

    /// Turns a node at `depth` into a skip node with this miss and path, or into a plain one.
    fn with_header(&mut self, branch: Branch, depth: u32, skip: Option<(Branch, K)>) -> Branch {
        let Some(node) = self.open(branch, depth) else {
            return branch;
        };
        let mut runs = [Branch::NONE; BRANCHES];
        let words = &self.arena.words()[node.at + 2..node.end()];
        for (run, &word) in runs.iter_mut().zip(words) {
            *run = Branch(word);
        }
        self.release(&node);
        let header = skip.map(|(miss, path)| (depth, miss, path));
        self.write(header, node.bitmap, &runs[..node.runs()])
    }

    fn write(&mut self, header: Option<(u32, Branch, K)>, begins: u64, runs: &[Branch]) -> Branch {
        let header_len = if header.is_some() { Self::HEADER } else { 0 };
        let len = header_len + 2 + runs.len();
        let start = self.arena.allocate(len);
        let block = &mut self.arena.words_mut()[start..start + len];
        if let Some((depth, miss, path)) = header {
            block[0] = miss.0;
            block[1] = depth;
            path.store(&mut block[2..]);
        }
        let node = &mut block[header_len..];
        node[0] = low_half(begins);
        node[1] = low_half(begins >> 32);
        for (word, run) in node[2..].iter_mut().zip(runs) {
            *word = run.0;
        }
        Branch::pointer(start, header.is_some())
    }

    fn release(&mut self, node: &Node<K>) {
        self.arena.release(node.start, node.end() - node.start);
    }
}

/// Where runs of equal branches begin, what each consists of, and how many there are.
fn encode(branches: &Branches) -> (u64, Branches, usize) {
    const PART: usize = 8;
    let mut begins = 1;
    let mut runs = [branches[0]; BRANCHES];
    let mut count = 1;
    let mut last = branches[0];
    for (first, part) in (0..).step_by(PART).zip(branches.chunks_exact(PART)) {
        // Most nodes have few runs.
        if part == [last; PART] {
            continue;
        }
        for (n, &branch) in (first..).zip(part) {
            let begin = branch != last;
            begins |= u64::from(begin) << n;
            count += usize::from(begin);
            // Without a branch: where no run begins, it is what the last one consists of.
            runs[count - 1] = branch;
            last = branch;
        }
    }
    (begins, runs, count)
}

/// If one run is a pointer and all others are the same leaf: which run, and the leaf.
fn only_way(runs: &[Branch]) -> Option<(usize, Branch)> {
    let (way, miss) = match *runs {
        [way, miss] if way.is_pointer() => (0, miss),
        [miss, way] if way.is_pointer() => (1, miss),
        [miss, way, same] if way.is_pointer() && same == miss => (1, miss),
        _ => return None,
    };
    (!miss.is_pointer()).then_some((way, miss))
}

/// The position of the `n`th one.
fn nth_one(mut bits: u64, n: usize) -> usize {
    for _ in 0..n {
        bits &= bits - 1;
    }
    bits.trailing_zeros() as usize
}

#[expect(clippy::cast_possible_truncation, reason = "the half that is wanted")]
fn low_half(word: u64) -> u32 {
    word as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    impl<K: Key> Table<K> {
        /// Checks that every node is encoded as it should be, and that no block is lost.
        pub(in super::super) fn check(&self) {
            let mut words = 0;
            for (root, &branch) in self.root.iter().enumerate() {
                words += self.check_slot(branch, ROOT_BITS, K::from_root(root));
            }
            assert_eq!(words, self.arena.live());
        }

        fn check_slot(&self, branch: Branch, depth: u32, path: K) -> usize {
            let Some(node) = self.open(branch, depth) else {
                return 0;
            };
            assert!(node.depth < K::WIDTH);
            let path = node.skip.map_or(path, |(_, key)| {
                assert!(node.depth > depth && key.agrees(path, depth));
                assert_eq!(key, key.truncated(node.depth));
                key
            });
            let branches = self.decode(&node);
            let (begins, runs, count) = encode(&branches);
            assert_eq!(begins, node.bitmap, "runs are as long as can be");
            assert!(count > 1, "a node makes a difference");
            if K::SKIP
                && let Some((way, miss)) = only_way(&runs[..count])
            {
                let below = self.open(runs[way], node.depth + STRIDE).unwrap();
                let other_miss = below.skip.is_some_and(|(below, _)| below != miss);
                assert!(other_miss, "paths are skipped");
            }
            let below = branches.iter().enumerate().map(|(chunk, &branch)| {
                let path = path.with_chunk(node.depth, chunk);
                self.check_slot(branch, node.depth + STRIDE, path)
            });
            Arena::occupied(node.end() - node.start) + below.sum::<usize>()
        }
    }

    #[test]
    fn keys_take_addresses_apart() {
        let key = 0xc0a8_01fe_u32;
        let root = u32::from_root(key.root());
        let whole = root
            .with_chunk(18, key.chunk(18))
            .with_chunk(24, key.chunk(24));
        assert_eq!(whole, 0xc0a8_01fc);
        assert_eq!(key.chunk(30), 0b10_0000, "the last two bits, and zeros");
        assert_eq!(key.truncated(18), root);
        let key = 0x2001_0db8_0000_0001_8000_0000_0000_0003_u128;
        assert_eq!(key.chunk(126), 0b11_0000);
        assert!(key.agrees(key | 4, 125) && !key.agrees(key | 4, 126));
        let mut words = [0; 4];
        key.store(&mut words);
        assert_eq!(u128::load(&words), key);
    }

    #[test]
    fn host_routes_are_few_steps_away() {
        let mut table = Table::<u128>::new();
        let net = 0x2001_0db8_0000_0001 << 64;
        table.insert(0, 0, AdjacencyId(1));
        table.insert(net, 64, AdjacencyId(2));
        table.insert(net | 1, 128, AdjacencyId(3));
        table.check();
        let mut depth = ROOT_BITS;
        let mut branch = table.root[Key::root(net)];
        let mut steps = 0;
        while branch.is_pointer() {
            branch = table.step(branch, net | 1, &mut depth);
            steps += 1;
        }
        assert_eq!((branch.adjacency(), steps), (AdjacencyId(3), 2));
        for (key, len, cover) in [
            (net | 1, 128, Some((64, AdjacencyId(2)))),
            (net, 64, Some((0, AdjacencyId(1)))),
            (0, 0, None),
        ] {
            table.remove(key, len, cover);
            table.check();
        }
        assert_eq!(table.arena.live(), 0);
    }
}
