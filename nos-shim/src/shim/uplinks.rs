//! Uplinks and their addresses.

use core::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::{Shim, UplinkConfig, UplinkCounters, UplinkSnapshot};
use crate::address_set::AddressSet;
use crate::drop::DropReason;
use crate::fib::{Action, FibFull, Protocol, Route, Source};
use crate::forward::Origin;
use crate::ident::{LocalAddressId, UplinkId, VrfId};
use crate::neighbor::{self, NeighborCache};
use crate::offload::{Capabilities, adapt};
use crate::packet::{Packet, Rejected};
use crate::ports::PortTable;
use crate::time::Instant;

pub(crate) struct Uplink {
    pub(crate) config: UplinkConfig,
    pub(crate) capabilities: Capabilities,
    pub(crate) neighbors: NeighborCache<Origin>,
    pub(crate) counters: UplinkCounters,
}

impl Uplink {
    /// The address that speaks for the NOS on this link: the first of the family.
    pub(crate) fn address(&self, ipv6: bool) -> Option<IpAddr> {
        let mut addresses = self.config.addresses.iter().map(IpNet::addr);
        addresses.find(|address| address.is_ipv6() == ipv6)
    }

    /// The NOS's IPv6 link-local address on this link.
    pub(crate) fn link_local(&self) -> Ipv6Addr {
        self.config.mac.link_local()
    }

    pub(super) fn snapshot(&self, now: Instant) -> UplinkSnapshot {
        UplinkSnapshot {
            config: self.config.clone(),
            counters: self.counters,
            neighbors: self.neighbors.entries(now).collect(),
        }
    }
}

/// The addresses of the NOS in one VRF. Routes to them win over all others, being the longest and
/// from the best source, so no route is looked up for what they have.
pub(crate) struct OwnAddresses {
    vrf: VrfId,
    addresses: AddressSet,
    /// By number in the set.
    ids: Vec<LocalAddressId>,
}

impl OwnAddresses {
    fn by_vrf(all: &[(VrfId, IpAddr)], ports: &PortTable) -> Vec<Self> {
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
}

impl Shim {
    /// The NOS's own address that this is.
    #[inline]
    pub(crate) fn own_address(&self, vrf: VrfId, address: IpAddr) -> Option<LocalAddressId> {
        let own = self.own_addresses.iter().find(|own| own.vrf == vrf)?;
        own.ids.get(own.addresses.number(address)?).copied()
    }

    pub(crate) fn uplink(&self, id: UplinkId) -> Option<&Uplink> {
        self.uplinks.get(id)
    }

    /// Adds an uplink, or changes one. Its addresses become the NOS's, with the routes that follow
    /// from them; addresses that it has no more are given up. A change is announced to the link; for
    /// a new uplink see [`Self::announce`].
    ///
    /// # Errors
    ///
    /// [`FibFull`].
    pub fn set_uplink(&mut self, config: UplinkConfig, now: Instant) -> Result<(), FibFull> {
        let id = config.id;
        let result = self.place_uplink(config);
        // Announcements, and packets to neighbors that are none any more.
        self.poll_neighbors(id, now);
        result
    }

    /// Tells the link which addresses are the NOS's: to be called once the uplink's device is
    /// there.
    pub fn announce(&mut self, id: UplinkId, now: Instant) {
        if let Some(uplink) = self.uplinks.get_mut(id) {
            uplink.neighbors.announce();
        }
        self.poll_neighbors(id, now);
    }

    fn place_uplink(&mut self, config: UplinkConfig) -> Result<(), FibFull> {
        let id = config.id;
        match self.uplinks.get_mut(id) {
            Some(uplink) if uplink.config.mac == config.mac => {
                uplink.neighbors.set_addresses(&config.addresses);
                uplink.neighbors.announce();
                uplink.config = config;
            }
            _ => {
                let seed = self.seed ^ u64::from(id.0);
                let limits = neighbor::Limits {
                    held: self.shares.limit(),
                    ..neighbor::Limits::default()
                };
                let neighbors =
                    NeighborCache::with_limits(config.mac, &config.addresses, seed, limits);
                let capabilities = Capabilities::empty();
                let counters = UplinkCounters::default();
                let fresh = Uplink {
                    config,
                    capabilities,
                    neighbors,
                    counters,
                };
                if let Some((_, mut old)) = self.uplinks.insert(id, fresh) {
                    self.changes += old.neighbors.version();
                    self.drop_waiting(&mut old);
                }
            }
        }
        self.follow_addresses()
    }

    /// Removes an uplink with its addresses and what waits for it.
    pub fn remove_uplink(&mut self, id: UplinkId) {
        // What its device left of a burst is in the queue then.
        self.settle();
        let Some(mut uplink) = self.uplinks.remove(id) else {
            return;
        };
        self.changes += uplink.neighbors.version();
        self.drop_waiting(&mut uplink);
        for frame in self.transmit.drain(id.0) {
            self.discard_frame(frame, DropReason::DeviceGone);
        }
        // Taking routes away cannot fill the FIB.
        let _ = self.follow_addresses();
    }

    fn drop_waiting(&mut self, uplink: &mut Uplink) {
        for (packet, _) in uplink.neighbors.clear(&mut self.shares) {
            self.discard(packet, DropReason::DeviceGone);
        }
    }

    /// Brings port table, FIB and local stack in line with the uplinks' addresses.
    fn follow_addresses(&mut self) -> Result<(), FibFull> {
        self.changes += 1;
        let uplinks = || self.uplinks.values();
        let ours: Vec<(VrfId, IpAddr)> = uplinks()
            .flat_map(|uplink| {
                uplink
                    .config
                    .addresses
                    .iter()
                    .map(|net| (uplink.config.vrf, net.addr()))
            })
            .collect();
        let connected: Vec<Route> = uplinks()
            .flat_map(|uplink| {
                let (vrf, id) = (uplink.config.vrf, uplink.config.id);
                uplink
                    .config
                    .addresses
                    .iter()
                    .flat_map(move |net| Route::connected(vrf, *net, id))
            })
            .collect();
        let mut local = Vec::with_capacity(ours.len());
        for &(vrf, address) in &ours {
            let action = Action::Local(self.ports.add_address(vrf, address));
            local.push(Route {
                vrf,
                prefix: address.into(),
                source: Source::Local,
                action,
            });
        }
        self.fib.replace(Protocol::Local, local)?;
        self.fib.replace(Protocol::Connected, connected)?;
        for gone in self.addresses.iter().filter(|known| !ours.contains(known)) {
            self.ports.remove_address(gone.0, gone.1);
        }
        #[cfg(feature = "stack")]
        {
            let least = self.uplinks.values().map(|uplink| uplink.config.mtu).min();
            self.local.set_mtu(least.unwrap_or(usize::MAX));
            self.local
                .set_addresses(ours.iter().map(|&(_, address)| address));
        }
        self.own_addresses = OwnAddresses::by_vrf(&ours, &self.ports);
        self.addresses = ours;
        Ok(())
    }

    /// Sets what an uplink's device takes.
    pub fn set_capabilities(&mut self, id: UplinkId, capabilities: Capabilities) {
        self.settle();
        self.changes += 1;
        let Some(uplink) = self.uplinks.get_mut(id) else {
            return;
        };
        let shrunk = !capabilities.contains(uplink.capabilities);
        uplink.capabilities = capabilities;
        if shrunk {
            self.adapt_waiting(id, capabilities);
        }
    }

    /// Adapts what waits for a device that turned out to take less.
    fn adapt_waiting(&mut self, id: UplinkId, capabilities: Capabilities) {
        let waiting = self.transmit.drain(id.0);
        let Self {
            pool,
            pieces,
            ledger,
            ..
        } = self;
        for frame in waiting {
            match Packet::parse(frame) {
                Ok(packet) => adapt(packet, capabilities, pool, &mut |piece| {
                    pieces.push_back(piece);
                })
                .record(ledger),
                // ARP needs no adapting, and nothing else is here that was not parsed before.
                Err(Rejected { frame, .. }) => {
                    if self.transmit.push(id.0, frame).is_err() {
                        ledger.drop(DropReason::DeviceFull);
                    }
                }
            }
        }
        while let Some(piece) = self.pieces.pop_front() {
            if self.transmit.push(id.0, piece.into_frame()).is_err() {
                self.ledger.drop(DropReason::DeviceFull);
            }
        }
    }
}
