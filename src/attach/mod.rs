//! The container's side: namespaces, interfaces, addresses, routes, sysctls.

mod namespace;
pub(crate) mod netlink;
pub(crate) mod sysctl;

pub use namespace::{Namespace, NamespaceError, NamespaceId};
pub use netlink::{
    InterfaceName, InterfaceNameError, LinkFacts, LinkStatistics, NetlinkError, NetlinkOpenError,
};
