//! The few nfnetlink messages that a takeover needs (linux/netfilter/nf_tables.h).
//!
//! Multi-octet values of nf_tables are in network order, the netlink headers in host order.

use std::io;

use nos_shim::ident::MacAddr;

use crate::control::kernel::netlink::extended_ack;

const NLMSG_HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_NETDEV: u8 = 5;

const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFT_TABLE_F_OWNER: u32 = 2;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_HOOK_DEV: u16 = 3;
const NF_NETDEV_INGRESS: u32 = 0;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFT_PAYLOAD_LL_HEADER: u32 = 0;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFT_CMP_EQ: u32 = 0;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;
/// The name of a table's only chain.
const CHAIN: &str = "ingress";
const NLA_F_NESTED: u16 = 0x8000;

/// One change of the ruleset.
pub(super) struct Request {
    kind: u16,
    flags: u16,
    attributes: Attributes,
}

impl Request {
    /// A new table of family netdev that goes with the socket that makes it.
    pub(super) fn owned_table(name: &str) -> Self {
        let attributes = Attributes::default()
            .text(NFTA_TABLE_NAME, name)
            .number(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
        Self {
            kind: NFT_MSG_NEWTABLE,
            flags: NLM_F_CREATE | NLM_F_EXCL,
            attributes,
        }
    }

    /// Removes a table of family netdev with all that is in it.
    pub(super) fn delete_table(name: &str) -> Self {
        Self {
            kind: NFT_MSG_DELTABLE,
            flags: 0,
            attributes: Attributes::default().text(NFTA_TABLE_NAME, name),
        }
    }

    /// A chain before all others on the ingress of `interface`, which drops everything.
    pub(super) fn drop_all(table: &str, interface: &str) -> Self {
        Self::chain(table, interface, NF_DROP)
    }

    /// The same, where everything passes for which there is no rule.
    pub(super) fn pass_all(table: &str, interface: &str) -> Self {
        Self::chain(table, interface, NF_ACCEPT)
    }

    fn chain(table: &str, interface: &str, policy: u32) -> Self {
        let hook = Attributes::default()
            .number(NFTA_HOOK_HOOKNUM, NF_NETDEV_INGRESS)
            .octets(NFTA_HOOK_PRIORITY, &i32::MIN.to_be_bytes())
            .text(NFTA_HOOK_DEV, interface);
        let attributes = Attributes::default()
            .text(NFTA_CHAIN_TABLE, table)
            .text(NFTA_CHAIN_NAME, CHAIN)
            .nested(NFTA_CHAIN_HOOK, &hook)
            .number(NFTA_CHAIN_POLICY, policy)
            .text(NFTA_CHAIN_TYPE, "filter");
        Self {
            kind: NFT_MSG_NEWCHAIN,
            flags: NLM_F_CREATE | NLM_F_EXCL,
            attributes,
        }
    }

    /// A rule of that chain: frames to this MAC address are dropped.
    pub(super) fn drop_frames_to(table: &str, mac: MacAddr) -> Self {
        let destination = Attributes::default()
            .number(NFTA_PAYLOAD_DREG, NFT_REG_1)
            .number(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_LL_HEADER)
            .number(NFTA_PAYLOAD_OFFSET, 0)
            .number(NFTA_PAYLOAD_LEN, 6);
        let value = Attributes::default().octets(NFTA_DATA_VALUE, &mac.0);
        let is_that = Attributes::default()
            .number(NFTA_CMP_SREG, NFT_REG_1)
            .number(NFTA_CMP_OP, NFT_CMP_EQ)
            .nested(NFTA_CMP_DATA, &value);
        let verdict = Attributes::default().number(NFTA_VERDICT_CODE, NF_DROP);
        let verdict = Attributes::default().nested(NFTA_DATA_VERDICT, &verdict);
        let drop = Attributes::default()
            .number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT)
            .nested(NFTA_IMMEDIATE_DATA, &verdict);
        let expressions = Attributes::default()
            .expression("payload", &destination)
            .expression("cmp", &is_that)
            .expression("immediate", &drop);
        let attributes = Attributes::default()
            .text(NFTA_RULE_TABLE, table)
            .text(NFTA_RULE_CHAIN, CHAIN)
            .nested(NFTA_RULE_EXPRESSIONS, &expressions);
        Self {
            kind: NFT_MSG_NEWRULE,
            flags: NLM_F_CREATE | NLM_F_APPEND,
            attributes,
        }
    }
}

/// A transaction: all requests or none. The n-th of them (from 1) has the sequence number n.
pub(super) fn batch(requests: &[Request]) -> Vec<u8> {
    let mut batch = Vec::new();
    let no_attributes = Attributes::default();
    let edge = |kind| Header {
        kind,
        flags: NLM_F_REQUEST,
        sequence: 0,
        family: NFPROTO_UNSPEC,
        resource: NFNL_SUBSYS_NFTABLES,
    };
    edge(NFNL_MSG_BATCH_BEGIN).write(&no_attributes, &mut batch);
    for (request, sequence) in requests.iter().zip(1..) {
        let header = Header {
            kind: NFNL_SUBSYS_NFTABLES << 8 | request.kind,
            flags: NLM_F_REQUEST | NLM_F_ACK | request.flags,
            sequence,
            family: NFPROTO_NETDEV,
            resource: 0,
        };
        header.write(&request.attributes, &mut batch);
    }
    edge(NFNL_MSG_BATCH_END).write(&no_attributes, &mut batch);
    batch
}

/// The headers nlmsghdr and nfgenmsg.
struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
}

impl Header {
    fn write(&self, attributes: &Attributes, out: &mut Vec<u8>) {
        const NFGENMSG: usize = 4;
        let length = length32(NLMSG_HEADER + NFGENMSG + attributes.0.len());
        out.extend(length.to_ne_bytes());
        out.extend(self.kind.to_ne_bytes());
        out.extend(self.flags.to_ne_bytes());
        out.extend(self.sequence.to_ne_bytes());
        // The kernel fills in the sender.
        out.extend(0_u32.to_ne_bytes());
        out.extend([self.family, 0]);
        out.extend(self.resource.to_be_bytes());
        out.extend(&attributes.0);
    }
}

/// Netlink attributes, each padded to four octets.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn octets(mut self, kind: u16, value: &[u8]) -> Self {
        const HEADER: usize = 4;
        self.0.extend(length16(HEADER + value.len()).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn number(self, kind: u16, value: u32) -> Self {
        self.octets(kind, &value.to_be_bytes())
    }

    fn nested(self, kind: u16, inner: &Self) -> Self {
        self.octets(kind | NLA_F_NESTED, &inner.0)
    }

    /// One of the expressions of a rule.
    fn expression(self, name: &str, data: &Self) -> Self {
        let expression = Self::default()
            .text(NFTA_EXPR_NAME, name)
            .nested(NFTA_EXPR_DATA, data);
        self.nested(NFTA_LIST_ELEM, &expression)
    }

    fn text(self, kind: u16, text: &str) -> Self {
        self.octets(kind, &[text.as_bytes(), &[0]].concat())
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "names of interfaces and tables are short: a message has some hundred octets"
)]
fn length16(length: usize) -> u16 {
    length as u16
}

fn length32(length: usize) -> u32 {
    u32::from(length16(length))
}

/// What the kernel says to the request with this sequence number.
#[derive(Debug)]
pub(super) struct Acknowledgement {
    pub(super) sequence: u32,
    /// `None`: done.
    pub(super) error: Option<io::Error>,
    /// The error in words; often empty.
    pub(super) reason: String,
}

/// Reads the acknowledgements in a datagram; other messages are passed over.
pub(super) fn answers(mut datagram: &[u8]) -> Vec<Acknowledgement> {
    let mut answers = Vec::new();
    while let Some((message, rest)) = next_message(datagram) {
        answers.extend(answer(message));
        datagram = rest;
    }
    answers
}

/// Splits off the first message, header included.
fn next_message(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
    if length < NLMSG_HEADER {
        return None;
    }
    let message = datagram.get(..length)?;
    let rest = datagram.get(length.next_multiple_of(4)..);
    Some((message, rest.unwrap_or_default()))
}

fn answer(message: &[u8]) -> Option<Acknowledgement> {
    let &[a, b] = message.get(4..6)? else {
        return None;
    };
    if u16::from_ne_bytes([a, b]) != NLMSG_ERROR {
        return None;
    }
    let code = u32_at(message, NLMSG_HEADER)?.cast_signed();
    let after_code = message.get(NLMSG_HEADER + 4..)?;
    Some(Acknowledgement {
        sequence: u32_at(message, 8)?,
        error: (code != 0).then(|| io::Error::from_raw_os_error(code.wrapping_neg())),
        reason: extended_ack(after_code).unwrap_or_default(),
    })
}

fn u32_at(octets: &[u8], at: usize) -> Option<u32> {
    let four = octets.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*four))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn batch_is_well_formed() {
        let requests = [
            Request::owned_table("nos-relay-7"),
            Request::drop_all("nos-relay-7", "hx"),
        ];
        let batch = batch(&requests);
        let mut rest = batch.as_slice();
        let mut kinds = Vec::new();
        while let Some((message, after)) = next_message(rest) {
            assert_eq!(message.len() % 4, 0);
            kinds.push((u16::from_ne_bytes([message[4], message[5]]), message[8]));
            rest = after;
        }
        assert!(rest.is_empty());
        assert_eq!(kinds, [(0x10, 0), (0xa00, 1), (0xa03, 2), (0x11, 0)]);
    }

    #[test]
    fn attributes_are_padded_and_nested() {
        let inner = Attributes::default().text(3, "hx");
        assert_eq!(inner.0, [7, 0, 3, 0, b'h', b'x', 0, 0]);
        let outer = Attributes::default()
            .octets(4 | NLA_F_NESTED, &inner.0)
            .number(5, 1);
        assert_eq!(outer.0[..4], [12, 0, 4, 0x80]);
        assert_eq!(outer.0[12..], [8, 0, 5, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn acknowledgement_and_refusal_are_read() {
        let mut datagram = Vec::new();
        for (sequence, code) in [(1_u32, 0_i32), (2, -libc::EPERM)] {
            datagram.extend(36_u32.to_ne_bytes());
            datagram.extend(NLMSG_ERROR.to_ne_bytes());
            datagram.extend([0, 0]);
            datagram.extend(sequence.to_ne_bytes());
            datagram.extend([0; 4]);
            datagram.extend(code.to_ne_bytes());
            datagram.extend([0; 16]);
        }
        let answers = answers(&datagram);
        assert_eq!(answers.len(), 2);
        assert!(answers[0].error.is_none());
        assert_eq!(answers[1].sequence, 2);
        let error = answers[1].error.as_ref().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }

    proptest! {
        #[test]
        fn any_octets_are_read_without_panic(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            for answer in answers(&octets) {
                prop_assert!(answer.reason.len() <= octets.len() * 3);
            }
        }
    }
}
