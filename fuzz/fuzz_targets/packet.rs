//! The parser, what an accepted packet says of itself, and software offload.
//!
//! Input: virtio-net header (10 octets), capabilities of the egress (1), buffers in the pool, and
//! in the highest bit whether the IPv4 header checksum is made right first (1), MTU (2), frame.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nos_shim::checksum::Sum;
use nos_shim::drop::DropReason;
use nos_shim::frame::{Checksum, FramePool, MAX_FRAME, Offload, VNET_HEADER};
use nos_shim::offload::{Adapted, Capabilities, adapt, complete_checksum, fragment_ipv4};
use nos_shim::packet::{Fragment, Packet, protocol};

struct Input<'a> {
    offload: Offload,
    capabilities: Capabilities,
    buffers: usize,
    mtu: usize,
    frame: Vec<u8>,
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    fn read(data: &'a [u8]) -> Option<Self> {
        let (virtio, rest) = data.split_first_chunk::<VNET_HEADER>()?;
        let ([capabilities, buffers, m0, m1], rest) = rest.split_first_chunk()?;
        let mut frame = rest.to_vec();
        if buffers & 0x80 != 0 {
            seal(&mut frame);
        }
        Some(Self {
            offload: Offload::from_virtio(virtio).ok()?,
            capabilities: Capabilities::from_bits_truncate(*capabilities),
            buffers: 1 + usize::from(buffers & 0x7f),
            mtu: usize::from(u16::from_be_bytes([*m0, *m1])),
            frame,
            rest,
        })
    }

    fn packet(&self, pool: &mut FramePool) -> Option<Packet> {
        let mut frame = pool.copy_from(&self.frame).ok()?;
        frame.set_offload(self.offload);
        match Packet::parse(frame) {
            Ok(packet) => Some(packet),
            Err(rejected) => {
                assert_eq!(rejected.frame.bytes(), self.frame, "{:?}", self.rest);
                None
            }
        }
    }
}

/// Makes an IPv4 header checksum right, lest every mutation end there.
fn seal(frame: &mut [u8]) {
    let Some((_, ip)) = frame.split_at_mut_checked(14) else {
        return;
    };
    let len = usize::from(ip.first().copied().unwrap_or(0) & 0xf) * 4;
    if let Some(header) = ip.get_mut(..len).filter(|header| header.len() >= 20) {
        header[10..12].fill(0);
        let checksum = Sum::ZERO.plus(header).checksum();
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Everything that a packet says of itself lies in its frame, and agrees.
fn look(packet: &Packet) {
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

/// Changes of single fields leave a packet that parses to the same.
fn change(mut packet: Packet, pool: &mut FramePool) {
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
}

/// The proof that `packet` carries must follow from its octets.
fn parses_to_the_same(packet: &Packet, pool: &mut FramePool) {
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
        }
    }
}

/// What becomes of a packet adds up. Returns whether nothing was dropped.
fn balanced(adapted: Adapted, made: usize) -> bool {
    let dropped = adapted.dropped.map_or(0, |dropped| dropped.packets);
    assert_eq!(1 + adapted.originated, made as u64 + dropped);
    dropped == 0
}

fn adapted(input: &Input<'_>, packet: Packet, pool: &mut FramePool, spare: &mut FramePool) {
    let headers = packet.payload_offset();
    let total = packet.frame().len() - headers;
    let longest = packet.wire_len();
    let right = promises_a_right_checksum(&packet);
    let (mut made, mut octets) = (0, 0);
    let outcome = adapt(
        packet,
        input.capabilities,
        pool,
        &mut |mut piece: Packet| {
            made += 1;
            let offload = piece.frame().offload();
            assert!(input.capabilities.take(offload));
            assert!(offload.segmentation.is_some() || piece.wire_len() <= longest);
            octets += piece.frame().len() - headers;
            look(&piece);
            parses_to_the_same(&piece, spare);
            if right && offload.segmentation.is_none() {
                complete_checksum(&mut piece);
                assert!(checksum_ok(&piece, spare));
            }
        },
    );
    if balanced(outcome, made) {
        assert_eq!(octets, total);
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

/// Judges the checksum of what counts as verified.
fn checksum_ok(packet: &Packet, pool: &mut FramePool) -> bool {
    let frame = pool
        .copy_from(packet.frame().bytes())
        .expect("a spare buffer");
    Packet::parse(frame).is_ok_and(|packet| packet.transport_checksum_ok())
}

fn fragmented(input: &Input<'_>, packet: Packet, pool: &mut FramePool, spare: &mut FramePool) {
    let fits = packet.wire_len() <= input.mtu;
    let fixed = packet.dont_fragment();
    let mut made = 0;
    let outcome = fragment_ipv4(packet, input.mtu, pool, &mut |piece: Packet| {
        made += 1;
        assert!(piece.wire_len() <= input.mtu);
        look(&piece);
        parses_to_the_same(&piece, spare);
    });
    balanced(outcome, made);
    assert!(!fits || made == 1);
    assert!(fits || !fixed || made == 0);
}

fuzz_target!(|data: &[u8]| {
    let Some(input) = Input::read(data) else {
        return;
    };
    let mut spare = FramePool::new(2, MAX_FRAME);
    let Some(packet) = input.packet(&mut spare) else {
        return;
    };
    look(&packet);
    change(packet, &mut spare);
    for work in [adapted, fragmented] {
        let mut pool = FramePool::new(input.buffers, MAX_FRAME);
        let packet = input.packet(&mut pool).expect("it was accepted before");
        work(&input, packet, &mut pool, &mut spare);
        let free: Vec<_> = std::iter::from_fn(|| pool.alloc()).collect();
        assert_eq!(free.len(), input.buffers, "a buffer was lost");
    }
});
