//! The contract between relay and NOS: two rings of bursts, control messages, and a doorbell.
//!
//! # What a NOS does
//!
//! It has the [`NosEnd`], on one thread, and in a loop
//!
//! 1. takes [control messages](NosEnd::recv_control) and answers each request, in order: see
//!    [`ToNos`];
//! 2. takes [bursts](NosEnd::recv_burst) of packets that containers send, and forwards them: to itself,
//!    to another container, or out of an uplink of its own;
//! 3. sends [bursts](NosEnd::send_burst) of packets for containers: of those that come to an address
//!    that a container has registered, with a port that it has registered (a
//!    [`PortTable`](crate::ports::PortTable) looks that up);
//! 4. [rings](NosEnd::ring) once, and blocks if it [may](NosEnd::try_sleep).
//!
//! It may expect that every packet has passed the relay's checks: it was parsed
//! ([`Packet`](crate::packet::Packet)), it comes from an address and a port that the attachment has
//! registered, and checksums are right, partial, or were verified, as
//! [its offload state](crate::frame::Frame::offload) says. Nothing else that it says of itself is
//! checked.
//!
//! # Theory of operation
//!
//! [`pair`] makes the two ends. Each end sends bursts of up to 64 packets with
//! [`End::send_burst`] and takes them with [`End::recv_burst`]; a burst is one message, so the
//! ring's atomic operations are paid once for all its packets. Nothing ever blocks: a full ring
//! leaves the burst with the sender, who drops it with
//! [`DropReason::RingFull`](crate::drop::DropReason::RingFull) and a counter.
//!
//! A packet from the relay carries the attachment on which it came in as its
//! [interface](crate::frame::Frame::interface); one from the NOS, the attachment on which it
//! leaves. Offload state crosses the ring untouched: super-frames and partial checksums are normal.
//!
//! Control messages are few and have a ring of their own each way. The relay asks for an
//! [`Exchange`] of registrations before any packet of an attachment, and activates the attachment
//! when the NOS has [accepted](ToRelay::Accepted) it; it withdraws the attachment after its last
//! packet. Answers are matched by the request's number. An end handles control messages before
//! the packets that were sent after them. The relay's control plane may configure the NOS by the same
//! ring ([`Configuration`]), and reads its tables for `show` ([`Query`]); the NOS tells what happens
//! ([`NosEvent`]), and, where the relay does not configure it, which interfaces it has
//! ([`NosInterface`]).
//!
//! # Buffers
//!
//! Who has a packet owns its buffer: sending it gives it away, dropping it gives it back to the pool
//! that it came from, on any thread. A NOS takes buffers for packets of its own from a clone of the
//! pool ([`FramePool`](crate::frame::FramePool)). What it keeps for longer than a round is missing
//! elsewhere: [`Budget`](crate::share::Budget) says how much each may keep.
//!
//! # Ends and generations
//!
//! An end is dropped when its side ends. The other side is woken, sees that it is
//! [deserted](End::is_deserted), can take what was sent before, and counts what was not
//! [taken](End::lost) of its own. A NOS that starts anew gets an end of a new pair, and the relay the
//! other one: everything that was registered is asked for again. What still has an end of the old pair
//! reaches nobody: its sends are refused, and its messages were never read.
//!
//! # The doorbell
//!
//! Whoever polls its end all the time needs no doorbell. A side that wants to block says so:
//!
//! ```text
//! sleeper: announce ── look into the rings again ── empty? block until woken : take it back
//! sender:  push     ── ring(): announced? take the announcement away and wake
//! ```
//!
//! Both sides put a sequentially consistent fence between their two steps, so that at least one of
//! them sees the other's: either the sleeper finds the message, or the sender finds the sleeper. The
//! models in `channel/ring.rs` try every order.
//!
//! # Room
//!
//! Rings are short, so that what waits in them waits for a bounded time and takes a bounded part of
//! the buffers ([`Budget::ring`](crate::share::Budget::ring)). A sender that leaves packets with
//! their devices, where each source has a queue of its own, drops none for a full ring: it asks
//! [`End::has_room`] before it reads more. It may block until there is room, having announced that
//! with [`End::try_await_room`]: the taker's [`End::ring`] wakes it by the same protocol as soon as
//! the ring is half empty.

mod message;
mod ring;
mod spares;

use core::fmt;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

pub use self::message::{
    Answer, Configuration, ConfigurationRefused, Exchange, NosCounters, NosEvent, NosInterface,
    PolicyRefusal, Query, RefusedSide, Refuser, RequestId, ToNos, ToRelay,
};
use self::ring::{Farewell, RingEnd};
use self::spares::Spares;
use crate::packet::PacketBurst;

/// Control messages that a ring holds. They are rare; a full control ring is reported to whoever
/// wanted to send.
const CONTROL_CAPACITY: usize = if cfg!(fuzzing) { 64 } else { 1024 };

/// Wakes a thread that blocks, for example in `epoll_wait`. May be called from any thread, and at
/// any time; waking a thread that does not block makes its next block return at once.
pub trait Wake: Send + Sync {
    /// Wakes it.
    fn wake(&self);
}

impl fmt::Debug for dyn Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wake").finish_non_exhaustive()
    }
}

impl<T: Wake + ?Sized> Wake for std::sync::Arc<T> {
    fn wake(&self) {
        (**self).wake();
    }
}

/// Why a control message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// The other end has been dropped.
    #[error("the other end of the channel has gone")]
    Deserted,
    /// It has not read the last 1024.
    #[error("the other end of the channel does not read its control messages")]
    Full,
}

/// One end of a channel. `Out` and `In` are the control messages that it sends and takes.
pub struct End<Out, In> {
    bursts: RingEnd<PacketBurst>,
    spares: Spares,
    control_out: Sender<Out>,
    control_in: Receiver<In>,
    /// Packets that were sent.
    sent: usize,
    /// The last, as it is dropped after the others.
    farewell: Farewell,
}

/// The relay's end.
pub type RelayEnd = End<ToNos, ToRelay>;
/// The NOS's end.
pub type NosEnd = End<ToRelay, ToNos>;

/// Makes a channel whose rings hold `bursts` bursts each way (at least one).
#[must_use]
pub fn pair(bursts: usize) -> (RelayEnd, NosEnd) {
    let (relay_bursts, nos_bursts) = ring::pair(bursts);
    let (relay_spares, nos_spares) = spares::pair(bursts.saturating_mul(2));
    let (control_to_nos, control_from_relay) = bounded(CONTROL_CAPACITY);
    let (control_to_relay, control_from_nos) = bounded(CONTROL_CAPACITY);
    let relay = End {
        farewell: relay_bursts.farewell(),
        sent: 0,
        bursts: relay_bursts,
        spares: relay_spares,
        control_out: control_to_nos,
        control_in: control_from_nos,
    };
    let nos = End {
        farewell: nos_bursts.farewell(),
        sent: 0,
        bursts: nos_bursts,
        spares: nos_spares,
        control_out: control_to_relay,
        control_in: control_from_relay,
    };
    (relay, nos)
}

impl<Out, In> End<Out, In> {
    /// Sends all packets of `burst` and leaves another, empty one in its place, or, when the ring is
    /// full or the other end has gone, returns `false` and leaves it as it was. An empty burst is
    /// not sent.
    #[inline]
    pub fn send_burst(&mut self, burst: &mut PacketBurst) -> bool {
        if burst.is_empty() {
            return true;
        }
        let (empty, count) = (self.spares.take(), burst.len());
        match self.bursts.send(core::mem::replace(burst, empty)) {
            Ok(()) => {
                self.sent = self.sent.wrapping_add(count);
                true
            }
            Err(back) => {
                let empty = core::mem::replace(burst, back);
                self.spares.put(empty);
                false
            }
        }
    }

    /// The oldest burst that the other end has sent. Best [recycled](Self::recycle) when it has been
    /// emptied: otherwise the sender allocates another.
    #[inline]
    pub fn recv_burst(&mut self) -> Option<PacketBurst> {
        let burst = self.bursts.recv()?;
        self.farewell.taken = self.farewell.taken.wrapping_add(burst.len());
        Some(burst)
    }

    /// Gives a burst back to be sent again. Packets that are still in it are freed.
    #[inline]
    pub fn recycle(&mut self, burst: PacketBurst) {
        self.spares.put(burst);
    }

    /// An empty burst, to be filled and sent: one that was recycled, if there is any.
    #[must_use]
    #[inline]
    pub fn spare(&mut self) -> PacketBurst {
        self.spares.take()
    }

    /// Whether the ring takes another burst. Only this end fills it, so it stays true until then.
    #[must_use]
    #[inline]
    pub fn has_room(&self) -> bool {
        self.bursts.has_room()
    }

    /// Whether the other end has been dropped. What it sent before can still be taken; what is sent
    /// to it is refused from now on.
    #[inline]
    pub fn is_deserted(&mut self) -> bool {
        self.bursts.is_alone()
    }

    /// Packets that this end has sent, and the other never took before it was dropped; none while it
    /// is there. They are freed when this end is dropped, too.
    #[must_use]
    pub fn lost(&self) -> usize {
        let taken = self.bursts.taken_until_then();
        taken.map_or(0, |taken| self.sent.wrapping_sub(taken))
    }

    /// Sends a control message and rings.
    ///
    /// # Errors
    ///
    /// [`NotSent`]; the message is lost then.
    pub fn send_control(&mut self, message: Out) -> Result<(), NotSent> {
        self.control_out
            .try_send(message)
            .map_err(|error| match error {
                TrySendError::Full(_) => NotSent::Full,
                TrySendError::Disconnected(_) => NotSent::Deserted,
            })?;
        self.bursts.note_sent();
        self.ring();
        Ok(())
    }

    /// The oldest control message that the other end has sent.
    #[inline]
    pub fn recv_control(&mut self) -> Option<In> {
        self.control_in.try_recv().ok()
    }

    /// Wakes the other side if it sleeps and something was sent since the last call, or if it waits
    /// for room and there is some. Call it once after a round of sending or taking.
    pub fn ring(&mut self) {
        self.bursts.ring();
    }

    /// Sets how this side is woken. The first call counts.
    pub fn set_waker(&mut self, waker: Box<dyn Wake>) {
        self.bursts.set_waker(waker);
    }

    /// Announces that this side is about to block. Returns `false` if it must not, because
    /// something waits in a ring, or the other end has gone and [`Self::is_deserted`] has not told yet.
    pub fn try_sleep(&mut self) -> bool {
        let Self {
            bursts, control_in, ..
        } = self;
        bursts.try_sleep(|| control_in.is_empty())
    }

    /// Announces that this side is about to block until the ring that it fills is half empty.
    /// Returns `false` if it must not, because it is, or the other end has gone. It does not look for what came in: who wants
    /// to be woken for that too calls [`Self::try_sleep`] as well.
    pub fn try_await_room(&mut self) -> bool {
        self.bursts.try_await_room()
    }

    /// Ends what [`Self::try_sleep`] and [`Self::try_await_room`] announced, so that nobody rings in
    /// vain.
    pub fn awake(&mut self) {
        self.bursts.awake();
    }

    /// Bursts that wait to be taken by this end.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.bursts.depth()
    }

    /// Bursts that each ring holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bursts.capacity()
    }
}

impl<Out, In> fmt::Debug for End<Out, In> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("End")
            .field("depth", &self.depth())
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{FramePool, MAX_FRAME};
    use crate::packet::Packet;
    use std::sync::mpsc;
    use std::time::Duration;

    /// An IPv4 packet of protocol 253 (RFC 3692) whose payload is `n`.
    fn packet(pool: &mut FramePool, n: u32) -> Packet {
        let mut octets = vec![0; 12];
        octets.extend([
            8, 0, 0x45, 0, 0, 24, 0, 0, 0, 0, 64, 253, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]);
        let sum = crate::checksum::Sum::ZERO.plus(&octets[14..]).checksum();
        octets[24..26].copy_from_slice(&sum.to_be_bytes());
        octets.extend(n.to_be_bytes());
        Packet::parse(pool.copy_from(&octets).unwrap()).unwrap()
    }

    fn withdrawal(id: u32) -> ToNos {
        let exchange = Exchange {
            withdraw: vec![crate::ident::AttachmentId(id)],
            ..Exchange::default()
        };
        ToNos::Exchange(RequestId(1), exchange)
    }

    fn number(packet: &Packet) -> u32 {
        u32::from_be_bytes(packet.transport().try_into().unwrap())
    }

    #[test]
    fn a_full_ring_gives_the_burst_back() {
        let mut pool = FramePool::new(8, MAX_FRAME);
        let (mut relay, mut nos) = pair(1);
        let mut burst = PacketBurst::new();
        assert!(relay.send_burst(&mut burst), "an empty burst needs no room");
        burst.push(packet(&mut pool, 1));
        assert!(relay.send_burst(&mut burst));
        burst.push(packet(&mut pool, 2));
        assert!(!relay.send_burst(&mut burst));
        assert_eq!(number(&burst[0]), 2);
        assert_eq!(nos.recv_burst().map(|burst| number(&burst[0])), Some(1));
        assert!(relay.send_burst(&mut burst) && burst.is_empty());
    }

    #[test]
    fn a_side_with_work_does_not_sleep() {
        let mut pool = FramePool::new(8, MAX_FRAME);
        let (mut relay, mut nos) = pair(4);
        assert!(nos.try_sleep());
        nos.awake();
        let mut burst = PacketBurst::new();
        burst.push(packet(&mut pool, 0));
        relay.send_burst(&mut burst);
        assert!(!nos.try_sleep());
        assert!(nos.recv_burst().is_some());
        relay.send_control(withdrawal(1)).unwrap();
        assert!(!nos.try_sleep());
        assert_eq!(nos.recv_control(), Some(withdrawal(1)));
        assert!(nos.try_sleep());
    }

    struct Bell(mpsc::SyncSender<()>);

    impl Wake for Bell {
        fn wake(&self) {
            let _ = self.0.try_send(());
        }
    }

    /// A sleeper that misses one wake-up waits for ever: the timeout turns that into a failure.
    #[test]
    fn no_wake_up_is_lost_between_threads() {
        const PACKETS: u32 = 20_000;
        let (mut relay, mut nos) = pair(4);
        let (bell, woken) = mpsc::sync_channel(1);
        nos.set_waker(Box::new(Bell(bell)));
        let receiver = std::thread::spawn(move || {
            let mut expected = 0;
            while expected < PACKETS {
                while let Some(burst) = nos.recv_burst() {
                    for packet in &burst {
                        assert_eq!(number(packet), expected);
                        expected += 1;
                    }
                }
                if expected < PACKETS && nos.try_sleep() {
                    woken
                        .recv_timeout(Duration::from_secs(20))
                        .expect("woken for the next burst");
                    nos.awake();
                }
            }
        });
        let mut pool = FramePool::new(1024, 64);
        let mut sent = 0;
        let mut burst = PacketBurst::new();
        while sent < PACKETS {
            while burst.len() < 1 + sent as usize % 5 && sent + (burst.len() as u32) < PACKETS {
                let n = sent + burst.len() as u32;
                burst.push(packet(&mut pool, n));
            }
            let count = burst.len() as u32;
            if relay.send_burst(&mut burst) {
                sent += count;
                relay.ring();
            } else {
                std::thread::yield_now();
            }
        }
        receiver.join().unwrap();
    }

    /// As above, for a sender that waits for room and never finds the ring full.
    #[test]
    fn no_room_is_overlooked_between_threads() {
        const PACKETS: u32 = 20_000;
        let (mut relay, mut nos) = pair(4);
        let (bell, woken) = mpsc::sync_channel(1);
        relay.set_waker(Box::new(Bell(bell)));
        let receiver = std::thread::spawn(move || {
            let mut expected = 0;
            while expected < PACKETS {
                match nos.recv_burst() {
                    Some(burst) => {
                        assert_eq!(number(&burst[0]), expected);
                        expected += 1;
                    }
                    None => std::thread::yield_now(),
                }
                nos.ring();
            }
        });
        let mut pool = FramePool::new(64, 64);
        let mut burst = PacketBurst::new();
        for n in 0..PACKETS {
            // A wake-up may be of an earlier announcement, which had been taken back.
            while !relay.has_room() && relay.try_await_room() {
                woken
                    .recv_timeout(Duration::from_secs(20))
                    .expect("woken when there is room");
                relay.awake();
            }
            burst.push(packet(&mut pool, n));
            assert!(relay.send_burst(&mut burst), "there was room");
        }
        receiver.join().unwrap();
    }

    #[test]
    fn a_side_with_room_does_not_wait_for_it() {
        let mut pool = FramePool::new(8, MAX_FRAME);
        let (mut relay, mut nos) = pair(2);
        let mut burst = PacketBurst::new();
        assert!(relay.has_room() && !relay.try_await_room());
        for n in 0..2 {
            burst.push(packet(&mut pool, n));
            relay.send_burst(&mut burst);
        }
        assert!(!relay.has_room() && relay.try_await_room());
        assert!(nos.recv_burst().is_some());
        assert!(relay.has_room() && !relay.try_await_room());
    }

    #[test]
    fn control_to_a_side_that_has_gone_is_an_error() {
        let (mut relay, nos) = pair(4);
        drop(nos);
        assert_eq!(relay.send_control(withdrawal(1)), Err(NotSent::Deserted));
    }

    #[test]
    fn control_to_a_side_that_does_not_read_is_an_error() {
        let (mut relay, _nos) = pair(4);
        for id in 0..1024 {
            relay.send_control(withdrawal(id)).unwrap();
        }
        assert_eq!(relay.send_control(withdrawal(1024)), Err(NotSent::Full));
    }

    #[test]
    fn what_a_side_that_has_gone_did_not_take_is_known() {
        let mut pool = FramePool::new(8, MAX_FRAME);
        let (mut relay, mut nos) = pair(4);
        let mut burst = PacketBurst::new();
        for n in 0..3 {
            burst.push(packet(&mut pool, n));
            burst.push(packet(&mut pool, n));
            assert!(relay.send_burst(&mut burst));
        }
        burst.push(packet(&mut pool, 3));
        assert!(nos.send_burst(&mut burst));
        assert!(nos.recv_burst().is_some());
        assert!(!relay.is_deserted() && relay.lost() == 0);
        drop(nos);
        assert!(!relay.try_sleep(), "there is news");
        assert!(relay.is_deserted());
        assert_eq!(relay.lost(), 4);
        assert_eq!(relay.recv_burst().map(|burst| burst.len()), Some(1));
        burst.push(packet(&mut pool, 4));
        assert!(!relay.send_burst(&mut burst) && burst.len() == 1);
        assert!(!relay.try_await_room());
        assert!(relay.try_sleep(), "it has been told");
        drop((relay, burst));
        // All buffers are there again.
        let all: Vec<_> = (0..8).map(|_| pool.alloc()).collect();
        assert!(all.iter().all(Option::is_some));
    }
}
