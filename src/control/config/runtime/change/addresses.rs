//! Addresses of uplinks that come and go at run time.

use ipnet::IpNet;

use crate::control::config::document::Section;
use crate::control::config::place::At;
use crate::control::config::report::Report;
use crate::control::config::runtime::has_address;
use crate::control::config::values::{self, did_you_mean};
use crate::control::config::{ConfigErrors, Name};

use super::{Changed, ConfigFile, Keys, Overlay, Touched, read, unchanged};
/// Addresses that may be added at run time.
const MAX_ADDRESSES: usize = 1024;

impl ConfigFile {
    pub(super) fn add_address(
        &self,
        overlay: &Overlay,
        keys: &Keys,
    ) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let request = read(&report, keys, "address", address_request);
        let held = request
            .as_ref()
            .is_some_and(|request| self.has_address(&report, overlay, request));
        let (uplink, address) = report.finish(request)?;
        let touched = Touched::Uplink(uplink.value.clone());
        if held {
            return Ok(unchanged(overlay, touched));
        }
        let mut new = overlay.clone();
        new.addresses.push((uplink.value, address.value));
        self.changed(new, touched)
    }

    /// Whether the uplink has the address already. That there is no such uplink, or that another
    /// one has it, is reported.
    fn has_address(
        &self,
        report: &Report<'_>,
        overlay: &Overlay,
        (uplink, address): &(At<Name>, At<IpNet>),
    ) -> bool {
        self.is_uplink(report, uplink);
        let uplinks = self.uplinks_alone(report, overlay).uplinks;
        for entry in &uplinks {
            let mut all = entry.addresses.iter();
            let Some(held) = all.find(|at| at.value.addr() == address.value.addr()) else {
                continue;
            };
            if entry.name.value == uplink.value && held.value == address.value {
                return true;
            }
            let (spot, name) = (report.spot(held.place), &entry.name.value);
            let reason = format!("uplink \"{name}\" has {} already ({spot})", held.value);
            report.error(address.place, reason);
        }
        if overlay.addresses.len() >= MAX_ADDRESSES {
            let reason = format!("{MAX_ADDRESSES} addresses were added at run time, the most");
            report.error(address.place, reason);
        }
        false
    }

    pub(super) fn is_uplink(&self, report: &Report<'_>, uplink: &At<Name>) {
        let known = self
            .entries
            .uplinks
            .iter()
            .map(|entry| entry.name.value.as_str());
        let known: Vec<_> = known.collect();
        let name = uplink.value.as_str();
        if !known.contains(&name) {
            let hint = did_you_mean(name, &known)
                .unwrap_or_else(|| format!("; uplinks are {}", known.join(", ")));
            report.error(uplink.place, format!("\"{name}\" is not an uplink{hint}"));
        }
    }

    pub(super) fn remove_address(
        &self,
        overlay: &Overlay,
        keys: &Keys,
    ) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let request = read(&report, keys, "address", address_request);
        if let Some((uplink, address)) = &request {
            self.is_uplink(&report, uplink);
            let mut uplinks = self.entries.uplinks.iter();
            let entry = uplinks.find(|entry| entry.name.value == uplink.value);
            if let Some(entry) = entry.filter(|entry| has_address(entry, address.value)) {
                let what = format!("address {}", address.value);
                self.of_the_file(&report, address.place, &what, entry.name.place);
            }
        }
        let (uplink, address) = report.finish(request)?;
        let mut new = overlay.clone();
        new.addresses
            .retain(|(name, known)| (name, *known) != (&uplink.value, address.value));
        let touched = Touched::Uplink(uplink.value);
        if new == *overlay {
            return Ok(unchanged(overlay, touched));
        }
        self.changed(new, touched)
    }
}

fn address_request(root: &mut Section<'_>) -> Option<(At<Name>, At<IpNet>)> {
    let uplink = root.required("uplink", "\"up0\"", values::name);
    let address = root.required("address", "\"203.0.113.1/24\"", values::host_network);
    Some((uplink?, address?))
}
