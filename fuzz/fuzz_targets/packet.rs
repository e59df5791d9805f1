//! See `bodies/packet.rs`.

#![no_main]

#[allow(dead_code, reason = "each target uses a part")]
#[path = "../bodies"]
mod bodies {
    pub mod differential;
    pub mod framed;
    pub mod packet;
    pub mod pools;
    pub mod seen;
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bodies::packet::run(data);
});
