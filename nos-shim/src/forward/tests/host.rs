//! What a host does with frames for others, and with headers that lead nowhere.

use core::net::IpAddr;

use super::oversize::{NARROW, NOS, Nos, OTHER6, STATION, UPLINK};
use crate::arp::{Arp, Operation};
use crate::drop::DropReason;
use crate::ident::{Interface, MacAddr};
use crate::ndp::{Envelope, Ndp, solicited_node};
use crate::packet::{Packet, protocol};
use crate::test_packets::{Draft, N4, N6, X4, X6, hex, ip};

const FOREIGN: MacAddr = MacAddr([2, 0, 0, 0, 0xaa, 0xbb]);

/// The frames that leave by the uplink.
fn frames(nos: &mut Nos) -> Vec<Vec<u8>> {
    let mut sent = Vec::new();
    while let Some((_, burst)) = nos.shim.poll_transmit() {
        sent.extend(burst.drain(..).map(|frame| frame.bytes().to_vec()));
    }
    sent
}

fn arp(nos: &mut Nos, operation: Operation, to: MacAddr) -> Vec<Vec<u8>> {
    let (IpAddr::V4(x4), IpAddr::V4(n4)) = (ip(X4), ip(N4)) else {
        panic!("both are IPv4");
    };
    let arp = Arp {
        operation,
        ..Arp::request(STATION, x4, n4)
    };
    let mut frame = nos.pool.alloc().unwrap();
    arp.write(&mut frame, to).unwrap();
    nos.receive_frame(frame);
    frames(nos)
}

#[test]
fn arp_and_ndp_in_frames_to_other_hosts_are_neither_answered_nor_believed() {
    let mut nos = Nos::new();
    for (to, answers) in [
        (MacAddr::BROADCAST, 1),
        (NOS, 1),
        // A group's, as on Linux.
        (MacAddr([1, 0, 0x5e, 0, 0, 1]), 1),
        (FOREIGN, 0),
        (STATION, 0),
        (MacAddr::ZERO, 0),
    ] {
        assert_eq!(arp(&mut nos, Operation::Request, to).len(), answers, "{to}");
    }
    assert_eq!(nos.shim.ledger().drops.of(DropReason::OtherHost), 3);

    let (IpAddr::V6(source), IpAddr::V6(target)) = (ip(X6), ip(N6)) else {
        panic!("both are IPv6");
    };
    let mut ask = |destination_mac| {
        let envelope = Envelope {
            destination_mac,
            ..Envelope::to_group(STATION, source, solicited_node(target))
        };
        let question = Ndp::NeighborSolicit {
            target,
            source_link_layer: Some(STATION),
        };
        let mut frame = nos.pool.alloc().unwrap();
        question.write(&mut frame, &envelope).unwrap();
        nos.receive_frame(frame);
        nos.sent()
    };
    assert_eq!(ask(FOREIGN).len(), 0);
    // The NOS forwards, and says so (RFC 4861 §4.4).
    for to in [NOS, MacAddr::BROADCAST] {
        let [answer] = &ask(to)[..] else {
            panic!("one answer to {to}");
        };
        let expected = Ndp::NeighborAdvert {
            router: true,
            solicited: true,
            overrides: true,
            target,
            target_link_layer: Some(NOS),
        };
        assert_eq!(Ndp::parse(answer), Ok(expected));
    }
    nos.assert_balanced();
}

/// A solicitation for the NOS's address, in a packet to `to` behind `headers`.
fn solicitation(nos: &mut Nos, to: &str, next: Option<u8>, headers: &str) -> Packet {
    let draft = Draft {
        ttl: 255,
        ..Draft::new(X6, to)
    };
    let IpAddr::V6(target) = ip(N6) else {
        panic!("{N6} is IPv6");
    };
    let option = [&[1, 1][..], &STATION.0].concat();
    let body = [&target.octets()[..], &option].concat();
    let message = draft.icmp(135, 0, 0, &body);
    let payload = [hex(headers), message].concat();
    draft.packet(&mut nos.pool, next.unwrap_or(protocol::ICMPV6), &payload)
}

#[test]
fn neighbor_discovery_is_heard_by_those_whom_it_is_for() {
    let mut nos = Nos::new();
    for (to, next, headers, answers) in [
        (N6, None, "", 1),
        ("ff02::1:ff00:1", None, "", 1),
        ("ff02::1", None, "", 1),
        (N6, Some(60), "3a00010400000000", 1),
        // To others, the loopback, and a group that the NOS is not in.
        ("::1", None, "", 0),
        ("ff02::1:2", None, "", 0),
        ("ff02::1:ff00:77", None, "", 0),
        ("fe80::77", None, "", 0),
        // An option to drop, and a group as a station of a route.
        (N6, Some(60), "3a005e0400000000", 0),
        ("ff02::1:ff00:1", Some(43), "3a00000000000000", 0),
    ] {
        let packet = solicitation(&mut nos, to, next, headers);
        nos.receive(packet);
        let sent = nos.sent();
        let adverts = sent.iter().filter(|sent| sent.icmp() == Some((136, 0)));
        assert_eq!(adverts.count(), answers, "{to} {headers}");
    }
    // Of what is for others, the NOS is a router.
    let packet = solicitation(&mut nos, "2001:db8:1::77", None, "");
    nos.receive(packet);
    assert!(nos.sent().iter().all(|sent| sent.icmp() != Some((136, 0))));
    assert_eq!(nos.shim.held(), 1);
    nos.assert_balanced();
}

#[test]
fn groups_hear_of_unknown_options_whatever_is_behind_them() {
    let mut nos = Nos::new();
    for (header, answers) in [
        ("3b009e0400000000", 1),
        ("3b00de0400000000", 0),
        ("3b00010400000000", 0),
    ] {
        let mut packet = Draft::new(X6, "ff02::1").packet(&mut nos.pool, 60, &hex(header));
        packet.set_link(MacAddr([0x33, 0x33, 0, 0, 0, 1]), STATION);
        nos.receive_frame(packet.into_frame());
        let sent = nos.sent();
        assert_eq!(sent.len(), answers, "{header}");
        assert!(sent.iter().all(|sent| sent.icmp() == Some((4, 2))));
    }
    nos.assert_balanced();
}

#[test]
fn malformed_options_of_what_passes_are_complained_about() {
    let mut nos = Nos::new();
    for (options, expected) in [
        ("07010400", Some(20)),
        ("01010107", Some(23)),
        ("01010101", None),
        ("94040000", None),
    ] {
        let draft = Draft {
            options: hex(options),
            ..Draft::new(X4, "203.0.113.77")
        };
        let packet = draft.udp_packet(&mut nos.pool, (1, 2), b"x");
        nos.receive(packet);
        let sent = nos.sent();
        let problems = sent.iter().filter(|sent| sent.icmp() == Some((12, 0)));
        let pointers: Vec<u8> = problems.map(|problem| problem.transport()[4]).collect();
        assert_eq!(
            pointers,
            expected.into_iter().collect::<Vec<_>>(),
            "{options}"
        );
    }
    assert_eq!(nos.shim.held(), 2);
    nos.assert_balanced();
}

#[test]
fn behind_no_next_header_there_is_silence() {
    let mut nos = Nos::new();
    for (next, payload) in [
        (59, ""),
        (59, "0102030405"),
        (60, "3b00010400000000"),
        (0, "3b00050200000100 ff"),
        (44, "3b00000000000007 ff"),
    ] {
        for to in [N6, "fe80::ff:fe00:b"] {
            let packet = Draft::new(X6, to).packet(&mut nos.pool, next, &hex(payload));
            nos.receive(packet);
            assert_eq!(nos.sent().len(), 0, "{next} {payload}");
        }
    }
    assert_eq!(nos.shim.ledger().drops.of(DropReason::Ignored), 10);
    nos.assert_balanced();
}

#[test]
fn no_message_of_igmp_is_refused() {
    let mut nos = Nos::new();
    let octets: Vec<u8> = (0..=255).collect();
    for kind in octets {
        for len in [1, 8, 12, 30] {
            let mut message = vec![0; len];
            message[0] = kind;
            let packet = Draft::v4().packet(&mut nos.pool, protocol::IGMP, &message);
            nos.receive(packet);
            // In two parts.
            for (fragment, part) in [(0x2000, &message[..0]), (0, &message[..])] {
                let draft = Draft {
                    fragment,
                    identification: u16::from(kind),
                    ..Draft::v4()
                };
                let packet = draft.packet(&mut nos.pool, protocol::IGMP, part);
                nos.receive(packet);
            }
        }
    }
    assert_eq!(nos.sent().len(), 0);
    // In IPv6 the number is nobody's.
    let packet = Draft::v6().packet(&mut nos.pool, protocol::IGMP, &[0x11; 8]);
    nos.receive(packet);
    assert_eq!(nos.sent()[0].icmp(), Some((4, 1)));
    nos.assert_balanced();
}

/// Next header, headers, and code and pointer of the parameter problem.
const FAULTS: [(u8, &str, u8, u32); 4] = [
    (
        44,
        "3a00fff8 00000009 80000000 00000000 00000000 00000000",
        0,
        42,
    ),
    (44, "3a000009 00000009 80000000 00", 0, 4),
    (44, "3a000001 00000009 80000000", 3, 0),
    (60, "2c00010400000000 3a00", 0, 48),
];

fn faulty(nos: &mut Nos, draft: &Draft, next: u8, headers: &str) -> Packet {
    let frame = nos
        .pool
        .copy_from(&draft.frame(next, &hex(headers)))
        .unwrap();
    Packet::parse_up_to_fault(Packet::parse(frame).unwrap_err()).unwrap()
}

#[track_caller]
fn assert_problem(error: &Packet, about: &Draft, code: u8, pointer: u32) {
    assert_eq!(error.icmp(), Some((4, code)));
    assert_eq!(error.transport()[4..8], pointer.to_be_bytes());
    assert_eq!(error.destination(), about.source);
    assert!(error.transport_checksum_ok());
}

#[test]
fn senders_in_the_network_are_told_of_headers_at_fault() {
    for (next, headers, code, pointer) in FAULTS {
        let mut nos = Nos::new();
        let draft = Draft::v6();
        let mut frame = draft.frame(next, &hex(headers));
        frame[..6].copy_from_slice(&NOS.0);
        let mut to_other = frame.clone();
        to_other[..6].copy_from_slice(&FOREIGN.0);
        for frame in [frame, to_other] {
            let frame = nos.pool.copy_from(&frame).unwrap();
            nos.receive_frame(frame);
        }
        let sent = nos.sent();
        assert_eq!(sent.len(), 1, "{headers}");
        assert_problem(&sent[0], &draft, code, pointer);
        assert_eq!(sent[0].source(), ip(N6));
        assert_eq!(nos.delivered().len(), 0);
        nos.assert_balanced();
    }
}

#[test]
fn containers_are_told_of_headers_at_fault_and_no_such_packet_leaves() {
    for (next, headers, code, pointer) in FAULTS {
        let mut nos = Nos::new();
        let draft = Draft::new(N6, OTHER6);
        let packet = faulty(&mut nos, &draft, next, headers);
        nos.outbound(NARROW, packet);
        let delivered = nos.delivered();
        assert_eq!(delivered.len(), 1, "{headers}");
        assert_problem(&delivered[0], &draft, code, pointer);
        let interface = Some(Interface::Attachment(NARROW));
        assert_eq!(delivered[0].frame().interface(), interface);
        // Also where packets before it have made it known how to leave.
        let udp = Draft::new(N6, X6).udp_packet(&mut nos.pool, (5000, 1), b"x");
        nos.outbound(NARROW, udp);
        assert_eq!(nos.sent().len(), 1);
        let packet = faulty(&mut nos, &Draft::new(N6, X6), next, headers);
        nos.outbound(NARROW, packet);
        assert_eq!(nos.sent().len(), 0, "{headers}");
        nos.assert_balanced();
    }
}

#[test]
fn a_router_does_not_look_behind_the_header_of_what_passes() {
    for (next, headers, ..) in FAULTS {
        let mut nos = Nos::new();
        let draft = Draft::new(X6, "2001:db8:1::77");
        let mut frame = draft.frame(next, &hex(headers));
        frame[..6].copy_from_slice(&NOS.0);
        let frame = nos.pool.copy_from(&frame).unwrap();
        nos.receive_frame(frame);
        // Beside what is said because of it, it waits for the neighbor.
        nos.sent();
        assert_eq!(nos.shim.held(), 1, "{headers}");
        nos.shim.remove_uplink(UPLINK);
        assert_eq!(nos.shim.ledger().drops.of(DropReason::DeviceGone), 1);
        nos.assert_balanced();
    }
}
