//! Relays and their NOSes without devices, driven by a script: whatever comes in whatever order, no
//! panic, no packet unaccounted for, no buffer lost, nothing sent to who is not there, and no timer
//! that spins.
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
//! | 16 attach | number, flavour, more | with a VRF, a link-local address, a policy |
//! | 17 update | number, flavour, more | |
//! | 18 uplink | number, flavour, VRF | |
//! | 19 routes | flavour, VRF | |
//! | 20 services | flavour, VRF | |
//! | 21 exchange | numbers that go (by bit), count, then (number, flavour, more) each | all or none |
//! | 22 query | table | by the channel, page by page |
//! | 23 configure | what, then its parameters | by the channel, as the control plane does |
//! | 24 restart | | another NOS takes the place of this one, and knows nothing |
//! | 25 other site | | from now on steps are about the other relay with its NOS |
//! | 26 wire | | what leaves uplink 1 of one site comes in at uplink 1 of the other, or no more |
//!
//! Where the NOSes are in other processes ([`run_steered`]), an octet in front of all steps says whether
//! their MAC addresses are known. Each has one uplink then, whichever a step names, and frames that come
//! in by it are what that NOS steers to the containers.

use std::collections::BTreeMap;
use std::mem;

use nos_relay::data::engine::Engine;
use nos_relay::data::relay::{AttachmentConfig, AttachmentExchange, Relay, RelayEvent};
use nos_shim::arp::Arp;
use nos_shim::channel::{Answer, Configuration, NosEnd, Query, RequestId, pair};
use nos_shim::drop::DropReason;
use nos_shim::fib::{RouteChange, RouteKey};
use nos_shim::frame::{BATCH, Burst, Frame, FramePool, Offload};
use nos_shim::ident::{AttachmentId, Interface, UplinkId, VrfId};
use nos_shim::offload::Capabilities;
use nos_shim::packet::Packet;
use nos_shim::shim::{LinkState, Shim, ShimConfig, Upstream};
use nos_shim::time::Instant;

use super::frames::{self, ROOM};
use super::network::{
    MTU, UPLINKS, answer_to, attachment, draft, exchanged_macs, macs, network, routes, services,
    shared_link, uplink, vrf,
};
use super::pools::with_pool;
use super::steered::Steered;

/// Buffers of a site: no more than can be in use, as all are looked at in the end.
const BUFFERS: usize = 192;
/// Bursts in each ring: few, so that they overflow.
const RING: usize = 4;
/// Flows that policies may have remembered: few, so that their places run out.
const FLOWS: usize = 16;
/// How often the sites exchange frames in one step; what comes later is lost on the wire.
const WIRE_ROUNDS: usize = 4;
/// Steps of a run; more take longer, and show nothing new.
const STEPS: usize = 200;

const CONTAINERS: u8 = 4;

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
    run_before(None, Script(script))
}

/// The same in front of NOSes in other processes.
pub fn run_steered(script: &[u8]) -> Sent {
    let mut script = Script(script);
    let is_known = script.octet() & 1 != 0;
    let (neighbor, _) = macs(Interface::Uplink(UplinkId(0)));
    let neighbor = is_known.then_some(neighbor);
    run_before(Some(Upstream { neighbor }), script)
}

fn run_before(upstream: Option<Upstream>, mut script: Script<'_>) -> Sent {
    with_pool(BUFFERS, |pool| {
        let mut world = World::new(pool, upstream);
        for _ in 0..STEPS {
            if script.0.is_empty() {
                break;
            }
            world.step(&mut script);
            world.advance();
            world.check_accounts();
        }
        world.end()
    })
}

/// The sites, and what is between them.
struct World {
    /// The one that steps are about is the first.
    sites: Vec<Site>,
    upstream: Option<Upstream>,
    pool: FramePool,
    now: Instant,
    /// Whether uplink 1 of the sites is one link.
    wired: bool,
    /// How many frames of a burst devices take, and whether they drop the rest.
    takes: (usize, bool),
    sent: Sent,
}

/// Relay and NOS, and what their devices and the network know.
struct Site {
    engine: Engine,
    /// What is known of the packets, where the NOS is in another process.
    steered: Option<Steered>,
    /// Static routes that the NOS was told of.
    routes: Vec<RouteKey>,
    capabilities: BTreeMap<Interface, Capabilities>,
    /// The last frame that went to each interface.
    last: BTreeMap<Interface, Vec<u8>>,
    /// Questions of ARP and Neighbor Discovery that were not answered yet.
    asked: Vec<(Interface, Vec<u8>)>,
    /// What has left by uplink 1.
    wire: Vec<Vec<u8>>,
}

/// A NOS that remembers nothing.
fn nos(end: NosEnd, pool: &FramePool, upstream: Option<Upstream>) -> Shim {
    let config = ShimConfig {
        seed: 1,
        flows: FLOWS,
        upstream,
    };
    Shim::new(end, pool.clone(), config)
}

impl Site {
    fn new(pool: &FramePool, upstream: Option<Upstream>) -> Self {
        let (relay, end) = pair(RING);
        let relay = Relay::new(relay, pool.clone());
        Self {
            engine: Engine::single(relay, nos(end, pool, upstream)),
            steered: upstream.map(|_| Steered::default()),
            routes: Vec::new(),
            capabilities: BTreeMap::new(),
            last: BTreeMap::new(),
            asked: Vec::new(),
            wire: Vec::new(),
        }
    }

    fn relay(&mut self) -> &mut Relay {
        self.engine.relay().expect("a single engine has it")
    }

    fn nos(&mut self) -> &mut Shim {
        self.engine.nos().expect("a single engine has it")
    }

    /// Changes to those routes of a VRF, from those that it has.
    fn route_changes(&mut self, flavour: u8, of: VrfId) -> Vec<RouteChange> {
        let wanted = routes(flavour, of);
        let keys = wanted
            .iter()
            .map(|route| (route.vrf, route.prefix, route.source));
        let keys: Vec<RouteKey> = keys.collect();
        let (here, others) = mem::take(&mut self.routes)
            .into_iter()
            .partition::<Vec<_>, _>(|(vrf, ..)| *vrf == of);
        let gone = here.into_iter().filter(|key| !keys.contains(key));
        let gone: Vec<_> = gone.map(RouteChange::Remove).collect();
        self.routes = others;
        self.routes.extend(keys);
        wanted
            .into_iter()
            .map(RouteChange::Set)
            .chain(gone)
            .collect()
    }

    fn attach(&mut self, config: AttachmentConfig, capabilities: Capabilities) {
        let interface = Interface::Attachment(config.id);
        if let Ok(request) = self.relay().attach(config.clone()) {
            self.note_asked(request, vec![config], Vec::new());
            self.set_capabilities(interface, capabilities);
        }
    }

    fn update(&mut self, config: AttachmentConfig) {
        // There may be none.
        if let Ok(request) = self.relay().update(config.clone()) {
            self.note_asked(request, vec![config], Vec::new());
        }
    }

    fn detach(&mut self, id: AttachmentId) {
        let _ = self.relay().detach(id);
        self.capabilities.remove(&Interface::Attachment(id));
        if let Some(steered) = &mut self.steered {
            steered.detached(id);
        }
    }

    fn note_asked(
        &mut self,
        request: RequestId,
        attach: Vec<AttachmentConfig>,
        detach: Vec<AttachmentId>,
    ) {
        if let Some(steered) = &mut self.steered {
            steered.ask(request, attach, detach);
        }
    }

    fn set_capabilities(&mut self, of: Interface, capabilities: Capabilities) {
        self.engine.set_capabilities(of, capabilities);
        self.capabilities.insert(of, capabilities);
    }

    fn place_uplink(&mut self, id: UplinkId, flavour: u8, of: VrfId, now: Instant) {
        let config = match self.steered {
            Some(_) => shared_link(flavour),
            None => uplink(id, flavour, of),
        };
        let id = config.id;
        self.nos().set_uplink(config, now).expect("few addresses");
        self.capabilities
            .entry(Interface::Uplink(id))
            .or_insert(Capabilities::empty());
        let state = link_state(flavour);
        self.nos().set_link(id, state, now).expect("few addresses");
    }

    fn exchange(&mut self, script: &mut Script<'_>) {
        let gone = script.octet();
        let detach = (0..CONTAINERS).filter(|bit| gone >> bit & 1 != 0);
        let count = script.octet() % 4;
        let attach = (0..count).map(|_| {
            let id = script.container();
            attachment(id, script.octet(), script.octet())
        });
        let attach: Vec<_> = attach.collect();
        let exchange = AttachmentExchange {
            detach: detach.map(|number| AttachmentId(number.into())).collect(),
            attach,
            services: None,
        };
        let AttachmentExchange { attach, detach, .. } = exchange.clone();
        if let Ok(request) = self.relay().exchange(exchange) {
            for config in &attach {
                let interface = Interface::Attachment(config.id);
                if !self.capabilities.contains_key(&interface) {
                    self.set_capabilities(interface, Capabilities::empty());
                }
            }
            self.note_asked(request, attach, detach);
        }
    }

    fn configure(&mut self, script: &mut Script<'_>) {
        let wanted = match script.octet() % 5 {
            0 => {
                let (flavour, of) = (script.octet(), vrf(script.octet()));
                Configuration::Routes(self.route_changes(flavour, of))
            }
            1 => Configuration::Services(vrf(script.octet()), services(script.octet())),
            2 => Configuration::Link(script.uplink(), link_state(script.octet())),
            3 => Configuration::LeaveLink(script.uplink()),
            _ => {
                let id = script.uplink();
                let (v4, v6) = network(id.0, script.octet());
                let (mac, _) = macs(Interface::Uplink(id));
                Configuration::Neighbors(id, vec![(v4.into(), mac), (v6.into(), mac)])
            }
        };
        // The ring of requests may be full.
        let _ = self.relay().configure(wanted);
    }

    fn query(&mut self, table: u8) {
        let query = match table % 7 {
            0 => Query::Counters,
            1 => Query::Ports(None),
            2 => Query::Routes(None),
            3 => Query::Uplinks(None),
            4 => Query::Neighbors(None),
            5 => Query::Flows(None),
            _ => Query::EchoFlows(None),
        };
        let _ = self.relay().query(query);
    }

    /// Another NOS takes the place of this one. Its devices are as they were.
    fn restart(&mut self, pool: &FramePool, upstream: Option<Upstream>, now: Instant) {
        let (relay, end) = pair(RING);
        self.relay().rejoin(relay);
        *self.nos() = nos(end, pool, upstream);
        self.routes.clear();
        for number in 0..UPLINKS {
            let id = UplinkId(number.into());
            if let Some(&capabilities) = self.capabilities.get(&Interface::Uplink(id)) {
                self.place_uplink(id, 0x80, VrfId::DEFAULT, now);
                self.nos().set_capabilities(id, capabilities);
            }
        }
    }

    /// What the relay has to say; the next page is asked for.
    fn poll_events(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            if let Some(steered) = &mut self.steered {
                steered.note_event(&event);
            }
            let RelayEvent::Answer(_, answer) = event else {
                continue;
            };
            let more = match answer {
                Answer::Ports(page) => page.next.map(|next| Query::Ports(Some(next))),
                Answer::Routes(page) => page.next.map(|next| Query::Routes(Some(next))),
                Answer::Uplinks(page) => page.next.map(|next| Query::Uplinks(Some(next))),
                Answer::Neighbors(page) => page.next.map(|next| Query::Neighbors(Some(next))),
                Answer::Flows(page) => page.next.map(|next| Query::Flows(Some(next))),
                Answer::EchoFlows(page) => page.next.map(|next| Query::EchoFlows(Some(next))),
                Answer::Counters(_) | Answer::Unsupported => None,
            };
            if let Some(more) = more {
                let _ = self.relay().query(more);
            }
        }
    }

    fn check_sent(&self, to: Interface, frame: &Frame) {
        let Some(&capabilities) = self.capabilities.get(&to) else {
            panic!("a frame to {to:?}, which is not there");
        };
        let offload = frame.offload();
        assert!(capabilities.take(offload), "{offload:?} to {to:?}");
        let Some(mut copy) = frames::spare(frame.bytes()) else {
            panic!("a frame of {} octets", frame.len());
        };
        copy.set_offload(offload);
        // A router forwards what has a fragment header at fault; containers get no such packet.
        match (Packet::parse(copy).or_else(Packet::parse_up_to_fault), to) {
            (Ok(packet), Interface::Uplink(id)) => {
                let mtu = MTU[id.0 as usize];
                assert!(packet.wire_len() <= mtu, "{packet:?} is longer than {mtu}");
                if let Some(steered) = &self.steered {
                    steered.check_left(&packet);
                }
            }
            (Ok(packet), Interface::Attachment(id)) => {
                assert_eq!(packet.fault(), None, "{packet:?} to {to:?}");
                if let Some(steered) = &self.steered {
                    steered.check_delivered(id, &packet);
                }
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
        let octets = frame.bytes();
        let from_uplink = matches!(to, Interface::Uplink(_));
        if to == Interface::Uplink(UplinkId(1)) && self.wire.len() < 16 {
            self.wire.push(octets.to_vec());
        }
        if from_uplink && answer_to(octets).is_some() {
            self.asked.push((to, octets.to_vec()));
            self.asked.truncate(16);
        } else {
            let last = self.last.entry(to).or_default();
            last.clear();
            last.extend_from_slice(octets);
        }
    }

    fn check_accounts(&mut self) {
        let (ledger, held) = (*self.relay().ledger(), self.relay().held());
        assert_eq!(ledger.unaccounted(), held as i128, "relay: {ledger:?}");
        let (ledger, held) = (*self.nos().ledger(), self.nos().held());
        assert_eq!(ledger.unaccounted(), held as i128, "NOS: {ledger:?}");
    }

    /// Says whether packets are under way that were admitted by what was granted before.
    fn note_rest(&mut self) {
        let rests = self.relay().held() == 0 && self.relay().depth() == 0 && self.nos().held() == 0;
        if let Some(steered) = self.steered.as_mut().filter(|_| rests) {
            steered.note_rest();
        }
    }
}

fn link_state(flavour: u8) -> LinkState {
    if flavour & 0xc0 == 0x40 {
        LinkState::Down
    } else {
        LinkState::Up
    }
}

impl World {
    fn new(pool: &FramePool, upstream: Option<Upstream>) -> Self {
        Self {
            sites: vec![Site::new(pool, upstream)],
            upstream,
            pool: pool.clone(),
            now: Instant::ZERO,
            wired: false,
            takes: (BATCH, false),
            sent: Sent::default(),
        }
    }

    fn site(&mut self) -> &mut Site {
        &mut self.sites[0]
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let now = self.now;
        match script.octet() % 27 {
            7 => self.raw(script),
            8 => self.crafted(script),
            9 => self.reflect(script.side()),
            10 => self.quote(script),
            11 => self.resolve(),
            12 => {
                let millis = u64::from(script.number()) * u64::from(script.octet().max(1));
                self.now = Instant::from_nanos(now.as_nanos() + millis * 1_000_000);
            }
            13 => {
                let octet = script.octet();
                self.takes = (usize::from(octet / 2), octet % 2 == 1);
            }
            24 => {
                let (pool, upstream) = (self.pool.clone(), self.upstream);
                self.site().restart(&pool, upstream, now);
            }
            25 => {
                if self.sites.len() < 2 {
                    self.sites.push(Site::new(&self.pool, self.upstream));
                }
                self.sites.swap(0, 1);
            }
            26 => self.wired = !self.wired,
            other => Self::step_of(self.site(), other, script, now),
        }
    }

    /// A step that is about one site alone.
    fn step_of(site: &mut Site, step: u8, script: &mut Script<'_>, now: Instant) {
        let default = VrfId::DEFAULT;
        match step {
            0 | 16 => {
                let (id, flavour) = (script.container(), script.octet());
                let more = if step == 16 { script.octet() } else { 0 };
                let capabilities = Capabilities::from_bits_truncate(flavour >> 4);
                site.attach(attachment(id, flavour, more), capabilities);
            }
            1 | 17 => {
                let (id, flavour) = (script.container(), script.octet());
                let more = if step == 17 { script.octet() } else { 0 };
                site.update(attachment(id, flavour, more));
            }
            2 => site.detach(script.container()),
            3 => site.place_uplink(script.uplink(), script.octet(), default, now),
            18 => {
                let (id, flavour) = (script.uplink(), script.octet());
                site.place_uplink(id, flavour, vrf(script.octet()), now);
            }
            4 => {
                let id = script.uplink();
                site.nos().remove_uplink(id);
                site.capabilities.remove(&Interface::Uplink(id));
            }
            5 | 19 => {
                let flavour = script.octet();
                let of = if step == 19 {
                    vrf(script.octet())
                } else {
                    default
                };
                let changes = site.route_changes(flavour, of);
                site.nos().change_routes(changes).expect("few routes");
            }
            6 | 20 => {
                let config = services(script.octet());
                let of = if step == 20 {
                    vrf(script.octet())
                } else {
                    default
                };
                // A container may have the port.
                let _ = site.nos().set_services(of, &config);
            }
            14 => {
                let (of, bits) = (script.side(), script.octet());
                if site.capabilities.contains_key(&of) {
                    site.set_capabilities(of, Capabilities::from_bits_truncate(bits));
                }
            }
            21 => site.exchange(script),
            22 => site.query(script.octet()),
            23 => site.configure(script),
            _ => {
                site.engine.try_sleep();
                site.engine.awake();
            }
        }
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
        frame.truncate(ROOM);
        self.give(from, flags, offload, frame);
    }

    fn reflect(&mut self, from: Interface) {
        let macs = macs(from);
        let answer = self.site().last.get(&from);
        let answer = answer.and_then(|last| frames::reflected(last, macs.1, macs.0));
        if let Some(answer) = answer {
            self.give(from, 0, Offload::NONE, answer);
        }
    }

    fn quote(&mut self, script: &mut Script<'_>) {
        let from = script.side();
        let draft = draft(from, script.array());
        let last = self.site().last.get(&from);
        if let Some(error) = last.and_then(|last| frames::error_about(last, draft)) {
            self.give(from, 0, Offload::NONE, error);
        }
    }

    fn resolve(&mut self) {
        for (asker, question) in mem::take(&mut self.site().asked) {
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
        if let Some(steered) = &mut self.site().steered {
            steered.note_given(from, &octets, offload);
        }
        let mut burst = Burst::new();
        burst.push(frame);
        let now = self.now;
        self.site().engine.handle_burst(from, &mut burst, now);
        assert!(burst.is_empty(), "frames were left with the device");
    }

    fn advance(&mut self) {
        self.advance_site(0);
        for _ in 0..WIRE_ROUNDS {
            if !self.carry() {
                break;
            }
        }
    }

    fn advance_site(&mut self, place: usize) {
        let now = self.now;
        self.sites[place].engine.advance(now);
        self.sites[place].poll_events();
        self.transmit(place);
        let engine = &mut self.sites[place].engine;
        engine.advance(now);
        let due = engine.poll_at().filter(|&at| at <= now);
        assert!(due.is_none(), "due at {due:?} and now is {now:?}");
        self.sites[place].note_rest();
    }

    /// Carries over the wire what has left. Returns whether there was anything.
    fn carry(&mut self) -> bool {
        let [one, other] = &mut self.sites[..] else {
            self.sites[0].wire.clear();
            return false;
        };
        let left = [mem::take(&mut one.wire), mem::take(&mut other.wire)];
        if !self.wired || left.iter().all(Vec::is_empty) {
            return false;
        }
        for (place, frames) in [1, 0].into_iter().zip(left) {
            for mut octets in frames {
                exchanged_macs(&mut octets);
                let Ok(frame) = self.pool.copy_from(&octets) else {
                    continue;
                };
                let mut burst = Burst::new();
                burst.push(frame);
                let from = Interface::Uplink(UplinkId(1));
                let now = self.now;
                self.sites[place].engine.handle_burst(from, &mut burst, now);
            }
            self.advance_site(place);
        }
        true
    }

    /// Every device sends what it takes.
    fn transmit(&mut self, place: usize) {
        let (takes, drops) = self.takes;
        for _ in 0..64 {
            let site = &mut self.sites[place];
            let Some((to, burst)) = site.engine.poll_transmit() else {
                return;
            };
            assert!(!burst.is_empty(), "an empty burst to {to:?}");
            let count = takes.min(burst.len());
            let taken: Vec<Frame> = burst.drain(..count).collect();
            let left = !burst.is_empty();
            match to {
                Interface::Attachment(_) => self.sent.to_containers += taken.len(),
                Interface::Uplink(_) => self.sent.to_uplinks += taken.len(),
            }
            for frame in taken {
                site.check_sent(to, &frame);
                site.note_sent(to, &frame);
                self.pool.free(frame);
            }
            if left && drops {
                site.engine.discard_unsent(to, DropReason::DeviceError);
            } else if left {
                return;
            }
        }
    }

    fn check_accounts(&mut self) {
        self.sites.iter_mut().for_each(Site::check_accounts);
    }

    /// Lets all devices send everything; whoever lends the pool sees whether all buffers come back.
    fn end(mut self) -> Sent {
        self.takes = (BATCH, false);
        self.wired = false;
        for _ in 0..64 {
            let places = 0..self.sites.len();
            places.for_each(|place| self.advance_site(place));
            self.check_accounts();
            if self.sites.iter_mut().all(|site| site.relay().held() == 0) {
                break;
            }
        }
        for site in &mut self.sites {
            assert_eq!(site.relay().held(), 0, "frames wait for containers");
        }
        self.sent
    }
}

fn offload(flags: u8, script: &mut Script<'_>) -> Offload {
    if flags & 2 == 0 {
        return Offload::NONE;
    }
    // A header that makes no sense is refused by the device.
    Offload::from_virtio(&script.array()).unwrap_or(Offload::NONE)
}
