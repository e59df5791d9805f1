//! Packets that are longer than the link they go to takes: towards uplinks and containers alike.

use crate::fragment_ipv6::fragment_ipv6;
use crate::icmp::IcmpError;
use crate::offload::fragment_ipv4;
use crate::origin::Origin;
use crate::originate::Originator;
use crate::output::Output;
use crate::packet::Packet;

/// A packet's length against a link's MTU. That of a super-frame is its segments'.
pub(super) enum Size {
    /// It can go as it is.
    Fits,
    /// It can go in fragments.
    Fragments,
    /// It cannot go: its sender is told so.
    TooBig(IcmpError),
}

/// How a packet fits a link that takes IP packets of `mtu` octets. IPv6 packets are fragmented by
/// their source alone (RFC 8200 §4.5), which the NOS is of what it says itself.
#[inline]
pub(super) fn size(packet: &Packet, mtu: usize, origin: Origin) -> Size {
    let ours = packet.is_ipv6() && origin == Origin::Nos;
    if packet.wire_len() <= mtu {
        Size::Fits
    } else if packet.dont_fragment() && !ours {
        let mtu = u32::try_from(mtu).unwrap_or(u32::MAX);
        Size::TooBig(IcmpError::PacketTooBig { mtu })
    } else {
        Size::Fragments
    }
}

/// Cuts a packet into fragments of `mtu` octets at most, which go to the output's pieces.
pub(super) fn cut(packet: Packet, mtu: usize, originator: &mut Originator, output: &mut Output) {
    let Output {
        pool,
        pieces,
        ledger,
        ..
    } = output;
    let mut out = |piece| pieces.push_back(piece);
    let adapted = if packet.is_ipv6() {
        let identification = originator.fragment_identification();
        fragment_ipv6(packet, mtu, identification, pool, &mut out)
    } else {
        fragment_ipv4(packet, mtu, pool, &mut out)
    };
    adapted.record(ledger);
}
