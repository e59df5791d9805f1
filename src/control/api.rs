//! The control socket: how `nos-relay show` talks to the daemon.
//!
//! # Theory of operation
//!
//! A Unix stream socket, for its owner alone unless [`Access`] says otherwise. A client connects,
//! sends one [`Request`], gets one [`Response`] and is done. Each message is one line of JSON with the protocol's version:
//!
//! ```text
//! {"version":1,"request":{"type":"show","table":"ports"}}
//! {"version":1,"response":{"type":"ports","data":[...]}}
//! ```
//!
//! What changes at run time is asked for by the same lines; a request that may be sent twice has an
//! id. One that watches gets a line for each [`Event`] until it hangs up. What is registered may be
//! held by the connection that asked, and goes with it.
//!
//! [`Server`] lives in the daemon's control thread, which also waits for signals and netlink. It
//! never blocks and holds bounded memory, whatever clients do: few connections, short requests, a
//! deadline for each. [`query`] is the client: it blocks, but not for ever.
//!
//! What `show` shows is in [`snapshot`]: plain data that the data threads fill in. Their JSON is
//! documented in `docs/control.md`.

mod client;
mod connection;
mod event;
mod protocol;
mod server;
pub mod snapshot;
mod socket;
mod watchers;

pub(in crate::control) use client::converse;
pub use client::{
    ControlError, Held, QUERY_TIMEOUT, Watch, ask, ask_for, hold, query, watch, watch_registrations,
};
pub(crate) use client::{query_on, watch_on};
pub use connection::{MAX_HELD_REQUEST, Peer, REQUEST_TIMEOUT, RESPONSE_TIMEOUT};
pub use event::{Carrier, Event, EventProtocol, RegisteredPorts, Subject, SubjectKind, Watched};
pub use protocol::{
    Applied, Changing, Clash, MAX_ID, MAX_REQUEST, MAX_RESPONSE, Offer, Refusal, RefusalCode,
    Request, Response, Table, VERSION,
};
pub use server::{Asked, ConnectionId, MAX_CONNECTIONS, MAX_HOLDERS, Server};
pub use socket::{Access, BindError, Group};
pub use watchers::{MAX_EVENTS, MAX_WATCHERS};

/// Where the socket is unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/run/nos-relay.sock";
