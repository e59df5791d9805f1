//! Packets to a NOS address: fragments first, then who [`super::demux`] says gets them.

use core::net::IpAddr;

use crate::drop::DropReason;
use crate::fragments::Fate;
use crate::icmp::{self, IcmpError, Unanswered};
use crate::ident::{LocalAddressId, UplinkId};
use crate::ipv4_options;
use crate::ipv6_extensions;
use crate::multicast::igmp;
use crate::origin::Origin;
use crate::output::Output;
use crate::packet::{Fragment, Packet, protocol};
use crate::ports::Transport;
use crate::tables::Tables;
use crate::time::Instant;
use crate::worker::{Holder, Worker};

use super::demux::{Recipient, put_back_echo_id, recipient};
use super::groups;
use super::link_local;
use super::local;
use super::oversize::{Size, cut, size};
use super::step::{Refusal, Step, ToAttachment};
use super::upstream;

/// A packet to one of our addresses.
#[inline]
pub(super) fn deliver(
    packet: Packet,
    address: LocalAddressId,
    origin: Origin,
    tables: &Tables,
    worker: &mut Worker,
    output: &mut Output,
    now: Instant,
) -> Step {
    if packet.fragment() != Fragment::Whole {
        let own = Holder::Local(address);
        return deliver_fragment(packet, address, own, tables, worker, now);
    }
    match recipient(&packet, address, tables, worker, now) {
        Recipient::Attachment(to) if packet.wire_len() <= tables.attachment_mtu() => {
            output.push_to_relay(packet, to);
            Step::Done
        }
        other => carry_out(other, packet, origin, tables, worker, output, now),
    }
}

/// Gives a packet to whoever gets it. Out of line: most packets are containers', and fit.
#[inline(never)]
fn carry_out(
    recipient: Recipient,
    packet: Packet,
    origin: Origin,
    tables: &Tables,
    worker: &mut Worker,
    output: &mut Output,
    now: Instant,
) -> Step {
    let to_attachment = |packet, to, echo_id| {
        Step::ToAttachment(ToAttachment {
            packet,
            to,
            echo_id,
            origin,
            transit: false,
        })
    };
    // A container's own kernel looks at options; for the rest the NOS does.
    let packet = match recipient {
        Recipient::Attachment(id) => return to_attachment(packet, id, None),
        Recipient::Echo(id, own) => return to_attachment(packet, id, Some(own)),
        Recipient::Drop(reason) => return Step::Drop(packet, reason),
        Recipient::Local
        | Recipient::Query
        | Recipient::NoListener
        | Recipient::Refused(_)
        | Recipient::NoProtocol => match take_options(packet, origin, now) {
            Ok(packet) => packet,
            Err(refused) => return refused,
        },
    };
    match recipient {
        Recipient::Query => answer(packet, None, origin, worker, output, now),
        Recipient::NoListener => Step::Refuse(Refusal::no_listener(packet, origin)),
        Recipient::Refused(reason) => Step::no_listener(packet, origin, reason),
        Recipient::NoProtocol => match origin {
            Origin::Uplink(id) if igmp::is_igmp(&packet) => {
                groups::receive(packet, id, worker, output, now)
            }
            _ => refuse_protocol(packet, origin),
        },
        _ => local::receive(packet, origin, tables, worker, output, now),
    }
}

/// A packet of a protocol that nobody handles.
fn refuse_protocol(packet: Packet, origin: Origin) -> Step {
    let nothing = packet.is_ipv6() && packet.protocol() == protocol::NO_NEXT_HEADER;
    // Every host knows the protocol, whoever takes what it says.
    if nothing || igmp::is_igmp(&packet) {
        return Step::Drop(packet, DropReason::Ignored);
    }
    let error = IcmpError::ProtocolUnreachable;
    Step::refuse(packet, origin, error, DropReason::NoProtocol)
}

/// Gives a packet to a container, in fragments if it is longer than its link takes.
pub(super) fn to_attachment(
    delivery: ToAttachment,
    tables: &Tables,
    worker: &mut Worker,
    output: &mut Output,
) -> Step {
    let ToAttachment {
        mut packet,
        to,
        echo_id,
        origin,
        transit,
    } = delivery;
    let attachment = tables.attachments.get(to);
    let mtu = attachment.map_or(usize::MAX, |attachment| attachment.mtu.into());
    let size = size(&packet, mtu, origin);
    if let Size::TooBig(error) = size {
        return Step::refuse(packet, origin, error, DropReason::TooBig);
    }
    // Not before: an error quotes what was on the wire.
    if transit && !packet.decrement_ttl() {
        return Step::Drop(packet, DropReason::TtlExceeded);
    }
    if let Some(own) = echo_id {
        put_back_echo_id(&mut packet, own);
    }
    if matches!(size, Size::Fits) {
        output.push_to_relay(packet, to);
        return Step::Done;
    }
    let vrf = worker.vrfs.of(packet.frame().vrf());
    cut(packet, mtu, &mut vrf.originator, output);
    while let Some(fragment) = output.pieces.pop_front() {
        output.push_to_relay(fragment, to);
    }
    Step::Done
}

/// A fragment: goes where the first of its datagram goes, and waits until that is known. What is the
/// NOS's own gets `own`.
#[inline(never)]
pub(super) fn deliver_fragment(
    mut packet: Packet,
    address: LocalAddressId,
    own: Holder,
    tables: &Tables,
    worker: &mut Worker,
    now: Instant,
) -> Step {
    let holder = match packet.fragment() {
        Fragment::First => {
            let recipient = recipient(&packet, address, tables, worker, now);
            holder(recipient, &mut packet, own)
        }
        // Not asked for: only first fragments decide.
        Fragment::Later | Fragment::Whole => Holder::Nobody(DropReason::FragmentTimeout),
    };
    let shares = &mut worker.shares;
    match worker.fragments.handle(packet, now, shares, |_| holder) {
        Some(fate) => Step::Fate(fate),
        None => Step::Done,
    }
}

/// Who gets the datagram that starts with this fragment.
fn holder(recipient: Recipient, first: &mut Packet, own: Holder) -> Holder {
    match recipient {
        Recipient::Attachment(id) => Holder::Attachment(id),
        Recipient::Echo(id, own) => {
            put_back_echo_id(first, own);
            Holder::Attachment(id)
        }
        // A refusal has to quote the datagram whole, as a host does that puts it together.
        Recipient::Local
        | Recipient::Query
        | Recipient::NoListener
        | Recipient::Refused(_)
        | Recipient::NoProtocol => own,
        Recipient::Drop(reason) => Holder::Nobody(reason),
    }
}

/// Does what the fragment table has decided. A datagram to the NOS itself is put together, and
/// treated as if it had come so.
pub(super) fn follow_fate(
    fate: Fate<Holder>,
    tables: &Tables,
    worker: &mut Worker,
    output: &mut Output,
    now: Instant,
) -> Step {
    match fate {
        Fate::Deliver(packet, Holder::Attachment(to)) => Step::ToAttachment(ToAttachment {
            origin: Origin::of(&packet),
            packet,
            to,
            echo_id: None,
            transit: false,
        }),
        Fate::Deliver(packet, Holder::Local(address)) => {
            let Output { pool, ledger, .. } = output;
            let shares = &mut worker.shares;
            match worker.reassembler.handle(packet, now, pool, ledger, shares) {
                Some(whole) => {
                    let origin = Origin::of(&whole);
                    Step::Deliver(whole, address, origin)
                }
                None => Step::Done,
            }
        }
        Fate::Deliver(packet, Holder::Upstream) => {
            let origin = Origin::of(&packet);
            upstream::leave(packet, origin, tables)
        }
        Fate::Deliver(packet, Holder::Nobody(reason)) | Fate::Drop(packet, reason) => {
            Step::Drop(packet, reason)
        }
    }
}

/// Gives up a datagram whose fragments did not come in time, which its sender is told.
pub(super) fn expired(worker: &mut Worker, output: &mut Output, now: Instant) -> Option<Refusal> {
    let Output { pool, ledger, .. } = output;
    let shares = &mut worker.shares;
    let first = worker.reassembler.poll_timeout(now, pool, ledger, shares)?;
    let (origin, error) = (Origin::of(&first), IcmpError::ReassemblyTimeout);
    let reason = DropReason::FragmentTimeout;
    Some(Refusal::new(first, origin, error, reason))
}

/// Answers an ICMP query. `own` is the answer's source if the query went to a group.
fn answer(
    packet: Packet,
    own: Option<IpAddr>,
    origin: Origin,
    worker: &mut Worker,
    output: &mut Output,
    now: Instant,
) -> Step {
    let own = own.unwrap_or_else(|| packet.destination());
    let vrf = worker.vrfs.of(packet.frame().vrf());
    match icmp::answer(packet, own, now, &mut vrf.originator) {
        Ok(reply) => {
            output.ledger.consumed += 1;
            output.ledger.originated += 1;
            Step::Return(reply, origin)
        }
        Err(Unanswered { packet, reason }) => Step::Drop(packet, reason),
    }
}

/// A packet to the NOS's own link-local address, or to a group of IPv6 that it is in: where no container
/// shares that address, or none owns the port. The NOS has no services there, but it is a host.
#[inline(never)]
pub(super) fn deliver_link_local(
    packet: Packet,
    id: UplinkId,
    tables: &Tables,
    worker: &mut Worker,
    output: &mut Output,
    now: Instant,
) -> Step {
    // A container's own kernel looks at options.
    let packet = match link_local::inbound(packet, id, tables, worker, now) {
        Ok(step) => return step,
        Err(packet) => packet,
    };
    let origin = Origin::Uplink(id);
    let packet = match take_options(packet, origin, now) {
        Ok(packet) => packet,
        Err(refused) => return refused,
    };
    if packet.fragment() != Fragment::Whole {
        return Step::Drop(packet, DropReason::Ignored);
    }
    if packet.destination().is_multicast() && packet.icmp().is_none() {
        return Step::Drop(packet, DropReason::Multicast);
    }
    if packet.icmp().is_some() {
        let own = own_address_for(&packet, id, tables);
        return answer(packet, own, origin, worker, output, now);
    }
    match Transport::from_protocol(packet.protocol()) {
        Some(_) => Step::Refuse(Refusal::no_listener(packet, origin)),
        None => refuse_protocol(packet, origin),
    }
}

/// An answer about a group comes from an address of the peer's scope (RFC 6724 §5).
fn own_address_for(packet: &Packet, id: UplinkId, tables: &Tables) -> Option<IpAddr> {
    let uplink = tables.uplinks.get(id)?;
    let link_local = IpAddr::V6(uplink.link_local());
    Some(match packet.source() {
        IpAddr::V6(peer) if !peer.is_unicast_link_local() => {
            uplink.address(true).unwrap_or(link_local)
        }
        _ => link_local,
    })
}

/// Looks at options and extension headers of a packet that the NOS itself gets. One that is dropped
/// or refused for them is not given back.
pub(super) fn take_options(
    mut packet: Packet,
    origin: Origin,
    now: Instant,
) -> Result<Packet, Step> {
    match receive_options(&mut packet, now) {
        Ok(()) => Ok(packet),
        Err((reason, None)) => Err(Step::Drop(packet, reason)),
        Err((reason, Some(error))) => Err(Step::refuse(packet, origin, error, reason)),
    }
}

/// Does what a host does with IPv4 options and IPv6 extension headers. A refusal names the reason
/// to drop the packet, and what its sender is told.
fn receive_options(
    packet: &mut Packet,
    now: Instant,
) -> Result<(), (DropReason, Option<IcmpError>)> {
    ipv6_extensions::receive(packet).map_err(|refused| (refused.reason, refused.error))?;
    ipv4_options::receive(packet, now).map_err(|refused| (refused.reason(), refused.error()))
}
