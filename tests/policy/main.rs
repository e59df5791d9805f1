//! With whom a container may talk, as programs and their peers find it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "../support/mod.rs"]
mod support;

mod handed_over;
mod path_mtu;
mod services;
mod simultaneous;
mod told;
mod traces;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use ipnet::IpNet;
use nos_relay::control::api::snapshot::{Flow, FlowOpener, FlowState, PortKind};
use nos_relay::lab::testbed::{LabNamespace, Privileges, Topology, privileges, tcp, udp};
use nos_shim::ident::MacAddr;
use support::daemon::{Files, LIMIT, await_that, program};
use support::scenario::{FAMILIES, Family, Scenario, Variant, config, edited, variant_tests};
use support::wire::{self, Seen, Wire};
use support::{lab_test, skip};

/// Another host on X's link; it is X that has its addresses.
const STRANGER_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const STRANGER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 9);

fn stranger(family: Family) -> IpAddr {
    match family.is_v6() {
        false => STRANGER_V4.into(),
        true => STRANGER_V6.into(),
    }
}

/// What Linux makes of "communication administratively prohibited".
fn prohibited(family: Family) -> ErrorKind {
    match family.is_v6() {
        false => ErrorKind::HostUnreachable,
        true => ErrorKind::PermissionDenied,
    }
}

/// X alone, of either family.
const FRIENDS: &str = "[\"203.0.113.2/32\", \"2001:db8:1::2/128\"]";

/// The usual scenario with these lines in place of `web`'s, and a stranger.
fn scenario(variant: Variant, edits: &[(&str, &str)]) -> Scenario {
    let topology = Topology::new(&["web", "db"]).unwrap();
    let mut text = config(&topology, variant);
    for (from, to) in edits {
        text = edited(&text, from, to);
    }
    for network in ["203.0.113.9/24", "2001:db8:1::9/64"] {
        let external = &topology.external;
        let network = network.parse().unwrap();
        external
            .add_address(Topology::EXTERNAL_INTERFACE, network)
            .unwrap();
    }
    let daemon = support::daemon::Daemon::start(&topology.device, &text);
    Scenario {
        daemon,
        topology,
        config: text,
    }
}

const TCP: &str = "tcp = [\"20000-20999\", \"179\"]";
const UDP: &str = "udp = [\"20000-20999\"]";
const EPHEMERAL: &str = "ephemeral = \"40000-44999\"";
/// The last line of `db`'s entry, and of all.
const DB_EPHEMERAL: &str = "ephemeral = \"45000-49999\"";

fn friends() -> Vec<IpNet> {
    ["203.0.113.2/32", "2001:db8:1::2/128"]
        .map(|prefix| prefix.parse().unwrap())
        .into()
}

fn listen_from_friends() -> [String; 2] {
    ["tcp", "udp"]
        .map(|key| format!("{key} = [179, {{ ports = \"20000-20999\", from = {FRIENDS} }}]"))
}

const ESTABLISHED: &str = "ephemeral = { ports = \"40000-44999\", state = \"established\" }";

/// Gives a namespace's kernel rules of nftables.
fn nft(namespace: &LabNamespace, rules: &str) {
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped());
    let mut nft = namespace.spawn(nft).unwrap();
    let mut stdin = nft.stdin.take().unwrap();
    stdin.write_all(rules.as_bytes()).unwrap();
    drop(stdin);
    assert!(nft.wait().unwrap().success(), "{rules}");
}

fn local(address: IpAddr, port: u16) -> Option<SocketAddr> {
    Some((address, port).into())
}

mod only_friends_open_flows {
    use super::*;

    fn scenario(variant: Variant) {
        let [tcp_from, udp_from] = listen_from_friends();
        let scenario = super::scenario(variant, &[(TCP, &tcp_from), (UDP, &udp_from)]);
        for family in FAMILIES {
            let (web, x) = (scenario.web(), scenario.external());
            let tcp_server = tcp::EchoServer::start(web, family.nos_port(20_080)).unwrap();
            let udp_server = udp::EchoServer::start(web, family.nos_port(20_053)).unwrap();
            let open = tcp::EchoServer::start(web, family.nos_port(179)).unwrap();
            let source = |address| local(address, 0);
            let friend = source(family.external);
            tcp::exchange(x, friend, tcp_server.address(), b"x", LIMIT).unwrap();
            udp::exchange(x, friend, udp_server.address(), b"x", LIMIT).unwrap();
            // As if nobody listened.
            let other = source(stranger(family));
            let refused = tcp::connect(x, other, tcp_server.address(), LIMIT).unwrap_err();
            assert_eq!(refused.kind(), Some(ErrorKind::ConnectionRefused));
            let refused = udp::exchange(x, other, udp_server.address(), b"x", LIMIT).unwrap_err();
            assert_eq!(refused.kind(), Some(ErrorKind::ConnectionRefused));
            tcp::exchange(x, other, open.address(), b"x", LIMIT).unwrap();
            let own = || -> Vec<Flow> {
                let mut flows = scenario.daemon.flows();
                flows.retain(|flow| flow.local.ip() == family.nos);
                flows
            };
            assert_eq!(own(), [], "prefixes decide");
            // What the container opens from there is answered.
            let there = |port| (stranger(family), port).into();
            let server = tcp::EchoServer::start(x, there(8080)).unwrap();
            let from = local(family.any, 20_100);
            tcp::exchange(web, from, server.address(), b"x", LIMIT).unwrap();
            let server = udp::EchoServer::start(x, there(8053)).unwrap();
            udp::exchange(web, from, server.address(), b"x", LIMIT).unwrap();
            let own = own();
            assert_eq!(own.len(), 2, "{own:#?}");
            assert!(
                own.iter()
                    .all(|flow| flow.opener == FlowOpener::Owner && !flow.learnt)
            );
            let replied = own.iter().any(|flow| flow.state == FlowState::Replied);
            assert!(replied, "{own:#?}");
        }
        assert_eq!(scenario.daemon.dropped("nos", "policy-from"), 4);
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        veth_split_plain: ("veth", "split", [false, false]),
    }
}

mod established_ports_get_flows_alone {
    use super::*;

    fn scenario(variant: Variant) {
        let scenario = super::scenario(variant, &[(EPHEMERAL, ESTABLISHED)]);
        let (web, x) = (scenario.web(), scenario.external());
        for family in FAMILIES {
            let server = tcp::EchoServer::start(x, family.external_port(8080)).unwrap();
            let from = |port| local(family.any, port);
            tcp::exchange(web, from(40_001), server.address(), &[7; 50_000], LIMIT).unwrap();
            let server = udp::EchoServer::start(x, family.external_port(8053)).unwrap();
            udp::exchange(web, from(40_002), server.address(), &[7; 1000], LIMIT).unwrap();
            // In fragments, both ways.
            udp::exchange(web, from(40_003), server.address(), &[7; 5000], LIMIT).unwrap();
            // Without the key, UDP would get there.
            let tcp_server = tcp::EchoServer::start(web, family.nos_port(41_080)).unwrap();
            let udp_server = udp::EchoServer::start(web, family.nos_port(41_053)).unwrap();
            let refused = tcp::connect(x, None, tcp_server.address(), LIMIT).unwrap_err();
            assert_eq!(refused.kind(), Some(ErrorKind::ConnectionRefused));
            let refused = udp::exchange(x, None, udp_server.address(), b"x", LIMIT).unwrap_err();
            assert_eq!(refused.kind(), Some(ErrorKind::ConnectionRefused));
            assert!(udp_server.peers().is_empty());
            // An error about a flow: nobody listens there.
            let nobody = family.external_port(9);
            let refused = udp::exchange(web, from(40_004), nobody, b"x", LIMIT).unwrap_err();
            assert_eq!(refused.kind(), Some(ErrorKind::ConnectionRefused));
        }
        assert_eq!(scenario.daemon.dropped("nos", "no-flow"), 4);
        let flows = scenario.daemon.flows();
        assert_eq!(flows.len(), 8, "{flows:#?}");
        assert!(flows.iter().all(|flow| flow.owner == "web"));
    }

    variant_tests! {
        tap_split: ("tap", "split", [true, true]),
        veth_single_plain: ("veth", "single", [false, false]),
    }
}

mod flows_are_opened_to_friends_alone {
    use super::*;

    fn scenario(variant: Variant) {
        let to = format!("{EPHEMERAL}\nto = {FRIENDS}");
        let scenario = super::scenario(variant, &[(EPHEMERAL, &to)]);
        let (web, x) = (scenario.web(), scenario.external());
        for family in FAMILIES {
            let friend = tcp::EchoServer::start(x, family.external_port(8080)).unwrap();
            tcp::exchange(web, None, friend.address(), b"x", LIMIT).unwrap();
            let there = |port| (stranger(family), port).into();
            let tcp_server = tcp::EchoServer::start(x, there(8081)).unwrap();
            let udp_server = udp::EchoServer::start(x, there(8053)).unwrap();
            for from in [None, local(family.any, 20_100)] {
                let refused = tcp::connect(web, from, tcp_server.address(), LIMIT).unwrap_err();
                assert_eq!(refused.kind(), Some(prohibited(family)));
                let refused = udp::exchange(web, from, udp_server.address(), b"x", LIMIT);
                assert_eq!(refused.unwrap_err().kind(), Some(prohibited(family)));
            }
            assert!(tcp_server.peers().is_empty() && udp_server.peers().is_empty());
            // Whoever opens a flow to the container is answered.
            let from = local(stranger(family), 0);
            let server = tcp::EchoServer::start(web, family.nos_port(20_080)).unwrap();
            tcp::exchange(x, from, server.address(), &[7; 50_000], LIMIT).unwrap();
            let server = udp::EchoServer::start(web, family.nos_port(20_053)).unwrap();
            udp::exchange(x, from, server.address(), &[7; 5000], LIMIT).unwrap();
        }
        assert_eq!(scenario.daemon.dropped("nos", "policy-to"), 8);
        let flows = scenario.daemon.flows();
        assert!(
            flows.iter().all(|flow| flow.opener == FlowOpener::Peer),
            "{flows:#?}"
        );
        assert_eq!(flows.len(), 4, "{flows:#?}");
        // A reload opens the way to strangers, and the container is not touched.
        let text = scenario.edited(FRIENDS, "[\"0.0.0.0/0\", \"::/0\"]");
        scenario.daemon.reload(&text);
        for family in FAMILIES {
            let there = (stranger(family), 8082).into();
            let server = tcp::EchoServer::start(x, there).unwrap();
            tcp::exchange(web, None, server.address(), b"x", LIMIT).unwrap();
        }
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        veth_split: ("veth", "split", [true, true]),
    }
}

mod ports_outside_are_learnt {
    use super::*;

    fn scenario(variant: Variant) {
        let learn = format!("{EPHEMERAL}\noutside = \"learn\"");
        let db = "ephemeral = \"45000-49999\"";
        let db_learns = format!("{db}\noutside = \"learn\"");
        let scenario = super::scenario(variant, &[(EPHEMERAL, &learn), (db, &db_learns)]);
        let (web, x) = (scenario.web(), scenario.external());
        for family in FAMILIES {
            let server = tcp::EchoServer::start(x, family.external_port(8080)).unwrap();
            let datagrams = udp::EchoServer::start(x, family.external_port(8053)).unwrap();
            for port in [30_000, 800] {
                let from = local(family.any, port);
                tcp::exchange(web, from, server.address(), &[7; 50_000], LIMIT).unwrap();
                udp::exchange(web, from, datagrams.address(), &[7; 5000], LIMIT).unwrap();
            }
            let peers: Vec<_> = server.peers().iter().map(SocketAddr::port).collect();
            assert_eq!(peers, [30_000, 800], "nothing is rewritten");
            // An error about a learnt flow finds its container.
            let from = local(family.any, 30_001);
            let refused = udp::exchange(web, from, family.external_port(9), b"x", LIMIT);
            assert_eq!(
                refused.unwrap_err().kind(),
                Some(ErrorKind::ConnectionRefused)
            );
            // Another's ports, of which it has learnt some.
            for (container, port) in [
                (web, 21_500),
                (scenario.db(), 20_500),
                (scenario.db(), 30_000),
            ] {
                let from = local(family.any, port);
                let refused = tcp::connect(container, from, server.address(), LIMIT).unwrap_err();
                assert_eq!(refused.kind(), Some(prohibited(family)), "{port}");
                let refused = udp::exchange(container, from, datagrams.address(), b"x", LIMIT);
                assert_eq!(
                    refused.unwrap_err().kind(),
                    Some(prohibited(family)),
                    "{port}"
                );
            }
            // Nobody opens a flow to a learnt port.
            let inside = udp::EchoServer::start(web, family.nos_port(30_002)).unwrap();
            let refused = udp::exchange(x, None, inside.address(), b"x", LIMIT).unwrap_err();
            assert_eq!(refused.kind(), Some(ErrorKind::ConnectionRefused));
        }
        assert_eq!(scenario.daemon.dropped("nos", "source-port"), 12);
        let flows = scenario.daemon.flows();
        assert!(
            flows.iter().all(|flow| flow.learnt && flow.owner == "web"),
            "{flows:#?}"
        );
        // Who is given the port has it, and its flows end.
        let before = flows.len();
        let ports = "udp = [\"21000-21999\"]";
        let text = scenario.edited(ports, "udp = [\"21000-21999\", 30000]");
        scenario.daemon.reload(&text);
        await_that("flows from the port end", || {
            let flows = scenario.daemon.flows();
            let ended = flows.len() == before - 2;
            ended.then_some(()).ok_or_else(|| format!("{flows:#?}"))
        });
        for family in FAMILIES {
            let datagrams = udp::EchoServer::start(x, family.external_port(8054)).unwrap();
            let from = local(family.any, 30_000);
            udp::exchange(scenario.db(), from, datagrams.address(), b"x", LIMIT).unwrap();
            let refused = udp::exchange(web, from, datagrams.address(), b"x", LIMIT).unwrap_err();
            assert_eq!(refused.kind(), Some(prohibited(family)));
        }
    }

    variant_tests! {
        tap_single_plain: ("tap", "single", [false, false]),
        veth_split: ("veth", "split", [true, true]),
    }
}

/// A segment with SYN from this port of the NOS's address to this one of X.
fn syn(macs: (MacAddr, MacAddr), family: Family, from: u16, to: u16) -> Vec<u8> {
    let step = wire::ip(macs, family.nos, family.external).tcp(from, to, 1, 1000);
    let mut frame = Vec::new();
    step.syn().write(&mut frame, b"").unwrap();
    frame
}

lab_test! {
    // More flows than the table holds, from one container: the other's connection goes on.
    fn a_flood_takes_nothing_from_another_container() {
        let db = "ephemeral = \"45000-49999\"";
        let db_established = "ephemeral = { ports = \"45000-49999\", state = \"established\" }";
        let flows = ("threads = \"single\"", "threads = \"single\"\nflows = 1024");
        let edits = [(EPHEMERAL, ESTABLISHED), (db, db_established), flows];
        let scenario = scenario(Variant::PLAIN, &edits);
        let inside = Wire::open(scenario.web(), "eth0");
        let macs = (inside.mac(), scenario.daemon.attachment("web").link.mac);
        for family in FAMILIES {
            let server = tcp::EchoServer::start(scenario.external(), family.external_port(8080)).unwrap();
            let mut stream = tcp::connect(scenario.db(), None, server.address(), LIMIT).unwrap();
            for n in 0..3000_u16 {
                inside.send(&syn(macs, family, 40_000 + n, 9));
            }
            // Sent behind the flood, it comes behind it.
            let sent = || scenario.daemon.attachment("web").link.rx.packets;
            await_that("the flood has passed", || {
                (sent() >= 3000).then_some(()).ok_or_else(|| sent().to_string())
            });
            stream.write_all(b"still here").unwrap();
            let mut answer = [0; 10];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"still here");
            let flows = scenario.daemon.flows();
            assert!(flows.len() < 1024 / 2, "{}", flows.len());
            let other = flows.iter().find(|flow| flow.owner == "db" && flow.local.ip() == family.nos);
            assert_eq!(other.unwrap().state, FlowState::Established);
            tcp::exchange(scenario.web(), None, server.address(), b"x", LIMIT).unwrap();
        }
    }
}

/// An FTP server on X with one file, open to everybody.
struct FtpServer {
    child: Child,
    _files: Files,
}

impl FtpServer {
    fn start(scenario: &Scenario) -> Self {
        let files = Files::new();
        let (root, empty) = (files.path("root"), files.path("empty"));
        for directory in [&root, &empty] {
            std::fs::create_dir(directory).unwrap();
        }
        std::fs::write(root.join("file"), CONTENT).unwrap();
        let text = format!(
            "listen_ipv6=YES\nbackground=NO\nanonymous_enable=YES\nno_anon_password=YES\n\
             connect_from_port_20=YES\nseccomp_sandbox=NO\nisolate_network=NO\n\
             anon_root={}\nsecure_chroot_dir={}\nnopriv_user=nobody\nftp_username=daemon\n",
            root.display(),
            empty.display(),
        );
        let config = files.path("vsftpd.conf");
        std::fs::write(&config, text).unwrap();
        // Its processes become somebody else, who has to get there.
        let directory = config.parent().unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory, mode).unwrap();
        let mut command = Command::new(VSFTPD);
        command.arg(&config).stdin(Stdio::null());
        let child = scenario.external().spawn(command).unwrap();
        Self {
            child,
            _files: files,
        }
    }
}

impl Drop for FtpServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const VSFTPD: &str = "/usr/sbin/vsftpd";
const CONTENT: &str = "what the file says\n";

/// What curl gets from the server with these arguments, or what it says.
fn fetch(scenario: &Scenario, family: Family, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new("curl");
    let host = SocketAddr::from((family.external, 21));
    command
        .args([
            "--silent",
            "--show-error",
            "--globoff",
            "--noproxy",
            "*",
            "--max-time",
            "30",
        ])
        .args(arguments)
        .arg(format!("ftp://{host}/file"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = scenario.web().spawn(command).unwrap().wait_with_output();
    let output = output.unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Whether the server and the client are there; if not, says so.
fn has_ftp(test: &str) -> bool {
    let root = matches!(privileges(), Privileges::Root);
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    let all_users = map.split_whitespace().last() == Some("4294967295");
    match Path::new(VSFTPD).exists() && Path::new("/usr/bin/curl").exists() {
        true if root && all_users => return true,
        true => skip(&format!("{test}: vsftpd wants to be root")),
        false => skip(&format!("{test}: vsftpd or curl is not there")),
    }
    false
}

mod ftp_works_both_ways {
    use super::*;

    fn scenario(variant: Variant) {
        if !has_ftp("ftp_works_both_ways") {
            return;
        }
        let scenario = super::scenario(variant, &[(EPHEMERAL, ESTABLISHED)]);
        let _server = FtpServer::start(&scenario);
        for family in FAMILIES {
            let _ = await_that("the server listens", || fetch(&scenario, family, &[]));
            let passive = fetch(&scenario, family, &[]);
            assert_eq!(passive.as_deref(), Ok(CONTENT));
            let address = family.nos.to_string();
            // The server opens the connection for data: as EPRT says, and as PORT does.
            let active = fetch(&scenario, family, &["--ftp-port", &address]);
            assert_eq!(active.as_deref(), Ok(CONTENT));
            if !family.is_v6() {
                let active = fetch(
                    &scenario,
                    family,
                    &["--ftp-port", &address, "--disable-eprt"],
                );
                assert_eq!(active.as_deref(), Ok(CONTENT));
            }
        }
        let flows = scenario.daemon.flows();
        let opened = flows.iter().filter(|flow| flow.opener == FlowOpener::Peer);
        assert_eq!(opened.count(), 3, "{flows:#?}");
        assert!(
            flows.iter().all(|flow| flow.state != FlowState::Expected),
            "{flows:#?}"
        );
        assert_eq!(scenario.daemon.dropped("nos", "no-flow"), 0);
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        veth_split: ("veth", "split", [true, true]),
    }
}
