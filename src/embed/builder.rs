//! The configuration of an embedded relay, as values.

use std::net::IpAddr;
use std::path::PathBuf;
use std::thread;

use ipnet::IpNet;
use nos_shim::channel::NosInterface;
use serde::Serialize;

use super::{NosPort, Relay, RelayError, Runner};
use crate::control::config::{ConfigErrors, ConfigFile, Mtu, NosPlace, serialize_interface};
use crate::control::daemon::{DaemonError, EmbeddedDaemon, EmbeddedOptions};

/// What errors call the configuration.
pub(super) const NAME: &str = "embedded";

/// An interface of the NOS, whose addresses containers may use.
///
/// Names, addresses and bounds are those of `[[uplink]]` in `docs/configuration.md`.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct Interface(#[serde(serialize_with = "serialize_interface")] NosInterface);

impl Interface {
    /// An interface with these addresses, each with its network's prefix length, and an MTU of 1500.
    #[must_use]
    pub fn new(name: &str, addresses: &[IpNet]) -> Self {
        Self(NosInterface {
            name: name.into(),
            addresses: addresses.to_vec(),
            mtu: Mtu::DEFAULT.octets(),
            vrf: None,
        })
    }

    /// With another MTU: octets of the longest IP packet, 576 to 65535, at least 1280 where there is
    /// IPv6.
    #[must_use]
    pub fn mtu(mut self, octets: u16) -> Self {
        self.0.mtu = octets;
        self
    }

    /// In another VRF than `"default"`.
    #[must_use]
    pub fn vrf(mut self, name: &str) -> Self {
        self.0.vrf = Some(name.into());
        self
    }
}

/// What names a container's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Netns {
    /// A file that stands for it, as under `/run/netns`; absolute.
    Path(PathBuf),
    /// A process that is in it.
    Pid(u32),
}

/// What joins a container to the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// A TAP inside of its namespace.
    Tap,
    /// A veth pair, with a packet socket on the host's end.
    Veth,
}

/// A container to attach.
///
/// Names, ports and bounds are those of `[[container]]` in `docs/configuration.md`.
#[derive(Clone, Debug, Serialize)]
pub struct Container {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    device: Device,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    addresses: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tcp: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    udp: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ephemeral: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vrf: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offload: Option<bool>,
}

impl Container {
    /// A container without ports, by a TAP, with all addresses of its VRF.
    #[must_use]
    pub fn new(name: &str, netns: Netns) -> Self {
        let (netns, pid) = match netns {
            Netns::Path(path) => (Some(path), None),
            Netns::Pid(pid) => (None, Some(pid)),
        };
        Self {
            name: name.to_owned(),
            netns,
            pid,
            device: Device::Tap,
            interface: None,
            addresses: None,
            tcp: Vec::new(),
            udp: Vec::new(),
            ephemeral: Vec::new(),
            vrf: None,
            offload: None,
        }
    }

    /// Its keys, as in a configuration file.
    pub(super) fn keys(&self) -> toml::Value {
        // A table of plain values has a value.
        toml::Value::try_from(self).unwrap_or(toml::Value::Table(toml::Table::new()))
    }

    /// Joined by another device than a TAP.
    #[must_use]
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// With another name of its interface than `eth0`.
    #[must_use]
    pub fn interface(mut self, name: &str) -> Self {
        self.interface = Some(name.to_owned());
        self
    }

    /// With these addresses of the NOS instead of all.
    #[must_use]
    pub fn addresses(mut self, addresses: &[IpAddr]) -> Self {
        self.addresses = Some(addresses.iter().map(IpAddr::to_string).collect());
        self
    }

    /// With more TCP ports on which it can be reached: `"179"`, `"20000-20999"`, `"!20500"`.
    #[must_use]
    pub fn tcp(mut self, ports: &str) -> Self {
        self.tcp.push(ports.to_owned());
        self
    }

    /// With more UDP ports on which it can be reached.
    #[must_use]
    pub fn udp(mut self, ports: &str) -> Self {
        self.udp.push(ports.to_owned());
        self
    }

    /// With more ports from which it opens flows of its own.
    #[must_use]
    pub fn ephemeral(mut self, ports: &str) -> Self {
        self.ephemeral.push(ports.to_owned());
        self
    }

    /// In another VRF than `"default"`.
    #[must_use]
    pub fn vrf(mut self, name: &str) -> Self {
        self.vrf = Some(name.to_owned());
        self
    }

    /// Whether checksum and segmentation offload may be used; it is unless this says otherwise.
    #[must_use]
    pub fn offload(mut self, may: bool) -> Self {
        self.offload = Some(may);
        self
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Settings {
    #[serde(skip_serializing_if = "Option::is_none")]
    buffers: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ring: Option<u32>,
}

/// What a relay is started with.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    /// In front of the entries.
    config: String,
    entries: Entries,
    control: Option<PathBuf>,
    state: Option<PathBuf>,
    strict: bool,
}

/// What a configuration file has, too.
#[derive(Clone, Debug, Default, Serialize)]
struct Entries {
    #[serde(skip_serializing_if = "is_default")]
    relay: Settings,
    #[serde(rename = "uplink", skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<Interface>,
    #[serde(rename = "container", skip_serializing_if = "Vec::is_empty")]
    containers: Vec<Container>,
}

/// A table without keys would be another one beside that of a text.
fn is_default(settings: &Settings) -> bool {
    *settings == Settings::default()
}

impl Builder {
    /// With what a configuration file has, besides what the other methods say; another text replaces it.
    /// An interface of the NOS is an `[[uplink]]` with `device = "nos"`. It is checked at the start, and
    /// its lines are those of errors.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        toml.clone_into(&mut self.config);
        self
    }

    /// With another interface of the NOS; at least one is needed.
    #[must_use]
    pub fn interface(mut self, interface: Interface) -> Self {
        self.entries.interfaces.push(interface);
        self
    }

    /// With another container.
    #[must_use]
    pub fn container(mut self, container: Container) -> Self {
        self.entries.containers.push(container);
        self
    }

    /// With so many frame buffers instead of 2048: 256 to 65536.
    #[must_use]
    pub fn buffers(mut self, count: u32) -> Self {
        self.entries.relay.buffers = Some(count);
        self
    }

    /// With rings of so many bursts instead of 8: 8 to 4096.
    #[must_use]
    pub fn ring(mut self, bursts: u32) -> Self {
        self.entries.relay.ring = Some(bursts);
        self
    }

    /// With a control socket at this path, at which `nos-relay show` and others may ask.
    #[must_use]
    pub fn control(mut self, path: impl Into<PathBuf>) -> Self {
        self.control = Some(path.into());
        self
    }

    /// With a directory in which what is registered at run time outlives the relay.
    #[must_use]
    pub fn state(mut self, directory: impl Into<PathBuf>) -> Self {
        self.state = Some(directory.into());
        self
    }

    /// Ending at once where a container cannot be attached at the start, instead of waiting for what is
    /// missing.
    #[must_use]
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// The same as a configuration file would have it.
    pub(super) fn text(&self) -> String {
        // Tables of plain values have a text.
        let entries = toml::to_string(&self.entries).unwrap_or_default();
        match self.config.as_str() {
            "" => entries,
            config => format!("{config}\n{entries}"),
        }
    }

    fn options(&self) -> Result<EmbeddedOptions, ConfigErrors> {
        Ok(EmbeddedOptions {
            file: ConfigFile::parse_for(NosPlace::Elsewhere, NAME, &self.text())?,
            control: self.control.clone(),
            state: self.state.clone(),
            strict: self.strict,
        })
    }

    /// Starts the relay, with a control thread of its own. Containers are attached behind this, for which
    /// the NOS has to answer: see [`Relay::await_ready`].
    ///
    /// # Errors
    ///
    /// [`RelayError`]; the configuration is checked as a whole, and nothing is in place then.
    pub fn start(&self) -> Result<(Relay, NosPort), RelayError> {
        let (runner, relay, port) = self.prepare()?;
        let run = move || runner.daemon.run(true);
        let spawned = thread::Builder::new()
            .name("relay control".to_owned())
            .spawn(run);
        *relay.running.thread.lock() = Some(spawned.map_err(RelayError::Thread)?);
        Ok((relay, port))
    }

    /// The same with the control thread's work left to a thread of the caller's.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub fn prepare(&self) -> Result<(Runner, Relay, NosPort), RelayError> {
        let options = self.options().map_err(DaemonError::from)?;
        let (daemon, orders, port) = EmbeddedDaemon::start(options)?;
        let relay = Relay::new(orders);
        Ok((Runner { daemon }, relay, port))
    }
}
