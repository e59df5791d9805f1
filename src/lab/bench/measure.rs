//! One sample: some traffic on a path, and what it cost.

use std::io;
use std::process::Command;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use super::account::{self, Spent};
use super::achieved::Achieved;
use super::beside::Beside;
use super::children::Children;
use super::crowd::Crowd;
use super::descriptors;
use super::error::{BenchError, Problem};
use super::network::{Network, relay};
use super::path::{Path, installed};
use super::plan::{LOSS_ALLOWED, Load, Row};
use super::results::Sample;
use super::traffic::bulk::bulk;
use super::traffic::connections;
use super::traffic::datagrams::{Stream, datagrams};
use super::traffic::exchange::{Latencies, exchange};
use super::traffic::search::{search, trial};
use super::traffic::{IpVersion, Sizes, TrafficError, Transport, Way};

/// How much longer than its test iperf3 may take.
const IPERF3_LIMIT: Duration = Duration::from_secs(10);

/// After a row with traffic connections end and neighbors are asked once more: it is idle once it
/// was not woken for this time.
const QUIET: Duration = Duration::from_millis(100);
/// A process that is not quiet after so many looks will not be.
const LOOKS: u32 = 30;

/// Measures once.
pub(super) fn measure(
    children: &Children,
    network: &Network,
    row: &Row,
    duration: Duration,
    moved: &AtomicU64,
) -> Result<Sample, Problem> {
    network.check_alive()?;
    let process = || match &network.forwarder {
        Some(process) => account::process(process.pid()).map(Some),
        None => Ok(None),
    };
    let failed = BenchError::io("read what was spent");
    // Asking wakes it.
    let lost = || (row.load != Load::Idle).then(|| network.lost_in_queues());
    let lost_before = lost().flatten();
    if row.load == Load::Idle {
        settle(network).map_err(BenchError::io("read what was spent"))?;
    }
    let begin = Instant::now();
    let before = account::machine().and_then(|machine| Ok((machine, process()?)));
    let (machine, spent) = before.map_err(failed)?;

    let achieved = Measuring {
        children,
        network,
        duration,
        moved,
    }
    .run(row.load)?;

    let after = account::machine().and_then(|machine| Ok((machine, process()?)));
    let (machine_after, spent_after) = after.map_err(BenchError::io("read what was spent"))?;
    let seconds = begin.elapsed().as_secs_f64();
    let lost_after = lost().flatten();
    network.check_alive()?;

    let difference = difference(spent, spent_after);
    let Achieved {
        value,
        more,
        octets,
        operations,
    } = idle_is_what_was_spent(row.load, achieved, difference, seconds);
    Ok(Sample {
        value,
        more,
        octets,
        operations,
        seconds,
        machine_cpu_seconds: machine_after.saturating_sub(machine).as_secs_f64(),
        forwarder_cpu_seconds: difference.map(|spent| spent.cpu.as_secs_f64()),
        wakeups: difference.map(|spent| spent.wakeups),
        lost_in_queues: lost_after
            .zip(lost_before)
            .map(|(after, before)| after.saturating_sub(before)),
    })
}

/// Measures how long a relay takes to attach many containers, and to end.
pub(super) fn attach(
    children: &Children,
    path: Path,
    crowd: &Crowd,
    containers: u16,
) -> Result<Sample, Problem> {
    let failed = || BenchError::io("read what was spent");
    let begin = Instant::now();
    let before = account::machine().map_err(failed())?;
    let life = relay::live(children, path, crowd, containers)?;
    let after = account::machine().map_err(failed())?;
    let (ready, end) = (life.ready.as_secs_f64(), life.end.as_secs_f64());
    let figures = [("ready s", ready), ("end s", end)];
    Ok(Sample {
        value: ready.max(end),
        more: figures
            .map(|(name, figure)| (name.to_owned(), figure))
            .into(),
        octets: 0,
        operations: u64::from(containers),
        seconds: begin.elapsed().as_secs_f64(),
        machine_cpu_seconds: after.saturating_sub(before).as_secs_f64(),
        forwarder_cpu_seconds: Some(life.spent.cpu.as_secs_f64()),
        wakeups: Some(life.spent.wakeups),
        lost_in_queues: None,
    })
}

/// Waits until the process is quiet, or does not become so.
fn settle(network: &Network) -> io::Result<()> {
    let Some(process) = &network.forwarder else {
        return Ok(());
    };
    let mut wakeups = None;
    for _ in 0..LOOKS {
        let now = account::process(process.pid())?.wakeups;
        if wakeups.replace(now) == Some(now) {
            break;
        }
        std::thread::sleep(QUIET);
    }
    Ok(())
}

fn difference(before: Option<Spent>, after: Option<Spent>) -> Option<Spent> {
    let (before, after) = before.zip(after)?;
    Some(Spent {
        cpu: after.cpu.saturating_sub(before.cpu),
        wakeups: after.wakeups.saturating_sub(before.wakeups),
    })
}

fn idle_is_what_was_spent(
    load: Load,
    achieved: Achieved,
    spent: Option<Spent>,
    seconds: f64,
) -> Achieved {
    let (Load::Idle, Some(spent)) = (load, spent) else {
        return achieved;
    };
    let value = spent.wakeups as f64 / seconds;
    let percent = spent.cpu.as_secs_f64() / seconds * 100.0;
    Achieved { value, ..achieved }.with("cpu %", percent)
}

struct Measuring<'a> {
    children: &'a Children,
    network: &'a Network,
    duration: Duration,
    moved: &'a AtomicU64,
}

impl Measuring<'_> {
    fn run(&self, load: Load) -> Result<Achieved, Problem> {
        match load {
            Load::Bulk {
                way,
                reverse,
                streams,
                ip,
            } => self.bulk(way, reverse, streams, ip),
            Load::Flood { way, sizes, flows } => self.flood(way, sizes, flows),
            Load::Search { way, sizes } => self.search(way, sizes),
            Load::Exchange { way, transport } => self.exchange(way, transport),
            Load::Connections { way } => self.connections(way),
            Load::ManyConnections { count } => self.many(count),
            Load::Idle => {
                std::thread::sleep(self.duration);
                Ok(Achieved::default())
            }
            Load::Memory => self.memory(),
            Load::Fairness => self.beside().flood(),
            Load::Starve => self.beside().starve(),
            Load::ShowLoop => self.beside().show_loop(),
            Load::Detach => self.beside().detach(),
            // It has no network of its path: see `attach`.
            Load::Attach { .. } => Err(BenchError::Missing("a crowd").into()),
            Load::Iperf3 {
                way,
                reverse,
                streams,
                ip,
            } => self.iperf3(way, reverse, streams, ip),
        }
    }

    fn bulk(
        &self,
        way: Way,
        reverse: bool,
        streams: usize,
        ip: IpVersion,
    ) -> Result<Achieved, Problem> {
        let route = self.network.route(way, ip);
        let bulk = bulk(&route, reverse, streams, self.duration, self.moved)?;
        let rate = bulk.octets as f64 * 8.0 / bulk.elapsed.max(self.duration).as_secs_f64();
        let achieved = Achieved {
            value: rate / 1e9,
            octets: bulk.octets,
            operations: 0,
            ..Achieved::default()
        };
        match bulk.stalled {
            0 => Ok(achieved),
            // Of others this is worth knowing, of ours it is a fault.
            stalled if self.network.path.is_foreign() => {
                Ok(achieved.with("stalled streams", stalled as f64))
            }
            stalled => {
                let text = format!("{stalled} of {streams} TCP streams stalled");
                Err(TrafficError::Stalled(text).into())
            }
        }
    }

    fn flood(&self, way: Way, sizes: Sizes, flows: usize) -> Result<Achieved, Problem> {
        let flows = flows.min(descriptors::available());
        let stream = Stream {
            sizes,
            flows,
            rate: None,
            duration: self.duration,
            background: false,
        };
        let route = self.network.route(way, IpVersion::V4);
        let delivery = datagrams(&route, &stream)?;
        let lost_at_receiver = delivery.lost_at_receiver as f64 / (delivery.sent as f64).max(1.0);
        let achieved = Achieved {
            value: delivery.rate() / 1e3,
            octets: delivery.octets,
            operations: delivery.received,
            ..Achieved::default()
        }
        .with("sent kpps", delivery.offered() / 1e3)
        .with("loss %", delivery.loss() * 100.0);
        let achieved = match flows {
            1 => achieved,
            _ => achieved.with("flows", flows as f64),
        };
        // Not the path's fault: the generator was too slow.
        Ok(match delivery.lost_at_receiver {
            0 => achieved,
            _ => achieved.with("lost at receiver %", lost_at_receiver * 100.0),
        })
    }

    fn search(&self, way: Way, sizes: Sizes) -> Result<Achieved, Problem> {
        let once = |rate| {
            let route = self.network.route(way, IpVersion::V4);
            trial(&route, sizes, rate, self.duration)
        };
        let found = search(|| once(None), |rate| once(Some(rate)), LOSS_ALLOWED)?;
        Ok(Achieved {
            value: found.rate / 1e3,
            octets: found.octets,
            operations: found.packets,
            ..Achieved::default()
        })
    }

    fn exchange(&self, way: Way, transport: Transport) -> Result<Achieved, Problem> {
        let route = self.network.route(way, IpVersion::V4);
        let times = exchange(&route, transport, self.duration)?;
        Ok(with_percentiles(&times))
    }

    fn connections(&self, way: Way) -> Result<Achieved, Problem> {
        let route = self.network.route(way, IpVersion::V4);
        let count = connections::one_by_one(&route, self.duration)?;
        Ok(Achieved {
            value: count.rate(),
            octets: 2 * count.number,
            operations: count.number,
            ..Achieved::default()
        })
    }

    fn many(&self, count: usize) -> Result<Achieved, Problem> {
        let route = self.network.route(Way::Out, IpVersion::V4);
        let count = count.min(descriptors::available() / 2);
        let (opened, exchanged) = connections::many(&route, count, self.duration)?;
        Ok(Achieved {
            value: exchanged.rate() / 1e3,
            octets: 2 * exchanged.number,
            operations: exchanged.number,
            ..Achieved::default()
        }
        .with("connections", count as f64)
        .with("opened 1/s", opened.rate()))
    }

    fn beside(&self) -> Beside<'_> {
        Beside {
            network: self.network,
            duration: self.duration,
        }
    }

    /// Half the time for super-frames, half for small ones: both fill the pool in their own way.
    fn memory(&self) -> Result<Achieved, Problem> {
        let half = Measuring {
            duration: self.duration / 2,
            ..*self
        };
        let bulk = half.bulk(Way::Out, false, 4, IpVersion::V4)?;
        let flood = half.flood(Way::Out, Sizes::Fixed(64), 1)?;
        let process = self.network.forwarder.as_ref();
        let process = process.ok_or(BenchError::Missing("a forwarding process"))?;
        let resident = account::resident(process.pid());
        let resident = resident.map_err(BenchError::io("read the size of a process"))?;
        let mebibytes = |octets: u64| octets as f64 / f64::from(1 << 20);
        let achieved = Achieved {
            value: mebibytes(resident),
            octets: bulk.octets + flood.octets,
            operations: flood.operations,
            ..Achieved::default()
        };
        Ok(match self.network.resident {
            Some(octets) => achieved.with("at start", mebibytes(octets)),
            None => achieved,
        })
    }

    fn iperf3(
        &self,
        way: Way,
        reverse: bool,
        streams: usize,
        ip: IpVersion,
    ) -> Result<Achieved, Problem> {
        let route = self.network.route(way, ip);
        let program = installed("iperf3").ok_or(BenchError::Missing("iperf3"))?;
        let port = route.connect.port().to_string();
        let mut server = Command::new(&program);
        server.args(["-s", "-1", "-p", &port]);
        let server = self.children.start(route.server, server, "iperf3.log")?;
        // It takes whole seconds only.
        let seconds = self.duration.as_secs().max(1).to_string();
        let until = Instant::now() + super::traffic::LIMIT;
        let text = loop {
            let mut client = Command::new(&program);
            client
                .args(["-J", "-t", &seconds, "-p", &port, "-c"])
                .arg(route.connect.ip().to_string())
                .args(["-P", &streams.to_string()])
                .args(reverse.then_some("-R"));
            let client = self
                .children
                .start(route.client, client, "iperf3-client.log")?;
            let text = client.output(self.duration + IPERF3_LIMIT);
            // Nothing tells when the server listens.
            if !text.contains("\"error\"") || Instant::now() > until {
                break text;
            }
            if let Some(death) = server.death() {
                return Err(death.into());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let sum = &answer["end"]["sum_received"];
        let (Some(rate), Some(octets)) = (sum["bits_per_second"].as_f64(), sum["bytes"].as_u64())
        else {
            let why = answer["error"].as_str().unwrap_or("no result").to_owned();
            return Err(BenchError::Setup(format!("iperf3: {why}")).into());
        };
        Ok(Achieved {
            value: rate / 1e9,
            octets,
            ..Achieved::default()
        })
    }
}

fn with_percentiles(times: &Latencies) -> Achieved {
    let achieved = Achieved {
        value: times.percentile(500),
        octets: 2 * times.count(),
        operations: times.count(),
        ..Achieved::default()
    }
    .with("p99", times.percentile(990))
    .with("p99.9", times.percentile(999));
    match times.lost {
        0 => achieved,
        lost => achieved.with("lost", lost as f64),
    }
}
