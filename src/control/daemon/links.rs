//! Following the links of devices that are down.
//!
//! A data thread tells once that a device's interface is down. Whether it comes back or is deleted
//! is asked here, once a second, as long as it is.

use std::time::Duration;

use nos_shim::ident::Interface;
use nos_shim::time::Instant;

use crate::data::device::{Inspector, LinkState};

use super::Daemon;

/// How often a device that is down is asked whether it has gone.
const LINK_CHECK: Duration = Duration::from_secs(1);

/// Devices whose interfaces are down.
#[derive(Debug, Default)]
pub(super) struct DownLinks {
    interfaces: Vec<Interface>,
    next_check: Instant,
}

impl DownLinks {
    /// When to look again.
    pub(super) fn poll_at(&self) -> Option<Instant> {
        (!self.interfaces.is_empty()).then_some(self.next_check)
    }
}

impl Daemon {
    /// A data thread tells that a device is down.
    pub(super) fn device_down(&mut self, interface: Interface) {
        if !self.down.interfaces.contains(&interface) {
            self.down.interfaces.push(interface);
        }
        // It may have been deleted, which takes the kernel another moment.
        self.down.next_check = self.plane.now() + LINK_CHECK;
    }

    /// Looks after the devices that are down, if it is time.
    pub(super) fn check_links(&mut self, now: Instant) {
        if self.down.poll_at().is_none_or(|at| now < at) {
            return;
        }
        self.down.next_check = now + LINK_CHECK;
        for interface in std::mem::take(&mut self.down.interfaces) {
            match self.inspector(interface).map(Inspector::link) {
                Some(LinkState::Down) => self.down.interfaces.push(interface),
                Some(LinkState::Gone) => self.link_gone(interface),
                Some(LinkState::Up) | None => {}
            }
        }
    }

    fn link_gone(&mut self, interface: Interface) {
        if let Ok(Some(device)) = self.plane.remove_device(interface) {
            self.device_gone(interface, device, "the interface was deleted");
        }
    }

    fn inspector(&self, interface: Interface) -> Option<&Inspector> {
        match interface {
            Interface::Attachment(id) => {
                let mut containers = self.containers.iter();
                let container = containers.find(|container| container.id == id)?;
                (!container.gone).then_some(&container.inspector)
            }
            Interface::Uplink(id) => {
                let uplink = self.uplinks.iter().find(|uplink| uplink.id == id)?;
                (!uplink.gone).then_some(&uplink.inspector)
            }
        }
    }
}
