//! With whom a container may talk: who may open flows to its ports, and where it may open flows to.
//!
//! Without a policy, ports decide alone: outsiders open flows to listen ranges, the container from all
//! its ports. A policy narrows that, but for [`Outside::Learn`], which widens it. Nothing of it needs
//! state, but for the flows that go against the direction that it allows: replies.

use std::sync::Arc;

use super::{Claim, ClaimKind, PortRange, Transport};
use crate::prefix_set::PrefixSet;

/// With whom a container may talk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Listen ranges to which not everybody may open flows. They do not overlap. An attachment that has its addresses
    /// [for its own](super::AddressMode::Routed) listens on all ports; what has no port comes to it from those who
    /// may open flows to all of these ranges.
    pub from: Vec<Restriction>,
    /// Ephemeral ports, of TCP and UDP, that get only packets of flows that the container has opened.
    /// They do not overlap.
    pub established: Vec<PortRange>,
    /// Where it may open flows to; everywhere if `None`.
    pub to: Option<Arc<PrefixSet>>,
    /// What becomes of what it sends from ports that are not its own.
    pub outside: Outside,
}

/// Who may open flows to a range of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restriction {
    /// Of which protocol.
    pub transport: Transport,
    /// Which ports.
    pub range: PortRange,
    /// From where flows may be opened to them.
    pub from: Arc<PrefixSet>,
}

/// What a policy says of some ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortRule {
    /// Who may open flows to them; everybody if `None`.
    pub from: Option<Arc<PrefixSet>>,
    /// Whether they get only packets of flows that their owner has opened.
    pub established: bool,
}

/// What becomes of packets from ports that a container does not own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outside {
    /// They are refused.
    #[default]
    Drop,
    /// They open flows, as long as nobody else has the port; what is sent back reaches the container.
    Learn,
}

impl Policy {
    /// Whether it says anything: without, ports decide alone.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether what comes to a listen range has to be looked at.
    #[must_use]
    pub(super) fn watches_listen(&self, transport: Transport, range: PortRange) -> bool {
        self.to.is_some() || narrows(&self.from, transport, range)
    }

    /// Whether what comes to an ephemeral range has to be looked at.
    #[must_use]
    pub(super) fn watches_ephemeral(&self, range: PortRange) -> bool {
        self.established.iter().any(|it| it.overlaps(range))
    }
}

/// Whether any of `from` is about ports in `range`.
pub(super) fn narrows(from: &[Restriction], transport: Transport, range: PortRange) -> bool {
    let mut from = from.iter();
    from.any(|it| it.transport == transport && it.range.overlaps(range))
}

/// Rules of ranges in order, so that those of a claim are found at once.
pub(super) struct Rules(Vec<(Place, PortRange, PortRule)>);

/// Ports of which a rule may be.
type Place = (Transport, ClaimKind);

impl Rules {
    pub(super) fn new(from: &[Restriction], established: &[PortRange]) -> Self {
        let listen = from.iter().map(|it| {
            let rule = PortRule {
                from: Some(Arc::clone(&it.from)),
                established: false,
            };
            ((it.transport, ClaimKind::Listen), it.range, rule)
        });
        let transports = [Transport::Tcp, Transport::Udp].into_iter();
        let ephemeral = transports.flat_map(|transport| {
            established.iter().map(move |&range| {
                let rule = PortRule {
                    from: None,
                    established: true,
                };
                ((transport, ClaimKind::Ephemeral), range, rule)
            })
        });
        let mut all: Vec<_> = listen.chain(ephemeral).collect();
        all.sort_by_key(|&(place, range, _)| (place, range));
        Self(all)
    }

    /// The parts of a claim, in order, each with the rule that holds for it.
    pub(super) fn cut(&self, claim: &Claim) -> Vec<(PortRange, PortRule)> {
        let place = (claim.transport, claim.kind);
        let (first, last) = (claim.range.first(), claim.range.last());
        let before = |it: &(Place, PortRange, PortRule)| (it.0, it.1.last()) < (place, first);
        let rules = self.0.get(self.0.partition_point(before)..);
        let rules = rules.unwrap_or_default().iter();
        let rules = rules.take_while(|it| it.0 == place && it.1.first() <= last);
        let mut parts = Vec::new();
        let mut next = Some(first);
        for (_, range, rule) in rules {
            let Some(from) = next else { break };
            let free = range.first().checked_sub(1);
            parts.extend(free.and_then(|until| part(from, until, PortRule::default())));
            let until = range.last().min(last);
            parts.extend(part(from.max(range.first()), until, rule.clone()));
            next = until.checked_add(1);
        }
        parts.extend(next.and_then(|from| part(from, last, PortRule::default())));
        parts
    }
}

/// Nothing if `last` is before `first`.
fn part(first: u16, last: u16, rule: PortRule) -> Option<(PortRange, PortRule)> {
    PortRange::new(first, last).ok().map(|range| (range, rule))
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The parts are the claim, each port with the rule that is given for it.
        #[test]
        fn a_claim_is_cut_where_rules_change(
            steps in prop::collection::vec((1..6_u16, 0..4_u16, 0..4_u8), 0..20),
            first in 1..60_u16,
            len in 0..60_u16,
            kind in prop_oneof![Just(ClaimKind::Listen), Just(ClaimKind::Ephemeral)],
        ) {
            let (mut from, mut established) = (Vec::new(), Vec::new());
            let mut next = 0;
            for (gap, more, which) in steps {
                let range = PortRange::new(next + gap, next + gap + more).unwrap();
                next = range.last();
                let host = IpAddr::from([10, 0, 0, which]);
                let set = Arc::new(PrefixSet::new([host.into()]));
                let transport = if which == 1 { Transport::Udp } else { Transport::Tcp };
                match which {
                    3 => established.push(range),
                    _ => from.push(Restriction { transport, range, from: set }),
                }
            }
            let range = PortRange::new(first, first + len).unwrap();
            let claim = Claim { transport: Transport::Tcp, range, kind };
            let parts = Rules::new(&from, &established).cut(&claim);
            let mut ports = Vec::new();
            for (range, rule) in parts {
                for port in range.first()..=range.last() {
                    ports.push(port);
                    let listen = kind == ClaimKind::Listen;
                    let mut own = from.iter().filter(|it| listen && it.transport == claim.transport);
                    let own = own.find(|it| it.range.contains(port));
                    prop_assert_eq!(&rule.from, &own.map(|it| Arc::clone(&it.from)));
                    let only = !listen && established.iter().any(|it| it.contains(port));
                    prop_assert_eq!(rule.established, only);
                }
            }
            prop_assert_eq!(ports, (first..=first + len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_last_port_is_cut_as_others_are() {
        let range = PortRange::new(65_000, 65_535).unwrap();
        let all = PortRange::new(1, 65_535).unwrap();
        let claim = |kind| Claim {
            transport: Transport::Tcp,
            range: all,
            kind,
        };
        let parts = Rules::new(&[], &[range]).cut(&claim(ClaimKind::Ephemeral));
        let ranges: Vec<_> = parts
            .iter()
            .map(|(range, rule)| (*range, rule.established))
            .collect();
        let free = PortRange::new(1, 64_999).unwrap();
        assert_eq!(ranges, [(free, false), (range, true)]);
        let whole = Rules::new(&[], &[]).cut(&claim(ClaimKind::Listen));
        assert_eq!(whole, [(all, PortRule::default())]);
    }
}
