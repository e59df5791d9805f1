//! The devices of a data thread, by interface; and the tokens by which epoll names them.

use mio::Token;
use nos_shim::id_table::IdTable;
use nos_shim::ident::{AttachmentId, Interface, UplinkId};
use nos_shim::offload::Capabilities;
use nos_shim::page::Page;

use crate::data::device::{CaptureStatus, Captured, DeviceCounters, DeviceKind, FrameDevice, Slot};

/// A device as data threads take and return it, with its capture.
pub type LoopDevice = Captured<Box<dyn FrameDevice>>;

/// The token of the loop's own waker.
pub(super) const WAKE: Token = Token(0);

/// The token of an interface: its identifier, generation included, and its kind.
pub(super) fn token(interface: Interface) -> Token {
    match interface {
        Interface::Attachment(id) => Token((id.0 as usize) << 2 | 1),
        Interface::Uplink(id) => Token((id.0 as usize) << 2 | 2),
    }
}

/// The interface of a token.
pub(super) fn interface(token: Token) -> Option<Interface> {
    let id = u32::try_from(token.0 >> 2).ok()?;
    match token.0 & 3 {
        1 => Some(Interface::Attachment(AttachmentId(id))),
        2 => Some(Interface::Uplink(UplinkId(id))),
        _ => None,
    }
}

/// A device and its place in the order of turns.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) device: LoopDevice,
    /// Frames of the next turn.
    pub(super) turn: usize,
    /// Whether it is in the list of ready devices.
    pub(super) ready: bool,
    /// Whether the control thread was told that the interface is down.
    pub(super) told_down: bool,
    /// How the ring sends to it, if it does.
    pub(super) slot: Option<Slot>,
}

impl Served {
    /// What came in before epoll watched gives no edge, so that a device begins ready.
    fn new(device: LoopDevice) -> Self {
        Self {
            turn: device.kind().first_turn(),
            device,
            ready: true,
            told_down: false,
            slot: None,
        }
    }

    /// Nothing is left: the next event begins anew.
    pub(super) fn reset_turn(&mut self) {
        (self.turn, self.ready) = (self.device.kind().first_turn(), false);
    }
}

/// All devices of a data thread.
#[derive(Debug, Default)]
pub(super) struct Devices {
    attachments: IdTable<AttachmentId, Served>,
    uplinks: IdTable<UplinkId, Served>,
}

impl Devices {
    pub(super) fn get_mut(&mut self, interface: Interface) -> Option<&mut Served> {
        match interface {
            Interface::Attachment(id) => self.attachments.get_mut(id),
            Interface::Uplink(id) => self.uplinks.get_mut(id),
        }
    }

    /// Adds a device, or returns it if the interface's index has one.
    pub(super) fn insert(
        &mut self,
        interface: Interface,
        device: LoopDevice,
    ) -> Option<LoopDevice> {
        let taken = match interface {
            Interface::Attachment(id) => self.attachments.holder(id).is_some(),
            Interface::Uplink(id) => self.uplinks.holder(id).is_some(),
        };
        if taken {
            return Some(device);
        }
        let served = Served::new(device);
        match interface {
            Interface::Attachment(id) => drop(self.attachments.insert(id, served)),
            Interface::Uplink(id) => drop(self.uplinks.insert(id, served)),
        }
        None
    }

    pub(super) fn remove(&mut self, interface: Interface) -> Option<Served> {
        match interface {
            Interface::Attachment(id) => self.attachments.remove(id),
            Interface::Uplink(id) => self.uplinks.remove(id),
        }
    }

    /// Takes all devices out.
    pub(super) fn take(&mut self) -> Vec<(Interface, LoopDevice)> {
        let attachments = self.attachments.iter().map(|(id, _)| id);
        let uplinks = self.uplinks.iter().map(|(id, _)| id);
        let all: Vec<_> = attachments
            .map(Interface::Attachment)
            .chain(uplinks.map(Interface::Uplink))
            .collect();
        let take = |interface| Some((interface, self.remove(interface)?.device));
        all.into_iter().filter_map(take).collect()
    }

    /// The state of some devices: of attachments first, then of uplinks.
    pub(super) fn page(&self, cursor: Option<DeviceCursor>) -> Page<DeviceReport, DeviceCursor> {
        let begin = DeviceCursor::Attachments(0);
        match cursor.unwrap_or(begin) {
            DeviceCursor::Attachments(first) => {
                let row = |id, served: &_| DeviceReport::of(Interface::Attachment(id), served);
                let Page { rows, next } = self.attachments.page(first, row);
                let next = next.map_or(DeviceCursor::Uplinks(0), DeviceCursor::Attachments);
                let next = Some(next);
                Page { rows, next }
            }
            DeviceCursor::Uplinks(first) => {
                let row = |id, served: &_| DeviceReport::of(Interface::Uplink(id), served);
                let Page { rows, next } = self.uplinks.page(first, row);
                let next = next.map(DeviceCursor::Uplinks);
                Page { rows, next }
            }
        }
    }
}

/// Where a page of device reports begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeviceCursor {
    /// At this index of attachments.
    Attachments(usize),
    /// At this index of uplinks.
    Uplinks(usize),
}

/// What a data thread knows of one device. What the kernel knows, an
/// [`Inspector`](crate::data::device::Inspector) tells.
#[derive(Clone, Debug)]
pub struct DeviceReport {
    /// Which interface it serves.
    pub interface: Interface,
    /// What it is.
    pub kind: DeviceKind,
    /// What it takes on egress.
    pub capabilities: Capabilities,
    /// What became of its frames.
    pub counters: DeviceCounters,
    /// How its capture fares, if it has one.
    pub capture: Option<CaptureStatus>,
}

impl DeviceReport {
    fn of(interface: Interface, Served { device, .. }: &Served) -> Self {
        Self {
            interface,
            kind: device.kind(),
            capabilities: device.capabilities(),
            counters: *device.counters(),
            capture: device.sink.as_ref().map(|sink| sink.status()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::data::device::memory_pair;

    fn device() -> LoopDevice {
        let [device, _] = memory_pair(["a", "b"], 1);
        LoopDevice::from(Box::new(device) as Box<dyn FrameDevice>)
    }

    #[test]
    fn a_token_names_one_interface() {
        for interface_in in [
            Interface::Attachment(AttachmentId(0)),
            Interface::Attachment(AttachmentId::new(77, 3)),
            Interface::Uplink(UplinkId(0)),
            Interface::Uplink(UplinkId(3)),
        ] {
            assert_eq!(interface(token(interface_in)), Some(interface_in));
        }
        assert_eq!(interface(WAKE), None);
    }

    #[test]
    fn an_index_has_one_device() {
        let mut devices = Devices::default();
        let id = AttachmentId::new(5, 0);
        let (old, new) = (
            Interface::Attachment(id),
            Interface::Attachment(id.successor()),
        );
        assert!(devices.insert(old, device()).is_none());
        assert!(devices.insert(old, device()).is_some());
        assert!(devices.insert(new, device()).is_some());
        assert!(devices.remove(new).is_none());
        assert!(devices.remove(old).is_some());
        assert!(devices.insert(new, device()).is_none());
    }

    #[test]
    fn pages_tell_of_every_device() {
        let mut devices = Devices::default();
        let attachments = (0..200).map(|index| Interface::Attachment(AttachmentId::new(index, 1)));
        let all: Vec<_> = attachments
            .chain([
                Interface::Uplink(UplinkId(0)),
                Interface::Uplink(UplinkId(2)),
            ])
            .collect();
        for &interface in &all {
            assert!(devices.insert(interface, device()).is_none());
        }
        let read = |cursor| Ok::<_, Infallible>(devices.page(cursor));
        let reports = nos_shim::page::read_all(read).unwrap();
        let told: Vec<_> = reports.iter().map(|report| report.interface).collect();
        assert_eq!(told, all);
        let taken = devices.take().into_iter();
        assert_eq!(
            taken.map(|(interface, _)| interface).collect::<Vec<_>>(),
            all
        );
    }
}
