//! Packets to another host, which leave where they came in.

use std::net::IpAddr;

use super::{BOTH, Ends, Probes, V6};
use crate::craft::{
    DESTINATION_OPTIONS, HOP_BY_HOP, ROUTING, Step, datagram, echo, extended, icmp, is_v6,
    with_options, with_ttl,
};
use crate::support::wire;

type Craft = fn(Step) -> Vec<u8>;
const CRAFTED: [(&str, Craft); 4] = [
    ("echo request", echo),
    ("datagram", |step| datagram(step, b"123")),
    ("long datagram", |step| datagram(step, &[7; 1400])),
    ("ICMP error", |step| icmp(step, 3, 1, &[0x45; 44])),
];

/// Where no route leads.
const NOWHERE: [&str; 2] = ["198.51.100.9", "2001:db8:99::9"];

fn nowhere(ends: &Ends) -> IpAddr {
    NOWHERE[usize::from(ends.is_v6())].parse().unwrap()
}

pub(super) fn probes() -> Probes {
    let mut probes = Probes::default();
    for (what, craft) in CRAFTED {
        let mut add = |name: String, change: Box<dyn Fn(Vec<u8>) -> Vec<u8>>| {
            probes.add(BOTH, format!("{what} {name}"), move |ends| {
                change(craft(ends.step_to(ends.other)))
            });
        };
        for ttl in [0, 1, 2, 3, 255] {
            add(
                format!("with TTL {ttl}"),
                Box::new(move |frame| with_ttl(frame, ttl)),
            );
        }
        for (name, options) in [
            ("no operation", &[1, 1, 1, 1][..]),
            ("router alert", &[148, 4, 0, 0]),
            ("record route", &[7, 7, 4, 0, 0, 0, 0, 0]),
            ("a broken option", &[7, 1, 4, 0]),
        ] {
            add(
                format!("with {name}"),
                Box::new(move |frame| with_options(frame, options)),
            );
        }
        add(
            "to another host's MAC".into(),
            Box::new(crate::craft::for_other_host),
        );
        add(
            "as broadcast".into(),
            Box::new(|mut frame| {
                frame[..6].fill(0xff);
                frame
            }),
        );
        add(
            "and padding".into(),
            Box::new(|frame| [frame, vec![0xee; 9]].concat()),
        );
        for field in [0x2000, 0x4000, 1, 0x1fff, 0x8000_u16] {
            add(
                format!("with fragment field {field:#x}"),
                Box::new(move |mut frame| {
                    if !is_v6(&frame) {
                        frame[20..22].copy_from_slice(&field.to_be_bytes());
                        wire::fix_ipv4_checksum(&mut frame);
                    }
                    frame
                }),
            );
        }
        probes.add(BOTH, format!("{what} where no route leads"), move |ends| {
            craft(ends.step_to(nowhere(ends)))
        });
    }
    for (behind, kind, body) in [
        ("padding", HOP_BY_HOP, &[1, 4, 0, 0, 0, 0]),
        ("an option to drop", HOP_BY_HOP, &[0x5e, 4, 0, 0, 0, 0]),
        ("an option to refuse", HOP_BY_HOP, &[0x9e, 4, 0, 0, 0, 0]),
        ("router alert", HOP_BY_HOP, &[5, 2, 0, 0, 0, 0]),
        (
            "options for the destination to refuse",
            DESTINATION_OPTIONS,
            &[0x9e, 4, 0, 0, 0, 0],
        ),
        ("a route", ROUTING, &[77, 1, 0, 0, 0, 0]),
        (
            "a fragment header beyond the end",
            44,
            &[0xff, 0xf8, 0, 0, 0, 1],
        ),
        ("a first fragment's header", 44, &[0, 1, 0, 0, 0, 2]),
        ("authentication", 51, &[0, 0, 0, 0, 0, 1]),
        ("an unknown header", 250, &[0, 0, 0, 0, 0, 0]),
    ] {
        probes.add(V6, format!("datagram behind {behind}"), move |ends| {
            extended(datagram(ends.step_to(ends.other), &[7; 24]), kind, body)
        });
    }
    for kind in [133, 134, 135, 136, 137] {
        // What is about a link is for who is asked.
        probes.add(
            V6,
            format!("Neighbor Discovery of type {kind}"),
            move |ends| {
                let step = wire::with_ttl(ends.macs, ends.source, ends.other, 255);
                icmp(
                    step,
                    0,
                    kind,
                    &[&[0; 4][..], &octets(ends.nos), &[1, 1], &ends.macs.0.0].concat(),
                )
            },
        );
    }
    for (from, address) in [
        ("the loopback", ["127.0.0.1", "::1"]),
        ("nobody", ["0.0.0.0", "::"]),
        ("a group", ["224.0.0.5", "ff02::5"]),
        ("class E", ["240.0.0.1", "fe80::99"]),
        ("another network", NOWHERE),
    ] {
        probes.add(BOTH, format!("datagram from {from}"), move |ends| {
            let from = address[usize::from(ends.is_v6())].parse().unwrap();
            datagram(wire::ip(ends.macs, from, ends.other), b"123")
        });
    }
    probes
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
