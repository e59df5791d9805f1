//! What the kernel's IPv6 does by itself on interfaces that are ours.

use std::io;

use tracing::debug;

use super::AttachError;
use crate::control::kernel::{InterfaceName, Namespace, sysctl};

/// Keeps the kernel's IPv6 from speaking on an interface of the host, which is still down and silent.
pub(super) fn silence(host: &Namespace, interface: &str) -> Result<(), AttachError> {
    set_ipv6(host, interface, "disable_ipv6", "1")
}

/// Keeps a container from taking another router of its bridge for the one that leads out: the kernel would
/// share what leaves among both.
pub(super) fn ignore_routers(
    container: &Namespace,
    interface: &InterfaceName,
) -> Result<(), AttachError> {
    set_ipv6(container, interface.as_str(), "accept_ra", "0")
}

fn set_ipv6(
    namespace: &Namespace,
    interface: &str,
    setting: &str,
    value: &str,
) -> Result<(), AttachError> {
    let key = format!("net/ipv6/conf/{interface}/{setting}");
    match sysctl::write(namespace, &key, value)? {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            debug!("{namespace} has no IPv6 on {interface}");
            Ok(())
        }
        Err(source) => Err(AttachError::Sysctl {
            key,
            value: value.to_owned(),
            namespace: namespace.to_string(),
            source,
        }),
        Ok(()) => Ok(()),
    }
}
