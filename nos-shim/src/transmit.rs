//! Frames that wait for their devices: one queue for each interface, of which only those that hold
//! something are ever looked at.
//!
//! A queue is a chain of bursts. The bursts of all queues lie in one arena, and in one list in the
//! order in which they are to be sent. So ten thousand idle interfaces cost a packet nothing, the
//! order within an interface is kept, and a frame is not moved again before its device takes it.
//! Bursts are used again: the arena grows only until it has held the most that ever waited.

use std::collections::VecDeque;

use crate::frame::{Burst, Frame, octets};
use crate::ident::UplinkId;

/// The place of no burst.
const NONE: u32 = u32::MAX;

/// The queue of an interface: by index, without the generation.
const fn lane_of(interface: u32) -> usize {
    UplinkId(interface).index()
}

/// A bounded queue for each interface.
#[derive(Debug)]
pub struct TransmitQueues {
    /// Frames in one queue at most.
    limit: u32,
    arena: Vec<Waiting>,
    /// Places in the arena that are not in use.
    free: Vec<u32>,
    /// Places of the bursts that wait, oldest first.
    ready: VecDeque<u32>,
    /// By interface.
    lanes: Vec<Lane>,
    lent: Option<Lent>,
    /// Frames in the queues, without those of the burst that is lent.
    held: usize,
}

#[derive(Debug)]
struct Waiting {
    interface: u32,
    burst: Burst,
}

/// The queue of one interface.
#[derive(Clone, Copy, Debug)]
struct Lane {
    /// The place of the youngest burst, which may still grow.
    youngest: u32,
    /// Frames in all its bursts.
    len: u32,
}

/// The burst that is with its device.
#[derive(Clone, Copy, Debug)]
struct Lent {
    place: u32,
    interface: u32,
    frames: usize,
    octets: u64,
}

/// What a device took of a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Whose device.
    pub interface: u32,
    /// Frames.
    pub frames: u64,
    /// Octets of those frames.
    pub octets: u64,
}

impl Lane {
    const EMPTY: Self = Self {
        youngest: NONE,
        len: 0,
    };
}

impl TransmitQueues {
    /// Queues of at most `limit` frames each.
    #[must_use]
    pub fn new(limit: u32) -> Self {
        Self {
            limit,
            arena: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            lanes: Vec::new(),
            lent: None,
            held: 0,
        }
    }

    /// Frames that wait, and those of the burst that is lent.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held + self.lent.map_or(0, |lent| lent.frames)
    }

    /// Appends `frame` to the queue of `interface`: the number of an
    /// [attachment](crate::ident::AttachmentId) or [uplink](UplinkId). Two generations of one
    /// index share a queue, so [`Self::drain`] it between them.
    ///
    /// # Errors
    ///
    /// The frame, when the queue is full.
    #[inline]
    pub fn push(&mut self, interface: u32, frame: Frame) -> Result<(), Frame> {
        let Some(lane) = self.lanes.get_mut(lane_of(interface)) else {
            return self.push_first(interface, frame);
        };
        if lane.len >= self.limit {
            return Err(frame);
        }
        let youngest = self.arena.get_mut(lane.youngest as usize);
        let Some(waiting) = youngest.filter(|waiting| !waiting.burst.is_full()) else {
            self.open(interface, frame);
            return Ok(());
        };
        waiting.burst.push(frame);
        lane.len += 1;
        self.held += 1;
        Ok(())
    }

    /// Into the queue of an interface that never had one.
    #[cold]
    fn push_first(&mut self, interface: u32, frame: Frame) -> Result<(), Frame> {
        self.lanes.resize(lane_of(interface) + 1, Lane::EMPTY);
        self.push(interface, frame)
    }

    /// Puts a frame into a new burst at the end of the list.
    fn open(&mut self, interface: u32, frame: Frame) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.arena.push(Waiting {
                interface,
                burst: Burst::new(),
            });
            // Every burst holds a frame, and there are not 2^32 of those.
            u32::try_from(self.arena.len() - 1).unwrap_or(NONE)
        });
        let waiting = &mut self.arena[place as usize];
        waiting.interface = interface;
        waiting.burst.push(frame);
        self.ready.push_back(place);
        let lane = &mut self.lanes[lane_of(interface)];
        lane.youngest = place;
        lane.len += 1;
        self.held += 1;
    }

    /// Lends the oldest burst, and says whose it is. The device takes frames from it, from the
    /// front; [`Self::settle`] must be called before anything else is lent.
    #[must_use]
    pub fn lend(&mut self) -> Option<(u32, &mut Burst)> {
        debug_assert!(self.lent.is_none(), "one burst at a time");
        let place = self.ready.pop_front()?;
        let Waiting { interface, burst } = &mut self.arena[place as usize];
        let (interface, frames) = (*interface, burst.len());
        self.lent = Some(Lent {
            place,
            interface,
            frames,
            octets: octets(burst),
        });
        self.held -= frames;
        let lane = &mut self.lanes[lane_of(interface)];
        lane.len -= u32::try_from(frames).unwrap_or_default();
        // It grows no more.
        if lane.youngest == place {
            lane.youngest = NONE;
        }
        Some((interface, burst))
    }

    /// Takes back the burst that was lent, if one was. What is left in it is the first to be lent
    /// again.
    pub fn settle(&mut self) -> Option<Settled> {
        let lent = self.lent.take()?;
        let burst = &self.arena[lent.place as usize].burst;
        let (left, left_octets) = (burst.len(), octets(burst));
        if left == 0 {
            self.free.push(lent.place);
        } else {
            self.held += left;
            self.lanes[lane_of(lent.interface)].len += u32::try_from(left).unwrap_or_default();
            self.ready.push_front(lent.place);
        }
        Some(Settled {
            interface: lent.interface,
            frames: lent.frames.saturating_sub(left) as u64,
            octets: lent.octets.saturating_sub(left_octets),
        })
    }

    /// Takes out what the device left in the burst that is lent, for the caller to count, and says
    /// whose it was.
    pub fn take_unsent(&mut self) -> Option<(u32, Burst)> {
        let lent = self.lent.as_mut()?;
        let left = core::mem::take(&mut self.arena[lent.place as usize].burst);
        lent.frames -= left.len();
        lent.octets -= octets(&left);
        Some((lent.interface, left))
    }

    /// Takes out all frames that wait for `interface`, oldest first. Looks at all bursts: meant for
    /// rare events.
    pub fn drain(&mut self, interface: u32) -> Vec<Frame> {
        let mut frames = Vec::new();
        let Self {
            arena, free, ready, ..
        } = self;
        ready.retain(|&place| {
            let waiting = &mut arena[place as usize];
            let other = waiting.interface != interface;
            if !other {
                frames.extend(waiting.burst.drain(..));
                free.push(place);
            }
            other
        });
        self.held -= frames.len();
        if let Some(lane) = self.lanes.get_mut(lane_of(interface)) {
            *lane = Lane::EMPTY;
        }
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{BATCH, FramePool};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const LIMIT: u32 = 4096;

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
            let mut queues = TransmitQueues::new(LIMIT);
            let mut model = BTreeMap::<u32, VecDeque<u32>>::new();
            let mut next = 0_u32;
            for step in steps {
                match step {
                    Step::Push(owner, count) => for _ in 0..count {
                        let frame = pool.copy_from(&next.to_be_bytes()).unwrap();
                        let queue = model.entry(owner).or_default();
                        match queues.push(owner, frame) {
                            Ok(()) => queue.push_back(next),
                            Err(back) => {
                                prop_assert_eq!(queue.len(), LIMIT as usize);
                                prop_assert_eq!(number(&back), next);
                            }
                        }
                        next += 1;
                    },
                    Step::Send(count) => match queues.lend() {
                        None => prop_assert!(model.values().all(VecDeque::is_empty)),
                        Some((owner, burst)) => {
                            let queue = model.get_mut(&owner).unwrap();
                            prop_assert!(!burst.is_empty());
                            let count = count.min(burst.len());
                            for frame in burst.drain(..count) {
                                prop_assert_eq!(Some(number(&frame)), queue.pop_front());
                            }
                            let expected = Settled { interface: owner, frames: count as u64, octets: 4 * count as u64 };
                            prop_assert_eq!(queues.settle(), Some(expected));
                            prop_assert_eq!(queues.settle(), None);
                        }
                    },
                    Step::Drain(owner) => {
                        let drained: Vec<_> = queues.drain(owner).iter().map(number).collect();
                        let expected = Vec::from(model.remove(&owner).unwrap_or_default());
                        prop_assert_eq!(drained, expected);
                    }
                }
                prop_assert_eq!(queues.held(), model.values().map(VecDeque::len).sum::<usize>());
            }
        }
    }

    #[test]
    fn a_full_queue_gives_the_frame_back() {
        let mut pool = FramePool::new(LIMIT as usize + 1, 14);
        let mut queues = TransmitQueues::new(LIMIT);
        for _ in 0..LIMIT {
            assert!(queues.push(3, pool.alloc().unwrap()).is_ok());
        }
        assert!(queues.push(3, pool.alloc().unwrap()).is_err());
    }

    #[test]
    fn what_a_device_leaves_can_be_taken_out() {
        let mut pool = FramePool::new(64, 14);
        let mut queues = TransmitQueues::new(LIMIT);
        for n in 0..5 {
            queues.push(2, pool.copy_from(&[n]).unwrap()).unwrap();
        }
        let (_, burst) = queues.lend().unwrap();
        burst.drain(..2);
        assert_eq!(queues.held(), 5, "until it is settled");
        let (interface, left) = queues.take_unsent().unwrap();
        assert_eq!((interface, left.len()), (2, 3));
        assert_eq!(queues.held(), 2);
        let sent = Settled {
            interface: 2,
            frames: 2,
            octets: 2,
        };
        assert_eq!(queues.settle(), Some(sent));
        assert!(queues.lend().is_none() && queues.held() == 0);
    }

    #[test]
    fn bursts_are_used_again() {
        let mut pool = FramePool::new(256, 14);
        let mut queues = TransmitQueues::new(LIMIT);
        for round in 0..100 {
            for n in 0..130 {
                let owner = (round + n) % 3;
                queues.push(owner, pool.alloc().unwrap()).unwrap();
            }
            while let Some((_, burst)) = queues.lend() {
                burst.clear();
                queues.settle();
            }
        }
        assert_eq!((queues.held(), queues.arena.len()), (0, 3));
    }
}
