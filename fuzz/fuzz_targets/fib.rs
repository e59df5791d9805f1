//! See `bodies/fib.rs`.

#![no_main]

#[allow(dead_code, reason = "each target uses a part")]
#[path = "../bodies"]
mod bodies {
    pub mod fib;
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bodies::fib::run(data);
});
