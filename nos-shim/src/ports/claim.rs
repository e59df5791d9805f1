//! Wishes to own ports, and why they are refused.

use core::fmt;
use core::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use thiserror::Error;

use super::{Policy, PortRange, Restriction};
use crate::fib::FibFull;
use crate::ident::{AttachmentId, NetworkId, UplinkId, VrfId};

/// Attachments with higher numbers cannot own ports: the map of ports has 28 bits for them.
pub(super) const LAST_OWNER: u32 = (1 << 28) - 1;

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

impl Transport {
    /// The transport with this IP protocol number, if it has ports that can be owned.
    #[must_use]
    pub fn from_protocol(protocol: u8) -> Option<Self> {
        match protocol {
            crate::packet::protocol::TCP => Some(Self::Tcp),
            crate::packet::protocol::UDP => Some(Self::Udp),
            _ => None,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// What an owner may do with its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClaimKind {
    /// Outsiders may open flows to these ports.
    Listen,
    /// The owner opens its own flows from these ports; outsiders may only answer.
    Ephemeral,
}

/// A wish to own a range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    /// Of which protocol.
    pub transport: Transport,
    /// Which ports.
    pub range: PortRange,
    /// What for.
    pub kind: ClaimKind,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.transport, self.range)
    }
}

/// A claim that clashes with another owner's.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub struct ClaimRefused {
    /// What was asked for.
    pub claim: Claim,
    /// The ports that are taken.
    pub taken: PortRange,
    /// Whose they are.
    pub owner: Arc<str>,
    /// A range of the same length that is free, if there is one.
    pub suggestion: Option<PortRange>,
}

impl fmt::Display for ClaimRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            claim,
            taken,
            owner,
            suggestion,
        } = self;
        write!(f, "{claim} is refused: {taken} belongs to '{owner}'")?;
        match suggestion {
            Some(range) => write!(f, "; {range} is free"),
            None => write!(f, "; no range of {} ports is free", claim.range.len()),
        }
    }
}

/// Why nothing of a registration was granted.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RegistrationRefused {
    /// A claim clashes with another owner's, or with another claim of the same registration.
    #[error(transparent)]
    Claim(#[from] ClaimRefused),
    /// The NOS has no such address in this VRF.
    #[error("{address} is not an address of the NOS in VRF {}", vrf.0)]
    UnknownAddress {
        /// The address asked for.
        address: IpAddr,
        /// The VRF of the registration.
        vrf: VrfId,
    },
    /// The NOS has no such uplink, or none whose link-local address can be shared.
    #[error("the NOS has no link-local address to share on {0}")]
    UnknownLink(UplinkId),
    /// An address that an attachment would have [for its own](AddressMode::Routed) is somebody else's.
    #[error("{address} is refused: it belongs to '{owner}'")]
    AddressTaken {
        /// The address asked for.
        address: IpAddr,
        /// Whose it is.
        owner: Arc<str>,
    },
    /// No host can have this address [for its own](AddressMode::Routed).
    #[error("{0} is no address that a host can have")]
    NotUnicast(IpAddr),
    /// What an attachment with [addresses of its own](AddressMode::Routed) cannot have, as it is about
    /// those that share one.
    #[error("an attachment with addresses of its own has no {0}")]
    NotShared(&'static str),
    /// The FIB has no room for the route to an attachment's own address.
    #[error(transparent)]
    FibFull(#[from] FibFull),
    /// An exchange registers the attachment twice.
    #[error("{0} is in one exchange twice")]
    Twice(AttachmentId),
    /// The table has no room for attachments with numbers as high as this.
    #[error("attachment {} is beyond the last that can own ports, {LAST_OWNER}", .0.0)]
    AttachmentId(AttachmentId),
}

/// Who uses an address that several share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// The NOS itself.
    Nos,
    /// A container.
    Attachment(AttachmentId),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nos => f.write_str("NOS"),
            Self::Attachment(id) => id.fmt(f),
        }
    }
}

/// Whose the addresses of an attachment are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AddressMode {
    /// The NOS's. It shares them, and gets what comes to its ports.
    #[default]
    Shared,
    /// Its own. The NOS has a host route to each, as a router has to a host behind it: it passes on whatever
    /// comes, with one hop less to live. On the links in whose networks they are it answers ARP and
    /// Neighbor Discovery in the attachment's place (RFC 1027, RFC 4389).
    Routed,
}

impl fmt::Display for AddressMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "shared",
            Self::Routed => "routed",
        })
    }
}

/// What an attachment needs of the NOS: addresses to use as its own, and ports on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Who asks.
    pub attachment: AttachmentId,
    /// What operators call it; conflicts name it.
    pub name: Arc<str>,
    /// Where its packets are looked up.
    pub vrf: VrfId,
    /// The network that it is in: see [`PortTable::keeps_apart`](super::PortTable::keeps_apart).
    pub network: NetworkId,
    /// Whose its addresses are. Where they are its own, it has neither [`Self::link_local`] nor
    /// [`Self::claims`] nor a [`Self::policy`].
    pub mode: AddressMode,
    /// Its addresses: of the NOS, or its own.
    pub addresses: Vec<IpAddr>,
    /// The uplink, in its VRF, whose link-local address it shares besides: it talks with the neighbors on
    /// that link. Its packets from there bear the [zone](VrfId::of_link) of the link in the place of its
    /// VRF.
    pub link_local: Option<UplinkId>,
    /// Ports that it owns on them. All are granted, or none.
    pub claims: Vec<Claim>,
    /// With whom it may talk.
    pub policy: Policy,
    /// The link-local address by which it knows its router: the relay's on its link. ICMPv6 errors
    /// of the NOS come from it, as the container holds the NOS's own addresses itself.
    pub router: Ipv6Addr,
    /// Octets of the longest IP packet that its link takes.
    pub mtu: u16,
}

/// What a service of the NOS listens on, on each of the NOS's addresses in a VRF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRegistration {
    /// What operators call it; conflicts name it.
    pub name: Arc<str>,
    /// Where it listens.
    pub vrf: VrfId,
    /// Its ports. All are granted, or none.
    pub claims: Vec<Claim>,
    /// Those of them to which not everybody may open flows. They do not overlap.
    pub from: Vec<Restriction>,
}

/// Why nothing of an exchange was granted: the first registration that cannot be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{reason}")]
pub struct ExchangeRefused {
    /// Whose registration it is: an attachment's, or the NOS's for its services.
    pub owner: Owner,
    /// What is wrong with it.
    pub reason: RegistrationRefused,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_called_what_they_are() {
        assert_eq!(Owner::Nos.to_string(), "NOS");
        let id = AttachmentId(7);
        assert_eq!(Owner::Attachment(id).to_string(), id.to_string());
    }
}
