//! What tells flows and ports apart.

use core::hash::{Hash, Hasher};
use core::net::IpAddr;

use crate::ident::VrfId;
use crate::ports::Transport;

/// What tells flows apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowKey {
    /// In which VRF.
    pub vrf: VrfId,
    /// By which protocol.
    pub transport: Transport,
    /// The NOS's address, which the owner uses.
    pub local: IpAddr,
    /// The owner's port.
    pub local_port: u16,
    /// The peer's address.
    pub remote: IpAddr,
    /// The peer's port; zero of an expected flow.
    pub remote_port: u16,
}

impl FlowKey {
    /// The same, with any port of the peer.
    #[must_use]
    pub fn expected(self) -> Self {
        Self {
            remote_port: 0,
            ..self
        }
    }

    pub(super) fn port(&self) -> PortKey {
        PortKey {
            vrf: self.vrf,
            transport: self.transport,
            local: self.local,
            port: self.local_port,
        }
    }
}

impl Hash for FlowKey {
    /// In three words, as [`EchoKey`](crate::flows::EchoKey).
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(bits(self.local));
        state.write_u128(bits(self.remote));
        let ports = u64::from(self.local_port) << 16 | u64::from(self.remote_port);
        state.write_u64(place(self.vrf, self.transport) << 32 | ports);
    }
}

/// A port of the NOS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PortKey {
    vrf: VrfId,
    transport: Transport,
    local: IpAddr,
    port: u16,
}

impl Hash for PortKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(bits(self.local));
        state.write_u64(place(self.vrf, self.transport) << 32 | u64::from(self.port));
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn place(vrf: VrfId, transport: Transport) -> u64 {
    u64::from(vrf.0) << 1 | u64::from(transport == Transport::Udp)
}
