//! How a container's namespace is named, and what the kernel tells of such a name.

use std::ffi::OsStr;
use std::num::NonZeroU32;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The name of a network namespace, which need not exist yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NetnsName {
    /// A file that stands for it: `/run/netns/web`, `/proc/1234/ns/net`. Absolute.
    Path(PathBuf),
    /// The namespace of this process.
    Process(NonZeroU32),
}

/// What kind of events a name gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NameKind {
    /// An entry of a directory: its creation, replacement and removal are events.
    Path,
    /// A process: its end is an event. That it starts is none.
    Process(NonZeroU32),
    /// Another file of procfs, such as `/proc/1234/fd/5`. Nothing tells that it was closed or
    /// replaced; at most the end of the process is an event.
    Opaque,
}

impl NetnsName {
    /// The file that stands for the namespace.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Process(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        }
    }
}

impl NameKind {
    /// The kind of a name, by its text alone.
    ///
    /// A symbolic link counts as the path that it is, wherever it leads.
    #[must_use]
    pub fn of(name: &NetnsName) -> Self {
        let path = match name {
            NetnsName::Process(pid) => return Self::Process(*pid),
            NetnsName::Path(path) => path,
        };
        match path.strip_prefix("/proc").map(ProcName::of) {
            Err(_) => Self::Path,
            Ok(ProcName::Network(pid)) => Self::Process(pid),
            Ok(ProcName::Other(_)) => Self::Opaque,
        }
    }

    /// Whether an event tells that the name leads to its namespace no longer.
    #[must_use]
    pub fn end_is_noticed(self) -> bool {
        match self {
            Self::Path | Self::Process(_) => true,
            Self::Opaque => false,
        }
    }
}

/// What a path below `/proc` leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProcName {
    /// `PID/ns/net`.
    Network(NonZeroU32),
    /// Anything else, and the process to which it belongs.
    Other(Option<NonZeroU32>),
}

impl ProcName {
    /// Reads a path that is relative to `/proc`.
    pub(super) fn of(path: &Path) -> Self {
        let mut components = path.components();
        let pid = match components.next() {
            Some(Component::Normal(first)) => process_id(first),
            _ => None,
        };
        match pid {
            Some(pid) if components.as_path() == Path::new("ns/net") => Self::Network(pid),
            // With "..", the rest may leave the process.
            Some(_) if components.any(|part| part == Component::ParentDir) => Self::Other(None),
            pid => Self::Other(pid),
        }
    }

    /// The process whose end ends the name.
    pub(super) fn process(self) -> Option<NonZeroU32> {
        match self {
            Self::Network(pid) => Some(pid),
            Self::Other(pid) => pid,
        }
    }
}

/// procfs takes digits only, without a leading zero or sign.
fn process_id(name: &OsStr) -> Option<NonZeroU32> {
    let digits = name.as_bytes();
    let plain = digits.iter().all(u8::is_ascii_digit) && !digits.starts_with(b"0");
    plain.then(|| name.to_str()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(path: &str) -> NameKind {
        NameKind::of(&NetnsName::Path(path.into()))
    }

    fn process(pid: u32) -> NameKind {
        NameKind::Process(NonZeroU32::new(pid).unwrap())
    }

    #[test]
    fn names_are_told_by_their_text() {
        let pid = NonZeroU32::new(77).unwrap();
        assert_eq!(NameKind::of(&NetnsName::Process(pid)), process(77));
        for (path, expected) in [
            ("/run/netns/web", NameKind::Path),
            ("/var/run/docker/netns/ab12", NameKind::Path),
            ("/procurator/1/ns/net", NameKind::Path),
            ("/", NameKind::Path),
            ("/proc/1234/ns/net", process(1234)),
            ("//proc/./1234//ns/net", process(1234)),
            ("/proc/1234/fd/5", NameKind::Opaque),
            ("/proc/1234/task/1235/ns/net", NameKind::Opaque),
            ("/proc/1234/ns/net/", process(1234)),
            ("/proc/1234/ns", NameKind::Opaque),
            ("/proc/1234", NameKind::Opaque),
            ("/proc/self/ns/net", NameKind::Opaque),
            ("/proc/0/ns/net", NameKind::Opaque),
            ("/proc/+7/ns/net", NameKind::Opaque),
            ("/proc/99999999999/ns/net", NameKind::Opaque),
            ("/proc/7/../8/ns/net", NameKind::Opaque),
            ("/proc", NameKind::Opaque),
        ] {
            assert_eq!(kind(path), expected, "{path}");
        }
    }

    #[test]
    fn end_of_a_descriptor_is_not_noticed() {
        assert!(kind("/run/netns/web").end_is_noticed());
        assert!(kind("/proc/5/ns/net").end_is_noticed());
        assert!(!kind("/proc/5/fd/3").end_is_noticed());
    }

    #[test]
    fn process_behind_a_name() {
        let behind = |path: &str| ProcName::of(Path::new(path)).process().map(NonZeroU32::get);
        assert_eq!(behind("5/fd/3"), Some(5));
        assert_eq!(behind("5/ns/net"), Some(5));
        assert_eq!(behind("self/ns/net"), None);
        assert_eq!(behind("5/../6/fd/3"), None);
    }

    #[test]
    fn name_has_a_file() {
        let pid = NonZeroU32::new(9).unwrap();
        assert_eq!(
            NetnsName::Process(pid).path(),
            Path::new("/proc/9/ns/net").to_owned()
        );
    }
}
