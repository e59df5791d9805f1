//! A table of Internet size: prefixes whose lengths are distributed about as in the public tables of
//! 2024, and destinations within them.

#![allow(dead_code, reason = "each benchmark uses a part")]

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// Prefix lengths, and routes of that length among 10,000.
const V4_LENGTHS: &[(u8, u32)] = &[
    (24, 6080),
    (23, 1000),
    (22, 1120),
    (21, 540),
    (20, 470),
    (19, 260),
    (18, 145),
    (17, 85),
    (16, 140),
    (15, 22),
    (14, 13),
    (13, 7),
    (12, 4),
    (11, 2),
    (10, 1),
    (9, 1),
    (25, 30),
    (28, 40),
    (30, 20),
    (32, 20),
];
const V6_LENGTHS: &[(u8, u32)] = &[
    (48, 4700),
    (32, 1200),
    (44, 950),
    (40, 900),
    (36, 420),
    (47, 330),
    (46, 300),
    (29, 230),
    (33, 200),
    (34, 150),
    (45, 150),
    (42, 150),
    (38, 100),
    (35, 80),
    (28, 20),
    (24, 10),
    (20, 4),
    (56, 40),
    (64, 50),
    (128, 16),
];
/// What the registries hand out from.
const V6_BLOCKS: &[(u128, u8)] = &[
    (0x2001 << 112, 16),
    (0x2400 << 112, 12),
    (0x2600 << 112, 12),
    (0x2800 << 112, 12),
    (0x2a00 << 112, 12),
    (0x2c00 << 112, 12),
];

fn length(rng: &mut fastrand::Rng, lengths: &[(u8, u32)]) -> u8 {
    let total = lengths.iter().map(|(_, weight)| weight).sum();
    let mut at = rng.u32(0..total);
    for &(length, weight) in lengths {
        if at < weight {
            return length;
        }
        at -= weight;
    }
    lengths[0].0
}

/// A random unicast address.
pub(crate) fn unicast_v4(rng: &mut fastrand::Rng) -> Ipv4Addr {
    Ipv4Addr::from(rng.u32(0x0100_0000..0xe000_0000))
}

/// A random address of `net`.
pub(crate) fn within(rng: &mut fastrand::Rng, net: Ipv6Net) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(net.network()) | rng.u128(..) & u128::from(net.hostmask()))
}

/// So many different IPv4 prefixes.
pub(crate) fn prefixes_v4(rng: &mut fastrand::Rng, count: usize) -> Vec<Ipv4Net> {
    let mut seen = HashSet::new();
    let mut prefixes = Vec::with_capacity(count);
    while prefixes.len() < count {
        let len = length(rng, V4_LENGTHS);
        let net = Ipv4Net::new(unicast_v4(rng), len).unwrap().trunc();
        if seen.insert(net) {
            prefixes.push(net);
        }
    }
    prefixes
}

/// So many different IPv6 prefixes. Long ones lie within shorter ones, as providers cut up what they
/// were given.
pub(crate) fn prefixes_v6(rng: &mut fastrand::Rng, count: usize) -> Vec<Ipv6Net> {
    let mut seen = HashSet::new();
    let mut prefixes = Vec::with_capacity(count);
    let mut allocations = Vec::new();
    while prefixes.len() < count {
        let len = length(rng, V6_LENGTHS);
        let allocated = len <= 32 || allocations.len() < 1000;
        let parent = if allocated {
            let (block, len) = V6_BLOCKS[rng.usize(0..V6_BLOCKS.len())];
            Ipv6Net::new(Ipv6Addr::from(block), len).unwrap()
        } else {
            allocations[rng.usize(0..allocations.len())]
        };
        let len = if allocated { len.min(32) } else { len };
        let net = Ipv6Net::new(within(rng, parent), len).unwrap().trunc();
        if seen.insert(net) {
            prefixes.push(net);
            if allocated {
                allocations.push(net);
            }
        }
    }
    prefixes
}
