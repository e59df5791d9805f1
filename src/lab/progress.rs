//! One line on the terminal that says what goes on.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How often the line is written anew while something takes long.
const TICK: Duration = Duration::from_millis(100);
/// Columns that every terminal has.
const WIDTH: usize = 79;

/// The line; nothing where stderr is no terminal. Clones write the same line.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    terminal: bool,
    /// What is being done.
    step: Arc<Mutex<String>>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            terminal: io::stderr().is_terminal(),
            step: Arc::default(),
        }
    }

    /// Says what is done now.
    pub(super) fn show(&self, step: &str) {
        step.clone_into(&mut self.step.lock());
        self.write(step);
    }

    /// Removes the line.
    pub(super) fn clear(&self) {
        self.write("");
    }

    /// Does `work`, and adds to the line the octets that it has `moved` so far and their rate.
    pub(super) fn watch<R>(&self, moved: &AtomicU64, work: impl FnOnce() -> R) -> R {
        let begin = Instant::now();
        let (done, waiting) = channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while waiting.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                    let octets = moved.load(Ordering::Relaxed);
                    let step = self.step.lock().clone();
                    self.write(&format!("{step}: {}", amount(octets, begin.elapsed())));
                }
            });
            let result = work();
            drop(done);
            result
        })
    }

    fn write(&self, text: &str) {
        if !self.terminal {
            return;
        }
        let text: String = text.chars().take(WIDTH).collect();
        let line = format!("\r\x1b[2K{text}");
        let mut terminal = io::stderr().lock();
        // A terminal that is gone needs no progress.
        let _ = terminal.write_all(line.as_bytes());
        let _ = terminal.flush();
    }
}

/// `1.25 GB, 10.0 Gbit/s`.
#[expect(
    clippy::cast_precision_loss,
    reason = "a figure for people: 53 bits are plenty"
)]
pub(super) fn amount(octets: u64, elapsed: Duration) -> String {
    let octets = octets as f64;
    let rate = octets * 8.0 / elapsed.as_secs_f64().max(1e-9);
    format!("{:.2} GB, {:.1} Gbit/s", octets / 1e9, rate / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_units() {
        let second = Duration::from_secs(1);
        assert_eq!(amount(1_250_000_000, second), "1.25 GB, 10.0 Gbit/s");
        assert_eq!(amount(0, Duration::ZERO), "0.00 GB, 0.0 Gbit/s");
    }

    #[test]
    fn watched_work_is_done_once() {
        let moved = AtomicU64::new(0);
        let result = Progress::new().watch(&moved, || moved.fetch_add(7, Ordering::Relaxed));
        assert_eq!((result, moved.into_inner()), (0, 7));
    }
}
