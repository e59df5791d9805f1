//! Pools beside a naive reading of what is known of each address.

use core::cmp::Reverse;
use core::net::IpAddr;

use proptest::prelude::*;

use crate::control::config::{
    AddressRange, Amount, Config, Elastic, MAX_POOL, PoolDefinition, PoolKind, Released,
};

use super::*;

const HOSTS: &str = "[[uplink]]\nname = \"up0\"\ndevice = \"packet:hx\"\n\
    addresses = [\"203.0.113.1/27\", \"2001:db8:1::1/64\"]\n\
    [[uplink]]\nname = \"red0\"\ndevice = \"packet:hr\"\nvrf = \"red\"\naddresses = [\"203.0.113.1/28\"]\n\
    [[route]]\nprefix = \"0.0.0.0/0\"\nvia = \"203.0.113.2\"\n\
    [[network]]\nname = \"lan\"\nmode = \"routed\"\n\
    [[container]]\nname = \"fixed\"\nnetns = \"/f\"\ndevice = \"tap\"\nnetwork = \"lan\"\naddresses = [\"203.0.113.9\"]\n";

fn space() -> Space {
    Space::of(&Config::parse("nos.toml", HOSTS).unwrap())
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn address(host: u8) -> IpAddr {
    IpAddr::from([203, 0, 113, host])
}

fn definition(of: &str, kind: PoolKind, elastic: Option<(u32, u32, u32)>) -> PoolDefinition {
    PoolDefinition {
        name: name(of),
        kind,
        vrf: VrfName::Default,
        inside: None,
        elastic: elastic.map(|(step, low, high)| Elastic { step, low, high }),
        max: MAX_POOL,
    }
}

fn inside(of: &str, parent: &str) -> PoolDefinition {
    PoolDefinition {
        inside: Some(name(parent)),
        ..definition(of, PoolKind::Application, None)
    }
}

fn wanted<'a>(holder: &'a str, workload: Option<&'a str>, pool: Option<&'a Name>) -> Wanted<'a> {
    Wanted {
        holder,
        workload,
        vrf: &VrfName::Default,
        pool,
    }
}

fn with_pools() -> (Pools, Space) {
    let (mut pools, space) = (Pools::default(), space());
    let size = Amount::Size;
    let elastic = definition("a", PoolKind::Netspace, Some((4, 1, 8)));
    pools.create(&elastic, size(8), &space).unwrap();
    pools.create(&inside("app", "a"), size(2), &space).unwrap();
    let own = definition("db", PoolKind::Application, None);
    pools.create(&own, size(3), &space).unwrap();
    pools.committed();
    (pools, space)
}

fn drawn(pools: &mut Pools, space: &Space, holder: &str, workload: &str, pool: &str) -> IpAddr {
    let pool = name(pool);
    let pair = pools.draw(wanted(holder, Some(workload), Some(&pool)), space);
    pair.unwrap().place().address()
}

#[test]
fn pools_are_made_of_what_nobody_has() {
    let (pools, space) = with_pools();
    let blocks = |of: &str| {
        let blocks = pools.get(&name(of)).unwrap().blocks().iter();
        blocks
            .map(|block| block.to_string())
            .collect::<Vec<_>>()
            .join(" ")
    };
    // The NOS is .1, a router .2, a container .9.
    assert_eq!(
        blocks("a"),
        "203.0.113.3-203.0.113.8 203.0.113.10-203.0.113.11"
    );
    assert_eq!(blocks("app"), "203.0.113.3-203.0.113.4");
    assert_eq!(blocks("db"), "203.0.113.12-203.0.113.14");
    assert_eq!(
        pools.left(&VrfName::Default, &space).count(),
        30 - 3 - 8 - 3
    );
}

#[test]
fn a_workload_gets_its_latest_address_and_a_new_one_the_earliest_released() {
    let (mut pools, space) = with_pools();
    let first = drawn(&mut pools, &space, "c1", "w1", "a");
    let second = drawn(&mut pools, &space, "c2", "w2", "a");
    assert_eq!((first, second), (address(5), address(6)));
    // Asked again, it has what it has.
    assert_eq!(drawn(&mut pools, &space, "c1", "w1", "a"), first);
    pools.release("c2");
    pools.release("c1");
    assert_eq!(drawn(&mut pools, &space, "c3", "w1", "a"), first);
    assert_eq!(drawn(&mut pools, &space, "c4", "w2", "a"), second);
    pools.release("c4");
    pools.release("c3");
    // What nobody has had comes first; then what was released longest ago.
    let mut seen = Vec::new();
    for number in 0..25 {
        let holder = format!("n{number}");
        let pool = name("a");
        match pools.draw(wanted(&holder, Some(&holder), Some(&pool)), &space) {
            Ok(pair) => seen.push(pair.place().address()),
            Err(error) => {
                assert!(error.conflict);
                assert!(
                    error
                        .reason
                        .starts_with("pool \"a\" is exhausted: of 24 addresses, 22 in use"),
                    "{error}"
                );
                break;
            }
        }
    }
    let fresh = [7, 8, 10, 11].map(address);
    assert_eq!(
        (&seen[..4], &seen[4..6]),
        (&fresh[..], &[second, first][..])
    );
    // Then it grows.
    assert_eq!(seen[6..], (15..=30).map(address).collect::<Vec<_>>());
}

#[test]
fn an_application_keeps_its_addresses_for_its_workloads() {
    let (mut pools, space) = with_pools();
    let had: Vec<_> = ["db-0", "db-1", "db-2"]
        .into_iter()
        .map(|it| drawn(&mut pools, &space, it, it, "db"))
        .collect();
    for holder in ["db-2", "db-0", "db-1"] {
        pools.release(holder);
    }
    let pool = name("db");
    let error = pools
        .draw(wanted("x", Some("db-3"), Some(&pool)), &space)
        .unwrap_err();
    assert!(
        error
            .reason
            .contains("0 in use and 3 kept for workloads; it keeps its size"),
        "{error}"
    );
    let again: Vec<_> = ["db-1", "db-0", "db-2"]
        .into_iter()
        .map(|it| drawn(&mut pools, &space, it, it, "db"))
        .collect();
    assert_eq!(again, [had[1], had[0], had[2]]);
}

#[test]
fn who_names_no_pool_gets_an_address_of_the_default_one() {
    let (mut pools, space) = with_pools();
    let pair = pools.draw(wanted("c", None, None), &space).unwrap();
    assert_eq!(pair.to_string(), "203.0.113.15 and 2001:db8:1::f");
    assert!(pools.get(&name("default")).is_some());
    let red = VrfName::Named(name("red"));
    let of_red = Wanted {
        vrf: &red,
        ..wanted("r", None, None)
    };
    let error = pools.draw(of_red, &space).unwrap_err();
    assert_eq!(error.reason, "name a pool of VRF \"red\"; there is none");
    let a = name("a");
    let error = pools
        .draw(
            Wanted {
                pool: Some(&a),
                ..of_red
            },
            &space,
        )
        .unwrap_err();
    assert_eq!(
        error.reason,
        "pool \"a\" is in VRF \"default\", and the container in VRF \"red\""
    );
}

#[test]
fn what_is_taken_is_refused_by_name() {
    let (mut pools, space) = with_pools();
    let (a, db) = (name("a"), name("db"));
    pools
        .reserve(&a, "shop/web", Some(address(7)), &space)
        .unwrap();
    drawn(&mut pools, &space, "c1", "w1", "a");
    let claim = |pools: &mut Pools, host, holder, workload, pool| {
        let claimed = pools.claim(address(host), wanted(holder, workload, pool));
        claimed.map(|pair| pair.map(|it| it.place().address()))
    };
    let reason =
        |claimed: Result<_, PoolError>| claimed.map(|_: Option<IpAddr>| ()).unwrap_err().reason;
    assert_eq!(
        reason(claim(&mut pools, 5, "c2", None, None)),
        "203.0.113.5 and 2001:db8:1::5 is held by \"c1\""
    );
    assert_eq!(
        reason(claim(&mut pools, 7, "c2", None, None)),
        "203.0.113.7 and 2001:db8:1::7 is kept for workload \"shop/web\""
    );
    assert_eq!(
        reason(claim(&mut pools, 7, "c2", None, Some(&db))),
        "203.0.113.7 is not in pool \"db\""
    );
    assert_eq!(
        reason(claim(&mut pools, 3, "c2", None, Some(&a))),
        "203.0.113.3 is pool \"app\"'s, which lies in pool \"a\""
    );
    assert_eq!(claim(&mut pools, 30, "c2", None, None).unwrap(), None);
    let web = claim(&mut pools, 7, "c2", Some("shop/web"), None);
    assert_eq!(web.unwrap(), Some(address(7)));
    let range = |text: &str| Amount::Range(text.parse().unwrap());
    for (pool, text, expected) in [
        (
            "db",
            "203.0.113.9",
            "203.0.113.9 and 2001:db8:1::9 is container \"fixed\"'s",
        ),
        (
            "db",
            "203.0.113.10",
            "203.0.113.10 and 2001:db8:1::a is pool \"a\"'s",
        ),
        (
            "db",
            "198.51.100.7",
            "198.51.100.7 is no host's address in a network of an uplink of VRF \"default\"",
        ),
        (
            "app",
            "203.0.113.5",
            "203.0.113.5 and 2001:db8:1::5 is in use in pool \"a\"",
        ),
        (
            "app",
            "203.0.113.20",
            "203.0.113.20 and 2001:db8:1::14 is not in pool \"a\"",
        ),
    ] {
        let error = pools.grow(&name(pool), range(text), &space).unwrap_err();
        assert_eq!(error.reason, expected);
    }
    for (amount, expected) in [
        (
            Amount::Size(9),
            "pool \"a\" cannot give back 9 of its 8 addresses: 2 in use, 0 kept for workloads, 2 in pools inside; 4 can be given back",
        ),
        (
            range("203.0.113.4-203.0.113.6"),
            "203.0.113.4 and 2001:db8:1::4 is in a pool that lies in pool \"a\"",
        ),
        (
            range("203.0.113.5-203.0.113.6"),
            "203.0.113.5 and 2001:db8:1::5 is held by \"c1\"",
        ),
    ] {
        assert_eq!(pools.shrink(&a, amount).unwrap_err().reason, expected);
    }
    assert!(
        pools
            .remove(&a)
            .unwrap_err()
            .reason
            .starts_with("2 addresses of pool \"a\" are in use, by \"c1\"")
    );
    pools.release("c1");
    pools.release("c2");
    assert_eq!(
        pools.remove(&a).unwrap_err().reason,
        "pool \"app\" lies in it; remove that first"
    );
}

#[test]
fn a_definition_that_makes_no_sense_is_named() {
    let (mut pools, space) = with_pools();
    let netspace = |of| definition(of, PoolKind::Netspace, None);
    let red = VrfName::Named(name("red"));
    for (definition, field, expected) in [
        (
            netspace("total"),
            "pool",
            "\"total\" is all networks of the uplinks",
        ),
        (
            netspace("default"),
            "kind",
            "the pool \"default\", and no other",
        ),
        (
            definition("x", PoolKind::Default, None),
            "kind",
            "the pool \"default\", and no other",
        ),
        (
            PoolDefinition {
                kind: PoolKind::Netspace,
                ..inside("x", "a")
            },
            "inside",
            "a pool of kind \"netspace\" lies in",
        ),
        (
            inside("x", "app"),
            "inside",
            "pool \"app\" is of kind \"application\"",
        ),
        (
            inside("x", "nowhere"),
            "inside",
            "there is no pool \"nowhere\"; there is \"a\", \"app\", \"db\"",
        ),
        (
            PoolDefinition {
                vrf: red,
                ..inside("x", "a")
            },
            "inside",
            "pool \"a\" is in VRF \"default\", and this one in VRF \"red\"",
        ),
        (
            PoolDefinition {
                vrf: VrfName::Named(name("blue")),
                ..netspace("x")
            },
            "vrf",
            "no uplink is in VRF \"blue\"",
        ),
        (
            definition("x", PoolKind::Netspace, Some((4, 2, 5))),
            "high",
            "is less than low and step together, which are 6",
        ),
        (
            netspace("a"),
            "name",
            "pool \"a\" is there and is another one",
        ),
    ] {
        let error = pools
            .create(&definition, Amount::Size(0), &space)
            .unwrap_err();
        assert!(error.reason.starts_with(expected), "{error}");
        assert_eq!(error.field, field);
    }
    let error = pools
        .create(&netspace("x"), Amount::Size(20), &space)
        .unwrap_err();
    assert_eq!(error.reason, "pool \"total\" has 16 addresses left, not 20");
    assert!(pools.get(&name("x")).is_none());
}

/// What is stored of pools, and of each what it counts and what is free.
type Seen = (Vec<StoredPool>, Vec<(u64, u64, u64, Blocks)>);

fn seen(pools: &Pools) -> Seen {
    let counts = pools
        .iter()
        .map(|it| (it.held(), it.kept(), it.available(), it.free.clone()));
    (pools.entries(), counts.collect())
}

/// What somebody would get out of a pool as it is, by looking at each of its addresses.
fn by_looking(pools: &Pools, space: &Space, pool: &Name, workload: &str) -> Option<Pair> {
    let pool = pools.get(pool)?;
    let of_inside = |pair: &Pair| {
        pools
            .inside(&pool.definition.name)
            .any(|it| it.blocks.at(pair.place()).is_some())
    };
    let usable = pool.blocks.pairs().filter(|pair| !of_inside(pair));
    let usable = usable.filter(|pair| space.owner(&VrfName::Default, *pair).is_none());
    let ranked = usable.filter_map(|pair| {
        let rank = match pool.record(pair.place()) {
            None => (2, 0, Reverse(0)),
            Some(it) if it.holder.is_some() => return None,
            Some(it) if it.workload.as_deref() == Some(workload) => {
                (u8::from(!it.reserved), 0, Reverse(it.order))
            }
            Some(it) if it.reserved => return None,
            Some(it) if it.workload.is_some() && pool.definition.kind == PoolKind::Application => {
                return None;
            }
            Some(it) => (3, it.order, Reverse(0)),
        };
        Some((rank, pair))
    });
    ranked.min().map(|(_, pair)| pair)
}

#[derive(Clone, Debug)]
enum Step {
    Draw(u8, u8, u8),
    Claim(u8, u8, u8),
    Release(u8),
    Reserve(u8, u8, Option<u8>),
    Forget(u8, u8),
    Grow(u8, u8),
    GrowBy(u8, u8, u8),
    Shrink(u8, u8),
    Remove(u8),
    Create(u8, u8),
    Store,
    Undo,
}

fn step() -> impl Strategy<Value = Step> {
    let small = 0..6_u8;
    prop_oneof![
        8 => (small.clone(), small.clone(), small.clone()).prop_map(|(a, b, c)| Step::Draw(a, b, c)),
        2 => (small.clone(), 0..32_u8, small.clone()).prop_map(|(a, b, c)| Step::Claim(a, b, c)),
        6 => small.clone().prop_map(Step::Release),
        2 => (small.clone(), small.clone(), prop::option::of(0..32_u8)).prop_map(|(a, b, c)| Step::Reserve(a, b, c)),
        1 => (small.clone(), 0..32_u8).prop_map(|(a, b)| Step::Forget(a, b)),
        2 => (small.clone(), small.clone()).prop_map(|(a, b)| Step::Grow(a, b)),
        1 => (small.clone(), 0..32_u8, small.clone()).prop_map(|(a, b, c)| Step::GrowBy(a, b, c)),
        2 => (small.clone(), small.clone()).prop_map(|(a, b)| Step::Shrink(a, b)),
        1 => small.clone().prop_map(Step::Remove),
        2 => (small.clone(), small).prop_map(|(a, b)| Step::Create(a, b)),
        1 => Just(Step::Store),
        1 => Just(Step::Undo),
    ]
}

const NAMES: [&str; 6] = ["a", "app", "db", "default", "b", "bapp"];

fn defined(number: u8) -> PoolDefinition {
    match number {
        0 => definition("a", PoolKind::Netspace, Some((4, 1, 8))),
        1 => inside("app", "a"),
        2 => definition("db", PoolKind::Application, None),
        3 => definition("default", PoolKind::Default, Some((3, 0, 4))),
        4 => definition("b", PoolKind::Netspace, None),
        _ => PoolDefinition {
            elastic: Some(Elastic {
                step: 1,
                low: 0,
                high: 2,
            }),
            ..inside("bapp", "b")
        },
    }
}

/// Each address is in one pool, or in one inside another; what is known of all is what counts say.
fn check(pools: &Pools) {
    let mut holders = BTreeMap::<&str, usize>::new();
    for pool in pools.iter() {
        let DefinitionOf { parent, kind } = of(pool);
        for pair in pool.blocks.pairs() {
            let others = pools
                .iter()
                .filter(|it| it.definition.name != pool.definition.name);
            for other in others.filter(|it| it.blocks.at(pair.place()).is_some()) {
                let nested = parent == Some(&other.definition.name)
                    || of(other).parent == Some(&pool.definition.name);
                assert!(nested, "{pair} is in {pool:?} and {other:?}");
            }
            if let Some(parent) = parent {
                assert!(pools.get(parent).unwrap().blocks.at(pair.place()).is_some());
            }
        }
        let records: Vec<_> = pool.records().collect();
        for (place, record) in &records {
            assert!(pool.blocks.at(*place).is_some() && pool.free.at(*place).is_none());
            assert!(
                !pools
                    .inside(&pool.definition.name)
                    .any(|it| it.blocks.at(*place).is_some())
            );
            if let Some(holder) = &record.holder {
                *holders.entry(holder).or_default() += 1;
            }
        }
        let held = records.iter().filter(|(_, it)| it.holder.is_some()).count() as u64;
        let open = records.iter().filter(|(_, it)| {
            let bound = *kind == PoolKind::Application && it.workload.is_some();
            it.holder.is_none() && !it.reserved && !bound
        });
        let open = open.count() as u64;
        assert_eq!(pool.held(), held);
        assert_eq!(pool.available(), open + pool.free.count());
        assert_eq!(pool.kept(), records.len() as u64 - held - open);
    }
    let known = pools.holders();
    let known: BTreeMap<_, _> = known
        .iter()
        .map(|it| (&**it, pools.held_by(it).len()))
        .collect();
    assert_eq!(known, holders);
}

struct DefinitionOf<'a> {
    parent: Option<&'a Name>,
    kind: &'a PoolKind,
}

fn of(pool: &Pool) -> DefinitionOf<'_> {
    DefinitionOf {
        parent: pool.definition.inside.as_ref(),
        kind: &pool.definition.kind,
    }
}

fn carry_out(pools: &mut Pools, space: &Space, step: &Step) -> Result<(), PoolError> {
    let named = |number: u8| name(NAMES[usize::from(number)]);
    let text = |of: char, number: u8| format!("{of}{number}");
    match *step {
        Step::Draw(holder, workload, pool) => {
            let (holder, workload, pool) = (text('c', holder), text('w', workload), named(pool));
            let had = pools.held_by(&holder);
            let expected = by_looking(pools, space, &pool, &workload);
            let drawn = pools.draw(wanted(&holder, Some(&workload), Some(&pool)), space)?;
            match (had.first(), expected) {
                (Some(had), _) => assert_eq!(drawn, *had),
                (None, Some(expected)) => assert_eq!(drawn, expected),
                // It has grown.
                (None, None) => {}
            }
        }
        Step::Claim(holder, host, workload) => {
            let (holder, workload) = (text('c', holder), text('w', workload));
            let claimed = pools.claim(address(host), wanted(&holder, Some(&workload), None))?;
            if let Some(pair) = claimed {
                assert!(pools.held_by(&holder).contains(&pair));
            }
        }
        Step::Release(holder) => {
            pools.release(&text('c', holder));
            assert!(pools.held_by(&text('c', holder)).is_empty());
        }
        Step::Reserve(pool, workload, host) => {
            let workload = text('w', workload);
            let pair = pools.reserve(&named(pool), &workload, host.map(address), space)?;
            let record = pools
                .get(&named(pool))
                .unwrap()
                .record(pair.place())
                .unwrap();
            assert!(record.reserved && record.workload.as_deref() == Some(&workload[..]));
        }
        Step::Forget(pool, host) => {
            pools.forget(&named(pool), &Released::Address(address(host)))?;
        }
        Step::Grow(pool, size) => pools.grow(&named(pool), Amount::Size(size.into()), space)?,
        Step::GrowBy(pool, host, more) => {
            let range = AddressRange {
                first: address(host),
                last: address(host + more),
            };
            pools.grow(&named(pool), Amount::Range(range), space)?;
        }
        Step::Shrink(pool, size) => pools.shrink(&named(pool), Amount::Size(size.into()))?,
        Step::Remove(pool) => {
            pools.remove(&named(pool))?;
        }
        Step::Create(pool, size) => {
            pools.create(&defined(pool), Amount::Size(size.into()), space)?;
        }
        Step::Store | Step::Undo => {}
    }
    Ok(())
}

proptest! {
    #[test]
    fn nothing_is_given_twice_and_all_is_stored(steps in prop::collection::vec(step(), 0..60)) {
        let (mut pools, space) = with_pools();
        let mut disk: BTreeMap<_, _> = pools.entries().into_iter().map(|it| (it.name, it.json.unwrap())).collect();
        let mut stored = seen(&pools);
        for step in &steps {
            let (before, mark) = (seen(&pools), pools.mark());
            if carry_out(&mut pools, &space, step).is_err() {
                prop_assert_eq!(&seen(&pools), &before, "{:?}", step);
            }
            check(&pools);
            let after = seen(&pools);
            let mut undone = pools.clone();
            undone.roll_back(mark);
            prop_assert_eq!(&seen(&undone), &before, "{:?}", step);
            match step {
                Step::Store => {
                    for StoredPool { name, json } in pools.writes() {
                        match json {
                            Some(json) => disk.insert(name, json),
                            None => disk.remove(&name),
                        };
                    }
                    pools.committed();
                    let entries = disk.iter().map(|(name, json)| (name.as_str(), json.as_slice()));
                    let read = Pools::of_stored(entries).unwrap();
                    prop_assert_eq!(&seen(&read), &after);
                    check(&read);
                    stored = after;
                }
                Step::Undo => {
                    let mark = pools.stored_mark();
                    pools.roll_back(mark);
                    prop_assert_eq!(&seen(&pools), &stored);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn whatever_the_disk_has_is_read_or_refused(
        entries in prop::collection::vec((
            "(pool|address|what) (a|app)( (203.0.113.[0-9]|x))?( y)?",
            prop_oneof![
                Just("{}".to_owned()),
                r#"\{"kind":"(netspace|application|x)","max":[0-9],("inside":"a",)?"blocks":\[(\{"v4":"203.0.113.[0-9]","count":[0-9]\})?\]\}"#,
                r#"\{"workload":"w","order":[0-9]\}"#,
                ".{0,10}",
            ],
        ), 0..6),
    ) {
        let entries: BTreeMap<_, _> = entries.into_iter().collect();
        let all = entries.iter().map(|(name, json)| (name.as_str(), json.as_bytes()));
        if let Ok(pools) = Pools::of_stored(all) {
            check(&pools);
        }
    }
}
