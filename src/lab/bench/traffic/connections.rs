//! Connections: how fast they come and go, and many at a time.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token, Waker};
use socket2::SockRef;

use super::{LIMIT, Route, TrafficError, joined};

/// How often a waiting server looks whether it is still needed.
const LOOK: Duration = Duration::from_millis(50);

/// What was counted, and in which time.
#[derive(Clone, Copy, Debug)]
pub(in crate::lab::bench) struct Count {
    pub(in crate::lab::bench) number: u64,
    pub(in crate::lab::bench) elapsed: Duration,
}

impl Count {
    /// A second.
    pub(in crate::lab::bench) fn rate(&self) -> f64 {
        self.number as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// Connects, sends an octet, receives it, is told the end, and closes; one after the other for
/// `duration`. The server closes first, so that no port of the client stays in TIME-WAIT.
pub(in crate::lab::bench) fn one_by_one(
    route: &Route<'_>,
    duration: Duration,
) -> Result<Count, TrafficError> {
    let listener = route.listener()?;
    SockRef::from(&listener)
        .set_read_timeout(Some(LOOK))
        .map_err(TrafficError::io("accept"))?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&listener, &stop));
        let counted = route.client.run(|| visit(route, duration));
        stop.store(true, Ordering::Release);
        let served = joined(serving);
        let count = counted??;
        served.map_err(TrafficError::io("serve"))?;
        Ok(count)
    })
}

fn visit(route: &Route<'_>, duration: Duration) -> Result<Count, TrafficError> {
    let begin = Instant::now();
    let mut number = 0_u64;
    while begin.elapsed() < duration {
        let octet = u8::try_from(number % 251).unwrap_or(0);
        let answer = ask(route, octet).map_err(TrafficError::io("connect and ask"))?;
        if answer != [octet] {
            let text = format!("the answer to octet {octet} is {answer:?}");
            return Err(TrafficError::Wrong(text));
        }
        number += 1;
    }
    Ok(Count {
        number,
        elapsed: begin.elapsed(),
    })
}

fn ask(route: &Route<'_>, octet: u8) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&route.connect, LIMIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(&[octet])?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

fn serve(listener: &TcpListener, stop: &AtomicBool) -> io::Result<()> {
    while !stop.load(Ordering::Acquire) {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if is_timeout(&error) => continue,
            Err(error) => return Err(error),
        };
        stream.set_read_timeout(Some(LIMIT))?;
        let mut octet = [0];
        stream.read_exact(&mut octet)?;
        stream.write_all(&octet)?;
    }
    Ok(())
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

/// Connections on which an octet is under way at a time.
const GROUP: usize = 64;

/// Opens `count` connections, and exchanges an octet on each in turn for `duration`; returns how
/// many connections were opened and how many octets exchanged.
pub(in crate::lab::bench) fn many(
    route: &Route<'_>,
    count: usize,
    duration: Duration,
) -> Result<(Count, Count), TrafficError> {
    let listener = route.listener()?;
    let failed = TrafficError::io("serve many connections");
    let server = Server::new(listener).map_err(failed)?;
    let waker = Waker::new(server.poll.registry(), WAKE);
    let waker = waker.map_err(TrafficError::io("make a waker"))?;
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| server.serve());
        let counted = open_and_exchange(route, count, duration);
        let woken = waker.wake();
        let served = joined(serving);
        let counted = counted?;
        woken.and(served).map_err(TrafficError::io("serve"))?;
        Ok(counted)
    })
}

fn open_and_exchange(
    route: &Route<'_>,
    count: usize,
    duration: Duration,
) -> Result<(Count, Count), TrafficError> {
    let begin = Instant::now();
    let mut streams = route.connect(count)?;
    let opened = Count {
        number: streams.len() as u64,
        elapsed: begin.elapsed(),
    };
    for stream in &streams {
        let set = stream.set_nodelay(true);
        set.and_then(|()| stream.set_read_timeout(Some(LIMIT)))
            .map_err(TrafficError::io("prepare a connection"))?;
    }
    let begin = Instant::now();
    let mut number = 0_u64;
    while begin.elapsed() < duration {
        for group in streams.chunks_mut(GROUP) {
            exchange(group)?;
            number += group.len() as u64;
            if begin.elapsed() >= duration {
                break;
            }
        }
    }
    let exchanged = Count {
        number,
        elapsed: begin.elapsed(),
    };
    Ok((opened, exchanged))
}

fn exchange(group: &mut [TcpStream]) -> Result<(), TrafficError> {
    let octets = (1..=u8::MAX).cycle();
    for (stream, octet) in group.iter_mut().zip(octets.clone()) {
        stream
            .write_all(&[octet])
            .map_err(TrafficError::io("send an octet"))?;
    }
    for (stream, octet) in group.iter_mut().zip(octets) {
        let mut answer = [0];
        let read = stream.read_exact(&mut answer);
        read.map_err(TrafficError::io("receive an octet"))?;
        if answer != [octet] {
            let text = format!("octet {octet} came back as {}", answer[0]);
            return Err(TrafficError::Wrong(text));
        }
    }
    Ok(())
}

const WAKE: Token = Token(usize::MAX - 1);
const LISTENER: Token = Token(usize::MAX - 2);

/// Sends back what it gets, on any number of connections.
struct Server {
    poll: Poll,
    listener: mio::net::TcpListener,
    streams: Vec<mio::net::TcpStream>,
}

impl Server {
    fn new(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let mut listener = mio::net::TcpListener::from_std(listener);
        let poll = Poll::new()?;
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener,
            streams: Vec::new(),
        })
    }

    /// Until it is woken.
    fn serve(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for event in &events {
                match event.token() {
                    WAKE => return Ok(()),
                    LISTENER => self.accept()?,
                    Token(number) => self.echo(number)?,
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            stream.set_nodelay(true)?;
            let token = Token(self.streams.len());
            self.poll
                .registry()
                .register(&mut stream, token, Interest::READABLE)?;
            self.streams.push(stream);
        }
    }

    fn echo(&mut self, number: usize) -> io::Result<()> {
        let Some(stream) = self.streams.get_mut(number) else {
            return Ok(());
        };
        let mut octets = [0; 64];
        loop {
            match stream.read(&mut octets) {
                Ok(0) => return Ok(()),
                Ok(length) => stream.write_all(&octets[..length])?,
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::ConnectionReset
                    ) =>
                {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }
}
