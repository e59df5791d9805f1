//! The demo's network and its configuration.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::control::config::ContainerDevice;
use crate::lab::testbed::{LabError, LabNamespace, Topology, tun_access};

/// Port of the NOS's status page.
pub(super) const HTTP_PORT: u16 = 8080;
/// Port of the NOS's echo service (RFC 862).
pub(super) const ECHO_PORT: u16 = 7;

/// Everything but the daemon.
pub(super) struct Network {
    pub(super) topology: Topology,
    pub(super) web: Container,
    pub(super) db: Container,
    /// What is not as it would be elsewhere.
    notes: Vec<String>,
}

/// A container, and what it may use of the shared addresses.
pub(super) struct Container {
    pub(super) name: &'static str,
    pub(super) namespace: LabNamespace,
    pub(super) device: ContainerDevice,
    /// TCP and UDP ports on which it can be reached.
    pub(super) listen: RangeInclusive<u16>,
    /// TCP and UDP ports from which it opens flows of its own.
    pub(super) ephemeral: RangeInclusive<u16>,
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The NOS's address, which the containers share.
    pub(super) const fn nos(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Topology::DEVICE_V4),
            Self::V6 => IpAddr::V6(Topology::DEVICE_V6),
        }
    }

    /// X's address.
    pub(super) const fn external(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Topology::EXTERNAL_V4),
            Self::V6 => IpAddr::V6(Topology::EXTERNAL_V6),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Network {
    /// Builds it; `user_namespace` says that this took one.
    pub(super) fn build(user_namespace: bool) -> Result<Self, LabError> {
        let mut notes = Vec::new();
        if user_namespace {
            notes.push("Run by an ordinary user, in a user namespace.".to_owned());
        }
        let web_device = match tun_access() {
            Ok(()) => ContainerDevice::Tap,
            Err(error) => {
                notes.push(format!("web has no TAP here: /dev/net/tun: {error}."));
                ContainerDevice::Veth
            }
        };
        let mut topology = Topology::new(&[])?;
        let web = Container {
            name: "web",
            namespace: LabNamespace::new("web")?,
            device: web_device,
            listen: 20_000..=20_999,
            ephemeral: 40_000..=44_999,
        };
        let db = Container {
            name: "db",
            namespace: LabNamespace::new("db")?,
            device: ContainerDevice::Veth,
            listen: 21_000..=21_999,
            ephemeral: 45_000..=49_999,
        };
        topology.containers = vec![web.namespace.clone(), db.namespace.clone()];
        Ok(Self {
            topology,
            web,
            db,
            notes,
        })
    }

    /// The external host.
    pub(super) fn external(&self) -> &LabNamespace {
        &self.topology.external
    }

    pub(super) fn containers(&self) -> [&Container; 2] {
        [&self.web, &self.db]
    }

    /// What the daemon reads.
    pub(super) fn configuration(&self) -> String {
        let [v4, v6] = Family::BOTH.map(Family::nos);
        let uplink = Topology::UPLINK;
        let containers = self.containers().map(Container::configuration).concat();
        format!(
            r#"[[uplink]]
name = "up0"
device = "packet:{uplink}"
addresses = ["{v4}/24", "{v6}/64"]
{containers}
[nos]
services = ["echo", "http:{HTTP_PORT}"]
"#
        )
    }
}

impl Container {
    /// A port on which it can be reached.
    pub(super) fn port(&self) -> u16 {
        self.listen.start() + 80
    }

    fn configuration(&self) -> String {
        let Self { name, device, .. } = self;
        let path = self.namespace.path();
        let [listen, ephemeral] = [&self.listen, &self.ephemeral].map(ports);
        format!(
            r#"
[[container]]
name = "{name}"
netns = "{}"
device = "{device}"
tcp = ["{listen}"]
udp = ["{listen}"]
ephemeral = "{ephemeral}"
"#,
            path.display()
        )
    }

    fn caption(&self) -> String {
        let name = format!("{} ({})", self.name, self.device);
        let [listen, ephemeral] = [&self.listen, &self.ephemeral].map(ports);
        format!("{name:<11} ports {listen}, own flows {ephemeral}")
    }
}

/// As the configuration has it: `20000-20999`.
pub(super) fn ports(range: &RangeInclusive<u16>) -> String {
    format!("{}-{}", range.start(), range.end())
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [web, db] = self.containers().map(Container::caption);
        let [nos4, nos6] = Family::BOTH.map(Family::nos);
        let [x4, x6] = Family::BOTH.map(Family::external);
        writeln!(
            f,
            "Two containers use the NOS's addresses as their own; X is somebody else's host."
        )?;
        let margin = web.chars().count();
        writeln!(f, "\n  {web} ─┐")?;
        writeln!(f, "  {:margin$}  ├─ NOS {nos4:<14} ─── X {x4}", "")?;
        writeln!(f, "  {db} ─┘      {nos6:<14}       {x6}")?;
        for note in &self.notes {
            writeln!(f, "\n{note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_the_configuration_has_them() {
        assert_eq!(ports(&(20_000..=20_999)), "20000-20999");
    }

    #[test]
    fn the_families_are_apart() {
        for family in Family::BOTH {
            assert_eq!(family.nos().is_ipv4(), family == Family::V4);
            assert_eq!(family.external().is_ipv4(), family == Family::V4);
        }
    }
}
