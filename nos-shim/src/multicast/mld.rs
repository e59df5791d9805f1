//! MLD messages (RFC 2710 §3, RFC 9777 §5): packets in, values out, and back.
//!
//! What is taken for a query is what Linux (6.18) takes for one: from a link-local address, with hop
//! limit 1 and a router alert for MLD (RFC 9777 §6.2), and 24 octets long (the first version) or at
//! least 28 (the second). Other reports than those of the first version, and who has left a group,
//! are for routers.

use core::net::Ipv6Addr;

use super::{Group, Heard, Query, REPORT_HEADER, Said, Version, number_from_16, put_records};
use crate::checksum::Sum;
use crate::drop::DropReason;
use crate::frame::{ETHERNET_HEADER, Frame, FrameFull, Offload};
use crate::ident::MacAddr;
use crate::ipv6_extensions;
use crate::ndp::{ALL_ROUTERS, multicast_mac, put};
use crate::packet::{Addresses, ETHERTYPE_IPV6, Fragment, IPV6_HEADER, Packet, protocol};
use crate::time::Duration;

/// ff02::16, where all routers that speak MLDv2 listen (RFC 9777 §5.2.14).
pub const ALL_MLDV2_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

const QUERY: u8 = 130;
const REPORT_V1: u8 = 131;
const DONE: u8 = 132;
const REPORT_V2: u8 = 143;

/// Octets of all messages of the first version (RFC 2710 §3).
const MESSAGE_V1: usize = 24;
/// Octets of a record that names no sources (RFC 9777 §5.2.4).
const RECORD: usize = 20;

/// RFC 9777 §5: messages do not leave the link.
const HOP_LIMIT: u8 = 1;
/// The value of the router alert option for MLD (RFC 2711 §2.1).
const ALERT_MLD: u16 = 0;
/// The hop-by-hop options of a message: router alert for MLD, and padding (RFC 2711 §2.1). The next
/// header is ICMPv6.
const HOP_BY_HOP: [u8; 8] = [protocol::ICMPV6, 0, 5, 2, 0, 0, 1, 0];
/// Octets in front of a message that is sent.
const HEADERS: usize = ETHERNET_HEADER + IPV6_HEADER + HOP_BY_HOP.len();

/// Whether `packet` is an MLD message, valid or not.
#[must_use]
pub fn is_mld(packet: &Packet) -> bool {
    let kind = packet.icmp().map(|(kind, _)| kind);
    packet.is_ipv6() && matches!(kind, Some(QUERY | REPORT_V1 | DONE | REPORT_V2))
}

/// Reads and checks an MLD message, whose extension headers were
/// [received](ipv6_extensions::receive).
///
/// # Errors
///
/// [`DropReason::TransportChecksum`]; [`DropReason::GroupMessageMalformed`] for what fails the other
/// checks, and for what is no MLD at all.
pub fn parse(packet: &Packet) -> Result<Heard<Ipv6Addr>, DropReason> {
    let malformed = DropReason::GroupMessageMalformed;
    let whole = packet.fragment() == Fragment::Whole && is_mld(packet);
    let Addresses::V6 { source, .. } = packet.addresses() else {
        return Err(malformed);
    };
    if !whole || source.is_multicast() {
        return Err(malformed);
    }
    if !packet.transport_checksum_ok() {
        return Err(DropReason::TransportChecksum);
    }
    match packet.icmp() {
        Some((QUERY, _)) => parse_query(packet, source).map(Heard::Query),
        Some((REPORT_V1, _)) => parse_report(packet, source).map(Heard::Report),
        _ => Some(Heard::Nothing),
    }
    .ok_or(malformed)
}

fn parse_query(packet: &Packet, source: Ipv6Addr) -> Option<Query<Ipv6Addr>> {
    let from_this_link = source.is_unicast_link_local()
        && packet.ttl() == HOP_LIMIT
        && ipv6_extensions::router_alert(packet) == Some(ALERT_MLD);
    let message = packet.transport();
    let (fixed, rest) = message.split_first_chunk::<MESSAGE_V1>()?;
    let group = group_of(fixed);
    let group = Some(group).filter(|group| !group.is_unspecified());
    if !from_this_link || group.is_some_and(|group| !group.is_multicast()) {
        return None;
    }
    let code = u16::from_be_bytes([fixed[4], fixed[5]]);
    if message.len() == MESSAGE_V1 {
        let max_delay = Duration::from_millis(code.into());
        return Some(Query::older(Version::V2, group, max_delay));
    }
    let max_delay = Duration::from_millis(number_from_16(code).into());
    Query::newest(rest, group, max_delay)
}

/// From the link, or from who has no address yet (RFC 2710 §5, RFC 3590 §4).
fn parse_report(packet: &Packet, source: Ipv6Addr) -> Option<Ipv6Addr> {
    let group = group_of(packet.transport().first_chunk()?);
    let from_this_link = source.is_unicast_link_local() || source.is_unspecified();
    (from_this_link && group.is_reported()).then_some(group)
}

fn group_of(message: &[u8; MESSAGE_V1]) -> Ipv6Addr {
    let [_, _, _, _, _, _, _, _, group @ ..] = *message;
    group.into()
}

/// How many records a report holds on a link that carries packets of `mtu` octets.
#[must_use]
pub fn records_per_report(mtu: usize) -> usize {
    let room = (ETHERNET_HEADER + mtu).saturating_sub(HEADERS + REPORT_HEADER);
    (room / RECORD).max(1)
}

/// Makes `frame` what is said, from an interface with this MAC address and link-local address.
///
/// # Errors
///
/// [`FrameFull`] when the frame's buffer is too short.
pub fn write(
    said: &Said<'_, Ipv6Addr>,
    source_mac: MacAddr,
    source: Ipv6Addr,
    frame: &mut Frame,
) -> Result<(), FrameFull> {
    let (kind, destination, len) = match *said {
        Said::Records(records) => {
            let len = REPORT_HEADER + RECORD * records.len();
            (REPORT_V2, ALL_MLDV2_ROUTERS, len)
        }
        Said::Report(_, group) => (REPORT_V1, group, MESSAGE_V1),
        Said::Leave(_) => (DONE, ALL_ROUTERS, MESSAGE_V1),
    };
    frame.set_len(HEADERS + len)?;
    frame.set_offload(Offload::NONE);
    let (headers, message) = frame.bytes_mut().split_at_mut(HEADERS);
    let payload_len = u16::try_from(HOP_BY_HOP.len() + len).unwrap_or(u16::MAX);
    put(
        headers,
        &[
            &multicast_mac(destination).0,
            &source_mac.0,
            &ETHERTYPE_IPV6.to_be_bytes(),
            &[0x60, 0, 0, 0],
            &payload_len.to_be_bytes(),
            &[protocol::HOP_BY_HOP, HOP_LIMIT],
            &source.octets(),
            &destination.octets(),
            &HOP_BY_HOP,
        ],
    );
    message.fill(0);
    message[0] = kind;
    match *said {
        Said::Records(records) => put_records::<_, RECORD>(records, message),
        Said::Report(_, group) | Said::Leave(group) => {
            message[8..].copy_from_slice(&group.octets());
        }
    }
    let sum = Sum::ZERO
        .pseudo_v6(
            source,
            destination,
            protocol::ICMPV6,
            u32::try_from(len).unwrap_or(u32::MAX),
        )
        .plus(message);
    message[2..4].copy_from_slice(&sum.checksum().to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests;
