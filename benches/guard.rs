//! The relay's judgement of what a container sends: source checks, and answers of ARP and Neighbor
//! Discovery.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a benchmark may stop where its data are wrong"
)]

mod support;

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use nos_relay::data::guard::Guard;
use nos_relay::data::link::ContainerLink;
use nos_relay::data::responder::{Disposition, answer_arp, answer_ip};
use nos_shim::drop::DropReason;
use nos_shim::frame::{BATCH, Burst, FramePool};
use nos_shim::packet::{Packet, PacketBurst};
use nos_shim::ports::{Claim, ClaimKind, Outside, PortRange, Transport};
use support::cycles::PerElement;
use support::packets::{
    CONTAINER, Ends, FAR4, FAR6, OWN4, OWN6, RELAY, SMALL, STATION, Template, arp_request,
    neighbor_solicitation,
};

fn link(addresses: &[IpAddr]) -> ContainerLink {
    ContainerLink::new(CONTAINER, RELAY, addresses, 1500)
}

/// `ranges` ranges of TCP and UDP each, among them one with the ports of the packets here.
fn claims(ranges: u16) -> Vec<Claim> {
    let claim = |transport, first, last| Claim {
        transport,
        range: PortRange::new(first, last).unwrap(),
        kind: ClaimKind::Listen,
    };
    let both = |first, last| [Transport::Tcp, Transport::Udp].map(|t| claim(t, first, last));
    let more = (1..ranges).flat_map(|n| both(2 * n, 2 * n));
    both(40_000, 44_999).into_iter().chain(more).collect()
}

fn packets(template: &Template, pool: &mut FramePool) -> PacketBurst {
    (0..BATCH).map(|_| template.packet(pool)).collect()
}

/// Checks a burst of such packets, each with the result `expected`.
fn checks(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    guard: &Guard,
    template: &Template,
    expected: Result<(), DropReason>,
) {
    let mut pool = FramePool::new(BATCH, 2000);
    let packets = packets(template, &mut pool);
    assert_eq!(guard.check(&packets[0]), expected, "{name}");
    group.each(name, BATCH as u64, || {
        let packets = black_box(&packets).iter();
        packets.filter(|packet| guard.check(packet).is_ok()).count()
    });
}

fn check(c: &mut Criterion) {
    let mut group = c.benchmark_group("guard/check");
    let own = [IpAddr::from(OWN4), OWN6.into()];
    let guard = Guard::new(link(&own), &claims(1), Outside::Drop);
    let (four, six) = (Ends::outbound4(), Ends::outbound6());
    for (family, ends) in [("ipv4", &four), ("ipv6", &six)] {
        let error = ends.port_unreachable(&ends.reversed().udp(SMALL));
        for (name, template) in [
            ("tcp", ends.tcp(SMALL)),
            ("udp", ends.udp(SMALL)),
            ("echo", ends.echo_request(7, SMALL)),
            ("icmp-error", error),
            ("later-fragment", ends.clone().with_fragment(185).udp(SMALL)),
        ] {
            checks(
                &mut group,
                &format!("{family}/{name}"),
                &guard,
                &template,
                Ok(()),
            );
        }
    }
    // Many of each: the flat set of ports, and the binary search for the address.
    let many: Vec<_> = (1..=64)
        .map(|n| Ipv4Addr::new(203, 0, 113, n).into())
        .collect();
    let large = Guard::new(link(&many), &claims(10_000), Outside::Drop);
    checks(
        &mut group,
        "ipv4/udp/10000-ranges-64-addresses",
        &large,
        &four.udp(SMALL),
        Ok(()),
    );

    let mut spoofed_mac = four.clone();
    spoofed_mac.macs[0] = STATION;
    let mut spoofed = four.clone();
    spoofed.addresses[0] = FAR4.into();
    let mut martian = four.clone();
    martian.addresses[1] = Ipv4Addr::LOCALHOST.into();
    let foreign_port = four.clone().with_ports([39_999, 443]);
    for (name, template, reason) in [
        ("mac", spoofed_mac.udp(SMALL), DropReason::SourceMac),
        ("address", spoofed.udp(SMALL), DropReason::SourceAddress),
        (
            "martian",
            martian.udp(SMALL),
            DropReason::MartianDestination,
        ),
        ("port", foreign_port.udp(SMALL), DropReason::SourcePort),
        (
            "protocol",
            four.packet(89, &[0; 20]),
            DropReason::SourceProtocol,
        ),
        (
            "icmp-error",
            four.port_unreachable(&four.udp(SMALL)),
            DropReason::IcmpUnmatched,
        ),
    ] {
        let name = format!("refused/{name}");
        checks(&mut group, &name, &guard, &template, Err(reason));
    }
    group.finish();
}

/// Answers a burst of questions, made anew each time: an answer is written over its question.
fn answers(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    template: &Template,
    answer: impl Fn(nos_shim::frame::Frame) -> Disposition,
) {
    let mut pool = FramePool::new(BATCH, 2000);
    let replied = answer(template.frame(&mut pool));
    assert!(
        matches!(replied, Disposition::Reply(_)),
        "{name}: {replied:?}"
    );
    drop(replied);
    group.each_with(
        name,
        BATCH as u64,
        || template.burst(BATCH, &mut pool),
        |questions| -> Burst {
            let replies = questions.into_iter().map(|frame| match answer(frame) {
                Disposition::Reply(frame) => frame,
                other => panic!("{other:?}"),
            });
            replies.collect()
        },
    );
}

fn respond(c: &mut Criterion) {
    let mut group = c.benchmark_group("guard/answer");
    let link = link(&[OWN4.into(), OWN6.into()]);
    answers(&mut group, "arp", &arp_request(FAR4), |frame| {
        answer_arp(&link, frame)
    });
    // With the parser, as the question comes as a packet.
    let ip = |frame| answer_ip(&link, Packet::parse(frame).unwrap());
    answers(
        &mut group,
        "neighbor-solicitation",
        &neighbor_solicitation(FAR6),
        ip,
    );
    let mut ping = Ends::outbound6();
    ping.addresses[1] = RELAY.link_local().into();
    answers(
        &mut group,
        "ping-of-the-relay",
        &ping.echo_request(7, 98),
        ip,
    );
    group.finish();
}

criterion_group!(benches, check, respond);
criterion_main!(benches);
