//! Containers with addresses of their own: hosts behind the NOS, which is their router.
//!
//! Nothing is asked about what comes to such an address but what a router asks and what the container's policy
//! says, and without one nothing is remembered of it: ports, fragments, protocols and echo identifiers are the
//! container's.

use crate::channel::{RefusedSide, Refuser};
use crate::drop::DropReason;
use crate::fib::AdjacencyId;
use crate::frame::BATCH;
use crate::icmp::IcmpError;
use crate::ident::{AttachmentId, Interface};
use crate::origin::Origin;
use crate::packet::{Packet, PacketBurst};
use crate::tables::Tables;
use crate::time::Instant;
use crate::worker::Worker;

use super::Forwarder;
use super::egress::{check_transit, send_ready};
use super::police::{self, Refused};
use super::step::{Step, ToAttachment};

impl Forwarder<'_> {
    /// Packets from containers of which some have addresses of their own, and where their routes lead.
    /// Theirs lose a hop, so none of them leaves as it is.
    #[inline(never)]
    pub(super) fn outbound_mixed(&mut self, burst: &mut PacketBurst, found: &[AdjacencyId; BATCH]) {
        for (packet, &adjacency) in burst.drain(..).zip(found) {
            let routed = match packet.frame().interface() {
                Some(Interface::Attachment(id)) => self.tables.is_routed(id),
                _ => false,
            };
            let Self {
                worker,
                output,
                now,
                ..
            } = self;
            let sent = match routed {
                true => Err(packet),
                false => send_ready(packet, adjacency, &worker.rewrites, output, *now),
            };
            if let Err(packet) = sent {
                self.outbound_slowly(packet, adjacency);
            }
        }
    }
}

/// A packet to an address that a container has for its own.
pub(super) fn deliver(
    packet: Packet,
    to: AttachmentId,
    origin: Origin,
    tables: &Tables,
    worker: &mut Worker,
    now: Instant,
) -> Step {
    if let Origin::Attachment(from) = origin {
        if let Some(fault) = packet.fault() {
            // It could hide whose port it comes from (RFC 1858 §3).
            return Step::Drop(packet, fault.reason());
        }
        if tables.ports.isolates() && tables.keeps_apart(from, to) {
            let reason = DropReason::OtherNetwork;
            return Step::refuse(packet, origin, IcmpError::Prohibited, reason);
        }
    }
    if tables.polices
        && let Err(refused) = judge(&packet, to, tables, worker, now)
    {
        return police::refuse(packet, origin, refused);
    }
    // The hop between a NOS in another process and here was counted there.
    let transit = tables.is_transit(origin) && tables.upstream.is_none();
    if transit {
        match check_transit(&packet) {
            Ok(()) => {}
            Err((reason, Some(error))) => return Step::refuse(packet, origin, error, reason),
            Err((reason, None)) => return Step::Drop(packet, reason),
        }
    }
    Step::ToAttachment(ToAttachment {
        packet,
        to,
        echo_id: None,
        origin,
        transit,
    })
}

/// What the container's policy says, if it has one. What is refused is noted for whoever watches.
#[cold]
fn judge(
    packet: &Packet,
    to: AttachmentId,
    tables: &Tables,
    worker: &mut Worker,
    now: Instant,
) -> Result<(), Refused> {
    let (Some(policy), Some(policed)) = (tables.policies.get(to), &mut worker.policed) else {
        return Ok(());
    };
    let judged = police::to_own_address(packet, to, policy, tables, policed, now);
    judged.inspect_err(|refused| {
        let who = (Refuser::Attachment(to), RefusedSide::Peer);
        worker.refusals.note(packet, who, refused.reason, None, now);
    })
}
