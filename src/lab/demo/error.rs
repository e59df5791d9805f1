//! Why there is no demo.

use std::io;

use thiserror::Error;

use crate::lab::testbed::{LabError, UserNamespaceError};

/// Why the demo could not begin, or not go on.
#[derive(Debug, Error)]
pub enum DemoError {
    /// No namespaces.
    #[error("the demo needs network namespaces of its own: {0}; run it as root")]
    Privileges(UserNamespaceError),
    /// No network.
    #[error("cannot build the demo's network: {0}")]
    Network(#[from] LabError),
    /// Some other need.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// The daemon does not start.
    #[error("`nos-relay run` {how}\n{log}")]
    Daemon {
        /// How it failed.
        how: String,
        /// The end of what it logged.
        log: String,
    },
}

impl DemoError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
