//! What a worker remembers of each VRF, so that nothing of one is told to another, or used up by it:
//! the NOS's connections, the rates of what it says by itself, and its identifications.

#[cfg(not(feature = "stack"))]
use super::no_stack::LocalStack;
use super::sooner;
use crate::ident::VrfId;
#[cfg(feature = "stack")]
use crate::local::LocalStack;
use crate::originate::Originator;
use crate::rate_limit::{IcmpLimiter, IcmpLimits, RedirectLimiter};
use crate::tables::Tables;
use crate::time::Instant;

/// One VRF's.
pub(crate) struct VrfState {
    pub(crate) local: LocalStack,
    pub(crate) limiter: IcmpLimiter,
    pub(crate) redirects: RedirectLimiter,
    pub(crate) originator: Originator,
}

impl VrfState {
    fn new(seed: u64) -> Self {
        Self {
            local: LocalStack::new(seed),
            limiter: IcmpLimiter::new(IcmpLimits::default(), seed),
            redirects: RedirectLimiter::new(seed),
            originator: Originator::new(seed),
        }
    }
}

/// See the [module](self).
pub(crate) struct Vrfs {
    /// By number of the VRF.
    known: Vec<Option<Box<VrfState>>>,
    /// By index of the uplink: the VRF that its link is in.
    links: Vec<VrfId>,
    /// That of packets on their way in a VRF that is no more. Its local stack gets none of them.
    none: Box<VrfState>,
    /// No local stack has something to do before.
    local_at: Option<Instant>,
    seed: u64,
}

impl Vrfs {
    /// The default VRF alone.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            known: vec![Some(Box::new(VrfState::new(seed)))],
            links: Vec::new(),
            none: Box::new(VrfState::new(!seed)),
            local_at: None,
            seed,
        }
    }

    /// The local stack of a VRF that there is.
    #[inline]
    pub(crate) fn local(&mut self, vrf: VrfId) -> Option<&mut LocalStack> {
        let state = self.known.get_mut(usize::from(vrf.0))?;
        state.as_mut().map(|state| &mut state.local)
    }

    /// What is remembered of a VRF, or of the one that a link is in.
    #[inline]
    pub(crate) fn of(&mut self, vrf: VrfId) -> &mut VrfState {
        let around = |link: usize| self.links.get(link).copied();
        let vrf = vrf.link_index().and_then(around).unwrap_or(vrf);
        match self.known.get_mut(usize::from(vrf.0)) {
            Some(Some(state)) => state,
            _ => &mut self.none,
        }
    }

    /// Whether there is no VRF but the default one.
    pub(crate) fn is_single(&self) -> bool {
        self.known.iter().flatten().count() == 1
    }

    /// Forgets VRFs that nothing is in any more, and follows the addresses and services of the
    /// others.
    pub(crate) fn follow(&mut self, tables: &Tables) {
        let vrfs = tables.vrfs();
        let last = vrfs.last().map_or(0, |vrf| usize::from(vrf.0));
        self.known.resize_with(last + 1, || None);
        for (number, state) in (0..=u16::MAX).zip(&mut self.known) {
            if !vrfs.contains(&VrfId(number)) {
                *state = None;
            }
        }
        self.links.clear();
        for (id, uplink) in tables.uplinks.iter() {
            self.links.resize(id.index() + 1, VrfId::DEFAULT);
            self.links[id.index()] = uplink.config.vrf;
        }
        for vrf in vrfs {
            let state = self.enter(vrf);
            state.local.set_services(tables.services(vrf));
            state.local.set_addresses(tables.addresses(vrf));
        }
        self.reschedule();
    }

    /// There is this VRF from now on, if there was not.
    pub(crate) fn enter(&mut self, vrf: VrfId) -> &mut VrfState {
        let index = usize::from(vrf.0);
        if self.known.len() <= index {
            self.known.resize_with(index + 1, || None);
        }
        let seed = self.seed ^ u64::from(vrf.0).rotate_right(16);
        self.known[index].get_or_insert_with(|| Box::new(VrfState::new(seed)))
    }

    /// A VRF's local stack may have something to do by now.
    #[inline]
    pub(crate) fn stir(&mut self, vrf: VrfId) {
        let at = self.local(vrf).and_then(|local| local.poll_at());
        self.local_at = sooner(self.local_at, at);
    }

    /// When a local stack has something to do, at the earliest.
    #[inline]
    pub(crate) fn local_at(&self) -> Option<Instant> {
        self.local_at
    }

    /// The VRFs whose local stacks have something to do, one after the other: the first from `from`
    /// on.
    pub(crate) fn due(&self, from: VrfId, now: Instant) -> Option<VrfId> {
        let known = (from.0..=u16::MAX).zip(self.known.get(usize::from(from.0)..)?);
        let due = |state: &VrfState| state.local.poll_at().is_some_and(|at| at <= now);
        let mut found = known.filter(|(_, state)| state.as_deref().is_some_and(due));
        found.next().map(|(number, _)| VrfId(number))
    }

    /// Notes when there is something to do next, after a change.
    pub(crate) fn reschedule(&mut self) {
        let known = self.known.iter().flatten();
        let next = known.filter_map(|state| state.local.poll_at()).min();
        self.local_at = next;
    }
}
