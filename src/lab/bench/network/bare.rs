//! The bare forwarders.

use std::process::Command;

use nos_shim::ident::MacAddr;

use super::{LINK_LIMIT, Losses, Network, external_address, set_ephemeral, shared_address, silent};
use crate::control::attach;
use crate::lab::bench::children::{Children, Process};
use crate::lab::bench::error::BenchError;
use crate::lab::bench::forwarder::EndSpec;
use crate::lab::bench::path::Path;
use crate::lab::bench::plan::Setting;
use crate::lab::bench::traffic::IpVersion;
use crate::lab::testbed::{LabNamespace, Topology, veth};

/// TAP in the container, TAP in X.
pub(super) fn tap(
    children: &Children,
    path: Path,
    setting: Setting,
) -> Result<Network, BenchError> {
    let (container, external) = (LabNamespace::new("C")?, LabNamespace::new("X")?);
    let host = LabNamespace::new("H")?;
    let ends = [
        EndSpec::tap(&container.path(), "eth0", container_mac()),
        EndSpec::tap(&external.path(), "up0", Topology::external_mac()),
    ];
    let label = format!("{path}-{}-{}", setting.mtu, setting.offload);
    let process = start(children, &host, &ends, path, setting, &label)?;
    let mut network = Network::new(path, container, external);
    for (namespace, interface, mac) in [
        (&network.container, "eth0", container_mac()),
        (&network.external, "up0", Topology::external_mac()),
    ] {
        namespace.set_mac(interface, mac)?;
        // Queues as long as the relay's.
        let up = attach::bring_up(namespace.namespace(), interface, u32::from(setting.mtu));
        up.map_err(|error| BenchError::Setup(error.to_string()))?;
        namespace.wait_operational(interface, LINK_LIMIT)?;
    }
    address(&network.container, &network.external, "up0")?;
    network.queues = vec![
        (network.container.clone(), "eth0".to_owned()),
        (network.external.clone(), "up0".to_owned()),
    ];
    network.forwarder = Some(process);
    network.losses = Losses::Bare;
    Ok(network)
}

/// Packet sockets on the host's ends of two veth pairs.
pub(super) fn packet(
    children: &Children,
    path: Path,
    setting: Setting,
) -> Result<Network, BenchError> {
    let (container, external) = (LabNamespace::new("C")?, LabNamespace::new("X")?);
    let host = silent("H")?;
    veth((&host, "hc"), (&container, "eth0"))?;
    veth((&host, "hx"), (&external, "up0"))?;
    for (namespace, interface) in [
        (&host, "hc"),
        (&host, "hx"),
        (&container, "eth0"),
        (&external, "up0"),
    ] {
        namespace.set_mtu(interface, u32::from(setting.mtu))?;
    }
    container.set_mac("eth0", container_mac())?;
    external.set_mac("up0", Topology::external_mac())?;
    let ends = [
        EndSpec::packet(&host.path(), "hc", container_mac()),
        EndSpec::packet(&host.path(), "hx", Topology::external_mac()),
    ];
    let label = format!("{path}-{}", setting.mtu);
    let process = start(children, &host, &ends, path, setting, &label)?;
    let mut network = Network::new(path, container, external);
    address(&network.container, &network.external, "up0")?;
    network.forwarder = Some(process);
    network.losses = Losses::Bare;
    network._kept = vec![host];
    Ok(network)
}

fn start(
    children: &Children,
    host: &LabNamespace,
    ends: &[EndSpec; 2],
    path: Path,
    setting: Setting,
    label: &str,
) -> Result<Process, BenchError> {
    let mut command = Command::new("/proc/self/exe");
    command.args(["--log", "warn", "bench-forward"]);
    for end in ends {
        command.arg(format!("--end={end}"));
    }
    if path == Path::BareTapSingle {
        command.arg("--single");
    }
    if path.needs_uring() {
        command.arg("--io-uring");
    }
    if !setting.offload {
        command.arg("--plain");
    }
    let process = children.start(host, command, &format!("{label}.log"))?;
    process.await_ready()?;
    Ok(process)
}

fn container_mac() -> MacAddr {
    MacAddr::stable("bench C")
}

/// Gives both their addresses, and each other's MAC address: nobody answers ARP here.
fn address(
    container: &LabNamespace,
    external: &LabNamespace,
    interface: &str,
) -> Result<(), BenchError> {
    for address in super::shared_networks() {
        container.add_address("eth0", address)?;
    }
    for address in Topology::external_addresses() {
        external.add_address(interface, address)?;
    }
    for ip in IpVersion::BOTH {
        container.add_neighbor("eth0", external_address(ip), Topology::external_mac())?;
        external.add_neighbor(interface, shared_address(ip), container_mac())?;
    }
    Ok(set_ephemeral(container)?)
}
