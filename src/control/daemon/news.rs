//! What the data threads and the kernel tell, and what follows from it.

use std::time::Instant;

use nos_shim::channel::{NosEvent, NosInterface, PolicyRefusal, RefusedSide, Refuser};
use nos_shim::drop::DropReason;
use nos_shim::ident::{AttachmentId, Interface, MacAddr, UplinkId};
use nos_shim::packet::protocol;
use nos_shim::ports::{ExchangeRefused, Transport};
use tracing::{debug, error, info, warn};

use crate::control::api::snapshot::FlowOpener;
use crate::control::api::{Event as WatchEvent, EventProtocol, Subject, SubjectKind};
use crate::control::attach::Detachment;
use crate::control::config::{ContainerDevice, Name};
use crate::control::kernel::LinkFacts;
use crate::control::kernel::watch::{InsideChanges, KernelEvent, LinkChange};
use crate::control::plan::Entity;
use crate::data::event_loop::{Event, LoopDevice, Stopped};
use crate::data::relay::RelayEvent;

use super::live::LiveContainer;
use super::watching::subject;
use super::{Daemon, DaemonError};

impl Daemon {
    /// Looks at what happened on the data threads. Returns whether something has to be reconciled.
    pub(super) fn handle_data_events(&mut self) -> Result<bool, DaemonError> {
        let mut any = false;
        let mut dead = Vec::new();
        while let Some(event) = self.live.next_event() {
            match event {
                Event::DeviceGone {
                    interface,
                    device,
                    reason,
                } => {
                    any = true;
                    dead.push(match self.live.is_stale(interface) {
                        true => closing(device),
                        false => self.device_gone(interface, device, reason),
                    });
                }
                Event::DeviceDown(interface) => debug!(%interface, "down"),
                Event::TunnelMet(interface) => self.live.inject_tunnels(interface),
                Event::Relay(RelayEvent::Nos(NosEvent::AddressConflict {
                    uplink,
                    address,
                    mac,
                })) => self.address_conflict(uplink, address, mac),
                Event::Relay(RelayEvent::Nos(NosEvent::Refused(refusal))) => {
                    self.policy_refusal(&refusal);
                }
                Event::Relay(RelayEvent::ForeignPort {
                    attachment,
                    transport,
                    port,
                    dropped,
                }) => self.foreign_port(attachment, (transport, port), None, dropped),
                Event::Relay(RelayEvent::Interfaces(all)) => self.follow_interfaces(&all),
                Event::Relay(RelayEvent::NosGone) => {
                    // One that is elsewhere may not have come yet.
                    info!("the NOS has ended; nothing is forwarded until another joins");
                }
                Event::Relay(RelayEvent::Rejoined) => {
                    info!("the NOS has every registration");
                    self.reconciler.look_at_all(Instant::now());
                    any = true;
                }
                Event::Relay(RelayEvent::NotRejoined(id, refused)) => {
                    self.not_rejoined(id, &refused);
                }
                Event::Relay(event) => {
                    debug!(?event, "nobody waits for this any more");
                }
                Event::LoopFailed(why) => {
                    error!(why, "a data thread failed");
                    return Err(Stopped.into());
                }
            }
        }
        while let Some(news) = self.live.memifs.next_news() {
            self.carrier_changed(news);
        }
        // Closing waits for the kernel: all together.
        for outcome in self.live.take_away(dead) {
            if let Err(error) = outcome {
                debug!(%error, "of a device that has gone");
            }
        }
        Ok(any)
    }

    /// A device went away by itself: what it was for is not in place any more. Returns what there
    /// is to close.
    fn device_gone(&mut self, interface: Interface, device: LoopDevice, why: &str) -> Detachment {
        match interface {
            Interface::Attachment(id) => self.container_gone(id, device, why),
            Interface::Uplink(id) => self.uplink_gone(id, device, why),
        }
    }

    /// A container whose namespace was deleted takes its device along; or somebody deleted the
    /// interface alone.
    fn container_gone(&mut self, id: AttachmentId, device: LoopDevice, why: &str) -> Detachment {
        let mut containers = self.live.containers.iter_mut();
        let Some((name, container)) = containers.find(|(_, container)| container.id == id) else {
            return closing(device);
        };
        let (name, link) = (name.clone(), container.link.take());
        info!(container = %name, why, "the container's device is gone");
        self.link_lost(&name);
        let others_stay = link.as_ref().is_some_and(|link| {
            let going = std::slice::from_ref(&name);
            self.live.leave_to_others(link, going)
        });
        self.end_capture(&Entity::Container(name), device, |device| match link {
            Some(link) => link.into_detachment(Some(device), others_stay),
            None => closing(device),
        })
    }

    fn uplink_gone(&mut self, id: UplinkId, device: LoopDevice, why: &str) -> Detachment {
        let mut uplinks = self.live.uplinks.iter();
        let Some((name, _)) = uplinks.find(|(_, uplink)| uplink.id == id) else {
            return closing(device);
        };
        let name = name.clone();
        warn!(uplink = %name, why, "the uplink's device is gone; its routes are withdrawn");
        self.live.uplink_lost(&name);
        self.tell_gone(&Entity::Uplink(name.clone()));
        self.reconciler.state.devices.remove(&name);
        self.reconciler
            .standing
            .release(&Entity::Device(name.clone()), Instant::now());
        self.end_capture(&Entity::Uplink(name), device, closing)
    }

    /// The interface of a container is not there any more.
    fn link_lost(&mut self, name: &Name) {
        self.tell_gone(&Entity::Container(name.clone()));
        self.reconciler.state.links.remove(name);
        self.reconciler.follow_name(name, Instant::now());
    }

    fn tell_gone(&mut self, entity: &Entity) {
        self.reconciler.tell(WatchEvent::Gone {
            subject: subject(entity),
        });
    }

    fn end_capture(
        &mut self,
        of: &Entity,
        mut device: LoopDevice,
        then: impl FnOnce(LoopDevice) -> Detachment,
    ) -> Detachment {
        self.live.capture_lost(of, device.sink.take());
        self.reconciler.state.captures.remove(of);
        then(device)
    }

    /// A NOS that is configured elsewhere has these interfaces from now on.
    fn follow_interfaces(&mut self, all: &[NosInterface]) {
        let told = self.registry.file.with_interfaces(all);
        let followed = told.and_then(|file| self.registry.reload(file));
        match followed {
            Ok(config) => {
                info!(interfaces = all.len(), "following the NOS's interfaces");
                self.follow(config);
            }
            Err(errors) => {
                error!("the NOS's interfaces are not followed:\n{errors}");
                self.reconciler.tell(WatchEvent::Refused {
                    subject: Subject {
                        kind: SubjectKind::Interfaces,
                        name: None,
                    },
                    reason: errors.to_string(),
                });
            }
        }
    }

    /// A NOS that is new refuses what the one before had accepted.
    fn not_rejoined(&self, id: AttachmentId, refused: &ExchangeRefused) {
        let mut containers = self.live.containers.iter();
        let found = containers.find(|(_, container)| container.id == id);
        if let Some((name, _)) = found {
            error!(container = %name, %refused, "the NOS does not take it any more");
        }
    }

    /// The NOS tells it once in a while, so this may be logged each time.
    fn address_conflict(&mut self, id: UplinkId, address: std::net::IpAddr, mac: MacAddr) {
        let mut uplinks = self.live.uplinks.iter();
        let found = uplinks.find(|(_, uplink)| uplink.id == id);
        let Some(name) = found.map(|(name, _)| name.clone()) else {
            return;
        };
        warn!(uplink = %name, %address, %mac, "somebody else uses an address of the NOS");
        self.reconciler.tell(WatchEvent::Conflict {
            subject: subject(&Entity::Uplink(name)),
            address,
            mac,
        });
    }

    /// The relay tells it once in a while, so this may be logged each time; and so does the NOS, of
    /// containers that may use ports of nobody. Of those `holder` may have learnt the port.
    fn foreign_port(
        &mut self,
        id: AttachmentId,
        (transport, port): (Transport, u16),
        holder: Option<AttachmentId>,
        dropped: u64,
    ) {
        // It may have gone meanwhile.
        let Some(name) = self.container_by_id(id) else {
            return;
        };
        let owner = self.reconciler.state.owner_of(&name, transport, port);
        let holder = || self.container_by_id(holder?).map(Entity::Container);
        let owner = owner.or_else(holder).map(|owner| owner.to_string());
        warn!(
            container = %name,
            port = format_args!("{transport} {port}"),
            owner = owner.as_deref().unwrap_or("nobody"),
            dropped,
            "it sends from a port that is not its own, which is refused"
        );
        self.reconciler.tell(WatchEvent::ForeignPort {
            subject: subject(&Entity::Container(name)),
            protocol: transport.into(),
            port,
            owner,
            dropped,
        });
    }

    fn container_by_id(&self, id: AttachmentId) -> Option<Name> {
        let mut containers = self.live.containers.iter();
        let (name, _) = containers.find(|(_, container)| container.id == id)?;
        Some(name.clone())
    }

    /// The NOS tells it once in a while, so this may be logged each time.
    fn policy_refusal(&mut self, refusal: &PolicyRefusal) {
        let ports = (refusal.refuser, refusal.port);
        if let (DropReason::SourcePort, (Refuser::Attachment(id), Some(port))) =
            (refusal.reason, ports)
            && let Some(transport) = Transport::from_protocol(refusal.protocol)
        {
            return self.foreign_port(id, (transport, port), refusal.holder, refusal.dropped);
        }
        let owner = match refusal.refuser {
            Refuser::Attachment(id) => self.container_by_id(id).map(Entity::Container),
            Refuser::Services(vrf) => {
                let names = self.live.vrfs.names();
                names.get(&vrf).cloned().map(Entity::Services)
            }
        };
        // It may have gone meanwhile; and containers send nothing else.
        let (Some(owner), Some(protocol)) = (owner, protocol_of(refusal.protocol)) else {
            return;
        };
        let PolicyRefusal {
            reason,
            port,
            remote,
            remote_port,
            dropped,
            ..
        } = *refusal;
        let sender = match refusal.sender {
            RefusedSide::Owner => FlowOpener::Owner,
            RefusedSide::Peer => FlowOpener::Peer,
        };
        let (own, theirs) = (of_port(port), of_port(remote_port));
        match sender {
            FlowOpener::Owner => warn!(
                %owner, port = %format_args!("{protocol}{own}"), to = %format_args!("{remote}{theirs}"),
                %reason, dropped, "its policy refuses what it sends"
            ),
            FlowOpener::Peer => info!(
                %owner, port = %format_args!("{protocol}{own}"), from = %format_args!("{remote}{theirs}"),
                %reason, dropped, "its policy refuses what comes from outside"
            ),
        }
        self.reconciler.tell(WatchEvent::Policy {
            subject: subject(&owner),
            reason: reason.to_string(),
            sender,
            protocol,
            port,
            remote,
            remote_port,
            dropped,
        });
    }

    /// Looks at what the kernel tells. Returns whether something has to be reconciled.
    pub(super) fn handle_kernel_events(&mut self) -> bool {
        let mut events = Vec::new();
        self.watch.drain(&mut events);
        let now = Instant::now();
        let mut any = false;
        for event in events {
            any |= match event {
                KernelEvent::Link(change) => self.link_changed(change, now),
                KernelEvent::Inside { key, changes } => {
                    let Some(name) = self.reconciler.container_of(key).cloned() else {
                        continue;
                    };
                    if changes.contains(InsideChanges::ENDED) {
                        self.reconciler.inside_ended(key);
                        self.reconciler.follow_name(&name, now);
                    }
                    self.look_inside(&name, now);
                    true
                }
                KernelEvent::Name { key } => {
                    let Some(name) = self.reconciler.container_of(key).cloned() else {
                        continue;
                    };
                    self.reconciler.follow_name(&name, now);
                    true
                }
                KernelEvent::Overrun => {
                    self.reconciler.look_at_all(now);
                    self.reconciler.release_uplinks(now);
                    self.refresh_uplinks();
                    true
                }
            };
        }
        any
    }

    /// Something changed inside a container. An interface that was deleted is made anew.
    fn look_inside(&mut self, name: &Name, now: Instant) {
        let Some(container) = self.live.containers.get_mut(name) else {
            return self.reconciler.look_inside(name, now);
        };
        let gone = container
            .link
            .as_ref()
            .is_some_and(|link| link.inspector.link() == crate::data::device::LinkState::Gone);
        if !gone {
            return self.reconciler.look_inside(name, now);
        }
        let interface = Interface::Attachment(container.id);
        self.device_lost(interface);
    }

    /// The kernel tells that a device's interface was deleted, before the data thread has noticed.
    /// If it has, its own news is on the way.
    fn device_lost(&mut self, interface: Interface) {
        if let Ok(Some(device)) = self.live.plane.remove_device(interface) {
            let gone = self.device_gone(interface, device, "the interface was deleted");
            self.live.take_away(vec![gone]);
        }
    }

    /// An interface of the host was made, changed or deleted.
    fn link_changed(&mut self, change: LinkChange, now: Instant) -> bool {
        let LinkChange { facts, deleted } = change;
        let index = facts.index;
        let uplinks = self.live.uplinks.iter();
        let of_uplinks = uplinks.filter(|(_, uplink)| {
            let device = uplink.device.as_ref();
            device.is_some_and(|device| device.facts.index == index)
        });
        let of_uplinks: Vec<_> = of_uplinks
            .map(|(name, uplink)| (name.clone(), uplink.id))
            .collect();
        if !of_uplinks.is_empty() {
            let present = self.live.present(facts);
            for (name, id) in of_uplinks {
                match deleted {
                    false => self.live.follow_link(&name, present.clone()),
                    true => self.device_lost(Interface::Uplink(id)),
                }
            }
            return true;
        }
        if deleted {
            return self.host_end_deleted(index) || self.bridge_changed(&facts, now);
        }
        let wanted = self.reconciler.wanted();
        let is_uplink = wanted.is_some_and(|wanted| {
            let mut uplinks = wanted.uplinks.iter();
            uplinks.any(|uplink| {
                let interface = uplink.device.interface();
                interface.is_some_and(|name| name.as_str() == facts.name)
            })
        });
        if is_uplink {
            self.reconciler.release_uplinks(now);
        }
        is_uplink || self.bridge_changed(&facts, now)
    }

    /// A bridge of containers was made or deleted, or one of its ports was taken off it. Returns whether it may
    /// be so.
    fn bridge_changed(&mut self, facts: &LinkFacts, now: Instant) -> bool {
        let wanted = self.reconciler.wanted().into_iter();
        let containers = wanted.flat_map(|wanted| &wanted.containers);
        let bridged = containers.filter_map(|container| match &container.device {
            ContainerDevice::Bridge(bridge) => Some((&container.name, bridge)),
            _ => None,
        });
        let concerned = bridged.filter(|(name, bridge)| {
            let attached = self.live.containers.get(*name);
            match attached.and_then(LiveContainer::host_index) {
                // What it waits for may be there.
                None => bridge.as_str() == facts.name,
                Some(index) if index == facts.index => {
                    let there = self.live.host.link(bridge.as_str()).ok().flatten();
                    there.is_none_or(|there| facts.controller != Some(there.index))
                }
                Some(_) => false,
            }
        });
        let concerned: Vec<Name> = concerned.map(|(name, _)| name.clone()).collect();
        for name in &concerned {
            self.reconciler.look_inside(name, now);
        }
        !concerned.is_empty()
    }

    /// The host end of a veth went, with the container or by somebody's hand.
    fn host_end_deleted(&mut self, index: u32) -> bool {
        let mut containers = self.live.containers.values();
        let container = containers.find(|container| container.host_index() == Some(index));
        let Some(id) = container.map(|container| container.id) else {
            return false;
        };
        self.device_lost(Interface::Attachment(id));
        true
    }

    /// Asks the kernel how the uplinks' interfaces are, after news of them was lost.
    fn refresh_uplinks(&mut self) {
        let open = self.live.uplinks.iter();
        let indices: Vec<_> = open
            .filter_map(|(name, uplink)| Some((name.clone(), uplink.device.as_ref()?.facts.index)))
            .collect();
        for (name, index) in indices {
            if let Ok(Some(facts)) = self.live.host.link_by_index(index) {
                self.live.follow_link(&name, facts);
            }
        }
    }
}

/// A port behind what it belongs to, if it is known.
fn of_port(port: Option<u16>) -> String {
    port.map(|port| format!(" {port}")).unwrap_or_default()
}

fn protocol_of(number: u8) -> Option<EventProtocol> {
    match number {
        protocol::TCP => Some(EventProtocol::Tcp),
        protocol::UDP => Some(EventProtocol::Udp),
        protocol::ICMP | protocol::ICMPV6 => Some(EventProtocol::Icmp),
        _ => None,
    }
}

/// A device that only has to be closed.
fn closing(device: LoopDevice) -> Detachment {
    Detachment {
        device: Some(device.device),
        ..Detachment::default()
    }
}
