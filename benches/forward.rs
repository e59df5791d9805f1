//! The whole way of a packet in memory: relay, channel and NOS on one thread, from the burst that a
//! device has read to the burst that a device is to write.
//!
//! Frames are filled in and taken away outside the measured time, as a kernel does both; that every
//! packet comes out, and with the right MAC address, is asserted there.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark may stop where its data are wrong"
)]

mod internet;
mod support;

use std::cell::{Cell, LazyCell, RefCell};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nos_relay::data::engine::Engine;
use nos_relay::data::relay::{AttachmentConfig, Relay};
use nos_relay::huge_pages::HugePages;
use nos_shim::arp::Arp;
use nos_shim::channel::pair;
use nos_shim::checksum::Sum;
use nos_shim::fib::{self, Action, NextHop, Route, RouteChange};
use nos_shim::frame::{
    BATCH, Burst, Checksum, Ecn, FramePool, GsoKind, MAX_FRAME, Offload, Segmentation,
};
use nos_shim::ident::{AttachmentId, Interface, MacAddr, UplinkId, VrfId};
use nos_shim::ndp::{Envelope, Ndp, solicited_node};
use nos_shim::offload::Capabilities;
use nos_shim::ports::{AddressMode, Claim, ClaimKind, Policy, PortRange, Transport};
use nos_shim::shim::{LinkState, Shim, ShimConfig, UplinkConfig};
use nos_shim::time::Instant;
use support::counted::{counted, print_elements, repeats};
use support::cycles::reference_cycles;
use support::{is_smoke_test, size};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: HugePages = HugePages;

const NOW: Instant = Instant::from_nanos(1_000_000_000);
const ATTACHMENT: Interface = Interface::Attachment(AttachmentId(0));
const UPLINK: Interface = Interface::Uplink(UplinkId(0));
const CONTAINER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0c]);
const RELAY: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xff]);
const NOS: MacAddr = MacAddr([2, 0, 0, 0, 1, 1]);
const GATEWAY: MacAddr = MacAddr([2, 0, 0, 0, 1, 2]);
const OWN_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const OWN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
const FAR_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const FAR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9);
/// The second uplink, which packets from the first one pass to.
const BEYOND: UplinkId = UplinkId(1);
const BEYOND_NOS: MacAddr = MacAddr([2, 0, 0, 0, 2, 1]);
const BEYOND_GATEWAY: MacAddr = MacAddr([2, 0, 0, 0, 2, 2]);
const BEYOND_OWN_V4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const BEYOND_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const BEYOND_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
/// The first container's first port, and the far host's.
const PORT: u16 = 30000;
const FAR_PORT: u16 = 53;
const TABLE_V4: usize = 1_000_000;
const TABLE_V6: usize = 200_000;
/// Far hosts, when there are many.
const HOSTS: usize = 1 << 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Outbound,
    Inbound,
    Transit,
}

use Direction::{Inbound, Outbound, Transit};

/// What a frame looks like.
struct Template {
    octets: Vec<u8>,
    offload: Offload,
}

/// What comes in at one place, in turn.
struct Source {
    from: Interface,
    templates: Vec<Template>,
    /// Far hosts, in turn, in place of the templates'. A whole template for each would leave little
    /// of the cache for what is measured.
    hosts: Vec<IpAddr>,
    next: usize,
}

impl Source {
    fn new(from: Interface, templates: Vec<Template>) -> Self {
        Self {
            from,
            templates,
            hosts: Vec::new(),
            next: 0,
        }
    }

    fn burst(&mut self, pool: &mut FramePool, count: usize) -> Burst {
        let mut burst = Burst::new();
        for _ in 0..count {
            let template = &self.templates[self.next % self.templates.len()];
            let mut frame = pool.copy_from(&template.octets).unwrap();
            frame.set_offload(template.offload);
            if !self.hosts.is_empty() {
                let host = self.hosts[self.next % self.hosts.len()];
                put_far(frame.bytes_mut(), self.from == UPLINK, host);
            }
            self.next += 1;
            burst.push(frame);
        }
        burst
    }
}

/// Writes the far host's address, and makes the IPv4 header whole again. The UDP checksum stays
/// wrong: it is the receiver's affair.
fn put_far(frame: &mut [u8], inbound: bool, host: IpAddr) {
    let ip = &mut frame[14..];
    match host {
        IpAddr::V4(host) => {
            let at = if inbound { 12 } else { 16 };
            ip[at..at + 4].copy_from_slice(&host.octets());
            ip[10..12].fill(0);
            let checksum = Sum::ZERO.plus(&ip[..20]).checksum();
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        IpAddr::V6(host) => {
            let at = if inbound { 8 } else { 24 };
            ip[at..at + 16].copy_from_slice(&host.octets());
        }
    }
}

/// What there is besides routes.
#[derive(Clone, Copy)]
struct Size {
    attachments: u32,
    /// Of each attachment, on each protocol.
    ranges: u16,
    /// Ports of each.
    width: u16,
}

impl Size {
    const ONE: Self = Self {
        attachments: 1,
        ranges: 1,
        width: 1000,
    };

    /// The first port of a range. Ranges do not touch, or they would be one.
    fn port(self, attachment: u32, range: u16) -> u16 {
        let attachment = u16::try_from(attachment).unwrap();
        PORT + (attachment * self.ranges + range) * (self.width + 1)
    }

    fn claims(self, attachment: u32) -> Vec<Claim> {
        let ranges = 0..self.ranges;
        ranges
            .flat_map(|range| {
                let first = self.port(attachment, range);
                [Transport::Tcp, Transport::Udp].map(|transport| Claim {
                    transport,
                    range: PortRange::new(first, first + self.width - 1).unwrap(),
                    kind: ClaimKind::Listen,
                })
            })
            .collect()
    }

    /// Packets of all attachments, from one of its ports or to one, in a random order. A burst is of
    /// one attachment, or of as many as it has packets.
    fn sources(self, direction: Direction, mixed: bool) -> Vec<Source> {
        let mut random = fastrand::Rng::with_seed(9);
        let mut order: Vec<_> = (0..self.attachments.max(1024)).collect();
        random.shuffle(&mut order);
        let packets = order.into_iter().map(|n| {
            let attachment = n % self.attachments;
            let port = self.port(attachment, random.u16(0..self.ranges));
            let template = datagram(direction, port, OWN_V4.into(), FAR_V4.into(), 60);
            (attachment, template)
        });
        if mixed {
            return vec![Source::new(UPLINK, packets.map(|(_, it)| it).collect())];
        }
        packets
            .map(|(attachment, template)| {
                let from = match direction {
                    Outbound => Interface::Attachment(AttachmentId(attachment)),
                    Inbound | Transit => UPLINK,
                };
                Source::new(from, vec![template])
            })
            .collect()
    }
}

/// A UDP packet in a frame of `len` octets, without the frame check sequence.
fn datagram(direction: Direction, port: u16, near: IpAddr, far: IpAddr, len: usize) -> Template {
    let (link, ends, ports) = match direction {
        Outbound => ((CONTAINER, RELAY), (near, far), (port, FAR_PORT)),
        Inbound | Transit => ((GATEWAY, NOS), (far, near), (FAR_PORT, port)),
    };
    let ethernet = PacketBuilder::ethernet2(link.0.0, link.1.0);
    let ip = match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => unreachable!("both are of one family"),
    };
    let mut octets = Vec::new();
    let udp = ip.udp(ports.0, ports.1);
    let payload = vec![0x5a; len.saturating_sub(udp.size(0))];
    udp.write(&mut octets, &payload).unwrap();
    Template {
        octets,
        offload: Offload::NONE,
    }
}

/// A TCP super-frame as a kernel hands it out: its checksum is to be completed.
fn super_frame(direction: Direction) -> Template {
    const MSS: NonZeroU16 = NonZeroU16::new(1460).unwrap();
    let (link, ends, ports) = match direction {
        Outbound => ((CONTAINER, RELAY), (OWN_V4, FAR_V4), (PORT, FAR_PORT)),
        Inbound | Transit => ((GATEWAY, NOS), (FAR_V4, OWN_V4), (FAR_PORT, PORT)),
    };
    let mut octets = Vec::new();
    PacketBuilder::ethernet2(link.0.0, link.1.0)
        .ipv4(ends.0.octets(), ends.1.octets(), 64)
        .tcp(ports.0, ports.1, 1, 1000)
        .ack(1)
        .write(&mut octets, &vec![0x5a; 65_535 - 40])
        .unwrap();
    let offload = Offload {
        checksum: Checksum::Partial {
            start: 34,
            offset: 16,
        },
        segmentation: Some(Segmentation {
            kind: GsoKind::TcpV4,
            ecn: Ecn::Unmarked,
            size: MSS,
            tunnel: None,
        }),
    };
    Template { octets, offload }
}

/// All from one place.
fn from_one(direction: Direction, templates: Vec<Template>) -> Vec<Source> {
    let from = match direction {
        Outbound => ATTACHMENT,
        Inbound | Transit => UPLINK,
    };
    vec![Source::new(from, templates)]
}

/// Relay and NOS, joined, with containers and a gateway that is known.
struct Path {
    engine: Engine,
    pool: FramePool,
    taken: Burst,
}

fn route(prefix: impl Into<IpNet>, gateway: impl Into<IpAddr>) -> Route {
    Route {
        vrf: VrfId::DEFAULT,
        prefix: prefix.into(),
        source: fib::Source::Static { metric: 0 },
        action: Action::Via(
            NextHop {
                gateway: gateway.into(),
                uplink: UplinkId(0),
            }
            .into(),
        ),
    }
}

impl Path {
    fn new(routes: Vec<Route>, size: Size) -> Self {
        let pool = FramePool::new(2048, MAX_FRAME);
        let (relay_end, nos_end) = pair(64);
        let mut relay = Relay::new(relay_end, pool.clone());
        let mut nos = Shim::new(
            nos_end,
            pool.clone(),
            ShimConfig {
                seed: 1,
                ..ShimConfig::default()
            },
        );
        let uplink = UplinkConfig {
            id: UplinkId(0),
            name: "up0".into(),
            vrf: VrfId::DEFAULT,
            mac: NOS,
            addresses: vec![
                "203.0.113.1/24".parse().unwrap(),
                "2001:db8:1::1/64".parse().unwrap(),
            ],
            mtu: 1500,
            redirects: true,
        };
        nos.set_uplink(uplink, NOW).unwrap();
        nos.set_link(UplinkId(0), LinkState::Up, NOW).unwrap();
        nos.set_capabilities(UplinkId(0), Capabilities::all());
        nos.change_routes(routes.into_iter().map(RouteChange::Set).collect())
            .unwrap();
        for id in 0..size.attachments {
            let attachment = AttachmentConfig {
                id: AttachmentId(id),
                name: format!("c{id}").into(),
                vrf: VrfId::DEFAULT,
                network: nos_shim::ident::NetworkId::DEFAULT,
                mac: CONTAINER,
                link_local: None,
                relay_mac: RELAY,
                mode: AddressMode::Shared,
                addresses: vec![OWN_V4.into(), OWN_V6.into()],
                policy: Policy::default(),
                claims: size.claims(id),
                mtu: 1500,
                segment: None,
            };
            relay.attach(attachment).unwrap();
            let id = AttachmentId(id);
            relay.set_capabilities(id, Capabilities::all()).unwrap();
            nos.poll_channel(NOW, 1);
        }
        let engine = Engine::single(relay, nos);
        let taken = Burst::new();
        let mut path = Self {
            engine,
            pool,
            taken,
        };
        path.engine.advance(NOW);
        path.meet_gateway(UPLINK);
        path.take();
        path
    }

    /// The same in each of so many VRFs.
    fn with_vrfs(vrfs: u16) -> Self {
        let mut path = Self::new(default_routes(), Size::ONE);
        for number in 1..vrfs {
            let (vrf, id) = (VrfId(number), UplinkId(number.into()));
            let nos = path.engine.nos().unwrap();
            let uplink = UplinkConfig {
                id,
                name: format!("up{number}").into(),
                vrf,
                mac: NOS,
                addresses: vec![
                    "203.0.113.1/24".parse().unwrap(),
                    "2001:db8:1::1/64".parse().unwrap(),
                ],
                mtu: 1500,
                redirects: true,
            };
            nos.set_uplink(uplink, NOW).unwrap();
            nos.set_link(id, LinkState::Up, NOW).unwrap();
            nos.set_capabilities(id, Capabilities::all());
            let routes = [
                (IpNet::V4(Ipv4Net::default()), GATEWAY_V4.into()),
                (IpNet::V6(Ipv6Net::default()), GATEWAY_V6.into()),
            ];
            let routes = routes.map(|(prefix, gateway)| {
                let hop = NextHop {
                    gateway,
                    uplink: id,
                };
                RouteChange::Set(Route {
                    vrf,
                    prefix,
                    source: fib::Source::Static { metric: 0 },
                    action: Action::Via(hop.into()),
                })
            });
            nos.change_routes(routes.into()).unwrap();
            let attachment = AttachmentId(number.into());
            let config = AttachmentConfig {
                id: attachment,
                name: format!("c{number}").into(),
                vrf,
                network: nos_shim::ident::NetworkId::DEFAULT,
                mac: CONTAINER,
                relay_mac: RELAY,
                mode: AddressMode::Shared,
                addresses: vec![OWN_V4.into(), OWN_V6.into()],
                policy: Policy::default(),
                claims: Size::ONE.claims(0),
                link_local: None,
                mtu: 1500,
                segment: None,
            };
            let relay = path.engine.relay().unwrap();
            relay.attach(config).unwrap();
            relay
                .set_capabilities(attachment, Capabilities::all())
                .unwrap();
            path.engine.advance(NOW);
            path.meet_gateway(Interface::Uplink(id));
            path.take();
        }
        path
    }

    /// The gateway asks for the NOS, and so becomes known to it.
    fn meet_gateway(&mut self, uplink: Interface) {
        let mut arp = self.pool.alloc().unwrap();
        Arp::request(GATEWAY, GATEWAY_V4, OWN_V4)
            .write(&mut arp, MacAddr::BROADCAST)
            .unwrap();
        let mut ndp = self.pool.alloc().unwrap();
        Ndp::NeighborSolicit {
            target: OWN_V6,
            source_link_layer: Some(GATEWAY),
        }
        .write(
            &mut ndp,
            &Envelope::to_group(GATEWAY, GATEWAY_V6, solicited_node(OWN_V6)),
        )
        .unwrap();
        let mut burst = [arp, ndp].into_iter().collect();
        self.engine.handle_burst(uplink, &mut burst, NOW);
        self.engine.advance(NOW);
    }

    /// One with a second uplink, to whose gateway packets of the first uplink pass on.
    fn with_transit() -> Self {
        let mut routes = default_routes();
        let mut beyond = route(Ipv4Net::from(BEYOND_V4), BEYOND_GATEWAY_V4);
        beyond.action = Action::Via(
            NextHop {
                gateway: BEYOND_GATEWAY_V4.into(),
                uplink: BEYOND,
            }
            .into(),
        );
        routes.push(beyond);
        let mut path = Self::new(Vec::new(), Size::ONE);
        let nos = path.engine.nos().unwrap();
        let uplink = UplinkConfig {
            id: BEYOND,
            name: "up1".into(),
            vrf: VrfId::DEFAULT,
            mac: BEYOND_NOS,
            addresses: vec![IpNet::new(BEYOND_OWN_V4.into(), 24).unwrap()],
            mtu: 1500,
            redirects: true,
        };
        nos.set_uplink(uplink, NOW).unwrap();
        nos.set_link(BEYOND, LinkState::Up, NOW).unwrap();
        nos.set_capabilities(BEYOND, Capabilities::all());
        nos.change_routes(routes.into_iter().map(RouteChange::Set).collect())
            .unwrap();
        let mut arp = path.pool.alloc().unwrap();
        Arp::request(BEYOND_GATEWAY, BEYOND_GATEWAY_V4, BEYOND_OWN_V4)
            .write(&mut arp, MacAddr::BROADCAST)
            .unwrap();
        let mut burst = [arp].into_iter().collect();
        let from = Interface::Uplink(BEYOND);
        path.engine.handle_burst(from, &mut burst, NOW);
        path.engine.advance(NOW);
        path.take();
        path
    }

    /// What came out.
    fn take(&mut self) -> usize {
        let mut count = 0;
        while let Some((_, burst)) = self.engine.poll_transmit() {
            count += burst.len();
            self.pool.free_all(burst);
        }
        count
    }

    /// Moves one burst through, into `taken`, where a device would send it from.
    #[inline(never)]
    fn forward(&mut self, from: Interface, burst: &mut Burst) {
        self.engine.handle_burst(from, burst, NOW);
        self.engine.advance(NOW);
        while let Some((_, burst)) = self.engine.poll_transmit() {
            self.taken.extend(burst.drain(..));
        }
    }

    fn check(&mut self, direction: Direction, count: usize) {
        let link = match direction {
            Outbound => [GATEWAY.0, NOS.0].concat(),
            Inbound => [CONTAINER.0, RELAY.0].concat(),
            Transit => [BEYOND_GATEWAY.0, BEYOND_NOS.0].concat(),
        };
        assert_eq!(self.taken.len(), count);
        for frame in self.taken.drain(..) {
            assert_eq!(frame.bytes()[..12], link);
            self.pool.free(frame);
        }
    }

    /// What `packets` take in bursts of `count`.
    fn run(
        &mut self,
        direction: Direction,
        sources: &mut [Source],
        count: usize,
        packets: u64,
    ) -> Run {
        let mut time = Duration::ZERO;
        let mut bursts = Vec::new();
        let mut done = 0;
        let places = sources.len();
        while done < packets {
            let source = &mut sources[bursts.len() % places];
            let from = source.from;
            let mut burst = source.burst(&mut self.pool, count);
            let (begin, first) = (std::time::Instant::now(), reference_cycles());
            counted(|| self.forward(from, &mut burst));
            bursts.push(reference_cycles() - first);
            time += begin.elapsed();
            self.check(direction, count);
            done += count as u64;
        }
        let middle = bursts.len() / 2;
        let (_, &mut median, _) = bursts.select_nth_unstable(middle);
        Run {
            time: time.mul_f64(packets as f64 / done as f64),
            cycles: median / count as u64,
        }
    }
}

/// What a run took.
struct Run {
    time: Duration,
    /// Reference cycles for each packet of the median burst: a busy machine does not change it much.
    cycles: u64,
}

/// One run each way.
fn bench(
    c: &mut Criterion,
    name: &str,
    path: &LazyCell<RefCell<Path>, impl FnOnce() -> RefCell<Path>>,
    count: usize,
    sources: impl Fn(Direction) -> Vec<Source>,
) {
    for direction in [Outbound, Inbound] {
        bench_one(c, name, path, count, direction, || sources(direction));
    }
}

/// One run. What is needed for it is made only if it is asked for.
fn bench_one(
    c: &mut Criterion,
    name: &str,
    path: &LazyCell<RefCell<Path>, impl FnOnce() -> RefCell<Path>>,
    count: usize,
    direction: Direction,
    sources: impl Fn() -> Vec<Source>,
) {
    let way = match direction {
        Outbound => "outbound",
        Inbound => "inbound",
        Transit => "transit",
    };
    let sources = LazyCell::new(|| RefCell::new(sources()));
    let cycles = Cell::new(0);
    let mut group = c.benchmark_group(format!("forward/{way}"));
    group.throughput(Throughput::Elements(1));
    group.bench_function(name, |b| {
        b.iter_custom(|packets| {
            let mut sources = sources.borrow_mut();
            let mut path = path.borrow_mut();
            let packets = repeats(packets);
            print_elements(packets.next_multiple_of(count as u64));
            let run = path.run(direction, &mut sources, count, packets);
            cycles.set(run.cycles);
            run.time
        });
    });
    group.finish();
    if cycles.get() > 0 && !is_smoke_test() {
        println!(
            "{:>50} reference cycles a packet, of the median burst",
            cycles.get()
        );
    }
}

/// Packets of one kind.
fn one(direction: Direction, near: IpAddr, far: IpAddr, len: usize) -> Vec<Source> {
    from_one(direction, vec![datagram(direction, PORT, near, far, len)])
}

fn default_routes() -> Vec<Route> {
    vec![
        route(IpNet::V4(Ipv4Net::default()), GATEWAY_V4),
        route(IpNet::V6(Ipv6Net::default()), GATEWAY_V6),
    ]
}

fn forward(c: &mut Criterion) {
    let path = &LazyCell::new(|| RefCell::new(Path::new(default_routes(), Size::ONE)));
    let v4 = |direction, len| one(direction, OWN_V4.into(), FAR_V4.into(), len);
    let v6 = |direction, len| one(direction, OWN_V6.into(), FAR_V6.into(), len);
    bench(c, "ipv4/64", path, BATCH, |direction| v4(direction, 60));
    bench(c, "ipv6/64", path, BATCH, |direction| v6(direction, 62));
    bench(c, "ipv4/1500", path, BATCH, |direction| v4(direction, 1514));
    bench(c, "ipv6/1500", path, BATCH, |direction| v6(direction, 1514));
    bench(c, "ipv4/64KiB", path, 1, |direction| {
        from_one(direction, vec![super_frame(direction)])
    });
    bench(c, "ipv4/64 singly", path, 1, |direction| v4(direction, 60));
    let path = &LazyCell::new(|| RefCell::new(Path::with_transit()));
    bench_one(c, "ipv4/64", path, BATCH, Transit, || {
        one(Transit, BEYOND_V4.into(), FAR_V4.into(), 60)
    });
}

/// The far hosts are random addresses, and there are as many routes as the Internet has.
fn internet(c: &mut Criterion) {
    let prefixes = &LazyCell::new(|| {
        let rng = &mut fastrand::Rng::with_seed(7);
        let v4 = internet::prefixes_v4(rng, size(TABLE_V4, 1000));
        (v4, internet::prefixes_v6(rng, size(TABLE_V6, 1000)))
    });
    let path = &LazyCell::new(|| {
        let mut routes = default_routes();
        routes.extend(prefixes.0.iter().map(|&net| route(net, GATEWAY_V4)));
        routes.extend(prefixes.1.iter().map(|&net| route(net, GATEWAY_V6)));
        RefCell::new(Path::new(routes, Size::ONE))
    });
    bench(c, "internet/ipv4/64", path, BATCH, |direction| {
        let rng = &mut fastrand::Rng::with_seed(8);
        let mut host = || random_host(rng).into();
        let mut sources = one(direction, OWN_V4.into(), FAR_V4.into(), 60);
        sources[0].hosts = (0..size(HOSTS, 64)).map(|_| host()).collect();
        sources
    });
    bench(c, "internet/ipv6/64", path, BATCH, |direction| {
        let rng = &mut fastrand::Rng::with_seed(8);
        let mut host = || {
            let net = prefixes.1[rng.usize(0..prefixes.1.len())];
            internet::within(rng, net).into()
        };
        let mut sources = one(direction, OWN_V6.into(), FAR_V6.into(), 62);
        sources[0].hosts = (0..size(HOSTS, 64)).map(|_| host()).collect();
        sources
    });
}

fn random_host(rng: &mut fastrand::Rng) -> Ipv4Addr {
    loop {
        let address = internet::unicast_v4(rng);
        if !matches!(address.octets(), [127, ..] | [203, 0, 113, _]) {
            return address;
        }
    }
}

/// What a packet costs when there is more of everything.
fn growth(c: &mut Criterion) {
    for attachments in [1, 10, 100, 1000] {
        let size = Size {
            attachments,
            ranges: 1,
            width: 20,
        };
        let path = &LazyCell::new(|| RefCell::new(Path::new(default_routes(), size)));
        let name = format!("growth/{attachments} attachments");
        bench(c, &name, path, BATCH, |direction| {
            size.sources(direction, false)
        });
        bench_one(c, &format!("{name} mixed"), path, BATCH, Inbound, || {
            size.sources(Inbound, true)
        });
    }
    for vrfs in [1, 2, 100] {
        let path = &LazyCell::new(|| RefCell::new(Path::with_vrfs(vrfs)));
        let name = format!("growth/{vrfs} VRFs");
        bench(c, &name, path, BATCH, |direction| {
            let sources = (0..u32::from(vrfs)).map(|number| {
                let from = match direction {
                    Outbound => Interface::Attachment(AttachmentId(number)),
                    Inbound | Transit => Interface::Uplink(UplinkId(number)),
                };
                let template = datagram(direction, PORT, OWN_V4.into(), FAR_V4.into(), 60);
                Source::new(from, vec![template])
            });
            sources.collect()
        });
    }
    for ranges in [1, 100, 10_000] {
        let size = Size {
            attachments: 1,
            ranges,
            width: 1,
        };
        let path = &LazyCell::new(|| RefCell::new(Path::new(default_routes(), size)));
        let name = format!("growth/{ranges} ranges");
        bench(c, &name, path, BATCH, |direction| {
            size.sources(direction, direction == Inbound)
        });
    }
}

criterion_group!(benches, forward, internet, growth);
criterion_main!(benches);
