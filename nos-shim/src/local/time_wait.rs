//! Flows that were closed here first, remembered so that the peer's last segments are answered
//! (RFC 9293 §3.6.1) without keeping a socket and its buffers.

use std::collections::VecDeque;

use foldhash::quality::FixedState;
use hashbrown::HashMap;

use super::flow::Flow;
use crate::time::{Duration, Instant};

/// Twice the maximum segment lifetime, as Linux has it.
const DURATION: Duration = Duration::from_secs(60);

/// What a segment of a closed flow needs to be answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LastSegment {
    /// The next sequence number that would have been sent.
    pub(super) next: u32,
    /// The next sequence number that is expected.
    pub(super) expected: u32,
    /// The window field, as last sent.
    pub(super) window: u16,
}

/// A bounded number of such flows; the oldest makes room for the newest.
pub(super) struct TimeWait {
    flows: HashMap<Flow, (Instant, LastSegment), FixedState>,
    by_age: VecDeque<(Instant, Flow)>,
    limit: usize,
}

impl TimeWait {
    pub(super) fn new(limit: usize, hasher: FixedState) -> Self {
        Self {
            flows: HashMap::with_hasher(hasher),
            by_age: VecDeque::new(),
            limit,
        }
    }

    pub(super) fn insert(&mut self, flow: Flow, last: LastSegment, now: Instant) {
        if self.limit == 0 {
            return;
        }
        self.expire(now);
        while self.by_age.len() >= self.limit {
            self.forget_oldest();
        }
        let until = now + DURATION;
        self.flows.insert(flow, (until, last));
        self.by_age.push_back((until, flow));
    }

    pub(super) fn find(&mut self, flow: &Flow, now: Instant) -> Option<LastSegment> {
        self.expire(now);
        self.flows.get(flow).map(|&(_, last)| last)
    }

    /// The flow is in use again.
    pub(super) fn remove(&mut self, flow: &Flow) {
        self.flows.remove(flow);
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&Flow) -> bool) {
        self.flows.retain(|flow, _| keep(flow));
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn expire(&mut self, now: Instant) {
        while self.by_age.front().is_some_and(|&(until, _)| until <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((until, flow)) = self.by_age.pop_front() else {
            return;
        };
        // It may have been removed, and may even be back since.
        if self
            .flows
            .get(&flow)
            .is_some_and(|&(known, _)| known == until)
        {
            self.flows.remove(&flow);
        }
    }
}
