//! Addresses of interfaces.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
    AddressScope,
};
use netlink_packet_route::route::RouteType;

use super::PROTOCOL;
use super::client::{Netlink, Request};
use super::error::NetlinkError;
use super::route::family_of;
use crate::control::kernel::changes::{Changes, Topic};
use crate::control::kernel::namespace::Namespace;

/// How long the kernel may take to make an address local; milliseconds are usual.
const LOCAL_LIMIT: Duration = Duration::from_secs(5);
/// How long it is waited before somebody who removes the address again is thought of.
const REMOVAL_CHECK: Duration = Duration::from_millis(20);

/// An address of an interface, as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AddressFacts {
    /// Index of the interface.
    pub(crate) interface: u32,
    pub(crate) address: IpAddr,
    pub(crate) prefix_length: u8,
    /// Carries [`PROTOCOL`].
    pub(crate) marked: bool,
    /// Cannot be used until duplicate address detection ends (RFC 4862 section 5.4).
    pub(crate) tentative: bool,
}

impl Netlink {
    /// The addresses of all interfaces.
    pub(crate) fn addresses(&self) -> Result<Vec<AddressFacts>, NetlinkError> {
        let all = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let objects = self.dump("list addresses", &all)?;
        Ok(objects.iter().filter_map(address_facts).collect())
    }

    /// Waits until packets to each of `addresses` of interface `index` are delivered here.
    ///
    /// The kernel makes an IPv6 address local a moment after it was added, on a thread of its own.
    /// Until then it would route packets for it elsewhere.
    pub(crate) fn wait_local(
        &self,
        namespace: &Namespace,
        index: u32,
        addresses: &[IpAddr],
    ) -> Result<(), NetlinkError> {
        let missing = self.not_yet_local(index, addresses)?;
        let Some(first) = missing.first() else {
            return Ok(());
        };
        let action = || format!("wait until {first} is in use");
        let failed = |source| self.failed(action(), source);
        let changes = Changes::watch(namespace, Topic::Ipv6Routes)
            .map_err(|error| failed(io::Error::other(error)))?
            .map_err(failed)?;
        let reached = || {
            let missing = self.not_yet_local(index, &missing);
            Ok::<_, io::Error>(missing.map_err(io::Error::other)?.is_empty())
        };
        let deadline = Instant::now() + LOCAL_LIMIT;
        while Instant::now() < deadline {
            if changes.wait(REMOVAL_CHECK, reached).map_err(failed)? {
                return Ok(());
            }
            // Somebody has removed one, which nothing may tell: it will never be in use.
            if !self.has_all(index, &missing)? {
                return Ok(());
            }
        }
        Err(failed(io::ErrorKind::TimedOut.into()))
    }

    /// Whether an interface has all of `addresses`, be they in use or not.
    fn has_all(&self, index: u32, addresses: &[IpAddr]) -> Result<bool, NetlinkError> {
        let present = self.addresses()?;
        let has = |address: &IpAddr| {
            let mut present = present.iter();
            present.any(|facts| facts.interface == index && facts.address == *address)
        };
        Ok(addresses.iter().all(has))
    }

    /// Those of `addresses` to which the kernel would not deliver yet.
    fn not_yet_local(&self, index: u32, addresses: &[IpAddr]) -> Result<Vec<IpAddr>, NetlinkError> {
        // IPv4 addresses are local at once.
        let asked: Vec<_> = addresses.iter().copied().filter(IpAddr::is_ipv6).collect();
        let types = self.route_types(index, &asked)?;
        let with_type = asked.into_iter().zip(types);
        Ok(with_type
            .filter(|(_, kind)| *kind != Some(RouteType::Local))
            .map(|(address, _)| address)
            .collect())
    }
}

impl AddressFacts {
    /// An address of an interface, without our mark.
    pub(crate) fn new(interface: u32, address: IpAddr, prefix_length: u8) -> Self {
        Self {
            interface,
            address,
            prefix_length,
            marked: false,
            tentative: false,
        }
    }

    /// The same with our mark.
    pub(crate) fn marked(self) -> Self {
        Self {
            marked: true,
            ..self
        }
    }

    /// The request to add an address that is usable at once: without duplicate address detection.
    pub(crate) fn add(self) -> Request {
        let mut message = self.message();
        // The attribute replaces the flags of the header, except on old kernels.
        message.header.flags = AddressHeaderFlags::Nodad;
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
        if self.marked {
            let mark = AddressProtocol::Other(PROTOCOL);
            message.attributes.push(AddressAttribute::Protocol(mark));
        }
        Request::create(
            format!("add address {}/{}", self.address, self.prefix_length),
            RouteNetlinkMessage::NewAddress(message),
        )
    }

    /// The request to remove it.
    pub(crate) fn remove(self) -> Request {
        Request::change(
            format!("remove address {}/{}", self.address, self.prefix_length),
            RouteNetlinkMessage::DelAddress(self.message()),
        )
    }

    fn message(self) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = self.interface;
        message.header.prefix_len = self.prefix_length;
        message.header.family = family_of(self.address);
        message.header.scope = AddressScope::Universe;
        message.attributes = vec![
            AddressAttribute::Local(self.address),
            AddressAttribute::Address(self.address),
        ];
        if let (IpAddr::V4(address), 1..=30) = (self.address, self.prefix_length) {
            let hosts = u32::MAX >> self.prefix_length;
            let broadcast = (u32::from(address) | hosts).into();
            message
                .attributes
                .push(AddressAttribute::Broadcast(broadcast));
        }
        message
    }

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
            interface: message.header.index,
            address: local.or(plain)?,
            prefix_length: message.header.prefix_len,
            marked: message.attributes.contains(&mark),
            // Octets of the header and the attribute are the same for the lower eight flags.
            tentative: message.header.flags.contains(AddressHeaderFlags::Tentative),
        })
    }
}

fn address_facts(object: &RouteNetlinkMessage) -> Option<AddressFacts> {
    match object {
        RouteNetlinkMessage::NewAddress(message) => AddressFacts::of(message),
        _ => None,
    }
}
