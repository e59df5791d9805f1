//! The NOS's end of the channel: packets.

use core::ffi::c_int;
use core::mem::MaybeUninit;
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd};

use ::nos_relay::embed::NosPort;
use nos_shim::frame::BATCH;
use nos_shim::offload::{Capabilities, adapt};
use nos_shim::packet::{Packet, PacketBurst, Rejected};

use crate::device;
use crate::failure::{Code, Failure, Outcome, call};
use crate::handle::{Bound, Kind};
use crate::input::{Name, optional, optional_place, place, room, slice, value};
use crate::lent::{Bursts, give_back, pack, unpack};
use crate::message::Taken;
use crate::packet::{self, lend, lend_raw, nos_relay_offload, nos_relay_packet, take, take_frame};

/// The NOS's side of a relay. It belongs to the first thread that uses it, until nos_relay_port_unbind(); to
/// others its functions say NOS_RELAY_E_THREAD. None of them blocks but nos_relay_port_wait(). There are at most 1024
/// at a time.
///
/// A round of a NOS: nos_relay_port_request(), and an answer to each; nos_relay_port_rx_burst(), and forward what
/// containers send; nos_relay_port_tx_burst() of packets for containers; nos_relay_port_wait(). Who has a loop of
/// events already calls nos_relay_port_ring() in place of that, and if nos_relay_port_may_block(), waits for
/// nos_relay_port_fd() among others, and then calls nos_relay_port_awake().
#[derive(Debug)]
pub struct nos_relay_port {
    _opaque: (),
}

/// The device takes partial checksums.
pub const NOS_RELAY_TAKES_CHECKSUM: u32 = 1;
/// The device takes TCP super-frames over IPv4.
pub const NOS_RELAY_TAKES_TSO4: u32 = 2;
/// The device takes TCP super-frames over IPv6.
pub const NOS_RELAY_TAKES_TSO6: u32 = 4;
/// The device takes UDP super-frames.
pub const NOS_RELAY_TAKES_USO: u32 = 8;
/// The device takes super-frames of UDP tunnels.
pub const NOS_RELAY_TAKES_TUNNEL: u32 = 16;
/// The device takes super-frames of GRE and IP in IP.
pub const NOS_RELAY_TAKES_IP_TUNNEL: u32 = 32;
/// The device takes TCP super-frames all of whose segments have the flag CWR.
pub const NOS_RELAY_TAKES_ACCURATE_ECN: u32 = 64;
/// Octets of the virtio-net header of nos_relay_port_read() and nos_relay_port_write(), in the byte order of the
/// processor (struct virtio_net_hdr).
pub const NOS_RELAY_VIRTIO_HEADER: u32 = 10;
/// Packets of a burst, at most.
pub const NOS_RELAY_BURST: u32 = 64;

const _: () = assert!(NOS_RELAY_BURST as usize == BATCH, "the header says it");

/// A port, and what C has not taken of it yet.
pub(crate) struct Port {
    pub(crate) nos: NosPort,
    /// The rest of a burst for which there was no room.
    rest: Option<PacketBurst>,
    /// The bursts that C has.
    pub(crate) bursts: Bursts,
    /// Empty between calls.
    pub(crate) outgoing: PacketBurst,
    /// Empty between calls.
    pub(crate) kept: PacketBurst,
    /// What packets were made into for a device.
    pieces: VecDeque<Packet>,
    /// A request that was taken, and not answered yet.
    pub(crate) taken: Option<Taken>,
}

static PORTS: Bound<Port> = Bound::new(Kind::Port);

/// A port for C, of a Rust program that parts with its own; `None` where there are too many.
#[must_use]
pub fn of(nos: NosPort) -> Option<*mut nos_relay_port> {
    add(nos).ok()
}

pub(crate) fn add(nos: NosPort) -> Result<*mut nos_relay_port, Failure> {
    let port = Port {
        nos,
        rest: None,
        bursts: Bursts::default(),
        outgoing: PacketBurst::new(),
        kept: PacketBurst::new(),
        pieces: VecDeque::new(),
        taken: None,
    };
    PORTS.add(port).map(core::ptr::without_provenance_mut)
}

#[inline(always)]
pub(crate) fn with<R>(
    port: *mut nos_relay_port,
    body: impl FnOnce(&mut Port) -> Result<R, Failure>,
) -> Result<R, Failure> {
    PORTS.with(port.addr(), "port", body)
}

/// Gives a port up, so that another thread may use it.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_unbind(port: *mut nos_relay_port) -> c_int {
    call(|| PORTS.unbind(port.addr(), "port"))
}

/// Frees a port: the NOS ends. The relay drops what containers send until another has taken its place. Packets
/// that the caller has stay the caller's.
///
/// Threads: the port's, or any if it was given up.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_free(port: *mut nos_relay_port) -> c_int {
    call(|| PORTS.remove(port.addr(), "port").map(drop))
}

/// Tells the descriptor (eventfd(2)) that is readable when the relay has something for a NOS that has announced
/// to wait. It is the port's: it is neither read nor closed by the caller.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_fd(
    port: *mut nos_relay_port,
    descriptor: *mut c_int,
) -> c_int {
    call(|| {
        ask(port, descriptor, "descriptor", |port| {
            port.nos.as_fd().as_raw_fd()
        })
    })
}

/// Takes up to `capacity` packets that containers have sent, and says how many: 0 if there are none. They are
/// the caller's from then on, who sends or frees each. A call takes one burst at most; a capacity of
/// NOS_RELAY_BURST has room for any.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_rx_burst(
    port: *mut nos_relay_port,
    packets: *mut *mut nos_relay_packet,
    capacity: usize,
    count: *mut usize,
) -> c_int {
    call(|| {
        // SAFETY: they are where results go.
        let (to, count) = unsafe { (room(packets, capacity, "packets")?, place(count, "count")?) };
        with(port, |port| {
            count.write(port.receive(to));
            Ok(())
        })
    })
}

impl Port {
    #[inline]
    pub(crate) fn next_burst(&mut self) -> Option<PacketBurst> {
        self.rest.take().or_else(|| self.nos.channel().recv_burst())
    }

    /// Whether the relay has to take something before it can be sent more. A ring that nobody empties any more
    /// does not count as full.
    #[inline]
    pub(crate) fn is_full(&mut self) -> bool {
        !self.nos.channel().has_room() && !self.nos.channel().is_deserted()
    }

    #[inline]
    fn receive(&mut self, to: &mut [MaybeUninit<*mut nos_relay_packet>]) -> usize {
        let Some(mut burst) = self.next_burst() else {
            return 0;
        };
        let count = unpack(&mut burst, to);
        if burst.is_empty() {
            self.nos.channel().recycle(burst);
        } else {
            self.rest = Some(burst);
        }
        count
    }

    /// Sends packets, and says how many are not the caller's any more.
    #[inline]
    fn send(&mut self, packets: &[*mut nos_relay_packet]) -> (usize, Outcome) {
        let mut taken = 0;
        for chunk in packets.chunks(BATCH) {
            if self.is_full() {
                break;
            }
            let packed = pack(chunk, taken, &mut self.outgoing);
            let count = self.outgoing.len();
            if !self.nos.channel().send_burst(&mut self.outgoing) {
                // The relay has ended. What was its next burst is the caller's again.
                give_back(&mut self.outgoing);
                return (taken, Err(ended()));
            }
            taken += count;
            if let Err(failure) = packed {
                return (taken, Err(failure));
            }
        }
        (taken, Ok(()))
    }
}

#[cold]
pub(crate) fn ended() -> Failure {
    Failure::new(
        Code::NOS_RELAY_E_ENDED,
        "port: the relay has ended, or another NOS has taken this one's place",
    )
}

/// Sends `count` packets for containers, each to the attachment that it is set to, and says how many were taken:
/// less than `count` if the ring is full, or if one of them is wrong or the relay has ended, which the code tells.
/// Those are not the caller's any more; the others still are. The relay is woken by nos_relay_port_ring().
///
/// Threads: the port's, which has the packets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_tx_burst(
    port: *mut nos_relay_port,
    packets: *const *mut nos_relay_packet,
    count: usize,
    taken: *mut usize,
) -> c_int {
    call(|| {
        // SAFETY: they are packets, and where a result goes.
        let (packets, taken) =
            unsafe { (slice(packets, count, "packets")?, place(taken, "taken")?) };
        taken.write(0);
        with(port, |port| {
            let (count, outcome) = port.send(packets);
            taken.write(count);
            outcome
        })
    })
}

/// Frees `count` packets: the same as nos_relay_packet_free() of each, but without atomic operations, if they are
/// of this port's relay. If one of them is wrong, those in front of it are freed.
///
/// Threads: the port's, which has the packets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_free_burst(
    port: *mut nos_relay_port,
    packets: *const *mut nos_relay_packet,
    count: usize,
) -> c_int {
    call(|| {
        // SAFETY: they are packets.
        let packets = unsafe { slice(packets, count, "packets") }?;
        with(port, |port| {
            for (n, &handle) in packets.iter().enumerate() {
                // SAFETY: it is a packet of the caller's, or told to be none.
                let frame = unsafe { take_frame(handle, Name::Element("packets", n)) }?;
                port.nos.pool().free(frame);
            }
            Ok(())
        })
    })
}

/// Takes an empty buffer from the relay's pool, as one that nos_relay_packet_edit() has lent already. Packets for
/// containers had better come from there, as its buffers have room for a super-frame.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_alloc(
    port: *mut nos_relay_port,
    packet: *mut *mut nos_relay_packet,
) -> c_int {
    call(|| {
        // SAFETY: it is where the result goes.
        let place = unsafe { place(packet, "packet") }?;
        with(port, |port| {
            let frame = port.nos.pool().alloc().ok_or_else(no_buffer)?;
            place.write(lend_raw(frame));
            Ok(())
        })
    })
}

#[cold]
fn no_buffer() -> Failure {
    Failure::new(
        Code::NOS_RELAY_E_FULL,
        "port: no buffer of the pool is free",
    )
}

/// Copies a frame into a buffer of the relay's pool, and parses it. Offload may be NULL: nothing remains to be
/// done. NOS_RELAY_E_MALFORMED if it is no packet, and there is none then.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_copy(
    port: *mut nos_relay_port,
    frame: *const u8,
    length: usize,
    offload: *const nos_relay_offload,
    packet: *mut *mut nos_relay_packet,
) -> c_int {
    call(|| {
        // SAFETY: they are octets, a value, and where the result goes.
        let (octets, offload, place) = unsafe {
            (
                slice(frame, length, "frame")?,
                optional(offload, "offload")?,
                place(packet, "packet")?,
            )
        };
        let offload = packet::read_offload(offload)?;
        with(port, |port| {
            let mut frame = port.nos.pool().alloc().ok_or_else(no_buffer)?;
            if let Err(full) = frame.set_len(octets.len()) {
                port.nos.pool().free(frame);
                return Err(Failure::new(
                    Code::NOS_RELAY_E_SIZE,
                    format_args!("length: {full}"),
                ));
            }
            frame.bytes_mut().copy_from_slice(octets);
            frame.set_offload(offload);
            match Packet::parse(frame) {
                Ok(packet) => {
                    place.write(lend(packet));
                    Ok(())
                }
                Err(Rejected { frame, reason }) => {
                    port.nos.pool().free(frame);
                    let message = format_args!("frame is no packet: {reason}");
                    Err(Failure::new(Code::NOS_RELAY_E_MALFORMED, message))
                }
            }
        })
    })
}

/// Makes of a packet what a device can send that takes NOS_RELAY_TAKES_*: the packet untouched if possible, else
/// with its checksum completed, else in segments. It is not the caller's any more; nos_relay_port_adapted() has
/// what became of it. Segments for which there was no buffer are missing, and `dropped` counts them, which may
/// be NULL.
///
/// Threads: the port's, which has the packet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_adapt(
    port: *mut nos_relay_port,
    packet: *mut nos_relay_packet,
    takes: u32,
    dropped: *mut u64,
) -> c_int {
    call(|| {
        // SAFETY: it is where a result goes.
        let dropped = unsafe { optional_place(dropped, "dropped") }?;
        let takes = capabilities(takes)?;
        with(port, |port| {
            // SAFETY: it is a packet of the caller's, or told to be none.
            let packet = unsafe { take(packet, "packet".into()) }?;
            let (pool, pieces) = (port.nos.pool(), &mut port.pieces);
            let adapted = adapt(packet, takes, pool, &mut |piece| pieces.push_back(piece));
            if let Some(place) = dropped {
                place.write(adapted.dropped.map_or(0, |dropped| dropped.packets));
            }
            Ok(())
        })
    })
}

/// Takes up to `capacity` packets of what nos_relay_port_adapt() has made, in order, and says how many: 0 if
/// there are none left.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_adapted(
    port: *mut nos_relay_port,
    packets: *mut *mut nos_relay_packet,
    capacity: usize,
    count: *mut usize,
) -> c_int {
    call(|| {
        // SAFETY: they are where results go.
        let (to, count) = unsafe { (room(packets, capacity, "packets")?, place(count, "count")?) };
        with(port, |port| {
            let number = port.pieces.len().min(to.len());
            for (place, packet) in to.iter_mut().zip(port.pieces.drain(..number)) {
                place.write(lend(packet));
            }
            count.write(number);
            Ok(())
        })
    })
}

/// Reads up to `capacity` packets from a descriptor whose frames have a virtio-net header of NOS_RELAY_VIRTIO_HEADER
/// octets in front: a packet socket with PACKET_VNET_HDR, a TAP with IFF_VNET_HDR. `count` says how many there
/// were: less than `capacity` if there are no more now, or no buffers. `malformed`, which may be NULL, counts
/// frames that were no packets, as ARP is none; they are dropped. NOS_RELAY_E_SYSTEM if the descriptor fails,
/// after `count` packets.
///
/// Threads: the port's. The descriptor had better not block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_read(
    port: *mut nos_relay_port,
    descriptor: c_int,
    packets: *mut *mut nos_relay_packet,
    capacity: usize,
    count: *mut usize,
    malformed: *mut u64,
) -> c_int {
    call(|| {
        // SAFETY: they are where results go.
        let (to, count, malformed) = unsafe {
            (
                room(packets, capacity, "packets")?,
                place(count, "count")?,
                optional_place(malformed, "malformed")?,
            )
        };
        count.write(0);
        with(port, |port| {
            let (mut taken, mut others) = (0, 0);
            let outcome = loop {
                let Some(place) = to.get_mut(taken) else {
                    break Ok(());
                };
                let Some(frame) = port.nos.pool().alloc() else {
                    break Ok(());
                };
                match device::read(descriptor, frame) {
                    Ok(Some(Ok(packet))) => {
                        place.write(lend(packet));
                        taken += 1;
                    }
                    Ok(Some(Err(Rejected { frame, .. }))) => {
                        port.nos.pool().free(frame);
                        others += 1;
                    }
                    Ok(None) => break Ok(()),
                    Err(failure) => break Err(failure),
                }
            };
            count.write(taken);
            if let Some(place) = malformed {
                place.write(others);
            }
            outcome
        })
    })
}

/// Writes a packet to such a descriptor that takes NOS_RELAY_TAKES_*, as nos_relay_port_adapt() makes it. The
/// packet is not the caller's any more. `dropped`, which may be NULL, counts what the descriptor did not take, and
/// segments for which there was no buffer; NOS_RELAY_E_SYSTEM says why it did not.
///
/// Threads: the port's, which has the packet. The descriptor had better not block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_write(
    port: *mut nos_relay_port,
    descriptor: c_int,
    packet: *mut nos_relay_packet,
    takes: u32,
    dropped: *mut u64,
) -> c_int {
    call(|| {
        // SAFETY: it is where a result goes.
        let dropped = unsafe { optional_place(dropped, "dropped") }?;
        let takes = capabilities(takes)?;
        with(port, |port| {
            // SAFETY: it is a packet of the caller's, or told to be none.
            let packet = unsafe { take(packet, "packet".into()) }?;
            let (mut outcome, mut lost) = (Ok(()), 0);
            let mut write = |piece: Packet| {
                if let Err(failure) = device::write(descriptor, piece) {
                    (outcome, lost) = (Err(failure), lost + 1);
                }
            };
            let adapted = adapt(packet, takes, port.nos.pool(), &mut write);
            if let Some(place) = dropped {
                place.write(lost + adapted.dropped.map_or(0, |dropped| dropped.packets));
            }
            outcome
        })
    })
}

fn capabilities(takes: u32) -> Result<Capabilities, Failure> {
    let takes = u8::try_from(takes).ok().and_then(Capabilities::from_bits);
    takes.ok_or_else(|| value("takes", "it has bits that are no NOS_RELAY_TAKES_*"))
}

/// Wakes the relay if it waits for something that was sent since the last call, or for room and there is some.
/// Call it once after a round of sending or taking.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_ring(port: *mut nos_relay_port) -> c_int {
    call(|| {
        with(port, |port| {
            port.nos.channel().ring();
            Ok(())
        })
    })
}

fn ask<T>(
    port: *mut nos_relay_port,
    to: *mut T,
    name: &'static str,
    question: impl FnOnce(&mut Port) -> T,
) -> Outcome {
    // SAFETY: it is where the result goes.
    let place = unsafe { place(to, name) }?;
    with(port, |port| {
        place.write(question(port));
        Ok(())
    })
}

/// Announces that the caller is about to wait until nos_relay_port_fd() is readable. Tells false if it must
/// not, because there is something to do.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_may_block(
    port: *mut nos_relay_port,
    may: *mut bool,
) -> c_int {
    call(|| {
        ask(port, may, "may", |port| {
            port.rest.is_none() && port.nos.may_block()
        })
    })
}

/// Announces that the caller is about to wait until the ring towards the relay is half empty. Tells false if it
/// must not, because it is. Who wants to be woken for what comes, too, calls nos_relay_port_may_block() besides.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_may_await_room(
    port: *mut nos_relay_port,
    may: *mut bool,
) -> c_int {
    call(|| ask(port, may, "may", |port| port.nos.channel().try_await_room()))
}

/// Takes both announcements back, and the ring too. To be called after every wait.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_awake(port: *mut nos_relay_port) -> c_int {
    call(|| {
        with(port, |port| {
            port.nos.awake();
            Ok(())
        })
    })
}

/// Waits at the end of a round: rings, and blocks for up to `milliseconds`, -1 for ever, until the relay has something
/// or one of `count` descriptors can be read from, 15 at most. It returns at once if there is something already,
/// and when a signal comes. `is_deserted` as of nos_relay_port_is_deserted().
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_wait(
    port: *mut nos_relay_port,
    descriptors: *const c_int,
    count: usize,
    milliseconds: c_int,
    is_deserted: *mut bool,
) -> c_int {
    call(|| {
        // SAFETY: they are values, and where the result goes.
        let (descriptors, is_deserted) = unsafe {
            (
                slice(descriptors, count, "descriptors")?,
                place(is_deserted, "is_deserted")?,
            )
        };
        if count > device::MAX_WAITS {
            let message = format_args!(
                "count: {count} descriptors are more than {}",
                device::MAX_WAITS
            );
            return Err(Failure::new(Code::NOS_RELAY_E_SIZE, message));
        }
        with(port, |port| {
            port.nos.channel().ring();
            let deserted = port.nos.channel().is_deserted();
            is_deserted.write(deserted);
            // Who has ended says nothing more.
            if deserted || port.rest.is_some() || !port.nos.may_block() {
                return Ok(());
            }
            let waited = device::wait(descriptors, port.nos.as_fd().as_raw_fd(), milliseconds);
            port.nos.awake();
            is_deserted.write(port.nos.channel().is_deserted());
            waited
        })
    })
}

/// Tells whether the ring towards the relay takes another burst. Only the caller fills it, so it stays true until
/// then.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_has_room(
    port: *mut nos_relay_port,
    has_room: *mut bool,
) -> c_int {
    call(|| {
        ask(port, has_room, "has_room", |port| {
            port.nos.channel().has_room()
        })
    })
}

/// Tells whether the relay has ended, or another NOS has taken this one's place. What it sent before can still be
/// taken.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_is_deserted(
    port: *mut nos_relay_port,
    is_deserted: *mut bool,
) -> c_int {
    call(|| {
        ask(port, is_deserted, "is_deserted", |port| {
            port.nos.channel().is_deserted()
        })
    })
}

/// Tells how many packets were sent that the relay never took before it ended.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_lost(
    port: *mut nos_relay_port,
    packets: *mut usize,
) -> c_int {
    call(|| ask(port, packets, "packets", |port| port.nos.channel().lost()))
}
