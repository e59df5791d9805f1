//! What is asked for.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use nos_shim::icmp::DUMMY_ADDRESS;
use nos_shim::ident::MacAddr;
use nos_shim::ports::{AddressMode, PortRange};

use super::AttachError;
use crate::control::kernel::InterfaceName;

/// Transmit queue of a container's interface, in packets: larger than a TCP window of small
/// segments, so that a burst of one connection does not overflow it.
pub const DEFAULT_TX_QUEUE_LEN: u32 = 4096;

/// RFC 8200 section 5, in octets. Linux disables IPv6 on an interface with less.
const IPV6_MIN_MTU: u32 = 1280;

/// What a container's side shall look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Name of the attachment, unique in the daemon.
    pub name: String,
    /// Name of the interface inside, usually `eth0`.
    pub interface: InterfaceName,
    /// MAC address of the interface inside.
    pub mac: MacAddr,
    /// MTU in octets: largest IP packet.
    pub mtu: u32,
    /// Length of the interface's transmit queue in packets.
    pub tx_queue_len: u32,
    /// Whose the addresses are. What a container sends to an address of its own stays inside, as on any
    /// host; what it sends to a shared one does not.
    pub mode: AddressMode,
    /// Its addresses. The first of each family is the source of what the container sends.
    pub addresses: Vec<IpAddr>,
    /// Who else is on the interface's link, and whose it is.
    pub place: LinkPlace,
    /// Addresses of the interface, with their networks: others on its link have such.
    pub link_addresses: Vec<IpNet>,
    /// The link-local address that the interface has in the place of its own one: an uplink's, from
    /// which the container talks with the neighbors on that link.
    pub link_local: Option<Ipv6Addr>,
    /// Networks of the NOS's uplinks: routing daemons look for their neighbors there, and programs
    /// send to them from the shared address that is in the network, if one is.
    pub networks: Arc<[IpNet]>,
    /// The relay's address on the link, by way of which IPv6 packets to the shared addresses leave.
    pub router: Ipv6Addr,
    /// Ports from which the container opens flows; none leaves the namespace's settings.
    pub ephemeral: Vec<PortRange>,
    /// Whether sockets that ask for no port get one from which they may send. TCP connections of a
    /// container without stay inside where they lead to a shared address.
    pub opens_flows: bool,
    /// Its place among the attachments of the namespace.
    pub company: Company,
}

/// Who else is on the link of a container's interface, and whose the interface is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkPlace {
    /// The relay alone is at the other end.
    #[default]
    Alone,
    /// The interface is a port of a bridge.
    Segment,
    /// The same, but that somebody else has made it: what it has stays as it is, and so do the namespace's routes,
    /// beside which the attachment has a table of its own ([`Company::table`]).
    Others,
}

/// An attachment's place among those of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Company {
    /// The table of routes with its way out, if that is not the namespace's: of those that are not its first
    /// attachment.
    pub table: Option<u32>,
    /// That table is for what comes from no address yet as well, in front of the namespace's default route, which
    /// is somebody else's.
    pub in_front: bool,
    /// The others.
    pub others: Vec<OtherAttachment>,
}

/// Another attachment of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherAttachment {
    /// As [`Company::table`].
    pub table: Option<u32>,
    /// As [`Company::in_front`].
    pub in_front: bool,
    /// As [`ContainerSpec::addresses`].
    pub addresses: Vec<IpAddr>,
    /// As [`ContainerSpec::opens_flows`].
    pub opens_flows: bool,
}

impl Company {
    /// Whether the namespace has no other attachment.
    pub(super) fn is_alone(&self) -> bool {
        self.table.is_none() && self.others.is_empty()
    }

    /// Whether another attachment has this address.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        let mut others = self.others.iter();
        others.any(|other| other.addresses.contains(&address))
    }
}

impl ContainerSpec {
    /// By whom a packet of this family leaves, if that has to be said: where there are others on the link, nobody
    /// but the relay is to be asked for.
    pub(super) fn gateway(&self, ipv4: bool) -> Option<IpAddr> {
        (self.place != LinkPlace::Alone).then(|| self.relay_address(ipv4))
    }

    /// The relay's address on the link.
    pub(super) fn relay_address(&self, ipv4: bool) -> IpAddr {
        match ipv4 {
            true => DUMMY_ADDRESS.into(),
            false => self.router.into(),
        }
    }

    /// Whether the interface is ours to change.
    pub(super) fn owns_interface(&self) -> bool {
        self.place != LinkPlace::Others
    }

    /// The link-local address of the interface.
    pub(super) fn interface_address(&self) -> Ipv6Addr {
        self.link_local.unwrap_or_else(|| self.mac.link_local())
    }

    pub(super) fn validate(&self) -> Result<(), AttachError> {
        for address in &self.addresses {
            if !is_host_address(*address) {
                return Err(AttachError::NotUnicast(*address));
            }
            if address.is_ipv6() && self.mtu < IPV6_MIN_MTU {
                return Err(AttachError::MtuTooSmall {
                    mtu: self.mtu,
                    address: *address,
                });
            }
        }
        Ok(())
    }
}

/// What an attachment is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachRequest {
    /// The container's side.
    pub spec: ContainerSpec,
    /// The kind of its interface.
    pub device: DeviceRequest,
    /// Whether offload is asked of the kernel.
    pub offload: bool,
    /// Where a TAP is opened. A veth does not care.
    pub placement: Placement,
}

/// The kind of a container's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceRequest {
    /// A TAP.
    Tap,
    /// A veth pair with a packet socket on the host end.
    Veth {
        /// The relay's MAC address on the link: that of the host end, unless it is a port of a bridge.
        relay_mac: MacAddr,
        /// The bridge that the host end is a port of. It is made if there is none.
        bridge: Option<InterfaceName>,
    },
    /// A veth that somebody else has made, with a packet socket on the host end that hears what is for the relay.
    Existing {
        /// The relay's MAC address on the link.
        relay_mac: MacAddr,
    },
}

/// Where a TAP is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// Inside the container, in well under a millisecond. The kernel does not delete the namespace
    /// while the device is open: right where the caller notices the end of the container by
    /// itself, and closes the device then.
    Inside,
    /// On the host, and then moved inside, which takes the kernel some 20 ms. The namespace can
    /// end while the device is open, and the device with it.
    Moved,
}

fn is_host_address(address: IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(v4) => v4.is_broadcast(),
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some() || v6.is_unicast_link_local(),
    };
    !(special || address.is_unspecified() || address.is_multicast() || address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_addresses_are_taken() {
        for good in ["203.0.113.1", "10.0.0.1", "2001:db8::1", "fd00::1"] {
            assert!(is_host_address(good.parse().unwrap()), "{good}");
        }
        for bad in [
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
            "fe80::1",
            "::ffff:192.0.2.1",
        ] {
            assert!(!is_host_address(bad.parse().unwrap()), "{bad}");
        }
    }
}
