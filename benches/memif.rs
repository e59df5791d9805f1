//! Frames from memory to memory, through shared memory (`memif`) and, as a yardstick, through a pair of
//! devices in one process, which hand buffers over (`memory`). Of a frame's way through `memif` two copies
//! are counted: into a shared buffer and out of it.
//!
//! | benchmark | what it shows |
//! |---|---|
//! | `same-thread` | a burst is sent and received by one thread: the work on it |
//! | `stream` | one thread sends, the other receives, as fast as both can: throughput |
//!
//! Both threads poll, so with fewer than two idle cores the last shows the scheduler.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a benchmark may stop where its data are wrong"
)]

mod support;

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use nos_relay::control::memif::{Address, Carrier, Options, Side, Sockets};
use nos_relay::data::device::memif::Memif;
use nos_relay::data::device::{FrameDevice, memory_pair};
use nos_shim::frame::{BATCH, Burst, FramePool};
use nos_shim::ident::{Interface, UplinkId};
use support::cycles::PerElement;

/// Octets of a frame.
const LENGTHS: [usize; 2] = [64, 1514];
/// Descriptors of a ring: the default of the configuration.
const LOG2_RING: u8 = 10;
/// Frames under way in `stream`.
const UNDER_WAY: u64 = 512;
/// Polls before a waiting thread lets others run: with one core it would wait for nothing.
const SPINS: u32 = 1 << 10;

/// Both ends of a connection, and what keeps it.
struct Connected {
    sockets: Sockets,
    _directory: tempfile::TempDir,
    ends: [Memif; 2],
}

impl Connected {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (sender, news) = channel();
        let sockets = Sockets::start(move |it| drop(sender.send(it))).unwrap();
        let open = |n: u32, side| {
            let options = Options {
                address: Address::new(directory.path().join("memif.sock"), 0).unwrap(),
                side,
                secret: None,
                queues: 1,
                log2_ring_size: LOG2_RING,
            };
            let interface = Interface::Uplink(UplinkId(n));
            sockets.open(interface, "bench", options).unwrap()
        };
        let ends = [open(1, Side::Server), open(2, Side::Client)];
        let mut up = 0;
        while up < 2 {
            up += u32::from(matches!(news.recv().unwrap().carrier, Carrier::Up(_)));
        }
        Self {
            sockets,
            _directory: directory,
            ends,
        }
    }
}

fn fill(burst: &mut Burst, pool: &mut FramePool, frame: &[u8]) {
    while !burst.is_full() {
        burst.push(pool.copy_from(frame).unwrap());
    }
}

fn same_thread(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    length: usize,
    [mut from, mut to]: [impl FrameDevice; 2],
) {
    let mut pool = FramePool::new(4096, 2048);
    let template = vec![0; length];
    let mut burst = Burst::new();
    group.each(
        &format!("same-thread/{name}/{length}"),
        BATCH as u64,
        || {
            fill(&mut burst, &mut pool, &template);
            let sent = from.send_burst(&mut burst, &mut pool).frames;
            let mut received = 0;
            while received < sent {
                received += to.recv_burst(&mut pool, &mut burst, BATCH).frames;
                pool.free_all(&mut burst);
            }
            assert_eq!(received, BATCH);
        },
    );
}

/// Waits until `condition` holds.
fn wait(condition: impl Fn() -> bool) {
    loop {
        for _ in 0..SPINS {
            if condition() {
                return;
            }
            spin_loop();
        }
        thread::yield_now();
    }
}

fn stream(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    length: usize,
    [mut from, mut to]: [impl FrameDevice; 2],
) {
    let mut pool = FramePool::new(8192, 2048);
    let mut theirs = pool.clone();
    let template = vec![0; length];
    let (received, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut burst, mut idle) = (Burst::new(), 0);
            while !stop.load(Ordering::Relaxed) {
                let frames = to.recv_burst(&mut theirs, &mut burst, BATCH).frames;
                theirs.free_all(&mut burst);
                received.fetch_add(frames as u64, Ordering::Release);
                idle = if frames == 0 { idle + 1 } else { 0 };
                if idle > SPINS {
                    thread::yield_now();
                }
            }
        });
        let (mut burst, mut sent) = (Burst::new(), 0);
        group.each_custom(&format!("stream/{name}/{length}"), BATCH as u64, |rounds| {
            for _ in 0..rounds {
                fill(&mut burst, &mut pool, &template);
                wait(|| sent - received.load(Ordering::Acquire) <= UNDER_WAY);
                sent += from.send_burst(&mut burst, &mut pool).frames as u64;
            }
            wait(|| sent == received.load(Ordering::Acquire));
        });
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(
        from.counters().sent.drops.total(),
        0,
        "all that was sent arrived"
    );
}

fn memif(c: &mut Criterion) {
    let mut group = c.benchmark_group("memif");
    for length in LENGTHS {
        let memory = || memory_pair(["one", "two"], 1 << LOG2_RING);
        same_thread(&mut group, "memory", length, memory());
        stream(&mut group, "memory", length, memory());
        for (name, reversed) in [("to-client", false), ("to-server", true)] {
            for run in [same_thread, stream] {
                let Connected {
                    sockets,
                    _directory,
                    mut ends,
                } = Connected::new();
                if reversed {
                    ends.reverse();
                }
                run(&mut group, &format!("memif-{name}"), length, ends);
                drop(sockets);
            }
        }
    }
    group.finish();
}

criterion_group!(benches, memif);
criterion_main!(benches);
