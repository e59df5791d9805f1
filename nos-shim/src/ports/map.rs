//! A number of 32 bits for every port of every address, found in two loads.
//!
//! The 65,536 ports of an address and transport are 256 blocks of 256. A block whose ports are all
//! in the same hands is one word in the address's directory; any other has a page of its own. So an
//! address costs 2 KiB, a large range little more, and never more than 512 KiB; and a lookup costs
//! the same however many ranges there are.

use core::hint::select_unpredictable;

use super::claim::LAST_OWNER;
use super::{ClaimKind, PortOwner, PortRange, Transport};
use crate::ident::{AttachmentId, LocalAddressId};

/// Ports of a block, and blocks of an address and transport.
const BLOCK: usize = 256;

/// Marks the word of a block that has a page: the rest is the page's number.
const PAGED: u32 = 1 << 31;

/// Who has a port: three bits that say what kind of owner, above them the attachment's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PackedOwner(u32);

impl PackedOwner {
    pub(super) const NOBODY: Self = Self(0);
    pub(super) const NOS: Self = Self(1);
    /// A service to which not everybody may open flows.
    pub(super) const WATCHED_NOS: Self = Self(Self::WATCHED | 1);
    const LISTEN: u32 = 2;
    const EPHEMERAL: u32 = 3;
    /// A policy has something to say.
    const WATCHED: u32 = 4;

    /// `id` must be [`LAST_OWNER`] at most.
    pub(super) fn of(id: AttachmentId, kind: ClaimKind, watched: bool) -> Self {
        debug_assert!(id.0 <= LAST_OWNER);
        let kind = match kind {
            ClaimKind::Listen => Self::LISTEN,
            ClaimKind::Ephemeral => Self::EPHEMERAL,
        };
        let watched = if watched { Self::WATCHED } else { 0 };
        Self(id.0 << 3 & !PAGED | watched | kind)
    }

    /// Who that is.
    #[inline]
    pub(super) fn owner(self) -> PortOwner {
        let id = AttachmentId(self.0 >> 3);
        let (kind, watched) = match self.0 & 7 {
            0 => return PortOwner::Nobody,
            Self::LISTEN => (ClaimKind::Listen, false),
            Self::EPHEMERAL => (ClaimKind::Ephemeral, false),
            Self::WATCHED_LISTEN => (ClaimKind::Listen, true),
            Self::WATCHED_EPHEMERAL => (ClaimKind::Ephemeral, true),
            Self::WATCHED_SERVICE => return PortOwner::WatchedNos,
            _ => return PortOwner::Nos,
        };
        match watched {
            false => PortOwner::Attachment { id, kind },
            true => PortOwner::Watched { id, kind },
        }
    }

    const WATCHED_LISTEN: u32 = Self::WATCHED | Self::LISTEN;
    const WATCHED_EPHEMERAL: u32 = Self::WATCHED | Self::EPHEMERAL;
    const WATCHED_SERVICE: u32 = Self::WATCHED_NOS.0;

    /// Whether it is a service of the NOS.
    pub(super) fn is_nos(self) -> bool {
        matches!(self, Self::NOS | Self::WATCHED_NOS)
    }

    /// The attachment, if the owner is neither nobody nor the NOS.
    pub(super) fn attachment(self) -> Option<AttachmentId> {
        (self.0 & 2 != 0).then_some(AttachmentId(self.0 >> 3))
    }
}

/// The owners of all ports of all addresses.
#[derive(Debug)]
pub(super) struct PortMap {
    /// By address, transport and block: an owner, or the number of a page.
    directories: Vec<[[u32; BLOCK]; 2]>,
    /// Page 0 is never in use: lookups of blocks without a page read it and forget what they read.
    pages: Vec<[u32; BLOCK]>,
    free_pages: Vec<u32>,
}

impl PortMap {
    pub(super) fn new() -> Self {
        Self {
            directories: Vec::new(),
            pages: vec![[0; BLOCK]],
            free_pages: Vec::new(),
        }
    }

    /// Makes room for `address`, whose ports are nobody's.
    pub(super) fn add(&mut self, address: LocalAddressId) {
        let needed = address.0 as usize + 1;
        if self.directories.len() < needed {
            self.directories.resize(needed, [[0; BLOCK]; 2]);
        }
    }

    /// Makes all ports of `address` nobody's.
    pub(super) fn clear(&mut self, address: LocalAddressId) {
        if let Some(directory) = self.directories.get_mut(address.0 as usize) {
            for word in directory.as_flattened_mut() {
                if *word & PAGED != 0 {
                    self.free_pages.push(*word & !PAGED);
                }
                *word = 0;
            }
        }
    }

    /// Who has `port`; nobody, if the address is unknown.
    #[inline]
    pub(super) fn at(
        &self,
        address: LocalAddressId,
        transport: Transport,
        port: u16,
    ) -> PackedOwner {
        let Some(directory) = self.directories.get(address.0 as usize) else {
            return PackedOwner::NOBODY;
        };
        let word = directory[transport as usize][usize::from(port >> 8)];
        let paged = word & PAGED != 0;
        // Whether a block has a page is random to the branch predictor: read one either way.
        let page = select_unpredictable(paged, word & !PAGED, 0) as usize;
        let owner = self
            .pages
            .get(page)
            .map_or(0, |page| page[usize::from(port & 0xff)]);
        PackedOwner(select_unpredictable(paged, owner, word))
    }

    /// Gives all ports of `range` to `owner`.
    pub(super) fn fill(
        &mut self,
        address: LocalAddressId,
        transport: Transport,
        range: PortRange,
        PackedOwner(owner): PackedOwner,
    ) {
        for (block, first, last) in blocks(range) {
            if last - first + 1 == BLOCK {
                self.put(address, transport, block, owner);
            } else {
                self.fill_part(address, transport, block, owner, first..=last);
            }
        }
    }

    /// The lowest port of `range` whose owner is wanted.
    pub(super) fn find(
        &self,
        address: LocalAddressId,
        transport: Transport,
        range: PortRange,
        wanted: impl Fn(PackedOwner) -> bool,
    ) -> Option<u16> {
        (range.first()..=range.last()).find(|&port| wanted(self.at(address, transport, port)))
    }

    fn fill_part(
        &mut self,
        address: LocalAddressId,
        transport: Transport,
        block: usize,
        owner: u32,
        ports: core::ops::RangeInclusive<usize>,
    ) {
        let Some(directory) = self.directories.get_mut(address.0 as usize) else {
            return;
        };
        let word = &mut directory[transport as usize][block];
        if *word & PAGED == 0 {
            *word = PAGED | take_page(&mut self.pages, &mut self.free_pages, *word);
        }
        let Some(page) = self.pages.get_mut((*word & !PAGED) as usize) else {
            return;
        };
        page[ports].fill(owner);
        // Without a branch, so that the processor compares several at once.
        let differences = page.iter().fold(0, |all, other| all | (other ^ owner));
        if differences == 0 {
            self.put(address, transport, block, owner);
        }
    }

    /// Makes a block uniform, and gives its page back.
    fn put(&mut self, address: LocalAddressId, transport: Transport, block: usize, owner: u32) {
        if let Some(directory) = self.directories.get_mut(address.0 as usize) {
            let word = core::mem::replace(&mut directory[transport as usize][block], owner);
            if word & PAGED != 0 {
                self.free_pages.push(word & !PAGED);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn pages_in_use(&self) -> usize {
        self.pages.len() - 1 - self.free_pages.len()
    }
}

/// A page filled with `owner`. There are at most 512 for each address, so numbers never run out
/// before memory does.
fn take_page(pages: &mut Vec<[u32; BLOCK]>, free: &mut Vec<u32>, owner: u32) -> u32 {
    let Some(number) = free.pop() else {
        pages.push([owner; BLOCK]);
        return u32::try_from(pages.len() - 1).unwrap_or(0);
    };
    if let Some(page) = pages.get_mut(number as usize) {
        *page = [owner; BLOCK];
    }
    number
}

/// The blocks that `range` touches, with the first and last port of each, counted in the block.
fn blocks(range: PortRange) -> impl Iterator<Item = (usize, usize, usize)> {
    let (first, last) = (usize::from(range.first()), usize::from(range.last()));
    (first / BLOCK..=last / BLOCK).map(move |block| {
        let start = block * BLOCK;
        let end = start + BLOCK - 1;
        (block, first.max(start) - start, last.min(end) - start)
    })
}
