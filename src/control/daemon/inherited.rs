//! What the daemon goes on with, that an earlier process had open ([`crate::control::handover`]).
//!
//! Everything is taken up by the steps by which it would be made, from the configuration of the earlier
//! process. Steps that would make what is not handed over are left out: they come with the reload that
//! follows.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use nos_shim::channel::Configuration;
use nos_shim::flows::{EchoFlow, EchoKey, FlowKey, NewFlow, Opener};
use nos_shim::ident::{AttachmentId, MacAddr, VrfId};
use nos_shim::ports::Transport;
use nos_shim::vlan::VlanId;
use tracing::info;

use crate::control::attach::{Attached, ParkedSide, Placement, SideReport, VethPair};
use crate::control::attach::{ContainerSpec, Families};
use crate::control::config::{Config, Name};
use crate::control::handover::{
    ContainerFacts, Descriptor, EchoFacts, FlowFacts, HandoverError, Inheritance, Memory,
    UplinkFacts,
};
use crate::control::kernel::Namespace;
use crate::control::plan::{OpenDevice, State};
use crate::data::device::{DeviceFacts, FrameDevice, OpenError, has_gone, received_device};

use super::giving::FIRST_DEVICE;
use super::live::{Live, OpenUplink, StepError};
use super::reconcile::Reconciler;
use super::vrfs::named;

/// Flows that the NOS is told of at a time, between bursts.
const FLOWS: usize = 1024;

/// What was handed over and is not taken up yet.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    containers: BTreeMap<Name, (ContainerFacts, Box<dyn FrameDevice>)>,
    uplinks: BTreeMap<Name, (UplinkFacts, Box<dyn FrameDevice>)>,
}

impl Inherited {
    /// What is left without its descriptor is left out, and so is what has lost its interface meanwhile: it is
    /// waited for as at any start.
    fn of(inheritance: &mut Inheritance) -> Result<Self, OpenError> {
        let mut inherited = Self::default();
        for facts in std::mem::take(&mut inheritance.manifest.containers) {
            let found = received(inheritance, &facts.name, facts.descriptor, &facts.device)?;
            if let Some((name, device)) = found {
                inherited.containers.insert(name, (facts, device));
            }
        }
        for facts in std::mem::take(&mut inheritance.manifest.uplinks) {
            let found = received(inheritance, &facts.name, facts.descriptor, &facts.device)?;
            if let Some((name, device)) = found {
                inherited.uplinks.insert(name, (facts, device));
            }
        }
        Ok(inherited)
    }

    /// Leaves of `wanted` what can be taken up, as it was.
    fn restrict(&self, wanted: &mut State) {
        wanted.captures.clear();
        wanted.devices.retain(|name, device| {
            let known = self.uplinks.get(name);
            known.is_some_and(|(facts, _)| {
                let same_vlan = facts.device.vlan == device.vlan.map(VlanId::get);
                same_vlan && (device.index == 0 || device.index == facts.index)
            })
        });
        wanted.links.retain(|name, link| {
            let Some((facts, _)) = self.containers.get(name) else {
                return false;
            };
            // What its interface is like; all else can be changed later.
            (link.mac, link.offload) = (facts.mac, facts.offload);
            let same_kind = facts.veth.is_some() == facts.device.is_packet();
            same_kind
                && link.namespace == facts.namespace
                && link.interface.as_str() == facts.interface
        });
    }
}

/// A device that was handed over, and its name.
type Received = (Name, Box<dyn FrameDevice>);

/// The device that was handed over under a name, if it still is one.
fn received(
    inheritance: &mut Inheritance,
    name: &str,
    descriptor: Descriptor,
    facts: &DeviceFacts,
) -> Result<Option<Received>, OpenError> {
    let (Ok(name), Some(descriptor)) = (name.parse(), inheritance.take(descriptor)) else {
        return Ok(None);
    };
    match received_device(descriptor, facts) {
        Ok(device) => Ok(Some((name, device))),
        Err(error) if has_gone(&error) => {
            info!(%name, "not taken up, as it has gone: {error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Live {
    /// Gets what an earlier process had open.
    pub(super) fn receive(&mut self, mut inheritance: Inheritance) -> Result<(), HandoverError> {
        if inheritance.manifest.host != self.host.namespace().id() {
            let why = "it runs in another network namespace".to_owned();
            return Err(HandoverError::Unfit(why));
        }
        if let Some(keeper) = inheritance.manifest.keeper {
            let Some(socket) = inheritance.take(keeper) else {
                let why = "what keeps the kernel from interfaces is missing".to_owned();
                return Err(HandoverError::Unfit(why));
            };
            self.host.receive_keeper(socket);
        }
        let known = inheritance.manifest.descriptors.iter().max();
        let known = known.copied().unwrap_or_default();
        self.last_descriptor = known.max(FIRST_DEVICE);
        self.inherited = Inherited::of(&mut inheritance)
            .map_err(|error| HandoverError::Unfit(error.to_string()))?;
        Ok(())
    }

    /// The number of another descriptor.
    pub(super) fn number_descriptor(&mut self) -> Descriptor {
        self.last_descriptor.0 += 1;
        self.last_descriptor
    }

    /// Takes up the interface of a container, if it was handed over.
    pub(super) fn receive_link(
        &mut self,
        name: &Name,
        namespace: &Namespace,
        spec: ContainerSpec,
        placement: Placement,
    ) -> Option<(Attached, Descriptor)> {
        let (facts, mut device) = self.inherited.containers.remove(name)?;
        if placement == Placement::Inside {
            // One that is down says so when it is used.
            let _ = device.set_persistent(true);
        }
        let interface = spec.interface.as_str().to_owned();
        let mtu = spec.mtu;
        let side = ParkedSide::received(namespace.name(), spec, facts.side);
        let veth = facts.veth.map(|veth| {
            let taken = veth
                .taken
                .then(|| self.host.taken(&veth.interface, veth.index));
            let end = (veth.interface, veth.index);
            VethPair::received(&self.host, end, veth.borrowed, taken.flatten())
        });
        let report = SideReport {
            interface,
            index: side.index(),
            up: true,
            mtu,
            families: Families::default(),
            warnings: Vec::new(),
            changed: false,
        };
        let attached = Attached {
            device,
            side,
            veth,
            report,
            adopted: true,
        };
        Some((attached, facts.descriptor))
    }

    /// Takes up the device of an uplink, if it was handed over.
    pub(super) fn receive_uplink(
        &mut self,
        name: &Name,
        wanted: &OpenDevice,
    ) -> Result<Option<OpenUplink>, StepError> {
        let Some((known, device)) = self.inherited.uplinks.remove(name) else {
            return Ok(None);
        };
        let facts = self.facts_of(wanted)?;
        let taken = || {
            let shared = self.shared_takeover(facts.index);
            shared.or_else(|| self.host.taken(&facts.name, facts.index).map(Arc::new))
        };
        let takeover = known.taken.then(taken).flatten();
        Ok(Some(OpenUplink {
            device,
            facts,
            takeover,
            descriptor: known.descriptor,
            long_frames: known.device.long_frames,
            // What it was, until those that share its interface have been taken up.
            shown: None,
        }))
    }

    /// Lets go of what was handed over and is not taken up: it has ended, or is not wanted.
    pub(super) fn release_inherited(&mut self) {
        let Inherited {
            containers,
            uplinks,
        } = std::mem::take(&mut self.inherited);
        let pairs = containers.into_values().filter_map(|(facts, _)| facts.veth);
        let pairs = pairs.map(|veth| (veth.interface, veth.index));
        let links = uplinks.into_values().filter(|(facts, _)| facts.taken);
        let links = links.map(|(facts, _)| (facts.device.name, facts.index));
        // Others may be on the same interface.
        let links = links.filter(|(_, index)| self.shared_takeover(*index).is_none());
        for (interface, index) in pairs.chain(links) {
            drop(self.host.taken(&interface, index));
        }
    }

    /// Tells the NOS what it remembered.
    pub(super) fn remember(&self, memory: Memory) {
        let Memory {
            neighbors,
            flows,
            echoes,
        } = memory;
        let mut by_uplink = BTreeMap::<_, Vec<(IpAddr, MacAddr)>>::new();
        for neighbor in neighbors {
            let known = by_uplink.entry(neighbor.uplink).or_default();
            known.push((neighbor.address, neighbor.mac));
        }
        for (name, uplink) in &self.uplinks {
            let Some(known) = by_uplink.remove(name.as_str()) else {
                continue;
            };
            let id = uplink.id;
            // Who has stopped is noticed elsewhere.
            let _ = self.plane.configure(Configuration::Neighbors(id, known));
        }
        let flows = flows.iter().filter_map(|flow| self.new_flow(flow));
        for some in flows.collect::<Vec<_>>().chunks(FLOWS) {
            let some = some.to_vec();
            let _ = self.plane.configure(Configuration::Flows(some));
        }
        let echoes = echoes.iter().filter_map(|echo| self.echo_flow(echo));
        for some in echoes.collect::<Vec<_>>().chunks(FLOWS) {
            let some = some.to_vec();
            let _ = self.plane.configure(Configuration::EchoFlows(some));
        }
    }

    fn echo_flow(&self, echo: &EchoFacts) -> Option<EchoFlow<AttachmentId>> {
        let owner = echo.owner.parse().ok()?;
        Some(EchoFlow {
            owner: self.containers.get::<Name>(&owner)?.id,
            key: EchoKey {
                vrf: VrfId(echo.vrf),
                local: echo.local,
                remote: echo.remote,
                id: echo.wire_id,
            },
            id: echo.id,
        })
    }

    fn new_flow(&self, flow: &FlowFacts) -> Option<NewFlow> {
        let owner = flow.owner.parse().ok()?;
        Some(NewFlow {
            key: FlowKey {
                vrf: VrfId(flow.vrf),
                transport: if flow.udp {
                    Transport::Udp
                } else {
                    Transport::Tcp
                },
                local: flow.local.ip(),
                local_port: flow.local.port(),
                remote: flow.remote.ip(),
                remote_port: flow.remote.port(),
            },
            owner: self.containers.get::<Name>(&owner)?.id,
            opener: if flow.by_peer {
                Opener::Peer
            } else {
                Opener::Owner
            },
            learnt: flow.learnt,
            segment: None,
            confirmed: flow.confirmed,
        })
    }

    /// Ends the data threads, and leaves everything in place.
    pub(super) fn leave(self) {
        for (_, mut device) in self.plane.stop() {
            device.leave();
        }
        let links = self.containers.into_values();
        for link in links.filter_map(|container| container.link) {
            if let Some(veth) = link.veth {
                veth.leave();
            }
        }
        let devices = self.uplinks.into_values();
        for device in devices.filter_map(|uplink| uplink.device) {
            if let Some(takeover) = device.takeover.and_then(Arc::into_inner) {
                takeover.leave();
            }
        }
    }
}

impl Reconciler {
    /// Takes up what was handed over, of `config` by which it was put in place.
    pub(super) fn inherit(
        &mut self,
        config: &Config,
        live: &mut Live,
    ) -> Result<(), HandoverError> {
        live.vrfs.assign(named(config));
        let mut wanted = self.wanted_of(config, live);
        live.inherited.restrict(&mut wanted);
        self.take_up(&wanted, config, live)
            .map_err(HandoverError::Unfit)?;
        live.share_out_all();
        info!(
            containers = self.state.links.len(),
            uplinks = self.state.devices.len(),
            "taken up from an earlier process"
        );
        Ok(())
    }
}
