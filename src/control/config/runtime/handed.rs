//! What was registered, as one process says it to the next.

use core::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use nos_shim::ports::{PortRange, Restriction, Transport};
use serde::{Deserialize, Serialize};

use super::ports::Ports;
use super::{Keys, Overlay};

/// First and last ports of ranges.
type Ends = Vec<(u16, u16)>;

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Handed {
    containers: Vec<(String, Keys)>,
    ports: Vec<(String, HandedPorts)>,
    routes: Vec<(IpNet, u16, Keys)>,
    addresses: Vec<(String, IpNet)>,
    groups: Vec<(String, IpAddr)>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct HandedPorts {
    tcp: Ends,
    udp: Ends,
    ephemeral: Ends,
    established: Ends,
    from: Vec<Rule>,
}

/// Who may open flows to which ports.
#[derive(Serialize, Deserialize)]
struct Rule {
    udp: bool,
    range: (u16, u16),
    from: Vec<IpNet>,
}

impl HandedPorts {
    fn of(ports: &Ports) -> Self {
        let rules = ports.from.iter().map(|rule| Rule {
            udp: rule.transport == Transport::Udp,
            range: (rule.range.first(), rule.range.last()),
            from: rule.from.prefixes().to_vec(),
        });
        Self {
            tcp: ends(&ports.tcp),
            udp: ends(&ports.udp),
            ephemeral: ends(&ports.ephemeral),
            established: ends(&ports.established),
            from: rules.collect(),
        }
    }

    fn ports(self) -> Result<Ports, String> {
        let rules = self.from.into_iter().map(|rule| {
            Ok(Restriction {
                transport: if rule.udp {
                    Transport::Udp
                } else {
                    Transport::Tcp
                },
                range: range(rule.range)?,
                from: Arc::new(rule.from.into_iter().collect()),
            })
        });
        Ok(Ports {
            from: rules.collect::<Result<_, String>>()?,
            tcp: ranges(self.tcp)?,
            udp: ranges(self.udp)?,
            ephemeral: ranges(self.ephemeral)?,
            established: ranges(self.established)?,
        })
    }
}

fn ends(ranges: &[PortRange]) -> Ends {
    let ranges = ranges.iter();
    ranges.map(|it| (it.first(), it.last())).collect()
}

fn ranges(ends: Ends) -> Result<Vec<PortRange>, String> {
    ends.into_iter().map(range).collect()
}

fn range((first, last): (u16, u16)) -> Result<PortRange, String> {
    PortRange::new(first, last).map_err(|error| error.to_string())
}

impl Overlay {
    /// All of it, for another process of the same program.
    #[must_use]
    pub fn handed(&self) -> serde_json::Value {
        let containers = self.containers.iter();
        let ports = self.ports.iter();
        let handed = Handed {
            containers: containers
                .map(|(name, keys)| (name.to_string(), keys.clone()))
                .collect(),
            ports: ports
                .map(|(name, ports)| (name.to_string(), HandedPorts::of(ports)))
                .collect(),
            routes: self
                .routes
                .iter()
                .map(|((prefix, metric), keys)| (*prefix, *metric, keys.clone()))
                .collect(),
            addresses: self
                .addresses
                .iter()
                .map(|(name, address)| (name.to_string(), *address))
                .collect(),
            groups: self
                .groups
                .iter()
                .map(|(name, group)| (name.to_string(), *group))
                .collect(),
        };
        serde_json::to_value(handed).unwrap_or_default()
    }

    /// What another process has said.
    ///
    /// # Errors
    ///
    /// It makes no sense, in words.
    pub fn received(handed: serde_json::Value) -> Result<Self, String> {
        let handed: Handed = serde_json::from_value(handed).map_err(|error| error.to_string())?;
        let name = |name: String| name.parse().map_err(|error| format!("{name}: {error}"));
        let mut overlay = Self::default();
        for (of, keys) in handed.containers {
            overlay.containers.push((name(of)?, keys));
        }
        for (of, ports) in handed.ports {
            overlay.ports.insert(name(of)?, ports.ports()?);
        }
        for (prefix, metric, keys) in handed.routes {
            overlay.routes.push(((prefix, metric), keys));
        }
        for (of, address) in handed.addresses {
            overlay.addresses.push((name(of)?, address));
        }
        for (of, group) in handed.groups {
            overlay.groups.push((name(of)?, group));
        }
        Ok(overlay)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Change, ConfigFile, PortsAction};
    use super::*;

    #[test]
    fn all_of_it_arrives() {
        let file = r#"
[[uplink]]
name = "up0"
device = "packet:eth1"
addresses = ["203.0.113.1/24"]

[[container]]
name = "web"
netns = "/run/netns/web"
tcp = ["8080"]
"#;
        let file = ConfigFile::parse("nos.toml", file).unwrap();
        let mut overlay = Overlay::default();
        let changes = [
            (
                Change::Attach,
                Keys::default()
                    .with("name", "db")
                    .with("netns", "/run/netns/db")
                    .with("tcp", vec!["5432"]),
            ),
            (
                Change::Ports(PortsAction::Add),
                Keys::default()
                    .with("container", "web")
                    .with("udp", vec!["53"]),
            ),
            (
                Change::AddAddress,
                Keys::default()
                    .with("uplink", "up0")
                    .with("address", "203.0.113.7/24"),
            ),
            (
                Change::AddRoute,
                Keys::default()
                    .with("prefix", "198.51.100.0/24")
                    .with("via", "203.0.113.2"),
            ),
        ];
        for (change, keys) in changes {
            overlay = file.change(&overlay, change, &keys).unwrap().overlay;
        }
        assert_ne!(overlay, Overlay::default());
        assert_eq!(Overlay::received(overlay.handed()), Ok(overlay));
        assert!(Overlay::received("x".into()).is_err());
    }
}
