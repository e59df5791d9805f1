//! Containers on the link of an uplink, by the NOS's link-local address there.
//!
//! A link is a zone of its own (RFC 4007 §6): what is sent from a link-local address is neither routed
//! nor forwarded to another link (RFC 4291 §2.5.6), and the same address may be a neighbor's on each of
//! several links. Packets of a container from that address bear the [zone](VrfId::of_link) in the place
//! of their VRF, and so do packets to it once they are known to be a container's: flows, datagrams and
//! echo identifiers of one link are told from those of others by it.
//!
//! Beyond that all is as with an address of the NOS that is routed: who owns the port decides, and no
//! hop is counted between a container and the link.

use core::net::IpAddr;

use crate::drop::DropReason;
use crate::fib::Action;
use crate::icmp::IcmpError;
use crate::ident::{AttachmentId, UplinkId, VrfId};
use crate::origin::Origin;
use crate::packet::{Fragment, Packet};
use crate::tables::{Tables, Uplink};
use crate::time::Instant;
use crate::uplink::LinkState;
use crate::worker::{Holder, Worker};

use super::deliver::deliver_fragment;
use super::demux::{Recipient, recipient};
use super::step::{NextHop, Step, ToAttachment};

/// What becomes of a packet that a container sends from the link-local address which it shares.
pub(super) fn outbound(packet: Packet, id: AttachmentId, tables: &Tables) -> Step {
    let origin = Origin::Attachment(id);
    let Some(uplink) = shared_by(id, packet.frame().vrf(), tables) else {
        return Step::Drop(packet, DropReason::MartianSource);
    };
    let destination = packet.destination();
    if destination == IpAddr::V6(uplink.link_local())
        && let Some(address) = uplink.shared
    {
        return Step::Deliver(packet, address, origin);
    }
    if let Some(fault) = packet.fault() {
        return Step::Drop(packet, fault.reason());
    }
    if uplink.link == LinkState::Down || !is_on_link(destination, uplink, tables) {
        return Step::refuse(packet, origin, IcmpError::NoRoute, DropReason::NoRoute);
    }
    let hop = NextHop {
        uplink: uplink.config.id,
        address: destination,
        transit: false,
    };
    Step::Leave(packet, hop, origin)
}

/// The uplink whose link-local address an attachment shares, if `zone` is that link.
fn shared_by(id: AttachmentId, zone: VrfId, tables: &Tables) -> Option<&Uplink> {
    let attachment = tables.attachments.get(id)?;
    let uplink = tables.uplinks.get(attachment.link_local?)?;
    let same = uplink.config.vrf == attachment.vrf;
    let here = VrfId::of_link(uplink.config.id) == Some(zone);
    (same && here).then_some(uplink)
}

/// Whether a destination is a neighbor on an uplink's link: one that is not link-local, if it is in a
/// network there.
fn is_on_link(destination: IpAddr, uplink: &Uplink, tables: &Tables) -> bool {
    match destination {
        IpAddr::V6(address) if address.is_unicast_link_local() => true,
        _ => {
            let (id, vrf) = (uplink.config.id, uplink.config.vrf);
            let fib = tables.routing.fib();
            let route = fib.adjacency(fib.lookup(vrf, destination)).action();
            matches!(route, Action::Connected(link) if *link == id)
        }
    }
}

/// What becomes of a packet to the link-local address of an uplink, if it is for a container; gives back
/// what is the NOS's own.
pub(super) fn inbound(
    mut packet: Packet,
    id: UplinkId,
    tables: &Tables,
    worker: &mut Worker,
    now: Instant,
) -> Result<Step, Packet> {
    let vrf = packet.frame().vrf();
    let shared = tables.uplinks.get(id).and_then(|uplink| uplink.shared);
    let shared = shared.filter(|_| !packet.destination().is_multicast());
    let (Some(address), Some(zone)) = (shared, VrfId::of_link(id)) else {
        return Err(packet);
    };
    packet.set_vrf(zone);
    if packet.fragment() != Fragment::Whole {
        // The NOS itself puts none together there.
        let own = Holder::Nobody(DropReason::Ignored);
        return Ok(deliver_fragment(packet, address, own, tables, worker, now));
    }
    let origin = Origin::Uplink(id);
    let to_attachment = |packet, to, echo_id| {
        let delivery = ToAttachment {
            packet,
            to,
            echo_id,
            origin,
            transit: false,
        };
        Ok(Step::ToAttachment(delivery))
    };
    match recipient(&packet, address, tables, worker, now) {
        Recipient::Attachment(to) => to_attachment(packet, to, None),
        Recipient::Echo(to, own) => to_attachment(packet, to, Some(own)),
        Recipient::Drop(reason) if reason != DropReason::Ignored => Ok(Step::Drop(packet, reason)),
        Recipient::Refused(reason) => {
            packet.set_vrf(vrf);
            Ok(Step::no_listener(packet, origin, reason))
        }
        Recipient::Drop(_)
        | Recipient::Local
        | Recipient::Query
        | Recipient::NoListener
        | Recipient::NoProtocol => {
            packet.set_vrf(vrf);
            Err(packet)
        }
    }
}
