//! Which parts of a datagram have been seen.

use crate::packet::FragmentSpan;

/// Fragments of one datagram that are remembered: enough for the longest datagram at an MTU of 576
/// octets.
const MAX_SPANS: usize = 128;

/// What a fragment does to a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placed {
    /// It adds to it.
    New,
    /// It is the same as one before (RFC 8200 §4.5 lets it be dropped alone, as Linux does).
    Duplicate,
    /// It overlaps another or contradicts it about where the datagram ends (RFC 5722 §4).
    Clash,
    /// The datagram is in too many pieces.
    TooMany,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: u32,
    end: u32,
}

/// The fragments of a datagram, none of which overlap.
#[derive(Debug, Default)]
pub(super) struct Extent {
    /// In order. Keeps its memory from datagram to datagram.
    spans: Vec<Span>,
    /// The datagram's length, once its last fragment has been seen.
    len: Option<u32>,
    /// Octets in all spans.
    octets: u32,
}

impl Extent {
    /// Adds a fragment, if it fits to the others.
    pub(super) fn place(&mut self, fragment: FragmentSpan) -> Placed {
        let FragmentSpan { start, end, last } = fragment;
        let span = Span { start, end };
        let at = self.spans.partition_point(|other| other.start < start);
        if self.spans.get(at) == Some(&span) {
            let same = last == (self.len == Some(end));
            return if same {
                Placed::Duplicate
            } else {
                Placed::Clash
            };
        }
        if start >= end || self.overlaps(at, span) || self.contradicts(fragment) {
            return Placed::Clash;
        }
        if self.spans.len() >= MAX_SPANS {
            return Placed::TooMany;
        }
        self.spans.insert(at, span);
        self.octets += end - start;
        if last {
            self.len = Some(end);
        }
        Placed::New
    }

    /// Whether all of the datagram has been seen.
    pub(super) fn is_complete(&self) -> bool {
        self.len == Some(self.octets)
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.spans.clear();
        self.len = None;
        self.octets = 0;
    }

    /// Whether `span`, which belongs at `at`, overlaps a neighbour.
    fn overlaps(&self, at: usize, span: Span) -> bool {
        let before = at.checked_sub(1).and_then(|before| self.spans.get(before));
        let after = self.spans.get(at);
        before.is_some_and(|before| before.end > span.start)
            || after.is_some_and(|after| after.start < span.end)
    }

    /// Whether the datagram would have two ends, or something behind its end.
    fn contradicts(&self, FragmentSpan { end, last, .. }: FragmentSpan) -> bool {
        let seen = self.spans.last().map_or(0, |span| span.end);
        match self.len {
            Some(len) => last || end > len,
            None => last && seen > end,
        }
    }
}
