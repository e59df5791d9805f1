//! Traffic, and the proof that it arrived as it was sent.
//!
//! All of it runs on threads of this process. A socket stays in the namespace in which it was
//! opened, so only the opening happens inside.

pub(super) mod bulk;
pub(super) mod connections;
pub(super) mod datagrams;
pub(super) mod exchange;
mod messages;
pub(super) mod search;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};
use thiserror::Error;

use crate::lab::testbed::{LabError, LabNamespace};

/// Time for a connection to be made, and for anything that should come at once.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// Has everybody else's work go before that of the calling thread.
pub(super) fn step_back() {
    const LEAST: libc::c_int = 19;
    // SAFETY: takes numbers only; 0 is the calling thread. Any thread may step back.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LEAST) };
}

/// Time for many connections to be made.
const MANY_LIMIT: Duration = Duration::from_secs(20);

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpVersion {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for IpVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// As in the names of rows.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Who begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The container.
    Out,
    /// The external host.
    In,
}

impl Way {
    /// As in the names of rows.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::In => "in",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Out => "container to X",
            Self::In => "X to container",
        })
    }
}

/// How long frames are, in octets. As in RFC 2544 an Ethernet frame counts with its header and
/// its check sequence: a datagram's payload is [`OVERHEAD`] shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// All the same.
    Fixed(usize),
    /// Of every twelve seven with 64, four with 576 and one with 1500.
    Imix,
}

/// Ethernet header 14, IPv4 header 20, UDP header 8, frame check sequence 4.
pub const OVERHEAD: usize = 14 + 20 + 8 + 4;

const IMIX: [usize; 12] = [64, 576, 64, 64, 576, 64, 64, 576, 64, 576, 64, 1500];

impl Sizes {
    /// Octets of the payload of the datagram with this number in its flow.
    fn payload(self, number: u64) -> usize {
        let frame = match self {
            Self::Fixed(octets) => octets,
            Self::Imix => IMIX[usize::try_from(number % 12).unwrap_or(0)],
        };
        frame.saturating_sub(OVERHEAD)
    }

    /// In words.
    #[must_use]
    pub fn what(self) -> String {
        match self {
            Self::Fixed(octets) => format!("{octets}-octet frames"),
            Self::Imix => "frames of 64, 576 and 1500 octets 7:4:1".to_owned(),
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(octets) => write!(f, "{octets}"),
            Self::Imix => f.write_str("imix"),
        }
    }
}

/// What went wrong with some traffic.
#[derive(Debug, Error)]
pub enum TrafficError {
    /// It could not be sent or did not arrive.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A namespace could not be used.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// It arrived, and not as it was sent: the path is wrong.
    #[error("{0}")]
    Wrong(String),
    /// No progress for so long that it will not end well.
    #[error("{0}")]
    Stalled(String),
}

impl TrafficError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Who talks to whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route<'a> {
    /// Who connects.
    pub(super) client: &'a LabNamespace,
    /// Who listens.
    pub(super) server: &'a LabNamespace,
    /// Where the client connects to.
    pub(super) connect: SocketAddr,
    /// Where the server listens.
    pub(super) listen: SocketAddr,
}

impl Route<'_> {
    fn listener(&self) -> Result<TcpListener, TrafficError> {
        let address = self.listen;
        Ok(self.server.try_run(&format!("listen on {address}"), || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            socket.listen(4096)?;
            Ok(socket.into())
        })?)
    }

    /// `count` connections.
    fn connect(&self, count: usize) -> Result<Vec<TcpStream>, TrafficError> {
        let address = self.connect;
        let until = Instant::now() + MANY_LIMIT;
        let connect = || {
            let mut streams = Vec::with_capacity(count);
            while streams.len() < count && Instant::now() < until {
                streams.push(TcpStream::connect_timeout(&address, LIMIT)?);
            }
            Ok(streams)
        };
        let action = format!("connect to {address}");
        let streams = self.client.try_run(&action, connect)?;
        if streams.len() == count {
            return Ok(streams);
        }
        let (made, seconds) = (streams.len(), MANY_LIMIT.as_secs());
        Err(TrafficError::Stalled(format!(
            "{made} of {count} connections were made within {seconds} s"
        )))
    }

    fn receiver(&self) -> Result<UdpSocket, TrafficError> {
        let address = self.listen;
        Ok(self.server.try_run(&format!("bind to {address}"), || {
            let socket = UdpSocket::bind(address)?;
            enlarge(&socket);
            Ok(socket)
        })?)
    }

    /// `count` sockets on ports of their own.
    fn senders(&self, count: usize) -> Result<Vec<UdpSocket>, TrafficError> {
        let any = match self.connect {
            SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
            SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
        };
        Ok(self.client.try_run("open UDP sockets", || {
            let open = || {
                let socket = UdpSocket::bind(any)?;
                socket.connect(self.connect)?;
                Ok(socket)
            };
            (0..count).map(|_| open()).collect()
        })?)
    }
}

/// Accepts one connection.
fn accept(listener: &TcpListener) -> Result<TcpStream, TrafficError> {
    // SO_RCVTIMEO limits accept as well.
    let accepted = SockRef::from(listener)
        .set_read_timeout(Some(LIMIT))
        .and_then(|()| listener.accept());
    let (stream, _) = accepted.map_err(TrafficError::io("accept"))?;
    Ok(stream)
}

/// Gives a socket room for bursts, as much as it may have.
fn enlarge(socket: &UdpSocket) {
    use nix::sys::socket::{setsockopt, sockopt};
    const OCTETS: usize = 16 << 20;
    if setsockopt(socket, sockopt::RcvBufForce, &OCTETS).is_err() {
        // An ordinary user gets what the administrator allows.
        let _ = setsockopt(socket, sockopt::RcvBuf, &OCTETS);
    }
}

/// What a thread returned; its panic goes on here.
fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imix_is_seven_four_one() {
        let count = |frame: usize| {
            let wanted = frame - OVERHEAD;
            (0..12)
                .filter(|&number| Sizes::Imix.payload(number) == wanted)
                .count()
        };
        assert_eq!([64, 576, 1500].map(count), [7, 4, 1]);
    }

    #[test]
    fn a_frame_of_64_octets_has_18_of_payload() {
        assert_eq!(Sizes::Fixed(64).payload(5), 18);
    }
}
