//! Veth pairs between the daemon and a container, and the removal of what is in their way.

use std::io;

use nos_shim::ident::MacAddr;
use tracing::{debug, info, warn};

use super::mark::{Mark, host_end_name, owner};
use super::{AttachError, ContainerSpec, Host};
use crate::control::kernel::netlink::{LinkChange, LinkSelector, Netlink};
use crate::control::kernel::takeover::{Takeover, TakeoverError, Takeovers};
use crate::control::kernel::{InterfaceName, LinkFacts, Namespace, sysctl};

/// The host end of a veth pair whose other end is a container's interface.
///
/// The host end is up, has no IPv6, and is taken from the kernel's IP stack. Dropping the value
/// deletes both ends.
#[derive(Debug)]
pub struct VethPair {
    host: Host,
    interface: String,
    index: u32,
    takeover: Option<Takeover>,
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
        remove_leftover_host_end(host, &spec.name)?;
        let inside = Netlink::open(container)?;
        make_room_through(host, &inside, container, &spec.interface)?;
        Self::create_in_room(host, &inside, container, spec, host_mac)
    }

    /// The same, where nothing is in the way; `inside` is a socket in the container.
    pub(super) fn create_in_room(
        host: &Host,
        inside: &Netlink,
        container: &Namespace,
        spec: &ContainerSpec,
        host_mac: MacAddr,
    ) -> Result<Self, AttachError> {
        let name = host_end_name(&spec.name);
        let netlink = host.netlink();
        let what = format!("veth {name} to {} in {container}", spec.interface);
        netlink.call(&pair_change(&name, container, spec, host_mac).create(&what))?;
        let mut pair = Self {
            host: host.clone(),
            index: netlink.existing_link(&name)?.index,
            interface: name,
            takeover: None,
            abandoned: false,
        };
        // From here on an error drops the pair, which deletes it.
        let mark = LinkChange::named(spec.interface.as_str()).mark(&spec.name);
        inside.call(&mark.request(spec.interface.as_str()))?;
        silence(host.namespace(), &pair.interface)?;
        pair.takeover = Some(host.take(&pair.interface, pair.index)?);
        let change = LinkChange::of(pair.index).mark(&spec.name).up();
        netlink.call(&change.request(&pair.interface))?;
        Ok(pair)
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

    /// Sets the MTU of the host end, in octets. The container's end follows its spec.
    ///
    /// # Errors
    /// The pair is gone, or the kernel cannot.
    pub fn set_mtu(&self, mtu: u32) -> Result<(), AttachError> {
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

    fn delete(&self) -> Result<(), AttachError> {
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
    let requests: Vec<_> = pairs
        .iter()
        .map(|pair| LinkChange::delete(pair.index, &pair.interface))
        .collect();
    let outcomes = host.netlink().submit(&requests.iter().collect::<Vec<_>>());
    Takeovers::give_back(
        pairs
            .iter_mut()
            .filter_map(|pair| pair.takeover.take())
            .collect(),
    );
    outcomes.into_iter().map(tolerate_gone).collect()
}

/// Puts all pairs in a group of interfaces that nobody else uses, and deletes the group.
fn delete_as_group(netlink: &Netlink, pairs: &[VethPair]) -> Result<(), AttachError> {
    let Some(group) = free_group(netlink)? else {
        return Ok(());
    };
    let requests: Vec<_> = pairs
        .iter()
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

/// Sees to it that `container` has no interface by this name, so that one can be made.
///
/// What a killed run left is deleted. `host` is where the other end of a veth would be.
///
/// # Errors
/// The interface is not ours, or its owner lives.
pub fn make_room(
    host: &Host,
    container: &Namespace,
    interface: &InterfaceName,
) -> Result<(), AttachError> {
    make_room_through(host, &Netlink::open(container)?, container, interface)
}

/// The same, with a socket in the container.
pub(super) fn make_room_through(
    host: &Host,
    netlink: &Netlink,
    container: &Namespace,
    interface: &InterfaceName,
) -> Result<(), AttachError> {
    let Some(link) = netlink.link(interface.as_str())? else {
        return Ok(());
    };
    let Some(owner) = owner(&link) else {
        return Err(foreign(&link, container));
    };
    if link.kind.as_deref() == Some("tun") || is_taken(host, &host_end_name(owner))? {
        return Err(AttachError::Held {
            interface: link.name.clone(),
            namespace: container.to_string(),
            owner: owner.to_owned(),
        });
    }
    info!("replacing {interface} in {container}, left by an earlier run");
    tolerate_gone(netlink.delete_link(&link))
}

/// Whether a living process keeps the kernel off an interface.
fn is_taken(host: &Host, interface: &str) -> Result<bool, AttachError> {
    match host.netlink().link(interface)? {
        None => Ok(false),
        Some(link) => Ok(is_link_taken(host, &link)),
    }
}

fn is_link_taken(host: &Host, link: &LinkFacts) -> bool {
    matches!(
        host.take(&link.name, link.index),
        Err(TakeoverError::Taken { .. })
    )
}

/// Deletes the host end that a killed run left, and with it the container's end. It may lack its
/// alias, so the name alone tells: nobody else makes such.
pub(super) fn remove_leftover_host_end(host: &Host, attachment: &str) -> Result<(), AttachError> {
    let name = host_end_name(attachment);
    let found = host.netlink().links(&[LinkSelector::Name(&name)])?;
    let Some(link) = found.into_iter().flatten().next() else {
        return Ok(());
    };
    if link.kind.as_deref() != Some("veth") {
        return Err(foreign(&link, host.namespace()));
    }
    if is_link_taken(host, &link) {
        return Err(AttachError::Held {
            interface: name,
            namespace: host.namespace().to_string(),
            owner: attachment.to_owned(),
        });
    }
    info!("replacing {name}, left by an earlier run");
    tolerate_gone(host.netlink().delete_link(&link))
}

fn foreign(link: &LinkFacts, namespace: &Namespace) -> AttachError {
    AttachError::ForeignInterface {
        interface: link.name.clone(),
        kind: link.kind.clone(),
        namespace: namespace.to_string(),
    }
}

/// It went with the namespace of its other end, or in a group.
fn tolerate_gone(
    result: Result<(), crate::control::kernel::NetlinkError>,
) -> Result<(), AttachError> {
    match result {
        Err(error) if error.is(&[libc::ENODEV]) => Ok(()),
        result => Ok(result?),
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

/// Keeps the kernel's IPv6 from speaking on the host end, which is still down and silent.
pub(super) fn silence(host: &Namespace, interface: &str) -> Result<(), AttachError> {
    let key = format!("net/ipv6/conf/{interface}/disable_ipv6");
    match sysctl::write(host, &key, "1")? {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            debug!("{host} has no IPv6 to disable on {interface}");
            Ok(())
        }
        Err(source) => Err(AttachError::Sysctl {
            key,
            value: "1".to_owned(),
            namespace: host.to_string(),
            source,
        }),
        Ok(()) => Ok(()),
    }
}
