//! Stand-ins on loom for what the crates of locks and queues offer.
//!
//! They promise less than the real things do. The ring orders an item before its index (release,
//! acquire) and nothing else, where crossbeam's uses sequentially consistent operations: what holds
//! with this one does not depend on more.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use crossbeam_channel::{TryRecvError, TrySendError};
use loom::sync::MutexGuard;
use loom::sync::atomic::Ordering;

pub(crate) use loom::alloc::{alloc_zeroed, dealloc};
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicUsize, fence};

/// As of parking_lot.
pub(crate) struct Mutex<T> {
    inner: loom::sync::Mutex<T>,
    /// Touched before the lock is tried for and while it is held, so that loom tries for it while
    /// another thread holds it. It adds no order.
    gate: AtomicUsize,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            inner: loom::sync::Mutex::new(value),
            gate: AtomicUsize::new(0),
        }
    }

    fn touch(&self) {
        self.gate.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.touch();
        let guard = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        self.touch();
        guard
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.touch();
        let guard = self.inner.try_lock().ok()?;
        self.touch();
        Some(guard)
    }
}

/// As of crossbeam-queue.
pub(crate) struct ArrayQueue<T> {
    items: Mutex<VecDeque<T>>,
    capacity: usize,
}

impl<T> ArrayQueue<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            items: Mutex::new(VecDeque::new()),
            capacity,
        }
    }

    pub(crate) fn push(&self, item: T) -> Result<(), T> {
        let mut items = self.items.lock();
        if items.len() >= self.capacity {
            return Err(item);
        }
        items.push_back(item);
        Ok(())
    }

    pub(crate) fn pop(&self) -> Option<T> {
        self.items.lock().pop_front()
    }
}

/// A ring for one sender and one receiver. Indices count all items ever.
struct Ring<T> {
    /// Loom runs one thread at a time and changes over only at its own operations, so these locks
    /// are always free, and add no order.
    items: Vec<std::sync::Mutex<Option<T>>>,
    /// Items taken.
    head: AtomicUsize,
    /// Items sent.
    tail: AtomicUsize,
}

impl<T> Ring<T> {
    fn slot(&self, index: usize) -> std::sync::MutexGuard<'_, Option<T>> {
        let slot = &self.items[index % self.items.len()];
        slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn len(&self) -> usize {
        let tail = self.tail.load(Ordering::Acquire);
        // What one side sees of the other may be old, but not of itself.
        tail.saturating_sub(self.head.load(Ordering::Acquire))
    }
}

/// As of crossbeam-channel.
pub(crate) struct Sender<T>(Arc<Ring<T>>);

/// As of crossbeam-channel.
pub(crate) struct Receiver<T>(Arc<Ring<T>>);

/// As of crossbeam-channel.
pub(crate) fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let ring = Arc::new(Ring {
        items: (0..capacity).map(|_| std::sync::Mutex::new(None)).collect(),
        head: AtomicUsize::new(0),
        tail: AtomicUsize::new(0),
    });
    (Sender(Arc::clone(&ring)), Receiver(ring))
}

impl<T> Sender<T> {
    pub(crate) fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        let ring = &self.0;
        if self.is_full() {
            return Err(TrySendError::Full(item));
        }
        let tail = ring.tail.load(Ordering::Relaxed);
        *ring.slot(tail) = Some(item);
        ring.tail.store(tail + 1, Ordering::Release);
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.0.items.len()
    }
}

impl<T> Receiver<T> {
    pub(crate) fn try_recv(&self) -> Result<T, TryRecvError> {
        let ring = &self.0;
        if self.is_empty() {
            return Err(TryRecvError::Empty);
        }
        let head = ring.head.load(Ordering::Relaxed);
        let item = ring.slot(head).take();
        ring.head.store(head + 1, Ordering::Release);
        item.ok_or(TryRecvError::Empty)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[expect(clippy::unnecessary_wraps, reason = "crossbeam's may have no bound")]
    pub(crate) fn capacity(&self) -> Option<usize> {
        Some(self.0.items.len())
    }
}
