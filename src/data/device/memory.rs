//! Two devices in memory, joined back to back: what one sends, the other receives.
//!
//! For tests and benches, and for joining parts of one process. Frames change hands without being
//! copied. Sender and receiver may be on different threads.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_queue::ArrayQueue;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nos_shim::drop::DropReason;
use nos_shim::frame::{Burst, Frame, FramePool};
use nos_shim::offload::Capabilities;

use super::{
    BURST_OCTETS, Batch, DeviceCounters, DeviceKind, Egress, FrameDevice, Inspector, LinkState,
    Next, Received, Sent,
};

/// One of two devices that are joined back to back.
///
/// It refuses frames that its capabilities do not cover ([`DropReason::DeviceError`]). When one is
/// dropped, the other has gone as soon as it has received what was under way.
#[derive(Debug)]
pub struct MemoryDevice {
    name: String,
    incoming: Arc<Queue>,
    outgoing: Arc<Queue>,
    capabilities: Capabilities,
    counters: DeviceCounters,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Queue {
    frames: ArrayQueue<Frame>,
    doorbell: Option<EventFd>,
    /// One of the ends was dropped.
    closed: AtomicBool,
}

/// Joins two devices, each of which holds up to `capacity` frames for its reader. They take all
/// offloads, and have no descriptor: the reader asks by itself.
#[must_use]
pub fn memory_pair(names: [&str; 2], capacity: usize) -> [MemoryDevice; 2] {
    join(
        names,
        [Queue::new(capacity, None), Queue::new(capacity, None)],
    )
}

/// As [`memory_pair`], but with descriptors that can be polled.
///
/// # Errors
///
/// The process has no descriptors left.
pub fn pollable_memory_pair(names: [&str; 2], capacity: usize) -> io::Result<[MemoryDevice; 2]> {
    let queue = || {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        io::Result::Ok(Queue::new(capacity, Some(EventFd::from_flags(flags)?)))
    };
    Ok(join(names, [queue()?, queue()?]))
}

fn join([left, right]: [&str; 2], queues: [Queue; 2]) -> [MemoryDevice; 2] {
    let [to_left, to_right] = queues.map(Arc::new);
    let device = |name: &str, incoming: &Arc<Queue>, outgoing: &Arc<Queue>| MemoryDevice {
        name: name.to_owned(),
        incoming: Arc::clone(incoming),
        outgoing: Arc::clone(outgoing),
        capabilities: Capabilities::all(),
        counters: DeviceCounters::default(),
    };
    [
        device(left, &to_left, &to_right),
        device(right, &to_right, &to_left),
    ]
}

impl MemoryDevice {
    /// Hands one frame to the other end, or gives the reason why not. Once `full`, always full.
    fn offer(&self, frame: Frame, full: bool) -> Result<(), (Frame, DropReason)> {
        if full {
            Err((frame, DropReason::DeviceFull))
        } else if self.outgoing.is_closed() {
            Err((frame, DropReason::DeviceGone))
        } else if self.capabilities.take(frame.offload()) {
            let full = |frame| (frame, DropReason::DeviceFull);
            self.outgoing.frames.push(frame).map_err(full)
        } else {
            Err((frame, DropReason::DeviceError))
        }
    }
}

impl FrameDevice for MemoryDevice {
    fn recv_burst(&mut self, _pool: &mut FramePool, burst: &mut Burst, limit: usize) -> Received {
        let mut received = Received {
            frames: 0,
            octets: 0,
            next: Next::More,
        };
        // Both before the first look at the queue: a frame that is pushed, or an end that is
        // dropped, after this rings again.
        self.incoming.silence();
        let empty = if self.incoming.is_closed() {
            Next::Gone(Errno::EPIPE)
        } else {
            Next::Drained
        };
        for _ in 0..limit.min(burst.remaining_capacity()) {
            if received.octets >= BURST_OCTETS {
                break;
            }
            let Some(frame) = self.incoming.frames.pop() else {
                received.next = empty;
                break;
            };
            self.counters.received.count(frame.len());
            received.frames += 1;
            received.octets += frame.len();
            burst.push(frame);
        }
        received
    }

    fn send(
        &mut self,
        burst: &mut Burst,
        pool: &mut FramePool,
        _batch: Option<&mut Batch<'_>>,
    ) -> Sent {
        let mut sent = Sent {
            frames: 0,
            octets: 0,
            dropped: 0,
            egress: Egress::Ready,
        };
        // As with a socket, what is behind a frame that found no room is not tried.
        let mut full = false;
        for frame in burst.drain(..) {
            let octets = frame.len();
            match self.offer(frame, full) {
                Ok(()) => {
                    self.counters.sent.count(octets);
                    sent.frames += 1;
                    sent.octets += octets;
                }
                Err((frame, reason)) => {
                    pool.free(frame);
                    full |= reason == DropReason::DeviceFull;
                    self.counters.sent.drops.add(reason, 1);
                    sent.dropped += 1;
                }
            }
        }
        if sent.frames > 0 {
            self.outgoing.ring();
        }
        if self.outgoing.is_closed() {
            sent.egress = Egress::Gone(Errno::EPIPE);
        }
        sent
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.incoming.doorbell.as_ref().map(AsFd::as_fd)
    }

    fn inspector(&self) -> Inspector {
        Inspector::of_memory(&self.incoming)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Memory
    }

    fn counters(&self) -> &DeviceCounters {
        &self.counters
    }
}

impl Drop for MemoryDevice {
    fn drop(&mut self) {
        self.incoming.close();
        self.outgoing.close();
    }
}

impl Queue {
    fn new(capacity: usize, doorbell: Option<EventFd>) -> Self {
        Self {
            frames: ArrayQueue::new(capacity.max(1)),
            doorbell,
            closed: AtomicBool::new(false),
        }
    }

    fn ring(&self) {
        if let Some(doorbell) = &self.doorbell {
            // Fails only when it has been rung 2^64 - 2 times without being silenced.
            let _ = doorbell.write(1);
        }
    }

    fn silence(&self) {
        if let Some(doorbell) = &self.doorbell {
            // Fails when it has not been rung.
            let _ = doorbell.read();
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether both ends are there.
    pub(super) fn link(&self) -> LinkState {
        if self.is_closed() {
            LinkState::Gone
        } else {
            LinkState::Up
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(pool: &mut FramePool, count: u8) -> Burst {
        (0..count)
            .map(|n| pool.copy_from(&[n; 60]).unwrap())
            .collect()
    }

    #[test]
    fn frames_arrive_in_order_and_are_counted() {
        let mut pool = FramePool::new(64, 100);
        let [mut left, mut right] = memory_pair(["left", "right"], 16);
        let sent = left.send_burst(&mut frames(&mut pool, 5), &mut pool);
        assert_eq!((sent.frames, sent.octets, sent.dropped), (5, 300, 0));
        let mut burst = Burst::new();
        let received = right.recv_burst(&mut pool, &mut burst, 2);
        assert_eq!((received.frames, received.next), (2, Next::More));
        let received = right.recv_burst(&mut pool, &mut burst, 64);
        assert_eq!((received.frames, received.next), (3, Next::Drained));
        let order: Vec<_> = burst.iter().map(|frame| frame.bytes()[0]).collect();
        assert_eq!(order, [0, 1, 2, 3, 4]);
        assert_eq!(left.counters().sent, right.counters().received);
    }

    #[test]
    fn a_full_queue_drops_the_newest() {
        let mut pool = FramePool::new(64, 100);
        let [mut left, mut right] = memory_pair(["left", "right"], 3);
        let sent = left.send_burst(&mut frames(&mut pool, 5), &mut pool);
        assert_eq!((sent.frames, sent.dropped), (3, 2));
        assert_eq!(left.counters().sent.drops.of(DropReason::DeviceFull), 2);
        let mut burst = Burst::new();
        assert_eq!(right.recv_burst(&mut pool, &mut burst, 64).frames, 3);
        assert_eq!(burst[2].bytes()[0], 2);
    }

    #[test]
    fn only_what_the_capabilities_cover_is_taken() {
        use nos_shim::frame::{Checksum, Offload};
        let mut pool = FramePool::new(64, 100);
        let [mut left, _right] = memory_pair(["left", "right"], 3);
        left.capabilities = Capabilities::empty();
        let mut burst = frames(&mut pool, 2);
        burst[0].set_offload(Offload {
            checksum: Checksum::Partial {
                start: 34,
                offset: 16,
            },
            segmentation: None,
        });
        let sent = left.send_burst(&mut burst, &mut pool);
        assert_eq!((sent.frames, sent.dropped), (1, 1));
        assert_eq!(left.counters().sent.drops.of(DropReason::DeviceError), 1);
    }

    #[test]
    fn a_lost_peer_is_gone_after_its_last_frame() {
        let mut pool = FramePool::new(64, 100);
        let [mut left, mut right] = memory_pair(["left", "right"], 16);
        let _ = left.send_burst(&mut frames(&mut pool, 2), &mut pool);
        drop(left);
        let mut burst = Burst::new();
        let received = right.recv_burst(&mut pool, &mut burst, 64);
        assert_eq!(
            (received.frames, received.next),
            (2, Next::Gone(Errno::EPIPE))
        );
        let sent = right.send_burst(&mut burst, &mut pool);
        assert_eq!((sent.dropped, sent.egress), (2, Egress::Gone(Errno::EPIPE)));
        assert_eq!(right.counters().sent.drops.of(DropReason::DeviceGone), 2);
        assert_eq!(right.inspector().link(), LinkState::Gone);
    }
}
