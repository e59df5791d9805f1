//! The port table: whose a port is, and what registering costs.
//!
//! Lookups go to random ports of a table with one range and with 10,000: a packet should not
//! notice the difference.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark may stop where its data are wrong"
)]

mod support;

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use nos_relay::data::relay::{AttachmentConfig, Relay, RelayEvent};
use nos_shim::channel::{RequestId, pair};
use nos_shim::frame::{FramePool, MAX_FRAME};
use nos_shim::ident::{AttachmentId, LocalAddressId, MacAddr, UplinkId, VrfId};
use nos_shim::ports::{
    AddressMode, Claim, ClaimKind, Policy, PortOwner, PortRange, PortTable, Registration, Transport,
};
use nos_shim::shim::{Shim, ShimConfig, UplinkConfig};
use nos_shim::time::Instant;
use support::cycles::PerElement;
use support::packets::OWN4;

const VRF: VrfId = VrfId::DEFAULT;
const LOOKUPS: usize = 1 << 14;
const RANGES: u16 = 10_000;
/// Ports from one range of the 10,000 to the next.
const STEP: u16 = 6;

fn claim(transport: Transport, first: u16, last: u16) -> Claim {
    Claim {
        transport,
        range: PortRange::new(first, last).unwrap(),
        kind: ClaimKind::Listen,
    }
}

fn registration(id: u32, claims: Vec<Claim>) -> Registration {
    Registration {
        attachment: AttachmentId(id),
        name: format!("c{id}").into(),
        vrf: VRF,
        network: nos_shim::ident::NetworkId::DEFAULT,
        mode: AddressMode::Shared,
        addresses: vec![OWN4.into()],
        policy: Policy::default(),
        claims,
        link_local: None,
        router: Ipv6Addr::UNSPECIFIED,
        mtu: 1500,
    }
}

/// The range with this number: half of the ports from one range to the next.
fn range(n: u16) -> Claim {
    let first = 1 + n * STEP;
    claim(Transport::Tcp, first, first + STEP / 2 - 1)
}

/// A table whose ports of the shared address are nobody's.
fn empty() -> (PortTable, LocalAddressId) {
    let mut table = PortTable::new();
    let address = table.add_address(VRF, OWN4.into());
    (table, address)
}

/// A table with 10,000 ranges, of 100 in each attachment.
fn many() -> (PortTable, LocalAddressId) {
    let (mut table, address) = empty();
    for id in 0..RANGES / 100 {
        let claims = (0..100).map(|n| range(100 * id + n)).collect();
        table.register(&registration(id.into(), claims)).unwrap();
    }
    (table, address)
}

/// Random ports, half of which are somebody's.
fn lookups(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    (table, address): &(PortTable, LocalAddressId),
) {
    let mut rng = fastrand::Rng::with_seed(5);
    let ports: Vec<u16> = (0..LOOKUPS).map(|_| rng.u16(1..RANGES * STEP)).collect();
    let owned = |&&port: &&u16| {
        let owner = table.owner(*address, Transport::Tcp, port);
        owner != PortOwner::Nobody
    };
    let share = ports.iter().filter(owned).count();
    assert!((LOOKUPS / 3..LOOKUPS * 2 / 3).contains(&share), "{share}");
    group.each(name, LOOKUPS as u64, || {
        black_box(&ports).iter().filter(owned).count()
    });
}

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("ports/lookup");
    let (mut one, address) = empty();
    let half = claim(Transport::Tcp, 1, RANGES * STEP / 2);
    one.register(&registration(0, vec![half])).unwrap();
    lookups(&mut group, "1-range", &(one, address));
    lookups(&mut group, "10000-ranges", &many());
    let (table, _) = many();
    let own = IpAddr::from(OWN4);
    group.each("address", 1, || table.address(VRF, black_box(own)));
    group.finish();
}

/// Registers an attachment and withdraws it, beside what the table holds already.
fn changes(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    table: &mut PortTable,
    claims: Vec<Claim>,
) {
    let wanted = registration(1_000_000, claims);
    group.each(name, 1, || {
        table.register(black_box(&wanted)).unwrap();
        assert!(table.withdraw(wanted.attachment));
    });
}

fn register(c: &mut Criterion) {
    let mut group = c.benchmark_group("ports/register-and-withdraw");
    let services = || [20_000, 40_000].map(|first| claim(Transport::Udp, first, first + 999));
    changes(
        &mut group,
        "2-ranges/empty-table",
        &mut empty().0,
        services().into(),
    );
    changes(
        &mut group,
        "2-ranges/10000-others",
        &mut many().0,
        services().into(),
    );
    let all = || (0..RANGES).map(range).collect();
    changes(
        &mut group,
        "10000-ranges/empty-table",
        &mut empty().0,
        all(),
    );
    group.finish();

    let mut group = c.benchmark_group("ports/refuse");
    let (mut table, _) = many();
    let clash = registration(1_000_000, vec![range(5_000)]);
    group.each("clash-among-10000", 1, || {
        table.register(black_box(&clash)).unwrap_err()
    });
    group.finish();

    // An address of the NOS that goes and comes back, with the claims that name it.
    let mut group = c.benchmark_group("ports/address");
    let (mut table, _) = many();
    group.each("away-and-back/10000-ranges", 1, || {
        assert!(table.remove_address(VRF, OWN4.into()));
        table.add_address(VRF, OWN4.into())
    });
    group.each("other/10000-ranges", 1, || {
        let other = IpAddr::from(Ipv4Addr::new(203, 0, 113, 9));
        table.add_address(VRF, other);
        assert!(table.remove_address(VRF, other));
    });
    group.finish();
}

/// Relay and NOS, joined, with one attachment that changes its ports.
struct Joined {
    relay: Relay,
    nos: Shim,
}

impl Joined {
    fn new() -> Self {
        let pool = FramePool::new(64, MAX_FRAME);
        let (relay_end, nos_end) = pair(8);
        let mut nos = Shim::new(
            nos_end,
            pool.clone(),
            ShimConfig {
                seed: 1,
                ..ShimConfig::default()
            },
        );
        let uplink = UplinkConfig {
            id: UplinkId(0),
            name: "up0".into(),
            vrf: VRF,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            addresses: vec!["203.0.113.1/24".parse().unwrap()],
            mtu: 1500,
            redirects: true,
        };
        nos.set_uplink(uplink, Instant::ZERO).unwrap();
        let relay = Relay::new(relay_end, pool);
        let mut joined = Self { relay, nos };
        let first = joined.relay.attach(attachment(&[])).unwrap();
        joined.answered(first);
        joined
    }

    /// Has the attachment own these ports instead of those before.
    fn own(&mut self, claims: &[Claim]) {
        let request = self.relay.update(attachment(claims)).unwrap();
        self.answered(request);
    }

    fn answered(&mut self, request: RequestId) {
        self.nos.poll_channel(Instant::ZERO, 1);
        self.relay.poll_channel(Instant::ZERO, 1);
        let accepted = RelayEvent::Accepted(request);
        assert_eq!(self.relay.poll_event(), Some(accepted));
    }
}

fn attachment(claims: &[Claim]) -> AttachmentConfig {
    AttachmentConfig {
        id: AttachmentId(0),
        name: "web".into(),
        vrf: VRF,
        network: nos_shim::ident::NetworkId::DEFAULT,
        mac: MacAddr([2, 0, 0, 0, 0, 2]),
        link_local: None,
        relay_mac: MacAddr([2, 0, 0, 0, 0, 3]),
        mode: AddressMode::Shared,
        addresses: vec![OWN4.into()],
        policy: Policy::default(),
        claims: claims.to_vec(),
        mtu: 1500,
        segment: None,
    }
}

/// What a registration takes from the relay's question to the NOS's answer, what the relay and the
/// guard make of it included: all ports are taken, and given up again.
fn exchange(c: &mut Criterion) {
    let mut group = c.benchmark_group("ports/exchange-and-back");
    let mut joined = Joined::new();
    for (name, count) in [("1-range", 1), ("10000-ranges", RANGES)] {
        let claims: Vec<_> = (0..count).map(range).collect();
        group.each(name, 1, || {
            joined.own(black_box(&claims));
            joined.own(&[]);
        });
    }
    group.finish();
}

criterion_group!(benches, lookup, register, exchange);
criterion_main!(benches);
