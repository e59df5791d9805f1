//! Whose is a packet that only its flow can tell? Flows of TCP and UDP, by both addresses and both
//! ports.
//!
//! # Theory of operation
//!
//! Flows are kept only where a policy ([`crate::ports::Policy`]) needs them. They are told by addresses
//! and ports of both ends, in one VRF. All memory is reserved when the table is made, and becomes
//! resident as flows come.
//!
//! | class | what is in it | forgotten when idle for | given up for |
//! |---|---|---|---|
//! | passing | TCP that is being opened, closed, or has ended; UDP without an answer; expected flows | 4 min (RFC 5382 REQ-5), UDP 5 min | newer flows of the same owner |
//! | datagrams | UDP with an answer | 5 min (RFC 4787 REQ-5) | newer flows of the same owner, if none is passing |
//! | connections | TCP that is established | 2 h 4 min (RFC 5382 REQ-5) | nothing |
//!
//! An owner may have as many flows as there are free places, and a quarter of that passing. So one owner
//! alone never has more than half of the table, `n` never more than `n` parts of `n + 1`, and there is
//! always room for one that has none. Who is at that bound gives up its own oldest flow of the first
//! class that has any. Nobody loses a flow to another.
//!
//! What both sides send prolongs a flow, but of TCP only what is [plausible](super::follow).
//!
//! # Learnt ports
//!
//! A flow from a port that nobody owns is *learnt*: as long as it lives, the port is its owner's, and
//! nobody else can open a flow from it.
//!
//! # Expected flows
//!
//! In active FTP (RFC 959 §3.2, RFC 2428) the server opens the connections for data, to a port that the
//! client names. Such a flow is entered with [`FlowKey::remote_port`] zero, as the server may choose its
//! port, and becomes exact by the first packet that it tells.

mod key;
mod status;

use core::hash::BuildHasher;

use foldhash::quality::RandomState;

pub use key::FlowKey;
use key::PortKey;
pub use status::{FlowState, FlowStatus};

use super::follow::{Connection, Phase, Segment, Side};
use super::table::{OwnerSlot, Slab};
use super::wheel::{Bucket, Wheel};
use crate::ident::AttachmentId;
use crate::index::Index;
use crate::links::{Links, List};
use crate::page::{PAGE, PLACES, Page};
use crate::ports::Transport;
use crate::time::{Duration, Instant};

/// RFC 5382 REQ-5, of a connection that is established.
const ESTABLISHED: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
/// RFC 5382 REQ-5, of one that is opening or closing.
const TRANSITORY: Duration = Duration::from_secs(4 * 60);
/// RFC 4787 REQ-5, as recommended.
const DATAGRAM: Duration = Duration::from_secs(5 * 60);

/// Of the places that an owner may take, passing flows may take one of so many.
const PASSING: usize = 4;

/// Who has opened a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opener {
    /// Its owner.
    Owner,
    /// The peer.
    Peer,
}

/// There is no place for another flow of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// What is asked to be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewFlow {
    /// What tells it.
    pub key: FlowKey,
    /// Whose it is.
    pub owner: AttachmentId,
    /// Who opens it.
    pub opener: Opener,
    /// Whether nobody owns its port.
    pub learnt: bool,
    /// Its first segment, if it is a TCP flow and that is known.
    pub segment: Option<Segment>,
    /// Whether both sides have spoken already, as is known from elsewhere.
    pub confirmed: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Expected,
    Datagrams {
        replied: bool,
    },
    Connection(Connection),
    /// TCP of which no whole segment has been seen here.
    Unseen {
        /// Whether it was established elsewhere.
        established: bool,
    },
}

/// What an owner gives up first, and last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Passing,
    Datagrams,
    Connections,
}

#[derive(Debug)]
struct Slot {
    key: FlowKey,
    owner: OwnerSlot,
    opener: Opener,
    /// The port that it has learnt.
    learnt: Option<u32>,
    state: State,
    /// In which of its owner's lists it is.
    class: Class,
    used_at: Instant,
    bucket: Bucket,
    /// Used since it was put at the end of its list.
    used: bool,
}

#[derive(Debug)]
struct OwnerEntry {
    owner: AttachmentId,
    /// By class, oldest first.
    lists: [List; 3],
    counts: [usize; 3],
}

impl OwnerEntry {
    fn count(&self) -> usize {
        self.counts.iter().sum()
    }
}

#[derive(Debug)]
struct LearntPort {
    key: PortKey,
    owner: OwnerSlot,
    flows: u32,
}

/// The flows that ports cannot decide. See the [module](self).
#[derive(Debug)]
pub struct ExactFlows {
    capacity: usize,
    hasher: RandomState,
    slots: Slab<Slot>,
    index: Index,
    wheel: Wheel,
    /// Of the owners' lists.
    links: Links,
    owners: Slab<OwnerEntry>,
    owner_index: Index,
    learnt: Slab<LearntPort>,
    learnt_index: Index,
}

impl ExactFlows {
    /// A table for `capacity` flows; at most 2^20 are.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.clamp(1, 1 << 20);
        Self {
            capacity,
            hasher: RandomState::default(),
            slots: Slab::new(capacity),
            index: Index::new(capacity),
            // Exact to some seconds, and few looks at flows that last for hours.
            wheel: Wheel::new(TRANSITORY, capacity),
            links: Links::new(capacity),
            owners: Slab::new(capacity),
            owner_index: Index::new(capacity),
            learnt: Slab::new(capacity),
            learnt_index: Index::new(capacity),
        }
    }

    /// How many flows there are, idle ones that [`Self::expire`] has not seen included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are no flows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many flows `owner` has.
    #[must_use]
    pub fn count(&self, owner: AttachmentId) -> usize {
        let slot = self.find_owner(owner);
        let entry = slot.and_then(|slot| self.owners.get(slot.number()));
        entry.map_or(0, OwnerEntry::count)
    }

    /// Whose flow this is.
    #[must_use]
    pub fn owner_of(&self, key: &FlowKey, now: Instant) -> Option<AttachmentId> {
        let number = self.find(key)?;
        let slot = self.slots.get(number)?;
        (!is_idle(slot, now)).then(|| self.name_of(slot.owner))?
    }

    /// Who has learnt a port.
    #[must_use]
    pub fn learnt_by(&self, key: &FlowKey) -> Option<AttachmentId> {
        let found = self.find_learnt(key.port())?;
        self.name_of(self.learnt.get(found)?.owner)
    }

    /// Notes that `owner` sends a packet of a flow. Returns whether there is one that it may go on.
    pub fn outbound(
        &mut self,
        owner: AttachmentId,
        key: &FlowKey,
        segment: Option<&Segment>,
        now: Instant,
    ) -> bool {
        let Some(number) = self.live(key, now) else {
            return false;
        };
        let its_own = self.slots.get(number).and_then(|it| self.name_of(it.owner)) == Some(owner);
        if its_own {
            self.advance(number, Side::Owner, segment, now);
        }
        its_own
    }

    /// Whose a packet from the peer is: that of a flow, or of one that was expected.
    ///
    /// Where the peer opens a connection anew that has ended, that is none of the old flow.
    pub fn inbound(
        &mut self,
        key: &FlowKey,
        segment: Option<&Segment>,
        now: Instant,
    ) -> Option<AttachmentId> {
        let opens = segment.is_some_and(Segment::opens);
        if let Some(number) = self.live(key, now) {
            let slot = self.slots.get(number)?;
            let ended =
                matches!(&slot.state, State::Connection(it) if it.phase() >= Phase::Closing);
            if !(opens && ended) {
                let owner = self.name_of(slot.owner);
                self.advance(number, Side::Peer, segment, now);
                return owner;
            }
        }
        let expected = self.live(&key.expected(), now).filter(|_| opens)?;
        self.fulfil(expected, *key, segment, now)
    }

    /// Remembers a flow that is not there, in place of others of its owner if there is no room.
    /// An idle one that is still there goes.
    ///
    /// # Errors
    ///
    /// [`Full`] if the owner has no flow to give up.
    pub fn open(&mut self, flow: &NewFlow, now: Instant) -> Result<(), Full> {
        if let Some(old) = self.find(&flow.key) {
            self.remove(old);
        }
        let state = match (flow.key.transport, flow.key.remote_port, &flow.segment) {
            (_, 0, _) => State::Expected,
            (Transport::Udp, ..) => State::Datagrams {
                replied: flow.confirmed,
            },
            (Transport::Tcp, _, Some(segment)) => {
                let side = match flow.opener {
                    Opener::Owner => Side::Owner,
                    Opener::Peer => Side::Peer,
                };
                State::Connection(Connection::new(side, segment))
            }
            (Transport::Tcp, _, None) => State::Unseen {
                established: flow.confirmed,
            },
        };
        self.make_room(flow.owner)?;
        let owner = self
            .find_owner(flow.owner)
            .unwrap_or_else(|| self.add_owner(flow.owner));
        let learnt = flow.learnt.then(|| self.learn(flow.key.port(), owner));
        let number = self.slots.next();
        let hash = self.hasher.hash_one(flow.key);
        let slot = Slot {
            key: flow.key,
            owner,
            opener: flow.opener,
            learnt,
            class: class_of(&state),
            used_at: now,
            bucket: self.wheel.schedule(number, now + lifetime(&state), now),
            used: false,
            state,
        };
        let class = slot.class;
        self.slots.insert(slot);
        self.index.insert(hash, number);
        self.enlist(number, owner, class);
        Ok(())
    }

    /// Forgets all flows of `owner`.
    pub fn flush(&mut self, owner: AttachmentId) {
        self.retain(owner, |_, _| false);
    }

    /// Forgets the flows of `owner` that are not to be kept.
    pub fn retain(&mut self, owner: AttachmentId, mut keep: impl FnMut(&FlowKey, Opener) -> bool) {
        let Some(entry) = self
            .find_owner(owner)
            .and_then(|it| self.owners.get(it.number()))
        else {
            return;
        };
        let all: Vec<u32> = entry
            .lists
            .iter()
            .flat_map(|list| self.links.iter(list))
            .collect();
        for number in all {
            let stays = self
                .slots
                .get(number)
                .is_none_or(|it| keep(&it.key, it.opener));
            if !stays {
                self.remove(number);
            }
        }
    }

    /// Forgets the learnt flows whose ports their owners are not to keep.
    pub fn retain_learnt(&mut self, mut keep: impl FnMut(&FlowKey, AttachmentId, Opener) -> bool) {
        if self.learnt.len() == 0 {
            return;
        }
        for number in 0..self.slots.places() {
            let Some(slot) = self.slots.get(number).filter(|it| it.learnt.is_some()) else {
                continue;
            };
            let stays = self
                .name_of(slot.owner)
                .is_some_and(|owner| keep(&slot.key, owner, slot.opener));
            if !stays {
                self.remove(number);
            }
        }
    }

    /// Forgets idle flows.
    pub fn expire(&mut self, now: Instant) {
        while let Some(number) = self.wheel.pop_due(now) {
            let Some(slot) = self.slots.get_mut(number) else {
                continue;
            };
            if is_idle(slot, now) {
                self.forget(number);
            } else {
                let deadline = slot.used_at + lifetime(&slot.state);
                slot.bucket = self.wheel.schedule(number, deadline, now);
            }
        }
    }

    /// When to call [`Self::expire`] next.
    #[must_use]
    pub fn poll_at(&self) -> Option<Instant> {
        self.wheel.poll_at()
    }

    /// Some flows, from a place on.
    #[must_use]
    pub fn page(&self, first: u32, now: Instant) -> Page<FlowStatus, u32> {
        let mut rows = Vec::with_capacity(PAGE);
        let end = self.slots.places();
        for number in first..end {
            if rows.len() == PAGE || (number - first) as usize >= PLACES {
                let next = Some(number);
                return Page { rows, next };
            }
            rows.extend(self.status(number, now));
        }
        Page { rows, next: None }
    }

    fn status(&self, number: u32, now: Instant) -> Option<FlowStatus> {
        let slot = self.slots.get(number).filter(|slot| !is_idle(slot, now))?;
        let idle = now.since(slot.used_at);
        Some(FlowStatus {
            key: slot.key,
            owner: self.name_of(slot.owner)?,
            opener: slot.opener,
            learnt: slot.learnt.is_some(),
            state: match &slot.state {
                State::Expected => FlowState::Expected,
                State::Datagrams { replied: false } => FlowState::Unreplied,
                State::Datagrams { replied: true } => FlowState::Replied,
                State::Connection(connection) => FlowState::Tcp(connection.phase()),
                State::Unseen { established: false } => FlowState::Tcp(Phase::Opening),
                State::Unseen { established: true } => FlowState::Tcp(Phase::Established),
            },
            idle,
            left: lifetime(&slot.state).saturating_sub(idle),
        })
    }

    /// Uses a flow.
    fn advance(&mut self, number: u32, side: Side, segment: Option<&Segment>, now: Instant) {
        let Some(slot) = self.slots.get_mut(number) else {
            return;
        };
        let counts = match (&mut slot.state, segment) {
            (State::Connection(connection), Some(segment)) => connection.follow(side, segment),
            (State::Unseen { .. }, Some(segment)) => {
                slot.state = State::Connection(Connection::new(side, segment));
                true
            }
            (State::Datagrams { replied }, _) => {
                let opener = match slot.opener {
                    Opener::Owner => Side::Owner,
                    Opener::Peer => Side::Peer,
                };
                *replied |= side != opener;
                true
            }
            _ => side == Side::Owner,
        };
        if counts {
            slot.used_at = now;
            slot.used = true;
        }
        self.reclassify(number, now);
    }

    /// Puts a flow into the list of its class, and has the wheel look at it when that says.
    fn reclassify(&mut self, number: u32, now: Instant) {
        let Some(slot) = self.slots.get_mut(number) else {
            return;
        };
        let class = class_of(&slot.state);
        let before = core::mem::replace(&mut slot.class, class);
        if class != before {
            let owner = slot.owner;
            self.wheel.cancel(number, slot.bucket);
            let deadline = slot.used_at + lifetime(&slot.state);
            slot.bucket = self.wheel.schedule(number, deadline, now);
            self.delist(number, owner, before);
            self.enlist(number, owner, class);
        }
    }

    /// Makes of an expected flow the one that has come.
    fn fulfil(
        &mut self,
        expected: u32,
        key: FlowKey,
        segment: Option<&Segment>,
        now: Instant,
    ) -> Option<AttachmentId> {
        let slot = self.slots.get(expected)?;
        let owner = self.name_of(slot.owner)?;
        let flow = NewFlow {
            key,
            owner,
            opener: Opener::Peer,
            learnt: slot.learnt.is_some(),
            segment: segment.copied(),
            confirmed: false,
        };
        // Its place is free then, and so is room for this one.
        self.remove(expected);
        self.open(&flow, now).ok().map(|()| owner)
    }

    /// Has `owner` give up flows until it may have another.
    fn make_room(&mut self, owner: AttachmentId) -> Result<(), Full> {
        loop {
            let free = self.capacity - self.slots.len();
            let found = self.find_owner(owner);
            let Some(slot) = found else {
                return if free > 0 { Ok(()) } else { Err(Full) };
            };
            let Some(entry) = self.owners.get(slot.number()) else {
                return Err(Full);
            };
            let over = entry.count() >= free;
            let passing_over = entry.counts[Class::Passing as usize] * PASSING >= free;
            if !over && !passing_over {
                return Ok(());
            }
            let victim = self
                .oldest_of(slot, Class::Passing)
                .or_else(|| self.oldest_of(slot, Class::Datagrams).filter(|_| over));
            match victim {
                Some(victim) => self.remove(victim),
                None if over => return Err(Full),
                None => return Ok(()),
            }
        }
    }

    /// The flow of an owner to give up first: the oldest of a class, but each that has been used is
    /// let pass once.
    fn oldest_of(&mut self, owner: OwnerSlot, class: Class) -> Option<u32> {
        let list = &mut self.owners.get_mut(owner.number())?.lists[class as usize];
        loop {
            let first = list.first()?;
            let slot = self.slots.get_mut(first)?;
            if !core::mem::take(&mut slot.used) {
                return Some(first);
            }
            self.links.remove(list, first);
            self.links.push_back(list, first);
        }
    }

    fn remove(&mut self, number: u32) {
        if let Some(slot) = self.slots.get(number) {
            self.wheel.cancel(number, slot.bucket);
            self.forget(number);
        }
    }

    /// Removes a flow that the wheel does not have any more.
    fn forget(&mut self, number: u32) {
        let Some(slot) = self.slots.remove(number) else {
            return;
        };
        self.index.remove(self.hasher.hash_one(slot.key), number);
        if let Some(port) = slot.learnt {
            self.unlearn(port);
        }
        self.delist(number, slot.owner, slot.class);
        let left = self.owners.get(slot.owner.number());
        if left.is_some_and(|entry| entry.count() == 0)
            && let Some(entry) = self.owners.remove(slot.owner.number())
        {
            let hash = self.hasher.hash_one(entry.owner);
            self.owner_index.remove(hash, slot.owner.number());
        }
    }

    fn enlist(&mut self, number: u32, owner: OwnerSlot, class: Class) {
        if let Some(entry) = self.owners.get_mut(owner.number()) {
            self.links
                .push_back(&mut entry.lists[class as usize], number);
            entry.counts[class as usize] += 1;
        }
    }

    fn delist(&mut self, number: u32, owner: OwnerSlot, class: Class) {
        if let Some(entry) = self.owners.get_mut(owner.number()) {
            self.links.remove(&mut entry.lists[class as usize], number);
            entry.counts[class as usize] -= 1;
        }
    }

    /// The port's number, with one more flow.
    fn learn(&mut self, key: PortKey, owner: OwnerSlot) -> u32 {
        if let Some(number) = self.find_learnt(key)
            && let Some(port) = self.learnt.get_mut(number)
        {
            port.flows += 1;
            return number;
        }
        let port = LearntPort {
            key,
            owner,
            flows: 1,
        };
        let number = self.learnt.insert(port);
        self.learnt_index.insert(self.hasher.hash_one(key), number);
        number
    }

    fn unlearn(&mut self, number: u32) {
        let Some(port) = self.learnt.get_mut(number) else {
            return;
        };
        port.flows -= 1;
        if port.flows == 0 {
            let hash = self.hasher.hash_one(port.key);
            self.learnt.remove(number);
            self.learnt_index.remove(hash, number);
        }
    }

    fn live(&self, key: &FlowKey, now: Instant) -> Option<u32> {
        let number = self.find(key)?;
        let slot = self.slots.get(number)?;
        (!is_idle(slot, now)).then_some(number)
    }

    fn find(&self, key: &FlowKey) -> Option<u32> {
        let is_it = |number| self.slots.get(number).is_some_and(|slot| slot.key == *key);
        self.index.find(self.hasher.hash_one(key), is_it)
    }

    fn find_learnt(&self, key: PortKey) -> Option<u32> {
        let is_it = |number| self.learnt.get(number).is_some_and(|port| port.key == key);
        self.learnt_index.find(self.hasher.hash_one(key), is_it)
    }

    fn find_owner(&self, owner: AttachmentId) -> Option<OwnerSlot> {
        let is_it = |number| self.owners.get(number).is_some_and(|it| it.owner == owner);
        let found = self.owner_index.find(self.hasher.hash_one(owner), is_it)?;
        Some(OwnerSlot::new(found))
    }

    fn add_owner(&mut self, owner: AttachmentId) -> OwnerSlot {
        let number = self.owners.insert(OwnerEntry {
            owner,
            lists: [List::EMPTY; 3],
            counts: [0; 3],
        });
        self.owner_index.insert(self.hasher.hash_one(owner), number);
        OwnerSlot::new(number)
    }

    fn name_of(&self, owner: OwnerSlot) -> Option<AttachmentId> {
        self.owners.get(owner.number()).map(|entry| entry.owner)
    }
}

fn is_idle(slot: &Slot, now: Instant) -> bool {
    now.since(slot.used_at) >= lifetime(&slot.state)
}

fn class_of(state: &State) -> Class {
    match state {
        State::Datagrams { replied: true } => Class::Datagrams,
        State::Connection(connection) if connection.phase() == Phase::Established => {
            Class::Connections
        }
        State::Unseen { established: true } => Class::Connections,
        _ => Class::Passing,
    }
}

fn lifetime(state: &State) -> Duration {
    match (state, class_of(state)) {
        (State::Datagrams { .. }, _) => DATAGRAM,
        (_, Class::Connections) => ESTABLISHED,
        _ => TRANSITORY,
    }
}

#[cfg(test)]
mod tests;
