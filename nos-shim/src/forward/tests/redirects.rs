//! Packets that leave by the uplink where they came in.

use core::net::IpAddr;

use super::oversize::{NOS, NOW, Nos, STATION, UPLINK};
use crate::fib::{Action, NextHop, Route, RouteChange, Source};
use crate::ident::VrfId;
use crate::packet::Packet;
use crate::test_packets::{Draft, N4, X4, X6, ip};

const GATEWAY6: &str = "fe80::77";

impl Nos {
    fn set_route(&mut self, prefix: &str, gateway: &str) {
        let hop = NextHop {
            gateway: ip(gateway),
            uplink: UPLINK,
        };
        let route = Route {
            vrf: VrfId::DEFAULT,
            prefix: prefix.parse().unwrap(),
            source: Source::Static { metric: 0 },
            action: Action::Via(hop.into()),
        };
        self.shim
            .change_routes(vec![RouteChange::Set(route)])
            .unwrap();
    }

    /// Redirects that follow from a packet, which itself waits for its next hop or leaves.
    fn redirects(&mut self, packet: Packet) -> Vec<Packet> {
        self.receive(packet);
        let mut sent = self.sent();
        sent.retain(|sent| matches!(sent.icmp(), Some((5 | 137, _))));
        self.assert_balanced();
        sent
    }
}

fn udp(nos: &mut Nos, from: &str, to: &str) -> Packet {
    Draft::new(from, to).udp_packet(&mut nos.pool, (1, 2), b"x")
}

#[test]
fn hosts_on_the_link_are_told_of_the_better_hop() {
    for (prefix, gateway, from, to, target) in [
        (
            "198.51.100.0/24",
            "203.0.113.77",
            X4,
            "198.51.100.9",
            "203.0.113.77",
        ),
        (
            "198.51.100.0/24",
            "203.0.113.77",
            X4,
            "203.0.113.88",
            "203.0.113.88",
        ),
        ("2001:db8:9::/48", GATEWAY6, X6, "2001:db8:9::9", GATEWAY6),
        (
            "2001:db8:9::/48",
            GATEWAY6,
            X6,
            "2001:db8:1::88",
            "2001:db8:1::88",
        ),
    ] {
        let mut nos = Nos::new();
        nos.set_route(prefix, gateway);
        let packet = udp(&mut nos, from, to);
        let came = packet.ip().to_vec();
        let [redirect] = &nos.redirects(packet)[..] else {
            panic!("one redirect about {to}");
        };
        assert_eq!(redirect.destination(), ip(from));
        assert_eq!(
            (redirect.source_mac(), redirect.destination_mac()),
            (NOS, STATION)
        );
        let told = redirect.transport();
        if redirect.is_ipv6() {
            assert_eq!(redirect.source(), IpAddr::V6(NOS.link_local()));
            assert_eq!(redirect.ttl(), 255);
            assert_eq!(told[8..24], octets(target));
            assert_eq!(told[24..40], octets(to));
            // As it came; the MAC address of the hop is not known.
            assert_eq!(told[48..], came[..came.len() & !7]);
        } else {
            assert_eq!(redirect.source(), ip(N4));
            assert_eq!(redirect.icmp(), Some((5, 1)));
            assert_eq!(told[4..8], octets(target));
            // As it leaves.
            assert_eq!(told[8 + 8], came[8] - 1);
        }
        // The packet itself goes on.
        assert_eq!(nos.shim.held(), 1);
    }
}

fn octets(text: &str) -> Vec<u8> {
    match ip(text) {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[test]
fn nobody_else_is_told() {
    let mut nos = Nos::new();
    nos.set_route("198.51.100.0/24", "203.0.113.77");
    nos.set_route("192.0.2.0/24", X4);
    nos.set_route("2001:db8:9::/48", "2001:db8:1::77");
    nos.set_route("2001:db8:8::/48", X6);
    for (from, to) in [
        // Behind another router.
        ("192.0.2.1", "198.51.100.9"),
        ("2001:db8:8::1", "2001:db8:1::88"),
        // By a router whose link-local address is not known.
        (X6, "2001:db8:9::9"),
    ] {
        let packet = udp(&mut nos, from, to);
        assert_eq!(nos.redirects(packet).len(), 0, "{from} to {to}");
    }
}

#[test]
fn a_link_can_be_spared() {
    let mut nos = Nos::new();
    let uplink = nos.shim.uplinks(None).rows[0].config.clone();
    let quiet = crate::shim::UplinkConfig {
        redirects: false,
        ..uplink.clone()
    };
    nos.shim.set_uplink(quiet, NOW).unwrap();
    nos.sent();
    for (from, to) in [(X4, "203.0.113.88"), (X6, "2001:db8:1::88")] {
        let packet = udp(&mut nos, from, to);
        assert_eq!(nos.redirects(packet).len(), 0);
    }
    nos.shim.set_uplink(uplink, NOW).unwrap();
    nos.sent();
    for (from, to) in [(X4, "203.0.113.88"), (X6, "2001:db8:1::88")] {
        let packet = udp(&mut nos, from, to);
        assert_eq!(nos.redirects(packet).len(), 1);
    }
}

#[test]
fn a_host_that_does_not_heed_is_told_less_and_less() {
    let mut nos = Nos::new();
    for (from, to, most) in [(X4, "203.0.113.88", 1), (X6, "2001:db8:1::88", 6)] {
        let told: usize = (0..50)
            .map(|_| {
                let packet = udp(&mut nos, from, to);
                nos.redirects(packet).len()
            })
            .sum();
        // All at one moment.
        assert_eq!(told, most);
    }
}
