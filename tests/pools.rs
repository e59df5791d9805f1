//! Pools of addresses: what containers get of them, and what remains of that.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::net::IpAddr;
use std::process::Command;

use nix::sys::signal::Signal;
use nos_relay::control::api::snapshot::{AddressState, LinkState, Pool, PoolAddress};
use nos_relay::control::api::{
    Applied, ControlError, Refusal, RefusalCode, Request, Response, Table, ask,
};
use nos_relay::lab::testbed::Topology;
use serde_json::{Value, json};
use support::daemon::{Daemon, LIMIT, await_that, program};
use support::lab_test;
use support::requests::{at, attach, ip};
use support::traffic::reaches;

const PORT: u16 = 8080;

/// A daemon whose containers may have addresses of two VRFs' networks.
struct Lab {
    // First, so that it is stopped while the networks are there.
    daemon: Daemon,
    topology: Topology,
}

fn config(more: &str) -> String {
    format!(
        r#"
[[uplink]]
name = "up0"
device = "packet:{}"
addresses = ["203.0.113.1/24", "2001:db8:1::1/64"]

[[uplink]]
name = "red0"
device = "packet:nowhere"
addresses = ["203.0.113.1/28"]
vrf = "red"

[[route]]
prefix = "0.0.0.0/0"
via = "203.0.113.2"

[[network]]
name = "lan"
mode = "routed"
device = "veth"

[[network]]
name = "shop"
mode = "routed"
device = "veth"
pool = "db"

[[network]]
name = "red"
mode = "routed"
device = "veth"
vrf = "red"

[[network]]
name = "shared"
device = "veth"
{more}
"#,
        Topology::UPLINK
    )
}

fn asked(daemon: &Daemon, request: &Value) -> Result<Applied, Refusal> {
    let typed: Request = serde_json::from_value(request.clone()).unwrap();
    match ask(&daemon.files().control(), None, &typed, LIMIT) {
        Ok(Response::Changed(applied)) => Ok(applied),
        Err(ControlError::Refused(refusal)) => Err(refusal),
        other => panic!("{other:?} to {request}"),
    }
}

impl Lab {
    fn new(containers: &[&str]) -> Self {
        let topology = Topology::new(containers).unwrap();
        let daemon = Daemon::start(&topology.device, &config(""));
        Self { daemon, topology }
    }

    #[track_caller]
    fn change(&self, request: &Value) -> Applied {
        let applied = asked(&self.daemon, request).unwrap();
        assert!(applied.changed, "{request}");
        applied
    }

    #[track_caller]
    fn refused(&self, request: &Value) -> String {
        asked(&self.daemon, request).unwrap_err().message
    }

    /// Attaches a container in a routed network. Returns its addresses.
    #[track_caller]
    fn attach(&self, name: &str, place: usize, keys: &Value) -> Vec<IpAddr> {
        self.change(&self.to_attach(name, place, keys)).addresses
    }

    fn to_attach(&self, name: &str, place: usize, keys: &Value) -> Value {
        attach(name, &self.topology.containers[place], keys)
    }

    fn detach(&self, name: &str) {
        self.change(&json!({"type": "detach", "name": name}));
    }

    fn await_up(&self, name: &str) {
        await_that("it is attached", || {
            match self.daemon.attachment(name).link {
                link if link.state == LinkState::Up => Ok(()),
                link => Err(format!("{link:?}")),
            }
        });
    }

    /// Its namespace is reached by each of these addresses.
    fn reaches(&self, place: usize, addresses: &[IpAddr]) {
        for address in addresses {
            let server = at(&address.to_string(), PORT);
            reaches(
                &self.topology.external,
                &self.topology.containers[place],
                server,
            );
        }
    }

    fn pools(&self) -> Vec<Pool> {
        match self.daemon.try_show(Table::Pools).unwrap() {
            Response::Pools(rows) => rows,
            other => panic!("{other:?}"),
        }
    }

    fn pool(&self, name: &str) -> Pool {
        let mut rows = self.pools().into_iter();
        rows.find(|row| row.name == name).unwrap()
    }

    fn addresses(&self) -> Vec<PoolAddress> {
        match self.daemon.try_show(Table::PoolAddresses).unwrap() {
            Response::PoolAddresses(rows) => rows,
            other => panic!("{other:?}"),
        }
    }

    /// Who holds something, and what.
    fn held(&self) -> Vec<(String, IpAddr)> {
        let rows = self.addresses().into_iter();
        let held = rows.filter_map(|row| Some((row.holder?, row.addresses[0])));
        held.collect()
    }

    fn restarted(self, end: impl FnOnce(Daemon) -> support::daemon::Files) -> Self {
        let Self { daemon, topology } = self;
        daemon.forget_counters();
        let daemon = Daemon::start_on(&topology.device, end(daemon));
        Self { daemon, topology }
    }
}

fn create(keys: &Value) -> Value {
    json!({"type": "pool-create", "pool": keys})
}

fn lan() -> Value {
    json!({"network": "lan"})
}

lab_test! {
    fn containers_get_addresses_of_pools_and_get_them_again() {
        let lab = Lab::new(&["a", "b", "c"]);
        let db = json!({"name": "db", "kind": "application", "range": "203.0.113.64/29"});
        lab.change(&create(&db));
        // Once more is no change.
        assert!(!asked(&lab.daemon, &create(&db)).unwrap().changed);
        // The default pool is made as it is needed. The NOS and a router have the first two addresses.
        let own = lab.attach("a", 0, &lan());
        assert_eq!(own, [ip("203.0.113.3"), ip("2001:db8:1::3")]);
        lab.detach("a");
        lab.change(&json!({"type": "pool-shrink", "pool": "default", "range": "203.0.113.3"}));
        let own = lab.attach("a", 0, &lan());
        assert_eq!(own, [ip("203.0.113.4"), ip("2001:db8:1::4")]);
        let shop = json!({"network": "shop", "workload": "shop/db-0"});
        let of_shop = lab.attach("b", 1, &shop);
        assert_eq!(of_shop, [ip("203.0.113.64"), ip("2001:db8:1::40")]);
        for (place, (name, addresses)) in [("a", &own), ("b", &of_shop)].into_iter().enumerate() {
            lab.await_up(name);
            lab.reaches(place, addresses);
        }
        // Asked again, nothing changes; another container of the pool has another address.
        let again = asked(&lab.daemon, &lab.to_attach("b", 1, &shop)).unwrap();
        assert_eq!((again.changed, again.addresses), (false, of_shop.clone()));
        let other = lab.attach("c", 2, &json!({"network": "shop", "workload": "shop/db-1"}));
        assert_eq!(other[0], ip("203.0.113.65"));
        lab.detach("b");
        lab.detach("c");
        let again = lab.attach("c-again", 2, &json!({"network": "shop", "workload": "shop/db-1"}));
        assert_eq!(again, other);
        let again = lab.attach("b-again", 1, &shop);
        assert_eq!(again, of_shop);
        lab.await_up("b-again");
        lab.reaches(1, &of_shop);
        let row = lab.pool("db");
        assert_eq!((row.size, row.in_use, row.kept, row.available), (8, 2, 0, 6));
        let red = lab.to_attach("r", 0, &json!({"network": "red", "interface": "eth1"}));
        assert_eq!(
            lab.refused(&red),
            "container.pool: name a pool of VRF \"red\"; there is none"
        );
        lab.change(&create(&json!({"name": "tenant", "kind": "netspace", "vrf": "red", "size": 2})));
        let keys = json!({"network": "red", "interface": "eth1", "pool": "tenant"});
        // The same addresses mean something else in another VRF.
        assert_eq!(lab.attach("r", 0, &keys), [ip("203.0.113.2")]);
        lab.daemon.forget_counters();
    }
}

lab_test! {
    fn what_was_given_is_so_after_a_kill_and_what_is_let_go_of_is_free() {
        let mut lab = Lab::new(&["a", "b"]);
        lab.change(&create(&json!({"name": "db", "kind": "application", "size": 4})));
        let first = lab.attach("a", 0, &json!({"network": "shop", "workload": "db-0"}));
        lab.change(&json!({"type": "pool-reserve", "pool": "db", "workload": "db-9", "address": "203.0.113.5"}));
        let kept = lab.change(&json!({"type": "pool-allocate", "pool": "db", "holder": "engine/7"}));
        assert_eq!(kept.addresses[0], ip("203.0.113.4"));
        let (pools, addresses) = (lab.pools(), lab.addresses());
        for kill in [true, false] {
            lab = lab.restarted(|daemon| match kill {
                true => daemon.kill(),
                false => daemon.stop_by(Signal::SIGTERM),
            });
            assert_eq!((lab.pools(), lab.addresses()), (pools.clone(), addresses.clone()));
            lab.await_up("a");
            lab.reaches(0, &first);
        }
        // Who holds it by a connection lets go with it, though the daemon was killed meanwhile.
        let control = lab.daemon.files().control();
        let keys = json!({"network": "shop", "workload": "db-1"});
        let mut held = Command::new(program());
        let held = held.args(["attach", "b", "--network", "shop", "--workload", "db-1", "--lease", "connection"]);
        let held = held.arg("--netns").arg(lab.topology.containers[1].path()).arg("--control").arg(&control);
        let mut held = held.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        let mut reader = std::io::BufReader::new(held.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
        let second: IpAddr = line.trim().parse().unwrap();
        assert!(lab.held().contains(&("b".to_owned(), second)));
        lab = lab.restarted(Daemon::kill);
        held.wait().unwrap();
        assert!(!lab.held().iter().any(|(holder, _)| holder == "b"));
        assert_eq!(lab.attach("b2", 1, &keys)[0], second);
        lab.detach("b2");
        lab.detach("a");
        let row = lab.pool("db");
        assert_eq!((row.in_use, row.kept, row.available), (1, 3, 0));
        lab.change(&json!({"type": "pool-release", "pool": "db", "holder": "engine/7"}));
        lab.change(&json!({"type": "pool-release", "pool": "db", "workload": "db-0"}));
        let states = |rows: Vec<PoolAddress>| rows.into_iter().map(|row| row.state).collect::<Vec<_>>();
        assert_eq!(
            states(lab.addresses()),
            [AddressState::Released, AddressState::Reserved, AddressState::Released]
        );
        lab.change(&json!({"type": "pool-remove", "name": "db"}));
        assert_eq!(lab.addresses(), []);
        lab.daemon.forget_counters();
    }
}

lab_test! {
    fn another_process_that_takes_over_has_the_pools() {
        let lab = Lab::new(&["a"]);
        lab.change(&create(&json!({"name": "db", "kind": "application", "size": 4})));
        let addresses = lab.attach("a", 0, &json!({"network": "shop"}));
        lab.await_up("a");
        let (pools, rows) = (lab.pools(), lab.addresses());
        let Lab { daemon, topology } = lab;
        let daemon = daemon.replaced(&topology.device);
        let lab = Lab { daemon, topology };
        assert_eq!((lab.pools(), lab.addresses()), (pools, rows));
        lab.reaches(0, &addresses);
        lab.detach("a");
        assert_eq!(lab.held(), []);
        lab.daemon.forget_counters();
    }
}

lab_test! {
    fn what_cannot_be_is_refused_by_name_and_nothing_is_given() {
        let lab = Lab::new(&["a", "b"]);
        lab.change(&create(&json!({"name": "db", "kind": "application", "size": 2})));
        lab.change(&create(&json!({"name": "zone", "kind": "netspace", "range": "203.0.113.128/26", "max": 64})));
        lab.change(&create(&json!({"name": "app", "kind": "application", "inside": "zone", "size": 4})));
        let with = |keys: Value| create(&keys);
        let shop = json!({"network": "shop"});
        lab.attach("a", 0, &shop);
        let before = (lab.pools(), lab.addresses());
        for (request, message) in [
            (with(json!({"kind": "netspace"})), "pool.name: is missing"),
            (with(json!({"name": "x", "kind": "nat"})), "pool.kind: \"nat\" is not \"application\" or"),
            (with(json!({"name": "x", "kind": "netspace", "size": 0})), "pool.size: 0 is not in the range 1 to 1048576"),
            (with(json!({"name": "x", "kind": "netspace", "size": 2_000_000})), "pool.size: 2000000 is not in the range"),
            (with(json!({"name": "x", "kind": "netspace", "size": 2, "range": "203.0.113.9"})), "cannot stand beside size"),
            (with(json!({"name": "x", "kind": "netspace", "range": "203.0.113.9-203.0.113.8"})), "does not go up"),
            (with(json!({"name": "x", "kind": "netspace", "colour": "red"})), "pool.colour: unknown key"),
            (with(json!({"name": "x", "kind": "netspace", "range": "203.0.113.130"})), "pool.range: 203.0.113.130 and 2001:db8:1::82 is pool \"app\"'s"),
            (with(json!({"name": "x", "kind": "netspace", "range": "203.0.113.1"})), "pool.range: 203.0.113.1 and 2001:db8:1::1 is the NOS's, on uplink \"up0\""),
            (with(json!({"name": "x", "kind": "netspace", "size": 250})), "pool.size: pool \"total\" has 186 addresses left, not 250"),
            (with(json!({"name": "total", "kind": "netspace"})), "pool.pool: \"total\" is all networks"),
            (with(json!({"name": "x", "kind": "netspace", "inside": "zone"})), "pool.inside: a pool of kind \"netspace\" lies in \"total\""),
            (with(json!({"name": "x", "kind": "netspace", "high": 4})), "pool.high: is less than low and step together"),
            (json!({"type": "pool-grow", "pool": "zone", "size": 1}), "size: pool \"zone\" would have 65 addresses, and has 64 at most"),
            (json!({"type": "pool-grow", "pool": "zone"}), "size: is missing"),
            (json!({"type": "pool-grow", "pool": "zoen", "size": 1}), "pool: there is no pool \"zoen\"; there is \"app\", \"db\", \"zone\""),
            (json!({"type": "pool-shrink", "pool": "db", "size": 2}), "size: pool \"db\" cannot give back 2 of its 2 addresses: 1 in use"),
            (json!({"type": "pool-shrink", "pool": "zone", "range": "203.0.113.128/30"}), "range: 203.0.113.128 and 2001:db8:1::80 is in a pool that lies in pool \"zone\""),
            (json!({"type": "pool-remove", "name": "db"}), "name: 1 address of pool \"db\" is in use, by \"a\""),
            (json!({"type": "pool-remove", "name": "zone"}), "name: pool \"app\" lies in it"),
            (json!({"type": "pool-release", "pool": "db", "address": "203.0.113.3"}), "address: container \"a\" has 203.0.113.3; detach it first"),
            (json!({"type": "pool-release", "pool": "db"}), "address: is missing"),
            (json!({"type": "pool-reserve", "pool": "db", "workload": "x", "address": "203.0.113.3"}), "address: 203.0.113.3 and 2001:db8:1::3 is held by \"a\""),
            (json!({"type": "pool-reserve", "pool": "zone", "workload": "x", "address": "203.0.113.129"}), "address: 203.0.113.129 is pool \"app\"'s"),
            (json!({"type": "pool-reserve", "pool": "db", "workload": "a b"}), "workload: \"a b\" is not 1 to 512 visible"),
            (json!({"type": "pool-allocate", "pool": "db", "holder": "x"}), "holder: \"x\" names no engine"),
            (json!({"type": "pool-allocate", "holder": "e/1", "address": "203.0.113.77"}), "address: 203.0.113.77 is in no pool of VRF \"default\""),
            (lab.to_attach("b", 1, &json!({"network": "lan", "pool": "nowhere"})), "container.pool: there is no pool \"nowhere\""),
            (lab.to_attach("b", 1, &json!({"network": "lan", "pool": "total"})), "container.pool: \"total\" is all networks"),
            (lab.to_attach("b", 1, &json!({"network": "red", "pool": "db"})), "container.pool: pool \"db\" is in VRF \"default\", and the container in VRF \"red\""),
            (lab.to_attach("b", 1, &json!({"network": "shared", "pool": "db"})), "container.pool: is for containers of a network with mode = \"routed\""),
            (lab.to_attach("b", 1, &json!({"network": "lan", "addresses": "203.0.113.3"})), "container.addresses: 203.0.113.3 and 2001:db8:1::3 is held by \"a\""),
            (lab.to_attach("b", 1, &json!({"network": "lan", "pool": "db", "addresses": "203.0.113.99"})), "container.addresses: 203.0.113.99 is not in pool \"db\""),
            // What is refused later is not given either.
            (lab.to_attach("b", 1, &json!({"network": "shop", "tcp": "80"})), "with all ports"),
        ] {
            let refused = lab.refused(&request);
            assert!(refused.contains(message), "{request}: {refused}");
            assert_eq!((lab.pools(), lab.addresses()), before, "{request}");
        }
        let refusal = asked(&lab.daemon, &lab.to_attach("b", 1, &json!({"network": "lan", "addresses": "203.0.113.3"})));
        let refusal = refusal.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Conflict);
        assert_eq!(refusal.clash.unwrap().owner, "container \"a\"");
        lab.attach("b", 1, &shop);
        let third = lab.to_attach("third", 1, &json!({"network": "shop", "interface": "eth1"}));
        assert_eq!(
            lab.refused(&third),
            "container.pool: pool \"db\" is exhausted: of 2 addresses, 2 in use and 0 kept for workloads; it keeps its size"
        );
        let file = lab.daemon.files().config();
        let text = std::fs::read_to_string(&file).unwrap();
        let netns = lab.topology.containers[0].path().display().to_string();
        let more = format!("[[container]]\nname = \"f\"\nnetns = \"{netns}\"\ninterface = \"eth7\"\nnetwork = \"lan\"\npool = \"db\"\n");
        std::fs::write(&file, text + &more).unwrap();
        let output = Command::new(program()).arg("check").arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("give `addresses`, as pools are for those that are attached at run time"), "{said}");
        lab.daemon.forget_counters();
    }
}

/// The text in the fence of a kind.
fn fence<'a>(page: &'a str, kind: &str) -> &'a str {
    let begin = format!("```{kind}\n");
    let rest = page.split(begin.as_str()).nth(1).unwrap();
    rest.split("```").next().unwrap()
}

lab_test! {
    /// The commands of the page for operators, and what they print.
    fn the_page_shows_what_is_printed() {
        let page = include_str!("../docs/pools.md");
        let names = ["RD", "RW", "BW"];
        let topology = Topology::new(&names).unwrap();
        let daemon = Daemon::start(&topology.device, fence(page, "toml"));
        let mut commands = 0;
        for shown in fence(page, "console").split("# ").skip(1) {
            let (command, expected) = shown.split_once('\n').unwrap();
            let words = command.split_whitespace().skip(1).map(|word| {
                let name = word.strip_prefix("/run/netns/");
                let place = name.and_then(|name| names.iter().position(|it| *it == name));
                place.map_or_else(
                    || word.to_owned(),
                    |place| topology.containers[place].path().display().to_string(),
                )
            });
            let mut relay = Command::new(program());
            let output = relay.args(words).arg("--control").arg(daemon.files().control()).output().unwrap();
            let printed = [output.stdout, output.stderr].concat();
            assert_eq!(String::from_utf8(printed).unwrap(), expected, "# {command}");
            commands += 1;
        }
        assert_eq!(commands, 13);
        daemon.forget_counters();
    }
}
