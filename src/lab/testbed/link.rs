//! Interfaces, addresses and routes of lab namespaces.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use nos_shim::ident::MacAddr;

use super::error::LabError;
use super::namespace::LabNamespace;
use crate::control::kernel::LinkFacts;
use crate::control::kernel::changes::{Changes, Topic};
use crate::control::kernel::netlink::{AddressFacts, LinkChange, Netlink, RouteFacts};

/// Joins two namespaces by a veth pair whose ends are up and able to pass frames.
///
/// # Errors
/// A name is taken or no interface name, or the kernel lacks veth.
pub fn veth(
    (near, near_name): (&LabNamespace, &str),
    (far, far_name): (&LabNamespace, &str),
) -> Result<(), LabError> {
    let far_end = LinkChange::named(far_name).into_namespace(far.namespace());
    let pair = LinkChange::named(near_name).veth(far_end);
    Netlink::open(near.namespace())?.call(&pair.create(&format!("veth {near_name}")))?;
    near.set_up(near_name)?;
    far.set_up(far_name)?;
    near.wait_operational(near_name, VETH_LIMIT)?;
    far.wait_operational(far_name, VETH_LIMIT)
}

const VETH_LIMIT: Duration = Duration::from_secs(5);

impl LabNamespace {
    /// What the kernel says of an interface; `None` where there is none by that name.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn link(&self, interface: &str) -> Result<Option<LinkFacts>, LabError> {
        Ok(self.netlink()?.link(interface)?)
    }

    /// Sets an interface up.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn set_up(&self, interface: &str) -> Result<(), LabError> {
        self.change(interface, LinkChange::up)
    }

    /// Sets an interface down.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn set_down(&self, interface: &str) -> Result<(), LabError> {
        self.change(interface, LinkChange::down)
    }

    /// Gives an interface, which must be down, another name.
    ///
    /// # Errors
    /// There is no such interface, it is up, or the name is taken.
    pub fn rename(&self, interface: &str, name: &str) -> Result<(), LabError> {
        self.change(interface, |link| link.name(name))
    }

    /// Gives an interface a MAC address.
    ///
    /// # Errors
    /// There is no such interface, or it cannot change its address.
    pub fn set_mac(&self, interface: &str, mac: MacAddr) -> Result<(), LabError> {
        self.change(interface, |link| link.mac(mac))
    }

    /// Gives an interface an MTU, in octets.
    ///
    /// # Errors
    /// There is no such interface, or it cannot carry as much.
    pub fn set_mtu(&self, interface: &str, mtu: u32) -> Result<(), LabError> {
        self.change(interface, |link| link.mtu(mtu))
    }

    /// Sets the longest super-frames that an interface sends and that its GRO makes, of both
    /// families, in octets. Above 65,536 that is BIG TCP.
    ///
    /// # Errors
    /// There is no such interface, or it or the kernel takes no such sizes.
    pub fn set_super_frame_size(&self, interface: &str, octets: u32) -> Result<(), LabError> {
        self.change(interface, |link| link.super_frame_size(octets))
    }

    /// Has an interface ask for no MAC addresses of neighbors (`arp off`).
    ///
    /// # Errors
    /// There is no such interface.
    pub fn set_arp_off(&self, interface: &str) -> Result<(), LabError> {
        self.change(interface, LinkChange::not_resolving)
    }

    /// Moves an interface to another namespace, where it is down.
    ///
    /// # Errors
    /// There is no such interface, or `to` has one by that name.
    pub fn move_link(&self, interface: &str, to: &LabNamespace) -> Result<(), LabError> {
        self.change(interface, |link| link.into_namespace(to.namespace()))
    }

    /// Puts an interface in a group of interfaces.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn set_group(&self, interface: &str, group: u32) -> Result<(), LabError> {
        self.change(interface, |link| link.group(group))
    }

    /// Makes a bridge, up.
    ///
    /// # Errors
    /// The name is taken, or the kernel lacks bridges.
    pub fn add_bridge(&self, bridge: &str) -> Result<(), LabError> {
        let request = LinkChange::named(bridge).bridge().up();
        let request = request.create(&format!("bridge {bridge}"));
        Ok(self.netlink()?.call(&request)?)
    }

    /// Makes `port` a port of `bridge`.
    ///
    /// # Errors
    /// One of them is missing, or `bridge` is none.
    pub fn join_bridge(&self, bridge: &str, port: &str) -> Result<(), LabError> {
        let bridge = self.netlink()?.existing_link(bridge)?.index;
        self.change(port, |link| link.controller(bridge))
    }

    /// Deletes an interface.
    ///
    /// # Errors
    /// There is no such interface, or it cannot be deleted.
    pub fn delete_link(&self, interface: &str) -> Result<(), LabError> {
        let netlink = self.netlink()?;
        let link = netlink.existing_link(interface)?;
        Ok(netlink.delete_link(&link)?)
    }

    /// Adds an address that can be used at once, with its on-link prefix.
    ///
    /// # Errors
    /// There is no such interface, or it has the address already.
    pub fn add_address(&self, interface: &str, address: IpNet) -> Result<(), LabError> {
        let netlink = self.netlink()?;
        let index = netlink.existing_link(interface)?.index;
        netlink.call(&facts(index, address).add())?;
        Ok(netlink.wait_local(self.namespace(), index, &[address.addr()])?)
    }

    /// The addresses of an interface, with their prefix lengths.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn addresses(&self, interface: &str) -> Result<Vec<IpNet>, LabError> {
        let netlink = self.netlink()?;
        let index = netlink.existing_link(interface)?.index;
        let addresses = netlink.addresses()?;
        let nets = addresses
            .iter()
            .filter(|facts| facts.interface == index)
            .filter_map(|facts| IpNet::new(facts.address, facts.prefix_length).ok());
        Ok(nets.collect())
    }

    /// The policy rules of both families as the kernel lists them, in the order in which they are looked
    /// at.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn rules(&self) -> Result<Vec<String>, LabError> {
        let netlink = self.netlink()?;
        let mut rules = netlink.rules(AddressFamily::Inet)?;
        rules.extend(netlink.rules(AddressFamily::Inet6)?);
        Ok(rules.iter().map(|rule| format!("{rule:?}")).collect())
    }

    /// Adds a route by way of the neighbor `via`.
    ///
    /// # Errors
    /// The neighbor is not on a connected network, or the families differ.
    pub fn add_route(&self, prefix: IpNet, via: IpAddr) -> Result<(), LabError> {
        let route = RouteFacts::via(prefix, via)
            .ok_or_else(|| LabError::io(format!("route {prefix} via {via}"), mixed_families()))?;
        let request = route.add(&format!("{prefix} via {via}"));
        Ok(self.netlink()?.call(&request)?)
    }

    /// Removes the default route of the same family as `source` that has it as its source.
    ///
    /// # Errors
    /// There is no such route.
    pub fn delete_default_route(&self, interface: &str, source: IpAddr) -> Result<(), LabError> {
        let netlink = self.netlink()?;
        let index = netlink.existing_link(interface)?.index;
        Ok(netlink.call(&RouteFacts::our_default(index, source).remove())?)
    }

    /// Removes the route to a network of the NOS that an attached container has through `interface`.
    ///
    /// # Errors
    /// There is no such interface, or no such route with this source.
    pub fn delete_network_route(
        &self,
        interface: &str,
        network: IpNet,
        source: IpAddr,
    ) -> Result<(), LabError> {
        let netlink = self.netlink()?;
        let index = netlink.existing_link(interface)?.index;
        let route = RouteFacts::our_network(network, index, source);
        Ok(netlink.call(&route.remove())?)
    }

    /// Removes an address.
    ///
    /// # Errors
    /// There is no such interface, or it has no such address.
    pub fn delete_address(&self, interface: &str, address: IpNet) -> Result<(), LabError> {
        let netlink = self.netlink()?;
        let index = netlink.existing_link(interface)?.index;
        Ok(netlink.call(&facts(index, address).remove())?)
    }

    /// Adds a permanent neighbor.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn add_neighbor(
        &self,
        interface: &str,
        address: IpAddr,
        mac: MacAddr,
    ) -> Result<(), LabError> {
        let netlink = self.netlink()?;
        let index = netlink.existing_link(interface)?.index;
        Ok(netlink.add_neighbor(index, address, mac)?)
    }

    /// Waits until an interface is up and has its carrier.
    ///
    /// # Errors
    /// It is not there, or not up, when `limit` has passed.
    pub fn wait_operational(&self, interface: &str, limit: Duration) -> Result<(), LabError> {
        self.wait_link(interface, "operational", limit, |link| {
            link.is_some_and(|facts| facts.operational)
        })
    }

    /// Waits until `reached` holds of an interface, which need not exist yet (or any more);
    /// `state` names the condition in the error.
    ///
    /// # Errors
    /// It does not hold when `limit` has passed.
    pub fn wait_link(
        &self,
        interface: &str,
        state: &'static str,
        limit: Duration,
        reached: impl Fn(Option<&LinkFacts>) -> bool,
    ) -> Result<(), LabError> {
        // Subscribed before the first look, so that no change falls between.
        let changes = Changes::watch(self.namespace(), Topic::Links)?
            .map_err(|error| LabError::io("watch links", error))?;
        let netlink = self.netlink()?;
        let reached = changes.wait(limit, || {
            Ok::<_, LabError>(reached(netlink.link(interface)?.as_ref()))
        })?;
        if reached {
            return Ok(());
        }
        Err(LabError::Timeout {
            interface: interface.to_owned(),
            namespace: self.namespace().to_string(),
            state,
            limit,
        })
    }

    fn netlink(&self) -> Result<Netlink, LabError> {
        Ok(Netlink::open(self.namespace())?)
    }

    fn change(
        &self,
        interface: &str,
        change: impl FnOnce(LinkChange) -> LinkChange,
    ) -> Result<(), LabError> {
        let netlink = self.netlink()?;
        let index = netlink.existing_link(interface)?.index;
        let request = change(LinkChange::of(index)).request(interface);
        Ok(netlink.call(&request)?)
    }
}

fn facts(interface: u32, address: IpNet) -> AddressFacts {
    AddressFacts::new(interface, address.addr(), address.prefix_len())
}

fn mixed_families() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "one is IPv4, the other IPv6".to_owned(),
    )
}
