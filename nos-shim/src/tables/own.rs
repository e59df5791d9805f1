//! The NOS's own addresses, asked for every packet.

use core::net::IpAddr;

use crate::address_set::AddressSet;
use crate::ident::{LocalAddressId, VrfId};
use crate::ports::PortTable;

/// The addresses of the NOS in one VRF. Routes to them win over all others, being the longest and
/// from the best source, so no route is looked up for what they have.
pub(super) struct OwnAddresses {
    vrf: VrfId,
    addresses: AddressSet,
    /// By number in the set.
    ids: Vec<LocalAddressId>,
}

impl OwnAddresses {
    /// All addresses, which `ports` has as well.
    pub(super) fn by_vrf(all: &[(VrfId, IpAddr)], ports: &PortTable) -> Vec<Self> {
        let mut vrfs: Vec<VrfId> = all.iter().map(|&(vrf, _)| vrf).collect();
        vrfs.sort_unstable();
        vrfs.dedup();
        let new = |vrf| {
            let of_vrf = all.iter().filter(|(of, _)| *of == vrf);
            let addresses = AddressSet::new(of_vrf.map(|&(_, address)| address));
            let ids = addresses
                .iter()
                .filter_map(|address| ports.address(vrf, address))
                .collect();
            Self {
                vrf,
                addresses,
                ids,
            }
        };
        vrfs.into_iter().map(new).collect()
    }

    #[inline]
    pub(super) fn is_of(&self, vrf: VrfId) -> bool {
        self.vrf == vrf
    }

    /// The address that this is.
    #[inline]
    pub(super) fn find(&self, address: IpAddr) -> Option<LocalAddressId> {
        self.ids.get(self.addresses.number(address)?).copied()
    }
}
