//! Names of namespaces in a mount namespace of a test's own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where its network cannot be built"
)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nos_relay::lab::testbed::LabNamespace;

/// What `ip netns add` does.
pub(crate) fn add_name(lab: &LabNamespace, name: &Path) {
    File::create_new(name).unwrap();
    bind(lab, name);
}

/// What `ip netns delete` does.
pub(crate) fn delete_name(name: &Path) {
    unmount(name).unwrap();
    fs::remove_file(name).unwrap();
}

/// An empty directory, in a mount namespace of the calling thread's own.
///
/// Names are watched as this thread sees them. Its mounts end with the value.
pub(crate) struct Mounted {
    directory: tempfile::TempDir,
}

const NOTHING: Option<&str> = None;

impl Mounted {
    pub(crate) fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(NOTHING, "/", NOTHING, private, NOTHING).unwrap();
        let directory = tempfile::tempdir().unwrap();
        mount_empty(directory.path()).unwrap();
        Self { directory }
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Else the directory would be busy, and stay.
        let _ = unmount(self.directory.path());
    }
}

/// Mounts an empty file system over a directory.
pub(crate) fn mount_empty(directory: &Path) -> nix::Result<()> {
    let tmpfs = Some("tmpfs");
    mount(tmpfs, directory, tmpfs, MsFlags::empty(), NOTHING)
}

/// Mounts the namespace over a file.
pub(crate) fn bind(lab: &LabNamespace, name: &Path) {
    mount(Some(&lab.path()), name, NOTHING, MsFlags::MS_BIND, NOTHING).unwrap();
}

pub(crate) fn unmount(name: &Path) -> nix::Result<()> {
    umount2(name, MntFlags::MNT_DETACH)
}
