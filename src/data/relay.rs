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
mod generation;
mod refusal;
mod requests;
mod side;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use nos_shim::channel::{
    Answer, ConfigurationRefused, NosEvent, NosInterface, RelayEnd, RequestId, Wake,
};
use nos_shim::drop::{DropReason, Ledger};
use nos_shim::frame::{Burst, Frame, FramePool};
use nos_shim::id_table::IdTable;
use nos_shim::ident::{AttachmentId, Interface};
use nos_shim::offload::Capabilities;
use nos_shim::packet::{Packet, PacketBurst};
use nos_shim::page::Page;
use nos_shim::ports::{ExchangeRefused, Transport};
use nos_shim::share::Budget;
use nos_shim::time::Instant;
use nos_shim::transmit::TransmitQueues;

pub use attachment::{AttachmentConfig, AttachmentCounters, AttachmentStatus, LinkLocal};
pub use requests::{AttachmentExchange, RelayError};

use attachment::Attachment;
use refusal::Refuser;
use requests::Asked;
use side::Side;

/// What the NOS has decided, and what a container was refused. Every request is answered once, unless
/// all its attachments have been detached meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayEvent {
    /// What was asked for holds: its attachments are active.
    Accepted(RequestId),
    /// Nothing was granted. What was before still holds; an attachment that had nothing stays
    /// registered until it is detached.
    Refused(RequestId, ExchangeRefused),
    /// What the NOS says to a [configuration](Relay::configure).
    Configured(RequestId, Result<(), ConfigurationRefused>),
    /// What the NOS says to a [query](Relay::query).
    Answer(RequestId, Answer),
    /// The NOS has ended, or another has taken its place, before it answered.
    Unanswered(RequestId),
    /// News of the NOS.
    Nos(NosEvent),
    /// All interfaces that the NOS has from now on.
    Interfaces(Vec<NosInterface>),
    /// The NOS has ended. Another may [take its place](Relay::rejoin).
    NosGone,
    /// The NOS that has taken the place of another has accepted all attachments that the one before
    /// had accepted, but those of [`Self::NotRejoined`].
    Rejoined,
    /// It has refused this one.
    NotRejoined(AttachmentId, ExchangeRefused),
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

impl RelayEvent {
    /// The request that it answers.
    #[must_use]
    pub fn request(&self) -> Option<RequestId> {
        match self {
            Self::Accepted(request)
            | Self::Refused(request, _)
            | Self::Configured(request, _)
            | Self::Answer(request, _)
            | Self::Unanswered(request) => Some(*request),
            Self::Nos(_)
            | Self::Interfaces(_)
            | Self::NosGone
            | Self::Rejoined
            | Self::NotRejoined(..)
            | Self::ForeignPort { .. } => None,
        }
    }
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
    /// Nobody has noticed that the NOS has ended.
    has_nos: bool,
    /// How this side is woken.
    waker: Option<Arc<dyn Wake>>,
    events: VecDeque<RelayEvent>,
    refuser: Refuser,
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
            asked: BTreeMap::new(),
            last_request: RequestId::default(),
            has_nos: true,
            waker: None,
            events: VecDeque::new(),
            refuser: Refuser::default(),
            ledger: Ledger::default(),
        }
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
        self.look_for_nos();
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
        let waker = self.waker.get_or_insert(Arc::from(waker));
        self.channel.set_waker(Box::new(Arc::clone(waker)));
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

#[cfg(test)]
mod tests;
