//! A netlink socket that receives what the kernel multicasts about its network stack.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, NetlinkAddr, recvmsg, setsockopt, sockopt};
use socket2::{SockFilter, SockRef};

/// RTM_NEWNSID, RTM_DELNSID and RTM_GETNSID of linux/rtnetlink.h, which libc lacks.
pub(super) const RTM_NEWNSID: u16 = 88;
pub(super) const RTM_DELNSID: u16 = 89;
pub(super) const RTM_GETNSID: u16 = 90;

/// Octets of nlmsghdr.
pub(super) const NLMSG_HEADER: usize = 16;

/// A multicast group of rtnetlink: RTNLGRP_* of linux/rtnetlink.h.
#[derive(Clone, Copy, Debug)]
pub(super) enum Group {
    Link = 1,
    Ipv4Address = 5,
    Ipv4Route = 7,
    Ipv4Rule = 8,
    Ipv6Address = 9,
    Ipv6Route = 11,
    Ipv6Rule = 19,
    NamespaceId = 28,
}

/// A netlink socket that is a member of some groups. Receiving from it never blocks.
pub(super) struct Subscription {
    socket: Socket,
    /// The kernel has dropped messages since the socket was last empty.
    overrun: bool,
}

/// What was received.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// One datagram from the kernel.
    Datagram {
        /// Octets of it in the caller's buffer.
        length: usize,
        /// It was longer than the buffer.
        truncated: bool,
        /// Identifier of the namespace that it is from; `None`: the socket's own.
        namespace: Option<i32>,
    },
    /// Nothing is left.
    Empty {
        /// The kernel had to drop messages since the last time; they would have come before now.
        overrun: bool,
    },
}

/// What draining a socket found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drained {
    /// Everything was taken.
    Empty,
    /// Everything was taken, but before that messages were lost.
    Overrun,
    /// There is more: the budget ended first.
    More,
}

impl Subscription {
    /// Opens a socket in the namespace of the calling thread, with room for about
    /// `receive_buffer` octets of messages that `filter` lets through.
    pub(super) fn open(
        groups: &[Group],
        filter: &[SockFilter],
        receive_buffer: usize,
    ) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        // Before the groups, so that nothing unfiltered is ever queued.
        SockRef::from(&socket).attach_filter(filter)?;
        set_receive_buffer(&socket, receive_buffer)?;
        let groups = groups
            .iter()
            .fold(0, |mask, &group| mask | 1 << (group as u32 - 1));
        socket.bind(&SocketAddr::new(0, groups))?;
        Ok(Self {
            socket,
            overrun: false,
        })
    }

    /// Receives from all namespaces that have an identifier in the socket's own. It wants
    /// CAP_NET_BROADCAST over the socket's namespace, and over each of those.
    pub(super) fn listen_everywhere(&self) -> io::Result<()> {
        self.socket.set_listen_all_namespaces(true)
    }

    /// Takes the next datagram; what does not fit into `buffer` is cut off.
    ///
    /// # Errors
    /// The socket is unusable.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            match receive_once(&self.socket, buffer) {
                Ok(Some(datagram)) => return Ok(datagram),
                // Only the kernel is believed.
                Ok(None) | Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => self.overrun = true,
                Err(Errno::EAGAIN) => {
                    // Reported now and not before: once full, the kernel drops all that comes
                    // until the socket is empty, and says so only once.
                    let overrun = std::mem::take(&mut self.overrun);
                    return Ok(Received::Empty { overrun });
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether the kernel has dropped messages, and goes on until the socket is empty.
    pub(super) fn is_overrun(&self) -> bool {
        self.overrun
    }
}

impl AsFd for Subscription {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Subscription(fd {})", self.socket.as_raw_fd())
    }
}

fn set_receive_buffer(socket: &Socket, octets: usize) -> io::Result<()> {
    // Beyond net.core.rmem_max; root of a user namespace may not, and gets up to the limit.
    match setsockopt(socket, sockopt::RcvBufForce, &octets) {
        Ok(()) => Ok(()),
        Err(_) => Ok(setsockopt(socket, sockopt::RcvBuf, &octets)?),
    }
}

/// `None`: a message from a process.
fn receive_once(socket: &Socket, buffer: &mut [u8]) -> nix::Result<Option<Received>> {
    let mut control = nix::cmsg_space!([u8; 64]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message =
        recvmsg::<NetlinkAddr>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    if message.address.is_none_or(|sender| sender.pid() != 0) {
        return Ok(None);
    }
    Ok(Some(Received::Datagram {
        length: message.bytes,
        truncated: message.flags.contains(MsgFlags::MSG_TRUNC),
        namespace: message.cmsgs()?.find_map(|part| namespace_id(&part)),
    }))
}

fn namespace_id(part: &ControlMessageOwned) -> Option<i32> {
    let ControlMessageOwned::Unknown(part) = part else {
        return None;
    };
    let header = part.cmsg_header;
    let is_id =
        (header.cmsg_level, header.cmsg_type) == (libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID);
    let octets = part.data_bytes.first_chunk().filter(|_| is_id)?;
    Some(i32::from_ne_bytes(*octets))
}

/// Kind and payload of the first message of a datagram, which may be cut off at its end.
///
/// The kernel sends each notification as a datagram of its own.
pub(super) fn first_message(datagram: &[u8]) -> Option<(u16, &[u8])> {
    let kind = u16::from_ne_bytes(*datagram.get(4..)?.first_chunk()?);
    Some((kind, datagram.get(NLMSG_HEADER..)?))
}

/// The four octets of the first attribute of this kind.
pub(super) fn attribute(mut attributes: &[u8], kind: u16) -> Option<[u8; 4]> {
    const HEADER: usize = 4;
    loop {
        let &[a, b, c, d, ref tail @ ..] = attributes else {
            return None;
        };
        let length = usize::from(u16::from_ne_bytes([a, b])).checked_sub(HEADER)?;
        if u16::from_ne_bytes([c, d]) == kind {
            return tail.get(..length)?.first_chunk().copied();
        }
        attributes = tail.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attribute_is_found_behind_others() {
        let attributes = [
            [7, 0, 2, 0].as_slice(),
            &[1, 2, 3, 0],
            &[8, 0, 1, 0],
            &[9, 8, 7, 6],
        ]
        .concat();
        assert_eq!(attribute(&attributes, 1), Some([9, 8, 7, 6]));
        assert_eq!(
            attribute(&attributes, 2),
            None,
            "three octets are no number"
        );
        assert_eq!(attribute(&attributes, 3), None);
        assert_eq!(attribute(&attributes[..14], 1), None);
    }

    #[test]
    fn message_has_kind_and_payload() {
        let mut datagram = vec![18, 0, 0, 0];
        datagram.extend(RTM_DELNSID.to_ne_bytes());
        datagram.extend([0; 10]);
        assert_eq!(first_message(&datagram), Some((89, [].as_slice())));
        datagram.extend([5, 6]);
        assert_eq!(first_message(&datagram), Some((89, [5, 6].as_slice())));
        assert_eq!(first_message(&datagram[..15]), None);
    }

    proptest! {
        #[test]
        fn any_octets_are_read_without_panic(octets in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some((_, payload)) = first_message(&octets) {
                prop_assert!(payload.len() + NLMSG_HEADER == octets.len());
            }
            if let Some(value) = attribute(&octets, 1) {
                prop_assert!(octets.windows(4).any(|four| four == value));
            }
        }
    }
}
