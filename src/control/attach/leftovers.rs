//! What a killed run left: found, taken up, or removed.
//!
//! | what is there | what becomes of it |
//! |---|---|
//! | the attachment's own interface, of the wanted kind and by the wanted name | it is taken up |
//! | one of the attachment by another name or of another kind | it is removed |
//! | one of another attachment, where ours is to be | it is removed |
//! | any of these that a living process holds | an error that names it ([`AttachError::Held`]) |
//! | one that is not ours, where ours is to be | an error that names it |

use nix::errno::Errno;
use nos_shim::offload::Capabilities;
use tracing::info;

use super::error::tolerate_gone;
use super::interior::Interior;
use super::mark::{host_end_name, is_marked, owner};
use super::{AttachError, ContainerSide, ContainerSpec, Host};
use crate::control::kernel::netlink::Netlink;
use crate::control::kernel::takeover::{Portion, TakeoverError};
use crate::control::kernel::{InterfaceName, LinkFacts, Namespace};
use crate::data::device::{FrameDevice, OpenError, open_tap};

/// The kinds of a container's interface, as the kernel calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tap,
    Veth,
}

impl Kind {
    fn of(link: &LinkFacts) -> Option<Self> {
        match link.kind.as_deref() {
            Some("tun") => Some(Self::Tap),
            Some("veth") => Some(Self::Veth),
            _ => None,
        }
    }
}

/// Where an attachment's interface is to be.
pub(super) enum Place {
    /// Nothing is there.
    Free,
    /// The interface that a killed run left there.
    Left(LinkFacts),
}

/// Looks what is in the place of the interface that `spec` describes, and removes what a killed run
/// left and cannot be taken up. `netlink` is a socket in the container.
pub(super) fn place_of(
    host: &Host,
    netlink: &Netlink,
    container: &Namespace,
    spec: &ContainerSpec,
    kind: Kind,
) -> Result<Place, AttachError> {
    let mut place = Place::Free;
    for link in netlink.all_links()? {
        let here = link.name == spec.interface.as_str();
        let ours = is_marked(&link, &spec.name);
        if here && ours && Kind::of(&link) == Some(kind) && is_whole(host, &link, spec, kind)? {
            place = Place::Left(link);
        } else if here || ours {
            remove(host, netlink, container, &link)?;
        }
    }
    Ok(place)
}

/// Removes what a killed run made for an attachment that uses somebody else's interface by now.
pub(super) fn remove_made(
    host: &Host,
    netlink: &Netlink,
    container: &Namespace,
    spec: &ContainerSpec,
) -> Result<(), AttachError> {
    remove_host_end(host, &spec.name)?;
    for link in netlink.all_links()? {
        let here = link.name == spec.interface.as_str() && owner(&link).is_some();
        if here || is_marked(&link, &spec.name) {
            remove(host, netlink, container, &link)?;
        }
    }
    Ok(())
}

/// Whether a veth has its other end where it belongs. A TAP has none.
fn is_whole(
    host: &Host,
    inside: &LinkFacts,
    spec: &ContainerSpec,
    kind: Kind,
) -> Result<bool, AttachError> {
    if kind == Kind::Tap {
        return Ok(true);
    }
    let end = host.link(&host_end_name(&spec.name))?;
    Ok(end.is_some_and(|end| {
        let joined = end.peer == Some(inside.index) && inside.peer == Some(end.index);
        joined && is_marked(&end, &spec.name)
    }))
}

/// Opens the TAP that a killed run left. The calling thread is in the container.
pub(super) fn open_left_tap(
    link: &LinkFacts,
    container: &Namespace,
    offload: Capabilities,
) -> Result<Box<dyn FrameDevice>, AttachError> {
    let mut device = match open_tap(&link.name, offload) {
        Err(OpenError::Refused {
            source: Errno::EBUSY,
            ..
        }) => return Err(held(link, container)),
        opened => opened?,
    };
    // From now on it goes with the device again.
    if let Err(errno) = device.set_persistent(true) {
        info!("{}: {}", link.name, errno.desc());
    }
    Ok(device)
}

/// Sees to it that `container` has no interface by this name, so that one can be made.
///
/// What a killed run left is removed. `host` is where the other end of a veth would be.
///
/// # Errors
/// The interface is not ours, or its owner lives.
pub fn make_room(
    host: &Host,
    container: &Namespace,
    interface: &InterfaceName,
) -> Result<(), AttachError> {
    let netlink = Netlink::open(container)?;
    match netlink.link(interface.as_str())? {
        Some(link) => remove(host, &netlink, container, &link),
        None => Ok(()),
    }
}

/// Removes an interface of a container, if it is a leftover of ours.
fn remove(
    host: &Host,
    netlink: &Netlink,
    container: &Namespace,
    link: &LinkFacts,
) -> Result<(), AttachError> {
    let Some(owner) = owner(link) else {
        return Err(foreign(link, container));
    };
    let interface = &link.name;
    if Kind::of(link) == Some(Kind::Tap) {
        // Who can open it is its owner.
        let open = || open_left_tap(link, container, Capabilities::empty());
        let device = container.run(open)??;
        info!("removing {interface} in {container}, left by an earlier run");
        drop(device);
        return Ok(());
    }
    if is_taken(host, &host_end_name(owner))? {
        return Err(held(link, container));
    }
    info!("removing {interface} in {container}, left by an earlier run");
    tolerate_gone(netlink.delete_link(link))
}

/// Removes the host end that a killed run left, and with it the container's end. It may lack its
/// alias, so the name alone tells: nobody else makes such.
pub(super) fn remove_host_end(host: &Host, attachment: &str) -> Result<(), AttachError> {
    let name = host_end_name(attachment);
    let Some(link) = host.link(&name)? else {
        return Ok(());
    };
    if Kind::of(&link) != Some(Kind::Veth) {
        return Err(foreign(&link, host.namespace()));
    }
    if is_link_taken(host, &link) {
        return Err(AttachError::Held {
            interface: name,
            namespace: host.namespace().to_string(),
            owner: attachment.to_owned(),
        });
    }
    info!("removing {name}, left by an earlier run");
    tolerate_gone(host.netlink().delete_link(&link))
}

/// Removes all that a killed run left of an attachment that is not wanted any more. `ports` says
/// that it has set the ports that the namespace gives.
///
/// # Errors
/// A living process has it, or the kernel refuses.
pub fn remove_leftovers(
    host: &Host,
    container: &Namespace,
    attachment: &str,
    ports: bool,
) -> Result<(), AttachError> {
    remove_host_end(host, attachment)?;
    let interior = Interior::open(container)?;
    for link in interior.netlink.all_links()? {
        match owner(&link) {
            Some(owner) if owner == attachment => {
                remove(host, &interior.netlink, container, &link)?;
            }
            // What else is ours there is another attachment's.
            Some(_) => return Ok(()),
            None => {}
        }
    }
    ContainerSide::undo_leftovers(&interior, container, ports)
}

/// Whether a living process keeps the kernel off an interface.
fn is_taken(host: &Host, interface: &str) -> Result<bool, AttachError> {
    let link = host.link(interface)?;
    Ok(link.is_some_and(|link| is_link_taken(host, &link)))
}

fn is_link_taken(host: &Host, link: &LinkFacts) -> bool {
    matches!(
        host.take(&link.name, link.index, Portion::All),
        Err(TakeoverError::Taken { .. })
    )
}

fn held(link: &LinkFacts, container: &Namespace) -> AttachError {
    AttachError::Held {
        interface: link.name.clone(),
        namespace: container.to_string(),
        owner: owner(link).unwrap_or_default().to_owned(),
    }
}

fn foreign(link: &LinkFacts, namespace: &Namespace) -> AttachError {
    AttachError::ForeignInterface {
        interface: link.name.clone(),
        kind: link.kind.clone(),
        namespace: namespace.to_string(),
    }
}
