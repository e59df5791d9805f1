//! How many redirects the NOS sends (RFC 4861 §8.2, RFC 1812 §4.3.2.8).
//!
//! As Linux does, and apart from errors: a host that goes on as before is told nine times at growing
//! intervals, and again when it was silent for 20 s (IPv4); of each destination, and to each host, six
//! times at once and then once a second (IPv6). Linux knows no bound for all hosts together; here it is
//! 1,000 a second with bursts of 50, as for errors.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Peers, TokenBucket};
use crate::time::{Duration, Instant};

/// Redirects to a host that does not heed them (`net.ipv4.route.redirect_number`).
const MOST: u32 = 9;
/// Half of the least time between two of them; it doubles each time (`redirect_load`).
const LOAD: Duration = Duration::from_millis(20);
/// Time without such packets after which the host is told anew (`redirect_silence`).
const SILENCE: Duration = Duration::from_millis(20 << 10);

/// Between two redirects to a host of IPv6, or about a destination, in the long run.
const INTERVAL_V6: Duration = Duration::from_secs(1);
/// Such redirects at once.
const BURST_V6: u32 = 6;

/// Between two redirects to anybody, in the long run.
const INTERVAL: Duration = Duration::from_millis(1);
/// Redirects to anybody at once.
const BURST: u32 = 50;

/// Decides whether a redirect may be sent now.
#[derive(Clone, Debug)]
pub struct RedirectLimiter {
    total: TokenBucket,
    v4: Peers<Ipv4Addr, Backoff>,
    v6: Peers<Ipv6Addr, TokenBucket>,
}

impl RedirectLimiter {
    /// One that has sent none. `seed` decides which hosts share a slot; outsiders should not be able
    /// to guess it.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            total: TokenBucket::new(INTERVAL, BURST),
            v4: Peers::new(seed),
            v6: Peers::new(seed),
        }
    }

    /// Whether a redirect about `destination` may go to `host` now; if so, it counts as sent. `false`
    /// if they are of different families.
    pub fn allow(&mut self, host: IpAddr, destination: IpAddr, now: Instant) -> bool {
        let own = match (host, destination) {
            (IpAddr::V4(host), IpAddr::V4(_)) => self.v4.of(host, Backoff::default()).take(now),
            (IpAddr::V6(host), IpAddr::V6(destination)) => {
                let fresh = TokenBucket::new(INTERVAL_V6, BURST_V6);
                self.v6.of(destination, fresh).take(now) && self.v6.of(host, fresh).take(now)
            }
            _ => false,
        };
        own && self.total.take(now)
    }
}

/// A host of IPv4 that is told less and less often.
#[derive(Clone, Copy, Debug, Default)]
struct Backoff {
    sent: u32,
    /// The last redirect; after the last of all, the last packet that would have caused one.
    last: Instant,
}

impl Backoff {
    fn take(&mut self, now: Instant) -> bool {
        if now.since(self.last) > SILENCE {
            self.sent = 0;
        }
        let exhausted = self.sent >= MOST;
        let due = self.sent == 0 || now.since(self.last) > LOAD * (1 << self.sent.min(MOST));
        if exhausted || due {
            self.last = now;
        }
        let allowed = due && !exhausted;
        self.sent += u32::from(allowed);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Packets every 10 ms for a minute, of which Linux's algorithm answers nine.
    #[test]
    fn a_host_of_ipv4_that_does_not_heed_is_told_nine_times() {
        let mut limiter = RedirectLimiter::new(1);
        let (host, far) = (ip("203.0.113.2"), ip("198.51.100.9"));
        let mut told = |from: u64, until: u64| -> Vec<u64> {
            let times = (from..until).step_by(10);
            let told = times.filter(|&ms| limiter.allow(host, far, Instant::from_millis(ms)));
            told.map(|ms| ms - from).collect()
        };
        let gaps = [50, 90, 170, 330, 650, 1290, 2570, 5130];
        let times = gaps.iter().scan(0, |at, gap| {
            *at += gap;
            Some(*at)
        });
        let expected: Vec<u64> = core::iter::once(0).chain(times).collect();
        assert_eq!(told(100_000, 160_000), expected);
        // It goes on, and was never silent.
        assert_eq!(told(160_000, 180_000), []);
        assert_eq!(told(180_000 + 20_490, 200_500), [0]);
    }

    #[test]
    fn a_host_of_ipv6_is_told_once_a_second_and_so_is_anybody_of_a_destination() {
        let mut limiter = RedirectLimiter::new(1);
        let hosts = ["2001:db8:1::2", "2001:db8:1::3"].map(ip);
        let mut told = |host, destination: &str, ms| {
            let now = Instant::from_millis(ms);
            (0..20)
                .filter(|_| limiter.allow(hosts[host], ip(destination), now))
                .count()
        };
        assert_eq!(told(0, "2001:db8:9::1", 1_000), 6);
        assert_eq!(told(1, "2001:db8:9::1", 1_000), 0);
        assert_eq!(told(0, "2001:db8:9::2", 1_000), 0);
        assert_eq!(told(1, "2001:db8:9::3", 1_000), 6);
        assert_eq!(told(0, "2001:db8:9::4", 3_100), 2);
    }

    #[test]
    fn a_flood_from_everywhere_stays_within_the_common_limit() {
        let mut limiter = RedirectLimiter::new(1);
        let sent = (0..100_000_u32)
            .filter(|&n| {
                let now = Instant::from_nanos(u64::from(n) * 10_000 + 1_000_000_000);
                limiter.allow(IpAddr::from(n.to_be_bytes()), ip("198.51.100.9"), now)
            })
            .count();
        assert!((900..=1_050).contains(&sent), "{sent} in one second");
        assert!(!limiter.allow(
            ip("203.0.113.2"),
            ip("2001:db8::1"),
            Instant::from_millis(9_000)
        ));
    }
}
