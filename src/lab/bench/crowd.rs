//! Many containers at once, with names as those of `ip netns`.
//!
//! A daemon watches a container by the name of its namespace, and `/proc/PID/fd/N` cannot be watched.
//! So each namespace is bind-mounted on a file, in a tmpfs that only the bench and its children see:
//! [`own_mounts`] comes first. The names go with that tmpfs.

use std::ffi::CStr;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::children::Children;
use super::error::BenchError;
use crate::lab::testbed::LabNamespace;

/// First port of the first container. Below those of the containers that are measured.
const FIRST_PORT: u16 = 1024;
/// Ports of each container: half to listen on, half to connect from.
const PORTS: u16 = 16;
/// More would reach the ports of the containers that are measured, from 20,000 on.
const MOST: u16 = 1100;

/// Gives the process a mount namespace of its own, whose mounts nobody else sees.
///
/// Call it while there is no other thread.
///
/// # Errors
///
/// The kernel refuses.
pub(super) fn own_mounts() -> Result<(), BenchError> {
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| mount(None::<&CStr>, "/", None::<&CStr>, slave, None::<&CStr>))
        .map_err(|error| BenchError::io("get mounts of its own")(error.into()))
}

/// Containers that are there to be attached.
pub(super) struct Crowd {
    namespaces: Vec<(LabNamespace, PathBuf)>,
    label: String,
    names: PathBuf,
}

impl Crowd {
    /// Nobody. `label` tells it from other crowds.
    pub(super) fn new(children: &Children, label: &str) -> Result<Self, BenchError> {
        Ok(Self {
            namespaces: Vec::new(),
            label: label.to_owned(),
            names: children.names()?,
        })
    }

    /// Makes namespaces until there are `size`.
    pub(super) fn grow(&mut self, size: u16) -> Result<(), BenchError> {
        if size > MOST {
            let why = format!("{size} containers are more than there are ports for");
            return Err(BenchError::Setup(why));
        }
        for number in self.namespaces.len()..usize::from(size) {
            let namespace = LabNamespace::untouched(&format!("{}-{number}", self.label))?;
            let name = self.names.join(format!("{}-{number}", self.label));
            let named = fs::write(&name, "").and_then(|()| {
                let (source, none) = (namespace.path(), None::<&CStr>);
                Ok(mount(Some(&source), &name, none, MsFlags::MS_BIND, none)?)
            });
            named.map_err(BenchError::io("name a namespace"))?;
            self.namespaces.push((namespace, name));
        }
        Ok(())
    }

    /// The configuration of the first `size` of them.
    pub(super) fn configuration(&self, size: u16, device: &str) -> String {
        let mut text = String::new();
        for (number, (_, name)) in (0..size).zip(&self.namespaces) {
            let first = FIRST_PORT + number * PORTS;
            let (middle, last) = (first + PORTS / 2, first + PORTS - 1);
            let below = middle - 1;
            // Writing to a string does not fail.
            let _ = write!(
                text,
                r#"[[container]]
name = "crowd-{number}"
netns = "{}"
device = "{device}"
tcp = "{first}-{below}"
udp = "{first}-{below}"
ephemeral = "{middle}-{last}"
"#,
                name.display(),
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_crowd_leaves_others_their_ports() {
        assert!(u32::from(FIRST_PORT) + u32::from(MOST) * u32::from(PORTS) <= 20_000);
    }
}
