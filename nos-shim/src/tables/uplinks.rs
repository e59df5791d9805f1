//! Uplinks, and what follows from their addresses and links: connected routes and the NOS's own
//! addresses.

use core::net::{IpAddr, Ipv6Addr};
use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{OwnAddresses, Tables};
use crate::fib::{Action, FibFull, InactiveReason, InactiveRoute, Protocol, Route, Source};
use crate::id_table::IdTable;
use crate::ident::{LocalAddressId, UplinkId, VrfId};
use crate::multicast::{igmp, solicited_node_groups};
use crate::ndp::{ALL_NODES, solicited_node};
use crate::offload::Capabilities;
use crate::ports::PortTable;
use crate::uplink::{JoinRefused, LinkState, UplinkConfig};

/// An uplink, as forwarding has to know it.
pub(crate) struct Uplink {
    pub(crate) config: UplinkConfig,
    pub(crate) link: LinkState,
    /// What its device takes.
    pub(crate) capabilities: Capabilities,
    /// An address of another uplink of its VRF for each family that it has none of (RFC 1812 §2.2.7:
    /// unnumbered), as a network of its own.
    borrowed: Vec<IpNet>,
    /// Groups that the NOS is in besides those of its addresses.
    joined: Vec<IpAddr>,
    /// Addresses that attachments have for their own, in networks of this uplink: the NOS stands for them
    /// on its link.
    pub(crate) attached: BTreeSet<IpAddr>,
    /// The groups of those, on which they are asked for (RFC 4291 §2.7.1).
    attached_groups: BTreeSet<Ipv6Addr>,
    /// The index of its link-local address, if an attachment shares that.
    pub(crate) shared: Option<LocalAddressId>,
}

impl Uplink {
    /// The address that speaks for the NOS on this link: the first of the family, or a borrowed one.
    pub(crate) fn address(&self, ipv6: bool) -> Option<IpAddr> {
        let own = self.config.addresses.iter().chain(&self.borrowed);
        let mut addresses = own.map(IpNet::addr);
        addresses.find(|address| address.is_ipv6() == ipv6)
    }

    /// The addresses by which stations on this link know the NOS, besides the link-local one. IPv6
    /// neighbors are asked for from that; IPv4 has none.
    pub(crate) fn networks(&self) -> Vec<IpNet> {
        let borrowed = self.borrowed.iter().filter(|net| net.addr().is_ipv4());
        self.config
            .addresses
            .iter()
            .chain(borrowed)
            .copied()
            .collect()
    }

    /// The address by which a host on this link knows the NOS as its first hop.
    pub(crate) fn address_towards(&self, host: IpAddr) -> Option<IpAddr> {
        let mut networks = self.config.addresses.iter();
        match host {
            IpAddr::V4(_) => networks.find(|net| net.contains(&host)).map(IpNet::addr),
            IpAddr::V6(_) => Some(self.link_local().into()),
        }
    }

    /// The NOS's IPv6 link-local address on this link.
    pub(crate) fn link_local(&self) -> Ipv6Addr {
        self.config.mac.link_local()
    }

    /// The groups that the NOS is in on this link, besides those in which everybody is.
    pub(crate) fn groups(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let addresses = self.config.addresses.iter().map(IpNet::addr);
        let of_addresses = solicited_node_groups(self.config.mac, addresses);
        let of_attached = self.attached_groups.iter().copied();
        of_addresses
            .chain(of_attached)
            .map(IpAddr::V6)
            .chain(self.joined.iter().copied())
    }

    /// Whether the NOS takes what is sent to a group on this link.
    pub(crate) fn is_in_group(&self, group: IpAddr) -> bool {
        let everybody = match group {
            IpAddr::V4(group) => group == igmp::ALL_SYSTEMS,
            IpAddr::V6(group) => group == ALL_NODES,
        };
        let of_attached = matches!(group, IpAddr::V6(it) if self.attached_groups.contains(&it));
        everybody || of_attached || self.groups().any(|joined| joined == group)
    }

    /// Makes `attached` all addresses of attachments in networks of this uplink. Returns whether that is
    /// news.
    fn set_attached(&mut self, attached: BTreeSet<IpAddr>) -> bool {
        if self.attached == attached {
            return false;
        }
        let groups = attached.iter().filter_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(solicited_node(*address)),
        });
        self.attached_groups = groups.collect();
        self.attached = attached;
        true
    }
}

/// What a change of uplinks means for what is kept of them elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UplinkChange {
    /// It is no more.
    Gone(UplinkId),
    /// It is new.
    New(UplinkId),
    /// It has another MAC address, and perhaps other addresses.
    Mac(UplinkId),
    /// It has the same MAC address, and perhaps other addresses.
    Addresses(UplinkId),
    /// It is in another VRF, and perhaps has another MAC address and other addresses.
    Vrf(UplinkId),
}

/// Whether packets of a VRF can leave by an uplink: by none that is in another.
pub(super) fn is_up(uplinks: &IdTable<UplinkId, Uplink>, vrf: VrfId, id: UplinkId) -> bool {
    let uplink = uplinks.get(id);
    uplink.is_some_and(|uplink| uplink.link == LinkState::Up && uplink.config.vrf == vrf)
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

/// The addresses that attachments have for their own and stations on an uplink's link look for there:
/// those in its networks.
fn attached_on(uplink: &UplinkConfig, ports: &PortTable) -> BTreeSet<IpAddr> {
    let on_link = |address: &IpAddr| uplink.addresses.iter().any(|net| net.contains(address));
    ports.routed_in(uplink.vrf).filter(on_link).collect()
}

/// What an uplink borrows of others: of each family that it lacks the first address.
fn borrowed(config: &UplinkConfig, all: &[UplinkConfig]) -> Vec<IpNet> {
    let same_vrf = all.iter().filter(|other| other.vrf == config.vrf);
    let first = |ipv6: bool| {
        let of_family = |net: &&IpNet| net.addr().is_ipv6() == ipv6;
        let lacks = !config.addresses.iter().any(|net| of_family(&net));
        let mut others = same_vrf.clone().flat_map(|other| &other.addresses);
        others
            .find(of_family)
            .filter(|_| lacks)
            .map(|net| net.addr().into())
    };
    [false, true].into_iter().filter_map(first).collect()
}

/// The addresses that the NOS has by its uplinks.
fn addresses_of<'a>(configs: impl Iterator<Item = &'a UplinkConfig>) -> Vec<(VrfId, IpAddr)> {
    let addresses = configs.flat_map(|config| {
        let addresses = config.addresses.iter();
        addresses.map(|net| (config.vrf, net.addr()))
    });
    addresses.collect()
}

impl Tables {
    /// Makes `wanted` all uplinks there are, at once, and returns what has changed. A new one is
    /// down.
    ///
    /// # Errors
    ///
    /// [`FibFull`]; nothing has changed then.
    pub(crate) fn set_uplinks(
        &mut self,
        wanted: Vec<UplinkConfig>,
    ) -> Result<Vec<UplinkChange>, FibFull> {
        self.version += 1;
        self.place(&wanted)?;
        let known = self.uplinks.iter().map(|(id, _)| id);
        let gone = known.filter(|&id| wanted.iter().all(|config| config.id != id));
        let gone: Vec<UplinkId> = gone.collect();
        for &id in &gone {
            self.uplinks.remove(id);
            self.ports.remove_link(id);
            self.routing.remove_uplink(id);
        }
        let mut changes: Vec<_> = gone.into_iter().map(UplinkChange::Gone).collect();
        let borrowed: Vec<_> = wanted.iter().map(|it| borrowed(it, &wanted)).collect();
        let wanted = wanted.into_iter().zip(borrowed);
        changes.extend(wanted.filter_map(|(it, borrowed)| self.set_config(it, borrowed)));
        self.follow_attached();
        self.follow_shared_links();
        let moved = |change: &UplinkChange| matches!(change, UplinkChange::Vrf(_));
        if changes.iter().any(moved) {
            // No route of the VRF that it leaves may use it any more.
            self.routing.follow_links();
        }
        self.revise_routes();
        Ok(changes)
    }

    fn set_config(&mut self, config: UplinkConfig, borrowed: Vec<IpNet>) -> Option<UplinkChange> {
        let id = config.id;
        if VrfId::of_link(id).is_some() {
            self.ports.add_link(id);
        }
        let Some(uplink) = self.uplinks.get_mut(id) else {
            let fresh = Uplink {
                config,
                link: LinkState::Down,
                capabilities: Capabilities::empty(),
                borrowed,
                joined: Vec::new(),
                attached: BTreeSet::new(),
                attached_groups: BTreeSet::new(),
                shared: None,
            };
            self.uplinks.insert(id, fresh);
            return Some(UplinkChange::New(id));
        };
        if uplink.config == config && uplink.borrowed == borrowed {
            return None;
        }
        uplink.borrowed = borrowed;
        let before = core::mem::replace(&mut uplink.config, config);
        Some(if before.vrf != uplink.config.vrf {
            UplinkChange::Vrf(id)
        } else if before.mac == uplink.config.mac {
            UplinkChange::Addresses(id)
        } else {
            UplinkChange::Mac(id)
        })
    }

    /// Makes `wanted` all groups that the NOS has joined on an uplink, besides those of its addresses.
    ///
    /// # Errors
    ///
    /// [`JoinRefused`]; nothing has changed then.
    pub(crate) fn set_groups(
        &mut self,
        id: UplinkId,
        wanted: Vec<IpAddr>,
    ) -> Result<(), JoinRefused> {
        if let Some(&other) = wanted.iter().find(|group| !group.is_multicast()) {
            return Err(JoinRefused::NotAGroup(other));
        }
        let uplink = self.uplinks.get_mut(id);
        uplink.ok_or(JoinRefused::UnknownUplink(id))?.joined = wanted;
        Ok(())
    }

    /// Has the NOS join a group on an uplink, as long as that exists, or until it leaves it. Joining
    /// twice is joining once.
    ///
    /// # Errors
    ///
    /// [`JoinRefused`]; nothing has changed then.
    pub(crate) fn join_group(&mut self, id: UplinkId, group: IpAddr) -> Result<(), JoinRefused> {
        if !group.is_multicast() {
            return Err(JoinRefused::NotAGroup(group));
        }
        let uplink = self.uplinks.get_mut(id);
        let joined = &mut uplink.ok_or(JoinRefused::UnknownUplink(id))?.joined;
        if !joined.contains(&group) {
            joined.push(group);
        }
        Ok(())
    }

    /// Has the NOS leave a group that it has joined.
    pub(crate) fn leave_group(&mut self, id: UplinkId, group: IpAddr) {
        if let Some(uplink) = self.uplinks.get_mut(id) {
            uplink.joined.retain(|&joined| joined != group);
        }
    }

    /// Notes which addresses of attachments are in networks of which uplink. Returns those uplinks where
    /// that has changed.
    pub(crate) fn follow_attached(&mut self) -> Vec<UplinkId> {
        let Self { uplinks, ports, .. } = self;
        let changed = uplinks.iter_mut().filter_map(|(id, uplink)| {
            let attached = attached_on(&uplink.config, ports);
            uplink.set_attached(attached).then_some(id)
        });
        changed.collect()
    }

    /// The configuration of all uplinks but one.
    pub(crate) fn uplinks_without(&self, id: UplinkId) -> Vec<UplinkConfig> {
        let others = self.uplinks.iter().filter(|(other, _)| *other != id);
        others.map(|(_, uplink)| uplink.config.clone()).collect()
    }

    /// Says whether an uplink's link carries packets. Returns whether that is news.
    ///
    /// # Errors
    ///
    /// [`FibFull`]; the connected routes are not all in the FIB then.
    pub(crate) fn set_link(&mut self, id: UplinkId, state: LinkState) -> Result<bool, FibFull> {
        let Some(uplink) = self.uplinks.get_mut(id) else {
            return Ok(false);
        };
        if core::mem::replace(&mut uplink.link, state) == state {
            return Ok(false);
        }
        let connected = self.connected();
        let placed = self.routing.replace(Protocol::Connected, connected);
        self.routing.follow_links();
        self.revise_routes();
        placed.map(|()| true)
    }

    /// Routes that are configured and do not forward, and next hops of others that do not: those of
    /// uplinks that are down, first.
    pub(crate) fn inactive_routes(&self) -> Vec<InactiveRoute> {
        let mut inactive = Vec::new();
        let down = self.uplinks.values();
        for uplink in down.filter(|uplink| uplink.link == LinkState::Down) {
            let UplinkConfig { id, vrf, .. } = uplink.config;
            let networks = uplink.config.addresses.iter();
            let routes = networks.filter_map(|net| Route::connected(vrf, *net, id).next());
            let reason = InactiveReason::LinkDown(id);
            inactive.extend(routes.map(|route| InactiveRoute { route, reason }));
        }
        inactive.extend(self.routing.inactive(|vrf, id| match self.uplinks.get(id) {
            None => Some(InactiveReason::NoUplink(id)),
            Some(uplink) if uplink.config.vrf != vrf => Some(InactiveReason::OtherVrf(id)),
            Some(uplink) => {
                (uplink.link == LinkState::Down).then_some(InactiveReason::LinkDown(id))
            }
        }));
        inactive
    }

    /// The connected routes of the uplinks as they are.
    fn connected(&self) -> Vec<Route> {
        let uplinks = self.uplinks.values();
        connected_routes(uplinks.map(|uplink| (&uplink.config, uplink.link)))
    }

    /// Brings port table and FIB in line with the addresses of uplinks that are to be, or changes
    /// nothing.
    fn place(&mut self, wanted: &[UplinkConfig]) -> Result<(), FibFull> {
        let link = |config: &UplinkConfig| {
            let known = self.uplinks.get(config.id);
            known.map_or(LinkState::Down, |uplink| uplink.link)
        };
        let connected = connected_routes(wanted.iter().map(|config| (config, link(config))));
        let before = core::mem::take(&mut self.addresses);
        let after = addresses_of(wanted.iter());
        let placed = self.place_routes(&after, connected);
        let (here, gone) = match placed {
            Ok(()) => (after, before),
            Err(_) => {
                let connected = self.connected();
                // There was room for it before.
                let _ = self.place_routes(&before, connected);
                (before, after)
            }
        };
        for (vrf, address) in gone {
            if !here.contains(&(vrf, address)) {
                self.ports.remove_address(vrf, address);
            }
        }
        self.own_addresses = match &placed {
            Ok(()) => OwnAddresses::by_vrf(wanted.iter(), &self.ports),
            Err(_) => {
                let as_before = self.uplinks.values().map(|uplink| &uplink.config);
                OwnAddresses::by_vrf(as_before, &self.ports)
            }
        };
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
}
