//! The NOS's own sockets.

use crate::packet::Packet;
use crate::shim::Shim;
use crate::time::Instant;

#[cfg(feature = "stack")]
impl Shim {
    /// Hands a packet to the local stack; [`Self::poll_local`] brings the answers.
    pub(super) fn deliver_local(&mut self, packet: Packet, now: Instant) {
        match self.local.handle(packet, now, &mut self.pool) {
            Ok(()) => self.ledger.consumed += 1,
            Err(reason) => self.ledger.drop(reason),
        }
    }

    /// Sends what the local stack has to say.
    pub(super) fn poll_local(&mut self, now: Instant) {
        if self.local.poll_at().is_none_or(|at| at > now) {
            return;
        }
        if self.local.status_wanted() {
            let status = status(&self.ledger);
            self.local.set_status(&status);
        }
        let Self {
            local,
            pool,
            pieces,
            ..
        } = self;
        local.poll(now, pool, &mut |packet| pieces.push_back(packet));
        // Routing a packet uses `pieces` for its own.
        let mut said = core::mem::take(&mut self.pieces);
        while let Some(packet) = said.pop_front() {
            self.ledger.originated += 1;
            self.route(packet, super::Origin::Nos, now);
        }
        // Keeps its memory for the next time.
        self.pieces = said;
    }

    pub(crate) fn local_poll_at(&self) -> Option<Instant> {
        self.local.poll_at()
    }
}

/// The counters as JSON, for the status page. Labels need no escaping.
#[cfg(feature = "stack")]
fn status(ledger: &crate::drop::Ledger) -> String {
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

#[cfg(not(feature = "stack"))]
impl Shim {
    /// Without a stack there are no sockets.
    pub(super) fn deliver_local(&mut self, packet: Packet, _now: Instant) {
        self.discard(packet, crate::drop::DropReason::NoListener);
    }

    #[expect(clippy::unused_self, reason = "the same call as with a stack")]
    pub(super) fn poll_local(&mut self, _now: Instant) {}

    #[expect(clippy::unused_self, reason = "the same call as with a stack")]
    pub(crate) fn local_poll_at(&self) -> Option<Instant> {
        None
    }
}
