//! Packets to a NOS address: fragments first, then the verdict of [`super::demux`].

use core::net::IpAddr;

use crate::drop::DropReason;
use crate::icmp::{self, Answer, IcmpError};
use crate::ident::{AttachmentId, LocalAddressId, UplinkId};
use crate::packet::{Fragment, Packet};
use crate::shim::Shim;
use crate::time::Instant;

use super::{Origin, Verdict};

/// Who gets the fragments of a datagram: whoever got the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A container.
    Attachment(AttachmentId),
    /// The NOS, which puts them together.
    Local,
}

impl Shim {
    /// A packet to one of our addresses.
    pub(super) fn deliver(
        &mut self,
        packet: Packet,
        address: LocalAddressId,
        origin: Origin,
        now: Instant,
    ) {
        if packet.fragment() == Fragment::Whole {
            let verdict = self.owner(&packet, address, now);
            self.carry_out(verdict, packet, origin, now);
        } else {
            self.deliver_fragment(packet, address, origin, now);
        }
    }

    fn carry_out(&mut self, verdict: Verdict, mut packet: Packet, origin: Origin, now: Instant) {
        match verdict {
            Verdict::Attachment(id) => self.to_attachment(packet, id),
            Verdict::EchoReply(id, echo_id) => {
                packet.set_echo_id(echo_id);
                self.to_attachment(packet, id);
            }
            Verdict::Local => self.to_local(packet, now),
            Verdict::Query => self.answer(packet, None, origin, now),
            Verdict::NoListener => self.refuse_port(packet, origin, now),
            Verdict::NoProtocol => {
                let error = IcmpError::ProtocolUnreachable;
                self.refuse(packet, origin, error, DropReason::NoProtocol, now);
            }
            Verdict::Drop(reason) => self.discard(packet, reason),
        }
    }

    /// Answers an ICMP query. `own` is the answer's source if the query went to a group.
    pub(super) fn answer(&mut self, packet: Packet, own: Option<IpAddr>, origin: Origin, now: Instant) {
        let own = own.unwrap_or_else(|| packet.destination());
        match icmp::answer(packet, own, now, &mut self.originator) {
            Answer::Reply(reply) => {
                self.ledger.consumed += 1;
                self.ledger.originated += 1;
                self.send_back(reply, origin, now);
            }
            Answer::Drop { packet, reason } => self.discard(packet, reason),
        }
    }

    /// A packet to the NOS's own link-local address, or to all nodes of the link: the NOS has no
    /// services there, but it is a host.
    pub(super) fn deliver_link_local(&mut self, packet: Packet, uplink: UplinkId, now: Instant) {
        let origin = Origin::Uplink(uplink);
        let own = self.uplink(uplink).map(|uplink| IpAddr::V6(uplink.link_local()));
        match (packet.icmp(), crate::ports::Transport::from_protocol(packet.protocol())) {
            _ if packet.fragment() != Fragment::Whole => self.discard(packet, DropReason::Ignored),
            (Some(_), _) => self.answer(packet, own, origin, now),
            (None, Some(_)) => self.refuse_port(packet, origin, now),
            (None, None) => {
                let error = IcmpError::ProtocolUnreachable;
                self.refuse(packet, origin, error, DropReason::NoProtocol, now);
            }
        }
    }
}
