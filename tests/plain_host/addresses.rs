//! Packets to groups, as broadcast, to other hosts, and from addresses that nobody has.

use crate::craft::{
    SYN, Step, addressed, datagram, echo, for_other_host, from, segment, segment_to,
};
use crate::support::wire;
use crate::{Answered, CONTAINER, Cases, OWN, SILENCE};

/// Name, and addresses of both families. The last one of IPv6 is the solicited-node group of the
/// host's address.
const GROUPS: [(&str, [u8; 4], &str); 5] = [
    ("all hosts of the link", [224, 0, 0, 1], "ff02::1"),
    ("everybody", [255, 255, 255, 255], "ff02::2"),
    ("everybody on the subnet", [203, 0, 113, 255], "ff02::1:2"),
    ("a group", [239, 1, 2, 3], "ff05::1:3"),
    ("a group of its own", [224, 0, 0, 251], "ff02::1:ff00:1"),
];

/// Nobody may speak so on a wire.
const MARTIANS: [(&str, [u8; 4], &str); 4] = [
    ("this host", [0, 0, 0, 0], "::"),
    ("the loopback", [127, 0, 0, 1], "::1"),
    ("all hosts of the link", [224, 0, 0, 1], "ff02::1"),
    ("the host itself", [203, 0, 113, 1], "2001:db8:1::1"),
];

pub(crate) fn cases() -> Cases {
    let mut cases = Cases::default();
    for (name, crafted) in probes() {
        for (group, v4, v6) in GROUPS {
            // Linux answers echo requests to groups of IPv6 that it is in (RFC 4443 §4.2).
            let joined = v6 == "ff02::1" || v6 == "ff02::1:ff00:1";
            let answered = [Some(false), Some(name == "echo request" && joined)];
            let craft = move |step| addressed(crafted(step), v4, v6);
            cases.add(format!("{name} to {group}"), craft, answered);
        }
        for (who, v4, v6) in MARTIANS {
            let craft = move |step| from(crafted(step), v4, v6);
            cases.add(format!("{name} from {who}"), craft, SILENCE);
        }
        let craft = move |step| from(crafted(step), [255; 4], "::");
        cases.add(format!("{name} from everybody"), craft, [Some(false), None]);
        // Without rp_filter Linux answers as broadcast. RFC 1122 §3.2.1.3: never a source.
        let answered = [
            "echo request",
            "SYN",
            "datagram",
            "SYN to a container",
            "unknown protocol",
        ];
        let craft = move |step| from(crafted(step), [203, 0, 113, 255], "::");
        cases.add(
            format!("{name} from everybody on the subnet"),
            craft,
            [Some(answered.contains(&name)), None],
        );
        cases.but(Answered::Not);
        let craft = move |step| for_other_host(crafted(step));
        cases.add(format!("{name} to another MAC address"), craft, SILENCE);
        let craft = move |step| from(crafted(step), [198, 51, 100, 1], "2001:db8:99::1");
        cases.add(format!("{name} from where no route leads"), craft, SILENCE);
    }
    cases
}

type Craft = fn(Step) -> Vec<u8>;

fn probes() -> [(&'static str, Craft); 7] {
    [
        ("echo request", echo),
        ("SYN", |step| segment(step, SYN, b"")),
        ("datagram", |step| datagram(step, b"12")),
        ("SYN to a container", |step| {
            segment_to(step, CONTAINER, SYN, b"")
        }),
        ("datagram to a container", |step| {
            wire::udp(step, (50_000, CONTAINER), b"12")
        }),
        ("datagram to an own service", |step| {
            wire::udp(step, (50_000, OWN), b"12")
        }),
        ("unknown protocol", |step| wire::other(step, 253, b"12")),
    ]
}
