//! The client's end: one question, one answer, with a deadline.

use core::time::Duration;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

use super::protocol::{
    MAX_RESPONSE, Malformed, Refusal, Request, Response, VERSION, decode_response, encode_request,
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
    let deadline = Instant::now() + timeout;
    let error = |error: io::Error| explain(path, timeout, error);
    let mut stream = connect(path, timeout).map_err(error)?;
    stream.set_write_timeout(Some(timeout)).map_err(error)?;
    match stream.write_all(&encode_request(request)) {
        // The daemon refuses without reading, and says why.
        Err(broken) if broken.kind() == ErrorKind::BrokenPipe => {}
        sent => sent.map_err(error)?,
    }
    let line = read_line(&mut stream, deadline).map_err(error)?;
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
