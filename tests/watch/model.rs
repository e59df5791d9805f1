//! Any sequence of changes to a tree of directories: a name that leads elsewhere is an event.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use fastrand::Rng;
use nos_relay::control::kernel::Namespace;
use nos_relay::control::kernel::watch::{KernelEvent, NetnsName, WatchKey};

use crate::harness::{Mounted, Watching, mount_empty, unmount};
use crate::support::lab_test;

/// Sequences of changes, and changes in each.
const RUNS: u64 = 60;
const CHANGES: usize = 60;

/// What names and targets of links are made of. There are few, so that changes concern the names.
const NAMES: [&str; 3] = ["a", "b", "c"];
const TARGETS: [&str; 8] = ["a", "b", "c", "../a", "../b/c", "a/b", "../c/..", "./b"];

/// Where the tree is: so deep that no link leads out of the test's own directory.
const TOP: &str = "1/2/3/4";

/// A tree with watched names, which need not exist.
struct Tree {
    root: Mounted,
    names: Vec<PathBuf>,
    watching: Watching,
    random: Rng,
}

/// What a path leads to, as std sees it.
fn file(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl Tree {
    fn new(seed: u64) -> Self {
        let mut tree = Self {
            root: Mounted::new(),
            names: Vec::new(),
            watching: Watching::new(&Namespace::current().unwrap()),
            random: Rng::with_seed(seed),
        };
        fs::create_dir_all(tree.root.at(TOP)).unwrap();
        tree.names = (0..12).map(|_| tree.any_path()).collect();
        for (name, key) in tree.names.iter().zip(0..) {
            let name = NetnsName::Path(name.clone());
            tree.watching.watch.watch_name(WatchKey(key), &name);
        }
        tree
    }

    fn any_path(&mut self) -> PathBuf {
        let depth = self.random.usize(1..=3);
        let parts: Vec<_> = (0..depth)
            .filter_map(|_| self.random.choice(NAMES))
            .collect();
        self.root.at(TOP).join(parts.join("/"))
    }

    /// Changes the tree somehow. What cannot be done is left undone.
    fn change(&mut self) -> String {
        let [path, other] = [self.any_path(), self.any_path()];
        let target = TARGETS[self.random.usize(..TARGETS.len())];
        match self.random.u32(..100) {
            0..25 => format!("mkdir {path:?}: {:?}", fs::create_dir(&path)),
            25..45 => format!("create {path:?}: {:?}", File::create_new(&path).map(drop)),
            45..55 => format!("link {path:?} to {target}: {:?}", symlink(target, &path)),
            55..70 => format!(
                "rename {path:?} to {other:?}: {:?}",
                fs::rename(&path, &other)
            ),
            70..83 => format!("unlink {path:?}: {:?}", fs::remove_file(&path)),
            83..94 => format!("remove {path:?}: {:?}", fs::remove_dir_all(&path)),
            94..98 => format!("mount {path:?}: {:?}", mount_empty(&path)),
            _ => format!("unmount {path:?}: {:?}", unmount(&path)),
        }
    }

    fn files(&self) -> Vec<Option<(u64, u64)>> {
        self.names.iter().map(|name| file(name)).collect()
    }

    /// Waits for an event of each name that leads elsewhere than `before`.
    fn expect(&mut self, before: &[Option<(u64, u64)>], changes: &[String]) {
        let after = self.files();
        let differs = |&(key, _): &(u64, _)| {
            let at = usize::try_from(key).unwrap();
            before[at] != after[at]
        };
        let keys = (0..).zip(&self.names).filter(differs);
        let mut wanted: BTreeSet<_> = keys.map(|(key, _)| WatchKey(key)).collect();
        while !wanted.is_empty() {
            let what = format!("{wanted:?} of {:?} after {changes:#?}", self.names);
            let key = self.watching.next(&what, |event| match event {
                KernelEvent::Name { key } => Some(*key),
                _ => None,
            });
            wanted.remove(&key);
        }
        self.watching.settle();
    }
}

lab_test! {
    fn name_that_leads_elsewhere_is_an_event() {
        for seed in 0..RUNS {
            let mut tree = Tree::new(seed);
            let mut changes = vec![format!("seed {seed}")];
            while changes.len() < CHANGES {
                let before = tree.files();
                for _ in 0..tree.random.usize(1..=3) {
                    changes.push(tree.change());
                }
                tree.expect(&before, &changes);
            }
        }
    }
}
