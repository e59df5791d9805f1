//! Routes, and those that a container gets.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::PROTOCOL;
use super::client::{Netlink, Request};
use super::error::NetlinkError;

/// Metric of our IPv6 routes: the kernel's own choice when none is given.
const IPV6_METRIC: u32 = 1024;

/// Which routes a route is among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// The kernel's own, of the namespace's addresses.
    Local,
    /// The namespace's.
    Main,
    /// Ours, of the shared addresses as somebody beyond the interface has them.
    Shared,
    /// Ours, of the shared addresses as the namespace's own.
    Own,
    /// Ours, of the shared addresses of attachments that are not the namespace's first.
    Further,
    /// Ours, of one such attachment: the way out for what comes from its addresses.
    Attachment(u32),
}

impl Table {
    /// Its number in the kernel: "nr" in ASCII for ours, which no name in `/etc/iproute2/rt_tables`
    /// stands for.
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Local => libc::RT_TABLE_LOCAL as u32,
            Self::Main => libc::RT_TABLE_MAIN as u32,
            Self::Shared => 0x6e72,
            Self::Own => 0x6e73,
            Self::Further => 0x6e74,
            Self::Attachment(number) => number,
        }
    }
}

/// A route as the kernel lists it, or as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RouteFacts(RouteMessage);

impl RouteFacts {
    /// A default route through the interface, on-link: there is no gateway. It carries our mark.
    pub(crate) fn our_default(interface: u32, source: IpAddr) -> Self {
        Self::ours(interface, source)
    }

    /// The same in another table than the main one.
    pub(crate) fn our_default_in(table: Table, interface: u32, source: IpAddr) -> Self {
        let mut route = Self::ours(interface, source);
        route.0.header.table = RouteHeader::RT_TABLE_UNSPEC;
        route
            .0
            .attributes
            .push(RouteAttribute::Table(table.number()));
        route
    }

    /// A route to a network through the interface, on-link, of the family of `source`. It carries our
    /// mark.
    pub(crate) fn our_network(network: IpNet, interface: u32, source: IpAddr) -> Self {
        let mut route = Self::ours(interface, source);
        route.0.header.destination_prefix_length = network.prefix_len();
        let destination = RouteAttribute::Destination(network.network().into());
        route.0.attributes.push(destination);
        route
    }

    /// The same, by way of a neighbor that is on the link, whatever its address; as it is if there is none.
    pub(crate) fn by_way_of(mut self, gateway: Option<IpAddr>) -> Self {
        let Some(gateway) = gateway else {
            return self;
        };
        self.0.header.scope = RouteScope::Universe;
        // Nothing says that the gateway is on the link but this.
        self.0.header.flags = RouteFlags::Onlink;
        let gateway = RouteAttribute::Gateway(gateway.into());
        self.0.attributes.push(gateway);
        self
    }

    /// A route of one of our tables: who sends to a shared address reaches it through the interface, by
    /// way of `gateway`, from the same address. It carries our mark.
    pub(crate) fn our_shared(
        address: IpAddr,
        table: Table,
        interface: u32,
        gateway: IpAddr,
    ) -> Self {
        let route = Self::ours(interface, address).of_table(table, address);
        route.by_way_of(Some(gateway))
    }

    /// A route of [`Table::Own`]: who sends to a shared address from no address in particular does so
    /// from `source` and stays inside. `lo` is the interface of both. It carries our mark.
    pub(crate) fn our_own(address: IpAddr, lo: u32, source: IpAddr) -> Self {
        let mut route = Self::ours(lo, source).of_table(Table::Own, address);
        route.0.header.kind = RouteType::Local;
        if address.is_ipv4() {
            route.0.header.scope = RouteScope::Host;
        }
        route
    }

    /// The same to one address, in another table.
    fn of_table(mut self, table: Table, address: IpAddr) -> Self {
        self.0.header.table = RouteHeader::RT_TABLE_UNSPEC;
        self.0.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        let attributes = [
            RouteAttribute::Table(table.number()),
            RouteAttribute::Destination(address.into()),
        ];
        self.0.attributes.extend(attributes);
        self
    }

    fn ours(interface: u32, source: IpAddr) -> Self {
        let mut route = Self::unicast(source);
        route.0.header.protocol = mark();
        route.0.attributes = vec![
            RouteAttribute::Oif(interface),
            RouteAttribute::PrefSource(source.into()),
        ];
        match source {
            IpAddr::V4(_) => route.0.header.scope = RouteScope::Link,
            IpAddr::V6(_) => {
                let metric = RouteAttribute::Priority(IPV6_METRIC);
                route.0.attributes.push(metric);
            }
        }
        route
    }

    /// A route to `prefix` by way of the neighbor `via`; `None` if their families differ.
    #[cfg(any(test, feature = "testbed"))]
    pub(crate) fn via(prefix: IpNet, via: IpAddr) -> Option<Self> {
        if prefix.addr().is_ipv4() != via.is_ipv4() {
            return None;
        }
        let mut route = Self::unicast(via);
        route.0.header.protocol = RouteProtocol::Static;
        route.0.header.destination_prefix_length = prefix.prefix_len();
        route.0.attributes = vec![
            RouteAttribute::Destination(prefix.network().into()),
            RouteAttribute::Gateway(via.into()),
        ];
        Some(route)
    }

    fn unicast(like: IpAddr) -> Self {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(like);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        Self(message)
    }

    /// The request to add it, where no route has the same destination and metric.
    pub(crate) fn add(self, what: &str) -> Request {
        Request::create(
            format!("add route {what}"),
            RouteNetlinkMessage::NewRoute(self.0),
        )
    }

    /// The request to put it in the place of the one with the same destination and metric.
    pub(crate) fn replace(self, what: &str) -> Request {
        Request::replace(
            format!("replace route {what}"),
            RouteNetlinkMessage::NewRoute(self.0),
        )
    }

    /// The request to remove it.
    pub(crate) fn remove(self) -> Request {
        let action = format!("remove route {}", self.describe());
        Request::change(action, RouteNetlinkMessage::DelRoute(self.0))
    }

    /// Whether it is a default route of the main table.
    pub(crate) fn is_default(&self) -> bool {
        self.0.header.destination_prefix_length == 0 && self.is_of_main_table()
    }

    fn is_of_main_table(&self) -> bool {
        self.0.header.table == RouteHeader::RT_TABLE_MAIN
    }

    /// Whether it is a route of the main table that carries our mark.
    pub(crate) fn is_ours(&self) -> bool {
        self.is_marked() && self.is_of_main_table()
    }

    /// Whether it is a route of another table that carries our mark.
    pub(crate) fn is_ours_elsewhere(&self) -> bool {
        self.is_marked() && !self.is_of_main_table()
    }

    /// Whether it carries our mark, whatever its table.
    pub(crate) fn is_marked(&self) -> bool {
        self.0.header.protocol == mark()
    }

    pub(crate) fn table(&self) -> u32 {
        let number = self.attribute(|attribute| match attribute {
            RouteAttribute::Table(number) => Some(*number),
            _ => None,
        });
        number.unwrap_or(self.0.header.table.into())
    }

    /// Its destinations, if it is a unicast route of the main table.
    pub(crate) fn network(&self) -> Option<IpNet> {
        let unicast = self.0.header.kind == RouteType::Unicast && self.is_of_main_table();
        self.destinations().filter(|_| unicast)
    }

    /// Where it leads, whatever its table and kind.
    pub(crate) fn destinations(&self) -> Option<IpNet> {
        let header = &self.0.header;
        let unspecified = match header.address_family {
            AddressFamily::Inet => IpAddr::from([0; 4]),
            AddressFamily::Inet6 => IpAddr::from([0; 16]),
            _ => return None,
        };
        let destination = self.attribute(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some((*address).into()),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some((*address).into()),
            _ => None,
        });
        let destination = destination.unwrap_or(unspecified);
        IpNet::new(destination, header.destination_prefix_length).ok()
    }

    /// Whether both send the same packets the same way.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.0.header.scope == other.0.header.scope
            && self.0.header.kind == other.0.header.kind
            && self.is_about_same(other)
            && self.interface() == other.interface()
            && self.source() == other.source()
            && self.gateway() == other.gateway()
    }

    /// Whether it is preferred to our route to the same destinations, or as good.
    pub(crate) fn wins_over_ours(&self) -> bool {
        let ours = match self.0.header.address_family {
            AddressFamily::Inet6 => IPV6_METRIC,
            _ => 0,
        };
        self.metric() <= ours
    }

    /// Whether both lead to the same destinations in the same table.
    pub(crate) fn is_about_same(&self, other: &Self) -> bool {
        self.table() == other.table() && self.destinations() == other.destinations()
    }

    /// What an error calls it.
    pub(crate) fn describe(&self) -> String {
        let family = match self.0.header.address_family {
            AddressFamily::Inet6 => "IPv6",
            _ => "IPv4",
        };
        let gateway = self.gateway().map(|gateway| format!(" via {gateway}"));
        let output = self.interface();
        let output = output.map(|index| format!(" through interface {index}"));
        let [gateway, output] = [gateway, output].map(Option::unwrap_or_default);
        let what = match self.destinations() {
            Some(network) if network.prefix_len() > 0 => format!("route to {network}"),
            _ => "default route".to_owned(),
        };
        format!("an {family} {what}{gateway}{output}")
    }

    /// Index of the interface that it leads through.
    pub(crate) fn interface(&self) -> Option<u32> {
        self.attribute(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })
    }

    fn gateway(&self) -> Option<IpAddr> {
        self.attribute(|attribute| match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some((*address).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => Some((*address).into()),
            _ => None,
        })
    }

    fn source(&self) -> Option<&RouteAddress> {
        self.attribute(|attribute| match attribute {
            RouteAttribute::PrefSource(address) => Some(address),
            _ => None,
        })
    }

    fn metric(&self) -> u32 {
        let metric = self.attribute(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        });
        metric.unwrap_or(0)
    }

    fn attribute<'a, T>(&'a self, read: impl Fn(&'a RouteAttribute) -> Option<T>) -> Option<T> {
        self.0.attributes.iter().find_map(read)
    }
}

impl Netlink {
    /// The routes of a family, of all tables.
    pub(crate) fn routes(&self, family: AddressFamily) -> Result<Vec<RouteFacts>, NetlinkError> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        let objects = self.dump("list routes", &RouteNetlinkMessage::GetRoute(filter))?;
        Ok(objects.into_iter().filter_map(route_facts).collect())
    }

    /// Where the kernel would send packets to each address of interface `index`; `None` where it
    /// knows no way.
    pub(super) fn route_types(
        &self,
        index: u32,
        addresses: &[IpAddr],
    ) -> Result<Vec<Option<RouteType>>, NetlinkError> {
        let questions: Vec<_> = addresses
            .iter()
            .map(|address| route_question(index, *address))
            .collect();
        let Some(first) = addresses.first() else {
            return Ok(Vec::new());
        };
        self.ask(&format!("look up the route to {first}"), &questions)
            .into_iter()
            .map(|answer| match answer {
                Ok(objects) => Ok(objects.into_iter().find_map(route_facts)),
                Err(error) if error.is(&[libc::ENETUNREACH, libc::EHOSTUNREACH]) => Ok(None),
                Err(error) => Err(error),
            })
            .map(|route| route.map(|route| route.map(|route| route.0.header.kind)))
            .collect()
    }
}

fn route_question(index: u32, address: IpAddr) -> RouteNetlinkMessage {
    let mut question = RouteMessage::default();
    question.header.address_family = family_of(address);
    question.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    // A link-local address is one on a link only.
    question.attributes = vec![
        RouteAttribute::Destination(address.into()),
        RouteAttribute::Oif(index),
    ];
    RouteNetlinkMessage::GetRoute(question)
}

fn route_facts(object: RouteNetlinkMessage) -> Option<RouteFacts> {
    match object {
        RouteNetlinkMessage::NewRoute(message) => Some(RouteFacts(message)),
        _ => None,
    }
}

/// The protocol that marks our routes.
fn mark() -> RouteProtocol {
    RouteProtocol::from(PROTOCOL)
}

/// The address family of an address, in netlink's terms.
pub(crate) fn family_of(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_compared_by_what_matters() {
        let source = "203.0.113.1".parse().unwrap();
        let route = RouteFacts::our_default(2, source);
        assert!(route.is_ours());
        assert!(route.is_same(&route.clone()));
        assert!(!route.is_same(&RouteFacts::our_default(3, source)));
        let network: IpNet = "203.0.113.0/24".parse().unwrap();
        let connected = RouteFacts::our_network(network, 2, source);
        assert!(connected.is_ours() && !connected.is_default());
        assert_eq!(connected.network(), Some(network));
        assert_eq!(route.network().map(|net| net.prefix_len()), Some(0));
        assert_eq!(
            connected.describe(),
            "an IPv4 route to 203.0.113.0/24 through interface 2"
        );
        let other = "203.0.113.9".parse().unwrap();
        assert!(!route.is_same(&RouteFacts::our_default(2, other)));
    }

    #[test]
    fn a_route_has_one_family() {
        let [v4, v6] = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse::<IpAddr>().unwrap());
        let default: ipnet::IpNet = "0.0.0.0/0".parse().unwrap();
        assert!(RouteFacts::via(default, v4).is_some_and(|route| route.is_default()));
        assert!(RouteFacts::via(default, v6).is_none());
    }
}
