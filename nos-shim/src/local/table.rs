//! All TCP connections, found by their addresses and ports.

use core::net::IpAddr;

use fastrand::Rng;
use foldhash::quality::FixedState;
use hashbrown::HashMap;
use smoltcp::socket::tcp::State;

use super::connection::{Connection, Fate};
use super::flow::{Flow, Local};
use super::http::Status;
use super::time_wait::{LastSegment, TimeWait};
use super::{LocalCounters, LocalLimits, Service};
use crate::drop::DropReason;
use crate::frame::Offload;
use crate::icmp::Quote;
use crate::ident::VrfId;
use crate::originate::{self, Network, flow_of, traffic_class};
use crate::packet::{IPV4_HEADER, IPV6_HEADER, Packet, Ports, protocol};
use crate::reset;
use crate::time::Instant;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Octets of a TCP header without options.
const TCP_HEADER: usize = 20;

pub(super) struct Table {
    limits: LocalLimits,
    slots: Vec<Option<Box<Connection>>>,
    free: Vec<usize>,
    flows: HashMap<Flow, usize, FixedState>,
    /// Connections that have something to do.
    ready: Vec<usize>,
    /// No connection wakes up before.
    wake_at: Option<Instant>,
    time_wait: TimeWait,
    random: Rng,
    half_open: usize,
    accepted: u64,
    refused: u64,
}

impl Table {
    pub(super) fn new(seed: u64, limits: LocalLimits) -> Self {
        let limits = LocalLimits {
            buffer: limits.buffer.max(2048),
            ..limits
        };
        let hasher = FixedState::with_seed(seed);
        Self {
            limits,
            slots: Vec::new(),
            free: Vec::new(),
            flows: HashMap::with_hasher(hasher.clone()),
            ready: Vec::new(),
            wake_at: None,
            time_wait: TimeWait::new(limits.time_wait, hasher),
            random: Rng::with_seed(seed),
            half_open: 0,
            accepted: 0,
            refused: 0,
        }
    }

    /// Takes a segment to one of our addresses with a right checksum, and gives the buffer back.
    /// `service` is what listens on its port; `mtu` holds for a new connection.
    pub(super) fn handle(
        &mut self,
        packet: Packet,
        service: Option<Service>,
        mtu: usize,
        local: &mut Local<'_>,
    ) -> (Packet, Result<(), DropReason>) {
        let (Some(ports), Some(flags)) = (packet.ports(), packet.tcp_flags()) else {
            return (packet, Err(DropReason::Ignored));
        };
        let flow = Flow {
            vrf: packet.frame().vrf(),
            addresses: packet.addresses(),
            ports,
        };
        if let Some(&slot) = self.flows.get(&flow) {
            let packet = plain(packet, local);
            self.feed(slot, &packet, local);
            return (packet, Ok(()));
        }
        if let Some(last) = self.time_wait.find(&flow, local.now) {
            match after_close(&packet, flags, last) {
                AfterClose::Ignore => return (packet, Ok(())),
                AfterClose::Acknowledge => {
                    let ack = acknowledge(&flow, &packet, last, local);
                    local.outbox.extend(ack);
                    return (packet, Ok(()));
                }
                AfterClose::Reopen => self.time_wait.remove(&flow),
            }
        }
        match (service, flags & (SYN | ACK | RST | FIN)) {
            (_, flags) if flags & RST != 0 => (packet, Err(DropReason::Ignored)),
            (Some(service), SYN) => self.open(flow, service, packet, mtu, local),
            (Some(_), flags) if flags & ACK == 0 => (packet, Err(DropReason::Ignored)),
            _ => {
                let reason = refuse(&packet, local);
                (packet, Err(reason))
            }
        }
    }

    fn open(
        &mut self,
        flow: Flow,
        service: Service,
        syn: Packet,
        mtu: usize,
        local: &mut Local<'_>,
    ) -> (Packet, Result<(), DropReason>) {
        // smoltcp has no use for port 0 (and Linux cannot be reached from it by a socket either).
        if flow.ports.source == 0 {
            return (syn, Err(DropReason::Ignored));
        }
        if !self.has_room(service) {
            self.refused += 1;
            return (syn, Err(DropReason::LocalQueueFull));
        }
        let seed = self.random.u64(..);
        let Some(mut connection) = Connection::listen(flow, service, self.limits, mtu, seed, local)
        else {
            return (syn, Err(DropReason::Ignored));
        };
        let syn = plain(syn, local);
        connection.receive(&syn, local);
        if connection.state() != State::SynReceived {
            return (syn, Err(DropReason::Ignored));
        }
        self.half_open += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(Box::new(connection));
        self.flows.insert(flow, slot);
        self.make_ready(slot);
        (syn, Ok(()))
    }

    fn has_room(&self, service: Service) -> bool {
        let of_service = || self.connections().filter(|open| open.service == service);
        // For HTTP others make way once the handshake is complete: see `make_way`.
        let makes_way = matches!(service, Service::Http(_));
        self.flows.len() < self.limits.connections
            && self.half_open < self.limits.half_open
            && (makes_way || of_service().count() < self.limits.connections_per_service)
    }

    /// Resets a connection of an HTTP service that has more than it may, since `newcomer` has
    /// completed its handshake: whoever forges addresses displaces nobody. Takes time in proportion
    /// to the square of the limit.
    fn make_way(&mut self, service: Service, newcomer: usize, now: Instant) {
        let open = |(slot, open): (usize, &Option<Box<Connection>>)| {
            let open = open.as_deref()?;
            (open.service == service && open.is_established()).then_some(slot)
        };
        let others = |slot: &usize| *slot != newcomer;
        let all = || self.slots.iter().enumerate().filter_map(open);
        if all().count() <= self.limits.connections_per_service {
            return;
        }
        let rank = |slot: &usize| {
            let open = self.slots.get(*slot)?.as_deref()?;
            let same = |other: usize| {
                let other = self.slots.get(other).and_then(Option::as_deref);
                other.is_some_and(|other| other.peer() == open.peer())
            };
            let siblings = all().filter(|&other| same(other)).count();
            open.displaced_before(siblings, now)
        };
        let displaced = all().filter(others).max_by_key(rank);
        let displaced = displaced.filter(|slot| rank(slot).is_some());
        self.refused += u64::from(displaced.is_none());
        let slot = displaced.unwrap_or(newcomer);
        if let Some(connection) = self.slots.get_mut(slot).and_then(Option::as_mut) {
            connection.abort();
        }
        self.make_ready(slot);
    }

    fn connections(&self) -> impl Iterator<Item = &Connection> {
        self.slots.iter().flatten().map(|connection| &**connection)
    }

    fn feed(&mut self, slot: usize, packet: &Packet, local: &mut Local<'_>) {
        if let Some(connection) = self.slots.get_mut(slot).and_then(Option::as_mut) {
            connection.receive(packet, local);
        }
        self.count_handshake(slot, local.now);
        self.make_ready(slot);
    }

    /// Takes a connection out of the count of half-open ones once it is not.
    fn count_handshake(&mut self, slot: usize, now: Instant) {
        let Some(connection) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        let state = connection.state();
        if connection.half_open && state != State::SynReceived {
            connection.half_open = false;
            self.half_open -= 1;
            if matches!(state, State::Listen | State::Closed) {
                return;
            }
            self.accepted += 1;
            let service = connection.service;
            if matches!(service, Service::Http(_)) {
                self.make_way(service, slot, now);
            }
        }
    }

    fn make_ready(&mut self, slot: usize) {
        let connection = self.slots.get_mut(slot).and_then(Option::as_mut);
        if let Some(connection) = connection.filter(|connection| !connection.is_ready) {
            connection.is_ready = true;
            self.ready.push(slot);
        }
    }

    /// Gives every connection its turn that has something to do.
    pub(super) fn poll(&mut self, status: &Status, local: &mut Local<'_>) {
        self.time_wait.expire(local.now);
        if self.wake_at.is_some_and(|at| at <= local.now) {
            self.wake_up(local.now);
        } else if self.ready.is_empty() {
            return;
        }
        let mut ready = core::mem::take(&mut self.ready);
        for slot in ready.drain(..) {
            self.give_turn(slot, status, local);
        }
        self.ready = ready;
        self.wake_at = self.connections().filter_map(|open| open.wake_at).min();
    }

    fn wake_up(&mut self, now: Instant) {
        for slot in 0..self.slots.len() {
            let due = |open: &Connection| open.wake_at.is_some_and(|at| at <= now);
            if self.slots[slot].as_deref().is_some_and(due) {
                self.make_ready(slot);
            }
        }
    }

    fn give_turn(&mut self, slot: usize, status: &Status, local: &mut Local<'_>) {
        let Some(connection) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        connection.is_ready = false;
        let fate = connection.work(status, local);
        self.count_handshake(slot, local.now);
        match fate {
            Fate::Keep => {}
            Fate::Forget => {
                self.forget(slot);
            }
            Fate::TimeWait(last) => {
                if let Some(flow) = self.forget(slot) {
                    self.time_wait.insert(flow, last, local.now);
                }
            }
        }
    }

    fn forget(&mut self, slot: usize) -> Option<Flow> {
        let connection = self.slots.get_mut(slot)?.take()?;
        self.half_open -= usize::from(connection.half_open);
        self.flows.remove(&connection.flow);
        self.free.push(slot);
        Some(connection.flow)
    }

    pub(super) fn poll_at(&self) -> Option<Instant> {
        if self.ready.is_empty() {
            self.wake_at
        } else {
            Some(Instant::ZERO)
        }
    }

    /// Resets connections of services that are not among these.
    pub(super) fn retain_services(&mut self, services: &[Service]) {
        for slot in 0..self.slots.len() {
            let connection = self.slots[slot].as_deref_mut();
            if let Some(gone) = connection.filter(|open| !services.contains(&open.service)) {
                gone.abort();
                self.make_ready(slot);
            }
        }
    }

    /// Forgets connections with addresses of the NOS that are not among these.
    pub(super) fn retain_addresses(&mut self, addresses: &[IpAddr]) {
        let is_ours = |flow: &Flow| addresses.contains(&flow.addresses.destination());
        for slot in 0..self.slots.len() {
            let gone = |open: &Connection| !is_ours(&open.flow);
            if self.slots[slot].as_deref().is_some_and(gone) {
                self.forget(slot);
            }
        }
        self.time_wait.retain(is_ours);
    }

    /// Takes an ICMP error about a packet from here.
    pub(super) fn handle_error(
        &mut self,
        vrf: VrfId,
        quote: &Quote,
        local: &mut Local<'_>,
    ) -> Result<(), DropReason> {
        let flow = quoted_flow(vrf, quote).ok_or(DropReason::Ignored)?;
        let slot = self.flows.get(&flow).copied();
        let slot = slot.ok_or(DropReason::IcmpUnmatched)?;
        let connection = self.slots.get_mut(slot).and_then(Option::as_mut);
        let connection = connection.ok_or(DropReason::IcmpUnmatched)?;
        if !quote
            .sequence
            .is_some_and(|sequence| connection.has_sent(sequence))
        {
            return Err(DropReason::IcmpUnmatched);
        }
        // All others are soft errors: the connection goes on trying (RFC 5461).
        if let Some(mtu) = quote.mtu {
            connection.lower_mtu(usize::try_from(mtu).unwrap_or(usize::MAX), local);
        }
        Ok(())
    }

    pub(super) fn has_http(&self) -> bool {
        self.connections()
            .any(|open| matches!(open.service, Service::Http(_)))
    }

    pub(super) fn counters(&self) -> LocalCounters {
        LocalCounters {
            accepted: self.accepted,
            refused: self.refused,
            datagrams: 0,
            open: self.flows.len(),
            half_open: self.half_open,
            time_wait: self.time_wait.len(),
        }
    }
}

/// The packet with the plainest header: smoltcp understands neither IPv4 options nor most
/// extension headers, and checksums have been looked at.
fn plain(mut packet: Packet, local: &mut Local<'_>) -> Packet {
    let header = if packet.is_ipv6() {
        IPV6_HEADER
    } else {
        IPV4_HEADER
    };
    if packet.transport_offset() == crate::frame::ETHERNET_HEADER + header {
        return packet;
    }
    packet.frame_mut().set_offload(Offload::NONE);
    let network = Network {
        addresses: packet.addresses(),
        protocol: protocol::TCP,
        traffic_class: traffic_class(&packet),
        dont_fragment: true,
        options: &[],
        flow: 0,
    };
    match local.originator.replace_header(packet, &network) {
        Ok(packet) | Err(packet) => packet,
    }
}

/// Sends a reset, if one is due. Returns why the segment is dropped.
fn refuse(segment: &Packet, local: &mut Local<'_>) -> DropReason {
    match reset::answer(segment, local.originator, local.pool) {
        Ok(reset) => {
            local.outbox.push_back(reset);
            DropReason::NoListener
        }
        Err(reason) => reason,
    }
}

/// The flow whose packet from here is quoted.
fn quoted_flow(vrf: VrfId, quote: &Quote) -> Option<Flow> {
    let ports = quote.ports.filter(|_| quote.protocol == protocol::TCP)?;
    let (own, peer) = (quote.addresses.source(), quote.addresses.destination());
    Some(Flow {
        vrf,
        addresses: originate::addresses(peer, own)?,
        ports: Ports {
            source: ports.destination,
            destination: ports.source,
        },
    })
}

/// What a segment of a closed flow asks for.
enum AfterClose {
    Ignore,
    Acknowledge,
    Reopen,
}

/// RFC 9293 §3.10.7.4 in TIME-WAIT, with RFC 1337 (no assassination by reset) and RFC 6191 §2
/// (a SYN with a new sequence number opens the flow anew).
fn after_close(segment: &Packet, flags: u8, last: LastSegment) -> AfterClose {
    let sequence = sequence(segment);
    let newer = sequence.wrapping_sub(last.expected) < 1 << 31;
    let payload = segment.frame().len() > segment.payload_offset();
    match flags & (SYN | ACK | RST) {
        flags if flags & RST != 0 => AfterClose::Ignore,
        SYN if newer => AfterClose::Reopen,
        ACK if sequence == last.expected && !payload => AfterClose::Ignore,
        _ => AfterClose::Acknowledge,
    }
}

fn sequence(segment: &Packet) -> u32 {
    match segment.transport() {
        [_, _, _, _, a, b, c, d, ..] => u32::from_be_bytes([*a, *b, *c, *d]),
        _ => 0,
    }
}

/// The last acknowledgment once more.
fn acknowledge(
    flow: &Flow,
    segment: &Packet,
    last: LastSegment,
    local: &mut Local<'_>,
) -> Option<Packet> {
    let (own, peer) = (segment.destination(), segment.source());
    let addresses = originate::addresses(own, peer)?;
    let ports = Ports {
        source: flow.ports.destination,
        destination: flow.ports.source,
    };
    let network = Network {
        addresses,
        protocol: protocol::TCP,
        traffic_class: 0,
        dont_fragment: true,
        options: &[],
        flow: flow_of(ports),
    };
    let fill = |tcp: &mut [u8]| {
        tcp[..2].copy_from_slice(&ports.source.to_be_bytes());
        tcp[2..4].copy_from_slice(&ports.destination.to_be_bytes());
        tcp[4..8].copy_from_slice(&last.next.to_be_bytes());
        tcp[8..12].copy_from_slice(&last.expected.to_be_bytes());
        tcp[12] = 5 << 4;
        tcp[13] = ACK;
        tcp[14..16].copy_from_slice(&last.window.to_be_bytes());
        let sum = addresses.pseudo_sum(protocol::TCP, TCP_HEADER);
        let checksum = sum.plus(tcp).checksum();
        tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    };
    let mut packet = local
        .originator
        .packet(&network, TCP_HEADER, local.pool, fill)?;
    packet.set_vrf(flow.vrf);
    Some(packet)
}
