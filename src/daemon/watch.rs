//! Noticing that a container has gone.
//!
//! A namespace lives as long as anybody holds it, and an attachment does: its descriptors keep the
//! network of a container that has ended alive. So the daemon watches what names the namespace, and
//! lets go when the name goes: the process ends, or the file is unlinked (as `ip netns del` does).
//! The kernel reports both; nothing is polled.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nos_shim::ident::AttachmentId;

use crate::config::NetnsRef;

/// Watches the names of all attached containers' namespaces.
#[derive(Debug)]
pub(super) struct Watch {
    registry: Registry,
    token: Token,
    inotify: Inotify,
    directories: HashMap<PathBuf, WatchDescriptor>,
    names: Vec<(AttachmentId, Name)>,
}

#[derive(Debug)]
enum Name {
    /// A descriptor that becomes readable when the process ends.
    Process(OwnedFd),
    File {
        directory: WatchDescriptor,
        name: OsString,
        path: PathBuf,
    },
}

impl Watch {
    /// Watches nothing yet. Events carry `token`.
    pub(super) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let registry = registry.try_clone()?;
        let fd = inotify.as_fd().as_raw_fd();
        registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        Ok(Self {
            registry,
            token,
            inotify,
            directories: HashMap::new(),
            names: Vec::new(),
        })
    }

    /// Watches the namespace of a container, in place of what was watched for `id` before.
    ///
    /// # Errors
    ///
    /// The process or the file's directory cannot be watched, for instance because it has gone.
    pub(super) fn add(&mut self, id: AttachmentId, netns: &NetnsRef) -> io::Result<()> {
        self.remove(id);
        let name = match netns {
            NetnsRef::Pid(pid) => self.process(pid.get())?,
            NetnsRef::Path(path) => match self.file(path)? {
                Some(name) => name,
                None => return Ok(()),
            },
        };
        self.names.push((id, name));
        Ok(())
    }

    fn process(&self, pid: u32) -> io::Result<Name> {
        // SAFETY: pidfd_open takes two numbers, and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = i32::try_from(fd)
            .ok()
            .filter(|&fd| fd >= 0)
            .ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the kernel has just given us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let raw = fd.as_raw_fd();
        self.registry
            .register(&mut SourceFd(&raw), self.token, Interest::READABLE)?;
        Ok(Name::Process(fd))
    }

    /// Files of /proc come and go without notice; a descriptor there is its owner's to watch.
    fn file(&mut self, path: &Path) -> io::Result<Option<Name>> {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(None);
        };
        if directory.starts_with("/proc") {
            return Ok(None);
        }
        let watched = match self.directories.get(directory) {
            Some(watched) => *watched,
            None => {
                let gone = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
                let watched = self.inotify.add_watch(directory, gone)?;
                self.directories.insert(directory.to_owned(), watched);
                watched
            }
        };
        let (name, path) = (name.to_owned(), path.to_owned());
        Ok(Some(Name::File {
            directory: watched,
            name,
            path,
        }))
    }

    /// Watches for `id` no more.
    pub(super) fn remove(&mut self, id: AttachmentId) {
        let of_id = |(known, _): &mut (AttachmentId, Name)| *known == id;
        for (_, name) in self.names.extract_if(.., of_id) {
            if let Name::Process(fd) = name {
                // A descriptor that epoll does not know needs no forgetting.
                let _ = self.registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
            }
        }
    }

    /// The containers whose namespace has lost its name since this was last called.
    pub(super) fn gone(&mut self) -> Vec<AttachmentId> {
        let mut deleted = Vec::new();
        while let Ok(events) = self.inotify.read_events() {
            deleted.extend(
                events
                    .into_iter()
                    .filter_map(|event| Some((event.wd, event.name?))),
            );
        }
        let gone = |name: &Name| match name {
            Name::Process(fd) => has_ended(fd),
            Name::File {
                directory,
                name,
                path,
            } => {
                deleted
                    .iter()
                    .any(|(wd, file)| wd == directory && file == name)
                    && !path.exists()
            }
        };
        let gone: Vec<_> = self
            .names
            .iter()
            .filter(|(_, name)| gone(name))
            .map(|(id, _)| *id)
            .collect();
        for id in &gone {
            self.remove(*id);
        }
        gone
    }
}

fn has_ended(process: &OwnedFd) -> bool {
    let mut polled = libc::pollfd {
        fd: process.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, which outlives the call.
    let ready = unsafe { libc::poll(&raw mut polled, 1, 0) };
    ready > 0
}
