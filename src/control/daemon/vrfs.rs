//! Numbers of VRFs: the data path knows them by these, operators by their names.

use std::collections::{BTreeMap, BTreeSet};

use nos_shim::ident::VrfId;

use crate::control::config::{Config, VrfName};
use crate::control::plan::State;

use super::live::StepError;

/// Which VRF has which number. It keeps it as long as anything is in it; the default one has zero.
#[derive(Debug, Default)]
pub(super) struct VrfNumbers {
    by_name: BTreeMap<VrfName, VrfId>,
}

impl VrfNumbers {
    /// Gives those of these VRFs that have no number the lowest free ones, in this order. When all
    /// 32,767 are taken, the others have none.
    pub(super) fn assign<'a>(&mut self, names: impl IntoIterator<Item = &'a VrfName>) {
        let fresh: Vec<_> = names
            .into_iter()
            .filter(|name| !name.is_default() && !self.by_name.contains_key(*name))
            .collect();
        if fresh.is_empty() {
            return;
        }
        let taken: BTreeSet<u16> = self.by_name.values().map(|id| id.0).collect();
        let mut free = (1..VrfId::COUNT).filter(|number| !taken.contains(number));
        for name in fresh {
            if !self.by_name.contains_key(name)
                && let Some(number) = free.next()
            {
                self.by_name.insert(name.clone(), VrfId(number));
            }
        }
    }

    /// Takes the numbers back of all other VRFs than these.
    pub(super) fn retain(&mut self, names: &BTreeSet<&VrfName>) {
        self.by_name.retain(|name, _| names.contains(name));
    }

    /// The number of a VRF that has one.
    pub(super) fn number(&self, name: &VrfName) -> Option<VrfId> {
        match name {
            VrfName::Default => Some(VrfId::DEFAULT),
            VrfName::Named(_) => self.by_name.get(name).copied(),
        }
    }

    /// The number of a VRF, for a step that needs it.
    pub(super) fn id(&self, name: &VrfName) -> Result<VrfId, StepError> {
        let missing = || StepError::new(format_args!("VRF '{name}': all 32,767 are in use"));
        self.number(name).ok_or_else(missing)
    }

    /// Name by number.
    pub(super) fn names(&self) -> BTreeMap<VrfId, VrfName> {
        let named = self.by_name.iter().map(|(name, &id)| (id, name.clone()));
        named.chain([(VrfId::DEFAULT, VrfName::Default)]).collect()
    }
}

/// The VRFs that a configuration names, in the order of the file.
pub(super) fn named(config: &Config) -> impl Iterator<Item = &VrfName> {
    let uplinks = config.uplinks.iter().map(|uplink| &uplink.vrf);
    let containers = config.containers.iter().map(|container| &container.vrf);
    let routes = config.routes.iter().map(|route| &route.vrf);
    let all = uplinks.chain(containers).chain(routes);
    all.chain(config.services.keys())
}

/// The VRFs that something is in.
pub(super) fn used(state: &State) -> impl Iterator<Item = &VrfName> {
    let networks = state.networks.values().map(|network| &network.vrf);
    let claims = state.claims.values().map(|claim| &claim.vrf);
    let routes = state.routes.iter().map(|route| &route.vrf);
    let behind = state.networks.values().flat_map(|network| &network.behind);
    let all = networks.chain(behind.map(|(vrf, _)| vrf));
    let all = all.chain(claims).chain(routes);
    all.chain(state.services.keys())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<VrfName> {
        text.split(' ').map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn a_vrf_keeps_its_number_as_long_as_it_is_named() {
        let mut numbers = VrfNumbers::default();
        let all = names("red default blue red green");
        numbers.assign(&all);
        let of = |numbers: &VrfNumbers, name: &str| {
            let number = numbers.number(&name.parse().unwrap());
            number.map(|id| id.0)
        };
        let known = |numbers: &VrfNumbers| {
            ["default", "red", "blue", "green", "grey"].map(|name| of(numbers, name))
        };
        assert_eq!(known(&numbers), [Some(0), Some(1), Some(2), Some(3), None]);
        let left = names("green default red");
        numbers.retain(&left.iter().collect());
        assert_eq!(known(&numbers), [Some(0), Some(1), None, Some(3), None]);
        numbers.assign(&names("grey green blue"));
        assert_eq!(
            known(&numbers),
            [Some(0), Some(1), Some(4), Some(3), Some(2)]
        );
        let listed: Vec<_> = numbers.names().into_values().collect();
        assert_eq!(listed, names("default red grey green blue"));
    }

    #[test]
    fn without_a_number_a_vrf_is_refused() {
        let mut numbers = VrfNumbers::default();
        let name = |n: u32| -> VrfName { format!("v{n}").parse().unwrap() };
        let all: Vec<_> = (0..=32_767).map(name).collect();
        numbers.assign(&all);
        assert_eq!(numbers.id(&name(32_766)), Ok(VrfId(32_767)));
        let refused = numbers.id(&name(32_767)).unwrap_err();
        assert!(refused.to_string().contains("'v32767'"), "{refused}");
    }
}
