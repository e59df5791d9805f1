//! The container side of nos-relay, and the process around it.

pub mod attach;
pub mod bench;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod demo;
pub mod device;
pub mod engine;
pub mod event_loop;
pub mod guard;
pub mod lab;
pub mod link;
pub mod port_set;
pub mod relay;
pub mod responder;
pub mod show;
pub mod takeover;
