//! Where packets come from.

use crate::ident::{AttachmentId, Interface, UplinkId};
use crate::packet::Packet;

/// Where a packet comes from: answers and errors go back there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The network.
    Uplink(UplinkId),
    /// A container.
    Attachment(AttachmentId),
    /// The NOS itself. Nobody is told of its errors.
    Nos,
}

impl Origin {
    /// Where a packet came in.
    pub(crate) fn of(packet: &Packet) -> Self {
        match packet.frame().interface() {
            Some(Interface::Attachment(id)) => Self::Attachment(id),
            Some(Interface::Uplink(id)) => Self::Uplink(id),
            None => Self::Nos,
        }
    }
}
