//! Other programs that give a container a network from user space.

use std::ffi::{CStr, CString};
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path as FilePath;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::{LINK_LIMIT, LISTEN, Network};
use crate::lab::bench::children::{Children, Process};
use crate::lab::bench::error::BenchError;
use crate::lab::bench::path::{Path, installed};
use crate::lab::testbed::{LabNamespace, Topology};

/// Between two looks at something of which nothing tells.
const LOOK: Duration = Duration::from_millis(10);

/// The host with the shared addresses, X, and an empty container.
fn topology() -> Result<Topology, BenchError> {
    let topology = Topology::new(&["C"])?;
    let device = &topology.device;
    device.sysctl("net/ipv6/conf/hx/disable_ipv6", "0")?;
    for address in super::shared_networks() {
        device.add_address(Topology::UPLINK, address)?;
    }
    for (prefix, via) in [
        ("0.0.0.0/0", IpAddr::V4(Topology::EXTERNAL_V4)),
        ("::/0", IpAddr::V6(Topology::EXTERNAL_V6)),
    ] {
        let prefix = prefix.parse();
        let prefix = prefix.map_err(|_| BenchError::Missing("a default route"))?;
        device.add_route(prefix, via)?;
    }
    Ok(topology)
}

fn mtu(path: Path) -> &'static str {
    match path {
        Path::Pasta1500 | Path::Slirp4netns1500 => "1500",
        _ => "65520",
    }
}

fn network(path: Path, topology: &Topology, process: Process) -> Result<Network, BenchError> {
    let container = topology.containers.first();
    let container = container.ok_or(BenchError::Missing("a container"))?;
    let mut network = Network::new(path, container.clone(), topology.external.clone());
    network.queues = vec![(container.clone(), "eth0".to_owned())];
    network.forwarder = Some(process);
    network._kept = vec![topology.device.clone()];
    Ok(network)
}

pub(super) fn pasta(children: &Children, path: Path) -> Result<Network, BenchError> {
    let topology = topology()?;
    let container = topology.containers.first();
    let container = container.ok_or(BenchError::Missing("a container"))?;
    let name = children.directory().join(format!("{path}.netns"));
    std::fs::write(&name, "").map_err(BenchError::io(format!("write {}", name.display())))?;
    let ports = format!("{}-{}", LISTEN.start(), LISTEN.end());
    let mut command = Command::new(installed("pasta").ok_or(BenchError::Missing("pasta"))?);
    command
        .args(["--config-net", "--no-map-gw", "--runas", "0:0", "-f", "-q"])
        .args(["-I", "eth0", "-m", mtu(path)])
        .args(["-t", &ports, "-u", &ports, "-T", "none", "-U", "none"])
        .arg("--netns")
        .arg(&name);
    let mounted = mount_in_child(&mut command, &container.path(), &name);
    mounted.map_err(BenchError::io("name a namespace"))?;
    let process = children.start(&topology.device, command, &format!("{path}.log"))?;
    await_address(container, &process, IpAddr::V4(Topology::DEVICE_V4))?;
    network(path, &topology, process)
}

/// Gives a namespace a name that only the child knows: pasta may not look into /proc of others.
///
/// The child gets a mount namespace of its own, in which the file `name` is the namespace.
fn mount_in_child(
    command: &mut Command,
    namespace: &FilePath,
    name: &FilePath,
) -> std::io::Result<()> {
    let [namespace, name] =
        [namespace, name].map(|path| CString::new(path.as_os_str().as_encoded_bytes()));
    let (namespace, name) = (namespace?, name?);
    let mount_it = move || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&CStr>;
        mount(
            none,
            c"/",
            none,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            none,
        )?;
        let source = Some(namespace.as_c_str());
        mount(source, name.as_c_str(), none, MsFlags::MS_BIND, none)?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes three system calls on strings made before;
    // it takes no lock and allocates nothing.
    unsafe { command.pre_exec(mount_it) };
    Ok(())
}

/// The address that slirp4netns gives a container by default.
const SLIRP_ADDRESS: [u8; 4] = [10, 0, 2, 100];

pub(super) fn slirp4netns(children: &Children, path: Path) -> Result<Network, BenchError> {
    let topology = topology()?;
    let container = topology.containers.first();
    let container = container.ok_or(BenchError::Missing("a container"))?;
    let api = children.directory().join(format!("{path}.api"));
    let program = installed("slirp4netns").ok_or(BenchError::Missing("slirp4netns"))?;
    let mut command = Command::new(program);
    command
        .args([
            "--netns-type=path",
            "--configure",
            "--disable-host-loopback",
        ])
        .arg(format!("--mtu={}", mtu(path)))
        .arg("--api-socket")
        .arg(&api)
        .arg(container.path())
        .arg("eth0");
    let process = children.start(&topology.device, command, &format!("{path}.log"))?;
    await_address(container, &process, IpAddr::from(SLIRP_ADDRESS))?;
    await_socket(&api, &process)?;
    for port in LISTEN {
        for protocol in ["tcp", "udp"] {
            forward_port(&api, protocol, port)
                .map_err(BenchError::io(format!("forward {protocol} {port}")))?;
        }
    }
    network(path, &topology, process)
}

/// Waits until the program has given the container its address.
fn await_address(
    container: &LabNamespace,
    process: &Process,
    address: IpAddr,
) -> Result<(), BenchError> {
    await_that(process, "configure the container", || {
        let addresses = container.addresses("eth0").unwrap_or_default();
        addresses.iter().any(|net| net.addr() == address)
    })?;
    Ok(container.wait_operational("eth0", LINK_LIMIT)?)
}

fn await_socket(api: &FilePath, process: &Process) -> Result<(), BenchError> {
    await_that(process, "listen on its API socket", || {
        UnixStream::connect(api).is_ok()
    })
}

fn await_that(process: &Process, what: &str, reached: impl Fn() -> bool) -> Result<(), BenchError> {
    let until = Instant::now() + LINK_LIMIT;
    while !reached() {
        if let Some(death) = process.death() {
            return Err(death);
        }
        if Instant::now() > until {
            let seconds = LINK_LIMIT.as_secs();
            return Err(process.failed(format!("did not {what} within {seconds} s")));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

fn forward_port(api: &FilePath, protocol: &str, port: u16) -> std::io::Result<()> {
    let [a, b, c, d] = SLIRP_ADDRESS;
    let request = format!(
        r#"{{"execute":"add_hostfwd","arguments":{{"proto":"{protocol}","host_addr":"0.0.0.0","host_port":{port},"guest_addr":"{a}.{b}.{c}.{d}","guest_port":{port}}}}}"#
    );
    let mut stream = UnixStream::connect(api)?;
    stream.set_read_timeout(Some(LINK_LIMIT))?;
    stream.write_all(request.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.contains("error") {
        true => Err(std::io::Error::other(answer)),
        false => Ok(()),
    }
}
