//! Ports that containers are given at run time, and lose.

use nos_shim::ports::PortRange;

use crate::control::config::document::Section;
use crate::control::config::place::At;
use crate::control::config::report::Report;
use crate::control::config::runtime::ports::{Ports, common, normal};
use crate::control::config::values::{self, did_you_mean};
use crate::control::config::{ConfigErrors, Name, port_list};

use super::{Changed, ConfigFile, Keys, Overlay, PortsAction, Touched, read, unchanged};

impl ConfigFile {
    pub(super) fn ports(
        &self,
        overlay: &Overlay,
        action: PortsAction,
        keys: &Keys,
    ) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let request = read(&report, keys, "ports", |root| ports_request(root, action));
        let request = request.filter(|request| self.is_container(&report, overlay, &request.name));
        let Some(request) = request else {
            return report.finish(None);
        };
        let name = request.name.value.clone();
        let fixed = self.container(&name).map(Ports::of).unwrap_or_default();
        let own = self.own_ports(overlay, &name);
        if action == PortsAction::Remove {
            self.removable(&report, &request, &fixed);
        }
        report.finish(Some(()))?;
        let asked = request.ports();
        let new = match action {
            PortsAction::Add => own.with(&asked.without(&fixed)),
            PortsAction::Remove => own.without(&asked),
            PortsAction::Replace => asked.without(&fixed),
        };
        self.with_ports(overlay, &name, new)
    }

    /// The overlay with other ports of a container.
    pub(super) fn with_ports(
        &self,
        overlay: &Overlay,
        name: &Name,
        ports: Ports,
    ) -> Result<Changed, ConfigErrors> {
        let touched = Touched::Container(name.clone());
        if self.own_ports(overlay, name) == ports {
            return Ok(unchanged(overlay, touched));
        }
        let mut new = overlay.clone();
        match ports.is_empty() && !overlay.has_container(name) {
            true => new.ports.remove(name),
            false => new.ports.insert(name.clone(), ports),
        };
        self.changed(new, touched)
    }

    /// What a container has that is not of the file.
    pub(super) fn own_ports(&self, overlay: &Overlay, name: &Name) -> Ports {
        let record = overlay.ports.get(name).cloned();
        record.unwrap_or_else(|| match self.container(name) {
            Some(_) => Ports::default(),
            None => self
                .attached(overlay, name)
                .as_ref()
                .map(Ports::of)
                .unwrap_or_default(),
        })
    }

    pub(super) fn is_container(
        &self,
        report: &Report<'_>,
        overlay: &Overlay,
        name: &At<Name>,
    ) -> bool {
        if self.container(&name.value).is_some() || overlay.has_container(&name.value) {
            return true;
        }
        let known = self
            .entries
            .containers
            .iter()
            .map(|entry| entry.name.value.as_str());
        let added = overlay.containers.iter().map(|(name, _)| name.as_str());
        let known: Vec<_> = known.chain(added).collect();
        let hint = did_you_mean(name.value.as_str(), &known).unwrap_or_default();
        report.error(
            name.place,
            format!("\"{}\" is no container{hint}", name.value),
        );
        false
    }

    /// Reports what is asked to go and is of the file.
    fn removable(&self, report: &Report<'_>, request: &PortsRequest, fixed: &Ports) {
        let Some(entry) = self.container(&request.name.value) else {
            return;
        };
        for (what, asked, fixed) in [
            ("tcp", &request.tcp, &fixed.tcp),
            ("udp", &request.udp, &fixed.udp),
            ("ephemeral", &request.ephemeral, &fixed.ephemeral),
        ] {
            for at in asked {
                if let Some(range) = common(fixed, at.value) {
                    let name = &request.name.value;
                    let what = format!("{what} {range} of container \"{name}\"");
                    self.of_the_file(report, at.place, &what, entry.name.place);
                }
            }
        }
    }
}

struct PortsRequest {
    name: At<Name>,
    tcp: Vec<At<PortRange>>,
    udp: Vec<At<PortRange>>,
    ephemeral: Vec<At<PortRange>>,
}

impl PortsRequest {
    fn ports(&self) -> Ports {
        let values = |all: &[At<PortRange>]| normal(all.iter().map(|at| at.value).collect());
        Ports {
            tcp: values(&self.tcp),
            udp: values(&self.udp),
            ephemeral: values(&self.ephemeral),
        }
    }
}

fn ports_request(root: &mut Section<'_>, action: PortsAction) -> Option<PortsRequest> {
    let name = root.required("container", "\"web\"", values::name);
    let [tcp, udp, ephemeral] = ["tcp", "udp", "ephemeral"].map(|key| port_list::read(root, key));
    let none = ["tcp", "udp", "ephemeral"].iter().all(|key| !root.has(key));
    if none && action != PortsAction::Replace {
        let place = root.header("tcp");
        root.error(
            place,
            "is missing, and so are udp and ephemeral; give one of the three",
        );
    }
    Some(PortsRequest {
        name: name?,
        tcp,
        udp,
        ephemeral,
    })
}
