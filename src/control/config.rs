//! Configuration: TOML text in, validated typed config out.
//!
//! # Theory of operation
//!
//! [`Config::parse`] is pure: it reads neither files nor interfaces. It works in three steps, so
//! that one run reports as many mistakes as can be told apart:
//!
//! 1. `document`: TOML into a tree whose keys and values know where they stand. Broken syntax ends
//!    here.
//! 2. `entries`: each table into an entry of typed values. A bad value is reported and spoils its
//!    own entry only.
//! 3. `check`: what concerns several entries, over those that are sound. A check that needs all
//!    uplinks is left out when one of them is spoilt, lest a mistake be reported twice.
//!
//! Every error names file, line, key and reason. What a [`Config`] holds has passed all checks:
//! next hops are resolved to uplinks, containers have their addresses and MTU.
//!
//! Every key is described in `docs/configuration.md`.

use core::fmt;
use core::net::IpAddr;
use core::num::NonZeroU32;
use core::str::FromStr;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use nos_shim::ident::MacAddr;
use nos_shim::ports::{AddressMode, Outside, Policy, PortRange};
use nos_shim::prefix_set::PrefixSet;
use nos_shim::shim::Upstream;
use nos_shim::vlan::VlanId;
use thiserror::Error;

use crate::control::api::Access;
use crate::control::memif;
use crate::interface_name::InterfaceName;

mod bridges;
mod channel;
mod check;
mod claims;
mod document;
mod entries;
mod networks;
mod place;
mod pools;
mod port_list;
mod report;
mod restart;
mod routing;
mod runtime;
mod sharing;
mod values;
mod vrf;

pub use nos_shim::services::{Service, ServiceConfig};
pub use pools::{
    AddressRange, Amount, DEFAULT_POOL, Elastic, MAX_POOL, MAX_WORKLOAD, PoolDefinition, PoolKind,
    PoolRequest, Released, TOTAL_POOL,
};
pub use report::{ConfigError, ConfigErrors, PortClash};
pub use restart::NeedsRestart;
pub(crate) use runtime::serialize_interface;
pub use runtime::{
    Aside, BadRecord, BootId, Change, Changed, ConfigFile, Fitted, Holder, Holders, Keys, Orphans,
    Overlay, PoolAction, PortsAction, ProcessIdentity, Record, Registration, RegistrationKind,
    Touched, endpoint_name,
};
pub use vrf::VrfName;

/// Octets of the longest configuration that is read: room for some 20,000 containers.
pub const MAX_TEXT: usize = 4 << 20;

/// The whole configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The process itself.
    pub relay: RelayConfig,
    /// Who may ask at run time. It takes effect at start only.
    pub control: Access,
    /// Where the NOS is in another process. It takes effect at start only.
    pub upstream: Option<Upstream>,
    /// Interfaces of the NOS towards the network, in the order of the file; at least one. In front of a
    /// NOS in another process the link to it, alone.
    pub uplinks: Vec<Uplink>,
    /// Static routes, in the order of the file.
    pub routes: Vec<Route>,
    /// Networks of containers, in the order of the file.
    pub networks: Vec<ContainerNetwork>,
    /// Containers to attach, in the order of the file.
    pub containers: Vec<Container>,
    /// What the NOS itself offers in each VRF. One that is not here answers pings, and that is all.
    pub services: BTreeMap<VrfName, ServiceConfig>,
    /// Out of which ranges of ports are allocated; none when empty.
    pub pool: Vec<PortRange>,
}

/// Settings of the process. They take effect at start only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayConfig {
    /// Who polls which end of the channel.
    pub threads: Threads,
    /// Frame buffers in the pool.
    pub buffers: NonZeroU32,
    /// Bursts that each ring of the channel holds.
    pub ring: NonZeroU32,
    /// Whether bursts are handed to the kernel by io_uring.
    pub io_uring: IoUring,
    /// Flows that the NOS remembers, where a policy needs them.
    pub flows: NonZeroU32,
}

impl RelayConfig {
    /// Frame buffers unless the configuration says otherwise.
    pub const DEFAULT_BUFFERS: NonZeroU32 = NonZeroU32::new(2048).unwrap();
    /// Bursts a ring unless the configuration says otherwise.
    pub const DEFAULT_RING: NonZeroU32 = NonZeroU32::new(8).unwrap();
    /// Flows unless the configuration says otherwise.
    pub const DEFAULT_FLOWS: NonZeroU32 = NonZeroU32::new(65_536).unwrap();
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            threads: Threads::default(),
            buffers: Self::DEFAULT_BUFFERS,
            ring: Self::DEFAULT_RING,
            io_uring: IoUring::default(),
            flows: Self::DEFAULT_FLOWS,
        }
    }
}

/// How the data path is spread over threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Threads {
    /// One event loop drives relay and NOS.
    #[default]
    Single,
    /// Relay and NOS run in a thread each.
    Split,
}

impl fmt::Display for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Single => "single",
            Self::Split => "split",
        })
    }
}

/// Whether bursts are handed to the kernel by io_uring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoUring {
    /// Where it can be had.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Always: the process does not start without it.
    On,
}

impl fmt::Display for IoUring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Off => "off",
            Self::On => "on",
        })
    }
}

/// An interface of the NOS towards the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Unique among uplinks.
    pub name: Name,
    /// The device behind it. With its VLAN it is unique among uplinks; only of a packet socket's interface
    /// several uplinks have VLANs, at most [`Self::MAX_ON_DEVICE`].
    pub device: UplinkDevice,
    /// The VLAN of the device that it is; `None` for the frames without a tag.
    pub vlan: Option<VlanId>,
    /// Addresses of the NOS with their network's prefix length; at least one. No two uplinks of a VRF
    /// share one.
    pub addresses: Vec<IpNet>,
    /// Longest IP packet.
    pub mtu: Mtu,
    /// MAC address, unicast; the device's own, or one made from the name, when not given.
    pub mac: Option<MacAddr>,
    /// Whether checksum and segmentation offload may be used.
    pub offload: bool,
    /// Whether hosts on its link are told of better first hops there.
    pub redirects: bool,
    /// Multicast groups that the NOS is in on its link, besides those of its addresses; each once, at
    /// most [`Self::MAX_GROUPS`].
    pub groups: Vec<IpAddr>,
    /// Its VRF.
    pub vrf: VrfName,
    /// File for a pcapng capture of all its frames.
    pub capture: Option<PathBuf>,
}

impl Uplink {
    /// The most groups of an uplink: each packet to a group is compared with all of them.
    pub const MAX_GROUPS: usize = 256;
    /// The most uplinks of an interface: each has a socket, and the kernel asks each whether a frame is for it.
    pub const MAX_ON_DEVICE: usize = 256;
}

/// The device behind an uplink.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UplinkDevice {
    /// A packet socket on an interface that exists.
    Packet(InterfaceName),
    /// A TAP that is made under this name.
    Tap(InterfaceName),
    /// Memory that is shared with another process.
    Memif(memif::Options),
    /// An interface of the NOS, of which nothing is known here: where the NOS is not the one of this
    /// program ([`NosPlace::Elsewhere`]).
    Nos,
}

impl UplinkDevice {
    /// The interface that is used or made here.
    #[must_use]
    pub fn interface(&self) -> Option<&InterfaceName> {
        match self {
            Self::Packet(name) | Self::Tap(name) => Some(name),
            Self::Memif(_) | Self::Nos => None,
        }
    }
}

/// Where the NOS is for which containers are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NosPlace {
    /// It is [`nos_shim::shim::Shim`], on a data thread.
    #[default]
    Here,
    /// It is whoever has the other end of the channel. It has uplinks, routes and services of its own:
    /// each uplink has `device = "nos"`, and says which addresses there are.
    Elsewhere,
}

impl fmt::Display for UplinkDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packet(name) => write!(f, "packet:{name}"),
            Self::Tap(name) => write!(f, "tap:{name}"),
            Self::Memif(options) => write!(f, "memif:{}", options.address),
            Self::Nos => f.write_str("nos"),
        }
    }
}

/// A static route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Destinations; host bits are zero.
    pub prefix: IpNet,
    /// What to do with packets to them.
    pub action: RouteAction,
    /// Preference among routes to the same prefix: the lowest wins.
    pub metric: u16,
    /// Its VRF.
    pub vrf: VrfName,
}

/// What a static route does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RouteAction {
    /// Forward to one of these, at least one, chosen by flow.
    Via(Vec<NextHop>),
    /// Discard silently.
    Blackhole,
    /// Refuse with an ICMP error.
    Unreachable,
}

/// A router on an uplink's network.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// Its address: on a network of the uplink, or IPv6 link-local.
    pub address: IpAddr,
    /// The uplink to reach it by, whether the configuration says so or only one fits.
    pub uplink: Name,
}

/// What containers have in common. Those of different networks are kept apart: none gets what another one
/// sends to an address that both share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerNetwork {
    /// Unique among networks.
    pub name: Name,
    /// How its containers are reached.
    pub mode: NetworkMode,
    /// The VRF that its containers are in.
    pub vrf: VrfName,
    /// The uplinks whose addresses they share, or in whose networks they may have some of their own; all of
    /// the VRF if there is none here.
    pub uplinks: Vec<Name>,
    /// The pool of those that have addresses of their own and name no other.
    pub pool: Option<Name>,
    /// The kind of device that joins those that name none.
    pub device: Option<ContainerDevice>,
    /// Where those may open flows to that do not say it themselves.
    pub to: Option<Arc<PrefixSet>>,
    /// Who may open flows to those with addresses of their own that do not say it themselves.
    pub from: Option<Arc<PrefixSet>>,
    /// What becomes of what those send from ports of nobody that do not say it themselves.
    pub outside: Option<Outside>,
}

/// How the containers of a network are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkMode {
    /// By addresses of the NOS, on ports of their own.
    #[default]
    Shared,
    /// By addresses of their own, to which the NOS has routes.
    Routed,
    /// As [`Self::Shared`], and by each other on a Linux bridge.
    Bridge,
}

impl NetworkMode {
    /// Whose the addresses of its containers are.
    #[must_use]
    pub fn addresses(self) -> AddressMode {
        match self {
            Self::Shared | Self::Bridge => AddressMode::Shared,
            Self::Routed => AddressMode::Routed,
        }
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "shared",
            Self::Routed => "routed",
            Self::Bridge => "bridge",
        })
    }
}

/// A container to attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Unique among containers.
    pub name: Name,
    /// Its network namespace.
    pub netns: NetnsRef,
    /// The network that it is in.
    pub network: Option<Name>,
    /// The kind of device that joins it.
    pub device: ContainerDevice,
    /// The interface's name inside.
    pub interface: InterfaceName,
    /// Addresses of the interface itself, with their networks, by which the other stations of its bridge reach it.
    pub link_addresses: Vec<IpNet>,
    /// Whose its addresses are.
    pub mode: AddressMode,
    /// NOS addresses in its VRF that it uses as its own, or such as are its own; the first of each family is
    /// the preferred source.
    pub addresses: Vec<IpAddr>,
    /// The uplink of its VRF whose link-local address it uses as its own, to talk with the neighbors on
    /// that link.
    pub link_local: Option<Name>,
    /// Networks of the uplinks of its VRF, each once, without host bits; the same of all containers
    /// of the VRF.
    pub networks: Arc<[IpNet]>,
    /// MTU of its interface: the least of the uplinks that hold its addresses, and what its device
    /// can.
    pub mtu: Mtu,
    /// TCP ports on which outsiders may open connections; no overlaps.
    pub tcp: Vec<PortRange>,
    /// UDP ports that it receives on; no overlaps.
    pub udp: Vec<PortRange>,
    /// TCP and UDP ports from which it opens flows of its own; no overlaps.
    pub ephemeral: Vec<PortRange>,
    /// With whom it may talk.
    pub policy: Policy,
    /// MAC address of its interface, unicast; one made from the name when not given.
    pub mac: Option<MacAddr>,
    /// Whether checksum and segmentation offload may be used.
    pub offload: bool,
    /// Its VRF.
    pub vrf: VrfName,
    /// File for a pcapng capture of all its frames.
    pub capture: Option<PathBuf>,
}

/// The kind of device that joins a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerDevice {
    /// A TAP inside the container's namespace.
    Tap,
    /// A veth pair, with a packet socket on the host end.
    Veth,
    /// The same, where the host end is a port of this bridge, and the relay hears what is for it.
    Bridge(InterfaceName),
    /// A veth that somebody else has made, and that stays as it is. The relay hears at its host end what is for it.
    Existing,
}

impl ContainerDevice {
    /// Whether others than the container and the relay may be on the link.
    #[must_use]
    pub fn is_on_segment(&self) -> bool {
        matches!(self, Self::Bridge(_) | Self::Existing)
    }
}

impl fmt::Display for ContainerDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tap => "tap",
            Self::Veth => "veth",
            Self::Bridge(bridge) => return write!(f, "bridge:{bridge}"),
            Self::Existing => "existing",
        })
    }
}

/// What names a network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NetnsRef {
    /// A file that stands for it, as under `/run/netns`; absolute.
    Path(PathBuf),
    /// The namespace of this process.
    Pid(NonZeroU32),
}

impl NetnsRef {
    /// The file that stands for the namespace.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        }
    }
}

impl fmt::Display for NetnsRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Pid(pid) => write!(f, "pid {pid}"),
        }
    }
}

/// The name of an uplink or a container: 1 to 64 of `A-Z a-z 0-9 . _ -`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// Text that cannot be a [`Name`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// No character, or more than 64.
    #[error("has {0} characters; a name has 1 to 64")]
    Length(usize),
    /// A character outside the set.
    #[error("contains {0:?}; a name is made of letters, digits, '.', '_' and '-'")]
    Character(char),
}

macro_rules! text_newtype {
    ($name:ident, $error:ident, $check:ident) => {
        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, $error> {
                $check(text).map(|()| Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

text_newtype!(Name, NameError, check_name);

impl Name {
    /// That of the link to a NOS in another process.
    pub(crate) fn nos() -> Self {
        Self("nos".to_owned())
    }
}

fn check_name(text: &str) -> Result<(), NameError> {
    let allowed = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
    match text.chars().find(|c| !allowed(c)) {
        Some(other) => Err(NameError::Character(other)),
        None if (1..=64).contains(&text.len()) => Ok(()),
        None => Err(NameError::Length(text.len())),
    }
}

/// Octets of the longest IP packet on a link: 576 to 65535, and at least 1280 where IPv6 is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtu(u16);

impl Mtu {
    /// Of Ethernet.
    pub const DEFAULT: Self = Self(1500);
    /// The least that IPv4 hosts can count on (RFC 791 §3.1).
    pub const MIN_IPV4: Self = Self(576);
    /// The least of a link that carries IPv6 (RFC 8200 §5).
    pub const MIN_IPV6: Self = Self(1280);
    /// The longest IP packet.
    pub const MAX: Self = Self(65_535);
    /// The most that the kernel gives a TAP: its frames, with the Ethernet header, have at most
    /// 65,535 octets.
    pub const MAX_TAP: Self = Self(65_521);

    /// An MTU of `octets`, or `None` when they are less than [`Self::MIN_IPV4`].
    #[must_use]
    pub const fn new(octets: u16) -> Option<Self> {
        if octets < Self::MIN_IPV4.0 {
            return None;
        }
        Some(Self(octets))
    }

    /// The number of octets.
    #[must_use]
    pub const fn octets(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Config {
    /// Reads a configuration from `text`; `file_name` is what errors call it.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it, in the order of the lines, see [`ConfigErrors`].
    pub fn parse(file_name: &str, text: &str) -> Result<Self, ConfigErrors> {
        let report = report::Report::new(file_name, text);
        let config = document::parse(&report, text)
            .map(|document| check::config(&report, entries::read(&report, &document)));
        report.finish(config)
    }

    /// Reads the file at `path` and parses it.
    ///
    /// # Errors
    ///
    /// As [`Self::parse`], and when the file cannot be read, is longer than [`MAX_TEXT`], or is not
    /// UTF-8.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let (name, text) = read_text(path)?;
        Self::parse(&name, &text)
    }

    /// The uplink of this name.
    #[must_use]
    pub fn uplink(&self, name: &Name) -> Option<&Uplink> {
        self.uplinks.iter().find(|uplink| uplink.name == *name)
    }

    /// The network of this name.
    #[must_use]
    pub fn network(&self, name: &Name) -> Option<&ContainerNetwork> {
        self.networks.iter().find(|network| network.name == *name)
    }

    /// The container of this name.
    #[must_use]
    pub fn container(&self, name: &Name) -> Option<&Container> {
        self.containers
            .iter()
            .find(|container| container.name == *name)
    }
}

/// The file's name, as errors call it, and its text.
fn read_text(path: &Path) -> Result<(String, String), ConfigErrors> {
    let name = path.display().to_string();
    let octets = read_bounded(path).map_err(|error| ConfigErrors::unreadable(&name, &error))?;
    let text = String::from_utf8(octets)
        .map_err(|error| ConfigErrors::not_text(&name, error.as_bytes(), error.utf8_error()))?;
    Ok((name, text))
}

/// Reads at most one octet more than is allowed, which `Config::parse` then refuses.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut octets = Vec::new();
    let limit = MAX_TEXT as u64 + 1;
    File::open(path)?.take(limit).read_to_end(&mut octets)?;
    Ok(octets)
}
