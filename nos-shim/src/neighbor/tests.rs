//! The state machine, transition by transition, and the accounts of packets.

use core::net::Ipv4Addr;

use super::*;
use crate::arp::Arp;
use crate::frame::FramePool;
use crate::ident::UplinkId;
use crate::ndp::{Envelope, Ndp, solicited_node};
use crate::time::Instant;
use proptest::prelude::*;

const OWN_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const OWN: &str = "203.0.113.1";
const OWN_V6: &str = "2001:db8:1::1";
const PEER: &str = "203.0.113.9";
const PEER_V6: &str = "2001:db8:1::9";

fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 1, n])
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn seconds(seconds: u64) -> Instant {
    Instant::from_millis(seconds * 1000)
}

/// A cache, packets for it, and what came out of it.
struct Bench {
    cache: NeighborCache,
    pool: FramePool,
    now: Instant,
    sent: Vec<LinkMessage>,
    resolved: Vec<(MacAddr, Vec<u32>)>,
    failed: Vec<(IpAddr, Vec<u32>)>,
}

impl Bench {
    fn new() -> Self {
        Self::with(NeighborConfig::default())
    }

    fn with(config: NeighborConfig) -> Self {
        let own = [OWN, OWN_V6].map(|own| match ip(own) {
            IpAddr::V4(own) => format!("{own}/16").parse().unwrap(),
            IpAddr::V6(own) => format!("{own}/64").parse().unwrap(),
        });
        let link = LinkAddresses::new(OWN_MAC, own, true);
        Self {
            cache: NeighborCache::new(UplinkId(0), link, config, 1),
            pool: FramePool::new(256, 64),
            now: seconds(100),
            sent: Vec::new(),
            resolved: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// An IPv4 packet of protocol 253 (RFC 3692) whose payload is `n`.
    fn packet(&mut self, n: u32) -> Packet {
        let mut octets = vec![0; 12];
        octets.extend([8, 0, 0x45, 0, 0, 24, 0, 0, 0, 0, 64, 253, 0, 0]);
        octets.extend([203, 0, 113, 1, 203, 0, 113, 9]);
        let sum = crate::checksum::Sum::ZERO.plus(&octets[14..]).checksum();
        octets[24..26].copy_from_slice(&sum.to_be_bytes());
        octets.extend(n.to_be_bytes());
        Packet::parse(self.pool.copy_from(&octets).unwrap()).unwrap()
    }

    fn drain(&mut self) {
        while let Some(output) = self.cache.poll_output() {
            match output {
                NeighborOutput::Send(message) => self.sent.push(message),
                NeighborOutput::Resolved { mac, packets } => {
                    self.resolved.push((mac, numbers(&packets)));
                }
                NeighborOutput::Failed { address, packets } => {
                    self.failed.push((address, numbers(&packets)));
                }
            }
        }
    }

    /// Sends packet `n` as the data path does. Returns the MAC address, or the packet for which
    /// there was no room.
    fn send(&mut self, to: &str, n: u32) -> Result<Option<MacAddr>, u32> {
        let now = self.now;
        let Some(id) = self.cache.neighbor(ip(to), now) else {
            return Err(n);
        };
        let result = match self.cache.resolve(id, now) {
            Resolution::Known(mac) => Ok(Some(mac)),
            Resolution::Pending => {
                let packet = self.packet(n);
                match self.cache.enqueue(id, packet, now) {
                    None => Ok(None),
                    Some(packet) => Err(number(&packet)),
                }
            }
            Resolution::Gone => panic!("just looked up"),
        };
        self.drain();
        result
    }

    fn arp(&mut self, arp: &Arp) -> bool {
        let destination = match arp.operation {
            crate::arp::Operation::Reply => arp.target_mac,
            _ => MacAddr::BROADCAST,
        };
        let concerned = self.cache.handle_arp(arp, destination, self.now);
        self.drain();
        concerned
    }

    /// The answer to the NOS's own question for the peer.
    fn reply(&mut self, from: &str, mac: MacAddr) -> bool {
        let reply = Arp::request(OWN_MAC, v4(OWN), v4(from)).reply(mac);
        self.arp(&reply)
    }

    fn advert(
        &mut self,
        target: &str,
        mac: Option<MacAddr>,
        solicited: bool,
        overrides: bool,
    ) -> bool {
        let (IpAddr::V6(target), IpAddr::V6(own)) = (ip(target), ip(OWN_V6)) else {
            panic!("not IPv6");
        };
        let advert = Ndp::NeighborAdvert {
            router: false,
            solicited,
            overrides,
            target,
            target_link_layer: mac,
        };
        let envelope = Envelope {
            source_mac: mac.unwrap_or(MacAddr([2; 6])),
            destination_mac: OWN_MAC,
            source: target,
            destination: own,
        };
        let concerned = self.cache.handle_ndp(&advert, &envelope, self.now);
        self.drain();
        concerned
    }

    fn solicit(&mut self, source: &str, target: &str, mac: Option<MacAddr>) -> bool {
        let (IpAddr::V6(source), IpAddr::V6(target)) = (ip(source), ip(target)) else {
            panic!("not IPv6");
        };
        let solicit = Ndp::NeighborSolicit {
            target,
            source_link_layer: mac,
        };
        let envelope = Envelope::to_group(MacAddr([2; 6]), source, solicited_node(target));
        let concerned = self.cache.handle_ndp(&solicit, &envelope, self.now);
        self.drain();
        concerned
    }

    /// Lets time pass, and the timers expire when they do.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.cache.poll_at().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.cache.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    fn neighbor(&self, address: &str) -> Option<Neighbor> {
        let address = ip(address);
        let mut all = self.cache.neighbors(self.now);
        all.find(|neighbor| neighbor.address == address)
    }

    fn state(&self, address: &str) -> Option<NeighborState> {
        self.neighbor(address).map(|neighbor| neighbor.state)
    }

    /// Brings the peer into a state, known as `mac(1)` where it is known.
    fn bring(&mut self, peer: &str, state: NeighborState) {
        let _ = self.send(peer, 0);
        if matches!(state, NeighborState::Incomplete | NeighborState::Failed) {
            if state == NeighborState::Failed {
                self.pass(Duration::from_secs(4));
            }
        } else {
            match ip(peer) {
                IpAddr::V4(_) => self.reply(peer, mac(1)),
                IpAddr::V6(_) => self.advert(peer, Some(mac(1)), true, true),
            };
            if state != NeighborState::Reachable {
                self.pass(Duration::from_secs(46));
            }
            if matches!(state, NeighborState::Delay | NeighborState::Probe) {
                assert_eq!(self.send(peer, 0), Ok(Some(mac(1))));
            }
            if state == NeighborState::Probe {
                self.pass(Duration::from_secs(5));
            }
        }
        assert_eq!(self.state(peer), Some(state));
        self.sent.clear();
        self.resolved.clear();
        self.failed.clear();
    }
}

fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn number(packet: &Packet) -> u32 {
    u32::from_be_bytes(packet.transport().try_into().unwrap())
}

fn numbers(packets: &Waiting) -> Vec<u32> {
    packets.iter().map(number).collect()
}

/// Whether a question was sent to all, or to one MAC address.
fn asked(message: &LinkMessage) -> MacAddr {
    match message {
        LinkMessage::Arp { arp, destination } => {
            assert_eq!(arp.operation, crate::arp::Operation::Request);
            *destination
        }
        LinkMessage::Ndp { ndp, envelope } => {
            assert!(matches!(ndp, Ndp::NeighborSolicit { .. }));
            envelope.destination_mac
        }
    }
}

/// RFC 826 "packet generation"; RFC 4861 §7.2.2.
#[test]
fn packets_wait_for_the_answer() {
    for peer in [PEER, PEER_V6] {
        let mut bench = Bench::new();
        for n in 0..3 {
            assert_eq!(bench.send(peer, n), Ok(None));
        }
        assert_eq!(bench.sent.len(), 1, "one question for all packets");
        assert!(asked(&bench.sent[0]).is_multicast());
        assert_eq!(bench.cache.held(), 3);
        match ip(peer) {
            IpAddr::V4(_) => assert!(bench.reply(peer, mac(1))),
            IpAddr::V6(_) => assert!(bench.advert(peer, Some(mac(1)), true, true)),
        }
        assert_eq!(bench.resolved, [(mac(1), vec![0, 1, 2])]);
        assert_eq!(bench.cache.held(), 0);
        assert_eq!(bench.send(peer, 3), Ok(Some(mac(1))));
        assert_eq!(bench.cache.poll_at(), None, "nothing is due any more");
    }
}

/// RFC 4861 §7.2.2 (`MAX_MULTICAST_SOLICIT`), RFC 1122 §2.3.2.1 (no more than one question a
/// second), and host unreachable for what waited.
#[test]
fn three_questions_without_answer_fail() {
    for peer in [PEER, PEER_V6] {
        let mut bench = Bench::new();
        assert_eq!(bench.send(peer, 7), Ok(None));
        bench.pass(Duration::from_millis(2999));
        assert_eq!((bench.sent.len(), bench.failed.len()), (3, 0));
        bench.pass(Duration::from_millis(1));
        assert_eq!(bench.failed, [(ip(peer), vec![7])]);
        assert_eq!(bench.state(peer), Some(NeighborState::Failed));
        assert_eq!((bench.cache.held(), bench.cache.poll_at()), (0, None));
        assert_eq!(bench.send(peer, 8), Ok(None), "the next packet asks again");
        assert_eq!(bench.sent.len(), 4);
        assert_eq!(bench.state(peer), Some(NeighborState::Incomplete));
    }
}

/// RFC 4861 §7.3.3: Reachable, Stale, Delay, Probe, and back; all by ARP too, as in Linux.
#[test]
fn a_neighbor_in_use_is_probed() {
    for peer in [PEER, PEER_V6] {
        let mut bench = Bench::new();
        bench.bring(peer, NeighborState::Reachable);
        assert_eq!(
            bench.cache.poll_at(),
            None,
            "reachability lapses without a timer"
        );
        bench.pass(Duration::from_secs(46));
        assert_eq!(bench.state(peer), Some(NeighborState::Stale));
        assert_eq!(
            bench.send(peer, 1),
            Ok(Some(mac(1))),
            "stale is good enough"
        );
        assert_eq!(bench.state(peer), Some(NeighborState::Delay));
        bench.pass(Duration::from_millis(4999));
        assert_eq!(bench.sent, []);
        bench.pass(Duration::from_millis(1));
        assert_eq!(bench.state(peer), Some(NeighborState::Probe));
        assert_eq!(
            bench.sent.iter().map(asked).collect::<Vec<_>>(),
            [mac(1)],
            "unicast"
        );
        assert_eq!(bench.send(peer, 1), Ok(Some(mac(1))));
        match ip(peer) {
            IpAddr::V4(_) => assert!(bench.reply(peer, mac(1))),
            IpAddr::V6(_) => assert!(bench.advert(peer, None, true, false)),
        }
        assert_eq!(bench.state(peer), Some(NeighborState::Reachable));
        assert_eq!(bench.cache.poll_at(), None);
    }
}

#[test]
fn a_neighbor_that_has_gone_fails_after_three_probes() {
    let mut bench = Bench::new();
    bench.bring(PEER, NeighborState::Probe);
    bench.pass(Duration::from_secs(3));
    assert_eq!(bench.sent.len(), 2, "and one before");
    assert_eq!(bench.state(PEER), Some(NeighborState::Failed));
    assert_eq!(bench.cache.poll_at(), None);
}

/// RFC 4861 §6.3.2: 0.5 to 1.5 times 30 seconds.
#[test]
fn reachable_times_are_random_within_bounds() {
    for seed in 0..50 {
        let mut bench = Bench::new();
        bench.cache = NeighborCache::new(
            UplinkId(0),
            bench.cache.link().clone(),
            NeighborConfig::default(),
            seed,
        );
        bench.bring(PEER, NeighborState::Reachable);
        bench.pass(Duration::from_millis(14_999));
        assert_eq!(bench.state(PEER), Some(NeighborState::Reachable));
        bench.pass(Duration::from_millis(30_001));
        assert_eq!(bench.state(PEER), Some(NeighborState::Stale));
    }
}

/// RFC 1122 §2.3.2.2: the latest packets are kept.
#[test]
fn the_oldest_of_too_many_packets_goes() {
    let mut bench = Bench::with(NeighborConfig {
        queue: 2,
        total_queue: 3,
        ..NeighborConfig::default()
    });
    assert_eq!(bench.send(PEER, 1), Ok(None));
    assert_eq!(bench.send(PEER, 2), Ok(None));
    assert_eq!(bench.send(PEER, 3), Err(1));
    assert_eq!(bench.send("203.0.113.10", 4), Ok(None));
    assert_eq!(
        bench.send("203.0.113.10", 5),
        Err(4),
        "the total is reached"
    );
    assert_eq!(
        bench.send("203.0.113.11", 6),
        Err(6),
        "nothing of its own to give"
    );
    assert_eq!(
        bench.state("203.0.113.11"),
        Some(NeighborState::Incomplete),
        "but asked for"
    );
    bench.reply(PEER, mac(1));
    assert_eq!(bench.resolved, [(mac(1), vec![2, 3])]);
}

/// RFC 826 "packet reception": what is there is updated; only who asks for us is entered.
#[test]
fn arp_enters_only_those_who_ask_for_us() {
    let mut bench = Bench::new();
    let request = |target: &str| Arp::request(mac(5), v4(PEER), v4(target));
    assert!(!bench.arp(&request("203.0.113.77")), "asks for another");
    assert!(!bench.arp(&request(PEER)), "gratuitous");
    assert!(!bench.reply(PEER, mac(5)), "answers what was not asked");
    assert_eq!(bench.state(PEER), None);
    assert!(bench.arp(&request(OWN)));
    assert_eq!(bench.state(PEER), Some(NeighborState::Stale));
    assert_eq!(bench.sent.len(), 1, "and is answered");
    let stranger = Arp::request(mac(6), v4("192.0.2.1"), v4(OWN));
    assert!(bench.arp(&stranger));
    assert_eq!(bench.sent.len(), 2, "answered, but");
    assert_eq!(bench.state("192.0.2.1"), None, "not of this link");
}

/// RFC 5227 §2.1.1: a probe is answered, and teaches nothing.
#[test]
fn probes_are_answered() {
    let mut bench = Bench::new();
    assert!(bench.arp(&Arp::request(mac(5), Ipv4Addr::UNSPECIFIED, v4(OWN))));
    assert_eq!(bench.sent.len(), 1);
    assert_eq!(bench.cache.neighbors(bench.now).count(), 0);
}

#[test]
fn implausible_senders_are_ignored() {
    let mut bench = Bench::new();
    for sender in [
        MacAddr::BROADCAST,
        MacAddr::ZERO,
        MacAddr([1, 0, 0x5e, 0, 0, 1]),
        OWN_MAC,
    ] {
        assert!(
            !bench.arp(&Arp::request(sender, v4(PEER), v4(OWN))),
            "{sender}"
        );
    }
    assert!(!bench.arp(&Arp::request(mac(5), v4(OWN), v4(OWN))));
    assert_eq!(bench.cache.conflicts(), 1, "our address, another's MAC");
    assert!(bench.sent.is_empty());
    assert_eq!(bench.cache.neighbors(bench.now).count(), 0);
}

/// Each kind of ARP in each state: the state and MAC address after it. `None`: as before.
#[test]
fn arp_state_table() {
    use NeighborState::{Delay, Failed, Incomplete, Probe, Reachable, Stale};
    let reply = |n| Arp::request(OWN_MAC, v4(OWN), v4(PEER)).reply(mac(n));
    let request = |n| Arp::request(mac(n), v4(PEER), v4(OWN));
    let gratuitous = |n| Arp::request(mac(n), v4(PEER), v4(PEER));
    let to_other = |n| Arp::request(mac(n), v4(PEER), v4("203.0.113.77"));
    for state in [Incomplete, Reachable, Stale, Delay, Probe, Failed] {
        let fresh = !state.is_valid();
        for (message, expected, learnt) in [
            (reply(1), Reachable, 1),
            (reply(2), Reachable, 2),
            (request(1), if fresh { Stale } else { state }, 1),
            (request(2), Stale, 2),
            (gratuitous(1), if fresh { Stale } else { state }, 1),
            (gratuitous(2), Stale, 2),
            (to_other(1), if fresh { Stale } else { state }, 1),
            (to_other(2), Stale, 2),
        ] {
            let mut bench = Bench::new();
            bench.bring(PEER, state);
            // Longer than the first MAC address is protected.
            if state == Reachable {
                bench.pass(Duration::from_millis(1001));
            }
            bench.arp(&message);
            let neighbor = bench.neighbor(PEER).unwrap();
            let context = format!("{state} {message:?}");
            assert_eq!(
                (neighbor.state, neighbor.mac),
                (expected, Some(mac(learnt))),
                "{context}"
            );
        }
    }
}

/// `locktime` in Linux: of several answers the first counts, and announcements always do.
#[test]
fn a_second_arp_answer_does_not_replace_the_first() {
    let mut bench = Bench::new();
    bench.bring(PEER, NeighborState::Reachable);
    bench.reply(PEER, mac(2));
    assert_eq!(bench.neighbor(PEER).unwrap().mac, Some(mac(1)));
    bench.arp(&Arp::request(mac(3), v4(PEER), v4(PEER)));
    assert_eq!(bench.neighbor(PEER).unwrap().mac, Some(mac(3)));
}

/// RFC 4861 §7.2.5 and appendix C: each kind of advertisement in each state.
#[test]
fn advertisement_state_table() {
    use NeighborState::{Delay, Failed, Incomplete, Probe, Reachable, Stale};
    for state in [Incomplete, Reachable, Stale, Delay, Probe, Failed] {
        let lapsed = if state == Reachable { Stale } else { state };
        // MAC address, solicited, override; state and MAC address after it in a valid state.
        for (n, solicited, overrides, expected, learnt) in [
            (Some(1), true, false, Reachable, 1),
            (Some(1), true, true, Reachable, 1),
            (None, true, false, Reachable, 1),
            (Some(1), false, false, state, 1),
            (Some(1), false, true, state, 1),
            (None, false, true, state, 1),
            (Some(2), true, false, lapsed, 1),
            (Some(2), false, false, lapsed, 1),
            (Some(2), true, true, Reachable, 2),
            (Some(2), false, true, Stale, 2),
        ] {
            let mut bench = Bench::new();
            bench.bring(PEER_V6, state);
            assert!(bench.advert(PEER_V6, n.map(mac), solicited, overrides));
            let expected = match (state, n) {
                (Failed, _) => (Failed, None),
                (Incomplete, None) => (Incomplete, None),
                (Incomplete, Some(n)) if solicited => (Reachable, Some(mac(n))),
                (Incomplete, Some(n)) => (Stale, Some(mac(n))),
                _ => (expected, Some(mac(learnt))),
            };
            let neighbor = bench.neighbor(PEER_V6).unwrap();
            let context = format!("{state} {n:?} {solicited} {overrides}");
            assert_eq!((neighbor.state, neighbor.mac), expected, "{context}");
        }
    }
}

#[test]
fn advertisements_enter_nobody() {
    let mut bench = Bench::new();
    assert!(!bench.advert(PEER_V6, Some(mac(5)), true, true));
    assert!(!bench.advert(OWN_V6, Some(mac(5)), false, true));
    assert_eq!(bench.cache.conflicts(), 1);
    assert_eq!(bench.cache.neighbors(bench.now).count(), 0);
}

/// RFC 4861 §7.2.3.
#[test]
fn solicitations_for_us_enter_the_asker() {
    let mut bench = Bench::new();
    assert!(!bench.solicit(PEER_V6, "2001:db8:1::77", Some(mac(5))));
    assert!(
        bench.solicit("::", OWN_V6, None),
        "duplicate address detection"
    );
    assert!(
        bench.solicit(PEER_V6, OWN_V6, None),
        "without its MAC address"
    );
    assert!(
        bench.solicit("2001:db8:2::9", OWN_V6, Some(mac(5))),
        "from elsewhere"
    );
    assert_eq!(bench.cache.neighbors(bench.now).count(), 0);
    assert!(bench.solicit(PEER_V6, OWN_V6, Some(mac(5))));
    assert!(bench.solicit("fe80::9", OWN_V6, Some(mac(5))));
    assert_eq!(bench.state(PEER_V6), Some(NeighborState::Stale));
    assert_eq!(bench.state("fe80::9"), Some(NeighborState::Stale));
    assert_eq!(bench.sent.len(), 5, "all are answered");
}

/// RFC 6583: a scan takes nothing away from known neighbors, and holds bounded memory.
#[test]
fn scans_do_not_evict_neighbors_in_use() {
    let mut bench = Bench::with(NeighborConfig {
        entries: 100,
        incomplete: 20,
        ..NeighborConfig::default()
    });
    for (n, peer) in (1..=50).map(|n| (n, format!("203.0.113.{n}"))).skip(1) {
        assert_eq!(bench.send(&peer, 0), Ok(None));
        bench.reply(&peer, mac(n));
    }
    for n in 0..5000_u32 {
        let target = format!("203.0.{}.{}", n / 250, 1 + n % 250);
        if !target.starts_with("203.0.113.") {
            let _ = bench.send(&target, n);
        }
        if n % 50 == 0 {
            bench.pass(Duration::from_millis(100));
        }
        assert!(bench.cache.neighbors(bench.now).count() <= 100);
    }
    for n in 2..=50 {
        let known = bench
            .neighbor(&format!("203.0.113.{n}"))
            .map(|known| known.mac);
        assert_eq!(known, Some(Some(mac(n))));
    }
}

#[test]
fn only_neighbors_out_of_use_make_room() {
    let mut bench = Bench::with(NeighborConfig {
        entries: 1,
        ..NeighborConfig::default()
    });
    bench.bring(PEER, NeighborState::Reachable);
    assert_eq!(bench.send("203.0.113.10", 1), Err(1));
    bench.pass(Duration::from_secs(46));
    assert_eq!(bench.send("203.0.113.10", 2), Ok(None));
    assert_eq!(bench.state(PEER), None);
}

#[test]
fn an_id_outlives_its_neighbor_without_harm() {
    let mut bench = Bench::with(NeighborConfig {
        entries: 1,
        ..NeighborConfig::default()
    });
    let old = bench.cache.neighbor(ip(PEER), bench.now).unwrap();
    bench.pass(Duration::from_secs(4));
    let new = bench.cache.neighbor(ip("203.0.113.10"), bench.now).unwrap();
    assert_ne!(old, new);
    assert_eq!(bench.cache.resolve(old, bench.now), Resolution::Gone);
    let packet = bench.packet(1);
    assert!(bench.cache.enqueue(old, packet, bench.now).is_some());
}

#[test]
fn clearing_gives_waiting_packets_back() {
    let mut bench = Bench::new();
    bench.bring("203.0.113.10", NeighborState::Reachable);
    assert_eq!(bench.send(PEER, 3), Ok(None));
    bench.cache.clear();
    bench.drain();
    assert_eq!(bench.failed, [(ip(PEER), vec![3])]);
    assert_eq!(bench.cache.neighbors(bench.now).count(), 0);
    assert_eq!((bench.cache.held(), bench.cache.poll_at()), (0, None));
}

/// What may happen to a cache.
#[derive(Clone, Copy, Debug)]
enum Step {
    Send(u8),
    Reply(u8, u8),
    Request(u8, u8),
    Pass(u16),
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    let peer = 2..14_u8;
    prop_oneof![
        8 => peer.clone().prop_map(Step::Send),
        2 => (peer.clone(), 1..4_u8).prop_map(|(peer, mac)| Step::Reply(peer, mac)),
        1 => (peer, 1..4_u8).prop_map(|(peer, mac)| Step::Request(peer, mac)),
        3 => (0..20_000_u16).prop_map(Step::Pass),
        1 => Just(Step::Clear),
    ]
}

proptest! {
    /// Every packet is sent, comes back, is refused, or waits; none twice.
    #[test]
    fn packets_are_conserved(steps in proptest::collection::vec(step(), 0..200)) {
        let mut bench = Bench::with(NeighborConfig {
            entries: 8,
            incomplete: 5,
            queue: 3,
            total_queue: 7,
            ..NeighborConfig::default()
        });
        let mut n = 0;
        let mut done = Vec::new();
        for step in steps {
            match step {
                Step::Send(peer) => {
                    match bench.send(&format!("203.0.113.{peer}"), n) {
                        Ok(Some(_)) => done.push(n),
                        Ok(None) => {}
                        Err(refused) => done.push(refused),
                    }
                    n += 1;
                }
                Step::Reply(peer, n) => drop(bench.reply(&format!("203.0.113.{peer}"), mac(n))),
                Step::Request(peer, n) => {
                    let sender = Ipv4Addr::new(203, 0, 113, peer);
                    bench.arp(&Arp::request(mac(n), sender, v4(OWN)));
                }
                Step::Pass(millis) => bench.pass(Duration::from_millis(millis.into())),
                Step::Clear => {
                    bench.cache.clear();
                    bench.drain();
                }
            }
            let sent = bench.resolved.drain(..).flat_map(|(_, numbers)| numbers);
            done.extend(sent);
            done.extend(bench.failed.drain(..).flat_map(|(_, numbers)| numbers));
            let neighbors: Vec<_> = bench.cache.neighbors(bench.now).collect();
            let queued: usize = neighbors.iter().map(|neighbor| neighbor.queued).sum();
            prop_assert_eq!(queued, bench.cache.held());
            prop_assert!(queued <= 7 && neighbors.len() <= 8);
            prop_assert_eq!(done.len() + queued, n as usize);
            let busy = neighbors.iter().any(|neighbor| matches!(
                neighbor.state,
                NeighborState::Incomplete | NeighborState::Delay | NeighborState::Probe
            ));
            prop_assert_eq!(bench.cache.poll_at().is_some(), busy, "timers only for those in use");
        }
        bench.pass(Duration::from_secs(20));
        prop_assert_eq!(bench.cache.held(), 0, "nothing waits for ever");
        done.extend(bench.failed.drain(..).flat_map(|(_, numbers)| numbers));
        done.sort_unstable();
        prop_assert_eq!(done, (0..n).collect::<Vec<_>>());
        prop_assert_eq!(bench.cache.poll_at(), None);
    }
}
