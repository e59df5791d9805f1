//! State of flows, where ports alone cannot tell whose a packet is.

mod echo;
mod exact;
mod follow;
mod table;
mod wheel;

pub use echo::{Echo, EchoFlow, EchoFlows, EchoKey};
pub use exact::{ExactFlows, FlowKey, FlowState, FlowStatus, Full, NewFlow, Opener};
pub use follow::{Connection, Phase, Segment, Side};
pub(crate) use table::OwnerSlot;
pub use table::{Flow, FlowId, FlowTable, Limits, NotInserted};
