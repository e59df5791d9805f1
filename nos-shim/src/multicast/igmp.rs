//! IGMP messages (RFC 2236 §2, RFC 9776 §4): packets in, values out, and back.
//!
//! What is taken for a query is what Linux (6.18) takes for one: 8 octets with or without a response
//! time (the second and the first version), or at least 12. Neither TTL nor router alert are asked
//! for. Reports of the third version, and who has left a group, are for routers.

use core::net::Ipv4Addr;

use super::{Group, Heard, Query, REPORT_HEADER, Said, Version, number_from_8, put_records};
use crate::checksum::Sum;
use crate::drop::DropReason;
use crate::frame::{Checksum, ETHERNET_HEADER, Frame, FrameFull, Offload};
use crate::ident::MacAddr;
use crate::packet::{ETHERTYPE_IPV4, Fragment, IPV4_HEADER, Packet, protocol};
use crate::time::Duration;

/// 224.0.0.1, in which everybody is (RFC 1112 §4).
pub const ALL_SYSTEMS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
/// 224.0.0.2
pub const ALL_ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 2);
/// 224.0.0.22, where all routers that speak IGMPv3 listen (RFC 9776 §4.2.14).
pub const ALL_IGMPV3_ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 22);

const QUERY: u8 = 0x11;
const REPORT_V1: u8 = 0x12;
const REPORT_V2: u8 = 0x16;
const LEAVE: u8 = 0x17;
const REPORT_V3: u8 = 0x22;

/// Octets of all messages of the first two versions (RFC 2236 §2).
const MESSAGE: usize = 8;
/// Octets of a record that names no sources (RFC 9776 §4.2.4).
const RECORD: usize = 8;

/// RFC 9776 §4: messages do not leave the link.
const TTL: u8 = 1;
/// Internetwork control (RFC 9776 §4).
const TOS: u8 = 0xc0;
/// Do not fragment, as Linux has it.
const FLAGS: [u8; 2] = [0x40, 0];
/// RFC 2113 §2.1.
const ROUTER_ALERT: [u8; 4] = [148, 4, 0, 0];
const IP_HEADER: usize = IPV4_HEADER + ROUTER_ALERT.len();
/// Octets in front of a message that is sent.
const HEADERS: usize = ETHERNET_HEADER + IP_HEADER;

/// Response times are in tenths of seconds (RFC 9776 §4.1.1).
const TENTH: Duration = Duration::from_millis(100);

/// The Ethernet address of a multicast group (RFC 1112 §6.4).
#[must_use]
pub fn multicast_mac(group: Ipv4Addr) -> MacAddr {
    let [_, a, b, c] = group.octets();
    MacAddr([0x01, 0x00, 0x5e, a & 0x7f, b, c])
}

/// Whether `packet` is an IGMP message, valid or not.
#[must_use]
pub fn is_igmp(packet: &Packet) -> bool {
    packet.protocol() == protocol::IGMP && !packet.is_ipv6()
}

/// Reads and checks an IGMP message.
///
/// # Errors
///
/// [`DropReason::TransportChecksum`]; [`DropReason::GroupMessageMalformed`] for what fails the other
/// checks, and for what is no IGMP at all.
pub fn parse(packet: &Packet) -> Result<Heard<Ipv4Addr>, DropReason> {
    let malformed = DropReason::GroupMessageMalformed;
    let message = packet.transport();
    let Some(fixed) = message.first_chunk::<MESSAGE>() else {
        return Err(malformed);
    };
    if !is_igmp(packet) || packet.fragment() != Fragment::Whole {
        return Err(malformed);
    }
    let summed = packet.frame().offload().checksum != Checksum::Complete;
    if !summed && !Sum::ZERO.plus(message).is_valid() {
        return Err(DropReason::TransportChecksum);
    }
    match fixed[0] {
        QUERY => parse_query(message, *fixed)
            .map(Heard::Query)
            .ok_or(malformed),
        REPORT_V1 | REPORT_V2 if group_of(*fixed).is_reported() => {
            Ok(Heard::Report(group_of(*fixed)))
        }
        // Linux ignores types that it does not know (RFC 9776 §4).
        _ => Ok(Heard::Nothing),
    }
}

fn parse_query(message: &[u8], fixed: [u8; MESSAGE]) -> Option<Query<Ipv4Addr>> {
    let (code, group) = (fixed[1], group_of(fixed));
    let group = Some(group).filter(|group| !group.is_unspecified());
    if message.len() == MESSAGE {
        let version = if code == 0 { Version::V1 } else { Version::V2 };
        return Some(Query::older(version, group, TENTH * u32::from(code)));
    }
    Query::newest(message.get(MESSAGE..)?, group, TENTH * number_from_8(code))
}

fn group_of(fixed: [u8; MESSAGE]) -> Ipv4Addr {
    let [_, _, _, _, group @ ..] = fixed;
    group.into()
}

/// How many records a report holds on a link that carries packets of `mtu` octets.
#[must_use]
pub fn records_per_report(mtu: usize) -> usize {
    let room = mtu.saturating_sub(IP_HEADER + REPORT_HEADER);
    (room / RECORD).max(1)
}

/// Makes `frame` what is said, from an interface with these addresses. Without an IPv4 address it is
/// said from 0.0.0.0 (RFC 9776 §4.2.13).
///
/// # Errors
///
/// [`FrameFull`] when the frame's buffer is too short.
pub fn write(
    said: &Said<'_, Ipv4Addr>,
    source_mac: MacAddr,
    source: Ipv4Addr,
    frame: &mut Frame,
) -> Result<(), FrameFull> {
    let (kind, destination, len) = match *said {
        Said::Records(records) => {
            let len = REPORT_HEADER + RECORD * records.len();
            (REPORT_V3, ALL_IGMPV3_ROUTERS, len)
        }
        Said::Report(Version::V1, group) => (REPORT_V1, group, MESSAGE),
        Said::Report(_, group) => (REPORT_V2, group, MESSAGE),
        Said::Leave(_) => (LEAVE, ALL_ROUTERS, MESSAGE),
    };
    frame.set_len(HEADERS + len)?;
    frame.set_offload(Offload::NONE);
    let (headers, message) = frame.bytes_mut().split_at_mut(HEADERS);
    let (link, ip) = headers.split_at_mut(ETHERNET_HEADER);
    link[..6].copy_from_slice(&multicast_mac(destination).0);
    link[6..12].copy_from_slice(&source_mac.0);
    link[12..].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
    put_ip_header(ip, len, source, destination);
    message.fill(0);
    message[0] = kind;
    match *said {
        Said::Records(records) => put_records::<_, RECORD>(records, message),
        Said::Report(_, group) | Said::Leave(group) => {
            message[4..].copy_from_slice(&group.octets());
        }
    }
    let checksum = Sum::ZERO.plus(message).checksum();
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}

/// A packet that must not be fragmented needs no identification (RFC 6864 §4.1).
fn put_ip_header(ip: &mut [u8], len: usize, source: Ipv4Addr, destination: Ipv4Addr) {
    let total = u16::try_from(IP_HEADER + len).unwrap_or(u16::MAX);
    ip.fill(0);
    ip[0] = 0x46;
    ip[1] = TOS;
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    ip[6..8].copy_from_slice(&FLAGS);
    ip[8] = TTL;
    ip[9] = protocol::IGMP;
    ip[12..16].copy_from_slice(&source.octets());
    ip[16..20].copy_from_slice(&destination.octets());
    ip[20..].copy_from_slice(&ROUTER_ALERT);
    let checksum = Sum::ZERO.plus(ip).checksum();
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests;
