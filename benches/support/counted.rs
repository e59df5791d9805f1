//! Benchmarks whose instructions are counted, by valgrind, instead of their time.
//!
//! `benches/instructions` runs one benchmark at a time, repeats its work as often as [`REPEATS`]
//! says, and has valgrind collect inside of [`counted`] only. A count is the same on a busy machine
//! and on an idle one.

/// The environment variable with the iterations of a benchmark whose instructions are counted.
const REPEATS: &str = "NOS_RELAY_COUNT_ITERATIONS";

/// Does `work`. The script knows this function by its name, so it is never inlined.
#[inline(never)]
pub(crate) fn counted<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// How often a benchmark is to do its work: `iterations`, unless its instructions are counted.
pub(crate) fn repeats(iterations: u64) -> u64 {
    asked().unwrap_or(iterations)
}

/// Prints how many elements the counted instructions were for.
pub(crate) fn print_elements(elements: u64) {
    if asked().is_some() {
        println!("counted elements: {elements}");
    }
}

fn asked() -> Option<u64> {
    std::env::var(REPEATS).ok()?.parse().ok()
}
