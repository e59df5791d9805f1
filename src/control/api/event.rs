//! What happens, for those who watch.

use core::net::IpAddr;

use nos_shim::ident::MacAddr;
use serde::{Deserialize, Serialize};

use super::snapshot::{Drops, Protocol, text};

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
    /// Packets were dropped since the last such event.
    Drops {
        /// By the relay, by reason.
        relay: Drops,
        /// By the NOS, by reason.
        nos: Drops,
    },
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Its kind.
    pub kind: SubjectKind,
    /// Its name; none of the services and of the routes.
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
