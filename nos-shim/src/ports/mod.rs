//! Ports of shared addresses: ranges, wishes to own them, and who does.

mod claim;
mod exchange;
mod map;
mod range;
mod table;

pub use claim::{
    Claim, ClaimKind, ClaimRefused, ExchangeRefused, Owner, Registration, RegistrationRefused,
    ServiceRegistration, Transport,
};
pub use range::{PortRange, PortRangeError};
pub use table::{Holding, PortOwner, PortTable};
