//! Networks to try the relay in, made of namespaces without a name.
//!
//! Goal: the demo, the benches and the tests build real networks of real kernels and leave
//! nothing behind, also when they are killed. A [`LabNamespace`] lives only as long as a
//! descriptor, a socket or a process refers to it, and takes its interfaces with it.
//!
//! Nothing here runs another program. Every wait has a limit.
//!
//! | need | where |
//! |---|---|
//! | may I? | [`privileges`], [`enter_user_namespace`], [`tun_access`] |
//! | a namespace, and work inside | [`LabNamespace`] |
//! | interfaces, addresses, routes | methods of [`LabNamespace`], [`veth`] |
//! | the usual network | [`Topology`] |
//! | traffic | [`ping`], [`tcp`], [`udp`] |

mod link;
mod namespace;
pub(crate) mod pattern;
pub mod ping;
mod privileges;
pub mod tcp;
mod topology;
pub mod udp;

use std::io;
use std::time::Duration;

use thiserror::Error;

use crate::control::kernel::{KernelError, from_kernel_errors};

pub use link::veth;
pub use namespace::LabNamespace;
pub use privileges::{
    Privileges, UserNamespaceError, enter_user_namespace, privileges, tun_access,
    user_namespace_on_spawn,
};
pub use topology::Topology;

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

    fn io(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            action: action.into(),
            source: source.into(),
        }
    }
}

/// How long a port may stay in use that nobody uses any more.
const FREE_WITHIN: Duration = Duration::from_secs(10);

/// Opens a socket on a port that may be in use for a moment longer: a process that is being started
/// by another thread holds, until it runs its program, a copy of every descriptor, also of sockets
/// that were closed since.
fn once_free<T>(limit: Duration, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let until = std::time::Instant::now() + limit;
    loop {
        match open() {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && std::time::Instant::now() < until =>
            {
                std::thread::yield_now();
            }
            opened => return opened,
        }
    }
}
