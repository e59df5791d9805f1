//! What the data path asks of the allocator: nothing, once it is warm; and how much memory the
//! tables take.
//!
//! Relay and NOS are driven as the event loop drives them with one data thread, but without devices:
//! frames are put in and taken out by hand. Counts are those of the test's own thread, so tests may
//! run beside each other.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a test ends where its network cannot be built"
)]

#[path = "../benches/support/mod.rs"]
mod support;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;

use nos_relay::control::config::{
    Amount, Config, Elastic, MAX_POOL, Name, PoolDefinition, PoolKind, RelayConfig, VrfName,
};
use nos_relay::control::pools::{Pools, Space, Wanted};
use nos_relay::data::device::{CaptureOptions, CaptureWriter, Captured, FrameDevice, memory_pair};
use nos_relay::data::engine::Engine;
use nos_relay::data::relay::{AttachmentConfig, Relay, RelayEvent};
use nos_shim::arp::{Arp, Operation};
use nos_shim::channel::pair;
use nos_shim::checksum::Sum;
use nos_shim::drop::{DropReason, Ledger};
use nos_shim::fib::{Action, NextHop, NextHops, Route, RouteChange, Source};
use nos_shim::frame::{Burst, ETHERNET_HEADER, Frame, FramePool, MAX_FRAME};
use nos_shim::ident::{AttachmentId, Interface, MacAddr, UplinkId, VrfId};
use nos_shim::ndp::{Envelope, Ndp, is_ndp};
use nos_shim::offload::Capabilities;
use nos_shim::packet::{Packet, protocol};
use nos_shim::ports::{AddressMode, Claim, ClaimKind, Outside, Policy, PortRange, Transport};
use nos_shim::services::{Service, ServiceConfig};
use nos_shim::shim::{LinkState, Shim, ShimConfig, UplinkConfig, Upstream};
use nos_shim::time::{Duration, Instant};
use support::live;
use support::packets::{
    CONTAINER, Ends, FAR4, FAR6, FULL, NOS, OWN4, OWN6, RELAY, SMALL, STATION, STATION4, STATION6,
    Template, arp_request, neighbor_solicitation,
};

#[global_allocator]
static ALLOCATOR: live::Counting = live::Counting;

const VRF: VrfId = VrfId::DEFAULT;
const UP0: UplinkId = UplinkId(0);
const UP1: UplinkId = UplinkId(1);
const TO_UP0: Interface = Interface::Uplink(UP0);
const TO_UP1: Interface = Interface::Uplink(UP1);
const TO_A: Interface = Interface::Attachment(AttachmentId(0));
const TO_B: Interface = Interface::Attachment(AttachmentId(1));
const INTERFACES: [Interface; 4] = [TO_UP0, TO_UP1, TO_A, TO_B];

/// A station on the second uplink, and where there is no way.
const OTHER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2);
const BLACKHOLE4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const UNREACHABLE4: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
const ECMP4: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 1);
const NO_ROUTE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xdead, 0, 0, 0, 0, 1);

/// Frames of one burst, rounds until everything is as large as it becomes, and rounds that count.
const BURST: usize = 8;
const WARM_UP: u32 = 300;
const ROUNDS: u32 = 300;

fn claim(transport: Transport, first: u16, last: u16, kind: ClaimKind) -> Claim {
    Claim {
        transport,
        range: PortRange::new(first, last).unwrap(),
        kind,
    }
}

/// Ports on which it listens from `listen` on, and its ephemeral ones from `ephemeral` on.
fn claims(listen: u16, ephemeral: u16, count: u16) -> Vec<Claim> {
    let both = |first: u16, kind| {
        [Transport::Tcp, Transport::Udp].map(|t| claim(t, first, first + count - 1, kind))
    };
    let listen = both(listen, ClaimKind::Listen);
    listen
        .into_iter()
        .chain(both(ephemeral, ClaimKind::Ephemeral))
        .collect()
}

fn attachment(id: u32, claims: Vec<Claim>) -> AttachmentConfig {
    AttachmentConfig {
        id: AttachmentId(id),
        name: format!("c{id}").into(),
        vrf: VRF,
        network: nos_shim::ident::NetworkId::DEFAULT,
        mac: CONTAINER,
        link_local: None,
        relay_mac: RELAY,
        mode: AddressMode::Shared,
        addresses: vec![OWN4.into(), OWN6.into()],
        policy: Policy::default(),
        claims,
        mtu: 1500,
        segment: None,
    }
}

fn uplink(id: UplinkId, addresses: [&str; 2]) -> UplinkConfig {
    UplinkConfig {
        id,
        name: format!("up{}", id.0).into(),
        vrf: VRF,
        mac: NOS,
        addresses: addresses.map(|address| address.parse().unwrap()).into(),
        mtu: 1500,
        redirects: true,
    }
}

fn hop(gateway: impl Into<IpAddr>, uplink: UplinkId) -> NextHop {
    let gateway = gateway.into();
    NextHop { gateway, uplink }
}

fn routes() -> Vec<Route> {
    let route = |prefix: &str, action| Route {
        vrf: VRF,
        prefix: prefix.parse().unwrap(),
        source: Source::Static { metric: 0 },
        action,
    };
    let both = NextHops::new([hop(STATION4, UP0), hop(OTHER4, UP1)]).unwrap();
    vec![
        route("0.0.0.0/0", Action::Via(hop(STATION4, UP0).into())),
        route("2001:db8:9::/48", Action::Via(hop(STATION6, UP0).into())),
        route("10.1.0.0/16", Action::Blackhole),
        route("10.2.0.0/16", Action::Unreachable),
        route("10.3.0.0/16", Action::Via(both)),
    ]
}

/// What became of the packets of some rounds.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    /// Frames sent, by interface in the order of [`INTERFACES`], without questions of the NOS.
    sent: [u64; INTERFACES.len()],
    allocations: u64,
    ledgers: [Ledger; 2],
}

impl Tally {
    fn sent(&self, to: Interface) -> u64 {
        self.sent[place(to)]
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.ledgers
            .iter()
            .map(|ledger| ledger.drops.of(reason))
            .sum()
    }

    fn since(mut self, before: &Self) -> Self {
        for (now, before) in self.sent.iter_mut().zip(before.sent) {
            *now -= before;
        }
        self.allocations -= before.allocations;
        self
    }
}

fn place(interface: Interface) -> usize {
    INTERFACES
        .iter()
        .position(|known| *known == interface)
        .unwrap()
}

/// Relay and NOS in memory, with a station on each uplink that answers for every address there.
struct Lab {
    engine: Engine,
    pool: FramePool,
    now: Instant,
    sent: [u64; INTERFACES.len()],
    /// Answers of the stations, on their way.
    answers: Vec<(Interface, Frame)>,
}

impl Lab {
    /// With two containers.
    fn new() -> Self {
        Self::with_pool(FramePool::new(2048, MAX_FRAME)).with_containers()
    }

    /// With two containers, in front of a NOS in another process.
    fn in_front_of_a_nos() -> Self {
        let upstream = Some(Upstream::default());
        let mut lab = Self::with(FramePool::new(2048, MAX_FRAME), upstream);
        lab.add_uplinks([(UP0, ["203.0.113.1/32", "2001:db8:1::1/128"])]);
        lab.settle();
        lab.with_containers()
    }

    fn with_containers(mut self) -> Self {
        for (id, listen, ephemeral) in [(0, 20_000, 40_000), (1, 21_000, 45_000)] {
            self.attach(attachment(id, claims(listen, ephemeral, 1000)));
        }
        self
    }

    /// Without containers.
    fn with_pool(pool: FramePool) -> Self {
        let mut lab = Self::with(pool, None);
        lab.configure();
        lab.settle();
        lab
    }

    fn with(pool: FramePool, upstream: Option<Upstream>) -> Self {
        let ring = RelayConfig::DEFAULT_RING.get() as usize;
        let (relay_end, nos_end) = pair(ring);
        let nos = Shim::new(
            nos_end,
            pool.clone(),
            ShimConfig {
                seed: 5,
                // Few, so that flows make way for others.
                flows: 64,
                upstream,
            },
        );
        Self {
            engine: Engine::single(Relay::new(relay_end, pool.clone()), nos),
            pool,
            now: Instant::from_millis(1000),
            sent: [0; INTERFACES.len()],
            answers: Vec::with_capacity(64),
        }
    }

    fn nos(&mut self) -> &mut Shim {
        self.engine.nos().unwrap()
    }

    fn relay(&mut self) -> &mut Relay {
        self.engine.relay().unwrap()
    }

    fn add_uplinks<const N: usize>(&mut self, all: [(UplinkId, [&str; 2]); N]) {
        let now = self.now;
        let nos = self.nos();
        for (id, addresses) in all {
            nos.set_uplink(uplink(id, addresses), now).unwrap();
            nos.set_link(id, LinkState::Up, now).unwrap();
            nos.set_capabilities(id, Capabilities::all());
        }
    }

    fn configure(&mut self) {
        self.add_uplinks([
            (UP0, ["203.0.113.1/24", "2001:db8:1::1/64"]),
            (UP1, ["192.0.2.1/24", "2001:db8:2::1/64"]),
        ]);
        let nos = self.nos();
        let routes = routes().into_iter().map(RouteChange::Set);
        nos.change_routes(routes.collect()).unwrap();
        let services = ServiceConfig {
            ping: true,
            services: vec![Service::Echo],
            ..ServiceConfig::default()
        };
        nos.set_services(VRF, &services).unwrap();
    }

    fn attach(&mut self, config: AttachmentConfig) {
        let id = config.id;
        let request = self.relay().attach(config).unwrap();
        let interface = Interface::Attachment(id);
        self.engine.set_capabilities(interface, Capabilities::all());
        self.engine.advance(self.now);
        let event = self.engine.poll_event();
        let accepted = RelayEvent::Accepted(request);
        assert_eq!(event, Some(accepted));
    }

    /// Makes every device take nothing but whole packets.
    fn with_plain_devices(mut self) -> Self {
        for interface in INTERFACES {
            self.engine
                .set_capabilities(interface, Capabilities::empty());
        }
        self
    }

    /// Gives `frame` to `from`, and moves everything as far as it goes.
    fn handle(&mut self, from: Interface, mut burst: Burst) {
        self.engine.handle_burst(from, &mut burst, self.now);
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            self.engine.advance(self.now);
            let sent = self.transmit();
            let answered = !self.answers.is_empty();
            while let Some((from, frame)) = self.answers.pop() {
                let mut burst = Burst::new();
                burst.push(frame);
                self.engine.handle_burst(from, &mut burst, self.now);
            }
            if !sent && !answered {
                return;
            }
        }
    }

    /// Takes what is to be sent. Returns whether there was anything.
    fn transmit(&mut self) -> bool {
        let mut any = false;
        while let Some((to, burst)) = self.engine.poll_transmit() {
            any = true;
            for frame in burst.drain(..) {
                match station(to, frame) {
                    Seen::Question(answer) => self.answers.push((to, answer)),
                    Seen::Packet(frame) => {
                        self.sent[place(to)] += 1;
                        self.pool.free(frame);
                    }
                }
            }
        }
        any
    }

    fn tally(&mut self) -> Tally {
        Tally {
            sent: self.sent,
            allocations: live::allocations(),
            ledgers: [*self.relay().ledger(), *self.nos().ledger()],
        }
    }

    #[track_caller]
    fn assert_balanced(&mut self) {
        let held = self.relay().held() as i128;
        assert_eq!(self.relay().ledger().unaccounted(), held);
        let held = self.nos().held() as i128;
        assert_eq!(self.nos().ledger().unaccounted(), held);
    }
}

/// What a station makes of a frame of the NOS.
enum Seen {
    /// Who are you? This is the answer.
    Question(Frame),
    /// Anything else.
    Packet(Frame),
}

fn station(on: Interface, mut frame: Frame) -> Seen {
    if matches!(on, Interface::Attachment(_)) {
        return Seen::Packet(frame);
    }
    if let Ok(arp) = Arp::parse(frame.bytes()) {
        if arp.operation != Operation::Request || arp.is_announcement() {
            return Seen::Packet(frame);
        }
        let reply = arp.reply(STATION);
        reply.write(&mut frame, NOS).unwrap();
        return Seen::Question(frame);
    }
    let packet = Packet::parse(frame).unwrap();
    let message = is_ndp(&packet).then(|| Ndp::parse(&packet).unwrap());
    let asker = packet.source();
    let mut frame = packet.into_frame();
    let (Some(Ndp::NeighborSolicit { target, .. }), IpAddr::V6(asker)) = (message, asker) else {
        return Seen::Packet(frame);
    };
    let advert = Ndp::NeighborAdvert {
        router: true,
        solicited: true,
        overrides: true,
        target,
        target_link_layer: Some(STATION),
    };
    let envelope = Envelope {
        source_mac: STATION,
        destination_mac: NOS,
        source: target,
        destination: asker,
    };
    advert.write(&mut frame, &envelope).unwrap();
    Seen::Question(frame)
}

/// Packets that are sent in each round, all of one kind or alternating.
struct Traffic<'a> {
    from: Interface,
    templates: &'a [Template],
    /// Frames of each template in a round.
    count: usize,
    /// Time from one round to the next.
    step: Duration,
    /// Makes the frames of one round different from those of others.
    vary: fn(Frame, u32) -> Frame,
}

impl<'a> Traffic<'a> {
    fn new(from: Interface, templates: &'a [Template]) -> Self {
        Self {
            from,
            templates,
            count: BURST,
            step: Duration::from_millis(1),
            vary: |frame, _| frame,
        }
    }

    /// Rounds are so far apart that the NOS may tell the same peer of an error in each.
    fn slow(self) -> Self {
        Self {
            count: 2,
            step: Duration::from_millis(1100),
            ..self
        }
    }

    fn varied(self, vary: fn(Frame, u32) -> Frame) -> Self {
        Self { vary, ..self }
    }

    fn round(&self, lab: &mut Lab, n: u32) {
        for template in self.templates {
            let mut burst = Burst::new();
            for _ in 0..self.count {
                let frame = template.frame(&mut lab.pool);
                burst.push((self.vary)(frame, n));
            }
            lab.handle(self.from, burst);
        }
        // As a data thread does at the end of each turn.
        while lab.engine.poll_event().is_some() {}
        lab.now = lab.now + self.step;
    }

    /// As [`Self::run_allocating`], and nothing may be allocated.
    #[track_caller]
    fn run(&self, lab: &mut Lab) -> Tally {
        let tally = self.run_allocating(lab);
        assert_eq!(tally.allocations, 0, "{tally:?}");
        tally
    }

    /// Sends this until nothing grows any more, and then as much again. Returns what became of the
    /// latter.
    #[track_caller]
    fn run_allocating(&self, lab: &mut Lab) -> Tally {
        for n in 0..WARM_UP {
            self.round(lab, n);
        }
        let before = lab.tally();
        for n in WARM_UP..WARM_UP + ROUNDS {
            self.round(lab, n);
        }
        let tally = lab.tally().since(&before);
        lab.assert_balanced();
        tally
    }

    /// All packets of so many rounds.
    fn packets(&self, rounds: u32) -> u64 {
        self.templates.len() as u64 * self.count as u64 * u64::from(rounds)
    }

    /// Every packet comes out `to` there, in `pieces` pieces.
    #[track_caller]
    fn arrives(&self, lab: &mut Lab, to: Interface, pieces: u64) {
        let tally = self.run(lab);
        assert_eq!(tally.sent(to), pieces * self.packets(ROUNDS), "{tally:?}");
        assert_eq!(tally.sent.iter().sum::<u64>(), tally.sent(to), "{tally:?}");
    }

    /// Every packet is dropped for `reason`. Returns how many were answered.
    #[track_caller]
    fn is_refused(&self, lab: &mut Lab, reason: DropReason) -> u64 {
        let dropped = lab.tally().drops(reason);
        let tally = self.run(lab);
        let all = self.packets(WARM_UP + ROUNDS);
        assert_eq!(tally.drops(reason) - dropped, all, "{tally:?}");
        tally.sent(self.from)
    }
}

fn families() -> [(Ends, Ends); 2] {
    [
        (Ends::outbound4(), Ends::inbound4()),
        (Ends::outbound6(), Ends::inbound6()),
    ]
}

/// That nothing was counted means something only if something would have been.
#[test]
fn an_allocation_is_counted() {
    let (allocations, octets) = (live::allocations(), live::octets());
    let boxed = std::hint::black_box(Box::new([0_u8; 100]));
    assert_eq!(live::allocations() - allocations, 1);
    assert_eq!(live::octets() - octets, 100);
    let mut vector = std::hint::black_box(boxed.to_vec());
    vector.reserve_exact(100);
    assert_eq!(live::allocations() - allocations, 3);
    drop((boxed, vector));
    assert_eq!(live::octets(), octets);
}

#[test]
fn outbound_packets_allocate_nothing() {
    let mut lab = Lab::new();
    for (out, _) in families() {
        for template in [
            out.udp(SMALL),
            out.tcp(SMALL),
            out.udp(FULL),
            out.tcp_partial(FULL),
            out.tcp_super(),
            out.udp_super(),
            out.echo_request(7, SMALL),
        ] {
            Traffic::new(TO_A, &[template]).arrives(&mut lab, TO_UP0, 1);
        }
    }
}

#[test]
fn inbound_packets_allocate_nothing() {
    let mut lab = Lab::new();
    for (_, inbound) in families() {
        // To a listener, and as the answer to what the container sent from an ephemeral port.
        let back = inbound.clone().with_ports([443, 40_000]);
        for template in [
            inbound.udp(SMALL),
            inbound.tcp(SMALL),
            inbound.syn(),
            back.udp(FULL),
            back.tcp(FULL),
            inbound.tcp_partial(FULL),
            inbound.tcp_super(),
            inbound.udp_super(),
        ] {
            Traffic::new(TO_UP0, &[template]).arrives(&mut lab, TO_A, 1);
        }
        let other = inbound.with_ports([443, 21_000]);
        Traffic::new(TO_UP0, &[other.udp(SMALL)]).arrives(&mut lab, TO_B, 1);
    }
}

/// The VRF of [`Lab::in_two_vrfs`] that is not the default one.
const RED: VrfId = VrfId(7);

impl Lab {
    /// The second uplink and the second container are in a VRF of their own, where they have what the
    /// first ones have.
    fn in_two_vrfs() -> Self {
        let mut lab = Self::with_pool(FramePool::new(2048, MAX_FRAME));
        let now = lab.now;
        let nos = lab.nos();
        let up1 = UplinkConfig {
            vrf: RED,
            ..uplink(UP1, ["203.0.113.1/24", "2001:db8:1::1/64"])
        };
        nos.set_uplink(up1, now).unwrap();
        let routes = [
            ("0.0.0.0/0", hop(STATION4, UP1)),
            ("2001:db8:9::/48", hop(STATION6, UP1)),
        ];
        let routes = routes.map(|(prefix, hop)| {
            RouteChange::Set(Route {
                vrf: RED,
                prefix: prefix.parse().unwrap(),
                source: Source::Static { metric: 0 },
                action: Action::Via(hop.into()),
            })
        });
        nos.change_routes(routes.into()).unwrap();
        let services = ServiceConfig {
            ping: true,
            services: vec![Service::Echo],
            ..ServiceConfig::default()
        };
        nos.set_services(RED, &services).unwrap();
        for (id, vrf) in [(0, VRF), (1, RED)] {
            let attachment = attachment(id, claims(20_000, 40_000, 1000));
            lab.attach(AttachmentConfig { vrf, ..attachment });
        }
        lab
    }
}

/// The same packets in both, in turn.
#[test]
fn packets_of_several_vrfs_allocate_nothing() {
    let mut lab = Lab::in_two_vrfs();
    let places = [(TO_A, TO_UP0), (TO_B, TO_UP1)];
    for (out, inbound) in families() {
        for (container, uplink) in places {
            let back = inbound.clone().with_ports([443, 40_000]);
            for template in [out.udp(SMALL), out.tcp_super(), out.echo_request(7, SMALL)] {
                Traffic::new(container, &[template]).arrives(&mut lab, uplink, 1);
            }
            for template in [inbound.udp(SMALL), inbound.tcp_super(), back.tcp(FULL)] {
                Traffic::new(uplink, &[template]).arrives(&mut lab, container, 1);
            }
            // What the NOS says by itself, in each at its own rate.
            let nobody = [inbound.clone().with_ports([443, 5000]).udp(SMALL)];
            Traffic::new(uplink, &nobody)
                .slow()
                .is_refused(&mut lab, DropReason::NoListener);
            let foreign = [out.clone().with_ports([21_000, 443]).udp(SMALL)];
            Traffic::new(container, &foreign)
                .slow()
                .is_refused(&mut lab, DropReason::SourcePort);
        }
    }
}

/// Flows that are there, new ones, and those that make way for them.
#[test]
fn policed_packets_allocate_nothing() {
    let mut lab = Lab::with_pool(FramePool::new(2048, MAX_FRAME));
    let policy = Policy {
        established: vec![PortRange::new(40_000, 40_999).unwrap()],
        outside: Outside::Learn,
        ..Policy::default()
    };
    lab.attach(AttachmentConfig {
        policy,
        ..attachment(0, claims(20_000, 40_000, 1000))
    });
    for (out, inbound) in families() {
        let out = out.with_ports([40_000, 443]);
        let back = inbound.with_ports([443, 40_000]);
        for (out, back) in [
            (out.udp(SMALL), back.udp(SMALL)),
            (out.tcp(SMALL), back.tcp(SMALL)),
        ] {
            Traffic::new(TO_A, &[out]).arrives(&mut lab, TO_UP0, 1);
            Traffic::new(TO_UP0, &[back]).arrives(&mut lab, TO_A, 1);
        }
        let learnt = out.clone().with_ports([50_000, 443]);
        for template in [out.udp(SMALL), learnt.udp(SMALL)] {
            let templates = [template];
            let traffic = Traffic::new(TO_A, &templates).varied(to_another_port);
            traffic.arrives(&mut lab, TO_UP0, 1);
        }
        let foreign = out.clone().with_ports([20_000, 443]);
        Traffic::new(TO_A, &[foreign.udp(SMALL)]).arrives(&mut lab, TO_UP0, 1);
    }
    assert!(lab.nos().flow_count().is_some_and(|flows| flows > 8));
}

/// A UDP datagram to a port that depends on the round.
fn to_another_port(mut frame: Frame, round: u32) -> Frame {
    let octets = frame.bytes_mut();
    let ip = if octets[12] == 8 { 20 } else { 40 };
    let at = ETHERNET_HEADER + ip + 2;
    octets[at..at + 2].copy_from_slice(&(1000 + round as u16 % 5000).to_be_bytes());
    frame
}

/// All kinds in turn, to both containers.
#[test]
fn a_mixture_allocates_nothing() {
    let mut lab = Lab::new();
    for (_, inbound) in families() {
        let to_b = inbound.clone().with_ports([443, 21_000]);
        let to_nobody = inbound.clone().with_ports([443, 5000]);
        let templates = [
            inbound.tcp(SMALL),
            to_b.udp(FULL),
            to_nobody.syn(),
            inbound.echo_request(7, SMALL),
            inbound.tcp_super(),
            to_b.tcp(FULL),
        ];
        let traffic = Traffic::new(TO_UP0, &templates);
        let tally = traffic.run(&mut lab);
        let one = traffic.packets(ROUNDS) / templates.len() as u64;
        assert_eq!(
            INTERFACES.map(|to| tally.sent(to)),
            [2 * one, 0, 2 * one, 2 * one]
        );
    }
}

#[test]
fn segmentation_in_software_allocates_nothing() {
    let mut lab = Lab::new().with_plain_devices();
    for ((out, inbound), segments) in families().into_iter().zip([45, 46]) {
        for (from, to, ends) in [(TO_A, TO_UP0, out), (TO_UP0, TO_A, inbound)] {
            Traffic::new(from, &[ends.tcp_partial(FULL)]).arrives(&mut lab, to, 1);
            for template in [ends.tcp_super(), ends.udp_super()] {
                Traffic::new(from, &[template]).arrives(&mut lab, to, segments);
            }
        }
    }
}

#[test]
fn fragmentation_allocates_nothing() {
    let mut lab = Lab::new();
    let long = Ends::outbound4().udp(ETHERNET_HEADER + 4000);
    Traffic::new(TO_A, &[long]).arrives(&mut lab, TO_UP0, 3);
}

#[test]
fn transit_and_hairpins_allocate_nothing() {
    let mut lab = Lab::new();
    let macs = [STATION, NOS];
    let through4 = Ends::new(macs, [OTHER4, FAR4], [1000, 2000]);
    let through6 = Ends::new(macs, [OTHER6, FAR6], [1000, 2000]);
    for ends in [through4, through6] {
        for template in [ends.udp(SMALL), ends.tcp(FULL), ends.tcp_super()] {
            Traffic::new(TO_UP1, &[template]).arrives(&mut lab, TO_UP0, 1);
        }
    }
    // From one container to the other, on the shared address.
    let macs = [CONTAINER, RELAY];
    let sibling4 = Ends::new(macs, [OWN4, OWN4], [40_000, 21_000]);
    let sibling6 = Ends::new(macs, [OWN6, OWN6], [40_000, 21_000]);
    for ends in [sibling4, sibling6] {
        Traffic::new(TO_A, &[ends.udp(SMALL)]).arrives(&mut lab, TO_B, 1);
    }
    let mut ecmp = Ends::outbound4();
    ecmp.addresses[1] = ECMP4.into();
    let tally = Traffic::new(TO_A, &[ecmp.udp(SMALL)]).run(&mut lab);
    assert_eq!(
        tally.sent(TO_UP0) + tally.sent(TO_UP1),
        u64::from(ROUNDS) * BURST as u64
    );
}

#[test]
fn packets_to_and_from_a_nos_in_another_process_allocate_nothing() {
    let mut lab = Lab::in_front_of_a_nos();
    for (out, inbound) in families() {
        for template in [
            out.udp(SMALL),
            out.tcp_partial(FULL),
            out.tcp_super(),
            out.echo_request(7, SMALL),
        ] {
            Traffic::new(TO_A, &[template]).arrives(&mut lab, TO_UP0, 1);
        }
        for template in [inbound.udp(SMALL), inbound.syn(), inbound.tcp_super()] {
            Traffic::new(TO_UP0, &[template]).arrives(&mut lab, TO_A, 1);
        }
        let nobody = inbound.with_ports([443, 22]).udp(SMALL);
        let traffic = [nobody];
        let traffic = Traffic::new(TO_UP0, &traffic);
        assert_eq!(traffic.is_refused(&mut lab, DropReason::Unregistered), 0);
    }
    let sibling = Ends::new([CONTAINER, RELAY], [OWN4, OWN4], [40_000, 21_000]);
    Traffic::new(TO_A, &[sibling.udp(SMALL)]).arrives(&mut lab, TO_B, 1);
}

#[test]
fn answers_of_the_relay_allocate_nothing() {
    let mut lab = Lab::new();
    let mut ping = Ends::outbound6();
    ping.addresses[1] = RELAY.link_local().into();
    for template in [
        arp_request(FAR4),
        neighbor_solicitation(FAR6),
        ping.echo_request(7, FULL),
    ] {
        Traffic::new(TO_A, &[template]).arrives(&mut lab, TO_A, 1);
    }
}

/// ARP, Neighbor Discovery and ping of stations, and the UDP echo service.
#[test]
fn answers_of_the_nos_allocate_nothing() {
    let mut lab = Lab::new();
    let arp = Arp::request(STATION, STATION4, OWN4);
    let source_link_layer = Some(STATION);
    let target = OWN6;
    let solicit = Ndp::NeighborSolicit {
        target,
        source_link_layer,
    };
    let group = nos_shim::ndp::solicited_node(target);
    let envelope = Envelope::to_group(STATION, STATION6, group);
    let macs = [STATION, NOS];
    let four = Ends::new(macs, [STATION4, OWN4], [1000, 7]);
    let six = Ends::new(macs, [STATION6, OWN6], [1000, 7]);
    for template in [
        support::packets::arp(&arp, MacAddr::BROADCAST),
        support::packets::ndp(&solicit, &envelope),
        four.echo_request(7, FULL),
        six.echo_request(7, FULL),
        four.udp(SMALL),
        six.udp(FULL),
    ] {
        Traffic::new(TO_UP0, &[template]).arrives(&mut lab, TO_UP0, 1);
    }
}

/// Another datagram in each round: another identification, the IPv4 header's checksum mended.
fn another_datagram(mut frame: Frame, n: u32) -> Frame {
    let packet = &mut frame.bytes_mut()[ETHERNET_HEADER..];
    if packet[0] >> 4 == 4 {
        let header = &mut packet[..20];
        header[4..6].copy_from_slice(&(n as u16).to_be_bytes());
        header[10..12].fill(0);
        let sum = Sum::ZERO.plus(header).checksum();
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[44..48].copy_from_slice(&n.to_be_bytes());
    }
    frame
}

/// Another echo identifier in each round.
fn another_echo(frame: Frame, n: u32) -> Frame {
    let mut packet = Packet::parse(frame).unwrap();
    packet.set_echo_id(n as u16);
    packet.into_frame()
}

/// The two fragments of a datagram of this payload.
fn fragments(ends: &Ends, transport: u8, payload: &[u8]) -> [Template; 2] {
    let (first, second) = payload.split_at(64);
    let place = |field| ends.clone().with_fragment(field);
    [
        place(0x2000).packet(transport, first),
        place(64 / 8).packet(transport, second),
    ]
}

/// The transport header and payload of a packet.
fn transport(template: &Template, ends: &Ends) -> Vec<u8> {
    template.octets[ends.headers()..].to_vec()
}

/// One datagram a round, so slowly that those of the past are forgotten.
fn datagrams(from: Interface, templates: &[Template]) -> Traffic<'_> {
    Traffic {
        count: 1,
        step: Duration::from_millis(200),
        ..Traffic::new(from, templates).varied(another_datagram)
    }
}

#[test]
fn fragments_allocate_nothing() {
    let mut lab = Lab::new();
    for (out, inbound) in families() {
        for (from, to, ends) in [(TO_A, TO_UP0, out), (TO_UP0, TO_A, inbound)] {
            let payload = transport(&ends.udp(200), &ends);
            let [first, later] = fragments(&ends, protocol::UDP, &payload);
            datagrams(from, &[first.clone(), later.clone()]).arrives(&mut lab, to, 1);
            // In reverse order, the NOS holds the later one until it knows whose it is.
            datagrams(from, &[later, first]).arrives(&mut lab, to, 1);
        }
    }
}

/// Fragmented pings of the NOS, which puts them together. This is no part of the forward path: a
/// datagram may cost the list of its fragments, but nothing may grow.
#[test]
fn reassembly_allocates_once_a_datagram() {
    let mut lab = Lab::new();
    for (_, inbound) in families() {
        let payload = transport(&inbound.echo_request(7, 200), &inbound);
        let icmp = if inbound.is_ipv6() {
            protocol::ICMPV6
        } else {
            protocol::ICMP
        };
        let [first, later] = fragments(&inbound, icmp, &payload);
        for order in [[first.clone(), later.clone()], [later, first]] {
            let before = live::octets();
            let tally = datagrams(TO_UP0, &order).run_allocating(&mut lab);
            assert_eq!(tally.sent(TO_UP0), u64::from(ROUNDS), "{tally:?}");
            assert!(tally.allocations <= u64::from(ROUNDS), "{tally:?}");
            let grown = live::octets() - before;
            assert!(grown < 64 << 10, "{grown} octets");
        }
    }
}

#[test]
fn new_flows_of_pings_allocate_nothing() {
    let mut lab = Lab::new();
    for (out, _) in families() {
        let request = [out.echo_request(7, SMALL)];
        let traffic = Traffic::new(TO_A, &request).varied(another_echo);
        Traffic {
            count: 1,
            ..traffic
        }
        .arrives(&mut lab, TO_UP0, 1);
        let reply = [out.reversed().echo_reply(7, SMALL)];
        let reply = reply.map(from_station);
        let reply = Traffic::new(TO_UP0, &reply).varied(another_echo);
        Traffic { count: 1, ..reply }.arrives(&mut lab, TO_A, 1);
    }
}

/// The same frame from the station to the NOS.
fn from_station(mut template: Template) -> Template {
    template.octets[..12].copy_from_slice(&[NOS.0, STATION.0].concat());
    template
}

/// Errors about packets of a container go to it, whatever they quote.
#[test]
fn icmp_errors_from_outside_allocate_nothing() {
    let mut lab = Lab::new();
    for (out, inbound) in families() {
        // An echo flow for the last of the quotes.
        Traffic::new(TO_A, &[out.echo_request(7, SMALL)]).arrives(&mut lab, TO_UP0, 1);
        for quoted in [out.udp(FULL), out.tcp(FULL), out.echo_request(7, SMALL)] {
            let error = inbound.too_big(&quoted, 548);
            Traffic::new(TO_UP0, &[error]).arrives(&mut lab, TO_A, 1);
        }
        // The container says that it has no listener.
        let error = out.port_unreachable(&inbound.udp(SMALL));
        Traffic::new(TO_A, &[error]).arrives(&mut lab, TO_UP0, 1);
    }
}

#[test]
fn refused_sources_allocate_nothing() {
    let mut lab = Lab::new();
    let out = Ends::outbound4();
    let with = |change: fn(&mut Ends)| {
        let mut ends = out.clone();
        change(&mut ends);
        ends.udp(SMALL)
    };
    let mut cut = out.udp(SMALL);
    cut.octets.truncate(30);
    for (template, reason) in [
        (with(|ends| ends.macs[0] = STATION), DropReason::SourceMac),
        (
            with(|ends| ends.addresses[0] = FAR4.into()),
            DropReason::SourceAddress,
        ),
        (out.packet(89, &[0; 20]), DropReason::SourceProtocol),
        (
            out.port_unreachable(&out.udp(SMALL)),
            DropReason::IcmpUnmatched,
        ),
        (cut, DropReason::IpLength),
    ] {
        let answers = Traffic::new(TO_A, &[template]).is_refused(&mut lab, reason);
        assert_eq!(answers, 0);
    }
}

/// The container is told, and when it may hear no more, it is not.
#[test]
fn foreign_ports_allocate_nothing() {
    let mut lab = Lab::new();
    for (out, _) in families() {
        let foreign = out.with_ports([21_000, 443]);
        for template in [foreign.udp(SMALL), foreign.udp(FULL), foreign.syn()] {
            let template = [template];
            let slow = Traffic::new(TO_A, &template).slow();
            let told = slow.is_refused(&mut lab, DropReason::SourcePort);
            assert!(told >= u64::from(ROUNDS), "{told} answers");
            Traffic::new(TO_A, &template).is_refused(&mut lab, DropReason::SourcePort);
        }
        let segment = [foreign.tcp(SMALL)];
        let told = Traffic::new(TO_A, &segment).is_refused(&mut lab, DropReason::SourcePort);
        assert_eq!(told, 0);
    }
}

/// What the NOS refuses, with errors and resets to who sent it, and when it may say no more.
#[test]
fn refusals_of_the_nos_allocate_nothing() {
    let mut lab = Lab::new();
    let to = |address: IpAddr| {
        let mut ends = if address.is_ipv6() {
            Ends::outbound6()
        } else {
            Ends::outbound4()
        };
        ends.addresses[1] = address;
        ends
    };
    let mut short_lived = Ends::new([STATION, NOS], [OTHER4, FAR4], [1000, 2000]);
    short_lived.ttl = 1;
    let mut short_lived6 = Ends::new([STATION, NOS], [OTHER6, FAR6], [1000, 2000]);
    short_lived6.ttl = 1;
    let nobody = |ends: Ends| ends.with_ports([443, 5000]);
    for (from, template, reason) in [
        (
            TO_A,
            to(UNREACHABLE4.into()).udp(SMALL),
            DropReason::UnreachableRoute,
        ),
        (TO_A, to(NO_ROUTE6.into()).udp(SMALL), DropReason::NoRoute),
        (
            TO_UP0,
            nobody(Ends::inbound4()).udp(SMALL),
            DropReason::NoListener,
        ),
        (
            TO_UP0,
            nobody(Ends::inbound6()).udp(FULL),
            DropReason::NoListener,
        ),
        (
            TO_UP0,
            nobody(Ends::inbound4()).syn(),
            DropReason::NoListener,
        ),
        (
            TO_UP0,
            nobody(Ends::inbound6()).syn(),
            DropReason::NoListener,
        ),
        (
            TO_UP0,
            Ends::inbound4().packet(89, &[0; 20]),
            DropReason::NoProtocol,
        ),
        (
            TO_UP0,
            Ends::inbound6().packet(89, &[0; 20]),
            DropReason::NoProtocol,
        ),
        (TO_UP1, short_lived.udp(SMALL), DropReason::TtlExceeded),
        (TO_UP1, short_lived6.udp(SMALL), DropReason::TtlExceeded),
        (TO_A, Ends::outbound6().udp(1600), DropReason::TooBig),
    ] {
        let template = [template];
        let slow = Traffic::new(from, &template)
            .slow()
            .is_refused(&mut lab, reason);
        assert!(slow >= u64::from(ROUNDS), "{reason}: {slow} answers");
        Traffic::new(from, &template).is_refused(&mut lab, reason);
    }
    let blackhole = [to(BLACKHOLE4.into()).udp(SMALL)];
    let answers = Traffic::new(TO_A, &blackhole).is_refused(&mut lab, DropReason::Blackhole);
    assert_eq!(answers, 0);
}

/// Six ports of each protocol, scattered: more ranges than are kept in the least space.
fn scattered(n: u16, attachments: u16) -> Vec<Claim> {
    let ports = (0..6).map(|k| 101 + n + attachments * k);
    let claims = ports.flat_map(|port| {
        [Transport::Tcp, Transport::Udp].map(|t| claim(t, port, port, ClaimKind::Listen))
    });
    claims.collect()
}

/// Flows of TCP and UDP, were they all kept, beside as many attachments as one address has ports
/// for if each wants a dozen.
#[test]
fn ten_thousand_attachments_and_a_million_flows_take_less_than_400_mib() {
    const ATTACHMENTS: u16 = 10_000;
    const FLOWS: usize = 1_000_000;
    const LIMIT: isize = 400 << 20;
    // Frames are another matter: their buffers become resident with use.
    let pool = FramePool::new(64, 2000);
    let before = live::octets();
    let mut lab = Lab::with_pool(pool);
    let empty = live::octets() - before;
    for n in 0..ATTACHMENTS {
        lab.attach(attachment(n.into(), scattered(n, ATTACHMENTS)));
    }
    // A packet for each, so that everything is there that packets need.
    for n in 0..ATTACHMENTS {
        let template = Ends::inbound4().with_ports([443, 101 + n]).udp(SMALL);
        let mut burst = template.burst(1, &mut lab.pool);
        lab.engine.handle_burst(TO_UP0, &mut burst, lab.now);
        lab.engine.advance(lab.now);
        let (to, burst) = lab.engine.poll_transmit().unwrap();
        assert_eq!(
            (to, burst.len()),
            (Interface::Attachment(AttachmentId(n.into())), 1)
        );
        lab.pool.free_all(burst);
    }
    let attached = live::octets() - before;
    let flows = support::flows::full(FLOWS);
    let all = live::octets() - before;
    assert_eq!(flows.len(), FLOWS);
    println!(
        "relay and NOS: {empty} octets; each of {ATTACHMENTS} attachments: {}; each of {FLOWS} flows: {}; in all {:.1} MiB",
        (attached - empty) / isize::try_from(ATTACHMENTS).unwrap(),
        (all - attached) / isize::try_from(FLOWS).unwrap(),
        all as f64 / f64::from(1 << 20),
    );
    assert!(all <= LIMIT, "{all} octets");
}

/// Addresses of both families out of one pool, each with a holder and a workload of the length of a pod's.
#[test]
fn a_hundred_thousand_addresses_of_a_pool_take_less_than_64_mib() {
    const ADDRESSES: u32 = 100_000;
    const LIMIT: isize = 64 << 20;
    const FILE: &str = "[[uplink]]\nname = \"up0\"\ndevice = \"packet:hx\"\n\
        addresses = [\"10.0.0.1/15\", \"2001:db8:1::1/64\"]\n";
    let space = Space::of(&Config::parse("nos.toml", FILE).unwrap());
    let before = live::octets();
    let mut pools = Pools::default();
    let name: Name = "netspace".parse().unwrap();
    let definition = PoolDefinition {
        name: name.clone(),
        kind: PoolKind::Netspace,
        vrf: VrfName::Default,
        inside: None,
        elastic: Some(Elastic::USUAL),
        max: MAX_POOL,
    };
    pools.create(&definition, Amount::Size(16), &space).unwrap();
    for number in 0..ADDRESSES {
        let holder = format!("cni.cluster.{number:012x}.eth0.0123456789abcdef");
        let workload = format!("namespace/deployment-{number:06}");
        let wanted = Wanted {
            holder: &holder,
            workload: Some(&workload),
            vrf: &VrfName::Default,
            pool: Some(&name),
        };
        pools.draw(wanted, &space).unwrap();
        pools.committed();
    }
    let all = live::octets() - before;
    println!(
        "each of {ADDRESSES} addresses: {}; in all {:.1} MiB",
        all / isize::try_from(ADDRESSES).unwrap(),
        all as f64 / f64::from(1 << 20)
    );
    assert!(all <= LIMIT, "{all} octets");
}

/// With an uplink, a default route for each family and a container, that have had packets.
#[test]
fn each_of_a_hundred_vrfs_takes_less_than_3_mib() {
    const VRFS: u16 = 100;
    const LIMIT: isize = 3 << 20;
    let mut lab = Lab::with_pool(FramePool::new(256, 2000));
    let now = lab.now;
    // What an uplink takes anyhow.
    let empty = live::octets();
    for n in 1..=VRFS {
        let address = format!("198.18.{n}.1/24").parse().unwrap();
        let more = UplinkConfig {
            addresses: vec![address],
            ..uplink(
                UplinkId(u32::from(n) + 1000),
                ["203.0.113.1/24", "2001:db8:1::1/64"],
            )
        };
        lab.nos().set_uplink(more, now).unwrap();
    }
    let before = live::octets();
    let uplink_alone = (before - empty) / isize::try_from(VRFS).unwrap();
    let mut had = [before; 4];
    for n in 1..=VRFS {
        let (id, vrf) = (UplinkId(u32::from(n) + 1), VrfId(n));
        let addresses = ["203.0.113.1/24", "2001:db8:1::1/64"];
        let nos = lab.nos();
        nos.set_uplink(
            UplinkConfig {
                vrf,
                ..uplink(id, addresses)
            },
            now,
        )
        .unwrap();
        nos.set_link(id, LinkState::Up, now).unwrap();
        let route = |prefix: &str, hop: NextHop| {
            RouteChange::Set(Route {
                vrf,
                prefix: prefix.parse().unwrap(),
                source: Source::Static { metric: 0 },
                action: Action::Via(hop.into()),
            })
        };
        let routes = [
            route("0.0.0.0/0", hop(STATION4, id)),
            route("::/0", hop(STATION6, id)),
        ];
        nos.change_routes(routes.into()).unwrap();
    }
    had[1] = live::octets();
    for n in 1..=VRFS {
        let attachment = attachment(n.into(), claims(20_000, 40_000, 1000));
        lab.attach(AttachmentConfig {
            vrf: VrfId(n),
            ..attachment
        });
    }
    had[2] = live::octets();
    // Nobody has that port, so that errors are limited as well.
    for n in 1..=VRFS {
        for (_, inbound) in families() {
            let template = inbound.with_ports([443, 5000]).udp(SMALL);
            let mut burst = template.burst(1, &mut lab.pool);
            let from = Interface::Uplink(UplinkId(u32::from(n) + 1));
            lab.engine.handle_burst(from, &mut burst, lab.now);
            lab.engine.advance(lab.now);
            while let Some((_, burst)) = lab.engine.poll_transmit() {
                lab.pool.free_all(burst);
            }
        }
    }
    had[3] = live::octets();
    let each = |at: usize| (had[at] - had[at - 1]) / isize::try_from(VRFS).unwrap();
    println!(
        "each of {VRFS} VRFs: uplink and routes {} octets ({uplink_alone} of an uplink in any VRF), \
         container {}, errors {}",
        each(1),
        each(2),
        each(3),
    );
    let all = (had[3] - before) / isize::try_from(VRFS).unwrap();
    assert!(all <= LIMIT, "{all} octets");
}

/// Both ways, while the ring has room and when it has none.
#[test]
fn recording_frames_allocates_nothing() {
    for backlog in [16 << 20, 100] {
        let options = CaptureOptions {
            backlog,
            ..CaptureOptions::default()
        };
        let [device, mut far] = memory_pair(["near", "far"], 64);
        let file = Path::new("test");
        let (sink, writer) = CaptureWriter::start(io::sink(), file, "near", options).unwrap();
        let sink = Some(sink);
        let mut near = Captured { device, sink };
        let mut pool = FramePool::new(2 * BURST, MAX_FRAME);
        let mut before = 0;
        for round in 0..WARM_UP + ROUNDS {
            if round == WARM_UP {
                before = live::allocations();
            }
            let frames = (0..BURST).map(|_| pool.copy_from(&[7; 1000]).unwrap());
            let mut burst: Burst = frames.collect();
            let sent = near.send_burst(&mut burst, &mut pool);
            assert_eq!(sent.frames, BURST);
            let _ = far.recv_burst(&mut pool, &mut burst, BURST);
            let _ = far.send_burst(&mut burst, &mut pool);
            let received = near.recv_burst(&mut pool, &mut burst, BURST);
            assert_eq!(received.frames, BURST);
            pool.free_all(&mut burst);
        }
        assert_eq!(live::allocations() - before, 0, "backlog {backlog}");
        drop(near);
        let status = writer.finish(Duration::from_secs(60)).unwrap();
        let all = 2 * BURST as u64 * u64::from(WARM_UP + ROUNDS);
        assert_eq!(status.recorded + status.missed, all);
        assert_eq!(status.missed > 0, backlog < 1000, "{status:?}");
    }
}

/// The greatest resident memory that this process ever had, in octets.
fn high_water() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.unwrap().split_whitespace().next().unwrap();
    kib.parse::<usize>().unwrap() * 1024
}

/// Buffers become resident when they are first used, and are used again before others are: so a pool
/// is as large as its use. Resident memory is the process's, so this runs in one of its own.
#[test]
fn the_default_pool_stays_below_32_mib() {
    const ALONE: &str = "NOS_RELAY_TEST_ALONE";
    const LIMIT: usize = 32 << 20;
    if std::env::var_os(ALONE).is_none() {
        let status = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "the_default_pool_stays_below_32_mib",
                "--nocapture",
            ])
            .env(ALONE, "1")
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let buffers = RelayConfig::DEFAULT_BUFFERS.get() as usize;
    let mut lab = Lab::with_pool(FramePool::new(buffers, MAX_FRAME));
    lab.attach(attachment(0, claims(20_000, 40_000, 1000)));
    for (out, inbound) in families() {
        for (from, to, ends) in [(TO_A, TO_UP0, out), (TO_UP0, TO_A, inbound)] {
            for template in [ends.udp(SMALL), ends.tcp(FULL), ends.tcp_super()] {
                let traffic = [template];
                let traffic = Traffic {
                    count: 64,
                    ..Traffic::new(from, &traffic)
                };
                traffic.arrives(&mut lab, to, 1);
            }
        }
    }
    let resident = high_water();
    println!(
        "at most {:.1} MiB resident",
        resident as f64 / f64::from(1 << 20)
    );
    assert!(resident <= LIMIT, "{resident} octets resident");
}
