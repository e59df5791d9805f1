//! Storage of neighbors: by number, by address, and by when they want attention.

use core::cmp::Reverse;
use core::net::IpAddr;
use std::collections::BinaryHeap;

use hashbrown::HashMap;

use super::{NeighborId, NeighborState, Waiting};
use crate::ident::MacAddr;
use crate::time::Instant;

/// Entries that are looked at, in search of one that may go, before a new one is refused.
const SWEEP: usize = 64;

/// What the data path reads.
#[derive(Clone, Copy, Debug)]
struct Fast {
    /// The MAC address may be used without further thought before this time.
    until: Instant,
    mac: MacAddr,
    generation: u32,
}

/// The rest of a neighbor.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) address: IpAddr,
    pub(super) state: NeighborState,
    pub(super) router: bool,
    /// Questions asked in this state.
    pub(super) tries: u8,
    /// When it last answered.
    pub(super) confirmed: Option<Instant>,
    /// When its MAC address was last learnt.
    pub(super) updated: Instant,
    /// When the data path last asked for it, to within the time that it is reachable.
    pub(super) used: Instant,
    pub(super) waiting: Option<Waiting>,
    /// When it wants attention.
    deadline: Option<Instant>,
    /// The time of its place in the queue of timers, not later than the deadline.
    queued: Option<Instant>,
}

impl Entry {
    fn new(address: IpAddr, now: Instant) -> Self {
        Self {
            address,
            state: NeighborState::Failed,
            router: false,
            tries: 0,
            confirmed: None,
            updated: now,
            used: now,
            waiting: None,
            deadline: None,
            queued: None,
        }
    }

    /// Whether it may make room for others, and the longer unused the better. `lapsed`: it has not
    /// answered for the time that an answer holds.
    fn expendable(&self, lapsed: bool) -> Option<(bool, Reverse<Instant>)> {
        let failed = self.state == NeighborState::Failed;
        let may_go = match self.state {
            NeighborState::Failed | NeighborState::Stale => true,
            NeighborState::Reachable => lapsed,
            NeighborState::Incomplete | NeighborState::Delay | NeighborState::Probe => false,
        };
        may_go.then_some((failed, Reverse(self.used)))
    }
}

/// Neighbors.
#[derive(Debug)]
pub(super) struct Table {
    fast: Vec<Fast>,
    /// As many as in `fast`; `None` where free.
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    index: HashMap<u128, u32, foldhash::fast::RandomState>,
    timers: BinaryHeap<Reverse<(Instant, u32)>>,
    /// Where the next sweep begins.
    hand: usize,
}

/// IPv4 addresses as IPv6 ones: quicker to hash than an enum.
fn key(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            fast: Vec::new(),
            entries: Vec::new(),
            free: Vec::new(),
            index: HashMap::default(),
            timers: BinaryHeap::new(),
            hand: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    #[inline]
    pub(super) fn find(&self, address: IpAddr) -> Option<NeighborId> {
        let &index = self.index.get(&key(address))?;
        Some(self.id(index))
    }

    fn id(&self, index: u32) -> NeighborId {
        NeighborId {
            index,
            generation: self.fast[index as usize].generation,
        }
    }

    /// The MAC address, if it may be used without further thought.
    #[inline]
    pub(super) fn fast(&self, id: NeighborId, now: Instant) -> Option<MacAddr> {
        let fast = self.fast.get(id.index as usize)?;
        (fast.generation == id.generation && now < fast.until).then_some(fast.mac)
    }

    /// The MAC address that is, or was, the neighbor's.
    pub(super) fn mac(&self, id: NeighborId) -> MacAddr {
        self.fast[id.index as usize].mac
    }

    pub(super) fn set_mac(&mut self, id: NeighborId, mac: MacAddr) {
        self.fast[id.index as usize].mac = mac;
    }

    /// Sets until when [`Self::fast`] answers.
    pub(super) fn set_until(&mut self, id: NeighborId, until: Instant) {
        self.fast[id.index as usize].until = until;
    }

    pub(super) fn until(&self, id: NeighborId) -> Instant {
        self.fast[id.index as usize].until
    }

    pub(super) fn get(&self, id: NeighborId) -> Option<&Entry> {
        let current = self.fast.get(id.index as usize)?.generation == id.generation;
        self.entries[id.index as usize].as_ref().filter(|_| current)
    }

    pub(super) fn get_mut(&mut self, id: NeighborId) -> Option<&mut Entry> {
        let current = self.fast.get(id.index as usize)?.generation == id.generation;
        self.entries[id.index as usize].as_mut().filter(|_| current)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NeighborId, &Entry)> {
        let entries = (0..).zip(&self.entries);
        entries.filter_map(|(index, entry)| Some((self.id(index), entry.as_ref()?)))
    }

    /// A new entry, in the state Failed. The address must not be known.
    pub(super) fn add(&mut self, address: IpAddr, now: Instant) -> Option<NeighborId> {
        let entry = Some(Entry::new(address, now));
        let index = if let Some(index) = self.free.pop() {
            self.entries[index as usize] = entry;
            index
        } else {
            let index = u32::try_from(self.entries.len()).ok()?;
            self.entries.push(entry);
            self.fast.push(Fast {
                until: Instant::ZERO,
                mac: MacAddr::ZERO,
                generation: 0,
            });
            index
        };
        self.index.insert(key(address), index);
        Some(self.id(index))
    }

    /// Removes an entry, and returns what was left in it.
    pub(super) fn remove(&mut self, id: NeighborId) -> Option<Entry> {
        self.get(id)?;
        let entry = self.entries[id.index as usize].take()?;
        self.index.remove(&key(entry.address));
        let fast = &mut self.fast[id.index as usize];
        fast.until = Instant::ZERO;
        fast.generation = fast.generation.wrapping_add(1);
        self.free.push(id.index);
        Some(entry)
    }

    /// Looks at some entries, others each time, and removes those that `old` says are no longer
    /// wanted. If none of them was, and `full`, removes the one that can best be spared. Returns
    /// whether there is room.
    pub(super) fn make_room(
        &mut self,
        full: bool,
        now: Instant,
        old: impl Fn(&Entry) -> bool,
    ) -> bool {
        let mut best = None;
        let mut removed = false;
        for _ in 0..SWEEP.min(self.entries.len()) {
            self.hand = (self.hand + 1) % self.entries.len();
            let Some(entry) = &self.entries[self.hand] else {
                continue;
            };
            let lapsed = now >= self.fast[self.hand].until;
            let Some(rank) = entry.expendable(lapsed) else {
                continue;
            };
            let id = self.id(u32::try_from(self.hand).unwrap_or(u32::MAX));
            if old(entry) {
                removed |= self.remove(id).is_some();
            } else if best.is_none_or(|(best, _)| best < rank) {
                best = Some((rank, id));
            }
        }
        if full && !removed {
            return best.is_some_and(|(_, id)| self.remove(id).is_some());
        }
        true
    }

    /// Sets or takes away an entry's timer.
    pub(super) fn set_deadline(&mut self, id: NeighborId, deadline: Option<Instant>) {
        let Some(entry) = self.get_mut(id) else {
            return;
        };
        entry.deadline = deadline;
        let Some(at) = deadline else {
            return;
        };
        // A place that comes too early is as good: it is moved when its time comes. So an entry
        // never has many.
        if entry.queued.is_none_or(|queued| queued > at) {
            entry.queued = Some(at);
            self.timers.push(Reverse((at, id.index)));
        }
    }

    /// When the first timer expires.
    pub(super) fn next_deadline(&mut self) -> Option<Instant> {
        loop {
            let &Reverse((at, index)) = self.timers.peek()?;
            let entry = self.entries[index as usize].as_mut();
            let entry = entry.filter(|entry| entry.queued == Some(at));
            if entry
                .as_ref()
                .is_some_and(|entry| entry.deadline == Some(at))
            {
                return Some(at);
            }
            self.timers.pop();
            if let Some(entry) = entry {
                entry.queued = entry.deadline;
                let later = entry.deadline;
                self.timers.extend(later.map(|at| Reverse((at, index))));
            }
        }
    }

    /// An entry whose timer has expired; its timer is taken away.
    pub(super) fn expired(&mut self, now: Instant) -> Option<NeighborId> {
        self.next_deadline().filter(|&at| at <= now)?;
        let Reverse((_, index)) = self.timers.pop()?;
        let entry = self.entries[index as usize].as_mut()?;
        entry.deadline = None;
        entry.queued = None;
        Some(self.id(index))
    }
}
