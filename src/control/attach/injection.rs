//! TAPs by which the super-frames of tunnels get past a packet socket.

use super::ipv6::silence;
use super::{AttachError, Host};
use crate::control::kernel::netlink::{LinkChange, redirect};
use crate::data::device::Injection;

/// The name of the TAP beside an interface: that one's alone by the kernel's number, and this process's, as
/// one that ends may still have its own. It has at most fifteen characters.
fn name_beside(index: u32) -> String {
    format!("nt{index:x}-{:x}", std::process::id() & 0xffff)
}

impl Host {
    /// Opens what carries the super-frames of tunnels out of an interface of the host, whose number is
    /// `index`: see [`Injection`]. All of it goes when that is dropped.
    ///
    /// # Errors
    /// The kernel's TAPs take no tunnels (before Linux 6.17), it cannot redirect (`CONFIG_NET_SCH_INGRESS`,
    /// `CONFIG_NET_CLS_U32`, `CONFIG_NET_ACT_MIRRED`), or it refuses.
    pub fn open_injection(&self, interface: &str, index: u32) -> Result<Injection, AttachError> {
        let name = name_beside(index);
        let injection = self.namespace().run(|| Injection::open(&name))??;
        let netlink = self.netlink();
        let tap = netlink.existing_link(&name)?.index;
        silence(self.namespace(), &name)?;
        for request in redirect(tap, index, &name) {
            netlink.call(&request)?;
        }
        let alias = format!("nos-relay: tunnels out of {interface}");
        netlink.call(&LinkChange::of(tap).alias(alias).up().request(&name))?;
        Ok(injection)
    }
}
