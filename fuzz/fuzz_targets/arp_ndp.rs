//! See `bodies/arp_ndp.rs`.

#![no_main]

#[allow(dead_code, reason = "each target uses a part")]
#[path = "../bodies"]
mod bodies {
    pub mod arp_ndp;
    pub mod pools;
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bodies::arp_ndp::run(data);
});
