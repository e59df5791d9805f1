//! Refusals: ICMP errors and TCP resets, and the way back for everything that the NOS says.

use core::net::{IpAddr, Ipv6Addr};

use crate::drop::DropReason;
use crate::fib::Action;
use crate::icmp::{DUMMY_ADDRESS, IcmpError};
use crate::ident::{AttachmentId, Interface};
use crate::origin::Origin;
use crate::output::Output;
use crate::packet::{Packet, protocol};
use crate::ports::AddressMode;
use crate::reset;
use crate::tables::Tables;
use crate::time::Instant;
use crate::worker::Worker;

use super::step::{NextHop, Notice, Refusal, Step, ToAttachment};
use super::upstream;

/// Drops a packet, and makes what its sender is told.
pub(super) fn refuse(
    refusal: Refusal,
    tables: &Tables,
    worker: &mut Worker,
    output: &mut Output,
    now: Instant,
) -> Step {
    let Refusal {
        packet,
        origin,
        notice,
        reason,
    } = refusal;
    if tables.upstream.is_some() && !upstream::may_tell(origin, notice) {
        return Step::Drop(packet, reason);
    }
    let error = match notice {
        Notice::Error(error) => error,
        Notice::NoListener if packet.protocol() == protocol::TCP => {
            return reset(packet, reason, origin, worker, output);
        }
        Notice::NoListener if packet.transport_checksum_ok() => IcmpError::PortUnreachable,
        Notice::NoListener => return Step::Drop(packet, DropReason::TransportChecksum),
    };
    let reply = build_error(&packet, origin, error, tables, worker, output, now);
    conclude(packet, reason, reply, origin, output)
}

/// Answers a TCP segment with a reset where one is due.
fn reset(
    packet: Packet,
    reason: DropReason,
    origin: Origin,
    worker: &mut Worker,
    output: &mut Output,
) -> Step {
    let vrf = worker.vrfs.of(packet.frame().vrf());
    match reset::answer(&packet, &mut vrf.originator, &mut output.pool) {
        Ok(mut reply) => {
            reply.set_vrf(packet.frame().vrf());
            conclude(packet, reason, Some(reply), origin, output)
        }
        Err(reason) => Step::Drop(packet, reason),
    }
}

fn conclude(
    packet: Packet,
    reason: DropReason,
    reply: Option<Packet>,
    origin: Origin,
    output: &mut Output,
) -> Step {
    output.discard(packet, reason);
    match reply {
        Some(reply) => {
            output.ledger.originated += 1;
            Step::Return(reply, origin)
        }
        None => Step::Done,
    }
}

fn build_error(
    packet: &Packet,
    origin: Origin,
    error: IcmpError,
    tables: &Tables,
    worker: &mut Worker,
    output: &mut Output,
    now: Instant,
) -> Option<Packet> {
    let source = error_source(packet, origin, tables)?;
    let sent = error.may_answer(packet) && may_say(error, packet, origin, worker, now);
    if !sent {
        return None;
    }
    let vrf = worker.vrfs.of(packet.frame().vrf());
    error.build(packet, source, &mut vrf.originator, &mut output.pool)
}

/// Whether the rate allows another error. Each container has a rate of its own, as only it hears of
/// what is said to it: those that share an address would else wait for each other. What policies
/// refuse has another.
fn may_say(
    error: IcmpError,
    packet: &Packet,
    origin: Origin,
    worker: &mut Worker,
    now: Instant,
) -> bool {
    match (error, origin, &mut worker.policed) {
        (IcmpError::Prohibited, Origin::Attachment(id), Some(policed)) => policed.may_tell(id, now),
        (_, Origin::Attachment(id), _) => {
            let vrf = worker.vrfs.of(packet.frame().vrf());
            vrf.limiter.allow_container(error, id, now)
        }
        _ => {
            let vrf = worker.vrfs.of(packet.frame().vrf());
            vrf.limiter.allow(error, packet.source(), now)
        }
    }
}

/// The source of an error about `packet`: the address that it was sent to, if that is ours; else
/// ours on the link where it came in (RFC 1812 §4.3.2.4). None about what the NOS said itself.
fn error_source(packet: &Packet, origin: Origin, tables: &Tables) -> Option<IpAddr> {
    let ipv6 = packet.is_ipv6();
    let uplink = match origin {
        Origin::Nos => return None,
        Origin::Attachment(id) => return Some(router_of(id, ipv6, tables)),
        Origin::Uplink(id) => tables.uplinks.get(id)?,
    };
    let destination = packet.destination();
    let fib = tables.routing.fib();
    let adjacency = fib.lookup(packet.frame().vrf(), destination);
    match fib.adjacency(adjacency).action() {
        Action::Local(_) => Some(destination),
        _ if destination == IpAddr::V6(uplink.link_local()) => Some(destination),
        _ => uplink
            .address(ipv6)
            .or(ipv6.then(|| uplink.link_local().into())),
    }
}

/// The address by which a container knows its router. One with addresses of its own knows it as anybody
/// does, by an address of the NOS.
fn router_of(id: AttachmentId, ipv6: bool, tables: &Tables) -> IpAddr {
    let attachment = tables.attachments.get(id);
    let routed = attachment.filter(|it| it.mode == AddressMode::Routed);
    let mut own = routed.into_iter().flat_map(|it| tables.addresses(it.vrf));
    if let Some(address) = own.find(|address| address.is_ipv6() == ipv6) {
        return address;
    }
    match attachment {
        Some(attachment) if ipv6 => attachment.router.into(),
        _ if ipv6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => DUMMY_ADDRESS.into(),
    }
}

/// Where the NOS sends what it says about a packet: where that came from.
pub(super) fn send_back(mut packet: Packet, origin: Origin, tables: &Tables) -> Step {
    // Whoever makes us answer is charged if the answer has to wait.
    if let Origin::Uplink(id) = origin {
        packet.set_interface(Interface::Uplink(id));
        // About a packet on the link, it goes where the link is.
        if let Some(uplink) = tables.uplinks.get(id) {
            packet.set_vrf(uplink.config.vrf);
        }
    }
    match (origin, packet.destination()) {
        (Origin::Attachment(to), _) => Step::ToAttachment(ToAttachment {
            packet,
            to,
            echo_id: None,
            origin: Origin::Nos,
            transit: false,
        }),
        (Origin::Uplink(_), _) if tables.upstream.is_some() => {
            upstream::leave(packet, Origin::Nos, tables)
        }
        (Origin::Uplink(uplink), IpAddr::V6(to)) if to.is_unicast_link_local() => {
            let hop = NextHop {
                uplink,
                address: to.into(),
                transit: false,
            };
            Step::Leave(packet, hop, Origin::Nos)
        }
        _ => Step::Route(packet, Origin::Nos),
    }
}
