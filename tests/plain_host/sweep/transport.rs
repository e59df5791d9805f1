//! TCP and UDP: to nobody, to a container, to a service of the NOS.

use super::{BOTH, Ends, Probes};
use crate::craft::{SYN, datagram, segment_to, transport_at};
use crate::support::wire;
use crate::{CONTAINER, OWN, UNUSED};

const TO: [(&str, u16); 4] = [
    ("nobody", 81),
    ("a container that does not listen", UNUSED),
    ("a container", CONTAINER),
    ("an own service", OWN),
];

/// A segment with these octets at 12 of its header, offset and flags, and its checksum.
fn segment(ends: &Ends, port: u16, changed: [u8; 2], rest: &[u8]) -> Vec<u8> {
    let mut frame = segment_to(ends.step(), port, SYN, rest);
    let at = transport_at(&frame);
    let old = [frame[at + 12], frame[at + 13]];
    frame[at + 12..at + 14].copy_from_slice(&changed);
    mend(&mut frame, at + 16, old, changed);
    frame
}

/// RFC 1624 equation 3.
fn mend(frame: &mut [u8], checksum: usize, old: [u8; 2], new: [u8; 2]) {
    let not = |octets: [u8; 2]| octets.map(|octet| !octet);
    let before = [frame[checksum], frame[checksum + 1]];
    let sum = wire::sum(&[not(before), not(old), new].concat());
    frame[checksum..checksum + 2].copy_from_slice(&(!sum).to_be_bytes());
}

pub(super) fn probes() -> Probes {
    let mut probes = Probes::default();
    for (who, port) in TO {
        for flags in 0..=255_u8 {
            let name = format!("segment with flags {flags:#04x} to {who}");
            probes.add(BOTH, name, move |ends| {
                segment(ends, port, [0x50, flags], b"")
            });
        }
        for octet in 0..=255_u8 {
            // Header length, and what was reserved. Options are no operations.
            if octet & 0x0f == 0 || octet >> 4 == 5 {
                let name = format!("SYN with offset octet {octet:#04x} to {who}");
                probes.add(BOTH, name, move |ends| {
                    segment(ends, port, [octet, SYN], &[1; 40])
                });
            }
        }
        for length in [0, 1, 7, 8, 9, 20, 27, 28, 29, 40, 0xffff_u16] {
            let name = format!("datagram of 20 octets that says {length} to {who}");
            probes.add(BOTH, name, move |ends| {
                let mut frame = wire::udp(ends.step(), (50_000, port), &[7; 20]);
                let at = transport_at(&frame);
                let (old, new) = (28_u16.to_be_bytes(), length.to_be_bytes());
                frame[at + 4..at + 6].copy_from_slice(&new);
                mend(&mut frame, at + 6, old, new);
                if frame.len() > usize::from(length) + at {
                    // What is left out is not summed; the pseudo-header's length counts twice.
                    mend(&mut frame, at + 6, old, new);
                }
                frame
            });
        }
    }
    for port in [
        0, 1, 7, 22, 80, 1023, 1024, 19_999, 22_000, 39_999, 50_000, 65_535_u16,
    ] {
        let from = format!("SYN from port {port} to nobody");
        probes.add(BOTH, from, move |ends| {
            crate::craft::segment_of(ends.step(), (port, 81), SYN, b"")
        });
        let from = format!("datagram from port {port} to nobody");
        probes.add(BOTH, from, move |ends| {
            wire::udp(ends.step(), (port, 81), b"12")
        });
        if port != OWN {
            let to = format!("datagram to port {port}");
            probes.add(BOTH, to, move |ends| {
                wire::udp(ends.step(), (50_000, port), b"12")
            });
        }
    }
    for length in (0..64).chain([
        100, 507, 508, 509, 520, 521, 1180, 1232, 1233, 1400, 1451, 1452,
    ]) {
        let name = format!("datagram of {length} octets to nobody");
        probes.add(BOTH, name, move |ends| {
            datagram(ends.step(), &vec![3; length])
        });
    }
    probes
}
