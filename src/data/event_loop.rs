//! A data thread: devices in, engine, devices out.
//!
//! # Theory of operation
//!
//! One [`EventLoop`] owns the devices of its side and the [`Engine`] that handles their frames. A
//! round is: carry out what the control thread sent; give each ready device one turn; let the
//! engine advance; wait.
//!
//! - **Edge-triggered**: epoll tells once that a device became readable, so the device stays in
//!   the ready list until it said that it is drained. A turn is bounded, and the ready devices
//!   take turns: one that is always busy starves no other.
//! - **Growing turns**: a device's first turn after a quiet time is one frame, which leaves at
//!   once; while there is more, each turn doubles, up to a full burst. So a lone frame waits for
//!   no second `read`, and a flood is handled in bursts. Of a packet socket the first turn is two
//!   frames: one call then takes the lone frame and learns that there is no other.
//! - **Work is counted, not frames**: a super-frame takes as long as many short frames. Turns
//!   shrink while they hold more than [`TURN_WORK`], and epoll is asked whenever that much has
//!   been done. So what arrives on an idle device waits for about one turn of each busy one,
//!   whatever the others send.
//! - **A full ring holds turns back**: with two threads, a device whose frames would find the ring
//!   full is not read. What overflows then is the device's own queue, not the ring that all share.
//!   A ring that stays full has nobody who takes: after [`HOLD_LIMIT`] devices are read all the
//!   same, and what finds the ring full is dropped and counted.
//! - **Transmission follows each turn**, so that buffers return to the pool while they are still in
//!   cache, and a device that takes nothing costs counted drops, never a stalled source.
//! - **Sleep**: when nothing is ready the thread announces its sleep on the channel
//!   ([`nos_shim::channel`]), looks once more, and blocks until a device, a doorbell, a command or
//!   the engine's next timer. Without any of these it never wakes.
//! - **A device that goes away** is taken out of the loop and reported; it cannot make it spin. One
//!   that is down is asked once a second whether it has gone, as the kernel does not tell.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use nos_shim::channel::Wake;
use nos_shim::drop::DropReason;
use nos_shim::frame::{BATCH, Burst, Frame, FramePool, octets};
use nos_shim::id_table::IdTable;
use nos_shim::ident::{AttachmentId, Interface, UplinkId};
use nos_shim::offload::Capabilities;
use nos_shim::time::Instant;
use tracing::{debug, warn};

use crate::data::device::{DeviceCounters, DeviceKind, Egress, FrameDevice, Link, Next};
use crate::data::engine::{Engine, EngineEvent};

/// Events taken from the kernel at a time.
const EVENTS: usize = 256;

/// Rounds between two looks at epoll while devices are busy, at most.
const ROUNDS_PER_POLL: u32 = 8;

/// Work of a turn, as [`work_of`] counts it.
const TURN_WORK: usize = BATCH;

/// Octets that cost about as much as handling a frame does.
const OCTETS_PER_WORK: u64 = 4096;

/// How long a thread without free buffers waits for the other side to return some.
const STARVED_WAIT: Duration = Duration::from_millis(1);

/// How long a full ring may hold turns back: much longer than a taker that lives needs.
const HOLD_LIMIT: Duration = Duration::from_millis(100);

/// How often a device that is down is asked whether it has gone.
const LINK_CHECK: Duration = Duration::from_secs(1);

/// How long the control thread waits for a data thread's answer. Data threads never block, so
/// only one that has died takes this long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What happened on a data thread that the control thread must know.
#[derive(Debug)]
pub enum Event {
    /// The engine's news.
    Engine(EngineEvent),
    /// A device went away and was removed from the loop.
    DeviceGone(Interface, String),
    /// The thread cannot go on.
    LoopFailed(String),
}

enum Command {
    Engine(Box<dyn FnOnce(&mut Engine) + Send>),
    AddDevice(Interface, Box<dyn FrameDevice>, Sender<io::Result<()>>),
    RemoveDevice(Interface, Sender<()>),
    Devices(Sender<Vec<DeviceReport>>),
    Stop,
}

/// The state of one device.
#[derive(Clone, Debug)]
pub struct DeviceReport {
    /// Which interface it serves.
    pub interface: Interface,
    /// What it is.
    pub kind: DeviceKind,
    /// What it takes on egress.
    pub capabilities: Capabilities,
    /// Whether the kernel's interface is there.
    pub link: Link,
    /// What became of its frames.
    pub counters: DeviceCounters,
    /// Frames that the kernel lost before the device saw them.
    pub kernel_drops: u64,
}

impl DeviceReport {
    fn of(interface: Interface, slot: &mut Slot) -> Self {
        let device = &mut slot.device;
        Self {
            interface,
            kind: device.kind(),
            capabilities: device.capabilities(),
            link: device.link(),
            counters: *device.counters(),
            kernel_drops: device.kernel_drops(),
        }
    }
}

/// A data thread did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the data thread has stopped")]
pub struct Stopped;

/// The control thread's hold on a data thread.
#[derive(Clone)]
pub struct LoopHandle {
    commands: Sender<Command>,
    waker: Arc<Waker>,
}

impl std::fmt::Debug for LoopHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoopHandle").finish_non_exhaustive()
    }
}

impl LoopHandle {
    fn send(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).map_err(|_| Stopped)?;
        self.waker.wake().map_err(|_| Stopped)
    }

    fn answer<T>(answer: &Receiver<T>) -> Result<T, Stopped> {
        answer.recv_timeout(ANSWER_TIMEOUT).map_err(|_| Stopped)
    }

    /// Runs `work` on the data thread between two bursts, and returns what it returned.
    ///
    /// # Errors
    ///
    /// [`Stopped`] when the thread has ended.
    pub fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (reply, answer) = bounded(1);
        let work = move |engine: &mut Engine| {
            // Nobody waits any more if this fails.
            let _ = reply.try_send(work(engine));
        };
        self.send(Command::Engine(Box::new(work)))?;
        Self::answer(&answer)
    }

    /// Gives the data thread a device to serve as `interface`.
    ///
    /// # Errors
    ///
    /// What epoll says of the device, or that the thread has ended.
    pub fn add_device(&self, interface: Interface, device: Box<dyn FrameDevice>) -> io::Result<()> {
        let (reply, answer) = bounded(1);
        let sent = self.send(Command::AddDevice(interface, device, reply));
        sent.and_then(|()| Self::answer(&answer))
            .map_err(io::Error::other)?
    }

    /// Takes a device away and closes it. Nothing happens if there is none.
    ///
    /// # Errors
    ///
    /// [`Stopped`] when the thread has ended, and the device with it.
    pub fn remove_device(&self, interface: Interface) -> Result<(), Stopped> {
        let (reply, answer) = bounded(1);
        self.send(Command::RemoveDevice(interface, reply))?;
        Self::answer(&answer)
    }

    /// The state of all devices of the thread.
    ///
    /// # Errors
    ///
    /// [`Stopped`] when the thread has ended.
    pub fn devices(&self) -> Result<Vec<DeviceReport>, Stopped> {
        let (reply, answer) = bounded(1);
        self.send(Command::Devices(reply))?;
        Self::answer(&answer)
    }

    /// Ends the thread. Devices are closed with it.
    pub fn stop(&self) {
        // A thread that has ended already needs no telling.
        let _ = self.send(Command::Stop);
    }
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

/// Whom the data threads tell what happened.
pub trait Listener: Send {
    /// Takes an event, without blocking.
    fn notify(&self, event: Event);
}

struct Slot {
    device: Box<dyn FrameDevice>,
    /// Frames of the next turn.
    turn: usize,
    ready: bool,
    down: bool,
}

impl Slot {
    /// Nothing is left: the next event begins anew.
    fn rest(&mut self) {
        (self.turn, self.ready) = (self.device.kind().first_turn(), false);
    }
}

/// How much work frames are: one for each, and more for long ones.
fn work_of(burst: &[Frame]) -> usize {
    let long = octets(burst) / OCTETS_PER_WORK;
    burst.len() + usize::try_from(long).unwrap_or(TURN_WORK)
}

/// The frames of the turn after one of `turn` frames with so much work.
fn next_turn(turn: usize, work: usize) -> usize {
    if work > TURN_WORK {
        (turn / 2).max(1)
    } else {
        (turn * 2).min(BATCH)
    }
}

/// The devices and the engine of one data thread.
pub struct EventLoop {
    poll: Poll,
    events: Events,
    commands: Receiver<Command>,
    listener: Box<dyn Listener>,
    engine: Engine,
    pool: FramePool,
    attachments: IdTable<AttachmentId, Slot>,
    uplinks: IdTable<UplinkId, Slot>,
    ready: VecDeque<Interface>,
    down: Vec<Interface>,
    next_link_check: Instant,
    burst: Burst,
    epoch: std::time::Instant,
    rounds: u32,
    /// Work since epoll was asked.
    work: usize,
    starved: bool,
    /// Devices whose turn was held back in this round.
    held_back: usize,
    /// Since when the ring has been full.
    held_since: Option<Instant>,
}

impl std::fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventLoop")
            .field("ready", &self.ready)
            .finish_non_exhaustive()
    }
}

const WAKE: Token = Token(0);

fn token(interface: Interface) -> Token {
    match interface {
        Interface::Attachment(id) => Token((id.0 as usize) << 2 | 1),
        Interface::Uplink(id) => Token((id.0 as usize) << 2 | 2),
    }
}

fn interface(token: Token) -> Option<Interface> {
    let id = u32::try_from(token.0 >> 2).ok()?;
    match token.0 & 3 {
        1 => Some(Interface::Attachment(AttachmentId(id))),
        2 => Some(Interface::Uplink(UplinkId(id))),
        _ => None,
    }
}

fn slot_of<'a>(
    attachments: &'a mut IdTable<AttachmentId, Slot>,
    uplinks: &'a mut IdTable<UplinkId, Slot>,
    interface: Interface,
) -> Option<&'a mut Slot> {
    match interface {
        Interface::Attachment(id) => attachments.get_mut(id),
        Interface::Uplink(id) => uplinks.get_mut(id),
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
            attachments: IdTable::new(),
            uplinks: IdTable::new(),
            ready: VecDeque::new(),
            down: Vec::new(),
            next_link_check: Instant::ZERO,
            burst: Burst::new(),
            epoch,
            rounds: 0,
            work: 0,
            starved: false,
            held_back: 0,
            held_since: None,
        };
        Ok((
            this,
            LoopHandle {
                commands: sender,
                waker,
            },
        ))
    }

    /// Serves devices until told to stop.
    ///
    /// # Errors
    ///
    /// When epoll itself fails, which leaves nothing to wait on.
    pub fn run(mut self) -> io::Result<()> {
        while self.obey() {
            let now = self.now();
            self.check_links(now);
            if !self.serve_ready(now) {
                self.advance(now);
            }
            self.report();
            self.wait()?;
        }
        debug!("data thread ends");
        Ok(())
    }

    fn now(&self) -> Instant {
        let elapsed = self.epoch.elapsed().as_nanos();
        Instant::from_nanos(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    /// Carries out commands. Returns whether to go on.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Engine(work) => work(&mut self.engine),
                Command::AddDevice(interface, device, reply) => {
                    let _ = reply.try_send(self.add_device(interface, device));
                }
                Command::RemoveDevice(interface, reply) => {
                    self.remove_device(interface);
                    let _ = reply.try_send(());
                }
                Command::Devices(reply) => {
                    let _ = reply.try_send(self.reports());
                }
                Command::Stop => return false,
            }
        }
        true
    }

    fn reports(&mut self) -> Vec<DeviceReport> {
        let attachments = self.attachments.iter_mut();
        let attachments = attachments.map(|(id, slot)| (Interface::Attachment(id), slot));
        let uplinks = self.uplinks.iter_mut();
        let uplinks = uplinks.map(|(id, slot)| (Interface::Uplink(id), slot));
        let all = attachments.chain(uplinks);
        all.map(|(interface, slot)| DeviceReport::of(interface, slot))
            .collect()
    }

    fn add_device(&mut self, interface: Interface, device: Box<dyn FrameDevice>) -> io::Result<()> {
        self.remove_device(interface);
        if let Some(fd) = device.fd() {
            let mut source = SourceFd(&fd.as_raw_fd());
            self.poll
                .registry()
                .register(&mut source, token(interface), Interest::READABLE)?;
        }
        self.engine
            .set_capabilities(interface, device.capabilities());
        let turn = device.kind().first_turn();
        // What came in before epoll watched gives no edge.
        let slot = Slot {
            device,
            turn,
            ready: true,
            down: false,
        };
        match interface {
            Interface::Attachment(id) => drop(self.attachments.insert(id, slot)),
            Interface::Uplink(id) => drop(self.uplinks.insert(id, slot)),
        }
        self.ready.push_back(interface);
        Ok(())
    }

    fn remove_device(&mut self, interface: Interface) {
        let slot = match interface {
            Interface::Attachment(id) => self.attachments.remove(id),
            Interface::Uplink(id) => self.uplinks.remove(id),
        };
        let Some(slot) = slot else { return };
        self.ready.retain(|&ready| ready != interface);
        self.down.retain(|&down| down != interface);
        let Some(fd) = slot.device.fd() else { return };
        if let Err(error) = self
            .poll
            .registry()
            .deregister(&mut SourceFd(&fd.as_raw_fd()))
        {
            debug!(%interface, %error, "epoll had forgotten the device");
        }
    }

    fn gone(&mut self, interface: Interface, reason: &str) {
        self.remove_device(interface);
        self.listener
            .notify(Event::DeviceGone(interface, reason.to_owned()));
    }

    /// Gives each device that is ready now one turn, and the engine one after each. Returns whether
    /// there were any.
    fn serve_ready(&mut self, now: Instant) -> bool {
        (self.starved, self.held_back) = (false, 0);
        let count = self.ready.len();
        if count == 0 {
            self.held_since = None;
        }
        for _ in 0..count {
            let Some(interface) = self.ready.pop_front() else {
                break;
            };
            if self.may_serve(interface, now) {
                self.serve(interface, now);
                self.advance(now);
            } else {
                self.held_back += 1;
                self.ready.push_back(interface);
            }
        }
        count > self.held_back
    }

    /// Whether what a device has would find room, or has waited for it long enough.
    fn may_serve(&mut self, interface: Interface, now: Instant) -> bool {
        if self.engine.has_room(interface) {
            self.held_since = None;
            return true;
        }
        now >= *self.held_since.get_or_insert(now) + HOLD_LIMIT
    }

    fn serve(&mut self, interface: Interface, now: Instant) {
        let slot = slot_of(&mut self.attachments, &mut self.uplinks, interface);
        let Some(slot) = slot else { return };
        let received = slot
            .device
            .recv_burst(&mut self.pool, &mut self.burst, slot.turn);
        let work = work_of(&self.burst);
        self.work += work;
        match received.next {
            Next::More => {
                slot.turn = next_turn(slot.turn, work);
                self.ready.push_back(interface);
            }
            Next::NoBuffer => {
                self.starved = true;
                self.ready.push_back(interface);
            }
            Next::Drained => slot.rest(),
            Next::Down => {
                slot.rest();
                if !std::mem::replace(&mut slot.down, true) {
                    self.down.push(interface);
                    self.next_link_check = now + LINK_CHECK;
                }
            }
            Next::Gone(error) => self.gone(interface, error.desc()),
        }
        if !self.burst.is_empty() {
            self.engine.handle_burst(interface, &mut self.burst, now);
        }
    }

    /// Asks the devices that are down whether they are still there.
    fn check_links(&mut self, now: Instant) {
        if self.down.is_empty() || now < self.next_link_check {
            return;
        }
        self.next_link_check = now + LINK_CHECK;
        for interface in std::mem::take(&mut self.down) {
            let slot = slot_of(&mut self.attachments, &mut self.uplinks, interface);
            let Some(slot) = slot else { continue };
            match slot.device.link() {
                Link::Up => slot.down = false,
                Link::Down => self.down.push(interface),
                Link::Gone => self.gone(interface, "the interface was deleted"),
            }
        }
    }

    fn advance(&mut self, now: Instant) {
        self.engine.advance(now);
        self.transmit();
        self.engine.ring();
    }

    fn transmit(&mut self) {
        let mut gone = None;
        while let Some((interface, burst)) = self.engine.poll_transmit() {
            let slot = slot_of(&mut self.attachments, &mut self.uplinks, interface);
            let Some(slot) = slot else {
                self.engine
                    .discard_unsent(interface, DropReason::DeviceGone);
                continue;
            };
            match slot.device.send_burst(burst, &mut self.pool).egress {
                Egress::Ready | Egress::Down => {}
                Egress::Adapt => {
                    // The rest comes again with the next burst.
                    self.engine
                        .set_capabilities(interface, slot.device.capabilities());
                }
                Egress::Gone(error) => gone = Some((interface, error)),
            }
        }
        if let Some((interface, error)) = gone {
            self.gone(interface, error.desc());
        }
    }

    fn report(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            self.listener.notify(Event::Engine(event));
        }
    }

    /// How long epoll may block; `None` in the outer option when it need not be asked at all.
    fn patience(&mut self) -> Option<Option<Duration>> {
        if self.starved {
            return Some(Some(STARVED_WAIT));
        }
        let waits_for_room = self.held_back > 0 && self.held_back == self.ready.len();
        if !self.ready.is_empty() && !waits_for_room {
            self.rounds += 1;
            let due = self.work >= TURN_WORK || self.rounds >= ROUNDS_PER_POLL;
            return due.then_some(Some(Duration::ZERO));
        }
        if !self.commands.is_empty() || !self.engine.try_sleep() {
            return None;
        }
        if waits_for_room && !self.engine.try_await_room() {
            self.engine.awake();
            return None;
        }
        let check = (!self.down.is_empty()).then_some(self.next_link_check);
        let room = self.held_since.filter(|_| waits_for_room);
        let room = room.map(|since| since + HOLD_LIMIT);
        let next = [self.engine.poll_at(), check, room];
        let next = next.into_iter().flatten().min();
        Some(next.map(|at| at.since(self.now())))
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
            let slot = slot_of(&mut self.attachments, &mut self.uplinks, interface);
            if let Some(slot) = slot.filter(|slot| !slot.ready) {
                slot.ready = true;
                self.ready.push_back(interface);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nos_shim::frame::MAX_FRAME;

    #[test]
    fn turns_grow_to_a_burst_and_shrink_under_super_frames() {
        let mut turn = 1;
        for _ in 0..10 {
            turn = next_turn(turn, turn);
        }
        assert_eq!(turn, BATCH);
        let mut pool = FramePool::new(BATCH, MAX_FRAME);
        let super_frame = vec![0; 1 << 16];
        let mut turns = Vec::new();
        for _ in 0..12 {
            let burst: Burst = (0..turn)
                .map(|_| pool.copy_from(&super_frame).unwrap())
                .collect();
            turn = next_turn(turn, work_of(&burst));
            turns.push(turn);
        }
        assert_eq!(turns[8..], [2, 4, 2, 4]);
    }

    #[test]
    fn a_token_names_one_interface() {
        for interface_in in [
            Interface::Attachment(AttachmentId(0)),
            Interface::Attachment(AttachmentId(77)),
            Interface::Uplink(UplinkId(0)),
            Interface::Uplink(UplinkId(3)),
        ] {
            assert_eq!(interface(token(interface_in)), Some(interface_in));
        }
        assert_eq!(interface(WAKE), None);
    }
}
