//! Captures what passes a device into a pcapng file.
//!
//! # Theory of operation
//!
//! A [`Capture`] wraps a device. Frames that came from it, and frames handed to it, are copied and
//! encoded; at the end of a burst they join what waits for the disk, and a thread of its own writes
//! that. So a slow or full disk never holds traffic up:
//!
//! - at most [`CaptureOptions::BACKLOG`] octets wait; bursts beyond that are left out, and the next frame recorded
//!   says how many frames were (`epb_dropcount`);
//! - after the first error the capture has ended, which is logged and shown.
//!
//! The thread keeps nothing back: the file is complete up to the last burst whenever the disk has
//! caught up, and whole when the device is dropped.
//!
//! A frame with a partial checksum is completed in the copy. A super-frame is recorded as it is:
//! its IP and UDP lengths are those of the whole, and the checksum is completed over the whole, so
//! that it reads as one large correct packet.

mod encode;
mod writing;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nos_shim::frame::{Burst, Frame, FramePool};
use nos_shim::offload::Capabilities;
use thiserror::Error;

use encode::{Direction, Encoder};
use writing::Writing;

use super::{DeviceCounters, DeviceKind, FrameDevice, Link, Received, Sent};

/// How a capture is made.
#[derive(Clone, Copy, Debug)]
pub struct CaptureOptions {
    /// Octets recorded of each frame, from its Ethernet header on; 0 for all.
    pub snap_length: u32,
    /// Tells the time since 1970-01-01 00:00:00 UTC. Asked once a burst.
    pub clock: fn() -> Duration,
}

impl CaptureOptions {
    /// Octets that may wait for the disk; as many again may be on their way to it.
    pub const BACKLOG: usize = 16 << 20;
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self {
            snap_length: 0,
            clock: system_time,
        }
    }
}

fn system_time() -> Duration {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default()
}

/// How a capture fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureStatus {
    /// Frames handed to the writing thread.
    pub recorded: u64,
    /// Frames left out because the disk could not keep up, or after the end.
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
    /// No thread can be started.
    #[error("capture: cannot start a thread to write it: {0}")]
    Thread(io::Error),
}

/// A device whose frames are recorded.
#[derive(Debug)]
pub struct Capture<D> {
    device: D,
    clock: fn() -> Duration,
    encoder: Encoder,
    writing: Writing,
    recorded: u64,
    missed: u64,
    /// Frames left out since one was recorded.
    gap: u64,
}

impl<D: FrameDevice> Capture<D> {
    /// Records what passes `device` into a new file at `path`.
    ///
    /// # Errors
    ///
    /// The file cannot be created, or no thread started.
    pub fn create(
        device: D,
        path: impl AsRef<Path>,
        options: CaptureOptions,
    ) -> Result<Self, CaptureError> {
        let path = path.as_ref();
        let file = File::create(path).map_err(|source| CaptureError::File {
            path: path.to_owned(),
            source,
        })?;
        Self::new(device, file, path, options)
    }

    /// Records what passes `device` into `sink`, which `path` names in messages.
    ///
    /// # Errors
    ///
    /// No thread can be started.
    pub fn new(
        device: D,
        sink: impl Write + Send + 'static,
        path: &Path,
        options: CaptureOptions,
    ) -> Result<Self, CaptureError> {
        let encoder = Encoder::new(device.name(), options.snap_length);
        let writing = Writing::start(sink, path, encoder.octets()).map_err(CaptureError::Thread)?;
        Ok(Self {
            device,
            clock: options.clock,
            encoder,
            writing,
            recorded: 0,
            missed: 0,
            gap: 0,
        })
    }

    /// How the capture fares.
    #[must_use]
    pub fn status(&self) -> CaptureStatus {
        CaptureStatus {
            recorded: self.recorded,
            missed: self.missed,
            failed: self.writing.has_failed(),
        }
    }

    /// Encodes `frames`, unless the capture has ended.
    fn encode(&mut self, frames: &[Frame], direction: Direction) {
        if frames.is_empty() || self.writing.has_failed() {
            return;
        }
        self.encoder.begin((self.clock)(), self.gap);
        for frame in frames {
            self.encoder.push(frame, direction);
        }
    }

    /// Hands what was encoded of the first `frames` of these frames to the writing thread.
    fn record(&mut self, frames: usize) {
        let encoded = self.encoder.first(frames);
        if self.writing.offer(encoded) {
            self.recorded += frames as u64;
            self.gap = 0;
        } else {
            self.missed += frames as u64;
            self.gap += frames as u64;
        }
    }

    /// The device itself.
    pub fn device(&self) -> &D {
        &self.device
    }
}

impl<D: FrameDevice> FrameDevice for Capture<D> {
    fn recv_burst(&mut self, pool: &mut FramePool, burst: &mut Burst, limit: usize) -> Received {
        let before = burst.len();
        let received = self.device.recv_burst(pool, burst, limit);
        let frames = burst.get(before..).unwrap_or_default();
        if !frames.is_empty() {
            self.encode(frames, Direction::Inbound);
            self.record(frames.len());
        }
        received
    }

    fn send_burst(&mut self, burst: &mut Burst, pool: &mut FramePool) -> Sent {
        let offered = burst.len();
        self.encode(burst, Direction::Outbound);
        let sent = self.device.send_burst(burst, pool);
        // Frames that stay in the burst come again, adapted.
        if offered > burst.len() {
            self.record(offered - burst.len());
        }
        sent
    }

    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.device.fd()
    }

    fn link(&mut self) -> Link {
        self.device.link()
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

    fn kernel_drops(&mut self) -> u64 {
        self.device.kernel_drops()
    }
}

#[cfg(test)]
mod tests;
