//! Super-frames of tunnels: finding the packet inside, whose segments they are.
//!
//! A kernel hands over a tunnel's super-frame with the checksum offload of the packet inside, and no
//! word about the tunnel (a packet socket), or a few (a TAP). What lies between the outer transport
//! header and the inner IP header is the tunnel protocol's affair: VXLAN, Geneve with options, GUE, or
//! nothing at all (FOU), at ports that anybody may choose. So the inner IP header is looked for where it
//! has to end, in front of the transport header that the checksum is for, and taken only if its length,
//! its protocol and, in IPv4, its checksum agree.
//!
//! Everything here is for the tunnels' frames alone: other frames pay nothing for it.

use crate::checksum::Sum;
use crate::frame::{Encapsulation, GsoKind, Tunnel};
use crate::packet::{IPV4_HEADER, IPV6_HEADER, MAX_DATAGRAMS, protocol};
use crate::parsed::{Flags, Parsed};

/// Octets of a UDP header (RFC 768).
const UDP_HEADER: usize = 8;
/// Octets of a TCP header without options (RFC 9293 §3.1).
const TCP_HEADER: usize = 20;
/// Octets of a GRE header without options (RFC 2784 §2.1).
const GRE_HEADER: usize = 4;

/// GRE: a checksum is present (RFC 2784 §2.1).
const GRE_CHECKSUM: u16 = 0x8000;
/// GRE: a key is present (RFC 2890 §2).
const GRE_KEY: u16 = 0x2000;

/// Where the packet lies whose segments a super-frame's are, if it is in a tunnel that can be cut:
/// `octets` is the frame, and the packet's transport header begins at `transport`.
///
/// `None` for everything that Linux does not cut either: GRE with sequence numbers, which segments
/// would share, and tunnels in tunnels.
#[cold]
pub(crate) fn find(
    octets: &[u8],
    parsed: &Parsed,
    kind: GsoKind,
    size: u16,
    transport: u16,
) -> Option<Tunnel> {
    // The outer checksum of a packet with segments left is for an address that is not in its header.
    if parsed.flags.contains(Flags::ROUTED) {
        return None;
    }
    let (encapsulation, first) = encapsulation(octets, parsed)?;
    let end = usize::from(transport);
    let network = inner_network(octets, first, end, kind)?;
    let in_place = match encapsulation {
        Encapsulation::Ip => network == first && version(octets, first) == outer_names(parsed),
        Encapsulation::Udp | Encapsulation::Gre => !has_ip_between(octets, first, network),
    };
    (in_place && transport_is_right(octets, end, kind, size)).then_some(Tunnel {
        encapsulation,
        network: u16::try_from(network).ok()?,
        transport,
    })
}

/// Octets from the frame's start to the payload of the packet in the tunnel.
#[cold]
pub(crate) fn payload_offset(octets: &[u8], kind: GsoKind, tunnel: Tunnel) -> usize {
    let transport = usize::from(tunnel.transport);
    let header = match kind {
        GsoKind::Udp => UDP_HEADER,
        GsoKind::TcpV4 | GsoKind::TcpV6 => {
            usize::from(octets.get(transport + 12).copied().unwrap_or(0) >> 4) * 4
        }
    };
    transport + header
}

/// The outermost encapsulation, and the first place where the packet inside may begin.
fn encapsulation(octets: &[u8], parsed: &Parsed) -> Option<(Encapsulation, usize)> {
    let l4 = usize::from(parsed.l4);
    match parsed.protocol {
        protocol::UDP => {
            let whole = usize::from(word(octets, l4 + 4)) == octets.len() - l4;
            whole.then_some((Encapsulation::Udp, l4 + UDP_HEADER))
        }
        protocol::GRE => Some((Encapsulation::Gre, l4 + gre_header(word(octets, l4))?)),
        protocol::IPV4 | protocol::IPV6 => Some((Encapsulation::Ip, l4)),
        _ => None,
    }
}

/// Octets of a GRE header with these flags.
fn gre_header(flags: u16) -> Option<usize> {
    let optional = |flag| if flags & flag == 0 { 0 } else { 4 };
    // No sequence numbers, no routing, no other version.
    (flags & !(GRE_CHECKSUM | GRE_KEY) == 0)
        .then(|| GRE_HEADER + optional(GRE_CHECKSUM) + optional(GRE_KEY))
}

/// Whether a GRE header at `at` has a checksum.
pub(crate) fn gre_has_checksum(octets: &[u8], at: usize) -> bool {
    word(octets, at) & GRE_CHECKSUM != 0
}

/// The IP version that the outer header announces.
fn outer_names(parsed: &Parsed) -> u8 {
    if parsed.protocol == protocol::IPV4 {
        4
    } else {
        6
    }
}

/// The IP header, not before `first`, that ends at `end` and carries what `kind` says to the end of the
/// frame.
fn inner_network(octets: &[u8], first: usize, end: usize, kind: GsoKind) -> Option<usize> {
    let inner = match kind {
        GsoKind::TcpV4 | GsoKind::TcpV6 => protocol::TCP,
        GsoKind::Udp => protocol::UDP,
    };
    let places = |least: usize, most: usize| {
        (least..=most)
            .step_by(4)
            .map_while(move |len| end.checked_sub(len))
            .take_while(move |&at| at >= first)
    };
    let v4 = || places(IPV4_HEADER, 60).find(|&at| is_ipv4(octets, at, end, inner));
    let v6 = || places(IPV6_HEADER, 512).find(|&at| is_ipv6(octets, at, end, inner));
    match kind {
        GsoKind::TcpV4 => v4(),
        GsoKind::TcpV6 => v6(),
        GsoKind::Udp => v4().or_else(v6),
    }
}

/// Whether the octets from `at` to `end` are the IPv4 header of a whole packet that reaches to the end of
/// the frame.
fn is_ipv4(octets: &[u8], at: usize, end: usize, inner: u8) -> bool {
    octets.get(at..end).is_some_and(|header| {
        header.len() >= IPV4_HEADER
            && usize::from(header[0]) == 0x40 + header.len() / 4
            && header[9] == inner
            && word(header, 6) & 0x3fff == 0
            && usize::from(word(header, 2)) == octets.len() - at
            && Sum::ZERO.plus(header).is_valid()
    })
}

/// Whether the octets from `at` to `end` are the IPv6 header and extension headers of a whole packet that
/// reaches to the end of the frame.
fn is_ipv6(octets: &[u8], at: usize, end: usize, inner: u8) -> bool {
    let Some(header) = octets.get(at..end) else {
        return false;
    };
    let right = header.len() >= IPV6_HEADER
        && header[0] >> 4 == 6
        && usize::from(word(header, 4)) + IPV6_HEADER == octets.len() - at;
    right && extension_headers_end(header, inner)
}

/// Whether the chain of extension headers ends, at the end of `headers`, with the protocol `inner`.
fn extension_headers_end(headers: &[u8], inner: u8) -> bool {
    let (mut next, mut at) = (headers[6], IPV6_HEADER);
    while let Some([following, len, _, left, ..]) = headers.get(at..) {
        let octets = match next {
            protocol::HOP_BY_HOP | protocol::DESTINATION_OPTIONS => (usize::from(*len) + 1) * 8,
            protocol::ROUTING if *left == 0 => (usize::from(*len) + 1) * 8,
            _ => return false,
        };
        (next, at) = (*following, at + octets);
    }
    at == headers.len() && next == inner
}

/// Whether another IP packet lies around the innermost: a tunnel in the tunnel. Its length would have to
/// be mended as well.
fn has_ip_between(octets: &[u8], first: usize, network: usize) -> bool {
    (first..network).any(|at| {
        let header = octets.get(at..network).unwrap_or_default();
        let reaches = octets.len() - at;
        match header {
            [0x45..=0x4f, ..] => {
                let len = usize::from(header[0] & 0xf) * 4;
                header.len() >= len
                    && usize::from(word(header, 2)) == reaches
                    && Sum::ZERO.plus(&header[..len]).is_valid()
            }
            [0x60..=0x6f, ..] => {
                header.len() >= IPV6_HEADER
                    && usize::from(word(header, 4)) + IPV6_HEADER == reaches
                    && carries_tunnel(header[6])
            }
            _ => false,
        }
    })
}

/// Whether an IPv6 packet with this next header can carry a tunnel.
fn carries_tunnel(next: u8) -> bool {
    matches!(
        next,
        protocol::HOP_BY_HOP
            | protocol::IPV4
            | protocol::UDP
            | protocol::IPV6
            | protocol::ROUTING
            | protocol::GRE
            | protocol::DESTINATION_OPTIONS
    )
}

/// Whether a transport header with payload begins at `at`.
fn transport_is_right(octets: &[u8], at: usize, kind: GsoKind, size: u16) -> bool {
    let transport = octets.get(at..).unwrap_or_default();
    match kind {
        GsoKind::TcpV4 | GsoKind::TcpV6 => {
            let header = usize::from(transport.get(12).copied().unwrap_or(0) >> 4) * 4;
            header >= TCP_HEADER && header < transport.len()
        }
        GsoKind::Udp => {
            let payload = transport.len().saturating_sub(UDP_HEADER);
            payload > 0
                && usize::from(word(transport, 4)) == transport.len()
                && payload.div_ceil(usize::from(size).max(1)) <= MAX_DATAGRAMS
        }
    }
}

fn version(octets: &[u8], at: usize) -> u8 {
    octets.get(at).copied().unwrap_or(0) >> 4
}

/// Two octets at `at`; zero where the slice ends before.
fn word(octets: &[u8], at: usize) -> u16 {
    octets
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |word| u16::from_be_bytes(*word))
}

#[cfg(test)]
mod tests;
