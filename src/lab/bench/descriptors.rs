//! How many descriptors the bench may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors for 10,000 connections, both ends, and some more.
const DESCRIPTORS: u64 = 32_768;

/// As far as allowed: rows that need more make do with less, and say so.
pub(super) fn raise_limit() {
    let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    let wanted = most.max(DESCRIPTORS);
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_err() {
        // Who may not raise the hard limit gets what it allows, or what there was.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}

/// Descriptors that sockets may take, some being needed elsewhere.
pub(super) fn available() -> usize {
    const ELSEWHERE: u64 = 1000;
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(now, _)| now);
    usize::try_from(limit.saturating_sub(ELSEWHERE)).unwrap_or(usize::MAX)
}
