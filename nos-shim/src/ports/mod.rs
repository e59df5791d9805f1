//! Ports of shared addresses: ranges, wishes to own them, and who does.

mod claim;
mod range;
mod slots;
mod table;

pub use claim::{Claim, ClaimKind, ClaimRefused, Owner, RegistrationRefused, Service, Transport};
pub use range::{PortRange, PortRangeError};
pub use table::{Grant, Holding, PortOwner, PortTable};
