//! The way of a packet through the NOS.
//!
//! # Theory of operation
//!
//! ```text
//! uplink frame ─ ingress: ARP? NDP? for us? martian? ─┐
//! burst from a container ─ egress: ready to leave? ───┤
//! packet of the NOS's own ────────────────────────────┴─ Route: FIB
//!      ├ one of our addresses ─ Deliver: fragments, demux ─ ToAttachment | local stack | answer
//!      └ elsewhere ─ Leave: TTL (transit only), MTU, echo identifier ─ neighbor ─ uplink
//!                  any stage ─ Refuse: ICMP error or reset ─ Return ─ where it came from
//! ```
//!
//! A stage takes a packet with what it needs of [tables](crate::tables), [worker](crate::worker)
//! and [output](crate::output), and returns the packet's next [`Step`]. None calls another:
//! [`Forwarder::walk`] does, until the packet has ended: sent on, held, answered, or dropped for a
//! named reason. What a stage provokes besides (packets that a neighbor cache or a datagram's first
//! fragment releases) is fetched by [`Forwarder::settle`].
//!
//! It ends: a step leads to a later stage, or to `Refuse` and from there to a packet of the NOS's
//! own; and nobody is told of an error about one of those ([`Origin::Nos`]).
//!
//! A container's packet from a link-local address is not looked up: it leaves by the uplink whose
//! address it is ([`link_local`]).
//!
//! A packet that leaves by the uplink where it came in makes a redirect besides, to its sender on that
//! link; it goes on all the same.
//!
//! The TTL is decremented between uplinks only: seen from outside, a container is the NOS's own
//! host, and eBGP (TTL 1) and GTSM (TTL 255, RFC 5082) must work from it. A container with addresses
//! of its own is a host behind a router, as on an uplink's link ([`routed`]).

mod deliver;
mod demux;
mod egress;
mod ftp;
mod groups;
mod ingress;
mod link_local;
mod local;
mod oversize;
mod police;
mod respond;
mod routed;
mod step;
#[cfg(test)]
mod tests;
mod upstream;

use crate::channel::{RefusedSide, Refuser};
use crate::drop::DropReason;
use crate::fib::{Action, AdjacencyId};
use crate::frame::{BATCH, Burst};
use crate::icmp::IcmpError;
use crate::ident::{AttachmentId, Interface, UplinkId, VrfId};
use crate::origin::Origin;
use crate::output::Output;
use crate::packet::{Addresses, Packet, PacketBurst};
use crate::tables::Tables;
use crate::time::Instant;
use crate::worker::Worker;

use step::Step;

/// Uplinks whose neighbors are due.
type UplinkBurst = arrayvec::ArrayVec<UplinkId, BATCH>;

/// The three parts of the NOS for the length of a call, and the time.
pub(crate) struct Forwarder<'a> {
    pub(crate) tables: &'a Tables,
    pub(crate) worker: &'a mut Worker,
    pub(crate) output: &'a mut Output,
    pub(crate) now: Instant,
}

impl Forwarder<'_> {
    /// Takes frames that an uplink's device received.
    pub(crate) fn handle_burst(&mut self, uplink: UplinkId, burst: &mut Burst) {
        self.ingress(uplink, burst);
        self.finish();
    }

    /// Takes packets of containers from the channel: at most `budget` bursts, and none while too much
    /// waits for the devices. Returns whether there were any.
    pub(crate) fn poll_channel(&mut self, budget: usize) -> bool {
        let mut any = false;
        for _ in 0..budget {
            if self.output.is_congested() {
                break;
            }
            let Some(mut burst) = self.output.channel.recv_burst() else {
                break;
            };
            any = true;
            self.output.ledger.received += burst.len() as u64;
            self.outbound(&mut burst);
            self.output.channel.recycle(burst);
        }
        any
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self) {
        let now = self.now;
        let mut due = UplinkBurst::new();
        for (id, cache) in self.worker.neighbors.iter_mut() {
            if cache.poll_at().is_some_and(|at| at <= now) && !due.is_full() {
                cache.handle_timeout(now);
                due.push(id);
            }
        }
        // More than fit are still due, and come with the next call.
        self.worker.stirred.extend(due);
        if self
            .worker
            .memberships
            .poll_at()
            .is_some_and(|at| at <= now)
        {
            self.report_groups();
        }
        self.worker.echo.expire(now);
        if let Some(policed) = &mut self.worker.policed {
            policed.expire(now);
        }
        self.worker.fragments.expire(now);
        self.settle();
        while let Some(refusal) = deliver::expired(self.worker, self.output, now) {
            self.run(Step::Refuse(refusal));
        }
        self.finish();
    }

    /// Says that the NOS leaves all its groups on a link.
    pub(crate) fn leave_link(&mut self, id: UplinkId) {
        groups::leave_link(id, self.tables, self.worker, self.output, self.now);
    }

    /// Says which groups the NOS is in, as far as that is due.
    pub(crate) fn report_groups(&mut self) {
        groups::report(self.tables, self.worker, self.output, self.now);
    }

    /// Sends what is left to be sent: what was released, what the NOS's own services have to say,
    /// and what waits for the relay.
    pub(crate) fn finish(&mut self) {
        self.settle();
        if local::is_due(self.worker, self.now) {
            self.poll_local();
        }
        if self.worker.refusals.has_news() {
            self.tell_refusals();
        }
        self.output.flush_to_relay();
    }

    #[cold]
    fn tell_refusals(&mut self) {
        while self.output.takes_news()
            && let Some(event) = self.worker.refusals.poll()
        {
            self.output.tell(event);
        }
    }

    #[inline(never)]
    fn poll_local(&mut self) {
        let mut next = Some(VrfId::DEFAULT);
        while let Some(vrf) = next.and_then(|from| self.worker.vrfs.due(from, self.now)) {
            let Self {
                tables,
                worker,
                output,
                now,
            } = self;
            let mut said = local::poll(vrf, tables, worker, output, *now);
            while let Some(packet) = said.pop_front() {
                self.run(Step::Route(packet, Origin::Nos));
            }
            // Keeps its memory for the next time.
            self.output.pieces = said;
            next = vrf.0.checked_add(1).map(VrfId);
        }
        self.worker.vrfs.reschedule();
    }

    /// Packets from containers.
    fn outbound(&mut self, burst: &mut PacketBurst) {
        if self.tables.polices {
            self.police(burst);
        }
        if self.tables.upstream.is_some() {
            return self.outbound_upstream(burst);
        }
        self.worker.refresh_rewrites(self.tables);
        let found = look_up(self.tables, burst);
        if self.tables.routes {
            return self.outbound_mixed(burst, &found);
        }
        for (packet, adjacency) in burst.drain(..).zip(found) {
            let Self {
                worker,
                output,
                now,
                ..
            } = self;
            let sent = egress::send_ready(packet, adjacency, &worker.rewrites, output, *now);
            if let Err(packet) = sent {
                self.outbound_slowly(packet, adjacency);
            }
        }
    }

    /// Takes out of a burst what policies refuse.
    #[cold]
    fn police(&mut self, burst: &mut PacketBurst) {
        let mut at = 0;
        while let Some(packet) = burst.get(at) {
            match self.judge(packet) {
                Ok(()) => at += 1,
                Err((id, refused)) => {
                    let packet = burst.remove(at);
                    let who = (Refuser::Attachment(id), RefusedSide::Owner);
                    let refusals = &mut self.worker.refusals;
                    refusals.note(&packet, who, refused.reason, refused.holder, self.now);
                    let origin = Origin::Attachment(id);
                    self.run(police::refuse(packet, origin, refused));
                }
            }
        }
    }

    fn judge(&mut self, packet: &Packet) -> Result<(), (AttachmentId, police::Refused)> {
        let Some(Interface::Attachment(id)) = packet.frame().interface() else {
            return Ok(());
        };
        let Self {
            tables,
            worker,
            now,
            ..
        } = self;
        match (tables.policies.get(id), &mut worker.policed) {
            (Some(policy), Some(policed)) => {
                let judged = police::outbound(packet, id, policy, tables, policed, *now);
                judged.map_err(|refused| (id, refused))
            }
            _ => Ok(()),
        }
    }

    /// A packet from a container that needs more than a look at its adjacency.
    #[inline(never)]
    fn outbound_slowly(&mut self, packet: Packet, adjacency: AdjacencyId) {
        let Some(Interface::Attachment(id)) = packet.frame().interface() else {
            return self.output.discard(packet, DropReason::UnknownAttachment);
        };
        if packet.frame().vrf().link_index().is_some() {
            return self.run(link_local::outbound(packet, id, self.tables));
        }
        self.run(Step::Follow(packet, adjacency, Origin::Attachment(id)));
        egress::prepare_rewrite(adjacency, self.tables, self.worker);
    }

    /// Moves a packet on until it has ended, and everything that it released.
    #[inline]
    fn run(&mut self, step: Step) {
        if !matches!(step, Step::Done) {
            self.walk(step);
            self.settle();
        }
    }

    /// Moves a packet on until it has ended.
    #[inline(never)]
    fn walk(&mut self, mut next: Step) {
        let Self {
            tables,
            worker,
            output,
            now,
        } = self;
        let now = *now;
        loop {
            next = match next {
                Step::Route(packet, origin) => {
                    let adjacency = look_up_one(tables, &packet);
                    Step::Follow(packet, adjacency, origin)
                }
                Step::Follow(packet, adjacency, origin) => {
                    follow(packet, adjacency, origin, tables)
                }
                Step::Deliver(packet, address, origin) => {
                    deliver::deliver(packet, address, origin, tables, worker, output, now)
                }
                Step::Fate(fate) => deliver::follow_fate(fate, tables, worker, output, now),
                Step::ToOwnAddress(packet, to, origin) => {
                    routed::deliver(packet, to, origin, tables, worker, now)
                }
                Step::ToAttachment(delivery) => {
                    deliver::to_attachment(delivery, tables, worker, output)
                }
                Step::Leave(packet, hop, origin) => {
                    egress::leave(packet, hop, origin, tables, worker, output, now)
                }
                Step::Refuse(refusal) => respond::refuse(refusal, tables, worker, output, now),
                Step::Return(packet, origin) => respond::send_back(packet, origin, tables),
                Step::Drop(packet, reason) => {
                    output.discard(packet, reason);
                    Step::Done
                }
                Step::Done => return,
            };
        }
    }

    /// Fetches what packets have released: fragments whose owner is known now, and what neighbor
    /// caches want.
    #[inline]
    fn settle(&mut self) {
        loop {
            let step = if let Some(fate) = self.worker.poll_fate() {
                Step::Fate(fate)
            } else if let Some(&uplink) = self.worker.stirred.last() {
                egress::poll_neighbors(uplink, self.tables, self.worker, self.output, self.now)
            } else {
                return;
            };
            self.walk(step);
        }
    }
}

/// Where the packets of a burst go. Neighbors of one family and VRF are looked up together.
fn look_up(tables: &Tables, burst: &[Packet]) -> [AdjacencyId; BATCH] {
    let kind = |packet: &Packet| (packet.frame().vrf(), packet.is_ipv6());
    let mut found = [AdjacencyId::NO_ROUTE; BATCH];
    let mut rest = &mut found[..];
    let fib = tables.routing.fib();
    for run in burst.chunk_by(|a, b| kind(a) == kind(b)) {
        let Some((found, behind)) = rest.split_at_mut_checked(run.len()) else {
            break;
        };
        rest = behind;
        let Some((vrf, ipv6)) = run.first().map(kind) else {
            continue;
        };
        if ipv6 {
            let destinations = run.iter().map(Packet::destination_v6);
            fib.lookup_burst_v6(vrf, destinations, found);
        } else {
            let destinations = run.iter().map(Packet::destination_v4);
            fib.lookup_burst_v4(vrf, destinations, found);
        }
    }
    found
}

/// Where one packet goes.
fn look_up_one(tables: &Tables, packet: &Packet) -> AdjacencyId {
    let (fib, vrf) = (tables.routing.fib(), packet.frame().vrf());
    match packet.addresses() {
        Addresses::V4 { destination, .. } => fib.lookup_v4(vrf, destination),
        Addresses::V6 { destination, .. } => fib.lookup_v6(vrf, destination),
    }
}

/// What a packet's route says.
#[inline]
fn follow(packet: Packet, adjacency: AdjacencyId, origin: Origin, tables: &Tables) -> Step {
    let mut entry = tables.routing.fib().adjacency(adjacency);
    if tables.routing.is_revising() {
        entry = tables.detour(entry, packet.frame().vrf(), packet.destination());
    }
    match entry.action() {
        Action::Local(address) => Step::Deliver(packet, *address, origin),
        Action::Attached(to) => Step::ToOwnAddress(packet, *to, origin),
        Action::Blackhole => Step::Drop(packet, DropReason::Blackhole),
        Action::Broadcast(_) => Step::Drop(packet, DropReason::Multicast),
        Action::NoRoute => Step::refuse(packet, origin, IcmpError::NoRoute, DropReason::NoRoute),
        Action::Unreachable => {
            let error = IcmpError::UnreachableRoute;
            Step::refuse(packet, origin, error, DropReason::UnreachableRoute)
        }
        Action::Connected(_) | Action::Via(_) => {
            egress::choose_next_hop(packet, entry, origin, tables)
        }
    }
}
