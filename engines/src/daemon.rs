//! The control socket as a plugin uses it.
//!
//! An engine starts many containers at once, and a plugin is a process of its own for each, while the
//! daemon serves a few clients at a time: a plugin waits its turn. An answer that is lost is asked for
//! again, with the same id where the request would otherwise be carried out twice.

use core::time::Duration;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Instant;

use nos_relay::control::api::snapshot::{
    Attachment, Counters, Network, Pool, PoolAddress, Port, Registration,
};
use nos_relay::control::api::{
    Applied, ControlError, QUERY_TIMEOUT, RefusalCode, Request, Response, Table, ask_for,
};
use serde_json::{Value, json};
use thiserror::Error;

/// Time in which a plugin's request is tried again, unless the daemon answers earlier.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Between two attempts.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(2),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
];

/// Why the daemon has not done what was asked for.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// It says no, or cannot be asked.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The request has values that the protocol does not have.
    #[error("the request cannot be written: {0}")]
    Request(String),
    /// It answers something else than what was asked.
    #[error("the daemon answers what was not asked: {0}")]
    Answer(&'static str),
}

impl DaemonError {
    /// Whether the same request may well be granted later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Control(ControlError::Refused(refusal)) => matches!(
                refusal.code,
                RefusalCode::Busy
                    | RefusalCode::Unavailable
                    | RefusalCode::Storage
                    | RefusalCode::Uncertain
            ),
            Self::Control(ControlError::Io { .. }) => self.is_passing(),
            Self::Control(error) => matches!(
                error,
                ControlError::NoDaemon(_)
                    | ControlError::Timeout { .. }
                    | ControlError::Incomplete(_)
            ),
            Self::Request(_) | Self::Answer(_) => false,
        }
    }

    /// The refusal, if the daemon has refused.
    #[must_use]
    pub fn refusal(&self) -> Option<&nos_relay::control::api::Refusal> {
        match self {
            Self::Control(ControlError::Refused(refusal)) => Some(refusal),
            _ => None,
        }
    }

    /// Whether it is worth asking again at once: there was no room, or the answer was lost.
    fn is_passing(&self) -> bool {
        match self {
            Self::Control(ControlError::Refused(refusal)) => refusal.code == RefusalCode::Busy,
            Self::Control(ControlError::Io { error, .. }) => {
                error.kind() == ErrorKind::ConnectionReset
            }
            Self::Control(error) => matches!(error, ControlError::Incomplete(_)),
            Self::Request(_) | Self::Answer(_) => false,
        }
    }
}

/// A daemon, by its control socket.
#[derive(Clone, Debug)]
pub struct Daemon {
    socket: PathBuf,
}

impl Daemon {
    /// The one that listens at `socket`. Nothing is asked yet.
    #[must_use]
    pub fn at(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// Its control socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks for a change that may be asked for twice. A process `holder` holds what it gives.
    ///
    /// # Errors
    ///
    /// [`DaemonError`].
    pub fn change(
        &self,
        request: Value,
        holder: Option<BorrowedFd<'_>>,
    ) -> Result<Applied, DaemonError> {
        applied(self.ask(None, &written(request)?, holder)?)
    }

    /// Asks for a change that gives something else each time it is asked for: with an id, by which
    /// the daemon knows it again if its answer is lost.
    ///
    /// # Errors
    ///
    /// [`DaemonError`].
    pub fn change_once(&self, id: &str, request: Value) -> Result<Applied, DaemonError> {
        applied(self.ask(Some(id), &written(request)?, None)?)
    }

    /// The networks of containers, and who is in them.
    ///
    /// # Errors
    ///
    /// [`DaemonError`].
    pub fn networks(&self) -> Result<Vec<Network>, DaemonError> {
        match self.show(Table::Networks)? {
            Response::Networks(rows) => Ok(rows),
            _ => Err(DaemonError::Answer("no networks")),
        }
    }

    /// The pools of addresses.
    ///
    /// # Errors
    ///
    /// [`DaemonError`].
    pub fn pools(&self) -> Result<Vec<Pool>, DaemonError> {
        match self.show(Table::Pools)? {
            Response::Pools(rows) => Ok(rows),
            _ => Err(DaemonError::Answer("no pools")),
        }
    }

    /// Addresses of pools that somebody has, had, or is to have.
    ///
    /// # Errors
    ///
    /// [`DaemonError`].
    pub fn pool_addresses(&self) -> Result<Vec<PoolAddress>, DaemonError> {
        match self.show(Table::PoolAddresses)? {
            Response::PoolAddresses(rows) => Ok(rows),
            _ => Err(DaemonError::Answer("no addresses of pools")),
        }
    }

    /// The containers that are attached, or wait to be.
    ///
    /// # Errors
    ///
    /// [`DaemonError`].
    pub fn attachments(&self) -> Result<Vec<Attachment>, DaemonError> {
        match self.show(Table::Attachments)? {
            Response::Attachments(rows) => Ok(rows),
            _ => Err(DaemonError::Answer("no attachments")),
        }
    }

    /// Who has which ports.
    ///
    /// # Errors
    ///
    /// [`DaemonError`].
    pub fn ports(&self) -> Result<Vec<Port>, DaemonError> {
        match self.show(Table::Ports)? {
            Response::Ports(rows) => Ok(rows),
            _ => Err(DaemonError::Answer("no ports")),
        }
    }

    /// What was registered at run time, with what is set aside.
    ///
    /// # Errors
    ///
    /// [`DaemonError`].
    pub fn registrations(&self) -> Result<Vec<Registration>, DaemonError> {
        match self.show(Table::Registrations)? {
            Response::Registrations(rows) => Ok(rows),
            _ => Err(DaemonError::Answer("no registrations")),
        }
    }

    /// Its counters, among which its uplinks are.
    ///
    /// # Errors
    ///
    /// [`DaemonError`].
    pub fn counters(&self) -> Result<Counters, DaemonError> {
        match self.show(Table::Counters)? {
            Response::Counters(counters) => Ok(counters),
            _ => Err(DaemonError::Answer("no counters")),
        }
    }

    fn show(&self, table: Table) -> Result<Response, DaemonError> {
        self.ask(None, &Request::Show { table }, None)
    }

    fn ask(
        &self,
        id: Option<&str>,
        request: &Request,
        holder: Option<BorrowedFd<'_>>,
    ) -> Result<Response, DaemonError> {
        let deadline = Instant::now() + PATIENCE;
        let mut pauses = PAUSES.iter().chain(std::iter::repeat(&PAUSES[3]));
        loop {
            let asked = ask_for(&self.socket, id, request, holder, QUERY_TIMEOUT);
            match asked.map_err(DaemonError::from) {
                Err(error) if error.is_passing() && Instant::now() < deadline => {
                    sleep(pauses.next().copied().unwrap_or_default());
                }
                asked => return asked,
            }
        }
    }
}

/// An id that no other request has: 1 to 64 visible characters.
///
/// # Errors
///
/// The kernel has no random numbers.
pub fn fresh_id(engine: &str) -> std::io::Result<String> {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(format!("{engine}-{}", uuid.trim()))
}

/// The request that takes a container away.
#[must_use]
pub fn detach(name: &str) -> Value {
    json!({"type": "detach", "name": name})
}

fn written(request: Value) -> Result<Request, DaemonError> {
    serde_json::from_value(request).map_err(|error| DaemonError::Request(error.to_string()))
}

fn applied(response: Response) -> Result<Applied, DaemonError> {
    match response {
        Response::Changed(applied) => Ok(applied),
        _ => Err(DaemonError::Answer("no outcome of a change")),
    }
}
