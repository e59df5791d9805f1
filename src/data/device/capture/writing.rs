//! The thread that writes a capture.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use super::CaptureOptions;

/// A thread that writes what it is given, and ends when this value is dropped or writing fails.
#[derive(Debug)]
pub(super) struct Writing {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    backlog: Mutex<Vec<u8>>,
    failed: AtomicBool,
    /// No more will be offered.
    closed: AtomicBool,
}

impl Writing {
    /// Starts writing to `sink`, with `head` first; `path` names the sink in messages.
    pub(super) fn start(
        mut sink: impl Write + Send + 'static,
        path: &Path,
        head: &[u8],
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        shared.backlog.lock().extend_from_slice(head);
        let (theirs, path) = (Arc::clone(&shared), path.to_owned());
        let body = move || {
            if let Err(error) = theirs.write_to(&mut sink) {
                theirs.failed.store(true, Ordering::Release);
                tracing::error!("capture {} has ended: {error}", path.display());
            }
        };
        let thread = thread::Builder::new().name("capture".into()).spawn(body)?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Hands `octets` over, all or nothing. Never waits for the disk.
    pub(super) fn offer(&self, octets: &[u8]) -> bool {
        if self.has_failed() || !self.shared.append(octets) {
            return false;
        }
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
        true
    }

    /// Whether writing has failed and will not go on.
    pub(super) fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It does not panic.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn append(&self, octets: &[u8]) -> bool {
        let mut backlog = self.backlog.lock();
        let fits = backlog.len() + octets.len() <= CaptureOptions::BACKLOG;
        if fits {
            backlog.extend_from_slice(octets);
        }
        fits
    }

    fn write_to(&self, sink: &mut impl Write) -> io::Result<()> {
        let mut octets = Vec::new();
        loop {
            // Before the look at the backlog: what is offered before the end is then seen.
            let closed = self.closed.load(Ordering::Acquire);
            core::mem::swap(&mut octets, &mut *self.backlog.lock());
            if !octets.is_empty() {
                sink.write_all(&octets)?;
                sink.flush()?;
                octets.clear();
            } else if closed {
                return Ok(());
            } else {
                thread::park();
            }
        }
    }
}
