//! Those who watch: lines that wait for a reader, and never for ever.
//!
//! A reader that is slower than what happens costs nobody anything: the queue is bounded, what finds
//! it full is counted, and a line says how much that was once there is room again.

use std::collections::VecDeque;
use std::sync::Arc;

use super::protocol::encode_lost;

/// Events that wait for one reader; later ones are lost.
pub const MAX_EVENTS: usize = 1024;

/// Connections that may watch at a time.
pub const MAX_WATCHERS: usize = 8;

/// Octets that wait for one reader.
const MAX_OCTETS: usize = 256 << 10;

/// The lines of one reader.
#[derive(Debug, Default)]
pub(super) struct Lines {
    queue: VecDeque<Arc<[u8]>>,
    octets: usize,
    /// Octets of the first line that were sent.
    sent: usize,
    /// Events that found no room.
    lost: u64,
}

impl Lines {
    /// Takes a line behind all others, or counts it as lost.
    pub(super) fn push(&mut self, line: &Arc<[u8]>) {
        self.confess();
        if self.lost > 0 || !self.has_room(MAX_EVENTS, MAX_OCTETS) {
            self.lost += 1;
            return;
        }
        self.enqueue(Arc::clone(line));
    }

    /// Takes a line of the beginning, for which there is always room: there are as many as are asked
    /// for.
    pub(super) fn push_always(&mut self, line: Arc<[u8]>) {
        self.enqueue(line);
    }

    /// What is to be sent next.
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        self.confess();
        self.queue.front().map(|line| &line[self.sent..])
    }

    /// So many octets of it were sent.
    pub(super) fn note_sent(&mut self, octets: usize) {
        self.sent += octets;
        let whole = self
            .queue
            .front()
            .is_some_and(|line| line.len() <= self.sent);
        if let Some(line) = whole.then(|| self.queue.pop_front()).flatten() {
            self.octets -= line.len();
            self.sent = 0;
        }
    }

    /// Says what was lost, once half of the room is free.
    fn confess(&mut self) {
        if self.lost > 0 && self.has_room(MAX_EVENTS / 2, MAX_OCTETS / 2) {
            let line = encode_lost(std::mem::take(&mut self.lost));
            self.enqueue(line.into());
        }
    }

    fn has_room(&self, lines: usize, octets: usize) -> bool {
        self.queue.len() < lines && self.octets < octets
    }

    fn enqueue(&mut self, line: Arc<[u8]>) {
        self.octets += line.len();
        self.queue.push_back(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: usize) -> Arc<[u8]> {
        format!("{number}\n").into_bytes().into()
    }

    fn read(lines: &mut Lines) -> Option<String> {
        let whole = String::from_utf8(lines.next()?.to_vec()).unwrap();
        lines.note_sent(1);
        lines.note_sent(whole.len() - 1);
        Some(whole)
    }

    #[test]
    fn what_finds_no_room_is_counted_and_told_in_its_place() {
        let mut lines = Lines::default();
        for number in 0..MAX_EVENTS + 7 {
            lines.push(&line(number));
        }
        for number in 0..=MAX_EVENTS / 2 {
            assert_eq!(read(&mut lines), Some(format!("{number}\n")));
        }
        lines.push(&line(5000));
        let rest: Vec<_> = std::iter::from_fn(|| read(&mut lines)).collect();
        let (all, end) = rest.split_at(rest.len() - 2);
        assert_eq!(all.last().unwrap(), &format!("{}\n", MAX_EVENTS - 1));
        assert_eq!(end, ["{\"version\":1,\"lost\":7}\n", "5000\n"]);
    }

    #[test]
    fn the_beginning_is_told_whole_and_what_comes_behind_it_is_bounded() {
        let mut lines = Lines::default();
        for number in 0..2 * MAX_EVENTS {
            lines.push_always(line(number));
        }
        lines.push(&line(9000));
        for number in 0..2 * MAX_EVENTS {
            assert_eq!(read(&mut lines), Some(format!("{number}\n")));
        }
        let lost = "{\"version\":1,\"lost\":1}\n".to_owned();
        assert_eq!(read(&mut lines), Some(lost));
    }

    #[test]
    fn long_lines_are_bounded_by_their_octets() {
        let mut lines = Lines::default();
        let long: Arc<[u8]> = vec![b'x'; MAX_OCTETS].into();
        lines.push(&long);
        lines.push(&long);
        assert_eq!((lines.queue.len(), lines.lost), (1, 1));
    }
}
