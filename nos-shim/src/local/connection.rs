//! One TCP connection: a smoltcp socket with an interface of its own, and the application.

use core::net::IpAddr;
use std::collections::VecDeque;

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::time::Duration as SmolDuration;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::application::Application;
use super::flow::{Flow, Local};
use super::http::Status;
use super::time_wait::LastSegment;
use super::wire::{Wire, from_smoltcp, to_smoltcp};
use super::{LocalLimits, Service};
use crate::frame::Frame;
use crate::originate::flow_of;
use crate::packet::{Packet, protocol};
use crate::time::{Duration, Instant};

/// IPv6 packets need not be shorter than this (RFC 8200 §5).
const LEAST_MTU_V6: usize = 1280;
/// IPv4 packets need not be shorter than this; what Linux takes for the least believable MTU.
const LEAST_MTU_V4: usize = 552;

/// When to look again at a connection that could not send everything.
const RETRY: Duration = Duration::from_millis(1);

/// How long an HTTP connection whose request is complete is left alone.
const TIME_TO_ANSWER: Duration = Duration::from_secs(1);

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;

pub(super) struct Connection {
    pub(super) flow: Flow,
    pub(super) service: Service,
    /// It waits for its turn.
    pub(super) is_ready: bool,
    /// It is counted as half open.
    pub(super) half_open: bool,
    /// When it has something to do without being told.
    pub(super) wake_at: Option<Instant>,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    application: Application,
    limits: LocalLimits,
    mtu: usize,
    seed: u64,
    opened: Instant,
    /// When an octet moved last, in any queue.
    moved: Instant,
    queues: (usize, usize),
    last: LastSegment,
    frames: VecDeque<Frame>,
}

/// What becomes of a connection after its turn.
pub(super) enum Fate {
    Keep,
    Forget,
    TimeWait(LastSegment),
}

impl Connection {
    /// A socket that listens for exactly this flow's SYN. `None` if the NOS's address is none
    /// that smoltcp takes for a host's.
    pub(super) fn listen(
        flow: Flow,
        service: Service,
        limits: LocalLimits,
        mtu: usize,
        seed: u64,
        local: &mut Local<'_>,
    ) -> Option<Self> {
        let own = IpAddress::from(flow.addresses.destination());
        if !own.is_unicast() {
            return None;
        }
        let buffer = || SocketBuffer::new(vec![0; limits.buffer]);
        let mut socket = Socket::new(buffer(), buffer());
        let seconds = |duration: Duration| SmolDuration::from_secs(duration.as_secs().max(1));
        socket.set_timeout(Some(seconds(limits.peer_timeout)));
        socket.set_keep_alive(Some(seconds(limits.peer_timeout / 4)));
        socket.set_congestion_control(CongestionControl::Reno);
        socket.listen((own, flow.ports.destination)).ok()?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let socket = sockets.add(socket);
        Some(Self {
            flow,
            service,
            is_ready: false,
            half_open: true,
            wake_at: None,
            interface: interface(own, mtu, seed, local)?,
            sockets,
            socket,
            application: Application::new(service),
            limits,
            mtu,
            seed,
            opened: local.now,
            moved: local.now,
            queues: (0, 0),
            last: LastSegment::default(),
            frames: VecDeque::new(),
        })
    }

    pub(super) fn state(&self) -> State {
        self.sockets.get::<Socket<'_>>(self.socket).state()
    }

    /// Whether its handshake is complete, and it has not ended.
    pub(super) fn is_established(&self) -> bool {
        !self.half_open && self.state() != State::Closed
    }

    /// Whom connections are counted for: an IPv4 address, or the IPv6 network of one host.
    pub(super) fn peer(&self) -> IpAddr {
        match self.flow.addresses.source() {
            IpAddr::V6(address) => {
                let network = address.to_bits() & !u128::from(u64::MAX);
                IpAddr::V6(network.into())
            }
            address => address,
        }
    }

    /// How willingly it is given up for a newcomer, when its peer has so many connections to the
    /// service: rather one of many, rather one whose request is not complete, rather an old one.
    /// `None` as long as it makes good use of its place.
    pub(super) fn displaced_before(
        &self,
        siblings: usize,
        now: Instant,
    ) -> Option<(usize, bool, Duration)> {
        let age = now.since(self.opened);
        let waits = self.application.waits_for_request();
        let is_useful = siblings == 1 && !waits && age < TIME_TO_ANSWER;
        (!is_useful).then_some((siblings, waits, age))
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    /// Takes a segment of this flow, which has neither options nor extension headers.
    pub(super) fn receive(&mut self, segment: &Packet, local: &mut Local<'_>) {
        let mut wire = Wire::new(Some(segment.ip()), self.mtu, local.pool, &mut self.frames);
        let now = to_smoltcp(local.now);
        self.interface
            .poll_ingress_single(now, &mut wire, &mut self.sockets);
        self.flush(local);
    }

    /// Lets application and socket do what there is to do.
    pub(super) fn work(&mut self, status: &Status, local: &mut Local<'_>) -> Fate {
        if self.state() == State::SynReceived && local.now >= self.handshake_deadline() {
            return Fate::Forget;
        }
        if local.now >= self.deadline() {
            self.abort();
        }
        let now = to_smoltcp(local.now);
        let socket = self.sockets.get_mut::<Socket<'_>>(self.socket);
        let mut moved = self.application.work(socket, status);
        let mut wire = Wire::new(None, self.mtu, local.pool, &mut self.frames);
        while self
            .interface
            .poll_egress(now, &mut wire, &mut self.sockets)
            == PollResult::SocketStateChanged
        {}
        self.flush(local);
        let socket = self.sockets.get::<Socket<'_>>(self.socket);
        let queues = (socket.send_queue(), socket.recv_queue());
        moved |= queues != self.queues;
        self.queues = queues;
        if moved {
            self.moved = local.now;
        }
        self.settle(local.now)
    }

    /// What is to become of it, and when to look again.
    fn settle(&mut self, now: Instant) -> Fate {
        let at = self.interface.poll_at(to_smoltcp(now), &self.sockets);
        let at = at.map(|at| from_smoltcp(at).max(now + RETRY));
        let unsaid = at == Some(now + RETRY);
        let connected = self.socket().remote_endpoint().is_some();
        match self.state() {
            State::Listen => return Fate::Forget,
            State::Closed if !connected || !unsaid => return Fate::Forget,
            State::TimeWait if !unsaid => return Fate::TimeWait(self.last),
            _ => {}
        }
        let deadline = match self.state() {
            State::SynReceived => self.handshake_deadline(),
            _ => self.deadline(),
        };
        let deadline = deadline.max(now + RETRY);
        self.wake_at = Some(at.map_or(deadline, |at| at.min(deadline)));
        Fate::Keep
    }

    fn handshake_deadline(&self) -> Instant {
        self.opened + self.limits.half_open_timeout
    }

    /// When it is reset, if nothing happens.
    fn deadline(&self) -> Instant {
        let idle = self.moved + self.limits.idle_timeout;
        match self.service {
            Service::Http(_) => idle.min(self.opened + self.limits.http_timeout),
            _ => idle,
        }
    }

    /// Resets it at its next turn.
    pub(super) fn abort(&mut self) {
        self.socket().abort();
    }

    /// A router says that packets may have no more than `mtu` octets (RFC 1191, RFC 8201).
    pub(super) fn lower_mtu(&mut self, mtu: usize, local: &mut Local<'_>) {
        let own = IpAddress::from(self.flow.addresses.destination());
        let least = match own {
            IpAddress::Ipv4(_) => LEAST_MTU_V4,
            IpAddress::Ipv6(_) => LEAST_MTU_V6,
        };
        let mtu = mtu.max(least);
        if mtu >= self.mtu {
            return;
        }
        if let Some(interface) = interface(own, mtu, self.seed, local) {
            self.interface = interface;
            self.mtu = mtu;
        }
    }

    /// Whether a segment that starts at `sequence` may be on its way (RFC 5927 §4.1).
    pub(super) fn has_sent(&self, sequence: u32) -> bool {
        let behind = self.last.next.wrapping_sub(sequence);
        usize::try_from(behind).is_ok_and(|behind| behind <= self.limits.buffer + 1)
    }

    /// Hands what smoltcp wrote to the outbox.
    fn flush(&mut self, local: &mut Local<'_>) {
        while let Some(frame) = self.frames.pop_front() {
            match Packet::parse(frame) {
                Ok(packet) => {
                    self.note(&packet);
                    let packet = self.finish(packet, local);
                    local.outbox.push_back(packet);
                }
                Err(rejected) => local.pool.free(rejected.frame),
            }
        }
    }

    /// Remembers where the flow stands, for TIME-WAIT and for ICMP errors.
    fn note(&mut self, packet: &Packet) {
        let Some(tcp) = packet.transport().first_chunk::<20>() else {
            return;
        };
        let flags = tcp[13];
        if flags & RST != 0 {
            return;
        }
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let payload = packet.frame().len() - packet.payload_offset();
        let octets = u32::try_from(payload).unwrap_or(0)
            + u32::from(flags & SYN != 0)
            + u32::from(flags & FIN != 0);
        let next = sequence.wrapping_add(octets);
        // A retransmission does not go back.
        let newest = next.wrapping_sub(self.last.next) < 1 << 31 || flags & SYN != 0;
        self.last = LastSegment {
            next: if newest { next } else { self.last.next },
            expected: u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]),
            window: u16::from_be_bytes([tcp[14], tcp[15]]),
        };
    }

    /// Adds what smoltcp does not know: the VRF and, in IPv6, the flow label.
    fn finish(&self, mut packet: Packet, local: &Local<'_>) -> Packet {
        packet.set_vrf(self.flow.vrf);
        if let Some(ports) = packet.ports().filter(|_| packet.is_ipv6()) {
            let addresses = packet.addresses();
            let label = local
                .originator
                .flow_label(addresses, protocol::TCP, flow_of(ports));
            packet.set_flow_label(label);
        }
        packet
    }
}

fn interface(own: IpAddress, mtu: usize, seed: u64, local: &mut Local<'_>) -> Option<Interface> {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut nothing = VecDeque::new();
    let mut wire = Wire::new(None, mtu, local.pool, &mut nothing);
    let mut interface = Interface::new(config, &mut wire, to_smoltcp(local.now));
    let bits = match own {
        IpAddress::Ipv4(_) => 32,
        IpAddress::Ipv6(_) => 128,
    };
    let mut added = false;
    interface.update_ip_addrs(|addresses| {
        added = addresses.push(IpCidr::new(own, bits)).is_ok();
    });
    added.then_some(interface)
}
