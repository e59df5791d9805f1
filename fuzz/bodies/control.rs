//! The control socket's requests: any line is answered, and by a line that a client can read.
//!
//! What is asked for is carried out beside a configuration: it makes another overlay that fits to the
//! file, and can be stored and read again, or an error that says why not. Nothing panics.
//!
//! Input: lines, each a request.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use nos_relay::control::api::{Applied, Changing, Refusal, RefusalCode, Request, Response};
use nos_relay::control::config::{
    BootId, Change, ConfigErrors, ConfigFile, Holders, Keys, Overlay, PoolAction, ProcessIdentity,
};
use nos_relay::control::pools::{Pair, Pools, Space};

/// Requests of a run.
const LINES: usize = 16;

const FILE: &str = r#"
[[uplink]]
name = "up0"
device = "packet:hx"
addresses = ["203.0.113.1/24", "2001:db8:1::1/64"]

[[uplink]]
name = "red0"
device = "tap:r0"
addresses = "198.51.100.1/24"
vrf = "red"

[[route]]
prefix = "0.0.0.0/0"
via = "203.0.113.2"

[[container]]
name = "web"
netns = "/run/netns/C"
device = "tap"
tcp = ["20000-20999", "179"]
ephemeral = "40000-44999"

[nos]
services = ["echo", "http:8080"]

[ports]
pool = "30000-30999"
"#;

thread_local! {
    static BASE: OnceCell<Rc<ConfigFile>> = const { OnceCell::new() };
}

fn base() -> Rc<ConfigFile> {
    BASE.with(|base| {
        let file = base.get_or_init(|| {
            let file = ConfigFile::parse("fuzz.toml", FILE);
            Rc::new(file.expect("the file is valid"))
        });
        Rc::clone(file)
    })
}

pub fn run(data: &[u8]) {
    for answer in answers(data) {
        assert!(answer.ends_with(b"\n"));
        let line = &answer[..answer.len() - 1];
        assert!(!line.contains(&b'\n'), "an answer is a line");
        let response = Response::from_line(line).expect("a client can read it");
        assert_eq!(response.to_line(), answer);
    }
}

/// The lines that answer the lines of `data`.
pub fn answers(data: &[u8]) -> Vec<Vec<u8>> {
    let base = base();
    let mut state = State::default();
    let lines = data.split(|&octet| octet == b'\n').take(LINES);
    lines
        .map(|line| answer(&base, &mut state, line).to_line())
        .collect()
}

/// What lines have changed.
#[derive(Default)]
struct State {
    overlay: Overlay,
    pools: Pools,
}

fn answer(base: &ConfigFile, state: &mut State, line: &[u8]) -> Response {
    let request = match Request::from_line(line) {
        Ok((id, request)) => {
            assert!(id.is_none_or(|id| (1..=64).contains(&id.len())));
            request
        }
        Err(refusal) => {
            assert!(!refusal.message.is_empty());
            return Response::Refused(refusal);
        }
    };
    let Some((change, keys)) = request.change() else {
        let refusal = Refusal::new(RefusalCode::Unavailable, "nothing is shown here");
        return Response::Refused(refusal);
    };
    match change {
        Changing::Registered(change) => changed(base, &mut state.overlay, change, keys),
        Changing::Pools(action) => pooled(base, state, action, keys),
    }
}

fn changed(base: &ConfigFile, overlay: &mut Overlay, change: Change, keys: &Keys) -> Response {
    let holders = Holders {
        connection: Some(7),
        process: Ok(ProcessIdentity {
            pid: 4,
            started: 5,
            boot: BootId(6),
        }),
    };
    match base.change(overlay, change, keys, &holders) {
        Ok(changed) => {
            let config = base.config(&changed.overlay);
            let config = config.expect("what is granted fits to the file");
            assert!(changed.config.is_none_or(|told| told == config));
            stored(overlay, &changed.overlay);
            let applied = Applied {
                changed: *overlay != changed.overlay,
                range: changed.range.map(|range| range.to_string()),
                ..Applied::default()
            };
            *overlay = changed.overlay;
            Response::Changed(applied)
        }
        Err(errors) => refused(&errors),
    }
}

fn refused(errors: &ConfigErrors) -> Response {
    let first = errors.errors().first().expect("an error");
    assert!(!first.reason.is_empty());
    let refusal = Refusal::new(RefusalCode::BadRequest, errors.to_string());
    Response::Refused(refusal)
}

/// What is refused changes nothing; what is done can be stored, step by step, and read.
fn pooled(base: &ConfigFile, state: &mut State, action: PoolAction, keys: &Keys) -> Response {
    let request = match base.pool_request(action, keys) {
        Ok(request) => request,
        Err(errors) => return refused(&errors),
    };
    let config = base.config(&state.overlay).expect("it fits to the file");
    let (space, pools) = (Space::of(&config), &mut state.pools);
    let before = pools.entries();
    let response = match pools.carry_out(&request, &space) {
        Ok(carried) => Response::Changed(Applied {
            changed: carried.changed,
            addresses: carried
                .given
                .into_iter()
                .flat_map(Pair::addresses)
                .collect(),
            ..Applied::default()
        }),
        Err(error) => {
            assert!(!error.reason.is_empty());
            assert_eq!(pools.entries(), before, "{request:?}");
            Response::Refused(Refusal::new(RefusalCode::BadRequest, error.to_string()))
        }
    };
    let writes = pools.writes();
    let entries = before.into_iter().map(|it| (it.name, it.json));
    let mut disk: BTreeMap<_, _> = entries.collect();
    disk.extend(writes.into_iter().map(|it| (it.name, it.json)));
    let there = disk
        .iter()
        .filter_map(|(name, json)| Some((name.as_str(), json.as_deref()?)));
    let read = Pools::of_stored(there).expect("its own entries");
    assert_eq!(read.entries(), pools.entries());
    pools.committed();
    response
}

/// What is registered can be stored and read, all at once and step by step.
fn stored(before: &Overlay, after: &Overlay) {
    let nothing = Overlay::default();
    let records = after.records_since(&nothing);
    let texts: Vec<(&str, &[u8])> = records
        .iter()
        .filter_map(|record| Some((record.name.as_str(), record.json.as_deref()?)))
        .collect();
    assert_eq!(
        texts.len(),
        records.len(),
        "an overlay has no record of what is gone"
    );
    let read = Overlay::of_records(texts).expect("its own records");
    assert!(read.records_since(after).is_empty() && after.records_since(&read).is_empty());
    assert!(after.records_since(after).is_empty());
    assert!(
        !before
            .records_since(before)
            .iter()
            .any(|record| record.json.is_some())
    );
}
