//! With whom a container may talk: who may open flows to its ports, and where it may open flows to.
//!
//! Without a policy, ports decide alone: outsiders open flows to listen ranges, the container from all
//! its ports. A policy narrows that, but for [`Outside::Learn`], which widens it. Nothing of it needs
//! state, but for the flows that go against the direction that it allows: replies.

use std::sync::Arc;

use super::{PortRange, Transport};
use crate::prefix_set::PrefixSet;

/// With whom a container may talk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Listen ranges to which not everybody may open flows. They do not overlap.
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
        let narrows = |it: &Restriction| it.transport == transport && it.range.overlaps(range);
        self.to.is_some() || self.from.iter().any(narrows)
    }

    /// Whether what comes to an ephemeral range has to be looked at.
    #[must_use]
    pub(super) fn watches_ephemeral(&self, range: PortRange) -> bool {
        self.established.iter().any(|it| it.overlaps(range))
    }
}
