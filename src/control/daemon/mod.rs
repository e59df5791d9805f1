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
//!
//! Replacement ([`crate::control::handover`]): the next process takes up what this one has open
//! ([`giving`], [`inherited`]). SIGUSR1 ends this one for the next to come: everything stays in place.

mod answers;
mod captures;
mod changes;
mod containers;
mod data_plane;
mod embedded;
mod executor;
mod giving;
mod identifiers;
mod inherited;
mod injections;
mod journal;
mod leases;
mod live;
mod memif;
mod networks;
mod news;
mod nos;
mod pools;
mod process;
mod reconcile;
mod registry;
mod routes;
mod services;
mod sharing;
mod show;
mod standing;
mod uplinks;
mod vrfs;
mod watched;
mod watching;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use mio::{Events, Poll, Token, Waker};
use thiserror::Error;
use tracing::{debug, error, info, warn};

use crate::control::api::{self, Access, Peer, Server};
use crate::control::attach::{AttachError, Host, Pace};
use crate::control::config::{Config, ConfigErrors, ConfigFile, NosPlace, Overlay, RelayConfig};
use crate::control::handover::{HandoverError, Inheritance, Memory};
use crate::control::kernel::watch::{KernelWatch, WatchError};
use crate::control::kernel::{Namespace, NamespaceError};
use crate::control::plan::Entity;
use crate::control::pools::Pools;
use crate::control::store::{Embedded, Store, StoreError};
use crate::data::event_loop::{Mode, Stopped};
use crate::data::nos_port::NosPort;
use nos_shim::shim::Upstream;

use data_plane::DataPlane;
use giving::{Giving, Keeping};
use leases::Processes;
use live::Live;
use memif::Memifs;
use reconcile::Reconciler;
use registry::{Handed, Registry};
use watching::DropWatch;

pub(crate) use embedded::{EmbeddedDaemon, EmbeddedOptions, Orders};
pub use process::{DaemonOptions, run};

const SIGNALS: Token = Token(0);
const EVENTS: Token = Token(1);
const KERNEL: Token = Token(2);
const LEASES: Token = Token(3);
/// The first of several.
const CONTROL: Token = Token(4);
const HANDOVER: Token = Token(CONTROL.0 + Server::TOKENS);

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
    /// Nothing was taken over.
    #[error(transparent)]
    Handover(#[from] HandoverError),
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

/// How the daemon ends.
enum End {
    /// Nothing is wanted any more.
    Stopped,
    /// Everything is the next process's.
    Left,
}

/// What whoever runs the daemon may want of it at any time, besides requests.
enum Order {
    /// To follow this configuration, or to know why it cannot be read.
    Reload(Result<Box<ConfigFile>, ConfigErrors>),
    /// To end, and leave everything in place for the next process.
    Leave,
    /// To end, and take everything away.
    Stop,
    /// To answer a client that somebody has connected.
    Serve(OwnedFd),
    /// To have another NOS join, which is elsewhere.
    Join(Sender<io::Result<NosPort>>),
}

/// How the daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// All that was there at the start is attached, or a reload is done.
    Ready,
    /// It follows another configuration.
    Reloading,
    /// It ends.
    Stopping,
}

/// Whoever runs the daemon: a process of its own, or a program that embeds it.
trait Owner {
    /// The next order that has come, if any. It was woken for it.
    fn next_order(&mut self) -> Option<Order>;

    /// Is told how the daemon is.
    fn tell(&mut self, phase: Phase);
}

/// Serves until the owner has it end, and ends. What was put in place is undone, unless it is left to
/// another process.
fn run_for(
    mut daemon: Daemon,
    strict: bool,
    poll: Poll,
    server: Server,
    owner: &mut impl Owner,
) -> Result<(), DaemonError> {
    let result = daemon.check_strictness(strict).and_then(|()| {
        owner.tell(Phase::Ready);
        serve(&mut daemon, poll, server, owner)
    });
    if let Ok(End::Left) = result {
        daemon.leave();
        return Ok(());
    }
    owner.tell(Phase::Stopping);
    daemon.stop();
    result.map(drop)
}

/// Entries as they are written in a manifest.
fn entries(all: &[(String, String)]) -> impl Iterator<Item = (&str, &[u8])> {
    let all = all.iter();
    all.map(|(name, json)| (name.as_str(), json.as_bytes()))
}

/// What was registered beside the configuration of an earlier process.
fn handed_by(inheritance: &Inheritance) -> Handed {
    let overlay = Overlay::of_records(entries(&inheritance.manifest.overlay));
    let overlay = overlay.unwrap_or_else(|bad| {
        warn!("what was registered at run time is lost: {bad}");
        Overlay::default()
    });
    let pools = Pools::of_stored(entries(&inheritance.manifest.pools));
    let pools = pools.unwrap_or_else(|bad| {
        warn!("pools of addresses are lost: {bad}");
        Pools::default()
    });
    Handed { overlay, pools }
}

/// What a daemon is made of before it has anything in place.
struct Base {
    watch: KernelWatch,
    host: Host,
    waker: Arc<Waker>,
    processes: Processes,
}

impl Base {
    fn open(poll: &Poll) -> Result<Self, DaemonError> {
        let waker =
            Waker::new(poll.registry(), EVENTS).map_err(DaemonError::start("create an eventfd"))?;
        let processes = Processes::new().map_err(DaemonError::start("watch processes"))?;
        let registered = processes.register(poll.registry(), LEASES);
        registered.map_err(DaemonError::start("watch processes"))?;
        Self::with(poll, Arc::new(waker), processes)
    }

    fn with(poll: &Poll, waker: Arc<Waker>, processes: Processes) -> Result<Self, DaemonError> {
        let namespace = Namespace::current()?;
        let watch = KernelWatch::open(&namespace)?;
        let registered = watch.register(poll.registry(), KERNEL);
        registered.map_err(DaemonError::start("watch the kernel"))?;
        let host = Host::open(namespace)?;
        Ok(Self {
            watch,
            host,
            waker,
            processes,
        })
    }

    /// What `store` holds beside a file, and what was handed over.
    fn registry(
        &mut self,
        file: ConfigFile,
        store: Option<Box<dyn Store>>,
        handed: &Handed,
    ) -> Result<Registry, StoreError> {
        let processes = &mut self.processes;
        Registry::open(file, store, handed, |process| processes.take_up(process))
    }

    fn daemon(
        self,
        place: NosPlace,
        config: &Config,
        registry: Registry,
        keeping: Keeping,
    ) -> Result<Daemon, DaemonError> {
        let waker = Arc::clone(&self.waker);
        let plane = DataPlane::start(&config.relay, config.upstream, place, waker)
            .map_err(DaemonError::start("start data threads"))?;
        Ok(Daemon {
            live: Live::new(self.host, plane, Memifs::new(self.waker), keeping),
            reconciler: Reconciler::new(),
            watch: self.watch,
            settings: config.relay.clone(),
            access: config.control.clone(),
            upstream: config.upstream,
            registry,
            processes: self.processes,
            connections: BTreeMap::new(),
            drops: DropWatch::default(),
            giving: None,
            unopened: None,
        })
    }
}

fn open_store(state: Option<&Path>) -> Result<Option<Box<dyn Store>>, StoreError> {
    let Some(directory) = state else {
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

/// The control thread's loop. Returns when the owner says so.
fn serve(
    daemon: &mut Daemon,
    mut poll: Poll,
    mut server: Server,
    owner: &mut impl Owner,
) -> Result<End, DaemonError> {
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
        if daemon.advance_giving() {
            info!("handed over");
            server.leave();
            return Ok(End::Left);
        }
        // What happened comes before what is asked, so that answers are of the present.
        daemon.heal()?;
        if daemon.giving.is_none() {
            daemon.end_leases(&mut server);
        }
        more = daemon.take_requests(&mut server);
        daemon.open_again();
        daemon.write_again();
        while let Some(order) = owner.next_order() {
            match order {
                Order::Reload(file) => {
                    owner.tell(Phase::Reloading);
                    daemon.reload(file);
                    owner.tell(Phase::Ready);
                }
                Order::Leave => {
                    info!("ending, and leaving everything in place");
                    daemon.end_giving();
                    owner.tell(Phase::Stopping);
                    daemon.drain();
                    daemon.store();
                    return Ok(End::Left);
                }
                Order::Serve(client) => {
                    server.adopt(client, daemon.live.plane.now());
                    more = true;
                }
                Order::Join(answer) => {
                    // Who asked may have given up.
                    let _ = answer.send(daemon.live.plane.join());
                }
                Order::Stop => {
                    info!("stopping");
                    daemon.end_giving();
                    return Ok(End::Stopped);
                }
            }
        }
        daemon.publish(&mut server);
        daemon.keep();
    }
}

/// What the control thread knows.
pub(crate) struct Daemon {
    live: Live,
    reconciler: Reconciler,
    watch: KernelWatch,
    /// Settings with which the data threads were started.
    settings: RelayConfig,
    /// Who may ask, as the control socket was made.
    access: Access,
    /// The NOS in another process that this was started in front of.
    upstream: Option<Upstream>,
    registry: Registry,
    processes: Processes,
    /// Who made the connections that hold something.
    connections: BTreeMap<u64, Peer>,
    drops: DropWatch,
    /// A conversation with the process that takes over.
    giving: Option<Giving>,
    /// The store that could not be opened after a takeover.
    unopened: Option<UnopenedStore>,
}

/// A store that is tried again.
struct UnopenedStore {
    /// Where it is.
    state: Option<PathBuf>,
    at: Instant,
}

/// When a store that could not be opened is tried again.
const OPEN_AGAIN: Duration = Duration::from_secs(1);

impl Daemon {
    /// Takes up what an earlier process had open, by the configuration that it followed. Nothing is
    /// received or sent until [`Self::go_on`].
    fn inherit(&mut self, inheritance: Inheritance) -> Result<(), HandoverError> {
        let manifest = &inheritance.manifest;
        let unfit = |errors: ConfigErrors| {
            HandoverError::Unfit(format!(
                "its configuration is not understood here:\n{errors}"
            ))
        };
        let file = ConfigFile::parse(&manifest.file, &manifest.text).map_err(unfit)?;
        let config = file
            .config(&handed_by(&inheritance).overlay)
            .map_err(unfit)?;
        if config.upstream != self.upstream {
            let reason = "[nos] channel or neighbor is another; that needs a stop and a start";
            return Err(HandoverError::Unfit(reason.to_owned()));
        }
        let still = self.live.plane.set_mode(Mode::Still);
        still.map_err(|stopped| HandoverError::Unfit(stopped.to_string()))?;
        self.live.receive(inheritance)?;
        self.reconciler.inherit(&config, &mut self.live)
    }

    /// Begins to receive and send.
    fn go_on(&mut self, memory: Memory) -> Result<(), DaemonError> {
        self.live.remember(memory);
        Ok(self.live.plane.set_mode(Mode::Running)?)
    }

    /// How long the process that takes over is waited for.
    fn patience(&self) -> Option<Duration> {
        let giving = self.giving.as_ref()?;
        Some(giving.deadline.saturating_duration_since(Instant::now()))
    }

    /// Opens what keeps registrations, which the process before has closed. Until it can be opened, what
    /// was handed over stays, and changes are refused.
    fn registered_again(&mut self, state: Option<&Path>, handed: &Handed) {
        match self.reopened(state, handed) {
            Ok(registry) => self.registry = registry,
            Err(why) => {
                error!("{why}; what is registered at run time stays, and changes are refused");
                let kept = self.registry_of(None, handed);
                match kept {
                    Ok(registry) => self.registry = registry,
                    Err(why) => error!("what was registered at run time is lost: {why}"),
                }
                self.registry.refuse_changes(why);
                self.unopened = Some(UnopenedStore {
                    state: state.map(Path::to_owned),
                    at: Instant::now() + OPEN_AGAIN,
                });
            }
        }
    }

    fn reopened(&mut self, state: Option<&Path>, handed: &Handed) -> Result<Registry, String> {
        let store = open_store(state).map_err(|error| error.to_string())?;
        self.registry_of(store, handed)
    }

    /// The registry anew: beside the same file, of a store and what was handed over.
    fn registry_of(
        &mut self,
        store: Option<Box<dyn Store>>,
        handed: &Handed,
    ) -> Result<Registry, String> {
        let file = &self.registry.file;
        let file =
            ConfigFile::parse(file.name(), file.text()).map_err(|error| error.to_string())?;
        let processes = &mut self.processes;
        let registry = Registry::open(file, store, handed, |process| processes.take_up(process));
        registry.map_err(|error| error.to_string())
    }

    /// Tries to open the store again that could not be opened, if it is time.
    fn open_again(&mut self) {
        let due = |unopened: &mut UnopenedStore| unopened.at <= Instant::now();
        let Some(mut unopened) = self.unopened.take_if(due) else {
            return;
        };
        let before = self.registry.overlay.clone();
        let handed = self.registry.handed();
        match self.reopened(unopened.state.as_deref(), &handed) {
            Ok(registry) => {
                info!("the state directory can be used again");
                self.registry = registry;
                if self.registry.overlay != before
                    && let Ok(config) = self.registry.file.config(&self.registry.overlay)
                {
                    self.follow(config);
                }
            }
            Err(why) => {
                debug!("{why}");
                self.registry.refuse_changes(why);
                unopened.at = Instant::now() + OPEN_AGAIN;
                self.unopened = Some(unopened);
            }
        }
    }

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
        if self.giving.is_some() {
            return Ok(());
        }
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
        let reopen = self.unopened.as_ref().map(|unopened| unopened.at);
        let again = self.registry.again_at.into_iter().chain(reopen).min();
        let again = again.map(|at| at.saturating_duration_since(Instant::now()));
        let pauses = [due, self.pause(), again, self.patience(), self.keep_in()];
        pauses.into_iter().flatten().min()
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

    /// Follows another configuration. A bad one changes nothing.
    fn reload(&mut self, file: Result<Box<ConfigFile>, ConfigErrors>) {
        self.end_giving();
        self.keep_at_once();
        let file = file.and_then(|file| self.for_the_same_nos(file));
        match file.and_then(|file| self.registry.reload(*file)) {
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
    }

    /// A file by which the NOS is where it was. Whatever else it says belongs to the other kind of NOS.
    fn for_the_same_nos(&self, file: Box<ConfigFile>) -> Result<Box<ConfigFile>, ConfigErrors> {
        let config = file.config(&Overlay::default())?;
        match config.upstream == self.upstream {
            true => Ok(file),
            false => {
                Err(file.refused("nos.channel", "it and nos.neighbor change at a start alone"))
            }
        }
    }

    fn stop(mut self) {
        self.live.keeping.clear();
        self.live.pace = Pace::AtOnce;
        self.reconciler.undo_all(&mut self.live);
        self.live.stop();
    }
}
