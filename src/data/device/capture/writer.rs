//! The thread that writes a capture, and the control side's hold on it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rtrb::{Consumer, RingBuffer};
use thiserror::Error;

use super::encode::Encoder;
use super::record::{Head, Shared};
use super::{CaptureError, CaptureOptions, CaptureSink, CaptureStatus};

/// Octets taken from the ring, encoded and written at a time.
const CHUNK: usize = 256 << 10;

/// The control side's hold on a capture. Dropping it changes nothing.
#[derive(Debug)]
pub struct CaptureWriter {
    path: PathBuf,
    shared: Arc<Shared>,
    /// Disconnected when the thread has ended.
    end: Receiver<()>,
}

/// A capture's thread had not written everything within the time that it was given, and goes on by
/// itself, if it can.
#[derive(Debug, Error)]
#[error(
    "capture {path}: the rest is not written within {limit:?}, as its writer is stuck; it is left behind",
    path = path.display()
)]
pub struct CaptureUnfinished {
    /// Where it writes to.
    pub path: PathBuf,
    /// The time that it was given.
    pub limit: Duration,
}

impl CaptureWriter {
    /// Begins a capture of the interface `name` into a new file at `path`, or into a FIFO or device
    /// that is there.
    ///
    /// # Errors
    ///
    /// The file cannot be created, it is a FIFO that nobody reads, or no thread can be started.
    pub fn create(
        path: impl AsRef<Path>,
        name: &str,
        options: CaptureOptions,
    ) -> Result<(CaptureSink, Self), CaptureError> {
        let path = path.as_ref();
        Self::start(create(path)?, path, name, options)
    }

    /// Begins a capture of the interface `name` into `file`, which `path` names in messages.
    ///
    /// # Errors
    ///
    /// No thread can be started.
    pub fn start(
        mut file: impl Write + Send + 'static,
        path: &Path,
        name: &str,
        options: CaptureOptions,
    ) -> Result<(CaptureSink, Self), CaptureError> {
        let shared = Arc::new(Shared::default());
        let (producer, ring) = RingBuffer::new(options.backlog.max(1));
        let (alive, end) = channel();
        let mut writing = Writing {
            ring,
            shared: Arc::clone(&shared),
            encoder: Encoder::new(name, options.snap_length, options.vlan),
            input: Vec::with_capacity(CHUNK),
            _alive: alive,
        };
        let named = path.to_owned();
        let body = move || {
            if let Err(error) = writing.write_to(&mut file) {
                writing.shared.failed.store(true, Ordering::Release);
                tracing::error!("capture {} has ended: {error}", named.display());
            }
        };
        let thread = thread::Builder::new().name("capture".into()).spawn(body);
        let thread = thread.map_err(CaptureError::Thread)?.thread().clone();
        let sink = CaptureSink::new(producer, thread, Arc::clone(&shared), &options);
        let writer = Self {
            path: path.to_owned(),
            shared,
            end,
        };
        Ok((sink, writer))
    }

    /// Where it writes to.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How the capture fares.
    #[must_use]
    pub fn status(&self) -> CaptureStatus {
        self.shared.status()
    }

    /// Waits until all that was recorded is written, or writing has failed. The sink must have been
    /// dropped.
    ///
    /// # Errors
    ///
    /// [`CaptureUnfinished`] after `limit`.
    pub fn finish(self, limit: Duration) -> Result<CaptureStatus, CaptureUnfinished> {
        match self.end.recv_timeout(limit) {
            Err(RecvTimeoutError::Timeout) => Err(CaptureUnfinished {
                path: self.path,
                limit,
            }),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Ok(self.shared.status()),
        }
    }
}

/// Opens a file for writing, without waiting for whoever may read it.
fn create(path: &Path) -> Result<File, CaptureError> {
    let failed = |source: io::Error| match source.raw_os_error() {
        Some(libc::ENXIO) => CaptureError::NoReader {
            path: path.to_owned(),
        },
        _ => CaptureError::File {
            path: path.to_owned(),
            source,
        },
    };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    let file = options.custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.map_err(failed)?;
    // From here on, only the writing thread waits.
    set_blocking(&file).map_err(|errno| failed(errno.into()))?;
    Ok(file)
}

fn set_blocking(file: &File) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)).map(drop)
}

/// What the writing thread has.
struct Writing {
    ring: Consumer<u8>,
    shared: Arc<Shared>,
    encoder: Encoder,
    /// Records from the ring, the last of which may not be whole yet.
    input: Vec<u8>,
    /// Dropped when the thread ends.
    _alive: Sender<()>,
}

impl Writing {
    fn write_to(&mut self, file: &mut impl Write) -> io::Result<()> {
        loop {
            if !self.encoder.octets().is_empty() {
                file.write_all(self.encoder.octets())?;
                file.flush()?;
                self.encoder.clear();
            }
            // Before the look at the ring: what was recorded before the end is then seen.
            let closed = self.shared.closed.load(Ordering::Acquire);
            if self.take()? > 0 {
                self.encode();
            } else if closed {
                return Ok(());
            } else {
                thread::park();
            }
        }
    }

    /// Takes octets from the ring; returns how many.
    fn take(&mut self) -> io::Result<usize> {
        let before = self.input.len();
        let count = self.ring.slots().min(CHUNK);
        if count == 0 {
            return Ok(0);
        }
        self.input.resize(before + count, 0);
        let area = self.input.get_mut(before..).unwrap_or_default();
        self.ring.read_exact(area)?;
        Ok(count)
    }

    /// Encodes all whole records.
    fn encode(&mut self) {
        let mut rest = &self.input[..];
        while let Some((head, behind)) = Head::split(rest)
            && let Some((octets, behind)) = behind.split_at_checked(head.stored)
        {
            self.encoder.push(&head, octets);
            rest = behind;
        }
        let done = self.input.len() - rest.len();
        self.input.drain(..done);
    }
}
