//! Ports that containers are given at run time, and lose.

use std::collections::BTreeSet;

use nos_shim::ports::PortRange;

use crate::control::config::document::Section;
use crate::control::config::place::At;
use crate::control::config::port_list::PortLists;
use crate::control::config::report::Report;
use crate::control::config::runtime::ports::{Ports, common, joined, normal};
use crate::control::config::values::{self, did_you_mean};
use crate::control::config::{ConfigErrors, Name};

use super::{
    Changed, ConfigFile, Holders, Keys, Overlay, PortsAction, Touched, Withdrawal, holder, read,
    unchanged,
};
use crate::control::config::Holder;

impl ConfigFile {
    pub(super) fn ports(
        &self,
        overlay: &Overlay,
        action: PortsAction,
        keys: &Keys,
        holders: &Holders,
    ) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let request = read(&report, keys, "ports", |root| {
            ports_request(root, action, holders)
        });
        let request = request.filter(|request| self.is_container(&report, overlay, &request.name));
        let Some(request) = request else {
            return report.finish(None);
        };
        let name = request.name.value.clone();
        let fixed = self.container(&name).map(Ports::of).unwrap_or_default();
        let asked = request.ports();
        if action == PortsAction::Remove {
            self.removable(&report, &request, &fixed);
        } else if !asked.agrees_with(&fixed) {
            let reason = "asks for other rules than the configuration has for the same ports; \
                          change the file and reload";
            report.error(request.name.place, reason);
        } else if action == PortsAction::Add && !self.others_agree(overlay, &request, &asked) {
            let reason = "asks for other rules than somebody else holds the same ports with";
            report.error(request.name.place, reason);
        }
        report.finish(Some(()))?;
        let more = asked.without(&fixed);
        match action {
            PortsAction::Add => {
                let held = self.held_ports(overlay, &name, request.holder).with(&more);
                self.with_ports(overlay, &name, request.holder, held)
            }
            PortsAction::Remove => {
                let mut new = overlay.clone();
                for holder in holders_of(overlay, &name) {
                    let left = self.held_ports(overlay, &name, holder).without(&asked);
                    self.set_ports(&mut new, &name, holder, left);
                }
                self.with_other_ports(overlay, new, name, asked)
            }
            PortsAction::Replace => {
                let mut new = overlay.clone();
                for holder in holders_of(overlay, &name) {
                    // With the rules that they have from now on.
                    let held = more.common_with(&self.held_ports(overlay, &name, holder));
                    self.set_ports(&mut new, &name, holder, held);
                }
                self.set_ports(&mut new, &name, None, more);
                let all = Ports::all();
                self.with_other_ports(overlay, new, name, all)
            }
        }
    }

    /// Whether what others hold of the ports that are asked for has the same rules.
    fn others_agree(&self, overlay: &Overlay, request: &PortsRequest, asked: &Ports) -> bool {
        let name = &request.name.value;
        let others = holders_of(overlay, name).into_iter();
        let mut others = others.filter(|holder| *holder != request.holder);
        others.all(|holder| asked.agrees_with(&self.held_ports(overlay, name, holder)))
    }

    /// The overlay where other ports of a container are held.
    pub(super) fn with_ports(
        &self,
        overlay: &Overlay,
        name: &Name,
        holder: Option<Holder>,
        ports: Ports,
    ) -> Result<Changed, ConfigErrors> {
        let touched = Touched::Container(name.clone());
        if self.held_ports(overlay, name, holder) == ports {
            return Ok(unchanged(overlay, touched));
        }
        let mut new = overlay.clone();
        new.set_ports((name.clone(), holder), ports);
        self.changed(new, touched)
    }

    /// The overlay `new`, where `asked` is taken away; of what was set aside as well.
    fn with_other_ports(
        &self,
        overlay: &Overlay,
        new: Overlay,
        name: Name,
        asked: Ports,
    ) -> Result<Changed, ConfigErrors> {
        let touched = Touched::Container(name.clone());
        let withdrawal = Withdrawal::Ports(name, asked);
        self.taken_away(overlay, new, withdrawal, touched)
    }

    /// Gives a holder exactly these ports, unless it has them.
    fn set_ports(&self, new: &mut Overlay, name: &Name, holder: Option<Holder>, ports: Ports) {
        if self.held_ports(new, name, holder) != ports {
            new.set_ports((name.clone(), holder), ports);
        }
    }

    /// What is held of a container's ports that are not of the file. What is held by nobody is what
    /// it has by its keys, until that is changed.
    pub(super) fn held_ports(
        &self,
        overlay: &Overlay,
        name: &Name,
        holder: Option<Holder>,
    ) -> Ports {
        let record = overlay.ports.get(&(name.clone(), holder)).cloned();
        record.unwrap_or_else(|| match (holder, self.container(name)) {
            (Some(_), _) | (None, Some(_)) => Ports::default(),
            (None, None) => self
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
        let hint = self.similar_container(overlay, &name.value);
        report.error(
            name.place,
            format!("\"{}\" is no container{hint}", name.value),
        );
        false
    }

    /// Says which container may be meant by a name that none has, if one is like it.
    pub(super) fn similar_container(&self, overlay: &Overlay, name: &Name) -> String {
        let of_file = self.entries.containers.iter().map(|it| &it.name.value);
        let added = overlay.containers.iter().map(|(name, _)| name);
        let known: Vec<_> = of_file.chain(added).map(Name::as_str).collect();
        did_you_mean(name.as_str(), &known).unwrap_or_default()
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

/// Who holds ports of a container; that nobody does is among them.
fn holders_of(overlay: &Overlay, name: &Name) -> BTreeSet<Option<Holder>> {
    let held = overlay.ports_of(name).map(|(holder, _)| holder);
    held.chain([None]).collect()
}

struct PortsRequest {
    name: At<Name>,
    holder: Option<Holder>,
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

fn ports_request(
    root: &mut Section<'_>,
    action: PortsAction,
    holders: &Holders,
) -> Option<PortsRequest> {
    let name = root.required("container", "\"web\"", values::name);
    let lists = PortLists::read(root);
    let holder = match action {
        PortsAction::Add => holder::read(root, holders, true),
        PortsAction::Remove | PortsAction::Replace => Some(None),
    };
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
        holder: holder?,
        lists,
    })
}
