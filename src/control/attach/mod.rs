//! Puts a container's side in place, and takes it away again.
//!
//! Goals: after attaching, a program in the container sees the NOS's addresses as its own and has
//! one way out, `eth0`; nothing in the namespace is touched beyond that. Doing it again changes
//! nothing, so it doubles as repair. Detaching undoes it. What a killed run left is recognised.
//! All of it goes through netlink (and sysctls), nothing runs another program.
//!
//! | thing | in the container | undone by |
//! |---|---|---|
//! | `lo` | set up | stays up: programs rely on it by then |
//! | shared addresses | /32 and /128 on `lo`, without duplicate address detection | removal |
//! | interface | MAC, MTU, queue length, alias, link-local address, up | deletion (a TAP: when its fd is closed) |
//! | default routes | on-link through the interface, source: the first shared address | removal |
//! | `ip_local_port_range` | the ephemeral range | the value found before |
//!
//! Order: [`make_room`], then the interface (a TAP opened by its device and [moved](move_link) in,
//! or a [`VethPair`]), then [`ContainerSide::configure`].
//!
//! Nothing here keeps a container's namespace alive once it is attached, so that the kernel can
//! delete it, and the device with it, when the container ends: [`ContainerSide::park`]. That is also
//! why a TAP is not opened inside: its descriptor holds the namespace in which it was opened.
//!
//! How ours is told from others' without a file that could be stale: interfaces carry the alias
//! `nos-relay:<attachment>`, host ends a name derived from the attachment's, addresses
//! (Linux 5.18) and routes the protocol number 206. A leftover that carries a mark is replaced or
//! adopted; a thing without one is never removed, and in our way it is an error that names it. A
//! TAP dies with its process, so one with our alias has a living owner.
//!
//! Limits: one attachment to a namespace. Calls block for some milliseconds, and each drives a
//! small runtime of its own: for the control thread only, never from async code.

mod container;
mod veth;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use rtnetlink::LinkUnspec;
use thiserror::Error;

use crate::control::kernel::netlink::Netlink;
use crate::control::kernel::takeover::TakeoverError;
use crate::control::kernel::{
    InterfaceName, LinkFacts, LinkStatistics, Namespace, NamespaceError, NetlinkError,
    NetlinkOpenError,
};

pub use container::{ContainerSide, ContainerSpec, DEFAULT_TX_QUEUE_LEN, ParkedSide};
pub use veth::{VethPair, host_end_name, make_room, tap_name};

/// Why a container could not be attached, changed or detached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The namespace cannot be opened or entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// No netlink socket.
    #[error(transparent)]
    Open(#[from] NetlinkOpenError),
    /// The kernel refused a change.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The host end of a veth cannot be kept from the kernel's IP stack.
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
    /// There is an interface by that name which somebody else made.
    #[error(
        "{namespace} already has an interface {interface}{}, which nos-relay did not make; \
         remove it or choose another interface name",
        kind.as_ref().map(|kind| format!(" (a {kind})")).unwrap_or_default()
    )]
    ForeignInterface {
        /// The interface in the way.
        interface: String,
        /// Its kind, for virtual ones.
        kind: Option<String>,
        /// Where it is.
        namespace: String,
    },
    /// Another nos-relay process that still lives has attached this container.
    #[error("{interface} in {namespace} belongs to attachment '{owner}' of a running nos-relay")]
    Held {
        /// The interface in the way.
        interface: String,
        /// Where it is.
        namespace: String,
        /// The attachment that holds it.
        owner: String,
    },
    /// A default route that somebody else made would win over ours.
    #[error("{namespace} already has {route}, which nos-relay did not make; remove it")]
    ForeignRoute {
        /// The route in the way.
        route: String,
        /// Where it is.
        namespace: String,
    },
    /// An IPv6 address was asked for where there is no IPv6.
    #[error("cannot give {address} to {namespace}: {reason}")]
    NoIpv6 {
        /// The first IPv6 address asked for.
        address: IpAddr,
        /// The container.
        namespace: String,
        /// The setting that says so.
        reason: String,
    },
    /// The MTU is below the least that IPv6 allows (RFC 8200 section 5).
    #[error("an MTU of {mtu} octets is too small for {address}: IPv6 needs 1280")]
    MtuTooSmall {
        /// The MTU asked for, in octets.
        mtu: u32,
        /// The first IPv6 address asked for.
        address: IpAddr,
    },
    /// No host can have this address.
    #[error("{0} cannot be a container's address")]
    NotUnicast(IpAddr),
    /// The kernel refused a setting.
    #[error("cannot set {key} to '{value}' in {namespace}: {source}")]
    Sysctl {
        /// Path below `/proc/sys`.
        key: String,
        /// The value refused.
        value: String,
        /// Where.
        namespace: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// An update names another attachment or interface; that takes a new attachment.
    #[error("attachment '{0}' cannot change its name or interface while attached")]
    Identity(String),
}

/// What the kernel says of an interface; `None` where there is none by that name.
///
/// # Errors
/// The namespace cannot be entered or asked.
pub fn link(namespace: &Namespace, interface: &str) -> Result<Option<LinkFacts>, AttachError> {
    Ok(Netlink::open(namespace)?.link(interface)?)
}

/// Sets an interface's MTU (octets of the longest IP packet) and its transmit queue, and sets it
/// up.
///
/// # Errors
/// There is no such interface, or the kernel refuses.
pub fn bring_up(namespace: &Namespace, interface: &str, mtu: u32) -> Result<(), AttachError> {
    let netlink = Netlink::open(namespace)?;
    let link = netlink.existing_link(interface)?;
    let change = LinkUnspec::new_with_index(link.index)
        .mtu(mtu)
        .txqueuelen(DEFAULT_TX_QUEUE_LEN)
        .up()
        .build();
    Ok(netlink.change_link(interface, change)?)
}

/// Moves an interface from one namespace into another, where it is named `name`.
///
/// # Errors
/// There is no such interface, or `to` has one by that name already, or the kernel refuses.
pub fn move_link(
    from: &Namespace,
    interface: &str,
    to: &Namespace,
    name: &InterfaceName,
) -> Result<(), AttachError> {
    let netlink = Netlink::open(from)?;
    let link = netlink.existing_link(interface)?;
    let change = LinkUnspec::new_with_index(link.index)
        .setns_by_fd(to.as_fd().as_raw_fd())
        .name(name.as_str().to_owned())
        .build();
    Ok(netlink.change_link(&format!("{interface}, to be {name} in {to}"), change)?)
}

/// The kernel's counters of an interface.
///
/// # Errors
/// There is no such interface, or the namespace cannot be asked.
pub fn link_statistics(
    namespace: &Namespace,
    interface: &str,
) -> Result<LinkStatistics, AttachError> {
    let facts = Netlink::open(namespace)?.existing_link(interface)?;
    Ok(facts.statistics)
}
