//! Takes an interface away from the kernel's IP stack while the relay uses it.
//!
//! Goal: while a [`Takeover`] lives, the kernel neither answers nor forwards anything that arrives
//! on its interface, whatever addresses, routes, forwarding or firewall the machine has. Packet
//! sockets go on seeing all of it. When the value is dropped, or the process dies in whatever way,
//! everything is as before; there is nothing to clean up.
//!
//! How: an nftables table of family netdev with one chain on the ingress hook of the interface,
//! policy drop, no rules. The kernel hands a frame to packet sockets bound to ETH_P_ALL first,
//! then to this hook, then to bridges, VLANs, ARP, IP and everything else. GRO runs before both,
//! so a super-frame is seen whole and dropped whole. The chain has the lowest priority number, so
//! that it comes before flowtables, which would forward. The table carries NFT_TABLE_F_OWNER
//! (Linux 5.12): the kernel removes it when the netlink socket that made it is closed.
//!
//! Of a port of a bridge, only the frames to one MAC address are taken ([`Portion::FramesTo`]): the chain lets
//! everything pass but what its one rule drops, so that the bridge has all other frames.
//!
//! The name of the table holds the index of the interface, so two processes cannot both take one
//! interface: the second gets [`TakeoverError::Taken`].
//!
//! Limits, none of which the relay depends on:
//! - What the kernel *sends* is not stopped: its own ARP requests, router solicitations and
//!   packets to routes over the interface still go out, and their answers are dropped here. An
//!   interface that is the relay's alone should have no addresses, and IPv6 disabled.
//! - tc ingress filters and XDP programs that somebody attached run earlier and keep working.
//! - Packet sockets bound to one EtherType come after the hook and see nothing.
//! - A local service reached over the interface (such as ssh) cannot be reached that way.
//! - There is no second way for kernels without nf_tables (CONFIG_NF_TABLES_NETDEV): the tc
//!   equivalent would outlive a killed process. The error says what is missing.

mod message;

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use netlink_sys::{Socket, SocketAddr};
use nos_shim::ident::MacAddr;
use parking_lot::Mutex;
use thiserror::Error;
use tracing::debug;

use crate::control::kernel::netlink::Netlink;
use crate::control::kernel::{KernelError, Namespace, from_kernel_errors};
use message::{Acknowledgement, Request};

/// Keeps the kernel's IP stack off one interface for as long as it lives.
///
/// With drop, the kernel has the interface back at once.
#[must_use = "the interface is given back when this is dropped"]
pub struct Takeover {
    owner: Arc<Owner>,
    interface: String,
    /// Index of the interface, which names the table.
    index: u32,
    /// Whether the table is to be removed with this value.
    held: bool,
}

/// Takes interfaces of one namespace, all on one socket: giving many back costs the kernel no more
/// than giving back one.
///
/// What was taken stays taken while its [`Takeover`] lives, also after this value is dropped.
#[derive(Clone)]
pub struct Takeovers {
    owner: Arc<Owner>,
}

/// The socket that owns the tables: the kernel removes them when it is closed.
struct Owner {
    namespace: String,
    socket: Mutex<Socket>,
    /// Somebody else has the socket too, so that closing it removes nothing.
    shared: AtomicBool,
}

/// What of an interface is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Portion {
    /// All that comes in.
    All,
    /// What comes in for this MAC address, which is not the interface's own.
    FramesTo(MacAddr),
}

/// Why an interface could not be taken from the kernel.
#[derive(Debug, Error)]
pub enum TakeoverError {
    /// A namespace cannot be entered, asked or changed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Another process, or another part of this one, has taken the interface.
    #[error("{interface} in {namespace} is in use: another nos-relay has taken it")]
    Taken {
        /// The interface.
        interface: String,
        /// Where it is.
        namespace: String,
    },
    /// The capability is missing.
    #[error("may not take {interface} in {namespace}: CAP_NET_ADMIN is missing there")]
    NotPermitted {
        /// The interface.
        interface: String,
        /// Where it is.
        namespace: String,
    },
    /// The kernel lacks what this needs.
    #[error(
        "cannot take {interface}: this kernel lacks nftables chains on interfaces \
         (Linux 5.12 with CONFIG_NF_TABLES_NETDEV): {source}"
    )]
    Unsupported {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused for another reason.
    #[error("cannot take {interface} in {namespace}: {source}{reason}")]
    Refused {
        /// The interface.
        interface: String,
        /// Where it is.
        namespace: String,
        /// What the kernel said.
        source: io::Error,
        /// The same in words, after a space; empty where the kernel gave none.
        reason: String,
    },
}

from_kernel_errors!(TakeoverError);

impl Takeovers {
    /// Opens the socket, by a visit to `namespace`.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the kernel knows no nfnetlink.
    pub fn open(namespace: &Namespace) -> Result<Self, TakeoverError> {
        match namespace.run(nfnetlink_socket)? {
            Ok(socket) => Ok(Self {
                owner: Arc::new(Owner {
                    namespace: namespace.to_string(),
                    socket: Mutex::new(socket),
                    shared: AtomicBool::new(false),
                }),
            }),
            Err(source) => Err(explain(
                Refusal::here(source),
                &namespace.to_string(),
                "an interface",
            )),
        }
    }

    /// Goes on with the socket of another process, which was given by [`Self::duplicate`].
    #[must_use]
    pub fn received(namespace: &Namespace, socket: OwnedFd) -> Self {
        // SAFETY: the descriptor is given up here, and belongs to the socket from now on.
        let socket = unsafe { Socket::from_raw_fd(socket.into_raw_fd()) };
        Self {
            owner: Arc::new(Owner {
                namespace: namespace.to_string(),
                socket: Mutex::new(socket),
                shared: AtomicBool::new(true),
            }),
        }
    }

    /// The socket, for another process: what was taken stays taken while any of the two has it.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.owner.shared.store(true, Ordering::Relaxed);
        let socket = self.owner.socket.lock();
        // SAFETY: the socket keeps its descriptor open for as long as it is borrowed.
        let descriptor = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
        descriptor.try_clone_to_owned()
    }

    /// An interface that was taken on this socket before, by another process.
    pub(crate) fn taken(&self, interface: &str, index: u32) -> Takeover {
        Takeover {
            owner: Arc::clone(&self.owner),
            interface: interface.to_owned(),
            index,
            held: true,
        }
    }

    /// Takes the interface that has this name and index, or a part of it.
    ///
    /// # Errors
    /// There is no such interface, it is taken already, or the kernel cannot or will not.
    pub(crate) fn take(
        &self,
        interface: &str,
        index: u32,
        what: Portion,
    ) -> Result<Takeover, TakeoverError> {
        let installed = install(
            &self.owner.socket.lock(),
            &table_name(index),
            interface,
            what,
        );
        installed.map_err(|refusal| explain(refusal, &self.owner.namespace, interface))?;
        Ok(Takeover {
            owner: Arc::clone(&self.owner),
            interface: interface.to_owned(),
            index,
            held: true,
        })
    }

    /// Gives interfaces back, in few transactions.
    pub(crate) fn give_back(taken: Vec<Takeover>) {
        let mut taken = taken.into_iter().peekable();
        while let Some(first) = taken.next() {
            let owner = Arc::clone(&first.owner);
            let same = |other: &Takeover| Arc::ptr_eq(&other.owner, &owner);
            let mut batch = vec![first];
            while batch.len() < RELEASES && taken.peek().is_some_and(same) {
                batch.extend(taken.next());
            }
            owner.remove(&mut batch);
        }
    }
}

/// Tables that are removed in one transaction: their acknowledgements must fit in the receive
/// buffer together.
const RELEASES: usize = 64;

impl Owner {
    fn remove(&self, taken: &mut [Takeover]) {
        for takeover in taken.iter_mut() {
            takeover.held = false;
        }
        let requests: Vec<_> = taken
            .iter()
            .map(|takeover| Request::delete_table(&table_name(takeover.index)))
            .collect();
        let socket = self.socket.lock();
        if transact(&socket, &requests).is_ok() {
            return;
        }
        // All or none: one table that somebody else removed must not keep the others.
        for request in requests.chunks(1) {
            if let Err(Refusal { source, .. }) = transact(&socket, request) {
                debug!(
                    "cannot give an interface back in {}: {source}",
                    self.namespace
                );
            }
        }
    }
}

impl Takeover {
    /// Takes `interface` of `namespace`.
    ///
    /// # Errors
    /// There is no such interface, another process has it, or the kernel cannot or will not.
    pub fn of(namespace: &Namespace, interface: &str) -> Result<Self, TakeoverError> {
        let index = Netlink::open(namespace)?.existing_link(interface)?.index;
        Takeovers::open(namespace)?.take(interface, index, Portion::All)
    }

    /// Leaves the interface taken for as long as the socket is open, here or in another process.
    pub fn leave(mut self) {
        self.held = false;
    }

    /// The interface that was taken.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }
}

impl Drop for Takeover {
    fn drop(&mut self) {
        // The last one closes the socket, with which the kernel removes the table.
        let stays_open =
            Arc::strong_count(&self.owner) > 1 || self.owner.shared.load(Ordering::Relaxed);
        if self.held && stays_open {
            let owner = Arc::clone(&self.owner);
            owner.remove(std::slice::from_mut(self));
        }
    }
}

impl fmt::Debug for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Takeover({})", self.interface)
    }
}

impl fmt::Debug for Takeovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Takeovers({})", self.owner.namespace)
    }
}

/// The index makes two processes choose the same name for one interface.
fn table_name(index: u32) -> String {
    format!("nos-relay-{index}")
}

/// What the kernel refused.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Socket,
    Batch,
    /// The n-th request, from 1.
    Request(u32),
    Table,
    Chain,
}

/// A step that failed, and why.
struct Refusal {
    step: Step,
    source: io::Error,
    /// The same in words; often empty.
    reason: String,
}

impl Refusal {
    fn here(source: io::Error) -> Self {
        Self {
            step: Step::Socket,
            source,
            reason: String::new(),
        }
    }
}

fn nfnetlink_socket() -> io::Result<Socket> {
    let mut socket = Socket::new(netlink_sys::protocols::NETLINK_NETFILTER)?;
    // The kernel reports the end of bound sockets only, and the table ends with that report.
    socket.bind_auto()?;
    // Reasons in words; kernels that know neither option do without.
    let _ = socket.set_cap_ack(true);
    let _ = socket.set_ext_ack(true);
    Ok(socket)
}

/// Makes table and chain in one transaction.
fn install(socket: &Socket, table: &str, interface: &str, what: Portion) -> Result<(), Refusal> {
    let mut requests = vec![Request::owned_table(table)];
    match what {
        Portion::All => requests.push(Request::drop_all(table, interface)),
        Portion::FramesTo(mac) => requests.extend([
            Request::pass_all(table, interface),
            Request::drop_frames_to(table, mac),
        ]),
    }
    transact(socket, &requests).map_err(|mut refusal| {
        refusal.step = match refusal.step {
            Step::Request(1) => Step::Table,
            Step::Request(2 | 3) => Step::Chain,
            step => step,
        };
        refusal
    })
}

/// Has the kernel carry out all requests, or none.
fn transact(socket: &Socket, requests: &[Request]) -> Result<(), Refusal> {
    let batch = message::batch(requests);
    let sent = socket.send_to(&batch, &SocketAddr::new(0, 0), 0);
    sent.map_err(Refusal::here)?;

    let mut done = 0;
    let mut first_refusal = None;
    // The kernel carries a batch out within send, so every answer is there already. All are read,
    // so that none is left for the next transaction on this socket.
    while let Some(answers) = receive(socket).map_err(Refusal::here)? {
        for Acknowledgement {
            sequence,
            error,
            reason,
        } in answers
        {
            match error {
                None if sequence > 0 => done += 1,
                None => {}
                Some(source) => {
                    let step = match sequence {
                        0 => Step::Batch,
                        number => Step::Request(number),
                    };
                    first_refusal.get_or_insert(Refusal {
                        step,
                        source,
                        reason,
                    });
                }
            }
        }
    }
    match first_refusal {
        Some(refusal) => Err(refusal),
        None if done == requests.len() => Ok(()),
        None => Err(Refusal::here(io::Error::other(
            "the kernel did not confirm the change",
        ))),
    }
}

/// The next datagram's answers; `None` when there is no further one.
fn receive(socket: &Socket) -> io::Result<Option<Vec<Acknowledgement>>> {
    let mut datagram = Vec::with_capacity(8192);
    match socket.recv(&mut datagram, libc::MSG_DONTWAIT) {
        Ok(_) => Ok(Some(message::answers(&datagram))),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

fn explain(refusal: Refusal, namespace: &str, interface: &str) -> TakeoverError {
    let Refusal {
        step,
        source,
        reason,
    } = refusal;
    let (interface, namespace) = (interface.to_owned(), namespace.to_owned());
    match (step, source.raw_os_error()) {
        // EPERM: the table is there and another socket owns it. EEXIST: nobody does.
        (Step::Table, Some(libc::EPERM | libc::EEXIST)) => TakeoverError::Taken {
            interface,
            namespace,
        },
        (_, Some(libc::EPERM | libc::EACCES)) => TakeoverError::NotPermitted {
            interface,
            namespace,
        },
        (Step::Socket, Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT))
        | (Step::Batch | Step::Table, Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EINVAL))
        | (Step::Chain, Some(libc::EOPNOTSUPP | libc::ENOENT)) => {
            TakeoverError::Unsupported { interface, source }
        }
        _ => TakeoverError::Refused {
            interface,
            namespace,
            source,
            reason: if reason.is_empty() {
                reason
            } else {
                format!(" ({reason})")
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::testbed::{LabNamespace, Privileges, privileges, veth};

    #[test]
    fn interfaces_are_given_back_one_by_one_and_together() {
        if privileges() != Privileges::Root {
            return;
        }
        let lab = LabNamespace::new("taken").unwrap();
        let index = |name: &str| lab.link(name).unwrap().unwrap().index;
        for number in 0..3 {
            veth((&lab, &format!("a{number}")), (&lab, &format!("b{number}"))).unwrap();
        }
        let takeovers = Takeovers::open(lab.namespace()).unwrap();
        let take = |name: &str| takeovers.take(name, index(name), Portion::All);
        let is_taken = |name: &str| match Takeover::of(lab.namespace(), name) {
            Ok(_) => false,
            Err(TakeoverError::Taken { .. }) => true,
            Err(error) => panic!("{error}"),
        };
        let mut taken: Vec<_> = ["a0", "a1", "a2"].map(|name| take(name).unwrap()).into();
        // Neither the same owner nor another one takes an interface twice.
        assert!(matches!(take("a1"), Err(TakeoverError::Taken { .. })));
        assert!(["a0", "a1", "a2"].into_iter().all(is_taken));
        drop(taken.remove(1));
        assert_eq!(["a0", "a1", "a2"].map(is_taken), [true, false, true]);
        // One whose interface went is given back with the others.
        lab.delete_link("a0").unwrap();
        Takeovers::give_back(taken);
        assert!(!is_taken("a2"));
        // What is still held when the owner's handle goes stays held.
        let last = take("a2").unwrap();
        drop(takeovers);
        assert!(is_taken("a2"));
        drop(last);
        assert!(!is_taken("a2"));
    }
}
