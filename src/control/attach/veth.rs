//! Veth pairs between the daemon and a container, and the removal of what is in their way.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_route::link::{InfoData, InfoVeth, LinkMessage};
use nos_shim::ident::MacAddr;
use rtnetlink::{LinkUnspec, LinkVeth};
use tracing::{debug, info, warn};

use super::{AttachError, ContainerSpec};
use crate::control::kernel::netlink::Netlink;
use crate::control::kernel::takeover::{Takeover, TakeoverError};
use crate::control::kernel::{InterfaceName, LinkFacts, Namespace, sysctl};

/// What the alias of every interface of ours begins with; the attachment's name follows.
const ALIAS_PREFIX: &str = "nos-relay:";

/// The host end of a veth pair whose other end is a container's interface.
///
/// The host end is up, has no IPv6, and is taken from the kernel's IP stack. Dropping the value
/// deletes both ends.
#[derive(Debug)]
pub struct VethPair {
    host: Namespace,
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
        host: &Namespace,
        container: &Namespace,
        spec: &ContainerSpec,
        host_mac: MacAddr,
    ) -> Result<Self, AttachError> {
        let name = host_end_name(&spec.name);
        remove_leftover_host_end(host, &name, &spec.name)?;
        make_room(host, container, &spec.interface)?;

        let netlink = Netlink::open(host)?;
        let pair = pair_message(&name, container, spec, host_mac);
        netlink.add_link(
            &format!("veth {name} to {} in {container}", spec.interface),
            pair,
        )?;
        let mut pair = Self {
            host: host.clone(),
            index: netlink.existing_link(&name)?.index,
            interface: name,
            takeover: None,
            abandoned: false,
        };
        // From here on an error drops the pair, which deletes it.
        mark(&netlink, pair.index, &spec.name)?;
        let inside = Netlink::open(container)?;
        let end = inside.existing_link(spec.interface.as_str())?;
        mark(&inside, end.index, &spec.name)?;
        silence(host, &pair.interface)?;
        pair.takeover = Some(Takeover::of(host, &pair.interface)?);
        let up = LinkUnspec::new_with_index(pair.index).up().build();
        netlink.change_link(&pair.interface, up)?;
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
        let netlink = Netlink::open(&self.host)?;
        let change = LinkUnspec::new_with_index(self.index).mtu(mtu).build();
        Ok(netlink.change_link(&self.interface, change)?)
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
        let netlink = Netlink::open(&self.host)?;
        match netlink.link(&self.interface)? {
            // Another index: somebody else's by now.
            Some(link) if link.index == self.index => delete_unless_gone(&netlink, &link),
            _ => Ok(()),
        }
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

/// The name of the host end for an attachment: the same in every run, 13 octets.
#[must_use]
pub fn host_end_name(attachment: &str) -> String {
    format!("nr-{}", name_suffix(attachment))
}

/// The name of an attachment's TAP on the host until it is moved into the container.
#[must_use]
pub fn tap_name(attachment: &str) -> String {
    format!("nt-{}", name_suffix(attachment))
}

/// Ten octets that hardly any other attachment has.
fn name_suffix(attachment: &str) -> String {
    let [_, a, b, c, d, e] = MacAddr::stable(attachment).0;
    format!("{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}")
}

/// Sees to it that `container` has no interface by this name, so that one can be made.
///
/// What a killed run left is deleted. `host` is where the other end of a veth would be.
///
/// # Errors
/// The interface is not ours, or its owner lives.
pub fn make_room(
    host: &Namespace,
    container: &Namespace,
    interface: &InterfaceName,
) -> Result<(), AttachError> {
    let netlink = Netlink::open(container)?;
    let Some(link) = netlink.link(interface.as_str())? else {
        return Ok(());
    };
    let Some(owner) = owner(&link) else {
        return Err(foreign(&link, container));
    };
    if link.kind.as_deref() == Some("tun") || is_taken(host, &host_end_name(owner)) {
        return Err(AttachError::Held {
            interface: link.name.clone(),
            namespace: container.to_string(),
            owner: owner.to_owned(),
        });
    }
    info!("replacing {interface} in {container}, left by an earlier run");
    delete_unless_gone(&netlink, &link)
}

/// The attachment that an interface says it belongs to.
fn owner(link: &LinkFacts) -> Option<&str> {
    link.alias.as_deref()?.strip_prefix(ALIAS_PREFIX)
}

/// Whether an interface carries the mark of this attachment.
pub(super) fn is_marked(link: &LinkFacts, attachment: &str) -> bool {
    owner(link) == Some(attachment)
}

/// Writes onto an interface whose it is.
pub(super) fn mark(netlink: &Netlink, index: u32, attachment: &str) -> Result<(), AttachError> {
    let alias = format!("{ALIAS_PREFIX}{attachment}");
    let change = LinkUnspec::new_with_index(index).alias(alias).build();
    Ok(netlink.change_link("alias", change)?)
}

fn is_taken(host: &Namespace, interface: &str) -> bool {
    matches!(
        Takeover::of(host, interface),
        Err(TakeoverError::Taken { .. })
    )
}

/// A killed run's host end may lack its alias, so the name alone tells: nobody else makes such.
fn remove_leftover_host_end(
    host: &Namespace,
    name: &str,
    attachment: &str,
) -> Result<(), AttachError> {
    let netlink = Netlink::open(host)?;
    let Some(link) = netlink.link(name)? else {
        return Ok(());
    };
    if link.kind.as_deref() != Some("veth") {
        return Err(foreign(&link, host));
    }
    if is_taken(host, name) {
        return Err(AttachError::Held {
            interface: name.to_owned(),
            namespace: host.to_string(),
            owner: attachment.to_owned(),
        });
    }
    info!("replacing {name}, left by an earlier run");
    delete_unless_gone(&netlink, &link)
}

fn foreign(link: &LinkFacts, namespace: &Namespace) -> AttachError {
    AttachError::ForeignInterface {
        interface: link.name.clone(),
        kind: link.kind.clone(),
        namespace: namespace.to_string(),
    }
}

fn delete_unless_gone(netlink: &Netlink, link: &LinkFacts) -> Result<(), AttachError> {
    match netlink.delete_link(link) {
        // It went with the namespace of its other end.
        Err(error) if error.is(&[libc::ENODEV]) => Ok(()),
        result => Ok(result?),
    }
}

fn pair_message(
    name: &str,
    container: &Namespace,
    spec: &ContainerSpec,
    host_mac: MacAddr,
) -> LinkMessage {
    let container_end = LinkUnspec::new_with_name(spec.interface.as_str())
        .setns_by_fd(container.as_fd().as_raw_fd())
        .address(spec.mac.0.to_vec())
        .mtu(spec.mtu)
        .txqueuelen(spec.tx_queue_len)
        .build();
    LinkVeth::new(name, spec.interface.as_str())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(container_end)))
        .address(host_mac.0.to_vec())
        .mtu(spec.mtu)
        .txqueuelen(spec.tx_queue_len)
        .build()
}

/// Keeps the kernel's IPv6 from speaking on the host end, which is still down and silent.
fn silence(host: &Namespace, interface: &str) -> Result<(), AttachError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ends_are_named_stably_and_fit() {
        assert_eq!(host_end_name("web"), host_end_name("web"));
        assert_ne!(host_end_name("web"), host_end_name("db"));
        let long = "a-container-name-that-is-longer-than-an-interface-name-may-be";
        for name in [host_end_name(long), host_end_name("")] {
            assert!(name.parse::<InterfaceName>().is_ok(), "{name}");
        }
    }
}
