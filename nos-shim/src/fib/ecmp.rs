//! Which of several next hops a flow takes.
//!
//! # Theory of operation
//!
//! A flow's hash picks one of [`BUCKETS`] buckets, and each bucket belongs to one next hop. The
//! owner of a bucket is the next hop with the highest score, and a score depends on the bucket and
//! on that next hop alone (rendezvous hashing): when a next hop goes, only its own buckets find new
//! owners, and when one comes, it takes buckets but moves none between the others. No state is
//! needed for that, so it also holds across a reload.
//!
//! With `n` next hops each owns `BUCKETS / n` buckets, give or take the square root of that.

use crate::packet::{Addresses, Fragment, Packet};

use super::route::NextHop;
use core::net::IpAddr;

/// How finely flows are divided among next hops.
pub const BUCKETS: usize = 1024;

/// Turns packets into flow hashes.
#[derive(Clone, Copy, Debug)]
pub struct FlowHasher {
    seed: u64,
}

impl FlowHasher {
    /// A hasher of its own kind for each `seed`: routers in a row must not all split alike, and
    /// outsiders should not know which flows share a next hop.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The same value for all packets of a flow (RFC 2992 §1, RFC 6438 §3): addresses, protocol
    /// and ports.
    ///
    /// Only addresses count for fragments, the first included, because later ones have no ports,
    /// nor in IPv6 always the first one's protocol: so a datagram's fragments stay together, if not
    /// with the flow's whole packets.
    #[must_use]
    #[inline]
    pub fn hash(self, packet: &Packet) -> u32 {
        let last = match packet.fragment() {
            Fragment::Whole => {
                let ports = packet.ports().map_or(0, |ports| {
                    u64::from(ports.source) << 16 | u64::from(ports.destination)
                });
                ports << 8 | u64::from(packet.protocol())
            }
            Fragment::First | Fragment::Later => 0,
        };
        let hash = match packet.addresses() {
            Addresses::V4 {
                source,
                destination,
            } => {
                let both = u64::from(u32::from(source)) << 32 | u64::from(u32::from(destination));
                mix(self.seed ^ both, last)
            }
            Addresses::V6 {
                source,
                destination,
            } => {
                let hash = mix_address(self.seed, u128::from(source));
                mix(mix_address(hash, u128::from(destination)), last)
            }
        };
        high(hash)
    }
}

/// The owner of each bucket, as an index into `hops`.
pub(super) fn buckets(hops: &[NextHop]) -> Box<[u8; BUCKETS]> {
    let identities: Vec<_> = hops.iter().map(identity).collect();
    let mut owners = Box::new([0; BUCKETS]);
    for (bucket, owner) in (0_u64..).zip(owners.iter_mut()) {
        let score = |&(_, identity): &(u8, &u64)| mix(*identity, bucket);
        let best = (0..).zip(&identities).max_by_key(score);
        *owner = best.map_or(0, |(n, _)| n);
    }
    owners
}

/// A number that depends on the next hop alone.
fn identity(hop: &NextHop) -> u64 {
    let address = match hop.gateway {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    mix_address(hop.uplink.index() as u64, u128::from(address))
}

fn mix_address(hash: u64, address: u128) -> u64 {
    mix(hash ^ high64(address), low64(address))
}

/// Multiplies, and folds the halves of the product: every bit of the result depends on every bit
/// of both numbers.
#[inline]
fn mix(a: u64, b: u64) -> u64 {
    // Digits of pi, as good as any: they keep zero from annihilating the other number.
    let product = u128::from(a ^ 0x243f_6a88_85a3_08d3) * u128::from(b ^ 0x1319_8a2e_0370_7344);
    let folded = high64(product) ^ low64(product);
    let product = u128::from(folded ^ 0xa409_3822_299f_31d0) * 0x9e37_79b9_7f4a_7c15;
    high64(product) ^ low64(product)
}

#[expect(clippy::cast_possible_truncation, reason = "the half that is wanted")]
fn low64(value: u128) -> u64 {
    value as u64
}

fn high64(value: u128) -> u64 {
    low64(value >> 64)
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{FramePool, MAX_FRAME};
    use crate::ident::UplinkId;
    use crate::test_packets::{Draft, N6, X6};

    fn hops(count: u8) -> Vec<NextHop> {
        (1..=count)
            .map(|n| NextHop {
                gateway: IpAddr::from([192, 0, 2, n]),
                uplink: UplinkId(0),
            })
            .collect()
    }

    #[test]
    fn next_hops_share_buckets_about_equally() {
        for count in [2, 3, 4, 8, 16] {
            let mut owned = vec![0_usize; usize::from(count)];
            for &owner in buckets(&hops(count)).iter() {
                owned[usize::from(owner)] += 1;
            }
            let fair = BUCKETS / usize::from(count);
            let spread = fair * 2 / 5;
            for share in owned {
                assert!(share.abs_diff(fair) < spread, "{share} of {fair}");
            }
        }
    }

    #[test]
    fn only_the_flows_of_a_next_hop_that_goes_move() {
        let before = hops(8);
        for gone in 0..8 {
            let mut after = before.clone();
            after.remove(gone);
            let pairs = buckets(&before).into_iter().zip(*buckets(&after));
            for (old, new) in pairs {
                if usize::from(old) != gone {
                    assert_eq!(before[usize::from(old)], after[usize::from(new)]);
                }
            }
        }
    }

    /// A UDP packet or fragment of one, with the flags and fragment offset field of IPv4.
    fn udp(pool: &mut FramePool, source: u8, port: u16, fragment: u16) -> Packet {
        let mut octets = vec![0; 12];
        octets.extend([8, 0, 0x45, 0, 0, 44, 0, 1]);
        octets.extend(fragment.to_be_bytes());
        octets.extend([64, 17, 0, 0, 192, 0, 2, source, 198, 51, 100, 1]);
        let sum = crate::checksum::Sum::ZERO.plus(&octets[14..]).checksum();
        octets[24..26].copy_from_slice(&sum.to_be_bytes());
        octets.extend(port.to_be_bytes());
        octets.extend([0, 53, 0, if fragment == 0 { 24 } else { 99 }, 0, 0]);
        octets.extend([0; 16]);
        Packet::parse(pool.copy_from(&octets).unwrap()).unwrap()
    }

    #[test]
    fn flows_of_ipv6_differ_in_address_and_port() {
        let mut pool = FramePool::new(16, MAX_FRAME);
        let hasher = FlowHasher::new(1);
        let mut hash = |source, port| {
            let draft = Draft::new(source, X6);
            hasher.hash(&draft.udp_packet(&mut pool, (port, 53), b"x"))
        };
        let one = hash(N6, 1000);
        assert_eq!(hash(N6, 1000), one);
        assert_ne!(hash(N6, 1001), one);
        assert_ne!(hash("2001:db8:1::2", 1000), one);
        // In the half that names the network, too.
        assert_ne!(hash("2001:db8:2::1", 1000), one);
    }

    #[test]
    fn next_hops_of_ipv6_share_buckets_as_well() {
        let hops = [1_u16, 2].map(|last| NextHop {
            gateway: IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, last]),
            uplink: UplinkId(0),
        });
        let first = buckets(&hops).iter().filter(|owner| **owner == 0).count();
        assert!(first.abs_diff(BUCKETS / 2) < BUCKETS / 5, "{first}");
    }

    #[test]
    fn flows_differ_and_fragments_stay_together() {
        const MORE: u16 = 0x2000;
        let mut pool = FramePool::new(16, MAX_FRAME);
        let hasher = FlowHasher::new(1);
        let mut hash =
            |source, port, fragment| hasher.hash(&udp(&mut pool, source, port, fragment));
        assert_eq!(hash(1, 1000, 0), hash(1, 1000, 0));
        assert_ne!(hash(1, 1000, 0), hash(1, 1001, 0));
        assert_ne!(hash(1, 1000, 0), hash(2, 1000, 0));
        assert_eq!(hash(1, 1000, MORE), hash(1, 0, 3));
        assert_ne!(hash(1, 1000, MORE), hash(2, 0, 3));
    }
}
