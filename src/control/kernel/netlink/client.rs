//! One netlink socket: requests out, acknowledgements and dumps in.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE,
    NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_OVERRUN, NetlinkBuffer, NetlinkDeserializable,
    NetlinkHeader, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use parking_lot::Mutex;

use super::error::{NetlinkError, extended_ack};
use crate::control::kernel::KernelError;
use crate::control::kernel::namespace::Namespace;

/// Requests in one `send`. Their acknowledgements must fit in the receive buffer together: each
/// counts for about 800 octets there, and a buffer has at least 200 KiB by default.
const PIPELINE: usize = 64;

/// Questions in one `send`: an interface answers with some 2 KiB.
const QUESTIONS: usize = 16;

/// Octets that one read takes at most. The kernel fills datagrams of a dump up to 32 KiB.
const DATAGRAM: usize = 64 * 1024;

/// The kernel answers within `send`. An answer that is missing is lost, not late.
const ANSWER_LIMIT: TimeVal = TimeVal::new(5, 0);

/// How often a dump starts anew because the list changed meanwhile.
const DUMP_ATTEMPTS: u32 = 16;

/// A change of the network, and what it is called in an error.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    action: String,
    message: RouteNetlinkMessage,
    flags: u16,
}

impl Request {
    /// A change of something that exists, or its removal.
    pub(crate) fn change(action: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self {
            action: action.into(),
            message,
            flags: 0,
        }
    }

    /// Something new; there must be none like it.
    pub(crate) fn create(action: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self {
            flags: NLM_F_CREATE | NLM_F_EXCL,
            ..Self::change(action, message)
        }
    }

    /// Something new, in the place of what is like it.
    pub(crate) fn replace(action: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self {
            flags: NLM_F_CREATE | NLM_F_REPLACE,
            ..Self::change(action, message)
        }
    }

    /// What an error calls it.
    #[cfg(test)]
    pub(crate) fn action(&self) -> &str {
        &self.action
    }

    fn write(&self, sequence: u32, out: &mut Vec<u8>) {
        write_message(&self.message, self.flags | NLM_F_ACK, sequence, out);
    }
}

/// A netlink socket in one namespace. It works from any thread, and keeps the namespace alive.
pub(crate) struct Netlink {
    namespace: String,
    exchange: Mutex<Exchange>,
}

/// What one exchange of messages needs. The lock is held from the request to its last answer.
struct Exchange {
    socket: Socket,
    sequence: u32,
    datagram: Vec<u8>,
}

/// What the kernel answers to one request.
type Answer = Result<Vec<RouteNetlinkMessage>, Refusal>;

struct Refusal {
    source: io::Error,
    reason: Option<String>,
}

impl Netlink {
    /// Opens a socket by a visit to `namespace`.
    pub(crate) fn open(namespace: &Namespace) -> Result<Self, KernelError> {
        Ok(namespace.run(|| Self::open_here(namespace))??)
    }

    /// Opens a socket on a thread that is in `namespace` already.
    pub(crate) fn open_here(namespace: &Namespace) -> Result<Self, NetlinkError> {
        let label = namespace.to_string();
        match Exchange::open() {
            Ok(exchange) => Ok(Self {
                namespace: label,
                exchange: Mutex::new(exchange),
            }),
            Err(source) => Err(NetlinkError::new(
                "open a netlink socket",
                &label,
                source,
                None,
            )),
        }
    }

    /// Carries out one request.
    pub(crate) fn call(&self, request: &Request) -> Result<(), NetlinkError> {
        let outcome = self.submit(&[request]).pop();
        outcome.unwrap_or(Ok(()))
    }

    /// Carries out all requests in their order, with as few system calls as possible, and says of
    /// each what came of it. A refused one does not keep the others.
    pub(crate) fn submit(&self, requests: &[&Request]) -> Vec<Result<(), NetlinkError>> {
        let mut exchange = self.exchange.lock();
        let mut outcomes = Vec::with_capacity(requests.len());
        for chunk in requests.chunks(PIPELINE) {
            let answers = exchange.request(chunk.len(), |index, sequence, out| {
                if let Some(request) = chunk.get(index) {
                    request.write(sequence, out);
                }
            });
            let named = chunk.iter().zip(answers);
            outcomes.extend(named.map(|(request, answer)| match answer {
                Ok(_) => Ok(()),
                Err(refusal) => Err(self.refused(&request.action, refusal)),
            }));
        }
        outcomes
    }

    /// Asks for several single objects at once; each question has its own answer.
    pub(super) fn ask(
        &self,
        action: &str,
        questions: &[RouteNetlinkMessage],
    ) -> Vec<Result<Vec<RouteNetlinkMessage>, NetlinkError>> {
        let mut exchange = self.exchange.lock();
        let mut outcomes = Vec::with_capacity(questions.len());
        for chunk in questions.chunks(QUESTIONS) {
            let answers = exchange.request(chunk.len(), |index, sequence, out| {
                if let Some(question) = chunk.get(index) {
                    write_message(question, NLM_F_ACK, sequence, out);
                }
            });
            let answers = answers.into_iter();
            outcomes.extend(answers.map(|answer| answer.map_err(|why| self.refused(action, why))));
        }
        outcomes
    }

    /// Lists all objects that match `filter`.
    pub(super) fn dump(
        &self,
        action: &str,
        filter: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let dumped = self.exchange.lock().dump(filter);
        dumped.map_err(|refusal| self.refused(action, refusal))
    }

    fn refused(&self, action: &str, refusal: Refusal) -> NetlinkError {
        NetlinkError::new(action, &self.namespace, refusal.source, refusal.reason)
    }

    /// An error that did not come from the kernel.
    pub(super) fn failed(&self, action: impl Into<String>, source: io::Error) -> NetlinkError {
        NetlinkError::new(action, &self.namespace, source, None)
    }
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Netlink({})", self.namespace)
    }
}

impl Exchange {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
        socket.bind_auto()?;
        // Reasons in words; old kernels know neither option and do without.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        // SAFETY: the socket is open and outlives the borrow.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(socket.as_raw_fd()) };
        setsockopt(&fd, sockopt::ReceiveTimeout, &ANSWER_LIMIT)?;
        Ok(Self {
            socket,
            sequence: 0,
            datagram: Vec::new(),
        })
    }

    /// Sends `count` requests that `write` makes, in one datagram, and collects their answers.
    fn request(&mut self, count: usize, write: impl Fn(usize, u32, &mut Vec<u8>)) -> Vec<Answer> {
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
        pending.finish(failure)
    }

    fn collect(&mut self, pending: &mut Pending) -> io::Result<()> {
        while pending.left > 0 {
            self.receive(|header, payload| pending.take(header, payload))?;
        }
        Ok(())
    }

    fn dump(&mut self, filter: &RouteNetlinkMessage) -> Answer {
        for _ in 0..DUMP_ATTEMPTS {
            self.sequence = self.sequence.wrapping_add(1);
            let mut out = Vec::new();
            write_message(filter, NLM_F_DUMP, self.sequence, &mut out);
            self.send(&out).map_err(Refusal::from)?;
            let mut dump = Dump::new(self.sequence);
            while !dump.done {
                self.receive(|header, payload| dump.take(header, payload))
                    .map_err(Refusal::from)?;
            }
            match dump.refusal {
                Some(refusal) => return Err(refusal),
                None if dump.interrupted => {}
                None => return Ok(dump.objects),
            }
        }
        Err(io::Error::other("the list changed all the time while it was read").into())
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

fn write_message(message: &RouteNetlinkMessage, flags: u16, sequence: u32, out: &mut Vec<u8>) {
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
    use crate::control::kernel::netlink::{AddressFacts, LinkChange};
    use crate::lab::testbed::{LabNamespace, Privileges, privileges};

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

    fn lab() -> Option<(LabNamespace, Netlink)> {
        if privileges() != Privileges::Root {
            return None;
        }
        let lab = LabNamespace::new("netlink").unwrap();
        let netlink = Netlink::open(lab.namespace()).unwrap();
        Some((lab, netlink))
    }

    fn address(lo: u32, number: usize) -> AddressFacts {
        let [a, b] = u16::try_from(number).unwrap().to_be_bytes();
        AddressFacts::new(lo, [10, 0, a, b].into(), 32).marked()
    }

    #[test]
    fn a_refused_request_keeps_none_of_the_others() {
        let Some((_lab, netlink)) = lab() else { return };
        let lo = netlink.existing_link("lo").unwrap().index;
        // More than one pipeline; every tenth is there already.
        let requests: Vec<_> = (0..300)
            .map(|number| address(lo, number - usize::from(number % 10 == 9)).add())
            .collect();
        let outcomes = netlink.submit(&requests.iter().collect::<Vec<_>>());
        for (number, outcome) in outcomes.iter().enumerate() {
            match outcome {
                Ok(()) => assert_ne!(number % 10, 9),
                Err(error) => {
                    assert_eq!((number % 10, error.code()), (9, Some(libc::EEXIST)));
                    let text = error.to_string();
                    assert!(text.contains("cannot add address 10.0."), "{text}");
                    assert!(text.contains("in namespace 'netlink'"), "{text}");
                }
            }
        }
        // A list of several datagrams.
        let listed = netlink.addresses().unwrap();
        let ours = listed
            .iter()
            .filter(|facts| facts.marked && facts.interface == lo);
        assert_eq!(ours.count(), 270);
    }

    #[test]
    fn the_reason_of_a_refusal_is_the_kernels() {
        let Some((_lab, netlink)) = lab() else { return };
        let lo = netlink.existing_link("lo").unwrap().index;
        let error = netlink.call(
            &LinkChange::of(lo)
                .mtu(1)
                .tx_queue_len(5)
                .name("a/b")
                .request("lo"),
        );
        let text = error.unwrap_err().to_string();
        assert!(
            text.starts_with("cannot set up lo in namespace 'netlink'"),
            "{text}"
        );
        assert!(netlink.link("missing").unwrap().is_none());
        let missing = netlink.existing_link("missing").unwrap_err();
        assert!(missing.is(&[libc::ENODEV]), "{missing}");
    }

    #[test]
    fn a_socket_works_from_any_thread_at_once() {
        let Some((_lab, netlink)) = lab() else { return };
        let lo = netlink.existing_link("lo").unwrap().index;
        std::thread::scope(|scope| {
            for part in 0..4 {
                let netlink = &netlink;
                scope.spawn(move || {
                    for number in 0..25 {
                        netlink
                            .call(&address(lo, part * 25 + number).add())
                            .unwrap();
                        assert_eq!(netlink.existing_link("lo").unwrap().index, lo);
                    }
                });
            }
        });
        assert_eq!(
            netlink
                .addresses()
                .unwrap()
                .iter()
                .filter(|facts| facts.marked)
                .count(),
            100
        );
    }
}
