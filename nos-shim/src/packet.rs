//! IP packets, validated once.
//!
//! A [`Packet`] is a [`Frame`] whose Ethernet, IP and transport headers have been checked; holding
//! one is the proof. What the parser learnt travels with the frame, so that nobody parses again.
//!
//! The parser accepts what a host would hand to its transport layer, and names the reason for
//! everything else. It checks structure only: lengths, versions, the IPv4 header checksum.
//! Whether an address may appear is policy ([`crate::martian`]), and transport checksums are the
//! receiver's affair.

mod burst;
mod fault;

use core::cmp::Ordering;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::{Sum, updated};
use crate::drop::DropReason;
use crate::frame::{Checksum, ETHERNET_HEADER, Ecn, Frame, GsoKind, Offload, Segmentation, Tunnel};
use crate::ident::MacAddr;
use crate::offload::join_segments;
use crate::parsed::Flags;
use crate::tunnel;

pub use self::burst::PacketBurst;
pub use self::fault::Fault;
pub use crate::parsed::Parsed;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Octets of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// Octets of an IPv6 header.
pub const IPV6_HEADER: usize = 40;

/// Octets from a TCP header's start to its checksum (RFC 9293 §3.1).
pub(crate) const TCP_CHECKSUM: u16 = 16;
/// Octets from a TCP header's start to the lower eight of its flags (RFC 9293 §3.1).
const TCP_FLAGS: usize = 13;
/// The TCP flag CWR (RFC 3168 §6.1).
const CWR: u8 = 0x80;
/// Octets from a UDP header's start to its checksum (RFC 768).
pub(crate) const UDP_CHECKSUM: u16 = 6;
/// Of ICMP (RFC 792) and ICMPv6 (RFC 4443 §2.1): octets from the header's start to its checksum.
const ICMP_CHECKSUM: u16 = 2;

/// IP protocol numbers.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IGMP.
    pub const IGMP: u8 = 2;
    /// IPv4 in IP (RFC 2003).
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP (RFC 2473, RFC 4213).
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Generic routing encapsulation (RFC 2784).
    pub const GRE: u8 = 47;
    /// Authentication header.
    pub const AUTHENTICATION: u8 = 51;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// Nothing follows the IPv6 header that says so (RFC 8200 §4.7).
    pub const NO_NEXT_HEADER: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// Datagrams in a UDP super-frame. Linux makes no more, and refuses frames with more.
pub(crate) const MAX_DATAGRAMS: usize = 128;

/// IPv6 extension headers that are followed before a packet is refused. Linux knows no bound, but
/// no sender needs more (RFC 8883 §3.2 suggests one).
pub(crate) const MAX_EXTENSION_HEADERS: usize = 8;

/// Source and destination of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addresses {
    /// Of IPv4.
    V4 {
        /// Where it comes from.
        source: Ipv4Addr,
        /// Where it goes.
        destination: Ipv4Addr,
    },
    /// Of IPv6.
    V6 {
        /// Where it comes from.
        source: Ipv6Addr,
        /// Where it goes.
        destination: Ipv6Addr,
    },
}

impl Addresses {
    /// Where it comes from.
    #[must_use]
    pub fn source(self) -> IpAddr {
        match self {
            Self::V4 { source, .. } => source.into(),
            Self::V6 { source, .. } => source.into(),
        }
    }

    /// Where it goes.
    #[must_use]
    pub fn destination(self) -> IpAddr {
        match self {
            Self::V4 { destination, .. } => destination.into(),
            Self::V6 { destination, .. } => destination.into(),
        }
    }

    /// The pseudo-header's sum for a transport header and payload of `len` octets.
    #[must_use]
    pub fn pseudo_sum(self, protocol: u8, len: usize) -> Sum {
        match self {
            Self::V4 {
                source,
                destination,
            } => {
                let len = u16::try_from(len).unwrap_or(u16::MAX);
                Sum::ZERO.pseudo_v4(source, destination, protocol, len)
            }
            Self::V6 {
                source,
                destination,
            } => {
                let len = u32::try_from(len).unwrap_or(u32::MAX);
                Sum::ZERO.pseudo_v6(source, destination, protocol, len)
            }
        }
    }
}

/// TCP or UDP ports, as on the wire: zero is possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The sender's.
    pub source: u16,
    /// The receiver's.
    pub destination: u16,
}

/// Whether a packet is part of a larger datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// It is the whole datagram.
    Whole,
    /// The part with the transport header; more follow.
    First,
    /// A part without a transport header.
    Later,
}

/// Identifies the datagram that a fragment belongs to, together with its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentId {
    /// The identification field; 16 bits in IPv4.
    pub identification: u32,
    /// The protocol field of IPv4 (RFC 791); 0 in IPv6, where it does not count (RFC 8200 §4.5).
    pub protocol: u8,
}

/// Where a fragment lies in its datagram's payload, in octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentSpan {
    /// The first octet.
    pub start: u32,
    /// One past the last octet.
    pub end: u32,
    /// No fragment lies behind this one.
    pub last: bool,
}

/// A frame whose headers have been validated.
///
/// ```
/// use nos_shim::drop::DropReason;
/// use nos_shim::frame::{FramePool, MAX_FRAME};
/// use nos_shim::packet::{Packet, Ports, protocol};
///
/// let mut pool = FramePool::new(8, MAX_FRAME);
/// // A datagram of three octets from 192.0.2.1, port 4000, to 203.0.113.1, port 53.
/// let mut octets = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
/// octets.extend([0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0x3c, 0xcb, 192, 0, 2, 1, 203, 0, 113, 1]);
/// octets.extend([0x0f, 0xa0, 0, 53, 0, 11, 0, 0, b'a', b'b', b'c']);
///
/// let packet = Packet::parse(pool.copy_from(&octets)?).map_err(|rejected| rejected.reason)?;
/// assert_eq!(packet.destination().to_string(), "203.0.113.1");
/// assert_eq!(packet.protocol(), protocol::UDP);
/// assert_eq!(packet.ports(), Some(Ports { source: 4000, destination: 53 }));
/// assert_eq!(packet.payload_offset(), 42);
///
/// // A wrong header checksum.
/// octets[24] ^= 1;
/// let rejected = Packet::parse(pool.copy_from(&octets)?).unwrap_err();
/// assert_eq!(rejected.reason, DropReason::Ipv4Checksum);
/// # Ok::<(), DropReason>(())
/// ```
pub struct Packet(Frame);

/// A frame that is no valid packet, and why.
#[derive(Debug)]
pub struct Rejected {
    /// The frame, unchanged but for Ethernet padding that was cut off.
    pub frame: Frame,
    /// What is wrong with it.
    pub reason: DropReason,
}

impl Packet {
    /// Validates `frame`, whose offload state must be set, and cuts off what follows the IP packet
    /// (Ethernet padding).
    ///
    /// # Errors
    ///
    /// [`Rejected`] with the frame and the reason. Frames that are neither IPv4 nor IPv6 are
    /// rejected with [`DropReason::EtherType`].
    // Every packet comes through here, and a call takes a tenth of the instructions.
    #[inline(always)]
    pub fn parse(mut frame: Frame) -> Result<Self, Rejected> {
        let offload = frame.offload();
        match parse(frame.bytes(), offload) {
            Ok((parsed, len)) => {
                let whole = frame.len();
                frame.truncate(len);
                frame.set_parsed(parsed);
                let packet = Self(frame);
                match offload.segmentation {
                    None => Ok(packet),
                    Some(segmentation) => packet.settle_segmentation(segmentation, whole),
                }
            }
            Err(reason) => Err(Rejected { frame, reason }),
        }
    }

    /// Finds what is cut in a super-frame, and puts it into the form that devices take. `whole`: octets
    /// that the frame had with padding, which it gets back when it is rejected.
    // Out of the way of packets that are none.
    #[inline(never)]
    fn settle_segmentation(
        mut self,
        segmentation: Segmentation,
        whole: usize,
    ) -> Result<Self, Rejected> {
        let settled = match self.0.offload().checksum {
            Checksum::Partial { start, .. } if start != self.parsed().l4 => {
                self.note_tunnel(segmentation, start);
                Ok(())
            }
            _ => self.settle_super_frame(),
        };
        match settled {
            Ok(()) => {
                self.settle_ecn();
                Ok(self)
            }
            Err(reason) => {
                let Self(mut frame) = self;
                // It had so many before.
                let _ = frame.set_len(whole);
                Err(Rejected { frame, reason })
            }
        }
    }

    /// Says what becomes of a CWR that is set, where the header did not; and nothing where none is.
    fn settle_ecn(&mut self) {
        let mut offload = self.0.offload();
        let Some(segmentation) = &mut offload.segmentation else {
            return;
        };
        let transport = match (segmentation.kind, segmentation.tunnel) {
            (GsoKind::Udp, _) => return,
            (GsoKind::TcpV4 | GsoKind::TcpV6, None) => self.parsed().l4,
            (GsoKind::TcpV4 | GsoKind::TcpV6, Some(tunnel)) => tunnel.transport,
        };
        let flags = self.0.bytes().get(usize::from(transport) + TCP_FLAGS);
        let ecn = match (
            segmentation.ecn,
            flags.is_some_and(|flags| flags & CWR != 0),
        ) {
            (Ecn::Unmarked, true) => Ecn::Accurate,
            (Ecn::Accurate, false) => Ecn::Unmarked,
            _ => return,
        };
        segmentation.ecn = ecn;
        self.0.set_offload(offload);
    }

    /// Notes where the packet is that is cut in a tunnel's super-frame, which has been checked.
    #[cold]
    fn note_tunnel(&mut self, segmentation: Segmentation, start: u16) {
        let Segmentation { kind, size, .. } = segmentation;
        let tunnel = tunnel::find(self.0.bytes(), self.parsed(), kind, size.get(), start);
        let mut offload = self.0.offload();
        offload.segmentation = Some(Segmentation {
            tunnel,
            ..segmentation
        });
        self.0.set_offload(offload);
        let payload = self.0.len()
            - self.segment_offset(Segmentation {
                tunnel,
                ..segmentation
            });
        if payload <= usize::from(size.get()) {
            // A device would leave the tunnel's checksum as it is.
            join_segments(self);
        }
    }

    /// Octets from the frame's start to the payload that a super-frame's segments share.
    #[inline]
    pub(crate) fn segment_offset(&self, segmentation: Segmentation) -> usize {
        match segmentation.tunnel {
            None => self.payload_offset(),
            Some(tunnel) => tunnel::payload_offset(self.0.bytes(), segmentation.kind, tunnel),
        }
    }

    /// Where the packet in a tunnel is, whose segments a super-frame's are.
    #[must_use]
    #[inline]
    pub fn tunnel(&self) -> Option<Tunnel> {
        self.0.offload().segmentation?.tunnel
    }

    /// What the parser learnt.
    #[must_use]
    #[inline]
    pub fn parsed(&self) -> &Parsed {
        self.0.parsed()
    }

    /// Gives the packet up as a raw pointer, to be carried by code that knows nothing of packets.
    #[must_use]
    #[inline]
    pub fn into_raw(self) -> core::ptr::NonNull<core::ffi::c_void> {
        self.0.into_raw()
    }

    /// Takes back what [`Self::into_raw`] gave up.
    ///
    /// # Safety
    ///
    /// `raw` comes from [`Self::into_raw`], is taken back once only, and its frame has stayed what it was.
    #[must_use]
    #[inline]
    pub unsafe fn from_raw(raw: core::ptr::NonNull<core::ffi::c_void>) -> Self {
        // SAFETY: as the caller says.
        Self(unsafe { Frame::from_raw(raw) })
    }

    /// The frame that holds the packet.
    #[must_use]
    pub fn frame(&self) -> &Frame {
        &self.0
    }

    /// A frame whose parse results were set by someone who knows that they are true.
    pub(crate) fn assume(frame: Frame) -> Self {
        Self(frame)
    }

    /// Learns anew what the frame says, after its headers were replaced by right ones.
    pub(crate) fn reparse(&mut self) {
        match parse(self.0.bytes(), self.0.offload()) {
            Ok((parsed, len)) => {
                self.0.truncate(len);
                self.0.set_parsed(parsed);
            }
            Err(reason) => debug_assert!(false, "a replaced header is {reason}"),
        }
    }

    /// The frame, for changes that leave the proof true.
    pub(crate) fn frame_mut(&mut self) -> &mut Frame {
        &mut self.0
    }

    /// Gives up the proof.
    #[must_use]
    pub fn into_frame(self) -> Frame {
        self.0
    }

    /// Sets where the packet leaves, or came in.
    pub fn set_interface(&mut self, interface: crate::ident::Interface) {
        self.0.set_interface(interface);
    }

    /// Sets the VRF in which the packet is looked up.
    pub fn set_vrf(&mut self, vrf: crate::ident::VrfId) {
        self.0.set_vrf(vrf);
    }

    /// Whether this is IPv6.
    #[must_use]
    #[inline]
    pub fn is_ipv6(&self) -> bool {
        self.parsed().is_ipv6()
    }

    /// Source and destination addresses.
    #[must_use]
    #[inline]
    pub fn addresses(&self) -> Addresses {
        let bytes = self.0.bytes();
        if self.is_ipv6() {
            Addresses::V6 {
                source: Ipv6Addr::from(chunk::<16>(bytes, ETHERNET_HEADER + 8)),
                destination: Ipv6Addr::from(chunk::<16>(bytes, ETHERNET_HEADER + 24)),
            }
        } else {
            Addresses::V4 {
                source: Ipv4Addr::from(chunk::<4>(bytes, ETHERNET_HEADER + 12)),
                destination: Ipv4Addr::from(chunk::<4>(bytes, ETHERNET_HEADER + 16)),
            }
        }
    }

    /// Where an IPv4 packet goes; of IPv6 these are other octets.
    #[inline]
    pub(crate) fn destination_v4(&self) -> Ipv4Addr {
        Ipv4Addr::from(chunk::<4>(self.0.bytes(), ETHERNET_HEADER + 16))
    }

    /// Where an IPv6 packet goes; of IPv4 these are other octets.
    #[inline]
    pub(crate) fn destination_v6(&self) -> Ipv6Addr {
        Ipv6Addr::from(chunk::<16>(self.0.bytes(), ETHERNET_HEADER + 24))
    }

    /// Where it comes from.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        self.addresses().source()
    }

    /// Where it goes.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        self.addresses().destination()
    }

    /// The Ethernet source address.
    #[must_use]
    pub fn source_mac(&self) -> MacAddr {
        MacAddr(chunk::<6>(self.0.bytes(), 6))
    }

    /// The Ethernet destination address.
    #[must_use]
    pub fn destination_mac(&self) -> MacAddr {
        MacAddr(chunk::<6>(self.0.bytes(), 0))
    }

    /// The protocol of the transport header, after all IPv6 extension headers that were followed.
    #[must_use]
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.parsed().protocol
    }

    /// The ports of TCP or UDP; `None` for other protocols and for later fragments.
    #[must_use]
    #[inline]
    pub fn ports(&self) -> Option<Ports> {
        self.parsed().ports()
    }

    /// Whether the packet is part of a larger datagram. An IPv6 atomic fragment (RFC 6946) is
    /// whole.
    #[must_use]
    #[inline]
    pub fn fragment(&self) -> Fragment {
        self.parsed().fragment()
    }

    /// Which datagram a fragment belongs to, and where in it the fragment lies; `None` for a whole
    /// datagram.
    #[must_use]
    pub fn fragment_place(&self) -> Option<(FragmentId, FragmentSpan)> {
        if self.fragment() == Fragment::Whole {
            return None;
        }
        let bytes = self.0.bytes();
        let parsed = self.parsed();
        let (id, field, more, payload) = if self.is_ipv6() {
            let header = usize::from(parsed.fragment_header);
            let field = u16::from_be_bytes(chunk(bytes, header + 2));
            let identification = u32::from_be_bytes(chunk(bytes, header + 4));
            let id = FragmentId {
                identification,
                protocol: 0,
            };
            (id, field & !7, field & 1 != 0, header + 8)
        } else {
            let ip = self.ip();
            let field = u16::from_be_bytes(chunk(ip, 6));
            let identification = u32::from(u16::from_be_bytes(chunk(ip, 4)));
            let id = FragmentId {
                identification,
                protocol: ip[9],
            };
            let payload = ETHERNET_HEADER + usize::from(ip[0] & 0xf) * 4;
            (id, (field & 0x1fff) << 3, field & 0x2000 != 0, payload)
        };
        let len = bytes.len() - payload;
        // As Linux does with IPv4 fragments of other lengths (IPv6 ones are refused).
        let len = if more { len & !7 } else { len };
        let start = u32::from(field);
        let end = start + u32::try_from(len).unwrap_or(u32::MAX);
        Some((
            id,
            FragmentSpan {
                start,
                end,
                last: !more,
            },
        ))
    }

    /// Octets from the frame's start to what a fragment carries of its datagram: behind the IPv4
    /// header, or behind the IPv6 fragment header.
    pub(crate) fn fragment_payload_offset(&self) -> usize {
        if self.is_ipv6() {
            usize::from(self.parsed().fragment_header) + 8
        } else {
            ETHERNET_HEADER + usize::from(self.ip()[0] & 0xf) * 4
        }
    }

    /// Whether routers must not fragment it: IPv4 with DF, and every IPv6 packet.
    #[must_use]
    pub fn dont_fragment(&self) -> bool {
        self.parsed().dont_fragment()
    }

    /// Whether there are IPv4 options, or IPv6 hop-by-hop options.
    #[must_use]
    #[inline]
    pub fn has_options(&self) -> bool {
        self.parsed().has_options()
    }

    /// Whether there are IPv6 extension headers in front of the transport header.
    #[must_use]
    pub fn has_extensions(&self) -> bool {
        self.is_ipv6() && self.transport_offset() > ETHERNET_HEADER + IPV6_HEADER
    }

    /// Whether an IPv6 routing header still names stations (segments left is not zero).
    #[must_use]
    pub fn has_segments_left(&self) -> bool {
        self.parsed().has_segments_left()
    }

    /// The IP packet: header, extension headers and payload.
    #[must_use]
    pub fn ip(&self) -> &[u8] {
        self.0.bytes().get(ETHERNET_HEADER..).unwrap_or_default()
    }

    /// The transport header and its payload; of a later fragment, the fragment's payload.
    #[must_use]
    pub fn transport(&self) -> &[u8] {
        self.0
            .bytes()
            .get(self.transport_offset()..)
            .unwrap_or_default()
    }

    /// Octets from the frame's start to the transport header.
    #[must_use]
    pub fn transport_offset(&self) -> usize {
        usize::from(self.parsed().l4)
    }

    /// Octets from the frame's start to the payload of TCP or UDP; for other protocols, the same
    /// as [`Self::transport_offset`].
    #[must_use]
    pub fn payload_offset(&self) -> usize {
        usize::from(self.parsed().payload)
    }

    /// ICMP or ICMPv6 type and code, of a packet that has that header.
    #[must_use]
    pub fn icmp(&self) -> Option<(u8, u8)> {
        let icmp = if self.is_ipv6() {
            protocol::ICMPV6
        } else {
            protocol::ICMP
        };
        let ours = self.protocol() == icmp && self.fragment() != Fragment::Later;
        match self.transport() {
            [kind, code, ..] if ours => Some((*kind, *code)),
            _ => None,
        }
    }

    /// The TCP flags octet, of a packet that has a TCP header.
    #[must_use]
    pub fn tcp_flags(&self) -> Option<u8> {
        let tcp = self.protocol() == protocol::TCP && self.ports().is_some();
        tcp.then(|| self.transport().get(TCP_FLAGS).copied())
            .flatten()
    }

    /// Whether this opens a flow: a TCP segment with SYN, and without ACK and RST. UDP does not say.
    #[must_use]
    #[inline]
    pub fn opens_tcp_flow(&self) -> bool {
        const SYN: u8 = 0x02;
        const RST: u8 = 0x04;
        const ACK: u8 = 0x10;
        self.tcp_flags()
            .is_some_and(|flags| flags & (SYN | ACK | RST) == SYN)
    }

    /// TTL or hop limit.
    #[must_use]
    pub fn ttl(&self) -> u8 {
        self.ip()[if self.is_ipv6() { 7 } else { 8 }]
    }

    /// Octets of the longest IP packet that this becomes on the wire: of one segment, if it is a
    /// super-frame.
    #[must_use]
    #[inline]
    pub fn wire_len(&self) -> usize {
        let len = self.0.len() - ETHERNET_HEADER;
        match self.0.offload().segmentation {
            None => len,
            Some(segmentation) => {
                let headers = self.segment_offset(segmentation) - ETHERNET_HEADER;
                len.min(headers + usize::from(segmentation.size.get()))
            }
        }
    }

    /// Writes the Ethernet addresses.
    #[inline]
    pub fn set_link(&mut self, destination: MacAddr, source: MacAddr) {
        let mut link = [0; 12];
        link[..6].copy_from_slice(&destination.0);
        link[6..].copy_from_slice(&source.0);
        self.set_link_pair(&link);
    }

    /// Writes the Ethernet addresses, destination first.
    #[inline]
    pub fn set_link_pair(&mut self, link: &[u8; 12]) {
        if let Some(place) = self.0.bytes_mut().first_chunk_mut::<12>() {
            *place = *link;
        }
    }

    /// Decrements TTL or hop limit, with the IPv4 header checksum (RFC 1812 §5.3.1).
    ///
    /// Returns whether the packet may still be forwarded; if not, it is left as it was.
    #[must_use]
    pub fn decrement_ttl(&mut self) -> bool {
        if self.ttl() <= 1 {
            return false;
        }
        let ipv6 = self.is_ipv6();
        let ip = &mut self.0.bytes_mut()[ETHERNET_HEADER..];
        if ipv6 {
            ip[7] -= 1;
            return true;
        }
        let old = u16::from_be_bytes(chunk(ip, 8));
        ip[8] -= 1;
        let new = u16::from_be_bytes(chunk(ip, 8));
        let checksum = updated(u16::from_be_bytes(chunk(ip, 10)), old, new);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        true
    }

    /// Writes the flow label of IPv6 (RFC 6437), of which the lower 20 bits count.
    #[cfg(feature = "stack")]
    pub(crate) fn set_flow_label(&mut self, label: u32) {
        if self.is_ipv6() {
            let [_, high, middle, low] = label.to_be_bytes();
            let ip = &mut self.0.bytes_mut()[ETHERNET_HEADER..];
            ip[1] = ip[1] & 0xf0 | high & 0x0f;
            ip[2] = middle;
            ip[3] = low;
        }
    }

    /// Writes the identifier of an ICMP echo message and mends its checksum (RFC 5508 §3.1).
    /// Other packets are left alone.
    pub fn set_echo_id(&mut self, id: u16) {
        let (request, reply) = self.echo_types();
        let is_echo = |kind| kind == request || kind == reply;
        if !self.icmp().is_some_and(|(kind, _)| is_echo(kind)) {
            return;
        }
        let at = self.transport_offset();
        // The sum in such a field is that of the pseudo-header.
        let partial = matches!(
            self.0.offload().checksum,
            Checksum::Partial { start, .. } if usize::from(start) == at
        );
        let Some(icmp) = self.0.bytes_mut().get_mut(at..at + 8) else {
            return;
        };
        let old = u16::from_be_bytes(chunk(icmp, 4));
        icmp[4..6].copy_from_slice(&id.to_be_bytes());
        if !partial {
            let checksum = updated(u16::from_be_bytes(chunk(icmp, 2)), old, id);
            icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
    }

    /// The ICMP types of echo requests and replies in its family.
    pub(crate) fn echo_types(&self) -> (u8, u8) {
        if self.is_ipv6() { (128, 129) } else { (8, 0) }
    }

    /// The identifier of an ICMP echo request or reply.
    #[must_use]
    pub fn echo_id(&self) -> Option<u16> {
        let (request, reply) = self.echo_types();
        let (kind, _) = self.icmp()?;
        (kind == request || kind == reply).then(|| u16::from_be_bytes(chunk(self.transport(), 4)))
    }

    /// Whether the transport checksum of TCP, UDP, ICMP or ICMPv6 is right, or need not be looked
    /// at because it was never on a wire. True for other protocols, for fragments, which only
    /// their reassembler can judge, and for packets with segments left, whose final destination is
    /// not yet in the IPv6 header (RFC 8200 §8.1).
    #[must_use]
    pub fn transport_checksum_ok(&self) -> bool {
        let known = self.0.offload().checksum != Checksum::Complete;
        if known || self.fragment() != Fragment::Whole || self.has_segments_left() {
            return true;
        }
        let transport = self.transport();
        match self.protocol() {
            protocol::ICMP if !self.is_ipv6() => Sum::ZERO.plus(transport).is_valid(),
            protocol::UDP if chunk::<2>(transport, 6) == [0, 0] => !self.is_ipv6(),
            protocol::UDP => {
                let len = usize::from(u16::from_be_bytes(chunk(transport, 4)));
                let len = if len == 0 { transport.len() } else { len };
                let datagram = transport.get(..len).unwrap_or_default();
                self.pseudo_sum(len).plus(datagram).is_valid()
            }
            protocol::TCP => self.pseudo_sum(transport.len()).plus(transport).is_valid(),
            protocol::ICMPV6 if self.is_ipv6() => {
                self.pseudo_sum(transport.len()).plus(transport).is_valid()
            }
            _ => true,
        }
    }

    /// The pseudo-header's sum for a transport header and payload of `len` octets.
    #[must_use]
    pub fn pseudo_sum(&self, len: usize) -> Sum {
        self.addresses().pseudo_sum(self.protocol(), len)
    }
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packet")
            .field("addresses", &self.addresses())
            .field("protocol", &self.protocol())
            .field("ports", &self.ports())
            .field("fragment", &self.fragment())
            .field("frame", &self.0)
            .finish()
    }
}

/// `N` octets at `at`; zeros where the slice ends before, which a validated packet rules out.
#[inline]
fn chunk<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .unwrap_or([0; N])
}

/// The EtherType of a frame, or `None` if it is shorter than an Ethernet header.
#[must_use]
#[inline]
pub fn ether_type(frame: &[u8]) -> Option<u16> {
    let header = frame.first_chunk::<ETHERNET_HEADER>()?;
    Some(u16::from_be_bytes([header[12], header[13]]))
}

/// Validates the octets of a frame. Returns what was learnt, and how long the frame is without
/// what follows the IP packet.
///
/// # Errors
///
/// The reason to drop it.
// Always, with the two below, as for Packet::parse.
#[inline(always)]
pub fn parse(frame: &[u8], offload: Offload) -> Result<(Parsed, usize), DropReason> {
    let (parsed, len) = match ether_type(frame) {
        Some(ETHERTYPE_IPV4) => parse_ipv4(frame)?,
        Some(ETHERTYPE_IPV6) => parse_ipv6(frame)?,
        Some(_) => return Err(DropReason::EtherType),
        None => return Err(DropReason::FrameLength),
    };
    if offload != Offload::NONE {
        check_offload(&parsed, frame.get(..len).unwrap_or_default(), offload)?;
    }
    Ok((parsed, len))
}

/// RFC 1812 §5.2.2, RFC 1122 §3.2.1.
#[inline(always)]
fn parse_ipv4(frame: &[u8]) -> Result<(Parsed, usize), DropReason> {
    let ip = frame.get(ETHERNET_HEADER..).unwrap_or_default();
    let fixed = ip
        .first_chunk::<IPV4_HEADER>()
        .ok_or(DropReason::IpLength)?;
    let header_len = usize::from(fixed[0] & 0xf) * 4;
    if fixed[0] >> 4 != 4 || header_len < IPV4_HEADER {
        return Err(DropReason::Ipv4Header);
    }
    let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if total > ip.len() || total < header_len {
        return Err(DropReason::IpLength);
    }
    // Nearly all headers are of the least length, which the compiler then knows.
    let sum = if header_len == IPV4_HEADER {
        Sum::ZERO.plus(fixed)
    } else {
        Sum::ZERO.plus(ip.get(..header_len).unwrap_or_default())
    };
    if !sum.is_valid() {
        return Err(DropReason::Ipv4Checksum);
    }
    let field = u16::from_be_bytes([fixed[6], fixed[7]]);
    let mut flags = Flags::empty();
    flags.set(Flags::DONT_FRAGMENT, field & 0x4000 != 0);
    flags.set(Flags::OPTIONS, header_len > IPV4_HEADER);
    flags |= fragment_flags(field & 0x1fff != 0, field & 0x2000 != 0);
    let len = ETHERNET_HEADER + total;
    let l4 = ETHERNET_HEADER + header_len;
    check_span((field & 0x1fff) << 3, total - header_len)?;
    let mut parsed = Parsed {
        l4: offset(l4),
        payload: offset(l4),
        protocol: fixed[9],
        flags,
        ..Parsed::default()
    };
    parse_transport(frame.get(l4..len).unwrap_or_default(), &mut parsed)?;
    Ok((parsed, len))
}

/// RFC 8200 §3 and §4.
#[inline(always)]
fn parse_ipv6(frame: &[u8]) -> Result<(Parsed, usize), DropReason> {
    let ip = frame.get(ETHERNET_HEADER..).unwrap_or_default();
    let fixed = ip
        .first_chunk::<IPV6_HEADER>()
        .ok_or(DropReason::IpLength)?;
    if fixed[0] >> 4 != 6 {
        return Err(DropReason::Ipv6Header);
    }
    let len = ETHERNET_HEADER + IPV6_HEADER + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    let packet = frame.get(..len).ok_or(DropReason::IpLength)?;
    let mut walk = Walk {
        packet,
        at: ETHERNET_HEADER + IPV6_HEADER,
        next: fixed[6],
        parsed: Parsed::default(),
    };
    if !matches!(walk.next, protocol::TCP | protocol::UDP | protocol::ICMPV6) {
        walk.extension_headers()?;
    }
    let Walk {
        at,
        next,
        mut parsed,
        ..
    } = walk;
    parsed.flags |= Flags::IPV6;
    parsed.l4 = offset(at);
    parsed.payload = offset(at);
    parsed.protocol = next;
    parse_transport(packet.get(at..).unwrap_or_default(), &mut parsed)?;
    Ok((parsed, len))
}

/// A walk along the chain of IPv6 extension headers.
struct Walk<'a> {
    packet: &'a [u8],
    at: usize,
    next: u8,
    parsed: Parsed,
}

impl Walk<'_> {
    #[cold]
    fn extension_headers(&mut self) -> Result<(), DropReason> {
        let first = self.at;
        for count in 0.. {
            let known = match self.next {
                // Anywhere but in front it is an unrecognised next header (RFC 8200 §4.1).
                protocol::HOP_BY_HOP => self.at == first,
                protocol::ROUTING
                | protocol::FRAGMENT
                | protocol::AUTHENTICATION
                | protocol::DESTINATION_OPTIONS => true,
                _ => false,
            };
            if !known || self.parsed.flags.contains(Flags::LATER_FRAGMENT) {
                break;
            }
            if count == MAX_EXTENSION_HEADERS {
                return Err(DropReason::Ipv6Header);
            }
            self.step()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), DropReason> {
        let rest = self.packet.get(self.at..).unwrap_or_default();
        // RFC 7112 §5: the first fragment has all headers.
        let short = if self.parsed.flags.contains(Flags::FIRST_FRAGMENT) {
            DropReason::TinyFragment
        } else {
            DropReason::Ipv6Header
        };
        let header = rest.first_chunk::<8>().ok_or(short)?;
        let len = match self.next {
            protocol::FRAGMENT => {
                self.fragment(header, rest.len())?;
                8
            }
            // RFC 4302 §2.2: counted in 32-bit words, minus two.
            protocol::AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        self.parsed.flags.set(
            Flags::OPTIONS,
            self.parsed.flags.contains(Flags::OPTIONS) || self.next == protocol::HOP_BY_HOP,
        );
        if self.next == protocol::ROUTING && header[3] != 0 {
            self.parsed.flags |= Flags::ROUTED;
        }
        if rest.len() < len {
            return Err(short);
        }
        self.next = header[0];
        self.at += len;
        Ok(())
    }

    /// RFC 8200 §4.5.
    fn fragment(&mut self, header: &[u8; 8], rest: usize) -> Result<(), DropReason> {
        // Also behind that of an atomic fragment, as in Linux.
        if self.parsed.fragment_header != 0 {
            return Err(DropReason::Ipv6Header);
        }
        let field = u16::from_be_bytes([header[2], header[3]]);
        let payload = rest - 8;
        let more = field & 1 != 0;
        if more && !payload.is_multiple_of(8) {
            return Err(DropReason::IpLength);
        }
        check_span(field & !7, payload)?;
        self.parsed.fragment_header = offset(self.at);
        self.parsed.flags |= fragment_flags(field & !7 != 0, more);
        Ok(())
    }
}

/// A datagram ends within 65,535 octets. `start` and `len`: octets of its payload. That a fragment
/// carries something is its reassembler's to check, which then gives up the whole datagram.
#[inline]
fn check_span(start: u16, len: usize) -> Result<(), DropReason> {
    if start > 0 && usize::from(start) + len > 65_535 {
        return Err(DropReason::IpLength);
    }
    Ok(())
}

fn fragment_flags(later: bool, more: bool) -> Flags {
    match (later, more) {
        (true, _) => Flags::LATER_FRAGMENT,
        (false, true) => Flags::FIRST_FRAGMENT,
        (false, false) => Flags::empty(),
    }
}

/// An offset in a frame, which is never longer than [`crate::frame::MAX_FRAME`]: what lies beyond
/// 65,535 octets is payload.
#[inline]
fn offset(at: usize) -> u16 {
    u16::try_from(at).unwrap_or(u16::MAX)
}

/// Reads the transport header that `octets` starts with.
#[inline]
fn parse_transport(octets: &[u8], parsed: &mut Parsed) -> Result<(), DropReason> {
    if parsed.flags.contains(Flags::LATER_FRAGMENT) {
        return Ok(());
    }
    let first = parsed.flags.contains(Flags::FIRST_FRAGMENT);
    let short = if first {
        DropReason::TinyFragment
    } else {
        DropReason::TransportHeader
    };
    let header_len = match parsed.protocol {
        protocol::TCP => {
            let header = octets.first_chunk::<20>().ok_or(short)?;
            let len = usize::from(header[12] >> 4) * 4;
            if len < 20 {
                return Err(DropReason::TransportHeader);
            }
            len
        }
        protocol::UDP => {
            let header = octets.first_chunk::<8>().ok_or(short)?;
            let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
            // RFC 2675 §4: zero means up to the packet's end. Linux takes that of any IPv6 packet.
            let open = len == 0 && parsed.flags.contains(Flags::IPV6);
            if len < 8 && !open || !first && len > octets.len() {
                return Err(DropReason::TransportHeader);
            }
            8
        }
        protocol::ICMP if !parsed.flags.contains(Flags::IPV6) => return at_least(octets, 8, short),
        protocol::ICMPV6 if parsed.flags.contains(Flags::IPV6) => {
            return at_least(octets, 8, short);
        }
        // RFC 7112 §3: its first octet, at least, belongs to the chain of headers.
        _ if first && octets.is_empty() && parsed.flags.contains(Flags::IPV6) => {
            return at_least(
                octets,
                usize::from(parsed.protocol != protocol::NO_NEXT_HEADER),
                short,
            );
        }
        _ => return Ok(()),
    };
    at_least(octets, header_len, short)?;
    parsed.source_port = u16::from_be_bytes(chunk(octets, 0));
    parsed.destination_port = u16::from_be_bytes(chunk(octets, 2));
    parsed.payload = parsed.l4.saturating_add(offset(header_len));
    parsed.flags |= Flags::PORTS;
    Ok(())
}

fn at_least(octets: &[u8], len: usize, short: DropReason) -> Result<(), DropReason> {
    if octets.len() < len {
        Err(short)
    } else {
        Ok(())
    }
}

/// What the virtio-net header says must be true of the packet, or a device further on would write
/// where it should not.
fn check_offload(parsed: &Parsed, octets: &[u8], offload: Offload) -> Result<(), DropReason> {
    let whole = !parsed
        .flags
        .intersects(Flags::FIRST_FRAGMENT | Flags::LATER_FRAGMENT);
    let checksum = match offload.checksum {
        Checksum::Complete | Checksum::Verified => true,
        Checksum::Partial { start, offset } => {
            whole && partial_is_right(parsed, octets.len(), start, offset)
        }
    };
    let segmentation = offload
        .segmentation
        .is_none_or(|segmentation| match offload.checksum {
            Checksum::Partial { start, offset } if start != parsed.l4 => {
                tunnel_is_right(parsed, octets, segmentation, start, offset)
            }
            Checksum::Partial { .. } | Checksum::Complete | Checksum::Verified => {
                // Nobody cuts a fragment.
                !parsed
                    .flags
                    .intersects(Flags::FIRST_FRAGMENT | Flags::LATER_FRAGMENT)
                    && segmentation_is_right(parsed, octets, segmentation)
            }
        });
    if checksum && segmentation {
        Ok(())
    } else {
        Err(DropReason::OffloadHeader)
    }
}

/// Whether a partial checksum lies where the transport header has one, or behind: tunnels leave
/// the inner packet's to the device.
fn partial_is_right(parsed: &Parsed, len: usize, start: u16, offset: u16) -> bool {
    let expected = match parsed.protocol {
        protocol::TCP => Some(TCP_CHECKSUM),
        protocol::UDP => Some(UDP_CHECKSUM),
        protocol::ICMP | protocol::ICMPV6 => Some(ICMP_CHECKSUM),
        _ => None,
    };
    // A message of ICMP has no other packet in it that is to be completed. What is judged by its type,
    // its identifier or its quote would be another one behind the device.
    let icmp = matches!(parsed.protocol, protocol::ICMP | protocol::ICMPV6);
    let placed = match start.cmp(&parsed.l4) {
        Ordering::Less => false,
        Ordering::Equal => expected.is_none_or(|expected| expected == offset),
        Ordering::Greater => start >= parsed.payload && !icmp,
    };
    placed && usize::from(start) + usize::from(offset) + 2 <= len
}

/// Whether a packet in a tunnel is cut, of a kind that can be.
#[cold]
fn tunnel_is_right(
    parsed: &Parsed,
    octets: &[u8],
    segmentation: Segmentation,
    start: u16,
    offset: u16,
) -> bool {
    let Segmentation { kind, size, .. } = segmentation;
    let expected = match kind {
        GsoKind::TcpV4 | GsoKind::TcpV6 => TCP_CHECKSUM,
        GsoKind::Udp => UDP_CHECKSUM,
    };
    offset == expected && tunnel::find(octets, parsed, kind, size.get(), start).is_some()
}

fn segmentation_is_right(parsed: &Parsed, octets: &[u8], segmentation: Segmentation) -> bool {
    let ipv6 = parsed.flags.contains(Flags::IPV6);
    let transport = octets.get(usize::from(parsed.l4)..).unwrap_or_default();
    let payload = octets.len().saturating_sub(usize::from(parsed.payload));
    let right = match segmentation.kind {
        GsoKind::TcpV4 => !ipv6 && parsed.protocol == protocol::TCP,
        GsoKind::TcpV6 => ipv6 && parsed.protocol == protocol::TCP,
        // The checksum of each datagram is derived from the length of all.
        GsoKind::Udp => {
            let len = u16::from_be_bytes(chunk(transport, 4));
            let datagrams = payload.div_ceil(usize::from(segmentation.size.get()));
            parsed.protocol == protocol::UDP
                && usize::from(len) == transport.len()
                && datagrams <= MAX_DATAGRAMS
        }
    };
    right && payload > 0
}

mod super_frame;

#[cfg(test)]
pub(crate) mod craft;
#[cfg(test)]
#[cfg(feature = "stack")]
mod oracles;
#[cfg(test)]
mod seeds;
#[cfg(test)]
mod tests;
