//! What the bench must not leave behind: its children and a temporary directory.
//!
//! Both are under a lock. The thread that waits for signals takes it and never gives it back, so
//! that nothing new is started or made while the process ends. Namespaces need no care: they go
//! with their last user.

use std::ffi::CStr;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, mkdtemp};
use parking_lot::Mutex;

use super::error::BenchError;
use crate::lab::process::{die_with_us, leave_on_signal, lines};
use crate::lab::progress::Progress;
use crate::lab::testbed::LabNamespace;

/// Time for a child to get ready.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// Time for a child to answer a question.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// All children and the directory. Clones are the same one.
#[derive(Clone)]
pub(super) struct Children {
    owned: Arc<Mutex<Owned>>,
    directory: PathBuf,
}

#[derive(Default)]
struct Owned {
    directory: Option<PathBuf>,
    /// Where a tmpfs is mounted.
    names: Option<PathBuf>,
    children: Vec<Child>,
}

impl Children {
    /// Makes the directory, for this user alone, and starts the thread that waits for signals.
    pub(super) fn new(progress: Progress) -> Result<Self, BenchError> {
        let owned = Arc::<Mutex<Owned>>::default();
        leave_on_signal("bench", Arc::clone(&owned), Owned::leave, progress)
            .map_err(BenchError::io("catch signals"))?;
        let directory = {
            let mut owned = owned.lock();
            let template = std::env::temp_dir().join("nos-relay-bench.XXXXXX");
            let made = mkdtemp(&template).map_err(io::Error::from);
            let made = made.map_err(BenchError::io(format!("make {}", template.display())))?;
            owned.directory = Some(made.clone());
            made
        };
        Ok(Self { owned, directory })
    }

    /// The directory.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A directory in which files can be mounts: all of them go with it.
    pub(super) fn names(&self) -> Result<PathBuf, BenchError> {
        let mut owned = self.owned.lock();
        if let Some(names) = &owned.names {
            return Ok(names.clone());
        }
        let names = self.directory.join("netns");
        let failed = || BenchError::io(format!("mount {}", names.display()));
        std::fs::create_dir(&names).map_err(failed())?;
        let (none, flags) = (None::<&CStr>, MsFlags::MS_NOSUID | MsFlags::MS_NODEV);
        mount(none, &names, Some("tmpfs"), flags, none).map_err(|error| failed()(error.into()))?;
        owned.names = Some(names.clone());
        Ok(names)
    }

    /// Starts `command` in `namespace`, with its stdin and stdout for us and its stderr in the
    /// file `log`. Call it on the main thread: the child ends with the thread that started it.
    pub(super) fn start(
        &self,
        namespace: &LabNamespace,
        mut command: Command,
        log: &str,
    ) -> Result<Process, BenchError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let log = self.directory.join(log);
        let errors = std::fs::File::create(&log);
        let errors = errors.map_err(BenchError::io(format!("write {}", log.display())))?;
        if !command.get_envs().any(|(name, _)| name == "NOTIFY_SOCKET") {
            // Readiness is for us, not for who started us.
            command.env_remove("NOTIFY_SOCKET");
        }
        command
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            // Ctrl-C is for us to hear; we end it then.
            .process_group(0);
        die_with_us(&mut command);
        let mut owned = self.owned.lock();
        let mut child = namespace.spawn(command)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let pid = child.id();
        owned.children.push(child);
        drop(owned);
        let process = Process {
            children: self.clone(),
            pid,
            program,
            stdin: Mutex::new(stdin),
            lines: lines(stdout).map_err(BenchError::io("start a thread"))?,
            log,
        };
        Ok(process)
    }

    /// Ends all children and removes the directory.
    pub(super) fn leave(&self) {
        self.owned.lock().leave();
    }

    fn end(&self, pid: u32) {
        let mut owned = self.owned.lock();
        let position = owned.children.iter().position(|child| child.id() == pid);
        if let Some(position) = position {
            end(owned.children.swap_remove(position));
        }
    }

    /// How a child ended that is about to, or has.
    fn wait(&self, pid: u32) -> Option<ExitStatus> {
        let mut owned = self.owned.lock();
        let child = owned.children.iter_mut().find(|child| child.id() == pid)?;
        child.wait().ok()
    }

    fn has_ended(&self, pid: u32) -> Option<String> {
        let mut owned = self.owned.lock();
        let child = owned.children.iter_mut().find(|child| child.id() == pid)?;
        let status = child.try_wait().ok().flatten()?;
        Some(status.to_string())
    }
}

impl Owned {
    fn leave(&mut self) {
        self.children.drain(..).for_each(end);
        if let Some(names) = self.names.take() {
            // With all that is mounted below, also while somebody uses it.
            let _ = umount2(&names, MntFlags::MNT_DETACH);
        }
        if let Some(directory) = self.directory.take()
            && let Err(error) = std::fs::remove_dir_all(&directory)
        {
            eprintln!("nos-relay: cannot remove {}: {error}", directory.display());
        }
    }
}

/// Its interfaces and rules go with the namespaces.
fn end(mut child: Child) {
    // An error means that it has ended.
    let _ = child.kill();
    let _ = child.wait();
}

/// A running child, which ends when this value is dropped.
pub(super) struct Process {
    children: Children,
    pid: u32,
    program: String,
    stdin: Mutex<Option<ChildStdin>>,
    /// What it writes to stdout, until its end.
    lines: Receiver<String>,
    log: PathBuf,
}

impl Process {
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it says that it is ready.
    pub(super) fn await_ready(&self) -> Result<(), BenchError> {
        match self.lines.recv_timeout(READY_LIMIT) {
            Ok(line) if line == "ready" => Ok(()),
            Ok(line) => Err(self.failed(format!("says {line:?} instead of \"ready\""))),
            Err(RecvTimeoutError::Timeout) => {
                Err(self.failed(format!("not ready within {} s", READY_LIMIT.as_secs())))
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.failed("failed".to_owned())),
        }
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, signal: Signal) -> Result<(), BenchError> {
        let sent = i32::try_from(self.pid)
            .map_err(io::Error::other)
            .and_then(|pid| Ok(kill(Pid::from_raw(pid), signal)?));
        sent.map_err(BenchError::io(format!("send {signal}")))
    }

    /// Waits until it has ended well, as it was asked to.
    pub(super) fn await_end(self, limit: Duration) -> Result<(), BenchError> {
        let until = Instant::now() + limit;
        let left = || until.saturating_duration_since(Instant::now());
        // Its stdout is closed when it has ended, not before.
        let ended = loop {
            match self.lines.recv_timeout(left()) {
                Ok(_) => {}
                Err(error) => break error == RecvTimeoutError::Disconnected,
            }
        };
        if !ended {
            return Err(self.failed(format!("not ended within {} s", limit.as_secs())));
        }
        match self.children.wait(self.pid) {
            Some(status) if !status.success() => Err(self.failed(format!("ended: {status}"))),
            _ => Ok(()),
        }
    }

    /// Writes a line to it and waits for the line that it answers.
    pub(super) fn ask(&self, question: &str) -> io::Result<String> {
        let mut stdin = self.stdin.lock();
        let stdin = stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        stdin.write_all(format!("{question}\n").as_bytes())?;
        let answer = self.lines.recv_timeout(ANSWER_LIMIT);
        answer.map_err(|_| io::ErrorKind::TimedOut.into())
    }

    /// All that it writes until it ends, or until `limit` has passed.
    pub(super) fn output(&self, limit: Duration) -> String {
        let until = Instant::now() + limit;
        let left = || until.saturating_duration_since(Instant::now());
        let lines = std::iter::from_fn(|| self.lines.recv_timeout(left()).ok());
        lines.collect::<Vec<_>>().join("\n")
    }

    /// How it ended before its time.
    pub(super) fn death(&self) -> Option<BenchError> {
        let status = self.children.has_ended(self.pid)?;
        Some(self.failed(format!("ended: {status}")))
    }

    /// The error that says what became of it, with the end of what it logged.
    pub(super) fn failed(&self, how: String) -> BenchError {
        const LINES: usize = 20;
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        BenchError::Child {
            program: self.program.clone(),
            how,
            log: lines[lines.len().saturating_sub(LINES)..].join("\n"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.children.end(self.pid);
    }
}
