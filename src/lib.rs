//! x
pub mod attach;
pub mod lab;
pub mod takeover;
