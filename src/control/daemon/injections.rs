//! What packet sockets need for the super-frames of tunnels, opened when the first has come.

use nos_shim::ident::Interface;
use tracing::{debug, info, warn};

use super::live::Live;

impl Live {
    /// Has the super-frames of tunnels that leave by an interface leave whole, where the kernel can.
    pub(super) fn inject_tunnels(&self, of: Interface) {
        let Some((interface, index)) = self.host_interface(of) else {
            debug!(%of, "met a tunnel, and is gone");
            return;
        };
        match self.host.open_injection(&interface, index) {
            Err(error) => warn!(
                interface,
                "super-frames of tunnels are cut before they leave: {error}"
            ),
            Ok(injection) => {
                let name = injection.name().to_owned();
                // Otherwise it has gone meanwhile.
                if let Ok(None) = self.plane.inject(of, injection) {
                    info!(interface, by = name, "super-frames of tunnels leave whole");
                }
            }
        }
    }

    /// The interface of the host behind a packet socket, and the kernel's number of it.
    fn host_interface(&self, of: Interface) -> Option<(String, u32)> {
        match of {
            Interface::Uplink(id) => {
                let mut uplinks = self.uplinks.values();
                let facts = &uplinks
                    .find(|uplink| uplink.id == id)?
                    .device
                    .as_ref()?
                    .facts;
                Some((facts.name.clone(), facts.index))
            }
            Interface::Attachment(id) => {
                let mut containers = self.containers.values();
                let link = containers
                    .find(|container| container.id == id)?
                    .link
                    .as_ref()?;
                let pair = link.veth.as_ref()?;
                Some((pair.host_interface().to_owned(), pair.host_index()))
            }
        }
    }
}
