//! Who owns which port of which NOS address.
//!
//! # Theory of operation
//!
//! Ownership is per VRF, address, transport and port. An attachment's [`Registration`] names
//! addresses of the NOS and claims ports on all of them; a [`ServiceRegistration`] claims ports on
//! every address of its VRF. The link-local address of an uplink is one more address for those who
//! [share](Registration::link_local) it; which one it is, as it follows the uplink's MAC address, does
//! not matter here. The claims themselves are the truth. They are painted into a flat map
//! ([`map`](super::map)) in which a packet finds its port's owner in two loads, whatever the number
//! of claims.
//!
//! All changes of claims are exchanges: some registrations go, others come or change, and all of it
//! is granted or none. So two attachments can swap ports, and a port that its owner keeps is never
//! anybody else's in between ([`exchange`](super::exchange)).
//!
//! An attachment may have addresses [for its own](AddressMode::Routed) instead: then it has all ports on
//! them, and nobody else may have the address.
//!
//! Claims stay while an address that they name is away, and are painted again when it comes back.
//! Meanwhile nobody else can register for it, as it is not an address of the NOS; so for every
//! address, here or away, no port has two owners.

use core::net::{IpAddr, Ipv4Addr};
use core::ops::Bound;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::claim::LAST_OWNER;
use super::exchange::{Stripe, late_comers, repaint};
use super::map::{PackedOwner, PortMap};
use super::policy::{Rules, narrows};
use super::{
    AddressMode, Claim, ClaimKind, ClaimRefused, ExchangeRefused, Outside, Owner, PortRange,
    PortRule, Registration, RegistrationRefused, ServiceRegistration, Transport,
};
use crate::ident::{AttachmentId, LocalAddressId, UplinkId, VrfId};
use crate::martian;
use crate::page::{PAGE, Page};

/// Suggestions prefer ports from here on: lower ones are well-known (RFC 6335 §6).
const FIRST_USER_PORT: u16 = 1024;

/// Who gets the packets to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortOwner {
    /// No one has claimed the port.
    Nobody,
    /// A service of the NOS.
    Nos,
    /// A service of the NOS to which not everybody may open flows.
    WatchedNos,
    /// A container.
    Attachment {
        /// Which one.
        id: AttachmentId,
        /// What it may do with the port.
        kind: ClaimKind,
    },
    /// A container whose policy may have something to say about who talks to the port.
    Watched {
        /// Which one.
        id: AttachmentId,
        /// What it may do with the port.
        kind: ClaimKind,
    },
}

impl PortOwner {
    /// The container that has the port, and what it may do with it.
    #[must_use]
    pub fn attachment(self) -> Option<(AttachmentId, ClaimKind)> {
        match self {
            Self::Attachment { id, kind } | Self::Watched { id, kind } => Some((id, kind)),
            Self::Nobody | Self::Nos | Self::WatchedNos => None,
        }
    }
}

/// One claim that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding<'a> {
    /// Whose it is.
    pub owner: Owner,
    /// What operators call the owner.
    pub name: &'a Arc<str>,
    /// In which VRF.
    pub vrf: VrfId,
    /// On which addresses, whether the NOS has them now or not; `None` is every address of the
    /// VRF.
    pub addresses: Option<&'a [IpAddr]>,
    /// And on the link-local address of this uplink.
    pub link_local: Option<UplinkId>,
    /// Which ports, and what for.
    pub claim: Claim,
}

/// Services of the same name in two VRFs are two.
type ServiceKey = (VrfId, Arc<str>);

/// What one owner was granted, shared with the table: cheap to take out of it, and whole however the
/// table changes afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// A service of the NOS.
    Service(Arc<ServiceRegistration>),
    /// An attachment.
    Attachment(Arc<Registration>),
}

impl Grant {
    /// Its claims, one by one.
    pub fn holdings(&self) -> impl Iterator<Item = Holding<'_>> {
        let (service, registration) = match self {
            Self::Service(service) => (Some(service), None),
            Self::Attachment(registration) => (None, Some(registration)),
        };
        let of_service = service.into_iter().flat_map(|it| of_service(it));
        of_service.chain(registration.into_iter().flat_map(|it| of_registration(it)))
    }

    /// The same, each with the parts of its range under different rules.
    pub fn holdings_with_rules(
        &self,
    ) -> impl Iterator<Item = (Holding<'_>, Vec<(PortRange, PortRule)>)> {
        let rules = match self {
            Self::Service(service) => Rules::new(&service.from, &[]),
            Self::Attachment(registration) => {
                let policy = &registration.policy;
                Rules::new(&policy.from, &policy.established)
            }
        };
        self.holdings().map(move |holding| {
            let parts = rules.cut(&holding.claim);
            (holding, parts)
        })
    }
}

/// The owners of all ports on the NOS's addresses.
///
/// ```
/// use nos_shim::ident::{AttachmentId, NetworkId, VrfId};
/// use nos_shim::ports::{AddressMode, Claim, ClaimKind, Policy, PortOwner, PortRange, PortTable, Registration, Transport};
///
/// let mut ports = PortTable::new();
/// let own = ports.add_address(VrfId::DEFAULT, "203.0.113.1".parse()?);
/// let wanted = |id, name: &str, first, last| {
///     Ok::<_, Box<dyn core::error::Error>>(Registration {
///         attachment: AttachmentId::new(id, 0),
///         name: name.into(),
///         vrf: VrfId::DEFAULT,
///         network: NetworkId::DEFAULT,
///         mode: AddressMode::Shared,
///         addresses: vec!["203.0.113.1".parse()?],
///         link_local: None,
///         claims: vec![Claim {
///             transport: Transport::Tcp,
///             range: PortRange::new(first, last)?,
///             kind: ClaimKind::Listen,
///         }],
///         policy: Policy::default(),
///         router: "fe80::1".parse()?,
///         mtu: 1500,
///     })
/// };
/// ports.register(&wanted(0, "web", 20_000, 20_999)?)?;
/// let web = PortOwner::Attachment { id: AttachmentId::new(0, 0), kind: ClaimKind::Listen };
/// assert_eq!(ports.owner(own, Transport::Tcp, 20_080), web);
/// assert_eq!(ports.owner(own, Transport::Udp, 20_080), PortOwner::Nobody);
///
/// let refused = ports.register(&wanted(1, "db", 20_999, 21_099)?).unwrap_err();
/// assert_eq!(
///     refused.to_string(),
///     "tcp 20999-21099 is refused: 20000-20999 belongs to 'web'; 21000-21100 is free"
/// );
/// # Ok::<(), Box<dyn core::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PortTable {
    map: PortMap,
    addresses: HashMap<(VrfId, IpAddr), LocalAddressId, RandomState>,
    /// The link-local addresses of uplinks.
    links: BTreeMap<UplinkId, LocalAddressId>,
    unused_ids: Vec<LocalAddressId>,
    registrations: Registrations,
    /// Addresses that attachments have for their own.
    routed: BTreeMap<(VrfId, IpAddr), AttachmentId>,
    services: Services,
    /// Whether registrations are of more than one network.
    isolates: bool,
}

type Registrations = BTreeMap<AttachmentId, Arc<Registration>>;
type Services = BTreeMap<ServiceKey, Arc<ServiceRegistration>>;

impl Default for PortTable {
    fn default() -> Self {
        Self::new()
    }
}

impl PortTable {
    /// A table without addresses.
    #[must_use]
    pub fn new() -> Self {
        Self {
            map: PortMap::new(),
            addresses: HashMap::default(),
            links: BTreeMap::new(),
            unused_ids: Vec::new(),
            registrations: BTreeMap::new(),
            routed: BTreeMap::new(),
            services: BTreeMap::new(),
            isolates: false,
        }
    }

    /// Who owns `port`. Nobody does on an address that has been removed.
    #[must_use]
    #[inline]
    pub fn owner(&self, address: LocalAddressId, transport: Transport, port: u16) -> PortOwner {
        self.map.at(address, transport, port).owner()
    }

    /// Whether two attachments are in different networks, so that neither gets what the other one sends
    /// to an address that both share: it is refused as if nobody listened. Attachments that are not
    /// registered are kept apart from nobody.
    #[must_use]
    #[inline]
    pub fn keeps_apart(&self, one: AttachmentId, other: AttachmentId) -> bool {
        self.isolates && self.are_in_different_networks(one, other)
    }

    fn are_in_different_networks(&self, one: AttachmentId, other: AttachmentId) -> bool {
        let network = |id| self.registrations.get(&id).map(|it| it.network);
        let networks = network(one).zip(network(other));
        networks.is_some_and(|(one, other)| one != other)
    }

    /// Whether any two attachments are in different networks.
    #[must_use]
    #[inline]
    pub fn isolates(&self) -> bool {
        self.isolates
    }

    /// The attachment that has this address [for its own](AddressMode::Routed).
    #[must_use]
    pub fn routed(&self, vrf: VrfId, address: IpAddr) -> Option<AttachmentId> {
        self.routed.get(&(vrf, address)).copied()
    }

    /// All addresses in a VRF that attachments have [for their own](AddressMode::Routed).
    pub fn routed_in(&self, vrf: VrfId) -> impl Iterator<Item = IpAddr> + '_ {
        let first = (vrf, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let of_vrf = self.routed.range(first..);
        let of_vrf = of_vrf.take_while(move |((of, _), _)| *of == vrf);
        of_vrf.map(|((_, address), _)| *address)
    }

    /// The index of an address of the NOS.
    #[must_use]
    #[inline]
    pub fn address(&self, vrf: VrfId, address: IpAddr) -> Option<LocalAddressId> {
        self.addresses.get(&(vrf, address)).copied()
    }

    /// Makes `address` one of the NOS's. All claims that name it hold from now on.
    ///
    /// Adding it again changes nothing and returns the same index.
    pub fn add_address(&mut self, vrf: VrfId, address: IpAddr) -> LocalAddressId {
        if let Some(known) = self.address(vrf, address) {
            return known;
        }
        let id = self.fresh_id();
        self.addresses.insert((vrf, address), id);
        let named = |holding: &Holding<'_>| holding.vrf == vrf && holding.covers(address);
        for service in self.services.values() {
            for Holding { claim, .. } in of_service(service).filter(named) {
                let owner = packed_service(service, &claim);
                self.map.fill(id, claim.transport, claim.range, owner);
            }
        }
        for registration in self.registrations.values() {
            for Holding { claim, .. } in of_registration(registration).filter(named) {
                let owner = packed(registration, &claim);
                self.map.fill(id, claim.transport, claim.range, owner);
            }
        }
        id
    }

    /// An index that no address has, whose ports are nobody's.
    fn fresh_id(&mut self) -> LocalAddressId {
        let used = self.addresses.len() + self.links.len();
        let id = self.unused_ids.pop().unwrap_or_else(|| {
            // Each takes 2 KiB, so there are never 2^32 of them.
            LocalAddressId(u32::try_from(used).unwrap_or(u32::MAX))
        });
        self.map.add(id);
        id
    }

    /// The index of the link-local address of an uplink.
    #[must_use]
    pub fn link(&self, uplink: UplinkId) -> Option<LocalAddressId> {
        self.links.get(&uplink).copied()
    }

    /// Makes the link-local address of an uplink one of the NOS's. The claims of all who share it hold
    /// from now on.
    ///
    /// Adding it again changes nothing and returns the same index.
    pub fn add_link(&mut self, uplink: UplinkId) -> LocalAddressId {
        if let Some(known) = self.link(uplink) {
            return known;
        }
        let id = self.fresh_id();
        self.links.insert(uplink, id);
        let sharing = self.registrations.values();
        for registration in sharing.filter(|it| it.link_local == Some(uplink)) {
            for claim in &registration.claims {
                let owner = packed(registration, claim);
                self.map.fill(id, claim.transport, claim.range, owner);
            }
        }
        id
    }

    /// Takes the link-local address of an uplink away, as [`Self::remove_address`] does others. Returns
    /// whether it was there.
    pub fn remove_link(&mut self, uplink: UplinkId) -> bool {
        let removed = self.links.remove(&uplink);
        if let Some(id) = removed {
            self.map.clear(id);
            self.unused_ids.push(id);
        }
        removed.is_some()
    }

    /// Makes `address` none of the NOS's. Returns whether it was one.
    ///
    /// Its ports are nobody's until it is added again. Its index may then be another's.
    pub fn remove_address(&mut self, vrf: VrfId, address: IpAddr) -> bool {
        let removed = self.addresses.remove(&(vrf, address));
        if let Some(id) = removed {
            self.map.clear(id);
            self.unused_ids.push(id);
        }
        removed.is_some()
    }

    /// Grants an attachment its claims on its addresses, in place of what it had before.
    ///
    /// # Errors
    ///
    /// [`RegistrationRefused`]; what the attachment had before still holds.
    pub fn register(&mut self, wanted: &Registration) -> Result<(), RegistrationRefused> {
        let granted = self.exchange(&[], core::slice::from_ref(wanted), None);
        granted.map_err(|refused| refused.reason)
    }

    /// Takes all ports of an attachment from it. Returns whether it was registered.
    pub fn withdraw(&mut self, attachment: AttachmentId) -> bool {
        let was_registered = self.registrations.contains_key(&attachment);
        // Nothing is asked for that could be refused.
        let _ = self.exchange(&[attachment], &[], None);
        was_registered
    }

    /// Takes their ports from the attachments in `withdraw`, and grants those in `register` their
    /// claims in place of what they had before; all of it at once, or nothing. `service` gets its
    /// claims on all addresses of its VRF, those to come included, in place of what the service of
    /// this name had there before.
    ///
    /// # Errors
    ///
    /// [`ExchangeRefused`] names whose registration clashes with what would hold otherwise, the
    /// earlier ones of `register` included; everything is as it was before.
    pub fn exchange(
        &mut self,
        withdraw: &[AttachmentId],
        register: &[Registration],
        service: Option<&ServiceRegistration>,
    ) -> Result<(), ExchangeRefused> {
        let before = self.take_out(withdraw, register, service);
        if let Err(refused) = self.grant(register, service) {
            self.put_back(before, register, service);
            return Err(refused);
        }
        let old = before.registrations.iter().map(Arc::as_ref);
        let old = self.stripes(old, before.service.as_deref());
        let new = self.stripes(register, service);
        repaint(&mut self.map, old, new);
        let mut networks = self.registrations.values().map(|it| it.network);
        let first = networks.next();
        self.isolates = networks.any(|network| Some(network) != first);
        Ok(())
    }

    /// Takes everything out of the lists that an exchange replaces. The map stays.
    fn take_out(
        &mut self,
        withdraw: &[AttachmentId],
        register: &[Registration],
        service: Option<&ServiceRegistration>,
    ) -> TakenOut {
        let changed = register.iter().map(|wanted| wanted.attachment);
        let leaving = withdraw.iter().copied().chain(changed);
        let registrations: Vec<_> = leaving
            .filter_map(|id| self.registrations.remove(&id))
            .collect();
        for address in registrations.iter().flat_map(|it| own_addresses(it)) {
            self.routed.remove(&address);
        }
        TakenOut {
            registrations,
            service: service.and_then(|service| self.services.remove(&key_of(service))),
        }
    }

    fn put_back(
        &mut self,
        before: TakenOut,
        register: &[Registration],
        service: Option<&ServiceRegistration>,
    ) {
        for wanted in register {
            self.registrations.remove(&wanted.attachment);
            for address in own_addresses(wanted) {
                if self.routed.get(&address) == Some(&wanted.attachment) {
                    self.routed.remove(&address);
                }
            }
        }
        for registration in &before.registrations {
            let own = own_addresses(registration);
            self.routed
                .extend(own.map(|address| (address, registration.attachment)));
        }
        if let Some(service) = service {
            self.services.remove(&key_of(service));
        }
        let registrations = before.registrations.into_iter();
        let registrations = registrations.map(|before| (before.attachment, before));
        self.registrations.extend(registrations);
        let service = before.service.into_iter();
        let service = service.map(|before| (key_of(&before), before));
        self.services.extend(service);
    }

    /// Puts wishes into the lists, one after the other, up to the first that is refused.
    fn grant(
        &mut self,
        register: &[Registration],
        service: Option<&ServiceRegistration>,
    ) -> Result<(), ExchangeRefused> {
        let refused = |owner, reason| ExchangeRefused { owner, reason };
        if let Some(wanted) = service {
            let checked = self.check_service(wanted);
            checked.map_err(|clash| refused(Owner::Nos, clash.into()))?;
            self.services
                .insert(key_of(wanted), Arc::new(wanted.clone()));
        }
        let late = self.clashing_wishes(register, service);
        for (number, wanted) in (1..).zip(register) {
            let id = wanted.attachment;
            let owner = Owner::Attachment(id);
            let checked = self.check(wanted, late.contains(&number));
            checked.map_err(|reason| refused(owner, reason))?;
            let granted = Arc::new(wanted.clone());
            if self.registrations.insert(id, granted).is_some() {
                return Err(refused(owner, RegistrationRefused::Twice(id)));
            }
            let own = own_addresses(wanted);
            self.routed.extend(own.map(|address| (address, id)));
        }
        Ok(())
    }

    /// Which wishes, counted from one, clash with another of the same exchange; 0 is the service.
    fn clashing_wishes(
        &self,
        register: &[Registration],
        service: Option<&ServiceRegistration>,
    ) -> BTreeSet<usize> {
        if register.len() + usize::from(service.is_some()) < 2 {
            return BTreeSet::new();
        }
        let mut stripes = self.stripes(&[], service);
        let mut numbered: Vec<_> = stripes.drain(..).map(|stripe| (stripe, 0)).collect();
        for (number, wanted) in (1..).zip(register) {
            self.add_stripes(wanted, &mut stripes);
            numbered.extend(stripes.drain(..).map(|stripe| (stripe, number)));
        }
        late_comers(numbered)
    }

    /// Grants a service of the NOS its claims on all addresses of its VRF, those to come included,
    /// in place of what the service of this name had there before. Without claims it has none.
    ///
    /// # Errors
    ///
    /// [`RegistrationRefused`]; what the service had before still holds.
    pub fn register_service(
        &mut self,
        wanted: &ServiceRegistration,
    ) -> Result<(), RegistrationRefused> {
        let granted = self.exchange(&[], &[], Some(wanted));
        granted.map_err(|refused| refused.reason)
    }

    /// Every claim that was granted: the NOS's by VRF and name, then the attachments' by number.
    pub fn claims(&self) -> impl Iterator<Item = Holding<'_>> {
        holdings(&self.registrations, &self.services)
    }

    /// What some owners were granted, in the order of [`Self::claims`]; the last of a page is the
    /// cursor of the next.
    #[must_use]
    pub fn page(&self, after: Option<&Grant>) -> Page<Grant, Grant> {
        let services_after = match after {
            None => Some(Bound::Unbounded),
            Some(Grant::Service(last)) => Some(Bound::Excluded((last.vrf, Arc::clone(&last.name)))),
            Some(Grant::Attachment(_)) => None,
        };
        let attachments_after = match after {
            Some(Grant::Attachment(last)) => Bound::Excluded(last.attachment),
            _ => Bound::Unbounded,
        };
        let services = services_after
            .into_iter()
            .flat_map(|after| self.services.range((after, Bound::Unbounded)))
            .map(|(_, service)| Grant::Service(Arc::clone(service)));
        let registrations = self
            .registrations
            .range((attachments_after, Bound::Unbounded));
        let registrations = registrations.map(|(_, it)| Grant::Attachment(Arc::clone(it)));
        let rows: Vec<_> = services.chain(registrations).take(PAGE).collect();
        let next = rows.last().filter(|_| rows.len() == PAGE).cloned();
        Page { rows, next }
    }

    /// Whether a wish can be granted. `suspect` is one that clashes with another of its exchange,
    /// which is in the lists already, and not in the map.
    fn check(&self, wanted: &Registration, suspect: bool) -> Result<(), RegistrationRefused> {
        if wanted.attachment.0 > LAST_OWNER {
            return Err(RegistrationRefused::AttachmentId(wanted.attachment));
        }
        if wanted.mode == AddressMode::Routed {
            return self.check_routed(wanted);
        }
        let mut ids = Vec::with_capacity(wanted.addresses.len());
        for &address in &wanted.addresses {
            let vrf = wanted.vrf;
            let unknown = RegistrationRefused::UnknownAddress { address, vrf };
            ids.push(self.address(vrf, address).ok_or(unknown)?);
        }
        if let Some(uplink) = wanted.link_local {
            let unknown = RegistrationRefused::UnknownLink(uplink);
            ids.push(self.link(uplink).ok_or(unknown)?);
        }
        let wish = Wish {
            owner: Owner::Attachment(wanted.attachment),
            name: &wanted.name,
            vrf: wanted.vrf,
            addresses: Some(&wanted.addresses),
            link_local: wanted.link_local,
            claims: &wanted.claims,
        };
        // The flat map tells whether there may be a clash; only then are all claims searched. It
        // still has the ports that this exchange takes from others.
        let taken = |claim: &Claim| ids.iter().any(|&id| self.is_taken(id, claim, wanted));
        let foreign = || {
            let claims = wanted.claims.iter().enumerate();
            let mut suspects = claims.filter(|(_, claim)| suspect || taken(claim));
            suspects.find_map(|(index, _)| self.clash(&wish, index))
        };
        let clash = wish.own_clash().or_else(foreign);
        clash.map_or(Ok(()), |clash| Err(self.refusal(&wish, &clash).into()))
    }

    /// Whether an attachment can have its addresses for its own.
    fn check_routed(&self, wanted: &Registration) -> Result<(), RegistrationRefused> {
        let shared = [
            (!wanted.claims.is_empty(), "port ranges"),
            (wanted.link_local.is_some(), "shared link-local address"),
            (!wanted.policy.established.is_empty(), "established ports"),
            (
                wanted.policy.outside != Outside::default(),
                "ports to learn",
            ),
        ];
        if let Some((_, what)) = shared.into_iter().find(|(has, _)| *has) {
            return Err(RegistrationRefused::NotShared(what));
        }
        for (vrf, address) in own_addresses(wanted) {
            if !martian::is_routable(address) {
                return Err(RegistrationRefused::NotUnicast(address));
            }
            let taken = |owner| RegistrationRefused::AddressTaken { address, owner };
            if self.address(vrf, address).is_some() {
                return Err(taken("NOS".into()));
            }
            let other = self.routed(vrf, address);
            let other = other.filter(|&other| other != wanted.attachment);
            if let Some(other) = other.and_then(|other| self.registrations.get(&other)) {
                return Err(taken(Arc::clone(&other.name)));
            }
        }
        Ok(())
    }

    fn check_service(&self, wanted: &ServiceRegistration) -> Result<(), ClaimRefused> {
        let wish = Wish {
            owner: Owner::Nos,
            name: &wanted.name,
            vrf: wanted.vrf,
            addresses: None,
            link_local: None,
            claims: &wanted.claims,
        };
        // Not by the flat map: it lacks the addresses that are away.
        let foreign = || (0..wish.claims.len()).find_map(|index| self.clash(&wish, index));
        let clash = wish.own_clash().or_else(foreign);
        clash.map_or(Ok(()), |clash| Err(self.refusal(&wish, &clash)))
    }

    /// Whether any port of `claim` may be somebody else's than who registers.
    fn is_taken(&self, id: LocalAddressId, claim: &Claim, by: &Registration) -> bool {
        let foreign = |owner: PackedOwner| match owner.attachment() {
            Some(id) => id != by.attachment && self.registrations.contains_key(&id),
            None => owner.is_nos(),
        };
        let found = self.map.find(id, claim.transport, claim.range, foreign);
        found.is_some()
    }

    /// The other owner's claim that clashes with the claim of this index.
    fn clash(&self, wish: &Wish<'_>, index: usize) -> Option<Clash> {
        let claim = *wish.claims.get(index)?;
        let mut rivals = self.claims().filter(|holding| wish.rivals(holding));
        let rival = rivals.find(|holding| overlap(holding.claim, claim))?;
        Some(Clash {
            index,
            claim,
            taken: rival.claim.range,
            owner: Arc::clone(rival.name),
        })
    }

    fn refusal(&self, wish: &Wish<'_>, clash: &Clash) -> ClaimRefused {
        let rivals = self.claims().filter(|holding| wish.rivals(holding));
        let others = rivals.map(|holding| holding.claim);
        let own = wish.claims.iter().enumerate();
        let own = own.filter(|&(index, _)| index != clash.index);
        ClaimRefused {
            claim: clash.claim,
            taken: clash.taken,
            owner: Arc::clone(&clash.owner),
            suggestion: suggest(clash.claim, others.chain(own.map(|(_, &claim)| claim))),
        }
    }

    /// The ports that wishes cover on the addresses that are here.
    fn stripes<'r>(
        &self,
        registrations: impl IntoIterator<Item = &'r Registration>,
        service: Option<&ServiceRegistration>,
    ) -> Vec<Stripe> {
        let mut stripes = Vec::new();
        for registration in registrations {
            self.add_stripes(registration, &mut stripes);
        }
        let Some(service) = service else {
            return stripes;
        };
        let addresses = self.addresses.iter();
        for (_, &address) in addresses.filter(|((vrf, _), _)| *vrf == service.vrf) {
            let stripe = |claim: &Claim| stripe(address, claim, packed_service(service, claim));
            stripes.extend(service.claims.iter().map(stripe));
        }
        stripes
    }

    fn add_stripes(&self, registration: &Registration, stripes: &mut Vec<Stripe>) {
        // Of those, none is granted anything.
        if registration.attachment.0 > LAST_OWNER {
            return;
        }
        let addresses = registration.addresses.iter();
        let addresses = addresses.filter_map(|&it| self.address(registration.vrf, it));
        let link = registration.link_local.and_then(|it| self.link(it));
        for address in addresses.chain(link) {
            let stripe = |claim: &Claim| stripe(address, claim, packed(registration, claim));
            stripes.extend(registration.claims.iter().map(stripe));
        }
    }
}

/// What an exchange replaces.
struct TakenOut {
    registrations: Vec<Arc<Registration>>,
    service: Option<Arc<ServiceRegistration>>,
}

/// The addresses that an attachment has for its own.
fn own_addresses(registration: &Registration) -> impl Iterator<Item = (VrfId, IpAddr)> {
    let own = registration.mode == AddressMode::Routed;
    let addresses = registration.addresses.iter().filter(move |_| own);
    addresses.map(|&address| (registration.vrf, address))
}

fn key_of(service: &ServiceRegistration) -> ServiceKey {
    (service.vrf, Arc::clone(&service.name))
}

fn stripe(address: LocalAddressId, claim: &Claim, owner: PackedOwner) -> Stripe {
    Stripe {
        address,
        transport: claim.transport,
        range: claim.range,
        owner,
    }
}

impl Holding<'_> {
    fn covers(&self, address: IpAddr) -> bool {
        self.addresses.is_none_or(|own| own.contains(&address))
    }
}

/// Who asks, and for what.
struct Wish<'a> {
    owner: Owner,
    name: &'a Arc<str>,
    vrf: VrfId,
    addresses: Option<&'a [IpAddr]>,
    link_local: Option<UplinkId>,
    claims: &'a [Claim],
}

/// Why a wish is refused.
struct Clash {
    /// Which of the wish's claims.
    index: usize,
    claim: Claim,
    taken: PortRange,
    owner: Arc<str>,
}

impl Wish<'_> {
    /// Whether `holding` is another owner's on one of the wish's addresses.
    fn rivals(&self, holding: &Holding<'_>) -> bool {
        let same_owner =
            self.owner == holding.owner && (self.owner != Owner::Nos || self.name == holding.name);
        let meet = match (self.addresses, holding.addresses) {
            (Some(ours), Some(theirs)) => ours.iter().any(|address| theirs.contains(address)),
            (Some(some), None) | (None, Some(some)) => !some.is_empty(),
            (None, None) => true,
        };
        let on_link = self.link_local.is_some() && self.link_local == holding.link_local;
        !same_owner && (self.vrf == holding.vrf && meet || on_link)
    }

    /// Two claims of the wish that want the same port.
    fn own_clash(&self) -> Option<Clash> {
        let mut order: Vec<usize> = (0..self.claims.len()).collect();
        order.sort_by_key(|&index| (self.claims[index].transport, self.claims[index].range));
        let mut pairs = order.iter().zip(order.iter().skip(1));
        let (&first, &second) = pairs.find(|&(&a, &b)| overlap(self.claims[a], self.claims[b]))?;
        let (earlier, later) = (first.min(second), first.max(second));
        Some(Clash {
            index: later,
            claim: self.claims[later],
            taken: self.claims[earlier].range,
            owner: Arc::clone(self.name),
        })
    }
}

fn holdings<'a>(
    registrations: &'a Registrations,
    services: &'a Services,
) -> impl Iterator<Item = Holding<'a>> {
    let services = services.values().flat_map(|service| of_service(service));
    let registrations = registrations.values();
    services.chain(registrations.flat_map(|registration| of_registration(registration)))
}

fn of_service(service: &ServiceRegistration) -> impl Iterator<Item = Holding<'_>> {
    service.claims.iter().map(|&claim| Holding {
        owner: Owner::Nos,
        name: &service.name,
        vrf: service.vrf,
        addresses: None,
        link_local: None,
        claim,
    })
}

fn of_registration(registration: &Registration) -> impl Iterator<Item = Holding<'_>> {
    registration.claims.iter().map(|&claim| Holding {
        owner: Owner::Attachment(registration.attachment),
        name: &registration.name,
        vrf: registration.vrf,
        addresses: Some(&registration.addresses),
        link_local: registration.link_local,
        claim,
    })
}

fn packed(registration: &Registration, claim: &Claim) -> PackedOwner {
    let policy = &registration.policy;
    let watched = match claim.kind {
        ClaimKind::Listen => policy.watches_listen(claim.transport, claim.range),
        ClaimKind::Ephemeral => policy.watches_ephemeral(claim.range),
    };
    PackedOwner::of(registration.attachment, claim.kind, watched)
}

fn packed_service(service: &ServiceRegistration, claim: &Claim) -> PackedOwner {
    match narrows(&service.from, claim.transport, claim.range) {
        true => PackedOwner::WATCHED_NOS,
        false => PackedOwner::NOS,
    }
}

fn overlap(a: Claim, b: Claim) -> bool {
    a.transport == b.transport && a.range.overlaps(b.range)
}

/// A range as long as the claim's that touches none of `taken`: above the claim if there is room,
/// else from the lowest user port on, else anywhere.
fn suggest(claim: Claim, taken: impl Iterator<Item = Claim>) -> Option<PortRange> {
    let mut used = vec![false; 1 << 16];
    for range in taken
        .filter(|other| other.transport == claim.transport)
        .map(|other| other.range)
    {
        used[usize::from(range.first())..=usize::from(range.last())].fill(true);
    }
    let above = claim.range.first().max(FIRST_USER_PORT);
    let starts = [above, FIRST_USER_PORT, 1].into_iter();
    starts
        .filter_map(|from| free_run(&used, from, claim.range.len()))
        .next()
}

/// The lowest `len` unused ports in a row that do not begin before `from`.
fn free_run(used: &[bool], from: u16, len: u32) -> Option<PortRange> {
    let mut run = 0;
    for last in from..=u16::MAX {
        run = if used[usize::from(last)] { 0 } else { run + 1 };
        if run == len {
            let first = u32::from(last) + 1 - len;
            return PortRange::new(u16::try_from(first).ok()?, last).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests;
