//! A timer wheel: entries in 64 buckets by the tick at which to look at them.
//!
//! An entry's deadline may move on while it stays in its bucket; whoever takes it from there looks,
//! and puts it back for later. So using an entry costs the wheel nothing.

use crate::links::{Links, List};
use crate::time::{Duration, Instant};

const BUCKETS: usize = 64;
/// How many ticks ahead there is a bucket for.
const AHEAD: u64 = 64;

/// In which bucket an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bucket(u8);

#[derive(Debug)]
pub(super) struct Wheel {
    /// A tick is `2^shift` nanoseconds.
    shift: u32,
    /// Everything up to this tick has been looked at; every entry is in one of the next 64.
    done: u64,
    /// One bit for each bucket that has entries.
    occupied: u64,
    buckets: [List; BUCKETS],
    links: Links,
}

impl Wheel {
    /// A wheel for deadlines up to `span` ahead, exact to a sixteenth of it, and for entries
    /// numbered below `capacity`.
    pub(super) fn new(span: Duration, capacity: usize) -> Self {
        let tick = u64::try_from(span.as_nanos() / 16).unwrap_or(u64::MAX);
        Self {
            shift: tick.max(1).ilog2(),
            done: 0,
            occupied: 0,
            buckets: [List::EMPTY; BUCKETS],
            links: Links::new(capacity),
        }
    }

    /// Puts an entry where [`Self::pop_due`] finds it once `deadline` is over.
    pub(super) fn schedule(&mut self, entry: u32, deadline: Instant, now: Instant) -> Bucket {
        if self.occupied == 0 {
            self.done = self.done.max(now.as_nanos() >> self.shift);
        }
        let tick = deadline.as_nanos().div_ceil(1 << self.shift);
        let tick = tick.clamp(self.done + 1, self.done + AHEAD);
        let bucket = bucket(tick);
        self.occupied |= 1 << bucket.0;
        let list = &mut self.buckets[usize::from(bucket.0)];
        self.links.push_back(list, entry);
        bucket
    }

    /// Takes out an entry that is in `bucket`.
    pub(super) fn cancel(&mut self, entry: u32, bucket: Bucket) {
        let list = &mut self.buckets[usize::from(bucket.0)];
        self.links.remove(list, entry);
        if list.first().is_none() {
            self.occupied &= !(1 << bucket.0);
        }
    }

    /// Takes out an entry whose time to be looked at has come.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<u32> {
        let tick = now.as_nanos() >> self.shift;
        let next = self.next_tick().filter(|&next| next <= tick);
        let Some(next) = next else {
            self.done = self.done.max(tick);
            return None;
        };
        // The bucket stays in the future until it is empty: nothing is put back into it, as what
        // is put back comes after `now`.
        self.done = next - 1;
        let first = self.buckets[usize::from(bucket(next).0)].first()?;
        self.cancel(first, bucket(next));
        Some(first)
    }

    /// The entry to be looked at first.
    pub(super) fn first(&self) -> Option<u32> {
        let bucket = bucket(self.next_tick()?);
        self.buckets[usize::from(bucket.0)].first()
    }

    /// When [`Self::pop_due`] has something to do.
    pub(super) fn poll_at(&self) -> Option<Instant> {
        let nanos = u128::from(self.next_tick()?) << self.shift;
        Some(Instant::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }

    /// The earliest tick whose bucket has entries.
    fn next_tick(&self) -> Option<u64> {
        let first = self.done + 1;
        let ahead = self.occupied.rotate_right(u32::from(bucket(first).0));
        (ahead != 0).then(|| first + u64::from(ahead.trailing_zeros()))
    }
}

fn bucket(tick: u64) -> Bucket {
    Bucket(u8::try_from(tick % AHEAD).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_due_in_order_however_late_one_looks() {
        let span = Duration::from_secs(60);
        let mut wheel = Wheel::new(span, 100);
        let mut now = Instant::from_millis(1_000_000_000);
        for entry in 0..100 {
            now = now + Duration::from_millis(300);
            wheel.schedule(entry, now + span, now);
            assert_eq!(wheel.first(), Some(0));
        }
        let mut popped = Vec::new();
        while let Some(at) = wheel.poll_at() {
            assert!(at > now);
            now = at;
            while let Some(entry) = wheel.pop_due(now) {
                popped.push(entry);
                assert!(popped.len() <= 100);
            }
        }
        assert_eq!(popped, (0..100).collect::<Vec<_>>());
        wheel.schedule(0, now + span, now);
        wheel.schedule(1, now + Duration::from_secs(1_000_000), now);
        now = now + Duration::from_secs(10_000);
        let mut looks = 0;
        while let Some(entry) = wheel.pop_due(now) {
            looks += 1;
            if entry == 1 {
                wheel.schedule(1, now + span, now);
            }
        }
        assert!(looks < 100, "{looks}");
        assert!(wheel.poll_at().is_some_and(|at| at > now));
    }

    #[test]
    fn times_at_the_end_of_time_are_no_trouble() {
        let mut wheel = Wheel::new(Duration::ZERO, 1);
        let end = Instant::from_nanos(u64::MAX - 100);
        wheel.schedule(0, end, end);
        assert!(wheel.poll_at().is_some());
    }
}
