//! Uplinks and their addresses.

use core::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::{LinkState, Shim, UplinkConfig, UplinkCounters, UplinkSnapshot};
use crate::address_set::AddressSet;
use crate::drop::{DropReason, Ledger};
use crate::fib::{Action, FibFull, InactiveReason, InactiveRoute, Protocol, Route, Source};
use crate::forward::Origin;
use crate::frame::FramePool;
use crate::id_table::IdTable;
use crate::ident::{LocalAddressId, UplinkId, VrfId};
use crate::neighbor::NeighborCache;
use crate::offload::{Capabilities, adapt};
use crate::packet::{Packet, Rejected};
use crate::ports::PortTable;
use crate::time::Instant;

pub(crate) struct Uplink {
    pub(crate) config: UplinkConfig,
    pub(crate) link: LinkState,
    pub(crate) capabilities: Capabilities,
    pub(crate) neighbors: NeighborCache<Origin>,
    pub(crate) counters: UplinkCounters,
}

fn neighbors_of(config: &UplinkConfig, seed: u64) -> NeighborCache<Origin> {
    let seed = seed ^ u64::from(config.id.0);
    NeighborCache::new(config.mac, &config.addresses, seed)
}

/// Whether packets can leave by an uplink.
pub(super) fn is_up(uplinks: &IdTable<UplinkId, Uplink>, id: UplinkId) -> bool {
    let uplink = uplinks.get(id);
    uplink.is_some_and(|uplink| uplink.link == LinkState::Up)
}

/// The routes that follow from the addresses of uplinks that are up.
fn connected_routes<'a>(
    uplinks: impl Iterator<Item = (&'a UplinkConfig, LinkState)>,
) -> Vec<Route> {
    let up = uplinks.filter(|(_, link)| *link == LinkState::Up);
    let routes = up.flat_map(|(config, _)| {
        let networks = config.addresses.iter();
        networks.flat_map(|net| Route::connected(config.vrf, *net, config.id))
    });
    routes.collect()
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
            link: self.link,
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

    /// Makes `wanted` all uplinks there are, at once: an address that moves from one to another is
    /// the NOS's all the time, with the ports on it. An uplink that does not change is not touched,
    /// one that changes is announced to its link, and a new one is [down](Self::set_link).
    ///
    /// No two of them may have the same [index](UplinkId::index).
    ///
    /// # Errors
    ///
    /// [`FibFull`]; nothing has changed then.
    pub fn set_uplinks(&mut self, wanted: Vec<UplinkConfig>, now: Instant) -> Result<(), FibFull> {
        let links = wanted.iter().map(|config| (config, self.link(config.id)));
        let links: Vec<_> = links.collect();
        self.place(links.into_iter())?;
        let gone = self.uplinks.iter().map(|(id, _)| id);
        let gone = gone.filter(|&id| wanted.iter().all(|config| config.id != id));
        for id in gone.collect::<Vec<_>>() {
            self.forget_uplink(id);
        }
        for config in wanted {
            self.follow_uplink(config, now);
        }
        self.follow_mtu();
        Ok(())
    }

    /// Adds an uplink, which is [down](Self::set_link), or changes one: [`Self::set_uplinks`] with
    /// all others as they are.
    ///
    /// # Errors
    ///
    /// [`FibFull`]; nothing has changed then.
    pub fn set_uplink(&mut self, config: UplinkConfig, now: Instant) -> Result<(), FibFull> {
        let mut wanted = self.configs_without(config.id);
        wanted.push(config);
        self.set_uplinks(wanted, now)
    }

    /// Removes an uplink with its addresses, what waits for it, and the next hops over it.
    pub fn remove_uplink(&mut self, id: UplinkId) {
        let left = self.configs_without(id);
        let links = left.iter().map(|config| (config, self.link(config.id)));
        let links: Vec<_> = links.collect();
        // Taking routes away cannot fill the FIB.
        let _ = self.place(links.into_iter());
        self.forget_uplink(id);
        self.follow_mtu();
    }

    /// The state of an uplink's link; one that is new is down.
    fn link(&self, id: UplinkId) -> LinkState {
        let known = self.uplinks.get(id);
        known.map_or(LinkState::Down, |uplink| uplink.link)
    }

    fn configs_without(&self, id: UplinkId) -> Vec<UplinkConfig> {
        let others = self.uplinks.iter().filter(|(other, _)| *other != id);
        others.map(|(_, uplink)| uplink.config.clone()).collect()
    }

    /// Says whether an uplink's link carries packets. While it is down, its connected routes and
    /// the next hops over it are out of the FIB, so that other next hops and worse routes take over;
    /// its addresses stay the NOS's. What is known of its neighbors is forgotten, and what waits
    /// for them dropped. When it comes up, its addresses are announced.
    ///
    /// # Errors
    ///
    /// [`FibFull`]; the connected routes are not all in the FIB then.
    pub fn set_link(
        &mut self,
        id: UplinkId,
        state: LinkState,
        now: Instant,
    ) -> Result<(), FibFull> {
        let Some(uplink) = self.uplinks.get_mut(id) else {
            return Ok(());
        };
        if core::mem::replace(&mut uplink.link, state) == state {
            return Ok(());
        }
        match state {
            LinkState::Up => uplink.neighbors.announce(),
            LinkState::Down => Self::drop_waiting(uplink, &mut self.pool, &mut self.ledger),
        }
        self.changes += 1;
        let uplinks = self.uplinks.values();
        let configs = uplinks.map(|uplink| (&uplink.config, uplink.link));
        let placed = self
            .routing
            .replace(Protocol::Connected, connected_routes(configs));
        let Self {
            routing, uplinks, ..
        } = self;
        routing.follow_link(id, |id| is_up(uplinks, id));
        self.poll_neighbors(id, now);
        placed
    }

    /// Routes that are configured and do not forward, and next hops of others that do not: those of
    /// uplinks that are down, first.
    #[must_use]
    pub fn inactive_routes(&self) -> Vec<InactiveRoute> {
        let mut inactive = Vec::new();
        let down = self.uplinks.values();
        for uplink in down.filter(|uplink| uplink.link == LinkState::Down) {
            let UplinkConfig { id, vrf, .. } = uplink.config;
            let networks = uplink.config.addresses.iter();
            let routes = networks.filter_map(|net| Route::connected(vrf, *net, id).next());
            let reason = InactiveReason::LinkDown(id);
            inactive.extend(routes.map(|route| InactiveRoute { route, reason }));
        }
        inactive.extend(self.routing.inactive(|id| match self.uplinks.get(id) {
            None => Some(InactiveReason::NoUplink(id)),
            Some(uplink) => {
                (uplink.link == LinkState::Down).then_some(InactiveReason::LinkDown(id))
            }
        }));
        inactive
    }

    /// Makes an uplink what it is to be; routes and ports follow its addresses already.
    fn follow_uplink(&mut self, config: UplinkConfig, now: Instant) {
        let id = config.id;
        let known = self.uplinks.get_mut(id);
        match known {
            Some(uplink) if uplink.config == config => return,
            Some(uplink) => {
                if uplink.config.mac == config.mac {
                    uplink.neighbors.set_addresses(&config.addresses);
                } else {
                    self.changes += uplink.neighbors.version();
                    Self::drop_waiting(uplink, &mut self.pool, &mut self.ledger);
                    uplink.neighbors = neighbors_of(&config, self.seed);
                }
                uplink.config = config;
                if uplink.link == LinkState::Up {
                    uplink.neighbors.announce();
                }
            }
            None => {
                let fresh = Uplink {
                    neighbors: neighbors_of(&config, self.seed),
                    config,
                    link: LinkState::Down,
                    capabilities: Capabilities::empty(),
                    counters: UplinkCounters::default(),
                };
                self.uplinks.insert(id, fresh);
            }
        }
        // Announcements, and packets to neighbors that are none any more.
        self.poll_neighbors(id, now);
    }

    /// Drops what waits for an uplink that is no more, and the next hops over it.
    fn forget_uplink(&mut self, id: UplinkId) {
        // What its device left of a burst is in the queue then.
        self.settle();
        let Some(mut uplink) = self.uplinks.remove(id) else {
            return;
        };
        self.changes += uplink.neighbors.version();
        Self::drop_waiting(&mut uplink, &mut self.pool, &mut self.ledger);
        for frame in self.transmit.drain(id.0) {
            self.discard_frame(frame, DropReason::DeviceGone);
        }
        let Self {
            routing, uplinks, ..
        } = self;
        routing.remove_uplink(id, |id| is_up(uplinks, id));
    }

    fn drop_waiting(uplink: &mut Uplink, pool: &mut FramePool, ledger: &mut Ledger) {
        for (packet, _) in uplink.neighbors.clear() {
            pool.free(packet.into_frame());
            ledger.drop(DropReason::DeviceGone);
        }
    }

    /// Brings port table, FIB and local stack in line with the addresses of uplinks, or changes
    /// nothing.
    fn place<'a>(
        &mut self,
        uplinks: impl Iterator<Item = (&'a UplinkConfig, LinkState)> + Clone,
    ) -> Result<(), FibFull> {
        self.changes += 1;
        let addresses = |config: &'a UplinkConfig| {
            let addresses = config.addresses.iter();
            addresses.map(|net| (config.vrf, net.addr()))
        };
        let ours: Vec<_> = uplinks
            .clone()
            .flat_map(|(config, _)| addresses(config))
            .collect();
        let placed = self.place_routes(&ours, connected_routes(uplinks));
        let (here, gone) = match &placed {
            Ok(()) => (ours, core::mem::take(&mut self.addresses)),
            Err(FibFull::Prefixes | FibFull::Actions) => {
                let before = core::mem::take(&mut self.addresses);
                let links = self.uplinks.values();
                let links = links.map(|uplink| (&uplink.config, uplink.link));
                let connected = connected_routes(links);
                // There was room for it before.
                let _ = self.place_routes(&before, connected);
                (before, ours)
            }
        };
        for (vrf, address) in gone {
            if !here.contains(&(vrf, address)) {
                self.ports.remove_address(vrf, address);
            }
        }
        #[cfg(feature = "stack")]
        self.local
            .set_addresses(here.iter().map(|&(_, address)| address));
        self.own_addresses = OwnAddresses::by_vrf(&here, &self.ports);
        self.addresses = here;
        placed
    }

    fn place_routes(
        &mut self,
        ours: &[(VrfId, IpAddr)],
        connected: Vec<Route>,
    ) -> Result<(), FibFull> {
        let ports = &mut self.ports;
        let local = ours.iter().map(|&(vrf, address)| Route {
            vrf,
            prefix: address.into(),
            source: Source::Local,
            action: Action::Local(ports.add_address(vrf, address)),
        });
        let local = local.collect();
        self.routing.replace(Protocol::Local, local)?;
        self.routing.replace(Protocol::Connected, connected)
    }

    /// Tells the local stack how long packets may be.
    fn follow_mtu(&mut self) {
        #[cfg(feature = "stack")]
        {
            let least = self.uplinks.values().map(|uplink| uplink.config.mtu).min();
            self.local.set_mtu(least.unwrap_or(usize::MAX));
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arp::Arp;
    use crate::channel::{Exchange, pair};
    use crate::fib::{NextHop, NextHops};
    use crate::ident::{AttachmentId, MacAddr};
    use crate::ports::{Claim, ClaimKind, PortOwner, PortRange, Registration, Transport};
    use crate::shim::ShimConfig;
    use crate::test_packets::{ip, pool};

    const NOW: Instant = Instant::from_millis(1000);
    const VRF: VrfId = VrfId::DEFAULT;
    const OWNER: AttachmentId = AttachmentId(0);

    fn config(id: u32, addresses: &[&str]) -> UplinkConfig {
        UplinkConfig {
            id: UplinkId(id),
            name: format!("up{id}").into(),
            vrf: VRF,
            mac: MacAddr([2, 0, 0, 0, 0, id as u8]),
            addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
            mtu: 1500,
        }
    }

    fn shim(uplinks: &[UplinkConfig]) -> Shim {
        let (_, end) = pair(1);
        let mut shim = Shim::new(end, pool(), ShimConfig { seed: 1 });
        shim.set_uplinks(uplinks.to_vec(), NOW).unwrap();
        for uplink in uplinks {
            shim.set_link(uplink.id, LinkState::Up, NOW).unwrap();
        }
        announced(&mut shim);
        shim
    }

    /// IPv4 addresses that the NOS announces, and on which uplinks.
    fn announced(shim: &mut Shim) -> Vec<(UplinkId, IpAddr)> {
        let mut announced = Vec::new();
        while let Some((uplink, burst)) = shim.poll_transmit() {
            let messages = burst
                .iter()
                .filter_map(|frame| Arp::parse(frame.bytes()).ok());
            let own = messages.filter(|arp| arp.sender_ip == arp.target_ip);
            announced.extend(own.map(|arp| (uplink, arp.sender_ip.into())));
            burst.clear();
        }
        announced.dedup();
        announced
    }

    fn register(shim: &mut Shim, address: &str) {
        let registration = Registration {
            attachment: OWNER,
            name: "c".into(),
            vrf: VRF,
            addresses: vec![ip(address)],
            claims: vec![Claim {
                transport: Transport::Tcp,
                range: PortRange::new(80, 80).unwrap(),
                kind: ClaimKind::Listen,
            }],
            router: MacAddr([2; 6]).link_local(),
            mtu: 1500,
        };
        let exchange = Exchange {
            register: vec![registration],
            ..Exchange::default()
        };
        shim.exchange(exchange).unwrap();
    }

    fn action(shim: &Shim, destination: &str) -> Action {
        let found = shim.fib().lookup(VRF, ip(destination));
        shim.fib().adjacency(found).action().clone()
    }

    fn route(prefix: &str, metric: u16, hops: &[(u32, &str)]) -> Route {
        let hops = hops.iter().map(|&(uplink, gateway)| NextHop {
            gateway: ip(gateway),
            uplink: UplinkId(uplink),
        });
        Route {
            vrf: VRF,
            prefix: prefix.parse().unwrap(),
            source: Source::Static { metric },
            action: Action::Via(NextHops::new(hops).unwrap()),
        }
    }

    #[test]
    fn addresses_move_between_uplinks_with_the_ports_on_them() {
        let (one, two) = ("203.0.113.1/24", "198.51.100.1/24");
        let third = config(2, &["192.0.2.1/24"]);
        let mut shim = shim(&[config(0, &[one]), config(1, &[two]), third.clone()]);
        register(&mut shim, "203.0.113.1");
        let address = shim.ports().address(VRF, ip("203.0.113.1"));
        let swapped = vec![config(0, &[two]), config(1, &[one]), third];
        shim.set_uplinks(swapped, NOW).unwrap();
        assert_eq!(shim.ports().address(VRF, ip("203.0.113.1")), address);
        let owner = shim.ports().owner(address.unwrap(), Transport::Tcp, 80);
        let (id, kind) = (OWNER, ClaimKind::Listen);
        assert_eq!(owner, PortOwner::Attachment { id, kind });
        assert_eq!(action(&shim, "203.0.113.9"), Action::Connected(UplinkId(1)));
        let expected = [
            (UplinkId(0), ip("198.51.100.1")),
            (UplinkId(1), ip("203.0.113.1")),
        ];
        assert_eq!(announced(&mut shim), expected, "the third did not change");
    }

    #[test]
    fn what_is_not_wanted_any_more_goes_and_the_rest_is_not_touched() {
        let kept = config(0, &["203.0.113.1/24"]);
        let mut shim = shim(&[kept.clone(), config(1, &["198.51.100.1/24"])]);
        let hops = [(0, "203.0.113.9"), (1, "198.51.100.9")];
        let routes = vec![
            route("0.0.0.0/0", 0, &hops),
            route("192.0.2.0/24", 0, &hops[1..]),
        ];
        shim.set_routes(routes).unwrap();
        let fresh = config(2, &["192.0.2.1/24"]);
        shim.set_uplinks(vec![kept, fresh], NOW).unwrap();
        assert_eq!(announced(&mut shim), [], "one is as before, the other down");
        let left = route("0.0.0.0/0", 0, &hops[..1]).action;
        assert_eq!(action(&shim, "198.51.100.1"), left);
        assert_eq!(action(&shim, "192.0.2.9"), left);
        let links: Vec<_> = shim.uplinks(NOW).iter().map(|it| it.link).collect();
        assert_eq!(links, [LinkState::Up, LinkState::Down]);
        shim.set_link(UplinkId(2), LinkState::Up, NOW).unwrap();
        assert_eq!(announced(&mut shim), [(UplinkId(2), ip("192.0.2.1"))]);
        assert_eq!(action(&shim, "192.0.2.9"), Action::Connected(UplinkId(2)));
    }

    #[test]
    fn routes_of_an_uplink_that_is_away_wait_for_it() {
        let mut shim = shim(&[
            config(0, &["203.0.113.1/24"]),
            config(1, &["198.51.100.1/24"]),
        ]);
        let hops = [(0, "203.0.113.9"), (1, "198.51.100.9")];
        shim.set_routes(vec![route("0.0.0.0/0", 0, &hops)]).unwrap();
        assert_eq!(shim.inactive_routes(), []);
        let away = UplinkId(0);
        shim.set_link(away, LinkState::Down, NOW).unwrap();
        let other = route("0.0.0.0/0", 0, &hops[1..]).action;
        assert_eq!(action(&shim, "192.0.2.1"), other);
        assert_eq!(action(&shim, "203.0.113.9"), other, "not connected");
        let own = shim.ports().address(VRF, ip("203.0.113.1")).unwrap();
        assert_eq!(action(&shim, "203.0.113.1"), Action::Local(own));
        let inactive = shim.inactive_routes();
        let reason = InactiveReason::LinkDown(away);
        assert!(inactive.iter().all(|route| route.reason == reason));
        let prefixes = inactive.iter().map(|it| it.route.prefix.to_string());
        let prefixes: Vec<_> = prefixes.collect();
        assert_eq!(prefixes, ["203.0.113.0/24", "0.0.0.0/0"]);
        assert_eq!(inactive[1].route, route("0.0.0.0/0", 0, &hops[..1]));
        shim.set_link(away, LinkState::Up, NOW).unwrap();
        let both = route("0.0.0.0/0", 0, &hops).action;
        assert_eq!(action(&shim, "192.0.2.1"), both);
        assert_eq!(action(&shim, "203.0.113.9"), Action::Connected(away));
        assert_eq!(announced(&mut shim), [(away, ip("203.0.113.1"))]);
    }
}
