//! Routes as they are configured, and as far as their uplinks are up, in the FIB.
//!
//! A static route stays configured while uplinks of its next hops are away. Its other next hops
//! forward meanwhile; if there are none, a worse route or a shorter prefix does. What is left out of
//! the FIB waits here, and comes back with the uplink.

use core::net::IpAddr;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use ipnet::IpNet;

use super::revision::Revision;
use super::{Action, Fib, FibFull, NextHops, Protocol, Route, Source};
use crate::ident::{AttachmentId, UplinkId, VrfId};

/// What tells a route from others.
pub type RouteKey = (VrfId, IpNet, Source);

/// A change of what static routes there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteChange {
    /// This one, in place of an earlier one with the same [key](RouteKey).
    Set(Route),
    /// None with this key.
    Remove(RouteKey),
}

/// The FIB, and the routes that are not or not wholly in it.
#[derive(Clone, Debug, Default)]
pub struct Routing {
    pub(super) fib: Fib,
    /// Static routes with a next hop that is not in the FIB: as they are configured.
    pub(super) waiting: BTreeMap<RouteKey, Action>,
    /// The NOS's addresses and the networks of its uplinks, which are few: to know them here saves a
    /// search through all routes.
    placed: HashMap<Protocol, BTreeMap<RouteKey, Action>>,
    pub(super) revision: Option<Revision>,
}

/// Why a route or one of its next hops does not forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InactiveReason {
    /// The uplink is down.
    LinkDown(UplinkId),
    /// There is no such uplink.
    NoUplink(UplinkId),
    /// The uplink is in another VRF.
    OtherVrf(UplinkId),
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

impl Routing {
    /// The forwarding table.
    #[must_use]
    #[inline]
    pub fn fib(&self) -> &Fib {
        &self.fib
    }

    /// Makes `routes` all that `protocol` offers, whatever the state of uplinks, touching only what
    /// differs: a route that stays never disappears in between. Meant for [`Protocol::Local`] and
    /// [`Protocol::Connected`].
    ///
    /// # Errors
    ///
    /// [`FibFull`]; then no route was removed, and some were inserted.
    pub fn replace(&mut self, protocol: Protocol, routes: Vec<Route>) -> Result<(), FibFull> {
        let ours = routes.into_iter();
        let ours = ours.filter(|route| route.source.protocol() == protocol);
        let wanted: BTreeMap<_, _> = ours.map(|it| (key_of(&it), it.action)).collect();
        let Self { fib, placed, .. } = self;
        let placed = placed.entry(protocol).or_default();
        for (&key, action) in &wanted {
            if placed.get(&key) != Some(action) {
                let (vrf, prefix, source) = key;
                fib.insert(vrf, prefix, source, action)?;
                placed.insert(key, action.clone());
            }
        }
        placed.retain(|key, _| {
            let stays = wanted.contains_key(key);
            if !stays {
                let (vrf, prefix, source) = key;
                fib.remove(*vrf, prefix, *source);
            }
            stays
        });
        Ok(())
    }

    /// Makes an address lead to the attachment that has it for its own, or to none.
    ///
    /// # Errors
    ///
    /// [`FibFull`]; then nothing has changed.
    pub fn attach(
        &mut self,
        vrf: VrfId,
        address: IpAddr,
        to: Option<AttachmentId>,
    ) -> Result<(), FibFull> {
        let prefix = IpNet::from(address);
        match to {
            Some(to) => {
                let action = Action::Attached(to);
                self.fib.insert(vrf, prefix, Source::Attached, &action)
            }
            None => {
                self.withdraw((vrf, prefix, Source::Attached));
                Ok(())
            }
        }
    }

    /// Changes one static route. `is_up` says whether packets of a VRF can leave by an uplink.
    ///
    /// # Errors
    ///
    /// [`FibFull`]; then nothing has changed.
    pub fn change(
        &mut self,
        change: RouteChange,
        is_up: impl Fn(VrfId, UplinkId) -> bool,
    ) -> Result<(), FibFull> {
        let route = match change {
            RouteChange::Set(route) => route,
            RouteChange::Remove((vrf, prefix, source)) => {
                let key = (vrf, prefix.trunc(), source);
                self.waiting.remove(&key);
                self.withdraw(key);
                return Ok(());
            }
        };
        let key = key_of(&route);
        let (vrf, prefix, source) = key;
        match usable(&route.action, |uplink| is_up(vrf, uplink)) {
            Some(Cow::Borrowed(whole)) => {
                self.fib.insert(vrf, prefix, source, whole)?;
                self.waiting.remove(&key);
            }
            Some(Cow::Owned(part)) => {
                self.fib.insert(vrf, prefix, source, &part)?;
                self.waiting.insert(key, route.action);
            }
            None => {
                self.withdraw(key);
                self.waiting.insert(key, route.action);
            }
        }
        Ok(())
    }

    /// Puts as much of a waiting route into the FIB as can be used.
    pub(super) fn offer(
        &mut self,
        key: RouteKey,
        configured: &Action,
        is_up: &impl Fn(VrfId, UplinkId) -> bool,
    ) {
        let (vrf, prefix, source) = key;
        match usable(configured, |uplink| is_up(vrf, uplink)) {
            None => self.withdraw(key),
            Some(Cow::Borrowed(whole)) => {
                if self.fib.insert(vrf, prefix, source, whole).is_ok() {
                    self.waiting.remove(&key);
                }
            }
            Some(Cow::Owned(part)) => {
                // What was offered until now may be over an uplink that is away.
                if self.fib.insert(vrf, prefix, source, &part).is_err() {
                    self.withdraw(key);
                }
            }
        }
    }

    pub(super) fn withdraw(&mut self, (vrf, prefix, source): RouteKey) {
        self.fib.remove(vrf, &prefix, source);
    }

    /// Static routes and next hops that do not forward, by VRF and prefix. `state` says why an
    /// uplink is not used by routes of a VRF, or that it is.
    pub fn inactive(
        &self,
        state: impl Fn(VrfId, UplinkId) -> Option<InactiveReason>,
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
                Some(told(only, state(vrf, uplink)?))
            }));
            if inactive.len() == before {
                inactive.push(told(action.clone(), InactiveReason::FibFull));
            }
        }
        inactive
    }
}

impl Action {
    /// Whether it has a next hop over an uplink that is `away`.
    pub(super) fn has_hop(&self, away: impl Fn(UplinkId) -> bool) -> bool {
        match self {
            Self::Via(hops) => hops.as_slice().iter().any(|hop| away(hop.uplink)),
            _ => false,
        }
    }

    /// The same without the next hops over uplinks that are `gone`; `None` if none is left.
    pub(super) fn without(&self, gone: impl Fn(UplinkId) -> bool) -> Option<Self> {
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

/// How much of an action its uplinks allow: all of it as it is, or a part, or nothing.
pub(super) fn usable<'a>(
    action: &'a Action,
    is_up: impl Fn(UplinkId) -> bool,
) -> Option<Cow<'a, Action>> {
    if !action.has_hop(|uplink| !is_up(uplink)) {
        return Some(Cow::Borrowed(action));
    }
    action.without(|uplink| !is_up(uplink)).map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fib::NextHop;
    use crate::page::PAGE;
    use core::net::IpAddr;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const UPLINKS: u32 = 3;
    const PREFIXES: [&str; 3] = ["0.0.0.0/0", "198.51.100.0/24", "198.51.100.0/25"];

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

    /// Makes `routes` all static routes.
    fn set(routing: &mut Routing, routes: &[Route], is_up: impl Fn(VrfId, UplinkId) -> bool) {
        let wanted: BTreeSet<_> = routes.iter().map(key_of).collect();
        let present = routing.fib().routes(VrfId::DEFAULT);
        let present = present.map(|it| (VrfId::DEFAULT, it.prefix, it.source));
        let present = present.chain(routing.waiting.keys().copied());
        let gone: Vec<_> = present.filter(|key| !wanted.contains(key)).collect();
        let changes = routes.iter().cloned().map(RouteChange::Set);
        for change in changes.chain(gone.into_iter().map(RouteChange::Remove)) {
            routing.change(change, &is_up).unwrap();
        }
    }

    /// Revises routes to the end.
    fn settle(routing: &mut Routing, is_up: impl Fn(VrfId, UplinkId) -> bool) {
        while routing.is_revising() {
            routing.revise(1, &is_up);
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
        let up = |_, _| true;
        let zero_is_down = |_, uplink| uplink != UplinkId(0);
        let mut routing = Routing::default();
        set(&mut routing, &routes, up);
        assert_eq!(routing.inactive(|_, _| None), []);
        let best = |routing: &Routing| {
            ["203.0.113.9", "198.51.100.1", "198.51.100.129"].map(|to| action(routing, to))
        };
        let whole = best(&routing);
        routing.follow_links();
        settle(&mut routing, zero_is_down);
        let via = |hop: NextHop| Action::Via(hop.into());
        let expected = [via(hop(1, 2)), via(hop(1, 9)), via(hop(1, 9))];
        assert_eq!(best(&routing), expected);
        let down = InactiveReason::LinkDown(UplinkId(0));
        let told = routing.inactive(|_, uplink| (uplink == UplinkId(0)).then_some(down));
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
        set(&mut routing, &routes, zero_is_down);
        routing.follow_links();
        settle(&mut routing, up);
        assert_eq!(best(&routing), whole);
        assert_eq!(routing.inactive(|_, _| None), []);
    }

    #[test]
    fn next_hops_over_an_uplink_that_is_no_more_are_gone_for_good() {
        let routes = vec![
            route("0.0.0.0/0", 0, &[hop(0, 1), hop(1, 2)]),
            route("198.51.100.0/24", 0, &[hop(0, 1)]),
        ];
        let mut routing = Routing::default();
        set(&mut routing, &routes, |_, _| true);
        routing.remove_uplink(UplinkId(0));
        settle(&mut routing, |_, uplink| uplink != UplinkId(0));
        let left = Action::Via(hop(1, 2).into());
        assert_eq!(action(&routing, "198.51.100.1"), left);
        routing.follow_links();
        settle(&mut routing, |_, _| true);
        assert_eq!(action(&routing, "198.51.100.1"), left);
        assert_eq!(routing.inactive(|_, _| None), []);
    }

    #[test]
    fn a_revision_takes_as_many_calls_as_there_are_routes_and_packets_do_not_wait_for_it() {
        const ROUTES: u32 = 10_000;
        const BUDGET: usize = 50;
        let mut routing = Routing::default();
        let zero_is_down = |_, uplink| uplink != UplinkId(0);
        let number = |n: u32| std::net::Ipv4Addr::from(0x0a00_0000 + n);
        let one = |n| route(&format!("{}/32", number(n)), 0, &[hop(0, 1)]);
        let routes: Vec<_> = (0..ROUTES).map(one).collect();
        set(&mut routing, &routes, |_, _| true);
        let fallback = route("0.0.0.0/0", 0, &[hop(1, 2)]);
        routing
            .change(RouteChange::Set(fallback.clone()), |_, _| true)
            .unwrap();
        let moved = |routing: &Routing| routing.waiting.len();
        let follow = |routing: &mut Routing, is_up: &dyn Fn(VrfId, UplinkId) -> bool| {
            routing.follow_links();
            let mut calls = 0;
            while routing.is_revising() {
                let before = moved(routing);
                routing.revise(BUDGET, is_up);
                assert!(moved(routing).abs_diff(before) < BUDGET + PAGE);
                calls += 1;
                if !is_up(VrfId::DEFAULT, UplinkId(0)) {
                    for n in [0, ROUTES / 2, ROUTES - 1] {
                        let to = number(n).into();
                        let detour = routing.detour(VrfId::DEFAULT, to, is_up);
                        assert_eq!(routing.fib().adjacency(detour).action(), &fallback.action);
                    }
                }
            }
            calls
        };
        let least = ROUTES as usize / (BUDGET + PAGE);
        let calls = follow(&mut routing, &zero_is_down);
        assert!((least..4 * least).contains(&calls), "{calls} to be away");
        assert_eq!(moved(&routing), ROUTES as usize);
        assert_eq!(action(&routing, "10.0.0.1"), fallback.action);
        let calls = follow(&mut routing, &|_, _| true);
        assert!((least..4 * least).contains(&calls), "{calls} to be back");
        assert_eq!(moved(&routing), 0);
        assert_eq!(action(&routing, "10.0.0.1"), routes[1].action);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(Vec<Route>),
        Link(u32, bool),
        Remove(u32),
        Revise(usize),
    }

    fn routes() -> impl Strategy<Value = Vec<Route>> {
        let hops = proptest::collection::vec((0..UPLINKS, 1..3_u8), 0..4);
        let one = (0..3_usize, 0..2_u16, hops).prop_map(move |(prefix, metric, hops)| {
            let hops: Vec<_> = hops
                .into_iter()
                .map(|(uplink, host)| hop(uplink, host))
                .collect();
            route(PREFIXES[prefix], metric, &hops)
        });
        proptest::collection::vec(one, 0..6)
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => routes().prop_map(Step::Set),
            4 => (0..UPLINKS, any::<bool>()).prop_map(|(uplink, up)| Step::Link(uplink, up)),
            1 => (0..UPLINKS).prop_map(Step::Remove),
            4 => (1..8_usize).prop_map(Step::Revise),
        ]
    }

    proptest! {
        /// Whatever happened before, the FIB holds what is left of the configured routes once they
        /// are revised, and until then a detour leads to an uplink that is there.
        #[test]
        fn the_fib_follows_routes_and_links(steps in proptest::collection::vec(step(), 1..30)) {
            let mut routing = Routing::default();
            let mut configured: BTreeMap<RouteKey, Action> = BTreeMap::new();
            let mut up: BTreeSet<UplinkId> = (0..UPLINKS).map(UplinkId).collect();
            for step in steps {
                match step {
                    Step::Set(routes) => {
                        configured = routes.iter().map(|it| (key_of(it), it.action.clone())).collect();
                        set(&mut routing, &routes, |_, uplink| up.contains(&uplink));
                    }
                    Step::Link(uplink, is_up) => {
                        let uplink = UplinkId(uplink);
                        if is_up { up.insert(uplink) } else { up.remove(&uplink) };
                        routing.follow_links();
                    }
                    Step::Remove(uplink) => {
                        let gone = UplinkId(uplink);
                        up.remove(&gone);
                        configured = configured
                            .into_iter()
                            .filter_map(|(key, it)| Some((key, it.without(|hop| hop == gone)?)))
                            .collect();
                        routing.remove_uplink(gone);
                        settle(&mut routing, |_, uplink| up.contains(&uplink));
                    }
                    Step::Revise(budget) => {
                        routing.revise(budget, |_, uplink| up.contains(&uplink));
                    }
                }
                for prefix in PREFIXES {
                    let net: IpNet = prefix.parse().unwrap();
                    let is_up = |_, uplink| up.contains(&uplink);
                    let found = routing.detour(VrfId::DEFAULT, net.addr(), is_up);
                    let found = routing.fib().adjacency(found).action();
                    prop_assert!(usable(found, |uplink| is_up(VrfId::DEFAULT, uplink)).is_some());
                }
                if routing.is_revising() {
                    continue;
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
                let down = |_, uplink| {
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
