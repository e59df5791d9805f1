//! ICMP, ICMPv6 and Neighbor Discovery.

use std::net::Ipv6Addr;

use nos_shim::ident::MacAddr;
use nos_shim::ndp::{multicast_mac, solicited_node};

use super::{BOTH, Ends, Probes, V4, V6};
use crate::craft::{DESTINATION_OPTIONS, HOP_BY_HOP, extended, icmp, with_octet};
use crate::support::wire;

/// IPv6 types with a meaning of their own, which other tests are about: queries of MLD.
const LISTENERS: [u8; 4] = [130, 131, 132, 143];

pub(super) fn probes() -> Probes {
    let mut probes = Probes::default();
    for kind in 0..=255_u8 {
        if kind != 13 {
            probes.add(V4, format!("ICMP type {kind}"), move |ends| {
                icmp(ends.step(), kind, 0, &[0x45; 60])
            });
        }
        if !LISTENERS.contains(&kind) {
            probes.add(V6, format!("ICMPv6 type {kind}"), move |ends| {
                icmp(ends.step(), 0, kind, &[0x65; 60])
            });
        }
    }
    for code in (0..=255_u8).step_by(5) {
        probes.add(
            BOTH,
            format!("echo request with code {code}"),
            move |ends| {
                let whole = icmp(ends.step(), 8, 128, b"\x12\x34\x00\x01abc");
                let coded = with_octet(whole, 1, |_| code);
                with_octet(coded, 3, |octet| octet.wrapping_sub(code))
            },
        );
    }
    for length in (0..24).chain([548, 1228, 1400, 1452]) {
        probes.add(
            BOTH,
            format!("echo request with {length} octets"),
            move |ends| icmp(ends.step(), 8, 128, &vec![0x12; length]),
        );
    }
    for protocol in [6, 17, 1, 58, 253, 2] {
        for (name, v4, v6) in [
            ("unreachable", 3, 1),
            ("time exceeded", 11, 3),
            ("parameter problem", 12, 4),
            ("redirect", 5, 137),
        ] {
            probes.add(
                BOTH,
                format!("{name} about a packet of protocol {protocol} that was never sent"),
                move |ends| {
                    let quoted = wire::other(
                        wire::ip(ends.macs, ends.nos, ends.source),
                        protocol,
                        &[0x12; 24],
                    );
                    icmp(ends.step(), v4, v6, &[&[0; 4], &quoted[14..]].concat())
                },
            );
        }
    }
    solicitations(&mut probes);
    probes
}

/// What makes a packet another than the usual one.
type Change = Box<dyn Fn(&mut Draft, &Ends)>;

/// A neighbor solicitation to be.
#[derive(Clone, Debug)]
struct Draft {
    mac: Option<MacAddr>,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    hop_limit: u8,
    code: u8,
    reserved: [u8; 4],
    target: Ipv6Addr,
    options: Vec<u8>,
    kind: u8,
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

impl Draft {
    fn new(ends: &Ends) -> Self {
        let [source, target] = [ends.source, ends.nos].map(|address| v6(&address.to_string()));
        Self {
            mac: None,
            source,
            destination: solicited_node(target),
            hop_limit: 255,
            code: 0,
            reserved: [0; 4],
            target,
            options: [&[1, 1][..], &ends.macs.0.0].concat(),
            kind: 135,
        }
    }

    fn frame(&self, ends: &Ends) -> Vec<u8> {
        let group = self.destination.is_multicast();
        let by_address = if group {
            multicast_mac(self.destination)
        } else {
            ends.macs.1
        };
        let macs = (ends.macs.0, self.mac.unwrap_or(by_address));
        let step = wire::with_ttl(
            macs,
            self.source.into(),
            self.destination.into(),
            self.hop_limit,
        );
        let body = [&self.reserved[..], &self.target.octets(), &self.options].concat();
        let frame = icmp(step, 0, self.kind, &body);
        let coded = with_octet(frame, 1, |_| self.code);
        let code = self.code;
        with_octet(coded, 3, move |octet| octet.wrapping_sub(code))
    }
}

type Address = (&'static str, fn(&Ends) -> Ipv6Addr);
const ADDRESSES: [Address; 11] = [
    ("the asker", |ends| v6(&ends.source.to_string())),
    ("the NOS", |ends| v6(&ends.nos.to_string())),
    ("the NOS on the link", |ends| ends.macs.1.link_local()),
    ("a host on the link", |_| v6("fe80::99")),
    ("another host", |_| v6("2001:db8:1::9")),
    ("another network", |_| v6("2001:db8:99::1")),
    ("nobody", |_| Ipv6Addr::UNSPECIFIED),
    ("the loopback", |_| Ipv6Addr::LOCALHOST),
    ("all hosts of the link", |_| v6("ff02::1")),
    ("the group of the NOS", |_| v6("ff02::1:ff00:1")),
    ("a group", |_| v6("ff02::1:2")),
];

/// Those that do not pass through a router.
const DESTINATIONS: [Address; 6] = [
    ADDRESSES[1],
    ADDRESSES[2],
    ADDRESSES[7],
    ADDRESSES[8],
    ADDRESSES[9],
    ADDRESSES[10],
];

type Mac = (&'static str, Option<fn(&Ends) -> [u8; 6]>);
const MACS: [Mac; 6] = [
    ("its destination", None),
    ("the NOS", Some(|ends| ends.macs.1.0)),
    ("another host", Some(|_| [2, 0, 0, 0xaa, 0xbb, 0xcc])),
    ("everybody", Some(|_| [0xff; 6])),
    ("another group", Some(|_| [0x33, 0x33, 0, 0, 0, 0x77])),
    ("the asker", Some(|ends| ends.macs.0.0)),
];

/// Name, and options of a solicitation from this MAC address.
type Options = (&'static str, fn([u8; 6]) -> Vec<u8>);
const OPTIONS: [Options; 16] = [
    ("its MAC", |mac| [&[1, 1][..], &mac].concat()),
    ("no options", |_| vec![]),
    ("the MAC of a group", |_| vec![1, 1, 0x33, 0x33, 0, 0, 0, 1]),
    ("the MAC of everybody", |_| {
        vec![1, 1, 255, 255, 255, 255, 255, 255]
    }),
    ("a MAC of zero", |_| vec![1, 1, 0, 0, 0, 0, 0, 0]),
    ("another MAC", |_| vec![1, 1, 2, 0, 0, 0xaa, 0xbb, 0xcc]),
    ("a MAC of no length", |mac| [&[1, 0][..], &mac].concat()),
    ("a MAC of sixteen octets", |mac| {
        [&[1, 2][..], &mac, &[0; 8]].concat()
    }),
    ("a MAC that is cut short", |mac| {
        [&[1, 1][..], &mac[..4]].concat()
    }),
    ("an option beyond the end", |mac| {
        [&[1, 1][..], &mac, &[14, 2, 0, 0, 0, 0, 0, 0]].concat()
    }),
    ("two MACs", |mac| {
        [&[1, 1][..], &mac, &[1, 1, 2, 0, 0, 0xaa, 0xbb, 0xcc]].concat()
    }),
    ("a nonce", |mac| {
        [&[1, 1][..], &mac, &[14, 1, 1, 2, 3, 4, 5, 6]].concat()
    }),
    ("an unknown option", |mac| {
        [&[200, 1, 1, 2, 3, 4, 5, 6, 1, 1][..], &mac].concat()
    }),
    ("the MAC of the target", |mac| [&[2, 1][..], &mac].concat()),
    ("an MTU", |mac| {
        [&[1, 1][..], &mac, &[5, 1, 0, 0, 0, 0, 5, 0xdc]].concat()
    }),
    ("an octet too many", |mac| {
        [&[1, 1][..], &mac, &[0]].concat()
    }),
];

fn solicitations(probes: &mut Probes) {
    let mut add = |name: String, change: Change| {
        probes.add(V6, name, move |ends| {
            let mut draft = Draft::new(ends);
            change(&mut draft, ends);
            draft.frame(ends)
        });
    };
    for (who, source) in ADDRESSES {
        for (about, target) in ADDRESSES {
            add(
                format!("solicitation of {who} about {about}"),
                Box::new(move |draft, ends| {
                    draft.source = source(ends);
                    draft.target = target(ends);
                }),
            );
        }
        for (to, destination) in DESTINATIONS {
            add(
                format!("solicitation of {who} to {to}"),
                Box::new(move |draft, ends| {
                    draft.source = source(ends);
                    draft.destination = destination(ends);
                }),
            );
        }
        for (options, octets) in OPTIONS {
            add(
                format!("solicitation of {who} with {options}"),
                Box::new(move |draft, ends| {
                    draft.source = source(ends);
                    draft.options = octets(ends.macs.0.0);
                }),
            );
        }
    }
    for (to, destination) in DESTINATIONS {
        for (mac_of, mac) in MACS {
            add(
                format!("solicitation to {to} and the MAC of {mac_of}"),
                Box::new(move |draft, ends| {
                    draft.destination = destination(ends);
                    draft.mac = mac.map(|mac| MacAddr(mac(ends)));
                }),
            );
        }
    }
    for hop_limit in [0, 1, 64, 254, 255] {
        for code in [0, 1, 255] {
            add(
                format!("solicitation with hop limit {hop_limit} and code {code}"),
                Box::new(move |draft, _| {
                    draft.hop_limit = hop_limit;
                    draft.code = code;
                }),
            );
        }
    }
    for kind in [133, 134, 136, 137] {
        for (who, source) in ADDRESSES {
            add(
                format!("type {kind} of {who}"),
                Box::new(move |draft, ends| {
                    draft.kind = kind;
                    draft.source = source(ends);
                }),
            );
        }
    }
    add(
        "solicitation with reserved bits".into(),
        Box::new(|draft, _| draft.reserved = [255; 4]),
    );
    for length in (4..32).step_by(2) {
        probes.add(
            V6,
            format!("solicitation of {length} octets"),
            move |ends| {
                let draft = Draft::new(ends);
                let step = wire::with_ttl(ends.macs, ends.source, ends.nos, 255);
                let body = [&draft.reserved[..], &draft.target.octets(), &draft.options].concat();
                icmp(step, 0, 135, &body[..length - 4])
            },
        );
    }
    for (behind, kind, body) in [
        ("padding", HOP_BY_HOP, &[1, 4, 0, 0, 0, 0]),
        ("router alert", HOP_BY_HOP, &[5, 2, 0, 0, 1, 0]),
        (
            "padding for the destination",
            DESTINATION_OPTIONS,
            &[1, 4, 0, 0, 0, 0],
        ),
        ("an atomic fragment header", 44, &[0, 0, 0, 0, 0, 7]),
        ("a finished route", 43, &[0, 0, 0, 0, 0, 0]),
    ] {
        probes.add(V6, format!("solicitation behind {behind}"), move |ends| {
            extended(Draft::new(ends).frame(ends), kind, body)
        });
    }
}
