//! Packets to the network: next hop, TTL, MTU, neighbor, offload, and the queue of the uplink's
//! device.

use core::net::IpAddr;

use crate::drop::DropReason;
use crate::fib::{Action, Adjacency, AdjacencyId};
use crate::frame::FrameFull;
use crate::icmp::{BetterHop, IcmpError};
use crate::ident::{Interface, MacAddr, UplinkId};
use crate::ipv4_options;
use crate::neighbor::{Message, NeighborCache, Resolution};
use crate::origin::Origin;
use crate::output::Output;
use crate::packet::Packet;
use crate::share::{Account, Shares};
use crate::tables::{Tables, Uplink};
use crate::time::Instant;
use crate::worker::{Rewrite, Rewrites, VrfState, Worker};

use super::demux::{note_echo, unnote_echo};
use super::oversize::{Size, cut, size};
use super::step::{NextHop, Step};

/// Sends a packet of a container that can leave as it is; gives back any other.
#[inline]
pub(super) fn send_ready(
    mut packet: Packet,
    adjacency: AdjacencyId,
    rewrites: &Rewrites,
    output: &mut Output,
    now: Instant,
) -> Result<(), Packet> {
    let Some(rewrite) = rewrites.find(adjacency, &packet, now) else {
        return Err(packet);
    };
    packet.set_link_pair(&rewrite.link);
    packet.set_interface(Interface::Uplink(rewrite.uplink));
    output.queue(packet.into_frame(), rewrite.uplink);
    Ok(())
}

/// Keeps ready what the next packet of an adjacency needs, if all need the same. While routes are
/// revised they need not: an uplink may be in another VRF by now than some that use it.
#[cold]
pub(super) fn prepare_rewrite(adjacency: AdjacencyId, tables: &Tables, worker: &mut Worker) {
    if tables.routing.is_revising() {
        return;
    }
    worker.refresh_rewrites(tables);
    if worker.rewrites.lacks(adjacency)
        && let Some(rewrite) = rewrite(adjacency, tables, worker)
    {
        worker.rewrites.insert(adjacency, rewrite);
    }
}

fn rewrite(adjacency: AdjacencyId, tables: &Tables, worker: &Worker) -> Option<Rewrite> {
    let Action::Via(hops) = tables.routing.fib().adjacency(adjacency).action() else {
        return None;
    };
    let [hop] = hops.as_slice() else {
        return None;
    };
    let uplink = tables.uplinks.get(hop.uplink)?;
    let (mac, good_until) = worker.neighbors.get(hop.uplink)?.known(hop.gateway)?;
    Some(Rewrite::new(uplink, mac, good_until))
}

/// Which station a packet goes to. One that passes through is checked first as a router does
/// (RFC 1812 §5.3, RFC 4443 §3.3).
#[inline]
pub(super) fn choose_next_hop(
    packet: Packet,
    entry: &Adjacency,
    origin: Origin,
    tables: &Tables,
) -> Step {
    let transit = tables.is_transit(origin);
    if transit {
        match check_transit(&packet) {
            Ok(()) => {}
            Err((reason, Some(error))) => return Step::refuse(packet, origin, error, reason),
            Err((reason, None)) => return Step::Drop(packet, reason),
        }
    } else if let Some(fault) = packet.fault() {
        // It could hide whose port it comes from (RFC 1858 §3).
        return Step::Drop(packet, fault.reason());
    }
    let chosen = match entry.action() {
        Action::Connected(uplink) => Some((*uplink, packet.destination())),
        Action::Via(hops) => {
            let one = hops.as_slice().len() == 1;
            let hash = if one {
                0
            } else {
                tables.flow_hasher.hash(&packet)
            };
            let next = if tables.routing.is_revising() {
                tables.hop_that_is_up(packet.frame().vrf(), hops.as_slice(), hash)
            } else {
                entry.next_hop(hash)
            };
            next.map(|next| (next.uplink, next.gateway))
        }
        _ => None,
    };
    let Some((uplink, address)) = chosen else {
        return Step::Drop(packet, DropReason::NoRoute);
    };
    let hop = NextHop {
        uplink,
        address,
        transit,
    };
    Step::Leave(packet, hop, origin)
}

#[inline]
pub(super) fn check_transit(packet: &Packet) -> Result<(), (DropReason, Option<IcmpError>)> {
    if matches!(packet.source(), IpAddr::V6(address) if address.is_unicast_link_local()) {
        // RFC 4291 §2.5.6.
        return Err((DropReason::MartianSource, None));
    }
    ipv4_options::may_pass(packet).map_err(|refused| (refused.reason(), refused.error()))?;
    if packet.ttl() <= 1 {
        return Err((DropReason::TtlExceeded, Some(IcmpError::TtlExceeded)));
    }
    Ok(())
}

/// Sends a packet to a station on an uplink's link, in fragments if it is too long.
pub(super) fn leave(
    mut packet: Packet,
    hop: NextHop,
    origin: Origin,
    tables: &Tables,
    worker: &mut Worker,
    output: &mut Output,
    now: Instant,
) -> Step {
    let Some(uplink) = tables.uplinks.get(hop.uplink) else {
        return Step::Drop(packet, DropReason::DeviceGone);
    };
    // Redirects quote what Linux quotes: of IPv6 the packet that came, of IPv4 the one that leaves.
    let returns = hop.transit && origin == Origin::Uplink(hop.uplink);
    if returns && packet.is_ipv6() {
        redirect(&packet, hop, tables, worker, output, now);
    }
    let mtu = uplink.config.mtu;
    let size = size(&packet, mtu, origin);
    if let Size::TooBig(error) = size {
        return Step::refuse(packet, origin, error, DropReason::TooBig);
    }
    if hop.transit && !packet.decrement_ttl() {
        return Step::Drop(packet, DropReason::TtlExceeded);
    }
    if returns && !packet.is_ipv6() {
        redirect(&packet, hop, tables, worker, output, now);
    }
    // Not before: what the NOS refuses or answers itself has the container's identifier.
    if let Origin::Attachment(attachment) = origin
        && !tables.is_transit(origin)
        && let Err(reason) = note_echo(&mut packet, attachment, &mut worker.echo, now)
    {
        return Step::Drop(packet, reason);
    }
    let Some(neighbors) = worker.neighbors.get_mut(hop.uplink) else {
        return Step::Drop(packet, DropReason::DeviceGone);
    };
    let mut exit = Exit {
        uplink,
        fixed: tables.upstream.and_then(|upstream| upstream.neighbor),
        neighbors,
        shares: &mut worker.shares,
        output,
    };
    if matches!(size, Size::Fits) {
        exit.send(packet, hop.address, origin, now);
    } else {
        let vrf = worker.vrfs.of(packet.frame().vrf());
        cut(packet, mtu, &mut vrf.originator, exit.output);
        while let Some(fragment) = exit.output.pieces.pop_front() {
            exit.send(fragment, hop.address, origin, now);
        }
    }
    if exit.neighbors.has_output() {
        worker.stir(hop.uplink);
    }
    Step::Done
}

/// Tells the sender of a packet, which leaves by the uplink where it came in, of the better first hop
/// on that link, if it is there itself. The packet goes on as any other.
#[cold]
fn redirect(
    packet: &Packet,
    hop: NextHop,
    tables: &Tables,
    worker: &mut Worker,
    output: &mut Output,
    now: Instant,
) {
    let (host, vrf) = (packet.source(), packet.frame().vrf());
    let Worker {
        neighbors,
        vrfs,
        shares,
        ..
    } = worker;
    let VrfState {
        redirects,
        originator,
        ..
    } = vrfs.of(vrf);
    let fib = tables.routing.fib();
    let on_link = |uplink: &&Uplink| {
        let route = fib.adjacency(fib.lookup(vrf, host)).action();
        uplink.config.redirects && matches!(route, Action::Connected(link) if *link == hop.uplink)
    };
    let Some(uplink) = tables.uplinks.get(hop.uplink).filter(on_link) else {
        return;
    };
    let (Some(source), Some(neighbors)) =
        (uplink.address_towards(host), neighbors.get_mut(hop.uplink))
    else {
        return;
    };
    let better = BetterHop {
        target: hop.address,
        mac: neighbors.known(hop.address).map(|(mac, _)| mac),
    };
    let told = better.may_be_told(packet) && redirects.allow(host, packet.destination(), now);
    if !told {
        return;
    }
    let Some(mut redirect) = better.redirect(packet, source, originator, &mut output.pool) else {
        return;
    };
    output.ledger.originated += 1;
    redirect.set_interface(Interface::Uplink(hop.uplink));
    let mut exit = Exit {
        uplink,
        fixed: None,
        neighbors,
        shares,
        output,
    };
    exit.send(redirect, host, Origin::Nos, now);
    if exit.neighbors.has_output() {
        worker.stir(hop.uplink);
    }
}

/// An uplink with its neighbors, and where what leaves goes.
struct Exit<'a> {
    uplink: &'a Uplink,
    /// Who is there, where nobody has to be asked.
    fixed: Option<MacAddr>,
    neighbors: &'a mut NeighborCache<Origin>,
    shares: &'a mut Shares,
    output: &'a mut Output,
}

impl Exit<'_> {
    /// Sends a packet to a station, or keeps it until the station's MAC address is known.
    #[inline(always)]
    fn send(&mut self, packet: Packet, to: IpAddr, origin: Origin, now: Instant) {
        if let Some(mac) = self.fixed {
            return emit(packet, mac, self.uplink, self.output);
        }
        let account = Account::of(packet.frame());
        match self.neighbors.resolve(to, account, now) {
            Resolution::Known(mac) => emit(packet, mac, self.uplink, self.output),
            Resolution::Unknown(neighbor) => {
                let dropped = self
                    .neighbors
                    .hold(neighbor, packet, origin, now, self.shares);
                if let Some((dropped, _, reason)) = dropped {
                    self.output.discard(dropped, reason);
                }
            }
            Resolution::Refused(reason) => self.output.discard(packet, reason),
        }
    }
}

/// Does the next thing that an uplink's neighbor cache wants done; a packet that a failed neighbor
/// releases is refused. When it wants nothing more, the uplink is no longer stirred.
pub(super) fn poll_neighbors(
    id: UplinkId,
    tables: &Tables,
    worker: &mut Worker,
    output: &mut Output,
    now: Instant,
) -> Step {
    use crate::neighbor::Output as Wanted;
    let wanted = worker.neighbors.get_mut(id);
    let wanted = wanted.and_then(|cache| cache.poll_output(&mut worker.shares));
    let (Some(wanted), Some(uplink)) = (wanted, tables.uplinks.get(id)) else {
        worker.stirred.retain(|&stirred| stirred != id);
        return Step::Done;
    };
    match wanted {
        Wanted::Send(message) => say(&message, id, output),
        Wanted::Release { mac, packet, .. } => emit(packet, mac, uplink, output),
        Wanted::Failed { mut packet, tag } => {
            if matches!(tag, Origin::Attachment(_)) {
                unnote_echo(&mut packet, &worker.echo, now);
            }
            let error = IcmpError::HostUnreachable;
            return Step::refuse(packet, tag, error, DropReason::NeighborFailed);
        }
        Wanted::Dropped { packet, reason, .. } => return Step::Drop(packet, reason),
    }
    Step::Done
}

/// Sends a message of ARP or NDP.
fn say(message: &Message, id: UplinkId, output: &mut Output) {
    // Without a buffer the message is lost, as on the wire; what matters is repeated.
    let Some(mut frame) = output.pool.alloc() else {
        return;
    };
    match message.write(&mut frame) {
        Ok(()) => {
            output.ledger.originated += 1;
            output.queue(frame, id);
        }
        Err(FrameFull { .. }) => output.pool.free(frame),
    }
}

/// Sends a packet to a station whose MAC address is known.
#[inline]
fn emit(mut packet: Packet, mac: MacAddr, uplink: &Uplink, output: &mut Output) {
    let id = uplink.config.id;
    packet.set_link(mac, uplink.config.mac);
    packet.set_interface(Interface::Uplink(id));
    output.queue_adapted(packet, id, uplink.capabilities);
}
