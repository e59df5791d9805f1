//! One client's connection: what it says, what it is told, and when it is over.

use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use mio::net::UnixStream;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nos_shim::time::Instant;

use super::protocol::{MAX_REQUEST, Refusal, RefusalCode, Response, encode_response};
use super::watchers::Lines;

/// Octets of the longest further request on a connection that holds something, newline included.
pub const MAX_HELD_REQUEST: usize = 64 << 10;

/// Time from the connection to the end of its request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Time that the daemon has to answer, and again that the client has to read the answer.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

const READ_SIZE: usize = 16 << 10;

/// The process at the other end, as it was when it connected (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its process id; 0 where the kernel does not say, or it is not of our PID namespace.
    pub pid: i32,
    /// Its user id; that of nobody (65534) where the kernel does not say.
    pub uid: u32,
}

impl Peer {
    fn of(stream: &UnixStream) -> Self {
        match getsockopt(stream, PeerCredentials) {
            Ok(peer) => Self {
                pid: peer.pid(),
                uid: peer.uid(),
            },
            Err(_) => Self {
                pid: 0,
                uid: 65_534,
            },
        }
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    /// Tells apart those that had the same slot.
    pub(super) generation: u64,
    pub(super) peer: Peer,
    pub(super) state: State,
    pub(super) deadline: Option<Instant>,
    /// Whether something is registered as long as it is open.
    pub(super) holds: bool,
    /// It is closed once it is answered, whatever it holds.
    refused: bool,
    /// What was read and is not a whole line yet.
    inbox: Vec<u8>,
    /// Octets of it in which there is no newline.
    looked_at: usize,
    /// What came along with the request that is being read: one at most.
    descriptor: Option<OwnedFd>,
}

#[derive(Debug)]
pub(super) enum State {
    Reading,
    Waiting,
    Writing { octets: Vec<u8>, sent: usize },
    Watching { lines: Lines, registrations: bool },
}

/// What became of a connection.
pub(super) enum Step {
    /// It waits for the next event.
    Blocked,
    /// It goes on in its next state.
    Again,
    /// It has nothing left to do.
    Finished,
    /// Its whole request, without the newline, and what came along with it.
    Line(Vec<u8>, Option<OwnedFd>),
    /// It is answered without anybody being asked.
    Refuse(Refusal),
}

impl Connection {
    pub(super) fn new(stream: UnixStream, generation: u64, now: Instant) -> Self {
        Self {
            peer: Peer::of(&stream),
            stream,
            generation,
            state: State::Reading,
            deadline: Some(now + REQUEST_TIMEOUT),
            holds: false,
            refused: false,
            inbox: Vec::new(),
            looked_at: 0,
            descriptor: None,
        }
    }

    /// Whether it is open for nothing but what it holds.
    pub(super) fn is_idle(&self) -> bool {
        self.holds && matches!(self.state, State::Reading) && self.inbox.is_empty()
    }

    pub(super) fn answer(&mut self, response: &Response, now: Instant) {
        self.deadline = Some(now + RESPONSE_TIMEOUT);
        self.state = State::Writing {
            octets: encode_response(response),
            sent: 0,
        };
    }

    /// Answers what is no request, behind which nothing can be read any more.
    pub(super) fn refuse(&mut self, refusal: Refusal, now: Instant) {
        self.refused = true;
        self.answer(&Response::Refused(refusal), now);
    }

    /// Does what its state allows.
    pub(super) fn step(&mut self, now: Instant) -> Step {
        match &mut self.state {
            State::Reading => self.read(now),
            State::Waiting => Step::Blocked,
            State::Writing { octets, sent } => match write_rest(&mut self.stream, octets, sent) {
                Written::All if self.holds && !self.refused => self.read_again(),
                Written::All | Written::Failed => Step::Finished,
                Written::Part => Step::Blocked,
            },
            State::Watching { lines, .. } => match is_over(&self.stream) {
                true => Step::Finished,
                false => write_lines(&mut self.stream, lines),
            },
        }
    }

    /// It holds something: it is not closed, and may ask again.
    fn read_again(&mut self) -> Step {
        self.state = State::Reading;
        self.deadline = None;
        Step::Again
    }

    fn read(&mut self, now: Instant) -> Step {
        let limit = if self.holds {
            MAX_HELD_REQUEST
        } else {
            MAX_REQUEST
        };
        loop {
            if let Some(line) = self.whole_line() {
                return Step::Line(line, self.descriptor.take());
            }
            let room = limit.saturating_sub(self.inbox.len()).min(READ_SIZE);
            if room == 0 {
                let message = format!("the request is longer than {limit} octets");
                return Step::Refuse(Refusal::new(RefusalCode::TooLong, message));
            }
            match self.receive(room) {
                Ok(0) if self.inbox.is_empty() || self.holds => return Step::Finished,
                Ok(0) => {
                    let message = "the request ends without a newline";
                    return Step::Refuse(Refusal::new(RefusalCode::BadRequest, message));
                }
                Ok(_) => {}
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock => {
                        self.expect_the_rest(now);
                        return Step::Blocked;
                    }
                    _ => return Step::Finished,
                },
            }
        }
    }

    /// One that holds something may be silent; what it begins to say, it has to end in time.
    fn expect_the_rest(&mut self, now: Instant) {
        if self.holds {
            self.deadline = match self.inbox.is_empty() {
                true => None,
                false => self.deadline.or(Some(now + REQUEST_TIMEOUT)),
            };
        }
    }

    /// The first line of what was read, without its newline.
    fn whole_line(&mut self) -> Option<Vec<u8>> {
        let new = self.inbox.get(self.looked_at..).unwrap_or_default();
        let Some(at) = new.iter().position(|&octet| octet == b'\n') else {
            self.looked_at = self.inbox.len();
            return None;
        };
        let rest = self.inbox.split_off(self.looked_at + at + 1);
        self.looked_at = 0;
        let mut line = std::mem::replace(&mut self.inbox, rest);
        line.pop();
        Some(line)
    }

    /// Reads at most `room` octets behind those that were read, and a descriptor with them.
    fn receive(&mut self, room: usize) -> io::Result<usize> {
        let before = self.inbox.len();
        self.inbox.resize(before + room, 0);
        let received = receive(self.stream.as_fd(), &mut self.inbox[before..]);
        let read = received.as_ref().map_or(0, |(read, _)| *read);
        self.inbox.truncate(before + read);
        let (read, descriptor) = received?;
        if let Some(descriptor) = descriptor {
            self.descriptor.get_or_insert(descriptor);
        }
        Ok(read)
    }
}

/// Octets of a control message with one descriptor, in units that are aligned as its header is.
type Control = [libc::size_t; 4];

/// As long is a control message with one descriptor (`CMSG_LEN`).
const ONE_DESCRIPTOR: usize = size_of::<libc::cmsghdr>() + size_of::<RawFd>();

/// Reads octets, and a descriptor if one comes with them. The kernel closes all but one
/// (`cmsg(3)`, `MSG_CTRUNC`).
fn receive(stream: BorrowedFd<'_>, octets: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut control: Control = [0; 4];
    let mut slice = libc::iovec {
        iov_base: octets.as_mut_ptr().cast(),
        iov_len: octets.len(),
    };
    // SAFETY: all zero is a message header without anything.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = ONE_DESCRIPTOR;
    // SAFETY: the header points to `slice`, with it to `octets`, and to `control`, with their
    // lengths; all of them live until the call returns.
    let read =
        unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has written the header, whose control messages are in `control`. The first
    // one is whole or not there, and there is room for one alone.
    let descriptor = unsafe {
        let first = libc::CMSG_FIRSTHDR(&raw const message);
        let is_descriptor = !first.is_null()
            && (*first).cmsg_level == libc::SOL_SOCKET
            && (*first).cmsg_type == libc::SCM_RIGHTS;
        is_descriptor.then(|| {
            let descriptor = libc::CMSG_DATA(first).cast::<RawFd>().read_unaligned();
            // Nobody else knows it: the kernel has just made it for us.
            OwnedFd::from_raw_fd(descriptor)
        })
    };
    Ok((read, descriptor))
}

enum Written {
    All,
    Part,
    Failed,
}

fn write_rest(stream: &mut impl Write, octets: &[u8], sent: &mut usize) -> Written {
    while *sent < octets.len() {
        match stream.write(&octets[*sent..]) {
            Ok(0) => return Written::Failed,
            Ok(written) => *sent += written,
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock => return Written::Part,
                _ => return Written::Failed,
            },
        }
    }
    Written::All
}

/// Whether a client that watches has hung up, or says something, which it has nothing to.
fn is_over(mut stream: &UnixStream) -> bool {
    loop {
        match io::Read::read(&mut stream, &mut [0]) {
            Ok(0 | 1..) => return true,
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock => return false,
                _ => return true,
            },
        }
    }
}

fn write_lines(stream: &mut impl Write, lines: &mut Lines) -> Step {
    while let Some(line) = lines.next() {
        match stream.write(line) {
            Ok(0) => return Step::Finished,
            Ok(written) => lines.note_sent(written),
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock => return Step::Blocked,
                _ => return Step::Finished,
            },
        }
    }
    Step::Blocked
}
