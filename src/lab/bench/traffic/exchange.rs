//! One octet there and one back, again and again: latency.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{LIMIT, Route, TrafficError, Transport, accept, joined};

/// Exchanges before the first that counts: neighbors and caches are warm then.
const WARM_UP: usize = 32;
/// A datagram that has not come back by then is lost.
const LOST_AFTER: Duration = Duration::from_millis(200);

/// How long exchanges took, in nanoseconds, shortest first.
#[derive(Clone, Debug, Default)]
pub(in crate::lab::bench) struct Latencies {
    sorted: Vec<u64>,
    /// Datagrams that did not come back.
    pub(in crate::lab::bench) lost: u64,
}

impl Latencies {
    fn new(mut nanoseconds: Vec<u64>, lost: u64) -> Self {
        nanoseconds.sort_unstable();
        Self {
            sorted: nanoseconds,
            lost,
        }
    }

    /// How many exchanges.
    pub(in crate::lab::bench) fn count(&self) -> u64 {
        self.sorted.len() as u64
    }

    /// The time that `per_mille` of 1000 exchanges do not exceed, in microseconds.
    pub(in crate::lab::bench) fn percentile(&self, per_mille: usize) -> f64 {
        let rank = (self.sorted.len() * per_mille).div_ceil(1000).max(1);
        self.sorted
            .get(rank - 1)
            .map_or(f64::NAN, |&nanoseconds| nanoseconds as f64 / 1e3)
    }
}

/// Which exchanges count, and when there are enough.
#[derive(Clone, Copy, Debug)]
pub(in crate::lab::bench) enum Window<'a> {
    /// Those of so long a time.
    For(Duration),
    /// Those between the beginning of something and its end.
    During(&'a Span),
}

/// Something that begins and ends on another thread.
#[derive(Debug, Default)]
pub(in crate::lab::bench) struct Span {
    begun: AtomicBool,
    ended: AtomicBool,
}

impl Span {
    /// Runs `work`, which is between beginning and end.
    pub(in crate::lab::bench) fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        self.begun.store(true, Ordering::Release);
        let result = work();
        self.ended.store(true, Ordering::Release);
        result
    }
}

/// Exchanges octets for `duration`.
pub(in crate::lab::bench) fn exchange(
    route: &Route<'_>,
    transport: Transport,
    duration: Duration,
) -> Result<Latencies, TrafficError> {
    exchange_within(route, transport, Window::For(duration))
}

/// Exchanges octets as long as `window` says.
pub(in crate::lab::bench) fn exchange_within(
    route: &Route<'_>,
    transport: Transport,
    window: Window<'_>,
) -> Result<Latencies, TrafficError> {
    let latencies = match transport {
        Transport::Tcp => over_tcp(route, window),
        Transport::Udp => over_udp(route, window),
    }?;
    match latencies.count() {
        0 => Err(TrafficError::Stalled("nothing came back".to_owned())),
        _ => Ok(latencies),
    }
}

fn over_tcp(route: &Route<'_>, window: Window<'_>) -> Result<Latencies, TrafficError> {
    let listener = route.listener()?;
    let mut near = route.connect(1)?.remove(0);
    let far = accept(&listener)?;
    prepare(&near)
        .and_then(|()| prepare(&far))
        .map_err(TrafficError::io("prepare a connection"))?;
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| echo(far));
        let times = repeat(window, |octet| {
            near.write_all(&[octet])?;
            let mut answer = [0];
            near.read_exact(&mut answer)?;
            Ok(Some(answer[0]))
        });
        let _ = near.shutdown(std::net::Shutdown::Both);
        let echoed = joined(echo);
        let times = times?;
        echoed.map_err(TrafficError::io("answer"))?;
        Ok(times)
    })
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut octets = [0; 64];
    loop {
        match stream.read(&mut octets) {
            Ok(0) => return Ok(()),
            Ok(length) => stream.write_all(&octets[..length])?,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn over_udp(route: &Route<'_>, window: Window<'_>) -> Result<Latencies, TrafficError> {
    let far = route.receiver()?;
    let near = route.senders(1)?.remove(0);
    far.set_read_timeout(Some(LOST_AFTER))
        .and_then(|()| near.set_read_timeout(Some(LOST_AFTER)))
        .map_err(TrafficError::io("prepare a socket"))?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| answer(&far, &stop));
        let times = repeat(window, |octet| {
            near.send(&[octet])?;
            let mut answer = [0; 2];
            loop {
                match near.recv(&mut answer) {
                    // One that was given up for lost.
                    Ok(1) if answer[0] != octet => {}
                    Ok(_) => return Ok(Some(answer[0])),
                    Err(error) if is_timeout(&error) => return Ok(None),
                    Err(error) => return Err(error),
                }
            }
        });
        stop.store(true, Ordering::Release);
        joined(answering).map_err(TrafficError::io("answer"))?;
        times
    })
}

fn answer(socket: &UdpSocket, stop: &AtomicBool) -> io::Result<()> {
    let mut octets = [0; 64];
    while !stop.load(Ordering::Acquire) {
        match socket.recv_from(&mut octets) {
            Ok((length, peer)) => drop(socket.send_to(&octets[..length], peer)?),
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Times `once`, which sends an octet and returns the one that came back, or none if it was lost.
fn repeat(
    window: Window<'_>,
    mut once: impl FnMut(u8) -> io::Result<Option<u8>>,
) -> Result<Latencies, TrafficError> {
    let (mut times, mut lost) = (Vec::new(), 0);
    let mut octet = 0_u8;
    let mut warm_up = WARM_UP;
    let mut since = Instant::now();
    loop {
        octet = octet.wrapping_add(1);
        let begin = Instant::now();
        let (counts, over) = match window {
            Window::For(duration) => (true, begin.duration_since(since) >= duration),
            Window::During(span) => (
                span.begun.load(Ordering::Acquire),
                span.ended.load(Ordering::Acquire),
            ),
        };
        if over {
            return Ok(Latencies::new(times, lost));
        }
        let answer = once(octet).map_err(TrafficError::io("exchange an octet"))?;
        let took = begin.elapsed().as_nanos();
        match answer {
            None => lost += 1,
            Some(answer) if answer != octet => {
                let text = format!("octet {octet} came back as {answer}");
                return Err(TrafficError::Wrong(text));
            }
            Some(_) if warm_up > 0 => {
                warm_up -= 1;
                since = Instant::now();
            }
            Some(_) if !counts => {}
            Some(_) => times.push(u64::try_from(took).unwrap_or(u64::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_times() {
        let times = Latencies::new((1..=1000).rev().map(|n| n * 1000).collect(), 0);
        let close = |per_mille, wanted: f64| (times.percentile(per_mille) - wanted).abs() < 1e-9;
        assert!(close(500, 500.0) && close(990, 990.0) && close(999, 999.0));
        assert!(close(0, 1.0) && close(1000, 1000.0));
        assert!(Latencies::default().percentile(500).is_nan());
    }

    #[test]
    fn exchanges_before_something_begins_and_after_its_end_do_not_count() {
        let (span, mut number) = (Span::default(), 0);
        let times = repeat(Window::During(&span), |octet| {
            number += 1;
            match number {
                100 => span.begun.store(true, Ordering::Release),
                110 => span.ended.store(true, Ordering::Release),
                _ => {}
            }
            Ok(Some(octet))
        });
        assert_eq!((times.unwrap().count(), number), (10, 110));
    }

    #[test]
    fn a_wrong_answer_is_an_error_and_a_lost_one_is_counted() {
        let wrong = repeat(Window::For(LIMIT), |octet| Ok(Some(octet ^ 1)));
        assert!(matches!(wrong, Err(TrafficError::Wrong(_))));
        let lost = repeat(Window::For(Duration::from_millis(1)), |_| Ok(None)).unwrap();
        assert!(lost.lost > 0 && lost.count() == 0);
    }
}
