//! Frames in pooled buffers, moved by handle.
//!
//! # Theory of operation
//!
//! A [`Frame`] owns one buffer of a [`FramePool`] and is one pointer wide: moving it through a
//! ring moves eight octets, whatever the frame's length. What belongs to the frame (where its
//! octets lie, offload state, what the parser learnt) stands in the first cache line of the
//! buffer; the octets follow after some headroom.
//!
//! ```text
//! 0        64            128   138      152           172
//! ├ Header ┼ headroom ───┼ vnet ┼ Ethernet ┼ IPv4 ──────┼ TCP, UDP ... ──────────┤
//! ```
//!
//! With this start, a virtio-net header and the usual Ethernet, IPv4 and TCP headers share one
//! cache line, and IP is 4-octet aligned. The distance between buffers is an odd number of cache
//! lines, so that equal fields of many frames do not compete for the same cache set.
//!
//! A pool is one allocation that never grows. [`FramePool`] is a thread's handle to it: it keeps a
//! stack of free buffers (last in, first out: the next frame is likely still in cache) and
//! exchanges lists of [`BATCH`] buffers with the other handles. So a thread that only receives and
//! one that only sends cost a few atomic operations a batch, and a thread that does both costs none.
//!
//! Lists are exchanged last in, first out as well: memory becomes resident where frames have been,
//! and going round through all buffers would make the whole pool so. They lie on a stack behind a
//! lock, which is tried for once a batch: what finds it taken goes by a lock-free queue. Only a
//! handle that finds no buffer anywhere else waits for the lock, for as long as another thread needs
//! to push or pop one pointer.
//!
//! A handle keeps at most a 32nd of the buffers for itself ([`crate::share`]).
//!
//! Every buffer that is out of the shared lists counts as one reference to the allocation, and so
//! does every handle. References are added and removed a batch at a time. A frame may therefore
//! outlive its pool, and dropping a frame anywhere is safe: it goes to the shared lists.

use core::fmt;
use core::num::NonZeroU16;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, Ordering};
use std::alloc::{Layout, handle_alloc_error};

use thiserror::Error;

use crate::drop::DropReason;
use crate::ident::{Interface, VrfId};
use crate::parsed::Parsed;
use crate::prefetch::prefetch;
use crate::sync::{ArrayQueue, AtomicUsize, Mutex, alloc_zeroed, dealloc, fence};

/// Frames that move as one: the size of a [`Burst`], and of the lists that handles of one pool
/// exchange.
pub const BATCH: usize = 64;

/// Octets of an Ethernet header without tags.
pub const ETHERNET_HEADER: usize = 14;

/// Octets of the virtio-net header that devices read and write in front of a frame
/// (`struct virtio_net_hdr`, without the number of merged buffers).
pub const VNET_HEADER: usize = 10;

/// Octets of the virtio-net header of devices that take super-frames of UDP tunnels
/// (`struct virtio_net_hdr_v1_hash_tunnel`).
pub const VNET_TUNNEL_HEADER: usize = 24;

/// Octets before a received frame that are free for headers.
pub const HEADROOM: usize = 64 + VNET_HEADER;

/// The longest frame: an Ethernet header and the longest IP packet.
pub const MAX_FRAME: usize = ETHERNET_HEADER + 65_535;

const LINE: usize = 64;

/// An alignment for which the allocator gets zeroed memory from the kernel.
const SMALL_ALIGN: usize = 16;

/// Octets from the start of a buffer to a frame fresh from the pool.
const FIRST_HEAD: u32 = 138;

const _: () = assert!(FIRST_HEAD as usize == LINE + HEADROOM);

/// A handle that keeps this many free buffers gives a batch back, however large the pool.
const CACHE_LIMIT: usize = 2 * BATCH;

/// The part of a pool's buffers that one handle may keep.
const CACHE_PART: usize = 32;

/// Up to [`BATCH`] frames that travel together.
pub type Burst = arrayvec::ArrayVec<Frame, BATCH>;

/// Octets of all frames, Ethernet headers included.
#[must_use]
pub fn octets(frames: &[Frame]) -> u64 {
    frames.iter().map(|frame| frame.len() as u64).sum()
}

/// Which checksum work remains on a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// The transport checksum is in the frame; nobody has verified it.
    #[default]
    Complete,
    /// The transport checksum is right, or was never on a wire (`VIRTIO_NET_HDR_F_DATA_VALID`).
    Verified,
    /// The checksum field holds only the pseudo-header's sum; sum the octets from `start`, and put
    /// the result at `start + offset` (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    Partial {
        /// Octets from the start of the frame to the transport header.
        start: u16,
        /// Octets from `start` to the checksum field.
        offset: u16,
    },
}

/// How a super-frame is cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP over either, one datagram a segment (USO).
    Udp,
}

/// Which segments of a TCP super-frame have its flag CWR, if it is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ecn {
    /// Its header says nothing. The parser takes a CWR that is set for [`Self::Accurate`]: where the first
    /// alone has it, kernels say so.
    #[default]
    Unmarked,
    /// The first alone, as it answers one ECE (RFC 3168 §6.1.2; `VIRTIO_NET_HDR_GSO_ECN`).
    Classic,
    /// All: it is part of a counter (AccECN: RFC 9768 §3.2.2; `VIRTIO_NET_HDR_GSO_ACCECN`). Linux 6.18
    /// has such super-frames, but no word for them in the header; nor is one written.
    Accurate,
}

/// How a tunnel's packets are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulation {
    /// In UDP datagrams: VXLAN, Geneve, GUE, FOU.
    Udp,
    /// In GRE (RFC 2784), without sequence numbers.
    Gre,
    /// IP in IP (RFC 2003, RFC 2473, RFC 4213).
    Ip,
}

/// Where in a tunnel's super-frame the packet lies that is cut. The tunnel's own transport header is
/// the frame's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// How the packet is carried.
    pub encapsulation: Encapsulation,
    /// Octets from the start of the frame to the packet's IP header.
    pub network: u16,
    /// Octets from the start of the frame to the packet's transport header.
    pub transport: u16,
}

/// A super-frame's segmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// What is cut.
    pub kind: GsoKind,
    /// What becomes of the TCP flag CWR.
    pub ecn: Ecn,
    /// Octets of transport payload in each segment but the last.
    pub size: NonZeroU16,
    /// Set where the packet in a tunnel is cut, and not the tunnel's. The parser finds that out; a
    /// virtio-net header alone does not say it. The checksum of the tunnel's UDP header is either zero or
    /// the pseudo-header's sum, until the super-frame is cut.
    pub tunnel: Option<Tunnel>,
}

/// What the virtio-net header says of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Checksum work that remains.
    pub checksum: Checksum,
    /// Set on a super-frame.
    pub segmentation: Option<Segmentation>,
}

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4`, Linux 6.17.
const GSO_TUNNEL_V4: u8 = 0x20;
/// `VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6`
const GSO_TUNNEL_V6: u8 = 0x40;
/// `VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM`: the segments' outer checksums are to be made.
const F_TUNNEL_CSUM: u8 = 8;
const GSO_ECN: u8 = 0x80;
/// `VIRTIO_NET_HDR_GSO_ACCECN`, as it is proposed for Linux and virtio.
const GSO_ACCECN: u8 = 0x10;

impl Offload {
    /// Nothing remains to be done, and nothing was verified.
    pub const NONE: Self = Self {
        checksum: Checksum::Complete,
        segmentation: None,
    };

    /// Reads a virtio-net header in host byte order, as the kernel's TAP and packet sockets write
    /// it.
    ///
    /// The header-length field is not kept: senders fill it loosely, so whoever needs it looks at
    /// the frame.
    ///
    /// # Errors
    ///
    /// [`DropReason::OffloadHeader`] for a segmentation type that is unknown or obsolete (UFO), and
    /// for segments of no size.
    pub fn from_virtio(header: &[u8; VNET_HEADER]) -> Result<Self, DropReason> {
        let [flags, gso, _, _, size @ .., s0, s1, o0, o1] = *header;
        let checksum = if flags & F_NEEDS_CSUM != 0 {
            Checksum::Partial {
                start: u16::from_ne_bytes([s0, s1]),
                offset: u16::from_ne_bytes([o0, o1]),
            }
        } else if flags & F_DATA_VALID != 0 {
            Checksum::Verified
        } else {
            Checksum::Complete
        };
        // The parser looks for the tunnel by itself, as only some devices tell of it.
        let kind = match gso & !(GSO_ECN | GSO_ACCECN | GSO_TUNNEL_V4 | GSO_TUNNEL_V6) {
            GSO_NONE => {
                return Ok(Self {
                    checksum,
                    segmentation: None,
                });
            }
            GSO_TCPV4 => GsoKind::TcpV4,
            GSO_TCPV6 => GsoKind::TcpV6,
            GSO_UDP_L4 => GsoKind::Udp,
            _ => return Err(DropReason::OffloadHeader),
        };
        let size = NonZeroU16::new(u16::from_ne_bytes(size)).ok_or(DropReason::OffloadHeader)?;
        let segmentation = Some(Segmentation {
            kind,
            ecn: if gso & GSO_ACCECN != 0 {
                Ecn::Accurate
            } else if gso & GSO_ECN != 0 {
                Ecn::Classic
            } else {
                Ecn::Unmarked
            },
            size,
            tunnel: None,
        });
        Ok(Self {
            checksum,
            segmentation,
        })
    }

    /// Writes the virtio-net header. `header_len` is the length of all headers of a super-frame,
    /// in octets from its start; it is not used for other frames.
    #[must_use]
    pub fn to_virtio(self, header_len: u16) -> [u8; VNET_HEADER] {
        let (flags, start, offset) = match self.checksum {
            Checksum::Complete => (0, 0, 0),
            Checksum::Verified => (F_DATA_VALID, 0, 0),
            Checksum::Partial { start, offset } => (F_NEEDS_CSUM, start, offset),
        };
        let (gso, header_len, size) = match self.segmentation {
            None => (GSO_NONE, 0, 0),
            Some(Segmentation {
                kind, ecn, size, ..
            }) => {
                let kind = match kind {
                    GsoKind::TcpV4 => GSO_TCPV4,
                    GsoKind::TcpV6 => GSO_TCPV6,
                    GsoKind::Udp => GSO_UDP_L4,
                };
                let mark = match ecn {
                    Ecn::Classic => GSO_ECN,
                    Ecn::Unmarked | Ecn::Accurate => 0,
                };
                (kind | mark, header_len, size.get())
            }
        };
        let [h0, h1] = header_len.to_ne_bytes();
        let [z0, z1] = size.to_ne_bytes();
        let [s0, s1] = start.to_ne_bytes();
        let [o0, o1] = offset.to_ne_bytes();
        [flags, gso, h0, h1, z0, z1, s0, s1, o0, o1]
    }

    /// Writes the virtio-net header of a UDP tunnel's super-frame, as a device wants it that takes such
    /// (`struct virtio_net_hdr_v1_hash_tunnel`). `transport`: octets from the frame's start to the
    /// tunnel's UDP header; `outer`: what the frame is besides.
    #[must_use]
    pub fn to_virtio_tunnel(
        self,
        header_len: u16,
        transport: u16,
        outer: OuterHeader,
    ) -> [u8; VNET_TUNNEL_HEADER] {
        let mut header = [0; VNET_TUNNEL_HEADER];
        let (plain, rest) = header.split_at_mut(VNET_HEADER);
        plain.copy_from_slice(&self.to_virtio(header_len));
        let tunnel = self.segmentation.and_then(|own| own.tunnel);
        if let Some(Tunnel { network, .. }) = tunnel {
            plain[0] |= if outer.checksum { F_TUNNEL_CSUM } else { 0 };
            plain[1] |= if outer.ipv6 {
                GSO_TUNNEL_V6
            } else {
                GSO_TUNNEL_V4
            };
            // Number of buffers and hash are not used here.
            rest[10..12].copy_from_slice(&transport.to_le_bytes());
            rest[12..14].copy_from_slice(&network.to_le_bytes());
        }
        header
    }
}

/// What a device is told of a tunnel's own headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterHeader {
    /// They are IPv6.
    pub ipv6: bool,
    /// The UDP header has a checksum.
    pub checksum: bool,
}

/// A frame would not fit its buffer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{wanted} octets do not fit a buffer with room for {room}")]
pub struct FrameFull {
    /// Octets asked for.
    pub wanted: usize,
    /// Octets that would fit.
    pub room: usize,
}

/// The first cache line of every buffer.
#[repr(C, align(64))]
struct Header {
    home: NonNull<Home>,
    /// The next buffer of a list, while the buffer is in a shared list.
    next: Option<NonNull<Header>>,
    /// Octets from the start of the buffer to the start of the frame.
    head: u32,
    /// Octets of the frame.
    len: u32,
    interface: Option<Interface>,
    parsed: Parsed,
    offload: Offload,
    vrf: VrfId,
    /// See [`Frame::set_mark`]. No model of threads needs it: loom's would not fit in.
    mark: AtomicU16,
}

const _: () = assert!(
    size_of::<Header>() == LINE,
    "a buffer's header is one cache line"
);

/// The allocation behind all handles of a pool.
struct Home {
    /// Where the first buffer is.
    base: NonNull<u8>,
    allocation: NonNull<u8>,
    layout: Layout,
    stride: usize,
    count: usize,
    /// Free buffers that a handle keeps at most.
    cache_limit: usize,
    references: AtomicUsize,
    /// Buffers that have ever been used: those with lower numbers.
    used: AtomicUsize,
    /// Lists of free buffers, linked by [`Header::next`]. There is room for as many as can be.
    stack: Mutex<Vec<FreeList>>,
    /// More of them.
    queue: ArrayQueue<FreeList>,
}

struct FreeList(NonNull<Header>);

// SAFETY: a list owns its buffers: they were linked by a handle or a frame that owned them and gave
// them up, and whoever takes the list out of stack or queue is the next owner.
unsafe impl Send for FreeList {}

impl Home {
    fn allocate(count: usize, room: usize) -> NonNull<Self> {
        let lines = (LINE + HEADROOM + room).div_ceil(LINE);
        let stride = LINE * (lines | 1);
        // Zeroed memory of a small alignment comes untouched from the kernel; of a large one the
        // allocator writes it, and all of the pool would be resident at once.
        let size = stride
            .checked_mul(count)
            .and_then(|size| size.checked_add(LINE));
        let layout = size.and_then(|size| Layout::from_size_align(size, SMALL_ALIGN).ok());
        let Some(layout) = layout else {
            handle_alloc_error(Layout::new::<Header>())
        };
        // SAFETY: the layout's size is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(allocation) = NonNull::new(base) else {
            handle_alloc_error(layout)
        };
        let skip = allocation.align_offset(LINE);
        // SAFETY: the allocation is a line longer than the buffers are.
        let base = unsafe { allocation.add(skip) };
        let home = Self {
            base,
            allocation,
            layout,
            stride,
            count,
            cache_limit: (count / CACHE_PART).clamp(1, CACHE_LIMIT),
            references: AtomicUsize::new(1),
            used: AtomicUsize::new(0),
            stack: Mutex::new(Vec::with_capacity(count)),
            queue: ArrayQueue::new(count),
        };
        NonNull::from(Box::leak(Box::new(home)))
    }

    /// A list of buffers that nobody has used yet, or `None` when there are none left.
    ///
    /// Memory becomes resident where buffers are first used, so a pool is as large as its use.
    ///
    /// # Safety
    ///
    /// `home` is valid.
    unsafe fn take_fresh(home: NonNull<Self>) -> Option<FreeList> {
        // SAFETY: valid, as the caller says.
        let this = unsafe { home.as_ref() };
        let take = |used: usize| (used < this.count).then(|| this.count.min(used + this.batch()));
        let order = Ordering::Relaxed;
        let first = this.used.fetch_update(order, order, take).ok()?;
        let mut next = None;
        for n in (first..this.count.min(first + this.batch())).rev() {
            // SAFETY: n < count, so the buffer lies inside the allocation.
            let buffer = unsafe { this.base.add(n * this.stride) }.cast::<Header>();
            let header = Header {
                home,
                next,
                head: 0,
                len: 0,
                interface: None,
                parsed: Parsed::default(),
                offload: Offload::NONE,
                vrf: VrfId::DEFAULT,
                mark: AtomicU16::new(0),
            };
            // SAFETY: aligned (stride is a multiple of a line), and only this call has counted it
            // as used.
            unsafe { buffer.write(header) };
            next = Some(buffer);
        }
        next.map(FreeList)
    }

    /// Buffers of the lists that handles exchange.
    fn batch(&self) -> usize {
        self.cache_limit.min(BATCH)
    }

    /// Takes what others gave back, without waiting for anybody.
    fn take_given(&self) -> Option<FreeList> {
        let list = self.stack.try_lock().and_then(|mut stack| stack.pop());
        list.or_else(|| self.queue.pop())
    }

    /// The same when there is nothing else: then it is worth waiting for the stack.
    #[cold]
    fn take_last(&self) -> Option<FreeList> {
        let mut stack = self.stack.lock();
        stack.pop().or_else(|| self.queue.pop())
    }

    /// Gives a list back. There can be no more lists than buffers, so it always fits.
    fn give(&self, list: Option<NonNull<Header>>) {
        let Some(first) = list else { return };
        if let Some(mut stack) = self.stack.try_lock() {
            stack.push(FreeList(first));
        } else {
            let pushed = self.queue.push(FreeList(first));
            debug_assert!(pushed.is_ok(), "more lists than buffers");
        }
    }

    /// Removes `count` references, and frees everything with the last one.
    ///
    /// # Safety
    ///
    /// The caller owns that many references, and does not use `home` afterwards.
    unsafe fn release(home: NonNull<Self>, count: usize) {
        // SAFETY: the caller's references keep it valid until the subtraction.
        let references = unsafe { &home.as_ref().references };
        if references.fetch_sub(count, Ordering::Release) != count {
            return;
        }
        fence(Ordering::Acquire);
        // SAFETY: made by Box::leak, and this was the last reference.
        let home = unsafe { Box::from_raw(home.as_ptr()) };
        // SAFETY: allocated with this layout. Each buffer outside of the shared lists would be a
        // reference, so all are inside, and the lists end with `home`.
        unsafe { dealloc(home.allocation.as_ptr(), home.layout) };
    }
}

/// A thread's handle to a pool of buffers.
///
/// Clones share the buffers; give one to each thread.
pub struct FramePool {
    home: NonNull<Home>,
    cache: Vec<NonNull<Header>>,
}

// SAFETY: the cached buffers belong to the handle alone. What handles share is Home: its counters are
// atomic, its stack is behind a lock, its queue is made for threads, and the rest never changes. The
// handle's own reference keeps it valid on whatever thread the handle is.
unsafe impl Send for FramePool {}

impl FramePool {
    /// A pool of `count` buffers, each with room for frames of `room` octets besides
    /// [`HEADROOM`].
    ///
    /// The memory is reserved at once but becomes resident only where frames touch it.
    #[must_use]
    pub fn new(count: usize, room: usize) -> Self {
        let home = Home::allocate(count.max(1), room.clamp(ETHERNET_HEADER, MAX_FRAME));
        Self {
            home,
            cache: Vec::with_capacity(CACHE_LIMIT),
        }
    }

    fn home(&self) -> &Home {
        // SAFETY: the handle's own reference keeps it valid.
        unsafe { self.home.as_ref() }
    }

    /// How many buffers the pool has, in use or not.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.home().count
    }

    /// Octets that a frame fresh from this pool can hold.
    #[must_use]
    pub fn room(&self) -> usize {
        self.home().stride - LINE - HEADROOM
    }

    /// An empty frame, or `None` when all buffers are in use.
    pub fn alloc(&mut self) -> Option<Frame> {
        if self.cache.is_empty() {
            self.refill();
        }
        let mut buffer = self.cache.pop()?;
        // SAFETY: a cached buffer belongs to this handle alone.
        let header = unsafe { buffer.as_mut() };
        header.head = FIRST_HEAD;
        header.len = 0;
        header.interface = None;
        header.offload = Offload::NONE;
        header.vrf = VrfId::DEFAULT;
        Some(Frame { buffer })
    }

    /// A frame that holds a copy of `octets`.
    ///
    /// # Errors
    ///
    /// [`DropReason::NoBuffer`] when all buffers are in use, [`DropReason::FrameLength`] when
    /// `octets` do not fit one.
    pub fn copy_from(&mut self, octets: &[u8]) -> Result<Frame, DropReason> {
        let mut frame = self.alloc().ok_or(DropReason::NoBuffer)?;
        match frame.set_len(octets.len()) {
            Ok(()) => {
                frame.bytes_mut().copy_from_slice(octets);
                Ok(frame)
            }
            Err(FrameFull { .. }) => {
                self.free(frame);
                Err(DropReason::FrameLength)
            }
        }
    }

    /// Takes a frame back. The same as dropping it, but without atomic operations.
    pub fn free(&mut self, frame: Frame) {
        // SAFETY: the frame owns its buffer, whose header is always valid.
        if unsafe { frame.buffer.as_ref() }.home != self.home {
            return;
        }
        if self.cache.len() >= self.home().cache_limit {
            self.spill(self.home().batch());
        }
        self.cache.push(frame.buffer);
        core::mem::forget(frame);
    }

    /// Takes all frames of a burst back.
    pub fn free_all(&mut self, burst: &mut Burst) {
        for frame in burst.drain(..) {
            self.free(frame);
        }
    }

    /// Fills the empty cache with a list that was given back, or else with buffers not used before.
    #[cold]
    fn refill(&mut self) {
        let list = self.home().take_given();
        // SAFETY: the handle's own reference keeps Home valid.
        let list = list.or_else(|| unsafe { Home::take_fresh(self.home) });
        let list = list.or_else(|| self.home().take_last());
        let Some(FreeList(first)) = list else { return };
        let mut next = Some(first);
        while let Some(buffer) = next {
            self.cache.push(buffer);
            // SAFETY: whoever takes a list out owns its buffers, and their headers were written by
            // `take_fresh` before the list was first made.
            next = unsafe { buffer.as_ref() }.next;
        }
        let taken = self.cache.len();
        self.home().references.fetch_add(taken, Ordering::Relaxed);
    }

    /// Gives up to `count` of the buffers that were freed longest ago to the others.
    #[cold]
    fn spill(&mut self, count: usize) {
        let count = count.min(self.cache.len());
        let mut list = None;
        for mut buffer in self.cache.drain(..count) {
            // SAFETY: a cached buffer belongs to this handle alone.
            unsafe { buffer.as_mut() }.next = list;
            list = Some(buffer);
        }
        self.home().give(list);
        if count > 0 {
            // SAFETY: each of those buffers was a reference; the handle's own remains.
            unsafe { Home::release(self.home, count) };
        }
    }
}

impl Clone for FramePool {
    fn clone(&self) -> Self {
        self.home().references.fetch_add(1, Ordering::Relaxed);
        Self {
            home: self.home,
            cache: Vec::with_capacity(CACHE_LIMIT),
        }
    }
}

impl Drop for FramePool {
    fn drop(&mut self) {
        while !self.cache.is_empty() {
            self.spill(BATCH);
        }
        // SAFETY: the handle's own reference, not used any more.
        unsafe { Home::release(self.home, 1) };
    }
}

impl fmt::Debug for FramePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FramePool")
            .field("capacity", &self.capacity())
            .field("room", &self.room())
            .field("cached", &self.cache.len())
            .finish()
    }
}

/// One Ethernet frame in a pooled buffer.
pub struct Frame {
    buffer: NonNull<Header>,
}

// SAFETY: a frame is the only owner of its buffer, which is a reference to Home; of that it reads
// what never changes, and on its end gives the buffer back as `FramePool` does.
unsafe impl Send for Frame {}
// SAFETY: by a shared frame its buffer is only read: all methods that write take it mutably.
unsafe impl Sync for Frame {}

impl Frame {
    fn header(&self) -> &Header {
        // SAFETY: the frame owns its buffer, whose header is always valid.
        unsafe { self.buffer.as_ref() }
    }

    fn header_mut(&mut self) -> &mut Header {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { self.buffer.as_mut() }
    }

    /// Octets of the whole buffer, its header included.
    fn stride(&self) -> usize {
        // SAFETY: the buffer counts as one reference to its home, until the frame's end.
        unsafe { self.header().home.as_ref() }.stride
    }

    /// The octets of the buffer from `from` to `to`.
    ///
    /// # Safety
    ///
    /// `LINE <= from <= to <= stride`.
    unsafe fn window(&self, from: usize, to: usize) -> &[u8] {
        debug_assert!(LINE <= from && from <= to && to <= self.stride());
        // SAFETY: inside the buffer by the caller's word, behind the header, and initialised: it was
        // zeroed once. Nobody else has the buffer, and `self` is borrowed for as long.
        unsafe {
            let start = self.buffer.cast::<u8>().add(from);
            core::slice::from_raw_parts(start.as_ptr(), to - from)
        }
    }

    /// The octets of the buffer from `from` to `to`.
    ///
    /// # Safety
    ///
    /// `LINE <= from <= to <= stride`.
    unsafe fn window_mut(&mut self, from: usize, to: usize) -> &mut [u8] {
        debug_assert!(LINE <= from && from <= to && to <= self.stride());
        // SAFETY: inside the buffer by the caller's word, behind the header, and initialised: it was
        // zeroed once. Nobody else has the buffer, and `self` is borrowed for as long.
        unsafe {
            let start = self.buffer.cast::<u8>().add(from);
            core::slice::from_raw_parts_mut(start.as_ptr(), to - from)
        }
    }

    /// Octets of the frame, Ethernet header included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.header().len as usize
    }

    /// Whether the frame has no octets.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The frame, from its Ethernet header on.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let (head, len) = (self.header().head as usize, self.len());
        // SAFETY: every method keeps LINE <= head and head + len <= stride.
        unsafe { self.window(head, head + len) }
    }

    /// The frame, from its Ethernet header on.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let (head, len) = (self.header().head as usize, self.len());
        // SAFETY: every method keeps LINE <= head and head + len <= stride.
        unsafe { self.window_mut(head, head + len) }
    }

    /// Octets from the frame's start to the end of the buffer: the longest that it can become.
    #[must_use]
    pub fn room(&self) -> usize {
        self.stride() - self.header().head as usize
    }

    /// Octets free in front of the frame.
    #[must_use]
    pub fn headroom(&self) -> usize {
        self.header().head as usize - LINE
    }

    /// Makes the frame `len` octets long, by cutting its end or by adding octets of no certain
    /// value.
    ///
    /// # Errors
    ///
    /// [`FrameFull`] when the buffer is too small; the frame is left as it was.
    pub fn set_len(&mut self, len: usize) -> Result<(), FrameFull> {
        let room = self.room();
        match u32::try_from(len) {
            Ok(octets) if len <= room => {
                self.header_mut().len = octets;
                Ok(())
            }
            _ => Err(FrameFull { wanted: len, room }),
        }
    }

    /// Cuts the frame to at most `len` octets.
    pub fn truncate(&mut self, len: usize) {
        if let Ok(len) = u32::try_from(len) {
            let header = self.header_mut();
            header.len = header.len.min(len);
        }
    }

    /// Adds `octets` octets of no certain value in front. Anything that counts from the frame's
    /// start (offload, parse results) must be set anew.
    ///
    /// # Errors
    ///
    /// [`FrameFull`] when there is less headroom.
    pub fn push_front(&mut self, octets: usize) -> Result<(), FrameFull> {
        let room = self.headroom();
        match u32::try_from(octets) {
            Ok(more) if octets <= room => {
                let header = self.header_mut();
                header.head -= more;
                header.len += more;
                Ok(())
            }
            _ => Err(FrameFull {
                wanted: octets,
                room,
            }),
        }
    }

    /// Takes up to `octets` octets away in front. Anything that counts from the frame's start
    /// (offload, parse results) must be set anew.
    pub fn trim_front(&mut self, octets: usize) {
        let header = self.header_mut();
        let less = u32::try_from(octets).unwrap_or(u32::MAX).min(header.len);
        header.head += less;
        header.len -= less;
    }

    /// The frame with the `before` octets of headroom in front of it, for a device that writes a
    /// header of its own there and sends both at once.
    ///
    /// # Errors
    ///
    /// [`FrameFull`] when there is less headroom.
    pub fn with_headroom(&mut self, before: usize) -> Result<&mut [u8], FrameFull> {
        let room = self.headroom();
        if before > room {
            return Err(FrameFull {
                wanted: before,
                room,
            });
        }
        let (head, len) = (self.header().head as usize, self.len());
        // SAFETY: head - before >= LINE, as just checked.
        Ok(unsafe { self.window_mut(head - before, head + len) })
    }

    /// The whole rest of the buffer with `before` octets of headroom in front, for a device to
    /// read into; [`Self::set_len`] afterwards says how much of it is frame.
    ///
    /// # Errors
    ///
    /// [`FrameFull`] when there is less headroom.
    pub fn receive_area(&mut self, before: usize) -> Result<&mut [u8], FrameFull> {
        let room = self.headroom();
        if before > room {
            return Err(FrameFull {
                wanted: before,
                room,
            });
        }
        let (head, stride) = (self.header().head as usize, self.stride());
        // SAFETY: head - before >= LINE, as just checked.
        Ok(unsafe { self.window_mut(head - before, stride) })
    }

    /// Offload state. Offsets in it count from the frame's start.
    #[must_use]
    pub fn offload(&self) -> Offload {
        self.header().offload
    }

    /// Sets the offload state.
    pub fn set_offload(&mut self, offload: Offload) {
        self.header_mut().offload = offload;
    }

    /// Where the frame came in, or where it leaves.
    #[must_use]
    pub fn interface(&self) -> Option<Interface> {
        self.header().interface
    }

    /// Sets where the frame came in, or where it leaves.
    pub fn set_interface(&mut self, interface: Interface) {
        self.header_mut().interface = Some(interface);
    }

    /// The VRF in which the frame is looked up.
    #[must_use]
    pub fn vrf(&self) -> VrfId {
        self.header().vrf
    }

    /// Sets the VRF in which the frame is looked up.
    pub fn set_vrf(&mut self, vrf: VrfId) {
        self.header_mut().vrf = vrf;
    }

    /// Octets from the frame's start to its transport header, of a frame that was parsed: all with a
    /// [`Segmentation::tunnel`] were.
    #[must_use]
    pub fn transport_offset(&self) -> u16 {
        self.header().parsed.l4
    }

    /// What the parser learnt; meaningful only inside a [`crate::packet::Packet`].
    pub(crate) fn parsed(&self) -> &Parsed {
        &self.header().parsed
    }

    pub(crate) fn set_parsed(&mut self, parsed: Parsed) {
        self.header_mut().parsed = parsed;
    }

    /// Takes over where `origin` came in or leaves, its VRF, and what the parser learnt of it.
    pub(crate) fn inherit(&mut self, origin: &Self) {
        let origin = origin.header();
        let header = self.header_mut();
        header.interface = origin.interface;
        header.vrf = origin.vrf;
        header.parsed = origin.parsed;
    }

    /// Hints the processor to load the frame's metadata and its headers.
    pub fn prefetch(&self) {
        let start = self.buffer.as_ptr().cast::<u8>();
        prefetch(start);
        prefetch(start.wrapping_add(2 * LINE));
    }

    /// Gives the buffer up as a raw pointer, to be carried by code that knows nothing of frames.
    /// [`Self::from_raw`] makes it a frame again.
    #[must_use]
    pub fn into_raw(self) -> NonNull<core::ffi::c_void> {
        let raw = self.buffer.cast();
        core::mem::forget(self);
        raw
    }

    /// Takes back what [`Self::into_raw`] gave up.
    ///
    /// # Safety
    ///
    /// `raw` comes from [`Self::into_raw`], and is taken back once only.
    #[must_use]
    pub unsafe fn from_raw(raw: NonNull<core::ffi::c_void>) -> Self {
        Self { buffer: raw.cast() }
    }

    /// Sets what [`Self::mark_of`] tells. It is 0 in a fresh pool, belongs to the buffer, and changes by
    /// this alone: whoever marks what it carries as raw pointers takes the mark back with the frame, and
    /// then knows what it carries from what it has given up.
    #[inline]
    pub fn set_mark(&self, mark: u16) {
        self.header().mark.store(mark, Ordering::Relaxed);
    }

    /// The mark of the buffer that [`Self::into_raw`] gave up, whoever has the buffer now.
    ///
    /// # Safety
    ///
    /// `raw` came from [`Self::into_raw`], and the pool still has its memory: a handle of the pool is
    /// there, or a frame of it that is in use.
    #[must_use]
    #[inline]
    pub unsafe fn mark_of(raw: NonNull<core::ffi::c_void>) -> u16 {
        let header = raw.cast::<Header>().as_ptr();
        // SAFETY: the buffer is in memory, as the caller says, and its header was written before it was
        // first used. Only the mark is looked at, which is atomic.
        unsafe { &*core::ptr::addr_of!((*header).mark) }.load(Ordering::Relaxed)
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let home = self.header().home;
        self.header_mut().next = None;
        // SAFETY: the buffer itself is a reference to its home.
        unsafe { home.as_ref() }.give(Some(self.buffer));
        // SAFETY: that reference ends now that the buffer is in a shared list.
        unsafe { Home::release(home, 1) };
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("len", &self.len())
            .field("interface", &self.interface())
            .field("offload", &self.offload())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pool_hands_out_each_buffer_once() {
        let mut pool = FramePool::new(200, 2000);
        let frames: Vec<_> = std::iter::from_fn(|| pool.alloc()).collect();
        assert_eq!(frames.len(), 200);
        let places: std::collections::BTreeSet<_> =
            frames.iter().map(|frame| frame.bytes().as_ptr()).collect();
        assert_eq!(places.len(), 200);
        for frame in frames {
            pool.free(frame);
        }
        assert_eq!(
            std::iter::from_fn(|| pool.alloc())
                .collect::<Vec<_>>()
                .len(),
            200
        );
    }

    #[test]
    fn a_mark_is_of_the_buffer_and_changes_by_hand_alone() {
        let mut pool = FramePool::new(1, 100);
        let frame = pool.alloc().unwrap();
        frame.set_mark(7);
        let raw = frame.into_raw();
        // SAFETY: the pool is there, and the frame is taken back once.
        let frame = unsafe {
            assert_eq!(Frame::mark_of(raw), 7);
            Frame::from_raw(raw)
        };
        pool.free(frame);
        let frame = pool.alloc().unwrap();
        frame.set_mark(0);
        drop(frame);
        // SAFETY: the pool is there.
        assert_eq!(unsafe { Frame::mark_of(raw) }, 0);
    }

    #[test]
    fn the_last_freed_buffer_is_used_first() {
        let mut pool = FramePool::new(4, 100);
        let frame = pool.alloc().unwrap();
        let place = frame.bytes().as_ptr();
        pool.free(frame);
        assert_eq!(pool.alloc().unwrap().bytes().as_ptr(), place);
    }

    #[test]
    fn a_frame_outlives_its_pool() {
        let mut pool = FramePool::new(2, 100);
        let frame = pool.copy_from(b"still here").unwrap();
        drop(pool);
        assert_eq!(frame.bytes(), b"still here");
    }

    #[test]
    fn a_foreign_frame_goes_home() {
        let (mut a, mut b) = (FramePool::new(1, 100), FramePool::new(1, 100));
        let frame = a.alloc().unwrap();
        assert!(a.alloc().is_none());
        b.free(frame);
        assert!(a.alloc().is_some());
    }

    #[test]
    fn frames_cross_threads_and_come_back() {
        let mut pool = FramePool::new(256, 100);
        let mut other = pool.clone();
        let (tx, rx) = crossbeam_channel::bounded::<Frame>(64);
        let sink = std::thread::spawn(move || {
            let mut sum = 0_u64;
            for frame in rx {
                sum += u64::from(frame.bytes()[0]);
                other.free(frame);
            }
            sum
        });
        let mut sent = 0;
        let mut n = 0_u32;
        while n < 5_000 {
            let Some(mut frame) = pool.alloc() else {
                std::thread::yield_now();
                continue;
            };
            frame.set_len(1).unwrap();
            frame.bytes_mut()[0] = (n % 251) as u8;
            sent += u64::from(n % 251);
            tx.send(frame).unwrap();
            n += 1;
        }
        drop(tx);
        assert_eq!(sink.join().unwrap(), sent);
        assert_eq!(
            std::iter::from_fn(|| pool.alloc())
                .collect::<Vec<_>>()
                .len(),
            256
        );
    }

    #[test]
    fn lengths_are_bounded_by_the_buffer() {
        let mut pool = FramePool::new(1, 100);
        let mut frame = pool.alloc().unwrap();
        let room = frame.room();
        assert!(room >= 100);
        assert_eq!(
            frame.set_len(room + 1),
            Err(FrameFull {
                wanted: room + 1,
                room
            })
        );
        frame.set_len(room).unwrap();
        frame.push_front(HEADROOM).unwrap();
        assert_eq!(frame.push_front(1), Err(FrameFull { wanted: 1, room: 0 }));
        frame.trim_front(usize::MAX);
        assert!(frame.is_empty());
        assert_eq!(frame.room(), 0);
    }

    #[test]
    fn headroom_is_in_front_of_the_frame() {
        let mut pool = FramePool::new(1, 100);
        let mut frame = pool.alloc().unwrap();
        frame.receive_area(VNET_HEADER).unwrap()[..12].copy_from_slice(b"0123456789ab");
        frame.set_len(2).unwrap();
        assert_eq!(frame.bytes(), b"ab");
        assert_eq!(frame.with_headroom(VNET_HEADER).unwrap(), b"0123456789ab");
        assert!(frame.with_headroom(HEADROOM + 1).is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused_and_its_buffer_stays() {
        let mut pool = FramePool::new(1, 100);
        let room = pool.room();
        assert_eq!(
            format!("{pool:?}"),
            format!("FramePool {{ capacity: 1, room: {room}, cached: 0 }}")
        );
        let long = vec![7; room + 1];
        let refused = pool.copy_from(&long).map(|frame| frame.len());
        assert_eq!(refused, Err(DropReason::FrameLength));
        let mut frame = pool.copy_from(&long[1..]).unwrap();
        let headroom = frame.headroom();
        let more = FrameFull {
            wanted: headroom + 1,
            room: headroom,
        };
        assert_eq!(frame.receive_area(headroom + 1).map(|_| ()), Err(more));
        assert_eq!(frame.receive_area(headroom).unwrap().len(), headroom + room);
        assert_eq!(frame.bytes(), &long[1..]);
    }

    #[test]
    fn a_burst_is_freed_whole() {
        let mut pool = FramePool::new(3, 100);
        let mut burst: Burst = core::iter::from_fn(|| pool.alloc()).collect();
        assert_eq!(burst.len(), 3);
        pool.free_all(&mut burst);
        assert!(burst.is_empty());
        let again: Burst = core::iter::from_fn(|| pool.alloc()).collect();
        assert_eq!(again.len(), 3);
    }

    #[test]
    fn raw_handles_round_trip() {
        let mut pool = FramePool::new(1, 100);
        let raw = pool.copy_from(b"x").unwrap().into_raw();
        // SAFETY: just given up, and taken back once.
        let frame = unsafe { Frame::from_raw(raw) };
        assert_eq!(frame.bytes(), b"x");
    }

    proptest! {
        #[test]
        fn virtio_headers_round_trip(
            partial in proptest::option::of((0_u16.., 0_u16..)),
            gso in proptest::option::of((0..3_u8, any::<bool>(), 1_u16..)),
        ) {
            let offload = Offload {
                checksum: partial.map_or(Checksum::Verified, |(start, offset)| Checksum::Partial { start, offset }),
                segmentation: gso.map(|(kind, ecn, size)| Segmentation {
                    kind: [GsoKind::TcpV4, GsoKind::TcpV6, GsoKind::Udp][usize::from(kind)],
                    ecn: if ecn { Ecn::Classic } else { Ecn::Unmarked },
                    size: NonZeroU16::new(size).unwrap(),
                    tunnel: None,
                }),
            };
            prop_assert_eq!(Offload::from_virtio(&offload.to_virtio(54)), Ok(offload));
        }

        #[test]
        fn the_mark_of_accurate_ecn_is_read(classic: bool, kind in prop_oneof![Just(GSO_TCPV4), Just(GSO_TCPV6)]) {
            let mark = GSO_ACCECN | if classic { GSO_ECN } else { 0 };
            let header = [F_NEEDS_CSUM, kind | mark, 0, 0, 9, 9, 0, 0, 0, 0];
            let read = Offload::from_virtio(&header).unwrap();
            prop_assert_eq!(read.segmentation.unwrap().ecn, Ecn::Accurate);
            // No kernel is known that takes it.
            prop_assert_eq!(read.to_virtio(54)[1], kind);
        }

        #[test]
        fn any_virtio_header_is_read_or_refused(header: [u8; VNET_HEADER]) {
            let _ = Offload::from_virtio(&header);
        }
    }
}

/// Every order of the operations of two threads that share a pool.
#[cfg(loom)]
#[cfg(test)]
mod loom_models {
    use super::*;
    use loom::thread;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    const BUFFERS: usize = 2;

    /// Which buffers are in use. Not of loom, so that it adds no order.
    #[derive(Clone)]
    struct Owned(Arc<[AtomicBool; BUFFERS]>, usize);

    impl Owned {
        fn by_pool(pool: &FramePool) -> Self {
            Self(Arc::default(), pool.home().base.as_ptr() as usize)
        }

        fn buffer(&self, frame: &Frame, pool: &FramePool) -> &AtomicBool {
            let place = frame.buffer.as_ptr() as usize - self.1;
            &self.0[place / pool.home().stride]
        }

        /// A frame, whose buffer is nobody else's.
        fn alloc(&self, pool: &mut FramePool) -> Frame {
            let frame = pool.alloc().expect("the other thread has one at most");
            let buffer = self.buffer(&frame, pool);
            assert!(!buffer.swap(true, Ordering::Relaxed), "handed out twice");
            frame
        }

        fn end(&self, frame: &Frame, pool: &FramePool) {
            self.buffer(frame, pool).store(false, Ordering::Relaxed);
        }
    }

    /// Uses a buffer at a time, and ends it in either way.
    fn work(mut pool: FramePool, owned: &Owned, by_handle: [bool; 2]) {
        for by_handle in by_handle {
            let frame = owned.alloc(&mut pool);
            owned.end(&frame, &pool);
            if by_handle {
                pool.free(frame);
            } else {
                drop(frame);
            }
        }
    }

    fn model(ways: [[bool; 2]; 2]) {
        crate::sync::model(move || {
            let mut pool = FramePool::new(BUFFERS, ETHERNET_HEADER);
            let owned = Owned::by_pool(&pool);
            let (other, theirs) = (pool.clone(), owned.clone());
            let working = thread::spawn(move || work(other, &theirs, ways[0]));
            work(pool.clone(), &owned, ways[1]);
            working.join().unwrap();
            let all: Vec<_> = std::iter::from_fn(|| pool.alloc()).collect();
            assert_eq!(all.len(), BUFFERS, "all come back");
        });
    }

    #[test]
    fn loom_dropped_buffers_have_one_owner_and_come_back() {
        model([[false, false], [false, false]]);
    }

    #[test]
    fn loom_freed_buffers_have_one_owner_and_come_back() {
        model([[true, false], [true, true]]);
    }

    /// A frame that ends on another thread, after its pool.
    #[test]
    fn loom_a_frame_outlives_its_pool() {
        crate::sync::model(|| {
            let mut pool = FramePool::new(1, ETHERNET_HEADER);
            let frame = pool.alloc().unwrap();
            let ending = thread::spawn(move || drop(frame));
            drop(pool);
            ending.join().unwrap();
        });
    }
}
