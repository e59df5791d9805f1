//! Between containers and a NOS in another process, which steers the ports of containers here.
//!
//! | packet of a container | goes |
//! |---|---|
//! | to a shared address, and a port of a container there | to that container, as with any NOS |
//! | to an address that a container has for its own | to that container |
//! | all else | to the NOS, as it is: no hop is counted, nothing is answered in its place |
//!
//! | packet of the NOS | goes |
//! |---|---|
//! | to a shared address, and a container owns its port, its flow, its first fragment, or what it quotes | to that container |
//! | to an address that a container has for its own | to that container: the NOS routes them here, and has counted the hop |
//! | all else | nowhere. Not back, or it would come again |
//!
//! Who opens a flow to a port that a container may only open flows from gets a reset, as from any host: the
//! port was given away, so it is nobody else's to answer for. Of nothing else is that NOS told. A container
//! is told what is between it and this link alone: that its own policy refuses a packet, and that one is
//! too long.

use crate::drop::DropReason;
use crate::fragments::Fate;
use crate::icmp::IcmpError;
use crate::ident::{AttachmentId, Interface, LocalAddressId, MacAddr, UplinkId};
use crate::martian;
use crate::ndp;
use crate::origin::Origin;
use crate::packet::{Fragment, Packet, PacketBurst};
use crate::ports::{PortOwner, Transport};
use crate::tables::Tables;
use crate::time::Instant;
use crate::uplink::LinkState;
use crate::worker::{Holder, Worker};

use super::Forwarder;
use super::demux::{Recipient, put_back_echo_id, recipient};
use super::step::{NextHop, Notice, Step, ToAttachment};

impl Forwarder<'_> {
    /// Packets from containers.
    pub(super) fn outbound_upstream(&mut self, burst: &mut PacketBurst) {
        for packet in burst.drain(..) {
            let step = match packet.frame().interface() {
                Some(Interface::Attachment(id)) => self.outbound_packet(packet, id),
                _ => Step::Drop(packet, DropReason::UnknownAttachment),
            };
            self.run(step);
        }
    }

    fn outbound_packet(&mut self, packet: Packet, id: AttachmentId) -> Step {
        if let Some(fault) = packet.fault() {
            // It could hide whose port it comes from (RFC 1858 §3).
            return Step::Drop(packet, fault.reason());
        }
        let origin = Origin::Attachment(id);
        if let Some(to) = self.owner_of_address(&packet) {
            return Step::ToOwnAddress(packet, to, origin);
        }
        match self.shared_address(&packet) {
            Some(address) => deliver(packet, address, origin, self.tables, self.worker, self.now),
            None => leave(packet, origin, self.tables),
        }
    }

    /// A packet from the NOS.
    pub(super) fn receive_upstream(&mut self, packet: Packet, id: UplinkId, mac: MacAddr) -> Step {
        let link = packet.destination_mac();
        if link.is_other_than(mac) {
            return Step::Drop(packet, DropReason::OtherHost);
        }
        if ndp::is_ndp(&packet) {
            return self.ndp(id, packet);
        }
        // Its own address is a good source: it talks with containers as any other host.
        if let Err(reason) = martian::check(packet.addresses()) {
            return Step::Drop(packet, reason);
        }
        if link.is_multicast() || martian::is_group(packet.destination()) {
            return Step::Drop(packet, DropReason::Multicast);
        }
        let origin = Origin::Uplink(id);
        if let Some(to) = self.owner_of_address(&packet) {
            return Step::ToOwnAddress(packet, to, origin);
        }
        match self.shared_address(&packet) {
            Some(address) => deliver(packet, address, origin, self.tables, self.worker, self.now),
            None => Step::Drop(packet, DropReason::Unregistered),
        }
    }

    /// The container that has the destination for its own.
    fn owner_of_address(&self, packet: &Packet) -> Option<AttachmentId> {
        let ports = &self.tables.ports;
        let routed = self.tables.routes.then(|| packet.destination());
        routed.and_then(|address| ports.routed(packet.frame().vrf(), address))
    }

    fn shared_address(&self, packet: &Packet) -> Option<LocalAddressId> {
        let vrf = packet.frame().vrf();
        self.tables.own_address(vrf, packet.destination())
    }
}

/// A packet to a shared address.
fn deliver(
    mut packet: Packet,
    address: LocalAddressId,
    origin: Origin,
    tables: &Tables,
    worker: &mut Worker,
    now: Instant,
) -> Step {
    if packet.fragment() == Fragment::Whole {
        let (holder, echo_id) = holder(&packet, address, origin, tables, worker, now);
        return match holder {
            Holder::Attachment(to) => Step::ToAttachment(ToAttachment {
                packet,
                to,
                echo_id,
                origin,
                transit: false,
            }),
            Holder::Nobody(reason @ (DropReason::NoListener | DropReason::OtherNetwork))
                if packet.icmp().is_none() =>
            {
                Step::no_listener(packet, origin, reason)
            }
            Holder::Nobody(reason) => Step::Drop(packet, reason),
            Holder::Upstream | Holder::Local(_) => leave(packet, origin, tables),
        };
    }
    let holder = match packet.fragment() {
        Fragment::First => {
            let (holder, echo_id) = holder(&packet, address, origin, tables, worker, now);
            if let Some(own) = echo_id {
                put_back_echo_id(&mut packet, own);
            }
            holder
        }
        // Not asked for: only first fragments decide.
        Fragment::Later | Fragment::Whole => Holder::Nobody(DropReason::FragmentTimeout),
    };
    let fate = worker
        .fragments
        .handle(packet, now, &mut worker.shares, |_| holder);
    fate.map_or(Step::Done, |fate: Fate<Holder>| Step::Fate(fate))
}

/// Who gets a packet that carries its transport header, and with which echo identifier.
fn holder(
    packet: &Packet,
    address: LocalAddressId,
    origin: Origin,
    tables: &Tables,
    worker: &mut Worker,
    now: Instant,
) -> (Holder, Option<u16>) {
    let from_nos = matches!(origin, Origin::Uplink(_));
    let holder = match recipient(packet, address, tables, worker, now) {
        Recipient::Attachment(to) => Holder::Attachment(to),
        Recipient::Echo(to, own) => return (Holder::Attachment(to), Some(own)),
        Recipient::Refused(reason) => Holder::Nobody(reason),
        // The NOS would only steer it back.
        Recipient::NoListener if is_registered(packet, address, tables) => {
            Holder::Nobody(DropReason::NoListener)
        }
        // It may well be about something of the NOS's own.
        Recipient::Drop(DropReason::IcmpUnmatched) if !from_nos => Holder::Upstream,
        Recipient::Drop(reason) => Holder::Nobody(reason),
        Recipient::Local | Recipient::Query | Recipient::NoListener | Recipient::NoProtocol
            if from_nos =>
        {
            Holder::Nobody(DropReason::Unregistered)
        }
        Recipient::Local | Recipient::Query | Recipient::NoListener | Recipient::NoProtocol => {
            Holder::Upstream
        }
    };
    (holder, None)
}

/// Whether the port that a packet goes to is a container's.
fn is_registered(packet: &Packet, address: LocalAddressId, tables: &Tables) -> bool {
    let transport = Transport::from_protocol(packet.protocol());
    transport
        .zip(packet.ports())
        .is_some_and(|(transport, ports)| {
            tables.ports.owner(address, transport, ports.destination) != PortOwner::Nobody
        })
}

/// Sends a packet to the NOS: one of a container's, or one that is said in a container's place.
pub(super) fn leave(packet: Packet, origin: Origin, tables: &Tables) -> Step {
    if matches!(origin, Origin::Uplink(_)) {
        return Step::Drop(packet, DropReason::Unregistered);
    }
    let uplink = tables.uplinks.values().next();
    let Some(uplink) = uplink.filter(|uplink| uplink.link == LinkState::Up) else {
        return Step::Drop(packet, DropReason::DeviceGone);
    };
    let Some(address) = uplink.address(false).or_else(|| uplink.address(true)) else {
        return Step::Drop(packet, DropReason::NeighborFailed);
    };
    let hop = NextHop {
        uplink: uplink.config.id,
        address,
        transit: false,
    };
    Step::Leave(packet, hop, origin)
}

/// Whether the sender of a packet that does not go on is told.
pub(super) fn may_tell(origin: Origin, notice: Notice) -> bool {
    match notice {
        Notice::NoListener => true,
        Notice::Error(IcmpError::Prohibited | IcmpError::PacketTooBig { .. }) => {
            matches!(origin, Origin::Attachment(_))
        }
        Notice::Error(_) => false,
    }
}
