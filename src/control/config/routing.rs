//! Routes, and the uplinks that their next hops are on.

use core::net::IpAddr;
use std::collections::HashMap;

use ipnet::IpNet;

use super::entries::{ActionEntry, Entries, RouteEntry, UplinkEntry};
use super::place::{At, Place};
use super::report::Report;
use super::values::{HopText, did_you_mean, is_link_local, not_a_host};
use super::vrf::{Vrfs, in_vrf};
use super::{Name, NextHop, Route, RouteAction, VrfName};

/// The routes with their next hops resolved. What does not resolve is reported, unless an uplink
/// that could not be read may be the reason.
pub(super) fn resolve(report: &Report<'_>, entries: &Entries, vrfs: &Vrfs<'_>) -> Vec<Route> {
    distinct(report, &entries.routes);
    if !entries.all_uplinks {
        return Vec::new();
    }
    let route = |entry: &RouteEntry| {
        let resolver = Resolver {
            report,
            all: &entries.uplinks,
            vrf: &entry.vrf.value,
            uplinks: &vrfs.get(&entry.vrf.value).uplinks,
        };
        resolver.route(entry)
    };
    // One of a VRF without uplinks has been reported.
    let known = |entry: &&RouteEntry| !vrfs.get(&entry.vrf.value).uplinks.is_empty();
    entries.routes.iter().filter(known).map(route).collect()
}

fn distinct(report: &Report<'_>, routes: &[RouteEntry]) {
    let mut seen: HashMap<_, Place> = HashMap::new();
    for entry in routes {
        let RouteEntry { prefix, metric, .. } = entry;
        let key = (&entry.vrf.value, prefix.value, *metric);
        let Some(&earlier) = seen.get(&key) else {
            seen.insert(key, prefix.place);
            continue;
        };
        let reason = format!(
            "{}{} with metric {metric} is already {}; for ECMP list all next hops in one via",
            prefix.value,
            in_vrf(&entry.vrf.value),
            report.on(earlier)
        );
        report.error(prefix.place, reason);
    }
}

/// The next hops of one route.
struct Resolver<'a> {
    report: &'a Report<'a>,
    all: &'a [UplinkEntry],
    /// The route's VRF.
    vrf: &'a VrfName,
    /// The uplinks that are in it.
    uplinks: &'a [&'a UplinkEntry],
}

impl Resolver<'_> {
    fn route(&self, entry: &RouteEntry) -> Route {
        self.not_connected(entry.prefix);
        let action = match &entry.action {
            ActionEntry::Via { hops, dev, onlink } => {
                self.via(entry.prefix.value, hops, dev.as_ref(), *onlink)
            }
            ActionEntry::Other(action) => action.clone(),
        };
        Route {
            prefix: entry.prefix.value,
            action,
            metric: entry.metric,
            vrf: self.vrf.clone(),
        }
    }

    fn not_connected(&self, prefix: At<IpNet>) {
        let connected = |uplink: &&&UplinkEntry| {
            let mut networks = uplink.addresses.iter().map(|at| at.value.trunc());
            networks.any(|network| network == prefix.value)
        };
        if let Some(uplink) = self.uplinks.iter().find(connected) {
            let (network, name) = (prefix.value, &uplink.name.value);
            let reason =
                format!("{network} is the network of uplink \"{name}\" and needs no route");
            self.report.error(prefix.place, reason);
        }
    }

    fn via(
        &self,
        prefix: IpNet,
        hops: &[At<HopText>],
        dev: Option<&At<Name>>,
        onlink: bool,
    ) -> RouteAction {
        // An unknown device is one mistake, not one for each hop.
        if let Some(dev) = dev
            && let Err(reason) = self.named(&dev.value)
        {
            self.report.error(dev.place, reason);
            return RouteAction::Via(Vec::new());
        }
        let mut next_hops = Vec::with_capacity(hops.len());
        for At { value: hop, place } in hops {
            match self.next_hop(prefix, hop, dev.map(|dev| &dev.value), onlink) {
                Ok(hop) if next_hops.contains(&hop) => {
                    let reason = format!("{} is listed twice", hop.address);
                    self.report.error(*place, reason);
                }
                Ok(hop) => next_hops.push(hop),
                Err(reason) => self.report.error(*place, reason),
            }
        }
        RouteAction::Via(next_hops)
    }

    fn next_hop(
        &self,
        prefix: IpNet,
        hop: &HopText,
        dev: Option<&Name>,
        onlink: bool,
    ) -> Result<NextHop, String> {
        let address = hop.address;
        if address.is_ipv4() != prefix.addr().is_ipv4() {
            return Err(format!("{address} and {prefix} are of different families"));
        }
        self.not_own(address)?;
        let named = hop
            .uplink
            .as_ref()
            .or(dev)
            .map(|name| self.named(name))
            .transpose()?;
        let uplink = match named {
            Some(uplink) if is_link_local(address) => uplink,
            Some(uplink) if onlink => off_network(address, uplink, self.uplinks)?,
            Some(uplink) => self.on_link(address, &[uplink])?,
            None if is_link_local(address) => {
                return Err(self.needs_uplink(address, "is link-local"));
            }
            None if onlink && !self.uplinks.iter().any(|uplink| around(uplink, address)) => {
                return Err(self.needs_uplink(address, "is on no network"));
            }
            None => self.on_link(address, self.uplinks)?,
        };
        Ok(NextHop {
            address,
            uplink: uplink.name.value.clone(),
        })
    }

    fn named(&self, name: &Name) -> Result<&UplinkEntry, String> {
        let named = self.all.iter().find(|uplink| uplink.name.value == *name);
        let named = named.ok_or_else(|| {
            let known: Vec<_> = self.names();
            let hint = did_you_mean(name.as_str(), &known)
                .unwrap_or_else(|| format!("; uplinks are {}", known.join(", ")));
            format!("\"{name}\" is not an uplink{hint}")
        })?;
        if named.vrf == *self.vrf {
            return Ok(named);
        }
        let (other, own) = (&named.vrf, self.vrf);
        Err(format!(
            "uplink \"{name}\" is in VRF \"{other}\", and the route is in VRF \"{own}\""
        ))
    }

    /// Of the uplinks that the route may use.
    fn names(&self) -> Vec<&str> {
        self.uplinks
            .iter()
            .map(|uplink| uplink.name.value.as_str())
            .collect()
    }

    fn not_own(&self, address: IpAddr) -> Result<(), String> {
        let own =
            |uplink: &&&UplinkEntry| uplink.addresses.iter().any(|at| at.value.addr() == address);
        match self.uplinks.iter().find(own) {
            None => Ok(()),
            Some(uplink) => Err(format!(
                "{address} is the NOS's own address on uplink \"{}\"",
                uplink.name.value
            )),
        }
    }

    fn needs_uplink(&self, address: IpAddr, why: &str) -> String {
        let example = self.names().first().copied().unwrap_or("up0");
        format!("{address} {why}: name its uplink, as in dev = \"{example}\"")
    }

    /// The one of `uplinks` on whose network `address` is. Networks of two that overlap have been
    /// reported.
    fn on_link<'b>(
        &self,
        address: IpAddr,
        uplinks: &[&'b UplinkEntry],
    ) -> Result<&'b UplinkEntry, String> {
        let mut found = uplinks.iter().filter_map(|&uplink| {
            let network = networks(uplink).find(|network| network.contains(&address))?;
            Some((uplink, network))
        });
        let Some((uplink, network)) = found.next() else {
            return Err(format!(
                "{address} is on no network of {}",
                described(uplinks)
            ));
        };
        if let Some(what) = not_a_host(network, address) {
            return Err(format!("{address} is the {what} address of {network}"));
        }
        Ok(uplink)
    }
}

fn around(uplink: &UplinkEntry, address: IpAddr) -> bool {
    networks(uplink).any(|network| network.contains(&address))
}

/// The uplink, if it can have a neighbor at `address` although no network of it says so.
///
/// IPv6 neighbors are asked for from the uplink's link-local address, and IPv4 ones from an address of
/// any uplink.
fn off_network<'b>(
    address: IpAddr,
    uplink: &'b UplinkEntry,
    uplinks: &[&UplinkEntry],
) -> Result<&'b UplinkEntry, String> {
    let mut networks = networks(uplink).filter(|network| network.contains(&address));
    let odd = networks.find_map(|network| Some((not_a_host(network, address)?, network)));
    if let Some((what, network)) = odd {
        return Err(format!("{address} is the {what} address of {network}"));
    }
    let mut own = uplinks.iter().flat_map(|uplink| &uplink.addresses);
    if address.is_ipv6() || own.any(|own| own.value.addr().is_ipv4()) {
        return Ok(uplink);
    }
    Err(format!(
        "no uplink has an IPv4 address from which to ask for {address}"
    ))
}

fn networks(uplink: &UplinkEntry) -> impl Iterator<Item = IpNet> + '_ {
    uplink.addresses.iter().map(|at| at.value.trunc())
}

/// `uplink "up0" (203.0.113.0/24), "up1" (...)`
fn described(uplinks: &[&UplinkEntry]) -> String {
    let one = |uplink: &&UplinkEntry| {
        let networks: Vec<_> = networks(uplink)
            .map(|network| network.to_string())
            .collect();
        format!("\"{}\" ({})", uplink.name.value, networks.join(", "))
    };
    let all: Vec<_> = uplinks.iter().map(one).collect();
    format!("uplink {}", all.join(", "))
}
