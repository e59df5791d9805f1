//! Packets that wait for their neighbors.
//!
//! A packet is in three orders of age, so that each that may have to leave is found at once:
//!
//! - among all that wait for its neighbor: in this order they are sent;
//! - among those of them that its owner has, the *lane*: an owner has only so many for one neighbor;
//! - among all that its owner has here: an owner that holds too many loses its oldest.

use core::hash::BuildHasher;

use foldhash::quality::RandomState;

use crate::index::Index;
use crate::links::{Links, List};
use crate::packet::Packet;
use crate::share::Account;

/// The packets that wait for one neighbor, in order.
#[derive(Debug)]
pub(super) struct Queue {
    list: List,
    len: usize,
}

impl Queue {
    pub(super) const EMPTY: Self = Self {
        list: List::EMPTY,
        len: 0,
    };

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

/// A packet that has left its place.
#[derive(Debug)]
pub(super) struct Held<T> {
    pub(super) packet: Packet,
    pub(super) tag: T,
    pub(super) account: Account,
    neighbor: u32,
    lane: u32,
}

/// What one owner has waiting for one neighbor.
#[derive(Debug)]
struct Lane {
    neighbor: u32,
    account: Account,
    list: List,
    len: usize,
}

/// All packets that wait. Places and lanes are used again and again.
#[derive(Debug)]
pub(super) struct Parked<T> {
    places: Vec<Option<Held<T>>>,
    free: Vec<u32>,
    queues: Links,
    ages: Links,
    /// By account, oldest first.
    by_account: Vec<List>,
    lanes: Vec<Lane>,
    free_lanes: Vec<u32>,
    lane_index: Index,
    lane_links: Links,
    hasher: RandomState,
}

impl<T> Parked<T> {
    /// Places for up to `capacity` packets.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            places: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            queues: Links::new(capacity),
            ages: Links::new(capacity),
            by_account: Vec::new(),
            // No lane is empty, so there are no more lanes than packets.
            lanes: Vec::with_capacity(capacity),
            free_lanes: Vec::with_capacity(capacity),
            lane_index: Index::new(capacity),
            lane_links: Links::new(capacity),
            hasher: RandomState::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Packets of one owner that wait for one neighbor.
    pub(super) fn len_of(&self, neighbor: u32, account: Account) -> usize {
        let lane = self.lane(neighbor, account);
        lane.map_or(0, |lane| self.lanes[lane as usize].len)
    }

    /// The neighbor for which the oldest packet of an owner waits.
    pub(super) fn oldest_waits_for(&self, account: Account) -> Option<u32> {
        let place = self.by_account.get(account.index())?.first()?;
        let held = self.places.get(place as usize)?.as_ref();
        held.map(|held| held.neighbor)
    }

    /// Appends a packet to the queue of `neighbor`. There must be room.
    pub(super) fn push(
        &mut self,
        queue: &mut Queue,
        neighbor: u32,
        packet: Packet,
        tag: T,
        account: Account,
    ) {
        let lane = self.lane(neighbor, account);
        let lane = lane.unwrap_or_else(|| self.open_lane(neighbor, account));
        let place = self.occupy(Held {
            packet,
            tag,
            account,
            neighbor,
            lane,
        });
        if self.by_account.len() <= account.index() {
            self.by_account.resize(account.index() + 1, List::EMPTY);
        }
        let of_account = &mut self.by_account[account.index()];
        self.ages.push_back(of_account, place);
        let Lane { list, len, .. } = &mut self.lanes[lane as usize];
        self.lane_links.push_back(list, place);
        *len += 1;
        self.queues.push_back(&mut queue.list, place);
        queue.len += 1;
    }

    fn occupy(&mut self, held: Held<T>) -> u32 {
        if let Some(place) = self.free.pop() {
            self.places[place as usize] = Some(held);
            return place;
        }
        self.places.push(Some(held));
        u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
    }

    /// Takes the first packet of a queue.
    pub(super) fn pop(&mut self, queue: &mut Queue) -> Option<Held<T>> {
        let place = queue.list.first()?;
        self.take(queue, place)
    }

    /// Takes the oldest packet that an owner has in the queue of `neighbor`.
    pub(super) fn pop_of(
        &mut self,
        queue: &mut Queue,
        neighbor: u32,
        account: Account,
    ) -> Option<Held<T>> {
        let lane = self.lane(neighbor, account)?;
        let place = self.lanes.get(lane as usize)?.list.first()?;
        self.take(queue, place)
    }

    fn take(&mut self, queue: &mut Queue, place: u32) -> Option<Held<T>> {
        let held = self.places.get_mut(place as usize)?.take()?;
        self.free.push(place);
        self.queues.remove(&mut queue.list, place);
        queue.len -= 1;
        let of_account = &mut self.by_account[held.account.index()];
        self.ages.remove(of_account, place);
        let lane = &mut self.lanes[held.lane as usize];
        self.lane_links.remove(&mut lane.list, place);
        lane.len -= 1;
        if lane.len == 0 {
            self.close_lane(held.lane);
        }
        Some(held)
    }

    fn lane(&self, neighbor: u32, account: Account) -> Option<u32> {
        let is_it = |number| {
            let lane = self.lanes.get(number as usize);
            lane.is_some_and(|lane| lane.neighbor == neighbor && lane.account == account)
        };
        self.lane_index
            .find(self.hasher.hash_one((neighbor, account)), is_it)
    }

    fn open_lane(&mut self, neighbor: u32, account: Account) -> u32 {
        let lane = Lane {
            neighbor,
            account,
            list: List::EMPTY,
            len: 0,
        };
        let number = if let Some(number) = self.free_lanes.pop() {
            self.lanes[number as usize] = lane;
            number
        } else {
            self.lanes.push(lane);
            u32::try_from(self.lanes.len() - 1).unwrap_or(u32::MAX)
        };
        let hash = self.hasher.hash_one((neighbor, account));
        self.lane_index.insert(hash, number);
        number
    }

    fn close_lane(&mut self, number: u32) {
        let Lane {
            neighbor, account, ..
        } = self.lanes[number as usize];
        let hash = self.hasher.hash_one((neighbor, account));
        self.lane_index.remove(hash, number);
        self.free_lanes.push(number);
    }
}
