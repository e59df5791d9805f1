//! The NOS's own services: echo (RFC 862), discard (RFC 863), and a status page over HTTP.
//!
//! # Theory of operation
//!
//! [`LocalStack`] takes whole packets to ports that the NOS has claimed, and hands out packets to be
//! routed. UDP services are functions from datagram to answer. TCP is smoltcp's, with a table of
//! our own around it:
//!
//! ```text
//! segment ─ known flow? ──────────► its connection: smoltcp socket + application
//!           │ no
//!           ├ flow in TIME-WAIT? ─► acknowledged from 24 octets of memory
//!           └ SYN to a service? ──► a new connection, if there is room; else dropped
//!                    no ─────────► reset
//! ```
//!
//! There are no listening sockets: a socket is made when a SYN comes, and is gone with its
//! connection. smoltcp looks at all sockets of a set for each packet it receives or sends, so each
//! connection has a set and an interface of its own, with one socket in it; our table finds the
//! connection by its addresses and ports. [`LocalStack::poll`] touches only connections that got a
//! segment or whose timer has run out.
//!
//! # Limits
//!
//! Strangers open connections, and smoltcp makes no promise about hostile peers, so everything is
//! bounded ([`LocalLimits`]): connections in total, for each service, and half open; octets of
//! buffers; the time that a handshake, a silence and an HTTP request may take. A SYN beyond the
//! bounds is dropped silently, like one that meets a full accept queue.
//!
//! HTTP clients must not be kept out by others that never complete their requests. So its bound is
//! kept at the end of a handshake, by resetting another connection: one of the peer that has most,
//! and of these the oldest whose request is not complete.
//!
//! What smoltcp gets has been
//! validated: a [`Packet`] to one of our addresses from a host's address, without options or
//! extension headers, and with a right checksum.

mod application;
mod connection;
mod flow;
mod http;
mod table;
mod time_wait;
mod udp;
mod wire;

use core::fmt;
use core::net::IpAddr;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::drop::DropReason;
use crate::frame::FramePool;
use crate::icmp::Quote;
use crate::offload::join_segments;
use crate::originate::{Originator, is_unicast, names_one_host};
use crate::packet::{Fragment, Packet, protocol};
use crate::ports::Transport;
use crate::services::Service;
use crate::time::{Duration, Instant};

use flow::Local;
use http::Status;
use table::Table;

/// How much strangers may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalLimits {
    /// TCP connections of one service.
    pub connections_per_service: usize,
    /// TCP connections of all services.
    pub connections: usize,
    /// TCP connections of all services that wait for the end of the handshake.
    pub half_open: usize,
    /// Flows whose last segments are remembered (RFC 9293 §3.6.1).
    pub time_wait: usize,
    /// Octets of each connection's receive buffer, and of its send buffer; at least 2,048.
    pub buffer: usize,
    /// How long a handshake may take.
    pub half_open_timeout: Duration,
    /// How long the peer may stay away when it should answer.
    pub peer_timeout: Duration,
    /// How long a connection may stay without an octet moving.
    pub idle_timeout: Duration,
    /// How long an HTTP connection may stay at all.
    pub http_timeout: Duration,
}

impl Default for LocalLimits {
    fn default() -> Self {
        Self {
            connections_per_service: 64,
            connections: 256,
            half_open: 64,
            time_wait: 1024,
            buffer: 32 * 1024,
            half_open_timeout: Duration::from_secs(5),
            peer_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(300),
            http_timeout: Duration::from_secs(30),
        }
    }
}

/// What the local stack has seen, and has open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalCounters {
    /// TCP connections whose handshake was completed.
    pub accepted: u64,
    /// SYNs that found no room.
    pub refused: u64,
    /// UDP datagrams to a service.
    pub datagrams: u64,
    /// TCP connections open now, half-open ones included.
    pub open: usize,
    /// Of these, half open.
    pub half_open: usize,
    /// Flows in TIME-WAIT.
    pub time_wait: usize,
}

/// Packets that wait for [`LocalStack::poll`] before more datagrams are refused.
const OUTBOX: usize = 1024;

/// Octets of an IP packet that every IPv4 host takes (RFC 1122 §3.3.2): no MTU is taken for less.
const LEAST_MTU: usize = 576;

/// The NOS's services and their connections.
pub struct LocalStack {
    services: Vec<Service>,
    table: Table,
    status: Status,
    originator: Originator,
    outbox: VecDeque<Packet>,
    datagrams: u64,
}

impl LocalStack {
    /// A stack without services, with the default limits. Outsiders should not be able to guess
    /// `seed`: initial sequence numbers depend on it.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with_limits(seed, LocalLimits::default())
    }

    /// A stack without services.
    #[must_use]
    pub fn with_limits(seed: u64, limits: LocalLimits) -> Self {
        Self {
            services: Vec::new(),
            table: Table::new(seed, limits),
            status: Arc::from("{}"),
            // Not the sequence of identifiers that others make from the same seed.
            originator: Originator::new(seed.rotate_left(32) ^ 0x6c6f_6361_6c00),
            outbox: VecDeque::new(),
            datagrams: 0,
        }
    }

    /// Makes `services` all that there are. Connections of those that are gone are reset.
    pub fn set_services(&mut self, services: &[Service]) {
        services.clone_into(&mut self.services);
        self.table.retain_services(services);
    }

    /// Makes `addresses` all that the NOS has. Connections of those that are gone are forgotten.
    pub fn set_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        let addresses: Vec<_> = addresses.into_iter().collect();
        self.table.retain_addresses(&addresses);
    }

    /// Whether an HTTP connection is open, so that the status should be up to date.
    #[must_use]
    pub fn status_wanted(&self) -> bool {
        self.table.has_http()
    }

    /// Sets the status as JSON text, for requests from now on.
    pub fn set_status(&mut self, json: &str) {
        self.status = json.into();
    }

    /// Takes a whole packet to a port of a service, or an ICMP error that quotes one from there.
    /// Answers wait for [`Self::poll`]. `mtu` is the longest IP packet, in octets, that goes back to
    /// the peer's side; it decides the MSS of a new connection (RFC 6691).
    ///
    /// # Errors
    ///
    /// The reason why the packet was dropped:
    ///
    /// - [`DropReason::TransportChecksum`]; [`DropReason::MartianSource`] and
    ///   [`DropReason::Multicast`] if it is not from one host to one host;
    /// - [`DropReason::NoListener`] if there is no such service or connection; a reset is sent
    ///   where one is due;
    /// - [`DropReason::LocalQueueFull`] if there is no room for another connection or datagram;
    /// - [`DropReason::NoBuffer`]; [`DropReason::IcmpUnmatched`];
    /// - [`DropReason::Ignored`] for what a host receives without reaction, and for fragments: see
    ///   [`crate::reassembly`].
    pub fn handle(
        &mut self,
        packet: Packet,
        mtu: usize,
        now: Instant,
        pool: &mut FramePool,
    ) -> Result<(), DropReason> {
        let mtu = mtu.clamp(LEAST_MTU, 65_535);
        let mut packet = packet;
        if packet.tunnel().is_some() {
            // Nobody here takes a tunnel apart: it is a datagram as any other.
            join_segments(&mut packet);
        }
        let mut packet = Some(packet);
        let result = self.receive(&mut packet, mtu, now, pool);
        if let Some(packet) = packet {
            pool.free(packet.into_frame());
        }
        result
    }

    /// Takes the packet out if it is used up.
    fn receive(
        &mut self,
        slot: &mut Option<Packet>,
        mtu: usize,
        now: Instant,
        pool: &mut FramePool,
    ) -> Result<(), DropReason> {
        let Some(packet) = slot.as_ref() else {
            return Ok(());
        };
        if packet.fragment() != Fragment::Whole {
            return Err(DropReason::Ignored);
        }
        if !packet.transport_checksum_ok() {
            return Err(DropReason::TransportChecksum);
        }
        if !is_unicast(packet) {
            return Err(DropReason::Multicast);
        }
        if !names_one_host(packet.source()) {
            return Err(DropReason::MartianSource);
        }
        match packet.protocol() {
            protocol::TCP => self.receive_tcp(slot, mtu, now, pool),
            protocol::UDP => self.receive_udp(slot, mtu),
            _ => self.receive_icmp(slot, now, pool),
        }
    }

    fn receive_tcp(
        &mut self,
        slot: &mut Option<Packet>,
        mtu: usize,
        now: Instant,
        pool: &mut FramePool,
    ) -> Result<(), DropReason> {
        let Some(packet) = slot.take() else {
            return Ok(());
        };
        let port = packet.ports().map_or(0, |ports| ports.destination);
        let service = self.service(Transport::Tcp, port);
        let mut local = Local {
            now,
            pool,
            originator: &mut self.originator,
            outbox: &mut self.outbox,
        };
        let (packet, result) = self.table.handle(packet, service, mtu, &mut local);
        *slot = Some(packet);
        result
    }

    fn receive_icmp(
        &mut self,
        slot: &mut Option<Packet>,
        now: Instant,
        pool: &mut FramePool,
    ) -> Result<(), DropReason> {
        let quote = slot.as_ref().and_then(Quote::parse);
        let (Some(packet), Some(quote)) = (slot.as_ref(), quote) else {
            return Err(DropReason::Ignored);
        };
        let mut local = Local {
            now,
            pool,
            originator: &mut self.originator,
            outbox: &mut self.outbox,
        };
        self.table
            .handle_error(packet.frame().vrf(), &quote, &mut local)
    }

    fn receive_udp(&mut self, slot: &mut Option<Packet>, mtu: usize) -> Result<(), DropReason> {
        let ports = slot.as_ref().and_then(Packet::ports);
        let Some(ports) = ports else {
            return Err(DropReason::Ignored);
        };
        let service = self.service(Transport::Udp, ports.destination);
        let service = service.ok_or(DropReason::NoListener)?;
        self.datagrams += 1;
        if service != Service::Echo {
            return Ok(());
        }
        if udp::would_loop(ports.source) {
            return Err(DropReason::Ignored);
        }
        if self.outbox.len() >= OUTBOX {
            return Err(DropReason::LocalQueueFull);
        }
        if let Some(packet) = slot.take() {
            let reply = udp::echo(packet, mtu, &mut self.originator);
            self.outbox.push_back(reply);
        }
        Ok(())
    }

    fn service(&self, transport: Transport, port: u16) -> Option<Service> {
        let mut services = self.services.iter().copied();
        services.find(|service| service.port().get() == port && service.uses(transport))
    }

    /// Lets connections work that have something to do, and hands everything that is to be sent to
    /// `transmit`. Ethernet addresses are zero, no interface is set, and the VRF is that of the
    /// flow. Packets may be longer than the MTU; then IPv4 ones have DF clear, and IPv6 ones are for
    /// their source, the NOS, to fragment.
    pub fn poll(&mut self, now: Instant, pool: &mut FramePool, transmit: &mut impl FnMut(Packet)) {
        let mut local = Local {
            now,
            pool,
            originator: &mut self.originator,
            outbox: &mut self.outbox,
        };
        self.table.poll(&self.status, &mut local);
        self.outbox.drain(..).for_each(transmit);
    }

    /// When [`Self::poll`] has something to do next.
    #[must_use]
    pub fn poll_at(&self) -> Option<Instant> {
        if self.outbox.is_empty() {
            self.table.poll_at()
        } else {
            Some(Instant::ZERO)
        }
    }

    /// What was seen, and what is open.
    #[must_use]
    pub fn counters(&self) -> LocalCounters {
        LocalCounters {
            datagrams: self.datagrams,
            ..self.table.counters()
        }
    }
}

impl fmt::Debug for LocalStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalStack")
            .field("services", &self.services)
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
