mod conservation;
mod owners;
mod scan;

use core::net::{Ipv4Addr, Ipv6Addr};
use std::collections::BTreeSet;

use super::*;
use crate::arp::{ARP_FRAME, Operation};
use crate::frame::FramePool;
use crate::ident::{AttachmentId, Interface};
use crate::ndp::{ALL_NODES, NDP_FRAME, RouterAdvert, multicast_mac, solicited_node};
use crate::packet::craft::Craft;

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);
const OURS_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OURS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const FRIEND_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const FRIEND_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const FRIENDS: [IpAddr; 2] = [IpAddr::V4(FRIEND_V4), IpAddr::V6(FRIEND_V6)];

/// A cache under test, with packets that are numbered by their tags.
struct Bench {
    cache: NeighborCache<u32>,
    /// With room for all, unless the test is about it.
    shares: Shares,
    pool: FramePool,
    now: Instant,
    next: u32,
    /// Where packets come in.
    from: Option<Interface>,
}

/// What became of packets.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    messages: Vec<Message>,
    released: Vec<(MacAddr, u32)>,
    failed: Vec<u32>,
    dropped: Vec<u32>,
}

impl Bench {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let addresses = nets(&["192.0.2.1/16", "2001:db8::1/64"]);
        Self {
            cache: NeighborCache::with_limits(MAC, &addresses, 7, limits),
            shares: Shares::for_one(4096),
            pool: FramePool::new(4096, 128),
            now: Instant::from_millis(1_000_000),
            next: 0,
            from: None,
        }
    }

    fn packet(&mut self) -> (Packet, u32) {
        let tag = self.next;
        self.next += 1;
        let craft = Craft::v4(Craft::udp(), &tag.to_be_bytes());
        let mut packet = craft.parse(&mut self.pool);
        if let Some(from) = self.from {
            packet.set_interface(from);
        }
        (packet, tag)
    }

    /// Sends a packet; returns the tag of the one that was dropped for it.
    fn send(&mut self, to: IpAddr) -> (Resolution, Option<u32>) {
        let resolution = self.cache.resolve(to, self.account(), self.now);
        let (packet, tag) = self.packet();
        let dropped = match resolution {
            Resolution::Unknown(id) => self.hold(id, packet, tag),
            Resolution::Known(_) => None,
            Resolution::Refused(_) => Some(tag),
        };
        (resolution, dropped)
    }

    fn account(&self) -> Account {
        self.from.map_or(Account::NOS, Account::from)
    }

    fn hold(&mut self, id: NeighborId, packet: Packet, tag: u32) -> Option<u32> {
        let dropped = self
            .cache
            .hold(id, packet, tag, self.now, &mut self.shares)?;
        check(&dropped.0, dropped.1);
        Some(dropped.1)
    }

    fn outcome(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some(output) = self.cache.poll_output(&mut self.shares) {
            match output {
                Output::Send(message) => outcome.messages.push(message),
                Output::Release { mac, packet, tag } => {
                    check(&packet, tag);
                    outcome.released.push((mac, tag));
                }
                Output::Failed { packet, tag } => {
                    check(&packet, tag);
                    outcome.failed.push(tag);
                }
                Output::Dropped {
                    packet,
                    tag,
                    reason,
                } => {
                    check(&packet, tag);
                    let full = [DropReason::NeighborQueueFull, DropReason::OverShare];
                    assert!(full.contains(&reason), "{reason}");
                    outcome.dropped.push(tag);
                }
            }
        }
        outcome
    }

    /// Lets time pass until something is due, and has it done.
    fn pass(&mut self) -> Outcome {
        let at = self.cache.poll_at().expect("something is due");
        assert!(at > self.now);
        self.now = at;
        self.cache.handle_timeout(self.now);
        self.outcome()
    }

    fn pass_secs(&mut self, secs: u64) -> Outcome {
        self.now = self.now + Duration::from_secs(secs);
        self.cache.handle_timeout(self.now);
        self.outcome()
    }

    /// `address` answers a question of ours.
    fn answer(&mut self, address: IpAddr, mac: MacAddr) -> Outcome {
        let answer = match address {
            IpAddr::V4(address) => {
                let reply = Arp::request(MAC, OURS_V4, address).reply(mac);
                self.cache.handle_arp(&reply, self.now)
            }
            IpAddr::V6(address) => self.hear_advert(address, Some(mac), true, true),
        };
        assert_eq!(answer, Answer::Nothing);
        self.outcome()
    }

    fn hear_advert(
        &mut self,
        target: Ipv6Addr,
        mac: Option<MacAddr>,
        solicited: bool,
        overrides: bool,
    ) -> Answer {
        let advert = Ndp::NeighborAdvert {
            router: false,
            solicited,
            overrides,
            target,
            target_link_layer: mac,
        };
        let source_mac = mac.unwrap_or(A);
        self.cache.handle_ndp(&advert, target, source_mac, self.now)
    }

    fn solicit(&mut self, target: Ipv6Addr, source: Ipv6Addr, mac: Option<MacAddr>) -> Answer {
        let solicit = Ndp::NeighborSolicit {
            target,
            source_link_layer: mac,
        };
        self.cache
            .handle_ndp(&solicit, source, mac.unwrap_or(A), self.now)
    }

    /// Tells all that `address` is at `mac`.
    fn gratuitous(&mut self, address: IpAddr, mac: MacAddr) -> Outcome {
        let answer = match address {
            IpAddr::V4(address) => self
                .cache
                .handle_arp(&Arp::request(mac, address, address), self.now),
            IpAddr::V6(address) => self.hear_advert(address, Some(mac), false, true),
        };
        assert_eq!(answer, Answer::Nothing);
        self.outcome()
    }

    fn state(&self, address: IpAddr) -> Option<NeighborState> {
        Some(self.status(address)?.state)
    }

    fn status(&self, address: IpAddr) -> Option<NeighborStatus> {
        let mut entries = self.cache.entries(self.now);
        entries.find(|entry| entry.address == address)
    }

    fn resolved(&mut self, address: IpAddr, mac: MacAddr) {
        self.send(address);
        self.answer(address, mac);
        assert_eq!(self.state(address), Some(NeighborState::Reachable));
    }
}

impl<T: Copy> NeighborCache<T> {
    /// All neighbors.
    fn entries(&self, now: Instant) -> impl Iterator<Item = NeighborStatus> {
        let read = |first: Option<usize>| {
            let page = self.page(first.unwrap_or(0), now);
            assert!(page.rows.len() <= PAGE);
            page
        };
        crate::page::all(read).into_iter()
    }
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// The packet is the one that was made with this tag.
fn check(packet: &Packet, tag: u32) {
    assert!(packet.frame().bytes().ends_with(&tag.to_be_bytes()));
}

fn question(target: IpAddr, to: Option<MacAddr>) -> Message {
    match target {
        IpAddr::V4(target) => Message::Arp {
            arp: Arp::request(MAC, OURS_V4, target),
            destination: to.unwrap_or(MacAddr::BROADCAST),
        },
        IpAddr::V6(target) => {
            let group = solicited_node(target);
            Message::Ndp {
                ndp: Ndp::NeighborSolicit {
                    target,
                    source_link_layer: Some(MAC),
                },
                envelope: Envelope {
                    source_mac: MAC,
                    destination_mac: to.unwrap_or(multicast_mac(group)),
                    source: OURS_V6,
                    destination: if to.is_some() { target } else { group },
                },
            }
        }
    }
}

#[test]
fn the_first_packets_wait_and_leave_in_order() {
    for friend in FRIENDS {
        let mut bench = Bench::new();
        for _ in 0..3 {
            assert!(matches!(bench.send(friend), (Resolution::Unknown(_), None)));
        }
        assert_eq!(bench.cache.held(), 3);
        assert_eq!(bench.outcome().messages, [question(friend, None)]);
        let released = bench.answer(friend, A).released;
        assert_eq!(released, [(A, 0), (A, 1), (A, 2)]);
        assert_eq!(bench.send(friend).0, Resolution::Known(A));
        assert_eq!(bench.cache.held(), 0);
    }
}

/// RFC 4861 §7.2.2: MAX_MULTICAST_SOLICIT questions, RetransTimer apart, then the packets fail.
#[test]
fn a_neighbor_that_does_not_answer_fails_after_three_seconds() {
    for friend in FRIENDS {
        let mut bench = Bench::new();
        let start = bench.now;
        bench.send(friend);
        bench.send(friend);
        let mut asked = vec![bench.outcome().messages];
        asked.extend([bench.pass().messages, bench.pass().messages]);
        assert_eq!(asked, vec![vec![question(friend, None)]; 3]);
        assert_eq!(bench.pass().failed, [0, 1]);
        assert_eq!(bench.now, start + Duration::from_secs(3));
        assert_eq!(bench.state(friend), Some(NeighborState::Failed));
        assert_eq!(bench.cache.poll_at(), None);

        // The next packet has it asked for again; what has failed does not answer any more.
        assert_eq!(bench.gratuitous(friend, A), Outcome::default());
        assert!(matches!(bench.send(friend), (Resolution::Unknown(_), None)));
        assert_eq!(bench.outcome().messages, [question(friend, None)]);
        assert_eq!(bench.answer(friend, A).released, [(A, 2)]);
    }
}

#[test]
fn failed_neighbors_are_shown_for_a_minute() {
    let mut bench = Bench::new();
    bench.send(FRIENDS[0]);
    for _ in 0..3 {
        bench.pass();
    }
    bench.pass_secs(59);
    assert_eq!(bench.state(FRIENDS[0]), Some(NeighborState::Failed));
    bench.pass_secs(1);
    assert_eq!(bench.state(FRIENDS[0]), None);
}

/// RFC 4861 §7.3.3: DELAY_FIRST_PROBE_TIME after the first packet, unicast probes.
#[test]
fn stale_neighbors_are_probed_when_used() {
    for friend in FRIENDS {
        let mut bench = Bench::new();
        bench.resolved(friend, A);
        bench.pass_secs(46);
        assert_eq!(bench.state(friend), Some(NeighborState::Stale));
        let used = bench.now;
        assert_eq!(bench.send(friend).0, Resolution::Known(A));
        assert_eq!(bench.state(friend), Some(NeighborState::Delay));
        assert_eq!(bench.pass().messages, [question(friend, Some(A))]);
        assert_eq!(bench.now, used + Duration::from_secs(5));
        assert_eq!(bench.state(friend), Some(NeighborState::Probe));
        assert_eq!(bench.send(friend).0, Resolution::Known(A));
        bench.answer(friend, A);
        assert_eq!(bench.state(friend), Some(NeighborState::Reachable));
        assert_eq!(bench.cache.poll_at(), None);

        bench.pass_secs(46);
        bench.send(friend);
        for _ in 0..3 {
            assert_eq!(bench.pass().messages, [question(friend, Some(A))]);
        }
        assert_eq!(bench.pass(), Outcome::default());
        assert_eq!(bench.state(friend), Some(NeighborState::Failed));
        bench.send(friend);
        assert_eq!(bench.outcome().messages, [question(friend, None)]);
    }
}

#[test]
fn neighbors_that_nobody_uses_need_no_timer() {
    let mut bench = Bench::new();
    assert_eq!(bench.cache.poll_at(), None);
    for friend in FRIENDS {
        bench.resolved(friend, A);
    }
    assert_eq!(bench.cache.poll_at(), None);
    for _ in 0..100 {
        assert_eq!(bench.pass_secs(10), Outcome::default());
        assert_eq!(bench.cache.poll_at(), None);
    }
    let states: Vec<_> = bench.cache.entries(bench.now).collect();
    let stale = |entry: &NeighborStatus| entry.state == NeighborState::Stale;
    assert!(states.len() == 2 && states.iter().all(stale));
    assert_eq!(states[0].age, Duration::from_secs(1000));
}

/// RFC 4861 §6.3.2: uniformly between half and one and a half times the base.
#[test]
fn reachability_lasts_for_random_times_about_half_a_minute() {
    let mut bench = Bench::new();
    let times: BTreeSet<_> = (0..1000).map(|_| bench.cache.reachable_time()).collect();
    assert!(times.len() > 900);
    assert!(times.iter().all(|time| (15..=45).contains(&time.as_secs())));
    assert!(
        times
            .first()
            .is_some_and(|&time| time < Duration::from_secs(16))
    );
    assert!(
        times
            .last()
            .is_some_and(|&time| time > Duration::from_secs(44))
    );
}

#[test]
fn arp_requests_and_probes_for_our_address_are_answered() {
    let mut bench = Bench::new();
    let other = Ipv4Addr::new(192, 0, 2, 77);
    for sender in [FRIEND_V4, Ipv4Addr::UNSPECIFIED, [198, 51, 100, 1].into()] {
        let request = Arp::request(A, sender, OURS_V4);
        let reply = Message::Arp {
            arp: request.reply(MAC),
            destination: A,
        };
        let answer = bench.cache.handle_arp(&request, bench.now);
        assert_eq!(answer, Answer::Reply(reply), "{sender}");
        let request = Arp::request(A, sender, other);
        let answer = bench.cache.handle_arp(&request, bench.now);
        assert_eq!(answer, Answer::Nothing, "{sender}");
    }
    // Only who is in a subnet of ours was learnt.
    let known: Vec<_> = bench.cache.entries(bench.now).collect();
    assert_eq!(known.len(), 1);
    assert_eq!(known[0].address, FRIENDS[0]);
    assert_eq!(
        (known[0].mac, known[0].state),
        (Some(A), NeighborState::Stale)
    );
    assert_eq!(bench.send(FRIENDS[0]).0, Resolution::Known(A));
}

#[test]
fn solicitations_for_our_addresses_are_answered() {
    let mut bench = Bench::new();
    let advert = |target, solicited, router| Ndp::NeighborAdvert {
        router,
        solicited,
        overrides: true,
        target,
        target_link_layer: Some(MAC),
    };
    for router in [false, true] {
        bench.cache.set_router(router);
        for (target, source) in [(OURS_V6, FRIEND_V6), (MAC.link_local(), A.link_local())] {
            // RFC 4861 §7.2.4: without the option the answer goes to where the frame came from.
            for option in [Some(A), None] {
                let expected = Message::Ndp {
                    ndp: advert(target, true, router),
                    envelope: Envelope {
                        source_mac: MAC,
                        destination_mac: A,
                        source: target,
                        destination: source,
                    },
                };
                let answer = bench.solicit(target, source, option);
                assert_eq!(answer, Answer::Reply(expected));
            }
            // RFC 4862 §5.4.3: duplicate address detection.
            let expected = Message::Ndp {
                ndp: advert(target, false, router),
                envelope: Envelope::to_group(MAC, target, ALL_NODES),
            };
            let answer = bench.solicit(target, Ipv6Addr::UNSPECIFIED, None);
            assert_eq!(answer, Answer::Reply(expected));
        }
    }
    assert_eq!(
        bench.solicit(FRIEND_V6, A.link_local(), Some(A)),
        Answer::Nothing
    );
    assert_eq!(bench.cache.entries(bench.now).count(), 2);
    assert_eq!(bench.state(FRIENDS[1]), Some(NeighborState::Stale));
}

/// RFC 4861 §7.2.3: an entry is created only from a source link-layer address option.
#[test]
fn solicitations_without_an_option_teach_nothing() {
    let mut bench = Bench::new();
    bench.solicit(OURS_V6, FRIEND_V6, None);
    bench.solicit(OURS_V6, "2001:db8:1::2".parse().unwrap(), Some(A));
    assert_eq!(bench.cache.entries(bench.now).count(), 0);
}

#[test]
fn nothing_unsolicited_adds_a_neighbor() {
    let mut bench = Bench::new();
    for friend in FRIENDS {
        bench.gratuitous(friend, A);
        bench.answer(friend, A);
    }
    let bystander = Arp::request(A, FRIEND_V4, [192, 0, 2, 9].into());
    bench.cache.handle_arp(&bystander, bench.now);
    for ndp in [
        Ndp::RouterSolicit {
            source_link_layer: Some(A),
        },
        Ndp::RouterAdvert(RouterAdvert {
            source_link_layer: Some(A),
            ..RouterAdvert::default()
        }),
        Ndp::Redirect {
            target: FRIEND_V6,
            destination: FRIEND_V6,
        },
    ] {
        let answer = bench.cache.handle_ndp(&ndp, A.link_local(), A, bench.now);
        assert_eq!(answer, Answer::Nothing);
    }
    assert_eq!(bench.cache.entries(bench.now).count(), 0);
}

#[test]
fn a_neighbor_may_move() {
    for friend in FRIENDS {
        let mut bench = Bench::new();
        bench.resolved(friend, A);
        bench.gratuitous(friend, A);
        assert_eq!(bench.state(friend), Some(NeighborState::Reachable));
        bench.gratuitous(friend, B);
        assert_eq!(bench.state(friend), Some(NeighborState::Stale));
        assert_eq!(bench.send(friend).0, Resolution::Known(B));
        assert_eq!(bench.state(friend), Some(NeighborState::Delay));
    }
}

/// As Linux does for gratuitous ARP, and RFC 4861 appendix C for unsolicited advertisements.
#[test]
fn who_announces_itself_in_time_gets_its_packets() {
    for friend in FRIENDS {
        let mut bench = Bench::new();
        bench.send(friend);
        bench.outcome();
        assert_eq!(bench.gratuitous(friend, A).released, [(A, 0)]);
        // RFC 4861 §7.3.3: sending to a stale neighbor has it probed.
        assert_eq!(bench.state(friend), Some(NeighborState::Delay));
    }
}

#[test]
fn the_first_arp_answer_holds_for_a_second() {
    let mut bench = Bench::new();
    bench.resolved(FRIENDS[0], A);
    bench.answer(FRIENDS[0], B);
    assert_eq!(bench.status(FRIENDS[0]).unwrap().mac, Some(A));
    bench.pass_secs(1);
    bench.answer(FRIENDS[0], B);
    assert_eq!(bench.status(FRIENDS[0]).unwrap().mac, Some(B));
}

#[test]
fn replies_to_others_confirm_nothing() {
    let mut bench = Bench::new();
    bench.resolved(FRIENDS[0], A);
    bench.pass_secs(46);
    let mut reply = Arp::request(B, [192, 0, 2, 9].into(), FRIEND_V4).reply(A);
    bench.cache.handle_arp(&reply, bench.now);
    assert_eq!(bench.state(FRIENDS[0]), Some(NeighborState::Stale));
    reply.operation = Operation::Other(8);
    reply.sender_mac = B;
    bench.cache.handle_arp(&reply, bench.now);
    assert_eq!(bench.status(FRIENDS[0]).unwrap().mac, Some(A));
}

#[test]
fn no_station_has_a_group_address_none_or_ours() {
    let mut bench = Bench::new();
    for mac in [
        MacAddr::ZERO,
        MacAddr::BROADCAST,
        MacAddr([1, 0, 0x5e, 0, 0, 1]),
        MAC,
    ] {
        for friend in FRIENDS {
            bench.send(friend);
            bench.outcome();
            assert_eq!(bench.answer(friend, mac), Outcome::default());
            assert_eq!(bench.gratuitous(friend, mac), Outcome::default());
            assert_eq!(bench.state(friend), Some(NeighborState::Incomplete));
        }
        let request = Arp::request(mac, FRIEND_V4, OURS_V4);
        let answer = bench.cache.handle_arp(&request, bench.now);
        assert_eq!(answer, Answer::Nothing);
        let answer = bench.solicit(OURS_V6, FRIEND_V6, Some(mac));
        assert_eq!(answer, Answer::Nothing);
        assert_eq!(bench.outcome(), Outcome::default());
    }
}

/// RFC 5227 §2.4, RFC 4862 §5.4.4.
#[test]
fn who_uses_our_address_is_reported() {
    let mut bench = Bench::new();
    let conflict = |address: IpAddr, first| Answer::Conflict {
        address,
        mac: A,
        first,
    };
    for (target, first) in [(FRIEND_V4, true), (OURS_V4, false)] {
        let request = Arp::request(A, OURS_V4, target);
        let answer = bench.cache.handle_arp(&request, bench.now);
        assert_eq!(answer, conflict(OURS_V4.into(), first));
    }
    for ours in [OURS_V6, MAC.link_local()] {
        let answer = bench.hear_advert(ours, Some(A), false, true);
        assert_eq!(answer, conflict(ours.into(), true));
    }
    let answer = bench.solicit(OURS_V6, MAC.link_local(), Some(A));
    assert_eq!(answer, conflict(MAC.link_local().into(), false));
    assert_eq!(bench.cache.entries(bench.now).count(), 0);
}

/// RFC 5227 §2.4 (c): once in ten seconds, for ever.
#[test]
fn our_address_is_defended_against_others() {
    let mut bench = Bench::new();
    let announcement = Message::Arp {
        arp: Arp::request(MAC, OURS_V4, OURS_V4),
        destination: MacAddr::BROADCAST,
    };
    let mut defended = 0;
    for second in 0..=30 {
        let claim = Arp::request(A, OURS_V4, OURS_V4);
        let Answer::Conflict { first, .. } = bench.cache.handle_arp(&claim, bench.now) else {
            panic!("nobody else has it")
        };
        assert_eq!(first, second % 10 == 0, "after {second} s");
        while let Some(output) = bench.cache.poll_output(&mut bench.shares) {
            assert!(matches!(output, Output::Send(message) if message == announcement));
            assert!(first);
            defended += 1;
        }
        bench.now = bench.now + Duration::from_secs(1);
    }
    assert_eq!(defended, 4);
    // An address that we give up is nobody's to defend.
    bench.cache.set_addresses(&nets(&["192.0.2.77/24"]));
    let claim = Arp::request(A, OURS_V4, OURS_V4);
    let answer = bench.cache.handle_arp(&claim, bench.now);
    assert_eq!(answer, Answer::Nothing);
}

#[test]
fn addresses_that_no_neighbor_can_have_are_refused() {
    let mut bench = Bench::new();
    for address in [
        "192.0.2.1",
        "192.0.255.255",
        "255.255.255.255",
        "224.0.0.1",
        "0.0.0.0",
        "::",
        "2001:db8::1",
        "ff02::1",
        "::ffff:192.0.2.2",
    ] {
        let address = address.parse().unwrap();
        let refused = Resolution::Refused(DropReason::NeighborFailed);
        assert_eq!(bench.send(address).0, refused, "{address}");
    }
    bench.cache.set_addresses(&nets(&["2001:db8::1/64"]));
    let refused = Resolution::Refused(DropReason::NeighborFailed);
    assert_eq!(bench.send(FRIENDS[0]).0, refused, "no address to ask from");
    assert_eq!(bench.outcome(), Outcome::default());
}

#[test]
fn queues_are_bounded_and_drop_their_oldest() {
    let mut bench = Bench::with(Limits {
        held_per_neighbor: 3,
        held: 5,
        ..Limits::default()
    });
    let dropped = |bench: &mut Bench, to: IpAddr| bench.send(to).1;
    for _ in 0..3 {
        assert_eq!(dropped(&mut bench, FRIENDS[0]), None);
    }
    assert_eq!(dropped(&mut bench, FRIENDS[0]), Some(0));
    for _ in 0..2 {
        assert_eq!(dropped(&mut bench, FRIENDS[1]), None);
    }
    // Full in total: the oldest of all goes.
    assert_eq!(dropped(&mut bench, FRIENDS[1]), Some(1));
    assert_eq!(bench.cache.held(), 5);
    assert_eq!(bench.status(FRIENDS[0]).unwrap().queued, 2);
    assert_eq!(bench.answer(FRIENDS[0], A).released, [(A, 2), (A, 3)]);
    let released = bench.answer(FRIENDS[1], B).released;
    assert_eq!(released, [(B, 4), (B, 5), (B, 6)]);
}

#[test]
fn a_packet_may_come_too_early_or_too_late_for_its_queue() {
    let mut bench = Bench::new();
    let Resolution::Unknown(id) = bench.cache.resolve(FRIENDS[0], Account::NOS, bench.now) else {
        panic!("nobody knows it")
    };
    bench.answer(FRIENDS[0], A);
    let (packet, tag) = bench.packet();
    assert_eq!(bench.hold(id, packet, tag), None);
    assert_eq!(bench.outcome().released, [(A, tag)]);

    bench.cache.clear(&mut bench.shares);
    let (packet, tag) = bench.packet();
    assert_eq!(bench.hold(id, packet, tag), Some(tag));
}

#[test]
fn an_address_that_becomes_ours_is_no_neighbor_any_more() {
    let mut bench = Bench::new();
    bench.send(FRIENDS[0]);
    bench.resolved(FRIENDS[1], A);
    bench.outcome();
    bench
        .cache
        .set_addresses(&nets(&["192.0.2.2/24", "2001:db8::2/64"]));
    assert_eq!(bench.outcome().failed, [0]);
    let refused = Resolution::Refused(DropReason::NeighborFailed);
    assert_eq!(bench.send(FRIENDS[0]).0, refused);
    assert_eq!(bench.send(FRIENDS[1]).0, refused);
    assert_eq!(bench.cache.entries(bench.now).count(), 0);
    let old = IpAddr::V4(OURS_V4);
    assert!(matches!(bench.send(old).0, Resolution::Unknown(_)));
}

#[test]
fn an_address_that_becomes_a_broadcast_address_is_no_neighbor_any_more() {
    let mut bench = Bench::new();
    let last = IpAddr::from([192, 0, 2, 3]);
    bench
        .cache
        .set_addresses(&nets(&["192.0.2.1/31", "192.0.2.2/31"]));
    bench.resolved(last, A);
    bench.cache.set_addresses(&nets(&["192.0.2.2/30"]));
    assert_eq!(bench.cache.entries(bench.now).count(), 0);
    let refused = Resolution::Refused(DropReason::NeighborFailed);
    assert_eq!(bench.send(last).0, refused);
}

#[test]
fn all_addresses_are_announced() {
    let mut bench = Bench::new();
    bench.cache.announce();
    let messages = bench.outcome().messages;
    let gratuitous = Message::Arp {
        arp: Arp::request(MAC, OURS_V4, OURS_V4),
        destination: MacAddr::BROADCAST,
    };
    let advert = |target| Message::Ndp {
        ndp: Ndp::NeighborAdvert {
            router: false,
            solicited: false,
            overrides: true,
            target,
            target_link_layer: Some(MAC),
        },
        envelope: Envelope::to_group(MAC, target, ALL_NODES),
    };
    assert_eq!(
        messages,
        [gratuitous, advert(OURS_V6), advert(MAC.link_local())]
    );
}

#[test]
fn messages_are_written_as_frames() {
    let mut bench = Bench::new();
    for friend in FRIENDS {
        bench.send(friend);
    }
    let [arp, ndp] = bench.outcome().messages[..] else {
        panic!("two questions")
    };
    let mut frame = bench.pool.alloc().unwrap();
    arp.write(&mut frame).unwrap();
    assert_eq!(frame.len(), ARP_FRAME);
    let question = Arp::request(MAC, OURS_V4, FRIEND_V4);
    assert_eq!(Arp::parse(frame.bytes()), Ok(question));
    ndp.write(&mut frame).unwrap();
    assert!(frame.len() <= NDP_FRAME);
    let packet = Packet::parse(frame).unwrap();
    let question = Ndp::NeighborSolicit {
        target: FRIEND_V6,
        source_link_layer: Some(MAC),
    };
    assert_eq!(Ndp::parse(&packet), Ok(question));
}
