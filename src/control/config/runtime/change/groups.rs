//! Multicast groups of uplinks.

use core::net::IpAddr;

use crate::control::config::document::Section;
use crate::control::config::place::At;
use crate::control::config::{ConfigErrors, Name, values};

use super::super::groups::has;
use super::super::{ConfigFile, Holders, Keys, Overlay};
use super::{Changed, Touched, Withdrawal, holder, read, unchanged};

impl ConfigFile {
    pub(super) fn add_group(
        &self,
        overlay: &Overlay,
        keys: &Keys,
        holders: &Holders,
    ) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let request = read(&report, keys, "group", |root| {
            let asked = request(root);
            let holder = holder::read(root, holders, false);
            Some((asked?, holder?))
        });
        if let Some(((uplink, group), holder)) = &request {
            self.is_uplink(&report, uplink);
            let known = overlay.group(&uplink.value, group.value);
            if known.is_some_and(|it| it.holder != *holder) {
                let reason = format!(
                    "{} is held otherwise already (added at run time)",
                    group.value
                );
                report.error(group.place, reason);
            }
        }
        let ((uplink, group), holder) = report.finish(request)?;
        let touched = Touched::Uplink(uplink.value.clone());
        let in_file = self.uplink(&uplink.value).map(|it| has(it, group.value));
        if in_file == Some(true) || overlay.group(&uplink.value, group.value).is_some() {
            return Ok(unchanged(overlay, touched));
        }
        let mut new = overlay.clone();
        let entry = new.entry(group.value, holder);
        new.groups.push((uplink.value, entry));
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
        let withdrawal = Withdrawal::Group(uplink.value.clone(), group.value);
        self.withdrawn(overlay, withdrawal, Touched::Uplink(uplink.value))
    }
}

fn request(root: &mut Section<'_>) -> Option<(At<Name>, At<IpAddr>)> {
    let uplink = root.required("uplink", "\"up0\"", values::name);
    let group = root.required("group", "\"239.1.2.3\"", values::group);
    Some((uplink?, group?))
}
