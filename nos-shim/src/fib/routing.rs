//! Routes as they are configured, and as far as their uplinks are up, in the FIB.
//!
//! A static route stays configured while uplinks of its next hops are away. Its other next hops
//! forward meanwhile; if there are none, a worse route or a shorter prefix does. What is left out of
//! the FIB waits here, and comes back with the uplink.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{Action, Fib, FibFull, NextHops, Protocol, Route, Source};
use crate::ident::{UplinkId, VrfId};

/// What tells a route from others.
pub type RouteKey = (VrfId, IpNet, Source);

/// The FIB, and the routes that are not or not wholly in it.
#[derive(Clone, Debug, Default)]
pub struct Routing {
    fib: Fib,
    /// Static routes with a next hop that is not in the FIB: as they are configured.
    waiting: BTreeMap<RouteKey, Action>,
}

/// Why a route or one of its next hops does not forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InactiveReason {
    /// The uplink is down.
    LinkDown(UplinkId),
    /// There is no such uplink.
    NoUplink(UplinkId),
    /// The FIB has no room for it.
    FibFull,
}

/// A route that is configured and does not forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InactiveRoute {
    /// The route, with only those next hops that do not forward.
    pub route: Route,
    /// Why.
    pub reason: InactiveReason,
}

/// How much of an action its uplinks allow.
enum Usable {
    Whole,
    Part(Action),
    Nothing,
}

impl Routing {
    /// The forwarding table.
    #[must_use]
    #[inline]
    pub fn fib(&self) -> &Fib {
        &self.fib
    }

    /// Makes `routes` all that `protocol` offers, whatever the state of uplinks. Meant for
    /// [`Protocol::Local`] and [`Protocol::Connected`].
    ///
    /// # Errors
    ///
    /// [`FibFull`]; then no route was removed, and some were inserted.
    pub fn replace(&mut self, protocol: Protocol, routes: Vec<Route>) -> Result<(), FibFull> {
        self.fib.replace(protocol, routes).map(drop)
    }

    /// Makes `routes` all static routes; of several with the same [key](RouteKey) the last counts.
    ///
    /// # Errors
    ///
    /// [`FibFull`]; then no route was removed, and some were inserted.
    pub fn set_static(
        &mut self,
        routes: Vec<Route>,
        is_up: impl Fn(UplinkId) -> bool,
    ) -> Result<(), FibFull> {
        let mut waiting = BTreeMap::new();
        let mut offers = Vec::with_capacity(routes.len());
        for route in routes {
            let (key, usable) = (key_of(&route), usable(&route.action, &is_up));
            let action = match usable {
                Usable::Whole => {
                    waiting.remove(&key);
                    offers.push(route);
                    continue;
                }
                Usable::Part(part) => part,
                // The last of those with this key may be another: it is left out below.
                Usable::Nothing => route.action.clone(),
            };
            waiting.insert(key, route.action);
            offers.push(Route { action, ..route });
        }
        if !waiting.is_empty() {
            let nothing = |action| matches!(usable(action, &is_up), Usable::Nothing);
            offers.retain(|offer| !waiting.get(&key_of(offer)).is_some_and(nothing));
        }
        self.fib.replace(Protocol::Static, offers)?;
        self.waiting = waiting;
        Ok(())
    }

    /// Brings static routes in line with a change of `uplink`, which `is_up` knows already.
    pub fn follow_link(&mut self, uplink: UplinkId, is_up: impl Fn(UplinkId) -> bool) {
        for (key, action) in self.fib.offers_via(Protocol::Static, uplink) {
            self.waiting.entry(key).or_insert(action);
        }
        let over = self.waiting.iter();
        let over = over.filter(|(_, action)| action.is_via(uplink));
        let over: Vec<_> = over.map(|(&key, action)| (key, action.clone())).collect();
        for (key, action) in over {
            self.offer(key, &action, &is_up);
        }
    }

    /// Takes the next hops over an uplink that is no more out of all static routes. Those without
    /// any other are gone.
    pub fn remove_uplink(&mut self, uplink: UplinkId, is_up: impl Fn(UplinkId) -> bool) {
        // What waits is wider than what is offered.
        let mut over: BTreeMap<_, _> = self
            .fib
            .offers_via(Protocol::Static, uplink)
            .into_iter()
            .collect();
        let waiting = self.waiting.iter();
        let waiting = waiting.filter(|(_, action)| action.is_via(uplink));
        over.extend(waiting.map(|(&key, action)| (key, action.clone())));
        for (key, action) in over {
            match action.without(|hop| hop == uplink) {
                Some(left) => {
                    self.waiting.insert(key, left.clone());
                    self.offer(key, &left, &is_up);
                }
                None => {
                    self.waiting.remove(&key);
                    self.withdraw(key);
                }
            }
        }
    }

    /// Puts as much of a waiting route into the FIB as can be used.
    fn offer(&mut self, key: RouteKey, configured: &Action, is_up: &impl Fn(UplinkId) -> bool) {
        let (vrf, prefix, source) = key;
        match usable(configured, is_up) {
            Usable::Nothing => self.withdraw(key),
            Usable::Whole => {
                if self.fib.insert(vrf, prefix, source, configured).is_ok() {
                    self.waiting.remove(&key);
                }
            }
            Usable::Part(part) => {
                // What was offered until now may be over an uplink that is away.
                if self.fib.insert(vrf, prefix, source, &part).is_err() {
                    self.withdraw(key);
                }
            }
        }
    }

    fn withdraw(&mut self, (vrf, prefix, source): RouteKey) {
        self.fib.remove(vrf, &prefix, source);
    }

    /// Static routes and next hops that do not forward, by VRF and prefix. `state` says why an
    /// uplink is not used, or that it is.
    pub fn inactive(
        &self,
        state: impl Fn(UplinkId) -> Option<InactiveReason>,
    ) -> Vec<InactiveRoute> {
        let mut inactive = Vec::new();
        for (&(vrf, prefix, source), action) in &self.waiting {
            let Action::Via(hops) = action else { continue };
            let mut uplinks: Vec<_> = hops.as_slice().iter().map(|hop| hop.uplink).collect();
            uplinks.sort_unstable();
            uplinks.dedup();
            let before = inactive.len();
            let told = |action, reason| InactiveRoute {
                route: Route {
                    vrf,
                    prefix,
                    source,
                    action,
                },
                reason,
            };
            inactive.extend(uplinks.into_iter().filter_map(|uplink| {
                let only = action.without(|other| other != uplink)?;
                Some(told(only, state(uplink)?))
            }));
            if inactive.len() == before {
                inactive.push(told(action.clone(), InactiveReason::FibFull));
            }
        }
        inactive
    }
}

impl Action {
    /// Whether one of its next hops is over `uplink`.
    #[must_use]
    pub fn is_via(&self, uplink: UplinkId) -> bool {
        match self {
            Self::Via(hops) => hops.as_slice().iter().any(|hop| hop.uplink == uplink),
            _ => false,
        }
    }

    /// The same without the next hops over uplinks that are `gone`; `None` if none is left.
    fn without(&self, gone: impl Fn(UplinkId) -> bool) -> Option<Self> {
        let Self::Via(hops) = self else {
            return Some(self.clone());
        };
        let left = hops.as_slice().iter().filter(|hop| !gone(hop.uplink));
        NextHops::new(left.copied()).ok().map(Self::Via)
    }
}

fn key_of(route: &Route) -> RouteKey {
    (route.vrf, route.prefix.trunc(), route.source)
}

fn usable(action: &Action, is_up: &impl Fn(UplinkId) -> bool) -> Usable {
    let Action::Via(hops) = action else {
        return Usable::Whole;
    };
    if hops.as_slice().iter().all(|hop| is_up(hop.uplink)) {
        return Usable::Whole;
    }
    action
        .without(|uplink| !is_up(uplink))
        .map_or(Usable::Nothing, Usable::Part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fib::NextHop;
    use core::net::IpAddr;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const UPLINKS: u32 = 3;

    fn hop(uplink: u32, host: u8) -> NextHop {
        NextHop {
            gateway: IpAddr::from([192, 0, 2, host]),
            uplink: UplinkId(uplink),
        }
    }

    fn route(prefix: &str, metric: u16, hops: &[NextHop]) -> Route {
        Route {
            vrf: VrfId::DEFAULT,
            prefix: prefix.parse().unwrap(),
            source: Source::Static { metric },
            action: NextHops::new(hops.iter().copied()).map_or(Action::Blackhole, Action::Via),
        }
    }

    fn action(routing: &Routing, destination: &str) -> Action {
        let fib = routing.fib();
        let found = fib.lookup(VrfId::DEFAULT, destination.parse().unwrap());
        fib.adjacency(found).action().clone()
    }

    #[test]
    fn others_take_over_while_an_uplink_is_away() {
        let ecmp = [hop(0, 1), hop(1, 2)];
        let routes = vec![
            route("0.0.0.0/0", 0, &ecmp),
            route("198.51.100.0/24", 0, &[hop(0, 1)]),
            route("198.51.100.0/24", 5, &[hop(1, 9)]),
            route("198.51.100.128/25", 0, &[hop(0, 3)]),
        ];
        let up = |_| true;
        let zero_is_down = |uplink| uplink != UplinkId(0);
        let mut routing = Routing::default();
        routing.set_static(routes.clone(), up).unwrap();
        assert_eq!(routing.inactive(|_| None), []);
        let best = |routing: &Routing| {
            ["203.0.113.9", "198.51.100.1", "198.51.100.129"].map(|to| action(routing, to))
        };
        let whole = best(&routing);
        routing.follow_link(UplinkId(0), zero_is_down);
        let via = |hop: NextHop| Action::Via(hop.into());
        let expected = [via(hop(1, 2)), via(hop(1, 9)), via(hop(1, 9))];
        assert_eq!(best(&routing), expected);
        let down = InactiveReason::LinkDown(UplinkId(0));
        let told = routing.inactive(|uplink| (uplink == UplinkId(0)).then_some(down));
        let told: Vec<_> = told
            .into_iter()
            .map(|it| (it.route.prefix.to_string(), it.route.action, it.reason))
            .collect();
        let entry = |prefix: &str, hop: NextHop| (prefix.to_owned(), via(hop), down);
        let expected = [
            entry("0.0.0.0/0", hop(0, 1)),
            entry("198.51.100.0/24", hop(0, 1)),
            entry("198.51.100.128/25", hop(0, 3)),
        ];
        assert_eq!(told, expected);
        // What is configured anew meanwhile is no more active than before.
        routing.set_static(routes, zero_is_down).unwrap();
        routing.follow_link(UplinkId(0), up);
        assert_eq!(best(&routing), whole);
        assert_eq!(routing.inactive(|_| None), []);
    }

    #[test]
    fn next_hops_over_an_uplink_that_is_no_more_are_gone_for_good() {
        let routes = vec![
            route("0.0.0.0/0", 0, &[hop(0, 1), hop(1, 2)]),
            route("198.51.100.0/24", 0, &[hop(0, 1)]),
        ];
        let mut routing = Routing::default();
        routing.set_static(routes, |_| true).unwrap();
        routing.remove_uplink(UplinkId(0), |uplink| uplink != UplinkId(0));
        let left = Action::Via(hop(1, 2).into());
        assert_eq!(action(&routing, "198.51.100.1"), left);
        routing.follow_link(UplinkId(0), |_| true);
        assert_eq!(action(&routing, "198.51.100.1"), left);
        assert_eq!(routing.inactive(|_| None), []);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(Vec<Route>),
        Link(u32, bool),
        Remove(u32),
    }

    fn routes() -> impl Strategy<Value = Vec<Route>> {
        let prefixes = ["0.0.0.0/0", "198.51.100.0/24", "198.51.100.0/25"];
        let hops = proptest::collection::vec((0..UPLINKS, 1..3_u8), 0..4);
        let one = (0..3_usize, 0..2_u16, hops).prop_map(move |(prefix, metric, hops)| {
            let hops: Vec<_> = hops
                .into_iter()
                .map(|(uplink, host)| hop(uplink, host))
                .collect();
            route(prefixes[prefix], metric, &hops)
        });
        proptest::collection::vec(one, 0..6)
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => routes().prop_map(Step::Set),
            4 => (0..UPLINKS, any::<bool>()).prop_map(|(uplink, up)| Step::Link(uplink, up)),
            1 => (0..UPLINKS).prop_map(Step::Remove),
        ]
    }

    proptest! {
        /// Whatever happened before, the FIB holds what is left of the configured routes.
        #[test]
        fn the_fib_follows_routes_and_links(steps in proptest::collection::vec(step(), 1..30)) {
            let mut routing = Routing::default();
            let mut configured: BTreeMap<RouteKey, Action> = BTreeMap::new();
            let mut up: BTreeSet<UplinkId> = (0..UPLINKS).map(UplinkId).collect();
            for step in steps {
                match step {
                    Step::Set(routes) => {
                        configured = routes.iter().map(|it| (key_of(it), it.action.clone())).collect();
                        routing.set_static(routes, |uplink| up.contains(&uplink)).unwrap();
                    }
                    Step::Link(uplink, is_up) => {
                        let uplink = UplinkId(uplink);
                        if is_up { up.insert(uplink) } else { up.remove(&uplink) };
                        routing.follow_link(uplink, |uplink| up.contains(&uplink));
                    }
                    Step::Remove(uplink) => {
                        let gone = UplinkId(uplink);
                        up.remove(&gone);
                        configured = configured
                            .into_iter()
                            .filter_map(|(key, it)| Some((key, it.without(|hop| hop == gone)?)))
                            .collect();
                        routing.remove_uplink(gone, |uplink| up.contains(&uplink));
                    }
                }
                let usable = configured
                    .iter()
                    .filter_map(|(key, it)| Some((*key, it.without(|hop| !up.contains(&hop))?)));
                let expected: BTreeMap<RouteKey, Action> = usable.collect();
                let offered = routing.fib().routes(VrfId::DEFAULT);
                let offered = offered
                    .map(|it| ((VrfId::DEFAULT, it.prefix, it.source), it.action.clone()));
                let offered: BTreeMap<RouteKey, Action> = offered.collect();
                prop_assert_eq!(offered, expected);
                let partial = configured.iter().filter(|(_, it)| match it {
                    Action::Via(hops) => hops.as_slice().iter().any(|hop| !up.contains(&hop.uplink)),
                    _ => false,
                });
                let down = |uplink| {
                    (!up.contains(&uplink)).then_some(InactiveReason::LinkDown(uplink))
                };
                let told: BTreeSet<_> = routing
                    .inactive(down)
                    .iter()
                    .map(|it| key_of(&it.route))
                    .collect();
                let expected: BTreeSet<_> = partial.map(|(key, _)| *key).collect();
                prop_assert_eq!(told, expected);
            }
        }
    }
}
