//! Multicast groups of uplinks.

use core::net::IpAddr;

use crate::control::config::document::Section;
use crate::control::config::place::At;
use crate::control::config::{ConfigErrors, Name, values};

use super::super::groups::has;
use super::super::{ConfigFile, Keys, Overlay};
use super::{Changed, Touched, read, unchanged};

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
}

fn request(root: &mut Section<'_>) -> Option<(At<Name>, At<IpAddr>)> {
    let uplink = root.required("uplink", "\"up0\"", values::name);
    let group = root.required("group", "\"239.1.2.3\"", values::group);
    Some((uplink?, group?))
}
