//! What the NOS is configured to be: routes, addresses, ports, uplinks, attachments.
//!
//! Forwarding only reads it, so several workers could share one. It changes as a whole, between
//! bursts, by the methods here; static routes change some at a time. What workers keep of it is told
//! from what holds by [`Tables::version`].

mod own;
mod policy;
mod uplinks;

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};

use crate::channel::Exchange;
use crate::fib::{Action, Adjacency, FibFull, FlowHasher, NextHop, RouteChange, Routing};
use crate::flows::{FlowKey, NewFlow, Opener};
use crate::id_table::IdTable;
use crate::ident::{AttachmentId, LocalAddressId, UplinkId, VrfId};
use crate::offload::Capabilities;
use crate::origin::Origin;
use crate::ports::{
    AddressMode, ClaimKind, ExchangeRefused, Owner, Policy, PortOwner, PortTable, Registration,
    RegistrationRefused, ServiceRegistration, Transport,
};
use crate::services::{Service, ServiceConfig};
use crate::uplink::Upstream;

use own::OwnAddresses;
pub(crate) use policy::PolicyIndex;
pub(crate) use uplinks::{Uplink, UplinkChange};

/// The least MTU of an IPv6 link (RFC 8200 §5).
const LEAST_MTU: usize = 1280;

/// Routes that are revised at once, between bursts; see [`Routing::revise`].
const REVISED: usize = 128;

/// See the [module](self).
pub(crate) struct Tables {
    pub(crate) routing: Routing,
    pub(crate) flow_hasher: FlowHasher,
    /// Where the NOS is in another process.
    pub(crate) upstream: Option<Upstream>,
    pub(crate) ports: PortTable,
    pub(crate) uplinks: IdTable<UplinkId, Uplink>,
    pub(crate) attachments: IdTable<AttachmentId, Registration>,
    /// What the NOS offers, by VRF: of those in which it is not what is offered without saying.
    services: BTreeMap<VrfId, ServiceConfig>,
    /// Who may open flows to services, by VRF: of those in which not everybody may.
    service_policies: BTreeMap<VrfId, PolicyIndex>,
    /// Of the attachments that have one.
    pub(crate) policies: IdTable<AttachmentId, PolicyIndex>,
    /// Whether any attachment has addresses for its own.
    pub(crate) routes: bool,
    /// Whether any attachment has a policy.
    pub(crate) polices: bool,
    /// Whether any may use ports that nobody owns.
    pub(crate) learns: bool,
    /// Counts changes of routes and uplinks.
    pub(crate) version: u64,
    /// All addresses of the NOS.
    addresses: Vec<(VrfId, IpAddr)>,
    /// The same, by number of the VRF.
    own_addresses: Vec<OwnAddresses>,
    /// Octets of the longest IP packet that every attachment takes.
    attachment_mtu: usize,
}

impl Tables {
    pub(crate) fn new(seed: u64, upstream: Option<Upstream>) -> Self {
        Self {
            routing: Routing::default(),
            flow_hasher: FlowHasher::new(seed),
            upstream,
            ports: PortTable::new(),
            uplinks: IdTable::new(),
            attachments: IdTable::new(),
            services: BTreeMap::new(),
            service_policies: BTreeMap::new(),
            policies: IdTable::new(),
            routes: false,
            polices: false,
            learns: false,
            version: 0,
            addresses: Vec::new(),
            own_addresses: Vec::new(),
            attachment_mtu: usize::MAX,
        }
    }

    /// The NOS's own address that this is.
    #[inline]
    pub(crate) fn own_address(&self, vrf: VrfId, address: IpAddr) -> Option<LocalAddressId> {
        self.own_addresses.get(usize::from(vrf.0))?.find(address)
    }

    /// The NOS's own address that this is, in a VRF or on a [link](VrfId::of_link).
    pub(crate) fn address_in(&self, vrf: VrfId, address: IpAddr) -> Option<LocalAddressId> {
        let Some(index) = vrf.link_index() else {
            return self.own_address(vrf, address);
        };
        let (id, uplink) = self.uplinks.iter_from(index).next()?;
        let own = id.index() == index && address == IpAddr::V6(uplink.link_local());
        uplink.shared.filter(|_| own)
    }

    /// Notes whose link-local addresses are shared: with an attachment in the uplink's VRF.
    fn follow_shared_links(&mut self) {
        let sharing = self.attachments.values();
        let sharing = sharing.filter_map(|it| Some((it.link_local?, it.vrf)));
        let sharing: BTreeSet<(UplinkId, VrfId)> = sharing.collect();
        for (id, uplink) in self.uplinks.iter_mut() {
            let shared = sharing.contains(&(id, uplink.config.vrf));
            uplink.shared = self.ports.link(id).filter(|_| shared);
        }
    }

    /// All addresses of the NOS in a VRF.
    pub(crate) fn addresses(&self, vrf: VrfId) -> impl Iterator<Item = IpAddr> + '_ {
        let own = self.own_addresses.get(usize::from(vrf.0));
        own.into_iter().flat_map(OwnAddresses::iter)
    }

    /// The VRFs that something is in, in order; the default one always is.
    pub(crate) fn vrfs(&self) -> BTreeSet<VrfId> {
        let uplinks = self.uplinks.values().map(|uplink| uplink.config.vrf);
        let attachments = self.attachments.values().map(|attachment| attachment.vrf);
        let services = self.services.keys().copied();
        let all = uplinks.chain(attachments).chain(services);
        all.chain([VrfId::DEFAULT]).collect()
    }

    /// What the NOS offers in a VRF.
    pub(crate) fn services(&self, vrf: VrfId) -> &[Service] {
        let config = self.services.get(&vrf);
        config.map_or(&[], |config| &config.services)
    }

    /// Whether echo requests are answered in a VRF.
    #[inline]
    pub(crate) fn answers_pings(&self, vrf: VrfId) -> bool {
        self.services.get(&vrf).is_none_or(|config| config.ping)
    }

    /// Whether `remote` may open flows to a service's port.
    pub(crate) fn may_reach_service(
        &self,
        vrf: VrfId,
        transport: Transport,
        port: u16,
        remote: IpAddr,
    ) -> bool {
        let policy = self.service_policies.get(&vrf);
        policy.is_none_or(|policy| policy.may_open_from(transport, port, remote))
    }

    fn note_services(&mut self, vrf: VrfId, config: &ServiceConfig) {
        self.service_policies.remove(&vrf);
        if !config.from.is_empty() {
            let policy = Policy {
                from: config.from.clone(),
                ..Policy::default()
            };
            self.service_policies.insert(vrf, PolicyIndex::new(&policy));
        }
        if *config == ServiceConfig::default() {
            self.services.remove(&vrf);
        } else {
            self.services.insert(vrf, config.clone());
        }
    }

    /// Octets of the longest IP packet that every attachment takes.
    #[inline]
    pub(crate) fn attachment_mtu(&self) -> usize {
        self.attachment_mtu
    }

    /// Octets of the longest IP packet that surely reaches the host that a packet came from, as far
    /// as the NOS's own links go.
    pub(crate) fn mtu_back_to(&self, origin: Origin, vrf: VrfId) -> usize {
        match origin {
            Origin::Attachment(id) => self.attachments.get(id).map(|it| it.mtu.into()),
            Origin::Uplink(_) => self
                .own_addresses
                .get(usize::from(vrf.0))
                .and_then(|own| own.mtu),
            Origin::Nos => None,
        }
        .unwrap_or(LEAST_MTU)
    }

    /// Changes static routes, one after the other.
    ///
    /// # Errors
    ///
    /// [`FibFull`]; then those before the one without room have changed, and no other.
    pub(crate) fn change_routes(&mut self, changes: Vec<RouteChange>) -> Result<(), FibFull> {
        self.version += 1;
        let Self {
            routing, uplinks, ..
        } = self;
        let mut changes = changes.into_iter();
        changes.try_for_each(|change| {
            routing.change(change, |vrf, id| uplinks::is_up(uplinks, vrf, id))
        })
    }

    /// Brings some of the static routes in line with the uplinks, if any has changed.
    pub(crate) fn revise_routes(&mut self) {
        self.version += 1;
        let Self {
            routing, uplinks, ..
        } = self;
        routing.revise(REVISED, |vrf, id| uplinks::is_up(uplinks, vrf, id));
    }

    /// The next hop of a route that is being [revised](Self::revise_routes): none over an uplink
    /// that is away, unless there is no other.
    #[cold]
    pub(crate) fn hop_that_is_up(
        &self,
        vrf: VrfId,
        hops: &[NextHop],
        flow_hash: u32,
    ) -> Option<NextHop> {
        let up = hops.iter().filter(|hop| self.is_up(vrf, hop.uplink));
        let count = u32::try_from(up.clone().count()).ok()?;
        let chosen = flow_hash.checked_rem(count)?;
        up.copied().nth(usize::try_from(chosen).ok()?)
    }

    /// What takes the place of a route while routes are being revised: another, if the uplinks of
    /// this one are away.
    #[cold]
    pub(crate) fn detour<'a>(
        &'a self,
        entry: &'a Adjacency,
        vrf: VrfId,
        destination: IpAddr,
    ) -> &'a Adjacency {
        let Action::Via(hops) = entry.action() else {
            return entry;
        };
        let mut hops = hops.as_slice().iter();
        if hops.any(|hop| self.is_up(vrf, hop.uplink)) {
            return entry;
        }
        let is_up = |vrf, id| self.is_up(vrf, id);
        let found = self.routing.detour(vrf, destination, is_up);
        self.routing.fib().adjacency(found)
    }

    fn is_up(&self, vrf: VrfId, uplink: UplinkId) -> bool {
        uplinks::is_up(&self.uplinks, vrf, uplink)
    }

    /// Sets what an uplink's device takes, and returns what it took before. `None` for an uplink
    /// that there is not.
    pub(crate) fn set_capabilities(
        &mut self,
        id: UplinkId,
        capabilities: Capabilities,
    ) -> Option<Capabilities> {
        let uplink = self.uplinks.get_mut(id)?;
        self.version += 1;
        Some(core::mem::replace(&mut uplink.capabilities, capabilities))
    }

    /// Changes who owns which addresses and ports, all at once or not at all. Returns the
    /// attachments whose flows end: those that go, and those that have other addresses now.
    ///
    /// # Errors
    ///
    /// [`ExchangeRefused`]; nothing has changed then.
    pub(crate) fn exchange(
        &mut self,
        exchange: &Exchange,
    ) -> Result<Vec<AttachmentId>, ExchangeRefused> {
        let Exchange {
            withdraw,
            register,
            services,
        } = exchange;
        let service = services
            .as_ref()
            .map(|(vrf, config)| service_registration(*vrf, config));
        self.ports.exchange(withdraw, register, service.as_ref())?;
        self.attach(exchange)?;
        if let Some((vrf, services)) = services {
            self.note_services(*vrf, services);
        }
        let mut moved = withdraw.clone();
        for &id in withdraw {
            self.attachments.remove(id);
            self.policies.remove(id);
        }
        for registration in register {
            let id = registration.attachment;
            self.policies.remove(id);
            if !registration.policy.is_none() {
                self.policies
                    .insert(id, PolicyIndex::new(&registration.policy));
            }
            let old = self.attachments.insert(id, registration.clone());
            moved.extend(
                old.filter(|(_, old)| !same_place(old, registration))
                    .map(|(id, _)| id),
            );
        }
        self.follow_shared_links();
        let mtus = self.attachments.values().map(|it| usize::from(it.mtu));
        self.attachment_mtu = mtus.min().unwrap_or(usize::MAX);
        let mut modes = self.attachments.values().map(|it| it.mode);
        self.routes = modes.any(|mode| mode == AddressMode::Routed);
        let policies = || self.policies.values();
        (self.polices, self.learns) = (policies().next().is_some(), policies().any(|it| it.learns));
        Ok(moved)
    }

    /// Brings the routes to attachments' own addresses in line with an exchange that the port table has
    /// granted. Where the FIB has no room for them, the exchange is taken back.
    fn attach(&mut self, exchange: &Exchange) -> Result<(), ExchangeRefused> {
        let Exchange {
            withdraw,
            register,
            services,
        } = exchange;
        let leaving = withdraw
            .iter()
            .chain(register.iter().map(|it| &it.attachment));
        let before: Vec<Registration> = leaving
            .filter_map(|&id| self.attachments.get(id).cloned())
            .collect();
        let own = before.iter().chain(register);
        let own = own.filter(|it| it.mode == AddressMode::Routed);
        let own = own.flat_map(|it| it.addresses.iter().map(|&address| (it.vrf, address)));
        let own: BTreeSet<(VrfId, IpAddr)> = own.collect();
        if own.is_empty() {
            return Ok(());
        }
        self.version += 1;
        let Err(refused) = self.route_attached(&own, register) else {
            return Ok(());
        };
        let granted: Vec<_> = register.iter().map(|it| it.attachment).collect();
        let service = services.as_ref().map(|(vrf, _)| {
            let config = self.services.get(vrf).cloned().unwrap_or_default();
            service_registration(*vrf, &config)
        });
        // It was granted before.
        let _ = self.ports.exchange(&granted, &before, service.as_ref());
        let _ = self.route_attached(&own, &[]);
        Err(refused)
    }

    /// Has each of these addresses lead to the attachment that the port table says, if any.
    fn route_attached(
        &mut self,
        addresses: &BTreeSet<(VrfId, IpAddr)>,
        register: &[Registration],
    ) -> Result<(), ExchangeRefused> {
        let Self { routing, ports, .. } = self;
        for &(vrf, address) in addresses {
            let to = ports.routed(vrf, address);
            if let Err(full) = routing.attach(vrf, address, to) {
                let mut wishes = register.iter();
                let wish = wishes.find(|it| it.vrf == vrf && it.addresses.contains(&address));
                return Err(ExchangeRefused {
                    owner: wish.map_or(Owner::Nos, |it| Owner::Attachment(it.attachment)),
                    reason: full.into(),
                });
            }
        }
        Ok(())
    }

    /// Whether an attachment has its addresses for its own.
    pub(crate) fn is_routed(&self, id: AttachmentId) -> bool {
        let attachment = self.attachments.get(id);
        attachment.is_some_and(|it| it.mode == AddressMode::Routed)
    }

    /// Whether a packet from there passes through the NOS as a router, with one hop less to live: from
    /// the network, and from an attachment with addresses of its own. Others are the NOS's own host.
    #[inline]
    pub(crate) fn is_transit(&self, origin: Origin) -> bool {
        match origin {
            Origin::Uplink(_) => true,
            Origin::Attachment(id) => self.routes && self.is_routed(id),
            Origin::Nos => false,
        }
    }

    /// Whether two attachments are in different networks; as [`PortTable::keeps_apart`], faster.
    pub(crate) fn keeps_apart(&self, one: AttachmentId, other: AttachmentId) -> bool {
        let network = |id| self.attachments.get(id).map(|it| it.network);
        let networks = network(one).zip(network(other));
        networks.is_some_and(|(one, other)| one != other)
    }

    /// Whether a flow that is there could be opened now.
    pub(crate) fn keeps(&self, key: &FlowKey, owner: AttachmentId, opener: Opener) -> bool {
        let (Some(policy), Some(address)) = (
            self.policies.get(owner),
            self.address_in(key.vrf, key.local),
        ) else {
            return false;
        };
        let may_send = policy.may_open_to(key.remote);
        match (
            self.ports.owner(address, key.transport, key.local_port),
            opener,
        ) {
            (PortOwner::Nobody, Opener::Owner) => policy.learns && may_send,
            // It was announced by its owner.
            (PortOwner::Nobody, Opener::Peer) => policy.learns,
            (port, opener) => match (port.attachment(), opener) {
                (Some((id, _)), Opener::Owner) => id == owner && may_send,
                (Some((id, ClaimKind::Ephemeral)), Opener::Peer) => id == owner,
                (Some((id, ClaimKind::Listen)), Opener::Peer) => {
                    let (port, remote) = (key.local_port, key.remote);
                    id == owner && policy.may_open_from(key.transport, port, remote)
                }
                (None, _) => false,
            },
        }
    }

    /// A flow that is known from elsewhere, as it is here, if its owner may have it.
    pub(crate) fn adopt(&self, flow: &NewFlow) -> Option<NewFlow> {
        let owner = self.attachments.get(flow.owner)?;
        let mut flow = *flow;
        // Elsewhere, its VRF may have another number.
        flow.key.vrf = zone_here(owner, flow.key.vrf);
        let address = self.address_in(flow.key.vrf, flow.key.local)?;
        let on_link = flow.key.vrf.link_index().is_some();
        let shares = on_link || owner.addresses.contains(&flow.key.local);
        if !shares || !self.keeps(&flow.key, flow.owner, flow.opener) {
            return None;
        }
        let FlowKey {
            transport,
            local_port,
            ..
        } = flow.key;
        let port = self.ports.owner(address, transport, local_port);
        flow.learnt = port == PortOwner::Nobody;
        Some(flow)
    }

    /// Makes `config` all that the NOS itself offers in a VRF.
    ///
    /// # Errors
    ///
    /// [`RegistrationRefused`] when a container owns one of the ports; nothing has changed then.
    pub(crate) fn set_services(
        &mut self,
        vrf: VrfId,
        config: &ServiceConfig,
    ) -> Result<(), RegistrationRefused> {
        let registration = service_registration(vrf, config);
        self.ports.register_service(&registration)?;
        self.note_services(vrf, config);
        Ok(())
    }
}

/// The number that the VRF of an attachment's flow has here: its own, or that of the link whose
/// link-local address it shares.
pub(crate) fn zone_here(owner: &Registration, elsewhere: VrfId) -> VrfId {
    let link = elsewhere.link_index().and(owner.link_local);
    link.and_then(VrfId::of_link).unwrap_or(owner.vrf)
}

fn same_place(one: &Registration, other: &Registration) -> bool {
    let place = |it: &Registration| (it.vrf, it.link_local);
    place(one) == place(other) && one.addresses == other.addresses && one.mode == other.mode
}

fn service_registration(vrf: VrfId, config: &ServiceConfig) -> ServiceRegistration {
    let claims = config.services.iter().flat_map(|service| service.claims());
    ServiceRegistration {
        name: "NOS".into(),
        vrf,
        claims: claims.collect(),
        from: config.from.clone(),
    }
}
