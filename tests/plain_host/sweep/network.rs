//! Protocol numbers and the other fields of IPv4 and IPv6 headers, and MAC addresses.

use super::{BOTH, Probes, V4, V6};
use crate::craft::{
    SYN, Step, addressed, datagram, echo, is_v6, other, segment, with_options, with_ttl,
};
use crate::support::wire;
use crate::{CONTAINER, OWN, UNUSED};

/// Protocols of which a kernel may have a module: what Linux answers depends on who has loaded it.
const MODULES: [u8; 15] = [
    4, 33, 41, 47, 50, 51, 55, 94, 98, 103, 108, 115, 132, 136, 137,
];
/// Those of which other sweeps are about, and the fragment header.
const ELSEWHERE: [u8; 6] = [1, 6, 17, 44, 58, 43];

type Craft = fn(Step) -> Vec<u8>;
const CRAFTED: [(&str, Craft); 6] = [
    ("echo request", echo),
    ("SYN to nobody", |step| segment(step, SYN, b"")),
    ("datagram to nobody", |step| datagram(step, b"12")),
    ("datagram to a container", |step| {
        wire::udp(step, (50_000, CONTAINER), b"12")
    }),
    ("datagram to an own service", |step| {
        wire::udp(step, (50_000, OWN), b"12")
    }),
    ("datagram to a container that does not listen", |step| {
        wire::udp(step, (50_000, UNUSED), b"12")
    }),
];

const MACS: [(&str, [u8; 6]); 6] = [
    ("another host", [2, 0, 0, 0xaa, 0xbb, 0xcc]),
    ("nobody", [0; 6]),
    ("everybody", [0xff; 6]),
    ("a group of IPv4", [1, 0, 0x5e, 0, 0, 1]),
    ("a group of IPv6", [0x33, 0x33, 0, 0, 0, 1]),
    ("bridges", [1, 0x80, 0xc2, 0, 0, 0]),
];

/// Of IPv4, and of IPv6.
const DESTINATIONS: [(&str, [u8; 4], &str); 12] = [
    ("all hosts", [224, 0, 0, 1], "ff02::1"),
    ("all routers", [224, 0, 0, 2], "ff02::2"),
    ("all routers of the site", [224, 0, 0, 22], "ff05::2"),
    (
        "all hosts of the interface",
        [239, 255, 255, 255],
        "ff01::1",
    ),
    ("a group without scope", [232, 1, 1, 1], "ff00::1"),
    ("its group of nodes", [224, 0, 0, 251], "ff02::1:ff00:1"),
    ("the network", [203, 0, 113, 0], "2001:db8:1::"),
    ("everybody on the subnet", [203, 0, 113, 255], "fec0::1"),
    ("everybody", [255; 4], "ff02::16"),
    ("nobody", [0; 4], "::"),
    ("the loopback", [127, 0, 0, 1], "::1"),
    (
        "the loopback's network",
        [127, 1, 2, 3],
        "::ffff:203.0.113.1",
    ),
];

pub(super) fn probes() -> Probes {
    let mut probes = Probes::default();
    for protocol in
        (0..=255_u8).filter(|protocol| !ELSEWHERE.contains(protocol) && !MODULES.contains(protocol))
    {
        for payload in [&[][..], &[0x81; 12]] {
            // Extension headers are a sweep of their own.
            let families = [true, !matches!(protocol, 0 | 60)];
            let name = format!("protocol {protocol} with {} octets", payload.len());
            probes.add(families, name, move |ends| {
                other(ends.step(), protocol, payload)
            });
        }
    }
    for kind in [0x11, 0x12, 0x13, 0x14, 0x16, 0x17, 0x22, 0x30, 0, 255_u8] {
        for length in [4, 8, 12, 24] {
            probes.add(
                V4,
                format!("IGMP type {kind:#x} of {length} octets"),
                move |ends| {
                    let mut message = vec![0; length];
                    message[0] = kind;
                    let sum = !wire::sum(&message);
                    message[2..4].copy_from_slice(&sum.to_be_bytes());
                    other(ends.step(), 2, &message)
                },
            );
        }
    }
    for (what, craft) in CRAFTED {
        fields(&mut probes, what, craft);
    }
    probes
}

fn fields(probes: &mut Probes, what: &str, craft: Craft) {
    for ttl in [0, 1, 2, 63, 128, 255] {
        probes.add(BOTH, format!("{what} with TTL {ttl}"), move |ends| {
            with_ttl(craft(ends.step()), ttl)
        });
    }
    for class in (0..=255_u8).step_by(17) {
        probes.add(BOTH, format!("{what} of class {class:#x}"), move |ends| {
            let mut frame = craft(ends.step());
            if is_v6(&frame) {
                frame[14] |= class >> 4;
                frame[15] |= class << 4;
            } else {
                frame[15] = class;
                wire::fix_ipv4_checksum(&mut frame);
            }
            frame
        });
    }
    for label in [1, 0xf_ffff, 0x8_0000_u32] {
        probes.add(
            V6,
            format!("{what} with flow label {label:#x}"),
            move |ends| {
                let mut frame = craft(ends.step());
                let [_, high, rest @ ..] = label.to_be_bytes();
                frame[15] |= high;
                frame[16..18].copy_from_slice(&rest);
                frame
            },
        );
    }
    for version in 0..16_u8 {
        probes.add(BOTH, format!("{what} of version {version}"), move |ends| {
            let mut frame = craft(ends.step());
            frame[14] = version << 4 | frame[14] & 0xf;
            if !is_v6(&frame) {
                wire::fix_ipv4_checksum(&mut frame);
            }
            frame
        });
    }
    for words in 0..16_u8 {
        probes.add(
            V4,
            format!("{what} with a header of {words} words"),
            move |ends| {
                let options = usize::from(words.saturating_sub(5)) * 4;
                let mut frame = with_options(craft(ends.step()), &vec![1; options]);
                frame[14] = 0x40 | words;
                frame[24..26].fill(0);
                let sum = !wire::sum(&frame[14..14 + usize::from(words) * 4]);
                frame[24..26].copy_from_slice(&sum.to_be_bytes());
                frame
            },
        );
    }
    for mistake in [
        [7, 3, 4, 1],
        [7, 0, 1, 1],
        [7, 8, 4, 1],
        [68, 4, 5, 0],
        [68, 4, 4, 0],
        [148, 2, 1, 1],
        [131, 3, 4, 1],
        [200, 1, 1, 1],
        [1, 1, 1, 200],
    ] {
        probes.add(
            V4,
            format!("{what} with options {mistake:?}"),
            move |ends| with_options(craft(ends.step()), &mistake),
        );
    }
    for flags in [0x2000, 0x4000, 0x8000, 0xc000, 0x6000, 0x1fff, 1_u16] {
        probes.add(
            V4,
            format!("{what} with fragment field {flags:#x}"),
            move |ends| {
                let mut frame = craft(ends.step());
                frame[20..22].copy_from_slice(&flags.to_be_bytes());
                wire::fix_ipv4_checksum(&mut frame);
                frame
            },
        );
    }
    for length in [0, 1, 4, 7, 8, 19, 20, 21, 27, 28, 200, 0xffff_u16] {
        probes.add(
            BOTH,
            format!("{what} that says {length} octets"),
            move |ends| {
                let mut frame = craft(ends.step());
                let at = if is_v6(&frame) { 18 } else { 16 };
                frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
                if !is_v6(&frame) {
                    wire::fix_ipv4_checksum(&mut frame);
                }
                frame
            },
        );
    }
    for length in [14, 15, 20, 33, 34, 40, 53, 54, 55] {
        probes.add(
            BOTH,
            format!("{what} cut to {length} octets"),
            move |ends| {
                let mut frame = craft(ends.step());
                frame.truncate(length);
                frame
            },
        );
    }
    for (to, mac) in MACS {
        probes.add(BOTH, format!("{what} to the MAC of {to}"), move |ends| {
            let mut frame = craft(ends.step());
            frame[..6].copy_from_slice(&mac);
            frame
        });
    }
    for (to, v4, v6) in DESTINATIONS {
        probes.add(BOTH, format!("{what} to {to}"), move |ends| {
            addressed(craft(ends.step()), v4, v6)
        });
        probes.add(
            BOTH,
            format!("{what} to {to} and the MAC of the NOS"),
            move |ends| {
                let mut frame = addressed(craft(ends.step()), v4, v6);
                frame[..6].copy_from_slice(&ends.macs.1.0);
                frame
            },
        );
    }
}
