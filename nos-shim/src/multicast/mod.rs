//! Which multicast groups the NOS is in on a link, and how routers and snooping switches there are
//! told: IGMP (RFC 1112, 2236, 9776) and MLD (RFC 2710, 9777).
//!
//! # Theory of operation
//!
//! A switch that snoops forwards a group's frames to those who have reported it, and to nobody else.
//! Neighbor Solicitations go to a group, so an IPv6 address whose solicited-node group is not
//! reported cannot be reached behind such a switch.
//!
//! ```text
//! groups of an uplink ── set_groups ─┐                   ┌─ poll ──► Said ── write ──► frame
//! frame ── parse ──► Heard ─ handle ─┼─► Membership ─────┤
//! link comes, goes ─── start, stop ──┘                   └─ poll_at
//! ```
//!
//! [`igmp`] and [`mld`] are the messages. [`Membership`] is the state of one family on one link, the
//! same for both: MLD is IGMP in other octets, and its first version is the second of IGMP
//! (RFC 9777 §1). [`Version`] counts as IGMP does.
//!
//! | while the oldest querier is of | a join says | a query makes us say | a leave says |
//! |---|---|---|---|
//! | [`Version::V3`] | `CHANGE_TO_EXCLUDE_MODE` | `MODE_IS_EXCLUDE`, all in one | `CHANGE_TO_INCLUDE_MODE` |
//! | [`Version::V2`] | a report | a report for each group | that we leave, if we reported last |
//! | [`Version::V1`] | a report | a report for each group | nothing |
//!
//! The NOS takes what any source sends to a group, so these are all its records. Nothing is said of
//! the groups of all systems, in which everybody is, nor of those that stay inside a node.
//!
//! # Differences to Linux (6.18)
//!
//! What is taken for a query, what is reported and how often is as there, but for these:
//!
//! - State changes are repeated within the second that RFC 9777 §9.11 names; on Linux, within the
//!   response time of the last query.
//! - A report of somebody else silences ours in the older versions only, and not for one that has
//!   them seen as separate (RFC 9776 §7.2.2 allows both): behind a switch that snoops, whoever
//!   falls silent is cut off.
//! - A join that could not be told before an older querier was heard is told in its version.

pub mod igmp;
pub mod mld;

mod membership;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use self::membership::{Membership, Record, RecordKind, Said};
use crate::ident::MacAddr;
use crate::ndp::{self, solicited_node};
use crate::time::Duration;

/// A version of IGMP. MLDv1 counts as [`Self::V2`], MLDv2 as [`Self::V3`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// IGMPv1 (RFC 1112).
    V1,
    /// IGMPv2 (RFC 2236), MLDv1 (RFC 2710).
    V2,
    /// IGMPv3 (RFC 9776), MLDv2 (RFC 9777).
    V3,
}

/// What a querier asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query<G> {
    /// The version that it speaks.
    pub version: Version,
    /// The group that it asks for; `None` for all.
    ///
    /// Whether it asks for certain sources is not kept: we take all, so that the answer is the same.
    pub group: Option<G>,
    /// The time in which to answer. In the version [`Version::V1`] there is a fixed one.
    pub max_delay: Duration,
    /// How often to say things that may be lost; 0 says nothing.
    pub robustness: u8,
    /// Between two queries; zero says nothing.
    pub interval: Duration,
}

impl<G> Query<G> {
    /// One of an older version.
    fn older(version: Version, group: Option<G>, max_delay: Duration) -> Self {
        Self {
            version,
            group,
            max_delay,
            robustness: 0,
            interval: Duration::ZERO,
        }
    }

    /// One of the newest version, which has `rest` behind what it shares with the older ones: the
    /// querier's times, and sources (RFC 9776 §4.1.5 to §4.1.9, RFC 9777 §5.1.7 to §5.1.11). `None`
    /// where that is cut off, or there are sources and no group.
    fn newest(rest: &[u8], group: Option<G>, max_delay: Duration) -> Option<Self> {
        let (&[flags, interval, s0, s1], addresses) = rest.split_first_chunk()?;
        let sources = usize::from(u16::from_be_bytes([s0, s1]));
        let all_there = addresses.len() >= sources * size_of::<G>();
        (all_there && (sources == 0 || group.is_some())).then(|| Self {
            version: Version::V3,
            group,
            max_delay,
            robustness: flags & 7,
            interval: Duration::from_secs(number_from_8(interval).into()),
        })
    }
}

/// What a message means to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard<G> {
    /// A question.
    Query(Query<G>),
    /// Somebody else is in this group, as told in one of the older versions.
    Report(G),
    /// Nothing: it is for routers.
    Nothing,
}

/// A group's address.
pub trait Group: Copy + Eq {
    /// Whether others are told who is in the group: not if everybody is (RFC 9776 §6, RFC 9777 §6),
    /// nor if it stays inside a node.
    fn is_reported(self) -> bool;

    /// Writes the address to the front of `place`, which is as long at least.
    fn put(self, place: &mut [u8]);
}

impl Group for Ipv4Addr {
    fn is_reported(self) -> bool {
        self.is_multicast() && self != igmp::ALL_SYSTEMS
    }

    fn put(self, place: &mut [u8]) {
        place[..4].copy_from_slice(&self.octets());
    }
}

impl Group for Ipv6Addr {
    fn is_reported(self) -> bool {
        let [first, second, ..] = self.octets();
        let beyond_the_node = second & 0xf > 1;
        first == 0xff && beyond_the_node && self != ndp::ALL_NODES
    }

    fn put(self, place: &mut [u8]) {
        place[..16].copy_from_slice(&self.octets());
    }
}

/// The groups of the addresses of an interface with this MAC address: each of IPv6 has one, the
/// link-local address as well (RFC 4291 §2.8).
pub fn solicited_node_groups(
    mac: MacAddr,
    addresses: impl Iterator<Item = IpAddr>,
) -> impl Iterator<Item = Ipv6Addr> {
    let addresses = addresses.filter_map(|address| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(address),
    });
    core::iter::once(mac.link_local())
        .chain(addresses)
        .map(solicited_node)
}

/// Octets of a report of the newest version in front of its records (RFC 9776 §4.2, RFC 9777 §5.2).
const REPORT_HEADER: usize = 8;

/// Fills a report of the newest version with its records, which have `RECORD` octets each.
fn put_records<G: Group, const RECORD: usize>(records: &[Record<G>], message: &mut [u8]) {
    let (header, rest) = message.split_at_mut(REPORT_HEADER);
    let count = u16::try_from(records.len()).unwrap_or(u16::MAX);
    header[6..].copy_from_slice(&count.to_be_bytes());
    for (place, record) in rest.as_chunks_mut::<RECORD>().0.iter_mut().zip(records) {
        place[0] = record.kind as u8;
        record.group.put(&mut place[4..]);
    }
}

/// A number in eight bits (RFC 9776 §4.1.1 and §4.1.7, RFC 9777 §5.1.9).
fn number_from_8(code: u8) -> u32 {
    if code < 0x80 {
        return code.into();
    }
    let (exponent, mantissa) = (code >> 4 & 7, u32::from(code & 0xf));
    (mantissa | 0x10) << (exponent + 3)
}

/// A number in sixteen bits (RFC 9777 §5.1.3).
fn number_from_16(code: u16) -> u32 {
    if code < 0x8000 {
        return code.into();
    }
    let (exponent, mantissa) = (code >> 12 & 7, u32::from(code & 0xfff));
    (mantissa | 0x1000) << (exponent + 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_grow_with_their_codes() {
        let short: Vec<_> = (0..=u8::MAX).map(number_from_8).collect();
        assert!(short.is_sorted());
        assert_eq!([short[127], short[128], short[255]], [127, 128, 31_744]);
        let long: Vec<_> = (0..=u16::MAX).map(number_from_16).collect();
        assert!(long.is_sorted());
        assert_eq!(
            [long[32_767], long[32_768], long[65_535]],
            [32_767, 32_768, 8_387_584]
        );
    }

    #[test]
    fn groups_of_everybody_are_not_reported() {
        let reported = |text: &str| match text.parse().unwrap() {
            IpAddr::V4(group) => group.is_reported(),
            IpAddr::V6(group) => group.is_reported(),
        };
        for (text, expected) in [
            ("224.0.0.1", false),
            ("224.0.0.5", true),
            ("239.1.2.3", true),
            ("192.0.2.1", false),
            ("255.255.255.255", false),
            ("ff02::1", false),
            ("ff02::2", true),
            ("ff01::2", false),
            ("ff00::5", false),
            ("ff11::1234", false),
            ("ff02::1:ff00:1", true),
            ("ff0e::1", true),
            ("2001:db8::1", false),
        ] {
            assert_eq!(reported(text), expected, "{text}");
        }
    }

    #[test]
    fn addresses_of_one_ending_share_a_group() {
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        let addresses = ["203.0.113.1", "2001:db8:1::1", "2001:db8:2::1"];
        let addresses = addresses.iter().map(|text| text.parse().unwrap());
        let groups: Vec<_> = solicited_node_groups(mac, addresses)
            .map(|group| group.to_string())
            .collect();
        assert_eq!(groups, ["ff02::1:ff00:1"; 3]);
    }
}
