//! See `bodies/control.rs`.

#![no_main]

#[allow(dead_code, reason = "each target uses a part")]
#[path = "../bodies"]
mod bodies {
    pub mod control;
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bodies::control::run(data);
});
