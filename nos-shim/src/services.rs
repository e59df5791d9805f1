//! What the NOS itself offers on its addresses.

use core::fmt;
use core::num::NonZeroU16;

use crate::ports::{Claim, ClaimKind, PortRange, Restriction, Transport};

/// A service of the NOS's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Service {
    /// Sends back what it receives, TCP and UDP on port 7 (RFC 862).
    Echo,
    /// Throws away what it receives, TCP and UDP on port 9 (RFC 863).
    Discard,
    /// A status page over HTTP, on this TCP port.
    Http(NonZeroU16),
}

impl Service {
    /// The port that it listens on.
    #[must_use]
    pub const fn port(self) -> NonZeroU16 {
        /// RFC 862.
        const ECHO: NonZeroU16 = NonZeroU16::new(7).unwrap();
        /// RFC 863.
        const DISCARD: NonZeroU16 = NonZeroU16::new(9).unwrap();
        match self {
            Self::Echo => ECHO,
            Self::Discard => DISCARD,
            Self::Http(port) => port,
        }
    }

    /// Whether it listens on that transport.
    #[must_use]
    pub fn uses(self, transport: Transport) -> bool {
        transport == Transport::Tcp || !matches!(self, Self::Http(_))
    }

    /// The ports that it needs.
    pub fn claims(self) -> impl Iterator<Item = Claim> {
        let transports = [Transport::Tcp, Transport::Udp].into_iter();
        let used = transports.filter(move |&transport| self.uses(transport));
        used.map(move |transport| Claim {
            transport,
            range: PortRange::from(self.port()),
            kind: ClaimKind::Listen,
        })
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Echo => f.write_str("echo"),
            Self::Discard => f.write_str("discard"),
            Self::Http(port) => write!(f, "http:{port}"),
        }
    }
}

/// All that the NOS itself offers in one VRF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Whether echo requests are answered.
    pub ping: bool,
    /// What listens, each at most once. Without the feature `stack` their ports are the NOS's, and
    /// what comes to them is dropped.
    pub services: Vec<Service>,
    /// Ports of services to which not everybody may open flows. They do not overlap.
    pub from: Vec<Restriction>,
}

impl Default for ServiceConfig {
    /// Pings are answered, and nothing listens.
    fn default() -> Self {
        Self {
            ping: true,
            services: Vec::new(),
            from: Vec::new(),
        }
    }
}
