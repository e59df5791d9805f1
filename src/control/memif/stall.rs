//! Whether a peer takes what is sent.
//!
//! A ring that is full says nothing yet: it is full for a moment whenever more comes than the peer can
//! take. If the peer's indices stand still for [`STALL`] since, it does not take anything.

use std::time::Duration;

use nos_shim::time::Instant;

/// How often indices are looked at, once a ring was full.
const INTERVAL: Duration = Duration::from_millis(20);

/// A peer that has taken nothing for so long has stalled. With the look that finds it, that is less than
/// 100 ms.
pub const STALL: Duration = Duration::from_millis(60);

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing new: it is to be looked again.
    Same,
    /// The peer takes frames: nobody has to look until a ring is full again.
    Moves,
    /// It has taken nothing for [`STALL`]; said once.
    Stalled,
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
    stalled: bool,
}

impl Stall {
    /// Begins, where the peer's indices are these.
    pub(super) fn new(indices: Vec<u16>, now: Instant) -> Self {
        Self {
            indices,
            since: now,
            looked: now,
            stalled: false,
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
            return match self.stalled {
                true => Found::Recovered,
                false => Found::Moves,
            };
        }
        if self.stalled || now.since(self.since) < STALL {
            return Found::Same;
        }
        self.stalled = true;
        Found::Stalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_peer_that_moves_has_not_stalled() {
        let mut stall = Stall::new(vec![1, 2], at(0));
        assert_eq!(stall.poll_at(), at(20));
        assert_eq!(stall.look(&[1, 2], at(20)), Found::Same);
        assert_eq!(stall.look(&[1, 3], at(40)), Found::Moves);
    }

    #[test]
    fn one_that_stands_still_has_stalled_once_and_recovers() {
        let mut stall = Stall::new(vec![7], at(0));
        let mut found = Vec::new();
        while stall.poll_at() < at(200) {
            let now = stall.poll_at();
            if stall.look(&[7], now) == Found::Stalled {
                found.push(now);
            }
        }
        assert_eq!(found, [at(60)]);
        assert_eq!(stall.look(&[8], at(200)), Found::Recovered);
    }
}
