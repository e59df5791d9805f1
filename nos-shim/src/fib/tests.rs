//! The FIB against a list that is searched from end to end, and its rules one by one.

use super::*;
use crate::ident::{LocalAddressId, UplinkId};
use proptest::prelude::*;

const VRF: VrfId = VrfId::DEFAULT;
const STATIC: Source = Source::Static { metric: 0 };

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn via(gateway: &str, uplink: u32) -> Action {
    let hop = NextHop {
        gateway: gateway.parse().unwrap(),
        uplink: UplinkId(uplink),
    };
    Action::Via(hop.into())
}

fn action(fib: &Fib, destination: &str) -> Action {
    let id = fib.lookup(VRF, destination.parse().unwrap());
    fib.adjacency(id).action().clone()
}

fn with(routes: &[(&str, Source, Action)]) -> Fib {
    let mut fib = Fib::new();
    for (prefix, source, action) in routes {
        fib.insert(VRF, net(prefix), *source, action).unwrap();
    }
    fib
}

#[test]
fn an_empty_fib_has_no_route() {
    let fib = Fib::new();
    assert_eq!(action(&fib, "192.0.2.1"), Action::NoRoute);
    assert_eq!(action(&fib, "2001:db8::1"), Action::NoRoute);
    assert_eq!(
        fib.lookup_v4(VrfId(9), Ipv4Addr::LOCALHOST),
        AdjacencyId::NO_ROUTE
    );
}

#[test]
fn the_longest_prefix_wins() {
    let fib = with(&[
        ("0.0.0.0/0", STATIC, via("192.0.2.1", 0)),
        ("198.51.100.0/24", STATIC, Action::Blackhole),
        ("198.51.100.128/25", STATIC, Action::Unreachable),
        ("198.51.100.129/32", STATIC, via("192.0.2.2", 0)),
        ("2001:db8::/32", STATIC, Action::Blackhole),
        (
            "2001:db8:0:1::/64",
            Source::Connected,
            Action::Connected(UplinkId(1)),
        ),
        (
            "2001:db8:0:1::1/128",
            Source::Local,
            Action::Local(LocalAddressId(7)),
        ),
    ]);
    for (destination, expected) in [
        ("203.0.113.1", via("192.0.2.1", 0)),
        ("198.51.100.127", Action::Blackhole),
        ("198.51.100.128", Action::Unreachable),
        ("198.51.100.129", via("192.0.2.2", 0)),
        ("198.51.100.130", Action::Unreachable),
        ("2001:db7::1", Action::NoRoute),
        ("2001:db8::1", Action::Blackhole),
        ("2001:db8:0:1::1", Action::Local(LocalAddressId(7))),
        ("2001:db8:0:1::2", Action::Connected(UplinkId(1))),
        ("2001:db8:0:1:8000::1", Action::Connected(UplinkId(1))),
        ("2001:db8:0:2::1", Action::Blackhole),
    ] {
        assert_eq!(action(&fib, destination), expected, "{destination}");
    }
}

#[test]
fn the_best_source_wins_and_the_next_takes_over() {
    let fixed = |metric| Source::Static { metric };
    let mut fib = with(&[
        ("192.0.2.0/24", fixed(20), via("203.0.113.20", 0)),
        ("192.0.2.0/24", fixed(10), via("203.0.113.10", 0)),
        (
            "192.0.2.0/24",
            Source::Connected,
            Action::Connected(UplinkId(0)),
        ),
        ("192.0.2.0/24", fixed(30), via("203.0.113.30", 0)),
    ]);
    let listed: Vec<_> = fib
        .routes(VRF)
        .map(|route| (route.source, route.active))
        .collect();
    assert_eq!(
        listed,
        [
            (Source::Connected, true),
            (fixed(10), false),
            (fixed(20), false),
            (fixed(30), false)
        ]
    );
    let prefix = net("192.0.2.0/24");
    assert!(fib.remove(VRF, &prefix, fixed(20)), "one in the middle");
    for (gone, expected) in [
        (Source::Connected, via("203.0.113.10", 0)),
        (fixed(10), via("203.0.113.30", 0)),
        (fixed(30), Action::NoRoute),
    ] {
        assert!(fib.remove(VRF, &prefix, gone));
        assert!(!fib.remove(VRF, &prefix, gone), "only once");
        assert_eq!(action(&fib, "192.0.2.1"), expected);
    }
}

#[test]
fn bursts_find_what_single_lookups_find() {
    let fib = with(&[
        ("0.0.0.0/0", STATIC, Action::Blackhole),
        ("10.0.0.0/9", STATIC, Action::Unreachable),
        ("10.1.2.0/24", STATIC, via("192.0.2.1", 0)),
        (
            "10.1.2.3/32",
            Source::Local,
            Action::Local(LocalAddressId(1)),
        ),
        ("2001:db8::/32", STATIC, Action::Blackhole),
        (
            "2001:db8::1/128",
            Source::Local,
            Action::Local(LocalAddressId(2)),
        ),
    ]);
    let v4: Vec<_> = (0..200_u32)
        .map(|n| Ipv4Addr::from(0x0a01_0180 + 7 * n))
        .collect();
    let v6: Vec<_> = (0..200_u128)
        .map(|n| Ipv6Addr::from((0x2001_0db8 << 96) + n % 3))
        .collect();
    let mut found = vec![AdjacencyId(9); 201];
    fib.lookup_burst_v4(VRF, v4.iter().copied(), &mut found);
    let singly: Vec<_> = v4.iter().map(|&to| fib.lookup_v4(VRF, to)).collect();
    assert_eq!(found[..200], singly);
    fib.lookup_burst_v6(VRF, v6.iter().copied(), &mut found);
    let singly: Vec<_> = v6.iter().map(|&to| fib.lookup_v6(VRF, to)).collect();
    assert_eq!(found[..200], singly);
    assert_eq!(found[200], AdjacencyId(9), "beyond the destinations");
    fib.lookup_burst_v4(VrfId(5), v4, &mut found);
    assert_eq!(found[0], AdjacencyId::NO_ROUTE);
}

#[test]
fn a_source_replaces_its_own_route() {
    let mut fib = with(&[("192.0.2.0/24", STATIC, Action::Blackhole)]);
    fib.insert(VRF, net("192.0.2.77/24"), STATIC, &Action::Unreachable)
        .unwrap();
    assert_eq!(action(&fib, "192.0.2.1"), Action::Unreachable);
    assert_eq!(fib.routes(VRF).count(), 1);
}

#[test]
fn vrfs_are_apart() {
    let mut fib = with(&[("0.0.0.0/0", STATIC, Action::Blackhole)]);
    fib.insert(VrfId(3), net("0.0.0.0/0"), STATIC, &Action::Unreachable)
        .unwrap();
    let in_vrf = |fib: &Fib, vrf| {
        fib.adjacency(fib.lookup_v4(vrf, Ipv4Addr::LOCALHOST))
            .action()
            .clone()
    };
    assert_eq!(in_vrf(&fib, VrfId(0)), Action::Blackhole);
    assert_eq!(in_vrf(&fib, VrfId(2)), Action::NoRoute);
    assert_eq!(in_vrf(&fib, VrfId(3)), Action::Unreachable);
    assert_eq!(fib.vrfs().collect::<Vec<_>>(), [VrfId(0), VrfId(3)]);
    fib.remove_vrf(VrfId(3));
    assert_eq!(in_vrf(&fib, VrfId(0)), Action::Blackhole);
    assert_eq!(in_vrf(&fib, VrfId(3)), Action::NoRoute);
}

#[test]
fn replacing_touches_only_what_differs() {
    let connected = |prefix: &str, uplink| Route {
        vrf: VRF,
        prefix: net(prefix),
        source: Source::Connected,
        action: Action::Connected(UplinkId(uplink)),
    };
    let mut routing = Routing::default();
    let fixed = Route {
        source: STATIC,
        action: Action::Blackhole,
        ..connected("192.0.2.0/24", 0)
    };
    let up = |_, _| true;
    routing.change(RouteChange::Set(fixed), up).unwrap();
    let first = ["203.0.113.0/24", "198.51.100.0/24"].map(|net| connected(net, 0));
    routing
        .replace(Protocol::Connected, first.to_vec())
        .unwrap();
    let found = |routing: &Routing, to: &str| routing.fib().lookup(VRF, to.parse().unwrap());
    let kept = found(&routing, "203.0.113.1");
    let second = vec![
        connected("203.0.113.0/24", 0),
        connected("198.51.100.0/24", 1),
        connected("2001:db8::/32", 1),
    ];
    routing.replace(Protocol::Connected, second).unwrap();
    assert_eq!(found(&routing, "203.0.113.1"), kept);
    let other = Action::Connected(UplinkId(1));
    assert_eq!(action(routing.fib(), "198.51.100.1"), other);
    assert_eq!(action(routing.fib(), "2001:db8::1"), other);
    assert_eq!(action(routing.fib(), "192.0.2.9"), Action::Blackhole);
    routing.replace(Protocol::Connected, Vec::new()).unwrap();
    assert_eq!(action(routing.fib(), "203.0.113.1"), Action::NoRoute);
    assert_eq!(action(routing.fib(), "192.0.2.9"), Action::Blackhole);
}

#[test]
fn connected_routes_yield_to_the_own_address() {
    let mut fib = Fib::new();
    let own = Route {
        vrf: VRF,
        prefix: net("192.0.2.255/32"),
        source: Source::Local,
        action: Action::Local(LocalAddressId(0)),
    };
    for route in Route::connected(VRF, net("192.0.2.9/24"), UplinkId(4)).chain([own]) {
        fib.insert(route.vrf, route.prefix, route.source, &route.action)
            .unwrap();
    }
    assert_eq!(action(&fib, "192.0.2.0"), Action::Broadcast(UplinkId(4)));
    assert_eq!(action(&fib, "192.0.2.1"), Action::Connected(UplinkId(4)));
    assert_eq!(
        action(&fib, "192.0.2.255"),
        Action::Local(LocalAddressId(0))
    );
    assert!(fib.remove(VRF, &net("192.0.2.255/32"), Source::Local));
    assert_eq!(action(&fib, "192.0.2.255"), Action::Broadcast(UplinkId(4)));
}

#[test]
fn flows_spread_over_next_hops() {
    let hop = |n| NextHop {
        gateway: IpAddr::from([192, 0, 2, n]),
        uplink: UplinkId(0),
    };
    let hops = NextHops::new((1..=4).map(hop)).unwrap();
    let fib = with(&[("0.0.0.0/0", STATIC, Action::Via(hops))]);
    let adjacency = fib.adjacency(fib.lookup_v4(VRF, Ipv4Addr::LOCALHOST));
    let chosen: std::collections::BTreeSet<_> = (0..100)
        .filter_map(|hash| adjacency.next_hop(hash))
        .collect();
    assert_eq!(chosen.len(), 4);
    assert_eq!(adjacency.next_hop(17), adjacency.next_hop(17));
}

/// What a test does to a FIB.
#[derive(Clone, Copy, Debug)]
enum Step {
    Insert(IpNet, Source, u32),
    Remove(prop::sample::Index),
    Lookup(IpAddr),
}

/// Addresses that are often near each other, so that prefixes nest.
fn address(ipv6: bool) -> impl Strategy<Value = IpAddr> {
    let near = prop::sample::select(vec![0_u128, 1, 0xffff, 0x2001_0db8 << 96, 0xfe80 << 112]);
    let bits = prop_oneof![
        any::<u128>(),
        Just(0),
        (0..128_u32).prop_map(|bit| 1 << bit)
    ];
    (near, bits).prop_map(move |(near, bits)| {
        if ipv6 {
            IpAddr::from((near ^ bits).to_be_bytes())
        } else {
            IpAddr::from((((near >> 96) ^ near ^ bits) as u32).to_be_bytes())
        }
    })
}

fn prefix(ipv6: bool) -> impl Strategy<Value = IpNet> {
    let longest: u8 = if ipv6 { 128 } else { 32 };
    (address(ipv6), 0..=longest)
        .prop_map(|(address, len)| IpNet::new(address, len).unwrap().trunc())
}

fn source() -> impl Strategy<Value = Source> {
    let fixed = (0..3_u16).prop_map(|metric| Source::Static { metric });
    prop_oneof![Just(Source::Local), Just(Source::Connected), fixed]
}

fn step(ipv6: bool) -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (prefix(ipv6), source(), 0..4_u32).prop_map(|(prefix, source, n)| Step::Insert(prefix, source, n)),
        2 => any::<prop::sample::Index>().prop_map(Step::Remove),
        4 => address(ipv6).prop_map(Step::Lookup),
    ]
}

/// Routes in the order of insertion, searched from end to end.
#[derive(Default)]
struct Oracle(Vec<(IpNet, Source, u32)>);

impl Oracle {
    fn insert(&mut self, prefix: IpNet, source: Source, n: u32) {
        self.0.retain(|&(p, s, _)| (p, s) != (prefix, source));
        self.0.push((prefix, source, n));
    }

    fn lookup(&self, address: IpAddr) -> Action {
        let matching = self
            .0
            .iter()
            .filter(|(prefix, ..)| prefix.contains(&address));
        let best = matching
            .min_by_key(|(prefix, source, _)| (core::cmp::Reverse(prefix.prefix_len()), *source));
        best.map_or(Action::NoRoute, |&(_, _, n)| Action::Connected(UplinkId(n)))
    }
}

fn agrees_with_the_oracle(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut fib = Fib::new();
    let mut oracle = Oracle::default();
    let check = |fib: &Fib, oracle: &Oracle, address| {
        let found = fib.adjacency(fib.lookup(VRF, address)).action().clone();
        prop_assert_eq!(found, oracle.lookup(address), "{}", address);
        Ok(())
    };
    for step in steps {
        match step {
            Step::Insert(prefix, source, n) => {
                fib.insert(VRF, prefix, source, &Action::Connected(UplinkId(n)))
                    .unwrap();
                oracle.insert(prefix, source, n);
            }
            Step::Remove(at) if !oracle.0.is_empty() => {
                let (prefix, source, _) = oracle.0.remove(at.index(oracle.0.len()));
                prop_assert!(fib.remove(VRF, &prefix, source));
            }
            Step::Remove(_) => {}
            Step::Lookup(address) => check(&fib, &oracle, address)?,
        }
    }
    // The edges of every prefix, and what lies beside them.
    for (prefix, ..) in &oracle.0 {
        for edge in [prefix.network(), prefix.broadcast()] {
            for address in [edge, before(edge), after(edge)] {
                check(&fib, &oracle, address)?;
            }
        }
    }
    check_table(&fib);
    let mut listed: Vec<_> = fib
        .routes(VRF)
        .map(|route| (route.prefix, route.source))
        .collect();
    let mut expected: Vec<_> = oracle.0.iter().map(|&(p, s, _)| (p, s)).collect();
    listed.sort();
    expected.sort();
    prop_assert_eq!(listed, expected);
    for (prefix, source, _) in oracle.0 {
        prop_assert!(fib.remove(VRF, &prefix, source));
    }
    prop_assert_eq!(fib.routes(VRF).count(), 0);
    check_table(&fib);
    Ok(())
}

fn check_table(fib: &Fib) {
    if let Some(vrf) = fib.vrf(VRF) {
        vrf.v4.table.check();
        vrf.v6.table.check();
    }
}

fn before(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from(u32::from(address).wrapping_sub(1)).into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address).wrapping_sub(1)).into(),
    }
}

fn after(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from(u32::from(address).wrapping_add(1)).into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address).wrapping_add(1)).into(),
    }
}

/// The prefixes that reading in pages yields, when `between` changes the table before each page.
fn read_in_pages(fib: &mut Fib, mut between: impl FnMut(&mut Fib)) -> Vec<(VrfId, IpNet)> {
    crate::page::all(|cursor| {
        between(fib);
        let page = fib.page(cursor);
        assert!(page.rows.len() <= crate::page::PAGE);
        page.map(|route| (route.vrf, route.prefix))
    })
}

/// The nth of many prefixes of both families.
fn nth(n: u32) -> IpNet {
    match n % 2 {
        0 => IpNet::V4(Ipv4Net::new_assert((n << 8).into(), 24)),
        _ => IpNet::V6(Ipv6Net::new_assert((u128::from(n) << 64).into(), 64)),
    }
}

#[test]
fn pages_are_all_routes_of_all_vrfs() {
    let mut fib = Fib::new();
    let mut expected = Vec::new();
    for vrf in [VrfId(0), VrfId(7), VrfId(u16::MAX)] {
        for n in 0..500 {
            fib.insert(vrf, nth(n), STATIC, &Action::Blackhole).unwrap();
            // Not the best, so not in use.
            let other = Source::Static { metric: 9 };
            fib.insert(vrf, nth(n), other, &Action::Unreachable)
                .unwrap();
            expected.push((vrf, nth(n)));
        }
    }
    let mut read = read_in_pages(&mut fib, |_| {});
    read.sort();
    expected.sort();
    assert_eq!(read, expected);
    assert_eq!(read_in_pages(&mut Fib::new(), |_| {}), []);
}

/// Tables that get full between two pages, and so move all their entries. Where they lie depends on a
/// random seed: so there are many tables.
#[test]
fn what_stays_is_read_however_the_table_changes() {
    // What a hash table of 2048 places holds before it grows.
    const FULL: u32 = 2048 / 8 * 7;
    for table in 0..60 {
        let mut fib = Fib::new();
        for n in 0..FULL {
            fib.insert(VRF, nth(2 * n), STATIC, &Action::Blackhole)
                .unwrap();
        }
        let (mut pages, mut more) = (0, FULL);
        let mut read = read_in_pages(&mut fib, |fib| {
            pages += 1;
            if pages == 10 + table % 10 {
                fib.insert(VRF, nth(2 * more), STATIC, &Action::Blackhole)
                    .unwrap();
                more += 1;
            }
        });
        read.sort();
        for n in 0..FULL {
            let stays = (VRF, nth(2 * n));
            assert!(read.binary_search(&stays).is_ok(), "{}", nth(2 * n));
        }
        assert!(pages < 100, "{pages} pages");
    }
}

proptest! {
    // Each case walks whole tables.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn ipv4_agrees_with_a_linear_scan(steps in proptest::collection::vec(step(false), 0..200)) {
        agrees_with_the_oracle(steps)?;
    }

    #[test]
    fn ipv6_agrees_with_a_linear_scan(steps in proptest::collection::vec(step(true), 0..200)) {
        agrees_with_the_oracle(steps)?;
    }
}
