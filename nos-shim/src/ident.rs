//! Names of things: attachments, uplinks, VRFs, MAC addresses.
//!
//! Each is a type of its own, so that one cannot be passed where another is meant.

use core::fmt;
use core::str::FromStr;

use thiserror::Error;

/// Identifies one container interface joined to the relay: an index into tables, and above it a
/// generation. An index is used again after its attachment has gone, with the next generation, so
/// that what is still on its way to or from the old attachment does not reach the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttachmentId(pub u32);

/// Identifies one interface of the NOS towards the network: an index and a generation, as in
/// [`AttachmentId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UplinkId(pub u32);

/// Bits of an identifier that are its index.
const INDEX_BITS: u32 = 16;
/// Bits of an identifier that are its generation. The port table packs identifiers into 28 bits.
const GENERATION_BITS: u32 = 12;

/// What is an index and a generation: [`AttachmentId`], [`UplinkId`].
pub trait Identifier: Copy + Eq {
    /// Where tables keep what belongs to it: less than 65,536.
    fn index(self) -> usize;
}

/// Index and generation of an identifier.
macro_rules! generational {
    ($id:ident) => {
        impl $id {
            /// Indices are less than this.
            pub const INDICES: u32 = 1 << INDEX_BITS;
            /// Generations are less than this, and begin anew behind the last.
            pub const GENERATIONS: u16 = 1 << GENERATION_BITS;

            /// The identifier of this index and generation, modulo [`Self::GENERATIONS`].
            #[must_use]
            pub const fn new(index: u16, generation: u16) -> Self {
                let generation = generation % Self::GENERATIONS;
                Self((generation as u32) << INDEX_BITS | index as u32)
            }

            /// Where tables keep what belongs to it.
            #[must_use]
            #[inline]
            pub const fn index(self) -> usize {
                (self.0 % Self::INDICES) as usize
            }

            /// Which user of its index it is.
            #[must_use]
            pub const fn generation(self) -> u16 {
                (self.0 >> INDEX_BITS) as u16
            }

            /// The next user of the same index.
            #[must_use]
            pub const fn successor(self) -> Self {
                let [low, high, ..] = self.0.to_le_bytes();
                Self::new(u16::from_le_bytes([low, high]), self.generation() + 1)
            }
        }

        impl Identifier for $id {
            #[inline]
            fn index(self) -> usize {
                Self::index(self)
            }
        }
    };
}

generational!(AttachmentId);
generational!(UplinkId);

/// Identifies a routing and forwarding instance. Every table is keyed by it.
///
/// Numbers below [`VrfId::COUNT`] are VRFs. Those above stand for the links of uplinks, each of which is
/// a zone of its own for link-local addresses (RFC 4007 §6): see [`VrfId::of_link`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VrfId(pub u16);

/// Identifies a network of containers. Containers of different networks are kept apart: none gets what
/// another one sends to an address that both share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkId(pub u32);

impl NetworkId {
    /// The network of all containers that name none.
    pub const DEFAULT: Self = Self(0);
}

/// One address of the NOS, in one VRF: index into tables keyed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalAddressId(pub u32);

impl VrfId {
    /// The VRF of everything that names none.
    pub const DEFAULT: Self = Self(0);
    /// VRFs have lower numbers than this.
    pub const COUNT: u16 = 1 << 15;

    /// The zone of link-local addresses that an uplink's link is. An uplink whose index is
    /// [`Self::COUNT`] or more has none.
    #[must_use]
    pub fn of_link(uplink: UplinkId) -> Option<Self> {
        let index = u16::try_from(uplink.index()).ok()?;
        (index < Self::COUNT).then(|| Self(Self::COUNT + index))
    }

    /// The index of the uplink whose link this is; `None` of a VRF.
    #[must_use]
    #[inline]
    pub fn link_index(self) -> Option<usize> {
        self.0.checked_sub(Self::COUNT).map(usize::from)
    }
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attachment {}", self.index())
    }
}

impl fmt::Display for UplinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uplink {}", self.index())
    }
}

/// An interface of the data path, on either side of the NOS.
///
/// A frame carries the interface on which it came in, and later the one on which it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Interface {
    /// Towards a container.
    Attachment(AttachmentId),
    /// Towards the network.
    Uplink(UplinkId),
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attachment(id) => id.fmt(f),
            Self::Uplink(id) => id.fmt(f),
        }
    }
}

/// An IEEE 802 MAC address, of any kind.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

/// Text that is not six hexadecimal octets separated by colons.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("'{0}' is not a MAC address; write six octets as in 02:00:5e:10:00:01")]
pub struct MacAddrError(String);

impl MacAddr {
    /// `ff:ff:ff:ff:ff:ff`
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// `00:00:00:00:00:00`, which no interface may use.
    pub const ZERO: Self = Self([0; 6]);

    /// A locally administered unicast address that depends on `name` alone.
    ///
    /// The same name yields the same address in every run and on every machine, so a restart
    /// leaves neighbor caches valid.
    #[must_use]
    pub fn stable(name: &str) -> Self {
        // FNV-1a, fixed by this function: a library hasher may change between versions.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
            (hash ^ u64::from(octet)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let [a, b, c, d, e, f, g, h] = hash.to_be_bytes();
        Self([0x02, a ^ f, b ^ g, c ^ h, d, e])
    }

    /// Whether frames to this address reach one station only, and it is not all zero.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self != Self::ZERO
    }

    /// Whether the group bit is set; true of broadcast as well.
    #[must_use]
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// Whether a frame to this address is for another station than the one with `mac`, alone.
    #[inline]
    pub(crate) fn is_other_than(self, mac: Self) -> bool {
        self != mac && !self.is_multicast()
    }

    /// The modified EUI-64 link-local address of this MAC (RFC 4291 appendix A).
    #[must_use]
    pub fn link_local(self) -> core::net::Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        core::net::Ipv6Addr::from([
            0xfe,
            0x80,
            0,
            0,
            0,
            0,
            0,
            0,
            a ^ 2,
            b,
            c,
            0xff,
            0xfe,
            d,
            e,
            f,
        ])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = MacAddrError;

    fn from_str(text: &str) -> Result<Self, MacAddrError> {
        let wrong = || MacAddrError(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            // from_str_radix alone would take a sign.
            let hex = |part: &&str| {
                (1..=2).contains(&part.len()) && part.bytes().all(|digit| digit.is_ascii_hexdigit())
            };
            let part = parts.next().filter(hex).ok_or_else(wrong)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self(octets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_text_round_trips() {
        let mac = MacAddr([2, 0, 0x5e, 0x10, 0, 0xff]);
        assert_eq!(mac.to_string(), "02:00:5e:10:00:ff");
        assert_eq!(mac.to_string().parse(), Ok(mac));
    }

    #[test]
    fn bad_mac_text_is_named() {
        for text in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "0x:0:0:0:0:0",
            "+1:0:0:0:0:0",
            "002:0:0:0:0:0",
        ] {
            let Err(error) = text.parse::<MacAddr>() else {
                panic!("{text} was taken")
            };
            assert!(error.to_string().contains(&format!("'{text}'")));
        }
    }

    #[test]
    fn stable_addresses_are_unicast_local_and_distinct() {
        let macs: Vec<_> = (0..1000)
            .map(|i| MacAddr::stable(&format!("c{i}")))
            .collect();
        assert!(macs.iter().all(|mac| mac.is_unicast() && mac.0[0] == 2));
        let distinct: std::collections::BTreeSet<_> = macs.iter().collect();
        assert_eq!(distinct.len(), 1000);
        assert_eq!(
            MacAddr::stable("web").to_string(),
            MacAddr::stable("web").to_string()
        );
    }

    #[test]
    fn the_link_of_each_uplink_is_a_zone_of_its_own() {
        let zone = |index, generation| VrfId::of_link(UplinkId::new(index, generation));
        assert_eq!(zone(0, 0).unwrap().link_index(), Some(0));
        assert_eq!(zone(7, 3).unwrap().link_index(), Some(7));
        assert_eq!(zone(VrfId::COUNT - 1, 0), Some(VrfId(u16::MAX)));
        assert_eq!(zone(VrfId::COUNT, 0), None);
        assert_eq!(VrfId::DEFAULT.link_index(), None);
        assert_eq!(VrfId(VrfId::COUNT - 1).link_index(), None);
    }

    #[test]
    fn link_local_follows_eui64() {
        let mac = MacAddr([0x02, 0x11, 0x22, 0x33, 0x44, 0x55]);
        assert_eq!(mac.link_local().to_string(), "fe80::11:22ff:fe33:4455");
    }
}
