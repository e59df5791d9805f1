//! A model of a user-mode network operating system, and the contract by which nos-relay joins
//! containers to it.

pub mod drop;
pub mod ident;
pub mod ports;
pub mod time;
