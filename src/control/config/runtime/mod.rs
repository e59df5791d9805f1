//! What is registered at run time, beside the configuration file.
//!
//! # Theory of operation
//!
//! An [`Overlay`] holds entries with the keys of the file. [`ConfigFile::config`] reads them as if
//! they stood behind the file's own, and checks all of them together: so what is added at run time
//! clashes with what there is for the reasons for which two entries of the file would, and says so
//! in the same words. [`ConfigFile::change`] makes of a request another overlay, which has passed
//! these checks, or says what is wrong with which key.
//!
//! The file is not changed from here: what it says can be added to, and nothing of it be taken away.
//!
//! An overlay outlives the process ([`Record`]), while somebody may edit the file. What does not
//! fit beside it then is set aside and not lost ([`ConfigFile::fit`]).

mod change;
mod fit;
mod groups;
mod holder;
mod interfaces;
mod keys;
mod listing;
mod overlay;
mod ports;
mod record;

use std::path::Path;

use ipnet::IpNet;

pub use change::{Change, Changed, PoolAction, PortsAction, Touched, endpoint_name};
pub use fit::{Aside, Fitted, Orphans};
pub use holder::{BootId, Holder, Holders, ProcessIdentity};
pub(crate) use interfaces::serialize_interface;
pub use keys::Keys;
pub use listing::{Registration, RegistrationKind};
pub use overlay::Overlay;
pub use record::{BadRecord, Record};

pub(super) use holder::Lease;

use super::document::{self, Section};
use super::entries::{self, ContainerEntry, Entries, NetworkEntry, RouteEntry, UplinkEntry};
use super::place::{At, Place};
use super::report::Report;
use super::{Config, ConfigErrors, MAX_TEXT, Name, NosPlace, VrfName, check, read_text};
use ports::Ports;

/// A configuration file that was read and is good.
#[derive(Debug)]
pub struct ConfigFile {
    name: String,
    text: String,
    entries: Entries,
}

/// VRF, prefix and metric of a route, which are its alone.
type RouteName = (VrfName, IpNet, u16);

impl Overlay {
    /// Networks, containers and routes as a text that could stand in a file.
    fn text(&self) -> String {
        let list = |all: Vec<&Keys>| -> toml::Value {
            all.into_iter()
                .cloned()
                .map(toml::Value::from)
                .collect::<Vec<_>>()
                .into()
        };
        let networks = self.networks.iter().map(|(_, it)| &it.value).collect();
        let containers = self.containers.iter().map(|(_, it)| &it.value).collect();
        let routes = self.routes.iter().map(|(_, it)| &it.value).collect();
        Keys::default()
            .with("network", list(networks))
            .with("container", list(containers))
            .with("route", list(routes))
            .text()
    }
}

impl ConfigFile {
    /// Reads and checks `text`; `name` is what errors call the file.
    ///
    /// # Errors
    ///
    /// As [`Config::parse`].
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigErrors> {
        Self::parse_for(NosPlace::Here, name, text)
    }

    /// The same, where the NOS may be elsewhere.
    ///
    /// # Errors
    ///
    /// As [`Config::parse`].
    pub fn parse_for(place: NosPlace, name: &str, text: &str) -> Result<Self, ConfigErrors> {
        let report = Report::new(name, text);
        let entries = document::parse(&report, text).map(|document| {
            let mut entries = entries::read(&report, &document);
            entries.place = place;
            check::config(&report, entries.clone());
            entries
        });
        let entries = report.finish(entries)?;
        Ok(Self {
            name: name.to_owned(),
            text: text.to_owned(),
            entries,
        })
    }

    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let (name, text) = read_text(path)?;
        Self::parse(&name, &text)
    }

    /// The configuration of the file and what was registered besides.
    ///
    /// # Errors
    ///
    /// What is wrong with both together. Nothing is with an empty overlay.
    pub fn config(&self, overlay: &Overlay) -> Result<Config, ConfigErrors> {
        self.config_for(overlay, None)
    }

    /// As [`Self::config`], where a request about a container is what is refused.
    fn config_for(&self, overlay: &Overlay, newest: Option<&Name>) -> Result<Config, ConfigErrors> {
        let report = self.report();
        let config = self.entries(&report, overlay).map(|mut entries| {
            entries.newest = newest.cloned();
            check::config(&report, entries)
        });
        report.finish(config)
    }

    /// That it cannot be followed now for what `key` says, though nothing is wrong with it.
    pub(crate) fn refused(&self, key: &str, reason: &str) -> ConfigErrors {
        ConfigErrors::not_now(&self.name, key, reason)
    }

    /// What errors call the file.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text that was read.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    fn report(&self) -> Report<'_> {
        Report::new(&self.name, &self.text)
    }

    /// The file's entry of a container.
    fn container(&self, name: &Name) -> Option<&ContainerEntry> {
        self.entries
            .containers
            .iter()
            .find(|entry| entry.name.value == *name)
    }

    /// The file's entry of a network.
    fn network(&self, name: &Name) -> Option<&NetworkEntry> {
        let mut networks = self.entries.networks.iter();
        networks.find(|entry| entry.name.value == *name)
    }

    /// The networks of the file and of the overlay.
    fn networks(&self, report: &Report<'_>, overlay: &Overlay) -> Vec<NetworkEntry> {
        let mut networks = self.entries.networks.clone();
        if overlay.networks.is_empty() {
            return networks;
        }
        let added = Overlay {
            networks: overlay.networks.clone(),
            ..Overlay::default()
        };
        let text = added.text();
        let base = report.offsets(text.len());
        if let Some(document) = document::parse(report, &text) {
            let root = Section::added(report, &document, base, "");
            networks.extend(entries::read_networks(root));
        }
        networks
    }

    /// Where the file has a route.
    fn route(&self, name: &RouteName) -> Option<Place> {
        let mut routes = self.entries.routes.iter();
        let found = routes.find(|it| route_name(it) == *name)?;
        Some(found.prefix.place)
    }

    /// The entries of the file and of the overlay.
    fn entries(&self, report: &Report<'_>, overlay: &Overlay) -> Option<Entries> {
        let mut entries = self.entries.clone();
        add_addresses(report, overlay, &mut entries.uplinks);
        groups::add(report, overlay, &mut entries.uplinks);
        let text = overlay.text();
        if text.len() > MAX_TEXT {
            let reason = format!(
                "all that is registered at run time would be longer than {MAX_TEXT} octets"
            );
            report.error(Place::new(report.offsets(1), "", "request"), reason);
            return None;
        }
        let base = report.offsets(text.len());
        let document = document::parse(report, &text)?;
        entries::read_added(Section::added(report, &document, base, ""), &mut entries);
        add_ports(report, overlay, &mut entries.containers);
        Some(entries)
    }
}

fn route_name(entry: &RouteEntry) -> RouteName {
    (entry.vrf.value.clone(), entry.prefix.value, entry.metric)
}

fn has_address(uplink: &UplinkEntry, address: IpNet) -> bool {
    uplink.addresses.iter().any(|at| at.value == address)
}

/// Gives uplinks the addresses that were added. An uplink of a runtime address is always there.
fn add_addresses(report: &Report<'_>, overlay: &Overlay, uplinks: &mut [UplinkEntry]) {
    for (name, address) in &overlay.addresses {
        let place = Place::new(report.offsets(1), "address", "address");
        let value = address.value;
        if let Some(uplink) = uplinks.iter_mut().find(|it| it.name.value == *name) {
            uplink.addresses.push(At { value, place });
        }
    }
}

/// Gives containers the ports that were added. A container with ports is always there.
fn add_ports(report: &Report<'_>, overlay: &Overlay, containers: &mut [ContainerEntry]) {
    if overlay.ports.is_empty() {
        return;
    }
    for entry in containers {
        let name = &entry.name.value;
        let mut added = overlay.ports_of(name).peekable();
        let Some(&(first, _)) = added.peek() else {
            continue;
        };
        // What nobody holds of a container of run time is in place of what its keys say.
        let keys = match overlay.has_container(name) && first.is_some() {
            true => Ports::of(entry),
            false => Ports::default(),
        };
        let ports = added.fold(keys, |all, (_, more)| all.with(more));
        if overlay.has_container(name) {
            for ranges in [&mut entry.tcp, &mut entry.udp, &mut entry.ephemeral] {
                ranges.clear();
            }
            entry.policy.from.clear();
            entry.policy.established.clear();
        }
        let at = |key, value| At {
            value,
            place: Place::new(report.offsets(1), "ports", key),
        };
        for (key, ranges, more) in [
            ("tcp", &mut entry.tcp, &ports.tcp),
            ("udp", &mut entry.udp, &ports.udp),
            ("ephemeral", &mut entry.ephemeral, &ports.ephemeral),
        ] {
            ranges.extend(more.iter().map(|&range| at(key, range)));
        }
        entry.policy.from.extend(ports.from.iter().cloned());
        entry.policy.established.extend(&ports.established);
    }
}
