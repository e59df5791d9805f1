use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::frame::{FramePool, MAX_FRAME};
use crate::multicast::{Record, RecordKind};
use crate::test_packets::{Draft, hex, pool};

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const ALERT: &str = "3a00 0502 0000 0100";

fn group() -> Ipv6Addr {
    "ff02::1:ff00:1".parse().unwrap()
}

/// An MLD message from `source`, behind the hop-by-hop options.
fn packet(source: &str, hop_limit: u8, options: &str, message: &[u8]) -> Packet {
    let mut draft = Draft::new(source, "ff02::1");
    draft.ttl = hop_limit;
    let mut message = message.to_vec();
    message[2..4].fill(0);
    let pseudo = Addresses::V6 {
        source: source.parse().unwrap(),
        destination: "ff02::1".parse().unwrap(),
    }
    .pseudo_sum(protocol::ICMPV6, message.len());
    let checksum = pseudo.plus(&message).checksum();
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let payload = [hex(options), message].concat();
    let next = if options.is_empty() { 58 } else { 0 };
    draft.packet(&mut pool(), next, &payload)
}

fn query(code: u16, group: Ipv6Addr, tail: &[u8]) -> Vec<u8> {
    let fixed = [130, 0, 0, 0];
    [
        &fixed[..],
        &code.to_be_bytes(),
        &[0, 0],
        &group.octets(),
        tail,
    ]
    .concat()
}

fn parsed(message: &[u8]) -> Result<Heard<Ipv6Addr>, DropReason> {
    parse(&packet("fe80::9", 1, ALERT, message))
}

#[test]
fn queries_are_read() {
    let general = query(10_000, Ipv6Addr::UNSPECIFIED, &[]);
    let expected = Query {
        version: Version::V2,
        group: None,
        max_delay: Duration::from_secs(10),
        robustness: 0,
        interval: Duration::ZERO,
    };
    assert_eq!(parsed(&general), Ok(Heard::Query(expected)));
    let specific = query(0x8000, group(), &[0x0b, 0x80, 0, 0]);
    let expected = Query {
        version: Version::V3,
        group: Some(group()),
        max_delay: Duration::from_millis(32_768),
        robustness: 3,
        interval: Duration::from_secs(128),
    };
    assert_eq!(parsed(&specific), Ok(Heard::Query(expected)));
}

#[test]
fn reports_of_others_are_read() {
    let report = [&[131, 0, 0, 0, 0, 0, 0, 0][..], &group().octets()].concat();
    assert_eq!(parsed(&report), Ok(Heard::Report(group())));
    let from_nobody = packet("::", 1, ALERT, &report);
    assert_eq!(parse(&from_nobody), Ok(Heard::Report(group())));
    let done = [&[132, 0, 0, 0, 0, 0, 0, 0][..], &group().octets()].concat();
    assert_eq!(parsed(&done), Ok(Heard::Nothing));
    assert_eq!(parsed(&[143, 0, 0, 0, 0, 0, 0, 0]), Ok(Heard::Nothing));
}

/// The same is asked of a kernel in `tests/multicast/queries.rs`.
#[test]
fn what_is_no_query_is_malformed() {
    let malformed = Err(DropReason::GroupMessageMalformed);
    let good = query(1, group(), &[2, 125, 0, 0]);
    for (why, source, hop_limit, options) in [
        ("a global source", "2001:db8::1", 1, ALERT),
        ("no source", "::", 1, ALERT),
        ("a group as its source", "ff02::5", 1, ALERT),
        ("from farther away", "fe80::9", 2, ALERT),
        ("no router alert", "fe80::9", 1, ""),
        ("only padding", "fe80::9", 1, "3a00 0104 0000 0000"),
        ("another alert", "fe80::9", 1, "3a00 0502 0001 0100"),
    ] {
        assert_eq!(
            parse(&packet(source, hop_limit, options, &good)),
            malformed,
            "{why}"
        );
    }
    let padded = packet("fe80::9", 1, "3a00 0000 0502 0000", &good);
    assert!(parse(&padded).is_ok(), "padding in front");
    for length in (8..24).chain(25..28) {
        assert_eq!(parsed(&good[..length]), malformed, "{length} octets");
    }
    let sources = query(1, group(), &[2, 125, 0, 1]);
    assert_eq!(parsed(&sources), malformed, "its source is not there");
    let general = [
        &query(1, Ipv6Addr::UNSPECIFIED, &[2, 125, 0, 1])[..],
        &[7; 16],
    ]
    .concat();
    assert_eq!(parsed(&general), malformed, "sources without a group");
    let unicast = query(1, "2001:db8::1".parse().unwrap(), &[]);
    assert_eq!(parsed(&unicast), malformed, "no group");
    let mut octets = packet("fe80::9", 1, ALERT, &good).frame().bytes().to_vec();
    *octets.last_mut().unwrap() ^= 1;
    let wrong = Packet::parse(pool().copy_from(&octets).unwrap()).unwrap();
    assert_eq!(parse(&wrong), Err(DropReason::TransportChecksum));
}

fn written(said: &Said<'_, Ipv6Addr>) -> Packet {
    let mut pool = FramePool::new(1, MAX_FRAME);
    let mut frame = pool.alloc().unwrap();
    write(said, MAC, MAC.link_local(), &mut frame).unwrap();
    Packet::parse(frame).unwrap()
}

#[test]
fn messages_are_as_those_of_linux() {
    let records = [
        Record {
            kind: RecordKind::ToExclude,
            group: group(),
        },
        Record {
            kind: RecordKind::ToInclude,
            group: "ff02::1:ff00:2".parse().unwrap(),
        },
    ];
    let report = written(&Said::Records(&records));
    let expected = hex(
        "3333 0000 0016 0200 0000 0001 86dd 6000 0000 0038 0001 fe80 0000 0000 0000 0000 00ff fe00 0001 \
         ff02 0000 0000 0000 0000 0000 0000 0016 3a00 0502 0000 0100 8f00 ffff 0000 0002 \
         0400 0000 ff02 0000 0000 0000 0000 0001 ff00 0001 \
         0300 0000 ff02 0000 0000 0000 0000 0001 ff00 0002",
    );
    let mut octets = report.frame().bytes().to_vec();
    assert!(report.transport_checksum_ok());
    octets[64..66].fill(0xff);
    assert_eq!(octets, expected);
    let joined = written(&Said::Report(Version::V2, group()));
    assert_eq!(joined.destination(), group());
    assert_eq!(joined.destination_mac(), multicast_mac(group()));
    assert_eq!((joined.icmp(), joined.ttl()), (Some((131, 0)), 1));
    let done = written(&Said::Leave(group()));
    assert_eq!(done.destination(), ALL_ROUTERS);
    assert_eq!(done.icmp(), Some((132, 0)));
    for message in [joined, done] {
        assert!(message.transport_checksum_ok());
        assert_eq!(message.transport().len(), 24);
        assert!(message.transport().ends_with(&group().octets()));
        assert_eq!(ipv6_extensions::receive(&message), Ok(()));
        assert_eq!(ipv6_extensions::router_alert(&message), Some(ALERT_MLD));
    }
}

#[test]
fn a_report_fits_its_link() {
    for mtu in [1280, 1500, 9000] {
        let record = Record {
            kind: RecordKind::IsExclude,
            group: group(),
        };
        let most = records_per_report(mtu);
        let length = |count| written(&Said::Records(&vec![record; count])).ip().len();
        assert!(length(most) <= mtu && length(most + 1) > mtu, "{mtu}");
    }
    let record = Record {
        kind: RecordKind::IsExclude,
        group: group(),
    };
    let mut frame = FramePool::new(1, 64).alloc().unwrap();
    let all = Said::Records(&[record; 100]);
    let full = write(&all, MAC, MAC.link_local(), &mut frame);
    assert!(full.is_err());
}

proptest! {
    #[test]
    fn any_message_is_judged(kind in prop::sample::select(vec![130_u8, 131, 132, 143]), body in vec(any::<u8>(), 7..80)) {
        let message = [&[kind][..], &body].concat();
        if let Ok(Heard::Query(Query { group: Some(group), .. })) = parsed(&message) {
            prop_assert!(group.is_multicast());
        }
    }
}
