//! Frames on their way to the devices of uplinks.

use super::Shim;
use crate::drop::DropReason;
use crate::frame::Burst;
use crate::ident::UplinkId;

impl Shim {
    /// The next frames to send, and on which uplink. Frames that the caller leaves in the burst are
    /// offered again by the next call, adapted to the [capabilities](Self::set_capabilities) that
    /// hold then; [`Self::discard_unsent`] drops them.
    pub fn poll_transmit(&mut self) -> Option<(UplinkId, &mut Burst)> {
        self.settle();
        let (uplink, burst) = self.transmit.lend()?;
        Some((UplinkId(uplink), burst))
    }

    /// Counts what the caller took of the burst that was lent out.
    pub(super) fn settle(&mut self) {
        let Some(sent) = self.transmit.settle() else {
            return;
        };
        self.ledger.sent += sent.frames;
        if let Some(uplink) = self.uplinks.get_mut(UplinkId(sent.interface)) {
            uplink.counters.tx_packets += sent.frames;
            uplink.counters.tx_octets += sent.octets;
        }
    }

    /// Drops what the caller left in the burst that [`Self::poll_transmit`] returned last.
    pub fn discard_unsent(&mut self, reason: DropReason) {
        if let Some((_, mut left)) = self.transmit.take_unsent() {
            self.ledger.drops.add(reason, left.len() as u64);
            self.pool.free_all(&mut left);
        }
    }

    /// Announces that this side is about to block. Returns `false` if it must not, because there
    /// is something to do.
    pub fn try_sleep(&mut self) -> bool {
        self.transmit.held() == 0 && self.channel.try_sleep()
    }
}
