//! What a NOS gets that is not the one of this crate: its end of the channel, buffers, and a descriptor
//! to wait for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nos_shim::channel::{NosEnd, Wake};
use nos_shim::frame::FramePool;

/// An eventfd as a doorbell (eventfd(2)).
struct Doorbell(Arc<EventFd>);

impl Wake for Doorbell {
    fn wake(&self) {
        // It is non-blocking, and full only if it rings already.
        let _ = self.0.write(1);
    }
}

/// The NOS's side of the channel. It may be moved to any thread, and is used by one at a time.
///
/// When it is dropped, the relay knows that the NOS has ended, and drops what containers send, until
/// another one has taken its place.
///
/// ```text
/// loop:
///     while let Some(message) = port.channel().recv_control(): answer it
///     while let Some(burst) = port.channel().recv_burst(): forward it
///     port.channel().send_burst(packets for containers)
///     port.channel().ring()
///     if port.may_block(): poll(port, uplinks); port.awake()
/// ```
#[derive(Debug)]
pub struct NosPort {
    end: NosEnd,
    pool: FramePool,
    doorbell: Arc<EventFd>,
}

impl NosPort {
    /// Gives an end of a channel a doorbell. `pool` is the relay's.
    ///
    /// # Errors
    ///
    /// There is no descriptor left.
    pub fn new(mut end: NosEnd, pool: FramePool) -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let doorbell = Arc::new(EventFd::from_flags(flags)?);
        end.set_waker(Box::new(Doorbell(Arc::clone(&doorbell))));
        Ok(Self {
            end,
            pool,
            doorbell,
        })
    }

    /// The end of the channel.
    pub fn channel(&mut self) -> &mut NosEnd {
        &mut self.end
    }

    /// The pool from which the relay's packets come; packets for containers had better come from there
    /// too, as its buffers have room for a super-frame and its offload state.
    pub fn pool(&mut self) -> &mut FramePool {
        &mut self.pool
    }

    /// Announces that the caller is about to wait until [the descriptor](Self::as_fd) is readable.
    /// Returns `false` if it must not, because there is something to do.
    #[must_use]
    pub fn may_block(&mut self) -> bool {
        self.end.try_sleep()
    }

    /// Takes the announcement back, and the ring too. To be called after every wait.
    pub fn awake(&mut self) {
        self.end.awake();
        // Whatever it says: it does not ring any more.
        let _ = self.doorbell.read();
    }
}

impl AsFd for NosPort {
    /// Readable when the relay has something for a NOS that has [announced](Self::may_block) to wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nos_shim::channel::{Query, RequestId, ToNos, pair};

    fn is_readable(port: &NosPort) -> bool {
        let mut waits = [PollFd::new(port.as_fd(), PollFlags::POLLIN)];
        poll(&mut waits, PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn it_rings_for_who_waits_and_for_nobody_else() {
        let (mut relay, end) = pair(2);
        let mut port = NosPort::new(end, FramePool::new(4, 64)).unwrap();
        let ask = |n| ToNos::Query(RequestId(n), Query::Counters);
        relay.send_control(ask(1)).unwrap();
        assert!(!is_readable(&port), "nobody waits");
        assert!(!port.may_block(), "there is something");
        assert!(port.channel().recv_control().is_some());
        assert!(port.may_block());
        relay.send_control(ask(2)).unwrap();
        assert!(is_readable(&port));
        port.awake();
        assert!(!is_readable(&port));
        assert!(port.channel().recv_control().is_some());
        assert!(port.may_block());
        drop(relay);
        assert!(is_readable(&port), "it learns that the relay has ended");
        port.awake();
        assert!(port.channel().is_deserted());
    }
}
