//! Redirects: a host on the link hears of a better first hop (RFC 792, RFC 1812 §5.2.7.2, RFC 4861
//! §8.2).
//!
//! Those of IPv4 are for a host, never for a network, as on Linux and as RFC 1812 wants it. Those of
//! IPv6 name the target's MAC address if that is known, and quote as much of the packet as fits
//! 1,280 octets, in whole units of eight.

use core::net::{IpAddr, Ipv6Addr};

use super::error::{is_unanswerable, message, quote, seal};
use super::{QUOTE_LIMIT_V6, v4, v6};
use crate::frame::{ETHERNET_HEADER, FramePool};
use crate::ident::MacAddr;
use crate::ipv4_options;
use crate::ndp::{HOP_LIMIT, link_layer_option};
use crate::offload::first_segment;
use crate::originate::{Network, Originator, addresses, is_unicast, names_one_host};
use crate::packet::{IPV6_HEADER, Packet, protocol};

/// Octets of a redirect of IPv6 in front of its options (RFC 4861 §4.5).
const FIXED_V6: usize = 40;
/// Octets in front of the quote in the option that holds it (RFC 4861 §4.6.3).
const QUOTE_HEADER: usize = 8;
const OPTION_REDIRECTED_HEADER: u8 = 4;

/// A better first hop for what a packet was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BetterHop {
    /// Its address: the destination itself, if that is on the link. In IPv6 any other is link-local.
    pub target: IpAddr,
    /// Its MAC address, of which IPv6 tells.
    pub mac: Option<MacAddr>,
}

impl BetterHop {
    /// Whether the sender of `packet` may be told: not if it is no single host, nor, in IPv4, about an
    /// error or a later fragment (RFC 1122 §3.2.2); and only of a hop that the host may believe in (RFC
    /// 4861 §8.1).
    #[must_use]
    pub fn may_be_told(&self, packet: &Packet) -> bool {
        let to_one = is_unicast(packet) && names_one_host(packet.source());
        to_one
            && match self.target {
                IpAddr::V4(_) => !packet.is_ipv6() && !is_unanswerable(packet),
                IpAddr::V6(target) => {
                    target.is_unicast_link_local() || packet.destination() == self.target
                }
            }
    }

    /// The redirect from `source` to whoever sent `packet`. Ethernet addresses are zero, and no
    /// interface is set. Ask [`Self::may_be_told`] first.
    ///
    /// `None` when addresses are of different IP versions, or the pool has no buffer.
    #[must_use]
    pub fn redirect(
        &self,
        packet: &Packet,
        source: IpAddr,
        originator: &mut Originator,
        pool: &mut FramePool,
    ) -> Option<Packet> {
        if packet.tunnel().is_some() {
            let segment = first_segment(packet, pool)?;
            let redirect = self.redirect(&segment, source, originator, pool);
            pool.free(segment.into_frame());
            return redirect;
        }
        match self.target {
            IpAddr::V4(target) => {
                let options = ipv4_options::echoed(packet, source);
                let header = (v4::REDIRECT, v4::REDIRECT_HOST, target.to_bits());
                message(
                    (packet, packet.wire_len()),
                    source,
                    header,
                    &options,
                    originator,
                    pool,
                )
            }
            IpAddr::V6(target) => self.redirect_v6(target, packet, source, originator, pool),
        }
    }

    fn redirect_v6(
        &self,
        target: Ipv6Addr,
        packet: &Packet,
        source: IpAddr,
        originator: &mut Originator,
        pool: &mut FramePool,
    ) -> Option<Packet> {
        let IpAddr::V6(destination) = packet.destination() else {
            return None;
        };
        let link_layer = link_layer_option(self.mac);
        let link_layer = link_layer.as_slice().as_flattened();
        let room = QUOTE_LIMIT_V6 - IPV6_HEADER - FIXED_V6 - link_layer.len();
        let option = (packet.wire_len() + QUOTE_HEADER).min(room) & !7;
        let network = Network {
            addresses: addresses(source, packet.source())?,
            protocol: protocol::ICMPV6,
            traffic_class: 0,
            dont_fragment: false,
            options: &[],
            flow: 0,
        };
        let len = FIXED_V6 + link_layer.len() + option;
        let mut redirect = originator.packet(&network, len, pool, |icmp| {
            icmp[0] = v6::REDIRECT;
            icmp[8..24].copy_from_slice(&target.octets());
            icmp[24..40].copy_from_slice(&destination.octets());
            let (fixed, redirected) = icmp.split_at_mut(FIXED_V6 + link_layer.len());
            fixed[FIXED_V6..].copy_from_slice(link_layer);
            redirected[0] = OPTION_REDIRECTED_HEADER;
            redirected[1] = u8::try_from(option / 8).unwrap_or(u8::MAX);
            quote(packet, &mut redirected[QUOTE_HEADER..]);
            seal(network.addresses, icmp);
        })?;
        // Neighbor Discovery has no flows, and comes from the link.
        let ip = &mut redirect.frame_mut().bytes_mut()[ETHERNET_HEADER..];
        ip[..4].copy_from_slice(&[0x60, 0, 0, 0]);
        ip[7] = HOP_LIMIT;
        redirect.set_vrf(packet.frame().vrf());
        Some(redirect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ndp::Ndp;
    use crate::test_packets::{Draft, N4, X4, X6, ip, pool};
    use crate::test_tunnels::any_flow;
    use proptest::prelude::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x77]);

    fn link_local() -> IpAddr {
        ip("fe80::ff:fe00:b")
    }

    #[test]
    fn those_of_ipv4_name_the_gateway_and_quote_the_packet() {
        let mut pool = pool();
        let mut originator = Originator::new(1);
        let draft = Draft::new(X4, "198.51.100.9");
        let packet = draft.udp_packet(&mut pool, (1, 2), b"x");
        let hop = BetterHop {
            target: ip("203.0.113.77"),
            mac: None,
        };
        assert!(hop.may_be_told(&packet));
        let redirect = hop
            .redirect(&packet, ip(N4), &mut originator, &mut pool)
            .unwrap();
        assert_eq!(
            (redirect.source(), redirect.destination()),
            (ip(N4), ip(X4))
        );
        assert_eq!(redirect.icmp(), Some((5, 1)));
        assert_eq!(redirect.transport()[4..8], [203, 0, 113, 77]);
        assert_eq!(&redirect.transport()[8..], packet.ip());
        assert!(redirect.transport_checksum_ok());
        assert_eq!((redirect.ttl(), redirect.ip()[1]), (64, 0xc0));
        // Not about an error, nor a part without header.
        let error = draft.icmp_packet(&mut pool, (3, 1), 0, &[0; 28]);
        assert!(!hop.may_be_told(&error));
        let later = Draft {
            fragment: 1,
            ..draft
        }
        .packet(&mut pool, protocol::UDP, &[0; 8]);
        assert!(!hop.may_be_told(&later));
    }

    #[test]
    fn those_of_ipv6_hold_for_whoever_gets_them() {
        let mut pool = pool();
        let mut originator = Originator::new(1);
        let (IpAddr::V6(to), IpAddr::V6(gateway)) = (ip("2001:db8:1::77"), ip("fe80::77")) else {
            panic!("both are IPv6");
        };
        for (target, mac, len) in [
            (to, Some(MAC), 100),
            (gateway, None, 1),
            (gateway, Some(MAC), 2000),
        ] {
            let packet =
                Draft::new(X6, "2001:db8:1::77").udp_packet(&mut pool, (1, 2), &vec![5; len]);
            let hop = BetterHop {
                target: target.into(),
                mac,
            };
            assert!(hop.may_be_told(&packet));
            let redirect = hop
                .redirect(&packet, link_local(), &mut originator, &mut pool)
                .unwrap();
            let destination = to;
            let expected = Ndp::Redirect {
                target,
                destination,
            };
            assert_eq!(Ndp::parse(&redirect), Ok(expected));
            assert_eq!(redirect.ip()[..4], [0x60, 0, 0, 0]);
            let options = &redirect.transport()[FIXED_V6..];
            let option = mac
                .map(|mac| [&[2, 1][..], &mac.0].concat())
                .unwrap_or_default();
            let (link_layer, quoted) = options.split_at(option.len());
            assert_eq!(link_layer, option);
            assert_eq!(
                quoted[..8],
                [&[4, (quoted.len() / 8) as u8][..], &[0; 6]].concat()
            );
            let quoted = &quoted[8..];
            assert_eq!(quoted, &packet.ip()[..quoted.len()]);
            let whole = (packet.wire_len() & !7).min(1280 - 40 - 40 - 8 - option.len());
            assert_eq!(quoted.len(), whole & !7);
            pool.free(redirect.into_frame());
        }
    }

    proptest! {
        /// As of an error: what is quoted was on a wire.
        #[test]
        fn of_a_tunnel_s_super_frame_the_first_segment_is_quoted(flow in any_flow()) {
            let mut pool = pool();
            let (octets, offload) = flow.super_frame();
            let mut frame = pool.copy_from(&octets).unwrap();
            frame.set_offload(offload);
            let whole = Packet::parse(frame).unwrap();
            let first = pool.copy_from(&flow.segments()[0]).unwrap();
            let first = Packet::parse(first).unwrap();
            let (target, source) = match whole.is_ipv6() {
                true => (ip("fe80::77"), link_local()),
                false => (ip("203.0.113.77"), ip(N4)),
            };
            let hop = BetterHop { target, mac: Some(MAC) };
            let mut told = |packet: &Packet| {
                let mut originator = Originator::new(1);
                let redirect = hop.redirect(packet, source, &mut originator, &mut pool);
                redirect.map(|redirect| redirect.ip().to_vec())
            };
            let expected = told(&first);
            prop_assert!(expected.is_some());
            prop_assert_eq!(told(&whole), expected);
        }
    }

    #[test]
    fn hosts_believe_in_no_other_hop_of_ipv6() {
        let packet = Draft::new(X6, "2001:db8:9::9").udp_packet(&mut pool(), (1, 2), b"x");
        let told = |target: &str| {
            let (target, mac) = (ip(target), None);
            BetterHop { target, mac }.may_be_told(&packet)
        };
        assert!(told("fe80::77") && told("2001:db8:9::9"));
        assert!(!told("2001:db8:1::77"));
    }
}
