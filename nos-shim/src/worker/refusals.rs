//! What policies refuse, told to the operator once in a while.
//!
//! Of each owner of ports there are as many accounts as there are reasons and sides, so that what
//! outsiders provoke hides nothing of what the owner does itself, nor of what others do.

use std::collections::{BTreeMap, VecDeque};

use crate::channel::{NosEvent, PolicyRefusal, RefusedSide, Refuser};
use crate::drop::DropReason;
use crate::id_table::IdTable;
use crate::ident::{AttachmentId, VrfId};
use crate::packet::Packet;
use crate::rate_limit::TokenBucket;
use crate::time::{Duration, Instant};

/// One kind of refusal is told so often in the long run ...
const NEWS_INTERVAL: Duration = Duration::from_secs(10);
/// ... and so often at once.
const NEWS_BURST: u32 = 3;

/// Events that wait to be polled at most; others are told later, with what was dropped meanwhile.
const EVENTS: usize = 64;

/// What is told of, each by itself.
const KINDS: [(DropReason, RefusedSide); 7] = [
    (DropReason::PolicyFrom, RefusedSide::Peer),
    (DropReason::NoFlow, RefusedSide::Peer),
    (DropReason::FlowTableFull, RefusedSide::Peer),
    (DropReason::PolicyTo, RefusedSide::Owner),
    (DropReason::NoFlow, RefusedSide::Owner),
    (DropReason::SourcePort, RefusedSide::Owner),
    (DropReason::FlowTableFull, RefusedSide::Owner),
];

/// Of one kind of refusal: how often it may be told, and how many packets were dropped since.
#[derive(Clone, Copy, Debug)]
struct Account {
    news: TokenBucket,
    untold: u64,
}

impl Default for Account {
    fn default() -> Self {
        Self {
            news: TokenBucket::new(NEWS_INTERVAL, NEWS_BURST),
            untold: 0,
        }
    }
}

type Accounts = [Account; KINDS.len()];

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    attachments: IdTable<AttachmentId, Accounts>,
    services: BTreeMap<VrfId, Accounts>,
    events: VecDeque<NosEvent>,
}

impl Refusals {
    /// Counts a packet that is dropped, and tells of it if it is time.
    #[cold]
    pub(crate) fn note(
        &mut self,
        packet: &Packet,
        (refuser, sender): (Refuser, RefusedSide),
        reason: DropReason,
        holder: Option<AttachmentId>,
        now: Instant,
    ) {
        let Some(kind) = KINDS.iter().position(|&it| it == (reason, sender)) else {
            return;
        };
        let accounts = match refuser {
            Refuser::Attachment(id) => {
                if self.attachments.get(id).is_none() {
                    self.attachments.insert(id, Accounts::default());
                }
                self.attachments.get_mut(id)
            }
            Refuser::Services(vrf) => Some(self.services.entry(vrf).or_default()),
        };
        let Some(account) = accounts.and_then(|accounts| accounts.get_mut(kind)) else {
            return;
        };
        account.untold += 1;
        if self.events.len() >= EVENTS || !account.news.take(now) {
            return;
        }
        let dropped = core::mem::take(&mut account.untold);
        self.events.push_back(NosEvent::Refused(refusal(
            packet, refuser, sender, reason, holder, dropped,
        )));
    }

    /// Forgets an attachment that has gone.
    pub(crate) fn forget(&mut self, owner: AttachmentId) {
        self.attachments.remove(owner);
    }

    /// Whether there is news.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        !self.events.is_empty()
    }

    /// The oldest news that was not yet polled.
    pub(crate) fn poll(&mut self) -> Option<NosEvent> {
        self.events.pop_front()
    }
}

fn refusal(
    packet: &Packet,
    refuser: Refuser,
    sender: RefusedSide,
    reason: DropReason,
    holder: Option<AttachmentId>,
    dropped: u64,
) -> PolicyRefusal {
    let (remote, ports) = match sender {
        RefusedSide::Owner => {
            let ports = packet.ports().map(|it| (it.source, it.destination));
            (packet.destination(), ports)
        }
        RefusedSide::Peer => {
            let ports = packet.ports().map(|it| (it.destination, it.source));
            (packet.source(), ports)
        }
    };
    PolicyRefusal {
        refuser,
        sender,
        reason,
        protocol: packet.protocol(),
        port: ports.map(|(own, _)| own),
        remote,
        remote_port: ports.map(|(_, theirs)| theirs),
        holder,
        dropped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FramePool;
    use crate::test_packets::Draft;

    const FROM: DropReason = DropReason::PolicyFrom;

    fn told(refusals: &mut Refusals) -> Vec<u64> {
        let events = core::iter::from_fn(|| refusals.poll());
        let dropped = |event| match event {
            NosEvent::Refused(refusal) => Some(refusal.dropped),
            NosEvent::AddressConflict { .. } => None,
        };
        events.filter_map(dropped).collect()
    }

    #[test]
    fn it_is_told_thrice_at_once_then_once_in_ten_seconds() {
        let mut pool = FramePool::new(16, 2048);
        let packet = Draft::v4().udp_packet(&mut pool, (999, 80), b"x");
        let mut refusals = Refusals::default();
        let at = |seconds| Instant::from_millis(1_000_000) + Duration::from_secs(seconds);
        let owners = [
            Refuser::Attachment(AttachmentId(1)),
            Refuser::Services(VrfId::DEFAULT),
        ];
        for owner in owners {
            let who = (owner, RefusedSide::Peer);
            for _ in 0..20 {
                refusals.note(&packet, who, FROM, None, at(0));
            }
            assert_eq!(told(&mut refusals), [1, 1, 1]);
            refusals.note(&packet, who, FROM, None, at(9));
            assert_eq!(told(&mut refusals), []);
            refusals.note(&packet, who, FROM, None, at(10));
            assert_eq!(told(&mut refusals), [19], "with those that were not told");
            // Neither reason nor side is of a kind that is told.
            refusals.note(&packet, who, DropReason::IcmpUnmatched, None, at(99));
            refusals.note(&packet, who, DropReason::SourcePort, None, at(99));
            assert_eq!(told(&mut refusals), []);
        }
    }

    /// News that nobody fetches takes no more memory, and is told later.
    #[test]
    fn events_that_wait_are_few() {
        let mut pool = FramePool::new(16, 2048);
        let packet = Draft::v6().udp_packet(&mut pool, (999, 80), b"x");
        let mut refusals = Refusals::default();
        let now = Instant::from_millis(1_000_000);
        for id in 0..1000 {
            let who = (Refuser::Attachment(AttachmentId(id)), RefusedSide::Peer);
            refusals.note(&packet, who, FROM, None, now);
        }
        assert_eq!(told(&mut refusals).len(), EVENTS);
        let who = (Refuser::Attachment(AttachmentId(999)), RefusedSide::Peer);
        refusals.note(&packet, who, FROM, None, now);
        assert_eq!(told(&mut refusals), [2]);
        // A successor has not done what another did.
        refusals.note(&packet, who, FROM, None, now);
        refusals.forget(AttachmentId(999));
        assert!(refusals.attachments.get(AttachmentId(999)).is_none());
    }
}
