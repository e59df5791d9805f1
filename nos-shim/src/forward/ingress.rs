//! Frames from the network: what a host checks before it looks at the destination.

use core::net::{IpAddr, Ipv6Addr};

use crate::arp::Arp;
use crate::drop::DropReason;
use crate::fib::Action;
use crate::frame::{Frame, Offload};
use crate::ident::{Interface, MacAddr, UplinkId};
use crate::martian;
use crate::ndp::{self, Ndp};
use crate::neighbor::Answer;
use crate::packet::{ETHERTYPE_ARP, Packet, Rejected, ether_type};
use crate::shim::{EVENTS, Shim, ShimEvent};
use crate::time::Instant;

use super::Origin;

impl Shim {
    /// A frame that came in on an uplink.
    pub(super) fn ingress(&mut self, id: UplinkId, mut frame: Frame, now: Instant) {
        let Some(uplink) = self.uplinks.get_mut(id.0 as usize).and_then(Option::as_mut) else {
            return self.discard_frame(frame, DropReason::DeviceGone);
        };
        uplink.counters.rx_packets += 1;
        uplink.counters.rx_octets += frame.len() as u64;
        frame.set_vrf(uplink.config.vrf);
        frame.set_interface(Interface::Uplink(id));
        let mac = uplink.config.mac;
        if ether_type(frame.bytes()) == Some(ETHERTYPE_ARP) {
            return self.arp(id, frame, now);
        }
        match Packet::parse(frame) {
            Ok(packet) => match self.admit(&packet, id, mac) {
                Ok(Admitted::Route) => self.route(packet, Origin::Uplink(id), now),
                Ok(Admitted::Ndp) => self.ndp(id, packet, now),
                Ok(Admitted::LinkLocal) => self.deliver_link_local(packet, id, now),
                Err(reason) => self.discard(packet, reason),
            },
            Err(Rejected { frame, reason }) => self.discard_frame(frame, reason),
        }
    }

    /// Whether a host would look at the packet any further, and as what.
    fn admit(&self, packet: &Packet, id: UplinkId, mac: MacAddr) -> Result<Admitted, DropReason> {
        let link = packet.destination_mac();
        if link != mac && !link.is_multicast() {
            return Err(DropReason::OtherHost);
        }
        if ndp::is_ndp(packet) {
            return Ok(Admitted::Ndp);
        }
        let addresses = packet.addresses();
        martian::check(addresses)?;
        let destination = addresses.destination();
        let for_all = matches!(destination, IpAddr::V6(ndp::ALL_NODES));
        if for_all && packet.icmp().is_some() {
            return Ok(Admitted::LinkLocal);
        }
        // A unicast datagram in a multicast frame is not meant for a host (RFC 1122 §3.3.6).
        if link.is_multicast() || martian::is_group(destination) {
            return Err(DropReason::Multicast);
        }
        if self.is_ours(packet, addresses.source()) {
            return Err(DropReason::MartianSource);
        }
        match destination {
            IpAddr::V6(address) if address.is_unicast_link_local() => {
                if self.is_link_local_of(id, address) {
                    Ok(Admitted::LinkLocal)
                } else {
                    Err(DropReason::OtherHost)
                }
            }
            _ => Ok(Admitted::Route),
        }
    }

    /// ARP: learn, and answer for our addresses.
    fn arp(&mut self, id: UplinkId, frame: Frame, now: Instant) {
        let arp = match Arp::parse(frame.bytes()) {
            Ok(arp) => arp,
            Err(reason) => return self.discard_frame(frame, reason),
        };
        let Some(uplink) = self.uplinks.get_mut(id.0 as usize).and_then(Option::as_mut) else {
            return self.discard_frame(frame, DropReason::DeviceGone);
        };
        let answer = uplink.neighbors.handle_arp(&arp, now);
        self.reply(frame, answer, id);
        self.poll_neighbors(id, now);
    }

    /// Neighbor Discovery: learn, and answer for our addresses.
    fn ndp(&mut self, id: UplinkId, packet: Packet, now: Instant) {
        let ndp = match Ndp::parse(&packet) {
            Ok(ndp) => ndp,
            Err(reason) => return self.discard(packet, reason),
        };
        let (source, mac) = (packet.source(), packet.source_mac());
        let Some(uplink) = self.uplinks.get_mut(id.0 as usize).and_then(Option::as_mut) else {
            return self.discard(packet, DropReason::DeviceGone);
        };
        let IpAddr::V6(source) = source else {
            return self.discard(packet, DropReason::NdpMalformed);
        };
        let answer = uplink.neighbors.handle_ndp(&ndp, source, mac, now);
        self.reply(packet.into_frame(), answer, id);
        self.poll_neighbors(id, now);
    }

    /// Ends a question of ARP or NDP, with its answer in the same buffer.
    fn reply(&mut self, mut frame: Frame, answer: Answer, id: UplinkId) {
        self.ledger.consumed += 1;
        match answer {
            // A frame that held the question has room for the answer.
            Answer::Reply(message) if message.write(&mut frame).is_ok() => {
                frame.set_offload(Offload::NONE);
                self.ledger.originated += 1;
                self.queue(frame, id);
            }
            Answer::Conflict {
                address,
                mac,
                first,
            } => {
                self.pool.free(frame);
                self.conflict(id, address, mac, first);
            }
            Answer::Reply(_) | Answer::Nothing => self.pool.free(frame),
        }
    }

    /// Counts that somebody else uses an address of ours, and tells if it is news.
    fn conflict(&mut self, id: UplinkId, address: IpAddr, mac: MacAddr, first: bool) {
        if let Some(uplink) = self.uplinks.get_mut(id.0 as usize).and_then(Option::as_mut) {
            uplink.counters.address_conflicts += 1;
        }
        if first && self.events.len() < EVENTS {
            self.events.push_back(ShimEvent::AddressConflict {
                uplink: id,
                address,
                mac,
            });
        }
    }

    /// Whether `address` is the NOS's, in the packet's VRF.
    fn is_ours(&self, packet: &Packet, address: IpAddr) -> bool {
        let adjacency = self.fib.lookup(packet.frame().vrf(), address);
        matches!(self.fib.adjacency(adjacency).action(), Action::Local(_))
    }

    fn is_link_local_of(&self, id: UplinkId, address: Ipv6Addr) -> bool {
        let uplink = self.uplinks.get(id.0 as usize).and_then(Option::as_ref);
        uplink.is_some_and(|uplink| uplink.link_local() == address)
    }
}

/// How a packet goes on.
enum Admitted {
    /// To the FIB.
    Route,
    /// To the neighbor cache.
    Ndp,
    /// It is for the NOS's link-local address, or for all nodes of the link.
    LinkLocal,
}
