//! A service manager that keeps descriptors for its service, as systemd does
//! (`FileDescriptorStoreMax=`, sd_notify(3), sd_listen_fds(3)).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where its network cannot be built"
)]

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::cmsg_space;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nos_relay::lab::testbed::LabNamespace;

use super::daemon::{Daemon, Files, run_command_with};

/// Descriptors that are kept at most.
const ROOM: usize = 64;

type Kept = Arc<Mutex<Vec<(String, OwnedFd)>>>;

/// The manager of one service.
#[derive(Debug)]
pub(crate) struct Supervisor {
    socket: PathBuf,
    kept: Kept,
}

impl Supervisor {
    /// One whose socket is among the files of the service. What it is told is told to the service's
    /// own test as well.
    pub(crate) fn new(files: &Files) -> Self {
        let socket = files.path("supervisor");
        let (listener, told) = (UnixDatagram::bind(&socket).unwrap(), files.path("notify"));
        let kept = Kept::default();
        let keeping = Arc::clone(&kept);
        // Ends with the process.
        std::thread::spawn(move || {
            let teller = UnixDatagram::unbound().unwrap();
            loop {
                let (text, descriptors) = receive(&listener);
                obey(&mut keeping.lock().unwrap(), &text, descriptors);
                let _ = teller.send_to(text.as_bytes(), &told);
            }
        });
        Self { socket, kept }
    }

    /// Names of what is kept.
    pub(crate) fn names(&self) -> Vec<String> {
        let kept = self.kept.lock().unwrap();
        kept.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Keeps a file with this text.
    pub(crate) fn add(&self, name: &str, text: &[u8]) {
        let mut file = File::from(memfd_create(c"kept", MFdFlags::MFD_CLOEXEC).unwrap());
        file.write_all(text).unwrap();
        let mut kept = self.kept.lock().unwrap();
        kept.push((name.to_owned(), file.into()));
    }

    /// Starts the service with what is kept, and waits until it is ready.
    pub(crate) fn start(&mut self, host: &LabNamespace, files: Files) -> Daemon {
        let run = run_command_with(&files, &[]);
        // Who is started knows its process id only then.
        let mut command = Command::new("sh");
        command
            .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""])
            .arg(run.get_program())
            .args(run.get_args())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env("NOTIFY_SOCKET", &self.socket)
            .env("FDSTORE", ROOM.to_string());
        let kept = self.kept.lock().unwrap();
        let names: Vec<_> = kept.iter().map(|(name, _)| name.as_str()).collect();
        if !names.is_empty() {
            command
                .env("LISTEN_FDS", names.len().to_string())
                .env("LISTEN_FDNAMES", names.join(":"));
        }
        let numbers: Vec<RawFd> = kept.iter().map(|(_, kept)| kept.as_raw_fd()).collect();
        drop(kept);
        // First, as the descriptor of the namespace may have one of the numbers.
        host.hold(&mut command);
        // SAFETY: between fork and exec the closure makes system calls on numbers alone.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from)?;
                pass(&numbers)
            });
        }
        let daemon = Daemon::spawn_command(files, command);
        daemon.await_ready();
        daemon
    }
}

/// Gives descriptors the numbers from 3 on, and closes none of them at exec.
fn pass(numbers: &[RawFd]) -> std::io::Result<()> {
    /// Above all that a test has open.
    const ASIDE: RawFd = 5_000;
    let check = |result: libc::c_int| match result {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    };
    for (place, &number) in (0..).zip(numbers) {
        // SAFETY: the calls take plain numbers.
        check(unsafe { libc::dup2(number, ASIDE + place) })?;
    }
    for (place, _) in (0..).zip(numbers) {
        // SAFETY: the calls take plain numbers.
        check(unsafe { libc::dup2(ASIDE + place, 3 + place) })?;
        // SAFETY: as above.
        check(unsafe { libc::close(ASIDE + place) })?;
    }
    Ok(())
}

fn receive(listener: &UnixDatagram) -> (String, Vec<OwnedFd>) {
    let mut buffer = [0; 4096];
    let mut space = cmsg_space!([RawFd; 8]);
    let mut pieces = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(listener.as_raw_fd(), &mut pieces, Some(&mut space), flags);
    let message = message.unwrap();
    let mut descriptors = Vec::new();
    for part in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            // SAFETY: the kernel has made these descriptors a moment ago.
            descriptors.extend(
                numbers
                    .into_iter()
                    .map(|it| unsafe { OwnedFd::from_raw_fd(it) }),
            );
        }
    }
    let length = message.bytes;
    (
        String::from_utf8_lossy(&buffer[..length]).into_owned(),
        descriptors,
    )
}

fn obey(kept: &mut Vec<(String, OwnedFd)>, text: &str, descriptors: Vec<OwnedFd>) {
    let lines: Vec<_> = text.lines().collect();
    let name = lines.iter().find_map(|line| line.strip_prefix("FDNAME="));
    let name = name.unwrap_or("stored").to_owned();
    if lines.contains(&"FDSTORE=1") {
        kept.extend(
            descriptors
                .into_iter()
                .map(|descriptor| (name.clone(), descriptor)),
        );
        assert!(kept.len() <= ROOM);
    }
    if lines.contains(&"FDSTOREREMOVE=1") {
        kept.retain(|(known, _)| *known != name);
    }
}
