//! A namespace that belongs to nobody but the value that names it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit};

use super::error::LabError;
use crate::control::kernel::netlink::Netlink;
use crate::control::kernel::{Namespace, sysctl};

/// A network namespace without a name, with `lo` up.
///
/// Duplicate address detection and router solicitation are off, so that addresses can be used at
/// once and nothing is on the wire but what a test sends.
#[derive(Clone, Debug)]
pub struct LabNamespace {
    namespace: Namespace,
    /// What [`Self::path`] leads through.
    named: Arc<OwnedFd>,
}

impl LabNamespace {
    /// Makes one; `label` appears in messages only.
    ///
    /// # Errors
    /// The kernel refuses a new namespace: see [`super::privileges`].
    pub fn new(label: &str) -> Result<Self, LabError> {
        let lab = Self::untouched(label)?;
        let netlink = Netlink::open(&lab.namespace)?;
        netlink.set_up(&netlink.existing_link("lo")?)?;
        for key in [
            "all/accept_dad",
            "default/accept_dad",
            "default/dad_transmits",
            "default/router_solicitations",
        ] {
            lab.ipv6_sysctl(key, "0")?;
        }
        Ok(lab)
    }

    /// Makes one as the kernel hands it out: `lo` down, every setting at its default.
    ///
    /// # Errors
    /// The kernel refuses a new namespace: see [`super::privileges`].
    pub fn untouched(label: &str) -> Result<Self, LabError> {
        let namespace = Namespace::anonymous(label)?;
        let named = late_number(&namespace)
            .map_err(|error| LabError::io(format!("name {namespace}"), error))?;
        Ok(Self {
            namespace,
            named: Arc::new(named),
        })
    }

    /// The namespace itself.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A path that names it for this process and its children, for as long as this value lives.
    /// It leads nowhere for a long time after that.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let fd = self.named.as_raw_fd();
        PathBuf::from(format!("/proc/{}/fd/{fd}", std::process::id()))
    }

    /// Runs `task` on a thread inside: see [`Namespace::run`].
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn run<R: Send>(&self, task: impl FnOnce() -> R + Send) -> Result<R, LabError> {
        Ok(self.namespace.run(task)?)
    }

    /// Like [`LabNamespace::run`] for a task that can fail: `action` says in the error what was
    /// tried.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the task failed.
    pub fn try_run<R: Send>(
        &self,
        action: &str,
        task: impl FnOnce() -> io::Result<R> + Send,
    ) -> Result<R, LabError> {
        self.run(task)?
            .map_err(|error| LabError::io(format!("{action} in {}", self.namespace), error))
    }

    /// Makes the child that `command` starts live inside.
    pub fn hold<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let namespace = self.namespace.clone();
        // SAFETY: between fork and exec the closure makes one system call, setns, on a descriptor
        // that it owns; it takes no lock and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
            })
        }
    }

    /// Starts `command` inside.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(&self, mut command: Command) -> Result<Child, LabError> {
        let child = self.hold(&mut command).spawn();
        child.map_err(|error| LabError::io(format!("start {command:?}"), error))
    }

    /// Sets `/proc/sys/<key>` inside, as in `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// There is no such setting, or the kernel refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<(), LabError> {
        sysctl::write(&self.namespace, key, value)?
            .map_err(|error| self.sysctl_error("set", key, error))
    }

    /// Reads `/proc/sys/<key>` inside.
    ///
    /// # Errors
    /// There is no such setting.
    pub fn read_sysctl(&self, key: &str) -> Result<String, LabError> {
        sysctl::read(&self.namespace, key)?.map_err(|error| self.sysctl_error("read", key, error))
    }

    /// Sets `/proc/sys/net/ipv6/conf/<key>`, on kernels with IPv6.
    fn ipv6_sysctl(&self, key: &str, value: &str) -> Result<(), LabError> {
        let key = format!("net/ipv6/conf/{key}");
        match sysctl::write(&self.namespace, &key, value)? {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(|error| self.sysctl_error("set", &key, error)),
        }
    }

    fn sysctl_error(&self, verb: &str, key: &str, error: io::Error) -> LabError {
        LabError::io(
            format!("{verb} /proc/sys/{key} in {}", self.namespace),
            error,
        )
    }
}

/// A copy of a descriptor, with a number that comes again as late as possible. Programs that wait
/// for a path to lead somewhere would else find the namespace of another test there.
fn late_number(of: &impl AsFd) -> io::Result<OwnedFd> {
    static LAST: AtomicU32 = AtomicU32::new(0);
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let limit = u32::try_from(limit).unwrap_or(u32::MAX).clamp(4, 1 << 20);
    // The numbers below are everybody's.
    let (first, count) = (limit / 2, limit / 4);
    let least = first + LAST.fetch_add(1, Ordering::Relaxed) % count;
    let least = RawFd::try_from(least).map_err(io::Error::other)?;
    let fd = fcntl(of, FcntlArg::F_DUPFD_CLOEXEC(least))?;
    // SAFETY: the kernel has made this descriptor a moment ago, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
