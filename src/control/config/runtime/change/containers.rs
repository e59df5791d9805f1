//! Containers that are attached and detached at run time.

use crate::control::config::entries::{self, ContainerEntry};
use crate::control::config::place::At;
use crate::control::config::{ConfigErrors, Container, Name, check, values};

use super::{Changed, ConfigFile, Keys, Overlay, Touched, read, unchanged};

impl ConfigFile {
    pub(super) fn attach(&self, overlay: &Overlay, keys: &Keys) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let entry = read(&report, keys, "attach", |root| {
            root.require("container", "{\"name\":\"web\",...}");
            entries::container(root.table("container")?)
        });
        let entry = report.finish(entry)?;
        let name = entry.name.value.clone();
        let touched = Touched::Container(name.clone());
        let shall = self.container_alone(overlay, entry)?;
        if let Some(known) = self.attached(overlay, &name)
            && self
                .container_alone(overlay, known)
                .is_ok_and(|is| is == shall)
        {
            return Ok(unchanged(overlay, touched));
        }
        let mut new = overlay.clone();
        new.containers
            .push((name, keys.table("container").unwrap_or_default()));
        self.changed(new, touched)
    }

    /// A container as it was attached, or as the file has it.
    pub(super) fn attached(&self, overlay: &Overlay, name: &Name) -> Option<ContainerEntry> {
        if let Some(entry) = self.container(name) {
            return Some(entry.clone());
        }
        let (_, keys) = overlay.containers.iter().find(|(known, _)| known == name)?;
        let report = self.report();
        let keys = Keys::default().with("container", keys.clone());
        read(&report, &keys, "attach", |root| {
            entries::container(root.table("container")?)
        })
    }

    /// What an entry says, if it were the only container.
    fn container_alone(
        &self,
        overlay: &Overlay,
        entry: ContainerEntry,
    ) -> Result<Container, ConfigErrors> {
        let report = self.report();
        let mut entries = self.uplinks_alone(&report, overlay);
        entries.containers.push(entry);
        let container = check::config(&report, entries).containers.pop();
        report.finish(container)
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
        if !overlay.has_container(&name) {
            return Ok(unchanged(overlay, touched));
        }
        let mut new = overlay.clone();
        new.containers.retain(|(known, _)| *known != name);
        new.ports.remove(&name);
        self.changed(new, touched)
    }
}
