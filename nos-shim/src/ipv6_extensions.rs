//! IPv6 extension headers as a host treats them (RFC 8200 §4), before anything else looks at a
//! packet that is addressed to it.
//!
//! As Linux does without IPsec, segment routing and mobility: unknown options are skipped,
//! discarded or complained about as their two highest bits say; padding longer than seven octets
//! or other than zero is an attack; no header holds more than eight options; a routing header that
//! still names stations is refused (RFC 5095 for type 0), and so is an authentication header. A header
//! at fault ([`Fault`]) is complained about where it stands, so behind what is wrong before it.

use core::net::IpAddr;

use crate::drop::DropReason;
use crate::frame::ETHERNET_HEADER;
use crate::icmp::IcmpError;
use crate::packet::{Fault, Fragment, IPV6_HEADER, Packet, protocol};

/// Options in one header, padding not counted (`net.ipv6.max_hbh_opts_number`).
const MAX_OPTIONS: usize = 8;
/// Octets of padding between options (RFC 8200 §4.2 aligns to eight).
const MAX_PADDING: usize = 7;

const PAD_1: u8 = 0;
const PAD_N: u8 = 1;
/// RFC 2711.
const ROUTER_ALERT: u8 = 5;
/// RFC 9486.
const IOAM: u8 = 0x31;
/// RFC 2675.
const JUMBO: u8 = 0xc2;

/// Octets from a fragment header's start to its offset field.
const FRAGMENT_OFFSET: usize = 2;
/// Octets from the IPv6 header's start to its payload length.
const PAYLOAD_LENGTH: usize = 4;

/// Routing headers of RPL (RFC 6554) and segment routing (RFC 8754), which need to be enabled.
const SWITCHED_OFF: [u8; 2] = [3, 4];

/// A packet that is not received because of its extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtensionsRefused {
    /// The name under which it is dropped.
    pub reason: DropReason,
    /// What its sender is told, if [`IcmpError::may_answer`] says so.
    pub error: Option<IcmpError>,
}

const SILENT: ExtensionsRefused = ExtensionsRefused {
    reason: DropReason::Ipv6Header,
    error: None,
};

fn complain(error: IcmpError) -> ExtensionsRefused {
    ExtensionsRefused {
        reason: DropReason::Ipv6Header,
        error: Some(error),
    }
}

/// Looks at all extension headers of a packet that is addressed to this host. IPv4 packets, and
/// packets without extension headers, pass. Of a fragment, only headers in front of the fragment
/// header count; what follows is looked at when the datagram is whole.
///
/// # Errors
///
/// [`ExtensionsRefused`].
pub fn receive(packet: &Packet) -> Result<(), ExtensionsRefused> {
    let ip = packet.ip();
    let end = packet.transport_offset() - ETHERNET_HEADER;
    if !packet.is_ipv6() || end == IPV6_HEADER && packet.fault().is_none() {
        return Ok(());
    }
    let to_group = matches!(packet.destination(), IpAddr::V6(to) if to.is_multicast());
    let (mut at, mut named_at, mut next) = (IPV6_HEADER, 6, ip[6]);
    while let Some(header) = ip.get(at..end).filter(|header| header.len() >= 8) {
        let len = match next {
            protocol::FRAGMENT if packet.fragment() != Fragment::Whole => return Ok(()),
            protocol::FRAGMENT => 8,
            protocol::AUTHENTICATION => {
                let pointer = pointer(named_at);
                return Err(complain(IcmpError::UnknownHeader { pointer }));
            }
            _ => (usize::from(header[1]) + 1) * 8,
        };
        let header = header.get(..len).ok_or(SILENT)?;
        match next {
            protocol::HOP_BY_HOP | protocol::DESTINATION_OPTIONS => Options {
                header,
                at,
                hop_by_hop: next == protocol::HOP_BY_HOP,
                to_group,
            }
            .check()?,
            // No station of a route is a group (RFC 8754 aside, which is switched off).
            protocol::ROUTING if to_group => return Err(SILENT),
            protocol::ROUTING => check_routing(header, at)?,
            _ => {}
        }
        (named_at, next) = (at, header[0]);
        at += len;
    }
    match packet.fault() {
        Some(fault) => Err(complain_of(fault, at)),
        None => Ok(()),
    }
}

/// About a fragment header `at` octets into the packet: RFC 8200 §4.5, RFC 7112 §5.
fn complain_of(fault: Fault, at: usize) -> ExtensionsRefused {
    let problem = |at| IcmpError::HeaderProblem {
        pointer: pointer(at),
    };
    let error = match fault {
        Fault::FragmentHeader => problem(at),
        Fault::FragmentBeyondEnd => problem(at + FRAGMENT_OFFSET),
        Fault::FragmentLength => problem(PAYLOAD_LENGTH),
        Fault::IncompleteChain => IcmpError::IncompleteHeaderChain,
    };
    ExtensionsRefused {
        reason: fault.reason(),
        error: Some(error),
    }
}

/// The value of the router alert option among the hop-by-hop options (RFC 2711 §2.1), of a packet
/// whose headers were [received](receive).
#[must_use]
pub fn router_alert(packet: &Packet) -> Option<u16> {
    let ip = packet.ip();
    if !packet.is_ipv6() || ip[6] != protocol::HOP_BY_HOP {
        return None;
    }
    let header = ip.get(IPV6_HEADER..)?;
    let end = (usize::from(*header.get(1)?) + 1) * 8;
    let mut options = header.get(2..end)?;
    while let Some((&kind, rest)) = options.split_first() {
        if kind == PAD_1 {
            options = rest;
            continue;
        }
        let (&len, rest) = rest.split_first()?;
        let (data, rest) = rest.split_at_checked(usize::from(len))?;
        if let (ROUTER_ALERT, &[high, low]) = (kind, data) {
            return Some(u16::from_be_bytes([high, low]));
        }
        options = rest;
    }
    None
}

fn pointer(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(0)
}

fn check_routing(header: &[u8], at: usize) -> Result<(), ExtensionsRefused> {
    let (kind, segments_left) = (header[2], header[3]);
    if SWITCHED_OFF.contains(&kind) {
        return Err(SILENT);
    }
    if segments_left == 0 {
        return Ok(());
    }
    let pointer = pointer(at + 2);
    Err(complain(IcmpError::HeaderProblem { pointer }))
}

/// A header of options, `at` octets into the packet.
struct Options<'a> {
    header: &'a [u8],
    at: usize,
    hop_by_hop: bool,
    to_group: bool,
}

impl Options<'_> {
    fn check(&self) -> Result<(), ExtensionsRefused> {
        let (mut at, mut padding, mut count) = (2, 0, 0);
        while let Some(&kind) = self.header.get(at) {
            if kind == PAD_1 {
                padding += 1;
                at += 1;
            } else {
                let data_len = usize::from(*self.header.get(at + 1).ok_or(SILENT)?);
                let data = self.header.get(at + 2..at + 2 + data_len).ok_or(SILENT)?;
                if kind == PAD_N {
                    padding += 2 + data_len;
                    if data.iter().any(|&octet| octet != 0) {
                        return Err(SILENT);
                    }
                } else {
                    padding = 0;
                    count += 1;
                    self.check_option(kind, data, self.at + at)?;
                }
                at += 2 + data_len;
            }
            if padding > MAX_PADDING || count > MAX_OPTIONS {
                return Err(SILENT);
            }
        }
        Ok(())
    }

    fn check_option(&self, kind: u8, data: &[u8], at: usize) -> Result<(), ExtensionsRefused> {
        let pointer = pointer(at);
        match kind {
            ROUTER_ALERT if self.hop_by_hop && data.len() == 2 => return Ok(()),
            ROUTER_ALERT | IOAM if self.hop_by_hop => return Err(SILENT),
            JUMBO if self.hop_by_hop => return Err(check_jumbo(data, pointer)),
            _ => {}
        }
        // RFC 8200 §4.2.
        match kind >> 6 {
            0 => Ok(()),
            1 => Err(SILENT),
            3 if self.to_group => Err(SILENT),
            _ => Err(complain(IcmpError::UnknownOption { pointer })),
        }
    }
}

/// Packets longer than 65,575 octets never come this far, so a jumbo option is always wrong.
fn check_jumbo(data: &[u8], pointer: u32) -> ExtensionsRefused {
    let Ok(len) = data.try_into().map(u32::from_be_bytes) else {
        return SILENT;
    };
    let beside_payload_length = len > 65_535;
    let pointer = if beside_payload_length {
        pointer
    } else {
        pointer + 2
    };
    complain(IcmpError::HeaderProblem { pointer })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_packets::{Draft, X6, hex, pool};

    fn received(group: bool, next: u8, headers: &str) -> Result<(), ExtensionsRefused> {
        let mut draft = Draft::v6();
        if group {
            draft = Draft::new(X6, "ff02::1");
        }
        let echo = draft.icmp(128, 0, 1, b"hello");
        let payload = [hex(headers), echo].concat();
        receive(&draft.packet(&mut pool(), next, &payload))
    }

    /// Header type, header, and what Linux 6.18 does: answer the echo request that follows (0),
    /// nothing (1), or complain.
    #[test]
    fn options_are_treated_as_linux_does() {
        let unknown = |pointer| Err(complain(IcmpError::UnknownOption { pointer }));
        let wrong = |pointer| Err(complain(IcmpError::HeaderProblem { pointer }));
        for (next, header, expected) in [
            (0, "3a00010400000000", Ok(())),
            (0, "3a001e0400000000", Ok(())),
            (0, "3a00000000000000", Ok(())),
            (0, "3a01000000000000 0000010400000000", Err(SILENT)),
            (0, "3a000104000000ff", Err(SILENT)),
            (0, "3a01010a000000000000000000000000", Err(SILENT)),
            (0, "3a00010600000000", Err(SILENT)),
            (0, "3a00050200000100", Ok(())),
            (0, "3a00050300000000", Err(SILENT)),
            (0, "3a00310200000000", Err(SILENT)),
            (0, "3a005e0400000000", Err(SILENT)),
            (0, "3a009e0400000000", unknown(42)),
            (0, "3a00c70400000000", unknown(42)),
            (0, "3a00c20400000100", wrong(44)),
            (0, "3a00c20400010000", wrong(42)),
            (
                0,
                "3a02 01020000 c910 20010db8000100000000000000000002",
                unknown(46),
            ),
            (
                0,
                "3a02 1e001e001e001e001e001e001e001e00 010400000000",
                Ok(()),
            ),
            (
                0,
                "3a02 1e001e001e001e001e001e001e001e001e00 01020000",
                Err(SILENT),
            ),
            (60, "3a00050300000000", Ok(())),
            (60, "3a00310200000000", Ok(())),
            (60, "3a00c20400000100", unknown(42)),
            (60, "3a00de0400000000", unknown(42)),
            (60, "3a005e0400000000", Err(SILENT)),
            (
                43,
                "3a02020000000000 00000000000000000000000000000000",
                Ok(()),
            ),
            (
                43,
                "3a02020100000000 00000000000000000000000000000000",
                wrong(42),
            ),
            (
                43,
                "3a02000100000000 00000000000000000000000000000000",
                wrong(42),
            ),
            (
                43,
                "3a02040000000000 00000000000000000000000000000000",
                Err(SILENT),
            ),
            (
                43,
                "3a02040100000000 00000000000000000000000000000000",
                Err(SILENT),
            ),
            (
                43,
                "3a02030000000000 00000000000000000000000000000000",
                Err(SILENT),
            ),
            (
                51,
                "3a040000000000010000000100000000 0000000000000000",
                Err(complain(IcmpError::UnknownHeader { pointer: 6 })),
            ),
            // An atomic fragment is whole.
            (44, "3c00000000000009 3a009e0400000000", unknown(50)),
        ] {
            assert_eq!(received(false, next, header), expected, "{next}: {header}");
        }
    }

    #[test]
    fn groups_hear_complaints_only_where_the_option_says_so() {
        assert_eq!(received(true, 0, "3a00c70400000000"), Err(SILENT));
        assert_eq!(received(true, 43, "3a004d0000000000"), Err(SILENT));
        let unknown = complain(IcmpError::UnknownOption { pointer: 42 });
        assert_eq!(received(true, 0, "3a00870400000000"), Err(unknown));
    }

    /// What Linux 6.18 complains of, with its place; extension headers in front come first.
    #[test]
    fn fragment_headers_at_fault_are_complained_about() {
        let wrong = |pointer| Some(IcmpError::HeaderProblem { pointer });
        let unknown = |pointer| Some(IcmpError::UnknownOption { pointer });
        let incomplete = Some(IcmpError::IncompleteHeaderChain);
        let long = "00".repeat(16);
        for (next, headers, reason, error) in [
            // Offset 65,528, and 16 octets.
            (
                44,
                format!("3a00fff8 00000009 {long}"),
                DropReason::IpLength,
                wrong(42),
            ),
            (
                44,
                format!("3a00fff9 00000009 {long}"),
                DropReason::IpLength,
                wrong(42),
            ),
            (
                60,
                format!("2c00010400000000 3a00fff8 00000009 {long}"),
                DropReason::IpLength,
                wrong(50),
            ),
            // Seventeen octets, and more to come.
            (
                44,
                format!("3a000011 00000009 {long}00"),
                DropReason::IpLength,
                wrong(4),
            ),
            (
                60,
                "2c00010400000000 3a000001 00000009 8000".into(),
                DropReason::TinyFragment,
                incomplete,
            ),
            (
                44,
                "06000001 00000009 0102030405060708".into(),
                DropReason::TinyFragment,
                incomplete,
            ),
            (
                44,
                "fd000001 00000009".into(),
                DropReason::TinyFragment,
                incomplete,
            ),
            (
                44,
                "3c000001 00000009 0600".into(),
                DropReason::TinyFragment,
                incomplete,
            ),
            (44, "3a00".into(), DropReason::Ipv6Header, wrong(40)),
            // Behind that of an atomic fragment.
            (
                44,
                "2c000000 00000009 3a000000 00000009".into(),
                DropReason::Ipv6Header,
                wrong(48),
            ),
            (
                60,
                "2c009e0400000000 3a00fff8 00000009 ".to_owned() + &long,
                DropReason::Ipv6Header,
                unknown(42),
            ),
            (
                60,
                "2c005e0400000000 3a00fff8 00000009 ".to_owned() + &long,
                DropReason::Ipv6Header,
                None,
            ),
        ] {
            let frame = Draft::v6().frame(next, &hex(&headers));
            let rejected = Packet::parse(pool().copy_from(&frame).unwrap()).unwrap_err();
            let packet = Packet::parse_up_to_fault(rejected).unwrap();
            let refused = ExtensionsRefused { reason, error };
            assert_eq!(receive(&packet), Err(refused), "{next}: {headers}");
        }
    }

    #[test]
    fn what_is_behind_a_fragment_header_waits() {
        let draft = Draft::v6();
        let payload = hex("3c00000100000009 3a009e0400000000 8000000000000000");
        let packet = draft.packet(&mut pool(), 44, &payload);
        assert_eq!(receive(&packet), Ok(()));
    }

    proptest::proptest! {
        #[test]
        fn any_options_are_received_or_refused(mut header in proptest::collection::vec(proptest::prelude::any::<u8>(), 24)) {
            header[..2].copy_from_slice(&[58, 2]);
            let text: String = header.iter().map(|octet| format!("{octet:02x}")).collect();
            let _ = received(false, 0, &text);
            let _ = received(false, 60, &text);
        }
    }
}
