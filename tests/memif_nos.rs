//! A NOS in another process: the kernel of a namespace, with DPDK between it and us, which steers what
//! containers register by the rules that `examples/steer.py` makes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nos_relay::control::api::snapshot::LinkState;
use nos_relay::control::api::{ControlError, Request, Response, query};
use nos_relay::lab::testbed::ping::ping;
use nos_relay::lab::testbed::{LabNamespace, tcp, udp, veth};
use serde_json::{Value, json};
use support::bulk::transfer;
use support::daemon::{Daemon, LIMIT, await_that};
use support::dpdk::{TestPmd, has_dpdk};
use support::{lab_test, skip};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
/// Of the NOS, by family; the containers' as well.
const SHARED: [&str; 2] = ["203.0.113.1", "2001:db8:1::1"];
const FAR: [&str; 2] = ["203.0.113.2", "2001:db8:1::2"];
/// Where the NOS sends what it steers: we answer for any address.
const HOPS: [&str; 2] = ["169.254.0.1", "fe80::1"];
const FAMILIES: [&str; 2] = ["-4", "-6"];
/// What the containers have registered: the ports by which the NOS steers.
const RANGES: [&str; 4] = ["20000-20999", "30000-30099", "40000-44999", "45000-49999"];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A child that ends with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program in a namespace to its end; returns what it prints.
fn run(namespace: &LabNamespace, words: &[&str], input: &str) -> String {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = namespace.spawn(command).unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{words:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The NOS: a kernel that has the shared addresses, towards a host.
struct Nos {
    namespace: LabNamespace,
    far: LabNamespace,
    pmd: Option<TestPmd>,
    role: &'static str,
}

impl Nos {
    fn new(role: &'static str) -> Self {
        let (namespace, far) = (
            LabNamespace::new("N").unwrap(),
            LabNamespace::new("F").unwrap(),
        );
        veth((&namespace, "up0"), (&far, "far0")).unwrap();
        for (shared, host) in SHARED.into_iter().zip(FAR) {
            let len = if ip(shared).is_ipv4() { 24 } else { 64 };
            let net = |address: &str| format!("{address}/{len}").parse().unwrap();
            namespace.add_address("up0", net(shared)).unwrap();
            far.add_address("far0", net(host)).unwrap();
        }
        namespace.set_up("up0").unwrap();
        far.set_up("far0").unwrap();
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv4/conf/default/accept_local", "1"),
        ] {
            namespace.sysctl(key, value).unwrap();
        }
        for family in FAMILIES {
            // So that rules can be before it.
            run(
                &namespace,
                &[
                    "ip", family, "rule", "add", "pref", "100", "lookup", "local",
                ],
                "",
            );
            run(&namespace, &["ip", family, "rule", "del", "pref", "0"], "");
            let marked = ["ip", family, "rule", "add", "pref", "11", "fwmark", "7100"];
            run(&namespace, &[&marked[..], &["lookup", "7100"]].concat(), "");
        }
        // What ICMP is about, no rule can tell.
        let steer = "table inet nos {
            chain prerouting {
                type filter hook prerouting priority mangle;
                iifname up0 icmp type { echo-reply, destination-unreachable, time-exceeded } meta mark set 7100
                iifname up0 icmpv6 type { echo-reply, destination-unreachable, packet-too-big, time-exceeded } meta mark set 7100
            }
            chain output {
                type route hook output priority mangle;
                oifname lo icmp type { destination-unreachable, time-exceeded } meta mark set 7100
                oifname lo icmpv6 type { destination-unreachable, packet-too-big, time-exceeded } meta mark set 7100
            }
        }";
        run(&namespace, &["nft", "-f", "-"], steer);
        Self {
            namespace,
            far,
            pmd: None,
            role,
        }
    }

    /// Starts DPDK, with the NOS's interface towards us.
    fn connect(&mut self, directory: &Path) {
        self.pmd = Some(TestPmd::start(&self.namespace, self.role, directory));
        self.namespace.set_up(TestPmd::TAP).unwrap();
        for (family, hop) in FAMILIES.into_iter().zip(HOPS) {
            let route = ["ip", family, "route", "replace", "default", "via", hop];
            let to = ["dev", TestPmd::TAP, "onlink", "table", "7100"];
            run(&self.namespace, &[&route[..], &to].concat(), "");
        }
    }

    fn say(&mut self, commands: &[&str]) {
        self.pmd.as_mut().unwrap().say(commands);
    }

    /// Ports by which it steers, of both protocols.
    fn steered(&self) -> BTreeSet<(String, String)> {
        let mut all = BTreeSet::new();
        for (family, shared) in FAMILIES.into_iter().zip(SHARED) {
            let rules = run(&self.namespace, &["ip", "-j", family, "rule", "show"], "");
            let rules: Vec<Value> = serde_json::from_str(&rules).unwrap();
            for rule in rules.iter().filter(|rule| rule["protocol"] == "208") {
                assert_eq!(rule["dst"], shared);
                let (first, last) = (&rule["dport_start"], &rule["dport_end"]);
                let protocol = rule["ipproto"].as_str().unwrap();
                all.insert((format!("{family} {protocol}"), format!("{first}-{last}")));
            }
        }
        all
    }
}

struct Lab {
    // First, so that they end while the namespaces are there.
    daemon: Option<Daemon>,
    steer: Killed,
    nos: Nos,
    host: LabNamespace,
    web: LabNamespace,
    db: LabNamespace,
    directory: TempDir,
}

fn config(role: &str, directory: &Path, web: &LabNamespace, db: &LabNamespace) -> String {
    format!(
        r#"
[nos]
channel = "memif:{socket}:7"
memif = {{ role = "{role}", secret = "of both" }}
addresses = ["203.0.113.1", "2001:db8:1::1"]

[[container]]
name = "web"
netns = "{web}"
device = "veth"
tcp = "20000-20999"
udp = "20000-20999"
ephemeral = "40000-44999"

[[container]]
name = "db"
netns = "{db}"
device = "tap"
tcp = "30000-30099"
udp = "30000-30099"
ephemeral = "45000-49999"
"#,
        socket = directory.join("memif.sock").display(),
        web = web.path().display(),
        db = db.path().display(),
    )
}

impl Lab {
    fn new(ours: &str, theirs: &'static str, threads: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let [host, web, db] = ["H", "C", "D"].map(|label| LabNamespace::new(label).unwrap());
        let mut nos = Nos::new(theirs);
        let config = config(ours, directory.path(), &web, &db);
        let config = format!("{config}\n[relay]\nthreads = \"{threads}\"\n");
        let daemon = Daemon::start(&host, &config);
        let steer = steer(&nos, &daemon);
        nos.connect(directory.path());
        let lab = Self {
            daemon: Some(daemon),
            steer,
            nos,
            host,
            web,
            db,
            directory,
        };
        lab.await_carrier(LinkState::Up);
        lab.await_steered(&RANGES);
        lab
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    fn await_carrier(&self, wanted: LinkState) {
        await_that("the state of the link", || {
            let link = self.daemon().uplink("nos").link;
            (link.state == wanted)
                .then_some(())
                .ok_or_else(|| format!("{link:?}"))
        });
    }

    /// Waits until the NOS steers these ranges, of both families and protocols, and no other.
    fn await_steered(&self, ranges: &[&str]) {
        let kinds = FAMILIES
            .iter()
            .flat_map(|family| ["tcp", "udp"].map(|protocol| format!("{family} {protocol}")));
        let wanted: BTreeSet<_> = kinds
            .flat_map(|kind| {
                ranges
                    .iter()
                    .map(move |range| (kind.clone(), (*range).to_owned()))
            })
            .collect();
        await_that("the rules", || {
            let steered = self.nos.steered();
            (steered == wanted)
                .then_some(())
                .ok_or_else(|| format!("{steered:?}"))
        });
    }

    /// Has DPDK forward nothing: it may crash where its peer goes while it does.
    fn stop_forwarding(&mut self) {
        let outages = |lab: &Self| lab.daemon().log().matches("the link is down").count();
        let before = outages(self);
        self.nos.say(&["stop", "port stop 0"]);
        // A server takes the next client at once: one would not see that it was down.
        await_that("the link goes down", || {
            (outages(self) > before)
                .then_some(())
                .ok_or_else(|| self.daemon().log())
        });
    }

    /// DPDK's client connects when its port is started, and not again.
    fn start_forwarding(&mut self) {
        self.nos.say(&["port start 0", "start"]);
        self.await_carrier(LinkState::Up);
        self.await_steered(&RANGES);
    }

    fn ask(&self, request: Value) {
        let request: Request = serde_json::from_value(request).unwrap();
        let answer = query(&self.daemon().files().control(), &request, LIMIT).unwrap();
        assert!(matches!(answer, Response::Changed(_)), "{answer:?}");
    }

    /// Everything, by both families.
    fn talk(&self) {
        let (nos, far) = (&self.nos.namespace, &self.nos.far);
        for (shared, host) in SHARED.map(ip).into_iter().zip(FAR.map(ip)) {
            // By its echo identifier. DPDK throws away what comes before it forwards.
            await_that("a ping is answered", || {
                let echoes = ping(&self.web, host, 1, Duration::from_secs(1));
                let echoes = echoes.map_err(|error| error.to_string())?;
                let good = echoes.iter().all(|echo| echo.is_reply());
                good.then_some(()).ok_or_else(|| format!("{echoes:?}"))
            });
            // From outside, and outward.
            transfer(connect(far, &self.web, (shared, 20080).into()), MIB, 1);
            let [near, there] = connect(far, &self.db, (shared, 30080).into());
            transfer([there, near], MIB, 2);
            let out = connect(&self.web, far, (host, 8080).into());
            assert!((40000..45000).contains(&out[1].peer_addr().unwrap().port()));
            assert_eq!(out[1].peer_addr().unwrap().ip(), shared);
            transfer(out, MIB, 3);
            // To a sibling, past the NOS.
            transfer(connect(&self.web, &self.db, (shared, 30081).into()), MIB, 4);
            // The NOS's own, from outside and from a container.
            for client in [far, &self.web] {
                transfer(connect(client, nos, (shared, 22).into()), MIB, 5);
            }
            for (client, server, address) in [
                (far, &self.web, (shared, 20080)),
                (&self.db, far, (host, 8080)),
                (&self.db, &self.web, (shared, 20081)),
                (&self.web, nos, (shared, 53)),
            ] {
                let server = udp::EchoServer::start(server, address.into()).unwrap();
                let asked = udp::exchange(client, None, server.address(), b"datagram", LIMIT);
                asked.unwrap_or_else(|error| panic!("{address:?}: {error}"));
            }
            // Nobody has registered it: the NOS answers.
            self.assert_refused(far, (shared, 21000).into());
            self.assert_refused(&self.web, (shared, 21000).into());
        }
    }

    fn assert_refused(&self, client: &LabNamespace, address: SocketAddr) {
        let refused = tcp::connect(client, None, address, LIMIT).unwrap_err();
        assert_eq!(
            refused.kind(),
            Some(ErrorKind::ConnectionRefused),
            "{address}"
        );
        let refused = udp::exchange(client, None, address, b"datagram", LIMIT).unwrap_err();
        assert_eq!(
            refused.kind(),
            Some(ErrorKind::ConnectionRefused),
            "{address}"
        );
    }
}

/// Starts what makes the NOS steer.
fn steer(nos: &Nos, daemon: &Daemon) -> Killed {
    let mut command = Command::new("python3");
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/steer.py"))
        .arg("--control")
        .arg(daemon.files().control());
    Killed(nos.namespace.spawn(command).unwrap())
}

/// A connection from `client` to `address` in `server`: its ends there.
fn connect(client: &LabNamespace, server: &LabNamespace, address: SocketAddr) -> [TcpStream; 2] {
    let listener = server.run(|| TcpListener::bind(address).unwrap()).unwrap();
    let near = tcp::connect(client, None, address, LIMIT);
    let near = near.unwrap_or_else(|error| panic!("{address}: {error}"));
    let (far, _) = listener.accept().unwrap();
    [near, far]
}

/// Whether all can be had; if not, says so.
fn has_all() -> bool {
    let missing = ["python3", "nft", "ip"].into_iter().find(|program| {
        let mut version = Command::new(program);
        version.arg(if *program == "ip" { "-V" } else { "--version" });
        version.stdout(Stdio::null());
        !version.status().is_ok_and(|status| status.success())
    });
    if let Some(program) = missing {
        skip(&format!("there is no {program}"));
    }
    missing.is_none() && has_dpdk()
}

/// Talks, and again after ports have come and gone, after DPDK was killed, and after we were.
fn a_kernel_is_the_nos(ours: &str, theirs: &'static str, threads: &str) {
    if !has_all() {
        return;
    }
    let mut lab = Lab::new(ours, theirs, threads);
    lab.talk();
    // Later, the last segments of a connection may come when their port is nobody's any more.
    assert_eq!(lab.daemon().dropped("nos", "unregistered"), 0);

    // At run time.
    let late: Vec<SocketAddr> = SHARED.map(|it| (ip(it), 23001).into()).into();
    for &address in &late {
        lab.assert_refused(&lab.nos.far, address);
    }
    let ports = json!({"container": "web", "tcp": "23000-23099", "udp": "23000-23099"});
    let asking = |kind: &str| {
        let mut request = ports.clone();
        request["type"] = kind.into();
        request
    };
    lab.ask(asking("ports-add"));
    lab.await_steered(&[&RANGES[..], &["23000-23099"]].concat());
    for &address in &late {
        transfer(connect(&lab.nos.far, &lab.web, address), MIB, 6);
    }
    lab.ask(asking("ports-remove"));
    lab.await_steered(&RANGES);
    for &address in &late {
        lab.assert_refused(&lab.nos.far, address);
    }

    // The NOS goes and comes.
    lab.nos.pmd = None;
    lab.await_carrier(LinkState::Down);
    transfer(
        connect(&lab.web, &lab.db, (ip(SHARED[0]), 30081).into()),
        MIB,
        7,
    );
    let dropped = lab.daemon().dropped("nos", "device-gone");
    let lost = ping(&lab.web, ip(FAR[0]), 1, Duration::from_millis(1)).unwrap();
    assert!(!lost[0].is_reply(), "{lost:?}");
    await_that("what finds no peer is counted", || {
        let now = lab.daemon().dropped("nos", "device-gone");
        (now > dropped).then_some(()).ok_or_else(|| now.to_string())
    });
    if theirs == "server" {
        std::fs::remove_file(lab.directory.path().join("memif.sock")).unwrap();
    }
    lab.nos.connect(lab.directory.path());
    lab.await_carrier(LinkState::Up);
    lab.talk();

    // We go and come, and another process takes over from us, which connects anew.
    lab.stop_forwarding();
    let files = lab.daemon.take().unwrap().kill();
    lab.daemon = Some(Daemon::start_on(&lab.host, files));
    lab.start_forwarding();
    lab.talk();
    lab.stop_forwarding();
    let before = lab.daemon.take().unwrap();
    lab.daemon = Some(before.replaced(&lab.host));
    lab.start_forwarding();
    lab.talk();

    // What steers takes along what it made.
    let steer = Pid::from_raw(i32::try_from(lab.steer.0.id()).unwrap());
    kill(steer, Signal::SIGTERM).unwrap();
    lab.await_steered(&[]);
}

lab_test! {
    fn without_the_nos_siblings_talk_and_a_reload_gives_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let [host, web, db] = ["H", "C", "D"].map(|label| LabNamespace::new(label).unwrap());
        let config = config("server", directory.path(), &web, &db);
        // Not everybody may make a TAP.
        let config = config.replace("\"tap\"", "\"veth\"");
        let daemon = Daemon::start(&host, &config);
        for shared in SHARED.map(ip) {
            transfer(connect(&web, &db, (shared, 30080).into()), MIB, 1);
        }
        // What only a NOS here has cannot be added at run time either.
        for (request, key) in [
            (
                json!({"type": "route-add", "route": {"prefix": "192.0.2.0/24", "type": "blackhole"}}),
                "route.prefix",
            ),
            (json!({"type": "group-add", "uplink": "nos", "group": "239.1.2.3"}), "group.group"),
        ] {
            let request: Request = serde_json::from_value(request).unwrap();
            match query(&daemon.files().control(), &request, LIMIT) {
                Err(ControlError::Refused(refusal)) => {
                    assert_eq!(refusal.field.as_deref(), Some(key), "{refusal}");
                    assert!(refusal.message.contains("of its own"), "{refusal}");
                }
                other => panic!("{other:?}"),
            }
        }
        let socket = directory.path().join("memif.sock");
        let uplink = "[[uplink]]\nname = \"up0\"\ndevice = \"tap:up0\"\naddresses = \"203.0.113.1/24\"\n";
        let (_, containers) = config.split_once("\n\n").unwrap();
        for other in [
            format!("{uplink}{containers}"),
            config.replace("addresses =", "neighbor = \"02:00:5e:10:00:01\"\naddresses ="),
        ] {
            let before = daemon.log().len();
            daemon.reload(&other);
            let said = daemon.log().split_off(before);
            let expected = "nos.channel: it and nos.neighbor change at a start alone";
            assert!(said.contains(expected), "{said}");
        }
        // Where it is found may change, and its addresses.
        let moved = config.replace("memif.sock", "other.sock");
        daemon.reload(&moved.replace(", \"2001:db8:1::1\"", ""));
        assert!(!socket.exists());
        assert_eq!(daemon.uplink("nos").addresses.len(), 1);
        transfer(connect(&web, &db, (ip(SHARED[0]), 30080).into()), MIB, 1);
    }
}

lab_test! {
    fn a_kernel_behind_a_dpdk_server_is_the_nos() {
        a_kernel_is_the_nos("client", "server", "single");
    }
}

lab_test! {
    fn a_kernel_behind_a_dpdk_client_is_the_nos() {
        a_kernel_is_the_nos("server", "client", "split");
    }
}
