//! Whoever asks for many addresses harms nobody (RFC 6583).

use super::*;
use crate::neighbor::resolve::TIME_TO_ANSWER;

/// The `n`th address of a scan.
fn scanned(n: u32) -> IpAddr {
    if n.is_multiple_of(2) {
        IpAddr::V4(Ipv4Addr::from_bits(0xc000_0400 + n / 2 % 0xf000))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(
            FRIEND_V6.to_bits() + (u128::from(n) << 20),
        ))
    }
}

const TIGHT: Limits = Limits {
    neighbors: 300,
    unresolved: 64,
    held_per_neighbor: 8,
    held: 100,
};

/// RFC 6583: whoever scans our subnets gets bounded places, packets and solicitations, and takes
/// nothing from those who are known.
#[test]
fn a_scan_displaces_nobody() {
    let mut bench = Bench::with(TIGHT);
    let known: Vec<_> = (3..200).map(|n| IpAddr::from([192, 0, 2, n])).collect();
    for &address in &known {
        bench.resolved(address, A);
    }
    let start = bench.now;
    let (mut asked, mut ended) = (0, 0);
    for n in 0..100_000 {
        bench.now = bench.now + Duration::from_micros(100);
        bench.cache.handle_timeout(bench.now);
        ended += usize::from(bench.send(scanned(n)).1.is_some());
        let outcome = bench.outcome();
        asked += outcome.messages.len();
        ended += outcome.failed.len() + outcome.dropped.len();
        assert!(bench.cache.held() <= TIGHT.held);
        assert!(bench.cache.table.unresolved() <= TIGHT.unresolved);
    }
    assert_eq!(ended + bench.cache.held(), 100_000);
    assert!(bench.cache.entries(bench.now).count() <= TIGHT.neighbors);
    let quarters = bench.now.since(start).as_millis() / TIME_TO_ANSWER.as_millis();
    let most = TIGHT.unresolved * (1 + usize::try_from(quarters).unwrap());
    assert!(asked <= most, "{asked} questions, {most} are allowed");
    for &address in &known {
        assert_eq!(bench.send(address).0, Resolution::Known(A), "{address}");
    }
}

/// Somebody whom nobody knows yet, asked for amid a scan, is found if it answers in time.
#[test]
fn a_scan_hides_no_newcomer() {
    let mut bench = Bench::with(TIGHT);
    let newcomer = FRIENDS[0];
    let mut asked_at = None;
    for n in 0..100_000 {
        bench.now = bench.now + Duration::from_micros(100);
        bench.cache.handle_timeout(bench.now);
        bench.send(scanned(n));
        if n > 10_000 && n % 10 == 0 {
            bench.send(newcomer);
        }
        let asked = bench.outcome().messages.contains(&question(newcomer, None));
        asked_at = asked_at.or(asked.then_some(bench.now));
        let time_to_answer = Duration::from_millis(200);
        if asked_at.is_some_and(|asked_at| bench.now.since(asked_at) >= time_to_answer) {
            assert!(!bench.answer(newcomer, A).released.is_empty());
            assert_eq!(bench.send(newcomer).0, Resolution::Known(A));
            return;
        }
    }
    panic!("it was never asked for");
}

/// Who asks for us adds itself; neighbors that have answered are not displaced by many who do.
#[test]
fn a_crowd_displaces_nobody() {
    let mut bench = Bench::with(TIGHT);
    for n in 3..200 {
        bench.resolved([192, 0, 2, n].into(), A);
    }
    for n in 0..10_000 {
        let IpAddr::V4(sender) = scanned(2 * n) else {
            continue;
        };
        let request = Arp::request(B, sender, OURS_V4);
        let answer = bench.cache.handle_arp(&request, bench.now);
        assert!(matches!(answer, Answer::Reply(_)));
    }
    assert_eq!(bench.cache.entries(bench.now).count(), TIGHT.neighbors);
    for n in 3..200 {
        let state = bench.state([192, 0, 2, n].into());
        assert_eq!(state, Some(NeighborState::Reachable));
    }
}
