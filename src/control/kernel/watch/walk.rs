//! The lookup of a path, entry by entry, with a watch on each before it is looked at.
//!
//! The kernel looks paths up in one go; here each directory is opened by itself, so that the watch
//! is on the very directory in which the lookup goes on. The lookup ends where an entry is missing:
//! that entry is watched, so the lookup is repeated when it appears.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::Mode;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::directories::{Directories, Entry};
use super::name::ProcName;
use super::place::{FileKind, Place};
use super::poll::Poll;
use super::processes::Processes;
use super::{Unwatchable, WatchKey};

/// As many symbolic links as the kernel follows (MAXSYMLINKS).
const MOST_LINKS: usize = 40;

/// What a lookup passed through, all of which is watched.
#[derive(Debug, Default)]
pub(super) struct Trail {
    pub(super) entries: Vec<Entry>,
    /// It ends in the part of procfs that belongs to this process.
    pub(super) process: Option<NonZeroU32>,
    /// What could not be watched.
    pub(super) gap: Option<Unwatchable>,
}

/// Where watches are put, on whose behalf.
pub(super) struct Walker<'a> {
    pub(super) set: &'a Poll,
    pub(super) directories: &'a mut Directories,
    pub(super) processes: &'a mut Processes,
    /// Other keys whose lookup turned out to be out of date.
    pub(super) overdue: &'a mut BTreeSet<WatchKey>,
    pub(super) key: WatchKey,
}

/// A directory on the way, and how it was reached.
struct Here {
    fd: OwnedFd,
    path: PathBuf,
    place: Place,
}

/// What an entry of a directory turned out to be.
enum Next {
    Directory(Here),
    Link(OsString),
    /// Missing, or not to be passed through.
    End,
}

impl Walker<'_> {
    /// Looks `path` up as far as it leads.
    pub(super) fn walk(mut self, path: &Path) -> Trail {
        let mut trail = Trail::default();
        if let Ok(below) = path.strip_prefix(PROC) {
            self.watch_process(below, &mut trail);
        } else if let Err(error) = self.follow(path, &mut trail) {
            // This process has no more descriptors.
            trail.gap = Some(Unwatchable::new(path, &error));
        }
        trail
    }

    fn follow(&mut self, path: &Path, trail: &mut Trail) -> io::Result<()> {
        let mut here = Here::root()?;
        let mut links = 0;
        let mut ahead = steps(path);
        while let Some(step) = ahead.pop() {
            match step {
                Step::Root => here = Here::root()?,
                Step::Up => here = here.parent()?,
                Step::Into(name) => {
                    if here.is_proc() {
                        self.watch_process(&rest(name, ahead), trail);
                        return Ok(());
                    }
                    self.watch_entry(&here, &name, trail);
                    match here.next(&name)? {
                        Next::Directory(next) if next.is_silent(&here) => {
                            trail.gap = Some(Unwatchable::opaque(&next.path));
                            return Ok(());
                        }
                        Next::Directory(next) => here = next,
                        Next::Link(target) if links < MOST_LINKS => {
                            links += 1;
                            ahead.extend(steps(Path::new(&target)));
                        }
                        Next::Link(_) | Next::End => return Ok(()),
                    }
                }
            }
        }
        Ok(())
    }

    fn watch_entry(&mut self, here: &Here, name: &OsString, trail: &mut Trail) {
        let entry = Entry::new(&here.path, name);
        let directory = (here.fd.as_fd(), here.place);
        let watched = self
            .directories
            .watch(self.set, directory, &entry, self.key, self.overdue);
        match watched {
            Ok(()) => trail.entries.push(entry),
            Err(error) => trail.gap = Some(Unwatchable::new(&here.path, &error)),
        }
    }

    /// Watches what there is to watch of a path below `/proc`.
    fn watch_process(&mut self, below: &Path, trail: &mut Trail) {
        let name = ProcName::of(below);
        let full = Path::new(PROC).join(below);
        if matches!(name, ProcName::Other(_)) {
            trail.gap = Some(Unwatchable::opaque(&full));
        }
        let Some(pid) = name.process() else {
            return;
        };
        match self.processes.watch(self.set, pid, self.key) {
            Ok(ended) => {
                self.overdue.extend(ended);
                trail.process = Some(pid);
            }
            Err(error) => trail.gap = Some(Unwatchable::new(&full, &error)),
        }
    }
}

const PROC: &str = "/proc";

impl Here {
    fn root() -> io::Result<Self> {
        let fd = open("/", directory_flags(), Mode::empty())?;
        Self::new(fd, PathBuf::from("/"))
    }

    fn parent(self) -> io::Result<Self> {
        let fd = openat(&self.fd, "..", directory_flags(), Mode::empty())?;
        let mut path = self.path;
        path.pop();
        Self::new(fd, path)
    }

    fn new(fd: OwnedFd, path: PathBuf) -> io::Result<Self> {
        let place = Place::of_file(fd.as_fd()).map_err(io::Error::from_raw_os_error)?;
        Ok(Self { fd, path, place })
    }

    /// The processes of this system.
    fn is_proc(&self) -> bool {
        self.path == Path::new(PROC)
    }

    /// Another procfs, of which nothing tells anything: processes have other numbers there.
    fn is_silent(&self, above: &Self) -> bool {
        !self.is_proc()
            && self.place.device != above.place.device
            && fstatfs(&self.fd).is_ok_and(|system| system.filesystem_type() == PROC_SUPER_MAGIC)
    }

    fn next(&self, name: &OsString) -> io::Result<Next> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = match openat(&self.fd, name.as_os_str(), flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(error @ (nix::Error::EMFILE | nix::Error::ENFILE)) => return Err(error.into()),
            Err(_) => return Ok(Next::End),
        };
        let next = Self::new(fd, self.path.join(name))?;
        Ok(match next.place.kind() {
            FileKind::Directory => Next::Directory(next),
            FileKind::SymbolicLink => Next::Link(readlinkat(&next.fd, "")?),
            FileKind::Other => Next::End,
        })
    }
}

fn directory_flags() -> OFlag {
    OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC
}

/// One step of a lookup.
enum Step {
    Root,
    Up,
    Into(OsString),
}

/// The steps of a path, the last first.
fn steps(path: &Path) -> Vec<Step> {
    let components = path.components().rev();
    let step = |component| match component {
        Component::RootDir => Some(Step::Root),
        Component::ParentDir => Some(Step::Up),
        Component::Normal(name) => Some(Step::Into(name.to_owned())),
        Component::CurDir | Component::Prefix(_) => None,
    };
    components.filter_map(step).collect()
}

/// The path of the steps that are left.
fn rest(first: OsString, ahead: Vec<Step>) -> PathBuf {
    let mut path = PathBuf::from(first);
    for step in ahead.into_iter().rev() {
        match step {
            Step::Root => path.push("/"),
            Step::Up => path.push(".."),
            Step::Into(name) => path.push(name),
        }
    }
    path
}
