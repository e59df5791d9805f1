//! x

pub mod guard;
pub mod link;
mod outbox;
pub mod port_set;
pub mod relay;
pub mod responder;
