//! Devices against real kernels.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

#[path = "../support/mod.rs"]
mod support;

mod bulk;
mod capture;
mod coalesce;
mod data_thread;
mod errno;
mod harness;
mod injection;
mod refusal;
mod state;
mod talk;
mod uring;
mod vlan;
