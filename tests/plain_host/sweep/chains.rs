//! Chains of IPv6 extension headers, and their options.

use super::{Probes, V6};
use crate::craft::{
    DESTINATION_OPTIONS, HOP_BY_HOP, ROUTING, Step, addressed, datagram, echo, extended, other,
};

/// Name, kind, body.
const HEADERS: [(&str, u8, &[u8]); 9] = [
    ("hop-by-hop options", HOP_BY_HOP, &[1, 4, 0, 0, 0, 0]),
    (
        "destination options",
        DESTINATION_OPTIONS,
        &[1, 4, 0, 0, 0, 0],
    ),
    ("a finished route", ROUTING, &[0, 0, 0, 0, 0, 0]),
    ("a route", ROUTING, &[77, 1, 0, 0, 0, 0]),
    ("an atomic fragment", 44, &[0, 0, 0, 0, 0, 7]),
    ("authentication", 51, &[0, 0, 0, 0, 0, 1]),
    (
        "an option to refuse",
        DESTINATION_OPTIONS,
        &[0x9e, 4, 0, 0, 0, 0],
    ),
    ("an option to drop", HOP_BY_HOP, &[0x5e, 4, 0, 0, 0, 0]),
    ("mobility", 135, &[0, 0, 0, 0, 0, 0]),
];

type Craft = fn(Step) -> Vec<u8>;
const LAST: [(&str, Craft); 5] = [
    ("echo request", echo),
    ("datagram", |step| datagram(step, b"12")),
    ("nothing", |step| other(step, 59, b"")),
    ("octets behind nothing", |step| other(step, 59, &[0x80; 8])),
    ("unknown protocol", |step| other(step, 253, &[0x80; 8])),
];

pub(super) fn probes() -> Probes {
    let mut probes = Probes::default();
    for (last, craft) in LAST {
        probes.add(V6, last, move |ends| craft(ends.step()));
        for (one, kind, body) in HEADERS {
            let behind = move |step| extended(craft(step), kind, body);
            probes.add(V6, format!("{last} behind {one}"), move |ends| {
                behind(ends.step())
            });
            probes.add(V6, format!("{last} to a group behind {one}"), move |ends| {
                addressed_first(craft, ends.step(), kind, body)
            });
            for (other, kind, body) in HEADERS {
                let name = format!("{last} behind {one} behind {other}");
                probes.add(V6, name, move |ends| {
                    extended(behind(ends.step()), kind, body)
                });
            }
        }
    }
    for count in [3, 8, 9, 10, 20] {
        probes.add(
            V6,
            format!("echo request behind {count} headers"),
            move |ends| {
                (0..count).fold(echo(ends.step()), |frame, _| {
                    extended(frame, DESTINATION_OPTIONS, &[1, 4, 0, 0, 0, 0])
                })
            },
        );
    }
    for kind in 0..=255_u8 {
        for (where_to, header) in [
            ("the way", HOP_BY_HOP),
            ("the destination", DESTINATION_OPTIONS),
        ] {
            probes.add(
                V6,
                format!("option {kind:#04x} for {where_to}"),
                move |ends| extended(echo(ends.step()), header, &[kind, 4, 0, 0, 0, 0]),
            );
        }
        probes.add(V6, format!("route of type {kind}"), move |ends| {
            extended(echo(ends.step()), ROUTING, &[kind, 1, 0, 0, 0, 0])
        });
        probes.add(V6, format!("finished route of type {kind}"), move |ends| {
            extended(echo(ends.step()), ROUTING, &[kind, 0, 0, 0, 0, 0])
        });
    }
    for (what, header) in [
        ("hop-by-hop", HOP_BY_HOP),
        ("destination", DESTINATION_OPTIONS),
        ("routing", ROUTING),
        ("fragment", 44),
        ("authentication", 51),
    ] {
        for length in 0..10 {
            probes.add(
                V6,
                format!("{what} header of {length} octets"),
                move |ends| {
                    other(
                        ends.step(),
                        header,
                        &[&[58, 0, 1, 4, 0, 0, 0, 0, 0x80, 0][..length]].concat(),
                    )
                },
            );
        }
        for words in [1, 2, 255] {
            probes.add(
                V6,
                format!("{what} header that says {words} more words"),
                move |ends| other(ends.step(), header, &[58, words, 1, 4, 0, 0, 0, 0]),
            );
        }
    }
    for padding in 0..14 {
        probes.add(
            V6,
            format!("{padding} octets of padding one by one"),
            move |ends| {
                let options = [
                    vec![0; padding],
                    vec![0x1e, 12 - u8::try_from(padding).unwrap_or(12).min(12)],
                    vec![0; 30],
                ]
                .concat();
                extended(echo(ends.step()), HOP_BY_HOP, &options[..14])
            },
        );
    }
    probes
}

/// A packet to all hosts of the link, behind a header.
fn addressed_first(craft: Craft, step: Step, kind: u8, body: &[u8]) -> Vec<u8> {
    extended(
        addressed(craft(step), [224, 0, 0, 1], "ff02::1"),
        kind,
        body,
    )
}
