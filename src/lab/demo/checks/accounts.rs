//! That nothing is lost: packets while it runs, and the machine's state when it ends.

use std::error::Error;

use nos_shim::drop::DropReason;

use super::{Check, Demo, Measured, ensure, millis};
use crate::control::api::snapshot::{Counters, Stage};
use crate::lab::demo::network::{Container, Family};
use crate::lab::testbed::Topology;

/// Interface of the containers.
const INTERFACE: &str = "eth0";

pub(super) fn checks<'a>(demo: &'a Demo<'a>) -> impl Iterator<Item = Check<'a>> {
    let what = "packets in = packets out";
    [Check::new("ACCOUNTS", what, None, || {
        conservation(&demo.daemon.counters()?)
    })]
    .into_iter()
}

/// The last check: it ends the daemon.
pub(in crate::lab::demo) fn ending<'a>(demo: &'a Demo<'a>) -> Check<'a> {
    Check::new("ACCOUNTS", "all given back on SIGTERM", None, || end(demo))
}

/// Packets dropped for `reason` in any stage.
pub(in crate::lab::demo) fn drops(counters: &Counters, reason: DropReason) -> u64 {
    let stages = counters.stages.iter();
    stages
        .filter_map(|stage| stage.drops.get(reason.label()))
        .sum()
}

fn conservation(counters: &Counters) -> Measured {
    ensure(!counters.stages.is_empty(), || {
        "there are no counters".to_owned()
    })?;
    for stage in &counters.stages {
        let (name, missing) = (&stage.name, stage.unaccounted());
        ensure(missing == 0, || {
            format!("{name}: {missing} packets unaccounted for")
        })?;
    }
    let stage = |stage: &Stage| format!("{} {} in", stage.name, stage.received);
    let stages: Vec<_> = counters.stages.iter().map(stage).collect();
    Ok(format!("{}; none lost", stages.join(", ")))
}

fn end(demo: &Demo<'_>) -> Measured {
    let ended = demo.daemon.stop()?;
    ensure(ended.status.success(), || {
        format!("the relay ended with {}", ended.status)
    })?;
    for container in demo.network.containers() {
        given_back(container)?;
    }
    let device = &demo.network.topology.device;
    let uplink = Topology::UPLINK;
    ensure(device.link(uplink)?.is_some(), || {
        format!("{uplink} has gone")
    })?;
    Ok(format!(
        "exit code 0 after {}, nothing left",
        millis(ended.elapsed)
    ))
}

fn given_back(container: &Container) -> Result<(), Box<dyn Error>> {
    let Container {
        name, namespace, ..
    } = container;
    ensure(namespace.link(INTERFACE)?.is_none(), || {
        format!("{INTERFACE} is left in {name}")
    })?;
    let left = namespace.addresses("lo")?;
    let shared = |family: &Family| left.iter().any(|net| net.addr() == family.nos());
    match Family::BOTH.iter().find(|family| shared(family)) {
        Some(family) => Err(format!("{} is left in {name}", family.nos()).into()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use nos_shim::drop::Ledger;

    use super::*;

    fn counters(ledger: &Ledger) -> Counters {
        Counters {
            stages: vec![Stage::new("relay", ledger, 0), Stage::new("nos", ledger, 0)],
            ..Counters::default()
        }
    }

    #[test]
    fn a_lost_packet_shows() {
        let mut ledger = Ledger {
            received: 5,
            sent: 4,
            ..Ledger::default()
        };
        let error = conservation(&counters(&ledger)).unwrap_err().to_string();
        assert_eq!(error, "relay: 1 packets unaccounted for");
        ledger.drop(DropReason::SourcePort);
        let counters = counters(&ledger);
        let text = conservation(&counters).unwrap();
        assert_eq!(text, "relay 5 in, nos 5 in; none lost");
        assert_eq!(drops(&counters, DropReason::SourcePort), 2);
        assert_eq!(drops(&counters, DropReason::SourceMac), 0);
    }

    #[test]
    fn no_counters_are_no_proof() {
        assert!(conservation(&Counters::default()).is_err());
    }
}
