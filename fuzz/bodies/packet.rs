//! The parser: what an accepted packet says of itself, and what two other parsers say of it.
//!
//! Input: see [`super::framed`]; capabilities, buffers and MTU mean nothing here.

use nos_shim::frame::FramePool;
use nos_shim::offload::complete_checksum;
use nos_shim::packet::{Fragment, Packet};

use super::differential;
use super::framed::Framed;
use super::pools::with_pool;
use super::seen::{look, parses_to_the_same};

pub fn run(data: &[u8]) {
    let Some(input) = Framed::read(data) else {
        return;
    };
    with_pool(2, |pool| {
        differential::check(&input.frame, pool);
        if let Some(packet) = input.packet(pool) {
            look(&packet);
            let packet = change(packet, pool);
            pool.free(packet.into_frame());
        }
    });
}

/// Changes of single fields leave a packet that parses to the same.
fn change(mut packet: Packet, pool: &mut FramePool) -> Packet {
    let whole = packet.fragment() == Fragment::Whole;
    let was_right = packet.transport_checksum_ok();
    if packet.decrement_ttl() {
        packet.set_echo_id(0x1234);
        assert!(!whole || !was_right || packet.transport_checksum_ok());
    }
    if packet.frame().offload().segmentation.is_none() {
        complete_checksum(&mut packet);
    }
    parses_to_the_same(&packet, pool);
    packet
}
