//! Numbers of networks: the NOS tells them apart by these, operators by their names.

use std::collections::{BTreeMap, BTreeSet};

use nos_shim::ident::NetworkId;

use crate::control::config::Name;

/// Which network has which number. It keeps it as long as anybody is in it.
#[derive(Debug, Default)]
pub(super) struct NetworkNumbers {
    by_name: BTreeMap<Name, NetworkId>,
}

impl NetworkNumbers {
    /// The number of a network; of none, that of all containers that name none.
    pub(super) fn number(&mut self, name: Option<&Name>) -> NetworkId {
        let Some(name) = name else {
            return NetworkId::DEFAULT;
        };
        if let Some(&known) = self.by_name.get(name) {
            return known;
        }
        let taken: BTreeSet<NetworkId> = self.by_name.values().copied().collect();
        // There are fewer containers than numbers.
        let free = (1..=u32::MAX).map(NetworkId).find(|id| !taken.contains(id));
        let id = free.unwrap_or_default();
        self.by_name.insert(name.clone(), id);
        id
    }

    /// Takes the numbers back of all other networks than these.
    pub(super) fn retain(&mut self, names: &BTreeSet<&Name>) {
        self.by_name.retain(|name, _| names.contains(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_has_a_number_of_its_own_and_keeps_it() {
        let mut numbers = NetworkNumbers::default();
        let [red, blue] = ["red", "blue"].map(|name| name.parse::<Name>().unwrap());
        assert_eq!(numbers.number(None), NetworkId::DEFAULT);
        let first = numbers.number(Some(&red));
        let second = numbers.number(Some(&blue));
        assert!(first != second && first != NetworkId::DEFAULT && second != NetworkId::DEFAULT);
        assert_eq!(numbers.number(Some(&red)), first);
        numbers.retain(&[&blue].into());
        let green = "green".parse().unwrap();
        assert_eq!(numbers.number(Some(&green)), first);
        assert_eq!(numbers.number(Some(&blue)), second);
    }
}
