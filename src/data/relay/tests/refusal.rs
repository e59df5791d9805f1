//! What a container hears that sends from a port that is not its own.

use super::*;
use etherparse::{IpHeaders, Ipv4Header, Ipv6Header};
use nos_shim::icmp::Quote;
use std::net::IpAddr;

/// In none of the attachment's ranges.
const FOREIGN: u16 = 21000;

fn ends(v6: bool) -> (IpAddr, IpAddr) {
    if v6 {
        (OWN6.into(), FAR6.into())
    } else {
        (OWN.into(), FAR.into())
    }
}

fn builder(v6: bool) -> etherparse::PacketBuilderStep<IpHeaders> {
    let ip = if v6 {
        let header = Ipv6Header {
            source: OWN6,
            destination: FAR6,
            hop_limit: 64,
            ..Ipv6Header::default()
        };
        IpHeaders::Ipv6(header, etherparse::Ipv6Extensions::default())
    } else {
        let header = Ipv4Header::new(0, 64, IpNumber::TCP, OWN, FAR).unwrap();
        IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
    };
    PacketBuilder::ethernet2(MAC.0, RELAY.0).ip(ip)
}

/// A segment from a port with these flags: `s`, `a`, `r`, `f`.
fn segment(v6: bool, port: u16, flags: &str) -> Vec<u8> {
    let mut step = builder(v6).tcp(port, 443, 1, 1000);
    for flag in flags.chars() {
        step = match flag {
            's' => step.syn(),
            'a' => step.ack(7),
            'r' => step.rst(),
            _ => step.fin(),
        };
    }
    let mut octets = Vec::new();
    step.write(&mut octets, b"").unwrap();
    octets
}

fn udp(v6: bool, port: u16) -> Vec<u8> {
    let mut octets = Vec::new();
    builder(v6)
        .udp(port, 53)
        .write(&mut octets, b"abc")
        .unwrap();
    octets
}

/// The one error that is written to the container for `frame`, if it is.
fn told(setup: &mut Setup, frame: Vec<u8>) -> Option<Packet> {
    setup.handle(A, &[frame]);
    assert!(setup.received().is_empty(), "nothing goes to the NOS");
    let mut written = setup.written();
    setup.assert_balanced();
    assert!(written.len() <= 1, "one error for one packet");
    let (id, octets) = written.pop()?;
    assert_eq!(id, A);
    Some(Packet::parse(setup.frame(&octets)).unwrap())
}

#[test]
fn who_opens_a_flow_from_a_foreign_port_is_told_that_it_is_prohibited() {
    let mut setup = Setup::new(8, &[A, B]);
    for v6 in [false, true] {
        let (own, far) = ends(v6);
        let frames = [
            (6, segment(v6, FOREIGN, "s")),
            (17, udp(v6, FOREIGN)),
            (17, udp(v6, 0)),
        ];
        for (protocol, frame) in frames {
            let error = told(&mut setup, frame.clone()).expect("it is told");
            let (code, source): (_, IpAddr) = match v6 {
                false => ((3, 13), [192, 0, 0, 8].into()),
                true => ((1, 1), RELAY.link_local().into()),
            };
            assert_eq!(error.icmp(), Some(code));
            assert_eq!((error.source(), error.destination()), (source, own));
            let link = (error.destination_mac(), error.source_mac());
            assert_eq!(link, (MAC, RELAY));
            assert!(error.transport_checksum_ok());
            let quote = Quote::parse(&error).unwrap();
            let addresses = (quote.addresses.source(), quote.addresses.destination());
            assert_eq!((quote.protocol, addresses), (protocol, (own, far)));
            let quoted = error.transport()[8..].to_vec();
            assert_eq!(quoted, frame[14..], "the whole packet is quoted");
        }
    }
    assert_eq!(setup.drops(), [(DropReason::SourcePort, 6)]);
    let counters = setup.status(A).counters;
    assert_eq!((counters.tx_packets, counters.rx_packets), (6, 6));
    let ledger = setup.relay.ledger();
    assert_eq!((ledger.originated, ledger.sent), (6, 6));
}

#[test]
fn segments_of_established_flows_are_dropped_in_silence() {
    let mut setup = Setup::new(8, &[A]);
    let mut frames = 0;
    for v6 in [false, true] {
        for flags in ["", "a", "r", "ra", "sa", "sr", "f", "fa"] {
            frames += 1;
            let frame = segment(v6, FOREIGN, flags);
            assert!(told(&mut setup, frame).is_none(), "{flags:?}");
        }
    }
    assert_eq!(setup.drops(), [(DropReason::SourcePort, frames)]);
}

#[test]
fn what_no_error_may_be_about_is_dropped_in_silence() {
    let mut setup = Setup::new(8, &[A]);
    // A wrong checksum: who knows which port it was.
    for v6 in [false, true] {
        for mut frame in [udp(v6, FOREIGN), segment(v6, FOREIGN, "s")] {
            *frame.last_mut().unwrap() ^= 0x55;
            assert!(told(&mut setup, frame).is_none());
        }
    }
    assert_eq!(setup.drops(), [(DropReason::SourcePort, 4)]);
    // To a group, with a foreign port.
    let mut frame = udp(false, FOREIGN);
    frame[30..34].copy_from_slice(&[224, 0, 0, 5]);
    frame[24..26].fill(0);
    let sum = Ipv4Header::from_slice(&frame[14..34]).unwrap().0;
    frame[24..26].copy_from_slice(&sum.calc_header_checksum().to_be_bytes());
    assert!(told(&mut setup, frame).is_none());
    // From a foreign address and port.
    let mut octets = Vec::new();
    PacketBuilder::ethernet2(MAC.0, RELAY.0)
        .ipv4([203, 0, 113, 2], FAR, 64)
        .udp(FOREIGN, 53)
        .write(&mut octets, b"x")
        .unwrap();
    assert!(told(&mut setup, octets).is_none());
}

#[test]
fn first_fragments_are_answered_and_later_ones_are_not() {
    let mut setup = Setup::new(8, &[A]);
    let fragment = |field: u16| {
        let mut frame = udp(false, FOREIGN);
        // Eight octets of UDP are enough for a first fragment.
        frame[16..18].copy_from_slice(&28_u16.to_be_bytes());
        frame[18..20].copy_from_slice(&[0x12, 0x34]);
        frame[20..22].copy_from_slice(&field.to_be_bytes());
        frame[24..26].fill(0);
        let (header, _) = Ipv4Header::from_slice(&frame[14..34]).unwrap();
        frame[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
        frame.truncate(42);
        frame
    };
    let error = told(&mut setup, fragment(0x2000)).expect("the first has the port");
    assert_eq!(error.icmp(), Some((3, 13)));
    setup.handle(A, &[fragment(0x0001)]);
    assert_eq!(
        setup.received().len(),
        1,
        "a later one has none, and passes"
    );
    assert!(setup.written().is_empty());
}

#[test]
fn nobody_is_told_before_the_nos_has_accepted() {
    let mut setup = Setup::new(8, &[]);
    setup.relay.attach(config(A)).unwrap();
    assert!(told(&mut setup, udp(false, FOREIGN)).is_none());
    assert_eq!(setup.relay.poll_event(), None);
}

#[test]
fn errors_and_news_are_limited_for_each_attachment_alone() {
    let mut setup = Setup::new(8, &[A, B]);
    let flood = vec![udp(false, FOREIGN); 200];
    setup.handle(A, &flood);
    assert_eq!(setup.written().len(), 50, "as the NOS sends at once to all");
    let news =
        |setup: &mut Setup| std::iter::from_fn(|| setup.relay.poll_event()).collect::<Vec<_>>();
    let about = |attachment, port, dropped| RelayEvent::ForeignPort {
        attachment,
        transport: Transport::Udp,
        port,
        dropped,
    };
    assert!(!setup.relay.try_sleep(), "there is news");
    assert_eq!(
        news(&mut setup),
        [1, 1, 1].map(|dropped| about(A, FOREIGN, dropped))
    );
    assert!(setup.relay.try_sleep());
    // Another one is not held liable.
    setup.handle(B, &[udp(true, 179)]);
    assert_eq!(setup.written().len(), 1);
    assert_eq!(news(&mut setup), [about(B, 179, 1)]);
    // A second later there are a thousand errors more, and no news.
    let later = |seconds| NOW + core::time::Duration::from_secs(seconds);
    let handle = |setup: &mut Setup, now| {
        let mut burst = (0..BATCH).map(|_| setup.frame(&flood[0])).collect();
        setup.relay.handle_burst(A, &mut burst, now);
        setup.written().len()
    };
    assert_eq!(handle(&mut setup, later(1)), 50);
    assert_eq!(news(&mut setup), []);
    handle(&mut setup, later(10));
    let dropped = 200 - 3 + BATCH as u64 + 1;
    assert_eq!(news(&mut setup), [about(A, FOREIGN, dropped)]);
    setup.assert_balanced();
}

/// An error that finds no buffer, or no room, is not sent; the packet is dropped all the same.
#[test]
fn a_pool_without_buffers_makes_no_errors() {
    let mut setup = Setup::new(8, &[A]);
    let frame = setup.frame(&udp(false, FOREIGN));
    let mut hoard = Vec::new();
    while let Some(frame) = setup.pool.alloc() {
        hoard.push(frame);
    }
    let mut burst = std::iter::once(frame).collect();
    setup.relay.handle_burst(A, &mut burst, NOW);
    assert!(setup.written().is_empty());
    assert_eq!(setup.drops(), [(DropReason::SourcePort, 1)]);
    setup.assert_balanced();
}
