//! The data thread's end of a capture: copies of frames, in a ring.
//!
//! The ring carries records: a [`Head`], and behind it the octets of the frame. It has one producer
//! and one consumer, neither of which ever waits for the other.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::Duration;

use arrayvec::ArrayVec;
use nos_shim::frame::{BATCH, Checksum, Frame};
use rtrb::Producer;
use rtrb::chunks::WriteChunk;

use super::{CaptureOptions, CaptureStatus};

/// Which way a frame goes, as `epb_flags` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the device to us.
    Inbound = 1,
    /// From us to the device.
    Outbound = 2,
}

/// What a record says of the frame whose octets follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Since 1970-01-01 00:00:00 UTC.
    pub(super) time: Duration,
    /// Frames left out between the record before and this one.
    pub(super) gap: u64,
    /// Octets that follow.
    pub(super) stored: usize,
    /// Octets that the frame had.
    pub(super) original: usize,
    pub(super) direction: Direction,
    pub(super) checksum: Checksum,
}

impl Head {
    /// Octets of a head in the ring.
    pub(super) const LEN: usize = 32;

    /// What is recorded of `frame`: up to `snap` octets, or all where a checksum over all of them
    /// is yet to be completed.
    fn of(frame: &Frame, snap: usize, time: Duration, gap: u64, direction: Direction) -> Self {
        let checksum = frame.offload().checksum;
        let original = frame.len();
        let stored = match checksum {
            Checksum::Partial { .. } => original,
            _ => original.min(snap),
        };
        Self {
            time,
            gap,
            stored,
            original,
            direction,
            checksum,
        }
    }

    fn to_octets(self) -> [u8; Self::LEN] {
        let (partial, start, offset) = match self.checksum {
            Checksum::Partial { start, offset } => (1, start, offset),
            _ => (0, 0, 0),
        };
        let nanoseconds = u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX);
        let length = |octets| u32::try_from(octets).unwrap_or(u32::MAX);
        let mut octets = [0; Self::LEN];
        octets[0..8].copy_from_slice(&nanoseconds.to_ne_bytes());
        octets[8..16].copy_from_slice(&self.gap.to_ne_bytes());
        octets[16..20].copy_from_slice(&length(self.stored).to_ne_bytes());
        octets[20..24].copy_from_slice(&length(self.original).to_ne_bytes());
        octets[24..26].copy_from_slice(&start.to_ne_bytes());
        octets[26..28].copy_from_slice(&offset.to_ne_bytes());
        octets[28] = self.direction as u8;
        octets[29] = partial;
        octets
    }

    /// The head at the front of `octets`, and what is behind it, if it is whole.
    pub(super) fn split(octets: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = octets.split_first_chunk::<{ Self::LEN }>()?;
        let [
            t0,
            t1,
            t2,
            t3,
            t4,
            t5,
            t6,
            t7, //
            g0,
            g1,
            g2,
            g3,
            g4,
            g5,
            g6,
            g7, //
            s0,
            s1,
            s2,
            s3,
            o0,
            o1,
            o2,
            o3, //
            c0,
            c1,
            f0,
            f1,
            direction,
            partial,
            _,
            _,
        ] = *head;
        let time = u64::from_ne_bytes([t0, t1, t2, t3, t4, t5, t6, t7]);
        let length = |octets| u32::from_ne_bytes(octets) as usize;
        let head = Self {
            time: Duration::from_nanos(time),
            gap: u64::from_ne_bytes([g0, g1, g2, g3, g4, g5, g6, g7]),
            stored: length([s0, s1, s2, s3]),
            original: length([o0, o1, o2, o3]),
            direction: match direction {
                1 => Direction::Inbound,
                _ => Direction::Outbound,
            },
            checksum: match partial {
                0 => Checksum::default(),
                _ => Checksum::Partial {
                    start: u16::from_ne_bytes([c0, c1]),
                    offset: u16::from_ne_bytes([f0, f1]),
                },
            },
        };
        Some((head, rest))
    }
}

/// What data thread, writer and control side share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    recorded: AtomicU64,
    missed: AtomicU64,
    /// Set by the writer; nothing is read from the ring any more.
    pub(super) failed: AtomicBool,
    /// Set by the sink; nothing is added to the ring any more.
    pub(super) closed: AtomicBool,
}

impl Shared {
    pub(super) fn status(&self) -> CaptureStatus {
        CaptureStatus {
            recorded: self.recorded.load(Ordering::Relaxed),
            missed: self.missed.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Acquire),
        }
    }

    /// Adds to a counter that only one thread writes.
    fn add(counter: &AtomicU64, count: usize) {
        let count = count as u64;
        counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
    }
}

/// The end of a capture where frames go in. Recording never waits and, once the ring's memory is
/// resident, never allocates. Dropping it ends the capture; what is in the ring is still written.
pub struct CaptureSink {
    ring: Producer<u8>,
    writer: Thread,
    shared: Arc<Shared>,
    snap: usize,
    clock: fn() -> Duration,
    /// Frames left out since one was recorded.
    gap: u64,
}

impl fmt::Debug for CaptureSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaptureSink")
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

impl CaptureSink {
    pub(super) fn new(
        ring: Producer<u8>,
        writer: Thread,
        shared: Arc<Shared>,
        options: &CaptureOptions,
    ) -> Self {
        Self {
            ring,
            writer,
            shared,
            snap: match usize::try_from(options.snap_length) {
                Ok(0) | Err(_) => usize::MAX,
                Ok(snap) => snap,
            },
            clock: options.clock,
            gap: 0,
        }
    }

    /// How the capture fares.
    #[must_use]
    pub fn status(&self) -> CaptureStatus {
        self.shared.status()
    }

    /// Copies `frames` into the ring, all or none. They count when [`Copies::commit`] says so.
    pub(super) fn record(&mut self, frames: &[Frame], direction: Direction) -> Copies<'_> {
        let Self { ring, gap, .. } = self;
        let mut ends = ArrayVec::new();
        let chunk = if frames.is_empty() || self.shared.failed.load(Ordering::Relaxed) {
            None
        } else {
            copy(
                frames,
                ring,
                &mut ends,
                (self.snap, (self.clock)(), *gap, direction),
            )
        };
        Copies {
            chunk,
            ends,
            gap,
            shared: &self.shared,
            writer: &self.writer,
        }
    }
}

impl Drop for CaptureSink {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.writer.unpark();
    }
}

/// Copies of a burst, not yet the writer's.
#[must_use = "copies that are not committed are not recorded"]
pub(super) struct Copies<'a> {
    /// `None` when there was no room.
    chunk: Option<WriteChunk<'a, u8>>,
    /// Where the record of each frame ends.
    ends: ArrayVec<usize, BATCH>,
    gap: &'a mut u64,
    shared: &'a Shared,
    writer: &'a Thread,
}

impl Copies<'_> {
    /// Hands the copies of the first `frames` frames to the writer, or counts the frames as missed.
    pub(super) fn commit(self, frames: usize) {
        let Some(last) = frames.checked_sub(1) else {
            return;
        };
        match (self.chunk, self.ends.get(last)) {
            (Some(chunk), Some(&end)) => {
                chunk.commit(end);
                Shared::add(&self.shared.recorded, frames);
                *self.gap = 0;
                self.writer.unpark();
            }
            _ => {
                Shared::add(&self.shared.missed, frames);
                *self.gap += frames as u64;
            }
        }
    }
}

/// Copies records of `frames` into `ring`, without showing them to the consumer yet.
fn copy<'a>(
    frames: &[Frame],
    ring: &'a mut Producer<u8>,
    ends: &mut ArrayVec<usize, BATCH>,
    (snap, time, gap, direction): (usize, Duration, u64, Direction),
) -> Option<WriteChunk<'a, u8>> {
    let mut gap = Some(gap);
    let heads: ArrayVec<Head, BATCH> = frames
        .iter()
        .take(BATCH)
        .map(|frame| Head::of(frame, snap, time, gap.take().unwrap_or(0), direction))
        .collect();
    let octets = heads.iter().map(|head| Head::LEN + head.stored).sum();
    let mut chunk = ring.write_chunk(octets).ok()?;
    let (first, second) = chunk.as_mut_slices();
    let mut room = Room {
        first,
        second,
        filled: 0,
    };
    for (head, frame) in heads.iter().zip(frames) {
        room.put(&head.to_octets());
        room.put(frame.bytes().get(..head.stored).unwrap_or_default());
        ends.push(room.filled);
    }
    Some(chunk)
}

/// Room in a ring, which may wrap around once.
struct Room<'a> {
    first: &'a mut [u8],
    second: &'a mut [u8],
    filled: usize,
}

impl Room<'_> {
    fn put(&mut self, octets: &[u8]) {
        let left = self.first.len().saturating_sub(self.filled);
        let (here, there) = octets.split_at(octets.len().min(left));
        copy_to(self.first, self.filled, here);
        let behind = (self.filled + here.len()).saturating_sub(self.first.len());
        copy_to(self.second, behind, there);
        self.filled += octets.len();
    }
}

fn copy_to(area: &mut [u8], at: usize, octets: &[u8]) {
    if let Some(area) = area.get_mut(at..at + octets.len()) {
        area.copy_from_slice(octets);
    }
}
