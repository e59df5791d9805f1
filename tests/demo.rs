//! The demo passes, says what it lacks, and leaves nothing behind however it ends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use nos_relay::lab::testbed::{LabNamespace, user_namespace_on_spawn};
use support::{lab_test, skip};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_nos-relay");
/// For whatever happens at once on an idle machine.
const LIMIT: Duration = Duration::from_secs(60);
/// The user and group that own nothing.
const NOBODY: u32 = 65_534;
/// Exit code after a signal.
const INTERRUPTED: i32 = 130;

/// Where a demo runs: a namespace and a temporary directory of its own, by which one sees what it
/// leaves behind.
struct Place {
    namespace: LabNamespace,
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            namespace: LabNamespace::new("outside").unwrap(),
            directory: TempDir::new().unwrap(),
        }
    }

    fn command(&self, binary: impl AsRef<Path>) -> Command {
        let mut command = Command::new(binary.as_ref());
        command
            .arg("demo")
            .env("TMPDIR", self.directory.path())
            .env_remove("NOS_RELAY_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.namespace.hold(&mut command);
        command
    }

    /// The demo, and for processes that it started: all have the directory in their environment.
    fn processes(&self) -> Vec<u32> {
        let mark = format!("TMPDIR={}", self.directory.path().display());
        let has_mark = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment
                .split(|&octet| octet == 0)
                .any(|one| one == mark.as_bytes())
        };
        numbers_in("/proc").filter(has_mark).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// The daemon's socket, once it is there.
    fn socket(&self) -> Option<PathBuf> {
        let sockets = self
            .files()
            .into_iter()
            .map(|directory| directory.join("control.sock"));
        sockets.into_iter().find(|socket| socket.exists())
    }

    fn interfaces(&self) -> BTreeSet<String> {
        let read = || fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let text = self.namespace.run(read).unwrap();
        let names = text.lines().filter_map(|line| line.split_once(':'));
        names.map(|(name, _)| name.trim().to_owned()).collect()
    }

    #[track_caller]
    fn assert_nothing_is_left(&self) {
        assert_eq!(self.processes(), [0; 0]);
        assert_eq!(self.files(), [""; 0].map(PathBuf::from));
        assert_eq!(self.interfaces(), BTreeSet::from(["lo".to_owned()]));
    }
}

fn numbers_in(directory: &str) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(directory).unwrap().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Looks again and again until `find` has found.
fn wait_for<T>(what: &str, find: impl Fn() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(begin.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        sleep(Duration::from_millis(2));
    }
}

fn text(octets: &[u8]) -> String {
    String::from_utf8(octets.to_vec()).unwrap()
}

/// Every line says `pass`, every kind of check is there, and the summary agrees.
fn assert_all_passed(output: &Output, least: usize) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
    assert!(!out.contains("FAIL"), "{out}");
    for group in [
        "TAKEOVER", "PING", "TCP", "UDP", "NOS", "SIBLINGS", "REFUSED", "REGISTER", "BULK",
        "ACCOUNTS",
    ] {
        assert!(
            out.lines().any(|line| line.trim_end() == group),
            "{group}: {out}"
        );
    }
    let passed = out.lines().filter(|line| line.contains(" pass ")).count();
    assert!(passed >= least, "{passed} of at least {least}: {out}");
    let summary = out.lines().last().unwrap_or_default();
    assert!(
        summary.starts_with(&format!("{passed} of {passed} checks passed in ")),
        "{out}"
    );
    // No escape sequences, and no progress, where there is no terminal.
    assert!(!out.contains('\x1b'), "{out}");
    assert_eq!(err, "");
}

const CHECKS: usize = 63;

lab_test! {
    fn everything_passes_and_nothing_is_left() {
        let place = Place::new();
        let output = place.command(BINARY).arg("--quick").output().unwrap();
        assert_all_passed(&output, CHECKS);
        let out = text(&output.stdout);
        let shown = |text: &str| assert!(out.contains(text), "{text}: {out}");
        // The facts that a reader came for.
        shown("TTL 64");
        shown("db (veth)");
        shown("X sees 203.0.113.1:4");
        shown("X sees [2001:db8:1::1]:4");
        shown("web sees 203.0.113.2:");
        // Siblings on the one address.
        shown("web → db, TCP 21080");
        shown("db sees 203.0.113.1:4");
        shown("web sees [2001:db8:1::1]:4");
        shown("db sees [2001:db8:1::2]:");
        shown("connection refused (RST)");
        shown("port unreachable (ICMP)");
        shown("prohibited (ICMP)");
        shown("HTTP/1.1 200");
        shown("Gbit/s, every octet");
        shown("; none lost");
        shown("source-port");
        let clash = out.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(clash.contains("overlaps 20000-20999 of container \"web\""), "{out}");
        let widest = out.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(100), "{out}");
        place.assert_nothing_is_left();
    }
}

/// Starts a demo, sends `signal` once `moment` has come, and waits for its end.
fn interrupted(place: &Place, signal: Signal, moment: impl Fn() -> bool) -> (ExitStatus, String) {
    let mut demo = place.command(BINARY).spawn().unwrap();
    wait_for("the moment to interrupt", || {
        let ended = demo_has_ended(&demo);
        assert!(!ended, "the demo ended before it was interrupted");
        moment().then_some(())
    });
    kill(Pid::from_raw(demo.id().try_into().unwrap()), signal).unwrap();
    let status = demo.wait().unwrap();
    let output = demo.wait_with_output().unwrap();
    (status, text(&output.stdout) + &text(&output.stderr))
}

/// Without waiting for it, which would free its pid.
fn demo_has_ended(demo: &Child) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", demo.id())).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with('Z'))
}

lab_test! {
    fn a_signal_at_any_moment_leaves_nothing() {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            let place = Place::new();
            let begun = || !place.files().is_empty();
            let starting = || begun() && place.processes().len() > 1;
            let running = || place.socket().is_some();
            let moments: [(&str, &dyn Fn() -> bool); 3] =
                [("begun", &begun), ("starting", &starting), ("running", &running)];
            for (name, moment) in moments {
                let (status, out) = interrupted(&place, signal, moment);
                assert_eq!(status.code(), Some(INTERRUPTED), "{signal} when {name}: {out}");
                assert_eq!(out, "nos-relay: demo interrupted\n");
                place.assert_nothing_is_left();
            }
        }
    }
}

lab_test! {
    fn a_signal_amid_traffic_leaves_nothing() {
        let place = Place::new();
        // The daemon holds interfaces in the containers; some of the checks have been done.
        let talking = || {
            let Some(socket) = place.socket() else { return false };
            let table = nos_relay::control::api::Table::Counters;
            let request = nos_relay::control::api::Request::Show { table };
            let answer = nos_relay::control::api::query(&socket, &request, LIMIT);
            let Ok(nos_relay::control::api::Response::Counters(counters)) = answer else { return false };
            counters.stages.iter().any(|stage| stage.received > 500)
        };
        let (status, out) = interrupted(&place, Signal::SIGINT, talking);
        assert_eq!(status.code(), Some(INTERRUPTED), "{out}");
        place.assert_nothing_is_left();
    }
}

lab_test! {
    fn the_daemon_does_not_outlive_a_killed_demo() {
        let place = Place::new();
        let (status, _) = interrupted(&place, Signal::SIGKILL, || place.socket().is_some());
        assert_eq!(status.code(), None);
        wait_for("the daemon's end", || place.processes().is_empty().then_some(()));
        assert_eq!(place.interfaces(), BTreeSet::from(["lo".to_owned()]));
    }
}

lab_test! {
    fn a_dead_daemon_fails_the_demo() {
        let place = Place::new();
        let demo = place.command(BINARY).spawn().unwrap();
        wait_for("the socket", || place.socket());
        let daemon = place.processes().into_iter().find(|&pid| pid != demo.id()).unwrap();
        kill(Pid::from_raw(daemon.try_into().unwrap()), Signal::SIGKILL).unwrap();
        let output = demo.wait_with_output().unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{out}\n{err}");
        // Depending on whether it was ready already.
        assert!((out + &err).contains("signal: 9"), "{err}");
        place.assert_nothing_is_left();
    }
}

lab_test! {
    fn without_namespaces_it_says_what_is_missing() {
        let place = Place::new();
        let mut command = Command::new(BINARY);
        command.arg("demo").env("TMPDIR", place.directory.path());
        user_namespace_on_spawn(&mut command);
        // SAFETY: between fork and exec the closure makes system calls only; nothing is allocated.
        unsafe { command.pre_exec(forbid_namespaces) };
        let output = command.output().unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!((output.status.code(), out.as_str()), (Some(1), ""), "{err}");
        assert!(err.contains("the demo needs network namespaces"), "{err}");
        assert!(err.contains("user.max_user_namespaces"), "{err}");
        place.assert_nothing_is_left();
    }
}

/// In the user namespace of the caller, who is root there.
fn forbid_namespaces() -> std::io::Result<()> {
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;
    for path in [
        c"/proc/sys/user/max_user_namespaces",
        c"/proc/sys/user/max_net_namespaces",
    ] {
        let file = open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        nix::unistd::write(&file, b"0")?;
    }
    Ok(())
}

/// Makes the child an ordinary user's.
fn as_nobody(command: &mut Command) -> &mut Command {
    command.uid(NOBODY).gid(NOBODY)
}

/// Whether the kernel gives user namespaces to ordinary users, asked without the code under test.
fn user_namespaces_for_nobody() -> bool {
    let mut command = Command::new("/proc/self/exe");
    command.arg("--list").stdout(Stdio::null());
    let attempt = || {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
        Ok(unshare(CloneFlags::CLONE_NEWNET)?)
    };
    // SAFETY: between fork and exec the closure makes system calls only.
    unsafe { as_nobody(&mut command).pre_exec(attempt) };
    command.status().is_ok()
}

/// A copy of the program that everybody may run, whatever the mode of the build directory.
fn public_copy(directory: &TempDir) -> PathBuf {
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = directory.path().join("nos-relay");
    fs::copy(BINARY, &copy).unwrap();
    copy
}

#[test]
fn an_ordinary_user_sees_it_in_a_user_namespace() {
    let directory = TempDir::new().unwrap();
    let bin = TempDir::new().unwrap();
    let mut command = Command::new(public_copy(&bin));
    if Uid::effective().is_root() {
        if !user_namespaces_for_nobody() {
            return skip("an_ordinary_user_sees_it_in_a_user_namespace: the kernel refuses");
        }
        chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        as_nobody(&mut command);
    } else if nos_relay::lab::testbed::privileges()
        != nos_relay::lab::testbed::Privileges::UserNamespace
    {
        return skip("an_ordinary_user_sees_it_in_a_user_namespace: the kernel refuses");
    }
    command
        .args(["demo", "--quick"])
        .env("TMPDIR", directory.path());
    let output = command.env_remove("NOS_RELAY_LOG").output().unwrap();
    assert_all_passed(&output, CHECKS);
    let out = text(&output.stdout);
    assert!(out.contains("in a user namespace"), "{out}");
    assert!(
        out.contains("web (tap)") || out.contains("web has no TAP here: /dev/net/tun"),
        "{out}"
    );
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}
