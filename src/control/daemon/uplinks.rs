//! Steps of uplinks: what the NOS knows of them, and their devices.

use core::net::IpAddr;
use std::collections::BTreeMap;
use std::sync::Arc;

use nos_shim::channel::Configuration;
use nos_shim::ident::{Interface, UplinkId, VrfId};
use nos_shim::offload::Capabilities;
use nos_shim::shim::{LinkState, UplinkConfig};
use tracing::{info, warn};

use crate::control::attach::{self, offloads};
use crate::control::config::{Name, NosPlace, UplinkDevice, VrfName};
use crate::control::handover::Descriptor;
use crate::control::kernel::LinkFacts;
use crate::control::memif;
use crate::control::plan::{Change, Network, OpenDevice};
use crate::data::device::{FrameDevice, PacketOptions, PacketSocket, Tagged, open_tap};
use crate::data::event_loop::{AddDeviceError, LoopDevice, Stopped};
use crate::interface_name::InterfaceName;

use super::live::{Live, LiveDevice, LiveUplink, OpenUplink, StepError};

/// Whether an interface carries packets.
fn link_state(facts: &LinkFacts) -> LinkState {
    match facts.up && facts.operational {
        true => LinkState::Up,
        false => LinkState::Down,
    }
}

impl Live {
    /// Changes what the NOS knows of uplinks, all at once.
    pub(super) fn change_networks(
        &mut self,
        changes: &[(Name, Change<Network>)],
    ) -> Result<(), StepError> {
        let mut fresh = Vec::new();
        let mut configs = Vec::new();
        for (name, uplink) in &self.uplinks {
            if !changes.iter().any(|(of, _)| of == name) {
                let vrf = self.vrfs.id(&uplink.network.vrf)?;
                configs.push(uplink_config(uplink.id, name, vrf, &uplink.network));
            }
        }
        let behind = self.behind_after(changes)?;
        for (name, change) in changes {
            let Some(new) = &change.new else { continue };
            let known = self.uplinks.get(name).map(|uplink| uplink.id);
            let vrf = self.vrfs.id(&new.vrf);
            let id = known.or_else(|| self.uplink_ids.take());
            let (Some(id), Ok(vrf)) = (id, vrf) else {
                self.give_back(fresh);
                return Err(StepError::new("all uplinks, or all VRFs, are in use"));
            };
            if known.is_none() {
                fresh.push((name, id));
            }
            configs.push(uplink_config(id, name, vrf, new));
        }
        let before = std::mem::take(&mut self.left_behind);
        for (place, mut config) in behind {
            let known = before.get(&place).copied();
            // Without a number, containers have to follow at once, or are refused.
            let Some(id) = known.or_else(|| self.uplink_ids.take()) else {
                continue;
            };
            config.id = id;
            configs.push(config);
            self.left_behind.insert(place, id);
        }
        let groups = self.groups_of(changes, &fresh);
        if let Err(error) = self.publish(configs, groups) {
            self.give_back(fresh);
            let after = std::mem::replace(&mut self.left_behind, before);
            self.forget_behind(after);
            return Err(error);
        }
        self.forget_behind(before);
        for (name, id) in fresh {
            self.add_uplink(name, id, changes);
        }
        self.record_networks(changes);
        Ok(())
    }

    fn give_back(&mut self, fresh: Vec<(&Name, UplinkId)>) {
        for (_, id) in fresh {
            self.uplink_ids.give_back(id);
        }
    }

    /// Gives the numbers back of those that are not left behind any more.
    fn forget_behind(&mut self, before: BTreeMap<(Name, VrfName), UplinkId>) {
        for (place, id) in before {
            if !self.left_behind.contains_key(&place) {
                self.uplink_ids.give_back(id);
            }
        }
    }

    /// What stands for uplinks in VRFs that they have left, after these changes: uplinks with the
    /// addresses that are behind there, which are never up.
    fn behind_after(
        &self,
        changes: &[(Name, Change<Network>)],
    ) -> Result<BTreeMap<(Name, VrfName), UplinkConfig>, StepError> {
        let mut all = BTreeMap::new();
        let untouched = self.uplinks.iter();
        let untouched = untouched.filter(|(name, _)| !changes.iter().any(|(of, _)| of == *name));
        let untouched = untouched.map(|(name, uplink)| (name, &uplink.network));
        let changed = changes.iter();
        let changed = changed.filter_map(|(name, change)| Some((name, change.new.as_ref()?)));
        for (name, network) in untouched.chain(changed) {
            for (vrf, address) in &network.behind {
                let place = (name.clone(), vrf.clone());
                let id = self.vrfs.id(vrf)?;
                let fresh = || UplinkConfig {
                    addresses: Vec::new(),
                    ..uplink_config(UplinkId(0), name, id, network)
                };
                let config: &mut UplinkConfig = all.entry(place).or_insert_with(fresh);
                config.addresses.push(*address);
            }
        }
        Ok(all)
    }

    /// The groups of the uplinks that change and stay, or come.
    fn groups_of(
        &self,
        changes: &[(Name, Change<Network>)],
        fresh: &[(&Name, UplinkId)],
    ) -> Vec<(UplinkId, Vec<IpAddr>)> {
        let groups = changes.iter().filter_map(|(name, change)| {
            let known = self.uplinks.get(name).map(|uplink| uplink.id);
            let new = || fresh.iter().find(|(of, _)| *of == name).map(|(_, id)| *id);
            Some((known.or_else(new)?, change.new.as_ref()?.groups.clone()))
        });
        groups.collect()
    }

    fn publish(
        &mut self,
        configs: Vec<UplinkConfig>,
        groups: Vec<(UplinkId, Vec<IpAddr>)>,
    ) -> Result<(), StepError> {
        if self.plane.nos_place() == NosPlace::Elsewhere {
            return Ok(());
        }
        let wanted = Configuration::Uplinks {
            uplinks: configs,
            groups,
        };
        self.plane.configure(wanted)?.map_err(StepError::new)
    }

    fn add_uplink(&mut self, name: &Name, id: UplinkId, changes: &[(Name, Change<Network>)]) {
        let change = changes.iter().find(|(of, _)| of == name);
        if let Some(network) = change.and_then(|(_, change)| change.new.clone()) {
            let uplink = LiveUplink {
                id,
                network,
                device: None,
            };
            self.uplinks.insert(name.clone(), uplink);
        }
    }

    fn record_networks(&mut self, changes: &[(Name, Change<Network>)]) {
        for (name, change) in changes {
            match &change.new {
                Some(new) => {
                    if let Some(uplink) = self.uplinks.get_mut(name) {
                        uplink.network.clone_from(new);
                    }
                }
                None => {
                    self.routes_lost = true;
                    if let Some(gone) = self.uplinks.remove(name) {
                        self.uplink_ids.give_back(gone.id);
                    }
                }
            }
        }
    }

    pub(super) fn change_device(
        &mut self,
        name: &Name,
        change: &Change<OpenDevice>,
    ) -> Result<(), StepError> {
        match (&change.old, &change.new) {
            (_, None) => self.close(name),
            (None, Some(new)) => self.open(name, new)?,
            (Some(_), Some(new)) => self.adjust(new)?,
        }
        Ok(())
    }

    fn open(&mut self, name: &Name, wanted: &OpenDevice) -> Result<(), StepError> {
        let Some(id) = self.uplinks.get(name).map(|uplink| uplink.id) else {
            return Err(StepError::new("the NOS does not know it"));
        };
        let received = self.receive_uplink(name, wanted)?;
        let is_new = received.is_none();
        let opened = match received {
            Some(received) => received,
            None => self.make(name, id, wanted)?,
        };
        let OpenUplink {
            device,
            facts,
            takeover,
            descriptor,
            long_frames,
            shown,
        } = opened;
        let inspector = device.inspector();
        let interface = Interface::Uplink(id);
        let added = self.plane.add_device(interface, LoopDevice::from(device));
        if let Err(AddDeviceError { device, source }) = added {
            drop(device);
            return Err(StepError::new(source));
        }
        if !facts.up {
            warn!(uplink = %name, interface = facts.name, "the interface is down");
        }
        let vlan = wanted.vlan.map(tracing::field::display);
        info!(uplink = %name, device = %wanted.device, vlan, mac = %wanted.mac, "uplink open");
        if let Some(uplink) = self.uplinks.get_mut(name) {
            uplink.device = Some(LiveDevice {
                inspector,
                facts: facts.clone(),
                told: LinkState::Down,
                takeover,
                vlan: wanted.vlan,
                may_share: matches!(wanted.device, UplinkDevice::Packet(_)),
                shown,
                descriptor,
                long_frames,
                down: None,
            });
        }
        // Of those that were handed over, all are taken up first.
        if is_new {
            self.share_out(facts.index);
        }
        self.follow_link(name, facts);
        Ok(())
    }

    fn make(
        &mut self,
        name: &Name,
        id: UplinkId,
        wanted: &OpenDevice,
    ) -> Result<OpenUplink, StepError> {
        let descriptor = self.number_descriptor();
        match &wanted.device {
            UplinkDevice::Memif(options) => {
                let opened = self.memifs.open(id, name.as_str(), options.clone());
                Ok(OpenUplink {
                    device: with_tags(Box::new(opened?), wanted),
                    facts: memif_facts(options, wanted),
                    takeover: None,
                    descriptor,
                    long_frames: false,
                    shown: None,
                })
            }
            UplinkDevice::Packet(_) => self.open_packet(wanted, descriptor),
            UplinkDevice::Nos => Err(StepError::new("the NOS has it")),
            UplinkDevice::Tap(name) => Ok(OpenUplink {
                device: with_tags(self.open_tap(wanted, name.as_str())?, wanted),
                facts: self.facts_of(wanted)?,
                takeover: None,
                descriptor,
                long_frames: false,
                shown: None,
            }),
        }
    }

    fn open_packet(
        &self,
        wanted: &OpenDevice,
        descriptor: Descriptor,
    ) -> Result<OpenUplink, StepError> {
        let facts = self.facts_of(wanted)?;
        let takeover = self.take_shared(&facts.name, facts.index)?;
        let shown = self.shown_at_first(wanted.vlan, facts.index);
        let options = PacketOptions {
            offload: uplink_offloads(wanted.offload),
            promiscuous: facts.mac != Some(wanted.mac),
            injection: true,
            vlan: wanted.vlan,
            ..PacketOptions::default()
        };
        let open = || PacketSocket::open_showing(&facts.name, options, &shown);
        let socket = self.host.namespace().run(open).map_err(StepError::new)?;
        Ok(OpenUplink {
            device: Box::new(socket.map_err(StepError::new)?),
            facts,
            takeover: Some(takeover),
            descriptor,
            long_frames: true,
            shown: Some(shown),
        })
    }

    fn open_tap(&self, wanted: &OpenDevice, name: &str) -> Result<Box<dyn FrameDevice>, StepError> {
        let open = || open_tap(name, uplink_offloads(wanted.offload));
        let opened = self.host.namespace().run(open).map_err(StepError::new)?;
        let device = opened.map_err(StepError::new)?;
        // On an error the device is dropped, and the TAP goes with it.
        attach::bring_up(self.host.namespace(), name, wanted.mtu).map_err(StepError::new)?;
        Ok(device)
    }

    /// Of a TAP, the MTU can change while it is open. Other interfaces are somebody else's.
    fn adjust(&self, wanted: &OpenDevice) -> Result<(), StepError> {
        let UplinkDevice::Tap(name) = &wanted.device else {
            return Ok(());
        };
        attach::bring_up(self.host.namespace(), name.as_str(), wanted.mtu).map_err(StepError::new)
    }

    /// What the kernel says of the interface: under its present name, if it was renamed.
    pub(super) fn facts_of(&self, wanted: &OpenDevice) -> Result<LinkFacts, StepError> {
        let name = wanted.device.interface().map_or("", InterfaceName::as_str);
        let by_name = self.host.link(name).map_err(StepError::new)?;
        let facts = match by_name {
            Some(facts) if wanted.index == 0 || facts.index == wanted.index => Some(facts),
            _ => self
                .host
                .link_by_index(wanted.index)
                .map_err(StepError::new)?,
        };
        facts.ok_or_else(|| StepError::new(format_args!("there is no interface {name}")))
    }

    /// Closes the device, and gives the interface back to the kernel.
    fn close(&mut self, name: &Name) {
        let Some(uplink) = self.uplinks.get_mut(name) else {
            return;
        };
        let (id, open) = (uplink.id, uplink.device.take());
        self.leave_link(id);
        if let Some(open) = &open {
            self.keeping.forget(&[open.descriptor]);
        }
        self.set_link(id, LinkState::Down);
        let device = self.take_device(Interface::Uplink(id));
        drop(device);
        if let Some(open) = open {
            self.share_out(open.facts.index);
        }
        info!(uplink = %name, "uplink closed");
    }

    /// What the kernel says now of an interface of which it has told. What it told was true when it was
    /// told: of an interface that was made and brought up since, it tells how each was.
    pub(super) fn present(&self, told: LinkFacts) -> LinkFacts {
        match self.host.link_by_index(told.index) {
            Ok(Some(present)) => present,
            // That it is gone is told next.
            Ok(None) | Err(_) => told,
        }
    }

    /// Follows what the kernel says of an uplink's interface: its name, and whether it carries
    /// packets. While it does not, routes over it are withdrawn.
    pub(super) fn follow_link(&mut self, name: &Name, facts: LinkFacts) {
        let Some(uplink) = self.uplinks.get_mut(name) else {
            return;
        };
        let id = uplink.id;
        let Some(device) = &mut uplink.device else {
            return;
        };
        let state = link_state(&facts);
        device.facts = facts;
        if std::mem::replace(&mut device.told, state) == state {
            return;
        }
        if state == LinkState::Down {
            warn!(uplink = %name, "the link is down; its routes are withdrawn");
        } else {
            info!(uplink = %name, "the link is up");
        }
        self.set_link(id, state);
    }

    /// The uplink's device went away by itself.
    pub(super) fn uplink_lost(&mut self, name: &Name) {
        let Some(uplink) = self.uplinks.get_mut(name) else {
            return;
        };
        let (id, lost) = (uplink.id, uplink.device.take());
        self.set_link(id, LinkState::Down);
        if let Some(lost) = lost {
            self.share_out(lost.facts.index);
        }
    }

    /// Switches and routers on the link are told that the NOS goes, while its device is there to tell
    /// them: a data thread sends what a command leaves before it carries out the next.
    fn leave_link(&self, id: UplinkId) {
        // A data thread that has stopped has nobody to tell.
        let _ = self.plane.configure(Configuration::LeaveLink(id));
    }

    fn set_link(&self, id: UplinkId, state: LinkState) {
        match self.plane.configure(Configuration::Link(id, state)) {
            Ok(Ok(())) | Err(Stopped) => {}
            Ok(Err(error)) => warn!(uplink = %id, %error, "routes are missing"),
        }
    }
}

/// What there is to say of an interface that the kernel does not know. A peer may come at once, of which
/// news tells.
fn memif_facts(options: &memif::Options, wanted: &OpenDevice) -> LinkFacts {
    LinkFacts::outside_of_kernel(options.address.to_string(), wanted.mac, wanted.mtu)
}

/// The VLAN of a device that an uplink has.
fn with_tags(device: Box<dyn FrameDevice>, wanted: &OpenDevice) -> Box<dyn FrameDevice> {
    match wanted.vlan {
        Some(vlan) => Box::new(Tagged::new(device, vlan)),
        None => device,
    }
}

/// What is asked of an uplink's device. Behind it, a NIC or a bridge may cut what leaves.
fn uplink_offloads(wanted: bool) -> Capabilities {
    offloads(wanted) - Capabilities::ACCURATE_ECN
}

fn uplink_config(id: UplinkId, name: &Name, vrf: VrfId, network: &Network) -> UplinkConfig {
    UplinkConfig {
        id,
        name: Arc::from(name.as_str()),
        vrf,
        mac: network.mac,
        addresses: network.addresses.clone(),
        mtu: usize::from(network.mtu),
        redirects: network.redirects,
    }
}
