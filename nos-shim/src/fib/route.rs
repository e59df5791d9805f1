//! What a route says, and who says it.

use core::fmt;
use core::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use thiserror::Error;

use crate::ident::{AttachmentId, LocalAddressId, UplinkId, VrfId};

/// The most next hops that one route may have.
pub const MAX_NEXT_HOPS: usize = 64;

/// Who offers a route, best first.
///
/// One source has at most one route for a prefix in a VRF; of several sources the least wins, and
/// the next one takes over when its route goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// An address of the NOS itself.
    Local,
    /// An address that an attachment has for its own.
    Attached,
    /// The prefix of an uplink's address.
    Connected,
    /// The operator.
    Static {
        /// The lower of two static routes wins.
        metric: u16,
    },
}

/// The kinds of [`Source`]; [`super::Routing::replace`] replaces the routes of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// [`Source::Local`].
    Local,
    /// [`Source::Attached`].
    Attached,
    /// [`Source::Connected`].
    Connected,
    /// [`Source::Static`] of every metric.
    Static,
}

impl Source {
    /// Its kind.
    #[must_use]
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Local => Protocol::Local,
            Self::Attached => Protocol::Attached,
            Self::Connected => Protocol::Connected,
            Self::Static { .. } => Protocol::Static,
        }
    }

    /// The lower of two static routes wins; zero for other sources.
    #[must_use]
    pub fn metric(self) -> u16 {
        match self {
            Self::Local | Self::Attached | Self::Connected => 0,
            Self::Static { metric } => metric,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Attached => "attached",
            Self::Connected => "connected",
            Self::Static => "static",
        })
    }
}

/// A station on an uplink's link, to which packets for others are handed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NextHop {
    /// Its address, of the route's own family; it may be IPv6 link-local.
    pub gateway: IpAddr,
    /// The uplink to whose link it is attached.
    pub uplink: UplinkId,
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.gateway, self.uplink)
    }
}

/// Between one and [`MAX_NEXT_HOPS`] different next hops. Their order does not matter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NextHops(Arc<[NextHop]>);

/// A number of next hops that no route may have.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NextHopsError {
    /// None at all.
    #[error("a route needs a next hop")]
    Empty,
    /// More than [`MAX_NEXT_HOPS`].
    #[error("{0} next hops are more than the {MAX_NEXT_HOPS} that a route may have")]
    TooMany(usize),
}

impl NextHops {
    /// A group of next hops; one that is named twice counts once.
    ///
    /// # Errors
    ///
    /// [`NextHopsError`] when there is none, or too many.
    pub fn new(hops: impl IntoIterator<Item = NextHop>) -> Result<Self, NextHopsError> {
        let mut hops: Vec<_> = hops.into_iter().collect();
        hops.sort_unstable();
        hops.dedup();
        match hops.len() {
            0 => Err(NextHopsError::Empty),
            1..=MAX_NEXT_HOPS => Ok(Self(hops.into())),
            more => Err(NextHopsError::TooMany(more)),
        }
    }

    /// The next hops, in ascending order.
    #[must_use]
    pub fn as_slice(&self) -> &[NextHop] {
        &self.0
    }
}

impl From<NextHop> for NextHops {
    fn from(hop: NextHop) -> Self {
        Self([hop].into())
    }
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// No route matches: answer "network unreachable".
    NoRoute,
    /// The destination is this address of the NOS.
    Local(LocalAddressId),
    /// The destination is an address that this attachment has for its own.
    Attached(AttachmentId),
    /// The destination is a station on this uplink's link.
    Connected(UplinkId),
    /// The destination is the network or broadcast address of a prefix on this uplink's link
    /// (RFC 1812 §4.2.3.1); nothing is forwarded there (§5.3.5.2, RFC 2644).
    Broadcast(UplinkId),
    /// Hand it to one of these.
    Via(NextHops),
    /// Discard it silently.
    Blackhole,
    /// Discard it, and answer "host unreachable".
    Unreachable,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoute => f.write_str("no route"),
            Self::Local(LocalAddressId(id)) => write!(f, "local address {id}"),
            Self::Attached(attachment) => write!(f, "attached: {attachment}"),
            Self::Connected(uplink) => write!(f, "connected to {uplink}"),
            Self::Broadcast(uplink) => write!(f, "broadcast on {uplink}"),
            Self::Blackhole => f.write_str("blackhole"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Via(hops) => {
                f.write_str("via ")?;
                for (n, hop) in hops.as_slice().iter().enumerate() {
                    write!(f, "{}{hop}", if n == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
        }
    }
}

/// A route as a source offers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it holds.
    pub vrf: VrfId,
    /// For which destinations; host bits do not count.
    pub prefix: IpNet,
    /// Who offers it.
    pub source: Source,
    /// What happens to packets for them.
    pub action: Action,
}

impl Route {
    /// The routes that follow from an uplink's having an address in `prefix`: the prefix itself,
    /// and for IPv4 its network and broadcast address, of which a /31 (RFC 3021) and a /32 have
    /// none.
    ///
    /// Insert the NOS's own address as [`Source::Local`] besides.
    pub fn connected(vrf: VrfId, prefix: IpNet, uplink: UplinkId) -> impl Iterator<Item = Self> {
        let route = move |prefix, action| Self {
            vrf,
            prefix,
            source: Source::Connected,
            action,
        };
        let all_hosts = match prefix {
            IpNet::V4(net) if net.prefix_len() < 31 => [net.network(), net.broadcast()].map(Some),
            _ => [None; 2],
        };
        let broadcast = move |address| {
            let host = IpNet::V4(Ipv4Net::from(address));
            route(host, Action::Broadcast(uplink))
        };
        let net = route(prefix.trunc(), Action::Connected(uplink));
        core::iter::once(net).chain(all_hosts.into_iter().flatten().map(broadcast))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of `show routes`.
    #[test]
    fn routes_are_called_what_they_are() {
        let sources = [
            (Source::Local, "local", 0),
            (Source::Attached, "attached", 0),
            (Source::Connected, "connected", 0),
            (Source::Static { metric: 7 }, "static", 7),
        ];
        for (source, name, metric) in sources {
            assert_eq!(source.protocol().to_string(), name);
            assert_eq!(source.metric(), metric);
        }
        let hop = |last, uplink| NextHop {
            gateway: IpAddr::from([192, 0, 2, last]),
            uplink: UplinkId(uplink),
        };
        let via = |hops: &[NextHop]| Action::Via(NextHops::new(hops.to_vec()).unwrap());
        for (action, text) in [
            (Action::NoRoute, "no route"),
            (Action::Local(LocalAddressId(3)), "local address 3"),
            (Action::Attached(AttachmentId(5)), "attached: attachment 5"),
            (Action::Connected(UplinkId(1)), "connected to uplink 1"),
            (Action::Broadcast(UplinkId(1)), "broadcast on uplink 1"),
            (Action::Blackhole, "blackhole"),
            (Action::Unreachable, "unreachable"),
            (via(&[hop(1, 0)]), "via 192.0.2.1 (uplink 0)"),
            (
                via(&[hop(1, 0), hop(2, 1)]),
                "via 192.0.2.1 (uplink 0), 192.0.2.2 (uplink 1)",
            ),
        ] {
            assert_eq!(action.to_string(), text);
        }
    }

    fn connected(prefix: &str) -> Vec<String> {
        Route::connected(VrfId::DEFAULT, prefix.parse().unwrap(), UplinkId(1))
            .map(|route| format!("{} {}", route.prefix, route.action))
            .collect()
    }

    #[test]
    fn connected_prefixes_have_two_broadcast_addresses() {
        let expected = [
            "192.0.2.0/24 connected to uplink 1",
            "192.0.2.0/32 broadcast on uplink 1",
            "192.0.2.255/32 broadcast on uplink 1",
        ];
        assert_eq!(connected("192.0.2.7/24"), expected);
    }

    #[test]
    fn point_to_point_and_ipv6_prefixes_have_no_broadcast_address() {
        for (address, prefix) in [
            ("192.0.2.7/31", "192.0.2.6/31"),
            ("192.0.2.7/32", "192.0.2.7/32"),
            ("2001:db8::1/64", "2001:db8::/64"),
        ] {
            assert_eq!(
                connected(address),
                [format!("{prefix} connected to uplink 1")]
            );
        }
    }

    #[test]
    fn next_hops_are_a_set() {
        let hop = |n| NextHop {
            gateway: IpAddr::from([192, 0, 2, n]),
            uplink: UplinkId(0),
        };
        assert_eq!(
            NextHops::new([hop(2), hop(1), hop(2)]),
            NextHops::new([hop(1), hop(2)])
        );
        assert_eq!(NextHops::new([]), Err(NextHopsError::Empty));
        assert_eq!(
            NextHops::new((0..65).map(hop)),
            Err(NextHopsError::TooMany(65))
        );
    }

    #[test]
    fn sources_are_ordered_by_preference() {
        let ascending = [
            Source::Local,
            Source::Attached,
            Source::Connected,
            Source::Static { metric: 0 },
            Source::Static { metric: 5 },
        ];
        assert!(ascending.is_sorted());
    }
}
