//! An allocator that counts, for each thread: how often it was asked, and how much lives.
//!
//! A thread that frees what another allocated goes below zero; whoever compares two counts keeps
//! what lies between them on one thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static OCTETS: Cell<isize> = const { Cell::new(0) };
}

/// How often this thread has asked for memory, or for more of it.
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.get()
}

/// Octets that this thread has allocated, less those that it has freed.
pub(crate) fn octets() -> isize {
    OCTETS.get()
}

/// The system's allocator, and the counts.
pub(crate) struct Counting;

fn count(grown: usize, shrunk: usize) {
    // A thread that is ending may have no cells any more: nobody asks for its counts then.
    let _ = OCTETS.try_with(|octets| {
        octets.set(octets.get() + grown.cast_signed() - shrunk.cast_signed());
    });
}

fn asked() {
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: every call is handed on as it is, so what holds of the system's allocator holds of this.
// The cells are made at compile time and need no destructor: counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        asked();
        count(layout.size(), 0);
        // SAFETY: as the caller says.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        asked();
        count(layout.size(), 0);
        // SAFETY: as the caller says.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as the caller says.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        asked();
        count(new_size, layout.size());
        // SAFETY: as the caller says.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}
