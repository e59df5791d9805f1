//! Whether a peer takes what is sent.
//!
//! A ring that is full says nothing yet: it is full for a moment whenever more comes than the peer can
//! take. If the peer's indices stand still for [`STALL`] since, it has stalled, which is told; a peer that
//! has no processor for a while does so too. If they stand still for [`LOSS`], it is as good as gone.

use std::time::Duration;

use nos_shim::time::Instant;

/// How often indices are looked at, once a ring was full.
const INTERVAL: Duration = Duration::from_millis(20);

/// A peer that has taken nothing for so long has stalled. With the look that finds it, that is less than
/// 100 ms.
pub const STALL: Duration = Duration::from_millis(60);

/// A peer that has taken nothing for so long is taken for gone, until it takes something.
pub const LOSS: Duration = Duration::from_secs(1);

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing new: it is to be looked again.
    Same,
    /// The peer takes frames: nobody has to look until a ring is full again.
    Moves,
    /// It has taken nothing for [`STALL`]; said once.
    Stalled,
    /// It has taken nothing for [`LOSS`]; said once.
    Lost,
    /// It has taken something after it had stalled.
    Recovered,
}

/// Looks at the indices of a peer, one of whose rings was full.
#[derive(Clone, Debug)]
pub(super) struct Stall {
    indices: Vec<u16>,
    /// Since when they are so.
    since: Instant,
    looked: Instant,
    said: Found,
}

impl Stall {
    /// Begins, where the peer's indices are these.
    pub(super) fn new(indices: Vec<u16>, now: Instant) -> Self {
        Self {
            indices,
            since: now,
            looked: now,
            said: Found::Same,
        }
    }

    /// When to look.
    pub(super) fn poll_at(&self) -> Instant {
        self.looked + INTERVAL
    }

    /// Looks.
    pub(super) fn look(&mut self, indices: &[u16], now: Instant) -> Found {
        self.looked = now;
        if indices != self.indices {
            return match self.said {
                Found::Same => Found::Moves,
                _ => Found::Recovered,
            };
        }
        let still = now.since(self.since);
        let found = match self.said {
            Found::Same if still >= STALL => Found::Stalled,
            Found::Stalled if still >= LOSS => Found::Lost,
            _ => return Found::Same,
        };
        self.said = found;
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Instant {
        Instant::from_millis(milliseconds)
    }

    #[test]
    fn a_peer_that_moves_has_not_stalled() {
        let mut stall = Stall::new(vec![1, 2], at(0));
        assert_eq!(stall.poll_at(), at(20));
        assert_eq!(stall.look(&[1, 2], at(20)), Found::Same);
        assert_eq!(stall.look(&[1, 3], at(40)), Found::Moves);
    }

    #[test]
    fn one_that_stands_still_has_stalled_once_is_lost_once_and_recovers() {
        let mut stall = Stall::new(vec![7], at(0));
        let mut found = Vec::new();
        while stall.poll_at() < at(3000) {
            let now = stall.poll_at();
            match stall.look(&[7], now) {
                Found::Same => {}
                other => found.push((other, now)),
            }
        }
        assert_eq!(found, [(Found::Stalled, at(60)), (Found::Lost, at(1000))]);
        assert_eq!(stall.look(&[8], at(3000)), Found::Recovered);
    }
}
