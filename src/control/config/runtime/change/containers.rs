//! Containers that are attached and detached at run time.

use crate::control::config::entries::{self, ContainerEntry, Entries};
use crate::control::config::place::At;
use crate::control::config::{ConfigErrors, Container, Name, values};

use super::{
    Changed, ConfigFile, Holders, Keys, Overlay, Touched, Withdrawal, holder, read, unchanged,
};

impl ConfigFile {
    pub(super) fn attach(
        &self,
        overlay: &Overlay,
        keys: &Keys,
        holders: &Holders,
    ) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let request = read(&report, keys, "attach", |root| {
            root.require("container", "{\"name\":\"web\",...}");
            let holder = holder::read(root, holders, false);
            let entry = entries::container(root.table("container")?);
            Some((entry?, holder?))
        });
        let (entry, holder) = report.finish(request)?;
        let name = entry.name.value.clone();
        let touched = Touched::Container(name.clone());
        let shall = self.container_alone(overlay, entry)?;
        let held = overlay
            .container(&name)
            .is_none_or(|it| it.holder == holder);
        if held
            && let Some(known) = self.attached(overlay, &name)
            && self
                .container_alone(overlay, known)
                .is_ok_and(|is| is == shall)
        {
            return Ok(unchanged(overlay, touched));
        }
        let mut new = overlay.clone();
        let entry = new.entry(keys.table("container").unwrap_or_default(), holder);
        new.containers.push((name, entry));
        self.changed(new, touched)
    }

    /// A container as it was attached, or as the file has it.
    pub(super) fn attached(&self, overlay: &Overlay, name: &Name) -> Option<ContainerEntry> {
        if let Some(entry) = self.container(name) {
            return Some(entry.clone());
        }
        let keys = &overlay.container(name)?.value;
        self.registered(("attach", "container"), keys, entries::container)
    }

    /// What an entry says, if it were the only container.
    fn container_alone(
        &self,
        overlay: &Overlay,
        entry: ContainerEntry,
    ) -> Result<Container, ConfigErrors> {
        let put = |entries: &mut Entries| entries.containers.push(entry);
        self.alone(overlay, put, |mut config| config.containers.pop())
    }

    /// Keeps what it has, its place in the order included.
    pub(super) fn move_container(
        &self,
        overlay: &Overlay,
        keys: &Keys,
    ) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let request = read(&report, keys, "move", |root| {
            let name = root.required("name", "\"web\"", values::name);
            let path = root.optional("netns", values::netns);
            let pid = root.optional("pid", values::pid);
            let interface = root.optional("interface", values::interface);
            let netns = entries::namespace(root, path, pid);
            Some((name?, netns?, interface))
        });
        if let Some((At { value, place }, ..)) = &request {
            if let Some(entry) = self.container(value) {
                let what = format!("container \"{value}\"");
                self.of_the_file(&report, *place, &what, entry.name.place);
            } else if !overlay.has_container(value) {
                report.error(*place, self.no_container(overlay, value));
            }
        }
        let (name, netns, interface) = report.finish(request)?;
        let name = name.value;
        let touched = Touched::Container(name.clone());
        let is_there = |known: &ContainerEntry| {
            let same = |it: &At<_>| known.interface == it.value;
            known.netns.value == netns.value && interface.as_ref().is_none_or(same)
        };
        if self.attached(overlay, &name).as_ref().is_some_and(is_there) {
            return Ok(unchanged(overlay, touched));
        }
        let mut new = overlay.clone();
        for (_, entry) in new.containers.iter_mut().filter(|(it, _)| *it == name) {
            let moved = entry.value.clone().within(&netns.value);
            entry.value = match &interface {
                Some(At { value, .. }) => moved.with("interface", value.to_string()),
                None => moved,
            };
        }
        self.changed(new, touched)
    }

    pub(super) fn detach(&self, overlay: &Overlay, keys: &Keys) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let name = read(&report, keys, "detach", |root| {
            root.required("name", "\"web\"", values::name)
        });
        if let Some(At { value, place }) = &name
            && let Some(entry) = self.container(value)
        {
            self.of_the_file(
                &report,
                *place,
                &format!("container \"{value}\""),
                entry.name.place,
            );
        }
        let name = report.finish(name)?.value;
        let touched = Touched::Container(name.clone());
        let withdrawal = Withdrawal::Container(name);
        self.withdrawn(overlay, withdrawal, touched)
    }
}
