//! Opening an uplink: its device, and taking the interface over from the kernel.

use std::sync::Arc;

use nos_shim::ident::{Interface, MacAddr, UplinkId};
use nos_shim::offload::Capabilities;
use nos_shim::shim::{LinkState, UplinkConfig};
use tracing::{info, warn};

use crate::control::attach;
use crate::control::config::{Uplink, UplinkDevice};
use crate::control::kernel::Namespace;
use crate::control::kernel::takeover::Takeover;
use crate::data::device::{FrameDevice, PacketOptions, PacketSocket};

use super::container::tap;
use super::data_plane::DataPlane;
use super::{DaemonError, capture};

/// An uplink in use.
#[derive(Debug)]
pub(super) struct OpenUplink {
    pub(super) id: UplinkId,
    pub(super) config: Uplink,
    /// Set when its device went away by itself.
    pub(super) gone: bool,
    pub(super) mac: MacAddr,
    /// Keeps the kernel from answering what is ours, as long as it lives.
    _takeover: Option<Takeover>,
}

impl OpenUplink {
    /// Opens the device, takes the interface over, and gives both to the data path.
    pub(super) fn open(
        host: &Namespace,
        plane: &DataPlane,
        id: UplinkId,
        config: Uplink,
    ) -> Result<Self, DaemonError> {
        let (device, mac, takeover) = match &config.device {
            UplinkDevice::Packet(_) => open_packet(host, &config)?,
            UplinkDevice::Tap(_) => open_tap(host, &config)?,
        };
        let device = capture::wrap(device, config.capture.as_deref(), config.name.as_str())?;
        let uplink = Self {
            id,
            config,
            gone: false,
            mac,
            _takeover: takeover,
        };
        uplink.publish(plane)?;
        let added = plane.add_device(Interface::Uplink(id), device);
        added.map_err(|error| DaemonError::uplink(&uplink.config, error))?;
        let now = plane.now();
        let up = plane.on_nos(move |nos| nos.set_link(id, LinkState::Up, now))?;
        up.map_err(|error| DaemonError::uplink(&uplink.config, error))?;
        info!(uplink = %uplink.config.name, device = %uplink.config.device, %mac, "uplink open");
        Ok(uplink)
    }

    /// Tells the NOS what the uplink's addresses and MTU are.
    pub(super) fn publish(&self, plane: &DataPlane) -> Result<(), DaemonError> {
        let config = UplinkConfig {
            id: self.id,
            name: Arc::from(self.config.name.as_str()),
            vrf: self.config.vrf,
            mac: self.mac,
            addresses: self.config.addresses.clone(),
            mtu: usize::from(self.config.mtu.octets()),
        };
        let now = plane.now();
        let set = plane.on_nos(move |nos| nos.set_uplink(config, now))?;
        set.map_err(|error| DaemonError::uplink(&self.config, error))
    }

    /// Closes the device and gives the interface back to the kernel.
    pub(super) fn close(self, plane: &DataPlane) {
        let id = self.id;
        let removed = plane.remove_device(Interface::Uplink(id));
        if removed
            .and_then(|()| plane.on_nos(move |nos| nos.remove_uplink(id)))
            .is_err()
        {
            warn!(uplink = %self.config.name, "the data thread has stopped");
        }
        info!(uplink = %self.config.name, "uplink closed");
    }
}

type Opened = (Box<dyn FrameDevice>, MacAddr, Option<Takeover>);

fn open_packet(host: &Namespace, config: &Uplink) -> Result<Opened, DaemonError> {
    let failed =
        |error: Box<dyn std::error::Error + Send + Sync>| DaemonError::uplink(config, error);
    let name = config.device.interface().as_str();
    let link = attach::link(host, name).map_err(|error| failed(error.into()))?;
    let link = link.ok_or_else(|| failed(format!("there is no interface {name}").into()))?;
    if link.mtu < u32::from(config.mtu.octets()) {
        return Err(failed(
            format!("mtu {} is more than the {} of {name}", config.mtu, link.mtu).into(),
        ));
    }
    let mac = config.mac.or(link.mac).filter(|mac| mac.is_unicast());
    let mac = mac.ok_or_else(|| failed(format!("{name} has no MAC address; set `mac`").into()))?;
    if !link.up {
        warn!(uplink = %config.name, interface = name, "the interface is down");
    }
    let takeover = Takeover::of(host, name).map_err(|error| failed(error.into()))?;
    let offload = if config.offload {
        Capabilities::all()
    } else {
        Capabilities::empty()
    };
    let promiscuous = link.mac != Some(mac);
    let options = PacketOptions {
        offload,
        promiscuous,
        ..PacketOptions::default()
    };
    let socket = host.run(|| PacketSocket::open(name, options));
    let socket = socket.map_err(|error| failed(error.into()))?;
    let socket = socket.map_err(|error| failed(error.into()))?;
    Ok((Box::new(socket), mac, Some(takeover)))
}

fn open_tap(host: &Namespace, config: &Uplink) -> Result<Opened, DaemonError> {
    let failed =
        |error: Box<dyn std::error::Error + Send + Sync>| DaemonError::uplink(config, error);
    let name = config.device.interface().as_str();
    let device = host
        .run(|| tap(name, config.offload))
        .map_err(|error| failed(error.into()))?;
    let device = device.map_err(|error| failed(error.into()))?;
    let up = attach::bring_up(host, name, u32::from(config.mtu.octets()));
    up.map_err(|error| failed(error.into()))?;
    let mac = config
        .mac
        .unwrap_or_else(|| MacAddr::stable(&format!("uplink {}", config.name)));
    Ok((device, mac, None))
}
