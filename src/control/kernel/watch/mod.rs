//! News from the kernel: what the control plane waits for has appeared, changed or vanished.
//!
//! Goal: the control thread waits for events instead of looking again and again. One descriptor
//! becomes readable when there is news, and [`KernelWatch::drain`] returns it as values. Nothing
//! here blocks or has a thread.
//!
//! | news of | from | file |
//! |---|---|---|
//! | the host's interfaces | rtnetlink | `links` |
//! | interfaces, addresses, default routes, routes of ours and policy rules inside of containers; the end of their namespaces | rtnetlink, one socket in an observer namespace | `inside` |
//! | names of namespaces | inotify, mountinfo, pidfds | `names`, which uses `walk`, `directories`, `mounts`, `processes` |
//!
//! An event says where to look, and not what is there: several changes are one event. No change is
//! missed by who watches first, looks then, and looks again at each event. Events of the host's
//! interfaces carry the state as well, in order.
//!
//! Nothing that is watched is kept alive by it, neither namespaces nor processes nor mounts.
//!
//! Limits:
//! - The start of a process is no event, so a process that does not exist cannot be waited for.
//! - A process that moves to another namespace gives no event.
//! - Other files of `/proc/PID`, such as `fd/5`, are followed to the end of the process only.
//!   [`KernelWatch::watch_inside`] reports the end of the namespace itself.
//! - Directories of network file systems report local changes only.
//! - IPv4 routes that go with their interface or source address have no notification of their own.
//!   That of the interface or address is the event.
//! - A namespace of a foreign user namespace stays silent: the kernel wants CAP_NET_BROADCAST there.
//! - Watching many namespaces inside makes changes of routes dearer: see `inside`.

mod directories;
mod filter;
mod inside;
mod links;
mod mounts;
mod name;
mod names;
mod place;
mod poll;
mod processes;
mod socket;
mod walk;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use bitflags::bitflags;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::sys::eventfd::{EfdFlags, EventFd};
use thiserror::Error;
use tracing::warn;

use super::namespace::{Namespace, NamespaceError};
use inside::Inside;
use links::Links;
use names::Names;
use poll::{Poll, Source};

pub use links::LinkChange;
pub use name::{NameKind, NetnsName};

/// The caller's number for a container, which events carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WatchKey(pub u64);

/// Something that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    /// An interface of the host was made, changed or deleted.
    Link(LinkChange),
    /// Something changed inside of a watched namespace.
    Inside {
        /// Whose namespace.
        key: WatchKey,
        /// Of what kinds the changes were.
        changes: InsideChanges,
    },
    /// A name leads elsewhere than before: to another namespace, to nothing, to something at last.
    Name {
        /// Whose name.
        key: WatchKey,
    },
    /// More changes than could be queued: of the host's interfaces, or inside of namespaces. Any of
    /// them may have changed. Names are not concerned.
    Overrun,
}

bitflags! {
    /// Kinds of changes inside of a namespace.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct InsideChanges: u8 {
        /// An interface was made, changed or deleted.
        const LINKS = 1;
        /// An address was added, changed or removed.
        const ADDRESSES = 1 << 1;
        /// A default route of any table, or a route of ours, was added, replaced or removed.
        const ROUTES = 1 << 2;
        /// A policy rule was added or removed.
        const RULES = 1 << 3;
        /// The namespace has ended, and its interfaces with it. It is watched no longer.
        const ENDED = 1 << 4;
    }
}

/// How well a name can be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// Every change of it is an event. Of a process there is one: its end.
    Fully,
    /// Some changes are events, and for this reason not all.
    Partly(Unwatchable),
    /// No change is an event, for this reason: waiting is in vain.
    Nothing(Unwatchable),
}

/// Why something gives no events.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{} cannot be watched: {reason}", path.display())]
pub struct Unwatchable {
    path: PathBuf,
    reason: UnwatchableReason,
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
enum UnwatchableReason {
    #[error("{0}")]
    Refused(String),
    #[error("there is no such process, and the start of one is no event")]
    NoProcess,
    #[error("files of /proc give no events")]
    Opaque,
}

impl Unwatchable {
    fn new(path: &Path, error: &io::Error) -> Self {
        let reason = match error.raw_os_error() {
            Some(libc::ESRCH) => UnwatchableReason::NoProcess,
            _ => UnwatchableReason::Refused(error.to_string()),
        };
        Self {
            path: path.to_owned(),
            reason,
        }
    }

    fn opaque(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            reason: UnwatchableReason::Opaque,
        }
    }
}

/// Why the kernel cannot be watched.
#[derive(Debug, Error)]
pub enum WatchError {
    /// A namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A descriptor cannot be opened.
    #[error("cannot watch {what}: {source}")]
    Open {
        /// What it would watch.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// This process may not, or this kernel cannot, watch inside of namespaces at all.
    #[error("cannot watch inside of namespaces: {reason}")]
    Unsupported {
        /// What is missing.
        reason: String,
    },
    /// One namespace cannot be watched inside.
    #[error("cannot watch inside of {namespace}: {source}")]
    Inside {
        /// Which namespace.
        namespace: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// Room for notifications of each netlink socket, in octets: some thousand, each of about 2,000.
/// It is taken from memory as it is needed.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Notifications that are taken from one socket in a round of a drain.
const BUDGET: usize = 256;

/// Rounds of a drain. They bound how long it lasts while something inside of a container changes
/// faster than this thread reads.
const ROUNDS: usize = 16;

/// Everything that is watched.
#[derive(Debug)]
pub struct KernelWatch {
    set: Poll,
    links: Links,
    /// Or why there is none.
    inside: Result<Inside, String>,
    names: Names,
    /// Readable while a drain has left something over.
    remainder: EventFd,
}

impl KernelWatch {
    /// Watches the interfaces of `host` from now on, and nothing else yet.
    ///
    /// Names are watched as the calling thread sees them: in its mount namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the process has no more descriptors. That nothing can
    /// be watched inside of namespaces is no error here: see [`KernelWatch::inside_support`].
    pub fn open(host: &Namespace) -> Result<Self, WatchError> {
        Self::open_with_buffer(host, RECEIVE_BUFFER)
    }

    /// Like [`KernelWatch::open`], with room for about this many octets of notifications in each
    /// socket. What comes on top is lost, and reported as [`KernelEvent::Overrun`].
    ///
    /// # Errors
    /// As of [`KernelWatch::open`].
    pub fn open_with_buffer(host: &Namespace, receive_buffer: usize) -> Result<Self, WatchError> {
        let open = |what| move |source| WatchError::Open { what, source };
        let set = Poll::new().map_err(open("anything"))?;
        let links = host.run(|| Links::open(receive_buffer))?;
        let links = links.map_err(open("interfaces"))?;
        set.add(&links, Source::Host).map_err(open("interfaces"))?;
        let inside = observer(receive_buffer);
        if let Ok(inside) = &inside {
            set.add(inside, Source::Inside)
                .map_err(open("namespaces"))?;
        }
        let names = Names::open(&set).map_err(open("mounts"))?;
        let remainder = remainder(&set).map_err(open("anything"))?;
        Ok(Self {
            set,
            links,
            inside,
            names,
            remainder,
        })
    }

    /// Has `registry` report `token` as readable whenever there is something to drain.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn register(&self, registry: &Registry, token: Token) -> io::Result<()> {
        let fd = self.set.as_fd().as_raw_fd();
        registry.register(&mut SourceFd(&fd), token, Interest::READABLE)
    }

    /// Whether [`KernelWatch::watch_inside`] works here.
    ///
    /// # Errors
    /// What is missing.
    pub fn inside_support(&self) -> Result<(), WatchError> {
        match &self.inside {
            Ok(_) => Ok(()),
            Err(reason) => Err(unsupported(reason)),
        }
    }

    /// Watches `name`, which need not exist, in the place of an earlier name of `key`.
    ///
    /// An event comes if it leads elsewhere than it does now: so look where it leads after this
    /// call. The same name again renews the watch, such as one of a process that has ended.
    pub fn watch_name(&mut self, key: WatchKey, name: &NetnsName) -> Watched {
        let watched = self.names.watch(&self.set, key, name);
        if self.names.is_unsettled() {
            self.leave_remainder();
        }
        watched
    }

    /// How well the name of `key` is watched at the moment; `None` where it has none.
    #[must_use]
    pub fn watched(&self, key: WatchKey) -> Option<Watched> {
        self.names.watched(key)
    }

    /// Watches inside of `namespace`, in the place of an earlier namespace of `key`, without
    /// keeping it alive. Changes from now on are not missed.
    ///
    /// # Errors
    /// The kernel lacks this, or this process has no right to it.
    pub fn watch_inside(&mut self, key: WatchKey, namespace: &Namespace) -> Result<(), WatchError> {
        let inside = self.inside.as_mut().map_err(|reason| unsupported(reason))?;
        let watched = inside.watch(key, namespace);
        watched.map_err(|source| WatchError::Inside {
            namespace: namespace.to_string(),
            source,
        })
    }

    /// Stops to watch the name and the namespace of `key`. No event of it comes any more.
    pub fn forget(&mut self, key: WatchKey) {
        self.names.forget(&self.set, key);
        self.forget_inside(key);
    }

    /// Stops to watch the namespace of `key`, and goes on with its name.
    pub fn forget_inside(&mut self, key: WatchKey) {
        if let Ok(inside) = &mut self.inside {
            inside.forget(key);
        }
    }

    /// Adds what has happened to `events`. It takes a bounded time; what is left over makes the
    /// descriptor readable again.
    pub fn drain(&mut self, events: &mut Vec<KernelEvent>) {
        let mut overrun = false;
        let mut ready = Vec::new();
        for _ in 0..ROUNDS {
            if let Err(error) = self.set.ready(&mut ready) {
                warn!(%error, "cannot ask the kernel for news");
            }
            for &source in &ready {
                overrun |= self.handle(source, events);
            }
            let changed = |key| events.push(KernelEvent::Name { key });
            self.names.settle(&self.set, changed);
            if ready.is_empty() && !self.names.is_unsettled() {
                self.settle(overrun, events);
                return;
            }
        }
        self.settle(overrun, events);
        self.leave_remainder();
    }

    /// Passes on what was gathered in a drain.
    fn settle(&mut self, overrun: bool, events: &mut Vec<KernelEvent>) {
        if let Ok(inside) = &mut self.inside {
            inside.settle(|key, changes| events.push(KernelEvent::Inside { key, changes }));
        }
        if overrun {
            events.push(KernelEvent::Overrun);
        }
    }

    /// Takes what one source has; true: some of it was lost.
    fn handle(&mut self, source: Source, events: &mut Vec<KernelEvent>) -> bool {
        match source {
            Source::Host => {
                let change = |change| events.push(KernelEvent::Link(change));
                let drained = self.links.drain(BUDGET, change);
                self.set.lost(&self.links, drained)
            }
            Source::Inside => match &mut self.inside {
                Ok(inside) => {
                    let drained = inside.drain(BUDGET);
                    self.set.lost(inside, drained)
                }
                Err(_) => false,
            },
            source => {
                self.handle_names(source);
                false
            }
        }
    }

    fn handle_names(&mut self, source: Source) {
        match source {
            Source::Host | Source::Inside => {}
            Source::Directories => self.names.handle_directories(&self.set),
            Source::Mounts => self.names.handle_mounts(),
            Source::MountPause => self.names.handle_mount_pause(),
            Source::Process(pid) => self.names.handle_process(&self.set, pid),
            // It was written to, and reading it takes that away.
            Source::Remainder => drop(self.remainder.read()),
        }
    }

    /// Makes the descriptor readable, so that another drain follows.
    fn leave_remainder(&self) {
        if let Err(error) = self.remainder.write(1) {
            warn!(%error, "cannot call for another drain");
        }
    }
}

impl AsFd for KernelWatch {
    /// Readable whenever there is something to drain; it may also be registered edge triggered.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.set.as_fd()
    }
}

/// The observer, or why there is none.
fn observer(receive_buffer: usize) -> Result<Inside, String> {
    let inside = Inside::open(receive_buffer).map_err(|error| error.to_string())?;
    inside.map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM) => "CAP_NET_BROADCAST is missing".to_owned(),
        Some(libc::ENOPROTOOPT) => {
            "the kernel lacks NETLINK_LISTEN_ALL_NSID (Linux 4.2)".to_owned()
        }
        _ => error.to_string(),
    })
}

fn unsupported(reason: &str) -> WatchError {
    WatchError::Unsupported {
        reason: reason.to_owned(),
    }
}

fn remainder(set: &Poll) -> io::Result<EventFd> {
    let remainder = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
    set.add(&remainder, Source::Remainder)?;
    Ok(remainder)
}
