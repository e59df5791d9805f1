//! Messages out and in, on one socket: acknowledgements and lists.

use std::io;
use std::os::fd::AsFd;

use netlink_packet_core::{
    Emitable, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_OVERRUN,
    NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::error::extended_ack;

/// Octets that one read takes at most. The kernel fills datagrams of a dump up to 32 KiB.
const DATAGRAM: usize = 64 * 1024;

/// The kernel answers within `send`. An answer that is missing is lost, not late.
const ANSWER_LIMIT: TimeVal = TimeVal::new(5, 0);

/// Datagrams that are read to get rid of them: 128 MiB of a list, at most.
const DRAIN_LIMIT: u32 = 4096;

/// How often a dump starts anew because the list changed meanwhile.
const DUMP_ATTEMPTS: u32 = 16;

/// What one exchange of messages needs.
pub(super) struct Exchange {
    socket: Socket,
    sequence: u32,
    datagram: Vec<u8>,
}

/// What the kernel answers to one request.
pub(super) type Answer = Result<Vec<RouteNetlinkMessage>, Refusal>;

/// What the kernel did not do, or did not say.
pub(super) struct Refusal {
    pub(super) source: io::Error,
    /// The kernel's reason in words.
    pub(super) reason: Option<String>,
}

impl Exchange {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
        socket.bind_auto()?;
        // Reasons in words; old kernels know neither option and do without.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &ANSWER_LIMIT)?;
        Ok(Self {
            socket,
            sequence: 0,
            datagram: Vec::new(),
        })
    }

    /// Sends `count` requests that `write` makes, in one datagram, and collects their answers.
    pub(super) fn request(
        &mut self,
        count: usize,
        write: impl Fn(usize, u32, &mut Vec<u8>),
    ) -> Vec<Answer> {
        let mut out = Vec::with_capacity(count * 128);
        let first = self.sequence.wrapping_add(1);
        for index in 0..count {
            self.sequence = self.sequence.wrapping_add(1);
            write(index, self.sequence, &mut out);
        }
        let mut pending = Pending::new(first, count);
        let failure = match self.send(&out) {
            Ok(()) => self.collect(&mut pending).err(),
            Err(error) => Some(error),
        };
        if failure.is_some() {
            self.drain();
        }
        pending.finish(failure)
    }

    fn collect(&mut self, pending: &mut Pending) -> io::Result<()> {
        while pending.left > 0 {
            self.receive(|header, payload| pending.take(header, payload))?;
        }
        Ok(())
    }

    pub(super) fn dump(&mut self, filter: &RouteNetlinkMessage) -> Answer {
        for _ in 0..DUMP_ATTEMPTS {
            self.sequence = self.sequence.wrapping_add(1);
            let mut out = Vec::new();
            write_message(filter, NLM_F_DUMP, self.sequence, &mut out);
            self.send(&out).map_err(Refusal::from)?;
            let mut dump = Dump::new(self.sequence);
            while !dump.done {
                if let Err(error) = self.receive(|header, payload| dump.take(header, payload)) {
                    self.drain();
                    return Err(error.into());
                }
            }
            match dump.refusal {
                Some(refusal) => return Err(refusal),
                None if dump.interrupted => {}
                None => return Ok(dump.objects),
            }
        }
        Err(io::Error::other("the list changed all the time while it was read").into())
    }

    /// Reads what is left of an exchange that failed: the kernel begins no other list before the
    /// last one was read to its end.
    fn drain(&mut self) {
        let mut reads = 0..DRAIN_LIMIT;
        while reads.next().is_some() {
            self.datagram.clear();
            self.datagram.reserve(DATAGRAM);
            match self.socket.recv(&mut self.datagram, libc::MSG_DONTWAIT) {
                // An overrun is told once, in front of what could be held.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    fn send(&self, out: &[u8]) -> io::Result<()> {
        const KERNEL: u32 = 0;
        loop {
            match self.socket.send_to(out, &SocketAddr::new(KERNEL, 0), 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    }

    /// Reads one datagram and gives each of its messages to `take`.
    fn receive(&mut self, mut take: impl FnMut(&NetlinkHeader, &[u8])) -> io::Result<()> {
        self.datagram.clear();
        self.datagram.reserve(DATAGRAM);
        let (length, sender) = loop {
            match self.socket.recv_from(&mut self.datagram, libc::MSG_TRUNC) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        if sender.port_number() != 0 {
            return Ok(());
        }
        if length > self.datagram.len() {
            return Err(io::Error::other(
                "an answer is longer than the receive buffer",
            ));
        }
        for_each_message(&self.datagram, &mut take);
        Ok(())
    }
}

/// Requests that wait for their acknowledgements.
struct Pending {
    /// Sequence number of the first one; the others follow.
    first: u32,
    answers: Vec<Option<Answer>>,
    objects: Vec<Vec<RouteNetlinkMessage>>,
    left: usize,
}

impl Pending {
    fn new(first: u32, count: usize) -> Self {
        Self {
            first,
            answers: std::iter::repeat_with(|| None).take(count).collect(),
            objects: vec![Vec::new(); count],
            left: count,
        }
    }

    fn take(&mut self, header: &NetlinkHeader, payload: &[u8]) {
        // A stray answer to an earlier exchange wraps to a number beyond the last request.
        let index = header.sequence_number.wrapping_sub(self.first) as usize;
        let Some(objects) = self.objects.get_mut(index) else {
            return;
        };
        let answer = match header.message_type {
            NLMSG_ERROR => match acknowledgement(payload) {
                Ok(()) => Ok(std::mem::take(objects)),
                Err(refusal) => Err(refusal),
            },
            NLMSG_OVERRUN => Err(lost()),
            _ => match RouteNetlinkMessage::deserialize(header, payload) {
                Ok(object) => return objects.push(object),
                Err(error) => Err(Refusal::from(io::Error::other(error))),
            },
        };
        self.settle(index, answer);
    }

    fn settle(&mut self, index: usize, answer: Answer) {
        if let Some(slot @ None) = self.answers.get_mut(index) {
            *slot = Some(answer);
            self.left -= 1;
        }
    }

    /// The answers in the order of the requests; `failure` stands for those that are missing.
    fn finish(self, failure: Option<io::Error>) -> Vec<Answer> {
        let failure = failure.map(|error| (error.raw_os_error(), error.to_string()));
        let missing = || match &failure {
            Some((Some(code), _)) => Refusal::from(io::Error::from_raw_os_error(*code)),
            Some((None, text)) => Refusal::from(io::Error::other(text.clone())),
            None => lost(),
        };
        let answers = self.answers.into_iter();
        answers
            .map(|answer| answer.unwrap_or_else(|| Err(missing())))
            .collect()
    }
}

/// A list that is being read.
struct Dump {
    sequence: u32,
    objects: Vec<RouteNetlinkMessage>,
    refusal: Option<Refusal>,
    interrupted: bool,
    done: bool,
}

impl Dump {
    fn new(sequence: u32) -> Self {
        Self {
            sequence,
            objects: Vec::new(),
            refusal: None,
            interrupted: false,
            done: false,
        }
    }

    fn take(&mut self, header: &NetlinkHeader, payload: &[u8]) {
        if header.sequence_number != self.sequence || self.done {
            return;
        }
        self.interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
        match header.message_type {
            // Both carry a code, which tells of a list that ended early.
            NLMSG_DONE | NLMSG_ERROR => {
                self.refusal = acknowledgement(payload).err();
                self.done = true;
            }
            NLMSG_OVERRUN => {
                self.refusal = Some(lost());
                self.done = true;
            }
            _ => match RouteNetlinkMessage::deserialize(header, payload) {
                Ok(object) => self.objects.push(object),
                // One object of a kind that is unknown here does not hide the others.
                Err(error) => tracing::debug!(%error, "a netlink message cannot be read"),
            },
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(source: io::Error) -> Self {
        // The answer limit has passed.
        let source = match source.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => source,
        };
        Self {
            source,
            reason: None,
        }
    }
}

fn lost() -> Refusal {
    Refusal {
        source: io::Error::from_raw_os_error(libc::ENOBUFS),
        reason: None,
    }
}

/// What the payload of NLMSG_ERROR or NLMSG_DONE says: code 0 is success.
fn acknowledgement(payload: &[u8]) -> Result<(), Refusal> {
    let Some((code, rest)) = payload.split_first_chunk() else {
        return Ok(());
    };
    match i32::from_ne_bytes(*code) {
        0 => Ok(()),
        code => Err(Refusal {
            source: io::Error::from_raw_os_error(code.wrapping_neg()),
            reason: extended_ack(rest),
        }),
    }
}

pub(super) fn write_message(
    message: &RouteNetlinkMessage,
    flags: u16,
    sequence: u32,
    out: &mut Vec<u8>,
) {
    let mut header = NetlinkHeader::default();
    let length = header.buffer_len() + NetlinkSerializable::buffer_len(message);
    header.length = u32::try_from(length).unwrap_or(u32::MAX);
    header.message_type = message.message_type();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let start = out.len();
    out.resize(start + length.next_multiple_of(4), 0);
    let area = out.get_mut(start..start + length).unwrap_or_default();
    if let Some((head, payload)) = area.split_at_mut_checked(header.buffer_len()) {
        header.emit(head);
        message.serialize(payload);
    }
}

/// Walks over the messages in a datagram; a malformed one ends the walk.
fn for_each_message(mut datagram: &[u8], mut take: impl FnMut(&NetlinkHeader, &[u8])) {
    while let Ok(buffer) = NetlinkBuffer::new_checked(datagram) {
        let mut header = NetlinkHeader::default();
        header.length = buffer.length();
        header.message_type = buffer.message_type();
        header.flags = buffer.flags();
        header.sequence_number = buffer.sequence_number();
        header.port_number = buffer.port_number();
        take(&header, buffer.payload());
        let length = buffer.length() as usize;
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message as the kernel would write it, padded.
    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).unwrap();
        let mut octets = length.to_ne_bytes().to_vec();
        octets.extend(kind.to_ne_bytes());
        octets.extend(flags.to_ne_bytes());
        octets.extend(sequence.to_ne_bytes());
        octets.extend([0; 4]);
        octets.extend(payload);
        octets.resize(octets.len().next_multiple_of(4), 0);
        octets
    }

    /// An acknowledgement: the code, then the header of the request.
    fn answer(sequence: u32, code: i32) -> Vec<u8> {
        let payload = [&code.to_ne_bytes()[..], &[0; 16]].concat();
        message(NLMSG_ERROR, 0, sequence, &payload)
    }

    fn codes(answers: Vec<Answer>) -> Vec<Option<i32>> {
        let codes = answers.into_iter().map(|answer| match answer {
            Ok(_) => Some(0),
            Err(refusal) => refusal.source.raw_os_error(),
        });
        codes.collect()
    }

    #[test]
    fn answers_are_told_apart_by_sequence_number() {
        // The numbers wrap within the exchange.
        let mut pending = Pending::new(u32::MAX, 3);
        let datagram = [
            answer(1, -libc::EPERM),
            answer(7, -libc::EIO),
            answer(u32::MAX, 0),
            answer(u32::MAX, -libc::EIO),
        ];
        for_each_message(&datagram.concat(), |header, payload| {
            pending.take(header, payload);
        });
        assert_eq!(pending.left, 1);
        let answers = codes(pending.finish(None));
        assert_eq!(answers, [Some(0), Some(libc::ENOBUFS), Some(libc::EPERM)]);
    }

    #[test]
    fn what_cannot_be_sent_fails_all_that_wait() {
        let failure = io::Error::from_raw_os_error(libc::EBADF);
        let answers = Pending::new(1, 2).finish(Some(failure));
        assert_eq!(codes(answers), [Some(libc::EBADF); 2]);
        let late = io::Error::from(io::ErrorKind::WouldBlock);
        assert_eq!(Refusal::from(late).source.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_list_ends_and_says_whether_it_changed_meanwhile() {
        let mut dump = Dump::new(4);
        let datagram = [
            message(NLMSG_DONE, 0, 3, &0_i32.to_ne_bytes()),
            message(RTM_NEWLINK, NLM_F_DUMP_INTR, 4, &[0; 16]),
            message(NLMSG_DONE, 0, 4, &0_i32.to_ne_bytes()),
        ];
        for_each_message(&datagram.concat(), |header, payload| {
            dump.take(header, payload);
        });
        assert!(dump.done && dump.interrupted && dump.refusal.is_none());
        assert_eq!(dump.objects.len(), 1);

        let mut dump = Dump::new(4);
        let failed = message(NLMSG_DONE, 0, 4, &(-libc::EINVAL).to_ne_bytes());
        for_each_message(&failed, |header, payload| dump.take(header, payload));
        let refusal = dump.refusal.unwrap();
        assert_eq!(refusal.source.raw_os_error(), Some(libc::EINVAL));
    }

    const RTM_NEWLINK: u16 = 16;

    proptest! {
        #[test]
        fn any_datagram_is_read_without_panic(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut pending = Pending::new(0, 4);
            let mut dump = Dump::new(0);
            for_each_message(&octets, |header, payload| {
                pending.take(header, payload);
                dump.take(header, payload);
            });
            prop_assert_eq!(pending.finish(None).len(), 4);
        }
    }
}
