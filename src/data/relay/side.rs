//! The packet paths of one attachment.

use nos_shim::channel::RelayEnd;
use nos_shim::drop::{DropReason, Ledger};
use nos_shim::frame::{Burst, Frame, FramePool, octets};
use nos_shim::ident::{AttachmentId, Interface};
use nos_shim::offload::adapt;
use nos_shim::packet::{Packet, PacketBurst, Rejected};
use nos_shim::time::Instant;
use nos_shim::transmit::TransmitQueues;

use crate::data::responder::Disposition;

use super::attachment::Attachment;
use super::refusal::Refuser;

/// One attachment, with all that is needed to move its packets.
pub(super) struct Side<'a> {
    pub(super) id: AttachmentId,
    pub(super) attachment: &'a mut Attachment,
    pub(super) transmit: &'a mut TransmitQueues,
    /// Packets to be sent to the NOS; empty between calls.
    pub(super) outgoing: &'a mut PacketBurst,
    pub(super) channel: &'a mut RelayEnd,
    pub(super) refuser: &'a mut Refuser,
    pub(super) pool: &'a mut FramePool,
    pub(super) ledger: &'a mut Ledger,
}

impl Side<'_> {
    /// Whether the NOS has accepted the attachment.
    #[inline]
    pub(super) fn is_active(&self) -> bool {
        self.attachment.is_active()
    }

    /// Judges frames from the container, and sends those that are for the NOS.
    pub(super) fn handle_burst(&mut self, burst: &mut Burst, now: Instant) {
        let counters = &mut self.attachment.counters;
        counters.rx_packets += burst.len() as u64;
        counters.rx_octets += octets(burst);
        for frame in burst.drain(..) {
            match self.attachment.judge(frame) {
                Disposition::Forward(packet) => self.forward(packet),
                Disposition::OnLink(packet) => self.send_later(packet),
                Disposition::Reply(frame) => self.reply(frame),
                Disposition::Consumed(frame) => self.consume(frame),
                Disposition::Drop(frame, reason) => self.refuse(frame, reason, now),
            }
        }
        self.send();
    }

    #[inline]
    fn forward(&mut self, mut packet: Packet) {
        packet.set_vrf(self.attachment.vrf());
        self.send_later(packet);
    }

    #[inline]
    fn send_later(&mut self, mut packet: Packet) {
        packet.set_interface(Interface::Attachment(self.id));
        // There is room: no burst is longer than another.
        self.outgoing.push(packet);
    }

    fn reply(&mut self, frame: Frame) {
        self.ledger.consumed += 1;
        self.ledger.originated += 1;
        self.queue(frame);
    }

    fn consume(&mut self, frame: Frame) {
        self.ledger.consumed += 1;
        self.pool.free(frame);
    }

    /// Sends packets to the NOS, or drops them if the ring is full.
    fn send(&mut self) {
        let count = self.outgoing.len() as u64;
        if self.channel.send_burst(self.outgoing) {
            self.ledger.sent += count;
            return;
        }
        let reason = match self.channel.is_deserted() {
            true => DropReason::NosGone,
            false => DropReason::RingFull,
        };
        while let Some(packet) = self.outgoing.pop() {
            self.drop(packet.into_frame(), reason);
        }
    }

    /// Queues a packet from the NOS.
    #[inline]
    pub(super) fn deliver(&mut self, mut packet: Packet) {
        let link = self.attachment.link();
        packet.set_link(link.mac(), link.relay_mac());
        self.queue_adapted(packet);
    }

    /// Queues a frame that was made fit for what the device took before.
    pub(super) fn adapt(&mut self, frame: Frame) {
        match Packet::parse(frame) {
            Ok(packet) => self.queue_adapted(packet),
            // ARP, which any device takes.
            Err(Rejected { frame, .. }) => self.queue(frame),
        }
    }

    #[inline]
    fn queue_adapted(&mut self, packet: Packet) {
        let capabilities = self.attachment.capabilities;
        if capabilities.take(packet.frame().offload()) {
            self.queue(packet.into_frame());
        } else {
            self.queue_in_software(packet);
        }
    }

    #[cold]
    fn queue_in_software(&mut self, packet: Packet) {
        let Self {
            id,
            attachment,
            transmit,
            pool,
            ledger,
            ..
        } = self;
        let mut full = 0;
        let adapted = adapt(packet, attachment.capabilities, pool, &mut |packet| {
            // What does not fit is freed here, with an atomic operation: it is rare.
            if transmit.push(id.0, packet.into_frame()).is_err() {
                full += 1;
            }
        });
        if let Some(dropped) = adapted.dropped {
            let drops = &mut attachment.counters.drops;
            drops.add(dropped.reason, dropped.packets);
        }
        adapted.record(ledger);
        attachment.counters.drops.add(DropReason::DeviceFull, full);
        ledger.drops.add(DropReason::DeviceFull, full);
    }

    #[inline]
    fn queue(&mut self, frame: Frame) {
        if let Err(frame) = self.transmit.push(self.id.0, frame) {
            self.drop(frame, DropReason::DeviceFull);
        }
    }

    /// Drops a frame from the container, which may have to be told.
    #[cold]
    fn refuse(&mut self, frame: Frame, reason: DropReason, now: Instant) {
        use DropReason::{IcmpUnmatched, SourcePort, SourceProtocol};
        let looked_at = matches!(reason, SourcePort | SourceProtocol | IcmpUnmatched);
        if !(looked_at && self.is_active()) {
            return self.drop(frame, reason);
        }
        // Parsed once more, so that what may pass carries nothing along for this.
        let packet = match Packet::parse(frame) {
            Ok(packet) => packet,
            Err(Rejected { frame, .. }) => return self.drop(frame, reason),
        };
        if reason == SourcePort {
            self.tell_of_port(&packet, now);
        } else if self.attachment.speaks_to_itself(&packet) {
            return self.deliver(packet);
        }
        self.drop(packet.into_frame(), reason);
    }

    /// Tells the container, and the control thread, of a packet from a foreign port.
    fn tell_of_port(&mut self, packet: &Packet, now: Instant) {
        let Self {
            attachment,
            refuser,
            pool,
            ..
        } = self;
        let link = attachment.link();
        let (mac, relay_mac, router) = (link.mac(), link.relay_mac(), link.relay_link_local());
        let limits = &mut attachment.refusals;
        refuser.tell(self.id, packet, limits, now);
        if let Some(mut error) = refuser.answer(packet, router, limits, pool, now) {
            error.set_link(mac, relay_mac);
            self.ledger.originated += 1;
            self.queue(error.into_frame());
        }
    }

    #[cold]
    fn drop(&mut self, frame: Frame, reason: DropReason) {
        self.ledger.drop(reason);
        self.attachment.counters.drops.add(reason, 1);
        self.pool.free(frame);
    }
}
