//! What is registered beside another file, or a file that was edited meanwhile.

use std::collections::BTreeSet;

use super::super::ConfigErrors;
use super::super::vrf::in_vrf;
use super::listing::Registration;
use super::ports::Ports;
use super::{ConfigFile, Overlay, has_address};

/// What becomes of ports, addresses and groups whose container or uplink is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orphans {
    /// They go.
    Go,
    /// They stay, and are set aside by [`ConfigFile::fit`].
    Stay,
}

/// What does not fit beside the file and the rest, and why.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Aside {
    parts: Vec<(Overlay, String)>,
}

/// An overlay that fits, and what does not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fitted {
    /// It fits beside the file.
    pub overlay: Overlay,
    /// The rest.
    pub aside: Aside,
}

impl Aside {
    /// All of it.
    #[must_use]
    pub fn overlay(&self) -> Overlay {
        let parts = self.parts.iter();
        parts.fold(Overlay::default(), |all, (part, _)| all.with(part))
    }

    /// Whether everything fits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The same where each part is what `change` makes of it.
    #[must_use]
    pub(super) fn map(&self, change: impl Fn(&mut Overlay)) -> Self {
        let parts = self.parts.iter().map(|(part, reason)| {
            let mut part = part.clone();
            change(&mut part);
            (part, reason.clone())
        });
        Self {
            parts: parts.filter(|(part, _)| !part.is_empty()).collect(),
        }
    }

    /// What is left when these holders have ended.
    #[must_use]
    pub fn without_holders(&self, ended: impl Fn(super::Holder) -> bool) -> Self {
        self.map(|part| *part = part.without_holders(&ended))
    }

    /// What it holds, with the reasons.
    pub fn registrations(&self) -> impl Iterator<Item = (Registration, &str)> {
        let parts = self.parts.iter();
        parts.flat_map(|(part, reason)| {
            let all = part.registrations();
            all.into_iter().map(|one| (one, reason.as_str()))
        })
    }
}

impl ConfigFile {
    /// What of `overlay` is left beside this file, when it takes the place of another one; and what
    /// is not, in words.
    ///
    /// What the file says by itself is the file's from now on: a container of the same name, ports
    /// that it lists, a route to the same prefix with the same metric, an address, a group.
    ///
    /// Ports, addresses and groups whose container or uplink is not there go as well, or stay if the overlay
    /// is `Orphans::Stay`.
    #[must_use]
    pub fn adopt(&self, overlay: &Overlay, orphans: Orphans) -> (Overlay, Vec<String>) {
        let mut left = overlay.clone();
        let mut notes = Vec::new();
        let mut goes = |what: String, why: &str| notes.push(format!("{what}: {why}"));
        left.networks.retain(|(name, _)| {
            let stays = self.network(name).is_none();
            if !stays {
                goes(format!("network '{name}'"), "it is in the file now");
            }
            stays
        });
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
            .filter(|((whose, _), _)| !adopted.contains(whose))
        {
            let whose = &name.0;
            let ports = match self.container(whose) {
                Some(entry) => ports.without(&Ports::of(entry)),
                None if left.has_container(whose) || orphans == Orphans::Stay => ports,
                None => {
                    goes(
                        format!("ports of '{whose}'"),
                        "the container is in the file no more",
                    );
                    continue;
                }
            };
            left.set_ports(name, ports);
        }
        left.routes.retain(|(route, _)| {
            let stays = self.route(route).is_none();
            if !stays {
                let (vrf, prefix, _) = route;
                let what = format!("route {prefix}{}", in_vrf(vrf));
                goes(what, "it is in the file now");
            }
            stays
        });
        left.addresses.retain(|(uplink, address)| {
            let address = &address.value;
            let why = match self.uplink(uplink) {
                None if orphans == Orphans::Stay => return true,
                None => "its uplink is in the file no more",
                Some(entry) if has_address(entry, *address) => "it is in the file now",
                Some(_) => return true,
            };
            goes(format!("address {address}"), why);
            false
        });
        self.adopt_groups(&mut left, orphans, goes);
        (left, notes)
    }

    /// `overlay`, which fits beside the file, and as much of `more` as fits beside both. Of entries
    /// that clash with one another, the earlier one is what fits.
    #[must_use]
    pub fn fit(&self, overlay: &Overlay, more: &Overlay) -> Fitted {
        let mut fitted = Fitted {
            overlay: overlay.clone(),
            aside: Aside::default(),
        };
        self.add_parts(&mut fitted, &more.parts());
        fitted
    }

    /// Adds the parts that fit: all at once if they do, else each half by itself.
    fn add_parts(&self, fitted: &mut Fitted, parts: &[Overlay]) {
        let Some((first, others)) = parts.split_first() else {
            return;
        };
        let all = parts
            .iter()
            .fold(fitted.overlay.clone(), |all, part| all.with(part));
        let orphan = parts.iter().find_map(|part| self.orphan(&all, part));
        let reason = match (orphan, self.config(&all)) {
            (None, Ok(_)) => {
                fitted.overlay = all;
                return;
            }
            (Some(orphan), _) => orphan,
            (None, Err(errors)) => said(&errors),
        };
        if others.is_empty() {
            fitted.aside.parts.push((first.clone(), reason));
            return;
        }
        let (earlier, later) = parts.split_at(parts.len() / 2);
        self.add_parts(fitted, earlier);
        self.add_parts(fitted, later);
    }

    /// What of a part belongs to something that is not there.
    fn orphan(&self, all: &Overlay, part: &Overlay) -> Option<String> {
        let is_container = |name| self.container(name).is_some() || all.has_container(name);
        let mut owners = part.ports.keys().map(|(name, _)| name);
        if let Some(name) = owners.find(|name| !is_container(name)) {
            return Some(format!("there is no container '{name}'"));
        }
        let addresses = part.addresses.iter().map(|(uplink, _)| uplink);
        let mut uplinks = addresses.chain(part.groups.iter().map(|(uplink, _)| uplink));
        let missing = uplinks.find(|name| self.uplink(name).is_none())?;
        Some(format!("there is no uplink '{missing}'"))
    }
}

/// What is wrong, in a line.
fn said(errors: &ConfigErrors) -> String {
    let each = errors.errors().iter().map(|error| match &error.key {
        Some(key) => format!("{key}: {}", error.reason),
        None => error.reason.clone(),
    });
    each.collect::<Vec<_>>().join("; ")
}
