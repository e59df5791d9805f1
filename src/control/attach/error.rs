//! Why a container could not be attached, and what is left out without an error.

use std::fmt;
use std::io;
use std::net::IpAddr;

use thiserror::Error;

use crate::control::kernel::takeover::TakeoverError;
use crate::control::kernel::{KernelError, NetlinkError, from_kernel_errors};
use crate::data::device::OpenError;

/// Why a container could not be attached, changed or detached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// A namespace cannot be entered, asked or changed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The host end of a veth cannot be kept from the kernel's IP stack.
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
    /// The device of the relay's end cannot be opened.
    #[error(transparent)]
    Device(#[from] OpenError),
    /// The container is the namespace of the daemon itself.
    #[error(
        "{namespace} is nos-relay's own: a container has a namespace of its own, and attaching \
         this one would take over the host's addresses and routes"
    )]
    OwnNamespace {
        /// How the caller named it.
        namespace: String,
    },
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
    /// An interface that is to be a bridge is something else.
    #[error(
        "{interface} in {namespace} is no bridge{}; remove it, or name another",
        kind.as_ref().map(|kind| format!(" (a {kind})")).unwrap_or_default()
    )]
    NoBridge {
        /// The interface.
        interface: String,
        /// Its kind, for virtual ones.
        kind: Option<String>,
        /// Where it is.
        namespace: String,
    },
    /// An interface that is to be used as somebody else has made it cannot be.
    #[error(
        "{interface} in {namespace} {}, so that its frames could be read in {host}",
        match kind.as_deref() {
            Some("veth") => "is no veth whose other end is there".to_owned(),
            Some(kind) => format!("is no veth (a {kind})"),
            None => "is no veth".to_owned(),
        }
    )]
    NoHostEnd {
        /// The interface.
        interface: String,
        /// Its kind, for virtual ones.
        kind: Option<String>,
        /// Where it is.
        namespace: String,
        /// Where its other end should be.
        host: String,
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
    /// Only IPv6 addresses were asked for where there is no IPv6.
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

from_kernel_errors!(AttachError);

impl AttachError {
    /// Whether the container's namespace cannot be opened or entered any more: it has ended, or
    /// its name leads elsewhere by now. There is nothing to change or undo in it then.
    #[must_use]
    pub fn is_namespace_gone(&self) -> bool {
        matches!(self, Self::Kernel(KernelError::Namespace(_)))
    }

    /// Whether the container's interface is not in its namespace any more: it was deleted, or moved
    /// to another one.
    #[must_use]
    pub fn is_interface_gone(&self) -> bool {
        matches!(self, Self::Kernel(KernelError::Netlink(error)) if error.is(&[libc::ENODEV]))
    }
}

/// A part of what was asked for that the container does not get, while the rest works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// The container has no IPv6: it gets its IPv4 addresses alone. A repair brings the others
    /// once it has.
    NoIpv6 {
        /// The first IPv6 address asked for.
        address: IpAddr,
        /// The setting that says so.
        reason: String,
    },
    /// Somebody else's route leads to a network of the NOS. It stays, and counts.
    ForeignRoute {
        /// The route in the way.
        route: String,
    },
    /// The kernel has no policy rules: packets of the container to an address that it shares stay
    /// inside.
    NoRules {
        /// The first address that is shared.
        address: IpAddr,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoIpv6 { address, reason } => {
                write!(
                    f,
                    "{address} and other IPv6 addresses are left out: {reason}"
                )
            }
            Self::NoRules { address } => {
                write!(
                    f,
                    "there are no policy rules, so what it sends to {address} stays inside"
                )
            }
            Self::ForeignRoute { route } => {
                write!(f, "{route} from elsewhere counts instead of ours")
            }
        }
    }
}

/// An interface that is to go may have gone with the namespace of its other end, or in a group.
pub(super) fn tolerate_gone(result: Result<(), NetlinkError>) -> Result<(), AttachError> {
    match result {
        Err(error) if error.is(&[libc::ENODEV]) => Ok(()),
        result => Ok(result?),
    }
}
