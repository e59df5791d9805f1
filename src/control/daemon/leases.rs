//! Processes that hold what is registered: what is theirs goes with them.
//!
//! A process is known by its pidfd, which stands for it alone: whoever gets its number later is
//! another one. pidfds are in an epoll set of their own, which the control thread waits for; nothing
//! polls.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};

use crate::control::config::{BootId, ProcessIdentity};
use crate::control::kernel::pidfd;

/// Processes that may hold something at a time: each costs a descriptor.
pub(super) const MAX_PROCESSES: usize = 1024;

/// The processes that hold something.
#[derive(Debug)]
pub(super) struct Processes {
    poll: Poll,
    boot: BootId,
    by_identity: BTreeMap<ProcessIdentity, Watched>,
    /// The token that the next one gets.
    next: usize,
}

#[derive(Debug)]
struct Watched {
    pidfd: OwnedFd,
    token: Token,
}

impl Processes {
    /// Watches nobody yet.
    pub(super) fn new() -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let boot = boot.trim().parse().map_err(io::Error::other)?;
        Ok(Self {
            poll: Poll::new()?,
            boot,
            by_identity: BTreeMap::new(),
            next: 0,
        })
    }

    /// Has `registry` tell under `token` when one of them has ended.
    pub(super) fn register(&self, registry: &Registry, token: Token) -> io::Result<()> {
        let descriptor = self.poll.as_raw_fd();
        registry.register(&mut SourceFd(&descriptor), token, Interest::READABLE)
    }

    /// Which process a descriptor stands for, or why none.
    pub(super) fn identify(&self, pidfd: BorrowedFd<'_>) -> Result<ProcessIdentity, String> {
        let identity = identify(pidfd, self.boot)?;
        match pidfd::has_ended(pidfd) {
            true => Err("the process has ended".to_owned()),
            false => Ok(identity),
        }
    }

    /// Watches a process from now on. One that has ended meanwhile is told as any other.
    pub(super) fn watch(
        &mut self,
        identity: ProcessIdentity,
        pidfd: OwnedFd,
    ) -> Result<(), String> {
        if self.by_identity.contains_key(&identity) {
            return Ok(());
        }
        if self.by_identity.len() >= MAX_PROCESSES {
            return Err(format!(
                "{MAX_PROCESSES} processes hold something, the most"
            ));
        }
        let token = Token(self.next);
        self.next += 1;
        let descriptor = pidfd.as_raw_fd();
        let registry = self.poll.registry();
        registry
            .register(&mut SourceFd(&descriptor), token, Interest::READABLE)
            .map_err(|error| format!("the process cannot be watched: {error}"))?;
        self.by_identity.insert(identity, Watched { pidfd, token });
        Ok(())
    }

    /// Takes up a process that held something when this daemon's predecessor ended. Says why not, if
    /// it has ended since.
    pub(super) fn take_up(&mut self, identity: ProcessIdentity) -> Result<(), String> {
        if identity.boot != self.boot {
            return Err("the machine was booted since".to_owned());
        }
        let pidfd = pidfd::open(identity.pid).map_err(|_| "the process has ended".to_owned())?;
        match self.identify(pidfd.as_fd()) {
            Ok(found) if found == identity => self.watch(identity, pidfd),
            Ok(_) => Err("the process has ended, and another one has its number".to_owned()),
            Err(why) => Err(why),
        }
    }

    /// Watches none but those that hold something still.
    pub(super) fn retain(&mut self, holds: impl Fn(ProcessIdentity) -> bool) {
        let registry = self.poll.registry();
        self.by_identity.retain(|identity, watched| {
            let stays = holds(*identity);
            if !stays {
                // Closing it deregisters it as well.
                let _ = registry.deregister(&mut SourceFd(&watched.pidfd.as_raw_fd()));
            }
            stays
        });
    }

    /// Those that have ended since the last time. They are watched no more.
    pub(super) fn take_ended(&mut self) -> Vec<ProcessIdentity> {
        let mut ended = Vec::new();
        let mut events = Events::with_capacity(64);
        loop {
            match self.poll.poll(&mut events, Some(Duration::ZERO)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
                Ok(()) if events.is_empty() => break,
                Ok(()) => {}
            }
            for event in &events {
                let mut all = self.by_identity.iter();
                let found = all.find(|(_, watched)| watched.token == event.token());
                ended.extend(found.map(|(identity, _)| *identity));
            }
        }
        self.retain_others(&ended);
        ended
    }

    fn retain_others(&mut self, ended: &[ProcessIdentity]) {
        if !ended.is_empty() {
            self.retain(|identity| !ended.contains(&identity));
        }
    }
}

fn identify(pidfd: BorrowedFd<'_>, boot: BootId) -> Result<ProcessIdentity, String> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()));
    let info = info.map_err(|error| format!("the descriptor tells nothing of itself: {error}"))?;
    let mut lines = info.lines();
    let pid = lines.find_map(|line| line.strip_prefix("Pid:"));
    let pid = pid
        .ok_or("the descriptor that came along is no pidfd")?
        .trim();
    let pid: i64 = pid.parse().map_err(|_| format!("{pid} is no process"))?;
    let pid = match u32::try_from(pid) {
        Ok(0) => return Err("the process cannot be seen from here".to_owned()),
        Ok(pid) => pid,
        Err(_) => return Err("the process has ended".to_owned()),
    };
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    let stat = stat.map_err(|_| "the process has ended".to_owned())?;
    let started = started(&stat).ok_or("the process tells nothing of its start")?;
    Ok(ProcessIdentity { pid, started, boot })
}

/// The field `starttime` of `proc_pid_stat(5)`. The name before it may contain anything.
fn started(stat: &str) -> Option<u64> {
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn child() -> Child {
        Command::new("cat").stdin(Stdio::piped()).spawn().unwrap()
    }

    fn await_ready(processes: &Processes) {
        let mut descriptors = [PollFd::new(
            // SAFETY: the set lives as long as this function runs.
            unsafe { BorrowedFd::borrow_raw(processes.poll.as_raw_fd()) },
            PollFlags::POLLIN,
        )];
        assert_eq!(
            poll(&mut descriptors, PollTimeout::from(20_000_u16)).unwrap(),
            1
        );
    }

    #[test]
    fn a_process_is_told_apart_from_others_and_its_end_is_told_once() {
        let mut processes = Processes::new().unwrap();
        let (mut one, mut two) = (child(), child());
        for child in [&one, &two] {
            let pidfd = pidfd::open(child.id()).unwrap();
            let identity = processes.identify(pidfd.as_fd()).unwrap();
            assert_eq!(identity.pid, child.id());
            processes
                .watch(identity, pidfd.try_clone().unwrap())
                .unwrap();
            processes.watch(identity, pidfd).unwrap();
        }
        assert_eq!(processes.take_ended(), []);
        drop(one.stdin.take());
        await_ready(&processes);
        let ended = processes.take_ended();
        assert_eq!(ended.len(), 1);
        assert_eq!(ended[0].pid, one.id());
        assert_eq!(processes.take_ended(), []);
        // It is not reaped yet, and has ended still.
        let pidfd = pidfd::open(one.id()).unwrap();
        assert!(
            processes
                .identify(pidfd.as_fd())
                .unwrap_err()
                .contains("has ended")
        );
        one.wait().unwrap();
        two.kill().unwrap();
        two.wait().unwrap();
        assert_eq!(processes.take_ended().len(), 1);
    }

    #[test]
    fn one_that_lives_is_taken_up_again_and_no_other_in_its_place() {
        let mut processes = Processes::new().unwrap();
        let mut child = child();
        let identity = processes
            .identify(pidfd::open(child.id()).unwrap().as_fd())
            .unwrap();
        let mut other = Processes::new().unwrap();
        other.take_up(identity).unwrap();
        let earlier = ProcessIdentity {
            started: identity.started - 1,
            ..identity
        };
        assert!(other.take_up(earlier).unwrap_err().contains("another one"));
        let boot = ProcessIdentity {
            boot: BootId(1),
            ..identity
        };
        assert!(other.take_up(boot).unwrap_err().contains("booted"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            processes
                .take_up(identity)
                .unwrap_err()
                .contains("has ended")
        );
    }

    #[test]
    fn what_is_no_pidfd_is_refused() {
        let processes = Processes::new().unwrap();
        let file = fs::File::open("/dev/null").unwrap();
        let error = processes.identify(file.as_fd()).unwrap_err();
        assert!(error.contains("no pidfd"), "{error}");
    }

    #[test]
    fn a_start_is_read_behind_any_name() {
        let numbers = (3..=52).map(|n| n.to_string()).collect::<Vec<_>>();
        let stat = format!("7 (a) b) c) {}", numbers.join(" "));
        assert_eq!(started(&stat), Some(22));
        assert_eq!(started("7 (a"), None);
    }
}
