//! Multicast groups that the NOS joins at run time.

use core::net::IpAddr;

use super::super::document::Section;
use super::super::entries::UplinkEntry;
use super::super::place::{At, Place};
use super::super::report::Report;
use super::super::values;
use super::super::{ConfigErrors, Name};
use super::change::{Changed, Touched, read, unchanged};
use super::{ConfigFile, Keys, Overlay};

impl Overlay {
    /// Groups that the NOS joined on an uplink at run time.
    pub fn groups_of(&self, uplink: &str) -> impl Iterator<Item = IpAddr> {
        let of = self
            .groups
            .iter()
            .filter(move |(name, _)| name.as_str() == uplink);
        of.map(|&(_, group)| group)
    }
}

impl ConfigFile {
    pub(super) fn add_group(
        &self,
        overlay: &Overlay,
        keys: &Keys,
    ) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let request = read(&report, keys, "group", request);
        if let Some((uplink, _)) = &request {
            self.is_uplink(&report, uplink);
        }
        let (uplink, group) = report.finish(request)?;
        let touched = Touched::Uplink(uplink.value.clone());
        let registered = (uplink.value, group.value);
        let in_file = self.uplink(&registered.0).map(|it| has(it, group.value));
        if in_file == Some(true) || overlay.groups.contains(&registered) {
            return Ok(unchanged(overlay, touched));
        }
        let mut new = overlay.clone();
        new.groups.push(registered);
        self.changed(new, touched)
    }

    pub(super) fn remove_group(
        &self,
        overlay: &Overlay,
        keys: &Keys,
    ) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let request = read(&report, keys, "group", request);
        if let Some((uplink, group)) = &request {
            self.is_uplink(&report, uplink);
            let entry = self.uplink(&uplink.value);
            if let Some(entry) = entry.filter(|entry| has(entry, group.value)) {
                let what = format!("group {}", group.value);
                self.of_the_file(&report, group.place, &what, entry.name.place);
            }
        }
        let (uplink, group) = report.finish(request)?;
        let registered = (uplink.value, group.value);
        let mut new = overlay.clone();
        new.groups.retain(|known| *known != registered);
        let touched = Touched::Uplink(registered.0);
        if new == *overlay {
            return Ok(unchanged(overlay, touched));
        }
        self.changed(new, touched)
    }

    /// Takes out of `left` the groups that are the file's now, or whose uplink has gone.
    pub(super) fn adopt_groups(&self, left: &mut Overlay, mut goes: impl FnMut(String, &str)) {
        left.groups.retain(|(uplink, group)| {
            let why = match self.uplink(uplink) {
                None => "its uplink is in the file no more",
                Some(entry) if has(entry, *group) => "it is in the file now",
                Some(_) => return true,
            };
            goes(format!("group {group}"), why);
            false
        });
    }

    /// The file's entry of an uplink.
    fn uplink(&self, name: &Name) -> Option<&UplinkEntry> {
        let mut uplinks = self.entries.uplinks.iter();
        uplinks.find(|entry| entry.name.value == *name)
    }
}

fn has(uplink: &UplinkEntry, group: IpAddr) -> bool {
    uplink.groups.iter().any(|at| at.value == group)
}

/// Gives uplinks the groups that were added. An uplink of a runtime group is always there.
pub(super) fn add(report: &Report<'_>, overlay: &Overlay, uplinks: &mut [UplinkEntry]) {
    for (name, group) in &overlay.groups {
        let place = Place::new(report.offsets(1), "group", "group");
        let value = *group;
        if let Some(uplink) = uplinks.iter_mut().find(|it| it.name.value == *name) {
            uplink.groups.push(At { value, place });
        }
    }
}

fn request(root: &mut Section<'_>) -> Option<(At<Name>, At<IpAddr>)> {
    let uplink = root.required("uplink", "\"up0\"", values::name);
    let group = root.required("group", "\"239.1.2.3\"", values::group);
    Some((uplink?, group?))
}
