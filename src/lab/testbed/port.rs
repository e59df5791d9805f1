//! Ports that are in use for a moment longer than anybody uses them.

use std::io;
use std::time::{Duration, Instant};

/// How long a port may stay in use that nobody uses any more.
pub(super) const FREE_WITHIN: Duration = Duration::from_secs(10);

/// Opens a socket on a port that may be in use for a moment longer: a process that is being started
/// by another thread holds, until it runs its program, a copy of every descriptor, also of sockets
/// that were closed since.
pub(super) fn once_free<T>(limit: Duration, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let until = Instant::now() + limit;
    loop {
        match open() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::yield_now();
            }
            opened => return opened,
        }
    }
}
