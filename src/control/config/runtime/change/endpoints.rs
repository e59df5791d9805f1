//! Endpoints: further attachments of a container's namespace, each to a network of its own.
//!
//! An endpoint is a container of the configuration in the same namespace. Here it gets what follows from who is
//! there: the namespace, a name, and an interface that nobody else has.

use crate::control::config::document::Section;
use crate::control::config::place::At;
use crate::control::config::values;
use crate::control::config::{Config, ConfigErrors, Container, Name, NetnsRef};
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
        let current = self.config(overlay)?;
        let sandbox = request
            .as_ref()
            .and_then(|(_, container)| current.container(&container.value));
        if let (Some((_, container)), None) = (&request, sandbox) {
            report.error(
                container.place,
                self.no_container(overlay, &container.value),
            );
        }
        let (request, sandbox) = report.finish(request.zip(sandbox))?;
        let (network, container) = request;
        let name = endpoint.value("name").map_or_else(
            || endpoint_name(container.value.as_str(), network.value.as_str()),
            str::to_owned,
        );
        let interface = free_interface(&current, &name, &sandbox.netns);
        let implied = endpoint
            .or("name", name)
            .or("interface", interface.to_string())
            .with("network", network.value.as_str())
            .within(&sandbox.netns);
        let attach = Keys::default().with("container", implied);
        let attach = match keys.value("lease") {
            Some(lease) => attach.with("lease", lease),
            None => attach,
        };
        self.attach(overlay, &attach, holders)
    }

    pub(super) fn no_container(&self, overlay: &Overlay, name: &Name) -> String {
        let hint = self.similar_container(overlay, name);
        format!("there is no container \"{name}\"{hint}")
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
        let current = self.config(overlay)?;
        let Some(sandbox) = current.container(&container.value) else {
            return Ok(unchanged(overlay, touched));
        };
        let mut inside = inside(&current, &sandbox.netns);
        let found = inside.find(|it| it.network.as_ref() == Some(&network.value));
        let Some(found) = found else {
            return Ok(unchanged(overlay, touched));
        };
        let report = self.report();
        let name = found.name.clone();
        if let Some(entry) = self.container(&name) {
            let what = format!("container \"{name}\"");
            self.of_the_file(&report, container.place, &what, entry.name.place);
        }
        report.finish(Some(()))?;
        let touched = Touched::Container(name.clone());
        self.withdrawn(overlay, Withdrawal::Container(name), touched)
    }
}

/// The containers of one namespace.
fn inside<'a>(config: &'a Config, netns: &NetnsRef) -> impl Iterator<Item = &'a Container> {
    let path = netns.path();
    let containers = config.containers.iter();
    containers.filter(move |it| it.netns.path() == path)
}

/// The interface of the endpoint of this name if it is there, or else the first `ethN` that none in the
/// namespace has.
fn free_interface(config: &Config, endpoint: &str, netns: &NetnsRef) -> InterfaceName {
    let known = inside(config, netns).find(|it| it.name.as_str() == endpoint);
    if let Some(known) = known {
        return known.interface.clone();
    }
    let mut names = (0..=u16::MAX).filter_map(|n| format!("eth{n}").parse().ok());
    let free = names.find(|name| inside(config, netns).all(|it| it.interface != *name));
    free.unwrap_or_else(InterfaceName::eth0)
}

/// What an endpoint is called whose request does not say it. One that is too long for a name is refused when it
/// is read as one.
#[must_use]
pub fn endpoint_name(container: &str, network: &str) -> String {
    format!("{container}.{network}")
}

fn network_and_container(root: &mut Section<'_>) -> Option<(At<Name>, At<Name>)> {
    let network = root.required("network", "\"tenants\"", values::name);
    let container = root.required("container", "\"web\"", values::name);
    Some((network?, container?))
}
