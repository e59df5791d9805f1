//! A model of a user-mode network operating system, and the contract by which nos-relay joins
//! containers to it.

#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        reason = "test data is made by counting"
    )
)]

pub mod address_set;
pub mod arp;
pub mod channel;
pub mod checksum;
pub mod drop;
pub mod fib;
pub mod flows;
pub mod forward;
pub mod fragment_ipv6;
pub mod fragments;
pub mod frame;
pub mod icmp;
pub mod ident;
mod index;
pub mod ipv4_options;
pub mod ipv6_extensions;
mod links;
#[cfg(feature = "stack")]
pub mod local;
pub mod martian;
pub mod ndp;
pub mod neighbor;
pub mod offload;
pub mod originate;
pub mod packet;
pub mod ports;
pub mod rate_limit;
pub mod reassembly;
pub mod reset;
pub mod shim;
#[cfg(test)]
mod test_packets;
pub mod time;
pub mod transmit;
