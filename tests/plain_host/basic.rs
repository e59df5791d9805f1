//! Packets to nobody's port, and queries.

use crate::craft::{datagram, icmp, segment, segment_to, transport_at, with_octet};
use crate::support::wire;
use crate::{BOTH, Cases, SILENCE};

pub(crate) fn cases() -> Cases {
    let mut cases = Cases::default();
    // TCP to nobody's port (RFC 9293 §3.5.2).
    cases.add("SYN", |step| segment(step, 0x02, b""), BOTH);
    cases.add("SYN with data", |step| segment(step, 0x02, b"early"), BOTH);
    cases.add("SYN and FIN", |step| segment(step, 0x03, b""), BOTH);
    cases.add("SYN and ACK", |step| segment(step, 0x12, b""), BOTH);
    cases.add("ACK", |step| segment(step, 0x10, b""), BOTH);
    cases.add("ACK with data", |step| segment(step, 0x18, b"data"), BOTH);
    cases.add("FIN", |step| segment(step, 0x01, b""), BOTH);
    cases.add("FIN and ACK", |step| segment(step, 0x11, b""), BOTH);
    cases.add("no flags", |step| segment(step, 0, b""), BOTH);
    cases.add("RST", |step| segment(step, 0x04, b""), SILENCE);
    cases.add("RST and SYN", |step| segment(step, 0x06, b""), SILENCE);
    cases.add("RST and ACK", |step| segment(step, 0x14, b""), SILENCE);
    cases.add("SYN to port 0", |step| segment_to(step, 0, 0x02, b""), BOTH);
    cases.add(
        "SYN to the last port",
        |step| segment_to(step, 65535, 0x02, b""),
        BOTH,
    );
    cases.add(
        "SYN with a wrong checksum",
        |step| with_octet(segment(step, 0x02, b""), 16, |octet| !octet),
        SILENCE,
    );
    cases.add(
        "SYN with a header that is too short",
        |step| with_octet(segment(step, 0x02, b""), 12, |_| 0x40),
        SILENCE,
    );
    cases.add(
        "SYN with a header beyond its end",
        |step| with_octet(segment(step, 0x02, b""), 12, |_| 0xf0),
        SILENCE,
    );
    // UDP to nobody's port (RFC 1122 §4.1.3.1): how much is quoted depends on the length.
    cases.add("empty datagram", |step| datagram(step, b""), BOTH);
    cases.add("datagram of one octet", |step| datagram(step, b"1"), BOTH);
    cases.add(
        "datagram of 600 octets",
        |step| datagram(step, &[6; 600]),
        BOTH,
    );
    cases.add(
        "datagram of 1452 octets",
        |step| datagram(step, &[6; 1452]),
        BOTH,
    );
    cases.add(
        "datagram with a wrong checksum",
        |step| with_octet(datagram(step, b"12"), 6, |octet| !octet),
        SILENCE,
    );
    cases.add(
        "datagram without checksum",
        |step| with_octet(with_octet(datagram(step, b"12"), 6, |_| 0), 7, |_| 0),
        [Some(true), Some(false)],
    );
    cases.add(
        "datagram longer than its packet",
        |step| with_octet(datagram(step, b"12"), 5, |_| 200),
        SILENCE,
    );
    cases.add(
        "datagram shorter than its header",
        |step| with_octet(datagram(step, b"12"), 5, |_| 7),
        SILENCE,
    );
    cases.add(
        "datagram as broadcast",
        |step| {
            let mut frame = datagram(step, b"12");
            frame[..6].fill(0xff);
            frame
        },
        SILENCE,
    );
    cases.add(
        "SYN as broadcast",
        |step| {
            let mut frame = segment(step, 0x02, b"");
            frame[..6].fill(0xff);
            frame
        },
        SILENCE,
    );
    // Other protocols (RFC 1122 §3.2.2.1, RFC 4443 §3.4).
    cases.add(
        "unknown protocol",
        |step| wire::other(step, 253, b"experiment"),
        BOTH,
    );
    cases.add(
        "unknown protocol, empty",
        |step| wire::other(step, 254, b""),
        BOTH,
    );
    // Queries.
    cases.add(
        "echo request",
        |step| icmp(step, 8, 128, b"\x12\x34\x00\x01abc"),
        BOTH,
    );
    cases.add(
        "echo request without data",
        |step| icmp(step, 8, 128, b"\x12\x34\x00\x01"),
        BOTH,
    );
    cases.add(
        "echo request of 1400 octets",
        |step| icmp(step, 8, 128, &[7; 1400]),
        BOTH,
    );
    cases.add(
        "echo request with a wrong checksum",
        |step| {
            with_octet(icmp(step, 8, 128, b"\x12\x34\x00\x01abc"), 3, |octet| {
                !octet
            })
        },
        SILENCE,
    );
    cases.add(
        "echo request with code 1",
        |step| {
            with_octet(
                with_octet(icmp(step, 8, 128, b"\x12\x34\x00\x01abc"), 1, |_| 1),
                3,
                |octet| octet.wrapping_sub(1),
            )
        },
        BOTH,
    );
    cases.add(
        "echo reply that nobody asked for",
        |step| icmp(step, 0, 129, b"\x12\x34\x00\x01abc"),
        SILENCE,
    );
    cases.add(
        "unknown ICMP type",
        |step| icmp(step, 41, 200, b"\x12\x34\x00\x01abc"),
        SILENCE,
    );
    cases.add(
        "unreachable that quotes nothing",
        |step| icmp(step, 3, 1, &[0; 4]),
        SILENCE,
    );
    // Fields that come back.
    cases.add(
        "echo request with DSCP and ECN",
        |step| {
            let mut frame = icmp(step, 8, 128, b"\x12\x34\x00\x01abc");
            if transport_at(&frame) == 54 {
                frame[14] = 0x6b;
                frame[15] |= 0xa0;
            } else {
                frame[15] = 0xba;
                wire::fix_ipv4_checksum(&mut frame);
            }
            frame
        },
        BOTH,
    );
    cases.add(
        "datagram with TTL 1",
        |step| {
            let mut frame = datagram(step, b"12");
            if transport_at(&frame) == 54 {
                frame[21] = 1;
            } else {
                frame[22] = 1;
                wire::fix_ipv4_checksum(&mut frame);
            }
            frame
        },
        BOTH,
    );
    cases.add(
        "datagram with options",
        |step| {
            let mut frame = datagram(step, b"12");
            if transport_at(&frame) == 34 {
                frame[14] = 0x46;
                frame[17] += 4;
                frame.splice(34..34, [1, 1, 1, 0]);
                wire::fix_ipv4_checksum(&mut frame);
            }
            frame
        },
        [Some(true), None],
    );
    cases
}
