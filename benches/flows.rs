//! The flow table with 1 M flows: five-tuples of 1,000 owners, looked up at random.
//!
//! Memory is printed as the allocator gave it out; what was never touched of it is not resident.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a benchmark may stop where its data are wrong"
)]

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use nos_shim::time::Instant;
use std::hint::black_box;
use support::cycles::PerElement;
use support::flows::{Flows, IDLE, Key, full, key, owner, table};
use support::{live, size};

const FLOWS: usize = 1_000_000;
const SMOKE_FLOWS: usize = 10_000;
const LOOKUPS: usize = 1 << 12;

#[global_allocator]
static ALLOCATOR: live::Counting = live::Counting;

fn print_memory(flows: usize) {
    let before = live::octets();
    let empty = table(flows);
    let reserved = live::octets() - before;
    drop(empty);
    let table = full(flows);
    let filled = live::octets() - before;
    println!(
        "{flows} flows of {} octets of key and value: {:.0} octets a flow, of which {:.0} reserved beforehand ({:.1} MiB in all)",
        size_of::<Key>() + size_of::<u32>(),
        filled as f64 / flows as f64,
        reserved as f64 / flows as f64,
        filled as f64 / f64::from(1 << 20),
    );
    drop(table);
}

fn lookups(c: &mut Criterion, flows: usize, table: &mut Flows) {
    let mut group = c.benchmark_group("flows");
    let mut rng = fastrand::Rng::with_seed(5);
    // Random keys of all, more than the caches hold; the order must not be learnt.
    let known: Vec<Key> = (0..64 * LOOKUPS)
        .map(|_| key(rng.usize(0..flows)))
        .collect();
    let unknown: Vec<Key> = (0..64 * LOOKUPS).map(|n| key(flows + n)).collect();
    for (name, keys, hits) in [("hit", &known, LOOKUPS), ("miss", &unknown, 0)] {
        let mut rounds = keys.chunks(LOOKUPS).cycle();
        group.each(&format!("lookup/{name}"), LOOKUPS as u64, || {
            let keys = rounds.next().unwrap_or_default().iter();
            let found = keys.filter(|key| table.lookup(key, Instant::ZERO).is_some());
            assert_eq!(black_box(found.count()), hits);
        });
    }
    let mut rounds = known.chunks(LOOKUPS).cycle();
    group.each("lookup-and-touch", LOOKUPS as u64, || {
        for key in rounds.next().unwrap_or_default() {
            let (id, _) = table.lookup(key, Instant::ZERO).unwrap();
            table.touch(id, Instant::ZERO);
        }
    });
    group.finish();
}

/// Flows come and go while the table is as full as it is. Making the key is in it, some 5 ns.
fn changes(c: &mut Criterion, flows: usize, table: &mut Flows) {
    let mut group = c.benchmark_group("flows");
    let mut next = 0;
    group.each("remove-and-insert", LOOKUPS as u64, || {
        for _ in 0..LOOKUPS {
            let gone = table.oldest().and_then(|id| table.remove(id)).unwrap();
            table
                .insert(gone.owner, key(flows + next), 0, Instant::ZERO)
                .unwrap();
            next = (next + 1) % (16 * flows);
        }
    });
    group.finish();
}

/// All flows are inserted into an empty table, and expire out of a full one.
fn fill_and_expire(c: &mut Criterion, flows: usize) {
    let mut group = c.benchmark_group("flows");
    group.sample_size(10);
    let keys: Vec<Key> = (0..flows).map(key).collect();
    group.each_with(
        "insert-all",
        flows as u64,
        || table(flows),
        |mut table| {
            for (n, &key) in keys.iter().enumerate() {
                table.insert(owner(n), key, 0, Instant::ZERO).unwrap();
            }
            table
        },
    );
    let later = Instant::ZERO + 2 * IDLE;
    group.each_with(
        "expire-all",
        flows as u64,
        || full(flows),
        |mut table| {
            let expired = std::iter::from_fn(|| table.pop_expired(later)).count();
            assert_eq!(expired, flows);
            table
        },
    );
    group.finish();
}

fn flows(c: &mut Criterion) {
    let flows = size(FLOWS, SMOKE_FLOWS);
    print_memory(flows);
    let mut table = full(flows);
    lookups(c, flows, &mut table);
    changes(c, flows, &mut table);
    drop(table);
    fill_and_expire(c, flows);
}

criterion_group!(benches, flows);
criterion_main!(benches);
