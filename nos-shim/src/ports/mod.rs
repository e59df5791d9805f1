//! Ports of shared addresses: ranges, wishes to own them, and who does.

mod claim;
mod exchange;
mod map;
mod policy;
mod range;
mod table;

pub use claim::{
    AddressMode, Claim, ClaimKind, ClaimRefused, ExchangeRefused, Owner, Registration,
    RegistrationRefused, ServiceRegistration, Transport,
};
pub use policy::{Outside, Policy, PortRule, Restriction};
pub use range::{PortRange, PortRangeError};
pub use table::{Grant, Holding, PortOwner, PortTable};
