//! The FIB with a table of Internet size: 1 M IPv4 and 200 k IPv6 routes.
//!
//! IPv4 destinations are random unicast addresses; IPv6 ones are random addresses within random
//! routes, because nearly all others would be answered by the first memory access.
//!
//! | benchmark | what it shows |
//! |---|---|
//! | `lookup` | random destinations, one after the other; the processor overlaps as many as it can |
//! | `burst` | the same in bursts of 64, level by level: what forwarding does |
//! | `latency` | each destination depends on the answer before: nothing overlaps |
//! | `update` | random routes get another next hop, go away, or come back |

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark may stop where its data are wrong"
)]

mod internet;
mod support;

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nos_relay::huge_pages::HugePages;
use nos_shim::fib::{Action, AdjacencyId, Fib, NextHop, Source};
use nos_shim::frame::BATCH;
use nos_shim::ident::{UplinkId, VrfId};
use support::cycles::PerElement;
use support::size;

use internet::{prefixes_v4, prefixes_v6, unicast_v4, within};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: HugePages = HugePages;

const VRF: VrfId = VrfId::DEFAULT;
const STATIC: Source = Source::Static { metric: 0 };
const V4_ROUTES: usize = 1_000_000;
const V6_ROUTES: usize = 200_000;
/// Routes of each family where the benchmark only runs once.
const SMOKE_ROUTES: usize = 5_000;
const DESTINATIONS: usize = 1 << 16;
/// As many next hops as a well connected router has neighbors.
const NEXT_HOPS: u8 = 64;

struct Routes {
    rng: fastrand::Rng,
    fib: Fib,
    v4: Vec<Ipv4Net>,
    v6: Vec<Ipv6Net>,
    actions: Vec<Action>,
}

fn mib(octets: usize) -> f64 {
    octets as f64 / f64::from(1 << 20)
}

/// Octets of resident memory, as the kernel counts it: reserved memory that was never touched is not
/// in it.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    kib.unwrap_or(0) * 1024
}

impl Routes {
    fn new() -> Self {
        let via = |n| {
            Action::Via(
                NextHop {
                    gateway: IpAddr::from([192, 0, 2, n]),
                    uplink: UplinkId(0),
                }
                .into(),
            )
        };
        let mut routes = Self {
            rng: fastrand::Rng::with_seed(5),
            fib: Fib::new(),
            v4: Vec::new(),
            v6: Vec::new(),
            actions: (1..=NEXT_HOPS).map(via).collect(),
        };
        routes.v4 = prefixes_v4(&mut routes.rng, size(V4_ROUTES, SMOKE_ROUTES));
        routes.v6 = prefixes_v6(&mut routes.rng, size(V6_ROUTES, SMOKE_ROUTES));
        routes.fill();
        routes
    }

    /// Inserts all routes, and says what that costs.
    fn fill(&mut self) {
        let (v4_routes, v6_routes) = (self.v4.len(), self.v6.len());
        let resident_before = resident();
        let begin = Instant::now();
        self.announce(IpNet::V4(Ipv4Net::default()));
        self.announce(IpNet::V6(Ipv6Net::default()));
        for n in 0..v4_routes {
            self.announce(IpNet::V4(self.v4[n]));
        }
        for n in 0..v6_routes {
            self.announce(IpNet::V6(self.v6[n]));
        }
        println!(
            "{v4_routes} IPv4 and {v6_routes} IPv6 routes inserted in {:?}; resident memory grew by {:.1} MiB",
            begin.elapsed(),
            mib(resident().saturating_sub(resident_before)),
        );
        self.print_memory();
    }

    fn print_memory(&self) {
        let memory = self.fib.memory();
        println!(
            "reserved: RIB {:.1} MiB, table {:.1} MiB, actions {:.1} MiB",
            mib(memory.rib),
            mib(memory.table),
            mib(memory.adjacencies),
        );
    }

    fn announce(&mut self, prefix: IpNet) {
        let action = &self.actions[self.rng.usize(0..self.actions.len())];
        self.fib.insert(VRF, prefix, STATIC, action).unwrap();
    }

    fn destinations_v4(&mut self) -> Vec<Ipv4Addr> {
        (0..DESTINATIONS)
            .map(|_| unicast_v4(&mut self.rng))
            .collect()
    }

    fn destinations_v6(&mut self) -> Vec<Ipv6Addr> {
        let routes = &self.v6;
        let rng = &mut self.rng;
        (0..DESTINATIONS)
            .map(|_| {
                let net = routes[rng.usize(0..routes.len())];
                within(rng, net)
            })
            .collect()
    }
}

fn lookups(c: &mut Criterion, routes: &mut Routes) {
    let v4 = routes.destinations_v4();
    let v6 = routes.destinations_v6();
    let fib = &routes.fib;
    let count = DESTINATIONS as u64;
    let mut group = c.benchmark_group("fib/lookup");
    group.each("ipv4", count, || {
        let found = v4.iter().map(|&to| fib.lookup_v4(VRF, to).0);
        found.fold(0, |all, id| all ^ id)
    });
    group.each("ipv6", count, || {
        let found = v6.iter().map(|&to| fib.lookup_v6(VRF, to).0);
        found.fold(0, |all, id| all ^ id)
    });
    // Five IPv4 packets to one of IPv6, as in the table.
    group.each("mixed", count, || {
        let mut all = AdjacencyId::NO_ROUTE.0;
        for (n, (&v4, &v6)) in v4.iter().zip(&v6).enumerate() {
            all ^= if n % 6 == 5 {
                fib.lookup_v6(VRF, v6).0
            } else {
                fib.lookup_v4(VRF, v4).0
            };
        }
        all
    });
    group.finish();

    let mut group = c.benchmark_group("fib/burst");
    let mut found = [AdjacencyId::NO_ROUTE; BATCH];
    group.each("ipv4", count, || {
        for burst in v4.chunks(BATCH) {
            fib.lookup_burst_v4(VRF, burst.iter().copied(), &mut found);
            black_box(&found);
        }
    });
    group.each("ipv6", count, || {
        for burst in v6.chunks(BATCH) {
            fib.lookup_burst_v6(VRF, burst.iter().copied(), &mut found);
            black_box(&found);
        }
    });
    group.finish();

    let mut group = c.benchmark_group("fib/latency");
    group.each("ipv4", count, || {
        v4.iter().fold(0, |before, &to| {
            let to = Ipv4Addr::from(u32::from(to) ^ before & 1);
            fib.lookup_v4(VRF, to).0
        })
    });
    group.each("ipv6", count, || {
        v6.iter().fold(0, |before, &to| {
            let to = Ipv6Addr::from(u128::from(to) ^ u128::from(before & 1));
            fib.lookup_v6(VRF, to).0
        })
    });
    group.finish();
}

/// An update gives a route another next hop, or takes it away, or brings it back.
fn updates(c: &mut Criterion, routes: &mut Routes) {
    let mut group = c.benchmark_group("fib/update");
    let fib = &mut routes.fib;
    let rng = &mut routes.rng;
    let actions = &routes.actions;
    let v4: Vec<_> = routes.v4.iter().map(|&net| IpNet::V4(net)).collect();
    let v6: Vec<_> = routes.v6.iter().map(|&net| IpNet::V6(net)).collect();
    let all = [&v4[..], &v6[..]].concat();
    for (name, mut nets) in [("ipv4", v4), ("ipv6", v6), ("mixed", all)] {
        // In a random order, but not picked at random while the time runs: finding the next one
        // must not cost the memory access that is to be measured.
        rng.shuffle(&mut nets);
        let mut order = nets.iter().cycle();
        group.each(name, BATCH as u64, || {
            for &net in order.by_ref().take(BATCH) {
                if rng.u8(..) < 64 {
                    black_box(fib.remove(VRF, &net, STATIC));
                } else {
                    let action = &actions[rng.usize(0..actions.len())];
                    fib.insert(VRF, net, STATIC, action).unwrap();
                }
            }
        });
    }
    group.finish();
}

fn fib(c: &mut Criterion) {
    let mut routes = Routes::new();
    lookups(c, &mut routes);
    updates(c, &mut routes);
    println!("after the updates:");
    routes.print_memory();
}

criterion_group!(benches, fib);
criterion_main!(benches);
