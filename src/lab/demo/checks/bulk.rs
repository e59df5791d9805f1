//! Bulk TCP, every octet of it checked on arrival.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::{Check, Demo, Measured, pairs};
use crate::lab::demo::network::{Container, Family};
use crate::lab::progress::amount;
use crate::lab::testbed::LabError;
use crate::lab::testbed::tcp::{Direction, Transfer, Transferred};

/// Where X listens.
const EXTERNAL_PORT: u16 = 7000;
/// For the first transfer, whose rate sets the size of the second.
const TRIAL: u64 = 32 << 20;
/// For the second.
const LARGEST: u64 = 16 << 30;
const LIMIT: Duration = Duration::from_secs(30);

pub(super) fn checks<'a>(demo: &'a Demo<'a>) -> impl Iterator<Item = Check<'a>> {
    pairs(demo).flat_map(move |(container, family)| {
        let (name, device) = (container.name, &container.device);
        [
            Check::new(
                "BULK",
                format!("X → {name} ({device})"),
                family,
                move || measure(demo, &inbound(demo, container, family)),
            ),
            Check::new(
                "BULK",
                format!("{name} ({device}) → X"),
                family,
                move || measure(demo, &outbound(demo, container, family)),
            ),
        ]
    })
}

/// From X to one of the container's ports.
fn inbound<'a>(demo: &Demo<'a>, container: &'a Container, family: Family) -> Transfer<'a> {
    let server = SocketAddr::new(family.nos(), container.port());
    Transfer {
        client: demo.network.external(),
        server: &container.namespace,
        ..upload(demo, container, server)
    }
}

/// From the container to X.
fn outbound<'a>(demo: &Demo<'a>, container: &'a Container, family: Family) -> Transfer<'a> {
    let server = SocketAddr::new(family.external(), EXTERNAL_PORT);
    upload(demo, container, server)
}

fn upload<'a>(demo: &Demo<'a>, container: &'a Container, server: SocketAddr) -> Transfer<'a> {
    Transfer {
        client: &container.namespace,
        server: demo.network.external(),
        listen: server,
        connect: server,
        source: None,
        direction: Direction::Upload,
        octets: TRIAL,
        limit: LIMIT,
    }
}

fn measure(demo: &Demo<'_>, transfer: &Transfer<'_>) -> Measured {
    let run = |transfer: &Transfer<'_>| -> Result<Transferred, LabError> {
        let moved = AtomicU64::new(0);
        demo.progress.watch(&moved, || transfer.run(&moved))
    };
    let trial = run(transfer)?;
    let octets = octets_in(demo.bulk, &trial);
    let done = run(&Transfer {
        octets,
        ..transfer.clone()
    })?;
    Ok(format!(
        "{}, every octet checked",
        amount(done.octets, done.elapsed)
    ))
}

/// How many octets take `time` at the rate of `trial`.
fn octets_in(time: Duration, trial: &Transferred) -> u64 {
    let elapsed = trial.elapsed.as_nanos().max(1);
    let octets = u128::from(trial.octets) * time.as_nanos() / elapsed;
    u64::try_from(octets)
        .unwrap_or(LARGEST)
        .clamp(TRIAL, LARGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trial_sets_the_size() {
        let trial = |octets, millis| Transferred {
            octets,
            elapsed: Duration::from_millis(millis),
        };
        let second = Duration::from_secs(1);
        assert_eq!(octets_in(second, &trial(TRIAL, 100)), 10 * TRIAL);
        assert_eq!(octets_in(second, &trial(TRIAL, 100_000)), TRIAL);
        assert_eq!(octets_in(second, &trial(TRIAL, 0)), LARGEST);
    }
}
