//! The parser, for each kind of packet: what everything costs before anything is decided.
//!
//! Frames are parsed in bursts, as they come from a device, and are still in cache.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark may stop where its data are wrong"
)]

mod support;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use nos_shim::arp::Arp;
use nos_shim::frame::{BATCH, Frame, FramePool, MAX_FRAME};
use nos_shim::packet::{Packet, Rejected};
use support::cycles::PerElement;
use support::packets::{Ends, FULL, SMALL, STATION4, Template, arp_request};

/// More fragments follow.
const FIRST: u16 = 0x2000;
/// Octets of payload in a fragment, a multiple of 8.
const PIECE: usize = 1448;
/// The second fragment, at an offset in units of 8 octets.
const LATER: u16 = FIRST | 181;

fn kinds(ends: &Ends, family: &str) -> Vec<(String, Template)> {
    let back = ends.reversed();
    let headers = if ends.is_ipv6() {
        ends.clone().with_extensions()
    } else {
        ends.clone().with_options()
    };
    let headers_name = if ends.is_ipv6() {
        "extensions"
    } else {
        "options"
    };
    let first = ends.clone().with_fragment(FIRST);
    let later = ends.clone().with_fragment(LATER);
    let kinds = [
        ("tcp/64", ends.tcp(SMALL)),
        ("tcp/1500", ends.tcp(FULL)),
        ("tcp/64K-super", ends.tcp_super()),
        ("udp/64", ends.udp(SMALL)),
        ("udp/1500", ends.udp(FULL)),
        ("udp/64K-super", ends.udp_super()),
        ("echo/64", ends.echo_request(7, SMALL)),
        ("echo/1500", ends.echo_request(7, FULL)),
        ("icmp-error", back.too_big(&ends.tcp(FULL), 548)),
        ("fragment/first", first.udp(first.headers() + PIECE)),
        ("fragment/later", later.udp(later.headers() + PIECE)),
    ];
    let kinds = kinds.map(|(name, template)| (format!("{family}/{name}"), template));
    let mut kinds = Vec::from(kinds);
    for (size, len) in [("64", SMALL), ("1500", FULL)] {
        kinds.push((format!("{family}/{headers_name}/{size}"), headers.udp(len)));
    }
    kinds
}

/// Parses each frame in its place.
fn parse_all(frames: &mut [Option<Frame>]) -> usize {
    let mut accepted = 0;
    for place in frames {
        let frame = match Packet::parse(place.take().unwrap()) {
            Ok(packet) => {
                accepted += 1;
                packet.into_frame()
            }
            Err(Rejected { frame, .. }) => frame,
        };
        *place = Some(frame);
    }
    accepted
}

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    let mut pool = FramePool::new(BATCH, MAX_FRAME);
    let mut kinds4 = kinds(&Ends::outbound4(), "ipv4");
    let kinds6 = kinds(&Ends::outbound6(), "ipv6");
    kinds4.extend(kinds6);
    for (name, template) in &kinds4 {
        let mut frames: Vec<_> = template
            .burst(BATCH, &mut pool)
            .into_iter()
            .map(Some)
            .collect();
        assert_eq!(parse_all(&mut frames), BATCH, "{name} is a packet");
        group.each(name, BATCH as u64, || parse_all(black_box(&mut frames)));
    }
    // What the parser refuses for its EtherType before it is read as ARP.
    let arp = arp_request(STATION4);
    let mut frames: Vec<_> = arp.burst(BATCH, &mut pool).into_iter().map(Some).collect();
    group.each("arp/rejected", BATCH as u64, || {
        parse_all(black_box(&mut frames))
    });
    group.each("arp", BATCH as u64, || {
        let frames = black_box(&frames).iter().flatten();
        frames
            .filter(|frame| Arp::parse(frame.bytes()).is_ok())
            .count()
    });
    group.finish();
}

criterion_group!(benches, parse);
criterion_main!(benches);
