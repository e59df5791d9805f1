//! Linux bridges that containers' interfaces are ports of.
//!
//! A bridge that is there is used as it is, whoever made it. One that is missing is made, with an alias that says
//! so, and goes again when it has no port any more.

use nos_shim::ident::MacAddr;
use tracing::{info, warn};

use super::error::tolerate_gone;
use super::ipv6::silence;
use super::{AttachError, Host};
use crate::control::kernel::netlink::LinkChange;
use crate::control::kernel::{InterfaceName, LinkFacts};

/// The alias of a bridge of ours. It is no attachment's, whose aliases begin otherwise.
const ALIAS: &str = "nos-relay bridge";

/// As rtnetlink calls the kind.
const BRIDGE: &str = "bridge";

/// The index of a bridge, which is made if there is no such interface.
pub(super) fn bridge(host: &Host, name: &InterfaceName) -> Result<u32, AttachError> {
    match host.link(name.as_str())? {
        Some(link) if link.kind.as_deref() == Some(BRIDGE) => Ok(link.index),
        Some(link) => Err(AttachError::NoBridge {
            interface: link.name,
            kind: link.kind,
            namespace: host.namespace().to_string(),
        }),
        None => make(host, name.as_str()),
    }
}

/// The host itself has no part in it: no address, and no IPv6.
fn make(host: &Host, name: &str) -> Result<u32, AttachError> {
    let netlink = host.netlink();
    // Of its own, or it would be that of one of its ports, and change with them.
    let change = LinkChange::named(name)
        .mac(MacAddr::stable(&format!("bridge {name}")))
        .bridge();
    netlink.call(&change.create(&format!("bridge {name}")))?;
    let index = netlink.existing_link(name)?.index;
    let finished = silence(host.namespace(), name).and_then(|()| {
        let change = LinkChange::of(index).alias(ALIAS.to_owned()).up();
        Ok(netlink.call(&change.request(name))?)
    });
    if let Err(error) = finished {
        if let Err(error) = netlink.call(&LinkChange::delete(index, name)) {
            warn!("cannot remove {name}: {error}");
        }
        return Err(error);
    }
    info!("made bridge {name}");
    Ok(index)
}

/// Removes bridges of ours that have no port.
///
/// # Errors
/// The kernel cannot be asked, or refuses.
pub fn remove_unused_bridges(host: &Host) -> Result<(), AttachError> {
    let links = host.netlink().all_links()?;
    for bridge in unused(&links) {
        info!("removing bridge {}, which has no ports", bridge.name);
        tolerate_gone(host.netlink().delete_link(bridge))?;
    }
    Ok(())
}

fn unused(links: &[LinkFacts]) -> impl Iterator<Item = &LinkFacts> {
    let ours = |link: &&LinkFacts| {
        link.kind.as_deref() == Some(BRIDGE) && link.alias.as_deref() == Some(ALIAS)
    };
    let has_ports = |bridge: &LinkFacts| {
        links
            .iter()
            .any(|link| link.controller == Some(bridge.index))
    };
    links
        .iter()
        .filter(ours)
        .filter(move |bridge| !has_ports(bridge))
}
