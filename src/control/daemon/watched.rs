//! Which containers the kernel's watch follows, and by what number.

use std::collections::{BTreeMap, HashMap};

use tracing::{debug, warn};

use crate::control::config::Name;
use crate::control::kernel::watch::{KernelWatch, NetnsName, WatchKey, Watched};
use crate::control::kernel::{Namespace, NamespaceError, NamespaceId};

use super::live::Live;

/// Numbers and names of what is watched.
#[derive(Debug, Default)]
pub(super) struct WatchedContainers {
    keys: BTreeMap<Name, WatchKey>,
    names: HashMap<WatchKey, Name>,
    /// Namespaces that are watched inside.
    inside: HashMap<WatchKey, NamespaceId>,
    last: u64,
    /// It was said that nothing can be watched inside.
    said: bool,
}

impl WatchedContainers {
    pub(super) fn name_of(&self, key: WatchKey) -> Option<&Name> {
        self.names.get(&key)
    }

    /// Follows where the name of a container's namespace leads.
    pub(super) fn watch(
        &mut self,
        watch: &mut KernelWatch,
        container: &Name,
        netns: &NetnsName,
    ) -> Watched {
        let key = match self.keys.get(container) {
            Some(key) => *key,
            None => {
                self.last += 1;
                let key = WatchKey(self.last);
                self.keys.insert(container.clone(), key);
                self.names.insert(key, container.clone());
                key
            }
        };
        watch.watch_name(key, netns)
    }

    /// Watches inside of all containers that are attached. Returns those of which nothing that
    /// happened before now was seen.
    pub(super) fn watch_inside(&mut self, watch: &mut KernelWatch, live: &Live) -> Vec<Name> {
        let attached = live.containers.iter().filter_map(|(name, container)| {
            let link = container.link.as_ref()?;
            Some((name, link))
        });
        let new = attached.filter(|(name, link)| {
            self.watch_namespace(watch, name, link.namespace_id(), || link.namespace())
        });
        new.map(|(name, _)| name.clone()).collect()
    }

    /// Watches inside of a container's namespace, which is opened if it is not watched yet. Returns
    /// whether it was not, and is now: what happened in it before was not seen.
    pub(super) fn watch_namespace(
        &mut self,
        watch: &mut KernelWatch,
        name: &Name,
        id: NamespaceId,
        open: impl FnOnce() -> Result<Namespace, NamespaceError>,
    ) -> bool {
        let Some(&key) = self.keys.get(name) else {
            return false;
        };
        if self.inside.get(&key) == Some(&id) {
            return false;
        }
        // Without its name there is a new event, and nothing to watch until then.
        let Ok(namespace) = open() else {
            return false;
        };
        match watch.watch_inside(key, &namespace) {
            Ok(()) => {
                self.inside.insert(key, namespace.id());
                return true;
            }
            Err(error) if self.said => debug!(container = %name, "{error}"),
            Err(error) => {
                self.said = true;
                warn!(container = %name, "{error}; changes inside are repaired at a reload only");
            }
        }
        false
    }

    /// The namespace has ended, and is watched no more.
    pub(super) fn ended(&mut self, key: WatchKey) {
        self.inside.remove(&key);
    }

    /// Forgets containers that are wanted no more.
    pub(super) fn retain(&mut self, watch: &mut KernelWatch, wanted: impl Fn(&Name) -> bool) {
        let (names, inside) = (&mut self.names, &mut self.inside);
        self.keys.retain(|name, key| {
            let stays = wanted(name);
            if !stays {
                watch.forget(*key);
                names.remove(key);
                inside.remove(key);
            }
            stays
        });
    }
}
