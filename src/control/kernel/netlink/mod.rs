//! rtnetlink requests to one namespace, as plain calls that return when the kernel has answered.
//!
//! Theory of operation: [`Netlink`] is one socket, opened by a short visit to a namespace and used
//! from any thread afterwards. The kernel carries a request out within `send`, so that its answer
//! is in the socket's queue when `send` returns; nothing here ever waits for somebody else. That is
//! also why several requests go out in one `send` ([`Netlink::submit`]): they are carried out in
//! their order, one after the other, and each is acknowledged by its sequence number. A refused
//! request does not keep the kernel from carrying out the next one.
//!
//! | file | what it holds |
//! |---|---|
//! | `client` | requests, and the socket that carries them |
//! | `exchange` | messages out and in: acknowledgements, lists |
//! | `error` | refusals in words |
//! | `link` | interfaces |
//! | `address` `route` `rule` | addresses, routes and the policy rules that choose their tables, neighbors |
//! | `redirect` | what comes in on one interface, sent to another |

mod address;
mod client;
mod error;
mod exchange;
mod link;
#[cfg(any(test, feature = "testbed"))]
mod neighbor;
mod redirect;
mod route;
mod rule;

pub(crate) use address::AddressFacts;
pub(crate) use client::{Netlink, Request};
pub use error::NetlinkError;
pub(crate) use error::extended_ack;
pub(crate) use link::{Ipv6State, LinkChange, LinkSelector};
pub use link::{LinkFacts, LinkStatistics};
pub(crate) use redirect::redirect;
pub(crate) use route::{RouteFacts, Table};
pub(crate) use rule::{RuleFacts, Selector};

/// Marks addresses (IFA_PROTO, Linux 5.18), routes (rtm_protocol) and rules (FRA_PROTOCOL, Linux 4.17)
/// as ours. Any value that no routing daemon in `/etc/iproute2/rt_protos` uses would do.
pub(crate) const PROTOCOL: u8 = 206;
