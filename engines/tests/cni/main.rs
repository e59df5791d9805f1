//! The CNI plugin as an engine calls it, with a real daemon and real kernels on both ends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(
    clippy::needless_pass_by_value,
    reason = "configurations are written where they are used"
)]

#[path = "../../../tests/support/mod.rs"]
mod base;
#[path = "../support/mod.rs"]
mod engine;
// The macros of the base know it by this name.
use base as support;

mod bad;
mod bridges;
mod lifecycle;
mod lost;
mod page;
mod pools;
mod ports;
mod removal;
