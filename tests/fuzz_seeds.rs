//! What the fuzz targets check, with their seeds and with the inputs that fuzzing has found; and that
//! the seeds of `config` and `relay` are valid, and do what they are for.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where its network cannot be built"
)]

use std::path::{Path, PathBuf};

#[allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::needless_pass_by_value,
    reason = "a part of the fuzz targets, whose numbers are small"
)]
#[path = "../fuzz/bodies"]
mod bodies {
    pub mod arp_ndp;
    pub mod config;
    pub mod control;
    pub mod differential;
    pub mod fib;
    pub mod flows;
    pub mod fragments;
    pub mod framed;
    pub mod frames;
    pub mod icmp;
    pub mod memif;
    pub mod network;
    pub mod offload;
    pub mod packet;
    pub mod pools;
    pub mod ports;
    pub mod reload;
    pub mod seen;
    pub mod steered;
    pub mod world;
}

fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(target)
}

/// Runs a target with its seeds and with what is kept of the inputs that were found.
fn replay(target: &str, run: impl Fn(&[u8])) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let mut count = 0;
    for kind in ["seeds", "corpus"] {
        let Ok(entries) = std::fs::read_dir(root.join(kind).join(target)) else {
            continue;
        };
        for entry in entries {
            run(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
    }
    assert!(count > 0, "no inputs of the target {target}");
}

macro_rules! replays {
    ($($target:ident: $run:expr,)*) => {
        mod replay {
            use super::*;

            $(#[test]
            fn $target() {
                replay(stringify!($target), $run);
            })*

            #[test]
            fn none_is_left_out() {
                let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
                let targets = std::fs::read_dir(root).unwrap();
                let targets = targets.map(|entry| entry.unwrap().path());
                let mut targets: Vec<String> = targets
                    .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
                    .collect();
                targets.sort();
                // That of the C interface runs with its tests.
                let mut here = vec!["capi", $(stringify!($target)),*];
                here.sort_unstable();
                assert_eq!(targets, here);
            }
        }
    };
}

replays! {
    arp_ndp: bodies::arp_ndp::run,
    config: |input| {
        if let Ok(text) = std::str::from_utf8(input) {
            bodies::config::run(text);
        }
    },
    control: bodies::control::run,
    fib: bodies::fib::run,
    flows: bodies::flows::run,
    fragments: bodies::fragments::run,
    icmp: bodies::icmp::run,
    memif: bodies::memif::run,
    offload: bodies::offload::run,
    packet: bodies::packet::run,
    ports: bodies::ports::run,
    relay: |input| {
        bodies::world::run(input);
    },
    reload: bodies::reload::run,
    steered: |input| {
        bodies::world::run_steered(input);
    },
}

#[test]
fn seeds_of_the_target_config_are_valid() {
    let directory = directory("config");
    let mut count = 0;
    for entry in std::fs::read_dir(&directory).expect("the seeds") {
        let path = entry.expect("a seed").path();
        if let Err(errors) = nos_relay::control::config::Config::load(&path) {
            panic!("{errors}");
        }
        count += 1;
    }
    assert!(count > 0, "no seeds in {}", directory.display());
}

/// Each line of all but the last is granted, and each of that refused; all are answered as the schema
/// says.
#[test]
fn seeds_of_the_target_control_are_requests() {
    let schema = std::fs::read_to_string("docs/control.schema.json").unwrap();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let valid = jsonschema::validator_for(&schema).unwrap();
    for (name, granted) in [
        ("changes", true),
        ("leases", true),
        ("networks", true),
        ("pools", true),
        ("questions", false),
    ] {
        let lines = std::fs::read(directory("control").join(name)).unwrap();
        let lines = lines.strip_suffix(b"\n").unwrap();
        let answers = bodies::control::answers(lines);
        assert_eq!(answers.len(), lines.split(|&octet| octet == b'\n').count());
        for answer in answers {
            let json: serde_json::Value = serde_json::from_slice(&answer).unwrap();
            assert!(valid.is_valid(&json), "{name}: {json}");
            let kind = json["response"]["type"].as_str().unwrap();
            assert_eq!(kind == "changed", granted, "{name}: {json}");
        }
    }
}

/// Uplinks 0 and 1, a default route, all services, and containers 0 and 1.
const NETWORK: &[u8] = &[3, 0, 0, 3, 1, 0x80, 5, 0, 6, 7, 0, 0, 0xf0, 0, 1, 0x04, 11];
const CONTAINER_0: u8 = 0;
const UPLINK_0: u8 = 1;

/// A crafted frame: side, family, source, destination, protocol, kind, ports, size.
fn crafted(side: u8, draft: [u8; 5], ports: (u16, u16), size: u8, fragment: u8) -> Vec<u8> {
    let [family, source, destination, protocol, kind] = draft;
    let mut step = vec![8, side, 0, family, source, destination, protocol, kind, 64];
    step.extend(ports.0.to_be_bytes());
    step.extend(ports.1.to_be_bytes());
    step.extend([size, fragment]);
    step
}

const REFLECT: [u8; 2] = [9, UPLINK_0];
const RESOLVE: [u8; 1] = [11];
const WAIT: [u8; 4] = [12, 0x03, 0xe8, 1];

/// Name, script, and the least that reaches containers and uplinks.
type Seed = (String, Vec<u8>, (usize, usize));

fn scripts() -> Vec<Seed> {
    let mut scripts = Vec::new();
    for family in [0, 1] {
        let name = |what: &str| format!("v{}-{what}", if family == 0 { 4 } else { 6 });
        let mut add = |what, steps: &[&[u8]], least| {
            let script = [NETWORK, &steps.concat()].concat();
            scripts.push((name(what), script, least));
        };
        let out = crafted(CONTAINER_0, [family, 0, 2, 1, 0], (40_000, 53), 2, 0);
        add("out-and-back", &[&out, &RESOLVE, &REFLECT], (1, 2));
        let ping = crafted(
            CONTAINER_0,
            [family, 0, 4, 2, if family == 0 { 8 } else { 128 }],
            (7, 0),
            1,
            0,
        );
        add("ping", &[&ping, &RESOLVE, &REFLECT], (1, 2));
        let big = crafted(CONTAINER_0, [family, 0, 2, 1, 0], (40_000, 53), 80, 0);
        add("too-big", &[&big, &RESOLVE], (usize::from(family), 1));
        let syn = crafted(UPLINK_0, [family, 2, 0, 0, 2], (5000, 7), 0, 0);
        add(
            "own-service",
            &[&syn, &RESOLVE, &REFLECT, &REFLECT, &WAIT],
            (0, 2),
        );
        let closed = crafted(UPLINK_0, [family, 2, 0, 1, 0], (5000, 81), 1, 0);
        add("refused", &[&closed, &RESOLVE], (0, 2));
        let first = crafted(UPLINK_0, [family, 2, 0, 1, 0], (5000, 20_001), 2, 0x20);
        let last = crafted(UPLINK_0, [family, 2, 0, 1, 0], (5000, 20_001), 2, 0x01);
        add(
            "fragments",
            &[&last, &first, &WAIT, &last, &WAIT, &WAIT],
            (2, 0),
        );
        let quote = [
            &[
                10,
                UPLINK_0,
                family,
                2,
                0,
                0,
                if family == 0 { 3 } else { 1 },
            ][..],
            &[64; 7],
        ]
        .concat();
        add("error", &[&out, &RESOLVE, &quote], (1, 2));
        let transit = crafted(UPLINK_0, [family, 2, 3, 1, 0], (5000, 53), 1, 0);
        add("transit", &[&transit, &RESOLVE, &WAIT], (0, 2));
        let sibling = crafted(CONTAINER_0, [family, 0, 1, 1, 0], (40_000, 21_001), 1, 0);
        add("sibling", &[&sibling], (1, 0));
        let nobody = crafted(CONTAINER_0, [family, 0, 6 + 8, 1, 0], (40_000, 53), 1, 0);
        add(
            "no-neighbor",
            &[&nobody, &WAIT, &WAIT, &WAIT, &WAIT],
            (1, 3),
        );
        let leaves = [[2, 0], [4, 0], [0, 0], [3, 0]];
        add(
            "come-and-go",
            &[&out, &leaves.concat(), &[9, 0], &out, &RESOLVE],
            (0, 1),
        );
    }
    // Frames that a busy device left must go with their uplink.
    let busy = [13, 0, 3, 1, 0x80, 4, 1, 13, 0xfe];
    let script = [NETWORK, &busy].concat();
    scripts.push(("removed-while-busy".to_owned(), script, (0, 1)));
    scripts
}

/// One uplink with all addresses of both families, to a NOS whose MAC address is known or has to be asked
/// for; and containers 0 and 1, of which each shares its own.
const STEERED: [u8; 9] = [3, 0, 2, 0, 0, 0xf0, 0, 1, 0x04];

fn steered_scripts() -> Vec<Seed> {
    let mut scripts = Vec::new();
    for (family, known) in [(0, 1), (1, 1), (0, 0), (1, 0)] {
        let mut add = |what: &str, steps: &[&[u8]], least| {
            let (version, how) = (
                if family == 0 { 4 } else { 6 },
                if known == 0 { "asked" } else { "known" },
            );
            let script = [&[known], &STEERED[..], &steps.concat()].concat();
            scripts.push((format!("v{version}-{how}-{what}"), script, least));
        };
        // Nobody is there until who is asked for has answered.
        let out = crafted(CONTAINER_0, [family, 0, 2, 1, 0], (40_000, 53), 2, 0);
        add("out-and-back", &[&out, &RESOLVE, &REFLECT], (1, 1));
        if known == 0 {
            add("no-answer", &[&out, &WAIT, &WAIT, &WAIT, &WAIT], (0, 1));
            continue;
        }
        let request = if family == 0 { 8 } else { 128 };
        let ping = crafted(CONTAINER_0, [family, 0, 4, 2, request], (7, 0), 1, 0);
        add("ping", &[&ping, &REFLECT], (1, 1));
        let unreachable = if family == 0 { 3 } else { 1 };
        let quote = [10, UPLINK_0, family, 2, 0, 0, unreachable];
        add("error", &[&out, &quote, &[64; 7]], (1, 1));
        let first = crafted(UPLINK_0, [family, 2, 0, 1, 0], (5000, 20_001), 2, 0x20);
        let last = crafted(UPLINK_0, [family, 2, 0, 1, 0], (5000, 20_001), 2, 0x01);
        add("fragments", &[&last, &first, &WAIT, &last], (2, 0));
        // From a port that it only opens flows from, and from one of nobody's.
        let syn = crafted(UPLINK_0, [family, 2, 0, 0, 2], (5000, 40_000), 0, 0);
        let nobodys = crafted(UPLINK_0, [family, 2, 0, 0, 2], (5000, 22), 0, 0);
        add("refused", &[&syn, &nobodys], (0, 1));
        let sibling = crafted(CONTAINER_0, [family, 0, 1, 1, 0], (40_000, 21_001), 1, 0);
        add("sibling", &[&sibling], (1, 0));
        let big = crafted(CONTAINER_0, [family, 0, 2, 1, 0], (40_000, 53), 80, 0x40);
        add("too-big", &[&big], (1, 0));
        // From a port of nobody's, by a container that learns; and another NOS.
        let learns = [17, 0, 0xf0, 0x20];
        let learnt = crafted(CONTAINER_0, [family, 0, 2, 1, 0], (9000, 53), 2, 0);
        add(
            "learnt",
            &[&learns, &learnt, &REFLECT, &[24], &out, &REFLECT],
            (2, 2),
        );
    }
    scripts
}

/// After a change of the input format: `NOS_RELAY_WRITE_SEEDS=1 cargo test --test fuzz_seeds`.
fn check_scripts(target: &str, scripts: &[Seed], run: impl Fn(&[u8]) -> bodies::world::Sent) {
    let directory = directory(target);
    let write = std::env::var_os("NOS_RELAY_WRITE_SEEDS").is_some();
    for (name, script, least) in scripts {
        let sent = run(script);
        assert!(
            sent.to_containers >= least.0 && sent.to_uplinks >= least.1,
            "{name}: {sent:?}, less than {least:?}"
        );
        let path = directory.join(name);
        if write {
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(&path, script).unwrap();
        }
        let file = std::fs::read(&path).expect("a seed");
        assert_eq!(&file, script, "{name} is stale");
    }
    let files = std::fs::read_dir(directory).expect("the seeds").count();
    assert_eq!(files, scripts.len(), "seeds that nothing makes");
}

#[test]
fn seeds_of_the_target_relay_move_packets() {
    check_scripts("relay", &scripts(), bodies::world::run);
}

#[test]
fn seeds_of_the_target_steered_move_packets() {
    check_scripts("steered", &steered_scripts(), bodies::world::run_steered);
}
