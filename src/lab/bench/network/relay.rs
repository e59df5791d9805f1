//! The relay itself: the daemon in a process of its own, as anybody runs it.

use std::os::unix::net::UnixDatagram;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{LINK_LIMIT, Losses, Network, show};
use crate::control::api::snapshot::{Link, Stage};
use crate::control::api::{Response, Table};
use crate::lab::bench::account::{self, Spent};
use crate::lab::bench::children::{Children, Process};
use crate::lab::bench::crowd::Crowd;
use crate::lab::bench::error::BenchError;
use crate::lab::bench::path::Path;
use crate::lab::bench::plan::Setting;
use crate::lab::testbed::{LabNamespace, Topology};

/// Time for a crowd to be attached or detached.
const RELOAD_LIMIT: Duration = Duration::from_secs(30);

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
    let network = Network::new(path, container.clone(), external);
    let mut network = start(children, &host, &config, network)?;
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
        let device = device(self.path);
        let Setting { mtu, offload, .. } = self.setting;
        let buffers = self.setting.buffers;
        let buffers = buffers.map_or_else(String::new, |count| format!("buffers = {count}\n"));
        let [v4, v6] = super::shared_networks();
        let [c, d] = self.containers.map(|container| container.path());
        let (c, d, uplink) = (c.display(), d.display(), self.uplink);
        format!(
            r#"[relay]
threads = "{threads}"
{buffers}[[uplink]]
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
        let buffers = self.setting.buffers;
        let buffers = buffers.map_or_else(String::new, |count| format!("-buffers-{count}"));
        let crowd = match self.setting.crowd {
            0 => String::new(),
            size => format!("-crowd-{size}"),
        };
        let tunnel = if self.setting.tunnel { "-vxlan" } else { "" };
        format!(
            "{}-{}{offload}{buffers}{crowd}{tunnel}",
            self.path, self.setting.mtu
        )
    }
}

/// The kind of a container's device, as in the configuration.
fn device(path: Path) -> &'static str {
    match path {
        Path::RelayBridge => "bridge:br0",
        path if path.is_tap() => "tap",
        _ => "veth",
    }
}

fn start(
    children: &Children,
    host: &LabNamespace,
    config: &Config<'_>,
    mut network: Network,
) -> Result<Network, BenchError> {
    let label = config.label();
    let mut daemon = Daemon::new(children, &label);
    let text = config.text();
    match config.setting.crowd {
        0 => daemon.configure(&text)?,
        size => {
            let mut crowd = Crowd::new(children, &label)?;
            crowd.grow(size)?;
            let crowded = format!("{text}{}", crowd.configuration(size, device(config.path)));
            daemon.configure(&crowded)?;
            let reload = Reload::new(&daemon, [text, crowded], crowd)?;
            daemon.notify = Some(reload.address.clone());
            network.reload = Some(reload);
        }
    }
    network.forwarder = Some(daemon.start(children, host)?);
    if let Some(reload) = &network.reload {
        reload.await_ready()?;
    }
    network.losses = Losses::Relay(daemon.control);
    Ok(network)
}

/// A daemon's files.
struct Daemon {
    label: String,
    config: PathBuf,
    control: PathBuf,
    /// Whom it tells that it is ready (sd_notify(3)).
    notify: Option<PathBuf>,
}

impl Daemon {
    fn new(children: &Children, label: &str) -> Self {
        let file = |end: &str| children.directory().join(format!("{label}.{end}"));
        Self {
            label: label.to_owned(),
            config: file("toml"),
            control: file("sock"),
            notify: None,
        }
    }

    fn configure(&self, text: &str) -> Result<(), BenchError> {
        std::fs::write(&self.config, text)
            .map_err(BenchError::io(format!("write {}", self.config.display())))
    }

    /// Starts it, and waits until it is ready.
    fn start(&self, children: &Children, host: &LabNamespace) -> Result<Process, BenchError> {
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["--log", "warn", "run", "--state", "none"])
            .arg(&self.config)
            .arg("--control")
            .arg(&self.control);
        if let Some(notify) = &self.notify {
            command.env("NOTIFY_SOCKET", notify);
        }
        let process = children.start(host, command, &format!("{}.log", self.label))?;
        process.await_ready()?;
        Ok(process)
    }

    fn attachments(&self) -> Result<usize, BenchError> {
        attachments(&self.control)
    }
}

fn attachments(control: &FilePath) -> Result<usize, BenchError> {
    match show(control, Table::Attachments) {
        Some(Response::Attachments(attachments)) => Ok(attachments.len()),
        _ => Err(BenchError::Missing("an answer to `show attachments`")),
    }
}

/// What changes a relay's configuration, and notices that it follows.
pub(in crate::lab::bench) struct Reload {
    config: PathBuf,
    control: PathBuf,
    /// Without the crowd and with it.
    texts: [String; 2],
    notices: UnixDatagram,
    address: PathBuf,
    /// Its namespaces live as long.
    _crowd: Crowd,
}

impl Reload {
    fn new(daemon: &Daemon, texts: [String; 2], crowd: Crowd) -> Result<Self, BenchError> {
        let address = daemon.config.with_extension("notify");
        let notices = UnixDatagram::bind(&address).and_then(|notices| {
            notices.set_read_timeout(Some(RELOAD_LIMIT))?;
            Ok(notices)
        });
        Ok(Self {
            config: daemon.config.clone(),
            control: daemon.control.clone(),
            texts,
            notices: notices.map_err(BenchError::io("hear of reloads"))?,
            address,
            _crowd: crowd,
        })
    }

    /// Has the crowd detached from or attached to `process`; `Ok` once it is.
    pub(in crate::lab::bench) fn perform(
        &self,
        process: &Process,
        crowded: bool,
    ) -> Result<(), BenchError> {
        let text = &self.texts[usize::from(crowded)];
        std::fs::write(&self.config, text)
            .map_err(BenchError::io(format!("write {}", self.config.display())))?;
        process.signal(Signal::SIGHUP)?;
        self.await_ready()
    }

    /// Fails unless as many containers are attached as the configuration has.
    pub(in crate::lab::bench) fn check(&self, crowded: bool) -> Result<(), BenchError> {
        let text = &self.texts[usize::from(crowded)];
        let wanted = text.matches("[[container]]").count();
        match attachments(&self.control)? {
            found if found == wanted => Ok(()),
            found => Err(BenchError::Setup(format!(
                "{found} containers are attached, not {wanted}"
            ))),
        }
    }

    /// Reads what the daemon says until it says that it is ready.
    fn await_ready(&self) -> Result<(), BenchError> {
        let mut octets = [0; 512];
        loop {
            let read = self.notices.recv(&mut octets);
            let length = read.map_err(BenchError::io("hear of a reload"))?;
            let text = String::from_utf8_lossy(&octets[..length]);
            if text.lines().any(|line| line == "READY=1") {
                return Ok(());
            }
        }
    }
}

/// How long a daemon with many containers took.
pub(in crate::lab::bench) struct Life {
    /// From its start until it was ready.
    pub(in crate::lab::bench) ready: Duration,
    /// From SIGTERM to its end.
    pub(in crate::lab::bench) end: Duration,
    /// What it had spent when it was ready.
    pub(in crate::lab::bench) spent: Spent,
}

/// Starts a daemon with the first `containers` of `crowd`, and ends it.
pub(in crate::lab::bench) fn live(
    children: &Children,
    path: Path,
    crowd: &Crowd,
    containers: u16,
) -> Result<Life, BenchError> {
    let topology = Topology::new(&[])?;
    let daemon = Daemon::new(children, &format!("{path}-attach-{containers}"));
    let [v4, v6] = super::shared_networks();
    let uplink = Topology::UPLINK;
    let crowd = crowd.configuration(containers, device(path));
    daemon.configure(&format!(
        "[[uplink]]\nname = \"up0\"\ndevice = \"packet:{uplink}\"\naddresses = [\"{v4}\", \"{v6}\"]\n{crowd}"
    ))?;
    let begin = Instant::now();
    let process = daemon.start(children, &topology.device)?;
    let ready = begin.elapsed();
    let spent = account::process(process.pid()).map_err(BenchError::io("read what was spent"))?;
    let attached = daemon.attachments()?;
    if attached != usize::from(containers) {
        return Err(process.failed(format!("has attached {attached} containers")));
    }
    let begin = Instant::now();
    process.signal(Signal::SIGTERM)?;
    process.await_end(RELOAD_LIMIT)?;
    let end = begin.elapsed();
    Ok(Life { ready, end, spent })
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
