//! Static routes, as the NOS was told of them.

use std::collections::HashMap;

use nos_shim::fib::{Action, Route, RouteChange, RouteKey};

/// The most changes that the NOS makes at once: no packet is moved meanwhile.
pub(super) const CHANGES: usize = 64;

/// What the NOS was told, by which it is told only what differs.
#[derive(Debug, Default)]
pub(super) struct ToldRoutes {
    /// Without an action where the NOS may have another by now, or none.
    routes: HashMap<RouteKey, Option<Action>>,
}

impl ToldRoutes {
    /// The NOS may have taken next hops out of any route.
    pub(super) fn doubt(&mut self) {
        self.routes.values_mut().for_each(|action| *action = None);
    }

    /// What makes `wanted` all static routes; of several with the same key the last counts. What is
    /// new comes first, so that there is always a route for what has one before and after.
    pub(super) fn difference(&self, wanted: Vec<Route>) -> Vec<RouteChange> {
        let named = wanted.into_iter().map(|route| (key_of(&route), route));
        let wanted: HashMap<_, _> = named.collect();
        let gone = self.routes.keys().filter(|key| !wanted.contains_key(*key));
        let gone: Vec<_> = gone.copied().map(RouteChange::Remove).collect();
        let new = wanted.into_iter().filter(|(key, route)| {
            let told = self.routes.get(key).and_then(Option::as_ref);
            told != Some(&route.action)
        });
        let new = new.map(|(_, route)| RouteChange::Set(route));
        new.chain(gone).collect()
    }

    /// The NOS has been told of `changes`, and has made all of them, or perhaps not.
    pub(super) fn note(&mut self, changes: Vec<RouteChange>, made: bool) {
        for change in changes {
            match change {
                RouteChange::Set(route) => {
                    let key = key_of(&route);
                    self.routes.insert(key, made.then_some(route.action));
                }
                RouteChange::Remove(key) if made => drop(self.routes.remove(&key)),
                RouteChange::Remove(_) => {}
            }
        }
    }
}

fn key_of(route: &Route) -> RouteKey {
    (route.vrf, route.prefix.trunc(), route.source)
}

#[cfg(test)]
mod tests {
    use nos_shim::fib::Source;
    use nos_shim::ident::VrfId;

    use super::*;

    fn route(prefix: &str, action: Action) -> Route {
        Route {
            vrf: VrfId::DEFAULT,
            prefix: prefix.parse().unwrap(),
            source: Source::Static { metric: 0 },
            action,
        }
    }

    fn tell(told: &mut ToldRoutes, wanted: &[Route], made: bool) -> Vec<RouteChange> {
        let changes = told.difference(wanted.to_vec());
        told.note(changes.clone(), made);
        changes
    }

    #[test]
    fn only_what_differs_is_told_and_what_goes_last() {
        let mut told = ToldRoutes::default();
        let kept = route("192.0.2.0/24", Action::Blackhole);
        let old = route("198.51.100.0/24", Action::Blackhole);
        let new = route("198.51.100.0/25", Action::Unreachable);
        assert_eq!(tell(&mut told, &[kept.clone(), old.clone()], true).len(), 2);
        let expected = [
            RouteChange::Set(new.clone()),
            RouteChange::Remove(key_of(&old)),
        ];
        let wanted = [kept.clone(), new];
        assert_eq!(tell(&mut told, &wanted, true), expected);
        assert_eq!(tell(&mut told, &wanted, true), []);
        told.doubt();
        assert_eq!(tell(&mut told, &wanted, true).len(), 2);
    }

    #[test]
    fn what_was_refused_is_told_again_and_taken_back_if_nobody_wants_it() {
        let mut told = ToldRoutes::default();
        let wanted = [route("192.0.2.77/24", Action::Blackhole)];
        let set = [RouteChange::Set(wanted[0].clone())];
        assert_eq!(tell(&mut told, &wanted, false), set);
        assert_eq!(tell(&mut told, &wanted, false), set);
        let removed = [RouteChange::Remove(key_of(&wanted[0]))];
        assert_eq!(tell(&mut told, &[], false), removed);
        assert_eq!(tell(&mut told, &[], true), removed);
        assert_eq!(tell(&mut told, &[], true), []);
    }

    #[test]
    fn the_last_of_several_with_one_key_counts() {
        let told = ToldRoutes::default();
        let wanted = ["192.0.2.1/24", "192.0.2.2/24"].map(|net| route(net, Action::Blackhole));
        let last = [RouteChange::Set(wanted[1].clone())];
        assert_eq!(told.difference(wanted.to_vec()), last);
    }
}
