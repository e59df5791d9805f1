//! The hands of the control plane: what is attached and open, and how a step of a plan is carried
//! out on it.
//!
//! Each step is one call that returns when the kernel and the NOS have accepted it, or with the
//! reason why not; then it has changed nothing. Steps that wait for the kernel are carried out
//! together where many come at once: containers that go, and claims of many containers.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;

use nos_shim::ident::{AttachmentId, Interface, UplinkId};
use tracing::error;

use crate::control::attach::{Host, close_all};
use crate::control::config::{Name, Route};
use crate::control::plan::{Change, ContainerLink, Entity, Executor, Phase, Step};
use crate::data::device::CaptureWriter;
use crate::data::event_loop::{Event, LoopDevice, Stopped};

use super::containers::LiveContainer;
use super::data_plane::DataPlane;
use super::identifiers::Identifiers;
use super::uplinks::LiveUplink;

/// Why a step was refused, in words for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StepError(String);

impl StepError {
    pub(super) fn new(reason: impl fmt::Display) -> Self {
        Self(reason.to_string())
    }
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Stopped> for StepError {
    fn from(stopped: Stopped) -> Self {
        Self::new(stopped)
    }
}

/// All that is attached and open.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) host: Host,
    pub(super) plane: DataPlane,
    pub(super) containers: BTreeMap<Name, LiveContainer>,
    pub(super) uplinks: BTreeMap<Name, LiveUplink>,
    pub(super) captures: BTreeMap<Entity, CaptureWriter>,
    pub(super) attachment_ids: Identifiers<AttachmentId>,
    pub(super) uplink_ids: Identifiers<UplinkId>,
    /// Devices that the data threads gave up before they were asked to: the news of that is still
    /// on its way, and old by now.
    stale: HashMap<Interface, u32>,
    /// Events that arrived while an answer was awaited.
    pub(super) backlog: VecDeque<Event>,
    /// Next hops over uplinks that have gone were taken out of the FIB with them.
    pub(super) routes_lost: bool,
}

impl Live {
    pub(super) fn new(host: Host, plane: DataPlane) -> Self {
        Self {
            host,
            plane,
            containers: BTreeMap::new(),
            uplinks: BTreeMap::new(),
            captures: BTreeMap::new(),
            attachment_ids: Identifiers::default(),
            uplink_ids: Identifiers::default(),
            stale: HashMap::new(),
            backlog: VecDeque::new(),
            routes_lost: false,
        }
    }

    /// The interface of the data path that an entity has.
    pub(super) fn interface_of(&self, entity: &Entity) -> Option<Interface> {
        match entity {
            Entity::Container(name) => {
                let container = self.containers.get(name)?;
                Some(Interface::Attachment(container.id))
            }
            Entity::Uplink(name) | Entity::Device(name) => {
                Some(Interface::Uplink(self.uplinks.get(name)?.id))
            }
            Entity::Services | Entity::Routes => None,
        }
    }

    /// Takes a device back from its data thread. One that is dead is on its way already.
    pub(super) fn take_device(&mut self, interface: Interface) -> Option<LoopDevice> {
        match self.plane.remove_device(interface) {
            Ok(Some(device)) => Some(device),
            Ok(None) => {
                *self.stale.entry(interface).or_default() += 1;
                None
            }
            Err(Stopped) => None,
        }
    }

    /// Whether news of a device's end is old: the device was given up before it arrived.
    pub(super) fn is_stale(&mut self, interface: Interface) -> bool {
        let Some(count) = self.stale.get_mut(&interface) else {
            return false;
        };
        *count -= 1;
        if *count == 0 {
            self.stale.remove(&interface);
        }
        true
    }

    /// The next event of the data threads.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        let waiting = self.backlog.pop_front();
        waiting.or_else(|| self.plane.events().try_recv().ok())
    }

    fn carry_out_one(&mut self, step: &Step) -> Result<(), StepError> {
        match step {
            Step::Link(name, change) => self.change_link(name, change),
            Step::Device(name, change) => self.change_device(name, change),
            Step::Capture(of, change) => self.change_capture(of, change),
            Step::Networks(changes) => self.change_networks(changes),
            Step::Claims(changes) => self.change_claims(changes),
            Step::Services { new, .. } => self.set_services(new),
        }
    }

    /// Installs static routes, in place of those before.
    pub(super) fn set_routes(&mut self, routes: &[Route]) -> Result<(), StepError> {
        let of_uplink = |name: &Name| self.uplinks.get(name).map(|uplink| uplink.id);
        let routes: Result<Vec<_>, _> = routes
            .iter()
            .map(|route| super::services::fib_route(route, of_uplink))
            .collect();
        let routes = routes?;
        let set = self.plane.on_nos(move |nos| nos.set_routes(routes))?;
        set.map_err(StepError::new)?;
        self.routes_lost = false;
        Ok(())
    }

    /// Ends the data threads, and closes what they had.
    pub(super) fn stop(self) {
        let left = self.plane.stop();
        for (interface, _) in &left {
            error!(%interface, "its device was still open");
        }
        close_all(left.into_iter().map(|(_, device)| device.device).collect());
    }
}

impl Executor for Live {
    type Error = StepError;

    fn carry_out(&mut self, _: Phase, steps: &[&Step]) -> Vec<Result<(), StepError>> {
        if let Some(leaving) = all_leaving(steps) {
            return self.detach(&leaving);
        }
        if let Some(claims) = all_claims(steps)
            && claims.len() > 1
            && self.change_claims(&claims.concat()).is_ok()
        {
            return steps.iter().map(|_| Ok(())).collect();
        }
        // One by one, to tell which of them is refused.
        let one_by_one = steps.iter().map(|step| self.carry_out_one(step));
        one_by_one.collect()
    }
}

/// The containers, if all steps are of containers that go.
fn all_leaving(steps: &[&Step]) -> Option<Vec<Name>> {
    let leaving = |step: &&Step| match step {
        Step::Link(
            name,
            Change::<ContainerLink> {
                old: Some(_),
                new: None,
            },
        ) => Some(name.clone()),
        _ => None,
    };
    steps.iter().map(leaving).collect()
}

/// The claims, if all steps change some.
fn all_claims(steps: &[&Step]) -> Option<Vec<super::containers::ClaimChanges>> {
    let claims = |step: &&Step| match step {
        Step::Claims(changes) => Some(changes.clone()),
        _ => None,
    };
    steps.iter().map(claims).collect()
}
