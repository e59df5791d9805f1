use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::frame::{FramePool, MAX_FRAME};
use crate::multicast::{Record, RecordKind};
use crate::test_packets::{Draft, hex, pool};

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const OWN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);

fn parsed(message: &[u8]) -> Result<Heard<Ipv4Addr>, DropReason> {
    let mut message = message.to_vec();
    if message.len() >= 4 {
        message[2..4].fill(0);
        let checksum = Sum::ZERO.plus(&message).checksum();
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    let draft = Draft::new("203.0.113.9", "224.0.0.1");
    parse(&draft.packet(&mut pool(), protocol::IGMP, &message))
}

fn query(code: u8, group: Ipv4Addr, tail: &[u8]) -> Vec<u8> {
    [&[0x11, code, 0, 0][..], &group.octets(), tail].concat()
}

fn expected(version: Version, group: Option<Ipv4Addr>, tenths: u32) -> Query<Ipv4Addr> {
    Query {
        version,
        group,
        max_delay: TENTH * tenths,
        robustness: 0,
        interval: Duration::ZERO,
    }
}

#[test]
fn queries_are_read() {
    let all = Ipv4Addr::UNSPECIFIED;
    for (message, query) in [
        (query(0, all, &[]), expected(Version::V1, None, 0)),
        (query(100, all, &[]), expected(Version::V2, None, 100)),
        // Not a code, but tenths of seconds.
        (
            query(200, GROUP, &[]),
            expected(Version::V2, Some(GROUP), 200),
        ),
        (
            query(0x80, GROUP, &[0x0b, 125, 0, 0]),
            Query {
                robustness: 3,
                interval: Duration::from_secs(125),
                ..expected(Version::V3, Some(GROUP), 128)
            },
        ),
        (
            query(1, GROUP, &[0, 0, 0, 1, 192, 0, 2, 1]),
            expected(Version::V3, Some(GROUP), 1),
        ),
    ] {
        assert_eq!(parsed(&message), Ok(Heard::Query(query)));
    }
}

#[test]
fn reports_of_others_are_read() {
    for kind in [REPORT_V1, REPORT_V2] {
        let report = [&[kind, 0, 0, 0][..], &GROUP.octets()].concat();
        assert_eq!(parsed(&report), Ok(Heard::Report(GROUP)));
        let of_all = [&[kind, 0, 0, 0][..], &ALL_SYSTEMS.octets()].concat();
        assert_eq!(parsed(&of_all), Ok(Heard::Nothing));
    }
    for kind in [LEAVE, REPORT_V3, 0x14, 0xff] {
        let message = [&[kind, 0, 0, 0][..], &GROUP.octets()].concat();
        assert_eq!(parsed(&message), Ok(Heard::Nothing), "type {kind:#x}");
    }
}

#[test]
fn what_is_no_query_is_malformed() {
    let malformed = Err(DropReason::GroupMessageMalformed);
    let good = query(10, GROUP, &[2, 125, 0, 0]);
    for length in (0..8).chain(9..12) {
        assert_eq!(parsed(&good[..length]), malformed, "{length} octets");
    }
    let missing = query(10, GROUP, &[2, 125, 0, 1, 192, 0, 2]);
    assert_eq!(parsed(&missing), malformed, "its source is not there");
    let general = query(10, Ipv4Addr::UNSPECIFIED, &[2, 125, 0, 1, 192, 0, 2, 1]);
    assert_eq!(parsed(&general), malformed, "sources without a group");
    let draft = Draft::new("203.0.113.9", "224.0.0.1");
    let unsummed = draft.packet(&mut pool(), protocol::IGMP, &good);
    assert_eq!(parse(&unsummed), Err(DropReason::TransportChecksum));
    let udp = draft.packet(&mut pool(), protocol::UDP, &draft.udp((1, 2), b"12"));
    assert_eq!(parse(&udp), malformed);
}

fn written(said: &Said<'_, Ipv4Addr>) -> Packet {
    let mut pool = FramePool::new(1, MAX_FRAME);
    let mut frame = pool.alloc().unwrap();
    write(said, MAC, OWN, &mut frame).unwrap();
    Packet::parse(frame).unwrap()
}

/// Linux 6.18 on the same link, but for the addresses.
#[test]
fn messages_are_as_those_of_linux() {
    let record = Record {
        kind: RecordKind::ToExclude,
        group: GROUP,
    };
    let report = written(&Said::Records(&[record]));
    let expected = hex(
        "0100 5e00 0016 0200 0000 0001 0800 46c0 0028 0000 4000 0102 ffff cb00 7101 e000 0016 \
         9404 0000 2200 ffff 0000 0001 0400 0000 ef01 0203",
    );
    let mut octets = report.frame().bytes().to_vec();
    for checksum in [24..26, 40..42] {
        octets[checksum].fill(0xff);
    }
    assert_eq!(octets, expected);
    for (said, kind, destination) in [
        (Said::Report(Version::V1, GROUP), REPORT_V1, GROUP),
        (Said::Report(Version::V2, GROUP), REPORT_V2, GROUP),
        (Said::Leave(GROUP), LEAVE, ALL_ROUTERS),
    ] {
        let message = written(&said);
        assert_eq!(message.destination(), destination);
        assert_eq!(message.destination_mac(), multicast_mac(destination));
        let octets = message.transport();
        assert_eq!((octets[0], octets.len()), (kind, 8));
        assert!(octets.ends_with(&GROUP.octets()));
        assert!(Sum::ZERO.plus(octets).is_valid());
    }
}

#[test]
fn mac_addresses_of_groups_hold_23_bits() {
    let mac = multicast_mac(Ipv4Addr::new(239, 129, 2, 3));
    assert_eq!(mac, MacAddr([1, 0, 0x5e, 1, 2, 3]));
}

#[test]
fn a_report_fits_its_link() {
    for mtu in [68, 576, 1500] {
        let record = Record {
            kind: RecordKind::IsExclude,
            group: GROUP,
        };
        let most = records_per_report(mtu);
        let length = |count| written(&Said::Records(&vec![record; count])).ip().len();
        assert!(length(most) <= mtu && length(most + 1) > mtu, "{mtu}");
    }
}

proptest! {
    #[test]
    fn any_message_is_judged(message in vec(any::<u8>(), 0..60)) {
        let _ = parsed(&message);
    }
}
