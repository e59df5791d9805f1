//! What is attached and open: the handles of everything that a plan's steps are carried out on.
//!
//! `containers`, `uplinks`, `captures` and `services` are the steps of each kind; `executor` chooses
//! among them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use nos_shim::ident::{AttachmentId, Interface, UplinkId};
use nos_shim::shim::LinkState;
use nos_shim::vlan::VlanId;
use tracing::error;

use crate::control::attach::{Detachment, Host, Pace, ParkedSide, SideReport, VethPair, close_all};
use crate::control::config::{Name, VrfName};
use crate::control::handover::Descriptor;
use crate::control::kernel::takeover::Takeover;
use crate::control::kernel::{LinkFacts, Namespace, NamespaceError, NamespaceId};
use crate::control::plan::{Entity, Network};
use crate::data::device::{CaptureWriter, FrameDevice, Inspector, Shown};
use crate::data::event_loop::{Event, LoopDevice, Stopped};

use super::data_plane::DataPlane;
use super::giving::{FIRST_DEVICE, Keeping};
use super::identifiers::Identifiers;
use super::inherited::Inherited;
use super::journal::Journal;
use super::memif::Memifs;
use super::networks::NetworkNumbers;
use super::routes::ToldRoutes;
use super::vrfs::VrfNumbers;

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
    pub(super) memifs: Memifs,
    pub(super) containers: BTreeMap<Name, LiveContainer>,
    pub(super) uplinks: BTreeMap<Name, LiveUplink>,
    pub(super) captures: BTreeMap<Entity, CaptureWriter>,
    pub(super) attachment_ids: Identifiers<AttachmentId>,
    pub(super) uplink_ids: Identifiers<UplinkId>,
    /// What stands for uplinks in VRFs that they have left, as long as addresses are behind there.
    pub(super) left_behind: BTreeMap<(Name, VrfName), UplinkId>,
    pub(super) vrfs: VrfNumbers,
    pub(super) networks: NetworkNumbers,
    /// Devices that the data threads gave up before they were asked to: the news of that is still
    /// on its way, and old by now.
    stale: HashMap<Interface, u32>,
    /// Next hops over uplinks that have gone were taken out of the FIB with them.
    pub(super) routes_lost: bool,
    pub(super) told_routes: ToldRoutes,
    /// Containers whose interface was not found where it was, by the last attempt to change it.
    pub(super) moved: BTreeSet<Name>,
    /// Containers that could not be attached for what is, or happened, inside of their namespaces.
    pub(super) hindered: BTreeSet<Name>,
    /// Containers have been ports of bridges, of which some may be ours.
    pub(super) bridged: bool,
    /// How fast interfaces are taken away.
    pub(super) pace: Pace,
    /// Where containers are attached, for the next run.
    pub(super) journal: Journal,
    /// What outlives us with the service manager.
    pub(super) keeping: Keeping,
    /// What an earlier process had open, and is not taken up yet.
    pub(super) inherited: Inherited,
    /// The greatest number of a descriptor so far.
    pub(super) last_descriptor: Descriptor,
}

impl Live {
    pub(super) fn new(host: Host, plane: DataPlane, memifs: Memifs, keeping: Keeping) -> Self {
        Self {
            host,
            plane,
            memifs,
            containers: BTreeMap::new(),
            uplinks: BTreeMap::new(),
            captures: BTreeMap::new(),
            attachment_ids: Identifiers::default(),
            uplink_ids: Identifiers::default(),
            left_behind: BTreeMap::new(),
            vrfs: VrfNumbers::default(),
            networks: NetworkNumbers::default(),
            stale: HashMap::new(),
            routes_lost: false,
            told_routes: ToldRoutes::default(),
            moved: BTreeSet::new(),
            hindered: BTreeSet::new(),
            bridged: false,
            pace: Pace::BesideTraffic,
            journal: Journal::none(),
            keeping,
            inherited: Inherited::default(),
            last_descriptor: FIRST_DEVICE,
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
            Entity::Services(_) | Entity::Routes => None,
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
        self.plane.events().try_recv().ok()
    }

    /// Ends the data threads, and closes what they had.
    pub(super) fn stop(self) {
        self.journal.remove();
        let left = self.plane.stop();
        for (interface, _) in &left {
            error!(%interface, "its device was still open");
        }
        close_all(
            left.into_iter().map(|(_, device)| device.device).collect(),
            Pace::AtOnce,
        );
    }
}

/// A container that the NOS knows.
#[derive(Debug)]
pub(super) struct LiveContainer {
    pub(super) id: AttachmentId,
    pub(super) link: Option<LiveLink>,
}

impl LiveContainer {
    /// The kernel's number of the host end of a veth.
    pub(super) fn host_index(&self) -> Option<u32> {
        let link = self.link.as_ref()?;
        link.veth.as_ref().map(VethPair::host_index)
    }
}

/// The interface of a container, and what is inside.
#[derive(Debug)]
pub(super) struct LiveLink {
    pub(super) side: ParkedSide,
    pub(super) veth: Option<VethPair>,
    pub(super) inspector: Inspector,
    /// How it was when it was looked at last.
    pub(super) report: SideReport,
    /// By what the next process is told of it.
    pub(super) descriptor: Descriptor,
}

impl LiveLink {
    /// Where the container is.
    ///
    /// # Errors
    ///
    /// The namespace is not found by its name any more.
    pub(super) fn namespace(&self) -> Result<Namespace, NamespaceError> {
        self.side.namespace().open()
    }

    /// Which namespace it is in.
    pub(super) fn namespace_id(&self) -> NamespaceId {
        self.side.namespace().id()
    }

    /// What there is to take away, of a device that is `None` if it is away already.
    pub(super) fn into_detachment(
        self,
        device: Option<LoopDevice>,
        others_stay: bool,
    ) -> Detachment {
        Detachment {
            others_stay,
            side: Some(self.side),
            veth: self.veth,
            device: device.map(|device| device.device),
        }
    }
}

/// An uplink that the NOS knows.
#[derive(Debug)]
pub(super) struct LiveUplink {
    pub(super) id: UplinkId,
    pub(super) network: Network,
    pub(super) device: Option<LiveDevice>,
}

/// The device of an uplink before a data thread has it.
#[derive(Debug)]
pub(super) struct OpenUplink {
    pub(super) device: Box<dyn FrameDevice>,
    pub(super) facts: LinkFacts,
    pub(super) takeover: Option<Arc<Takeover>>,
    pub(super) descriptor: Descriptor,
    pub(super) long_frames: bool,
    pub(super) shown: Option<Shown>,
}

/// The device of an uplink.
#[derive(Debug)]
pub(super) struct LiveDevice {
    pub(super) inspector: Inspector,
    /// The interface, as the kernel told last. It is followed by its index.
    pub(super) facts: LinkFacts,
    /// What the NOS was told last.
    pub(super) told: LinkState,
    /// Keeps the kernel from answering what is ours, as long as any uplink of the interface has it.
    pub(super) takeover: Option<Arc<Takeover>>,
    /// The VLAN of the interface that is used; `None` for the frames without a tag.
    pub(super) vlan: Option<VlanId>,
    /// It is a packet socket, of which an interface may have several.
    pub(super) may_share: bool,
    /// Which frames of the interface the kernel was told to show it, if anything.
    pub(super) shown: Option<Shown>,
    /// By what the next process is told of it.
    pub(super) descriptor: Descriptor,
    /// It was opened for super-frames that are longer than a buffer.
    pub(super) long_frames: bool,
    /// Why no frames pass, where that is known of it.
    pub(super) down: Option<String>,
}
