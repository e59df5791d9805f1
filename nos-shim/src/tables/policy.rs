//! Policies as packets ask them: what holds for a port is found in constant time, however many ranges
//! there are.

use core::net::IpAddr;
use std::sync::Arc;

use crate::ports::{Outside, Policy, PortRange, Transport};
use crate::prefix_set::PrefixSet;

/// Ranges that are compared one by one.
const FEW: usize = 8;

/// An attachment's policy.
#[derive(Debug)]
pub(crate) struct PolicyIndex {
    to: Option<Arc<PrefixSet>>,
    /// Whether it may use ports that nobody owns.
    pub(crate) learns: bool,
    /// Of the listen ranges: the number of their set in `sets`.
    tcp: PortIndex,
    udp: PortIndex,
    established: PortIndex,
    sets: Vec<Arc<PrefixSet>>,
}

impl PolicyIndex {
    pub(crate) fn new(policy: &Policy) -> Self {
        let mut sets: Vec<Arc<PrefixSet>> = Vec::new();
        let mut of = |transport| {
            let mut ranges = Vec::new();
            for rule in policy
                .from
                .iter()
                .filter(|rule| rule.transport == transport)
            {
                // Neighbours mostly share one.
                if sets.last() != Some(&rule.from) {
                    sets.push(Arc::clone(&rule.from));
                }
                ranges.push((rule.range, sets.len() - 1));
            }
            PortIndex::new(&ranges)
        };
        let (tcp, udp) = (of(Transport::Tcp), of(Transport::Udp));
        let established: Vec<_> = policy.established.iter().map(|&it| (it, 0)).collect();
        Self {
            to: policy.to.clone(),
            learns: policy.outside == Outside::Learn,
            tcp,
            udp,
            established: PortIndex::new(&established),
            sets,
        }
    }

    /// Whether the container may open flows to `remote`.
    pub(crate) fn may_open_to(&self, remote: IpAddr) -> bool {
        self.to.as_ref().is_none_or(|to| to.contains(remote))
    }

    /// Whether `remote` may open flows to a port on which the container listens.
    pub(crate) fn may_open_from(&self, transport: Transport, port: u16, remote: IpAddr) -> bool {
        let index = match transport {
            Transport::Tcp => &self.tcp,
            Transport::Udp => &self.udp,
        };
        let set = index.find(port).and_then(|number| self.sets.get(number));
        set.is_none_or(|set| set.contains(remote))
    }

    /// Whether `remote` may send what has no port, to an attachment that has all protocols of its addresses: who
    /// may open flows to all of its ports.
    pub(crate) fn may_reach_all(&self, remote: IpAddr) -> bool {
        self.sets.iter().all(|set| set.contains(remote))
    }

    /// Whether an ephemeral port gets only what belongs to a flow.
    pub(crate) fn is_established_only(&self, port: u16) -> bool {
        self.established.find(port).is_some()
    }
}

/// Numbers of ports.
#[derive(Debug)]
enum PortIndex {
    Few(Vec<(PortRange, usize)>),
    /// By port, one more than the number. 128 KiB.
    Many(Box<[u16]>),
}

impl PortIndex {
    /// The ranges do not overlap.
    fn new(ranges: &[(PortRange, usize)]) -> Self {
        if ranges.len() <= FEW {
            return Self::Few(ranges.to_vec());
        }
        let mut numbers = vec![0; 1 << 16];
        for &(range, number) in ranges {
            let ports = usize::from(range.first())..=usize::from(range.last());
            // There are at most as many ranges as ports.
            numbers[ports].fill(u16::try_from(number + 1).unwrap_or(u16::MAX));
        }
        Self::Many(numbers.into())
    }

    fn find(&self, port: u16) -> Option<usize> {
        match self {
            Self::Few(ranges) => {
                let found = ranges.iter().find(|(range, _)| range.contains(port))?;
                Some(found.1)
            }
            Self::Many(numbers) => usize::from(*numbers.get(usize::from(port))?).checked_sub(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Restriction;
    use proptest::prelude::*;

    proptest! {
        /// Few ranges and many, against the policy that they were made of.
        #[test]
        fn what_holds_for_a_port_is_found(
            steps in prop::collection::vec((1..6_u16, 0..4_u16, 0..4_u8), 0..40),
        ) {
            let mut policy = Policy::default();
            let mut next = 1;
            for (gap, more, kind) in steps {
                let range = PortRange::new(next + gap, next + gap + more).unwrap();
                next = range.last();
                let set = |host: u8| Arc::new(PrefixSet::new([IpAddr::from([10, 0, 0, host]).into()]));
                let transport = if kind == 1 { Transport::Udp } else { Transport::Tcp };
                match kind {
                    3 => policy.established.push(range),
                    _ => policy.from.push(Restriction { transport, range, from: set(kind) }),
                }
            }
            let index = PolicyIndex::new(&policy);
            for port in 0..=next + 2 {
                let established = policy.established.iter().any(|range| range.contains(port));
                prop_assert_eq!(index.is_established_only(port), established);
                for (transport, host) in [(Transport::Tcp, 0), (Transport::Tcp, 2), (Transport::Udp, 1)] {
                    let remote = IpAddr::from([10, 0, 0, host]);
                    let mut rules = policy.from.iter();
                    let rule = rules.find(|it| it.transport == transport && it.range.contains(port));
                    let expected = rule.is_none_or(|rule| rule.from.contains(remote));
                    prop_assert_eq!(index.may_open_from(transport, port, remote), expected);
                }
            }
        }
    }
}
