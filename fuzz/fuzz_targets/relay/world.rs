//! A relay and a NOS without devices, driven by a script.
//!
//! A script is a sequence of steps: an octet that says which, and its parameters. Whatever is
//! missing at the end is zero. "Side" is an octet: even numbers are containers, odd ones uplinks,
//! and the rest of it says which.
//!
//! | step | parameters | |
//! |---|---|---|
//! | 0 attach | number, flavour | registers a container's addresses and ports |
//! | 1 update | number, flavour | asks for others |
//! | 2 detach | number | |
//! | 3 uplink | number, flavour | adds an uplink, or changes its addresses |
//! | 4 no uplink | number | |
//! | 5 routes | flavour | |
//! | 6 services | flavour | |
//! | 7 raw frame | side, flags, virtio-net header (10) if bit 1, length (2), octets | bit 0: right checksums |
//! | 8 crafted frame | side, flags, draft (12), then (place (2), value) each for bits 4-5 | as above |
//! | 9 reflect | side | the last frame that went there comes back as an answer |
//! | 10 quote | side, draft (12) | an ICMP error about it |
//! | 11 resolve | | what was asked by ARP and Neighbor Discovery is answered |
//! | 12 time | milliseconds (2), factor | |
//! | 13 sluggish | frames | devices take only so many of each burst, and drop the rest if odd |
//! | 14 capabilities | side, bits | |
//! | 15 sleep | | |

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nos_relay::data::engine::Engine;
use nos_relay::data::relay::{AttachmentConfig, Relay};
use nos_shim::arp::{Arp, Operation};
use nos_shim::channel::pair;
use nos_shim::drop::DropReason;
use nos_shim::fib::{Action, NextHop, NextHops, Route, RouteChange, RouteKey, Source};
use nos_shim::frame::{BATCH, Burst, ETHERNET_HEADER, Frame, FramePool, Offload};
use nos_shim::ident::{AttachmentId, Interface, MacAddr, UplinkId, VrfId};
use nos_shim::ndp::{Envelope, Ndp};
use nos_shim::offload::Capabilities;
use nos_shim::packet::Packet;
use nos_shim::ports::{Claim, ClaimKind, Policy, PortRange, Transport};
use nos_shim::services::{Service, ServiceConfig};
use nos_shim::shim::{LinkState, Shim, ShimConfig, UplinkConfig};
use nos_shim::time::Instant;

use super::frames::{self, Draft};

/// Buffers of the pool.
const BUFFERS: usize = 256;
/// Octets of the longest frame.
const ROOM: usize = 9000;
/// Bursts in each ring: few, so that they overflow.
const RING: usize = 4;

const CONTAINERS: u8 = 4;
const UPLINKS: u8 = 2;
/// By uplink.
const MTU: [usize; 2] = [1500, 1280];

/// What is left of a script.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn octet(&mut self) -> u8 {
        self.octets(1).first().copied().unwrap_or(0)
    }

    fn number(&mut self) -> u16 {
        u16::from_be_bytes([self.octet(), self.octet()])
    }

    fn octets(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.octets(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    fn container(&mut self) -> AttachmentId {
        AttachmentId(u32::from(self.octet() % CONTAINERS))
    }

    fn uplink(&mut self) -> UplinkId {
        UplinkId(u32::from(self.octet() % UPLINKS))
    }

    fn side(&mut self) -> Interface {
        let octet = self.octet();
        if octet.is_multiple_of(2) {
            // One more than there can be.
            Interface::Attachment(AttachmentId(u32::from(octet / 2 % (CONTAINERS + 1))))
        } else {
            Interface::Uplink(UplinkId(u32::from(octet / 2 % (UPLINKS + 1))))
        }
    }
}

/// Relay and NOS, and what their devices and the network know.
pub struct World {
    engine: Engine,
    pool: FramePool,
    now: Instant,
    /// Static routes that the NOS was told of.
    routes: Vec<RouteKey>,
    capabilities: BTreeMap<Interface, Capabilities>,
    /// The last frame that went to each interface.
    last: BTreeMap<Interface, Vec<u8>>,
    /// Questions of ARP and Neighbor Discovery that were not answered yet.
    asked: Vec<(Interface, Vec<u8>)>,
    /// How many frames of a burst devices take, and whether they drop the rest.
    takes: (usize, bool),
    sent: Sent,
}

/// Frames that left.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// To containers.
    pub to_containers: usize,
    /// To uplinks.
    pub to_uplinks: usize,
}

/// Runs a script to its end, with everything checked on the way.
pub fn run(script: &[u8]) -> Sent {
    let mut world = World::new();
    let mut script = Script(script);
    while !script.0.is_empty() {
        world.step(&mut script);
        world.advance();
        world.check_accounts();
    }
    world.end()
}

impl World {
    fn new() -> Self {
        let pool = FramePool::new(BUFFERS, ROOM);
        let (relay, nos) = pair(RING);
        let relay = Relay::new(relay, pool.clone());
        let nos = Shim::new(
            nos,
            pool.clone(),
            ShimConfig {
                seed: 1,
                ..ShimConfig::default()
            },
        );
        Self {
            engine: Engine::single(relay, nos),
            pool,
            now: Instant::ZERO,
            routes: Vec::new(),
            capabilities: BTreeMap::new(),
            last: BTreeMap::new(),
            asked: Vec::new(),
            takes: (BATCH, false),
            sent: Sent::default(),
        }
    }

    fn relay(&mut self) -> &mut Relay {
        self.engine.relay().expect("a single engine has it")
    }

    fn nos(&mut self) -> &mut Shim {
        self.engine.nos().expect("a single engine has it")
    }

    fn replace_routes(&mut self, wanted: Vec<Route>) {
        let keys: Vec<RouteKey> = wanted
            .iter()
            .map(|route| (route.vrf, route.prefix, route.source))
            .collect();
        let gone = self.routes.iter().filter(|key| !keys.contains(key));
        let gone = gone.copied().map(RouteChange::Remove);
        let changes = wanted.into_iter().map(RouteChange::Set);
        let changes = changes.chain(gone).collect();
        self.nos().change_routes(changes).expect("few routes");
        self.routes = keys;
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.octet() % 16 {
            0 => self.attach(script.container(), script.octet()),
            1 => {
                let config = attachment(script.container(), script.octet());
                // Of one that is not there.
                let _ = self.relay().update(config);
            }
            2 => {
                let id = script.container();
                let _ = self.relay().detach(id);
                self.capabilities.remove(&Interface::Attachment(id));
            }
            3 => self.place_uplink(script.uplink(), script.octet()),
            4 => {
                let id = script.uplink();
                self.nos().remove_uplink(id);
                self.capabilities.remove(&Interface::Uplink(id));
            }
            5 => {
                let routes = routes(script.octet());
                self.replace_routes(routes);
            }
            6 => {
                let config = services(script.octet());
                // A container may have the port.
                let _ = self.nos().set_services(VrfId::DEFAULT, &config);
            }
            7 => self.raw(script),
            8 => self.crafted(script),
            9 => self.reflect(script.side()),
            10 => self.quote(script),
            11 => self.resolve(),
            12 => {
                let millis = u64::from(script.number()) * u64::from(script.octet().max(1));
                self.now = Instant::from_nanos(self.now.as_nanos() + millis * 1_000_000);
            }
            13 => {
                let octet = script.octet();
                self.takes = (usize::from(octet / 2), octet % 2 == 1);
            }
            14 => {
                let (of, bits) = (script.side(), script.octet());
                if self.is_known(of) {
                    let capabilities = Capabilities::from_bits_truncate(bits);
                    self.engine.set_capabilities(of, capabilities);
                    self.capabilities.insert(of, capabilities);
                }
            }
            _ => {
                self.engine.try_sleep();
                self.engine.awake();
            }
        }
    }

    fn is_known(&self, interface: Interface) -> bool {
        self.capabilities.contains_key(&interface)
    }

    fn attach(&mut self, id: AttachmentId, flavour: u8) {
        let config = attachment(id, flavour);
        let capabilities = Capabilities::from_bits_truncate(flavour >> 4);
        if self.relay().attach(config).is_ok() {
            let interface = Interface::Attachment(id);
            self.engine.set_capabilities(interface, capabilities);
            self.capabilities.insert(interface, capabilities);
        }
    }

    fn place_uplink(&mut self, id: UplinkId, flavour: u8) {
        let now = self.now;
        let config = uplink(id, flavour);
        self.nos().set_uplink(config, now).expect("few addresses");
        let interface = Interface::Uplink(id);
        self.capabilities
            .entry(interface)
            .or_insert(Capabilities::empty());
        let state = if flavour & 0xc0 == 0x40 {
            LinkState::Down
        } else {
            LinkState::Up
        };
        let placed = self.nos().set_link(id, state, now);
        placed.expect("few addresses");
    }

    fn raw(&mut self, script: &mut Script<'_>) {
        let (from, flags) = (script.side(), script.octet());
        let offload = offload(flags, script);
        let length = usize::from(script.number()) % (ROOM + 1);
        let octets = script.octets(length).to_vec();
        self.give(from, flags, offload, octets);
    }

    fn crafted(&mut self, script: &mut Script<'_>) {
        let (from, flags) = (script.side(), script.octet());
        let offload = offload(flags, script);
        let mut frame = draft(from, script.array()).frame();
        for _ in 0..flags >> 4 & 3 {
            let (place, value) = (usize::from(script.number()), script.octet());
            let place = place % frame.len();
            frame[place] = value;
        }
        let frame = frame[..frame.len().min(ROOM)].to_vec();
        self.give(from, flags, offload, frame);
    }

    fn reflect(&mut self, from: Interface) {
        let macs = macs(from);
        let answer = self.last.get(&from);
        let answer = answer.and_then(|last| frames::reflected(last, macs.1, macs.0));
        if let Some(answer) = answer {
            self.give(from, 0, Offload::NONE, answer);
        }
    }

    fn quote(&mut self, script: &mut Script<'_>) {
        let from = script.side();
        let draft = draft(from, script.array());
        let last = self.last.get(&from);
        if let Some(error) = last.and_then(|last| frames::error_about(last, draft)) {
            self.give(from, 0, Offload::NONE, error);
        }
    }

    fn resolve(&mut self) {
        for (asker, question) in core::mem::take(&mut self.asked) {
            if let Some(answer) = answer_to(&question) {
                self.give(asker, 0, Offload::NONE, answer);
            }
        }
    }

    /// A device receives a frame.
    fn give(&mut self, from: Interface, flags: u8, offload: Offload, octets: Vec<u8>) {
        let octets = if flags & 1 != 0 {
            frames::seal(octets)
        } else {
            octets
        };
        let Ok(mut frame) = self.pool.copy_from(&octets) else {
            return;
        };
        frame.set_offload(offload);
        let mut burst = Burst::new();
        burst.push(frame);
        let now = self.now;
        self.engine.handle_burst(from, &mut burst, now);
        assert!(burst.is_empty(), "frames were left with the device");
    }

    fn advance(&mut self) {
        self.engine.advance(self.now);
        while let Some(event) = self.engine.poll_event() {
            drop(event);
        }
        self.transmit();
        self.engine.advance(self.now);
        let now = self.now;
        let due = self.engine.poll_at().filter(|&at| at <= now);
        assert!(due.is_none(), "due at {due:?} and now is {now:?}");
    }

    /// Every device sends what it takes.
    fn transmit(&mut self) {
        let (takes, drops) = self.takes;
        for _ in 0..64 {
            let Some((to, burst)) = self.engine.poll_transmit() else {
                return;
            };
            assert!(!burst.is_empty(), "an empty burst to {to:?}");
            let count = takes.min(burst.len());
            let taken: Vec<Frame> = burst.drain(..count).collect();
            let left = !burst.is_empty();
            for frame in taken {
                self.check_sent(to, &frame);
                self.note_sent(to, &frame);
            }
            if left && drops {
                self.engine.discard_unsent(to, DropReason::DeviceError);
            } else if left {
                return;
            }
        }
    }

    fn check_sent(&self, to: Interface, frame: &Frame) {
        let Some(&capabilities) = self.capabilities.get(&to) else {
            panic!("a frame to {to:?}, which is not there");
        };
        let offload = frame.offload();
        assert!(capabilities.take(offload), "{offload:?} to {to:?}");
        let copy = FramePool::new(1, frame.len()).copy_from(frame.bytes());
        let Ok(mut copy) = copy else {
            panic!("a frame of {} octets", frame.len());
        };
        copy.set_offload(offload);
        // A router forwards what has a fragment header at fault; containers get no such packet.
        match (Packet::parse(copy).or_else(Packet::parse_up_to_fault), to) {
            (Ok(packet), Interface::Uplink(id)) => {
                let mtu = MTU[id.0 as usize];
                assert!(packet.wire_len() <= mtu, "{packet:?} is longer than {mtu}");
            }
            (Ok(packet), Interface::Attachment(_)) => {
                assert_eq!(packet.fault(), None, "{packet:?} to {to:?}");
            }
            (Err(_), _) => {
                assert!(
                    Arp::parse(frame.bytes()).is_ok(),
                    "neither IP nor ARP to {to:?}"
                );
            }
        }
    }

    fn note_sent(&mut self, to: Interface, frame: &Frame) {
        let octets = frame.bytes().to_vec();
        match to {
            Interface::Attachment(_) => self.sent.to_containers += 1,
            Interface::Uplink(_) => self.sent.to_uplinks += 1,
        }
        if answer_to(&octets).is_some() && matches!(to, Interface::Uplink(_)) {
            self.asked.push((to, octets));
            self.asked.truncate(16);
        } else {
            self.last.insert(to, octets);
        }
    }

    fn check_accounts(&mut self) {
        let (ledger, held) = (*self.relay().ledger(), self.relay().held());
        assert_eq!(ledger.unaccounted(), held as i128, "relay: {ledger:?}");
        let (ledger, held) = (*self.nos().ledger(), self.nos().held());
        assert_eq!(ledger.unaccounted(), held as i128, "NOS: {ledger:?}");
    }

    /// Lets all devices send everything, and sees whether all buffers come back.
    fn end(mut self) -> Sent {
        self.takes = (BATCH, false);
        for _ in 0..64 {
            self.advance();
            self.check_accounts();
        }
        assert_eq!(self.relay().held(), 0, "frames wait for containers");
        let Self {
            engine,
            mut pool,
            sent,
            ..
        } = self;
        drop(engine);
        let all: Vec<Frame> = std::iter::from_fn(|| pool.alloc()).collect();
        assert_eq!(all.len(), pool.capacity(), "buffers were lost");
        sent
    }
}

fn offload(flags: u8, script: &mut Script<'_>) -> Offload {
    if flags & 2 == 0 {
        return Offload::NONE;
    }
    // A header that makes no sense is refused by the device.
    Offload::from_virtio(&script.array()).unwrap_or(Offload::NONE)
}

/// Addresses of both families, the host part apart.
fn network(uplink: u32, host: u8) -> (Ipv4Addr, Ipv6Addr) {
    let net = if uplink == 0 {
        [203, 0, 113]
    } else {
        [198, 51, 100]
    };
    let v4 = Ipv4Addr::new(net[0], net[1], net[2], host);
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 1 + uplink as u16, 0, 0, 0, 0, host.into());
    (v4, v6)
}

fn attachment(id: AttachmentId, flavour: u8) -> AttachmentConfig {
    let base = 20_000 + 1000 * id.0 as u16;
    let listens = match flavour & 3 {
        0 => base..=base + 999,
        // Clashes with others.
        1 => 20_000..=base + 999,
        // Clashes with the NOS's own.
        2 => 7..=7,
        _ => base..=base,
    };
    let claim = |transport, ports: core::ops::RangeInclusive<u16>, kind| Claim {
        transport,
        range: PortRange::new(*ports.start(), *ports.end()).expect("ascending"),
        kind,
    };
    let opens = 40_000 + 1000 * id.0 as u16;
    let claims = [Transport::Tcp, Transport::Udp].into_iter().flat_map(|it| {
        let listen = claim(it, listens.clone(), ClaimKind::Listen);
        [listen, claim(it, opens..=opens + 999, ClaimKind::Ephemeral)]
    });
    let networks: &[u32] = match flavour >> 2 & 3 {
        0 => &[0],
        1 => &[1],
        2 => &[0, 1],
        _ => &[],
    };
    let addresses = networks.iter().map(|&uplink| network(uplink, 1));
    AttachmentConfig {
        id,
        name: format!("c{}", id.0).into(),
        vrf: VrfId::DEFAULT,
        mac: container_mac(id),
        link_local: None,
        relay_mac: relay_mac(id),
        addresses: addresses
            .flat_map(|(v4, v6)| [v4.into(), v6.into()])
            .collect(),
        policy: Policy::default(),
        claims: claims.collect(),
        mtu: if flavour & 0x10 == 0 { 1500 } else { 1280 },
    }
}

fn container_mac(id: AttachmentId) -> MacAddr {
    MacAddr([2, 0, 0, 0, 1, id.0 as u8])
}

fn relay_mac(id: AttachmentId) -> MacAddr {
    MacAddr([2, 0, 0, 0, 2, id.0 as u8])
}

fn nos_mac(id: UplinkId) -> MacAddr {
    MacAddr([2, 0, 0, 0, 3, id.0 as u8])
}

fn neighbor_mac(id: UplinkId) -> MacAddr {
    MacAddr([2, 0, 0, 0, 4, id.0 as u8])
}

/// Of who sends on an interface, and of who receives.
fn macs(from: Interface) -> (MacAddr, MacAddr) {
    match from {
        Interface::Attachment(id) => (container_mac(id), relay_mac(id)),
        Interface::Uplink(id) => (neighbor_mac(id), nos_mac(id)),
    }
}

fn uplink(id: UplinkId, flavour: u8) -> UplinkConfig {
    let hosts: &[u8] = match flavour & 3 {
        0 => &[1],
        1 => &[9],
        2 => &[1, 9],
        _ => &[],
    };
    let addresses = hosts.iter().flat_map(|&host| {
        let (v4, v6) = network(id.0, host);
        [(IpAddr::from(v4), 24), (IpAddr::from(v6), 64)]
    });
    UplinkConfig {
        id,
        name: format!("up{}", id.0).into(),
        vrf: VrfId::DEFAULT,
        mac: nos_mac(id),
        addresses: addresses
            .filter_map(|(address, length)| format!("{address}/{length}").parse().ok())
            .collect(),
        mtu: MTU[id.0 as usize],
        redirects: true,
    }
}

fn routes(flavour: u8) -> Vec<Route> {
    let hop = |uplink, v6| {
        let (gateway4, gateway6) = network(uplink, 2);
        NextHop {
            gateway: if v6 { gateway6.into() } else { gateway4.into() },
            uplink: UplinkId(uplink),
        }
    };
    let via = |hops: Vec<NextHop>| NextHops::new(hops).map_or(Action::Blackhole, Action::Via);
    // Default routes are slow to insert, so they are an exception here.
    let wide = if flavour & 8 == 0 {
        [("192.0.0.0/16", false), ("2001:db8::/32", true)]
    } else {
        [("0.0.0.0/0", false), ("::/0", true)]
    };
    let mut routes: Vec<_> = wide
        .into_iter()
        .map(|(prefix, v6)| {
            let action = match flavour & 3 {
                0 => via(vec![hop(0, v6)]),
                1 => via(vec![hop(0, v6), hop(1, v6)]),
                2 => Action::Unreachable,
                _ => Action::Blackhole,
            };
            (prefix, action)
        })
        .collect();
    if flavour & 4 != 0 {
        routes.push(("192.0.2.0/25", Action::Blackhole));
        routes.push(("2001:db8:9::/64", Action::Unreachable));
    }
    let route = |(prefix, action): (&str, _)| Route {
        vrf: VrfId::DEFAULT,
        prefix: prefix.parse().expect("a prefix"),
        source: Source::Static { metric: 0 },
        action,
    };
    routes.into_iter().map(route).collect()
}

fn services(flavour: u8) -> ServiceConfig {
    let all = [Service::Echo, Service::Discard];
    let chosen = all
        .into_iter()
        .zip(0..)
        .filter(|(_, bit)| flavour >> bit & 1 != 0);
    let mut services: Vec<_> = chosen.map(|(service, _)| service).collect();
    if flavour & 4 != 0 {
        services.extend(core::num::NonZeroU16::new(80).map(Service::Http));
    }
    ServiceConfig {
        ping: flavour & 8 == 0,
        services,
        from: Vec::new(),
    }
}

/// The draft that twelve octets describe, as it comes from an interface.
fn draft(from: Interface, octets: [u8; 12]) -> Draft {
    let [
        family,
        source,
        destination,
        protocol,
        kind,
        ttl,
        from_a,
        from_b,
        to_a,
        to_b,
        size,
        fragment,
    ] = octets;
    let address = |choice: u8| match choice % 8 {
        0 => network(0, 1),
        1 => network(1, 1),
        2 => network(0, 2),
        3 => network(1, 2),
        4 => (
            Ipv4Addr::new(192, 0, 2, choice),
            Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, choice.into()),
        ),
        5 => (
            Ipv4Addr::new(224, 0, 0, 1),
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
        ),
        6 => network(0, choice),
        _ => network(1, choice),
    };
    let (source, destination) = (address(source), address(destination));
    let is_v6 = family & 1 != 0;
    Draft {
        macs: macs(from),
        v4: (source.0.octets(), destination.0.octets()),
        v6: (source.1.octets(), destination.1.octets()),
        is_v6,
        ttl,
        ports: (
            u16::from_be_bytes([from_a, from_b]),
            u16::from_be_bytes([to_a, to_b]),
        ),
        protocol: match protocol % 4 {
            0 => 6,
            1 => 17,
            2 if is_v6 => 58,
            2 => 1,
            _ => protocol,
        },
        kind,
        payload: usize::from(size) * 32,
        // Offset in units of 72 octets (a UDP header and size 2), "more fragments", "don't".
        fragment: (u16::from(fragment & 0x1f) * 9) | (u16::from(fragment >> 5 & 3) << 13),
    }
}

/// What a neighbor answers to a question of ARP or Neighbor Discovery.
fn answer_to(question: &[u8]) -> Option<Vec<u8>> {
    let mut frame = FramePool::new(1, ROOM).alloc()?;
    let asker = MacAddr(question.get(6..12)?.try_into().ok()?);
    // Uplinks are told by the last octet of their MAC addresses.
    let mac = neighbor_mac(UplinkId(u32::from(asker.0[5])));
    if let Ok(arp) = Arp::parse(question) {
        if arp.operation != Operation::Request || arp.is_announcement() {
            return None;
        }
        arp.reply(mac).write(&mut frame, asker).ok()?;
        return Some(frame.bytes().to_vec());
    }
    let packet = frames::parse(question)?;
    let IpAddr::V6(source) = packet.source() else {
        return None;
    };
    let Ok(Ndp::NeighborSolicit { target, .. }) = Ndp::parse(&packet) else {
        return None;
    };
    let advert = Ndp::NeighborAdvert {
        router: false,
        solicited: true,
        overrides: true,
        target,
        target_link_layer: Some(mac),
    };
    let envelope = Envelope {
        source_mac: mac,
        destination_mac: asker,
        source: target,
        destination: source,
    };
    advert.write(&mut frame, &envelope).ok()?;
    let length = frame.len().max(ETHERNET_HEADER);
    Some(frame.bytes()[..length].to_vec())
}
