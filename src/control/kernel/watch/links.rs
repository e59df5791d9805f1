//! Changes of the host's interfaces.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;

use super::filter;
use super::socket::{Drained, Group, Received, Subscription};
use crate::control::kernel::LinkFacts;

/// An interface that was made, changed or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkChange {
    /// What the kernel says of the interface; of a deleted one, what it was.
    pub facts: LinkFacts,
    /// The interface is gone, or is in another namespace by now.
    pub deleted: bool,
}

/// The longest notification: far above what an interface with all its attributes takes.
const LONGEST: usize = 32 * 1024;

/// The changes of the interfaces of one namespace, in order.
#[derive(Debug)]
pub(super) struct Links {
    subscription: Subscription,
    buffer: Box<[u8]>,
}

impl Links {
    /// Subscribes in the namespace of the calling thread.
    pub(super) fn open(receive_buffer: usize) -> io::Result<Self> {
        Ok(Self {
            subscription: Subscription::open(&[Group::Link], &filter::links(), receive_buffer)?,
            buffer: vec![0; LONGEST].into_boxed_slice(),
        })
    }

    /// Passes on at most `budget` changes, or all that are left once some were lost.
    pub(super) fn drain(
        &mut self,
        budget: usize,
        mut change: impl FnMut(LinkChange),
    ) -> io::Result<Drained> {
        let mut lost = false;
        let mut taken = 0;
        while taken < budget || self.subscription.is_overrun() {
            match self.subscription.receive(&mut self.buffer)? {
                Received::Datagram {
                    length, truncated, ..
                } => {
                    taken += 1;
                    let datagram = self.buffer.get(..length).unwrap_or_default();
                    match read(datagram) {
                        Some(link) if !truncated => change(link),
                        // As good as lost: the reader of events has to look for itself.
                        _ => lost = true,
                    }
                }
                Received::Empty { overrun } if overrun || lost => return Ok(Drained::Overrun),
                Received::Empty { .. } => return Ok(Drained::Empty),
            }
        }
        Ok(Drained::More)
    }
}

impl AsFd for Links {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.subscription.as_fd()
    }
}

fn read(datagram: &[u8]) -> Option<LinkChange> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram).ok()?;
    let (link, deleted) = match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => (link, false),
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => (link, true),
        _ => return None,
    };
    Some(LinkChange {
        facts: LinkFacts::of(&link),
        deleted,
    })
}
