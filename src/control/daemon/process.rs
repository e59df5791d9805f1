//! The daemon as a process of its own: signals, the service manager, and what one process leaves to the
//! next.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use mio::{Interest, Poll};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook_mio::v1_0::Signals;
use tracing::{info, warn};

use crate::control::api::Server;
use crate::control::config::{ConfigFile, NosPlace, Overlay};
use crate::control::handover::{self, HandoverError, Taking};

use super::giving::Keeping;
use super::journal::Journal;
use super::{
    Base, CONTROL, Daemon, DaemonError, Handed, Order, Owner, Phase, SIGNALS, handed_by,
    open_store, run_for, yield_to_data_threads,
};

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
    /// Whether everything is taken over from the process that runs.
    pub takeover: bool,
}

/// Runs the daemon until a signal ends it, or another process takes over.
///
/// # Errors
///
/// [`DaemonError`]; everything that was put in place has been undone. What could not be taken over is
/// left as it was.
pub fn run(options: &DaemonOptions) -> Result<(), DaemonError> {
    let poll = Poll::new().map_err(DaemonError::start("create an epoll instance"))?;
    // Signals first: one that arrives while a large configuration is read must not kill us.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])
        .map_err(DaemonError::start("catch signals"))?;
    poll.registry()
        .register(&mut signals, SIGNALS, Interest::READABLE)
        .map_err(DaemonError::start("watch signals"))?;
    let (daemon, server) = match options.takeover {
        true => take_over(options, &poll)?,
        false => start(options, &poll)?,
    };
    yield_to_data_threads();
    let mut process = Process {
        signals,
        config: options.config.clone(),
        was_ready: false,
    };
    run_for(daemon, options.strict, poll, server, &mut process)
}

/// The process: signals are orders, and the service manager is told.
struct Process {
    signals: Signals,
    config: PathBuf,
    was_ready: bool,
}

impl Owner for Process {
    fn next_order(&mut self) -> Option<Order> {
        let signal = self.signals.pending().next()?;
        Some(match signal {
            SIGHUP => Order::Reload(ConfigFile::load(&self.config).map(Box::new)),
            SIGUSR1 => Order::Leave,
            _ => {
                info!(signal, "a signal ends it");
                Order::Stop
            }
        })
    }

    fn tell(&mut self, phase: Phase) {
        match phase {
            Phase::Ready if self.was_ready => {
                let _ = sd_notify::notify(&[NotifyState::Ready]);
            }
            Phase::Ready => {
                self.was_ready = true;
                announce_ready();
            }
            Phase::Reloading => {
                let _ = NotifyState::monotonic_usec_now()
                    .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now]));
            }
            Phase::Stopping => {
                let _ = sd_notify::notify(&[NotifyState::Stopping]);
            }
        }
    }
}

/// Starts with what an earlier process has left, if anything.
fn start(options: &DaemonOptions, poll: &Poll) -> Result<(Daemon, Server), DaemonError> {
    let file = ConfigFile::load(&options.config)?;
    let config = file.config(&Overlay::default())?;
    let server = Server::bind(&options.control, &config.control, poll.registry(), CONTROL)?;
    let (store, inheritance) = handover::received();
    let mut base = Base::open(poll)?;
    let handed = match (&options.state, &inheritance) {
        (None, Some(inheritance)) => handed_by(inheritance),
        _ => Handed::default(),
    };
    let registry = base.registry(file, open_store(options.state.as_deref())?, &handed)?;
    let config = registry.file.config(&registry.overlay)?;
    let keeping = Keeping::of(store);
    let waker = Arc::clone(&base.waker);
    let mut daemon = base.daemon(NosPlace::Here, &config, registry, keeping)?;
    if let Some(inheritance) = inheritance {
        let memory = inheritance.manifest.memory.clone();
        match daemon.inherit(inheritance) {
            Ok(()) => daemon.go_on(memory)?,
            Err(error) => {
                warn!("{error}; starting anew");
                let (keeping, registry, processes) = daemon.abandon();
                let base = Base::with(poll, waker, processes)?;
                daemon = base.daemon(NosPlace::Here, &config, registry, keeping)?;
            }
        }
    }
    daemon.live.release_inherited();
    daemon.live.journal = Journal::open(&options.control);
    daemon.live.remove_leftovers(&config);
    daemon.follow(config);
    daemon.store();
    Ok((daemon, server))
}

/// Takes over from the process that runs.
fn take_over(options: &DaemonOptions, poll: &Poll) -> Result<(Daemon, Server), DaemonError> {
    // A bad file is none of the running process's business.
    let file = ConfigFile::load(&options.config)?;
    let config = file.config(&Overlay::default())?;
    let (mut taking, mut inheritance) = Taking::ask(&options.control)?;
    let Some(control) = inheritance.take_control() else {
        let why = "its control socket is missing".to_owned();
        return Err(HandoverError::Unfit(why).into());
    };
    let registered = handed_by(&inheritance);
    let mut base = Base::open(poll)?;
    let registry = base.registry(file, None, &Handed::default())?;
    let keeping = Keeping::of(handover::Store::of_environment());
    let mut daemon = base.daemon(NosPlace::Here, &config, registry, keeping)?;
    let taken = daemon.inherit(inheritance).and_then(|()| {
        let memory = taking.prepared()?;
        taking.ready()?;
        Ok(memory)
    });
    let begun = match taken {
        Ok(memory) => daemon.go_on(memory),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = begun {
        daemon.leave();
        return Err(error);
    }
    info!("took over");
    if let Err(error) = taking.wait_for_end() {
        warn!(%error, "the process before takes long to end");
    }
    daemon.registered_again(options.state.as_deref(), &registered);
    let server = Server::received(&options.control, control, poll.registry(), CONTROL)?;
    let config = daemon.registry.file.config(&daemon.registry.overlay)?;
    daemon.live.release_inherited();
    daemon.live.journal = Journal::open(&options.control);
    daemon.follow(config.clone());
    daemon.live.remove_leftovers(&config);
    daemon.store();
    Ok((daemon, server))
}

fn announce_ready() {
    let mut stdout = io::stdout().lock();
    // Whoever started us may have closed our stdout; that is no reason to stop forwarding.
    let _ = writeln!(stdout, "ready").and_then(|()| stdout.flush());
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    info!("ready");
}
