//! What one process says to the next, and what the next has of it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nos_shim::ident::MacAddr;
use serde::{Deserialize, Serialize};

use crate::control::attach::SideFacts;
use crate::control::config::NetnsRef;
use crate::control::kernel::NamespaceId;
use crate::data::device::{DeviceFacts, DeviceKind};

/// The format of the manifest. Processes that do not have the same hand nothing over.
pub const FORMAT: u32 = 1;

/// The number by which a manifest names a descriptor, for the life of a process.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Descriptor(pub u32);

/// What is handed over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The version of the program that wrote it, for the log.
    pub program: String,
    /// The namespace of the process.
    pub host: NamespaceId,
    /// What errors call the configuration file.
    pub file: String,
    /// The text of the configuration file that was followed.
    pub text: String,
    /// What was registered besides: names of records, and what they say.
    pub overlay: Vec<(String, String)>,
    /// Pools of addresses and what is known of these, in the same way, where no store has them.
    #[serde(default)]
    pub pools: Vec<(String, String)>,
    /// The socket that keeps the kernel from interfaces, if any is kept.
    pub keeper: Option<Descriptor>,
    /// The control socket, and its lock; `None` where it is not handed over.
    pub control: Option<[Descriptor; 2]>,
    /// Containers that are attached.
    pub containers: Vec<ContainerFacts>,
    /// Uplinks whose device is open.
    pub uplinks: Vec<UplinkFacts>,
    /// What was remembered when it was written.
    pub memory: Memory,
    /// The descriptors that go with it, in this order.
    pub descriptors: Vec<Descriptor>,
}

/// A container that is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerFacts {
    /// Its name.
    pub name: String,
    /// By what its namespace is found.
    pub netns: Place,
    /// Which namespace that was.
    pub namespace: NamespaceId,
    /// The interface's name inside, as it was wanted.
    pub interface: String,
    /// Its MAC address.
    #[serde(with = "text")]
    pub mac: MacAddr,
    /// Whether offload was asked for.
    pub offload: bool,
    /// What has to be known of the inside.
    pub side: SideFacts,
    /// The pair, where the interface is a veth.
    pub veth: Option<VethFacts>,
    /// The relay's end.
    pub descriptor: Descriptor,
    /// What it is.
    pub device: DeviceFacts,
}

/// [`NetnsRef`], as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A file.
    Path(PathBuf),
    /// A process.
    Pid(std::num::NonZeroU32),
}

impl From<&NetnsRef> for Place {
    fn from(netns: &NetnsRef) -> Self {
        match netns {
            NetnsRef::Path(path) => Self::Path(path.clone()),
            NetnsRef::Pid(pid) => Self::Pid(*pid),
        }
    }
}

impl From<&Place> for NetnsRef {
    fn from(place: &Place) -> Self {
        match place {
            Place::Path(path) => Self::Path(path.clone()),
            Place::Pid(pid) => Self::Pid(*pid),
        }
    }
}

/// The host end of a veth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VethFacts {
    /// Its name.
    pub interface: String,
    /// Its index.
    pub index: u32,
    /// Whether the kernel is kept from it.
    pub taken: bool,
    /// Whether somebody else has made it.
    #[serde(default)]
    pub borrowed: bool,
}

/// An uplink whose device is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkFacts {
    /// Its name.
    pub name: String,
    /// The index of its interface.
    pub index: u32,
    /// Whether the kernel is kept from it.
    pub taken: bool,
    /// The device.
    pub descriptor: Descriptor,
    /// What it is.
    pub device: DeviceFacts,
}

/// A neighbor whose MAC address is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NeighborFacts {
    /// The name of the uplink.
    pub uplink: String,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address.
    #[serde(with = "text")]
    pub mac: MacAddr,
}

/// A flow that ports cannot decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowFacts {
    /// The name of the container whose it is.
    pub owner: String,
    /// In which VRF.
    pub vrf: u16,
    /// Whether it is UDP; else it is TCP.
    pub udp: bool,
    /// The container's end.
    pub local: SocketAddr,
    /// The peer's; port 0 of one that is expected.
    pub remote: SocketAddr,
    /// Whether the peer has opened it.
    pub by_peer: bool,
    /// Whether its port is nobody's but for it.
    pub learnt: bool,
    /// Whether both sides have spoken.
    #[serde(default)]
    pub confirmed: bool,
}

/// An echo request to which a reply may be on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EchoFacts {
    /// The name of the container that has sent it.
    pub owner: String,
    /// In which VRF.
    pub vrf: u16,
    /// The container's address.
    pub local: IpAddr,
    /// Whom it asks.
    pub remote: IpAddr,
    /// The identifier on the wire.
    pub wire_id: u16,
    /// The identifier as the container has sent it.
    pub id: u16,
}

/// What changes from packet to packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Neighbors that are known.
    pub neighbors: Vec<NeighborFacts>,
    /// Flows that ports cannot decide.
    pub flows: Vec<FlowFacts>,
    /// Echo requests.
    #[serde(default)]
    pub echoes: Vec<EchoFacts>,
}

/// MAC addresses as people write them.
mod text {
    use nos_shim::ident::MacAddr;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(mac: &MacAddr, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(mac)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<MacAddr, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl DeviceFacts {
    /// Whether it is a packet socket.
    #[must_use]
    pub fn is_packet(&self) -> bool {
        self.kind == DeviceKind::Packet
    }
}

/// A manifest and the descriptors that came with it.
#[derive(Debug)]
pub struct Inheritance {
    /// What is said of them.
    pub manifest: Manifest,
    descriptors: BTreeMap<Descriptor, OwnedFd>,
}

impl Inheritance {
    /// Joins what was received.
    ///
    /// # Errors
    ///
    /// The manifest is of another format, or not one.
    pub fn new(
        manifest: &[u8],
        descriptors: impl IntoIterator<Item = (Descriptor, OwnedFd)>,
    ) -> io::Result<Self> {
        /// What manifests of all formats have in common.
        #[derive(Deserialize)]
        struct Header {
            format: u32,
        }
        let Header { format } = serde_json::from_slice(manifest)?;
        if format != FORMAT {
            return Err(io::Error::other(format!(
                "it is in format {format}, this program knows format {FORMAT}"
            )));
        }
        Ok(Self {
            manifest: serde_json::from_slice(manifest)?,
            descriptors: descriptors.into_iter().collect(),
        })
    }

    /// Adds descriptors.
    pub(super) fn add(&mut self, more: impl IntoIterator<Item = (Descriptor, OwnedFd)>) {
        self.descriptors.extend(more);
    }

    /// Takes the control socket and its lock out.
    pub fn take_control(&mut self) -> Option<[OwnedFd; 2]> {
        let [listener, lock] = self.manifest.control?;
        Some([self.take(listener)?, self.take(lock)?])
    }

    /// Takes a descriptor out; `None` where it is not there.
    pub fn take(&mut self, descriptor: Descriptor) -> Option<OwnedFd> {
        self.descriptors.remove(&descriptor)
    }
}
