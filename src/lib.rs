//! The container side of nos-relay, and the process around it.

pub mod attach;
pub mod cli;
pub mod config;
pub mod control;
pub mod device;
pub mod lab;
pub mod show;
pub mod takeover;
