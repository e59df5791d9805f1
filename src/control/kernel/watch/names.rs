//! Names of namespaces: whether they lead elsewhere than when they were last looked at.
//!
//! Three kinds of events make a name suspect: an entry through which its lookup passes was created,
//! deleted or renamed (`directories`); something was mounted or unmounted (`mounts`); its process
//! has ended (`processes`). A suspect name is looked up anew, which also moves its watches. An
//! event is reported only if it then leads elsewhere, so that a storm of mounts costs looks and
//! wakes nobody.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use super::directories::Directories;
use super::mounts::Mounts;
use super::name::{NameKind, NetnsName};
use super::place::{Leads, Place};
use super::poll::{Poll, Source};
use super::processes::Processes;
use super::walk::{Trail, Walker};
use super::{WatchKey, Watched};

/// All watched names.
#[derive(Debug)]
pub(super) struct Names {
    by_key: HashMap<WatchKey, Name>,
    directories: Directories,
    processes: Processes,
    mounts: Mounts,
    /// Whose name is suspect.
    suspect: BTreeSet<WatchKey>,
    /// Whose name certainly leads elsewhere.
    ended: BTreeSet<WatchKey>,
}

#[derive(Debug)]
struct Name {
    path: PathBuf,
    /// The name is a process, or part of one.
    kind: NameKind,
    leads: Leads,
    trail: Trail,
}

impl Names {
    pub(super) fn open(set: &Poll) -> io::Result<Self> {
        let mounts = Mounts::open()?;
        set.add_edge(&mounts, Source::Mounts)?;
        set.add(mounts.timer(), Source::MountPause)?;
        Ok(Self {
            by_key: HashMap::new(),
            directories: Directories::default(),
            processes: Processes::default(),
            mounts,
            suspect: BTreeSet::new(),
            ended: BTreeSet::new(),
        })
    }

    /// Watches `name` from now on, in the place of an earlier name of `key`.
    pub(super) fn watch(&mut self, set: &Poll, key: WatchKey, name: &NetnsName) -> Watched {
        let path = name.path();
        let before = self.by_key.remove(&key);
        self.suspect.remove(&key);
        self.ended.remove(&key);
        let trail = self.walk(set, key, &path);
        let name = Name {
            // After the walk: what changes later is an event.
            leads: Place::of_path(&path),
            path,
            kind: NameKind::of(name),
            trail,
        };
        if let Some(before) = before {
            self.forget_trail(set, key, &before.trail, Some(&name.trail));
        }
        let watched = name.watched();
        self.by_key.insert(key, name);
        watched
    }

    pub(super) fn watched(&self, key: WatchKey) -> Option<Watched> {
        self.by_key.get(&key).map(Name::watched)
    }

    pub(super) fn forget(&mut self, set: &Poll, key: WatchKey) {
        if let Some(name) = self.by_key.remove(&key) {
            self.forget_trail(set, key, &name.trail, None);
        }
        self.suspect.remove(&key);
        self.ended.remove(&key);
    }

    /// Some entry has changed.
    pub(super) fn handle_directories(&mut self, set: &Poll) {
        self.directories.read(set, &mut self.suspect);
    }

    /// Something was mounted or unmounted.
    pub(super) fn handle_mounts(&mut self) {
        if self.mounts.handle_change() {
            self.look_at_all();
        }
    }

    /// The pause after a look at the mounts is over.
    pub(super) fn handle_mount_pause(&mut self) {
        if self.mounts.handle_pause_end() {
            self.look_at_all();
        }
    }

    /// Process `pid` has ended.
    pub(super) fn handle_process(&mut self, set: &Poll, pid: NonZeroU32) {
        self.ended.extend(self.processes.take_ended(set, pid));
    }

    /// Whether [`Names::settle`] has something to do.
    pub(super) fn is_unsettled(&self) -> bool {
        !self.suspect.is_empty() || !self.ended.is_empty()
    }

    /// Looks suspect names up anew, and passes on which of them lead elsewhere.
    pub(super) fn settle(&mut self, set: &Poll, mut changed: impl FnMut(WatchKey)) {
        let ended = std::mem::take(&mut self.ended);
        let suspect = std::mem::take(&mut self.suspect);
        for &key in suspect.union(&ended) {
            if self.look_up(set, key) || ended.contains(&key) {
                changed(key);
            }
        }
    }

    /// Looks a name up anew; true: it leads elsewhere, or is watched less well than before.
    fn look_up(&mut self, set: &Poll, key: WatchKey) -> bool {
        let Some(mut name) = self.by_key.remove(&key) else {
            return false;
        };
        let trail = self.walk(set, key, &name.path);
        let before = std::mem::replace(&mut name.trail, trail);
        self.forget_trail(set, key, &before, Some(&name.trail));
        let leads = Place::of_path(&name.path);
        let changed = leads != name.leads || before.gap != name.trail.gap;
        name.leads = leads;
        self.by_key.insert(key, name);
        changed
    }

    fn look_at_all(&mut self) {
        self.directories.find_remounted(&mut self.suspect);
        let moved = self
            .by_key
            .iter()
            .filter(|(_, name)| name.leads_elsewhere());
        self.suspect.extend(moved.map(|(&key, _)| key));
    }

    fn walk(&mut self, set: &Poll, key: WatchKey, path: &Path) -> Trail {
        let walker = Walker {
            set,
            directories: &mut self.directories,
            processes: &mut self.processes,
            overdue: &mut self.suspect,
            key,
        };
        walker.walk(path)
    }

    /// Ends the watches of `trail` that `kept` does not have.
    fn forget_trail(&mut self, set: &Poll, key: WatchKey, trail: &Trail, kept: Option<&Trail>) {
        let keeps = |entry| kept.is_some_and(|kept| kept.entries.contains(entry));
        for entry in trail.entries.iter().filter(|entry| !keeps(entry)) {
            self.directories.forget(entry, key);
        }
        if let Some(pid) = trail.process
            && kept.is_none_or(|kept| kept.process != Some(pid))
        {
            self.processes.forget(set, pid, key);
        }
    }
}

impl Name {
    fn leads_elsewhere(&self) -> bool {
        Place::of_path(&self.path) != self.leads
    }

    fn watched(&self) -> Watched {
        let Some(gap) = self.trail.gap.clone() else {
            return Watched::Fully;
        };
        match (self.kind, self.trail.process) {
            // Without a process that lives, nothing of procfs is an event.
            (NameKind::Process(_) | NameKind::Opaque, None) => Watched::Nothing(gap),
            _ => Watched::Partly(gap),
        }
    }
}
