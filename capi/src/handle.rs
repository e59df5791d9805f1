//! What C holds instead of objects.
//!
//! A handle is a number in the shape of a pointer. Its lowest bit is set, so that it is the address of
//! nothing that C has; then come three bits that say what kind of thing it is, and what finds it. Numbers
//! are not used again, or not before 2^48 others of their slot: one that was freed is told for good.
//!
//! There are two kinds of places:
//!
//! - [`Shared`], for what any thread may use at any time: a list behind a lock.
//! - [`Bound`], for what belongs to one thread at a time, and is used for every burst: slots that are looked
//!   at without a lock. The first thread that uses one is its owner, until it
//!   [gives it up](Bound::unbind); all others are refused. So whoever uses a slot is the only one who
//!   can free it.

use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::failure::{Code, Failure};
use crate::input::null;

/// What kinds of things handles are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Builder = 1,
    Relay = 2,
    Runner = 3,
    Port = 4,
    Table = 5,
    Burst = 6,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Builder,
        Self::Relay,
        Self::Runner,
        Self::Port,
        Self::Table,
        Self::Burst,
    ];
    const BITS: u32 = 4;

    fn name(self) -> &'static str {
        match self {
            Self::Builder => "nos_relay_builder",
            Self::Relay => "nos_relay",
            Self::Runner => "nos_relay_runner",
            Self::Port => "nos_relay_port",
            Self::Table => "nos_relay_table",
            Self::Burst => "nos_relay_burst",
        }
    }

    /// The handle that has this in its upper bits.
    pub(crate) fn handle(self, upper: usize) -> usize {
        upper << Self::BITS | (self as usize) << 1 | 1
    }

    /// What is in the upper bits of a handle.
    #[inline]
    pub(crate) fn upper(self, handle: usize, name: &'static str) -> Result<usize, Failure> {
        if handle & 0xf == (self as usize) << 1 | 1 {
            return Ok(handle >> Self::BITS);
        }
        Err(self.other(handle, name))
    }

    #[cold]
    fn other(self, handle: usize, name: &'static str) -> Failure {
        if handle == 0 {
            return null(name);
        }
        let kind = Self::ALL.into_iter();
        let kind = kind.map(|kind| (kind, (kind as usize) << 1 | 1));
        let found = kind.into_iter().find(|(_, bits)| handle & 0xf == *bits);
        let wanted = self.name();
        match found {
            Some((other, _)) => bad(format_args!("{name} is a {}, not a {wanted}", other.name())),
            None => bad(format_args!("{name}: {handle:#x} is no {wanted}")),
        }
    }

    #[cold]
    fn freed(self, name: &'static str) -> Failure {
        bad(format_args!(
            "{name} is a {} that was freed, or never was",
            self.name()
        ))
    }
}

fn bad(message: impl fmt::Display) -> Failure {
    Failure::new(Code::NOS_RELAY_E_HANDLE, message)
}

/// Things that any thread may use at any time.
pub(crate) struct Shared<T> {
    kind: Kind,
    things: Mutex<(usize, BTreeMap<usize, Arc<T>>)>,
}

impl<T> Shared<T> {
    pub(crate) const fn new(kind: Kind) -> Self {
        Self {
            kind,
            things: Mutex::new((0, BTreeMap::new())),
        }
    }

    /// Takes a thing in.
    pub(crate) fn add(&self, thing: T) -> usize {
        let (last, things) = &mut *self.things.lock();
        *last += 1;
        things.insert(*last, Arc::new(thing));
        self.kind.handle(*last)
    }

    /// The thing. It stays for as long as the caller has it, also if it is freed meanwhile.
    pub(crate) fn get(&self, handle: usize, name: &'static str) -> Result<Arc<T>, Failure> {
        let number = self.kind.upper(handle, name)?;
        let things = self.things.lock();
        let found = things.1.get(&number).map(Arc::clone);
        found.ok_or_else(|| self.kind.freed(name))
    }

    /// Takes a thing out.
    pub(crate) fn remove(&self, handle: usize, name: &'static str) -> Result<Arc<T>, Failure> {
        let number = self.kind.upper(handle, name)?;
        let removed = self.things.lock().1.remove(&number);
        removed.ok_or_else(|| self.kind.freed(name))
    }
}

/// Bits of a handle of a bound thing that say which slot it is in. Above them is the slot's generation.
const SLOT_BITS: u32 = 10;
/// Things of a kind that there can be at a time.
pub(crate) const SLOTS: usize = 1 << SLOT_BITS;

/// No thread.
const UNBOUND: usize = 0;

/// Things that belong to one thread at a time.
pub(crate) struct Bound<T> {
    kind: Kind,
    slots: [Slot<T>; SLOTS],
    free: Mutex<Free>,
}

/// Slots without a thing.
struct Free {
    /// Those from here on have never had one.
    fresh: usize,
    again: Vec<usize>,
}

struct Slot<T> {
    /// Odd while there is a thing. One more, whenever one comes or goes.
    generation: AtomicUsize,
    /// Who may use the thing: see [`this_thread`].
    owner: AtomicUsize,
    thing: UnsafeCell<Option<Box<T>>>,
}

// SAFETY: a thing is used and dropped by the thread that its slot's owner is, and comes into a slot that no
// handle leads to; another thread becomes the owner after the one before has given it up, by a
// compare-and-swap that acquires what that released.
unsafe impl<T: Send> Sync for Bound<T> {}

/// Tells threads apart that run at the same time. Never zero.
#[inline]
fn this_thread() -> usize {
    // SAFETY: it has no preconditions.
    let this = unsafe { libc::pthread_self() };
    // An address on Linux.
    usize::try_from(this).unwrap_or(usize::MAX)
}

impl<T> Bound<T> {
    pub(crate) const fn new(kind: Kind) -> Self {
        let slots = [const {
            Slot {
                generation: AtomicUsize::new(0),
                owner: AtomicUsize::new(UNBOUND),
                thing: UnsafeCell::new(None),
            }
        }; SLOTS];
        let free = Free {
            fresh: 0,
            again: Vec::new(),
        };
        Self {
            kind,
            slots,
            free: Mutex::new(free),
        }
    }

    /// Takes a thing in, which belongs to no thread yet.
    pub(crate) fn add(&self, thing: T) -> Result<usize, Failure> {
        let mut free = self.free.lock();
        let index = match free.again.pop() {
            Some(index) => index,
            None if free.fresh < SLOTS => {
                free.fresh += 1;
                free.fresh - 1
            }
            None => return Err(self.full()),
        };
        let slot = &self.slots[index];
        // SAFETY: the slot has no thing, so that no handle leads to it, and the lock is held.
        unsafe { *slot.thing.get() = Some(Box::new(thing)) };
        let generation = slot.generation.load(Ordering::Relaxed) + 1;
        slot.generation.store(generation, Ordering::Release);
        Ok(self.kind.handle(generation << SLOT_BITS | index))
    }

    #[cold]
    fn full(&self) -> Failure {
        let kind = self.kind.name();
        let message = format_args!("there are {SLOTS} of {kind} already");
        Failure::new(Code::NOS_RELAY_E_FULL, message)
    }

    /// Uses a thing, which belongs to this thread from then on.
    #[inline(always)]
    pub(crate) fn with<R>(
        &self,
        handle: usize,
        name: &'static str,
        body: impl FnOnce(&mut T) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let (slot, _) = self.claim(handle, name)?;
        // SAFETY: this thread owns the slot, and nothing that is called back runs under `body`.
        let thing = unsafe { &mut *slot.thing.get() };
        match thing {
            Some(thing) => body(thing),
            None => Err(self.kind.freed(name)),
        }
    }

    /// The slot of a handle, of which this thread is the owner from then on.
    #[inline(always)]
    fn claim(&self, handle: usize, name: &'static str) -> Result<(&Slot<T>, usize), Failure> {
        let upper = self.kind.upper(handle, name)?;
        let index = upper % SLOTS;
        let (slot, generation) = (&self.slots[index], upper >> SLOT_BITS);
        let there = |slot: &Slot<T>| {
            let now = slot.generation.load(Ordering::Acquire);
            now == generation && generation % 2 == 1
        };
        if !there(slot) {
            return Err(self.kind.freed(name));
        }
        let this = this_thread();
        if slot.owner.load(Ordering::Relaxed) == this {
            return Ok((slot, index));
        }
        let taken =
            slot.owner
                .compare_exchange(UNBOUND, this, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_err() {
            return Err(self.elsewhere(name));
        }
        // Whoever owned it before may have freed it.
        if !there(slot) {
            slot.owner.store(UNBOUND, Ordering::Release);
            return Err(self.kind.freed(name));
        }
        Ok((slot, index))
    }

    #[cold]
    fn elsewhere(&self, name: &'static str) -> Failure {
        let kind = self.kind.name();
        let message =
            format_args!("{name}: the {kind} belongs to another thread, which has not given it up");
        Failure::new(Code::NOS_RELAY_E_THREAD, message)
    }

    /// Gives a thing up, so that another thread may use it.
    pub(crate) fn unbind(&self, handle: usize, name: &'static str) -> Result<(), Failure> {
        let (slot, _) = self.claim(handle, name)?;
        slot.owner.store(UNBOUND, Ordering::Release);
        Ok(())
    }

    /// Takes a thing out, which belongs to this thread or to none.
    pub(crate) fn remove(&self, handle: usize, name: &'static str) -> Result<Box<T>, Failure> {
        let (slot, index) = self.claim(handle, name)?;
        // SAFETY: this thread owns the slot.
        let thing = unsafe { &mut *slot.thing.get() }.take();
        let generation = slot.generation.load(Ordering::Relaxed) + 1;
        slot.generation.store(generation, Ordering::Release);
        slot.owner.store(UNBOUND, Ordering::Release);
        self.free.lock().again.push(index);
        thing.ok_or_else(|| self.kind.freed(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static THINGS: Bound<u32> = Bound::new(Kind::Port);

    fn get(handle: usize) -> Result<u32, Failure> {
        THINGS.with(handle, "thing", |thing| Ok(*thing))
    }

    fn on_another_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| scope.spawn(work).join()).unwrap()
    }

    fn said(result: Result<u32, Failure>) -> String {
        format!("{:?}", result.unwrap_err())
    }

    #[test]
    fn a_handle_is_of_one_thing_for_good() {
        let first = THINGS.add(1).unwrap();
        assert_eq!(get(first).unwrap(), 1);
        assert_eq!(*THINGS.remove(first, "thing").unwrap(), 1);
        let second = THINGS.add(2).unwrap();
        assert_ne!(first, second);
        assert_eq!(get(second).unwrap(), 2);
        assert!(said(get(first)).contains("was freed"));
        assert!(THINGS.remove(first, "thing").is_err());
        assert!(said(get(0)).contains("thing is NULL"));
        assert!(said(get(0x1000)).contains("0x1000 is no nos_relay_port"));
        let other = Kind::Table.handle(second >> Kind::BITS);
        assert!(said(get(other)).contains("thing is a nos_relay_table, not a nos_relay_port"));
        assert!(said(get(usize::MAX & !0xf | 9)).contains("was freed"));
        THINGS.remove(second, "thing").unwrap();
    }

    #[test]
    fn one_thread_at_a_time_uses_a_thing() {
        let handle = THINGS.add(3).unwrap();
        assert_eq!(on_another_thread(|| get(handle)).unwrap(), 3);
        // That one has ended without giving it up; another may have its place, this one has not.
        assert!(said(get(handle)).contains("another thread"));
        assert!(THINGS.remove(handle, "thing").is_err());

        let handle = THINGS.add(4).unwrap();
        assert_eq!(get(handle).unwrap(), 4);
        assert!(said(on_another_thread(|| get(handle))).contains("another thread"));
        assert!(on_another_thread(|| THINGS.unbind(handle, "thing")).is_err());
        THINGS.unbind(handle, "thing").unwrap();
        on_another_thread(|| {
            assert_eq!(get(handle).unwrap(), 4);
            THINGS.unbind(handle, "thing").unwrap();
        });
        assert_eq!(*THINGS.remove(handle, "thing").unwrap(), 4);
    }

    #[test]
    fn there_is_an_end_of_them() {
        static FEW: Bound<u32> = Bound::new(Kind::Table);
        let all: Vec<_> = (0..SLOTS).map(|_| FEW.add(0).unwrap()).collect();
        let full = FEW.add(0).unwrap_err();
        assert!(
            format!("{full:?}").contains("1024 of nos_relay_table"),
            "{full:?}"
        );
        FEW.remove(all[7], "thing").unwrap();
        FEW.add(0).unwrap();
    }

    #[test]
    fn what_is_shared_stays_for_as_long_as_it_is_used() {
        static SHARED: Shared<u32> = Shared::new(Kind::Relay);
        let handle = SHARED.add(5);
        let used = SHARED.get(handle, "thing").unwrap();
        on_another_thread(|| drop(SHARED.remove(handle, "thing").unwrap()));
        assert_eq!(*used, 5);
        assert!(SHARED.get(handle, "thing").is_err());
        assert!(SHARED.remove(handle, "thing").is_err());
    }
}
