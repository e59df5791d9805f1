//! Multicast groups, behind real bridges that snoop, and beside a plain Linux host.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

#[path = "../support/mod.rs"]
mod support;

mod configured;
mod igmp;
mod message;
mod mld;
mod network;
mod queries;
