//! Interfaces on memory that is shared with another process (FD.io memif), control side.
//!
//! # Theory of operation
//!
//! One thread serves the sockets of all interfaces: it listens and connects, agrees with peers
//! ([`session`]), makes and maps memory, and leaves connections to the [devices](crate::data::device::memif),
//! which data threads have. It sleeps unless a peer or a device has something to say, or something is due:
//!
//! - A client whose server is not there tries again, after 50 ms at first and after a second at last.
//! - A peer that has connected and says nothing for a second is refused.
//! - A peer one of whose rings was full is looked at every 20 ms, until it takes frames again.
//!
//! What a peer does wrong ends its connection, and nothing else. A server then waits for the next client; a
//! client connects again.
//!
//! A peer that dies is noticed by its socket; one that lies, by the device that reads the lie; one that
//! stalls, by its indices ([`stall`]). All that is told as [`News`], as soon as it is noticed.

mod listener;
pub mod message;
mod options;
mod session;
mod sharing;
mod socket;
mod stall;
mod worker;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Sender, bounded, unbounded};
use mio::{Poll, Waker};
use nos_shim::ident::Interface;
use thiserror::Error;

use crate::data::device::memif::{Memif, Notice};

pub use crate::data::device::memif::Side;
pub use listener::ListenError;
pub use options::{Address, Identity, Options, Secret};
pub use session::{Agreed, Attached, MAX_RINGS, PATIENCE, Refusal, Session, Step};
pub use stall::{LOSS, STALL};

use worker::{WAKE, Worker};

/// What happened to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Which.
    pub interface: Interface,
    /// How it is now.
    pub carrier: Carrier,
}

/// Whether frames can pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// A peer of this name takes them.
    Up(String),
    /// A peer is there, and has taken nothing for [`STALL`], though it could have.
    Stalled,
    /// None does, for this reason. Told again when the reason changes.
    Down(String),
}

/// What is said of a peer that has stalled.
pub(crate) const TAKES_NOTHING: &str = "the peer takes nothing";

/// Why there is no interface.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Nobody can connect.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Another interface is this one.
    #[error("{0} is open already")]
    Twice(Address),
    /// The system has no descriptors left.
    #[error("memif {0}")]
    System(#[from] io::Error),
    /// The thread has ended.
    #[error("the thread that serves memif sockets has ended")]
    Stopped,
}

/// What is asked of the thread.
enum Command {
    Open(Interface, String, Options, Sender<Result<Memif, OpenError>>),
    Stop,
}

/// The hold on the thread that serves the sockets. It ends when this is dropped.
pub struct Sockets {
    commands: Sender<Command>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sockets").finish_non_exhaustive()
    }
}

impl Sockets {
    /// Starts the thread. It tells `news`, which must not wait.
    ///
    /// # Errors
    ///
    /// The system has no thread or no descriptor left.
    pub fn start(news: impl Fn(News) + Send + 'static) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let (commands, asked) = unbounded();
        let (noticing, notices) = unbounded::<Notice>();
        let told = (noticing, notices, Arc::clone(&waker));
        let worker = Worker::new(poll, asked, told, Box::new(news));
        let thread = thread::Builder::new()
            .name("memif".to_owned())
            .spawn(move || {
                at_full_priority();
                worker.run();
            })?;
        Ok(Self {
            commands,
            waker,
            thread: Some(thread),
        })
    }

    /// Opens an interface that is called `name`. It is closed when the device is dropped.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub fn open(
        &self,
        interface: Interface,
        name: &str,
        options: Options,
    ) -> Result<Memif, OpenError> {
        let (reply, answer) = bounded(1);
        let command = Command::Open(interface, name.to_owned(), options, reply);
        self.commands
            .send(command)
            .map_err(|_| OpenError::Stopped)?;
        self.waker.wake()?;
        answer.recv().map_err(|_| OpenError::Stopped)?
    }
}

/// Undoes what the thread may have from the control thread, which yields to others: a peer that has gone
/// is to be noticed soon. Without the right to do so it stays as it is.
fn at_full_priority() {
    // SAFETY: the call takes plain numbers. Zero is the calling thread: on Linux a nice value is a
    // thread's own.
    let raised = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) };
    if raised != 0 {
        tracing::debug!("memif sockets are served at the control thread's priority");
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let asked = self.commands.send(Command::Stop).is_ok() && self.waker.wake().is_ok();
        if let Some(thread) = self.thread.take().filter(|_| asked)
            && thread.join().is_err()
        {
            tracing::error!("the thread that serves memif sockets panicked");
        }
    }
}

#[cfg(test)]
mod tests;
