//! Two rings, one each way, and the bells of the two sides: the protocols of the
//! [channel](super), whatever it carries.

use core::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use crossbeam_channel::TrySendError;

use super::Wake;
use crate::sync::{AtomicBool, AtomicUsize, Receiver, Sender, bounded, fence};

/// The bell of one side.
#[derive(Default)]
struct Doorbell {
    /// Blocks until something comes.
    asleep: AtomicBool,
    /// Blocks until there is room for more.
    wants_room: AtomicBool,
    /// Whoever would ring it has gone.
    deserted: AtomicBool,
    /// What that one took until then.
    taken: AtomicUsize,
    waker: OnceLock<Box<dyn Wake>>,
}

impl Doorbell {
    /// To be called after a fence.
    fn answer(&self, announced: &AtomicBool) {
        if announced.load(Ordering::Relaxed)
            && announced.swap(false, Ordering::AcqRel)
            && let Some(waker) = self.waker.get()
        {
            waker.wake();
        }
    }

    fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
        self.wants_room.store(false, Ordering::Relaxed);
    }
}

/// Announces, and orders that before what is looked at next.
///
/// A swap and no store: it follows whatever the other side wrote when it took an earlier
/// announcement away, so that this one cannot be mistaken for that.
fn announce(what: &AtomicBool) {
    what.swap(true, Ordering::AcqRel);
    fence(Ordering::SeqCst);
}

/// Tells the other side when it is dropped, which has to be after everything else of an end.
pub(super) struct Farewell {
    theirs: Arc<Doorbell>,
    /// What this end has taken.
    pub(super) taken: usize,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let Self { theirs, taken } = self;
        theirs.taken.store(*taken, Ordering::Relaxed);
        theirs.deserted.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        theirs.answer(&theirs.asleep);
        theirs.answer(&theirs.wants_room);
    }
}

/// One end of two rings.
pub(super) struct RingEnd<T> {
    outgoing: Sender<T>,
    incoming: Receiver<T>,
    mine: Arc<Doorbell>,
    theirs: Arc<Doorbell>,
    /// Something was sent since the other side's bell was last rung.
    unrung: bool,
    /// Something was taken since the other side was last told of room.
    took: bool,
    /// It is known that the other end has gone.
    alone: bool,
}

/// Makes two ends whose rings hold `capacity` items each way (at least one).
pub(super) fn pair<T>(capacity: usize) -> (RingEnd<T>, RingEnd<T>) {
    let (to_second, from_first) = bounded(capacity.max(1));
    let (to_first, from_second) = bounded(capacity.max(1));
    let (first, second) = (Arc::<Doorbell>::default(), Arc::<Doorbell>::default());
    let end = |outgoing, incoming, mine: &Arc<_>, theirs: &Arc<_>| RingEnd {
        outgoing,
        incoming,
        mine: Arc::clone(mine),
        theirs: Arc::clone(theirs),
        unrung: false,
        took: false,
        alone: false,
    };
    (
        end(to_second, from_second, &first, &second),
        end(to_first, from_first, &second, &first),
    )
}

impl<T> RingEnd<T> {
    /// Sends an item, or gives it back when the ring is full or the other end has gone.
    #[inline]
    pub(super) fn send(&mut self, item: T) -> Result<(), T> {
        match self.outgoing.try_send(item) {
            Ok(()) => {
                self.unrung = true;
                Ok(())
            }
            Err(TrySendError::Full(back) | TrySendError::Disconnected(back)) => Err(back),
        }
    }

    /// The oldest item that the other end has sent.
    #[inline]
    pub(super) fn recv(&mut self) -> Option<T> {
        let item = self.incoming.try_recv().ok()?;
        self.took = true;
        Some(item)
    }

    /// Notes that something was sent by another way, for which the bell is to be rung.
    pub(super) fn note_sent(&mut self) {
        self.unrung = true;
    }

    /// Whether the ring takes another item. Only this end fills it, so it stays true until then.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        !self.outgoing.is_full()
    }

    /// Wakes the other side if it sleeps and something was sent since the last call, or if it waits
    /// for room and there is some.
    pub(super) fn ring(&mut self) {
        let (sent, took) = (
            core::mem::take(&mut self.unrung),
            core::mem::take(&mut self.took),
        );
        if !sent && !took {
            return;
        }
        fence(Ordering::SeqCst);
        if sent {
            self.theirs.answer(&self.theirs.asleep);
        }
        // Half a ring at a time, or the two would take turns for every item.
        if took && self.incoming.len() <= self.capacity() / 2 {
            self.theirs.answer(&self.theirs.wants_room);
        }
    }

    /// Sets how this side is woken. The first call counts.
    pub(super) fn set_waker(&mut self, waker: Box<dyn Wake>) {
        // A second waker would leave the first one's thread asleep for ever.
        let _ = self.mine.waker.set(waker);
    }

    /// Whether the other end has gone.
    #[inline]
    pub(super) fn is_alone(&mut self) -> bool {
        self.alone = self.mine.deserted.load(Ordering::Acquire);
        self.alone
    }

    /// What the other end had taken when it went.
    pub(super) fn taken_until_then(&self) -> Option<usize> {
        let gone = self.mine.deserted.load(Ordering::Acquire);
        gone.then(|| self.mine.taken.load(Ordering::Relaxed))
    }

    /// What tells the other end that this one has gone.
    pub(super) fn farewell(&self) -> Farewell {
        Farewell {
            theirs: Arc::clone(&self.theirs),
            taken: 0,
        }
    }

    /// Announces that this side is about to block. Returns `false` if it must not, because
    /// something waits in the ring, the other end has gone and [`Self::is_alone`] has not told yet, or
    /// `idle` says so, which looks where else something may wait.
    pub(super) fn try_sleep(&mut self, idle: impl FnOnce() -> bool) -> bool {
        announce(&self.mine.asleep);
        let news = !self.alone && self.mine.deserted.load(Ordering::Acquire);
        let idle = self.incoming.is_empty() && !news && idle();
        if !idle {
            self.mine.awake();
        }
        idle
    }

    /// Announces that this side is about to block until the ring that it fills is half empty.
    /// Returns `false` if it must not, because it is, or nobody empties it any more.
    pub(super) fn try_await_room(&mut self) -> bool {
        announce(&self.mine.wants_room);
        let deserted = self.mine.deserted.load(Ordering::Acquire);
        let full = !deserted && self.outgoing.len() > self.capacity() / 2;
        if !full {
            self.mine.wants_room.store(false, Ordering::Relaxed);
        }
        full
    }

    /// Takes the announcements back.
    pub(super) fn awake(&mut self) {
        self.mine.awake();
    }

    /// Items that wait to be taken by this end.
    pub(super) fn depth(&self) -> usize {
        self.incoming.len()
    }

    /// Items that each ring holds.
    pub(super) fn capacity(&self) -> usize {
        self.incoming.capacity().unwrap_or(usize::MAX)
    }
}

/// Every order of the operations of two threads. A thread that is never woken is a deadlock, which
/// loom finds.
#[cfg(loom)]
#[cfg(test)]
mod loom_models {
    use super::*;
    use loom::sync::{Condvar, Mutex};
    use loom::thread;

    /// What a thread blocks on: a wake-up that comes first is kept.
    #[derive(Default)]
    struct Blocker {
        woken: Mutex<bool>,
        changed: Condvar,
    }

    impl Blocker {
        fn wait(&self) {
            let mut woken = self.woken.lock().unwrap();
            while !*woken {
                woken = self.changed.wait(woken).unwrap();
            }
            *woken = false;
        }
    }

    struct Bell(Arc<Blocker>);

    impl Wake for Bell {
        fn wake(&self) {
            *self.0.woken.lock().unwrap() = true;
            self.0.changed.notify_one();
        }
    }

    /// How `end`'s side blocks from now on.
    fn blocker(end: &mut RingEnd<u32>) -> Arc<Blocker> {
        let blocker = Arc::<Blocker>::default();
        end.set_waker(Box::new(Bell(Arc::clone(&blocker))));
        blocker
    }

    /// Takes so many items in order, and blocks when there is none.
    fn take(mut end: RingEnd<u32>, blocker: &Blocker, items: u32) {
        let mut expected = 0;
        while expected < items {
            while let Some(item) = end.recv() {
                assert_eq!(item, expected);
                expected += 1;
            }
            end.ring();
            if expected < items && end.try_sleep(|| true) {
                blocker.wait();
                end.awake();
            }
        }
    }

    /// A sleeper is woken for whatever was sent.
    #[test]
    fn loom_no_wake_up_is_lost() {
        crate::sync::model(|| {
            let (mut sender, mut taker) = pair(2);
            let blocker = blocker(&mut taker);
            let taking = thread::spawn(move || take(taker, &blocker, 2));
            for item in 0..2 {
                assert_eq!(sender.send(item), Ok(()));
                sender.ring();
            }
            taking.join().unwrap();
        });
    }

    /// A sender that waits for room is told of it, and sleepers are woken all the same.
    #[test]
    fn loom_no_room_is_overlooked() {
        crate::sync::model(|| {
            let (mut sender, mut taker) = pair(1);
            let (room, items) = (blocker(&mut sender), blocker(&mut taker));
            let taking = thread::spawn(move || take(taker, &items, 3));
            for item in 0..3 {
                while sender.send(item).is_err() {
                    if sender.try_await_room() {
                        room.wait();
                        sender.awake();
                    }
                }
                sender.ring();
            }
            taking.join().unwrap();
        });
    }

    /// Who waits for an end that goes learns it, whenever it goes, and what it took.
    #[test]
    fn loom_nobody_waits_for_who_has_gone() {
        crate::sync::model(|| {
            let (mut stays, goes) = pair::<u32>(1);
            let blocker = blocker(&mut stays);
            let farewell = goes.farewell();
            let going = thread::spawn(move || {
                let mut farewell = farewell;
                farewell.taken = 7;
                drop(goes);
            });
            while !stays.is_alone() {
                if stays.try_sleep(|| true) {
                    blocker.wait();
                    stays.awake();
                }
            }
            assert_eq!(stays.taken_until_then(), Some(7));
            going.join().unwrap();
        });
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// All sequences of sending and taking, so long that rings of up to five items come round several
    /// times, beside a queue.
    #[test]
    fn every_short_history_is_that_of_a_queue() {
        const STEPS: u32 = 14;
        for capacity in 1..=5 {
            for history in 0..1_u32 << STEPS {
                let (mut sender, mut taker) = pair(capacity);
                let mut queue = VecDeque::new();
                for step in 0..STEPS {
                    if history >> step & 1 == 0 {
                        let room = queue.len() < capacity;
                        assert_eq!(sender.has_room(), room);
                        let sent = sender.send(step);
                        assert_eq!(sent, if room { Ok(()) } else { Err(step) });
                        queue.extend(sent.is_ok().then_some(step));
                    } else {
                        assert_eq!(taker.recv(), queue.pop_front());
                    }
                    assert_eq!(taker.depth(), queue.len());
                }
                assert_eq!((sender.capacity(), taker.capacity()), (capacity, capacity));
            }
        }
    }
}
