//! State of flows, where ports alone cannot tell whose a packet is.

mod echo;
mod table;
mod wheel;

pub use echo::{Echo, EchoFlows, EchoKey};
pub(crate) use table::OwnerSlot;
pub use table::{Flow, FlowId, FlowTable, Limits, NotInserted};
