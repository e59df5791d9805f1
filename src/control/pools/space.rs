//! What pools are made of: the networks of the uplinks, and who has which of their addresses without a pool.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::control::config::{Config, MAX_POOL, RouteAction, Uplink, VrfName};

use super::blocks::{Block, Blocks, Pair};

/// The addresses of all VRFs.
#[derive(Clone, Debug, Default)]
pub struct Space {
    total: BTreeMap<VrfName, Blocks>,
    in_use: BTreeMap<(VrfName, IpAddr), String>,
}

impl Space {
    /// What a configuration says of it.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let mut space = Self::default();
        for uplink in &config.uplinks {
            let total = space.total.entry(uplink.vrf.clone()).or_default();
            networks(uplink).for_each(|block| total.insert(block));
            for net in &uplink.addresses {
                let whose = format!("the NOS's, on uplink \"{}\"", uplink.name);
                space.use_address(&uplink.vrf, net.addr(), whose);
            }
        }
        for route in &config.routes {
            if let RouteAction::Via(hops) = &route.action {
                for hop in hops.iter() {
                    let whose = format!("the next hop of route {}", route.prefix);
                    space.use_address(&route.vrf, hop.address, whose);
                }
            }
        }
        for container in &config.containers {
            for address in &container.addresses {
                let whose = format!("container \"{}\"'s", container.name);
                space.use_address(&container.vrf, *address, whose);
            }
        }
        space
    }

    /// Notes that somebody has an address, in words for who asks for it.
    pub fn use_address(&mut self, vrf: &VrfName, address: IpAddr, whose: String) {
        self.in_use.entry((vrf.clone(), address)).or_insert(whose);
    }

    /// All addresses of a VRF that pools may have.
    #[must_use]
    pub fn total(&self, vrf: &VrfName) -> Blocks {
        self.total.get(vrf).cloned().unwrap_or_default()
    }

    /// Whether a pair is in networks of an uplink, as they are.
    #[must_use]
    pub fn has(&self, vrf: &VrfName, pair: Pair) -> bool {
        let total = self.total.get(vrf);
        total.is_some_and(|total| total.at(pair.place()) == Some(pair))
    }

    /// How many of these pairs are in no network of an uplink, or not as the same pair.
    #[must_use]
    pub fn strays(&self, vrf: &VrfName, blocks: &Blocks) -> u64 {
        let Some(total) = self.total.get(vrf) else {
            return blocks.count();
        };
        let parts = blocks.iter().flat_map(|block| {
            let (first, last) = (block.first().place(), block.last().place());
            total.within(first, last)
        });
        let same = parts.filter(|part| blocks.contains(*part));
        blocks.count() - same.map(|part| u64::from(part.count())).sum::<u64>()
    }

    /// The VRFs that there are.
    pub fn vrfs(&self) -> impl Iterator<Item = &VrfName> {
        self.total.keys()
    }

    /// Whose a pair is without a pool, if anybody's.
    #[must_use]
    pub fn owner(&self, vrf: &VrfName, pair: Pair) -> Option<(IpAddr, &str)> {
        pair.addresses().find_map(|address| {
            let whose = self.in_use.get(&(vrf.clone(), address))?;
            Some((address, whose.as_str()))
        })
    }

    /// Addresses of a VRF that somebody has.
    pub(super) fn in_use(&self, vrf: &VrfName) -> impl Iterator<Item = IpAddr> {
        let all = self.in_use.keys();
        let vrf = vrf.clone();
        all.filter(move |(of, _)| *of == vrf).map(|(_, it)| *it)
    }
}

/// The networks of an uplink: the first of IPv4 with the first of IPv6, and so on, one to one from their beginnings.
fn networks(uplink: &Uplink) -> impl Iterator<Item = Block> {
    let mut v4 = Vec::<Ipv4Net>::new();
    let mut v6 = Vec::<Ipv6Net>::new();
    for net in &uplink.addresses {
        match net.trunc() {
            IpNet::V4(net) if !v4.contains(&net) => v4.push(net),
            IpNet::V6(net) if !v6.contains(&net) => v6.push(net),
            _ => {}
        }
    }
    let rows = 0..v4.len().max(v6.len());
    rows.filter_map(move |row| paired(v4.get(row).copied(), v6.get(row).copied()))
}

/// The pairs of two networks. The network's own address and its broadcast address are no host's; the first of IPv6
/// is any router's (RFC 4291 §2.6.1).
fn paired(v4: Option<Ipv4Net>, v6: Option<Ipv6Net>) -> Option<Block> {
    let hosts4 = v4.map(|net| match net.prefix_len() {
        31.. => (0, 1_u32 << (32 - u32::from(net.prefix_len()))),
        length => (1, (u32::MAX >> length).saturating_sub(1)),
    });
    let hosts6 = v6.map(|net| match net.prefix_len() {
        127.. => (0, 1_u32 << (128 - u32::from(net.prefix_len()))),
        length => {
            let all = u128::MAX >> length;
            (1, u32::try_from(all).unwrap_or(u32::MAX))
        }
    });
    // Beside a network whose first address is a host's, that of the other family counts from its first host on.
    let first = |(skipped, _): (u32, u32)| skipped;
    let counts = [hosts4, hosts6].into_iter().flatten();
    let count = counts.map(|(_, count)| count).min()?;
    let count = match v4 {
        Some(_) => count,
        // What is beyond is not lost: the pool that is made of it can be told the addresses.
        None => count.min(MAX_POOL * 16),
    };
    let v4 = v4.zip(hosts4).map(|(net, hosts)| {
        let start = u32::from(net.network()).saturating_add(first(hosts));
        Ipv4Addr::from(start)
    });
    let v6 = v6.zip(hosts6).map(|(net, hosts)| {
        let start = u128::from(net.network()).saturating_add(first(hosts).into());
        Ipv6Addr::from(start)
    });
    Block::new(v4, v6, count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::Config;

    fn space(addresses: &str) -> Space {
        let text = format!(
            "[[uplink]]\nname = \"up0\"\ndevice = \"packet:hx\"\naddresses = {addresses}\n\
             [[route]]\nprefix = \"0.0.0.0/0\"\nvia = \"203.0.113.2\"\n"
        );
        Space::of(&Config::parse("nos.toml", &text).unwrap())
    }

    fn shown(space: &Space) -> Vec<String> {
        let total = space.total(&VrfName::Default);
        let shown = total.iter().map(|block| {
            let beside = block.first().addresses().nth(1);
            let beside = beside.map_or(String::new(), |v6| format!(" from {v6}"));
            format!("{block}{beside}")
        });
        shown.collect()
    }

    #[test]
    fn networks_of_both_families_go_together() {
        for (addresses, expected) in [
            (
                r#"["203.0.113.1/24", "2001:db8:1::1/64"]"#,
                vec!["203.0.113.1-203.0.113.254 from 2001:db8:1::1"],
            ),
            (
                r#"["203.0.113.1/29", "198.51.100.1/30", "2001:db8:1::1/64"]"#,
                vec![
                    "198.51.100.1-198.51.100.2",
                    "203.0.113.1-203.0.113.6 from 2001:db8:1::1",
                ],
            ),
            (
                r#"["203.0.113.1/24", "2001:db8:1::1/126"]"#,
                vec!["203.0.113.1-203.0.113.3 from 2001:db8:1::1"],
            ),
            (r#"["203.0.113.3/31"]"#, vec!["203.0.113.2-203.0.113.3"]),
        ] {
            assert_eq!(shown(&space(addresses)), expected, "{addresses}");
        }
    }

    #[test]
    fn what_the_nos_and_routers_have_is_in_use() {
        let space = space(r#"["203.0.113.1/24", "2001:db8:1::1/64"]"#);
        let total = space.total(&VrfName::Default);
        let owner = |address: &str| {
            let pair = total.find(address.parse().unwrap()).unwrap();
            space.owner(&VrfName::Default, pair).map(|(_, whose)| whose)
        };
        assert_eq!(owner("2001:db8:1::1"), Some("the NOS's, on uplink \"up0\""));
        assert_eq!(
            owner("203.0.113.2"),
            Some("the next hop of route 0.0.0.0/0")
        );
        assert_eq!(owner("203.0.113.3"), None);
    }
}
