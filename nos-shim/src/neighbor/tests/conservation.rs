//! No packet is lost, whatever happens.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Something that happens to a cache. Neighbors are numbered, and so are MAC addresses.
#[derive(Clone, Copy, Debug)]
enum Step {
    Send(u8),
    Resolve(u8),
    HoldLate(u8),
    Answer(u8, u8),
    Gratuitous(u8, u8),
    Ask(u8, u8),
    Pass(u64),
    Addresses(bool),
    Announce,
    Clear,
    /// The packets of another owner come next.
    From(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let (n, mac) = (0..24_u8, 0..6_u8);
    prop_oneof![
        12 => n.clone().prop_map(Step::Send),
        2 => n.clone().prop_map(Step::Resolve),
        2 => n.clone().prop_map(Step::HoldLate),
        4 => (n.clone(), mac.clone()).prop_map(|(n, mac)| Step::Answer(n, mac)),
        2 => (n.clone(), mac.clone()).prop_map(|(n, mac)| Step::Gratuitous(n, mac)),
        2 => (n, mac).prop_map(|(n, mac)| Step::Ask(n, mac)),
        6 => prop_oneof![0..300_u64, 0..20_000_u64].prop_map(Step::Pass),
        1 => any::<bool>().prop_map(Step::Addresses),
        1 => Just(Step::Announce),
        3 => (0..4_u16).prop_map(Step::From),
        1 => (0..20_u8).prop_map(|n| if n == 0 { Step::Clear } else { Step::Pass(100) }),
    ]
}

/// Neighbors of both families; 192.0.2.1 and 2001:db8::1 are ours at first.
fn neighbor(n: u8) -> IpAddr {
    if n.is_multiple_of(2) {
        IpAddr::from([192, 0, 2, n / 2 + 1])
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(OURS_V6.to_bits() + u128::from(n / 2)))
    }
}

/// The first three are no neighbor's.
fn station(n: u8) -> MacAddr {
    match n {
        0 => MAC,
        1 => MacAddr::BROADCAST,
        2 => MacAddr::ZERO,
        n => MacAddr([2, 0, 0, 0, 1, n]),
    }
}

/// Owners of packets.
const OWNERS: usize = 4;

/// A bench that keeps the books.
struct Ledger {
    bench: Bench,
    ids: Vec<(NeighborId, IpAddr)>,
    /// Where each packet was to go.
    sent_to: Vec<Option<NeighborId>>,
    last_released: BTreeMap<(u32, u32), u32>,
    ended: BTreeSet<u32>,
}

impl Ledger {
    fn new(limits: Limits) -> Self {
        Self {
            bench: Bench::with(limits),
            ids: Vec::new(),
            sent_to: Vec::new(),
            last_released: BTreeMap::new(),
            ended: BTreeSet::new(),
        }
    }

    fn end(&mut self, tag: u32) {
        assert!(self.ended.insert(tag), "packet {tag} ended twice");
    }

    fn resolve(&mut self, n: u8) -> Resolution {
        let (account, now) = (self.bench.account(), self.bench.now);
        self.bench.cache.resolve(neighbor(n), account, now)
    }

    fn hold(&mut self, id: NeighborId) {
        let (packet, tag) = self.bench.packet();
        self.sent_to.push(Some(id));
        if let Some(dropped) = self.bench.hold(id, packet, tag) {
            self.end(dropped);
        }
    }

    fn drain(&mut self) {
        let outcome = self.bench.outcome();
        for (mac, tag) in outcome.released {
            assert!(mac.is_unicast() && mac != MAC);
            self.end(tag);
            let id = self.sent_to[tag as usize].unwrap();
            let last = self.last_released.insert((id.slot, id.generation), tag);
            assert!(last.is_none_or(|last| last < tag), "out of order");
        }
        for tag in outcome.failed.into_iter().chain(outcome.dropped) {
            self.end(tag);
        }
    }

    fn happen(&mut self, step: Step) {
        let now = self.bench.now;
        match step {
            Step::From(owner) => {
                let id = AttachmentId::new(owner, 0);
                self.bench.from = (owner > 0).then_some(Interface::Attachment(id));
            }
            Step::Send(n) => match self.resolve(n) {
                Resolution::Unknown(id) => {
                    self.ids.push((id, neighbor(n)));
                    self.hold(id);
                }
                Resolution::Known(mac) => assert!(mac.is_unicast() && mac != MAC),
                Resolution::Refused(_) => {}
            },
            Step::Resolve(n) => {
                self.resolve(n);
            }
            Step::HoldLate(n) => {
                if let Some(&(id, _)) = self.ids.get(usize::from(n)) {
                    self.hold(id);
                }
            }
            Step::Answer(n, mac) => self.answer(neighbor(n), station(mac)),
            Step::Gratuitous(n, mac) => self.announce(neighbor(n), station(mac)),
            Step::Ask(n, mac) => self.ask(neighbor(n), station(mac)),
            Step::Pass(millis) => {
                self.bench.now = now + Duration::from_millis(millis);
                self.bench.cache.handle_timeout(self.bench.now);
                let at = self.bench.cache.poll_at();
                assert!(at.is_none_or(|at| at > self.bench.now), "still due");
            }
            Step::Addresses(usual) => {
                let usual_ones = ["192.0.2.1/16", "2001:db8::1/64"];
                let others = ["192.0.2.4/24", "2001:db8::3/64", "2001:db8::5/64"];
                let chosen = if usual { &usual_ones[..] } else { &others };
                self.bench.cache.set_addresses(&nets(chosen));
            }
            Step::Announce => self.bench.cache.announce(),
            Step::Clear => {
                for (packet, tag) in self.bench.cache.clear(&mut self.bench.shares) {
                    check(&packet, tag);
                    self.end(tag);
                }
            }
        }
    }

    fn answer(&mut self, address: IpAddr, mac: MacAddr) {
        match address {
            IpAddr::V4(address) => {
                let reply = Arp::request(MAC, OURS_V4, address).reply(mac);
                self.bench.cache.handle_arp(&reply, self.bench.now);
            }
            IpAddr::V6(address) => {
                self.bench.hear_advert(address, Some(mac), true, false);
            }
        }
    }

    fn announce(&mut self, address: IpAddr, mac: MacAddr) {
        match address {
            IpAddr::V4(address) => {
                let request = Arp::request(mac, address, address);
                self.bench.cache.handle_arp(&request, self.bench.now);
            }
            IpAddr::V6(address) => {
                self.bench.hear_advert(address, Some(mac), false, true);
            }
        }
    }

    fn ask(&mut self, address: IpAddr, mac: MacAddr) {
        match address {
            IpAddr::V4(address) => {
                let request = Arp::request(mac, address, OURS_V4);
                self.bench.cache.handle_arp(&request, self.bench.now);
            }
            IpAddr::V6(address) => {
                self.bench.solicit(OURS_V6, address, Some(mac));
            }
        }
    }

    fn check_invariants(&self, limits: Limits) {
        let cache = &self.bench.cache;
        let live = self.sent_to.len() - self.ended.len();
        assert_eq!(live, cache.held(), "conservation");
        assert_eq!(self.bench.shares.held(), cache.held(), "the book");
        let entries: Vec<_> = cache.entries(self.bench.now).collect();
        assert!(entries.len() <= limits.neighbors);
        assert!(cache.parked.len() <= limits.held);
        let queued: usize = entries.iter().map(|entry| entry.queued).sum();
        assert_eq!(queued, cache.parked.len());
        for entry in entries {
            assert!(!cache.addresses.contains(entry.address), "{entry:?}");
            assert!(entry.mac.is_none_or(|mac| mac.is_unicast() && mac != MAC));
            assert!(entry.queued <= OWNERS * limits.held_per_neighbor);
            assert!(entry.queued == 0 || entry.state == NeighborState::Incomplete);
            let has_mac = !matches!(
                entry.state,
                NeighborState::Incomplete | NeighborState::Failed
            );
            assert_eq!(entry.mac.is_some(), has_mac, "{entry:?}");
        }
    }
}

proptest! {
    /// Every packet that was to wait is released, fails, is dropped for a reason, or still waits;
    /// and left alone, everything comes to rest.
    #[test]
    fn no_packet_is_lost(
        steps in proptest::collection::vec(step(), 1..200),
        book in 2..20_usize,
    ) {
        let limits = Limits { neighbors: 8, unresolved: 4, held_per_neighbor: 3, held: 7 };
        let mut ledger = Ledger::new(limits);
        ledger.bench.shares = Shares::new(book);
        for step in steps {
            ledger.happen(step);
            ledger.check_invariants(limits);
            ledger.drain();
            ledger.check_invariants(limits);
        }
        let mut rounds = 0;
        while let Some(at) = ledger.bench.cache.poll_at() {
            ledger.bench.now = at;
            ledger.bench.cache.handle_timeout(at);
            ledger.drain();
            rounds += 1;
            prop_assert!(rounds <= 8 * 8, "it never rests");
        }
        prop_assert_eq!(ledger.bench.cache.held(), 0);
        prop_assert_eq!(ledger.ended.len(), ledger.sent_to.len());
    }
}
