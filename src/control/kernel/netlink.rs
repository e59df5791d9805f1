//! rtnetlink requests to one namespace, as plain calls that return when the kernel has answered.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use futures_util::{Stream, TryStreamExt};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State, Stats64};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use nos_shim::ident::MacAddr;
use rtnetlink::{Handle, LinkUnspec};
use thiserror::Error;

use super::changes::{Changes, Topic};
use super::namespace::{Namespace, NamespaceError};

/// Marks addresses (IFA_PROTO, Linux 5.18) and routes (rtm_protocol) as ours. Any value that no
/// routing daemon in `/etc/iproute2/rt_protos` uses would do.
pub(crate) const PROTOCOL: u8 = 206;

/// How long the kernel may take to make an address local; milliseconds are usual.
const LOCAL_LIMIT: Duration = Duration::from_secs(5);

/// A request that the kernel did not carry out.
#[derive(Debug, Error)]
#[error("cannot {action} in {namespace}: {source}{}", detail.as_deref().unwrap_or_default())]
pub struct NetlinkError {
    action: String,
    namespace: String,
    source: io::Error,
    detail: Option<String>,
}

impl NetlinkError {
    /// The errno of the refusal, where the kernel gave one.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    pub(crate) fn is(&self, codes: &[i32]) -> bool {
        self.code().is_some_and(|code| codes.contains(&code))
    }
}

/// The name of a network interface: 1 to 15 octets without `/`, `:` or white space.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceName(String);

/// Text that cannot name an interface.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("'{0}' cannot name an interface; use 1 to 15 characters without '/', ':' or spaces")]
pub struct InterfaceNameError(String);

impl InterfaceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(text: &str) -> Result<Self, InterfaceNameError> {
        // What the kernel's dev_valid_name() takes; '%' as well, since it makes a name a pattern.
        let refused = |c: char| matches!(c, '/' | ':' | '%' | '\0') || c.is_whitespace();
        let fits = (1..libc::IFNAMSIZ).contains(&text.len());
        if !fits || matches!(text, "." | "..") || text.contains(refused) {
            return Err(InterfaceNameError(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the kernel says of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkFacts {
    /// Number of the interface in its namespace.
    pub index: u32,
    /// Its present name.
    pub name: String,
    /// Absent where the interface has none, as a tunnel.
    pub mac: Option<MacAddr>,
    /// Largest layer 3 packet in octets.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Up, and the other end as well: frames can pass.
    pub operational: bool,
    /// Length of the transmit queue in packets.
    pub tx_queue_len: u32,
    /// Kind of a virtual interface as rtnetlink names it: `veth`, `tun`, `bridge`.
    pub kind: Option<String>,
    /// The alias, which says whose it is.
    pub alias: Option<String>,
    /// Index of the lower or peer interface, in the peer's namespace.
    pub peer: Option<u32>,
    /// Counters since the interface was made.
    pub statistics: LinkStatistics,
}

/// Counters of an interface. For a TAP, `rx` is what we wrote and `tx` what we read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStatistics {
    /// Packets that the interface handed to the kernel.
    pub rx_packets: u64,
    /// Octets that the interface handed to the kernel.
    pub rx_bytes: u64,
    /// Dropped on the way in.
    pub rx_dropped: u64,
    /// Bad on the way in.
    pub rx_errors: u64,
    /// Packets that the kernel sent through the interface.
    pub tx_packets: u64,
    /// Octets that the kernel sent through the interface.
    pub tx_bytes: u64,
    /// Dropped on the way out; of a TAP: the queue was full, its reader too slow.
    pub tx_dropped: u64,
    /// Failed on the way out.
    pub tx_errors: u64,
}

/// An address of an interface, as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AddressFacts {
    pub(crate) address: IpAddr,
    pub(crate) prefix_length: u8,
    /// Carries [`PROTOCOL`].
    pub(crate) marked: bool,
}

/// A netlink socket in one namespace, with the runtime that drives it.
pub(crate) struct Netlink {
    namespace: String,
    runtime: tokio::runtime::Runtime,
    handle: Handle,
}

impl Netlink {
    pub(crate) fn open(namespace: &Namespace) -> Result<Self, NetlinkOpenError> {
        let label = namespace.to_string();
        let opened = namespace.run(move || -> io::Result<Self> {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()?;
            let handle = {
                let _context = runtime.enter();
                let (mut connection, handle, _) = rtnetlink::new_connection()?;
                let socket = rtnetlink::proto::Connection::socket_mut(&mut connection);
                // Reasons in words; old kernels know neither option and do without.
                let socket = rtnetlink::sys::AsyncSocket::socket_mut(socket);
                let _ = socket.set_cap_ack(true);
                let _ = socket.set_ext_ack(true);
                runtime.spawn(connection);
                handle
            };
            Ok(Self {
                namespace: label,
                runtime,
                handle,
            })
        })?;
        opened.map_err(|source| NetlinkOpenError::Socket {
            namespace: namespace.to_string(),
            source,
        })
    }

    pub(crate) fn link(&self, name: &str) -> Result<Option<LinkFacts>, NetlinkError> {
        let request = self.handle.link().get().match_name(name.to_owned());
        match self.collect(format!("look up interface {name}"), request.execute()) {
            Ok(links) => Ok(links.first().map(LinkFacts::of)),
            Err(error) if error.is(&[libc::ENODEV]) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Like [`Netlink::link`], for an interface that has to be there.
    pub(crate) fn existing_link(&self, name: &str) -> Result<LinkFacts, NetlinkError> {
        self.link(name)?.ok_or_else(|| {
            let missing = io::Error::from_raw_os_error(libc::ENODEV);
            self.error(format!("look up interface {name}"), missing, None)
        })
    }

    pub(crate) fn add_link(&self, what: &str, link: LinkMessage) -> Result<(), NetlinkError> {
        self.call(
            format!("create {what}"),
            self.handle.link().add(link).execute(),
        )
    }

    /// Changes the attributes and flags that `link` carries, of the link whose index it carries.
    pub(crate) fn change_link(&self, what: &str, link: LinkMessage) -> Result<(), NetlinkError> {
        self.call(
            format!("set up {what}"),
            self.handle.link().change(link).execute(),
        )
    }

    pub(crate) fn set_up(&self, link: &LinkFacts) -> Result<(), NetlinkError> {
        let up = LinkUnspec::new_with_index(link.index).up().build();
        self.change_link(&link.name, up)
    }

    pub(crate) fn delete_link(&self, link: &LinkFacts) -> Result<(), NetlinkError> {
        self.call(
            format!("delete interface {}", link.name),
            self.handle.link().del(link.index).execute(),
        )
    }

    pub(crate) fn addresses(&self, index: u32) -> Result<Vec<AddressFacts>, NetlinkError> {
        let request = self.handle.address().get();
        let all = self.collect("list addresses".to_owned(), request.execute())?;
        let of_link = all.iter().filter(|message| message.header.index == index);
        Ok(of_link.filter_map(AddressFacts::of).collect())
    }

    /// Adds an address that is usable at once: without duplicate address detection.
    pub(crate) fn add_address(
        &self,
        index: u32,
        address: IpAddr,
        prefix_length: u8,
        marked: bool,
    ) -> Result<(), NetlinkError> {
        let mut request = self.handle.address().add(index, address, prefix_length);
        let attributes = &mut request.message_mut().attributes;
        attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        if marked {
            let mark = AddressProtocol::Other(PROTOCOL);
            attributes.push(AddressAttribute::Protocol(mark));
        }
        self.call(
            format!("add address {address}/{prefix_length}"),
            request.execute(),
        )
    }

    /// Waits until packets to an address of link `index` are delivered here.
    ///
    /// The kernel makes an IPv6 address local a moment after it has confirmed it, on a thread of
    /// its own. Until then it would route packets for it elsewhere.
    pub(crate) fn wait_local(
        &self,
        namespace: &Namespace,
        index: u32,
        address: IpAddr,
    ) -> Result<(), NetlinkError> {
        if address.is_ipv4() || self.is_local(index, address)? {
            return Ok(());
        }
        let action = || format!("wait until {address} is in use");
        let failed = |source| self.error(action(), source, None);
        let changes = Changes::watch(namespace, Topic::Ipv6Routes)
            .map_err(|error| failed(io::Error::other(error)))?
            .map_err(failed)?;
        let reached = || self.is_local(index, address).map_err(io::Error::other);
        match changes.wait(LOCAL_LIMIT, reached) {
            Ok(true) => Ok(()),
            Ok(false) => Err(failed(io::ErrorKind::TimedOut.into())),
            Err(error) => Err(failed(error)),
        }
    }

    fn is_local(&self, index: u32, address: IpAddr) -> Result<bool, NetlinkError> {
        let mut question = RouteMessage::default();
        question.header.address_family = family_of(address);
        question.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        // A link-local address is one on a link only.
        question.attributes = vec![
            RouteAttribute::Destination(address.into()),
            RouteAttribute::Oif(index),
        ];
        let request = self.handle.route().get(question);
        match self.collect(format!("look up the route to {address}"), request.execute()) {
            Ok(routes) => Ok(routes
                .iter()
                .any(|route| route.header.kind == RouteType::Local)),
            Err(error) if error.is(&[libc::ENETUNREACH, libc::EHOSTUNREACH]) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn delete_address(
        &self,
        index: u32,
        address: &AddressFacts,
    ) -> Result<(), NetlinkError> {
        let AddressFacts {
            address,
            prefix_length,
            ..
        } = *address;
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = prefix_length;
        message.header.family = family_of(address);
        message.attributes = vec![
            AddressAttribute::Local(address),
            AddressAttribute::Address(address),
        ];
        self.call(
            format!("remove address {address}/{prefix_length}"),
            self.handle.address().del(message).execute(),
        )
    }

    pub(crate) fn routes(&self, family: AddressFamily) -> Result<Vec<RouteMessage>, NetlinkError> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        self.collect(
            "list routes".to_owned(),
            self.handle.route().get(filter).execute(),
        )
    }

    pub(crate) fn add_route(&self, what: &str, route: RouteMessage) -> Result<(), NetlinkError> {
        self.call(
            format!("add route {what}"),
            self.handle.route().add(route).execute(),
        )
    }

    /// Puts `route` in the place of the one with the same destination and priority.
    pub(crate) fn replace_route(
        &self,
        what: &str,
        route: RouteMessage,
    ) -> Result<(), NetlinkError> {
        self.call(
            format!("replace route {what}"),
            self.handle.route().add(route).replace().execute(),
        )
    }

    pub(crate) fn delete_route(&self, what: &str, route: RouteMessage) -> Result<(), NetlinkError> {
        self.call(
            format!("remove route {what}"),
            self.handle.route().del(route).execute(),
        )
    }

    pub(crate) fn add_neighbor(
        &self,
        index: u32,
        address: IpAddr,
        mac: MacAddr,
    ) -> Result<(), NetlinkError> {
        let request = self.handle.neighbours().add(index, address);
        let request = request.link_layer_address(&mac.0).replace();
        self.call(
            format!("add neighbor {address} at {mac}"),
            request.execute(),
        )
    }

    fn call(
        &self,
        action: String,
        request: impl Future<Output = Result<(), rtnetlink::Error>>,
    ) -> Result<(), NetlinkError> {
        self.runtime
            .block_on(request)
            .map_err(|error| self.refused(action, error))
    }

    fn collect<T>(
        &self,
        action: String,
        answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
    ) -> Result<Vec<T>, NetlinkError> {
        self.runtime
            .block_on(answers.try_collect())
            .map_err(|error| self.refused(action, error))
    }

    fn refused(&self, action: String, error: rtnetlink::Error) -> NetlinkError {
        match error {
            rtnetlink::Error::NetlinkError(message) => {
                let reason = extended_ack(&message.header);
                self.error(action, message.to_io(), reason)
            }
            other => self.error(action, io::Error::other(other), None),
        }
    }

    fn error(&self, action: String, source: io::Error, reason: Option<String>) -> NetlinkError {
        NetlinkError {
            action,
            namespace: self.namespace.clone(),
            source,
            detail: reason.map(|text| format!(" ({text})")),
        }
    }
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Netlink({})", self.namespace)
    }
}

/// No netlink socket could be had in a namespace.
#[derive(Debug, Error)]
pub enum NetlinkOpenError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The socket cannot be opened.
    #[error("cannot open a netlink socket in {namespace}: {source}")]
    Socket {
        /// Which namespace.
        namespace: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl LinkFacts {
    pub(super) fn of(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut facts = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            operational: flags.contains(LinkFlags::LowerUp),
            tx_queue_len: 0,
            kind: None,
            alias: None,
            peer: None,
            statistics: LinkStatistics::default(),
        };
        for attribute in &message.attributes {
            facts.learn(attribute);
        }
        facts
    }

    fn learn(&mut self, attribute: &LinkAttribute) {
        match attribute {
            LinkAttribute::IfName(name) => self.name.clone_from(name),
            LinkAttribute::Address(octets) => {
                self.mac = <[u8; 6]>::try_from(octets.as_slice()).ok().map(MacAddr);
            }
            LinkAttribute::Mtu(mtu) => self.mtu = *mtu,
            LinkAttribute::TxQueueLen(length) => self.tx_queue_len = *length,
            LinkAttribute::IfAlias(alias) => self.alias = Some(alias.clone()),
            LinkAttribute::Link(index) => self.peer = Some(*index),
            LinkAttribute::Stats64(stats) => self.statistics = LinkStatistics::of(stats),
            // Down, or the layer below: the flag of the carrier alone does not say it.
            LinkAttribute::OperState(State::Down | State::LowerLayerDown | State::Dormant) => {
                self.operational = false;
            }
            LinkAttribute::LinkInfo(infos) => {
                self.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
}

impl LinkStatistics {
    fn of(stats: &Stats64) -> Self {
        Self {
            rx_packets: stats.rx_packets,
            rx_bytes: stats.rx_bytes,
            rx_dropped: stats.rx_dropped,
            rx_errors: stats.rx_errors,
            tx_packets: stats.tx_packets,
            tx_bytes: stats.tx_bytes,
            tx_dropped: stats.tx_dropped,
            tx_errors: stats.tx_errors,
        }
    }
}

impl AddressFacts {
    fn of(message: &AddressMessage) -> Option<Self> {
        // IFA_ADDRESS is the far end on point-to-point links; IFA_LOCAL, where present, is ours.
        let local = message.attributes.iter().find_map(|attribute| {
            let AddressAttribute::Local(address) = attribute else {
                return None;
            };
            Some(*address)
        });
        let plain = message.attributes.iter().find_map(|attribute| {
            let AddressAttribute::Address(address) = attribute else {
                return None;
            };
            Some(*address)
        });
        let mark = AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL));
        Some(Self {
            address: local.or(plain)?,
            prefix_length: message.header.prefix_len,
            marked: message.attributes.contains(&mark),
        })
    }
}

/// The protocol that marks our routes.
pub(crate) fn route_mark() -> RouteProtocol {
    RouteProtocol::from(PROTOCOL)
}

pub(crate) fn family_of(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// The kernel's reason in words, out of the part of an error message that follows the code.
///
/// With NETLINK_CAP_ACK that part is the header of the refused request (16 octets), then
/// attributes; NLMSGERR_ATTR_MSG is a text.
pub(crate) fn extended_ack(after_code: &[u8]) -> Option<String> {
    const HEADER: usize = 16;
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let mut rest = after_code.get(HEADER..)?;
    loop {
        let &[a, b, c, d, ref tail @ ..] = rest else {
            return None;
        };
        let length = usize::from(u16::from_ne_bytes([a, b])).checked_sub(4)?;
        let value = tail.get(..length)?;
        if u16::from_ne_bytes([c, d]) == NLMSGERR_ATTR_MSG {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = tail.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_follow_the_kernel() {
        for good in ["eth0", "a", "nr-0123456789ab", "éth0"] {
            assert_eq!(good.parse::<InterfaceName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "a:1",
            "eth%d",
            "sixteen-octets-x",
        ] {
            let error = bad.parse::<InterfaceName>().unwrap_err();
            assert!(error.to_string().contains(&format!("'{bad}'")));
        }
    }

    #[test]
    fn reason_is_found_behind_other_attributes() {
        let mut message = vec![0; 16];
        // NLMSGERR_ATTR_OFFS (2), a u32; then the text.
        message.extend([8, 0, 2, 0, 1, 2, 3, 4]);
        message.extend([7, 0, 1, 0, b'n', b'o', 0, 0]);
        assert_eq!(extended_ack(&message).as_deref(), Some("no"));
        assert_eq!(extended_ack(&message[..24]), None);
        assert_eq!(extended_ack(&[]), None);
    }

    #[test]
    fn truncated_reason_is_none() {
        let mut message = vec![0; 16];
        message.extend([200, 0, 1, 0, b'n']);
        assert_eq!(extended_ack(&message), None);
        message[16] = 3;
        assert_eq!(extended_ack(&message), None);
    }
}
