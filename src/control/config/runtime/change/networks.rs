//! Networks of containers that come and go at run time.

use crate::control::config::entries::{self, ContainerEntry, Entries, NetworkEntry};
use crate::control::config::place::At;
use crate::control::config::runtime::overlay::Withdrawal;
use crate::control::config::{ConfigErrors, ContainerNetwork, Name, values};

use super::{Changed, ConfigFile, Holders, Keys, Overlay, Touched, holder, read, unchanged};

impl ConfigFile {
    pub(super) fn create_network(
        &self,
        overlay: &Overlay,
        keys: &Keys,
        holders: &Holders,
    ) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let request = read(&report, keys, "network-create", |root| {
            root.require("network", "{\"name\":\"tenants\",...}");
            let holder = holder::read(root, holders, false);
            let entry = entries::network(root.table("network")?);
            Some((entry?, holder?))
        });
        let (entry, holder) = report.finish(request)?;
        let name = entry.name.value.clone();
        let touched = Touched::Network(name.clone());
        let held = overlay.network(&name).is_none_or(|it| it.holder == holder);
        if held
            && let Some(known) = self.network_entry(overlay, &name)
            && self.network_alone(overlay, known)? == self.network_alone(overlay, entry)?
        {
            return Ok(unchanged(overlay, touched));
        }
        let mut new = overlay.clone();
        let entry = new.entry(keys.table("network").unwrap_or_default(), holder);
        new.networks.push((name, entry));
        self.changed(new, touched)
    }

    /// A network as it was made, or as the file has it.
    fn network_entry(&self, overlay: &Overlay, name: &Name) -> Option<NetworkEntry> {
        if let Some(entry) = self.network(name) {
            return Some(entry.clone());
        }
        let keys = &overlay.network(name)?.value;
        self.registered(("network-create", "network"), keys, entries::network)
    }

    /// What an entry says, if it were the only network.
    fn network_alone(
        &self,
        overlay: &Overlay,
        entry: NetworkEntry,
    ) -> Result<ContainerNetwork, ConfigErrors> {
        let put = |entries: &mut Entries| entries.networks = vec![entry];
        self.alone(overlay, put, |mut config| config.networks.pop())
    }

    pub(super) fn remove_network(
        &self,
        overlay: &Overlay,
        keys: &Keys,
    ) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let name = read(&report, keys, "network-remove", |root| {
            root.required("name", "\"tenants\"", values::name)
        });
        if let Some(At { value, place }) = &name {
            if let Some(entry) = self.network(value) {
                let what = format!("network \"{value}\"");
                self.of_the_file(&report, *place, &what, entry.name.place);
            } else if let inside @ [_, ..] = &self.containers_in(overlay, value)[..] {
                let reason = format!(
                    "network \"{value}\" has {}; detach them first",
                    inside.join(", ")
                );
                report.error(*place, reason);
            }
        }
        let name = report.finish(name)?.value;
        let touched = Touched::Network(name.clone());
        self.withdrawn(overlay, Withdrawal::Network(name), touched)
    }

    /// The containers of a network, as errors call them.
    fn containers_in(&self, overlay: &Overlay, network: &Name) -> Vec<String> {
        let inside = |entry: &&ContainerEntry| {
            let named = entry.network.as_ref().map(|at| &at.value);
            named == Some(network)
        };
        let of_file = self.entries.containers.iter().filter(inside);
        let of_file = of_file.map(|entry| entry.name.value.to_string());
        let added = overlay.containers.iter().filter(|(_, it)| {
            let named = it.value.value("network");
            named == Some(network.as_str())
        });
        let added = added.map(|(name, _)| name.to_string());
        let quoted = of_file
            .chain(added)
            .map(|name| format!("container \"{name}\""));
        quoted.collect()
    }
}
