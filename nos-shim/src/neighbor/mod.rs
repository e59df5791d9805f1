//! Whose MAC address: the neighbors on one uplink, by ARP (RFC 826) and Neighbor Discovery
//! (RFC 4861).
//!
//! # Theory of operation
//!
//! A packet's next hop is looked up with [`NeighborCache::resolve`]. Usually the answer is a MAC
//! address, after one comparison of times. Otherwise the packet is handed over to wait
//! ([`NeighborCache::hold`]) while the cache asks, and comes back through
//! [`NeighborCache::poll_output`]: to be sent, or to be refused to its sender.
//!
//! ```text
//! resolve ──► Known(MAC) ─────────────────────────────────────────► send
//!    │
//!    └──────► Unknown(id) ──► hold ──► answered ──► Output::Release ──► send
//!                  │                └► unanswered ► Output::Failed ───► unreachable
//!                  └► Output::Send(solicitation)
//! ```
//!
//! ARP neighbors age by the same state machine as those of Neighbor Discovery, as they do on
//! Linux. A neighbor that is not used needs no timer: that its reachability has ended is found out
//! by the next packet.
//!
//! What a stranger can do is bounded (RFC 6583), and what one owner of packets can do to another is
//! nothing ([`crate::share`]):
//!
//! - A neighbor that does not answer yet takes a place, charged to whoever made us ask. An owner
//!   that scans a subnet has [`Limits::unresolved`] places. Once it has them all, the one that has
//!   waited longest is given to its next, but none before it has had 250 ms to answer. So there are
//!   bounded numbers of places, and of solicitations in a second.
//! - A packet that waits is charged to its owner. One owner has [`Limits::held_per_neighbor`] for
//!   one neighbor, and its [share](Shares) of the buffers for all. What is more drops its own oldest.
//! - Neighbors that are in use or have answered lately are never given up for others.
//!
//! # Conflicts
//!
//! Who else uses an address of ours is reported, and our IPv4 address defended for ever, by one
//! announcement in [`DEFEND_INTERVAL`] (RFC 5227 §2.4 (c), which is for routers and others whose
//! address must not change: the containers' flows hang on it). Linux does not defend. For IPv6 no
//! RFC asks for anything once duplicate address detection is over (RFC 4862 §5.4.4), so nothing is
//! sent.
//!
//! # What is learnt
//!
//! Advertisements, replies and gratuitous ARP change neighbors that are known but add none; only
//! who asks for one of our addresses, from a subnet of ours, is added.

mod addresses;
mod answer;
mod entry;
mod parked;
mod resolve;
mod table;
#[cfg(test)]
mod tests;

use core::net::{IpAddr, Ipv4Addr};
use std::collections::{BTreeSet, VecDeque};

use ipnet::IpNet;

use self::addresses::Addresses;
use self::entry::{Due, Entry, Key, Use};
use self::parked::{Held, Parked};
use self::table::{KEEP_FAILED, Table};
use crate::arp::Arp;
use crate::drop::DropReason;
use crate::frame::{Frame, FrameFull};
use crate::ident::MacAddr;
use crate::ndp::{Envelope, Ndp};
use crate::packet::Packet;
use crate::page::{PAGE, PLACES, Page};
use crate::share::{Account, Shares, Standing};
use crate::time::{Duration, Instant};

/// How much a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Neighbors.
    pub neighbors: usize,
    /// Neighbors that have not answered yet of one owner that is alone. All
    /// owners together have fewer than twice as many.
    pub unresolved: usize,
    /// Packets of one owner that wait for one neighbor. Linux keeps about as many.
    pub held_per_neighbor: usize,
    /// Packets that wait for any, for which there is memory.
    pub held: usize,
}

impl Limits {
    /// Room for something, and for no more than can be numbered.
    fn plausible(self) -> Self {
        const MOST: usize = 1 << 24;
        Self {
            neighbors: self.neighbors.clamp(1, MOST),
            unresolved: self.unresolved.max(1),
            held_per_neighbor: self.held_per_neighbor.max(1),
            held: self.held.clamp(1, MOST),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Fuzzing makes tables for each run.
            neighbors: if cfg!(fuzzing) { 16 } else { 4096 },
            unresolved: if cfg!(fuzzing) { 8 } else { 512 },
            held_per_neighbor: 64,
            held: 1024,
        }
    }
}

/// A neighbor in the cache, as long as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NeighborId {
    slot: u32,
    generation: u32,
}

/// Where to send a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// To this MAC address, now.
    Known(MacAddr),
    /// It is being asked for: [`NeighborCache::hold`] the packet.
    Unknown(NeighborId),
    /// Nowhere: drop the packet for this reason. [`DropReason::NeighborFailed`] for an address that
    /// no neighbor can have, [`DropReason::NeighborQueueFull`] when too many are being asked for.
    Refused(DropReason),
}

/// A frame for the cache's uplink, yet to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// ARP.
    Arp {
        /// The message.
        arp: Arp,
        /// The MAC address that it goes to.
        destination: MacAddr,
    },
    /// Neighbor Discovery.
    Ndp {
        /// The message.
        ndp: Ndp,
        /// The addresses around it.
        envelope: Envelope,
    },
}

impl Message {
    /// Makes `frame` this message, in place of what it held.
    ///
    /// # Errors
    ///
    /// [`FrameFull`] when the frame's buffer is too short.
    pub fn write(&self, frame: &mut Frame) -> Result<(), FrameFull> {
        match self {
            Self::Arp { arp, destination } => arp.write(frame, *destination),
            Self::Ndp { ndp, envelope } => ndp.write(frame, envelope),
        }
    }
}

/// How often an address is defended against others, and the operator told (RFC 5227 §2.4).
pub const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

/// What to do about a message that was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Send this.
    Reply(Message),
    /// Somebody else uses an address of ours (RFC 5227 §2.4, RFC 4862 §5.4.4). The operator should
    /// know; what there is to send comes from [`NeighborCache::poll_output`].
    Conflict {
        /// The address.
        address: IpAddr,
        /// Who uses it.
        mac: MacAddr,
        /// Whether it was the first for this address in [`DEFEND_INTERVAL`].
        first: bool,
    },
    /// Nothing.
    Nothing,
}

/// What the cache wants done.
#[derive(Debug)]
pub enum Output<T> {
    /// Send a message of the cache's own: a solicitation or an announcement.
    Send(Message),
    /// The neighbor is known: send this packet to it now.
    Release {
        /// Where to.
        mac: MacAddr,
        /// The packet.
        packet: Packet,
        /// What was held with it.
        tag: T,
    },
    /// The neighbor does not answer: drop the packet for [`DropReason::NeighborFailed`], and tell
    /// its sender that the host or address is unreachable (RFC 1812 §3.3.2, RFC 4861 §7.2.2).
    Failed {
        /// The packet.
        packet: Packet,
        /// What was held with it.
        tag: T,
    },
    /// Drop the packet, and tell nobody.
    Dropped {
        /// The packet.
        packet: Packet,
        /// What was held with it.
        tag: T,
        /// Why.
        reason: DropReason,
    },
}

/// What is known of a neighbor (RFC 4861 §7.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NeighborState {
    /// It is being asked for; it has not answered yet.
    Incomplete,
    /// It has answered within the last half a minute or so.
    Reachable,
    /// It has not; nobody has sent anything to it since.
    Stale,
    /// Something has been sent to it; it is about to be probed.
    Delay,
    /// It is being probed. Packets still go to the MAC address that was known last.
    Probe,
    /// It does not answer. The next packet to it has it asked for again.
    Failed,
}

/// Where a page of the neighbors of all uplinks begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NeighborCursor {
    /// Index of the uplink.
    pub(crate) uplink: usize,
    /// Place in its cache.
    pub(crate) place: usize,
}

/// A neighbor, to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighborStatus {
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: Option<MacAddr>,
    /// What is known of it.
    pub state: NeighborState,
    /// Since it was last heard of; if never, since it was first asked for; if failed, since then.
    pub age: Duration,
    /// Packets that wait for it.
    pub queued: usize,
}

impl NeighborStatus {
    fn is_shown(&self) -> bool {
        self.state != NeighborState::Failed || self.age < KEEP_FAILED
    }
}

/// The neighbors on one uplink. With each packet that waits, a `T` is kept.
#[derive(Debug)]
pub struct NeighborCache<T> {
    mac: MacAddr,
    addresses: Addresses,
    router: bool,
    proxy: bool,
    limits: Limits,
    table: Table,
    parked: Parked<T>,
    outputs: VecDeque<Output<T>>,
    /// Packets in `outputs`.
    leaving: usize,
    random: fastrand::Rng,
    /// Addresses of ours that others use, and when each was last defended.
    defended: Vec<(IpAddr, Instant)>,
}

impl<T: Copy> NeighborCache<T> {
    /// A cache for the uplink with this MAC address and these addresses. The link-local address of
    /// `mac` is ours as well. `seed` varies the time for which neighbors count as reachable.
    #[must_use]
    pub fn new(mac: MacAddr, addresses: &[IpNet], seed: u64) -> Self {
        Self::with_limits(mac, addresses, seed, Limits::default())
    }

    /// The same with limits of one's own.
    #[must_use]
    pub fn with_limits(mac: MacAddr, addresses: &[IpNet], seed: u64, limits: Limits) -> Self {
        let limits = limits.plausible();
        Self {
            mac,
            addresses: Addresses::new(mac, addresses),
            router: false,
            proxy: false,
            limits,
            table: Table::new(limits.neighbors, limits.unresolved),
            parked: Parked::new(limits.held),
            outputs: VecDeque::new(),
            leaving: 0,
            random: fastrand::Rng::with_seed(seed),
            defended: Vec::new(),
        }
    }

    /// Changes which addresses are ours. Neighbors that had one of them fail, or had one that stands
    /// for a whole subnet now. Nothing is announced; see [`Self::announce`].
    pub fn set_addresses(&mut self, addresses: &[IpNet]) {
        self.addresses.set(addresses);
        self.forget_those_of_ours();
    }

    /// Changes for which addresses of others we stand on this link: we answer for them as for ours, and
    /// never ask from them. Returns those that are new; nothing is announced, see
    /// [`Self::announce_address`].
    pub fn set_proxied(&mut self, addresses: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        let new = self.addresses.set_proxied(addresses);
        self.forget_those_of_ours();
        new
    }

    /// Forgets who had an address that is ours now, and conflicts about those that are not any more.
    fn forget_those_of_ours(&mut self) {
        self.defended
            .retain(|(address, _)| self.addresses.contains(*address));
        for slot in self.table.slots() {
            let entry = self.table.entry(slot);
            if entry.state.is_some() && !self.addresses.may_be_neighbor(entry.key.address()) {
                self.give_up(slot);
                self.table.remove(slot);
            }
        }
    }

    /// Says whether advertisements call us a router (RFC 4861 §4.4). At first they do not.
    pub fn set_router(&mut self, router: bool) {
        self.router = router;
    }

    /// Says whether it stands for everybody on a link with one other station: then questions for any
    /// address are answered, but probes and what the station asks of itself. Without an IPv4 address
    /// of its own, it asks as who has none yet (RFC 5227 §2.1.1). At first it does not.
    pub fn set_proxy(&mut self, proxy: bool) {
        self.proxy = proxy;
    }

    /// Keeps a packet until its next hop is known or has failed, and charges its owner for it.
    /// Returns a packet of the same owner that was dropped for it, or itself, and why:
    /// [`DropReason::NeighborFailed`]; [`DropReason::NeighborQueueFull`] if too many of the owner's
    /// wait for this neighbor; [`DropReason::OverShare`] if too many wait altogether.
    pub fn hold(
        &mut self,
        id: NeighborId,
        packet: Packet,
        tag: T,
        now: Instant,
        shares: &mut Shares,
    ) -> Option<(Packet, T, DropReason)> {
        let slot = self.table.slot(id);
        let Some((slot, state)) = slot.and_then(|slot| Some((slot, self.table.entry(slot).state?)))
        else {
            return Some((packet, tag, DropReason::NeighborFailed));
        };
        if state == NeighborState::Failed {
            return Some((packet, tag, DropReason::NeighborFailed));
        }
        let account = Account::of(packet.frame());
        let (dropped, reason) = match self.make_room(slot, account, shares) {
            Room::Free => (None, DropReason::OverShare),
            Room::InPlaceOf(dropped, reason) => {
                shares.release(account);
                (Some((dropped.packet, dropped.tag)), reason)
            }
            Room::None => return Some((packet, tag, DropReason::OverShare)),
        };
        shares.charge(account);
        let queue = &mut self.table.entry_mut(slot).queue;
        self.parked.push(queue, slot, packet, tag, account);
        self.release(slot, now);
        dropped.map(|(packet, tag)| (packet, tag, reason))
    }

    /// Room for one more packet of an owner, if need be in place of one of its own.
    fn make_room(&mut self, slot: u32, account: Account, shares: &Shares) -> Room<T> {
        let standing = shares.standing(account);
        if standing == Standing::Over {
            if let Some(held) = self.pop_oldest(account) {
                self.drop_held(held, DropReason::OverShare);
            }
            return Room::None;
        }
        let (dropped, reason) =
            if self.parked.len_of(slot, account) >= self.limits.held_per_neighbor {
                let queue = &mut self.table.entry_mut(slot).queue;
                let dropped = self.parked.pop_of(queue, slot, account);
                (dropped, DropReason::NeighborQueueFull)
            } else if standing == Standing::Full || self.parked.len() >= self.limits.held {
                (self.pop_oldest(account), DropReason::OverShare)
            } else {
                return Room::Free;
            };
        dropped.map_or(Room::None, |held| Room::InPlaceOf(held, reason))
    }

    /// Takes the oldest packet of an owner that waits here.
    fn pop_oldest(&mut self, account: Account) -> Option<Held<T>> {
        let slot = self.parked.oldest_waits_for(account)?;
        let queue = &mut self.table.entry_mut(slot).queue;
        self.parked.pop_of(queue, slot, account)
    }

    /// Has a packet dropped that waits no more.
    fn drop_held(&mut self, held: Held<T>, reason: DropReason) {
        self.leaving += 1;
        self.outputs.push_back(Output::Dropped {
            packet: held.packet,
            tag: held.tag,
            reason,
        });
    }

    /// Hands out the packets of a neighbor, if its MAC address is known; that is a use of it.
    fn release(&mut self, slot: u32, now: Instant) {
        let entry = self.table.entry(slot);
        if entry.queue.len() == 0 || entry.known_mac().is_none() {
            return;
        }
        let Use::Send(mac) = self.table.change(slot, |entry| entry.on_use(now)) else {
            return;
        };
        let queue = &mut self.table.entry_mut(slot).queue;
        while let Some(Held { packet, tag, .. }) = self.parked.pop(queue) {
            self.leaving += 1;
            self.outputs.push_back(Output::Release { mac, packet, tag });
        }
    }

    /// Hands out the packets of a neighbor that has failed.
    fn give_up(&mut self, slot: u32) {
        let entry = self.table.entry_mut(slot);
        while let Some(Held { packet, tag, .. }) = self.parked.pop(&mut entry.queue) {
            self.leaving += 1;
            self.outputs.push_back(Output::Failed { packet, tag });
        }
    }

    /// A time between half and one and a half times 30 s (RFC 4861 §6.3.2 and §10).
    fn reachable_time(&mut self) -> Duration {
        Duration::from_millis(self.random.u64(15_000..=45_000))
    }

    /// The next thing to do. To be called until there is none, after every other call that takes
    /// the cache mutably. The owner of a packet that comes back is charged no more.
    #[inline]
    pub fn poll_output(&mut self, shares: &mut Shares) -> Option<Output<T>> {
        let output = self.outputs.pop_front()?;
        if let Some(packet) = output.packet() {
            shares.release(Account::of(packet.frame()));
            self.leaving -= 1;
        }
        Some(output)
    }

    /// Whether [`Self::poll_output`] has something.
    #[must_use]
    #[inline]
    pub fn has_output(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// Learns where a neighbor was when it was last heard of, as it is known from elsewhere: it is
    /// used at once, and probed once it is in use (RFC 4861 §7.3.3: Stale). What is known already, no
    /// neighbor of ours, and what finds no place, is left out.
    pub fn remember(&mut self, address: IpAddr, mac: MacAddr, now: Instant) {
        let key = Key::from(address);
        if !self.addresses.may_be_neighbor(address) || self.table.find(key).is_some() {
            return;
        }
        if let Some(slot) = self.insert(key, now) {
            self.table.change(slot, |entry| entry.on_question(mac, now));
        }
    }

    /// Tells all neighbors our addresses: gratuitous ARP (RFC 5227 §2.3) and unsolicited
    /// advertisements (RFC 4861 §7.2.6).
    pub fn announce(&mut self) {
        let addresses: Vec<IpAddr> = self.addresses.iter().collect();
        for address in addresses {
            self.announce_address(address);
        }
    }

    /// The same of one of them.
    pub fn announce_address(&mut self, address: IpAddr) {
        let message = match address {
            IpAddr::V4(address) => self.arp_announcement(address),
            IpAddr::V6(address) => self.advert_to_all(address),
        };
        self.outputs.push_back(Output::Send(message));
    }

    fn arp_announcement(&self, address: Ipv4Addr) -> Message {
        Message::Arp {
            arp: Arp::request(self.mac, address, address),
            destination: MacAddr::BROADCAST,
        }
    }

    /// When [`Self::handle_timeout`] has something to do; `None` while no neighbor is in use.
    #[must_use]
    pub fn poll_at(&self) -> Option<Instant> {
        self.table.poll_at()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(slot) = self.table.due(now) {
            match self.table.change(slot, |entry| entry.on_deadline(now)) {
                Due::Ask => self.ask(slot),
                Due::GiveUp => self.give_up(slot),
            }
        }
    }

    /// Packets inside, those that [`Self::poll_output`] will hand out included.
    #[must_use]
    pub fn held(&self) -> usize {
        self.parked.len() + self.leaving
    }

    /// Forgets every neighbor and returns all packets, in no certain order, for the caller to drop.
    /// Pinned neighbors keep their ids.
    pub fn clear(&mut self, shares: &mut Shares) -> Vec<(Packet, T)> {
        for slot in self.table.slots() {
            self.give_up(slot);
            if self.table.entry(slot).state.is_some() {
                self.table.remove(slot);
            }
        }
        self.leaving = 0;
        let packets = self.outputs.drain(..).filter_map(Output::into_packet);
        let released = |(packet, _): &(Packet, T)| shares.release(Account::of(packet.frame()));
        packets.inspect(released).collect()
    }

    /// Some neighbors, from the place `first` on.
    #[must_use]
    pub fn page(&self, first: usize, now: Instant) -> Page<NeighborStatus, usize> {
        let mut rows = Vec::new();
        let places = self.table.iter().enumerate().skip(first);
        for (place, entry) in places {
            if rows.len() >= PAGE || place >= first + PLACES {
                let next = Some(place);
                return Page { rows, next };
            }
            rows.extend(entry.status(now).filter(NeighborStatus::is_shown));
        }
        Page { rows, next: None }
    }
}

/// Where one more packet may wait.
enum Room<T> {
    Free,
    /// Where this one did, which is dropped.
    InPlaceOf(Held<T>, DropReason),
    None,
}

impl<T> Output<T> {
    fn packet(&self) -> Option<&Packet> {
        match self {
            Self::Send(_) => None,
            Self::Release { packet, .. }
            | Self::Failed { packet, .. }
            | Self::Dropped { packet, .. } => Some(packet),
        }
    }

    fn into_packet(self) -> Option<(Packet, T)> {
        match self {
            Self::Send(_) => None,
            Self::Release { packet, tag, .. }
            | Self::Failed { packet, tag }
            | Self::Dropped { packet, tag, .. } => Some((packet, tag)),
        }
    }
}

impl Entry {
    fn status(&self, now: Instant) -> Option<NeighborStatus> {
        Some(NeighborStatus {
            address: self.key.address(),
            mac: self.known_mac(),
            state: self.state(now)?,
            age: now.since(self.since),
            queued: self.queue.len(),
        })
    }
}
