//! Containers that share one address reach each other on it, the NOS's services, and themselves; and
//! learn at once where a port is nobody's.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::sys::socket::{MsgFlags, SockaddrStorage, recv, sendto, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use nos_relay::control::api::{Request, query};
use nos_relay::lab::testbed::ping::{Echo, ping};
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp, tun_access, udp};
use socket2::{Domain, Socket, Type};
use support::bulk::transfer;
use support::daemon::{Daemon, LIMIT, await_that};
use support::scenario::{DB_EPHEMERAL, FAMILIES, Family, V4, WEB_EPHEMERAL, edited};
use support::wire::{TCP, Wire};
use support::{lab_test, skip};

/// Containers `web` and `db` on one address, of any kinds, and a NOS with services.
struct Siblings {
    // First, so that it is stopped while the networks are there.
    daemon: Daemon,
    topology: Topology,
    config: String,
}

/// Of each container: a port on which it can be reached, TCP and UDP, and another.
const LISTEN: [[u16; 2]; 2] = [[20_080, 20_999], [21_080, 21_999]];
/// Of the NOS: TCP and UDP.
const ECHO: u16 = 7;
const NOBODYS: u16 = 22;

impl Siblings {
    /// `None` where this machine cannot make the devices, which is said.
    fn new(devices: [&str; 2], threads: &str) -> Option<Self> {
        Self::edited(devices, threads, &[])
    }

    /// The same with parts of the configuration replaced.
    fn edited(devices: [&str; 2], threads: &str, edits: &[(&str, &str)]) -> Option<Self> {
        if let (true, Err(error)) = (devices.contains(&"tap"), tun_access()) {
            skip(&format!(
                "{devices:?}: /dev/net/tun cannot be opened: {error}"
            ));
            return None;
        }
        let topology = Topology::new(&["web", "db"]).unwrap();
        let mut config = config(&topology, devices, threads);
        for (from, to) in edits {
            config = edited(&config, from, to);
        }
        let daemon = Daemon::start(&topology.device, &config);
        Some(Self {
            daemon,
            topology,
            config,
        })
    }

    fn container(&self, at: usize) -> &LabNamespace {
        &self.topology.containers[at]
    }

    fn external(&self) -> &LabNamespace {
        &self.topology.external
    }
}

fn config(topology: &Topology, devices: [&str; 2], threads: &str) -> String {
    let container = |at: usize, name: &str, listen: &str, ephemeral: &str| {
        let netns = topology.containers[at].path();
        format!(
            "
[[container]]
name = \"{name}\"
netns = \"{}\"
device = \"{}\"
tcp = [\"{listen}\"]
udp = [\"{listen}\"]
ephemeral = \"{ephemeral}\"
",
            netns.display(),
            devices[at],
        )
    };
    let containers = [
        container(0, "web", "20000-20999", "40000-44999"),
        container(1, "db", "21000-21999", "45000-49999"),
    ];
    format!(
        "
[relay]
threads = \"{threads}\"

[nos]
services = [\"echo\"]

[[uplink]]
name = \"up0\"
device = \"packet:hx\"
addresses = [\"203.0.113.1/24\", \"2001:db8:1::1/64\"]
{}",
        containers.concat()
    )
}

/// Defines a scenario for all pairs of kinds of containers: each is a test of its own.
macro_rules! each_pair {
    (fn $name:ident($siblings:ident) $body:block) => {
        mod $name {
            use super::*;

            fn scenario($siblings: &Siblings) $body

            fn run(devices: [&str; 2], threads: &str) {
                if let Some(siblings) = Siblings::new(devices, threads) {
                    scenario(&siblings);
                }
            }

            lab_test! { fn tap_and_tap() { run(["tap", "tap"], "single"); } }
            lab_test! { fn tap_and_veth() { run(["tap", "veth"], "split"); } }
            lab_test! { fn veth_and_tap() { run(["veth", "tap"], "single"); } }
            lab_test! { fn veth_and_veth() { run(["veth", "veth"], "split"); } }
        }
    };
}

/// Speaks to a server that listens on all addresses, as most do: see [`assert_speaks_to`].
fn assert_speaks(
    client: &LabNamespace,
    server: &LabNamespace,
    address: SocketAddr,
) -> [SocketAddr; 2] {
    assert_speaks_to(client, server, address, any(address))
}

/// Speaks to a server that sends back what it gets, by TCP and UDP. It sees the client where that is.
fn assert_speaks_to(
    client: &LabNamespace,
    server: &LabNamespace,
    address: SocketAddr,
    bound: SocketAddr,
) -> [SocketAddr; 2] {
    let echo = tcp::EchoServer::start(server, bound).unwrap();
    let local = tcp::exchange(client, None, address, &[7; 50_000], LIMIT).unwrap();
    assert_eq!(echo.peers(), [local], "TCP to {address}");
    let echo = udp::EchoServer::start(server, bound).unwrap();
    let datagram = udp::exchange(client, None, address, &[7; 4000], LIMIT).unwrap();
    assert_eq!(echo.peers(), [datagram], "UDP to {address}");
    [local, datagram]
}

fn any(address: SocketAddr) -> SocketAddr {
    let unspecified: IpAddr = match address.ip() {
        IpAddr::V4(_) => [0; 4].into(),
        IpAddr::V6(_) => [0; 16].into(),
    };
    (unspecified, address.port()).into()
}

fn assert_refused(client: &LabNamespace, address: SocketAddr) {
    let error = tcp::connect(client, None, address, LIMIT).unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{error}");
    let error = udp::exchange(client, None, address, b"x", LIMIT).unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{error}");
}

each_pair! {
    fn each_port_of_the_shared_address_is_its_owners(siblings) {
        let outside = Wire::open(siblings.external(), Topology::EXTERNAL_INTERFACE);
        for family in FAMILIES {
            for (at, range) in [WEB_EPHEMERAL, DB_EPHEMERAL].into_iter().enumerate() {
                let client = siblings.container(at);
                let inside = Wire::open(client, "eth0");
                for (owner, ports) in LISTEN.into_iter().enumerate() {
                    for port in ports {
                        // Its sibling's and its own.
                        let server = siblings.container(owner);
                        for local in assert_speaks(client, server, family.nos_port(port)) {
                            assert_eq!(local.ip(), family.nos);
                            assert!(range.contains(&local.port()), "{local}");
                        }
                        // Nobody listens any more: their kernels say so.
                        assert_refused(client, family.nos_port(port));
                    }
                }
                // The NOS's services.
                tcp::exchange(client, None, family.nos_port(ECHO), &[7; 50_000], LIMIT).unwrap();
                udp::exchange(client, None, family.nos_port(ECHO), &[7; 1000], LIMIT).unwrap();
                for echo in ping(client, family.nos, 1, LIMIT).unwrap() {
                    assert!(matches!(echo, Echo::Reply { from, .. } if from == family.nos), "{echo:?}");
                }
                // Nobody's.
                inside.drain();
                assert_refused(client, family.nos_port(NOBODYS));
                let resets = inside.seen().into_iter().filter(|seen| {
                    let from_there = seen.ports().is_some_and(|(from, _)| from == NOBODYS);
                    seen.protocol == TCP && seen.source == family.nos && from_there
                });
                let flags: Vec<_> = resets.map(|seen| seen.transport()[13]).collect();
                assert_eq!(flags, [0x14], "RST and ACK");
                assert_own_listener_on_a_given_port(client, family);
            }
        }
        let seen = outside.seen();
        let left = seen.iter().filter(|seen| seen.destination == V4.nos || seen.protocol == TCP);
        assert_eq!(left.count(), 0, "nothing leaves the NOS: {seen:#?}");
    }
}

/// A listener on a port that its kernel chose is reached by programs beside it.
fn assert_own_listener_on_a_given_port(container: &LabNamespace, family: Family) {
    let echo = tcp::EchoServer::start(container, (family.nos, 0).into()).unwrap();
    let local = tcp::exchange(container, None, echo.address(), b"x", LIMIT).unwrap();
    assert_eq!(echo.peers(), [local]);
}

each_pair! {
    fn bulk_between_siblings_and_to_oneself_is_not_cut(siblings) {
        for family in FAMILIES {
            for (client, server, port) in [(0, 1, 21_080), (1, 0, 20_080), (0, 0, 20_081), (1, 1, 21_081)] {
                let [client, server] = [client, server].map(|at| siblings.container(at));
                let address = family.nos_port(port);
                let listener = server.run(|| TcpListener::bind(any(address)).unwrap()).unwrap();
                let near = client.run(|| TcpStream::connect_timeout(&address, LIMIT).unwrap()).unwrap();
                let (far, _) = listener.accept().unwrap();
                transfer([near, far], 16 << 20, u64::from(port));
            }
        }
        for name in ["web", "db"] {
            let link = siblings.daemon.attachment(name).link;
            for traffic in [link.rx, link.tx] {
                // Of 1,514 octets without offload.
                assert!(traffic.octets / traffic.packets > 4000, "{name}: {link:?}");
            }
        }
    }
}

fn ports(daemon: &Daemon, action: &str, container: &str, lists: &str) {
    let text = format!("{{\"type\": \"ports-{action}\", \"container\": \"{container}\", {lists}}}");
    let request: Request = serde_json::from_str(&text).unwrap();
    let answer = query(&daemon.files().control(), &request, LIMIT).unwrap();
    assert!(
        format!("{answer:?}").contains("changed: true"),
        "{answer:?}"
    );
}

lab_test! {
    fn changes_of_ports_are_followed_at_once() {
        let Some(siblings) = Siblings::new(["veth", "veth"], "single") else { return };
        let [web, db] = [0, 1].map(|at| siblings.container(at));
        let daemon = &siblings.daemon;
        let before = rules_of(web);
        for family in FAMILIES {
            let address = family.nos_port(23_000);
            let all_refused = || [web, db].map(|client| assert_refused(client, address));
            let all_reach = |server| [web, db].map(|client| assert_speaks(client, server, address));
            all_refused();
            let lists = "\"tcp\": [\"23000-23099\"], \"udp\": [\"23000-23099\"]";
            for (name, server) in [("web", web), ("db", db)] {
                ports(daemon, "add", name, lists);
                all_reach(server);
                ports(daemon, "remove", name, lists);
                all_refused();
            }
            // By the file: from one to the other, and to the NOS.
            let given = |to: &str| edited(&siblings.config, &format!("[\"{to}\"]"), &format!("[\"{to}\", 23000]"));
            for (to, server) in [("20000-20999", web), ("21000-21999", db)] {
                let both = given(to).replace(&format!("udp = [\"{to}\"]"), &format!("udp = [\"{to}\", 23000]"));
                daemon.reload(&both);
                all_reach(server);
            }
            daemon.reload(&edited(&siblings.config, "\"echo\"]", "\"echo\", \"http:23000\"]"));
            for client in [web, db] {
                tcp::connect(client, None, address, LIMIT).unwrap();
                let error = udp::exchange(client, None, address, b"x", LIMIT).unwrap_err();
                assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{error}");
            }
            daemon.reload(&siblings.config);
            all_refused();
        }
        // Nothing inside has changed for it.
        assert_eq!(rules_of(web), before);
    }
}

lab_test! {
    fn ten_thousand_ranges_need_no_more_rules_than_one() {
        let Some(siblings) = Siblings::new(["veth", "veth"], "single") else { return };
        let before = rules_of(siblings.container(0));
        let ranges: Vec<_> = (0..10_000).map(|n| format!("\"{}\"", 1_000 + 2 * n)).collect();
        let list = ranges.join(", ");
        let config = edited(&siblings.config, "tcp = [\"20000-20999\"]", &format!("tcp = [{list}]"));
        siblings.daemon.reload(&config);
        assert_eq!(rules_of(siblings.container(0)), before);
        let [web, db] = [0, 1].map(|at| siblings.container(at));
        for family in FAMILIES {
            for client in [web, db] {
                let echo = tcp::EchoServer::start(web, (family.any, 19_998).into()).unwrap();
                tcp::exchange(client, None, family.nos_port(19_998), b"x", LIMIT).unwrap();
                assert_eq!(echo.peers().len(), 1);
                let error = tcp::connect(client, None, family.nos_port(19_999), LIMIT).unwrap_err();
                assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{error}");
            }
        }
    }
}

lab_test! {
    fn strict_checks_of_sources_inside_let_siblings_pass() {
        let Some(siblings) = Siblings::new(["veth", "veth"], "single") else { return };
        for filter in ["0", "1", "2"] {
            for at in [0, 1] {
                for interface in ["all", "eth0"] {
                    let key = format!("net/ipv4/conf/{interface}/rp_filter");
                    siblings.container(at).sysctl(&key, filter).unwrap();
                }
                let accepts = siblings.container(at).read_sysctl("net/ipv4/conf/eth0/accept_local");
                assert_eq!(accepts.unwrap(), "0");
            }
            for (client, server, port) in [(0, 1, 21_080), (1, 0, 20_080), (0, 0, 20_080)] {
                let [client, server] = [client, server].map(|at| siblings.container(at));
                assert_speaks(client, server, V4.nos_port(port));
            }
        }
    }
}

lab_test! {
    fn other_addresses_inside_stay_inside() {
        let Some(siblings) = Siblings::new(["veth", "veth"], "single") else { return };
        let web = siblings.container(0);
        for address in ["192.0.2.77/32", "2001:db8:77::77/128"] {
            web.add_address("lo", address.parse().unwrap()).unwrap();
        }
        let wire = Wire::open(web, "eth0");
        for (family, others) in FAMILIES.into_iter().zip([
            ["127.0.0.1", "192.0.2.77"],
            ["::1", "2001:db8:77::77"],
        ]) {
            for other in others {
                let local: SocketAddr = (other.parse::<IpAddr>().unwrap(), 0).into();
                let server = tcp::EchoServer::start(web, (family.any, 20_080).into()).unwrap();
                // As without us: to the shared address from the other, and to the other.
                tcp::exchange(web, Some(local), family.nos_port(20_080), b"x", LIMIT).unwrap();
                tcp::exchange(web, None, (local.ip(), 20_080).into(), b"x", LIMIT).unwrap();
                assert_eq!(server.peers().len(), 2);
                let _server = udp::EchoServer::start(web, (local.ip(), 20_053).into()).unwrap();
                udp::exchange(web, None, (local.ip(), 20_053).into(), b"x", LIMIT).unwrap();
            }
        }
        let seen = wire.seen();
        assert!(seen.iter().all(|seen| seen.ports().is_none()), "{seen:#?}");
    }
}

// Raw sockets of a protocol that nobody divides speak to each other, as on any host.
lab_test! {
    fn other_protocols_to_oneself_come_back() {
        let Some(siblings) = Siblings::new(["veth", "veth"], "single") else { return };
        let web = siblings.container(0);
        for (family, domain, header) in [
            (FAMILIES[0], Domain::IPV4, 20),
            (FAMILIES[1], Domain::IPV6, 0),
        ] {
            let open = || -> OwnedFd {
                Socket::new(domain, Type::RAW, Some(253.into())).unwrap().into()
            };
            let [sender, receiver] = [web.run(open).unwrap(), web.run(open).unwrap()];
            let limit = TimeVal::new(LIMIT.as_secs().try_into().unwrap(), 0);
            setsockopt(&receiver, sockopt::ReceiveTimeout, &limit).unwrap();
            let to = SockaddrStorage::from(SocketAddr::new(family.nos, 0));
            sendto(sender.as_raw_fd(), b"to myself", &to, MsgFlags::empty()).unwrap();
            let mut buffer = [0; 100];
            let length = recv(receiver.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
            assert_eq!(&buffer[header..length], b"to myself");
        }
    }
}

// A container that only serves: its kernel gives sockets ports that are not its own.
lab_test! {
    fn who_opens_no_flows_is_reached_by_siblings_and_connects_to_itself() {
        let edits = [("ephemeral = \"40000-44999\"\n", "")];
        let Some(siblings) = Siblings::edited(["veth", "veth"], "single", &edits) else { return };
        let [web, db] = [0, 1].map(|at| siblings.container(at));
        for (family, loopback) in FAMILIES.into_iter().zip(["127.0.0.1", "::1"]) {
            let loopback: IpAddr = loopback.parse().unwrap();
            let address = family.nos_port(20_080);
            for local in assert_speaks(db, web, address) {
                assert_eq!(local.ip(), family.nos);
            }
            let echo = tcp::EchoServer::start(web, any(address)).unwrap();
            let local = tcp::exchange(web, None, address, &[7; 50_000], LIMIT).unwrap();
            assert_eq!((local.ip(), echo.peers()), (loopback, vec![local]));
            // A datagram is refused, and says so.
            let error = udp::exchange(web, None, family.nos_port(20_053), b"x", LIMIT).unwrap_err();
            let expected = match family.is_v6() {
                true => ErrorKind::PermissionDenied,
                false => ErrorKind::HostUnreachable,
            };
            assert_eq!(error.kind(), Some(expected), "{error}");
        }
        // It is given ports, and loses them again.
        ports(&siblings.daemon, "add", "web", "\"ephemeral\": [\"40000-40099\"]");
        for family in FAMILIES {
            for local in assert_speaks(web, web, family.nos_port(20_080)) {
                assert_eq!(local.ip(), family.nos);
                assert!((40_000..=40_099).contains(&local.port()), "{local}");
            }
            assert_speaks(web, db, family.nos_port(21_080));
        }
        ports(&siblings.daemon, "remove", "web", "\"ephemeral\": [\"40000-40099\"]");
        for family in FAMILIES {
            assert_speaks(db, web, family.nos_port(20_080));
            let address = family.nos_port(20_081);
            let echo = tcp::EchoServer::start(web, any(address)).unwrap();
            let local = tcp::exchange(web, None, address, b"x", LIMIT).unwrap();
            assert_eq!(echo.peers(), [local]);
            assert!(local.ip().is_loopback(), "{local}");
        }
    }
}

lab_test! {
    fn siblings_share_some_of_several_addresses() {
        let edits = [
            ("\"2001:db8:1::1/64\"]", "\"2001:db8:1::1/64\", \"203.0.113.9/24\", \"2001:db8:1::9/64\"]"),
            ("\"db\"\n", "\"db\"\naddresses = [\"203.0.113.9\", \"2001:db8:1::9\"]\n"),
        ];
        let Some(siblings) = Siblings::edited(["veth", "veth"], "single", &edits) else { return };
        let [web, db] = [0, 1].map(|at| siblings.container(at));
        for (family, second) in FAMILIES.into_iter().zip(["203.0.113.9", "2001:db8:1::9"]) {
            let second: IpAddr = second.parse().unwrap();
            // Both have the second; web has the first alone.
            for (client, server, address, source) in [
                (web, db, (second, 21_080), second),
                (db, web, (second, 20_080), second),
                (db, web, (family.nos, 20_080), second),
                (web, web, (second, 20_080), second),
                (web, web, (family.nos, 20_080), family.nos),
            ] {
                // As on any host with several, answers to datagrams come from the right one only where
                // it is bound.
                let address = address.into();
                for local in assert_speaks_to(client, server, address, address) {
                    assert_eq!(local.ip(), source, "{address:?}");
                }
            }
            for client in [web, db] {
                for address in [(second, NOBODYS), (family.nos, NOBODYS), (family.nos, 21_080)] {
                    assert_refused(client, address.into());
                }
            }
        }
        // db's addresses change: what it sends follows.
        siblings.daemon.reload(&edited(&siblings.config, "addresses = [\"203.0.113.9\", \"2001:db8:1::9\"]\n", ""));
        for family in FAMILIES {
            assert_speaks(web, db, family.nos_port(21_080));
            for local in assert_speaks(db, web, family.nos_port(20_080)) {
                assert_eq!(local.ip(), family.nos);
            }
        }
    }
}

/// Rules of both families, and the routes of all tables but those that the kernel keeps itself.
fn rules_of(namespace: &LabNamespace) -> Vec<String> {
    let mut lines = Vec::new();
    for family in ["-4", "-6"] {
        lines.extend(ip(namespace, &[family, "-d", "rule", "show"]));
        let routes = ip(namespace, &[family, "-d", "route", "show", "table", "all"]);
        let kept = |line: &String| line.contains("table local") || line.contains("proto kernel");
        lines.extend(routes.into_iter().filter(|line| !kept(line)));
    }
    lines
}

/// What `ip` prints in a namespace.
fn ip(namespace: &LabNamespace, arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new("ip");
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let output = namespace
        .spawn(command)
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert!(output.status.success(), "ip {arguments:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

lab_test! {
    fn rules_of_others_keep_their_order_and_ours_leave_no_trace() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let web = &topology.containers[0];
        for family in ["-4", "-6"] {
            // Also at the priority of the kernel's first, behind it.
            for rule in ["pref 0 fwmark 5 lookup 55", "pref 7 fwmark 7 lookup 77", "pref 40000 lookup 99"] {
                let words: Vec<_> = [family, "rule", "add"].into_iter().chain(rule.split(' ')).collect();
                ip(web, &words);
            }
        }
        let before = rules_of(web);
        let shown = |family| ip(web, &[family, "rule", "show"]);
        let others = ["-4", "-6"].map(shown);
        let daemon = Daemon::start(&topology.device, &config(&topology, ["veth", "veth"], "single"));
        for (family, others) in ["-4", "-6"].into_iter().zip(others) {
            let rules = shown(family);
            let ours = rules.len() - others.len();
            assert!(rules[..ours].iter().all(|rule| rule.contains("iif lo")), "{rules:#?}");
            assert_eq!(rules[ours..], others);
        }
        let siblings = Siblings { daemon, config: config(&topology, ["veth", "veth"], "single"), topology: topology.clone() };
        for (family, (client, server, port)) in FAMILIES.into_iter().zip([(0, 1, 21_080), (1, 0, 20_080)]) {
            assert_speaks(siblings.container(client), siblings.container(server), family.nos_port(port));
        }
        drop(siblings);
        assert_eq!(rules_of(web), before);
    }
}

lab_test! {
    fn rules_and_routes_that_somebody_takes_away_are_put_back() {
        let Some(siblings) = Siblings::new(["veth", "veth"], "single") else { return };
        let web = siblings.container(0);
        let before = rules_of(web);
        let heals = |damage: &[&str]| {
            ip(web, damage);
            await_that(&format!("{damage:?} is repaired"), || {
                let now = rules_of(web);
                (now == before).then_some(()).ok_or_else(|| format!("{now:#?}"))
            });
        };
        for (family, source) in [("-4", "203.0.113.1"), ("-6", "2001:db8:1::1")] {
            heals(&[family, "rule", "del", "pref", "0", "from", source]);
            heals(&[family, "rule", "del", "pref", "0", "iif", "lo", "lookup", "28274"]);
            heals(&[family, "route", "del", source, "table", "28274"]);
            heals(&[family, "route", "flush", "table", "28274"]);
        }
        for (family, (client, server, port)) in FAMILIES.into_iter().zip([(0, 1, 21_080), (1, 0, 20_080)]) {
            assert_speaks(siblings.container(client), siblings.container(server), family.nos_port(port));
        }
    }
}

lab_test! {
    fn what_a_killed_run_left_is_taken_over_and_goes_in_the_end() {
        let Some(siblings) = Siblings::new(["veth", "veth"], "single") else { return };
        let Siblings { daemon, topology, config } = siblings;
        let web = &topology.containers[0];
        let placed = rules_of(web);
        let files = daemon.kill();
        let daemon = Daemon::start_on(&topology.device, files);
        assert_eq!(rules_of(web), placed);
        let siblings = Siblings { daemon, topology: topology.clone(), config };
        assert_speaks(web, siblings.container(1), V4.nos_port(21_080));
        drop(siblings);
        let left = rules_of(web);
        assert!(left.iter().all(|line| !line.contains("iif lo") && !line.contains("28274")), "{left:#?}");
        assert!(left.iter().any(|line| line.contains("lookup local")), "{left:#?}");
    }
}

lab_test! {
    fn fragmented_datagrams_between_siblings_arrive_whole() {
        let Some(siblings) = Siblings::new(["veth", "veth"], "single") else { return };
        for family in FAMILIES {
            let address = family.nos_port(21_053);
            let _server = udp::EchoServer::start(siblings.container(1), any(address)).unwrap();
            udp::exchange(siblings.container(0), None, address, &[9; 20_000], LIMIT).unwrap();
        }
    }
}
