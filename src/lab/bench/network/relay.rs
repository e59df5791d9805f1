//! The relay itself: the daemon in a process of its own, as anybody runs it.

use std::path::Path as FilePath;
use std::process::Command;

use super::{LINK_LIMIT, Losses, Network, show};
use crate::control::api::snapshot::{Link, Stage};
use crate::control::api::{Response, Table};
use crate::lab::bench::children::Children;
use crate::lab::bench::error::BenchError;
use crate::lab::bench::path::Path;
use crate::lab::bench::plan::Setting;
use crate::lab::testbed::{LabNamespace, Topology};

/// Container and uplink on TAPs. The daemon runs in X: its uplink's TAP is X's interface, as with
/// the bare forwarder.
pub(super) fn tap(
    children: &Children,
    path: Path,
    setting: Setting,
) -> Result<Network, BenchError> {
    let [container, second, external] = ["C", "D", "X"].map(LabNamespace::new);
    let (container, second, external) = (container?, second?, external?);
    let host = external.clone();
    let config = Config {
        path,
        setting,
        uplink: "tap:up0",
        containers: [&container, &second],
    };
    let mut network = start(
        children,
        &host,
        &config,
        Network::new(path, container.clone(), external),
    )?;
    let external = &network.external;
    for address in Topology::external_addresses() {
        external.add_address("up0", address)?;
    }
    external.wait_operational("up0", LINK_LIMIT)?;
    network.queues = vec![(external.clone(), "up0".to_owned())];
    network.second = Some(second);
    Ok(network)
}

/// Container on a veth, uplink on a packet socket.
pub(super) fn veth(
    children: &Children,
    path: Path,
    setting: Setting,
) -> Result<Network, BenchError> {
    let topology = Topology::new(&["C", "D"])?;
    let [container, second] = &topology.containers[..] else {
        return Err(BenchError::Missing("two containers"));
    };
    let (device, external) = (&topology.device, &topology.external);
    device.set_mtu(Topology::UPLINK, u32::from(setting.mtu))?;
    external.set_mtu(Topology::EXTERNAL_INTERFACE, u32::from(setting.mtu))?;
    let config = Config {
        path,
        setting,
        uplink: "packet:hx",
        containers: [container, second],
    };
    let network = Network::new(path, container.clone(), external.clone());
    let mut network = start(children, device, &config, network)?;
    network.second = Some(second.clone());
    network._kept = vec![device.clone()];
    Ok(network)
}

struct Config<'a> {
    path: Path,
    setting: Setting,
    uplink: &'a str,
    containers: [&'a LabNamespace; 2],
}

impl Config<'_> {
    fn text(&self) -> String {
        let threads = if self.path.is_split() {
            "split"
        } else {
            "single"
        };
        let device = if self.path.is_tap() { "tap" } else { "veth" };
        let Setting { mtu, offload } = self.setting;
        let [v4, v6] = super::shared_networks();
        let [c, d] = self.containers.map(|container| container.path());
        let (c, d, uplink) = (c.display(), d.display(), self.uplink);
        format!(
            r#"[relay]
threads = "{threads}"
[[uplink]]
name = "up0"
device = "{uplink}"
addresses = ["{v4}", "{v6}"]
mtu = {mtu}
offload = {offload}
[[container]]
name = "c"
netns = "{c}"
device = "{device}"
tcp = "20000-24999"
udp = "20000-24999"
ephemeral = "30000-44999"
offload = {offload}
[[container]]
name = "d"
netns = "{d}"
device = "{device}"
tcp = "25000-29999"
udp = "25000-29999"
ephemeral = "45000-59999"
offload = {offload}
"#
        )
    }

    /// Name of its files.
    fn label(&self) -> String {
        let offload = if self.setting.offload { "" } else { "-plain" };
        format!("{}-{}{offload}", self.path, self.setting.mtu)
    }
}

fn start(
    children: &Children,
    host: &LabNamespace,
    config: &Config<'_>,
    mut network: Network,
) -> Result<Network, BenchError> {
    let label = config.label();
    let file = |end: &str| children.directory().join(format!("{label}.{end}"));
    let (toml, control) = (file("toml"), file("sock"));
    std::fs::write(&toml, config.text())
        .map_err(BenchError::io(format!("write {}", toml.display())))?;
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["--log", "warn", "run"])
        .arg(&toml)
        .arg("--control")
        .arg(&control);
    let process = children.start(host, command, &format!("{label}.log"))?;
    process.await_ready()?;
    network.forwarder = Some(process);
    network.losses = Losses::Relay(control);
    Ok(network)
}

/// What the relay knows to have been lost because something was full.
pub(super) fn lost(control: &FilePath) -> Option<u64> {
    let Response::Counters(counters) = show(control, Table::Counters)? else {
        return None;
    };
    let Response::Attachments(attachments) = show(control, Table::Attachments)? else {
        return None;
    };
    let links = attachments.iter().map(|attachment| &attachment.link);
    let links = links.chain(counters.uplinks.iter().map(|uplink| &uplink.link));
    let rings = counters.rings.iter().map(|ring| ring.full_drops);
    Some(links.map(lost_on).chain(rings).sum())
}

fn lost_on(link: &Link) -> u64 {
    let full = nos_shim::drop::DropReason::DeviceFull.label();
    link.device_tx_dropped.unwrap_or(0) + link.drops.get(full).copied().unwrap_or(0)
}

/// Packets that are neither sent, nor held, nor dropped for a reason.
pub(super) fn unaccounted(control: &FilePath) -> Option<String> {
    let Some(Response::Counters(counters)) = show(control, Table::Counters) else {
        return Some("the relay does not show its counters".to_owned());
    };
    let wrong = counters.stages.iter().filter(|stage| missing(stage) != 0);
    let wrong: Vec<_> = wrong
        .map(|stage| {
            format!(
                "{} packets of {} are unaccounted for",
                missing(stage),
                stage.name
            )
        })
        .collect();
    (!wrong.is_empty()).then(|| wrong.join(", "))
}

fn missing(stage: &Stage) -> i128 {
    let came = i128::from(stage.received) + i128::from(stage.originated);
    let went = i128::from(stage.sent) + i128::from(stage.consumed) + i128::from(stage.held);
    let dropped: u64 = stage.drops.values().sum();
    came - went - i128::from(dropped)
}
