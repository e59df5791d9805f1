//! Addresses in a row, of one family or of both: what pools are made of.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is allotted at once: an address of each family, or of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    place: Place,
    /// The IPv6 address beside an IPv4 one.
    beside: Option<u128>,
}

/// An address by which a pair is known, as a number: its IPv4 address, or else its IPv6 one. No unicast IPv6 address is
/// as small as an IPv4 one (`::/96`, RFC 4291 §2.5.5.1 with §2.5.2 and §2.5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(u128);

impl From<IpAddr> for Place {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self(u32::from(v4).into()),
            IpAddr::V6(v6) => Self(v6.into()),
        }
    }
}

impl Place {
    /// The least of all.
    pub(super) const FIRST: Self = Self(0);

    /// The address.
    #[must_use]
    pub fn address(self) -> IpAddr {
        match u32::try_from(self.0) {
            Ok(v4) => Ipv4Addr::from(v4).into(),
            Err(_) => Ipv6Addr::from(self.0).into(),
        }
    }

    fn after(self, count: u128) -> Self {
        Self(self.0.saturating_add(count))
    }
}

impl Pair {
    /// Both addresses, the IPv4 one first, as far as there are both.
    pub fn addresses(self) -> impl Iterator<Item = IpAddr> {
        let beside = self.beside.map(|v6| Ipv6Addr::from(v6).into());
        core::iter::once(self.place.address()).chain(beside)
    }

    /// By what it is known.
    #[must_use]
    pub fn place(self) -> Place {
        self.place
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut addresses = self.addresses();
        if let Some(first) = addresses.next() {
            write!(f, "{first}")?;
        }
        addresses.try_for_each(|address| write!(f, " and {address}"))
    }
}

/// Pairs in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    first: Pair,
    /// At least one.
    count: u32,
}

impl Block {
    /// `count` pairs from these addresses on, of which one may be missing. `None` if both are, if there is none, or
    /// if they go beyond the last address.
    #[must_use]
    pub fn new(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>, count: u32) -> Option<Self> {
        let further = count.checked_sub(1)?;
        let first = match (v4, v6) {
            (Some(v4), v6) => {
                u32::from(v4).checked_add(further)?;
                Pair {
                    place: Place::from(IpAddr::from(v4)),
                    beside: v6.map(u128::from),
                }
            }
            (None, Some(v6)) => Pair {
                place: Place::from(IpAddr::from(v6)),
                beside: None,
            },
            (None, None) => return None,
        };
        if let Some(v6) = v6 {
            u128::from(v6).checked_add(further.into())?;
        }
        Some(Self { first, count })
    }

    /// How many pairs.
    #[must_use]
    pub fn count(self) -> u32 {
        self.count
    }

    /// The first pair.
    #[must_use]
    pub fn first(self) -> Pair {
        self.first
    }

    /// The last pair.
    #[must_use]
    pub fn last(self) -> Pair {
        self.at(self.count - 1)
    }

    /// The pair so many behind the first, which has to be one of its own.
    fn at(self, offset: u32) -> Pair {
        Pair {
            place: self.first.place.after(offset.into()),
            beside: self.first.beside.map(|v6| v6.saturating_add(offset.into())),
        }
    }

    /// Its pairs, in their order.
    pub fn pairs(self) -> impl DoubleEndedIterator<Item = Pair> {
        (0..self.count).map(move |offset| self.at(offset))
    }

    /// The pair that has an address, of either family.
    #[must_use]
    pub fn find(self, address: IpAddr) -> Option<Pair> {
        let Place(wanted) = Place::from(address);
        let rows = [Some(self.first.place.0), self.first.beside];
        let offset = rows.into_iter().flatten().find_map(|first| {
            let offset = u32::try_from(wanted.checked_sub(first)?).ok()?;
            (offset < self.count).then_some(offset)
        });
        offset.map(|offset| self.at(offset))
    }

    /// Its part from one place to another, both included, which have to be its own.
    fn part(self, first: Place, last: Place) -> Option<Self> {
        let from = u32::try_from(first.0.checked_sub(self.first.place.0)?).ok()?;
        let to = u32::try_from(last.0.checked_sub(self.first.place.0)?).ok()?;
        let count = to.checked_sub(from)?.checked_add(1)?;
        (to < self.count).then(|| Self {
            first: self.at(from),
            count,
        })
    }

    /// Whether `next` goes on where this one ends, in both families.
    fn goes_on_with(self, next: Self) -> bool {
        let end = self.last();
        let beside = match (end.beside, next.first.beside) {
            (Some(end), Some(next)) => end.checked_add(1) == Some(next),
            (None, None) => true,
            _ => false,
        };
        // An IPv6 address is no neighbor of an IPv4 one.
        let same = end.place.address().is_ipv4() == next.first.place.address().is_ipv4();
        beside && same && end.place.after(1) == next.first.place
    }
}

/// As `203.0.113.64-203.0.113.95`, or one address alone: by what its pairs are known.
impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.first.place.address(), self.last().place.address());
        match self.count {
            1 => write!(f, "{first}"),
            _ => write!(f, "{first}-{last}"),
        }
    }
}

/// As it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    v4: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    v6: Option<Ipv6Addr>,
    count: u32,
}

impl Serialize for Block {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let beside = self.first.beside.map(Ipv6Addr::from);
        let (v4, v6) = match self.first.place.address() {
            IpAddr::V4(v4) => (Some(v4), beside),
            IpAddr::V6(v6) => (None, Some(v6)),
        };
        let count = self.count;
        Stored { v4, v6, count }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Stored { v4, v6, count } = Stored::deserialize(deserializer)?;
        Self::new(v4, v6, count)
            .ok_or_else(|| serde::de::Error::custom("a block has no address, or too many"))
    }
}

/// Pairs, each at most once: as few blocks as say it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    by_place: BTreeMap<Place, Block>,
    count: u64,
}

impl Blocks {
    /// How many pairs.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// In their order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Block> {
        self.by_place.values().copied()
    }

    /// All pairs, in their order.
    pub fn pairs(&self) -> impl DoubleEndedIterator<Item = Pair> {
        self.iter().flat_map(Block::pairs)
    }

    /// The pair that is known by a place.
    #[must_use]
    pub fn at(&self, place: Place) -> Option<Pair> {
        let (_, block) = self.by_place.range(..=place).next_back()?;
        block
            .find(place.address())
            .filter(|pair| pair.place == place)
    }

    /// The pair that has an address, of either family.
    #[must_use]
    pub fn find(&self, address: IpAddr) -> Option<Pair> {
        let place = Place::from(address);
        self.at(place).or_else(|| {
            let mut all = self.iter();
            all.find_map(|block| block.find(address))
        })
    }

    /// Adds a block. What was there in its place goes.
    pub fn insert(&mut self, block: Block) {
        self.remove(block);
        self.count += u64::from(block.count);
        let before = self.by_place.range(..block.first.place).next_back();
        let before = before.map(|(_, before)| *before);
        let mut joined = block;
        if let Some(before) = before.filter(|before| before.goes_on_with(block))
            && let Some(count) = before.count.checked_add(block.count)
        {
            joined = Block {
                first: before.first,
                count,
            };
        }
        let next = self.by_place.get(&block.last().place.after(1)).copied();
        if let Some(next) = next.filter(|next| joined.goes_on_with(*next))
            && let Some(count) = joined.count.checked_add(next.count)
        {
            self.by_place.remove(&next.first.place);
            joined.count = count;
        }
        self.by_place.insert(joined.first.place, joined);
    }

    /// Takes out whatever is known by the places of a block.
    pub fn remove(&mut self, block: Block) {
        let (first, last) = (block.first.place, block.last().place);
        let overlapping = self.by_place.range(..=last).rev();
        let overlapping: Vec<_> = overlapping
            .map(|(_, it)| *it)
            .take_while(|it| it.last().place >= first)
            .collect();
        for old in overlapping {
            self.by_place.remove(&old.first.place);
            self.count -= u64::from(old.count);
            let before = first.0.checked_sub(1).map(Place);
            let before = before.filter(|_| old.first.place < first);
            let head = before.and_then(|before| old.part(old.first.place, before));
            let behind = (old.last().place > last).then(|| last.after(1));
            let tail = behind.and_then(|behind| old.part(behind, old.last().place));
            for rest in head.into_iter().chain(tail) {
                self.count += u64::from(rest.count);
                self.by_place.insert(rest.first.place, rest);
            }
        }
    }

    /// Takes out one pair, by its place.
    pub fn remove_at(&mut self, place: Place) {
        if let Some(pair) = self.at(place) {
            self.remove(Block {
                first: pair,
                count: 1,
            });
        }
    }

    /// Adds one pair.
    pub fn insert_pair(&mut self, pair: Pair) {
        self.insert(Block {
            first: pair,
            count: 1,
        });
    }

    /// Those whose places `other` does not have.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = self.clone();
        other.iter().for_each(|block| left.remove(block));
        left
    }

    /// Whether all pairs of a block are here, as the same pairs.
    #[must_use]
    pub fn contains(&self, block: Block) -> bool {
        let around = self.by_place.range(..=block.first.place).next_back();
        around.is_some_and(|(_, around)| {
            around.part(block.first.place, block.last().place) == Some(block)
        })
    }

    /// The lowest pairs, `count` of them at most.
    #[must_use]
    pub fn lowest(&self, count: u32) -> Vec<Block> {
        let mut left = count;
        let mut taken = Vec::new();
        for block in self.iter() {
            if left == 0 {
                break;
            }
            let part = Block {
                first: block.first,
                count: block.count.min(left),
            };
            left -= part.count;
            taken.push(part);
        }
        taken
    }

    /// What is known by a place from `first` to `last`.
    #[must_use]
    pub fn within(&self, first: Place, last: Place) -> Vec<Block> {
        let overlapping = self.by_place.range(..=last).rev();
        let overlapping = overlapping
            .map(|(_, it)| *it)
            .take_while(|it| it.last().place >= first);
        let parts = overlapping.filter_map(|it| {
            let from = it.first.place.max(first);
            let to = it.last().place.min(last);
            it.part(from, to)
        });
        let mut parts: Vec<_> = parts.collect();
        parts.reverse();
        parts
    }
}

impl FromIterator<Block> for Blocks {
    fn from_iter<I: IntoIterator<Item = Block>>(blocks: I) -> Self {
        let mut all = Self::default();
        blocks.into_iter().for_each(|block| all.insert(block));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block(v4: &str, v6: Option<&str>, count: u32) -> Block {
        let v6 = v6.map(|v6| v6.parse().unwrap());
        Block::new(v4.parse().ok(), v6, count).unwrap()
    }

    #[test]
    fn a_block_is_as_long_as_addresses_go() {
        assert!(Block::new(None, None, 1).is_none());
        assert!(Block::new("203.0.113.1".parse().ok(), None, 0).is_none());
        assert!(Block::new("255.255.255.255".parse().ok(), None, 2).is_none());
        let last: Ipv6Addr = u128::MAX.into();
        assert!(Block::new("203.0.113.1".parse().ok(), Some(last), 2).is_none());
        assert!(Block::new(None, Some(last), 1).is_some());
    }

    #[test]
    fn an_address_of_either_family_finds_its_pair() {
        let block = block("203.0.113.8", Some("2001:db8::8"), 4);
        let pair = block.find("2001:db8::a".parse().unwrap()).unwrap();
        assert_eq!(pair.to_string(), "203.0.113.10 and 2001:db8::a");
        assert_eq!(block.find("203.0.113.10".parse().unwrap()), Some(pair));
        assert_eq!(block.find("203.0.113.12".parse().unwrap()), None);
        assert_eq!(block.find("2001:db8::7".parse().unwrap()), None);
        assert_eq!(block.to_string(), "203.0.113.8-203.0.113.11");
    }

    #[test]
    fn blocks_are_stored_as_they_are() {
        let both = block("203.0.113.8", Some("2001:db8::8"), 4);
        let json = serde_json::to_string(&both).unwrap();
        assert_eq!(json, r#"{"v4":"203.0.113.8","v6":"2001:db8::8","count":4}"#);
        assert_eq!(serde_json::from_str::<Block>(&json).unwrap(), both);
        for bad in [
            r#"{"count":1}"#,
            r#"{"v4":"203.0.113.8","count":0}"#,
            r#"{"v4":"255.255.255.255","count":2}"#,
        ] {
            assert!(serde_json::from_str::<Block>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_what_goes_on_in_both_families_is_joined() {
        let mut all = Blocks::default();
        all.insert(block("203.0.113.0", Some("2001:db8::"), 4));
        all.insert(block("203.0.113.4", Some("2001:db8::4"), 4));
        assert_eq!(all.iter().count(), 1);
        all.insert(block("203.0.113.8", Some("2001:db8::9"), 4));
        all.insert(block("203.0.113.12", None, 4));
        assert_eq!((all.iter().count(), all.count()), (3, 16));
    }

    proptest! {
        /// A set of single addresses says what is there.
        #[test]
        fn they_are_as_a_set_of_addresses_says(
            steps in prop::collection::vec((any::<bool>(), 0..64_u32, 1..24_u32), 0..40),
            asked in (0..90_u32, 0..90_u32),
        ) {
            let mut all = Blocks::default();
            let mut set = std::collections::BTreeSet::new();
            let v4 = |n: u32| Ipv4Addr::from(0xcb00_7100 + n);
            let v6 = |n: u32| Ipv6Addr::from((0x2001_0db8_u128 << 96) + u128::from(n));
            for (adds, first, count) in steps {
                let block = Block::new(Some(v4(first)), Some(v6(first)), count).unwrap();
                match adds {
                    true => all.insert(block),
                    false => all.remove(block),
                }
                for n in first..first + count {
                    match adds {
                        true => set.insert(n),
                        false => set.remove(&n),
                    };
                }
                prop_assert_eq!(all.count(), set.len() as u64);
            }
            let seen: Vec<_> = all.pairs().map(|pair| pair.addresses().collect::<Vec<_>>()).collect();
            let expected: Vec<_> = set.iter().map(|&n| vec![IpAddr::from(v4(n)), v6(n).into()]).collect();
            prop_assert_eq!(seen, expected);
            let (one, other) = (asked.0.min(asked.1), asked.0.max(asked.1));
            let wanted = Block::new(Some(v4(one)), Some(v6(one)), other - one + 1).unwrap();
            prop_assert_eq!(all.contains(wanted), (one..=other).all(|n| set.contains(&n)));
            let within = all.within(wanted.first().place(), wanted.last().place());
            let within: Vec<_> = within.into_iter().flat_map(Block::pairs).collect();
            let expected = set.range(one..=other).map(|&n| IpAddr::from(v4(n)));
            prop_assert_eq!(within.iter().map(|it| it.place().address()).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
            let lowest: u32 = all.lowest(one).into_iter().map(Block::count).sum();
            prop_assert_eq!(lowest as usize, set.len().min(one as usize));
            for n in 0..90 {
                prop_assert_eq!(all.find(v6(n).into()).is_some(), set.contains(&n));
            }
        }
    }
}
