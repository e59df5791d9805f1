//! The NOS's own addresses on a link: what it asks, answers and announces.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::arp::{Arp, Operation};
use crate::frame::{Frame, FrameFull};
use crate::ident::MacAddr;
use crate::ndp::{self, Envelope, Ndp};

/// The addresses of the NOS on one uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkAddresses {
    mac: MacAddr,
    v4: Vec<Ipv4Net>,
    v6: Vec<Ipv6Net>,
    router: bool,
}

/// A message to be sent on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkMessage {
    /// ARP.
    Arp {
        /// The message.
        arp: Arp,
        /// The receiver's MAC address.
        destination: MacAddr,
    },
    /// Neighbor Discovery.
    Ndp {
        /// The message.
        ndp: Ndp,
        /// The addresses around it.
        envelope: Envelope,
    },
}

impl LinkMessage {
    /// Makes `frame` this message, in place of what it held.
    ///
    /// # Errors
    ///
    /// [`FrameFull`] when the frame's buffer is too short.
    pub fn write(&self, frame: &mut Frame) -> Result<(), FrameFull> {
        match self {
            Self::Arp { arp, destination } => arp.write(frame, *destination),
            Self::Ndp { ndp, envelope } => ndp.write(frame, envelope),
        }
    }
}

impl LinkAddresses {
    /// The uplink's MAC address and the NOS's addresses with their prefixes. The link-local address
    /// of the MAC address is one of them without being named. `router`: the NOS forwards packets
    /// for others, and says so (RFC 4861 §7.2.4).
    #[must_use]
    pub fn new(mac: MacAddr, addresses: impl IntoIterator<Item = IpNet>, router: bool) -> Self {
        let mut link = Self {
            mac,
            v4: Vec::new(),
            v6: Vec::new(),
            router,
        };
        for address in addresses {
            match address {
                IpNet::V4(address) => link.v4.push(address),
                IpNet::V6(address) => link.v6.push(address),
            }
        }
        let link_local = Ipv6Net::new_assert(mac.link_local(), 64);
        if !link.owns_v6(link_local.addr()) {
            link.v6.push(link_local);
        }
        link
    }

    /// The uplink's MAC address.
    #[must_use]
    pub fn mac(&self) -> MacAddr {
        self.mac
    }

    /// Whether this is an address of the NOS on this link.
    #[must_use]
    pub fn owns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.owns_v4(address),
            IpAddr::V6(address) => self.owns_v6(address),
        }
    }

    fn owns_v4(&self, address: Ipv4Addr) -> bool {
        self.v4.iter().any(|own| own.addr() == address)
    }

    fn owns_v6(&self, address: Ipv6Addr) -> bool {
        self.v6.iter().any(|own| own.addr() == address)
    }

    /// Whether the address is in the prefix of one of the NOS's on this link.
    #[must_use]
    pub fn is_on_link(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.iter().any(|own| own.contains(&address)),
            IpAddr::V6(address) => self.v6.iter().any(|own| own.contains(&address)),
        }
    }

    /// The question who has `target`: to all, or to the MAC address that had it. `None` if the NOS
    /// has no address of that family to ask from.
    #[must_use]
    pub fn solicit(&self, target: IpAddr, unicast: Option<MacAddr>) -> Option<LinkMessage> {
        match target {
            IpAddr::V4(target) => self.arp_request(target, unicast),
            IpAddr::V6(target) => Some(self.neighbor_solicit(target, unicast)),
        }
    }

    fn arp_request(&self, target: Ipv4Addr, unicast: Option<MacAddr>) -> Option<LinkMessage> {
        let near = self.v4.iter().find(|own| own.contains(&target));
        let own = near.or(self.v4.first())?.addr();
        Some(LinkMessage::Arp {
            arp: Arp::request(self.mac, own, target),
            destination: unicast.unwrap_or(MacAddr::BROADCAST),
        })
    }

    /// RFC 4861 §7.2.2. From the link-local address if no other has the target's prefix: there is
    /// always one.
    fn neighbor_solicit(&self, target: Ipv6Addr, unicast: Option<MacAddr>) -> LinkMessage {
        let near = self.v6.iter().find(|own| own.contains(&target));
        let source = near.map_or(self.mac.link_local(), Ipv6Net::addr);
        let ndp = Ndp::NeighborSolicit {
            target,
            source_link_layer: Some(self.mac),
        };
        let envelope = match unicast {
            Some(destination_mac) => Envelope {
                source_mac: self.mac,
                destination_mac,
                source,
                destination: target,
            },
            None => Envelope::to_group(self.mac, source, ndp::solicited_node(target)),
        };
        LinkMessage::Ndp { ndp, envelope }
    }

    /// The answer to a request for an address of the NOS, a probe (RFC 5227 §2.1.1) included.
    #[must_use]
    pub fn answer_arp(&self, request: &Arp) -> Option<LinkMessage> {
        let asked = request.operation == Operation::Request && self.owns_v4(request.target_ip);
        asked.then(|| LinkMessage::Arp {
            arp: request.reply(self.mac),
            destination: request.sender_mac,
        })
    }

    /// The answer to a solicitation for an address of the NOS (RFC 4861 §7.2.4), duplicate address
    /// detection (RFC 4862 §5.4.3) included, which is answered to all nodes.
    #[must_use]
    pub fn answer_ndp(&self, solicit: &Ndp, envelope: &Envelope) -> Option<LinkMessage> {
        let &Ndp::NeighborSolicit {
            target,
            source_link_layer,
        } = solicit
        else {
            return None;
        };
        if !self.owns_v6(target) {
            return None;
        }
        let detection = envelope.source.is_unspecified();
        let envelope = if detection {
            Envelope::to_group(self.mac, target, ndp::ALL_NODES)
        } else {
            Envelope {
                source_mac: self.mac,
                destination_mac: source_link_layer.unwrap_or(envelope.source_mac),
                source: target,
                destination: envelope.source,
            }
        };
        let ndp = self.advert(target, !detection);
        Some(LinkMessage::Ndp { ndp, envelope })
    }

    fn advert(&self, target: Ipv6Addr, solicited: bool) -> Ndp {
        Ndp::NeighborAdvert {
            router: self.router,
            solicited,
            overrides: true,
            target,
            target_link_layer: Some(self.mac),
        }
    }

    /// Tells the link which addresses the NOS has, so that caches which name another MAC address
    /// are corrected (RFC 5227 §2.3, RFC 4861 §7.2.6). Messages get lost: send them once more after
    /// some seconds.
    pub fn announce(&self) -> impl Iterator<Item = LinkMessage> + '_ {
        let v4 = self.v4.iter().map(|own| LinkMessage::Arp {
            arp: Arp::request(self.mac, own.addr(), own.addr()),
            destination: MacAddr::BROADCAST,
        });
        let v6 = self.v6.iter().map(|own| LinkMessage::Ndp {
            ndp: self.advert(own.addr(), false),
            envelope: Envelope::to_group(self.mac, own.addr(), ndp::ALL_NODES),
        });
        v4.chain(v6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn link() -> LinkAddresses {
        let addresses = ["203.0.113.1/24", "198.51.100.1/24", "2001:db8:1::1/64"];
        LinkAddresses::new(MAC, addresses.map(|text| text.parse().unwrap()), true)
    }

    fn asked_from(target: &str) -> String {
        match link().solicit(target.parse().unwrap(), None).unwrap() {
            LinkMessage::Arp { arp, destination } => {
                assert_eq!(destination, MacAddr::BROADCAST);
                assert_eq!(arp.target_ip.to_string(), target);
                arp.sender_ip.to_string()
            }
            LinkMessage::Ndp { envelope, .. } => {
                assert!(envelope.destination.is_multicast());
                envelope.source.to_string()
            }
        }
    }

    #[test]
    fn questions_come_from_the_nearest_address() {
        assert_eq!(asked_from("198.51.100.9"), "198.51.100.1");
        assert_eq!(asked_from("192.0.2.9"), "203.0.113.1");
        assert_eq!(asked_from("2001:db8:1::9"), "2001:db8:1::1");
        assert_eq!(asked_from("2001:db8:2::9"), MAC.link_local().to_string());
        assert_eq!(asked_from("fe80::9"), MAC.link_local().to_string());
        let no_addresses = LinkAddresses::new(MAC, [], false);
        assert_eq!(
            no_addresses.solicit("192.0.2.9".parse().unwrap(), None),
            None
        );
    }

    #[test]
    fn requests_and_probes_for_own_addresses_are_answered() {
        let own = Ipv4Addr::new(203, 0, 113, 1);
        for asker in [Ipv4Addr::new(203, 0, 113, 9), Ipv4Addr::UNSPECIFIED] {
            let request = Arp::request(PEER, asker, own);
            let Some(LinkMessage::Arp { arp, destination }) = link().answer_arp(&request) else {
                panic!("no answer to {asker}");
            };
            assert_eq!((arp.sender_mac, arp.sender_ip), (MAC, own));
            assert_eq!((arp.target_ip, destination), (asker, PEER));
            assert_eq!(link().answer_arp(&request.reply(PEER)), None, "no question");
        }
        let other = Arp::request(PEER, own, Ipv4Addr::new(203, 0, 113, 2));
        assert_eq!(link().answer_arp(&other), None);
    }

    #[test]
    fn solicitations_and_detection_are_answered() {
        let target: Ipv6Addr = "2001:db8:1::1".parse().unwrap();
        let solicit = Ndp::NeighborSolicit {
            target,
            source_link_layer: None,
        };
        let answer = |source: &str| {
            let source = source.parse().unwrap();
            let envelope = Envelope::to_group(PEER, source, ndp::solicited_node(target));
            match link().answer_ndp(&solicit, &envelope) {
                Some(LinkMessage::Ndp { ndp, envelope }) => (ndp, envelope),
                other => panic!("{other:?}"),
            }
        };
        let (advert, envelope) = answer("2001:db8:1::9");
        assert!(matches!(
            advert,
            Ndp::NeighborAdvert {
                solicited: true,
                overrides: true,
                router: true,
                ..
            }
        ));
        assert_eq!((envelope.source, envelope.destination_mac), (target, PEER));
        let (advert, envelope) = answer("::");
        assert!(matches!(
            advert,
            Ndp::NeighborAdvert {
                solicited: false,
                overrides: true,
                ..
            }
        ));
        assert_eq!(envelope.destination, ndp::ALL_NODES);
    }

    #[test]
    fn every_address_is_announced() {
        let announced: Vec<_> = link().announce().collect();
        assert_eq!(announced.len(), 4, "two, one and the link-local one");
        for message in announced {
            match message {
                LinkMessage::Arp { arp, .. } => assert!(arp.is_announcement()),
                LinkMessage::Ndp { ndp, envelope } => {
                    assert_eq!(envelope.destination, ndp::ALL_NODES);
                    assert!(matches!(
                        ndp,
                        Ndp::NeighborAdvert {
                            solicited: false,
                            overrides: true,
                            ..
                        }
                    ));
                }
            }
        }
    }
}
