//! Captures: what passes a device, in a pcapng file.
//!
//! # Theory of operation
//!
//! ```text
//! data thread                                     thread "capture"
//! Captured ──copies──► CaptureSink ══ ring ══► encode as pcapng ──► file
//!
//! control side: CaptureWriter (status; a limited wait for the rest to be written)
//! ```
//!
//! A capture makes nobody wait:
//!
//! - The data thread copies frames into a ring of [`CaptureOptions::backlog`] octets. A burst that
//!   finds no room is left out, and the next frame recorded says how many frames were
//!   (`epb_dropcount`).
//! - A thread of its own encodes and writes. It may be stuck for ever, in a FIFO that nobody reads
//!   or on a disk that hangs; nobody joins it. [`CaptureWriter::finish`] waits for a limited time
//!   and then leaves it behind.
//! - Opening a FIFO that nobody reads is an error.
//! - After the first error of writing the capture has ended, which is logged and shown.
//!
//! The thread keeps nothing back: the file is complete up to the last burst whenever the disk has
//! caught up, and whole once the sink was dropped and the writer has finished.
//!
//! A frame with a partial checksum is completed in the copy. A super-frame is recorded as it is:
//! its IP and UDP lengths are those of the whole, and the checksum is completed over the whole, so
//! that it reads as one large correct packet.

mod encode;
mod record;
mod writer;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nos_shim::frame::{Burst, FramePool};
use nos_shim::offload::Capabilities;
use nos_shim::vlan::VlanId;
use thiserror::Error;

pub use record::CaptureSink;
pub use writer::{CaptureUnfinished, CaptureWriter};

use super::{Batch, DeviceCounters, DeviceKind, FrameDevice, Injection, Inspector, Received, Sent};
use record::Direction;

/// How a capture is made.
#[derive(Clone, Copy, Debug)]
pub struct CaptureOptions {
    /// Octets recorded of each frame, from its Ethernet header on; 0 for all.
    pub snap_length: u32,
    /// The VLAN that the device is of another one: its frames are recorded with the tag that they have on
    /// the link, of the lowest priority.
    pub vlan: Option<VlanId>,
    /// Octets that may wait for the disk; about a quarter MiB more may be on its way to it.
    pub backlog: usize,
    /// Tells the time since 1970-01-01 00:00:00 UTC. Asked once a burst.
    pub clock: fn() -> Duration,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self {
            snap_length: 0,
            vlan: None,
            backlog: 16 << 20,
            clock: system_time,
        }
    }
}

fn system_time() -> Duration {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default()
}

/// How a capture fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaptureStatus {
    /// Frames handed to the writing thread.
    pub recorded: u64,
    /// Frames left out because the disk could not keep up, or after writing has failed.
    pub missed: u64,
    /// Writing failed, and the capture has ended.
    pub failed: bool,
}

/// Why a capture cannot begin.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// The file cannot be created.
    #[error("capture {path}: {source}", path = path.display())]
    File {
        /// The file wanted.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Opening it for writing would wait.
    #[error("capture {path}: this is a FIFO that nobody reads; start its reader first", path = path.display())]
    NoReader {
        /// The FIFO.
        path: PathBuf,
    },
    /// No thread can be started.
    #[error("capture: cannot start a thread to write it: {0}")]
    Thread(io::Error),
}

/// A device, and where its frames are recorded, if anywhere.
#[derive(Debug)]
pub struct Captured<D = Box<dyn FrameDevice>> {
    /// The device.
    pub device: D,
    /// Where frames are recorded.
    pub sink: Option<CaptureSink>,
}

impl From<Box<dyn FrameDevice>> for Captured {
    fn from(device: Box<dyn FrameDevice>) -> Self {
        Self { device, sink: None }
    }
}

impl<D: FrameDevice> FrameDevice for Captured<D> {
    fn recv_burst(&mut self, pool: &mut FramePool, burst: &mut Burst, limit: usize) -> Received {
        let before = burst.len();
        let received = self.device.recv_burst(pool, burst, limit);
        if let Some(sink) = &mut self.sink {
            let frames = burst.get(before..).unwrap_or_default();
            sink.record(frames, Direction::Inbound).commit(frames.len());
        }
        received
    }

    fn send(
        &mut self,
        burst: &mut Burst,
        pool: &mut FramePool,
        batch: Option<&mut Batch<'_>>,
    ) -> Sent {
        let Some(sink) = &mut self.sink else {
            return self.device.send(burst, pool, batch);
        };
        let offered = burst.len();
        let copies = sink.record(burst, Direction::Outbound);
        let sent = self.device.send(burst, pool, batch);
        // Frames that stay in the burst come again, adapted.
        copies.commit(offered - burst.len());
        sent
    }

    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.device.fd()
    }

    fn inspector(&self) -> Inspector {
        self.device.inspector()
    }

    fn name(&self) -> &str {
        self.device.name()
    }

    fn kind(&self) -> DeviceKind {
        self.device.kind()
    }

    fn counters(&self) -> &DeviceCounters {
        self.device.counters()
    }

    fn set_coalescing(&mut self, on: bool) {
        self.device.set_coalescing(on);
    }

    fn set_persistent(&mut self, on: bool) -> Result<(), Errno> {
        self.device.set_persistent(on)
    }

    fn leave(&mut self) {
        self.device.leave();
    }

    fn asks_for_injection(&mut self) -> bool {
        self.device.asks_for_injection()
    }

    fn inject(&mut self, injection: Injection) -> Result<(), Injection> {
        self.device.inject(injection)
    }
}

#[cfg(test)]
mod tests;
