//! The container side of nos-relay, and the process around it.

pub mod attach;
pub mod cli;
pub mod config;
pub mod control;
pub mod device;
pub mod lab;
pub mod show;
pub mod takeover;
//! x

pub mod guard;
pub mod link;
mod outbox;
pub mod port_set;
pub mod relay;
pub mod responder;
