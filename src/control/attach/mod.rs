//! Puts a container's side in place, and takes it away again.
//!
//! Goals: after attaching, a program in the container sees the NOS's addresses as its own and has
//! one way out, `eth0`; nothing in the namespace is touched beyond that. Doing it again changes
//! nothing, so it doubles as repair. Detaching undoes it. What a killed run left is recognised.
//! All of it goes through netlink (and sysctls), nothing runs another program.
//!
//! | thing | in the container | undone by |
//! |---|---|---|
//! | `lo` | set up | stays up: programs rely on it by then |
//! | shared addresses | /32 and /128 on `lo`, without duplicate address detection | removal |
//! | interface | MAC, MTU, queue length, alias, link-local address, up | deletion (a TAP: when its fd is closed) |
//! | default routes | on-link through the interface, source: the first shared address | removal |
//! | networks of the uplinks | on-link through the interface, source: the shared address in the network, or else the first | removal |
//! | routes to the shared addresses, in tables of their own, and the policy rules for them | first of all rules: packets from inside go to the NOS, see `shared` | removal |
//! | `ip_local_port_range`, `ip_local_reserved_ports` | the ephemeral ranges, and what lies between them | the values found before |
//!
//! How: [`attach`] visits the namespace once and brings back a netlink socket, the settings of
//! ports, and a TAP where one is wanted (`interior`). All else is done from outside: what is there
//! is read, compared with what shall be there (`plan`, which is pure), and the difference goes to
//! the kernel as one batch of requests (`side`). A container that is as it shall be is only read.
//! Many are detached together by [`detach_all`].
//!
//! A container that is attached keeps its namespace alive only by a TAP that was opened inside
//! ([`Placement::Inside`]). Everything else lets go of it ([`ContainerSide::park`]), so that the
//! kernel can delete it, and the device with it, when the container ends.
//!
//! How ours is told from others' without a file that could be stale: interfaces carry the alias
//! `nos-relay:<attachment>`, host ends a name derived from the attachment's, addresses
//! (Linux 5.18), routes and policy rules the protocol number 206. A thing without a mark is never removed, and in
//! our way it is an error that names it.
//!
//! What a killed run left is taken up again ([`leftovers`]): a veth pair stays by itself, and a TAP
//! that was opened inside is made persistent once it is attached. Whoever attaches the same container
//! by the same kind of interface gets the one that is there, with its index, addresses and routes. A
//! leftover that is not wanted so is removed. Who still lives is told by what the kernel grants once:
//! a TAP's only queue, and the [`Takeover`](crate::control::kernel::takeover::Takeover) of a host end.
//!
//! A veth's host end may be a port of a Linux bridge (`bridge`), and a veth may be somebody else's making
//! ([`LinkPlace`]). Of both only what is for the relay is taken from the kernel, and heard. Somebody else's carries no
//! mark, and nothing about it is changed or removed: addresses and routes of ours come beside what is there.
//!
//! Several attachments of one namespace are told apart by their interfaces and addresses ([`Company`]); the
//! first has the namespace's default route, each other one a table of its own for what comes from its
//! addresses. When one goes, the rules and the ports are for those that stay to put right.
//!
//! Calls block for about a millisecond, those that delete or
//! close for some 20: for the control thread only.

mod bridge;
mod detach;
mod error;
mod host;
mod injection;
mod interior;
mod ipv6;
mod leftovers;
mod local_ports;
mod mark;
mod plan;
mod shared;
mod side;
mod spec;
mod veth;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use nos_shim::ident::MacAddr;
use nos_shim::offload::Capabilities;
use tracing::warn;

use crate::control::kernel::netlink::{LinkChange, Netlink};
use crate::control::kernel::{LinkFacts, LinkStatistics, Namespace};
use crate::data::device::{FrameDevice, PacketOptions, PacketSocket, open_tap};
use interior::Interior;
use leftovers::{Kind, Place, open_left_tap, place_of, remove_host_end, remove_made};
use mark::{owner, tap_name};

pub use bridge::remove_unused_bridges;
pub use detach::{Detachment, Pace, close_all, detach_all};
pub use error::{AttachError, Warning};
pub use host::Host;
pub use leftovers::{make_room, remove_leftovers};
pub use mark::host_end_name;
pub use plan::Families;
pub use side::{ContainerSide, ParkedSide, SideFacts, SideReport};
pub use spec::{
    AttachRequest, Company, ContainerSpec, DEFAULT_TX_QUEUE_LEN, DeviceRequest, LinkPlace,
    OtherAttachment, Placement,
};
pub use veth::VethPair;

use veth::HostEnd;

/// A container that is attached.
pub struct Attached {
    /// The relay's end.
    pub device: Box<dyn FrameDevice>,
    /// The container's side.
    pub side: ParkedSide,
    /// The pair that carries a packet socket; `None` with a TAP.
    pub veth: Option<VethPair>,
    /// How the container's side is, with what is left out of it.
    pub report: SideReport,
    /// The interface is one that a killed run had left.
    pub adopted: bool,
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attached")
            .field("device", &self.device.name())
            .field("side", &self.side)
            .field("veth", &self.veth)
            .field("report", &self.report)
            .field("adopted", &self.adopted)
            .finish()
    }
}

impl Attached {
    /// What [`detach_all`] takes away.
    #[must_use]
    pub fn into_detachment(self) -> Detachment {
        Detachment {
            side: Some(self.side),
            veth: self.veth,
            device: Some(self.device),
            others_stay: false,
        }
    }
}

/// Attaches a container: makes its device, or takes up the one that a killed run left, and puts its
/// side in place.
///
/// The container's namespace is entered once, and the host's where the calling thread is elsewhere.
///
/// # Errors
/// The container is the host itself; it has an interface by the wanted name, or a default route,
/// from elsewhere; a living nos-relay has attached it; the spec cannot be met; the kernel refuses.
/// All that was done until then is undone.
pub fn attach(
    host: &Host,
    container: &Namespace,
    request: AttachRequest,
) -> Result<Attached, AttachError> {
    host.refuse_own(container)?;
    request.spec.validate()?;
    let attach = || match &request.device {
        DeviceRequest::Tap => attach_tap(host, container, request),
        DeviceRequest::Veth { relay_mac, bridge } => {
            let end = match bridge {
                None => HostEnd::alone(*relay_mac),
                Some(name) => HostEnd::port(*relay_mac, bridge::bridge(host, name)?),
            };
            let attached = attach_veth(host, container, request, end);
            // It may have been made for this one.
            if attached.is_err()
                && end.station().is_some()
                && let Err(error) = remove_unused_bridges(host)
            {
                warn!("cannot look for bridges that are not used any more: {error}");
            }
            attached
        }
        DeviceRequest::Existing { relay_mac } => {
            let relay_mac = *relay_mac;
            attach_existing(host, container, request, relay_mac)
        }
    };
    // Where the caller is on the host already, as the control thread is, this costs nothing.
    host.namespace().run(attach)?
}

fn attach_tap(
    host: &Host,
    container: &Namespace,
    request: AttachRequest,
) -> Result<Attached, AttachError> {
    let AttachRequest {
        spec,
        offload,
        placement,
        ..
    } = request;
    let wanted = offloads(offload);
    // On an error from here on the device is dropped, and the TAP goes with it.
    let (interior, (device, adopted)) = match placement {
        Placement::Inside => Interior::visit(container, |netlink| {
            match place_of(host, netlink, container, &spec, Kind::Tap)? {
                Place::Free => Ok((open_tap(spec.interface.as_str(), wanted)?, false)),
                Place::Left(link) => Ok((open_left_tap(&link, container, wanted)?, true)),
            }
        })?,
        Placement::Moved => {
            let interior = Interior::open(container)?;
            make_room(host, container, &spec.interface)?;
            let device = open_tap(&tap_name(&spec.name), wanted)?;
            move_inside(host, container, &spec)?;
            (interior, (device, false))
        }
    };
    let mut attached = finish(&interior, container, spec, device, None)?;
    attached.adopted = adopted;
    // Opened again from elsewhere, one that was moved would keep its namespace alive.
    if placement == Placement::Inside
        && let Err(errno) = attached.device.set_persistent(true)
    {
        warn!(
            "{}: goes with a killed nos-relay: {}",
            attached.device.name(),
            errno.desc()
        );
    }
    Ok(attached)
}

fn attach_veth(
    host: &Host,
    container: &Namespace,
    request: AttachRequest,
    end: HostEnd,
) -> Result<Attached, AttachError> {
    let AttachRequest { spec, offload, .. } = request;
    let interior = Interior::open(container)?;
    let place = place_of(host, &interior.netlink, container, &spec, Kind::Veth)?;
    // On an error from here on the pair is dropped, which deletes it.
    let (pair, adopted) = match place {
        Place::Left(_) => (VethPair::adopt(host, &spec, end)?, true),
        Place::Free => {
            remove_host_end(host, &spec.name)?;
            let inside = &interior.netlink;
            let pair = VethPair::create_in_room(host, inside, container, &spec, end)?;
            (pair, false)
        }
    };
    let device = listen(&pair, offload, end.station())?;
    let attached = finish(&interior, container, spec, device, Some(pair))?;
    Ok(Attached {
        adopted,
        ..attached
    })
}

/// Attaches a container by an interface that somebody else has made.
fn attach_existing(
    host: &Host,
    container: &Namespace,
    request: AttachRequest,
    relay_mac: MacAddr,
) -> Result<Attached, AttachError> {
    let AttachRequest { spec, offload, .. } = request;
    let interior = Interior::open(container)?;
    remove_made(host, &interior.netlink, container, &spec)?;
    let inside = interior.netlink.existing_link(spec.interface.as_str())?;
    let pair = VethPair::borrow(host, container, &inside, relay_mac)?;
    let device = listen(&pair, offload, Some(relay_mac))?;
    finish(&interior, container, spec, device, Some(pair))
}

/// The relay's end of a pair: of all that comes there, or as one station among others.
fn listen(
    pair: &VethPair,
    offload: bool,
    station: Option<MacAddr>,
) -> Result<Box<dyn FrameDevice>, AttachError> {
    let options = PacketOptions {
        offload: offloads(offload),
        injection: true,
        station,
        ..PacketOptions::default()
    };
    Ok(Box::new(PacketSocket::open(
        pair.host_interface(),
        options,
    )?))
}

fn finish(
    interior: &Interior,
    container: &Namespace,
    spec: ContainerSpec,
    device: Box<dyn FrameDevice>,
    veth: Option<VethPair>,
) -> Result<Attached, AttachError> {
    let (side, report) = ContainerSide::configure_through(interior, container, spec)?;
    Ok(Attached {
        device,
        side: side.park(),
        veth,
        report,
        adopted: false,
    })
}

/// Moves the TAP of an attachment from the host into the container, where it gets its name.
fn move_inside(
    host: &Host,
    container: &Namespace,
    spec: &ContainerSpec,
) -> Result<(), AttachError> {
    let name = tap_name(&spec.name);
    let link = host.netlink().existing_link(&name)?;
    let change = LinkChange::of(link.index)
        .into_namespace(container)
        .name(spec.interface.as_str());
    let what = format!("{name}, to be {} in {container}", spec.interface);
    Ok(host.netlink().call(&change.request(&what))?)
}

/// What is asked of a device that may use offload, and of one that may not.
pub(crate) fn offloads(wanted: bool) -> Capabilities {
    if wanted {
        Capabilities::all()
    } else {
        Capabilities::empty()
    }
}

/// What somebody else has made in a namespace that can be in the way of an attachment: interfaces
/// and default routes, in words.
///
/// # Errors
/// The namespace cannot be entered or asked.
pub fn foreign_parts(namespace: &Namespace) -> Result<BTreeSet<String>, AttachError> {
    let interior = Interior::open(namespace)?;
    let links = interior.netlink.all_links()?.into_iter();
    let links = links.filter(|link| owner(link).is_none());
    let mut parts: BTreeSet<_> = links.map(|link| link.name).collect();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let routes = interior.default_routes(family)?.into_iter();
        let routes = routes.filter(|route| !route.is_ours());
        parts.extend(routes.map(|route| route.describe()));
    }
    Ok(parts)
}

/// An interface that somebody else has made for a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExistingInterface {
    /// Its name.
    pub interface: String,
    /// Its MAC address.
    pub mac: Option<MacAddr>,
    /// Octets of the longest IP packet.
    pub mtu: u32,
    /// The networks that its addresses are in, in their order, but for link-local ones.
    pub networks: Vec<IpNet>,
}

/// What an interface of a container is like that somebody else makes; `None` where there is none of that
/// name, or ours has it.
///
/// # Errors
/// The namespace cannot be entered or asked.
pub fn existing_interface(
    namespace: &Namespace,
    interface: &str,
) -> Result<Option<ExistingInterface>, AttachError> {
    let netlink = Netlink::open(namespace)?;
    let Some(link) = netlink
        .link(interface)?
        .filter(|link| owner(link).is_none())
    else {
        return Ok(None);
    };
    let addresses = netlink.addresses()?.into_iter();
    let addresses = addresses.filter(|facts| facts.interface == link.index);
    let networks = addresses.filter_map(|facts| {
        let net = IpNet::new(facts.address, facts.prefix_length).ok()?;
        let link_local = matches!(facts.address, IpAddr::V6(it) if it.is_unicast_link_local());
        (!link_local).then(|| net.trunc())
    });
    let networks: BTreeSet<_> = networks.collect();
    Ok(Some(ExistingInterface {
        interface: link.name,
        mac: link.mac,
        mtu: link.mtu,
        networks: networks.into_iter().collect(),
    }))
}

/// What the kernel says of an interface; `None` where there is none by that name.
///
/// # Errors
/// The namespace cannot be entered or asked.
pub fn link(namespace: &Namespace, interface: &str) -> Result<Option<LinkFacts>, AttachError> {
    Ok(Netlink::open(namespace)?.link(interface)?)
}

/// What the kernel says of the interface of this number; `None` where there is none.
///
/// # Errors
/// The namespace cannot be entered or asked.
pub fn link_by_index(namespace: &Namespace, index: u32) -> Result<Option<LinkFacts>, AttachError> {
    Ok(Netlink::open(namespace)?.link_by_index(index)?)
}

/// Sets an interface's MTU (octets of the longest IP packet) and its transmit queue, and sets it
/// up.
///
/// # Errors
/// There is no such interface, or the kernel refuses.
pub fn bring_up(namespace: &Namespace, interface: &str, mtu: u32) -> Result<(), AttachError> {
    let netlink = Netlink::open(namespace)?;
    let index = netlink.existing_link(interface)?.index;
    let prepare = LinkChange::of(index)
        .mtu(mtu)
        .tx_queue_len(DEFAULT_TX_QUEUE_LEN);
    netlink.call(&prepare.request(interface))?;
    // The kernel changes the queue only after it has set the interface up: hence two requests.
    Ok(netlink.call(&LinkChange::of(index).up().request(interface))?)
}

/// The kernel's counters of an interface.
///
/// # Errors
/// There is no such interface, or the namespace cannot be asked.
pub fn link_statistics(
    namespace: &Namespace,
    interface: &str,
) -> Result<LinkStatistics, AttachError> {
    let facts = Netlink::open(namespace)?.existing_link(interface)?;
    Ok(facts.statistics)
}
