//! A data thread with devices in memory, from the control thread's side.

use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::errno::Errno;
use nos_shim::channel::{NosEnd, pair};
use nos_shim::frame::MAX_FRAME;
use nos_shim::ident::AttachmentId;
use nos_shim::offload::Capabilities;

use super::*;
use crate::data::device::{
    Batch, CaptureOptions, CaptureWriter, DeviceCounters, DeviceKind, Egress, Inspector,
    MemoryDevice, Next, Received, Sent, pollable_memory_pair,
};
use crate::data::relay::Relay;

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

const A: Interface = Interface::Attachment(AttachmentId::new(0, 0));
const B: Interface = Interface::Attachment(AttachmentId::new(1, 0));

struct Sender(mpsc::Sender<Event>);

impl Listener for Sender {
    fn notify(&self, event: Event) {
        let _ = self.0.send(event);
    }
}

struct Setup {
    handle: LoopHandle,
    events: mpsc::Receiver<Event>,
    thread: JoinHandle<Ended>,
    pool: FramePool,
    /// The relay hears if it goes.
    _nos: NosEnd,
}

impl Setup {
    fn new() -> Self {
        let pool = FramePool::new(256, MAX_FRAME);
        let (relay, nos) = pair(4);
        let engine = Engine::relay_side(Relay::new(relay, pool.clone()));
        let (sender, events) = mpsc::channel();
        let epoch = std::time::Instant::now();
        let listener = Box::new(Sender(sender));
        let (event_loop, handle) = EventLoop::new(engine, pool.clone(), epoch, listener).unwrap();
        let thread = std::thread::spawn(move || event_loop.run());
        Self {
            handle,
            events,
            thread,
            pool,
            _nos: nos,
        }
    }

    fn event(&self) -> Event {
        self.events.recv_timeout(LIMIT).unwrap()
    }

    /// Has a device of the thread receive frames, and waits until it has.
    fn pass(&mut self, far: &mut MemoryDevice, to: Interface, count: usize) {
        let before = self.received(to);
        let frames = (0..count).map(|_| self.pool.copy_from(&[0; 60]).unwrap());
        let mut burst: Burst = frames.collect();
        assert_eq!(far.send_burst(&mut burst, &mut self.pool).frames, count);
        while self.received(to) < before + count as u64 {
            std::thread::yield_now();
        }
    }

    fn received(&self, of: Interface) -> u64 {
        let devices = self.handle.devices().unwrap().into_iter();
        let mut frames = devices
            .filter(|device| device.interface == of)
            .map(|device| device.counters.received.frames);
        frames.next().unwrap()
    }

    fn stop(self) -> Vec<(Interface, LoopDevice)> {
        self.handle.stop();
        let Ended { result, devices } = self.thread.join().unwrap();
        result.unwrap();
        devices
    }
}

fn boxed(device: impl FrameDevice + 'static) -> Box<dyn FrameDevice> {
    Box::new(device)
}

fn devices() -> [MemoryDevice; 2] {
    pollable_memory_pair(["near", "far"], 64).unwrap()
}

#[test]
fn a_device_comes_back_open_and_may_be_given_again() {
    let mut setup = Setup::new();
    let [near, mut far] = devices();
    let inspector = near.inspector();
    setup.handle.add_device(A, boxed(near)).unwrap();
    setup.pass(&mut far, A, 3);
    let device = setup.handle.remove_device(A).unwrap().unwrap();
    assert_eq!(device.counters().received.frames, 3);
    assert_eq!(inspector.link(), crate::data::device::LinkState::Up);
    assert!(setup.handle.remove_device(A).unwrap().is_none());
    setup.handle.add_device(B, device).unwrap();
    setup.pass(&mut far, B, 2);
    let left = setup.stop();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].0, B);
    assert_eq!(left[0].1.counters().received.frames, 5);
}

#[test]
fn a_device_that_is_not_served_comes_back_with_the_reason() {
    let setup = Setup::new();
    let [one, other] = devices();
    setup.handle.add_device(A, boxed(one)).unwrap();
    let error = setup.handle.add_device(A, boxed(other)).unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::AlreadyExists);
    let device = error.device.unwrap();
    assert_eq!(device.name(), "far");
    // Epoll does not watch it any more, or could not watch it again.
    setup.handle.add_device(B, device).unwrap();
    let handle = setup.handle.clone();
    drop(setup.stop());
    let [last, _peer] = devices();
    let error = handle.add_device(A, boxed(last)).unwrap_err();
    assert!(error.device.is_some());
    assert_eq!(handle.remove_device(A).unwrap_err(), Stopped);
}

#[test]
fn a_dead_device_comes_with_the_news() {
    let setup = Setup::new();
    let [near, far] = devices();
    setup.handle.add_device(A, boxed(near)).unwrap();
    drop(far);
    match setup.event() {
        Event::DeviceGone {
            interface,
            device,
            reason,
        } => {
            assert_eq!((interface, device.name()), (A, "near"));
            assert_eq!(reason, Errno::EPIPE.desc());
        }
        other => panic!("{other:?}"),
    }
    assert!(setup.handle.remove_device(A).unwrap().is_none());
    assert!(setup.stop().is_empty());
}

#[test]
fn captures_change_while_the_device_stays() {
    let mut setup = Setup::new();
    let [near, mut far] = devices();
    setup.handle.add_device(A, boxed(near)).unwrap();
    let start = || {
        let name = std::path::Path::new("test");
        CaptureWriter::start(io::sink(), name, "near", CaptureOptions::default()).unwrap()
    };
    let (first, one) = start();
    assert!(setup.handle.set_capture(A, Some(first)).unwrap().is_none());
    setup.pass(&mut far, A, 3);
    let (second, other) = start();
    let first = setup.handle.set_capture(A, Some(second)).unwrap();
    setup.pass(&mut far, A, 4);
    drop(first.unwrap());
    assert_eq!(one.finish(LIMIT).unwrap().recorded, 3);
    let [report] = <[_; 1]>::try_from(setup.handle.devices().unwrap()).unwrap();
    assert_eq!(report.capture.unwrap().recorded, 4);
    let second = setup.handle.set_capture(A, None).unwrap();
    setup.pass(&mut far, A, 5);
    drop(second.unwrap());
    assert_eq!(other.finish(LIMIT).unwrap().recorded, 4);
    let error = setup.handle.set_capture(B, None).unwrap_err();
    assert_eq!(error, SetCaptureError::NoDevice(B));
}

/// A device that is always busy, down, or as the test says, and counts how often it was asked.
#[derive(Debug)]
struct Scripted {
    next: Next,
    asked: Arc<std::sync::atomic::AtomicU64>,
    counters: DeviceCounters,
}

impl FrameDevice for Scripted {
    fn recv_burst(&mut self, _: &mut FramePool, _: &mut Burst, _: usize) -> Received {
        use std::sync::atomic::Ordering;
        self.asked.fetch_add(1, Ordering::Relaxed);
        Received {
            frames: 0,
            octets: 0,
            next: self.next,
        }
    }

    fn send(
        &mut self,
        burst: &mut Burst,
        pool: &mut FramePool,
        _batch: Option<&mut Batch<'_>>,
    ) -> Sent {
        pool.free_all(burst);
        Sent {
            frames: 0,
            octets: 0,
            dropped: 0,
            egress: Egress::Ready,
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::empty()
    }

    fn fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }

    fn inspector(&self) -> Inspector {
        let [device, _] = crate::data::device::memory_pair(["a", "b"], 1);
        device.inspector()
    }

    fn name(&self) -> &'static str {
        "scripted"
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Memory
    }

    fn counters(&self) -> &DeviceCounters {
        &self.counters
    }
}

fn scripted(next: Next) -> (Box<dyn FrameDevice>, impl Fn() -> u64) {
    let asked = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let device = Scripted {
        next,
        asked: Arc::clone(&asked),
        counters: DeviceCounters::default(),
    };
    let asked = move || asked.load(std::sync::atomic::Ordering::Relaxed);
    (boxed(device), asked)
}

/// A table of many pages does not stop the devices: each has a turn between two pages.
#[test]
fn devices_have_their_turns_between_two_pages() {
    let setup = Setup::new();
    let (busy, asked) = scripted(Next::More);
    setup.handle.add_device(A, busy).unwrap();
    let pages = 100;
    let turns = Arc::new(asked);
    let counter = Arc::clone(&turns);
    let rows = setup.handle.pages(move |_, page: Option<u64>| {
        let page = page.unwrap_or(0);
        nos_shim::page::Page {
            rows: vec![counter()],
            next: (page + 1 < pages).then_some(page + 1),
        }
    });
    let rows = rows.unwrap();
    assert_eq!(rows.len() as u64, pages);
    let mut pairs = rows.iter().zip(rows.iter().skip(1));
    assert!(pairs.all(|(before, after)| before < after), "{rows:?}");
    drop(setup.stop());
}

#[test]
fn a_device_that_is_down_is_told_once_and_left_alone() {
    let setup = Setup::new();
    let (down, asked) = scripted(Next::Down);
    setup.handle.add_device(A, down).unwrap();
    assert!(matches!(setup.event(), Event::DeviceDown(of) if of == A));
    for _ in 0..50 {
        setup.handle.turn_times().unwrap();
    }
    assert_eq!(asked(), 1);
    assert!(setup.events.try_recv().is_err());
    assert_eq!(setup.stop().len(), 1);
}

#[test]
fn the_watchdog_sees_a_long_command() {
    let setup = Setup::new();
    let nap = SLOW * 2;
    setup.handle.call(move |_| std::thread::sleep(nap)).unwrap();
    let commands = setup.handle.turn_times().unwrap().stage(Stage::Commands);
    assert!(
        commands.slow >= 1 && commands.longest >= nap,
        "{commands:?}"
    );
    drop(setup.stop());
}
