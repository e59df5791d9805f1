//! What the control thread asks of the NOS: by messages over the channel, whoever is at its other end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nos_shim::channel::{
    Answer, Configuration, ConfigurationRefused, NosCounters, Query, RequestId,
};
use nos_shim::fib::Route;
use nos_shim::flows::{EchoFlow, FlowStatus};
use nos_shim::ident::UplinkId;
use nos_shim::neighbor::NeighborStatus;
use nos_shim::page::{Page, read_all};
use nos_shim::ports::{ExchangeRefused, Grant};
use nos_shim::uplink::UplinkSnapshot;
use thiserror::Error;

use crate::data::event_loop::Stopped;
use crate::data::relay::{AttachmentExchange, RelayError, RelayEvent};

use super::data_plane::DataPlane;

/// How long an answer of the NOS is awaited. It never blocks, so only one that has died takes so long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why attachments are not as they were to be.
#[derive(Debug, Error)]
pub(super) enum ExchangeError {
    /// It makes no sense.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// The NOS does not grant it.
    #[error(transparent)]
    Refused(#[from] ExchangeRefused),
    /// The NOS has ended.
    #[error("the NOS does not answer the registration")]
    Unanswered,
    /// A data thread has ended.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl DataPlane {
    /// Changes attachments, all of them or none.
    pub(super) fn exchange(&self, wanted: AttachmentExchange) -> Result<(), ExchangeError> {
        let request = self.on_relay(move |relay| relay.exchange(wanted))??;
        match self.await_answer(request) {
            Some(RelayEvent::Accepted(_)) => Ok(()),
            Some(RelayEvent::Refused(_, refused)) => Err(refused.into()),
            _ => Err(ExchangeError::Unanswered),
        }
    }

    /// Has the NOS be something else.
    pub(super) fn configure(
        &self,
        wanted: Configuration,
    ) -> Result<Result<(), ConfigurationRefused>, Stopped> {
        let request = self.on_relay(move |relay| relay.configure(wanted))?;
        match self.await_answer(request.map_err(|_| Stopped)?) {
            Some(RelayEvent::Configured(_, result)) => Ok(result),
            _ => Err(Stopped),
        }
    }

    /// Asks the NOS something.
    fn query(&self, query: Query) -> Result<Answer, Stopped> {
        let request = self.on_relay(move |relay| relay.query(query))?;
        match self.await_answer(request.map_err(|_| Stopped)?) {
            Some(RelayEvent::Answer(_, answer)) => Ok(answer),
            _ => Err(Stopped),
        }
    }

    /// Waits for the answer to a request. Those to earlier ones, which nobody waits for any more, are
    /// left out.
    fn await_answer(&self, request: RequestId) -> Option<RelayEvent> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            let answer = self.answers().recv_deadline(deadline).ok()?;
            if answer.request() == Some(request) {
                return Some(answer);
            }
        }
    }

    /// A whole table, read page by page; empty where this NOS has none.
    fn table<R, C>(
        &self,
        query: impl Fn(Option<C>) -> Query,
        page: impl Fn(Answer) -> Option<Page<R, C>>,
    ) -> Result<Vec<R>, Stopped> {
        read_all(|cursor| {
            let answer = self.query(query(cursor))?;
            Ok(page(answer).unwrap_or_else(Page::end))
        })
    }

    /// What the NOS did with all packets.
    pub(super) fn nos_counters(&self) -> Result<NosCounters, Stopped> {
        Ok(match self.query(Query::Counters)? {
            Answer::Counters(counters) => *counters,
            _ => NosCounters::default(),
        })
    }

    /// Who owns which ports.
    pub(super) fn ports(&self) -> Result<Vec<Grant>, Stopped> {
        self.table(Query::Ports, |answer| match answer {
            Answer::Ports(page) => Some(page),
            _ => None,
        })
    }

    /// Routes that forward. One may come twice; the later one is the newer.
    pub(super) fn routes(&self) -> Result<Vec<Route>, Stopped> {
        self.table(Query::Routes, |answer| match answer {
            Answer::Routes(page) => Some(page),
            _ => None,
        })
    }

    /// Uplinks, as the NOS has them.
    pub(super) fn uplinks(&self) -> Result<Vec<UplinkSnapshot>, Stopped> {
        self.table(Query::Uplinks, |answer| match answer {
            Answer::Uplinks(page) => Some(page),
            _ => None,
        })
    }

    /// Neighbors, each with its uplink.
    pub(super) fn neighbors(&self) -> Result<Vec<(UplinkId, NeighborStatus)>, Stopped> {
        self.table(Query::Neighbors, |answer| match answer {
            Answer::Neighbors(page) => Some(page),
            _ => None,
        })
    }

    /// Echo requests that wait for replies, each with what operators call its owner.
    pub(super) fn echo_flows(&self) -> Result<Vec<EchoFlow<Arc<str>>>, Stopped> {
        self.table(Query::EchoFlows, |answer| match answer {
            Answer::EchoFlows(page) => Some(page),
            _ => None,
        })
    }

    /// Flows that policies have remembered, each with what operators call its owner.
    pub(super) fn flows(&self) -> Result<Vec<(Arc<str>, FlowStatus)>, Stopped> {
        self.table(Query::Flows, |answer| match answer {
            Answer::Flows(page) => Some(page),
            _ => None,
        })
    }
}
