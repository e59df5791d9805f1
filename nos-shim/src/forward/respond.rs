//! Refusals: ICMP errors and TCP resets, and the way back for everything that the NOS says.

use core::net::{IpAddr, Ipv4Addr};

use crate::drop::DropReason;
use crate::fib::Action;
use crate::icmp::IcmpError;
use crate::ident::{AttachmentId, Interface};
use crate::packet::{Packet, protocol};
use crate::reset;
use crate::shim::Shim;
use crate::time::Instant;

use super::Origin;

/// Source of ICMP errors to a container: it holds the NOS's own address on its loopback and would
/// drop them as martian. RFC 7600 §4.8 reserves this address for errors without a better source.
const DUMMY_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

impl Shim {
    /// Drops a packet, and tells its sender why if that is proper and the rate allows.
    pub(crate) fn refuse(
        &mut self,
        packet: Packet,
        origin: Origin,
        error: IcmpError,
        reason: DropReason,
        now: Instant,
    ) {
        if let Some(reply) = self.error(&packet, origin, error, now) {
            self.ledger.originated += 1;
            self.send_back(reply, origin, now);
        }
        self.discard(packet, reason);
    }

    fn error(
        &mut self,
        packet: &Packet,
        origin: Origin,
        error: IcmpError,
        now: Instant,
    ) -> Option<Packet> {
        let source = self.error_source(packet, origin)?;
        let sent = error.may_answer(packet) && self.limiter.allow(error, packet.source(), now);
        if !sent {
            return None;
        }
        error.build(packet, source, &mut self.originator, &mut self.pool)
    }

    /// Refuses a TCP segment or UDP datagram that nobody listens for, as a host does.
    pub(super) fn refuse_port(&mut self, packet: Packet, origin: Origin, now: Instant) {
        if packet.protocol() != protocol::TCP {
            return if packet.transport_checksum_ok() {
                self.refuse(
                    packet,
                    origin,
                    IcmpError::PortUnreachable,
                    DropReason::NoListener,
                    now,
                );
            } else {
                self.discard(packet, DropReason::TransportChecksum);
            };
        }
        match reset::answer(&packet, &mut self.originator, &mut self.pool) {
            Ok(mut reply) => {
                reply.set_vrf(packet.frame().vrf());
                self.ledger.originated += 1;
                self.send_back(reply, origin, now);
                self.discard(packet, DropReason::NoListener);
            }
            Err(reason) => self.discard(packet, reason),
        }
    }

    /// The source of an error about `packet`: the address that it was sent to, if that is ours;
    /// else ours on the link where it came in (RFC 1812 §4.3.2.4).
    fn error_source(&self, packet: &Packet, origin: Origin) -> Option<IpAddr> {
        let ipv6 = packet.is_ipv6();
        let uplink = match origin {
            Origin::Nos => return None,
            Origin::Attachment(id) => return Some(self.router_of(id, ipv6)),
            Origin::Uplink(id) => self.uplink(id)?,
        };
        let destination = packet.destination();
        let adjacency = self.fib.lookup(packet.frame().vrf(), destination);
        match self.fib.adjacency(adjacency).action() {
            Action::Local(_) => Some(destination),
            _ if destination == IpAddr::V6(uplink.link_local()) => Some(destination),
            _ => uplink
                .address(ipv6)
                .or(ipv6.then(|| uplink.link_local().into())),
        }
    }

    /// The address by which a container knows its router.
    fn router_of(&self, id: AttachmentId, ipv6: bool) -> IpAddr {
        let attachment = self.attachments.get(id);
        match attachment {
            Some(attachment) if ipv6 => attachment.router.into(),
            _ if ipv6 => core::net::Ipv6Addr::UNSPECIFIED.into(),
            _ => DUMMY_ADDRESS.into(),
        }
    }

    /// Sends what the NOS says to where the packet came from that made it say so. It has been
    /// counted as originated.
    pub(super) fn send_back(&mut self, mut packet: Packet, origin: Origin, now: Instant) {
        // Whoever makes us answer is charged if the answer has to wait.
        if let Origin::Uplink(id) = origin {
            packet.set_interface(Interface::Uplink(id));
        }
        match (origin, packet.destination()) {
            (Origin::Attachment(id), _) => self.deliver_to(packet, id),
            (Origin::Uplink(id), IpAddr::V6(to)) if to.is_unicast_link_local() => {
                self.send_on(packet, id, to.into(), Origin::Nos, now);
            }
            _ => self.route(packet, Origin::Nos, now),
        }
    }
}
