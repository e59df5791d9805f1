//! Whose is a fragment that has no ports?
//!
//! # Theory of operation
//!
//! Only the first fragment of a datagram has a transport header, so only it tells whose the
//! datagram is. [`FragmentTable`] remembers that for the others. It does not reassemble: a
//! fragment is handed on as soon as its owner is known, and the owner puts the datagram together.
//!
//! ```text
//!              later fragment: hold it              first fragment: release what is held
//! (new) ─────► waiting ────────────────────────────► owned ───────► (gone: all octets seen)
//!                 │ too many held                      │ later fragment: deliver
//!                 ▼                                    ▼ overlap
//!               dead: drop every fragment  ◄───────────┘
//! ```
//!
//! Every datagram is forgotten 3 seconds after its first packet came, in whatever state; what is
//! held is dropped then. Fragments that overlap make the datagram dead (RFC 5722 §4, RFC 8900
//! §3.7), which is stricter than Linux about a fragment that lies inside of others: Linux takes it
//! for a duplicate. The same fragment again is dropped alone.
//!
//! # Limits
//!
//! Strangers send fragments, from any source that they like to write. So there are bounds for each
//! source and in total, both for datagrams that are remembered and for packets that are held:
//!
//! - A source that exceeds its datagrams loses its own oldest one. This also keeps its
//!   identifiers, of which IPv4 has too few for a fast sender (RFC 4963, RFC 6864), from meeting
//!   remains of their previous use.
//! - A source that exceeds its held packets loses the datagram that would have needed more.
//! - When the table is full, the oldest datagram is lost; when too many packets are held, the
//!   datagram that has waited longest. Under a flood, honest datagrams whose fragments follow each
//!   other closely still pass, which they would not if the flood kept what it has taken.

mod extent;

use core::net::IpAddr;
use std::collections::VecDeque;

use crate::drop::DropReason;
use crate::flows::{FlowId, FlowTable, Limits, NotInserted, OwnerSlot};
use crate::ident::VrfId;
use crate::links::{Links, List};
use crate::packet::{Addresses, Fragment, FragmentId, FragmentSpan, Packet};
use crate::time::{Duration, Instant};
use extent::{Extent, Placed};

/// How much is remembered and held, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentLimits {
    /// Datagrams that are remembered.
    pub datagrams: usize,
    /// Datagrams of one source address that are remembered.
    pub datagrams_per_source: usize,
    /// Packets that are held.
    pub held: usize,
    /// Packets of one source address that are held.
    pub held_per_source: usize,
    /// How long a datagram is remembered after its first packet.
    pub lifetime: Duration,
}

impl Default for FragmentLimits {
    /// One source may have two of the longest datagrams in reverse order at an MTU of 1,500
    /// octets.
    fn default() -> Self {
        Self {
            datagrams: 4096,
            datagrams_per_source: 64,
            held: 512,
            held_per_source: 96,
            lifetime: Duration::from_secs(3),
        }
    }
}

/// What becomes of a packet.
#[derive(Debug)]
pub enum Fate<O> {
    /// It goes to its owner.
    Deliver(Packet, O),
    /// It is dropped.
    Drop(Packet, DropReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    vrf: VrfId,
    addresses: Addresses,
    id: FragmentId,
}

type Source = (VrfId, IpAddr);

#[derive(Clone, Copy, Debug)]
enum State<O> {
    /// The first fragment has not been seen.
    Waiting,
    /// The first fragment went there.
    Owned(O),
    /// All fragments are dropped.
    Dead(DropReason),
}

#[derive(Debug)]
struct Datagram<O> {
    source: OwnerSlot,
    state: State<O>,
    extent: Extent,
    /// What waits for the first fragment, in the order of arrival.
    held: Vec<Packet>,
}

/// The datagrams of which fragments have been seen. `O` says whose a datagram is.
#[derive(Debug)]
pub struct FragmentTable<O> {
    limits: FragmentLimits,
    keys: FlowTable<Source, Key, ()>,
    /// By number of the key's entry.
    datagrams: Vec<Datagram<O>>,
    /// Datagrams that have packets held, in the order in which they began to wait.
    waiting: List,
    links: Links,
    /// Packets held by datagrams.
    held: usize,
    /// The same by source, by number of the source's entry.
    held_by: Vec<usize>,
    /// Packets that were held and are no more.
    released: VecDeque<Fate<O>>,
}

impl<O: Copy + PartialEq> FragmentTable<O> {
    /// A table within `limits`.
    #[must_use]
    pub fn new(limits: FragmentLimits) -> Self {
        let keys = FlowTable::new(Limits {
            flows: limits.datagrams,
            per_owner: limits.datagrams_per_source,
            idle: limits.lifetime,
        });
        Self {
            limits,
            keys,
            datagrams: Vec::with_capacity(limits.datagrams),
            waiting: List::EMPTY,
            links: Links::new(limits.datagrams),
            held: 0,
            held_by: Vec::with_capacity(limits.datagrams),
            released: VecDeque::with_capacity(limits.held),
        }
    }

    /// Decides about a packet to a shared address. `None` means that it is held.
    ///
    /// `owner_of` is asked about packets with a transport header, that is, whole datagrams and first
    /// fragments. Afterwards, [`Self::poll_fate`] has to be called until it returns `None`.
    pub fn handle(
        &mut self,
        packet: Packet,
        now: Instant,
        owner_of: impl FnOnce(&Packet) -> O,
    ) -> Option<Fate<O>> {
        let Some((id, span)) = packet.fragment_place() else {
            let owner = owner_of(&packet);
            return Some(Fate::Deliver(packet, owner));
        };
        let key = Key {
            vrf: packet.frame().vrf(),
            addresses: packet.addresses(),
            id,
        };
        let span = usable(span, packet.is_ipv6());
        let Some(id) = self.remember(key, now) else {
            return Some(Fate::Drop(packet, DropReason::FragmentQueueFull));
        };
        match self.place(id, span) {
            Err(reason) => Some(Fate::Drop(packet, reason)),
            Ok(()) if packet.fragment() == Fragment::First => {
                let owner = owner_of(&packet);
                self.own(id, owner);
                Some(Fate::Deliver(packet, owner))
            }
            Ok(()) => self.pass_or_hold(id, packet),
        }
    }

    /// A packet that was held and is no more. First fragments come before those that they release.
    pub fn poll_fate(&mut self) -> Option<Fate<O>> {
        self.released.pop_front()
    }

    /// Forgets datagrams whose time is over. What they held comes from [`Self::poll_fate`].
    pub fn expire(&mut self, now: Instant) {
        while let Some((id, _)) = self.keys.pop_expired(now) {
            self.release(id, |packet| Fate::Drop(packet, DropReason::FragmentTimeout));
        }
    }

    /// When to call [`Self::expire`] next.
    #[must_use]
    pub fn poll_at(&self) -> Option<Instant> {
        self.keys.poll_at()
    }

    /// How many packets are held, those that [`Self::poll_fate`] has not returned yet included.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held + self.released.len()
    }

    /// How many datagrams are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no datagram is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Forgets the datagrams of an owner that has gone. Returns how many there were.
    ///
    /// Fragments that still come are held, and dropped when their time is over.
    pub fn flush(&mut self, owner: O) -> usize {
        let before = self.len();
        for number in (0..).take(self.datagrams.len()) {
            let id = FlowId(number);
            let state = self.datagram(id).map(|datagram| datagram.state);
            if matches!(state, Some(State::Owned(other)) if other == owner) {
                self.keys.remove(id);
            }
        }
        before - self.len()
    }

    /// The entry of a datagram, made if there is none; `None` if the limits leave no room.
    fn remember(&mut self, key: Key, now: Instant) -> Option<FlowId> {
        let source = (key.vrf, key.addresses.source());
        loop {
            let (id, reason) = match self.keys.insert(source, key, (), now) {
                Ok(id) => return self.begin(id),
                Err(NotInserted::Exists(id)) if !self.keys.is_idle(id, now) => return Some(id),
                Err(NotInserted::Exists(id)) => (id, DropReason::FragmentTimeout),
                Err(NotInserted::OwnerFull) => {
                    (self.keys.oldest_of(source)?, DropReason::FragmentQueueFull)
                }
                Err(NotInserted::TableFull) => (self.keys.oldest()?, DropReason::FragmentQueueFull),
            };
            self.keys.remove(id)?;
            self.release(id, |packet| Fate::Drop(packet, reason));
        }
    }

    /// Prepares what belongs to a new entry.
    fn begin(&mut self, id: FlowId) -> Option<FlowId> {
        let source = self.keys.owner_of(id)?;
        if self.held_by.len() <= source.index() {
            self.held_by.resize(source.index() + 1, 0);
        }
        match self.datagrams.get_mut(id.index()) {
            Some(datagram) => {
                datagram.source = source;
                datagram.state = State::Waiting;
                datagram.extent.clear();
            }
            None => self.datagrams.push(Datagram {
                source,
                state: State::Waiting,
                extent: Extent::default(),
                held: Vec::new(),
            }),
        }
        Some(id)
    }

    /// Notes a fragment, or says why to drop it.
    fn place(&mut self, id: FlowId, span: FragmentSpan) -> Result<(), DropReason> {
        let datagram = self.datagram_mut(id).ok_or(DropReason::FragmentQueueFull)?;
        if let State::Dead(reason) = datagram.state {
            return Err(reason);
        }
        let reason = match datagram.extent.place(span) {
            Placed::New => return Ok(()),
            Placed::Duplicate => return Err(DropReason::FragmentDuplicate),
            Placed::Clash => DropReason::FragmentOverlap,
            Placed::TooMany => DropReason::FragmentQueueFull,
        };
        self.kill(id, reason);
        Err(reason)
    }

    /// The first fragment went to `owner`: so does the rest.
    fn own(&mut self, id: FlowId, owner: O) {
        if let Some(datagram) = self.datagram_mut(id) {
            datagram.state = State::Owned(owner);
        }
        self.release(id, |packet| Fate::Deliver(packet, owner));
        self.end_if_complete(id);
    }

    fn pass_or_hold(&mut self, id: FlowId, packet: Packet) -> Option<Fate<O>> {
        match self.datagram(id)?.state {
            State::Owned(owner) => {
                self.end_if_complete(id);
                Some(Fate::Deliver(packet, owner))
            }
            State::Dead(reason) => Some(Fate::Drop(packet, reason)),
            State::Waiting => self.hold(id, packet),
        }
    }

    fn hold(&mut self, id: FlowId, packet: Packet) -> Option<Fate<O>> {
        let full = DropReason::FragmentQueueFull;
        let source = self.datagram(id)?.source.index();
        if self.held_by.get(source).copied() >= Some(self.limits.held_per_source) {
            self.kill(id, full);
        } else if self.held >= self.limits.held {
            self.kill(self.waiting.first().map_or(id, FlowId), full);
        }
        let datagram = self.datagrams.get_mut(id.index())?;
        if let State::Dead(reason) = datagram.state {
            return Some(Fate::Drop(packet, reason));
        }
        if datagram.held.is_empty() {
            self.links.push_back(&mut self.waiting, id.0);
        }
        datagram.held.push(packet);
        self.held += 1;
        self.held_by[source] += 1;
        None
    }

    /// Makes a datagram one of which every fragment is dropped.
    fn kill(&mut self, id: FlowId, reason: DropReason) {
        if let Some(datagram) = self.datagram_mut(id) {
            datagram.state = State::Dead(reason);
        }
        self.release(id, |packet| Fate::Drop(packet, reason));
    }

    /// Holds the packets of a datagram no more.
    fn release(&mut self, id: FlowId, fate: impl Fn(Packet) -> Fate<O>) {
        let Some(datagram) = self.datagrams.get_mut(id.index()) else {
            return;
        };
        let count = datagram.held.len();
        if count == 0 {
            return;
        }
        self.links.remove(&mut self.waiting, id.0);
        self.held -= count;
        self.held_by[datagram.source.index()] -= count;
        self.released.extend(datagram.held.drain(..).map(fate));
    }

    fn end_if_complete(&mut self, id: FlowId) {
        if self
            .datagram(id)
            .is_some_and(|datagram| datagram.extent.is_complete())
        {
            self.keys.remove(id);
        }
    }

    /// What belongs to an entry that exists.
    fn datagram(&self, id: FlowId) -> Option<&Datagram<O>> {
        self.keys.owner_of(id)?;
        self.datagrams.get(id.index())
    }

    fn datagram_mut(&mut self, id: FlowId) -> Option<&mut Datagram<O>> {
        self.datagrams.get_mut(id.index())
    }
}

/// The octets of a fragment that count: in front of others, IPv4 hosts cut what is no multiple of
/// eight. In IPv6 the parser has refused that (RFC 8200 §4.5).
fn usable(span: FragmentSpan, ipv6: bool) -> FragmentSpan {
    let end = if span.last || ipv6 {
        span.end
    } else {
        span.end - span.end % 8
    };
    FragmentSpan { end, ..span }
}

#[cfg(test)]
mod tests;
