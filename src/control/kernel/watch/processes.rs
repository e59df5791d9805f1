//! The end of processes, as pidfds tell it.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};

use crate::control::kernel::pidfd::{self, has_ended};

use super::WatchKey;
use super::poll::{Poll, Source};

/// The watched processes. Each costs one descriptor, however many names lead to it.
#[derive(Debug, Default)]
pub(super) struct Processes {
    by_id: HashMap<NonZeroU32, Process>,
}

#[derive(Debug)]
struct Process {
    fd: OwnedFd,
    keys: BTreeSet<WatchKey>,
}

impl Processes {
    /// Watches for the end of process `pid` on behalf of `key`.
    ///
    /// Returns whose process by that number has ended unnoticed, if another has the number now.
    ///
    /// # Errors
    /// There is no such process, `pid` is a thread's, or there are no more descriptors.
    pub(super) fn watch(
        &mut self,
        set: &Poll,
        pid: NonZeroU32,
        key: WatchKey,
    ) -> io::Result<BTreeSet<WatchKey>> {
        if let Some(process) = self.by_id.get_mut(&pid)
            && !has_ended(process.fd.as_fd())
        {
            process.keys.insert(key);
            return Ok(BTreeSet::new());
        }
        let fd = open(pid)?;
        set.add(&fd, Source::Process(pid))?;
        let ended = self.remove(set, pid);
        let keys = BTreeSet::from([key]);
        self.by_id.insert(pid, Process { fd, keys });
        Ok(ended)
    }

    /// Ends what [`Processes::watch`] began.
    pub(super) fn forget(&mut self, set: &Poll, pid: NonZeroU32, key: WatchKey) {
        if let Some(process) = self.by_id.get_mut(&pid) {
            process.keys.remove(&key);
            if process.keys.is_empty() {
                self.remove(set, pid);
            }
        }
    }

    /// Who watched process `pid`, if it has ended; it is watched no longer then.
    pub(super) fn take_ended(&mut self, set: &Poll, pid: NonZeroU32) -> BTreeSet<WatchKey> {
        match self.by_id.get(&pid) {
            Some(process) if has_ended(process.fd.as_fd()) => self.remove(set, pid),
            _ => BTreeSet::new(),
        }
    }

    fn remove(&mut self, set: &Poll, pid: NonZeroU32) -> BTreeSet<WatchKey> {
        let Some(process) = self.by_id.remove(&pid) else {
            return BTreeSet::new();
        };
        set.remove(&process.fd);
        process.keys
    }
}

fn open(pid: NonZeroU32) -> io::Result<OwnedFd> {
    let fd = pidfd::open(pid.get())?;
    // Its parent has not reaped it yet; the end of it would be an event for ever.
    if has_ended(fd.as_fd()) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    #[test]
    fn end_is_reported_once_to_all() {
        let set = Poll::new().unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = NonZeroU32::new(child.id()).unwrap();
        let mut processes = Processes::default();
        for key in [1, 2, 3].map(WatchKey) {
            assert_eq!(processes.watch(&set, pid, key).unwrap(), BTreeSet::new());
        }
        processes.forget(&set, pid, WatchKey(2));
        assert_eq!(processes.take_ended(&set, pid), BTreeSet::new(), "it lives");

        drop(child.stdin.take());
        wait_until_ended(&processes, pid);
        let mut ready = Vec::new();
        set.ready(&mut ready).unwrap();
        assert_eq!(ready, [Source::Process(pid)]);
        let keys = BTreeSet::from([1, 3].map(WatchKey));
        assert_eq!(processes.take_ended(&set, pid), keys);
        assert_eq!(processes.take_ended(&set, pid), BTreeSet::new());
        set.ready(&mut ready).unwrap();
        assert_eq!(ready, []);

        // Nobody has reaped it so far, and still it is no process to wait for.
        let error = processes.watch(&set, pid, WatchKey(1)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
        child.wait().unwrap();
    }

    fn wait_until_ended(processes: &Processes, pid: NonZeroU32) {
        let process = &processes.by_id[&pid];
        let mut fds = [PollFd::new(process.fd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(20_000_u16)).unwrap(), 1);
    }

    #[test]
    fn process_that_does_not_exist_is_refused() {
        // Above the largest pid_max that the kernel allows (2^22).
        let pid = NonZeroU32::new(5_000_000).unwrap();
        let set = Poll::new().unwrap();
        let error = Processes::default()
            .watch(&set, pid, WatchKey(1))
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
    }
}
