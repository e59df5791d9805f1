//! A TCP connection as seen from between its ends (RFC 9293), followed closely enough to know when it
//! has begun, and when it has ended.
//!
//! # Theory of operation
//!
//! Of each side three numbers are kept: the sequence number behind all that it has sent, the one that it
//! expects next, and its window. A segment is plausible if it fits what the other side has said: what it
//! sends is in the other's window, and it acknowledges nothing that was not sent (van Rooij, "Real
//! Stateful TCP Packet Filtering in IP Filter", 2001). Implausible ones teach nothing; whether they are
//! let through is not decided here.
//!
//! Who forges a reset must know the exact number that the receiver expects, as RFC 5961 §3 has it of the
//! receiver itself. Between the two ends it may be any that the receiver can have come to since it last
//! spoke: from there to the end of what was sent to it. On an idle connection that is one number.
//!
//! | phase | entered by |
//! |---|---|
//! | opening | the first segment |
//! | established | both sides have spoken, and each has acknowledged something of the other |
//! | closing | a FIN of either side |
//! | closed | the FINs of both sides are acknowledged, or a reset |
//!
//! A connection that was there before is picked up where it is: the windows of its first segments are
//! taken as the largest there can be, as their scale is not known.

use crate::packet::{Fragment, Packet, protocol};

/// The largest shift of a window (RFC 7323 §2.3).
const MAX_SCALE: u8 = 14;
/// What may be acknowledged once more lies at most so far back, even if the window is small.
const LEAST_SPAN: u32 = 66_000;

/// Flags of a TCP header (RFC 9293 §3.1).
mod flag {
    pub(super) const FIN: u8 = 1;
    pub(super) const SYN: u8 = 2;
    pub(super) const RST: u8 = 4;
    pub(super) const ACK: u8 = 16;
}

/// Who has sent a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The container.
    Owner,
    /// Its peer.
    Peer,
}

/// What a connection is told by, of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    flags: u8,
    sequence: u32,
    acknowledgment: u32,
    window: u16,
    /// Octets of data. Of a super-frame, all of it.
    len: u32,
    /// The window scale option; `None` if there is none.
    scale: Option<u8>,
}

impl Segment {
    /// The segment in `packet`, if it is a whole one.
    #[must_use]
    pub fn of(packet: &Packet) -> Option<Self> {
        let whole = packet.protocol() == protocol::TCP && packet.fragment() == Fragment::Whole;
        whole.then(|| Self::parse(packet.transport()))?
    }

    fn parse(octets: &[u8]) -> Option<Self> {
        let header = octets.first_chunk::<20>()?;
        let word = |at: usize| {
            let octets = header.get(at..at + 4)?;
            Some(u32::from_be_bytes(octets.try_into().ok()?))
        };
        let header_len = usize::from(header[12] >> 4) * 4;
        let options = octets.get(20..header_len)?;
        let len = octets.len().checked_sub(header_len)?;
        Some(Self {
            flags: header[13],
            sequence: word(4)?,
            acknowledgment: word(8)?,
            window: u16::from_be_bytes([header[14], header[15]]),
            len: u32::try_from(len).ok()?,
            scale: window_scale(options),
        })
    }

    /// Whether it opens a connection.
    #[must_use]
    pub fn opens(&self) -> bool {
        self.is(flag::SYN) && !self.is(flag::ACK) && !self.is(flag::RST)
    }

    /// Whether it is a reset.
    #[must_use]
    pub fn resets(&self) -> bool {
        self.is(flag::RST)
    }

    fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The sequence number behind it: SYN and FIN count.
    fn end(&self) -> u32 {
        let marks = u32::from(self.is(flag::SYN)) + u32::from(self.is(flag::FIN));
        self.sequence.wrapping_add(self.len).wrapping_add(marks)
    }
}

/// The window scale among the options of a TCP header.
fn window_scale(mut options: &[u8]) -> Option<u8> {
    loop {
        match options {
            [0, ..] | [] => return None,
            [1, rest @ ..] => options = rest,
            [3, 3, shift, ..] => return Some((*shift).min(MAX_SCALE)),
            [_, len, ..] => options = options.get(usize::from(*len).max(2)..)?,
            [_] => return None,
        }
    }
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It is being opened.
    Opening,
    /// Data may flow both ways.
    Established,
    /// One side has said all that it had to say.
    Closing,
    /// It has ended.
    Closed,
}

/// A connection. See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    owner: End,
    peer: End,
    closed: bool,
}

/// What is known of one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct End {
    /// The sequence number behind all that it has sent; `None` if it has sent nothing yet.
    sent: Option<u32>,
    /// What it expects next, as far as it has said.
    expects: Option<u32>,
    /// The largest window that it has had.
    window: u32,
    /// By how much its windows are shifted.
    scale: u8,
    /// Whether it offered a scale, which only counts if both do.
    offered: Option<u8>,
    /// Behind its FIN.
    fin: Option<u32>,
    /// It has opened with a SYN, at the end of which this is.
    opened: Option<u32>,
}

impl Connection {
    /// One of which `first`, sent by `side`, is the first segment that is seen.
    #[must_use]
    pub fn new(side: Side, first: &Segment) -> Self {
        let mut connection = Self {
            owner: End::default(),
            peer: End::default(),
            closed: false,
        };
        connection.follow(side, first);
        connection
    }

    /// How far it has come.
    #[must_use]
    pub fn phase(&self) -> Phase {
        let heard = |end: &End| end.sent.is_some() && end.expects.is_some();
        if self.closed {
            Phase::Closed
        } else if self.owner.fin.is_some() || self.peer.fin.is_some() {
            Phase::Closing
        } else if heard(&self.owner) && heard(&self.peer) {
            Phase::Established
        } else {
            Phase::Opening
        }
    }

    /// Whether the peer has said anything plausible.
    #[must_use]
    pub fn is_heard(&self, side: Side) -> bool {
        match side {
            Side::Owner => self.owner.sent.is_some(),
            Side::Peer => self.peer.sent.is_some(),
        }
    }

    /// Follows a segment that `side` has sent. Returns whether it is plausible; if not, nothing has
    /// changed.
    pub fn follow(&mut self, side: Side, segment: &Segment) -> bool {
        let before = *self;
        let (sender, receiver) = match side {
            Side::Owner => (&mut self.owner, &mut self.peer),
            Side::Peer => (&mut self.peer, &mut self.owner),
        };
        if segment.resets() {
            let exact = is_exact_reset(segment, sender, receiver);
            self.closed |= exact;
            return exact;
        }
        if segment.is(flag::SYN) {
            return match sender.open(segment, receiver) {
                Opening::Plausible => true,
                Opening::Implausible => {
                    *self = before;
                    false
                }
                // Both sides are done with the one before, or nobody has answered it.
                Opening::Anew if self.closed || !before.is_heard(side.other()) => {
                    *self = Self::new(side, segment);
                    true
                }
                Opening::Anew => {
                    *self = before;
                    false
                }
            };
        }
        if !sender.speak(segment, receiver) {
            *self = before;
            return false;
        }
        let acknowledged = |fin: Option<u32>, by: &End| {
            fin.zip(by.expects)
                .is_some_and(|(fin, expects)| reaches(expects, fin))
        };
        self.closed |=
            acknowledged(self.owner.fin, &self.peer) && acknowledged(self.peer.fin, &self.owner);
        true
    }
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Owner => Self::Peer,
            Self::Peer => Self::Owner,
        }
    }
}

/// What a SYN means.
enum Opening {
    Plausible,
    Implausible,
    /// It opens another connection between the same ports.
    Anew,
}

impl End {
    /// Sends a segment with SYN.
    fn open(&mut self, segment: &Segment, receiver: &mut Self) -> Opening {
        match (self.opened, self.sent) {
            // Once more, as it was not answered in time; perhaps with less data, or none.
            (Some(opened), Some(_)) if opened == segment.sequence.wrapping_add(1) => {}
            (None, None) => {}
            _ => return Opening::Anew,
        }
        if segment.is(flag::ACK) && !self.acknowledge(segment, receiver) {
            return Opening::Implausible;
        }
        let behind = self.sent.filter(|&sent| reaches(sent, segment.end()));
        self.sent = Some(behind.unwrap_or_else(|| segment.end()));
        self.opened = Some(segment.sequence.wrapping_add(1));
        self.offered = segment.scale;
        // The window of a segment with SYN is never scaled (RFC 7323 §2.2).
        self.window = self.window.max(segment.window.into());
        let answer = receiver.opened.is_some();
        if answer {
            let both = self.offered.is_some() && receiver.offered.is_some();
            for end in [self, receiver] {
                end.scale = end.offered.filter(|_| both).unwrap_or(0);
            }
        }
        Opening::Plausible
    }

    /// Sends a segment without SYN and RST. Returns whether it is plausible.
    fn speak(&mut self, segment: &Segment, receiver: &Self) -> bool {
        if self.sent.is_none() && self.opened.is_none() {
            // Picked up where it is.
            self.scale = MAX_SCALE;
        }
        if !self.is_in_window(segment, receiver) {
            return false;
        }
        if segment.is(flag::ACK) && !self.acknowledge(segment, receiver) {
            return false;
        }
        let window = u32::from(segment.window) << self.scale;
        self.window = self.window.max(window);
        let behind = self.sent.filter(|&sent| reaches(sent, segment.end()));
        self.sent = Some(behind.unwrap_or_else(|| segment.end()));
        if segment.is(flag::FIN) {
            self.fin = Some(segment.end());
        } else if self.fin.is_some_and(|fin| !reaches(fin, segment.end())) {
            // There is more behind it: it was not the sender's.
            self.fin = None;
        }
        true
    }

    /// Whether what a segment sends is near what was sent and what the receiver takes.
    fn is_in_window(&self, segment: &Segment, receiver: &Self) -> bool {
        let span = receiver.window.max(LEAST_SPAN);
        let not_before = self
            .sent
            .is_none_or(|sent| reaches(segment.end(), sent.wrapping_sub(span)));
        let not_behind = receiver
            .expects
            .or(self.sent)
            .is_none_or(|expects| reaches(expects.wrapping_add(span), segment.sequence));
        not_before && not_behind
    }

    /// Takes note of what a segment acknowledges. Returns whether that can be.
    fn acknowledge(&mut self, segment: &Segment, receiver: &Self) -> bool {
        let acknowledged = segment.acknowledgment;
        if let Some(sent) = receiver.sent {
            let span = self.window.max(LEAST_SPAN);
            let sent_it = reaches(sent, acknowledged);
            let recent = reaches(acknowledged, sent.wrapping_sub(span));
            // What opens acknowledges the other's SYN itself.
            let opened = receiver.opened.filter(|_| segment.is(flag::SYN));
            let all = opened.is_none_or(|opened| reaches(acknowledged, opened));
            if !(sent_it && recent && all) {
                return false;
            }
        }
        let further = self.expects.filter(|&known| reaches(known, acknowledged));
        self.expects = Some(further.unwrap_or(acknowledged));
        true
    }
}

/// Whether a reset has a number that the receiver may be waiting for.
fn is_exact_reset(segment: &Segment, sender: &End, receiver: &End) -> bool {
    let Some(expects) = receiver.expects else {
        // It waits for its SYN to be acknowledged (RFC 9293 §3.10.7.3).
        return segment.is(flag::ACK) && receiver.sent == Some(segment.acknowledgment);
    };
    let reached = sender.sent.filter(|&sent| reaches(sent, expects));
    let last = reached.unwrap_or(expects);
    reaches(segment.sequence, expects) && reaches(last, segment.sequence)
}

/// Whether `number` is `other` or behind it, in the arithmetic of sequence numbers.
fn reaches(number: u32, other: u32) -> bool {
    number.wrapping_sub(other) < 1 << 31
}

#[cfg(test)]
pub(in crate::flows) mod tests;
