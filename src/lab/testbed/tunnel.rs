//! Tunnels between lab namespaces.

use std::net::IpAddr;

use super::error::LabError;
use super::namespace::LabNamespace;
use crate::control::kernel::netlink::{LinkChange, Netlink};

/// One end of a VXLAN tunnel (RFC 7348).
#[derive(Clone, Copy, Debug)]
pub struct Vxlan {
    /// This end's address.
    pub local: IpAddr,
    /// The other end's.
    pub remote: IpAddr,
    /// The UDP port of both ends.
    pub port: u16,
    /// Whether the outer UDP header has a checksum.
    pub checksum: bool,
    /// Octets of the longest IP packet inside.
    pub mtu: u32,
}

impl LabNamespace {
    /// Makes the end `interface` of a VXLAN tunnel, up.
    ///
    /// # Errors
    /// The name or the port is taken, the addresses are of two families, or the kernel lacks VXLAN.
    pub fn add_vxlan(&self, interface: &str, vxlan: Vxlan) -> Result<(), LabError> {
        let netlink = Netlink::open(self.namespace())?;
        let change = LinkChange::named(interface).vxlan(vxlan).mtu(vxlan.mtu);
        Ok(netlink.call(&change.up().create(&format!("VXLAN {interface}")))?)
    }
}
