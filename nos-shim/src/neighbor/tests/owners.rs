//! What one owner does costs another nothing ([`crate::share`]).

use super::*;

const B: Interface = Interface::Attachment(AttachmentId(7));
const VICTIM: Interface = Interface::Attachment(AttachmentId(8));

/// The `n`th address at which nobody is.
fn unused(n: u16) -> IpAddr {
    let [a, b] = n.to_be_bytes();
    IpAddr::from([192, 0, 16 + a, b])
}

impl Bench {
    /// Sends so many packets of B to each of so many addresses; returns the tags of those dropped.
    fn flood(&mut self, addresses: u16, packets: usize) -> Vec<u32> {
        self.from = Some(B);
        let mut dropped = Vec::new();
        for n in 0..addresses {
            for _ in 0..packets {
                dropped.extend(self.send(unused(n)).1);
                dropped.extend(self.outcome().dropped);
            }
        }
        self.from = Some(VICTIM);
        dropped
    }
}

/// The recipe that once filled the pool: 64 datagrams to each of 16 addresses.
#[test]
fn a_flood_holds_half_of_the_share_and_loses_its_own() {
    let mut bench = Bench::new();
    bench.shares = Shares::new(256);
    bench.from = Some(VICTIM);
    let first = bench.next;
    for _ in 0..10 {
        assert_eq!(bench.send(FRIENDS[0]).1, None);
    }
    let dropped = bench.flood(16, 64);
    assert!(dropped.iter().all(|&tag| tag >= first + 10), "its own");
    assert_eq!(bench.shares.held_by(B.into()), 128 - 5);
    assert_eq!(dropped.len(), 16 * 64 - (128 - 5));
    // There is room for a burst of the victim's to another new neighbor.
    for _ in 0..54 {
        assert_eq!(bench.send(FRIENDS[1]).1, None);
    }
    let released = |outcome: Outcome| outcome.released.iter().map(|it| it.1).collect::<Vec<_>>();
    let tags: Vec<_> = (first..first + 10).collect();
    assert_eq!(released(bench.answer(FRIENDS[0], A)), tags);
    assert_eq!(released(bench.answer(FRIENDS[1], A)).len(), 54);
}

/// Both wait for the same neighbor: the queue of the one is not that of the other.
#[test]
fn a_flood_to_the_same_neighbor_loses_its_own_and_order_is_kept() {
    let mut bench = Bench::new();
    bench.from = Some(VICTIM);
    assert_eq!(
        bench.send(unused(0)),
        (
            bench.cache.resolve(unused(0), Account::NOS, bench.now),
            None
        )
    );
    let dropped = bench.flood(1, 200);
    assert_eq!(
        dropped,
        (1..=136).collect::<Vec<_>>(),
        "the oldest of its own"
    );
    assert_eq!(bench.send(unused(0)).1, None);
    let released = bench.answer(unused(0), A).released;
    let tags: Vec<_> = released.into_iter().map(|(_, tag)| tag).collect();
    let expected: Vec<_> = [0].into_iter().chain(137..=201).collect();
    assert_eq!(tags, expected);
}

/// An owner that was alone gives back what others need, with its own next packets.
#[test]
fn an_owner_over_its_share_shrinks() {
    let mut bench = Bench::new();
    bench.shares = Shares::new(300);
    bench.flood(3, 60);
    assert_eq!(bench.shares.held_by(B.into()), 150);
    for n in 0..3 {
        for _ in 0..60 {
            bench.send(FRIENDS[n % 2]);
            bench.flood(2, 1);
        }
    }
    let [theirs, ours] = [B, VICTIM].map(|owner| bench.shares.held_by(owner.into()));
    assert!((99..=101).contains(&theirs), "{theirs}");
    assert!((99..=101).contains(&ours), "{ours}");
}

/// Whoever scans takes places from itself alone, and a neighbor that somebody else asks for is asked
/// for at once.
#[test]
fn a_scan_takes_no_places_of_others() {
    let limits = Limits {
        neighbors: 300,
        unresolved: 64,
        held_per_neighbor: 8,
        held: 1000,
    };
    let mut bench = Bench::with(limits);
    bench.from = Some(VICTIM);
    bench.send(FRIENDS[0]);
    bench.flood(1000, 1);
    assert_eq!(bench.state(FRIENDS[0]), Some(NeighborState::Incomplete));
    // None of the scanned has had its time to answer, and still there is a place.
    let (resolution, dropped) = bench.send(FRIENDS[1]);
    assert!(matches!(resolution, Resolution::Unknown(_)) && dropped.is_none());
    assert_eq!(bench.outcome().messages.len(), 1);
    // Nor later.
    for _ in 0..8 {
        bench.now = bench.now + Duration::from_millis(100);
        bench.flood(1000, 1);
    }
    for friend in FRIENDS {
        assert_eq!(bench.answer(friend, A).released.len(), 1, "{friend}");
    }
    assert!(bench.cache.table.unresolved() <= 64);
}
