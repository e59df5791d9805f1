//! Whose a packet to a NOS address is.
//!
//! The order of the questions is that of the rules for a shared address: flows that a range cannot
//! decide, then sockets of the NOS and ranges of attachments (one table holds both), then nobody.
//! Fragments come before all of it, in [`super::deliver`].

use crate::channel::{RefusedSide, Refuser};
use crate::drop::DropReason;
use crate::flows::{Echo, EchoFlows, EchoKey};
use crate::icmp::{self, Quote};
use crate::ident::{AttachmentId, Interface, LocalAddressId};
use crate::packet::{Fragment, Packet, protocol};
use crate::ports::{ClaimKind, Owner, PortOwner, Transport};
use crate::tables::Tables;
use crate::time::Instant;
use crate::worker::Worker;

use super::police;

/// Who gets a packet to a NOS address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recipient {
    /// It is a container's.
    Attachment(AttachmentId),
    /// It is the container's once its echo identifier has been put back: into an echo reply, or into
    /// the request that an ICMP error quotes.
    Echo(AttachmentId, u16),
    /// It is for a socket of the NOS.
    Local,
    /// An ICMP message to the NOS: a query, which it answers, or nothing to be answered.
    Query,
    /// A TCP segment or UDP datagram for nobody: refuse it as a host does.
    NoListener,
    /// The same of one that a policy keeps out.
    Refused(DropReason),
    /// An IP protocol that nobody handles: refuse it as a host does.
    NoProtocol,
    /// Neither wanted nor to be answered.
    Drop(DropReason),
}

/// Who gets a packet that carries its transport header.
// Every packet to a container is asked about: the questions belong into `deliver`.
#[inline(always)]
pub(super) fn recipient(
    packet: &Packet,
    address: LocalAddressId,
    tables: &Tables,
    worker: &mut Worker,
    now: Instant,
) -> Recipient {
    let recipient = match (packet.protocol(), packet.is_ipv6()) {
        (protocol::TCP | protocol::UDP, _) => {
            recipient_by_port(packet, address, tables, worker, now)
        }
        (protocol::ICMP, false) | (protocol::ICMPV6, true) => {
            recipient_of_icmp(packet, address, tables, worker, now)
        }
        _ => Recipient::NoProtocol,
    };
    match tables.ports.isolates() {
        true => within_network(packet, recipient, tables),
        false => recipient,
    }
}

/// Nobody, where the recipient would be a container of another network than the sender is.
#[inline(never)]
fn within_network(packet: &Packet, recipient: Recipient, tables: &Tables) -> Recipient {
    let (Recipient::Attachment(to) | Recipient::Echo(to, _)) = recipient else {
        return recipient;
    };
    match packet.frame().interface() {
        Some(Interface::Attachment(from)) if tables.keeps_apart(from, to) => {
            match packet.icmp().is_some() {
                true => Recipient::Drop(DropReason::OtherNetwork),
                false => Recipient::Refused(DropReason::OtherNetwork),
            }
        }
        _ => recipient,
    }
}

#[inline(always)]
fn recipient_by_port(
    packet: &Packet,
    address: LocalAddressId,
    tables: &Tables,
    worker: &mut Worker,
    now: Instant,
) -> Recipient {
    let transport = Transport::from_protocol(packet.protocol());
    let (Some(transport), Some(ports)) = (transport, packet.ports()) else {
        return Recipient::NoProtocol;
    };
    match tables.ports.owner(address, transport, ports.destination) {
        owner @ PortOwner::Nobody if tables.learns => {
            recipient_by_policy(packet, owner, tables, worker, now)
        }
        PortOwner::Nobody => Recipient::NoListener,
        PortOwner::Nos => Recipient::Local,
        owner @ PortOwner::WatchedNos => recipient_by_policy(packet, owner, tables, worker, now),
        PortOwner::Attachment {
            id,
            kind: ClaimKind::Listen,
        } => Recipient::Attachment(id),
        PortOwner::Attachment {
            id,
            kind: ClaimKind::Ephemeral,
        } => {
            // A program may well listen on a port that its kernel gave it, for others beside it.
            let own = Some(Interface::Attachment(id));
            if packet.opens_tcp_flow() && packet.frame().interface() != own {
                Recipient::NoListener
            } else {
                Recipient::Attachment(id)
            }
        }
        owner @ PortOwner::Watched { .. } => {
            recipient_by_policy(packet, owner, tables, worker, now)
        }
    }
}

/// Who gets a packet that the port does not decide alone. Out of line: without policies, and for other
/// ports, nobody comes here.
#[inline(never)]
fn recipient_by_policy(
    packet: &Packet,
    owner: PortOwner,
    tables: &Tables,
    worker: &mut Worker,
    now: Instant,
) -> Recipient {
    let transport = Transport::from_protocol(packet.protocol());
    let (Some(transport), Some(ports)) = (transport, packet.ports()) else {
        return Recipient::NoProtocol;
    };
    let key = police::arrival(packet, transport, ports);
    let policed = worker.policed.as_deref_mut();
    let (recipient, refuser) = match owner {
        PortOwner::Watched { id, .. }
            // Policies are about others.
            if packet.frame().interface() == Some(Interface::Attachment(id)) =>
        {
            return Recipient::Attachment(id);
        }
        PortOwner::Watched { id, kind } => {
            let recipient = police::inbound(packet, (id, kind), &key, tables, policed, now);
            (recipient, Refuser::Attachment(id))
        }
        PortOwner::WatchedNos => {
            let recipient = police::inbound_to_service(&key, tables);
            (recipient, Refuser::Services(key.vrf))
        }
        _ => return police::inbound_to_nobody(packet, &key, policed, now),
    };
    let reason = match recipient {
        // It comes again when it is whole.
        Recipient::Refused(_) if packet.fragment() != Fragment::Whole => return recipient,
        Recipient::Refused(reason) | Recipient::Drop(reason) => reason,
        _ => return recipient,
    };
    let who = (refuser, RefusedSide::Peer);
    worker.refusals.note(packet, who, reason, None, now);
    recipient
}

#[inline(never)]
fn recipient_of_icmp(
    packet: &Packet,
    address: LocalAddressId,
    tables: &Tables,
    worker: &mut Worker,
    now: Instant,
) -> Recipient {
    let Some((kind, _)) = packet.icmp() else {
        return Recipient::Drop(DropReason::TransportHeader);
    };
    let (request, reply) = packet.echo_types();
    if kind == reply {
        let key = EchoKey {
            vrf: packet.frame().vrf(),
            local: packet.destination(),
            remote: packet.source(),
            id: packet.echo_id().unwrap_or_default(),
        };
        return recipient_by_echo(key, &worker.echo, now);
    }
    if kind == request && !tables.answers_pings(packet.frame().vrf()) {
        return Recipient::Drop(DropReason::Ignored);
    }
    match Quote::parse(packet) {
        Some(quote) => recipient_of_error(packet, &quote, address, tables, worker, now),
        None => Recipient::Query,
    }
}

/// Whoever sent the packet that an ICMP error quotes gets the error. A quote that we cannot have
/// sent is not believed (RFC 5927 §4).
fn recipient_of_error(
    packet: &Packet,
    quote: &Quote,
    address: LocalAddressId,
    tables: &Tables,
    worker: &mut Worker,
    now: Instant,
) -> Recipient {
    if quote.addresses.source() != packet.destination() {
        return Recipient::Drop(DropReason::IcmpUnmatched);
    }
    let transport = Transport::from_protocol(quote.protocol);
    let owner = match (transport, quote.ports, quote.echo_id) {
        (Some(transport), Some(ports), _) => tables.ports.owner(address, transport, ports.source),
        (None, _, Some(id)) => {
            let key = EchoKey {
                vrf: packet.frame().vrf(),
                local: quote.addresses.source(),
                remote: quote.addresses.destination(),
                id,
            };
            return recipient_by_echo(key, &worker.echo, now);
        }
        _ => PortOwner::Nobody,
    };
    match owner {
        PortOwner::Attachment { id, .. } => Recipient::Attachment(id),
        PortOwner::Nos | PortOwner::WatchedNos => Recipient::Local,
        PortOwner::Nobody if !tables.learns => Recipient::Drop(DropReason::IcmpUnmatched),
        PortOwner::Nobody | PortOwner::Watched { .. } => {
            let quoted = transport.zip(quote.ports);
            let sender = quoted.and_then(|(transport, ports)| {
                let quoted = (transport, quote.addresses, ports);
                let (vrf, policed) = (packet.frame().vrf(), worker.policed.as_deref());
                police::sender_of_quoted(vrf, quoted, owner, tables, policed, now)
            });
            let unmatched = Recipient::Drop(DropReason::IcmpUnmatched);
            sender.map_or(unmatched, Recipient::Attachment)
        }
    }
}

/// Whoever sent the echo request of this flow. The NOS itself asks nobody.
fn recipient_by_echo(key: EchoKey, echo: &EchoFlows, now: Instant) -> Recipient {
    match echo.inbound(key, now) {
        Some(Echo {
            owner: Owner::Attachment(id),
            id: own,
        }) => Recipient::Echo(id, own),
        Some(Echo {
            owner: Owner::Nos, ..
        })
        | None => Recipient::Drop(DropReason::IcmpUnmatched),
    }
}

/// Gives an echo request of a container an identifier that is its alone towards that host.
pub(super) fn note_echo(
    packet: &mut Packet,
    id: AttachmentId,
    echo: &mut EchoFlows,
    now: Instant,
) -> Result<(), DropReason> {
    let Some(key) = request_key(packet) else {
        return Ok(());
    };
    let on_wire = echo.outbound(Owner::Attachment(id), key, now)?;
    if on_wire != key.id {
        packet.set_echo_id(on_wire);
    }
    Ok(())
}

/// Gives an echo request that did not get out the identifier back that its container gave it.
pub(super) fn unnote_echo(packet: &mut Packet, echo: &EchoFlows, now: Instant) {
    let noted = request_key(packet).and_then(|key| echo.inbound(key, now));
    if let Some(Echo { id: own, .. }) = noted {
        packet.set_echo_id(own);
    }
}

/// What tells the flow of an echo request; `None` for other packets.
fn request_key(packet: &Packet) -> Option<EchoKey> {
    let request = if packet.is_ipv6() { 128 } else { 8 };
    let (kind, _) = packet.icmp()?;
    let id = packet.echo_id().filter(|_| kind == request)?;
    Some(EchoKey {
        vrf: packet.frame().vrf(),
        local: packet.source(),
        remote: packet.destination(),
        id,
    })
}

/// Puts a container's own echo identifier in place of the one on the wire: into an echo message, or
/// into the one that an ICMP error quotes.
pub(super) fn put_back_echo_id(packet: &mut Packet, own: u16) {
    if packet.echo_id().is_some() {
        packet.set_echo_id(own);
    } else {
        icmp::set_quoted_echo_id(packet, own);
    }
}
