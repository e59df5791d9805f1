//! What a container's namespace gets besides the interface itself.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope,
};
use nos_shim::ident::MacAddr;
use rtnetlink::{LinkUnspec, RouteMessageBuilder};
use tracing::{debug, warn};

use super::AttachError;
use super::veth::{is_marked, mark};
use crate::control::kernel::netlink::{AddressFacts, Netlink, NetlinkError, family_of, route_mark};
use crate::control::kernel::{
    InterfaceName, LinkFacts, Namespace, NamespaceError, NamespaceName, sysctl,
};

/// Transmit queue of a container's interface, in packets: larger than a TCP window of small
/// segments, so that a burst of one connection does not overflow it.
pub const DEFAULT_TX_QUEUE_LEN: u32 = 4096;

/// `net.ipv4.ip_local_port_range`, which holds for IPv6 as well.
const PORT_RANGE: &str = "net/ipv4/ip_local_port_range";
/// What the kernel gives every new namespace.
const PORT_RANGE_DEFAULT: &str = "32768\t60999";
/// Metric of our IPv6 default route: the kernel's own choice when none is given.
const IPV6_METRIC: u32 = 1024;

/// What a container's side shall look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Name of the attachment, unique in the daemon.
    pub name: String,
    /// Name of the interface inside, usually `eth0`.
    pub interface: InterfaceName,
    /// MAC address of the interface inside.
    pub mac: MacAddr,
    /// MTU in octets: largest IP packet.
    pub mtu: u32,
    /// Length of the interface's transmit queue in packets.
    pub tx_queue_len: u32,
    /// Shared addresses. The first of each family is the source of what the container sends.
    pub addresses: Vec<IpAddr>,
    /// Ports from which the container opens flows; `None` leaves the namespace's setting.
    pub ephemeral: Option<RangeInclusive<u16>>,
}

/// A container's namespace in the state that a [`ContainerSpec`] asks for.
///
/// Dropping the value undoes it.
#[derive(Debug)]
pub struct ContainerSide {
    namespace: Namespace,
    spec: ContainerSpec,
    /// Addresses added by this value, for kernels that do not keep the mark.
    added: BTreeSet<IpAddr>,
    /// The port range before us; `None` while it has not been touched.
    ports_before: Option<String>,
    detached: bool,
}

/// A [`ContainerSide`] that does not keep its namespace alive.
///
/// Dropping the value leaves everything in place.
#[derive(Debug)]
#[must_use = "the container's side stays as it is unless it is resumed and detached"]
pub struct ParkedSide {
    name: NamespaceName,
    spec: ContainerSpec,
    added: BTreeSet<IpAddr>,
    ports_before: Option<String>,
}

impl ParkedSide {
    /// Opens the namespace again.
    ///
    /// # Errors
    /// It cannot be found by its name any more; most likely it was deleted, and there is nothing
    /// to change or undo.
    pub fn resume(&self) -> Result<ContainerSide, NamespaceError> {
        Ok(ContainerSide {
            namespace: self.name.open()?,
            spec: self.spec.clone(),
            added: self.added.clone(),
            ports_before: self.ports_before.clone(),
            detached: false,
        })
    }

    /// By what the container's namespace can be opened.
    #[must_use]
    pub fn namespace(&self) -> &NamespaceName {
        &self.name
    }
}

impl ContainerSide {
    /// Brings the namespace into the state that `spec` asks for. The interface must exist, made
    /// after [`super::make_room`].
    ///
    /// On an error everything done so far is undone.
    ///
    /// # Errors
    /// The spec cannot be met, or the kernel refuses a part of it.
    pub fn configure(namespace: &Namespace, spec: ContainerSpec) -> Result<Self, AttachError> {
        spec.validate()?;
        let mut side = Self {
            namespace: namespace.clone(),
            spec,
            added: BTreeSet::new(),
            ports_before: None,
            detached: false,
        };
        side.apply()?;
        Ok(side)
    }

    /// Changes what differs from `spec` and leaves the rest: connections of addresses that stay
    /// live on. With the same spec it repairs what was changed from inside.
    ///
    /// # Errors
    /// The spec cannot be met or the kernel refuses a part; the other parts are done, and another
    /// call goes on from there.
    pub fn update(&mut self, spec: ContainerSpec) -> Result<(), AttachError> {
        spec.validate()?;
        if spec.name != self.spec.name || spec.interface != self.spec.interface {
            return Err(AttachError::Identity(self.spec.name.clone()));
        }
        self.spec = spec;
        self.apply()
    }

    /// The state asked for.
    #[must_use]
    pub fn spec(&self) -> &ContainerSpec {
        &self.spec
    }

    /// The namespace of the container.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Undoes it: routes, addresses and settings of ours go, those of others stay. What is gone
    /// already is no error. The interface goes with its owner.
    ///
    /// # Errors
    /// The first refusal; the rest is undone all the same.
    pub fn detach(mut self) -> Result<(), AttachError> {
        self.detached = true;
        self.undo()
    }

    /// Leaves everything in place, as a killed process would.
    pub fn abandon(mut self) {
        self.detached = true;
    }

    /// Lets go of the namespace, so that the kernel can delete it together with the container, and
    /// leaves everything in place.
    pub fn park(mut self) -> ParkedSide {
        self.detached = true;
        ParkedSide {
            name: self.namespace.name(),
            spec: self.spec.clone(),
            added: std::mem::take(&mut self.added),
            ports_before: self.ports_before.take(),
        }
    }

    fn apply(&mut self) -> Result<(), AttachError> {
        let netlink = Netlink::open(&self.namespace)?;
        self.require_ipv6()?;
        let lo = netlink.existing_link("lo")?;
        let present = netlink.addresses(lo.index)?;
        // Ports first: no flow shall start outside the range.
        self.set_ports(present.iter().any(|address| address.marked))?;
        if !lo.up {
            netlink.set_up(&lo)?;
        }
        self.add_addresses(&netlink, lo.index, &present)?;
        let link = self.set_link(&netlink)?;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            self.set_default_route(&netlink, &link, family)?;
        }
        // Last: with an address the kernel removes the routes whose source it is.
        self.remove_stale_addresses(&netlink, lo.index, &present)
    }

    fn undo(&mut self) -> Result<(), AttachError> {
        let netlink = Netlink::open(&self.namespace)?;
        let steps = [
            self.restore_ports(),
            remove_routes(&netlink),
            self.remove_addresses(&netlink),
        ];
        let mut failures = steps.into_iter().filter_map(Result::err);
        let first = failures.next();
        for error in failures {
            warn!("while detaching '{}': {error}", self.spec.name);
        }
        first.map_or(Ok(()), Err)
    }

    // Addresses

    fn add_addresses(
        &mut self,
        netlink: &Netlink,
        lo: u32,
        present: &[AddressFacts],
    ) -> Result<(), AttachError> {
        for &address in &self.spec.addresses {
            if present.iter().any(|facts| facts.address == address) {
                continue;
            }
            match netlink.add_address(lo, address, host_prefix(address), true) {
                Err(error) if error.is(&[libc::EEXIST]) => {}
                result => result?,
            }
            self.added.insert(address);
        }
        for &address in &self.spec.addresses {
            netlink.wait_local(&self.namespace, lo, address)?;
        }
        Ok(())
    }

    fn remove_stale_addresses(
        &mut self,
        netlink: &Netlink,
        lo: u32,
        present: &[AddressFacts],
    ) -> Result<(), AttachError> {
        for facts in present {
            let wanted = self.spec.addresses.contains(&facts.address);
            if !wanted && self.is_ours(facts) {
                remove_address(netlink, lo, facts)?;
                self.added.remove(&facts.address);
            }
        }
        Ok(())
    }

    fn remove_addresses(&self, netlink: &Netlink) -> Result<(), AttachError> {
        let lo = netlink.existing_link("lo")?.index;
        let present = netlink.addresses(lo)?;
        let ours = present.iter().filter(|facts| self.is_ours(facts));
        ours.map(|facts| remove_address(netlink, lo, facts))
            .fold(Ok(()), Result::and)
    }

    fn is_ours(&self, facts: &AddressFacts) -> bool {
        let host = facts.prefix_length == host_prefix(facts.address);
        host && (facts.marked || self.added.contains(&facts.address))
    }

    fn require_ipv6(&self) -> Result<(), AttachError> {
        let Some(address) = self.spec.addresses.iter().find(|a| a.is_ipv6()) else {
            return Ok(());
        };
        for interface in ["lo", self.spec.interface.as_str()] {
            let key = format!("net/ipv6/conf/{interface}/disable_ipv6");
            let reason = match sysctl::read(&self.namespace, &key)? {
                Ok(value) if value == "0" => continue,
                Ok(_) => format!("IPv6 is disabled on {interface} there (/proc/sys/{key})"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // Also of an interface that is missing, which is another error, later.
                    if interface != "lo" {
                        continue;
                    }
                    "the kernel has no IPv6".to_owned()
                }
                Err(error) => format!("cannot read /proc/sys/{key}: {error}"),
            };
            return Err(AttachError::NoIpv6 {
                address: *address,
                namespace: self.namespace.to_string(),
                reason,
            });
        }
        Ok(())
    }

    // Interface

    fn set_link(&self, netlink: &Netlink) -> Result<LinkFacts, AttachError> {
        let spec = &self.spec;
        let link = netlink.existing_link(spec.interface.as_str())?;
        if !is_marked(&link, &spec.name) {
            mark(netlink, link.index, &spec.name)?;
        }
        let mut change = LinkUnspec::new_with_index(link.index);
        if link.mac != Some(spec.mac) {
            change = change.address(spec.mac.0.to_vec());
        }
        if link.mtu != spec.mtu {
            change = change.mtu(spec.mtu);
        }
        if link.tx_queue_len != spec.tx_queue_len {
            change = change.txqueuelen(spec.tx_queue_len);
        }
        let change = change.build();
        if !change.attributes.is_empty() {
            netlink.change_link(spec.interface.as_str(), change)?;
        }
        if !link.up {
            self.add_link_local(netlink, link.index)?;
            netlink.set_up(&link)?;
            self.wait_link_local(netlink, link.index)?;
        }
        Ok(link)
    }

    /// Gives the interface, still down, the link-local address that the kernel would give it, but
    /// without duplicate address detection: only the relay is at the other end, and until
    /// detection ends (1 s) the kernel would not resolve IPv6 neighbors.
    fn add_link_local(&self, netlink: &Netlink, index: u32) -> Result<(), AttachError> {
        let Some(address) = self.link_local() else {
            return Ok(());
        };
        match netlink.add_address(index, address, 64, false) {
            Err(error) if error.is(&[libc::EEXIST]) => Ok(()),
            result => Ok(result?),
        }
    }

    fn wait_link_local(&self, netlink: &Netlink, index: u32) -> Result<(), AttachError> {
        let Some(address) = self.link_local() else {
            return Ok(());
        };
        Ok(netlink.wait_local(&self.namespace, index, address)?)
    }

    fn link_local(&self) -> Option<IpAddr> {
        let ipv6 = self.spec.addresses.iter().any(IpAddr::is_ipv6);
        ipv6.then(|| self.spec.mac.link_local().into())
    }

    // Routes

    fn set_default_route(
        &self,
        netlink: &Netlink,
        link: &LinkFacts,
        family: AddressFamily,
    ) -> Result<(), AttachError> {
        let source = self
            .spec
            .addresses
            .iter()
            .find(|address| family_of(**address) == family);
        let defaults: Vec<_> = netlink
            .routes(family)?
            .into_iter()
            .filter(is_default)
            .collect();
        let ours = defaults.iter().find(|route| is_our_route(route));
        match (source, ours) {
            (None, None) => Ok(()),
            (None, Some(old)) => remove_route(netlink, old),
            (Some(&source), ours) => {
                self.refuse_foreign(&defaults, family)?;
                let wanted = default_route(link.index, source);
                let what = format!("default dev {} src {source}", self.spec.interface);
                match ours {
                    None => Ok(netlink.add_route(&what, wanted)?),
                    Some(old) if same_route(old, &wanted) => Ok(()),
                    Some(_) => Ok(netlink.replace_route(&what, wanted)?),
                }
            }
        }
    }

    /// A default route of another with a metric as good as ours would take our packets.
    fn refuse_foreign(
        &self,
        defaults: &[RouteMessage],
        family: AddressFamily,
    ) -> Result<(), AttachError> {
        let ours = if family == AddressFamily::Inet6 {
            IPV6_METRIC
        } else {
            0
        };
        let winning = |route: &&RouteMessage| !is_our_route(route) && metric(route) <= ours;
        match defaults.iter().find(winning) {
            None => Ok(()),
            Some(route) => Err(AttachError::ForeignRoute {
                route: describe(route),
                namespace: self.namespace.to_string(),
            }),
        }
    }

    // Ports

    /// `leftover`: an earlier run was killed here, so the present range may be its.
    fn set_ports(&mut self, leftover: bool) -> Result<(), AttachError> {
        let Some(range) = &self.spec.ephemeral else {
            return self.restore_ports();
        };
        let wanted = format!("{}\t{}", range.start(), range.end());
        let present = self.sysctl(&wanted, sysctl::read(&self.namespace, PORT_RANGE)?)?;
        if self.ports_before.is_none() {
            let before = if leftover {
                PORT_RANGE_DEFAULT.to_owned()
            } else {
                present.clone()
            };
            self.ports_before = Some(before);
        }
        if present == wanted {
            return Ok(());
        }
        debug!(
            "{PORT_RANGE} in {}: '{present}' becomes '{wanted}'",
            self.namespace
        );
        let written = sysctl::write(&self.namespace, PORT_RANGE, &wanted)?;
        self.sysctl(&wanted, written)
    }

    fn restore_ports(&mut self) -> Result<(), AttachError> {
        let Some(before) = self.ports_before.take() else {
            return Ok(());
        };
        let written = sysctl::write(&self.namespace, PORT_RANGE, &before)?;
        self.sysctl(&before, written)
    }

    fn sysctl<T>(&self, value: &str, result: io::Result<T>) -> Result<T, AttachError> {
        result.map_err(|source| AttachError::Sysctl {
            key: PORT_RANGE.to_owned(),
            value: value.replace('\t', " "),
            namespace: self.namespace.to_string(),
            source,
        })
    }
}

impl Drop for ContainerSide {
    fn drop(&mut self) {
        if self.detached {
            return;
        }
        if let Err(error) = self.undo() {
            warn!("cannot detach '{}': {error}", self.spec.name);
        }
    }
}

impl ContainerSpec {
    fn validate(&self) -> Result<(), AttachError> {
        for address in &self.addresses {
            if !is_host_address(*address) {
                return Err(AttachError::NotUnicast(*address));
            }
            if address.is_ipv6() && self.mtu < IPV6_MIN_MTU {
                return Err(AttachError::MtuTooSmall {
                    mtu: self.mtu,
                    address: *address,
                });
            }
        }
        Ok(())
    }
}

/// RFC 8200 section 5, in octets. Linux disables IPv6 on an interface with less.
const IPV6_MIN_MTU: u32 = 1280;

fn is_host_address(address: IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(v4) => v4.is_broadcast(),
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some() || v6.is_unicast_link_local(),
    };
    !(special || address.is_unspecified() || address.is_multicast() || address.is_loopback())
}

fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn remove_address(netlink: &Netlink, lo: u32, facts: &AddressFacts) -> Result<(), AttachError> {
    tolerate_gone(netlink.delete_address(lo, facts))
}

fn remove_routes(netlink: &Netlink) -> Result<(), AttachError> {
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let routes = netlink.routes(family)?;
        for route in routes.iter().filter(|route| is_our_route(route)) {
            remove_route(netlink, route)?;
        }
    }
    Ok(())
}

fn remove_route(netlink: &Netlink, route: &RouteMessage) -> Result<(), AttachError> {
    tolerate_gone(netlink.delete_route(&describe(route), route.clone()))
}

/// Somebody, or the end of the interface, was faster.
fn tolerate_gone(result: Result<(), NetlinkError>) -> Result<(), AttachError> {
    match result {
        Err(error) if error.is(&[libc::ESRCH, libc::ENODEV, libc::EADDRNOTAVAIL]) => Ok(()),
        result => Ok(result?),
    }
}

/// On-link through the interface: no gateway.
fn default_route(index: u32, source: IpAddr) -> RouteMessage {
    match source {
        IpAddr::V4(source) => RouteMessageBuilder::<Ipv4Addr>::new()
            .output_interface(index)
            .scope(RouteScope::Link)
            .pref_source(source)
            .protocol(route_mark())
            .build(),
        IpAddr::V6(source) => RouteMessageBuilder::<Ipv6Addr>::new()
            .output_interface(index)
            .pref_source(source)
            .priority(IPV6_METRIC)
            .protocol(route_mark())
            .build(),
    }
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0 && route.header.table == RouteHeader::RT_TABLE_MAIN
}

fn is_our_route(route: &RouteMessage) -> bool {
    route.header.protocol == route_mark() && is_default(route)
}

fn same_route(one: &RouteMessage, other: &RouteMessage) -> bool {
    one.header.scope == other.header.scope
        && output(one) == output(other)
        && source(one) == source(other)
}

fn output(route: &RouteMessage) -> Option<u32> {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })
}

fn source(route: &RouteMessage) -> Option<&RouteAddress> {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::PrefSource(address) => Some(address),
            _ => None,
        })
}

fn metric(route: &RouteMessage) -> u32 {
    let metric = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        });
    metric.unwrap_or(0)
}

fn describe(route: &RouteMessage) -> String {
    let family = match route.header.address_family {
        AddressFamily::Inet6 => "IPv6",
        _ => "IPv4",
    };
    let gateway = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(format!(" via {address}")),
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => {
                Some(format!(" via {address}"))
            }
            _ => None,
        });
    let output = output(route).map(|index| format!(" through interface {index}"));
    let [gateway, output] = [gateway, output].map(Option::unwrap_or_default);
    format!("an {family} default route{gateway}{output}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_addresses_are_taken() {
        for good in ["203.0.113.1", "10.0.0.1", "2001:db8::1", "fd00::1"] {
            assert!(is_host_address(good.parse().unwrap()), "{good}");
        }
        for bad in [
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
            "fe80::1",
            "::ffff:192.0.2.1",
        ] {
            assert!(!is_host_address(bad.parse().unwrap()), "{bad}");
        }
    }

    #[test]
    fn routes_are_compared_by_what_matters() {
        let route = default_route(2, "203.0.113.1".parse().unwrap());
        assert!(is_our_route(&route));
        assert!(same_route(&route, &route.clone()));
        assert!(!same_route(
            &route,
            &default_route(3, "203.0.113.1".parse().unwrap())
        ));
        assert!(!same_route(
            &route,
            &default_route(2, "203.0.113.9".parse().unwrap())
        ));
    }
}
