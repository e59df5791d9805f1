//! Docker with its own daemon, and the plugin beside it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nos_relay::control::api::snapshot::{LinkState, PortKind};
use nos_relay::lab::testbed::{LabNamespace, tcp};
use tempfile::TempDir;

use crate::base::daemon::{await_that, die_with_us};
use crate::base::{lab_test, skip};
use crate::containerd::{end_shims, unmount_below};
use crate::engine::Network;
use crate::image;
use crate::talk::{assert_nothing_left, await_greeting, await_served, get, get_from, outsider};

/// Without one, Docker takes no `--ip`.
const SUBNET: &str = "203.0.113.0/24";

/// A Docker with an image, the plugin, and nothing of anybody else's.
struct Docker {
    dockerd: Option<Child>,
    // Beside it and not by it, as a service manager does it: it lives on when the other is killed.
    containerd: Option<Child>,
    plugin: Option<Child>,
    folder: TempDir,
    /// How Docker calls the plugin: it looks for plugins in one place alone.
    driver: String,
    control: PathBuf,
    /// Where it has a bridge of its own, as it has it by default; elsewhere it has none.
    host: Option<LabNamespace>,
}

/// How many there have been.
static STARTED: AtomicUsize = AtomicUsize::new(0);

/// Debian's, beside which there may be one that is too new for its daemon.
fn client() -> &'static str {
    let of_distribution = "/usr/bin/docker";
    match Path::new(of_distribution).exists() {
        true => of_distribution,
        false => "docker",
    }
}

impl Docker {
    /// With the plugin for the daemon of `network`; or why there is none.
    fn new(network: &Network) -> Result<Self, String> {
        Self::on(network, None)
    }

    /// The same on the host of that daemon, with `docker0`.
    fn with_docker0(network: &Network) -> Result<Self, String> {
        Self::on(network, Some(network.topology.device.clone()))
    }

    fn on(network: &Network, host: Option<LabNamespace>) -> Result<Self, String> {
        image::is_root()?;
        image::installed(&["dockerd", "docker", "containerd", "runc"])?;
        let folder = tempfile::Builder::new()
            .prefix("nos-relay-docker-")
            .tempdir()
            .unwrap();
        let mut docker = Self {
            dockerd: None,
            containerd: None,
            plugin: None,
            folder,
            driver: format!(
                "nos-relay-test-{}-{}",
                std::process::id(),
                STARTED.fetch_add(1, Ordering::Relaxed)
            ),
            control: network.control(),
            host,
        };
        docker.start_plugin();
        docker.start_containerd();
        docker.start_dockerd()?;
        let image = image::make(docker.folder.path());
        let load = docker.command(&["load", "-i", image.to_str().unwrap()]);
        image::starts_at_all("docker", &load)?;
        let alone = [
            "run",
            "--rm",
            "--network",
            "none",
            "--entrypoint",
            "/bin/echo",
            image::NAME,
        ];
        image::starts_at_all("docker", &docker.command(&alone))?;
        Ok(docker)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn plugin_socket(&self) -> PathBuf {
        Path::new("/run/docker/plugins").join(format!("{}.sock", self.driver))
    }

    fn start_plugin(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nos-relay-docker"));
        command.arg("--socket").arg(self.plugin_socket());
        command.arg("--control").arg(&self.control);
        let mut child = die_with_us(command.stdout(Stdio::piped())).spawn().unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        self.plugin = Some(child);
    }

    fn start_containerd(&mut self) {
        let path = |name: &str| self.path(name).display().to_string();
        let config = format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{}\"\n[ttrpc]\naddress = \"{}\"\n",
            path("c-root"),
            path("c-state"),
            path("c.sock"),
            path("c.ttrpc")
        );
        fs::write(self.path("containerd.toml"), config).unwrap();
        let log = fs::File::create(self.path("containerd.log")).unwrap();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(self.path("containerd.toml"));
        let command = command.stdout(log.try_clone().unwrap()).stderr(log);
        self.containerd = Some(die_with_us(command).spawn().unwrap());
        await_that("containerd listens", || {
            let socket = std::os::unix::net::UnixStream::connect(self.path("c.sock"));
            socket.map(drop).map_err(|error| error.to_string())
        });
    }

    fn start_dockerd(&mut self) -> Result<(), String> {
        let log = fs::File::create(self.path("dockerd.log")).unwrap();
        let mut command = Command::new("dockerd");
        command.args(["--iptables=false", "--ip6tables=false", "--live-restore"]);
        match &self.host {
            None => {
                command.arg("--bridge=none");
            }
            Some(host) => {
                host.hold(&mut command);
            }
        }
        command.args([
            "--storage-driver",
            "vfs",
            "--exec-opt",
            "native.cgroupdriver=cgroupfs",
        ]);
        for (option, name) in [
            ("--data-root", "data"),
            ("--exec-root", "exec"),
            ("--pidfile", "pid"),
            ("--containerd", "c.sock"),
        ] {
            command.arg(option).arg(self.path(name));
        }
        command
            .arg("-H")
            .arg(format!("unix://{}", self.path("sock").display()));
        command.env(
            "PATH",
            format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap()),
        );
        let command = command.stdout(log.try_clone().unwrap()).stderr(log);
        self.dockerd = Some(die_with_us(command).spawn().unwrap());
        // What it cannot do on this machine is no fault of ours.
        let started = await_that("dockerd answers, or ends", || {
            if self.command(&["version"]).status.success() {
                return Ok(true);
            }
            match self.dockerd.as_mut().unwrap().try_wait().unwrap() {
                Some(_) => Ok(false),
                None => Err("not yet".to_owned()),
            }
        });
        match started {
            true => Ok(()),
            false => {
                let log = fs::read_to_string(self.path("dockerd.log")).unwrap();
                Err(format!(
                    "dockerd does not start here: {}",
                    log.lines().last().unwrap_or_default()
                ))
            }
        }
    }

    fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(client());
        let socket = format!("unix://{}", self.path("sock").display());
        command.args(["-H", &socket]).args(arguments);
        command
            .env("DOCKER_CONFIG", self.path("client"))
            .output()
            .unwrap()
    }

    #[track_caller]
    fn does(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "docker {arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn refuses(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        assert!(!output.status.success(), "docker {arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Makes a network of ours.
    fn network(&self, name: &str, more: &[&str]) {
        let driver = [
            "network",
            "create",
            "-d",
            &self.driver,
            "--ipam-driver",
            &self.driver,
        ];
        self.does(&[&driver, more, &[name]].concat());
    }

    /// What a container prints that is removed then.
    fn prints(&self, network: &[&str], shell: &str) -> String {
        let run = ["run", "--rm", "--entrypoint", "/bin/sh"];
        self.does(&[&run, network, &[image::NAME, "-c", shell]].concat())
    }
}

fn end(child: &mut Option<Child>, signal: Signal) {
    if let Some(mut child) = child.take() {
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let _ = kill(pid, signal);
        let _ = child.wait();
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let ids = String::from_utf8(self.command(&["ps", "-aq"]).stdout).unwrap_or_default();
        let ids: Vec<_> = ids.split_whitespace().collect();
        let _ = self.command(&[&["rm", "--force"], &ids[..]].concat());
        end(&mut self.dockerd, Signal::SIGTERM);
        end(&mut self.containerd, Signal::SIGTERM);
        end(&mut self.plugin, Signal::SIGTERM);
        end_shims(self.folder.path());
        unmount_below(self.folder.path());
        let _ = fs::remove_file(self.plugin_socket());
    }
}

lab_test! {
    fn docker_runs_containers_on_the_nos_s_address() {
        let network = Network::new(0);
        let mut docker = match Docker::new(&network) {
            Ok(docker) => docker,
            Err(reason) => return skip(&reason),
        };
        let outsider = outsider(&network);
        docker.network("shared", &["-o", "mode=shared", "-o", "uplink=up0", "--subnet", SUBNET]);
        publishes(&network, &docker, &outsider);
        is_ready_from_the_first_instruction(&docker);
        is_in_two_networks(&network, &docker);
        does_what_a_page_shows(&network, &docker, include_str!("../../../docs/docker.md"), 20);
        does_what_a_page_shows(&network, &docker, include_str!("../../../docs/migration.md"), 8);
        has_the_modes_of_every_engine(&docker);
        publishes_what_the_pool_gives(&network, &docker);
        has_both_families(&docker);
        has_an_address_of_its_own(&network, &docker);
        has_an_address_of_a_pool(&network, &docker);
        has_an_address_on_a_bridge(&network, &docker);
        outlives_daemons(&network, &mut docker);
        docker.does(&["rm", "--force", "web"]);
        docker.does(&["network", "rm", "shared"]);
        assert_nothing_left(&network);
    }
}

fn publishes(network: &Network, docker: &Docker, outsider: &tcp::EchoServer) {
    let run = |more: &[&'static str]| [&["run", "--network", "shared"], more].concat();
    docker.does(&run(&[
        "-d",
        "--name",
        "web",
        "-p",
        "8081:8081",
        image::NAME,
        "8081",
    ]));
    await_greeting(network, outsider);
    await_served(network, 8081);
    let shown = docker.does(&["inspect", "-f", "{{json .NetworkSettings.Networks}}", "web"]);
    assert!(shown.contains("\"IPAddress\":\"203.0.113.1\""), "{shown}");
    // Stopped it is gone, started anew it is served anew.
    docker.does(&["stop", "-t", "0", "web"]);
    assert_eq!(network.daemon.ports(), []);
    assert!(get(network, 8081).is_err());
    docker.does(&["start", "web"]);
    await_served(network, 8081);
    let before = network.registrations();
    for (arguments, reason) in [
        (
            run(&["--rm", "-p", "8081:8081", image::NAME]),
            "8081 of container",
        ),
        (
            run(&["--rm", "-p", "80:8080", image::NAME]),
            "there is no NAT",
        ),
        (
            run(&["--rm", "--ip", "203.0.113.77", image::NAME]),
            "203.0.113.77",
        ),
        (
            vec![
                "run",
                "--rm",
                "--network",
                "name=shared,driver-opt=colour=red",
                image::NAME,
            ],
            "driver-opt \"colour\"",
        ),
    ] {
        let said = docker.refuses(&arguments);
        assert!(said.contains(reason), "{said}");
        assert_eq!(network.registrations(), before, "{reason}");
    }
    let driver = [
        "network",
        "create",
        "-d",
        &docker.driver,
        "--ipam-driver",
        &docker.driver,
    ];
    for (options, reason) in [
        (&["-o", "colour=red"][..], "-o \"colour\""),
        (&["-o", "mode=nat"], "nat"),
        (&["-o", "uplink=up9"], "up9"),
        (&["--internal"], "--internal"),
        (&["--subnet", "10.0.0.0/8"], "--subnet 10.0.0.0/8"),
        (&["--ipam-opt", "colour=red"], "--ipam-opt \"colour\""),
        (&["--ipam-opt", "vrf=red"], "no IPv4 address in VRF \"red\""),
    ] {
        let said = docker.refuses(&[&driver, options, &["bad"]].concat());
        assert!(said.contains(reason), "{said}");
        assert_eq!(network.registrations(), before, "{reason}");
    }
    await_served(network, 8081);
}

fn is_ready_from_the_first_instruction(docker: &Docker) {
    let options = "name=shared,driver-opt=tcp=20000-20099,driver-opt=ephemeral=40000-40099";
    for _ in 0..10 {
        let said = docker.prints(
            &["--network", options],
            "cat /proc/sys/net/ipv4/ip_local_port_range; ip address show lo; ip route",
        );
        for wanted in ["40000\t40099", "203.0.113.1/32", "default dev eth0"] {
            assert!(said.contains(wanted), "{wanted}: {said}");
        }
    }
    let mac = "02:00:5e:10:00:07";
    let said = docker.prints(
        &["--network", "shared", "--mac-address", mac],
        "ip link show eth0",
    );
    assert!(said.contains(mac), "{said}");
}

fn is_in_two_networks(network: &Network, docker: &Docker) {
    docker.network("other", &["-o", "uplink=up0", "--subnet", SUBNET]);
    let served = [
        "run",
        "-d",
        "--name",
        "both",
        "--network",
        "shared",
        "--ip",
        "203.0.113.1",
    ];
    docker.does(&[&served[..], &["-p", "8082:8082", image::NAME, "8082"]].concat());
    await_served(network, 8082);
    let said = docker.refuses(&["network", "connect", "--ip", "203.0.113.1", "other", "both"]);
    assert!(said.contains("8082 of container"), "{said}");
    docker.does(&["network", "connect", "--ip", "203.0.113.3", "other", "both"]);
    let shown = docker.does(&["exec", "both", "ip", "address"]);
    assert!(
        shown.contains("eth1") && shown.contains("203.0.113.3/32"),
        "{shown}"
    );
    docker.does(&["network", "disconnect", "other", "both"]);
    let shown = docker.does(&["exec", "both", "ip", "address"]);
    assert!(
        !shown.contains("eth1") && !shown.contains("203.0.113.3"),
        "{shown}"
    );
    await_served(network, 8082);
    docker.does(&["rm", "--force", "both"]);
    docker.does(&["network", "rm", "other"]);
}

/// Which are not ours, and work as ever beside ours.
fn has_the_modes_of_every_engine(docker: &Docker) {
    let addresses = "ip address; ip route";
    let said = docker.prints(&["--network", "container:web"], addresses);
    assert!(
        said.contains("203.0.113.1/32") && said.contains("default dev eth0"),
        "{said}"
    );
    let said = docker.prints(&["--network", "none"], addresses);
    assert!(
        !said.contains("203.0.113") && !said.contains("eth0"),
        "{said}"
    );
    let said = docker.prints(&["--network", "host"], addresses);
    assert!(!said.contains("203.0.113.1/32"), "{said}");
}

/// `-P`, and `-p` of one port: the program learns the port from who started it.
fn publishes_what_the_pool_gives(network: &Network, docker: &Docker) {
    for publish in [&["-P", "--expose", "80"][..], &["-p", "80"]] {
        let run = ["run", "-d", "--name", "given", "--network", "shared"];
        docker.does(&[&run[..], publish, &[image::NAME]].concat());
        let rows = network.daemon.ports();
        let listens = rows
            .iter()
            .filter(|row| row.kind == PortKind::Listen && row.range.first() != 8081);
        let listens: Vec<_> = listens.collect();
        let [given] = &listens[..] else {
            panic!("{rows:?}")
        };
        assert_eq!(given.range.len(), 1);
        docker.does(&[
            "exec",
            "-d",
            "given",
            "/bin/httpd",
            "-p",
            &given.range.to_string(),
            "-h",
            "/www",
        ]);
        await_served(network, given.range.first());
        docker.does(&["rm", "--force", "given"]);
    }
}

fn has_both_families(docker: &Docker) {
    docker.network(
        "dual",
        &[
            "--ipv6",
            "-o",
            "uplink=up0",
            "--subnet",
            SUBNET,
            "--subnet",
            "2001:db8:1::/64",
        ],
    );
    // Docker turns IPv6 off in its sandboxes unless it is told not to.
    let enabled = [
        "--sysctl",
        "net.ipv6.conf.all.disable_ipv6=0",
        "--network",
        "dual",
    ];
    let said = docker.prints(
        &enabled,
        "n=0; while [ $n -lt 100 ]; do case \"$(ip address show lo)\" in *2001:*) break;; esac; \
         n=$((n+1)); sleep 0.1; done; ip address show lo; ip -6 route",
    );
    for wanted in ["203.0.113.1/32", "2001:db8:1::1/128", "default dev eth0"] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    docker.does(&["network", "rm", "dual"]);
}

/// The commands of a page for operators, and what they print.
fn does_what_a_page_shows(network: &Network, docker: &Docker, page: &str, expected: usize) {
    let blocks = page.split("```console\n").skip(1);
    let transcripts = blocks.map(|block| block.split("```").next().unwrap());
    let mut commands = 0;
    for transcript in transcripts {
        for shown in transcript.split("# ").skip(1) {
            let (command, output) = shown.split_once('\n').unwrap();
            let printed = run_as_shown(network, docker, command);
            assert!(
                is_as_shown(&printed, output),
                "# {command}\n{printed}\ninstead of\n{output}"
            );
            commands += 1;
        }
    }
    assert_eq!(commands, expected);
}

fn run_as_shown(network: &Network, docker: &Docker, command: &str) -> String {
    let words = command.split_whitespace().map(|word| match word {
        "nos-relay" => docker.driver.as_str(),
        "IMAGE" => image::NAME,
        word => word.trim_matches('\''),
    });
    let words: Vec<_> = words.collect();
    let output = match command.starts_with("docker ") {
        true => docker.command(&words[1..]),
        false => {
            let mut relay = Command::new(crate::base::daemon::program());
            relay
                .args(&words[1..])
                .arg("--control")
                .arg(network.control());
            relay.output().unwrap()
        }
    };
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// Whether a text has these parts in their order, between which anything may be.
fn is_as_shown(printed: &str, shown: &str) -> bool {
    let mut rest = printed;
    shown
        .split('…')
        .all(|part| match rest.split_once(part.trim()) {
            Some((_, behind)) => {
                rest = behind;
                true
            }
            None => false,
        })
}

/// Docker chooses it, from a part of the uplink's network that nobody else has.
fn has_an_address_of_its_own(network: &Network, docker: &Docker) {
    let create = [
        "network",
        "create",
        "-d",
        &docker.driver,
        "-o",
        "mode=routed",
    ];
    let pool = [
        "--subnet",
        SUBNET,
        "--ip-range",
        "203.0.113.64/27",
        "--gateway",
        "203.0.113.1",
    ];
    docker.does(&[&create[..], &pool, &["lan"]].concat());
    let said = docker.prints(&["--network", "lan"], "ip address show lo; ip route");
    for wanted in ["inet 203.0.113.64/32", "default dev eth0"] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    // All ports are its own, whether they are published or not.
    let served = [
        "run",
        "-d",
        "--name",
        "own",
        "--network",
        "lan",
        "--ip",
        "203.0.113.70",
    ];
    docker.does(&[&served[..], &["-p", "8081:8081", image::NAME, "8081"]].concat());
    let own = "203.0.113.70:8081".parse().unwrap();
    await_that("it serves", || get_from(network, own));
    await_served(network, 8081);
    let said = docker.refuses(&[
        "run",
        "--rm",
        "--network",
        "lan",
        "-p",
        "80:8080",
        image::NAME,
    ]);
    assert!(said.contains("there is no NAT"), "{said}");
    docker.does(&["rm", "--force", "own"]);
    docker.does(&["network", "rm", "lan"]);
}

/// The daemon chooses it, and Docker says when it is free again.
fn has_an_address_of_a_pool(network: &Network, docker: &Docker) {
    let relay = |arguments: &[&str]| {
        let mut relay = Command::new(crate::base::daemon::program());
        let relay = relay
            .args(arguments)
            .arg("--control")
            .arg(network.control());
        let output = relay.output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let range = ["--kind", "netspace", "--range", "203.0.113.96/28"];
    let made = relay(&[&["pool", "create", "dlan"][..], &range].concat());
    assert_eq!(made, "Done.\n");
    let options = ["-o", "mode=routed", "--ipam-opt", "pool=dlan"];
    docker.network("plan", &options);
    let said = docker.prints(&["--network", "plan"], "ip address show lo; ip route");
    for wanted in ["inet 203.0.113.96/32", "default dev eth0"] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    docker.does(&[
        "run",
        "-d",
        "--name",
        "pooled",
        "--network",
        "plan",
        image::NAME,
        "8086",
    ]);
    let own = "203.0.113.97:8086".parse().unwrap();
    await_that("it serves", || get_from(network, own));
    let shown = "{{.NetworkSettings.Networks.plan.IPAddress}}";
    assert_eq!(
        docker.does(&["inspect", "-f", shown, "pooled"]).trim(),
        "203.0.113.97"
    );
    let addresses = relay(&["pool", "inspect", "dlan"]);
    assert_eq!(addresses.matches("\"in-use\"").count(), 1, "{addresses}");
    assert!(
        addresses.contains("\"holder\": \"docker/dlan/"),
        "{addresses}"
    );
    // Stopped and started, it is another endpoint.
    docker.does(&["restart", "--time", "0", "pooled"]);
    await_that("it serves", || {
        get_from(network, "203.0.113.98:8086".parse().unwrap())
    });
    docker.does(&["rm", "--force", "pooled"]);
    docker.does(&["network", "rm", "plan"]);
    let addresses = relay(&["pool", "inspect", "dlan"]);
    assert!(!addresses.contains("\"in-use\""), "{addresses}");
    let said = docker.refuses(&[
        "network",
        "create",
        "-d",
        &docker.driver,
        "--ipam-driver",
        &docker.driver,
        "--ipam-opt",
        "pool=none",
        "bad",
    ]);
    assert!(said.contains("nos-relay has no pool \"none\""), "{said}");
    assert_eq!(relay(&["pool", "rm", "dlan"]), "Done.\n");
}

/// Docker chooses it; the NOS's address and ports are there besides.
fn has_an_address_on_a_bridge(network: &Network, docker: &Docker) {
    let create = ["network", "create", "-d", &docker.driver];
    let subnet = ["--subnet", "172.31.12.0/24"];
    docker.does(&[&create[..], &["-o", "bridge=team0"], &subnet, &["team"]].concat());
    let served = ["run", "-d", "--name", "front", "--network", "team"];
    docker.does(&[&served[..], &["-p", "8085:8085", image::NAME, "8085"]].concat());
    await_served(network, 8085);
    let device = &network.topology.device;
    assert!(device.link("team0").unwrap().is_some());
    let said = docker.prints(
        &["--network", "team"],
        "ip address; ip route; wget -q -O - http://172.31.12.2:8085/; \
         wget -q -O - http://203.0.113.1:8085/; wget -q -O - http://203.0.113.1:8081/; true",
    );
    for wanted in [
        "172.31.12.3/24",
        "203.0.113.1/32",
        "172.31.12.0/24 dev eth0",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    // On the bridge, by the NOS, and one of another network.
    assert_eq!(said.matches("nos-relay\n").count(), 2, "{said}");
    for (options, reason) in [
        (
            &["-o", "mode=bridge", "-o", "device=tap"][..],
            "must be \"bridge:INTERFACE\"",
        ),
        (
            &["-o", "bridge=b", "-o", "device=tap"],
            "give one of the two",
        ),
        (&["-o", "bridge=a name"], "which no interface name may"),
    ] {
        let said = docker.refuses(&[&create[..], options, &["bad"]].concat());
        assert!(said.contains(reason), "{said}");
    }
    docker.does(&["rm", "--force", "front"]);
    assert!(device.link("team0").unwrap().is_none());
    docker.does(&["network", "rm", "team"]);
}

lab_test! {
    fn containers_of_docker0_get_the_nos_s_address_beside_docker_s() {
        let network = Network::new(0);
        let mut docker = match Docker::with_docker0(&network) {
            Ok(docker) => docker,
            Err(reason) => return skip(&reason),
        };
        docker.does(&["run", "-d", "--name", "web", image::NAME, "8081"]);
        docker.does(&["run", "-d", "--name", "db", image::NAME, "8082"]);
        let before = docker.does(&["exec", "web", "ip", "route"]);
        let attach = |name: &str, port: &str| {
            let pid = docker.does(&["inspect", "-f", "{{.State.Pid}}", name]);
            let relay = Command::new(crate::base::daemon::program())
                .args(["attach", name, "--device", "existing", "--pid", pid.trim()])
                .args(["--tcp", port, "--ephemeral", &format!("4{port}-4{port}")])
                .arg("--control")
                .arg(network.control())
                .output()
                .unwrap();
            assert!(relay.status.success(), "{relay:?}");
        };
        attach("web", "8081");
        attach("db", "8082");
        await_served(&network, 8081);
        await_served(&network, 8082);
        // What Docker has made is as it was, and works as it did.
        assert_eq!(docker.does(&["exec", "web", "ip", "route"]), before);
        let row = network.daemon.attachment("web");
        assert_eq!((row.link.device.as_str(), row.link.state), ("existing", LinkState::Up));
        let inside = |name: &str| {
            let format = "{{.NetworkSettings.IPAddress}}";
            let address = docker.does(&["inspect", "-f", format, name]);
            std::net::SocketAddr::new(address.trim().parse().unwrap(), 8082)
        };
        let (web, db) = (inside("web"), inside("db"));
        let get = format!("wget -q -O - http://{db}/; wget -q -O - http://203.0.113.1:8082/; echo x | nc -w 5 203.0.113.2 7001");
        let served = tcp::EchoServer::start(&network.topology.external, "203.0.113.2:7001".parse().unwrap()).unwrap();
        let said = docker.command(&["exec", "web", "/bin/sh", "-c", &get]);
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.matches("nos-relay\n").count() >= 2, "{said}");
        assert_eq!(served.peers()[0].ip().to_string(), "203.0.113.1");
        let host = tcp::connect(&network.topology.device, None, (web.ip(), 8081).into(), crate::base::daemon::LIMIT);
        drop(host.unwrap());
        // Docker starts one of them anew: the process has ended, and with it what was registered for it.
        docker.does(&["restart", "-t", "0", "web"]);
        await_that("it is gone", || {
            let rows = network.daemon.attachments();
            let web = rows.iter().find(|row| row.name == "web" && row.link.state == LinkState::Up);
            web.is_none().then_some(()).ok_or_else(|| format!("{web:?}"))
        });
        await_served(&network, 8082);
        end(&mut docker.dockerd, Signal::SIGKILL);
        docker.start_dockerd().unwrap();
        await_served(&network, 8082);
        docker.does(&["rm", "--force", "web", "db"]);
    }
}

/// In any order.
fn outlives_daemons(network: &Network, docker: &mut Docker) {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        end(&mut docker.plugin, signal);
        await_served(network, 8081);
        docker.start_plugin();
        end(&mut docker.dockerd, signal);
        await_served(network, 8081);
        docker.start_dockerd().unwrap();
        await_served(network, 8081);
        docker.does(&["restart", "-t", "0", "web"]);
        await_served(network, 8081);
        let rows = network.daemon.attachments();
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_eq!(rows[0].link.state, LinkState::Up);
    }
}
