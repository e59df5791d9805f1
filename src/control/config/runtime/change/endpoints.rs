//! Endpoints: further attachments of a container's namespace, each to a network of its own.
//!
//! An endpoint is a container of the configuration in the same namespace. Here it gets what follows from who is
//! there: the namespace, a name, and an interface that nobody else has.

use crate::control::config::document::Section;
use crate::control::config::entries::ContainerEntry;
use crate::control::config::place::At;
use crate::control::config::values::{self, did_you_mean};
use crate::control::config::{ConfigErrors, Name, NetnsRef};
use crate::interface_name::InterfaceName;

use super::{Changed, ConfigFile, Holders, Keys, Overlay, Touched, Withdrawal, read, unchanged};

/// What a request to connect says of an endpoint by itself.
const IMPLIED: [&str; 3] = ["netns", "pid", "network"];

impl ConfigFile {
    pub(super) fn connect(
        &self,
        overlay: &Overlay,
        keys: &Keys,
        holders: &Holders,
    ) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let endpoint = keys.table("endpoint").unwrap_or_default();
        let request = read(&report, keys, "network-connect", |root| {
            let both = network_and_container(root);
            for key in IMPLIED.into_iter().filter(|key| endpoint.has(key)) {
                let place = root.header("endpoint");
                root.error(place, format!("says {key}, which follows from the rest"));
            }
            // They are read below.
            let _ = (
                root.table("endpoint"),
                root.optional("lease", values::lease),
            );
            both
        });
        let sandbox = request
            .as_ref()
            .and_then(|(_, container)| self.attached(overlay, &container.value));
        if let (Some((_, container)), None) = (&request, &sandbox) {
            report.error(
                container.place,
                self.no_container(overlay, &container.value),
            );
        }
        let (request, sandbox) = report.finish(request.zip(sandbox))?;
        let (network, container) = request;
        let name = endpoint.value("name").map_or_else(
            || endpoint_name(&container.value, &network.value),
            str::to_owned,
        );
        let interface = self.free_interface(overlay, &name, &sandbox.netns.value);
        let implied = endpoint
            .or("name", name)
            .or("interface", interface.to_string())
            .with("network", network.value.as_str())
            .within(&sandbox.netns.value);
        let attach = Keys::default().with("container", implied);
        let attach = match keys.value("lease") {
            Some(lease) => attach.with("lease", lease),
            None => attach,
        };
        self.attach(overlay, &attach, holders)
    }

    pub(super) fn no_container(&self, overlay: &Overlay, name: &Name) -> String {
        let of_file = self.entries.containers.iter().map(|it| &it.name.value);
        let added = overlay.containers.iter().map(|(name, _)| name);
        let known: Vec<_> = of_file.chain(added).map(Name::as_str).collect();
        let hint = did_you_mean(name.as_str(), &known).unwrap_or_default();
        format!("there is no container \"{name}\"{hint}")
    }

    /// Every container, of the file and of run time.
    fn every_container(&self, overlay: &Overlay) -> Vec<ContainerEntry> {
        let of_file = self.entries.containers.iter().cloned();
        let added = overlay.containers.iter();
        let added = added.filter_map(|(name, _)| self.attached(overlay, name));
        of_file.chain(added).collect()
    }

    /// The interface of the endpoint of this name if it is there, or else the first `ethN` that none in
    /// the namespace has.
    fn free_interface(&self, overlay: &Overlay, endpoint: &str, netns: &NetnsRef) -> InterfaceName {
        let all = self.every_container(overlay);
        let inside: Vec<_> = all
            .iter()
            .filter(|it| it.netns.value.path() == netns.path())
            .collect();
        let mut known = inside.iter();
        if let Some(known) = known.find(|it| it.name.value.as_str() == endpoint) {
            return known.interface.clone();
        }
        let mut names = (0..=u16::MAX).filter_map(|n| format!("eth{n}").parse().ok());
        let free = names.find(|name| inside.iter().all(|it| it.interface != *name));
        free.unwrap_or_else(InterfaceName::eth0)
    }

    pub(super) fn disconnect(
        &self,
        overlay: &Overlay,
        keys: &Keys,
    ) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let request = read(&report, keys, "network-disconnect", network_and_container);
        let (network, container) = report.finish(request)?;
        let touched = Touched::Container(container.value.clone());
        let Some(sandbox) = self.attached(overlay, &container.value) else {
            return Ok(unchanged(overlay, touched));
        };
        let all = self.every_container(overlay);
        let found = all.into_iter().find(|it| {
            let same = it.netns.value.path() == sandbox.netns.value.path();
            same && it.network.as_ref().map(|at| &at.value) == Some(&network.value)
        });
        let Some(found) = found else {
            return Ok(unchanged(overlay, touched));
        };
        let report = self.report();
        let name = found.name.value;
        if let Some(entry) = self.container(&name) {
            let what = format!("container \"{name}\"");
            self.of_the_file(&report, container.place, &what, entry.name.place);
        }
        report.finish(Some(()))?;
        let touched = Touched::Container(name.clone());
        self.withdrawn(overlay, Withdrawal::Container(name), touched)
    }
}

/// What an endpoint is called whose request does not say it. One that is too long for a name is refused when it
/// is read as one.
fn endpoint_name(container: &Name, network: &Name) -> String {
    format!("{container}.{network}")
}

fn network_and_container(root: &mut Section<'_>) -> Option<(At<Name>, At<Name>)> {
    let network = root.required("network", "\"tenants\"", values::name);
    let container = root.required("container", "\"web\"", values::name);
    Some((network?, container?))
}
