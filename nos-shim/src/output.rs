//! What leaves the NOS: towards devices, towards the relay, to the operator; and the accounts of it.

use std::collections::VecDeque;

use core::net::IpAddr;

use crate::channel::{NosEnd, NosEvent, ToRelay};
use crate::drop::{DropReason, Ledger};
use crate::frame::{Burst, Frame, FramePool};
use crate::id_table::IdTable;
use crate::ident::{AttachmentId, Interface, MacAddr, UplinkId};
use crate::offload::{Capabilities, adapt};
use crate::packet::{Packet, PacketBurst, Rejected};
use crate::share::Budget;
use crate::transmit::TransmitQueues;
use crate::uplink::UplinkCounters;

/// Events that wait for room towards the relay at most; others are not told.
const EVENTS: usize = 64;

/// See the [module](self).
pub(crate) struct Output {
    pub(crate) channel: NosEnd,
    pub(crate) pool: FramePool,
    pub(crate) transmit: TransmitQueues,
    /// Frames that wait for devices above which nothing more is taken from the relay.
    transmit_high: usize,
    /// Packets for containers, not yet in the ring.
    pub(crate) to_relay: PacketBurst,
    /// Segments and fragments on their way; empty between packets.
    pub(crate) pieces: VecDeque<Packet>,
    pub(crate) ledger: Ledger,
    pub(crate) counters: IdTable<UplinkId, UplinkCounters>,
    events: VecDeque<NosEvent>,
}

impl Output {
    pub(crate) fn new(channel: NosEnd, pool: FramePool) -> Self {
        let budget = Budget::of(pool.capacity());
        Self {
            channel,
            pool,
            transmit: TransmitQueues::new(budget.transmit_queue()),
            transmit_high: budget.transmit_high(),
            to_relay: PacketBurst::new(),
            pieces: VecDeque::new(),
            ledger: Ledger::default(),
            counters: IdTable::new(),
            events: VecDeque::new(),
        }
    }

    /// Whether so much waits for devices that nothing more is to be taken from the relay.
    #[inline]
    pub(crate) fn is_congested(&self) -> bool {
        self.transmit.held() >= self.transmit_high
    }

    /// Drops a packet and counts it.
    pub(crate) fn discard(&mut self, packet: Packet, reason: DropReason) {
        self.discard_frame(packet.into_frame(), reason);
    }

    /// Drops a frame and counts it.
    pub(crate) fn discard_frame(&mut self, frame: Frame, reason: DropReason) {
        self.pool.free(frame);
        self.ledger.drop(reason);
    }

    /// Queues a frame for an uplink's device.
    #[inline]
    pub(crate) fn queue(&mut self, frame: Frame, id: UplinkId) {
        if let Err(frame) = self.transmit.push(id.0, frame) {
            self.discard_frame(frame, DropReason::DeviceFull);
        }
    }

    /// Queues a packet for an uplink's device, as whatever the device takes.
    #[inline]
    pub(crate) fn queue_adapted(
        &mut self,
        packet: Packet,
        id: UplinkId,
        capabilities: Capabilities,
    ) {
        if capabilities.take(packet.frame().offload()) {
            return self.queue(packet.into_frame(), id);
        }
        let Self {
            pool,
            pieces,
            ledger,
            ..
        } = self;
        adapt(packet, capabilities, pool, &mut |piece| {
            pieces.push_back(piece);
        })
        .record(ledger);
        while let Some(piece) = self.pieces.pop_front() {
            self.queue(piece.into_frame(), id);
        }
    }

    /// Hands a packet to a container, as it is.
    #[inline]
    pub(crate) fn push_to_relay(&mut self, mut packet: Packet, id: AttachmentId) {
        packet.set_interface(Interface::Attachment(id));
        if self.to_relay.is_full() {
            self.flush_to_relay();
        }
        self.to_relay.push(packet);
    }

    /// Sends what waits for the relay. A full ring drops it.
    pub(crate) fn flush_to_relay(&mut self) {
        if !self.events.is_empty() {
            self.tell_events();
        }
        let count = self.to_relay.len() as u64;
        if self.channel.send_burst(&mut self.to_relay) {
            self.ledger.sent += count;
            return;
        }
        self.ledger.drops.add(DropReason::RingFull, count);
        for packet in self.to_relay.drain(..) {
            self.pool.free(packet.into_frame());
        }
    }

    /// The next burst for a device.
    pub(crate) fn lend(&mut self) -> Option<(UplinkId, &mut Burst)> {
        self.settle();
        let (uplink, burst) = self.transmit.lend()?;
        Some((UplinkId(uplink), burst))
    }

    /// Counts what a device took of the burst that was lent out.
    pub(crate) fn settle(&mut self) {
        let Some(sent) = self.transmit.settle() else {
            return;
        };
        self.ledger.sent += sent.frames;
        if let Some(counters) = self.counters.get_mut(UplinkId(sent.interface)) {
            counters.tx_packets += sent.frames;
            counters.tx_octets += sent.octets;
        }
    }

    /// Drops what was left in the burst that was lent out.
    pub(crate) fn discard_unsent(&mut self, reason: DropReason) {
        if let Some((_, mut left)) = self.transmit.take_unsent() {
            self.ledger.drops.add(reason, left.len() as u64);
            self.pool.free_all(&mut left);
        }
    }

    /// Drops what waits for the device of an uplink that is no more, and its counters.
    pub(crate) fn forget_uplink(&mut self, id: UplinkId) {
        self.drop_waiting(id);
        self.counters.remove(id);
    }

    /// Drops what waits for the device of an uplink.
    pub(crate) fn drop_waiting(&mut self, id: UplinkId) {
        // What its device left of a burst is in the queue then.
        self.settle();
        for frame in self.transmit.drain(id.0) {
            self.discard_frame(frame, DropReason::DeviceGone);
        }
    }

    /// Adapts what waits for a device that turned out to take less.
    pub(crate) fn adapt_waiting(&mut self, id: UplinkId, capabilities: Capabilities) {
        for frame in self.transmit.drain(id.0) {
            match Packet::parse(frame) {
                Ok(packet) => self.queue_adapted(packet, id, capabilities),
                // ARP needs no adapting, and nothing else is here that was not parsed before.
                Err(Rejected { frame, .. }) => self.queue(frame, id),
            }
        }
    }

    /// Counts that somebody else uses an address of the NOS, and tells if it is `news`.
    pub(crate) fn report_conflict(
        &mut self,
        uplink: UplinkId,
        address: IpAddr,
        mac: MacAddr,
        news: bool,
    ) {
        if let Some(counters) = self.counters.get_mut(uplink) {
            counters.address_conflicts += 1;
        }
        if news {
            self.tell(NosEvent::AddressConflict {
                uplink,
                address,
                mac,
            });
        }
    }

    /// Has the relay told of something with the next packets, if that finds room.
    #[cold]
    pub(crate) fn tell(&mut self, event: NosEvent) {
        if self.takes_news() {
            self.events.push_back(event);
        }
    }

    /// Whether another event finds room.
    pub(crate) fn takes_news(&self) -> bool {
        self.events.len() < EVENTS
    }

    /// Tells the relay what happened.
    #[cold]
    fn tell_events(&mut self) {
        while let Some(&event) = self.events.front() {
            if self.channel.send_control(ToRelay::Event(event)).is_err() {
                return;
            }
            self.events.pop_front();
        }
    }

    /// Packets that wait.
    pub(crate) fn held(&self) -> usize {
        self.transmit.held() + self.to_relay.len()
    }
}
