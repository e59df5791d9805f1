//! Packet sockets: any Ethernet interface of the kernel as a device.
//!
//! # Theory of operation
//!
//! The socket hears every frame that comes in on one interface, and nothing else: it is made deaf
//! (protocol 0), set up, and then bound to the interface and to all protocols at once, so no frame
//! of another interface slips in between. What the kernel itself sends there is left out.
//!
//! Frames come and go with a virtio-net header. On veth that is not a matter of speed: frames from
//! the other end have partial checksums and are up to 64 KiB long, and only the header says so.
//!
//! The kernel takes a VLAN tag out of the frame before we get it and mentions it in auxiliary data.
//! Tagged traffic belongs to another network, so such frames are dropped
//! ([`DropReason::EtherType`]), not taken for untagged ones.
//!
//! Frames are received and sent by `recvmmsg` and `sendmmsg`, header and frame as one piece; runs of
//! datagrams are sent as one message ([`super::coalesce`]). A
//! `recvmmsg` that yields fewer messages than asked for has met an empty queue: a frame that comes
//! later raises a new edge, so there is no need to ask once more. An error that ended it instead
//! was stored in the socket by the kernel, which polls as an error.
//!
//! When the interface goes down, the kernel stores `ENETDOWN` in the socket, once, and takes up
//! delivery by itself when it comes up. When the interface is deleted, that is the same event
//! followed by a silent change of the bound index to -1, which [`FrameDevice::link`] looks at.

mod messages;
mod socket;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nos_shim::drop::DropReason;
use nos_shim::frame::{BATCH, Burst, FramePool};
use nos_shim::offload::Capabilities;

use super::character::{self, ERRORS_TOLERATED};
use super::vnet::{self, Offloads};
use super::window::Window;
use super::{
    BURST_OCTETS, DeviceCounters, DeviceKind, Egress, FrameDevice, Link, Next, OpenError, Received,
    Sending, Sent, valid_name,
};
use messages::{Messages, Refused};

/// How a packet socket is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketOptions {
    /// Offloads to use on egress. What comes in has partial checksums and super-frames in any
    /// case, if the interface's other end makes such.
    pub offload: Capabilities,
    /// Octets of kernel memory for frames not yet received, and as much for those being sent. A
    /// process without rights in the initial user namespace gets at most `net.core.rmem_max` and
    /// `wmem_max`.
    pub buffer: usize,
    /// Hand frames to the driver past the queueing discipline (and past `tc` on egress).
    pub bypass_qdisc: bool,
    /// Receive frames for other stations as well: needed where ours is not the interface's own MAC
    /// address. Multicast frames are received in any case.
    pub promiscuous: bool,
}

impl Default for PacketOptions {
    fn default() -> Self {
        Self {
            offload: Capabilities::all(),
            buffer: 16 << 20,
            bypass_qdisc: false,
            promiscuous: false,
        }
    }
}

/// A packet socket bound to one interface.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    name: String,
    offloads: Offloads,
    window: Window,
    messages: Box<Messages>,
    /// The interface was down when last heard of.
    down: bool,
    /// Set for good once the interface has gone.
    gone: Option<Errno>,
    kernel_drops: u64,
    counters: DeviceCounters,
}

impl PacketSocket {
    /// Opens a socket on interface `name` of the calling thread's namespace.
    ///
    /// # Errors
    ///
    /// There is no such interface, it carries no Ethernet frames, or the kernel refuses the socket
    /// (`CAP_NET_RAW`) or one of the options (virtio-net headers: Linux 2.6.27).
    pub fn open(name: &str, options: PacketOptions) -> Result<Self, OpenError> {
        let name = valid_name(name)?;
        let fd = socket::open(name, options)?;
        Ok(Self {
            fd,
            name: name.to_owned(),
            offloads: Offloads::new(options.offload),
            window: Window::new(),
            messages: Messages::new(),
            down: false,
            gone: None,
            kernel_drops: 0,
            counters: DeviceCounters::default(),
        })
    }

    /// Receives into `frames` by one system call, and sorts them into `burst` and back into `pool`;
    /// returns how many messages came.
    fn receive(
        &mut self,
        mut frames: Burst,
        pool: &mut FramePool,
        burst: &mut Burst,
        received: &mut Received,
    ) -> Result<usize, Errno> {
        let result = self.messages.receive(&self.fd, &mut frames);
        let came = result.unwrap_or(0);
        for (n, mut frame) in frames.drain(..).enumerate() {
            if n >= came {
                pool.free(frame);
                continue;
            }
            match self.messages.accept(n, &mut frame) {
                Ok(()) => {
                    self.counters.received.count(frame.len());
                    received.frames += 1;
                    received.octets += frame.len();
                    burst.push(frame);
                }
                Err(reason) => {
                    self.counters.received.drops.add(reason, 1);
                    pool.free(frame);
                }
            }
        }
        result
    }

    /// Draws the consequences of an error that the socket has told, and thereby cleared; `errors`
    /// of them came during this burst. Frames may wait behind it.
    fn handle_error(&mut self, errno: Errno, errors: u32) {
        if errors == ERRORS_TOLERATED {
            self.gone = Some(errno);
        } else if errno == Errno::ENETDOWN {
            self.down = true;
            self.gone = socket::index(&self.fd).err();
        }
    }

    /// What follows when nothing more is to be had.
    fn after_the_last(&self) -> Next {
        match self.gone {
            Some(errno) => Next::Gone(errno),
            None if self.down => Next::Down,
            None => Next::Drained,
        }
    }
}

impl FrameDevice for PacketSocket {
    fn recv_burst(&mut self, pool: &mut FramePool, burst: &mut Burst, limit: usize) -> Received {
        let mut received = Received {
            frames: 0,
            octets: 0,
            next: Next::More,
        };
        // Dropped frames count too, so that a flood of them does not hold the thread here.
        let mut budget = limit.min(burst.remaining_capacity());
        let mut errors = 0;
        while budget > 0 && received.octets < BURST_OCTETS {
            if self.gone.is_some() {
                received.next = self.after_the_last();
                break;
            }
            let before = received.octets;
            let frames = reserve(pool, self.window.ask(budget, BURST_OCTETS - before));
            let asked = frames.len();
            if asked == 0 {
                received.next = Next::NoBuffer;
                break;
            }
            let came = match self.receive(frames, pool, burst, &mut received) {
                Ok(came) => came,
                Err(Errno::EAGAIN) => 0,
                Err(errno) => {
                    errors += 1;
                    self.handle_error(errno, errors);
                    continue;
                }
            };
            self.window.learn(asked, came, received.octets - before);
            budget -= came;
            if came < asked {
                received.next = self.after_the_last();
                break;
            }
        }
        received
    }

    fn send_burst(&mut self, burst: &mut Burst, pool: &mut FramePool) -> Sent {
        let mut sending = Sending::new(burst, pool, &mut self.counters.sent);
        if let Some(errno) = self.gone {
            sending.lost(Egress::Gone(errno));
            return sending.finish();
        }
        let mut down_before = false;
        while sending.front().is_some() {
            let coalesce = self.offloads.coalesces();
            let result = self.messages.send(&self.fd, sending.waiting(), coalesce);
            match result {
                Ok(taken) => {
                    for _ in 0..taken {
                        if let Some(frame) = sending.front() {
                            self.offloads.taken(frame.offload());
                        }
                        sending.taken();
                    }
                    self.down = false;
                }
                // May be the trace of an outage that has ended: asking clears it.
                Err(Refused {
                    errno: Errno::ENETDOWN,
                    ..
                }) if !down_before => down_before = true,
                Err(Refused {
                    errno: Errno::EINVAL,
                    run: true,
                }) => {
                    self.offloads.refused_run(DeviceKind::Packet, &self.name);
                }
                Err(Refused {
                    errno: Errno::EINVAL,
                    ..
                }) => {
                    let offload = sending.front().map(|frame| frame.offload());
                    if let Some(kind) = offload.and_then(|offload| self.offloads.refused(offload)) {
                        vnet::log_fallback(DeviceKind::Packet, &self.name, kind);
                        sending.adapt();
                        break;
                    }
                    sending.dropped(DropReason::DeviceError);
                }
                Err(Refused { errno, .. }) => character::handle_refusal(&mut sending, errno),
            }
        }
        let sent = sending.finish();
        match sent.egress {
            Egress::Gone(errno) => self.gone = Some(errno),
            Egress::Down => self.down = true,
            Egress::Ready | Egress::Adapt => {}
        }
        sent
    }

    fn capabilities(&self) -> Capabilities {
        self.offloads.capabilities()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn link(&mut self) -> Link {
        match socket::is_up(&self.fd) {
            Ok(up) => self.down = !up,
            Err(errno) => self.gone = Some(errno),
        }
        match (self.gone, self.down) {
            (Some(_), _) => Link::Gone,
            (None, true) => Link::Down,
            (None, false) => Link::Up,
        }
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Packet
    }

    fn counters(&self) -> &DeviceCounters {
        &self.counters
    }

    fn set_coalescing(&mut self, on: bool) {
        self.offloads.set_coalescing(on);
    }

    fn kernel_drops(&mut self) -> u64 {
        // Reading sets the kernel's counters to zero.
        self.kernel_drops += u64::from(socket::take_drops(&self.fd).unwrap_or(0));
        self.kernel_drops
    }
}

/// Up to `count` empty frames, fewer if the pool has no more.
fn reserve(pool: &mut FramePool, count: usize) -> Burst {
    core::iter::from_fn(|| pool.alloc())
        .take(count.min(BATCH))
        .collect()
}
