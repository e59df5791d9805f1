//! What the control plane asks of the kernel: namespaces, netlink, sysctls, interfaces taken over,
//! and news of what changes there by itself.

pub(crate) mod changes;
mod error;
mod namespace;
pub(crate) mod netlink;
pub mod pidfd;
pub(crate) mod sysctl;
pub mod takeover;
pub mod watch;

pub use crate::interface_name::{InterfaceName, InterfaceNameError};
pub use error::KernelError;
pub(crate) use error::from_kernel_errors;
pub use namespace::{Namespace, NamespaceError, NamespaceId, NamespaceName};
pub use netlink::{LinkFacts, LinkStatistics, NetlinkError};
