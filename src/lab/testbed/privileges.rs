//! What this process may do, and how an ordinary user gets namespaces all the same.

use std::fmt;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Uid, fork, write};
use thiserror::Error;

/// What this process may do about network namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Privileges {
    /// It can make them right away.
    Root,
    /// It can make them after [`enter_user_namespace`], or in a child set up by
    /// [`user_namespace_on_spawn`].
    UserNamespace,
    /// It cannot, for this reason.
    Nothing(UserNamespaceError),
}

/// Why the kernel gives an ordinary user no namespaces.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UserNamespaceError {
    /// unshare(2) changes the user namespace of single-threaded processes only.
    #[error("a process with {0} threads cannot enter a user namespace; do it first in main")]
    Threads(usize),
    /// The kernel said no.
    #[error("cannot make a user and network namespace: {error}{hint}", error = io::Error::from(*.0), hint = hint(*.0))]
    Refused(Errno),
}

/// Says what is possible, without changing anything.
#[must_use]
pub fn privileges() -> Privileges {
    let network_namespace = || unshare(CloneFlags::CLONE_NEWNET);
    // Whether the uid is 0 says little: containers run as root without capabilities.
    if in_child(network_namespace).is_ok() {
        return Privileges::Root;
    }
    let maps = IdMaps::of_caller();
    // Some security modules grant the user namespace but no rights in it.
    match in_child(|| become_root(&maps).and_then(|()| network_namespace())) {
        Ok(()) => Privileges::UserNamespace,
        Err(error) => Privileges::Nothing(UserNamespaceError::Refused(error)),
    }
}

/// Whether `/dev/net/tun` can be opened, without which there is no TAP.
///
/// # Errors
/// The kernel's reason. In a user namespace it is often the mode of the device file.
pub fn tun_access() -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).open("/dev/net/tun")?;
    Ok(())
}

/// Moves this process into a user namespace where it is root, and an empty network namespace.
///
/// Call it first in `main`: it takes a process that has one thread.
///
/// # Errors
/// There are other threads, or the kernel refuses: no user namespaces, their number exhausted,
/// or a security module.
pub fn enter_user_namespace() -> Result<(), UserNamespaceError> {
    let maps = IdMaps::of_caller();
    match std::fs::read_dir("/proc/self/task").map(Iterator::count) {
        Ok(threads) if threads > 1 => Err(UserNamespaceError::Threads(threads)),
        _ => become_root(&maps).map_err(UserNamespaceError::Refused),
    }
}

/// Makes the child that `command` starts root in a user namespace, in an empty network namespace.
pub fn user_namespace_on_spawn(command: &mut Command) -> &mut Command {
    let maps = IdMaps::of_caller();
    // SAFETY: between fork and exec the closure makes system calls only, on memory prepared
    // before; it takes no lock and allocates nothing.
    unsafe { command.pre_exec(move || become_root(&maps).map_err(io::Error::from)) }
}

/// The lines for uid_map and gid_map, made before fork.
struct IdMaps {
    uid: String,
    gid: String,
}

impl IdMaps {
    /// Root inside is the caller outside.
    fn of_caller() -> Self {
        Self {
            uid: format!("0 {} 1", Uid::effective()),
            gid: format!("0 {} 1", Gid::effective()),
        }
    }
}

/// The change itself; between fork and exec only async-signal-safe calls are allowed.
fn become_root(maps: &IdMaps) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
    // Without this an ordinary user may not write a gid_map (user_namespaces(7)).
    write_file(c"/proc/self/setgroups", "deny")?;
    write_file(c"/proc/self/uid_map", &maps.uid)?;
    write_file(c"/proc/self/gid_map", &maps.gid)
}

fn write_file(path: &std::ffi::CStr, text: &str) -> nix::Result<()> {
    let file = open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    write(&file, text.as_bytes()).map(drop)
}

/// Tries something in a child, which makes system calls only.
///
/// Not on a thread: one that was joined may linger in the kernel for a moment, and
/// [`enter_user_namespace`] wants none besides the caller's.
fn in_child(attempt: impl FnOnce() -> nix::Result<()>) -> nix::Result<()> {
    // SAFETY: the child makes system calls only and leaves by _exit: no lock, no allocation.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let code = attempt().err().map_or(0, |errno| errno as i32);
            // SAFETY: _exit ends the child at once and touches nothing of the parent's.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, code) => Err(Errno::from_raw(code)),
            _ => Err(Errno::EPERM),
        },
    }
}

fn hint(error: Errno) -> &'static str {
    match error {
        Errno::ENOSPC | Errno::EUSERS => "; user.max_user_namespaces allows no more",
        Errno::EPERM | Errno::EACCES => {
            "; a container, seccomp or a security module forbids it (on Ubuntu: \
             kernel.apparmor_restrict_unprivileged_userns)"
        }
        Errno::EINVAL | Errno::ENOSYS => "; the kernel lacks user namespaces",
        _ => "",
    }
}

impl fmt::Display for Privileges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("namespaces can be made"),
            Self::UserNamespace => f.write_str("namespaces can be made in a user namespace"),
            Self::Nothing(reason) => reason.fmt(f),
        }
    }
}
