//! Names of VRFs, and what there is in each.

use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::entries::{Entries, UplinkEntry};
use super::place::At;
use super::report::Report;
use super::values::did_you_mean;
use super::{Name, NameError};

/// The name of the default VRF.
const DEFAULT: &str = "default";

/// The name of a VRF: `default`, or any other [`Name`]. There is one as soon as something names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VrfName {
    /// That of everything that names none.
    #[default]
    Default,
    /// Another one.
    Named(Name),
}

impl VrfName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Default => DEFAULT,
            Self::Named(name) => name.as_str(),
        }
    }

    /// Whether it is the default VRF.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::Default
    }
}

impl fmt::Display for VrfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for VrfName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text {
            DEFAULT => Ok(Self::Default),
            other => other.parse().map(Self::Named),
        }
    }
}

/// What the uplinks of one VRF have.
#[derive(Debug, Default)]
pub(super) struct Vrf<'a> {
    /// In the order of the text.
    pub(super) uplinks: Vec<&'a UplinkEntry>,
    /// Every address of the NOS, in the order of the text.
    pub(super) addresses: Vec<IpAddr>,
    /// Where the NOS has neighbors.
    pub(super) networks: Arc<[IpNet]>,
}

/// The VRFs that there are: those of uplinks. One in which the NOS has no uplink has no address, and
/// whatever else is in it could reach nobody.
#[derive(Debug)]
pub(super) struct Vrfs<'a> {
    by_name: BTreeMap<&'a VrfName, Vrf<'a>>,
    /// That of a VRF that there is not.
    none: Vrf<'a>,
}

impl<'a> Vrfs<'a> {
    pub(super) fn of(uplinks: &'a [UplinkEntry]) -> Self {
        let mut by_name: BTreeMap<&VrfName, Vrf<'a>> = BTreeMap::new();
        for uplink in uplinks {
            let vrf = by_name.entry(&uplink.vrf).or_default();
            vrf.uplinks.push(uplink);
            let addresses = uplink.addresses.iter().map(|at| at.value.addr());
            vrf.addresses.extend(addresses);
        }
        for vrf in by_name.values_mut() {
            let addresses = vrf.uplinks.iter().flat_map(|uplink| &uplink.addresses);
            let networks: BTreeSet<IpNet> = addresses.map(|at| at.value.trunc()).collect();
            vrf.networks = networks.into_iter().collect();
        }
        Self {
            by_name,
            none: Vrf::default(),
        }
    }

    /// What there is in a VRF: nothing in one without uplinks.
    pub(super) fn get(&self, name: &VrfName) -> &Vrf<'a> {
        self.by_name.get(name).unwrap_or(&self.none)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Vrf<'a>> {
        self.by_name.values()
    }

    /// Reports everything that is in a VRF without uplinks: a name is misspelt, or forgotten.
    pub(super) fn check(&self, report: &Report<'_>, entries: &Entries) {
        let routes = entries.routes.iter().map(|entry| &entry.vrf);
        let containers = entries.containers.iter();
        let nos = entries.nos.iter().map(|entry| &entry.vrf);
        let networks = entries.networks.iter().map(|entry| &entry.vrf);
        // What a network says is its own fault.
        let containers = containers.filter(|entry| entry.network.is_none());
        let containers = containers.map(|entry| &entry.vrf);
        for At { value, place } in routes.chain(containers).chain(nos).chain(networks) {
            if !self.by_name.contains_key(value) {
                report.error(*place, self.missing(value));
            }
        }
    }

    fn missing(&self, name: &VrfName) -> String {
        let known: Vec<&str> = self.by_name.keys().map(|name| name.as_str()).collect();
        let hint = did_you_mean(name.as_str(), &known)
            .unwrap_or_else(|| format!("; uplinks are in {}", known.join(", ")));
        format!("no uplink is in VRF \"{name}\"{hint}")
    }
}

/// How an error says in which VRF something is: nothing of the default one, as whoever uses no others
/// need not know of it.
pub(super) fn in_vrf(name: &VrfName) -> String {
    match name {
        VrfName::Default => String::new(),
        VrfName::Named(name) => format!(" in VRF \"{name}\""),
    }
}
