//! See `bodies/reload.rs`.

#![no_main]

#[allow(dead_code, reason = "each target uses a part")]
#[path = "../bodies"]
mod bodies {
    pub mod config;
    pub mod reload;
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bodies::reload::run(data);
});
