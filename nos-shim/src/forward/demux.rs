//! Whose a packet to a NOS address is.
//!
//! The order of the questions is that of the rules for a shared address: flows that a range cannot
//! decide, then sockets of the NOS and ranges of attachments (one table holds both), then nobody.
//! Fragments come before all of it, in [`super::deliver`].

use crate::drop::DropReason;
use crate::flows::{Echo, EchoKey};
use crate::icmp::{self, Quote};
use crate::ident::{AttachmentId, LocalAddressId};
use crate::packet::{Packet, protocol};
use crate::ports::{ClaimKind, Owner, PortOwner, Transport};
use crate::shim::Shim;
use crate::time::Instant;

/// TCP flags that matter here.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const RST: u8 = 0x04;

/// What to do with a packet to a NOS address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is a container's.
    Attachment(AttachmentId),
    /// It is the container's once its echo identifier has been put back: into an echo reply, or into
    /// the request that an ICMP error quotes.
    Echo(AttachmentId, u16),
    /// It is for a socket of the NOS.
    Local,
    /// An ICMP message to the NOS: a query, which it answers, or nothing to be answered.
    Query,
    /// A TCP segment or UDP datagram for nobody: refuse it as a host does.
    NoListener,
    /// An IP protocol that nobody handles: refuse it as a host does.
    NoProtocol,
    /// Neither wanted nor to be answered.
    Drop(DropReason),
}

impl Shim {
    /// Whose a packet is that carries its transport header.
    #[inline]
    pub(super) fn owner(
        &mut self,
        packet: &Packet,
        address: LocalAddressId,
        now: Instant,
    ) -> Verdict {
        match (packet.protocol(), packet.is_ipv6()) {
            (protocol::TCP | protocol::UDP, _) => self.owner_of_ports(packet, address),
            (protocol::ICMP, false) | (protocol::ICMPV6, true) => {
                self.owner_of_icmp(packet, address, now)
            }
            _ => Verdict::NoProtocol,
        }
    }

    #[inline]
    fn owner_of_ports(&self, packet: &Packet, address: LocalAddressId) -> Verdict {
        let transport = Transport::from_protocol(packet.protocol());
        let (Some(transport), Some(ports)) = (transport, packet.ports()) else {
            return Verdict::NoProtocol;
        };
        match self.ports.owner(address, transport, ports.destination) {
            PortOwner::Nobody => Verdict::NoListener,
            PortOwner::Nos => Verdict::Local,
            PortOwner::Attachment {
                id,
                kind: ClaimKind::Listen,
            } => Verdict::Attachment(id),
            PortOwner::Attachment {
                id,
                kind: ClaimKind::Ephemeral,
            } => {
                if opens_flow(packet) {
                    Verdict::NoListener
                } else {
                    Verdict::Attachment(id)
                }
            }
        }
    }

    fn owner_of_icmp(&mut self, packet: &Packet, address: LocalAddressId, now: Instant) -> Verdict {
        let Some((kind, _)) = packet.icmp() else {
            return Verdict::Drop(DropReason::TransportHeader);
        };
        let (request, reply) = if packet.is_ipv6() { (128, 129) } else { (8, 0) };
        if kind == reply {
            return self.owner_of_echo_reply(packet, now);
        }
        if kind == request && !self.ping {
            return Verdict::Drop(DropReason::Ignored);
        }
        match Quote::parse(packet) {
            Some(quote) => self.owner_of_error(packet, &quote, address, now),
            None => Verdict::Query,
        }
    }

    fn owner_of_echo_reply(&self, packet: &Packet, now: Instant) -> Verdict {
        let key = EchoKey {
            vrf: packet.frame().vrf(),
            local: packet.destination(),
            remote: packet.source(),
            id: packet.echo_id().unwrap_or_default(),
        };
        match self.echo.inbound(key, now) {
            Some(Echo {
                owner: Owner::Attachment(id),
                id: own,
            }) => Verdict::Echo(id, own),
            // The NOS itself asks nobody.
            Some(Echo {
                owner: Owner::Nos, ..
            })
            | None => Verdict::Drop(DropReason::IcmpUnmatched),
        }
    }

    /// Whoever sent the packet that an ICMP error quotes gets the error. A quote that we cannot
    /// have sent is not believed (RFC 5927 §4).
    fn owner_of_error(
        &self,
        packet: &Packet,
        quote: &Quote,
        address: LocalAddressId,
        now: Instant,
    ) -> Verdict {
        if quote.addresses.source() != packet.destination() {
            return Verdict::Drop(DropReason::IcmpUnmatched);
        }
        let owner = match (
            Transport::from_protocol(quote.protocol),
            quote.ports,
            quote.echo_id,
        ) {
            (Some(transport), Some(ports), _) => self.ports.owner(address, transport, ports.source),
            (None, _, Some(id)) => return self.owner_of_quoted_echo(packet, quote, id, now),
            _ => PortOwner::Nobody,
        };
        match owner {
            PortOwner::Attachment { id, .. } => Verdict::Attachment(id),
            PortOwner::Nos => Verdict::Local,
            PortOwner::Nobody => Verdict::Drop(DropReason::IcmpUnmatched),
        }
    }

    fn owner_of_quoted_echo(
        &self,
        packet: &Packet,
        quote: &Quote,
        id: u16,
        now: Instant,
    ) -> Verdict {
        let key = EchoKey {
            vrf: packet.frame().vrf(),
            local: quote.addresses.source(),
            remote: quote.addresses.destination(),
            id,
        };
        match self.echo.inbound(key, now) {
            Some(Echo {
                owner: Owner::Attachment(id),
                id: own,
            }) => Verdict::Echo(id, own),
            Some(Echo {
                owner: Owner::Nos, ..
            })
            | None => Verdict::Drop(DropReason::IcmpUnmatched),
        }
    }

    /// Gives an echo request of a container an identifier that is its alone towards that host.
    pub(super) fn note_echo(
        &mut self,
        packet: &mut Packet,
        id: AttachmentId,
        now: Instant,
    ) -> Result<(), DropReason> {
        let Some(key) = request_key(packet) else {
            return Ok(());
        };
        let on_wire = self.echo.outbound(Owner::Attachment(id), key, now)?;
        if on_wire != key.id {
            packet.set_echo_id(on_wire);
        }
        Ok(())
    }

    /// Gives an echo request that did not get out the identifier back that its container gave it.
    pub(super) fn unnote_echo(&self, packet: &mut Packet, now: Instant) {
        let noted = request_key(packet).and_then(|key| self.echo.inbound(key, now));
        if let Some(Echo { id: own, .. }) = noted {
            packet.set_echo_id(own);
        }
    }
}

/// What tells the flow of an echo request; `None` for other packets.
fn request_key(packet: &Packet) -> Option<EchoKey> {
    let request = if packet.is_ipv6() { 128 } else { 8 };
    let (kind, _) = packet.icmp()?;
    let id = packet.echo_id().filter(|_| kind == request)?;
    Some(EchoKey {
        vrf: packet.frame().vrf(),
        local: packet.source(),
        remote: packet.destination(),
        id,
    })
}

/// Puts a container's own echo identifier in place of the one on the wire: into an echo message, or
/// into the one that an ICMP error quotes.
pub(super) fn put_back_echo_id(packet: &mut Packet, own: u16) {
    if packet.echo_id().is_some() {
        packet.set_echo_id(own);
    } else {
        icmp::set_quoted_echo_id(packet, own);
    }
}

/// Whether outsiders use this to open a flow: a TCP segment with SYN and without ACK.
/// UDP does not say.
fn opens_flow(packet: &Packet) -> bool {
    packet
        .tcp_flags()
        .is_some_and(|flags| flags & (SYN | ACK | RST) == SYN)
}
