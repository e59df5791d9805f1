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
use std::sync::mpsc::channel;
use std::thread;

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
        let (say, said) = channel();
        let (stopped, stop_awaited) = channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                keep_alone(self.0.as_raw_fd());
                let (new, _) = self.0.accept().unwrap();
                let old = UnixStream::connect(control).unwrap();
                for _ in 0..count {
                    let message = next(&new, &old);
                    let to = if message.by_new { &old } else { &new };
                    send(to, &message);
                }
                say.send(next(&new, &old).octets).unwrap();
                // It hangs up only then.
                assert!(stop_awaited.recv().is_err());
            });
            let octets = said.recv().unwrap();
            stop();
            drop(stopped);
            octets
        })
    }
}

/// Gives the calling thread descriptors of its own, and closes all there but one and the three that
/// every program has. What passes here, locks among it, is then in no child that another thread starts,
/// which would hold it until it runs its program.
fn keep_alone(kept: RawFd) {
    let kept = u32::try_from(kept).unwrap();
    assert!(kept > 2);
    let close = |first: u32, last: u32, flags: u32| {
        if first > last {
            return;
        }
        // SAFETY: the call takes numbers alone. The descriptors that it closes are this thread's copies,
        // of which it uses none.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
        assert_eq!(closed, 0, "{}", std::io::Error::last_os_error());
    };
    // All that is copied is closed at once, but for what has lower numbers.
    close(kept + 1, u32::MAX, libc::CLOSE_RANGE_UNSHARE);
    close(3, kept - 1, 0);
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
