//! Frames on their way to the devices of uplinks.

use super::Shim;
use crate::drop::DropReason;
use crate::frame::{Burst, Frame};
use crate::ident::UplinkId;

/// The burst that [`Shim::poll_transmit`] has lent out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lent {
    pub(super) index: usize,
    pub(super) frames: u64,
    pub(super) octets: u64,
}

impl Shim {
    /// The next frames to send, and on which uplink. Frames that the caller leaves in the burst are
    /// offered again by the next call, adapted to the [capabilities](Self::set_capabilities) that
    /// hold then; [`Self::discard_unsent`] drops them.
    pub fn poll_transmit(&mut self) -> Option<(UplinkId, &mut Burst)> {
        self.settle();
        let (index, burst) = self.transmit.pop_burst()?;
        let octets: usize = burst.iter().map(Frame::len).sum();
        let id = UplinkId(u32::try_from(index).unwrap_or(u32::MAX));
        self.lent = Some(Lent {
            index,
            frames: burst.len() as u64,
            octets: octets as u64,
        });
        Some((id, burst))
    }

    /// Counts what the caller took of the burst that was lent out.
    pub(super) fn settle(&mut self) {
        let Some(lent) = self.lent.take() else { return };
        let left = self.transmit.unsent();
        let (frames, octets) = (
            left.len() as u64,
            left.iter().map(Frame::len).sum::<usize>() as u64,
        );
        self.ledger.sent += lent.frames - frames;
        if let Some(uplink) = self.uplinks.get_mut(lent.index).and_then(Option::as_mut) {
            uplink.counters.tx_packets += lent.frames - frames;
            uplink.counters.tx_octets += lent.octets - octets;
        }
        self.transmit.restore(lent.index);
    }

    /// Drops what the caller left in the burst that [`Self::poll_transmit`] returned last.
    pub fn discard_unsent(&mut self, reason: DropReason) {
        let Some(lent) = &mut self.lent else { return };
        let left = self.transmit.unsent();
        lent.frames -= left.len() as u64;
        lent.octets -= left.iter().map(Frame::len).sum::<usize>() as u64;
        self.ledger.drops.add(reason, left.len() as u64);
        self.pool.free_all(left);
    }

    /// Announces that this side is about to block. Returns `false` if it must not, because there
    /// is something to do.
    pub fn try_sleep(&mut self) -> bool {
        self.transmit.held() == 0 && self.channel.try_sleep()
    }
}
