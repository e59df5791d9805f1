//! The container side, without I/O: attachments, what they may send, and the channel to the NOS.
//!
//! # Theory of operation
//!
//! ```text
//! handle_burst ── parse ── responder ── guard ── burst ═ ring ═> NOS
//!                              │ answer   │ ICMP error
//!                              v          v
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
//! | registered | [`Relay::exchange`] names it first | ARP and NDP answered, others dropped | dropped |
//! | active | the NOS accepts | checked by the accepted configuration | written |
//! | (none) | an exchange detaches it | dropped | dropped |
//!
//! An exchange attaches, changes and detaches any number of attachments, all of them or none:
//! each stays as it is until the NOS accepts. One that only detaches cannot be refused and holds at
//! once. Requests have numbers, by which the NOS's answers are matched with what was asked.
//!
//! # Foreign ports
//!
//! Who opens a flow from a port that is not its own hears at once that this is prohibited, by an ICMP
//! error, and [`RelayEvent::ForeignPort`] tells the control side of it now and then.
//!
//! # Accounts
//!
//! [`Relay::ledger`] balances at any time, with [`Relay::held`] as what is held. A question that
//! is answered was consumed, and its answer originated.

mod attachment;
mod refusal;
mod side;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use nos_shim::channel::{Disconnected, Exchange, RelayEnd, RequestId, ToNos, ToRelay, Wake};
use nos_shim::drop::{DropReason, Ledger};
use nos_shim::frame::{Burst, Frame, FramePool};
use nos_shim::id_table::IdTable;
use nos_shim::ident::{AttachmentId, Interface, VrfId};
use nos_shim::offload::Capabilities;
use nos_shim::packet::{Packet, PacketBurst};
use nos_shim::page::Page;
use nos_shim::ports::{ExchangeRefused, Registration, Transport};
use nos_shim::services::ServiceConfig;
use nos_shim::share::Budget;
use nos_shim::time::Instant;
use nos_shim::transmit::TransmitQueues;
use thiserror::Error;

pub use attachment::{AttachmentConfig, AttachmentCounters, AttachmentStatus};

use attachment::{Attachment, Guarded};
use refusal::Refuser;
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
    /// One exchange names it twice.
    #[error("{0} is in one exchange twice")]
    Twice(AttachmentId),
    /// The NOS does not listen.
    #[error("the NOS cannot be told: {0}")]
    Disconnected(#[from] Disconnected),
}

/// A change of attachments, which holds as a whole or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachmentExchange {
    /// Attachments that go.
    pub detach: Vec<AttachmentId>,
    /// Attachments that come, and those that change. A new one must have an index that is free
    /// before the exchange.
    pub attach: Vec<AttachmentConfig>,
    /// All that the NOS itself offers in a VRF from then on; `None` changes nothing of it.
    pub services: Option<(VrfId, ServiceConfig)>,
}

/// What the NOS has decided, and what a container was refused. Every request is answered once, unless
/// all its attachments have been detached meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayEvent {
    /// What was asked for holds: its attachments are active.
    Accepted(RequestId),
    /// Nothing was granted. What was before still holds; an attachment that had nothing stays
    /// registered until it is detached.
    Refused(RequestId, ExchangeRefused),
    /// A container sends from a port that is not its own. It is told so once in a while, and not for
    /// every packet.
    ForeignPort {
        /// Whose packet it was.
        attachment: AttachmentId,
        /// Of which protocol.
        transport: Transport,
        /// The port that it came from.
        port: u16,
        /// How many packets of this attachment came from foreign ports since the last such event, this
        /// one included.
        dropped: u64,
    },
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
    /// What was asked of the NOS and not yet answered.
    asked: BTreeMap<RequestId, Asked>,
    last_request: RequestId,
    events: VecDeque<RelayEvent>,
    refuser: Refuser,
    ledger: Ledger,
}

/// What happens when the NOS accepts a request.
#[derive(Debug, Default)]
struct Asked {
    detach: Vec<AttachmentId>,
    guards: Vec<(AttachmentId, Guarded)>,
    /// It changes what the NOS itself offers.
    services: bool,
}

impl Asked {
    /// Leaves out an attachment that has gone. Returns whether there is anything left of what was
    /// asked.
    fn retain_others(&mut self, gone: AttachmentId) -> bool {
        let before = self.guards.len();
        self.guards.retain(|(id, _)| *id != gone);
        let untouched = self.guards.len() == before;
        untouched || self.services || !(self.guards.is_empty() && self.detach.is_empty())
    }
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
            asked: BTreeMap::new(),
            last_request: RequestId::default(),
            events: VecDeque::new(),
            refuser: Refuser::default(),
            ledger: Ledger::default(),
        }
    }

    /// Asks the NOS for a change of attachments. [`Self::poll_event`] tells what it decides.
    ///
    /// Devices say what they take by [`Self::set_capabilities`]; no change of an attachment touches
    /// that. One that is new takes nothing yet.
    ///
    /// # Errors
    ///
    /// [`RelayError`]; nothing has changed then, but that after [`RelayError::Disconnected`] an
    /// exchange that only detaches has done so.
    pub fn exchange(&mut self, exchange: AttachmentExchange) -> Result<RequestId, RelayError> {
        self.check(&exchange)?;
        let AttachmentExchange {
            detach,
            attach,
            services,
        } = exchange;
        let request = self.last_request.next();
        let mut asked = Asked {
            services: services.is_some(),
            ..Asked::default()
        };
        if attach.is_empty() && services.is_none() {
            // It cannot be refused.
            detach.iter().for_each(|&id| self.remove(id));
        } else {
            asked.detach.clone_from(&detach);
        }
        let guards = attach
            .iter()
            .map(|config| (config.id, Guarded::new(config)));
        asked.guards.extend(guards);
        let wanted = Exchange {
            withdraw: detach,
            register: attach.iter().map(registration).collect(),
            services,
        };
        self.channel
            .send_control(ToNos::Exchange(request, wanted))?;
        self.last_request = request;
        self.asked.insert(request, asked);
        for config in &attach {
            if self.attachments.get(config.id).is_none() {
                let attachment = Box::new(Attachment::new(config));
                self.attachments.insert(config.id, attachment);
            }
        }
        Ok(request)
    }

    /// Whether an exchange makes sense.
    fn check(&self, exchange: &AttachmentExchange) -> Result<(), RelayError> {
        let mut named = BTreeSet::new();
        for &id in &exchange.detach {
            self.attachments.get(id).ok_or(RelayError::Unknown(id))?;
            if !named.insert(id.index()) {
                return Err(RelayError::Twice(id));
            }
        }
        for AttachmentConfig { id, .. } in &exchange.attach {
            let holder = self.attachments.holder(*id);
            if let Some(holder) = holder.filter(|holder| holder != id) {
                return Err(RelayError::Exists(holder));
            }
            if !named.insert(id.index()) {
                return Err(RelayError::Twice(*id));
            }
        }
        Ok(())
    }

    /// Registers an attachment with the NOS: an [exchange](Self::exchange) of one that is new.
    ///
    /// # Errors
    ///
    /// [`RelayError`]; nothing has changed then.
    pub fn attach(&mut self, config: AttachmentConfig) -> Result<RequestId, RelayError> {
        if let Some(holder) = self.attachments.holder(config.id) {
            return Err(RelayError::Exists(holder));
        }
        self.exchange_one(config)
    }

    /// Asks the NOS to accept a change of an attachment: an [exchange](Self::exchange) of one that
    /// is there.
    ///
    /// # Errors
    ///
    /// [`RelayError`]; nothing has changed then.
    pub fn update(&mut self, config: AttachmentConfig) -> Result<RequestId, RelayError> {
        if self.attachments.get(config.id).is_none() {
            return Err(RelayError::Unknown(config.id));
        }
        self.exchange_one(config)
    }

    fn exchange_one(&mut self, config: AttachmentConfig) -> Result<RequestId, RelayError> {
        self.exchange(AttachmentExchange {
            attach: vec![config],
            ..AttachmentExchange::default()
        })
    }

    /// Removes an attachment at once, and tells the NOS. What waits for it is dropped.
    ///
    /// # Errors
    ///
    /// [`RelayError::Unknown`], and nothing has changed; or [`RelayError::Disconnected`], and the
    /// attachment is removed all the same.
    pub fn detach(&mut self, id: AttachmentId) -> Result<RequestId, RelayError> {
        self.exchange(AttachmentExchange {
            detach: vec![id],
            ..AttachmentExchange::default()
        })
    }

    /// Removes an attachment, what waits for it, and what was asked for it.
    fn remove(&mut self, id: AttachmentId) {
        self.settle();
        if self.attachments.remove(id).is_none() {
            return;
        }
        for frame in self.transmit.drain(id.0) {
            self.drop_frame(frame, DropReason::UnknownAttachment);
        }
        // Nobody waits for an answer about attachments that are gone.
        self.asked.retain(|_, asked| asked.retain_others(id));
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

    /// The oldest decision of the NOS that was not yet polled; then what containers were refused.
    pub fn poll_event(&mut self) -> Option<RelayEvent> {
        let decided = self.events.pop_front();
        decided.or_else(|| self.refuser.events.pop_front())
    }

    /// Takes frames that came from a container, and leaves `burst` empty.
    pub fn handle_burst(&mut self, id: AttachmentId, burst: &mut Burst, now: Instant) {
        self.ledger.received += burst.len() as u64;
        if let Some(mut side) = self.side(id) {
            return side.handle_burst(burst, now);
        }
        let frames = burst.len() as u64;
        self.ledger.drops.add(DropReason::UnknownAttachment, frames);
        self.pool.free_all(burst);
    }

    /// Takes what the NOS has sent: control messages, then up to `budget` bursts. Returns whether
    /// there may be more; whoever gets `true` calls again, after [`Self::poll_transmit`].
    pub fn poll_channel(&mut self, _now: Instant, budget: usize) -> bool {
        self.handle_controls();
        for _ in 0..budget {
            if self.transmit.held() >= self.transmit_high {
                return true;
            }
            let Some(mut burst) = self.channel.recv_burst() else {
                return false;
            };
            // An attachment may have been accepted just before its first packet was sent.
            self.handle_controls();
            self.deliver_burst(&mut burst);
            self.channel.recycle(burst);
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
        let told = self.events.is_empty() && self.refuser.events.is_empty();
        self.transmit.held() == 0 && told && self.channel.try_sleep()
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

    /// Some attachments, from the index `first` on.
    #[must_use]
    pub fn attachments(&self, first: Option<usize>) -> Page<AttachmentStatus, usize> {
        let first = first.unwrap_or(0);
        self.attachments
            .page(first, |id, attachment| attachment.status(id))
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
            refuser: &mut self.refuser,
            pool: &mut self.pool,
            ledger: &mut self.ledger,
        })
    }

    fn handle_controls(&mut self) {
        while let Some(message) = self.channel.recv_control() {
            self.handle_control(message);
        }
    }

    #[cold]
    fn handle_control(&mut self, message: ToRelay) {
        let (ToRelay::Accepted(request) | ToRelay::Refused(request, _)) = message;
        // Answers that nobody waits for do no harm.
        let Some(asked) = self.asked.remove(&request) else {
            return;
        };
        let event = match message {
            ToRelay::Accepted(request) => {
                self.follow(asked);
                RelayEvent::Accepted(request)
            }
            ToRelay::Refused(request, refused) => RelayEvent::Refused(request, refused),
        };
        self.events.push_back(event);
    }

    /// Does what the NOS has accepted.
    fn follow(&mut self, asked: Asked) {
        asked.detach.into_iter().for_each(|id| self.remove(id));
        for (id, guarded) in asked.guards {
            if let Some(attachment) = self.attachment(id) {
                attachment.activate(guarded);
            }
        }
    }

    /// Queues packets from the NOS for their containers.
    fn deliver_burst(&mut self, burst: &mut PacketBurst) {
        self.ledger.received += burst.len() as u64;
        // In split mode the headers are still in the other core's cache.
        burst.iter().for_each(|packet| packet.frame().prefetch());
        let mut packets = burst.drain(..).peekable();
        while let Some(first) = packets.peek() {
            let to = first.frame().interface();
            let same = |packet: &Packet| packet.frame().interface() == to;
            self.deliver_run(to, core::iter::from_fn(|| packets.next_if(same)));
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

fn registration(config: &AttachmentConfig) -> Registration {
    Registration {
        attachment: config.id,
        name: Arc::clone(&config.name),
        vrf: config.vrf,
        addresses: config.addresses.clone(),
        policy: config.policy.clone(),
        claims: config.claims.clone(),
        router: config.relay_mac.link_local(),
        mtu: config.mtu,
    }
}

#[cfg(test)]
mod tests;
