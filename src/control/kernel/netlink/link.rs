//! Interfaces: what the kernel says of one, and how one is made, changed and deleted.

use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage, State, Stats64,
};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use nos_shim::ident::MacAddr;

use super::client::{Netlink, Request};
use super::error::NetlinkError;
use crate::control::kernel::Namespace;

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
    /// It asks for MAC addresses of neighbors (not `IFF_NOARP`).
    pub resolves: bool,
    /// Length of the transmit queue in packets.
    pub tx_queue_len: u32,
    /// Kind of a virtual interface as rtnetlink names it: `veth`, `tun`, `bridge`.
    pub kind: Option<String>,
    /// The alias, which says whose it is.
    pub alias: Option<String>,
    /// Index of the lower or peer interface, in the peer's namespace.
    pub peer: Option<u32>,
    /// The namespace of that, by the number that it has here; `None` if it is this one.
    pub(crate) peer_namespace: Option<i32>,
    /// Index of the bridge that it is a port of, or of what else it is under.
    pub controller: Option<u32>,
    /// The number of a group of interfaces; 0 unless somebody set it.
    pub(crate) group: u32,
    /// Whether the interface speaks IPv6.
    pub(crate) ipv6: Ipv6State,
    /// Counters since the interface was made.
    pub statistics: LinkStatistics,
}

/// Whether an interface speaks IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ipv6State {
    /// It does, and makes its link-local address by itself in this way.
    Enabled(In6AddrGenMode),
    /// `disable_ipv6` is set.
    Disabled,
    /// The kernel has no IPv6, or the interface's MTU is below 1280.
    Absent,
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

/// How an interface is looked up.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LinkSelector<'a> {
    Index(u32),
    Name(&'a str),
}

/// What an interface shall be like. Only what is set is changed.
#[derive(Clone, Debug)]
pub(crate) struct LinkChange(LinkMessage);

impl LinkChange {
    /// Of the interface with this index.
    pub(crate) fn of(index: u32) -> Self {
        let mut change = Self(LinkMessage::default());
        change.0.header.index = index;
        change
    }

    /// Of the interface with this name, or of one that is to be made.
    pub(crate) fn named(name: &str) -> Self {
        Self(LinkMessage::default()).with(LinkAttribute::IfName(name.to_owned()))
    }

    /// Gives it another name.
    pub(crate) fn name(self, name: &str) -> Self {
        self.with(LinkAttribute::IfName(name.to_owned()))
    }

    pub(crate) fn mac(self, mac: MacAddr) -> Self {
        self.with(LinkAttribute::Address(mac.0.to_vec()))
    }

    /// In octets.
    pub(crate) fn mtu(self, mtu: u32) -> Self {
        self.with(LinkAttribute::Mtu(mtu))
    }

    /// In packets.
    pub(crate) fn tx_queue_len(self, length: u32) -> Self {
        self.with(LinkAttribute::TxQueueLen(length))
    }

    pub(crate) fn alias(self, alias: String) -> Self {
        self.with(LinkAttribute::IfAlias(alias))
    }

    pub(crate) fn group(self, group: u32) -> Self {
        self.with(LinkAttribute::Group(group))
    }

    /// The longest super-frames that it sends and that its GRO makes, in octets.
    #[cfg(any(test, feature = "testbed"))]
    pub(crate) fn super_frame_size(self, octets: u32) -> Self {
        self.with(LinkAttribute::GsoMaxSize(octets))
            .with(LinkAttribute::GsoIpv4MaxSize(octets))
            .with(LinkAttribute::GroMaxSize(octets))
            .with(LinkAttribute::GroIpv4MaxSize(octets))
    }

    /// Makes it a port of the bridge with this index; of none, if that is 0.
    pub(crate) fn controller(self, index: u32) -> Self {
        self.with(LinkAttribute::Controller(index))
    }

    /// Moves it into a namespace, which must stay open until the request is made.
    pub(crate) fn into_namespace(self, namespace: &impl AsFd) -> Self {
        self.with(LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()))
    }

    /// How the kernel makes the link-local address when the interface is set up.
    pub(crate) fn link_local_by(self, mode: In6AddrGenMode) -> Self {
        let ipv6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)]);
        self.with(LinkAttribute::AfSpecUnspec(vec![ipv6]))
    }

    pub(crate) fn up(self) -> Self {
        self.administrative(LinkFlags::Up)
    }

    /// Has it ask for no MAC addresses, as if all neighbors had its own.
    #[cfg(any(test, feature = "testbed"))]
    pub(crate) fn not_resolving(mut self) -> Self {
        self.0.header.flags.insert(LinkFlags::Noarp);
        self.0.header.change_mask.insert(LinkFlags::Noarp);
        self
    }

    /// Has it ask for MAC addresses (ARP, neighbor discovery), which is what a new one does.
    pub(crate) fn resolving(mut self) -> Self {
        self.0.header.flags.remove(LinkFlags::Noarp);
        self.0.header.change_mask.insert(LinkFlags::Noarp);
        self
    }

    #[cfg(any(test, feature = "testbed"))]
    pub(crate) fn down(self) -> Self {
        self.administrative(LinkFlags::empty())
    }

    /// Makes it a veth whose other end is `peer`.
    pub(crate) fn veth(self, peer: Self) -> Self {
        let peer = InfoData::Veth(InfoVeth::Peer(peer.0));
        let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(peer)];
        self.with(LinkAttribute::LinkInfo(info))
    }

    /// Makes it a bridge.
    pub(crate) fn bridge(self) -> Self {
        self.with(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(
            InfoKind::Bridge,
        )]))
    }

    /// Makes it an end of a VXLAN tunnel.
    #[cfg(any(test, feature = "testbed"))]
    pub(crate) fn vxlan(self, vxlan: crate::lab::testbed::Vxlan) -> Self {
        use netlink_packet_route::link::InfoVxlan;
        use std::net::IpAddr;
        let local = match vxlan.local {
            IpAddr::V4(address) => InfoVxlan::Local(address),
            IpAddr::V6(address) => InfoVxlan::Local6(address),
        };
        let remote = match vxlan.remote {
            IpAddr::V4(address) => InfoVxlan::Group(address),
            IpAddr::V6(address) => InfoVxlan::Group6(address),
        };
        let data = InfoData::Vxlan(vec![
            InfoVxlan::Id(1),
            local,
            remote,
            InfoVxlan::Port(vxlan.port),
            InfoVxlan::UDPCsum(vxlan.checksum),
            InfoVxlan::UDPZeroCsumTX(!vxlan.checksum),
            InfoVxlan::UDPZeroCsumRX(!vxlan.checksum),
        ]);
        let info = vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(data)];
        self.with(LinkAttribute::LinkInfo(info))
    }

    /// Whether it asks for nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.attributes.is_empty() && self.0.header.change_mask.is_empty()
    }

    /// The request to change an interface; `what` names it.
    pub(crate) fn request(self, what: &str) -> Request {
        Request::change(
            format!("set up {what}"),
            RouteNetlinkMessage::SetLink(self.0),
        )
    }

    /// The request to make an interface.
    pub(crate) fn create(self, what: &str) -> Request {
        Request::create(
            format!("create {what}"),
            RouteNetlinkMessage::NewLink(self.0),
        )
    }

    /// The request to delete an interface.
    pub(crate) fn delete(index: u32, name: &str) -> Request {
        let message = Self::of(index).0;
        Request::change(
            format!("delete interface {name}"),
            RouteNetlinkMessage::DelLink(message),
        )
    }

    /// The request to delete all interfaces of a group, which the kernel does in one go: it waits
    /// once for all of them until nobody uses them any more.
    pub(crate) fn delete_group(group: u32) -> Request {
        let message = Self::of(0).group(group).0;
        Request::change(
            format!("delete the interfaces of group {group}"),
            RouteNetlinkMessage::DelLink(message),
        )
    }

    fn with(mut self, attribute: LinkAttribute) -> Self {
        self.0.attributes.push(attribute);
        self
    }

    fn administrative(mut self, flags: LinkFlags) -> Self {
        self.0.header.flags.insert(flags);
        self.0.header.change_mask.insert(LinkFlags::Up);
        self
    }
}

impl Netlink {
    /// What the kernel says of some interfaces; `None` for each that is not there.
    pub(crate) fn links(
        &self,
        selectors: &[LinkSelector<'_>],
    ) -> Result<Vec<Option<LinkFacts>>, NetlinkError> {
        let questions: Vec<_> = selectors
            .iter()
            .map(|selector| selector.question())
            .collect();
        let names: Vec<_> = selectors
            .iter()
            .map(|selector| selector.describe())
            .collect();
        let answers = self.ask(&format!("look up {}", names.join(" and ")), &questions);
        answers
            .into_iter()
            .map(|answer| match answer {
                Ok(objects) => Ok(objects.iter().find_map(link_facts)),
                Err(error) if error.is(&[libc::ENODEV]) => Ok(None),
                Err(error) => Err(error),
            })
            .collect()
    }

    /// What the kernel says of an interface; `None` where there is none.
    pub(crate) fn link(&self, name: &str) -> Result<Option<LinkFacts>, NetlinkError> {
        let mut found = self.links(&[LinkSelector::Name(name)])?;
        Ok(found.pop().flatten())
    }

    /// The same, by the kernel's number of it.
    pub(crate) fn link_by_index(&self, index: u32) -> Result<Option<LinkFacts>, NetlinkError> {
        let mut found = self.links(&[LinkSelector::Index(index)])?;
        Ok(found.pop().flatten())
    }

    /// Like [`Netlink::link`], for an interface that has to be there.
    pub(crate) fn existing_link(&self, name: &str) -> Result<LinkFacts, NetlinkError> {
        self.link(name)?.ok_or_else(|| self.no_link(name))
    }

    /// The error of an interface that has to be there and is not.
    pub(crate) fn no_link(&self, name: &str) -> NetlinkError {
        let missing = std::io::Error::from_raw_os_error(libc::ENODEV);
        self.failed(format!("look up interface {name}"), missing)
    }

    /// The number that another namespace has in this one. The kernel gives it one when it tells of an interface
    /// whose peer is there.
    pub(crate) fn number_of(&self, other: &Namespace) -> Result<Option<i32>, NetlinkError> {
        let Ok(fd) = u32::try_from(other.as_fd().as_raw_fd()) else {
            return Ok(None);
        };
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::Fd(fd));
        let question = RouteNetlinkMessage::GetNsId(message);
        let mut answers = self.ask(&format!("look up the number of {other}"), &[question]);
        let objects = answers.pop().unwrap_or_else(|| Ok(Vec::new()))?;
        let numbers = objects.iter().filter_map(|object| match object {
            RouteNetlinkMessage::NewNsId(message) => Some(&message.attributes),
            _ => None,
        });
        Ok(numbers.flatten().find_map(|attribute| match attribute {
            NsidAttribute::Id(number) => (*number >= 0).then_some(*number),
            _ => None,
        }))
    }

    /// All interfaces of the namespace.
    pub(crate) fn all_links(&self) -> Result<Vec<LinkFacts>, NetlinkError> {
        let all = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let objects = self.dump("list interfaces", &all)?;
        Ok(objects.iter().filter_map(link_facts).collect())
    }

    #[cfg(any(test, feature = "testbed"))]
    pub(crate) fn set_up(&self, link: &LinkFacts) -> Result<(), NetlinkError> {
        self.call(&LinkChange::of(link.index).up().request(&link.name))
    }

    pub(crate) fn delete_link(&self, link: &LinkFacts) -> Result<(), NetlinkError> {
        self.call(&LinkChange::delete(link.index, &link.name))
    }
}

impl LinkSelector<'_> {
    fn question(&self) -> RouteNetlinkMessage {
        RouteNetlinkMessage::GetLink(match self {
            Self::Index(index) => LinkChange::of(*index).0,
            Self::Name(name) => LinkChange::named(name).0,
        })
    }

    fn describe(&self) -> String {
        match self {
            Self::Index(index) => format!("interface {index}"),
            Self::Name(name) => format!("interface {name}"),
        }
    }
}

fn link_facts(object: &RouteNetlinkMessage) -> Option<LinkFacts> {
    match object {
        RouteNetlinkMessage::NewLink(message) => Some(LinkFacts::of(message)),
        _ => None,
    }
}

impl LinkFacts {
    /// Of an interface that only this process knows: it has no number, and is not operational.
    pub(crate) fn outside_of_kernel(name: String, mac: MacAddr, mtu: u32) -> Self {
        Self {
            index: 0,
            name,
            mac: Some(mac),
            mtu,
            up: true,
            operational: false,
            resolves: true,
            tx_queue_len: 0,
            kind: None,
            alias: None,
            peer: None,
            peer_namespace: None,
            controller: None,
            group: 0,
            ipv6: Ipv6State::Absent,
            statistics: LinkStatistics::default(),
        }
    }

    pub(in crate::control::kernel) fn of(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut facts = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            operational: flags.contains(LinkFlags::LowerUp),
            resolves: !flags.contains(LinkFlags::Noarp),
            tx_queue_len: 0,
            kind: None,
            alias: None,
            peer: None,
            peer_namespace: None,
            controller: None,
            group: 0,
            ipv6: Ipv6State::Absent,
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
            LinkAttribute::LinkNetNsId(number) => self.peer_namespace = Some(*number),
            LinkAttribute::Controller(index) => self.controller = Some(*index),
            LinkAttribute::Group(group) => self.group = *group,
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
            LinkAttribute::AfSpecUnspec(families) => self.ipv6 = ipv6_state(families),
            _ => {}
        }
    }
}

fn ipv6_state(families: &[AfSpecUnspec]) -> Ipv6State {
    let of_ipv6 = families.iter().find_map(|family| match family {
        AfSpecUnspec::Inet6(attributes) => Some(attributes),
        _ => None,
    });
    let Some(attributes) = of_ipv6 else {
        return Ipv6State::Absent;
    };
    let mut mode = In6AddrGenMode::Eui64;
    for attribute in attributes {
        match attribute {
            AfSpecInet6::DevConf(settings) if settings.disable_ipv6 != 0 => {
                return Ipv6State::Disabled;
            }
            AfSpecInet6::AddrGenMode(present) => mode = *present,
            _ => {}
        }
    }
    Ipv6State::Enabled(mode)
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
