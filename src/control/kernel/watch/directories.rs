//! Entries of directories that appear, change and vanish.
//!
//! One inotify instance watches every directory through which the lookup of a watched name passes,
//! and the entry by which it leaves it. Names share directories: ten thousand in one directory cost
//! one watch. A directory is known by the path by which the lookup reached it, without symbolic
//! links.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tracing::warn;

use super::WatchKey;
use super::place::Place;
use super::poll::{Poll, Source};

/// An entry of a directory, through which a lookup passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) directory: Arc<Path>,
    pub(super) name: OsString,
}

/// The watched directories.
#[derive(Debug, Default)]
pub(super) struct Directories {
    /// Absent until the first name, and while the user has no more instances.
    inotify: Option<Inotify>,
    by_path: HashMap<Arc<Path>, Directory>,
    /// One directory can have several paths, by bind mounts.
    by_watch: HashMap<WatchDescriptor, BTreeSet<Arc<Path>>>,
}

#[derive(Debug)]
struct Directory {
    watch: WatchDescriptor,
    place: Place,
    entries: HashMap<OsString, BTreeSet<WatchKey>>,
}

impl Directory {
    fn keys(&self) -> impl Iterator<Item = WatchKey> {
        self.entries.values().flatten().copied()
    }
}

impl Directories {
    /// Watches an entry, which need not exist, of the open directory on behalf of `key`.
    ///
    /// Changes from now on are not missed. If the directory is another one than that which was
    /// watched by its path, the keys of that are added to `overdue`: their lookup is out of date.
    ///
    /// # Errors
    /// The directory cannot be read, or the user has no more instances or watches of inotify.
    pub(super) fn watch(
        &mut self,
        set: &Poll,
        (fd, place): (BorrowedFd<'_>, Place),
        entry: &Entry,
        key: WatchKey,
        overdue: &mut BTreeSet<WatchKey>,
    ) -> io::Result<()> {
        let known = self.by_path.get(&entry.directory);
        if known.is_none_or(|known| known.place != place) {
            let watch = self.add_watch(set, fd)?;
            self.replace(entry.directory.clone(), watch, place, overdue);
        }
        if let Some(directory) = self.by_path.get_mut(&entry.directory) {
            let keys = directory.entries.entry(entry.name.clone()).or_default();
            keys.insert(key);
        }
        Ok(())
    }

    /// Ends what [`Directories::watch`] began.
    pub(super) fn forget(&mut self, entry: &Entry, key: WatchKey) {
        let Some(directory) = self.by_path.get_mut(&entry.directory) else {
            return;
        };
        if let Some(keys) = directory.entries.get_mut(&entry.name) {
            keys.remove(&key);
            if keys.is_empty() {
                directory.entries.remove(&entry.name);
            }
        }
        if directory.entries.is_empty() {
            let watch = directory.watch;
            self.by_path.remove(&entry.directory);
            self.release(watch, &entry.directory);
        }
    }

    /// Reads one batch of events, and adds to `touched` whose lookup may end elsewhere now.
    pub(super) fn read(&mut self, set: &Poll, touched: &mut BTreeSet<WatchKey>) {
        let Some(inotify) = &self.inotify else {
            return;
        };
        match inotify.read_events() {
            Ok(events) => {
                for event in events {
                    self.handle(&event, touched);
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => {
                warn!(%error, "lost the watches on directories");
                set.remove(inotify.as_fd());
                self.begin_anew(touched);
            }
        }
    }

    /// Everybody has to look anew, with another instance.
    fn begin_anew(&mut self, touched: &mut BTreeSet<WatchKey>) {
        touched.extend(self.by_path.values().flat_map(Directory::keys));
        *self = Self::default();
    }

    /// Adds to `touched` whose lookup passes through a directory that another is mounted over, or
    /// that was itself mounted.
    pub(super) fn find_remounted(&self, touched: &mut BTreeSet<WatchKey>) {
        for (path, directory) in &self.by_path {
            if Place::of_path(path) != Ok(directory.place) {
                touched.extend(directory.keys());
            }
        }
    }

    fn handle(&mut self, event: &InotifyEvent, touched: &mut BTreeSet<WatchKey>) {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            touched.extend(self.by_path.values().flat_map(Directory::keys));
        } else if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.end(event.wd, touched);
        } else if let Some(name) = &event.name {
            let paths = self.by_watch.get(&event.wd).into_iter().flatten();
            let directories = paths.filter_map(|path| self.by_path.get(path));
            let keys = directories.filter_map(|directory| directory.entries.get(name));
            touched.extend(keys.flatten());
        }
    }

    /// The kernel has ended a watch: the directory was deleted, or its file system unmounted.
    fn end(&mut self, watch: WatchDescriptor, touched: &mut BTreeSet<WatchKey>) {
        for path in self.by_watch.remove(&watch).into_iter().flatten() {
            if let Some(directory) = self.by_path.remove(&path) {
                touched.extend(directory.keys());
            }
        }
    }

    fn replace(
        &mut self,
        path: Arc<Path>,
        watch: WatchDescriptor,
        place: Place,
        overdue: &mut BTreeSet<WatchKey>,
    ) {
        self.by_watch.entry(watch).or_default().insert(path.clone());
        let mut entries = HashMap::new();
        if let Some(before) = self.by_path.remove(&path) {
            overdue.extend(before.keys());
            if before.watch != watch {
                self.release(before.watch, &path);
            }
            entries = before.entries;
        }
        let directory = Directory {
            watch,
            place,
            entries,
        };
        self.by_path.insert(path, directory);
    }

    /// Ends a watch unless the directory is still watched by another path.
    fn release(&mut self, watch: WatchDescriptor, path: &Path) {
        let Some(paths) = self.by_watch.get_mut(&watch) else {
            return;
        };
        paths.remove(path);
        if paths.is_empty() {
            self.by_watch.remove(&watch);
            if let Some(inotify) = &self.inotify {
                // The kernel may have ended it already.
                let _ = inotify.rm_watch(watch);
            }
        }
    }

    fn add_watch(&mut self, set: &Poll, directory: BorrowedFd<'_>) -> io::Result<WatchDescriptor> {
        let inotify = match self.inotify.take() {
            Some(inotify) => inotify,
            None => instance(set)?,
        };
        let entries = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ONLYDIR;
        // By the descriptor: the path may lead to another directory by now.
        let path = format!("/proc/thread-self/fd/{}", directory.as_raw_fd());
        let watch = inotify.add_watch(path.as_str(), entries);
        self.inotify = Some(inotify);
        Ok(watch?)
    }
}

fn instance(set: &Poll) -> io::Result<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    set.add(inotify.as_fd(), Source::Directories)?;
    Ok(inotify)
}

impl Entry {
    pub(super) fn new(directory: &Path, name: &OsStr) -> Self {
        Self {
            directory: directory.into(),
            name: name.to_owned(),
        }
    }
}
