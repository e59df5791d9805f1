//! The daemon: this program once more, in the device's namespace.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::belongings::Belongings;
use super::error::DemoError;
use super::network::Network;
use crate::control::api::snapshot::Counters;
use crate::control::api::{self, ControlError, Held, Request, Response, Table};
use crate::lab::process::{die_with_us, lines};

const READY_LIMIT: Duration = Duration::from_secs(15);
const STOP_LIMIT: Duration = Duration::from_secs(5);
const QUERY_LIMIT: Duration = Duration::from_secs(5);
/// Lines of its log that are shown when something is wrong.
const LOG_LINES: usize = 40;

/// The running daemon. It ends with the [`Belongings`].
pub(super) struct Daemon<'a> {
    belongings: &'a Belongings,
    /// What it writes to stdout, until its end.
    lines: Mutex<Receiver<String>>,
    config: PathBuf,
    control: PathBuf,
    log: PathBuf,
}

/// How the daemon ended when it was asked to.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) elapsed: Duration,
}

impl<'a> Daemon<'a> {
    /// Starts it and waits until it is ready.
    pub(super) fn start(belongings: &'a Belongings, network: &Network) -> Result<Self, DemoError> {
        let directory = belongings.directory();
        let [config, control, log] =
            ["demo.toml", "control.sock", "log"].map(|name| directory.join(name));
        std::fs::write(&config, network.configuration())
            .map_err(DemoError::io(format!("write {}", config.display())))?;
        let errors =
            File::create(&log).map_err(DemoError::io(format!("write {}", log.display())))?;
        let command = command(&config, &control, errors);
        let stdout = belongings.start(|| spawn(network, command))?;
        let lines = lines(stdout).map_err(DemoError::io("start a thread"))?;
        let daemon = Self {
            belongings,
            lines: Mutex::new(lines),
            config,
            control,
            log,
        };
        daemon.await_ready()?;
        Ok(daemon)
    }

    /// Has another process take over from it, and returns how long that took until it was ready.
    pub(super) fn replace(&self, network: &Network) -> Result<Duration, DemoError> {
        let begin = Instant::now();
        let log = File::options().append(true).open(&self.log);
        let errors = log.map_err(DemoError::io(format!("write {}", self.log.display())))?;
        let mut command = command(&self.config, &self.control, errors);
        command.arg("--takeover");
        let stdout = self.belongings.succeed(|| spawn(network, command))?;
        *self.lines.lock() = lines(stdout).map_err(DemoError::io("start a thread"))?;
        self.await_ready()?;
        let took = begin.elapsed();
        let status = self.belongings.wait_for_replaced();
        let status = status.map_err(DemoError::io("wait for the process before"))?;
        match status.filter(|status| !status.success()) {
            None => Ok(took),
            Some(status) => Err(DemoError::Daemon {
                how: format!("was replaced, and ended: {status}"),
                log: self.log(),
            }),
        }
    }

    /// Its counters, as they are now.
    pub(super) fn counters(&self) -> Result<Counters, ControlError> {
        let table = Table::Counters;
        match api::query(&self.control, &Request::Show { table }, QUERY_LIMIT)? {
            Response::Counters(counters) => Ok(counters),
            other => Err(ControlError::Malformed {
                path: self.control.clone(),
                why: format!("{other:?} instead of counters"),
            }),
        }
    }

    /// Asks for something that goes when what is returned is dropped.
    pub(super) fn hold(&self, request: &Request) -> Result<(Response, Held), ControlError> {
        api::hold(&self.control, None, request, QUERY_LIMIT)
    }

    /// How it ended, if it did.
    pub(super) fn death(&self) -> Option<String> {
        match self.belongings.ended() {
            Ok(status) => status.map(|status| format!("ended: {status}")),
            Err(error) => Some(format!("is lost: {error}")),
        }
    }

    /// The end of what it logged.
    pub(super) fn log(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Asks it to end, and makes it after a while.
    pub(super) fn stop(&self) -> io::Result<Ended> {
        let begin = Instant::now();
        self.belongings.terminate()?;
        // Its stdout is closed when it has ended, not before.
        while let Some(left) = STOP_LIMIT.checked_sub(begin.elapsed()) {
            if self.lines.lock().recv_timeout(left) == Err(RecvTimeoutError::Disconnected) {
                break;
            }
        }
        let elapsed = begin.elapsed();
        let status = if elapsed < STOP_LIMIT {
            self.belongings.wait()?
        } else {
            self.belongings.kill()?
        };
        let status = status.ok_or_else(|| io::Error::other("it was not running"))?;
        Ok(Ended { status, elapsed })
    }

    fn await_ready(&self) -> Result<(), DemoError> {
        let said = self.lines.lock().recv_timeout(READY_LIMIT);
        let how = match said {
            Ok(line) if line == "ready" => return Ok(()),
            Ok(line) => format!("says {line:?} instead of \"ready\""),
            Err(RecvTimeoutError::Timeout) => {
                format!("was not ready within {} s", READY_LIMIT.as_secs())
            }
            Err(RecvTimeoutError::Disconnected) => match self.belongings.wait() {
                Ok(Some(status)) => format!("failed: {status}"),
                _ => "failed".to_owned(),
            },
        };
        let log = self.log();
        Err(DemoError::Daemon { how, log })
    }
}

fn spawn(network: &Network, command: Command) -> Result<(Child, Option<ChildStdout>), DemoError> {
    let mut child = network.topology.device.spawn(command)?;
    let stdout = child.stdout.take();
    Ok((child, stdout))
}

fn command(config: &Path, control: &Path, errors: File) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("nos-relay")
        .args(["run".as_ref(), config.as_os_str(), "--control".as_ref()])
        .arg(control)
        .args(["--state", "none"])
        // Readiness is for us, not for who started us.
        .env_remove("NOTIFY_SOCKET")
        // Its log goes to a file.
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        // Ctrl-C is for us to hear; we end it then.
        .process_group(0);
    die_with_us(&mut command);
    command
}
