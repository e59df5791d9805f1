use super::*;
use proptest::prelude::*;

/// A tick of the wheel: deadlines that are multiples of it are exact.
const TICK: u64 = 1 << 20;
const IDLE: u64 = 16 * TICK;

fn at(ticks: u64) -> Instant {
    Instant::from_nanos(ticks * TICK)
}

fn table(flows: usize, per_owner: usize) -> FlowTable<u8, u16, u32> {
    FlowTable::new(Limits {
        flows,
        per_owner,
        idle: Duration::from_nanos(IDLE),
    })
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u8, u16),
    Use(u16),
    Remove(u16),
    Recycle(u8),
    Flush(u8),
    Wait(u64),
    Expire,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..4_u8, 0..40_u16).prop_map(|(owner, key)| Step::Insert(owner, key)),
        4 => (0..40_u16).prop_map(Step::Use),
        2 => (0..40_u16).prop_map(Step::Remove),
        2 => (0..4_u8).prop_map(Step::Recycle),
        1 => (0..4_u8).prop_map(Step::Flush),
        3 => prop_oneof![0..6_u64, 10..20_u64, Just(1000)].prop_map(Step::Wait),
        2 => Just(Step::Expire),
    ]
}

/// One flow of the naive model, which keeps a list in the order of insertion.
#[derive(Clone, Debug)]
struct Known {
    owner: u8,
    key: u16,
    value: u32,
    used_at: u64,
    used: bool,
}

/// What [`FlowTable::oldest_of`] promises, word for word.
fn recycle(list: &mut Vec<Known>, owner: u8) -> Option<u16> {
    loop {
        let at = list.iter().position(|flow| flow.owner == owner)?;
        if !list[at].used {
            return Some(list.remove(at).key);
        }
        let mut flow = list.remove(at);
        flow.used = false;
        list.push(flow);
    }
}

proptest! {
    #[test]
    fn the_table_agrees_with_a_list(steps in proptest::collection::vec(step(), 1..200)) {
        let mut table = table(16, 6);
        let mut list: Vec<Known> = Vec::new();
        let mut now = 1_000_000_u64;
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Insert(owner, key) => {
                    let of_owner = list.iter().filter(|flow| flow.owner == owner).count();
                    let result = table.insert(owner, key, n as u32, at(now));
                    let exists = list.iter().any(|flow| flow.key == key);
                    match result {
                        Err(NotInserted::Exists(id)) => {
                            prop_assert!(exists);
                            prop_assert_eq!(table.get(id).unwrap().key, key);
                        }
                        Err(NotInserted::OwnerFull) => prop_assert!(!exists && of_owner == 6),
                        Err(NotInserted::TableFull) => prop_assert!(!exists && list.len() == 16),
                        Ok(_) => {
                            prop_assert!(!exists && of_owner < 6 && list.len() < 16);
                            list.push(Known { owner, key, value: n as u32, used_at: now, used: false });
                        }
                    }
                }
                Step::Use(key) => {
                    if let Some((id, _)) = table.lookup(&key, at(now)) {
                        table.touch(id, at(now));
                        let flow = list.iter_mut().find(|flow| flow.key == key).unwrap();
                        flow.used_at = now;
                        flow.used = true;
                    }
                }
                Step::Remove(key) => {
                    let removed = table.find(&key).and_then(|id| table.remove(id));
                    let known = list.iter().position(|flow| flow.key == key).map(|at| list.remove(at));
                    prop_assert_eq!(removed.map(|flow| flow.value), known.map(|flow| flow.value));
                }
                Step::Recycle(owner) => {
                    let oldest = table.oldest_of(owner).and_then(|id| table.remove(id));
                    prop_assert_eq!(oldest.map(|flow| flow.key), recycle(&mut list, owner));
                }
                Step::Flush(owner) => {
                    while let Some(id) = table.any_of(owner) {
                        prop_assert_eq!(table.remove(id).unwrap().owner, owner);
                    }
                    list.retain(|flow| flow.owner != owner);
                }
                Step::Wait(ticks) => now += ticks,
                Step::Expire => {
                    let mut gone = Vec::new();
                    while let Some((_, flow)) = table.pop_expired(at(now)) {
                        gone.push(flow.key);
                    }
                    gone.sort_unstable();
                    let idle = |flow: &&Known| now - flow.used_at >= IDLE / TICK;
                    let mut expected: Vec<_> = list.iter().filter(idle).map(|flow| flow.key).collect();
                    expected.sort_unstable();
                    prop_assert_eq!(gone, expected);
                    list.retain(|flow| !idle(&flow));
                    let next = list.iter().map(|flow| flow.used_at + IDLE / TICK).min();
                    prop_assert_eq!(table.poll_at().is_some(), next.is_some());
                    prop_assert!(table.poll_at().is_none_or(|wake| wake > at(now) && wake <= at(next.unwrap())));
                }
            }
            prop_assert_eq!(table.len(), list.len());
            for key in 0..40 {
                let fresh = |flow: &&Known| flow.key == key && now - flow.used_at < IDLE / TICK;
                let known = list.iter().find(fresh).map(|flow| flow.value);
                prop_assert_eq!(table.lookup(&key, at(now)).map(|(_, &value)| value), known);
            }
            for owner in 0..4 {
                let count = list.iter().filter(|flow| flow.owner == owner).count();
                prop_assert_eq!(table.count(owner), count);
            }
        }
    }
}

#[test]
fn waking_at_poll_at_forgets_everything_in_time() {
    let mut table = table(1000, 1000);
    let mut now = at(12_345);
    for key in 0..1000 {
        now = now + Duration::from_nanos(TICK / 100);
        table.insert(0, key, 0, now).unwrap();
    }
    let (id, _) = table.lookup(&999, now).unwrap();
    assert_eq!(table.oldest().map(|id| table.get(id).unwrap().key), Some(0));
    let last = now + Duration::from_nanos(IDLE);
    table.touch(id, now);
    let mut wakes = 0;
    while let Some(wake) = table.poll_at() {
        assert!(wake > now);
        now = wake;
        while table.pop_expired(now).is_some() {}
        wakes += 1;
    }
    assert!(table.is_empty());
    assert!(now >= last && now.since(last).as_nanos() <= u128::from(IDLE / 16));
    assert!(wakes <= 1000 / 100 + 2);
}

#[test]
fn a_table_without_room_takes_nothing() {
    assert_eq!(
        table(0, 1).insert(0, 0, 0, at(0)),
        Err(NotInserted::TableFull)
    );
    assert_eq!(
        table(1, 0).insert(0, 0, 0, at(0)),
        Err(NotInserted::OwnerFull)
    );
}
