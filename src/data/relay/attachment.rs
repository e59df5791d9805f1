//! One attachment: what it was given, and what went through it.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use nos_shim::drop::{DropCounters, DropReason};
use nos_shim::frame::Frame;
use nos_shim::ident::{AttachmentId, MacAddr, NetworkId, UplinkId, VrfId};
use nos_shim::offload::Capabilities;
use nos_shim::packet::{ETHERTYPE_ARP, Packet, Rejected, ether_type};
use nos_shim::ports::{AddressMode, Claim, Policy, Registration};
use nos_shim::vlan::parse_tagged;

use crate::data::guard::Guard;
use crate::data::link::ContainerLink;
use crate::data::responder::{Disposition, answer_arp, answer_ip};

use super::refusal::RefusalLimits;

/// A container's interface, as the relay has to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachmentConfig {
    /// An index that no other attachment has now, best a small one, and a generation that the
    /// last user of the index did not have.
    pub id: AttachmentId,
    /// What operators call it.
    pub name: Arc<str>,
    /// Where its packets are looked up.
    pub vrf: VrfId,
    /// The container's MAC address.
    pub mac: MacAddr,
    /// The relay's MAC address on this link.
    pub relay_mac: MacAddr,
    /// The network that it is in: none of another one gets what it sends to an address that both share.
    pub network: NetworkId,
    /// Whose its addresses are. Where they are its own, it has no claims, no policy, and shares no link-local
    /// address.
    pub mode: AddressMode,
    /// Addresses that the container uses: of the NOS, or its own.
    pub addresses: Vec<IpAddr>,
    /// The link-local address of an uplink of its VRF that it uses besides.
    pub link_local: Option<LinkLocal>,
    /// Its ports on them.
    pub claims: Vec<Claim>,
    /// With whom it may talk.
    pub policy: Policy,
    /// Octets of the longest IP packet on the link.
    pub mtu: u16,
    /// Networks of the other stations on the link, if it is a segment with such, as that of a bridge.
    pub segment: Option<Arc<[IpNet]>>,
}

/// The NOS's link-local address on the link of an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkLocal {
    /// The uplink.
    pub uplink: UplinkId,
    /// The address, which follows from the uplink's MAC address.
    pub address: Ipv6Addr,
}

/// What went through an attachment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachmentCounters {
    /// Frames from the container.
    pub rx_packets: u64,
    /// Their octets, Ethernet headers included.
    pub rx_octets: u64,
    /// Frames written to the container.
    pub tx_packets: u64,
    /// Their octets, Ethernet headers included.
    pub tx_octets: u64,
    /// Frames dropped, either way.
    pub drops: DropCounters,
}

/// An attachment at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachmentStatus {
    /// Its number.
    pub id: AttachmentId,
    /// What operators call it.
    pub name: Arc<str>,
    /// Whether the NOS has accepted it.
    pub active: bool,
    /// What went through it.
    pub counters: AttachmentCounters,
}

#[derive(Debug)]
pub(super) struct Attachment {
    guard: Guard,
    vrf: VrfId,
    /// Where packets from a link-local address that it shares are.
    zone: Option<VrfId>,
    active: bool,
    /// It is active, or waits for a NOS that is new to accept what the one before had accepted.
    accepted: bool,
    /// What the device towards the container takes. It alone says so.
    pub(super) capabilities: Capabilities,
    pub(super) counters: AttachmentCounters,
    pub(super) refusals: RefusalLimits,
    /// What the NOS was told of it, and accepted if it is active.
    registration: Arc<Registration>,
}

/// What an attachment becomes when the NOS accepts it.
#[derive(Debug)]
pub(super) struct Guarded {
    guard: Guard,
    registration: Arc<Registration>,
}

impl Attachment {
    /// An attachment that has just been registered.
    pub(super) fn new(config: &AttachmentConfig) -> Self {
        let Guarded {
            guard,
            registration,
        } = Guarded::new(config);
        Self {
            guard,
            vrf: registration.vrf,
            zone: zone_of(&registration),
            active: false,
            accepted: false,
            capabilities: Capabilities::empty(),
            counters: AttachmentCounters::default(),
            refusals: RefusalLimits::default(),
            registration,
        }
    }

    /// Makes it what the NOS has accepted.
    pub(super) fn activate(&mut self, accepted: Guarded) {
        self.vrf = accepted.registration.vrf;
        self.zone = zone_of(&accepted.registration);
        self.guard = accepted.guard;
        self.registration = accepted.registration;
        (self.active, self.accepted) = (true, true);
    }

    /// Has it wait for a NOS that is new.
    pub(super) fn suspend(&mut self) {
        self.active = false;
    }

    /// The NOS that is new has accepted it.
    pub(super) fn resume(&mut self) {
        self.active = true;
    }

    /// The NOS that is new has refused it.
    pub(super) fn reject(&mut self) {
        self.accepted = false;
    }

    /// Whether the NOS, or the one before it, has accepted it.
    pub(super) fn was_accepted(&self) -> bool {
        self.accepted
    }

    /// What the NOS was told of it.
    pub(super) fn registration(&self) -> &Registration {
        &self.registration
    }

    /// Whether the NOS has accepted it.
    #[inline]
    pub(super) fn is_active(&self) -> bool {
        self.active
    }

    /// Where its packets are looked up.
    #[inline]
    pub(super) fn vrf(&self) -> VrfId {
        self.vrf
    }

    /// The link to the container.
    #[inline]
    pub(super) fn link(&self) -> &ContainerLink {
        self.guard.link()
    }

    pub(super) fn status(&self, id: AttachmentId) -> AttachmentStatus {
        AttachmentStatus {
            id,
            name: Arc::clone(&self.registration.name),
            active: self.active,
            counters: self.counters,
        }
    }

    /// What becomes of a frame from the container.
    #[inline]
    pub(super) fn judge(&self, frame: Frame) -> Disposition {
        match Packet::parse(frame) {
            Ok(packet) => self.judge_packet(packet),
            Err(rejected) => self.judge_other(rejected),
        }
    }

    // What was parsed is in registers only where the parser is; the other caller is cold.
    #[inline(always)]
    fn judge_packet(&self, packet: Packet) -> Disposition {
        match answer_ip(self.guard.link(), packet) {
            Disposition::Forward(packet) => match self.check(&packet) {
                Ok(()) => Disposition::Forward(packet),
                Err(_) if self.is_for_the_segment(&packet) => {
                    Disposition::Consumed(packet.into_frame())
                }
                Err(reason) => self.judge_on_link(packet, reason),
            },
            answered => answered,
        }
    }

    /// Whether a packet that is for no relay is for other stations of the link.
    #[cold]
    fn is_for_the_segment(&self, packet: &Packet) -> bool {
        let link = self.guard.link();
        link.is_shared() && link.check_unicast(packet.frame()) == Err(DropReason::Multicast)
    }

    /// What becomes of a packet that may not leave by the VRF.
    #[cold]
    fn judge_on_link(&self, mut packet: Packet, reason: DropReason) -> Disposition {
        let zone = self.zone.filter(|_| self.active);
        let on_link = zone.and_then(|zone| Some((zone, self.guard.check_on_link(&packet)?)));
        match on_link {
            Some((zone, Ok(()))) => {
                packet.set_vrf(zone);
                Disposition::OnLink(packet)
            }
            Some((_, Err(reason))) => Disposition::Drop(packet.into_frame(), reason),
            None => Disposition::Drop(packet.into_frame(), reason),
        }
    }

    /// What becomes of a frame that is no IP packet, or one behind tags.
    #[cold]
    fn judge_other(&self, rejected: Rejected) -> Disposition {
        let parsed = parse_tagged(rejected).or_else(Packet::parse_up_to_fault);
        let Rejected { frame, reason } = match parsed {
            Ok(packet) => return self.judge_packet(packet),
            Err(rejected) => rejected,
        };
        if ether_type(frame.bytes()) == Some(ETHERTYPE_ARP) {
            answer_arp(self.guard.link(), frame)
        } else {
            Disposition::Drop(frame, reason)
        }
    }

    /// Whether a packet that was refused is of the container's concern alone.
    pub(super) fn speaks_to_itself(&self, packet: &Packet) -> bool {
        self.guard.is_of_its_concern_alone(packet)
    }

    #[inline]
    fn check(&self, packet: &Packet) -> Result<(), DropReason> {
        self.guard.check(packet)?;
        if self.active {
            Ok(())
        } else {
            Err(DropReason::UnknownAttachment)
        }
    }
}

impl Guarded {
    pub(super) fn new(config: &AttachmentConfig) -> Self {
        let link = ContainerLink::new(config.mac, config.relay_mac, &config.addresses, config.mtu);
        let shared = config.link_local;
        let link = link.sharing(shared.map(|shared| shared.address));
        let link = link.on_segment(config.segment.clone());
        Self {
            guard: match config.mode {
                AddressMode::Shared => Guard::new(link, &config.claims, config.policy.outside),
                AddressMode::Routed => Guard::of_own_addresses(link),
            },
            registration: Arc::new(registration(config)),
        }
    }

    /// What the NOS is told.
    pub(super) fn registration(&self) -> &Registration {
        &self.registration
    }
}

/// Where packets from a link-local address that it shares are.
fn zone_of(registration: &Registration) -> Option<VrfId> {
    registration.link_local.and_then(VrfId::of_link)
}

fn registration(config: &AttachmentConfig) -> Registration {
    Registration {
        attachment: config.id,
        name: Arc::clone(&config.name),
        vrf: config.vrf,
        network: config.network,
        mode: config.mode,
        addresses: config.addresses.clone(),
        link_local: config.link_local.map(|shared| shared.uplink),
        policy: config.policy.clone(),
        claims: config.claims.clone(),
        router: config.relay_mac.link_local(),
        mtu: config.mtu,
    }
}
