//! What is done in software where a device does not take it: checksums, segments, fragments.
//!
//! Packets are made anew each time, outside of the time that counts; so their octets were just
//! written, as after a receive. Checksums and segments are checked once before they are timed.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark may stop where its data are wrong"
)]

mod support;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use nos_shim::checksum::Sum;
use nos_shim::frame::{Checksum, ETHERNET_HEADER, FramePool, MAX_FRAME};
use nos_shim::offload::{Adapted, Capabilities, complete_checksum, fragment_ipv4, segment};
use nos_shim::packet::{Packet, PacketBurst};
use support::cycles::PerElement;
use support::packets::{Ends, FULL, SMALL, Template};

/// Packets of one iteration, and buffers enough for their pieces.
const PACKETS: usize = 16;
const BUFFERS: usize = 64;

/// Collects the pieces in a burst, as the path does; there are never more than a burst holds.
fn cut(packet: Packet, pool: &mut FramePool, cutter: &Cutter<'_>) -> PacketBurst {
    let mut pieces = PacketBurst::new();
    let adapted = cutter(packet, pool, &mut |piece| pieces.push(piece));
    assert_eq!(adapted.dropped, None);
    pieces
}

type Cutter<'a> = dyn Fn(Packet, &mut FramePool, &mut dyn FnMut(Packet)) -> Adapted + 'a;

/// Cuts one packet into pieces. An element is a piece.
fn cuts(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    template: &Template,
    cutter: &Cutter<'_>,
) {
    let mut pool = FramePool::new(BUFFERS, MAX_FRAME);
    let mut source = FramePool::new(1, MAX_FRAME);
    let pieces = cut(template.packet(&mut source), &mut pool, cutter);
    assert!(
        pieces.len() > 1 && pieces.iter().all(Packet::transport_checksum_ok),
        "{name}"
    );
    let count = pieces.len() as u64;
    drop(pieces);
    group.each_with(
        name,
        count,
        || template.packet(&mut source),
        |packet| cut(packet, &mut pool, cutter),
    );
}

fn completion(c: &mut Criterion) {
    let mut group = c.benchmark_group("offload/checksum");
    let mut pool = FramePool::new(PACKETS, MAX_FRAME);
    let long = ETHERNET_HEADER + 65_535;
    for (family, ends) in [("ipv4", Ends::outbound4()), ("ipv6", Ends::outbound6())] {
        for (size, len) in [("64", SMALL), ("1500", FULL), ("64K", long)] {
            let template = ends.tcp_partial(len);
            let mut packet = template.packet(&mut pool);
            complete_checksum(&mut packet);
            assert_eq!(packet.frame().offload().checksum, Checksum::Verified);
            assert_eq!(
                packet.frame().bytes(),
                ends.tcp(len).octets,
                "{family}/{size}"
            );
            drop(packet);
            group.each_with(
                &format!("complete/{family}/{size}"),
                PACKETS as u64,
                || (0..PACKETS).map(|_| template.packet(&mut pool)).collect(),
                |mut packets: PacketBurst| {
                    packets.iter_mut().for_each(complete_checksum);
                    packets
                },
            );
        }
    }
    for (size, len) in [("64", SMALL), ("1500", FULL), ("64K", long)] {
        let octets = Ends::outbound4().tcp(len).octets;
        group.each(&format!("sum/{size}"), 1, || {
            Sum::ZERO.plus(std::hint::black_box(&octets)).checksum()
        });
    }
    group.finish();
}

fn segmentation(c: &mut Criterion) {
    let mut group = c.benchmark_group("offload/segment-64K");
    let (four, six) = (Ends::outbound4(), Ends::outbound6());
    let complete: &Cutter<'_> =
        &|packet, pool, mut out| segment(packet, Capabilities::empty(), pool, &mut out);
    // The device completes the checksums of the segments.
    let partial: &Cutter<'_> =
        &|packet, pool, mut out| segment(packet, Capabilities::CHECKSUM, pool, &mut out);
    for (name, template) in [
        ("tcp4-to-1460", four.tcp_super()),
        ("tcp6-to-1440", six.tcp_super()),
        ("udp4-to-1460", four.udp_super()),
        ("udp6-to-1440", six.udp_super()),
    ] {
        cuts(&mut group, name, &template, complete);
        cuts(
            &mut group,
            &format!("{name}/partial-checksums"),
            &template,
            partial,
        );
    }
    group.finish();
}

fn fragmentation(c: &mut Criterion) {
    let mut group = c.benchmark_group("offload/fragment-ipv4");
    let ends = Ends::outbound4();
    let to = |mtu| {
        move |packet: Packet, pool: &mut FramePool, mut out: &mut dyn FnMut(Packet)| {
            fragment_ipv4(packet, mtu, pool, &mut out)
        }
    };
    cuts(&mut group, "1500-to-1400", &ends.udp(FULL), &to(1400));
    cuts(&mut group, "1500-to-576", &ends.udp(FULL), &to(576));
    let longest = ends.udp(ETHERNET_HEADER + 65_535);
    cuts(&mut group, "64K-to-1500", &longest, &to(1500));
    let partial = ends.udp_partial(ETHERNET_HEADER + 65_535);
    cuts(
        &mut group,
        "64K-to-1500/partial-checksum",
        &partial,
        &to(1500),
    );
    group.finish();
}

criterion_group!(benches, completion, segmentation, fragmentation);
criterion_main!(benches);
