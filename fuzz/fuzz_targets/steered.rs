//! See `bodies/world.rs`.

#![no_main]

#[allow(dead_code, reason = "each target uses a part")]
#[path = "../bodies"]
mod bodies {
    pub mod frames;
    pub mod network;
    pub mod pools;
    pub mod steered;
    pub mod world;
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bodies::world::run_steered(data);
});
