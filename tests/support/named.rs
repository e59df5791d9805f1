//! The usual network with containers that a daemon which was killed leaves their interfaces.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where its network cannot be built"
)]

use std::path::PathBuf;

use nos_relay::lab::testbed::{LabNamespace, Topology};

use super::daemon::{Daemon, Files};
use super::names::{Mounted, add_name};
use super::scenario::{Scenario, Variant, edited};
use super::traffic::{assert_alive, inside};

/// Containers whose namespaces have names, as `ip netns` and container engines give them: the
/// daemon opens TAPs inside.
pub(crate) struct Named {
    pub(crate) topology: Topology,
    _mounted: Mounted,
    pub(crate) config: String,
}

impl Named {
    pub(crate) fn new(variant: Variant) -> Self {
        let mounted = Mounted::new();
        let topology = Topology::new(&["web", "db"]).unwrap();
        let mut config = super::scenario::config(&topology, variant);
        for (name, container) in ["web", "db"].into_iter().zip(&topology.containers) {
            let path: PathBuf = mounted.at(name);
            add_name(container, &path);
            let [anonymous, named] = [container.path(), path].map(|it| it.display().to_string());
            config = edited(&config, &anonymous, &named);
        }
        Self {
            topology,
            _mounted: mounted,
            config,
        }
    }

    pub(crate) fn web(&self) -> &LabNamespace {
        &self.topology.containers[0]
    }

    pub(crate) fn each_inside(&self) -> Vec<String> {
        self.topology.containers.iter().map(inside).collect()
    }

    /// A daemon in the place of the one that was killed.
    pub(crate) fn start_on(&self, files: Files) -> Scenario {
        Scenario {
            daemon: Daemon::start_on(&self.topology.device, files),
            topology: self.topology.clone(),
            config: self.config.clone(),
        }
    }

    pub(crate) fn start(&self) -> Scenario {
        let files = Files::new();
        files.write(&self.config);
        let scenario = self.start_on(files);
        assert_alive(&scenario);
        scenario
    }
}
