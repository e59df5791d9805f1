//! What all parts of the local stack know: a flow, and what connections work with.

use std::collections::VecDeque;

use crate::frame::FramePool;
use crate::ident::VrfId;
use crate::originate::Originator;
use crate::packet::{Addresses, Packet, Ports};
use crate::time::Instant;

/// Identifies a TCP flow by what its peer's packets say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) vrf: VrfId,
    /// From the peer to the NOS.
    pub(super) addresses: Addresses,
    pub(super) ports: Ports,
}

/// What connections work with, for the length of a call.
pub(super) struct Local<'a> {
    pub(super) now: Instant,
    pub(super) pool: &'a mut FramePool,
    pub(super) originator: &'a mut Originator,
    pub(super) outbox: &'a mut VecDeque<Packet>,
}
