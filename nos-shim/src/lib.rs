//! A model of a user-mode network operating system, and the contract by which nos-relay joins
//! containers to it.

#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        reason = "test data is made by counting"
    )
)]

pub mod arp;
pub mod channel;
pub mod checksum;
pub mod drop;
pub mod fib;
pub mod frame;
pub mod ident;
pub mod martian;
pub mod ndp;
pub mod neighbor;
pub mod offload;
pub mod flows;
mod index;
mod links;
pub mod packet;
pub mod ports;
pub mod time;
pub mod transmit;
