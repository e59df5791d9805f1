//! What policies say of a packet: whether it may open a flow, and whether it belongs to one.
//!
//! Only packets of containers with a [policy](crate::ports::Policy) come here, packets to ports on which
//! one has something to say, those to services of the NOS with `from`, and, where a container may learn ports, those to ports of nobody.
//!
//! | packet to | passes if |
//! |---|---|
//! | a port of a service with `from` | its sender is among those |
//! | a listen port with `from` | its sender is among those, or it belongs to a flow that the container has opened |
//! | an `established` port | it belongs to a flow that the container has opened, or that active FTP has announced |
//! | a port of nobody | it belongs to a flow that a container has opened from there |
//!
//! What does not pass is answered as if nobody listened, so that nobody learns of a policy. But a TCP
//! segment without SYN gets no answer where flows decide: it may belong to a flow that was forgotten at
//! a restart, and a reset would end what the container's next segment brings back.
//!
//! | packet of a container | passes if |
//! |---|---|
//! | from a port of its own to another one of its own | always |
//! | to one of `to` | always; it opens a flow where one is needed for what comes back |
//! | to others | it belongs to a flow that the other side has opened |
//! | from a port of nobody | `outside` is `learn`, and nobody else has learnt the port |
//!
//! An attachment that has its addresses for its own listens on all their ports: `from` and `to` hold for it as for a
//! listen port. What its policy refuses is told to its sender as by a router with a filter. Other protocols have no
//! flows: they come from who may open flows to it, and go to whom it may open flows to. Pings are answered to who
//! may come, and their answers come from where it may go.
//!
//! Of what does not pass, TCP with SYN, UDP and echo requests are answered: see
//! [`IcmpError::Prohibited`](crate::icmp::IcmpError::Prohibited).

use core::net::IpAddr;

use crate::drop::DropReason;
use crate::flows::{FlowKey, NewFlow, Opener, Segment};
use crate::icmp::{IcmpError, Quote};
use crate::ident::{AttachmentId, VrfId};
use crate::origin::Origin;
use crate::packet::{Addresses, Fragment, Packet, Ports, protocol};
use crate::ports::{ClaimKind, PortOwner, Transport};
use crate::tables::{PolicyIndex, Tables};
use crate::time::Instant;
use crate::worker::Policed;

use super::demux::Recipient;
use super::ftp;
use super::step::Step;

/// Why a packet of a container does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) reason: DropReason,
    /// Whether its sender is told.
    pub(super) told: bool,
    /// Who has learnt the port that it comes from.
    pub(super) holder: Option<AttachmentId>,
}

impl Refused {
    fn silently(reason: DropReason) -> Self {
        Self {
            reason,
            told: false,
            holder: None,
        }
    }

    /// Of a packet that would open a flow, its sender is told.
    fn of(packet: &Packet, reason: DropReason) -> Self {
        let opens = packet.opens_tcp_flow() || packet.protocol() == protocol::UDP;
        Self {
            reason,
            told: opens && packet.transport_checksum_ok(),
            holder: None,
        }
    }
}

/// What becomes of a packet that does not go on.
pub(super) fn refuse(packet: Packet, origin: Origin, refused: Refused) -> Step {
    match refused.told {
        true => Step::refuse(packet, origin, IcmpError::Prohibited, refused.reason),
        false => Step::Drop(packet, refused.reason),
    }
}

/// Judges a packet that a container sends.
pub(super) fn outbound(
    packet: &Packet,
    owner: AttachmentId,
    policy: &PolicyIndex,
    tables: &Tables,
    policed: &mut Policed,
    now: Instant,
) -> Result<(), Refused> {
    // The NOS answers it, and sends it no further.
    if packet.fault().is_some() {
        return Ok(());
    }
    let fragment = packet.fragment();
    if fragment == Fragment::Later {
        let passes = policy.may_open_to(packet.destination())
            || policed.has_passed_first(packet, owner, now);
        return match passes {
            true => Ok(()),
            false => Err(Refused::silently(DropReason::NoFlow)),
        };
    }
    let transport = Transport::from_protocol(packet.protocol());
    match transport.zip(packet.ports()) {
        Some((transport, ports)) => {
            let flow = Outbound {
                packet,
                owner,
                transport,
                ports,
            };
            flow.judge(policy, tables, policed, now)?;
        }
        None => without_ports(packet, owner, policy, tables, policed, now)?,
    }
    if fragment == Fragment::First && !policy.may_open_to(packet.destination()) {
        policed.note_first(packet, owner, now);
    }
    Ok(())
}

/// A packet of a container, with its ports.
struct Outbound<'a> {
    packet: &'a Packet,
    owner: AttachmentId,
    transport: Transport,
    ports: Ports,
}

/// Whose the port is that a container sends from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Own(ClaimKind),
    Nobody,
}

impl Outbound<'_> {
    fn judge(
        &self,
        policy: &PolicyIndex,
        tables: &Tables,
        policed: &mut Policed,
        now: Instant,
    ) -> Result<(), Refused> {
        let key = self.key();
        let remote = key.remote;
        let from = self.port_owner(policy, tables, policed)?;
        if from != From::Nobody && self.goes_to_itself(&key, tables) {
            return Ok(());
        }
        let may_open = policy.may_open_to(remote);
        let by_flow = match from {
            From::Own(ClaimKind::Listen) => {
                !may_open || !policy.may_open_from(self.transport, key.local_port, remote)
            }
            From::Own(ClaimKind::Ephemeral) => policy.is_established_only(key.local_port),
            From::Nobody => true,
        };
        if by_flow {
            let segment = Segment::of(self.packet);
            if !policed
                .flows
                .outbound(self.owner, &key, segment.as_ref(), now)
            {
                self.open(key, segment, from, may_open, policed, now)?;
            }
        } else if !may_open {
            return Err(Refused::of(self.packet, DropReason::PolicyTo));
        }
        // What is announced is opened to the container, whatever tells the flow that announces it.
        if key.remote_port == ftp::CONTROL_PORT && self.transport == Transport::Tcp {
            self.expect(key, policy, tables, policed, now);
        }
        Ok(())
    }

    /// Whether both ports are the container's own: policies are about others.
    fn goes_to_itself(&self, key: &FlowKey, tables: &Tables) -> bool {
        let back = FlowKey {
            local: key.remote,
            local_port: key.remote_port,
            ..*key
        };
        let owner = port_owner(&back, tables).and_then(PortOwner::attachment);
        owner.is_some_and(|(id, _)| id == self.owner)
    }

    fn open(
        &self,
        key: FlowKey,
        segment: Option<Segment>,
        from: From,
        may_open: bool,
        policed: &mut Policed,
        now: Instant,
    ) -> Result<(), Refused> {
        if !may_open {
            return Err(Refused::of(self.packet, DropReason::PolicyTo));
        }
        if segment.is_some_and(|segment| segment.resets()) {
            return Err(Refused::silently(DropReason::NoFlow));
        }
        let flow = NewFlow {
            key,
            owner: self.owner,
            opener: Opener::Owner,
            learnt: from == From::Nobody,
            segment,
            confirmed: false,
        };
        let opened = policed.flows.open(&flow, now);
        opened.map_err(|_| Refused::silently(DropReason::FlowTableFull))
    }

    fn key(&self) -> FlowKey {
        let addresses = self.packet.addresses();
        FlowKey {
            vrf: self.packet.frame().vrf(),
            transport: self.transport,
            local: addresses.source(),
            local_port: self.ports.source,
            remote: addresses.destination(),
            remote_port: self.ports.destination,
        }
    }

    fn port_owner(
        &self,
        policy: &PolicyIndex,
        tables: &Tables,
        policed: &Policed,
    ) -> Result<From, Refused> {
        let key = self.key();
        let foreign = || Refused::of(self.packet, DropReason::SourcePort);
        match port_owner(&key, tables) {
            Some(PortOwner::Attachment { id, kind } | PortOwner::Watched { id, kind })
                if id == self.owner =>
            {
                Ok(From::Own(kind))
            }
            Some(PortOwner::Nobody) if policy.learns && key.local_port != 0 => {
                match policed.flows.learnt_by(&key) {
                    Some(other) if other != self.owner => Err(Refused {
                        holder: Some(other),
                        ..foreign()
                    }),
                    _ => Ok(From::Nobody),
                }
            }
            _ => Err(foreign()),
        }
    }

    /// Expects the connection that an FTP client announces on its control connection.
    fn expect(
        &self,
        control: FlowKey,
        policy: &PolicyIndex,
        tables: &Tables,
        policed: &mut Policed,
        now: Instant,
    ) {
        let payload = self
            .packet
            .frame()
            .bytes()
            .get(self.packet.payload_offset()..);
        let announced = payload.and_then(|payload| ftp::announced_port(payload, control.local));
        let Some(local_port) = announced else {
            return;
        };
        let key = FlowKey {
            local_port,
            ..control.expected()
        };
        let learnt = match port_owner(&key, tables) {
            Some(PortOwner::Watched {
                id,
                kind: ClaimKind::Ephemeral,
            }) if id == self.owner => false,
            Some(PortOwner::Nobody) if policy.learns => {
                let other = policed
                    .flows
                    .learnt_by(&key)
                    .is_some_and(|it| it != self.owner);
                if other {
                    return;
                }
                true
            }
            // Whatever comes there needs no flow, or is nobody's business.
            _ => return,
        };
        let flow = NewFlow {
            key,
            owner: self.owner,
            opener: Opener::Peer,
            learnt,
            segment: None,
            confirmed: false,
        };
        // Without room the server's connection is refused, as if it had not been announced.
        let _ = policed.flows.open(&flow, now);
    }
}

/// Who owns the local port of a flow; `None` if its address is none of the NOS's now, nor an attachment's own.
fn port_owner(key: &FlowKey, tables: &Tables) -> Option<PortOwner> {
    if let Some(id) = tables.ports.routed(key.vrf, key.local) {
        let kind = ClaimKind::Listen;
        return Some(PortOwner::Watched { id, kind });
    }
    let address = tables.address_in(key.vrf, key.local)?;
    Some(tables.ports.owner(address, key.transport, key.local_port))
}

/// Echo requests open flows; errors belong to what came before.
fn without_ports(
    packet: &Packet,
    owner: AttachmentId,
    policy: &PolicyIndex,
    tables: &Tables,
    policed: &Policed,
    now: Instant,
) -> Result<(), Refused> {
    let may_open = policy.may_open_to(packet.destination());
    let Some(quote) = Quote::parse(packet) else {
        // Whoever has an address of its own answers pings itself.
        let answers = || is_echo_reply(packet) && policy.may_reach_all(packet.destination());
        return match may_open || tables.is_routed(owner) && answers() {
            true => Ok(()),
            false => Err(Refused {
                reason: DropReason::PolicyTo,
                told: true,
                holder: None,
            }),
        };
    };
    let Some(key) = quoted_arrival(packet.frame().vrf(), &quote) else {
        return match may_open {
            true => Ok(()),
            false => Err(Refused::silently(DropReason::PolicyTo)),
        };
    };
    let own = port_owner(&key, tables).and_then(PortOwner::attachment);
    let by_flow = policed.flows.owner_of(&key, now) == Some(owner);
    match own {
        _ if by_flow => Ok(()),
        Some((id, _)) if id == owner && may_open => Ok(()),
        Some((id, _)) if id == owner => Err(Refused::silently(DropReason::PolicyTo)),
        _ => Err(Refused::silently(DropReason::IcmpUnmatched)),
    }
}

fn is_echo_reply(packet: &Packet) -> bool {
    let (_, reply) = packet.echo_types();
    packet.icmp().is_some_and(|(kind, _)| kind == reply)
}

/// Judges a packet to an address that an attachment has for its own.
pub(super) fn to_own_address(
    packet: &Packet,
    id: AttachmentId,
    policy: &PolicyIndex,
    tables: &Tables,
    policed: &mut Policed,
    now: Instant,
) -> Result<(), Refused> {
    if let Some(fault) = packet.fault() {
        // It could hide to which port it goes (RFC 1858 §3).
        return Err(Refused::silently(fault.reason()));
    }
    if packet.fragment() == Fragment::Later {
        // Worth nothing without the first, which is judged.
        return Ok(());
    }
    let transport = Transport::from_protocol(packet.protocol());
    let Some((transport, ports)) = transport.zip(packet.ports()) else {
        return without_ports_to_own(packet, id, policy, tables, policed, now);
    };
    let key = arrival(packet, transport, ports);
    let unknown_port = key.local_port == 0 && !policy.may_reach_all(key.remote);
    let recipient = match unknown_port {
        true => Recipient::Refused(DropReason::PolicyFrom),
        false => {
            let own = (id, ClaimKind::Listen);
            inbound(packet, own, &key, tables, Some(policed), now)
        }
    };
    match recipient {
        Recipient::Attachment(_) => Ok(()),
        Recipient::Refused(reason) => Err(Refused::of(packet, reason)),
        Recipient::Drop(reason) => Err(Refused::silently(reason)),
        // None of which a listen port has.
        _ => Err(Refused::silently(DropReason::PolicyFrom)),
    }
}

/// Errors belong to what the container has sent, as answers do; for the rest it is who sends it.
fn without_ports_to_own(
    packet: &Packet,
    id: AttachmentId,
    policy: &PolicyIndex,
    tables: &Tables,
    policed: &Policed,
    now: Instant,
) -> Result<(), Refused> {
    let remote = packet.source();
    let (may_come, may_open) = (policy.may_reach_all(remote), policy.may_open_to(remote));
    let Some(quote) = Quote::parse(packet) else {
        return match may_come || may_open && is_echo_reply(packet) {
            true => Ok(()),
            false => Err(Refused {
                reason: DropReason::PolicyFrom,
                told: !is_echo_reply(packet),
                holder: None,
            }),
        };
    };
    let transport = Transport::from_protocol(quote.protocol);
    let owner = PortOwner::Watched {
        id,
        kind: ClaimKind::Listen,
    };
    let ours = quote.addresses.source() == packet.destination();
    let known = match transport.zip(quote.ports) {
        Some((transport, ports)) => {
            let quoted = (transport, quote.addresses, ports);
            let vrf = packet.frame().vrf();
            sender_of_quoted(vrf, quoted, owner, tables, Some(policed), now) == Some(id)
        }
        None => {
            let asked = quote.addresses.destination();
            policy.may_open_to(asked) || policy.may_reach_all(asked)
        }
    };
    match ours && known {
        true => Ok(()),
        false => Err(Refused::silently(DropReason::IcmpUnmatched)),
    }
}

/// The flow of a packet that came to a container, which it quotes.
fn quoted_arrival(vrf: VrfId, quote: &Quote) -> Option<FlowKey> {
    Some(FlowKey {
        vrf,
        transport: Transport::from_protocol(quote.protocol)?,
        local: quote.addresses.destination(),
        local_port: quote.ports?.destination,
        remote: quote.addresses.source(),
        remote_port: quote.ports?.source,
    })
}

/// Who gets a packet to a port whose owner has a policy.
#[cold]
pub(super) fn inbound(
    packet: &Packet,
    (id, kind): (AttachmentId, ClaimKind),
    key: &FlowKey,
    tables: &Tables,
    policed: Option<&mut Policed>,
    now: Instant,
) -> Recipient {
    let (Some(policy), Some(policed)) = (tables.policies.get(id), policed) else {
        // They are made before the ports that need them.
        return Recipient::Drop(DropReason::UnknownAttachment);
    };
    let segment = Segment::of(packet);
    let mut of_flow = || policed.flows.inbound(key, segment.as_ref(), now) == Some(id);
    match kind {
        ClaimKind::Ephemeral if !policy.is_established_only(key.local_port) => {
            if packet.opens_tcp_flow() {
                Recipient::NoListener
            } else {
                Recipient::Attachment(id)
            }
        }
        ClaimKind::Ephemeral if of_flow() => Recipient::Attachment(id),
        ClaimKind::Ephemeral => unknown(packet),
        ClaimKind::Listen if policy.may_open_from(key.transport, key.local_port, key.remote) => {
            if policy.may_open_to(key.remote) || of_flow() {
                return Recipient::Attachment(id);
            }
            let flow = NewFlow {
                key: *key,
                owner: id,
                opener: Opener::Peer,
                learnt: false,
                segment,
                confirmed: false,
            };
            match policed.flows.open(&flow, now) {
                Ok(()) => Recipient::Attachment(id),
                Err(_) => Recipient::Drop(DropReason::FlowTableFull),
            }
        }
        ClaimKind::Listen if of_flow() => Recipient::Attachment(id),
        ClaimKind::Listen => Recipient::Refused(DropReason::PolicyFrom),
    }
}

/// Who gets a packet to a port of a service to which not everybody may open flows. Whoever may has all
/// its packets pass, so no flows are needed.
#[cold]
pub(super) fn inbound_to_service(key: &FlowKey, tables: &Tables) -> Recipient {
    match tables.may_reach_service(key.vrf, key.transport, key.local_port, key.remote) {
        true => Recipient::Local,
        false => Recipient::Refused(DropReason::PolicyFrom),
    }
}

/// Who gets a packet that belongs to no flow, where flows decide.
fn unknown(packet: &Packet) -> Recipient {
    let goes_on = packet.protocol() == protocol::TCP && !packet.opens_tcp_flow();
    match goes_on {
        true => Recipient::Drop(DropReason::NoFlow),
        false => Recipient::Refused(DropReason::NoFlow),
    }
}

/// Who gets a packet to a port that nobody owns.
#[cold]
pub(super) fn inbound_to_nobody(
    packet: &Packet,
    key: &FlowKey,
    policed: Option<&mut Policed>,
    now: Instant,
) -> Recipient {
    let segment = Segment::of(packet);
    let owner = policed.and_then(|it| it.flows.inbound(key, segment.as_ref(), now));
    owner.map_or(Recipient::NoListener, Recipient::Attachment)
}

/// What tells the flow of a packet to a NOS address.
pub(super) fn arrival(packet: &Packet, transport: Transport, ports: Ports) -> FlowKey {
    let addresses = packet.addresses();
    FlowKey {
        vrf: packet.frame().vrf(),
        transport,
        local: addresses.destination(),
        local_port: ports.destination,
        remote: addresses.source(),
        remote_port: ports.source,
    }
}

/// Whether an ICMP error quotes a packet that the owner of its source port has sent, as far as policies
/// have to do with it; and whose it is, if nobody owns that.
#[cold]
pub(super) fn sender_of_quoted(
    vrf: VrfId,
    quoted: (Transport, Addresses, Ports),
    owner: PortOwner,
    tables: &Tables,
    policed: Option<&Policed>,
    now: Instant,
) -> Option<AttachmentId> {
    let (transport, addresses, ports) = quoted;
    let key = FlowKey {
        vrf,
        transport,
        local: addresses.source(),
        local_port: ports.source,
        remote: addresses.destination(),
        remote_port: ports.destination,
    };
    let of_flow = policed.and_then(|it| it.flows.owner_of(&key, now));
    match owner {
        PortOwner::Watched { id, kind } => {
            let policy = tables.policies.get(id)?;
            let free = match kind {
                ClaimKind::Listen => may_talk(policy, transport, ports.source, key.remote),
                ClaimKind::Ephemeral => !policy.is_established_only(ports.source),
            };
            (free || of_flow == Some(id)).then_some(id)
        }
        _ => of_flow,
    }
}

/// Whether a container may have sent something from a listen port without a flow.
fn may_talk(policy: &PolicyIndex, transport: Transport, port: u16, remote: IpAddr) -> bool {
    policy.may_open_from(transport, port, remote) && policy.may_open_to(remote)
}
