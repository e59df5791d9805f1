//! What happens to a packet next: what a stage returns, and the next one takes.

use core::net::IpAddr;

use crate::drop::DropReason;
use crate::fib::AdjacencyId;
use crate::fragments::Fate;
use crate::icmp::IcmpError;
use crate::ident::{AttachmentId, LocalAddressId, UplinkId};
use crate::origin::Origin;
use crate::packet::Packet;
use crate::worker::Holder;

/// What happens to a packet next.
#[derive(Debug)]
pub(super) enum Step {
    /// It goes where its destination says.
    Route(Packet, Origin),
    /// It goes where its route says.
    Follow(Packet, AdjacencyId, Origin),
    /// It is to this address of the NOS.
    Deliver(Packet, LocalAddressId, Origin),
    /// It is to an address that this attachment has for its own.
    ToOwnAddress(Packet, AttachmentId, Origin),
    /// It is a fragment whose datagram has found its owner, or never will.
    Fate(Fate<Holder>),
    /// It is a container's.
    ToAttachment(ToAttachment),
    /// It leaves by an uplink.
    Leave(Packet, NextHop, Origin),
    /// It does not go on, and its sender may be told.
    Refuse(Refusal),
    /// The NOS says it to where this origin is; it is counted as originated.
    Return(Packet, Origin),
    /// It does not go on.
    Drop(Packet, DropReason),
    /// It has ended, and is accounted for.
    Done,
}

/// A packet for a container.
#[derive(Debug)]
pub(super) struct ToAttachment {
    pub(super) packet: Packet,
    pub(super) to: AttachmentId,
    /// The echo identifier that the container knows, if it is another than the one on the wire.
    pub(super) echo_id: Option<u16>,
    pub(super) origin: Origin,
    /// It passes from one network to another: one hop less to live.
    pub(super) transit: bool,
}

/// A station on an uplink's link.
#[derive(Clone, Copy, Debug)]
pub(super) struct NextHop {
    pub(super) uplink: UplinkId,
    pub(super) address: IpAddr,
    /// The packet passes from one network to another: one hop less to live.
    pub(super) transit: bool,
}

impl Step {
    /// A refusal with an ICMP error.
    pub(super) fn refuse(
        packet: Packet,
        origin: Origin,
        error: IcmpError,
        reason: DropReason,
    ) -> Self {
        Self::Refuse(Refusal::new(packet, origin, error, reason))
    }

    /// A refusal of what a container is not told of, as if nobody listened.
    pub(super) fn no_listener(packet: Packet, origin: Origin, reason: DropReason) -> Self {
        Self::Refuse(Refusal {
            reason,
            ..Refusal::no_listener(packet, origin)
        })
    }
}

/// A packet that does not go on, and what its sender is told if that is proper and the rate allows.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) packet: Packet,
    pub(super) origin: Origin,
    pub(super) notice: Notice,
    pub(super) reason: DropReason,
}

/// What the sender of a refused packet is told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Notice {
    /// This error.
    Error(IcmpError),
    /// What a host says where nobody listens: a reset, or that the port is unreachable.
    NoListener,
}

impl Refusal {
    /// With an ICMP error.
    pub(super) fn new(
        packet: Packet,
        origin: Origin,
        error: IcmpError,
        reason: DropReason,
    ) -> Self {
        Self {
            packet,
            origin,
            notice: Notice::Error(error),
            reason,
        }
    }

    /// Of a TCP segment or UDP datagram that nobody listens for, as a host does it.
    pub(super) fn no_listener(packet: Packet, origin: Origin) -> Self {
        Self {
            packet,
            origin,
            notice: Notice::NoListener,
            reason: DropReason::NoListener,
        }
    }
}
