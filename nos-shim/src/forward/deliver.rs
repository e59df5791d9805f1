//! Packets to a NOS address: fragments first, then the verdict of [`super::demux`].

use core::net::IpAddr;

use crate::drop::DropReason;
use crate::fragments::Fate;
use crate::icmp::{self, Answer, IcmpError};
use crate::ident::{AttachmentId, LocalAddressId, UplinkId};
use crate::ipv4_options::{self, OptionsRefused};
use crate::ipv6_extensions;
use crate::packet::{Fragment, Packet};
use crate::shim::Shim;
use crate::time::Instant;

use super::demux::put_back_echo_id;
use super::{Origin, Verdict};

/// Who gets the fragments of a datagram: whoever got the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A container.
    Attachment(AttachmentId),
    /// The NOS, which puts them together to a datagram to this address.
    Local(LocalAddressId),
    /// Nobody: all are dropped for the first one's reason.
    Nobody(DropReason),
}

impl Shim {
    /// A packet to one of our addresses.
    #[inline]
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
            self.deliver_fragment(packet, address, now);
        }
    }

    #[inline]
    fn carry_out(&mut self, verdict: Verdict, mut packet: Packet, origin: Origin, now: Instant) {
        match verdict {
            Verdict::Attachment(id) => self.deliver_to(packet, id),
            Verdict::Echo(id, own) => {
                put_back_echo_id(&mut packet, own);
                self.deliver_to(packet, id);
            }
            Verdict::Drop(reason) => self.discard(packet, reason),
            // A container's own kernel looks at options; for the rest the NOS does.
            _ => {
                if let Some(packet) = self.take_options(packet, origin, now) {
                    self.handle_own(verdict, packet, origin, now);
                }
            }
        }
    }

    /// Looks at options and extension headers of a packet that the NOS itself gets. A packet that is
    /// dropped or refused for them is not given back.
    fn take_options(&mut self, mut packet: Packet, origin: Origin, now: Instant) -> Option<Packet> {
        match receive_options(&mut packet, now) {
            Ok(()) => return Some(packet),
            Err((reason, None)) => self.discard(packet, reason),
            Err((reason, Some(error))) => self.refuse(packet, origin, error, reason, now),
        }
        None
    }

    /// A packet that no container gets.
    fn handle_own(&mut self, verdict: Verdict, packet: Packet, origin: Origin, now: Instant) {
        match verdict {
            Verdict::Local => self.deliver_local(packet, now),
            Verdict::Query => self.answer(packet, None, origin, now),
            Verdict::NoListener => self.refuse_port(packet, origin, now),
            Verdict::NoProtocol => {
                let error = IcmpError::ProtocolUnreachable;
                self.refuse(packet, origin, error, DropReason::NoProtocol, now);
            }
            Verdict::Drop(reason) => self.discard(packet, reason),
            Verdict::Attachment(id) | Verdict::Echo(id, _) => self.deliver_to(packet, id),
        }
    }

    /// A fragment: goes where the first of its datagram goes, and waits until that is known.
    fn deliver_fragment(&mut self, mut packet: Packet, address: LocalAddressId, now: Instant) {
        let holder = match packet.fragment() {
            Fragment::First => self.holder(&mut packet, address, now),
            // Not asked for: only first fragments decide.
            Fragment::Later | Fragment::Whole => Holder::Nobody(DropReason::FragmentTimeout),
        };
        if let Some(fate) = self
            .fragments
            .handle(packet, now, &mut self.shares, |_| holder)
        {
            self.meet(fate, now);
        }
        self.poll_fragments(now);
    }

    /// Who gets the datagram that starts with this fragment.
    fn holder(&mut self, first: &mut Packet, address: LocalAddressId, now: Instant) -> Holder {
        match self.owner(first, address, now) {
            Verdict::Attachment(id) => Holder::Attachment(id),
            Verdict::Echo(id, own) => {
                put_back_echo_id(first, own);
                Holder::Attachment(id)
            }
            // A refusal has to quote the datagram whole, as a host does that puts it together.
            Verdict::Local | Verdict::Query | Verdict::NoListener | Verdict::NoProtocol => {
                Holder::Local(address)
            }
            Verdict::Drop(reason) => Holder::Nobody(reason),
        }
    }

    /// Carries out what the fragment table has decided meanwhile.
    pub(super) fn poll_fragments(&mut self, now: Instant) {
        while let Some(fate) = self.fragments.poll_fate(&mut self.shares) {
            self.meet(fate, now);
        }
    }

    fn meet(&mut self, fate: Fate<Holder>, now: Instant) {
        match fate {
            Fate::Deliver(packet, Holder::Attachment(id)) => self.deliver_to(packet, id),
            Fate::Deliver(packet, Holder::Local(address)) => self.reassemble(packet, address, now),
            Fate::Deliver(packet, Holder::Nobody(reason)) | Fate::Drop(packet, reason) => {
                self.discard(packet, reason);
            }
        }
    }

    /// Puts a datagram to the NOS itself together, and treats it as if it had come so.
    fn reassemble(&mut self, fragment: Packet, address: LocalAddressId, now: Instant) {
        let Self {
            reassembler,
            pool,
            ledger,
            shares,
            ..
        } = self;
        if let Some(whole) = reassembler.handle(fragment, now, pool, ledger, shares) {
            let origin = Origin::of(&whole);
            let verdict = self.owner(&whole, address, now);
            self.carry_out(verdict, whole, origin, now);
        }
    }

    /// Gives up datagrams whose fragments did not come in time, and says so.
    pub(super) fn expire_reassembly(&mut self, now: Instant) {
        loop {
            let Self {
                reassembler,
                pool,
                ledger,
                shares,
                ..
            } = self;
            let Some(first) = reassembler.poll_timeout(now, pool, ledger, shares) else {
                return;
            };
            let (origin, error) = (Origin::of(&first), IcmpError::ReassemblyTimeout);
            self.refuse(first, origin, error, DropReason::FragmentTimeout, now);
        }
    }

    /// Answers an ICMP query. `own` is the answer's source if the query went to a group.
    pub(super) fn answer(
        &mut self,
        packet: Packet,
        own: Option<IpAddr>,
        origin: Origin,
        now: Instant,
    ) {
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
        let Some(packet) = self.take_options(packet, origin, now) else {
            return;
        };
        let own = self.uplink(uplink).map(|uplink| {
            let link_local = IpAddr::V6(uplink.link_local());
            // An answer about a group comes from an address of the peer's scope (RFC 6724 §5).
            match packet.source() {
                IpAddr::V6(peer) if !peer.is_unicast_link_local() => {
                    uplink.address(true).unwrap_or(link_local)
                }
                _ => link_local,
            }
        });
        match (
            packet.icmp(),
            crate::ports::Transport::from_protocol(packet.protocol()),
        ) {
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

/// Does what a host does with IPv4 options and IPv6 extension headers. A refusal names the reason
/// to drop the packet, and what its sender is told.
fn receive_options(
    packet: &mut Packet,
    now: Instant,
) -> Result<(), (DropReason, Option<IcmpError>)> {
    ipv6_extensions::receive(packet).map_err(|refused| (refused.reason, refused.error))?;
    ipv4_options::receive(packet, now).map_err(|refused| {
        let error = match refused {
            OptionsRefused::SourceRoute => None,
            OptionsRefused::Malformed { pointer } => Some(IcmpError::HeaderProblem { pointer }),
        };
        (refused.reason(), error)
    })
}
