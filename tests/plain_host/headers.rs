//! IPv4 headers and options, IPv6 extension headers, and ICMP of every kind.

use crate::craft::{
    DESTINATION_OPTIONS, HOP_BY_HOP, ROUTING, SYN, Step, addressed, datagram, echo, extended, icmp,
    segment, segment_to, with_ip_length, with_octet, with_options, with_ttl,
};
use crate::support::wire;
use crate::{Answered, BOTH, CONTAINER, Cases, OWN, SILENCE, UNUSED};

type Craft = fn(Step) -> Vec<u8>;
/// Whether Linux answers, as `[IPv4, IPv6]`.
type Linux = [Option<bool>; 2];

/// One for each who may answer.
fn probes() -> [(&'static str, Craft); 7] {
    [
        ("echo request", echo),
        ("SYN to nobody", |step| segment(step, SYN, b"")),
        ("datagram to nobody", |step| datagram(step, b"12")),
        ("SYN to a container", |step| {
            segment_to(step, UNUSED, SYN, b"")
        }),
        ("datagram to a container", |step| {
            wire::udp(step, (50_000, CONTAINER), b"12")
        }),
        ("SYN to an own service", |step| {
            segment_to(step, OWN, SYN, b"")
        }),
        ("datagram to an own service", |step| {
            wire::udp(step, (50_000, OWN), b"12")
        }),
    ]
}

const V4: [Option<bool>; 2] = [Some(true), None];
const V4_SILENCE: [Option<bool>; 2] = [Some(false), None];
const V6: [Option<bool>; 2] = [None, Some(true)];
const V6_SILENCE: [Option<bool>; 2] = [None, Some(false)];

/// Name, IPv4 options, whether Linux answers.
const OPTIONS: [(&str, &[u8], Linux); 12] = [
    ("no operation", &[1, 1, 1, 1], V4),
    ("end and rubbish", &[0, 7, 7, 7], V4),
    ("router alert", &[148, 4, 0, 0], V4),
    ("record route", &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0], V4),
    ("record route without room", &[7, 7, 8, 1, 2, 3, 4, 0], V4),
    ("timestamps", &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0], V4),
    (
        "timestamps with addresses",
        &[68, 20, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        V4,
    ),
    ("a length beyond the header", &[7, 40, 4, 0], V4),
    ("a length of one", &[7, 1, 4, 0], V4),
    ("no length at all", &[1, 1, 1, 7], V4),
    // Neither Linux nor RFC 7126 §4.3 want source routes.
    (
        "a loose source route",
        &[131, 7, 4, 203, 0, 113, 2, 0],
        V4_SILENCE,
    ),
    (
        "a strict source route that is used up",
        &[137, 7, 8, 203, 0, 113, 2, 0],
        V4_SILENCE,
    ),
];

/// Record route and timestamp.
const RETURNED: [u8; 2] = [7, 68];

pub(crate) fn cases() -> Cases {
    let mut cases = Cases::default();
    for (name, crafted) in probes() {
        for (options, octets, answered) in OPTIONS {
            let craft = move |step| with_options(crafted(step), octets);
            cases.add(format!("{name} with {options}"), craft, answered);
            // TCP may return options, and ours does not (RFC 1122 §4.2.3.8).
            if name == "SYN to an own service" && RETURNED.contains(&octets[0]) {
                cases.but(Answered::WithoutOptions);
            }
        }
        for ttl in [0, 1] {
            let craft = move |step| with_ttl(crafted(step), ttl);
            cases.add(format!("{name} with TTL {ttl}"), craft, BOTH);
        }
        let craft = move |step| {
            let mut frame = crafted(step);
            frame[24] ^= 0x55;
            frame
        };
        cases.add(
            format!("{name} with a wrong header checksum"),
            craft,
            V4_SILENCE,
        );
        let craft = move |step| with_ip_length(crafted(step), 1);
        cases.add(format!("{name} longer than its frame"), craft, SILENCE);
        let craft = move |step| with_ip_length(crafted(step), -1);
        // Then the checksum does not hold.
        cases.add(format!("{name} cut by one octet"), craft, SILENCE);
        let craft = move |step| [crafted(step), vec![0xee; 7]].concat();
        cases.add(format!("{name} and padding"), craft, BOTH);
    }
    cases
}

/// Name, header type, body, whether Linux answers the packet that follows or complains.
const EXTENSIONS: [(&str, u8, &[u8], Linux); 22] = [
    ("padding", HOP_BY_HOP, &[1, 4, 0, 0, 0, 0], V6),
    (
        "padding that says something",
        HOP_BY_HOP,
        &[1, 4, 0, 1, 0, 0],
        V6_SILENCE,
    ),
    ("an option to skip", HOP_BY_HOP, &[0x1e, 4, 0, 0, 0, 0], V6),
    (
        "an option to drop",
        HOP_BY_HOP,
        &[0x5e, 4, 0, 0, 0, 0],
        V6_SILENCE,
    ),
    (
        "an option to refuse",
        HOP_BY_HOP,
        &[0x9e, 4, 0, 0, 0, 0],
        V6,
    ),
    (
        "an option to refuse unless to a group",
        HOP_BY_HOP,
        &[0xde, 4, 0, 0, 0, 0],
        V6,
    ),
    ("router alert", HOP_BY_HOP, &[5, 2, 0, 0, 1, 0], V6),
    ("a jumbo payload", HOP_BY_HOP, &[0xc2, 4, 0, 1, 0, 0], V6),
    (
        "an option beyond its end",
        HOP_BY_HOP,
        &[0x1e, 40, 0, 0, 0, 0],
        V6_SILENCE,
    ),
    (
        "padding for the destination",
        DESTINATION_OPTIONS,
        &[1, 4, 0, 0, 0, 0],
        V6,
    ),
    (
        "an option to skip for the destination",
        DESTINATION_OPTIONS,
        &[0x1e, 4, 0, 0, 0, 0],
        V6,
    ),
    (
        "an option to drop for the destination",
        DESTINATION_OPTIONS,
        &[0x5e, 4, 0, 0, 0, 0],
        V6_SILENCE,
    ),
    (
        "an option to refuse for the destination",
        DESTINATION_OPTIONS,
        &[0x9e, 4, 0, 0, 0, 0],
        V6,
    ),
    (
        "an option to refuse unless to a group for the destination",
        DESTINATION_OPTIONS,
        &[0xde, 4, 0, 0, 0, 0],
        V6,
    ),
    (
        "a home address",
        DESTINATION_OPTIONS,
        &[
            0xc9, 16, 0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 1, 2, 0, 0,
        ],
        V6,
    ),
    (
        "routing of type 0, finished",
        ROUTING,
        &[0, 0, 0, 0, 0, 0],
        V6,
    ),
    (
        "routing of type 0",
        ROUTING,
        &[
            0, 1, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,
        ],
        V6,
    ),
    (
        "routing of type 2",
        ROUTING,
        &[
            2, 1, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,
        ],
        V6,
    ),
    ("segment routing", ROUTING, &[4, 0, 0, 0, 0, 0], V6_SILENCE),
    (
        "unknown routing, finished",
        ROUTING,
        &[77, 0, 0, 0, 0, 0],
        V6,
    ),
    ("unknown routing", ROUTING, &[77, 1, 0, 0, 0, 0], V6),
    ("an unknown header", 250, &[0, 0, 0, 0, 0, 0], V6),
];

pub(crate) fn extension_cases() -> Cases {
    let mut cases = Cases::default();
    for (name, crafted) in probes() {
        for (header, kind, body, answered) in EXTENSIONS {
            let craft = move |step| extended(crafted(step), kind, body);
            cases.add(format!("{name} behind {header}"), craft, answered);
        }
    }
    for (header, kind, body, answered) in EXTENSIONS {
        let to_group = move |step| addressed(echo(step), [224, 0, 0, 1], "ff02::1");
        let craft = move |step| extended(to_group(step), kind, body);
        // RFC 8200 §4.2: options of these types are not complained about to a group's sender. Nor is
        // anything else but options (RFC 4443 §2.4 e.3), and a group is no station of a route.
        let silent = matches!(body[0] >> 6, 3) || kind == ROUTING || kind == 250;
        let answered = answered.map(|answered| answered.map(|yes| yes && !silent));
        cases.add(
            format!("echo request to a group behind {header}"),
            craft,
            answered,
        );
    }
    cases
}

/// ICMP types for both families that a host leaves alone: errors about nothing, answers, what is
/// deprecated, not assigned or switched off, and what only routers hear.
const UNANSWERED: [(u8, u8); 16] = [
    (0, 0),
    (3, 1),
    (4, 2),
    (5, 3),
    (9, 4),
    (10, 100),
    (11, 127),
    (12, 129),
    (14, 138),
    (15, 139),
    (16, 140),
    (17, 144),
    (18, 151),
    (37, 160),
    (42, 200),
    (253, 255),
];

pub(crate) fn icmp_cases() -> Cases {
    let mut cases = Cases::default();
    for (v4, v6) in UNANSWERED {
        for code in [0, 1, 255] {
            let craft = move |step| {
                let whole = icmp(step, v4, v6, &[0x45; 60]);
                let sum = with_octet(whole, 1, |_| code);
                with_octet(sum, 3, |octet| octet.wrapping_sub(code))
            };
            cases.add(
                format!("ICMP type {v4} or {v6}, code {code}"),
                craft,
                SILENCE,
            );
        }
    }
    for length in [0, 11, 12, 16, 40] {
        let craft = move |step| icmp(step, 13, 128, &[&[0x12; 4][..], &vec![0; length]].concat());
        // Linux wants four octets behind the sequence number; RFC 792 says twelve.
        let answered = [Some(length >= 4), None];
        let name = format!("timestamp request with {length} octets");
        cases.add(name, craft, answered);
        if length < 12 {
            cases.but(Answered::Not);
        }
    }
    let craft = |step| addressed(icmp(step, 13, 128, &[0x12; 16]), [224, 0, 0, 1], "ff02::1");
    cases.add("timestamp request to a group", craft, [Some(false), None]);
    cases
}
