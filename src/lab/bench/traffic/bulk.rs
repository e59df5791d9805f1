//! TCP at full rate, every octet of it checked.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Route, TrafficError, accept, joined};
use crate::lab::testbed::pattern;

/// A stream without progress for so long has stalled.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often a blocked thread looks at the time.
const LOOK: Duration = Duration::from_millis(100);

/// What a transfer achieved.
#[derive(Clone, Copy, Debug)]
pub(in crate::lab::bench) struct Bulk {
    /// Octets received and found right.
    pub(in crate::lab::bench) octets: u64,
    /// From the first octet sent to the last received.
    pub(in crate::lab::bench) elapsed: Duration,
    /// Streams that stopped before their end.
    pub(in crate::lab::bench) stalled: usize,
}

/// Sends for `duration` over `streams` connections; `moved` counts the octets as they arrive.
pub(in crate::lab::bench) fn bulk(
    route: &Route<'_>,
    reverse: bool,
    streams: usize,
    duration: Duration,
    moved: &AtomicU64,
) -> Result<Bulk, TrafficError> {
    let listener = route.listener()?;
    let mut pairs = Vec::new();
    for _ in 0..streams {
        // The server's kernel completes the handshake, so accept need not run meanwhile.
        let mut near = route.connect(1)?;
        let far = accept(&listener)?;
        let near = near.remove(0);
        pairs.push(if reverse { (far, near) } else { (near, far) });
    }
    let begin = Instant::now();
    let end = begin + duration;
    let received = std::thread::scope(|scope| {
        // Both ends stay open until the last octet is received: a program may not forward what
        // is left of a connection whose sender is gone.
        let work = pairs.iter().map(|(sender, receiver)| {
            let sending = scope.spawn(move || send(sender, end));
            let receiving = scope.spawn(move || receive(receiver, begin, moved));
            (sending, receiving)
        });
        let work: Vec<_> = work.collect();
        let join = |(sending, receiving)| (joined(sending), joined(receiving));
        work.into_iter().map(join).collect::<Vec<_>>()
    });
    total(received, begin)
}

fn total(
    received: Vec<(io::Result<u64>, Result<Received, TrafficError>)>,
    begin: Instant,
) -> Result<Bulk, TrafficError> {
    let mut bulk = Bulk {
        octets: 0,
        elapsed: Duration::ZERO,
        stalled: 0,
    };
    for (sent, received) in received {
        // The receiver knows better what went wrong.
        let Received {
            octets,
            last,
            ended,
        } = received?;
        bulk.octets += octets;
        bulk.elapsed = bulk.elapsed.max(last.duration_since(begin));
        match sent {
            Ok(sent) if ended && sent != octets => {
                let text = format!("{octets} of {sent} octets of a TCP stream arrived");
                return Err(TrafficError::Wrong(text));
            }
            Err(error) if ended => return Err(TrafficError::io("send")(error)),
            _ => bulk.stalled += usize::from(!ended),
        }
    }
    Ok(bulk)
}

/// Sends the pattern until `end`, then the end of the stream; returns how many octets.
fn send(mut stream: &TcpStream, end: Instant) -> io::Result<u64> {
    stream.set_write_timeout(Some(LOOK))?;
    let mut offset = 0;
    let mut progress = Instant::now();
    loop {
        let now = Instant::now();
        if now >= end || now.duration_since(progress) > PATIENCE {
            break;
        }
        match stream.write(pattern::at(offset, pattern::LONGEST)) {
            Ok(octets) => {
                offset += octets as u64;
                progress = now;
            }
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(offset)
}

struct Received {
    octets: u64,
    last: Instant,
    /// The end of the stream arrived.
    ended: bool,
}

fn receive(
    mut stream: &TcpStream,
    begin: Instant,
    moved: &AtomicU64,
) -> Result<Received, TrafficError> {
    stream
        .set_read_timeout(Some(LOOK))
        .map_err(TrafficError::io("receive"))?;
    let mut block = vec![0; pattern::LONGEST];
    let mut received = Received {
        octets: 0,
        last: begin,
        ended: false,
    };
    loop {
        match stream.read(&mut block) {
            Ok(0) => {
                received.ended = true;
                return Ok(received);
            }
            Ok(length) => {
                let offset = received.octets;
                if let Some(at) = pattern::first_difference(offset, &block[..length]) {
                    let text = format!("octet {at} of a TCP stream was changed");
                    return Err(TrafficError::Wrong(text));
                }
                received.octets += length as u64;
                received.last = Instant::now();
                moved.fetch_add(length as u64, Ordering::Relaxed);
            }
            Err(error) if is_timeout(&error) => {
                if received.last.elapsed() > PATIENCE {
                    return Ok(received);
                }
            }
            Err(error) => return Err(TrafficError::io("receive")(error)),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
