//! Changes of the table of mounts.
//!
//! A namespace gets its name by a bind mount onto a plain file, which is no event of the directory.
//! Mounts are: mountinfo wakes who polls it whenever something is mounted or unmounted. It does not
//! say what, so that each change costs a look at every name. A busy container engine makes hundreds
//! of changes a second; so a pause follows each look, and changes within it are looked at together.
//!
//! The file is watched for EPOLLIN, edge triggered: readable it always is, so that one wake-up of
//! the kernel is one event. EPOLLPRI, as the manual has it, would be acknowledged by whoever polls
//! first, which is the outer epoll that only asks whether anything is ready.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// From one look to the next.
const PAUSE: Duration = Duration::from_millis(20);

/// The mounts that this thread sees.
#[derive(Debug)]
pub(super) struct Mounts {
    table: File,
    timer: TimerFd,
    pace: Pace,
}

/// When to look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Pace {
    /// At the next change.
    #[default]
    Ready,
    /// Not before the pause ends.
    Paused,
    /// When the pause ends: there was a change within it.
    Due,
}

impl Pace {
    /// Notes a change; true: look now.
    fn change(&mut self) -> bool {
        let now = *self == Self::Ready;
        *self = if now { Self::Paused } else { Self::Due };
        now
    }

    /// Ends the pause; true: look now, and pause again.
    fn resume(&mut self) -> bool {
        let now = *self == Self::Due;
        *self = if now { Self::Paused } else { Self::Ready };
        now
    }
}

impl Mounts {
    pub(super) fn open() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self {
            // Mounts are a matter of threads: that of the process would be its main thread's.
            table: File::open("/proc/thread-self/mountinfo")?,
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            pace: Pace::default(),
        })
    }

    /// Something was mounted or unmounted; true: look at the names now.
    pub(super) fn handle_change(&mut self) -> bool {
        self.pace.change() && self.pause()
    }

    /// The timer is readable; true: look at the names now.
    pub(super) fn handle_pause_end(&mut self) -> bool {
        // It is ready, and does not block should it not be.
        let _ = self.timer.wait();
        self.pace.resume() && self.pause()
    }

    /// Begins the pause.
    fn pause(&mut self) -> bool {
        let after = Expiration::OneShot(TimeSpec::from_duration(PAUSE));
        if self.timer.set(after, TimerSetTimeFlags::empty()).is_err() {
            // Without a timer there is no pause: better too many looks than none.
            self.pace = Pace::Ready;
        }
        true
    }

    /// Readable when the pause ends.
    pub(super) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

impl AsFd for Mounts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.table.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_in_a_pause_are_looked_at_when_it_ends() {
        let mut pace = Pace::default();
        assert!(pace.change(), "the first is looked at at once");
        assert!(!pace.change());
        assert!(!pace.change());
        assert!(pace.resume());
        assert!(!pace.change(), "each look is followed by a pause");
        assert!(pace.resume());
        assert!(!pace.resume(), "nothing came in this one");
        assert!(pace.change());
    }
}
