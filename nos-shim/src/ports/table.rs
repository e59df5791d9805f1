//! Who owns which port of which NOS address.
//!
//! # Theory of operation
//!
//! Ownership is per VRF, address, transport and port. An attachment's [`Registration`] names
//! addresses of the NOS and claims ports on all of them; a [`Service`] of the NOS claims ports on
//! every address of its VRF. The claims themselves are the truth. They are painted into a flat map
//! ([`slots`](super::slots)) in which a packet finds its port's owner in two loads, whatever the
//! number of claims.
//!
//! Claims stay while an address that they name is away, and are painted again when it comes back.
//! Meanwhile nobody else can register for it, as it is not an address of the NOS; so for every
//! address, here or away, no port has two owners.

use core::net::IpAddr;
use core::ops::Bound;
use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::slots::{LAST_OWNER, Slot, Slots};
use super::{
    Claim, ClaimKind, ClaimRefused, Owner, PortRange, RegistrationRefused, Service, Transport,
};
use crate::channel::Registration;
use crate::ident::{AttachmentId, LocalAddressId, VrfId};
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
    /// A container.
    Attachment {
        /// Which one.
        id: AttachmentId,
        /// What it may do with the port.
        kind: ClaimKind,
    },
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
    /// Which ports, and what for.
    pub claim: Claim,
}

/// What one owner was granted, shared with the table: cheap to take out of it, and whole however the
/// table changes afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// A service of the NOS.
    Service(Arc<Service>),
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
}

/// The owners of all ports on the NOS's addresses.
#[derive(Debug)]
pub struct PortTable {
    slots: Slots,
    addresses: HashMap<(VrfId, IpAddr), LocalAddressId, RandomState>,
    unused_ids: Vec<LocalAddressId>,
    registrations: Registrations,
    services: Services,
}

type Registrations = BTreeMap<AttachmentId, Arc<Registration>>;
type Services = BTreeMap<(VrfId, Arc<str>), Arc<Service>>;

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
            slots: Slots::new(),
            addresses: HashMap::default(),
            unused_ids: Vec::new(),
            registrations: BTreeMap::new(),
            services: BTreeMap::new(),
        }
    }

    /// Who owns `port`. Nobody does on an address that has been removed.
    #[must_use]
    #[inline]
    pub fn owner(&self, address: LocalAddressId, transport: Transport, port: u16) -> PortOwner {
        let slot = self.slots.at(address, transport, port);
        match slot.attachment() {
            Some((id, kind)) => PortOwner::Attachment { id, kind },
            None if slot == Slot::NOS => PortOwner::Nos,
            None => PortOwner::Nobody,
        }
    }

    /// The index of an address of the NOS.
    #[must_use]
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
        let id = self.unused_ids.pop().unwrap_or_else(|| {
            // Each takes 2 KiB, so there are never 2^32 of them.
            LocalAddressId(u32::try_from(self.addresses.len()).unwrap_or(u32::MAX))
        });
        self.addresses.insert((vrf, address), id);
        self.slots.add(id);
        let named = |holding: &Holding<'_>| holding.vrf == vrf && holding.covers(address);
        let holdings = holdings(&self.registrations, &self.services).filter(named);
        for Holding { owner, claim, .. } in holdings {
            let slot = slot(owner, claim.kind);
            self.slots.fill(id, claim.transport, claim.range, slot);
        }
        id
    }

    /// Makes `address` none of the NOS's. Returns whether it was one.
    ///
    /// Its ports are nobody's until it is added again. Its index may then be another's.
    pub fn remove_address(&mut self, vrf: VrfId, address: IpAddr) -> bool {
        let removed = self.addresses.remove(&(vrf, address));
        if let Some(id) = removed {
            self.slots.clear(id);
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
        self.check(wanted)?;
        self.withdraw(wanted.attachment);
        let owner = Owner::Attachment(wanted.attachment);
        self.paint(wanted, |claim| slot(owner, claim.kind));
        let granted = Arc::new(wanted.clone());
        self.registrations.insert(wanted.attachment, granted);
        Ok(())
    }

    /// Takes all ports of an attachment from it. Returns whether it was registered.
    pub fn withdraw(&mut self, attachment: AttachmentId) -> bool {
        let registration = self.registrations.remove(&attachment);
        if let Some(registration) = &registration {
            self.paint(registration, |_| Slot::NOBODY);
        }
        registration.is_some()
    }

    /// Grants a service of the NOS its claims on all addresses of its VRF, those to come included,
    /// in place of what the service of this name had there before.
    ///
    /// # Errors
    ///
    /// [`ClaimRefused`]; what the service had before still holds.
    pub fn register_service(&mut self, wanted: &Service) -> Result<(), ClaimRefused> {
        self.check_service(wanted)?;
        self.withdraw_service(wanted.vrf, &wanted.name);
        self.paint_service(wanted, Slot::NOS);
        let key = (wanted.vrf, Arc::clone(&wanted.name));
        self.services.insert(key, Arc::new(wanted.clone()));
        Ok(())
    }

    /// Takes all ports of a service of the NOS from it. Returns whether it was registered.
    pub fn withdraw_service(&mut self, vrf: VrfId, name: &Arc<str>) -> bool {
        let service = self.services.remove(&(vrf, Arc::clone(name)));
        if let Some(service) = &service {
            self.paint_service(service, Slot::NOBODY);
        }
        service.is_some()
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

    fn check(&self, wanted: &Registration) -> Result<(), RegistrationRefused> {
        if wanted.attachment.0 > LAST_OWNER {
            return Err(RegistrationRefused::AttachmentId(wanted.attachment));
        }
        let mut ids = Vec::with_capacity(wanted.addresses.len());
        for &address in &wanted.addresses {
            let vrf = wanted.vrf;
            let unknown = RegistrationRefused::UnknownAddress { address, vrf };
            ids.push(self.address(vrf, address).ok_or(unknown)?);
        }
        let wish = Wish {
            owner: Owner::Attachment(wanted.attachment),
            name: &wanted.name,
            vrf: wanted.vrf,
            addresses: Some(&wanted.addresses),
            claims: &wanted.claims,
        };
        // The flat map tells whether there is a clash; only then are all claims searched for whose.
        let taken = |claim: &Claim| ids.iter().any(|&id| self.is_taken(id, claim, wanted));
        let clash = wish.own_clash().or_else(|| {
            let index = wanted.claims.iter().position(taken)?;
            self.clash(&wish, index)
        });
        clash.map_or(Ok(()), |clash| Err(self.refusal(&wish, &clash).into()))
    }

    fn check_service(&self, wanted: &Service) -> Result<(), ClaimRefused> {
        let wish = Wish {
            owner: Owner::Nos,
            name: &wanted.name,
            vrf: wanted.vrf,
            addresses: None,
            claims: &wanted.claims,
        };
        // Not by the flat map: it lacks the addresses that are away.
        let foreign = || (0..wish.claims.len()).find_map(|index| self.clash(&wish, index));
        let clash = wish.own_clash().or_else(foreign);
        clash.map_or(Ok(()), |clash| Err(self.refusal(&wish, &clash)))
    }

    /// Whether any port of `claim` is somebody else's than who registers.
    fn is_taken(&self, id: LocalAddressId, claim: &Claim, by: &Registration) -> bool {
        let foreign = |slot: Slot| match slot.attachment() {
            Some((owner, _)) => owner != by.attachment,
            None => slot == Slot::NOS,
        };
        let found = self.slots.find(id, claim.transport, claim.range, foreign);
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

    fn paint(&mut self, registration: &Registration, slot: impl Fn(&Claim) -> Slot) {
        for &address in &registration.addresses {
            let Some(id) = self.address(registration.vrf, address) else {
                continue;
            };
            for claim in &registration.claims {
                self.slots
                    .fill(id, claim.transport, claim.range, slot(claim));
            }
        }
    }

    fn paint_service(&mut self, service: &Service, slot: Slot) {
        let addresses = self.addresses.iter();
        for (_, &id) in addresses.filter(|((vrf, _), _)| *vrf == service.vrf) {
            for claim in &service.claims {
                self.slots.fill(id, claim.transport, claim.range, slot);
            }
        }
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
        self.vrf == holding.vrf && !same_owner && meet
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

fn of_service(service: &Service) -> impl Iterator<Item = Holding<'_>> {
    service.claims.iter().map(|&claim| Holding {
        owner: Owner::Nos,
        name: &service.name,
        vrf: service.vrf,
        addresses: None,
        claim,
    })
}

fn of_registration(registration: &Registration) -> impl Iterator<Item = Holding<'_>> {
    registration.claims.iter().map(|&claim| Holding {
        owner: Owner::Attachment(registration.attachment),
        name: &registration.name,
        vrf: registration.vrf,
        addresses: Some(&registration.addresses),
        claim,
    })
}

fn slot(owner: Owner, kind: ClaimKind) -> Slot {
    match owner {
        Owner::Nos => Slot::NOS,
        Owner::Attachment(id) => Slot::of(id, kind),
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
