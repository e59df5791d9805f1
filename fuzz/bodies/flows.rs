//! The flow tables against lists: echo identifiers, and exact flows of TCP and UDP.
//!
//! Input: steps, by `arbitrary`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use arbitrary::{Arbitrary, Unstructured};
use nos_shim::flows::{
    Echo, EchoFlows, EchoKey, ExactFlows, FlowKey, Limits, NewFlow, Opener, Segment,
};
use nos_shim::frame::FramePool;
use nos_shim::ident::{AttachmentId, VrfId};
use nos_shim::packet::Packet;
use nos_shim::ports::{Owner, Transport};
use nos_shim::time::{Duration, Instant};

use super::frames::Draft;
use super::pools::with_pool;

const STEPS: usize = 128;
/// Places for flows: few, so that they run out.
const PLACES: usize = 12;
/// RFC 4787 REQ-5.
const DATAGRAM: Duration = Duration::from_secs(300);
/// Of an identifier, as [`EchoFlows::LIMITS`] has it.
const ECHO: Duration = EchoFlows::LIMITS.idle;
/// Room for all owners, hosts and identifiers.
const PINGS: Limits = Limits {
    flows: 64,
    per_owner: 64,
    ..EchoFlows::LIMITS
};

#[derive(Arbitrary, Debug)]
enum Step {
    Open {
        owner: u8,
        port: u8,
        peer: u8,
        tcp: bool,
        learnt: bool,
        by_peer: bool,
    },
    Outbound {
        owner: u8,
        port: u8,
        peer: u8,
        tcp: Option<Flags>,
    },
    Inbound {
        port: u8,
        peer: u8,
        tcp: Option<Flags>,
    },
    Ping {
        owner: u8,
        remote: u8,
        id: u8,
    },
    Wait(u16),
    Flush(u8),
    Expire,
    Restart,
}

/// Flags, sequence and acknowledgment number of a segment.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Flags(u8, u8, u8);

/// What is known of a UDP flow.
#[derive(Clone, Copy, Debug)]
struct Known {
    owner: AttachmentId,
    opener: Opener,
    learnt: bool,
    /// The other than who opened it has sent something.
    replied: bool,
    used_at: Instant,
}

struct Ping {
    owner: Owner,
    sent: EchoKey,
    wire: u16,
    used_at: Instant,
}

struct Tables {
    exact: ExactFlows,
    known: BTreeMap<FlowKey, Known>,
    echo: EchoFlows,
    pings: Vec<Ping>,
    now: Instant,
}

pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut tables = Tables {
        exact: ExactFlows::new(PLACES),
        known: BTreeMap::new(),
        echo: EchoFlows::new(PINGS),
        pings: Vec::new(),
        now: Instant::from_millis(1_000_000),
    };
    with_pool(1, |pool| {
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            let Ok(step) = input.arbitrary() else { break };
            tables.take(step, pool);
            tables.check();
        }
    });
    tables.end();
}

fn key(transport: Transport, port: u8, peer: u8) -> FlowKey {
    FlowKey {
        vrf: VrfId::DEFAULT,
        transport,
        local: IpAddr::from([203, 0, 113, 1]),
        local_port: 1000 + u16::from(port % 8),
        remote: IpAddr::from([198, 51, 100, 9]),
        // Zero is a flow that is expected.
        remote_port: u16::from(peer % 4),
    }
}

fn attachment(number: u8) -> AttachmentId {
    AttachmentId(u32::from(number % 3))
}

/// A segment as a packet has it.
fn segment(flags: Flags, pool: &mut FramePool) -> Option<Segment> {
    let draft = Draft {
        macs: Default::default(),
        v4: ([203, 0, 113, 1], [198, 51, 100, 9]),
        v6: ([0; 16], [0; 16]),
        is_v6: false,
        ttl: 64,
        ports: (1000, 80),
        protocol: 6,
        kind: flags.0,
        payload: usize::from(flags.0 >> 6) * 10,
        fragment: 0,
    };
    let mut octets = draft.frame();
    octets[14 + 20 + 7] = flags.1;
    octets[14 + 20 + 11] = flags.2;
    let packet = Packet::parse(pool.copy_from(&octets).ok()?).ok()?;
    let segment = Segment::of(&packet);
    pool.free(packet.into_frame());
    segment
}

impl Tables {
    fn take(&mut self, step: Step, pool: &mut FramePool) {
        let now = self.now;
        self.known
            .retain(|_, known| now.since(known.used_at) < DATAGRAM);
        match step {
            Step::Open {
                owner,
                port,
                peer,
                tcp,
                learnt,
                by_peer,
            } => {
                let transport = if tcp { Transport::Tcp } else { Transport::Udp };
                let opener = if by_peer { Opener::Peer } else { Opener::Owner };
                self.open(&NewFlow {
                    key: key(transport, port, peer),
                    owner: attachment(owner),
                    opener,
                    learnt,
                    segment: None,
                    confirmed: false,
                });
            }
            Step::Outbound {
                owner,
                port,
                peer,
                tcp,
            } => {
                let owner = attachment(owner);
                let Some(flags) = tcp else {
                    return self.datagram_out(owner, key(Transport::Udp, port, peer));
                };
                let key = key(Transport::Tcp, port, peer);
                let its_own = self.exact.owner_of(&key, now) == Some(owner);
                let segment = segment(flags, pool);
                assert_eq!(
                    self.exact.outbound(owner, &key, segment.as_ref(), now),
                    its_own
                );
            }
            Step::Inbound { port, peer, tcp } => {
                let Some(flags) = tcp else {
                    return self.datagram_in(key(Transport::Udp, port, peer));
                };
                let key = key(Transport::Tcp, port, peer);
                let owners = [key, key.expected()].map(|key| self.exact.owner_of(&key, now));
                let segment = segment(flags, pool);
                let found = self.exact.inbound(&key, segment.as_ref(), now);
                assert!(found.is_none() || owners.contains(&found));
                // One that was announced is opened now, and others of its owner may have made way.
                if let Some(owner) = found {
                    self.forget_gone(owner);
                }
            }
            Step::Ping { owner, remote, id } => self.ping(owner, remote, id),
            Step::Wait(seconds) => self.now = now + Duration::from_secs(u64::from(seconds) % 1000),
            Step::Flush(owner) => {
                let owner = attachment(owner);
                self.exact.flush(owner);
                self.known.retain(|_, known| known.owner != owner);
                assert_eq!(self.exact.count(owner), 0);
                let owner = Owner::Attachment(owner);
                self.echo.flush(owner);
                self.pings.retain(|ping| ping.owner != owner);
            }
            Step::Expire => {
                self.exact.expire(now);
                self.echo.expire(now);
                assert!(self.echo.poll_at().is_none_or(|at| at > now));
                assert!(self.exact.poll_at().is_none_or(|at| at > now));
            }
            Step::Restart => self.restart(),
        }
    }

    fn open(&mut self, new: &NewFlow) {
        let now = self.now;
        let exact = &mut self.exact;
        let other = |owner: AttachmentId| owner != new.owner;
        // As whoever opens flows does.
        if exact.owner_of(&new.key, now).is_some_and(other)
            || exact.learnt_by(&new.key).is_some_and(other)
        {
            return;
        }
        let udp = new.key.transport == Transport::Udp;
        self.known.remove(&new.key);
        let opened = exact.open(new, now);
        let gone = self.forget_gone(new.owner);
        let mut left = self.known.values();
        let unanswered = left.any(|known| known.owner == new.owner && !known.replied);
        let answered = gone.iter().any(|known| known.replied);
        assert!(!(answered && unanswered), "an answered one went first");
        match opened {
            Ok(()) => {
                assert_eq!(self.exact.owner_of(&new.key, now), Some(new.owner));
                if udp && new.key.remote_port != 0 {
                    let known = Known {
                        owner: new.owner,
                        opener: new.opener,
                        learnt: new.learnt,
                        replied: false,
                        used_at: now,
                    };
                    self.known.insert(new.key, known);
                }
            }
            Err(_) => {
                let has_any = self.known.values().any(|known| known.owner == new.owner);
                assert!(!has_any, "it had something to give up");
            }
        }
    }

    /// Datagram flows that are there no more as others of their owner, which is this one, took their places.
    fn forget_gone(&mut self, owner: AttachmentId) -> Vec<Known> {
        let (exact, now) = (&self.exact, self.now);
        let gone = |key: &FlowKey| exact.owner_of(key, now).is_none();
        let gone: Vec<_> = self.known.extract_if(.., |key, _| gone(key)).collect();
        for (_, known) in &gone {
            assert_eq!(known.owner, owner, "a flow was lost to another owner");
        }
        gone.into_iter().map(|(_, known)| known).collect()
    }

    fn datagram_out(&mut self, owner: AttachmentId, key: FlowKey) {
        if key.remote_port == 0 {
            return;
        }
        let known = self
            .known
            .get_mut(&key)
            .filter(|known| known.owner == owner);
        assert_eq!(
            self.exact.outbound(owner, &key, None, self.now),
            known.is_some()
        );
        if let Some(known) = known {
            known.used_at = self.now;
            known.replied |= known.opener == Opener::Peer;
        }
    }

    fn datagram_in(&mut self, key: FlowKey) {
        if key.remote_port == 0 {
            return;
        }
        let known = self.known.get_mut(&key);
        let owner = known.as_ref().map(|known| known.owner);
        assert_eq!(self.exact.inbound(&key, None, self.now), owner);
        if let Some(known) = known {
            known.used_at = self.now;
            known.replied |= known.opener == Opener::Owner;
        }
    }

    fn ping(&mut self, owner: u8, remote: u8, id: u8) {
        let now = self.now;
        let owner = match owner % 4 {
            3 => Owner::Nos,
            number => Owner::Attachment(attachment(number)),
        };
        let sent = echo_key(remote, u16::from(id % 4));
        let wire = self.echo.outbound(owner, sent, now);
        let wire = wire.expect("there are more places than owners, hosts and identifiers");
        self.pings.retain(|ping| now.since(ping.used_at) < ECHO);
        let same = |ping: &&mut Ping| ping.owner == owner && ping.sent == sent;
        if let Some(ping) = self.pings.iter_mut().find(same) {
            assert_eq!(wire, ping.wire);
            ping.used_at = now;
            return;
        }
        let in_use = |wire| {
            let mut pings = self.pings.iter();
            pings.any(|ping| ping.sent.remote == sent.remote && ping.wire == wire)
        };
        assert!(!in_use(wire), "two flows have one identifier");
        assert_eq!(wire == sent.id, !in_use(sent.id));
        self.pings.push(Ping {
            owner,
            sent,
            wire,
            used_at: now,
        });
    }

    /// Another table takes up the echo flows of this one.
    fn restart(&mut self) {
        let now = self.now;
        let mut next = EchoFlows::new(PINGS);
        let mut first = Some(0);
        while let Some(at) = first {
            let page = self.echo.page(at, now);
            page.rows.iter().for_each(|flow| next.remember(flow, now));
            first = page.next;
        }
        self.pings.retain(|ping| now.since(ping.used_at) < ECHO);
        self.pings.iter_mut().for_each(|ping| ping.used_at = now);
        assert_eq!(next.len(), self.pings.len());
        self.echo = next;
    }

    fn check(&self) {
        let now = self.now;
        assert!(self.exact.len() <= PLACES);
        for (key, known) in &self.known {
            let alive = now.since(known.used_at) < DATAGRAM;
            let owner = self.exact.owner_of(key, now);
            assert_eq!(owner, alive.then_some(known.owner), "{key:?}");
            if known.learnt && alive {
                assert_eq!(self.exact.learnt_by(key), Some(known.owner));
            }
        }
        let pings = self
            .pings
            .iter()
            .filter(|ping| now.since(ping.used_at) < ECHO);
        for ping in pings {
            let reply = EchoKey {
                id: ping.wire,
                ..ping.sent
            };
            let echo = Echo {
                owner: ping.owner,
                id: ping.sent.id,
            };
            assert_eq!(self.echo.inbound(reply, now), Some(echo));
        }
    }

    /// All are forgotten in the end.
    fn end(mut self) {
        let late = self.now + Duration::from_secs(3 * 3600);
        self.exact.expire(late);
        self.echo.expire(late);
        assert!(self.exact.is_empty() && self.exact.poll_at().is_none());
        assert!(self.echo.is_empty() && self.echo.poll_at().is_none());
    }
}

fn echo_key(remote: u8, id: u16) -> EchoKey {
    EchoKey {
        vrf: VrfId::DEFAULT,
        local: IpAddr::from([203, 0, 113, 1]),
        remote: IpAddr::from([198, 51, 100, remote % 2]),
        id,
    }
}
