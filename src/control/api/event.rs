//! What happens, for those who watch.

use core::net::IpAddr;

use nos_shim::ident::MacAddr;
use nos_shim::ports::PortRange;
use serde::{Deserialize, Serialize};

use super::snapshot::{Drops, FlowOpener, PortKind, Protocol, text};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Event {
    /// A container's interface is in place, or an uplink's device is open.
    Attached {
        /// Whose.
        #[serde(flatten)]
        subject: Subject,
    },
    /// It is not any more, whoever took it away.
    Gone {
        /// Whose.
        #[serde(flatten)]
        subject: Subject,
    },
    /// Something inside a container was put back.
    Healed {
        /// Which container.
        #[serde(flatten)]
        subject: Subject,
    },
    /// Something cannot be as it is wanted.
    Refused {
        /// What.
        #[serde(flatten)]
        subject: Subject,
        /// Why.
        reason: String,
    },
    /// Somebody else on an uplink's network uses an address of the NOS.
    Conflict {
        /// The uplink.
        #[serde(flatten)]
        subject: Subject,
        /// The address.
        address: IpAddr,
        /// Who uses it.
        #[serde(with = "text")]
        mac: MacAddr,
    },
    /// The peer of an uplink on shared memory came, went, or takes nothing.
    Carrier {
        /// The uplink.
        #[serde(flatten)]
        subject: Subject,
        /// Whether frames pass.
        state: Carrier,
        /// What the peer calls its interface, while they do.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<String>,
        /// Why they do not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A container sends from a port that is not its own, which is refused.
    ForeignPort {
        /// The container.
        #[serde(flatten)]
        subject: Subject,
        /// The protocol.
        protocol: Protocol,
        /// The port.
        port: u16,
        /// Whose port it is, as in `container 'db'`; none where it is nobody's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
        /// Packets of the container that were dropped for this since the last such event about it.
        dropped: u64,
    },
    /// The policy of a container, or of the NOS's services, refuses packets.
    Policy {
        /// Whose policy it is, and the port with it.
        #[serde(flatten)]
        subject: Subject,
        /// The drop's counter, as in `policy-from`.
        reason: String,
        /// Who has sent the packet.
        sender: FlowOpener,
        /// The protocol.
        protocol: EventProtocol,
        /// The port of the policy's owner; none of what has no ports, or does not show them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        /// The address on the other side.
        remote: IpAddr,
        /// The port there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        remote_port: Option<u16>,
        /// Packets that were dropped since the last such event about this owner, reason and sender.
        dropped: u64,
    },
    /// All that a container has registered with the NOS from now on: nothing, if there are no ports. For
    /// those who have asked for it.
    Registration {
        /// The container.
        #[serde(flatten)]
        subject: Subject,
        /// The name of its VRF.
        vrf: String,
        /// Whose the addresses are: `shared`, the NOS's, or `routed`, its own, with all ports.
        mode: String,
        /// The addresses of the NOS on which the ports count, or its own.
        addresses: Vec<IpAddr>,
        /// The ports.
        ports: Vec<RegisteredPorts>,
    },
    /// Packets were dropped since the last such event.
    Drops {
        /// By the relay, by reason.
        relay: Drops,
        /// By the NOS, by reason.
        nos: Drops,
    },
}

/// Ports of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisteredPorts {
    /// The protocol.
    pub protocol: Protocol,
    /// [`PortKind::Listen`] or [`PortKind::Ephemeral`].
    pub kind: PortKind,
    /// The ports.
    #[serde(with = "text")]
    pub range: PortRange,
}

/// Whether frames pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carrier {
    /// They do.
    Up,
    /// A peer is there, and takes none.
    Stalled,
    /// They do not.
    Down,
}

/// The protocol of a packet that an event tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, of either family.
    Icmp,
}

impl core::fmt::Display for EventProtocol {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Its kind.
    pub kind: SubjectKind,
    /// Its name; of services the VRF's, unless it is the default one; none of the routes and
    /// interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// The kinds of [`Subject`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SubjectKind {
    /// A container.
    Container,
    /// An uplink.
    Uplink,
    /// The NOS's own services.
    Services,
    /// The static routes.
    Routes,
    /// The interfaces of a NOS that is configured elsewhere.
    Interfaces,
}

/// A line in place of events that were not read in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lost {
    pub(super) version: u32,
    pub(super) lost: u64,
}

/// A line of those who watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// Something happened.
    Event {
        /// When, in milliseconds of Unix time.
        time_ms: u64,
        /// What.
        event: Event,
    },
    /// So many events were not read in time.
    Lost(u64),
}
