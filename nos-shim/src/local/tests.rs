//! The services as their clients see them: another smoltcp, or segments made by hand.

use std::collections::VecDeque;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::*;
use crate::icmp::IcmpError;
use crate::ident::VrfId;
use crate::packet::Ports;
use crate::test_packets::{Draft, N4, N6, Segment, X4, X6, hex, ip};
use core::num::NonZeroU16;

const HTTP: Service = Service::Http(NonZeroU16::new(8080).unwrap());
const SERVICES: [Service; 3] = [Service::Echo, Service::Discard, HTTP];

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A stack, and the wire to it.
struct Lab {
    stack: LocalStack,
    pool: FramePool,
    now: Instant,
    mtu: usize,
    sent: VecDeque<Packet>,
}

const MTU: usize = 1500;

impl Lab {
    fn new() -> Self {
        Self::with_limits(LocalLimits::default())
    }

    fn with_limits(limits: LocalLimits) -> Self {
        Self::with_buffers(512, limits)
    }

    fn with_buffers(count: usize, limits: LocalLimits) -> Self {
        let mut stack = LocalStack::with_limits(7, limits);
        stack.set_services(&SERVICES);
        stack.set_addresses([ip(N4), ip(N6)]);
        Self {
            stack,
            pool: FramePool::new(count, crate::frame::MAX_FRAME),
            now: Instant::from_millis(1_000_000),
            mtu: MTU,
            sent: VecDeque::new(),
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.poll();
    }

    fn poll(&mut self) {
        let sent = &mut self.sent;
        self.stack.poll(self.now, &mut self.pool, &mut |packet| {
            sent.push_back(packet);
        });
    }

    fn give(&mut self, packet: Packet) -> Result<(), DropReason> {
        let result = self
            .stack
            .handle(packet, self.mtu, self.now, &mut self.pool);
        self.poll();
        result
    }

    fn segment(&mut self, draft: &Draft, segment: &Segment<'_>) -> Result<(), DropReason> {
        let packet = draft.tcp_packet(&mut self.pool, segment);
        self.give(packet)
    }

    /// The only packet sent since the last look.
    fn reply(&mut self) -> Packet {
        assert_eq!(self.sent.len(), 1, "{:?}", self.sent);
        self.sent.pop_front().unwrap()
    }

    /// Every buffer is in the pool but those held here.
    fn assert_no_buffer_is_lost(mut self) {
        drop(self.stack);
        self.sent.clear();
        let free = std::iter::from_fn(|| self.pool.alloc()).collect::<Vec<_>>();
        assert_eq!(free.len(), self.pool.capacity());
    }
}

fn word(packet: &Packet, at: usize) -> u32 {
    u32::from_be_bytes(packet.transport()[at..at + 4].try_into().unwrap())
}

/// A client's network: queues of IP packets.
struct Cable {
    to_client: VecDeque<Vec<u8>>,
    to_server: VecDeque<Vec<u8>>,
    mtu: usize,
}

struct Token<'a>(&'a mut VecDeque<Vec<u8>>);
struct Input(Vec<u8>);

impl RxToken for Input {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Token<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Cable {
    type RxToken<'a> = Input;
    type TxToken<'a> = Token<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(Input, Token<'_>)> {
        let packet = self.to_client.pop_front()?;
        Some((Input(packet), Token(&mut self.to_server)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Token<'_>> {
        Some(Token(&mut self.to_server))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

/// A host with smoltcp, joined to a [`Lab`].
struct Client {
    cable: Cable,
    interface: Interface,
    sockets: SocketSet<'static>,
}

impl Client {
    fn new() -> Self {
        let mut cable = Cable {
            to_client: VecDeque::new(),
            to_server: VecDeque::new(),
            mtu: 1500,
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = 99;
        let mut interface = Interface::new(config, &mut cable, SmolInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            for (address, bits) in [(X4, 24), (X6, 64)] {
                let address = IpAddress::from(ip(address));
                addresses.push(IpCidr::new(address, bits)).unwrap();
            }
        });
        Self {
            cable,
            interface,
            sockets: SocketSet::new(Vec::new()),
        }
    }

    fn connect(&mut self, server: &str, port: u16, own_port: u16, window: usize) -> SocketHandle {
        let buffer = |len| SocketBuffer::new(vec![0; len]);
        let mut socket = Socket::new(buffer(window), buffer(65_536));
        socket
            .connect(self.interface.context(), (ip(server), port), own_port)
            .unwrap();
        self.sockets.add(socket)
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Lets both ends work until neither has anything to say. `lose` decides which packets the
    /// wire loses.
    fn exchange(&mut self, lab: &mut Lab, mut lose: impl FnMut() -> bool) {
        for _ in 0..10_000 {
            let now = super::wire::to_smoltcp(lab.now);
            self.interface.poll(now, &mut self.cable, &mut self.sockets);
            let idle = self.cable.to_server.is_empty();
            while let Some(octets) = self.cable.to_server.pop_front() {
                if lose() {
                    continue;
                }
                let v6 = octets[0] >> 4 == 6;
                let kind: [u8; 2] = if v6 { [0x86, 0xdd] } else { [8, 0] };
                let frame = [
                    &[2, 0, 0, 0, 0, 0xb, 2, 0, 0, 0, 0, 0xa][..],
                    &kind,
                    &octets,
                ];
                let frame = lab.pool.copy_from(&frame.concat()).unwrap();
                let packet = Packet::parse(frame).unwrap();
                lab.stack
                    .handle(packet, lab.mtu, lab.now, &mut lab.pool)
                    .unwrap();
            }
            lab.poll();
            let quiet = lab.sent.is_empty();
            while let Some(packet) = lab.sent.pop_front() {
                assert!(packet.transport_checksum_ok());
                assert!(packet.ip().len() <= 1500);
                assert_eq!(packet.ttl(), 64);
                if packet.is_ipv6() {
                    assert_ne!(packet.ip()[1..4], [0, 0, 0], "a flow label");
                }
                if !lose() {
                    self.cable.to_client.push_back(packet.ip().to_vec());
                }
                lab.pool.free(packet.into_frame());
            }
            if idle && quiet {
                return;
            }
        }
        panic!("they never stop talking");
    }
}

/// Octets that do not repeat with any period that matters.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// Sends `data` to a service and returns what comes back until the connection is closed.
fn converse(
    lab: &mut Lab,
    server: &str,
    port: u16,
    data: &[u8],
    mut lose: impl FnMut() -> bool,
) -> Vec<u8> {
    let mut client = Client::new();
    let handle = client.connect(server, port, 50_000, 65_536);
    let (mut sent, mut received) = (0, Vec::new());
    for _ in 0..1_000_000 {
        client.exchange(lab, &mut lose);
        let socket = client.socket(handle);
        if socket.can_send() && sent < data.len() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        while socket.can_recv() {
            socket
                .recv(|octets| {
                    received.extend_from_slice(octets);
                    (octets.len(), ())
                })
                .unwrap();
        }
        if sent == data.len()
            && received.len() >= data.len().min(1)
            && port != 8080
            && (received.len() >= data.len() || port == 9)
        {
            socket.close();
        }
        let over = matches!(socket.state(), State::Closed | State::TimeWait);
        if over || (port == 9 && sent == data.len() && socket.send_queue() == 0) {
            socket.close();
            client.exchange(lab, &mut lose);
            return received;
        }
        if socket.state() == State::CloseWait {
            socket.close();
        }
        lab.pass(Duration::from_millis(20));
    }
    panic!(
        "the conversation never ends: {sent} sent, {} received",
        received.len()
    );
}

#[test]
fn tcp_echo_returns_a_mebibyte() {
    for server in [N4, N6] {
        let mut lab = Lab::new();
        let data = pattern(1 << 20);
        assert_eq!(converse(&mut lab, server, 7, &data, || false), data);
        assert_eq!(lab.stack.counters().open, 0);
        assert_eq!(lab.stack.counters().accepted, 1);
        lab.assert_no_buffer_is_lost();
    }
}

#[test]
fn tcp_echo_survives_loss() {
    let mut lab = Lab::new();
    let data = pattern(100_000);
    let mut random = fastrand::Rng::with_seed(3);
    let received = converse(&mut lab, N4, 7, &data, || random.u8(..) < 8);
    assert_eq!(received, data);
}

#[test]
fn tcp_discard_swallows_everything() {
    let mut lab = Lab::new();
    let received = converse(&mut lab, N6, 9, &pattern(300_000), || false);
    assert_eq!(received, b"");
    lab.pass(Duration::from_secs(1));
    assert_eq!(lab.stack.counters().open, 0);
    lab.assert_no_buffer_is_lost();
}

#[test]
fn http_serves_the_status_and_closes() {
    let mut lab = Lab::new();
    let status = format!("{{\"filler\": \"{}\"}}", "x".repeat(100_000));
    lab.stack.set_status(&status);
    let request = b"GET /status.json HTTP/1.1\r\nHost: nos\r\n\r\n";
    for server in [N4, N6] {
        assert!(!lab.stack.status_wanted());
        let response = converse(&mut lab, server, 8080, request, || false);
        let response = String::from_utf8(response).unwrap();
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(response.ends_with(&status));
    }
    // Closed here first: the flows linger, without sockets.
    let counters = lab.stack.counters();
    assert_eq!((counters.open, counters.time_wait), (0, 2));
    lab.pass(Duration::from_secs(61));
    assert_eq!(lab.stack.counters().time_wait, 0);
    assert_eq!(lab.stack.poll_at(), None, "nothing left to do");
}

#[test]
fn udp_echo_answers_in_place() {
    let mut lab = Lab::new();
    for draft in [Draft::v4(), Draft::v6()] {
        let mut draft = draft;
        draft.class = 0xb8;
        for len in [0, 1, 1400, 4000, 60_000] {
            let payload = pattern(len);
            let packet = draft.udp_packet(&mut lab.pool, (5000, 7), &payload);
            lab.give(packet).unwrap();
            let reply = lab.reply();
            assert_eq!(
                (reply.source(), reply.destination()),
                (draft.destination, draft.source)
            );
            assert_eq!(
                reply.ports(),
                Some(Ports {
                    source: 7,
                    destination: 5000
                })
            );
            assert_eq!(reply.transport()[8..], payload);
            assert!(reply.transport_checksum_ok());
            assert_eq!(reply.ttl(), 64);
            // A longer one will have to be fragmented on the way out.
            let v6 = draft.source.is_ipv6();
            assert_eq!(reply.dont_fragment(), v6 || len <= 1400);
            lab.pool.free(reply.into_frame());
        }
    }
    assert_eq!(lab.stack.counters().datagrams, 10);
    lab.assert_no_buffer_is_lost();
}

#[test]
fn udp_echo_to_a_datagram_without_checksum_has_one() {
    let mut lab = Lab::new();
    let draft = Draft::v4();
    let mut packet = draft.udp_packet(&mut lab.pool, (5000, 7), b"hello");
    let at = packet.transport_offset() + 6;
    packet.frame_mut().bytes_mut()[at..at + 2].fill(0);
    lab.give(packet).unwrap();
    let reply = lab.reply();
    assert_ne!(reply.transport()[6..8], [0, 0]);
    assert!(reply.transport_checksum_ok());
}

#[test]
fn udp_echo_returns_the_datagram_and_not_what_follows_it() {
    let mut lab = Lab::new();
    let draft = Draft::v4();
    let mut udp = draft.udp((5000, 7), b"hello");
    udp.extend(*b"more");
    let packet = draft.packet(&mut lab.pool, 17, &udp);
    lab.give(packet).unwrap();
    let reply = lab.reply();
    assert_eq!(reply.transport()[8..], *b"hello");
    assert_eq!(reply.ip().len(), 33);
    assert!(reply.transport_checksum_ok());
}

#[test]
fn options_and_extension_headers_are_left_behind() {
    let mut lab = Lab::new();
    let mut draft = Draft::v4();
    draft.options = vec![1, 1, 1, 0];
    let packet = draft.udp_packet(&mut lab.pool, (5000, 7), b"x");
    lab.give(packet).unwrap();
    assert_eq!(lab.reply().ip().len(), 29);
    lab.segment(
        &draft,
        &Segment {
            ports: (5000, 7),
            ..Segment::default()
        },
    )
    .unwrap();
    assert_eq!(lab.reply().tcp_flags(), Some(SYN | ACK));

    let draft = Draft::v6();
    let syn = draft.tcp(&Segment {
        ports: (5000, 7),
        ..Segment::default()
    });
    let packet = draft.packet(&mut lab.pool, 60, &[hex("0600010400000000"), syn].concat());
    lab.give(packet).unwrap();
    assert_eq!(lab.reply().tcp_flags(), Some(SYN | ACK));
}

#[test]
fn udp_discard_says_nothing_and_loops_are_not_started() {
    let mut lab = Lab::new();
    let packet = Draft::v4().udp_packet(&mut lab.pool, (5000, 9), b"x");
    assert_eq!(lab.give(packet), Ok(()));
    for source in [0, 7, 9, 19] {
        let packet = Draft::v4().udp_packet(&mut lab.pool, (source, 7), b"x");
        assert_eq!(lab.give(packet), Err(DropReason::Ignored));
    }
    let packet = Draft::v4().udp_packet(&mut lab.pool, (5000, 8080), b"x");
    assert_eq!(lab.give(packet), Err(DropReason::NoListener));
    assert!(lab.sent.is_empty());
    lab.assert_no_buffer_is_lost();
}

#[test]
fn damaged_and_misdirected_packets_are_dropped() {
    let mut lab = Lab::new();
    for draft in [Draft::v4(), Draft::v6()] {
        let mut udp = draft.udp((5000, 7), b"abcd");
        udp[9] ^= 1;
        let packet = draft.packet(&mut lab.pool, protocol::UDP, &udp);
        assert_eq!(lab.give(packet), Err(DropReason::TransportChecksum));
        let mut tcp = draft.tcp(&Segment {
            ports: (5000, 7),
            ..Segment::default()
        });
        tcp[5] ^= 1;
        let packet = draft.packet(&mut lab.pool, protocol::TCP, &tcp);
        assert_eq!(lab.give(packet), Err(DropReason::TransportChecksum));
        let mut broadcast = draft.clone();
        broadcast.mac = [0xff; 6];
        let packet = broadcast.udp_packet(&mut lab.pool, (5000, 7), b"x");
        assert_eq!(lab.give(packet), Err(DropReason::Multicast));
    }
    let syn = Segment {
        ports: (5000, 7),
        ..Segment::default()
    };
    for (source, own) in [
        ("0.0.0.0", N4),
        ("127.0.0.1", N4),
        ("224.0.0.1", N4),
        ("255.255.255.255", N4),
        ("::", N6),
        ("ff02::1", N6),
    ] {
        let result = lab.segment(&Draft::new(source, own), &syn);
        assert_eq!(result, Err(DropReason::MartianSource), "{source}");
    }
    assert!(lab.sent.is_empty());
    assert_eq!(lab.stack.counters().open, 0);
}

#[test]
fn segments_for_nobody_are_reset_and_listeners_ignore_nonsense() {
    let mut lab = Lab::new();
    let draft = Draft::v4();
    let to = |port, flags| Segment {
        ports: (5000, port),
        flags,
        ..Segment::default()
    };
    for (port, flags) in [(7, ACK), (7, SYN | ACK), (7, FIN | ACK), (1234, SYN)] {
        assert_eq!(
            lab.segment(&draft, &to(port, flags)),
            Err(DropReason::NoListener)
        );
        assert_eq!(lab.reply().tcp_flags().unwrap() & RST, RST);
    }
    for flags in [0, FIN, SYN | FIN, RST, RST | ACK, SYN | RST] {
        assert_eq!(
            lab.segment(&draft, &to(7, flags)),
            Err(DropReason::Ignored),
            "{flags:#x}"
        );
        assert!(lab.sent.is_empty());
    }
}

/// The MSS offered follows from the MTU (RFC 6691).
#[test]
fn the_mss_is_that_of_the_mtu() {
    let mut lab = Lab::new();
    for (mtu, draft, mss) in [
        (1500, Draft::v4(), 1460_u16),
        (1500, Draft::v6(), 1440),
        (9000, Draft::v4(), 8960),
        (0, Draft::v4(), 536),
    ] {
        lab.mtu = mtu;
        let syn = Segment {
            ports: (5000 + mss, 7),
            ..Segment::default()
        };
        lab.segment(&draft, &syn).unwrap();
        let reply = lab.reply();
        let [high, low] = mss.to_be_bytes();
        assert_eq!(reply.transport()[20..24], [2, 4, high, low]);
    }
}

/// A TCP peer made by hand.
struct Peer {
    draft: Draft,
    ports: (u16, u16),
    next: u32,
    theirs: u32,
    window: u16,
}

impl Peer {
    /// Opens a connection.
    fn open(lab: &mut Lab, draft: Draft, ports: (u16, u16), options: &[u8]) -> Self {
        let peer = Self::open_beside(lab, draft, ports, options);
        assert!(lab.sent.is_empty());
        peer
    }

    /// Opens a connection, whatever that does to others.
    fn open_beside(lab: &mut Lab, draft: Draft, ports: (u16, u16), options: &[u8]) -> Self {
        let syn = Segment {
            ports,
            sequence: 1000,
            acknowledgment: 0,
            flags: SYN,
            options,
            window: 8192,
            ..Segment::default()
        };
        lab.segment(&draft, &syn).unwrap();
        let reply = lab.reply();
        assert_eq!(reply.tcp_flags(), Some(SYN | ACK));
        assert_eq!(word(&reply, 8), 1001);
        let mut peer = Self {
            draft,
            ports,
            next: 1001,
            theirs: word(&reply, 4).wrapping_add(1),
            window: 8192,
        };
        peer.say(lab, ACK, b"").unwrap();
        peer
    }

    fn say(&mut self, lab: &mut Lab, flags: u8, payload: &[u8]) -> Result<(), DropReason> {
        let segment = self.segment(flags, payload);
        let result = lab.segment(&self.draft, &segment);
        self.next = self
            .next
            .wrapping_add(payload.len() as u32 + u32::from(flags & FIN));
        result
    }

    fn segment<'a>(&self, flags: u8, payload: &'a [u8]) -> Segment<'a> {
        Segment {
            ports: self.ports,
            sequence: self.next,
            acknowledgment: self.theirs,
            flags,
            window: self.window,
            options: &[],
            payload,
        }
    }
}

/// Past bugs of smoltcp: an MSS of 0 or next to nothing. The peer still gets all its octets.
#[test]
fn a_tiny_mss_does_no_harm() {
    for mss in [0_u16, 1, 47, 536] {
        let mut lab = Lab::new();
        let mut peer = Peer::open(
            &mut lab,
            Draft::v4(),
            (5000, 7),
            &[2, 4, (mss >> 8) as u8, mss as u8],
        );
        peer.say(&mut lab, ACK, &pattern(1000)).unwrap();
        let mut echoed = Vec::new();
        for _ in 0..100 {
            while let Some(packet) = lab.sent.pop_front() {
                let octets = &packet.transport()[20..];
                if !octets.is_empty() && word(&packet, 4) == peer.theirs {
                    echoed.extend_from_slice(octets);
                    peer.theirs = peer.theirs.wrapping_add(octets.len() as u32);
                }
            }
            peer.say(&mut lab, ACK, b"").unwrap();
        }
        assert_eq!(echoed, pattern(1000), "MSS {mss}");
    }
}

#[test]
fn a_reset_ends_the_connection_at_once() {
    let mut lab = Lab::new();
    let mut peer = Peer::open(&mut lab, Draft::v4(), (5000, 7), &[]);
    assert_eq!(lab.stack.counters().open, 1);
    peer.say(&mut lab, RST, b"").unwrap();
    assert_eq!(lab.stack.counters().open, 0);
    assert!(lab.sent.is_empty());
    assert_eq!(peer.say(&mut lab, ACK, b"x"), Err(DropReason::NoListener));
    assert_eq!(lab.reply().tcp_flags(), Some(RST));
}

#[test]
fn a_reset_during_the_handshake_frees_the_place() {
    let mut lab = Lab::new();
    let syn = Segment {
        ports: (5000, 7),
        ..Segment::default()
    };
    lab.segment(&Draft::v4(), &syn).unwrap();
    assert_eq!(lab.stack.counters().half_open, 1);
    let rst = Segment {
        sequence: 101,
        flags: RST,
        ..syn
    };
    lab.segment(&Draft::v4(), &rst).unwrap();
    assert_eq!(
        (lab.stack.counters().open, lab.stack.counters().half_open),
        (0, 0)
    );
}

#[test]
fn a_syn_flood_is_bounded_and_passes() {
    let mut lab = Lab::new();
    let mut results = std::collections::BTreeMap::<_, u32>::new();
    for n in 0..10_000_u32 {
        let [_, b, c, d] = n.to_be_bytes();
        let source = format!("10.{b}.{c}.{d}");
        let syn = Segment {
            ports: (5000, [7, 9, 8080][n as usize % 3]),
            ..Segment::default()
        };
        let result = lab.segment(&Draft::new(&source, N4), &syn);
        *results.entry(result.err()).or_default() += 1;
        lab.sent.clear();
    }
    assert_eq!(results[&None], 64);
    assert_eq!(results[&Some(DropReason::LocalQueueFull)], 9_936);
    assert_eq!(lab.stack.counters().half_open, 64);
    assert_eq!(lab.stack.counters().refused, 9_936);
    // Nobody completes a handshake: the places are free again after a few seconds.
    lab.pass(Duration::from_secs(2));
    assert!(!lab.sent.is_empty(), "SYN ACKs are repeated");
    lab.sent.clear();
    let later = lab.stack.poll_at().unwrap();
    assert!(later > lab.now && later <= lab.now + Duration::from_secs(4));
    lab.pass(Duration::from_secs(3));
    assert_eq!(
        (lab.stack.counters().open, lab.stack.counters().half_open),
        (0, 0)
    );
    assert!(
        lab.sent.is_empty(),
        "given up without a word, as Linux does"
    );
    Peer::open(&mut lab, Draft::v4(), (5000, 7), &[]);
    lab.assert_no_buffer_is_lost();
}

#[test]
fn connections_are_bounded_by_service_and_in_total() {
    let limits = LocalLimits {
        connections: 100,
        ..LocalLimits::default()
    };
    let mut lab = Lab::with_limits(limits);
    for n in 0..64 {
        Peer::open(&mut lab, Draft::v4(), (5000 + n, 7), &[]);
    }
    let syn = |port| Segment {
        ports: (6000, port),
        ..Segment::default()
    };
    assert_eq!(
        lab.segment(&Draft::v4(), &syn(7)),
        Err(DropReason::LocalQueueFull)
    );
    for n in 0..36 {
        Peer::open(&mut lab, Draft::v6(), (5000 + n, 9), &[]);
    }
    assert_eq!(
        lab.segment(&Draft::v4(), &syn(8080)),
        Err(DropReason::LocalQueueFull)
    );
    assert_eq!(lab.stack.counters().open, 100);
    assert_eq!(lab.stack.counters().accepted, 100);
}

/// A peer that takes nothing must not make the stack keep more than its buffers, and one that
/// says nothing is reset in the end.
#[test]
fn a_slow_reader_stalls_only_itself() {
    let mut lab = Lab::new();
    let mut peer = Peer::open(&mut lab, Draft::v4(), (5000, 7), &[]);
    peer.window = 0;
    let mut refused = 0;
    for n in 0..100 {
        let before = peer.next;
        peer.say(&mut lab, ACK, &pattern(1000)).unwrap();
        let acknowledged = lab.sent.iter().map(|packet| word(packet, 8)).max();
        if acknowledged.is_none_or(|to| to != peer.next) && n > 70 {
            refused += 1;
            peer.next = before;
        }
        lab.sent.clear();
    }
    assert!(refused > 20, "the window closes");
    // Others are served meanwhile.
    let data = pattern(10_000);
    assert_eq!(converse(&mut lab, N6, 7, &data, || false), data);
    let mut resets = 0;
    for _ in 0..400 {
        lab.pass(Duration::from_secs(1));
        resets += lab
            .sent
            .drain(..)
            .filter(|packet| packet.tcp_flags().unwrap() & RST != 0)
            .count();
    }
    assert_eq!((resets, lab.stack.counters().open), (1, 0));
    lab.assert_no_buffer_is_lost();
}

#[test]
fn dead_peers_are_noticed_and_silent_ones_are_probed() {
    let mut lab = Lab::new();
    let mut peer = Peer::open(&mut lab, Draft::v4(), (5000, 7), &[]);
    // Answers keep-alives for two minutes, then no more.
    let mut probes = 0;
    for second in 0..240 {
        lab.pass(Duration::from_secs(1));
        let probe = lab.sent.drain(..).count() > 0;
        probes += u32::from(probe);
        if probe && second < 120 {
            peer.say(&mut lab, ACK, b"").unwrap();
        }
        let open = lab.stack.counters().open;
        assert_eq!(
            open,
            usize::from(second < 165 || open == 1 && second < 195),
            "at {second} s"
        );
    }
    assert!(probes > 8, "{probes}");
    assert_eq!(lab.stack.counters().open, 0);
}

#[test]
fn http_clients_that_dribble_are_cut_off() {
    let mut lab = Lab::new();
    let mut peer = Peer::open(&mut lab, Draft::v4(), (5000, 8080), &[]);
    for second in 0..40 {
        let _ = peer.say(&mut lab, ACK, b"G");
        lab.pass(Duration::from_secs(1));
        assert_eq!(
            lab.stack.counters().open,
            usize::from(second < 29),
            "at {second} s"
        );
    }
}

/// The status page, asked for by `client`.
fn page(lab: &mut Lab, client: &mut Peer) -> String {
    lab.sent.clear();
    client
        .say(lab, ACK, b"GET /status.json HTTP/1.1\r\nHost: nos\r\n\r\n")
        .unwrap();
    lab.poll();
    let to_client = |packet: &Packet| packet.ports().unwrap().destination == client.ports.0;
    let sent = lab.sent.drain(..).filter(to_client);
    let octets = sent.flat_map(|packet| packet.frame().bytes()[packet.payload_offset()..].to_vec());
    String::from_utf8(octets.collect()).unwrap()
}

/// Connections to the page, each with half a request.
fn half_requests(lab: &mut Lab, count: u16, draft: impl Fn(u16) -> Draft) -> Vec<Peer> {
    let ask = |n| {
        let mut peer = Peer::open_beside(lab, draft(n), (1000 + n, 8080), &[]);
        peer.say(lab, ACK, b"GET / HTTP/1.1\r\n").unwrap();
        lab.pass(Duration::from_millis(1));
        lab.sent.clear();
        peer
    };
    (0..count).map(ask).collect()
}

/// Ports of the clients that were reset.
fn resets(lab: &mut Lab) -> Vec<u16> {
    lab.poll();
    let resets = lab
        .sent
        .iter()
        .filter(|packet| packet.tcp_flags().unwrap() & RST != 0);
    resets
        .map(|packet| packet.ports().unwrap().destination)
        .collect()
}

const FRIEND: &str = "198.51.100.7";

#[test]
fn half_requests_of_one_peer_keep_nobody_out() {
    let mut lab = Lab::new();
    let friend = || Draft::new(FRIEND, N4);
    let mut slow = half_requests(&mut lab, 1, |_| friend()).remove(0);
    half_requests(&mut lab, 200, |_| Draft::v4());
    assert!(lab.stack.counters().open <= 65);
    let mut client = Peer::open_beside(&mut lab, friend(), (5000, 8080), &[]);
    assert!(page(&mut lab, &mut client).starts_with("HTTP/1.1 200 OK"));
    // The other client of the same host was slow, but is not one of many.
    slow.say(&mut lab, ACK, b"Host: nos\r\n\r\n").unwrap();
    lab.poll();
    assert!(!resets(&mut lab).contains(&1000) && !lab.sent.is_empty());
}

#[test]
fn half_requests_of_many_peers_keep_nobody_out() {
    let mut lab = Lab::new();
    let other = |n| Draft::new(&format!("10.0.{}.{}", n / 200, 1 + n % 200), N4);
    half_requests(&mut lab, 64, other);
    let mut client = Peer::open_beside(&mut lab, Draft::new(FRIEND, N4), (5000, 8080), &[]);
    assert_eq!(resets(&mut lab), [1000], "the oldest");
    assert!(page(&mut lab, &mut client).starts_with("HTTP/1.1 200 OK"));
    assert_eq!(lab.stack.counters().refused, 0);
}

/// Clients that ask properly and do not take the answer are no better.
#[test]
fn answers_that_nobody_takes_keep_nobody_out() {
    let mut lab = Lab::new();
    for peer in &mut half_requests(&mut lab, 64, |_| Draft::v4()) {
        peer.window = 0;
        peer.say(&mut lab, ACK, b"Host: nos\r\n\r\n").unwrap();
        lab.sent.clear();
    }
    let mut client = Peer::open_beside(&mut lab, Draft::new(FRIEND, N4), (5000, 8080), &[]);
    assert!(page(&mut lab, &mut client).starts_with("HTTP/1.1 200 OK"));
}

/// Whoever forges addresses completes no handshake, and displaces nobody.
#[test]
fn forged_syns_displace_no_http_client() {
    let mut lab = Lab::new();
    let clients = half_requests(&mut lab, 64, |_| Draft::v4());
    for n in 0..1000_u16 {
        let [c, d] = n.to_be_bytes();
        let syn = Segment {
            ports: (6000, 8080),
            ..Segment::default()
        };
        let _ = lab.segment(&Draft::new(&format!("10.1.{c}.{d}"), N4), &syn);
    }
    assert!(resets(&mut lab).is_empty());
    for mut client in clients {
        assert_eq!(client.say(&mut lab, ACK, b"Host: nos\r\n"), Ok(()));
    }
    assert_eq!(lab.stack.counters().half_open, 64);
}

#[test]
fn last_segments_of_closed_flows_are_acknowledged() {
    let mut lab = Lab::new();
    let mut peer = Peer::open(&mut lab, Draft::v6(), (5000, 8080), &[]);
    peer.say(&mut lab, ACK, b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let last = lab.sent.drain(..).next_back().unwrap();
    assert_eq!(last.tcp_flags().unwrap() & FIN, FIN);
    let payload = (last.frame().len() - last.payload_offset()) as u32;
    peer.theirs = word(&last, 4).wrapping_add(payload + 1);
    let fin = peer.segment(FIN | ACK, b"");
    lab.segment(&peer.draft, &fin).unwrap();
    let first = lab.reply();
    assert_eq!(
        (lab.stack.counters().open, lab.stack.counters().time_wait),
        (0, 1)
    );
    // The FIN once more: the same acknowledgment once more.
    lab.segment(&peer.draft, &fin).unwrap();
    let second = lab.reply();
    assert_eq!(first.transport(), second.transport());
    assert_eq!(first.addresses(), second.addresses());
    assert_eq!(word(&second, 8), peer.next + 1);
    // A reset does not cut it short, and an empty acknowledgment asks for nothing.
    peer.next += 1;
    peer.say(&mut lab, RST, b"").unwrap();
    peer.say(&mut lab, ACK, b"").unwrap();
    assert_eq!((lab.sent.len(), lab.stack.counters().time_wait), (0, 1));
    // A later SYN opens the flow anew, an older one does not.
    let syn = Segment {
        flags: SYN,
        sequence: peer.next - 1,
        ..peer.segment(SYN, b"")
    };
    lab.segment(&peer.draft, &syn).unwrap();
    assert_eq!(lab.reply().tcp_flags(), Some(ACK));
    let syn = Segment {
        sequence: peer.next + 70_000,
        ..syn
    };
    lab.segment(&peer.draft, &syn).unwrap();
    assert_eq!(lab.reply().tcp_flags(), Some(SYN | ACK));
    assert_eq!(
        (lab.stack.counters().open, lab.stack.counters().time_wait),
        (1, 0)
    );
}

#[test]
fn time_wait_is_bounded() {
    let limits = LocalLimits {
        time_wait: 10,
        ..LocalLimits::default()
    };
    let mut lab = Lab::with_limits(limits);
    for n in 0..50 {
        let mut peer = Peer::open(&mut lab, Draft::v4(), (5000 + n, 8080), &[]);
        peer.say(&mut lab, ACK, b"\r\n\r\n\0").unwrap();
        let last = lab.sent.drain(..).next_back().unwrap();
        let payload = (last.frame().len() - last.payload_offset()) as u32;
        peer.theirs = word(&last, 4).wrapping_add(payload + 1);
        peer.say(&mut lab, FIN | ACK, b"").unwrap();
        lab.sent.clear();
        let counters = lab.stack.counters();
        assert_eq!(
            (counters.open, counters.time_wait),
            (0, 10.min(usize::from(n) + 1))
        );
    }
}

#[test]
fn withdrawn_services_reset_their_connections() {
    let mut lab = Lab::new();
    let mut echo = Peer::open(&mut lab, Draft::v4(), (5000, 7), &[]);
    let mut discard = Peer::open(&mut lab, Draft::v4(), (5000, 9), &[]);
    lab.stack.set_services(&[Service::Discard]);
    assert!(lab.stack.poll_at().is_some_and(|at| at <= lab.now));
    lab.poll();
    let reset = lab.reply();
    assert_eq!(reset.ports().unwrap().source, 7);
    assert_eq!(reset.tcp_flags().unwrap() & RST, RST);
    assert_eq!(echo.say(&mut lab, ACK, b"x"), Err(DropReason::NoListener));
    assert_eq!(discard.say(&mut lab, ACK, b"x"), Ok(()));
}

#[test]
fn connections_follow_the_addresses() {
    let mut lab = Lab::new();
    Peer::open(&mut lab, Draft::v4(), (5000, 7), &[]);
    let mut v6 = Peer::open(&mut lab, Draft::v6(), (5000, 7), &[]);
    lab.stack.set_addresses([ip(N6), ip("192.0.2.1")]);
    lab.poll();
    assert!(
        lab.sent.is_empty(),
        "not from an address that is no longer ours"
    );
    assert_eq!(lab.stack.counters().open, 1);
    v6.say(&mut lab, ACK, b"still there").unwrap();
    assert_eq!(lab.reply().transport()[20..], *b"still there");
    Peer::open(&mut lab, Draft::new(X4, "192.0.2.1"), (5000, 7), &[]);
}

#[test]
fn the_same_flow_in_two_vrfs_is_two_flows() {
    let mut lab = Lab::new();
    for vrf in [0, 1] {
        let syn = Segment {
            ports: (5000, 7),
            ..Segment::default()
        };
        let mut packet = Draft::v4().tcp_packet(&mut lab.pool, &syn);
        packet.set_vrf(VrfId(vrf));
        lab.give(packet).unwrap();
        let reply = lab.reply();
        assert_eq!(reply.frame().vrf(), VrfId(vrf));
        assert_eq!(reply.tcp_flags(), Some(SYN | ACK));
    }
    assert_eq!(lab.stack.counters().open, 2);
}

/// A router on the way says that segments are too long; they are sent again, shorter.
#[test]
fn path_mtu_errors_are_believed_if_they_can_be_true() {
    for (draft, mtu, least) in [
        (Draft::v4(), 1000, 1000),
        (Draft::v4(), 10, 552),
        (Draft::v6(), 1300, 1300),
        (Draft::v6(), 10, 1280),
    ] {
        let mut lab = Lab::new();
        let mut peer = Peer::open(&mut lab, draft.clone(), (5000, 7), &[2, 4, 5, 0x8c]);
        peer.say(&mut lab, ACK, &pattern(3000)).unwrap();
        let sent: Vec<Packet> = lab.sent.drain(..).collect();
        let longest = sent.iter().max_by_key(|packet| packet.ip().len()).unwrap();
        assert!(longest.ip().len() > 1400);
        let error = |lab: &mut Lab, offending: &Packet| {
            let mut originator = Originator::new(5);
            let router = ip(if offending.is_ipv6() { X6 } else { X4 });
            let error = IcmpError::PacketTooBig { mtu };
            error
                .build(offending, router, &mut originator, &mut lab.pool)
                .unwrap()
        };
        let mut forged = longest.ip().to_vec();
        let sequence = longest.transport_offset() - 14 + 4;
        forged[sequence] ^= 0x80;
        let forged = [&longest.frame().bytes()[..14], &forged].concat();
        let forged = Packet::parse(lab.pool.copy_from(&forged).unwrap()).unwrap();
        let forged = error(&mut lab, &forged);
        assert_eq!(lab.give(forged), Err(DropReason::IcmpUnmatched));
        let genuine = error(&mut lab, longest);
        assert_eq!(lab.give(genuine), Ok(()));
        lab.pass(Duration::from_secs(2));
        let again = lab
            .sent
            .iter()
            .map(|packet| packet.ip().len())
            .max()
            .unwrap();
        assert_eq!(again, least);
    }
    let mut lab = Lab::new();
    let foreign = Draft::new(N4, X4).tcp_packet(
        &mut lab.pool,
        &Segment {
            ports: (7, 5000),
            ..Segment::default()
        },
    );
    let error = IcmpError::NoRoute
        .build(&foreign, ip(X4), &mut Originator::new(5), &mut lab.pool)
        .unwrap();
    assert_eq!(lab.give(error), Err(DropReason::IcmpUnmatched));
}

#[test]
fn without_buffers_nothing_is_lost_for_good() {
    let mut lab = Lab::new();
    let mut peer = Peer::open(&mut lab, Draft::v4(), (5000, 7), &[]);
    let packet = peer
        .draft
        .tcp_packet(&mut lab.pool, &peer.segment(ACK, b"hello"));
    let taken: Vec<_> = std::iter::from_fn(|| lab.pool.alloc()).collect();
    lab.stack
        .handle(packet, lab.mtu, lab.now, &mut lab.pool)
        .unwrap();
    let spare = lab.pool.alloc();
    assert!(spare.is_some(), "the segment's own buffer");
    lab.poll();
    assert!(lab.sent.is_empty());
    let retry = lab.stack.poll_at().unwrap();
    assert!(
        retry > lab.now && retry <= lab.now + Duration::from_millis(1),
        "soon, but not at once"
    );
    drop((taken, spare));
    lab.pass(Duration::from_millis(1));
    let echo = lab.reply();
    assert_eq!(echo.transport()[20..], *b"hello");
    peer.next += 5;
}

#[test]
fn the_outbox_is_bounded() {
    let mut lab = Lab::new();
    let mut pool = FramePool::new(2 * OUTBOX, 100);
    for n in 0..OUTBOX + 10 {
        let packet = Draft::v4().udp_packet(&mut pool, (5000, 7), b"x");
        let result = lab.stack.handle(packet, lab.mtu, lab.now, &mut pool);
        assert_eq!(result.is_ok(), n < OUTBOX);
    }
}

#[test]
fn a_stack_without_services_is_closed_and_quiet() {
    let mut stack = LocalStack::new(1);
    let mut pool = crate::test_packets::pool();
    assert_eq!(stack.poll_at(), None);
    let udp = Draft::v4().udp_packet(&mut pool, (5000, 7), b"x");
    assert_eq!(
        stack.handle(udp, MTU, Instant::ZERO, &mut pool),
        Err(DropReason::NoListener)
    );
    let claims: Vec<_> = SERVICES
        .iter()
        .flat_map(|service| service.claims())
        .map(|claim| claim.to_string())
        .collect();
    assert_eq!(claims, ["tcp 7", "udp 7", "tcp 9", "udp 9", "tcp 8080"]);
}

/// What smoltcp's own panics would look like from here: none may be reachable by a stranger.
mod hostile {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    struct Blow {
        flags: u8,
        sequence: i64,
        acknowledgment: i64,
        window: u16,
        options: Vec<u8>,
        payload: usize,
        wait: u64,
    }

    fn near() -> impl Strategy<Value = i64> {
        prop_oneof![
            4 => Just(0_i64),
            4 => -3..4_i64,
            2 => -70_000..70_000_i64,
            1 => any::<i32>().prop_map(i64::from),
        ]
    }

    fn blow() -> impl Strategy<Value = Blow> {
        let flags =
            prop_oneof![6 => Just(ACK), 2 => Just(ACK | FIN), 1 => Just(SYN), 1 => any::<u8>()];
        let window = prop_oneof![Just(0_u16), Just(1), Just(8192), any::<u16>()];
        let options = proptest::collection::vec(prop_oneof![0..9_u8, any::<u8>()], 0..40);
        let payload = prop_oneof![Just(0_usize), Just(1), 0..3000_usize, Just(40_000)];
        let wait = prop_oneof![4 => Just(0_u64), 2 => 0..300_u64, 1 => 0..70_000_u64];
        (flags, near(), near(), window, options, payload, wait).prop_map(
            |(flags, sequence, acknowledgment, window, mut options, payload, wait)| {
                options.truncate(options.len() / 4 * 4);
                Blow {
                    flags,
                    sequence,
                    acknowledgment,
                    window,
                    options,
                    payload,
                    wait,
                }
            },
        )
    }

    fn shift(base: u32, by: i64) -> u32 {
        base.wrapping_add((by & 0xffff_ffff).unsigned_abs() as u32)
    }

    proptest! {
        #[test]
        fn no_sequence_of_segments_breaks_it(v6: bool, port: usize, blows in proptest::collection::vec(blow(), 1..60)) {
            let mut lab = Lab::with_buffers(128, LocalLimits::default());
            let draft = if v6 { Draft::v6() } else { Draft::v4() };
            let ports = (5000, [7, 9, 8080][port % 3]);
            let payloads = pattern(40_000);
            let (mut next, mut theirs) = (1000, 0);
            let syn = Segment { ports, sequence: 999, flags: SYN, window: 8192, ..Segment::default() };
            let _ = lab.segment(&draft, &syn);
            for blow in blows {
                for packet in lab.sent.drain(..) {
                    prop_assert!(packet.transport_checksum_ok());
                    if packet.tcp_flags().is_some_and(|flags| flags & RST == 0) {
                        let payload = (packet.frame().len() - packet.payload_offset()) as u32;
                        let flags = packet.tcp_flags().unwrap();
                        let control = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
                        theirs = word(&packet, 4).wrapping_add(payload + control);
                        next = word(&packet, 8);
                    }
                }
                let payload = &payloads[..blow.payload];
                let segment = Segment {
                    ports,
                    sequence: shift(next, blow.sequence),
                    acknowledgment: shift(theirs, blow.acknowledgment),
                    flags: blow.flags,
                    window: blow.window,
                    options: &blow.options,
                    payload,
                };
                let _ = lab.segment(&draft, &segment);
                lab.pass(Duration::from_millis(blow.wait));
                prop_assert!(lab.sent.len() < 200, "it floods");
                prop_assert!(lab.stack.counters().open <= 1);
            }
            lab.pass(Duration::from_secs(400));
            lab.pass(Duration::from_secs(400));
            lab.pass(Duration::from_secs(1));
            prop_assert_eq!(lab.stack.counters().open, 0, "everything ends");
            lab.assert_no_buffer_is_lost();
        }

        #[test]
        fn no_packet_breaks_it(v6: bool, protocol in prop_oneof![Just(6_u8), Just(17), Just(1), Just(58), any::<u8>()], mut octets in proptest::collection::vec(any::<u8>(), 0..120)) {
            let mut lab = Lab::with_buffers(128, LocalLimits::default());
            let draft = if v6 { Draft::v6() } else { Draft::v4() };
            if octets.len() >= 4 {
                octets[2..4].copy_from_slice(&[0, 7]);
            }
            let mut frame = lab.pool.copy_from(&draft.frame(protocol, &octets)).unwrap();
            frame.set_offload(crate::frame::Offload { checksum: crate::frame::Checksum::Verified, segmentation: None });
            if let Ok(packet) = Packet::parse(frame) {
                let _ = lab.give(packet);
                lab.pass(Duration::from_secs(400));
                lab.pass(Duration::from_secs(400));
                prop_assert_eq!(lab.stack.counters().open, 0);
            }
            lab.assert_no_buffer_is_lost();
        }
    }
}
