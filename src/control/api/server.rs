//! The daemon's end: many clients, none of which can hold it up.
//!
//! A connection goes through three states, each with a deadline:
//!
//! | state | entered by | left by |
//! |---|---|---|
//! | `Reading` | accept | a whole line: to `Waiting`, or with a refusal to `Writing` |
//! | `Waiting` | its request, which [`Server::poll_request`] yields | [`Server::respond`] |
//! | `Writing` | a response or refusal | the last octet: closed |
//! | `Watching` | [`Server::watch`] | the client hangs up, or says anything; has no deadline |
//!
//! Events are edge-triggered: each handler goes on until the socket would block.

use core::time::Duration;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nos_shim::time::Instant;

use super::event::Event;
use super::protocol::{
    MAX_REQUEST, Refusal, RefusalCode, Request, Response, decode_request, encode_event,
    encode_response,
};
use super::socket::{BindError, ControlSocket};
use super::watchers::{Lines, MAX_WATCHERS};

/// Connections at a time; others are refused.
pub const MAX_CONNECTIONS: usize = 16;

/// Time from the connection to the end of its request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Time that the daemon has to answer, and again that the client has to read the answer.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// When to try again to accept, if the process has no file descriptor left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

const READ_SIZE: usize = 4096;

/// Names a connection, for the life of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    slot: usize,
    /// Tells apart those that had the same slot.
    generation: u64,
}

/// A request, and who asks.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// Whom to answer.
    pub connection: ConnectionId,
    /// What is asked.
    pub request: Request,
    /// By what the client knows the request, if it does.
    pub id: Option<String>,
    /// Who asks.
    pub peer: Peer,
}

/// The process at the other end, as it was when it connected (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its process id; 0 where the kernel does not say, or it is not of our PID namespace.
    pub pid: i32,
    /// Its user id; that of nobody (65534) where the kernel does not say.
    pub uid: u32,
}

impl Peer {
    fn of(stream: &UnixStream) -> Self {
        match getsockopt(stream, PeerCredentials) {
            Ok(peer) => Self {
                pid: peer.pid(),
                uid: peer.uid(),
            },
            Err(_) => Self {
                pid: 0,
                uid: 65_534,
            },
        }
    }
}

/// The control socket and its connections.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    registry: Registry,
    first: Token,
    slots: [Option<Connection>; MAX_CONNECTIONS],
    accepted: u64,
    accept_again: Option<Instant>,
    requests: VecDeque<Asked>,
    /// Last, so that the file goes after the listener.
    socket: ControlSocket,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    generation: u64,
    peer: Peer,
    state: State,
    deadline: Option<Instant>,
}

#[derive(Debug)]
enum State {
    Reading(Vec<u8>),
    Waiting,
    Writing { octets: Vec<u8>, sent: usize },
    Watching(Lines),
}

/// What became of a connection.
enum Step {
    /// It waits for the next event.
    Blocked,
    /// It has nothing left to do.
    Finished,
    /// Its whole request, without the newline.
    Line(Vec<u8>),
    /// It is answered without anybody being asked.
    Refuse(Refusal),
}

impl Server {
    /// How many tokens the server uses, from the first on.
    pub const TOKENS: usize = 1 + MAX_CONNECTIONS;

    /// Listens at `path`, and registers with `registry` under the tokens from `first` on.
    ///
    /// The socket's file has mode 0600. It replaces the socket of a daemon that has died.
    ///
    /// # Errors
    ///
    /// [`BindError`], when another daemon is there or the system refuses.
    pub fn bind(path: &Path, registry: &Registry, first: Token) -> Result<Self, BindError> {
        let io = |error| BindError::Io {
            path: path.to_owned(),
            error,
        };
        let (socket, listener) = ControlSocket::bind(path)?;
        Self::listen(socket, listener, registry, first).map_err(io)
    }

    /// Goes on with the socket of another process, which has ended or leaves it: its listener, and
    /// its lock, as [`Self::duplicate`] gave them.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub(in crate::control) fn received(
        path: &Path,
        [listener, lock]: [OwnedFd; 2],
        registry: &Registry,
        first: Token,
    ) -> Result<Self, BindError> {
        let socket = ControlSocket::received(path, lock)?;
        Self::listen(socket, listener, registry, first).map_err(|error| BindError::Io {
            path: path.to_owned(),
            error,
        })
    }

    fn listen(
        socket: ControlSocket,
        listener: OwnedFd,
        registry: &Registry,
        first: Token,
    ) -> io::Result<Self> {
        let listener = std::os::unix::net::UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        let mut listener = UnixListener::from_std(listener);
        registry.register(&mut listener, first, Interest::READABLE)?;
        Ok(Self {
            listener,
            registry: registry.try_clone()?,
            first,
            slots: Default::default(),
            accepted: 0,
            accept_again: None,
            requests: VecDeque::new(),
            socket,
        })
    }

    /// The listener and the lock, for another process.
    ///
    /// # Errors
    ///
    /// There is no descriptor left.
    pub(in crate::control) fn duplicate(&self) -> io::Result<[OwnedFd; 2]> {
        let listener = self.listener.as_fd().try_clone_to_owned()?;
        Ok([listener, self.socket.duplicate_lock()?])
    }

    /// Ends without taking the files away, which are another process's now.
    pub(in crate::control) fn leave(mut self) {
        self.socket.leave();
    }

    /// Answers a request, and gives up its connection: whoever gets it goes on with it. `None` if it
    /// has gone meanwhile.
    pub(in crate::control) fn release(
        &mut self,
        id: ConnectionId,
        response: &Response,
    ) -> Option<UnixStream> {
        self.waiting(id)?;
        let mut connection = self.slots.get_mut(id.slot)?.take()?;
        let _ = self.registry.deregister(&mut connection.stream);
        // Nothing was sent there before: a short answer finds room.
        let octets = encode_response(response);
        let written = connection.stream.write(&octets).ok()?;
        (written == octets.len()).then_some(connection.stream)
    }

    /// Whether `token` is one of the server's.
    #[must_use]
    pub fn owns(&self, token: Token) -> bool {
        (self.first.0..self.first.0 + Self::TOKENS).contains(&token.0)
    }

    /// Handles an event; [`Self::poll_request`] afterwards. Tokens of others are ignored.
    pub fn handle_ready(&mut self, token: Token, now: Instant) {
        match token.0.checked_sub(self.first.0) {
            Some(0) => self.accept(now),
            Some(n) if n <= MAX_CONNECTIONS => self.advance(n - 1, now),
            _ => {}
        }
    }

    /// The next request, which [`Self::respond`] must answer.
    pub fn poll_request(&mut self) -> Option<Asked> {
        self.requests.pop_front()
    }

    /// Answers a request. Does nothing if the connection has gone meanwhile.
    pub fn respond(&mut self, id: ConnectionId, response: &Response, now: Instant) {
        if let Some(connection) = self.waiting(id) {
            connection.answer(response, now);
            self.advance(id.slot, now);
        }
    }

    /// Answers a request to watch: events follow until the client hangs up.
    pub fn watch(&mut self, id: ConnectionId, now: Instant) {
        if self.watchers() >= MAX_WATCHERS {
            let message = format!("{MAX_WATCHERS} others watch already; try again later");
            let refusal = Refusal::new(RefusalCode::Busy, message);
            return self.respond(id, &Response::Refused(refusal), now);
        }
        if let Some(connection) = self.waiting(id) {
            let mut lines = Lines::default();
            lines.push(&encode_response(&Response::Watching {}).into());
            connection.state = State::Watching(lines);
            connection.deadline = None;
            self.advance(id.slot, now);
        }
    }

    /// How many clients watch.
    #[must_use]
    pub fn watchers(&self) -> usize {
        let watching = |it: &&Connection| matches!(it.state, State::Watching(_));
        self.slots.iter().flatten().filter(watching).count()
    }

    /// Tells everybody who watches what has happened.
    pub fn publish(&mut self, time_ms: u64, event: &Event, now: Instant) {
        let line: Arc<[u8]> = encode_event(time_ms, event).into();
        for slot in 0..MAX_CONNECTIONS {
            if let Some(connection) = &mut self.slots[slot]
                && let State::Watching(lines) = &mut connection.state
            {
                lines.push(&line);
                self.advance(slot, now);
            }
        }
    }

    /// The connection of a request that is not answered yet.
    fn waiting(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let connection = self.slots.get_mut(id.slot)?.as_mut()?;
        let waiting = matches!(connection.state, State::Waiting);
        (waiting && connection.generation == id.generation).then_some(connection)
    }

    /// When [`Self::handle_timeout`] is due, if at all.
    #[must_use]
    pub fn poll_at(&self) -> Option<Instant> {
        let deadlines = self
            .slots
            .iter()
            .flatten()
            .filter_map(|connection| connection.deadline);
        deadlines.chain(self.accept_again).min()
    }

    /// Drops connections that took too long.
    pub fn handle_timeout(&mut self, now: Instant) {
        for slot in 0..MAX_CONNECTIONS {
            if self.slots[slot]
                .as_ref()
                .and_then(|it| it.deadline)
                .is_some_and(|deadline| deadline <= now)
            {
                self.close(slot);
            }
        }
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept(now);
        }
    }

    fn accept(&mut self, now: Instant) {
        self.accept_again = None;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream, now),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return,
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    _ => {
                        tracing::warn!("control socket: cannot accept: {error}");
                        self.accept_again = Some(now + ACCEPT_AGAIN);
                        return;
                    }
                },
            }
        }
    }

    fn admit(&mut self, mut stream: UnixStream, now: Instant) {
        let Some(slot) = self.slots.iter().position(Option::is_none) else {
            let refusal = Refusal::new(RefusalCode::Busy, "too many connections; try again later");
            // It fits the empty send buffer, or the client does without.
            let _ = stream.write(&encode_response(&Response::Refused(refusal)));
            return;
        };
        let token = self.token(slot);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.registry.register(&mut stream, token, interest) {
            tracing::warn!("control socket: cannot register a connection: {error}");
            return;
        }
        let peer = Peer::of(&stream);
        self.accepted += 1;
        self.slots[slot] = Some(Connection {
            stream,
            generation: self.accepted,
            peer,
            state: State::Reading(Vec::new()),
            deadline: Some(now + REQUEST_TIMEOUT),
        });
        self.advance(slot, now);
    }

    fn token(&self, slot: usize) -> Token {
        Token(self.first.0 + 1 + slot)
    }

    /// Does what the connection's state allows.
    fn advance(&mut self, slot: usize, now: Instant) {
        while let Some(connection) = &mut self.slots[slot] {
            match connection.step() {
                Step::Blocked => return,
                Step::Finished => self.close(slot),
                Step::Refuse(refusal) => connection.answer(&Response::Refused(refusal), now),
                Step::Line(line) => match decode_request(&line) {
                    Err(refusal) => connection.answer(&Response::Refused(refusal), now),
                    Ok((id, request)) => {
                        connection.state = State::Waiting;
                        connection.deadline = Some(now + RESPONSE_TIMEOUT);
                        let generation = connection.generation;
                        self.requests.push_back(Asked {
                            connection: ConnectionId { slot, generation },
                            request,
                            id,
                            peer: connection.peer,
                        });
                    }
                },
            }
        }
    }

    fn close(&mut self, slot: usize) {
        if let Some(mut connection) = self.slots[slot].take() {
            // Closing it deregisters it as well.
            let _ = self.registry.deregister(&mut connection.stream);
        }
    }
}

impl Connection {
    fn answer(&mut self, response: &Response, now: Instant) {
        self.deadline = Some(now + RESPONSE_TIMEOUT);
        self.state = State::Writing {
            octets: encode_response(response),
            sent: 0,
        };
    }

    fn step(&mut self) -> Step {
        match &mut self.state {
            State::Reading(line) => read_line(&mut self.stream, line),
            State::Waiting => Step::Blocked,
            State::Writing { octets, sent } => write_rest(&mut self.stream, octets, sent),
            State::Watching(lines) => match is_over(&mut self.stream) {
                true => Step::Finished,
                false => write_lines(&mut self.stream, lines),
            },
        }
    }
}

fn read_line(stream: &mut impl Read, line: &mut Vec<u8>) -> Step {
    let mut octets = [0; READ_SIZE];
    loop {
        let room = (MAX_REQUEST - line.len()).min(READ_SIZE);
        if room == 0 {
            let message = format!("the request is longer than {MAX_REQUEST} octets");
            return Step::Refuse(Refusal::new(RefusalCode::TooLong, message));
        }
        match stream.read(&mut octets[..room]) {
            Ok(0) if line.is_empty() => return Step::Finished,
            Ok(0) => {
                let message = "the request ends without a newline";
                return Step::Refuse(Refusal::new(RefusalCode::BadRequest, message));
            }
            Ok(read) => {
                let new = octets[..read].split(|&octet| octet == b'\n').next();
                let new = new.unwrap_or_default();
                line.extend_from_slice(new);
                if new.len() < read {
                    return Step::Line(core::mem::take(line));
                }
            }
            Err(error) => match unless_interrupted(&error) {
                None => {}
                Some(step) => return step,
            },
        }
    }
}

fn write_rest(stream: &mut impl Write, octets: &[u8], sent: &mut usize) -> Step {
    while *sent < octets.len() {
        match stream.write(&octets[*sent..]) {
            Ok(0) => return Step::Finished,
            Ok(written) => *sent += written,
            Err(error) => match unless_interrupted(&error) {
                None => {}
                Some(step) => return step,
            },
        }
    }
    Step::Finished
}

/// Whether a client that watches has hung up, or says something, which it has nothing to.
fn is_over(stream: &mut impl Read) -> bool {
    loop {
        match stream.read(&mut [0]) {
            Ok(0 | 1..) => return true,
            Err(error) => match unless_interrupted(&error) {
                None => {}
                Some(Step::Blocked) => return false,
                Some(_) => return true,
            },
        }
    }
}

fn write_lines(stream: &mut impl Write, lines: &mut Lines) -> Step {
    while let Some(line) = lines.next() {
        match stream.write(line) {
            Ok(0) => return Step::Finished,
            Ok(written) => lines.note_sent(written),
            Err(error) => match unless_interrupted(&error) {
                None => {}
                Some(step) => return step,
            },
        }
    }
    Step::Blocked
}

fn unless_interrupted(error: &io::Error) -> Option<Step> {
    match error.kind() {
        ErrorKind::Interrupted => None,
        ErrorKind::WouldBlock => Some(Step::Blocked),
        _ => Some(Step::Finished),
    }
}
