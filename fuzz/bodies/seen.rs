//! What a packet says of itself: it lies in the frame, agrees, and follows from its octets.

use nos_shim::drop::DropReason;
use nos_shim::frame::FramePool;
use nos_shim::packet::{Fragment, Packet};

/// Everything that a packet says of itself lies in its frame, and agrees.
pub fn look(packet: &Packet) {
    let len = packet.frame().len();
    let (transport, payload) = (packet.transport_offset(), packet.payload_offset());
    assert!(34 <= transport && transport <= payload && payload <= len);
    assert_eq!(packet.transport().len(), len - transport);
    assert_eq!(packet.ip().len(), len - 14);
    assert!(packet.wire_len() <= len - 14);
    let later = packet.fragment() == Fragment::Later;
    assert!(!later || packet.ports().is_none() && packet.icmp().is_none());
    assert!(packet.tcp_flags().is_none() || packet.ports().is_some());
    assert!(packet.echo_id().is_none() || packet.icmp().is_some());
    match packet.fragment_place() {
        None => assert_eq!(packet.fragment(), Fragment::Whole),
        Some((_, span)) => {
            assert!(span.start <= span.end && span.end <= 65_535);
            assert_eq!(later, span.start > 0);
        }
    }
    let _ = (packet.addresses(), packet.source_mac(), packet.ttl());
    let _ = (packet.has_options(), packet.has_segments_left());
    let _ = packet.transport_checksum_ok();
}

/// The proof that `packet` carries must follow from its octets.
pub fn parses_to_the_same(packet: &Packet, pool: &mut FramePool) {
    let mut frame = pool
        .copy_from(packet.frame().bytes())
        .expect("a spare buffer");
    frame.set_offload(packet.frame().offload());
    match Packet::parse(frame) {
        Ok(again) => {
            let all = |packet: &Packet| {
                let places = (packet.transport_offset(), packet.payload_offset());
                let kind = (packet.protocol(), packet.ports(), packet.fragment_place());
                (packet.frame().len(), places, kind, packet.has_options())
            };
            assert_eq!(all(packet), all(&again));
            pool.free(again.into_frame());
        }
        // The least MTUs leave less than a transport header in the first fragment.
        Err(rejected) => {
            assert_eq!(rejected.reason, DropReason::TinyFragment);
            assert_eq!(packet.fragment(), Fragment::First);
            assert_eq!(packet.ports(), None);
            pool.free(rejected.frame);
        }
    }
}

/// Judges the checksum of what counts as verified.
pub fn checksum_ok(packet: &Packet, pool: &mut FramePool) -> bool {
    let frame = pool
        .copy_from(packet.frame().bytes())
        .expect("a spare buffer");
    match Packet::parse(frame) {
        Ok(packet) => {
            let ok = packet.transport_checksum_ok();
            pool.free(packet.into_frame());
            ok
        }
        Err(rejected) => {
            pool.free(rejected.frame);
            false
        }
    }
}
