//! Room for frames that are longer than a buffer.
//!
//! An interface whose other end, or whose own GRO, makes super-frames of more than 64 KiB (BIG TCP)
//! hands up frames that no buffer holds. How long a frame is can be told from nothing before it is read,
//! and what a call has no room for is lost: so there has to be room before the first one comes. To have it
//! with every call for ever would cost every frame of every interface: a second area takes the kernel 3 to
//! 6 nanoseconds a frame more, and calls are for fewer messages, as areas are large. So each message has a
//! second area from the beginning, until there was no long frame for a long time, and again from the
//! next one on. That next one is lost.

use nos_shim::frame::{BATCH, VNET_HEADER};
use nos_shim::offload::MAX_LONG_FRAME;

/// Messages that are received at once while long frames come. The pieces of so many make about as
/// many frames as a burst has.
pub(super) const LONG_MESSAGES: usize = 4;

const _: () = assert!(2 * LONG_MESSAGES <= BATCH, "two areas for each message");

/// Octets of a long frame that a buffer may not hold. Embedders' buffers can be short.
const AREA: usize = MAX_LONG_FRAME + VNET_HEADER;

/// Frames in a row that fit a buffer, after which the room is not offered any more.
const PATIENCE: usize = 1 << 16;

/// The second areas of messages.
#[derive(Debug, Default)]
pub(super) struct Overflow {
    /// Empty until room is offered. It becomes resident where frames touch it.
    octets: Vec<u8>,
    offered: bool,
    /// Whether there ever was a long frame.
    seen: bool,
    /// Frames received since the last long one.
    ordinary: usize,
}

impl Overflow {
    /// Whether messages have second areas.
    #[inline]
    pub(super) fn offered(&self) -> bool {
        self.offered
    }

    /// The interface is new, or a long frame was lost for want of room: offers it from now on.
    pub(super) fn begin(&mut self) {
        if self.octets.is_empty() {
            self.octets = vec![0; LONG_MESSAGES * AREA];
        }
        self.offered = true;
        self.ordinary = 0;
    }

    /// There is a long frame. Returns whether it is the first.
    pub(super) fn see(&mut self) -> bool {
        !core::mem::replace(&mut self.seen, true)
    }

    /// So many frames came, long or not.
    pub(super) fn count(&mut self, frames: usize) {
        self.ordinary = self.ordinary.saturating_add(frames);
    }

    /// One of them was long.
    pub(super) fn was_needed(&mut self) {
        self.ordinary = 0;
    }

    /// Stops offering room that has not been needed for long. Returns whether it is still offered.
    pub(super) fn keep(&mut self) -> bool {
        self.offered &= self.ordinary < PATIENCE;
        self.offered
    }

    /// The second area of message `n`.
    pub(super) fn area(&mut self, n: usize) -> &mut [u8] {
        let areas = self.octets.chunks_exact_mut(AREA);
        areas.into_iter().nth(n).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_offered_until_it_was_not_needed_for_long() {
        let mut overflow = Overflow::default();
        assert!(!overflow.offered() && overflow.area(0).is_empty());
        overflow.begin();
        overflow.count(PATIENCE - 1);
        assert!(overflow.keep());
        overflow.was_needed();
        overflow.count(PATIENCE - 1);
        assert!(overflow.keep());
        overflow.count(1);
        assert!(!overflow.keep() && !overflow.offered());
        overflow.begin();
        assert!(overflow.keep());
    }

    #[test]
    fn the_first_long_frame_is_told_from_others() {
        let mut overflow = Overflow::default();
        overflow.begin();
        assert_eq!([overflow.see(), overflow.see()], [true, false]);
    }

    #[test]
    fn areas_are_apart() {
        let mut overflow = Overflow::default();
        overflow.begin();
        for n in 0..LONG_MESSAGES {
            assert_eq!(overflow.area(n).len(), AREA);
            overflow.area(n).fill(u8::try_from(n).unwrap());
        }
        assert!((0..LONG_MESSAGES).all(|n| usize::from(overflow.area(n)[AREA - 1]) == n));
        assert!(overflow.area(LONG_MESSAGES).is_empty());
    }
}
