//! The process: configuration, data threads, containers, signals and the control socket.
//!
//! # Theory of operation
//!
//! The control thread owns all state of this module and does everything that may block for some
//! milliseconds: netlink, files, the control socket. The data threads
//! ([`crate::data::event_loop`]) never wait for it.
//!
//! There is one way to change anything, which start, reload, healing and stop take:
//!
//! ```text
//! configuration ─ want ──┐
//!                        ├─ plan ── carry_out ── live: kernel, NOS, data threads
//! kernel ─ watch ─ news ─┘            │
//!                                     └─ state: what was accepted; standing: what was not, and why
//! ```
//!
//! [`reconcile`] compares what is wanted, as far as it is there, with what is in place;
//! [`crate::control::plan`] says what to do; [`live`] does it. What is missing is waited for: the
//! kernel tells ([`crate::control::kernel::watch`]) when it comes, and it is reconciled again.
//!
//! Start: `ready` appears on stdout, and systemd is told, when all that is there is attached. With
//! `--strict`, something that is missing or refused is an error instead; what was done is undone.
//!
//! Reload (SIGHUP): the new file is checked whole, with what was registered at run time; a bad one
//! changes nothing.
//!
//! Requests at run time change what is registered beside the file ([`changes`]). That outlives the
//! process ([`registry`], [`crate::control::store`]), unless it is held by somebody who has ended
//! ([`leases`]).
//!
//! End (SIGTERM, SIGINT): nothing is wanted any more, and so everything is taken away.

mod answers;
mod captures;
mod changes;
mod containers;
mod data_plane;
mod executor;
mod identifiers;
mod injections;
mod leases;
mod live;
mod news;
mod reconcile;
mod registry;
mod routes;
mod services;
mod show;
mod standing;
mod uplinks;
mod watched;
mod watching;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token, Waker};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_mio::v1_0::Signals;
use thiserror::Error;
use tracing::{error, info, warn};

use crate::control::api::{self, Access, Peer, Server};
use crate::control::attach::{AttachError, Host, Pace};
use crate::control::config::{Config, ConfigErrors, ConfigFile, Overlay, RelayConfig};
use crate::control::kernel::watch::{KernelWatch, WatchError};
use crate::control::kernel::{Namespace, NamespaceError};
use crate::control::plan::Entity;
use crate::control::store::{Embedded, Store, StoreError};
use crate::data::event_loop::Stopped;

use data_plane::DataPlane;
use leases::Processes;
use live::Live;
use reconcile::Reconciler;
use registry::Registry;
use watching::DropWatch;

const SIGNALS: Token = Token(0);
const EVENTS: Token = Token(1);
const KERNEL: Token = Token(2);
const LEASES: Token = Token(3);
/// The first of several.
const CONTROL: Token = Token(4);

/// Why the daemon could not start, or had to end.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The configuration is bad.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// Something at the start of the process.
    #[error("cannot {what}: {source}")]
    Start {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The control socket.
    #[error(transparent)]
    Control(#[from] api::BindError),
    /// The daemon's own namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The daemon's own namespace cannot be changed.
    #[error(transparent)]
    Host(#[from] AttachError),
    /// The kernel cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// What was registered at run time cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A data thread has ended by itself.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// With `--strict`: not all that is configured is in place.
    #[error("{}", .0.join("\n"))]
    Strict(Vec<String>),
}

impl DaemonError {
    fn start(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Start { what, source }
    }
}

/// Where the daemon finds what it needs, and what it is strict about.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// The configuration file.
    pub config: PathBuf,
    /// The control socket.
    pub control: PathBuf,
    /// Where what is registered at run time outlives the process: a directory, which is made. Nowhere
    /// when not given.
    pub state: Option<PathBuf>,
    /// Whether something of the configuration that is missing or refused at start ends the process.
    pub strict: bool,
}

/// Runs the daemon until a signal ends it.
///
/// # Errors
///
/// [`DaemonError`]; everything that was put in place has been undone.
pub fn run(options: &DaemonOptions) -> Result<(), DaemonError> {
    let poll = Poll::new().map_err(DaemonError::start("create an epoll instance"))?;
    // Signals first: one that arrives while a large configuration is read must not kill us.
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(DaemonError::start("catch signals"))?;
    poll.registry()
        .register(&mut signals, SIGNALS, Interest::READABLE)
        .map_err(DaemonError::start("watch signals"))?;
    let file = ConfigFile::load(&options.config)?;
    let config = file.config(&Overlay::default())?;
    let server = Server::bind(&options.control, &config.control, poll.registry(), CONTROL)?;
    let mut processes = Processes::new().map_err(DaemonError::start("watch processes"))?;
    let registered = processes.register(poll.registry(), LEASES);
    registered.map_err(DaemonError::start("watch processes"))?;
    let registry = Registry::open(file, open_store(options)?, |process| {
        processes.take_up(process)
    })?;
    let config = registry.file.config(&registry.overlay)?;
    let waker =
        Waker::new(poll.registry(), EVENTS).map_err(DaemonError::start("create an eventfd"))?;
    let namespace = Namespace::current()?;
    let watch = KernelWatch::open(&namespace)?;
    let registered = watch.register(poll.registry(), KERNEL);
    registered.map_err(DaemonError::start("watch the kernel"))?;
    let host = Host::open(namespace)?;
    let plane =
        DataPlane::start(&config.relay, waker).map_err(DaemonError::start("start data threads"))?;
    yield_to_data_threads();
    let mut daemon = Daemon {
        live: Live::new(host, plane),
        reconciler: Reconciler::new(),
        watch,
        config_path: options.config.clone(),
        settings: config.relay.clone(),
        access: config.control.clone(),
        registry,
        processes,
        connections: BTreeMap::new(),
        drops: DropWatch::default(),
    };
    daemon.follow(config);
    let result = daemon.check_strictness(options.strict).and_then(|()| {
        announce_ready();
        serve(&mut daemon, poll, signals, server)
    });
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    daemon.stop();
    result
}

fn open_store(options: &DaemonOptions) -> Result<Option<Box<dyn Store>>, StoreError> {
    let Some(directory) = &options.state else {
        return Ok(None);
    };
    let store = Embedded::open(directory)?;
    Ok(Some(Box::new(store)))
}

/// The nice value of the control thread, and of the threads that it starts from now on.
const CONTROL_NICE: libc::c_int = 10;

/// Lowers the priority of the calling thread. On few cores, detaching hundreds of containers would
/// otherwise make packets wait for as long as the scheduler lets a thread run.
fn yield_to_data_threads() {
    // SAFETY: the call takes plain numbers. Zero is the calling thread: on Linux a nice value is a
    // thread's own.
    let lowered = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, CONTROL_NICE) };
    if lowered != 0 {
        let error = io::Error::last_os_error();
        warn!(%error, "the control thread runs at the priority of the data threads");
    }
}

fn announce_ready() {
    let mut stdout = io::stdout().lock();
    // Whoever started us may have closed our stdout; that is no reason to stop forwarding.
    let _ = writeln!(stdout, "ready").and_then(|()| stdout.flush());
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    info!("ready");
}

/// The control thread's loop. Returns when a signal says so.
fn serve(
    daemon: &mut Daemon,
    mut poll: Poll,
    mut signals: Signals,
    mut server: Server,
) -> Result<(), DaemonError> {
    let mut events = Events::with_capacity(64);
    let mut more = false;
    loop {
        match poll.poll(&mut events, daemon.timeout(&server, more)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(DaemonError::start("wait for events"))?,
        }
        let now = daemon.live.plane.now();
        server.handle_timeout(now);
        for event in &events {
            server.handle_ready(event.token(), now);
        }
        // What happened comes before what is asked, so that answers are of the present.
        daemon.heal()?;
        daemon.end_leases(&mut server);
        more = daemon.take_requests(&mut server);
        daemon.write_again();
        for signal in signals.pending() {
            match signal {
                SIGHUP => daemon.reload(),
                _ => {
                    info!(signal, "stopping");
                    return Ok(());
                }
            }
        }
        daemon.publish(&mut server);
    }
}

/// What the control thread knows.
pub(crate) struct Daemon {
    live: Live,
    reconciler: Reconciler,
    watch: KernelWatch,
    config_path: PathBuf,
    /// Settings with which the data threads were started.
    settings: RelayConfig,
    /// Who may ask, as the control socket was made.
    access: Access,
    registry: Registry,
    processes: Processes,
    /// Who made the connections that hold something.
    connections: BTreeMap<u64, Peer>,
    drops: DropWatch,
}

impl Daemon {
    /// Wants `config` from now on.
    fn follow(&mut self, config: Config) {
        self.reconciler.want(config, &mut self.watch);
        self.reconcile();
    }

    fn reconcile(&mut self) {
        self.reconciler.reconcile(&mut self.live, &mut self.watch);
    }

    /// Looks at what happened, and puts it right.
    fn heal(&mut self) -> Result<(), DaemonError> {
        let kernel = self.handle_kernel_events();
        let data = self.handle_data_events()?;
        let due = self.pause().is_some_and(|pause| pause.is_zero());
        if kernel || data || due {
            self.reconcile();
        }
        Ok(())
    }

    /// How long there is nothing to do unless something happens.
    fn timeout(&self, server: &Server, more: bool) -> Option<Duration> {
        // A connection may have ended as it was answered.
        if more || server.has_ended() {
            return Some(Duration::ZERO);
        }
        let due = [server.poll_at(), self.count_at()].into_iter().flatten();
        let due = due.min().map(|at| at.since(self.live.plane.now()));
        let again = self.registry.again_at;
        let again = again.map(|at| at.saturating_duration_since(Instant::now()));
        [due, self.pause(), again].into_iter().flatten().min()
    }

    /// Writes what could not be written, if it is time.
    fn write_again(&mut self) {
        if self
            .registry
            .again_at
            .is_some_and(|at| at <= Instant::now())
        {
            self.registry.write();
        }
    }

    /// How long nothing that paused has to be tried again.
    fn pause(&self) -> Option<Duration> {
        let at = self.reconciler.poll_at()?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    fn check_strictness(&self, strict: bool) -> Result<(), DaemonError> {
        let standing = &self.reconciler.standing;
        if !strict || standing.is_empty() {
            return Ok(());
        }
        let configured = |entity: &Entity| match entity {
            Entity::Container(name) => !self.registry.overlay.has_container(name),
            _ => true,
        };
        let missing: Vec<_> = standing
            .iter()
            .filter(|(entity, _)| configured(entity))
            .map(|(entity, entry)| format!("{entity}: {}", entry.condition.reason()))
            .collect();
        match missing.is_empty() {
            true => Ok(()),
            false => Err(DaemonError::Strict(missing)),
        }
    }

    /// Reads the configuration again and follows it. A bad file changes nothing.
    fn reload(&mut self) {
        let _ = NotifyState::monotonic_usec_now()
            .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now]));
        match self.load() {
            Ok(config) => {
                let relay = RelayConfig::differences(&self.settings, &config.relay);
                let control = Access::differences(&self.access, &config.control);
                for setting in relay.into_iter().chain(control) {
                    warn!(
                        key = setting.key,
                        old = setting.old,
                        new = setting.new,
                        "takes effect at the next start"
                    );
                }
                self.follow(config);
                info!("configuration reloaded");
            }
            Err(errors) => error!("the configuration stays as it was:\n{errors}"),
        }
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    }

    /// Reads the file, and makes it the one beside which the rest is registered.
    fn load(&mut self) -> Result<Config, ConfigErrors> {
        let file = ConfigFile::load(&self.config_path)?;
        self.registry.reload(file)
    }

    fn stop(mut self) {
        self.live.pace = Pace::AtOnce;
        self.reconciler.undo_all(&mut self.live);
        self.live.stop();
    }
}
