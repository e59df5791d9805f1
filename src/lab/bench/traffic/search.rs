//! The highest rate of which hardly anything is lost.
//!
//! In the manner of RFC 2544 section 26.1: offer a rate, look at the loss, and halve the interval in
//! which the answer lies. Trials are short, not 60 s each: the interleaved rounds of the bench take
//! the place of their length. So that a long queue does not pass for a fast path, what arrives late
//! counts as lost.

use std::time::Duration;

use super::datagrams::{Delivery, Stream, datagrams};
use super::{Route, Sizes, TrafficError};

/// Trials after the one at full rate.
const TRIALS: u32 = 7;

/// The best trial that passed.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::lab::bench) struct Found {
    /// Datagrams a second that were offered; 0 if no trial passed.
    pub(in crate::lab::bench) rate: f64,
    /// Datagrams and octets that all trials delivered.
    pub(in crate::lab::bench) packets: u64,
    pub(in crate::lab::bench) octets: u64,
}

/// Looks for the highest rate at which at most `loss` is lost, in about `duration`.
pub(in crate::lab::bench) fn search(
    route: impl Fn() -> Result<Delivery, TrafficError>,
    trial: impl Fn(f64) -> Result<Delivery, TrafficError>,
    loss: f64,
) -> Result<Found, TrafficError> {
    let mut found = Found::default();
    let full = route()?;
    found.count(&full);
    let (mut low, mut high) = (0.0, full.offered());
    if full.late_or_lost() <= loss {
        found.rate = full.offered();
        return Ok(found);
    }
    // Full rate overloads the path, and an overloaded path delivers less than it could.
    let mut rate = full.rate().clamp(high / 64.0, high);
    for _ in 0..TRIALS {
        let delivery = trial(rate)?;
        found.count(&delivery);
        // A sender that could not keep the pace has not tried the rate.
        let tried = delivery.offered() >= 0.95 * rate;
        if delivery.late_or_lost() <= loss {
            low = f64::max(low, delivery.offered());
            if !tried {
                break;
            }
        } else {
            high = rate;
        }
        rate = if low > 0.0 {
            f64::midpoint(low, high)
        } else {
            high / 2.0
        };
    }
    found.rate = low;
    Ok(found)
}

/// A trial at full rate for `None`.
pub(in crate::lab::bench) fn trial(
    route: &Route<'_>,
    sizes: Sizes,
    rate: Option<f64>,
    duration: Duration,
) -> Result<Delivery, TrafficError> {
    let stream = Stream {
        sizes,
        flows: 1,
        rate,
        duration: (duration / 4).max(Duration::from_millis(50)),
        background: false,
    };
    datagrams(route, &stream)
}

impl Found {
    fn count(&mut self, delivery: &Delivery) {
        self.packets += delivery.received;
        self.octets += delivery.octets;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path that carries `limit` datagrams a second, and a sender that makes `most`.
    fn path(limit: f64, most: f64, rate: f64) -> Result<Delivery, TrafficError> {
        let count = |rate: f64| Duration::from_secs_f64(rate).as_secs();
        let offered = rate.min(most);
        let delivered = count(offered.min(limit));
        Ok(Delivery {
            sent: count(offered),
            received: delivered,
            in_time: delivered,
            prompt: delivered,
            octets: 18 * delivered,
            lost_at_receiver: 0,
            elapsed: Duration::from_secs(1),
        })
    }

    #[test]
    fn the_limit_is_found() {
        let most = 1e6;
        for limit in [150_000.0, 400_000.0, 900_000.0] {
            let found = search(
                || path(limit, most, most),
                |rate| path(limit, most, rate),
                0.005,
            );
            let rate = found.unwrap().rate;
            assert!((rate / limit - 1.0).abs() < 0.01, "{rate} for {limit}");
        }
    }

    #[test]
    fn a_path_without_loss_is_as_fast_as_the_sender() {
        let found = search(|| path(9e6, 1e6, 1e6), |_| unreachable!(), 0.005);
        assert!((found.unwrap().rate - 1e6).abs() < 1.0);
    }

    #[test]
    fn a_path_that_carries_nothing_has_no_rate() {
        let found = search(|| path(0.0, 1e6, 1e6), |rate| path(0.0, 1e6, rate), 0.005);
        let found = found.unwrap();
        assert!(found.rate.abs() < 1e-9 && found.packets == 0);
    }
}
