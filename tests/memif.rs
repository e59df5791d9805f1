//! Uplinks on memory that is shared with another process: two of our own, and DPDK.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;

use ipnet::IpNet;
use nix::sys::signal::Signal;
use nos_relay::control::api::snapshot::LinkState;
use nos_relay::lab::testbed::LabNamespace;
use nos_relay::lab::testbed::ping::ping;
use support::bulk::transfer;
use support::daemon::{Daemon, Files, LIMIT, await_that};
use support::dpdk::{TestPmd, has_dpdk};
use support::lab_test;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// One NOS with a container.
struct Site {
    // First, so that it is stopped while the namespaces are there.
    daemon: Option<Daemon>,
    config: String,
    device: LabNamespace,
    container: LabNamespace,
    addresses: [IpAddr; 2],
}

impl Site {
    fn new(number: u8, role: &str, socket: &Path, more: &str) -> Self {
        let (device, container) = (
            LabNamespace::new(&format!("H{number}")).unwrap(),
            LabNamespace::new(&format!("C{number}")).unwrap(),
        );
        let config = format!(
            r#"
{more}
[[uplink]]
name = "up0"
device = "memif:{socket}:7"
memif = {{ role = "{role}", secret = "of both" }}
addresses = ["203.0.113.{number}/24", "2001:db8:1::{number}/64"]

[[container]]
name = "web"
netns = "{netns}"
device = "veth"
tcp = "20000-20999"
udp = "20000-20999"
ephemeral = "40000-44999"
"#,
            socket = socket.display(),
            netns = container.path().display(),
        );
        let addresses = ["203.0.113.", "2001:db8:1::"];
        Self {
            daemon: Some(Daemon::start(&device, &config)),
            config,
            device,
            container,
            addresses: addresses.map(|start| format!("{start}{number}").parse().unwrap()),
        }
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    fn await_carrier(&self, wanted: LinkState) {
        await_that("the uplink's state", || {
            let link = self.daemon().uplink("up0").link;
            (link.state == wanted)
                .then_some(())
                .ok_or_else(|| format!("{link:?}"))
        });
    }

    /// Kills the process, so that it says nothing to its peer.
    fn kill(&mut self) -> Files {
        self.daemon.take().unwrap().kill()
    }

    fn start_on(&mut self, files: Files) {
        self.daemon = Some(Daemon::start_on(&self.device, files));
    }
}

/// Two of our own on one socket.
struct Pair {
    sites: [Site; 2],
    _directory: TempDir,
}

impl Pair {
    fn new(more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("memif.sock");
        let site = |number, role| Site::new(number, role, &socket, more);
        let pair = Self {
            sites: [site(1, "server"), site(2, "client")],
            _directory: directory,
        };
        pair.await_carrier();
        pair
    }

    fn await_carrier(&self) {
        for site in &self.sites {
            site.await_carrier(LinkState::Up);
        }
    }

    /// Pings, and moves octets between the containers, each way and by both families.
    fn talk(&self, octets: u64) {
        let [one, two] = &self.sites;
        for (from, to) in [(one, two), (two, one)] {
            for (address, port) in to.addresses.into_iter().zip(20080..) {
                // The first may be asked for while routes come back.
                await_that("a ping is answered", || {
                    let echoes = ping(&from.container, address, 1, LIMIT).unwrap();
                    let good = echoes.iter().all(|echo| echo.is_reply());
                    good.then_some(()).ok_or_else(|| format!("{echoes:?}"))
                });
                let connection = connect(&from.container, &to.container, (address, port).into());
                transfer(connection, octets, port.into());
            }
        }
    }
}

/// A connection from `client` to `address` in `server`: its ends there.
fn connect(client: &LabNamespace, server: &LabNamespace, address: SocketAddr) -> [TcpStream; 2] {
    let listener = server.run(|| TcpListener::bind(address).unwrap()).unwrap();
    let near = client.run(|| TcpStream::connect_timeout(&address, LIMIT).unwrap());
    let (far, _) = listener.accept().unwrap();
    [near.unwrap(), far]
}

lab_test! {
    fn containers_talk_over_shared_memory() {
        let pair = Pair::new("");
        pair.talk(8 * MIB);
        let link = pair.sites[0].daemon().uplink("up0").link;
        assert_eq!(link.device, "memif");
        assert!(link.interface.ends_with("/memif.sock:7"), "{link:?}");
        assert_eq!((link.reason, link.offload.len()), (None, 0));
    }
}

lab_test! {
    fn containers_talk_over_shared_memory_on_two_threads() {
        Pair::new("[relay]\nthreads = \"split\"\n").talk(8 * MIB);
    }
}

/// Kills one of two, looks at the other, and starts the first again.
fn one_is_killed(which: usize) {
    let mut pair = Pair::new("");
    pair.talk(MIB);
    let files = pair.sites[which].kill();
    let other = &pair.sites[1 - which];
    other.await_carrier(LinkState::Down);
    let reason = other.daemon().uplink("up0").link.reason.unwrap();
    let expected = ["the peer has gone", "nobody listens at"];
    assert!(expected.iter().any(|it| reason.starts_with(it)), "{reason}");
    let log = other.daemon().log();
    assert!(log.contains("the peer has gone"), "{log}");
    pair.sites[which].start_on(files);
    pair.await_carrier();
    pair.talk(MIB);
}

lab_test! {
    fn a_server_that_is_killed_comes_back() {
        one_is_killed(0);
    }
}

lab_test! {
    fn a_client_that_is_killed_comes_back() {
        one_is_killed(1);
    }
}

lab_test! {
    fn a_process_that_takes_over_connects_anew() {
        let mut pair = Pair::new("");
        pair.talk(MIB);
        for site in &mut pair.sites {
            let before = site.daemon.take().unwrap();
            site.daemon = Some(before.replaced(&site.device));
        }
        pair.await_carrier();
        pair.talk(MIB);
    }
}

lab_test! {
    fn a_reload_changes_the_role() {
        let pair = Pair::new("");
        pair.talk(MIB);
        let swapped = |site: &Site, from: &str, to: &str| {
            let (from, to) = (format!("role = \"{from}\""), format!("role = \"{to}\""));
            assert!(site.config.contains(&from));
            site.daemon().reload(&site.config.replace(&from, &to));
        };
        // While both are clients, neither has a peer.
        swapped(&pair.sites[0], "server", "client");
        pair.sites[0].await_carrier(LinkState::Down);
        swapped(&pair.sites[1], "client", "server");
        pair.await_carrier();
        pair.talk(MIB);
    }
}

lab_test! {
    fn a_stopped_peer_is_noticed_and_forgiven() {
        let pair = Pair::new("");
        pair.talk(MIB);
        let [one, two] = &pair.sites;
        two.daemon().signal(Signal::SIGSTOP);
        // Nobody answers; what is asked fills the ring.
        let far: SocketAddr = (two.addresses[0], 20080).into();
        let bound = || UdpSocket::bind(("203.0.113.1", 40000)).unwrap();
        let socket = one.container.run(bound).unwrap();
        await_that("the peer is called stalled", || {
            for _ in 0..2000 {
                // Once the route is gone, the kernel hears that from the NOS.
                let _ = socket.send_to(&[0; 64], far);
            }
            let link = one.daemon().uplink("up0").link;
            let stalled = link.reason.as_deref() == Some("the peer takes nothing");
            (stalled && link.state == LinkState::Down)
                .then_some(())
                .ok_or_else(|| format!("{link:?}"))
        });
        two.daemon().signal(Signal::SIGCONT);
        pair.await_carrier();
        pair.talk(MIB);
    }
}

/// Our daemon on one side of a socket, and on the other DPDK and a host behind it.
struct WithDpdk {
    site: Site,
    pmd: Option<TestPmd>,
    host: LabNamespace,
    role: &'static str,
    directory: TempDir,
}

impl WithDpdk {
    fn new(ours: &'static str, theirs: &'static str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let host = LabNamespace::new("X").unwrap();
        let site = Site::new(1, ours, &directory.path().join("memif.sock"), "");
        let mut this = Self {
            site,
            pmd: None,
            host,
            role: theirs,
            directory,
        };
        this.start_dpdk();
        this
    }

    fn start_dpdk(&mut self) {
        self.pmd = Some(TestPmd::start(&self.host, self.role, self.directory.path()));
        for address in ["203.0.113.2/24", "2001:db8:1::2/64"] {
            let address: IpNet = address.parse().unwrap();
            self.host.add_address(TestPmd::TAP, address).unwrap();
        }
        self.host.set_up(TestPmd::TAP).unwrap();
        self.await_carrier();
    }

    fn await_carrier(&self) {
        self.site.await_carrier(LinkState::Up);
    }

    fn say(&mut self, commands: &[&str]) {
        self.pmd.as_mut().unwrap().say(commands);
    }

    /// How often the link went down.
    fn outages(&self) -> usize {
        self.site.daemon().log().matches("the link is down").count()
    }

    fn stop_forwarding(&mut self) {
        let outages = self.outages();
        self.say(&["stop", "port stop 0"]);
        // A server that is stopped takes the next client at once: one would not see that it was down.
        await_that("the link goes down", || {
            (self.outages() > outages)
                .then_some(())
                .ok_or_else(|| self.site.daemon().log())
        });
    }

    /// ARP, Neighbor Discovery, pings and TCP, each way.
    fn talk(&self) {
        let (container, host) = (&self.site.container, &self.host);
        let theirs: [IpAddr; 2] = ["203.0.113.2", "2001:db8:1::2"].map(|it| it.parse().unwrap());
        for (ours, theirs) in self.site.addresses.into_iter().zip(theirs) {
            for (from, to) in [(container, theirs), (host, ours)] {
                await_that("a ping is answered", || {
                    let echoes = ping(from, to, 1, LIMIT).map_err(|error| error.to_string())?;
                    let good = echoes.iter().all(|echo| echo.is_reply());
                    good.then_some(()).ok_or_else(|| format!("{echoes:?}"))
                });
            }
            let out = connect(container, host, (theirs, 8080).into());
            let [near, far] = connect(host, container, (ours, 20080).into());
            transfer(out, MIB, 1);
            transfer([far, near], MIB, 2);
        }
    }
}

/// Talks with DPDK, and again after its link was down, after it was killed, and after we were.
fn dpdk_talks(ours: &'static str, theirs: &'static str) {
    if !has_dpdk() {
        return;
    }
    let mut lab = WithDpdk::new(ours, theirs);
    lab.talk();

    lab.stop_forwarding();
    lab.say(&["port start 0", "start"]);
    lab.await_carrier();
    lab.talk();

    lab.pmd = None;
    lab.site.await_carrier(LinkState::Down);
    // Its server leaves its socket behind, and does not take it up again.
    if theirs == "server" {
        std::fs::remove_file(lab.directory.path().join("memif.sock")).unwrap();
    }
    lab.start_dpdk();
    lab.talk();

    // It may crash where its peer goes while it forwards.
    lab.stop_forwarding();
    let files = lab.site.kill();
    lab.site.start_on(files);
    // Its client connects when its port is started, and not again.
    lab.say(&["port start 0", "start"]);
    lab.await_carrier();
    lab.talk();
}

lab_test! {
    fn a_dpdk_client_talks_to_us() {
        dpdk_talks("server", "client");
    }
}

lab_test! {
    fn a_dpdk_server_talks_to_us() {
        dpdk_talks("client", "server");
    }
}
