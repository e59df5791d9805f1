//! What the control plane asks of the kernel: namespaces, netlink, sysctls, interfaces taken over,
//! and news of what changes there by itself.

pub(crate) mod changes;
mod namespace;
pub(crate) mod netlink;
pub(crate) mod sysctl;
pub mod takeover;
pub mod watch;

pub use namespace::{Namespace, NamespaceError, NamespaceId, NamespaceName};
pub use netlink::{
    InterfaceName, InterfaceNameError, LinkFacts, LinkStatistics, NetlinkError, NetlinkOpenError,
};
