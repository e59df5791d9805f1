//! Programs of the network in a container, on the NOS's own address: what docs/daemons.md says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nos_relay::lab::testbed::ping::ping;
use nos_relay::lab::testbed::{LabNamespace, Privileges, Topology, Vxlan, privileges, tcp, udp};
use support::daemon::{Daemon, LIMIT, await_that};
use support::scenario::{FAMILIES, Variant, variant_tests};
use support::{lab_test, skip};

/// Where Debian has the daemons of FRR.
const FRR: &str = "/usr/lib/frr";

/// One container with the ports that its programs need, and X on the uplink.
struct Lab {
    // First, so that it is stopped while the networks are there.
    daemon: Daemon,
    topology: Topology,
}

impl Lab {
    fn new(variant: Variant, ports: &str) -> Self {
        let topology = Topology::new(&["web"]).unwrap();
        let config = format!(
            r#"
[relay]
threads = "{threads}"

[[uplink]]
name = "up0"
device = "packet:hx"
addresses = ["203.0.113.1/24", "2001:db8:1::1/64"]

[[container]]
name = "web"
netns = "{netns}"
device = "{device}"
ephemeral = "40000-44999"
{ports}
"#,
            threads = variant.threads,
            device = variant.device,
            netns = topology.containers[0].path().display(),
        );
        let daemon = Daemon::start(&topology.device, &config);
        Self { daemon, topology }
    }

    fn container(&self) -> &LabNamespace {
        &self.topology.containers[0]
    }

    fn external(&self) -> &LabNamespace {
        &self.topology.external
    }

    /// What the container was refused for its source.
    fn refused(&self) -> u64 {
        self.daemon.dropped("relay", "source-port")
    }
}

/// Daemons of FRR in one namespace, ended with the value.
struct Frr {
    directory: PathBuf,
    daemons: Vec<Child>,
}

impl Frr {
    /// Starts zebra, and then `name` with this configuration.
    fn start(namespace: &LabNamespace, directory: &Path, name: &str, config: &str) -> Self {
        std::fs::create_dir(directory).unwrap();
        // They change to a user of their own.
        for (directory, mode) in [(directory.parent().unwrap(), 0o755), (directory, 0o777)] {
            std::fs::set_permissions(directory, Permissions::from_mode(mode)).unwrap();
        }
        let mut frr = Self {
            directory: directory.to_owned(),
            daemons: Vec::new(),
        };
        frr.daemon(namespace, "zebra", "log stdout\n", &[]);
        // It connects to zebra's socket when it starts, and again seconds later.
        await_that("zebra listens", || {
            let there = frr.path("zserv.api").exists();
            there.then_some(()).ok_or_else(|| frr.logs())
        });
        frr.daemon(namespace, name, &format!("log stdout\n{config}"), &[]);
        frr
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn daemon(&mut self, namespace: &LabNamespace, name: &str, config: &str, more: &[&str]) {
        std::fs::write(self.path(&format!("{name}.conf")), config).unwrap();
        let log = File::create(self.path(&format!("{name}.log"))).unwrap();
        let mut command = Command::new(Path::new(FRR).join(name));
        command
            .arg("-f")
            .arg(self.path(&format!("{name}.conf")))
            .arg("-i")
            .arg(self.path(&format!("{name}.pid")))
            .arg("-z")
            .arg(self.path("zserv.api"))
            .arg("--vty_socket")
            .arg(&self.directory)
            // Nothing listens for operators.
            .args(["-P", "0"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.daemons.push(namespace.spawn(command).unwrap());
    }

    /// What an operator is shown.
    fn show(&self, command: &str) -> String {
        let mut vtysh = Command::new("vtysh");
        vtysh.arg("--vty_socket").arg(&self.directory);
        let output = vtysh.args(["-c", command]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn logs(&self) -> String {
        let mut all = String::new();
        for entry in std::fs::read_dir(&self.directory).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "log") {
                all += &format!(
                    "{}:\n{}",
                    path.display(),
                    std::fs::read_to_string(&path).unwrap()
                );
            }
        }
        all
    }
}

impl Drop for Frr {
    fn drop(&mut self) {
        for daemon in self.daemons.iter_mut().rev() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// Whether a daemon of FRR can be started here; if not, says so.
fn has_frr(test: &str, daemon: &str) -> bool {
    let missing = [Path::new(FRR).join(daemon), Path::new(FRR).join("zebra")]
        .into_iter()
        .find(|path| !path.exists());
    match (missing, privileges()) {
        (Some(path), _) => skip(&format!("{test}: {} is not there", path.display())),
        (None, Privileges::Root) if has_all_users() => return true,
        (None, _) => skip(&format!("{test}: FRR wants to be root")),
    }
    false
}

/// Whether there are other users to become, as FRR does: not in a user namespace with root alone.
fn has_all_users() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    map.split_whitespace().last() == Some("4294967295")
}

/// How the sessions are guarded.
#[derive(Clone, Copy)]
enum Ttl {
    /// eBGP as it is: packets are sent with TTL 1.
    One,
    /// RFC 5082: sent with 255, and taken with nothing less.
    Gtsm,
}

/// A BGP speaker with sessions to the address of each family, guarded by MD5 (RFC 2385).
fn bgp(
    own: u32,
    router: &str,
    [v4, v6]: [&str; 2],
    ttl: Ttl,
    passive: bool,
    prefixes: [&str; 2],
) -> String {
    let peer = if own == 65_001 { 65_002 } else { 65_001 };
    let mut text = format!(
        "router bgp {own}\n bgp router-id {router}\n no bgp ebgp-requires-policy\n \
         no bgp network import-check\n timers bgp 1 3\n"
    );
    for address in [v4, v6] {
        text += &format!(" neighbor {address} remote-as {peer}\n");
        text += &format!(" neighbor {address} password secret\n");
        text += &format!(" neighbor {address} timers connect 1\n");
        // The container has the NOS's address with /32, so no address of its own is in the network.
        text += &format!(" neighbor {address} disable-connected-check\n");
        if passive {
            text += &format!(" neighbor {address} passive\n");
        }
        if let Ttl::Gtsm = ttl {
            text += &format!(" neighbor {address} ttl-security hops 1\n");
        }
    }
    let [net4, net6] = prefixes;
    text += &format!(
        " address-family ipv4 unicast\n  network {net4}\n  no neighbor {v6} activate\n \
         exit-address-family\n address-family ipv6 unicast\n  network {net6}\n  \
         neighbor {v6} activate\n  neighbor {v6} route-map GLOBAL in\n exit-address-family\n"
    );
    // The link-local next hop would be looked for on `lo`, where the container's address is.
    text + "route-map GLOBAL permit 10\n set ipv6 next-hop prefer-global\n"
}

/// The routes that BGP has installed in a namespace's kernel.
fn bgp_routes(namespace: &LabNamespace, family: &str) -> String {
    let mut command = Command::new("ip");
    command.args([family, "route", "show", "proto", "bgp"]);
    let output = namespace.hold(&mut command).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Sessions of both families come up and routes arrive whose next hops are resolved.
fn bgp_comes_up(test: &str, variant: Variant, ttl: Ttl, container_is_passive: bool) {
    if !has_frr(test, "bgpd") {
        return;
    }
    let lab = Lab::new(variant, "tcp = \"179\"");
    let directory = tempfile::tempdir().unwrap();
    let outside = ["198.51.100.0/24", "2001:db8:2::/48"];
    let inside = ["192.0.2.0/24", "2001:db8:3::/48"];
    let config = bgp(
        65_002,
        "203.0.113.2",
        ["203.0.113.1", "2001:db8:1::1"],
        ttl,
        !container_is_passive,
        outside,
    );
    let external = Frr::start(lab.external(), &directory.path().join("x"), "bgpd", &config);
    let config = bgp(
        65_001,
        "203.0.113.1",
        ["203.0.113.2", "2001:db8:1::2"],
        ttl,
        container_is_passive,
        inside,
    );
    let container = Frr::start(
        lab.container(),
        &directory.path().join("web"),
        "bgpd",
        &config,
    );
    for (family, outside, inside) in [("-4", outside[0], inside[0]), ("-6", outside[1], inside[1])]
    {
        for (namespace, frr, prefix) in [
            (lab.container(), &container, outside),
            (lab.external(), &external, inside),
        ] {
            await_that("the route arrives", || {
                let routes = bgp_routes(namespace, family);
                let there = routes.lines().any(|route| route.starts_with(prefix));
                there.then_some(()).ok_or_else(|| {
                    let shown = [
                        "show bgp summary",
                        "show bgp all",
                        "show ip nht",
                        "show ipv6 nht",
                    ]
                    .map(|command| frr.show(command));
                    format!(
                        "{family} {prefix} in\n{routes}\n{}\n{}",
                        shown.join("\n"),
                        frr.logs()
                    )
                })
            });
        }
    }
    // It is the network's route that carries them.
    let resolved = container.show("show ip nht 203.0.113.2");
    assert!(!resolved.contains("unresolved"), "{resolved}");
    assert_eq!(lab.refused(), 0);
}

mod bgp_with_md5_and_ttl_1_comes_up_when_the_container_opens {
    use super::*;

    fn scenario(variant: Variant) {
        bgp_comes_up("BGP with TTL 1, active", variant, Ttl::One, false);
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        veth_split: ("veth", "split", [true, true]),
    }
}

mod bgp_with_md5_and_ttl_1_comes_up_when_the_network_opens {
    use super::*;

    fn scenario(variant: Variant) {
        bgp_comes_up("BGP with TTL 1, passive", variant, Ttl::One, true);
    }

    variant_tests! {
        tap_split: ("tap", "split", [true, true]),
        veth_single: ("veth", "single", [true, true]),
    }
}

mod bgp_with_md5_and_gtsm_comes_up {
    use super::*;

    fn scenario(variant: Variant) {
        for container_is_passive in [false, true] {
            bgp_comes_up("BGP with GTSM", variant, Ttl::Gtsm, container_is_passive);
        }
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        veth_single: ("veth", "single", [true, true]),
    }
}

fn bfd(local: [&str; 2], peers: [&str; 2]) -> String {
    let mut text = "bfd\n".to_owned();
    for (local, peer) in local.into_iter().zip(peers) {
        text += &format!(" peer {peer} local-address {local}\n  no shutdown\n exit\n");
    }
    text
}

lab_test! {
    // FRR takes its source ports from 49142 on, and Linux has no say in it.
    fn bfd_comes_up_where_its_source_ports_are_the_containers() {
        if !has_frr("BFD", "bfdd") {
            return;
        }
        let lab = Lab::new(Variant::PLAIN, "udp = [\"3784\", \"49142-49241\"]");
        let directory = tempfile::tempdir().unwrap();
        let (inside, outside) = (["203.0.113.1", "2001:db8:1::1"], ["203.0.113.2", "2001:db8:1::2"]);
        let external = Frr::start(lab.external(), &directory.path().join("x"), "bfdd", &bfd(outside, inside));
        let container = Frr::start(lab.container(), &directory.path().join("web"), "bfdd", &bfd(inside, outside));
        for frr in [&container, &external] {
            await_that("both sessions are up", || {
                let shown = frr.show("show bfd peers");
                let up = shown.matches("Status: up").count();
                (up == 2).then_some(()).ok_or_else(|| format!("{shown}\n{}", frr.logs()))
            });
        }
        assert_eq!(lab.refused(), 0);
    }
}

lab_test! {
    // Linux takes the source ports of VXLAN out of `ip_local_port_range`.
    fn vxlan_works_with_its_port_and_an_ephemeral_range() {
        let lab = Lab::new(Variant::PLAIN, "udp = \"4789\"");
        for family in FAMILIES {
            let name = if family.is_v6() { "vx6" } else { "vx4" };
            let net = if family.is_v6() { 6 } else { 4 };
            for (namespace, local, remote, host) in [
                (lab.container(), family.nos, family.external, 1),
                (lab.external(), family.external, family.nos, 2),
            ] {
                let vxlan = Vxlan { local, remote, port: 4789, checksum: true, mtu: 1400 };
                namespace.add_vxlan(name, vxlan).unwrap();
                let address = format!("10.8.{net}.{host}/24").parse().unwrap();
                namespace.add_address(name, address).unwrap();
            }
            let far: SocketAddr = format!("10.8.{net}.2:8080").parse().unwrap();
            ping(lab.container(), far.ip(), 1, LIMIT).unwrap();
            let server = tcp::EchoServer::start(lab.external(), far).unwrap();
            // Each flow has a source port of its own.
            for _ in 0..20 {
                tcp::exchange(lab.container(), None, server.address(), b"x", LIMIT).unwrap();
            }
            let near: SocketAddr = format!("10.8.{net}.1:8080").parse().unwrap();
            let server = tcp::EchoServer::start(lab.container(), near).unwrap();
            tcp::exchange(lab.external(), None, server.address(), b"x", LIMIT).unwrap();
        }
        assert_eq!(lab.refused(), 0);
    }
}

lab_test! {
    // As an FTP server in active mode: data from port 20 to where the client listens.
    fn servers_open_flows_from_ports_that_they_listen_on() {
        let lab = Lab::new(Variant::PLAIN, "tcp = [\"20-21\", \"30000-30099\"]");
        for family in FAMILIES {
            let control = tcp::EchoServer::start(lab.container(), family.nos_port(21)).unwrap();
            tcp::exchange(lab.external(), None, control.address(), b"PORT", LIMIT).unwrap();
            let data = tcp::EchoServer::start(lab.external(), family.external_port(5000)).unwrap();
            let from = Some(SocketAddr::new(family.any, 20));
            tcp::exchange(lab.container(), from, data.address(), b"data", LIMIT).unwrap();
            assert_eq!(data.peers(), [family.nos_port(20)]);
            // Passive mode: the client comes to a port that the server names.
            let passive = tcp::EchoServer::start(lab.container(), family.nos_port(30_050)).unwrap();
            tcp::exchange(lab.external(), None, passive.address(), b"data", LIMIT).unwrap();
        }
        assert_eq!(lab.refused(), 0);
    }
}

lab_test! {
    // As the kernel's NFS client: connections from a port below 1024, which servers ask for.
    fn clients_on_reserved_ports_need_them_for_their_own() {
        let lab = Lab::new(Variant::PLAIN, "tcp = \"665-700\"");
        for family in FAMILIES {
            let server = tcp::EchoServer::start(lab.external(), family.external_port(2049)).unwrap();
            let from = |port| Some(SocketAddr::new(family.any, port));
            tcp::exchange(lab.container(), from(700), server.address(), b"mount", LIMIT).unwrap();
            let refused = tcp::connect(lab.container(), from(701), server.address(), LIMIT).unwrap_err();
            let expected = if family.is_v6() { ErrorKind::PermissionDenied } else { ErrorKind::HostUnreachable };
            assert_eq!(refused.kind(), Some(expected));
            // With `noresvport` any port will do.
            tcp::exchange(lab.container(), None, server.address(), b"mount", LIMIT).unwrap();
        }
        let udp_server = udp::EchoServer::start(lab.external(), FAMILIES[0].external_port(111)).unwrap();
        udp::exchange(lab.container(), None, udp_server.address(), b"x", LIMIT).unwrap();
        assert_eq!(lab.refused(), 2);
    }
}
