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
//! | tunnels | [`LabNamespace::add_vxlan`] |
//! | the usual network | [`Topology`] |
//! | traffic | [`ping`], [`tcp`], [`udp`] |

mod error;
mod features;
mod link;
mod namespace;
pub(crate) mod pattern;
pub mod ping;
mod port;
mod privileges;
pub mod tcp;
mod topology;
mod tunnel;
pub mod udp;

pub use error::LabError;
pub use link::veth;
pub use namespace::LabNamespace;
pub use privileges::{
    Privileges, UserNamespaceError, enter_user_namespace, privileges, tun_access,
    user_namespace_on_spawn,
};
pub use topology::Topology;
pub use tunnel::Vxlan;
