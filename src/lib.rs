//! x

pub mod attach;
pub mod config;
pub mod device;
pub mod lab;
pub mod takeover;
pub mod cli;
pub mod config;
pub mod control;
pub mod show;
