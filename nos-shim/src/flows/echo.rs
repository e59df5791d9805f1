//! Whose ICMP echo reply is it? (RFC 5508 §3)
//!
//! Echo messages have no ports, but an identifier that the sender chooses. Owners of one address
//! choose alone, so two may choose the same for the same remote host. The first keeps its
//! identifier; the second's is changed on the wire, and back in the reply.
//!
//! A mapping lasts while requests are sent. Replies do not prolong it, or strangers could
//! keep it alive.

use core::hash::{BuildHasher, Hash, Hasher};
use core::net::IpAddr;

use foldhash::quality::RandomState;

use super::table::{Flow, FlowId, FlowTable, Limits, NotInserted};
use crate::drop::DropReason;
use crate::ident::VrfId;
use crate::index::Index;
use crate::page::{PAGE, PLACES, Page};
use crate::ports::Owner;
use crate::time::{Duration, Instant};

/// Identifiers that are tried before a request is refused. Even with three of four identifiers in
/// use towards one remote host, about one request in ten thousand fails.
const ATTEMPTS: u64 = 32;

/// What tells echo flows apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EchoKey {
    /// In which VRF.
    pub vrf: VrfId,
    /// The NOS's address: source of requests, destination of replies.
    pub local: IpAddr,
    /// The remote host's address.
    pub remote: IpAddr,
    /// The identifier in the message.
    pub id: u16,
}

impl Hash for EchoKey {
    /// In three words; what would be derived feeds the hasher many small pieces.
    fn hash<H: Hasher>(&self, state: &mut H) {
        for address in [self.local, self.remote] {
            let ipv6 = match address {
                IpAddr::V4(address) => address.to_ipv6_mapped(),
                IpAddr::V6(address) => address,
            };
            state.write_u128(ipv6.to_bits());
        }
        state.write_u32(u32::from(self.vrf.0) << 16 | u32::from(self.id));
    }
}

/// Whose an echo reply is, and what it must look like to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Who sent the request.
    pub owner: Owner,
    /// The identifier in the request as its owner sent it.
    pub id: u16,
}

/// An echo flow, as it is told to another table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EchoFlow<O> {
    /// Who sends the requests.
    pub owner: O,
    /// By what replies are known: the identifier is the one on the wire.
    pub key: EchoKey,
    /// The identifier as the owner sends it.
    pub id: u16,
}

/// The echo requests that wait for replies.
#[derive(Debug)]
pub struct EchoFlows {
    /// By what is on the wire. The value is the owner's own identifier.
    flows: FlowTable<Owner, EchoKey, u16>,
    /// By what the owner sent.
    requests: Index,
    hasher: RandomState,
}

impl Default for EchoFlows {
    fn default() -> Self {
        Self::new(Self::LIMITS)
    }
}

impl EchoFlows {
    /// RFC 5508 REQ-2: a mapping lasts at least 60 seconds.
    pub const LIMITS: Limits = Limits {
        // Fuzzing makes tables for each run.
        flows: if cfg!(fuzzing) { 64 } else { 65_536 },
        per_owner: if cfg!(fuzzing) { 16 } else { 1024 },
        idle: Duration::from_secs(60),
    };

    /// A table within `limits`.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            flows: FlowTable::new(limits),
            requests: Index::new(limits.flows),
            hasher: RandomState::default(),
        }
    }

    /// How many flows there are, idle ones that [`Self::expire`] has not seen included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there are no flows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// The identifier to send an echo request of `owner` with.
    ///
    /// An owner that has as many flows as it may have gives up its own oldest one, and so does one
    /// that has any when the table is full; nobody loses a flow to another.
    ///
    /// # Errors
    ///
    /// [`DropReason::FlowTableFull`] when the table is full and the owner has no flow to give up,
    /// or when no identifier is found that the owner could use towards this host.
    pub fn outbound(
        &mut self,
        owner: Owner,
        request: EchoKey,
        now: Instant,
    ) -> Result<u16, DropReason> {
        let hash = self.hasher.hash_one((owner, request));
        if let Some((flow, id)) = self.find_request(hash, owner, request) {
            if !self.flows.is_idle(flow, now) {
                self.flows.touch(flow, now);
                return Ok(id);
            }
            self.remove(flow);
        }
        let id = self.unused_id(hash, request, now)?;
        let flow = self.insert(owner, EchoKey { id, ..request }, request.id, now)?;
        self.requests.insert(hash, flow.0);
        Ok(id)
    }

    /// Whose an echo reply is that came in from the network, or whose a request was that an ICMP
    /// error quotes.
    #[must_use]
    pub fn inbound(&self, reply: EchoKey, now: Instant) -> Option<Echo> {
        let (flow, &id) = self.flows.lookup(&reply, now)?;
        let owner = self.flows.get(flow)?.owner;
        Some(Echo { owner, id })
    }

    /// Some flows that are not idle, from a place on.
    #[must_use]
    pub fn page(&self, first: u32, now: Instant) -> Page<EchoFlow<Owner>, u32> {
        let mut rows = Vec::with_capacity(PAGE);
        for number in first..self.flows.places() {
            if rows.len() == PAGE || (number - first) as usize >= PLACES {
                let next = Some(number);
                return Page { rows, next };
            }
            let flow = FlowId(number);
            let used = self
                .flows
                .get(flow)
                .filter(|_| !self.flows.is_idle(flow, now));
            rows.extend(used.map(|Flow { owner, key, value }| EchoFlow {
                owner,
                key,
                id: *value,
            }));
        }
        Page { rows, next: None }
    }

    /// Takes up a flow that another table had, as if it was used `now`. One that finds no place, or
    /// whose identifiers are in use here by now, is left out.
    pub fn remember(&mut self, flow: &EchoFlow<Owner>, now: Instant) {
        let &EchoFlow { owner, key, id } = flow;
        let request = EchoKey { id, ..key };
        let hash = self.hasher.hash_one((owner, request));
        if self.find_request(hash, owner, request).is_some() {
            return;
        }
        if let Ok(flow) = self.flows.insert(owner, key, id, now) {
            self.requests.insert(hash, flow.0);
        }
    }

    /// Forgets all flows of `owner`. Returns how many there were.
    pub fn flush(&mut self, owner: Owner) -> usize {
        let before = self.len();
        while let Some(flow) = self.flows.any_of(owner) {
            self.remove(flow);
        }
        before - self.len()
    }

    /// Forgets idle flows. Returns how many there were.
    pub fn expire(&mut self, now: Instant) -> usize {
        let before = self.len();
        while let Some((id, flow)) = self.flows.pop_expired(now) {
            self.forget_request(id, &flow);
        }
        before - self.len()
    }

    /// When to call [`Self::expire`] next.
    #[must_use]
    pub fn poll_at(&self) -> Option<Instant> {
        self.flows.poll_at()
    }

    fn find_request(&self, hash: u64, owner: Owner, request: EchoKey) -> Option<(FlowId, u16)> {
        let is_it = |number| {
            self.flows.get(FlowId(number)).is_some_and(|flow| {
                let sent = EchoKey {
                    id: *flow.value,
                    ..flow.key
                };
                flow.owner == owner && sent == request
            })
        };
        let flow = FlowId(self.requests.find(hash, is_it)?);
        Some((flow, self.flows.get(flow)?.key.id))
    }

    /// An identifier that nobody uses towards this host, the wanted one if possible.
    fn unused_id(&mut self, hash: u64, request: EchoKey, now: Instant) -> Result<u16, DropReason> {
        let mut id = request.id;
        for attempt in 0..ATTEMPTS {
            match self.flows.find(&EchoKey { id, ..request }) {
                None => return Ok(id),
                Some(flow) if self.flows.is_idle(flow, now) => {
                    self.remove(flow);
                    return Ok(id);
                }
                Some(_) => id = candidate(hash, attempt),
            }
        }
        Err(DropReason::FlowTableFull)
    }

    fn insert(
        &mut self,
        owner: Owner,
        key: EchoKey,
        id: u16,
        now: Instant,
    ) -> Result<FlowId, DropReason> {
        let full = |_: NotInserted| DropReason::FlowTableFull;
        self.flows.insert(owner, key, id, now).or_else(|_| {
            let oldest = self
                .flows
                .oldest_of(owner)
                .ok_or(DropReason::FlowTableFull)?;
            self.remove(oldest);
            self.flows.insert(owner, key, id, now).map_err(full)
        })
    }

    fn remove(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.remove(id) {
            self.forget_request(id, &flow);
        }
    }

    /// Takes what was a flow out of `requests`.
    fn forget_request(&mut self, id: FlowId, flow: &Flow<Owner, EchoKey, u16>) {
        let request = EchoKey {
            id: flow.value,
            ..flow.key
        };
        let hash = self.hasher.hash_one((flow.owner, request));
        self.requests.remove(hash, id.0);
    }
}

/// One of the identifiers to try for a request with this hash.
fn candidate(hash: u64, attempt: u64) -> u16 {
    // An odd step visits every identifier before it repeats one.
    let step = hash >> 16 | 1;
    let [a, b, ..] = hash.wrapping_add(attempt.wrapping_mul(step)).to_le_bytes();
    u16::from_le_bytes([a, b])
}

#[cfg(test)]
mod tests;
