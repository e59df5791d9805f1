//! The NOS's own sockets.

use std::collections::VecDeque;

use crate::drop::{DropReason, Ledger};
use crate::ident::VrfId;
use crate::origin::Origin;
use crate::output::Output;
use crate::packet::Packet;
use crate::tables::Tables;
use crate::time::Instant;
use crate::worker::Worker;

use super::step::Step;

/// Hands a packet to its VRF's local stack; [`poll`] brings the answers.
pub(super) fn receive(
    packet: Packet,
    origin: Origin,
    tables: &Tables,
    worker: &mut Worker,
    output: &mut Output,
    now: Instant,
) -> Step {
    let vrf = packet.frame().vrf();
    let mtu = tables.mtu_back_to(origin, vrf);
    let Some(local) = worker.vrfs.local(vrf) else {
        return Step::Drop(packet, DropReason::NoListener);
    };
    match local.handle(packet, mtu, now, &mut output.pool) {
        Ok(()) => output.ledger.consumed += 1,
        Err(reason) => output.ledger.drop(reason),
    }
    worker.vrfs.stir(vrf);
    Step::Done
}

/// Whether a local stack may have something to say.
#[inline]
pub(super) fn is_due(worker: &Worker, now: Instant) -> bool {
    worker.vrfs.local_at().is_some_and(|at| at <= now)
}

/// What the local stack of a VRF has to say, counted as originated: packets to be routed. They are in
/// what was the output's `pieces`, which routing uses for its own.
pub(super) fn poll(
    vrf: VrfId,
    tables: &Tables,
    worker: &mut Worker,
    output: &mut Output,
    now: Instant,
) -> VecDeque<Packet> {
    let mut said = core::mem::take(&mut output.pieces);
    let single = worker.vrfs.is_single();
    let Some(local) = worker.vrfs.local(vrf) else {
        return said;
    };
    if local.status_wanted() {
        let status = match single {
            true => status(&output.ledger),
            false => status_of(vrf, tables, output),
        };
        local.set_status(&status);
    }
    local.poll(now, &mut output.pool, &mut |packet| said.push_back(packet));
    output.ledger.originated += said.len() as u64;
    said
}

/// The counters of one VRF among several: what went through its uplinks. The ledger counts what
/// others do, which is none of the business of whoever asks here.
fn status_of(vrf: VrfId, tables: &Tables, output: &Output) -> String {
    let uplinks = tables.uplinks.iter();
    let of_vrf = uplinks.filter(|(_, uplink)| uplink.config.vrf == vrf);
    let counters = of_vrf.filter_map(|(id, _)| output.counters.get(id));
    let (received, sent) = counters.fold((0, 0), |(received, sent), counters| {
        (received + counters.rx_packets, sent + counters.tx_packets)
    });
    format!("{{\"received\":{received},\"sent\":{sent}}}")
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
