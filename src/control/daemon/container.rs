//! Attaching a container: registration, device, and the container's own side.

use nos_shim::ident::{AttachmentId, Interface, MacAddr};
use nos_shim::offload::Capabilities;
use nos_shim::ports::{Claim, ClaimKind, PortRange, Transport};
use tracing::{info, warn};

use crate::control::attach::{
    ContainerSide, ContainerSpec, DEFAULT_TX_QUEUE_LEN, ParkedSide, VethPair, make_room, move_link,
    tap_name,
};
use crate::control::config::{Container, ContainerDevice, NetnsRef};
use crate::control::kernel::{InterfaceName, Namespace, NamespaceError};
use crate::data::device::{FrameDevice, PacketOptions, PacketSocket, PlainTap, Tap};
use crate::data::relay::AttachmentConfig;

use super::data_plane::DataPlane;
use super::{DaemonError, capture};

/// A container that is attached.
#[derive(Debug)]
pub(super) struct AttachedContainer {
    pub(super) id: AttachmentId,
    pub(super) config: Container,
    /// Set when its device went away by itself, and until it is attached anew.
    pub(super) gone: bool,
    side: ParkedSide,
    veth: Option<VethPair>,
}

/// The MAC address of a container's interface.
pub(super) fn container_mac(config: &Container) -> MacAddr {
    config
        .mac
        .unwrap_or_else(|| MacAddr::stable(&format!("container {}", config.name)))
}

/// The MAC address of the relay on a container's link.
pub(super) fn relay_mac(config: &Container) -> MacAddr {
    MacAddr::stable(&format!("relay {}", config.name))
}

/// What the relay has to know of a container.
pub(super) fn attachment(id: AttachmentId, config: &Container) -> AttachmentConfig {
    AttachmentConfig {
        id,
        name: config.name.as_str().into(),
        vrf: config.vrf,
        mac: container_mac(config),
        relay_mac: relay_mac(config),
        addresses: config.addresses.clone(),
        claims: claims(config),
        mtu: config.mtu.octets(),
    }
}

fn claims(config: &Container) -> Vec<Claim> {
    let listen = |transport, ranges: &[PortRange]| {
        let claim = move |&range| Claim {
            transport,
            range,
            kind: ClaimKind::Listen,
        };
        ranges.iter().map(claim).collect::<Vec<_>>()
    };
    let ephemeral = [Transport::Tcp, Transport::Udp]
        .into_iter()
        .filter_map(|transport| {
            let range = config.ephemeral?;
            Some(Claim {
                transport,
                range,
                kind: ClaimKind::Ephemeral,
            })
        });
    let mut claims = listen(Transport::Tcp, &config.tcp);
    claims.extend(listen(Transport::Udp, &config.udp));
    claims.extend(ephemeral);
    claims
}

fn spec(config: &Container) -> Result<ContainerSpec, DaemonError> {
    Ok(ContainerSpec {
        name: config.name.to_string(),
        interface: interface_name(config)?,
        mac: container_mac(config),
        mtu: u32::from(config.mtu.octets()),
        tx_queue_len: DEFAULT_TX_QUEUE_LEN,
        addresses: config.addresses.clone(),
        ephemeral: config.ephemeral.map(|range| range.first()..=range.last()),
    })
}

fn interface_name(config: &Container) -> Result<InterfaceName, DaemonError> {
    let name = config.interface.as_str().parse::<InterfaceName>();
    name.map_err(|error| DaemonError::container(config, error))
}

impl AttachedContainer {
    /// Makes the device and the container's side. The registration must have been accepted.
    pub(super) fn attach(
        host: &Namespace,
        plane: &DataPlane,
        id: AttachmentId,
        config: Container,
    ) -> Result<Self, DaemonError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            DaemonError::container(&config, error)
        };
        let namespace = open(&config.netns).map_err(|error| failed(error.into()))?;
        let spec = spec(&config)?;
        make_room(host, &namespace, &spec.interface).map_err(|error| failed(error.into()))?;
        let (device, veth) = match config.device {
            ContainerDevice::Tap => (open_tap(host, &namespace, &spec, &config)?, None),
            ContainerDevice::Veth => {
                let pair = VethPair::create(host, &namespace, &spec, relay_mac(&config));
                let pair = pair.map_err(|error| failed(error.into()))?;
                (open_veth(host, &pair, &config)?, Some(pair))
            }
        };
        let device = capture::wrap(device, config.capture.as_deref(), config.name.as_str())?;
        let side =
            ContainerSide::configure(&namespace, spec).map_err(|error| failed(error.into()))?;
        let device = plane.add_device(Interface::Attachment(id), device);
        device.map_err(|error| failed(error.into()))?;
        info!(container = %config.name, device = %config.device, netns = %config.netns, "attached");
        Ok(Self {
            id,
            config,
            gone: false,
            side: side.park(),
            veth,
        })
    }

    /// Follows a change of addresses, ephemeral range or MTU.
    pub(super) fn update(&mut self, config: Container) -> Result<(), DaemonError> {
        let spec = spec(&config)?;
        if let Some(veth) = &self.veth {
            let changed = veth.set_mtu(spec.mtu);
            changed.map_err(|error| DaemonError::container(&config, error))?;
        }
        let mut side = self
            .side
            .resume()
            .map_err(|error| DaemonError::container(&config, error))?;
        let updated = side.update(spec);
        self.side = side.park();
        updated.map_err(|error| DaemonError::container(&config, error))?;
        self.config = config;
        Ok(())
    }

    /// Where the container is.
    ///
    /// # Errors
    ///
    /// The namespace was deleted.
    pub(super) fn namespace(&self) -> Result<Namespace, NamespaceError> {
        self.side.namespace().open()
    }

    /// Takes the container's side away. What cannot be undone is logged, and the rest is undone.
    pub(super) fn detach(mut self, plane: &DataPlane) {
        let name = self.config.name.to_string();
        match self.side.resume().map(ContainerSide::detach) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(container = %name, %error, "not all of the container's side could be undone");
            }
            Err(error) => info!(container = %name, %error, "nothing to undo"),
        }
        // A TAP goes with its descriptor.
        if plane.remove_device(Interface::Attachment(self.id)).is_err() {
            warn!(container = %name, "the data thread has stopped");
        }
        if let Some(veth) = self.veth.take()
            && let Err(error) = veth.detach()
        {
            warn!(container = %name, %error, "the veth pair could not be deleted");
        }
        info!(container = %name, "detached");
    }
}

fn open(netns: &NetnsRef) -> Result<Namespace, crate::control::kernel::NamespaceError> {
    match netns {
        NetnsRef::Path(path) => Namespace::open(path),
        NetnsRef::Pid(pid) => Namespace::of_process(pid.get()),
    }
}

/// Opens a TAP and moves it into the container. One that is opened inside would keep the namespace
/// alive as long as its descriptor.
fn open_tap(
    host: &Namespace,
    namespace: &Namespace,
    spec: &ContainerSpec,
    config: &Container,
) -> Result<Box<dyn FrameDevice>, DaemonError> {
    let name = tap_name(&spec.name);
    let opened = host.run(|| tap(&name, config.offload));
    let opened = opened.map_err(|error| DaemonError::container(config, error))?;
    let device = opened.map_err(|error| DaemonError::container(config, error))?;
    // On an error the device is dropped, and the TAP goes with it.
    move_link(host, &name, namespace, &spec.interface)
        .map_err(|error| DaemonError::container(config, error))?;
    Ok(device)
}

/// Opens a TAP in the current namespace: with virtio-net headers if `offload` is wished and the
/// kernel can, plain otherwise.
pub(super) fn tap(
    name: &str,
    offload: bool,
) -> Result<Box<dyn FrameDevice>, crate::data::device::OpenError> {
    if !offload {
        return Ok(Box::new(PlainTap::open(name)?));
    }
    match Tap::open(name, Capabilities::all()) {
        Ok(tap) => Ok(Box::new(tap)),
        Err(crate::data::device::OpenError::NoVnetHeader { .. }) => {
            warn!(
                interface = name,
                "the kernel gives no virtio-net header; going on without offload"
            );
            Ok(Box::new(PlainTap::open(name)?))
        }
        Err(error) => Err(error),
    }
}

fn open_veth(
    host: &Namespace,
    pair: &VethPair,
    config: &Container,
) -> Result<Box<dyn FrameDevice>, DaemonError> {
    let offload = if config.offload {
        Capabilities::all()
    } else {
        Capabilities::empty()
    };
    let options = PacketOptions {
        offload,
        ..PacketOptions::default()
    };
    match host.run(|| PacketSocket::open(pair.host_interface(), options)) {
        Ok(Ok(socket)) => Ok(Box::new(socket)),
        Ok(Err(error)) => Err(DaemonError::container(config, error)),
        Err(error) => Err(DaemonError::container(config, error)),
    }
}
