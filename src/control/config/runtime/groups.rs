//! Multicast groups that the NOS joins at run time.

use core::net::IpAddr;

use super::super::Name;
use super::super::entries::UplinkEntry;
use super::super::place::{At, Place};
use super::super::report::Report;
use super::{ConfigFile, Orphans, Overlay};

impl Overlay {
    /// Groups that the NOS joined on an uplink at run time.
    pub fn groups_of(&self, uplink: &str) -> impl Iterator<Item = IpAddr> {
        let of = self
            .groups
            .iter()
            .filter(move |(name, _)| name.as_str() == uplink);
        of.map(|(_, group)| group.value)
    }
}

impl ConfigFile {
    /// Takes out of `left` the groups that are the file's now, or, unless these stay, whose uplink has
    /// gone.
    pub(super) fn adopt_groups(
        &self,
        left: &mut Overlay,
        orphans: Orphans,
        mut goes: impl FnMut(String, &str),
    ) {
        left.groups.retain(|(uplink, group)| {
            let group = &group.value;
            let why = match self.uplink(uplink) {
                None if orphans == Orphans::Stay => return true,
                None => "its uplink is in the file no more",
                Some(entry) if has(entry, *group) => "it is in the file now",
                Some(_) => return true,
            };
            goes(format!("group {group}"), why);
            false
        });
    }

    /// The file's entry of an uplink.
    pub(super) fn uplink(&self, name: &Name) -> Option<&UplinkEntry> {
        let mut uplinks = self.entries.uplinks.iter();
        uplinks.find(|entry| entry.name.value == *name)
    }
}

/// Whether an uplink of the file has a group.
pub(super) fn has(uplink: &UplinkEntry, group: IpAddr) -> bool {
    uplink.groups.iter().any(|at| at.value == group)
}

/// Gives uplinks the groups that were added. An uplink of a runtime group is always there.
pub(super) fn add(report: &Report<'_>, overlay: &Overlay, uplinks: &mut [UplinkEntry]) {
    for (name, group) in &overlay.groups {
        let place = Place::new(report.offsets(1), "group", "group");
        let value = group.value;
        if let Some(uplink) = uplinks.iter_mut().find(|it| it.name.value == *name) {
            uplink.groups.push(At { value, place });
        }
    }
}
