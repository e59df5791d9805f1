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
//! Strangers send fragments, from any source that they like to write, and so do containers. So there
//! are bounds for each source and for each owner ([`crate::share`]), both for datagrams that are
//! remembered and for packets that are held. A source is an address of one owner: containers that
//! share an address are several.
//!
//! - A source that exceeds its datagrams loses its own oldest one. This also keeps its
//!   identifiers, of which IPv4 has too few for a fast sender (RFC 4963, RFC 6864), from meeting
//!   remains of their previous use.
//! - A source that exceeds its held packets loses the datagram that would have needed more.
//! - An owner that exceeds its datagrams loses its oldest; one that exceeds its share of the
//!   buffers, its datagram that has waited longest. Under a flood, honest datagrams of the same owner
//!   whose fragments follow each other closely still pass, which they would not if the flood kept
//!   what it has taken; those of others do not notice.

mod extent;

use core::net::IpAddr;
use std::collections::VecDeque;

use crate::drop::DropReason;
use crate::flows::{FlowId, FlowTable, Limits, NotInserted, OwnerSlot};
use crate::ident::VrfId;
use crate::links::{Links, List};
use crate::packet::{Addresses, Fragment, FragmentId, FragmentSpan, Packet};
use crate::share::{Account, Shares, Standing};
use crate::time::{Duration, Instant};
use extent::{Extent, Placed};

/// How much is remembered and held, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentLimits {
    /// Datagrams that are remembered, of one owner that is alone. All owners together have fewer
    /// than twice as many.
    pub datagrams: usize,
    /// Datagrams of one source address that are remembered.
    pub datagrams_per_source: usize,
    /// Packets that are held, for which there is memory.
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
            // Fuzzing makes tables for each run.
            datagrams: if cfg!(fuzzing) { 32 } else { 4096 },
            datagrams_per_source: if cfg!(fuzzing) { 8 } else { 64 },
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

type Source = (VrfId, IpAddr, Account);

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
    /// Of its first packet that came.
    account: Account,
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
    /// What owners have in the table.
    places: Shares,
    /// By account: datagrams, oldest first.
    by_account: Vec<List>,
    ages: Links,
    /// By account: datagrams that have packets held, in the order in which they began to wait.
    waiting: Vec<List>,
    waiting_links: Links,
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
        let datagrams = limits.datagrams.saturating_mul(2);
        let keys = FlowTable::new(Limits {
            flows: datagrams,
            per_owner: limits.datagrams_per_source,
            idle: limits.lifetime,
        });
        Self {
            limits,
            keys,
            datagrams: Vec::with_capacity(datagrams),
            places: Shares::for_one(limits.datagrams),
            by_account: Vec::new(),
            ages: Links::new(datagrams),
            waiting: Vec::new(),
            waiting_links: Links::new(datagrams),
            held: 0,
            held_by: Vec::with_capacity(datagrams),
            released: VecDeque::with_capacity(limits.held),
        }
    }

    /// Decides about a packet to a shared address. `None` means that it is held.
    ///
    /// `owner_of` is asked about packets with a transport header, that is, whole datagrams and first
    /// fragments. What is held is charged to its owner in `shares`. Afterwards, [`Self::poll_fate`] has
    /// to be called until it returns `None`.
    pub fn handle(
        &mut self,
        packet: Packet,
        now: Instant,
        shares: &mut Shares,
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
        let Some(id) = self.remember(key, Account::of(packet.frame()), now) else {
            return Some(Fate::Drop(packet, DropReason::FragmentQueueFull));
        };
        match self.place(id, span) {
            Err(reason) => Some(Fate::Drop(packet, reason)),
            Ok(()) if packet.fragment() == Fragment::First => {
                let owner = owner_of(&packet);
                self.own(id, owner);
                Some(Fate::Deliver(packet, owner))
            }
            Ok(()) => self.pass_or_hold(id, packet, shares),
        }
    }

    /// A packet that was held and is no more; its owner is not charged for it any longer. First
    /// fragments come before those that they release.
    pub fn poll_fate(&mut self, shares: &mut Shares) -> Option<Fate<O>> {
        let fate = self.released.pop_front()?;
        let (Fate::Deliver(packet, _) | Fate::Drop(packet, _)) = &fate;
        shares.release(Account::of(packet.frame()));
        Some(fate)
    }

    /// Forgets datagrams whose time is over. What they held comes from [`Self::poll_fate`].
    pub fn expire(&mut self, now: Instant) {
        while let Some((id, _)) = self.keys.pop_expired(now) {
            self.vacate(id);
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
                self.forget(id);
            }
        }
        before - self.len()
    }

    /// Forgets the datagrams whose first packets that came are charged to an account. What they held
    /// comes from [`Self::poll_fate`], to be dropped for `reason`.
    pub fn forget_account(&mut self, account: Account, reason: DropReason) {
        while let Some(oldest) = self.by_account.get(account.index()).and_then(List::first) {
            let id = FlowId(oldest);
            self.forget(id);
            self.release(id, |packet| Fate::Drop(packet, reason));
        }
    }

    /// The entry of a datagram, made if there is none; `None` if the limits leave no room.
    fn remember(&mut self, key: Key, account: Account, now: Instant) -> Option<FlowId> {
        let full = DropReason::FragmentQueueFull;
        loop {
            let (id, reason) = match self.keys.find(&key) {
                Some(id) if !self.keys.is_idle(id, now) => return Some(id),
                Some(id) => (id, DropReason::FragmentTimeout),
                None => match self.insert(key, account, now) {
                    Ok(id) => return Some(id),
                    Err(instead) => (instead?, full),
                },
            };
            self.forget(id);
            self.release(id, |packet| Fate::Drop(packet, reason));
        }
    }

    /// A new entry, or which has to go first; `None` when there is no room all the same.
    fn insert(
        &mut self,
        key: Key,
        account: Account,
        now: Instant,
    ) -> Result<FlowId, Option<FlowId>> {
        let oldest = self.by_account.get(account.index()).and_then(List::first);
        match self.places.standing(account) {
            Standing::Within => {}
            Standing::Full => return Err(oldest.map(FlowId)),
            Standing::Over => {
                if let Some(id) = oldest.map(FlowId) {
                    self.forget(id);
                    self.release(id, |packet| {
                        Fate::Drop(packet, DropReason::FragmentQueueFull)
                    });
                }
                return Err(None);
            }
        }
        let source = (key.vrf, key.addresses.source(), account);
        match self.keys.insert(source, key, (), now) {
            Ok(id) => self.begin(id, account).ok_or(None),
            Err(NotInserted::OwnerFull) => Err(self.keys.oldest_of(source)),
            Err(NotInserted::Exists(_) | NotInserted::TableFull) => Err(None),
        }
    }

    /// Prepares what belongs to a new entry.
    fn begin(&mut self, id: FlowId, account: Account) -> Option<FlowId> {
        let source = self.keys.owner_of(id)?;
        if self.held_by.len() <= source.index() {
            self.held_by.resize(source.index() + 1, 0);
        }
        match self.datagrams.get_mut(id.index()) {
            Some(datagram) => {
                datagram.source = source;
                datagram.account = account;
                datagram.state = State::Waiting;
                datagram.extent.clear();
            }
            None => self.datagrams.push(Datagram {
                source,
                account,
                state: State::Waiting,
                extent: Extent::default(),
                held: Vec::new(),
            }),
        }
        if self.by_account.len() <= account.index() {
            self.by_account.resize(account.index() + 1, List::EMPTY);
            self.waiting.resize(account.index() + 1, List::EMPTY);
        }
        let of_account = &mut self.by_account[account.index()];
        self.ages.push_back(of_account, id.0);
        self.places.charge(account);
        Some(id)
    }

    /// Removes an entry. What it holds has to be [released](Self::release).
    fn forget(&mut self, id: FlowId) {
        if self.keys.remove(id).is_some() {
            self.vacate(id);
        }
    }

    /// Gives the place of an entry back that has been removed.
    fn vacate(&mut self, id: FlowId) {
        let Some(datagram) = self.datagrams.get(id.index()) else {
            return;
        };
        let of_account = &mut self.by_account[datagram.account.index()];
        self.ages.remove(of_account, id.0);
        self.places.release(datagram.account);
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

    fn pass_or_hold(&mut self, id: FlowId, packet: Packet, shares: &mut Shares) -> Option<Fate<O>> {
        match self.datagram(id)?.state {
            State::Owned(owner) => {
                self.end_if_complete(id);
                Some(Fate::Deliver(packet, owner))
            }
            State::Dead(reason) => Some(Fate::Drop(packet, reason)),
            State::Waiting => self.hold(id, packet, shares),
        }
    }

    fn hold(&mut self, id: FlowId, packet: Packet, shares: &mut Shares) -> Option<Fate<O>> {
        let account = Account::of(packet.frame());
        self.make_room(id, account, shares);
        let datagram = self.datagrams.get_mut(id.index())?;
        if let State::Dead(reason) = datagram.state {
            return Some(Fate::Drop(packet, reason));
        }
        if datagram.held.is_empty() {
            let waiting = &mut self.waiting[datagram.account.index()];
            self.waiting_links.push_back(waiting, id.0);
        }
        shares.charge(account);
        let source = datagram.source.index();
        datagram.held.push(packet);
        self.held += 1;
        self.held_by[source] += 1;
        None
    }

    /// Makes room for one more packet of a datagram, at the cost of another of the same owner, or of
    /// the datagram itself.
    fn make_room(&mut self, id: FlowId, account: Account, shares: &Shares) {
        let Some(source) = self.datagram(id).map(|datagram| datagram.source.index()) else {
            return;
        };
        if self.held_by.get(source).copied() >= Some(self.limits.held_per_source) {
            return self.kill(id, DropReason::FragmentQueueFull);
        }
        let standing = shares.standing(account);
        let reason = match standing {
            Standing::Within if self.held < self.limits.held => return,
            Standing::Within => DropReason::FragmentQueueFull,
            Standing::Full | Standing::Over => DropReason::OverShare,
        };
        let longest = self.waiting.get(account.index()).and_then(List::first);
        self.kill(longest.map_or(id, FlowId), reason);
        if standing == Standing::Over {
            self.kill(id, reason);
        }
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
        let waiting = &mut self.waiting[datagram.account.index()];
        self.waiting_links.remove(waiting, id.0);
        self.held -= count;
        self.held_by[datagram.source.index()] -= count;
        self.released.extend(datagram.held.drain(..).map(fate));
    }

    fn end_if_complete(&mut self, id: FlowId) {
        if self
            .datagram(id)
            .is_some_and(|datagram| datagram.extent.is_complete())
        {
            self.forget(id);
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
