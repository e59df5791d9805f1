//! The hop between relay and NOS: bursts of 1, 8 and 64 packets through the channel, and through
//! `rtrb`, a ring for one sender and one receiver, as a yardstick. Both carry the same type.
//!
//! | benchmark | what it shows |
//! |---|---|
//! | `same-thread` | a burst is sent and received by one thread: the hop in single-thread mode |
//! | `ping-pong` | a burst goes to another thread and back: twice the latency |
//! | `stream` | bursts flow to another thread, which returns them, as many as the rings hold: throughput |
//!
//! Both threads poll, so with fewer than two idle cores the last two show the scheduler.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark may stop where its data are wrong"
)]

mod support;

use std::hint::black_box;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use nos_shim::channel::{NosEnd, RelayEnd, pair};
use nos_shim::frame::{BATCH, FramePool};
use nos_shim::packet::PacketBurst;
use rtrb::{Consumer, Producer, RingBuffer};
use support::cycles::PerElement;
use support::packets::{Ends, SMALL};

/// Bursts that each ring holds: the default of the configuration.
const RING: usize = 256;
/// Bursts under way in `stream`.
const UNDER_WAY: usize = RING / 2;
const SIZES: [usize; 3] = [1, 8, BATCH];
/// Polls before a waiting thread lets others run: with one core it would wait for nothing.
const SPINS: u32 = 1 << 10;

/// One end of two rings. `try_send` leaves the burst where it is when the ring is full.
trait Hop: Send {
    fn try_send(&mut self, burst: &mut PacketBurst) -> bool;
    fn try_recv(&mut self) -> Option<PacketBurst>;
}

impl Hop for RelayEnd {
    fn try_send(&mut self, burst: &mut PacketBurst) -> bool {
        self.send_burst(burst)
    }

    fn try_recv(&mut self) -> Option<PacketBurst> {
        self.recv_burst()
    }
}

impl Hop for NosEnd {
    fn try_send(&mut self, burst: &mut PacketBurst) -> bool {
        self.send_burst(burst)
    }

    fn try_recv(&mut self) -> Option<PacketBurst> {
        self.recv_burst()
    }
}

/// The yardstick.
struct Rtrb {
    outgoing: Producer<PacketBurst>,
    incoming: Consumer<PacketBurst>,
}

impl Hop for Rtrb {
    fn try_send(&mut self, burst: &mut PacketBurst) -> bool {
        match self.outgoing.push(core::mem::take(burst)) {
            Ok(()) => true,
            Err(rtrb::PushError::Full(back)) => {
                *burst = back;
                false
            }
        }
    }

    fn try_recv(&mut self) -> Option<PacketBurst> {
        self.incoming.pop().ok()
    }
}

fn rtrb_pair() -> (Rtrb, Rtrb) {
    let (to_right, from_left) = RingBuffer::new(RING);
    let (to_left, from_right) = RingBuffer::new(RING);
    let left = Rtrb {
        outgoing: to_right,
        incoming: from_right,
    };
    let right = Rtrb {
        outgoing: to_left,
        incoming: from_left,
    };
    (left, right)
}

fn bursts(count: usize, size: usize) -> Vec<PacketBurst> {
    let mut pool = FramePool::new(count * size, 2000);
    let template = Ends::outbound4().udp(SMALL);
    let burst = |_| (0..size).map(|_| template.packet(&mut pool)).collect();
    (0..count).map(burst).collect()
}

/// Polls until there is something.
fn wait<T>(mut poll: impl FnMut() -> Option<T>) -> T {
    loop {
        for _ in 0..SPINS {
            if let Some(found) = poll() {
                return found;
            }
            spin_loop();
        }
        thread::yield_now();
    }
}

fn send(end: &mut impl Hop, mut burst: PacketBurst) {
    wait(|| end.try_send(&mut burst).then_some(()));
}

fn same_thread<L: Hop, R: Hop>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    size: usize,
    (mut left, mut right): (L, R),
) {
    let mut burst = bursts(1, size).pop().unwrap();
    group.each(&format!("same-thread/{name}/{size}"), size as u64, || {
        assert!(left.try_send(black_box(&mut burst)));
        burst = right.try_recv().unwrap();
    });
}

/// Returns everything until it is told to stop.
fn echo(mut end: impl Hop, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let mut polls = 0;
        let burst = wait(|| {
            polls += 1;
            let stopped = polls % SPINS == 0 && stop.load(Ordering::Relaxed);
            end.try_recv().map(Some).or(stopped.then_some(None))
        });
        if let Some(burst) = burst {
            send(&mut end, burst);
        }
    }
}

/// Keeps `under_way` bursts going round.
fn cross_thread<L: Hop, R: Hop>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    size: usize,
    under_way: usize,
    (mut left, right): (L, R),
) {
    let mut idle = bursts(under_way, size);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| echo(right, &stop));
        group.each_custom(name, size as u64, |rounds| {
            let mut sent = 0;
            let mut received = 0;
            while received < rounds {
                while sent < rounds
                    && let Some(burst) = idle.pop()
                {
                    send(&mut left, burst);
                    sent += 1;
                }
                idle.push(wait(|| left.try_recv()));
                received += 1;
            }
        });
        stop.store(true, Ordering::Relaxed);
    });
}

fn channel(c: &mut Criterion) {
    let mut group = c.benchmark_group("channel");
    for size in SIZES {
        same_thread(&mut group, "channel", size, pair(RING));
        same_thread(&mut group, "rtrb", size, rtrb_pair());
    }
    for (kind, under_way) in [("ping-pong", 1), ("stream", UNDER_WAY)] {
        for size in SIZES {
            let name = |ring| format!("{kind}/{ring}/{size}");
            cross_thread(&mut group, &name("channel"), size, under_way, pair(RING));
            cross_thread(&mut group, &name("rtrb"), size, under_way, rtrb_pair());
        }
    }
    group.finish();
}

criterion_group!(benches, channel);
criterion_main!(benches);
