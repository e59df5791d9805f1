//! See `bodies/offload.rs`.

#![no_main]

#[allow(dead_code, reason = "each target uses a part")]
#[path = "../bodies"]
mod bodies {
    pub mod framed;
    pub mod offload;
    pub mod pools;
    pub mod seen;
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bodies::offload::run(data);
});
