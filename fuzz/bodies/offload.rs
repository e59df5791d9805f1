//! Software offload: completing checksums, segmentation, fragmentation of both IP versions.
//!
//! Whatever is made is a packet that parses to what it claims, and no octet of payload is lost,
//! doubled or out of place: the pieces together are the payload that was cut.
//!
//! Input: see [`super::framed`].

use nos_shim::fragment_ipv6::fragment_ipv6;
use nos_shim::frame::{Checksum, FramePool};
use nos_shim::offload::{Adapted, adapt, complete_checksum, fragment_ipv4};
use nos_shim::packet::{Packet, protocol};

use super::framed::Framed;
use super::pools::with_pool;
use super::seen::{checksum_ok, look, parses_to_the_same};

pub fn run(data: &[u8]) {
    let Some(input) = Framed::read(data) else {
        return;
    };
    with_pool(2, |spare| {
        let Some(packet) = input.packet(spare) else {
            return;
        };
        spare.free(packet.into_frame());
        for work in [adapted, fragmented, fragmented_ipv6] {
            with_pool(input.buffers, |pool| {
                let packet = input.packet(pool).expect("it was accepted before");
                work(&input, packet, pool, spare);
            });
        }
    });
}

/// What becomes of a packet adds up. Returns whether nothing was dropped.
fn balanced(adapted: Adapted, made: usize) -> bool {
    let dropped = adapted.dropped.map_or(0, |dropped| dropped.packets);
    assert_eq!(1 + adapted.originated, made as u64 + dropped);
    dropped == 0
}

fn adapted(input: &Framed<'_>, packet: Packet, pool: &mut FramePool, spare: &mut FramePool) {
    let headers = packet.payload_offset();
    let payload = packet.frame().bytes()[headers..].to_vec();
    let tunneled = packet.tunnel().is_some();
    let longest = packet.wire_len();
    let right = promises_a_right_checksum(&packet);
    let (mut made, mut joined, mut pieces) = (0, Vec::new(), Vec::new());
    let outcome = adapt(packet, input.capabilities, pool, &mut |piece: Packet| {
        made += 1;
        pieces.push(piece);
    });
    for mut piece in pieces {
        let offload = piece.frame().offload();
        assert!(input.capabilities.take(offload));
        assert!(offload.segmentation.is_some() || piece.wire_len() <= longest);
        look(&piece);
        parses_to_the_same(&piece, spare);
        joined.extend_from_slice(&piece.frame().bytes()[headers..]);
        if right && offload.segmentation.is_none() {
            complete_checksum(&mut piece);
            assert!(checksum_ok(&piece, spare));
        }
        pool.free(piece.into_frame());
    }
    // Of a tunnel the pieces have the headers inside again.
    if balanced(outcome, made) && !tunneled {
        assert_eq!(joined.len(), payload.len());
        // A checksum that is completed may lie behind what is known of the transport.
        let completed = matches!(input.offload.checksum, Checksum::Partial { .. })
            && input.offload.segmentation.is_none();
        assert!(completed || joined == payload);
    }
}

/// Whether the pseudo-header's sum stands in the checksum field, as it should.
fn promises_a_right_checksum(packet: &Packet) -> bool {
    let transport = packet.transport();
    let len = u16::try_from(transport.len()).unwrap_or(0).to_be_bytes();
    // A shorter UDP length names another end of what is summed.
    if packet.protocol() == protocol::UDP && transport.get(4..6) != Some(&len[..]) {
        return false;
    }
    match packet.frame().offload().checksum {
        Checksum::Partial { start, offset } if usize::from(start) == packet.transport_offset() => {
            let field = transport
                .get(usize::from(offset)..)
                .and_then(|rest| rest.first_chunk());
            let sum = packet.pseudo_sum(transport.len()).folded();
            !packet.has_segments_left() && field == Some(&sum.to_be_bytes())
        }
        _ => false,
    }
}

fn fragmented(input: &Framed<'_>, packet: Packet, pool: &mut FramePool, spare: &mut FramePool) {
    let fits = packet.wire_len() <= input.mtu;
    let fixed = packet.dont_fragment();
    let (mut made, mut pieces) = (0, Vec::new());
    let outcome = fragment_ipv4(packet, input.mtu, pool, &mut |piece: Packet| {
        made += 1;
        pieces.push(piece);
    });
    for piece in pieces {
        assert!(piece.wire_len() <= input.mtu);
        look(&piece);
        parses_to_the_same(&piece, spare);
        pool.free(piece.into_frame());
    }
    balanced(outcome, made);
    assert!(!fits || made == 1);
    assert!(fits || !fixed || made == 0);
}

/// Packets of the NOS's own, which are whole and complete.
fn fragmented_ipv6(
    input: &Framed<'_>,
    mut packet: Packet,
    pool: &mut FramePool,
    spare: &mut FramePool,
) {
    let offload = packet.frame().offload();
    let own =
        packet.is_ipv6() && packet.transport_offset() == 54 && packet.fragment_place().is_none();
    if !own || offload.segmentation.is_some() || input.mtu < 1280 {
        return pool.free(packet.into_frame());
    }
    complete_checksum(&mut packet);
    let fits = packet.wire_len() <= input.mtu;
    let payload = packet.transport().to_vec();
    let (mut made, mut pieces) = (0, Vec::new());
    let outcome = fragment_ipv6(packet, input.mtu, 7, pool, &mut |piece: Packet| {
        made += 1;
        pieces.push(piece);
    });
    let mut joined = Vec::new();
    for piece in pieces {
        assert!(piece.wire_len() <= input.mtu);
        look(&piece);
        parses_to_the_same(&piece, spare);
        if let Some((_, span)) = piece.fragment_place() {
            assert_eq!(span.start as usize, joined.len());
            assert_eq!(span.last, span.end as usize == payload.len());
        }
        joined.extend_from_slice(&piece.ip()[if fits { 40 } else { 48 }..]);
        pool.free(piece.into_frame());
    }
    assert!(!balanced(outcome, made) || joined == payload);
}
