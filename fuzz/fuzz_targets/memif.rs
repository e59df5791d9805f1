//! See `bodies/memif.rs`.

#![no_main]

#[allow(dead_code, reason = "each target uses a part")]
#[path = "../bodies"]
mod bodies {
    pub mod memif;
    pub mod pools;
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bodies::memif::run(data);
});
