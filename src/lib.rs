//! x

pub mod cli;
pub mod config;
pub mod control;
pub mod show;
