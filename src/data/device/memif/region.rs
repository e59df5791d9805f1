//! Memory that two processes share.
//!
//! A region is a memfd that one process maps and hands to the other. What is in it is the other's to
//! change at any moment, so nobody makes a reference into it: octets are copied out and in, and words are
//! read and written by atomic operations ([`super::ring`]).
//!
//! A file that gets shorter takes its pages from whoever has mapped it: the next access ends the process
//! (`SIGBUS`). So a region of a peer is mapped only if it cannot shrink any more (`F_SEAL_SHRINK`), and if
//! its pages are ordinary memory: a hole in huge pages may be impossible to fill again, which ends a
//! process likewise. What DPDK, libmemif and VPP share without zero copy is like that; what DPDK shares
//! with `zero-copy=yes` is not.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::ftruncate;
use thiserror::Error;

/// Octets that all regions of a peer may have together.
pub const MAX_SHARED: u64 = 1 << 30;

/// Why a region is not shared.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RegionError {
    /// The file may shrink under our hands.
    #[error("region {0} is not sealed against shrinking (F_SEAL_SHRINK)")]
    Unsealed(u16),
    /// The pages of the file are not ordinary memory.
    #[error("region {0} is no memfd of ordinary pages")]
    NoMemory(u16),
    /// The file is shorter than the region.
    #[error("region {index} of {claimed} octets has {actual}")]
    Short {
        /// Which region.
        index: u16,
        /// Octets that the peer has named.
        claimed: u64,
        /// Octets of the file.
        actual: u64,
    },
    /// It is empty, or all regions together are longer than [`MAX_SHARED`].
    #[error("region {index} of {claimed} octets: all together have 1 to {MAX_SHARED}")]
    Size {
        /// Which region.
        index: u16,
        /// Octets that the peer has named.
        claimed: u64,
    },
    /// The kernel refused a step.
    #[error("region {index}: cannot {action}: {}", source.desc())]
    Refused {
        /// Which region.
        index: u16,
        /// What was tried.
        action: &'static str,
        /// The kernel's reason.
        source: Errno,
    },
}

/// One mapped region.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    octets: usize,
}

// SAFETY: a region is an address and a length that never change. What is behind them is shared with
// another process anyway: whoever accesses it has to be ready for changes at any moment.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Makes a region of `octets` that is all zero and can be neither shortened nor lengthened, and the
    /// descriptor by which a peer maps it. Its pages are there from the start.
    ///
    /// # Errors
    ///
    /// The kernel has no memory or no descriptor left.
    pub fn create(octets: usize) -> Result<(Self, OwnedFd), RegionError> {
        let refused = |action| {
            move |source| RegionError::Refused {
                index: 0,
                action,
                source,
            }
        };
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create(c"nos-relay-memif", flags).map_err(refused("make a memfd"))?;
        let length = i64::try_from(octets).map_err(|_| refused("size it")(Errno::EFBIG))?;
        ftruncate(&file, length).map_err(refused("size it"))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(refused("seal it"))?;
        let region = Self::mapped(&file, octets, MapFlags::MAP_POPULATE);
        Ok((region.map_err(refused("map it"))?, file))
    }

    /// Maps region `index` of a peer, which names `octets` as its length.
    ///
    /// # Errors
    ///
    /// The region is not what it has to be, or the kernel refuses ([`RegionError`]).
    pub fn of_peer(index: u16, file: &OwnedFd, octets: u64) -> Result<Self, RegionError> {
        let refused = |action| {
            move |source| RegionError::Refused {
                index,
                action,
                source,
            }
        };
        let claimed = octets;
        // What is no memfd knows no seals (EINVAL).
        let seals = fcntl(file, FcntlArg::F_GET_SEALS).map_err(|_| RegionError::NoMemory(index))?;
        if !SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK) {
            return Err(RegionError::Unsealed(index));
        }
        let system = fstatfs(file).map_err(refused("ask for its file system"))?;
        if system.filesystem_type() != TMPFS_MAGIC {
            return Err(RegionError::NoMemory(index));
        }
        let actual = fstat(file).map_err(refused("ask for its length"))?.st_size;
        let actual = u64::try_from(actual).unwrap_or_default();
        if actual < claimed {
            return Err(RegionError::Short {
                index,
                claimed,
                actual,
            });
        }
        let octets = usize::try_from(claimed).ok();
        let octets = octets.filter(|_| (1..=MAX_SHARED).contains(&claimed));
        let octets = octets.ok_or(RegionError::Size { index, claimed })?;
        Self::mapped(file, octets, MapFlags::empty()).map_err(refused("map it"))
    }

    fn mapped(file: &OwnedFd, octets: usize, flags: MapFlags) -> Result<Self, Errno> {
        let length = NonZeroUsize::new(octets).ok_or(Errno::EINVAL)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | flags;
        // SAFETY: a new mapping, at an address of the kernel's choice, takes no other's place.
        let base = unsafe { mmap(None, length, access, flags, file.as_fd(), 0) }?;
        Ok(Self {
            base: base.cast(),
            octets,
        })
    }

    /// Where the `octets` from `offset` on are; `None` unless all of them lie in the region.
    #[inline]
    pub(super) fn window(&self, offset: u32, octets: u32) -> Option<NonNull<u8>> {
        let end = u64::from(offset) + u64::from(octets);
        if end > self.octets as u64 {
            return None;
        }
        // SAFETY: offset <= end <= octets of the mapping, which lasts as long as the region.
        Some(unsafe { self.base.add(offset as usize) })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: what `mapped` has made; nobody has its address any more: views of it are in `Memory`,
        // or keep one.
        let result = unsafe { munmap(self.base.cast(), self.octets) };
        debug_assert_eq!(result, Ok(()));
    }
}

/// All regions of a connection, by their index.
#[derive(Debug, Default)]
pub struct Memory(Vec<Region>);

impl Memory {
    /// The regions that have been made.
    #[must_use]
    pub fn new(regions: Vec<Region>) -> Self {
        Self(regions)
    }

    /// Where the `octets` from `offset` on of `region` are; `None` unless all of them lie in it.
    #[inline]
    pub(super) fn window(&self, region: u16, offset: u32, octets: u32) -> Option<NonNull<u8>> {
        self.0.get(usize::from(region))?.window(offset, octets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn memfd(octets: i64, flags: MFdFlags, seals: SealFlag) -> OwnedFd {
        let file = memfd_create(c"test", flags | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        ftruncate(&file, octets).unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        file
    }

    #[test]
    fn windows_end_where_the_region_does() {
        let (region, _file) = Region::create(4096).unwrap();
        assert!(region.window(0, 4096).is_some());
        assert!(region.window(4096, 0).is_some());
        assert!(region.window(1, 4096).is_none());
        assert!(region.window(4097, 0).is_none());
        assert!(region.window(u32::MAX, u32::MAX).is_none());
        let memory = Memory::new(vec![region]);
        assert!(memory.window(0, 0, 1).is_some());
        assert!(memory.window(1, 0, 0).is_none());
    }

    #[test]
    fn what_one_writes_the_other_reads() {
        let (ours, file) = Region::create(4096).unwrap();
        let theirs = Region::of_peer(0, &file, 4096).unwrap();
        let (write, read) = (ours.window(10, 1).unwrap(), theirs.window(10, 1).unwrap());
        // SAFETY: one octet inside of each mapping, both of which live.
        unsafe {
            write.write_volatile(7);
            assert_eq!(read.read_volatile(), 7);
        }
    }

    #[test]
    fn a_region_that_may_vanish_is_refused() {
        let none = MFdFlags::empty();
        let unsealed = memfd(4096, none, SealFlag::F_SEAL_GROW);
        let refused = Region::of_peer(3, &unsealed, 4096).unwrap_err();
        assert_eq!(refused, RegionError::Unsealed(3));
        let file = OwnedFd::from(File::open("/proc/self/exe").unwrap());
        let refused = Region::of_peer(0, &file, 1).unwrap_err();
        assert_eq!(refused, RegionError::NoMemory(0));
        let short = memfd(4096, none, SealFlag::F_SEAL_SHRINK);
        let refused = Region::of_peer(0, &short, 4097).unwrap_err();
        let (claimed, actual) = (4097, 4096);
        assert_eq!(
            refused,
            RegionError::Short {
                index: 0,
                claimed,
                actual
            }
        );
        for claimed in [0, MAX_SHARED + 1] {
            let long = memfd(1 << 31, none, SealFlag::F_SEAL_SHRINK);
            let refused = Region::of_peer(0, &long, claimed).unwrap_err();
            assert_eq!(refused, RegionError::Size { index: 0, claimed });
        }
        // Not to be written: the kernel refuses the mapping.
        let fixed = memfd(4096, none, SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_WRITE);
        let refused = Region::of_peer(0, &fixed, 4096).unwrap_err();
        assert!(matches!(
            refused,
            RegionError::Refused {
                action: "map it",
                ..
            }
        ));
    }

    #[test]
    fn a_region_of_huge_pages_is_refused() {
        // None need to be there to make an empty file of them.
        let huge = memfd(0, MFdFlags::MFD_HUGETLB, SealFlag::F_SEAL_SHRINK);
        let refused = Region::of_peer(0, &huge, 0).unwrap_err();
        assert_eq!(refused, RegionError::NoMemory(0));
    }

    #[test]
    fn what_is_made_here_cannot_be_changed_by_the_peer() {
        let (_region, file) = Region::create(8192).unwrap();
        assert_eq!(ftruncate(&file, 4096), Err(Errno::EPERM));
        let more = FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE);
        assert_eq!(fcntl(&file, more), Err(Errno::EPERM));
    }
}
