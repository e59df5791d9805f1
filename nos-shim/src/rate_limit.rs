//! How many ICMP errors the NOS sends (RFC 1812 §4.3.2.8, RFC 4443 §2.4f).
//!
//! Two token buckets, as in Linux: one for all errors, and one for each peer that they go to.
//! Linux's defaults are the defaults here: 1000 a second with bursts of 50 in total; one a second
//! (IPv6: four) with bursts of six to each peer. Fragmentation needed and packet too big are not limited:
//! without them, a path stays broken. Answers to queries and TCP resets are not limited either,
//! as in Linux: they are no larger than what provoked them, and go one to one.
//!
//! What a container is told of its own packets has a bucket for each container, as large as the one for
//! all, and takes nothing from others: containers share an address, so one that asks for many ports
//! would keep its siblings from hearing anything. A host says as much to its own programs, without limit.
//!
//! Peers live in a table of fixed size, by hash. Two peers that share a slot take it from each
//! other; the newcomer starts with a full bucket, and the bucket for all bounds the rest.

mod redirects;

use core::hash::{BuildHasher, Hash};
use core::net::IpAddr;

use foldhash::quality::FixedState;

use crate::icmp::IcmpError;
use crate::ident::AttachmentId;
use crate::time::{Duration, Instant};

pub use redirects::RedirectLimiter;

/// Rates and bursts. A rate of zero events a second lets the burst through, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpLimits {
    /// ICMP errors a second, to all peers together (`net.ipv4.icmp_msgs_per_sec`).
    pub per_second: u32,
    /// ICMP errors at once, to all peers together (`net.ipv4.icmp_msgs_burst`).
    pub burst: u32,
    /// Time between ICMP errors to one peer in the long run (`net.ipv4.icmp_ratelimit`); zero for
    /// no limit.
    pub peer_interval_v4: Duration,
    /// The same for IPv6 (`net.ipv6.icmp.ratelimit`, which Linux divides by the length of the
    /// route: this is what a peer on a /64 gets).
    pub peer_interval_v6: Duration,
    /// ICMP errors at once to one peer.
    pub peer_burst: u32,
}

impl Default for IcmpLimits {
    fn default() -> Self {
        Self {
            per_second: 1000,
            burst: 50,
            peer_interval_v4: Duration::from_secs(1),
            peer_interval_v6: Duration::from_millis(250),
            peer_burst: 6,
        }
    }
}

impl IcmpLimits {
    /// No limits at all.
    pub const NONE: Self = Self {
        per_second: u32::MAX,
        burst: u32::MAX,
        peer_interval_v4: Duration::ZERO,
        peer_interval_v6: Duration::ZERO,
        peer_burst: u32::MAX,
    };

    /// A full bucket for all errors together.
    #[must_use]
    pub fn total(&self) -> TokenBucket {
        let interval = match self.per_second {
            0 => Duration::MAX,
            u32::MAX => Duration::ZERO,
            rate => Duration::from_secs(1) / rate,
        };
        TokenBucket::new(interval, self.burst)
    }
}

/// Peers that are remembered by one table.
const PEERS: usize = 1024;

/// What is remembered of peers.
#[derive(Clone, Debug)]
struct Peers<A, T> {
    hasher: FixedState,
    slots: Box<[Option<(A, T)>]>,
}

impl<A: Copy + Eq + Hash, T: Copy> Peers<A, T> {
    fn new(seed: u64) -> Self {
        Self {
            hasher: FixedState::with_seed(seed),
            slots: vec![None; PEERS].into_boxed_slice(),
        }
    }

    /// What is remembered of a peer: `fresh` of one that is not known, which takes its slot.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "any bits of a hash will do"
    )]
    fn of(&mut self, peer: A, fresh: T) -> &mut T {
        let index = self.hasher.hash_one(peer) as usize % PEERS;
        let slot = self.slots[index].get_or_insert((peer, fresh));
        if slot.0 != peer {
            *slot = (peer, fresh);
        }
        &mut slot.1
    }
}

/// Decides whether an ICMP error may be sent now.
#[derive(Clone, Debug)]
pub struct IcmpLimiter {
    limits: IcmpLimits,
    total: TokenBucket,
    peers: Peers<IpAddr, TokenBucket>,
    containers: Peers<AttachmentId, TokenBucket>,
}

impl IcmpLimiter {
    /// A limiter with full buckets. `seed` decides which peers share a slot; outsiders should not
    /// be able to guess it.
    #[must_use]
    pub fn new(limits: IcmpLimits, seed: u64) -> Self {
        Self {
            limits,
            total: limits.total(),
            peers: Peers::new(seed),
            containers: Peers::new(seed),
        }
    }

    /// Whether `error` about a packet of `container` may go to it now; if so, it counts as sent.
    pub fn allow_container(
        &mut self,
        error: IcmpError,
        container: AttachmentId,
        now: Instant,
    ) -> bool {
        let unlimited = matches!(error, IcmpError::PacketTooBig { .. });
        unlimited || self.containers.of(container, self.limits.total()).take(now)
    }

    /// Whether `error` may go to `peer` now; if so, it counts as sent.
    pub fn allow(&mut self, error: IcmpError, peer: IpAddr, now: Instant) -> bool {
        if matches!(error, IcmpError::PacketTooBig { .. }) {
            return true;
        }
        let interval = match peer {
            IpAddr::V4(_) => self.limits.peer_interval_v4,
            IpAddr::V6(_) => self.limits.peer_interval_v6,
        };
        let fresh = TokenBucket::new(interval, self.limits.peer_burst);
        let bucket = self.peers.of(peer, fresh);
        // A peer that has had its share must not use up everybody's.
        bucket.available(now) && self.total.take(now) && bucket.take(now)
    }
}

/// Lets `burst` events pass at once, and one each `interval` in the long run.
///
/// Kept as the time at which the bucket will be full again: an event moves it one interval on, and
/// is refused when that lies more than a burst ahead of now.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    interval: Duration,
    /// Time to fill the empty bucket.
    depth: Duration,
    full_at: Instant,
}

impl TokenBucket {
    /// A full bucket. An `interval` of zero never refuses; a `burst` of zero always does.
    #[must_use]
    pub fn new(interval: Duration, burst: u32) -> Self {
        Self {
            interval,
            depth: interval.saturating_mul(burst),
            full_at: Instant::ZERO,
        }
    }

    /// Whether an event may pass now.
    #[must_use]
    pub fn available(&self, now: Instant) -> bool {
        self.interval.is_zero() || self.next(now).since(now) <= self.depth
    }

    /// Whether an event may pass now; if so, it counts.
    pub fn take(&mut self, now: Instant) -> bool {
        let available = self.available(now);
        if available && !self.interval.is_zero() {
            self.full_at = self.next(now);
        }
        available
    }

    /// When the bucket would be full again after one more event.
    fn next(&self, now: Instant) -> Instant {
        self.full_at.max(now) + self.interval
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(203, 0, 113, 2));
    const ERROR: IcmpError = IcmpError::PortUnreachable;

    fn allowed(limiter: &mut IcmpLimiter, peer: IpAddr, now: Instant, tries: u32) -> usize {
        (0..tries)
            .filter(|_| limiter.allow(ERROR, peer, now))
            .count()
    }

    /// Linux 6.18 sends 6 port unreachables for 200 datagrams at once, then 3 after three seconds.
    #[test]
    fn one_peer_gets_six_at_once_and_then_one_a_second() {
        let mut limiter = IcmpLimiter::new(IcmpLimits::default(), 1);
        let start = Instant::from_millis(5_000);
        assert_eq!(allowed(&mut limiter, PEER, start, 200), 6);
        assert_eq!(allowed(&mut limiter, PEER, start, 50), 0);
        let later = start + Duration::from_millis(3_500);
        assert_eq!(allowed(&mut limiter, PEER, later, 50), 3);
        assert_eq!(
            allowed(&mut limiter, PEER, start + Duration::from_secs(3600), 50),
            6
        );
    }

    /// Linux 6.18 sends 6, and 6 again after three seconds, to a peer on a /64.
    #[test]
    fn an_ipv6_peer_gets_four_a_second() {
        let mut limiter = IcmpLimiter::new(IcmpLimits::default(), 1);
        let peer = "2001:db8:1::2".parse().unwrap();
        assert_eq!(allowed(&mut limiter, peer, Instant::ZERO, 200), 6);
        assert_eq!(
            allowed(&mut limiter, peer, Instant::from_millis(1_000), 200),
            4
        );
        assert_eq!(
            allowed(&mut limiter, peer, Instant::from_millis(4_000), 200),
            6
        );
    }

    #[test]
    fn all_peers_share_one_bucket() {
        let mut limiter = IcmpLimiter::new(IcmpLimits::default(), 1);
        let mut total = |now| {
            (0..=255)
                .map(|n| allowed(&mut limiter, [192, 0, 2, n].into(), now, 1))
                .sum::<usize>()
        };
        assert_eq!(total(Instant::from_millis(1)), 50);
        assert_eq!(total(Instant::from_millis(11)), 10);
    }

    #[test]
    fn a_peer_beyond_its_share_takes_nothing_from_the_others() {
        let mut limiter = IcmpLimiter::new(IcmpLimits::default(), 1);
        assert_eq!(allowed(&mut limiter, PEER, Instant::ZERO, 1000), 6);
        assert_eq!(
            allowed(&mut limiter, [192, 0, 2, 1].into(), Instant::ZERO, 1000),
            6
        );
    }

    #[test]
    fn containers_have_buckets_of_their_own() {
        let mut limiter = IcmpLimiter::new(IcmpLimits::default(), 1);
        let mut told = |id| {
            let told = |_: &u32| limiter.allow_container(ERROR, AttachmentId(id), Instant::ZERO);
            (0..200).filter(told).count()
        };
        assert_eq!([told(1), told(2), told(1)], [50, 50, 0]);
        // Nothing is left of theirs, and all of the others'.
        assert_eq!(allowed(&mut limiter, PEER, Instant::ZERO, 200), 6);
        let too_big = IcmpError::PacketTooBig { mtu: 1280 };
        assert!(limiter.allow_container(too_big, AttachmentId(1), Instant::ZERO));
    }

    #[test]
    fn path_mtu_discovery_is_not_limited() {
        let mut limiter = IcmpLimiter::new(IcmpLimits::default(), 1);
        let too_big = IcmpError::PacketTooBig { mtu: 1280 };
        assert!((0..1000).all(|_| limiter.allow(too_big, PEER, Instant::ZERO)));
        assert!(limiter.allow(ERROR, PEER, Instant::ZERO));
    }

    #[test]
    fn limits_can_be_lifted_and_closed() {
        let mut open = IcmpLimiter::new(IcmpLimits::NONE, 1);
        assert_eq!(allowed(&mut open, PEER, Instant::ZERO, 10_000), 10_000);
        let none = IcmpLimits {
            burst: 0,
            ..IcmpLimits::default()
        };
        let mut closed = IcmpLimiter::new(none, 1);
        assert_eq!(allowed(&mut closed, PEER, Instant::from_millis(1), 100), 0);
    }

    /// Many peers at once must neither grow the table nor pass the common limit.
    #[test]
    fn a_flood_from_everywhere_stays_within_the_common_limit() {
        let mut limiter = IcmpLimiter::new(IcmpLimits::default(), 1);
        let sent = (0..100_000_u32)
            .filter(|&n| {
                let now = Instant::from_nanos(u64::from(n) * 10_000);
                limiter.allow(ERROR, IpAddr::from(n.to_be_bytes()), now)
            })
            .count();
        assert!((1_000..=1_050).contains(&sent), "{sent} in one second");
    }
}
