//! Shared memory with another process, as a device (FD.io memif).
//!
//! # Theory of operation
//!
//! Who connects shares a [`region`] with rings and buffers in it; who listens maps it. Both are
//! agreed on over a socket, which is the [control side's](crate::control::memif) matter, as is all else
//! that takes system calls: it makes a [`Connection`] and leaves it at the device's [`Port`], or takes it
//! away from there, and rings. The device finds out by a number that goes up, and sends what it does not
//! need any more back, to be unmapped there.
//!
//! ```text
//!  control side                    Port                     data thread
//!  socket, regions ── Connection ──► ── ring, epoll ─────►  Memif ── recv_burst, send
//!        ▲                                                    │
//!        └─────────────── Notice: faults, full, returned ─────┘
//! ```
//!
//! Frames are copied once at the edge, out of a shared buffer into one of the pool or back: a frame that
//! is parsed must not change any more, and pooled buffers are ours alone.
//!
//! The device is there without a peer too: then it is down. Its descriptor is an epoll instance, which
//! holds the eventfds of all rings that frames come by; none is ever read, as each write to one raises an
//! edge. While frames come in full bursts, the peer is told not to ring. A peer that does not order its
//! look at that word behind what it has put into the ring may miss that we ask it to ring again, for as
//! long as its processor keeps a store to itself; so a turn is waited before the last look.
//!
//! Frames have no offload state here: checksums are complete, and super-frames are cut before.

mod bell;
mod region;
mod ring;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crossbeam_channel::Sender;
use mio::Waker;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nos_shim::drop::DropReason;
use nos_shim::frame::{Burst, FramePool};
use nos_shim::offload::Capabilities;
use parking_lot::Mutex;

use super::plain_tap::is_finished;
use super::{
    Batch, DeviceCounters, DeviceKind, Egress, FrameDevice, Inspector, LinkState, Next, Received,
    Sending, Sent,
};

pub use bell::{Bell, is_eventfd};
pub use region::{MAX_SHARED, Memory, Region, RegionError};
pub use ring::{
    BUFFER, COOKIE, Fault, MAX_LOG2_RING_SIZE, Rest, Ring, RxRing, Side, TxRing, ring_octets,
};

/// Bursts that are shorter leave the peer ringing.
const MASK_FROM: usize = 8;

/// A ring to send by, and what wakes the peer for it.
#[derive(Debug)]
pub struct TxQueue {
    /// The ring.
    pub ring: TxRing,
    /// What wakes the peer.
    pub bell: Bell,
}

/// All rings that are shared with a peer: at least one each way.
#[derive(Debug)]
pub struct Connection {
    rx: Vec<RxRing>,
    tx: Vec<TxQueue>,
    /// The ring to receive from first.
    first: usize,
    /// The peer was told to ring again, and there was no look since.
    unmasked: bool,
}

impl Connection {
    /// Offers the peer what it needs to begin. `None` unless there is a ring each way.
    #[must_use]
    pub fn new(mut rx: Vec<RxRing>, mut tx: Vec<TxQueue>) -> Option<Self> {
        if rx.is_empty() || tx.is_empty() {
            return None;
        }
        rx.iter_mut().for_each(RxRing::offer);
        tx.iter_mut().for_each(|queue| queue.ring.offer());
        Some(Self {
            rx,
            tx,
            first: 0,
            unmasked: false,
        })
    }

    /// Frames, or pieces of such, that the peer has not taken, as far as that is known.
    #[must_use]
    pub fn untaken(&self) -> u64 {
        self.tx
            .iter()
            .map(|queue| u64::from(queue.ring.untaken()))
            .sum()
    }

    /// The rings to send by, for somebody to look whether the peer takes anything.
    #[must_use]
    pub fn outgoing(&self) -> Vec<Ring> {
        self.tx.iter().map(|queue| queue.ring.ring()).collect()
    }

    #[inline]
    fn receive(
        &mut self,
        pool: &mut FramePool,
        burst: &mut Burst,
        limit: usize,
        traffic: &mut super::Traffic,
    ) -> Result<Next, Fault> {
        let before = burst.len();
        let mut rings_with_more = 0;
        for n in 0..self.rx.len() {
            let at = (self.first + n) % self.rx.len();
            let Some(ring) = self.rx.get_mut(at) else {
                break;
            };
            let left = limit.saturating_sub(burst.len() - before);
            match ring.receive(pool, burst, left, traffic)? {
                Rest::Empty => {}
                Rest::Full => rings_with_more += 1,
                Rest::NoBuffer => return Ok(Next::NoBuffer),
            }
        }
        self.first = (self.first + 1) % self.rx.len();
        let received = burst.len() - before;
        if rings_with_more > 0 {
            if received >= MASK_FROM {
                self.mask(true);
            }
            return Ok(Next::More);
        }
        if self.rx.iter().any(RxRing::is_masked) {
            self.mask(false);
            self.unmasked = true;
            return Ok(Next::More);
        }
        if std::mem::take(&mut self.unmasked) || received > 0 {
            return Ok(Next::More);
        }
        Ok(Next::Drained)
    }

    fn mask(&mut self, masked: bool) {
        for ring in &mut self.rx {
            if ring.is_masked() != masked {
                ring.mask(masked);
            }
        }
    }

    /// The queue by which a frame leaves: always the same between two addresses, so that nothing
    /// overtakes.
    #[inline]
    fn queue_of(&self, frame: &[u8]) -> usize {
        match self.tx.len() {
            1 => 0,
            queues => address_hash(frame) as usize % queues,
        }
    }

    /// Puts all frames into rings that find room there, and shows them to the peer.
    #[inline]
    fn send(&mut self, sending: &mut Sending<'_>) -> Result<Full, Fault> {
        let mut full = Full(false);
        let mut result = Ok(());
        while let Some(frame) = sending.front() {
            if !is_finished(frame.offload()) {
                sending.dropped(DropReason::DeviceError);
                continue;
            }
            let queue = self.queue_of(frame.bytes());
            let Some(TxQueue { ring, .. }) = self.tx.get_mut(queue) else {
                break;
            };
            match ring.put(frame.bytes()) {
                Ok(true) => sending.taken(),
                Ok(false) => {
                    full = Full(true);
                    sending.dropped(DropReason::DeviceFull);
                }
                Err(fault) => {
                    result = Err(fault);
                    break;
                }
            }
        }
        for TxQueue { ring, bell } in &mut self.tx {
            if ring.publish() {
                bell.ring();
            }
        }
        result.map(|()| full)
    }
}

/// Whether a ring had no room.
struct Full(bool);

/// A number of the two addresses of a packet, and of nothing else: so fragments go with the rest.
fn address_hash(frame: &[u8]) -> u32 {
    const ETHERTYPE: usize = 12;
    let ethertype = frame.get(ETHERTYPE..ETHERTYPE + 2);
    let addresses = match ethertype {
        Some([0x08, 0x00]) => frame.get(26..34),
        Some([0x86, 0xdd]) => frame.get(22..54),
        _ => None,
    };
    let words = addresses.unwrap_or_default().as_chunks().0.iter();
    let sum = words.fold(0_u32, |sum, word| {
        (sum.rotate_left(5) ^ u32::from_be_bytes(*word)).wrapping_mul(0x9E37_79B1)
    });
    sum >> 16
}

/// What a data thread tells the control side of a device.
#[derive(Debug)]
pub struct Notice {
    /// Of which device.
    pub port: u64,
    /// What.
    pub kind: NoticeKind,
}

/// The kinds of [`Notice`].
#[derive(Debug)]
pub enum NoticeKind {
    /// The peer of the connection with this number is not to be trusted. It is not used any more.
    Fault(u32, Fault),
    /// A ring was full, for the first time since [`Port::look_again`].
    Full,
    /// A connection that is not used any more.
    Returned(Box<Connection>),
    /// The device was dropped.
    Closed,
}

/// Where the control side leaves connections for a device.
pub struct Port {
    name: String,
    /// Goes up with each connection that comes or goes.
    number: AtomicU32,
    waiting: Mutex<Option<Box<Connection>>>,
    up: AtomicBool,
    /// Somebody looks whether the peer takes anything.
    watched: AtomicBool,
    epoll: Epoll,
    changed: EventFd,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("name", &self.name)
            .field("up", &self.up)
            .finish_non_exhaustive()
    }
}

impl Port {
    /// # Errors
    ///
    /// The process has no descriptors left.
    fn new(name: String) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let changed = EventFd::from_flags(flags)?;
        epoll.add(&changed, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        Ok(Self {
            name,
            number: AtomicU32::new(0),
            waiting: Mutex::new(None),
            up: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            epoll,
            changed,
        })
    }

    /// Has the device use `connection` from now on, whose peer rings by these; or none. Returns the
    /// connection's number.
    ///
    /// # Errors
    ///
    /// An eventfd cannot be watched; nothing was changed.
    pub fn connect(
        &self,
        connection: Option<Box<Connection>>,
        rung_by: &[Arc<OwnedFd>],
    ) -> io::Result<u32> {
        for (n, eventfd) in rung_by.iter().enumerate() {
            let added = self
                .epoll
                .add(&**eventfd, EpollEvent::new(EpollFlags::EPOLLIN, 0));
            if let Err(errno) = added {
                self.forget(rung_by.get(..n).unwrap_or_default());
                return Err(errno.into());
            }
        }
        self.watched.store(false, Ordering::Relaxed);
        self.up.store(connection.is_some(), Ordering::Relaxed);
        let mut waiting = self.waiting.lock();
        let before = std::mem::replace(&mut *waiting, connection);
        let number = self.number.fetch_add(1, Ordering::Release).wrapping_add(1);
        drop(waiting);
        // Unmapping takes time: the data thread does not wait for the lock meanwhile.
        drop(before);
        // Fails only when it has been rung 2^64 - 2 times.
        let _ = self.changed.write(1);
        Ok(number)
    }

    /// Watches these no more. The peer has them open too, so closing ours does not do that.
    pub fn forget(&self, rung_by: &[Arc<OwnedFd>]) {
        for eventfd in rung_by {
            let _ = self.epoll.delete(&**eventfd);
        }
    }

    /// Whether the peer takes what is sent, for [`Inspector::link`].
    pub fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
    }

    /// Has the device tell when a ring is full.
    pub fn look_again(&self) {
        self.watched.store(false, Ordering::Relaxed);
    }

    pub(super) fn link(&self) -> LinkState {
        match self.up.load(Ordering::Relaxed) {
            true => LinkState::Up,
            false => LinkState::Down,
        }
    }
}

/// Shared memory with another process.
#[derive(Debug)]
pub struct Memif {
    id: u64,
    port: Arc<Port>,
    /// The number of `connection`.
    number: u32,
    connection: Option<Box<Connection>>,
    notices: Sender<Notice>,
    waker: Arc<Waker>,
    counters: DeviceCounters,
}

impl Memif {
    /// A device that is called `name`, by itself without a connection, and where one is left for it. It
    /// tells of itself as `id`, by `notices`, and calls `waker` then.
    ///
    /// # Errors
    ///
    /// The process has no descriptors left.
    pub fn new(
        id: u64,
        name: String,
        notices: Sender<Notice>,
        waker: Arc<Waker>,
    ) -> io::Result<(Self, Arc<Port>)> {
        let port = Arc::new(Port::new(name)?);
        let device = Self {
            id,
            port: Arc::clone(&port),
            number: 0,
            connection: None,
            notices,
            waker,
            counters: DeviceCounters::default(),
        };
        Ok((device, port))
    }

    #[cold]
    fn tell(&self, kind: NoticeKind) {
        let port = self.id;
        // Without a control side there is nobody to tell.
        if self.notices.send(Notice { port, kind }).is_ok() {
            let _ = self.waker.wake();
        }
    }

    /// Takes the connection that is left for it now, in place of the one before.
    #[cold]
    fn renew(&mut self) {
        let mut waiting = self.port.waiting.lock();
        self.number = self.port.number.load(Ordering::Acquire);
        let next = waiting.take();
        drop(waiting);
        if let Some(before) = std::mem::replace(&mut self.connection, next) {
            self.tell(NoticeKind::Returned(before));
        }
    }

    #[inline]
    fn follow(&mut self) {
        if self.port.number.load(Ordering::Acquire) != self.number {
            self.renew();
        }
    }

    /// The peer is not to be trusted: nothing of it is looked at any more.
    #[cold]
    fn fault(&mut self, fault: Fault) {
        self.tell(NoticeKind::Fault(self.number, fault));
        if let Some(connection) = self.connection.take() {
            self.tell(NoticeKind::Returned(connection));
        }
    }
}

impl Drop for Memif {
    fn drop(&mut self) {
        self.renew();
        if let Some(connection) = self.connection.take() {
            self.tell(NoticeKind::Returned(connection));
        }
        self.tell(NoticeKind::Closed);
    }
}

impl FrameDevice for Memif {
    fn recv_burst(&mut self, pool: &mut FramePool, burst: &mut Burst, limit: usize) -> Received {
        self.follow();
        let mut received = Received {
            frames: 0,
            octets: 0,
            next: Next::Down,
        };
        let Some(connection) = &mut self.connection else {
            return received;
        };
        let traffic = &mut self.counters.received;
        let (frames, octets) = (burst.len(), traffic.octets);
        let result = connection.receive(pool, burst, limit, traffic);
        received.frames = burst.len() - frames;
        received.octets = usize::try_from(traffic.octets - octets).unwrap_or(usize::MAX);
        match result {
            Ok(next) => received.next = next,
            Err(fault) => self.fault(fault),
        }
        received
    }

    fn send(
        &mut self,
        burst: &mut Burst,
        pool: &mut FramePool,
        _batch: Option<&mut Batch<'_>>,
    ) -> Sent {
        self.follow();
        let mut sending = Sending::new(burst, pool, &mut self.counters.sent);
        let Some(connection) = &mut self.connection else {
            sending.lost(Egress::Down);
            return sending.finish();
        };
        match connection.send(&mut sending) {
            Ok(Full(full)) => {
                let sent = sending.finish();
                if full && !self.port.watched.swap(true, Ordering::Relaxed) {
                    self.tell(NoticeKind::Full);
                }
                sent
            }
            Err(fault) => {
                sending.lost(Egress::Down);
                let sent = sending.finish();
                self.fault(fault);
                sent
            }
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::empty()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.port.epoll.0.as_fd())
    }

    fn inspector(&self) -> Inspector {
        Inspector::of_memif(&self.port)
    }

    fn name(&self) -> &str {
        &self.port.name
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Memif
    }

    fn counters(&self) -> &DeviceCounters {
        &self.counters
    }
}
