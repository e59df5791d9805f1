//! Which addresses are ours, and which a neighbor may have.

use core::net::{IpAddr, Ipv6Addr};
use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::ident::MacAddr;
use crate::martian;

/// Our addresses on the uplink.
#[derive(Debug)]
pub(super) struct Addresses {
    link_local: Ipv6Addr,
    nets: Vec<IpNet>,
    /// Addresses of others for whom we stand on this link.
    proxied: BTreeSet<IpAddr>,
}

impl Addresses {
    pub(super) fn new(mac: MacAddr, nets: &[IpNet]) -> Self {
        Self {
            link_local: mac.link_local(),
            nets: nets.to_vec(),
            proxied: BTreeSet::new(),
        }
    }

    /// Returns those that are new.
    pub(super) fn set_proxied(&mut self, proxied: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        let new = proxied.difference(&self.proxied).copied().collect();
        self.proxied.clone_from(proxied);
        new
    }

    pub(super) fn set(&mut self, nets: &[IpNet]) {
        self.nets.clear();
        self.nets.extend_from_slice(nets);
    }

    /// Our own, each once.
    fn own(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let nets = self.nets.iter().enumerate();
        let firsts = nets.filter(|(n, net)| {
            let address = net.addr();
            address != self.link_local && self.nets[..*n].iter().all(|net| net.addr() != address)
        });
        firsts
            .map(|(_, net)| net.addr())
            .chain([self.link_local.into()])
    }

    /// Those for which we answer, each once.
    pub(super) fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let proxied = self.proxied.iter().copied();
        self.own()
            .chain(proxied.filter(|&address| !self.is_own(address)))
    }

    /// Whether we answer for this address.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.is_own(address) || self.proxied.contains(&address)
    }

    fn is_own(&self, address: IpAddr) -> bool {
        address == self.link_local || self.nets.iter().any(|net| net.addr() == address)
    }

    /// Whether the address belongs to this link, by what we were told of it.
    pub(super) fn on_link(&self, address: IpAddr) -> bool {
        is_link_local_v6(address) || self.nets.iter().any(|net| net.contains(&address))
    }

    /// Whether another station on the link can have this address.
    pub(super) fn may_be_neighbor(&self, address: IpAddr) -> bool {
        let all_of_subnet = self
            .nets
            .iter()
            .any(|net| martian::is_subnet_itself(net, address));
        !martian::source_is_martian(address) && !all_of_subnet && !self.contains(address)
    }

    /// From which of our addresses to ask for `target`: the one in its smallest subnet. Failing
    /// that any of IPv4, as a gateway need not be in a subnet of ours, and for IPv6 the link-local
    /// one. None only for IPv4.
    pub(super) fn source_for(&self, target: IpAddr) -> Option<IpAddr> {
        if is_link_local_v6(target) {
            return Some(self.link_local.into());
        }
        let around = self.nets.iter().filter(|net| net.contains(&target));
        let closest = around.max_by_key(|net| net.prefix_len());
        let fallback = || match target {
            IpAddr::V4(_) => self.own().find(IpAddr::is_ipv4),
            IpAddr::V6(_) => Some(self.link_local.into()),
        };
        closest.map(IpNet::addr).or_else(fallback)
    }
}

fn is_link_local_v6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn addresses(nets: &[&str]) -> Addresses {
        let nets: Vec<_> = nets.iter().map(|net| net.parse().unwrap()).collect();
        Addresses::new(MAC, &nets)
    }

    #[test]
    fn the_source_is_the_closest_address() {
        let ours = addresses(&[
            "192.0.2.1/24",
            "192.0.2.129/25",
            "2001:db8::1/64",
            "2001:db8:0:1::1/64",
        ]);
        for (target, source) in [
            ("192.0.2.2", "192.0.2.1"),
            ("192.0.2.130", "192.0.2.129"),
            ("198.51.100.1", "192.0.2.1"),
            ("2001:db8:0:1::9", "2001:db8:0:1::1"),
            ("2001:db8:ffff::9", "fe80::ff:fe00:1"),
            ("fe80::9", "fe80::ff:fe00:1"),
        ] {
            let found = ours.source_for(target.parse().unwrap());
            assert_eq!(found, Some(source.parse().unwrap()), "{target}");
        }
        let target = "192.0.2.2".parse().unwrap();
        assert_eq!(addresses(&["2001:db8::1/64"]).source_for(target), None);
    }

    #[test]
    fn stations_have_unicast_addresses_that_are_not_ours() {
        let ours = addresses(&["192.0.2.1/24", "203.0.113.0/31", "2001:db8::1/64"]);
        let may = |address: &str| ours.may_be_neighbor(address.parse().unwrap());
        for address in [
            "192.0.2.2",
            "203.0.113.1",
            "198.51.100.255",
            "2001:db8::2",
            "fe80::1",
        ] {
            assert!(may(address), "{address}");
        }
        for address in [
            "192.0.2.1",
            "192.0.2.0",
            "192.0.2.255",
            "203.0.113.0",
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
            "::ffff:192.0.2.2",
            "2001:db8::1",
            "fe80::ff:fe00:1",
        ] {
            assert!(!may(address), "{address}");
        }
    }

    #[test]
    fn each_address_is_listed_once() {
        let ours = addresses(&["192.0.2.1/24", "192.0.2.1/32", "fe80::ff:fe00:1/64"]);
        let listed: Vec<_> = ours.iter().map(|address| address.to_string()).collect();
        assert_eq!(listed, ["192.0.2.1", "fe80::ff:fe00:1"]);
    }
}
