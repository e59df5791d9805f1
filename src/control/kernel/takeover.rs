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

use netlink_sys::{Socket, SocketAddr};
use thiserror::Error;

use crate::control::kernel::netlink::Netlink;
use crate::control::kernel::{Namespace, NamespaceError, NetlinkError, NetlinkOpenError};
use message::{Answer, Request};

/// Keeps the kernel's IP stack off one interface for as long as it lives.
///
/// Close comes with drop, and the kernel then gives the interface back at once.
#[must_use = "the interface is given back when this is dropped"]
pub struct Takeover {
    /// Owns the table: the kernel removes that with this socket.
    _socket: Socket,
    interface: String,
}

/// Why an interface could not be taken from the kernel.
#[derive(Debug, Error)]
pub enum TakeoverError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// No rtnetlink socket to look up the interface.
    #[error(transparent)]
    Open(#[from] NetlinkOpenError),
    /// There is no such interface.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
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

impl Takeover {
    /// Takes `interface` of `namespace`.
    ///
    /// # Errors
    /// There is no such interface, another process has it, or the kernel cannot or will not.
    pub fn of(namespace: &Namespace, interface: &str) -> Result<Self, TakeoverError> {
        let index = Netlink::open(namespace)?.existing_link(interface)?.index;
        let takeover = |source| (Step::Socket, source, String::new());
        let socket = namespace
            .run(nfnetlink_socket)?
            .map_err(takeover)
            .and_then(|socket| {
                install(&socket, &format!("nos-relay-{index}"), interface)?;
                Ok(socket)
            });
        match socket {
            Ok(socket) => Ok(Self {
                _socket: socket,
                interface: interface.to_owned(),
            }),
            Err(refusal) => Err(explain(refusal, namespace, interface)),
        }
    }

    /// The interface that was taken.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }
}

impl fmt::Debug for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Takeover({})", self.interface)
    }
}

/// What the kernel refused.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Socket,
    Batch,
    Table,
    Chain,
}

type Refusal = (Step, io::Error, String);

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
fn install(socket: &Socket, table: &str, interface: &str) -> Result<(), Refusal> {
    let here = |source| (Step::Socket, source, String::new());
    let steps = [Step::Batch, Step::Table, Step::Chain];
    let requests = [
        Request::owned_table(table),
        Request::drop_all(table, interface),
    ];
    let batch = message::batch(&requests);
    socket
        .send_to(&batch, &SocketAddr::new(0, 0), 0)
        .map_err(here)?;

    let mut done = 0;
    // The kernel carries a batch out within send, so every answer is there already.
    while let Some(answers) = receive(socket).map_err(here)? {
        for Answer {
            sequence,
            error,
            reason,
        } in answers
        {
            let step = usize::try_from(sequence).ok().and_then(|i| steps.get(i));
            match (error, step) {
                (Some(error), step) => {
                    return Err((*step.unwrap_or(&Step::Batch), error, reason));
                }
                (None, Some(Step::Table | Step::Chain)) => done += 1,
                (None, _) => {}
            }
        }
    }
    if done == requests.len() {
        return Ok(());
    }
    Err(here(io::Error::other(
        "the kernel did not confirm the table",
    )))
}

/// The next datagram's answers; `None` when there is no further one.
fn receive(socket: &Socket) -> io::Result<Option<Vec<Answer>>> {
    let mut datagram = Vec::with_capacity(8192);
    match socket.recv(&mut datagram, libc::MSG_DONTWAIT) {
        Ok(_) => Ok(Some(message::answers(&datagram))),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

fn explain(
    (step, source, reason): Refusal,
    namespace: &Namespace,
    interface: &str,
) -> TakeoverError {
    let interface = interface.to_owned();
    let namespace = namespace.to_string();
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
