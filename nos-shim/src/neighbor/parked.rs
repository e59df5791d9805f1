//! Packets that wait for their neighbors: one queue for each, one order of age for all.

use crate::links::{Links, List};
use crate::packet::Packet;

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

#[derive(Debug)]
struct Held<T> {
    packet: Packet,
    tag: T,
    neighbor: u32,
}

/// All packets that wait. Their places are used again and again.
#[derive(Debug)]
pub(super) struct Parked<T> {
    places: Vec<Option<Held<T>>>,
    free: Vec<u32>,
    queues: Links,
    ages: Links,
    by_age: List,
}

impl<T> Parked<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            places: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            queues: Links::new(capacity),
            ages: Links::new(capacity),
            by_age: List::EMPTY,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// The neighbor whose first packet has waited longest of all.
    pub(super) fn longest_waiting(&self) -> Option<u32> {
        let place = self.by_age.first()?;
        let held = self.places.get(place as usize)?.as_ref();
        held.map(|held| held.neighbor)
    }

    /// Appends a packet to the queue of `neighbor`.
    pub(super) fn push(&mut self, queue: &mut Queue, neighbor: u32, packet: Packet, tag: T) {
        let held = Some(Held {
            packet,
            tag,
            neighbor,
        });
        let place = if let Some(place) = self.free.pop() {
            self.places[place as usize] = held;
            place
        } else {
            self.places.push(held);
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        };
        self.queues.push_back(&mut queue.list, place);
        self.ages.push_back(&mut self.by_age, place);
        queue.len += 1;
    }

    /// Takes the first packet of a queue.
    pub(super) fn pop(&mut self, queue: &mut Queue) -> Option<(Packet, T)> {
        let place = queue.list.first()?;
        self.queues.remove(&mut queue.list, place);
        self.ages.remove(&mut self.by_age, place);
        queue.len -= 1;
        self.free.push(place);
        let held = self.places.get_mut(place as usize)?.take()?;
        Some((held.packet, held.tag))
    }
}
