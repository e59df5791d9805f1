//! The daemon's end: many clients, none of which can hold it up.
//!
//! A connection goes through three states, each with a deadline:
//!
//! | state | entered by | left by |
//! |---|---|---|
//! | `Reading` | accept | a whole line: to `Waiting`, or with a refusal to `Writing` |
//! | `Waiting` | its request, which [`Server::poll_request`] yields | [`Server::respond`], [`Server::hold`] |
//! | `Writing` | a response or refusal | the last octet: closed, or `Reading` again of one that holds something |
//! | `Watching` | [`Server::watch`] | the client hangs up, or says anything; has no deadline |
//!
//! A connection that **holds** something ([`Server::hold`]) stays open, silent for as long as it
//! likes, and [`Server::poll_ended`] tells when it is over.
//!
//! What one client does costs others nothing: what each may say is bounded in octets and time, who
//! has the most connections is the first to lose one where another client has fewer and finds no
//! room, and requests of different clients take turns.
//!
//! Events are edge-triggered: each handler goes on until the socket would block.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use nos_shim::time::Instant;

use super::connection::{Connection, Peer, RESPONSE_TIMEOUT, State, Step};
use super::event::Event;
use super::protocol::{
    Refusal, RefusalCode, Request, Response, decode_request, encode_event, encode_response,
};
use super::socket::{Access, BindError, ControlSocket};
use super::watchers::{Lines, MAX_WATCHERS};

/// Connections at a time that ask, are answered, or watch; others are refused.
pub const MAX_CONNECTIONS: usize = 16;

/// Connections at a time that hold something and are silent, besides those.
pub const MAX_HOLDERS: usize = 256;

/// When to try again to accept, if the process has no file descriptor left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Connections that are accepted before anything else is looked at.
const MAX_ACCEPTS: usize = 64;

/// Names a connection, for the life of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    slot: usize,
    /// Tells apart those that had the same slot.
    generation: u64,
}

impl ConnectionId {
    /// A number that no other connection of this server has or had.
    #[must_use]
    pub fn number(self) -> u64 {
        self.generation
    }
}

/// A request, and who asks.
#[derive(Debug)]
pub struct Asked {
    /// Whom to answer.
    pub connection: ConnectionId,
    /// What is asked.
    pub request: Request,
    /// By what the client knows the request, if it does.
    pub id: Option<String>,
    /// Who asks.
    pub peer: Peer,
    /// What came along with a request; with one that speaks of a pidfd and brings none, the pidfd of
    /// who asks, if the kernel gives it (`SO_PEERPIDFD`, Linux 6.5).
    pub descriptor: Option<OwnedFd>,
}

/// The control socket and its connections.
#[derive(Debug)]
pub struct Server {
    /// None where only [adopted](Self::adopt) connections ask.
    listener: Option<UnixListener>,
    registry: Registry,
    first: Token,
    slots: Vec<Option<Connection>>,
    accepted: u64,
    accept_again: Option<Instant>,
    requests: VecDeque<Asked>,
    /// The process whose request was yielded last.
    last_served: Option<i32>,
    /// Connections that held something and are over.
    ended: VecDeque<u64>,
    /// Last, so that the file goes after the listener.
    socket: Option<ControlSocket>,
}

/// Connections that there is room for.
const SLOTS: usize = MAX_CONNECTIONS + MAX_HOLDERS;

impl Server {
    /// How many tokens the server uses, from the first on.
    pub const TOKENS: usize = 1 + SLOTS;

    /// Listens at `path`, and registers with `registry` under the tokens from `first` on.
    ///
    /// The socket's file is for those that `access` says. It replaces the socket of a daemon that has
    /// died.
    ///
    /// # Errors
    ///
    /// [`BindError`], when another daemon is there or the system refuses.
    pub fn bind(
        path: &Path,
        access: &Access,
        registry: &Registry,
        first: Token,
    ) -> Result<Self, BindError> {
        let io = |error| BindError::Io {
            path: path.to_owned(),
            error,
        };
        let (socket, listener) = ControlSocket::bind(path, access)?;
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
        let mut listener = UnixListener::from_std(listener.into());
        registry.register(&mut listener, first, Interest::READABLE)?;
        let mut server = Self::without_socket(registry, first)?;
        server.listener = Some(listener);
        server.socket = Some(socket);
        Ok(server)
    }

    /// A server at whose connections nobody arrives but by [`Self::adopt`].
    ///
    /// # Errors
    ///
    /// There is no descriptor left.
    pub fn without_socket(registry: &Registry, first: Token) -> io::Result<Self> {
        Ok(Self {
            listener: None,
            registry: registry.try_clone()?,
            first,
            slots: (0..SLOTS).map(|_| None).collect(),
            accepted: 0,
            accept_again: None,
            requests: VecDeque::new(),
            last_served: None,
            ended: VecDeque::new(),
            socket: None,
        })
    }

    /// Serves a connection that somebody made by other means, as one that has been accepted.
    pub fn adopt(&mut self, stream: OwnedFd, now: Instant) {
        let stream = std::os::unix::net::UnixStream::from(stream);
        if let Err(error) = stream.set_nonblocking(true) {
            tracing::warn!("a connection cannot be served: {error}");
            return;
        }
        self.admit(UnixStream::from_std(stream), now);
    }

    /// The listener and the lock, for another process.
    ///
    /// # Errors
    ///
    /// There is no descriptor left.
    pub(in crate::control) fn duplicate(&self) -> io::Result<[OwnedFd; 2]> {
        let (Some(listener), Some(socket)) = (&self.listener, &self.socket) else {
            return Err(ErrorKind::Unsupported.into());
        };
        let listener = listener.as_fd().try_clone_to_owned()?;
        Ok([listener, socket.duplicate_lock()?])
    }

    /// Ends without taking the files away, which are another process's now.
    pub(in crate::control) fn leave(mut self) {
        if let Some(socket) = &mut self.socket {
            socket.leave();
        }
    }

    /// Answers a request, and gives up its connection, which is watched as `token` from now on: whoever
    /// gets it goes on with it.
    ///
    /// # Errors
    ///
    /// The connection has gone, or cannot be watched.
    pub(in crate::control) fn release(
        &mut self,
        id: ConnectionId,
        response: &Response,
        token: Token,
    ) -> io::Result<UnixStream> {
        let waits = self.waiting(id).is_some();
        let slot = self.slots.get_mut(id.slot).filter(|_| waits);
        let Some(connection) = slot.and_then(Option::take) else {
            return Err(ErrorKind::NotConnected.into());
        };
        let mut stream = connection.stream;
        self.registry.deregister(&mut stream)?;
        self.registry
            .register(&mut stream, token, Interest::READABLE)?;
        // Nothing was sent there before: a short answer finds room.
        let octets = encode_response(response);
        match stream.write(&octets)? == octets.len() {
            true => Ok(stream),
            false => Err(ErrorKind::WriteZero.into()),
        }
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
            Some(n) if n <= SLOTS => self.advance(n - 1, now),
            _ => {}
        }
    }

    /// The next request, which [`Self::respond`] must answer. Those of different processes take turns.
    pub fn poll_request(&mut self) -> Option<Asked> {
        let mut pids = self.requests.iter().map(|asked| asked.peer.pid);
        let other = pids.position(|pid| Some(pid) != self.last_served);
        let asked = self.requests.remove(other.unwrap_or(0))?;
        self.last_served = Some(asked.peer.pid);
        Some(asked)
    }

    /// How many requests [`Self::poll_request`] would yield.
    #[must_use]
    pub fn waiting_requests(&self) -> usize {
        self.requests.len()
    }

    /// Whether there is a connection that held something and is over.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// The next connection that held something and is over, by its [number](ConnectionId::number).
    pub fn poll_ended(&mut self) -> Option<u64> {
        self.ended.pop_front()
    }

    /// Answers a request. Does nothing if the connection has gone meanwhile.
    pub fn respond(&mut self, id: ConnectionId, response: &Response, now: Instant) {
        if let Some(connection) = self.waiting(id) {
            connection.answer(response, now);
            self.advance(id.slot, now);
        }
    }

    /// Answers a request, and keeps the connection open: something is held by it from now on. If it has
    /// gone meanwhile, that is told as any other end.
    pub fn hold(&mut self, id: ConnectionId, response: &Response, now: Instant) {
        match self.waiting(id) {
            Some(connection) => {
                connection.holds = true;
                connection.answer(response, now);
                self.advance(id.slot, now);
            }
            None => self.ended.push_back(id.number()),
        }
    }

    /// Whether there is room for a connection to hold something.
    #[must_use]
    pub fn may_hold(&self, id: ConnectionId) -> bool {
        let slot = self.slots.get(id.slot).and_then(Option::as_ref);
        let holds = slot.is_some_and(|it| it.generation == id.generation && it.holds);
        let holders = self.slots.iter().flatten().filter(|it| it.holds).count();
        holds || holders < MAX_HOLDERS
    }

    /// Answers a request to watch: events follow until the client hangs up.
    pub fn watch(&mut self, id: ConnectionId, now: Instant) {
        self.begin_watch(id, None, now);
    }

    /// The same where registrations are asked for: these come first, however many they are, told at
    /// `time_ms`.
    pub fn watch_registrations(
        &mut self,
        id: ConnectionId,
        time_ms: u64,
        registered: &[Event],
        now: Instant,
    ) {
        self.begin_watch(id, Some((time_ms, registered)), now);
    }

    fn begin_watch(&mut self, id: ConnectionId, registered: Option<(u64, &[Event])>, now: Instant) {
        if self.watchers() >= MAX_WATCHERS {
            let message = format!("{MAX_WATCHERS} others watch already; try again later");
            let refusal = Refusal::new(RefusalCode::Busy, message);
            return self.respond(id, &Response::Refused(refusal), now);
        }
        if let Some(connection) = self.waiting(id) {
            let mut lines = Lines::default();
            let registrations = registered.map(|(_, all)| all.len());
            lines.push_always(encode_response(&Response::Watching { registrations }).into());
            let (time_ms, all) = registered.unwrap_or_default();
            for event in all {
                lines.push_always(encode_event(time_ms, event).into());
            }
            connection.state = State::Watching {
                lines,
                registrations: registrations.is_some(),
            };
            connection.deadline = None;
            self.advance(id.slot, now);
        }
    }

    /// How many clients watch.
    #[must_use]
    pub fn watchers(&self) -> usize {
        let watching = |it: &&Connection| matches!(it.state, State::Watching { .. });
        self.slots.iter().flatten().filter(watching).count()
    }

    /// Tells everybody who watches what has happened.
    pub fn publish(&mut self, time_ms: u64, event: &Event, now: Instant) {
        let line: Arc<[u8]> = encode_event(time_ms, event).into();
        let is_registration = matches!(event, Event::Registration { .. });
        for slot in 0..SLOTS {
            if let Some(connection) = &mut self.slots[slot]
                && let State::Watching {
                    lines,
                    registrations,
                } = &mut connection.state
                && (*registrations || !is_registration)
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
        for slot in 0..SLOTS {
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
        for _ in 0..MAX_ACCEPTS {
            let Some(listener) = &self.listener else {
                return;
            };
            match listener.accept() {
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
        // There may be more, behind what else there is to do.
        self.accept_again = Some(now);
    }

    fn admit(&mut self, stream: UnixStream, now: Instant) {
        self.accepted += 1;
        let mut connection = Connection::new(stream, self.accepted, now);
        if !self.has_room_for(connection.peer) {
            return refuse(&mut connection.stream);
        }
        let Some(slot) = self.slots.iter().position(Option::is_none) else {
            return refuse(&mut connection.stream);
        };
        let token = self.token(slot);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = self
            .registry
            .register(&mut connection.stream, token, interest);
        if let Err(error) = registered {
            tracing::warn!("control socket: cannot register a connection: {error}");
            return;
        }
        self.slots[slot] = Some(connection);
        self.advance(slot, now);
    }

    /// Whether one more client can be served. Of a process that has more connections than this client,
    /// the oldest that has not asked yet, or does not read its answer, makes way.
    fn has_room_for(&mut self, peer: Peer) -> bool {
        let mut by_process: BTreeMap<i32, usize> = BTreeMap::new();
        let served = self.slots.iter().flatten().filter(|it| !it.is_idle());
        let mut all = 0;
        for connection in served {
            *by_process.entry(connection.peer.pid).or_default() += 1;
            all += 1;
        }
        if all < MAX_CONNECTIONS {
            return true;
        }
        let own = by_process.get(&peer.pid).copied().unwrap_or_default();
        let most = by_process.iter().max_by_key(|(_, count)| **count);
        let Some(pid) = most.and_then(|(pid, count)| (*count > own + 1).then_some(*pid)) else {
            return false;
        };
        let stalls = |it: &Connection| {
            let state = matches!(it.state, State::Reading | State::Writing { .. });
            it.peer.pid == pid && state && !it.holds
        };
        let slots = self.slots.iter().enumerate();
        let stalled = slots.filter_map(|(slot, it)| {
            let connection = it.as_ref().filter(|it| stalls(it))?;
            Some((connection.generation, slot))
        });
        let Some((_, slot)) = stalled.min() else {
            return false;
        };
        if let Some(connection) = &mut self.slots[slot] {
            refuse(&mut connection.stream);
        }
        self.close(slot);
        true
    }

    fn token(&self, slot: usize) -> Token {
        Token(self.first.0 + 1 + slot)
    }

    /// Does what the connection's state allows.
    fn advance(&mut self, slot: usize, now: Instant) {
        while let Some(connection) = &mut self.slots[slot] {
            match connection.step(now) {
                Step::Blocked => return,
                Step::Again => {}
                Step::Finished => self.close(slot),
                Step::Refuse(refusal) => connection.refuse(refusal, now),
                Step::Line(line, descriptor) => match decode_request(&line) {
                    Err(refusal) => connection.answer(&Response::Refused(refusal), now),
                    Ok((id, request)) => {
                        connection.state = State::Waiting;
                        connection.deadline = Some(now + RESPONSE_TIMEOUT);
                        let generation = connection.generation;
                        let descriptor = descriptor.or_else(|| {
                            let of_process = lease(&request) == Some("pidfd");
                            of_process.then(|| peer_pidfd(connection.stream.as_fd()))?
                        });
                        self.requests.push_back(Asked {
                            connection: ConnectionId { slot, generation },
                            request,
                            id,
                            peer: connection.peer,
                            descriptor,
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
            if connection.holds {
                self.ended.push_back(connection.generation);
            }
        }
    }
}

/// With whose end what is asked for is to end.
fn lease(request: &Request) -> Option<&str> {
    let (_, keys) = request.change()?;
    keys.value("lease")
}

/// Says that there is no room. It fits the empty send buffer, or the client does without.
fn refuse(stream: &mut UnixStream) {
    let refusal = Refusal::new(RefusalCode::Busy, "too many connections; try again later");
    let _ = stream.write(&encode_response(&Response::Refused(refusal)));
}

/// A pidfd of the process that connected. The kernel has kept it apart from others of its number.
fn peer_pidfd(stream: BorrowedFd<'_>) -> Option<OwnedFd> {
    /// `SO_PEERPIDFD` of `asm-generic/socket.h`.
    const PEER_PIDFD: libc::c_int = 77;
    let mut descriptor: libc::c_int = -1;
    let mut length = libc::socklen_t::try_from(size_of::<libc::c_int>()).ok()?;
    // SAFETY: the kernel writes at most `length` octets to `descriptor`; both live until it returns.
    let done = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            PEER_PIDFD,
            (&raw mut descriptor).cast(),
            &raw mut length,
        )
    };
    if done != 0 || descriptor < 0 {
        return None;
    }
    // SAFETY: the kernel has just made it for us, and nobody else knows it.
    Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
