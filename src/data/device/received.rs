//! Devices that another process has opened.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nos_shim::offload::Capabilities;
use nos_shim::vlan::VlanId;
use serde::{Deserialize, Serialize};

use super::{DeviceKind, FrameDevice, OpenError, PacketSocket, PlainTap, Tagged, Tap, packet, tap};

/// What a process says of a device whose descriptor it hands to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// What it is.
    pub kind: DeviceKind,
    /// The interface's name when it was opened.
    pub name: String,
    /// What it takes on egress, as bits of [`Capabilities`].
    pub capabilities: u8,
    /// Of a packet socket: it begins with room for frames longer than [`MAX_FRAME`](nos_shim::frame::MAX_FRAME).
    pub long_frames: bool,
    /// Of a packet socket: the index of the interface that it is bound to; 0 of others.
    pub index: u32,
    /// The VLAN of it that is used; `None` where frames have no tag.
    #[serde(default)]
    pub vlan: Option<u16>,
}

/// Whether [`received_device`] has failed because the interface has gone meanwhile.
#[must_use]
pub fn has_gone(error: &OpenError) -> bool {
    // A TAP without an interface is in no state to be asked.
    let gone = [Errno::ENXIO, Errno::ENODEV, Errno::EBADFD];
    matches!(error, OpenError::Refused { source, .. } if gone.contains(source))
}

/// Goes on with a device that another process has opened, and may still use: nothing of it is changed.
///
/// # Errors
///
/// The descriptor is none of such a device. One whose interface has gone is an error too.
pub fn received_device(
    fd: OwnedFd,
    facts: &DeviceFacts,
) -> Result<Box<dyn FrameDevice>, OpenError> {
    let refused = |action, source| OpenError::Refused {
        kind: facts.kind,
        name: facts.name.clone(),
        action,
        source,
    };
    let capabilities = Capabilities::from_bits_truncate(facts.capabilities);
    let vlan = facts.vlan.and_then(VlanId::new);
    match facts.kind {
        DeviceKind::Tap => Ok(with_tags(Tap::received(fd, capabilities)?, vlan)),
        DeviceKind::PlainTap => {
            let found = tap::interface(&fd).map_err(|errno| refused("ask which TAP it is", errno));
            let (name, _) = found?;
            Ok(with_tags(PlainTap::received(fd, name), vlan))
        }
        DeviceKind::Packet => {
            let index = packet::index(&fd).map_err(|errno| refused("ask for its interface", errno));
            if u32::try_from(index?) != Ok(facts.index) {
                return Err(refused("find its interface", Errno::ENXIO));
            }
            let (name, long_frames) = (facts.name.clone(), facts.long_frames);
            let socket = PacketSocket::received(fd, name, vlan, capabilities, long_frames);
            Ok(Box::new(socket))
        }
        DeviceKind::Memory | DeviceKind::Memif => Err(refused("receive it", Errno::EOPNOTSUPP)),
    }
}

/// A device, or one VLAN of it.
fn with_tags<D: FrameDevice + 'static>(device: D, vlan: Option<VlanId>) -> Box<dyn FrameDevice> {
    match vlan {
        Some(vlan) => Box::new(Tagged::new(device, vlan)),
        None => Box::new(device),
    }
}
