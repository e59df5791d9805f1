//! Large allocations in huge pages.
//!
//! A full routing table is tens of megabytes that are read at random, and with pages of 4 KiB each
//! read waits for the page table as well. Linux gives huge pages to who asks for them
//! (`/sys/kernel/mm/transparent_hugepage/enabled` is `madvise` on most systems); so this asks.

use std::alloc::{GlobalAlloc, Layout, System};

/// Allocations from this size on are for huge pages: less than two of them are not worth it.
const LEAST: usize = 4 << 20;

/// The system's allocator, which asks the kernel for huge pages behind large allocations. Where
/// there are none it is as the system's.
///
/// It is for a program to set as its `#[global_allocator]`, as `nos-relay` does. Memory that is
/// wanted [zeroed](GlobalAlloc::alloc_zeroed) is left out: that becomes resident with its use, as
/// the buffers of frames do, and would so in larger parts.
#[derive(Clone, Copy, Debug, Default)]
pub struct HugePages;

// SAFETY: all memory is the system allocator's, asked for and given back with the same layouts; a
// hint to the kernel changes nothing about it.
unsafe impl GlobalAlloc for HugePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps what the system's allocator asks for.
        let memory = unsafe { System.alloc(layout) };
        advise(memory, layout.size());
        memory
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        let memory = unsafe { System.realloc(memory, layout, size) };
        advise(memory, size);
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Asks for huge pages behind the whole pages of an allocation. A kernel without them says so, and
/// nothing is lost.
fn advise(memory: *mut u8, size: usize) {
    /// The largest page that a Linux may have: the others are parts of it.
    const PAGE: usize = 64 << 10;
    if size < LEAST || memory.is_null() {
        return;
    }
    let skip = memory.align_offset(PAGE);
    if skip >= size {
        return;
    }
    let whole = (size - skip) & !(PAGE - 1);
    // SAFETY: the octets are of one allocation, and the hint does not change them.
    unsafe { libc::madvise(memory.add(skip).cast(), whole, libc::MADV_HUGEPAGE) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is allocated, grown and shrunk keeps its contents, around the size from which on huge
    /// pages are asked for.
    #[test]
    fn contents_stay_through_every_size() {
        let layout = |size| Layout::from_size_align(size, 64).unwrap();
        let mut size = LEAST / 2;
        // SAFETY: the size is not zero.
        let mut memory = unsafe { HugePages.alloc(layout(size)) };
        let mark = |memory: *mut u8, at: usize| {
            // SAFETY: the callers name octets of the allocation.
            unsafe { memory.add(at).write(7) };
        };
        mark(memory, 0);
        mark(memory, LEAST / 2 - 1);
        for next in [LEAST - 1, LEAST, 3 * LEAST + 5, LEAST / 2] {
            // SAFETY: allocated with this size and alignment.
            memory = unsafe { HugePages.realloc(memory, layout(size), next) };
            assert!(!memory.is_null());
            size = next;
            // SAFETY: both were written, and lie inside of every size above.
            let marks = unsafe { (memory.read(), memory.add(LEAST / 2 - 1).read()) };
            assert_eq!(marks, (7, 7));
        }
        // SAFETY: allocated with this size and alignment.
        unsafe { HugePages.dealloc(memory, layout(size)) };
    }
}
