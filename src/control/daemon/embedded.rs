//! The daemon inside of a program that embeds it: no signals, no service manager, no files but those
//! that it is told of.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};
use mio::{Poll, Waker};

use crate::control::api::Server;
use crate::control::config::{ConfigFile, NosPlace};
use crate::control::handover::Store as DescriptorStore;
use crate::data::nos_port::NosPort;

use super::giving::Keeping;
use super::journal::Journal;
use super::{
    Base, CONTROL, Daemon, DaemonError, Handed, Order, Owner, Phase, open_store, run_for,
    yield_to_data_threads,
};

/// What an embedded daemon is started with.
#[derive(Debug)]
pub(crate) struct EmbeddedOptions {
    /// What it is to be, with a NOS that is elsewhere.
    pub(crate) file: ConfigFile,
    /// Where others may ask; nowhere when not given.
    pub(crate) control: Option<PathBuf>,
    /// Where what is registered at run time outlives it; nowhere when not given.
    pub(crate) state: Option<PathBuf>,
    /// Whether something that is missing or refused at start ends it.
    pub(crate) strict: bool,
}

/// A daemon whose data threads run, and that has attached nothing yet. One that is dropped before it has run
/// ends its threads.
pub(crate) struct EmbeddedDaemon(Option<Prepared>);

struct Prepared {
    daemon: Daemon,
    poll: Poll,
    server: Server,
    strict: bool,
    owner: Embedder,
}

/// How whoever embeds the daemon gives orders to it.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    orders: Sender<Order>,
    waker: Arc<Waker>,
    /// Has a message once it is ready, and none any more once it has ended.
    ready: Receiver<()>,
}

impl Orders {
    fn give(&self, order: Order) -> io::Result<()> {
        let ended = || io::Error::new(io::ErrorKind::NotConnected, "the relay has ended");
        self.orders.send(order).map_err(|_| ended())?;
        self.waker.wake()
    }

    /// Has it end, and take everything away.
    pub(crate) fn stop(&self) -> io::Result<()> {
        self.give(Order::Stop)
    }

    /// Has it follow another configuration.
    pub(crate) fn reload(&self, file: ConfigFile) -> io::Result<()> {
        self.give(Order::Reload(Ok(Box::new(file))))
    }

    /// Has it answer a client.
    pub(crate) fn serve(&self, client: std::os::fd::OwnedFd) -> io::Result<()> {
        self.give(Order::Serve(client))
    }

    /// Has another NOS join.
    pub(crate) fn join(&self) -> io::Result<NosPort> {
        let (answer, port) = crossbeam_channel::bounded(1);
        self.give(Order::Join(answer))?;
        let ended = |_| io::Error::new(io::ErrorKind::NotConnected, "the relay has ended");
        port.recv().map_err(ended)?
    }

    /// Has a message once the daemon is ready; disconnected when it has ended.
    pub(crate) fn ready(&self) -> &Receiver<()> {
        &self.ready
    }
}

/// Whoever embeds the daemon.
struct Embedder {
    orders: Receiver<Order>,
    /// Dropped when it ends.
    ready: Sender<()>,
}

impl Owner for Embedder {
    fn next_order(&mut self) -> Option<Order> {
        self.orders.try_recv().ok()
    }

    fn tell(&mut self, phase: Phase) {
        if phase == Phase::Ready {
            // Nobody may wait for it.
            let _ = self.ready.try_send(());
        }
    }
}

impl Drop for EmbeddedDaemon {
    fn drop(&mut self) {
        if let Some(prepared) = self.0.take() {
            prepared.daemon.stop();
        }
    }
}

impl EmbeddedDaemon {
    /// Starts the data thread, and makes the NOS's port.
    pub(crate) fn start(options: EmbeddedOptions) -> Result<(Self, Orders, NosPort), DaemonError> {
        let EmbeddedOptions {
            file,
            control,
            state,
            strict,
        } = options;
        let poll = Poll::new().map_err(DaemonError::start("create an epoll instance"))?;
        let mut base = Base::open(&poll)?;
        let stored = open_store(state.as_deref())?;
        let registry = base.registry(file, stored, &Handed::default())?;
        let config = registry.file.config(&registry.overlay)?;
        let server = match &control {
            Some(path) => Server::bind(path, &config.control, poll.registry(), CONTROL)?,
            None => Server::without_socket(poll.registry(), CONTROL)
                .map_err(DaemonError::start("serve requests"))?,
        };
        let waker = Arc::clone(&base.waker);
        let keeping = Keeping::of(DescriptorStore::none());
        let mut daemon = base.daemon(NosPlace::Elsewhere, &config, registry, keeping)?;
        if let Some(path) = &control {
            daemon.live.journal = Journal::open(path);
        }
        let port = match daemon.live.plane.join() {
            Ok(port) => port,
            Err(error) => {
                daemon.stop();
                return Err(DaemonError::start("open the NOS's port")(error));
            }
        };
        let (orders, taken) = unbounded();
        let (tell, ready) = crossbeam_channel::bounded(1);
        let embedded = Self(Some(Prepared {
            daemon,
            poll,
            server,
            strict,
            owner: Embedder {
                orders: taken,
                ready: tell,
            },
        }));
        let orders = Orders {
            orders,
            waker,
            ready,
        };
        Ok((embedded, orders, port))
    }

    /// The control thread, until it is told to stop. It yields to the data threads where `own` says
    /// that the thread is its own.
    pub(crate) fn run(mut self, own: bool) -> Result<(), DaemonError> {
        // It is there until it has run, which is once.
        let Some(prepared) = self.0.take() else {
            return Ok(());
        };
        let Prepared {
            mut daemon,
            poll,
            server,
            strict,
            mut owner,
        } = prepared;
        if own {
            yield_to_data_threads();
        }
        let config = daemon.registry.file.config(&daemon.registry.overlay)?;
        daemon.live.remove_leftovers(&config);
        daemon.follow(config);
        daemon.store();
        run_for(daemon, strict, poll, server, &mut owner)
    }
}
