//! What the benchmarks share: packets to work on, and cycles beside nanoseconds.
//!
//! Criterion counts nanoseconds. Beside them each benchmark prints the cycles that one of its
//! elements took, as the time stamp counter of x86-64 counts them: *reference* cycles, of a constant
//! rate that is printed too, whatever the core's clock was meanwhile. The core's own counters are
//! out of reach in most virtual machines, and one number should mean the same everywhere.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "each benchmark uses a part of it, and may stop where its data are wrong"
)]

pub(crate) mod counted;
pub(crate) mod cycles;
pub(crate) mod flows;
pub(crate) mod live;
pub(crate) mod packets;

/// Whether each benchmark only runs once, to see that it does: then tables can be small.
///
/// As criterion has it: `cargo bench` passes `--bench`, `cargo test` does not.
pub(crate) fn is_smoke_test() -> bool {
    let mut bench = false;
    let mut test = false;
    for argument in std::env::args() {
        bench |= argument == "--bench";
        test |= argument == "--test";
    }
    test || !bench
}

/// `full`, or `small` in a smoke test.
pub(crate) fn size(full: usize, small: usize) -> usize {
    if is_smoke_test() { small } else { full }
}
