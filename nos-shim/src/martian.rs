//! Martians: addresses that no packet may have on a wire (RFC 1812 §5.3.7, RFC 6890).
//!
//! Judged is the address alone, not the interface or the routing table. Group addresses are no
//! martians as destinations: [`is_group`] finds them.
//!
//! These rules are those of a Linux host, with the exceptions that RFCs ask for:
//!
//! | address | Linux | here | because |
//! |---|---|---|---|
//! | 240.0.0.0/4, source and destination | taken | martian | RFC 1812 §5.3.7, RFC 6890 §2.2.2 table 15 |
//! | ::ffff:0:0/96, destination | taken | martian | RFC 6890 §2.2.3 table 19; Linux rejects the source only |
//! | ::, source and destination | taken, leads nowhere | martian | RFC 4291 §2.5.2 |
//!
//! Neighbor Discovery and MLD use the unspecified source address rightfully: whoever handles them
//! looks at them first. Link-local IPv4 (169.254.0.0/16) may not be forwarded, but may be spoken to
//! on a link, so it is no martian.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::drop::DropReason;
use crate::packet::Addresses;

/// Whether no packet may come from this address.
#[must_use]
#[inline]
pub fn source_is_martian(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(source) => source_v4(source),
        IpAddr::V6(source) => source_v6(source),
    }
}

/// Whether no packet may go to this address.
#[must_use]
#[inline]
pub fn destination_is_martian(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(destination) => destination_v4(destination),
        IpAddr::V6(destination) => destination_v6(destination),
    }
}

/// Whether this is a multicast address or the limited broadcast address.
#[must_use]
#[inline]
pub fn is_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_multicast(),
    }
}

/// Whether a host can have this address to itself, and packets be routed to it.
#[must_use]
pub fn is_routable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !source_is_martian(address) && !link_local
}

/// Whether an address stands for all stations of a subnet: its first and last of IPv4 (RFC 1812 §4.2.2.11,
/// §4.2.3.1), unless it has two only (RFC 3021).
#[must_use]
pub fn is_subnet_itself(net: &IpNet, address: IpAddr) -> bool {
    let wide = matches!(net, IpNet::V4(net) if net.prefix_len() < 31);
    wide && (address == net.network() || address == net.broadcast())
}

/// Judges both addresses of a packet.
///
/// # Errors
///
/// [`DropReason::MartianSource`] or [`DropReason::MartianDestination`].
#[inline]
pub fn check(addresses: Addresses) -> Result<(), DropReason> {
    let (source, destination) = match addresses {
        Addresses::V4 {
            source,
            destination,
        } => (source_v4(source), destination_v4(destination)),
        Addresses::V6 {
            source,
            destination,
        } => (source_v6(source), destination_v6(destination)),
    };
    if source {
        Err(DropReason::MartianSource)
    } else if destination {
        Err(DropReason::MartianDestination)
    } else {
        Ok(())
    }
}

/// 0/8, 127/8, multicast, 240/4 with the limited broadcast address.
#[inline]
fn source_v4(source: Ipv4Addr) -> bool {
    let [net, ..] = source.octets();
    net == 0 || net == 127 || net >= 224
}

/// 0/8, 127/8, 240/4 without the limited broadcast address.
#[inline]
fn destination_v4(destination: Ipv4Addr) -> bool {
    let [net, ..] = destination.octets();
    net == 0 || net == 127 || net >= 240 && !destination.is_broadcast()
}

/// Unspecified, loopback, IPv4-mapped, multicast (RFC 4291 §2.7).
#[inline]
fn source_v6(source: Ipv6Addr) -> bool {
    let bits = source.to_bits();
    bits <= 1 || bits >> 32 == 0xffff || bits >> 120 == 0xff
}

/// Unspecified, loopback, IPv4-mapped, and multicast of the scopes that may not leave a node: 0 is
/// reserved, 1 is interface-local (RFC 4291 §2.7).
#[inline]
fn destination_v6(destination: Ipv6Addr) -> bool {
    let bits = destination.to_bits();
    let own_scope = bits >> 120 == 0xff && (bits >> 112) & 0xf <= 1;
    bits <= 1 || bits >> 32 == 0xffff || own_scope
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Address, martian as source, martian as destination.
    const CASES: &[(&str, bool, bool)] = &[
        ("0.0.0.0", true, true),
        ("0.255.255.255", true, true),
        ("1.0.0.0", false, false),
        ("10.0.0.1", false, false),
        ("100.64.0.1", false, false),
        ("126.255.255.255", false, false),
        ("127.0.0.1", true, true),
        ("127.255.255.255", true, true),
        ("128.0.0.0", false, false),
        ("169.254.1.1", false, false),
        ("192.0.0.8", false, false),
        ("203.0.113.1", false, false),
        ("223.255.255.255", false, false),
        ("224.0.0.1", true, false),
        ("239.255.255.255", true, false),
        ("240.0.0.0", true, true),
        ("255.255.255.254", true, true),
        ("255.255.255.255", true, false),
        ("::", true, true),
        ("::1", true, true),
        ("::2", false, false),
        ("::192.0.2.1", false, false),
        ("::ffff:192.0.2.1", true, true),
        ("64:ff9b::192.0.2.1", false, false),
        ("2001:db8::1", false, false),
        ("fe80::1", false, false),
        ("fd00::1", false, false),
        ("ff00::1", true, true),
        ("ff01::1", true, true),
        ("ff02::1", true, false),
        ("ff0e::1", true, false),
        ("ff31::1", true, true),
    ];

    #[test]
    fn each_kind_of_address_is_judged() {
        for &(text, source, destination) in CASES {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(source_is_martian(address), source, "from {text}");
            assert_eq!(destination_is_martian(address), destination, "to {text}");
        }
    }

    #[test]
    fn the_source_is_named_first() {
        let addresses = |source, destination| Addresses::V4 {
            source: Ipv4Addr::from_bits(source),
            destination: Ipv4Addr::from_bits(destination),
        };
        let good = 0x0a00_0001;
        assert_eq!(check(addresses(good, good)), Ok(()));
        assert_eq!(check(addresses(0, 0)), Err(DropReason::MartianSource));
        assert_eq!(
            check(addresses(good, 0)),
            Err(DropReason::MartianDestination)
        );
    }

    #[test]
    fn groups_are_found() {
        for (text, group) in [
            ("223.255.255.255", false),
            ("224.0.0.0", true),
            ("255.255.255.255", true),
            ("240.0.0.1", false),
            ("ff02::1", true),
            ("fe80::1", false),
        ] {
            assert_eq!(is_group(text.parse().unwrap()), group, "{text}");
        }
    }

    proptest! {
        /// The same rules in the standard library's words.
        #[test]
        fn the_standard_library_agrees(v4: u32, v6: u128, high in prop_oneof![Just(0_u128), Just(0xffff), any::<u128>()]) {
            let v4 = Ipv4Addr::from_bits(v4);
            prop_assert_eq!(
                source_is_martian(v4.into()),
                v4.octets()[0] == 0 || v4.is_loopback() || v4.is_multicast() || v4 >= Ipv4Addr::new(240, 0, 0, 0)
            );
            let v6 = Ipv6Addr::from_bits(high << 32 | v6 & 0xffff_ffff);
            prop_assert_eq!(
                source_is_martian(v6.into()),
                v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() || v6.to_ipv4_mapped().is_some()
            );
        }
    }
}
