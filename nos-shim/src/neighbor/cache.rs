//! The state machine of RFC 4861 §7.3.2 for all neighbors of an uplink.

use core::net::{IpAddr, Ipv6Addr};
use std::collections::VecDeque;

use super::link::LinkAddresses;
use super::table::{Entry, Table};
use super::{
    MAX_QUEUE, Neighbor, NeighborConfig, NeighborId, NeighborOutput, NeighborState, Resolution,
    Waiting,
};
use crate::arp::{Arp, Operation};
use crate::ident::{MacAddr, UplinkId};
use crate::martian::source_is_martian;
use crate::ndp::{Envelope, Ndp};
use crate::packet::Packet;
use crate::time::{Duration, Instant};

/// The end of time: the state machine's timers say when the MAC address is no longer to be used.
const ALWAYS: Instant = Instant::from_nanos(u64::MAX);

/// The random factor of the reachable time is drawn anew so often (RFC 4861 §6.3.2 says "every few
/// hours", Linux does it every 5 minutes).
const REDRAW: Duration = Duration::from_secs(300);

/// An ARP message that names another MAC address is not believed so soon after the last one: several
/// stations may answer for one address, and the first is nearest (`locktime` in Linux).
const LOCK: Duration = Duration::from_secs(1);

/// The neighbors on one uplink's link.
///
/// Whoever drives it drains [`Self::poll_output`] after each call that says so, and calls
/// [`Self::handle_timeout`] when [`Self::poll_at`] has come.
#[derive(Debug)]
pub struct NeighborCache {
    uplink: UplinkId,
    config: NeighborConfig,
    link: LinkAddresses,
    table: Table,
    outputs: VecDeque<NeighborOutput>,
    /// Neighbors in the state Incomplete.
    incomplete: usize,
    /// Packets that wait.
    held: usize,
    conflicts: u64,
    rng: fastrand::Rng,
    reachable: Duration,
    drawn: Option<Instant>,
}

/// What a message says about a neighbor.
#[derive(Clone, Copy)]
struct News {
    mac: MacAddr,
    /// It answers a question of ours: the neighbor is there.
    answer: bool,
    /// It counts more than what is known.
    overrides: bool,
}

impl NeighborCache {
    /// An empty cache. `seed` decides the random part of timers.
    #[must_use]
    pub fn new(
        uplink: UplinkId,
        link: LinkAddresses,
        mut config: NeighborConfig,
        seed: u64,
    ) -> Self {
        config.queue = config.queue.clamp(1, MAX_QUEUE);
        Self {
            uplink,
            config,
            link,
            table: Table::new(),
            outputs: VecDeque::new(),
            incomplete: 0,
            held: 0,
            conflicts: 0,
            rng: fastrand::Rng::with_seed(seed),
            reachable: config.reachable,
            drawn: None,
        }
    }

    /// Whose cache it is.
    #[must_use]
    pub fn uplink(&self) -> UplinkId {
        self.uplink
    }

    /// The NOS's own addresses on the link.
    #[must_use]
    pub fn link(&self) -> &LinkAddresses {
        &self.link
    }

    /// Changes the NOS's own addresses on the link. Neighbors stay.
    pub fn set_link(&mut self, link: LinkAddresses) {
        self.link = link;
    }

    /// Packets that wait.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Messages in which another station claimed an address of the NOS.
    #[must_use]
    pub fn conflicts(&self) -> u64 {
        self.conflicts
    }

    /// The neighbor with this address, which must be one of a station on the link. It is looked for
    /// if it is not known: drain outputs. `None` when there is no room for another.
    #[inline]
    pub fn neighbor(&mut self, address: IpAddr, now: Instant) -> Option<NeighborId> {
        match self.table.find(address) {
            Some(id) => Some(id),
            None => self.look_for(address, now),
        }
    }

    #[cold]
    fn look_for(&mut self, address: IpAddr, now: Instant) -> Option<NeighborId> {
        if self.incomplete >= self.config.incomplete {
            return None;
        }
        let id = self.add(address, now)?;
        self.start(id, now);
        Some(id)
    }

    /// Whether packets can be sent to a neighbor. That is taken as a sign that one will be.
    #[inline]
    pub fn resolve(&mut self, id: NeighborId, now: Instant) -> Resolution {
        match self.table.fast(id, now) {
            Some(mac) => Resolution::Known(mac),
            None => self.resolve_slowly(id, now),
        }
    }

    #[cold]
    fn resolve_slowly(&mut self, id: NeighborId, now: Instant) -> Resolution {
        let Some(entry) = self.table.get_mut(id) else {
            return Resolution::Gone;
        };
        if !entry.state.is_valid() {
            return Resolution::Pending;
        }
        if matches!(entry.state, NeighborState::Reachable | NeighborState::Stale) {
            entry.used = now;
            entry.state = NeighborState::Delay;
            self.table.set_until(id, ALWAYS);
            self.table.set_deadline(id, Some(now + self.config.delay));
        }
        Resolution::Known(self.table.mac(id))
    }

    /// Keeps a packet until its neighbor is known: drain outputs. A neighbor that did not answer is
    /// asked again.
    ///
    /// Returns a packet for which there is no room, to be dropped with
    /// [`DropReason::NeighborQueueFull`](crate::drop::DropReason): the oldest of those that wait for
    /// the same neighbor (RFC 1122 §2.3.2.2 wants the latest kept), or `packet` itself.
    #[must_use]
    pub fn enqueue(&mut self, id: NeighborId, packet: Packet, now: Instant) -> Option<Packet> {
        let Some(entry) = self.table.get_mut(id) else {
            return Some(packet);
        };
        if entry.state == NeighborState::Failed && self.incomplete < self.config.incomplete {
            self.start(id, now);
        }
        let full = self.held >= self.config.total_queue;
        let entry = self.table.get_mut(id)?;
        if entry.state == NeighborState::Failed || full && entry.waiting.is_none() {
            return Some(packet);
        }
        let waiting = entry.waiting.get_or_insert_default();
        let displaced = if full || waiting.len() >= self.config.queue {
            waiting.pop_at(0)
        } else {
            self.held += 1;
            None
        };
        waiting.push(packet);
        if entry.state.is_valid() {
            self.flush(id);
        }
        displaced
    }

    /// What is to be done next; in the order in which it came up.
    pub fn poll_output(&mut self) -> Option<NeighborOutput> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] is to be called; `None` if nobody is waited for.
    pub fn poll_at(&mut self) -> Option<Instant> {
        self.table.next_deadline()
    }

    /// Does what is due: drain outputs.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(id) = self.table.expired(now) {
            self.expire(id, now);
        }
    }

    /// Learns from ARP, and answers: drain outputs. `destination` is the MAC address that the frame
    /// was sent to. Returns whether the message concerned the NOS.
    pub fn handle_arp(&mut self, arp: &Arp, destination: MacAddr, now: Instant) -> bool {
        if !self.is_station(arp.sender_mac) {
            return false;
        }
        let answer = self.link.answer_arp(arp);
        let asked = answer.is_some();
        let sender = IpAddr::V4(arp.sender_ip);
        if self.link.owns(sender) {
            // The plain Linux host that outsiders take the NOS for is silent, too.
            self.conflicts += 1;
            return false;
        }
        self.outputs.extend(answer.map(NeighborOutput::Send));
        if source_is_martian(sender) {
            return asked;
        }
        let reply = arp.operation == Operation::Reply && destination == self.link.mac();
        let locked = |entry: &Entry| now.since(entry.updated) <= LOCK;
        let id = self.table.find(sender);
        let locked = id.and_then(|id| self.table.get(id)).is_some_and(locked);
        let news = News {
            mac: arp.sender_mac,
            answer: reply,
            overrides: asked || arp.is_announcement() || !locked,
        };
        match id {
            Some(id) => self.hear(id, news, now),
            None if asked => self.meet(sender, news, now),
            None => return false,
        }
        true
    }

    /// Learns from Neighbor Discovery, and answers: drain outputs. Returns whether the message
    /// concerned the NOS. Routers' messages do not: routes are configured.
    pub fn handle_ndp(&mut self, ndp: &Ndp, envelope: &Envelope, now: Instant) -> bool {
        match *ndp {
            Ndp::NeighborSolicit {
                source_link_layer, ..
            } => self.handle_solicit(ndp, source_link_layer, envelope, now),
            Ndp::NeighborAdvert {
                router,
                solicited,
                overrides,
                target,
                target_link_layer,
            } => {
                let mac = target_link_layer.filter(|&mac| self.is_station(mac));
                if target_link_layer.is_some() && mac.is_none() {
                    return false;
                }
                self.handle_advert(target, mac, [router, solicited, overrides], now)
            }
            Ndp::RouterSolicit { .. } | Ndp::RouterAdvert(_) | Ndp::Redirect { .. } => false,
        }
    }

    /// RFC 4861 §7.2.3.
    fn handle_solicit(
        &mut self,
        ndp: &Ndp,
        source_link_layer: Option<MacAddr>,
        envelope: &Envelope,
        now: Instant,
    ) -> bool {
        let Some(answer) = self.link.answer_ndp(ndp, envelope) else {
            return false;
        };
        let source = IpAddr::V6(envelope.source);
        let from_station = self.is_station(source_link_layer.unwrap_or(envelope.source_mac));
        if !from_station || self.link.owns(source) {
            return false;
        }
        self.outputs.push_back(NeighborOutput::Send(answer));
        if let Some(mac) = source_link_layer
            && !source_is_martian(source)
        {
            let news = News {
                mac,
                answer: false,
                overrides: true,
            };
            match self.table.find(source) {
                Some(id) => self.hear(id, news, now),
                None => self.meet(source, news, now),
            }
        }
        true
    }

    /// RFC 4861 §7.2.5.
    fn handle_advert(
        &mut self,
        target: Ipv6Addr,
        mac: Option<MacAddr>,
        [router, solicited, overrides]: [bool; 3],
        now: Instant,
    ) -> bool {
        let target = IpAddr::V6(target);
        if self.link.owns(target) {
            self.conflicts += u64::from(mac.is_some());
            return false;
        }
        let Some(id) = self.table.find(target) else {
            return false;
        };
        let known = self.table.mac(id);
        let Some(entry) = self.table.get_mut(id) else {
            return false;
        };
        match (entry.state, mac) {
            // Nobody waits for it any more; without an address it does not help.
            (NeighborState::Failed, _) | (NeighborState::Incomplete, None) => return true,
            (NeighborState::Incomplete, Some(_)) => {}
            (state, Some(mac)) if mac != known && !overrides => {
                if state == NeighborState::Reachable {
                    entry.state = NeighborState::Stale;
                    self.table.set_until(id, Instant::ZERO);
                }
                return true;
            }
            _ => {}
        }
        entry.router = router;
        let news = News {
            mac: mac.unwrap_or(known),
            answer: solicited,
            overrides: true,
        };
        self.hear(id, news, now);
        true
    }

    /// All neighbors, in no particular order.
    pub fn neighbors(&self, now: Instant) -> impl Iterator<Item = Neighbor> + '_ {
        self.table.iter().map(move |(id, entry)| {
            let lapsed = now >= self.table.until(id);
            let state = match entry.state {
                NeighborState::Reachable if lapsed => NeighborState::Stale,
                state => state,
            };
            Neighbor {
                address: entry.address,
                mac: state.is_valid().then(|| self.table.mac(id)),
                state,
                router: entry.router,
                confirmed: entry.confirmed.map(|at| now.since(at)),
                queued: entry.waiting.as_ref().map_or(0, |waiting| waiting.len()),
            }
        })
    }

    /// Forgets all neighbors, as when the link has gone. Packets that wait come back as failed:
    /// drain outputs.
    pub fn clear(&mut self) {
        let ids: Vec<_> = self.table.iter().map(|(id, _)| id).collect();
        for id in ids {
            self.fail(id);
            self.table.remove(id);
        }
    }

    fn is_station(&self, mac: MacAddr) -> bool {
        mac.is_unicast() && mac != self.link.mac()
    }

    fn add(&mut self, address: IpAddr, now: Instant) -> Option<NeighborId> {
        let full = self.table.len() >= self.config.entries;
        let lifetime = self.config.lifetime;
        let old = |entry: &Entry| now.since(entry.used) > lifetime + self.reachable;
        if !self.table.make_room(full, now, old) {
            return None;
        }
        self.table.add(address, now)
    }

    /// Begins to look for a neighbor.
    fn start(&mut self, id: NeighborId, now: Instant) {
        self.incomplete += 1;
        if let Some(entry) = self.table.get_mut(id) {
            entry.state = NeighborState::Incomplete;
            entry.used = now;
            entry.tries = 0;
        }
        self.ask(id, None, now);
    }

    /// Asks, and sets the timer.
    fn ask(&mut self, id: NeighborId, unicast: Option<MacAddr>, now: Instant) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        entry.tries += 1;
        let question = self.link.solicit(entry.address, unicast);
        self.outputs.extend(question.map(NeighborOutput::Send));
        let again = now + self.config.retransmit;
        self.table.set_deadline(id, Some(again));
    }

    fn expire(&mut self, id: NeighborId, now: Instant) {
        let mac = self.table.mac(id);
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        let again = entry.tries < self.config.tries;
        match entry.state {
            NeighborState::Incomplete if again => self.ask(id, None, now),
            NeighborState::Probe if again => self.ask(id, Some(mac), now),
            NeighborState::Incomplete | NeighborState::Probe => self.fail(id),
            NeighborState::Delay => {
                entry.state = NeighborState::Probe;
                entry.tries = 0;
                self.ask(id, Some(mac), now);
            }
            NeighborState::Reachable | NeighborState::Stale | NeighborState::Failed => {}
        }
    }

    fn fail(&mut self, id: NeighborId) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        self.incomplete -= usize::from(entry.state == NeighborState::Incomplete);
        entry.state = NeighborState::Failed;
        let address = entry.address;
        if let Some(packets) = entry.waiting.take() {
            self.held -= packets.len();
            let failed = NeighborOutput::Failed { address, packets };
            self.outputs.push_back(failed);
        }
        self.table.set_until(id, Instant::ZERO);
        self.table.set_deadline(id, None);
    }

    /// Enters a station that has asked for an address of the NOS.
    fn meet(&mut self, address: IpAddr, news: News, now: Instant) {
        if self.link.is_on_link(address)
            && let Some(id) = self.add(address, now)
        {
            self.hear(id, news, now);
        }
    }

    /// Updates a neighbor.
    fn hear(&mut self, id: NeighborId, news: News, now: Instant) {
        let known = self.table.mac(id);
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        let same = news.mac == known;
        if entry.state.is_valid() && (same && !news.answer || !same && !news.overrides) {
            return;
        }
        self.incomplete -= usize::from(entry.state == NeighborState::Incomplete);
        if !entry.state.is_valid() || !same {
            entry.updated = now;
        }
        if news.answer {
            entry.confirmed = Some(now);
            entry.state = NeighborState::Reachable;
        } else {
            entry.state = NeighborState::Stale;
        }
        let until = if news.answer {
            now + self.reachable_time(now)
        } else {
            Instant::ZERO
        };
        self.table.set_mac(id, news.mac);
        self.table.set_until(id, until);
        self.table.set_deadline(id, None);
        self.flush(id);
    }

    /// Sends what waits for a neighbor that is known now.
    fn flush(&mut self, id: NeighborId) {
        let waiting: Option<Waiting> = self
            .table
            .get_mut(id)
            .and_then(|entry| entry.waiting.take());
        let Some(packets) = waiting else {
            return;
        };
        self.held -= packets.len();
        let mac = self.table.mac(id);
        self.outputs
            .push_back(NeighborOutput::Resolved { mac, packets });
    }

    /// RFC 4861 §6.3.2.
    fn reachable_time(&mut self, now: Instant) -> Duration {
        if self.drawn.is_none_or(|at| now.since(at) >= REDRAW) {
            self.drawn = Some(now);
            self.reachable = self.config.reachable.mul_f64(0.5 + self.rng.f64());
        }
        self.reachable
    }
}
