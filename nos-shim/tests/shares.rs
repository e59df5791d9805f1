//! What one owner has waiting costs another nothing: a NOS with a small pool, a victim, and owners
//! that make as much wait as they can.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "a test fails where what it needs is not there; its data is made by counting"
)]

use std::net::{Ipv4Addr, Ipv6Addr};

use nos_shim::arp::Arp;
use nos_shim::channel::{Exchange, RelayEnd, RequestId, ToNos, pair};
use nos_shim::checksum::Sum;
use nos_shim::drop::DropReason;
use nos_shim::frame::{Burst, FramePool};
use nos_shim::ident::{AttachmentId, Interface, MacAddr, UplinkId, VrfId};
use nos_shim::packet::{Packet, PacketBurst};
use nos_shim::ports::{AddressMode, Claim, ClaimKind, Policy, PortRange, Registration, Transport};
#[cfg(feature = "stack")]
use nos_shim::services::{Service, ServiceConfig};
use nos_shim::shim::{LinkState, Shim, ShimConfig, UplinkConfig};
use nos_shim::time::{Duration, Instant};

const BUFFERS: usize = 1024;
const UPLINK: UplinkId = UplinkId(0);
const VICTIM: AttachmentId = AttachmentId(0);
const VICTIM_PORT: u16 = 20_000;
const B: AttachmentId = AttachmentId(1);
const NOS_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const NOS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const PEER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const NEWCOMER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 3);
/// Between two rounds of a flood: it repeats five times a second.
const ROUND: Duration = Duration::from_millis(200);
const UDP: u8 = 17;
const MORE_FRAGMENTS: u16 = 0x2000;

struct World {
    nos: Shim,
    relay: RelayEnd,
    pool: FramePool,
    now: Instant,
    /// Datagrams of the victim, by number.
    next: u32,
}

/// What came out for the victim's sake, by number.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    out: Vec<u32>,
    delivered: Vec<u32>,
    questions: Vec<Ipv4Addr>,
}

impl World {
    fn new() -> Self {
        let pool = FramePool::new(BUFFERS, 2048);
        let (relay, end) = pair(4);
        let mut world = Self {
            nos: Shim::new(
                end,
                pool.clone(),
                ShimConfig {
                    seed: 1,
                    ..ShimConfig::default()
                },
            ),
            relay,
            pool,
            now: Instant::from_millis(1000),
            next: 0,
        };
        let uplink = UplinkConfig {
            id: UPLINK,
            name: "up0".into(),
            vrf: VrfId::DEFAULT,
            mac: NOS_MAC,
            addresses: vec!["203.0.113.1/16".parse().unwrap()],
            mtu: 1500,
            redirects: true,
        };
        world.nos.set_uplink(uplink, world.now).unwrap();
        let up = LinkState::Up;
        world.nos.set_link(UPLINK, up, world.now).unwrap();
        world.register(VICTIM, VICTIM_PORT);
        world.register(B, 30_000);
        world.answer(PEER);
        world.look();
        world
    }

    fn register(&mut self, id: AttachmentId, port: u16) {
        let registration = Registration {
            attachment: id,
            name: format!("{id}").into(),
            vrf: VrfId::DEFAULT,
            network: nos_shim::ident::NetworkId::DEFAULT,
            mode: AddressMode::Shared,
            addresses: vec![NOS.into()],
            policy: Policy::default(),
            claims: vec![Claim {
                transport: Transport::Udp,
                range: PortRange::new(port, port).unwrap(),
                kind: ClaimKind::Listen,
            }],
            link_local: None,
            router: Ipv6Addr::LOCALHOST,
            mtu: 1500,
        };
        let exchange = Exchange {
            register: vec![registration],
            ..Exchange::default()
        };
        self.relay
            .send_control(ToNos::Exchange(RequestId(u64::from(port)), exchange))
            .unwrap();
        self.nos.poll_channel(self.now, 1);
    }

    /// A station asks for the NOS, and so says where it is.
    fn answer(&mut self, station: Ipv4Addr) {
        let mut frame = self.pool.alloc().expect("a buffer for an answer");
        let question = Arp::request(PEER_MAC, station, NOS);
        question.write(&mut frame, MacAddr::BROADCAST).unwrap();
        let mut burst: Burst = [frame].into_iter().collect();
        self.nos.handle_burst(UPLINK, &mut burst, self.now);
    }

    /// A container sends as many of these as there are buffers for.
    fn send(&mut self, from: AttachmentId, packets: &[Vec<u8>]) -> usize {
        let mut burst = PacketBurst::new();
        for octets in packets {
            let Ok(frame) = self.pool.copy_from(octets) else {
                break;
            };
            let mut packet = Packet::parse(frame).unwrap();
            packet.set_interface(Interface::Attachment(from));
            burst.push(packet);
        }
        let count = burst.len();
        assert!(self.relay.send_burst(&mut burst));
        self.nos.poll_channel(self.now, 1);
        count
    }

    /// The network sends as many of these as there are buffers for.
    fn receive(&mut self, packets: &[Vec<u8>]) -> usize {
        let mut burst = Burst::new();
        for octets in packets {
            match self.pool.copy_from(octets) {
                Ok(frame) => burst.push(frame),
                Err(_) => break,
            }
        }
        let count = burst.len();
        self.nos.handle_burst(UPLINK, &mut burst, self.now);
        count
    }

    /// Takes all that comes out.
    fn look(&mut self) -> Seen {
        let mut seen = Seen::default();
        while let Some((_, burst)) = self.nos.poll_transmit() {
            for frame in burst.drain(..) {
                if let Ok(arp) = Arp::parse(frame.bytes()) {
                    seen.questions.push(arp.target_ip);
                }
                seen.out.extend(number(frame.bytes()));
                self.pool.free(frame);
            }
        }
        while let Some(burst) = self.relay.recv_burst() {
            for packet in burst {
                if packet.frame().interface() == Some(Interface::Attachment(VICTIM)) {
                    seen.delivered.extend(number(packet.frame().bytes()));
                }
                self.pool.free(packet.into_frame());
            }
        }
        seen
    }

    /// A numbered datagram.
    fn numbered(&mut self, from: Ipv4Addr, to: Ipv4Addr, ports: [u16; 2]) -> Vec<u8> {
        self.next += 1;
        let mut payload = b"victim".to_vec();
        payload.extend(self.next.to_be_bytes());
        datagram(from, to, ports, &payload)
    }

    /// The victim talks: what it sends leaves, and what it is sent arrives, at once.
    fn talk(&mut self) {
        let out = self.numbered(NOS, PEER, [VICTIM_PORT, 53]);
        assert_eq!(self.send(VICTIM, &[out]), 1, "a buffer for the victim");
        assert_eq!(self.look().out, [self.next]);
        let back = self.numbered(PEER, NOS, [53, VICTIM_PORT]);
        assert_eq!(self.receive(&[back]), 1, "a buffer for the victim");
        assert_eq!(self.look().delivered, [self.next]);
    }

    /// The victim sends a burst to a station that nobody knows, which answers a little later.
    fn meet(&mut self, station: Ipv4Addr, datagrams: u32) {
        let first = self.next + 1;
        let burst: Vec<_> = (0..datagrams)
            .map(|_| self.numbered(NOS, station, [VICTIM_PORT, 53]))
            .collect();
        assert_eq!(self.send(VICTIM, &burst), burst.len(), "buffers");
        assert!(self.look().questions.contains(&station), "it is asked for");
        self.pass(Duration::from_millis(10));
        self.answer(station);
        let released: Vec<_> = (first..first + datagrams).collect();
        assert_eq!(self.look().out, released, "all, and in order");
    }

    /// Time passes; the peer says that it is still there.
    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.nos.handle_timeout(self.now);
        self.answer(PEER);
    }

    /// Nothing is lost, and when all waits are over, all buffers are back.
    fn end(mut self) {
        let ledger = self.nos.ledger();
        assert_eq!(ledger.unaccounted(), self.nos.held() as i128);
        assert_eq!(ledger.drops.of(DropReason::NoBuffer), 0);
        while let Some(at) = self.nos.poll_at() {
            self.now = at;
            self.nos.handle_timeout(at);
            self.look();
        }
        assert_eq!(self.nos.held(), 0);
        assert_eq!(self.nos.ledger().unaccounted(), 0);
        drop(self.nos);
        drop(self.relay);
        let frames: Vec<_> = std::iter::from_fn(|| self.pool.alloc()).collect();
        assert_eq!(frames.len(), BUFFERS);
    }
}

fn number(octets: &[u8]) -> Option<u32> {
    let (head, number) = octets.split_last_chunk::<4>()?;
    head.ends_with(b"victim")
        .then_some(u32::from_be_bytes(*number))
}

fn datagram(
    from: Ipv4Addr,
    to: Ipv4Addr,
    [source, destination]: [u16; 2],
    payload: &[u8],
) -> Vec<u8> {
    let mut udp = Vec::new();
    udp.extend(source.to_be_bytes());
    udp.extend(destination.to_be_bytes());
    udp.extend((8 + payload.len() as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    ipv4(from, to, 0, 0, &udp)
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, id: u16, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x45, 0];
    ip.extend((20 + payload.len() as u16).to_be_bytes());
    ip.extend(id.to_be_bytes());
    ip.extend(fragment.to_be_bytes());
    ip.extend([64, UDP, 0, 0]);
    ip.extend(from.octets());
    ip.extend(to.octets());
    let sum = Sum::ZERO.plus(&ip).checksum();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut octets = [NOS_MAC.0, PEER_MAC.0].concat();
    octets.extend([8, 0]);
    octets.extend(ip);
    octets.extend(payload);
    octets
}

/// A fragment without which its datagram is never complete: the first, or one in the middle.
fn stray(from: Ipv4Addr, id: u16, first: bool) -> Vec<u8> {
    let mut payload = vec![7; 64];
    // From a port of B's to the echo service.
    payload[..8].copy_from_slice(&[0x75, 0x30, 0, 7, 1, 0, 0, 0]);
    let place = if first { 0 } else { 8 };
    ipv4(from, NOS, id, MORE_FRAGMENTS | place, &payload)
}

/// 64 datagrams to each of 16 addresses at which nobody is.
fn recipe(world: &mut World, round: u16) {
    for n in 0..16 {
        let [a, b] = (round * 16 + n).to_be_bytes();
        let unused = Ipv4Addr::new(203, 0, 128 + a, b);
        let flood: Vec<_> = (0..64)
            .map(|_| datagram(NOS, unused, [30_000, 53], &[0; 32]))
            .collect();
        world.send(B, &flood);
        world.talk();
    }
}

#[test]
fn packets_for_unused_addresses_starve_nobody() {
    let mut world = World::new();
    for _ in 0..30 {
        recipe(&mut world, 0);
        world.pass(ROUND);
        world.look();
        world.talk();
    }
    world.meet(NEWCOMER, 64);
    assert!(world.nos.held() <= BUFFERS / 8);
    assert!(world.nos.ledger().drops.total() > 10_000);
    world.end();
}

#[test]
fn a_scan_starves_nobody() {
    let mut world = World::new();
    for round in 0..300 {
        recipe(&mut world, round);
        world.pass(Duration::from_millis(20));
        world.look();
    }
    world.meet(NEWCOMER, 64);
    world.end();
}

#[test]
fn fragments_without_the_rest_starve_nobody() {
    let mut world = World::new();
    #[cfg(feature = "stack")]
    {
        let config = ServiceConfig {
            ping: true,
            services: vec![Service::Echo],
            ..ServiceConfig::default()
        };
        world.nos.set_services(VrfId::DEFAULT, &config).unwrap();
    }
    for round in 0..20_u16 {
        for first in [true, false] {
            for n in 0..16_u16 {
                let id = |m: u16| round * 1024 + 64 * n + m;
                let sources = (0..64_u8).map(|m| Ipv4Addr::new(198, 51, n as u8, m));
                let flood: Vec<_> = sources
                    .enumerate()
                    .map(|(m, source)| stray(source, id(m as u16), first))
                    .collect();
                world.receive(&flood);
                world.talk();
                let flood: Vec<_> = (0..64).map(|m| stray(NOS, id(m), first)).collect();
                world.send(B, &flood);
                world.talk();
            }
        }
        recipe(&mut world, 0);
        world.pass(ROUND);
        world.look();
    }
    // The victim's own fragments find room: the later one comes first.
    let payload = [b"victim".as_slice(), &[0, 0, 0, 9]].concat();
    let mut udp = [7; 24].to_vec();
    udp[..2].copy_from_slice(&53_u16.to_be_bytes());
    udp[2..4].copy_from_slice(&VICTIM_PORT.to_be_bytes());
    udp[4..8].copy_from_slice(&[0, 24 + payload.len() as u8, 0, 0]);
    let before = world.nos.ledger().drops;
    world.send(VICTIM, &[ipv4(NOS, NOS, 7, 3, &payload)]);
    assert_eq!(world.look().delivered, []);
    world.send(VICTIM, &[ipv4(NOS, NOS, 7, MORE_FRAGMENTS, &udp)]);
    assert_eq!(world.look().delivered, [9]);
    assert_eq!(world.nos.ledger().drops, before, "and nobody made way");
    // Beside two floods half of a third of the share is left.
    world.meet(NEWCOMER, 42);
    world.end();
}
