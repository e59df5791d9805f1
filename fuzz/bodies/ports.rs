//! The port table against lists of what was granted, searched from end to end.
//!
//! Input: steps, by `arbitrary`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use nos_shim::ident::{AttachmentId, NetworkId, UplinkId, VrfId};
use nos_shim::ports::{
    AddressMode, Claim, ClaimKind, Owner, Policy, PortOwner, PortRange, PortTable, Registration,
    RegistrationRefused, Restriction, ServiceRegistration, Transport,
};
use nos_shim::prefix_set::PrefixSet;

const STEPS: usize = 48;
const ATTACHMENTS: u8 = 4;
const ADDRESSES: u8 = 3;
const VRFS: u8 = 2;
const LINKS: u8 = 2;

#[derive(Arbitrary, Debug)]
enum Step {
    AddAddress(u8, u8),
    RemoveAddress(u8, u8),
    AddLink(u8),
    RemoveLink(u8),
    Exchange {
        withdraw: Vec<u8>,
        register: Vec<Wish>,
        service: Option<Service>,
    },
    Register(Wish),
    Withdraw(u8),
    Serve(Service),
    Page,
}

#[derive(Arbitrary, Debug)]
struct Wish {
    id: u8,
    vrf: u8,
    /// By bit.
    addresses: u8,
    link: Option<u8>,
    claims: Vec<WantedClaim>,
    policed: bool,
}

#[derive(Arbitrary, Debug)]
struct Service {
    number: u8,
    vrf: u8,
    claims: Vec<WantedClaim>,
    policed: bool,
}

#[derive(Arbitrary, Debug)]
struct WantedClaim {
    udp: bool,
    ephemeral: bool,
    place: Ports,
}

/// Ranges that meet often, also at the edges of the table's blocks.
#[derive(Arbitrary, Debug)]
enum Ports {
    Block(u8, u8),
    Near(u8, u8),
    Any(u16, u16),
}

impl Ports {
    fn range(&self) -> PortRange {
        let (first, last) = match *self {
            Self::Block(block, more) => {
                let first = u16::from(block % 4) * 256;
                (first, first + u16::from(more % 4) * 256 + 255)
            }
            Self::Near(first, more) => (
                250 + u16::from(first % 16),
                250 + u16::from(first % 16) + u16::from(more % 16),
            ),
            Self::Any(one, other) => (one.min(other), one.max(other)),
        };
        PortRange::new(first.max(1), last.max(1)).expect("ascending")
    }
}

fn claims(wanted: &[WantedClaim]) -> Vec<Claim> {
    wanted
        .iter()
        .take(4)
        .map(|wanted| Claim {
            transport: if wanted.udp {
                Transport::Udp
            } else {
                Transport::Tcp
            },
            range: wanted.place.range(),
            kind: if wanted.ephemeral {
                ClaimKind::Ephemeral
            } else {
                ClaimKind::Listen
            },
        })
        .collect()
}

fn address(number: u8) -> IpAddr {
    IpAddr::from([203, 0, 113, number % ADDRESSES])
}

fn link(number: u8) -> UplinkId {
    UplinkId::new(u16::from(number % LINKS), 0)
}

/// Restrictions of the ranges that are claimed, which do not overlap.
fn restrictions(claims: &[Claim], policed: bool) -> Vec<Restriction> {
    let first = claims
        .first()
        .filter(|claim| policed && claim.kind == ClaimKind::Listen);
    let restriction = first.map(|claim| Restriction {
        transport: claim.transport,
        range: claim.range,
        from: Arc::new(PrefixSet::new([IpAddr::from([10, 0, 0, 0]).into()])),
    });
    restriction.into_iter().collect()
}

impl Wish {
    /// Whose its addresses are, and whether it has what then makes no sense.
    fn mode(&self) -> (AddressMode, bool) {
        match self.vrf / VRFS / 2 % 4 {
            2 => (AddressMode::Routed, false),
            3 => (AddressMode::Routed, true),
            _ => (AddressMode::Shared, true),
        }
    }

    fn registration(&self) -> Registration {
        let (mode, with_ports) = self.mode();
        let id = AttachmentId(u32::from(self.id % ATTACHMENTS));
        let claims = match with_ports {
            true => claims(&self.claims),
            false => Vec::new(),
        };
        let addresses = (0..ADDRESSES).filter(|bit| self.addresses >> bit & 1 != 0);
        Registration {
            attachment: id,
            name: format!("c{}", id.0).into(),
            vrf: VrfId(u16::from(self.vrf % VRFS)),
            network: NetworkId(u32::from(self.vrf / VRFS % 2)),
            mode,
            addresses: addresses.map(address).collect(),
            link_local: self.link.map(link).filter(|_| with_ports),
            policy: Policy {
                from: restrictions(&claims, self.policed),
                ..Policy::default()
            },
            claims,
            router: Ipv6Addr::LOCALHOST,
            mtu: 1500,
        }
    }
}

impl Service {
    fn registration(&self) -> ServiceRegistration {
        let claims = claims(&self.claims);
        ServiceRegistration {
            name: format!("s{}", self.number % 2).into(),
            vrf: VrfId(u16::from(self.vrf % VRFS)),
            from: restrictions(&claims, self.policed),
            claims,
        }
    }
}

/// What was granted, and where it holds.
#[derive(Clone, Default)]
struct Lists {
    addresses: BTreeSet<(VrfId, IpAddr)>,
    links: BTreeSet<UplinkId>,
    attachments: BTreeMap<AttachmentId, Registration>,
    services: BTreeMap<(VrfId, Arc<str>), ServiceRegistration>,
}

fn meet(one: &Claim, other: &Claim) -> bool {
    one.transport == other.transport
        && one.range.first() <= other.range.last()
        && other.range.first() <= one.range.last()
}

fn any_meet(one: &[Claim], other: &[Claim]) -> bool {
    one.iter()
        .any(|one| other.iter().any(|other| meet(one, other)))
}

fn meet_themselves(claims: &[Claim]) -> bool {
    (0..claims.len()).any(|at| any_meet(&claims[at..=at], &claims[at + 1..]))
}

impl Lists {
    fn exchange(
        &mut self,
        withdraw: &[AttachmentId],
        register: &[Registration],
        service: Option<&ServiceRegistration>,
    ) -> bool {
        let mut after = self.clone();
        let changed = register.iter().map(|wanted| wanted.attachment);
        for id in withdraw.iter().copied().chain(changed) {
            after.attachments.remove(&id);
        }
        let granted = service.is_none_or(|service| after.serve(service))
            && register.iter().all(|wanted| after.register(wanted));
        if granted {
            *self = after;
        }
        granted
    }

    fn serve(&mut self, wanted: &ServiceRegistration) -> bool {
        let key = (wanted.vrf, Arc::clone(&wanted.name));
        self.services.remove(&key);
        let services = self.services.values().filter(|it| it.vrf == wanted.vrf);
        let attachments = self.attachments.values();
        // On every address of the VRF that there is or may be.
        let attachments = attachments.filter(|it| it.vrf == wanted.vrf && !it.addresses.is_empty());
        let free = !meet_themselves(&wanted.claims)
            && !services
                .map(|it| &it.claims)
                .any(|it| any_meet(it, &wanted.claims))
            && !attachments
                .map(|it| &it.claims)
                .any(|it| any_meet(it, &wanted.claims));
        if free {
            self.services.insert(key, wanted.clone());
        }
        free
    }

    /// Whether an attachment can have addresses for its own.
    fn may_own(&self, wanted: &Registration) -> bool {
        let own = |other: &&Registration| other.mode == wanted.mode && other.vrf == wanted.vrf;
        let others = self.attachments.values().filter(own);
        let held: Vec<_> = others.flat_map(|other| &other.addresses).collect();
        let free = |address: &IpAddr| {
            let ours = self.addresses.contains(&(wanted.vrf, *address));
            !ours && !held.contains(&address)
        };
        wanted.claims.is_empty() && wanted.link_local.is_none() && wanted.addresses.iter().all(free)
    }

    fn register(&mut self, wanted: &Registration) -> bool {
        if wanted.mode == AddressMode::Routed {
            let free = !self.attachments.contains_key(&wanted.attachment) && self.may_own(wanted);
            if free {
                self.attachments.insert(wanted.attachment, wanted.clone());
            }
            return free;
        }
        let here = |address: &IpAddr| self.addresses.contains(&(wanted.vrf, *address));
        let linked = wanted
            .link_local
            .is_none_or(|link| self.links.contains(&link));
        let rival = |other: &Registration| {
            let shared = other.vrf == wanted.vrf
                && other
                    .addresses
                    .iter()
                    .any(|it| wanted.addresses.contains(it));
            let on_link = wanted.link_local.is_some() && other.link_local == wanted.link_local;
            (shared || on_link) && any_meet(&other.claims, &wanted.claims)
        };
        let served = |service: &ServiceRegistration| {
            service.vrf == wanted.vrf
                && !wanted.addresses.is_empty()
                && any_meet(&service.claims, &wanted.claims)
        };
        let free = !self.attachments.contains_key(&wanted.attachment)
            && linked
            && wanted.addresses.iter().all(here)
            && !meet_themselves(&wanted.claims)
            && !self.attachments.values().any(rival)
            && !self.services.values().any(served);
        if free {
            self.attachments.insert(wanted.attachment, wanted.clone());
        }
        free
    }

    /// Owners on an address, or on a link, of the VRF.
    fn owner(
        &self,
        at: Result<(VrfId, IpAddr), UplinkId>,
        transport: Transport,
        port: u16,
    ) -> PortOwner {
        let has = |claim: &&Claim| claim.transport == transport && claim.range.contains(port);
        for registration in self.attachments.values() {
            let covered = match at {
                Ok((vrf, address)) => {
                    registration.vrf == vrf && registration.addresses.contains(&address)
                }
                Err(link) => registration.link_local == Some(link),
            };
            if let Some(claim) = registration.claims.iter().find(has).filter(|_| covered) {
                let (id, kind) = (registration.attachment, claim.kind);
                let watched =
                    kind == ClaimKind::Listen && watched(&registration.policy.from, claim);
                return match watched {
                    true => PortOwner::Watched { id, kind },
                    false => PortOwner::Attachment { id, kind },
                };
            }
        }
        let Ok((vrf, _)) = at else {
            return PortOwner::Nobody;
        };
        let services = self.services.values().filter(|it| it.vrf == vrf);
        let mut found = services.filter_map(|it| Some((it, it.claims.iter().find(has)?)));
        match found.next() {
            Some((service, claim)) if watched(&service.from, claim) => PortOwner::WatchedNos,
            Some(_) => PortOwner::Nos,
            None => PortOwner::Nobody,
        }
    }
}

fn watched(from: &[Restriction], claim: &Claim) -> bool {
    from.iter()
        .any(|it| it.transport == claim.transport && it.range.overlaps(claim.range))
}

pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let (mut table, mut lists) = (PortTable::new(), Lists::default());
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let Ok(step) = input.arbitrary() else { break };
        take(step, &mut table, &mut lists);
        owners(&table, &lists);
    }
}

fn take(step: Step, table: &mut PortTable, lists: &mut Lists) {
    match step {
        Step::AddAddress(vrf, number) => {
            let place = (VrfId(u16::from(vrf % VRFS)), address(number));
            let id = table.add_address(place.0, place.1);
            assert_eq!(table.address(place.0, place.1), Some(id));
            lists.addresses.insert(place);
        }
        Step::RemoveAddress(vrf, number) => {
            let place = (VrfId(u16::from(vrf % VRFS)), address(number));
            let removed = table.remove_address(place.0, place.1);
            assert_eq!(removed, lists.addresses.remove(&place));
        }
        Step::AddLink(number) => {
            table.add_link(link(number));
            lists.links.insert(link(number));
        }
        Step::RemoveLink(number) => {
            let removed = table.remove_link(link(number));
            assert_eq!(removed, lists.links.remove(&link(number)));
        }
        Step::Exchange {
            withdraw,
            register,
            service,
        } => {
            let withdraw = withdraw.iter().take(3);
            let withdraw: Vec<_> = withdraw
                .map(|id| AttachmentId(u32::from(id % ATTACHMENTS)))
                .collect();
            let register: Vec<_> = register.iter().take(3).map(Wish::registration).collect();
            let service = service.as_ref().map(Service::registration);
            exchange(table, lists, &withdraw, &register, service.as_ref());
        }
        Step::Register(wish) => exchange(table, lists, &[], &[wish.registration()], None),
        Step::Withdraw(id) => {
            let id = AttachmentId(u32::from(id % ATTACHMENTS));
            let withdrawn = table.withdraw(id);
            assert_eq!(withdrawn, lists.attachments.remove(&id).is_some());
        }
        Step::Serve(service) => {
            exchange(table, lists, &[], &[], Some(&service.registration()));
        }
        Step::Page => paged(table, lists),
    }
}

fn exchange(
    table: &mut PortTable,
    lists: &mut Lists,
    withdraw: &[AttachmentId],
    register: &[Registration],
    service: Option<&ServiceRegistration>,
) {
    let granted = lists.exchange(withdraw, register, service);
    match table.exchange(withdraw, register, service) {
        Ok(()) => assert!(granted, "granted what clashes: {register:?} {service:?}"),
        Err(refused) => {
            assert!(!granted, "{refused}");
            if let RegistrationRefused::Claim(claim) = &refused.reason {
                assert!(claim.taken.overlaps(claim.claim.range), "{refused}");
                let length = claim.suggestion.map(PortRange::len);
                assert!(length.is_none_or(|length| length == claim.claim.range.len()));
            }
            let of_service = refused.owner == Owner::Nos;
            assert!(!of_service || service.is_some());
        }
    }
}

/// Each address that somebody has for its own leads there, and no other anywhere.
fn own_addresses(table: &PortTable, lists: &Lists) {
    for vrf in (0..u16::from(VRFS)).map(VrfId) {
        let own = |it: &&Registration| it.mode == AddressMode::Routed && it.vrf == vrf;
        let owners = lists.attachments.values().filter(own);
        let of = |it: &'_ Registration| -> Vec<_> {
            let addresses = it.addresses.iter();
            addresses.map(|&address| (address, it.attachment)).collect()
        };
        let expected: BTreeMap<_, _> = owners.flat_map(of).collect();
        let listed: BTreeSet<_> = table.routed_in(vrf).collect();
        assert_eq!(listed, expected.keys().copied().collect());
        for address in (0..ADDRESSES).map(address) {
            assert_eq!(table.routed(vrf, address), expected.get(&address).copied());
        }
    }
}

/// Each port that something begins or ends at has the owner of the lists.
fn owners(table: &PortTable, lists: &Lists) {
    own_addresses(table, lists);
    let claims = lists.attachments.values().flat_map(|it| &it.claims);
    let claims = claims.chain(lists.services.values().flat_map(|it| &it.claims));
    let mut ports = BTreeSet::from([0, 1, 255, 256, 257, u16::MAX]);
    for claim in claims {
        let (first, last) = (claim.range.first(), claim.range.last());
        ports.extend([first - 1, first, last, last.saturating_add(1)]);
    }
    let places = lists.addresses.iter().map(|&(vrf, address)| {
        let id = table.address(vrf, address).expect("it was added");
        (id, Ok((vrf, address)))
    });
    let links = lists.links.iter().map(|&link| {
        let id = table.link(link).expect("it was added");
        (id, Err(link))
    });
    for (id, at) in places.chain(links) {
        for &port in &ports {
            for transport in [Transport::Tcp, Transport::Udp] {
                let owner = table.owner(id, transport, port);
                assert_eq!(
                    owner,
                    lists.owner(at, transport, port),
                    "{at:?} {transport} {port}"
                );
            }
        }
    }
}

/// Pages together are all grants.
fn paged(table: &PortTable, lists: &Lists) {
    let (mut grants, mut after) = (0, None);
    loop {
        let page = table.page(after.as_ref());
        grants += page.rows.len();
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(grants, lists.attachments.len() + lists.services.len());
    let claims = lists.attachments.values().map(|it| it.claims.len());
    let services = lists.services.values().map(|it| it.claims.len());
    assert_eq!(
        table.claims().count(),
        claims.chain(services).sum::<usize>()
    );
}
