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

#[cfg(test)]
mod tests {
    use super::*;

    /// Octets of the longest datagram here.
    const LONGEST: u32 = 4;

    /// A datagram octet by octet: which fragment brought each, and which of them was the last.
    #[derive(Clone, Default)]
    struct Octets {
        fragments: Vec<FragmentSpan>,
        len: Option<u32>,
    }

    impl Octets {
        fn holder(&self, octet: u32) -> Option<&FragmentSpan> {
            let mut fragments = self.fragments.iter();
            fragments.find(|it| (it.start..it.end).contains(&octet))
        }

        fn place(&mut self, fragment: FragmentSpan) -> Placed {
            let FragmentSpan { start, end, last } = fragment;
            let same = |it: &&FragmentSpan| (it.start, it.end) == (start, end);
            if let Some(before) = self.fragments.iter().find(same) {
                return match before.last == last {
                    true => Placed::Duplicate,
                    false => Placed::Clash,
                };
            }
            let taken = (start..end).any(|octet| self.holder(octet).is_some());
            let behind = self.len.is_some_and(|len| end > len);
            let cuts_off = last && (end..=LONGEST).any(|octet| self.holder(octet).is_some());
            let ends_twice = last && self.len.is_some();
            if start >= end || taken || behind || cuts_off || ends_twice {
                return Placed::Clash;
            }
            self.fragments.push(fragment);
            if last {
                self.len = Some(end);
            }
            Placed::New
        }

        fn is_complete(&self) -> bool {
            let all = |len| (0..len).all(|octet| self.holder(octet).is_some());
            self.len.is_some_and(all)
        }
    }

    fn all() -> Vec<FragmentSpan> {
        let starts = 0..LONGEST;
        let pairs = starts.flat_map(|start| (start..=LONGEST).map(move |end| (start, end)));
        let marked = pairs.flat_map(|pair| [false, true].map(|last| (pair, last)));
        marked
            .map(|((start, end), last)| FragmentSpan { start, end, last })
            .collect()
    }

    /// All sequences of up to four fragments, until one clashes, which ends the datagram.
    fn follow(extent: &[FragmentSpan], octets: &Octets, left: usize, seen: &mut usize) {
        if left == 0 {
            return;
        }
        for fragment in all() {
            let mut tried = Extent::default();
            extent.iter().for_each(|&before| {
                tried.place(before);
            });
            let mut model = octets.clone();
            let placed = model.place(fragment);
            assert_eq!(
                tried.place(fragment),
                placed,
                "{fragment:?} after {extent:?}"
            );
            assert_eq!(
                tried.is_complete(),
                model.is_complete(),
                "{fragment:?} after {extent:?}"
            );
            *seen += 1;
            if placed == Placed::New {
                let more = [extent, &[fragment]].concat();
                follow(&more, &model, left - 1, seen);
            }
        }
    }

    #[test]
    fn every_fragment_after_every_other() {
        let mut seen = 0;
        follow(&[], &Octets::default(), 4, &mut seen);
        assert!(seen > 4_000, "{seen}");
    }
}
