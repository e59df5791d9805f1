//! The service manager's store of descriptors (systemd: `FileDescriptorStoreMax=`).
//!
//! What is stored outlives the process, however it ends, and comes back to the next one: each
//! descriptor under a name, and the manifest as a file in memory. Descriptors come before the manifest
//! that names them, and a manifest is removed after the one that replaces it: the store holds a whole
//! one at any time. Of two the later one counts.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;
use sd_notify::NotifyState;
use tracing::{info, warn};

use super::manifest::{Descriptor, Inheritance, Manifest};
use super::wire::{read_text, text_file};

/// Names of descriptors begin with this; their number follows.
const DEVICE: &str = "nos-relay-device-";
/// Names of manifests begin with this; a number that grows follows.
const MANIFEST: &str = "nos-relay-manifest-";

/// The store, if the service manager keeps one for this process.
#[derive(Debug, Default)]
pub struct Store {
    /// How many descriptors it takes; 0 without a store.
    room: usize,
    stored: BTreeMap<Descriptor, ()>,
    manifest: Option<(u64, Vec<u8>)>,
    last: u64,
    /// It was said that there is no room.
    said: bool,
}

impl Store {
    /// The store that the environment speaks of: `FDSTORE` is how many it takes (systemd 254).
    #[must_use]
    pub fn of_environment() -> Self {
        let room = std::env::var("FDSTORE").ok();
        let room = room.and_then(|room| room.parse().ok());
        let notified = std::env::var_os("NOTIFY_SOCKET").is_some();
        Self {
            room: room.filter(|_| notified).unwrap_or(0),
            stored: BTreeMap::new(),
            manifest: None,
            last: 0,
            said: false,
        }
    }

    /// None, whatever the environment says.
    #[must_use]
    pub fn none() -> Self {
        Self {
            room: 0,
            stored: BTreeMap::new(),
            manifest: None,
            last: 0,
            said: false,
        }
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.room > 0
    }

    /// Notes what an earlier process has stored.
    fn adopt(&mut self, inheritance: &Inheritance, number: u64, text: Vec<u8>) {
        let numbers = inheritance.manifest.descriptors.iter();
        self.stored = numbers.map(|number| (*number, ())).collect();
        self.manifest = Some((number, text));
        self.last = number;
    }

    /// Stores what the manifest names, and forgets what it does not. `open` gives a descriptor.
    pub fn keep(
        &mut self,
        manifest: &Manifest,
        open: impl Fn(Descriptor) -> io::Result<Option<OwnedFd>>,
    ) {
        if !self.is_open() {
            return;
        }
        // Two manifests while one replaces the other.
        if manifest.descriptors.len() + 2 > self.room {
            if !std::mem::replace(&mut self.said, true) {
                warn!(
                    room = self.room,
                    needed = manifest.descriptors.len() + 2,
                    "the service manager's store is too small; nothing is kept there"
                );
            }
            return self.clear();
        }
        if let Err(error) = self.try_keep(manifest, open) {
            warn!(%error, "the service manager's store is not what it should be");
        }
    }

    fn try_keep(
        &mut self,
        manifest: &Manifest,
        open: impl Fn(Descriptor) -> io::Result<Option<OwnedFd>>,
    ) -> io::Result<()> {
        let text = serde_json::to_vec(manifest)?;
        if self.manifest.as_ref().is_some_and(|(_, old)| *old == text) {
            return Ok(());
        }
        for &descriptor in &manifest.descriptors {
            if !self.stored.contains_key(&descriptor)
                && let Some(open) = open(descriptor)?
            {
                store(&device_name(descriptor), &open)?;
                self.stored.insert(descriptor, ());
            }
        }
        let number = self.last + 1;
        store(&format!("{MANIFEST}{number}"), &text_file(&text)?)?;
        self.last = number;
        if let Some((old, _)) = self.manifest.replace((number, text)) {
            remove(&format!("{MANIFEST}{old}"))?;
        }
        let named = &manifest.descriptors;
        let gone: Vec<_> = self
            .stored
            .keys()
            .filter(|key| !named.contains(key))
            .copied()
            .collect();
        for descriptor in gone {
            remove(&device_name(descriptor))?;
            self.stored.remove(&descriptor);
        }
        Ok(())
    }

    /// Lets go of descriptors, and waits until it has: their devices are about to be closed, and shall
    /// go with that. The manifest that names them counts without them.
    pub fn forget(&mut self, descriptors: &[Descriptor]) {
        let mut any = false;
        for descriptor in descriptors {
            if self.stored.remove(descriptor).is_some() {
                any = true;
                if let Err(error) = remove(&device_name(*descriptor)) {
                    warn!(%error, "a device stays in the service manager's store");
                }
            }
        }
        if any && let Err(error) = barrier() {
            warn!(%error, "the service manager does not say that it let go of devices");
        }
    }

    /// Empties it.
    pub fn clear(&mut self) {
        let manifest = self
            .manifest
            .take()
            .map(|(number, _)| format!("{MANIFEST}{number}"));
        let devices = std::mem::take(&mut self.stored)
            .into_keys()
            .map(device_name);
        let all: Vec<_> = manifest.into_iter().chain(devices).collect();
        for name in &all {
            if let Err(error) = remove(name) {
                warn!(%error, name, "it stays in the service manager's store");
            }
        }
        if !all.is_empty()
            && let Err(error) = barrier()
        {
            warn!(%error, "the service manager does not say that its store is empty");
        }
    }
}

fn device_name(Descriptor(number): Descriptor) -> String {
    format!("{DEVICE}{number}")
}

fn store(name: &str, descriptor: &OwnedFd) -> io::Result<()> {
    let state = [
        NotifyState::FdStore,
        NotifyState::FdName(name),
        // A device that is down polls as an error, and is to stay all the same.
        NotifyState::Custom("FDPOLL=0"),
    ];
    sd_notify::notify_with_fds(&state, &[descriptor.as_fd()])
}

fn remove(name: &str) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
}

/// How long the service manager may take to carry out what it was told.
const BARRIER_LIMIT: u16 = 5_000;

/// Waits until the service manager has carried out all that it was told (sd_notify_barrier(3)).
fn barrier() -> io::Result<()> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[theirs.as_fd()])?;
    drop(theirs);
    // It closes the other end then, and says nothing.
    let mut ends = [PollFd::new(ours.as_fd(), PollFlags::empty())];
    match poll(&mut ends, PollTimeout::from(BARRIER_LIMIT))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// What an earlier process has left with the service manager, and the store, which holds it still.
/// `None` where there is nothing of use.
#[must_use]
pub fn received() -> (Store, Option<Inheritance>) {
    let mut store = Store::of_environment();
    let listed = match sd_notify::listen_fds_with_names() {
        Ok(listed) => listed,
        Err(error) => {
            warn!(%error, "what the service manager passes is not understood");
            return (store, None);
        }
    };
    let mut devices = Vec::new();
    let mut manifests = BTreeMap::new();
    for (number, name) in listed {
        // SAFETY: the service manager has passed this descriptor to this process, and says so once;
        // nobody else has taken it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        let number_of = |prefix| name.strip_prefix(prefix)?.parse::<u64>().ok();
        if let Some(number) = number_of(MANIFEST) {
            manifests.insert(number, descriptor);
        } else if let Some(number) = number_of(DEVICE).and_then(|number| number.try_into().ok()) {
            devices.push((Descriptor(number), descriptor));
        }
    }
    let Some((number, file)) = manifests.pop_last() else {
        return (store, None);
    };
    // One that was being replaced.
    for number in manifests.keys() {
        let _ = remove(&format!("{MANIFEST}{number}"));
    }
    let read = read_text(file);
    let joined = read.and_then(|text| Ok((Inheritance::new(&text, devices)?, text)));
    match joined {
        Ok((inheritance, text)) => {
            store.adopt(&inheritance, number, text);
            info!(
                program = inheritance.manifest.program,
                descriptors = inheritance.manifest.descriptors.len(),
                "an earlier run has left its devices with the service manager"
            );
            (store, Some(inheritance))
        }
        Err(error) => {
            warn!(%error, "what an earlier run has left with the service manager is of no use");
            let _ = remove(&format!("{MANIFEST}{number}"));
            (store, None)
        }
    }
}
