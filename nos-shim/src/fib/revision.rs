//! Static routes brought in line with changes of uplinks, some at a time.
//!
//! A change of an uplink may concern every route, and there may be millions. So nothing but a note
//! is made of it at once, and a walk over all routes puts right what differs from the uplinks as
//! they are by then. Until it ends, [`Routing::detour`] finds a route for packets whose own would
//! take them to an uplink that is away.
//!
//! The walk looks first at what is in the FIB, then at what waits. Another change of an uplink sends
//! it back to the beginning.

use core::net::IpAddr;
use core::ops::Bound;

use super::routing::usable;
use super::{Action, AdjacencyId, Protocol, RouteCursor, RouteKey, Routing};
use crate::ident::{UplinkId, VrfId};
use crate::page::PAGE;

/// A walk that has not ended.
#[derive(Clone, Debug, Default)]
pub(super) struct Revision {
    /// Uplinks that are no more, since the walk began for the first time.
    gone: Vec<UplinkId>,
    place: Place,
}

/// What is looked at next.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Routes in the FIB.
    Offered(Option<RouteCursor>),
    /// Routes that wait, behind this one.
    Waiting(Option<RouteKey>),
    /// Nothing.
    End,
}

impl Default for Place {
    fn default() -> Self {
        Self::Offered(None)
    }
}

impl Routing {
    /// Static routes have to follow a change of the links of uplinks.
    pub fn follow_links(&mut self) {
        self.revision.get_or_insert_default().place = Place::default();
    }

    /// The next hops over an uplink that is no more have to go from all static routes. Those without
    /// any other go too; so do those next hops of routes that are set before the revision has ended.
    pub fn remove_uplink(&mut self, uplink: UplinkId) {
        self.follow_links();
        if let Some(revision) = &mut self.revision {
            revision.gone.push(uplink);
        }
    }

    /// Whether routes have to be [revised](Self::revise).
    #[must_use]
    #[inline]
    pub fn is_revising(&self) -> bool {
        self.revision.is_some()
    }

    /// Brings some static routes in line with the uplinks: pages of [`PAGE`] prefixes, until
    /// `budget` is spent, of which a page takes one unit and each of its routes that is not in line
    /// another. A unit is about a microsecond.
    pub fn revise(&mut self, budget: usize, is_up: impl Fn(VrfId, UplinkId) -> bool) {
        let Some(mut revision) = self.revision.take() else {
            return;
        };
        let mut spent = 0;
        while spent < budget {
            if matches!(revision.place, Place::End) {
                return;
            }
            let found = self.find(&mut revision, &is_up);
            spent += 1 + found.len();
            for (key, action) in found {
                self.bring_in_line(key, action, &revision.gone, &is_up);
            }
        }
        self.revision = Some(revision);
    }

    /// Looks at a page of routes, and returns those that may not be in line.
    fn find(
        &self,
        revision: &mut Revision,
        is_up: &impl Fn(VrfId, UplinkId) -> bool,
    ) -> Vec<(RouteKey, Action)> {
        let Revision { gone, place } = revision;
        let mut found = Vec::new();
        *place = match *place {
            Place::Offered(cursor) => {
                let next = self.fib.visit(cursor, |vrf, (prefix, offer, _)| {
                    let away = |uplink| gone.contains(&uplink) || !is_up(vrf, uplink);
                    let adjacency = self.fib.adjacency(offer);
                    let (source, action) = (adjacency.source(), adjacency.action());
                    if source.protocol() == Protocol::Static && action.has_hop(away) {
                        found.push(((vrf, prefix, source), action.clone()));
                    }
                });
                next.map_or(Place::Waiting(None), |cursor| Place::Offered(Some(cursor)))
            }
            Place::Waiting(last) => {
                let behind = last.map_or(Bound::Unbounded, Bound::Excluded);
                let waiting = self.waiting.range((behind, Bound::Unbounded)).take(PAGE);
                found.extend(waiting.map(|(&key, action)| (key, action.clone())));
                let last = found.last();
                last.map_or(Place::End, |&(last, _)| Place::Waiting(Some(last)))
            }
            Place::End => Place::End,
        };
        found
    }

    /// `offered` is what was found of the route; it is configured to be more if it waits.
    fn bring_in_line(
        &mut self,
        key: RouteKey,
        offered: Action,
        gone: &[UplinkId],
        is_up: &impl Fn(VrfId, UplinkId) -> bool,
    ) {
        let configured = self.waiting.get(&key).cloned().unwrap_or(offered);
        match configured.without(|hop| gone.contains(&hop)) {
            Some(left) => {
                self.waiting.insert(key, left.clone());
                self.offer(key, &left, is_up);
            }
            None => {
                self.waiting.remove(&key);
                self.withdraw(key);
            }
        }
    }

    /// Where packets for `destination` go while a revision is under way: the best route that is not
    /// wholly over uplinks that are away.
    #[must_use]
    pub fn detour(
        &self,
        vrf: VrfId,
        destination: IpAddr,
        is_up: impl Fn(VrfId, UplinkId) -> bool,
    ) -> AdjacencyId {
        let fit = |action: &Action| usable(action, |uplink| is_up(vrf, uplink)).is_some();
        self.fib.best_fit(vrf, destination, fit)
    }
}
