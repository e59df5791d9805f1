//! What demo and bench need of processes: children that end with us, and leaving on a signal.

use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdout, Command};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};
use parking_lot::Mutex;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::progress::Progress;

/// 128 + SIGINT, as shells have it.
const INTERRUPTED: i32 = 130;

/// Lets the kernel kill the child when this thread, the main one, ends in whatever way.
pub(super) fn die_with_us(command: &mut Command) {
    let us = Pid::this();
    let tie = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // Too late for the signal.
        if getppid() != us {
            return Err(Errno::ESRCH.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls; it takes no lock and
    // allocates nothing.
    unsafe { command.pre_exec(tie) };
}

/// The lines of a child's stdout, read by a thread of its own.
pub(super) fn lines(stdout: Option<ChildStdout>) -> io::Result<Receiver<String>> {
    let (sender, receiver) = channel();
    let read = move || {
        for line in stdout
            .into_iter()
            .flat_map(|out| BufReader::new(out).lines())
        {
            let Ok(line) = line else { return };
            // Read on to the end all the same: a full pipe would block the child.
            let _ = sender.send(line);
        }
    };
    std::thread::Builder::new()
        .name("child-stdout".to_owned())
        .spawn(read)?;
    Ok(receiver)
}

/// On a signal has `leave` clean up, and ends the process; `what` was interrupted. The lock is never
/// given back.
pub(super) fn leave_on_signal<T: Send + 'static>(
    what: &'static str,
    owned: Arc<Mutex<T>>,
    leave: fn(&mut T),
    progress: Progress,
) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let wait = move || {
        if signals.forever().next().is_some() {
            let mut owned = owned.lock();
            leave(&mut owned);
            progress.clear();
            eprintln!("nos-relay: {what} interrupted");
            std::process::exit(INTERRUPTED);
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)?;
    Ok(())
}
