//! A NOS that ends, and another that takes its place.
//!
//! Whoever has the NOS's end drops it when it ends, or is made to. From then on everything that was
//! asked of it is [unanswered](RelayEvent::Unanswered), and packets for it are dropped. What it had
//! sent before is delivered still.
//!
//! The next NOS has an end of its own ([`Relay::rejoin`]), and knows nothing: it is told what the one
//! before had accepted. Nothing of the one before can reach the relay any more, as nobody has the
//! other end of what it would send by.

use std::collections::BTreeSet;
use std::sync::Arc;

use nos_shim::channel::{Exchange, RelayEnd, ToNos};
use nos_shim::drop::DropReason;
use nos_shim::ident::AttachmentId;
use nos_shim::ports::{ExchangeRefused, Owner};

use super::requests::Asked;
use super::{Relay, RelayEvent};

impl Relay {
    /// Notices that the NOS has ended.
    pub(super) fn look_for_nos(&mut self) {
        if self.channel.is_deserted() && self.has_nos {
            self.deserted();
        }
    }

    #[cold]
    fn deserted(&mut self) {
        // What it has still answered.
        self.handle_controls();
        let lost = self.channel.lost() as u64;
        self.ledger.sent = self.ledger.sent.saturating_sub(lost);
        self.ledger.drops.add(DropReason::NosGone, lost);
        self.end_generation();
        self.events.push_back(RelayEvent::NosGone);
    }

    /// Nobody answers any more what was asked.
    fn end_generation(&mut self) {
        self.has_nos = false;
        for (request, asked) in core::mem::take(&mut self.asked) {
            if !matches!(asked, Asked::Rejoin(_)) {
                self.events.push_back(RelayEvent::Unanswered(request));
            }
        }
    }

    /// Joins another NOS in place of the one before, whether that has ended or not, and tells it what
    /// that one had accepted. Until it accepts that too, packets of and for containers are dropped;
    /// [`RelayEvent::Rejoined`] tells when it has. Attachments that it refuses are told by
    /// [`RelayEvent::NotRejoined`]: they are registered, as new ones are that were refused.
    pub fn rejoin(&mut self, channel: RelayEnd) {
        self.look_for_nos();
        if self.has_nos {
            self.end_generation();
        }
        let mut before = core::mem::replace(&mut self.channel, channel);
        while let Some(burst) = before.recv_burst() {
            let packets = burst.len() as u64;
            self.ledger.received += packets;
            self.ledger.drops.add(DropReason::NosGone, packets);
            before.recycle(burst);
        }
        if let Some(waker) = &self.waker {
            self.channel.set_waker(Box::new(Arc::clone(waker)));
        }
        self.has_nos = true;
        let mut told = BTreeSet::new();
        for (id, attachment) in self.attachments.iter_mut() {
            attachment.suspend();
            if attachment.was_accepted() {
                told.insert(id);
            }
        }
        self.tell(told);
    }

    /// Tells the NOS of attachments that one before it had accepted.
    fn tell(&mut self, told: BTreeSet<AttachmentId>) {
        if told.is_empty() {
            return self.events.push_back(RelayEvent::Rejoined);
        }
        let of = |&id| Some(self.attachments.get(id)?.registration().clone());
        let exchange = Exchange {
            register: told.iter().filter_map(of).collect(),
            ..Exchange::default()
        };
        let message = |request| ToNos::Exchange(request, exchange);
        // A NOS that has ended again is noticed elsewhere.
        let _ = self.ask(Asked::Rejoin(told), message);
    }

    /// The NOS has accepted what it was told.
    pub(super) fn joined(&mut self, told: &BTreeSet<AttachmentId>) {
        for &id in told {
            if let Some(attachment) = self.attachment(id) {
                attachment.resume();
            }
        }
        self.events.push_back(RelayEvent::Rejoined);
    }

    /// The NOS refuses one of those that it was told of. It is told of the others again.
    pub(super) fn not_joined(&mut self, told: BTreeSet<AttachmentId>, refused: &ExchangeRefused) {
        let of_this = |id: &AttachmentId| refused.owner == Owner::Attachment(*id);
        // One that names none of them refuses all.
        let any = told.iter().any(of_this);
        let (out, left) = told.into_iter().partition(|id| !any || of_this(id));
        let out: BTreeSet<_> = out;
        for id in out {
            if let Some(attachment) = self.attachment(id) {
                attachment.reject();
                self.events
                    .push_back(RelayEvent::NotRejoined(id, refused.clone()));
            }
        }
        self.tell(left);
    }
}
