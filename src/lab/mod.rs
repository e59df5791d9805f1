//! Labs: networks of namespaces in which the relay is tried, shown and measured.

pub mod bench;
pub mod demo;
pub mod testbed;
