//! A model of a user-mode network operating system, and the contract by which nos-relay joins
//! containers to it.

#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        reason = "test data is made by counting"
    )
)]

pub mod channel;
pub mod checksum;
pub mod drop;
pub mod fragment_ipv6;
pub mod frame;
pub mod icmp;
pub mod ident;
pub mod ipv4_options;
pub mod ipv6_extensions;
#[cfg(feature = "stack")]
pub mod local;
pub mod offload;
pub mod originate;
pub mod packet;
pub mod ports;
pub mod rate_limit;
pub mod reassembly;
pub mod reset;
#[cfg(test)]
mod test_packets;
pub mod time;
