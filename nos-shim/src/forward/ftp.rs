//! What an FTP client says about the connections that it wants to be opened to it: `PORT` (RFC 959
//! §4.1.2) and `EPRT` (RFC 2428 §2).
//!
//! Only whole commands at the start of a segment are understood, as clients send them, and only those
//! that name the client's own address: nobody can have a port of another host opened (RFC 2577 §3).

use core::net::{IpAddr, Ipv4Addr};
use core::str::FromStr;

/// Where FTP servers take commands.
pub(super) const CONTROL_PORT: u16 = 21;

/// Ports below are nobody's for data (RFC 2577 §3).
const FIRST_DATA_PORT: u16 = 1024;

/// Octets of the longest command that is looked at.
const LONGEST: usize = 80;

/// The port that a command in `payload` announces at the client's own address.
pub(super) fn announced_port(payload: &[u8], own: IpAddr) -> Option<u16> {
    let payload = payload.get(..LONGEST).unwrap_or(payload);
    let end = payload
        .iter()
        .position(|&octet| octet == b'\r' || octet == b'\n')?;
    let line = core::str::from_utf8(payload.get(..end)?).ok()?;
    let (command, argument) = line.split_once(' ')?;
    let (address, port) = if command.eq_ignore_ascii_case("PORT") {
        port_argument(argument.trim())?
    } else if command.eq_ignore_ascii_case("EPRT") {
        eprt_argument(argument.trim())?
    } else {
        return None;
    };
    (address == own && port >= FIRST_DATA_PORT).then_some(port)
}

/// `h1,h2,h3,h4,p1,p2`
fn port_argument(argument: &str) -> Option<(IpAddr, u16)> {
    let mut octets = [0; 6];
    let mut parts = argument.split(',');
    for octet in &mut octets {
        *octet = decimal(parts.next()?)?;
    }
    if parts.next().is_some() {
        return None;
    }
    let [a, b, c, d, high, low] = octets;
    Some((
        Ipv4Addr::new(a, b, c, d).into(),
        u16::from_be_bytes([high, low]),
    ))
}

/// `|family|address|port|`, with any delimiter.
fn eprt_argument(argument: &str) -> Option<(IpAddr, u16)> {
    let delimiter = argument.chars().next().filter(|it| !it.is_alphanumeric())?;
    let mut parts = argument.split(delimiter);
    let (Some(""), Some(family), Some(address), Some(port), Some(""), None) = (
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
    ) else {
        return None;
    };
    let address: IpAddr = address.parse().ok()?;
    let fits = matches!(
        (family, address),
        ("1", IpAddr::V4(_)) | ("2", IpAddr::V6(_))
    );
    Some((address, decimal(port)?)).filter(|_| fits)
}

fn decimal<T: FromStr>(text: &str) -> Option<T> {
    let digits = text.bytes().all(|octet| octet.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_client_announces_ports_of_its_own() {
        let v4: IpAddr = "203.0.113.1".parse().unwrap();
        let v6: IpAddr = "2001:db8:1::1".parse().unwrap();
        for (command, own, port) in [
            ("PORT 203,0,113,1,156,64\r\n", v4, Some(40_000)),
            ("port 203,0,113,1,156,64\r\n", v4, Some(40_000)),
            ("EPRT |1|203.0.113.1|40000|\r\n", v4, Some(40_000)),
            ("EPRT |2|2001:db8:1::1|40000|\r\n", v6, Some(40_000)),
            ("EPRT !2!2001:db8:1::1!65535!\n", v6, Some(65_535)),
            ("PORT 203,0,113,1,156,64", v4, None),
            ("PORT 203,0,113,2,156,64\r\n", v4, None),
            ("PORT 203,0,113,1,3,255\r\n", v4, None),
            ("PORT 203,0,113,1,156\r\n", v4, None),
            ("PORT 203,0,113,1,156,64,1\r\n", v4, None),
            ("PORT 203,0,113,1,256,64\r\n", v4, None),
            ("PORT 203,0,113,1,+56,64\r\n", v4, None),
            ("EPRT |2|203.0.113.1|40000|\r\n", v4, None),
            ("EPRT |1|203.0.113.1|40000\r\n", v4, None),
            ("EPRT |1|203.0.113.1|65536|\r\n", v4, None),
            ("EPRT |2|2001:db8:1::2|40000|\r\n", v6, None),
            ("EPRT 1203.0.113.1140000\r\n", v4, None),
            ("STOR PORT 203,0,113,1,156,64\r\n", v4, None),
            ("USER x\r\nPORT 203,0,113,1,156,64\r\n", v4, None),
            ("\r\n", v4, None),
            ("", v4, None),
        ] {
            assert_eq!(announced_port(command.as_bytes(), own), port, "{command:?}");
        }
    }

    proptest! {
        #[test]
        fn any_octets_are_read(octets in prop::collection::vec(any::<u8>(), 0..120)) {
            let own = IpAddr::from([203, 0, 113, 1]);
            let read = announced_port(&octets, own);
            prop_assert!(read.is_none_or(|port| port >= FIRST_DATA_PORT));
            let command = [b"EPRT |1|203.0.113.1|", &octets[..], b"|\r\n"].concat();
            let read = announced_port(&command, own);
            prop_assert!(read.is_none_or(|port| port >= FIRST_DATA_PORT));
        }
    }
}
