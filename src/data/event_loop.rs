//! A data thread: devices in, engine, devices out.
//!
//! # Theory of operation
//!
//! One [`EventLoop`] owns the devices of its side and the [`Engine`] that handles their frames. A
//! round is: carry out one thing that the control thread sent; give each ready device one turn; let
//! the engine advance; wait.
//!
//! - **Edge-triggered**: epoll tells once that a device became readable, so the device stays in
//!   the ready list until it said that it is drained. A turn is bounded, and the ready devices
//!   take turns: one that is always busy starves no other.
//! - **Growing turns**: a device's first turn after a quiet time is one frame, which leaves at
//!   once; while there is more, each turn doubles, up to a full burst. So a lone frame waits for
//!   no second `read`, and a flood is handled in bursts. Of a packet socket the first turn is two
//!   frames: one call then takes the lone frame and learns that there is no other.
//! - **Work is counted, not frames**: a super-frame takes as long as many short frames. Turns
//!   shrink while they hold more than [`TURN_WORK`](turns), and epoll is asked whenever that much has
//!   been done. So what arrives on an idle device waits for about one turn of each busy one,
//!   whatever the others send.
//! - **A full ring holds turns back**: with two threads, a device whose frames would find the ring
//!   full is not read. What overflows then is the device's own queue, not the ring that all share.
//!   A ring that stays full has nobody who takes: after [`HOLD_LIMIT`](turns) devices are read all the
//!   same, and what finds the ring full is dropped and counted.
//! - **Transmission follows each turn**, so that buffers return to the pool while they are still in
//!   cache, and a device that takes nothing costs counted drops, never a stalled source.
//! - **Sleep**: when nothing is ready the thread announces its sleep on the channel
//!   ([`nos_shim::channel`]), looks once more, and blocks until a device, a doorbell, a command or
//!   the engine's next timer. Without any of these it never wakes.
//! - **No system call but reading, writing and waiting**: the [`LoopHandle`] watches devices with
//!   epoll, and closes them, on the control thread. A device that goes away is taken out of the loop
//!   and sent there with the news. One that is down is left alone until frames raise an event.
//! - **One command a round**: reading a table of a hundred pages is a hundred commands, and each
//!   waits for the devices' turns between them.
//! - **It can stand still** ([`Mode`]) while devices change hands between processes: frames stay
//!   where they are, in the kernel's queues or in the engine's.
//! - **A watchdog** ([`watchdog`]) measures turns, and counts those that took too long.

mod devices;
mod handle;
mod turns;
mod watchdog;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, unbounded};
use mio::{Events, Poll, Waker};
use nos_shim::channel::Wake;
use nos_shim::frame::{Burst, FramePool};
use nos_shim::ident::Interface;
use nos_shim::time::Instant;
use tracing::{debug, warn};

pub use devices::{DeviceReport, LoopDevice};
pub use handle::{AddDeviceError, Event, Listener, LoopHandle, SetCaptureError, Stopped};
pub use watchdog::{Durations, SLOW, Stage, TurnTimes};

use devices::{Devices, WAKE, interface};
use handle::{CaptureChange, Command};
use turns::{HOLD_LIMIT, TURN_WORK};
use watchdog::Watchdog;

use crate::data::device::{CaptureSink, FrameDevice, Injection, Uring};
use crate::data::engine::Engine;

/// Events taken from the kernel at a time.
const EVENTS: usize = 256;

/// Rounds between two looks at epoll while devices are busy, at most.
const ROUNDS_PER_POLL: u32 = 8;

/// How long a thread without free buffers waits for the other side to return some.
const STARVED_WAIT: Duration = Duration::from_millis(1);

/// How long a thread that stands still waits for the other side and the control thread, which ring
/// for the latter alone.
const STILL_WAIT: Duration = Duration::from_millis(1);

/// What a data thread does with its devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It receives and sends.
    #[default]
    Running,
    /// It receives nothing, and sends what it has.
    Draining,
    /// It neither receives nor sends: the devices are still another process's. What the engine has to
    /// send waits.
    Still,
}

/// What the other data thread rings.
struct Bell(Arc<Waker>);

impl Wake for Bell {
    fn wake(&self) {
        if let Err(error) = self.0.wake() {
            warn!(%error, "cannot ring the doorbell");
        }
    }
}

/// What is left of a data thread.
#[derive(Debug)]
#[must_use = "holds the devices, which are closed when this is dropped"]
pub struct Ended {
    /// Whether it was told to stop, or why it could not go on: epoll itself failed, which leaves
    /// nothing to wait on.
    pub result: io::Result<()>,
    /// The devices that it served.
    pub devices: Vec<(Interface, LoopDevice)>,
}

/// The devices and the engine of one data thread.
pub struct EventLoop {
    poll: Poll,
    events: Events,
    commands: Receiver<Command>,
    listener: Box<dyn Listener>,
    engine: Engine,
    pool: FramePool,
    /// What hands bursts to the kernel, where there is such.
    uring: Option<Uring>,
    devices: Devices,
    ready: VecDeque<Interface>,
    burst: Burst,
    epoch: std::time::Instant,
    /// The clock, as it was at the end of the last stage.
    now: Instant,
    watchdog: Watchdog,
    /// Since epoll was asked.
    rounds: u32,
    /// Work since epoll was asked.
    work: usize,
    starved: bool,
    /// Devices whose turn was held back in this round.
    held_back: usize,
    /// Since when the ring has been full.
    held_since: Option<Instant>,
    mode: Mode,
}

impl std::fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventLoop")
            .field("ready", &self.ready)
            .finish_non_exhaustive()
    }
}

impl EventLoop {
    /// A loop around `engine`, which takes its buffers from `pool` and measures time from `epoch`
    /// (the same for all loops).
    ///
    /// # Errors
    ///
    /// When the kernel gives no epoll instance or eventfd.
    pub fn new(
        engine: Engine,
        pool: FramePool,
        epoch: std::time::Instant,
        listener: Box<dyn Listener>,
    ) -> io::Result<(Self, LoopHandle)> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let registry = poll.registry().try_clone()?;
        let (sender, commands) = unbounded();
        let mut engine = engine;
        engine.set_waker(|| Box::new(Bell(Arc::clone(&waker))));
        let this = Self {
            poll,
            events: Events::with_capacity(EVENTS),
            commands,
            listener,
            engine,
            pool,
            uring: None,
            devices: Devices::default(),
            ready: VecDeque::new(),
            burst: Burst::new(),
            epoch,
            now: Instant::ZERO,
            watchdog: Watchdog::default(),
            rounds: 0,
            work: 0,
            starved: false,
            held_back: 0,
            held_since: None,
            mode: Mode::default(),
        };
        Ok((this, LoopHandle::new(sender, waker, registry)))
    }

    /// Has the loop hand bursts to the kernel by io_uring.
    #[must_use]
    pub fn with_uring(mut self, uring: Option<Uring>) -> Self {
        self.uring = uring;
        self
    }

    /// Serves devices until told to stop, or until epoll fails.
    pub fn run(mut self) -> Ended {
        if let Some(uring) = &mut self.uring {
            uring.enable();
        }
        let result = loop {
            self.now = self.clock();
            self.watchdog.begin(self.now);
            if !self.carry_out_command() {
                break Ok(());
            }
            if !self.serve_ready() {
                self.advance();
            }
            self.report();
            if let Err(error) = self.wait() {
                break Err(error);
            }
        };
        debug!("data thread ends");
        Ended {
            result,
            devices: self.devices.take(),
        }
    }

    fn clock(&self) -> Instant {
        let elapsed = self.epoch.elapsed().as_nanos();
        Instant::from_nanos(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    /// Carries out one command, if there is one. Returns whether to go on.
    fn carry_out_command(&mut self) -> bool {
        let Ok(command) = self.commands.try_recv() else {
            return true;
        };
        // Nobody waits any more for an answer that cannot be sent.
        match command {
            Command::Engine(work) => work(&mut self.engine),
            Command::AddDevice(interface, device, reply) => {
                let _ = reply.try_send(self.add_device(interface, device));
            }
            Command::RemoveDevice(interface, reply) => {
                let _ = reply.try_send(self.take_out(interface));
            }
            Command::SetCapture(interface, sink, reply) => {
                let _ = reply.try_send(self.set_capture(interface, sink));
            }
            Command::Inject(interface, injection, reply) => {
                let _ = reply.try_send(self.inject(interface, injection));
            }
            Command::Devices(cursor, reply) => {
                let _ = reply.try_send(self.devices.page(cursor));
            }
            Command::TurnTimes(reply) => {
                let _ = reply.try_send(self.watchdog.times());
            }
            Command::Uring(reply) => {
                let _ = reply.try_send(self.uring.as_ref().map(Uring::report));
            }
            Command::SetMode(mode, reply) => {
                self.mode = mode;
                let _ = reply.try_send(());
            }
            Command::Stop => return false,
        }
        self.end_stage(Stage::Commands);
        self.watchdog.begin(self.now);
        true
    }

    /// Returns the device if there is one already.
    fn add_device(&mut self, interface: Interface, device: LoopDevice) -> Option<LoopDevice> {
        let capabilities = device.capabilities();
        let refused = self.devices.insert(interface, device);
        if refused.is_none() {
            self.admit(interface);
            self.engine.set_capabilities(interface, capabilities);
            self.ready.push_back(interface);
        }
        refused
    }

    /// Notes how the ring sends to a device that has just come.
    fn admit(&mut self, interface: Interface) {
        if let (Some(uring), Some(served)) = (&self.uring, self.devices.get_mut(interface)) {
            served.slot = uring.slot(served.device.kind(), served.device.fd());
        }
    }

    fn take_out(&mut self, interface: Interface) -> Option<LoopDevice> {
        let served = self.devices.remove(interface)?;
        self.ready.retain(|&ready| ready != interface);
        Some(served.device)
    }

    /// Returns the injection if there is no device that asked for it.
    fn inject(&mut self, interface: Interface, injection: Injection) -> Option<Injection> {
        let Some(served) = self.devices.get_mut(interface) else {
            return Some(injection);
        };
        let refused = served.device.inject(injection).err();
        let capabilities = served.device.capabilities();
        self.engine.set_capabilities(interface, capabilities);
        refused
    }

    fn set_capture(&mut self, interface: Interface, sink: Option<CaptureSink>) -> CaptureChange {
        match self.devices.get_mut(interface) {
            Some(served) => CaptureChange {
                done: true,
                left: std::mem::replace(&mut served.device.sink, sink),
            },
            None => CaptureChange {
                done: false,
                left: sink,
            },
        }
    }

    fn report(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            self.listener.notify(Event::Relay(event));
        }
    }

    /// How long epoll may block; `None` in the outer option when it need not be asked at all.
    fn patience(&mut self) -> Option<Option<Duration>> {
        if self.mode == Mode::Still {
            // What has to be sent would keep the engine from sleeping.
            return Some(Some(STILL_WAIT));
        }
        let waits_for_room = self.held_back > 0 && self.held_back == self.ready.len();
        let running = self.mode == Mode::Running;
        let has_turns = running && !self.ready.is_empty() && !waits_for_room && !self.starved;
        if has_turns || !self.commands.is_empty() {
            self.rounds += 1;
            let due = self.work >= TURN_WORK || self.rounds >= ROUNDS_PER_POLL;
            return due.then_some(Some(Duration::ZERO));
        }
        if self.starved {
            return Some(Some(STARVED_WAIT));
        }
        if !self.engine.try_sleep() {
            return None;
        }
        if waits_for_room && !self.engine.try_await_room() {
            self.engine.awake();
            return None;
        }
        let room = self.held_since.filter(|_| waits_for_room);
        let room = room.map(|since| since + HOLD_LIMIT);
        let next = [self.engine.poll_at(), room].into_iter().flatten().min();
        Some(next.map(|at| at.since(self.now)))
    }

    fn wait(&mut self) -> io::Result<()> {
        let Some(timeout) = self.patience() else {
            return Ok(());
        };
        (self.work, self.rounds) = (0, 0);
        let polled = self.poll.poll(&mut self.events, timeout);
        self.engine.awake();
        match polled {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                self.note_ready();
                Ok(())
            }
        }
    }

    fn note_ready(&mut self) {
        for event in &self.events {
            let Some(interface) = interface(event.token()) else {
                continue;
            };
            let served = self.devices.get_mut(interface);
            if let Some(served) = served.filter(|served| !served.ready) {
                served.ready = true;
                self.ready.push_back(interface);
            }
        }
    }
}

#[cfg(test)]
mod tests;
