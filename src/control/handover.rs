//! Hands the open devices of one process over to another.
//!
//! # Theory of operation
//!
//! Goal: a daemon is replaced, and no packet is lost that a kernel queue held. A device is a
//! descriptor; while any process has it, the kernel keeps its interface and its queue. So it is enough
//! that the next process gets the descriptors, and that at no time two processes read them.
//!
//! What is handed over is a [`Manifest`] and the descriptors that it names. The manifest says what the
//! next process cannot find out: which device is whose, what was there before in the containers, and
//! the configuration by which all of it was put in place, so that the next one begins with exactly
//! that, changes nothing, and follows its own configuration as in a reload afterwards.
//!
//! There are two ways:
//!
//! - **From a running process**, over its control socket ([`Taking`]). Each sends the other one octet at
//!   a time:
//!
//! ```text
//! new                                           old
//!  │ request: take over, in this format          │ goes on forwarding
//!  │◄─── answer, manifest, descriptors ──────────│ changes nothing meanwhile
//!  │ takes everything up, reads nothing          │
//!  │─── prepared ───────────────────────────────►│ stops reading, sends what it has
//!  │◄─── stopped, neighbors, flows ──────────────│
//!  │─── ready ──────────────────────────────────►│
//!  │◄─── go ─────────────────────────────────────│ ends, and touches nothing
//!  │ reads                                       │
//! ```
//!
//!   Until it has said "go" the old one goes on where it was if anything fails: the connection closes,
//!   or [`PREPARE_LIMIT`] or [`READY_LIMIT`] passes. The new one reads nothing before it is told to go.
//!   So one of them forwards, and never both.
//! - **From the service manager** ([`Store`]), which keeps the descriptors of a process that ends in
//!   whatever way, and gives them to the next (systemd: file descriptor store).
//!
//! Who may ask is who has the same user id: the descriptors are worth all that the process may do.

mod conversation;
mod manifest;
mod store;
mod wire;

pub use conversation::{
    HandoverError, Offered, PREPARE_LIMIT, READY_LIMIT, Taking, offer, read_signal, send_go,
    send_stopped,
};
pub use manifest::{
    ContainerFacts, Descriptor, EchoFacts, FORMAT, FlowFacts, Inheritance, Manifest, Memory,
    NeighborFacts, Place, UplinkFacts, VethFacts,
};
pub use store::{Store, received};
