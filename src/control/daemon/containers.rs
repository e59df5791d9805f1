//! Steps of containers: what they register with the NOS, and their interfaces.

use std::sync::Arc;

use nos_shim::ident::{AttachmentId, Interface, MacAddr, NetworkId, VrfId};
use nos_shim::ports::{
    Claim as PortClaim, ClaimKind, ExchangeRefused, PortRange, RegistrationRefused, Transport,
};
use tracing::{info, warn};

use crate::control::attach::{
    AttachError, AttachRequest, Attached, ContainerSpec, DEFAULT_TX_QUEUE_LEN, Detachment,
    DeviceRequest, LinkPlace, Placement, attach, detach_all, remove_leftovers,
    remove_unused_bridges,
};
use crate::control::config::{Config, ContainerDevice, Name, NetnsRef, VrfName};
use crate::control::kernel::watch::{NameKind, NetnsName};
use crate::control::kernel::{KernelError, Namespace, NamespaceError};
use crate::control::plan::{Change, Claim, ContainerLink, Entity};
use crate::data::event_loop::{AddDeviceError, LoopDevice};
use crate::data::relay::{AttachmentConfig, AttachmentExchange, LinkLocal};

use super::journal::Entry;
use super::live::{Live, LiveContainer, LiveLink, StepError};
use super::nos::ExchangeError;

/// The numbers of what a container is in.
type Where = (VrfId, NetworkId, Option<LinkLocal>);

/// Changes of what containers have registered.
pub(super) type ClaimChanges = Vec<(Name, Change<Claim>)>;

/// The MAC address of the relay on a container's link.
pub(super) fn relay_mac(name: &Name) -> MacAddr {
    MacAddr::stable(&format!("relay {name}"))
}

/// The name of a namespace, for the kernel's watch.
pub(super) fn netns_name(netns: &NetnsRef) -> NetnsName {
    match netns {
        NetnsRef::Path(path) => NetnsName::Path(path.clone()),
        NetnsRef::Pid(pid) => NetnsName::Process(*pid),
    }
}

/// Opens the namespace that a name leads to now.
pub(super) fn open(netns: &NetnsRef) -> Result<Namespace, NamespaceError> {
    match netns {
        NetnsRef::Path(path) => Namespace::open(path),
        NetnsRef::Pid(pid) => Namespace::of_process(pid.get()),
    }
}

impl Live {
    /// Asks the NOS for a change of who owns which ports, and waits for its answer.
    pub(super) fn change_claims(&mut self, changes: &ClaimChanges) -> Result<(), StepError> {
        let mut exchange = AttachmentExchange::default();
        let mut fresh = Vec::new();
        for (name, change) in changes {
            let known = self.containers.get(name).map(|container| container.id);
            let Some(new) = &change.new else {
                exchange.detach.extend(known);
                continue;
            };
            let place = match self.place_of(new) {
                Ok(place) => place,
                Err(error) => {
                    self.release(&fresh);
                    return Err(error);
                }
            };
            let Some(id) = known.or_else(|| self.attachment_ids.take()) else {
                self.release(&fresh);
                return Err(StepError::new("all 65,536 attachments are in use"));
            };
            if known.is_none() {
                fresh.push((name.clone(), id));
            }
            exchange.attach.push(attachment(id, name, place, new));
        }
        if let Err(error) = self.exchange(exchange) {
            self.release(&fresh);
            return Err(error);
        }
        for (name, id) in fresh {
            self.containers
                .insert(name, LiveContainer { id, link: None });
        }
        for (name, _) in changes.iter().filter(|(_, change)| change.new.is_none()) {
            if let Some(gone) = self.containers.remove(name) {
                self.attachment_ids.give_back(gone.id);
            }
        }
        Ok(())
    }

    /// The numbers of what a container is in.
    fn place_of(&mut self, claim: &Claim) -> Result<Where, StepError> {
        let vrf = self.vrfs.id(&claim.vrf)?;
        let network = self.networks.number(claim.network.as_ref());
        let Some(shared) = &claim.link_local else {
            return Ok((vrf, network, None));
        };
        let missing = || StepError::new(format_args!("there is no uplink '{}'", shared.uplink));
        let uplink = self.uplinks.get(&shared.uplink).ok_or_else(missing)?;
        let link_local = LinkLocal {
            uplink: uplink.id,
            address: shared.address,
        };
        Ok((vrf, network, Some(link_local)))
    }

    /// Gives back identifiers whose attachments were refused; the relay lets go of them.
    fn release(&mut self, fresh: &[(Name, AttachmentId)]) {
        for &(_, id) in fresh {
            // It is unknown if the relay never heard of it.
            let _ = self.plane.on_relay(move |relay| relay.detach(id));
            self.attachment_ids.give_back(id);
        }
    }

    fn exchange(&self, exchange: AttachmentExchange) -> Result<(), StepError> {
        self.plane.exchange(exchange).map_err(|error| match error {
            ExchangeError::Refused(refused) => self.explained(&refused),
            other => StepError::new(other),
        })
    }

    /// Why the NOS refuses, with the name of the VRF, of which it knows the number.
    fn explained(&self, refused: &ExchangeRefused) -> StepError {
        match refused.reason {
            RegistrationRefused::UnknownAddress { address, vrf } => {
                let names = self.vrfs.names();
                let name = names.get(&vrf).unwrap_or(&VrfName::Default);
                StepError::new(format_args!(
                    "{address} is not an address of the NOS in VRF \"{name}\""
                ))
            }
            _ => StepError::new(refused),
        }
    }

    pub(super) fn change_link(
        &mut self,
        name: &Name,
        change: &Change<ContainerLink>,
    ) -> Result<(), StepError> {
        match (&change.old, &change.new) {
            (_, None) => self
                .detach(std::slice::from_ref(name))
                .pop()
                .unwrap_or(Ok(())),
            (None, Some(new)) => self.attach(name, new),
            (Some(_), Some(new)) => self.update(name, new),
        }
    }

    fn attach(&mut self, name: &Name, link: &ContainerLink) -> Result<(), StepError> {
        let Some(container) = self.containers.get(name) else {
            return Err(StepError::new("it is not registered"));
        };
        let id = container.id;
        let namespace = open(&link.netns).map_err(StepError::new)?;
        if namespace.id() != link.namespace {
            return Err(StepError::new(format_args!(
                "{namespace} is another one by now"
            )));
        }
        let entry = Entry {
            netns: link.netns.clone(),
            ports: !link.ephemeral.is_empty(),
        };
        self.journal.attached(name, entry);
        self.bridged |= matches!(link.device, ContainerDevice::Bridge(_));
        let wanted = request(name, link);
        let received = self.receive_link(name, &namespace, wanted.spec.clone(), wanted.placement);
        let (attached, descriptor) = match received {
            Some(received) => received,
            None => {
                let attached = attach(&self.host, &namespace, wanted).map_err(|error| {
                    self.hindered.insert(name.clone());
                    StepError::new(error)
                })?;
                (attached, self.number_descriptor())
            }
        };
        let Attached {
            device,
            side,
            veth,
            report,
            adopted,
        } = attached;
        let live = LiveLink {
            side,
            veth,
            inspector: device.inspector(),
            report,
            descriptor,
        };
        let added = self
            .plane
            .add_device(Interface::Attachment(id), LoopDevice::from(device));
        if let Err(AddDeviceError { device, source }) = added {
            let others_stay = self.leave_to_others(&live, std::slice::from_ref(name));
            let detachment = live.into_detachment(device, others_stay);
            log_detached(name, self.take_away(vec![detachment]).pop());
            return Err(StepError::new(source));
        }
        for warning in &live.report.warnings {
            warn!(container = %name, "{warning}");
        }
        let how = if adopted { "adopted" } else { "attached" };
        info!(container = %name, device = %link.device, netns = %link.netns, "{how}");
        if let Some(container) = self.containers.get_mut(name) {
            container.link = Some(live);
        }
        Ok(())
    }

    /// Follows a change of addresses, ephemeral range or MTU, and puts back what somebody took away
    /// inside.
    fn update(&mut self, name: &Name, link: &ContainerLink) -> Result<(), StepError> {
        let container = self.containers.get_mut(name);
        let Some(live) = container.and_then(|container| container.link.as_mut()) else {
            return Err(StepError::new("it is not attached"));
        };
        let spec = spec(name, link);
        let joined = match (&live.veth, &link.device) {
            (Some(veth), ContainerDevice::Bridge(bridge)) => {
                veth.join(bridge).map_err(StepError::new)?
            }
            _ => false,
        };
        if let Some(veth) = &live.veth
            && live.side.spec().mtu != spec.mtu
        {
            veth.set_mtu(spec.mtu).map_err(StepError::new)?;
        }
        let mut report = live.side.update(spec).map_err(|error| {
            if error.is_interface_gone() {
                self.moved.insert(name.clone());
            }
            StepError::new(error)
        })?;
        for warning in &report.warnings {
            if !live.report.warnings.contains(warning) {
                warn!(container = %name, "{warning}");
            }
        }
        if report.changed {
            info!(container = %name, "changed inside");
        }
        if joined {
            info!(container = %name, device = %link.device, "it is a port of the bridge again");
            report.changed = true;
        }
        live.report = report;
        Ok(())
    }

    /// Removes what a run that was killed left of containers that `config` does not have, or has
    /// elsewhere.
    pub(super) fn remove_leftovers(&mut self, config: &Config) {
        for (name, entry) in self.journal.entries().clone() {
            let wanted = config.container(&name);
            if wanted.is_some_and(|wanted| wanted.netns == entry.netns) {
                continue;
            }
            // Without its namespace there is nothing left.
            let removed = open(&entry.netns).map_or(Ok(()), |namespace| {
                remove_leftovers(&self.host, &namespace, name.as_str(), entry.ports)
            });
            match removed {
                Ok(()) => {
                    info!(container = %name, netns = %entry.netns, "nothing is left of it");
                    self.journal.detached(&name);
                }
                Err(error) => warn!(container = %name, %error, "an earlier run left it"),
            }
        }
        self.remove_unused_bridges();
    }

    /// Takes away what there is of containers, and bridges of ours that have lost their last port by it. Says of
    /// each what came of it.
    pub(super) fn take_away(&self, detachments: Vec<Detachment>) -> Vec<Result<(), AttachError>> {
        if detachments.is_empty() {
            return Vec::new();
        }
        let outcomes = detach_all(&self.host, detachments, self.pace);
        if self.bridged {
            self.remove_unused_bridges();
        }
        outcomes
    }

    fn remove_unused_bridges(&self) {
        if let Err(error) = remove_unused_bridges(&self.host) {
            warn!(%error, "cannot look for bridges that are not used any more");
        }
    }

    /// Gives up the interface of a container that has it no more, as somebody moved it to another
    /// namespace: its device would live on there.
    pub(super) fn give_up_link(&mut self, name: &Name) {
        self.end_captures(&[&Entity::Container(name.clone())]);
        self.detach(std::slice::from_ref(name));
    }

    /// Leaves what several attachments of a namespace have in common to one that stays when all of these go.
    /// Returns whether there is any.
    pub(super) fn leave_to_others(&mut self, link: &LiveLink, going: &[Name]) -> bool {
        let namespace = link.namespace_id();
        let others = self.containers.iter_mut();
        let mut others = others.filter(|(name, _)| !going.contains(name));
        let other = others.find_map(|(_, other)| {
            let other = other.link.as_mut()?;
            (other.namespace_id() == namespace).then_some(other)
        });
        if let Some(other) = other {
            other.side.inherit_ports(&link.side);
            return true;
        }
        false
    }

    /// Takes containers' interfaces away. What cannot be undone inside is logged, and the rest is
    /// undone: a container that goes can always go.
    pub(super) fn detach(&mut self, names: &[Name]) -> Vec<Result<(), StepError>> {
        let links = names
            .iter()
            .filter_map(|name| self.containers.get(name)?.link.as_ref());
        let descriptors: Vec<_> = links.map(|link| link.descriptor).collect();
        self.keeping.forget(&descriptors);
        let mut detachments = Vec::with_capacity(names.len());
        for name in names {
            let container = self.containers.get_mut(name);
            let taken =
                container.and_then(|container| Some((container.id, container.link.take()?)));
            let detachment = taken.map(|(id, link)| {
                let device = self.take_device(Interface::Attachment(id));
                let others_stay = self.leave_to_others(&link, names);
                link.into_detachment(device, others_stay)
            });
            detachments.push(detachment.unwrap_or_default());
        }
        let outcomes = self.take_away(detachments);
        for (name, outcome) in names.iter().zip(outcomes) {
            log_detached(name, Some(outcome));
            self.journal.detached(name);
        }
        names.iter().map(|_| Ok(())).collect()
    }
}

fn log_detached(name: &Name, outcome: Option<Result<(), AttachError>>) {
    match outcome {
        Some(Ok(())) | None => info!(container = %name, "detached"),
        // Its namespace ended before it: nothing was left to undo.
        Some(Err(AttachError::Kernel(KernelError::Namespace(error)))) => {
            info!(container = %name, %error, "detached");
        }
        Some(Err(error)) => {
            warn!(container = %name, %error, "not all of the container's side could be undone");
        }
    }
}

/// What the relay has to know of a container.
fn attachment(
    id: AttachmentId,
    name: &Name,
    (vrf, network, link_local): Where,
    claim: &Claim,
) -> AttachmentConfig {
    AttachmentConfig {
        id,
        name: Arc::from(name.as_str()),
        vrf,
        network,
        mac: claim.mac,
        relay_mac: relay_mac(name),
        mode: claim.mode,
        addresses: claim.addresses.clone(),
        link_local,
        policy: claim.policy.clone(),
        claims: port_claims(claim),
        mtu: claim.mtu.octets(),
        segment: claim.segment.clone(),
    }
}

fn port_claims(claim: &Claim) -> Vec<PortClaim> {
    let of = |transport, range, kind| PortClaim {
        transport,
        range,
        kind,
    };
    let listen = |transport, ranges: &[PortRange]| -> Vec<PortClaim> {
        let ranges = ranges.iter();
        ranges
            .map(|&range| of(transport, range, ClaimKind::Listen))
            .collect()
    };
    let ephemeral = |transport| {
        let ranges = claim.ephemeral.iter();
        ranges.map(move |&range| of(transport, range, ClaimKind::Ephemeral))
    };
    let mut claims = listen(Transport::Tcp, &claim.tcp);
    claims.extend(listen(Transport::Udp, &claim.udp));
    claims.extend(ephemeral(Transport::Tcp));
    claims.extend(ephemeral(Transport::Udp));
    claims
}

fn spec(name: &Name, link: &ContainerLink) -> ContainerSpec {
    ContainerSpec {
        name: name.to_string(),
        interface: link.interface.clone(),
        mac: link.mac,
        mtu: u32::from(link.mtu.octets()),
        tx_queue_len: DEFAULT_TX_QUEUE_LEN,
        mode: link.mode,
        addresses: link.addresses.clone(),
        place: match link.device {
            ContainerDevice::Tap | ContainerDevice::Veth => LinkPlace::Alone,
            ContainerDevice::Bridge(_) => LinkPlace::Segment,
            ContainerDevice::Existing => LinkPlace::Others,
        },
        link_addresses: link.link_addresses.clone(),
        link_local: link.link_local,
        networks: Arc::clone(&link.networks),
        router: relay_mac(name).link_local(),
        ephemeral: link.ephemeral.clone(),
        opens_flows: link.opens_flows,
        company: link.company.clone(),
    }
}

fn request(name: &Name, link: &ContainerLink) -> AttachRequest {
    let noticed = NameKind::of(&netns_name(&link.netns)).end_is_noticed();
    AttachRequest {
        spec: spec(name, link),
        device: match &link.device {
            ContainerDevice::Tap => DeviceRequest::Tap,
            ContainerDevice::Veth => DeviceRequest::Veth {
                relay_mac: relay_mac(name),
                bridge: None,
            },
            ContainerDevice::Bridge(bridge) => DeviceRequest::Veth {
                relay_mac: relay_mac(name),
                bridge: Some(bridge.clone()),
            },
            ContainerDevice::Existing => DeviceRequest::Existing {
                relay_mac: relay_mac(name),
            },
        },
        offload: link.offload,
        placement: match noticed {
            true => Placement::Inside,
            false => Placement::Moved,
        },
    }
}
