//! Addresses of uplinks that come and go at run time.

use ipnet::IpNet;

use crate::control::config::document::Section;
use crate::control::config::place::At;
use crate::control::config::report::Report;
use crate::control::config::runtime::has_address;
use crate::control::config::values::{self, did_you_mean};
use crate::control::config::{ConfigErrors, Name, VrfName};

use super::{
    Changed, ConfigFile, Holders, Keys, Overlay, Touched, Withdrawal, holder, read, unchanged,
};
use crate::control::config::Holder;
/// Addresses that may be added at run time.
const MAX_ADDRESSES: usize = 1024;

impl ConfigFile {
    pub(super) fn add_address(
        &self,
        overlay: &Overlay,
        keys: &Keys,
        holders: &Holders,
    ) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let request = read(&report, keys, "address", |root| {
            let holder = holder::read(root, holders, false);
            Some((address_request(root)?, holder?))
        });
        let has = request
            .as_ref()
            .is_some_and(|(request, holder)| self.has_address(&report, overlay, request, *holder));
        let ((uplink, address), holder) = report.finish(request)?;
        let touched = Touched::Uplink(uplink.value.clone());
        if has {
            return Ok(unchanged(overlay, touched));
        }
        let mut new = overlay.clone();
        let entry = new.entry(address.value, holder);
        new.addresses.push((uplink.value, entry));
        self.changed(new, touched)
    }

    /// Whether the uplink has the address already. That there is no such uplink, or that another
    /// one of its VRF has it, is reported.
    fn has_address(
        &self,
        report: &Report<'_>,
        overlay: &Overlay,
        (uplink, address): &(At<Name>, At<IpNet>),
        holder: Option<Holder>,
    ) -> bool {
        self.is_uplink(report, uplink);
        let uplinks = self.uplinks_alone(report, overlay).uplinks;
        let named = uplinks.iter().find(|it| it.name.value == uplink.value);
        let vrf = named.map_or(&VrfName::Default, |named| &named.vrf);
        for entry in uplinks.iter().filter(|entry| entry.vrf == *vrf) {
            let mut all = entry.addresses.iter();
            let Some(held) = all.find(|at| at.value.addr() == address.value.addr()) else {
                continue;
            };
            let known = overlay.address(&uplink.value, address.value);
            let is_held = known.is_none_or(|it| it.holder == holder);
            if is_held && entry.name.value == uplink.value && held.value == address.value {
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
            let entry = self.uplink(&uplink.value);
            if let Some(entry) = entry.filter(|entry| has_address(entry, address.value)) {
                let what = format!("address {}", address.value);
                self.of_the_file(&report, address.place, &what, entry.name.place);
            }
        }
        let (uplink, address) = report.finish(request)?;
        let withdrawal = Withdrawal::Address(uplink.value.clone(), address.value);
        self.withdrawn(overlay, withdrawal, Touched::Uplink(uplink.value))
    }
}

fn address_request(root: &mut Section<'_>) -> Option<(At<Name>, At<IpNet>)> {
    let uplink = root.required("uplink", "\"up0\"", values::name);
    let address = root.required("address", "\"203.0.113.1/24\"", values::host_network);
    Some((uplink?, address?))
}
