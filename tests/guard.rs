//! What a container may not send is dropped, counted by its reason, and seen by nobody.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;

use nos_relay::lab::testbed::Topology;
use nos_shim::ident::MacAddr;
use support::daemon::LIMIT;
use support::scenario::{FAMILIES, Family, Scenario, Variant, variant_tests};
use support::wire::{self, ICMP, ICMPV6, Wire};

/// A frame that must not pass, and why.
struct Refused {
    reason: &'static str,
    frame: Vec<u8>,
}

/// Who sends, and to whom.
struct Ends {
    container: MacAddr,
    relay: MacAddr,
    family: Family,
}

impl Ends {
    fn macs(&self) -> (MacAddr, MacAddr) {
        (self.container, self.relay)
    }

    fn udp(&self, source: IpAddr, destination: IpAddr, ports: (u16, u16)) -> Vec<u8> {
        wire::udp(
            wire::ip(self.macs(), source, destination),
            ports,
            b"payload",
        )
    }

    /// A datagram that may pass.
    fn good(&self) -> Vec<u8> {
        self.udp(self.family.nos, self.family.external, (40_000, 9))
    }

    fn changed(&self, at: usize, to: u8) -> Vec<u8> {
        let mut frame = self.good();
        frame[at] = to;
        frame
    }

    fn v4_changed(&self, at: usize, to: u8) -> Vec<u8> {
        let mut frame = self.changed(at, to);
        wire::fix_ipv4_checksum(&mut frame);
        frame
    }

    fn refused(&self) -> Vec<Refused> {
        let Family { nos, external, .. } = self.family;
        let v6 = self.family.is_v6();
        let parse =
            |v4: &str, v6_text: &str| -> IpAddr { if v6 { v6_text } else { v4 }.parse().unwrap() };
        let mut all = Vec::new();
        let mut add = |reason, frame| all.push(Refused { reason, frame });

        let stranger = MacAddr([2, 9, 9, 9, 9, 9]);
        let step = wire::ip((stranger, self.relay), nos, external);
        add("source-mac", wire::udp(step, (40_000, 9), b"payload"));
        let step = wire::ip((MacAddr([0xff; 6]), self.relay), nos, external);
        add("source-mac", wire::udp(step, (40_000, 9), b"payload"));

        for (v4, v6_text) in [
            ("203.0.113.2", "2001:db8:1::2"),
            ("203.0.113.77", "2001:db8:1::77"),
            ("198.51.100.1", "2001:db8:2::1"),
            ("10.0.0.1", "fd00::1"),
        ] {
            add(
                "source-address",
                self.udp(parse(v4, v6_text), external, (40_000, 9)),
            );
        }
        for (v4, v6_text) in [
            ("0.0.0.0", "::"),
            ("127.0.0.1", "::1"),
            ("224.0.0.1", "ff02::1"),
            ("255.255.255.255", "::ffff:10.0.0.1"),
        ] {
            add(
                "martian-source",
                self.udp(parse(v4, v6_text), external, (40_000, 9)),
            );
        }
        for (v4, v6_text) in [
            ("0.0.0.0", "::"),
            ("127.0.0.1", "::1"),
            ("240.0.0.1", "fe80::1"),
        ] {
            add(
                "martian-destination",
                self.udp(nos, parse(v4, v6_text), (40_000, 9)),
            );
        }
        for (v4, v6_text) in [("224.0.0.5", "ff02::5"), ("239.1.2.3", "ff0e::1")] {
            add("multicast", self.udp(nos, parse(v4, v6_text), (40_000, 9)));
        }
        // Ports of nobody, of the other container, of services; and TCP ports that are only UDP's.
        for port in [1, 7, 19_999, 21_000, 39_999, 45_000, 50_000, 65_535, 179] {
            add("source-port", self.udp(nos, external, (port, 9)));
        }
        for port in [0, 22, 21_000, 45_000] {
            add(
                "source-port",
                wire::syn(wire::ip(self.macs(), nos, external), (port, 80)),
            );
        }
        for protocol in [2, 47, 89, 112, 253] {
            add(
                "source-protocol",
                wire::other(wire::ip(self.macs(), nos, external), protocol, &[0; 24]),
            );
        }
        self.add_malformed(&mut add);
        all
    }

    fn add_malformed(&self, add: &mut impl FnMut(&'static str, Vec<u8>)) {
        let Family { nos, external, .. } = self.family;
        let step = || wire::ip(self.macs(), nos, external);
        if self.family.is_v6() {
            add("ipv6-header", self.changed(14, 0x50));
            add("ip-length", self.changed(18, 0xff));
            // A redirect's kind; a quote of something that nobody has sent here.
            add(
                "icmp-unmatched",
                icmpv6(wire::other(
                    step(),
                    ICMPV6,
                    &[1, 4, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0],
                )),
            );
            add(
                "source-protocol",
                icmpv6(wire::other(step(), ICMPV6, &[150, 0, 0, 0, 0, 0, 0, 0])),
            );
        } else {
            add("ipv4-header", self.v4_changed(14, 0x55));
            add("ipv4-header", self.v4_changed(14, 0x44));
            add("ipv4-checksum", self.changed(24, 0xaa));
            add("ip-length", self.v4_changed(16, 0xff));
            add(
                "icmp-unmatched",
                icmpv4(wire::other(
                    step(),
                    ICMP,
                    &[3, 3, 0, 0, 0, 0, 0, 0, 0x45, 0, 0, 0],
                )),
            );
            // A redirect, a timestamp request.
            add(
                "source-protocol",
                icmpv4(wire::other(
                    step(),
                    ICMP,
                    &[5, 1, 0, 0, 0, 0, 0, 0, 0x45, 0, 0, 0],
                )),
            );
            add(
                "source-protocol",
                icmpv4(wire::other(
                    step(),
                    ICMP,
                    &[[13, 0, 0, 0].as_slice(), &[0; 16]].concat(),
                )),
            );
        }
        let transport = if self.family.is_v6() { 54 } else { 34 };
        // UDP lengths beyond the packet and below the header.
        add("transport-header", self.changed(transport + 5, 99));
        add("transport-header", self.changed(transport + 5, 7));
        // A TCP header shorter than 20 octets, and one beyond the packet's end.
        for offset in [0x40, 0xf0] {
            let mut frame = wire::syn(step(), (40_000, 80));
            frame[transport + 12] = offset;
            add("transport-header", frame);
        }
        let mut frame = self.good();
        frame[12..14].copy_from_slice(&0x88cc_u16.to_be_bytes());
        add("ethertype", frame);
    }
}

fn icmpv4(mut frame: Vec<u8>) -> Vec<u8> {
    let sum = !wire::sum(&frame[34..]);
    frame[36..38].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn icmpv6(mut frame: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(frame.len() - 54).unwrap();
    let pseudo = [
        &frame[22..54],
        &length.to_be_bytes(),
        &[0, 0, 0, ICMPV6],
        &frame[54..],
    ]
    .concat();
    let sum = !wire::sum(&pseudo);
    frame[56..58].copy_from_slice(&sum.to_be_bytes());
    frame
}

mod what_a_container_may_not_send {
    use super::*;

    fn scenario(variant: Variant) {
        let scenario = Scenario::new(variant);
        let inside = Wire::open(scenario.web(), "eth0");
        let outside = Wire::open(scenario.external(), Topology::EXTERNAL_INTERFACE);
        let before = scenario.daemon.attachment("web");
        for family in FAMILIES {
            let ends = Ends {
                container: inside.mac(),
                relay: before.link.mac,
                family,
            };
            let before = scenario.daemon.attachment("web").link.drops;
            let mut expected = BTreeMap::new();
            for Refused { reason, frame } in ends.refused() {
                inside.send(&frame);
                *expected.entry(reason).or_insert(0) += 1;
            }
            // What may pass arrives after all that was sent before it.
            inside.send(&ends.good());
            let seen = outside.seen_until(LIMIT, |seen| seen.transport().ends_with(b"payload"));
            let strange: Vec<_> = seen.iter().filter(|seen| !seen.is_chatter()).collect();
            assert!(strange.is_empty(), "{strange:#?}");

            let after = scenario.daemon.attachment("web").link.drops;
            let count = |reason: &str| {
                let of =
                    |drops: &BTreeMap<String, u64>| drops.get(reason).copied().unwrap_or_default();
                of(&after) - of(&before)
            };
            for (reason, times) in &expected {
                // The container's kernel sends to groups unasked.
                let right = if *reason == "multicast" {
                    count(reason) >= *times
                } else {
                    count(reason) == *times
                };
                assert!(right, "{reason}: {} for {times}\n{after:#?}", count(reason));
            }
            for reason in after.keys() {
                let known = expected.contains_key(reason.as_str()) || reason == "multicast";
                assert!(known || count(reason) == 0, "{reason} in {after:#?}");
            }
        }
        // The relay's stage counts them as well.
        let attachment = scenario.daemon.attachment("web").link.drops;
        for (reason, times) in attachment {
            assert!(
                scenario.daemon.dropped("relay", &reason) >= times,
                "{reason}"
            );
        }
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        tap_split_plain: ("tap", "split", [false, false]),
        veth_single: ("veth", "single", [true, true]),
        veth_split_plain: ("veth", "split", [false, false]),
    }
}

mod arp_and_neighbor_discovery {
    use super::*;

    /// Everybody on the link is the relay, but the container's own addresses are not.
    fn scenario(variant: Variant) {
        let scenario = Scenario::new(variant);
        let inside = Wire::open(scenario.web(), "eth0");
        let relay = scenario.daemon.attachment("web").link.mac;
        let ask = |sender: [u8; 4], target: [u8; 4]| {
            let mac = inside.mac().0;
            let mut frame = [[0xff; 6], mac].concat();
            frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
            frame.extend(mac);
            frame.extend(sender);
            frame.extend([0; 6]);
            frame.extend(target);
            inside.send(&frame);
        };
        // A gratuitous request, a probe for its own address, and one for another's: silence.
        ask([203, 0, 113, 1], [203, 0, 113, 1]);
        ask([0; 4], [203, 0, 113, 1]);
        ask([0; 4], [203, 0, 113, 5]);
        // Anybody else is asked for.
        ask([203, 0, 113, 1], [198, 51, 100, 7]);
        let answer = inside.first_arp(LIMIT);
        assert_eq!(answer[20..22], [0, 2]);
        assert_eq!(answer[22..28], relay.0);
        assert_eq!(answer[28..32], [198, 51, 100, 7]);
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "split", [true, true]),
    }
}
