//! Requests to one namespace, and the socket that carries them.

use std::fmt;
use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use parking_lot::Mutex;

use super::error::NetlinkError;
use super::exchange::{Exchange, Refusal, write_message};
use crate::control::kernel::KernelError;
use crate::control::kernel::namespace::Namespace;

/// Requests in one `send`. Their acknowledgements must fit in the receive buffer together: each
/// counts for about 800 octets there, and a buffer has at least 200 KiB by default.
const PIPELINE: usize = 64;

/// Questions in one `send`: an interface answers with some 2 KiB.
const QUESTIONS: usize = 16;

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

    /// Something new, behind what is like it.
    pub(crate) fn append(action: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self {
            flags: NLM_F_CREATE,
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
    /// The lock is held from a request to its last answer.
    exchange: Mutex<Exchange>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::kernel::netlink::{AddressFacts, LinkChange};
    use crate::lab::testbed::{LabNamespace, Privileges, privileges};

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
