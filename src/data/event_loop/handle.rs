//! The control thread's hold on a data thread: commands one way, events the other.
//!
//! Everything about a device that takes a system call is done here, on the caller's thread: epoll
//! begins to watch a device before the data thread gets it, and ceases after the data thread has
//! given it back; closing it is the caller's.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, SendError, Sender, bounded};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Waker};
use nos_shim::ident::Interface;
use nos_shim::page::{Page, read_all};
use thiserror::Error;
use tracing::debug;

use super::Mode;
use super::devices::{DeviceCursor, DeviceReport, LoopDevice, token};
use super::watchdog::TurnTimes;
use crate::data::device::{CaptureSink, FrameDevice, Injection, UringReport};
use crate::data::engine::Engine;
use crate::data::relay::RelayEvent;

/// How long the control thread waits for a data thread's answer. Data threads never block, so
/// only one that has died takes this long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What happened on a data thread that the control thread must know.
#[derive(Debug)]
pub enum Event {
    /// News of the container side, and of the NOS.
    Relay(RelayEvent),
    /// A device went away by itself. It is not served any more; dropping it closes it.
    DeviceGone {
        /// Which interface it served.
        interface: Interface,
        /// The device, and its capture.
        device: LoopDevice,
        /// How it was noticed.
        reason: &'static str,
    },
    /// A device found its interface down; told once for an outage. The device stays. An interface
    /// that is deleted soon after gives no further event: ask its
    /// [`Inspector`](crate::data::device::Inspector), or the kernel.
    DeviceDown(Interface),
    /// The super-frames of tunnels that leave by a device are cut as long as it has no
    /// [injection](LoopHandle::inject). Told once.
    TunnelMet(Interface),
    /// The thread cannot go on.
    LoopFailed(String),
}

/// Whom the data threads tell what happened.
pub trait Listener: Send {
    /// Takes an event, without blocking.
    fn notify(&self, event: Event);
}

/// What the control thread asks of a data thread.
pub(super) enum Command {
    Engine(Box<dyn FnOnce(&mut Engine) + Send>),
    /// Answered with the device if its interface has one already.
    AddDevice(Interface, LoopDevice, Sender<Option<LoopDevice>>),
    RemoveDevice(Interface, Sender<Option<LoopDevice>>),
    SetCapture(Interface, Option<CaptureSink>, Sender<CaptureChange>),
    /// Answered with the injection if the device is not there, or did not ask for it.
    Inject(Interface, Injection, Sender<Option<Injection>>),
    Devices(
        Option<DeviceCursor>,
        Sender<Page<DeviceReport, DeviceCursor>>,
    ),
    TurnTimes(Sender<TurnTimes>),
    Uring(Sender<Option<UringReport>>),
    SetMode(Mode, Sender<()>),
    Stop,
}

/// What became of a capture.
pub(super) struct CaptureChange {
    /// Whether there is such a device.
    pub(super) done: bool,
    /// What is not in use (any more).
    pub(super) left: Option<CaptureSink>,
}

/// A data thread did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the data thread has stopped")]
pub struct Stopped;

/// Why a device is not served.
#[derive(Debug, Error)]
#[error("{source}")]
pub struct AddDeviceError {
    /// The device, to be closed by whoever gets this; `None` if the thread ended with it.
    pub device: Option<LoopDevice>,
    /// What epoll says of it, that the thread has ended, or that the interface has a device.
    pub source: io::Error,
}

/// Why a capture was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SetCaptureError {
    /// The interface has no device.
    #[error("{0} has no device")]
    NoDevice(Interface),
    /// The thread has ended.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// The control thread's hold on a data thread.
#[derive(Clone)]
pub struct LoopHandle {
    commands: Sender<Command>,
    waker: Arc<Waker>,
    registry: Arc<Registry>,
}

impl fmt::Debug for LoopHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopHandle").finish_non_exhaustive()
    }
}

impl LoopHandle {
    pub(super) fn new(commands: Sender<Command>, waker: Arc<Waker>, registry: Registry) -> Self {
        Self {
            commands,
            waker,
            registry: Arc::new(registry),
        }
    }

    fn send(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).map_err(|_| Stopped)?;
        self.waker.wake().map_err(|_| Stopped)
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T, Stopped> {
        let (reply, answer) = bounded(1);
        self.send(command(reply))?;
        Self::answer(&answer)
    }

    fn answer<T>(answer: &Receiver<T>) -> Result<T, Stopped> {
        answer.recv_timeout(ANSWER_TIMEOUT).map_err(|_| Stopped)
    }

    /// Runs `work` on the data thread between two bursts, and returns what it returned. `work` must
    /// be short, and make no system call: all packets wait for it.
    ///
    /// # Errors
    ///
    /// [`Stopped`] when the thread has ended.
    pub fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        self.ask(|reply| {
            Command::Engine(Box::new(move |engine| {
                // Nobody waits any more if this fails.
                let _ = reply.try_send(work(engine));
            }))
        })
    }

    /// Reads a table of the engine, page after page: `read` returns the page that begins at a
    /// cursor. Bursts are moved between two pages.
    ///
    /// # Errors
    ///
    /// [`Stopped`] when the thread has ended.
    pub fn pages<R: Send + 'static, C: Send + 'static>(
        &self,
        read: impl Fn(&mut Engine, Option<C>) -> Page<R, C> + Clone + Send + 'static,
    ) -> Result<Vec<R>, Stopped> {
        read_all(|cursor| {
            let read = read.clone();
            self.call(move |engine| read(engine, cursor))
        })
    }

    /// Gives the data thread a device to serve as `interface`, with its capture if it has one.
    ///
    /// # Errors
    ///
    /// [`AddDeviceError`] returns the device: epoll cannot watch it, the interface's index has a
    /// device already, or the thread has ended.
    pub fn add_device(
        &self,
        interface: Interface,
        device: impl Into<LoopDevice>,
    ) -> Result<(), AddDeviceError> {
        let device = device.into();
        if let Err(source) = self.watch(interface, &device) {
            let device = Some(device);
            return Err(AddDeviceError { device, source });
        }
        self.hand_over(interface, device).inspect_err(|error| {
            if let Some(device) = &error.device {
                self.unwatch(interface, device);
            }
        })
    }

    /// Gives the data thread a device that epoll watches.
    fn hand_over(&self, interface: Interface, device: LoopDevice) -> Result<(), AddDeviceError> {
        let (reply, answer) = bounded(1);
        let command = Command::AddDevice(interface, device, reply);
        if let Err(SendError(unsent)) = self.commands.send(command) {
            let device = device_of(unsent);
            let source = io::Error::other(Stopped);
            return Err(AddDeviceError { device, source });
        }
        let woken = self.waker.wake();
        match woken.and_then(|()| Self::answer(&answer).map_err(io::Error::other)) {
            Ok(None) => Ok(()),
            Ok(device) => {
                let source = io::ErrorKind::AlreadyExists.into();
                Err(AddDeviceError { device, source })
            }
            Err(source) => {
                let device = None;
                Err(AddDeviceError { device, source })
            }
        }
    }

    /// Takes a device away and returns it, with its capture; `None` if there is none. The caller
    /// closes it by dropping it.
    ///
    /// # Errors
    ///
    /// [`Stopped`] when the thread has ended; it has returned its devices then.
    pub fn remove_device(&self, interface: Interface) -> Result<Option<LoopDevice>, Stopped> {
        let device = self.ask(|reply| Command::RemoveDevice(interface, reply))?;
        Ok(device.inspect(|device| self.unwatch(interface, device)))
    }

    /// Records a device's frames in another capture from now on, or in none, and returns the one
    /// before. The device is not touched.
    ///
    /// # Errors
    ///
    /// [`SetCaptureError`]; `sink` is dropped then.
    pub fn set_capture(
        &self,
        interface: Interface,
        sink: Option<CaptureSink>,
    ) -> Result<Option<CaptureSink>, SetCaptureError> {
        let change = self.ask(|reply| Command::SetCapture(interface, sink, reply))?;
        match change.done {
            true => Ok(change.left),
            false => Err(SetCaptureError::NoDevice(interface)),
        }
    }

    /// Has a device send the super-frames of tunnels by `injection`. Returns that where the device is not
    /// there any more, or did not ask for it.
    ///
    /// # Errors
    ///
    /// [`Stopped`] when the thread has ended.
    pub fn inject(
        &self,
        interface: Interface,
        injection: Injection,
    ) -> Result<Option<Injection>, Stopped> {
        self.ask(|reply| Command::Inject(interface, injection, reply))
    }

    /// What the thread knows of all its devices, page by page.
    ///
    /// # Errors
    ///
    /// [`Stopped`] when the thread has ended.
    pub fn devices(&self) -> Result<Vec<DeviceReport>, Stopped> {
        read_all(|cursor| self.ask(|reply| Command::Devices(cursor, reply)))
    }

    /// How long the thread's turns took so far.
    ///
    /// # Errors
    ///
    /// [`Stopped`] when the thread has ended.
    pub fn turn_times(&self) -> Result<TurnTimes, Stopped> {
        self.ask(Command::TurnTimes)
    }

    /// What the thread does by io_uring; `None` if it has no ring.
    ///
    /// # Errors
    ///
    /// [`Stopped`] when the thread has ended.
    pub fn uring(&self) -> Result<Option<UringReport>, Stopped> {
        self.ask(Command::Uring)
    }

    /// Has the thread receive and send, or not, from now on.
    ///
    /// # Errors
    ///
    /// [`Stopped`] when the thread has ended.
    pub fn set_mode(&self, mode: Mode) -> Result<(), Stopped> {
        self.ask(|reply| Command::SetMode(mode, reply))
    }

    /// Whether nothing is under way in the thread's engine: nothing waits for it in the channel, and
    /// nothing that it has is to be sent.
    ///
    /// # Errors
    ///
    /// [`Stopped`] when the thread has ended.
    pub fn is_quiet(&self) -> Result<bool, Stopped> {
        self.call(|engine| {
            let quiet = engine.try_sleep();
            engine.awake();
            quiet
        })
    }

    /// Ends the thread. It returns its devices: see [`Ended`](super::Ended).
    pub fn stop(&self) {
        // A thread that has ended already needs no telling.
        let _ = self.send(Command::Stop);
    }

    fn watch(&self, interface: Interface, device: &LoopDevice) -> io::Result<()> {
        let Some(fd) = device.fd() else {
            return Ok(());
        };
        let fd = fd.as_raw_fd();
        let mut source = SourceFd(&fd);
        self.registry
            .register(&mut source, token(interface), Interest::READABLE)
    }

    fn unwatch(&self, interface: Interface, device: &LoopDevice) {
        let Some(fd) = device.fd() else {
            return;
        };
        let fd = fd.as_raw_fd();
        if let Err(error) = self.registry.deregister(&mut SourceFd(&fd)) {
            debug!(%interface, %error, "epoll had forgotten the device");
        }
    }
}

fn device_of(command: Command) -> Option<LoopDevice> {
    match command {
        Command::AddDevice(_, device, _) => Some(device),
        _ => None,
    }
}
