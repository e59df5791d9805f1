//! UDP echo.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{Shutdown, SockaddrStorage, recvfrom, shutdown};
use parking_lot::Mutex;

use super::error::LabError;
use super::namespace::LabNamespace;
use super::port::{FREE_WITHIN, once_free};

/// Largest payload of a UDP datagram over IPv4, in octets.
const LARGEST: usize = 65_507;

/// A socket in a namespace that sends back what it gets, until dropped.
#[derive(Debug)]
pub struct EchoServer {
    address: SocketAddr,
    socket: UdpSocket,
    peers: Arc<Mutex<Vec<SocketAddr>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// Binds to `address` in `namespace`; port 0 takes a free one.
    ///
    /// # Errors
    /// The address is not there, or the port is taken.
    pub fn start(namespace: &LabNamespace, address: SocketAddr) -> Result<Self, LabError> {
        let action = format!("bind to {address}");
        namespace.try_run(&action, || {
            Self::serve(once_free(FREE_WITHIN, || UdpSocket::bind(address))?)
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Who sent a datagram, once for each datagram, oldest first.
    #[must_use]
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.peers.lock().clone()
    }

    fn serve(socket: UdpSocket) -> io::Result<Self> {
        let peers = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (echoing, list, stopped) = (socket.try_clone()?, Arc::clone(&peers), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("udp-echo".to_owned())
            .spawn(move || echo(&echoing, &list, &stopped))?;
        Ok(Self {
            address: socket.local_addr()?,
            socket,
            peers,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // A process that is being started by another thread has a copy of the socket until it runs its program.
        // That would take datagrams in, where they are to be refused; connected to nobody it takes none.
        let _ = self.socket.connect(nobody(self.address));
        // Ends a blocked receive, although the kernel says ENOTCONN.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where nobody sends from, as seen from a socket that is bound to `address`.
fn nobody(address: SocketAddr) -> SocketAddr {
    const DISCARD: u16 = 9;
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, DISCARD)
}

fn echo(socket: &UdpSocket, peers: &Mutex<Vec<SocketAddr>>, stop: &AtomicBool) {
    let mut buffer = vec![0; LARGEST];
    while !stop.load(Ordering::Acquire) {
        // An error is an ICMP error about an earlier answer: its client is gone.
        let Some((length, peer)) = receive(socket, &mut buffer) else {
            continue;
        };
        if stop.load(Ordering::Acquire) {
            return;
        }
        peers.lock().push(peer);
        let _ = socket.send_to(&buffer[..length], peer);
    }
}

/// A datagram's length and sender. The standard library's `recv_from` insists on a sender, and
/// panics when the socket is shut down, as there is none then.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
    let (length, sender) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), buffer).ok()?;
    let sender = sender?;
    let v4 = sender.as_sockaddr_in().map(|sender| (*sender).into());
    let v6 = || sender.as_sockaddr_in6().map(|sender| (*sender).into());
    Some((
        length,
        v4.map(SocketAddr::V4)
            .or_else(|| v6().map(SocketAddr::V6))?,
    ))
}

/// Sends `payload` to an echo server and waits for it to come back; returns the address and port
/// it came from.
///
/// # Errors
/// What the network or the kernel said ([`LabError::kind`]: `ConnectionRefused` is port
/// unreachable), silence, or that something else came back.
pub fn exchange(
    namespace: &LabNamespace,
    local: Option<SocketAddr>,
    remote: SocketAddr,
    payload: &[u8],
    limit: Duration,
) -> Result<SocketAddr, LabError> {
    namespace.try_run(&format!("UDP echo with {remote}"), || {
        let any = match remote.ip() {
            IpAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
            IpAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
        };
        let socket = once_free(limit, || UdpSocket::bind(local.unwrap_or(any)))?;
        socket.connect(remote)?;
        socket.send(payload)?;
        await_echo(&socket, payload, limit)?;
        socket.local_addr()
    })
}

fn await_echo(socket: &UdpSocket, payload: &[u8], limit: Duration) -> io::Result<()> {
    socket.set_read_timeout(Some(limit.max(Duration::from_millis(1))))?;
    let mut answer = vec![0; LARGEST];
    let length = socket
        .recv(&mut answer)
        .map_err(|error| match error.kind() {
            // What a socket with a timeout says in its place.
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })?;
    if answer[..length] != *payload {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{length} octets came back changed"),
        ));
    }
    Ok(())
}
