//! Pools of addresses: what it costs to give one out of 100,000 and to take it back.
//!
//! The disk is apart: what is stored is in a state directory under the one for temporary files, whose disk
//! may be faster or slower than that of a router.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark may stop where its data are wrong"
)]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use nos_relay::control::config::{
    Amount, Config, MAX_POOL, Name, PoolDefinition, PoolKind, VrfName,
};
use nos_relay::control::pools::{Pools, Space, StoredPool, Wanted};
use nos_relay::control::store::{Embedded, Section, Store, Write};

const ADDRESSES: u32 = 100_000;

const FILE: &str = "[[uplink]]\nname = \"up0\"\ndevice = \"packet:hx\"\n\
    addresses = [\"10.0.0.1/15\", \"2001:db8:1::1/64\"]\n";

fn name() -> Name {
    "netspace".parse().unwrap()
}

fn space() -> Space {
    Space::of(&Config::parse("nos.toml", FILE).unwrap())
}

/// A pool of 100,000, of which `held` are held and `released` were.
fn pools(held: u32, released: u32) -> (Pools, Space) {
    let (mut pools, space) = (Pools::default(), space());
    let definition = PoolDefinition {
        name: name(),
        kind: PoolKind::Netspace,
        vrf: VrfName::Default,
        inside: None,
        elastic: None,
        max: MAX_POOL,
    };
    let size = Amount::Size(ADDRESSES);
    pools.create(&definition, size, &space).unwrap();
    for number in 0..held + released {
        draw(&mut pools, &space, &format!("w{number}"));
    }
    for number in 0..released {
        pools.release(&format!("w{number}"));
    }
    pools.committed();
    (pools, space)
}

fn draw(pools: &mut Pools, space: &Space, workload: &str) {
    let wanted = Wanted {
        holder: workload,
        workload: Some(workload),
        vrf: &VrfName::Default,
        pool: Some(&name()),
    };
    black_box(pools.draw(wanted, space).unwrap());
}

fn write(StoredPool { name, json }: StoredPool) -> Write {
    Write {
        section: Section::Pools,
        name,
        value: json,
    }
}

fn give_and_take(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pools, of 100,000 addresses");
    for (what, held, released, workload) in [
        ("one that nobody has had", ADDRESSES - 1, 0, "new"),
        ("the one released longest ago", 1, ADDRESSES - 1, "new"),
        ("the one that it has had", 1, ADDRESSES - 1, "w7"),
    ] {
        let (mut pools, space) = pools(held, released);
        group.bench_function(format!("give {what}"), |bencher| {
            bencher.iter(|| {
                let mark = pools.mark();
                draw(&mut pools, &space, workload);
                black_box(pools.writes());
                pools.roll_back(mark);
            });
        });
    }
    let (mut pools, space) = pools(ADDRESSES - 1, 0);
    let state = tempfile::tempdir().unwrap();
    let mut store = Embedded::open(state.path()).unwrap();
    let all: Vec<_> = pools.entries().into_iter().map(write).collect();
    store.commit(&all).unwrap();
    group.sample_size(10);
    group.bench_function("give and store, take and store", |bencher| {
        bencher.iter(|| {
            draw(&mut pools, &space, "new");
            for _ in 0..2 {
                let writes: Vec<_> = pools.writes().into_iter().map(write).collect();
                store.commit(&writes).unwrap();
                pools.committed();
                pools.release("new");
            }
            pools.committed();
        });
    });
    group.bench_function("read all, at a start", |bencher| {
        let contents = store.load().unwrap();
        bencher.iter_batched(
            || contents.pools.clone(),
            |all| {
                let entries = all
                    .iter()
                    .map(|(name, json)| (name.as_str(), json.as_slice()));
                black_box(Pools::of_stored(entries).unwrap())
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, give_and_take);
criterion_main!(benches);
