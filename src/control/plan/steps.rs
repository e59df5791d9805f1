//! The steps from one state to another.

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use nos_shim::ports::AddressMode;

use super::needs::{Circle, addresses, circles};
use super::{Change, Claim, ContainerLink, Entity, Group, Network, OpenDevice, Phase, State, Step};
use crate::control::config::{Name, ServiceConfig, VrfName};

/// What has to be done to get from `state` to `wanted`, routes left aside. Entities of `repair`
/// that stay have their interface looked at again.
#[must_use]
pub fn plan(state: &State, wanted: &State, repair: &BTreeSet<Name>) -> Vec<Group> {
    let differing = differing(state, wanted, repair);
    let circles = circles(state, wanted, &differing);
    let group = |circle| group(state, wanted, repair, circle);
    circles.into_iter().map(group).collect()
}

fn differing(state: &State, wanted: &State, repair: &BTreeSet<Name>) -> BTreeSet<Entity> {
    let mut differing = BTreeSet::new();
    for one in [state, wanted] {
        let containers = one.claims.keys().chain(one.links.keys());
        let uplinks = one.networks.keys().chain(one.devices.keys());
        let entities = containers
            .map(|name| Entity::Container(name.clone()))
            .chain(
                uplinks
                    .flat_map(|name| [Entity::Uplink(name.clone()), Entity::Device(name.clone())]),
            );
        differing.extend(entities.filter(|entity| differs(state, wanted, entity)));
    }
    let vrfs = state.services.keys().chain(wanted.services.keys());
    let differ = vrfs.filter(|vrf| state.services.get(vrf) != wanted.services.get(vrf));
    differing.extend(differ.cloned().map(Entity::Services));
    let present = repair.iter().filter(|name| state.links.contains_key(*name));
    differing.extend(present.cloned().map(Entity::Container));
    differing
}

fn differs(state: &State, wanted: &State, entity: &Entity) -> bool {
    let captures = |of: &Entity| state.captures.get(of) != wanted.captures.get(of);
    match entity {
        Entity::Container(name) => {
            state.claims.get(name) != wanted.claims.get(name)
                || state.links.get(name) != wanted.links.get(name)
                || captures(entity)
        }
        Entity::Uplink(name) if state.devices.contains_key(name) => {
            state.networks.get(name) != wanted.networks.get(name)
                || state.devices.get(name) != wanted.devices.get(name)
                || captures(entity)
        }
        Entity::Uplink(name) => state.networks.get(name) != wanted.networks.get(name),
        Entity::Device(name) => {
            !state.devices.contains_key(name) && wanted.devices.contains_key(name)
        }
        Entity::Services(_) | Entity::Routes => false,
    }
}

fn group(state: &State, wanted: &State, repair: &BTreeSet<Name>, circle: Circle) -> Group {
    let Circle { entities, needs } = circle;
    let mut steps = Vec::new();
    for entity in &entities {
        match entity {
            Entity::Container(name) => {
                capture_steps(state, wanted, entity, &mut steps);
                let change = change_of(&state.links, &wanted.links, name);
                link_steps(name, change, repair.contains(name), &mut steps);
            }
            Entity::Uplink(name) | Entity::Device(name) => {
                let opens = !state.devices.contains_key(name);
                if opens == matches!(entity, Entity::Device(_)) {
                    let uplink = Entity::Uplink(name.clone());
                    capture_steps(state, wanted, &uplink, &mut steps);
                    let change = change_of(&state.devices, &wanted.devices, name);
                    device_steps(name, change, &mut steps);
                }
            }
            Entity::Services(vrf) => {
                let (old, new) = (state.services_of(vrf), wanted.services_of(vrf));
                service_steps(vrf, &old, &new, &mut steps);
            }
            Entity::Routes => {}
        }
    }
    network_steps(state, wanted, &entities, &mut steps);
    claim_step(state, wanted, &entities, &mut steps);
    steps.sort_by_key(|(phase, _)| *phase);
    Group {
        entities,
        needs,
        steps,
    }
}

fn change_of<T: Clone>(
    state: &BTreeMap<Name, T>,
    wanted: &BTreeMap<Name, T>,
    name: &Name,
) -> Change<T> {
    Change::between(state.get(name).cloned(), wanted.get(name).cloned())
}

/// A capture ends with its device, and begins with it. One that moves to another file ends first.
fn capture_steps(state: &State, wanted: &State, entity: &Entity, steps: &mut Vec<(Phase, Step)>) {
    let (old, new) = (state.captures.get(entity), wanted.captures.get(entity));
    if old == new && keeps_device(state, wanted, entity) {
        return;
    }
    if let Some(old) = old {
        let change = Change::between(Some(old.clone()), None);
        steps.push((Phase::EndCaptures, Step::Capture(entity.clone(), change)));
    }
    if let Some(new) = new {
        let change = Change::between(None, Some(new.clone()));
        steps.push((Phase::BeginCaptures, Step::Capture(entity.clone(), change)));
    }
}

fn keeps_device(state: &State, wanted: &State, entity: &Entity) -> bool {
    match entity {
        Entity::Container(name) => match (state.links.get(name), wanted.links.get(name)) {
            (Some(old), Some(new)) => old.keeps_interface(new),
            (old, new) => old.is_none() && new.is_none(),
        },
        Entity::Uplink(name) | Entity::Device(name) => {
            match (state.devices.get(name), wanted.devices.get(name)) {
                (Some(old), Some(new)) => old.keeps_device(new),
                (old, new) => old.is_none() && new.is_none(),
            }
        }
        Entity::Services(_) | Entity::Routes => true,
    }
}

/// An interface that cannot stay goes before the new one comes.
fn link_steps(
    name: &Name,
    change: Change<ContainerLink>,
    repair: bool,
    steps: &mut Vec<(Phase, Step)>,
) {
    let Change { old, new } = change;
    if old == new && !repair {
        return;
    }
    let stays = match (&old, &new) {
        (Some(old), Some(new)) => old.keeps_interface(new),
        _ => false,
    };
    if stays {
        let step = Step::Link(name.clone(), Box::new(Change::between(old, new)));
        steps.push((Phase::Attach, step));
        return;
    }
    if let Some(old) = old {
        let gone = Step::Link(name.clone(), Box::new(Change::between(Some(old), None)));
        steps.push((Phase::Detach, gone));
    }
    if let Some(new) = new {
        let fresh = Step::Link(name.clone(), Box::new(Change::between(None, Some(new))));
        steps.push((Phase::Attach, fresh));
    }
}

fn device_steps(name: &Name, change: Change<OpenDevice>, steps: &mut Vec<(Phase, Step)>) {
    let Change { old, new } = change;
    match (old, new) {
        (old, new) if old == new => {}
        (Some(old), Some(new)) if old.keeps_device(&new) => {
            let step = Step::Device(name.clone(), Change::between(Some(old), Some(new)));
            steps.push((Phase::Open, step));
        }
        (old, new) => {
            if let Some(old) = old {
                let gone = Step::Device(name.clone(), Change::between(Some(old), None));
                steps.push((Phase::Close, gone));
            }
            if let Some(new) = new {
                let fresh = Step::Device(name.clone(), Change::between(None, Some(new)));
                steps.push((Phase::Open, fresh));
            }
        }
    }
}

/// Services that stay are left alone. Who may reach them, and whether pings are answered, changes with
/// those that begin.
fn service_steps(
    vrf: &VrfName,
    old: &ServiceConfig,
    new: &ServiceConfig,
    steps: &mut Vec<(Phase, Step)>,
) {
    let mut fewer = old.clone();
    fewer
        .services
        .retain(|service| new.services.contains(service));
    let left = fewer.services.iter().flat_map(|service| service.claims());
    let left: Vec<_> = left.map(|it| (it.transport, it.range)).collect();
    fewer
        .from
        .retain(|rule| left.contains(&(rule.transport, rule.range)));
    for (phase, old, new) in [
        (Phase::EndServices, old, &fewer),
        (Phase::BeginServices, &fewer, new),
    ] {
        if old != new {
            let step = Step::Services {
                vrf: vrf.clone(),
                old: old.clone(),
                new: new.clone(),
            };
            steps.push((phase, step));
        }
    }
}

/// First everything that comes while nothing goes, then what goes: containers follow in between.
fn network_steps(
    state: &State,
    wanted: &State,
    entities: &[Entity],
    steps: &mut Vec<(Phase, Step)>,
) {
    let names = entities.iter().filter_map(|entity| match entity {
        Entity::Uplink(name) => Some(name),
        _ => None,
    });
    let changes: Vec<_> = names
        .map(|name| (name, change_of(&state.networks, &wanted.networks, name)))
        .filter(|(_, change)| change.old != change.new)
        .collect();
    let (mut widen, mut narrow) = (Vec::new(), Vec::new());
    for (name, change) in &changes {
        let wide = widened(change, &changes);
        if change.old != wide {
            let first = Change::between(change.old.clone(), wide.clone());
            widen.push(((*name).clone(), first));
        }
        if wide != change.new {
            let last = Change::between(wide, change.new.clone());
            narrow.push(((*name).clone(), last));
        }
    }
    for (phase, changes) in [(Phase::Widen, widen), (Phase::Narrow, narrow)] {
        if !changes.is_empty() {
            steps.push((phase, Step::Networks(changes)));
        }
    }
}

/// The uplink as it shall be, with the addresses that it still has. What another uplink of its VRF
/// has now, or keeps for now, comes later. Of one that comes from another VRF the addresses stay behind
/// until containers have followed, so that these can also go back.
fn widened(change: &Change<Network>, all: &[(&Name, Change<Network>)]) -> Option<Network> {
    let Some(new) = &change.new else {
        return change.old.clone();
    };
    let old = change.old.as_ref();
    let stays = |old: &Network| old.vrf == new.vrf;
    let own = old.filter(|old| stays(old));
    let own = own.map_or(&[][..], |old| &old.addresses);
    let left = old.filter(|old| !stays(old));
    let left = left.into_iter().flat_map(|old| {
        let addresses = old.addresses.iter();
        addresses.map(|address| (old.vrf.clone(), *address))
    });
    let mut behind = old.map_or_else(Vec::new, |old| old.behind.clone());
    behind.extend(left);
    let others = all.iter().map(|(_, other)| other).filter(|other| {
        // Two changes of one uplink are one.
        !core::ptr::eq(*other, change)
    });
    // One that goes elsewhere keeps nothing here.
    let keeps = |other: &Change<Network>| other.new.as_ref().is_none_or(stays);
    let held: Vec<_> = others
        .filter(|other| keeps(other))
        .filter_map(|other| other.old.as_ref())
        .filter(|old| stays(old))
        .flat_map(|other| &other.addresses)
        .map(ipnet::IpNet::trunc)
        .collect();
    let free = |address: &&ipnet::IpNet| {
        let network = address.trunc();
        let clear = held
            .iter()
            .all(|held| !held.contains(&network) && !network.contains(held));
        let twice = own.iter().any(|own| own.addr() == address.addr());
        clear && !twice
    };
    let mut addresses: Vec<_> = own.to_vec();
    addresses.extend(new.addresses.iter().filter(free));
    Some(Network {
        addresses,
        behind,
        ..new.clone()
    })
}

/// A container gives up an address of its own before an uplink gets it, and gets one after an uplink has given
/// it up; all else of its claim changes in between.
fn claim_step(state: &State, wanted: &State, entities: &[Entity], steps: &mut Vec<(Phase, Step)>) {
    let (before, after) = (addresses(state), addresses(wanted));
    let (mut first, mut middle, mut last) = (Vec::new(), Vec::new(), Vec::new());
    for entity in entities {
        let Entity::Container(name) = entity else {
            continue;
        };
        let Change { old, new } = change_of(&state.claims, &wanted.claims, name);
        let given_up = old.clone().map(|old| without_own(old, &after));
        let got_later = new.clone().map(|new| without_own(new, &before));
        for (steps, from, to) in [
            (&mut first, old, given_up.clone()),
            (&mut middle, given_up, got_later.clone()),
            (&mut last, got_later, new),
        ] {
            if from != to {
                steps.push((name.clone(), Change::between(from, to)));
            }
        }
    }
    for (phase, changes) in [
        (Phase::Disown, first),
        (Phase::Claim, middle),
        (Phase::Own, last),
    ] {
        if !changes.is_empty() {
            steps.push((phase, Step::Claims(changes)));
        }
    }
}

/// The claim without those of its own addresses that uplinks have.
fn without_own(mut claim: Claim, uplinks: &HashMap<(&VrfName, IpAddr), Entity>) -> Claim {
    if claim.mode == AddressMode::Routed {
        let vrf = &claim.vrf;
        claim
            .addresses
            .retain(|&own| !uplinks.contains_key(&(vrf, own)));
    }
    claim
}
