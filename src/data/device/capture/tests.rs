use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use nos_shim::frame::{Checksum, Offload};
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgParser};

use super::*;
use crate::data::device::{Egress, MemoryDevice, memory_pair};
use std::io::Write;
use std::path::Path;

/// What was written, seen from outside.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(octets);
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk that writes only when told.
struct Slow {
    paper: Paper,
    go: Receiver<()>,
}

impl Write for Slow {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        // Whoever is not told any more goes on by itself.
        let _ = self.go.recv();
        self.paper.write(octets)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn slow(paper: &Paper) -> (Slow, Sender<()>) {
    let (told, go) = channel();
    let paper = paper.clone();
    (Slow { paper, go }, told)
}

fn options(snap_length: u32) -> CaptureOptions {
    CaptureOptions {
        snap_length,
        clock: || Duration::new(1_700_000_000, 123_456_789),
        ..CaptureOptions::default()
    }
}

struct Recorded {
    time: Duration,
    original: u32,
    data: Vec<u8>,
    options: Vec<EnhancedPacketOption<'static>>,
}

/// Reads a capture back; the name of its interface comes first.
fn parse(paper: &Paper) -> (String, Vec<Recorded>) {
    let octets = paper.0.lock().unwrap().clone();
    let (mut rest, mut parser) = PcapNgParser::new(&octets).unwrap();
    let mut frames = vec![];
    while !rest.is_empty() {
        let (next, block) = parser.next_block(rest).unwrap();
        if let Block::EnhancedPacket(block) = block.into_owned() {
            frames.push(Recorded {
                time: block.timestamp,
                original: block.original_len,
                data: block.data.into_owned(),
                options: block.options,
            });
        }
        rest = next;
    }
    let interface = &parser.interfaces()[0];
    let name = interface.options.iter().find_map(|option| match option {
        InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
        _ => None,
    });
    (name.unwrap(), frames)
}

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// A device that is captured, and the hold on its capture.
struct Near {
    device: Captured<MemoryDevice>,
    writer: CaptureWriter,
}

impl Near {
    fn new((sink, writer): (CaptureSink, CaptureWriter), device: MemoryDevice) -> Self {
        let sink = Some(sink);
        let device = Captured { device, sink };
        Self { device, writer }
    }

    fn send_burst(&mut self, burst: &mut Burst, pool: &mut FramePool) -> Sent {
        self.device.send_burst(burst, pool)
    }

    fn recv_burst(&mut self, pool: &mut FramePool, burst: &mut Burst, limit: usize) -> Received {
        self.device.recv_burst(pool, burst, limit)
    }

    fn status(&self) -> CaptureStatus {
        self.writer.status()
    }

    /// Ends the capture, and waits until it is written.
    fn finish(self) -> CaptureStatus {
        drop(self.device);
        self.writer.finish(LIMIT).unwrap()
    }
}

fn pair(file: impl Write + Send + 'static, snap: u32) -> (Near, MemoryDevice) {
    let [near, far] = memory_pair(["near", "far"], 4096);
    let started = CaptureWriter::start(file, Path::new("test"), near.name(), options(snap));
    (Near::new(started.unwrap(), near), far)
}

fn burst(pool: &mut FramePool, frames: &[&[u8]]) -> Burst {
    let frames = frames.iter();
    frames
        .map(|octets| pool.copy_from(octets).unwrap())
        .collect()
}

#[test]
fn both_directions_are_recorded_in_order() {
    let mut pool = FramePool::new(64, 2000);
    let paper = Paper::default();
    let (mut near, mut far) = pair(paper.clone(), 0);
    let _ = near.send_burst(&mut burst(&mut pool, &[&[1; 61], &[2; 62]]), &mut pool);
    let _ = far.send_burst(&mut burst(&mut pool, &[&[3; 63]]), &mut pool);
    let mut got = burst(&mut pool, &[&[9; 60]]);
    assert_eq!(near.recv_burst(&mut pool, &mut got, 64).frames, 1);
    let status = near.status();
    assert_eq!(
        (status.recorded, status.missed, status.failed),
        (3, 0, false)
    );
    near.finish();
    let (name, frames) = parse(&paper);
    assert_eq!(name, "near");
    let data: Vec<_> = frames.iter().map(|frame| frame.data.clone()).collect();
    assert_eq!(data, [vec![1; 61], vec![2; 62], vec![3; 63]]);
    for (frame, flags) in frames.iter().zip([2, 2, 1]) {
        assert_eq!(frame.options, [EnhancedPacketOption::Flags(flags)]);
        assert_eq!(frame.time, Duration::new(1_700_000_000, 123_456_789));
    }
}

#[test]
fn long_frames_are_cut_and_say_how_long_they_were() {
    let mut pool = FramePool::new(64, 2000);
    let paper = Paper::default();
    let (mut near, _far) = pair(paper.clone(), 100);
    let _ = near.send_burst(&mut burst(&mut pool, &[&[1; 1500], &[2; 60]]), &mut pool);
    near.finish();
    let (_, frames) = parse(&paper);
    let lengths: Vec<_> = frames.iter().map(|f| (f.data.len(), f.original)).collect();
    assert_eq!(lengths, [(100, 1500), (60, 60)]);
}

#[test]
fn partial_checksums_are_complete_in_the_file_only() {
    let mut pool = FramePool::new(64, 2000);
    let paper = Paper::default();
    let (mut near, mut far) = pair(paper.clone(), 60);
    let mut sent = burst(&mut pool, &[&[0x11; 80]]);
    sent[0].set_offload(Offload {
        checksum: Checksum::Partial {
            start: 34,
            offset: 16,
        },
        segmentation: None,
    });
    let _ = near.send_burst(&mut sent, &mut pool);
    near.finish();
    let mut got = Burst::new();
    let _ = far.recv_burst(&mut pool, &mut got, 64);
    assert_eq!(got[0].bytes(), [0x11; 80]);
    let (_, frames) = parse(&paper);
    let sum = nos_shim::checksum::Sum::ZERO.plus(&[0x11; 46]).checksum();
    let mut wanted = [0x11; 60];
    wanted[50..52].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(frames[0].data, wanted);
}

#[test]
fn a_slow_disk_leaves_frames_out_and_says_so() {
    let mut pool = FramePool::new(256, 65_000);
    let paper = Paper::default();
    let (sink, told) = slow(&paper);
    let (mut near, mut far) = pair(sink, 0);
    // Nothing is written, so that after the backlog there is no room.
    let octets = vec![5; 60_000];
    let rounds = 40_u64;
    for _ in 0..rounds {
        let mut frames = burst(&mut pool, &[&octets[..]; 16]);
        assert_eq!(near.send_burst(&mut frames, &mut pool).frames, 16);
        let mut got = Burst::new();
        let received = far.recv_burst(&mut pool, &mut got, 64);
        assert!(received.frames > 0);
        while far.recv_burst(&mut pool, &mut got, 64).frames > 0 {}
        pool.free_all(&mut got);
    }
    let status = near.status();
    assert_eq!(status.recorded + status.missed, 16 * rounds);
    assert!(status.missed > 0 && status.recorded > 0);
    drop(told);
    // The thread catches up; then there is room again.
    loop {
        let mut last = burst(&mut pool, &[&[6; 60]]);
        let before = near.status().recorded;
        assert_eq!(near.send_burst(&mut last, &mut pool).frames, 1);
        if near.status().recorded > before {
            break;
        }
        std::thread::yield_now();
        let mut got = Burst::new();
        let _ = far.recv_burst(&mut pool, &mut got, 64);
        pool.free_all(&mut got);
    }
    let status = near.status();
    near.finish();
    let (_, frames) = parse(&paper);
    assert_eq!(frames.len() as u64, status.recorded);
    let last = frames.last().unwrap();
    assert_eq!(last.data, [6; 60]);
    assert_eq!(
        last.options[1],
        EnhancedPacketOption::DropCount(status.missed)
    );
}

#[test]
fn a_full_disk_ends_the_capture_and_not_the_traffic() {
    let mut pool = FramePool::new(64, 2000);
    let [near, mut far] = memory_pair(["near", "far"], 4096);
    let started = CaptureWriter::create("/dev/full", near.name(), options(0));
    let mut near = Near::new(started.unwrap(), near);
    while !near.status().failed {
        std::thread::yield_now();
    }
    let sent = near.send_burst(&mut burst(&mut pool, &[&[1; 60][..]; 8]), &mut pool);
    assert_eq!(sent.frames, 8);
    let mut got = Burst::new();
    assert_eq!(far.recv_burst(&mut pool, &mut got, 64).frames, 8);
    let status = near.status();
    assert_eq!((status.recorded, status.missed), (0, 8));
}

#[test]
fn a_path_that_cannot_be_is_named() {
    let error = CaptureWriter::create("/nowhere/file.pcapng", "near", options(0)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("capture /nowhere/file.pcapng: No such file"),
        "{text}"
    );
}

/// A ring much shorter than what passes, so that records lie across its end.
#[test]
fn frames_are_whole_where_the_ring_wraps() {
    let mut pool = FramePool::new(64, 2000);
    let paper = Paper::default();
    let [near, mut far] = memory_pair(["near", "far"], 64);
    let options = CaptureOptions {
        backlog: 4999,
        ..options(0)
    };
    let path = Path::new("test");
    let started = CaptureWriter::start(paper.clone(), path, near.name(), options);
    let mut near = Near::new(started.unwrap(), near);
    let frame = |n: u16| vec![n.to_le_bytes()[0]; 60 + usize::from(n) * 7 % 1000];
    for n in 0..600 {
        // Until the writer has made room.
        while near.status().recorded < u64::from(n) + 1 {
            let mut one = burst(&mut pool, &[&frame(n)]);
            assert_eq!(near.send_burst(&mut one, &mut pool).frames, 1);
            let _ = far.recv_burst(&mut pool, &mut one, 1);
            pool.free_all(&mut one);
            std::thread::yield_now();
        }
    }
    near.finish();
    let (_, frames) = parse(&paper);
    assert_eq!(frames.len(), 600);
    for (n, recorded) in (0..).zip(&frames) {
        assert_eq!(recorded.data, frame(n));
    }
}

/// A device that takes two frames, and wants the others adapted first.
#[derive(Debug)]
struct Choosy(MemoryDevice, bool);

impl FrameDevice for Choosy {
    fn recv_burst(&mut self, pool: &mut FramePool, burst: &mut Burst, limit: usize) -> Received {
        self.0.recv_burst(pool, burst, limit)
    }

    fn send(
        &mut self,
        burst: &mut Burst,
        pool: &mut FramePool,
        _batch: Option<&mut Batch<'_>>,
    ) -> Sent {
        if std::mem::replace(&mut self.1, true) {
            return self.0.send_burst(burst, pool);
        }
        let mut first: Burst = burst.drain(..2).collect();
        let sent = self.0.send_burst(&mut first, pool);
        let egress = Egress::Adapt;
        Sent { egress, ..sent }
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.fd()
    }

    fn inspector(&self) -> Inspector {
        self.0.inspector()
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn kind(&self) -> DeviceKind {
        self.0.kind()
    }

    fn counters(&self) -> &DeviceCounters {
        self.0.counters()
    }
}

#[test]
fn frames_that_are_to_be_adapted_are_recorded_once() {
    let mut pool = FramePool::new(64, 2000);
    let paper = Paper::default();
    let [near, _far] = memory_pair(["near", "far"], 64);
    let path = Path::new("test");
    let (sink, writer) = CaptureWriter::start(paper.clone(), path, "near", options(0)).unwrap();
    let mut near = Captured {
        device: Choosy(near, false),
        sink: Some(sink),
    };
    let mut frames = burst(&mut pool, &[&[1; 60], &[2; 60], &[3; 60], &[4; 60]]);
    assert_eq!(
        near.send_burst(&mut frames, &mut pool).egress,
        Egress::Adapt
    );
    assert_eq!(writer.status().recorded, 2);
    assert_eq!(near.send_burst(&mut frames, &mut pool).frames, 2);
    drop(near);
    writer.finish(LIMIT).unwrap();
    let (_, frames) = parse(&paper);
    let first: Vec<_> = frames.iter().map(|frame| frame.data[0]).collect();
    assert_eq!(first, [1, 2, 3, 4]);
}

/// Nobody waits for a writer that is stuck.
#[test]
fn a_stuck_writer_is_left_behind() {
    let mut pool = FramePool::new(64, 2000);
    let (sink, told) = slow(&Paper::default());
    let (mut near, _far) = pair(sink, 0);
    let _ = near.send_burst(&mut burst(&mut pool, &[&[1; 60]]), &mut pool);
    let Near { device, writer } = near;
    drop(device);
    let error = writer.finish(Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("is left behind"), "{error}");
    drop(told);
}

#[test]
fn a_fifo_that_nobody_reads_is_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = CaptureWriter::create(&path, "near", options(0)).unwrap_err();
    assert!(matches!(error, CaptureError::NoReader { .. }), "{error}");
}
