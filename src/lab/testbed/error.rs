//! Why a network could not be built.

use std::io;
use std::time::Duration;

use thiserror::Error;

use crate::control::kernel::{KernelError, from_kernel_errors};

/// A network that could not be built, or did not come up.
#[derive(Debug, Error)]
pub enum LabError {
    /// A namespace cannot be entered, asked or changed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Something else that the kernel refused.
    #[error("{action}: {source}")]
    Io {
        /// What was tried, and where.
        action: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// An interface did not reach the state in time.
    #[error("{interface} in {namespace} was not {state} within {} ms", limit.as_millis())]
    Timeout {
        /// The interface waited for.
        interface: String,
        /// Where it is.
        namespace: String,
        /// What was waited for.
        state: &'static str,
        /// How long.
        limit: Duration,
    },
}

from_kernel_errors!(LabError);

impl From<io::Error> for LabError {
    fn from(source: io::Error) -> Self {
        Self::io("watch for changes", source)
    }
}

impl LabError {
    /// What kind of I/O error it is, where it is one: `ConnectionRefused`, `TimedOut`...
    #[must_use]
    pub fn kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } => Some(source.kind()),
            _ => None,
        }
    }

    pub(super) fn io(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            action: action.into(),
            source: source.into(),
        }
    }
}
