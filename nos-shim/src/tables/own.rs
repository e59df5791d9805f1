//! What packets of one VRF are asked for: the NOS's own addresses there, for every packet.

use core::net::IpAddr;
use std::collections::BTreeMap;

use crate::address_set::AddressSet;
use crate::ident::{LocalAddressId, VrfId};
use crate::ports::PortTable;
use crate::uplink::UplinkConfig;

/// The addresses of the NOS in one VRF. Routes to them win over all others, being the longest and
/// from the best source, so no route is looked up for what they have.
#[derive(Default)]
pub(super) struct OwnAddresses {
    addresses: AddressSet,
    /// By number in the set.
    ids: Vec<LocalAddressId>,
    /// Octets of the longest IP packet that every uplink takes; `None` without uplinks.
    pub(super) mtu: Option<usize>,
}

impl OwnAddresses {
    /// Those of all VRFs in which there are uplinks, by VRF. `ports` has all addresses.
    pub(super) fn by_vrf<'a>(
        uplinks: impl Iterator<Item = &'a UplinkConfig>,
        ports: &PortTable,
    ) -> Vec<Self> {
        let mut vrfs: BTreeMap<VrfId, Vec<&UplinkConfig>> = BTreeMap::new();
        for uplink in uplinks {
            vrfs.entry(uplink.vrf).or_default().push(uplink);
        }
        let mut all = Vec::new();
        for (vrf, of_vrf) in vrfs {
            all.resize_with(usize::from(vrf.0), Self::default);
            all.push(Self::of(vrf, &of_vrf, ports));
        }
        all
    }

    fn of(vrf: VrfId, uplinks: &[&UplinkConfig], ports: &PortTable) -> Self {
        let nets = uplinks.iter().flat_map(|uplink| &uplink.addresses);
        let addresses = AddressSet::new(nets.map(ipnet::IpNet::addr));
        let ids = addresses
            .iter()
            .filter_map(|address| ports.address(vrf, address))
            .collect();
        Self {
            addresses,
            ids,
            mtu: uplinks.iter().map(|uplink| uplink.mtu).min(),
        }
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter()
    }

    /// The address that this is.
    // Every packet of an uplink asks twice; who else asks is cold.
    #[inline(always)]
    pub(super) fn find(&self, address: IpAddr) -> Option<LocalAddressId> {
        self.ids.get(self.addresses.number(address)?).copied()
    }
}
