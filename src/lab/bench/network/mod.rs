//! The network of a path: container, external host, and what is between them.
//!
//! ```text
//! container C ── the path ── external host X
//! 203.0.113.1                203.0.113.2
//! 2001:db8:1::1              2001:db8:1::2
//! ```
//!
//! On every path C reaches X, and X reaches C's [`LISTEN`] ports, at these addresses, whatever C's
//! own address is. All of it vanishes with the value.

mod bare;
mod kernel;
mod peers;
pub(super) mod relay;

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::account;
use super::children::{Children, Process};
use super::error::BenchError;
use super::path::Path;
use super::plan::Setting;
use super::traffic::{IpVersion, Route, Way};
use crate::control::api::{self, Request, Response, Table};
use crate::lab::testbed::{LabError, LabNamespace, Topology, Vxlan};

/// Ports on which C can be reached on every path.
const LISTEN: RangeInclusive<u16> = 20_000..=20_019;
/// Ports from which C opens flows.
const EPHEMERAL: RangeInclusive<u16> = 30_000..=44_999;
/// First port on which X listens.
const EXTERNAL_PORT: u16 = 5201;

/// Octets that IPv4, UDP, VXLAN and the inner Ethernet header take.
const VXLAN_HEADERS: u32 = 20 + 8 + 8 + 14;

/// Time for an interface to appear or get its carrier.
const LINK_LIMIT: Duration = Duration::from_secs(10);
const QUERY_LIMIT: Duration = Duration::from_secs(5);

/// A path in place.
pub(super) struct Network {
    pub(super) path: Path,
    pub(super) container: LabNamespace,
    /// Another container, where the path has room for one.
    pub(super) second: Option<LabNamespace>,
    pub(super) external: LabNamespace,
    /// The process that forwards.
    pub(super) forwarder: Option<Process>,
    /// Resident octets of that process before any traffic.
    pub(super) resident: Option<u64>,
    /// What detaches and attaches the setting's crowd.
    pub(super) reload: Option<relay::Reload>,
    /// Interfaces whose transmit queue is part of the path.
    queues: Vec<(LabNamespace, String)>,
    losses: Losses,
    /// Whether traffic goes through [`Self::add_tunnel`]'s.
    tunneled: bool,
    next: Cell<u16>,
    /// What must live as long as the path.
    _kept: Vec<LabNamespace>,
}

/// Who else counts packets that found a queue full.
enum Losses {
    /// Nobody.
    Nobody,
    /// The relay, over its control socket.
    Relay(PathBuf),
    /// The bare forwarder, over its stdin.
    Bare,
}

impl Network {
    /// Builds a path.
    pub(super) fn build(
        children: &Children,
        path: Path,
        setting: Setting,
    ) -> Result<Self, BenchError> {
        let mut network = match path {
            Path::RelayTap | Path::RelayTapSplit => relay::tap(children, path, setting),
            Path::RelayVeth | Path::RelayVethSplit | Path::RelayBridge => {
                relay::veth(children, path, setting)
            }
            Path::BareTap | Path::BareTapSingle | Path::BareTapUring => {
                bare::tap(children, path, setting)
            }
            Path::BarePacket | Path::BarePacketUring => bare::packet(children, path, setting),
            Path::Kernel => kernel::build(children, setting),
            Path::Pasta | Path::Pasta1500 => peers::pasta(children, path),
            Path::Slirp4netns | Path::Slirp4netns1500 => peers::slirp4netns(children, path),
        }?;
        if setting.tunnel {
            network.add_tunnel(u32::from(setting.mtu))?;
        }
        if let Some(process) = &network.forwarder {
            network.resident = account::resident(process.pid()).ok();
        }
        Ok(network)
    }

    fn new(path: Path, container: LabNamespace, external: LabNamespace) -> Self {
        Self {
            path,
            container,
            second: None,
            external,
            forwarder: None,
            resident: None,
            reload: None,
            queues: Vec::new(),
            losses: Losses::Nobody,
            tunneled: false,
            next: Cell::new(0),
            _kept: Vec::new(),
        }
    }

    /// Joins container and X by a VXLAN tunnel over the path.
    fn add_tunnel(&mut self, mtu: u32) -> Result<(), LabError> {
        let [near, far] = [
            shared_address(IpVersion::V4),
            external_address(IpVersion::V4),
        ];
        for (namespace, local, remote, way) in [
            (&self.container, near, far, Way::In),
            (&self.external, far, near, Way::Out),
        ] {
            let vxlan = Vxlan {
                local,
                remote,
                port: *LISTEN.end(),
                checksum: true,
                mtu: mtu.saturating_sub(VXLAN_HEADERS),
            };
            namespace.add_vxlan("vxlan0", vxlan)?;
            namespace.add_address("vxlan0", IpNet::new_assert(tunnel_address(way), 24))?;
        }
        self.tunneled = true;
        Ok(())
    }

    /// Who connects to whom, and where; the port is another one each time.
    pub(super) fn route(&self, way: Way, ip: IpVersion) -> Route<'_> {
        self.route_from(&self.container, way, ip)
    }

    /// The same from the second container to X.
    pub(super) fn second_route(&self) -> Option<Route<'_>> {
        let second = self.second.as_ref()?;
        Some(self.route_from(second, Way::Out, IpVersion::V4))
    }

    fn route_from<'a>(&'a self, container: &'a LabNamespace, way: Way, ip: IpVersion) -> Route<'a> {
        let any = match ip {
            IpVersion::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpVersion::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let number = self.next.get();
        self.next.set((number + 1) % 20);
        let external = &self.external;
        let (client, server, address, port) = match way {
            Way::Out => (container, external, external_address(ip), EXTERNAL_PORT),
            Way::In => (external, container, shared_address(ip), *LISTEN.start()),
        };
        let address = if self.tunneled {
            tunnel_address(way)
        } else {
            address
        };
        Route {
            client,
            server,
            connect: SocketAddr::new(address, port + number),
            listen: SocketAddr::new(any, port + number),
        }
    }

    /// The relay's control socket.
    pub(super) fn control(&self) -> Option<&std::path::Path> {
        match &self.losses {
            Losses::Relay(control) => Some(control),
            _ => None,
        }
    }

    /// The forwarding process's end, if it was not asked for.
    pub(super) fn check_alive(&self) -> Result<(), BenchError> {
        match self.forwarder.as_ref().and_then(Process::death) {
            Some(death) => Err(death),
            None => Ok(()),
        }
    }

    /// Packets that found a queue full, so far, as far as anybody counts them.
    pub(super) fn lost_in_queues(&self) -> Option<u64> {
        let mut lost = 0;
        for (namespace, interface) in &self.queues {
            lost += namespace.link(interface).ok()??.statistics.tx_dropped;
        }
        let counted = match &self.losses {
            Losses::Nobody if self.queues.is_empty() => return None,
            Losses::Nobody => 0,
            Losses::Relay(control) => relay::lost(control)?,
            Losses::Bare => {
                let answer = self.forwarder.as_ref()?.ask("drops").ok()?;
                answer.parse().ok()?
            }
        };
        Some(lost + counted)
    }

    /// What is wrong with the relay's accounts: packets that are neither sent, nor held, nor
    /// dropped for a reason.
    pub(super) fn unaccounted(&self) -> Option<String> {
        match &self.losses {
            Losses::Relay(control) => relay::unaccounted(control),
            _ => None,
        }
    }
}

/// The address inside of the tunnel of whoever listens.
fn tunnel_address(way: Way) -> IpAddr {
    let last = match way {
        Way::In => 1,
        Way::Out => 2,
    };
    Ipv4Addr::new(10, 9, 0, last).into()
}

/// The container's address for outsiders.
fn shared_address(ip: IpVersion) -> IpAddr {
    match ip {
        IpVersion::V4 => IpAddr::V4(Topology::DEVICE_V4),
        IpVersion::V6 => IpAddr::V6(Topology::DEVICE_V6),
    }
}

fn external_address(ip: IpVersion) -> IpAddr {
    match ip {
        IpVersion::V4 => IpAddr::V4(Topology::EXTERNAL_V4),
        IpVersion::V6 => IpAddr::V6(Topology::EXTERNAL_V6),
    }
}

/// The shared addresses with the prefixes of X's network.
fn shared_networks() -> [IpNet; 2] {
    [
        IpNet::new_assert(shared_address(IpVersion::V4), 24),
        IpNet::new_assert(shared_address(IpVersion::V6), 64),
    ]
}

/// What the relay does to a container: without it, paths would differ in their source ports.
fn set_ephemeral(container: &LabNamespace) -> Result<(), LabError> {
    let range = format!("{} {}", EPHEMERAL.start(), EPHEMERAL.end());
    container.sysctl("net/ipv4/ip_local_port_range", &range)
}

pub(super) fn show(control: &std::path::Path, table: Table) -> Option<Response> {
    api::query(control, &Request::Show { table }, QUERY_LIMIT).ok()
}

/// A new namespace that never speaks IPv6 by itself: every frame there is the path's.
fn silent(label: &str) -> Result<LabNamespace, LabError> {
    let namespace = LabNamespace::new(label)?;
    namespace.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    Ok(namespace)
}
