//! Prefixes, asked whether an address is in any of them.

use core::fmt;
use core::net::IpAddr;

use ipnet::IpNet;

/// A set of addresses, made of prefixes. A question takes a binary search.
///
/// Two sets are equal if they were made of the same prefixes, however those were ordered, and with what
/// is in others of them besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixSet {
    /// Without those that others contain, and joined where two are one. Sorted; IPv4 first.
    prefixes: Box<[IpNet]>,
    /// First and last address of each that is of IPv4.
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl PrefixSet {
    /// The addresses in any of these. Host bits do not count.
    #[must_use]
    pub fn new(prefixes: impl IntoIterator<Item = IpNet>) -> Self {
        let all: Vec<IpNet> = prefixes.into_iter().map(|prefix| prefix.trunc()).collect();
        let mut prefixes = IpNet::aggregate(&all);
        prefixes.sort_unstable();
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in &prefixes {
            match prefix {
                IpNet::V4(prefix) => {
                    v4.push((prefix.network().to_bits(), prefix.broadcast().to_bits()));
                }
                IpNet::V6(prefix) => {
                    v6.push((prefix.network().to_bits(), prefix.broadcast().to_bits()));
                }
            }
        }
        Self {
            prefixes: prefixes.into(),
            v4: v4.into(),
            v6: v6.into(),
        }
    }

    /// Whether `address` is in any of the prefixes.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => has(&self.v4, address.to_bits()),
            IpAddr::V6(address) => has(&self.v6, address.to_bits()),
        }
    }

    /// The fewest prefixes that make the same set, in order.
    #[must_use]
    pub fn prefixes(&self) -> &[IpNet] {
        &self.prefixes
    }
}

/// Whether one of `spans`, which are in order and do not overlap, has `bits`.
fn has<T: Ord + Copy>(spans: &[(T, T)], bits: T) -> bool {
    let behind = spans.partition_point(|&(first, _)| first <= bits);
    let below = behind.checked_sub(1).and_then(|at| spans.get(at));
    below.is_some_and(|&(_, last)| bits <= last)
}

impl FromIterator<IpNet> for PrefixSet {
    fn from_iter<I: IntoIterator<Item = IpNet>>(prefixes: I) -> Self {
        Self::new(prefixes)
    }
}

impl fmt::Display for PrefixSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, prefix) in self.prefixes.iter().enumerate() {
            let comma = if number > 0 { ", " } else { "" };
            write!(f, "{comma}{prefix}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{Ipv4Addr, Ipv6Addr};
    use ipnet::{Ipv4Net, Ipv6Net};
    use proptest::prelude::*;

    /// Few networks, so that prefixes nest, touch and repeat.
    fn prefix() -> impl Strategy<Value = IpNet> {
        let v4 = (0..64_u32, 24..=32_u8).prop_map(|(host, len)| {
            let address = Ipv4Addr::from_bits(0xc633_6400 | host);
            Ipv4Net::new(address, len).unwrap().into()
        });
        let v6 = (0..64_u128, 120..=128_u8).prop_map(|(host, len)| {
            let address = Ipv6Addr::from_bits(0x2001_0db8 << 96 | host);
            Ipv6Net::new(address, len).unwrap().into()
        });
        let all = prop_oneof![
            Just("0.0.0.0/0".parse::<IpNet>().unwrap()),
            Just("::/0".parse::<IpNet>().unwrap())
        ];
        prop_oneof![10 => v4, 10 => v6, 1 => all]
    }

    proptest! {
        #[test]
        fn it_has_what_any_prefix_has(prefixes in prop::collection::vec(prefix(), 0..12)) {
            let set = PrefixSet::new(prefixes.iter().copied());
            let v4 = (0..300_u32).map(|host| IpAddr::from(Ipv4Addr::from_bits(0xc633_63f0 + host)));
            let v6 = (0..300_u128)
                .map(|host| IpAddr::from(Ipv6Addr::from_bits((0x2001_0db8 << 96) + host)));
            for address in v4.chain(v6) {
                let expected = prefixes.iter().any(|prefix| prefix.contains(&address));
                prop_assert_eq!(set.contains(address), expected, "{}", address);
            }
            let again = PrefixSet::new(prefixes.iter().rev().copied());
            prop_assert_eq!(&again, &set);
            prop_assert_eq!(PrefixSet::new(set.prefixes().iter().copied()), set);
        }
    }

    #[test]
    fn it_is_written_as_its_prefixes() {
        let prefixes = ["2001:db8::/32", "198.51.100.128/25", "198.51.100.0/25"];
        let set: PrefixSet = prefixes
            .iter()
            .map(|it| it.parse::<IpNet>().unwrap())
            .collect();
        assert_eq!(set.to_string(), "198.51.100.0/24, 2001:db8::/32");
    }
}
