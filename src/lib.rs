//! x
pub mod attach;
pub mod lab;
