use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::test_packets::{Draft, X6, hex, pool};

fn parsed(frame: &[u8]) -> Result<Packet, Rejected> {
    Packet::parse(pool().copy_from(frame).unwrap())
}

fn fault(next: u8, headers: &str) -> Option<Fault> {
    let rejected = parsed(&Draft::v6().frame(next, &hex(headers))).unwrap_err();
    let packet = Packet::parse_up_to_fault(rejected).ok()?;
    let fault = packet.fault();
    assert!(fault.is_some(), "{next}: {headers}");
    assert_eq!(packet.fragment(), Fragment::Whole);
    assert_eq!(packet.ports(), None);
    fault
}

#[test]
fn only_what_a_host_complains_about_is_a_fault() {
    let nine = "3c00010400000000".repeat(9);
    for (next, headers, expected) in [
        (
            44,
            "3a00fff8 00000009 0000000000000000".into(),
            Some(Fault::FragmentBeyondEnd),
        ),
        (
            44,
            "3a000001 00000009 80".into(),
            Some(Fault::IncompleteChain),
        ),
        (
            44,
            "3b000001 00000009 80".into(),
            Some(Fault::FragmentLength),
        ),
        (
            44,
            "3a000009 00000009 80".into(),
            Some(Fault::FragmentLength),
        ),
        (
            44,
            "11000001 00000009 0001000200".into(),
            Some(Fault::IncompleteChain),
        ),
        (44, "3a0000".into(), Some(Fault::FragmentHeader)),
        (
            44,
            "2c000000 00000009 3a000008 00000009 01".into(),
            Some(Fault::FragmentHeader),
        ),
        (51, "3a04".into(), None),
        // Hosts are silent about these.
        (60, "3a02".into(), None),
        (43, "3a02".into(), None),
        (6, "0102030405060708".into(), None),
        (60, nine, None),
        // Judged with the whole datagram, which this is the first part of.
        (44, "2c000001 00000009 3a000008 00000009".into(), None),
    ] {
        let headers: String = headers;
        assert_eq!(fault(next, &headers), expected, "{next}: {headers}");
    }
}

#[test]
fn frames_that_are_no_ipv6_packets_come_back_as_they_were() {
    let good = Draft::v6().frame(44, &hex("3a00fff8 00000009 0000000000000000"));
    let v4 = Draft {
        fragment: 0x1fff,
        ..Draft::v4()
    }
    .frame(17, &[0; 16]);
    let mut versioned = good.clone();
    versioned[14] = 0x45;
    for frame in [
        v4,
        versioned,
        good[..60].to_vec(),
        good[..20].to_vec(),
        vec![],
    ] {
        let before = parsed(&frame).unwrap_err();
        let reason = before.reason;
        let after = Packet::parse_up_to_fault(before).unwrap_err();
        assert_eq!((after.frame.bytes(), after.reason), (&frame[..], reason));
    }
}

fn header() -> impl Strategy<Value = Vec<u8>> {
    let kinds = prop_oneof![
        Just(44_u8),
        Just(44),
        Just(51),
        Just(60),
        Just(43),
        Just(0),
        Just(58),
        Just(6),
        Just(59),
        any::<u8>()
    ];
    (kinds, 0_u8..3, vec(any::<u8>(), 6..14))
        .prop_map(|(next, len, rest)| [vec![next, len], rest].concat())
}

proptest! {
    /// Whatever the headers are, a packet has a fault if and only if the parser rejects it, and its
    /// extension headers are then refused, or wrong before the fault.
    #[test]
    fn packets_that_are_accepted_have_none(next in prop_oneof![Just(44_u8), Just(51), Just(60)], headers in vec(header(), 1..4)) {
        let frame = Draft::new(X6, "2001:db8:1::1").frame(next, &headers.concat());
        match parsed(&frame) {
            Ok(packet) => prop_assert_eq!(packet.fault(), None),
            Err(rejected) => if let Ok(packet) = Packet::parse_up_to_fault(rejected) {
                prop_assert!(packet.fault().is_some());
                prop_assert!(crate::ipv6_extensions::receive(&packet).is_err());
            },
        }
    }
}
