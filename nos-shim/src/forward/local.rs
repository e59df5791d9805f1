//! The NOS's own sockets.

use std::collections::VecDeque;

use crate::drop::Ledger;
use crate::origin::Origin;
use crate::output::Output;
use crate::packet::Packet;
use crate::tables::Tables;
use crate::time::Instant;
use crate::worker::Worker;

use super::step::Step;

/// Hands a packet to the local stack; [`poll`] brings the answers.
pub(super) fn receive(
    packet: Packet,
    origin: Origin,
    tables: &Tables,
    worker: &mut Worker,
    output: &mut Output,
    now: Instant,
) -> Step {
    let mtu = tables.mtu_back_to(origin);
    match worker.local.handle(packet, mtu, now, &mut output.pool) {
        Ok(()) => output.ledger.consumed += 1,
        Err(reason) => output.ledger.drop(reason),
    }
    Step::Done
}

/// Whether the local stack may have something to say.
#[inline]
pub(super) fn is_due(worker: &Worker, now: Instant) -> bool {
    worker.local.poll_at().is_some_and(|at| at <= now)
}

/// What the local stack has to say, counted as originated: packets to be routed. They are in what
/// was the output's `pieces`, which routing uses for its own.
pub(super) fn poll(worker: &mut Worker, output: &mut Output, now: Instant) -> VecDeque<Packet> {
    let mut said = core::mem::take(&mut output.pieces);
    let local = &mut worker.local;
    if local.status_wanted() {
        local.set_status(&status(&output.ledger));
    }
    local.poll(now, &mut output.pool, &mut |packet| said.push_back(packet));
    output.ledger.originated += said.len() as u64;
    said
}

/// The counters as JSON, for the status page. Labels need no escaping.
fn status(ledger: &Ledger) -> String {
    let drops = ledger.drops.nonzero();
    let drops: Vec<_> = drops
        .map(|(reason, packets)| format!("\"{reason}\":{packets}"))
        .collect();
    format!(
        "{{\"received\":{},\"originated\":{},\"sent\":{},\"consumed\":{},\"drops\":{{{}}}}}",
        ledger.received,
        ledger.originated,
        ledger.sent,
        ledger.consumed,
        drops.join(",")
    )
}
