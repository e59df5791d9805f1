//! Packets to the network: TTL, MTU, neighbor, offload, and the queue of the uplink's device.

use core::net::IpAddr;

use crate::drop::DropReason;
use crate::fib::{Action, AdjacencyId};
use crate::fragment_ipv6::fragment_ipv6;
use crate::frame::{Frame, FrameFull};
use crate::icmp::IcmpError;
use crate::ident::{Interface, MacAddr, UplinkId};
use crate::ipv4_options::is_source_routed;
use crate::neighbor::{Message, Output, Resolution};
use crate::offload::{adapt, fragment_ipv4};
use crate::packet::Packet;
use crate::share::Account;
use crate::shim::Shim;
use crate::time::Instant;

use super::Origin;

/// What is left to be done to a packet once its MTU has been checked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hop {
    /// It passes from one network to another: one hop less to live.
    Transit,
    /// It leaves the NOS's own host.
    First,
}

impl Shim {
    /// A packet from one uplink to another (RFC 1812 §5.3, RFC 4443 §3.3).
    pub(super) fn transit(
        &mut self,
        packet: Packet,
        adjacency: AdjacencyId,
        origin: Origin,
        now: Instant,
    ) {
        let source = packet.source();
        if matches!(source, IpAddr::V6(address) if address.is_unicast_link_local()) {
            // RFC 4291 §2.5.6.
            return self.discard(packet, DropReason::MartianSource);
        }
        if is_source_routed(&packet) {
            return self.discard(packet, DropReason::IpOptions);
        }
        if packet.ttl() <= 1 {
            return self.refuse(
                packet,
                origin,
                IcmpError::TtlExceeded,
                DropReason::TtlExceeded,
                now,
            );
        }
        self.choose_next_hop(packet, adjacency, origin, Hop::Transit, now);
    }

    /// A packet from a container or from the NOS itself.
    pub(super) fn egress(
        &mut self,
        packet: Packet,
        adjacency: AdjacencyId,
        origin: Origin,
        now: Instant,
    ) {
        self.choose_next_hop(packet, adjacency, origin, Hop::First, now);
    }

    fn choose_next_hop(
        &mut self,
        packet: Packet,
        adjacency: AdjacencyId,
        origin: Origin,
        hop: Hop,
        now: Instant,
    ) {
        let entry = self.fib.adjacency(adjacency);
        let chosen = match entry.action() {
            Action::Connected(uplink) => Some((*uplink, packet.destination())),
            Action::Via(hops) => {
                let one = hops.as_slice().len() == 1;
                let hash = if one {
                    0
                } else {
                    self.flow_hasher.hash(&packet)
                };
                entry.next_hop(hash).map(|next| (next.uplink, next.gateway))
            }
            _ => None,
        };
        match chosen {
            Some((uplink, next_hop)) => self.check_mtu(packet, uplink, next_hop, origin, hop, now),
            None => self.discard(packet, DropReason::NoRoute),
        }
    }

    /// Sends a packet to a station on an uplink's link.
    pub(super) fn send_on(
        &mut self,
        packet: Packet,
        uplink: UplinkId,
        next_hop: IpAddr,
        origin: Origin,
        now: Instant,
    ) {
        self.check_mtu(packet, uplink, next_hop, origin, Hop::First, now);
    }

    fn check_mtu(
        &mut self,
        mut packet: Packet,
        id: UplinkId,
        next_hop: IpAddr,
        origin: Origin,
        hop: Hop,
        now: Instant,
    ) {
        let Some(mtu) = self.uplink(id).map(|uplink| uplink.config.mtu) else {
            return self.discard(packet, DropReason::DeviceGone);
        };
        let fits = packet.wire_len() <= mtu;
        // The source of an IPv6 packet may fragment it, and nobody else (RFC 8200 §4.5).
        let ours = packet.is_ipv6() && origin == Origin::Nos;
        if !fits && packet.dont_fragment() && !ours {
            let told = u32::try_from(mtu).unwrap_or(u32::MAX);
            let error = IcmpError::PacketTooBig { mtu: told };
            return self.refuse(packet, origin, error, DropReason::TooBig, now);
        }
        if hop == Hop::Transit && !packet.decrement_ttl() {
            return self.discard(packet, DropReason::TtlExceeded);
        }
        // Not before: what the NOS refuses or answers itself has the container's identifier.
        if let Origin::Attachment(attachment) = origin
            && let Err(reason) = self.note_echo(&mut packet, attachment, now)
        {
            return self.discard(packet, reason);
        }
        if fits {
            return self.hand_to_neighbor(packet, id, next_hop, origin, now);
        }
        self.fragment(packet, mtu);
        while let Some(fragment) = self.pieces.pop_front() {
            self.hand_to_neighbor(fragment, id, next_hop, origin, now);
        }
    }

    fn fragment(&mut self, packet: Packet, mtu: usize) {
        let Self {
            pool,
            pieces,
            ledger,
            originator,
            ..
        } = self;
        let mut out = |piece| pieces.push_back(piece);
        let cut = if packet.is_ipv6() {
            let identification = originator.fragment_identification();
            fragment_ipv6(packet, mtu, identification, pool, &mut out)
        } else {
            fragment_ipv4(packet, mtu, pool, &mut out)
        };
        cut.record(ledger);
    }

    fn hand_to_neighbor(
        &mut self,
        packet: Packet,
        id: UplinkId,
        next_hop: IpAddr,
        origin: Origin,
        now: Instant,
    ) {
        let Some(uplink) = self.uplinks.get_mut(id) else {
            return self.discard(packet, DropReason::DeviceGone);
        };
        let account = Account::of(packet.frame());
        match uplink.neighbors.resolve(next_hop, account, now) {
            Resolution::Known(mac) => self.emit(packet, id, mac),
            Resolution::Unknown(neighbor) => {
                let shares = &mut self.shares;
                let dropped = uplink.neighbors.hold(neighbor, packet, origin, now, shares);
                if let Some((dropped, _, reason)) = dropped {
                    self.discard(dropped, reason);
                }
            }
            Resolution::Refused(reason) => self.discard(packet, reason),
        }
        self.poll_neighbors(id, now);
    }

    /// Carries out what the neighbor cache wants.
    pub(crate) fn poll_neighbors(&mut self, id: UplinkId, now: Instant) {
        loop {
            let uplink = self.uplinks.get_mut(id);
            let shares = &mut self.shares;
            let output = uplink.and_then(|uplink| uplink.neighbors.poll_output(shares));
            let Some(output) = output else {
                return;
            };
            match output {
                Output::Send(message) => self.say(&message, id),
                Output::Release { mac, packet, .. } => self.emit(packet, id, mac),
                Output::Failed { mut packet, tag } => {
                    if matches!(tag, Origin::Attachment(_)) {
                        self.unnote_echo(&mut packet, now);
                    }
                    let error = IcmpError::HostUnreachable;
                    self.refuse(packet, tag, error, DropReason::NeighborFailed, now);
                }
                Output::Dropped { packet, reason, .. } => self.discard(packet, reason),
            }
        }
    }

    /// Sends a message of ARP or NDP.
    fn say(&mut self, message: &Message, id: UplinkId) {
        // Without a buffer the message is lost, as on the wire; what matters is repeated.
        let Some(mut frame) = self.pool.alloc() else {
            return;
        };
        match message.write(&mut frame) {
            Ok(()) => {
                self.ledger.originated += 1;
                self.queue(frame, id);
            }
            Err(FrameFull { .. }) => self.pool.free(frame),
        }
    }

    /// Sends a packet to a station whose MAC address is known.
    fn emit(&mut self, mut packet: Packet, id: UplinkId, mac: MacAddr) {
        let Some(uplink) = self.uplinks.get(id) else {
            return self.discard(packet, DropReason::DeviceGone);
        };
        packet.set_link(mac, uplink.config.mac);
        packet.set_interface(Interface::Uplink(id));
        if uplink.capabilities.take(packet.frame().offload()) {
            return self.queue(packet.into_frame(), id);
        }
        let capabilities = uplink.capabilities;
        let Self {
            pool,
            pieces,
            ledger,
            ..
        } = self;
        adapt(packet, capabilities, pool, &mut |piece| {
            pieces.push_back(piece);
        })
        .record(ledger);
        while let Some(piece) = self.pieces.pop_front() {
            self.queue(piece.into_frame(), id);
        }
    }

    /// Queues a frame for an uplink's device.
    pub(super) fn queue(&mut self, frame: Frame, id: UplinkId) {
        if let Err(frame) = self.transmit.push(id.0, frame) {
            self.discard_frame(frame, DropReason::DeviceFull);
        }
    }
}
