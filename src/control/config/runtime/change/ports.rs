//! Ports that containers are given at run time, and lose.

use nos_shim::ports::PortRange;

use crate::control::config::document::Section;
use crate::control::config::place::At;
use crate::control::config::port_list::PortLists;
use crate::control::config::report::Report;
use crate::control::config::runtime::ports::{Ports, common, joined, normal};
use crate::control::config::values::{self, did_you_mean};
use crate::control::config::{ConfigErrors, Name};

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
        let asked = request.ports();
        if action == PortsAction::Remove {
            self.removable(&report, &request, &fixed);
        } else if !asked.agrees_with(&fixed) {
            let reason = "asks for other rules than the configuration has for the same ports; \
                          change the file and reload";
            report.error(request.name.place, reason);
        }
        report.finish(Some(()))?;
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
            ("tcp", &request.lists.tcp.ranges, &fixed.tcp),
            ("udp", &request.lists.udp.ranges, &fixed.udp),
            (
                "ephemeral",
                &request.lists.ephemeral.ranges,
                &fixed.ephemeral,
            ),
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
    lists: PortLists,
}

impl PortsRequest {
    fn ports(&self) -> Ports {
        let values = |all: &[At<PortRange>]| normal(all.iter().map(|at| at.value).collect());
        Ports {
            tcp: values(&self.lists.tcp.ranges),
            udp: values(&self.lists.udp.ranges),
            ephemeral: values(&self.lists.ephemeral.ranges),
            from: joined(self.lists.restrictions()),
            established: PortRange::merged(self.lists.ephemeral.established.clone()),
        }
    }
}

fn ports_request(root: &mut Section<'_>, action: PortsAction) -> Option<PortsRequest> {
    let name = root.required("container", "\"web\"", values::name);
    let lists = PortLists::read(root);
    let none = ["tcp", "udp", "ephemeral"].iter().all(|key| !root.has(key));
    if none && action != PortsAction::Replace {
        let place = root.header("tcp");
        root.error(
            place,
            "is missing, and so are udp and ephemeral; give one of the three",
        );
    }
    Some(PortsRequest { name: name?, lists })
}
