//! The usual network with a daemon in it, in all the variants in which it must work.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where its network cannot be built"
)]

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use nos_relay::lab::testbed::{LabNamespace, Topology, tun_access};

use super::daemon::Daemon;
use super::skip;

/// How the containers are joined and the daemon's work is shared out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variant {
    /// Kind of the first container's device: `tap` or `veth`.
    pub(crate) device: &'static str,
    /// `single` or `split`.
    pub(crate) threads: &'static str,
    /// Offload towards the containers, and towards the network.
    pub(crate) offload: [bool; 2],
}

impl Variant {
    /// What needs least, for scenarios where it makes no difference.
    pub(crate) const PLAIN: Self = Self {
        device: "veth",
        threads: "single",
        offload: [true, true],
    };

    /// Whether this machine can do it; if not, says so.
    pub(crate) fn is_possible(self) -> bool {
        match tun_access() {
            Err(error) if self.device == "tap" => {
                skip(&format!("{self:?}: /dev/net/tun cannot be opened: {error}"));
                false
            }
            _ => true,
        }
    }
}

/// Defines a scenario in every variant: each is a test of its own.
macro_rules! each_variant {
    ($(#[$attribute:meta])* fn $name:ident($variant:ident) $body:block) => {
        $(#[$attribute])*
        mod $name {
            use super::*;

            fn scenario($variant: $crate::support::scenario::Variant) $body

            $crate::support::scenario::variant_tests! {
                tap_single: ("tap", "single", [true, true]),
                tap_single_plain: ("tap", "single", [false, false]),
                tap_split: ("tap", "split", [true, true]),
                tap_split_plain: ("tap", "split", [false, false]),
                veth_single: ("veth", "single", [true, true]),
                veth_single_plain: ("veth", "single", [false, false]),
                veth_split: ("veth", "split", [true, true]),
                veth_split_plain: ("veth", "split", [false, false]),
            }
        }
    };
}
pub(crate) use each_variant;

macro_rules! variant_tests {
    ($($test:ident: ($device:literal, $threads:literal, $offload:expr),)+) => {
        $($crate::support::lab_test! {
            fn $test() {
                let variant = $crate::support::scenario::Variant {
                    device: $device,
                    threads: $threads,
                    offload: $offload,
                };
                if variant.is_possible() {
                    scenario(variant);
                }
            }
        })+
    };
}
pub(crate) use variant_tests;

/// Containers `web` and `db` on the NOS's address, and X on its uplink.
#[derive(Debug)]
pub(crate) struct Scenario {
    // First, so that it is stopped while the networks are there.
    pub(crate) daemon: Daemon,
    pub(crate) topology: Topology,
    pub(crate) config: String,
}

/// One family's addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family {
    /// The NOS's, which containers share.
    pub(crate) nos: IpAddr,
    /// X's.
    pub(crate) external: IpAddr,
    /// What sockets are bound to.
    pub(crate) any: IpAddr,
}

pub(crate) const V4: Family = Family {
    nos: IpAddr::V4(Topology::DEVICE_V4),
    external: IpAddr::V4(Topology::EXTERNAL_V4),
    any: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
};

pub(crate) const V6: Family = Family {
    nos: IpAddr::V6(Topology::DEVICE_V6),
    external: IpAddr::V6(Topology::EXTERNAL_V6),
    any: IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
};

pub(crate) const FAMILIES: [Family; 2] = [V4, V6];

impl Family {
    pub(crate) fn is_v6(&self) -> bool {
        self.nos.is_ipv6()
    }

    pub(crate) fn nos_port(&self, port: u16) -> SocketAddr {
        (self.nos, port).into()
    }

    pub(crate) fn external_port(&self, port: u16) -> SocketAddr {
        (self.external, port).into()
    }
}

/// Ports on which the first container is reached.
pub(crate) const WEB: RangeInclusive<u16> = 20000..=20999;
/// From which it opens flows.
pub(crate) const WEB_EPHEMERAL: RangeInclusive<u16> = 40000..=44999;
/// Ports on which the second container is reached.
pub(crate) const DB: RangeInclusive<u16> = 21000..=21999;
/// From which it opens flows.
pub(crate) const DB_EPHEMERAL: RangeInclusive<u16> = 45000..=49999;

impl Scenario {
    /// With containers `web`, of the variant's kind, and `db`, a veth.
    pub(crate) fn new(variant: Variant) -> Self {
        Self::with(variant, "")
    }

    /// The same with more text at the end of the configuration.
    pub(crate) fn with(variant: Variant, more: &str) -> Self {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let config = config(&topology, variant) + more;
        let daemon = Daemon::start(&topology.device, &config);
        Self {
            daemon,
            topology,
            config,
        }
    }

    pub(crate) fn web(&self) -> &LabNamespace {
        &self.topology.containers[0]
    }

    pub(crate) fn db(&self) -> &LabNamespace {
        &self.topology.containers[1]
    }

    pub(crate) fn external(&self) -> &LabNamespace {
        &self.topology.external
    }

    /// The configuration with one part replaced, which must be there.
    pub(crate) fn edited(&self, from: &str, to: &str) -> String {
        edited(&self.config, from, to)
    }
}

/// `config` with one part replaced, which must be there.
pub(crate) fn edited(config: &str, from: &str, to: &str) -> String {
    assert!(config.contains(from), "{from:?} is not in {config}");
    config.replacen(from, to, 1)
}

/// The configuration for `web`, `db` and the usual uplink.
pub(crate) fn config(topology: &Topology, variant: Variant) -> String {
    let [web, db] = [0, 1].map(|index| topology.containers[index].path());
    let Variant {
        device,
        threads,
        offload: [container_offload, uplink_offload],
    } = variant;
    format!(
        r#"
[relay]
threads = "{threads}"

[[uplink]]
name = "up0"
device = "packet:hx"
addresses = ["203.0.113.1/24", "2001:db8:1::1/64"]
offload = {uplink_offload}

[[container]]
name = "web"
netns = "{}"
device = "{device}"
offload = {container_offload}
tcp = ["20000-20999", "179"]
udp = ["20000-20999"]
ephemeral = "40000-44999"

[[container]]
name = "db"
netns = "{}"
device = "veth"
offload = {container_offload}
tcp = ["21000-21999"]
udp = ["21000-21999"]
ephemeral = "45000-49999"
"#,
        web.display(),
        db.display(),
    )
}
