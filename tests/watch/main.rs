//! The kernel's news reach the control plane as events, each kind from the real kernel.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "../support/mod.rs"]
mod support;

mod harness;
mod inside;
mod links;
mod model;
mod names;
