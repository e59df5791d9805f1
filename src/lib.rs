//! x

pub mod attach;
pub mod config;
pub mod lab;
pub mod takeover;
