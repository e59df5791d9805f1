//! One epoll descriptor for everything that is watched, which is itself pollable.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tracing::warn;

use super::socket::Drained;

/// What a descriptor of the set stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Links of the host.
    Host,
    /// Links, addresses and routes inside of watched namespaces.
    Inside,
    /// Entries of directories.
    Directories,
    /// The table of mounts.
    Mounts,
    /// The end of the pause between two looks at the mounts.
    MountPause,
    /// Work left over by the last drain.
    Remainder,
    /// The end of a process.
    Process(NonZeroU32),
}

/// Numbers of processes stay below this one.
const NO_PROCESS: u64 = 1 << 32;

impl Source {
    fn to_data(self) -> u64 {
        let fixed = |number: u64| NO_PROCESS | number;
        match self {
            Self::Process(pid) => u64::from(pid.get()),
            Self::Host => fixed(0),
            Self::Inside => fixed(1),
            Self::Directories => fixed(2),
            Self::Mounts => fixed(3),
            Self::MountPause => fixed(4),
            Self::Remainder => fixed(5),
        }
    }

    fn from_data(data: u64) -> Option<Self> {
        let Some(number) = data.checked_sub(NO_PROCESS) else {
            let pid = u32::try_from(data).ok().and_then(NonZeroU32::new);
            return pid.map(Self::Process);
        };
        [
            Self::Host,
            Self::Inside,
            Self::Directories,
            Self::Mounts,
            Self::MountPause,
            Self::Remainder,
        ]
        .into_iter()
        .find(|source| source.to_data() == NO_PROCESS | number)
    }
}

/// The set of watched descriptors.
#[derive(Debug)]
pub(super) struct Poll {
    epoll: Epoll,
}

impl Poll {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll })
    }

    /// Adds a descriptor that is ready for as long as there is something to read.
    pub(super) fn add(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, source.to_data());
        Ok(self.epoll.add(fd, event)?)
    }

    /// Adds a descriptor that is ready once for each time the kernel wakes those who poll it.
    pub(super) fn add_edge(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        Ok(self
            .epoll
            .add(fd, EpollEvent::new(flags, source.to_data()))?)
    }

    /// Takes a descriptor out again; one that is not in the set is passed over.
    pub(super) fn remove(&self, fd: impl AsFd) {
        let _ = self.epoll.delete(fd);
    }

    /// Whether a drain of `source` has lost something. A source that fails is given up, since it
    /// would be ready for ever.
    pub(super) fn lost(&self, source: impl AsFd, drained: io::Result<Drained>) -> bool {
        match drained {
            Ok(drained) => drained == Drained::Overrun,
            Err(error) => {
                warn!(%error, "lost a netlink socket: changes are noticed no longer");
                self.remove(source);
                true
            }
        }
    }

    /// Replaces `ready` by what is ready now; it stays empty where nothing is.
    pub(super) fn ready(&self, ready: &mut Vec<Source>) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 32];
        ready.clear();
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO)?;
        let events = events.iter().take(count);
        ready.extend(events.filter_map(|event| Source::from_data(event.data())));
        Ok(())
    }
}

impl AsFd for Poll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_the_kernel() {
        for source in [
            Source::Host,
            Source::Inside,
            Source::Directories,
            Source::Mounts,
            Source::MountPause,
            Source::Remainder,
            Source::Process(NonZeroU32::MIN),
            Source::Process(NonZeroU32::MAX),
        ] {
            assert_eq!(Source::from_data(source.to_data()), Some(source));
        }
        assert_eq!(Source::from_data(0), None);
        assert_eq!(Source::from_data(NO_PROCESS | 99), None);
    }
}
