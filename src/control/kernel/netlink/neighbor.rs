//! Neighbors that nobody has to resolve.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use nos_shim::ident::MacAddr;

use super::client::{Netlink, Request};
use super::error::NetlinkError;
use super::route::family_of;

impl Netlink {
    /// Has packets to `address` leave through interface `index` to `mac`, without ARP or NDP.
    pub(crate) fn add_neighbor(
        &self,
        index: u32,
        address: IpAddr,
        mac: MacAddr,
    ) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family_of(address);
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.header.kind = RouteType::Unspec;
        message.attributes = vec![
            NeighbourAttribute::Destination(match address {
                IpAddr::V4(address) => NeighbourAddress::Inet(address),
                IpAddr::V6(address) => NeighbourAddress::Inet6(address),
            }),
            NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
        ];
        let action = format!("add neighbor {address} at {mac}");
        self.call(&Request::replace(
            action,
            RouteNetlinkMessage::NewNeighbour(message),
        ))
    }
}
