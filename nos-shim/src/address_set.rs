//! A few addresses, asked for every packet: those of the NOS, or those given to a container.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Up to this many addresses are compared one by one, which is faster than a binary search.
const FEW: usize = 8;

/// A set of addresses, each with a number: its position when those of IPv4 come before those of
/// IPv6, and both in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressSet {
    /// Sorted.
    v4: Box<[Ipv4Addr]>,
    /// Sorted.
    v6: Box<[Ipv6Addr]>,
}

impl AddressSet {
    /// These addresses; repetitions do no harm.
    #[must_use]
    pub fn new(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for address in addresses {
            match address {
                IpAddr::V4(address) => v4.push(address),
                IpAddr::V6(address) => v6.push(address),
            }
        }
        v4.sort_unstable();
        v6.sort_unstable();
        v4.dedup();
        v6.dedup();
        Self {
            v4: v4.into(),
            v6: v6.into(),
        }
    }

    /// All of them, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let v4 = self.v4.iter().copied().map(IpAddr::V4);
        v4.chain(self.v6.iter().copied().map(IpAddr::V6))
    }

    /// The number of an address that is one of them.
    #[must_use]
    // Asked twice for every packet of an uplink, and by cold callers.
    #[inline(always)]
    pub fn number(&self, address: IpAddr) -> Option<usize> {
        match address {
            IpAddr::V4(address) => position(&self.v4, address),
            IpAddr::V6(address) => Some(self.v4.len() + position(&self.v6, address)?),
        }
    }

    /// Whether `address` is one of them.
    #[must_use]
    #[inline]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.contains_v4(address),
            IpAddr::V6(address) => self.contains_v6(address),
        }
    }

    /// Whether `address` is one of them.
    #[must_use]
    #[inline]
    pub fn contains_v4(&self, address: Ipv4Addr) -> bool {
        position(&self.v4, address).is_some()
    }

    /// Whether `address` is one of them.
    #[must_use]
    #[inline]
    pub fn contains_v6(&self, address: Ipv6Addr) -> bool {
        position(&self.v6, address).is_some()
    }
}

#[inline]
fn position<T: Ord + Copy>(sorted: &[T], address: T) -> Option<usize> {
    if sorted.len() <= FEW {
        sorted.iter().position(|&known| known == address)
    } else {
        sorted.binary_search(&address).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_set_holds_what_it_was_made_of(v4: Vec<u8>, v6: Vec<u8>, asked: u8) {
            let v4: Vec<_> = v4.into_iter().map(|n| Ipv4Addr::from([192, 0, 2, n])).collect();
            let v6: Vec<_> = v6.into_iter().map(|n| Ipv6Addr::from_bits(n.into())).collect();
            let all = v4.iter().copied().map(IpAddr::V4).chain(v6.iter().copied().map(IpAddr::V6));
            let set = AddressSet::new(all);
            let (one, other) = (Ipv4Addr::from([192, 0, 2, asked]), Ipv6Addr::from_bits(asked.into()));
            prop_assert_eq!(set.contains(one.into()), v4.contains(&one));
            prop_assert_eq!(set.contains(other.into()), v6.contains(&other));
            for (number, address) in set.iter().enumerate() {
                prop_assert_eq!(set.number(address), Some(number));
            }
            prop_assert_eq!(set.number(one.into()).is_some(), v4.contains(&one));
        }
    }
}
