//! The FIB against a list of routes that is searched from end to end.
//!
//! Input: steps, by `arbitrary`.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use arbitrary::{Arbitrary, Unstructured};
use ipnet::IpNet;
use nos_shim::fib::{Action, AdjacencyId, Fib, NextHop, NextHops, Source};
use nos_shim::ident::{LocalAddressId, UplinkId, VrfId};

/// Steps of a run; more take longer, and show nothing new.
const STEPS: usize = 64;

#[derive(Arbitrary, Debug)]
enum Step {
    Insert(Place, Prefix, From, To),
    Remove(Place, Prefix, From),
    RemoveNth(u8),
    RemoveVrf(Place),
    LookUp(Place, Address),
    LookUpBurst(Place, [Address; 3]),
    Page,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Place(bool);

impl Place {
    fn vrf(self) -> VrfId {
        VrfId(if self.0 { 3 } else { 0 })
    }
}

/// Addresses that are often near each other, so that prefixes nest.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Address {
    Near4(u8, u8),
    Any4([u8; 4]),
    Near6(u8, u8),
    Any6([u8; 16]),
}

impl Address {
    fn ip(self) -> IpAddr {
        match self {
            Self::Near4(bit, low) => {
                Ipv4Addr::from(0x0a00_0000 ^ (1_u32 << (bit % 32)) ^ u32::from(low)).into()
            }
            Self::Any4(octets) => octets.into(),
            Self::Near6(bit, low) => {
                let base = 0x2001_0db8_u128 << 96;
                Ipv6Addr::from(base ^ (1_u128 << (bit % 128)) ^ u128::from(low)).into()
            }
            Self::Any6(octets) => octets.into(),
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Prefix(Address, u8);

impl Prefix {
    /// Short prefixes take long, as they cover much of the table: they are rare.
    fn net(self) -> IpNet {
        let address = self.0.ip();
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let length = match self.1 {
            length @ 0..=7 => length,
            length => 8 + (length - 8) % (longest - 7),
        };
        IpNet::new(address, length).expect("a length that is not too long")
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum From {
    Local,
    Connected,
    Static(u8),
}

impl From {
    fn source(self) -> Source {
        match self {
            Self::Local => Source::Local,
            Self::Connected => Source::Connected,
            Self::Static(metric) => Source::Static {
                metric: u16::from(metric % 3),
            },
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum To {
    Connected(u8),
    Local(u8),
    Blackhole,
    Unreachable,
    Via(u8, u8),
}

impl To {
    fn action(self) -> Action {
        match self {
            Self::Connected(n) => Action::Connected(UplinkId(n.into())),
            Self::Local(n) => Action::Local(LocalAddressId(n.into())),
            Self::Blackhole => Action::Blackhole,
            Self::Unreachable => Action::Unreachable,
            Self::Via(first, count) => {
                let hops = (0..=count % 4).map(|n| NextHop {
                    gateway: IpAddr::from([192, 0, 2, first.wrapping_add(n)]),
                    uplink: UplinkId(u32::from(n % 2)),
                });
                NextHops::new(hops).map_or(Action::NoRoute, Action::Via)
            }
        }
    }
}

/// Routes in any order.
#[derive(Default)]
struct List(Vec<(VrfId, IpNet, Source, Action)>);

impl List {
    fn insert(&mut self, vrf: VrfId, prefix: IpNet, source: Source, action: Action) {
        self.remove(vrf, prefix, source);
        self.0.push((vrf, prefix.trunc(), source, action));
    }

    fn remove(&mut self, vrf: VrfId, prefix: IpNet, source: Source) -> bool {
        let before = self.0.len();
        let key = (vrf, prefix.trunc(), source);
        self.0
            .retain(|&(vrf, prefix, source, _)| (vrf, prefix, source) != key);
        self.0.len() < before
    }

    fn look_up(&self, vrf: VrfId, address: IpAddr) -> Action {
        let covering = self
            .0
            .iter()
            .filter(|(of, prefix, ..)| *of == vrf && prefix.contains(&address));
        let best =
            covering.min_by_key(|(_, prefix, source, _)| (Reverse(prefix.prefix_len()), *source));
        best.map_or(Action::NoRoute, |(.., action)| action.clone())
    }
}

pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let (mut fib, mut list) = (Fib::new(), List::default());
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let Ok(step) = input.arbitrary() else { break };
        take(step, &mut fib, &mut list);
    }
    // The edges of every prefix, and what lies beside them.
    for (vrf, prefix, ..) in &list.0 {
        for edge in [prefix.network(), prefix.broadcast()] {
            for address in [edge, beside(edge, 1), beside(edge, u128::MAX)] {
                same(&fib, &list, *vrf, address);
            }
        }
    }
    listed(&fib, &list);
    for (vrf, prefix, source, _) in list.0 {
        assert!(fib.remove(vrf, &prefix, source));
    }
    assert_eq!(
        fib.vrfs().map(|vrf| fib.routes(vrf).count()).sum::<usize>(),
        0
    );
}

fn take(step: Step, fib: &mut Fib, list: &mut List) {
    match step {
        Step::Insert(place, prefix, from, to) => {
            let (vrf, prefix, source, action) =
                (place.vrf(), prefix.net(), from.source(), to.action());
            fib.insert(vrf, prefix, source, &action)
                .expect("few routes");
            list.insert(vrf, prefix, source, action);
        }
        Step::Remove(place, prefix, from) => {
            let (vrf, prefix, source) = (place.vrf(), prefix.net(), from.source());
            let removed = fib.remove(vrf, &prefix.trunc(), source);
            assert_eq!(removed, list.remove(vrf, prefix, source));
        }
        Step::RemoveNth(n) if !list.0.is_empty() => {
            let (vrf, prefix, source, _) = list.0.swap_remove(usize::from(n) % list.0.len());
            assert!(fib.remove(vrf, &prefix, source));
        }
        Step::RemoveNth(_) => {}
        Step::RemoveVrf(place) => {
            fib.remove_vrf(place.vrf());
            list.0.retain(|(vrf, ..)| *vrf != place.vrf());
        }
        Step::LookUp(place, address) => same(fib, list, place.vrf(), address.ip()),
        Step::LookUpBurst(place, addresses) => {
            let to: Vec<_> = addresses.iter().map(|address| address.ip()).collect();
            burst(fib, place.vrf(), &to);
        }
        Step::Page => listed(fib, list),
    }
}

fn same(fib: &Fib, list: &List, vrf: VrfId, address: IpAddr) {
    let found = fib.adjacency(fib.lookup(vrf, address)).action();
    assert_eq!(*found, list.look_up(vrf, address), "{vrf:?} {address}");
}

/// A burst finds what single look-ups find.
fn burst(fib: &Fib, vrf: VrfId, to: &[IpAddr]) {
    let v4 = to.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    });
    let v4: Vec<Ipv4Addr> = v4.collect();
    let mut found = vec![AdjacencyId::NO_ROUTE; v4.len()];
    fib.lookup_burst_v4(vrf, v4.iter().copied(), &mut found);
    let singly: Vec<_> = v4
        .iter()
        .map(|&address| fib.lookup_v4(vrf, address))
        .collect();
    assert_eq!(found, singly);
    let v6 = to.iter().filter_map(|address| match address {
        IpAddr::V6(address) => Some(*address),
        IpAddr::V4(_) => None,
    });
    let v6: Vec<Ipv6Addr> = v6.collect();
    let mut found = vec![AdjacencyId::NO_ROUTE; v6.len()];
    fib.lookup_burst_v6(vrf, v6.iter().copied(), &mut found);
    let singly: Vec<_> = v6
        .iter()
        .map(|&address| fib.lookup_v6(vrf, address))
        .collect();
    assert_eq!(found, singly);
}

/// What is listed, in pages and at once, is what there is.
fn listed(fib: &Fib, list: &List) {
    let mut paged = Vec::new();
    let mut cursor = None;
    loop {
        let page = fib.page(cursor);
        paged.extend(
            page.rows
                .into_iter()
                .map(|route| (route.vrf, route.prefix, route.source)),
        );
        match page.next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    let mut expected: Vec<_> = list
        .0
        .iter()
        .map(|(vrf, prefix, source, _)| (*vrf, *prefix, *source))
        .collect();
    paged.sort();
    expected.sort();
    // In pages are those that are in use.
    paged.dedup();
    let mut all: Vec<_> = fib
        .vrfs()
        .flat_map(|vrf| {
            fib.routes(vrf)
                .map(move |route| (vrf, route.prefix, route.source))
        })
        .collect();
    all.sort();
    assert_eq!(all, expected);
    let mut best = expected.clone();
    best.dedup_by_key(|(vrf, prefix, _)| (*vrf, *prefix));
    assert_eq!(paged, best);
}

fn beside(address: IpAddr, by: u128) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from(u32::from(address).wrapping_add(by as u32)).into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address).wrapping_add(by)).into(),
    }
}
