//! What a worker remembers for policies: flows, datagrams whose first fragments have passed, and how
//! often containers were told of refusals.

use core::net::IpAddr;

use crate::flows::{ExactFlows, FlowTable, Limits, NotInserted};
use crate::id_table::IdTable;
use crate::ident::{AttachmentId, VrfId};
use crate::packet::{FragmentId, Packet};
use crate::rate_limit::{IcmpLimits, TokenBucket};
use crate::time::{Duration, Instant};

/// As long as hosts wait for fragments (RFC 8200 §4.5 has twice that).
const FRAGMENTS: Limits = Limits {
    flows: if cfg!(fuzzing) { 32 } else { 4096 },
    per_owner: if cfg!(fuzzing) { 8 } else { 256 },
    idle: Duration::from_secs(30),
};

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Policed {
    pub(crate) flows: ExactFlows,
    datagrams: FlowTable<AttachmentId, DatagramKey, ()>,
    errors: IdTable<AttachmentId, TokenBucket>,
}

/// A datagram that a container sends in fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct DatagramKey {
    vrf: VrfId,
    source: IpAddr,
    destination: IpAddr,
    id: FragmentId,
}

impl Policed {
    /// With room for so many flows.
    pub(crate) fn new(flows: usize) -> Self {
        Self {
            flows: ExactFlows::new(flows),
            datagrams: FlowTable::new(FRAGMENTS),
            errors: IdTable::new(),
        }
    }

    /// Notes that the first fragment of a datagram has passed.
    pub(crate) fn note_first(&mut self, packet: &Packet, owner: AttachmentId, now: Instant) {
        let Some(key) = datagram_key(packet) else {
            return;
        };
        let table = &mut self.datagrams;
        match table.insert(owner, key, (), now) {
            Ok(_) => {}
            Err(NotInserted::Exists(datagram)) => table.touch(datagram, now),
            Err(NotInserted::OwnerFull | NotInserted::TableFull) => {
                if let Some(oldest) = table.oldest_of(owner) {
                    table.remove(oldest);
                    // There is room now; without it, later fragments are dropped.
                    let _ = table.insert(owner, key, (), now);
                }
            }
        }
    }

    /// Whether the first fragment of a later one's datagram has passed.
    pub(crate) fn has_passed_first(
        &self,
        packet: &Packet,
        owner: AttachmentId,
        now: Instant,
    ) -> bool {
        let found = datagram_key(packet).and_then(|key| self.datagrams.lookup(&key, now));
        let datagram = found.and_then(|(id, ())| self.datagrams.get(id));
        datagram.is_some_and(|datagram| datagram.owner == owner)
    }

    /// Whether a container may be told now that something was refused.
    pub(crate) fn may_tell(&mut self, owner: AttachmentId, now: Instant) -> bool {
        if self.errors.get(owner).is_none() {
            self.errors.insert(owner, IcmpLimits::default().total());
        }
        self.errors
            .get_mut(owner)
            .is_some_and(|bucket| bucket.take(now))
    }

    /// Forgets an attachment that has gone.
    pub(crate) fn forget(&mut self, owner: AttachmentId) {
        self.flows.flush(owner);
        while let Some(datagram) = self.datagrams.any_of(owner) {
            self.datagrams.remove(datagram);
        }
        self.errors.remove(owner);
    }

    /// Forgets what is idle.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.flows.expire(now);
        while self.datagrams.pop_expired(now).is_some() {}
    }

    /// When to call [`Self::expire`] next.
    pub(crate) fn poll_at(&self) -> Option<Instant> {
        super::sooner(self.flows.poll_at(), self.datagrams.poll_at())
    }
}

fn datagram_key(packet: &Packet) -> Option<DatagramKey> {
    let (id, _) = packet.fragment_place()?;
    Some(DatagramKey {
        vrf: packet.frame().vrf(),
        source: packet.source(),
        destination: packet.destination(),
        id,
    })
}
