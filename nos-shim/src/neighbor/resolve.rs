//! Where packets go, and asking where.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::entry::{Key, Use};
use super::{Message, NeighborCache, NeighborState, Output, Resolution};
use crate::arp::Arp;
use crate::drop::DropReason;
use crate::ident::MacAddr;
use crate::ndp::{Envelope, Ndp, solicited_node};
use crate::share::{Account, Standing};
use crate::time::{Duration, Instant};

/// What everybody is given to answer, however many wait for the place. It bounds how often is asked
/// as well: [`super::Limits::unresolved`] times in this time for one owner.
pub(super) const TIME_TO_ANSWER: Duration = Duration::from_millis(250);

impl<T: Copy> NeighborCache<T> {
    /// Where to send a packet of `account` whose next hop is `next_hop`. Asks for it if need be, so
    /// [`Self::poll_output`] should be called afterwards.
    #[inline]
    pub fn resolve(&mut self, next_hop: IpAddr, account: Account, now: Instant) -> Resolution {
        match self.table.find(Key::from(next_hop)) {
            Some(slot) => self.resolve_slot(slot, account, now),
            None => self.resolve_new(next_hop, account, now),
        }
    }

    /// The MAC address of `next_hop`, and until when it may be used without asking again. Whoever
    /// keeps it must forget it when [`Self::version`] changes.
    #[must_use]
    pub fn known(&self, next_hop: IpAddr) -> Option<(MacAddr, Instant)> {
        let entry = self.table.entry(self.table.find(Key::from(next_hop))?);
        Some((entry.known_mac()?, entry.good_until))
    }

    /// A number that grows whenever what is known of a neighbor may have changed.
    #[must_use]
    #[inline]
    pub fn version(&self) -> u64 {
        self.table.version()
    }

    #[inline]
    fn resolve_slot(&mut self, slot: u32, account: Account, now: Instant) -> Resolution {
        let entry = self.table.entry(slot);
        if now < entry.good_until {
            Resolution::Known(entry.mac)
        } else {
            self.use_slot(slot, account, now)
        }
    }

    #[cold]
    fn use_slot(&mut self, slot: u32, account: Account, now: Instant) -> Resolution {
        if self.table.entry(slot).state == Some(NeighborState::Incomplete) {
            return Resolution::Unknown(self.table.id(slot));
        }
        match self.table.change(slot, |entry| entry.on_use(now)) {
            Use::Send(mac) => Resolution::Known(mac),
            Use::Wait => Resolution::Unknown(self.table.id(slot)),
            Use::Begin => self.resolve_again(slot, account, now),
        }
    }

    /// Asks for a neighbor that has failed.
    fn resolve_again(&mut self, slot: u32, account: Account, now: Instant) -> Resolution {
        let address = self.table.entry(slot).key.address();
        let allowed = self.may_ask(address);
        match allowed.and_then(|()| self.make_way(account, now)) {
            Ok(()) => self.begin(slot, account, now),
            Err(reason) => Resolution::Refused(reason),
        }
    }

    #[cold]
    fn resolve_new(&mut self, next_hop: IpAddr, account: Account, now: Instant) -> Resolution {
        let allowed = self.may_ask(next_hop);
        if let Err(reason) = allowed.and_then(|()| self.make_way(account, now)) {
            return Resolution::Refused(reason);
        }
        match self.insert(Key::from(next_hop), now) {
            Some(slot) => self.begin(slot, account, now),
            None => Resolution::Refused(DropReason::NeighborQueueFull),
        }
    }

    /// From which address to ask.
    fn source_for(&self, target: IpAddr) -> Option<IpAddr> {
        let without = || self.proxy.then_some(Ipv4Addr::UNSPECIFIED.into());
        self.addresses.source_for(target).or_else(without)
    }

    fn may_ask(&self, address: IpAddr) -> Result<(), DropReason> {
        let source = self.source_for(address);
        let possible = source.is_some() && self.addresses.may_be_neighbor(address);
        possible.then_some(()).ok_or(DropReason::NeighborFailed)
    }

    /// Makes sure that one more neighbor can be asked for, if need be in place of another that the
    /// same owner has made us ask for.
    fn make_way(&mut self, account: Account, now: Instant) -> Result<(), DropReason> {
        let standing = self.table.standing(account);
        if standing == Standing::Within {
            return Ok(());
        }
        let patience = self.patience();
        let slot = self.table.unanswering_of(account, patience, now);
        self.evict(slot.ok_or(DropReason::NeighborQueueFull)?);
        match standing {
            Standing::Over => Err(DropReason::NeighborQueueFull),
            Standing::Within | Standing::Full => Ok(()),
        }
    }

    fn begin(&mut self, slot: u32, account: Account, now: Instant) -> Resolution {
        self.table.change(slot, |entry| entry.begin(account, now));
        self.ask(slot);
        Resolution::Unknown(self.table.id(slot))
    }

    /// Sends a question to the neighbor, if its MAC address is known, or else to all.
    pub(super) fn ask(&mut self, slot: u32) {
        let entry = self.table.entry(slot);
        let (target, to) = (entry.key.address(), entry.known_mac());
        // Our last address may have gone since.
        if let Some(message) = self.solicitation(target, to) {
            self.outputs.push_back(Output::Send(message));
        }
    }

    fn solicitation(&self, target: IpAddr, to: Option<MacAddr>) -> Option<Message> {
        Some(match (target, self.source_for(target)?) {
            (IpAddr::V4(target), IpAddr::V4(source)) => Message::Arp {
                arp: Arp::request(self.mac, source, target),
                destination: to.unwrap_or(MacAddr::BROADCAST),
            },
            (IpAddr::V6(target), IpAddr::V6(source)) => Message::Ndp {
                ndp: Ndp::NeighborSolicit {
                    target,
                    source_link_layer: Some(self.mac),
                },
                envelope: self.envelope(source, target, to),
            },
            _ => return None,
        })
    }

    /// Around a solicitation: to the group that the target listens to, or to the target alone.
    fn envelope(&self, source: Ipv6Addr, target: Ipv6Addr, to: Option<MacAddr>) -> Envelope {
        match to {
            None => Envelope::to_group(self.mac, source, solicited_node(target)),
            Some(destination_mac) => Envelope {
                source_mac: self.mac,
                destination_mac,
                source,
                destination: target,
            },
        }
    }

    /// Makes a place, if need be at the cost of another neighbor.
    pub(super) fn insert(&mut self, key: Key, now: Instant) -> Option<u32> {
        if let Some(slot) = self.table.failed_long_ago(now) {
            self.evict(slot);
        }
        if self.table.is_full() {
            let patience = self.patience();
            let slot = self.table.dispensable(patience, now)?;
            self.evict(slot);
        }
        self.table.insert(key)
    }

    /// How long a neighbor must have had to answer, for another to get its place. It varies, so that
    /// whoever floods us at a steady pace does not get every place at the moment it is free.
    fn patience(&mut self) -> Duration {
        TIME_TO_ANSWER + TIME_TO_ANSWER.mul_f32(self.random.f32())
    }

    /// Removes a neighbor to make place for another.
    fn evict(&mut self, slot: u32) {
        while let Some(held) = self.parked.pop(&mut self.table.entry_mut(slot).queue) {
            self.drop_held(held, DropReason::NeighborQueueFull);
        }
        self.table.remove(slot);
    }
}
