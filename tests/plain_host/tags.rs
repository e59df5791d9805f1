//! Frames with 802.1Q tags.

use crate::craft::{ACK, SYN, Step, echo, segment, segment_to};
use crate::support::wire;
use crate::{BOTH, CONTAINER, Cases, OWN, SILENCE, UNUSED};

const CUSTOMER: u16 = 0x8100;
const SERVICE: u16 = 0x88a8;

/// Tags, the outermost first: protocol identifier and control information. Whether a host looks
/// behind them.
type Tags = &'static [(u16, u16)];
const TAGS: [(&str, Tags, bool); 12] = [
    ("priority 0", &[(CUSTOMER, 0)], true),
    ("priority 7, drop eligible", &[(CUSTOMER, 0xf000)], true),
    ("a service tag of VLAN 0", &[(SERVICE, 0x2000)], true),
    (
        "two tags of VLAN 0",
        &[(CUSTOMER, 0), (CUSTOMER, 0x6000)],
        true,
    ),
    (
        "a service tag and one of VLAN 0",
        &[(SERVICE, 0x8000), (CUSTOMER, 0)],
        true,
    ),
    ("three tags of VLAN 0", &[(CUSTOMER, 0); 3], true),
    ("VLAN 5", &[(CUSTOMER, 5)], false),
    ("the last VLAN", &[(CUSTOMER, 0xffff)], false),
    ("a service tag of VLAN 5", &[(SERVICE, 5)], false),
    (
        "VLAN 0 around VLAN 5",
        &[(CUSTOMER, 0), (CUSTOMER, 5)],
        false,
    ),
    (
        "VLAN 5 around VLAN 0",
        &[(CUSTOMER, 5), (CUSTOMER, 0)],
        false,
    ),
    ("an old tag of VLAN 0", &[(0x9100, 0)], false),
];

/// Each by another path through the NOS.
type Probe = fn(Step) -> Vec<u8>;
const PROBES: [(&str, Probe); 5] = [
    ("echo request", echo),
    ("SYN", |step| segment(step, SYN, b"")),
    ("SYN to a container", |step| {
        segment_to(step, UNUSED, ACK, b"")
    }),
    ("datagram to a container", |step| {
        wire::udp(step, (50_000, CONTAINER), b"12")
    }),
    ("datagram to an own service", |step| {
        wire::udp(step, (50_000, OWN), &[7; 1440])
    }),
];

pub(crate) fn cases() -> Cases {
    let mut cases = Cases::default();
    for (probe, craft) in PROBES {
        for (name, tags, seen) in TAGS {
            let name = format!("{probe} with {name}");
            let answered = if seen { BOTH } else { SILENCE };
            cases.add(name, move |step| tagged(&craft(step), tags), answered);
        }
    }
    let cut = |octets| move |step| tagged(&echo(step), &[(CUSTOMER, 0)])[..octets].to_vec();
    for octets in [14, 15, 16, 17, 18, 19, 20, 24] {
        let name = format!("a tagged frame of {octets} octets");
        cases.add(name, cut(octets), SILENCE);
    }
    cases
}

/// `frame` with tags, the outermost first.
pub(crate) fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let (addresses, behind) = frame.split_at(12);
    let tags = tags
        .iter()
        .flat_map(|&(tpid, control)| [tpid.to_be_bytes(), control.to_be_bytes()].concat());
    [addresses, &tags.collect::<Vec<_>>(), behind].concat()
}
