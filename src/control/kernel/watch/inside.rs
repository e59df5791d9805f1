//! Changes inside of many namespaces, received by one socket.
//!
//! A socket in each namespace would keep it alive. So there is an observer: a namespace of its own,
//! without a name, in which each watched namespace has an identifier (nsid). A socket there listens
//! to all namespaces that have one; a control message says which one a notification is from.
//! Neither the identifier nor the socket holds a watched namespace: when it ends, the kernel
//! withdraws the identifier and says so (RTM_DELNSID), which is the event of its end.
//!
//! An identifier is given once only, counting up, so that a notification that waits in the socket
//! never counts for a later namespace. Users cannot withdraw one: the kernel goes on to deliver
//! changes of a namespace that nobody watches any more, until it ends; they are passed over.
//!
//! The cost: for every notification in any namespace, passed by the filter or not, the kernel looks
//! through the observer's identifiers one after the other, 30 to 50 ns each. With 300 watched
//! namespaces a route costs whoever adds it some 10 µs more, and with 1,000 some 40 µs.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::filter;
use super::socket::{
    Drained, Group, NLMSG_HEADER, RTM_DELNSID, RTM_GETNSID, RTM_NEWNSID, Received, Subscription,
    attribute, first_message,
};
use super::{InsideChanges, WatchKey};
use crate::control::kernel::{Namespace, NamespaceError};

/// Attributes of messages about identifiers: linux/net_namespace.h.
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;

/// rtgenmsg, padded: it comes before the attributes.
const RTGENMSG: usize = 4;

/// Octets of a notification that matter: the headers, and one attribute of RTM_DELNSID.
const LOOKED_AT: usize = 64;

/// The observer's sockets, which keep its namespace, and what they watch.
#[derive(Debug)]
pub(super) struct Inside {
    subscription: Subscription,
    requests: Requests,
    next: Id,
    watched: HashMap<Id, Watched>,
    by_key: HashMap<WatchKey, Id>,
    /// Identifiers with changes that were not passed on yet.
    changed: Vec<Id>,
}

/// An identifier of a namespace in the observer: an nsid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Id(i32);

#[derive(Debug, Default)]
struct Watched {
    keys: Vec<WatchKey>,
    changes: InsideChanges,
}

impl Inside {
    /// Makes the observer, with room for about `receive_buffer` octets of notifications.
    ///
    /// # Errors
    /// No namespace can be made, or the kernel lets this process listen to its own only: that wants
    /// CAP_NET_BROADCAST.
    pub(super) fn open(receive_buffer: usize) -> Result<io::Result<Self>, NamespaceError> {
        let groups = [
            Group::Link,
            Group::Ipv4Address,
            Group::Ipv6Address,
            Group::Ipv4Route,
            Group::Ipv6Route,
            Group::Ipv4Rule,
            Group::Ipv6Rule,
            Group::NamespaceId,
        ];
        Namespace::anonymous("observer")?.run(|| {
            let subscription = Subscription::open(&groups, &filter::inside(), receive_buffer)?;
            subscription.listen_everywhere()?;
            Ok(Self {
                subscription,
                requests: Requests::open()?,
                next: Id(0),
                watched: HashMap::new(),
                by_key: HashMap::new(),
                changed: Vec::new(),
            })
        })
    }

    /// Watches `namespace` from now on, in the place of an earlier one of `key`.
    pub(super) fn watch(&mut self, key: WatchKey, namespace: &Namespace) -> io::Result<()> {
        let id = self.identify(namespace)?;
        if self.by_key.get(&key) != Some(&id) {
            self.forget(key);
            self.by_key.insert(key, id);
            self.watched.entry(id).or_default().keys.push(key);
        }
        Ok(())
    }

    /// Reports nothing to `key` from now on.
    pub(super) fn forget(&mut self, key: WatchKey) {
        let Some(id) = self.by_key.remove(&key) else {
            return;
        };
        if let Some(watched) = self.watched.get_mut(&id) {
            watched.keys.retain(|&other| other != key);
            if watched.keys.is_empty() {
                self.watched.remove(&id);
            }
        }
    }

    /// Takes at most `budget` notifications, or all that are left once some were lost.
    pub(super) fn drain(&mut self, budget: usize) -> io::Result<Drained> {
        let mut buffer = [0; LOOKED_AT];
        let mut taken = 0;
        while taken < budget || self.subscription.is_overrun() {
            match self.subscription.receive(&mut buffer)? {
                Received::Datagram {
                    length, namespace, ..
                } => {
                    taken += 1;
                    let datagram = buffer.get(..length).unwrap_or_default();
                    if let Some((id, changes)) = read(datagram, namespace) {
                        self.note(id, changes);
                    }
                }
                Received::Empty { overrun: true } => return Ok(Drained::Overrun),
                Received::Empty { overrun: false } => return Ok(Drained::Empty),
            }
        }
        Ok(Drained::More)
    }

    /// Passes on what has changed since the last time, once for each key.
    pub(super) fn settle(&mut self, mut changed: impl FnMut(WatchKey, InsideChanges)) {
        for id in std::mem::take(&mut self.changed) {
            let Some(watched) = self.watched.get_mut(&id) else {
                continue;
            };
            let changes = std::mem::take(&mut watched.changes);
            for &key in &watched.keys {
                changed(key, changes);
            }
            if changes.contains(InsideChanges::ENDED) {
                let keys = std::mem::take(&mut watched.keys);
                self.watched.remove(&id);
                for key in keys {
                    self.by_key.remove(&key);
                }
            }
        }
    }

    fn note(&mut self, id: Id, changes: InsideChanges) {
        if let Some(watched) = self.watched.get_mut(&id) {
            if watched.changes.is_empty() {
                self.changed.push(id);
            }
            watched.changes |= changes;
        }
    }

    /// The identifier of a namespace, which is given one if it has none yet.
    fn identify(&mut self, namespace: &Namespace) -> io::Result<Id> {
        let fd = namespace.as_fd().as_raw_fd();
        let next = self.next;
        match self.requests.assign(fd, next) {
            Ok(()) => {
                let after = next.0.checked_add(1);
                self.next = Id(after.ok_or(io::ErrorKind::StorageFull)?);
                Ok(next)
            }
            // It was watched before: by another key, or by one that was forgotten.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => self.requests.look_up(fd),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Inside {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.subscription.as_fd()
    }
}

/// What a notification says of which namespace.
fn read(datagram: &[u8], namespace: Option<i32>) -> Option<(Id, InsideChanges)> {
    let (kind, payload) = first_message(datagram)?;
    let changes = match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => InsideChanges::LINKS,
        libc::RTM_NEWADDR | libc::RTM_DELADDR => InsideChanges::ADDRESSES,
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => InsideChanges::ROUTES,
        libc::RTM_NEWRULE | libc::RTM_DELRULE => InsideChanges::RULES,
        // The observer's own identifiers only: other namespaces have some as well.
        RTM_DELNSID if namespace.is_none() => {
            let id = attribute(payload.get(RTGENMSG..)?, NETNSA_NSID)?;
            return Some((Id(i32::from_ne_bytes(id)), InsideChanges::ENDED));
        }
        _ => return None,
    };
    Some((Id(namespace?), changes))
}

/// A socket in the observer for requests, each of which the kernel answers before send returns.
struct Requests(Socket);

impl Requests {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        Ok(Self(socket))
    }

    /// Gives the namespace an identifier.
    ///
    /// # Errors
    /// EEXIST: it has one, or another has this one.
    fn assign(&self, namespace: RawFd, id: Id) -> io::Result<()> {
        let attributes = [(NETNSA_FD, namespace), (NETNSA_NSID, id.0)];
        self.call(RTM_NEWNSID, NLM_F_ACK, &attributes).map(drop)
    }

    /// The identifier of a namespace that has one.
    fn look_up(&self, namespace: RawFd) -> io::Result<Id> {
        let answer = self.call(RTM_GETNSID, 0, &[(NETNSA_FD, namespace)])?;
        let attributes = answer.get(NLMSG_HEADER + RTGENMSG..);
        let id = attributes.and_then(|attributes| attribute(attributes, NETNSA_NSID));
        match id.map(i32::from_ne_bytes) {
            Some(id) if id >= 0 => Ok(Id(id)),
            _ => Err(io::Error::from_raw_os_error(libc::ENOENT)),
        }
    }

    fn call(&self, kind: u16, flags: u16, attributes: &[(u16, i32)]) -> io::Result<Vec<u8>> {
        let request = request(kind, flags, attributes);
        self.0.send_to(&request, &SocketAddr::new(0, 0), 0)?;
        let mut answer = Vec::with_capacity(1024);
        self.0.recv(&mut answer, libc::MSG_DONTWAIT)?;
        let (kind, payload) = first_message(&answer).ok_or(io::ErrorKind::InvalidData)?;
        if kind != NLMSG_ERROR {
            return Ok(answer);
        }
        let code = payload.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
        match i32::from_ne_bytes(*code) {
            0 => Ok(answer),
            code => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
        }
    }
}

impl std::fmt::Debug for Requests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Requests(fd {})", self.0.as_raw_fd())
    }
}

/// A request with attributes of four octets each.
fn request(kind: u16, flags: u16, attributes: &[(u16, i32)]) -> Vec<u8> {
    const ATTRIBUTE: u16 = 8;
    let count = attributes.len();
    let length = NLMSG_HEADER + RTGENMSG + usize::from(ATTRIBUTE) * count;
    let mut request = Vec::with_capacity(length);
    request.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence number and port: there is one request at a time, and the kernel knows the sender.
    request.extend([0; 8]);
    request.extend([0; RTGENMSG]);
    for &(kind, value) in attributes {
        request.extend(ATTRIBUTE.to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend(value.to_ne_bytes());
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notification(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut message = vec![0; 4];
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(payload);
        message
    }

    #[test]
    fn notification_is_told_by_kind_and_namespace() {
        for (kind, changes) in [
            (libc::RTM_NEWLINK, InsideChanges::LINKS),
            (libc::RTM_DELADDR, InsideChanges::ADDRESSES),
            (libc::RTM_NEWROUTE, InsideChanges::ROUTES),
            (libc::RTM_DELRULE, InsideChanges::RULES),
        ] {
            let message = notification(kind, &[0; 12]);
            assert_eq!(read(&message, Some(7)), Some((Id(7), changes)));
            assert_eq!(read(&message, None), None, "the observer's own");
        }
        assert_eq!(
            read(&notification(libc::RTM_NEWNEIGH, &[0; 12]), Some(7)),
            None
        );
        assert_eq!(read(&[0; 5], Some(7)), None);
    }

    #[test]
    fn end_is_told_by_the_observer_only() {
        let payload = [[0, 0, 0, 0].as_slice(), &[8, 0, 1, 0], &5_i32.to_ne_bytes()].concat();
        let message = notification(RTM_DELNSID, &payload);
        assert_eq!(read(&message, None), Some((Id(5), InsideChanges::ENDED)));
        assert_eq!(read(&message, Some(5)), None);
        assert_eq!(read(&message[..22], None), None);
    }

    #[test]
    fn request_is_well_formed() {
        let octets = request(RTM_NEWNSID, NLM_F_ACK, &[(NETNSA_FD, 3), (NETNSA_NSID, 9)]);
        assert_eq!(octets.len(), 36);
        assert_eq!(octets[..4], 36_u32.to_ne_bytes());
        assert_eq!(first_message(&octets).unwrap().0, RTM_NEWNSID);
        let nsid = attribute(&octets[NLMSG_HEADER + RTGENMSG..], NETNSA_NSID);
        assert_eq!(nsid, Some(9_i32.to_ne_bytes()));
    }
}
