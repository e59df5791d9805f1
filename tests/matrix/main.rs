//! Every kind of frame that a kernel hands over arrives intact, in both directions.
//!
//! The kinds are a product: who made the super-frame, the state of its checksum, what is in front of
//! the transport header. [`streams`] and [`tunnels`] have those that real kernels make in the course
//! of a transfer, [`crafted`] the rest. [`plain`] is the Linux beside the relay.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "../support/mod.rs"]
mod support;

mod craft;
mod crafted;
mod plain;
mod streams;
mod tunnels;
