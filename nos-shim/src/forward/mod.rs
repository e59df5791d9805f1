//! The way of a packet through the NOS.
//!
//! # Theory of operation
//!
//! ```text
//! uplink frame ─ ingress: ARP? NDP? for us? martian? ─┐
//! burst from a container ─ outbound: echo flow ───────┤
//! packet of the NOS's own ────────────────────────────┴─ route: FIB
//!      ├ one of our addresses ─ deliver: fragments, demux ─ ring | local stack | answer
//!      └ elsewhere ─ egress: TTL (transit only), MTU, neighbor, offload ─ uplink
//! ```
//!
//! Every function takes the packet, and ends with it sent on, held, answered, or dropped for a
//! named reason; none returns it half done. Errors and resets go back to where the packet came
//! from ([`respond`]).
//!
//! The TTL is decremented between uplinks only: seen from outside, a container is the NOS's own
//! host, and eBGP (TTL 1) and GTSM (TTL 255, RFC 5082) must work from it.

mod deliver;
mod demux;
mod egress;
mod ingress;
mod local;
mod respond;
mod rewrite;

pub(crate) use deliver::Holder;
pub use demux::Verdict;
pub(crate) use rewrite::Rewrites;

use crate::drop::DropReason;
use crate::fib::{Action, AdjacencyId};
use crate::frame::{BATCH, Burst, Frame};
use crate::icmp::IcmpError;
use crate::ident::{AttachmentId, Interface, UplinkId};
use crate::packet::{Addresses, Packet, PacketBurst};
use crate::shim::Shim;
use crate::time::Instant;

/// Uplinks whose neighbors are due.
type UplinkBurst = arrayvec::ArrayVec<UplinkId, BATCH>;

/// Where a packet comes from: answers and errors go back there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The network.
    Uplink(UplinkId),
    /// A container.
    Attachment(AttachmentId),
    /// The NOS itself. Nobody is told of its errors.
    Nos,
}

impl Origin {
    /// Where a packet came in.
    fn of(packet: &Packet) -> Self {
        match packet.frame().interface() {
            Some(Interface::Attachment(id)) => Self::Attachment(id),
            Some(Interface::Uplink(id)) => Self::Uplink(id),
            None => Self::Nos,
        }
    }
}

impl Shim {
    /// Takes frames that an uplink's device received.
    pub fn handle_burst(&mut self, uplink: UplinkId, burst: &mut Burst, now: Instant) {
        self.ingress(uplink, burst, now);
        self.poll_local(now);
        self.flush_to_relay();
    }

    /// Takes packets of containers, and what the relay has to say, from the channel: at most
    /// `budget` bursts, and none while too much waits for the devices. Returns whether there were
    /// any.
    pub fn poll_channel(&mut self, now: Instant, budget: usize) -> bool {
        let mut any = self.poll_control();
        for _ in 0..budget {
            if self.transmit.held() >= self.budget.transmit_high() {
                break;
            }
            let Some(mut burst) = self.channel.recv_burst() else {
                break;
            };
            any = true;
            self.ledger.received += burst.len() as u64;
            self.outbound(&mut burst, now);
        }
        if any {
            self.poll_local(now);
            self.flush_to_relay();
        }
        any
    }

    /// Whether the ring to the relay takes another burst.
    #[must_use]
    #[inline]
    pub fn has_room(&self) -> bool {
        self.channel.has_room()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_at().is_none_or(|at| at > now) {
            return;
        }
        let mut due = UplinkBurst::new();
        for (id, uplink) in self.uplinks.iter_mut() {
            if uplink.neighbors.poll_at().is_some_and(|at| at <= now) && !due.is_full() {
                uplink.neighbors.handle_timeout(now);
                due.push(id);
            }
        }
        // More than fit are still due, and come with the next call.
        for id in due {
            self.poll_neighbors(id, now);
        }
        self.echo.expire(now);
        self.fragments.expire(now);
        self.poll_fragments(now);
        self.expire_reassembly(now);
        self.poll_local(now);
        self.flush_to_relay();
    }

    /// Packets from containers.
    fn outbound(&mut self, burst: &mut PacketBurst, now: Instant) {
        self.refresh_rewrites();
        let found = self.look_up(burst);
        for (packet, adjacency) in burst.drain(..).zip(found) {
            if let Err(packet) = self.send_ready(packet, adjacency, now) {
                self.outbound_slowly(packet, adjacency, now);
            }
        }
    }

    /// A packet from a container that needs more than a look at its adjacency.
    #[inline(never)]
    fn outbound_slowly(&mut self, packet: Packet, adjacency: AdjacencyId, now: Instant) {
        let Some(Interface::Attachment(id)) = packet.frame().interface() else {
            return self.discard(packet, DropReason::UnknownAttachment);
        };
        self.follow(packet, adjacency, Origin::Attachment(id), now);
        self.prepare_rewrite(adjacency);
    }

    /// Where the packets of a burst go. Neighbors of one family and VRF are looked up together.
    fn look_up(&self, burst: &[Packet]) -> [AdjacencyId; BATCH] {
        let kind = |packet: &Packet| (packet.frame().vrf(), packet.is_ipv6());
        let mut found = [AdjacencyId::NO_ROUTE; BATCH];
        let mut rest = &mut found[..];
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
                self.fib.lookup_burst_v6(vrf, destinations, found);
            } else {
                let destinations = run.iter().map(Packet::destination_v4);
                self.fib.lookup_burst_v4(vrf, destinations, found);
            }
        }
        found
    }

    /// Sends a packet where its destination says.
    pub(crate) fn route(&mut self, packet: Packet, origin: Origin, now: Instant) {
        let vrf = packet.frame().vrf();
        let adjacency = match packet.addresses() {
            Addresses::V4 { destination, .. } => self.fib.lookup_v4(vrf, destination),
            Addresses::V6 { destination, .. } => self.fib.lookup_v6(vrf, destination),
        };
        self.follow(packet, adjacency, origin, now);
    }

    /// Does with a packet what its route says.
    fn follow(&mut self, packet: Packet, adjacency: AdjacencyId, origin: Origin, now: Instant) {
        let transit = matches!(origin, Origin::Uplink(_));
        match *self.fib.adjacency(adjacency).action() {
            Action::Local(address) => self.deliver(packet, address, origin, now),
            Action::Blackhole => self.discard(packet, DropReason::Blackhole),
            Action::Broadcast(_) => self.discard(packet, DropReason::Multicast),
            Action::NoRoute => {
                self.refuse(packet, origin, IcmpError::NoRoute, DropReason::NoRoute, now);
            }
            Action::Unreachable => {
                let error = IcmpError::UnreachableRoute;
                self.refuse(packet, origin, error, DropReason::UnreachableRoute, now);
            }
            Action::Connected(_) | Action::Via(_) if transit => {
                self.transit(packet, adjacency, origin, now);
            }
            Action::Connected(_) | Action::Via(_) => self.egress(packet, adjacency, origin, now),
        }
    }

    /// Drops a packet and counts it.
    pub(crate) fn discard(&mut self, packet: Packet, reason: DropReason) {
        self.discard_frame(packet.into_frame(), reason);
    }

    /// Drops a frame and counts it.
    pub(crate) fn discard_frame(&mut self, frame: Frame, reason: DropReason) {
        self.pool.free(frame);
        self.ledger.drop(reason);
    }

    /// Hands a packet to a container.
    #[inline]
    pub(crate) fn deliver_to(&mut self, mut packet: Packet, id: AttachmentId) {
        packet.set_interface(Interface::Attachment(id));
        if self.to_relay.is_full() {
            self.flush_to_relay();
        }
        self.to_relay.push(packet);
    }

    /// Sends what waits for the relay. A full ring drops it.
    pub(crate) fn flush_to_relay(&mut self) {
        let count = self.to_relay.len() as u64;
        if self.channel.send_burst(&mut self.to_relay) {
            self.ledger.sent += count;
            return;
        }
        self.ledger.drops.add(DropReason::RingFull, count);
        for packet in self.to_relay.drain(..) {
            self.pool.free(packet.into_frame());
        }
    }
}
