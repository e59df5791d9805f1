//! Packets, and the parser alone.
//!
//! A packet that C has is the address of its buffer, which has a mark meanwhile: [`PARSED`], or [`RAW`] while
//! its octets may be other ones than were parsed. Whoever takes a packet from C takes the mark off, so that
//! an address that was given away, or freed, is told from one that is C's until the buffer is used again.

use core::ffi::{c_char, c_int, c_void};
use core::mem::{ManuallyDrop, MaybeUninit};
use core::num::NonZeroU16;
use core::ptr::NonNull;
use std::ffi::CString;
use std::sync::LazyLock;

use nos_shim::drop::DropReason;
use nos_shim::frame::{
    Checksum, ETHERNET_HEADER, Ecn, Encapsulation, Frame, GsoKind, Offload, Segmentation,
};
use nos_shim::ident::{AttachmentId, Interface, MacAddr};
use nos_shim::packet::{Fragment, Packet, Parsed, Rejected, parse};

use crate::failure::{Code, Failure, call};
use crate::input::{Name, null, optional, optional_place, place, places, read, slice, value};
use crate::registration::vrf;

/// A packet in a buffer of a relay's pool. Its address tells which; who has it owns the buffer, and uses it on
/// one thread at a time. One that was given away or freed is told by its address until the buffer is used
/// again, and for as long as the port or another packet of the pool is there.
#[derive(Debug)]
pub struct nos_relay_packet {
    _opaque: (),
}

/// A packet that is of no attachment.
pub const NOS_RELAY_NO_ATTACHMENT: u32 = u32::MAX;

/// It is IPv6.
pub const NOS_RELAY_IPV6: u8 = 1;
/// A fragment with the transport header; more follow.
pub const NOS_RELAY_FIRST_FRAGMENT: u8 = 2;
/// A fragment without a transport header.
pub const NOS_RELAY_LATER_FRAGMENT: u8 = 4;
/// Routers must not fragment it: IPv4 with DF, and every IPv6 packet.
pub const NOS_RELAY_DONT_FRAGMENT: u8 = 8;
/// There are IPv4 options, or IPv6 hop-by-hop options.
pub const NOS_RELAY_OPTIONS: u8 = 16;
/// It is TCP or UDP, and its ports are known.
pub const NOS_RELAY_PORTS: u8 = 32;
/// An IPv6 routing header still names stations.
pub const NOS_RELAY_ROUTED: u8 = 64;

/// The transport checksum is in the frame; nobody has verified it.
pub const NOS_RELAY_CHECKSUM_COMPLETE: u8 = 0;
/// The transport checksum is right, or was never on a wire.
pub const NOS_RELAY_CHECKSUM_VERIFIED: u8 = 1;
/// The checksum field holds the pseudo-header's sum; the octets from checksum_start on are to be summed up, and
/// the result goes to checksum_start + checksum_offset.
pub const NOS_RELAY_CHECKSUM_PARTIAL: u8 = 2;

/// It is an ordinary packet.
pub const NOS_RELAY_SEGMENTATION_NONE: u8 = 0;
/// It is a TCP super-frame over IPv4.
pub const NOS_RELAY_SEGMENTATION_TCP4: u8 = 1;
/// It is a TCP super-frame over IPv6.
pub const NOS_RELAY_SEGMENTATION_TCP6: u8 = 2;
/// It is a UDP super-frame over either, with a datagram in each segment.
pub const NOS_RELAY_SEGMENTATION_UDP: u8 = 3;

/// No segment has the TCP flag CWR.
pub const NOS_RELAY_ECN_UNMARKED: u8 = 0;
/// The first segment has the TCP flag CWR (RFC 3168).
pub const NOS_RELAY_ECN_CLASSIC: u8 = 1;
/// All segments have the TCP flag CWR (RFC 9768).
pub const NOS_RELAY_ECN_ACCURATE: u8 = 2;

/// What is cut is no packet in a tunnel.
pub const NOS_RELAY_ENCAPSULATION_NONE: u8 = 0;
/// What is cut is in UDP: VXLAN, Geneve.
pub const NOS_RELAY_ENCAPSULATION_UDP: u8 = 1;
/// What is cut is in GRE.
pub const NOS_RELAY_ENCAPSULATION_GRE: u8 = 2;
/// What is cut is in IP.
pub const NOS_RELAY_ENCAPSULATION_IP: u8 = 3;

/// What remains to be done with a packet before it is on a wire. Offsets count octets from the start of the
/// frame.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct nos_relay_offload {
    /// NOS_RELAY_CHECKSUM_*.
    pub checksum: u8,
    /// NOS_RELAY_SEGMENTATION_*.
    pub segmentation: u8,
    /// NOS_RELAY_ECN_*, of a TCP super-frame.
    pub ecn: u8,
    /// NOS_RELAY_ENCAPSULATION_*. The parser finds it out: it is not read.
    pub encapsulation: u8,
    /// Where the sum begins, of a partial checksum.
    pub checksum_start: u16,
    /// Octets from there to the checksum field.
    pub checksum_offset: u16,
    /// Octets of transport payload in each segment but the last, of a super-frame.
    pub segment_size: u16,
    /// Where the IP header is of the packet in a tunnel that is cut. Not read.
    pub tunnel_network: u16,
    /// Where the transport header is of the packet in a tunnel that is cut. Not read.
    pub tunnel_transport: u16,
}

/// What there is to know of a packet. Offsets count octets from the start of the frame.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct nos_relay_view {
    /// The frame, from its Ethernet header on: to be read only.
    pub data: *const u8,
    /// Octets of the frame, without what follows the IP packet.
    pub length: usize,
    /// The attachment on which it came in, or NOS_RELAY_NO_ATTACHMENT.
    pub attachment: u32,
    /// The VRF in which it is looked up.
    pub vrf: u16,
    /// Where the IP header is.
    pub network: u16,
    /// Where the transport header is, or the payload of a later fragment.
    pub transport: u16,
    /// Where the payload of TCP or UDP is; else the same as `transport`.
    pub payload: u16,
    /// The sender's port, in the byte order of the processor; 0 without NOS_RELAY_PORTS.
    pub source_port: u16,
    /// The receiver's port.
    pub destination_port: u16,
    /// The protocol of the transport header, behind IPv6 extension headers.
    pub protocol: u8,
    /// NOS_RELAY_IPV6 and others.
    pub flags: u8,
    /// What remains to be done with it.
    pub offload: nos_relay_offload,
}

/// Of a buffer that C has, with a packet in it.
const PARSED: u16 = 0x9ac6;
/// Of a buffer that C has, and may write to.
const RAW: u16 = 0x3a57;
/// Of all others.
const NOT_LENT: u16 = 0;

/// Buffers are a line of the cache, and something.
const ALIGNMENT: usize = 64;

fn handle(raw: NonNull<c_void>) -> *mut nos_relay_packet {
    raw.cast().as_ptr()
}

/// Gives a packet to C.
#[inline]
pub(crate) fn lend(packet: Packet) -> *mut nos_relay_packet {
    packet.frame().set_mark(PARSED);
    handle(packet.into_raw())
}

/// Gives a buffer to C in which there is nothing yet.
pub(crate) fn lend_raw(frame: Frame) -> *mut nos_relay_packet {
    frame.set_mark(RAW);
    handle(frame.into_raw())
}

/// The buffer that C says it has, and its mark.
///
/// # Safety
///
/// It is NULL, misaligned, or the address of a buffer whose pool is there.
#[inline]
unsafe fn find(
    packet: *mut nos_relay_packet,
    name: Name,
) -> Result<(NonNull<c_void>, u16), Failure> {
    let Some(raw) = NonNull::new(packet.cast::<c_void>()) else {
        return Err(null(name));
    };
    if !packet.addr().is_multiple_of(ALIGNMENT) {
        return Err(misplaced(name, packet.addr()));
    }
    // SAFETY: as the caller says.
    match unsafe { Frame::mark_of(raw) } {
        mark @ (PARSED | RAW) => Ok((raw, mark)),
        _ => Err(given_away(name)),
    }
}

#[cold]
fn misplaced(name: Name, address: usize) -> Failure {
    let message = format_args!("{name}: {address:#x} is no packet's address");
    Failure::new(Code::NOS_RELAY_E_ALIGNMENT, message)
}

#[cold]
fn given_away(name: Name) -> Failure {
    let message = format_args!("{name} was freed or sent, or never was a packet of the caller's");
    Failure::new(Code::NOS_RELAY_E_HANDLE, message)
}

#[cold]
fn unparsed(name: Name) -> Failure {
    let message =
        format_args!("{name} may have been written to: nos_relay_packet_commit() comes first");
    Failure::new(Code::NOS_RELAY_E_ORDER, message)
}

/// A packet that stays C's.
///
/// # Safety
///
/// As [`find`]; nobody else uses the packet meanwhile.
#[inline]
pub(crate) unsafe fn borrow(
    packet: *mut nos_relay_packet,
    name: Name,
) -> Result<ManuallyDrop<Packet>, Failure> {
    // SAFETY: as the caller says.
    match unsafe { find(packet, name) }? {
        // SAFETY: it was lent as a packet, and has stayed one: C's it is until the end of the call, and
        // it is not dropped.
        (raw, PARSED) => Ok(ManuallyDrop::new(unsafe { Packet::from_raw(raw) })),
        _ => Err(unparsed(name)),
    }
}

/// Takes a packet from C.
///
/// # Safety
///
/// As [`borrow`].
#[inline]
pub(crate) unsafe fn take(packet: *mut nos_relay_packet, name: Name) -> Result<Packet, Failure> {
    // SAFETY: as the caller says.
    let packet = unsafe { borrow(packet, name) }?;
    packet.frame().set_mark(NOT_LENT);
    Ok(ManuallyDrop::into_inner(packet))
}

/// Takes a buffer from C, whatever is in it.
///
/// # Safety
///
/// As [`borrow`].
pub(crate) unsafe fn take_frame(
    packet: *mut nos_relay_packet,
    name: Name,
) -> Result<Frame, Failure> {
    // SAFETY: as the caller says.
    let (raw, _) = unsafe { find(packet, name) }?;
    // SAFETY: it was lent, and is taken back by this alone, as the mark goes.
    let frame = unsafe { Frame::from_raw(raw) };
    frame.set_mark(NOT_LENT);
    Ok(frame)
}

fn offload(from: Offload) -> nos_relay_offload {
    let mut to = nos_relay_offload::default();
    match from.checksum {
        Checksum::Complete => {}
        Checksum::Verified => to.checksum = NOS_RELAY_CHECKSUM_VERIFIED,
        Checksum::Partial { start, offset } => {
            to.checksum = NOS_RELAY_CHECKSUM_PARTIAL;
            (to.checksum_start, to.checksum_offset) = (start, offset);
        }
    }
    let Some(segmentation) = from.segmentation else {
        return to;
    };
    to.segment_size = segmentation.size.get();
    to.segmentation = match segmentation.kind {
        GsoKind::TcpV4 => NOS_RELAY_SEGMENTATION_TCP4,
        GsoKind::TcpV6 => NOS_RELAY_SEGMENTATION_TCP6,
        GsoKind::Udp => NOS_RELAY_SEGMENTATION_UDP,
    };
    to.ecn = match segmentation.ecn {
        Ecn::Unmarked => NOS_RELAY_ECN_UNMARKED,
        Ecn::Classic => NOS_RELAY_ECN_CLASSIC,
        Ecn::Accurate => NOS_RELAY_ECN_ACCURATE,
    };
    if let Some(tunnel) = segmentation.tunnel {
        to.encapsulation = match tunnel.encapsulation {
            Encapsulation::Udp => NOS_RELAY_ENCAPSULATION_UDP,
            Encapsulation::Gre => NOS_RELAY_ENCAPSULATION_GRE,
            Encapsulation::Ip => NOS_RELAY_ENCAPSULATION_IP,
        };
        (to.tunnel_network, to.tunnel_transport) = (tunnel.network, tunnel.transport);
    }
    to
}

pub(crate) fn read_offload(from: Option<nos_relay_offload>) -> Result<Offload, Failure> {
    let Some(from) = from else {
        return Ok(Offload::NONE);
    };
    let checksum = match from.checksum {
        NOS_RELAY_CHECKSUM_COMPLETE => Checksum::Complete,
        NOS_RELAY_CHECKSUM_VERIFIED => Checksum::Verified,
        NOS_RELAY_CHECKSUM_PARTIAL => Checksum::Partial {
            start: from.checksum_start,
            offset: from.checksum_offset,
        },
        other => {
            let what = format_args!("{other} is none of NOS_RELAY_CHECKSUM_*");
            return Err(value("offload->checksum", what));
        }
    };
    let kind = match from.segmentation {
        NOS_RELAY_SEGMENTATION_NONE => {
            return Ok(Offload {
                checksum,
                segmentation: None,
            });
        }
        NOS_RELAY_SEGMENTATION_TCP4 => GsoKind::TcpV4,
        NOS_RELAY_SEGMENTATION_TCP6 => GsoKind::TcpV6,
        NOS_RELAY_SEGMENTATION_UDP => GsoKind::Udp,
        other => {
            let what = format_args!("{other} is none of NOS_RELAY_SEGMENTATION_*");
            return Err(value("offload->segmentation", what));
        }
    };
    let ecn = match from.ecn {
        NOS_RELAY_ECN_UNMARKED => Ecn::Unmarked,
        NOS_RELAY_ECN_CLASSIC => Ecn::Classic,
        NOS_RELAY_ECN_ACCURATE => Ecn::Accurate,
        other => {
            return Err(value(
                "offload->ecn",
                format_args!("{other} is none of NOS_RELAY_ECN_*"),
            ));
        }
    };
    let size = NonZeroU16::new(from.segment_size);
    let size = size.ok_or_else(|| value("offload->segment_size", "0 octets are no segment"))?;
    let segmentation = Some(Segmentation {
        kind,
        ecn,
        size,
        tunnel: None,
    });
    Ok(Offload {
        checksum,
        segmentation,
    })
}

#[inline]
fn flags(parsed: &Parsed) -> u8 {
    let mut flags = match parsed.fragment() {
        Fragment::Whole => 0,
        Fragment::First => NOS_RELAY_FIRST_FRAGMENT,
        Fragment::Later => NOS_RELAY_LATER_FRAGMENT,
    };
    for (is, flag) in [
        (parsed.is_ipv6(), NOS_RELAY_IPV6),
        (parsed.dont_fragment(), NOS_RELAY_DONT_FRAGMENT),
        (parsed.has_options(), NOS_RELAY_OPTIONS),
        (parsed.ports().is_some(), NOS_RELAY_PORTS),
        (parsed.has_segments_left(), NOS_RELAY_ROUTED),
    ] {
        flags |= if is { flag } else { 0 };
    }
    flags
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "an Ethernet header has 14 octets"
)]
const NETWORK: u16 = ETHERNET_HEADER as u16;

#[inline]
fn view_of(octets: &[u8], parsed: &Parsed, remains: Offload) -> nos_relay_view {
    let (source_port, destination_port) = parsed
        .ports()
        .map_or((0, 0), |ports| (ports.source, ports.destination));
    nos_relay_view {
        data: octets.as_ptr(),
        length: octets.len(),
        attachment: NOS_RELAY_NO_ATTACHMENT,
        vrf: 0,
        network: NETWORK,
        transport: parsed.transport_offset(),
        payload: parsed.payload_offset(),
        source_port,
        destination_port,
        protocol: parsed.protocol(),
        flags: flags(parsed),
        offload: offload(remains),
    }
}

#[inline]
pub(crate) fn view(packet: &Packet) -> nos_relay_view {
    let frame = packet.frame();
    let attachment = match frame.interface() {
        Some(Interface::Attachment(id)) => id.0,
        Some(Interface::Uplink(_)) | None => NOS_RELAY_NO_ATTACHMENT,
    };
    nos_relay_view {
        attachment,
        vrf: frame.vrf().0,
        ..view_of(frame.bytes(), packet.parsed(), frame.offload())
    }
}

/// Names of reasons, for C, in order.
static REASONS: LazyLock<Vec<CString>> = LazyLock::new(|| {
    let labels = DropReason::ALL.iter().map(|reason| reason.label());
    labels
        .map(|label| CString::new(label).unwrap_or_default())
        .collect()
});

fn reason_text(reason: DropReason) -> *const c_char {
    let text = REASONS.get(reason as usize);
    text.map_or(c"".as_ptr(), |text| text.as_ptr())
}

pub(crate) fn reason_of(text: &str, name: Name) -> Result<DropReason, Failure> {
    let found = DropReason::ALL.iter().find(|reason| reason.label() == text);
    found
        .copied()
        .ok_or_else(|| value(name, format_args!("'{text}' is no reason to drop")))
}

#[cold]
pub(crate) fn malformed(what: &str, reason: DropReason) -> Failure {
    Failure::new(
        Code::NOS_RELAY_E_MALFORMED,
        format_args!("{what} is no packet: {reason}"),
    )
}

/// Where a reason goes, which may be nowhere. It is NULL until there is one.
///
/// # Safety
///
/// It is NULL, misaligned, or where a result goes.
unsafe fn reason_place<'a>(
    reason: *mut *const c_char,
) -> Result<Option<&'a mut MaybeUninit<*const c_char>>, Failure> {
    // SAFETY: as the caller says.
    let mut place = unsafe { optional_place(reason, "reason") }?;
    if let Some(place) = &mut place {
        place.write(core::ptr::null());
    }
    Ok(place)
}

/// Parses a frame of the caller's, from its Ethernet header on, with nothing else of this library. `offload` may
/// be NULL: nothing remains to be done. The view's data is `frame`. Of what is no packet, `reason`, if it is
/// not NULL, is the name of why, which is valid for ever: "ip-length", "ethertype" and others of
/// docs/control.md.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_parse(
    frame: *const u8,
    length: usize,
    offload: *const nos_relay_offload,
    view: *mut nos_relay_view,
    reason: *mut *const c_char,
) -> c_int {
    call(|| {
        // SAFETY: they are octets, a value, and where results go.
        let (octets, offload, view, reason) = unsafe {
            (
                slice(frame, length, "frame")?,
                optional(offload, "offload")?,
                place(view, "view")?,
                reason_place(reason)?,
            )
        };
        let offload = read_offload(offload)?;
        match parse(octets, offload) {
            Ok((parsed, length)) => {
                let packet = octets.get(..length).unwrap_or(octets);
                view.write(view_of(packet, &parsed, offload));
                Ok(())
            }
            Err(why) => {
                if let Some(place) = reason {
                    place.write(reason_text(why));
                }
                Err(malformed("frame", why))
            }
        }
    })
}

/// Tells what there is to know of `count` packets. If one of them is wrong, those in front of it are told.
///
/// Threads: that which has the packets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_packet_views(
    packets: *const *mut nos_relay_packet,
    count: usize,
    views: *mut nos_relay_view,
) -> c_int {
    call(|| {
        // SAFETY: they are packets, and where results go.
        let (packets, views) = unsafe {
            (
                slice(packets, count, "packets")?,
                places(views, count, "views")?,
            )
        };
        for (n, (&handle, place)) in packets.iter().zip(views).enumerate() {
            // SAFETY: it is a packet of the caller's, or told to be none.
            let packet = unsafe { borrow(handle, Name::Element("packets", n)) }?;
            place.write(view(&packet));
        }
        Ok(())
    })
}

/// Sets the attachment on which a packet leaves.
///
/// Threads: that which has the packet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_packet_set_attachment(
    packet: *mut nos_relay_packet,
    attachment: u32,
) -> c_int {
    call(|| {
        // SAFETY: it is a packet of the caller's, or told to be none.
        let mut packet = unsafe { borrow(packet, "packet".into()) }?;
        packet.set_interface(Interface::Attachment(AttachmentId(attachment)));
        Ok(())
    })
}

/// Sets the VRF in which a packet is looked up, below 32768.
///
/// Threads: that which has the packet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_packet_set_vrf(
    packet: *mut nos_relay_packet,
    number: u16,
) -> c_int {
    call(|| {
        let vrf = vrf(number, "number")?;
        // SAFETY: it is a packet of the caller's, or told to be none.
        unsafe { borrow(packet, "packet".into()) }?.set_vrf(vrf);
        Ok(())
    })
}

/// Writes the Ethernet addresses of a packet, six octets each.
///
/// Threads: that which has the packet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_packet_set_link(
    packet: *mut nos_relay_packet,
    destination: *const u8,
    source: *const u8,
) -> c_int {
    call(|| {
        // SAFETY: they are six octets each, and a packet of the caller's, or told to be none.
        let (destination, source, mut packet) = unsafe {
            (
                read(destination.cast::<[u8; 6]>(), "destination")?,
                read(source.cast::<[u8; 6]>(), "source")?,
                borrow(packet, "packet".into())?,
            )
        };
        packet.set_link(MacAddr(destination), MacAddr(source));
        Ok(())
    })
}

/// Decrements TTL or hop limit, as a router does. Whether the packet may still be forwarded is told; if not, it
/// is left as it was.
///
/// Threads: that which has the packet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_packet_decrement_ttl(
    packet: *mut nos_relay_packet,
    may_be_forwarded: *mut bool,
) -> c_int {
    call(|| {
        // SAFETY: it is where the result goes, and a packet of the caller's, or told to be none.
        let (place, mut packet) = unsafe {
            (
                place(may_be_forwarded, "may_be_forwarded")?,
                borrow(packet, "packet".into())?,
            )
        };
        place.write(packet.decrement_ttl());
        Ok(())
    })
}

/// Lends the octets of a packet for writing: `data` is where its frame begins, and there is room for `room`
/// octets. It is no packet any more until nos_relay_packet_commit() has found that it is one.
///
/// Threads: that which has the packet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_packet_edit(
    packet: *mut nos_relay_packet,
    data: *mut *mut u8,
    room: *mut usize,
) -> c_int {
    call(|| {
        // SAFETY: they are where results go.
        let (to_data, to_room) = unsafe { (place(data, "data")?, place(room, "room")?) };
        // SAFETY: it is a packet of the caller's, or told to be none.
        let mut frame = unsafe { take_frame(packet, "packet".into()) }?;
        let lent = match frame.receive_area(0) {
            Ok(octets) => {
                to_data.write(octets.as_mut_ptr());
                to_room.write(octets.len());
                Ok(())
            }
            Err(full) => Err(Failure::new(Code::NOS_RELAY_E_INTERNAL, full)),
        };
        lend_raw(frame);
        lent
    })
}

/// Parses the first `length` octets of what nos_relay_packet_edit() or nos_relay_port_alloc() lent. Offload and
/// reason are as for nos_relay_parse(). What is no packet stays as it is.
///
/// Threads: that which has the packet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_packet_commit(
    packet: *mut nos_relay_packet,
    length: usize,
    offload: *const nos_relay_offload,
    reason: *mut *const c_char,
) -> c_int {
    call(|| {
        // SAFETY: they are a value, and where a result goes.
        let (offload, reason) = unsafe { (optional(offload, "offload")?, reason_place(reason)?) };
        let offload = read_offload(offload)?;
        // SAFETY: it is a packet of the caller's, or told to be none.
        let mut frame = unsafe { take_frame(packet, "packet".into()) }?;
        if let Err(full) = frame.set_len(length) {
            lend_raw(frame);
            return Err(Failure::new(
                Code::NOS_RELAY_E_SIZE,
                format_args!("length: {full}"),
            ));
        }
        frame.set_offload(offload);
        match Packet::parse(frame) {
            Ok(packet) => {
                lend(packet);
                Ok(())
            }
            Err(Rejected { frame, reason: why }) => {
                lend_raw(frame);
                if let Some(place) = reason {
                    place.write(reason_text(why));
                }
                Err(malformed("packet", why))
            }
        }
    })
}

/// Gives a packet's buffer back, whatever is in it. Many at once: nos_relay_port_free_burst().
///
/// Threads: that which has the packet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_packet_free(packet: *mut nos_relay_packet) -> c_int {
    call(|| {
        // SAFETY: it is a packet of the caller's, or told to be none.
        unsafe { take_frame(packet, "packet".into()) }.map(drop)
    })
}
