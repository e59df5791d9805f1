//! The daemon as a child process, and what must hold at the end of every scenario.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where its network cannot be built"
)]

use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nos_relay::control::api::snapshot::{
    Attachment, Counters, Flow, Neighbor, Port, Route, Uplink,
};
use nos_relay::control::api::{ControlError, Request, Response, Table, query};
use nos_relay::lab::testbed::LabNamespace;
use tempfile::TempDir;

/// Time for anything that the daemon is to do. Machines that build several things at once are
/// slow; nothing waits this long unless a test fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A running daemon. When it is dropped at the end of a scenario, packets are counted: none may be
/// missing; it must end well on SIGTERM. After a panic it is killed and its log is shown.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    files: Files,
    log: Log,
    lines: Receiver<String>,
    notify: UnixDatagram,
    /// Set once what was counted before has gone with its attachment or uplink.
    forgot: Cell<bool>,
    ended: bool,
}

/// Where one daemon's files are.
#[derive(Debug)]
pub(crate) struct Files {
    directory: TempDir,
}

impl Files {
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("nos-relay-test-").tempdir();
        Self {
            directory: directory.unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path("nos.toml")
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.path("control.sock")
    }

    /// Where what is registered at run time is kept.
    pub(crate) fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub(crate) fn write(&self, config: &str) {
        std::fs::write(self.config(), config).unwrap();
    }
}

/// The program under test. The script that runs tests as an ordinary user puts it elsewhere.
pub(crate) fn program() -> PathBuf {
    match std::env::var_os("NOS_RELAY_PROGRAM") {
        Some(path) => path.into(),
        None => {
            option_env!("CARGO_BIN_EXE_nos-relay").map_or_else(program_of_workspace, PathBuf::from)
        }
    }
}

/// Where tests of another package of the workspace find it: cargo tells them of their own alone.
fn program_of_workspace() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().with_file_name("nos-relay");
    assert!(
        program.exists(),
        "{} is not there; `cargo build --workspace` makes it",
        program.display()
    );
    program
}

/// What starts it, with further options of `run`.
pub(crate) fn run_command_with(files: &Files, options: &[&str]) -> Command {
    let mut command = Command::new(program());
    command
        .args(["--log", "info,nos_relay=debug", "run"])
        .args(options)
        .arg(files.config())
        .arg("--control")
        .arg(files.control())
        .arg("--state")
        .arg(files.state())
        .env("NOTIFY_SOCKET", files.path("notify"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    die_with_us(&mut command);
    command
}

/// Has the kernel kill the child when the test's thread that starts it ends, in whatever way.
pub(crate) fn die_with_us(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec the closure makes one system call.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from)
        })
    }
}

impl Daemon {
    /// Starts it in `host` and waits until it is ready.
    pub(crate) fn start(host: &LabNamespace, config: &str) -> Self {
        let files = Files::new();
        files.write(config);
        Self::start_on(host, files)
    }

    /// Starts it with the configuration and the leftovers that are in `files`.
    pub(crate) fn start_on(host: &LabNamespace, files: Files) -> Self {
        let daemon = Self::spawn(host, files);
        daemon.await_ready();
        daemon
    }

    /// Starts it, and leaves it to the caller to wait.
    pub(crate) fn spawn(host: &LabNamespace, files: Files) -> Self {
        Self::spawn_with(host, files, &[])
    }

    /// The same with further options of `run`.
    pub(crate) fn spawn_with(host: &LabNamespace, files: Files, options: &[&str]) -> Self {
        let mut command = run_command_with(&files, options);
        host.hold(&mut command);
        Self::spawn_command(files, command)
    }

    /// The same by a command of the caller's.
    pub(crate) fn spawn_command(files: Files, mut command: Command) -> Self {
        let notify_path = files.path("notify");
        let _ = std::fs::remove_file(&notify_path);
        let notify = UnixDatagram::bind(notify_path).unwrap();
        let log = Log::of(&mut command);
        let mut child = command.spawn().unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        Self {
            child,
            files,
            log,
            lines,
            notify,
            forgot: Cell::new(false),
            ended: false,
        }
    }

    pub(crate) fn await_ready(&self) {
        match self.lines.recv_timeout(LIMIT) {
            Ok(line) => assert_eq!(line, "ready"),
            Err(error) => panic!("the daemon is not ready: {error}"),
        }
        self.await_notification("READY=1");
    }

    /// Starts it where it is to end by itself, and returns what it said.
    pub(crate) fn start_failing(host: &LabNamespace, config: &str) -> Output {
        let files = Files::new();
        files.write(config);
        Self::start_failing_on(host, &files)
    }

    /// The same with files that are there already. It starts strictly: what is missing is an error.
    pub(crate) fn start_failing_on(host: &LabNamespace, files: &Files) -> Output {
        let mut child = host.spawn(run_command_with(files, &["--strict"])).unwrap();
        let status = wait_with_limit(&mut child);
        let mut output = Output {
            status: status.unwrap_or_default(),
            stdout: Vec::new(),
            stderr: Vec::new(),
        };
        let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        if status.is_none() {
            child.kill().unwrap();
        }
        stdout.read_to_end(&mut output.stdout).unwrap();
        stderr.read_to_end(&mut output.stderr).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(status.is_some(), "the daemon did not end: {said}");
        output
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// What it logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.text()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap());
        kill(pid, signal).unwrap();
    }

    /// Replaces the configuration, and waits until the daemon has followed it.
    pub(crate) fn reload(&self, config: &str) {
        self.forgot.set(true);
        self.files.write(config);
        self.signal(Signal::SIGHUP);
        self.await_notification("RELOADING=1");
        self.await_notification("READY=1");
    }

    /// What was counted of an attachment or uplink goes with it: to be called where one does.
    pub(crate) fn forget_counters(&self) {
        self.forgot.set(true);
    }

    /// Waits for a message to the service manager (`sd_notify(3)`).
    pub(crate) fn await_notification(&self, wanted: &str) {
        let deadline = Instant::now() + LIMIT;
        let mut buffer = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no notification {wanted}");
            self.notify.set_read_timeout(Some(left)).unwrap();
            match self.notify.recv(&mut buffer) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&buffer[..length]);
                    if text.lines().any(|line| line == wanted) {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("no notification {wanted}: {error}"),
            }
        }
    }

    /// Says that counters have gone since the start, with an attachment or an uplink.
    pub(crate) fn counters_have_gone(&self) {
        self.forgot.set(true);
    }

    /// Ends it by `signal`, and checks what [`Daemon`] promises.
    pub(crate) fn stop_by(mut self, signal: Signal) -> Files {
        self.end(signal);
        std::mem::replace(&mut self.files, Files::new())
    }

    /// Kills it, so that it cannot clean up.
    pub(crate) fn kill(mut self) -> Files {
        self.ended = true;
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::mem::replace(&mut self.files, Files::new())
    }

    /// Kills it, and leaves its files with it.
    pub(crate) fn kill_now(&mut self) {
        self.ended = true;
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Has another process take over, and waits until it is ready and this one has ended.
    pub(crate) fn replaced(self, host: &LabNamespace) -> Self {
        let (old, next) = self.spawn_next(host);
        next.await_ready();
        assert!(old.wait().success(), "the one that was replaced");
        next
    }

    /// Starts a process that is to take over from this one, which has no files meanwhile.
    pub(crate) fn next(&mut self, host: &LabNamespace) -> Self {
        let files = std::mem::replace(&mut self.files, Files::new());
        Self::spawn_with(host, files, &["--takeover"])
    }

    /// Starts a process that is to take over from this one, which has no files any more.
    fn spawn_next(mut self, host: &LabNamespace) -> (Self, Self) {
        let next = self.next(host);
        (self, next)
    }

    /// Gives a process that goes on its files back, of which another one could make nothing.
    pub(crate) fn goes_on_with(&mut self, files: Files) {
        self.files = files;
    }

    /// Waits until it ends by itself, and returns its files too.
    pub(crate) fn wait_for_end(mut self) -> (ExitStatus, String, Files) {
        let status = wait_with_limit(&mut self.child).expect("the daemon did not end");
        self.ended = true;
        let files = std::mem::replace(&mut self.files, Files::new());
        (status, self.log(), files)
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait(mut self) -> ExitStatus {
        let status = wait_with_limit(&mut self.child).expect("the daemon did not end");
        self.ended = true;
        status
    }

    fn end(&mut self, signal: Signal) {
        self.settle();
        self.signal(signal);
        let status = wait_with_limit(&mut self.child);
        self.ended = status.is_some();
        assert!(
            status.is_some_and(|status| status.success()),
            "ended with {status:?}"
        );
        assert!(!self.files.control().exists(), "the control socket is left");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.ended && !std::thread::panicking() {
            let ending = std::panic::AssertUnwindSafe(|| self.end(Signal::SIGTERM));
            if let Err(panic) = std::panic::catch_unwind(ending) {
                self.abandon();
                std::panic::resume_unwind(panic);
            }
        }
        if std::thread::panicking() {
            self.abandon();
        }
    }
}

impl Daemon {
    /// After a failure: ends it anyhow, and shows what it logged.
    fn abandon(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        println!("--- log of the daemon\n{}---", self.log.text());
    }
}

/// What it shows.
impl Daemon {
    fn show(&self, table: Table) -> Response {
        let shown = self.try_show(table);
        shown.unwrap_or_else(|error| panic!("show {table:?}: {error}"))
    }

    pub(crate) fn try_show(&self, table: Table) -> Result<Response, ControlError> {
        query(&self.files.control(), &Request::Show { table }, LIMIT)
    }

    pub(crate) fn attachments(&self) -> Vec<Attachment> {
        match self.show(Table::Attachments) {
            Response::Attachments(attachments) => attachments,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn attachment(&self, name: &str) -> Attachment {
        let mut attachments = self.attachments().into_iter();
        let found = attachments.find(|attachment| attachment.name == name);
        found.unwrap_or_else(|| panic!("no attachment {name}"))
    }

    pub(crate) fn uplink(&self, name: &str) -> Uplink {
        let mut uplinks = self.counters().uplinks.into_iter();
        let found = uplinks.find(|uplink| uplink.name == name);
        found.unwrap_or_else(|| panic!("no uplink {name}"))
    }

    pub(crate) fn ports(&self) -> Vec<Port> {
        match self.show(Table::Ports) {
            Response::Ports(ports) => ports,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn routes(&self) -> Vec<Route> {
        match self.show(Table::Routes) {
            Response::Routes(routes) => routes,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn flows(&self) -> Vec<Flow> {
        match self.show(Table::Flows) {
            Response::Flows(rows) => rows,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn neighbors(&self) -> Vec<Neighbor> {
        match self.show(Table::Neighbors) {
            Response::Neighbors(neighbors) => neighbors,
            other => panic!("{other:?}"),
        }
    }

    /// The counters, of which none may be missing at any time.
    pub(crate) fn counters(&self) -> Counters {
        match self.show(Table::Counters) {
            Response::Counters(counters) => {
                assert_balanced(&counters);
                counters
            }
            other => panic!("{other:?}"),
        }
    }

    /// Packets that one stage has dropped for `reason`.
    pub(crate) fn dropped(&self, stage: &str, reason: &str) -> u64 {
        let counters = self.counters();
        let mut stages = counters.stages.iter();
        let stage = stages.find(|one| one.name == stage).unwrap();
        stage.drops.get(reason).copied().unwrap_or_default()
    }

    /// What `show TABLE --json` prints.
    pub(crate) fn show_json(&self, table: &str) -> String {
        let mut command = Command::new(program());
        command
            .args(["show", table, "--json", "--control"])
            .arg(self.files.control());
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "show {table}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until no packet is under way, and checks that none has got lost, neither within a
    /// stage nor between the stages.
    pub(crate) fn settle(&self) -> Counters {
        let mut last = None;
        await_that("no packet is under way", || {
            let mut counters: Counters = serde_json::from_str(&self.show_json("counters")).unwrap();
            assert_balanced(&counters);
            // Being asked is a turn as well.
            counters.turns.clear();
            let between = (!self.forgot.get()).then(|| between(&counters, &self.attachments()));
            let still =
                last.as_ref() == Some(&counters) && between.is_none_or(|lost| lost == [0, 0]);
            last = Some(counters);
            still
                .then_some(())
                .ok_or_else(|| format!("between the stages {between:?} of {last:#?}"))
        });
        last.unwrap()
    }
}

fn assert_balanced(counters: &Counters) {
    for stage in &counters.stages {
        assert_eq!(stage.unaccounted(), 0, "packets of {stage:#?}");
    }
}

/// Packets that are between the stages, each way. What the stages exchange is what they have of
/// neither container nor uplink.
fn between(counters: &Counters, attachments: &[Attachment]) -> [i128; 2] {
    let [relay, nos] = ["relay", "nos"].map(|name| {
        let mut stages = counters.stages.iter();
        stages.find(|stage| stage.name == name).unwrap()
    });
    let sum = |numbers: &mut dyn Iterator<Item = u64>| numbers.map(i128::from).sum::<i128>();
    let containers = || attachments.iter().map(|attachment| &attachment.link);
    let uplinks = || counters.uplinks.iter().map(|uplink| &uplink.link);
    let to_containers = sum(&mut containers().map(|link| link.tx.packets));
    let from_containers = sum(&mut containers().map(|link| link.rx.packets));
    let to_network = sum(&mut uplinks().map(|link| link.tx.packets));
    let from_network = sum(&mut uplinks().map(|link| link.rx.packets));
    let outbound = i128::from(relay.sent) - to_containers;
    let inbound = i128::from(nos.sent) - to_network;
    [
        outbound - (i128::from(nos.received) - from_network),
        inbound - (i128::from(relay.received) - from_containers),
    ]
}

/// Looks until `condition` holds; its error says what is missing.
pub(crate) fn await_that<T>(what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < deadline, "not in time: {what}: {error}"),
        }
        // Leaves the processor to those who are waited for.
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// `None` if it does not end in time.
fn wait_with_limit(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}

fn lines_of(stdout: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// What a child writes to its stderr: a file, so that what it said before anything else that a test
/// sees of it is there to be read.
#[derive(Debug)]
struct Log(File);

impl Log {
    /// Makes the stderr of what `command` starts one.
    fn of(command: &mut Command) -> Self {
        let file = tempfile::tempfile().unwrap();
        command.stderr(file.try_clone().unwrap());
        Self(file)
    }

    fn text(&self) -> String {
        let length = usize::try_from(self.0.metadata().unwrap().len()).unwrap();
        let mut text = vec![0; length];
        // Not from the position, which is the child's.
        self.0.read_exact_at(&mut text, 0).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// Whether a path is gone, as the daemon's socket after its end.
pub(crate) fn is_gone(path: &Path) -> bool {
    !path.exists()
}
