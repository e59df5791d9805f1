//! One way for start, reload, healing and stop: what is wanted, as far as it is there, is compared
//! with what is in place, and the difference carried out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use crate::control::api::Event;
use crate::control::attach;
use crate::control::config::{
    Config, Container, ContainerDevice, Name, NetnsRef, Touched, UplinkDevice,
};
use crate::control::kernel::watch::{KernelWatch, WatchKey, Watched};
use crate::control::plan::{
    Claim, Entity, Group, InterfacePresence, LinkPresence, NamespacePresence, Observed, Outcome,
    State, Station, Step, Want, carry_out, plan, routes_of,
};

use super::containers::{netns_name, open};
use super::live::{Live, StepError};
use super::standing::{Condition, Standing};
use super::vrfs::{named, used};
use super::watched::WatchedContainers;
use super::watching::{differences, present, registration, subject};

/// Events that wait to be told to those who watch: more do not happen within a turn of the loop.
const MAX_EVENTS: usize = 65_536;

/// Repairs of one container that change something, within [`REPAIR_WINDOW`]. Who undoes them faster
/// than that is left to it for the rest of the time.
const REPAIRS: u32 = 20;
const REPAIR_WINDOW: Duration = Duration::from_secs(10);

/// Attempts in a row of what was refused because it had moved meanwhile. What goes on moving gives
/// events.
const ATTEMPTS: u32 = 3;

/// What is wanted, what is in place, and what has to be looked at.
#[derive(Debug)]
pub(super) struct Reconciler {
    wanted: Option<Config>,
    pub(super) state: State,
    pub(super) standing: Standing,
    watched: WatchedContainers,
    namespaces: HashMap<Name, NamespacePresence>,
    /// Interfaces of containers that somebody else makes.
    interfaces: HashMap<Name, InterfacePresence>,
    /// Containers whose name has to be followed again.
    names: BTreeSet<Name>,
    /// Containers whose inside has to be looked at again.
    repairs: BTreeSet<Name>,
    paces: HashMap<Name, Pace>,
    /// Containers that were refused another interface and got the old one back, with what
    /// somebody else had inside before.
    obstacles: HashMap<Name, BTreeSet<String>>,
    /// What happened since those who watch were told last.
    pub(super) events: Vec<Event>,
}

/// How often a container was repaired lately.
#[derive(Debug)]
struct Pace {
    since: Instant,
    repairs: u32,
}

impl Pace {
    fn allows(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= REPAIR_WINDOW {
            *self = Self {
                since: now,
                repairs: 0,
            };
        }
        self.repairs < REPAIRS
    }
}

impl Reconciler {
    pub(super) fn new() -> Self {
        Self {
            wanted: None,
            state: State::default(),
            standing: Standing::default(),
            watched: WatchedContainers::default(),
            namespaces: HashMap::new(),
            interfaces: HashMap::new(),
            names: BTreeSet::new(),
            repairs: BTreeSet::new(),
            paces: HashMap::new(),
            obstacles: HashMap::new(),
            events: Vec::new(),
        }
    }

    /// Something happened that those who watch are told.
    pub(super) fn tell(&mut self, event: Event) {
        if self.events.len() < MAX_EVENTS {
            self.events.push(event);
        }
    }

    /// The configuration that is wanted, if any.
    pub(super) fn wanted(&self) -> Option<&Config> {
        self.wanted.as_ref()
    }

    /// Wants `config` from now on, all of it looked at anew.
    pub(super) fn want(&mut self, config: Config, watch: &mut KernelWatch) {
        let names = config.containers.iter().map(|container| &container.name);
        self.names = names.cloned().collect();
        self.repairs.clone_from(&self.names);
        self.paces.clear();
        self.obstacles.clear();
        self.standing.release_all();
        self.forget_unwanted(&config, watch);
        for container in &config.containers {
            self.watch_name(container, watch);
        }
        self.wanted = Some(config);
    }

    /// Wants `config` from now on, which differs in what is `touched` alone: nothing else is looked
    /// at, or tried again.
    pub(super) fn want_change(
        &mut self,
        config: Config,
        touched: &Touched,
        watch: &mut KernelWatch,
    ) {
        match touched {
            Touched::Container(name) => {
                self.names.insert(name.clone());
                self.paces.remove(name);
                self.obstacles.remove(name);
                self.standing.release_now(&Entity::Container(name.clone()));
                if let Some(container) = config.container(name) {
                    self.watch_name(container, watch);
                }
            }
            Touched::Uplink(name) => {
                self.standing.release_now(&Entity::Uplink(name.clone()));
                self.standing.release_now(&Entity::Device(name.clone()));
            }
            Touched::Network(_) | Touched::Routes => {}
        }
        self.forget_unwanted(&config, watch);
        self.wanted = Some(config);
    }

    /// Wants what was wanted before a change that was refused; what stands is as it was then.
    pub(super) fn withdraw(&mut self, old: Config, standing: Standing, watch: &mut KernelWatch) {
        self.standing = standing;
        self.forget_unwanted(&old, watch);
        self.wanted = Some(old);
    }

    /// Lets go of what `config` does not speak of.
    fn forget_unwanted(&mut self, config: &Config, watch: &mut KernelWatch) {
        let names = config.containers.iter().map(|container| &container.name);
        let known: BTreeSet<_> = names.collect();
        self.namespaces.retain(|name, _| known.contains(name));
        self.watched.retain(watch, |name| known.contains(name));
        self.standing.retain(|entity| is_wanted(config, entity));
        self.names.retain(|name| known.contains(name));
        self.repairs.retain(|name| known.contains(name));
    }

    fn watch_name(&mut self, container: &Container, watch: &mut KernelWatch) {
        let Container { name, netns, .. } = container;
        let watched = self.watched.watch(watch, name, &netns_name(netns));
        if let Watched::Partly(reason) = watched {
            info!(container = %name, "{reason}");
        }
    }

    /// The container of a number that the kernel's watch was given.
    pub(super) fn container_of(&self, key: WatchKey) -> Option<&Name> {
        self.watched.name_of(key)
    }

    /// A namespace that was watched inside has ended.
    pub(super) fn inside_ended(&mut self, key: WatchKey) {
        self.watched.ended(key);
    }

    /// The name of a container's namespace may lead elsewhere.
    pub(super) fn follow_name(&mut self, name: &Name, now: Instant) {
        self.names.insert(name.clone());
        self.obstacles.remove(name);
        self.release(&Entity::Container(name.clone()), now);
    }

    /// Something about `entity` has changed: what was refused is worth another attempt, with all that
    /// was refused together with it. Not while nothing has changed about what is in a container's way.
    fn release(&mut self, entity: &Entity, now: Instant) {
        let group = self.standing.group_of(entity);
        let mut names = group.iter().filter_map(|of| match of {
            Entity::Container(name) => Some(name),
            _ => None,
        });
        let in_the_way = |name: &Name| {
            let known = self.obstacles.get(name);
            known.is_some_and(|known| self.obstacles_of(name).as_ref() == Some(known))
        };
        if names.any(in_the_way) {
            return;
        }
        for entity in &group {
            self.standing.release(entity, now);
        }
    }

    /// Something inside a container may have changed.
    ///
    /// One that was refused another interface had its own taken away and given back, which are
    /// changes too. It is not interrupted again before something of somebody else's has changed.
    pub(super) fn look_inside(&mut self, name: &Name, now: Instant) {
        self.repairs.insert(name.clone());
        if let Some(known) = self.obstacles.get(name) {
            if self.obstacles_of(name).as_ref() == Some(known) {
                return;
            }
            self.obstacles.remove(name);
        }
        self.release(&Entity::Container(name.clone()), now);
    }

    /// What somebody else has in the namespace in which a container is wanted; `None` where nobody
    /// can say.
    fn obstacles_of(&self, name: &Name) -> Option<BTreeSet<String>> {
        let container = self.wanted.as_ref()?.container(name)?;
        attach::foreign_parts(&open(&container.netns).ok()?).ok()
    }

    /// Containers whose interface is to be replaced, with what is in the way of that by now.
    fn replaced(&self, wanted: &State) -> HashMap<Name, BTreeSet<String>> {
        let links = wanted.links.iter().filter(|(name, new)| {
            let old = self.state.links.get(*name);
            old.is_some_and(|old| !old.keeps_interface(new))
        });
        let obstacles = |(name, _): (&Name, _)| Some((name.clone(), self.obstacles_of(name)?));
        links.filter_map(obstacles).collect()
    }

    /// Everything may have changed.
    pub(super) fn look_at_all(&mut self, now: Instant) {
        let Some(wanted) = &self.wanted else { return };
        let names: Vec<_> = wanted
            .containers
            .iter()
            .map(|container| container.name.clone())
            .collect();
        for name in names {
            self.follow_name(&name, now);
            self.look_inside(&name, now);
        }
    }

    /// An interface of the host has changed.
    pub(super) fn release_uplinks(&mut self, now: Instant) {
        let Some(wanted) = &self.wanted else { return };
        let names = wanted.uplinks.iter().map(|uplink| uplink.name.clone());
        for name in names.collect::<Vec<_>>() {
            self.release(&Entity::Uplink(name.clone()), now);
            self.release(&Entity::Device(name), now);
        }
    }

    /// When something that paused is tried again.
    pub(super) fn poll_at(&self) -> Option<Instant> {
        let paused = |name: &Name| Some(self.paces.get(name)?.since + REPAIR_WINDOW);
        let repairs = self.repairs.iter().filter_map(paused).min();
        [self.standing.poll_at(), repairs]
            .into_iter()
            .flatten()
            .min()
    }

    /// Brings what is in place in line with what is wanted.
    pub(super) fn reconcile(&mut self, live: &mut Live, watch: &mut KernelWatch) {
        let Some(config) = self.wanted.clone() else {
            return;
        };
        for _ in 0..ATTEMPTS {
            let again = self.attempt(&config, live);
            let unseen = self.watch_all(&config, live, watch);
            if !again && !unseen {
                break;
            }
        }
    }

    /// Watches inside of all that is attached or refused. Returns whether there is any of which
    /// nothing was seen until now: what happened in it after it was looked at and before it was
    /// watched would be noticed by nobody, so it is looked at once more. Not what the NOS has refused,
    /// of which nothing inside is the cause.
    fn watch_all(&mut self, config: &Config, live: &mut Live, watch: &mut KernelWatch) -> bool {
        let attached = self.watched.watch_inside(watch, live);
        let hindered = std::mem::take(&mut live.hindered);
        let not_attached = self.watch_not_attached(config, live, watch);
        let (missing, mut refused): (Vec<_>, Vec<_>) = not_attached.into_iter().partition(|name| {
            matches!(
                self.interfaces.get(name),
                Some(InterfacePresence::Missing(_))
            )
        });
        refused.retain(|name| hindered.contains(name));
        let now = Instant::now();
        for name in &refused {
            self.release(&Entity::Container(name.clone()), now);
        }
        let unseen = !(attached.is_empty() && refused.is_empty() && missing.is_empty());
        self.repairs.extend(attached.into_iter().chain(missing));
        unseen
    }

    /// The state that `config` wants of what is there.
    pub(super) fn wanted_of(&mut self, config: &Config, live: &Live) -> State {
        let observed = self.observe(config, live);
        Want::of(config, &observed).state
    }

    /// Carries out what differs from `wanted`, and says what is refused.
    pub(super) fn take_up(
        &mut self,
        wanted: &State,
        config: &Config,
        live: &mut Live,
    ) -> Result<(), String> {
        let groups = plan(&self.state, wanted, &BTreeSet::new());
        let outcome = carry_out(groups, &mut self.state, live);
        if let Some(failure) = outcome.failed.first() {
            return Err(format!("{}: {}", failure.entity, failure.cause));
        }
        self.set_routes(config, live);
        Ok(())
    }

    /// Watches inside of namespaces to which something denies us access, such as an interface or a
    /// route of somebody else: that it goes away is worth another attempt. So is that an interface comes which
    /// somebody else makes. Returns those that were not watched before.
    fn watch_not_attached(
        &mut self,
        config: &Config,
        live: &Live,
        watch: &mut KernelWatch,
    ) -> Vec<Name> {
        let host = live.host.namespace().id();
        let mut new = Vec::new();
        for container in &config.containers {
            let name = &container.name;
            let attached = live.containers.get(name);
            let attached = attached.is_some_and(|container| container.link.is_some());
            let Some(NamespacePresence::Here(id)) = self.namespaces.get(name) else {
                continue;
            };
            if !attached && *id != host {
                let open = || open(&container.netns);
                if self.watched.watch_namespace(watch, name, *id, open) {
                    new.push(name.clone());
                }
            }
        }
        new
    }

    /// Carries out what differs. Returns whether something that was refused is to be tried again,
    /// as it was found where it is not any more.
    fn attempt(&mut self, config: &Config, live: &mut Live) -> bool {
        let now = Instant::now();
        live.vrfs.assign(named(config));
        self.standing.handle_timeout(now);
        let observed = self.observe(config, live);
        let Want {
            state: mut wanted,
            waiting,
            refused: unfit,
        } = Want::of(config, &observed);
        // What cannot be stays as it is; what is away is held by nothing, and gives up its ports.
        self.note(&waiting, Condition::Waiting, now);
        self.note(&unfit, Condition::Unfit, now);
        for entity in self.standing.held().iter().chain(unfit.keys()) {
            wanted.copy_entity(entity, &self.state);
        }
        let repairs = self.due_repairs(live, now);
        let mut replaced = self.replaced(&wanted);
        let groups = plan(&self.state, &wanted, &repairs);
        let before = present(&self.state);
        let claimed = self.claims_of(&groups);
        let outcome = carry_out(groups, &mut self.state, live);
        for event in differences(&before, &present(&self.state)) {
            self.tell(event);
        }
        self.tell_registrations(claimed);
        let refused = outcome.failed.iter().flat_map(|failure| &failure.group);
        let refused: Vec<_> = refused.cloned().collect();
        replaced.retain(|name, _| refused.contains(&Entity::Container(name.clone())));
        self.obstacles.extend(replaced);
        self.digest(outcome, &wanted, &unfit, now);
        self.set_routes(config, live);
        live.vrfs
            .retain(&named(config).chain(used(&self.state)).collect());
        let claims = self.state.claims.values();
        let networks = claims.filter_map(|claim| claim.network.as_ref());
        live.networks.retain(&networks.collect());
        self.note_repairs(&repairs, live, now);
        let moved = self.give_up_moved(live, now);
        self.follow_refused(config, &refused, now) || moved
    }

    /// What containers have registered before groups of steps that change it.
    fn claims_of(&self, groups: &[Group]) -> BTreeMap<Name, Option<Claim>> {
        let steps = groups.iter().flat_map(|group| &group.steps);
        let changes = steps.filter_map(|(_, step)| match step {
            Step::Claims(changes) => Some(changes),
            _ => None,
        });
        let names = changes.flatten().map(|(name, _)| name);
        names
            .map(|name| (name.clone(), self.state.claims.get(name).cloned()))
            .collect()
    }

    /// Tells what differs from what containers had registered.
    fn tell_registrations(&mut self, before: BTreeMap<Name, Option<Claim>>) {
        for (name, before) in before {
            let now = self.state.claims.get(&name);
            if now != before.as_ref() {
                let event = registration(&name, now);
                self.tell(event);
            }
        }
    }

    /// All that containers have registered.
    pub(super) fn registered(&self) -> Vec<Event> {
        let claims = self.state.claims.iter();
        claims
            .map(|(name, claim)| registration(name, Some(claim)))
            .collect()
    }

    /// Containers whose interface somebody moved elsewhere get another. Returns whether there are
    /// any.
    fn give_up_moved(&mut self, live: &mut Live, now: Instant) -> bool {
        let moved = std::mem::take(&mut live.moved);
        for name in &moved {
            info!(container = %name, "its interface is not there any more; it gets another");
            live.give_up_link(name);
            self.state.links.remove(name);
            self.state.captures.remove(&Entity::Container(name.clone()));
            self.follow_name(name, now);
        }
        !moved.is_empty()
    }

    /// Looks whether the namespaces of containers that were refused are other ones by now: some
    /// names give no event. Returns whether any is.
    fn follow_refused(&mut self, config: &Config, refused: &[Entity], now: Instant) -> bool {
        let mut any = false;
        for entity in refused {
            let Entity::Container(name) = entity else {
                continue;
            };
            let Some(container) = config.container(name) else {
                continue;
            };
            if self.namespaces.get(name) != Some(&namespace_presence(&container.netns)) {
                self.follow_name(name, now);
                any = true;
            }
        }
        any
    }

    /// Takes everything away.
    pub(super) fn undo_all(&mut self, live: &mut Live) {
        let nothing = State::default();
        let groups = plan(&self.state, &nothing, &BTreeSet::new());
        let outcome = carry_out(groups, &mut self.state, live);
        for failure in outcome.failed {
            warn!("{}: {}", failure.entity, failure.cause);
        }
        self.wanted = None;
    }

    fn observe(&mut self, config: &Config, live: &Live) -> Observed {
        let names = std::mem::take(&mut self.names);
        for container in &config.containers {
            let known = self.namespaces.contains_key(&container.name);
            if known && !names.contains(&container.name) {
                continue;
            }
            let presence = namespace_presence(&container.netns);
            self.namespaces.insert(container.name.clone(), presence);
        }
        self.observe_interfaces(config, &names);
        let uplinks = config.uplinks.iter();
        let links = uplinks.filter_map(|uplink| match &uplink.device {
            UplinkDevice::Packet(name) => {
                let presence = link_presence(&uplink.name, name.as_str(), live);
                Some((uplink.name.clone(), presence))
            }
            UplinkDevice::Tap(_) | UplinkDevice::Memif(_) | UplinkDevice::Nos => None,
        });
        Observed {
            host: live.host.namespace().id(),
            namespaces: self.namespaces.clone(),
            interfaces: self.interfaces.clone(),
            links: links.collect(),
        }
    }

    /// Looks at interfaces that somebody else makes, where something may have changed.
    fn observe_interfaces(&mut self, config: &Config, names: &BTreeSet<Name>) {
        let existing = config.containers.iter();
        let existing = existing.filter(|container| container.device == ContainerDevice::Existing);
        let mut before = std::mem::take(&mut self.interfaces);
        for container in existing {
            let name = &container.name;
            let Some(NamespacePresence::Here(_)) = self.namespaces.get(name) else {
                continue;
            };
            let changed = names.contains(name) || self.repairs.contains(name);
            let known = before.remove(name).filter(|_| !changed);
            let presence = known.unwrap_or_else(|| interface_presence(container));
            self.interfaces.insert(name.clone(), presence);
        }
    }

    /// Notes what is not in place, and logs what is new of it.
    fn note(
        &mut self,
        entities: &BTreeMap<Entity, String>,
        condition: fn(String) -> Condition,
        now: Instant,
    ) {
        for (entity, reason) in entities {
            let held = self
                .standing
                .of(entity)
                .is_some_and(|entry| entry.condition == condition(reason.clone()));
            if !held
                && self
                    .standing
                    .note(entity.clone(), condition(reason.clone()), now)
            {
                match condition(String::new()) {
                    Condition::Waiting(_) => info!("{entity} waits: {reason}"),
                    Condition::Unfit(_) | Condition::Refused(_) => {
                        error!("{entity}: {reason}");
                        self.tell_refused(entity, reason);
                    }
                }
            }
        }
    }

    /// Notes what became of a plan.
    fn digest(
        &mut self,
        outcome: Outcome<StepError>,
        wanted: &State,
        unfit: &BTreeMap<Entity, String>,
        now: Instant,
    ) {
        for failure in outcome.failed {
            let reason = failure.cause.to_string();
            for (entity, error) in &failure.not_undone {
                warn!("{entity} is not as it was: {error}");
            }
            for entity in &failure.group {
                let told = match entity.name() == failure.entity.name() {
                    true => reason.clone(),
                    false => format!("{}: {reason}", failure.entity),
                };
                let condition = Condition::Refused(told.clone());
                if self.standing.note(entity.clone(), condition, now) {
                    error!("{entity}: {told}");
                    self.tell_refused(entity, &told);
                }
            }
            self.standing.bind(&failure.group);
        }
        let (state, held) = (&self.state, self.standing.held());
        let settled = |entity: &Entity| {
            let (mut is, mut shall) = (State::default(), State::default());
            is.copy_entity(entity, state);
            shall.copy_entity(entity, wanted);
            is == shall && !held.contains(entity) && !unfit.contains_key(entity)
        };
        let waiting =
            |entry: &super::standing::Entry| matches!(entry.condition, Condition::Waiting(_));
        let present: Vec<Entity> = self
            .standing
            .iter()
            .filter(|(entity, entry)| {
                settled(entity) && (!waiting(entry) || !is_away(state, entity))
            })
            .map(|(entity, _)| entity.clone())
            .collect();
        for entity in present {
            if self.standing.clear(&entity).is_some() {
                info!("{entity} is as it is wanted");
            }
        }
    }

    fn tell_refused(&mut self, entity: &Entity, reason: &str) {
        self.tell(Event::Refused {
            subject: subject(entity),
            reason: reason.to_owned(),
        });
    }

    /// Installs the routes whose uplinks the NOS has.
    fn set_routes(&mut self, config: &Config, live: &mut Live) {
        let (routes, left) = routes_of(&config.routes, &self.state);
        if routes == self.state.routes && !live.routes_lost {
            return;
        }
        match live.set_routes(&routes) {
            Ok(()) => {
                self.state.routes = routes;
                self.standing.clear(&Entity::Routes);
            }
            Err(error) => {
                let condition = Condition::Refused(error.to_string());
                if self
                    .standing
                    .note(Entity::Routes, condition, Instant::now())
                {
                    error!("routes: {error}");
                    self.tell_refused(&Entity::Routes, &error.to_string());
                }
            }
        }
        for prefix in left {
            warn!(
                prefix,
                "some next hops are left out: the NOS lacks their uplink"
            );
        }
    }

    /// Containers to be looked at now. One whose interface has vanished is not repaired but
    /// attached again.
    fn due_repairs(&mut self, live: &Live, now: Instant) -> BTreeSet<Name> {
        let repairs = std::mem::take(&mut self.repairs);
        let (due, later): (BTreeSet<_>, BTreeSet<_>) = repairs.into_iter().partition(|name| {
            let pace = self.paces.get_mut(name);
            pace.is_none_or(|pace| pace.allows(now))
        });
        self.repairs = later;
        let attached = |name: &&Name| {
            let container = live.containers.get(*name);
            container.is_some_and(|container| container.link.is_some())
        };
        due.iter().filter(attached).cloned().collect()
    }

    fn note_repairs(&mut self, repaired: &BTreeSet<Name>, live: &Live, now: Instant) {
        for name in repaired {
            let container = live.containers.get(name);
            let link = container.and_then(|container| container.link.as_ref());
            if link.is_none_or(|link| !link.report.changed) {
                continue;
            }
            self.tell(Event::Healed {
                subject: subject(&Entity::Container(name.clone())),
            });
            let pace = self.paces.entry(name.clone()).or_insert(Pace {
                since: now,
                repairs: 0,
            });
            pace.repairs += 1;
            if pace.repairs == REPAIRS {
                warn!(container = %name, "somebody inside undoes what is repaired; waiting");
            }
        }
    }
}

/// Whether a namespace is there, by its name.
fn namespace_presence(netns: &NetnsRef) -> NamespacePresence {
    match open(netns) {
        Ok(namespace) => NamespacePresence::Here(namespace.id()),
        Err(error) => NamespacePresence::Missing(error.to_string()),
    }
}

/// Whether the interface of a container is there that somebody else makes, and what it is like.
fn interface_presence(container: &Container) -> InterfacePresence {
    let found = open(&container.netns)
        .map_err(|error| error.to_string())
        .and_then(|namespace| {
            let station = attach::existing_interface(&namespace, container.interface.as_str());
            station.map_err(|error| error.to_string())
        });
    match found {
        Err(reason) => InterfacePresence::Missing(reason),
        Ok(None) => {
            let Container {
                interface, netns, ..
            } = container;
            InterfacePresence::Missing(format!("there is no interface {interface} in {netns}"))
        }
        Ok(Some(facts)) => match facts.mac.filter(|mac| mac.is_unicast()) {
            None => InterfacePresence::Missing(format!("{} has no MAC address", facts.interface)),
            Some(mac) => InterfacePresence::Here(Station {
                mac,
                mtu: facts.mtu,
                segment: Some(facts.networks.into()),
            }),
        },
    }
}

/// Whether a configuration still speaks of an entity.
fn is_wanted(config: &Config, entity: &Entity) -> bool {
    match entity {
        Entity::Uplink(name) | Entity::Device(name) => config.uplink(name).is_some(),
        Entity::Container(name) => config.container(name).is_some(),
        Entity::Services(_) | Entity::Routes => true,
    }
}

/// Whether an entity that waits is still away.
fn is_away(state: &State, entity: &Entity) -> bool {
    match entity {
        Entity::Uplink(name) | Entity::Device(name) => !state.devices.contains_key(name),
        Entity::Container(name) => !state.links.contains_key(name),
        Entity::Services(_) | Entity::Routes => false,
    }
}

/// Whether an uplink's interface is there: by its name, or, once the uplink is open, under whatever
/// name it has by now.
fn link_presence(uplink: &Name, interface: &str, live: &Live) -> LinkPresence {
    let missing = || LinkPresence::Missing(format!("there is no interface {interface}"));
    let by_name = match live.host.link(interface) {
        Ok(facts) => facts,
        Err(error) => return LinkPresence::Missing(error.to_string()),
    };
    let open = live.uplinks.get(uplink);
    let index = open.and_then(|uplink| Some(uplink.device.as_ref()?.facts.index));
    let renamed = || live.host.link_by_index(index?).ok().flatten();
    match by_name.or_else(renamed) {
        None => missing(),
        Some(facts) => LinkPresence::Here {
            index: facts.index,
            mac: facts.mac,
            mtu: facts.mtu,
        },
    }
}
