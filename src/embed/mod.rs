//! The relay inside of another program: of a NOS, or of whoever starts containers.
//!
//! # Theory of operation
//!
//! [`Relay::builder`] takes a typed configuration. [`Builder::start`] opens what it needs, starts the
//! data thread and the control thread, and returns the [`Relay`], by which the program asks for changes,
//! and the [`NosPort`], by which a NOS of its own exchanges packets and messages with it:
//!
//! ```text
//! the program              control thread            data thread           the program's NOS
//!   Relay ── orders, requests ──► plans, attaches ──► moves packets ══ channel ══ NosPort ── uplinks
//! ```
//!
//! The NOS has to answer while containers are attached: [`nos_shim::channel`] says what. Containers are
//! attached behind [`Builder::start`]; [`Relay::await_ready`] waits for that.
//!
//! Nothing is global: several relays may run in one process. No signal is caught, nothing is written but
//! by `tracing`, no environment variable is read, and no file is touched but those that the configuration
//! names. The calling threads' namespaces stay as they are.
//!
//! What is asked at run time is what the control socket takes (`docs/control.md`): [`Relay::request`]
//! asks it from inside, with or without such a socket.
//!
//! # Threads
//!
//! [`Relay`] is `Send` and `Sync`; every method may be called by several threads at once. A [`NosPort`]
//! is `Send`, and used by one thread at a time. [`Builder::prepare`] leaves the control thread's work to a
//! thread of the caller's.

mod builder;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;
use parking_lot::Mutex;
use thiserror::Error;

pub use crate::control::api::{ControlError, Request, Response, Watch};
pub use crate::control::config::{ConfigErrors, Keys};
pub use crate::control::daemon::DaemonError;
pub use crate::data::nos_port::NosPort;
pub use builder::{Builder, Container, Device, Interface, Netns};

use crate::control::api;
use crate::control::config::{ConfigFile, NosPlace};
use crate::control::daemon::{EmbeddedDaemon, Orders};

/// What errors call the connection to a relay of the same process.
const NAME: &str = "the embedded relay";

/// The relay is not as it was to be.
#[derive(Debug, Error)]
pub enum RelayError {
    /// It could not start, or had to end.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// Its thread could not be started.
    #[error("cannot start the relay's thread: {0}")]
    Thread(#[source] io::Error),
    /// It has ended.
    #[error("the relay has ended")]
    Ended,
    /// Not all that is there is attached within the time that was given.
    #[error("the relay is not ready after {} ms", .0.as_millis())]
    NotReady(Duration),
    /// A thread of it panicked, which is a fault of the relay.
    #[error("a thread of the relay panicked")]
    Panicked,
}

/// A relay that runs in this process. When the last clone is dropped it ends, and everything that it had
/// put in place is taken away; nobody waits for that. [`Self::stop`] does.
#[derive(Clone, Debug)]
pub struct Relay {
    running: Arc<Running>,
}

#[derive(Debug)]
struct Running {
    orders: Orders,
    /// It has been ready.
    ready: Mutex<bool>,
    /// None where its work is done on a thread of the caller's, or it has been waited for.
    thread: Mutex<Option<JoinHandle<Result<(), DaemonError>>>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended needs no telling.
        let _ = self.orders.stop();
    }
}

/// The work of the control thread, for a thread of the caller's.
#[must_use = "containers are attached by its `run`"]
pub struct Runner {
    daemon: EmbeddedDaemon,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").finish_non_exhaustive()
    }
}

impl Runner {
    /// Attaches containers and looks after them until the relay is told to stop. The thread blocks
    /// meanwhile, and its priority and namespace stay what they are.
    ///
    /// # Errors
    ///
    /// [`DaemonError`]; everything that was put in place has been undone.
    pub fn run(self) -> Result<(), DaemonError> {
        self.daemon.run(false)
    }
}

impl Relay {
    /// A configuration to start from.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn new(orders: Orders) -> Self {
        Self {
            running: Arc::new(Running {
                orders,
                ready: Mutex::new(false),
                thread: Mutex::new(None),
            }),
        }
    }

    /// Waits until all containers are attached whose namespaces are there; the others are attached when
    /// they come.
    ///
    /// # Errors
    ///
    /// [`RelayError::NotReady`] when `limit` has passed; [`RelayError::Ended`], or why it ended.
    pub fn await_ready(&self, limit: Duration) -> Result<(), RelayError> {
        let mut ready = self.running.ready.lock();
        if *ready {
            return Ok(());
        }
        match self.running.orders.ready().recv_timeout(limit) {
            Ok(()) => {
                *ready = true;
                Ok(())
            }
            Err(RecvTimeoutError::Timeout) => Err(RelayError::NotReady(limit)),
            Err(RecvTimeoutError::Disconnected) => {
                Err(self.ended().err().unwrap_or(RelayError::Ended))
            }
        }
    }

    /// Asks for a change, or what there is, as over the control socket.
    ///
    /// # Errors
    ///
    /// [`ControlError`]; what is refused is [`ControlError::Refused`], with field and reason.
    pub fn request(&self, request: &Request, limit: Duration) -> Result<Response, ControlError> {
        api::query_on(self.control_stream()?, Path::new(NAME), request, limit)
    }

    /// Attaches a container, besides those of the configuration. One that is attached already, by the
    /// same keys, stays as it is.
    ///
    /// # Errors
    ///
    /// As [`Self::request`].
    pub fn attach(&self, container: &Container, limit: Duration) -> Result<Response, ControlError> {
        let keys = Keys::default().with("container", container.keys());
        self.request(&Request::Attach(keys), limit)
    }

    /// Takes a container away that was attached at run time.
    ///
    /// # Errors
    ///
    /// As [`Self::request`].
    pub fn detach(&self, name: &str, limit: Duration) -> Result<Response, ControlError> {
        let keys = Keys::default().with("name", name);
        self.request(&Request::Detach(keys), limit)
    }

    /// Is told what happens from now on.
    ///
    /// # Errors
    ///
    /// As [`Self::request`].
    pub fn watch(&self, limit: Duration) -> Result<Watch, ControlError> {
        api::watch_on(self.control_stream()?, Path::new(NAME), limit)
    }

    /// A connection to the control socket, which need not have a path: what it takes and answers is in
    /// `docs/control.md`.
    ///
    /// # Errors
    ///
    /// The relay has ended, or there is no descriptor left.
    pub fn control_stream(&self) -> Result<UnixStream, ControlError> {
        let failed = |error| ControlError::Io {
            path: NAME.into(),
            error,
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        self.running.orders.serve(theirs.into()).map_err(failed)?;
        Ok(ours)
    }

    /// Follows another configuration, as a reload does: what does not differ is not touched. It follows
    /// later; [`Self::watch`] tells what comes of it. Settings of threads and buffers stay as they are.
    ///
    /// # Errors
    ///
    /// [`ConfigErrors`], and nothing has changed.
    pub fn reconfigure(&self, builder: &Builder) -> Result<(), ConfigErrors> {
        let text = builder.text();
        let file = ConfigFile::parse_for(NosPlace::Elsewhere, builder::NAME, &text)?;
        // One that has ended follows nothing, which `await_ready` and `stop` tell.
        let _ = self.running.orders.reload(file);
        Ok(())
    }

    /// The port of another NOS, which takes the place of the one before: that has ended, or is cut off by
    /// this. The new one is told every registration.
    ///
    /// # Errors
    ///
    /// The relay has ended, or there is no descriptor left.
    pub fn join_nos(&self) -> io::Result<NosPort> {
        self.running.orders.join()
    }

    /// Ends it, and waits until everything that it had put in place is taken away. Other clones of it
    /// find that it has ended. Where its work is done on a thread of the caller's, that returns from
    /// [`Runner::run`] then, and is not waited for.
    ///
    /// # Errors
    ///
    /// Why it ended before.
    pub fn stop(&self) -> Result<(), RelayError> {
        // One that has ended needs no telling.
        let _ = self.running.orders.stop();
        self.ended()
    }

    /// Waits until it has ended, if its thread is its own.
    fn ended(&self) -> Result<(), RelayError> {
        let Some(thread) = self.running.thread.lock().take() else {
            return Ok(());
        };
        let ended = thread.join().map_err(|_| RelayError::Panicked)?;
        ended.map_err(RelayError::from)
    }
}
