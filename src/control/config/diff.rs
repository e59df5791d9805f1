//! What differs between two configurations, for a reload that changes only that.

use core::hash::Hash;
use std::collections::{HashMap, HashSet};

use bitflags::bitflags;

use super::{Config, Container, Name, Route, Service, Uplink};

/// What has to be done to get from one configuration to another.
///
/// Uplinks and containers are told apart by name: one that is renamed is removed and added. Their
/// order in the file does not matter. To free ports and devices before they are taken, apply
/// removals first, then changes, then additions; when ports move between two containers that stay,
/// release those of all changed containers before claiming new ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes<'a> {
    /// Uplinks.
    pub uplinks: SetChanges<'a, Uplink, UplinkAspects>,
    /// Containers.
    pub containers: SetChanges<'a, Container, ContainerAspects>,
    /// Routes to take out. A route that differs in any way is taken out and put in.
    pub routes_removed: Vec<&'a Route>,
    /// Routes to put in.
    pub routes_added: Vec<&'a Route>,
    /// Services of the NOS.
    pub services: ServiceChanges,
    /// Settings that differ but take effect only at the next start.
    pub restart: Vec<NeedsRestart>,
}

/// How a set of named things differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetChanges<'a, T, A> {
    /// Only in the old configuration.
    pub removed: Vec<&'a T>,
    /// In both, but not alike.
    pub changed: Vec<Changed<'a, T, A>>,
    /// Only in the new configuration.
    pub added: Vec<&'a T>,
}

/// Something that is in both configurations, but not alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed<'a, T, A> {
    /// As it was.
    pub old: &'a T,
    /// As it shall be.
    pub new: &'a T,
    /// In what they differ; never empty.
    pub aspects: A,
}

/// How the NOS's own services differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceChanges {
    /// To stop.
    pub removed: Vec<Service>,
    /// To start.
    pub added: Vec<Service>,
    /// Whether to answer echo requests from now on, if that differs.
    pub ping: Option<bool>,
}

/// A setting that differs but takes effect only at the next start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeedsRestart {
    /// The key, as in `relay.threads`.
    pub key: &'static str,
    /// Its value in the old configuration.
    pub old: String,
    /// Its value in the new configuration.
    pub new: String,
}

bitflags! {
    /// In what two containers of one name differ.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct ContainerAspects: u8 {
        /// Namespace, device, interface, MAC address, offload or VRF: detach and attach anew.
        const DEVICE = 1;
        /// The addresses, or their order.
        const ADDRESSES = 1 << 1;
        /// The ports that it listens on.
        const PORTS = 1 << 2;
        /// The ports that it opens flows from.
        const EPHEMERAL = 1 << 3;
        /// The interface's MTU.
        const MTU = 1 << 4;
        /// The capture file.
        const CAPTURE = 1 << 5;
    }

    /// In what two uplinks of one name differ.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct UplinkAspects: u8 {
        /// Device, MAC address, offload or VRF: close and open anew.
        const DEVICE = 1;
        /// The addresses, or their order.
        const ADDRESSES = 1 << 1;
        /// The MTU.
        const MTU = 1 << 2;
        /// The capture file.
        const CAPTURE = 1 << 3;
    }
}

impl Config {
    /// What has to be done to get from `old` to `new`.
    #[must_use]
    pub fn diff<'a>(old: &'a Self, new: &'a Self) -> Changes<'a> {
        Changes {
            uplinks: between(&old.uplinks, &new.uplinks),
            containers: between(&old.containers, &new.containers),
            routes_removed: missing(&old.routes, &new.routes),
            routes_added: missing(&new.routes, &old.routes),
            services: services(old, new),
            restart: restart(old, new),
        }
    }
}

impl Changes<'_> {
    /// Whether there is nothing to do, now or at the next start.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }
}

impl<T, A> Default for SetChanges<'_, T, A> {
    fn default() -> Self {
        Self {
            removed: Vec::new(),
            changed: Vec::new(),
            added: Vec::new(),
        }
    }
}

impl<T, A> SetChanges<'_, T, A> {
    /// Whether the sets are alike.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.changed.is_empty() && self.added.is_empty()
    }
}

/// Something with a name that can be compared with another of the same name.
trait Entry {
    type Aspects;
    fn name(&self) -> &Name;
    /// In what the two differ, or `None` if they are alike.
    fn differs(&self, other: &Self) -> Option<Self::Aspects>;
}

impl Entry for Uplink {
    type Aspects = UplinkAspects;

    fn name(&self) -> &Name {
        &self.name
    }

    fn differs(&self, other: &Self) -> Option<UplinkAspects> {
        let device = |it: &Self| (it.device.clone(), it.mac, it.offload, it.vrf);
        let mut aspects = UplinkAspects::empty();
        aspects.set(UplinkAspects::DEVICE, device(self) != device(other));
        aspects.set(UplinkAspects::ADDRESSES, self.addresses != other.addresses);
        aspects.set(UplinkAspects::MTU, self.mtu != other.mtu);
        aspects.set(UplinkAspects::CAPTURE, self.capture != other.capture);
        (!aspects.is_empty()).then_some(aspects)
    }
}

impl Entry for Container {
    type Aspects = ContainerAspects;

    fn name(&self) -> &Name {
        &self.name
    }

    fn differs(&self, other: &Self) -> Option<ContainerAspects> {
        let place = |it: &Self| (it.netns.clone(), it.interface.clone());
        let device = |it: &Self| (it.device, it.mac, it.offload, it.vrf);
        let ports = |it: &Self| (it.tcp.clone(), it.udp.clone());
        let moved = place(self) != place(other) || device(self) != device(other);
        let mut aspects = ContainerAspects::empty();
        aspects.set(ContainerAspects::DEVICE, moved);
        aspects.set(
            ContainerAspects::ADDRESSES,
            self.addresses != other.addresses,
        );
        aspects.set(ContainerAspects::PORTS, ports(self) != ports(other));
        aspects.set(
            ContainerAspects::EPHEMERAL,
            self.ephemeral != other.ephemeral,
        );
        aspects.set(ContainerAspects::MTU, self.mtu != other.mtu);
        aspects.set(ContainerAspects::CAPTURE, self.capture != other.capture);
        (!aspects.is_empty()).then_some(aspects)
    }
}

fn between<'a, T: Entry>(old: &'a [T], new: &'a [T]) -> SetChanges<'a, T, T::Aspects> {
    let olds = by_name(old);
    let news = by_name(new);
    let changed = |new: &'a T| {
        let old = *olds.get(new.name())?;
        let aspects = old.differs(new)?;
        Some(Changed { old, new, aspects })
    };
    SetChanges {
        removed: old
            .iter()
            .filter(|entry| !news.contains_key(entry.name()))
            .collect(),
        changed: new.iter().filter_map(changed).collect(),
        added: new
            .iter()
            .filter(|entry| !olds.contains_key(entry.name()))
            .collect(),
    }
}

fn by_name<T: Entry>(entries: &[T]) -> HashMap<&Name, &T> {
    entries.iter().map(|entry| (entry.name(), entry)).collect()
}

/// Those of `these` that are not among `those`.
fn missing<'a, T: Eq + Hash>(these: &'a [T], those: &[T]) -> Vec<&'a T> {
    let those: HashSet<_> = those.iter().collect();
    these.iter().filter(|this| !those.contains(this)).collect()
}

fn services(old: &Config, new: &Config) -> ServiceChanges {
    let (old, new) = (&old.nos, &new.nos);
    ServiceChanges {
        removed: missing(&old.services, &new.services)
            .into_iter()
            .copied()
            .collect(),
        added: missing(&new.services, &old.services)
            .into_iter()
            .copied()
            .collect(),
        ping: (old.ping != new.ping).then_some(new.ping),
    }
}

fn restart(old: &Config, new: &Config) -> Vec<NeedsRestart> {
    let setting = |key, old: String, new: String| NeedsRestart { key, old, new };
    let (old, new) = (&old.relay, &new.relay);
    let mut settings = vec![
        setting(
            "relay.threads",
            old.threads.to_string(),
            new.threads.to_string(),
        ),
        setting(
            "relay.buffers",
            old.buffers.to_string(),
            new.buffers.to_string(),
        ),
        setting("relay.ring", old.ring.to_string(), new.ring.to_string()),
    ];
    settings.retain(|setting| setting.old != setting.new);
    settings
}
