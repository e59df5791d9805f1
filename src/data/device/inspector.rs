//! What the control side asks a device's kernel side, while a data thread has the device.
//!
//! Asking takes system calls, some of which wait for locks that the kernel holds for milliseconds.
//! So a data thread does not ask: whoever opens a device takes an [`Inspector`] first, and keeps it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::packet::Shown;
use super::plain_tap::PlainInterface;
use super::{memif, memory, packet, tap};

/// Whether an interface works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    /// It carries packets. Of a TAP alone this does not say that it is up: see the interface.
    Up,
    /// It exists, but is down.
    Down,
    /// It has vanished.
    Gone,
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Gone => "gone",
        })
    }
}

/// A view of a device's kernel side. It does not keep the device open: once the device is closed,
/// its interface counts as gone.
#[derive(Debug)]
pub struct Inspector {
    view: View,
    /// Frames that the kernel lost so far.
    kernel_drops: AtomicU64,
}

#[derive(Debug)]
enum View {
    Tap(Weak<OwnedFd>),
    PlainTap(Weak<PlainInterface>),
    Packet(Weak<OwnedFd>),
    Memory(Weak<memory::Queue>),
    Memif(Weak<memif::Port>),
}

impl Inspector {
    pub(super) fn of_tap(fd: &Arc<OwnedFd>) -> Self {
        Self::new(View::Tap(Arc::downgrade(fd)))
    }

    pub(super) fn of_plain_tap(interface: &Arc<PlainInterface>) -> Self {
        Self::new(View::PlainTap(Arc::downgrade(interface)))
    }

    pub(super) fn of_packet(fd: &Arc<OwnedFd>) -> Self {
        Self::new(View::Packet(Arc::downgrade(fd)))
    }

    pub(super) fn of_memory(incoming: &Arc<memory::Queue>) -> Self {
        Self::new(View::Memory(Arc::downgrade(incoming)))
    }

    pub(super) fn of_memif(port: &Arc<memif::Port>) -> Self {
        Self::new(View::Memif(Arc::downgrade(port)))
    }

    fn new(view: View) -> Self {
        Self {
            view,
            kernel_drops: AtomicU64::new(0),
        }
    }

    /// Whether the interface is there, asked of the kernel.
    #[must_use]
    pub fn link(&self) -> LinkState {
        let state = match &self.view {
            View::Tap(fd) => fd.upgrade().map(tap::link),
            View::PlainTap(interface) => {
                let interface = interface.upgrade();
                interface.map(|interface| tap::link(&*interface))
            }
            View::Packet(fd) => fd.upgrade().map(|fd| packet::link(&fd)),
            View::Memory(incoming) => incoming.upgrade().map(|incoming| incoming.link()),
            View::Memif(port) => port.upgrade().map(|port| port.link()),
        };
        state.unwrap_or(LinkState::Gone)
    }

    /// Has the kernel show a packet socket these frames from now on. Of other devices, and once it is
    /// closed, it changes nothing.
    ///
    /// # Errors
    ///
    /// The kernel has no memory for it.
    pub fn show(&self, shown: &Shown) -> Result<(), Errno> {
        match &self.view {
            View::Packet(fd) => fd.upgrade().map_or(Ok(()), |fd| packet::show(&fd, shown)),
            View::Tap(_) | View::PlainTap(_) | View::Memory(_) | View::Memif(_) => Ok(()),
        }
    }

    /// Another descriptor of the device, for another process; `None` once the device is closed, or
    /// if it has none.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn duplicate(&self) -> io::Result<Option<OwnedFd>> {
        let duplicate = match &self.view {
            View::Tap(fd) | View::Packet(fd) => fd.upgrade().map(|fd| fd.try_clone()),
            View::PlainTap(interface) => {
                let interface = interface.upgrade();
                interface.map(|interface| interface.as_fd().try_clone_to_owned())
            }
            View::Memory(_) | View::Memif(_) => None,
        };
        duplicate.transpose()
    }

    /// Frames that the kernel had for us and lost because its queue was full, so far. Of a TAP
    /// only the interface's own statistics tell (`tx_dropped`).
    #[must_use]
    pub fn kernel_drops(&self) -> u64 {
        if let View::Packet(fd) = &self.view
            && let Some(fd) = fd.upgrade()
        {
            // Reading sets the kernel's counters to zero.
            let drops = u64::from(packet::take_drops(&fd));
            self.kernel_drops.fetch_add(drops, Ordering::Relaxed);
        }
        self.kernel_drops.load(Ordering::Relaxed)
    }
}
