//! The daemon's end: many clients, none of which can hold it up.
//!
//! A connection goes through three states, each with a deadline:
//!
//! | state | entered by | left by |
//! |---|---|---|
//! | `Reading` | accept | a whole line: to `Waiting`, or with a refusal to `Writing` |
//! | `Waiting` | its request, which [`Server::poll_request`] yields | [`Server::respond`] |
//! | `Writing` | a response or refusal | the last octet: closed |
//!
//! Events are edge-triggered: each handler goes on until the socket would block.

use core::time::Duration;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use nos_shim::time::Instant;

use super::protocol::{
    MAX_REQUEST, Refusal, RefusalCode, Request, Response, decode_request, encode_response,
};
use super::socket::{BindError, ControlSocket};

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

/// The control socket and its connections.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    registry: Registry,
    first: Token,
    slots: [Option<Connection>; MAX_CONNECTIONS],
    accepted: u64,
    accept_again: Option<Instant>,
    requests: VecDeque<(ConnectionId, Request)>,
    /// Last, so that the file goes after the listener.
    _socket: ControlSocket,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    generation: u64,
    state: State,
    deadline: Instant,
}

#[derive(Debug)]
enum State {
    Reading(Vec<u8>),
    Waiting,
    Writing { octets: Vec<u8>, sent: usize },
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
        let mut listener = UnixListener::from(listener);
        registry
            .register(&mut listener, first, Interest::READABLE)
            .map_err(io)?;
        Ok(Self {
            listener,
            registry: registry.try_clone().map_err(io)?,
            first,
            slots: Default::default(),
            accepted: 0,
            accept_again: None,
            requests: VecDeque::new(),
            _socket: socket,
        })
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
    pub fn poll_request(&mut self) -> Option<(ConnectionId, Request)> {
        self.requests.pop_front()
    }

    /// Answers a request. Does nothing if the connection has gone meanwhile.
    pub fn respond(&mut self, id: ConnectionId, response: &Response, now: Instant) {
        let connection = self.slots.get_mut(id.slot).and_then(Option::as_mut);
        let Some(connection) = connection.filter(|it| it.generation == id.generation) else {
            return;
        };
        if matches!(connection.state, State::Waiting) {
            connection.answer(response, now);
            self.advance(id.slot, now);
        }
    }

    /// When [`Self::handle_timeout`] is due, if at all.
    #[must_use]
    pub fn poll_at(&self) -> Option<Instant> {
        let deadlines = self
            .slots
            .iter()
            .flatten()
            .map(|connection| connection.deadline);
        deadlines.chain(self.accept_again).min()
    }

    /// Drops connections that took too long.
    pub fn handle_timeout(&mut self, now: Instant) {
        for slot in 0..MAX_CONNECTIONS {
            if self.slots[slot]
                .as_ref()
                .is_some_and(|it| it.deadline <= now)
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
        self.accepted += 1;
        self.slots[slot] = Some(Connection {
            stream,
            generation: self.accepted,
            state: State::Reading(Vec::new()),
            deadline: now + REQUEST_TIMEOUT,
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
                    Ok(request) => {
                        connection.state = State::Waiting;
                        connection.deadline = now + RESPONSE_TIMEOUT;
                        let generation = connection.generation;
                        self.requests
                            .push_back((ConnectionId { slot, generation }, request));
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
        self.deadline = now + RESPONSE_TIMEOUT;
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

fn unless_interrupted(error: &io::Error) -> Option<Step> {
    match error.kind() {
        ErrorKind::Interrupted => None,
        ErrorKind::WouldBlock => Some(Step::Blocked),
        _ => Some(Step::Finished),
    }
}
