//! Veth pairs between the daemon and a container.

use nos_shim::ident::MacAddr;
use tracing::{debug, warn};

use super::bridge::bridge;
use super::error::tolerate_gone;
use super::ipv6::{ignore_routers, silence};
use super::leftovers::{make_room, remove_host_end};
use super::mark::{Mark, host_end_name};
use super::{AttachError, ContainerSpec, Host};
use crate::control::kernel::netlink::{LinkChange, Netlink};
use crate::control::kernel::takeover::{Portion, Takeover, TakeoverError, Takeovers};
use crate::control::kernel::{InterfaceName, LinkFacts, Namespace};

/// What the host end of a pair is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HostEnd {
    /// The relay's MAC address on the link.
    relay_mac: MacAddr,
    /// Index of the bridge that it is a port of.
    bridge: Option<u32>,
}

impl HostEnd {
    /// One that is the relay's alone.
    pub(super) fn alone(relay_mac: MacAddr) -> Self {
        Self {
            relay_mac,
            bridge: None,
        }
    }

    /// A port of the bridge with this index.
    pub(super) fn port(relay_mac: MacAddr, bridge: u32) -> Self {
        Self {
            relay_mac,
            bridge: Some(bridge),
        }
    }

    /// Its MAC address. What comes for a port's own one is the bridge's, so a port has another than the relay;
    /// and as a bridge may take the lowest one of its ports for its own, it is a high one.
    fn mac(self) -> MacAddr {
        let MacAddr([first, rest @ ..]) = self.relay_mac;
        let [a, b, c, d, e] = rest;
        MacAddr([self.bridge.map_or(first, |_| 0xfe), a, b, c, d, e])
    }

    /// What of it is taken from the kernel.
    fn portion(self) -> Portion {
        match self.bridge {
            None => Portion::All,
            Some(_) => Portion::FramesTo(self.relay_mac),
        }
    }

    /// What a packet socket on it hears.
    pub(super) fn station(self) -> Option<MacAddr> {
        self.bridge.map(|_| self.relay_mac)
    }
}

/// The host end of a veth pair whose other end is a container's interface.
///
/// The host end is up, has no IPv6, and is taken from the kernel's IP stack; or it is a port of a bridge, from
/// which only what is for the relay is taken. Dropping the value deletes both ends.
#[derive(Debug)]
pub struct VethPair {
    host: Host,
    interface: String,
    index: u32,
    takeover: Option<Takeover>,
    /// Somebody else has made it.
    borrowed: bool,
    abandoned: bool,
}

impl VethPair {
    /// Makes the pair: in `container` the interface that `spec` describes, still down; in `host`
    /// the other end, up, with the MAC address `host_mac`.
    ///
    /// The leftover of a killed run is replaced.
    ///
    /// # Errors
    /// The container has such an interface from elsewhere; a living nos-relay holds the pair; the
    /// kernel refuses.
    pub fn create(
        host: &Host,
        container: &Namespace,
        spec: &ContainerSpec,
        host_mac: MacAddr,
    ) -> Result<Self, AttachError> {
        remove_host_end(host, &spec.name)?;
        let inside = Netlink::open(container)?;
        make_room(host, container, &spec.interface)?;
        Self::create_in_room(host, &inside, container, spec, HostEnd::alone(host_mac))
    }

    /// The same, where nothing is in the way; `inside` is a socket in the container.
    pub(super) fn create_in_room(
        host: &Host,
        inside: &Netlink,
        container: &Namespace,
        spec: &ContainerSpec,
        end: HostEnd,
    ) -> Result<Self, AttachError> {
        let name = host_end_name(&spec.name);
        let netlink = host.netlink();
        let what = format!("veth {name} to {} in {container}", spec.interface);
        netlink.call(&pair_change(&name, container, spec, end.mac()).create(&what))?;
        let mut pair = Self {
            host: host.clone(),
            index: netlink.existing_link(&name)?.index,
            interface: name,
            takeover: None,
            borrowed: false,
            abandoned: false,
        };
        // From here on an error drops the pair, which deletes it.
        let mark = LinkChange::named(spec.interface.as_str()).mark(&spec.name);
        inside.call(&mark.request(spec.interface.as_str()))?;
        silence(host.namespace(), &pair.interface)?;
        if end.bridge.is_some() {
            ignore_routers(container, &spec.interface)?;
        }
        // Before it is a port: no frame for the relay shall pass.
        pair.takeover = Some(host.take(&pair.interface, pair.index, end.portion())?);
        let mut change = LinkChange::of(pair.index).mark(&spec.name);
        if let Some(bridge) = end.bridge {
            change = change.controller(bridge);
        }
        let change = change.up();
        netlink.call(&change.request(&pair.interface))?;
        Ok(pair)
    }

    /// Takes up the pair that a killed run left; [`place_of`](super::leftovers::place_of) has found it.
    pub(super) fn adopt(
        host: &Host,
        spec: &ContainerSpec,
        end: HostEnd,
    ) -> Result<Self, AttachError> {
        let name = host_end_name(&spec.name);
        let link = host.netlink().existing_link(&name)?;
        let takeover = match host.take(&name, link.index, end.portion()) {
            Err(TakeoverError::Taken { .. }) => return Err(held(&name, host, &spec.name)),
            taken => taken?,
        };
        let pair = Self {
            host: host.clone(),
            index: link.index,
            interface: name,
            takeover: Some(takeover),
            borrowed: false,
            abandoned: false,
        };
        silence(host.namespace(), &pair.interface)?;
        if let Some(change) = repair(&link, spec, end) {
            host.netlink().call(&change.request(&pair.interface))?;
        }
        Ok(pair)
    }

    /// Takes from the kernel what comes for the relay from a pair that somebody else has made: the one of which
    /// `inside` is the end in `container`. It stays when the value is dropped.
    pub(super) fn borrow(
        host: &Host,
        container: &Namespace,
        inside: &LinkFacts,
        relay_mac: MacAddr,
    ) -> Result<Self, AttachError> {
        let end = other_end(host, container, inside)?;
        let end = end.ok_or_else(|| AttachError::NoHostEnd {
            interface: inside.name.clone(),
            kind: inside.kind.clone(),
            namespace: container.to_string(),
            host: host.namespace().to_string(),
        })?;
        let taken = host.take(&end.name, end.index, Portion::FramesTo(relay_mac));
        Ok(Self {
            host: host.clone(),
            index: end.index,
            interface: end.name,
            takeover: Some(taken?),
            borrowed: true,
            abandoned: false,
        })
    }

    /// Goes on with a pair that another process has made, or has found.
    pub(crate) fn received(
        host: &Host,
        (interface, index): (String, u32),
        borrowed: bool,
        takeover: Option<Takeover>,
    ) -> Self {
        Self {
            host: host.clone(),
            interface,
            index,
            takeover,
            borrowed,
            abandoned: false,
        }
    }

    /// Whether somebody else has made it.
    pub(crate) fn is_borrowed(&self) -> bool {
        self.borrowed
    }

    /// Whether the kernel is kept from the host end.
    pub(crate) fn is_taken(&self) -> bool {
        self.takeover.is_some()
    }

    /// Name of the host end.
    #[must_use]
    pub fn host_interface(&self) -> &str {
        &self.interface
    }

    /// Index of the host end in the host's namespace.
    #[must_use]
    pub fn host_index(&self) -> u32 {
        self.index
    }

    /// Sees to it that the host end is a port of this bridge, which is made if there is none. Returns whether
    /// it was not.
    ///
    /// # Errors
    /// There is something else by that name, the pair is gone, or the kernel refuses.
    pub fn join(&self, name: &InterfaceName) -> Result<bool, AttachError> {
        let controller = bridge(&self.host, name)?;
        let link = self.host.link_by_index(self.index)?;
        if link.is_none_or(|link| link.controller == Some(controller)) {
            return Ok(false);
        }
        let change = LinkChange::of(self.index).controller(controller);
        self.host.netlink().call(&change.request(&self.interface))?;
        Ok(true)
    }

    /// Sets the MTU of the host end, in octets. The container's end follows its spec.
    ///
    /// # Errors
    /// The pair is gone, or the kernel cannot.
    pub fn set_mtu(&self, mtu: u32) -> Result<(), AttachError> {
        if self.borrowed {
            return Ok(());
        }
        let change = LinkChange::of(self.index).mtu(mtu);
        let request = change.request(&self.interface);
        Ok(self.host.netlink().call(&request)?)
    }

    /// Deletes both ends. One that went with its namespace is no error.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn detach(mut self) -> Result<(), AttachError> {
        self.abandoned = true;
        self.delete()
    }

    /// Leaves the pair as a killed process would.
    pub fn abandon(mut self) {
        self.abandoned = true;
    }

    /// Leaves the pair, and the kernel kept from it, to another process.
    pub(crate) fn leave(mut self) {
        self.abandoned = true;
        if let Some(takeover) = self.takeover.take() {
            takeover.leave();
        }
    }

    fn delete(&self) -> Result<(), AttachError> {
        if self.borrowed {
            return Ok(());
        }
        // The kernel gives an index to one interface only, as long as a machine runs.
        let request = LinkChange::delete(self.index, &self.interface);
        tolerate_gone(self.host.netlink().call(&request))
    }
}

impl Drop for VethPair {
    fn drop(&mut self) {
        if self.abandoned {
            return;
        }
        if let Err(error) = self.delete() {
            warn!("cannot remove {}: {error}", self.interface);
        }
    }
}

/// Fewer pairs are deleted one by one: to find a group that is free costs more.
const GROUP_FROM: usize = 2;

/// Deletes many pairs in about the time of one, and says of each what came of it.
pub(super) fn delete_pairs(host: &Host, mut pairs: Vec<VethPair>) -> Vec<Result<(), AttachError>> {
    for pair in &mut pairs {
        pair.abandoned = true;
    }
    if pairs.len() >= GROUP_FROM
        && let Err(error) = delete_as_group(host.netlink(), &pairs)
    {
        debug!("{error}; deleting one by one");
    }
    // What the group did not take along, if anything.
    let made = pairs.iter().filter(|pair| !pair.borrowed);
    let requests: Vec<_> = made
        .map(|pair| LinkChange::delete(pair.index, &pair.interface))
        .collect();
    let mut deleted = host
        .netlink()
        .submit(&requests.iter().collect::<Vec<_>>())
        .into_iter();
    let mut outcome = |pair: &VethPair| match pair.borrowed {
        true => Ok(()),
        false => deleted.next().map_or(Ok(()), tolerate_gone),
    };
    let outcomes = pairs.iter().map(&mut outcome).collect();
    Takeovers::give_back(
        pairs
            .iter_mut()
            .filter_map(|pair| pair.takeover.take())
            .collect(),
    );
    outcomes
}

/// Puts all pairs in a group of interfaces that nobody else uses, and deletes the group.
fn delete_as_group(netlink: &Netlink, pairs: &[VethPair]) -> Result<(), AttachError> {
    let Some(group) = free_group(netlink)? else {
        return Ok(());
    };
    let made = pairs.iter().filter(|pair| !pair.borrowed);
    let requests: Vec<_> = made
        .map(|pair| {
            LinkChange::of(pair.index)
                .group(group)
                .request(&pair.interface)
        })
        .collect();
    // One that is gone already is not in the group; that is all right.
    netlink.submit(&requests.iter().collect::<Vec<_>>());
    Ok(netlink.call(&LinkChange::delete_group(group))?)
}

/// A number that no interface has as its group.
fn free_group(netlink: &Netlink) -> Result<Option<u32>, AttachError> {
    /// "nr" in ASCII, followed by a number.
    const FIRST: u32 = 0x6e72_0000;
    const LAST: u32 = 0x6e72_ffff;
    let links = netlink.all_links()?;
    let used: std::collections::HashSet<_> = links.iter().map(|link| link.group).collect();
    Ok((FIRST..=LAST).find(|group| !used.contains(group)))
}

/// What a host end that was left lacks of what it shall be.
fn repair(link: &LinkFacts, spec: &ContainerSpec, end: HostEnd) -> Option<LinkChange> {
    let mac = end.mac();
    let in_place = link.controller == end.bridge;
    let sound = in_place && link.mac == Some(mac) && link.mtu == spec.mtu && link.up;
    (!sound).then(|| {
        let change = LinkChange::of(link.index).mac(mac).mtu(spec.mtu).up();
        change.controller(end.bridge.unwrap_or(0))
    })
}

/// The end in the host's namespace of a pair that has this end in a container, if there is one.
fn other_end(
    host: &Host,
    container: &Namespace,
    inside: &LinkFacts,
) -> Result<Option<LinkFacts>, AttachError> {
    const VETH: Option<&str> = Some("veth");
    let Some(peer) = inside.peer.filter(|_| inside.kind.as_deref() == VETH) else {
        return Ok(None);
    };
    let Some(end) = host.link_by_index(peer)? else {
        return Ok(None);
    };
    // Numbers of interfaces are of their namespace: another pair may have both of them.
    let joined = end.kind.as_deref() == VETH && end.peer == Some(inside.index);
    let there = || host.netlink().number_of(container);
    let found = joined && end.peer_namespace.is_some() && end.peer_namespace == there()?;
    Ok(found.then_some(end))
}

fn held(interface: &str, host: &Host, attachment: &str) -> AttachError {
    AttachError::Held {
        interface: interface.to_owned(),
        namespace: host.namespace().to_string(),
        owner: attachment.to_owned(),
    }
}

fn pair_change(
    name: &str,
    container: &Namespace,
    spec: &ContainerSpec,
    host_mac: MacAddr,
) -> LinkChange {
    let container_end = LinkChange::named(spec.interface.as_str())
        .into_namespace(container)
        .mac(spec.mac)
        .mtu(spec.mtu)
        .tx_queue_len(spec.tx_queue_len);
    LinkChange::named(name)
        .mac(host_mac)
        .mtu(spec.mtu)
        .tx_queue_len(spec.tx_queue_len)
        .veth(container_end)
}
