//! Plans beside a model of the kernel and the NOS that refuses what those would refuse, and fails
//! where a plan would take something from somebody who still has it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use nos_shim::ports::{AddressMode, Outside, Restriction};
use proptest::prelude::*;

use super::*;
use crate::control::attach::Company;
use crate::control::config::Service;

const UPLINKS: u8 = 4;
const CONTAINERS: u8 = 5;
/// Networks that uplinks may have; their NOS address is the first host.
const NETWORKS: u8 = 5;
/// Ranges of ports that may be claimed, of 10 each from 1000 on.
const BLOCKS: u8 = 6;
const FILES: u8 = 3;
/// VRFs, which may have the same networks.
const VRFS: u8 = 2;

fn name(prefix: &str, number: u8) -> Name {
    format!("{prefix}{number}").parse().unwrap()
}

fn vrf(number: u8) -> VrfName {
    match number {
        0 => VrfName::Default,
        _ => VrfName::Named(name("v", number)),
    }
}

fn network_of(number: u8) -> IpNet {
    format!("10.0.{number}.1/24").parse().unwrap()
}

fn block(number: u8) -> PortRange {
    let first = 1000 + u16::from(number) * 10;
    PortRange::new(first, first + 9).unwrap()
}

fn mac(number: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, number])
}

/// An interface, and a VLAN of it.
type Place = (u8, Option<u16>);

/// Raw material of a valid state.
#[derive(Clone, Debug)]
struct Draft {
    /// By VRF and network: which uplink has it, if any. It has none of another VRF than its own.
    networks: Vec<Option<u8>>,
    /// By uplink: interface and VLAN of it, MAC address, MTU of the device; whether it is there; the VRF.
    devices: Vec<(Place, u8, u16, bool, u8)>,
    containers: Vec<Option<DraftContainer>>,
    /// By VRF and block: a service on its first port; whether it is for some alone.
    services: Vec<Option<bool>>,
    /// By file: who captures to it, of uplinks and containers.
    captures: Vec<Option<u8>>,
    ping: bool,
}

#[derive(Clone, Debug)]
struct DraftContainer {
    vrf: u8,
    namespace: u8,
    addresses: u8,
    tcp: u8,
    udp: u8,
    ephemeral: Option<u8>,
    mac: u8,
    veth: bool,
    mtu: u16,
    /// The uplink whose link-local address it shares, if that is in its VRF.
    link_local: Option<u8>,
    /// The network whose NOS address it has for its own, if nobody else has that.
    own: Option<u8>,
}

fn draft_container() -> impl Strategy<Value = DraftContainer> {
    let ports = (any::<u8>(), any::<u8>(), proptest::option::of(0..BLOCKS));
    let link = (
        0..2_u8,
        any::<bool>(),
        prop_oneof![Just(1500_u16), Just(1400)],
        proptest::option::of(0..UPLINKS),
        proptest::option::weighted(0.3, 0..NETWORKS),
    );
    (0..VRFS, 0..CONTAINERS, any::<u8>(), ports, link).prop_map(
        |(vrf, namespace, addresses, (tcp, udp, ephemeral), (mac, veth, mtu, link_local, own))| {
            DraftContainer {
                vrf,
                namespace,
                addresses,
                tcp,
                udp,
                ephemeral,
                mac,
                veth,
                mtu,
                link_local,
                own,
            }
        },
    )
}

fn draft() -> impl Strategy<Value = Draft> {
    let mtu = || prop_oneof![Just(1500_u16), Just(1400)];
    let device = (
        (0..UPLINKS, proptest::option::of(1..=2_u16)),
        0..2_u8,
        mtu(),
        prop::bool::weighted(0.8),
        0..VRFS,
    );
    let containers = proptest::option::weighted(0.8, draft_container());
    (
        prop::collection::vec(
            proptest::option::weighted(0.7, 0..UPLINKS),
            usize::from(VRFS * NETWORKS),
        ),
        prop::collection::vec(device, UPLINKS as usize),
        prop::collection::vec(containers, CONTAINERS as usize),
        prop::collection::vec(
            proptest::option::weighted(0.2, any::<bool>()),
            usize::from(VRFS * BLOCKS),
        ),
        prop::collection::vec(
            proptest::option::of(0..UPLINKS + CONTAINERS),
            FILES as usize,
        ),
        any::<bool>(),
    )
        .prop_map(
            |(networks, devices, containers, services, captures, ping)| Draft {
                networks,
                devices,
                containers,
                services,
                captures,
                ping,
            },
        )
}

impl Draft {
    /// The state that it describes, without what would clash with what came before.
    fn state(&self) -> State {
        let mut state = State::default();
        for (of_vrf, number) in self.services.chunks(BLOCKS.into()).zip(0..) {
            let port = |number| block(number).first();
            let services = of_vrf.iter().zip(0..);
            let services = services.filter_map(|(it, number)| Some(((*it)?, port(number))));
            let guarded = services.clone().filter(|(guarded, _)| *guarded);
            let rule = |(_, port)| Restriction {
                transport: Transport::Tcp,
                range: PortRange::new(port, port).unwrap(),
                from: Arc::default(),
            };
            let config = ServiceConfig {
                services: services
                    .map(|(_, port)| Service::Http(port.try_into().unwrap()))
                    .collect(),
                ping: self.ping,
                from: guarded.map(rule).collect(),
            };
            state.set_services(&vrf(number), &config);
        }
        self.uplinks(&mut state);
        let mut taken = BTreeSet::new();
        for (container, number) in self.containers.iter().zip(0..) {
            if let Some(container) = container {
                add_container(&mut state, number, container, &mut taken);
            }
        }
        for (of, number) in self.captures.iter().zip(0..) {
            if let Some(of) = *of {
                add_capture(&mut state, of, number);
            }
        }
        state
    }

    fn uplinks(&self, state: &mut State) {
        let mut places = BTreeSet::new();
        for (&(place, mac_number, mtu, here, of_vrf), number) in self.devices.iter().zip(0..) {
            let (interface, vlan) = place;
            let mut by_vrf = self.networks.chunks(NETWORKS.into());
            let of = by_vrf.nth(of_vrf.into()).unwrap_or_default();
            let own = of.iter().zip(0..);
            let own = own.filter(|(uplink, _)| **uplink == Some(number));
            let addresses: Vec<_> = own.map(|(_, network)| network_of(network)).collect();
            if addresses.is_empty() {
                continue;
            }
            let network = Network {
                vrf: vrf(of_vrf),
                addresses,
                mac: mac(mac_number),
                mtu,
                redirects: true,
                groups: Vec::new(),
                behind: Vec::new(),
            };
            state.networks.insert(name("up", number), network);
            if here && places.insert(place) {
                let open = OpenDevice {
                    device: UplinkDevice::Packet(format!("e{interface}").parse().unwrap()),
                    vlan: vlan.and_then(VlanId::new),
                    index: u32::from(interface) + 1,
                    mac: mac(mac_number),
                    offload: true,
                    mtu: mtu.into(),
                };
                state.devices.insert(name("up", number), open);
            }
        }
    }
}

fn add_container(
    state: &mut State,
    number: u8,
    draft: &DraftContainer,
    taken: &mut BTreeSet<NamespaceId>,
) {
    let namespace = NamespaceId::new(1, draft.namespace.into());
    let vrf = vrf(draft.vrf);
    let networks = state.networks.values();
    let networks = networks.filter(|network| network.vrf == vrf);
    let all: Vec<_> = networks.flat_map(|network| &network.addresses).collect();
    let picked = all.iter().enumerate();
    let picked = picked.filter(|(index, _)| draft.addresses >> index & 1 == 1);
    let mut addresses: Vec<_> = picked.map(|(_, network)| network.addr()).collect();
    let own = draft.own.map(|network| network_of(network).addr());
    let own = own.filter(|own| !is_somebodys(state, &vrf, *own));
    if let Some(own) = own {
        addresses = vec![own];
    }
    if addresses.is_empty() || !taken.insert(namespace) {
        return;
    }
    let shared = draft.link_local.filter(|_| own.is_none());
    let shared = shared.and_then(|number| {
        let uplink = name("up", number);
        let network = state.networks.get(&uplink)?;
        (network.vrf == vrf).then(|| LinkLocal {
            address: network.mac.link_local(),
            uplink,
        })
    });
    let blocks = |bits: u8| {
        (0..BLOCKS)
            .filter(move |block| bits >> block & 1 == 1)
            .map(block)
    };
    let device = match (draft.veth, draft.mac % 3) {
        (false, _) => ContainerDevice::Tap,
        (true, 0) => ContainerDevice::Veth,
        (true, 1) => ContainerDevice::Bridge("br0".parse().unwrap()),
        (true, _) => ContainerDevice::Existing,
    };
    let on_bridge = matches!(device, ContainerDevice::Bridge(_)) && draft.udp.is_multiple_of(2);
    let address = IpNet::new_assert([172, 31, 7, number].into(), 24);
    let link_addresses: Vec<_> = on_bridge.then_some(address).into_iter().collect();
    let mut claim = Claim {
        vrf,
        network: None,
        mode: match own {
            None => AddressMode::Shared,
            Some(_) => AddressMode::Routed,
        },
        addresses: addresses.clone(),
        link_local: shared.clone(),
        tcp: blocks(draft.tcp).collect(),
        udp: blocks(draft.udp).collect(),
        ephemeral: draft.ephemeral.map(block).into_iter().collect(),
        policy: Policy {
            outside: match draft.udp % 2 {
                0 => Outside::Drop,
                _ => Outside::Learn,
            },
            ..Policy::default()
        },
        mtu: Mtu::new(draft.mtu).unwrap(),
        mac: mac(draft.mac),
        segment: device.is_on_segment().then(|| {
            let networks = link_addresses.iter().map(IpNet::trunc);
            networks.collect()
        }),
    };
    for ephemeral in &claim.ephemeral {
        claim.tcp.retain(|range| range != ephemeral);
        claim.udp.retain(|range| range != ephemeral);
    }
    if own.is_some()
        || World::of(state)
            .refusal(&name("c", number), &claim)
            .is_some()
    {
        claim.tcp.clear();
        claim.udp.clear();
        claim.ephemeral.clear();
    }
    let link = ContainerLink {
        netns: NetnsRef::Path(PathBuf::from(format!("/n{}", draft.namespace))),
        namespace,
        device,
        interface: "eth0".parse().unwrap(),
        mac: mac(draft.mac),
        offload: true,
        mode: claim.mode,
        addresses,
        link_local: shared.map(|shared| shared.address),
        networks: [].into(),
        ephemeral: claim.ephemeral.clone(),
        opens_flows: !claim.ephemeral.is_empty(),
        company: Company::default(),
        mtu: claim.mtu,
        link_addresses,
    };
    state.claims.insert(name("c", number), claim);
    state.links.insert(name("c", number), link);
}

/// Whether an uplink has an address, or a container for its own.
fn is_somebodys(state: &State, vrf: &VrfName, address: IpAddr) -> bool {
    let networks = state.networks.values().flat_map(all_addresses);
    let mut taken = networks.chain(own_addresses(state));
    taken.any(|(of, other)| of == *vrf && other == address)
}

/// Those that containers have for their own.
fn own_addresses(state: &State) -> impl Iterator<Item = (VrfName, IpAddr)> + '_ {
    let routed = state.claims.values();
    let routed = routed.filter(|claim| claim.mode == AddressMode::Routed);
    routed.flat_map(|claim| claim.addresses.iter().map(|&it| (claim.vrf.clone(), it)))
}

fn add_capture(state: &mut State, of: u8, file: u8) {
    let entity = match of.checked_sub(UPLINKS) {
        None if state.devices.contains_key(&name("up", of)) => Entity::Uplink(name("up", of)),
        Some(container) if state.links.contains_key(&name("c", container)) => {
            Entity::Container(name("c", container))
        }
        _ => return,
    };
    state
        .captures
        .entry(entity)
        .or_insert_with(|| PathBuf::from(format!("/f{file}")));
}

/// The kernel and the NOS.
struct World {
    is: State,
    /// Calls that fail, counted from zero.
    fails: BTreeSet<usize>,
    calls: usize,
    touched: BTreeSet<Entity>,
}

impl World {
    fn of(state: &State) -> Self {
        Self {
            is: state.clone(),
            fails: BTreeSet::new(),
            calls: 0,
            touched: BTreeSet::new(),
        }
    }

    /// Why the NOS does not grant a claim.
    fn refusal(&self, of: &Name, claim: &Claim) -> Option<String> {
        let networks = self.is.networks.values();
        let ours = networks.flat_map(all_addresses);
        let ours = ours.filter(|(vrf, _)| *vrf == claim.vrf);
        let ours: BTreeSet<_> = ours.map(|(_, address)| address).collect();
        let others = self.is.claims.iter().filter(|(name, _)| *name != of);
        if claim.mode == AddressMode::Routed {
            let own = |other: &Claim| other.mode == claim.mode && other.vrf == claim.vrf;
            let held = others.filter(|(_, other)| own(other));
            let held: BTreeSet<_> = held.flat_map(|(_, other)| &other.addresses).collect();
            let mut wanted = claim.addresses.iter();
            let taken = wanted.find(|it| ours.contains(it) || held.contains(it));
            return taken.map(|taken| format!("{taken} is somebody's"));
        }
        if let Some(unknown) = claim
            .addresses
            .iter()
            .find(|address| !ours.contains(address))
        {
            return Some(format!("{unknown} is unknown"));
        }
        if let Some(shared) = &claim.link_local
            && !self.is.networks.contains_key(&shared.uplink)
        {
            return Some(format!("there is no {}", shared.uplink));
        }
        let others = self.is.claims.iter().filter(|(name, _)| *name != of);
        for (other, held) in others {
            if clash(held, claim) {
                return Some(format!("{other} has it"));
            }
        }
        let services = self.is.services_of(&claim.vrf).services;
        let clash = services.iter().find(|service| serves(**service, claim));
        clash.map(ToString::to_string)
    }

    fn link(&self, name: &Name, change: &Change<ContainerLink>) {
        let Change { old, new } = change;
        assert_eq!(self.is.links.get(name), old.as_ref(), "{name}");
        let stays = matches!((old, new), (Some(old), Some(new)) if old.keeps_interface(new));
        if let Some(new) = new {
            let claim = self
                .is
                .claims
                .get(name)
                .expect("registered before attached");
            if old.is_none() {
                assert_eq!((claim.mac, claim.mtu), (new.mac, new.mtu));
                let shared = claim.link_local.as_ref().map(|shared| shared.address);
                assert_eq!(shared, new.link_local);
            }
            let others = self.is.links.iter().filter(|(other, _)| *other != name);
            for (other, link) in others {
                assert_ne!(link.namespace, new.namespace, "{other} is there");
            }
            assert!(old.is_none() || stays);
        } else {
            let entity = Entity::Container(name.clone());
            assert!(
                !self.is.captures.contains_key(&entity),
                "capture ended first"
            );
        }
    }

    fn device(&self, name: &Name, change: &Change<OpenDevice>) {
        let Change { old, new } = change;
        assert_eq!(self.is.devices.get(name), old.as_ref(), "{name}");
        let Some(new) = new else {
            let entity = Entity::Uplink(name.clone());
            assert!(
                !self.is.captures.contains_key(&entity),
                "capture ended first"
            );
            return;
        };
        assert!(self.is.networks.contains_key(name), "the NOS knows it");
        let others = self.is.devices.iter().filter(|(other, _)| *other != name);
        for (_, open) in others {
            let place = |open: &OpenDevice| (open.device.interface().cloned(), open.vlan);
            assert_ne!(place(open), place(new));
        }
    }

    fn capture(&self, of: &Entity, change: &Change<PathBuf>) {
        assert_eq!(self.is.captures.get(of), change.old.as_ref());
        let Some(new) = &change.new else { return };
        assert!(self.is.captures.values().all(|file| file != new));
        assert!(match of {
            Entity::Container(name) => self.is.links.contains_key(name),
            Entity::Uplink(name) => self.is.devices.contains_key(name),
            _ => false,
        });
    }

    /// The networks after a change: none overlap, and no container loses an address that it has.
    fn networks(&self, changes: &[(Name, Change<Network>)]) {
        let mut after = self.is.clone();
        after.record(&Step::Networks(changes.to_vec()));
        for (name, change) in changes {
            assert_eq!(self.is.networks.get(name), change.old.as_ref(), "{name}");
            let gone = change.new.is_none();
            assert!(!gone || !self.is.devices.contains_key(name), "closed first");
        }
        let addresses = |network: &Network| -> Vec<(VrfName, IpAddr)> {
            let all = network.addresses.iter();
            all.map(|net| (network.vrf.clone(), net.addr())).collect()
        };
        let all: Vec<_> = after.networks.values().flat_map(addresses).collect();
        let distinct: BTreeSet<_> = all.iter().cloned().collect();
        assert_eq!(distinct.len(), all.len(), "an address is on one uplink");
        let here: BTreeSet<_> = after.networks.values().flat_map(all_addresses).collect();
        for own in own_addresses(&self.is) {
            assert!(!here.contains(&own), "a container still has {own:?}");
        }
        for (name, claim) in &self.is.claims {
            let shared = claim.addresses.iter();
            for &address in shared.filter(|_| claim.mode == AddressMode::Shared) {
                let key = (claim.vrf.clone(), address);
                assert!(here.contains(&key), "{name} still has {address}");
            }
            if let Some(shared) = &claim.link_local {
                let there = after.networks.contains_key(&shared.uplink);
                assert!(there, "{name} still shares a link with {}", shared.uplink);
            }
        }
    }

    fn claims(&self, changes: &[(Name, Change<Claim>)]) -> Result<(), String> {
        let mut after = World::of(&self.is);
        after.is.record(&Step::Claims(changes.to_vec()));
        for (name, change) in changes {
            assert_eq!(self.is.claims.get(name), change.old.as_ref(), "{name}");
            if let Some(new) = &change.new
                && let Some(refusal) = after.refusal(name, new)
            {
                return Err(format!("{name}: {refusal}"));
            }
        }
        Ok(())
    }

    fn services(
        &self,
        vrf: &VrfName,
        old: &ServiceConfig,
        new: &ServiceConfig,
    ) -> Result<(), String> {
        assert_eq!(self.is.services_of(vrf), *old);
        let clash = self
            .is
            .claims
            .iter()
            .filter(|(_, claim)| claim.vrf == *vrf)
            .find(|(_, claim)| new.services.iter().any(|service| serves(*service, claim)));
        clash.map_or(Ok(()), |(name, _)| Err(format!("{name} has the port")))
    }
}

/// Where the NOS has which addresses by an uplink.
fn all_addresses(network: &Network) -> Vec<(VrfName, IpAddr)> {
    let own = network.addresses.iter();
    let own = own.map(|net| (network.vrf.clone(), net.addr()));
    let behind = network.behind.iter();
    own.chain(behind.map(|(vrf, net)| (vrf.clone(), net.addr())))
        .collect()
}

fn clash(one: &Claim, other: &Claim) -> bool {
    let mut addresses = one.addresses.iter();
    let address =
        one.vrf == other.vrf && addresses.any(|address| other.addresses.contains(address));
    let uplink = |claim: &Claim| Some(claim.link_local.as_ref()?.uplink.clone());
    let link = uplink(one).is_some() && uplink(one) == uplink(other);
    let meet = |these: &[PortRange], those: &[PortRange]| {
        these
            .iter()
            .any(|this| those.iter().any(|that| this.overlaps(*that)))
    };
    let with = |ranges: &[PortRange], claim: &Claim| {
        let mut all = ranges.to_vec();
        all.extend(&claim.ephemeral);
        all
    };
    (address || link)
        && (meet(&with(&one.tcp, one), &with(&other.tcp, other))
            || meet(&with(&one.udp, one), &with(&other.udp, other)))
}

fn serves(service: Service, claim: &Claim) -> bool {
    let port = service.port().get();
    let mut ranges = claim.tcp.iter().chain(&claim.ephemeral);
    ranges.any(|range| range.contains(port))
}

fn entities_of(step: &Step) -> Vec<Entity> {
    match step {
        Step::Networks(changes) => {
            let names = changes.iter().map(|(name, _)| name.clone());
            names.map(Entity::Uplink).collect()
        }
        Step::Claims(changes) => {
            let names = changes.iter().map(|(name, _)| name.clone());
            names.map(Entity::Container).collect()
        }
        other => vec![other.entity()],
    }
}

impl Executor for World {
    type Error = String;

    fn carry_out(&mut self, _: Phase, steps: &[&Step]) -> Vec<Result<(), String>> {
        let carry_out = |step: &&Step| {
            self.calls += 1;
            self.touched.extend(entities_of(step));
            match step {
                Step::Link(name, change) => self.link(name, change),
                Step::Device(name, change) => self.device(name, change),
                Step::Capture(of, change) => self.capture(of, change),
                Step::Networks(changes) => self.networks(changes),
                Step::Claims(changes) => self.claims(changes)?,
                Step::Services { vrf, old, new } => self.services(vrf, old, new)?,
            }
            if self.fails.contains(&(self.calls - 1)) {
                return Err("injected".to_owned());
            }
            self.is.record(step);
            Ok(())
        };
        steps.iter().map(carry_out).collect()
    }
}

/// Goes from `state` to `wanted`. Returns what became of it, and who was touched.
fn go(
    state: &mut State,
    wanted: &State,
    fails: &BTreeSet<usize>,
) -> (Outcome<String>, BTreeSet<Entity>) {
    let mut world = World::of(state);
    world.fails.clone_from(fails);
    let plan = plan(state, wanted, &BTreeSet::new());
    let outcome = carry_out(plan, state, &mut world);
    assert_eq!(world.is, *state, "what is recorded is what is");
    (outcome, world.touched)
}

/// All entities of both states.
fn entities(a: &State, b: &State) -> BTreeSet<Entity> {
    let of = |state: &State| {
        let containers = state.links.keys().chain(state.claims.keys()).cloned();
        let uplinks = state.networks.keys().cloned();
        let containers = containers.map(Entity::Container);
        containers
            .chain(uplinks.map(Entity::Uplink))
            .collect::<Vec<_>>()
    };
    let mut all: BTreeSet<_> = of(a).into_iter().chain(of(b)).collect();
    all.extend((0..VRFS).map(|number| Entity::Services(vrf(number))));
    all
}

/// What a state has of an entity.
fn part(state: &State, entity: &Entity) -> State {
    let mut part = State::default();
    part.copy_entity(entity, state);
    part
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// Without failures everything ends as it is wanted, and back again; what does not differ is
    /// not touched.
    #[test]
    fn any_state_leads_to_any_other(a in draft(), b in draft()) {
        let (a, b) = (a.state(), b.state());
        let mut state = a.clone();
        for wanted in [&b, &a] {
            let before = state.clone();
            let (outcome, touched) = go(&mut state, wanted, &BTreeSet::new());
            prop_assert_eq!(outcome.failed, []);
            prop_assert_eq!(&state, wanted);
            for entity in touched {
                prop_assert_ne!(part(&before, &entity), part(wanted, &entity));
            }
        }
        prop_assert_eq!(plan(&state, &a, &BTreeSet::new()), []);
    }

    /// With failures at any step each group ends as it was or as it is wanted; another attempt,
    /// and the way back, succeed.
    #[test]
    fn what_fails_leaves_what_was(
        a in draft(),
        b in draft(),
        fails in prop::collection::btree_set(0..24_usize, 1..4),
    ) {
        let (a, b) = (a.state(), b.state());
        let mut state = a.clone();
        let (outcome, touched) = go(&mut state, &b, &fails);
        let undone = outcome.failed.iter().all(|failure| failure.not_undone.is_empty());
        let mut failed = BTreeSet::new();
        for failure in &outcome.failed {
            prop_assert!(failure.group.contains(&failure.entity)
                || matches!(failure.entity, Entity::Uplink(_)));
            failed.extend(failure.group.iter().cloned());
        }
        for entity in entities(&a, &b) {
            let is = part(&state, &entity);
            let (was, wanted) = (part(&a, &entity), part(&b, &entity));
            if was == wanted {
                prop_assert!(!touched.contains(&entity));
            }
            let device = match &entity {
                Entity::Uplink(name) => Entity::Device(name.clone()),
                other => other.clone(),
            };
            match (failed.contains(&entity), failed.contains(&device)) {
                (true, _) if undone => prop_assert_eq!(is, was, "{}", entity),
                (false, false) => prop_assert_eq!(is, wanted, "{}", entity),
                _ => {}
            }
        }
        for wanted in [&b, &a] {
            let (outcome, _) = go(&mut state, wanted, &BTreeSet::new());
            prop_assert_eq!(outcome.failed, []);
            prop_assert_eq!(&state, wanted);
        }
    }
}

/// A state with two containers on one uplink.
fn two() -> State {
    let container = |namespace, tcp| {
        Some(DraftContainer {
            vrf: 0,
            namespace,
            addresses: 1,
            tcp,
            udp: 0,
            ephemeral: None,
            mac: namespace,
            veth: false,
            mtu: 1500,
            link_local: None,
            own: None,
        })
    };
    Draft {
        networks: vec![Some(0)],
        devices: vec![((0, None), 0, 1500, true, 0)],
        containers: vec![container(0, 1), container(1, 2), container(2, 4)],
        services: Vec::new(),
        captures: Vec::new(),
        ping: true,
    }
    .state()
}

#[test]
fn swapped_ports_are_one_exchange() {
    let (mut state, mut wanted) = (two(), two());
    let ports = |state: &State, number| state.claims[&name("c", number)].tcp.clone();
    let (first, second) = (ports(&state, 0), ports(&state, 1));
    wanted.claims.get_mut(&name("c", 0)).unwrap().tcp = second;
    wanted.claims.get_mut(&name("c", 1)).unwrap().tcp = first;
    let groups = plan(&state, &wanted, &BTreeSet::new());
    let [group] = &groups[..] else {
        panic!("one group: {groups:?}");
    };
    assert!(
        matches!(&group.steps[..], [(Phase::Claim, Step::Claims(changes))] if changes.len() == 2)
    );
    let (outcome, touched) = go(&mut state, &wanted, &BTreeSet::new());
    assert_eq!(outcome.failed, []);
    assert_eq!(state, wanted);
    assert!(!touched.contains(&Entity::Container(name("c", 2))));
}

#[test]
fn one_container_that_fails_stops_no_other() {
    let wanted = two();
    let mut state = State::default();
    let groups = plan(&state, &wanted, &BTreeSet::new());
    let steps = groups.iter().flat_map(|group| &group.steps);
    // In phases, which is how they are carried out.
    let mut phases: Vec<_> = steps.map(|(phase, step)| (*phase, step.entity())).collect();
    phases.sort_by_key(|(phase, _)| *phase);
    let attach = phases.iter().position(|(phase, _)| *phase == Phase::Attach);
    let failing = attach.unwrap();
    let (outcome, _) = go(&mut state, &wanted, &BTreeSet::from([failing]));
    let [failure] = &outcome.failed[..] else {
        panic!("one failure: {:?}", outcome.failed);
    };
    assert_eq!(failure.cause, Cause::Step("injected".to_owned()));
    assert_eq!(failure.group, [phases[failing].1.clone()]);
    let left = part(&state, &failure.entity);
    assert_eq!(left, State::default(), "its ports are free again");
    assert_eq!(state.links.len(), 2);
    assert_eq!(state.devices.len(), 1);
}

#[test]
fn who_takes_what_another_keeps_is_refused_with_it() {
    let (mut state, mut wanted) = (two(), two());
    // The first gives its ports to the second, and gets an interface that cannot be made.
    let given = wanted.claims[&name("c", 0)].tcp.clone();
    wanted.claims.get_mut(&name("c", 0)).unwrap().tcp = Vec::new();
    wanted.links.get_mut(&name("c", 0)).unwrap().offload = false;
    wanted
        .claims
        .get_mut(&name("c", 1))
        .unwrap()
        .tcp
        .extend(given);
    let before = state.clone();
    // Detach, the claims of both, and then Attach, which fails.
    let (outcome, _) = go(&mut state, &wanted, &BTreeSet::from([3]));
    assert_eq!(state, before);
    let causes: Vec<_> = outcome
        .failed
        .iter()
        .map(|failure| &failure.cause)
        .collect();
    let first = Entity::Container(name("c", 0));
    assert_eq!(
        causes,
        [&Cause::Step("injected".to_owned()), &Cause::Needs(first)]
    );
}

#[test]
fn a_device_that_cannot_be_opened_leaves_the_addresses_to_the_nos() {
    let wanted = two();
    let mut state = State::default();
    let mut world = World::of(&state);
    let groups = plan(&state, &wanted, &BTreeSet::new());
    // Networks, three claims, the device.
    world.fails = BTreeSet::from([4]);
    let outcome = carry_out(groups, &mut state, &mut world);
    let [failure] = &outcome.failed[..] else {
        panic!("one failure: {:?}", outcome.failed);
    };
    assert_eq!(failure.entity, Entity::Uplink(name("up", 0)));
    assert_eq!(failure.group, [Entity::Device(name("up", 0))]);
    assert_eq!((state.networks.len(), state.devices.len()), (1, 0));
    assert_eq!(state.links.len(), 3);
}

#[test]
fn a_repair_is_a_step_from_what_is_to_the_same() {
    let state = two();
    let repair = BTreeSet::from([name("c", 1), name("c", 4)]);
    let groups = plan(&state, &state, &repair);
    let link = state.links[&name("c", 1)].clone();
    let same = Change::between(Some(link.clone()), Some(link));
    assert_eq!(groups.len(), 1);
    assert_eq!(
        groups[0].steps,
        [(Phase::Attach, Step::Link(name("c", 1), Box::new(same)))]
    );
}
