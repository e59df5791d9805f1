//! The CNI plugin with real engines: podman, containerd by `ctr`, and containerd's CRI.
//!
//! Each engine has folders, a socket and configurations of its own. What is not installed, or cannot
//! start any container on this machine, is skipped with a reason.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "../../../tests/support/mod.rs"]
mod base;
#[path = "../support/mod.rs"]
mod engine;
// The macros of the base know it by this name.
use base as support;

mod containerd;
mod cri;
mod ctr;
mod docker;
mod image;
mod medians;
mod podman;
mod talk;
