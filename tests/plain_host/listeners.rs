//! Packets to ports where somebody listens: a container, or the NOS.

use crate::craft::{ACK, FIN, PSH, RST, SYN, URG, segment_to, with_ip_length, with_octet};
use crate::support::wire;
use crate::{Answered, BOTH, CONTAINER, Cases, OWN, SILENCE, UNUSED};

/// Name, flags, whether a closed port answers, and one that listens.
const FLAGS: [(&str, u8, bool, bool); 14] = [
    ("SYN", SYN, true, true),
    ("SYN and PSH", SYN | PSH, true, true),
    ("SYN and URG", SYN | URG, true, true),
    ("SYN and FIN", SYN | FIN, true, false),
    ("SYN and RST", SYN | RST, false, false),
    ("SYN and ACK", SYN | ACK, true, true),
    ("SYN, FIN and ACK", SYN | FIN | ACK, true, true),
    ("FIN", FIN, true, false),
    ("no flags", 0, true, false),
    ("Christmas tree", FIN | PSH | URG, true, false),
    ("ACK", ACK, true, true),
    ("FIN and ACK", FIN | ACK, true, true),
    ("RST", RST, false, false),
    ("RST and ACK", RST | ACK, false, false),
];

pub(crate) fn cases() -> Cases {
    let mut cases = Cases::default();
    for (whose, port) in [
        ("a container that does not listen", UNUSED),
        ("a container", CONTAINER),
        ("an own service", OWN),
    ] {
        for (name, flags, closed, listening) in FLAGS {
            let answered = if port == UNUSED { closed } else { listening };
            for payload in [&b""[..], b"data"] {
                let with = if payload.is_empty() { "" } else { " with data" };
                let name = format!("{name}{with} to {whose}");
                let craft = move |step| segment_to(step, port, flags, payload);
                cases.add(name, craft, [Some(answered); 2]);
            }
        }
        let name = format!("SYN with a wrong checksum to {whose}");
        let craft = move |step| with_octet(segment_to(step, port, SYN, b""), 16, |octet| !octet);
        cases.add(name, craft, SILENCE);
        datagrams(&mut cases, whose, port);
    }
    cases
}

fn datagrams(cases: &mut Cases, whose: &str, port: u16) {
    let datagram = move |step, payload: &[u8]| wire::udp(step, (50_000, port), payload);
    for length in [0, 1, 1000] {
        let name = format!("datagram of {length} octets to {whose}");
        let craft = move |step| datagram(step, &vec![5; length]);
        cases.add(name, craft, BOTH);
    }
    let name = format!("datagram without checksum to {whose}");
    let craft = move |step| with_octet(with_octet(datagram(step, b"12"), 6, |_| 0), 7, |_| 0);
    // Over IPv6 it must have one (RFC 8200 §8.1).
    cases.add(name, craft, [Some(true), Some(false)]);
    let name = format!("datagram with a wrong checksum to {whose}");
    let craft = move |step| with_octet(datagram(step, b"12"), 6, |octet| !octet);
    cases.add(name, craft, SILENCE);
    let name = format!("datagram longer than its packet to {whose}");
    let craft = move |step| with_octet(datagram(step, b"12"), 5, |_| 200);
    cases.add(name, craft, SILENCE);
    let name = format!("datagram shorter than its header to {whose}");
    let craft = move |step| with_octet(datagram(step, b"12"), 5, |_| 7);
    cases.add(name, craft, SILENCE);
    let name = format!("datagram shorter than its packet to {whose}");
    let craft = move |step| with_ip_length([datagram(step, b"12"), vec![5; 3]].concat(), 3);
    cases.add(name, craft, BOTH);
    let name = format!("datagram from port 0 to {whose}");
    let craft = move |step| wire::udp(step, (0, port), b"12");
    cases.add(name, craft, [Some(port == UNUSED); 2]);
    if port == OWN {
        // Two services that answer each other would never end (CERT CA-1996-01).
        let craft = move |step| wire::udp(step, (19, port), b"12");
        cases.add("datagram from chargen to an own service", craft, BOTH);
        cases.but(Answered::Not);
    }
}
