//! TCP echo, and bulk transfers whose every octet is checked.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use socket2::{Domain, Socket, Type};

use super::error::LabError;
use super::namespace::LabNamespace;
use super::pattern;
use super::port::{FREE_WITHIN, once_free};

/// A listener in a namespace that sends back what it gets, until dropped.
#[derive(Debug)]
pub struct EchoServer {
    address: SocketAddr,
    listener: TcpListener,
    served: Arc<Mutex<Vec<Served>>>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Served {
    peer: SocketAddr,
    stream: TcpStream,
    thread: JoinHandle<()>,
}

impl EchoServer {
    /// Listens on `address` in `namespace`; port 0 takes a free one.
    ///
    /// # Errors
    /// The address is not there, or the port is taken.
    pub fn start(namespace: &LabNamespace, address: SocketAddr) -> Result<Self, LabError> {
        let action = format!("listen on {address}");
        namespace.try_run(&action, || {
            Self::serve(once_free(FREE_WITHIN, || TcpListener::bind(address))?)
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Who has connected, as seen from here, oldest first.
    #[must_use]
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.served.lock().iter().map(|one| one.peer).collect()
    }

    fn serve(listener: TcpListener) -> io::Result<Self> {
        let served = Arc::default();
        let (accepting, list) = (listener.try_clone()?, Arc::clone(&served));
        let acceptor = std::thread::Builder::new()
            .name("tcp-echo".to_owned())
            .spawn(move || accept_all(&accepting, &list))?;
        Ok(Self {
            address: listener.local_addr()?,
            listener,
            served,
            acceptor: Some(acceptor),
        })
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        // Shutting a listener down ends a blocked accept.
        let _ =
            nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for Served { stream, thread, .. } in self.served.lock().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
            let _ = thread.join();
        }
    }
}

fn accept_all(listener: &TcpListener, served: &Mutex<Vec<Served>>) {
    while let Ok((stream, peer)) = listener.accept() {
        let Ok(copy) = stream.try_clone() else { return };
        // Locked first: who has its echo finds itself among the peers.
        let mut served = served.lock();
        let thread = std::thread::spawn(move || echo(copy));
        served.push(Served {
            peer,
            stream,
            thread,
        });
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// Connects from `namespace`, optionally from the address and port `local`.
///
/// # Errors
/// What the network or the kernel said; [`LabError::kind`] tells refusal from silence.
pub fn connect(
    namespace: &LabNamespace,
    local: Option<SocketAddr>,
    remote: SocketAddr,
    limit: Duration,
) -> Result<TcpStream, LabError> {
    namespace.try_run(&format!("connect to {remote}"), || {
        open(local, remote, limit)
    })
}

fn open(local: Option<SocketAddr>, remote: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(remote), Type::STREAM, None)?;
    if let Some(local) = local {
        // A test may use a port again while an old connection is in TIME-WAIT.
        socket.set_reuse_address(true)?;
        socket.bind(&local.into())?;
    }
    socket.set_read_timeout(Some(limit))?;
    socket.set_write_timeout(Some(limit))?;
    // The kernel waits for as long as writing may take, and says why it was refused: who polls instead finds now
    // and then that it was, and no reason.
    match socket.connect(&remote.into()) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EINPROGRESS) => {
            Err(io::ErrorKind::TimedOut.into())
        }
        connected => connected.map(|()| socket.into()),
    }
}

/// Connects to an echo server, sends `payload`, wants it back, and closes; returns the address
/// and port it came from.
///
/// Each step has `limit` to finish. Payloads beyond the socket buffers (some 100 KiB) would
/// block: see [`Transfer`] for those.
///
/// # Errors
/// What the network or the kernel said, or that something else came back.
pub fn exchange(
    namespace: &LabNamespace,
    local: Option<SocketAddr>,
    remote: SocketAddr,
    payload: &[u8],
    limit: Duration,
) -> Result<SocketAddr, LabError> {
    let mut stream = connect(namespace, local, remote, limit)?;
    let mut talk = || -> io::Result<SocketAddr> {
        stream.write_all(payload)?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        if answer != payload {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} octets came back changed", answer.len()),
            ));
        }
        stream.local_addr()
    };
    talk().map_err(|error| {
        let action = format!("TCP echo with {remote} from {}", namespace.namespace());
        LabError::io(action, error)
    })
}

/// Which way the octets of a [`Transfer`] go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the side that connects to the side that listens.
    Upload,
    /// From the side that listens to the side that connects.
    Download,
}

/// One TCP connection that carries a known sequence of octets, each of them checked.
#[derive(Clone, Debug)]
pub struct Transfer<'a> {
    /// Who connects.
    pub client: &'a LabNamespace,
    /// Who listens.
    pub server: &'a LabNamespace,
    /// Where the server listens.
    pub listen: SocketAddr,
    /// Where the client connects to; the port of `listen` where this one is 0.
    pub connect: SocketAddr,
    /// The client's source address.
    pub source: Option<IpAddr>,
    /// Which way the octets go.
    pub direction: Direction,
    /// How many of them.
    pub octets: u64,
    /// Time for the whole transfer.
    pub limit: Duration,
}

/// What a [`Transfer`] achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transferred {
    /// Octets received and checked.
    pub octets: u64,
    /// From the accepted connection to the last octet received.
    pub elapsed: Duration,
}

impl Transfer<'_> {
    /// Runs it; `progress` counts the octets received so far, for another thread to show.
    ///
    /// # Errors
    /// The connection failed or stalled, or octets were lost or changed.
    pub fn run(&self, progress: &AtomicU64) -> Result<Transferred, LabError> {
        let listener = self
            .server
            .try_run(&format!("listen on {}", self.listen), || {
                once_free(FREE_WITHIN, || TcpListener::bind(self.listen))
            })?;
        self.carry(&listener, progress).map_err(|error| {
            let action = format!(
                "{:?} of {} octets between {} and {}",
                self.direction,
                self.octets,
                self.client.namespace(),
                self.server.namespace()
            );
            LabError::io(action, error)
        })
    }

    fn carry(&self, listener: &TcpListener, progress: &AtomicU64) -> io::Result<Transferred> {
        let deadline = Instant::now() + self.limit;
        let mut connect = self.connect;
        if connect.port() == 0 {
            connect.set_port(listener.local_addr()?.port());
        }
        let source = self.source.map(|address| SocketAddr::new(address, 0));
        // The kernel of the server completes the handshake, so accept need not run meanwhile.
        let near = self
            .client
            .run(|| open(source, connect, self.limit))
            .map_err(io::Error::other)??;
        listener.set_nonblocking(false)?;
        let far = accept_within(listener, self.limit)?;
        let (sender, receiver) = match self.direction {
            Direction::Upload => (near, far),
            Direction::Download => (far, near),
        };
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| send(sender, self.octets, deadline));
            let received = receive(receiver, self.octets, deadline, progress);
            let elapsed = begin.elapsed();
            let sent = sending
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // The receiver knows better what went wrong.
            let octets = received?;
            sent?;
            Ok(Transferred { octets, elapsed })
        })
    }
}

/// SO_RCVTIMEO limits accept as well.
fn accept_within(listener: &TcpListener, limit: Duration) -> io::Result<TcpStream> {
    socket2::SockRef::from(listener).set_read_timeout(Some(limit))?;
    Ok(listener.accept()?.0)
}

const BLOCK: usize = 64 * 1024;

/// Sends the first `octets` octets of the pattern, then the end of the stream.
fn send(mut stream: TcpStream, octets: u64, deadline: Instant) -> io::Result<()> {
    let mut offset = 0;
    while offset < octets {
        let left = usize::try_from(octets - offset).unwrap_or(BLOCK);
        let part = pattern::at(offset, left.min(BLOCK));
        stream.set_write_timeout(Some(left_until(deadline)?))?;
        stream.write_all(part)?;
        offset += part.len() as u64;
    }
    stream.shutdown(Shutdown::Write)
}

/// Receives until the end of the stream and checks every octet.
fn receive(
    mut stream: TcpStream,
    octets: u64,
    deadline: Instant,
    progress: &AtomicU64,
) -> io::Result<u64> {
    let mut block = vec![0; 4 * BLOCK];
    let mut offset = 0;
    let invalid = |text| io::Error::new(io::ErrorKind::InvalidData, text);
    loop {
        stream.set_read_timeout(Some(left_until(deadline)?))?;
        let length = stream.read(&mut block)?;
        if length == 0 {
            break;
        }
        if let Some(at) = pattern::first_difference(offset, &block[..length]) {
            return Err(invalid(format!("octet {at} of the stream was changed")));
        }
        offset += length as u64;
        progress.store(offset, Ordering::Relaxed);
    }
    if offset != octets {
        return Err(invalid(format!("{offset} of {octets} octets arrived")));
    }
    Ok(offset)
}

fn left_until(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left.max(Duration::from_millis(1)))
}
