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

mod change;
mod groups;
mod handed;
mod keys;
mod ports;

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ipnet::IpNet;
use nos_shim::ports::{ClaimKind, PortRange, Transport};

pub use change::{Change, Changed, PortsAction, Touched};
pub use keys::Keys;
use ports::{Ports, common};

use super::document::{self, Section};
use super::entries::{self, ContainerEntry, Entries, UplinkEntry};
use super::place::{At, Place};
use super::report::Report;
use super::{Config, ConfigErrors, MAX_TEXT, Name, check, read_text};

/// A configuration file that was read and is good.
#[derive(Debug)]
pub struct ConfigFile {
    name: String,
    text: String,
    entries: Entries,
}

/// What was registered at run time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overlay {
    /// In the order in which they came, with the keys by which they were attached.
    containers: Vec<(Name, Keys)>,
    /// Of a container of the file what it has besides; of another one all that it has, unless that
    /// is still what its keys say.
    ports: BTreeMap<Name, Ports>,
    routes: Vec<(RouteName, Keys)>,
    addresses: Vec<(Name, IpNet)>,
    groups: Vec<(Name, IpAddr)>,
}

/// Prefix and metric of a route, which are its alone.
type RouteName = (IpNet, u16);

impl Overlay {
    /// Whether a container was attached at run time.
    #[must_use]
    pub fn has_container(&self, name: &Name) -> bool {
        self.containers.iter().any(|(known, _)| known == name)
    }

    /// Whether a container has this range from a request at run time.
    #[must_use]
    pub fn has_ports(
        &self,
        name: &Name,
        transport: Transport,
        range: PortRange,
        kind: ClaimKind,
    ) -> bool {
        let added = |ports: &Ports| match kind {
            ClaimKind::Listen => ports.listens(transport, range),
            ClaimKind::Ephemeral => common(&ports.ephemeral, range).is_some(),
        };
        self.has_container(name) || self.ports.get(name).is_some_and(added)
    }

    /// Whether a static route was added at run time.
    #[must_use]
    pub fn has_route(&self, prefix: IpNet, metric: u16) -> bool {
        self.routes
            .iter()
            .any(|(name, _)| *name == (prefix, metric))
    }

    /// Addresses that were added to an uplink at run time.
    pub fn addresses_of(&self, uplink: &str) -> impl Iterator<Item = IpNet> {
        let of = self
            .addresses
            .iter()
            .filter(move |(name, _)| name.as_str() == uplink);
        of.map(|&(_, address)| address)
    }

    /// Containers and routes as a text that could stand in a file.
    fn text(&self) -> String {
        let list = |all: Vec<&Keys>| -> toml::Value {
            all.into_iter()
                .cloned()
                .map(toml::Value::from)
                .collect::<Vec<_>>()
                .into()
        };
        let containers = self.containers.iter().map(|(_, keys)| keys).collect();
        let routes = self.routes.iter().map(|(_, keys)| keys).collect();
        Keys::default()
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
        let report = Report::new(name, text);
        let entries = document::parse(&report, text).map(|document| {
            let entries = entries::read(&report, &document);
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

    /// What of `overlay` is left beside this file, when it takes the place of another one; and what
    /// is not, in words.
    ///
    /// What the file says by itself is the file's from now on: a container of the same name, ports
    /// that it lists, a route to the same prefix with the same metric, an address, a group.
    /// Ports, addresses and groups go with the container and the uplink that had them.
    #[must_use]
    pub fn adopt(&self, overlay: &Overlay) -> (Overlay, Vec<String>) {
        let mut left = overlay.clone();
        let mut notes = Vec::new();
        let mut goes = |what: String, why: &str| notes.push(format!("{what}: {why}"));
        let mut adopted = BTreeSet::new();
        left.containers.retain(|(name, _)| {
            let stays = self.container(name).is_none();
            if !stays {
                adopted.insert(name.clone());
                goes(format!("container '{name}'"), "it is in the file now");
            }
            stays
        });
        let ports = std::mem::take(&mut left.ports);
        for (name, ports) in ports
            .into_iter()
            .filter(|(name, _)| !adopted.contains(name))
        {
            let ports = match self.container(&name) {
                Some(entry) => ports.without(&Ports::of(entry)),
                None if left.has_container(&name) => ports,
                None => {
                    goes(
                        format!("ports of '{name}'"),
                        "the container is in the file no more",
                    );
                    continue;
                }
            };
            if !ports.is_empty() || left.has_container(&name) {
                left.ports.insert(name, ports);
            }
        }
        left.routes.retain(|(route, _)| {
            let stays = self.route(*route).is_none();
            if !stays {
                goes(format!("route {}", route.0), "it is in the file now");
            }
            stays
        });
        left.addresses.retain(|(uplink, address)| {
            let why = match self
                .entries
                .uplinks
                .iter()
                .find(|it| it.name.value == *uplink)
            {
                None => "its uplink is in the file no more",
                Some(entry) if has_address(entry, *address) => "it is in the file now",
                Some(_) => return true,
            };
            goes(format!("address {address}"), why);
            false
        });
        self.adopt_groups(&mut left, goes);
        (left, notes)
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

    /// Where the file has a route.
    fn route(&self, (prefix, metric): RouteName) -> Option<Place> {
        let mut routes = self.entries.routes.iter();
        let found = routes.find(|it| it.prefix.value == prefix && it.metric == metric)?;
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

fn has_address(uplink: &UplinkEntry, address: IpNet) -> bool {
    uplink.addresses.iter().any(|at| at.value == address)
}

/// Gives uplinks the addresses that were added. An uplink of a runtime address is always there.
fn add_addresses(report: &Report<'_>, overlay: &Overlay, uplinks: &mut [UplinkEntry]) {
    for (name, address) in &overlay.addresses {
        let place = Place::new(report.offsets(1), "address", "address");
        let value = *address;
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
        let Some(ports) = overlay.ports.get(&entry.name.value) else {
            continue;
        };
        if overlay.has_container(&entry.name.value) {
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
