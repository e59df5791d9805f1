//! Why nothing was measured.

use std::io;

use thiserror::Error;

use super::baseline::BaselineError;
use super::traffic::TrafficError;
use crate::lab::testbed::{LabError, UserNamespaceError};

/// Why nothing, or not all, could be measured.
#[derive(Debug, Error)]
pub enum BenchError {
    /// No namespaces.
    #[error("the bench needs network namespaces of its own: {0}; run it as root")]
    Privileges(UserNamespaceError),
    /// No network.
    #[error("cannot build a network: {0}")]
    Network(#[from] LabError),
    /// Some other need.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// A process that forwards does not.
    #[error("{program} {how}\n{log}")]
    Child {
        /// What was started.
        program: String,
        /// How it failed.
        how: String,
        /// The end of what it logged.
        log: String,
    },
    /// A path could not be set up.
    #[error("{0}")]
    Setup(String),
    /// Something that should be there is not.
    #[error("there is not: {0}")]
    Missing(&'static str),
    /// A filter picks nothing.
    #[error("--{option}: no {what} is called {term:?} or contains it; --list shows all")]
    Filter {
        /// The option's name.
        option: &'static str,
        /// What it picks.
        what: &'static str,
        /// What it was asked for.
        term: String,
    },
    /// Nothing is left to measure.
    #[error("none of these rows can be measured on these paths here:\n{0}")]
    Nothing(String),
    /// No baseline.
    #[error(transparent)]
    Baseline(#[from] BaselineError),
}

impl BenchError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Why there is no sample.
#[derive(Debug, Error)]
pub(super) enum Problem {
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error(transparent)]
    Traffic(#[from] TrafficError),
}
