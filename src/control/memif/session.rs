//! How two sides agree: which message comes when.
//!
//! ```text
//! client                               server
//!    │ ◄──────── hello ─────────────────  │   what it takes
//!    │ ───────── init ───────────────────►│   which interface, secret
//!    │ ───────── add region, memory ─────►│   each acknowledged
//!    │ ───────── add ring, eventfd ──────►│   each acknowledged
//!    │ ───────── connect ────────────────►│
//!    │ ◄──────── connected ─────────────  │
//! ```
//!
//! A session does no I/O: a message goes in, and what is to be done comes out. Whoever runs it makes and
//! maps memory, passes descriptors, and tells the time. A peer that says something else than what is due,
//! or nothing within [`PATIENCE`] while something is due, is refused for a [`Refusal`].

use std::time::Duration;

use nos_shim::time::Instant;
use thiserror::Error;

use super::message::{
    AddRegion, AddRing, Disconnect, ETHERNET, Hello, Init, Message, MessageError, NAME, Text,
    VERSION,
};
use super::options::{Identity, Secret};
use crate::data::device::memif::{Fault, MAX_LOG2_RING_SIZE, RegionError};

/// How long a peer may take for the next message, until the connection stands.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// The most regions of a peer.
pub(super) const MAX_REGIONS: u16 = 16;

/// The most rings of a direction.
pub const MAX_RINGS: u16 = 16;

/// Why a peer is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// It says something that is no message.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// It says something that is not due.
    #[error("{0} is not due")]
    NotDue(&'static str),
    /// It says nothing, though something is due.
    #[error("nothing for {} ms", PATIENCE.as_millis())]
    Silent,
    /// It speaks another version.
    #[error("version {0:#06x} is not {VERSION:#06x}")]
    Version(u16),
    /// It carries something else than Ethernet frames.
    #[error("mode {0} is not Ethernet")]
    Mode(u8),
    /// Nobody has this number.
    #[error("there is no interface {0}")]
    NoInterface(u32),
    /// Somebody else is connected to the interface.
    #[error("interface {0} is connected")]
    InUse(u32),
    /// It does not know the secret.
    #[error("the secret is wrong")]
    Secret,
    /// The message came without its descriptor, or with more than one.
    #[error("{message} with {count} descriptors")]
    Descriptors {
        /// Which message.
        message: &'static str,
        /// How many came.
        count: usize,
    },
    /// The descriptor is no eventfd.
    #[error("the descriptor of a ring is no eventfd")]
    NoEventfd,
    /// An index is not the next one, or there are too many.
    #[error("{what} {index} where {next} of {most} is next")]
    Order {
        /// Of what.
        what: &'static str,
        /// The index.
        index: u16,
        /// What would be next.
        next: u16,
        /// How many there may be.
        most: u16,
    },
    /// The ring is too large.
    #[error("a ring of 2^{0} descriptors: the largest has 2^{MAX_LOG2_RING_SIZE}")]
    RingSize(u8),
    /// There is no ring of one direction.
    #[error("there is no ring {0}")]
    NoRing(&'static str),
    /// A region is not shared.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// A ring is not what it has to be.
    #[error(transparent)]
    Ring(#[from] Fault),
    /// The system has no descriptor or no memory left.
    #[error("{0}")]
    System(String),
}

impl Refusal {
    /// What the peer is told.
    #[must_use]
    pub fn message(&self) -> Message {
        Message::Disconnect(Disconnect {
            code: 0,
            reason: Text::new(&self.to_string()),
        })
    }
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    None,
    /// As server: find the interface, and have it [taken](Session::claim).
    Claim(Init),
    /// As server: map the region, whose descriptor has come along; then [acknowledge](Session::ack).
    Region(AddRegion),
    /// As server: keep the ring and its descriptor; then [acknowledge](Session::ack).
    Ring(AddRing),
    /// As server: make the connection, and [say so](Session::connected). The client's interface is
    /// called so.
    Connect(Text<NAME>),
    /// As client: make memory and rings for this, [say so](Session::init), and keep it all.
    Share(Agreed),
    /// As client: send this.
    Send(Message, Attached),
    /// The connection stands. The server's interface is called so.
    Up(Text<NAME>),
    /// The peer has ended it, for this reason.
    Ended(Disconnect),
}

/// The descriptor that goes with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// None.
    Nothing,
    /// That of the region.
    Region,
    /// That of a ring.
    Ring {
        /// Whether the client sends by it.
        to_server: bool,
        /// Its index.
        index: u16,
    },
}

/// What client and server both can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Rings to the server.
    pub to_server: u16,
    /// Rings to the client.
    pub to_client: u16,
    /// Each has 2 to the power of this many descriptors.
    pub log2_ring_size: u8,
}

#[derive(Clone, Debug)]
enum State {
    /// Server: which interface?
    AwaitInit,
    /// Server: an interface is found, which takes so many rings a direction.
    Configuring {
        queues: u16,
        regions: u16,
        to_server: u16,
        to_client: u16,
    },
    /// Client: what does the server take?
    AwaitHello,
    /// Client: memory is made.
    Sharing(Agreed),
    /// Client: what was sent is to be acknowledged; then these are sent.
    AwaitAck(Vec<(Message, Attached)>),
    /// Client: all is said.
    AwaitConnected,
    /// Frames go.
    Up,
}

/// One side of a conversation.
#[derive(Clone, Debug)]
pub struct Session {
    state: State,
    /// What we are, as client.
    identity: Option<Identity>,
    heard: Instant,
}

impl Session {
    /// A server's, to whom a client has connected, and the first message.
    #[must_use]
    pub fn server(now: Instant) -> (Self, Message) {
        let hello = Message::Hello(Hello {
            name: program(),
            min_version: VERSION,
            max_version: VERSION,
            max_region: MAX_REGIONS - 1,
            max_to_client: MAX_RINGS - 1,
            max_to_server: MAX_RINGS - 1,
            max_log2_ring_size: MAX_LOG2_RING_SIZE,
        });
        (Self::new(State::AwaitInit, None, now), hello)
    }

    /// A client's, which has connected.
    #[must_use]
    pub fn client(identity: Identity, now: Instant) -> Self {
        Self::new(State::AwaitHello, Some(identity), now)
    }

    fn new(state: State, identity: Option<Identity>, now: Instant) -> Self {
        Self {
            state,
            identity,
            heard: now,
        }
    }

    /// When [`Self::handle_timeout`] is due.
    #[must_use]
    pub fn poll_at(&self) -> Option<Instant> {
        match self.state {
            State::Up => None,
            _ => Some(self.heard + PATIENCE),
        }
    }

    /// Has the time come.
    ///
    /// # Errors
    ///
    /// [`Refusal::Silent`].
    pub fn handle_timeout(&self, now: Instant) -> Result<(), Refusal> {
        match self.poll_at() {
            Some(at) if at <= now => Err(Refusal::Silent),
            _ => Ok(()),
        }
    }

    /// Handles a message that has come with so many descriptors.
    ///
    /// # Errors
    ///
    /// The peer is refused; the session is of no further use.
    pub fn handle(
        &mut self,
        message: Message,
        descriptors: usize,
        now: Instant,
    ) -> Result<Step, Refusal> {
        self.heard = now;
        let wanted = match message {
            Message::AddRegion(_) | Message::AddRing(_) => 1,
            _ => 0,
        };
        if descriptors != wanted {
            return Err(Refusal::Descriptors {
                message: message.name(),
                count: descriptors,
            });
        }
        match (&mut self.state, message) {
            (_, Message::Disconnect(end)) => Ok(Step::Ended(end)),
            (State::AwaitInit, Message::Init(init)) => match init {
                Init { version, .. } if version != VERSION => Err(Refusal::Version(version)),
                Init { mode, .. } if mode != ETHERNET => Err(Refusal::Mode(mode)),
                init => Ok(Step::Claim(init)),
            },
            (State::Configuring { regions, .. }, Message::AddRegion(region)) => {
                next("region", region.index, regions, MAX_REGIONS)?;
                Ok(Step::Region(region))
            }
            (
                State::Configuring {
                    queues,
                    to_server,
                    to_client,
                    ..
                },
                Message::AddRing(ring),
            ) => {
                if ring.log2_size > MAX_LOG2_RING_SIZE {
                    return Err(Refusal::RingSize(ring.log2_size));
                }
                match ring.to_server {
                    true => next("ring to the server", ring.index, to_server, *queues)?,
                    false => next("ring to the client", ring.index, to_client, *queues)?,
                }
                Ok(Step::Ring(ring))
            }
            (
                State::Configuring {
                    to_server,
                    to_client,
                    ..
                },
                Message::Connect(name),
            ) => match (to_server, to_client) {
                (0, _) => Err(Refusal::NoRing("to the server")),
                (_, 0) => Err(Refusal::NoRing("to the client")),
                _ => Ok(Step::Connect(name)),
            },
            (State::AwaitHello, Message::Hello(hello)) => self.handle_hello(hello),
            (State::AwaitAck(rest), Message::Ack) => match rest.pop() {
                Some((message, attached)) => {
                    if rest.is_empty() {
                        self.state = State::AwaitConnected;
                    }
                    Ok(Step::Send(message, attached))
                }
                None => Err(Refusal::NotDue("ack")),
            },
            (State::AwaitConnected, Message::Connected(name)) => {
                self.state = State::Up;
                Ok(Step::Up(name))
            }
            (_, message) => Err(Refusal::NotDue(message.name())),
        }
    }

    /// As server: an interface of this secret, with so many queues, is what the client wants. Returns
    /// what it is told.
    ///
    /// # Errors
    ///
    /// [`Refusal::Secret`].
    pub fn claim(
        &mut self,
        init: &Init,
        secret: Option<&Secret>,
        queues: u16,
    ) -> Result<Message, Refusal> {
        if secret.is_some_and(|secret| !secret.is(init.secret.octets())) {
            return Err(Refusal::Secret);
        }
        self.state = State::Configuring {
            queues,
            regions: 0,
            to_server: 0,
            to_client: 0,
        };
        Ok(Message::Ack)
    }

    /// As server: what was asked is done.
    #[must_use]
    pub fn ack(&self) -> Message {
        Message::Ack
    }

    /// As server: the connection stands, on an interface of this name.
    #[must_use]
    pub fn connected(&mut self, name: &str) -> Message {
        self.state = State::Up;
        Message::Connected(Text::new(name))
    }

    fn handle_hello(&mut self, hello: Hello) -> Result<Step, Refusal> {
        let Some(identity) = &self.identity else {
            return Err(Refusal::NotDue("hello"));
        };
        if !(hello.min_version..=hello.max_version).contains(&VERSION) {
            return Err(Refusal::Version(hello.max_version));
        }
        let queues = |most: u16| identity.queues.min(most.saturating_add(1)).max(1);
        let agreed = Agreed {
            to_server: queues(hello.max_to_server),
            to_client: queues(hello.max_to_client),
            log2_ring_size: identity.log2_ring_size.min(hello.max_log2_ring_size),
        };
        self.state = State::Sharing(agreed);
        Ok(Step::Share(agreed))
    }

    /// As client: a region of `size` octets is made, in which rings are where `offset` says, those to the
    /// server first. Returns what the server is told.
    pub fn init(&mut self, size: u64, offset: impl Fn(bool, u16) -> u32) -> Option<Message> {
        let State::Sharing(agreed) = self.state else {
            return None;
        };
        let identity = self.identity.as_ref()?;
        let ring = |to_server, index| {
            let ring = AddRing {
                to_server,
                index,
                region: 0,
                offset: offset(to_server, index),
                log2_size: agreed.log2_ring_size,
                private_header: 0,
            };
            let attached = Attached::Ring { to_server, index };
            (Message::AddRing(ring), attached)
        };
        let region = Message::AddRegion(AddRegion { index: 0, size });
        let mut script = vec![(region, Attached::Region)];
        script.extend((0..agreed.to_server).map(|index| ring(true, index)));
        script.extend((0..agreed.to_client).map(|index| ring(false, index)));
        let name = Text::new(&identity.name);
        script.push((Message::Connect(name), Attached::Nothing));
        // The first is taken from the end.
        script.reverse();
        let init = Init {
            version: VERSION,
            id: identity.id,
            mode: ETHERNET,
            secret: identity.secret.as_ref().map_or(Text::new(""), Secret::text),
            name: program(),
        };
        self.state = State::AwaitAck(script);
        Some(Message::Init(init))
    }
}

/// What programs call us.
fn program() -> Text<NAME> {
    Text::new(concat!("nos-relay ", env!("CARGO_PKG_VERSION")))
}

/// Takes the next index, of at most so many.
fn next(what: &'static str, index: u16, next: &mut u16, most: u16) -> Result<(), Refusal> {
    if index != *next || index >= most {
        return Err(Refusal::Order {
            what,
            index,
            next: *next,
            most,
        });
    }
    *next += 1;
    Ok(())
}

#[cfg(test)]
mod tests;
