//! Frames from the network: what a host checks before it looks at the destination.

use core::net::{IpAddr, Ipv6Addr};

use arrayvec::ArrayVec;

use crate::arp::Arp;
use crate::drop::DropReason;
use crate::frame::{BATCH, Burst, Frame, Offload, octets};
use crate::ident::{Interface, LocalAddressId, MacAddr, UplinkId};
use crate::martian;
use crate::multicast::{igmp, mld};
use crate::ndp::{self, Ndp};
use crate::neighbor::Answer;
use crate::origin::Origin;
use crate::packet::{Addresses, ETHERTYPE_ARP, Packet, Rejected, ether_type, protocol};
use crate::tables::Tables;
use crate::vlan;

use super::step::Step;
use super::{Forwarder, deliver, egress, follow, groups, look_up};

impl Forwarder<'_> {
    /// Frames that came in on an uplink. What is to be routed is looked up together.
    pub(super) fn ingress(&mut self, id: UplinkId, burst: &mut Burst) {
        let tables = self.tables;
        self.output.ledger.received += burst.len() as u64;
        let Some(uplink) = tables.uplinks.get(id) else {
            for frame in burst.drain(..) {
                self.output.discard_frame(frame, DropReason::DeviceGone);
            }
            return;
        };
        if let Some(counters) = self.output.counters.get_mut(id) {
            counters.rx_packets += burst.len() as u64;
            counters.rx_octets += octets(burst);
        }
        let (vrf, mac) = (uplink.config.vrf, uplink.config.mac);
        let origin = Origin::Uplink(id);
        let mut routed = ArrayVec::<Packet, BATCH>::new();
        for mut frame in burst.drain(..) {
            frame.set_vrf(vrf);
            frame.set_interface(Interface::Uplink(id));
            let step = match Packet::parse(frame) {
                Ok(packet) => self.receive(packet, id, mac, &mut routed),
                Err(rejected) => self.receive_other(rejected, id, mac, &mut routed),
            };
            self.run(step);
        }
        let found = look_up(tables, &routed);
        for (packet, adjacency) in routed.drain(..).zip(found) {
            let step = match follow(packet, adjacency, origin, tables) {
                // What most of them do; a walk of one step costs more than the step.
                Step::Leave(packet, hop, origin) => {
                    let Self {
                        worker,
                        output,
                        now,
                        ..
                    } = self;
                    egress::leave(packet, hop, origin, tables, worker, output, *now)
                }
                other => other,
            };
            self.run(step);
            self.settle();
        }
    }

    /// A packet that came in. What is to be routed goes to `routed`, where there is room: no burst is
    /// longer than another.
    // What was parsed is in registers only where the parser is; the other caller is cold.
    #[inline(always)]
    fn receive(
        &mut self,
        packet: Packet,
        id: UplinkId,
        mac: MacAddr,
        routed: &mut ArrayVec<Packet, BATCH>,
    ) -> Step {
        if self.tables.upstream.is_some() {
            return self.receive_upstream(packet, id, mac);
        }
        let Self {
            tables,
            worker,
            output,
            now,
        } = self;
        match admit(&packet, id, mac, tables) {
            Ok(Admitted::Local(address)) => {
                let origin = Origin::Uplink(id);
                deliver::deliver(packet, address, origin, tables, worker, output, *now)
            }
            Ok(Admitted::Route) => {
                routed.push(packet);
                Step::Done
            }
            Ok(Admitted::Ndp) => self.ndp(id, packet),
            Ok(Admitted::Groups) => groups::receive(packet, id, worker, output, *now),
            Ok(Admitted::LinkLocal) => {
                deliver::deliver_link_local(packet, id, tables, worker, output, *now)
            }
            Err(reason) => Step::Drop(packet, reason),
        }
    }

    /// A frame that is no IP packet, or one behind tags.
    #[cold]
    fn receive_other(
        &mut self,
        rejected: Rejected,
        id: UplinkId,
        mac: MacAddr,
        routed: &mut ArrayVec<Packet, BATCH>,
    ) -> Step {
        let parsed = vlan::parse_tagged(rejected).or_else(Packet::parse_up_to_fault);
        let Rejected { frame, reason } = match parsed {
            Ok(packet) => return self.receive(packet, id, mac, routed),
            Err(rejected) => rejected,
        };
        if ether_type(frame.bytes()) == Some(ETHERTYPE_ARP) {
            self.arp(id, frame, mac);
        } else {
            self.output.discard_frame(frame, reason);
        }
        Step::Done
    }

    /// ARP: learn, and answer for our addresses.
    fn arp(&mut self, id: UplinkId, frame: Frame, mac: MacAddr) {
        if frame
            .bytes()
            .first_chunk()
            .is_none_or(|to| MacAddr(*to).is_other_than(mac))
        {
            return self.output.discard_frame(frame, DropReason::OtherHost);
        }
        let arp = match Arp::parse(frame.bytes()) {
            Ok(arp) => arp,
            Err(reason) => return self.output.discard_frame(frame, reason),
        };
        let Some(neighbors) = self.worker.neighbors.get_mut(id) else {
            return self.output.discard_frame(frame, DropReason::DeviceGone);
        };
        let answer = neighbors.handle_arp(&arp, self.now);
        self.reply(frame, answer, id);
        self.worker.stir(id);
        self.settle();
    }

    /// Neighbor Discovery: learn, and answer for our addresses.
    pub(super) fn ndp(&mut self, id: UplinkId, packet: Packet) -> Step {
        let packet = match deliver::take_options(packet, Origin::Uplink(id), self.now) {
            Ok(packet) => packet,
            Err(refused) => return refused,
        };
        let ndp = match Ndp::parse(&packet) {
            Ok(ndp) => ndp,
            Err(reason) => return Step::Drop(packet, reason),
        };
        let (source, mac) = (packet.source(), packet.source_mac());
        let Some(neighbors) = self.worker.neighbors.get_mut(id) else {
            return Step::Drop(packet, DropReason::DeviceGone);
        };
        let IpAddr::V6(source) = source else {
            return Step::Drop(packet, DropReason::NdpMalformed);
        };
        let answer = neighbors.handle_ndp(&ndp, source, mac, self.now);
        self.reply(packet.into_frame(), answer, id);
        self.worker.stir(id);
        self.settle();
        Step::Done
    }

    /// Ends a question of ARP or NDP, with its answer in the same buffer.
    fn reply(&mut self, mut frame: Frame, answer: Answer, id: UplinkId) {
        let output = &mut *self.output;
        output.ledger.consumed += 1;
        match answer {
            // A frame that held the question has room for the answer.
            Answer::Reply(message) if message.write(&mut frame).is_ok() => {
                frame.set_offload(Offload::NONE);
                output.ledger.originated += 1;
                output.queue(frame, id);
            }
            Answer::Conflict {
                address,
                mac,
                first,
            } => {
                output.pool.free(frame);
                output.report_conflict(id, address, mac, first);
            }
            Answer::Reply(_) | Answer::Nothing => output.pool.free(frame),
        }
    }
}

/// Whether a host would look at the packet any further, and as what.
// Every packet of an uplink comes through here; of two callers, one is cold.
#[inline(always)]
fn admit(
    packet: &Packet,
    id: UplinkId,
    mac: MacAddr,
    tables: &Tables,
) -> Result<Admitted, DropReason> {
    let addresses = packet.addresses();
    // Addresses that may be a source are unicast.
    let plain = packet.destination_mac() == mac
        && match addresses {
            Addresses::V4 {
                source,
                destination,
            } => {
                !martian::source_is_martian(source.into())
                    && !martian::source_is_martian(destination.into())
            }
            Addresses::V6 {
                source,
                destination,
            } => {
                !martian::source_is_martian(source.into())
                    && !martian::source_is_martian(destination.into())
                    && !destination.is_unicast_link_local()
                    && packet.protocol() != protocol::ICMPV6
            }
        };
    if !plain {
        return admit_slowly(packet, addresses, id, mac, tables);
    }
    if is_ours(packet, addresses.source(), tables) {
        return Err(DropReason::MartianSource);
    }
    Ok(local_or_routed(packet, addresses.destination(), tables))
}

#[inline]
fn local_or_routed(packet: &Packet, destination: IpAddr, tables: &Tables) -> Admitted {
    match tables.own_address(packet.frame().vrf(), destination) {
        Some(address) => Admitted::Local(address),
        None => Admitted::Route,
    }
}

fn admit_slowly(
    packet: &Packet,
    addresses: Addresses,
    id: UplinkId,
    mac: MacAddr,
    tables: &Tables,
) -> Result<Admitted, DropReason> {
    let link = packet.destination_mac();
    if link.is_other_than(mac) {
        return Err(DropReason::OtherHost);
    }
    if ndp::is_ndp(packet) {
        let to = addresses.destination();
        // What stations on the link ask of a container there, the NOS answers in its place.
        if is_to_host(packet, to, id, tables) || is_attached_on(id, to, tables) {
            return Ok(Admitted::Ndp);
        }
    }
    if is_about_groups(packet, addresses, id, tables) {
        return Ok(Admitted::Groups);
    }
    martian::check(addresses)?;
    let destination = addresses.destination();
    let group = destination.is_ipv6() && is_in_group(id, destination, tables);
    // Extension headers may ask for an answer, whatever is behind them.
    if group && (packet.icmp().is_some() || packet.has_extensions()) {
        return Ok(Admitted::LinkLocal);
    }
    // A unicast datagram in a multicast frame is not meant for a host (RFC 1122 §3.3.6).
    if link.is_multicast() || martian::is_group(destination) {
        return Err(DropReason::Multicast);
    }
    if is_ours(packet, addresses.source(), tables) {
        return Err(DropReason::MartianSource);
    }
    match destination {
        IpAddr::V6(address) if address.is_unicast_link_local() => {
            if is_link_local_of(id, address, tables) {
                Ok(Admitted::LinkLocal)
            } else {
                Err(DropReason::OtherHost)
            }
        }
        _ => Ok(local_or_routed(packet, destination, tables)),
    }
}

/// Whether this is a message of IGMP or MLD that a host hears. Those of IGMP may come from who has no
/// address yet; where those of MLD may come from, [`mld::parse`] says.
fn is_about_groups(packet: &Packet, addresses: Addresses, id: UplinkId, tables: &Tables) -> bool {
    let destination = addresses.destination();
    let heard = || is_in_group(id, destination, tables);
    match addresses {
        Addresses::V4 { source, .. } => {
            let unnumbered = source.octets()[0] == 0;
            let plausible = unnumbered || !martian::source_is_martian(source.into());
            igmp::is_igmp(packet) && plausible && !is_ours(packet, source.into(), tables) && heard()
        }
        Addresses::V6 {
            source,
            destination: to,
        } => {
            let to_host = || is_to_host(packet, to.into(), id, tables);
            mld::is_mld(packet) && !is_link_local_of(id, source, tables) && to_host()
        }
    }
}

/// Whether a packet of IPv6 is for the NOS: for an address of its own, or a group that it is in.
fn is_to_host(packet: &Packet, destination: IpAddr, id: UplinkId, tables: &Tables) -> bool {
    let link_local = matches!(destination, IpAddr::V6(to) if is_link_local_of(id, to, tables));
    link_local || is_in_group(id, destination, tables) || is_ours(packet, destination, tables)
}

/// Whether `destination` is an address that a container has for its own, in a network of the uplink.
fn is_attached_on(id: UplinkId, destination: IpAddr, tables: &Tables) -> bool {
    let uplink = tables.uplinks.get(id);
    uplink.is_some_and(|uplink| uplink.attached.contains(&destination))
}

/// Whether the NOS is in the group `destination` on an uplink.
fn is_in_group(id: UplinkId, destination: IpAddr, tables: &Tables) -> bool {
    let uplink = tables.uplinks.get(id);
    destination.is_multicast() && uplink.is_some_and(|uplink| uplink.is_in_group(destination))
}

/// Whether `address` is the NOS's, in the packet's VRF.
#[inline]
fn is_ours(packet: &Packet, address: IpAddr, tables: &Tables) -> bool {
    tables.own_address(packet.frame().vrf(), address).is_some()
}

fn is_link_local_of(id: UplinkId, address: Ipv6Addr, tables: &Tables) -> bool {
    let uplink = tables.uplinks.get(id);
    uplink.is_some_and(|uplink| uplink.link_local() == address)
}

/// How a packet goes on.
enum Admitted {
    /// To this address of the NOS.
    Local(LocalAddressId),
    /// To the FIB.
    Route,
    /// To the neighbor cache.
    Ndp,
    /// To the memberships.
    Groups,
    /// It is for the NOS's link-local address, or for a group of IPv6 that it is in.
    LinkLocal,
}
