//! The process: configuration, data threads, containers, signals and the control socket.
//!
//! # Theory of operation
//!
//! The control thread owns all state of this module and does everything that may block for some
//! milliseconds: netlink, files, the control socket. The data threads ([`crate::data::event_loop`])
//! never wait for it.
//!
//! Start: data threads; uplinks, routes and services; then each container in the order of the
//! file: register its ports, make its device, configure its side. When the last is attached,
//! `ready` appears on stdout and systemd is told. An error before that undoes what was done and
//! ends the process.
//!
//! Reload (SIGHUP): the new file is checked whole; a bad one changes nothing. A good one is
//! compared with what runs, and only what differs is touched: removals first, then changes, then
//! additions. An entry that fails is logged, and the others go on.
//!
//! End (SIGTERM, SIGINT): every container is detached and every uplink given back to the kernel.

mod capture;
mod container;
mod data_plane;
mod reload;
mod state;
mod uplink;

use std::collections::VecDeque;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token, Waker};
use nos_shim::channel::RequestId;
use nos_shim::ident::{AttachmentId, Interface, MacAddr, UplinkId};
use nos_shim::shim::ShimEvent;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_mio::v1_0::Signals;
use thiserror::Error;
use tracing::{debug, error, info, warn};

use crate::control::api::{self, Request, Server};
use crate::control::config::{Config, ConfigErrors, Container, Uplink};
use crate::control::kernel::{Namespace, NamespaceError};
use crate::data::device::CaptureError;
use crate::data::engine::EngineEvent;
use crate::data::event_loop::{Event, Stopped};
use crate::data::relay::RelayEvent;

use container::AttachedContainer;
use data_plane::DataPlane;
use uplink::OpenUplink;

/// How long the NOS may take to answer a registration.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(10);

const SIGNALS: Token = Token(0);
const EVENTS: Token = Token(1);
const CONTROL: Token = Token(2);

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
    /// A data thread has ended by itself.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// A container cannot be attached or changed.
    #[error("container '{name}': {reason}")]
    Container {
        /// Which one.
        name: String,
        /// Why not.
        reason: String,
    },
    /// An uplink cannot be opened or changed.
    #[error("uplink '{name}': {reason}")]
    Uplink {
        /// Which one.
        name: String,
        /// Why not.
        reason: String,
    },
    /// A capture file cannot be written.
    #[error("'{name}': {source}")]
    Capture {
        /// The container or uplink.
        name: String,
        /// Why not.
        source: CaptureError,
    },
    /// The routes cannot be installed.
    #[error("routes: {0}")]
    Routes(String),
    /// The NOS's own services cannot be started.
    #[error("services: {0}")]
    Services(String),
}

impl DaemonError {
    fn container(config: &Container, reason: impl Display) -> Self {
        Self::Container {
            name: config.name.to_string(),
            reason: reason.to_string(),
        }
    }

    fn uplink(config: &Uplink, reason: impl Display) -> Self {
        Self::Uplink {
            name: config.name.to_string(),
            reason: reason.to_string(),
        }
    }

    fn start(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Start { what, source }
    }
}

/// Runs the daemon until a signal ends it.
///
/// # Errors
///
/// [`DaemonError`]; everything that was put in place has been undone.
pub fn run(config_path: &Path, control_path: &Path) -> Result<(), DaemonError> {
    let config = Config::load(config_path)?;
    let poll = Poll::new().map_err(DaemonError::start("create an epoll instance"))?;
    // Signals first: one that arrives while containers are being attached must not kill us.
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(DaemonError::start("catch signals"))?;
    poll.registry()
        .register(&mut signals, SIGNALS, Interest::READABLE)
        .map_err(DaemonError::start("watch signals"))?;
    let server = Server::bind(control_path, poll.registry(), CONTROL)?;
    let waker =
        Waker::new(poll.registry(), EVENTS).map_err(DaemonError::start("create an eventfd"))?;
    let plane =
        DataPlane::start(&config.relay, waker).map_err(DaemonError::start("start data threads"))?;
    let mut daemon = Daemon {
        host: Namespace::current()?,
        plane,
        config_path: config_path.to_owned(),
        settings: config.relay.clone(),
        routes: Vec::new(),
        nos: crate::control::config::Nos {
            services: Vec::new(),
            ping: true,
        },
        uplinks: Vec::new(),
        containers: Vec::new(),
        next_uplink: 0,
        free_attachments: Vec::new(),
        next_attachment: 0,
        backlog: VecDeque::new(),
    };
    let result = daemon.start(&config).and_then(|()| {
        announce_ready();
        serve(&mut daemon, poll, signals, server)
    });
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    daemon.stop();
    result
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
    loop {
        let timeout = server.poll_at().map(|at| at.since(daemon.plane.now()));
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(DaemonError::start("wait for events"))?,
        }
        let now = daemon.plane.now();
        server.handle_timeout(now);
        for event in &events {
            server.handle_ready(event.token(), now);
        }
        while let Some((connection, request)) = server.poll_request() {
            let Request::Show { table } = request;
            let response = daemon.show(table);
            server.respond(connection, &response, daemon.plane.now());
        }
        daemon.handle_events()?;
        for signal in signals.pending() {
            match signal {
                SIGHUP => daemon.reload(),
                _ => {
                    info!(signal, "stopping");
                    return Ok(());
                }
            }
        }
    }
}

/// What the control thread knows.
pub(crate) struct Daemon {
    host: Namespace,
    plane: DataPlane,
    config_path: PathBuf,
    /// Settings with which the data threads were started.
    settings: crate::control::config::RelayConfig,
    routes: Vec<crate::control::config::Route>,
    nos: crate::control::config::Nos,
    uplinks: Vec<OpenUplink>,
    containers: Vec<AttachedContainer>,
    next_uplink: u32,
    next_attachment: u32,
    /// Numbers of detached attachments, to be used again: the data path indexes arrays by them.
    free_attachments: Vec<AttachmentId>,
    /// Events that arrived while the answer to a registration was awaited.
    backlog: VecDeque<Event>,
}

impl Daemon {
    fn start(&mut self, config: &Config) -> Result<(), DaemonError> {
        for uplink in &config.uplinks {
            self.open_uplink(uplink.clone())?;
        }
        self.set_routes(config.routes.clone())?;
        self.set_services(config.nos.clone())?;
        for container in &config.containers {
            self.attach(container.clone())?;
        }
        Ok(())
    }

    fn open_uplink(&mut self, config: Uplink) -> Result<(), DaemonError> {
        let id = UplinkId(self.next_uplink);
        self.next_uplink += 1;
        let opened = OpenUplink::open(&self.host, &self.plane, id, config);
        match opened {
            Ok(uplink) => {
                self.uplinks.push(uplink);
                Ok(())
            }
            Err(error) => {
                let _ = self.plane.remove_device(Interface::Uplink(id));
                let _ = self.plane.on_nos(move |nos| nos.remove_uplink(id));
                Err(error)
            }
        }
    }

    fn attach(&mut self, config: Container) -> Result<(), DaemonError> {
        let id = self.free_attachments.pop().unwrap_or_else(|| {
            self.next_attachment += 1;
            AttachmentId(self.next_attachment - 1)
        });
        let attached = self
            .register(id, &config)
            .and_then(|()| AttachedContainer::attach(&self.host, &self.plane, id, config));
        match attached {
            Ok(container) => {
                self.containers.push(container);
                Ok(())
            }
            Err(error) => {
                let _ = self.plane.remove_device(Interface::Attachment(id));
                self.withdraw(id);
                Err(error)
            }
        }
    }

    fn withdraw(&mut self, id: AttachmentId) {
        if self.plane.on_relay(move |relay| relay.detach(id)).is_ok() {
            self.free_attachments.push(id);
        }
    }

    fn detach(&mut self, container: AttachedContainer) {
        let id = container.id;
        container.detach(&self.plane);
        self.withdraw(id);
    }

    /// Asks the NOS for a container's ports and waits for its answer.
    fn register(&mut self, id: AttachmentId, config: &Container) -> Result<(), DaemonError> {
        let attachment = container::attachment(id, config);
        let sent = self.plane.on_relay(move |relay| relay.attach(attachment))?;
        let request = sent.map_err(|error| DaemonError::container(config, error))?;
        self.await_registration(request, config)
    }

    fn await_registration(
        &mut self,
        request: RequestId,
        config: &Container,
    ) -> Result<(), DaemonError> {
        let deadline = Instant::now() + REGISTRATION_TIMEOUT;
        loop {
            let Ok(event) = self.plane.events().recv_deadline(deadline) else {
                return Err(DaemonError::container(
                    config,
                    "the NOS does not answer the registration",
                ));
            };
            match event {
                Event::Engine(EngineEvent::Relay(RelayEvent::Accepted(of))) if of == request => {
                    return Ok(());
                }
                Event::Engine(EngineEvent::Relay(RelayEvent::Refused(of, reason)))
                    if of == request =>
                {
                    return Err(DaemonError::container(config, reason));
                }
                other => self.backlog.push_back(other),
            }
        }
    }

    /// Deals with what happened on the data threads.
    fn handle_events(&mut self) -> Result<(), DaemonError> {
        while let Some(event) = self
            .backlog
            .pop_front()
            .or_else(|| self.plane.events().try_recv().ok())
        {
            match event {
                Event::DeviceGone(Interface::Attachment(id), why) => self.container_gone(id, &why),
                Event::DeviceGone(Interface::Uplink(id), why) => self.uplink_gone(id, &why),
                Event::Engine(EngineEvent::Nos(ShimEvent::AddressConflict {
                    uplink,
                    address,
                    mac,
                })) => self.address_conflict(uplink, address, mac),
                Event::Engine(EngineEvent::Relay(event)) => {
                    debug!(?event, "nobody waits for this any more");
                }
                Event::LoopFailed(why) => {
                    error!(why, "a data thread failed");
                    return Err(Stopped.into());
                }
            }
        }
        Ok(())
    }

    /// A container whose namespace was deleted takes its device along. Its ports are free at once.
    fn container_gone(&mut self, id: AttachmentId, why: &str) {
        let Some(container) = self
            .containers
            .iter_mut()
            .find(|container| container.id == id)
        else {
            return;
        };
        container.gone = true;
        warn!(container = %container.config.name, why, "the container's device is gone; reload to attach it again");
        if self.plane.on_relay(move |relay| relay.detach(id)).is_err() {
            warn!("the data thread has stopped");
        }
    }

    /// The NOS tells it once in a while, so this may be logged each time.
    fn address_conflict(&self, id: UplinkId, address: IpAddr, mac: MacAddr) {
        let uplink = self.uplinks.iter().find(|uplink| uplink.id == id);
        let name = uplink.map_or("", |uplink| uplink.config.name.as_str());
        warn!(uplink = name, %address, %mac, "somebody else uses an address of the NOS");
    }

    fn uplink_gone(&mut self, id: UplinkId, why: &str) {
        let Some(uplink) = self.uplinks.iter_mut().find(|uplink| uplink.id == id) else {
            return;
        };
        uplink.gone = true;
        warn!(uplink = %uplink.config.name, why, "the uplink's device is gone; reload to open it again");
    }

    fn stop(mut self) {
        for container in std::mem::take(&mut self.containers) {
            self.detach(container);
        }
        for uplink in self.uplinks {
            uplink.close(&self.plane);
        }
        self.plane.stop();
    }
}
