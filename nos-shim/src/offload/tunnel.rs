//! Checksums and lengths of tunnels, whose super-frames are cut inside.
//!
//! A tunnel's packet has two transport checksums, and a device completes one. A UDP tunnel with
//! checksums leaves its own to the device: then segments of one flow are UDP datagrams of one length, as
//! other devices join to one super-frame. Where the tunnel has none, the inner checksum is left.

use super::cut::{Finish, Piece};
use super::segment::{Left, Network, Template, addresses_sum, length, u16_at};
use super::{complete_at, complete_checksum, never_zero};
use crate::checksum::Sum;
use crate::frame::{
    Checksum, ETHERNET_HEADER, Encapsulation, Frame, Offload, Segmentation, Tunnel,
};
use crate::packet::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_HEADER, IPV6_HEADER, Packet, ether_type, protocol,
};
use crate::tunnel::gre_has_checksum;

/// Octets of a UDP header up to its checksum (RFC 768).
const UDP_CHECKSUM: usize = crate::packet::UDP_CHECKSUM as usize;
/// Octets of a GRE header up to its checksum (RFC 2784 §2.1).
const GRE_CHECKSUM: usize = 4;

/// What is the same in all segments of a tunnel's super-frame.
pub(super) struct Tunneled {
    inner: Template,
    outer: Outer,
}

/// The headers in front of the packet in the tunnel.
struct Outer {
    network: Network,
    /// Octets from the frame's start to the transport header.
    l4: usize,
    checksum: OuterChecksum,
    is_udp: bool,
    /// The pseudo-header but for the length.
    pseudo: Sum,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OuterChecksum {
    /// There is none.
    None,
    /// The device makes it.
    Partial,
    /// It is made here.
    Complete,
}

impl Tunneled {
    #[cold]
    pub(super) fn new(packet: &Packet, tunnel: Tunnel, whole: Segmentation, left: Left) -> Self {
        let outer = Outer::new(packet, tunnel, left);
        let inner = Template::inner(packet.frame().bytes(), tunnel, whole);
        let inner_left = left != Left::Nothing && outer.checksum == OuterChecksum::None;
        Self {
            inner: inner.partial(inner_left),
            outer,
        }
    }
}

impl Outer {
    fn new(packet: &Packet, tunnel: Tunnel, left: Left) -> Self {
        let octets = packet.frame().bytes();
        let l4 = packet.transport_offset();
        let checksum = match tunnel.encapsulation {
            Encapsulation::Udp if left == Left::Joining => OuterChecksum::Partial,
            Encapsulation::Udp if u16_at(octets, l4 + UDP_CHECKSUM) == 0 => OuterChecksum::None,
            Encapsulation::Udp if left == Left::Checksum => OuterChecksum::Partial,
            Encapsulation::Gre if !gre_has_checksum(octets, l4) => OuterChecksum::None,
            Encapsulation::Ip => OuterChecksum::None,
            Encapsulation::Udp | Encapsulation::Gre => OuterChecksum::Complete,
        };
        let header = &octets[ETHERNET_HEADER..l4];
        Self {
            network: Network::new(header),
            l4,
            checksum,
            is_udp: tunnel.encapsulation == Encapsulation::Udp,
            pseudo: addresses_sum(header).add_u16(u16::from(protocol::UDP)),
        }
    }

    /// Writes lengths, identification and checksum; the packet inside is complete.
    fn finish(&self, octets: &mut [u8], index: u16) {
        let (network, transport) = octets.split_at_mut(self.l4);
        let len = transport.len();
        self.network
            .finish(&mut network[ETHERNET_HEADER..], len, index);
        if self.is_udp {
            transport[4..6].copy_from_slice(&length(len).to_be_bytes());
        }
        let pseudo = self.pseudo.add_u16(length(len));
        match (self.checksum, self.is_udp) {
            (OuterChecksum::None, _) => {}
            (OuterChecksum::Partial, _) => put(transport, UDP_CHECKSUM, pseudo.folded()),
            (OuterChecksum::Complete, true) => seal(transport, UDP_CHECKSUM, pseudo),
            (OuterChecksum::Complete, false) => seal(transport, GRE_CHECKSUM, Sum::ZERO),
        }
    }
}

impl Finish for Tunneled {
    fn finish(&self, frame: &mut Frame, piece: Piece) {
        self.inner.finish(frame, piece);
        self.outer.finish(frame.bytes_mut(), piece.index);
        if self.outer.checksum == OuterChecksum::Partial {
            frame.set_offload(Offload {
                checksum: Checksum::Partial {
                    start: length(self.outer.l4),
                    offset: crate::packet::UDP_CHECKSUM,
                },
                segmentation: None,
            });
        }
    }
}

/// Writes the checksum of `octets`, with `pseudo` in front of them, at `at`.
fn seal(octets: &mut [u8], at: usize, pseudo: Sum) {
    put(octets, at, 0);
    let checksum = never_zero(pseudo.plus(octets).checksum());
    put(octets, at, checksum);
}

fn put(octets: &mut [u8], at: usize, value: u16) {
    if let Some(place) = octets.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *place = value.to_be_bytes();
    }
}

/// Gives the tunnel of a super-frame the checksum that it would have as one packet. That of the packet
/// inside is complete.
#[cold]
pub(super) fn complete_outer(packet: &mut Packet) {
    let Some(tunnel) = packet.tunnel() else {
        return;
    };
    let outer = Outer::new(packet, tunnel, Left::Nothing);
    outer.finish(packet.frame_mut().bytes_mut(), 0);
}

/// Makes a tunnel's super-frame one packet, with right checksums.
#[cold]
pub(crate) fn join_segments(packet: &mut Packet) {
    complete_checksum(packet);
    let frame = packet.frame_mut();
    let offload = frame.offload();
    frame.set_offload(Offload {
        segmentation: None,
        ..offload
    });
}

/// Completes the checksum of a frame that was not parsed, for a record of it. The tunnel's own, where it
/// is still the pseudo-header's sum, is completed as well.
pub fn complete_octets(octets: &mut [u8], checksum: Checksum) {
    let Checksum::Partial { start, offset } = checksum else {
        return;
    };
    complete_at(octets, start, offset);
    let Some((network, l4)) = udp_header(octets).filter(|&(_, l4)| l4 < usize::from(start)) else {
        return;
    };
    let pseudo = addresses_sum(octets.get(network..).unwrap_or_default())
        .add_u16(u16::from(protocol::UDP))
        .add_u16(length(octets.len() - l4));
    let Some(transport) = octets.get_mut(l4..).filter(|udp| udp.len() >= 8) else {
        return;
    };
    if u16_at(transport, UDP_CHECKSUM) == pseudo.folded() {
        seal(transport, UDP_CHECKSUM, pseudo);
    }
}

/// Octets from the frame's start to the IP header and to the UDP header right behind it.
fn udp_header(octets: &[u8]) -> Option<(usize, usize)> {
    let ip = octets.get(ETHERNET_HEADER..)?;
    let (len, next) = match ether_type(octets)? {
        ETHERTYPE_IPV4 => {
            let header = ip.first_chunk::<IPV4_HEADER>()?;
            (usize::from(header[0] & 0xf) * 4, header[9])
        }
        ETHERTYPE_IPV6 => (IPV6_HEADER, ip.first_chunk::<IPV6_HEADER>()?[6]),
        _ => return None,
    };
    (next == protocol::UDP).then_some((ETHERNET_HEADER, ETHERNET_HEADER + len))
}
