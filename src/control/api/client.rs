//! The client's end: one question, one answer, with a deadline.

use core::time::Duration;
use std::io::{self, BufRead, BufReader, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

use super::event::Watched;
use super::protocol::{
    MAX_REQUEST, MAX_RESPONSE, Malformed, Refusal, Request, Response, VERSION, decode_response,
    decode_watched, encode_request,
};

/// Time for a whole query, unless the daemon is faster.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error(
        "{}: no nos-relay is running there; start one with `nos-relay run CONFIG`, or say with \
         --control where its socket is",
        .0.display()
    )]
    NoDaemon(PathBuf),
    /// The socket is another user's.
    #[error(
        "{}: permission denied; the socket is for the user who runs nos-relay, often root",
        .0.display()
    )]
    Permission(PathBuf),
    /// The daemon took too long.
    #[error("{}: no answer within {} s", path.display(), timeout.as_secs_f32())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// The time that it had.
        timeout: Duration,
    },
    /// The daemon is of another version.
    #[error("the daemon speaks version {0} of the control protocol, this program {VERSION}")]
    Version(u32),
    /// The daemon closed the connection before the end of its answer.
    #[error("{}: the answer breaks off; the daemon may have stopped", .0.display())]
    Incomplete(PathBuf),
    /// The answer is longer than [`MAX_RESPONSE`].
    #[error("{}: the answer is longer than {MAX_RESPONSE} octets", .0.display())]
    TooLong(PathBuf),
    /// What answers is no nos-relay.
    #[error("{}: the answer makes no sense: {why}", path.display())]
    Malformed {
        /// The socket.
        path: PathBuf,
        /// What is wrong with the answer.
        why: String,
    },
    /// The daemon does not grant the request.
    #[error("the daemon refuses: {0}")]
    Refused(Refusal),
    /// Any other failure.
    #[error("{}: {error}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        #[source]
        error: io::Error,
    },
}

/// Asks the daemon whose socket is at `path`, and waits up to `timeout` for the answer.
///
/// # Errors
///
/// [`ControlError`]; a refusal is [`ControlError::Refused`], never a [`Response`].
pub fn query(path: &Path, request: &Request, timeout: Duration) -> Result<Response, ControlError> {
    ask(path, None, request, timeout)
}

/// As [`query`], with an id by which the daemon knows the request if it comes again: then it gives
/// the same answer and does nothing.
///
/// # Errors
///
/// As [`query`].
pub fn ask(
    path: &Path,
    id: Option<&str>,
    request: &Request,
    timeout: Duration,
) -> Result<Response, ControlError> {
    ask_for(path, id, request, None, timeout)
}

/// As [`ask`], for a process that is to hold what is asked for (`"lease":"pidfd"`): its pidfd goes
/// along.
///
/// # Errors
///
/// As [`query`].
pub fn ask_for(
    path: &Path,
    id: Option<&str>,
    request: &Request,
    holder: Option<BorrowedFd<'_>>,
    timeout: Duration,
) -> Result<Response, ControlError> {
    asked(path, id, request, holder, timeout).map(|(response, _)| response)
}

/// As [`query`], over a connection that is there, of which the daemon has the other end.
pub(crate) fn query_on(
    mut stream: UnixStream,
    name: &Path,
    request: &Request,
    timeout: Duration,
) -> Result<Response, ControlError> {
    write_request(&mut stream, name, None, request, None, timeout)?;
    let deadline = Instant::now() + timeout;
    let line = read_line(&mut stream, deadline).map_err(|error| explain(name, timeout, error))?;
    answer(name, &line)
}

/// What is held by a connection (`"lease":"connection"`), until this is dropped.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    stream: UnixStream,
}

/// As [`ask`], for something that goes when the connection that asked does.
///
/// # Errors
///
/// As [`query`].
pub fn hold(
    path: &Path,
    id: Option<&str>,
    request: &Request,
    timeout: Duration,
) -> Result<(Response, Held), ControlError> {
    let (response, stream) = asked(path, id, request, None, timeout)?;
    let path = path.to_owned();
    Ok((response, Held { path, stream }))
}

impl Held {
    /// Waits until the daemon has ended, and with it what was held.
    ///
    /// # Errors
    ///
    /// The connection fails.
    pub fn wait(mut self) -> Result<(), ControlError> {
        let error = |error| explain(&self.path, Duration::ZERO, error);
        self.stream.set_read_timeout(None).map_err(error)?;
        let mut octets = [0; 64];
        loop {
            match self.stream.read(&mut octets) {
                Ok(0) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => {
                    read.map_err(error)?;
                }
            }
        }
    }
}

fn asked(
    path: &Path,
    id: Option<&str>,
    request: &Request,
    holder: Option<BorrowedFd<'_>>,
    timeout: Duration,
) -> Result<(Response, UnixStream), ControlError> {
    let mut stream = send(path, id, request, holder, timeout)?;
    let deadline = Instant::now() + timeout;
    let line = read_line(&mut stream, deadline).map_err(|error| explain(path, timeout, error))?;
    Ok((answer(path, &line)?, stream))
}

/// Asks, and keeps the connection for what follows the answer, of which nothing was read.
///
/// # Errors
///
/// As [`query`].
pub(in crate::control) fn converse(
    path: &Path,
    request: &Request,
    timeout: Duration,
) -> Result<(UnixStream, Response), ControlError> {
    let error = |error: io::Error| explain(path, timeout, error);
    let mut stream = send(path, None, request, None, timeout)?;
    stream.set_read_timeout(Some(timeout)).map_err(error)?;
    let mut line = Vec::new();
    let mut octet = [0];
    // What comes with descriptors must not be read together with the line.
    while line.len() <= MAX_REQUEST && line.last() != Some(&b'\n') {
        match stream.read(&mut octet) {
            Ok(0) => break,
            Ok(_) => line.extend(octet),
            Err(interrupted) if interrupted.kind() == ErrorKind::Interrupted => {}
            Err(other) => return Err(error(other)),
        }
    }
    Ok((stream, answer(path, &line)?))
}

/// Connects, and asks.
fn send(
    path: &Path,
    id: Option<&str>,
    request: &Request,
    along: Option<BorrowedFd<'_>>,
    timeout: Duration,
) -> Result<UnixStream, ControlError> {
    let stream = connect(path, timeout);
    let mut stream = stream.map_err(|error| explain(path, timeout, error))?;
    write_request(&mut stream, path, id, request, along, timeout)?;
    Ok(stream)
}

fn write_request(
    stream: &mut UnixStream,
    path: &Path,
    id: Option<&str>,
    request: &Request,
    along: Option<BorrowedFd<'_>>,
    timeout: Duration,
) -> Result<(), ControlError> {
    let error = |error: io::Error| explain(path, timeout, error);
    stream.set_write_timeout(Some(timeout)).map_err(error)?;
    match write(stream, &encode_request(id, request), along) {
        // The daemon refuses without reading, and says why.
        Err(broken) if broken.kind() == ErrorKind::BrokenPipe => Ok(()),
        sent => sent.map_err(error),
    }
}

/// Writes all of it; a descriptor goes with the first octets.
fn write(stream: &mut UnixStream, octets: &[u8], along: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut sent = 0;
    if let Some(descriptor) = along {
        let descriptors = [descriptor.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let slices = [IoSlice::new(octets)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        sent = sendmsg::<()>(stream.as_raw_fd(), &slices, &rights, flags, None)?;
    }
    stream.write_all(octets.get(sent..).unwrap_or_default())
}

/// The response of a line, if it is one.
fn answer(path: &Path, line: &[u8]) -> Result<Response, ControlError> {
    if line.len() > MAX_RESPONSE {
        return Err(ControlError::TooLong(path.to_owned()));
    }
    let Some(line) = line.strip_suffix(b"\n") else {
        return Err(ControlError::Incomplete(path.to_owned()));
    };
    match decode_response(line) {
        Ok(Response::Refused(refusal)) => Err(ControlError::Refused(refusal)),
        Ok(response) => Ok(response),
        Err(Malformed::Version(theirs)) => Err(ControlError::Version(theirs)),
        Err(Malformed::Other(why)) => Err(ControlError::Malformed {
            path: path.to_owned(),
            why,
        }),
    }
}

const WATCH: Request = Request::Watch {
    registrations: false,
};

/// What happens at a daemon, as it happens.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    lines: BufReader<UnixStream>,
}

/// Watches the daemon at `path`; it has `timeout` to answer.
///
/// # Errors
///
/// As [`query`].
pub fn watch(path: &Path, timeout: Duration) -> Result<Watch, ControlError> {
    let stream = send(path, None, &WATCH, None, timeout)?;
    watching(stream, path, timeout)
}

/// As [`watch`]: all that containers have registered comes first, then each change of it with all else.
///
/// # Errors
///
/// As [`query`].
pub fn watch_registrations(path: &Path, timeout: Duration) -> Result<Watch, ControlError> {
    let request = Request::Watch {
        registrations: true,
    };
    let stream = send(path, None, &request, None, timeout)?;
    watching(stream, path, timeout)
}

/// As [`watch`], over a connection that is there.
pub(crate) fn watch_on(
    mut stream: UnixStream,
    name: &Path,
    timeout: Duration,
) -> Result<Watch, ControlError> {
    write_request(&mut stream, name, None, &WATCH, None, timeout)?;
    watching(stream, name, timeout)
}

fn watching(stream: UnixStream, path: &Path, timeout: Duration) -> Result<Watch, ControlError> {
    let error = |error: io::Error| explain(path, timeout, error);
    stream.set_read_timeout(Some(timeout)).map_err(error)?;
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    lines.read_until(b'\n', &mut line).map_err(error)?;
    answer(path, &line)?;
    lines.get_ref().set_read_timeout(None).map_err(error)?;
    let path = path.to_owned();
    Ok(Watch { path, lines })
}

impl Watch {
    /// Waits for the next line; `None` when the daemon has ended.
    ///
    /// # Errors
    ///
    /// The connection fails, or what comes is not of this protocol.
    pub fn next_line(&mut self) -> Result<Option<(String, Watched)>, ControlError> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line);
        read.map_err(|error| explain(&self.path, Duration::ZERO, error))?;
        let Some(line) = line.strip_suffix('\n') else {
            return Ok(None);
        };
        let watched = decode_watched(line.as_bytes()).map_err(|why| self.malformed(why))?;
        Ok(Some((line.to_owned(), watched)))
    }

    fn malformed(&self, why: Malformed) -> ControlError {
        match why {
            Malformed::Version(theirs) => ControlError::Version(theirs),
            Malformed::Other(why) => ControlError::Malformed {
                path: self.path.clone(),
                why,
            },
        }
    }
}

fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A connect waits while the daemon's backlog is full, this long.
    socket.set_write_timeout(Some(timeout))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(UnixStream::from(OwnedFd::from(socket)))
}

/// Reads up to and with the newline, to the end, or one octet more than is allowed.
fn read_line(stream: &mut UnixStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut octets = vec![0; 64 << 10];
    while line.len() <= MAX_RESPONSE && line.last() != Some(&b'\n') {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut octets) {
            Ok(0) => break,
            Ok(read) => line.extend_from_slice(&octets[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(line)
}

fn explain(path: &Path, timeout: Duration, error: io::Error) -> ControlError {
    let path = path.to_owned();
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => ControlError::NoDaemon(path),
        ErrorKind::PermissionDenied => ControlError::Permission(path),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => ControlError::Timeout { path, timeout },
        ErrorKind::ConnectionReset => ControlError::Incomplete(path),
        _ => ControlError::Io { path, error },
    }
}
