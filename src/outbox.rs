//! Frames that wait to be written to containers: one queue for each attachment, of which only those
//! that hold something are ever looked at.
//!
//! A queue is a chain of bursts. The bursts of all queues lie in one arena, and in one list in the
//! order in which they are to be sent. So ten thousand idle attachments cost a packet nothing, and
//! the order within an attachment is kept. Bursts are used again: the arena grows only until it has
//! held the most that ever waited.

use std::collections::VecDeque;

use nos_shim::frame::{Burst, Frame};
use nos_shim::ident::AttachmentId;

/// Frames that wait for one attachment at most. A round of the event loop leaves far fewer, unless
/// super-frames had to be cut into segments.
pub(crate) const LANE_LIMIT: u32 = 4096;

/// The place of no burst.
const NONE: u32 = u32::MAX;

/// The queues towards all attachments.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    arena: Vec<Waiting>,
    /// Places in the arena that are not in use.
    free: Vec<u32>,
    /// Places of the bursts that wait, oldest first.
    ready: VecDeque<u32>,
    /// By attachment.
    lanes: Vec<Lane>,
    held: usize,
}

#[derive(Debug)]
struct Waiting {
    owner: AttachmentId,
    burst: Burst,
}

/// The queue of one attachment.
#[derive(Clone, Copy, Debug)]
struct Lane {
    /// The place of the youngest burst, which may still grow.
    youngest: u32,
    /// Frames in all its bursts.
    len: u32,
}

/// A burst that was taken out to be sent, until it is given back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    place: u32,
    pub(crate) owner: AttachmentId,
}

impl Lane {
    const EMPTY: Self = Self {
        youngest: NONE,
        len: 0,
    };
}

impl Outbox {
    /// Frames that wait, without those of a burst that is taken out.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Appends `frame` to the queue of `owner`, or gives it back if that is full.
    #[inline]
    pub(crate) fn push(&mut self, owner: AttachmentId, frame: Frame) -> Result<(), Frame> {
        let Lane { youngest, len } = *self.lane(owner);
        if len >= LANE_LIMIT {
            return Err(frame);
        }
        let youngest = match self.arena.get(youngest as usize) {
            Some(waiting) if !waiting.burst.is_full() => youngest,
            _ => self.open(owner),
        };
        self.arena[youngest as usize].burst.push(frame);
        *self.lane(owner) = Lane {
            youngest,
            len: len + 1,
        };
        self.held += 1;
        Ok(())
    }

    #[inline]
    fn lane(&mut self, owner: AttachmentId) -> &mut Lane {
        let index = owner.0 as usize;
        if index >= self.lanes.len() {
            self.lanes.resize(index + 1, Lane::EMPTY);
        }
        &mut self.lanes[index]
    }

    /// A new burst at the end of the list.
    fn open(&mut self, owner: AttachmentId) -> u32 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.arena.push(Waiting {
                owner,
                burst: Burst::new(),
            });
            // Every burst holds a frame, and there are not 2^32 of those.
            u32::try_from(self.arena.len() - 1).unwrap_or(NONE)
        });
        self.arena[place as usize].owner = owner;
        self.ready.push_back(place);
        place
    }

    /// Takes the oldest burst out of its queue. It must be [given back](Self::give_back).
    pub(crate) fn take(&mut self) -> Option<Taken> {
        let place = self.ready.pop_front()?;
        let Waiting { owner, ref burst } = self.arena[place as usize];
        let len = burst.len();
        self.held -= len;
        self.shrink(owner, len, place);
        Some(Taken { place, owner })
    }

    /// Counts `len` frames out of the queue of `owner`, whose burst at `place` grows no more.
    fn shrink(&mut self, owner: AttachmentId, len: usize, place: u32) {
        let lane = self.lane(owner);
        lane.len -= u32::try_from(len).unwrap_or_default();
        if lane.youngest == place {
            lane.youngest = NONE;
        }
    }

    /// The burst that was taken out.
    pub(crate) fn burst(&mut self, taken: &Taken) -> &mut Burst {
        &mut self.arena[taken.place as usize].burst
    }

    /// Takes a burst back. What is left in it is the first to be taken out again.
    #[expect(clippy::needless_pass_by_value, reason = "it is used up")]
    pub(crate) fn give_back(&mut self, taken: Taken) {
        let Taken { place, owner } = taken;
        let len = self.arena[place as usize].burst.len();
        if len == 0 {
            self.free.push(place);
        } else {
            self.held += len;
            self.lane(owner).len += u32::try_from(len).unwrap_or_default();
            self.ready.push_front(place);
        }
    }

    /// Takes out all frames that wait for `owner`, oldest first. Looks at all bursts: meant for
    /// rare events.
    pub(crate) fn drain(&mut self, owner: AttachmentId) -> Vec<Frame> {
        let mut frames = Vec::new();
        let Self {
            arena, free, ready, ..
        } = self;
        ready.retain(|&place| {
            let waiting = &mut arena[place as usize];
            let other = waiting.owner != owner;
            if !other {
                frames.extend(waiting.burst.drain(..));
                free.push(place);
            }
            other
        });
        self.held -= frames.len();
        *self.lane(owner) = Lane::EMPTY;
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nos_shim::frame::{BATCH, FramePool};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Push(u32, u8),
        /// Take a burst out, and remove so many of its frames.
        Send(usize),
        Drain(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..4_u32, 1..100_u8).prop_map(|(owner, count)| Step::Push(owner, count)),
            3 => prop_oneof![Just(BATCH), 0..BATCH].prop_map(Step::Send),
            1 => (0..5_u32).prop_map(Step::Drain),
        ]
    }

    fn number(frame: &Frame) -> u32 {
        u32::from_be_bytes(frame.bytes().try_into().unwrap())
    }

    proptest! {
        /// Beside a queue for each owner.
        #[test]
        fn each_queue_keeps_its_order(steps in proptest::collection::vec(step(), 1..60)) {
            let mut pool = FramePool::new(8192, 14);
            let mut outbox = Outbox::default();
            let mut model = BTreeMap::<u32, VecDeque<u32>>::new();
            let mut next = 0_u32;
            for step in steps {
                match step {
                    Step::Push(owner, count) => for _ in 0..count {
                        let frame = pool.copy_from(&next.to_be_bytes()).unwrap();
                        let queue = model.entry(owner).or_default();
                        match outbox.push(AttachmentId(owner), frame) {
                            Ok(()) => queue.push_back(next),
                            Err(back) => {
                                prop_assert_eq!(queue.len(), LANE_LIMIT as usize);
                                prop_assert_eq!(number(&back), next);
                            }
                        }
                        next += 1;
                    },
                    Step::Send(count) => match outbox.take() {
                        None => prop_assert!(model.values().all(VecDeque::is_empty)),
                        Some(taken) => {
                            let queue = model.get_mut(&taken.owner.0).unwrap();
                            let burst = outbox.burst(&taken);
                            prop_assert!(!burst.is_empty());
                            let count = count.min(burst.len());
                            for frame in burst.drain(..count) {
                                prop_assert_eq!(Some(number(&frame)), queue.pop_front());
                            }
                            outbox.give_back(taken);
                        }
                    },
                    Step::Drain(owner) => {
                        let drained: Vec<_> = outbox.drain(AttachmentId(owner)).iter().map(number).collect();
                        let expected = Vec::from(model.remove(&owner).unwrap_or_default());
                        prop_assert_eq!(drained, expected);
                    }
                }
                prop_assert_eq!(outbox.held(), model.values().map(VecDeque::len).sum::<usize>());
            }
        }
    }

    #[test]
    fn a_full_queue_gives_the_frame_back() {
        let mut pool = FramePool::new(LANE_LIMIT as usize + 1, 14);
        let mut outbox = Outbox::default();
        for _ in 0..LANE_LIMIT {
            assert!(outbox.push(AttachmentId(3), pool.alloc().unwrap()).is_ok());
        }
        assert!(outbox.push(AttachmentId(3), pool.alloc().unwrap()).is_err());
    }

    #[test]
    fn bursts_are_used_again() {
        let mut pool = FramePool::new(256, 14);
        let mut outbox = Outbox::default();
        for round in 0..100 {
            for n in 0..130 {
                let owner = AttachmentId((round + n) % 3);
                outbox.push(owner, pool.alloc().unwrap()).unwrap();
            }
            while let Some(taken) = outbox.take() {
                outbox.burst(&taken).clear();
                outbox.give_back(taken);
            }
        }
        assert_eq!((outbox.held(), outbox.arena.len()), (0, 3));
    }
}
