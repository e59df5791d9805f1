//! The network that demo, benches and most tests use.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nos_shim::ident::MacAddr;

use super::error::LabError;
use super::link::veth;
use super::namespace::LabNamespace;

/// A device with containers, and an external host on its uplink.
///
/// ```text
/// containers (nothing in them yet)     device H ── hx ═══ xh ── external X
///                                      no addresses       203.0.113.2/24, 2001:db8:1::2/64
/// ```
///
/// The device forwards IPv4, as one with docker does. What the relay attaches comes on top.
#[derive(Clone, Debug)]
pub struct Topology {
    /// H: where the relay runs.
    pub device: LabNamespace,
    /// X: somebody else's host.
    pub external: LabNamespace,
    /// Empty namespaces to attach.
    pub containers: Vec<LabNamespace>,
}

impl Topology {
    /// Name of the uplink in the device.
    pub const UPLINK: &str = "hx";
    /// Name of the external host's end of it.
    pub const EXTERNAL_INTERFACE: &str = "xh";
    /// The NOS's address, which containers share.
    pub const DEVICE_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
    /// The NOS's address, which containers share.
    pub const DEVICE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
    /// The external host's address.
    pub const EXTERNAL_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
    /// The external host's address.
    pub const EXTERNAL_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);

    /// Builds it, with one empty namespace for each name in `containers`.
    ///
    /// # Errors
    /// The kernel refuses: see [`super::privileges`].
    pub fn new(containers: &[&str]) -> Result<Self, LabError> {
        let topology = Self {
            device: LabNamespace::new("H")?,
            external: LabNamespace::new("X")?,
            containers: containers
                .iter()
                .map(|label| LabNamespace::new(label))
                .collect::<Result<_, _>>()?,
        };
        topology.device.sysctl("net/ipv4/ip_forward", "1")?;
        let (device, external) = (&topology.device, &topology.external);
        // The kernel shall not speak on the uplink: it is the relay's. Later interfaces keep IPv6.
        device.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        veth((device, Self::UPLINK), (external, Self::EXTERNAL_INTERFACE))?;
        device.sysctl("net/ipv6/conf/default/disable_ipv6", "0")?;
        external.set_mac(Self::EXTERNAL_INTERFACE, Self::external_mac())?;
        for address in Self::external_addresses() {
            external.add_address(Self::EXTERNAL_INTERFACE, address)?;
        }
        Ok(topology)
    }

    /// The external host's MAC address.
    #[must_use]
    pub fn external_mac() -> MacAddr {
        MacAddr::stable("lab X")
    }

    /// The external host's addresses with the prefixes of its network.
    #[must_use]
    pub fn external_addresses() -> [IpNet; 2] {
        [
            IpNet::new_assert(IpAddr::V4(Self::EXTERNAL_V4), 24),
            IpNet::new_assert(IpAddr::V6(Self::EXTERNAL_V6), 64),
        ]
    }
}
