//! A container's side: put in place, kept up to date, and taken away again.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use super::interior::{Found, Interior};
use super::local_ports::{PortsBefore, Refused};
use super::plan::{Effect, Families, Occasion, Plan, Step};
use super::{AttachError, ContainerSpec, Warning};
use crate::control::kernel::netlink::Request;
use crate::control::kernel::{KernelError, LinkFacts, Namespace, NamespaceError, NamespaceName};

/// How often a container is read whose kernel refuses what it needs.
const LOOKS: usize = 3;

/// A container's namespace in the state that a [`ContainerSpec`] asks for.
///
/// Dropping the value undoes it.
#[derive(Debug)]
pub struct ContainerSide {
    namespace: Namespace,
    state: SideState,
    detached: bool,
}

/// A [`ContainerSide`] that does not keep its namespace alive.
///
/// Dropping the value leaves everything in place.
#[derive(Debug)]
#[must_use = "the container's side stays as it is unless it is resumed and detached"]
pub struct ParkedSide {
    name: NamespaceName,
    state: SideState,
}

/// What has to be remembered of a container's side.
#[derive(Clone, Debug)]
struct SideState {
    spec: ContainerSpec,
    /// Index of the interface inside, which it keeps when it is renamed.
    index: u32,
    /// Addresses added by this value, for kernels that do not keep the mark.
    added: BTreeSet<IpAddr>,
    /// The ports before us.
    ports_before: PortsBefore,
}

/// What another process needs to know of a container's side beside its [`ContainerSpec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SideFacts {
    index: u32,
    added: BTreeSet<IpAddr>,
    ports_before: PortsBefore,
}

/// How a container's side is, after it was put in place or looked after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideReport {
    /// Present name of the interface: somebody inside may have renamed it.
    pub interface: String,
    /// Its index in the container's namespace.
    pub index: u32,
    /// Whether it is up. Once attached it is not set up again: it is down by somebody's will.
    pub up: bool,
    /// Its MTU in octets.
    pub mtu: u32,
    /// The families that the container speaks.
    pub families: Families,
    /// What was asked for and is left out.
    pub warnings: Vec<Warning>,
    /// Whether anything had to be changed.
    pub changed: bool,
}

impl ParkedSide {
    /// Opens the namespace again.
    ///
    /// # Errors
    /// It cannot be found by its name any more; most likely it was deleted, and there is nothing
    /// to change or undo.
    pub fn resume(&self) -> Result<ContainerSide, NamespaceError> {
        Ok(ContainerSide {
            namespace: self.name.open()?,
            state: self.state.clone(),
            detached: false,
        })
    }

    /// What another process needs to go on with it.
    #[must_use]
    pub fn facts(&self) -> SideFacts {
        let SideState {
            index,
            added,
            ports_before,
            ..
        } = self.state.clone();
        SideFacts {
            index,
            added,
            ports_before,
        }
    }

    /// Goes on with a side that another process has put in place as `spec` asks for.
    pub fn received(name: NamespaceName, spec: ContainerSpec, facts: SideFacts) -> Self {
        let SideFacts {
            index,
            added,
            ports_before,
        } = facts;
        let state = SideState {
            spec,
            index,
            added,
            ports_before,
        };
        Self { name, state }
    }

    /// By what the container's namespace can be opened.
    #[must_use]
    pub fn namespace(&self) -> &NamespaceName {
        &self.name
    }

    /// The state asked for.
    #[must_use]
    pub fn spec(&self) -> &ContainerSpec {
        &self.state.spec
    }

    /// Index of the interface inside.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.state.index
    }

    /// Changes what differs from `spec`: see [`ContainerSide::update`].
    ///
    /// # Errors
    /// The namespace is gone, the spec cannot be met, or the kernel refuses a part.
    pub fn update(&mut self, spec: ContainerSpec) -> Result<SideReport, AttachError> {
        let mut side = self.resume()?;
        let updated = side.update(spec);
        *self = side.park();
        updated
    }

    /// Puts back what was damaged or has vanished. A healthy container is only read.
    ///
    /// # Errors
    /// As for [`Self::update`].
    pub fn repair(&mut self) -> Result<SideReport, AttachError> {
        self.update(self.state.spec.clone())
    }

    /// Undoes it: see [`ContainerSide::detach`]. Where other attachments of the namespace stay, what is
    /// theirs as well is left to them.
    ///
    /// # Errors
    /// The namespace is gone, or the kernel refuses a part.
    pub fn detach(self, others_stay: bool) -> Result<(), AttachError> {
        let side = self.resume()?;
        match others_stay {
            true => side.detach_beside_others(),
            false => side.detach(),
        }
    }

    /// Takes over from another attachment of the namespace, which goes, how the ports were before both.
    pub fn inherit_ports(&mut self, other: &Self) {
        if other.state.ports_before != PortsBefore::default() {
            self.state.ports_before = other.state.ports_before.clone();
        }
    }
}

impl ContainerSide {
    /// Brings the namespace into the state that `spec` asks for. The interface must exist, made
    /// after [`super::make_room`].
    ///
    /// On an error everything done so far is undone.
    ///
    /// # Errors
    /// The spec cannot be met, or the kernel refuses a part of it.
    pub fn configure(
        namespace: &Namespace,
        spec: ContainerSpec,
    ) -> Result<(Self, SideReport), AttachError> {
        spec.validate()?;
        Self::configure_through(&Interior::open(namespace)?, namespace, spec)
    }

    /// The same, with what a visit has brought back.
    pub(super) fn configure_through(
        interior: &Interior,
        namespace: &Namespace,
        spec: ContainerSpec,
    ) -> Result<(Self, SideReport), AttachError> {
        let links = interior.links_by_name(spec.interface.as_str())?;
        let mut side = Self {
            namespace: namespace.clone(),
            state: SideState {
                index: links.1.index,
                spec,
                added: BTreeSet::new(),
                ports_before: PortsBefore::default(),
            },
            detached: false,
        };
        match side.apply(interior, links, Occasion::Attach) {
            Ok(report) => Ok((side, report)),
            Err(error) => {
                side.detached = true;
                side.undo_logged(interior);
                Err(error)
            }
        }
    }

    /// Changes what differs from `spec` and leaves the rest: connections of addresses that stay
    /// live on. With the same spec it repairs what was changed from inside.
    ///
    /// The interface is followed by its index, under whatever name it has. One that is down stays
    /// down, and has no routes until it is up again.
    ///
    /// # Errors
    /// The spec cannot be met or the kernel refuses a part; the other parts are done, and another
    /// call goes on from there.
    pub fn update(&mut self, spec: ContainerSpec) -> Result<SideReport, AttachError> {
        spec.validate()?;
        let present = &self.state.spec;
        if spec.name != present.name || spec.interface != present.interface {
            return Err(AttachError::Identity(present.name.clone()));
        }
        self.state.spec = spec;
        let interior = Interior::open(&self.namespace)?;
        let links = self.find_links(&interior)?;
        self.apply(&interior, links, Occasion::Update)
    }

    /// `lo`, and the interface under whatever name it has now.
    fn find_links(&mut self, interior: &Interior) -> Result<(LinkFacts, LinkFacts), AttachError> {
        let SideState { index, spec, .. } = &self.state;
        let links = interior.links_by_index(*index, &spec.name, spec.interface.as_str())?;
        self.state.index = links.1.index;
        Ok(links)
    }

    /// Removes addresses and routes of a killed run, and with `ports` its settings of them.
    pub(super) fn undo_leftovers(
        interior: &Interior,
        namespace: &Namespace,
        ports: bool,
    ) -> Result<(), AttachError> {
        if ports {
            let restored = interior.ports.restore_leftover();
            restored.map_err(|refused| refused.explain(namespace))?;
        }
        let steps = our_removal(interior, &BTreeSet::new())?;
        let requests: Vec<&Request> = steps.iter().map(|step| &step.request).collect();
        for (step, outcome) in steps.iter().zip(interior.netlink.submit(&requests)) {
            match outcome {
                Err(error) if !error.is(step.tolerated) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Undoes it: routes, addresses and settings of ours go, those of others stay. What is gone
    /// already is no error. The interface goes with its owner.
    ///
    /// # Errors
    /// The first refusal; the rest is undone all the same.
    pub fn detach(mut self) -> Result<(), AttachError> {
        self.detached = true;
        let interior = Interior::open(&self.namespace)?;
        self.undo(&interior)
    }

    /// The same beside other attachments of the namespace, which stay: they have the ports and the rules.
    fn detach_beside_others(mut self) -> Result<(), AttachError> {
        self.detached = true;
        let interior = Interior::open(&self.namespace)?;
        self.remove_own(&interior)
    }

    /// Leaves everything in place, as a killed process would.
    pub fn abandon(mut self) {
        self.detached = true;
    }

    /// Lets go of the namespace, so that the kernel can delete it together with the container, and
    /// leaves everything in place.
    pub fn park(mut self) -> ParkedSide {
        self.detached = true;
        ParkedSide {
            name: self.namespace.name(),
            state: self.state.clone(),
        }
    }

    /// What somebody inside changes between our reading and writing makes the kernel refuse what we
    /// write: a route from an address that has just gone, say. So what is refused is read again.
    fn apply(
        &mut self,
        interior: &Interior,
        mut links: (LinkFacts, LinkFacts),
        occasion: Occasion,
    ) -> Result<SideReport, AttachError> {
        for _ in 1..LOOKS {
            match self.apply_once(interior, links, occasion) {
                Err(AttachError::Kernel(KernelError::Netlink(refused))) => {
                    debug!("'{}' is looked at again: {refused}", self.state.spec.name);
                }
                done => return done,
            }
            links = self.find_links(interior)?;
        }
        self.apply_once(interior, links, occasion)
    }

    fn apply_once(
        &mut self,
        interior: &Interior,
        (lo, link): (LinkFacts, LinkFacts),
        occasion: Occasion,
    ) -> Result<SideReport, AttachError> {
        let found = interior.observe(lo, link, &self.state.spec)?;
        let state = &self.state;
        let plan = Plan::new(&state.spec, &found, &state.added, occasion, &self.namespace)?;
        if occasion == Occasion::Attach {
            self.refuse_foreign(&plan)?;
        }
        // Ports first: no flow shall start outside the range.
        let ports_changed = self.set_ports(interior, found.has_leftovers())?;
        let report = self.report(&plan, &found, ports_changed);
        self.carry_out(interior, plan.steps.iter())?;
        self.carry_out(interior, plan.last.iter())?;
        self.refuse_foreign(&plan)?;
        self.wait_local(interior, &plan, &found)?;
        Ok(report)
    }

    fn report(&self, plan: &Plan, found: &Found, ports_changed: bool) -> SideReport {
        SideReport {
            interface: found.link.name.clone(),
            index: found.link.index,
            up: plan.up,
            mtu: self.state.spec.mtu,
            families: plan.families,
            warnings: plan.warnings.clone(),
            changed: ports_changed || !(plan.steps.is_empty() && plan.last.is_empty()),
        }
    }

    fn refuse_foreign(&self, plan: &Plan) -> Result<(), AttachError> {
        match &plan.foreign_route {
            None => Ok(()),
            Some(route) => Err(AttachError::ForeignRoute {
                route: route.clone(),
                namespace: self.namespace.to_string(),
            }),
        }
    }

    /// Has the kernel carry out all steps at once. The first refusal is the error; the steps
    /// behind it are done all the same.
    fn carry_out<'a>(
        &mut self,
        interior: &Interior,
        steps: impl Iterator<Item = &'a Step> + Clone,
    ) -> Result<(), AttachError> {
        let requests: Vec<&Request> = steps.clone().map(|step| &step.request).collect();
        let mut first = Ok(());
        for (step, outcome) in steps.zip(interior.netlink.submit(&requests)) {
            match outcome {
                Ok(()) => self.state.record(step.effect),
                Err(error) if error.is(step.tolerated) => {}
                Err(error) if first.is_ok() => first = Err(error.into()),
                Err(error) => debug!("'{}': {error}", self.state.spec.name),
            }
        }
        first
    }

    /// Without this, packets to a new IPv6 address would go elsewhere for a moment.
    fn wait_local(
        &self,
        interior: &Interior,
        plan: &Plan,
        found: &Found,
    ) -> Result<(), AttachError> {
        let netlink = &interior.netlink;
        netlink.wait_local(&self.namespace, found.lo.index, &plan.fresh_on_lo)?;
        Ok(netlink.wait_local(
            &self.namespace,
            found.link.index,
            plan.fresh_on_link.as_slice(),
        )?)
    }

    fn undo(&mut self, interior: &Interior) -> Result<(), AttachError> {
        let ports = self.restore_ports(interior);
        let removed = self.remove_ours(interior);
        match (ports, removed) {
            (Ok(_), removed) => removed,
            (Err(error), Ok(())) => Err(error),
            (Err(first), Err(second)) => {
                warn!("while detaching '{}': {second}", self.state.spec.name);
                Err(first)
            }
        }
    }

    fn remove_ours(&mut self, interior: &Interior) -> Result<(), AttachError> {
        let steps = our_removal(interior, &self.state.added)?;
        self.carry_out(interior, steps.iter())
    }

    /// Removes what is of this attachment alone.
    fn remove_own(&mut self, interior: &Interior) -> Result<(), AttachError> {
        let lo = interior.netlink.existing_link("lo")?.index;
        let addresses = interior.netlink.addresses()?;
        let routes = interior.our_routes()?;
        let SideState {
            spec, index, added, ..
        } = &self.state;
        let steps = Plan::undo_one(spec, (lo, *index), &addresses, routes, added);
        self.carry_out(interior, steps.iter())
    }

    fn undo_logged(&mut self, interior: &Interior) {
        let undone = match interior.has_others(&self.state.spec.name) {
            Ok(true) => self.remove_own(interior),
            Ok(false) | Err(_) => self.undo(interior),
        };
        if let Err(error) = undone {
            warn!("cannot detach '{}': {error}", self.state.spec.name);
        }
    }

    /// `leftover`: an earlier run was killed here, so the present ports may be its. Returns whether
    /// they were changed.
    fn set_ports(&mut self, interior: &Interior, leftover: bool) -> Result<bool, AttachError> {
        let SideState {
            spec, ports_before, ..
        } = &mut self.state;
        let set = interior.ports.set(&spec.ephemeral, ports_before, leftover);
        set.map_err(|refused| refused.explain(&self.namespace))
    }

    fn restore_ports(&mut self, interior: &Interior) -> Result<bool, AttachError> {
        let restored = interior.ports.restore(&mut self.state.ports_before);
        restored.map_err(|refused| refused.explain(&self.namespace))
    }
}

/// What takes our addresses and routes away.
fn our_removal(interior: &Interior, added: &BTreeSet<IpAddr>) -> Result<Vec<Step>, AttachError> {
    let lo = interior.netlink.existing_link("lo")?.index;
    let addresses = interior.netlink.addresses()?;
    let (routes, rules) = (interior.our_routes()?, interior.our_rules()?);
    Ok(Plan::undo(lo, &addresses, routes, &rules, added))
}

impl Refused {
    fn explain(self, namespace: &Namespace) -> AttachError {
        let Self { key, value, source } = self;
        AttachError::Sysctl {
            key: key.to_owned(),
            value: value.replace('\t', " "),
            namespace: namespace.to_string(),
            source,
        }
    }
}

impl SideState {
    fn record(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Added(address) => {
                self.added.insert(address);
            }
            Effect::Removed(address) => {
                self.added.remove(&address);
            }
        }
    }
}

impl Drop for ContainerSide {
    fn drop(&mut self) {
        if self.detached {
            return;
        }
        match Interior::open(&self.namespace) {
            Ok(interior) => self.undo_logged(&interior),
            Err(error) => warn!("cannot detach '{}': {error}", self.state.spec.name),
        }
    }
}
