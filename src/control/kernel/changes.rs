//! Word from the kernel that something changed, so that nobody has to sleep and look again.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::namespace::{Namespace, NamespaceError};

/// Which changes to hear of: RTMGRP_* of linux/rtnetlink.h.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Topic {
    #[cfg(any(test, feature = "testbed"))]
    Links = 0x1,
    Ipv6Routes = 0x400,
}

/// A netlink socket that receives a message whenever something of its topic changes.
#[derive(Debug)]
pub(crate) struct Changes(OwnedFd);

impl Changes {
    /// Begins to listen in `namespace`. Changes from now on are not missed.
    pub(crate) fn watch(
        namespace: &Namespace,
        topic: Topic,
    ) -> Result<io::Result<Self>, NamespaceError> {
        namespace.run(|| {
            let fd = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkRoute,
            )?;
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, topic as u32))?;
            Ok(Self(fd))
        })
    }

    /// Waits until `reached` holds, which is asked at once and after every change; false when it
    /// does not hold after `limit`.
    pub(crate) fn wait<E: From<io::Error>>(
        &self,
        limit: Duration,
        reached: impl Fn() -> Result<bool, E>,
    ) -> Result<bool, E> {
        let deadline = Instant::now() + limit;
        while !reached()? {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.next(left)? {
                return reached();
            }
        }
        Ok(true)
    }

    /// Waits for a change; false when none came within `limit`.
    fn next(&self, limit: Duration) -> io::Result<bool> {
        // A zero timeout would mean for ever.
        let limit = limit.max(Duration::from_millis(1));
        let limit = TimeVal::new(
            i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            i64::from(limit.subsec_micros()),
        );
        setsockopt(&self.0, sockopt::ReceiveTimeout, &limit)?;
        match recv(self.0.as_raw_fd(), &mut [0; 4096], MsgFlags::empty()) {
            // ENOBUFS: more changes than the socket could hold; look again all the same.
            Ok(_) | Err(nix::Error::ENOBUFS | nix::Error::EINTR) => Ok(true),
            Err(nix::Error::EAGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
