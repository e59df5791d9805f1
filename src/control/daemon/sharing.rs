//! Uplinks that share an interface, each with a VLAN of it: what they have in common, and which frames the
//! kernel shows whom ([`Shown`]).

use std::collections::BTreeSet;
use std::sync::Arc;

use nos_shim::vlan::VlanId;
use tracing::warn;

use crate::control::kernel::takeover::{Portion, Takeover};
use crate::control::plan::Entity;
use crate::data::device::Shown;

use super::live::{Live, LiveDevice, StepError};

/// What the kernel is to show the sockets of one interface, of which these are the VLANs: each its own, and
/// what is nobody's to one of them, which counts it. That is the one for frames without a tag, else the one
/// of the lowest VLAN.
fn shown(of: Option<VlanId>, all: &[Option<VlanId>]) -> Shown {
    // None is less than any.
    let chief = all.iter().min() == Some(&of);
    match of {
        Some(vlan) if !chief => Shown::Only(vlan),
        _ => {
            let others = all.iter().flatten().filter(|&&vlan| Some(vlan) != of);
            let mut others: Vec<_> = others.copied().collect();
            others.sort_unstable();
            Shown::AllBut(others)
        }
    }
}

impl Live {
    /// The VLAN of its interface that an uplink has.
    pub(super) fn vlan_of(&self, entity: &Entity) -> Option<VlanId> {
        let (Entity::Uplink(name) | Entity::Device(name)) = entity else {
            return None;
        };
        self.uplinks.get(name)?.device.as_ref()?.vlan
    }

    /// Devices that are packet sockets on the interface of this number.
    fn sharers(&self, index: u32) -> impl Iterator<Item = &LiveDevice> {
        let devices = self.uplinks.values();
        let devices = devices.filter_map(|uplink| uplink.device.as_ref());
        devices.filter(move |device| device.may_share && device.facts.index == index)
    }

    /// Keeps the kernel off an interface, for one more uplink of it.
    pub(super) fn take_shared(
        &self,
        interface: &str,
        index: u32,
    ) -> Result<Arc<Takeover>, StepError> {
        if let Some(taken) = self.shared_takeover(index) {
            return Ok(taken);
        }
        let taken = self.host.take(interface, index, Portion::All);
        taken.map(Arc::new).map_err(StepError::new)
    }

    /// What keeps the kernel off an interface, for the uplinks that are open there.
    pub(super) fn shared_takeover(&self, index: u32) -> Option<Arc<Takeover>> {
        self.sharers(index)
            .find_map(|device| device.takeover.clone())
    }

    /// What a socket of this VLAN is shown at first, beside those that are open on the interface.
    pub(super) fn shown_at_first(&self, vlan: Option<VlanId>, index: u32) -> Shown {
        let mut all: Vec<_> = self.sharers(index).map(|device| device.vlan).collect();
        all.push(vlan);
        shown(vlan, &all)
    }

    /// The same for all interfaces, once everything is taken up that an earlier process had open.
    pub(super) fn share_out_all(&mut self) {
        let devices = self.uplinks.values();
        let devices = devices.filter_map(|uplink| uplink.device.as_ref());
        let indices: BTreeSet<u32> = devices.map(|device| device.facts.index).collect();
        for index in indices {
            self.share_out(index);
        }
    }

    /// Has the kernel show each socket on an interface what is its own, now that one came or went.
    pub(super) fn share_out(&mut self, index: u32) {
        let all: Vec<_> = self.sharers(index).map(|device| device.vlan).collect();
        for (name, uplink) in &mut self.uplinks {
            let Some(device) = &mut uplink.device else {
                continue;
            };
            if !device.may_share || device.facts.index != index {
                continue;
            }
            let shown = shown(device.vlan, &all);
            if device.shown.as_ref() == Some(&shown) {
                continue;
            }
            match device.inspector.show(&shown) {
                Ok(()) => device.shown = Some(shown),
                // It drops what is none of its own in any case, and is told again with the next change.
                Err(error) => warn!(uplink = %name, %error, "it goes on being shown what it was"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vlan(id: u16) -> Option<VlanId> {
        VlanId::new(id)
    }

    #[test]
    fn each_frame_is_shown_to_one() {
        let other = |ids: &[u16]| Shown::AllBut(ids.iter().filter_map(|&id| vlan(id)).collect());
        let only = |id| Shown::Only(vlan(id).unwrap());
        assert_eq!(shown(None, &[None]), other(&[]));
        assert_eq!(shown(vlan(7), &[vlan(7)]), other(&[]));
        let all = [vlan(9), None, vlan(7)];
        assert_eq!(shown(None, &all), other(&[7, 9]));
        assert_eq!(shown(vlan(7), &all), only(7));
        assert_eq!(shown(vlan(9), &all), only(9));
        let tagged = [vlan(9), vlan(7), vlan(4094)];
        assert_eq!(shown(vlan(7), &tagged), other(&[9, 4094]));
        assert_eq!(shown(vlan(9), &tagged), only(9));
    }
}
