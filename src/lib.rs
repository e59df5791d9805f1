//! x

pub mod config;
pub mod attach;
pub mod lab;
pub mod takeover;
