//! Fragments: alone, and in pairs that make a datagram or none.

use super::{BOTH, Ends, Probes, V4, V6};
use crate::craft::{SYN, Step, datagram, extended, is_v6, other, segment, transport_at};
use crate::support::wire;
use crate::{CONTAINER, OWN};

/// Octets from `from` to `to` of a datagram's payload, as a fragment of it.
fn part(whole: &[u8], (from, to): (usize, usize), more: bool, identification: u16) -> Vec<u8> {
    let at = transport_at(whole);
    let to = to.min(whole.len() - at);
    let field = u16::try_from(from).unwrap() | u16::from(more);
    let [high, low] = field.to_be_bytes();
    let [i0, i1] = identification.to_be_bytes();
    let mut frame = [&whole[..at], &whole[at + from..at + to]].concat();
    let length = u16::try_from(to - from).unwrap();
    if is_v6(whole) {
        frame[18..20].copy_from_slice(&length.to_be_bytes());
        return extended(frame, 44, &[high, low, 0, 0, i0, i1]);
    }
    frame[16..18].copy_from_slice(&(length + 20).to_be_bytes());
    frame[18..20].copy_from_slice(&[i0, i1]);
    frame[20..22].copy_from_slice(&((field >> 3) | u16::from(more) << 13).to_be_bytes());
    wire::fix_ipv4_checksum(&mut frame);
    frame
}

type Craft = fn(Step) -> Vec<u8>;
const WHOLES: [(&str, Craft); 7] = [
    ("echo request", |step| {
        crate::craft::icmp(step, 8, 128, &[0x92; 60])
    }),
    ("SYN to nobody", |step| segment(step, SYN, &[0x92; 44])),
    ("datagram to nobody", |step| datagram(step, &[0x92; 56])),
    ("datagram to a container", |step| {
        wire::udp(step, (50_000, CONTAINER), &[0x92; 56])
    }),
    ("datagram to an own service", |step| {
        wire::udp(step, (50_000, OWN), &[0x92; 56])
    }),
    ("unknown protocol", |step| other(step, 253, &[0x92; 64])),
    ("nothing", |step| other(step, 59, &[0x92; 64])),
];

/// Name, and parts: where from, where to, and whether there are more.
type Parts = &'static [(usize, usize, bool)];
const PARTS: [(&str, Parts); 14] = [
    ("two parts", &[(0, 32, true), (32, 64, false)]),
    ("two parts in reverse", &[(32, 64, false), (0, 32, true)]),
    (
        "three parts",
        &[(0, 24, true), (24, 48, true), (48, 64, false)],
    ),
    (
        "three parts, mixed",
        &[(48, 64, false), (0, 24, true), (24, 48, true)],
    ),
    (
        "the first part twice",
        &[(0, 32, true), (0, 32, true), (32, 64, false)],
    ),
    (
        "the last part twice",
        &[(32, 64, false), (32, 64, false), (0, 32, true)],
    ),
    ("parts that overlap", &[(0, 40, true), (32, 64, false)]),
    (
        "a part inside another",
        &[(0, 48, true), (24, 32, true), (48, 64, false)],
    ),
    (
        "two ends",
        &[(32, 56, false), (32, 64, false), (0, 32, true)],
    ),
    (
        "a part behind the end",
        &[(24, 48, false), (48, 64, true), (0, 24, true)],
    ),
    (
        "a part without anything",
        &[(0, 32, true), (32, 32, true), (32, 64, false)],
    ),
    ("an end without anything", &[(0, 64, true), (64, 64, false)]),
    (
        "a first part of eight octets",
        &[(0, 8, true), (8, 64, false)],
    ),
    (
        "a first part of sixteen octets",
        &[(0, 16, true), (16, 64, false)],
    ),
];

pub(super) fn probes() -> Probes {
    let mut probes = Probes::default();
    for (what, craft) in WHOLES {
        for (how, parts) in PARTS {
            let number = u16::try_from(probes.0.len()).unwrap();
            probes.add_all(BOTH, format!("{what} in {how}"), move |ends| {
                let whole = craft(ends.step());
                let part = |&(from, to, more)| part(&whole, (from, to), more, number);
                parts.iter().map(part).collect()
            });
        }
    }
    alone(&mut probes);
    probes
}

/// Fragments of which the others never come.
fn alone(probes: &mut Probes) {
    for protocol in [17, 6, 58, 59, 253, 60, 43, 51, 0_u8] {
        for offset in [0, 8, 16, 65_512, 65_520, 65_528_u16] {
            for more in [0, 1] {
                for length in [0, 1, 4, 7, 8, 15, 16, 20, 24] {
                    // A whole datagram.
                    if (offset, more) == (0, 0) {
                        continue;
                    }
                    let name = format!(
                        "fragment of protocol {protocol} at {offset} with {length} octets and M {more}"
                    );
                    let number = u16::try_from(probes.0.len()).unwrap();
                    probes.add(V6, name, move |ends| {
                        alone_v6(ends, protocol, offset | more, length, number)
                    });
                }
            }
        }
    }
    for protocol in [17, 6, 1, 2, 253_u8] {
        for field in [0x2000, 1, 0x2001, 0x1fff, 0x3fff, 0x1ffe_u16] {
            for length in [0, 1, 4, 8, 20] {
                let name = format!(
                    "fragment of protocol {protocol} with field {field:#x} and {length} octets"
                );
                probes.add(V4, name, move |ends| {
                    let mut frame = other(ends.step(), protocol, &vec![0x92; length]);
                    frame[20..22].copy_from_slice(&field.to_be_bytes());
                    wire::fix_ipv4_checksum(&mut frame);
                    frame
                });
            }
        }
    }
}

fn alone_v6(ends: &Ends, protocol: u8, field: u16, length: usize, number: u16) -> Vec<u8> {
    let [high, low] = field.to_be_bytes();
    let [i0, i1] = number.to_be_bytes();
    // Whatever header this is taken for says that it is short.
    let mut payload = vec![0x92; length];
    if matches!(protocol, 60 | 43 | 51 | 0) {
        payload
            .iter_mut()
            .zip([58, 0, 1, 4, 0, 0, 0, 0])
            .for_each(|(octet, header)| *octet = header);
    }
    let frame = other(ends.step(), protocol, &payload);
    extended(frame, 44, &[high, low, 0, 0, i0, i1])
}
