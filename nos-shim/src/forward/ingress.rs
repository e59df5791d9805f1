//! Frames from the network: what a host checks before it looks at the destination.

use core::net::{IpAddr, Ipv6Addr};

use crate::arp::Arp;
use crate::drop::DropReason;
use crate::frame::{Burst, Frame, Offload, octets};
use crate::ident::{Interface, LocalAddressId, MacAddr, UplinkId};
use crate::martian;
use crate::ndp::{self, Ndp};
use crate::neighbor::Answer;
use crate::packet::{
    Addresses, ETHERTYPE_ARP, Packet, PacketBurst, Rejected, ether_type, protocol,
};
use crate::shim::{EVENTS, Shim, ShimEvent};
use crate::time::Instant;

use super::Origin;

impl Shim {
    /// Frames that came in on an uplink. What is to be routed is looked up together.
    pub(super) fn ingress(&mut self, id: UplinkId, burst: &mut Burst, now: Instant) {
        self.ledger.received += burst.len() as u64;
        let Some(uplink) = self.uplinks.get_mut(id) else {
            for frame in burst.drain(..) {
                self.discard_frame(frame, DropReason::DeviceGone);
            }
            return;
        };
        uplink.counters.rx_packets += burst.len() as u64;
        uplink.counters.rx_octets += octets(burst);
        let (vrf, mac) = (uplink.config.vrf, uplink.config.mac);
        let origin = Origin::Uplink(id);
        let mut routed = PacketBurst::new();
        for mut frame in burst.drain(..) {
            frame.set_vrf(vrf);
            frame.set_interface(Interface::Uplink(id));
            match Packet::parse(frame) {
                Ok(packet) => match self.admit(&packet, id, mac) {
                    Ok(Admitted::Local(address)) => self.deliver(packet, address, origin, now),
                    // There is room: no burst is longer than another.
                    Ok(Admitted::Route) => routed.push(packet),
                    Ok(Admitted::Ndp) => self.ndp(id, packet, now),
                    Ok(Admitted::LinkLocal) => self.deliver_link_local(packet, id, now),
                    Err(reason) => self.discard(packet, reason),
                },
                Err(rejected) => self.ingress_other(id, rejected, now),
            }
        }
        let found = self.look_up(&routed);
        for (packet, adjacency) in routed.drain(..).zip(found) {
            self.follow(packet, adjacency, origin, now);
        }
    }

    /// A frame that is no IP packet.
    #[cold]
    fn ingress_other(&mut self, id: UplinkId, Rejected { frame, reason }: Rejected, now: Instant) {
        if ether_type(frame.bytes()) == Some(ETHERTYPE_ARP) {
            self.arp(id, frame, now);
        } else {
            self.discard_frame(frame, reason);
        }
    }

    /// Whether a host would look at the packet any further, and as what.
    #[inline]
    fn admit(&self, packet: &Packet, id: UplinkId, mac: MacAddr) -> Result<Admitted, DropReason> {
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
            return self.admit_slowly(packet, addresses, id, mac);
        }
        if self.is_ours(packet, addresses.source()) {
            return Err(DropReason::MartianSource);
        }
        Ok(self.local_or_routed(packet, addresses.destination()))
    }

    #[inline]
    fn local_or_routed(&self, packet: &Packet, destination: IpAddr) -> Admitted {
        match self.own_address(packet.frame().vrf(), destination) {
            Some(address) => Admitted::Local(address),
            None => Admitted::Route,
        }
    }

    fn admit_slowly(
        &self,
        packet: &Packet,
        addresses: Addresses,
        id: UplinkId,
        mac: MacAddr,
    ) -> Result<Admitted, DropReason> {
        let link = packet.destination_mac();
        if link != mac && !link.is_multicast() {
            return Err(DropReason::OtherHost);
        }
        if ndp::is_ndp(packet) {
            return Ok(Admitted::Ndp);
        }
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
            _ => Ok(self.local_or_routed(packet, destination)),
        }
    }

    /// ARP: learn, and answer for our addresses.
    fn arp(&mut self, id: UplinkId, frame: Frame, now: Instant) {
        let arp = match Arp::parse(frame.bytes()) {
            Ok(arp) => arp,
            Err(reason) => return self.discard_frame(frame, reason),
        };
        let Some(uplink) = self.uplinks.get_mut(id) else {
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
        let Some(uplink) = self.uplinks.get_mut(id) else {
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
        if let Some(uplink) = self.uplinks.get_mut(id) {
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
    #[inline]
    fn is_ours(&self, packet: &Packet, address: IpAddr) -> bool {
        self.own_address(packet.frame().vrf(), address).is_some()
    }

    fn is_link_local_of(&self, id: UplinkId, address: Ipv6Addr) -> bool {
        let uplink = self.uplinks.get(id);
        uplink.is_some_and(|uplink| uplink.link_local() == address)
    }
}

/// How a packet goes on.
enum Admitted {
    /// To this address of the NOS.
    Local(LocalAddressId),
    /// To the FIB.
    Route,
    /// To the neighbor cache.
    Ndp,
    /// It is for the NOS's link-local address, or for all nodes of the link.
    LinkLocal,
}
