//! Cutting a payload into pieces behind copies of its headers.

use super::{Adapted, Dropped};
use crate::drop::DropReason;
use crate::frame::{Frame, FramePool};
use crate::packet::Packet;

/// One piece of a payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Pieces before it, modulo 2^16.
    pub(super) index: u16,
    /// Octets of payload before it.
    pub(super) offset: usize,
    /// Octets of payload in it.
    pub(super) len: usize,
    /// Nothing follows.
    pub(super) last: bool,
}

/// Mends the headers of pieces.
pub(super) trait Finish {
    /// `frame` holds a copy of the original headers and a piece of the payload; its offload state
    /// and parse results are the original's.
    fn finish(&self, frame: &mut Frame, piece: Piece);
}

/// How a payload is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Octets of headers that each piece gets a copy of, from the frame's start.
    pub(super) headers: usize,
    /// Octets of payload in each piece but the last; not zero.
    pub(super) piece: usize,
    /// Octets of payload that may go into the last piece; not less than in the others.
    pub(super) last: usize,
}

/// A packet that is being cut.
pub(super) struct Cut<F> {
    whole: Option<Packet>,
    sizes: Sizes,
    finish: F,
    /// Octets of payload cut off so far.
    done: usize,
    index: u16,
    made: u64,
    missing: u64,
}

impl<F: Finish> Cut<F> {
    pub(super) fn new(whole: Packet, sizes: Sizes, finish: F) -> Self {
        Self {
            whole: Some(whole),
            sizes,
            finish,
            done: 0,
            index: 0,
            made: 0,
            missing: 0,
        }
    }

    /// The next piece, in order.
    pub(super) fn next(&mut self, pool: &mut FramePool) -> Option<Packet> {
        let whole = self.whole.as_ref()?.frame();
        let left = whole.len() - self.sizes.headers - self.done;
        self.made += 1;
        if left > self.sizes.last {
            if let Some(frame) = self.copy(whole, pool) {
                self.advance(1);
                return Some(Packet::assume(frame));
            }
            self.skip(left);
        }
        self.last()
    }

    fn copy(&self, whole: &Frame, pool: &mut FramePool) -> Option<Frame> {
        let piece = Piece {
            index: self.index,
            offset: self.done,
            len: self.sizes.piece,
            last: false,
        };
        copy(whole, self.sizes.headers, piece, &self.finish, pool)
    }

    /// Gives up all but the last piece of the `left` octets.
    #[cold]
    fn skip(&mut self, left: usize) {
        let pieces = (left - self.sizes.last).div_ceil(self.sizes.piece);
        self.advance(pieces);
        self.missing = u64::try_from(pieces).unwrap_or(u64::MAX);
    }

    fn advance(&mut self, pieces: usize) {
        self.done += pieces * self.sizes.piece;
        // There are fewer pieces than octets, so none is lost here.
        self.index = self.index.wrapping_add(u16::try_from(pieces).unwrap_or(0));
    }

    /// The last piece, in the original's buffer.
    fn last(&mut self) -> Option<Packet> {
        let mut packet = self.whole.take()?;
        let headers = self.sizes.headers;
        let frame = packet.frame_mut();
        let len = frame.len() - headers - self.done;
        frame
            .bytes_mut()
            .copy_within(headers + self.done.., headers);
        frame.truncate(headers + len);
        let piece = Piece {
            index: self.index,
            offset: self.done,
            len,
            last: true,
        };
        self.finish.finish(frame, piece);
        Some(packet)
    }

    /// What became of the packet, once [`Self::next`] has returned `None`.
    pub(super) fn adapted(&self) -> Adapted {
        Adapted {
            originated: self.made + self.missing - 1,
            dropped: (self.missing > 0).then_some(Dropped {
                reason: DropReason::NoBuffer,
                packets: self.missing,
            }),
        }
    }
}

/// A copy of the headers and of a piece of the payload.
fn copy<F: Finish>(
    whole: &Frame,
    headers: usize,
    piece: Piece,
    finish: &F,
    pool: &mut FramePool,
) -> Option<Frame> {
    let mut frame = pool.alloc()?;
    if frame.set_len(headers + piece.len).is_err() {
        pool.free(frame);
        return None;
    }
    let (from, to) = whole.bytes().split_at(headers);
    let (header, payload) = frame.bytes_mut().split_at_mut(headers);
    header.copy_from_slice(from);
    payload.copy_from_slice(&to[piece.offset..piece.offset + piece.len]);
    frame.inherit(whole);
    frame.set_offload(whole.offload());
    finish.finish(&mut frame, piece);
    Some(frame)
}

/// A copy of the first piece of a packet that has more than one.
pub(super) fn copy_first<F: Finish>(
    whole: &Packet,
    sizes: Sizes,
    finish: &F,
    pool: &mut FramePool,
) -> Option<Packet> {
    let piece = Piece {
        index: 0,
        offset: 0,
        len: sizes.piece,
        last: false,
    };
    copy(whole.frame(), sizes.headers, piece, finish, pool).map(Packet::assume)
}
