//! One container's latency beside something that another one, an operator or the relay itself does.
//!
//! Each figure is a percentile of the victim's round trips over the same alone, in the same minute.
//! Traffic and queries come from threads of the lowest priority: the victim then waits for the relay,
//! and not for a processor that a generator has. What the daemon does has the priority that it has.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use super::achieved::Achieved;
use super::error::{BenchError, Problem};
use super::network::{self, Network};
use super::traffic::datagrams::{Stream, datagrams};
use super::traffic::exchange::{Latencies, Span, Window, exchange, exchange_within};
use super::traffic::{IpVersion, Sizes, TrafficError, Transport, Way, step_back};
use crate::control::api::Table;

/// Addresses of the uplink's network that nobody has: 203.0.113.100 and following.
const UNUSED: std::ops::Range<u8> = 100..116;
/// Datagrams to each of them at a time.
const DATAGRAMS: usize = 64;
/// Between two times.
const PERIOD: Duration = Duration::from_millis(200);

/// All that `show` shows.
const TABLES: [Table; 6] = [
    Table::Attachments,
    Table::Ports,
    Table::Routes,
    Table::Neighbors,
    Table::Flows,
    Table::Counters,
];

/// The percentile that a row is about.
#[derive(Clone, Copy)]
enum Percentile {
    P99,
    P999,
}

impl Percentile {
    fn of(self, times: &Latencies) -> f64 {
        times.percentile(match self {
            Self::P99 => 990,
            Self::P999 => 999,
        })
    }

    fn achieved(self, quiet: &Latencies, loaded: &Latencies) -> Achieved {
        let (name, name_alone) = match self {
            Self::P99 => ("p99 us", "p99 us alone"),
            Self::P999 => ("p99.9 us", "p99.9 us alone"),
        };
        Achieved {
            value: self.of(loaded) / self.of(quiet),
            octets: 2 * loaded.count(),
            operations: loaded.count(),
            ..Achieved::default()
        }
        .with(name, self.of(loaded))
        .with(name_alone, self.of(quiet))
    }
}

/// Says that it is over when it goes, also by an error or a panic.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A victim in the first container of a network.
pub(super) struct Beside<'a> {
    pub(super) network: &'a Network,
    pub(super) duration: Duration,
}

impl Beside<'_> {
    /// Another container sends as much as it can. The flood begins before the exchanges that count
    /// and ends after them.
    pub(super) fn flood(&self) -> Result<Achieved, Problem> {
        let flooder = self.network.second_route();
        let flooder = flooder.ok_or(BenchError::Missing("a second container"))?;
        let quiet = self.exchange(self.duration / 2)?;
        let stream = Stream {
            sizes: Sizes::Fixed(64),
            flows: 1,
            rate: None,
            duration: self.duration + self.duration / 4,
            background: true,
        };
        let (loaded, flood) = std::thread::scope(|scope| {
            let flooding = scope.spawn(|| datagrams(&flooder, &stream));
            std::thread::sleep(self.duration / 8);
            let loaded = self.exchange(self.duration);
            (loaded, joined(flooding))
        });
        let (loaded, flood) = (loaded?, flood?);
        let mut achieved = Percentile::P99.achieved(&quiet, &loaded);
        achieved.octets = flood.octets;
        Ok(achieved.with("flood kpps", flood.rate() / 1e3))
    }

    /// Another container sends to addresses that nobody has: its packets wait for neighbors.
    pub(super) fn starve(&self) -> Result<Achieved, Problem> {
        let second = self.network.second.as_ref();
        let second = second.ok_or(BenchError::Missing("a second container"))?;
        let socket = second.try_run("open a UDP socket", || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_nonblocking(true).map(|()| socket)
        });
        let socket = socket.map_err(BenchError::from)?;
        let quiet = self.exchange(self.duration / 2)?;
        let over = AtomicBool::new(false);
        let (loaded, sent) = std::thread::scope(|scope| {
            let sending = scope.spawn(|| send_to_unused(&socket, &over));
            let loaded = {
                let _ending = Ending(&over);
                // The first packets are waiting by then.
                std::thread::sleep(PERIOD);
                self.exchange(self.duration)
            };
            (loaded, joined(sending))
        });
        let sent = sent.map_err(TrafficError::io("send to unused addresses"))?;
        let achieved = Percentile::P99.achieved(&quiet, &loaded?);
        Ok(achieved.with("sent to unused", sent as f64))
    }

    /// All tables are asked for, again and again.
    pub(super) fn show_loop(&self) -> Result<Achieved, Problem> {
        let control = self.network.control();
        let control = control.ok_or(BenchError::Missing("a control socket"))?;
        let quiet = self.exchange(self.duration / 2)?;
        let over = AtomicBool::new(false);
        let (loaded, rate) = std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                step_back();
                let (begin, mut rounds) = (Instant::now(), 0_u32);
                while !over.load(Ordering::Acquire) {
                    for table in TABLES {
                        let answer = network::show(control, table);
                        answer.ok_or(BenchError::Missing("an answer to `show`"))?;
                    }
                    rounds += 1;
                }
                Ok::<f64, BenchError>(f64::from(rounds) / begin.elapsed().as_secs_f64())
            });
            let loaded = {
                let _ending = Ending(&over);
                std::thread::sleep(self.duration / 8);
                self.exchange(self.duration)
            };
            (loaded, joined(asking))
        });
        let achieved = Percentile::P999.achieved(&quiet, &loaded?);
        Ok(achieved.with("shows of all 1/s", rate?))
    }

    /// All other containers but one are detached. Exchanges count from the signal until it is done;
    /// afterwards the containers are attached again.
    pub(super) fn detach(&self) -> Result<Achieved, Problem> {
        let reload = self.network.reload.as_ref();
        let reload = reload.ok_or(BenchError::Missing("a crowd"))?;
        let process = self.network.forwarder.as_ref();
        let process = process.ok_or(BenchError::Missing("a forwarding process"))?;
        reload.check(true)?;
        let quiet = self.exchange(self.duration / 2)?;
        let span = Span::default();
        let window = Window::During(&span);
        let route = self.network.route(Way::Out, IpVersion::V4);
        let (loaded, took) = std::thread::scope(|scope| {
            let exchanging = scope.spawn(|| exchange_within(&route, Transport::Tcp, window));
            std::thread::sleep(self.duration / 8);
            let took = span.run(|| {
                let begin = Instant::now();
                reload.perform(process, false).map(|()| begin.elapsed())
            });
            (joined(exchanging), took)
        });
        let took = took?;
        reload.check(false)?;
        reload.perform(process, true)?;
        let achieved = Percentile::P999.achieved(&quiet, &loaded?);
        Ok(achieved.with("detached in ms", took.as_secs_f64() * 1e3))
    }

    fn exchange(&self, duration: Duration) -> Result<Latencies, TrafficError> {
        let route = self.network.route(Way::Out, IpVersion::V4);
        exchange(&route, Transport::Tcp, duration)
    }
}

fn joined<R>(thread: ScopedJoinHandle<'_, R>) -> R {
    let result = thread.join();
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Returns how many datagrams the container's kernel has taken.
fn send_to_unused(socket: &UdpSocket, over: &AtomicBool) -> std::io::Result<u64> {
    step_back();
    let mut sent = 0;
    while !over.load(Ordering::Acquire) {
        let begin = Instant::now();
        for host in UNUSED {
            let address = (Ipv4Addr::new(203, 0, 113, host), 53);
            for _ in 0..DATAGRAMS {
                match socket.send_to(&[0; 32], address) {
                    Ok(_) => sent += 1,
                    Err(error) if is_refusal(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        std::thread::sleep(PERIOD.saturating_sub(begin.elapsed()));
    }
    Ok(sent)
}

/// The container's own queue is full, or an ICMP error about earlier datagrams.
fn is_refusal(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
        || matches!(
            error.kind(),
            ErrorKind::WouldBlock | ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable
        )
}
