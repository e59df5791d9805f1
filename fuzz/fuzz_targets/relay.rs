//! Relay and NOS together, without devices: whatever comes in whatever order, no panic, no packet
//! unaccounted for, no buffer lost, nothing sent to who is not there, and no timer that spins.
//!
//! Input: a script; see `world`.

#![no_main]

#[path = "relay/frames.rs"]
mod frames;
#[path = "relay/world.rs"]
mod world;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: &[u8]| {
    world::run(script);
});
