//! See `bodies/config.rs`.

#![no_main]

#[allow(dead_code, reason = "each target uses a part")]
#[path = "../bodies"]
mod bodies {
    pub mod config;
}

libfuzzer_sys::fuzz_target!(|data: &str| {
    bodies::config::run(data);
});
