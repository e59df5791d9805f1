//! What one owner may hold of what all share.
//!
//! # Theory of operation
//!
//! All packets lie in the buffers of one pool. Some wait: for a neighbor's MAC address, for the
//! first fragment of their datagram, for the rest of it. An owner that makes many packets wait must
//! not take the buffers that others need. An owner is a container, the outsiders behind one uplink,
//! or the NOS itself: each has an [`Account`], told by the interface on which the packet came in. An
//! answer is charged to whoever it answers.
//!
//! [`Shares`] is the book: one number for each account, one for all. It follows the dynamic
//! thresholds of shared-memory switches (Choudhury and Hahne, 1998): an owner may hold as many as
//! are still free. So an owner alone may hold half of the limit, two a third each, `n` a part of
//! `n + 1` each, and one part is always free for whoever comes next. Each question is a comparison
//! of two numbers, whatever the number of owners.
//!
//! | [standing](Standing) | the owner holds | its next packet |
//! |---|---|---|
//! | within | fewer than are free | is taken |
//! | full | as many | is taken in place of its own oldest, or dropped if that waits elsewhere |
//! | over, as others came | more | is dropped, and its own oldest with it |
//!
//! Nothing of an owner is ever dropped for another. Such drops are counted as
//! [`DropReason::OverShare`](crate::drop::DropReason::OverShare). A super-frame occupies one buffer,
//! as all buffers have the same size, and counts as one.
//!
//! The same book bounds state: neighbors that are asked for, datagrams whose fragments are
//! remembered, datagrams that are put together. There the unit is an entry of the table.
//!
//! # Where the buffers of a pool are
//!
//! [`Budget`] divides a pool of P buffers. With two data threads:
//!
//! | place | buffers at most | bounded by | for how long |
//! |---|---|---|---|
//! | waiting: neighbors, fragments, reassembly | P/4, of which one owner P/8 | [`Shares`] | seconds |
//! | two rings | P/4 each | their length, [`Budget::ring`] | until the taker's next rounds |
//! | free, but kept by four pool handles | P/32 each | [`frame`](crate::frame) | until they need them |
//! | a burst in hand, and what waits for devices | the rest: P/8 | emptied before the next burst is read | a round |
//!
//! So a thread that reads a device finds P/8 buffers less the burst that the other thread has in
//! hand: with P = 1024 a burst of 64 for each of the two. With one data thread the rings are empty
//! when a device is read, and 5 P/8 are left. A device that does not take its frames keeps none:
//! what it leaves is dropped and counted at once. Devices take turns, and those of a full ring are
//! held back, so that no owner has more of a ring than its turns.
//!
//! Super-frames that are cut for a device without offload need more buffers than they came in. That
//! is bounded by [`Budget::transmit_high`], above which nothing more is taken from the ring, and by
//! [`Budget::transmit_queue`] for each device.

use crate::frame::{BATCH, Frame};
use crate::ident::Interface;

/// Frames that wait for one device at most, however large the pool.
const MOST_FOR_DEVICE: u32 = 4096;

/// Frames that wait for all devices of a side, above which no more bursts are taken from the ring:
/// what is written soon after is still in cache.
const TRANSMIT_HIGH: usize = 4 * BATCH;

/// How the buffers of a pool are divided. See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    buffers: usize,
}

impl Budget {
    /// That of a pool with so many buffers.
    #[must_use]
    pub const fn of(buffers: usize) -> Self {
        Self { buffers }
    }

    /// Buffers with packets that wait, of all owners: a quarter, at least 4.
    #[must_use]
    pub fn waiting(self) -> usize {
        (self.buffers / 4).max(4)
    }

    /// Bursts of a ring: `wanted`, unless they might hold more than a quarter of the buffers; at
    /// least one.
    #[must_use]
    pub fn ring(self, wanted: usize) -> usize {
        wanted.min(self.buffers / 4 / BATCH).max(1)
    }

    /// Frames that wait for one device: half of the buffers at most.
    #[must_use]
    pub fn transmit_queue(self) -> u32 {
        let half = u32::try_from(self.buffers / 2).unwrap_or(u32::MAX);
        half.clamp(1, MOST_FOR_DEVICE)
    }

    /// Frames that wait for all devices of one side, above which it takes nothing more from its
    /// ring: an eighth of the buffers at most.
    #[must_use]
    pub fn transmit_high(self) -> usize {
        (self.buffers / 8).clamp(1, TRANSMIT_HIGH)
    }
}

/// Whom a [book](Shares) charges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Account(u32);

impl Account {
    /// The NOS itself.
    pub const NOS: Self = Self(0);

    /// Of whoever sent `frame`, or made the NOS send it.
    #[must_use]
    #[inline]
    pub fn of(frame: &Frame) -> Self {
        frame.interface().map_or(Self::NOS, Self::from)
    }

    /// Where tables keep what belongs to it. Two generations of an identifier share an account:
    /// what the old one left is given back to it.
    #[must_use]
    #[inline]
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

impl From<Interface> for Account {
    #[inline]
    fn from(interface: Interface) -> Self {
        let place = |index: usize, kind| 2 * u32::try_from(index).unwrap_or(u32::MAX / 2) + kind;
        match interface {
            Interface::Attachment(id) => Self(place(id.index(), 1)),
            Interface::Uplink(id) => Self(place(id.index(), 2)),
        }
    }
}

/// Whether an account may hold more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// One more at least.
    Within,
    /// One more for one that it gives up.
    Full,
    /// It has to give some up: there are others now.
    Over,
}

/// A book of what each account holds of something.
#[derive(Debug)]
pub struct Shares {
    limit: usize,
    held: usize,
    /// By account; grows with the number of interfaces.
    accounts: Vec<usize>,
}

impl Shares {
    /// A book of something of which there is `limit`, at least 2. An account alone may hold half.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(2),
            held: 0,
            accounts: Vec::new(),
        }
    }

    /// A book in which an account alone may hold `most`, and all of them together less than twice
    /// that.
    #[must_use]
    pub fn for_one(most: usize) -> Self {
        Self::new(most.saturating_mul(2))
    }

    /// What there is.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// What all accounts hold.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// What one account holds.
    #[must_use]
    #[inline]
    pub fn held_by(&self, account: Account) -> usize {
        self.accounts.get(account.index()).copied().unwrap_or(0)
    }

    /// Whether an account may hold more.
    #[must_use]
    #[inline]
    pub fn standing(&self, account: Account) -> Standing {
        let (held, free) = (self.held_by(account), self.limit.saturating_sub(self.held));
        if held < free {
            Standing::Within
        } else if 0 < held && held <= free + 1 {
            // What it took last was taken from what is free.
            Standing::Full
        } else {
            Standing::Over
        }
    }

    /// Notes that an account holds one more, whatever its standing.
    #[inline]
    pub fn charge(&mut self, account: Account) {
        let index = account.index();
        if self.accounts.len() <= index {
            self.open(index);
        }
        self.accounts[index] += 1;
        self.held += 1;
    }

    #[cold]
    fn open(&mut self, index: usize) {
        self.accounts.resize(index + 1, 0);
    }

    /// Notes that an account holds one less.
    #[inline]
    pub fn release(&mut self, account: Account) {
        let held = self.accounts.get_mut(account.index());
        let held = held.filter(|held| **held > 0);
        debug_assert!(held.is_some(), "released more than was charged");
        if let Some(held) = held {
            *held -= 1;
            self.held -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FramePool;
    use crate::ident::{AttachmentId, UplinkId};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn container(index: u16) -> Account {
        Interface::Attachment(AttachmentId::new(index, 3)).into()
    }

    /// Takes as much as it is given.
    fn fill(shares: &mut Shares, account: Account) -> usize {
        while shares.standing(account) == Standing::Within {
            shares.charge(account);
        }
        shares.held_by(account)
    }

    #[test]
    fn accounts_are_told_apart() {
        let mut pool = FramePool::new(4, 64);
        let mut frame = pool.alloc().unwrap();
        assert_eq!(Account::of(&frame), Account::NOS);
        let mut seen = vec![Account::NOS];
        for index in [0, 1, u16::MAX] {
            let both = [
                Interface::Attachment(AttachmentId::new(index, 0)),
                Interface::Uplink(UplinkId::new(index, 0)),
            ];
            for interface in both {
                frame.set_interface(interface);
                assert!(!seen.contains(&Account::of(&frame)), "{interface}");
                seen.push(Account::of(&frame));
            }
        }
        let successor = Interface::Attachment(AttachmentId::new(0, 1));
        assert!(seen.contains(&successor.into()), "of another generation");
    }

    #[test]
    fn one_owner_has_half_and_the_next_half_of_the_rest() {
        let mut shares = Shares::new(256);
        assert_eq!(fill(&mut shares, container(0)), 128);
        assert_eq!(shares.standing(container(0)), Standing::Full);
        assert_eq!(fill(&mut shares, container(1)), 64);
        assert_eq!(shares.standing(container(0)), Standing::Over);
        assert_eq!(fill(&mut shares, container(2)), 32);
        assert_eq!(fill(&mut Shares::for_one(7), Account::NOS), 7);
    }

    /// Owners that want all they can get end up with equal parts, and one part is free.
    #[test]
    fn greedy_owners_become_equal() {
        let mut shares = Shares::new(1000);
        for index in 0..9 {
            fill(&mut shares, container(index));
        }
        for _ in 0..1000 {
            for index in 0..9 {
                match shares.standing(container(index)) {
                    Standing::Within => shares.charge(container(index)),
                    Standing::Full => {}
                    Standing::Over => shares.release(container(index)),
                }
            }
        }
        for index in 0..9 {
            assert!((99..=101).contains(&shares.held_by(container(index))));
        }
        assert!(fill(&mut shares, container(9)) >= 49);
    }

    #[test]
    fn the_budget_leaves_room_for_a_burst_of_each_thread() {
        for buffers in [1024, 2048, 4096, 65_536] {
            let budget = Budget::of(buffers);
            let handles = 4 * (buffers / 32);
            let rings = 2 * budget.ring(usize::MAX) * BATCH;
            let rest = buffers - budget.waiting() - rings - handles;
            assert!(rest >= 2 * BATCH, "{buffers}: {rest}");
        }
        // What the configuration may ask for at least.
        let least = Budget::of(256);
        assert_eq!((least.waiting(), least.ring(8)), (64, 1));
        assert_eq!(Budget::of(2048).ring(8), 8, "the default is as configured");
        assert_eq!(Budget::of(1).ring(0), 1);
    }

    proptest! {
        /// Beside a map from account to number, and the rule as it is written down.
        #[test]
        fn the_book_is_right(
            limit in 2..40_usize,
            steps in proptest::collection::vec((0..6_u16, any::<bool>()), 1..300),
        ) {
            let mut shares = Shares::new(limit);
            let mut model = BTreeMap::<u16, usize>::new();
            for (owner, take) in steps {
                let all: usize = model.values().sum();
                let held = model.entry(owner).or_default();
                let account = container(owner);
                let within = *held < limit - all;
                prop_assert_eq!(shares.standing(account) == Standing::Within, within);
                if take && within {
                    shares.charge(account);
                    *held += 1;
                } else if !take && *held > 0 {
                    shares.release(account);
                    *held -= 1;
                }
                prop_assert_eq!(shares.held_by(account), *held);
                let all: usize = model.values().sum();
                prop_assert_eq!(shares.held(), all);
                prop_assert!(all <= limit);
            }
        }

        /// However many greedy owners there are, the next one finds something as long as there are
        /// fewer of them than half the limit, once they have been told that they are over.
        #[test]
        fn a_newcomer_finds_its_part(limit in 16..200_usize, owners in 1..8_u16) {
            let mut shares = Shares::new(limit);
            for _ in 0..limit {
                for owner in 0..owners {
                    match shares.standing(container(owner)) {
                        Standing::Within => shares.charge(container(owner)),
                        Standing::Full => {}
                        Standing::Over => shares.release(container(owner)),
                    }
                }
            }
            let part = limit / (usize::from(owners) + 1);
            prop_assert!(fill(&mut shares, container(owners)) >= part / 2);
        }
    }
}
