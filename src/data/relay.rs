//! The container side, without I/O: attachments, what they may send, and the channel to the NOS.
//!
//! # Theory of operation
//!
//! ```text
//! handle_burst ── parse ── responder ── guard ── burst ═ ring ═> NOS
//!                              │ answer
//!                              v
//! poll_transmit <─────── transmit <── adapt ── MAC addresses <═ ring ═ poll_channel
//! ```
//!
//! Frames come in by [`Relay::handle_burst`] and leave by [`Relay::poll_transmit`] or by the
//! channel. Nothing waits but in the transmit queues, and those are empty after each round of
//!
//! ```text
//! for each readable device: relay.handle_burst(id, burst, now)
//! loop
//!     more = relay.poll_channel(now, budget)
//!     while let Some((id, burst)) = relay.poll_transmit(): write burst to the device
//!     until not more, or others want their turn
//! relay.ring()
//! ```
//!
//! # Attachments
//!
//! | state | entered by | the container's packets | packets for it |
//! |---|---|---|---|
//! | registered | [`Relay::attach`] | ARP and NDP answered, others dropped | dropped |
//! | active | the NOS accepts | checked by the accepted configuration | written |
//! | (none) | [`Relay::detach`] | dropped | dropped |
//!
//! [`Relay::update`] leaves an attachment as it is until the NOS accepts the change. The NOS
//! answers registrations in order, so answers to those of an attachment that has gone meanwhile
//! are told from those of its successor by counting.
//!
//! # Accounts
//!
//! [`Relay::ledger`] balances at any time, with [`Relay::held`] as what is held. A question that
//! is answered was consumed, and its answer originated.

mod attachment;
mod side;

use std::collections::VecDeque;

use nos_shim::channel::{Disconnected, Registration, RelayEnd, ToNos, ToRelay, Wake};
use nos_shim::drop::{DropReason, Ledger};
use nos_shim::frame::{Burst, Frame, FramePool};
use nos_shim::id_table::IdTable;
use nos_shim::ident::{AttachmentId, Interface};
use nos_shim::offload::Capabilities;
use nos_shim::packet::{Packet, PacketBurst};
use nos_shim::ports::RegistrationRefused;
use nos_shim::share::Budget;
use nos_shim::time::Instant;
use nos_shim::transmit::TransmitQueues;
use thiserror::Error;

pub use attachment::{AttachmentConfig, AttachmentCounters, AttachmentStatus};

use attachment::{Attachment, Guarded};
use side::Side;

/// Why an attachment cannot be made or changed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RelayError {
    /// The number is another attachment's.
    #[error("{0} exists already")]
    Exists(AttachmentId),
    /// There is none with this number.
    #[error("{0} does not exist")]
    Unknown(AttachmentId),
    /// The NOS does not listen.
    #[error("the NOS cannot be told: {0}")]
    Disconnected(#[from] Disconnected),
}

/// What the NOS has decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayEvent {
    /// The attachment is active, with what was asked for first of all that was not yet answered.
    Accepted(AttachmentId),
    /// Nothing was granted. What the attachment had before still holds; one that had nothing stays
    /// registered until it is detached.
    Refused(AttachmentId, RegistrationRefused),
}

/// The relay at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelaySnapshot {
    /// What became of all packets.
    pub ledger: Ledger,
    /// Frames that wait to be written.
    pub held: usize,
    /// All attachments, by number.
    pub attachments: Vec<AttachmentStatus>,
}

/// The container side. See the [module](self).
#[derive(Debug)]
pub struct Relay {
    channel: RelayEnd,
    pool: FramePool,
    attachments: IdTable<AttachmentId, Box<Attachment>>,
    transmit: TransmitQueues,
    /// [`Self::poll_channel`] takes no burst while this many frames wait to be written.
    transmit_high: usize,
    outgoing: PacketBurst,
    events: VecDeque<RelayEvent>,
    ledger: Ledger,
}

impl Relay {
    /// A relay without attachments. `pool` is where it puts frames back, and takes segments from.
    #[must_use]
    pub fn new(channel: RelayEnd, pool: FramePool) -> Self {
        let budget = Budget::of(pool.capacity());
        Self {
            channel,
            pool,
            attachments: IdTable::new(),
            transmit: TransmitQueues::new(budget.transmit_queue()),
            transmit_high: budget.transmit_high(),
            outgoing: PacketBurst::new(),
            events: VecDeque::new(),
            ledger: Ledger::default(),
        }
    }

    /// Registers an attachment with the NOS. [`Self::poll_event`] tells when it is active.
    ///
    /// # Errors
    ///
    /// [`RelayError`]; nothing has changed then.
    pub fn attach(&mut self, config: AttachmentConfig) -> Result<(), RelayError> {
        let id = config.id;
        if let Some(holder) = self.attachments.holder(id) {
            return Err(RelayError::Exists(holder));
        }
        let attachment = Attachment::new(&config);
        self.channel.send_control(register(config))?;
        self.attachments.insert(id, Box::new(attachment));
        Ok(())
    }

    /// Asks the NOS to accept a change of an attachment. Only the capabilities change at once; for
    /// the rest, [`Self::poll_event`] tells when.
    ///
    /// # Errors
    ///
    /// [`RelayError`]; nothing has changed then.
    pub fn update(&mut self, config: AttachmentConfig) -> Result<(), RelayError> {
        let (id, capabilities) = (config.id, config.capabilities);
        let asked = Guarded::new(&config);
        if self.attachment(id).is_none() {
            return Err(RelayError::Unknown(id));
        }
        self.channel.send_control(register(config))?;
        if let Some(attachment) = self.attachment(id) {
            attachment.asked.push_back(asked);
        }
        self.set_capabilities(id, capabilities)
    }

    /// Removes an attachment, and tells the NOS. What waits for it is dropped.
    ///
    /// # Errors
    ///
    /// [`RelayError::Unknown`], and nothing has changed; or [`RelayError::Disconnected`], and the
    /// attachment is removed all the same.
    pub fn detach(&mut self, id: AttachmentId) -> Result<(), RelayError> {
        self.settle();
        if self.attachments.remove(id).is_none() {
            return Err(RelayError::Unknown(id));
        }
        for frame in self.transmit.drain(id.0) {
            self.drop_frame(frame, DropReason::UnknownAttachment);
        }
        Ok(self.channel.send_control(ToNos::Withdraw(id))?)
    }

    /// Sets what the device towards a container takes, also for frames that wait already.
    ///
    /// # Errors
    ///
    /// [`RelayError::Unknown`].
    pub fn set_capabilities(
        &mut self,
        id: AttachmentId,
        capabilities: Capabilities,
    ) -> Result<(), RelayError> {
        self.settle();
        let attachment = self.attachment(id).ok_or(RelayError::Unknown(id))?;
        let before = core::mem::replace(&mut attachment.capabilities, capabilities);
        if !capabilities.contains(before) {
            self.adapt_waiting(id);
        }
        Ok(())
    }

    /// The oldest decision of the NOS that was not yet polled.
    pub fn poll_event(&mut self) -> Option<RelayEvent> {
        self.events.pop_front()
    }

    /// Takes frames that came from a container, and leaves `burst` empty.
    pub fn handle_burst(&mut self, id: AttachmentId, burst: &mut Burst, _now: Instant) {
        self.ledger.received += burst.len() as u64;
        if let Some(mut side) = self.side(id) {
            return side.handle_burst(burst);
        }
        let frames = burst.len() as u64;
        self.ledger.drops.add(DropReason::UnknownAttachment, frames);
        self.pool.free_all(burst);
    }

    /// Takes what the NOS has sent: control messages, then up to `budget` bursts. Returns whether
    /// there may be more; whoever gets `true` calls again, after [`Self::poll_transmit`].
    pub fn poll_channel(&mut self, _now: Instant, budget: usize) -> bool {
        while let Some(message) = self.channel.recv_control() {
            self.handle_control(message);
        }
        for _ in 0..budget {
            if self.transmit.held() >= self.transmit_high {
                return true;
            }
            match self.channel.recv_burst() {
                Some(burst) => self.deliver_burst(burst),
                None => return false,
            }
        }
        self.channel.depth() > 0
    }

    /// The next frames to be written, and where. Frames that the caller leaves in the burst are
    /// offered again by the next call, adapted to the [capabilities](Self::set_capabilities) that
    /// hold then; [`Self::discard`] drops them.
    ///
    /// Call it until it returns `None`: frames count as sent when the following call finds them
    /// taken.
    pub fn poll_transmit(&mut self) -> Option<(AttachmentId, &mut Burst)> {
        self.settle();
        let (owner, burst) = self.transmit.lend()?;
        Some((AttachmentId(owner), burst))
    }

    /// Drops what the caller left in the burst that [`Self::poll_transmit`] returned last.
    pub fn discard(&mut self, reason: DropReason) {
        let Some((owner, mut left)) = self.transmit.take_unsent() else {
            return;
        };
        let frames = left.len() as u64;
        self.ledger.drops.add(reason, frames);
        if let Some(attachment) = self.attachment(AttachmentId(owner)) {
            attachment.counters.drops.add(reason, frames);
        }
        self.pool.free_all(&mut left);
    }

    /// Wakes the NOS if it sleeps and something was sent since the last call.
    pub fn ring(&mut self) {
        self.channel.ring();
    }

    /// Sets how the NOS wakes this side. The first call counts.
    pub fn set_waker(&mut self, waker: Box<dyn Wake>) {
        self.channel.set_waker(waker);
    }

    /// Announces that this side is about to block. Returns `false` if it must not, because there
    /// is something to do.
    pub fn try_sleep(&mut self) -> bool {
        self.transmit.held() == 0 && self.events.is_empty() && self.channel.try_sleep()
    }

    /// Whether the ring to the NOS takes another burst.
    #[must_use]
    #[inline]
    pub fn has_room(&self) -> bool {
        self.channel.has_room()
    }

    /// Announces that this side is about to block until there is room in the ring to the NOS.
    /// Returns `false` if it must not, because there is some.
    pub fn try_await_room(&mut self) -> bool {
        self.channel.try_await_room()
    }

    /// Ends what [`Self::try_sleep`] and [`Self::try_await_room`] announced.
    pub fn awake(&mut self) {
        self.channel.awake();
    }

    /// What became of all packets. Frames that [`Self::poll_transmit`] lent out are still held.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Frames that wait to be written.
    #[must_use]
    pub fn held(&self) -> usize {
        self.transmit.held()
    }

    /// Bursts of the NOS that wait in the ring.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.channel.depth()
    }

    /// Bursts that each ring holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.channel.capacity()
    }

    /// A copy of all that can be shown.
    #[must_use]
    pub fn snapshot(&self) -> RelaySnapshot {
        let attachments = self.attachments.iter();
        RelaySnapshot {
            ledger: self.ledger,
            held: self.held(),
            attachments: attachments
                .map(|(id, attachment)| attachment.status(id))
                .collect(),
        }
    }

    fn attachment(&mut self, id: AttachmentId) -> Option<&mut Attachment> {
        self.attachments.get_mut(id).map(Box::as_mut)
    }

    /// An attachment, with all that is needed to move its packets.
    #[inline]
    fn side(&mut self, id: AttachmentId) -> Option<Side<'_>> {
        Some(Side {
            id,
            attachment: self.attachments.get_mut(id)?,
            transmit: &mut self.transmit,
            outgoing: &mut self.outgoing,
            channel: &mut self.channel,
            pool: &mut self.pool,
            ledger: &mut self.ledger,
        })
    }

    fn handle_control(&mut self, message: ToRelay) {
        let id = match message {
            ToRelay::Accepted(id) | ToRelay::Refused(id, _) => id,
        };
        // Of an attachment that has gone, or of the one before it with this index: nobody asks.
        let Some(attachment) = self.attachment(id) else {
            return;
        };
        attachment.answered(matches!(message, ToRelay::Accepted(_)));
        let event = match message {
            ToRelay::Accepted(id) => RelayEvent::Accepted(id),
            ToRelay::Refused(id, refused) => RelayEvent::Refused(id, refused),
        };
        self.events.push_back(event);
    }

    /// Queues packets from the NOS for their containers.
    fn deliver_burst(&mut self, burst: PacketBurst) {
        self.ledger.received += burst.len() as u64;
        let mut packets = burst.into_iter();
        while let Some(first) = packets.as_slice().first() {
            let to = first.frame().interface();
            let run = packets.as_slice().iter();
            // In split mode the headers are still in the other core's cache.
            let run = run.inspect(|packet| packet.frame().prefetch());
            let run = run.take_while(|packet| packet.frame().interface() == to);
            let count = run.count();
            self.deliver_run(to, packets.by_ref().take(count));
        }
    }

    /// Packets for one attachment.
    #[inline]
    fn deliver_run(&mut self, to: Option<Interface>, packets: impl Iterator<Item = Packet>) {
        let side = match to {
            Some(Interface::Attachment(id)) => self.side(id).filter(Side::is_active),
            _ => None,
        };
        match side {
            Some(mut side) => packets.for_each(|packet| side.deliver(packet)),
            None => packets.for_each(|packet| {
                self.drop_frame(packet.into_frame(), DropReason::UnknownAttachment);
            }),
        }
    }

    /// Counts a packet that belongs to no attachment as dropped.
    #[cold]
    fn drop_frame(&mut self, frame: Frame, reason: DropReason) {
        self.ledger.drop(reason);
        self.pool.free(frame);
    }

    /// Counts what became of the burst that was lent out.
    fn settle(&mut self) {
        let Some(sent) = self.transmit.settle() else {
            return;
        };
        self.ledger.sent += sent.frames;
        if let Some(attachment) = self.attachment(AttachmentId(sent.interface)) {
            attachment.counters.tx_packets += sent.frames;
            attachment.counters.tx_octets += sent.octets;
        }
    }

    /// Makes of the frames that wait for an attachment what its device can take.
    #[cold]
    fn adapt_waiting(&mut self, id: AttachmentId) {
        let frames = self.transmit.drain(id.0);
        if let Some(mut side) = self.side(id) {
            frames.into_iter().for_each(|frame| side.adapt(frame));
        }
    }
}

fn register(config: AttachmentConfig) -> ToNos {
    ToNos::Register(Registration {
        attachment: config.id,
        name: config.name,
        vrf: config.vrf,
        addresses: config.addresses,
        claims: config.claims,
        router: config.relay_mac.link_local(),
    })
}

#[cfg(test)]
mod tests;
