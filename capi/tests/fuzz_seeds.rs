//! What the fuzz target `capi` checks, with the inputs that fuzzing has found.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends where its inputs are not there"
)]

use std::path::Path;

#[allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    clippy::needless_pass_by_value,
    reason = "a part of the fuzz targets, whose numbers are small"
)]
#[path = "../../fuzz/bodies"]
mod bodies {
    pub mod capi;
    pub mod pools;
}

#[test]
fn calls_do_what_the_model_says() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/capi");
    let mut count = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        bodies::capi::run(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 20, "{count} inputs are too few");
}
