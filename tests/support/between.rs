//! Somebody between a process that takes over and the one that it takes over from: he passes on what
//! they say, and stops before a message of his choice.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where its network cannot be built"
)]

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::cmsg_space;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

/// What one of them said: a line, or one octet with the descriptors that came along.
#[derive(Debug)]
struct Message {
    /// Whether the new process said it.
    by_new: bool,
    octets: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// Listens where the new process shall ask.
#[derive(Debug)]
pub(crate) struct Between(UnixListener);

impl Between {
    pub(crate) fn at(path: &Path) -> Self {
        let _ = std::fs::remove_file(path);
        Self(UnixListener::bind(path).unwrap())
    }

    /// Passes on messages to and from the process that listens at `control`, as many as `count`, and
    /// returns what the one says that comes then. Does `stop`, and hangs up on both.
    pub(crate) fn pass(&self, control: &Path, count: usize, stop: impl FnOnce()) -> Vec<u8> {
        let (new, _) = self.0.accept().unwrap();
        let old = UnixStream::connect(control).unwrap();
        for _ in 0..count {
            let message = next(&new, &old);
            let to = if message.by_new { &old } else { &new };
            send(to, &message);
        }
        let message = next(&new, &old);
        stop();
        message.octets
    }
}

/// What one of them says next.
fn next(new: &UnixStream, old: &UnixStream) -> Message {
    let mut ends = [new, old].map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
    poll(&mut ends, PollTimeout::NONE).unwrap();
    let by_new = ends[0].any().unwrap();
    let from = if by_new { new } else { old };
    let mut message = Message {
        by_new,
        octets: Vec::new(),
        descriptors: Vec::new(),
    };
    // What is no line is a message by itself.
    loop {
        receive(from, &mut message);
        if !message.octets.starts_with(b"{") || message.octets.ends_with(b"\n") {
            return message;
        }
    }
}

fn receive(from: &UnixStream, message: &mut Message) {
    let mut octet = [0];
    let mut space = cmsg_space!([RawFd; 253]);
    let mut pieces = [IoSliceMut::new(&mut octet)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<UnixAddr>(from.as_raw_fd(), &mut pieces, Some(&mut space), flags);
    let received = received.unwrap();
    assert_eq!(received.bytes, 1, "after {message:?} there is nothing more");
    for part in received.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            // SAFETY: the kernel has made these descriptors a moment ago.
            let owned = numbers
                .into_iter()
                .map(|it| unsafe { OwnedFd::from_raw_fd(it) });
            message.descriptors.extend(owned);
        }
    }
    message.octets.extend(octet);
}

fn send(to: &UnixStream, message: &Message) {
    let numbers: Vec<RawFd> = message.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let rights = if numbers.is_empty() { &[][..] } else { &rights };
    let pieces = [IoSlice::new(&message.octets)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    let sent = sendmsg::<()>(to.as_raw_fd(), &pieces, rights, flags, None);
    assert_eq!(sent.unwrap(), message.octets.len());
}
