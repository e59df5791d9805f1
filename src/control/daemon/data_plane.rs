//! The data threads, and the control thread's hold on them.

use std::io;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use mio::Waker;
use nos_shim::channel::{self, NosEnd};
use nos_shim::frame::{FramePool, MAX_FRAME};
use nos_shim::share::Budget;
use nos_shim::shim::{Shim, ShimConfig, Upstream};
use std::sync::Arc;
use tracing::{error, info};

use crate::control::config::{IoUring, NosPlace, RelayConfig, Threads};
use crate::data::device::{CaptureSink, Injection, Unavailable, Uring, UringReport};
use crate::data::engine::Engine;
use crate::data::event_loop::{
    AddDeviceError, DeviceReport, Ended, Event, EventLoop, Listener, LoopDevice, LoopHandle, Mode,
    SetCaptureError, Stopped, TurnTimes,
};
use crate::data::nos_port::NosPort;
use crate::data::relay::{Relay, RelayEvent};
use nos_shim::ident::Interface;
use nos_shim::page::Page;
use nos_shim::time::Instant;

/// The running data path.
#[derive(Debug)]
pub(super) struct DataPlane {
    relay: LoopHandle,
    /// That of the NOS side, where it is here.
    nos: Option<LoopHandle>,
    pool: FramePool,
    /// Bursts that each ring of a channel holds.
    ring: usize,
    /// The end of a NOS that is elsewhere, as long as it has not joined.
    first: Option<NosEnd>,
    threads: Vec<JoinHandle<Ended>>,
    events: Receiver<Event>,
    answers: Receiver<RelayEvent>,
    epoch: std::time::Instant,
    /// Why the threads have no io_uring; `None` if they have.
    no_uring: Option<NoUring>,
}

/// Why no data thread has an io_uring instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoUring {
    /// It is not wanted.
    Off,
    /// It cannot be had.
    Unavailable(Unavailable),
}

/// What a data thread says of itself.
#[derive(Debug)]
pub(super) struct ThreadReport {
    pub(super) name: &'static str,
    pub(super) times: TurnTimes,
    /// What it does by io_uring, or why nothing.
    pub(super) uring: Result<UringReport, NoUring>,
}

/// Puts events into a queue and wakes the control thread.
#[derive(Clone)]
struct Queue {
    events: Sender<Event>,
    /// What the control thread waits for itself.
    answers: Sender<RelayEvent>,
    waker: Arc<Waker>,
}

impl Listener for Queue {
    fn notify(&self, event: Event) {
        // Without a control thread nobody is left to tell.
        let event = match event {
            Event::Relay(answer) if answer.request().is_some() => {
                let _ = self.answers.send(answer);
                return;
            }
            event => event,
        };
        if self.events.send(event).is_ok() {
            let _ = self.waker.wake();
        }
    }
}

impl DataPlane {
    /// Starts one data thread or two. With `upstream`, what is here stands in front of a NOS in another
    /// process. `waker` is called when there are events. A NOS that is elsewhere
    /// is joined by [`Self::join`].
    pub(super) fn start(
        settings: &RelayConfig,
        upstream: Option<Upstream>,
        place: NosPlace,
        waker: Arc<Waker>,
    ) -> io::Result<Self> {
        let buffers = usize::try_from(settings.buffers.get()).unwrap_or(usize::MAX);
        let ring = usize::try_from(settings.ring.get()).unwrap_or(usize::MAX);
        let pool = FramePool::new(buffers, MAX_FRAME);
        let ring = Budget::of(buffers).ring(ring);
        let (relay_end, nos_end) = channel::pair(ring);
        let (sender, events) = unbounded();
        let (answer_sender, answers) = unbounded();
        let listener = Queue {
            events: sender,
            answers: answer_sender,
            waker,
        };
        let epoch = std::time::Instant::now();
        let spawn = |name: &str, event_loop: EventLoop| {
            let listener = listener.clone();
            let run = move || {
                let ended = event_loop.run();
                if let Err(error) = &ended.result {
                    listener.notify(Event::LoopFailed(error.to_string()));
                }
                ended
            };
            thread::Builder::new().name(name.to_owned()).spawn(run)
        };
        let (mut urings, no_uring) = open_urings(settings)?;
        let mut new_loop = |engine, pool| {
            let (event_loop, handle) =
                EventLoop::new(engine, pool, epoch, Box::new(listener.clone()))?;
            io::Result::Ok((event_loop.with_uring(urings.pop()), handle))
        };
        let seed = seed();
        let flows = usize::try_from(settings.flows.get()).unwrap_or(usize::MAX);
        let shim_config = ShimConfig {
            seed,
            flows,
            upstream,
        };
        let shim = |end, pool| Shim::new(end, pool, shim_config);
        match (place, settings.threads) {
            (NosPlace::Elsewhere, _) => {
                let engine = Engine::relay_side(Relay::new(relay_end, pool.clone()));
                let (event_loop, relay) = new_loop(engine, pool.clone())?;
                Ok(Self {
                    relay,
                    nos: None,
                    pool,
                    ring,
                    first: Some(nos_end),
                    threads: vec![spawn("relay", event_loop)?],
                    events,
                    answers,
                    epoch,
                    no_uring,
                })
            }
            (NosPlace::Here, Threads::Single) => {
                let engine = Engine::single(
                    Relay::new(relay_end, pool.clone()),
                    shim(nos_end, pool.clone()),
                );
                let (event_loop, handle) = new_loop(engine, pool.clone())?;
                let threads = vec![spawn("data", event_loop)?];
                Ok(Self {
                    relay: handle.clone(),
                    nos: Some(handle),
                    pool,
                    ring,
                    first: None,
                    threads,
                    events,
                    answers,
                    epoch,
                    no_uring,
                })
            }
            (NosPlace::Here, Threads::Split) => {
                let engine = Engine::relay_side(Relay::new(relay_end, pool.clone()));
                let (relay_loop, relay) = new_loop(engine, pool.clone())?;
                let engine = Engine::nos_side(shim(nos_end, pool.clone()));
                let (nos_loop, nos) = new_loop(engine, pool.clone())?;
                let threads = vec![spawn("relay", relay_loop)?, spawn("nos", nos_loop)?];
                Ok(Self {
                    relay,
                    nos: Some(nos),
                    pool,
                    ring,
                    first: None,
                    threads,
                    events,
                    answers,
                    epoch,
                    no_uring,
                })
            }
        }
    }

    /// Runs `work` on the container side.
    pub(super) fn on_relay<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Relay) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        self.relay
            .call(|engine| engine.relay().map(work))?
            .ok_or(Stopped)
    }

    /// Reads a table of the container side, page by page.
    pub(super) fn relay_pages<R: Send + 'static, C: Send + 'static>(
        &self,
        read: impl Fn(&mut Relay, Option<C>) -> Page<R, C> + Clone + Send + 'static,
    ) -> Result<Vec<R>, Stopped> {
        let page = move |engine: &mut Engine, cursor| match engine.relay() {
            Some(relay) => read(relay, cursor),
            None => Page::end(),
        };
        self.relay.pages(page)
    }

    /// Where the NOS is.
    pub(super) fn nos_place(&self) -> NosPlace {
        match self.nos {
            Some(_) => NosPlace::Here,
            None => NosPlace::Elsewhere,
        }
    }

    /// Has a NOS join that is elsewhere, in place of the one before.
    pub(super) fn join(&mut self) -> io::Result<NosPort> {
        if let Some(first) = self.first.take() {
            return NosPort::new(first, self.pool.clone());
        }
        let (relay_end, nos_end) = channel::pair(self.ring);
        let port = NosPort::new(nos_end, self.pool.clone())?;
        let joined = self.on_relay(|relay| relay.rejoin(relay_end));
        joined.map_err(io::Error::other)?;
        Ok(port)
    }

    fn side(&self, interface: Interface) -> &LoopHandle {
        match (interface, &self.nos) {
            (Interface::Uplink(_), Some(nos)) => nos,
            _ => &self.relay,
        }
    }

    /// Serves `device` as `interface` from now on.
    pub(super) fn add_device(
        &self,
        interface: Interface,
        device: LoopDevice,
    ) -> Result<(), AddDeviceError> {
        self.side(interface).add_device(interface, device)
    }

    /// Takes the device of `interface` back.
    pub(super) fn remove_device(
        &self,
        interface: Interface,
    ) -> Result<Option<LoopDevice>, Stopped> {
        self.side(interface).remove_device(interface)
    }

    /// Changes where the frames of `interface` are recorded; returns what was in use before.
    pub(super) fn set_capture(
        &self,
        interface: Interface,
        sink: Option<CaptureSink>,
    ) -> Result<Option<CaptureSink>, SetCaptureError> {
        self.side(interface).set_capture(interface, sink)
    }

    /// Has the device of `interface` send the super-frames of tunnels by `injection`. Returns that where
    /// the device is gone.
    pub(super) fn inject(
        &self,
        interface: Interface,
        injection: Injection,
    ) -> Result<Option<Injection>, Stopped> {
        self.side(interface).inject(interface, injection)
    }

    /// What the data threads say of themselves.
    pub(super) fn threads(&self) -> Result<Vec<ThreadReport>, Stopped> {
        if self.threads.len() == 1 {
            return Ok(vec![self.thread("data", &self.relay)?]);
        }
        let relay = self.thread("relay", &self.relay)?;
        let nos = self.nos.as_ref().map(|nos| self.thread("nos", nos));
        Ok(vec![relay].into_iter().chain(nos.transpose()?).collect())
    }

    fn thread(&self, name: &'static str, handle: &LoopHandle) -> Result<ThreadReport, Stopped> {
        let absent = self.no_uring.clone().unwrap_or(NoUring::Off);
        Ok(ThreadReport {
            name,
            times: handle.turn_times()?,
            uring: handle.uring()?.ok_or(absent),
        })
    }

    /// The time, as the data threads count it.
    pub(super) fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// The state of all devices.
    pub(super) fn devices(&self) -> Result<Vec<DeviceReport>, Stopped> {
        let mut devices = self.relay.devices()?;
        if let Some(nos) = self.nos.as_ref().filter(|_| self.threads.len() > 1) {
            devices.extend(nos.devices()?);
        }
        Ok(devices)
    }

    /// The answers of the NOS, each to one request, in no certain order.
    pub(super) fn answers(&self) -> &Receiver<RelayEvent> {
        &self.answers
    }

    /// What happened on the data threads.
    pub(super) fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    /// Has all data threads receive and send, or not.
    pub(super) fn set_mode(&self, mode: Mode) -> Result<(), Stopped> {
        self.relay.set_mode(mode)?;
        self.nos.as_ref().map_or(Ok(()), |nos| nos.set_mode(mode))
    }

    /// Receives nothing from now on, and waits up to `limit` until all that was received is sent.
    /// Returns whether it is.
    pub(super) fn drain(&self, limit: Duration) -> Result<bool, Stopped> {
        self.set_mode(Mode::Draining)?;
        let deadline = std::time::Instant::now() + limit;
        loop {
            // What the relay takes from the NOS is for containers, and gives the NOS nothing to do.
            let nos = self.nos.as_ref().map_or(Ok(true), LoopHandle::is_quiet)?;
            if nos && self.relay.is_quiet()? {
                return Ok(true);
            }
            if std::time::Instant::now() >= deadline {
                return Ok(false);
            }
            thread::yield_now();
        }
    }

    /// Ends the data threads, and returns the devices that they still had.
    pub(super) fn stop(self) -> Vec<(Interface, LoopDevice)> {
        self.relay.stop();
        if let Some(nos) = &self.nos {
            nos.stop();
        }
        let mut devices = Vec::new();
        for thread in self.threads {
            match thread.join() {
                Ok(ended) => devices.extend(ended.devices),
                Err(_) => error!("a data thread panicked"),
            }
        }
        devices
    }
}

/// An io_uring instance for each data thread, or the reason why there are none.
fn open_urings(settings: &RelayConfig) -> io::Result<(Vec<Uring>, Option<NoUring>)> {
    let count = match settings.threads {
        Threads::Single => 1,
        Threads::Split => 2,
    };
    let opened = match settings.io_uring {
        IoUring::Off => return Ok((Vec::new(), Some(NoUring::Off))),
        IoUring::Auto | IoUring::On => (0..count).map(|_| Uring::open()).collect(),
    };
    let urings: Vec<Uring> = match (opened, settings.io_uring) {
        (Ok(urings), _) => urings,
        (Err(reason), IoUring::On) => {
            return Err(io::Error::other(format!("relay.io_uring: {reason}")));
        }
        (Err(reason), _) => {
            info!("no io_uring, frames go by plain calls: {reason}");
            return Ok((Vec::new(), Some(NoUring::Unavailable(reason))));
        }
    };
    if !urings.iter().all(|uring| uring.report().taps) {
        info!("no io_uring for TAPs: there are none here, or TUN does not take RWF_NOWAIT");
    }
    Ok((urings, None))
}

/// A seed that outsiders cannot guess, for hashes, identifiers and timers.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
