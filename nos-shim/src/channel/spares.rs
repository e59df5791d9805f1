//! Empty bursts, which are sent again: a ring carries where a burst is, not its packets.

use std::sync::Arc;

use crate::packet::PacketBurst;
use crate::sync::ArrayQueue;

/// Empty bursts that an end keeps to itself. Few, so that what goes round stays in the cache.
const KEPT: usize = 2;

/// One end's share of the empty bursts of a channel.
///
/// Who takes a burst gives it back empty, and sends its own in those. Where most goes one way they
/// return to the sender by a queue that both ends have.
pub(super) struct Spares {
    mine: Vec<PacketBurst>,
    shared: Arc<ArrayQueue<PacketBurst>>,
}

/// Makes the shares of two ends between which up to `bursts` are under way.
pub(super) fn pair(bursts: usize) -> (Spares, Spares) {
    // One that is being filled and one that is being emptied, at each end.
    let shared = Arc::new(ArrayQueue::new(bursts.saturating_add(4)));
    let share = |shared| Spares {
        mine: Vec::with_capacity(KEPT),
        shared,
    };
    (share(Arc::clone(&shared)), share(shared))
}

impl Spares {
    /// An empty burst: made only where none has come back yet.
    #[inline]
    pub(super) fn take(&mut self) -> PacketBurst {
        self.mine.pop().unwrap_or_else(|| {
            let shared = self.shared.pop();
            shared.unwrap_or_else(fresh)
        })
    }

    /// Takes back a burst; what is still in it is freed.
    #[inline]
    pub(super) fn put(&mut self, mut burst: PacketBurst) {
        burst.clear();
        if self.mine.len() < KEPT {
            self.mine.push(burst);
        } else {
            // There is room for all that the rings hold; more were made by whoever uses the end.
            drop(self.shared.push(burst));
        }
    }
}

#[cold]
fn fresh() -> PacketBurst {
    PacketBurst::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bursts that flow one way come back to the sender, so that none is made after the first few.
    #[test]
    fn bursts_that_flow_one_way_come_back() {
        let (mut sender, mut taker) = pair(4);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let burst = sender.take();
            seen.insert(core::ptr::from_ref(&*burst).addr());
            taker.put(burst);
        }
        assert!(seen.len() <= KEPT + 1, "{} bursts were made", seen.len());
    }
}
