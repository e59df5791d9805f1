//! x

pub mod guard;
pub mod link;
pub mod port_set;
pub mod responder;
