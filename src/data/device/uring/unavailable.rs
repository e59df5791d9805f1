//! Why there is no io_uring, and what the kernel's TUN makes of it.

use std::fs;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use thiserror::Error;

/// `2`: nobody may have an instance; `1`: only the group in `kernel.io_uring_group`, and who has
/// `CAP_SYS_ADMIN`.
const SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";

/// Why this process has no io_uring instance.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unavailable {
    /// `io_uring_setup` is no system call here.
    #[error("this kernel has no io_uring")]
    NoSystemCall,
    /// It is, but lacks something that the ring needs.
    #[error("this kernel's io_uring is too old: cannot {0}")]
    TooOld(&'static str),
    /// The administrator has turned it off.
    #[error("kernel.io_uring_disabled is {0}")]
    Disabled(u8),
    /// The call is refused, but not by the administrator.
    #[error("a seccomp filter or a security module refuses it")]
    Forbidden,
    /// Before Linux 5.12, an instance counts as locked memory.
    #[error("no memory for it; RLIMIT_MEMLOCK is {0} octets")]
    Memory(u64),
    /// Something else.
    #[error("cannot {action}: {}", errno.desc())]
    Refused {
        /// What was tried.
        action: &'static str,
        /// The kernel's reason.
        errno: Errno,
    },
}

impl Unavailable {
    /// What it means that the kernel refuses to `action`.
    pub(super) fn new(action: &'static str, errno: Errno) -> Self {
        match errno {
            Errno::ENOSYS => Self::NoSystemCall,
            Errno::EINVAL => Self::TooOld(action),
            Errno::EPERM | Errno::EACCES => match disabled() {
                level @ 1.. => Self::Disabled(level),
                0 => Self::Forbidden,
            },
            Errno::ENOMEM => {
                let limit = getrlimit(Resource::RLIMIT_MEMLOCK);
                Self::Memory(limit.map_or(0, |(now, _)| now))
            }
            errno => Self::Refused { action, errno },
        }
    }
}

fn disabled() -> u8 {
    let text = fs::read_to_string(SYSCTL).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Descriptors that this process can have, which is also how long a table of files may be.
pub(super) fn descriptor_limit() -> u32 {
    let (now, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 0));
    u32::try_from(now).unwrap_or(u32::MAX)
}

/// Whether a TUN answers at once where it is asked to: without that a write that finds no room would
/// be finished later. A descriptor that has no interface yet says `EBADFD` if so, and `EOPNOTSUPP`
/// if not. False also where this process can have no TAP.
pub(super) fn tun_takes_nowait() -> bool {
    let mut options = fs::OpenOptions::new();
    let Ok(tun) = options.read(true).write(true).open("/dev/net/tun") else {
        return false;
    };
    let mut octet = 0_u8;
    let area = libc::iovec {
        iov_base: (&raw mut octet).cast(),
        iov_len: 1,
    };
    // SAFETY: the vector is one area of one octet; both outlive the call.
    let result =
        unsafe { libc::preadv2(tun.as_raw_fd(), &raw const area, 1, -1, libc::RWF_NOWAIT) };
    Errno::result(result) == Err(Errno::EBADFD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_apart() {
        let action = "set it up";
        let reason = |errno| Unavailable::new(action, errno).to_string();
        assert_eq!(reason(Errno::ENOSYS), "this kernel has no io_uring");
        assert_eq!(
            reason(Errno::EINVAL),
            "this kernel's io_uring is too old: cannot set it up"
        );
        assert_eq!(
            reason(Errno::EMFILE),
            "cannot set it up: Too many open files"
        );
        assert!(reason(Errno::ENOMEM).starts_with("no memory for it; RLIMIT_MEMLOCK is "));
        let forbidden = match disabled() {
            0 => Unavailable::Forbidden,
            level => Unavailable::Disabled(level),
        };
        assert_eq!(Unavailable::new(action, Errno::EPERM), forbidden);
        assert_eq!(
            Unavailable::Disabled(2).to_string(),
            "kernel.io_uring_disabled is 2"
        );
    }
}
