//! The link between a container and the relay: who is at its two ends, and whether there are others.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use nos_shim::address_set::AddressSet;
use nos_shim::drop::DropReason;
use nos_shim::frame::Frame;
use nos_shim::ident::MacAddr;

/// A link with the container at one end and the relay at the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerLink {
    /// The Ethernet addresses of a frame from the container to the relay.
    outbound: [u8; 12],
    relay_link_local: Ipv6Addr,
    shared_link_local: Option<Ipv6Addr>,
    addresses: AddressSet,
    mtu: u16,
    segment: Option<Arc<[IpNet]>>,
}

impl ContainerLink {
    /// A link on which the container has `mac` and `addresses`, and the relay `relay_mac`. Its MTU
    /// is `mtu` octets of IP packet.
    #[must_use]
    pub fn new(mac: MacAddr, relay_mac: MacAddr, addresses: &[IpAddr], mtu: u16) -> Self {
        let mut outbound = [0; 12];
        outbound[..6].copy_from_slice(&relay_mac.0);
        outbound[6..].copy_from_slice(&mac.0);
        Self {
            outbound,
            relay_link_local: relay_mac.link_local(),
            shared_link_local: None,
            addresses: AddressSet::new(addresses.iter().copied()),
            mtu,
            segment: None,
        }
    }

    /// The same where the link is a segment with other stations, as that of a bridge: those with addresses in
    /// these networks answer by themselves.
    #[must_use]
    pub fn on_segment(self, networks: Option<Arc<[IpNet]>>) -> Self {
        Self {
            segment: networks,
            ..self
        }
    }

    /// Whether others than the container and the relay are on the link. What the container says to a group, and
    /// is not for the relay, is for those then.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.segment.is_some()
    }

    /// Whether `address` is one that other stations of the link have, or may have.
    #[must_use]
    pub fn is_others(&self, address: IpAddr) -> bool {
        let Some(networks) = &self.segment else {
            return false;
        };
        let link_local = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => {
                address.is_unicast_link_local() && address != self.relay_link_local
            }
        };
        link_local || networks.iter().any(|network| network.contains(&address))
    }

    /// The same, where the container uses the NOS's link-local address on an uplink as its own.
    #[must_use]
    pub fn sharing(self, link_local: Option<Ipv6Addr>) -> Self {
        Self {
            shared_link_local: link_local,
            ..self
        }
    }

    /// The container's MAC address.
    #[must_use]
    #[inline]
    pub fn mac(&self) -> MacAddr {
        let [_, _, _, _, _, _, mac @ ..] = self.outbound;
        MacAddr(mac)
    }

    /// The relay's MAC address, which stands for everything beyond the link.
    #[must_use]
    #[inline]
    pub fn relay_mac(&self) -> MacAddr {
        let [mac @ .., _, _, _, _, _, _] = self.outbound;
        MacAddr(mac)
    }

    /// The relay's only address of its own on this link.
    #[must_use]
    pub fn relay_link_local(&self) -> Ipv6Addr {
        self.relay_link_local
    }

    /// The link-local address of an uplink that the container uses as its own.
    #[must_use]
    pub fn shared_link_local(&self) -> Option<Ipv6Addr> {
        self.shared_link_local
    }

    /// Whether the container has this address, which is the NOS's as well.
    #[must_use]
    pub fn shares(&self, address: IpAddr) -> bool {
        let link_local = self.shared_link_local.map(IpAddr::V6);
        self.addresses.contains(address) || link_local == Some(address)
    }

    /// What the container may use as its own, beside a link-local address.
    #[must_use]
    #[inline]
    pub fn addresses(&self) -> &AddressSet {
        &self.addresses
    }

    /// Octets of the longest IP packet on the link.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Checks that `frame` comes from the container and is for the relay alone.
    ///
    /// # Errors
    ///
    /// [`DropReason::SourceMac`], [`DropReason::Multicast`] or [`DropReason::OtherHost`].
    #[inline]
    pub fn check_unicast(&self, frame: &Frame) -> Result<(), DropReason> {
        if frame.bytes().first_chunk::<12>() == Some(&self.outbound) {
            Ok(())
        } else {
            self.check_any(frame).and(Err(DropReason::Multicast))
        }
    }

    /// Checks that `frame` comes from the container, and is for the relay or for a group.
    ///
    /// # Errors
    ///
    /// [`DropReason::SourceMac`] or [`DropReason::OtherHost`].
    pub fn check_any(&self, frame: &Frame) -> Result<(), DropReason> {
        let Some([destination @ .., a, b, c, d, e, f]) = frame.bytes().first_chunk::<12>() else {
            return Err(DropReason::FrameLength);
        };
        let destination = MacAddr(*destination);
        if MacAddr([*a, *b, *c, *d, *e, *f]) != self.mac() {
            Err(DropReason::SourceMac)
        } else if destination == self.relay_mac() || destination.is_multicast() {
            Ok(())
        } else {
            Err(DropReason::OtherHost)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nos_shim::frame::FramePool;

    #[test]
    fn both_ends_of_a_frame_are_checked() {
        const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
        const RELAY: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
        const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 3]);
        let link = ContainerLink::new(MAC, RELAY, &[], 1500);
        assert_eq!((link.mac(), link.relay_mac()), (MAC, RELAY));
        let mut pool = FramePool::new(4, 100);
        let mut checked = |destination: MacAddr, source: MacAddr| {
            let mut octets = [destination.0, source.0].concat();
            octets.extend([8, 0]);
            let frame = pool.copy_from(&octets).unwrap();
            (link.check_unicast(&frame), link.check_any(&frame))
        };
        let both = |reason| (Err(reason), Err(reason));
        assert_eq!(checked(RELAY, MAC), (Ok(()), Ok(())));
        assert_eq!(checked(RELAY, OTHER), both(DropReason::SourceMac));
        assert_eq!(checked(OTHER, MAC), both(DropReason::OtherHost));
        assert_eq!(
            checked(MacAddr::BROADCAST, MAC),
            (Err(DropReason::Multicast), Ok(()))
        );
        let empty = pool.alloc().unwrap();
        assert_eq!(link.check_unicast(&empty), Err(DropReason::FrameLength));
    }
}
