//! See `bodies/flows.rs`.

#![no_main]

#[allow(dead_code, reason = "each target uses a part")]
#[path = "../bodies"]
mod bodies {
    pub mod flows;
    pub mod frames;
    pub mod pools;
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bodies::flows::run(data);
});
