//! What the relay asks of the NOS, and what follows from the answers.

use std::collections::BTreeSet;

use nos_shim::channel::{Configuration, Exchange, NotSent, Query, RequestId, ToNos, ToRelay};
use nos_shim::drop::DropReason;
use nos_shim::ident::{AttachmentId, VrfId};
use nos_shim::services::ServiceConfig;
use thiserror::Error;

use super::attachment::{Attachment, AttachmentConfig, Guarded};
use super::{Relay, RelayEvent};

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
    NotSent(#[from] NotSent),
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

/// What was asked, and what happens with the answer.
#[derive(Debug)]
pub(super) enum Asked {
    /// An exchange.
    Exchange(AskedExchange),
    /// A NOS that is new was told of these attachments.
    Rejoin(BTreeSet<AttachmentId>),
    /// Something about which the relay does nothing itself.
    Answer,
}

/// What happens when the NOS accepts an exchange.
#[derive(Debug, Default)]
pub(super) struct AskedExchange {
    detach: Vec<AttachmentId>,
    guards: Vec<(AttachmentId, Guarded)>,
    /// It changes what the NOS itself offers.
    services: bool,
}

impl Asked {
    /// Leaves out an attachment that has gone. Returns whether there is anything left of what was
    /// asked.
    fn retain_others(&mut self, gone: AttachmentId) -> bool {
        match self {
            Self::Exchange(asked) => asked.retain_others(gone),
            Self::Rejoin(told) => {
                told.remove(&gone);
                true
            }
            Self::Answer => true,
        }
    }
}

impl AskedExchange {
    fn retain_others(&mut self, gone: AttachmentId) -> bool {
        let before = self.guards.len();
        self.guards.retain(|(id, _)| *id != gone);
        let untouched = self.guards.len() == before;
        untouched || self.services || !(self.guards.is_empty() && self.detach.is_empty())
    }
}

impl Relay {
    /// Asks the NOS for a change of attachments. [`Self::poll_event`] tells what it decides.
    ///
    /// Devices say what they take by [`Self::set_capabilities`]; no change of an attachment touches
    /// that. One that is new takes nothing yet.
    ///
    /// # Errors
    ///
    /// [`RelayError`]; nothing has changed then, but that after [`RelayError::NotSent`] an
    /// exchange that only detaches has done so.
    pub fn exchange(&mut self, exchange: AttachmentExchange) -> Result<RequestId, RelayError> {
        self.check(&exchange)?;
        let AttachmentExchange {
            detach,
            attach,
            services,
        } = exchange;
        let mut asked = AskedExchange {
            services: services.is_some(),
            ..AskedExchange::default()
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
        let register = asked
            .guards
            .iter()
            .map(|(_, guarded)| guarded.registration());
        let wanted = Exchange {
            withdraw: detach,
            register: register.cloned().collect(),
            services,
        };
        let request = self.ask(Asked::Exchange(asked), |request| {
            ToNos::Exchange(request, wanted)
        })?;
        for config in &attach {
            if self.attachments.get(config.id).is_none() {
                let attachment = Box::new(Attachment::new(config));
                self.attachments.insert(config.id, attachment);
            }
        }
        Ok(request)
    }

    /// Asks the NOS to be something else. [`Self::poll_event`] tells what it says.
    ///
    /// # Errors
    ///
    /// [`NotSent`]; it was not asked then.
    pub fn configure(&mut self, wanted: Configuration) -> Result<RequestId, NotSent> {
        self.ask(Asked::Answer, |request| ToNos::Configure(request, wanted))
    }

    /// Asks what the NOS knows. [`Self::poll_event`] tells its answer.
    ///
    /// # Errors
    ///
    /// [`NotSent`]; it was not asked then.
    pub fn query(&mut self, query: Query) -> Result<RequestId, NotSent> {
        self.ask(Asked::Answer, |request| ToNos::Query(request, query))
    }

    /// Sends a request of the next number.
    pub(super) fn ask(
        &mut self,
        asked: Asked,
        message: impl FnOnce(RequestId) -> ToNos,
    ) -> Result<RequestId, NotSent> {
        let request = self.last_request.next();
        self.channel.send_control(message(request))?;
        self.last_request = request;
        self.asked.insert(request, asked);
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
    /// [`RelayError::Unknown`], and nothing has changed; or [`RelayError::NotSent`], and the
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

    /// Takes the control messages of the NOS.
    pub(super) fn handle_controls(&mut self) {
        while let Some(message) = self.channel.recv_control() {
            self.handle_control(message);
        }
    }

    #[cold]
    fn handle_control(&mut self, message: ToRelay) {
        let request = match message {
            ToRelay::Event(event) => return self.events.push_back(RelayEvent::Nos(event)),
            ToRelay::Interfaces(all) => {
                return self.events.push_back(RelayEvent::Interfaces(all));
            }
            ToRelay::Accepted(request)
            | ToRelay::Refused(request, _)
            | ToRelay::Configured(request, _)
            | ToRelay::Answer(request, _) => request,
        };
        // Answers that nobody waits for do no harm.
        let Some(asked) = self.asked.remove(&request) else {
            return;
        };
        let event = match (asked, message) {
            (Asked::Exchange(asked), ToRelay::Accepted(_)) => {
                self.follow(asked);
                RelayEvent::Accepted(request)
            }
            (Asked::Exchange(_), ToRelay::Refused(_, refused)) => {
                RelayEvent::Refused(request, refused)
            }
            (Asked::Rejoin(told), ToRelay::Accepted(_)) => return self.joined(&told),
            (Asked::Rejoin(told), ToRelay::Refused(_, refused)) => {
                return self.not_joined(told, &refused);
            }
            (Asked::Answer, ToRelay::Configured(_, result)) => {
                RelayEvent::Configured(request, result)
            }
            (Asked::Answer, ToRelay::Answer(_, answer)) => RelayEvent::Answer(request, answer),
            // A NOS that answers something else has not answered.
            _ => RelayEvent::Unanswered(request),
        };
        self.events.push_back(event);
    }

    /// Does what the NOS has accepted.
    fn follow(&mut self, asked: AskedExchange) {
        asked.detach.into_iter().for_each(|id| self.remove(id));
        for (id, guarded) in asked.guards {
            if let Some(attachment) = self.attachment(id) {
                attachment.activate(guarded);
            }
        }
    }
}
