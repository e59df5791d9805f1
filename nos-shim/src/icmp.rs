//! ICMP as a host and a router speak it: errors, what errors quote, and answers to queries.
//!
//! The answers are those of a Linux host, octet by octet where that is practical; what they look
//! like was observed on Linux 6.18 and is noted beside the tests. An RFC takes precedence where it
//! says MUST NOT.

use core::net::Ipv4Addr;

mod error;
mod query;
mod quote;
mod redirect;

pub use error::{IcmpError, QUOTE_LIMIT_V4, QUOTE_LIMIT_V6};
pub use query::{Unanswered, answer};
pub use quote::{Quote, set_quoted_echo_id};
pub use redirect::BetterHop;

/// Source of ICMP errors to a container: it holds the NOS's own address on its loopback, and would
/// drop them as martian. RFC 7600 §4.8 reserves this address for errors without a better source.
pub const DUMMY_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// Types of ICMP for IPv4 (RFC 792).
mod v4 {
    pub(super) const ECHO_REPLY: u8 = 0;
    pub(super) const UNREACHABLE: u8 = 3;
    pub(super) const SOURCE_QUENCH: u8 = 4;
    pub(super) const REDIRECT: u8 = 5;
    pub(super) const ECHO: u8 = 8;
    pub(super) const TIME_EXCEEDED: u8 = 11;
    pub(super) const PARAMETER_PROBLEM: u8 = 12;
    pub(super) const TIMESTAMP: u8 = 13;
    pub(super) const TIMESTAMP_REPLY: u8 = 14;
    /// The highest type that Linux knows. It answers no error to one that it does not know.
    pub(super) const LAST_KNOWN: u8 = 18;
    /// Code of [`REDIRECT`].
    pub(super) const REDIRECT_HOST: u8 = 1;
    /// Code of [`UNREACHABLE`].
    pub(super) const FRAGMENTATION_NEEDED: u8 = 4;
}

/// Types of ICMPv6 (RFC 4443 §2.1).
mod v6 {
    pub(super) const UNREACHABLE: u8 = 1;
    pub(super) const PACKET_TOO_BIG: u8 = 2;
    pub(super) const TIME_EXCEEDED: u8 = 3;
    pub(super) const PARAMETER_PROBLEM: u8 = 4;
    /// Types from here on are no errors.
    pub(super) const FIRST_INFORMATIONAL: u8 = 128;
    pub(super) const ECHO: u8 = 128;
    pub(super) const ECHO_REPLY: u8 = 129;
    /// RFC 4861 §4.5.
    pub(super) const REDIRECT: u8 = 137;
}
