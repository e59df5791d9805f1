//! Rings in shared memory.
//!
//! ```text
//! 0        4       6      8    64     66    128
//! ├ cookie ┼ flags ┼ head ┼ .. ┼ tail ┼ ..  ┼ descriptor 0 ┼ 1 ┼ ...
//! ```
//!
//! A ring of 2^n descriptors has two indices that count up and wrap around at 2^16. The client moves the
//! head, the server the tail, whichever way frames go:
//!
//! | ring | client | server | descriptors from tail to head are |
//! |---|---|---|---|
//! | client to server | sends | receives | frames that wait for the server |
//! | server to client | receives | sends | empty buffers of the client |
//!
//! Nothing in a ring is trusted. Our own index is kept here, and only written. The peer's index is read
//! once for a look, and may be at most a ring ahead; each descriptor is read once, as two words, before it
//! is checked, and what was read is what is used. The peer may overwrite a frame while it is copied: then
//! the copy is as the peer has wanted it, and only the copy is parsed.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use nos_shim::drop::DropReason;
use nos_shim::frame::{Burst, ETHERNET_HEADER, Frame, FramePool, MAX_FRAME};
use thiserror::Error;

use super::region::Memory;
use crate::data::device::{BURST_OCTETS, Traffic};

/// What the first word of a ring is.
pub const COOKIE: u32 = 0x03E3_1F20;

/// The largest ring has 2 to the power of this many descriptors.
pub const MAX_LOG2_RING_SIZE: u8 = 14;

/// Octets in front of the descriptors.
const RING_HEADER: u32 = 128;

/// Octets of a descriptor.
const DESCRIPTOR: u32 = 16;

const FLAGS: usize = 4;
const HEAD: usize = 6;
const TAIL: usize = 64;

/// The receiver of the ring wants no interrupts.
const MASK_INTERRUPT: u16 = 1;

/// The frame goes on in the next descriptor.
const NEXT: u16 = 1;

/// Octets of each buffer that we share as client. A longer frame takes several.
pub const BUFFER: u32 = 2048;

/// What a peer has in its rings that cannot be.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    /// A ring does not lie in its region, or is not aligned.
    #[error("a ring of 2^{log2_size} descriptors does not lie at {offset} of region {region}")]
    Misplaced {
        /// The region.
        region: u16,
        /// Octets from its start.
        offset: u32,
        /// The ring's size.
        log2_size: u8,
    },
    /// The ring does not begin with [`COOKIE`].
    #[error("a ring begins with {0:#x} in place of the cookie {COOKIE:#x}")]
    Cookie(u32),
    /// An index is where it cannot be.
    #[error("index {theirs} is more than a ring of {size} away from {ours}")]
    Index {
        /// The peer's.
        theirs: u16,
        /// Our own.
        ours: u16,
        /// Descriptors of the ring.
        size: u16,
    },
    /// A descriptor names octets that are not in its region.
    #[error("descriptor {slot}: {length} octets at {offset} are not in region {region}")]
    Window {
        /// Which descriptor.
        slot: u16,
        /// The region that it names.
        region: u16,
        /// Octets from the region's start.
        offset: u32,
        /// Octets.
        length: u32,
    },
    /// A frame goes on in a descriptor that is not the receiver's yet.
    #[error("descriptor {slot}: the frame goes on behind the last descriptor")]
    Unfinished {
        /// The last descriptor.
        slot: u16,
    },
    /// A buffer that is offered to us has no room.
    #[error("descriptor {slot}: a buffer of no octets")]
    NoRoom {
        /// Which descriptor.
        slot: u16,
    },
}

/// Which side of a connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// It listens.
    Server,
    /// It connects, and shares its memory.
    Client,
}

impl Side {
    /// Where the index stands that this side moves.
    fn own_index(self) -> usize {
        match self {
            Self::Client => HEAD,
            Self::Server => TAIL,
        }
    }

    fn peer_index(self) -> usize {
        match self {
            Self::Client => TAIL,
            Self::Server => HEAD,
        }
    }
}

/// A descriptor, as it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Descriptor {
    flags: u16,
    region: u16,
    length: u32,
    offset: u32,
}

impl Descriptor {
    /// The words that stand for it; the second has metadata too, which nobody uses.
    fn words(self) -> [u64; 2] {
        let ([f0, f1], [r0, r1]) = (self.flags.to_ne_bytes(), self.region.to_ne_bytes());
        let [l0, l1, l2, l3] = self.length.to_ne_bytes();
        let [o0, o1, o2, o3] = self.offset.to_ne_bytes();
        [
            u64::from_ne_bytes([f0, f1, r0, r1, l0, l1, l2, l3]),
            u64::from_ne_bytes([o0, o1, o2, o3, 0, 0, 0, 0]),
        ]
    }

    fn of_words([first, second]: [u64; 2]) -> Self {
        let [f0, f1, r0, r1, l0, l1, l2, l3] = first.to_ne_bytes();
        let [o0, o1, o2, o3, ..] = second.to_ne_bytes();
        Self {
            flags: u16::from_ne_bytes([f0, f1]),
            region: u16::from_ne_bytes([r0, r1]),
            length: u32::from_ne_bytes([l0, l1, l2, l3]),
            offset: u32::from_ne_bytes([o0, o1, o2, o3]),
        }
    }
}

/// Octets of a ring of 2^`log2_size` descriptors.
#[must_use]
pub fn ring_octets(log2_size: u8) -> u32 {
    RING_HEADER + (DESCRIPTOR << log2_size.min(MAX_LOG2_RING_SIZE))
}

/// A ring, wherever its memory is mapped.
#[derive(Clone, Debug)]
pub struct Ring {
    memory: Arc<Memory>,
    base: NonNull<u8>,
    size: u16,
    side: Side,
}

// SAFETY: a ring is a place in memory that it keeps mapped. Whoever has one accesses that memory by atomic
// operations only: another process does so anyway.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

impl Ring {
    /// The ring at `offset` of `region`, seen from `side`.
    ///
    /// # Errors
    ///
    /// [`Fault::Misplaced`].
    pub fn at(
        memory: &Arc<Memory>,
        side: Side,
        region: u16,
        offset: u32,
        log2_size: u8,
    ) -> Result<Self, Fault> {
        let misplaced = Fault::Misplaced {
            region,
            offset,
            log2_size,
        };
        if log2_size > MAX_LOG2_RING_SIZE || !offset.is_multiple_of(8) {
            return Err(misplaced);
        }
        let base = memory.window(region, offset, ring_octets(log2_size));
        Ok(Self {
            memory: Arc::clone(memory),
            base: base.ok_or(misplaced)?,
            size: 1 << log2_size,
            side,
        })
    }

    /// Writes what a ring begins with, and its indices. For the client, before the server knows of it.
    pub fn initialise(&self) {
        self.cookie().store(COOKIE, Ordering::Relaxed);
        self.flags().store(0, Ordering::Relaxed);
        self.index(HEAD).store(0, Ordering::Relaxed);
        self.index(TAIL).store(0, Ordering::Release);
    }

    /// Whether it begins as a ring has to.
    ///
    /// # Errors
    ///
    /// [`Fault::Cookie`].
    pub fn check(&self) -> Result<(), Fault> {
        match self.cookie().load(Ordering::Acquire) {
            COOKIE => Ok(()),
            other => Err(Fault::Cookie(other)),
        }
    }

    /// The index that the peer moves. It stands still while the peer does nothing with the ring.
    #[must_use]
    pub fn peer_index(&self) -> u16 {
        self.index(self.side.peer_index()).load(Ordering::Acquire)
    }

    fn cookie(&self) -> &AtomicU32 {
        // SAFETY: the first word of a ring that lies in a region, which `memory` keeps mapped; aligned as
        // mappings and `at` are.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().cast()) }
    }

    fn flags(&self) -> &AtomicU16 {
        // SAFETY: inside of the ring's header, at an even place.
        unsafe { AtomicU16::from_ptr(self.base.as_ptr().add(FLAGS).cast()) }
    }

    fn index(&self, place: usize) -> &AtomicU16 {
        debug_assert!(place == HEAD || place == TAIL);
        // SAFETY: inside of the ring's header, at an even place.
        unsafe { AtomicU16::from_ptr(self.base.as_ptr().add(place).cast()) }
    }

    /// The two words of the descriptor that is used when an index is `at`.
    #[inline]
    fn descriptor(&self, at: u16) -> [&AtomicU64; 2] {
        let slot = usize::from(at & (self.size - 1));
        let place = RING_HEADER as usize + slot * DESCRIPTOR as usize;
        // SAFETY: slot < size, and the ring lies in a region, which `memory` keeps mapped. It begins at a
        // multiple of eight (`at`), and so does each word.
        unsafe {
            let first = self.base.as_ptr().add(place).cast::<u64>();
            [
                AtomicU64::from_ptr(first),
                AtomicU64::from_ptr(first.add(1)),
            ]
        }
    }

    #[inline]
    fn read(&self, at: u16) -> Descriptor {
        Descriptor::of_words(self.descriptor(at).map(|word| word.load(Ordering::Relaxed)))
    }

    #[inline]
    fn write(&self, at: u16, descriptor: Descriptor) {
        let words = descriptor.words();
        for (place, word) in self.descriptor(at).into_iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
    }

    /// Publishes our own index, and all that was written before.
    #[inline]
    fn publish(&self, index: u16) {
        self.index(self.side.own_index())
            .store(index, Ordering::Release);
    }

    /// The slot of an index, for messages.
    fn slot(&self, at: u16) -> u16 {
        at & (self.size - 1)
    }

    /// How many descriptors there are from `from` to the place `ahead` of the peer's index.
    #[inline]
    fn until_peer(&self, ahead: u16, from: u16) -> Result<u16, Fault> {
        let theirs = self.peer_index();
        let count = theirs.wrapping_add(ahead).wrapping_sub(from);
        match count <= self.size {
            true => Ok(count),
            false => Err(Fault::Index {
                theirs,
                ours: from,
                size: self.size,
            }),
        }
    }

    /// Where the octets of a descriptor of the peer are.
    #[inline]
    fn window(&self, at: u16, descriptor: Descriptor) -> Result<NonNull<u8>, Fault> {
        let Descriptor {
            region,
            offset,
            length,
            ..
        } = descriptor;
        let window = self.memory.window(region, offset, length);
        window.ok_or(Fault::Window {
            slot: self.slot(at),
            region,
            offset,
            length,
        })
    }
}

/// The buffers of a client's ring: one for each descriptor, in region 0.
#[derive(Clone, Copy, Debug)]
struct Buffers {
    /// Octets from the region's start to the first.
    offset: u32,
}

impl Buffers {
    fn descriptor(self, slot: u16) -> Descriptor {
        Descriptor {
            flags: 0,
            region: 0,
            length: BUFFER,
            offset: self.offset + u32::from(slot) * BUFFER,
        }
    }
}

/// How receiving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// The ring had no more.
    Empty,
    /// The burst is as long as it may be.
    Full,
    /// The pool has no buffer.
    NoBuffer,
}

/// A ring that frames are received from.
#[derive(Debug)]
pub struct RxRing {
    ring: Ring,
    /// Those of a client's ring. A server finds the client's by the descriptors.
    buffers: Option<Buffers>,
    /// The next descriptor to look at.
    next: u16,
    masked: bool,
}

impl RxRing {
    /// A server's end of a ring that the client sends by.
    #[must_use]
    pub fn of_server(ring: Ring) -> Self {
        Self::new(ring, None)
    }

    /// A client's end of a ring that the server sends by, with buffers from `buffers` of region 0 on. The
    /// server gets them with the first [`Self::offer`].
    #[must_use]
    pub fn of_client(ring: Ring, buffers: u32) -> Self {
        Self::new(ring, Some(Buffers { offset: buffers }))
    }

    fn new(ring: Ring, buffers: Option<Buffers>) -> Self {
        Self {
            ring,
            buffers,
            next: 0,
            masked: false,
        }
    }

    /// Begins: a client offers all of its buffers. Before the connection stands, some servers reset the
    /// indices.
    pub fn offer(&mut self) {
        if let Some(buffers) = self.buffers {
            for slot in 0..self.ring.size {
                self.ring.write(slot, buffers.descriptor(slot));
            }
        }
        self.publish();
    }

    /// Whether the peer is told not to ring.
    #[must_use]
    pub fn is_masked(&self) -> bool {
        self.masked
    }

    /// Tells the peer whether to ring. When it is to ring again, look once more afterwards.
    pub fn mask(&mut self, masked: bool) {
        self.masked = masked;
        let flags = if masked { MASK_INTERRUPT } else { 0 };
        self.ring.flags().store(flags, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Gives descriptors back that were looked at.
    #[inline]
    fn publish(&mut self) {
        let index = match self.ring.side {
            Side::Server => self.next,
            Side::Client => self.next.wrapping_add(self.ring.size),
        };
        self.ring.publish(index);
    }

    /// Descriptors that have frames for us.
    #[inline]
    fn waiting(&self) -> Result<u16, Fault> {
        self.ring.until_peer(0, self.next)
    }

    /// Appends frames to `burst`, at most `limit`. Frames that cannot be are dropped and counted.
    ///
    /// # Errors
    ///
    /// The ring's peer is not to be trusted. What was received before is in the burst.
    #[inline]
    pub fn receive(
        &mut self,
        pool: &mut FramePool,
        burst: &mut Burst,
        limit: usize,
        traffic: &mut Traffic,
    ) -> Result<Rest, Fault> {
        let mut waiting = self.waiting()?;
        if waiting == 0 {
            return Ok(Rest::Empty);
        }
        let (mut frames, mut octets) = (0, 0);
        let result = loop {
            if waiting == 0 {
                break Ok(Rest::Empty);
            }
            if frames == limit || burst.is_full() || octets >= BURST_OCTETS {
                break Ok(Rest::Full);
            }
            let Some(mut frame) = pool.alloc() else {
                break Ok(Rest::NoBuffer);
            };
            match self.take(&mut frame, waiting) {
                Ok((slots, whole)) => {
                    self.next = self.next.wrapping_add(slots);
                    waiting -= slots;
                    frames += 1;
                    if whole {
                        octets += frame.len();
                        traffic.count(frame.len());
                        burst.push(frame);
                    } else {
                        traffic.drops.add(DropReason::FrameLength, 1);
                        pool.free(frame);
                    }
                }
                Err(fault) => {
                    traffic.drops.add(DropReason::BadDescriptor, 1);
                    pool.free(frame);
                    break Err(fault);
                }
            }
        };
        self.publish();
        result
    }

    /// Copies the next frame, of at most so many descriptors. Returns how many it takes, and whether its
    /// length can be.
    #[inline]
    fn take(&self, frame: &mut Frame, waiting: u16) -> Result<(u16, bool), Fault> {
        let (mut slots, mut length) = (0, 0_usize);
        loop {
            let at = self.next.wrapping_add(slots);
            if slots == waiting {
                let slot = self.ring.slot(at.wrapping_sub(1));
                return Err(Fault::Unfinished { slot });
            }
            let descriptor = self.ring.read(at);
            let piece = self.piece(at, descriptor)?;
            let octets = descriptor.length as usize;
            if let Ok(area) = frame.receive_area(0)
                && let Some(place) = area.get_mut(length..length.saturating_add(octets))
            {
                // SAFETY: `piece` is where so many octets of a region are that `ring` keeps mapped, and
                // `place` is in a buffer of our own. The peer may write meanwhile: what is copied is then
                // any octets, which is all that they are taken for.
                unsafe {
                    std::ptr::copy_nonoverlapping(piece.as_ptr(), place.as_mut_ptr(), octets);
                }
            }
            if let Some(buffers) = self.buffers {
                // It is offered again when it is published: with all of its room.
                let slot = self.ring.slot(at);
                self.ring.write(at, buffers.descriptor(slot));
            }
            length = length.saturating_add(octets);
            slots += 1;
            if descriptor.flags & NEXT == 0 {
                break;
            }
        }
        let possible = (ETHERNET_HEADER..=MAX_FRAME).contains(&length);
        Ok((slots, possible && frame.set_len(length).is_ok()))
    }

    /// Where the octets of a descriptor are: in our own buffer, whatever it says, or where it says.
    #[inline]
    fn piece(&self, at: u16, descriptor: Descriptor) -> Result<NonNull<u8>, Fault> {
        let Some(buffers) = self.buffers else {
            return self.ring.window(at, descriptor);
        };
        let slot = self.ring.slot(at);
        let own = buffers.descriptor(slot);
        let claimed = Descriptor {
            length: descriptor.length,
            ..own
        };
        match descriptor.length <= own.length {
            true => self.ring.window(at, claimed),
            false => Err(Fault::Window {
                slot,
                region: own.region,
                offset: own.offset,
                length: descriptor.length,
            }),
        }
    }
}

/// A ring that frames are sent by.
#[derive(Debug)]
pub struct TxRing {
    ring: Ring,
    buffers: Option<Buffers>,
    /// The next descriptor to fill. What is before it and not published is [`Self::publish`]'s.
    next: u16,
    published: u16,
    /// Descriptors from `next` on that were ours at the last look.
    room: u16,
}

impl TxRing {
    /// A client's end of a ring to the server, with buffers from `buffers` of region 0 on.
    #[must_use]
    pub fn of_client(ring: Ring, buffers: u32) -> Self {
        Self::new(ring, Some(Buffers { offset: buffers }))
    }

    /// A server's end of a ring to the client, into the client's buffers.
    #[must_use]
    pub fn of_server(ring: Ring) -> Self {
        Self::new(ring, None)
    }

    fn new(ring: Ring, buffers: Option<Buffers>) -> Self {
        Self {
            ring,
            buffers,
            next: 0,
            published: 0,
            room: 0,
        }
    }

    /// Begins, as [`RxRing::offer`]. Some servers want to find buffers in descriptors that are not theirs
    /// yet.
    pub fn offer(&mut self) {
        if let Some(buffers) = self.buffers {
            for slot in 0..self.ring.size {
                self.ring.write(slot, buffers.descriptor(slot));
            }
        }
    }

    /// The ring, for somebody to look whether the peer takes anything.
    #[must_use]
    pub fn ring(&self) -> Ring {
        self.ring.clone()
    }

    /// Frames, or pieces of such, that the peer has not taken.
    #[must_use]
    pub fn untaken(&self) -> u16 {
        match self.ring.side {
            Side::Client => {
                let taken = self.ring.peer_index();
                self.published.wrapping_sub(taken).min(self.ring.size)
            }
            // They lie in the client's buffers: nothing tells which it has looked at.
            Side::Server => 0,
        }
    }

    #[inline]
    fn look(&mut self) -> Result<(), Fault> {
        let ahead = match self.ring.side {
            Side::Client => self.ring.size,
            Side::Server => 0,
        };
        self.room = self.ring.until_peer(ahead, self.next)?;
        Ok(())
    }

    /// Copies a frame into the ring. Returns whether there was room. The peer sees it after
    /// [`Self::publish`].
    ///
    /// # Errors
    ///
    /// The ring's peer is not to be trusted; nothing was put there.
    #[inline]
    pub fn put(&mut self, frame: &[u8]) -> Result<bool, Fault> {
        if self.room == 0 {
            self.look()?;
        }
        if let Some(slots) = self.fill(frame)? {
            self.next = self.next.wrapping_add(slots);
            self.room -= slots;
            return Ok(true);
        }
        // There may be more by now.
        let before = self.room;
        self.look()?;
        if self.room == before {
            return Ok(false);
        }
        let Some(slots) = self.fill(frame)? else {
            return Ok(false);
        };
        self.next = self.next.wrapping_add(slots);
        self.room -= slots;
        Ok(true)
    }

    /// Fills descriptors with a frame; returns how many, or `None` if there are not enough.
    #[inline]
    fn fill(&self, mut rest: &[u8]) -> Result<Option<u16>, Fault> {
        for slots in 0..self.room {
            let at = self.next.wrapping_add(slots);
            let mut descriptor = match self.buffers {
                Some(buffers) => buffers.descriptor(self.ring.slot(at)),
                None => self.ring.read(at),
            };
            let window = self.ring.window(at, descriptor)?;
            if descriptor.length == 0 {
                let slot = self.ring.slot(at);
                return Err(Fault::NoRoom { slot });
            }
            let (piece, behind) = rest
                .split_at_checked(descriptor.length as usize)
                .unwrap_or((rest, &[]));
            // SAFETY: `window` is where `descriptor.length` octets of a region are that `ring` keeps
            // mapped, and `piece` has at most so many, in a buffer of our own. Whoever reads or writes
            // there meanwhile is the peer, whose memory it is or will be.
            unsafe {
                std::ptr::copy_nonoverlapping(piece.as_ptr(), window.as_ptr(), piece.len());
            }
            // At most the length before.
            descriptor.length = u32::try_from(piece.len()).unwrap_or_default();
            descriptor.flags = if behind.is_empty() { 0 } else { NEXT };
            self.ring.write(at, descriptor);
            rest = behind;
            if rest.is_empty() {
                return Ok(Some(slots + 1));
            }
        }
        Ok(None)
    }

    /// Shows the peer what was put. Returns whether it wants to be woken for it.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.published == self.next {
            return false;
        }
        self.published = self.next;
        self.ring.publish(self.next);
        // Either we see that it wants to be woken, or it sees what we have put when it looks once more.
        fence(Ordering::SeqCst);
        self.ring.flags().load(Ordering::Relaxed) & MASK_INTERRUPT == 0
    }
}

#[cfg(test)]
mod tests;
