//! What a NOS's interfaces towards the network are, as it and whoever configures it see them.

use core::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use thiserror::Error;

use crate::ident::{MacAddr, UplinkId, VrfId};

/// An interface of the NOS towards the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkConfig {
    /// Names it in tables; small numbers, as they index arrays.
    pub id: UplinkId,
    /// What operators call it.
    pub name: Arc<str>,
    /// Where packets that come in are looked up.
    pub vrf: VrfId,
    /// The NOS's MAC address on this link.
    pub mac: MacAddr,
    /// Addresses of the NOS, each with its network's prefix length.
    pub addresses: Vec<IpNet>,
    /// Octets of the longest IP packet.
    pub mtu: usize,
    /// Whether hosts on this link are told of better first hops there (RFC 1812 §5.2.7.2, RFC 4861
    /// §8.2).
    pub redirects: bool,
}

/// What the one uplink is in front of a NOS in another process. That NOS has the addresses, routes,
/// services and neighbors, and steers what comes to the ports of containers to this link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upstream {
    /// The MAC address of that NOS on the link. If it is not given, it is asked for: by the first
    /// address that is shared, of IPv4 if there is one, which that NOS has to answer for.
    pub neighbor: Option<MacAddr>,
}

/// Whether a link carries packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkState {
    /// It does.
    Up,
    /// It does not: what would leave by it has to go elsewhere.
    Down,
}

/// Counters of one uplink. Octets include Ethernet headers, and count super-frames as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UplinkCounters {
    /// Frames received.
    pub rx_packets: u64,
    /// Octets received.
    pub rx_octets: u64,
    /// Frames handed to the device.
    pub tx_packets: u64,
    /// Octets handed to the device.
    pub tx_octets: u64,
    /// Messages of ARP or Neighbor Discovery by which somebody else used an address of the NOS.
    pub address_conflicts: u64,
}

/// One uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkSnapshot {
    /// What it is configured to be.
    pub config: UplinkConfig,
    /// Whether packets can leave by it.
    pub link: LinkState,
    /// The groups that others are told of.
    pub groups: Vec<IpAddr>,
    /// What went through it.
    pub counters: UplinkCounters,
}

/// Why the NOS does not join a group.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum JoinRefused {
    /// It is no multicast address.
    #[error("{0} is not the address of a group")]
    NotAGroup(IpAddr),
    /// There is no such uplink.
    #[error("{0} does not exist")]
    UnknownUplink(UplinkId),
}
