//! Where containers were attached, for whoever starts after a daemon that was killed.
//!
//! A file beside the control socket, with a line for each attachment that was made or taken away.
//! It goes when the daemon ends in order. What it says is a hint where to look: what is found there is
//! told by its marks alone ([`crate::control::attach`]), so a stale line does no harm.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::num::NonZeroU32;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::control::config::{Name, NetnsRef};

/// Lines beyond those that are needed, from which on the file is written anew.
const SLACK: usize = 1024;

/// Octets of the longest file that is read: some 20,000 attachments, and [`SLACK`].
const MAX_OCTETS: u64 = 8 << 20;

/// The file, and what it says.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: Option<File>,
    entries: BTreeMap<Name, Entry>,
    lines: usize,
}

/// Where a container was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) netns: NetnsRef,
    /// Its namespace got another range of ports.
    pub(super) ports: bool,
}

/// A line.
#[derive(Serialize, Deserialize)]
struct Line {
    name: String,
    /// Where it is attached; nowhere any more if none is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pid: Option<NonZeroU32>,
    #[serde(default)]
    ports: bool,
}

impl Journal {
    /// The file that belongs to a control socket. What it says already is kept, until it is said
    /// otherwise.
    pub(super) fn open(control: &Path) -> Self {
        let mut path = control.as_os_str().to_owned();
        path.push(".attached");
        let path = PathBuf::from(path);
        let entries = match read(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                warn!(
                    "{}: {error}; what an earlier run left is not removed",
                    path.display()
                );
                BTreeMap::new()
            }
        };
        let mut journal = Self {
            path,
            file: None,
            entries,
            lines: 0,
        };
        journal.rewrite();
        journal
    }

    /// Says nothing, and notes nothing.
    pub(super) fn none() -> Self {
        Self {
            path: PathBuf::new(),
            file: None,
            entries: BTreeMap::new(),
            lines: 0,
        }
    }

    pub(super) fn entries(&self) -> &BTreeMap<Name, Entry> {
        &self.entries
    }

    /// Notes that a container is about to be attached.
    pub(super) fn attached(&mut self, name: &Name, entry: Entry) {
        if self.entries.get(name) == Some(&entry) {
            return;
        }
        let line = Line::of(name, Some(&entry));
        self.entries.insert(name.clone(), entry);
        self.append(&line);
    }

    /// Notes that nothing is left of a container's attachment.
    pub(super) fn detached(&mut self, name: &Name) {
        if self.entries.remove(name).is_some() {
            self.append(&Line::of(name, None));
        }
    }

    /// The daemon ends, and leaves nothing to look for.
    pub(super) fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!("{}: cannot be removed: {error}", self.path.display());
        }
    }

    fn append(&mut self, line: &Line) {
        if self.lines > self.entries.len() * 2 + SLACK {
            return self.rewrite();
        }
        let Some(file) = &mut self.file else { return };
        match line.encode().and_then(|octets| file.write_all(&octets)) {
            Ok(()) => self.lines += 1,
            Err(error) => self.give_up(&error),
        }
    }

    /// Writes what is needed into a new file, which takes the place of the old one.
    fn rewrite(&mut self) {
        match self.write_anew() {
            Ok(file) => (self.file, self.lines) = (Some(file), self.entries.len()),
            Err(error) => self.give_up(&error),
        }
    }

    fn write_anew(&self) -> io::Result<File> {
        let mut path = self.path.clone().into_os_string();
        path.push(".new");
        let path = PathBuf::from(path);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.custom_flags(libc::O_NOFOLLOW).open(&path)?;
        let mut octets = Vec::new();
        for (name, entry) in &self.entries {
            octets.extend(Line::of(name, Some(entry)).encode()?);
        }
        file.write_all(&octets)?;
        fs::rename(&path, &self.path)?;
        Ok(file)
    }

    fn give_up(&mut self, error: &io::Error) {
        self.file = None;
        warn!(
            "{}: {error}; if nos-relay is killed, what it leaves in containers that are not \
             attached again has to be removed by hand",
            self.path.display()
        );
    }
}

impl Line {
    fn of(name: &Name, entry: Option<&Entry>) -> Self {
        let (path, pid) = match entry.map(|entry| &entry.netns) {
            Some(NetnsRef::Path(path)) => (Some(path.clone()), None),
            Some(NetnsRef::Pid(pid)) => (None, Some(*pid)),
            None => (None, None),
        };
        Self {
            name: name.to_string(),
            path,
            pid,
            ports: entry.is_some_and(|entry| entry.ports),
        }
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        let mut octets = serde_json::to_vec(self)?;
        octets.push(b'\n');
        Ok(octets)
    }

    fn entry(self) -> Option<Entry> {
        let netns = match (self.path, self.pid) {
            (Some(path), _) => NetnsRef::Path(path),
            (None, Some(pid)) => NetnsRef::Pid(pid),
            (None, None) => return None,
        };
        let ports = self.ports;
        Some(Entry { netns, ports })
    }
}

fn read(path: &Path) -> io::Result<BTreeMap<Name, Entry>> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    let mut entries = BTreeMap::new();
    for line in BufReader::new(io::Read::take(file, MAX_OCTETS)).split(b'\n') {
        // The last line of a daemon that was killed may break off.
        let Ok(line) = serde_json::from_slice::<Line>(&line?) else {
            continue;
        };
        let Ok(name) = line.name.parse::<Name>() else {
            continue;
        };
        match line.entry() {
            Some(entry) => entries.insert(name, entry),
            None => entries.remove(&name),
        };
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> Entry {
        Entry {
            netns: NetnsRef::Path(path.into()),
            ports: false,
        }
    }

    fn name(name: &str) -> Name {
        name.parse().unwrap()
    }

    #[test]
    fn the_next_run_knows_what_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let control = directory.path().join("control.sock");
        let by_pid = Entry {
            netns: NetnsRef::Pid(NonZeroU32::new(7).unwrap()),
            ports: true,
        };
        let mut journal = Journal::open(&control);
        journal.attached(&name("web"), at("/run/netns/web"));
        journal.attached(&name("db"), at("/run/netns/db"));
        journal.attached(&name("cache"), by_pid.clone());
        journal.detached(&name("db"));
        journal.attached(&name("web"), at("/run/netns/other"));
        drop(journal);
        let path = directory.path().join("control.sock.attached");
        let mut broken = OpenOptions::new().append(true).open(&path).unwrap();
        broken.write_all(b"{\"name\":\"x\",\"pa").unwrap();
        let journal = Journal::open(&control);
        let expected = [
            (name("cache"), by_pid),
            (name("web"), at("/run/netns/other")),
        ];
        assert_eq!(*journal.entries(), BTreeMap::from(expected));
        journal.remove();
        assert!(!path.exists());
        assert_eq!(*Journal::open(&control).entries(), BTreeMap::new());
    }

    #[test]
    fn the_file_stays_short_while_containers_come_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let control = directory.path().join("control.sock");
        let mut journal = Journal::open(&control);
        for number in 0..10_000 {
            journal.attached(&name("web"), at(&format!("/run/netns/{number}")));
        }
        let length = fs::metadata(&journal.path).unwrap().len();
        assert!(length < 100_000, "{length}");
        let entries = Journal::open(&control).entries().clone();
        assert_eq!(
            entries,
            BTreeMap::from([(name("web"), at("/run/netns/9999"))])
        );
    }

    #[test]
    fn without_a_place_for_the_file_nothing_fails() {
        let mut journal = Journal::open(Path::new("/proc/nowhere/control.sock"));
        journal.attached(&name("web"), at("/run/netns/web"));
        journal.detached(&name("web"));
        journal.remove();
    }
}
